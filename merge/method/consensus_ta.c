/* Consensus task arithmetic: keep what at least k tasks care for.
 * Wang et al. 2024, arXiv 2405.07813, eq. 5-7 (specs/merging.md 4).
 *
 *   M = sum_t D_t;  mask_t = |D_t| >= lambda |M - D_t|;  D = alpha * M where at least k masks hold
 *
 * Published code: strict >. Catastrophic entries (k masks of none) and selfish ones (of one task)
 * are dropped with the default k = 2. */
#include "merge/method/method.h"

#include <math.h>
#include <stdio.h>

enum { LAMBDA, K, ALPHA };

static void entries(const iso_entries *x, const iso_method_args *a, double *out)
{
    double lambda = a->value[LAMBDA];
    for (size_t i = 0; i < x->count; i++) {
        double sum = 0.0;
        size_t masks = 0;
        for (size_t t = 0; t < x->T; t++)
            sum += x->x[t][i];
        for (size_t t = 0; t < x->T; t++) {
            double own = fabs(x->x[t][i]), others = lambda * fabs(sum - x->x[t][i]);
            masks += a->is_reference ? own > others : own >= others;
        }
        out[i] = (double)masks >= a->value[K] ? a->value[ALPHA] * sum : 0.0;
    }
}

static void caution(const iso_method_args *a, size_t T, char *text, size_t text_bytes)
{
    if ((double)T < a->value[K])
        snprintf(text, text_bytes, "k is %g and there are %zu inputs: nothing is kept", a->value[K],
                 T);
}

static const iso_method_param params[] = {
    [LAMBDA] = {"lambda", "how large an entry is beside the others' sum to count", 0.4, 0, 10,
                false, NULL},
    [K] = {"k", "tasks that must care for an entry", 2, 0, 256, true, NULL},
    [ALPHA] = {"alpha", "scale of the merged update", 0.3, -100, 100, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_consensus_ta = {
    .name = "consensus_ta",
    .help = "sum of the updates where enough tasks care for the entry",
    .source = "Wang et al. 2024, arXiv 2405.07813, Consensus TA",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .takes = ISO_TAKES_ALL_IF_REFERENCE,
    .caution = caution,
    .entries = entries,
};
