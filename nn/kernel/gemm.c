#include "nn/kernel/gemm.h"

#include "core/parallel.h"
#include "nn/kernel/gemm_avx512.h"

#include <assert.h>
#include <cblas.h>
#include <limits.h>
#include <stdatomic.h>
#include <string.h>
#ifdef _OPENMP
#include <omp.h>
#endif

enum {
    ROW_BLOCK = 128,   /* of iso_gemm_rows: fixed, so that results do not depend on threads */
    STACK_PANEL = 1024 /* longest k whose panel (196 KiB) is packed on the stack */
};

/* -1 until the first product asks. */
static atomic_int chosen = -1;

/* OpenBLAS on one thread. Its OpenMP build asks omp_get_max_threads() at every call made outside a
 * parallel region and then threads as it likes, so that setting follows the calling thread. */
static void blas_single(void)
{
    static atomic_bool is_set;
    if (!atomic_load_explicit(&is_set, memory_order_relaxed)) {
        openblas_set_num_threads(1);
        atomic_store(&is_set, true);
    }
#ifdef _OPENMP
    if (!omp_in_parallel() && omp_get_max_threads() != 1)
        omp_set_num_threads(1);
#endif
}

iso_gemm_kernel iso_gemm_current(void)
{
    int k = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (k < 0) {
        k = iso_avx512_runs() ? ISO_GEMM_AVX512 : ISO_GEMM_CBLAS;
        atomic_store(&chosen, k);
    }
    return (iso_gemm_kernel)k;
}

bool iso_gemm_select(iso_gemm_kernel kernel)
{
    if (kernel == ISO_GEMM_AVX512 && !iso_avx512_runs())
        return false;
    atomic_store(&chosen, (int)kernel);
    return true;
}

const char *iso_gemm_name(iso_gemm_kernel kernel)
{
    return kernel == ISO_GEMM_AVX512 ? "avx512" : "cblas";
}

/* C = alpha A B' + add by panels of B' packed on the stack one after the other. */
static void product_transposed(iso_product p, const float *B, size_t ldb)
{
    _Alignas(64) float panel[STACK_PANEL * ISO_PANEL];
    const iso_product whole = p;
    p.ldb = ISO_PANEL;
    p.B = panel;
    for (size_t j = 0; j < whole.n; j += ISO_PANEL)
        for (size_t kk = 0; kk < whole.k; kk += STACK_PANEL) {
            p.k = whole.k - kk < STACK_PANEL ? whole.k - kk : STACK_PANEL;
            p.n = whole.n - j < ISO_PANEL ? whole.n - j : ISO_PANEL;
            iso_avx512_pack_transposed(whole.n, p.k, B + kk, ldb, j, panel);
            p.A = whole.A + kk * whole.cs;
            p.C = whole.C + j;
            p.add = kk ? p.C : whole.add ? whole.add + j : NULL;
            p.ld_add = kk ? p.ldc : whole.ld_add;
            iso_avx512_product(&p);
        }
}

static void product_cblas(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha,
                          const float *A, size_t lda, const float *B, size_t ldb, float beta,
                          float *C, size_t ldc)
{
    assert(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX);
    blas_single();
    cblas_sgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans,
                (int)m, (int)n, (int)k, alpha, A, (int)lda, B, (int)ldb, beta, C, (int)ldc);
}

void iso_gemm(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *A,
              size_t lda, const float *B, size_t ldb, float beta, float *C, size_t ldc)
{
    if (m == 0 || n == 0)
        return;
    bool is_plain = beta == 0.0F || beta == 1.0F;
    if (iso_gemm_current() != ISO_GEMM_AVX512 || !is_plain || k == 0) {
        product_cblas(ta, tb, m, n, k, alpha, A, lda, B, ldb, beta, C, ldc);
        return;
    }
    iso_product p = {.m = m,
                     .n = n,
                     .k = k,
                     .alpha = alpha,
                     .A = A,
                     .rs = ta ? 1 : lda,
                     .cs = ta ? lda : 1,
                     .B = B,
                     .ldb = ldb,
                     .add = beta == 0.0F ? NULL : C,
                     .ld_add = ldc,
                     .C = C,
                     .ldc = ldc};
    if (tb)
        product_transposed(p, B, ldb);
    else
        iso_avx512_product(&p);
}

