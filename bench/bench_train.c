/* A LoRA step of a ViT-Ti/16 shape, batch 16, rank 8 on all six linears, random weights and images,
 * no files: samples a second, and the share of the measured peak of cblas_sgemm that the necessary
 * work makes (specs/performance.md 4.1: frozen products once forward and once back, attention,
 * LoRA's gradients; nothing recomputed counts). */
#include "bench/bench.h"

#include "core/mem.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "nn/backbone/random.h"
#include "nn/train/loop.h"

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

enum { IMAGES = 32, BATCH = 16, RANK = 8, CLASSES = 10 };

typedef struct {
    const char *name;
    iso_random_vit shape;
    bool full;
} config;

static const config CONFIGS[] = {
    {"ViT-Ti/16 at 224",
     {.depth = 12, .dim = 192, .heads = 3, .mlp = 768, .image_size = 224, .patch = 16, .seed = 1},
     false},
    {"ViT-Ti/8 at 64, 6 blocks",
     {.depth = 6, .dim = 192, .heads = 3, .mlp = 768, .image_size = 64, .patch = 8, .seed = 1},
     false},
    {"ViT-B/16 at 224",
     {.depth = 12, .dim = 768, .heads = 12, .mlp = 3072, .image_size = 224, .patch = 16, .seed = 1},
     true},
};

/* GFLOP/s of cblas_sgemm on one thread, best of a few. */
static double sgemm_peak(void)
{
    enum { N = 1024 };
    float *A = iso_alloc_aligned((size_t)3 * N * N, sizeof *A);
    if (!A)
        return NONE;
    float *B = A + (size_t)N * N, *C = B + (size_t)N * N;
    iso_rng r = iso_rng_make(1, ISO_RNG_BENCH, 0);
    for (size_t i = 0; i < (size_t)3 * N * N; i++)
        A[i] = (float)(iso_rng_uniform(&r) - 0.5);
    iso_gemm(false, false, 1, 1, 1, 1.0F, A, 1, B, 1, 0.0F, C, 1); /* sets BLAS to one thread */
    openblas_set_num_threads(1);
    double best = INFINITY;
    for (int i = 0; i < 12; i++) {
        double t = thread_seconds();
        cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, N, N, N, 1.0F, A, N, B, N, 0.0F, C, N);
        best = fmin(best, thread_seconds() - t);
    }
    free(A);
    return 2e-9 * N * N * N / best;
}

/* Necessary floating-point operations of one sample's step. */
static double sample_flops(const iso_random_vit *s)
{
    double d = (double)s->dim, f = (double)s->mlp, depth = (double)s->depth;
    double grid = (double)(s->image_size / s->patch), t = grid * grid + 1.0;
    double frozen = 2.0 * t * (4.0 * d * d + 2.0 * d * f);
    double attention = 2.0 * 2.0 * t * t * d;
    double thin = 2.0 * RANK * t * (4.0 * 2.0 * d + 2.0 * (d + f)); /* one of the four products */
    /* The last block's queries, output and mlp are needed for one token of t. */
    double last = 2.0 * (2.0 * d * d * (t + 1.0) + 2.0 * d * f);
    double last_attention = 2.0 * 2.0 * t * d;
    double forward = (depth - 1.0) * (frozen + attention) + last + last_attention;
    double first_dx = 2.0 * t * 3.0 * d * d; /* not needed below the first adapter */
    double backward = (depth - 1.0) * (frozen + 2.0 * attention) + last + 2.0 * last_attention -
                      first_dx + 4.0 * ((depth - 1.0) * thin + thin / 3.0);
    return forward + backward;
}

static void random_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const iso_random_vit *s = ctx;
    size_t image = 3 * s->image_size * s->image_size;
    (void)draw;
    for (size_t i = 0; i < n; i++) {
        uint32_t x = idx[i] * 2654435761U + 1U;
        for (size_t k = 0; k < image; k++) {
            x = x * 1664525U + 1013904223U;
            out[i * image + k] = (float)(x >> 8) * (1.0F / 8388608.0F) - 1.0F;
        }
    }
}

/* Seconds of the fastest step (of one thread's time, or by the clock with several); bytes the
 * training holds. */
