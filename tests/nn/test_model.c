/* Backbones from files good and bad, adapters in and out, models: what one kernel computes the
 * other must too, alone and side by side. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/parallel.h"
#include "core/rng.h"
#include "nn/backbone/random.h"
#include "nn/kernel/loss.h"
#include "nn/model.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Panels begin at multiples of 48: both kinds of width. */
static const iso_random_vit WIDTHS[] = {
    {.depth = 3, .dim = 96, .heads = 2, .mlp = 100, .image_size = 12, .patch = 4, .classes = 5},
    {.depth = 2, .dim = 40, .heads = 5, .mlp = 60, .image_size = 8, .patch = 2, .classes = 3},
    {.depth = 1, .dim = 48, .heads = 1, .mlp = 48, .image_size = 4, .patch = 4, .classes = 2}};

static iso_backbone *random_backbone(const iso_random_vit *shape)
{
    iso_backbone *b;
    iso_error e = {0};
    if (iso_backbone_random(&b, shape, &e))
        fail_msg("%s", e.text);
    return b;
}

static iso_adapter *random_adapter(const iso_backbone *b, const iso_adapter_options *o)
{
    iso_adapter *a;
    iso_error e = {0};
    if (iso_adapter_create(&a, b, o, &e))
        fail_msg("%s", e.text);
    iso_rng r = iso_rng_make(4, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < a->param_count; i++)
        a->params[i] = (float)(0.2 * iso_rng_normal(&r));
    return a;
}

static float *normals(size_t n)
{
    float *x = iso_calloc(n, sizeof *x);
    iso_rng r = iso_rng_make(6, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)iso_rng_normal(&r);
    return x;
}

static size_t image_floats(const iso_backbone *b)
{
    return b->shape.channels * b->shape.image_size * b->shape.image_size;
}

static double off(const float *got, const float *want, size_t n)
{
    double d = 0.0, s = 0.0;
    for (size_t i = 0; i < n; i++) {
        d += ((double)got[i] - (double)want[i]) * ((double)got[i] - (double)want[i]);
        s += (double)want[i] * (double)want[i];
    }
    return sqrt(d / s);
}

/* ---- models ---- */

static void give(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const float *const *c = ctx; /* pixels, then one past an image: its length */
    size_t image = (size_t)(c[1] - c[0]);
    (void)draw;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * image, c[0] + idx[i] * image, image * sizeof *out);
}

/* Loss: half the squared distance of the features from zero. */
static double square_loss(void *ctx, size_t first, size_t n, const float *out, float *dout,
                          float *extra)
{
    size_t d = *(size_t *)ctx;
    double s = 0.0;
    (void)first, (void)extra;
    for (size_t i = 0; i < n * d; i++) {
        double w = (double)(i % 7) - 2.0;
        dout[i] = (float)(w * (double)out[i]);
        s += 0.5 * w * (double)out[i] * (double)out[i];
    }
    return s;
}

typedef struct {
    float *features, *grad;
    double loss;
} outcome;

static outcome compute(const iso_backbone *b, const iso_adapter *a, const float *pixels, size_t n)
{
    iso_error e = {0};
    iso_model *m;
    iso_work *w;
    outcome o = {iso_calloc(n * b->shape.dim, sizeof(float)), NULL, 0.0};
    if (iso_model_open(&m, b, a, true, &e) || iso_work_open(&w, m, 1, &e) ||
        iso_model_features(m, pixels, n, o.features, &e))
        fail_msg("%s", e.text);
    size_t items = n / iso_model_micro_batch(m) + 1, dim = b->shape.dim;
    o.grad = iso_calloc(items * a->param_count, sizeof(float));
    double *losses = iso_calloc(items, sizeof *losses);
    const float *ends[] = {pixels, pixels + image_floats(b)};
    uint32_t *idx = iso_calloc(n, sizeof *idx);
    for (size_t i = 0; i < n; i++)
        idx[i] = (uint32_t)i;
    iso_source source = {.n = n, .pixels = give, .ctx = ends};
    iso_gradient_job job = {.source = &source,
                            .idx = idx,
                            .n = n,
                            .loss = square_loss,
                            .loss_ctx = &dim,
                            .grads = o.grad,
                            .stride = a->param_count,
                            .losses = losses};
    o.loss = iso_model_gradient(m, w, &job);
    free(idx);
    free(losses);
    iso_work_close(w);
    iso_model_close(m);
    return o;
}

