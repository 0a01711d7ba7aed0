/* Image folders: order, classes, splits, limits, and bad input (issue: corrupt image among good
 * ones, empty class folder, zero-length file, unreadable directory). */
#include "core/parallel.h"
#include "nn/data/feed.h"
#include "nn/data/sampler.h"
#include "tests/nn/image_fixture.h"

#include <sys/stat.h>

enum { SIDE = 8 };

static iso_preprocess small(void)
{
    iso_preprocess p;
    iso_preprocess_default(&p, SIDE);
    return p;
}

static iso_image_options options(const char *folder, const char *split, const iso_preprocess *pre)
{
    return (iso_image_options){.folder = folder, .split = split, .pre = pre};
}

static size_t notes_of(const iso_image_set *s, iso_note_kind kind, const char *path,
                       const char *reason)
{
    size_t n = 0;
    for (size_t i = 0; i < s->note_count; i++)
        n += s->notes[i].kind == kind && (!path || !strcmp(s->notes[i].path, path)) &&
             (!reason || strstr(s->notes[i].reason, reason));
    return n;
}

static void load_fails(const iso_image_options *o, iso_err code, const char *wanted)
{
    iso_image_set s;
    iso_error e;
    iso_err err = iso_images_load(&s, o, &e);
    if (err != code || !strstr(e.text, wanted))
        fail_msg("%s: \"%s\" does not say \"%s\"", iso_err_name(err), err ? e.text : "", wanted);
    assert_null(strchr(e.text, '\n'));
}

/* n images a class under folder/split/class. */
static void fill(const char *folder, const char *split, const char *class_name, int n)
{
    for (int i = 0; i < n; i++) {
        char path[128];
        snprintf(path, sizeof path, "%s/%s/%03d.png", split, class_name, i);
        fixture_write_png(folder, path, (unsigned)(i + class_name[0]));
    }
}

static void folders_in_sorted_order(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_image_set s;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "scratch", 3);
    fill(f, "train", "dent", 2);
    fill(f, "test", "ok", 1);
    fixture_write(f, "train/dent/.DS_Store", "x", 1);
    fixture_write(f, "train/readme.txt", "x", 1);
    fixture_write(f, "train/dent/deep/a.png", "x", 1);
    iso_image_options o = options(f, "train", &pre);
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK);
    assert_int_equal(s.class_count, 3); /* the union over the splits */
    assert_string_equal(s.class_names[0], "dent");
    assert_string_equal(s.class_names[1], "ok");
    assert_string_equal(s.class_names[2], "scratch");
    assert_int_equal(s.count, 5);
    assert_string_equal(s.rows[0].path, "train/dent/000.png");
    assert_string_equal(s.rows[4].path, "train/scratch/002.png");
    assert_int_equal(s.rows[4].label, 2);
    assert_int_equal(s.height, SIDE);
    assert_int_equal(notes_of(&s, ISO_NOTE_EMPTY_CLASS, "ok", "train"), 1);
    assert_int_equal(notes_of(&s, ISO_NOTE_OTHER, "train/readme.txt", NULL), 1);
    assert_int_equal(notes_of(&s, ISO_NOTE_OTHER, "train/dent/deep", NULL), 1);
    assert_int_equal(s.note_count, 3);
    iso_images_free(&s);
    fixture_remove(f);
}

