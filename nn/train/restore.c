#include "nn/train/restore.h"

#include "core/rng.h"

#include <math.h>

bool iso_restore_is_due(const iso_restore *r, uint64_t done, uint64_t steps)
{
    uint64_t s = (uint64_t)floor(r->every * (double)steps);
    return r->every > 0.0 && r->probability > 0.0 && s > 0 && done % s == 0 && steps - done >= s;
}

void iso_restore_masked(size_t n, double probability, const double *uniform, const float *reference,
                        float *params)
{
    for (size_t i = 0; i < n; i++)
        if (uniform[i] < probability)
            params[i] = reference[i];
}

void iso_restore_apply(const iso_restore *r, uint64_t seed, uint64_t step, size_t n,
                       const float *reference, float *params)
{
    enum { CHUNK = 256 };
    double uniform[CHUNK];
    iso_rng g = iso_rng_make(seed, ISO_RNG_RESTORE, step);
    for (size_t at = 0; at < n; at += CHUNK) {
        size_t m = n - at < CHUNK ? n - at : CHUNK;
        for (size_t i = 0; i < m; i++)
            uniform[i] = iso_rng_uniform(&g);
        iso_restore_masked(m, r->probability, uniform, reference + at, params + at);
    }
}
