/* DINOv2, CLIP vision, BERT and Whisper beyond their vectors: gradients by differences, the same
 * bits for any number of threads and any neighbours, other image sizes, files that do not fit. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/parallel.h"
#include "nn/backbone/tower.h"
#include "nn/model.h"
#include "tests/nn/family_fixture.h"

#include <stdlib.h>

static const family_shape SHAPES[] = {
    {.type = "dinov2", .depth = 2, .dim = 24, .heads = 2, .mlp = 48, .side = 12, .patch = 4},
    {.type = "dinov2_with_registers",
     .depth = 2,
     .dim = 48,
     .heads = 4,
     .mlp = 60,
     .side = 8,
     .patch = 4,
     .registers = 3},
    {.type = "clip_vision_model",
     .depth = 2,
     .dim = 32,
     .heads = 2,
     .mlp = 64,
     .side = 12,
     .patch = 4,
     .projection = 40,
     .classes = 3},
    {.type = "clip_vision_model",
     .depth = 1,
     .dim = 24,
     .heads = 3,
     .mlp = 40,
     .side = 8,
     .patch = 4},
    {.type = "whisper", .depth = 2, .dim = 24, .heads = 2, .mlp = 40, .positions = 9, .mels = 7},
    {.type = "bert",
     .depth = 3,
     .dim = 32,
     .heads = 2,
     .mlp = 48,
     .words = 50,
     .positions = 14,
     .classes = 4}};
enum { SHAPES_COUNT = sizeof SHAPES / sizeof *SHAPES, N = 11 };

static iso_err make(iso_backbone **b, const family_shape *s, const iso_backbone_options *o,
                    const char *find, const char *replace, iso_error *e)
{
    iso_buf config = {0}, tensors = {0};
    iso_json *j = NULL;
    iso_safetensors st = {0};
    assert_int_equal(family_files(s, &config, &tensors, e), ISO_OK);
    assert_int_equal(iso_buf_append(&config, "", 1, e), ISO_OK);
    char changed[1024], *text = (char *)config.data, *at = find ? strstr(text, find) : text;
    assert_non_null(at);
    snprintf(changed, sizeof changed, "%.*s%s%s", (int)(at - text), text, find ? replace : "",
             at + (find ? strlen(find) : 0));
    assert_int_equal(iso_json_parse(changed, strlen(changed), "test", &j, e), ISO_OK);
    assert_int_equal(iso_safetensors_parse(&st, tensors.data, tensors.size, "test", e), ISO_OK);
    iso_err err = iso_backbone_make_as(b, j, &st, o, "test", e);
    iso_safetensors_close(&st);
    iso_json_free(j);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    return err;
}

static iso_backbone *open_family(const family_shape *s)
{
    iso_backbone *b = NULL;
    iso_error e = {0};
    if (make(&b, s, NULL, NULL, NULL, &e))
        fail_msg("%s: %s", s->type, e.text);
    return b;
}

/* n samples: noise, of sound in odd and even numbers of frames, or ids of texts of 2, 3, ...
 * tokens. */
static float *make_samples(const iso_backbone *b, size_t n)
{
    size_t sample = b->shape.sample;
    float *x = iso_calloc(n * sample, sizeof *x);
    iso_rng r = iso_rng_make(5, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < n * sample; i++) {
        size_t length = 2 + i / sample * 5 % (sample - 1), mels = b->shape.channels;
        if (b->shape.modality == ISO_MODALITY_SOUND) {
            size_t frames = 3 + i / sample * 5 % (sample / mels - 2);
            x[i] = i % sample < frames * mels ? (float)iso_rng_normal(&r) : ISO_NO_FRAME;
            continue;
        }
        x[i] = b->shape.modality == ISO_MODALITY_IMAGE ? (float)iso_rng_normal(&r)
               : i % sample < length ? (float)iso_rng_below(&r, (uint32_t)b->shape.vocabulary)
                                     : -1.0F;
    }
    return x;
}

typedef struct {
    const float *samples;
    size_t sample;
} samples_ctx;

static void give(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const samples_ctx *c = ctx;
    (void)draw;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * c->sample, c->samples + idx[i] * c->sample, c->sample * sizeof *out);
}

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

