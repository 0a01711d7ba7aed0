/* coordinator.yaml, the folder of init, and jobs as files: bad values are named, what init writes
 * is read, a result that is not whole is refused (users.md U8; specs/security.md 9.1, S15). */
#include "coordinator/config.h"
#include "coordinator/identity.h"
#include "coordinator/init.h"
#include "coordinator/job.h"
#include "core/fsio.h"
#include "core/safetensors.h"
#include "core/state_sqlite.h"
#include "crypto/init.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[64];

static int make_folder(void **state)
{
    (void)state;
    strcpy(folder, "/tmp/isofed-config-XXXXXX");
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    (void)state;
    return iso_remove_tree(folder, NULL) == ISO_OK ? 0 : -1;
}

#define HEAD "federation: x\nbackbone: b\n"
#define TASK "tasks:\n  - {name: weld, classes: [a, b], sites: [p1]"

static void U8_bad_configurations_are_named(void **state)
{
    (void)state;
    static const struct {
        const char *text, *expected; /* NULL: fine */
    } rows[] = {
        {HEAD TASK "}\n", NULL},
        {HEAD "rouns: {}\n", "rounds"},
        {"backbone: b\n", "federation"},
        {HEAD "gate: {margin: 2}\n", "margin"},
        {HEAD "rounds: {deadline: 1ms}\n", "deadline"},
        {HEAD "rounds: {trigger: always}\n", "operator"},
        {HEAD "candidates:\n  - {method: iso_ct}\n", "iso_cts"},
        {HEAD "candidates: []\n", "candidates"},
        {HEAD TASK ", quorum: 2}\n", "quorum 2"},
        {HEAD TASK ", rank: 0}\n", "rank"},
        {HEAD TASK ", aggregate: multi_crum}\n", "multi_krum"},
        {HEAD TASK ", aggregate: trimmed_mean, shift: 4, mirror: true, first_block: 2}\n", NULL},
        {HEAD TASK ", shift: 65}\n", "0..64"},
        {HEAD TASK ", steps: -1}\n", "steps"},
        {HEAD "tasks:\n  - {name: weld, classes: [a, a]}\n", "twice"},
        {HEAD "tasks:\n  - {name: weld, classes: [a]}\n", "classes"},
        {HEAD "tasks:\n  - {name: 'we ld', classes: [a, b]}\n", "letters"},
        {HEAD TASK "}\n  - {name: weld, classes: [a, b]}\n", "twice"},
        {HEAD TASK ", update_bytes: 300MiB}\n", "limits.update_bytes"},
        {HEAD "limits: {requests_per_s: 51}\n", "requests_per_s"},
    };
    char path[128];
    snprintf(path, sizeof path, "%s/coordinator.yaml", folder);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_arena arena = {0};
        iso_coord_config c;
        iso_error e = {0};
        assert_int_equal(iso_write_file(path, rows[i].text, strlen(rows[i].text), 0600, &e), 0);
        iso_err err = iso_coord_config_read(path, &c, &arena, &e);
        if (!rows[i].expected && err)
            fail_msg("row %zu: %s", i, e.text);
        if (rows[i].expected && (err != ISO_ERR_USAGE || !strstr(e.text, rows[i].expected)))
            fail_msg("row %zu: expected a line with \"%s\", got %d \"%s\"", i, rows[i].expected,
                     (int)err, e.text);
        iso_arena_free(&arena);
    }
}

