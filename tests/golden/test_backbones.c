/* Golden vectors of backbones (golden/backbones): forward, adapted forward, LoRA gradients, made
 * independently in double. Families that are not registered are listed and counted, never skipped
 * silently. Cases of kind "preprocess" belong to another runner. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/fsio.h"
#include "nn/kernel/loss.h"
#include "nn/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHARED_GOLDEN "../shared/golden"
#define SHARED_MODELS "../shared/models"

static size_t passed, not_built; /* for the last line */

static char *golden_folder(void)
{
    const char *env = getenv("ISO_GOLDEN_DIR");
    return iso_path_join(env ? env : SHARED_GOLDEN, "backbones");
}

static double *read_f64(const iso_safetensors *st, const char *name, size_t *count)
{
    const iso_named_tensor *t = iso_safetensors_find(st, name);
    if (!t)
        fail_msg("tensor %s is missing", name);
    *count = iso_tensor_count(&t->view);
    double *out = iso_calloc(*count, sizeof *out);
    if (t->view.dtype == ISO_I64)
        for (size_t i = 0; i < *count; i++) {
            int64_t v;
            memcpy(&v, (const char *)t->view.data + i * sizeof v, sizeof v);
            out[i] = (double)v;
        }
    else
        assert_int_equal(iso_tensor_to_f64(&t->view, out, NULL), ISO_OK);
    return out;
}

/* Relative Frobenius error of `got` against the named tensor. */
static double error_of(const iso_safetensors *st, const char *name, const float *got, size_t n)
{
    size_t count;
    double *want = read_f64(st, name, &count);
    if (count != n)
        fail_msg("%s has %zu numbers, got %zu", name, count, n);
    double diff = 0.0, norm = 0.0;
    for (size_t i = 0; i < n; i++) {
        double d = (double)got[i] - want[i];
        diff += d * d;
        norm += want[i] * want[i];
    }
    free(want);
    return sqrt(diff / norm);
}

static void check(const char *what, const char *name, double error, double tolerance)
{
    if (!(error <= tolerance))
        fail_msg("%s: %s is %.2e off, allowed %.1e", what, name, error, tolerance);
    printf("  %-52s %.1e\n", name, error);
}

typedef struct {
    const iso_safetensors *io;
    const char *what;
    const iso_backbone *b;
    const float *samples;
    size_t n, tokens; /* rows of a sample in the pass */
    double rtol;
    size_t seen;
} hidden_check;

/* Rows of padding do not count; where there is none, all do. */
static void tap_hidden(void *ctx, size_t index, const float *hidden)
{
    hidden_check *h = ctx;
    const iso_backbone_shape *s = &h->b->shape;
    char name[32];
    size_t count, d = s->dim;
    snprintf(name, sizeof name, "hidden.%zu", index);
    double *want = read_f64(h->io, name, &count), diff = 0.0, norm = 0.0;
    size_t rows = count / (h->n * d); /* of a sample in the file */
    for (size_t i = 0; i < h->n; i++) {
        const float *x = hidden + i * h->tokens * d;
        for (size_t k = 0; k < rows; k++) {
            if (s->modality == ISO_MODALITY_TEXT && h->samples[i * s->sample + k] < 0.0F)
                continue;
            for (size_t j = 0; j < d; j++) {
                double w = want[(i * rows + k) * d + j], off = (double)*x++ - w;
                diff += off * off;
                norm += w * w;
            }
        }
    }
    free(want);
    check(h->what, name, sqrt(diff / norm), h->rtol);
    h->seen++;
}

static float *as_floats(const iso_safetensors *st, const char *name, size_t *count)
{
    double *wide = read_f64(st, name, count);
    float *out = iso_calloc(*count, sizeof *out);
    for (size_t i = 0; i < *count; i++)
        out[i] = (float)wide[i];
    free(wide);
    return out;
}

static void check_hidden(const iso_backbone *b, const iso_safetensors *io, const char *what,
                         const float *pixels, size_t n, double rtol)
{
    const iso_backbone_shape *s = &b->shape;
    hidden_check h = {.io = io, .what = what, .b = b, .samples = pixels, .n = n, .rtol = rtol};
    iso_pass p = {.weights = b->matrices, .read = s->tokens, .tap = tap_hidden, .tap_ctx = &h};
    uint32_t lengths[64];
    assert_true(n <= 64);
    if (b->family->lengths) {
        b->family->lengths(b, pixels, n, lengths);
        p.lengths = lengths;
        for (size_t i = 0; i < n; i++)
            p.tokens = lengths[i] > p.tokens ? lengths[i] : p.tokens;
    }
    h.tokens = p.tokens ? p.tokens : s->tokens;
    float *work = iso_alloc_aligned(b->family->workspace_floats(b, &p, n), sizeof *work);
    float *out = iso_calloc(n * s->tokens * (s->dim + s->feature), sizeof *out);
    b->family->embed(b, &p, pixels, n, work, b->family->input(b, &p, work));
    b->family->forward(b, &p, n, work, out);
    assert_int_equal(h.seen, s->depth + 1);
    free(out);
    free(work);
}

