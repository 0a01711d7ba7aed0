/* Trimmed mean: of each entry the mean over the updates without the `cut` largest and smallest.
 * Yin et al. 2018, arXiv 1803.01498, definition 2 (specs/merging.md 4). */
#include "merge/robust/column.h"

enum { CUT };

static void entries(const iso_entries *x, const iso_method_args *a, double *out)
{
    double column[ISO_COLUMN_MAX];
    size_t cut = (size_t)a->value[CUT], kept = x->T - 2 * cut;
    for (size_t i = 0; i < x->count; i++) {
        double sum = 0.0;
        iso_column_sorted(x, i, column);
        for (size_t k = cut; k < x->T - cut; k++)
            sum += column[k];
        out[i] = sum / (double)kept;
    }
}

static iso_err check(const iso_method_args *a, size_t T, iso_error *e)
{
    size_t cut = (size_t)a->value[CUT];
    if (2 * cut >= T)
        return iso_fail(e, ISO_ERR_USAGE,
                        "cut of trimmed_mean is %zu; with %zu inputs it takes 0 to %zu", cut, T,
                        (T - 1) / 2);
    return iso_column_check(T, e);
}

static const iso_method_param params[] = {
    [CUT] = {"cut", "values left out at each end", 1, 0, 127, true, NULL},
    {.name = NULL},
};

const iso_method iso_rule_trimmed_mean = {
    .name = "trimmed_mean",
    .help = "of each entry the mean over the updates without the extreme ones",
    .source = "Yin et al. 2018, arXiv 1803.01498",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .has_votes = true,
    .takes = ISO_TAKES_ALL,
    .check = check,
    .entries = entries,
};
