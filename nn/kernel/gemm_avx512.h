/* Our own single-precision product for AVX-512 (specs/performance.md 3.2). Private to nn/kernel. */
#ifndef ISO_NN_KERNEL_GEMM_AVX512_H
#define ISO_NN_KERNEL_GEMM_AVX512_H

#include <stdbool.h>
#include <stddef.h>

enum { ISO_PANEL = 48 }; /* columns of a panel: three vectors */

bool iso_avx512_runs(void);

/* C (m, n) = alpha * A B + bias + add, element (i, kk) of A at A[i * rs + kk * cs].
 * B is in panels when ldb is 0: column block j at B + j * panel_stride, its row kk 48 floats long;
 * else row-major (k, n). bias (n) and add (m, n) may be NULL, add may be C. */
typedef struct {
    size_t m, n, k;
    float alpha;
    const float *A;
    size_t rs, cs;
    const float *B;
    size_t ldb, panel_stride;
    const float *bias, *add;
    size_t ld_add;
    float *C;
    size_t ldc;
} iso_product;
void iso_avx512_product(const iso_product *p);

/* Rows of B' : panel (k, 48) of rows j .. j+47 of B (n, k), zeros beyond n. */
void iso_avx512_pack_transposed(size_t n, size_t k, const float *B, size_t ldb, size_t j,
                                float *panel);

#endif
