/* Kernels of the engine, one thread: products beside cblas_sgemm of the same shape, attention and
 * elementwise passes as shares of the peak that cblas_sgemm reaches in this run. */
#include "bench/bench.h"

#include "core/mem.h"
#include "core/rng.h"
#include "nn/kernel/attention.h"
#include "nn/kernel/gelu.h"
#include "nn/kernel/gemm.h"
#include "nn/kernel/norm.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define NONE ((double)NAN)

/* Processor time of this thread: figures of one thread do not suffer from neighbours then. */
static double thread_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef void work_fn(void *ctx);

/* Seconds of one call: the best of runs that fill `budget` seconds (at least 3). */
static double best_seconds(work_fn *f, void *ctx, double budget)
{
    double best = INFINITY, begin = iso_bench_now();
    f(ctx); /* pages and caches */
    for (int i = 0; i < 3 || iso_bench_now() - begin < budget; i++) {
        double t = thread_seconds();
        f(ctx);
        best = fmin(best, thread_seconds() - t);
    }
    return best;
}

typedef struct {
    bool ta, tb; /* of the plain form */
    size_t m, n, k;
    const float *A, *B;
    float *C;
    iso_packed packed; /* forward weights when packed.out is set */
    int repeats;
} product;

static void run_cblas(void *ctx)
{
    const product *p = ctx;
    for (int i = 0; i < p->repeats; i++)
        cblas_sgemm(CblasRowMajor, p->ta ? CblasTrans : CblasNoTrans,
                    p->tb ? CblasTrans : CblasNoTrans, (int)p->m, (int)p->n, (int)p->k, 1.0F, p->A,
                    (int)(p->ta ? p->m : p->k), p->B, (int)(p->tb ? p->k : p->n), 0.0F, p->C,
                    (int)p->n);
}

static void run_ours(void *ctx)
{
    const product *p = ctx;
    for (int i = 0; i < p->repeats; i++)
        if (p->packed.out)
            iso_packed_forward(&p->packed, 0, p->n, NULL, p->m, p->A, p->k, NULL, 0, p->C, p->n);
        else
            iso_gemm(p->ta, p->tb, p->m, p->n, p->k, 1.0F, p->A, p->ta ? p->m : p->k, p->B,
                     p->tb ? p->k : p->n, 0.0F, p->C, p->n);
}

static float *numbers(iso_arena *a, size_t n)
{
    float *x = iso_arena_alloc(a, n, sizeof *x);
    if (!x)
        return NULL;
    iso_rng r = iso_rng_make(1, ISO_RNG_BENCH, n);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(iso_rng_uniform(&r) - 0.5);
    return x;
}

static double gflops(const product *p, double seconds)
{
    return 2e-9 * (double)p->m * (double)p->n * (double)p->k * p->repeats / seconds;
}

typedef struct {
    const char *name;
    bool packed, ta, tb;
    size_t m, n, k;
    bool full; /* only with --full */
    double target;
} product_row;

/* Shapes of a ViT-Ti/16 step at two images a micro-batch, of its attention and LoRA, and of ViT-B.
 */
static const product_row PRODUCTS[] = {
    {"product qkv, packed 394x576x192", true, false, true, 394, 576, 192, false, 1.05},
    {"product out, packed 394x192x192", true, false, true, 394, 192, 192, false, 1.05},
    {"product fc1, packed 394x768x192", true, false, true, 394, 768, 192, false, 1.0},
    {"product fc2, packed 394x192x768", true, false, true, 394, 192, 768, false, 1.05},
    {"product scores, 197x197x64", false, false, true, 197, 197, 64, false, 1.0},
    {"product values, 197x64x197", false, false, false, 197, 64, 197, false, 1.0},
    {"product scores, 65x65x64", false, false, true, 65, 65, 64, false, 1.0},
    {"product lora down, 394x24x192", false, false, true, 394, 24, 192, false, 1.0},
    {"product lora dA, 24x192x394", false, true, false, 24, 192, 394, false, 1.0},
    {"product lora dB, 8x768x394", false, true, false, 8, 768, 394, false, 1.0},
    {"product B fc1, packed 394x3072x768", true, false, true, 394, 3072, 768, true, 1.0},
    {"product B fc2, packed 394x768x3072", true, false, true, 394, 768, 3072, true, 1.05},
};

