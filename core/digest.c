#include "core/digest.h"

#include <assert.h>
#include <sodium.h>
#include <string.h>

_Static_assert(sizeof(crypto_generichash_state) <= sizeof(iso_hasher), "hasher too small");

static crypto_generichash_state *state(iso_hasher *h)
{
    return (crypto_generichash_state *)(void *)h->opaque;
}

void iso_hasher_init(iso_hasher *h)
{
    int rc = crypto_generichash_init(state(h), NULL, 0, ISO_DIGEST_BYTES);
    assert(rc == 0);
    (void)rc;
}

void iso_hasher_add(iso_hasher *h, const void *data, size_t size)
{
    crypto_generichash_update(state(h), data, size);
}

iso_digest iso_hasher_end(iso_hasher *h)
{
    iso_digest d;
    crypto_generichash_final(state(h), d.b, sizeof d.b);
    return d;
}

iso_digest iso_digest_of(const void *data, size_t size)
{
    iso_digest d;
    crypto_generichash(d.b, sizeof d.b, data, size, NULL, 0);
    return d;
}

bool iso_digest_equal(const iso_digest *a, const iso_digest *b)
{
    return memcmp(a->b, b->b, sizeof a->b) == 0;
}

bool iso_digest_is_zero(const iso_digest *d)
{
    static const iso_digest zero;
    return iso_digest_equal(d, &zero);
}

void iso_hex(char *out, const uint8_t *bytes, size_t n)
{
    static const char digit[] = "0123456789abcdef";
    for (size_t i = 0; i < n; i++) {
        out[2 * i] = digit[bytes[i] >> 4];
        out[2 * i + 1] = digit[bytes[i] & 15];
    }
    out[2 * n] = 0;
}

static int nibble(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    if (c >= 'a' && c <= 'f')
        return c - 'a' + 10;
    if (c >= 'A' && c <= 'F')
        return c - 'A' + 10;
    return -1;
}

bool iso_unhex(uint8_t *out, size_t n, const char *hex)
{
    if (strlen(hex) != 2 * n)
        return false;
    for (size_t i = 0; i < n; i++) {
        int high = nibble(hex[2 * i]), low = nibble(hex[2 * i + 1]);
        if (high < 0 || low < 0)
            return false;
        out[i] = (uint8_t)(high << 4 | low);
    }
    return true;
}
