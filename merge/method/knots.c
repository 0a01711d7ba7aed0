/* KnOTS: align the updates by an SVD of all of them side by side, merge in the shared basis.
 * Stoica et al. 2025, arXiv 2410.19735, section 4 (specs/merging.md 4).
 *
 *   [D_1 .. D_T] = U S [V_1 .. V_T];  D = U * inner(S V_1 .. S V_T)
 *
 * The inner method (TIES or the mean) sees S V_t, as in the published code; S V_t is U' D_t, so the
 * SVD needs the left side only: eigenvectors of sum_t D_t D_t', of LoRA in the basis of the stacked
 * B, without an (m, n) matrix. TIES trims over all layers of a task together. Directions below 1e-7
 * of the largest singular value are left out. */
#include "merge/method/shared.h"
#include "merge/method/ties.h"

#include <math.h>
#include <string.h>

enum { INNER, DENSITY, ALPHA };
enum { INNER_TIES, INNER_AVERAGE };

/* D_t = U' x[t]: U (k, m), x[t] (k, n). */
typedef struct {
    size_t k;
    double *U;
    double **x;
} aligned;

static iso_err align_factors(const iso_deltas *d, aligned *out, iso_arena *scratch, iso_error *e)
{
    size_t R, *first;
    double *Bt, *A;
    iso_shared s;
    iso_err err = iso_stack_factors(d, &R, &first, &Bt, &A, scratch, e);
    double **weights = iso_arena_alloc(scratch, d->T + 1, sizeof(double *));
    if (!err && !weights)
        err = iso_nomem(e, d->T * sizeof(double *));
    for (size_t t = 0; !err && t < d->T; t++) {
        size_t r = d->factors[t].rank;
        weights[t] = iso_arena_alloc(scratch, r * r + 1, sizeof *weights[t]);
        if (!weights[t])
            return iso_nomem(e, r * r * sizeof *weights[t]);
        iso_gram(ISO_AS_IS, r, d->n, d->factors[t].A, weights[t]);
    }
    if (!err)
        err = iso_shared_make(R, d->m, Bt, d->T, first, weights, &s, scratch, e);
    if (err)
        return err;
    double *one = iso_arena_calloc(scratch, s.k * s.k + 1, sizeof *one);
    out->k = s.k;
    out->U = iso_arena_alloc(scratch, s.k * d->m + 1, sizeof *out->U);
    if (!one || !out->U)
        return iso_nomem(e, s.k * d->m * sizeof *out->U);
    for (size_t i = 0; i < s.k; i++)
        one[i * s.k + i] = 1.0;
    err = iso_shared_expand(&s, s.k, one, out->U, scratch, e);
    for (size_t t = 0; !err && t < d->T; t++) {
        out->x[t] = iso_arena_alloc(scratch, s.k * d->n + 1, sizeof *out->x[t]);
        if (!out->x[t])
            return iso_nomem(e, s.k * d->n * sizeof *out->x[t]);
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, s.k, d->n, d->factors[t].rank, 1.0,
                    s.coords + first[t] * s.k, s.k, d->factors[t].A, d->n, 0.0, out->x[t], d->n);
    }
    return err;
}

static iso_err align_matrices(const iso_deltas *d, aligned *out, iso_arena *scratch, iso_error *e)
{
    size_t m = d->m, n = d->n;
    double *scratch_D = iso_arena_alloc(scratch, m * n + 1, sizeof *scratch_D);
    double *G = iso_arena_calloc(scratch, m * m + 1, sizeof *G);
    double *w = iso_arena_alloc(scratch, m + 1, sizeof *w);
    if (!scratch_D || !G || !w)
        return iso_nomem(e, m * (n + m) * sizeof *G);
    for (size_t t = 0; t < d->T; t++) {
        const double *D = iso_delta_get(d, t, scratch_D);
        iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, m, m, n, 1.0, D, n, D, n, 1.0, G, m);
    }
    if (!isfinite(iso_norm(G, m * m)))
        return iso_fail(e, ISO_ERR_NONFINITE, "an input holds NaN, Inf, or too large values");
    iso_err err = iso_eigen(m, G, w, scratch, e);
    if (err)
        return err;
    out->U = G;
    while (out->k < m && w[out->k] > ISO_SHARED_TOL * ISO_SHARED_TOL * w[0])
        out->k++;
    for (size_t t = 0; t < d->T; t++) {
        out->x[t] = iso_arena_alloc(scratch, out->k * n + 1, sizeof *out->x[t]);
        if (!out->x[t])
            return iso_nomem(e, out->k * n * sizeof *out->x[t]);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, out->k, n, m, 1.0, out->U, m,
                    iso_delta_get(d, t, scratch_D), n, 0.0, out->x[t], n);
    }
    return ISO_OK;
}

