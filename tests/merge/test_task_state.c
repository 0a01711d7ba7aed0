/* The stream is the joint merge: a state that tasks join, leave and change gives what one merge of
 * them all gives, and a merge of merges does not (DESIGN 1, specs/users.md U102). */
#include "core/parallel.h"
#include "core/rng.h"
#include "merge/task_state.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { T = 5, LAYERS = 3, OUT = 24, IN = 30 };

static char *temp, *path;
static iso_lora_layer layers[T][LAYERS];
static iso_lora_input inputs[T];
static const char *const names[T] = {"weld", "paint", "press", "glue", "cut"};
static const iso_digest no_digest;

static int set_up(void **state)
{
    (void)state;
    static char modules[LAYERS][16];
    const char *root = getenv("TMPDIR");
    temp = iso_strf("%s/isofed-state-XXXXXX", root ? root : "/tmp");
    if (!temp || !mkdtemp(temp))
        return 1;
    path = iso_path_join(temp, "merge.state");
    for (size_t t = 0; t < T; t++) {
        for (size_t l = 0; l < LAYERS; l++) {
            size_t rank = 2 + (t + l) % 3; /* mixed ranks and scales */
            snprintf(modules[l], sizeof modules[l], "blk.%zu.q", l);
            iso_lora_layer *k = &layers[t][l];
            *k = (iso_lora_layer){modules[l],
                                  OUT,
                                  IN,
                                  rank,
                                  0.5 + (double)t,
                                  iso_calloc(rank * IN, 4),
                                  iso_calloc(OUT * rank, 4)};
            iso_rng r = iso_rng_make(21, ISO_RNG_TEST, LAYERS * t + l);
            for (size_t i = 0; i < rank * IN; i++)
                k->A[i] = (float)iso_rng_normal(&r);
            for (size_t i = 0; i < OUT * rank; i++)
                k->B[i] = (float)iso_rng_normal(&r);
        }
        /* one task lacks a layer */
        inputs[t] = (iso_lora_input){names[t], layers[t], t == 2 ? LAYERS - 1 : LAYERS};
    }
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    for (size_t t = 0; t < T; t++)
        for (size_t l = 0; l < LAYERS; l++)
            free(layers[t][l].A), free(layers[t][l].B);
    int rc = (int)iso_remove_tree(temp, NULL);
    free(temp), free(path);
    return rc;
}

/* Sum of squares of the difference of two merged adapters, and of the second, over dense products.
 */
static double distance(const iso_merged_lora *a, const iso_merged_lora *b)
{
    double diff = 0.0, norm = 0.0;
    assert_int_equal(a->count, b->count);
    for (size_t l = 0; l < a->count; l++) {
        const iso_lora_layer *x = &a->layers[l], *y = &b->layers[l];
        for (size_t i = 0; i < OUT; i++)
            for (size_t j = 0; j < IN; j++) {
                double u = 0.0, v = 0.0;
                for (size_t r = 0; r < x->rank; r++)
                    u += x->scale * (double)x->B[i * x->rank + r] * (double)x->A[r * IN + j];
                for (size_t r = 0; r < y->rank; r++)
                    v += y->scale * (double)y->B[i * y->rank + r] * (double)y->A[r * IN + j];
                diff += (u - v) * (u - v);
                norm += v * v;
            }
    }
    return sqrt(diff / norm);
}

static void merge(const char *method, const iso_lora_input *in, size_t n, const double *weights,
                  iso_merged_lora *out)
{
    iso_merge_options o = iso_merge_defaults(iso_method_find(method));
    iso_error e;
    o.weights = weights;
    if (iso_merge_lora(in, n, &o, out, &e))
        fail_msg("%s", e.text);
}

static void merge_state(const iso_task_state *s, const char *method, iso_merged_lora *out)
{
    iso_lora_input in[T];
    double weights[T];
    for (size_t t = 0; t < s->count; t++) {
        in[t] = (iso_lora_input){s->tasks[t].name, s->tasks[t].layers, s->tasks[t].count};
        weights[t] = s->tasks[t].weight;
    }
    merge(method, in, s->count, weights, out);
}

