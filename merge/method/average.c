/* Weighted average of task vectors: D = sum w_t D_t / sum w_t (specs/merging.md 4).
 * On LoRA it is the average of the products s B A, exact by stacking factors (Singhal et al. 2024,
 * Wang et al. 2024), never of A and B apart. */
#include "merge/method/method.h"

static void coefficients(const iso_method_args *a, const double *weights, size_t T, double *out)
{
    /* by the weights as given: what a guard has scaled down stays scaled down */
    const double *given = a->votes ? a->votes : weights;
    double sum = 0.0;
    for (size_t t = 0; t < T; t++)
        sum += given ? given[t] : 1.0;
    for (size_t t = 0; t < T; t++)
        out[t] = (weights ? weights[t] : 1.0) / sum;
}

static const iso_method_param params[] = {{.name = NULL}};

const iso_method iso_method_average = {
    .name = "average",
    .help = "weighted mean of the updates; weights are normalised to sum to one",
    .source = "Wortsman et al. 2022; exact on LoRA by stacking",
    .needs = ISO_NEEDS_SUM,
    .params = params,
    .takes = ISO_TAKES_ALL,
    .coefficients = coefficients,
};
