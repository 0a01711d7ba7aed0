/* isofed train, eval, predict, embed, inspect on a table of texts and a small random BERT folder
 * made on the spot. */
#include "tests/cli/program.h"

#include "core/json.h"
#include "core/safetensors.h"
#include "tests/nn/family_fixture.h"

#include <math.h>

enum { WORDS = 46, SPECIAL = 4, DIM = 32 };

static const family_shape SHAPE = {.type = "bert",
                                   .depth = 2,
                                   .dim = DIM,
                                   .heads = 2,
                                   .mlp = 48,
                                   .words = SPECIAL + WORDS,
                                   .positions = 24};

static char root[64], backbone[96], task[96];

static void put(const char *folder, const char *name, const void *data, size_t size)
{
    iso_error e;
    char *path = iso_path_join(folder, name);
    assert_int_equal(iso_make_dirs(folder, 0755, &e), ISO_OK);
    assert_int_equal(iso_write_file(path, data, size, 0644, &e), ISO_OK);
    free(path);
}

static void make_backbone(void)
{
    iso_buf config = {0}, tensors = {0}, words = {0};
    iso_error e;
    assert_int_equal(family_files(&SHAPE, &config, &tensors, &e), ISO_OK);
    assert_int_equal(iso_buf_printf(&words, &e, "[PAD]\n[UNK]\n[CLS]\n[SEP]\n"), ISO_OK);
    for (int i = 0; i < WORDS; i++)
        assert_int_equal(iso_buf_printf(&words, &e, "word%d\n", i), ISO_OK);
    put(backbone, "config.json", config.data, config.size);
    put(backbone, "model.safetensors", tensors.data, tensors.size);
    put(backbone, "vocab.txt", words.data, words.size);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    iso_buf_free(&words);
}

/* Label k talks mostly of words 20 k .. 20 k + 19; the rest is anything. */
static void make_task(void)
{
    static const char *const splits[] = {"train", "val", "test"};
    static const int counts[] = {40, 20, 40};
    iso_buf text = {0};
    iso_error e;
    iso_rng r = iso_rng_make(2, ISO_RNG_TEST, 0);
    assert_int_equal(iso_buf_printf(&text, &e, "text\tlabel\tsplit\n"), ISO_OK);
    for (int s = 0; s < 3; s++)
        for (int i = 0; i < counts[s]; i++) {
            int label = i % 2, length = 3 + (int)iso_rng_below(&r, 15);
            for (int w = 0; w < length; w++) {
                int word = iso_rng_below(&r, 4) ? 20 * label + (int)iso_rng_below(&r, 20)
                                                : (int)iso_rng_below(&r, WORDS);
                assert_int_equal(iso_buf_printf(&text, &e, "%sWord%d", w ? " " : "", word), ISO_OK);
            }
            assert_int_equal(
                iso_buf_printf(&text, &e, "\t%s\t%s\n", label ? "spam" : "ham", splits[s]), ISO_OK);
        }
    put(task, "texts.tsv", text.data, text.size);
    iso_buf_free(&text);
}

static int setup(void **state)
{
    (void)state;
    strcpy(root, "/tmp/iso-texts-XXXXXX");
    assert_non_null(mkdtemp(root));
    snprintf(backbone, sizeof backbone, "%s/backbone", root);
    snprintf(task, sizeof task, "%s/mail", root);
    make_backbone();
    make_task();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    return iso_remove_tree(root, NULL) ? 1 : 0;
}

static double number_of(const iso_json *j, const char *key)
{
    double v;
    if (!iso_json_num(iso_json_key(j, key), &v))
        fail_msg("\"%s\" is not a number", key);
    return v;
}

static iso_json *answer_of(const char *const *argv)
{
    iso_json *j = NULL;
    iso_error e;
    program_result r = program_run(argv, root);
    program_check(&r, 0, NULL);
    if (iso_json_parse(r.out.data, r.out.size, "answer", &j, &e))
        fail_msg("%s", e.text);
    program_free(&r);
    return j;
}

static iso_digest file_digest(const char *folder, const char *name)
{
    iso_buf b = {0};
    char *path = iso_path_join(folder, name);
    assert_int_equal(iso_read_file(path, 1 << 26, &b, NULL), ISO_OK);
    iso_digest d = iso_digest_of(b.data, b.size);
    iso_buf_free(&b);
    free(path);
    return d;
}