static iso_err time_steps(const config *c, int threads, bool full, double *seconds, double *bytes,
                          iso_error *e)
{
    static const char *const names[CLASSES] = {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"};
    iso_backbone *b = NULL;
    iso_adapter *a = NULL;
    iso_training *t = NULL;
    iso_linear_head head = {0};
    int labels[IMAGES];
    for (int i = 0; i < IMAGES; i++)
        labels[i] = i % CLASSES;
    iso_set_threads(threads);
    iso_adapter_options ao = {.kind = "lora", .rank = RANK, .alpha = 16.0, .seed = 1};
    iso_random_vit shape = c->shape;
    iso_err err = iso_backbone_random(&b, &shape, e);
    if (err || (err = iso_adapter_create(&a, b, &ao, e)) ||
        (err = iso_linear_init(&head, CLASSES, c->shape.dim, names, e)))
        goto done;
    for (size_t i = 0; i < CLASSES * c->shape.dim; i++)
        head.W[i] = (float)((i * 7919) % 13) * 0.01F;
    iso_training_setup s = {.backbone = b,
                            .adapter = a,
                            .head = &head,
                            .train = {IMAGES, random_pixels, &shape, labels},
                            .options = iso_train_defaults()};
    s.options.steps = 1000;
    s.options.batch = BATCH;
    s.options.is_quiet = true;
    if ((err = iso_training_open(&t, &s, e)))
        goto done;
    *bytes = (double)iso_training_bytes(t);
    *seconds = INFINITY;
    double begin = iso_bench_now(), limit = full ? 10.0 : 2.5;
    for (int i = 0; i < 3 || iso_bench_now() - begin < limit; i++) {
        double before = threads == 1 ? thread_seconds() : iso_bench_now();
        if ((err = iso_training_step(t, 1, NULL, e)))
            goto done;
        double after = threads == 1 ? thread_seconds() : iso_bench_now();
        *seconds = fmin(*seconds, after - before);
    }
done:
    iso_training_close(t);
    iso_linear_free(&head);
    iso_adapter_close(a);
    iso_backbone_close(b);
    return err;
}

static int run(const iso_bench_options *o)
{
    static const int threads[] = {1, 2};
    double peak = sgemm_peak();
    int before = iso_threads();
    iso_gemm_kernel kernel = iso_gemm_current();
    iso_error e = {0};
    iso_err err = isnan(peak) ? ISO_ERR_MEMORY : ISO_OK;
    iso_bench_row(o, "cblas_sgemm peak, 1 thread", peak, "GFLOP/s", NULL, NONE, NONE, NONE);
    for (size_t i = 0; !err && i < sizeof CONFIGS / sizeof *CONFIGS; i++) {
        const config *c = &CONFIGS[i];
        double one = NONE, bytes = NONE;
        if (c->full && !o->full)
            continue;
        for (size_t k = 0; !err && k < 2; k++) {
            double seconds = NONE, plain = NONE;
            char name[96];
            err = time_steps(c, threads[k], o->full, &seconds, &bytes, &e);
            if (err)
                break;
            double rate = BATCH / seconds, flops = 1e-9 * sample_flops(&c->shape) * rate;
            snprintf(name, sizeof name, "LoRA step, %s, %d thread%s", c->name, threads[k],
                     threads[k] > 1 ? "s" : "");
            iso_bench_row(o, name, rate, "samples/s", NULL, NONE, NONE, NONE);
            double limit = peak * threads[k];
            snprintf(name, sizeof name, "  its necessary work, %d x sgemm peak", threads[k]);
            iso_bench_row(o, name, flops, "GFLOP/s", "cblas_sgemm peak", limit, flops / limit,
                          0.78);
            if (k == 0) {
                one = seconds;
                if (kernel != ISO_GEMM_CBLAS) {
                    iso_gemm_select(ISO_GEMM_CBLAS);
                    err = time_steps(c, 1, o->full, &plain, &bytes, &e);
                    iso_gemm_select(kernel);
                    iso_bench_row(o, "  gain of our kernel in the step", rate, "samples/s",
                                  "the same on cblas_sgemm", BATCH / plain, plain / seconds, NONE);
                }
            } else {
                iso_bench_row(o, "  scaling from 1 to 2 threads", one / seconds, "x", NULL, NONE,
                              NONE, 1.85);
                iso_bench_row(o, "  memory beside the backbone", bytes / 1048576.0, "MiB", NULL,
                              NONE, NONE, NONE);
            }
        }
    }
    iso_set_threads(before);
    if (err && e.text[0])
        fprintf(stderr, "isofed bench train: %s\n", e.text);
    return err ? iso_exit_code(err) : 0;
}

extern const iso_bench iso_bench_train;
const iso_bench iso_bench_train = {"train", "LoRA steps of ViT shapes against the sgemm peak", run};
