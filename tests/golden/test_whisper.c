/* The speech encoder against vectors of tests/golden/whisper/make_vectors.py: each sound alone and
 * all of them in one micro-batch, frozen and with an adapter. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "nn/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER "tests/golden/whisper"
enum { SOUNDS = 3 };

static iso_safetensors io;

/* Relative Frobenius error of `got` against tensor `name`.k, of a state name.k.i where i >= 0. */
static double off(const char *name, size_t k, int i, const float *got, size_t n)
{
    char full[48];
    if (i < 0)
        snprintf(full, sizeof full, "%s.%zu", name, k);
    else
        snprintf(full, sizeof full, "%s.%zu.%d", name, k, i);
    const iso_named_tensor *t = iso_safetensors_find(&io, full);
    assert_non_null(t);
    assert_int_equal(iso_tensor_count(&t->view), n);
    double *want = iso_calloc(n, sizeof *want), d = 0.0, s = 0.0;
    assert_int_equal(iso_tensor_to_f64(&t->view, want, NULL), ISO_OK);
    for (size_t j = 0; j < n; j++) {
        d += ((double)got[j] - want[j]) * ((double)got[j] - want[j]);
        s += want[j] * want[j];
    }
    free(want);
    double error = sqrt(d / s);
    printf("  %-20s %.1e\n", full, error);
    return error;
}

/* (mels, frames) of the file into (frames, mels) with the end marked. */
static size_t read_sound(const iso_backbone *b, size_t k, float *out)
{
    char name[16];
    snprintf(name, sizeof name, "mel.%zu", k);
    const iso_tensor *t = &iso_safetensors_find(&io, name)->view;
    size_t mels = t->shape[0], frames = t->shape[1];
    assert_int_equal(mels, b->shape.channels);
    float *x = iso_calloc(mels * frames, sizeof *x);
    assert_int_equal(iso_tensor_to_f32(t, x, NULL), ISO_OK);
    for (size_t i = 0; i < b->shape.sample; i++)
        out[i] = i / mels < frames ? x[i % mels * frames + i / mels] : ISO_NO_FRAME;
    free(x);
    return (frames + 1) / 2;
}

typedef struct {
    size_t sound, floats, seen;
} tap_ctx;

static void tap(void *ctx, size_t index, const float *hidden)
{
    tap_ctx *c = ctx;
    assert_true(off("hidden", c->sound, (int)index, hidden, c->floats) <= 1e-5);
    c->seen++;
}

static void hidden_states_are_those_of_the_formula(void **state)
{
    (void)state;
    iso_backbone *b = NULL;
    iso_error e = {0};
    if (iso_backbone_open(&b, FOLDER "/model", &e))
        fail_msg("%s", e.text);
    const iso_backbone_shape *s = &b->shape;
    float *sample = iso_calloc(s->sample, sizeof *sample);
    for (size_t k = 0; k < SOUNDS; k++) {
        uint32_t length;
        size_t tokens = read_sound(b, k, sample);
        b->family->lengths(b, sample, 1, &length);
        assert_int_equal(length, tokens);
        tap_ctx c = {k, tokens * s->dim, 0};
        iso_pass p = {.weights = b->matrices,
                      .read = s->tokens,
                      .tokens = tokens,
                      .lengths = &length,
                      .tap = tap,
                      .tap_ctx = &c};
        float *work = iso_alloc_aligned(b->family->workspace_floats(b, &p, 1), sizeof *work);
        float *out = iso_calloc(tokens * s->dim, sizeof *out);
        b->family->embed(b, &p, sample, 1, work, b->family->input(b, &p, work));
        b->family->forward(b, &p, 1, work, out);
        assert_int_equal(c.seen, s->depth + 1);
        assert_true(off("last", k, -1, out, tokens * s->dim) <= 1e-5);
        free(work);
        free(out);
    }
    free(sample);
    iso_backbone_close(b);
}

static void features_are_means_over_time(void **state)
{
    (void)state;
    iso_backbone *b = NULL;
    iso_adapter *a = NULL;
    iso_error e = {0};
    if (iso_backbone_open(&b, FOLDER "/model", &e) ||
        iso_adapter_open(&a, b, FOLDER "/adapter", &e))
        fail_msg("%s", e.text);
    size_t sample = b->shape.sample, d = b->shape.dim;
    float *samples = iso_calloc(SOUNDS * sample, sizeof *samples);
    float *features = iso_calloc(SOUNDS * d, sizeof *features);
    for (size_t k = 0; k < SOUNDS; k++)
        read_sound(b, k, samples + k * sample);
    for (int adapted = 0; adapted < 2; adapted++) {
        iso_model *m = NULL;
        if (iso_model_open(&m, b, adapted ? a : NULL, false, &e) ||
            iso_model_features(m, samples, SOUNDS, features, &e))
            fail_msg("%s", e.text);
        for (size_t k = 0; k < SOUNDS; k++)
            assert_true(off(adapted ? "adapted_feature" : "feature", k, -1, features + k * d, d) <=
                        1e-5);
        iso_model_close(m);
    }
    free(samples);
    free(features);
    iso_adapter_close(a);
    iso_backbone_close(b);
}

static int setup(void **state)
{
    (void)state;
    return iso_safetensors_open(&io, FOLDER "/io.safetensors", NULL) ? 1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    iso_safetensors_close(&io);
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(hidden_states_are_those_of_the_formula),
                                       cmocka_unit_test(features_are_means_over_time)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
