/* Magnitude masking: of each task and tensor the largest and the smallest entries are left out, the
 * rest is added up.
 * Davari and Belilovsky 2024, arXiv 2312.06795, Model Breadcrumbs (specs/merging.md 4).
 *
 *   D = alpha * sum_t (D_t without its floor(gamma N) largest and floor(beta N) smallest entries)
 *
 * N entries of one tensor; ties with the last one kept are kept. */
#include "merge/method/method.h"

#include <math.h>
#include <string.h>

enum { SMALLEST, LARGEST, ALPHA };

static iso_err check(const iso_method_args *a, size_t T, iso_error *e)
{
    (void)T;
    if (a->value[SMALLEST] + a->value[LARGEST] < 1.0)
        return ISO_OK;
    return iso_fail(e, ISO_ERR_USAGE,
                    "beta %g and gamma %g leave nothing: their sum must be below 1",
                    a->value[SMALLEST], a->value[LARGEST]);
}

/* The k-th smallest of x (n), by quickselect with the middle as pivot; x is reordered. */
static double select_kth(double *x, size_t n, size_t k)
{
    size_t low = 0, high = n - 1;
    while (low < high) {
        double pivot = x[low + (high - low) / 2];
        size_t i = low, j = high;
        for (;;) {
            while (x[i] < pivot)
                i++;
            while (x[j] > pivot)
                j--;
            if (i >= j)
                break;
            double t = x[i];
            x[i++] = x[j];
            x[j--] = t;
        }
        if (k <= j)
            high = j;
        else
            low = j + 1;
    }
    return x[k];
}

static iso_err dense(const iso_deltas *d, const iso_method_args *a, double *out, iso_decisions *r,
                     iso_arena *scratch, iso_error *e)
{
    size_t count = d->m * d->n;
    size_t low_count = (size_t)floor(a->value[SMALLEST] * (double)count),
           high_count = (size_t)floor(a->value[LARGEST] * (double)count);
    double *x = iso_arena_alloc(scratch, count + 1, sizeof *x),
           *sizes = iso_arena_alloc(scratch, count + 1, sizeof *sizes);
    if (!x || !sizes)
        return iso_nomem(e, 2 * count * sizeof *x);
    strcpy(r->route, "masks");
    memset(out, 0, count * sizeof *out);
    for (size_t t = 0; t < d->T && count > 0; t++) {
        const double *D = iso_delta_get(d, t, x);
        if (!isfinite(iso_norm(D, count)))
            return iso_fail(e, ISO_ERR_NONFINITE,
                            "input %zu holds NaN, Inf, or values too large to square", t + 1);
        for (size_t i = 0; i < count; i++)
            sizes[i] = fabs(D[i]);
        double low = select_kth(sizes, count, low_count),
               high = select_kth(sizes, count, count - 1 - high_count);
        for (size_t i = 0; i < count; i++)
            if (fabs(D[i]) >= low && fabs(D[i]) <= high)
                out[i] += a->value[ALPHA] * D[i];
    }
    return ISO_OK;
}

static const iso_method_param params[] = {
    [SMALLEST] = {"beta", "share of a tensor's entries left out, the smallest", 0.85, 0, 1, false,
                  NULL},
    [LARGEST] = {"gamma", "share of a tensor's entries left out, the largest", 0.01, 0, 1, false,
                 NULL},
    [ALPHA] = {"alpha", "scale of the sum", 0.3, -100, 100, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_breadcrumbs = {
    .name = "breadcrumbs",
    .help = "magnitude masks: sum of the updates without their largest and smallest entries",
    .source = "Davari and Belilovsky 2024, arXiv 2312.06795, Model Breadcrumbs",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .takes = ISO_TAKES_ALL_IF_REFERENCE,
    .check = check,
    .dense = dense,
};