static void S15_the_folder_of_init_starts_unedited(void **state)
{
    (void)state;
    char path[160], backbone[96];
    iso_error e = {0};
    iso_arena arena = {0};
    iso_coord_config c;
    iso_coord_keys_file keys;
    float one = 1.0f;
    snprintf(backbone, sizeof backbone, "%s/backbone", folder);
    assert_int_equal(iso_make_dirs(backbone, 0700, &e), ISO_OK);
    snprintf(path, sizeof path, "%s/model.safetensors", backbone);
    iso_named_tensor t = {.name = "w",
                          .view = {.data = &one, .dtype = ISO_F32, .ndim = 1, .shape = {1}}};
    assert_int_equal(iso_safetensors_write(path, &t, 1, NULL, 0, &e), ISO_OK);
    iso_coordinator_init_options o = {.name = "acme", .backbone = backbone};
    assert_int_equal(iso_coordinator_init(folder, &o, &e), ISO_OK);
    snprintf(path, sizeof path, "%s/coordinator.yaml", folder);
    if (iso_coord_config_read(path, &c, &arena, &e) != ISO_OK)
        fail_msg("%s", e.text);
    assert_string_equal(c.name, "acme");
    if (iso_coord_identity_read(folder, c.backbone, NULL, 4000000000000u, &keys, &e) != ISO_OK)
        fail_msg("%s", e.text);
    assert_int_equal(keys.identity.roster_version, 1);
    assert_int_equal(keys.identity.merge_key_count, 1);
    assert_true(keys.identity.merge_keys[0].is_usable);
    assert_true(keys.identity.epoch != 0);
    iso_coord_identity_free(&keys);
    iso_arena_free(&arena);
    iso_buf text = {0}; /* S1, S15: said in the file */
    assert_int_equal(iso_read_file(path, 1 << 16, &text, &e), ISO_OK);
    assert_non_null(strstr((char *)text.data, "no secure aggregation"));
    assert_non_null(strstr((char *)text.data, "root key"));
    iso_buf_free(&text);
    assert_int_equal(iso_coordinator_init(folder, &o, &e), ISO_ERR_USAGE); /* never twice */
}

static void results_that_are_not_whole_are_refused(void **state)
{
    (void)state;
    static const char *const tables[] = {"meta"};
    iso_state_options so = {.tables = tables, .table_count = 1, .application_id = 1, .schema = 1};
    iso_state *st = NULL;
    iso_error e = {0};
    iso_digest d;
    char hex[ISO_DIGEST_HEX], text[1024];
    assert_int_equal(iso_state_open(&st, folder, &so, &e), ISO_OK);
    iso_store store = iso_state_store(st);
    assert_int_equal(store.blob_put(store.ctx, "head", 4, NULL, &d, &e), ISO_OK);
    iso_hex(hex, d.b, 32);
    static const char job[] = "000102030405060708090a0b0c0d0e0f";
    static const struct {
        const char *format;
        bool is_ok;
    } rows[] = {
        {"{\"format\":1,\"job\":\"%s\",\"tasks\":[{\"id\":\"%s\",\"head\":\"%s\",\"updates\":"
         "[{\"update_id\":\"000102030405060708090a0b0c0d0e0f\",\"verdict\":\"refused\","
         "\"code\":\"NONFINITE\",\"sentence\":\"NaN\"}]}]}",
         true},
        {"{\"format\":1,\"job\":\"%s\",\"tasks\":[{\"id\":\"%s\",\"head\":\"00%.62s\"}]}", false},
        {"{\"format\":1,\"job\":\"%.30s\"}", false},
        {"{\"format\":1", false},
        {"{\"format\":1,\"job\":\"%s\",\"tasks\":[{\"id\":\"%s\",\"head\":\"%s\",\"updates\":"
         "[{\"verdict\":\"used\"}]}]}",
         false},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_arena arena = {0};
        iso_job_result result;
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        int n = snprintf(text, sizeof text, rows[i].format, job, job, hex);
#pragma GCC diagnostic pop
        iso_err err = iso_job_result_read(text, (size_t)n, &store, &arena, &result, &e);
        if ((err == ISO_OK) != rows[i].is_ok)
            fail_msg("row %zu: %s", i, err ? e.text : "was accepted");
        if (rows[i].is_ok) {
            assert_int_equal(result.tasks[0].verdicts[0].code, ISO_CODE_NONFINITE);
            assert_int_equal(result.tasks[0].bytes, 4);
        }
        iso_arena_free(&arena);
    }
    iso_state_close(st);
}

int main(void)
{
    if (iso_crypto_init(NULL) != ISO_OK)
        return 1;
#define row(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        row(U8_bad_configurations_are_named),
        row(S15_the_folder_of_init_starts_unedited),
        row(results_that_are_not_whole_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
