/* Seam: unpredictable bytes (nonces, ids, jitter). Daemons use crypto/, the simulation a seed. */
#ifndef ISO_CORE_ENTROPY_H
#define ISO_CORE_ENTROPY_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    void *ctx;
    void (*fill)(void *ctx, void *out, size_t bytes);
} iso_entropy;

#endif
