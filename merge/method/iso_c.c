/* Iso-C: isotropic merging in the common subspace.
 * Marczak et al. 2025, section 4.1 (specs/merging.md 3.1, 3.3, 3.4).
 *   M = sum_t D_t = U S V',  sigma = mean(S),  D = alpha * U diag((1 - beta) S + beta sigma) V'
 * Needs only the sum of the task vectors, so its state is one running sum. Directions without data
 * get nothing; the convention says over how many directions sigma is the mean. */
#include "merge/method/method.h"

#include <math.h>
#include <string.h>

enum { ALPHA, BETA };

/* The new spectrum into f (q), given S: flattened over the numerical rank, and what beta < 1 leaves
 * of the rest. */
static void flatten(const iso_thin *t, const iso_deltas *d, const iso_method_args *a, double *f,
                    iso_decisions *r)
{
    double sum = 0.0, beta = a->value[BETA], alpha = a->value[ALPHA];
    for (size_t i = 0; i < t->rank; i++)
        sum += t->S[i];
    double over = a->convention == ISO_CONVENTION_DENSE ? (double)d->full_q : (double)t->rank;
    r->sigma = t->rank ? sum / over : 0.0;
    for (size_t i = 0; i < t->q; i++) {
        double flat = i < t->rank ? r->sigma : 0.0;
        if (a->gain_cap > 0.0 && flat > a->gain_cap * t->S[i]) {
            flat = a->gain_cap * t->S[i];
            r->capped++;
        }
        f[i] = alpha * ((1.0 - beta) * t->S[i] + beta * flat);
    }
    r->rank = r->kept = t->rank;
}

/* root NULL: singular vectors are wanted. */
static iso_err decompose(const iso_deltas *d, const iso_method_args *a, double **M_out,
                         iso_root *root, iso_thin *t, iso_decisions *r, iso_arena *scratch,
                         iso_error *e)
{
    double noise = 0.0, *M = iso_arena_alloc(scratch, d->m * d->n + 1, sizeof *M);
    if (!M)
        return iso_nomem(e, d->m * d->n * sizeof *M);
    iso_err err = iso_delta_sum(d, M, NULL, &noise, scratch, e);
    if (err)
        return err;
    r->sum_norm = iso_norm(M, d->m * d->n);
    r->rank_tol = d->rank_tol;
    r->smallest = 1.0;
    *M_out = M;
    size_t q = d->m < d->n ? d->m : d->n;
    err = root ? iso_thin_root(d->m, d->n, M, d->rank_tol, noise, a->route, root, t, scratch, e)
               : iso_thin_svd(d->m, d->n, M, d->rank_tol, noise, q, a->route, t, scratch, e);
    strcpy(r->route, t->route == ISO_ROUTE_GRAM  ? "gram"
                     : t->route == ISO_ROUTE_SVD ? "svd"
                                                 : "zero");
    return err;
}

static iso_err core(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    double *M = NULL;
    iso_thin t = {0};
    iso_err err = decompose(d, a, &M, NULL, &t, r, scratch, e);
    if (!err)
        err = iso_thin_far(&t, M, t.rank, scratch, e);
    double *f = iso_arena_alloc(scratch, t.q + 1, sizeof *f);
    if (!err && !f)
        err = iso_nomem(e, t.q * sizeof *f);
    if (err)
        return err;
    flatten(&t, d, a, f, r);
    *out = (iso_product){.c = t.rank, .left = t.Ut, .right = t.Vt, .is_ordered = true};
    for (size_t i = 0; i < t.rank; i++) { /* both sides carry the root of the singular value */
        double root = sqrt(fabs(f[i])), sign = f[i] < 0.0 ? -1.0 : 1.0;
        for (size_t j = 0; j < d->m; j++)
            out->left[i * d->m + j] *= root;
        for (size_t j = 0; j < d->n; j++)
            out->right[i * d->n + j] *= sign * root;
    }
    return ISO_OK;
}

/* Gram route: D = (U diag(f / S) U') M, or M (V diag(f / S) V') when tall: the far side's vectors
 * are never formed. */