/* Loss, and the gradient into grad (micro-batches, params) unless NULL. keeps: through a prefix. */
static double gradient(const iso_backbone *b, const iso_adapter *a, const float *samples, size_t n,
                       bool keeps, float **grad)
{
    iso_error e = {0};
    iso_model *m;
    iso_work *w;
    iso_prefix prefix = {0};
    if (iso_model_open(&m, b, a, true, &e) || iso_work_open(&w, m, 1, &e))
        fail_msg("%s", e.text);
    size_t items = n / iso_model_micro_batch(m) + 1, feature = iso_model_dim(m);
    float *g = iso_calloc(items * a->param_count, sizeof *g);
    double losses[N + 1];
    uint32_t idx[N];
    for (size_t i = 0; i < n; i++)
        idx[i] = (uint32_t)(n - 1 - i);
    samples_ctx ctx = {samples, b->shape.sample};
    iso_source source = {.n = n, .pixels = give, .ctx = &ctx, .prefix = &prefix};
    if (keeps) {
        iso_source plain = {.n = n, .pixels = give, .ctx = &ctx};
        assert_int_equal(iso_model_prefix(m, &plain, a->lowest_block, 1 << 20, &prefix, &e),
                         ISO_OK);
        assert_non_null(prefix.hidden);
    }
    iso_gradient_job job = {.source = &source,
                            .idx = idx,
                            .n = n,
                            .loss = square_loss,
                            .loss_ctx = &feature,
                            .grads = g,
                            .stride = a->param_count,
                            .losses = losses};
    double loss = iso_model_gradient(m, w, &job);
    if (grad)
        *grad = g;
    else
        free(g);
    iso_prefix_free(&prefix);
    iso_work_close(w);
    iso_model_close(m);
    return loss;
}

static iso_adapter *random_adapter(const iso_backbone *b, const char *const *targets, size_t count,
                                   size_t first_block)
{
    iso_adapter *a;
    iso_error e = {0};
    iso_adapter_options o = {.kind = "lora",
                             .rank = 2,
                             .alpha = 2.0,
                             .targets = targets,
                             .target_count = count,
                             .first_block = first_block};
    if (iso_adapter_create(&a, b, &o, &e))
        fail_msg("%s", e.text);
    iso_rng r = iso_rng_make(4, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < a->param_count; i++)
        a->params[i] = (float)(0.2 * iso_rng_normal(&r));
    return a;
}

static void check_slopes(const iso_backbone *b, iso_adapter *a, const char *what)
{
    enum { IMAGES = 5 };
    float *samples = make_samples(b, IMAGES), *grad = NULL;
    gradient(b, a, samples, IMAGES, false, &grad);
    size_t n = a->param_count;
    float *keep = iso_calloc(n, sizeof *keep), *direction = iso_calloc(n, sizeof *direction);
    memcpy(keep, a->params, n * sizeof *keep);
    iso_rng r = iso_rng_make(8, ISO_RNG_TEST, 0);
    for (int trial = 0; trial < 3; trial++) {
        double want = 0.0, h = 1e-3, side[2], scale = 0.0;
        for (size_t k = 0; k < n; k++) {
            direction[k] = (float)iso_rng_normal(&r);
            want += (double)direction[k] * (double)grad[k];
            scale += (double)grad[k] * (double)grad[k];
        }
        for (int s = 0; s < 2; s++) {
            for (size_t k = 0; k < n; k++)
                a->params[k] = keep[k] + (float)((s ? h : -h) * (double)direction[k]);
            side[s] = gradient(b, a, samples, IMAGES, false, NULL);
        }
        memcpy(a->params, keep, n * sizeof *keep);
        double got = (side[1] - side[0]) / (2.0 * h);
        printf("  %s: slope %.5g, gradient says %.5g\n", what, got, want);
        if (fabs(got - want) > 1e-2 * sqrt(scale))
            fail_msg("%s: slope %g, gradient says %g", what, got, want);
    }
    free(samples), free(grad), free(keep), free(direction);
}