/* Opens the file, adds a task, writes it: as separate runs would. */
static void join(size_t t, double weight)
{
    iso_task_state s;
    iso_error e;
    if (iso_task_state_open(&s, path, true, &e) ||
        iso_task_state_add(&s, names[t], &inputs[t], &no_digest, weight, "vit", false, &e) ||
        iso_task_state_write(&s, path, &e))
        fail_msg("%s", e.text);
    iso_task_state_close(&s);
}

static iso_task_state open_state(void)
{
    iso_task_state s;
    iso_error e;
    if (iso_task_state_open(&s, path, false, &e))
        fail_msg("%s", e.text);
    return s;
}

static void U102_tasks_that_arrive_one_by_one_merge_as_all_at_once(void **state)
{
    (void)state;
    static const char *const methods[] = {"average", "task_arithmetic", "iso_c", "iso_cts"};
    double weights[T];
    unlink(path);
    for (size_t t = 0; t < T; t++)
        join(t, weights[t] = 0.5 + 0.25 * (double)t);
    iso_task_state s = open_state();
    assert_int_equal(s.count, T);
    assert_string_equal(s.base_model, "vit");
    for (size_t m = 0; m < 4; m++) {
        iso_merged_lora stream, joint, pair, sequential;
        merge_state(&s, methods[m], &stream);
        merge(methods[m], inputs, T, weights, &joint);
        assert_true(distance(&stream, &joint) < 1e-6);
        /* a merge of the merge is another thing, but for the plain sum */
        merge(methods[m], inputs, T - 1, weights, &pair);
        iso_lora_input two[] = {{"merged", pair.layers, pair.count}, inputs[T - 1]};
        double last[] = {1.0, weights[T - 1]};
        merge(methods[m], two, 2, last, &sequential);
        if (m >= 2)
            assert_true(distance(&sequential, &joint) > 0.05);
        iso_merged_lora_free(&stream), iso_merged_lora_free(&joint);
        iso_merged_lora_free(&pair), iso_merged_lora_free(&sequential);
    }
    iso_task_state_close(&s);
}

static void U102_tasks_leave_change_weight_and_are_replaced(void **state)
{
    (void)state;
    unlink(path);
    for (size_t t = 0; t < T; t++)
        join(t, 1.0);
    iso_task_state s = open_state();
    iso_error e;
    assert_int_equal(iso_task_state_remove(&s, "press", &e), ISO_OK);
    assert_int_equal(iso_task_state_weigh(&s, "glue", 3.0, &e), ISO_OK);
    iso_lora_input other = {"cut2", layers[0], LAYERS};
    assert_int_equal(iso_task_state_add(&s, "cut", &other, &no_digest, (double)NAN, NULL, true, &e),
                     ISO_OK);
    assert_int_equal(iso_task_state_write(&s, path, &e), ISO_OK);
    iso_task_state_close(&s);
    s = open_state();
    iso_merged_lora stream, joint;
    merge_state(&s, "iso_cts", &stream);
    iso_lora_input now[] = {inputs[0], inputs[1], inputs[3], other};
    double weights[] = {1.0, 1.0, 3.0, 1.0};
    merge("iso_cts", now, 4, weights, &joint);
    assert_true(distance(&stream, &joint) < 1e-6);
    iso_merged_lora_free(&stream), iso_merged_lora_free(&joint);

    assert_int_equal(iso_task_state_remove(&s, "weldd", &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "did you mean \"weld\""));
    assert_int_equal(iso_task_state_weigh(&s, "weld", -1.0, &e), ISO_ERR_USAGE);
    assert_int_equal(iso_task_state_add(&s, "weld", &other, &no_digest, 1.0, NULL, false, &e),
                     ISO_ERR_USAGE);
    assert_int_equal(iso_task_state_add(&s, "new", &other, &no_digest, 1.0, NULL, true, &e),
                     ISO_ERR_USAGE);
    iso_lora_layer wrong = layers[0][0];
    wrong.in = IN - 1;
    iso_lora_input bad = {"bad", &wrong, 1};
    assert_int_equal(iso_task_state_add(&s, "bad", &bad, &no_digest, 1.0, NULL, false, &e),
                     ISO_ERR_SHAPE);
    iso_task_state_close(&s);
}