static void kernels_agree_on_features_and_gradients(void **state)
{
    (void)state;
    iso_gemm_kernel fastest = iso_gemm_current();
    if (fastest == ISO_GEMM_CBLAS)
        skip();
    for (size_t i = 0; i < sizeof WIDTHS / sizeof *WIDTHS; i++) {
        enum { N = 5 };
        outcome o[2];
        float *pixels = NULL;
        size_t params = 0, dim = WIDTHS[i].dim;
        for (int k = 0; k < 2; k++) {
            assert_true(iso_gemm_select(k ? fastest : ISO_GEMM_CBLAS));
            iso_backbone *b = random_backbone(&WIDTHS[i]);
            iso_adapter *a = random_adapter(
                b, &(iso_adapter_options){.kind = "lora", .rank = 3, .alpha = 3.0, .seed = 1});
            if (!pixels)
                pixels = normals(N * image_floats(b));
            params = a->param_count;
            o[k] = compute(b, a, pixels, N);
            iso_adapter_close(a);
            iso_backbone_close(b);
        }
        assert_true(off(o[1].features, o[0].features, N * dim) <= 2e-6);
        assert_true(off(o[1].grad, o[0].grad, params) <= 2e-5);
        assert_true(fabs(o[1].loss - o[0].loss) <= 1e-5 * fabs(o[0].loss));
        for (int k = 0; k < 2; k++)
            free(o[k].features), free(o[k].grad);
        free(pixels);
    }
    iso_gemm_select(fastest);
}

/* The whole network's gradient against central differences of its loss, single precision: along
 * random directions. */
static void the_gradient_is_that_of_the_loss(void **state)
{
    (void)state;
    static const struct {
        const char *targets[2];
        size_t count, first_block;
    } rows[] = {{{NULL}, 0, 0},
                {{"query", "output.dense"}, 2, 0},
                {{"intermediate.dense"}, 1, 1},
                {{"key", "attention.output.dense"}, 2, 1},
                {{"value"}, 1, 2}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        enum { N = 3 };
        iso_backbone *b = random_backbone(&WIDTHS[0]);
        iso_adapter *a =
            random_adapter(b, &(iso_adapter_options){.kind = "lora",
                                                     .rank = 2,
                                                     .alpha = 4.0,
                                                     .targets = rows[i].targets,
                                                     .target_count = rows[i].count,
                                                     .first_block = rows[i].first_block});
        assert_true(a->lowest_block == rows[i].first_block);
        float *pixels = normals(N * image_floats(b));
        outcome at = compute(b, a, pixels, N);
        size_t n = a->param_count;
        float *keep = iso_calloc(n, sizeof *keep);
        memcpy(keep, a->params, n * sizeof *keep);
        iso_rng r = iso_rng_make(8, ISO_RNG_TEST, i);
        for (int trial = 0; trial < 3; trial++) {
            float *direction = iso_calloc(n, sizeof *direction);
            double want = 0.0, h = 2e-4, side[2];
            for (size_t k = 0; k < n; k++) {
                direction[k] = (float)iso_rng_normal(&r);
                want += (double)direction[k] * (double)at.grad[k];
            }
            for (int s = 0; s < 2; s++) {
                for (size_t k = 0; k < n; k++)
                    a->params[k] = keep[k] + (float)((s ? h : -h) * (double)direction[k]);
                outcome o = compute(b, a, pixels, N);
                side[s] = o.loss;
                free(o.features), free(o.grad);
            }
            memcpy(a->params, keep, n * sizeof *keep);
            double got = (side[1] - side[0]) / (2.0 * h);
            if (fabs(got - want) > 2e-3 * fabs(want) + 0.2)
                fail_msg("row %zu: slope %g, gradient says %g", i, got, want);
            printf("  row %zu: slope %g, gradient says %g\n", i, got, want);
            free(direction);
        }
        free(keep), free(pixels), free(at.features), free(at.grad);
        iso_adapter_close(a);
        iso_backbone_close(b);
    }
}

typedef struct {
    const iso_model *model;
    const float *pixels;
    float *out;
    size_t n;
} reader;

static void *read_features(void *ctx)
{
    reader *r = ctx;
    iso_error e;
    return iso_model_features(r->model, r->pixels, r->n, r->out, &e) ? r : NULL;
}