/* Loss on the classifier's logits, as the vectors were made: finite memory, one micro-batch a call.
 * The classifier's gradient to its input is taken by its linearity: logits of unit tokens. */
typedef struct {
    const iso_backbone *b;
    const int *labels;
    size_t batch;
    double *head; /* (head_rows * feature, classes): d logits / d rows */
} loss_ctx;

static double loss_of(void *ctx, size_t first, size_t n, const float *out, float *dout,
                      float *extra)
{
    const loss_ctx *c = ctx;
    (void)extra;
    size_t classes = c->b->shape.classes, width = c->b->shape.head_rows * c->b->shape.feature;
    float *logits = iso_calloc(n * classes, sizeof *logits);
    c->b->family->classify(c->b, out, n, logits);
    double loss =
        iso_loss_rows(n, classes, logits, c->labels + first, 1.0F / (float)c->batch, logits);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < width; j++) {
            double sum = 0.0;
            for (size_t k = 0; k < classes; k++)
                sum += c->head[j * classes + k] * (double)logits[i * classes + k];
            dout[i * width + j] = (float)sum;
        }
    free(logits);
    return loss;
}

static double *linear_part(const iso_backbone *b)
{
    size_t classes = b->shape.classes, width = b->shape.head_rows * b->shape.feature;
    float *unit = iso_calloc(width, sizeof *unit), *zero = iso_calloc(classes, sizeof *zero);
    float *z = iso_calloc(classes, sizeof *z);
    double *head = iso_calloc(width * classes, sizeof *head);
    b->family->classify(b, unit, 1, zero);
    for (size_t j = 0; j < width; j++) {
        unit[j] = 1.0F;
        b->family->classify(b, unit, 1, z);
        unit[j] = 0.0F;
        for (size_t k = 0; k < classes; k++)
            head[j * classes + k] = (double)z[k] - (double)zero[k];
    }
    free(unit);
    free(zero);
    free(z);
    return head;
}

typedef struct {
    const float *pixels;
    size_t image;
} pixel_array;

static void give_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const pixel_array *a = ctx;
    assert_int_equal(draw, 0);
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * a->image, a->pixels + idx[i] * a->image, a->image * sizeof *out);
}

static void check_gradients(const iso_backbone *b, const char *folder, const iso_safetensors *io,
                            const char *what, const float *pixels, size_t n, double rtol,
                            double grad_rtol)
{
    const iso_backbone_shape *s = &b->shape;
    iso_error e = {0};
    iso_adapter *a = NULL;
    iso_model *m = NULL;
    iso_work *w = NULL;
    if (iso_adapter_open(&a, b, folder, &e) || iso_model_open(&m, b, a, true, &e) ||
        iso_work_open(&w, m, s->head_rows, &e))
        fail_msg("%s", e.text);

    float *feature = iso_calloc(n * s->feature, sizeof *feature);
    float *logits = iso_calloc(n * s->classes, sizeof *logits);
    assert_int_equal(iso_model_features(m, pixels, n, feature, &e), ISO_OK);
    assert_int_equal(iso_model_logits(m, pixels, n, logits, &e), ISO_OK);
    check(what, "adapted_feature", error_of(io, "adapted_feature", feature, n * s->feature), rtol);
    check(what, "adapted_logits", error_of(io, "adapted_logits", logits, n * s->classes), rtol);

    size_t count;
    double *labels = read_f64(io, "labels", &count);
    int label[64];
    uint32_t idx[64];
    assert_true(count == n && n <= 64);
    for (size_t i = 0; i < n; i++) {
        label[i] = (int)labels[i];
        idx[i] = (uint32_t)i;
    }
    pixel_array pa = {pixels, s->sample};
    iso_source source = {.n = n, .pixels = give_pixels, .ctx = &pa};
    loss_ctx lc = {b, label, n, linear_part(b)};
    size_t items = (n + iso_model_micro_batch(m) - 1) / iso_model_micro_batch(m);
    float *grads = iso_calloc(items * a->param_count, sizeof *grads);
    double losses[64];
    iso_gradient_job job = {.source = &source,
                            .idx = idx,
                            .n = n,
                            .loss = loss_of,
                            .loss_ctx = &lc,
                            .grads = grads,
                            .stride = a->param_count,
                            .losses = losses};
    float loss = (float)(iso_model_gradient(m, w, &job) / (double)n);
    check(what, "loss", error_of(io, "loss", &loss, 1), rtol);

    /* The gradient has the layout of the parameters: read it out as an adapter's factors. */
    memcpy(a->params, grads, a->param_count * sizeof *grads);
    iso_arena arena = {0};
    iso_lora_layer *layers;
    size_t layer_count;
    assert_int_equal(a->kind->to_layers(a, &arena, &layers, &layer_count, &e), ISO_OK);
    assert_int_equal(layer_count, b->module_count);
    for (size_t i = 0; i < layer_count; i++) {
        char name[256];
        const iso_lora_layer *l = &layers[i];
        snprintf(name, sizeof name, "grad.%s.lora_A.weight", l->module);
        check(what, name, error_of(io, name, l->A, l->rank * l->in), grad_rtol);
        snprintf(name, sizeof name, "grad.%s.lora_B.weight", l->module);
        check(what, name, error_of(io, name, l->B, l->rank * l->out), grad_rtol);
    }
    iso_arena_free(&arena);
    free(lc.head);
    free(labels);
    free(grads);
    free(feature);
    free(logits);
    iso_work_close(w);
    iso_model_close(m);
    iso_adapter_close(a);
}

