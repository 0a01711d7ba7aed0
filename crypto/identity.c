/* Names that follow from keys: site id, fingerprint, merge key id (specs/security.md S9). */
#include "core/digest.h"
#include "crypto/key.h"
#include "crypto/text.h"

#include <string.h>

static iso_digest site_digest(const uint8_t transport_pk[32], const uint8_t sign_pk[32])
{
    iso_hasher h;
    iso_hasher_init(&h);
    iso_hasher_add(&h, "isofed-site-1", 13);
    iso_hasher_add(&h, transport_pk, 32);
    iso_hasher_add(&h, sign_pk, 32);
    return iso_hasher_end(&h);
}

void iso_site_id(const uint8_t transport_pk[32], const uint8_t sign_pk[32],
                 uint8_t id[ISO_ID_BYTES])
{
    iso_digest d = site_digest(transport_pk, sign_pk);
    memcpy(id, d.b, ISO_ID_BYTES);
}

void iso_site_fingerprint(const uint8_t transport_pk[32], const uint8_t sign_pk[32],
                          uint8_t out[ISO_FINGERPRINT_BYTES])
{
    iso_digest d = site_digest(transport_pk, sign_pk);
    memcpy(out, d.b, ISO_FINGERPRINT_BYTES);
}

void iso_merge_key_id(const uint8_t pk[32], uint8_t id[ISO_ID_BYTES])
{
    iso_hasher h;
    iso_hasher_init(&h);
    iso_hasher_add(&h, "isofed-merge-1", 14);
    iso_hasher_add(&h, pk, 32);
    iso_digest d = iso_hasher_end(&h);
    memcpy(id, d.b, ISO_ID_BYTES);
}

void iso_fingerprint_text(const uint8_t fingerprint[ISO_FINGERPRINT_BYTES],
                          char out[ISO_FINGERPRINT_TEXT])
{
    char flat[33];
    char *p = out;
    iso_base32_encode(fingerprint, ISO_FINGERPRINT_BYTES, flat);
    for (int i = 0; i < 32; i++) {
        if (i && i % 4 == 0)
            *p++ = '-';
        *p++ = flat[i];
    }
    *p = 0;
}