/* Same bits alone, from several threads at once, and for any number of workers. */
static void a_model_is_shared_between_threads(void **state)
{
    enum { N = 11, READERS = 4 };
    (void)state;
    iso_error e;
    iso_backbone *b = random_backbone(&WIDTHS[0]);
    iso_adapter *a =
        random_adapter(b, &(iso_adapter_options){.kind = "lora", .rank = 2, .alpha = 2.0});
    iso_model *m;
    assert_int_equal(iso_model_open(&m, b, a, false, &e), ISO_OK);
    float *pixels = normals(N * image_floats(b)), *want = iso_calloc(N * 96, sizeof *want);
    assert_int_equal(iso_model_features(m, pixels, N, want, &e), ISO_OK);
    iso_set_threads(3);
    pthread_t thread[READERS];
    reader r[READERS];
    for (int i = 0; i < READERS; i++) {
        r[i] = (reader){m, pixels, iso_calloc(N * 96, sizeof(float)), N};
        assert_int_equal(pthread_create(&thread[i], NULL, read_features, &r[i]), 0);
    }
    for (int i = 0; i < READERS; i++) {
        void *failed;
        assert_int_equal(pthread_join(thread[i], &failed), 0);
        assert_null(failed);
        assert_memory_equal(r[i].out, want, N * 96 * sizeof *want);
        free(r[i].out);
    }
    iso_set_threads(1);
    free(pixels), free(want);
    iso_model_close(m);
    iso_adapter_close(a);
    iso_backbone_close(b);
}

/* ---- adapters ---- */

static void peft_folder_there_and_back(void **state)
{
    (void)state;
    iso_error e = {0};
    char folder[] = "/tmp/iso_model_XXXXXX";
    assert_non_null(mkdtemp(folder));
    iso_backbone *b = random_backbone(&WIDTHS[1]);
    static const struct {
        const char *targets[3];
        size_t count;
        bool rslora;
    } rows[] = {
        {{NULL}, 0, false}, {{"query", "value"}, 2, true}, {{"attention.output.dense"}, 1, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_adapter *a = random_adapter(b, &(iso_adapter_options){.kind = "lora",
                                                                  .rank = 3,
                                                                  .alpha = 5.0,
                                                                  .use_rslora = rows[i].rslora,
                                                                  .targets = rows[i].targets,
                                                                  .target_count = rows[i].count});
        iso_adapter *back = NULL, *copy = NULL;
        if (iso_adapter_write(a, folder, "base", NULL, &e) ||
            iso_adapter_open(&back, b, folder, &e) || iso_adapter_copy(&copy, a, &e))
            fail_msg("%s", e.text);
        assert_int_equal(back->param_count, a->param_count);
        assert_memory_equal(back->params, a->params, a->param_count * sizeof(float));
        assert_memory_equal(copy->params, a->params, a->param_count * sizeof(float));
        assert_memory_equal(back->is_adapted, a->is_adapted, b->matrix_count);
        /* The scale came along: the folded weights give the same features. */
        enum { N = 2 };
        float *pixels = normals(N * image_floats(b));
        outcome x = compute(b, a, pixels, N), y = compute(b, back, pixels, N);
        assert_true(off(y.features, x.features, N * b->shape.dim) <= 1e-6);
        free(pixels), free(x.features), free(x.grad), free(y.features), free(y.grad);
        iso_adapter_close(a);
        iso_adapter_close(back);
        iso_adapter_close(copy);
    }
    iso_backbone_close(b);
    assert_int_equal(iso_remove_tree(folder, &e), ISO_OK);
}

static void a_fresh_adapter_changes_nothing_and_follows_its_seed(void **state)
{
    enum { N = 2 };
    (void)state;
    iso_error e;
    iso_backbone *b = random_backbone(&WIDTHS[0]);
    iso_adapter *a[3];
    for (int i = 0; i < 3; i++) {
        iso_adapter_options o = {.kind = "lora", .rank = 4, .alpha = 8.0, .seed = i == 2 ? 9 : 7};
        assert_int_equal(iso_adapter_create(&a[i], b, &o, &e), ISO_OK);
    }
    size_t bytes = a[0]->param_count * sizeof(float);
    assert_memory_equal(a[0]->params, a[1]->params, bytes);
    assert_true(memcmp(a[0]->params, a[2]->params, bytes) != 0);
    float *pixels = normals(N * image_floats(b)), f[2][N * 96];
    for (int i = 0; i < 2; i++) {
        iso_model *m;
        assert_int_equal(iso_model_open(&m, b, i ? a[0] : NULL, false, &e), ISO_OK);
        assert_int_equal(iso_model_features(m, pixels, N, f[i], &e), ISO_OK);
        iso_model_close(m);
    }
    assert_memory_equal(f[0], f[1], sizeof f[0]);
    for (int i = 0; i < 3; i++)
        iso_adapter_close(a[i]);
    free(pixels);
    iso_backbone_close(b);
}

static void wrong_adapter_options_are_usage_errors(void **state)
{
    static const char *const nowhere[] = {"queri"};
    static const struct {
        iso_adapter_options o;
        const char *says;
    } rows[] = {
        {{.kind = "lora", .rank = 0, .alpha = 1.0}, "rank 0"},
        {{.kind = "lora", .rank = 5000, .alpha = 1.0}, "rank 5000"},
        {{.kind = "lora", .rank = 4, .alpha = 0.0}, "alpha 0"},
        {{.kind = "lora", .rank = 4, .alpha = 1.0, .targets = nowhere, .target_count = 1}, "queri"},
        {{.kind = "lora", .rank = 4, .alpha = 1.0, .first_block = 3}, "first block 3"},
        {{.kind = "lola", .rank = 4, .alpha = 1.0}, "lola"}};
    (void)state;
    iso_backbone *b = random_backbone(&WIDTHS[0]);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_error e = {0};
        iso_adapter *a = NULL;
        assert_int_equal(iso_adapter_create(&a, b, &rows[i].o, &e), ISO_ERR_USAGE);
        assert_non_null(strstr(e.text, rows[i].says));
    }
    iso_backbone_close(b);
}

