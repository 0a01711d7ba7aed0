/* Seam: signatures and hashes as the cores need them. Pure and quick, so cores call it directly.
 *
 * The real one is libsodium (crypto/sealer_real.c). The simulation's is a keyed short hash that
 * keeps identities and failures (a wrong key or a changed byte fails) at tens of nanoseconds. */
#ifndef ISO_CORE_SEALER_H
#define ISO_CORE_SEALER_H

#include "core/digest.h"

#include <stddef.h>
#include <stdint.h>

enum { ISO_PK_BYTES = 32, ISO_SIGNATURE_BYTES = 64, ISO_MAC_BYTES = 32 };

/* The domains of specs/security.md S7: a signature of one is refused under every other. */
typedef enum {
    ISO_LABEL_UPDATE,  /* over BLAKE2b-512 of the 384-byte header (S29) */
    ISO_LABEL_REQUEST, /* verdicts, evaluation results */
    ISO_LABEL_RECEIPT,
    ISO_LABEL_ENROL,
    ISO_LABEL_HEAD,
    ISO_LABEL_REVOKE,
    ISO_LABEL_COUNT
} iso_label;

typedef struct {
    void *ctx;
    /* Unkeyed BLAKE2b-256. */
    iso_digest (*digest)(void *ctx, const void *data, size_t bytes);
    /* h_i of the audit chain (S101). */
    iso_digest (*chain)(void *ctx, const iso_digest *previous, const void *entry, size_t bytes);
    bool (*verify)(void *ctx, iso_label label, const uint8_t pk[ISO_PK_BYTES], const void *message,
                   size_t bytes, const uint8_t signature[ISO_SIGNATURE_BYTES]);
    /* With the owner's signing key: the coordinator's audit key, the site's signing key. */
    void (*sign)(void *ctx, iso_label label, const void *message, size_t bytes,
                 uint8_t signature[ISO_SIGNATURE_BYTES]);
    bool (*mac_verify)(void *ctx, const uint8_t key[32], const void *message, size_t bytes,
                       const uint8_t mac[ISO_MAC_BYTES]);
    void (*mac)(void *ctx, const uint8_t key[32], const void *message, size_t bytes,
                uint8_t mac[ISO_MAC_BYTES]);
} iso_sealer;

#endif
