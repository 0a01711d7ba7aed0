/* SLERP: the great circle between two updates, each tensor flattened.
 * Shoemake 1985, as used for models by merge tools (specs/merging.md 4).
 *
 *   D = (sin((1 - t) w) D_1 + sin(t w) D_2) / sin w,  cos w = <D_1, D_2> / (|D_1| |D_2|)
 *
 * Linear where the two are nearly parallel or one is zero. Orthonormal bases keep angles, so LoRA
 * is merged on the cores of the stacked factors. */
#include "merge/method/method.h"

#include <math.h>
#include <string.h>

enum { PART };

#define NEARLY_PARALLEL 1e-6 /* |sin w| */

static iso_err check(const iso_method_args *a, size_t T, iso_error *e)
{
    (void)a;
    return T == 2 ? ISO_OK
                  : iso_fail(e, ISO_ERR_USAGE, "slerp takes exactly two inputs, not %zu", T);
}

/* out = c_1 D_1 + c_2 D_2. */
static iso_err blend(const iso_deltas *d, const iso_method_args *a, double *out, iso_decisions *r,
                     iso_arena *scratch, iso_error *e)
{
    size_t count = d->m * d->n;
    double t = a->value[PART], first = 1.0 - t, second = t;
    double *x = iso_arena_alloc(scratch, count + 1, sizeof *x),
           *y = iso_arena_alloc(scratch, count + 1, sizeof *y);
    if (!x || !y)
        return iso_nomem(e, 2 * count * sizeof *x);
    const double *D1 = iso_delta_get(d, 0, x), *D2 = iso_delta_get(d, 1, y);
    double n1 = iso_norm(D1, count), n2 = iso_norm(D2, count);
    if (!isfinite(n1) || !isfinite(n2))
        return iso_fail(e, ISO_ERR_NONFINITE,
                        "input %d holds NaN, Inf, or values too large to square",
                        isfinite(n1) ? 2 : 1);
    strcpy(r->route, "linear");
    if (n1 > 0.0 && n2 > 0.0) {
        double cosine = iso_dot(D1, D2, count) / (n1 * n2);
        double angle = acos(fmax(-1.0, fmin(1.0, cosine)));
        if (fabs(sin(angle)) >= NEARLY_PARALLEL) {
            first = sin((1.0 - t) * angle) / sin(angle);
            second = sin(t * angle) / sin(angle);
            strcpy(r->route, "circle");
        }
    }
    for (size_t i = 0; i < count; i++)
        out[i] = first * D1[i] + second * D2[i];
    r->sum_norm = iso_norm(out, count);
    return ISO_OK;
}

static iso_err core(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    double *D = iso_arena_alloc(scratch, d->m * d->n + 1, sizeof *D);
    if (!D)
        return iso_nomem(e, d->m * d->n * sizeof *D);
    iso_err err = blend(d, a, D, r, scratch, e);
    if (!err)
        err = iso_product_of(d->m, d->n, D, d->rank_tol, d->noise, 0, out, NULL, scratch, e);
    if (!err)
        r->rank = r->kept = out->c;
    return err;
}

static const iso_method_param params[] = {
    [PART] = {"t", "where between the first input (0) and the second (1)", 0.5, 0, 1, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_slerp = {
    .name = "slerp",
    .help = "between two updates along the great circle",
    .source = "Shoemake 1985, Animating rotation with quaternion curves",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .takes = ISO_TAKES_ALL,
    .check = check,
    .core = core,
    .dense = blend,
};
