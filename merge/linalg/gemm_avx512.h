/* Our own double-precision product for AVX-512; private to merge/linalg (blas.c chooses). */
#ifndef ISO_MERGE_LINALG_GEMM_AVX512_H
#define ISO_MERGE_LINALG_GEMM_AVX512_H

#include <stdbool.h>
#include <stddef.h>

bool iso_f64_avx512_runs(void);

/* C (m, n) = alpha * A B + beta * C; element (i, k) of A at A[i * a_row + k * a_col], (k, j) of B
 * at B[k * b_row + j * b_col]. is_upper: elements below the diagonal of C need not be computed and
 * are left undefined. Large products are spread over the threads when the caller is not already one
 * of several; the bits do not depend on it. False, with C untouched: no memory for the packed
 * copies. */
typedef struct {
    size_t m, n, k;
    double alpha, beta;
    const double *A;
    size_t a_row, a_col;
    const double *B;
    size_t b_row, b_col;
    double *C;
    size_t ldc;
    bool is_upper;
} iso_f64_product;
bool iso_f64_avx512_product(const iso_f64_product *p);

#endif
