/* Coordinate median: of each entry the median over the updates; of an even number the mean of the
 * two in the middle. Yin et al. 2018, arXiv 1803.01498, definition 1 (specs/merging.md 4). */
#include "merge/robust/column.h"

static void entries(const iso_entries *x, const iso_method_args *a, double *out)
{
    double column[ISO_COLUMN_MAX];
    (void)a;
    for (size_t i = 0; i < x->count; i++) {
        iso_column_sorted(x, i, column);
        out[i] = 0.5 * (column[(x->T - 1) / 2] + column[x->T / 2]);
    }
}

static iso_err check(const iso_method_args *a, size_t T, iso_error *e)
{
    (void)a;
    return iso_column_check(T, e);
}

static const iso_method_param params[] = {{.name = NULL}};

const iso_method iso_rule_coordinate_median = {
    .name = "coordinate_median",
    .help = "of each entry the median over the updates",
    .source = "Yin et al. 2018, arXiv 1803.01498",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .has_votes = true,
    .takes = ISO_TAKES_ALL,
    .check = check,
    .entries = entries,
};
