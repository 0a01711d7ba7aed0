/* The engine's jobs in place, on the miniature backbone and images of isofed-fixture: what a site
 * trains, scores and uploads without any daemon. */
#include "client/engine.h"
#include "core/peft.h"
#include "crypto/container.h"
#include "tests/cli/program.h"

static char root[64];
static iso_backbone *backbone;

/* Blobs of the site, by digest. */
enum { BLOBS = 8 };
static struct {
    iso_digest d;
    iso_buf bytes;
} blobs[BLOBS];

static iso_digest keep(const void *data, size_t size)
{
    size_t i = 0;
    while (i < BLOBS - 1 && blobs[i].bytes.size)
        i++;
    iso_buf_free(&blobs[i].bytes);
    iso_error e;
    assert_int_equal(iso_buf_append(&blobs[i].bytes, data, size, &e), ISO_OK);
    blobs[i].d = iso_digest_of(data, size);
    return blobs[i].d;
}

static iso_err read_blob(void *ctx, const iso_digest *d, iso_buf *out, iso_error *e)
{
    (void)ctx;
    for (size_t i = 0; i < BLOBS; i++)
        if (blobs[i].bytes.size && iso_digest_equal(&blobs[i].d, d))
            return iso_buf_append(out, blobs[i].bytes.data, blobs[i].bytes.size, e);
    return iso_fail(e, ISO_ERR_DATA, "no such blob");
}

static iso_engine *open_engine(size_t cache_bytes)
{
    static char folder[128];
    static iso_client_data data[1];
    iso_engine *g;
    iso_error e;
    snprintf(folder, sizeof folder, "%s/tasks/t1", root);
    data[0] = (iso_client_data){"press", folder};
    iso_engine_options o = {.backbone = backbone,
                            .data = data,
                            .data_count = 1,
                            .val_share = 0.2,
                            .cache_bytes = cache_bytes,
                            .read_blob = read_blob};
    iso_preprocess_default(&o.preprocess, (int)backbone->shape.image_size);
    if (iso_engine_open(&g, &o, &e))
        fail_msg("%s", e.text);
    return g;
}

static const char *const classes[] = {"a", "b", "c"};

static iso_train_spec spec_with(const char *parameters)
{
    return (iso_train_spec){.adapter_kind = 1,
                            .rank = 2,
                            .alpha = 4,
                            .steps = 6,
                            .learning_rate = 3e-3F,
                            .seed = 5,
                            .classes = classes,
                            .class_count = 3,
                            .kind_parameters = parameters};
}

static iso_trainer_event run(iso_engine *g, const iso_trainer_job *j, iso_buf *container)
{
    iso_trainer_event out;
    iso_error e;
    if (iso_engine_run(g, j, NULL, &out, container, &e))
        fail_msg("job %d: %s", j->kind, e.text);
    return out;
}

static iso_digest fit_head(iso_engine *g)
{
    const iso_train_spec spec = spec_with("");
    iso_trainer_job j = {.kind = ISO_TRAINER_HEAD, .task = "press", .round = 1, .spec = &spec};
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    iso_buf container = {0};
    iso_error e;
    iso_code code;
    size_t n;
    run(g, &j, &container);
    assert_int_equal(iso_container_unpack(container.data, container.size, files, &n, &code, &e),
                     ISO_OK);
    const iso_container_file *head = iso_container_find(files, n, "head.safetensors");
    assert_non_null(head);
    iso_digest d = keep(head->data, head->size);
    iso_buf_free(&container);
    return d;
}

/* Trains and keeps the two files of the adapter as blobs. */
static void train(iso_engine *g, const char *parameters, const iso_digest *head, iso_digest *config,
                  iso_digest *model)
{
    const iso_train_spec spec = spec_with(parameters);
    iso_trainer_job j = {
        .kind = ISO_TRAINER_TRAIN, .task = "press", .round = 2, .spec = &spec, .head = *head};
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    iso_buf container = {0};
    iso_error e;
    iso_code code;
    size_t n;
    run(g, &j, &container);
    assert_int_equal(iso_container_unpack(container.data, container.size, files, &n, &code, &e),
                     ISO_OK);
    const iso_container_file *c = iso_container_find(files, n, "adapter_config.json");
    const iso_container_file *m = iso_container_find(files, n, "adapter_model.safetensors");
    assert_true(c && m);
    *config = keep(c->data, c->size);
    *model = keep(m->data, m->size);
    iso_buf_free(&container);
}

static bool mentions(const iso_digest *d, const char *word)
{
    iso_buf text = {0};
    iso_error e;
    assert_int_equal(read_blob(NULL, d, &text, &e), ISO_OK);
    bool found = memmem(text.data, text.size, word, strlen(word)) != NULL;
    iso_buf_free(&text);
    return found;
}