static void texts_are_trained_on_scored_and_labelled(void **state)
{
    (void)state;
    double own = 0.0;
    char out[2][96];
    for (int k = 0; k < 2; k++) { /* the same bits for any number of threads */
        snprintf(out[k], sizeof out[k], "%s/out%d", root, k);
        char page[128];
        snprintf(page, sizeof page, "%.100s.html", out[k]);
        const char *argv[] = {"isofed", "train",  "--backbone", backbone,      "--data",
                              task,     "-o",     out[k],       "--steps",     "30",
                              "--lr",   "3e-3",   "--threads",  k ? "2" : "1", "--report",
                              page,     "--json", "--quiet",    NULL};
        iso_json *j = answer_of(argv);
        assert_int_equal(number_of(j, "samples"), 40);
        assert_int_equal(number_of(j, "validation_samples"), 20);
        assert_int_equal(number_of(j, "scored_samples"), 40);
        assert_true(number_of(j, "probe") > 0.7);
        assert_true(number_of(j, "own") > 0.7);
        own = number_of(j, "own");
        iso_json_free(j);
        iso_buf html = {0};
        assert_int_equal(iso_read_file(page, 1 << 24, &html, NULL), ISO_OK);
        assert_non_null(strstr((const char *)html.data, "Some of the texts"));
        iso_buf_free(&html);
    }
    iso_digest a = file_digest(out[0], "adapter_model.safetensors");
    iso_digest b = file_digest(out[1], "adapter_model.safetensors");
    assert_true(iso_digest_equal(&a, &b));

    char head[128], mails[128];
    snprintf(head, sizeof head, "%s/head.safetensors", out[0]);
    const char *eval[] = {"isofed",  "eval",   "--backbone", backbone, "--adapter",
                          out[0],    "--head", head,         "--data", task,
                          "--refit", "--json", "--quiet",    NULL};
    iso_json *j = answer_of(eval);
    assert_true(fabs(number_of(iso_json_key(j, "delivered"), "accuracy") - own) < 1e-9);
    iso_json_free(j);

    put(root, "mails.txt", "word1 word2 word3\n\nword21 word22 word23 word24\n", 46);
    snprintf(mails, sizeof mails, "%s/mails.txt", root);
    const char *predict[] = {"isofed", "predict", "--backbone", backbone, "--adapter",
                             out[0],   "--head",  head,         mails,    NULL};
    program_result r = program_run(predict, root);
    program_check(&r, 0, "mails.txt:1\tham");
    program_check(&r, 0, "mails.txt:3\tspam");
    program_free(&r);
}

static void features_are_written_and_the_folder_is_described(void **state)
{
    (void)state;
    char file[128];
    snprintf(file, sizeof file, "%s/features.safetensors", root);
    const char *embed[] = {"isofed", "embed", "--backbone", backbone, "--data",
                           task,     "-o",    file,         NULL};
    program_result r = program_run(embed, root);
    program_check(&r, 0, "40 texts");
    program_free(&r);
    iso_safetensors st = {0};
    assert_int_equal(iso_safetensors_open(&st, file, NULL), ISO_OK);
    const iso_named_tensor *f = iso_safetensors_find(&st, "features");
    assert_true(f && f->view.shape[0] == 40 && f->view.shape[1] == DIM);
    assert_non_null(strstr(iso_safetensors_meta(&st, "paths"), "texts.tsv:62"));
    iso_safetensors_close(&st);
    const char *inspect[] = {"isofed", "inspect", backbone, NULL};
    r = program_run(inspect, root);
    program_check(&r, 0, "bert");
    program_free(&r);
    const char *check[] = {"isofed", "train", "--check", task, NULL};
    r = program_run(check, root);
    program_check(&r, 0, "100 files of 2 classes can be trained on");
    program_free(&r);
}

static void what_does_not_fit_is_said(void **state)
{
    (void)state;
    char pictures[128], half[128];
    snprintf(pictures, sizeof pictures, "%s/pictures", root);
    snprintf(half, sizeof half, "%s/half", root);
    assert_int_equal(iso_make_dirs(pictures, 0755, NULL), ISO_OK);
    const char *argv[] = {"isofed", "embed", "--backbone", backbone, "--data", pictures, NULL};
    program_result r = program_run(argv, root);
    program_check(&r, 2, "takes texts");
    program_free(&r);
    /* no vocabulary, or one that the backbone has no rows for */
    iso_buf config = {0}, tensors = {0};
    iso_error e;
    assert_int_equal(family_files(&SHAPE, &config, &tensors, &e), ISO_OK);
    put(half, "config.json", config.data, config.size);
    put(half, "model.safetensors", tensors.data, tensors.size);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    argv[3] = half;
    argv[5] = task;
    r = program_run(argv, root);
    program_check(&r, 3, "vocab.txt");
    program_free(&r);
    iso_buf words = {0};
    assert_int_equal(iso_buf_printf(&words, &e, "[UNK]\n[CLS]\n[SEP]\n"), ISO_OK);
    for (int i = 0; i < WORDS + 9; i++)
        assert_int_equal(iso_buf_printf(&words, &e, "word%d\n", i), ISO_OK);
    put(half, "vocab.txt", words.data, words.size);
    iso_buf_free(&words);
    r = program_run(argv, root);
    program_check(&r, 3, "the backbone knows 50");
    program_free(&r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(texts_are_trained_on_scored_and_labelled),
        cmocka_unit_test(features_are_written_and_the_folder_is_described),
        cmocka_unit_test(what_does_not_fit_is_said)};
    return cmocka_run_group_tests(tests, setup, teardown);
}
