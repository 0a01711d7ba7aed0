/* Seeded orders and splits; see sampler.h. */
#include "nn/data/sampler.h"

#include "core/rng.h"

void iso_epoch_order(uint64_t seed, uint64_t epoch, uint32_t *order, size_t n)
{
    for (size_t i = 0; i < n; i++)
        order[i] = (uint32_t)i;
    iso_rng r = iso_rng_make(seed, ISO_RNG_SHUFFLE, epoch);
    iso_rng_shuffle(&r, order, n);
}

static size_t share_of(size_t n, double share)
{
    if (n < 2 || !(share > 0))
        return 0;
    size_t k = (size_t)(share * (double)n + 0.5);
    if (k < 1)
        k = 1;
    return k < n ? k : n - 1;
}

void iso_split_classes(const int *labels, size_t n, size_t classes, double share, uint64_t seed,
                       bool *is_val, uint32_t *scratch)
{
    for (size_t i = 0; i < n; i++)
        is_val[i] = false;
    for (size_t c = 0; c < classes; c++) {
        size_t m = 0;
        for (size_t i = 0; i < n; i++)
            if (labels[i] == (int)c)
                scratch[m++] = (uint32_t)i;
        iso_rng r = iso_rng_make(seed, ISO_RNG_SPLIT, c);
        iso_rng_shuffle(&r, scratch, m);
        size_t k = share_of(m, share);
        for (size_t i = 0; i < k; i++)
            is_val[scratch[i]] = true;
    }
}
