/* Whitening: the polar factor of a few rows over their numerical rank (specs/merging.md 1, 3.2). */
#include "merge/linalg/linalg.h"

#include <math.h>
#include <string.h>

/* out (n, n) = E' diag(f) E, eigenvectors in the rows of E; f >= 0 or not. */
static void rebuild(size_t n, const double *E, const double *f, double *scaled, double *out)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < n; j++)
            scaled[i * n + j] = f[i] * E[i * n + j];
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, n, n, n, 1.0, E, n, scaled, n, 0.0, out, n);
}

void iso_inverse_root_minus_identity(size_t n, const double *E, const double *w, double *N,
                                     double *scratch_nn)
{
    /* w^-1/2 - 1 is applied row by row, so that no copy of the diagonal is needed */
    for (size_t i = 0; i < n; i++) {
        double f = 1.0 / sqrt(w[i]) - 1.0;
        for (size_t j = 0; j < n; j++)
            scratch_nn[i * n + j] = f * E[i * n + j];
    }
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, n, n, n, 1.0, E, n, scratch_nn, n, 0.0, N, n);
}

/* Sum over the kept triples of u_i v_i'. */
static iso_err by_svd(size_t r, size_t n, double *X, double rank_tol, double *smallest,
                      size_t *rank, iso_arena *scratch, iso_error *e)
{
    size_t q = r < n ? r : n, kept = 0;
    double *Ut = iso_arena_alloc(scratch, q * r, sizeof *Ut),
           *Vt = iso_arena_alloc(scratch, q * n, sizeof *Vt);
    double *S = iso_arena_alloc(scratch, q, sizeof *S);
    if (!Ut || !Vt || !S)
        return iso_nomem(e, r * n * sizeof *Ut);
    iso_err err = iso_svd(r, n, X, Ut, S, Vt, scratch, e);
    if (err)
        return err;
    while (kept < q && S[kept] > S[0] * rank_tol)
        kept++;
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, r, n, kept, 1.0, Ut, r, Vt, n, 0.0, X, n);
    *smallest = kept ? S[kept - 1] : 0.0;
    *rank = kept;
    return ISO_OK;
}

iso_err iso_polar(size_t r, size_t n, double *X, double rank_tol, double *smallest, size_t *rank,
                  iso_arena *scratch, iso_error *e)
{
    *smallest = 0.0;
    *rank = 0;
    if (r == 0 || n == 0)
        return ISO_OK;
    if (r <= n) {
        double *G = iso_arena_alloc(scratch, 3 * r * r, sizeof *G),
               *w = iso_arena_alloc(scratch, 2 * r, sizeof *w);
        double *copy = iso_arena_alloc(scratch, r * n, sizeof *copy);
        if (!G || !w || !copy)
            return iso_nomem(e, (3 * r * r + r * n) * sizeof *G);
        iso_gram(ISO_AS_IS, r, n, X, G);
        iso_err err = iso_eigen(r, G, w, scratch, e);
        if (err)
            return err;
        if (w[r - 1] > ISO_GRAM_MIN_RATIO * w[0]) {
            double *f = w + r, *root = G + 2 * r * r;
            for (size_t i = 0; i < r; i++)
                f[i] = 1.0 / sqrt(w[i]);
            rebuild(r, G, f, G + r * r, root);
            memcpy(copy, X, r * n * sizeof *copy);
            iso_la_gemm(ISO_AS_IS, ISO_AS_IS, r, n, r, 1.0, root, r, copy, n, 0.0, X, n);
            *smallest = sqrt(w[r - 1]);
            *rank = r;
            return ISO_OK;
        }
    }
    return by_svd(r, n, X, rank_tol, smallest, rank, scratch, e);
}
