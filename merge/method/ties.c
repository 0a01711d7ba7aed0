/* TIES: trim, elect sign, merge what agrees.
 * Yadav et al. 2023, arXiv 2306.01708, Algorithm 1 (specs/merging.md 4).
 *
 *   trim    of a task's N merged parameters, all tensors together, the ceil(density N) of largest
 *           magnitude are kept; ties at the threshold all. Published code: floor(density N) + 1
 *   elect   g = sign(sum of what is kept); where that cancels exactly, the sign of most entries
 *   merge   D = alpha * mean over the kept values with sign g, weighted where weights are given
 *
 * The threshold is found without sorting and without holding anything: a double's magnitude orders
 * like its bits, so a histogram of 16 bits a pass narrows it down, two or three passes as a rule.
 * Counts are whole numbers: the same for any number of threads. */
#include "merge/method/ties.h"

#include <math.h>
#include <stdatomic.h>
#include <string.h>

enum { DENSITY, ALPHA };
enum { BINS = 1 << 16, BITS = 16, PASSES = 4 };

struct iso_ties {
    size_t T;
    double density;
    bool is_reference;
    const double *votes;
    int pass;                /* PASSES: counting signs */
    atomic_uint_fast64_t *n; /* (T, BINS) */
    atomic_size_t entries;   /* N, counted in the first pass */
    bool *is_found;          /* T */
    uint64_t *prefix, *need; /* T: leading bits decided so far; how many of that prefix are kept */
    double *threshold;       /* T */
    atomic_int_fast64_t signs;
    double majority;
};

