/* isofed train, eval, predict, embed on a small task and a small random ViT made on the spot. */
#include "tests/cli/program.h"

#include "core/json.h"
#include "core/rng.h"
#include "core/safetensors.h"
#include "nn/data/encode.h"

#include <math.h>

enum { SIDE = 12, PATCH = 4, DIM = 16, MLP = 32, BLOCKS = 2, HEADS = 2, TOKENS = 10 };

static char root[64]; /* of this test program; holds backbone and task */
static char backbone[96], task[96];

/* ---- fixtures ---- */

static iso_arena arena;

typedef struct {
    iso_named_tensor t[64];
    size_t count;
    iso_rng rng;
} weights;

static void add(weights *w, const char *name, float around, int ndim, size_t a, size_t b, size_t c,
                size_t d)
{
    iso_named_tensor *t = &w->t[w->count++];
    assert_true(w->count <= sizeof w->t / sizeof *w->t);
    t->name = iso_arena_strdup(&arena, name);
    t->view = (iso_tensor){.dtype = ISO_F32, .ndim = ndim, .shape = {a, b, c, d}};
    size_t n = a * b * c * d;
    float *p = iso_arena_alloc(&arena, n, sizeof *p);
    for (size_t i = 0; i < n; i++)
        p[i] = around + (float)(0.2 * iso_rng_normal(&w->rng));
    for (int k = ndim; k < 4; k++)
        t->view.shape[k] = 0;
    t->view.data = p;
}

static void add_linear(weights *w, const char *name, size_t out, size_t in)
{
    char text[160];
    snprintf(text, sizeof text, "%s.weight", name);
    add(w, text, 0, 2, out, in, 1, 1);
    snprintf(text, sizeof text, "%s.bias", name);
    add(w, text, 0, 1, out, 1, 1, 1);
}

static void add_norm(weights *w, const char *name)
{
    char text[160];
    snprintf(text, sizeof text, "%s.weight", name);
    add(w, text, 1, 1, DIM, 1, 1, 1);
    snprintf(text, sizeof text, "%s.bias", name);
    add(w, text, 0, 1, DIM, 1, 1, 1);
}

static void put(const char *folder, const char *name, const void *data, size_t size)
{
    iso_error e;
    char *path = iso_path_join(folder, name), *parent = iso_strdup(path);
    *strrchr(parent, '/') = 0;
    assert_int_equal(iso_make_dirs(parent, 0755, &e), ISO_OK);
    assert_int_equal(iso_write_file(path, data, size, 0644, &e), ISO_OK);
    free(path);
    free(parent);
}

static void make_backbone(const char *folder)
{
    static const char *const linears[] = {"attention.attention.query", "attention.attention.key",
                                          "attention.attention.value", "attention.output.dense",
                                          "intermediate.dense",        "output.dense"};
    static const char config[] =
        "{\"model_type\":\"vit\",\"architectures\":[\"ViTForImageClassification\"],"
        "\"hidden_size\":16,\"num_hidden_layers\":2,\"num_attention_heads\":2,"
        "\"intermediate_size\":32,\"hidden_act\":\"gelu\",\"layer_norm_eps\":1e-6,"
        "\"image_size\":12,\"patch_size\":4,\"num_channels\":3,\"qkv_bias\":true}";
    static const char pre[] = "{\"size\":{\"height\":12,\"width\":12},\"resample\":2}";
    weights w = {.rng = iso_rng_make(1, ISO_RNG_TEST, 0)};
    iso_error e;
    add(&w, "vit.embeddings.cls_token", 0, 3, 1, 1, DIM, 1);
    add(&w, "vit.embeddings.position_embeddings", 0, 3, 1, TOKENS, DIM, 1);
    add(&w, "vit.embeddings.patch_embeddings.projection.weight", 0, 4, DIM, 3, PATCH, PATCH);
    add(&w, "vit.embeddings.patch_embeddings.projection.bias", 0, 1, DIM, 1, 1, 1);
    for (int b = 0; b < BLOCKS; b++) {
        char name[128];
        for (size_t k = 0; k < 6; k++) {
            snprintf(name, sizeof name, "vit.encoder.layer.%d.%s", b, linears[k]);
            add_linear(&w, name, k == 4 ? MLP : DIM, k == 5 ? MLP : DIM);
        }
        snprintf(name, sizeof name, "vit.encoder.layer.%d.layernorm_before", b);
        add_norm(&w, name);
        snprintf(name, sizeof name, "vit.encoder.layer.%d.layernorm_after", b);
        add_norm(&w, name);
    }
    add_norm(&w, "vit.layernorm");
    put(folder, "config.json", config, sizeof config - 1);
    put(folder, "preprocessor_config.json", pre, sizeof pre - 1);
    char *path = iso_path_join(folder, "model.safetensors");
    assert_int_equal(iso_safetensors_write(path, w.t, w.count, NULL, 0, &e), ISO_OK);
    free(path);
}

