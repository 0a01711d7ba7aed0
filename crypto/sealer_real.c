#include "crypto/sealer_real.h"
#include "crypto/chain.h"

#include <string.h>

static iso_digest digest(void *ctx, const void *data, size_t bytes)
{
    (void)ctx;
    return iso_digest_of(data, bytes);
}

static iso_digest chain(void *ctx, const iso_digest *previous, const void *entry, size_t bytes)
{
    (void)ctx;
    return iso_chain_next(previous, entry, bytes);
}

static bool verify(void *ctx, iso_label label, const uint8_t pk[ISO_PK_BYTES], const void *message,
                   size_t bytes, const uint8_t signature[ISO_SIGNATURE_BYTES])
{
    (void)ctx;
    return iso_sign_check(label, message, bytes, pk, signature);
}

static void sign(void *ctx, iso_label label, const void *message, size_t bytes,
                 uint8_t signature[ISO_SIGNATURE_BYTES])
{
    const iso_key *key = ctx;
    if (!key || !key->secret || !iso_key_kind_signs(key->kind)) {
        memset(signature, 0, ISO_SIGNATURE_BYTES);
        return;
    }
    iso_sign(label, message, bytes, key->secret, signature);
}

static bool mac_verify(void *ctx, const uint8_t key[32], const void *message, size_t bytes,
                       const uint8_t mac[ISO_MAC_BYTES])
{
    (void)ctx;
    return iso_mac_check(key, message, bytes, mac);
}

static void mac(void *ctx, const uint8_t key[32], const void *message, size_t bytes,
                uint8_t out[ISO_MAC_BYTES])
{
    (void)ctx;
    iso_mac(key, message, bytes, out);
}

iso_sealer iso_sealer_real(const iso_key *key)
{
    return (iso_sealer){
        /* The seam's ctx is not const; this one is only read. */
        .ctx = (void *)(uintptr_t)key,
        .digest = digest,
        .chain = chain,
        .verify = verify,
        .sign = sign,
        .mac_verify = mac_verify,
        .mac = mac,
    };
}