/* GFLOP/s that cblas_sgemm reaches on one thread in this run. */
static double peak_of(iso_arena *a, double budget)
{
    enum { N = 1024 };
    product p = {.m = N, .n = N, .k = N, .repeats = 1, .tb = true};
    p.A = numbers(a, (size_t)N * N);
    p.B = numbers(a, (size_t)N * N);
    p.C = numbers(a, (size_t)N * N);
    return p.A && p.B && p.C ? gflops(&p, best_seconds(run_cblas, &p, budget)) : NONE;
}

static int products(const iso_bench_options *o, double budget)
{
    for (size_t i = 0; i < sizeof PRODUCTS / sizeof *PRODUCTS; i++) {
        const product_row *r = &PRODUCTS[i];
        if (r->full && !o->full)
            continue;
        iso_arena a = {0};
        double flops = 2.0 * (double)r->m * (double)r->n * (double)r->k;
        product p = {.ta = r->ta, .tb = r->tb, .m = r->m, .n = r->n, .k = r->k};
        p.repeats = flops < 2e7 ? (int)(2e7 / flops) + 1 : 1;
        p.A = numbers(&a, r->m * r->k);
        p.B = numbers(&a, r->n * r->k);
        p.C = numbers(&a, r->m * r->n);
        if (r->packed) {
            size_t floats = iso_packed_forward_floats(r->n, r->k);
            p.packed =
                (iso_packed){.out = r->n,
                             .in = r->k,
                             .W = p.B,
                             .forward = floats ? iso_arena_alloc(&a, floats, sizeof(float)) : NULL};
            iso_pack(&p.packed);
        }
        if (!p.A || !p.B || !p.C) {
            iso_arena_free(&a);
            return 5;
        }
        double ours = gflops(&p, best_seconds(run_ours, &p, budget));
        double rival = gflops(&p, best_seconds(run_cblas, &p, budget));
        iso_bench_row(o, r->name, ours, "GFLOP/s", "cblas_sgemm", rival, ours / rival, r->target);
        iso_arena_free(&a);
    }
    return 0;
}

typedef struct {
    iso_attention a;
    float *o, *log_sum, *dq, *scratch;
} attention_work;

static void run_attention(void *ctx)
{
    attention_work *w = ctx;
    iso_attention_forward(&w->a, w->o, w->a.d, w->log_sum, w->scratch);
}

static void run_attention_backward(void *ctx)
{
    attention_work *w = ctx;
    size_t all = w->a.n * w->a.d;
    iso_attention_backward(&w->a, w->log_sum, w->o, w->a.d, w->dq, w->a.d, w->dq + all,
                           w->dq + 2 * all, w->a.d, w->scratch);
}

static int attentions(const iso_bench_options *o, double peak, double budget)
{
    static const size_t tokens[] = {65, 197};
    for (size_t i = 0; i < 2; i++) {
        enum { D = 64 };
        size_t n = tokens[i];
        iso_arena a = {0};
        float *qkv = numbers(&a, 3 * n * D);
        attention_work w = {.o = numbers(&a, n * D),
                            .log_sum = numbers(&a, n),
                            .dq = numbers(&a, 3 * n * D),
                            .scratch = numbers(&a, 2 * iso_attention_scratch(n, n))};
        if (!qkv || !w.o || !w.log_sum || !w.dq || !w.scratch) {
            iso_arena_free(&a);
            return 5;
        }
        w.a = (iso_attention){.nq = n,
                              .n = n,
                              .d = D,
                              .scale = 0.125F,
                              .q = qkv,
                              .k = qkv + n * D,
                              .v = qkv + 2 * n * D,
                              .ldq = D,
                              .ldkv = D};
        double unit = 2e-9 * (double)n * (double)n * D; /* one of its products */
        char name[64];
        double f = 2.0 * unit / best_seconds(run_attention, &w, budget);
        snprintf(name, sizeof name, "attention forward, %zu tokens x 64", n);
        iso_bench_row(o, name, f, "GFLOP/s", "cblas_sgemm peak", peak, f / peak, 0.7);
        double b = 5.0 * unit / best_seconds(run_attention_backward, &w, budget);
        snprintf(name, sizeof name, "attention backward, %zu tokens x 64", n);
        iso_bench_row(o, name, b, "GFLOP/s", "cblas_sgemm peak", peak, b / peak, 0.7);
        iso_arena_free(&a);
    }
    return 0;
}