void iso_gemm_f64(bool ta, bool tb, size_t m, size_t n, size_t k, double alpha, const double *A,
                  size_t lda, const double *B, size_t ldb, double beta, double *C, size_t ldc)
{
    if (m == 0 || n == 0)
        return;
    assert(m <= INT_MAX && n <= INT_MAX && k <= INT_MAX);
    blas_single();
    cblas_dgemm(CblasRowMajor, ta ? CblasTrans : CblasNoTrans, tb ? CblasTrans : CblasNoTrans,
                (int)m, (int)n, (int)k, alpha, A, (int)lda, B, (int)ldb, beta, C, (int)ldc);
}

typedef struct {
    bool ta, tb;
    size_t m, n, k;
    float alpha, beta;
    const float *A, *B;
    size_t lda, ldb, ldc;
    float *C;
} rows_job;

static void rows_item(void *ctx, size_t i, int worker)
{
    const rows_job *j = ctx;
    (void)worker;
    size_t row = i * ROW_BLOCK;
    size_t m = j->m - row < ROW_BLOCK ? j->m - row : ROW_BLOCK;
    iso_gemm(j->ta, j->tb, m, j->n, j->k, j->alpha, j->ta ? j->A + row : j->A + row * j->lda,
             j->lda, j->B, j->ldb, j->beta, j->C + row * j->ldc, j->ldc);
}

void iso_gemm_rows(bool ta, bool tb, size_t m, size_t n, size_t k, float alpha, const float *A,
                   size_t lda, const float *B, size_t ldb, float beta, float *C, size_t ldc)
{
    rows_job j = {ta, tb, m, n, k, alpha, beta, A, B, lda, ldb, ldc, C};
    iso_parallel_for((m + ROW_BLOCK - 1) / ROW_BLOCK, 1, rows_item, &j);
}

/* ---- weights in panels ---- */

static size_t panels(size_t n)
{
    return (n + ISO_PANEL - 1) / ISO_PANEL;
}

size_t iso_packed_forward_floats(size_t out, size_t in)
{
    return iso_gemm_current() == ISO_GEMM_AVX512 ? panels(out) * ISO_PANEL * in : 0;
}

size_t iso_packed_backward_floats(size_t out, size_t in)
{
    return iso_gemm_current() == ISO_GEMM_AVX512 ? panels(in) * ISO_PANEL * out : 0;
}

void iso_pack(const iso_packed *p)
{
    if (p->forward)
        for (size_t j = 0; j < panels(p->out); j++)
            iso_avx512_pack_transposed(p->out, p->in, p->W, p->in, j * ISO_PANEL,
                                       p->forward + j * ISO_PANEL * p->in);
    if (p->backward)
        for (size_t j = 0; j < panels(p->in); j++) {
            float *panel = p->backward + j * ISO_PANEL * p->out;
            size_t width = p->in - j * ISO_PANEL;
            width = width < ISO_PANEL ? width : ISO_PANEL;
            for (size_t o = 0; o < p->out; o++) {
                const float *w = p->W + o * p->in + j * ISO_PANEL;
                for (size_t c = 0; c < width; c++)
                    panel[o * ISO_PANEL + c] = w[c];
                for (size_t c = width; c < ISO_PANEL; c++)
                    panel[o * ISO_PANEL + c] = 0.0F;
            }
        }
}

bool iso_packed_is_aligned(size_t row0)
{
    return row0 % ISO_PANEL == 0;
}

