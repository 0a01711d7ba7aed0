/* isofed merge and isofed inspect as people use them: texts, exit codes, files that load again. */
#include "tests/cli/run_isofed.h"

#include "core/json.h"
#include "core/peft.h"
#include "core/rng.h"
#include "crypto/init.h"
#include "crypto/key.h"

#include <math.h>
#include <sys/stat.h>

typedef struct {
    const char *name;
    size_t out, in, rank;
    double scale;
} layer_spec;

static char *temp;
static run_result r;

/* A PEFT folder temp/name; negative: -B; stream 0: all zero. */
static void write_adapter(const char *name, const layer_spec *specs, size_t n, uint64_t stream,
                          bool negative, const char *base)
{
    iso_lora_layer layers[8];
    for (size_t i = 0; i < n; i++) {
        const layer_spec *s = &specs[i];
        layers[i] = (iso_lora_layer){(char *)(uintptr_t)s->name,
                                     s->out,
                                     s->in,
                                     s->rank,
                                     s->scale,
                                     iso_calloc(s->rank * s->in, 4),
                                     iso_calloc(s->out * s->rank, 4)};
        iso_rng g = iso_rng_make(3, ISO_RNG_TEST, 10 * stream + i);
        for (size_t k = 0; k < s->rank * s->in; k++)
            layers[i].A[k] = (float)iso_rng_normal(&g);
        for (size_t k = 0; k < s->out * s->rank && stream; k++)
            layers[i].B[k] = (float)(negative ? -iso_rng_normal(&g) : iso_rng_normal(&g));
    }
    char *path = iso_path_join(temp, name);
    iso_peft_output o = {.layers = layers, .count = n, .base_model = base};
    iso_error e;
    if (iso_peft_write(path, &o, &e))
        fail_msg("%s", e.text);
    free(path);
    for (size_t i = 0; i < n; i++)
        free(layers[i].A), free(layers[i].B);
}

static const layer_spec two[] = {{"blk.0.q", 12, 10, 2, 1.0}, {"blk.0.v", 8, 10, 2, 1.0}};
static const layer_spec three[] = {{"blk.0.q", 12, 10, 4, 0.5}, {"blk.0.v", 8, 10, 3, 2.0}};
static const layer_spec renamed[] = {{"blk.0.q", 12, 10, 2, 1.0}, {"blk.0.value", 8, 10, 2, 1.0}};
static const layer_spec wider[] = {{"blk.0.q", 12, 11, 2, 1.0}};

static int set_up(void **state)
{
    (void)state;
    temp = make_temp_dir();
    write_adapter("a", two, 2, 1, false, "vit");
    write_adapter("b", three, 2, 2, false, "vit");
    write_adapter("c", two, 2, 3, false, "vit");
    write_adapter("minus-a", two, 2, 1, true, "vit");
    write_adapter("renamed", renamed, 2, 4, false, "vit");
    write_adapter("only-q", two, 1, 5, false, "vit");
    write_adapter("wider", wider, 1, 6, false, "vit");
    write_adapter("other-base", two, 2, 7, false, "deit");
    write_adapter("zero", two, 2, 0, false, "vit");
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    iso_err err = iso_remove_tree(temp, NULL);
    free(temp);
    return (int)err;
}

/* Words that name files of `temp` start with '@'. */
static void isofed(const char *line)
{
    char copy[1024], *words[64], *save = NULL;
    const char *args[64];
    size_t n = 0;
    snprintf(copy, sizeof copy, "%s", line);
    for (char *w = strtok_r(copy, " ", &save); w; w = strtok_r(NULL, " ", &save)) {
        words[n] = *w == '@' ? iso_path_join(temp, w + 1) : iso_strdup(w);
        args[n] = words[n];
        n++;
    }
    args[n] = NULL;
    run_isofed(temp, args, &r);
    for (size_t i = 0; i < n; i++)
        free(words[i]);
}

static void expect(const char *line, int rc, const char *in_out, const char *in_err)
{
    isofed(line);
    if (r.rc != rc || (in_out && !strstr(r.out, in_out)) || (in_err && !strstr(r.err, in_err)))
        fail_msg("isofed %s: exit %d (wanted %d), wanted \"%s\" and \"%s\" in\n%s\n%s", line, r.rc,
                 rc, in_out ? in_out : "", in_err ? in_err : "", r.out, r.err);
    if (rc != 0) { /* errors are one line */
        char *newline = strchr(r.err, '\n');
        assert_true(newline && newline[1] == 0);
    }
}

