/* client.yaml and enrolment.json (U6, U7), and the spool's scan of image folders. */
#include "client/config.h"
#include "client/init.h"
#include "client/spool.h"
#include "core/fsio.h"
#include "crypto/init.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/isofed-client-XXXXXX";

static int set_up(void **state)
{
    (void)state;
    return !mkdtemp(folder) || iso_crypto_init(NULL) != ISO_OK;
}

static int tear_down(void **state)
{
    (void)state;
    return iso_remove_tree(folder, NULL) != ISO_OK;
}

static void write_text(const char *name, const char *text)
{
    char path[256], dir[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    snprintf(dir, sizeof dir, "%s", path);
    *strrchr(dir, '/') = '\0';
    assert_int_equal(iso_make_dirs(dir, 0755, NULL), ISO_OK);
    assert_int_equal(iso_write_file(path, text, strlen(text), 0644, NULL), ISO_OK);
}

static iso_err read_config(const char *text, iso_client_config *c, iso_arena *arena, iso_error *e)
{
    write_text("client.yaml", text);
    return iso_client_config_read(folder, c, arena, e);
}

static void U6_generated_file_reads_back_as_the_defaults(void **state)
{
    (void)state;
    char path[256];
    iso_client_config c, d;
    iso_arena arena = {0};
    iso_error e = {0};
    snprintf(path, sizeof path, "%s/client.yaml", folder);
    assert_int_equal(iso_client_config_write(path, "bb", "press", "images", NULL), ISO_OK);
    if (iso_client_config_read(folder, &c, &arena, &e) != ISO_OK)
        fail_msg("%s", e.text);
    iso_client_config_defaults(&d);
    assert_int_equal(c.data_count, 1);
    assert_string_equal(c.data[0].task, "press");
    assert_true(c.data[0].folder[0] == '/'); /* made absolute below the client's folder */
    assert_non_null(strstr(c.backbone, "/bb"));
    assert_int_equal(c.accept, d.accept);
    assert_true(c.margin == d.margin && c.val_share == d.val_share);
    assert_int_equal(c.checkpoint_every, d.checkpoint_every);
    assert_int_equal(c.scan_ms, d.scan_ms);
    assert_int_equal(c.heartbeat_ms, d.heartbeat_ms);
    assert_int_equal(c.ping_ms, d.ping_ms);
    assert_int_equal(c.spread_ms, d.spread_ms);
    assert_int_equal(c.outbox_bytes, d.outbox_bytes);
    assert_int_equal(c.release_bytes, d.release_bytes);
    assert_int_equal(c.disk_floor_bytes, d.disk_floor_bytes);
    assert_int_equal(c.cache_bytes, d.cache_bytes);
    assert_int_equal(c.nice, d.nice);
    assert_int_equal(c.log_level, d.log_level);
    iso_arena_free(&arena);
}

/* Every key of the generated file with a letter too many: refused, with its line and the key. */
static void U7_every_misspelt_key_names_the_nearest(void **state)
{
    (void)state;
    char path[256];
    iso_buf text = {0};
    size_t keys = 0;
    snprintf(path, sizeof path, "%s/client.yaml", folder);
    assert_int_equal(iso_client_config_write(path, "bb", "press", "images", NULL), ISO_OK);
    assert_int_equal(iso_read_file(path, 65536, &text, NULL), ISO_OK);
    for (size_t i = 0; i + 1 < text.size; i++) {
        if (text.data[i] != ':' || (text.data[i + 1] != ' ' && text.data[i + 1] != '\n'))
            continue;
        size_t from = i;
        while (from > 0 && text.data[from - 1] != '\n' && text.data[from - 1] != ' ')
            from--;
        size_t line = from;
        while (line > 0 && text.data[line - 1] != '\n')
            line--;
        if (memchr(text.data + line, '#', i - line))
            continue; /* a comment */
        char changed[8192], key[64];
        snprintf(key, sizeof key, "%.*s", (int)(i - from), (const char *)text.data + from);
        snprintf(changed, sizeof changed, "%.*sx%s", (int)i, (const char *)text.data,
                 (const char *)text.data + i);
        iso_client_config c;
        iso_arena arena = {0};
        iso_error e = {0};
        assert_int_equal(read_config(changed, &c, &arena, &e), ISO_ERR_USAGE);
        char quoted[80];
        snprintf(quoted, sizeof quoted, "\"%s\"", key);
        if (!strstr(e.text, quoted) || !strstr(e.text, "client.yaml:"))
            fail_msg("%s: %s", key, e.text);
        keys++;
        iso_arena_free(&arena);
    }
    assert_in_range(keys, 20, 40);
    iso_buf_free(&text);
}

static void bad_values_name_what_would_be_right(void **state)
{
    (void)state;
    static const char good[] = "data:\n  - {task: press, folder: a}\nbackbone: b\n";
    const struct {
        const char *text, *says;
    } rows[] = {
        {"margin: 2\n", "margin"},
        {"accept: maybe\n", "auto"},
        {"checkpoint_every: 0\n", "checkpoint_every"},
        {"threads: many\n", "threads"},
        {"scan_every: 5 parsecs\n", "scan_every"},
        {"limits: {outbox: 3}\n", "outbox"},
        {"log: {level: loud}\n", "level"},
        {"link: 5\n", "client.yaml:4"},
        {"margin: 0.1\nmargin: 0.2\n", "margin"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[512];
        iso_client_config c;
        iso_arena arena = {0};
        iso_error e = {0};
        snprintf(text, sizeof text, "%s%s", good, rows[i].text);
        if (read_config(text, &c, &arena, &e) != ISO_ERR_USAGE || !strstr(e.text, rows[i].says))
            fail_msg("%s: %s", rows[i].text, e.text);
        iso_arena_free(&arena);
    }
    const char *const whole[] = {
        "backbone: b\n",
        "data: []\nbackbone: b\n",
        "data:\n  - {task: press}\nbackbone: b\n",
        "data:\n  - {task: press, folder: a}\n  - {task: press, folder: b}\nbackbone: b\n",
        "data:\n  - {task: \"pr ess\", folder: a}\nbackbone: b\n",
        "data:\n  - {task: press, folder: a}\n",
    };
    for (size_t i = 0; i < sizeof whole / sizeof *whole; i++) {
        iso_client_config c;
        iso_arena arena = {0};
        iso_error e = {0};
        if (read_config(whole[i], &c, &arena, &e) != ISO_ERR_USAGE)
            fail_msg("%s: %s", whole[i], e.text);
        iso_arena_free(&arena);
    }
}

static void enrolment_reads_back_and_damage_is_named(void **state)
{
    (void)state;
    iso_enrolment in = {.name = "plant-7", .host = "fl.corp", .port = 7443, .enrolled_ms = 5}, out;
    iso_error e = {0};
    assert_int_equal(iso_enrolment_read(folder, &out, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "isofed enroll"));
    memset(in.federation_id, 1, 16);
    memset(in.site_id, 2, 16);
    memset(in.coordinator_pk, 3, 32);
    memset(in.root_fingerprint, 4, sizeof in.root_fingerprint);
    assert_int_equal(iso_enrolment_write(folder, &in, NULL), ISO_OK);
    assert_int_equal(iso_enrolment_read(folder, &out, &e), ISO_OK);
    assert_string_equal(out.name, in.name);
    assert_string_equal(out.host, in.host);
    assert_int_equal(out.port, in.port);
    assert_memory_equal(out.site_id, in.site_id, 16);
    assert_memory_equal(out.root_fingerprint, in.root_fingerprint, sizeof in.root_fingerprint);
    write_text("enrolment.json", "{\"format\":1,\"name\":\"x\"}");
    assert_int_equal(iso_enrolment_read(folder, &out, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "host"));
}

static void init_makes_keys_once_and_keeps_what_is_there(void **state)
{
    (void)state;
    char dir[256], first[ISO_FINGERPRINT_TEXT], again[ISO_FINGERPRINT_TEXT];
    const iso_client_init_options o = {.backbone = "b"};
    snprintf(dir, sizeof dir, "%s/fresh", folder);
    assert_int_equal(iso_client_init(dir, &o, first, NULL), ISO_OK);
    assert_int_equal(iso_client_init(dir, &o, again, NULL), ISO_OK);
    assert_string_equal(first, again);
    assert_int_equal(strlen(first), ISO_FINGERPRINT_TEXT - 1);
}

static void spool_counts_by_split_and_sees_new_files(void **state)
{
    (void)state;
    char dir[256], name[64];
    iso_spool_state s, t;
    iso_error e = {0};
    snprintf(dir, sizeof dir, "%s/images", folder);
    assert_int_equal(iso_spool_scan(dir, 0.2, &s, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "train/"));
    for (int i = 0; i < 10; i++) {
        snprintf(name, sizeof name, "images/train/good/%d.png", i);
        write_text(name, "12345");
        snprintf(name, sizeof name, "images/train/bad/%d.png", i);
        write_text(name, "123");
    }
    write_text("images/test/bad/1.png", "1");
    write_text("images/train/.hidden/1.png", "1");
    write_text("images/train/stray.txt", "1");
    assert_int_equal(iso_spool_scan(dir, 0.2, &s, &e), ISO_OK);
    assert_int_equal(s.train, 16); /* 20 % of each class validate, where there is no val/ */
    assert_int_equal(s.val, 4);
    assert_int_equal(s.test, 1);
    assert_int_equal(s.classes, 2);
    assert_int_equal(s.bytes, 81);
    assert_int_equal(s.skipped, 2);
    assert_int_equal(iso_spool_scan(dir, 0.2, &t, &e), ISO_OK);
    assert_true(iso_digest_equal(&s.digest, &t.digest));
    write_text("images/train/good/new.png", "1");
    assert_int_equal(iso_spool_scan(dir, 0.2, &t, &e), ISO_OK);
    assert_false(iso_digest_equal(&s.digest, &t.digest));
    write_text("images/val/good/1.png", "1");
    assert_int_equal(iso_spool_scan(dir, 0.2, &t, &e), ISO_OK);
    assert_int_equal(t.train, 21);
    assert_int_equal(t.val, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(U6_generated_file_reads_back_as_the_defaults),
        cmocka_unit_test(U7_every_misspelt_key_names_the_nearest),
        cmocka_unit_test(bad_values_name_what_would_be_right),
        cmocka_unit_test(enrolment_reads_back_and_damage_is_named),
        cmocka_unit_test(init_makes_keys_once_and_keeps_what_is_there),
        cmocka_unit_test(spool_counts_by_split_and_sees_new_files),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
