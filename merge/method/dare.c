/* DARE: drop entries at random, rescale the others, then merge: linearly or by TIES.
 * Yu et al. 2024, arXiv 2311.03099, eq. 2-3 (specs/merging.md 4).
 *
 *   D_t'[i] = D_t[i] / density with probability density, else 0;  then  alpha * sum D_t', or TIES
 *
 * Which entry is dropped is a pure function of (seed, tensor name, number of the input, entry): the
 * same for any number of threads, blocks or repetitions, and on the product of LoRA factors the
 * same as on the whole matrix. With density 1 it is the inner method. */
#include "core/rng.h"
#include "merge/method/ties.h"

enum { DENSITY, SEED, ALPHA, TRIM };

static void drop(const iso_entries *x, const iso_method_args *a)
{
    double density = a->value[DENSITY], keep = 1.0 / density;
    uint64_t below = (uint64_t)(density * 4294967296.0); /* of 2^32 */
    uint64_t seed = iso_rng_seed_name((uint64_t)a->value[SEED], x->d->name ? x->d->name : "");
    if (density >= 1.0)
        return;
    for (size_t t = 0; t < x->T; t++) {
        iso_rng r = iso_rng_make(seed, ISO_RNG_DARE, t);
        r.index = x->first;
        for (size_t i = 0; i < x->count;) {
            uint32_t words[4];
            iso_rng_block(&r, r.index >> 2, words);
            for (size_t w = r.index & 3; w < 4 && i < x->count; w++, i++, r.index++)
                x->x[t][i] = words[w] < below ? x->x[t][i] * keep : 0.0;
        }
    }
}

static void entries_linear(const iso_entries *x, const iso_method_args *a, double *out)
{
    drop(x, a);
    for (size_t i = 0; i < x->count; i++) {
        double sum = 0.0;
        for (size_t t = 0; t < x->T; t++)
            sum += x->x[t][i];
        out[i] = a->value[ALPHA] * sum;
    }
}

static void entries_ties(const iso_entries *x, const iso_method_args *a, double *out)
{
    drop(x, a);
    iso_ties_block(a->survey, x->x, x->count, a->value[ALPHA], out);
}

static iso_err begin(const iso_method_args *a, size_t T, size_t tensors, void **state,
                     iso_arena *arena, iso_error *e)
{
    (void)tensors;
    return iso_ties_begin(a->value[TRIM], a, T, (iso_ties **)state, arena, e);
}

typedef struct {
    iso_ties *ties;
    const iso_method_args *a;
} scanning;

static iso_err scan_block(void *ctx, const iso_entries *x, iso_error *e)
{
    const scanning *s = ctx;
    (void)e;
    drop(x, s->a);
    iso_ties_scan(s->ties, x->x, x->count);
    return ISO_OK;
}

static iso_err scan(void *state, const iso_method_args *a, const iso_deltas *d, iso_arena *scratch,
                    iso_error *e)
{
    scanning s = {state, a};
    return iso_entries_walk(d, scan_block, &s, scratch, e);
}

static iso_err end_pass(void *state, bool *is_done, iso_error *e)
{
    (void)e;
    iso_ties_end_pass(state, is_done);
    return ISO_OK;
}

static const iso_survey survey = {begin, scan, end_pass};

/* At least a thousandth is kept: 1 / density stays a number one can add up. */
#define DENSITY_ROW                                                                                \
    {                                                                                              \
        "density", "share of the entries that is kept, at random", 0.5, 1e-3, 1, false, NULL       \
    }
#define SEED_ROW                                                                                   \
    {                                                                                              \
        "seed", "of the random choice", 0, 0, 9007199254740992.0, true, NULL                       \
    }

static const iso_method_param params_linear[] = {
    [DENSITY] = DENSITY_ROW,
    [SEED] = SEED_ROW,
    [ALPHA] = {"alpha", "scale of the sum", 0.3, -100, 100, false, NULL},
    {.name = NULL},
};

static const iso_method_param params_ties[] = {
    [DENSITY] = DENSITY_ROW,
    [SEED] = SEED_ROW,
    [ALPHA] = {"alpha", "scale of the merged update", 1.0, -100, 100, false, NULL},
    [TRIM] = {"trim", "density of TIES afterwards; 1: no trimming, as published", 1.0, 0, 1, false,
              NULL},
    {.name = NULL},
};

const iso_method iso_method_dare_linear = {
    .name = "dare_linear",
    .help = "drops entries at random, rescales the others, adds up",
    .source = "Yu et al. 2024, arXiv 2311.03099, DARE with task arithmetic",
    .needs = ISO_NEEDS_ALL,
    .params = params_linear,
    .takes = ISO_TAKES_ALL,
    .entries = entries_linear,
};

const iso_method iso_method_dare_ties = {
    .name = "dare_ties",
    .help = "drops entries at random, rescales the others, elects signs as TIES does",
    .source = "Yu et al. 2024, arXiv 2311.03099, DARE with TIES",
    .needs = ISO_NEEDS_ALL,
    .params = params_ties,
    .takes = ISO_TAKES_ALL_IF_REFERENCE,
    .survey = &survey,
    .entries = entries_ties,
};
