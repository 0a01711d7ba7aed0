/* An 8 x 48 register tile: 24 accumulators, 3 vectors of B, one broadcast of A a row and step.
 * specs/performance.md 3.2. B is read in panels packed once (weights), or where it lies; A is never
 * packed. Each element of C is one chain of fused multiply-adds over k in ascending order, whatever
 * the tile it falls in, so a row's bits do not depend on how rows are grouped. */
#include "nn/kernel/gemm_avx512.h"

#if defined(__x86_64__) && defined(__GNUC__)

#include <immintrin.h>

#define TILE static inline __attribute__((always_inline, target("avx512f")))

bool iso_avx512_runs(void)
{
    return __builtin_cpu_supports("avx512f");
}

/* Rows i .. i+mr-1, columns j .. j+16*nv-1 (the last vector under `mask`). mr and nv are constants
 * at every call, so the loops over them unroll. */
TILE void tile(const int mr, const int nv, __mmask16 mask, const iso_product *p, size_t i, size_t j,
               const float *B, size_t ldb)
{
    const float *A = p->A + i * p->rs;
    size_t rs = p->rs, cs = p->cs;
    __m512 acc[16][3], b[3];
#pragma GCC unroll 16
    for (int r = 0; r < mr; r++)
#pragma GCC unroll 16
        for (int v = 0; v < nv; v++)
            acc[r][v] = _mm512_setzero_ps();
    for (size_t kk = 0; kk < p->k; kk++) {
#pragma GCC unroll 16
        for (int v = 0; v + 1 < nv; v++)
            b[v] = _mm512_loadu_ps(B + 16 * v);
        b[nv - 1] = _mm512_maskz_loadu_ps(mask, B + 16 * (nv - 1));
#pragma GCC unroll 16
        for (int r = 0; r < mr; r++) {
            __m512 a = _mm512_set1_ps(A[(size_t)r * rs]);
#pragma GCC unroll 16
            for (int v = 0; v < nv; v++)
                acc[r][v] = _mm512_fmadd_ps(a, b[v], acc[r][v]);
        }
        A += cs;
        B += ldb;
    }
    __m512 alpha = _mm512_set1_ps(p->alpha);
#pragma GCC unroll 16
    for (int v = 0; v < nv; v++) {
        __mmask16 m = v + 1 < nv ? (__mmask16)0xffff : mask;
        size_t col = j + 16 * (size_t)v;
        __m512 bias = p->bias ? _mm512_maskz_loadu_ps(m, p->bias + col) : _mm512_setzero_ps();
#pragma GCC unroll 16
        for (int r = 0; r < mr; r++) {
            size_t row = i + (size_t)r;
            __m512 y = _mm512_fmadd_ps(acc[r][v], alpha, bias);
            if (p->add)
                y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(m, p->add + row * p->ld_add + col));
            _mm512_mask_storeu_ps(p->C + row * p->ldc + col, m, y);
        }
    }
}

TILE void columns(const int nv, __mmask16 mask, const iso_product *p, size_t j, const float *B,
                  size_t ldb)
{
    size_t i = 0;
    if (nv == 1) /* one vector of columns: more rows to keep the multipliers busy */
        for (; i + 16 <= p->m; i += 16)
            tile(16, nv, mask, p, i, j, B, ldb);
    for (; i + 8 <= p->m; i += 8)
        tile(8, nv, mask, p, i, j, B, ldb);
    if (i + 4 <= p->m) {
        tile(4, nv, mask, p, i, j, B, ldb);
        i += 4;
    }
    if (i + 2 <= p->m) {
        tile(2, nv, mask, p, i, j, B, ldb);
        i += 2;
    }
    if (i < p->m)
        tile(1, nv, mask, p, i, j, B, ldb);
}

__attribute__((target("avx512f"))) void iso_avx512_product(const iso_product *p)
{
    for (size_t j = 0; j < p->n; j += ISO_PANEL) {
        const float *B = p->ldb ? p->B + j : p->B + j / ISO_PANEL * p->panel_stride;
        size_t ldb = p->ldb ? p->ldb : ISO_PANEL;
        size_t width = p->n - j < ISO_PANEL ? p->n - j : ISO_PANEL;
        size_t tail = width % 16;
        __mmask16 mask = (__mmask16)(tail ? (1U << tail) - 1U : 0xffffU);
        if (width > 32)
            columns(3, mask, p, j, B, ldb);
        else if (width > 16)
            columns(2, mask, p, j, B, ldb);
        else
            columns(1, mask, p, j, B, ldb);
    }
}

/* Transposes 16 vectors in place: pairs of rows, pairs of pairs, then the four lanes. */
TILE void transpose16(__m512 r[16])
{
    __m512 t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_ps(r[i], r[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        for (int h = 0; h < 2; h++) {
            __m512d a = _mm512_castps_pd(t[i + h]), b = _mm512_castps_pd(t[i + h + 2]);
            r[i + 2 * h] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
            r[i + 2 * h + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        }
    }
#pragma GCC unroll 16
    for (int c = 0; c < 4; c++) {
        __m512 a = _mm512_shuffle_f32x4(r[c], r[c + 4], 0x88);
        __m512 b = _mm512_shuffle_f32x4(r[c], r[c + 4], 0xdd);
        __m512 d = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0x88);
        __m512 f = _mm512_shuffle_f32x4(r[c + 8], r[c + 12], 0xdd);
        t[c] = _mm512_shuffle_f32x4(a, d, 0x88);
        t[c + 8] = _mm512_shuffle_f32x4(a, d, 0xdd);
        t[c + 4] = _mm512_shuffle_f32x4(b, f, 0x88);
        t[c + 12] = _mm512_shuffle_f32x4(b, f, 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i++)
        r[i] = t[i];
}

__attribute__((target("avx512f"))) void
iso_avx512_pack_transposed(size_t n, size_t k, const float *B, size_t ldb, size_t j, float *panel)
{
    for (size_t v = 0; v < 3; v++) {
        size_t row = j + 16 * v;
        size_t left = row < n ? n - row : 0;
        for (size_t kk = 0; kk < k; kk += 16) {
            size_t width = k - kk < 16 ? k - kk : 16;
            __mmask16 m = (__mmask16)((1U << width) - 1U);
            __m512 r[16];
#pragma GCC unroll 16
            for (size_t i = 0; i < 16; i++)
                r[i] = i < left ? _mm512_maskz_loadu_ps(m, B + (row + i) * ldb + kk)
                                : _mm512_setzero_ps();
            transpose16(r);
            for (size_t i = 0; i < width; i++)
                _mm512_storeu_ps(panel + (kk + i) * ISO_PANEL + 16 * v, r[i]);
        }
    }
}

#else

bool iso_avx512_runs(void)
{
    return false;
}

void iso_avx512_product(const iso_product *p)
{
    (void)p;
}

void iso_avx512_pack_transposed(size_t n, size_t k, const float *B, size_t ldb, size_t j,
                                float *panel)
{
    (void)n, (void)k, (void)B, (void)ldb, (void)j, (void)panel;
}

#endif