static iso_err align(const iso_deltas *d, aligned *out, iso_arena *scratch, iso_error *e)
{
    *out = (aligned){.x = iso_arena_alloc(scratch, d->T + 1, sizeof(double *))};
    if (!out->x)
        return iso_nomem(e, d->T * sizeof(double *));
    return d->factors ? align_factors(d, out, scratch, e) : align_matrices(d, out, scratch, e);
}

/* ---- survey: TIES over the coordinates of all layers ---- */
static iso_err begin(const iso_method_args *a, size_t T, size_t tensors, void **state,
                     iso_arena *arena, iso_error *e)
{
    (void)tensors;
    return iso_ties_begin(a->value[DENSITY], a, T, (iso_ties **)state, arena, e);
}

static iso_err scan(void *state, const iso_method_args *a, const iso_deltas *d, iso_arena *scratch,
                    iso_error *e)
{
    aligned x;
    if ((int)a->value[INNER] != INNER_TIES)
        return ISO_OK;
    iso_err err = align(d, &x, scratch, e);
    if (!err)
        iso_ties_scan(state, x.x, x.k * d->n);
    return err;
}

static iso_err end_pass(void *state, bool *is_done, iso_error *e)
{
    (void)e;
    iso_ties_end_pass(state, is_done);
    return ISO_OK;
}

static void average(const iso_deltas *d, const iso_method_args *a, const aligned *x, double *out)
{
    double over = 0.0;
    for (size_t t = 0; t < d->T; t++)
        over += a->votes ? a->votes[t] : 1.0;
    for (size_t i = 0; i < x->k * d->n; i++) {
        double sum = 0.0;
        for (size_t t = 0; t < d->T; t++)
            sum += x->x[t][i];
        out[i] = a->value[ALPHA] * sum / over;
    }
}

static iso_err core(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    aligned x;
    iso_err err = align(d, &x, scratch, e);
    if (err)
        return err;
    double *right = iso_arena_alloc(scratch, x.k * d->n + 1, sizeof *right);
    if (!right)
        return iso_nomem(e, x.k * d->n * sizeof *right);
    if ((int)a->value[INNER] == INNER_TIES)
        iso_ties_block(a->survey, x.x, x.k * d->n, a->value[ALPHA], right);
    else
        average(d, a, &x, right);
    strcpy(r->route, d->factors ? "factors" : "gram");
    r->rank = r->kept = x.k;
    *out = (iso_product){.c = x.k, .left = x.U, .right = right};
    return ISO_OK;
}

static const iso_survey survey = {begin, scan, end_pass};
static const char *const inner_words[] = {[INNER_TIES] = "ties", [INNER_AVERAGE] = "average", NULL};

static const iso_method_param params[] = {
    [INNER] = {"inner", "what merges the coordinates", 0, 0, 1, true, inner_words},
    [DENSITY] = {"density", "of TIES: share of a task's coordinates that is kept", 0.2, 0, 1, false,
                 NULL},
    [ALPHA] = {"alpha", "scale of the merged update", 1.0, -100, 100, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_knots = {
    .name = "knots",
    .help = "merges in the basis of all updates side by side, by TIES or the mean",
    .source = "Stoica et al. 2025, arXiv 2410.19735, KnOTS",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .wants_factors = true,
    .survey = &survey,
    .core = core,
};
