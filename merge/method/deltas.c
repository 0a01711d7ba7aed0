/* Task vectors as doubles, whatever type and orientation they came in (specs/merging.md 1, 3.2). */
#include "merge/method/method.h"

#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

static bool is_aligned_f64(const iso_tensor *t)
{
    return t->dtype == ISO_F64 && ((uintptr_t)t->data & 7u) == 0;
}

/* Elements first .. first + n - 1 of t. Types were checked when the tensors were opened, so that
 * conversion cannot fail here. */
static void convert(const iso_tensor *t, size_t first, size_t n, double *out)
{
    const char *data = t->data;
    iso_tensor part = {t->dtype, 1, {n}, data + first * iso_dtype_bytes(t->dtype)};
    iso_err ignored = iso_tensor_to_f64(&part, out, NULL);
    (void)ignored;
}

/* Rows first .. first + rows - 1 of Bt' A. */
static const double *product_rows(const iso_deltas *d, size_t t, size_t first, size_t rows,
                                  double *scratch)
{
    const iso_factor *f = &d->factors[t];
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, rows, d->n, f->rank, 1.0, f->Bt + first, d->m, f->A,
                d->n, 0.0, scratch, d->n);
    return scratch;
}

const double *iso_delta_part(const iso_deltas *d, size_t t, size_t first, size_t count,
                             double *scratch)
{
    enum { BLOCK = 512 };
    if (d->factors)
        return product_rows(d, t, first / d->n, count / d->n, scratch);
    const iso_tensor *v = &d->views[t];
    double weight = d->weights ? d->weights[t] : 1.0, w0[BLOCK];
    if (!v->data || weight == 0.0) {
        memset(scratch, 0, count * sizeof *scratch);
        return scratch;
    }
    convert(v, first, count, scratch);
    for (size_t done = 0; d->base && done < count; done += BLOCK) {
        size_t some = count - done < BLOCK ? count - done : BLOCK;
        convert(d->base, first + done, some, w0);
        for (size_t i = 0; i < some; i++)
            scratch[done + i] -= w0[i];
    }
    for (size_t i = 0; weight != 1.0 && i < count; i++)
        scratch[i] *= weight;
    return scratch;
}

const double *iso_delta_get(const iso_deltas *d, size_t t, double *scratch)
{
    enum { BLOCK = 512 };
    if (d->factors)
        return product_rows(d, t, 0, d->m, scratch);
    const iso_tensor *v = &d->views[t];
    size_t count = d->m * d->n;
    double weight = d->weights ? d->weights[t] : 1.0;
    if (!v->data || weight == 0.0) {
        memset(scratch, 0, count * sizeof *scratch);
        return scratch;
    }
    if (is_aligned_f64(v) && weight == 1.0 && !d->base && !d->is_transposed)
        return v->data;
    double x[BLOCK], w0[BLOCK];
    for (size_t first = 0; first < count; first += BLOCK) {
        size_t some = count - first < BLOCK ? count - first : BLOCK;
        convert(v, first, some, x);
        if (d->base) {
            convert(d->base, first, some, w0);
            for (size_t i = 0; i < some; i++)
                x[i] -= w0[i];
        }
        for (size_t i = 0; i < some; i++)
            x[i] *= weight;
        if (!d->is_transposed) {
            memcpy(scratch + first, x, some * sizeof *x);
            continue;
        }
        for (size_t i = 0; i < some; i++) /* stored (n, m) */
            scratch[(first + i) % d->m * d->n + (first + i) / d->m] = x[i];
    }
    return scratch;
}

iso_err iso_delta_sum(const iso_deltas *d, double *M, double *norms, double *noise,
                      iso_arena *scratch, iso_error *e)
{
    size_t count = d->m * d->n;
    double *x = iso_arena_alloc(scratch, count + 1, sizeof *x), total = 0.0;
    if (!x)
        return iso_nomem(e, count * sizeof *x);
    memset(M, 0, count * sizeof *M);
    for (size_t t = 0; t < d->T; t++) {
        const double *D = iso_delta_get(d, t, x);
        for (size_t i = 0; i < count; i++)
            M[i] += D[i];
        double norm = iso_norm(D, count);
        if (!isfinite(norm))
            return iso_fail(e, ISO_ERR_NONFINITE,
                            "input %zu holds NaN, Inf, or values too large to square", t + 1);
        if (norms)
            norms[t] = norm;
        total += norm;
    }
    *noise = d->noise + 16.0 * DBL_EPSILON * total;
    return ISO_OK;
}