/* Pixels, or token ids with -1 where the mask says that there is none. */
static float *as_samples(const iso_safetensors *io, const iso_backbone *b, size_t *n)
{
    size_t count, masks, sample = b->shape.sample;
    if (b->shape.modality == ISO_MODALITY_IMAGE) {
        float *pixels = as_floats(io, "pixel_values", &count);
        *n = count / sample;
        assert_int_equal(*n * sample, count);
        return pixels;
    }
    double *ids = read_f64(io, "input_ids", &count), *mask = read_f64(io, "attention_mask", &masks);
    size_t length = iso_safetensors_find(io, "input_ids")->view.shape[1];
    assert_int_equal(count, masks);
    assert_true(length <= sample);
    *n = count / length;
    float *out = iso_calloc(*n * sample, sizeof *out);
    for (size_t i = 0; i < *n * sample; i++) {
        size_t at = i / sample * length + i % sample;
        out[i] = i % sample < length && mask[at] != 0.0 ? (float)ids[at] : -1.0F;
    }
    free(ids);
    free(mask);
    return out;
}

/* One case; false when its family is not registered. */
static bool run_case(const char *golden, const iso_json *c)
{
    const char *name, *model, *adapter, *io_name, *type;
    double rtol, grad_rtol;
    iso_error e = {0};
    if (iso_json_need_str(c, "name", &name, &e) || iso_json_need_str(c, "model", &model, &e) ||
        iso_json_need_str(c, "adapter", &adapter, &e) || iso_json_need_str(c, "io", &io_name, &e) ||
        iso_json_get_num(c, "rtol", 0.0, &rtol, &e) ||
        iso_json_get_num(c, "grad_rtol", 0.0, &grad_rtol, &e))
        fail_msg("%s", e.text);
    char *folder = iso_path_join(golden, model), *adapter_folder = iso_path_join(golden, adapter);
    char *io_path = iso_path_join(golden, io_name);
    char *config_path = iso_path_join(folder, "config.json");
    iso_json *config;
    assert_int_equal(iso_json_read(config_path, 1 << 20, &config, &e), ISO_OK);
    assert_int_equal(iso_json_need_str(config, "model_type", &type, &e), ISO_OK);
    bool is_built = iso_backbone_family_find(type) != NULL;
    if (is_built) {
        iso_backbone *b = NULL;
        iso_safetensors io = {0};
        iso_model *m = NULL;
        if (iso_backbone_open(&b, folder, &e) || iso_safetensors_open(&io, io_path, &e) ||
            iso_model_open(&m, b, NULL, false, &e))
            fail_msg("%s", e.text);
        printf("%s\n", name);
        size_t n;
        float *pixels = as_samples(&io, b, &n);
        float *feature = iso_calloc(n * b->shape.feature, sizeof *feature);
        float *logits = iso_calloc(n * b->shape.classes, sizeof *logits);
        check_hidden(b, &io, name, pixels, n, rtol);
        assert_int_equal(iso_model_features(m, pixels, n, feature, &e), ISO_OK);
        assert_int_equal(iso_model_logits(m, pixels, n, logits, &e), ISO_OK);
        check(name, "feature", error_of(&io, "feature", feature, n * b->shape.feature), rtol);
        check(name, "logits", error_of(&io, "logits", logits, n * b->shape.classes), rtol);
        check_gradients(b, adapter_folder, &io, name, pixels, n, rtol, grad_rtol);
        free(pixels);
        free(feature);
        free(logits);
        iso_model_close(m);
        iso_safetensors_close(&io);
        iso_backbone_close(b);
    } else {
        printf("%s: family \"%s\" not built\n", name, type);
    }
    iso_json_free(config);
    free(folder);
    free(adapter_folder);
    free(io_path);
    free(config_path);
    return is_built;
}

