/* Guards (a) and (b) of specs/merging.md 8, and the norms and spectra of LoRA layers they need. */
#include "merge/guard.h"

#include "merge/layer.h"

#include <math.h>
#include <string.h>

extern const iso_method iso_method_average;

iso_guard_options iso_guard_defaults(void)
{
    return (iso_guard_options){.norm_cap = 3.0, .floor = 1e-2, .gain_cap = 10.0};
}

static double median_of(const double *x, size_t n)
{
    /* by counting: T is small, and no copy is needed */
    double low = 0.0, high = 0.0;
    for (size_t i = 0; i < n; i++) {
        size_t below = 0, equal = 0;
        for (size_t j = 0; j < n; j++) {
            below += x[j] < x[i];
            equal += x[j] == x[i];
        }
        if (below <= (n - 1) / 2 && (n - 1) / 2 < below + equal)
            low = x[i];
        if (below <= n / 2 && n / 2 < below + equal)
            high = x[i];
    }
    return 0.5 * (low + high);
}

size_t iso_guard_norm_scales(const double *norms, size_t T, double cap, double *scales)
{
    size_t changed = 0;
    double limit = cap > 0.0 ? cap * median_of(norms, T) : HUGE_VAL;
    for (size_t t = 0; t < T; t++) {
        bool is_over = norms[t] > limit && limit > 0.0;
        scales[t] = is_over ? limit / norms[t] : 1.0;
        changed += is_over;
    }
    return changed;
}

iso_err iso_lora_norm(const iso_lora_layer *l, double *norm, iso_arena *scratch, iso_error *e)
{
    size_t r = l->rank;
    double *Bt = iso_arena_alloc(scratch, r * l->out + 1, sizeof *Bt);
    double *A = iso_arena_alloc(scratch, r * l->in + 1, sizeof *A);
    double *G = iso_arena_alloc(scratch, 2 * r * r + 1, sizeof *G);
    if (!Bt || !A || !G)
        return iso_nomem(e, r * (l->out + l->in) * sizeof *A);
    for (size_t i = 0; i < l->out; i++)
        for (size_t j = 0; j < r; j++)
            Bt[j * l->out + i] = (double)l->B[i * r + j];
    for (size_t i = 0; i < r * l->in; i++)
        A[i] = (double)l->A[i];
    iso_gram(ISO_AS_IS, r, l->out, Bt, G);
    iso_gram(ISO_AS_IS, r, l->in, A, G + r * r);
    double square = iso_dot(G, G + r * r, r * r);
    *norm = fabs(l->scale) * (square > 0.0 ? sqrt(square) : 0.0);
    if (!isfinite(square))
        return iso_fail(e, ISO_ERR_NONFINITE, "layer \"%s\" holds NaN, Inf, or too large values",
                        l->module);
    return ISO_OK;
}

static iso_err decompose(const iso_lora_layer *l, iso_layer_factors *f, iso_arena *scratch,
                         iso_error *e)
{
    iso_method_args args;
    iso_decisions decisions;
    iso_method_defaults(&iso_method_average, &args);
    iso_lora_stack in = {.T = 1, .m = l->out, .n = l->in, .layers = &l, .is_decomposed = true};
    return iso_layer_merge_factors(&iso_method_average, &args, &in, f, &decisions, scratch, e);
}

static double singular_value(const iso_layer_factors *f, const iso_lora_layer *l, size_t i)
{
    return iso_norm(f->product.left + i * l->out, l->out) *
           iso_norm(f->product.right + i * l->in, l->in);
}

iso_err iso_lora_spectrum(const iso_lora_layer *l, double *S, size_t *count, iso_arena *scratch,
                          iso_error *e)
{
    iso_layer_factors f;
    iso_err err = decompose(l, &f, scratch, e);
    *count = err ? 0 : f.product.c;
    for (size_t i = 0; i < *count; i++)
        S[i] = singular_value(&f, l, i);
    return err;
}

iso_err iso_guard_floor(const iso_lora_layer *l, double floor, iso_lora_layer *out, size_t *dropped,
                        iso_arena *scratch, iso_error *e)
{
    *out = *l;
    *dropped = 0;
    if (!(floor > 0.0))
        return ISO_OK;
    iso_layer_factors f;
    iso_err err = decompose(l, &f, scratch, e);
    if (err || f.product.c == 0)
        return err;
    size_t kept = 0;
    double least = floor * singular_value(&f, l, 0);
    while (kept < f.product.c && singular_value(&f, l, kept) >= least)
        kept++;
    *dropped = f.product.c - kept;
    if (*dropped == 0)
        return ISO_OK;
    out->rank = kept;
    out->scale = 1.0;
    out->A = iso_arena_alloc(scratch, kept * l->in, sizeof *out->A);
    out->B = iso_arena_alloc(scratch, kept * l->out, sizeof *out->B);
    if (!out->A || !out->B)
        return iso_nomem(e, kept * (l->in + l->out) * sizeof *out->A);
    for (size_t i = 0; i < kept * l->in; i++)
        out->A[i] = (float)f.product.right[i];
    for (size_t i = 0; i < l->out; i++)
        for (size_t j = 0; j < kept; j++)
            out->B[i * kept + j] = (float)f.product.left[j * l->out + i];
    return ISO_OK;
}
