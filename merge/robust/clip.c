/* Norm clipping: every update scaled down to a Frobenius norm, then the weighted mean
 * (Sun et al. 2019, arXiv 1911.07963; specs/merging.md 4).
 *   D = sum w_t D_t min(1, c / |D_t|_F) / sum w_t, norms over all tensors together
 * Without a norm the median of the updates' norms is taken. */
#include "merge/robust/distances.h"

#include <math.h>
#include <string.h>

enum { MAX_NORM };

/* Median of x (n); x is sorted. */
static double median_of(double *x, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        double v = x[i];
        size_t k = i;
        for (; k > 0 && x[k - 1] > v; k--)
            x[k] = x[k - 1];
        x[k] = v;
    }
    return 0.5 * (x[(n - 1) / 2] + x[n / 2]);
}

static iso_err end_pass(void *state, bool *is_done, iso_error *e)
{
    iso_distances *s = state;
    double over = 0.0, limit = s->args.value[MAX_NORM], *norms = s->scratch + s->T;
    (void)e;
    iso_distances_sum(s);
    for (size_t t = 0; t < s->T; t++) {
        norms[t] = s->scratch[t] = sqrt(s->squared[t * s->T + t]);
        over += iso_distances_vote(s, t);
    }
    if (limit == 0.0)
        limit = median_of(s->scratch, s->T);
    for (size_t t = 0; t < s->T; t++)
        s->coefficients[t] =
            iso_distances_vote(s, t) / over * (norms[t] > limit ? limit / norms[t] : 1.0);
    *is_done = true;
    return ISO_OK;
}

static const iso_survey survey = {iso_distances_begin, iso_distances_scan, end_pass};

static const iso_method_param params[] = {
    [MAX_NORM] = {"max_norm", "Frobenius norm that no update exceeds; 0: the median of the norms",
                  0, 0, 1e30, false, NULL},
    {.name = NULL},
};

const iso_method iso_rule_norm_clip = {
    .name = "norm_clip",
    .help = "mean of the updates after scaling large ones down",
    .source = "Sun et al. 2019, arXiv 1911.07963",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .has_votes = true,
    .takes = ISO_TAKES_ALL,
    .survey = &survey,
    .coefficients = iso_distances_coefficients,
};
