/* Whole tensors out of core: the same bytes as in memory, sharded as the input; interrupted and
 * resumed; nothing half-written; refusals (specs/users.md U94, issue "Bad input"). */
#include "core/parallel.h"
#include "core/rng.h"
#include "merge/stream.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { LAYERS = 6, M = 20, N = 30, EMBEDDED = 40000, INPUTS = 3 };

static char *temp;
static iso_safetensors inputs[INPUTS];
static iso_dense_input dense[INPUTS];

/* temp/in<t>: two shards and an index; bf16 matrices, an f32 vector, an embedding of several
 * blocks, an integer tensor. */
static void write_checkpoint(size_t t)
{
    static float x[EMBEDDED], bias[N];
    static uint16_t bf16[LAYERS][M * N], embedded[EMBEDDED];
    static int64_t ids[4] = {0, 1, 2, 3};
    char names[LAYERS][32];
    iso_rng r = iso_rng_make(11, ISO_RNG_TEST, t);
    iso_named_tensor shard[2][LAYERS + 3];
    size_t count[2] = {0, 0};
    for (size_t l = 0; l < LAYERS; l++) {
        for (size_t i = 0; i < M * N; i++)
            bf16[l][i] = iso_f32_to_bf16((float)iso_rng_normal(&r));
        snprintf(names[l], sizeof names[l], "layers.%zu.weight", l);
        size_t k = l < LAYERS / 2 ? 0 : 1;
        shard[k][count[k]++] = (iso_named_tensor){names[l], {ISO_BF16, 2, {M, N}, bf16[l]}};
    }
    for (size_t i = 0; i < EMBEDDED; i++)
        embedded[i] = iso_f32_to_bf16((float)iso_rng_normal(&r));
    for (size_t i = 0; i < N; i++)
        bias[i] = x[i] = (float)iso_rng_normal(&r);
    shard[0][count[0]++] =
        (iso_named_tensor){"embed.weight", {ISO_BF16, 2, {EMBEDDED / 10, 10}, embedded}};
    shard[1][count[1]++] = (iso_named_tensor){"norm.bias", {ISO_F32, 1, {N}, bias}};
    shard[1][count[1]++] = (iso_named_tensor){"position_ids", {ISO_I64, 1, {4}, ids}};
    char *folder = iso_strf("%s/in%zu", temp, t);
    assert_int_equal(iso_make_dirs(folder, 0755, NULL), ISO_OK);
    iso_json *root = iso_json_object(), *map = iso_json_object();
    for (size_t k = 0; k < 2; k++) {
        char *name = iso_strf("part-%zu.safetensors", k), *path = iso_path_join(folder, name);
        assert_int_equal(iso_safetensors_write(path, shard[k], count[k], NULL, 0, NULL), ISO_OK);
        for (size_t i = 0; i < count[k]; i++)
            iso_json_set(map, shard[k][i].name, iso_json_string(name));
        free(name), free(path);
    }
    iso_json_set(root, "weight_map", map);
    iso_buf text = {0};
    char *path = iso_path_join(folder, "model.safetensors.index.json");
    assert_int_equal(iso_json_dump(root, ISO_JSON_PRETTY, &text, NULL), ISO_OK);
    assert_int_equal(iso_write_file(path, text.data, text.size, 0644, NULL), ISO_OK);
    iso_buf_free(&text);
    iso_json_free(root);
    iso_error e;
    if (iso_safetensors_open(&inputs[t], folder, &e))
        fail_msg("%s", e.text);
    dense[t] = (iso_dense_input){"in", inputs[t].items, inputs[t].count};
    free(folder), free(path);
}

static int set_up(void **state)
{
    (void)state;
    const char *root = getenv("TMPDIR");
    temp = iso_strf("%s/isofed-stream-XXXXXX", root ? root : "/tmp");
    if (!temp || !mkdtemp(temp))
        return 1;
    for (size_t t = 0; t < INPUTS; t++)
        write_checkpoint(t);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t t = 0; t < INPUTS; t++)
        iso_safetensors_close(&inputs[t]);
    int rc = (int)iso_remove_tree(temp, NULL);
    free(temp);
    return rc;
}

