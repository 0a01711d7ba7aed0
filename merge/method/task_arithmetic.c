/* Task arithmetic: D = alpha * sum w_t D_t (Ilharco et al. 2023; specs/merging.md 4). */
#include "merge/method/method.h"

static void coefficients(const iso_method_args *a, const double *weights, size_t T, double *out)
{
    for (size_t t = 0; t < T; t++)
        out[t] = a->value[0] * (weights ? weights[t] : 1.0);
}

static const iso_method_param params[] = {
    {"alpha", "scale of the sum", 0.3, -100, 100, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_task_arithmetic = {
    .name = "task_arithmetic",
    .help = "scaled sum of the updates",
    .source = "Ilharco et al. 2023, Editing models with task arithmetic",
    .needs = ISO_NEEDS_SUM,
    .params = params,
    .takes = ISO_TAKES_ALL,
    .coefficients = coefficients,
};