static iso_err dense_by_gram(const iso_deltas *d, const double *M, const iso_thin *t,
                             const double *f, double beta_rest, double *out, iso_arena *scratch,
                             iso_error *e)
{
    size_t q = t->q;
    const double *E = t->Ut ? t->Ut : t->Vt;
    double *scaled = iso_arena_alloc(scratch, q * q, sizeof *scaled),
           *P = iso_arena_alloc(scratch, q * q, sizeof *P);
    if (!scaled || !P)
        return iso_nomem(e, 2 * q * q * sizeof *P);
    /* P = g I + E' diag(f / S - g) E with g = alpha (1 - beta), what directions below the rank keep
     */
    for (size_t i = 0; i < t->rank; i++) {
        double factor = f[i] / t->S[i] - beta_rest;
        for (size_t j = 0; j < q; j++)
            scaled[i * q + j] = factor * E[i * q + j];
    }
    iso_la_gemm_upper(ISO_TRANSPOSED, ISO_AS_IS, q, t->rank, 1.0, scaled, q, E, q, 0.0, P, q);
    iso_mirror(q, P, q);
    for (size_t i = 0; i < q; i++)
        P[i * q + i] += beta_rest;
    if (t->Ut)
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d->m, d->n, q, 1.0, P, q, M, d->n, 0.0, out, d->n);
    else
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d->m, d->n, q, 1.0, M, d->n, P, q, 0.0, out, d->n);
    return ISO_OK;
}

/* Full rank: U V' = P M with P = (M M')^-1/2, or M P when tall; sigma from the nuclear norm. */
static void dense_by_root(const iso_deltas *d, const iso_method_args *a, const double *M,
                          iso_root *root, size_t q, double *out, iso_decisions *r)
{
    double beta = a->value[BETA], alpha = a->value[ALPHA], *P = root->P;
    r->sigma = root->nuclear / (double)(a->convention == ISO_CONVENTION_DENSE ? d->full_q : q);
    r->rank = r->kept = q;
    for (size_t i = 0; i < q * q; i++)
        P[i] *= alpha * beta * r->sigma;
    for (size_t i = 0; i < q; i++)
        P[i * q + i] += alpha * (1.0 - beta);
    if (d->m <= d->n)
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d->m, d->n, q, 1.0, P, q, M, d->n, 0.0, out, d->n);
    else
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d->m, d->n, q, 1.0, M, d->n, P, q, 0.0, out, d->n);
}

static iso_err dense(const iso_deltas *d, const iso_method_args *a, double *out, iso_decisions *r,
                     iso_arena *scratch, iso_error *e)
{
    double *M = NULL;
    iso_thin t = {0};
    iso_root root = {0};
    /* the gain cap asks for each singular value */
    iso_err err = decompose(d, a, &M, a->gain_cap > 0.0 ? NULL : &root, &t, r, scratch, e);
    if (!err && root.P) {
        dense_by_root(d, a, M, &root, t.q, out, r);
        return ISO_OK;
    }
    double *f = iso_arena_alloc(scratch, t.q + 1, sizeof *f);
    if (!err && !f)
        err = iso_nomem(e, t.q * sizeof *f);
    if (err)
        return err;
    flatten(&t, d, a, f, r);
    if (t.route == ISO_ROUTE_NONE) {
        memset(out, 0, d->m * d->n * sizeof *out);
        return ISO_OK;
    }
    if (t.route == ISO_ROUTE_GRAM)
        return dense_by_gram(d, M, &t, f, a->value[ALPHA] * (1.0 - a->value[BETA]), out, scratch,
                             e);
    for (size_t i = 0; i < t.q; i++)
        for (size_t j = 0; j < d->m; j++)
            t.Ut[i * d->m + j] *= f[i];
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, d->m, d->n, t.q, 1.0, t.Ut, d->m, t.Vt, d->n, 0.0, out,
                d->n);
    return ISO_OK;
}

static const iso_method_param params[] = {
    [ALPHA] = {"alpha", "scale of the merged update", 1.0, -100, 100, false, NULL},
    [BETA] = {"beta", "how far the spectrum is flattened: 0 is task arithmetic, 1 is Iso-C", 1.0, 0,
              1, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_iso_c = {
    .name = "iso_c",
    .help = "sum of the updates with all its singular values made equal",
    .source = "Marczak et al. 2025, arXiv 2502.04959, Iso-C",
    .needs = ISO_NEEDS_SUM,
    .params = params,
    .has_convention = true,
    .core = core,
    .dense = dense,
};
