/* Products of row-major double matrices; the one place of merge/ that sets BLAS threads. */
#include "merge/linalg/gemm_avx512.h"
#include "merge/linalg/linalg.h"

#include <cblas.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

/* OpenBLAS on one thread. Its OpenMP build asks omp_get_max_threads() at every call made outside a
 * parallel region and then threads as it likes, so that setting follows the calling thread. */
void iso_blas_serial(void)
{
    static atomic_bool is_done;
    if (!atomic_exchange(&is_done, true))
        openblas_set_num_threads(1);
#ifdef _OPENMP
    if (!omp_in_parallel() && omp_get_max_threads() != 1)
        omp_set_num_threads(1);
#endif
}

static CBLAS_TRANSPOSE cblas_op(iso_op op)
{
    return op == ISO_TRANSPOSED ? CblasTrans : CblasNoTrans;
}

/* Packing costs more than it saves below this many rows or columns. */
enum { OWN_MIN_SIDE = 16, OWN_MIN_WORK = 32 * 32 * 32 };

/* Our kernel, where it runs and pays. It depends on sizes and processor alone, so bits do too. */
static bool by_own_kernel(iso_op a_op, iso_op b_op, size_t m, size_t n, size_t k, double alpha,
                          const double *A, size_t lda, const double *B, size_t ldb, double beta,
                          double *C, size_t ldc, bool is_upper)
{
    if (m < OWN_MIN_SIDE || n < OWN_MIN_SIDE || k < OWN_MIN_SIDE || m * n * k < OWN_MIN_WORK ||
        !iso_f64_avx512_runs())
        return false;
    bool ta = a_op == ISO_TRANSPOSED, tb = b_op == ISO_TRANSPOSED;
    iso_f64_product p = {.m = m,
                         .n = n,
                         .k = k,
                         .alpha = alpha,
                         .beta = beta,
                         .A = A,
                         .a_row = ta ? 1 : lda,
                         .a_col = ta ? lda : 1,
                         .B = B,
                         .b_row = tb ? 1 : ldb,
                         .b_col = tb ? ldb : 1,
                         .C = C,
                         .ldc = ldc,
                         .is_upper = is_upper};
    return iso_f64_avx512_product(&p);
}

void iso_la_gemm(iso_op a_op, iso_op b_op, size_t m, size_t n, size_t k, double alpha,
                 const double *A, size_t lda, const double *B, size_t ldb, double beta, double *C,
                 size_t ldc)
{
    if (m == 0 || n == 0)
        return;
    if (k == 0) { /* BLAS would accept it, but insists on leading dimensions of at least one */
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++)
                C[i * ldc + j] = beta == 0.0 ? 0.0 : beta * C[i * ldc + j];
        return;
    }
    if (by_own_kernel(a_op, b_op, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc, false))
        return;
    iso_blas_serial();
    cblas_dgemm(CblasRowMajor, cblas_op(a_op), cblas_op(b_op), (blasint)m, (blasint)n, (blasint)k,
                alpha, A, (blasint)lda, B, (blasint)ldb, beta, C, (blasint)ldc);
}

void iso_la_gemm_upper(iso_op a_op, iso_op b_op, size_t n, size_t k, double alpha, const double *A,
                       size_t lda, const double *B, size_t ldb, double beta, double *C, size_t ldc)
{
    if (k == 0 || !by_own_kernel(a_op, b_op, n, n, k, alpha, A, lda, B, ldb, beta, C, ldc, true))
        iso_la_gemm(a_op, b_op, n, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
}

void iso_mirror(size_t n, double *G, size_t ld)
{
    enum { TILE = 16 };
    for (size_t i0 = 0; i0 < n; i0 += TILE)
        for (size_t j0 = 0; j0 <= i0; j0 += TILE)
            for (size_t i = i0; i < n && i < i0 + TILE; i++)
                for (size_t j = j0; j < i && j < j0 + TILE; j++)
                    G[i * ld + j] = G[j * ld + i];
}

void iso_gram(iso_op op, size_t m, size_t n, const double *X, double *G)
{
    size_t side = op == ISO_TRANSPOSED ? n : m, inner = op == ISO_TRANSPOSED ? m : n;
    if (side == 0)
        return;
    iso_op first = op, second = op == ISO_TRANSPOSED ? ISO_AS_IS : ISO_TRANSPOSED;
    if (!by_own_kernel(first, second, side, side, inner, 1.0, X, n, X, n, 0.0, G, side, true)) {
        iso_blas_serial();
        cblas_dsyrk(CblasRowMajor, CblasUpper, cblas_op(op), (blasint)side, (blasint)inner, 1.0, X,
                    (blasint)n, 0.0, G, (blasint)side);
    }
    iso_mirror(side, G, side);
}

void iso_transpose(size_t m, size_t n, const double *A, double *At)
{
    enum { TILE = 16 };
    for (size_t i0 = 0; i0 < m; i0 += TILE) {
        for (size_t j0 = 0; j0 < n; j0 += TILE) {
            size_t i1 = i0 + TILE < m ? i0 + TILE : m, j1 = j0 + TILE < n ? j0 + TILE : n;
            for (size_t i = i0; i < i1; i++)
                for (size_t j = j0; j < j1; j++)
                    At[j * m + i] = A[i * n + j];
        }
    }
}

double iso_dot(const double *x, const double *y, size_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++)
        s += x[i] * y[i];
    return s;
}

double iso_norm(const double *x, size_t n)
{
    return sqrt(iso_dot(x, x, n));
}
