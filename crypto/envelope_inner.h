/* What sealing and opening share, private to crypto/: the inner header (S31) and the associated
 * data of a chunk (S30). */
#ifndef ISO_CRYPTO_ENVELOPE_INNER_H
#define ISO_CRYPTO_ENVELOPE_INNER_H

#include "crypto/envelope.h"

#include <string.h>

enum { ISO_CHUNK_AD_BYTES = 40 };

/* magic "ISOFEDIN" 0, site_id 8, sign_pk 24, merge_pk 56, payload digest 88, federation_id 120,
 * plain_size 136, reserved zeros 144 */
static inline void iso_inner_encode(const iso_envelope *h, const uint8_t sign_pk[32],
                                    const uint8_t merge_pk[32], const iso_digest *payload,
                                    uint8_t out[ISO_ENVELOPE_INNER_BYTES])
{
    memset(out, 0, ISO_ENVELOPE_INNER_BYTES);
    memcpy(out, "ISOFEDIN", 8);
    memcpy(out + 8, h->site_id, 16);
    memcpy(out + 24, sign_pk, 32);
    memcpy(out + 56, merge_pk, 32);
    memcpy(out + 88, payload->b, 32);
    memcpy(out + 120, h->federation_id, 16);
    iso_put_u64(out + 136, h->plain_size);
}

/* BLAKE2b-256(header with bytes 336 - 367 zero), u32 i, u32 chunk_count; i is set a chunk at a
 * time. */
static inline void iso_chunk_ad(const iso_envelope *h, uint8_t ad[ISO_CHUNK_AD_BYTES])
{
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES];
    iso_envelope_encode(h, header);
    memset(header + 336, 0, 32);
    iso_digest d = iso_digest_of(header, sizeof header);
    memcpy(ad, d.b, 32);
    iso_put_u32(ad + 32, 0);
    iso_put_u32(ad + 36, h->chunk_count);
}

#endif