static void manifest_gives_order_and_limit(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_image_set s;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "a", 4);
    fill(f, "train", "b", 3);
    const char *m = "group\tpath\tsplit\tclass\r\n"
                    "g9\ttrain/b/002.png\ttrain\tb\r\n"
                    "g1\ttrain/a/003.png\ttrain\ta\r\n"
                    "g1\ttrain/a/000.png\ttrain\ta\r\n"
                    "\n"
                    "g1\ttrain/a/001.png\ttest\ta\r\n"
                    "g2\ttrain/b/000.png\ttrain\tb\r\n"
                    "g2\ttrain/a/002.png\ttrain\ta";
    fixture_write(f, "manifest.tsv", m, strlen(m));
    iso_image_options o = options(f, "train", &pre);
    o.limit_per_class = 2;
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK);
    assert_int_equal(s.count, 4);
    const char *want[] = {"train/b/002.png", "train/a/003.png", "train/a/000.png",
                          "train/b/000.png"};
    for (size_t i = 0; i < 4; i++)
        assert_string_equal(s.rows[i].path, want[i]);
    assert_string_equal(s.rows[0].group, "g9");
    assert_int_equal(s.rows[0].label, 1);
    iso_images_free(&s);
    fixture_remove(f);
}

static void S91_bad_manifests(void **state)
{
    (void)state;
    static const struct {
        const char *text, *wanted;
        size_t size;
    } rows[] = {
        {"path\tclass\n", "must name the columns", 0},
        {"", "must name the columns", 0},
        {"path\tclass\tsplit\n../x.png\ta\ttrain\n", "manifest.tsv:2: path leaves", 0},
        {"path\tclass\tsplit\n/etc/x\ta\ttrain\n", "manifest.tsv:2: path leaves", 0},
        {"path\tclass\tsplit\na/../../x\ta\ttrain\n", "manifest.tsv:2: path leaves", 0},
        {"path\tclass\tsplit\na.png\ta\n", "manifest.tsv:2: split is missing", 0},
        {"path\tclass\tsplit\na.png\n", "manifest.tsv:2: class is missing", 0},
        {"path\tclass\tsplit\na.png\ta\xff\ttrain\n", "manifest.tsv:2: class is not clean", 0},
        {"path\tclass\tsplit\na.png\ta\x1b[1m\ttrain\n", "manifest.tsv:2: class is not clean", 0},
        {"path\tclass\tsplit\na.\0ng\ta\ttrain\n", "manifest.tsv:2: holds a NUL", 31},
    };
    iso_preprocess pre = small();
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char *f = fixture_folder();
        fixture_write(f, "manifest.tsv", rows[i].text,
                      rows[i].size ? rows[i].size : strlen(rows[i].text));
        iso_image_options o = options(f, "train", &pre);
        load_fails(&o, ISO_ERR_DATA, rows[i].wanted);
        fixture_remove(f);
    }
    char *f = fixture_folder();
    char *line = iso_calloc(1 << 20, 1);
    memset(line, 'x', (1 << 20) - 1);
    fixture_write(f, "manifest.tsv", line, (1 << 20) - 1);
    iso_image_options o = options(f, "train", &pre);
    load_fails(&o, ISO_ERR_DATA, "line of");
    free(line);
    fixture_remove(f);
}

static void corrupt_image_among_good_ones_is_named_and_counted(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_image_set s;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "a", 20);
    fixture_write(f, "train/a/005.png", "\x89PNG\r\n\x1a\nrubbish", 15);
    iso_image_options o = options(f, "train", &pre);
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK);
    assert_int_equal(s.count, 19);
    assert_int_equal(s.listed_count, 20);
    assert_int_equal(s.unreadable_count, 1);
    assert_int_equal(notes_of(&s, ISO_NOTE_UNREADABLE, "train/a/005.png", "PNG cannot"), 1);
    for (size_t i = 0; i < s.count; i++) { /* what follows the gap is still its own picture */
        iso_buf file = {0};
        uint8_t *rgb, out[SIDE * SIDE * 3];
        int h, w;
        char *path = iso_path_join(f, s.rows[i].path);
        assert_int_equal(iso_read_file(path, 1 << 20, &file, &e), ISO_OK);
        assert_int_equal(iso_image_decode(file.data, file.size, &rgb, &h, &w, &e), ISO_OK);
        assert_int_equal(iso_preprocess_u8(&pre, rgb, h, w, out, &e), ISO_OK);
        assert_memory_equal(s.pixels + i * sizeof out, out, sizeof out);
        free(rgb);
        free(path);
        iso_buf_free(&file);
    }
    iso_images_free(&s);
    fixture_write(f, "train/a/009.png", "", 0); /* a second one: more than max(1, 1 %) */
    load_fails(&o, ISO_ERR_DATA,
               "2 of 20 files cannot be read (at most 1 are skipped), first "
               "train/a/005.png: PNG cannot be decoded");
    o.allow_unreadable = true;
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK);
    assert_int_equal(s.count, 18);
    assert_int_equal(notes_of(&s, ISO_NOTE_UNREADABLE, "train/a/009.png", "empty"), 1);
    iso_images_free(&s);
    fixture_remove(f);
}

