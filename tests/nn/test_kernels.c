/* Every kernel against a plain reference in double; every backward against central differences of
 * that reference, in double. Products on each kernel that runs here. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/mem.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "nn/kernel/attention.h"
#include "nn/kernel/gelu.h"
#include "nn/kernel/gemm.h"
#include "nn/kernel/loss.h"
#include "nn/kernel/norm.h"
#include "nn/kernel/patch.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static iso_rng rng;

static int seed_rng(void **state)
{
    (void)state;
    rng = iso_rng_make(20, ISO_RNG_TEST, 0);
    return 0;
}

static float *normals(size_t n)
{
    float *x = iso_alloc_aligned(n, sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)iso_rng_normal(&rng);
    return x;
}

static double *wide(const float *x, size_t n)
{
    double *out = iso_calloc(n, sizeof *out);
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i];
    return out;
}

/* Relative Frobenius error. */
static double off(const float *got, const double *want, size_t n)
{
    double d = 0.0, s = 0.0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)got[i] - want[i]) * ((double)got[i] - want[i]);
        s += want[i] * want[i];
    }
    return sqrt(d / (s > 0.0 ? s : 1.0));
}

static void near(const char *what, const float *got, const double *want, size_t n, double tolerance)
{
    double error = off(got, want, n);
    if (!(error <= tolerance))
        fail_msg("%s: relative error %.2e, allowed %.1e", what, error, tolerance);
}

/* Central differences of f at x, for every entry: df/dx. */
typedef double scalar_fn(void *ctx, const double *x);
static void differences(scalar_fn *f, void *ctx, double *x, size_t n, double *grad)
{
    const double h = 1e-5;
    for (size_t i = 0; i < n; i++) {
        double keep = x[i];
        x[i] = keep + h;
        double up = f(ctx, x);
        x[i] = keep - h;
        double down = f(ctx, x);
        x[i] = keep;
        grad[i] = (up - down) / (2.0 * h);
    }
}

/* ---- products ---- */

typedef struct {
    size_t m, n, k;
} shape;
static const shape SHAPES[] = {{1, 1, 1},   {8, 48, 16},   {7, 47, 13},  {65, 65, 64},
                               {17, 16, 5}, {9, 33, 1100}, {33, 8, 192}, {3, 100, 2},
                               {16, 1, 40}, {200, 50, 31}};

static void plain_product(bool ta, bool tb, const shape *s, double alpha, const float *A,
                          size_t lda, const float *B, size_t ldb, double beta, const float *C,
                          size_t ldc, double *out)
{
    for (size_t i = 0; i < s->m; i++)
        for (size_t j = 0; j < s->n; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < s->k; k++)
                sum += (double)(ta ? A[k * lda + i] : A[i * lda + k]) *
                       (double)(tb ? B[j * ldb + k] : B[k * ldb + j]);
            out[i * s->n + j] = alpha * sum + (beta == 0.0 ? 0.0 : beta * (double)C[i * ldc + j]);
        }
}

/* Strides beyond the row, so that a kernel that writes or reads too far is seen (ASan for reads).
 */
static void check_products(void)
{
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++)
        for (int form = 0; form < 12; form++) {
            shape s = SHAPES[i];
            bool ta = form & 1, tb = form & 2;
            float beta = form < 4 ? 0.0F : form < 8 ? 1.0F : 0.5F;
            size_t lda = (ta ? s.m : s.k) + 3, ldb = (tb ? s.k : s.n) + 1, ldc = s.n + 2;
            float *A = normals(lda * (ta ? s.k : s.m)), *B = normals(ldb * (tb ? s.n : s.k));
            float *C = normals(ldc * s.m), *D = normals(ldc * s.m);
            double *want = iso_calloc(s.m * s.n, sizeof *want);
            if (beta == 0.0F)
                C[0] = NAN; /* must not be read */
            memcpy(D, C, ldc * s.m * sizeof *D);
            plain_product(ta, tb, &s, 1.5, A, lda, B, ldb, (double)beta, C, ldc, want);
            iso_gemm(ta, tb, s.m, s.n, s.k, 1.5F, A, lda, B, ldb, beta, C, ldc);
            float *dense = iso_calloc(s.m * s.n, sizeof *dense);
            for (size_t r = 0; r < s.m; r++) {
                memcpy(dense + r * s.n, C + r * ldc, s.n * sizeof *dense);
                assert_memory_equal(C + r * ldc + s.n, D + r * ldc + s.n, 2 * sizeof *C);
            }
            char what[64];
            snprintf(what, sizeof what, "%zux%zux%zu form %d", s.m, s.n, s.k, form);
            near(what, dense, want, s.m * s.n, 2e-6);
            free(A), free(B), free(C), free(D), free(want), free(dense);
        }
}