static uint64_t bits_of(double x)
{
    uint64_t bits;
    x = fabs(x);
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

iso_err iso_ties_begin(double density, const iso_method_args *a, size_t T, iso_ties **out,
                       iso_arena *arena, iso_error *e)
{
    iso_ties *s = iso_arena_calloc(arena, 1, sizeof *s);
    if (!s)
        return iso_nomem(e, sizeof *s);
    *s = (iso_ties){.T = T,
                    .density = density,
                    .is_reference = a->is_reference,
                    .votes = a->votes,
                    .majority = 1.0};
    s->n = iso_arena_calloc(arena, T * BINS, sizeof *s->n);
    s->is_found = iso_arena_calloc(arena, T, sizeof *s->is_found);
    s->prefix = iso_arena_calloc(arena, T, sizeof *s->prefix);
    s->need = iso_arena_calloc(arena, T, sizeof *s->need);
    s->threshold = iso_arena_calloc(arena, T, sizeof *s->threshold);
    if (!s->n || !s->is_found || !s->prefix || !s->need || !s->threshold)
        return iso_nomem(e, T * BINS * sizeof *s->n);
    if (density >= 1.0)
        s->pass = PASSES; /* all are kept: only signs to count */
    *out = s;
    return ISO_OK;
}

static int shift_of(int pass)
{
    return 64 - BITS * (pass + 1);
}

static void count_magnitudes(iso_ties *s, double *const *x, size_t count)
{
    int shift = shift_of(s->pass);
    for (size_t t = 0; t < s->T; t++) {
        if (s->is_found[t])
            continue;
        for (size_t i = 0; i < count; i++) {
            uint64_t key = bits_of(x[t][i]);
            if (s->pass > 0 && key >> (shift + BITS) != s->prefix[t])
                continue;
            atomic_fetch_add_explicit(&s->n[t * BINS + ((key >> shift) & (BINS - 1))], 1,
                                      memory_order_relaxed);
        }
    }
    if (s->pass == 0)
        atomic_fetch_add_explicit(&s->entries, count, memory_order_relaxed);
}

static double kept_sum(const iso_ties *s, double *const *x, size_t i)
{
    double sum = 0.0;
    for (size_t t = 0; t < s->T; t++)
        if (fabs(x[t][i]) >= s->threshold[t])
            sum += x[t][i];
    return sum;
}

void iso_ties_scan(iso_ties *s, double *const *x, size_t count)
{
    if (s->pass < PASSES) {
        count_magnitudes(s, x, count);
        return;
    }
    int_fast64_t signs = 0;
    for (size_t i = 0; i < count; i++) {
        double sum = kept_sum(s, x, i);
        signs += (sum > 0.0) - (sum < 0.0);
    }
    atomic_fetch_add_explicit(&s->signs, signs, memory_order_relaxed);
}

static uint64_t kept_of(const iso_ties *s)
{
    double n = (double)s->entries, k = s->density * n;
    k = s->is_reference ? floor(k) + 1.0 : ceil(k);
    return (uint64_t)fmin(k, n);
}

/* Narrows task t's threshold to one bin of this pass, from above. */
static void narrow(iso_ties *s, size_t t)
{
    atomic_uint_fast64_t *n = s->n + t * BINS;
    int bin = BINS - 1, shift = shift_of(s->pass);
    while (bin > 0 && n[bin] < s->need[t])
        s->need[t] -= n[bin--];
    s->prefix[t] = s->prefix[t] << BITS | (uint64_t)bin;
    if (n[bin] == s->need[t] || s->pass == PASSES - 1) {
        uint64_t bits = s->prefix[t] << shift; /* the bin's least magnitude keeps all of it */
        memcpy(&s->threshold[t], &bits, sizeof bits);
        s->is_found[t] = true;
    }
}

void iso_ties_end_pass(iso_ties *s, bool *is_done)
{
    *is_done = s->pass == PASSES;
    if (*is_done) {
        double least = s->is_reference ? -1.0 : 1.0;
        s->majority = s->signs > 0 ? 1.0 : s->signs < 0 ? -1.0 : least;
        return;
    }
    bool is_all_found = true;
    for (size_t t = 0; t < s->T; t++) {
        if (s->pass == 0) {
            s->need[t] = kept_of(s);
            s->is_found[t] = s->need[t] == 0;
            s->threshold[t] = s->is_found[t] ? HUGE_VAL : 0.0;
        }
        if (!s->is_found[t])
            narrow(s, t);
        is_all_found = is_all_found && s->is_found[t];
    }
    for (size_t i = 0; i < s->T * BINS; i++)
        s->n[i] = 0;
    s->pass = is_all_found ? PASSES : s->pass + 1;
}

void iso_ties_block(const iso_ties *s, double *const *x, size_t count, double alpha, double *out)
{
    for (size_t i = 0; i < count; i++) {
        double elected = kept_sum(s, x, i), sum = 0.0, over = 0.0;
        elected = elected > 0.0 ? 1.0 : elected < 0.0 ? -1.0 : s->majority;
        for (size_t t = 0; t < s->T; t++) {
            if (fabs(x[t][i]) < s->threshold[t] || !(x[t][i] * elected > 0.0))
                continue;
            sum += x[t][i];
            over += s->votes ? s->votes[t] : 1.0;
        }
        out[i] = over > 0.0 ? alpha * sum / over : 0.0;
    }
}

double iso_ties_threshold(const iso_ties *s, size_t t)
{
    return s->threshold[t];
}

/* ---- the method ---- */
static iso_err begin(const iso_method_args *a, size_t T, size_t tensors, void **state,
                     iso_arena *arena, iso_error *e)
{
    (void)tensors;
    return iso_ties_begin(a->value[DENSITY], a, T, (iso_ties **)state, arena, e);
}

static iso_err scan_block(void *ctx, const iso_entries *x, iso_error *e)
{
    (void)e;
    iso_ties_scan(ctx, x->x, x->count);
    return ISO_OK;
}

static iso_err scan(void *state, const iso_method_args *a, const iso_deltas *d, iso_arena *scratch,
                    iso_error *e)
{
    (void)a;
    return iso_entries_walk(d, scan_block, state, scratch, e);
}

static iso_err end_pass(void *state, bool *is_done, iso_error *e)
{
    (void)e;
    iso_ties_end_pass(state, is_done);
    return ISO_OK;
}

static void entries(const iso_entries *x, const iso_method_args *a, double *out)
{
    iso_ties_block(a->survey, x->x, x->count, a->value[ALPHA], out);
}

static const iso_survey survey = {begin, scan, end_pass};

static const iso_method_param params[] = {
    [DENSITY] = {"density", "share of a task's parameters that is kept, the largest ones", 0.2, 0,
                 1, false, NULL},
    [ALPHA] = {"alpha", "scale of the merged update", 1.0, -100, 100, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_ties = {
    .name = "ties",
    .help = "trims each update, elects a sign for each entry, averages what agrees with it",
    .source = "Yadav et al. 2023, arXiv 2306.01708, TIES-Merging",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .takes = ISO_TAKES_ALL_IF_REFERENCE,
    .survey = &survey,
    .entries = entries,
};