/* A bright bar at the class's place on noise. */
static void make_images(const char *folder, const char *split, const char *class_name, int label,
                        int n)
{
    for (int i = 0; i < n; i++) {
        uint8_t p[SIDE * SIDE * 3];
        char name[256];
        iso_buf png = {0};
        iso_error e;
        iso_rng r =
            iso_rng_make(iso_rng_seed_name((uint64_t)(i + 100 * label), split), ISO_RNG_TEST, 1);
        for (int k = 0; k < SIDE * SIDE * 3; k++)
            p[k] = (uint8_t)iso_rng_below(&r, 140);
        for (int y = 0; y < SIDE; y++)
            for (int c = 0; c < 3; c++)
                p[(y * SIDE + 2 + label * 3) * 3 + c] = 255;
        assert_int_equal(iso_png_encode(p, SIDE, SIDE, 3, &png, &e), ISO_OK);
        snprintf(name, sizeof name, "%s/%s/%02d.png", split, class_name, i);
        put(folder, name, png.data, png.size);
        iso_buf_free(&png);
    }
}

static void make_task(const char *folder)
{
    static const char *const classes[] = {"dent", "ok", "scratch"};
    for (int c = 0; c < 3; c++) {
        make_images(folder, "train", classes[c], c, 12);
        make_images(folder, "val", classes[c], c, 6);
        make_images(folder, "test", classes[c], c, 20);
    }
}

static int setup(void **state)
{
    (void)state;
    strcpy(root, "/tmp/iso-train-XXXXXX");
    assert_non_null(mkdtemp(root));
    snprintf(backbone, sizeof backbone, "%s/backbone", root);
    snprintf(task, sizeof task, "%s/surface", root);
    make_backbone(backbone);
    make_task(task);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    iso_error e;
    iso_arena_free(&arena);
    return iso_remove_tree(root, &e) ? 1 : 0;
}

static char *in_root(const char *name)
{
    return iso_path_join(root, name);
}

static iso_buf bytes_of(const char *folder, const char *name)
{
    iso_buf b = {0};
    iso_error e;
    char *path = iso_path_join(folder, name);
    if (iso_read_file(path, 1 << 26, &b, &e))
        fail_msg("%s", e.text);
    free(path);
    return b;
}

static void same_file(const char *a, const char *b, const char *name)
{
    iso_buf x = bytes_of(a, name), y = bytes_of(b, name);
    if (x.size != y.size || memcmp(x.data, y.data, x.size) != 0)
        fail_msg("%s differs between %s and %s", name, a, b);
    iso_buf_free(&x);
    iso_buf_free(&y);
}

static double number_of(const iso_json *j, const char *key)
{
    double v;
    if (!iso_json_num(iso_json_key(j, key), &v))
        fail_msg("\"%s\" is not a number", key);
    return v;
}

/* Trains into `out` and gives the JSON answer; more: further arguments, ends with NULL. */
static iso_json *train(const char *out, const char *const *more)
{
    const char *argv[40] = {"isofed", "train", "--backbone", backbone, "--data",  task,
                            "-o",     out,     "--steps",    "40",     "--batch", "8",
                            "--lr",   "3e-3",  "--json",     "--quiet"};
    size_t n = 16;
    iso_json *j = NULL;
    iso_error e;
    while (more && *more)
        argv[n++] = *more++;
    program_result r = program_run(argv, root);
    program_check(&r, 0, NULL);
    if (iso_json_parse(r.out.data, r.out.size, "answer", &j, &e))
        fail_msg("%s in: %s", e.text, (const char *)r.out.data);
    program_free(&r);
    return j;
}

