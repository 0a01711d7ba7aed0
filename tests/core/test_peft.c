/* PEFT folders: the golden adapters in and out, what is refused and how, patterns, scales.
 * specs/security.md 9.1 (PEFT json), U54 (round trip to the bit), U89 (mixed ranks). */
#include "core/peft.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *scratch_dir(void)
{
    char *path = iso_strdup("/tmp/isofed-test-peft-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

/* ---- golden adapters ---- */

static char *golden(const char *below)
{
    const char *root = getenv("ISO_GOLDEN_DIR");
    return iso_path_join(root ? root : "../shared/golden", below);
}

static void assert_same_layers(const iso_peft *a, const iso_peft *b)
{
    assert_int_equal(a->count, b->count);
    for (size_t i = 0; i < a->count; i++) {
        const iso_lora_layer *x = &a->layers[i], *y = &b->layers[i];
        assert_string_equal(x->module, y->module);
        assert_int_equal(x->rank, y->rank);
        assert_int_equal(x->in, y->in);
        assert_int_equal(x->out, y->out);
        assert_memory_equal(&x->scale, &y->scale, sizeof x->scale);
        assert_memory_equal(x->A, y->A, x->rank * x->in * sizeof(float));
        assert_memory_equal(x->B, y->B, x->out * x->rank * sizeof(float));
        if (i)
            assert_true(strcmp(a->layers[i - 1].module, x->module) < 0);
    }
}

/* Every folder below `root` that holds an adapter_config.json; returns how many. */
static size_t round_trip_below(const char *root, const char *scratch)
{
    iso_error e;
    iso_names names;
    size_t found = 0;
    assert_int_equal(iso_list_dir(root, &names, &e), ISO_OK);
    for (size_t i = 0; i < names.count; i++) {
        char *path = iso_path_join(root, names.names[i]);
        if (iso_is_dir(path)) {
            found += round_trip_below(path, scratch);
        } else if (!strcmp(names.names[i], "adapter_config.json")) {
            iso_peft p, q;
            if (iso_peft_open(&p, root, true, &e))
                fail_msg("%s", e.text);
            iso_peft_output o = {.layers = p.layers,
                                 .count = p.count,
                                 .base_model = p.base_model,
                                 .use_rslora = p.use_rslora};
            if (iso_peft_write(scratch, &o, &e) || iso_peft_open(&q, scratch, true, &e))
                fail_msg("%s: %s", root, e.text);
            assert_same_layers(&p, &q);
            assert_string_equal(p.base_model, q.base_model);
            assert_int_equal(p.r, q.r);
            iso_peft_close(&p);
            iso_peft_close(&q);
            found++;
        }
        free(path);
    }
    iso_names_free(&names);
    return found;
}

static void U54_golden_adapters_round_trip_to_the_bit(void **state)
{
    (void)state;
    static const char *const folders[] = {"merging", "backbones"};
    size_t found = 0;
    char *scratch = scratch_dir();
    for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
        char *root = golden(folders[i]);
        if (iso_is_dir(root))
            found += round_trip_below(root, scratch);
        free(root);
    }
    iso_error e;
    assert_int_equal(iso_remove_tree(scratch, &e), ISO_OK);
    free(scratch);
    if (!found)
        skip(); /* a machine without the golden folder */
    print_message("%zu adapters\n", found);
}

/* ---- made adapters ---- */

typedef struct {
    const char *name;
    size_t rows, cols;
} shape;

static const float values[64] = {1, 2, 3, 4, 5, 6, 7, 8};

static void tensors_of(iso_buf *out, const shape *s, size_t n, const iso_tensor *like)
{
    iso_named_tensor t[8];
    iso_error e;
    for (size_t i = 0; i < n; i++)
        t[i] = (iso_named_tensor){s[i].name,
                                  {.dtype = like ? like->dtype : ISO_F32,
                                   .ndim = 2,
                                   .shape = {s[i].rows, s[i].cols},
                                   .data = like ? like->data : values}};
    assert_int_equal(iso_safetensors_write_buf(out, t, n, NULL, 0, &e), ISO_OK);
}

static const shape good[] = {
    {"base_model.model.x.q.lora_A.weight", 2, 3},
    {"base_model.model.x.q.lora_B.weight", 4, 2},
};

static iso_err parse(iso_peft *p, const char *config, const iso_buf *tensors, iso_error *e)
{
    return iso_peft_parse(p, config, strlen(config), tensors->data, tensors->size, true, "adapter",
                          e);
}

static void S9_1_config_is_checked(void **state)
{
    (void)state;
#define BASE "\"peft_type\":\"LORA\",\"lora_alpha\":4"
    static const struct {
        const char *config;
        iso_err code;
        const char *says; /* part of the line */
    } rows[] = {
        {"{" BASE ",\"r\":2}", ISO_OK, NULL},
        {"{" BASE ",\"r\":2,\"rank_pattern\":null,\"modules_to_save\":null,\"auto_mapping\":null}",
         ISO_OK, NULL},
        {"{" BASE ",\"r\":8,\"rank_pattern\":{\"q\":2}}", ISO_OK, NULL},
        {"{" BASE ",\"r\":2,\"target_modules\":\".*(q|k)$\"}", ISO_OK, NULL},
        {"[]", ISO_ERR_DATA, "not a JSON object"},
        {"{" BASE "}", ISO_ERR_DATA, "\"r\" is missing"},
        {"{" BASE ",\"r\":0}", ISO_ERR_DATA, "\"r\" is 0; expected 1..4096"},
        {"{" BASE ",\"r\":-1}", ISO_ERR_DATA, "1..4096"},
        {"{" BASE ",\"r\":2147483648}", ISO_ERR_DATA, "1..4096"},
        {"{" BASE ",\"r\":4097}", ISO_ERR_DATA, "1..4096"},
        {"{" BASE ",\"r\":2.5}", ISO_ERR_DATA, "\"r\" is not an integer"},
        {"{" BASE ",\"r\":NaN}", ISO_ERR_DATA, "adapter_config.json"},
        {"{" BASE ",\"r\":\"2\"}", ISO_ERR_DATA, "\"r\" is not an integer"},
        {"{" BASE ",\"r\":2,\"r\":2}", ISO_ERR_DATA, "duplicate"},
        {"{\"peft_type\":\"LORA\",\"r\":2}", ISO_ERR_DATA, "lora_alpha"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":1e300}", ISO_ERR_DATA, "lora_alpha"},
        {"{\"peft_type\":\"LORA\",\"r\":2,\"lora_alpha\":\"8\"}", ISO_ERR_DATA, "lora_alpha"},
        {"{\"peft_type\":\"LOHA\",\"r\":2,\"lora_alpha\":4}", ISO_ERR_DATA, "only LORA"},
        {"{\"peft_type\":\"ISOFED_DATA\",\"r\":2,\"lora_alpha\":4}", ISO_ERR_DATA, "only LORA"},
        {"{\"r\":2,\"lora_alpha\":4}", ISO_ERR_DATA, "peft_type"},
        {"{" BASE ",\"r\":2,\"use_dora\":true}", ISO_ERR_DATA, "DoRA"},
        {"{" BASE ",\"r\":2,\"fan_in_fan_out\":true}", ISO_ERR_DATA, "fan_in_fan_out"},
        {"{" BASE ",\"r\":2,\"bias\":\"all\"}", ISO_ERR_DATA, "bias"},
        {"{" BASE ",\"r\":2,\"lora_bias\":true}", ISO_ERR_DATA, "lora_bias"},
        {"{" BASE ",\"r\":2,\"auto_mapping\":{\"a\":\"b\"}}", ISO_ERR_DATA, "never loaded"},
        {"{" BASE ",\"r\":2,\"modules_to_save\":[\"head\"]}", ISO_ERR_DATA, "modules_to_save"},
        {"{" BASE ",\"r\":2,\"rank_pattern\":{\"(a+)+$\":2}}", ISO_ERR_DATA, "regular expression"},
        {"{" BASE ",\"r\":2,\"alpha_pattern\":{\"^q\":2}}", ISO_ERR_DATA, "regular expression"},
        {"{" BASE ",\"r\":2,\"rank_pattern\":{\"q\":0}}", ISO_ERR_DATA, "rank_pattern"},
        {"{" BASE ",\"r\":2,\"rank_pattern\":[2]}", ISO_ERR_DATA, "rank_pattern"},
        {"{" BASE ",\"r\":2,\"alpha_pattern\":{\"q\":null}}", ISO_ERR_DATA, "alpha_pattern"},
        {"{" BASE ",\"r\":2,\"target_modules\":[1]}", ISO_ERR_DATA, "target_modules"},
        {"{" BASE ",\"r\":3}", ISO_ERR_SHAPE, "lora_A is 2x3, but adapter_config.json gives it"},
    };
    iso_buf tensors = {0};
    tensors_of(&tensors, good, 2, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_error e = {0};
        iso_peft p;
        iso_err got = parse(&p, rows[i].config, &tensors, &e);
        if (got != rows[i].code || (rows[i].says && !strstr(e.text, rows[i].says)))
            fail_msg("%s: code %d, \"%s\"", rows[i].config, got, e.text);
        if (got)
            assert_int_equal(strncmp(e.text, "adapter: ", 9), 0);
        iso_peft_close(&p);
    }
    iso_buf_free(&tensors);
}

static void S9_1_tensors_are_checked(void **state)
{
    (void)state;
    static const struct {
        shape s[2];
        size_t n;
        iso_err code;
        const char *says;
    } rows[] = {
        {{{"base_model.model.q.lora_A.weight", 2, 3}}, 1, ISO_ERR_DATA, "has no lora_B"},
        {{{"base_model.model.q.lora_B.weight", 2, 3}}, 1, ISO_ERR_DATA, "has no lora_A"},
        {{{"base_model.model.q.lora_A.weight", 2, 3}, {"base_model.model.q.lora_B.weight", 4, 3}},
         2,
         ISO_ERR_SHAPE,
         "layer \"q\": lora_A is 2x3, lora_B is 4x3"},
        {{{"base_model.model.q.lora_A.weight", 2, 0}, {"base_model.model.q.lora_B.weight", 4, 2}},
         2,
         ISO_ERR_SHAPE,
         "expected (r, in)"},
        {{{"lora_unet_q.lora_down.weight", 2, 3}}, 1, ISO_ERR_DATA, "not named as PEFT"},
        {{{"base_model.model..lora_A.weight", 2, 3}}, 1, ISO_ERR_DATA, "not named as PEFT"},
        {{{"base_model.model.lora_A.weight", 2, 3}}, 1, ISO_ERR_DATA, "not named as PEFT"},
        {{{"q.lora_A.weight", 2, 3}}, 1, ISO_ERR_DATA, "not named as PEFT"},
        {{{"base_model.model.q.lora_magnitude_vector", 2, 3}}, 1, ISO_ERR_DATA, "DoRA"},
        {{{"base_model.model.q.lora_embedding_A", 2, 3}}, 1, ISO_ERR_DATA, "embeddings"},
        {{{NULL, 0, 0}}, 0, ISO_ERR_DATA, "no LoRA layer"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_buf tensors = {0};
        iso_error e = {0};
        iso_peft p;
        tensors_of(&tensors, rows[i].s, rows[i].n, NULL);
        iso_err got = parse(&p, "{" BASE ",\"r\":2}", &tensors, &e);
        if (got != rows[i].code || !strstr(e.text, rows[i].says))
            fail_msg("row %zu: code %d, \"%s\"", i, got, e.text);
        iso_buf_free(&tensors);
    }
}

static void S9_1_nonfinite_is_named(void **state)
{
    (void)state;
    static const float with_nan[64] = {0, 0, 0, 0, NAN};
    static const double too_large[64] = {0, 1e300};
    static const int64_t whole[64] = {0};
    static const struct {
        iso_tensor like;
        iso_err code;
        const char *says;
    } rows[] = {
        {{.dtype = ISO_F32, .data = with_nan},
         ISO_ERR_NONFINITE,
         "layer \"x.q\": lora_A[4] is nan"},
        {{.dtype = ISO_F64, .data = too_large}, ISO_ERR_NONFINITE, "lora_A[1] is inf"},
        {{.dtype = ISO_I64, .data = whole}, ISO_ERR_SHAPE, "type I64"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_buf tensors = {0};
        iso_error e = {0};
        iso_peft p;
        tensors_of(&tensors, good, 2, &rows[i].like);
        assert_int_equal(parse(&p, "{" BASE ",\"r\":2}", &tensors, &e), rows[i].code);
        if (!strstr(e.text, rows[i].says))
            fail_msg("\"%s\"", e.text);
        iso_buf_free(&tensors);
    }
}

/* Layers of several ranks and scales; one name is the end of another, as PEFT's rule would have it.
 */
static void U89_patterns_give_back_every_layer(void **state)
{
    (void)state;
    static const struct {
        const char *module;
        size_t rank;
        double scale;
    } rows[] = {
        {"a.q", 2, 2},       {"a.k", 2, 2},          {"q", 3, 2},      {"b.a.q", 4, 2},
        {"c", 2, 1.0 / 3.0}, {"x.c", 2, 2},          {"d", 2, 0.1},    {"e", 3, 16.0 / 3.0},
        {"f", 3, 0},         {"g", 2, 1.2345678e-7}, {"z.c.q", 2, -2},
    };
    enum { N = sizeof rows / sizeof *rows };
    static float zeros[64];
    for (int rslora = 0; rslora < 2; rslora++) {
        iso_lora_layer layers[N];
        for (size_t i = 0; i < N; i++)
            layers[i] = (iso_lora_layer){.module = iso_strdup(rows[i].module),
                                         .rank = rows[i].rank,
                                         .in = 3,
                                         .out = 2,
                                         .scale = rows[i].scale,
                                         .A = zeros,
                                         .B = zeros};
        iso_json *extra = iso_json_object();
        iso_json_set(extra, "method", iso_json_string("iso_cts"));
        iso_peft_output o = {.layers = layers, .count = N, .use_rslora = rslora, .extra = extra};
        iso_buf config = {0}, tensors = {0};
        iso_error e;
        iso_peft p;
        if (iso_peft_write_bufs(&o, &config, &tensors, &e) ||
            iso_peft_parse(&p, config.data, config.size, tensors.data, tensors.size, true, "it",
                           &e))
            fail_msg("%s\n%s", e.text, (char *)config.data);
        assert_int_equal(p.count, N);
        for (size_t i = 0; i < N; i++) {
            const iso_lora_layer *l = iso_peft_find(&p, rows[i].module);
            assert_non_null(l);
            assert_int_equal(l->rank, rows[i].rank);
            double error = l->scale - rows[i].scale; /* to the last bit of the division */
            assert_true(fabs(error) <= 2.3e-16 * fabs(rows[i].scale));
            free(layers[i].module);
        }
        assert_null(iso_peft_find(&p, "nowhere"));
        assert_string_equal(iso_json_str(iso_json_key(iso_json_key(p.config, "isofed"), "method")),
                            "iso_cts");
        iso_peft_close(&p);
        iso_json_free(extra);
        iso_buf_free(&config);
        iso_buf_free(&tensors);
    }
}

static void scales_of_whole_alphas_come_back_to_the_bit(void **state)
{
    (void)state;
    float zeros[4] = {0};
    for (size_t rank = 1; rank <= 64; rank++)
        for (int alpha = 1; alpha <= 64; alpha += 3)
            for (int rslora = 0; rslora < 2; rslora++) {
                char module[] = "m";
                iso_lora_layer layer = {
                    .module = module, .rank = 1, .in = 1, .out = 1, .A = zeros, .B = zeros};
                static float many[64];
                layer.rank = rank;
                layer.A = layer.B = many;
                layer.scale = iso_peft_scale(alpha, rank, rslora);
                iso_peft_output o = {.layers = &layer, .count = 1, .use_rslora = rslora};
                iso_buf config = {0}, tensors = {0};
                iso_error e;
                iso_peft p;
                assert_int_equal(iso_peft_write_bufs(&o, &config, &tensors, &e), ISO_OK);
                assert_int_equal(iso_peft_parse(&p, config.data, config.size, tensors.data,
                                                tensors.size, true, "it", &e),
                                 ISO_OK);
                assert_true(p.layers[0].scale == layer.scale);
                assert_true(p.alpha == alpha);
                iso_peft_close(&p);
                iso_buf_free(&config);
                iso_buf_free(&tensors);
            }
}

static void what_cannot_be_read_is_not_written(void **state)
{
    (void)state;
    char module[] = "m";
    float one[4] = {1};
    static const struct {
        size_t rank, count;
        double scale;
    } rows[] = {{0, 1, 1}, {5000, 1, 1}, {1, 1, (double)NAN}, {1, 1, 1e9}, {1, 0, 1}, {1, 2, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_lora_layer layers[2];
        for (int k = 0; k < 2; k++)
            layers[k] = (iso_lora_layer){module, 1, 1, rows[i].rank, rows[i].scale, one, one};
        iso_peft_output o = {.layers = layers, .count = rows[i].count};
        iso_buf config = {0}, tensors = {0};
        iso_error e;
        assert_int_not_equal(iso_peft_write_bufs(&o, &config, &tensors, &e), ISO_OK);
        iso_buf_free(&config);
        iso_buf_free(&tensors);
    }
}

static void S9_1_pickle_is_never_read(void **state)
{
    (void)state;
    char *folder = scratch_dir();
    char *path = iso_path_join(folder, "adapter_model.bin");
    iso_error e;
    iso_peft p;
    assert_int_equal(iso_write_file(path, "\x80\x02", 2, 0644, &e), ISO_OK);
    assert_int_equal(iso_peft_open(&p, folder, true, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "convert to safetensors"));
    assert_int_equal(iso_remove_tree(folder, &e), ISO_OK);
    free(path);
    free(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(U54_golden_adapters_round_trip_to_the_bit),
        cmocka_unit_test(S9_1_config_is_checked),
        cmocka_unit_test(S9_1_tensors_are_checked),
        cmocka_unit_test(S9_1_nonfinite_is_named),
        cmocka_unit_test(U89_patterns_give_back_every_layer),
        cmocka_unit_test(scales_of_whole_alphas_come_back_to_the_bit),
        cmocka_unit_test(what_cannot_be_read_is_not_written),
        cmocka_unit_test(S9_1_pickle_is_never_read),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