typedef struct {
    size_t rows, dim;
    const float *x, *d;
    float *y, *g;
    iso_norm norm;
} pass_work;

static void run_gelu(void *ctx)
{
    const pass_work *w = ctx;
    iso_gelu_forward(w->rows * w->dim, w->x, w->y);
}

static void run_gelu_backward(void *ctx)
{
    const pass_work *w = ctx;
    iso_gelu_backward(w->rows * w->dim, w->x, w->d, w->y, w->g);
}

static void run_norm(void *ctx)
{
    const pass_work *w = ctx;
    iso_norm_forward(&w->norm, w->rows, w->x, w->dim, w->y);
}

static void run_norm_backward(void *ctx)
{
    const pass_work *w = ctx;
    iso_norm_backward(&w->norm, w->rows, w->x, w->d, NULL, w->y, w->dim);
}

/* Elementwise passes: time a number, without a rival. */
static int passes(const iso_bench_options *o, double budget)
{
    static const struct {
        const char *name;
        size_t dim;
        work_fn *run;
    } rows[] = {{"gelu forward, 394x768", 768, run_gelu},
                {"gelu backward, 394x768", 768, run_gelu_backward},
                {"layer norm forward, 394x192", 192, run_norm},
                {"layer norm backward, 394x192", 192, run_norm_backward}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        enum { ROWS = 394 };
        size_t n = ROWS * rows[i].dim;
        iso_arena a = {0};
        pass_work w = {.rows = ROWS,
                       .dim = rows[i].dim,
                       .x = numbers(&a, n),
                       .d = numbers(&a, n + 1),
                       .y = numbers(&a, n),
                       .g = numbers(&a, n)};
        w.norm = (iso_norm){.dim = w.dim, .w = w.x, .b = w.d, .eps = 1e-6F};
        if (!w.x || !w.d || !w.y || !w.g) {
            iso_arena_free(&a);
            return 5;
        }
        double s = best_seconds(rows[i].run, &w, budget);
        iso_bench_row(o, rows[i].name, 1e9 * s / (double)n, "ns/number", NULL, NONE, NONE, NONE);
        iso_arena_free(&a);
    }
    return 0;
}

static int run(const iso_bench_options *o)
{
    double budget = o->full ? 1.0 : 0.25;
    iso_arena a = {0};
    iso_gemm(false, false, 1, 1, 1, 1.0F, &(float){1.0F}, 1, &(float){1.0F}, 1, 0.0F, &(float){0},
             1);
    openblas_set_num_threads(1);
    double peak = peak_of(&a, budget);
    iso_arena_free(&a);
    if (isnan(peak))
        return 5;
    iso_bench_row(o, "cblas_sgemm peak, 1024x1024x1024", peak, "GFLOP/s", NULL, NONE, NONE, NONE);
    int code = products(o, budget);
    if (!code)
        code = attentions(o, peak, budget);
    if (!code)
        code = passes(o, budget);
    return code;
}

extern const iso_bench iso_bench_kernels;
const iso_bench iso_bench_kernels = {"kernels", "products, attention and elementwise passes", run};
