/* C = alpha A B + beta C in double for AVX-512: an 8 x 24 register tile (24 accumulators, three
 * vectors of B, one broadcast of A a row and step) over packed panels, blocked as in Goto and van
 * de Geijn 2008. OpenBLAS chooses its kernels by processor names; where it does not know the name,
 * it stays with those of 2013, at half of what the processor can do.
 *
 * The partition is fixed by the sizes, each element of C is one chain of fused multiply-adds a
 * block of k, and threads own whole row blocks: the same bits for any number of threads. */
#include "merge/linalg/gemm_avx512.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include "core/mem.h"
#include "core/parallel.h"

#include <immintrin.h>
#include <stdlib.h>
#include <string.h>

enum {
    MR = 8,  /* rows of the tile */
    NR = 24, /* columns: three vectors */
    LANES = 8,
    KC = 384, /* a panel of B takes 72 KiB, a block of A 288: both in the second cache */
    MC = 96,
    NC = 3072,              /* columns of B packed at a time */
    PARALLEL_WORK = 1 << 26 /* multiplications worth waking threads for */
};

#define TILE static inline __attribute__((always_inline, target("avx512f")))

bool iso_f64_avx512_runs(void)
{
    return __builtin_cpu_supports("avx512f");
}

/* C (MR, NR) = alpha a' b + beta C over k steps of packed panels a (k, MR) and b (k, NR). */
TILE void tile(size_t k, const double *a, const double *b, double alpha, double beta, double *C,
               size_t ldc)
{
    __m512d acc[MR][3];
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++)
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++)
            acc[r][v] = _mm512_setzero_pd();
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) /* C is far away: it arrives while we multiply */
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++)
            _mm_prefetch((const char *)(C + (size_t)r * ldc + v * LANES), _MM_HINT_T0);
    for (size_t kk = 0; kk < k; kk++) {
        __m512d b0 = _mm512_load_pd(b), b1 = _mm512_load_pd(b + LANES),
                b2 = _mm512_load_pd(b + 2 * LANES);
#pragma GCC unroll 8
        for (int r = 0; r < MR; r++) {
            __m512d x = _mm512_set1_pd(a[r]);
            acc[r][0] = _mm512_fmadd_pd(x, b0, acc[r][0]);
            acc[r][1] = _mm512_fmadd_pd(x, b1, acc[r][1]);
            acc[r][2] = _mm512_fmadd_pd(x, b2, acc[r][2]);
        }
        a += MR;
        b += NR;
    }
    __m512d scale = _mm512_set1_pd(alpha), keep = _mm512_set1_pd(beta);
#pragma GCC unroll 8
    for (int r = 0; r < MR; r++) {
        double *row = C + (size_t)r * ldc;
#pragma GCC unroll 3
        for (int v = 0; v < 3; v++) {
            __m512d y = _mm512_mul_pd(acc[r][v], scale);
            if (beta != 0.0)
                y = _mm512_fmadd_pd(keep, _mm512_loadu_pd(row + v * LANES), y);
            _mm512_storeu_pd(row + v * LANES, y);
        }
    }
}

/* A tile that hangs over the edge goes through a whole one. */
__attribute__((target("avx512f"))) static void edge(size_t rows, size_t cols, size_t k,
                                                    const double *a, const double *b, double alpha,
                                                    double beta, double *C, size_t ldc)
{
    _Alignas(64) double whole[MR * NR];
    tile(k, a, b, alpha, 0.0, whole, NR);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            C[i * ldc + j] = whole[i * NR + j] + (beta != 0.0 ? beta * C[i * ldc + j] : 0.0);
}

/* Eight rows of eight become eight columns: pairs of rows, then the four lanes. */
TILE void transpose8(__m512d r[8])
{
    __m512d t[8];
#pragma GCC unroll 4
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm512_unpacklo_pd(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_pd(r[i], r[i + 1]);
    }
#pragma GCC unroll 2
    for (int h = 0; h < 2; h++) { /* even columns, odd columns */
        __m512d a = _mm512_shuffle_f64x2(t[h], t[2 + h], 0x88);
        __m512d b = _mm512_shuffle_f64x2(t[h], t[2 + h], 0xdd);
        __m512d c = _mm512_shuffle_f64x2(t[4 + h], t[6 + h], 0x88);
        __m512d d = _mm512_shuffle_f64x2(t[4 + h], t[6 + h], 0xdd);
        r[h] = _mm512_shuffle_f64x2(a, c, 0x88);
        r[2 + h] = _mm512_shuffle_f64x2(b, d, 0x88);
        r[4 + h] = _mm512_shuffle_f64x2(a, c, 0xdd);
        r[6 + h] = _mm512_shuffle_f64x2(b, d, 0xdd);
    }
}

/* Panels of `width` vectors side by side: out[panel][kk][width], zeros beyond `count`. Element
 * (i, kk) at X[i + kk * k_step]: rows are read from end to end. */