static void an_adapter_of_another_backbone_names_layer_and_shapes(void **state)
{
    (void)state;
    iso_error e = {0};
    char folder[] = "/tmp/iso_model_XXXXXX";
    assert_non_null(mkdtemp(folder));
    iso_backbone *wide = random_backbone(&WIDTHS[0]), *narrow = random_backbone(&WIDTHS[1]);
    iso_adapter *a =
        random_adapter(wide, &(iso_adapter_options){.kind = "lora", .rank = 2, .alpha = 2.0});
    iso_adapter *b = NULL;
    assert_int_equal(iso_adapter_write(a, folder, NULL, NULL, &e), ISO_OK);
    assert_int_equal(iso_adapter_open(&b, narrow, folder, &e), ISO_ERR_SHAPE);
    assert_int_equal(iso_exit_code(ISO_ERR_SHAPE), 3);
    assert_non_null(strstr(e.text, "encoder.layer.0"));
    assert_non_null(strstr(e.text, "96"));
    assert_non_null(strstr(e.text, "40"));
    iso_adapter_close(a);
    iso_backbone_close(wide);
    iso_backbone_close(narrow);
    assert_int_equal(iso_remove_tree(folder, &e), ISO_OK);
}

/* ---- bad backbones ---- */

static iso_err open_with(const char *find, const char *replace, iso_error *e)
{
    iso_buf config = {0}, tensors = {0};
    iso_json *j = NULL;
    iso_safetensors st = {0};
    iso_backbone *b = NULL;
    assert_int_equal(iso_backbone_random_files(&WIDTHS[1], &config, &tensors, e), ISO_OK);
    assert_int_equal(iso_buf_append(&config, "", 1, e), ISO_OK);
    char *text = (char *)config.data, *at = strstr(text, find);
    if (!at)
        fail_msg("config has no %s", find);
    char changed[1024];
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, replace,
             at + strlen(find));
    assert_int_equal(iso_json_parse(changed, strlen(changed), "test", &j, e), ISO_OK);
    assert_int_equal(iso_safetensors_parse(&st, tensors.data, tensors.size, "test", e), ISO_OK);
    iso_err err = iso_backbone_make(&b, j, &st, "test", e);
    iso_backbone_close(b);
    iso_safetensors_close(&st);
    iso_json_free(j);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    return err;
}

