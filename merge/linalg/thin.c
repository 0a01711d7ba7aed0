/* Thin SVD by the cheaper route that is exact enough: Gram matrix of the short side in double with
 * dsyevd, or the SVD itself; and the rank decision (specs/merging.md 1 and 6). */
#include "merge/linalg/linalg.h"

#include <math.h>
#include <string.h>

static void decide_rank(iso_thin *t, double rank_tol, double noise)
{
    t->threshold = t->q ? fmax(t->S[0] * rank_tol, noise) : 0.0;
    t->rank = 0;
    while (t->rank < t->q && t->S[t->rank] > t->threshold)
        t->rank++;
}

/* A threshold this far above the rounding of a Gram matrix (about 1e-15 of its largest eigenvalue)
 * decides the rank by it; inputs of float32 are rounded more than the Gram matrix loses. */
#define GRAM_CLEAR_TOL 1e-6

/* Can what the caller needs be read from these eigenvalues w (descending)? The leading ones must
 * be far above the rounding of the Gram matrix, and so must the rank's threshold unless the matrix
 * has full rank beyond doubt. */
static bool gram_serves(const iso_thin *t, const double *w, double rank_tol, size_t leading)
{
    if (!(w[0] > 0.0) || leading == 0)
        return false;
    double floor = ISO_GRAM_MIN_RATIO * w[0];
    bool is_rank_clear = rank_tol >= GRAM_CLEAR_TOL;
    size_t last = leading < t->q ? leading : t->q;
    return is_rank_clear || w[last - 1] > floor;
}

/* The root serves where every direction is above the threshold and far above what a Gram matrix
 * loses. */
static iso_err root_of(const iso_tridiagonal *tri, double rank_tol, double noise, iso_root *root,
                       iso_thin *t, iso_arena *scratch, iso_error *e)
{
    double smallest, largest;
    iso_tridiagonal_extremes(tri, &smallest, &largest);
    t->threshold = fmax(sqrt(largest) * rank_tol, noise);
    /* both ends are known to a percent */
    if (!(smallest > 1.1 * t->threshold * t->threshold) ||
        !(smallest > 1.1 * ISO_GRAM_MIN_RATIO * largest))
        return ISO_OK;
    root->P = iso_arena_alloc(scratch, tri->n * tri->n, sizeof *root->P);
    if (!root->P)
        return iso_nomem(e, tri->n * tri->n * sizeof *root->P);
    t->route = ISO_ROUTE_GRAM;
    t->rank = tri->n;
    return iso_tridiagonal_inverse_root(tri, smallest, largest, root->P, &root->nuclear, scratch,
                                        e);
}

/* root NULL: eigenvectors are wanted. */
static iso_err by_gram(const double *M, double rank_tol, double noise, size_t leading,
                       bool is_forced, iso_root *root, bool *is_taken, iso_thin *t,
                       iso_arena *scratch, iso_error *e)
{
    enum { ROOT_PAYS = 64 };
    bool is_wide = t->m <= t->n;
    double *near = iso_arena_alloc(scratch, t->q * t->q, sizeof *near);
    if (!near)
        return iso_nomem(e, t->q * t->q * sizeof *near);
    iso_gram(is_wide ? ISO_AS_IS : ISO_TRANSPOSED, t->m, t->n, M, near);
    iso_err err;
    if (root && t->q >= ROOT_PAYS) {
        iso_tridiagonal tri;
        double *E = NULL;
        err = iso_tridiagonalise(t->q, near, &tri, scratch, e);
        if (!err)
            err = root_of(&tri, rank_tol, noise, root, t, scratch, e);
        if (err || root->P) {
            *is_taken = root->P != NULL;
            return err;
        }
        E = iso_arena_alloc(scratch, t->q * t->q, sizeof *E);
        if (!E)
            return iso_nomem(e, t->q * t->q * sizeof *E);
        err = iso_tridiagonal_eigen(&tri, E, t->S, scratch, e);
        near = E;
    } else {
        err = iso_eigen(t->q, near, t->S, scratch, e);
    }
    if (err)
        return err;
    *is_taken = is_forced || gram_serves(t, t->S, rank_tol, leading);
    if (!*is_taken)
        return ISO_OK;
    for (size_t i = 0; i < t->q; i++)
        t->S[i] = t->S[i] > 0.0 ? sqrt(t->S[i]) : 0.0;
    *(is_wide ? &t->Ut : &t->Vt) = near;
    t->route = ISO_ROUTE_GRAM;
    decide_rank(t, rank_tol, noise);
    return ISO_OK;
}