__attribute__((target("avx512f"))) static void pack_as_is(size_t count, size_t k, const double *X,
                                                          size_t k_step, size_t width, double *out)
{
    for (size_t kk = 0; kk < k; kk++) {
        const double *row = X + kk * k_step;
        for (size_t i = 0; i < count; i += width) {
            double *to = out + i * k + kk * width;
            for (size_t v = 0; v < width; v += LANES) {
                size_t left = count > i + v ? count - i - v : 0;
                __mmask8 mask = (__mmask8)(left < LANES ? (1U << left) - 1U : 0xffU);
                _mm512_store_pd(to + v, _mm512_maskz_loadu_pd(mask, row + i + v));
            }
        }
    }
}

/* The same with element (i, kk) at X[i * step + kk]. */
__attribute__((target("avx512f"))) static void
pack_transposed(size_t count, size_t k, const double *X, size_t step, size_t width, double *out)
{
    for (size_t i = 0; i < count; i += width, out += k * width) {
        for (size_t v = 0; v < width; v += LANES) {
            const double *from = X + (i + v) * step;
            size_t some = count > i + v ? count - i - v : 0;
            for (size_t kk = 0; kk < k; kk += LANES) {
                size_t deep = k - kk < LANES ? k - kk : LANES;
                __mmask8 mask = (__mmask8)((1U << deep) - 1U);
                __m512d r[LANES];
#pragma GCC unroll 8
                for (size_t l = 0; l < LANES; l++)
                    r[l] = l < some ? _mm512_maskz_loadu_pd(mask, from + l * step + kk)
                                    : _mm512_setzero_pd();
                transpose8(r);
                for (size_t l = 0; l < deep; l++)
                    _mm512_store_pd(out + (kk + l) * width + v, r[l]);
            }
        }
    }
}

/* One of the steps is 1. */
static void pack(size_t count, size_t k, const double *X, size_t step, size_t k_step, size_t width,
                 double *out)
{
    if (step == 1)
        pack_as_is(count, k, X, k_step, width, out);
    else
        pack_transposed(count, k, X, step, width, out);
}

/* One block of k and of columns; items are the row blocks. */
typedef struct {
    const iso_f64_product *p;
    size_t k0, k, j0, n;
    const double *B; /* packed */
    double *A;       /* MC * KC a worker */
} panel;

__attribute__((target("avx512f"))) static void row_block(void *ctx, size_t block, int worker)
{
    const panel *s = ctx;
    const iso_f64_product *p = s->p;
    size_t i0 = block * MC, m = p->m - i0 < MC ? p->m - i0 : MC;
    if (p->is_upper && s->j0 + s->n <= i0)
        return;
    double *A = s->A + (size_t)worker * MC * KC, beta = s->k0 ? 1.0 : p->beta;
    pack(m, s->k, p->A + i0 * p->a_row + s->k0 * p->a_col, p->a_row, p->a_col, MR, A);
    for (size_t j = 0; j < s->n; j += NR) {
        size_t cols = s->n - j < NR ? s->n - j : NR;
        for (size_t i = 0; i < m; i += MR) {
            size_t rows = m - i < MR ? m - i : MR;
            double *C = p->C + (i0 + i) * p->ldc + s->j0 + j;
            if (p->is_upper && s->j0 + j + cols <= i0 + i)
                break; /* this tile and those below lie under the diagonal */
            if (rows == MR && cols == NR)
                tile(s->k, A + i * s->k, s->B + j * s->k, p->alpha, beta, C, p->ldc);
            else
                edge(rows, cols, s->k, A + i * s->k, s->B + j * s->k, p->alpha, beta, C, p->ldc);
        }
    }
}

bool iso_f64_avx512_product(const iso_f64_product *p)
{
    size_t blocks = (p->m + MC - 1) / MC, most = p->n < NC ? p->n : NC;
    size_t depth = p->k < KC ? p->k : KC, width = (most + NR - 1) / NR * NR;
    bool is_large = p->m * p->n > (size_t)PARALLEL_WORK / (p->k ? p->k : 1);
    size_t workers = is_large ? (size_t)iso_threads() : 1;
    double *A = iso_alloc_aligned(workers * MC * KC, sizeof *A);
    double *B = iso_alloc_aligned(width * depth + 1, sizeof *B);
    bool is_done = A && B;
    for (size_t j0 = 0; is_done && j0 < p->n; j0 += NC) {
        for (size_t k0 = 0; k0 < p->k; k0 += KC) {
            panel s = {.p = p, .k0 = k0, .j0 = j0, .A = A, .B = B};
            s.k = p->k - k0 < KC ? p->k - k0 : KC;
            s.n = p->n - j0 < NC ? p->n - j0 : NC;
            pack(s.n, s.k, p->B + k0 * p->b_row + j0 * p->b_col, p->b_col, p->b_row, NR, B);
            if (is_large) {
                iso_parallel_for(blocks, 1, row_block, &s);
            } else {
                for (size_t i = 0; i < blocks; i++)
                    row_block(&s, i, 0);
            }
        }
    }
    free(A);
    free(B);
    return is_done;
}

#else

bool iso_f64_avx512_runs(void)
{
    return false;
}

bool iso_f64_avx512_product(const iso_f64_product *p)
{
    (void)p;
    return false;
}

#endif
