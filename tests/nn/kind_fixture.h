/* A small random ViT, pixels and a loss, for tests of adapter kinds. */
#ifndef ISO_TESTS_KIND_FIXTURE_H
#define ISO_TESTS_KIND_FIXTURE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/parallel.h"
#include "core/rng.h"
#include "nn/backbone/random.h"
#include "nn/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { IMAGES = 9 };

typedef struct {
    iso_backbone *backbone;
    float *pixels; /* (IMAGES, sample) */
    size_t sample;
} fixture;

static inline void fixture_open(fixture *f)
{
    iso_error e = {0};
    iso_random_vit o = {.depth = 3, .dim = 48, .heads = 3, .mlp = 96, .image_size = 12, .patch = 4};
    if (iso_backbone_random(&f->backbone, &o, &e))
        fail_msg("%s", e.text);
    f->sample = f->backbone->shape.channels * 12 * 12;
    f->pixels = iso_calloc(IMAGES * f->sample, sizeof *f->pixels);
    iso_rng r = iso_rng_make(6, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < IMAGES * f->sample; i++)
        f->pixels[i] = (float)iso_rng_normal(&r);
}

static inline void fixture_close(fixture *f)
{
    iso_backbone_close(f->backbone);
    free(f->pixels);
}

static inline iso_adapter *fixture_adapter(const fixture *f, const iso_adapter_options *o)
{
    iso_adapter *a = NULL;
    iso_error e = {0};
    if (iso_adapter_create(&a, f->backbone, o, &e))
        fail_msg("%s", e.text);
    return a;
}

static inline void fixture_shake(iso_adapter *a, double size)
{
    iso_rng r = iso_rng_make(4, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < a->param_count; i++)
        a->params[i] += (float)(size * iso_rng_normal(&r));
}

static inline void fixture_give(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const fixture *f = ctx;
    (void)draw;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * f->sample, f->pixels + idx[i] * f->sample, f->sample * sizeof *out);
}

static inline float *fixture_features(const fixture *f, const iso_adapter *a)
{
    iso_error e = {0};
    iso_model *m = NULL;
    float *out = iso_calloc(IMAGES * f->backbone->shape.dim, sizeof *out);
    if (iso_model_open(&m, f->backbone, a, false, &e) ||
        iso_model_features(m, f->pixels, IMAGES, out, &e))
        fail_msg("%s", e.text);
    iso_model_close(m);
    return out;
}

/* Sum over features of w f, with fixed weights w. */
static inline double fixture_loss(void *ctx, size_t first, size_t n, const float *out, float *dout,
                                  float *extra)
{
    size_t d = *(const size_t *)ctx;
    double s = 0.0;
    (void)extra;
    for (size_t i = 0; i < n * d; i++) {
        double w = (double)((first * d + i) % 7) - 2.9;
        dout[i] = (float)w;
        s += w * (double)out[i];
    }
    return s;
}

/* Loss and gradient (new array); with kept prefix and first pass, or without. */
static inline float *fixture_gradient(const fixture *f, const iso_adapter *a, bool is_kept,
                                      double *loss)
{
    iso_error e = {0};
    iso_model *m = NULL;
    iso_work *w = NULL;
    iso_prefix prefix = {0};
    iso_first_pass first = {0};
    size_t d = f->backbone->shape.dim;
    iso_source s = {.n = IMAGES, .pixels = fixture_give, .ctx = (void *)(uintptr_t)f};
    if (iso_model_open(&m, f->backbone, a, true, &e) || iso_work_open(&w, m, 1, &e) ||
        (is_kept && (iso_model_prefix(m, &s, a->lowest_block, SIZE_MAX, &prefix, &e) ||
                     iso_model_first_pass(m, &s, SIZE_MAX, &first, &e))))
        fail_msg("%s", e.text);
    s.prefix = &prefix;
    s.first_pass = &first;
    size_t items = (IMAGES + iso_model_micro_batch(m) - 1) / iso_model_micro_batch(m);
    float *grads = iso_calloc(items * a->param_count, sizeof *grads);
    double *losses = iso_calloc(items, sizeof *losses);
    uint32_t idx[IMAGES];
    for (uint32_t i = 0; i < IMAGES; i++)
        idx[i] = i;
    iso_gradient_job job = {.source = &s,
                            .idx = idx,
                            .n = IMAGES,
                            .loss = fixture_loss,
                            .loss_ctx = &d,
                            .grads = grads,
                            .stride = a->param_count,
                            .losses = losses};
    *loss = iso_model_gradient(m, w, &job);
    free(losses);
    iso_prefix_free(&prefix);
    iso_first_pass_free(&first);
    iso_work_close(w);
    iso_model_close(m);
    return grads;
}