/* ---- tests ---- */

static void training_writes_what_others_read(void **state)
{
    (void)state;
    char *out = in_root("a"), *again = in_root("b"), *page = in_root("a.html");
    char *head = iso_path_join(out, "head.safetensors");
    const char *one[] = {"--threads", "1", "--report", page, NULL};
    const char *two[] = {"--threads", "2", NULL};
    iso_json *j = train(out, one);
    assert_int_equal(number_of(j, "samples"), 36);
    assert_int_equal(number_of(j, "scored_samples"), 60);
    assert_true(fabs(number_of(j, "chance") - 1 / 3.0) < 1e-9);
    assert_true(number_of(j, "probe") > 0.5);
    assert_true(number_of(j, "own") > 0.5);
    assert_string_equal(iso_json_str(iso_json_key(j, "task")), "surface");
    double own = number_of(j, "own"), refit = number_of(j, "own_refit");
    iso_json_free(j);
    iso_json_free(train(again, two)); /* the same bits for any number of threads */
    same_file(out, again, "adapter_model.safetensors");
    same_file(out, again, "adapter_config.json");
    same_file(out, again, "head.safetensors");
    same_file(out, again, "metadata.json");
    iso_buf html = bytes_of(root, "a.html");
    assert_non_null(strstr((const char *)html.data, "<svg"));
    assert_non_null(strstr((const char *)html.data, "own adapter"));
    iso_buf_free(&html);

    /* eval agrees with what train said, and predict with eval */
    const char *eval[] = {"isofed",  "eval",   "--backbone", backbone, "--adapter",
                          out,       "--head", head,         "--data", task,
                          "--refit", "--json", "--quiet",    NULL};
    iso_error e;
    program_result r = program_run(eval, root);
    program_check(&r, 0, NULL);
    assert_int_equal(iso_json_parse(r.out.data, r.out.size, "answer", &j, &e), ISO_OK);
    assert_true(fabs(number_of(iso_json_key(j, "delivered"), "accuracy") - own) < 1e-9);
    assert_true(fabs(number_of(iso_json_key(j, "refit"), "accuracy") - refit) < 0.21);
    iso_json_free(j);
    program_free(&r);
    char *folder = iso_path_join(task, "test/ok");
    const char *predict[] = {"isofed", "predict", "--backbone", backbone, "--adapter",
                             out,      "--head",  head,         folder,   NULL};
    r = program_run(predict, root);
    program_check(&r, 0, NULL);
    size_t lines = 0;
    for (size_t i = 0; i < r.out.size; i++)
        lines += r.out.data[i] == '\n';
    assert_int_equal(lines, 20);
    program_free(&r);
    free(folder);
    free(out);
    free(again);
    free(page);
    free(head);
}

static void both_head_modes_and_choices(void **state)
{
    (void)state;
    static const char *const rows[][8] = {
        {"--head", "joint", NULL},
        {"--probe", "logistic", NULL},
        {"--probe", "means", "--shift", "1", "--mirror", NULL},
        {"--targets", "query,value", "--rank", "2", "--rslora", NULL},
        {"--limit-per-class", "4", "--eval-every", "5", "--patience", "2", NULL},
        {"--first-block", "1", "--last", "--weight-decay", "0", NULL},
    };
    char *out = in_root("c");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_json *j = train(out, rows[i]);
        assert_true(number_of(j, "own") > 0.34);
        if (i == 4)
            assert_int_equal(number_of(j, "samples"), 12);
        iso_json_free(j);
    }
    free(out);
}