void iso_packed_fold(const iso_packed *out, float *out_W, const iso_packed *frozen, size_t row0,
                     size_t rows, size_t r, float scale, const float *B, size_t ldb, const float *A)
{
    size_t in = out->in;
    if (out_W) {
        float *W = out_W + row0 * in;
        memcpy(W, frozen->W + row0 * in, rows * in * sizeof *W);
        iso_gemm(true, false, rows, in, r, scale, B, ldb, A, in, 1.0F, W, in);
    }
    /* Forward panels hold W': panel (in, 48) = A' B. */
    for (size_t j = 0; out->forward && j < rows; j += ISO_PANEL) {
        size_t at = (row0 + j) * in;
        iso_product p = {.m = in,
                         .n = rows - j < ISO_PANEL ? rows - j : ISO_PANEL,
                         .k = r,
                         .alpha = scale,
                         .A = A,
                         .rs = 1,
                         .cs = in,
                         .B = B + j,
                         .ldb = ldb,
                         .add = frozen->forward + at,
                         .ld_add = ISO_PANEL,
                         .C = out->forward + at,
                         .ldc = ISO_PANEL};
        iso_avx512_product(&p);
    }
    /* Backward panels hold W: panel (out, 48) = B' A. */
    for (size_t j = 0; out->backward && j < in; j += ISO_PANEL) {
        iso_product p = {.m = rows,
                         .n = in - j < ISO_PANEL ? in - j : ISO_PANEL,
                         .k = r,
                         .alpha = scale,
                         .A = B,
                         .rs = 1,
                         .cs = ldb,
                         .B = A + j,
                         .ldb = in,
                         .add = frozen->W + row0 * in + j,
                         .ld_add = in,
                         .C = out->backward + j * out->out + row0 * ISO_PANEL,
                         .ldc = ISO_PANEL};
        iso_avx512_product(&p);
    }
}

void iso_packed_forward(const iso_packed *p, size_t row0, size_t rows, const float *b, size_t m,
                        const float *x, size_t ldx, const float *add, size_t ld_add, float *y,
                        size_t ldy)
{
    if (p->forward && row0 % ISO_PANEL == 0) {
        iso_product q = {.m = m,
                         .n = rows,
                         .k = p->in,
                         .alpha = 1.0F,
                         .A = x,
                         .rs = ldx,
                         .cs = 1,
                         .B = p->forward + row0 * p->in,
                         .panel_stride = p->in * ISO_PANEL,
                         .bias = b,
                         .add = add,
                         .ld_add = ld_add,
                         .C = y,
                         .ldc = ldy};
        iso_avx512_product(&q);
        return;
    }
    for (size_t i = 0; i < m; i++)
        for (size_t o = 0; o < rows; o++)
            y[i * ldy + o] = (b ? b[o] : 0.0F) + (add ? add[i * ld_add + o] : 0.0F);
    iso_gemm(false, true, m, rows, p->in, 1.0F, x, ldx, p->W + row0 * p->in, p->in, 1.0F, y, ldy);
}

void iso_packed_backward(const iso_packed *p, size_t row0, size_t rows, size_t m, const float *dy,
                         size_t ldy, const float *add, size_t ld_add, float *dx, size_t ldx)
{
    if (add && add != dx)
        for (size_t i = 0; i < m; i++)
            for (size_t c = 0; c < p->in; c++)
                dx[i * ldx + c] = add[i * ld_add + c];
    if (p->backward) {
        iso_product q = {.m = m,
                         .n = p->in,
                         .k = rows,
                         .alpha = 1.0F,
                         .A = dy,
                         .rs = ldy,
                         .cs = 1,
                         .B = p->backward + row0 * ISO_PANEL,
                         .panel_stride = p->out * ISO_PANEL,
                         .add = add ? dx : NULL,
                         .ld_add = ldx,
                         .C = dx,
                         .ldc = ldx};
        iso_avx512_product(&q);
        return;
    }
    iso_gemm(false, false, m, p->in, rows, 1.0F, dy, ldy, p->W + row0 * p->in, p->in,
             add ? 1.0F : 0.0F, dx, ldx);
}