static void the_gradient_of_each_family_is_that_of_its_loss(void **state)
{
    /* the lowest adapted matrix at each place of a block: where the backward stops */
    static const struct {
        const char *targets[6];
        size_t count, first_block;
    } rows[] = {{{NULL}, 0, 0},
                {{"query", "q_proj"}, 2, 0},
                {{"key", "value", "k_proj", "v_proj"}, 4, 0},
                {{"attention.output.dense", "out_proj"}, 2, 0},
                {{"intermediate.dense", "fc1"}, 2, 0},
                {{"output.dense", "fc2"}, 2, 0}};
    (void)state;
    for (size_t i = 0; i < SHAPES_COUNT; i++)
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++) {
            iso_backbone *b = open_family(&SHAPES[i]);
            const char *there[6];
            size_t count = 0;
            for (size_t t = 0; t < rows[k].count; t++)
                for (size_t m = 0; m < ISO_LINEARS_PER_BLOCK; m++)
                    if (iso_adapter_matches(b->modules[m].name, rows[k].targets[t])) {
                        there[count++] = rows[k].targets[t];
                        break;
                    }
            assert_true((count > 0) == (rows[k].count > 0));
            iso_adapter *a = random_adapter(b, there, count, rows[k].first_block);
            char what[80];
            snprintf(what, sizeof what, "%s, %s", SHAPES[i].type, count ? there[0] : "all");
            check_slopes(b, a, what);
            iso_adapter_close(a);
            iso_backbone_close(b);
        }
}

static void the_same_bits_for_any_number_of_threads(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPES_COUNT; i++) {
        iso_backbone *b = open_family(&SHAPES[i]);
        iso_adapter *a = random_adapter(b, NULL, 0, 0);
        float *samples = make_samples(b, N), *grad[2];
        double loss[2];
        for (int k = 0; k < 2; k++) {
            iso_set_threads(1 + k);
            loss[k] = gradient(b, a, samples, N, false, &grad[k]);
        }
        iso_set_threads(1);
        assert_true(loss[0] == loss[1]);
        assert_memory_equal(grad[0], grad[1], a->param_count * sizeof(float));
        free(samples), free(grad[0]), free(grad[1]);
        iso_adapter_close(a);
        iso_backbone_close(b);
    }
}

static void a_kept_prefix_changes_no_bit(void **state)
{
    (void)state;
    for (size_t i = 0; i < SHAPES_COUNT; i++) {
        if (SHAPES[i].depth < 2)
            continue;
        iso_backbone *b = open_family(&SHAPES[i]);
        iso_adapter *a = random_adapter(b, NULL, 0, 1);
        float *samples = make_samples(b, N), *grad[2];
        double loss[2];
        for (int k = 0; k < 2; k++)
            loss[k] = gradient(b, a, samples, N, k == 1, &grad[k]);
        assert_true(loss[0] == loss[1]);
        assert_memory_equal(grad[0], grad[1], a->param_count * sizeof(float));
        free(samples), free(grad[0]), free(grad[1]);
        iso_adapter_close(a);
        iso_backbone_close(b);
    }
}

/* Alone, among longer texts, and with tokens masked away: features depend on the text alone. */
static void a_text_does_not_see_its_neighbours_or_its_padding(void **state)
{
    const family_shape *s = &SHAPES[SHAPES_COUNT - 1];
    iso_error e = {0};
    (void)state;
    iso_backbone *b = open_family(s);
    iso_model *m;
    assert_int_equal(iso_model_open(&m, b, NULL, false, &e), ISO_OK);
    size_t sample = b->shape.sample;
    float *samples = make_samples(b, N), together[N * 32], alone[32];
    assert_int_equal(iso_model_features(m, samples, N, together, &e), ISO_OK);
    for (size_t i = 0; i < N; i++) {
        assert_int_equal(iso_model_features(m, samples + i * sample, 1, alone, &e), ISO_OK);
        assert_memory_equal(alone, together + i * 32, sizeof alone);
    }
    /* The length of the sample is the room that there is, not part of the text. */
    iso_backbone *shorter = NULL;
    iso_model *sm;
    iso_backbone_options o = {.max_tokens = 9};
    assert_int_equal(make(&shorter, s, &o, NULL, NULL, &e), ISO_OK);
    assert_int_equal(shorter->shape.tokens, 9);
    assert_int_equal(iso_model_open(&sm, shorter, NULL, false, &e), ISO_OK);
    for (size_t i = 0; i < N; i++)
        if (samples[i * sample + 9] < 0.0F) {
            assert_int_equal(iso_model_features(sm, samples + i * sample, 1, alone, &e), ISO_OK);
            assert_memory_equal(alone, together + i * 32, sizeof alone);
        }
    iso_model_close(sm);
    iso_backbone_close(shorter);
    /* Nothing there at all, and ids that nobody has, do not crash. */
    for (size_t j = 0; j < sample; j++)
        samples[j] = j < 3 ? 1e9F : -1.0F;
    assert_int_equal(iso_model_features(m, samples, 1, alone, &e), ISO_OK);
    for (size_t j = 0; j < sample; j++)
        samples[j] = -1.0F;
    assert_int_equal(iso_model_features(m, samples, 1, alone, &e), ISO_OK);
    assert_true(isfinite(alone[0]));
    free(samples);
    iso_model_close(m);
    iso_backbone_close(b);
}