static void U32_interrupted_run_resumes_to_the_same_bits(void **state)
{
    (void)state;
    char *whole = in_root("d"), *cut = in_root("e"), *state_folder = in_root("state");
    const char *plain[] = {"isofed", "train",   "--backbone", backbone,  "--data", task,      "-o",
                           whole,    "--steps", "400",        "--batch", "8",      "--quiet", NULL};
    const char *kept[] = {"isofed",  "train", "--backbone", backbone,       "--data",
                          task,      "-o",    cut,          "--steps",      "400",
                          "--batch", "8",     "--quiet",    "--checkpoint", state_folder,
                          NULL,      NULL};
    program_result r = program_run(plain, root);
    program_check(&r, 0, NULL);
    program_free(&r);
    bool was_cut = false;
    for (int ms = 150; ms < 20000; ms += ms / 2) { /* until it is far enough to have a state */
        struct timespec wait = {ms / 1000, ms % 1000 * 1000000L};
        pid_t pid = program_start(kept, root);
        nanosleep(&wait, NULL);
        kill(pid, SIGINT);
        r = program_end(pid, root);
        char *file = iso_path_join(state_folder, "training.safetensors");
        bool is_there = iso_path_exists(file);
        free(file);
        was_cut = r.exit_code == 130 && is_there;
        if (was_cut)
            program_check(&r, 130, "--resume");
        program_free(&r);
        if (is_there)
            break;
    }
    if (!was_cut)
        skip(); /* too fast to be caught; the engine's own tests cut it at every step */
    r = program_run(kept, root);
    program_check(&r, 2, "--resume"); /* not overwritten unasked */
    program_free(&r);
    kept[15] = "--resume";
    r = program_run(kept, root);
    program_check(&r, 0, NULL);
    program_free(&r);
    same_file(whole, cut, "adapter_model.safetensors");
    same_file(whole, cut, "head.safetensors");
    free(whole);
    free(cut);
    free(state_folder);
}

static void embedding_forms(void **state)
{
    (void)state;
    char *file = in_root("f.safetensors");
    const char *argv[] = {"isofed",  "embed", "--backbone", backbone, "--data", task,
                          "--split", "val",   "-o",         file,     NULL};
    iso_safetensors st = {0};
    iso_error e;
    program_result r = program_run(argv, root);
    program_check(&r, 0, "18 images");
    program_free(&r);
    assert_int_equal(iso_safetensors_open(&st, file, &e), ISO_OK);
    const iso_named_tensor *f = iso_safetensors_find(&st, "features");
    assert_non_null(f);
    assert_int_equal(f->view.shape[0], 18);
    assert_int_equal(f->view.shape[1], DIM);
    assert_string_equal(iso_safetensors_meta(&st, "classes"), "[\"dent\",\"ok\",\"scratch\"]");
    float values[18 * DIM];
    assert_int_equal(iso_tensor_to_f32(&f->view, values, &e), ISO_OK);
    argv[8] = NULL; /* TSV to standard output, the same numbers */
    r = program_run(argv, root);
    program_check(&r, 0, "val/dent/00.png\tdent\t");
    char *field = strstr((char *)r.out.data, "\tdent\t");
    assert_true(strtof(field + 6, NULL) == values[0]);
    program_free(&r);
    iso_safetensors_close(&st);
    free(file);
}

static void U108_check_tells_what_is_wrong(void **state)
{
    (void)state;
    char *bad = in_root("bad");
    const char *argv[] = {"isofed", "train", "--check", bad, NULL};
    make_images(bad, "train", "scratch", 0, 8);
    make_images(bad, "train", "Scratch ", 1, 3);
    make_images(bad, "test", "scratch", 0, 2);
    put(bad, "train/ok/.keep", "", 0);
    program_result r = program_run(argv, root);
    program_check(&r, 0, "is spelt almost like \"Scratch \"");
    program_check(&r, 0, "ok: has no usable training image");
    program_check(&r, 0, "has only 3 training images");
    program_free(&r);
    iso_buf same = bytes_of(bad, "train/scratch/00.png"); /* a leak and a conflict */
    put(bad, "test/scratch/copy.png", same.data, same.size);
    put(bad, "train/Scratch /copy.png", same.data, same.size);
    iso_buf_free(&same);
    put(bad, "train/scratch/zero.png", "", 0);
    r = program_run(argv, root);
    program_check(&r, 0, "train/scratch/zero.png: the file is empty");
    program_check(&r, 0, "2 exact duplicates");
    program_free(&r);
    put(bad, "train/scratch/half.jpg", "\xFF\xD8\xFF\xE0 not more", 13);
    r = program_run(argv, root);
    program_check(&r, 3, "2 of ");
    program_free(&r);
    free(bad);
}