/* ---- runs ---- */
typedef struct {
    const char *method;
    bool resume, with_base;
    size_t stop_after; /* tensors; 0: never */
    uint8_t identity;
    iso_merge_summary summary;
    size_t kept_shards;
    iso_error e;
} trial;

static volatile int stop;
static size_t stop_after;

static void on_progress(void *ctx, size_t done, size_t total)
{
    (void)ctx, (void)total;
    stop = stop_after && done >= stop_after;
}

static iso_merge_options options_of(const trial *c)
{
    iso_merge_options o = iso_merge_defaults(iso_method_find(c->method));
    stop = 0;
    stop_after = c->stop_after;
    o.progress = on_progress;
    o.stop = &stop;
    return o;
}

static iso_err run(trial *c, const char *out)
{
    static const iso_safetensors *maps[INPUTS];
    for (size_t t = 0; t < INPUTS; t++)
        maps[t] = &inputs[t];
    size_t T = c->with_base ? INPUTS - 1 : INPUTS;
    iso_digest identity = {{c->identity}};
    iso_stream_options so = {.out = out,
                             .resume = c->resume,
                             .maps = maps,
                             .map_count = INPUTS,
                             .like = &inputs[0],
                             .recipe = "{}",
                             .identity = &identity};
    iso_stream *s = NULL;
    iso_merged_dense m = {0};
    iso_merge_options o = options_of(c);
    iso_err err = iso_stream_open(&so, &s, &c->e);
    if (!err) {
        o.sink = iso_stream_sink(s);
        err = iso_merge_dense(dense, T, c->with_base ? &dense[INPUTS - 1] : NULL, ISO_BF16, &o, &m,
                              &c->e);
    }
    if (!err)
        err = iso_stream_commit(s, &c->e);
    if (!err) {
        uint64_t written;
        size_t shards;
        iso_stream_counts(s, &written, &shards, &c->kept_shards);
        c->summary = m.summary;
    }
    iso_stream_close(s);
    iso_merged_dense_free(&m);
    return err;
}

static char *at(const char *name)
{
    char *path = iso_path_join(temp, name);
    assert_non_null(path);
    return path;
}

static void need(trial *c, const char *out)
{
    if (run(c, out))
        fail_msg("%s: %s", c->method, c->e.text);
}

static iso_digest content(const char *path, size_t *shards)
{
    iso_safetensors st = {0};
    iso_error e;
    if (iso_safetensors_open(&st, path, &e))
        fail_msg("%s", e.text);
    iso_digest d = iso_tensor_list_digest(st.items, st.count);
    *shards = st.map_count;
    iso_safetensors_close(&st);
    return d;
}

static void U94_shards_hold_what_a_merge_in_memory_gives(void **state)
{
    (void)state;
    static const char *const methods[] = {"average", "iso_c", "iso_cts", "task_arithmetic"};
    for (size_t k = 0; k < 8; k++) {
        trial c = {.method = methods[k / 2], .with_base = k % 2};
        char *name = iso_strf("out%zu", k), *out = at(name),
             *file = iso_strf("%s.safetensors", out);
        iso_merge_options o = options_of(&c);
        iso_merged_dense m = {0};
        assert_int_equal(iso_merge_dense(dense, c.with_base ? INPUTS - 1 : INPUTS,
                                         c.with_base ? &dense[INPUTS - 1] : NULL, ISO_BF16, &o, &m,
                                         NULL),
                         ISO_OK);
        iso_digest want = iso_tensor_list_digest(m.tensors, m.count);
        need(&c, out);
        need(&c, file);
        size_t shards;
        iso_digest got = content(out, &shards);
        assert_int_equal(shards, 2);
        assert_true(iso_digest_equal(&got, &want));
        got = content(file, &shards);
        assert_int_equal(shards, 1);
        assert_true(iso_digest_equal(&got, &want));
        assert_int_equal(c.summary.by_copy, 1);
        iso_merged_dense_free(&m);
        free(name), free(out), free(file);
    }
}

