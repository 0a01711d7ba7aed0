#include "crypto/sign.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

enum { LABEL_BYTES = 16, SMALL_BYTES = 512 };

static const char *const labels[ISO_LABEL_COUNT] = {
    [ISO_LABEL_UPDATE] = "isofed-update-1",  [ISO_LABEL_REQUEST] = "isofed-request1",
    [ISO_LABEL_RECEIPT] = "isofed-receipt1", [ISO_LABEL_ENROL] = "isofed-enrol-1",
    [ISO_LABEL_HEAD] = "isofed-head-1",      [ISO_LABEL_REVOKE] = "isofed-revoke-1",
};

const char *iso_label_text(iso_label label)
{
    return (unsigned)label < ISO_LABEL_COUNT ? labels[label] : "";
}

/* label + message, contiguous, because libsodium's one-shot Ed25519 wants it so. Messages are small
 * (heads, receipts, a 64-byte digest); a long one goes to the heap. Returns NULL on exhaustion. */
static uint8_t *join(iso_label label, const void *message, size_t bytes, uint8_t *small,
                     size_t *joined_bytes)
{
    uint8_t digest[64];
    if (label == ISO_LABEL_UPDATE) { /* S29 */
        iso_blake2b_512(message, bytes, digest);
        message = digest;
        bytes = sizeof digest;
    }
    uint8_t *p = small;
    if (bytes > SMALL_BYTES - LABEL_BYTES) {
        if (bytes > SIZE_MAX - LABEL_BYTES)
            return NULL;
        p = malloc(bytes + LABEL_BYTES);
        if (!p)
            return NULL;
    }
    memset(p, 0, LABEL_BYTES);
    memcpy(p, labels[label], strlen(labels[label]));
    if (bytes)
        memcpy(p + LABEL_BYTES, message, bytes);
    *joined_bytes = bytes + LABEL_BYTES;
    return p;
}

void iso_sign(iso_label label, const void *message, size_t bytes,
              const uint8_t secret[ISO_ED25519_SECRET_BYTES],
              uint8_t signature[ISO_SIGNATURE_BYTES])
{
    uint8_t small[SMALL_BYTES];
    size_t n = 0;
    memset(signature, 0, ISO_SIGNATURE_BYTES); /* verifies nowhere */
    if ((unsigned)label >= ISO_LABEL_COUNT)
        return;
    uint8_t *joined = join(label, message, bytes, small, &n);
    if (!joined)
        return;
    crypto_sign_detached(signature, NULL, joined, n, secret);
    if (joined != small)
        free(joined);
}

bool iso_sign_check(iso_label label, const void *message, size_t bytes,
                    const uint8_t pk[ISO_PK_BYTES], const uint8_t signature[ISO_SIGNATURE_BYTES])
{
    uint8_t small[SMALL_BYTES];
    size_t n = 0;
    if ((unsigned)label >= ISO_LABEL_COUNT)
        return false;
    uint8_t *joined = join(label, message, bytes, small, &n);
    if (!joined)
        return false;
    bool holds = crypto_sign_verify_detached(signature, joined, n, pk) == 0;
    if (joined != small)
        free(joined);
    return holds;
}

void iso_mac(const uint8_t key[32], const void *message, size_t bytes, uint8_t mac[ISO_MAC_BYTES])
{
    crypto_auth(mac, message, bytes, key);
}

bool iso_mac_check(const uint8_t key[32], const void *message, size_t bytes,
                   const uint8_t mac[ISO_MAC_BYTES])
{
    return crypto_auth_verify(mac, message, bytes, key) == 0;
}

void iso_blake2b_512(const void *data, size_t bytes, uint8_t out[64])
{
    crypto_generichash(out, 64, data, bytes, NULL, 0);
}