static void check_packed(void)
{
    static const shape rows[] = {{5, 144, 48}, {13, 96, 64}, {66, 50, 17}, {1, 10, 100}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        size_t m = rows[i].m, out = rows[i].n, in = rows[i].k;
        float *W = normals(out * in), *b = normals(out), *x = normals(m * in),
              *add = normals(m * out);
        float *y = normals(m * out), *dx = normals(m * in), *more = normals(m * in);
        double *want = iso_calloc(m * out, sizeof *want),
               *dwant = iso_calloc(m * in, sizeof *dwant);
        size_t f = iso_packed_forward_floats(out, in), g = iso_packed_backward_floats(out, in);
        iso_packed p = {.out = out,
                        .in = in,
                        .W = W,
                        .forward = f ? iso_alloc_aligned(f, sizeof(float)) : NULL,
                        .backward = g ? iso_alloc_aligned(g, sizeof(float)) : NULL};
        iso_pack(&p);
        for (size_t r = 0; r < m; r++)
            for (size_t o = 0; o < out; o++) {
                double s = (double)b[o] + (double)add[r * out + o];
                for (size_t c = 0; c < in; c++)
                    s += (double)x[r * in + c] * (double)W[o * in + c];
                want[r * out + o] = s;
            }
        iso_packed_forward(&p, 0, out, b, m, x, in, add, out, y, out);
        near("packed forward", y, want, m * out, 1e-6);
        /* rows 48 .. of W, or from an odd row: any range gives the same numbers */
        size_t row0 = out > 48 ? 48 : 3, rows_left = out - row0;
        float *part = normals(m * rows_left);
        double *part_want = iso_calloc(m * rows_left, sizeof *part_want);
        for (size_t r = 0; r < m; r++)
            for (size_t o = 0; o < rows_left; o++)
                part_want[r * rows_left + o] =
                    want[r * out + row0 + o] - (double)add[r * out + row0 + o];
        iso_packed_forward(&p, row0, rows_left, b + row0, m, x, in, NULL, 0, part, rows_left);
        near("packed forward, rows", part, part_want, m * rows_left, 1e-6);

        for (int ranged = 0; ranged < 2; ranged++) {
            size_t from = ranged ? row0 : 0;
            for (size_t r = 0; r < m; r++)
                for (size_t c = 0; c < in; c++) {
                    double s = (double)more[r * in + c];
                    for (size_t o = from; o < out; o++)
                        s += (double)y[r * out + o] * (double)W[o * in + c];
                    dwant[r * in + c] = s;
                }
            iso_packed_backward(&p, from, out - from, m, y + from, out, more, in, dx, in);
            near("packed backward", dx, dwant, m * in, 1e-6);
        }
        free(W), free(b), free(x), free(add), free(y), free(dx), free(more), free(want);
        free(dwant), free(p.forward), free(p.backward), free(part), free(part_want);
    }
}

static void products_on_every_kernel(void **state)
{
    (void)state;
    iso_gemm_kernel fastest = iso_gemm_current();
    for (int k = 0; k < 2; k++) {
        if (!iso_gemm_select((iso_gemm_kernel)k)) {
            printf("  %s does not run here\n", iso_gemm_name((iso_gemm_kernel)k));
            continue;
        }
        check_products();
        check_packed();
    }
    iso_gemm_select(fastest);
}

static void products_in_double(void **state)
{
    (void)state;
    enum { M = 9, N = 7, K = 30 };
    double A[M * K], B[N * K], C[M * N], want[M * N];
    for (size_t i = 0; i < M * K; i++)
        A[i] = iso_rng_normal(&rng);
    for (size_t i = 0; i < N * K; i++)
        B[i] = iso_rng_normal(&rng);
    for (size_t i = 0; i < M; i++)
        for (size_t j = 0; j < N; j++) {
            want[i * N + j] = 0.0;
            for (size_t k = 0; k < K; k++)
                want[i * N + j] += A[i * K + k] * B[j * K + k];
        }
    iso_gemm_f64(false, true, M, N, K, 1.0, A, K, B, K, 0.0, C, N);
    for (size_t i = 0; i < M * N; i++)
        assert_true(fabs(C[i] - want[i]) <= 1e-12);
}

