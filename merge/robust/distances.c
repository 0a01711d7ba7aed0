#include "merge/robust/distances.h"

#include <float.h>
#include <math.h>
#include <string.h>

iso_err iso_distances_begin(const iso_method_args *a, size_t T, size_t tensors, void **state,
                            iso_arena *arena, iso_error *e)
{
    iso_distances *s = iso_arena_calloc(arena, 1, sizeof *s);
    size_t slots;
    if (!s || !iso_mul_size(tensors + 1, T * T, &slots))
        return iso_nomem(e, sizeof *s);
    *s = (iso_distances){.T = T, .tensors = tensors, .args = *a};
    s->slots = iso_arena_calloc(arena, slots, sizeof *s->slots);
    s->squared = iso_arena_calloc(arena, T * T, sizeof *s->squared);
    s->coefficients = iso_arena_calloc(arena, T, sizeof *s->coefficients);
    s->scratch = iso_arena_calloc(arena, 2 * T, sizeof *s->scratch);
    if (!s->slots || !s->squared || !s->coefficients || !s->scratch)
        return iso_nomem(e, slots * sizeof *s->slots);
    *state = s;
    return ISO_OK;
}

static double squared_distance(const double *x, const double *y, size_t n)
{
    double s = 0.0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++)
        s += (x[i] - y[i]) * (x[i] - y[i]);
    return s;
}

static iso_err scan_block(void *ctx, const iso_entries *x, iso_error *e)
{
    double *slot = ctx;
    (void)e;
    for (size_t i = 0; i < x->T; i++) {
        slot[i * x->T + i] += iso_dot(x->x[i], x->x[i], x->count);
        for (size_t j = 0; j < i; j++)
            slot[i * x->T + j] += squared_distance(x->x[i], x->x[j], x->count);
    }
    return ISO_OK;
}

static double inner_product(const iso_deltas *d, size_t i, size_t j, double *G)
{
    const iso_factor *x = &d->factors[i], *y = &d->factors[j];
    double *H = G + x->rank * y->rank;
    iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, x->rank, y->rank, d->m, 1.0, x->Bt, d->m, y->Bt, d->m,
                0.0, G, y->rank);
    iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, x->rank, y->rank, d->n, 1.0, x->A, d->n, y->A, d->n, 0.0,
                H, y->rank);
    return iso_dot(G, H, x->rank * y->rank);
}

static iso_err scan_factors(const iso_deltas *d, double *slot, iso_arena *scratch, iso_error *e)
{
    size_t T = d->T, most = 0;
    for (size_t t = 0; t < T; t++)
        most = d->factors[t].rank > most ? d->factors[t].rank : most;
    double *G = iso_arena_alloc(scratch, 2 * most * most + 1, sizeof *G);
    if (!G)
        return iso_nomem(e, 2 * most * most * sizeof *G);
    for (size_t i = 0; i < T; i++)
        slot[i * T + i] = fmax(0.0, inner_product(d, i, i, G));
    for (size_t i = 0; i < T; i++)
        for (size_t j = 0; j < i; j++) {
            double both = slot[i * T + i] + slot[j * T + j];
            double square = both - 2.0 * inner_product(d, i, j, G);
            /* equal updates: what is left is rounding */
            slot[i * T + j] = square > 256.0 * DBL_EPSILON * both ? square : 0.0;
        }
    return ISO_OK;
}

iso_err iso_distances_scan(void *state, const iso_method_args *a, const iso_deltas *d,
                           iso_arena *scratch, iso_error *e)
{
    const iso_distances *s = state;
    double *slot = s->slots + d->index * s->T * s->T;
    (void)a;
    return d->factors ? scan_factors(d, slot, scratch, e)
                      : iso_entries_walk(d, scan_block, slot, scratch, e);
}

void iso_distances_sum(iso_distances *s)
{
    size_t T = s->T;
    for (size_t k = 0; k < s->tensors; k++)
        for (size_t i = 0; i < T * T; i++)
            s->squared[i] += s->slots[k * T * T + i];
    for (size_t i = 0; i < T; i++)
        for (size_t j = 0; j < i; j++)
            s->squared[j * T + i] = s->squared[i * T + j];
}

double iso_distances_vote(const iso_distances *s, size_t t)
{
    return s->args.votes ? s->args.votes[t] : 1.0;
}

void iso_distances_coefficients(const iso_method_args *a, const double *weights, size_t T,
                                double *out)
{
    const iso_distances *s = a->survey;
    for (size_t t = 0; t < T; t++)
        out[t] = s->coefficients[t] * (weights ? weights[t] : 1.0);
}
