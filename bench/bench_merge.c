/* Merging against the published algorithm (Marczak et al. 2025) with LAPACK's float32 SVD, written
 * plainly here: Iso-C and Iso-CTS of whole matrices, many layers, all cores; Iso-CTS of LoRA
 * factors against the dense route (specs/performance.md 5 and 10, DESIGN 9).
 *
 * Ours goes through the front door, float32 in and out, one layer a core. The rival takes one layer
 * after the other; LAPACK gets all cores or one, whichever was faster. Contenders in turn, best
 * time of each. Rows *_cpu compare processor time, one core against one core. Errors: relative
 * Frobenius against the same formula in double on the inputs before they were rounded to float32.
 * Matrices: planted low rank with decay plus full-rank noise. */
#include "bench/bench.h"

#include "core/parallel.h"
#include "core/rng.h"
#include "merge/layer.h"
#include "merge/merge.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define COMMON_FRACTION 0.8

static void *need(size_t n, size_t bytes)
{
    void *p = iso_calloc(n, bytes);
    if (!p)
        abort(); /* a bench has nobody to report to */
    return p;
}

/* ---- the published algorithm in float32 ---- */
typedef struct {
    size_t q;
    float *U, *S, *Vt; /* (m, q), q, (q, n) row-major */
} svd_f32;

static svd_f32 svd(size_t m, size_t n, const float *A)
{
    svd_f32 r = {.q = m < n ? m : n};
    float *copy = need(m * n, sizeof *copy);
    r.U = need(m * r.q, sizeof *r.U);
    r.S = need(r.q, sizeof *r.S);
    r.Vt = need(r.q * n, sizeof *r.Vt);
    memcpy(copy, A, m * n * sizeof *copy);
    /* column-major, A is its transpose: LAPACK's U is our V */
    if (LAPACKE_sgesdd(LAPACK_COL_MAJOR, 'S', (int)n, (int)m, copy, (int)n, r.S, r.Vt, (int)n, r.U,
                       (int)r.q))
        abort();
    free(copy);
    return r;
}

static void svd_free(svd_f32 *s)
{
    free(s->U);
    free(s->S);
    free(s->Vt);
}

static void product(size_t m, size_t n, size_t k, float alpha, const float *A, size_t lda,
                    const float *B, float *C)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (int)m, (int)n, (int)k, alpha, A,
                (int)lda, B, (int)n, 0, C, (int)n);
}

static float *sum_of(const float *const *D, size_t T, size_t count)
{
    float *M = need(count, sizeof *M);
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < count; i++)
            M[i] += D[t][i];
    return M;
}

static void published_iso_c(const float *const *D, size_t T, size_t m, size_t n, float *out)
{
    float *M = sum_of(D, T, m * n);
    svd_f32 s = svd(m, n, M);
    double sum = 0;
    for (size_t i = 0; i < s.q; i++)
        sum += (double)s.S[i];
    product(m, n, s.q, (float)(sum / (double)s.q), s.U, s.q, s.Vt, out);
    svd_free(&s);
    free(M);
}

static float *polar_f32(size_t m, size_t n, const float *A)
{
    svd_f32 s = svd(m, n, A);
    float *P = need(m * n, sizeof *P);
    product(m, n, s.q, 1, s.U, s.q, s.Vt, P);
    svd_free(&s);
    return P;
}

/* q: number of directions (min(m, n), or the rank of LoRA sums in the rank convention). */
static void published_iso_cts(const float *const *D, size_t T, size_t m, size_t n, size_t q,
                              float *out)
{
    size_t p = (size_t)rint(((double)q - floor((double)q * COMMON_FRACTION)) / (double)T),
           k = q - p * T;
    float *M = sum_of(D, T, m * n), *U = need(m * q, sizeof *U), *V = need(q * n, sizeof *V);
    float *W = need(k * n, sizeof *W), *X = need(m * n, sizeof *X);
    svd_f32 s = svd(m, n, M);
    double sum = 0;
    for (size_t j = 0; j < k; j++) {
        sum += (double)s.S[j];
        for (size_t i = 0; i < m; i++)
            U[i * q + j] = s.U[i * s.q + j];
    }
    memcpy(V, s.Vt, k * n * sizeof *V);
    for (size_t t = 0; t < T; t++) {
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (int)k, (int)n, (int)m, 1, s.U,
                    (int)s.q, D[t], (int)n, 0, W, (int)n);
        product(m, n, k, -1, s.U, s.q, W, X);
        for (size_t i = 0; i < m * n; i++)
            X[i] += D[t][i];
        svd_f32 own = svd(m, n, X);
        for (size_t j = 0; j < p; j++) {
            sum += (double)own.S[j];
            for (size_t i = 0; i < m; i++)
                U[i * q + k + t * p + j] = own.U[i * own.q + j];
        }
        memcpy(V + (k + t * p) * n, own.Vt, p * n * sizeof *V);
        svd_free(&own);
    }
    float *Up = polar_f32(m, q, U), *Vp = polar_f32(q, n, V);
    product(m, n, q, (float)(sum / (double)q), Up, q, Vp, out);
    svd_free(&s);
    free(M), free(U), free(V), free(W), free(X), free(Up), free(Vp);
}

