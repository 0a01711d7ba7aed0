/* Products of row-major double matrices; the one place of merge/ that sets BLAS threads. */
#include "merge/linalg/linalg.h"

#include <cblas.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>

void iso_blas_serial(void)
{
    static atomic_bool is_done;
    if (!atomic_exchange(&is_done, true))
        openblas_set_num_threads(1);
}

static CBLAS_TRANSPOSE cblas_op(iso_op op)
{
    return op == ISO_TRANSPOSED ? CblasTrans : CblasNoTrans;
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
    cblas_dgemm(CblasRowMajor, cblas_op(a_op), cblas_op(b_op), (blasint)m, (blasint)n, (blasint)k,
                alpha, A, (blasint)lda, B, (blasint)ldb, beta, C, (blasint)ldc);
}

void iso_gram(iso_op op, size_t m, size_t n, const double *X, double *G)
{
    size_t side = op == ISO_TRANSPOSED ? n : m, inner = op == ISO_TRANSPOSED ? m : n;
    if (side == 0)
        return;
    cblas_dsyrk(CblasRowMajor, CblasUpper, cblas_op(op), (blasint)side, (blasint)inner, 1.0, X,
                (blasint)n, 0.0, G, (blasint)side);
    for (size_t i = 1; i < side; i++)
        for (size_t j = 0; j < i; j++)
            G[i * side + j] = G[j * side + i];
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