/* ---- other image sizes ---- */

/* From 2 to 4 points by hand (a = -0.75; a quarter beside a point the weights are -0.10546875,
 * 0.87890625, 0.26171875, -0.03515625; beyond the border it is repeated); from 3 x 3 squares to
 * 5 x 5 what PyTorch's bicubic interpolation gives. */
static void positions_are_interpolated_bicubically(void **state)
{
    static const double line_want[] = {-0.10546875, 0.2265625, 0.7734375, 1.10546875};
    static const double squares_want[] = {
        -0.904703676700592, -0.8740149140357971, -0.43999916315078735, 1.074016809463501,
        2.216705560684204,  1.2699919939041138,  2.3191466331481934,   4.444011688232422,
        7.648877143859863,  9.810030937194824,   8.3280029296875,      11.068005561828613,
        16.0000057220459,   22.012006759643555,  25.8640079498291,     25.10601806640625,
        29.5368709564209,   37.276004791259766,  46.09514236450195,    51.63799285888672,
        37.28871154785156,  42.73802947998047,   52.16801452636719,    62.67799758911133,
        69.23931884765625};
    (void)state;
    const float line[] = {0.0F, 1.0F, 0.0F, 1.0F}; /* (2, 2, 1) */
    float squares[9], out[25], same[4];
    iso_tower_interpolate(line, 2, 4, 1, out);
    for (int i = 0; i < 16; i++)
        assert_true(fabs((double)out[i] - line_want[i % 4]) <= 1e-6);
    for (int i = 0; i < 9; i++)
        squares[i] = (float)(i * i);
    iso_tower_interpolate(squares, 3, 5, 1, out);
    for (int i = 0; i < 25; i++)
        assert_true(fabs((double)out[i] - squares_want[i]) <= 5e-5);
    iso_tower_interpolate(line, 2, 2, 1, same);
    assert_memory_equal(same, line, sizeof line);
}

static void another_image_size_is_taken_where_patches_fit(void **state)
{
    iso_error e = {0};
    (void)state;
    for (size_t i = 0; i < SHAPES_COUNT; i++) {
        iso_backbone *b = NULL;
        if (!SHAPES[i].side)
            continue;
        size_t side = SHAPES[i].side + 2 * SHAPES[i].patch;
        iso_backbone_options o = {.image_size = side};
        assert_int_equal(make(&b, &SHAPES[i], &o, NULL, NULL, &e), ISO_OK);
        assert_int_equal(b->shape.image_size, side);
        assert_int_equal(b->shape.native_size, SHAPES[i].side);
        assert_int_equal(b->shape.sample, 3 * side * side);
        iso_model *m;
        float *x = make_samples(b, 1), f[64];
        assert_int_equal(iso_model_open(&m, b, NULL, false, &e), ISO_OK);
        assert_int_equal(iso_model_features(m, x, 1, f, &e), ISO_OK);
        for (size_t j = 0; j < iso_model_dim(m); j++)
            assert_true(isfinite(f[j]));
        free(x);
        iso_model_close(m);
        iso_backbone_close(b);
        o.image_size = side + 1;
        assert_int_equal(make(&b, &SHAPES[i], &o, NULL, NULL, &e), ISO_ERR_DATA);
    }
}