/* ---- inputs ---- */
typedef struct {
    size_t m, n, T;
    double **exact;  /* T */
    float **rounded; /* T */
} inputs;

static void fill_normal(double *x, size_t n, uint64_t stream)
{
    iso_rng r = iso_rng_make(1, ISO_RNG_BENCH, stream);
    for (size_t i = 0; i < n; i++)
        x[i] = iso_rng_normal(&r);
}

/* Variance one as well, at a tenth of the cost: noise of whole matrices. */
static void fill_uniform(double *x, size_t n, uint64_t stream)
{
    iso_rng r = iso_rng_make(1, ISO_RNG_BENCH, stream);
    for (size_t i = 0; i < n; i++)
        x[i] = sqrt(12.0) * (iso_rng_uniform(&r) - 0.5);
}

static inputs make_inputs(size_t m, size_t n, size_t T)
{
    inputs in = {m, n, T, need(T, sizeof(double *)), need(T, sizeof(float *))};
    size_t k = (m < n ? m : n) / 4;
    double *L = need(m * k, sizeof *L), *R = need(k * n, sizeof *R);
    for (size_t t = 0; t < T; t++) {
        double *D = in.exact[t] = need(m * n, sizeof *D);
        float *F = in.rounded[t] = need(m * n, sizeof *F);
        fill_uniform(D, m * n, 3 * t);
        fill_normal(L, m * k, 3 * t + 1);
        fill_normal(R, k * n, 3 * t + 2);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < k; j++)
                L[i * k + j] *=
                    pow(10, -1.5 * (double)j / (double)(k - 1)) / sqrt(sqrt((double)(m * n)));
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, m, n, k, 1.0, L, k, R, n, 0.02 / sqrt((double)m), D, n);
        for (size_t i = 0; i < m * n; i++)
            F[i] = (float)D[i];
    }
    free(L), free(R);
    return in;
}

static void free_inputs(inputs *in)
{
    for (size_t t = 0; t < in->T; t++)
        free(in->exact[t]), free(in->rounded[t]);
    free(in->exact), free(in->rounded);
}

/* ---- ours ---- */
typedef struct {
    char (*names)[32];
    iso_named_tensor *tensors; /* T x layers */
    iso_dense_input *list;
} views;

/* Every layer sees the same matrices: the work is the same and the inputs are drawn once. */
static views make_views(const inputs *in, size_t layers)
{
    views v = {need(layers, 32), need(in->T * layers, sizeof(iso_named_tensor)),
               need(in->T, sizeof(iso_dense_input))};
    for (size_t l = 0; l < layers; l++)
        snprintf(v.names[l], 32, "l%03zu.weight", l);
    for (size_t t = 0; t < in->T; t++) {
        v.list[t] = (iso_dense_input){"task", v.tensors + t * layers, layers};
        for (size_t l = 0; l < layers; l++)
            v.tensors[t * layers + l] =
                (iso_named_tensor){v.names[l], {ISO_F32, 2, {in->m, in->n}, in->rounded[t]}};
    }
    return v;
}

static void free_views(views *v)
{
    free(v->names), free(v->tensors), free(v->list);
}

static double ours_dense(const inputs *in, const char *method, size_t layers, float *first)
{
    views v = make_views(in, layers);
    iso_merge_options o = iso_merge_defaults(iso_method_find(method));
    o.is_reference = true; /* every direction counts, as published */
    iso_merged_dense out;
    double start = iso_bench_now();
    iso_error e;
    if (iso_merge_dense(v.list, in->T, NULL, ISO_F32, &o, &out, &e)) {
        fprintf(stderr, "isofed bench: %s\n", e.text);
        abort();
    }
    double seconds = iso_bench_now() - start;
    memcpy(first, out.tensors[0].view.data, in->m * in->n * sizeof *first);
    iso_merged_dense_free(&out);
    free_views(&v);
    return seconds / (double)layers;
}

static double rival_dense(const inputs *in, bool is_cts, int threads, float *out)
{
    const float *const *D = (const float *const *)in->rounded;
    omp_set_num_threads(threads); /* the OpenMP build asks this at every call */
    openblas_set_num_threads(threads);
    double start = iso_bench_now();
    if (is_cts)
        published_iso_cts(D, in->T, in->m, in->n, in->m < in->n ? in->m : in->n, out);
    else
        published_iso_c(D, in->T, in->m, in->n, out);
    double seconds = iso_bench_now() - start;
    omp_set_num_threads(1);
    openblas_set_num_threads(1);
    return seconds;
}

