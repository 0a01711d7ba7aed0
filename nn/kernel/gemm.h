/* Matrix products: the one seam to OpenBLAS, and our own kernel where the processor has AVX-512.
 *
 * specs/performance.md 3.2, 3.5. Every product here runs on the calling thread; parallelism is over
 * whole products or fixed blocks of rows (core/parallel), so the same bits come out for any number
 * of threads. Row-major throughout, leading dimensions in elements. */
#ifndef ISO_NN_KERNEL_GEMM_H
#define ISO_NN_KERNEL_GEMM_H

#include <stdbool.h>
#include <stddef.h>

/* C (m, n) = alpha * op(A) op(B) + beta * C. op(X) is X, or its transpose when t? is set.
 * C may not overlap A or B. beta = 0 never reads C. */
void iso_gemm(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *A,
              size_t lda, const float *B, size_t ldb, float beta, float *C, size_t ldc);
void iso_gemm_f64(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, const double *A,
                  size_t lda, const double *B, size_t ldb, double beta, double *C, size_t ldc);

/* The same over fixed blocks of rows of C, on all threads. */
void iso_gemm_rows(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *A,
                   size_t lda, const float *B, size_t ldb, float beta, float *C, size_t ldc);

/* A weight W (out, in) made ready for y = x W' + b and dx = dy W. Nothing is owned. */
typedef struct {
    size_t out, in;
    const float *W;  /* (out, in), dense */
    float *forward;  /* panels over out; NULL: W is used as it lies */
    float *backward; /* panels over in; likewise */
} iso_packed;

/* Floats that the forward and the backward panels of a weight take; 0 where no packed kernel runs
 * on this processor (leave the pointers NULL then). Panels want 64-byte alignment. */
size_t iso_packed_forward_floats(size_t out, size_t in);
size_t iso_packed_backward_floats(size_t out, size_t in);
/* Fills the panels that are there from W. */
void iso_pack(const iso_packed *p);

/* True when rows from row0 on can be read from, or updated in, panels. */
bool iso_packed_is_aligned(size_t row0);
/* Rows row0 .. row0+rows-1 of `out` become those of `frozen` + scale * B' A, with B (r, rows), rows
 * ldb apart, and A (r, in): in each form that `out` has (panels; W when it is not NULL). frozen has
 * W, and forward panels where `out` has them; row0 is aligned when there are panels. */
void iso_packed_fold(const iso_packed *out, float *out_W, const iso_packed *frozen, size_t row0,
                     size_t rows, size_t r, float scale, const float *B, size_t ldb,
                     const float *A);

/* y (m, rows) = x (m, in) W[row0 .. row0+rows-1]' + b + add. b (rows) and add (m, rows) may be
 * NULL; add may be y itself. Rows of x, add and y lie ldx, ld_add, ldy apart. */
void iso_packed_forward(const iso_packed *p, size_t row0, size_t rows, const float *b, size_t m,
                        const float *x, size_t ldx, const float *add, size_t ld_add, float *y,
                        size_t ldy);
/* dx (m, in) = dy (m, rows) W[row0 .. row0+rows-1] + add; as above. */
void iso_packed_backward(const iso_packed *p, size_t row0, size_t rows, size_t m, const float *dy,
                         size_t ldy, const float *add, size_t ld_add, float *dx, size_t ldx);

/* What computes single-precision products. The fastest that runs here is taken at the first call;
 * benches and tests may ask for the other. Set before anything is packed, from one thread. */
typedef enum { ISO_GEMM_CBLAS, ISO_GEMM_AVX512 } iso_gemm_kernel;
iso_gemm_kernel iso_gemm_current(void);
bool iso_gemm_select(iso_gemm_kernel kernel); /* false: not on this processor */
const char *iso_gemm_name(iso_gemm_kernel kernel);

#endif