/* The gradient along a random direction against the difference of losses over about `step` a
 * parameter: central, Richardson. */
static inline void fixture_check_gradient(const fixture *f, iso_adapter *a, double step,
                                          double allowed)
{
    double loss;
    float *g = fixture_gradient(f, a, false, &loss);
    float *at = iso_calloc(a->param_count, sizeof *at), *v = iso_calloc(a->param_count, sizeof *v);
    memcpy(at, a->params, a->param_count * sizeof *at);
    for (uint64_t trial = 0; trial < 3; trial++) {
        double analytic = 0.0, size = 0.0, slope[2];
        iso_rng r = iso_rng_make(12, ISO_RNG_TEST, trial);
        for (size_t i = 0; i < a->param_count; i++) {
            v[i] = (float)iso_rng_normal(&r);
            analytic += (double)v[i] * (double)g[i];
            size += (double)v[i] * (double)v[i];
        }
        for (int k = 0; k < 2; k++) {
            double h = step * sqrt((double)a->param_count / size) * (k ? 0.5 : 1.0), l[2];
            for (int side = 0; side < 2; side++) {
                for (size_t i = 0; i < a->param_count; i++)
                    a->params[i] = at[i] + (float)((side ? -h : h) * (double)v[i]);
                free(fixture_gradient(f, a, false, &l[side]));
            }
            slope[k] = (l[0] - l[1]) / (2.0 * h);
        }
        double numeric = (4.0 * slope[1] - slope[0]) / 3.0;
        if (!(fabs(numeric - analytic) <= allowed * fabs(numeric)))
            fail_msg("trial %d: slope %.6g, by differences %.6g", (int)trial, analytic, numeric);
    }
    memcpy(a->params, at, a->param_count * sizeof *at);
    free(at);
    free(v);
    free(g);
}

/* Features and gradients are the same bits with one thread and with two. */
static inline void fixture_check_threads(const fixture *f, const iso_adapter *a)
{
    double loss[2];
    float *features[2], *grads[2];
    for (int k = 0; k < 2; k++) {
        iso_set_threads(k + 1);
        features[k] = fixture_features(f, a);
        grads[k] = fixture_gradient(f, a, false, &loss[k]);
    }
    iso_set_threads(1);
    assert_memory_equal(features[0], features[1], IMAGES * f->backbone->shape.dim * sizeof(float));
    assert_memory_equal(grads[0], grads[1], a->param_count * sizeof(float));
    assert_true(loss[0] == loss[1]);
    for (int k = 0; k < 2; k++) {
        free(features[k]);
        free(grads[k]);
    }
}

/* Written and read again: the same features to `allowed`, relative. */
static inline iso_adapter *fixture_reread(const fixture *f, const iso_adapter *a, double allowed)
{
    iso_buf config = {0}, tensors = {0};
    iso_error e = {0};
    iso_adapter *again = NULL;
    if (iso_adapter_write_bufs(a, NULL, NULL, &config, &tensors, &e) ||
        iso_adapter_parse(&again, f->backbone, config.data, config.size, tensors.data, tensors.size,
                          "again", &e))
        fail_msg("%s", e.text);
    float *x = fixture_features(f, a), *y = fixture_features(f, again);
    double off = 0.0, norm = 0.0;
    for (size_t i = 0; i < IMAGES * f->backbone->shape.dim; i++) {
        off += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
        norm += (double)x[i] * (double)x[i];
    }
    assert_true(sqrt(off) <= allowed * sqrt(norm));
    free(x);
    free(y);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    return again;
}

/* The line of a refused creation. */
static inline void fixture_refuses(const fixture *f, const iso_adapter_options *o,
                                   const char *expected)
{
    iso_adapter *a = NULL;
    iso_error e = {0};
    assert_int_not_equal(iso_adapter_create(&a, f->backbone, o, &e), ISO_OK);
    if (!strstr(e.text, expected))
        fail_msg("\"%s\" does not say \"%s\"", e.text, expected);
}

#endif