/* The formula in double through dgesdd on unrounded inputs. */
static void reference_dense(const inputs *in, const char *method, double *out)
{
    const iso_method *m = iso_method_find(method);
    iso_method_args args;
    iso_decisions decisions;
    iso_arena scratch = {0};
    iso_tensor *tensors = need(in->T, sizeof *tensors);
    iso_method_defaults(m, &args);
    args.convention = ISO_CONVENTION_DENSE;
    args.route = ISO_WISH_SVD;
    for (size_t t = 0; t < in->T; t++)
        tensors[t] = (iso_tensor){ISO_F64, 2, {in->m, in->n}, in->exact[t]};
    iso_deltas d = {.T = in->T,
                    .m = in->m,
                    .n = in->n,
                    .views = tensors,
                    .rank_tol = iso_rank_tol(in->m, in->n, true),
                    .full_q = in->m < in->n ? in->m : in->n};
    if (iso_layer_dense(m, &args, &d, out, &decisions, &scratch, NULL))
        abort();
    iso_arena_free(&scratch);
    free(tensors);
}

/* Of all threads of the process: what other load of the machine disturbs least. */
static double processor_now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static double error_of(const float *x, const double *y, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)x[i] - y[i];
        diff += d * d;
        norm += y[i] * y[i];
    }
    return sqrt(diff / norm);
}

typedef struct {
    const char *name, *method;
    size_t m, n, T;
    size_t layers; /* for ours; the rival's time a layer does not depend on it */
    int reps;
    double speed_target, error_target;
    bool is_full; /* only with --full */
} dense_case;

static void run_dense(const iso_bench_options *o, const dense_case *c)
{
    inputs in = make_inputs(c->m, c->n, c->T);
    float *mine = need(c->m * c->n, sizeof *mine), *theirs = need(c->m * c->n, sizeof *theirs);
    double *exact = need(c->m * c->n, sizeof *exact), best = HUGE_VAL, rival = HUGE_VAL;
    double work = HUGE_VAL, rival_work = HUGE_VAL; /* processor seconds a layer */
    bool is_cts = strcmp(c->method, "iso_cts") == 0;
    for (int r = 0; r < c->reps; r++) {
        double start = processor_now();
        rival = fmin(rival, rival_dense(&in, is_cts, 1, theirs));
        rival_work = fmin(rival_work, processor_now() - start);
        start = processor_now();
        best = fmin(best, ours_dense(&in, c->method, c->layers, mine));
        work = fmin(work, (processor_now() - start) / (double)c->layers);
        if (o->full && iso_threads() > 1)
            rival = fmin(rival, rival_dense(&in, is_cts, iso_threads(), theirs));
    }
    char name[96];
    snprintf(name, sizeof name, "%s_time", c->name);
    iso_bench_row(o, name, best * 1e3, "ms/layer", "published, sgesdd", rival * 1e3, rival / best,
                  c->speed_target);
    snprintf(name, sizeof name, "%s_cpu", c->name);
    iso_bench_row(o, name, work * 1e3, "ms/layer", "published, sgesdd", rival_work * 1e3,
                  rival_work / work, (double)NAN);
    reference_dense(&in, c->method, exact);
    double e = error_of(mine, exact, c->m * c->n), e_rival = error_of(theirs, exact, c->m * c->n);
    snprintf(name, sizeof name, "%s_error", c->name);
    iso_bench_row(o, name, e, "relative", "published, sgesdd", e_rival, e_rival / e,
                  c->error_target);
    free(mine), free(theirs), free(exact);
    free_inputs(&in);
}