static void U59_bad_configurations_are_refused_before_anything_is_allocated(void **state)
{
    static const struct {
        const char *find, *replace, *says;
    } rows[] = {
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":1000000000", "num_hidden_layers"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":0", "num_hidden_layers"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":-1", "num_hidden_layers"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":2.5", "num_hidden_layers"},
        {"\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "encoder.layer.2"},
        {"\"num_attention_heads\":5", "\"num_attention_heads\":7", "does not divide"},
        {"\"hidden_size\":40", "\"hidden_size\":4611686018427387904", "hidden_size"},
        {"\"hidden_size\":40", "\"hidden_size\":80", "shape"},
        {"\"hidden_size\":40", "\"hidden_size\":\"40\"", "hidden_size"},
        {"\"hidden_size\":40,", "", "hidden_size"},
        {"\"intermediate_size\":60", "\"intermediate_size\":64", "intermediate.dense"},
        {"\"patch_size\":2", "\"patch_size\":3", "does not divide"},
        {"\"image_size\":8", "\"image_size\":4096", "tokens"},
        {"\"num_channels\":3", "\"num_channels\":1", "num_channels"},
        {"\"hidden_act\":\"gelu\"", "\"hidden_act\":\"relu\"", "hidden_act"},
        {"\"qkv_bias\":true", "\"qkv_bias\":false", "qkv_bias"},
        {"\"layer_norm_eps\":1e-6", "\"layer_norm_eps\":0", "layer_norm_eps"},
        {"\"model_type\":\"vit\"", "\"model_type\":\"resnet\"", "resnet"},
        {"\"model_type\":\"vit\"", "\"model_type\":\"deit\"", "position_embeddings"}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_error e = {0};
        iso_err err = open_with(rows[i].find, rows[i].replace, &e);
        if (iso_exit_code(err) != 3 || !strstr(e.text, rows[i].says))
            fail_msg("%s: code %d, \"%s\"", rows[i].replace, err, e.text);
    }
}

static void the_generation_follows_the_weights(void **state)
{
    (void)state;
    iso_random_vit other = WIDTHS[1];
    other.seed = 1;
    iso_backbone *a = random_backbone(&WIDTHS[1]), *b = random_backbone(&WIDTHS[1]);
    iso_backbone *c = random_backbone(&other);
    assert_true(iso_digest_equal(&a->generation, &b->generation));
    assert_false(iso_digest_equal(&a->generation, &c->generation));
    assert_ptr_equal(iso_backbone_module(a, "encoder.layer.1.output.dense"),
                     iso_backbone_module(a, "vit.encoder.layer.1.output.dense"));
    assert_null(iso_backbone_module(a, "vit.encoder.layer.2.output.dense"));
    iso_backbone_close(a);
    iso_backbone_close(b);
    iso_backbone_close(c);
}

static void a_weight_that_is_no_number_is_refused(void **state)
{
    (void)state;
    iso_buf config = {0}, tensors = {0};
    iso_json *j = NULL;
    iso_safetensors st = {0};
    iso_backbone *b = NULL;
    iso_error e = {0};
    assert_int_equal(iso_backbone_random_files(&WIDTHS[1], &config, &tensors, &e), ISO_OK);
    assert_int_equal(iso_json_parse(config.data, config.size, "test", &j, &e), ISO_OK);
    memset(tensors.data + tensors.size - 4, 0xff, 4);
    assert_int_equal(iso_safetensors_parse(&st, tensors.data, tensors.size, "test", &e), ISO_OK);
    assert_int_equal(iso_backbone_make(&b, j, &st, "test", &e), ISO_ERR_NONFINITE);
    iso_safetensors_close(&st);
    iso_json_free(j);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(kernels_agree_on_features_and_gradients),
        cmocka_unit_test(the_gradient_is_that_of_the_loss),
        cmocka_unit_test(a_model_is_shared_between_threads),
        cmocka_unit_test(peft_folder_there_and_back),
        cmocka_unit_test(a_fresh_adapter_changes_nothing_and_follows_its_seed),
        cmocka_unit_test(wrong_adapter_options_are_usage_errors),
        cmocka_unit_test(an_adapter_of_another_backbone_names_layer_and_shapes),
        cmocka_unit_test(U59_bad_configurations_are_refused_before_anything_is_allocated),
        cmocka_unit_test(the_generation_follows_the_weights),
        cmocka_unit_test(a_weight_that_is_no_number_is_refused)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