static void S91_only_regular_files_are_read(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_image_set s;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "a", 2);
    char *fifo = iso_path_join(f, "train/a/fifo.png");
    char *loop = iso_path_join(f, "train/a/loop.png");
    char *zero = iso_path_join(f, "train/a/zero.png");
    assert_int_equal(mkfifo(fifo, 0644), 0);
    assert_int_equal(symlink("loop.png", loop), 0);
    assert_int_equal(symlink("/dev/zero", zero), 0);
    iso_image_options o = options(f, "train", &pre);
    o.allow_unreadable = true;
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK); /* and does not hang */
    assert_int_equal(s.count, 2);
    assert_int_equal(s.unreadable_count, 3);
    assert_int_equal(notes_of(&s, ISO_NOTE_UNREADABLE, "train/a/fifo.png", NULL), 1);
    assert_int_equal(notes_of(&s, ISO_NOTE_UNREADABLE, "train/a/loop.png", NULL), 1);
    assert_int_equal(notes_of(&s, ISO_NOTE_UNREADABLE, "train/a/zero.png", NULL), 1);
    iso_images_free(&s);
    free(fifo);
    free(loop);
    free(zero);
    fixture_remove(f);
}

static void bad_folders(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    char *f = fixture_folder();
    iso_image_options o = options("/nonexistent/place", "train", &pre);
    load_fails(&o, ISO_ERR_DATA, "/nonexistent/place: ");
    o.folder = f;
    load_fails(&o, ISO_ERR_DATA, "no class folders found");
    fill(f, "test", "a", 1);
    iso_image_set s;
    iso_error e;
    assert_int_not_equal(iso_images_load(&s, &o, &e), ISO_OK); /* no train folder */
    assert_non_null(strstr(e.text, "train"));
    char *empty = iso_path_join(f, "train/a");
    assert_int_equal(iso_make_dirs(empty, 0755, &e), ISO_OK);
    load_fails(&o, ISO_ERR_DATA, "split \"train\" has no image");
    if (geteuid() != 0) { /* root reads everything */
        assert_int_equal(chmod(empty, 0), 0);
        assert_int_not_equal(iso_images_load(&s, &o, &e), ISO_OK);
        assert_non_null(strstr(e.text, "train/a"));
        assert_int_equal(chmod(empty, 0755), 0);
    }
    free(empty);
    fixture_write(f, "train/a\x1b[31m/x.png", "x", 1);
    load_fails(&o, ISO_ERR_DATA, "not clean UTF-8");
    fixture_remove(f);
}

static void U76_classes_by_name(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_image_set s;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "dent", 2);
    fill(f, "train", "Kratzer", 3);
    const char *names[] = {"scratch", "dent"};
    iso_image_options o = options(f, "train", &pre);
    o.class_names = names;
    o.class_count = 2;
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK);
    assert_int_equal(s.count, 2);
    assert_int_equal(s.rows[0].label, 1);
    assert_int_equal(notes_of(&s, ISO_NOTE_UNKNOWN_CLASS, "Kratzer", NULL), 1);
    assert_int_equal(notes_of(&s, ISO_NOTE_EMPTY_CLASS, "scratch", NULL), 1);
    iso_images_free(&s);
    fixture_remove(f);
}