/* ---- LoRA factors ---- */
static void run_factors(const iso_bench_options *o, const char *name, size_t m, size_t n, size_t T,
                        size_t r, double target)
{
    enum { REPS = 20 };
    iso_lora_layer *layers = need(T, sizeof *layers);
    const iso_lora_layer **list = need(T, sizeof(const iso_lora_layer *));
    float **dense = need(T, sizeof(float *)), *theirs = need(m * n, sizeof *theirs);
    double *x = need((m > n ? m : n) * r, sizeof *x), *exact = need(m * n, sizeof *exact);
    iso_tensor *tensors = need(T, sizeof *tensors);
    for (size_t t = 0; t < T; t++) {
        layers[t] = (iso_lora_layer){
            "l", m, n, r, 1.0, need(r * n, sizeof(float)), need(m * r, sizeof(float))};
        fill_normal(x, r * n, 1000 + 2 * t);
        for (size_t i = 0; i < r * n; i++)
            layers[t].A[i] = (float)x[i];
        fill_normal(x, m * r, 1001 + 2 * t);
        for (size_t i = 0; i < m * r; i++)
            layers[t].B[i] = (float)x[i];
        list[t] = &layers[t];
        dense[t] = need(m * n, sizeof(float));
        double *D = need(m * n, sizeof *D);
        for (size_t i = 0; i < m; i++)
            for (size_t k = 0; k < r; k++)
                for (size_t j = 0; j < n; j++)
                    D[i * n + j] += (double)layers[t].B[i * r + k] * (double)layers[t].A[k * n + j];
        tensors[t] = (iso_tensor){ISO_F64, 2, {m, n}, D};
    }
    const iso_method *method = iso_method_find("iso_cts");
    iso_method_args args;
    iso_decisions decisions;
    iso_arena scratch = {0};
    iso_method_defaults(method, &args);
    args.convention = ISO_CONVENTION_RANK;
    iso_lora_stack stack = {.T = T, .m = m, .n = n, .layers = list};
    iso_layer_factors f;
    double best = HUGE_VAL, rival = HUGE_VAL;
    for (int rep = 0; rep < REPS; rep++) {
        double start = iso_bench_now();
        iso_arena_reset(&scratch);
        if (iso_layer_merge_factors(method, &args, &stack, &f, &decisions, &scratch, NULL))
            abort();
        best = fmin(best, iso_bench_now() - start);
        if (rep % 10 == 0) { /* one core each; the products are part of the dense route */
            start = iso_bench_now();
            for (size_t t = 0; t < T; t++)
                product(m, n, r, 1, layers[t].B, r, layers[t].A, dense[t]);
            published_iso_cts((const float *const *)dense, T, m, n, T * r, theirs);
            rival = fmin(rival, iso_bench_now() - start);
        }
    }
    char row[96];
    snprintf(row, sizeof row, "%s_time", name);
    iso_bench_row(o, row, best * 1e3, "ms/layer", "published on products, sgesdd", rival * 1e3,
                  rival / best, target);

    double *mine = need(m * n, sizeof *mine), diff = 0, norm = 0;
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, m, n, f.product.c, 1.0, f.product.left, m,
                f.product.right, n, 0.0, mine, n);
    iso_deltas d = {.T = T,
                    .m = m,
                    .n = n,
                    .views = tensors,
                    .rank_tol = iso_rank_tol(m, n, true),
                    .full_q = m < n ? m : n};
    iso_arena more = {0};
    args.route = ISO_WISH_SVD;
    if (iso_layer_dense(method, &args, &d, exact, &decisions, &more, NULL))
        abort();
    for (size_t i = 0; i < m * n; i++) {
        diff += (mine[i] - exact[i]) * (mine[i] - exact[i]);
        norm += exact[i] * exact[i];
    }
    double e = sqrt(diff / norm), e_rival = error_of(theirs, exact, m * n);
    snprintf(row, sizeof row, "%s_error", name);
    iso_bench_row(o, row, e, "relative", "published on products, sgesdd", e_rival, e_rival / e,
                  1e-5 / 1e-10);
    iso_arena_free(&scratch);
    iso_arena_free(&more);
    for (size_t t = 0; t < T; t++) {
        free(layers[t].A), free(layers[t].B), free(dense[t]);
        free((void *)(uintptr_t)tensors[t].data);
    }
    free(layers), free(list), free(dense), free(theirs), free(x), free(exact), free(tensors),
        free(mine);
}

static int run(const iso_bench_options *o)
{
    static const dense_case cases[] = {
        {"iso_c_768x768_T8", "iso_c", 768, 768, 8, 4, 3, 1.7, 1 / 0.3, false},
        {"iso_c_768x3072_T8", "iso_c", 768, 3072, 8, 2, 2, 3.0, 1 / 0.3, false},
        {"iso_cts_768x768_T8", "iso_cts", 768, 768, 8, 2, 2, 8.0, 10.0, false},
        {"iso_cts_768x768_T20", "iso_cts", 768, 768, 20, 2, 2, 11.0, 10.0, true},
        {"iso_cts_768x3072_T8", "iso_cts", 768, 3072, 8, 2, 2, 12.0, 10.0, true},
        {"iso_c_1024x4096_T4", "iso_c", 1024, 4096, 4, 2, 2, 3.0, 1 / 0.3, true},
        {"iso_cts_1024x4096_T4", "iso_cts", 1024, 4096, 4, 2, 1, 12.0, 10.0, true},
    };
    iso_set_threads(0);
    iso_blas_serial();
    run_factors(o, "iso_cts_lora_768x768_T8_r16", 768, 768, 8, 16, 120.0);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        if (o->full || !cases[i].is_full)
            run_dense(o, &cases[i]);
    return 0;
}

const iso_bench iso_bench_merge = {
    .name = "merge",
    .help = "Iso-C and Iso-CTS against the published algorithm with LAPACK float32",
    .run = run,
};