/* ---- files that do not fit ---- */

static void U59_bad_configurations_of_each_family_are_refused(void **state)
{
    static const struct {
        size_t shape;
        const char *find, *replace, *says;
    } rows[] = {
        {0, "\"hidden_act\":\"gelu\"", "\"hidden_act\":\"swish\"", "hidden_act"},
        {0, "\"num_channels\":3", "\"num_channels\":3,\"use_swiglu_ffn\":true", "use_swiglu_ffn"},
        {0, "\"intermediate_size\":48", "\"mlp_ratio\":3", "mlp.fc1"},
        {0, "\"intermediate_size\":48", "\"mlp_ratio\":-1", "mlp_ratio"},
        {0, "\"num_hidden_layers\":2", "\"num_hidden_layers\":3", "encoder.layer.2"},
        {1, "\"num_register_tokens\":3", "\"num_register_tokens\":4", "register_tokens"},
        {1, "\"num_register_tokens\":3", "\"num_register_tokens\":0", "num_register_tokens"},
        {2, "\"projection_dim\":40", "\"projection_dim\":39", "visual_projection"},
        {2, "\"projection_dim\":40", "\"projection_dim\":0", "projection_dim"},
        {2, "\"model_type\":\"clip_vision_model\"", "\"model_type\":\"clip\"", "vision_config"},
        {2, "\"patch_size\":4", "\"patch_size\":24", "patch_size"},
        {5, "\"vocab_size\":50", "\"vocab_size\":51", "word_embeddings"},
        {5, "\"vocab_size\":50", "\"vocab_size\":1000000000000", "vocab_size"},
        {5, "\"max_position_embeddings\":14", "\"max_position_embeddings\":15",
         "position_embeddings"},
        {5, "\"max_position_embeddings\":14", "\"max_position_embeddings\":1",
         "max_position_embeddings"},
        {5, "\"type_vocab_size\":2",
         "\"type_vocab_size\":2,\"position_embedding_type\":\"relative_key\"",
         "position_embedding_type"},
        {4, "\"encoder_attention_heads\":2", "\"encoder_attention_heads\":7", "does not divide"},
        {4, "\"num_mel_bins\":7", "\"num_mel_bins\":8", "conv1"},
        {4, "\"max_source_positions\":9", "\"max_source_positions\":10", "embed_positions"},
        {4, "\"d_model\":24", "\"d_model\":0", "d_model"}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_backbone *b = NULL;
        iso_error e = {0};
        iso_err err = make(&b, &SHAPES[rows[i].shape], NULL, rows[i].find, rows[i].replace, &e);
        if (iso_exit_code(err) != 3 || !strstr(e.text, rows[i].says))
            fail_msg("%s: code %d, \"%s\"", rows[i].replace, err, e.text);
    }
}

static void the_text_side_of_clip_is_no_module(void **state)
{
    (void)state;
    iso_backbone *b = open_family(&SHAPES[2]);
    assert_non_null(iso_backbone_module(b, "vision_model.encoder.layers.1.self_attn.q_proj"));
    assert_non_null(iso_backbone_module(b, "clip.vision_model.encoder.layers.1.self_attn.q_proj"));
    assert_null(iso_backbone_module(b, "text_model.encoder.layers.1.self_attn.q_proj"));
    assert_int_equal(b->shape.feature, 40);
    iso_backbone_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_gradient_of_each_family_is_that_of_its_loss),
        cmocka_unit_test(the_same_bits_for_any_number_of_threads),
        cmocka_unit_test(a_kept_prefix_changes_no_bit),
        cmocka_unit_test(a_text_does_not_see_its_neighbours_or_its_padding),
        cmocka_unit_test(positions_are_interpolated_bicubically),
        cmocka_unit_test(another_image_size_is_taken_where_patches_fit),
        cmocka_unit_test(U59_bad_configurations_of_each_family_are_refused),
        cmocka_unit_test(the_text_side_of_clip_is_no_module)};
    iso_set_threads(1);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