static void a_corrupt_image_is_skipped_and_named(void **state)
{
    (void)state;
    char *data = in_root("one-bad"), *out = in_root("g");
    make_task(data);
    put(data, "train/ok/03.png", "\x89PNG\r\n\x1a\nrubbish", 15);
    const char *argv[] = {"isofed", "train",   "--backbone", backbone,  "--data", data, "-o",
                          out,      "--steps", "3",          "--quiet", "--json", NULL};
    program_result r = program_run(argv, root);
    program_check(&r, 0, "warning: left out train/ok/03.png: PNG cannot be decoded");
    program_check(&r, 0, "\"unreadable\": 1");
    program_free(&r);
    free(data);
    free(out);
}

static void bad_usage_and_bad_data(void **state)
{
    (void)state;
    char *out = in_root("h"), *lone = in_root("lone"), *wrong = in_root("wrong-size");
    char *junk = in_root("junk.safetensors");
    make_images(lone, "train", "only", 0, 3);
    make_backbone(wrong);
    static const char oblong[] = "{\"size\":{\"height\":12,\"width\":8}}";
    put(wrong, "preprocessor_config.json", oblong, sizeof oblong - 1);
    put(root, "junk.safetensors", "junk", 4);
    const struct {
        const char *argv[12];
        int code;
        const char *wanted;
    } rows[] = {
        {{"train"}, 2, "--data DIR"},
        {{"train", "--data", task, "--backbone", backbone}, 2, "-o DIR"},
        {{"train", "--data", task, "-o", out}, 2, "--backbone DIR"},
        {{"train", "--data", task, "-o", out, "--rnak", "4"}, 2, "\"--rank\""},
        {{"train", "--data", task, "-o", out, "--rank", "0"}, 2, "rank"},
        {{"train", "--data", task, "-o", out, "--backbone", backbone, "--adapter", "lore"},
         2,
         "lore"},
        {{"train", "--data", task, "-o", out, "--backbone", backbone, "--targets", "qery"},
         2,
         "qery"},
        {{"train", "--data", task, "-o", out, "--backbone", backbone, "--resume"},
         2,
         "--checkpoint"},
        {{"train", "--data", task, "-o", out, "--backbone", task}, 3, "config.json"},
        {{"train", "--data", task, "-o", out, "--backbone", wrong}, 3, "8x12"},
        {{"train", "--data", lone, "-o", out, "--backbone", backbone}, 3, "two classes"},
        {{"train", "--data", "/nonexistent", "-o", out, "--backbone", backbone}, 3, "/nonexistent"},
        {{"train", "--check", "/nonexistent"}, 3, "/nonexistent"},
        {{"eval", "--backbone", backbone, "--data", task}, 2, "--head FILE"},
        {{"eval", "--backbone", backbone, "--data", task, "--head", junk}, 3, "junk"},
        {{"eval", "--backbone", backbone, "--data", task, "--refit", "--split", "holdout"},
         3,
         "holdout"},
        {{"eval", "--backbone", backbone, "--data", task, "--refit", "--adapter", task},
         3,
         "adapter"},
        {{"predict", "--backbone", backbone, "x.png"}, 2, "--head FILE"},
        {{"embed", "--backbone", backbone, "--data", task, "-o", "x.npy"}, 2, ".tsv"},
        {{"data", "fashion"}, 2, "missing"},
        {{"data", "fashon", out}, 2, "fashon"},
        {{"data", "mnist", out}, 2, "--from"},
        {{"data", "mnist", out, "--from", "/nonexistent"}, 3, "/nonexistent"},
        {{"data", "fashion", out, "--task", "tops=shirt"}, 2, "two labels"},
        {{"data", "fashion", out, "--task", "../x=shirt+coat"}, 2, "NAME="},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *argv[16] = {"isofed"};
        for (size_t k = 0; k < 12 && rows[i].argv[k]; k++)
            argv[k + 1] = rows[i].argv[k];
        program_result r = program_run(argv, root);
        program_check(&r, rows[i].code, rows[i].wanted);
        size_t lines = 0;
        for (size_t k = 0; k < r.err.size; k++)
            lines += r.err.data[k] == '\n';
        if (lines != 1)
            fail_msg("row %zu: an error is one line: %s", i, (const char *)r.err.data);
        program_free(&r);
    }
    free(out);
    free(lone);
    free(wrong);
    free(junk);
}

