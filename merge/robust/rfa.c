/* Geometric median of the updates (RFA).
 * Pillutla et al. 2022, arXiv 1912.13445, Algorithm 2 (specs/merging.md 4).
 *
 *   z minimises sum w_t |D_t - z|;  Weiszfeld: z = sum b_t D_t / sum b_t, b_t = w_t / |D_t - z|
 *
 * z stays a combination of the updates, so distances between them are all that is needed:
 *   |D_t - sum_j c_j D_j|^2 = sum_j c_j d_tj^2 - 1/2 sum_jk c_j c_k d_jk^2   (sum c = 1)
 * Smoothing: distances below 1e-12 of the largest one count as that. */
#include "merge/robust/distances.h"

#include <math.h>
#include <string.h>

enum { STEPS = 10000 };
#define SMOOTHING   1e-12
#define CONVERGENCE 1e-14 /* of the coefficients */

/* One step: c to next; the largest change. */
static double weiszfeld_step(const iso_distances *s, const double *c, double least, double *next)
{
    size_t T = s->T;
    double spread = 0.0, over = 0.0, change = 0.0;
    for (size_t j = 0; j < T; j++)
        for (size_t k = 0; k < T; k++)
            spread += j == k ? 0.0 : 0.5 * c[j] * c[k] * s->squared[j * T + k];
    for (size_t t = 0; t < T; t++) {
        double square = -spread;
        for (size_t j = 0; j < T; j++)
            square += j == t ? 0.0 : c[j] * s->squared[t * T + j];
        next[t] = iso_distances_vote(s, t) / fmax(sqrt(fmax(square, 0.0)), least);
        over += next[t];
    }
    for (size_t t = 0; t < T; t++) {
        next[t] /= over;
        change = fmax(change, fabs(next[t] - c[t]));
    }
    return change;
}

static iso_err end_pass(void *state, bool *is_done, iso_error *e)
{
    iso_distances *s = state;
    double largest = 0.0, over = 0.0, *c = s->coefficients, *next = s->scratch;
    (void)e;
    *is_done = true;
    iso_distances_sum(s);
    for (size_t t = 0; t < s->T; t++) {
        over += iso_distances_vote(s, t);
        for (size_t j = 0; j < t; j++)
            largest = fmax(largest, s->squared[t * s->T + j]);
    }
    for (size_t t = 0; t < s->T; t++)
        c[t] = iso_distances_vote(s, t) / over;
    for (int step = 0; step < STEPS && largest > 0.0; step++) {
        double change = weiszfeld_step(s, c, SMOOTHING * sqrt(largest), next);
        memcpy(c, next, s->T * sizeof *c);
        if (change <= CONVERGENCE)
            break;
    }
    return ISO_OK;
}

static const iso_survey survey = {iso_distances_begin, iso_distances_scan, end_pass};
static const iso_method_param params[] = {{.name = NULL}};

const iso_method iso_rule_geometric_median = {
    .name = "geometric_median",
    .help = "the point with the least sum of distances to the updates (RFA)",
    .source = "Pillutla et al. 2022, arXiv 1912.13445",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .has_votes = true,
    .takes = ISO_TAKES_ALL,
    .survey = &survey,
    .coefficients = iso_distances_coefficients,
};
