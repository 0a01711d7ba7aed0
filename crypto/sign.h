/* Domain-separated Ed25519, MAC and BLAKE2b (specs/security.md S7, S29).
 *
 * A signature covers a 16-byte ASCII label, zero padded, then the message. Under ISO_LABEL_UPDATE
 * the message given here is the 384-byte header and what is signed is label + BLAKE2b-512 of it. */
#ifndef ISO_CRYPTO_SIGN_H
#define ISO_CRYPTO_SIGN_H

#include "core/sealer.h"

enum { ISO_ED25519_SECRET_BYTES = 64, ISO_SEED_BYTES = 32 };

/* "isofed-update-1" ... */
const char *iso_label_text(iso_label label);

/* `secret` is libsodium's 64-byte form (seed, public key). */
void iso_sign(iso_label label, const void *message, size_t bytes,
              const uint8_t secret[ISO_ED25519_SECRET_BYTES],
              uint8_t signature[ISO_SIGNATURE_BYTES]);
bool iso_sign_check(iso_label label, const void *message, size_t bytes,
                    const uint8_t pk[ISO_PK_BYTES], const uint8_t signature[ISO_SIGNATURE_BYTES]);

/* crypto_auth (HMAC-SHA-512-256) with a 32-byte key. */
void iso_mac(const uint8_t key[32], const void *message, size_t bytes, uint8_t mac[ISO_MAC_BYTES]);
bool iso_mac_check(const uint8_t key[32], const void *message, size_t bytes,
                   const uint8_t mac[ISO_MAC_BYTES]);

/* BLAKE2b-512, unkeyed. */
void iso_blake2b_512(const void *data, size_t bytes, uint8_t out[64]);

#endif