static void put_be(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

/* An IDX pair of n images of 3x2 pixels, label i % 10, all pixels i. */
static void make_idx(const char *folder, const char *prefix, size_t n)
{
    uint8_t images[16 + 600 * 6], labels[8 + 600];
    char name[128];
    assert_true(n <= 600);
    put_be(images, 0x00000803);
    put_be(images + 4, (uint32_t)n);
    put_be(images + 8, 2);
    put_be(images + 12, 3);
    put_be(labels, 0x00000801);
    put_be(labels + 4, (uint32_t)n);
    for (size_t i = 0; i < n; i++) {
        labels[8 + i] = (uint8_t)(i % 10);
        memset(images + 16 + i * 6, (int)(i & 255), 6);
    }
    snprintf(name, sizeof name, "%s-images-idx3-ubyte", prefix);
    put(folder, name, images, 16 + n * 6);
    snprintf(name, sizeof name, "%s-labels-idx1-ubyte", prefix);
    put(folder, name, labels, 8 + n);
}

static void tasks_are_cut_with_disjoint_shares(void **state)
{
    (void)state;
    char *idx = in_root("idx"), *out = in_root("cut");
    make_idx(idx, "train", 600);
    make_idx(idx, "t10k", 300);
    const char *argv[] = {"isofed",  "data",    "mnist",    out, "--from", idx,
                          "--train", "20",      "--val",    "5", "--test", "10",
                          "--task",  "low=0+3", "--shares", "2", NULL};
    program_result r = program_run(argv, root);
    program_check(&r, 0, "low-*: 2 classes");
    program_free(&r);
    size_t total = 0;
    iso_names seen[4] = {{0}};
    const char *parts[] = {"low-1/train/3", "low-2/train/3", "low-1/val/3", "low-2/val/3"};
    for (int k = 0; k < 4; k++) {
        iso_error e;
        char *folder = iso_path_join(out, parts[k]);
        assert_int_equal(iso_list_dir(folder, &seen[k], &e), ISO_OK);
        total += seen[k].count;
        free(folder);
        for (int m = 0; m < k; m++) /* no picture twice */
            for (size_t i = 0; i < seen[k].count; i++)
                for (size_t j = 0; j < seen[m].count; j++)
                    assert_string_not_equal(seen[k].names[i], seen[m].names[j]);
    }
    assert_int_equal(total, 2 * 20 + 2 * 5);
    for (size_t i = 0; i < seen[0].count; i++) /* the source's number: label is the last digit */
        assert_int_equal(seen[0].names[i][4], '3');
    for (int k = 0; k < 4; k++)
        iso_names_free(&seen[k]);
    char *a = iso_path_join(out, "low-1/test/0"), *b = iso_path_join(out, "low-2/test/0");
    iso_names na = {0}, nb = {0};
    iso_error e;
    assert_int_equal(iso_list_dir(a, &na, &e), ISO_OK);
    assert_int_equal(iso_list_dir(b, &nb, &e), ISO_OK);
    assert_int_equal(na.count, 10);
    for (size_t i = 0; i < na.count; i++)
        assert_string_equal(na.names[i], nb.names[i]);
    iso_names_free(&na);
    iso_names_free(&nb);
    argv[7] = "200"; /* more than there are */
    r = program_run(argv, root);
    program_check(&r, 3, "label 0 has 60 training images");
    program_free(&r);
    free(a);
    free(b);
    free(idx);
    free(out);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(training_writes_what_others_read),
        cmocka_unit_test(both_head_modes_and_choices),
        cmocka_unit_test(U32_interrupted_run_resumes_to_the_same_bits),
        cmocka_unit_test(embedding_forms),
        cmocka_unit_test(U108_check_tells_what_is_wrong),
        cmocka_unit_test(a_corrupt_image_is_skipped_and_named),
        cmocka_unit_test(bad_usage_and_bad_data),
        cmocka_unit_test(tasks_are_cut_with_disjoint_shares),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
