/* BLAKE2b-256, the digest of everything here (libsodium's crypto_generichash, unkeyed). */
#ifndef ISO_CORE_DIGEST_H
#define ISO_CORE_DIGEST_H

#include "core/err.h"

#include <stdbool.h>
#include <stdint.h>

enum { ISO_DIGEST_BYTES = 32, ISO_DIGEST_HEX = 65 };

typedef struct {
    uint8_t b[ISO_DIGEST_BYTES];
} iso_digest;

/* Running state; opaque, large enough and aligned for libsodium's. */
typedef struct {
    _Alignas(64) uint8_t opaque[384];
} iso_hasher;

void iso_hasher_init(iso_hasher *h);
void iso_hasher_add(iso_hasher *h, const void *data, size_t size);
iso_digest iso_hasher_end(iso_hasher *h);

iso_digest iso_digest_of(const void *data, size_t size);
bool iso_digest_equal(const iso_digest *a, const iso_digest *b);
bool iso_digest_is_zero(const iso_digest *d);

/* Lower-case hex of n bytes into out (2n + 1 characters). */
void iso_hex(char *out, const uint8_t *bytes, size_t n);
/* False unless `hex` is exactly 2n hexadecimal characters. */
bool iso_unhex(uint8_t *out, size_t n, const char *hex);

#endif
