/* Orthonormal bases of stacked LoRA factors (specs/merging.md 5, specs/performance.md 5.3.4).
 *
 * Cholesky of the Gram matrix when the vectors, scaled to unit length, are well conditioned: half
 * the work of Householder, and never forms Q. Householder QR otherwise: its Q is orthonormal
 * whatever the rank, and the rank is decided later, on the small core. No fewer vectors than
 * dimensions: the space itself is the basis. */
#include "merge/linalg/linalg.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

/* Orthogonality is lost in proportion to eps / this: about 1e-12. */
#define CHOLESKY_MIN_RCOND 1e-4

/* G = L L' in place (lower triangle, row-major, upper zeroed); *is_good false when the Gram matrix
 * of the normalised vectors is too ill-conditioned. */
static iso_err try_cholesky(size_t R, double *G, bool *is_good, iso_arena *scratch, iso_error *e)
{
    lapack_int n = (lapack_int)R;
    double *work = iso_arena_alloc(scratch, 5 * R, sizeof *work), *unit = work + 3 * R;
    double *scale = unit + R;
    lapack_int *ints = iso_arena_alloc(scratch, R, sizeof *ints);
    double *scaled = iso_arena_alloc(scratch, R * R, sizeof *scaled);
    if (!work || !ints || !scaled)
        return iso_nomem(e, R * R * sizeof *scaled);
    *is_good = false;
    for (size_t i = 0; i < R; i++) {
        if (!(G[i * R + i] > 0.0))
            return ISO_OK;
        scale[i] = 1.0 / sqrt(G[i * R + i]);
    }
    double norm_1 = 0.0;
    for (size_t i = 0; i < R; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < R; j++) {
            scaled[i * R + j] = G[i * R + j] * scale[i] * scale[j];
            sum += fabs(scaled[i * R + j]);
        }
        norm_1 = fmax(norm_1, sum);
    }
    /* column-major 'U' is our lower triangle: scaled = L L' */
    if (LAPACKE_dpotrf_work(LAPACK_COL_MAJOR, 'U', n, scaled, n) != 0)
        return ISO_OK;
    double rcond = 0.0;
    if (LAPACKE_dpocon_work(LAPACK_COL_MAJOR, 'U', n, scaled, n, norm_1, &rcond, work, ints) != 0)
        return iso_fail(e, ISO_ERR_INTERNAL, "dpocon of order %zu failed", R);
    if (rcond < CHOLESKY_MIN_RCOND)
        return ISO_OK;
    for (size_t i = 0; i < R; i++) {
        for (size_t j = 0; j < R; j++)
            G[i * R + j] = j <= i ? scaled[i * R + j] / scale[i] : 0.0;
    }
    *is_good = true;
    return ISO_OK;
}

/* Column-major, X (R, m) is m x R with the vectors as columns: QR as LAPACK wants it. */
static iso_err by_householder(iso_basis *b, iso_arena *scratch, iso_error *e)
{
    size_t R = b->R, m = b->m;
    lapack_int rows = (lapack_int)m, cols = (lapack_int)R, info;
    double size = 0, size_2 = 0;
    double *tau = iso_arena_alloc(scratch, R, sizeof *tau);
    b->Q = iso_arena_alloc(scratch, R * m, sizeof *b->Q);
    b->coords = iso_arena_calloc(scratch, R * R, sizeof *b->coords);
    if (!tau || !b->Q || !b->coords)
        return iso_nomem(e, R * m * sizeof *b->Q);
    memcpy(b->Q, b->X, R * m * sizeof *b->Q);
    info = LAPACKE_dgeqrf_work(LAPACK_COL_MAJOR, rows, cols, b->Q, rows, tau, &size, -1);
    if (info == 0)
        info =
            LAPACKE_dorgqr_work(LAPACK_COL_MAJOR, rows, cols, cols, b->Q, rows, tau, &size_2, -1);
    size_t work_count = (size_t)(size > size_2 ? size : size_2);
    double *work = iso_arena_alloc(scratch, work_count, sizeof *work);
    if (!work)
        return iso_nomem(e, work_count * sizeof *work);
    if (info == 0)
        info = LAPACKE_dgeqrf_work(LAPACK_COL_MAJOR, rows, cols, b->Q, rows, tau, work,
                                   (lapack_int)work_count);
    for (size_t j = 0; info == 0 && j < R; j++) /* column j of R is the coordinates of vector j */
        memcpy(b->coords + j * R, b->Q + j * m, (j + 1) * sizeof *b->coords);
    if (info == 0)
        info = LAPACKE_dorgqr_work(LAPACK_COL_MAJOR, rows, cols, cols, b->Q, rows, tau, work,
                                   (lapack_int)work_count);
    if (info != 0)
        return iso_fail(e, ISO_ERR_INTERNAL, "QR of %zu vectors of length %zu failed (%d)", R, m,
                        (int)info);
    return ISO_OK;
}

iso_err iso_basis_make(size_t R, size_t m, const double *X, iso_basis *out, iso_arena *scratch,
                       iso_error *e)
{
    *out = (iso_basis){.R = R, .m = m, .k = R < m ? R : m, .X = X};
    if (R >= m) {
        out->kind = ISO_BASIS_IDENTITY;
        out->coords = iso_arena_alloc(scratch, R * m + 1, sizeof *out->coords);
        if (!out->coords)
            return iso_nomem(e, R * m * sizeof *out->coords);
        memcpy(out->coords, X, R * m * sizeof *X);
        return ISO_OK;
    }
    double *G = iso_arena_alloc(scratch, R * R + 1, sizeof *G);
    if (!G)
        return iso_nomem(e, R * R * sizeof *G);
    iso_gram(ISO_AS_IS, R, m, X, G);
    bool is_good = R == 0;
    iso_err err = R ? try_cholesky(R, G, &is_good, scratch, e) : ISO_OK;
    if (err)
        return err;
    out->kind = is_good ? ISO_BASIS_CHOLESKY : ISO_BASIS_HOUSEHOLDER;
    out->coords = G;
    return is_good ? ISO_OK : by_householder(out, scratch, e);
}

void iso_basis_expand(const iso_basis *b, size_t c, double *W, double *out)
{
    if (c == 0)
        return;
    switch (b->kind) {
    case ISO_BASIS_IDENTITY:
        memcpy(out, W, c * b->m * sizeof *out);
        return;
    case ISO_BASIS_HOUSEHOLDER:
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, c, b->m, b->k, 1.0, W, b->k, b->Q, b->m, 0.0, out, b->m);
        return;
    case ISO_BASIS_CHOLESKY: /* Q = L^-1 X, so W Q = (W L^-1) X */
        cblas_dtrsm(CblasRowMajor, CblasRight, CblasLower, CblasNoTrans, CblasNonUnit, (blasint)c,
                    (blasint)b->k, 1.0, b->coords, (blasint)b->k, W, (blasint)b->k);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, c, b->m, b->k, 1.0, W, b->k, b->X, b->m, 0.0, out, b->m);
        return;
    }
}