static void recompression_keeps_its_bound_for_sums_and_says_what_it_dropped(void **state)
{
    (void)state;
    unlink(path);
    for (size_t t = 0; t < T; t++)
        join(t, 0.5 + 0.25 * (double)t);
    iso_task_state s = open_state();
    iso_merged_lora before, after;
    iso_compressed c;
    iso_error e;
    merge_state(&s, "task_arithmetic", &before);
    assert_int_equal(iso_task_state_compress(&s, 2, &c, &e), ISO_OK);
    merge_state(&s, "task_arithmetic", &after);
    double change = distance(&after, &before) * before.summary.norm;
    assert_true(c.dropped > 0 && c.sum_error > 0.0);
    assert_true(change <= 0.3 * c.sum_error * (1.0 + 1e-6)); /* alpha is 0.3 */
    for (size_t t = 0; t < s.count; t++)
        for (size_t l = 0; l < s.tasks[t].count; l++)
            assert_true(s.tasks[t].layers[l].rank <= 2);
    iso_merged_lora_free(&before), iso_merged_lora_free(&after);
    assert_int_equal(iso_task_state_compress(&s, 2, &c, &e), ISO_OK); /* nothing left to drop */
    assert_int_equal(c.dropped, 0);
    assert_true(c.sum_error == 0.0);
    iso_task_state_close(&s);
}

static void files_that_are_no_state_are_refused(void **state)
{
    (void)state;
    float x[2] = {1, 2};
    iso_named_tensor t = {"task/0/a.A", {ISO_F32, 2, {1, 2}, x}};
    static const struct {
        const char *key, *text, *in_error;
    } rows[] = {
        {"other", "{}", "no merge state"},
        {"isofed-merge-state", "{\"format\":\"isofed-merge-state\",\"version\":2}", "version"},
        {"isofed-merge-state",
         "{\"format\":\"isofed-merge-state\",\"version\":1,\"base_model\":\"\",\"tasks\":[{"
         "\"name\":"
         "\"a\",\"digest\":\"00\",\"layers\":1}]}",
         "hexadecimal"},
        {"isofed-merge-state",
         "{\"format\":\"isofed-merge-state\",\"version\":1,\"base_model\":\"\",\"tasks\":[{"
         "\"name\":"
         "\"a\",\"digest\":\"0000000000000000000000000000000000000000000000000000000000000000\","
         "\"layers\":1}]}",
         "not as a merge state has it"},
    };
    for (size_t c = 0; c < sizeof rows / sizeof *rows; c++) {
        const char *meta[] = {rows[c].key, rows[c].text};
        iso_task_state s;
        iso_error e;
        assert_int_equal(iso_safetensors_write(path, &t, 1, meta, 1, NULL), ISO_OK);
        assert_int_equal(iso_task_state_open(&s, path, true, &e), ISO_ERR_DATA);
        if (!strstr(e.text, rows[c].in_error))
            fail_msg("case %zu: %s", c, e.text);
    }
}

int main(void)
{
    iso_set_threads(2);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(U102_tasks_that_arrive_one_by_one_merge_as_all_at_once),
        cmocka_unit_test(U102_tasks_leave_change_weight_and_are_replaced),
        cmocka_unit_test(recompression_keeps_its_bound_for_sums_and_says_what_it_dropped),
        cmocka_unit_test(files_that_are_no_state_are_refused),
    };
    return cmocka_run_group_tests_name("merge state", tests, set_up, tear_down);
}