static void golden_backbones(void **state)
{
    (void)state;
    char *golden = golden_folder(), *path = iso_path_join(golden, "manifest.json");
    if (!iso_path_exists(path)) {
        printf("golden vectors not found at %s: set ISO_GOLDEN_DIR\n", path);
        free(path);
        free(golden);
        skip();
    }
    iso_json *manifest;
    iso_error e = {0};
    if (iso_json_read(path, 1 << 20, &manifest, &e))
        fail_msg("%s", e.text);
    const iso_json *cases = iso_json_key(manifest, "cases");
    for (size_t i = 0; i < iso_json_count(cases); i++) {
        const iso_json *c = iso_json_at(cases, i);
        const char *kind = iso_json_str(iso_json_key(c, "kind"));
        if (!kind || strcmp(kind, "backbone") != 0)
            continue;
        if (run_case(golden, c))
            passed++;
        else
            not_built++;
    }
    assert_true(passed > 0);
    iso_json_free(manifest);
    free(path);
    free(golden);
}

/* The same through OpenBLAS, which is what processors without AVX-512 compute with. */
static void golden_backbones_on_cblas(void **state)
{
    iso_gemm_kernel fastest = iso_gemm_current();
    size_t keep_passed = passed, keep_missing = not_built;
    if (fastest == ISO_GEMM_CBLAS)
        skip();
    assert_true(iso_gemm_select(ISO_GEMM_CBLAS));
    golden_backbones(state);
    iso_gemm_select(fastest);
    passed = keep_passed; /* counted once */
    not_built = keep_missing;
}

/* ../shared/models: real backbones in bf16 and f16, features and logits from the same weights in
 * double, from pixel_values (their images are the data tests' business). */
static void shared_models(void **state)
{
    static const char *const models[] = {"vit-tiny-64", "deit-tiny"};
    (void)state;
    size_t seen = 0;
    for (size_t k = 0; k < sizeof models / sizeof *models; k++) {
        iso_error e = {0};
        char *folder = iso_path_join(SHARED_MODELS, models[k]);
        char *expected = iso_path_join(folder, "expected.safetensors");
        char *notes = iso_path_join(folder, "expected.json");
        if (iso_path_exists(expected)) {
            iso_backbone *b = NULL;
            iso_safetensors io = {0};
            iso_model *m = NULL;
            iso_json *j = NULL;
            double rtol = 0.0;
            if (iso_backbone_open(&b, folder, &e) || iso_safetensors_open(&io, expected, &e) ||
                iso_model_open(&m, b, NULL, false, &e) || iso_json_read(notes, 1 << 20, &j, &e) ||
                iso_json_get_num(j, "feature_rtol", 0.0, &rtol, &e))
                fail_msg("%s", e.text);
            printf("%s\n", models[k]);
            size_t count;
            float *pixels = as_floats(&io, "pixel_values", &count);
            size_t n = count / (b->shape.channels * b->shape.image_size * b->shape.image_size);
            float *feature = iso_calloc(n * b->shape.dim, sizeof *feature);
            float *logits = iso_calloc(n * b->shape.classes, sizeof *logits);
            assert_int_equal(iso_model_features(m, pixels, n, feature, &e), ISO_OK);
            assert_int_equal(iso_model_logits(m, pixels, n, logits, &e), ISO_OK);
            check(models[k], "feature", error_of(&io, "feature", feature, n * b->shape.dim), rtol);
            check(models[k], "logits", error_of(&io, "logits", logits, n * b->shape.classes), rtol);
            free(pixels);
            free(feature);
            free(logits);
            iso_json_free(j);
            iso_model_close(m);
            iso_safetensors_close(&io);
            iso_backbone_close(b);
            seen++;
        }
        free(notes);
        free(expected);
        free(folder);
    }
    if (!seen)
        skip();
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_backbones),
                                       cmocka_unit_test(golden_backbones_on_cblas),
                                       cmocka_unit_test(shared_models)};
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    printf("backbones: %zu passed, %zu not built\n", passed, not_built);
    return failed;
}