static char *digest_of(const char *line)
{
    isofed(line);
    if (r.rc != 0)
        fail_msg("isofed %s: exit %d: %s", line, r.rc, r.err);
    iso_json *j = NULL;
    assert_int_equal(iso_json_parse(r.out, strlen(r.out), "stdout", &j, NULL), ISO_OK);
    char *digest = iso_strdup(iso_json_str(iso_json_key(j, "digest")));
    iso_json_free(j);
    return digest;
}

static void help_and_list_document_the_methods(void **state)
{
    (void)state;
    expect("merge --help", 0, "isofed merge adapters/weld", NULL);
    expect("inspect --help", 0, "example", NULL);
    expect("merge --list", 0, "iso_cts", NULL);
    static const char *const words[] = {
        "iso_c\n", "task_arithmetic", "average", "common_fraction=0.8",
        "needs",   "Marczak",         "Ilharco"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        assert_non_null(strstr(r.out, words[i]));
    expect("merge --list --json", 0, "\"parameters\"", NULL);
}

static void U90_adapters_in_adapter_out_without_a_base(void **state)
{
    (void)state;
    expect("merge @a @b @c -o @out1", 0, "3 inputs: 2 layers", NULL);
    assert_non_null(strstr(r.out, "convention rank"));
    char *path = iso_path_join(temp, "out1");
    iso_peft p = {0};
    iso_error e;
    if (iso_peft_open(&p, path, true, &e)) /* U89: loads again */
        fail_msg("%s", e.text);
    assert_int_equal(p.count, 2);
    assert_string_equal(p.base_model, "vit");
    const iso_json *recipe = iso_json_key(p.config, "isofed");
    assert_string_equal(iso_json_str(iso_json_key(recipe, "method")), "iso_cts");
    assert_int_equal(iso_json_count(iso_json_key(recipe, "inputs")), 3);
    iso_peft_close(&p);
    free(path);
}

static void U99_same_bits_again_and_for_any_number_of_threads(void **state)
{
    (void)state;
    char *first = digest_of("merge @a @b @c -o @out2 --json --threads 1");
    static const char *const again[] = {"merge @a @b @c -o @out3 --json --threads 1",
                                        "merge @a @b @c -o @out4 --json --threads 2",
                                        "merge @a @b @c -o @out5 --json --threads 3"};
    for (size_t i = 0; i < 3; i++) {
        char *digest = digest_of(again[i]);
        assert_string_equal(digest, first);
        free(digest);
    }
    char *other = digest_of("merge @a @b @c -o @out6 --json --common-fraction 0");
    assert_string_not_equal(other, first);
    free(other);
    free(first);
}

static void U93_unmatched_layers_are_an_error_with_their_names(void **state)
{
    (void)state;
    expect("merge @a @renamed -o @out7", 1, NULL,
           "1 of 3 target layers match; unmatched: blk.0.v (only in ");
    assert_non_null(strstr(r.err, "blk.0.value"));
    char *path = iso_path_join(temp, "out7");
    assert_false(iso_path_exists(path)); /* nothing half-done */
    free(path);
    expect("merge @a @renamed -o @out8 --allow-missing", 0, "3 layers", NULL);
    /* in two of three: said, not refused (N4) */
    expect("merge @a @c @only-q -o @out9", 0, NULL,
           "layer blk.0.v: in 2 of 3 inputs; missing ones count as zero");
    expect("merge @a @c @only-q -o @out9 --quiet", 0, NULL, NULL);
    assert_string_equal(r.out, "");
    assert_string_equal(r.err, "");
}

static void a_merge_that_does_nothing_says_so(void **state)
{
    (void)state;
    expect("merge @a @minus-a -o @out10", 0, NULL, "zero in 2 of 2 layers"); /* U88 */
    expect("merge @zero @zero -o @out10", 0, NULL,
           "the merged update is zero in 2 of 2 layers; the result equals the base");
}

static void U91_rank_and_energy(void **state)
{
    (void)state;
    isofed("merge @a @b @c -o @out11 --rank 2 --json");
    assert_int_equal(r.rc, 0);
    iso_json *j = NULL;
    assert_int_equal(iso_json_parse(r.out, strlen(r.out), "stdout", &j, NULL), ISO_OK);
    const iso_json *layers = iso_json_key(j, "layers");
    for (size_t i = 0; i < iso_json_count(layers); i++) {
        double rank = 0, energy = 0;
        assert_true(iso_json_num(iso_json_key(iso_json_at(layers, i), "rank"), &rank));
        assert_true(iso_json_num(iso_json_key(iso_json_at(layers, i), "energy_kept"), &energy));
        assert_true(rank == 2 && energy > 0.1 && energy < 1);
    }
    iso_json_free(j);
    expect("merge @a @b -o @out12 --method average --energy 0.8", 0, "kept energy 0.", NULL);
}

static void dry_run_plans_and_writes_nothing(void **state)
{
    (void)state;
    expect("merge @a @b @c --dry-run --rank 3", 0, "3 inputs, 2 layers, ranks 2..4", NULL);
    assert_non_null(strstr(r.out, "output rank at most 3"));
    expect("merge @a @b @c --dry-run -o @out13 --json", 0, "\"needs_bytes\"", NULL);
    char *path = iso_path_join(temp, "out13");
    assert_false(iso_path_exists(path));
    free(path);
}

static void wrong_use_is_2_and_bad_data_is_3(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        int rc;
        const char *says;
    } rows[] = {
        {"merge @a @b", 2, "no output"},
        {"merge -o @x", 2, "no inputs"},
        {"merge @a @b -o @x --metod iso_c", 2, "--method"},
        {"merge @a @b -o @x --method iso_d", 2, "iso_c"},
        {"merge @a @b -o @x --weights 1", 2, "1 weights for 2 inputs"},
        {"merge @a @b -o @x --weights 1,-2", 2, "weight 2 is -2"},
        {"merge @a @b -o @x --alpha one", 2, "takes a number"},
        {"merge @a @b -o @x --common-fraction 2", 2, "0 to 1"},
        {"merge @a @b -o @x --method average --alpha 2", 2, "no parameter \"alpha\""},
        {"merge @a @b -o @x --set beta", 2, "NAME=VALUE"},
        {"merge @a @b -o @x --base @c", 2, "--base is for whole weights"},
        {"merge @a @nothing -o @x", 3, "no such file"},
        {"merge @a @wider -o @x --allow-missing", 3, "12x11"},
        {"merge @a @other-base -o @x", 3, "base model \"deit\""},
        {"inspect @nothing", 3, "no such file"},
        {"inspect @a --plot", 2, "plot"},
        {"inspect", 2, "usage"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        expect(rows[i].line, rows[i].rc, NULL, rows[i].says);
    expect("merge @a @other-base -o @out14 --any-base", 0, NULL, NULL);
}

static void nonfinite_adapters_are_refused_with_their_place(void **state)
{
    (void)state;
    char *path = iso_path_join(temp, "spoilt");
    float A[20] = {0}, B[24] = {1};
    A[7] = NAN;
    iso_lora_layer l = {(char *)(uintptr_t) "blk.0.q", 12, 10, 2, 1.0, A, B};
    iso_peft_output o = {.layers = &l, .count = 1};
    assert_int_equal(iso_peft_write(path, &o, NULL), ISO_OK);
    expect("merge @a @spoilt -o @x --allow-missing", 3, NULL, "blk.0.q");
    free(path);
}

static void whole_tensors_merge_too(void **state)
{
    (void)state;
    static double w[2][12], b[2][3];
    for (size_t t = 0; t < 2; t++) {
        iso_rng g = iso_rng_make(4, ISO_RNG_TEST, t);
        for (size_t i = 0; i < 12; i++)
            w[t][i] = iso_rng_normal(&g);
        for (size_t i = 0; i < 3; i++)
            b[t][i] = iso_rng_normal(&g);
        iso_named_tensor tensors[] = {{"l.bias", {ISO_F64, 1, {3}, b[t]}},
                                      {"l.weight", {ISO_F64, 2, {3, 4}, w[t]}}};
        char *path = iso_path_join(temp, t ? "w1.safetensors" : "w0.safetensors");
        assert_int_equal(iso_safetensors_write(path, tensors, 2, NULL, 0, NULL), ISO_OK);
        free(path);
    }
    expect("merge @w0.safetensors @w1.safetensors -o @m.safetensors --method iso_c", 0,
           "1 by the method, 1 averaged, 0 copied", NULL);
    expect("merge @w0.safetensors @w1.safetensors -o @m32.safetensors --dtype F32", 0, NULL, NULL);
    expect("inspect @m32.safetensors", 0, "F32", NULL);
    expect("merge @w0.safetensors @w1.safetensors --base @w0.safetensors -o @b.safetensors "
           "--method average",
           0, NULL, NULL);
    char *path = iso_path_join(temp, "b.safetensors");
    iso_safetensors st = {0};
    assert_int_equal(iso_safetensors_open(&st, path, NULL), ISO_OK);
    double got[12];
    assert_int_equal(iso_tensor_to_f64(&iso_safetensors_find(&st, "l.weight")->view, got, NULL),
                     ISO_OK);
    for (size_t i = 0; i < 12; i++) /* base w0: the mean of 0 and w1 - w0, on top of w0 */
        assert_true(fabs(got[i] - 0.5 * (w[0][i] + w[1][i])) < 1e-14);
    iso_safetensors_close(&st);
    free(path);
    expect("merge @w0.safetensors @a -o @x", 2, NULL, "do not mix");
    expect("merge @w0.safetensors @w1.safetensors -o @x --rank 3", 2, NULL, "for adapters");
}

static void inspect_says_what_a_file_is(void **state)
{
    (void)state;
    expect("inspect @a @b @zero @other-base", 0, "adapter", NULL);
    assert_non_null(strstr(r.out, "2..4") ? r.out : strstr(r.out, "3..4"));
    assert_non_null(strstr(r.out, "zero update"));
    assert_non_null(strstr(r.out, "other base"));
    expect("inspect @a", 0, "blk.0.q", NULL);
    expect("inspect @a --json", 0, "\"spectrum\"", NULL);
    expect("inspect @a @b --plot @spectra.svg", 0, NULL, NULL);
    char *svg = iso_path_join(temp, "spectra.svg");
    iso_buf text = {0};
    assert_int_equal(iso_read_file(svg, 1 << 20, &text, NULL), ISO_OK);
    assert_non_null(strstr((const char *)text.data, "<svg"));
    iso_buf_free(&text);
    free(svg);

    char *other = iso_path_join(temp, "notes.txt");
    assert_int_equal(iso_write_file(other, "hello, world\n", 13, 0644, NULL), ISO_OK);
    expect("inspect @notes.txt", 3, NULL, "neither tensors");
    free(other);
}

static void inspect_shows_the_public_part_of_a_key_only(void **state)
{
    (void)state;
    iso_key key = {0};
    iso_error e;
    uint8_t seed[ISO_SEED_BYTES];
    char hex[65];
    memset(seed, 7, sizeof seed);
    if (iso_crypto_init(&e) || iso_key_from_seed(ISO_KEY_MERGE, seed, 1000, &key, &e))
        fail_msg("%s", e.text);
    char *path = iso_path_join(temp, "merge.key");
    if (iso_key_write(&key, path, NULL, NULL, &e))
        fail_msg("%s", e.text);
    iso_hex(hex, key.public_key, 32);
    expect("inspect @merge.key", 0, hex, NULL);
    iso_hex(hex, seed, 32);
    assert_null(strstr(r.out, hex));
    assert_int_equal(chmod(path, 0644), 0); /* S11 */
    expect("inspect @merge.key", 4, NULL, "chmod");
    iso_key_free(&key);
    free(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(help_and_list_document_the_methods),
        cmocka_unit_test(U90_adapters_in_adapter_out_without_a_base),
        cmocka_unit_test(U99_same_bits_again_and_for_any_number_of_threads),
        cmocka_unit_test(U93_unmatched_layers_are_an_error_with_their_names),
        cmocka_unit_test(a_merge_that_does_nothing_says_so),
        cmocka_unit_test(U91_rank_and_energy),
        cmocka_unit_test(dry_run_plans_and_writes_nothing),
        cmocka_unit_test(wrong_use_is_2_and_bad_data_is_3),
        cmocka_unit_test(nonfinite_adapters_are_refused_with_their_place),
        cmocka_unit_test(whole_tensors_merge_too),
        cmocka_unit_test(inspect_says_what_a_file_is),
        cmocka_unit_test(inspect_shows_the_public_part_of_a_key_only),
    };
    return cmocka_run_group_tests_name("isofed merge and inspect", tests, set_up, tear_down);
}
