#include "merge/method/shared.h"

#include <math.h>
#include <string.h>

/* G (k, k) = sum_t C_t' W_t C_t, C_t the rows of task t in the basis. */
static iso_err weighted_gram(const iso_basis *b, size_t T, const size_t *first,
                             double *const *weights, double *G, iso_arena *scratch, iso_error *e)
{
    size_t k = b->k;
    if (!weights) {
        iso_gram(ISO_TRANSPOSED, b->R, k, b->coords, G);
        return ISO_OK;
    }
    double *WC = iso_arena_alloc(scratch, b->R * k + 1, sizeof *WC);
    if (!WC)
        return iso_nomem(e, b->R * k * sizeof *WC);
    memset(G, 0, k * k * sizeof *G);
    for (size_t t = 0; t < T; t++) {
        size_t r = first[t + 1] - first[t];
        const double *C = b->coords + first[t] * k;
        if (r == 0)
            continue;
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, r, k, r, 1.0, weights[t], r, C, k, 0.0, WC, k);
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, k, k, r, 1.0, C, k, WC, k, 1.0, G, k);
    }
    for (size_t i = 0; i < k; i++) /* symmetric to the bit */
        for (size_t j = 0; j < i; j++)
            G[i * k + j] = G[j * k + i] = 0.5 * (G[i * k + j] + G[j * k + i]);
    return ISO_OK;
}

iso_err iso_shared_make(size_t R, size_t m, const double *X, size_t T, const size_t *first,
                        double *const *weights, iso_shared *out, iso_arena *scratch, iso_error *e)
{
    *out = (iso_shared){0};
    iso_err err = iso_basis_make(R, m, X, &out->basis, scratch, e);
    size_t k = out->basis.k;
    out->turn = iso_arena_alloc(scratch, k * k + 1, sizeof *out->turn);
    out->S = iso_arena_alloc(scratch, k + 1, sizeof *out->S);
    if (!err && (!out->turn || !out->S))
        err = iso_nomem(e, k * k * sizeof *out->S);
    if (!err)
        err = weighted_gram(&out->basis, T, first, weights, out->turn, scratch, e);
    if (!err)
        err = iso_eigen(k, out->turn, out->S, scratch, e);
    if (err)
        return err;
    while (out->k < k && out->S[out->k] > ISO_SHARED_TOL * ISO_SHARED_TOL * out->S[0])
        out->k++;
    for (size_t i = 0; i < out->k; i++)
        out->S[i] = sqrt(out->S[i]);
    out->coords = iso_arena_alloc(scratch, R * out->k + 1, sizeof *out->coords);
    if (!out->coords)
        return iso_nomem(e, R * out->k * sizeof *out->coords);
    iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, R, out->k, k, 1.0, out->basis.coords, k, out->turn, k,
                0.0, out->coords, out->k);
    return ISO_OK;
}

iso_err iso_shared_expand(const iso_shared *s, size_t c, const double *W, double *out,
                          iso_arena *scratch, iso_error *e)
{
    size_t k = s->basis.k;
    double *turned = iso_arena_alloc(scratch, c * k + 1, sizeof *turned);
    if (!turned)
        return iso_nomem(e, c * k * sizeof *turned);
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, c, k, s->k, 1.0, W, s->k, s->turn, k, 0.0, turned, k);
    iso_basis_expand(&s->basis, c, turned, out);
    return ISO_OK;
}

iso_err iso_stack_factors(const iso_deltas *d, size_t *R, size_t **first, double **Bt, double **A,
                          iso_arena *scratch, iso_error *e)
{
    *R = 0;
    *first = iso_arena_alloc(scratch, d->T + 1, sizeof **first);
    if (!*first)
        return iso_nomem(e, d->T * sizeof **first);
    for (size_t t = 0; t < d->T; t++) {
        (*first)[t] = *R;
        *R += d->factors[t].rank;
    }
    (*first)[d->T] = *R;
    *Bt = iso_arena_alloc(scratch, *R * d->m + 1, sizeof **Bt);
    *A = iso_arena_alloc(scratch, *R * d->n + 1, sizeof **A);
    if (!*Bt || !*A)
        return iso_nomem(e, *R * (d->m + d->n) * sizeof **Bt);
    for (size_t t = 0; t < d->T; t++) {
        const iso_factor *f = &d->factors[t];
        memcpy(*Bt + (*first)[t] * d->m, f->Bt, f->rank * d->m * sizeof **Bt);
        memcpy(*A + (*first)[t] * d->n, f->A, f->rank * d->n * sizeof **A);
    }
    return ISO_OK;
}