/* Blocks of rows on any number of threads: the same bits. */
static void row_blocks_do_not_depend_on_threads(void **state)
{
    enum { M = 700, N = 60, K = 50 };
    (void)state;
    iso_gemm_kernel fastest = iso_gemm_current();
    float *A = normals(M * K), *B = normals(N * K), *one = normals(M * N), *two = normals(M * N);
    for (int k = 0; k < 2; k++) {
        if (!iso_gemm_select((iso_gemm_kernel)k))
            continue;
        iso_set_threads(1);
        iso_gemm_rows(false, true, M, N, K, 1.0F, A, K, B, K, 0.0F, one, N);
        iso_set_threads(4);
        iso_gemm_rows(false, true, M, N, K, 1.0F, A, K, B, K, 0.0F, two, N);
        iso_set_threads(1);
        assert_memory_equal(one, two, M * N * sizeof *one);
    }
    iso_gemm_select(fastest);
    free(A), free(B), free(one), free(two);
}

/* A row's bits do not depend on the rows beside it: what lets cached and recomputed activations
 * agree. Holds for our own kernel only. */
static void a_row_is_the_same_alone_and_among_others(void **state)
{
    enum { M = 37, N = 100, K = 70 };
    (void)state;
    if (iso_gemm_current() != ISO_GEMM_AVX512)
        skip();
    float *A = normals(M * K), *B = normals(N * K), *all = normals(M * N), *alone = normals(N);
    iso_gemm(false, true, M, N, K, 1.0F, A, K, B, K, 0.0F, all, N);
    for (size_t i = 0; i < M; i++) {
        iso_gemm(false, true, 1, N, K, 1.0F, A + i * K, K, B, K, 0.0F, alone, N);
        assert_memory_equal(alone, all + i * N, N * sizeof *alone);
    }
    free(A), free(B), free(all), free(alone);
}

/* ---- GELU ---- */

static void gelu_over_its_range(void **state)
{
    enum { N = 40001 };
    (void)state;
    float *h = normals(N), *g = normals(N), *one = normals(N), *dh = normals(N), *g2 = normals(N);
    double worst = 0.0, worst_slope = 0.0;
    for (size_t i = 0; i < N; i++) {
        h[i] = (float)((double)i * 5e-4 - 10.0);
        one[i] = 1.0F;
    }
    iso_gelu_forward(N, h, g);
    iso_gelu_backward(N, h, one, dh, g2);
    assert_memory_equal(g, g2, N * sizeof *g);
    for (size_t i = 0; i < N; i++) {
        double x = (double)h[i], e = 1e-4;
        double want = 0.5 * x * erfc(-x * M_SQRT1_2);
        double up = 0.5 * (x + e) * erfc(-(x + e) * M_SQRT1_2);
        double down = 0.5 * (x - e) * erfc(-(x - e) * M_SQRT1_2);
        worst = fmax(worst, fabs((double)g[i] - want) / fmax(1.0, fabs(x)));
        worst_slope = fmax(worst_slope, fabs((double)dh[i] - (up - down) / (2.0 * e)));
    }
    printf("  gelu %.1e, slope %.1e\n", worst, worst_slope);
    assert_true(worst <= 3e-7);
    assert_true(worst_slope <= 1e-6);
    free(h), free(g), free(one), free(dh), free(g2);
}

/* ---- layer norm ---- */

typedef struct {
    size_t d;
    const double *w, *b, *dy;
} norm_ctx;

static void plain_norm(const norm_ctx *c, const double *x, double *y)
{
    double mean = 0.0, var = 0.0;
    for (size_t j = 0; j < c->d; j++)
        mean += x[j] / (double)c->d;
    for (size_t j = 0; j < c->d; j++)
        var += (x[j] - mean) * (x[j] - mean) / (double)c->d;
    for (size_t j = 0; j < c->d; j++)
        y[j] = (x[j] - mean) / sqrt(var + 1e-6) * c->w[j] + c->b[j];
}

static double norm_sum(void *ctx, const double *x)
{
    const norm_ctx *c = ctx;
    double *y = iso_calloc(c->d, sizeof *y), s = 0.0;
    plain_norm(c, x, y);
    for (size_t j = 0; j < c->d; j++)
        s += c->dy[j] * y[j];
    free(y);
    return s;
}