static void what_the_task_asks_for_changes_the_training(void **state)
{
    (void)state;
    static const struct {
        const char *parameters;
        bool lower_block; /* adapted */
    } rows[] = {{"", true},
                {"{\"first_block\":\"1\"}", false},
                {"{\"shift\":\"2\"}", true},
                {"{\"mirror\":\"1\"}", true},
                {"{\"batch\":\"4\"}", true},
                {"{\"weight_decay\":\"0.5\"}", true}};
    iso_digest models[6], config;
    iso_engine *g = open_engine(1 << 24);
    iso_digest head = fit_head(g);
    for (size_t i = 0; i < 6; i++) {
        iso_digest again;
        train(g, rows[i].parameters, &head, &config, &models[i]);
        assert_int_equal(mentions(&models[i], "layer.0."), rows[i].lower_block);
        assert_true(mentions(&models[i], "layer.1."));
        train(g, rows[i].parameters, &head, &config, &again);
        assert_true(iso_digest_equal(&models[i], &again)); /* same seed, same bits */
        for (size_t k = 0; k < i; k++)
            assert_false(iso_digest_equal(&models[i], &models[k]));
    }
    iso_engine_close(g);
}

static void bad_parameters_are_named_with_their_range(void **state)
{
    (void)state;
    static const struct {
        const char *parameters, *wanted;
    } rows[] = {{"{\"shift\":\"65\"}", "shift must be a number from 0 to 64"},
                {"{\"batch\":\"0\"}", "batch must be"},
                {"{\"warmup\":\"soon\"}", "warmup must be"},
                {"{\"mirror\":true}", "mirror must be"},
                {"{\"first_block\":\"2\"}", "block"}, /* of two: nothing is left to adapt */
                {"{", "kind_parameters"}};
    iso_engine *g = open_engine(1 << 24);
    iso_digest head = fit_head(g);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const iso_train_spec spec = spec_with(rows[i].parameters);
        iso_trainer_job j = {
            .kind = ISO_TRAINER_TRAIN, .task = "press", .round = 2, .spec = &spec, .head = head};
        iso_trainer_event out;
        iso_buf container = {0};
        iso_error e;
        assert_int_not_equal(iso_engine_run(g, &j, NULL, &out, &container, &e), ISO_OK);
        if (!strstr(e.text, rows[i].wanted))
            fail_msg("row %zu: %s", i, e.text);
        iso_buf_free(&container);
    }
    iso_engine_close(g);
}

static void kept_prefixes_change_no_bit_of_a_score(void **state)
{
    (void)state;
    iso_digest config[2], model[2];
    iso_trainer_event of[2][3];
    for (int cache = 0; cache < 2; cache++) {
        iso_engine *g = open_engine(cache ? 1 << 24 : 0);
        iso_digest head = fit_head(g);
        train(g, "{\"first_block\":\"1\"}", &head, &config[0], &model[0]);
        train(g, "{\"shift\":\"1\"}", &head, &config[1], &model[1]); /* all blocks */
        iso_trainer_job j = {.kind = ISO_TRAINER_TRIAL, .task = "press", .head = head};
        for (int i = 0; i < 3; i++) { /* upper block, all blocks, upper block again */
            j.adapter_config = config[i & 1];
            j.adapter_model = model[i & 1];
            of[cache][i] = run(g, &j, NULL);
        }
        iso_engine_close(g);
    }
    for (int i = 0; i < 3; i++) {
        const iso_trainer_event *a = &of[0][i], *b = &of[1][i];
        assert_true(iso_digest_equal(&a->output, &b->output));
        assert_memory_equal(&a->val.delivered.value, &b->val.delivered.value, sizeof(float));
        assert_memory_equal(&a->test.refitted.value, &b->test.refitted.value, sizeof(float));
        assert_int_equal(a->val.delivered.samples, b->val.delivered.samples);
    }
    assert_false(iso_digest_equal(&of[0][0].output, &of[0][1].output));
}

static int setup(void **state)
{
    (void)state;
    iso_error e;
    snprintf(root, sizeof root, "/tmp/isofed-test-engine-XXXXXX");
    if (!mkdtemp(root))
        return -1;
    const char *argv[] = {"isofed-fixture", root, "1", NULL};
    program_result r = program_run(argv, root);
    program_check(&r, 0, NULL);
    program_free(&r);
    char *folder = iso_path_join(root, "backbone");
    iso_err err = iso_backbone_open(&backbone, folder, &e);
    free(folder);
    return err ? -1 : 0;
}

static int teardown(void **state)
{
    (void)state;
    iso_error e;
    iso_backbone_close(backbone);
    for (size_t i = 0; i < BLOBS; i++)
        iso_buf_free(&blobs[i].bytes);
    return iso_remove_tree(root, &e) ? -1 : 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_the_task_asks_for_changes_the_training),
        cmocka_unit_test(bad_parameters_are_named_with_their_range),
        cmocka_unit_test(kept_prefixes_change_no_bit_of_a_score),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
