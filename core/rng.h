/* Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011).
 *
 * A stream is named by (seed, purpose, step); element i of a stream is a pure function of the
 * name and i. Resuming, caching and any number of threads therefore see the same numbers. */
#ifndef ISO_CORE_RNG_H
#define ISO_CORE_RNG_H

#include <stddef.h>
#include <stdint.h>

/* What a stream is for; part of its name, so that two uses never share numbers. Append only. */
typedef enum {
    ISO_RNG_INIT = 1,
    ISO_RNG_SHUFFLE,
    ISO_RNG_SPLIT,
    ISO_RNG_AUGMENT,
    ISO_RNG_DROPOUT,
    ISO_RNG_DARE,
    ISO_RNG_SIM_NET,
    ISO_RNG_SIM_DISK,
    ISO_RNG_SIM_TRAINER,
    ISO_RNG_SIM_CHURN,
    ISO_RNG_BACKOFF,
    ISO_RNG_TEST,
    ISO_RNG_BENCH,
    ISO_RNG_RESTORE
} iso_rng_purpose;

typedef struct {
    uint32_t key[2];
    uint32_t stream[2]; /* purpose and step, folded into the counter's upper half */
    uint64_t index;     /* next element */
} iso_rng;

iso_rng iso_rng_make(uint64_t seed, iso_rng_purpose purpose, uint64_t step);
/* A seed that depends on a name as well (a tensor, a task): FNV-1a folded into the seed. */
uint64_t iso_rng_seed_name(uint64_t seed, const char *name);

/* The four words of block `block` of the stream; does not move the stream. */
void iso_rng_block(const iso_rng *r, uint64_t block, uint32_t out[4]);

uint32_t iso_rng_u32(iso_rng *r);
uint64_t iso_rng_u64(iso_rng *r);
uint32_t iso_rng_below(iso_rng *r, uint32_t n); /* 0 .. n-1, unbiased; n >= 1 */
double iso_rng_uniform(iso_rng *r);             /* [0, 1), 53 bits */
double iso_rng_normal(iso_rng *r);              /* Box-Muller, one value a pair of words */
void iso_rng_shuffle(iso_rng *r, uint32_t *items, size_t n); /* Fisher-Yates */

#endif
