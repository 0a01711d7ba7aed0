/* Multi-Krum: the mean of the m updates that lie closest to others.
 * Blanchard et al. 2017 (specs/merging.md 4).
 *   score(i) = sum of the n - f - 2 smallest |D_i - D_j|^2, j != i; the m lowest scores are chosen
 * Its guarantee against f bad updates needs n >= 2 f + 3. */
#include "merge/robust/distances.h"

#include <math.h>
#include <stdio.h>

enum { F, M };

static iso_err check(const iso_method_args *a, size_t T, iso_error *e)
{
    size_t f = (size_t)a->value[F], m = (size_t)a->value[M];
    if (T < f + 3)
        return iso_fail(e, ISO_ERR_USAGE,
                        "multi_krum with f %zu needs at least %zu inputs, there are %zu", f, f + 3,
                        T);
    if (m > T)
        return iso_fail(e, ISO_ERR_USAGE,
                        "m of multi_krum is %zu; with %zu inputs it takes 0 to %zu", m, T, T);
    return ISO_OK;
}

static void caution(const iso_method_args *a, size_t T, char *text, size_t text_bytes)
{
    size_t f = (size_t)a->value[F];
    if (T < 2 * f + 3)
        snprintf(text, text_bytes,
                 "multi_krum promises nothing against %zu bad updates of %zu; that takes %zu", f, T,
                 2 * f + 3);
}

/* Sum of the `count` smallest distances of i, by repeated minima: n is small. */
static double score_of(const iso_distances *s, size_t i, size_t count, double *left)
{
    double sum = 0.0;
    for (size_t j = 0; j < s->T; j++)
        left[j] = j == i ? HUGE_VAL : s->squared[i * s->T + j];
    for (size_t k = 0; k < count; k++) {
        size_t least = 0;
        for (size_t j = 1; j < s->T; j++)
            least = left[j] < left[least] ? j : least;
        sum += left[least];
        left[least] = HUGE_VAL;
    }
    return sum;
}

static iso_err end_pass(void *state, bool *is_done, iso_error *e)
{
    iso_distances *s = state;
    size_t f = (size_t)s->args.value[F], m = (size_t)s->args.value[M], T = s->T;
    double *scores = s->scratch, over = 0.0;
    *is_done = true;
    iso_err err = check(&s->args, T, e); /* also where no driver has checked it */
    if (err)
        return err;
    iso_distances_sum(s);
    for (size_t i = 0; i < T; i++)
        scores[i] = score_of(s, i, T - f - 2, s->scratch + T);
    for (size_t k = 0; k < (m ? m : T - f); k++) { /* equal scores: the first */
        size_t best = 0;
        for (size_t i = 1; i < T; i++)
            best = scores[i] < scores[best] ? i : best;
        scores[best] = HUGE_VAL;
        s->coefficients[best] = iso_distances_vote(s, best);
        over += s->coefficients[best];
    }
    for (size_t t = 0; t < T && over > 0.0; t++)
        s->coefficients[t] /= over;
    return ISO_OK;
}

static const iso_survey survey = {iso_distances_begin, iso_distances_scan, end_pass};

static const iso_method_param params[] = {
    [F] = {"f", "bad updates to withstand", 1, 0, 256, true, NULL},
    [M] = {"m", "updates that are averaged; 0: all but f", 0, 0, 256, true, NULL},
    {.name = NULL},
};

const iso_method iso_rule_multi_krum = {
    .name = "multi_krum",
    .help = "mean of the updates that lie closest to the others",
    .source = "Blanchard et al. 2017, Machine learning with adversaries",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .has_votes = true,
    .takes = ISO_TAKES_ALL,
    .check = check,
    .caution = caution,
    .survey = &survey,
    .coefficients = iso_distances_coefficients,
};