static iso_err thin(size_t m, size_t n, const double *M, double rank_tol, double noise,
                    size_t leading, iso_route_wish wish, iso_root *root, iso_thin *out,
                    iso_arena *scratch, iso_error *e)
{
    *out = (iso_thin){.m = m, .n = n, .q = m < n ? m : n};
    out->S = iso_arena_calloc(scratch, out->q + 1, sizeof *out->S);
    if (!out->S)
        return iso_nomem(e, out->q * sizeof *out->S);
    double norm = iso_norm(M, m * n);
    if (!isfinite(norm))
        return iso_fail(e, ISO_ERR_NONFINITE,
                        "%zux%zu matrix holds NaN, Inf, or values too large to square", m, n);
    if (norm <= noise || norm == 0.0) /* nothing but rounding: rank 0 */
        return ISO_OK;
    if (wish != ISO_WISH_SVD) {
        bool is_taken = false;
        iso_err err = by_gram(M, rank_tol, noise, leading, wish == ISO_WISH_GRAM, root, &is_taken,
                              out, scratch, e);
        if (err || is_taken)
            return err;
    }
    double *copy = iso_arena_alloc(scratch, m * n, sizeof *copy);
    out->Ut = iso_arena_alloc(scratch, out->q * m, sizeof *out->Ut);
    out->Vt = iso_arena_alloc(scratch, out->q * n, sizeof *out->Vt);
    if (!copy || !out->Ut || !out->Vt)
        return iso_nomem(e, m * n * sizeof *copy);
    memcpy(copy, M, m * n * sizeof *copy);
    out->route = ISO_ROUTE_SVD;
    iso_err err = iso_svd(m, n, copy, out->Ut, out->S, out->Vt, scratch, e);
    if (!err)
        decide_rank(out, rank_tol, noise);
    return err;
}

iso_err iso_thin_svd(size_t m, size_t n, const double *M, double rank_tol, double noise,
                     size_t leading, iso_route_wish wish, iso_thin *out, iso_arena *scratch,
                     iso_error *e)
{
    return thin(m, n, M, rank_tol, noise, leading, wish, NULL, out, scratch, e);
}

iso_err iso_thin_root(size_t m, size_t n, const double *M, double rank_tol, double noise,
                      iso_route_wish wish, iso_root *root, iso_thin *out, iso_arena *scratch,
                      iso_error *e)
{
    *root = (iso_root){0};
    return thin(m, n, M, rank_tol, noise, m < n ? m : n, wish, root, out, scratch, e);
}

iso_err iso_thin_far(iso_thin *t, const double *M, size_t count, iso_arena *scratch, iso_error *e)
{
    if (t->route != ISO_ROUTE_GRAM)
        return ISO_OK;
    bool is_wide = t->m <= t->n;
    size_t near_side = is_wide ? t->m : t->n, far_side = is_wide ? t->n : t->m;
    double *far = iso_arena_alloc(scratch, count * far_side + 1, sizeof *far);
    if (!far)
        return iso_nomem(e, count * far_side * sizeof *far);
    iso_la_gemm(ISO_AS_IS, is_wide ? ISO_AS_IS : ISO_TRANSPOSED, count, far_side, near_side, 1.0,
                is_wide ? t->Ut : t->Vt, near_side, M, t->n, 0.0, far, far_side);
    for (size_t i = 0; i < count; i++) {
        double *row = far + i * far_side, s = iso_norm(row, far_side);
        t->S[i] = s;
        for (size_t j = 0; j < far_side; j++)
            row[j] = s > 0.0 ? row[j] / s : 0.0;
    }
    *(is_wide ? &t->Vt : &t->Ut) = far;
    return ISO_OK;
}