static void U94_an_interrupted_merge_leaves_complete_shards_and_resumes(void **state)
{
    (void)state;
    char *whole = at("whole"), *out = at("broken"), *part = at("broken.part");
    trial c = {.method = "average"};
    size_t shards;
    need(&c, whole);
    iso_digest want = content(whole, &shards);
    iso_set_threads(1);
    c.stop_after = 5; /* the first shard has four tensors */
    assert_int_equal(run(&c, out), ISO_ERR_INTERRUPTED);
    assert_false(iso_path_exists(out));
    assert_true(iso_path_exists(part));
    iso_names names;
    assert_int_equal(iso_list_dir(part, &names, NULL), ISO_OK);
    assert_int_equal(names.count, 2); /* its identity and one shard; no temporary file */
    iso_names_free(&names);

    c.stop_after = 0;
    assert_int_equal(run(&c, out), ISO_ERR_USAGE); /* not silently started over */
    assert_non_null(strstr(c.e.text, "--resume"));
    c.resume = true;
    c.identity = 9;
    assert_int_equal(run(&c, out), ISO_ERR_USAGE); /* another merge's */
    assert_non_null(strstr(c.e.text, "other inputs or parameters"));
    assert_true(iso_path_exists(part));
    c.identity = 0;
    need(&c, out);
    assert_int_equal(c.kept_shards, 1);
    assert_int_equal(c.summary.resumed, 4);
    assert_false(iso_path_exists(part));
    iso_digest got = content(out, &shards);
    assert_true(iso_digest_equal(&got, &want));
    free(whole), free(out), free(part);
}

static void stopped_before_the_first_shard_nothing_is_left(void **state)
{
    (void)state;
    char *out = at("early"), *part = at("early.part"), *file = at("early.safetensors");
    trial c = {.method = "average", .stop_after = 1};
    iso_set_threads(1);
    assert_int_equal(run(&c, out), ISO_ERR_INTERRUPTED);
    assert_false(iso_path_exists(out));
    assert_false(iso_path_exists(part));
    assert_int_equal(run(&c, file), ISO_ERR_INTERRUPTED);
    assert_false(iso_path_exists(file));
    free(out), free(part), free(file);
}

static void outputs_that_exist_or_are_inputs_are_named(void **state)
{
    (void)state;
    char *in = at("in0"), *index = at("in0/model.safetensors.index.json"), *missing = at("nowhere");
    trial c = {.method = "average"};
    assert_int_equal(run(&c, in), ISO_ERR_USAGE);
    assert_non_null(strstr(c.e.text, "exists already"));
    const char *const paths[] = {missing, in};
    const char *which = NULL;
    assert_true(iso_stream_is_input(in, paths, 2, &which));
    assert_string_equal(which, in);
    assert_false(iso_stream_is_input(index, paths, 2, &which));
    free(in), free(index), free(missing);
}

static void U57_the_stated_memory_does_not_grow_with_the_tensor_for_entrywise_methods(void **state)
{
    (void)state;
    const iso_method *average = iso_method_find("average"), *iso_c = iso_method_find("iso_c");
    size_t small = iso_merge_dense_bytes(average, true, 4, 1000, 1000, false);
    assert_int_equal(small, iso_merge_dense_bytes(average, true, 4, 100000, 10000, false));
    assert_true(small < 2 << 20);
    assert_true(iso_merge_dense_bytes(iso_c, true, 4, 1000, 1000, false) > 8 * 1000 * 1000);
    assert_true(iso_merge_dense_bytes(iso_c, false, 4, 1000, 1000, false) < 2 << 20);
    /* independent of T where only the sum is needed */
    assert_int_equal(iso_merge_dense_bytes(iso_c, true, 4, 1000, 1000, false),
                     iso_merge_dense_bytes(iso_c, true, 400, 1000, 1000, false));
}

int main(void)
{
    iso_set_threads(2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(U94_shards_hold_what_a_merge_in_memory_gives),
        cmocka_unit_test(U94_an_interrupted_merge_leaves_complete_shards_and_resumes),
        cmocka_unit_test(stopped_before_the_first_shard_nothing_is_left),
        cmocka_unit_test(outputs_that_exist_or_are_inputs_are_named),
        cmocka_unit_test(U57_the_stated_memory_does_not_grow_with_the_tensor_for_entrywise_methods),
    };
    return cmocka_run_group_tests_name("merge stream", tests, set_up, tear_down);
}