static void validation_by_folder_or_by_share(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_image_set t, v, t2, v2;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "a", 10);
    fill(f, "train", "b", 5);
    fill(f, "train", "c", 1);
    iso_image_options o = options(f, NULL, &pre);
    assert_int_equal(iso_images_load_train_val(&t, &v, &o, 0.2, 7, &e), ISO_OK);
    assert_int_equal(t.count, 8 + 4 + 1);
    assert_int_equal(v.count, 2 + 1);
    for (size_t i = 0; i < v.count; i++)
        for (size_t k = 0; k < t.count; k++)
            assert_string_not_equal(v.rows[i].path, t.rows[k].path);
    assert_int_equal(iso_images_load_train_val(&t2, &v2, &o, 0.2, 7, &e), ISO_OK);
    iso_digest d1 = iso_images_digest(&v), d2 = iso_images_digest(&v2);
    assert_true(iso_digest_equal(&d1, &d2)); /* the same seed draws the same */
    iso_images_free(&t2);
    iso_images_free(&v2);
    bool differs = false;
    for (uint64_t seed = 8; seed < 12 && !differs; seed++) {
        assert_int_equal(iso_images_load_train_val(&t2, &v2, &o, 0.2, seed, &e), ISO_OK);
        d2 = iso_images_digest(&v2);
        differs = !iso_digest_equal(&d1, &d2);
        iso_images_free(&t2);
        iso_images_free(&v2);
    }
    assert_true(differs);
    iso_images_free(&t);
    iso_images_free(&v);
    fill(f, "val", "a", 3);
    o.limit_per_class = 2;
    assert_int_equal(iso_images_load_train_val(&t, &v, &o, 0.2, 7, &e), ISO_OK);
    assert_int_equal(t.count, 2 + 2 + 1);
    assert_int_equal(v.count, 3);
    iso_images_free(&t);
    iso_images_free(&v);
    fixture_remove(f);
}

static void batches_are_normalised_and_independent_of_threads(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_image_set s, s1;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "a", 9);
    fill(f, "train", "b", 4);
    iso_image_options o = options(f, "train", &pre);
    iso_set_threads(1);
    assert_int_equal(iso_images_load(&s1, &o, &e), ISO_OK);
    iso_set_threads(4);
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK);
    assert_memory_equal(s.pixels, s1.pixels, s.count * SIDE * SIDE * 3);
    const uint32_t idx[] = {12, 0, 5};
    float out[3 * 3 * SIDE * SIDE];
    iso_images_batch(&s, idx, 3, out);
    for (size_t i = 0; i < 3; i++)
        for (size_t c = 0; c < 3; c++)
            for (size_t p = 0; p < SIDE * SIDE; p++) {
                double want = (s.pixels[(idx[i] * SIDE * SIDE + p) * 3 + c] / 255.0 - 0.5) / 0.5;
                double got = (double)out[(i * 3 + c) * SIDE * SIDE + p];
                assert_true(got - want < 1e-6 && want - got < 1e-6);
            }
    iso_images_free(&s);
    iso_images_free(&s1);
    iso_set_threads(0);
    fixture_remove(f);
}