static void layer_norm_and_its_gradient(void **state)
{
    static const size_t dims[] = {1, 3, 16, 67, 192};
    (void)state;
    for (size_t k = 0; k < sizeof dims / sizeof *dims; k++) {
        enum { M = 3 };
        size_t d = dims[k], ld = d + 5;
        float *x = normals(M * ld), *w = normals(d), *b = normals(d), *dy = normals(M * d);
        float *y = normals(M * d), *dx = normals(M * ld), *add = normals(M * ld);
        double *ww = wide(w, d), *wb = wide(b, d), *want = iso_calloc(d, sizeof *want);
        iso_norm n = {.dim = d, .w = w, .b = b, .eps = 1e-6F};
        iso_norm_forward(&n, M, x, ld, y);
        for (int with_add = 0; with_add < 2; with_add++) {
            iso_norm_backward(&n, M, x, dy, with_add ? add : NULL, dx, ld);
            for (size_t i = 0; i < M; i++) {
                double *wx = wide(x + i * ld, d), *wdy = wide(dy + i * d, d);
                norm_ctx c = {d, ww, wb, wdy};
                plain_norm(&c, wx, want);
                near("norm", y + i * d, want, d, 1e-6);
                differences(norm_sum, &c, wx, d, want);
                for (size_t j = 0; with_add && j < d; j++)
                    want[j] += (double)add[i * ld + j];
                if (d > 1) /* of one number the gradient is 0 */
                    near("norm gradient", dx + i * ld, want, d, 2e-5);
                free(wx), free(wdy);
            }
        }
        free(x), free(w), free(b), free(dy), free(y), free(dx), free(add);
        free(ww), free(wb), free(want);
    }
}

/* ---- attention ---- */

typedef struct {
    size_t nq, n, d;
    double scale;
    const double *dout;
    double *out; /* or NULL */
} attention_ctx;

/* x holds q (nq, d), k (n, d), v (n, d). */
static double attention_sum(void *ctx, const double *x)
{
    const attention_ctx *c = ctx;
    const double *q = x, *k = q + c->nq * c->d, *v = k + c->n * c->d;
    double total = 0.0, *p = iso_calloc(c->n, sizeof *p);
    for (size_t i = 0; i < c->nq; i++) {
        double sum = 0.0;
        for (size_t j = 0; j < c->n; j++) {
            double s = 0.0;
            for (size_t t = 0; t < c->d; t++)
                s += q[i * c->d + t] * k[j * c->d + t];
            p[j] = exp(c->scale * s);
            sum += p[j];
        }
        for (size_t t = 0; t < c->d; t++) {
            double o = 0.0;
            for (size_t j = 0; j < c->n; j++)
                o += p[j] / sum * v[j * c->d + t];
            if (c->out)
                c->out[i * c->d + t] = o;
            total += c->dout[i * c->d + t] * o;
        }
    }
    free(p);
    return total;
}

static void attention_and_its_gradient(void **state)
{
    static const struct {
        size_t nq, n, d;
    } rows[] = {{1, 1, 1}, {5, 5, 4}, {1, 17, 8}, {2, 9, 16}, {17, 17, 12}};
    (void)state;
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++) {
        size_t nq = rows[r].nq, n = rows[r].n, d = rows[r].d, all = (nq + 2 * n) * d;
        float *x = normals(all), *dout = normals(nq * d), *o = normals(nq * d), *g = normals(all);
        float *log_sum = normals(nq), *scratch = normals(2 * iso_attention_scratch(nq, n));
        double *wx = wide(x, all), *wd = wide(dout, nq * d);
        double *want = iso_calloc(all, sizeof *want);
        attention_ctx c = {nq, n, d, 1.0 / sqrt((double)d), wd, want};
        iso_attention a = {.nq = nq,
                           .n = n,
                           .d = d,
                           .scale = (float)c.scale,
                           .q = x,
                           .k = x + nq * d,
                           .v = x + (nq + n) * d,
                           .ldq = d,
                           .ldkv = d};
        iso_attention_forward(&a, o, d, log_sum, scratch);
        attention_sum(&c, wx);
        near("attention", o, want, nq * d, 1e-6);
        c.out = NULL;
        iso_attention_backward(&a, log_sum, dout, d, g, d, g + nq * d, g + (nq + n) * d, d,
                               scratch);
        differences(attention_sum, &c, wx, all, want);
        near("attention gradient", g, want, all, 1e-5);
        free(x), free(dout), free(o), free(g), free(log_sum), free(scratch);
        free(wx), free(wd), free(want);
    }
}

