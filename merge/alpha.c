#include "merge/alpha.h"

#include <fnmatch.h>
#include <math.h>

double iso_layer_scale_of(const iso_layer_scale *scales, size_t count, const char *name)
{
    for (size_t i = 0; i < count; i++)
        if (fnmatch(scales[i].pattern, name, 0) == 0)
            return scales[i].scale;
    return 1.0;
}

iso_err iso_alpha_choose(const double *alphas, size_t count, const double *scores, size_t tasks,
                         const double *reference, size_t *best, double *best_mean, iso_error *e)
{
    if (count == 0 || tasks == 0)
        return iso_fail(e, ISO_ERR_USAGE, "no scores to choose alpha from");
    for (size_t t = 0; reference && t < tasks; t++)
        if (!(reference[t] > 0.0) || !isfinite(reference[t]))
            return iso_fail(e, ISO_ERR_USAGE,
                            "task %zu's own score is %g; to normalise by it, it must be positive",
                            t + 1, reference[t]);
    *best = count;
    *best_mean = -HUGE_VAL;
    for (size_t i = 0; i < count; i++) {
        double mean = 0.0;
        for (size_t t = 0; t < tasks; t++)
            mean += scores[i * tasks + t] / (reference ? reference[t] : 1.0) / (double)tasks;
        if (!isfinite(mean))
            continue;
        bool is_tie = *best < count && fabs(mean - *best_mean) <= 1e-12;
        if (*best == count || (!is_tie && mean > *best_mean) ||
            (is_tie && alphas[i] < alphas[*best])) {
            *best = i;
            *best_mean = mean;
        }
    }
    if (*best == count)
        return iso_fail(e, ISO_ERR_DATA, "none of %zu settings has finite scores", count);
    return ISO_OK;
}