static void draws_move_and_mirror_images(void **state)
{
    (void)state;
    enum { PIXELS = SIDE * SIDE };
    iso_preprocess pre = small();
    iso_image_set s;
    iso_error e;
    char *f = fixture_folder();
    fill(f, "train", "a", 6);
    iso_image_options o = options(f, "train", &pre);
    assert_int_equal(iso_images_load(&s, &o, &e), ISO_OK);
    iso_image_feed feed = {.set = &s, .seed = 3, .shift = 2, .is_mirrored = true};
    const uint32_t idx[] = {4, 1}, other[] = {1, 4};
    static float plain[2 * 3 * PIXELS], a[2 * 3 * PIXELS], b[2 * 3 * PIXELS];
    iso_images_batch(&s, idx, 2, plain);
    iso_image_feed_pixels(&feed, idx, 2, 0, a);
    assert_memory_equal(a, plain, sizeof a);
    iso_image_feed_pixels(&feed, idx, 2, 9, a);
    iso_image_feed_pixels(&feed, other, 2, 9, b); /* the place in the batch does not matter */
    assert_memory_equal(a, b + 3 * PIXELS, sizeof a / 2);
    assert_memory_equal(a + 3 * PIXELS, b, sizeof a / 2);
    bool seen[5][5][2] = {{{false}}};
    for (uint64_t draw = 1; draw < 400; draw++) { /* each is one of the 50 that are possible */
        iso_image_feed_pixels(&feed, idx, 1, draw, a);
        int found = 0;
        for (int dy = -2; dy <= 2; dy++)
            for (int dx = -2; dx <= 2; dx++)
                for (int m = 0; m < 2; m++) {
                    bool same = true;
                    for (int p = 0; p < PIXELS && same; p++) {
                        int y = p / SIDE + dy, x = (m ? SIDE - 1 - p % SIDE : p % SIDE) + dx;
                        y = y < 0 ? 0 : y >= SIDE ? SIDE - 1 : y;
                        x = x < 0 ? 0 : x >= SIDE ? SIDE - 1 : x;
                        same = a[p] == plain[y * SIDE + x];
                    }
                    found += same;
                    seen[dy + 2][dx + 2][m] |= same;
                }
        assert_int_equal(found, 1);
    }
    for (int k = 0; k < 50; k++)
        assert_true(seen[k / 10][k / 2 % 5][k % 2]);
    iso_images_free(&s);
    fixture_remove(f);
}

static void one_file_by_name(void **state)
{
    (void)state;
    iso_preprocess pre = small();
    iso_error e;
    uint8_t out[SIDE * SIDE * 3];
    char *f = fixture_folder();
    fixture_write_png(f, "x/a.png", 1);
    fixture_write(f, "x/b.png", "", 0);
    char *a = iso_path_join(f, "x/a.png"), *b = iso_path_join(f, "x/b.png");
    assert_int_equal(iso_image_read(a, &pre, out, &e), ISO_OK);
    assert_int_equal(iso_image_read(b, &pre, out, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "x/b.png: the file is empty"));
    assert_int_not_equal(iso_image_read("/nonexistent", &pre, out, &e), ISO_OK);
    free(a);
    free(b);
    fixture_remove(f);
}

static void epoch_orders_are_permutations(void **state)
{
    (void)state;
    enum { N = 100 };
    uint32_t a[N], b[N], c[N];
    bool seen[N] = {false};
    iso_epoch_order(5, 0, a, N);
    iso_epoch_order(5, 0, b, N);
    iso_epoch_order(5, 1, c, N);
    assert_memory_equal(a, b, sizeof a);
    assert_memory_not_equal(a, c, sizeof a);
    for (size_t i = 0; i < N; i++) {
        assert_false(seen[a[i]]);
        seen[a[i]] = true;
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders_in_sorted_order),
        cmocka_unit_test(manifest_gives_order_and_limit),
        cmocka_unit_test(S91_bad_manifests),
        cmocka_unit_test(corrupt_image_among_good_ones_is_named_and_counted),
        cmocka_unit_test(S91_only_regular_files_are_read),
        cmocka_unit_test(bad_folders),
        cmocka_unit_test(U76_classes_by_name),
        cmocka_unit_test(validation_by_folder_or_by_share),
        cmocka_unit_test(batches_are_normalised_and_independent_of_threads),
        cmocka_unit_test(draws_move_and_mirror_images),
        cmocka_unit_test(one_file_by_name),
        cmocka_unit_test(epoch_orders_are_permutations),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