static void softmax_keeps_large_scores_finite(void **state)
{
    (void)state;
    float s[2][5] = {{1000.0F, 999.0F, -1000.0F, 0.0F, 998.0F},
                     {-3e4F, -3e4F, -3e4F, -3e4F, -3e4F}};
    float log_sum[2];
    iso_softmax_rows(2, 5, s[0], 5, log_sum);
    double sum = 1.0 + exp(-1.0) + exp(-2.0);
    assert_true(fabs((double)s[0][0] - 1.0 / sum) < 1e-6);
    assert_true(fabs((double)s[0][4] - exp(-2.0) / sum) < 1e-6);
    assert_true(fabs((double)log_sum[0] - (1000.0 + log(sum))) < 1e-3);
    assert_true(fabs((double)s[1][2] - 0.2) < 1e-6);
}

/* ---- patches ---- */

static void patches_are_a_convolution(void **state)
{
    enum { SIDE = 12, P = 4, D = 10, GRID = SIDE / P, IN = 3 * P * P };
    (void)state;
    float *pixels = normals(3 * SIDE * SIDE), *W = normals(D * IN), *b = normals(D);
    float *pos = normals(GRID * GRID * D), *rows = normals(GRID * GRID * IN);
    float *tokens = normals(GRID * GRID * D);
    double want[GRID * GRID * D];
    for (size_t g = 0; g < GRID * GRID; g++)
        for (size_t o = 0; o < D; o++) {
            double s = (double)b[o] + (double)pos[g * D + o];
            for (size_t c = 0; c < 3; c++)
                for (size_t y = 0; y < P; y++)
                    for (size_t x = 0; x < P; x++)
                        s +=
                            (double)W[((o * 3 + c) * P + y) * P + x] *
                            (double)pixels[(c * SIDE + g / GRID * P + y) * SIDE + g % GRID * P + x];
            want[g * D + o] = s;
        }
    iso_packed p = {.out = D, .in = IN, .W = W};
    iso_patch_embed(&p, b, pos, pixels, 3, SIDE, P, rows, tokens, D);
    near("patch embedding", tokens, want, GRID * GRID * D, 1e-6);
    free(pixels), free(W), free(b), free(pos), free(rows), free(tokens);
}

/* ---- loss ---- */

typedef struct {
    size_t m, classes;
    const int *labels;
} loss_ctx;

static double plain_loss(void *ctx, const double *z)
{
    const loss_ctx *c = ctx;
    double total = 0.0;
    for (size_t i = 0; i < c->m; i++) {
        double sum = 0.0;
        for (size_t k = 0; k < c->classes; k++)
            sum += exp(z[i * c->classes + k]);
        total += log(sum) - z[i * c->classes + (size_t)c->labels[i]];
    }
    return total;
}

static void cross_entropy_and_its_gradient(void **state)
{
    enum { M = 6, C = 5 };
    static const int labels[M] = {0, 4, 2, 2, 1, 3};
    (void)state;
    float *z = normals(M * C), *dz = normals(M * C);
    double *wz = wide(z, M * C), want[M * C];
    loss_ctx c = {M, C, labels};
    double loss = iso_loss_rows(M, C, z, labels, 1.0F, dz);
    assert_true(fabs(loss - plain_loss(&c, wz)) < 1e-9);
    differences(plain_loss, &c, wz, M * C, want);
    near("cross-entropy gradient", dz, want, M * C, 1e-6);
    float far[C] = {1e4F, -1e4F, 0.0F, 0.0F, 0.0F};
    int label = 1;
    assert_true(fabs(iso_loss_rows(1, C, far, &label, 1.0F, far) - 2e4) < 1e-6);
    assert_true(far[0] == 1.0F && far[1] == -1.0F);
    free(z), free(dz), free(wz);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(products_on_every_kernel, seed_rng),
        cmocka_unit_test_setup(products_in_double, seed_rng),
        cmocka_unit_test_setup(row_blocks_do_not_depend_on_threads, seed_rng),
        cmocka_unit_test_setup(a_row_is_the_same_alone_and_among_others, seed_rng),
        cmocka_unit_test_setup(gelu_over_its_range, seed_rng),
        cmocka_unit_test_setup(layer_norm_and_its_gradient, seed_rng),
        cmocka_unit_test_setup(attention_and_its_gradient, seed_rng),
        cmocka_unit_test_setup(softmax_keeps_large_scores_finite, seed_rng),
        cmocka_unit_test_setup(patches_are_a_convolution, seed_rng),
        cmocka_unit_test_setup(cross_entropy_and_its_gradient, seed_rng)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
