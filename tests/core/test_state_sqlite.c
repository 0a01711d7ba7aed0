/* The state folder: durable records and blobs (specs/security.md S80 - S87). */
#include "core/crash.h"
#include "core/fsio.h"
#include "core/state_sqlite.h"

#include <dirent.h>
#include <setjmp.h>
#include <signal.h>
#include <sqlite3.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static const char *const tables[] = {"meta", "item"};
static const iso_state_options options = {.tables = tables,
                                          .table_count = 2,
                                          .application_id = 0x69736f31,
                                          .schema = 1,
                                          .reserve_bytes = 64 * 1024};

static int make_folder(void **state)
{
    char *dir = iso_strdup("/tmp/isofed-state-XXXXXX");
    assert_non_null(mkdtemp(dir));
    *state = dir;
    return 0;
}

static int remove_folder(void **state)
{
    iso_error e;
    assert_int_equal(iso_remove_tree(*state, &e), ISO_OK);
    free(*state);
    return 0;
}

static iso_state *open_state(const char *dir)
{
    iso_error e = {0};
    iso_state *s = NULL;
    if (iso_state_open(&s, dir, &options, &e) != ISO_OK)
        fail_msg("%s", e.text);
    return s;
}

static iso_op op_of(iso_op_kind kind, int table, const char *key, const char *value)
{
    return (iso_op){.table = (uint8_t)table,
                    .kind = (uint8_t)kind,
                    .key_bytes = (uint16_t)strlen(key),
                    .value_bytes = (uint32_t)strlen(value),
                    .key = (const uint8_t *)key,
                    .value = (const uint8_t *)value};
}

static iso_err collect(void *arg, const uint8_t *key, size_t key_bytes, const uint8_t *value,
                       size_t value_bytes, iso_error *e)
{
    return iso_buf_printf(arg, e, "%.*s=%.*s;", (int)key_bytes, key, (int)value_bytes, value);
}

static void expect_rows(iso_state *s, int table, const char *expected)
{
    iso_error e;
    iso_buf got = {0};
    iso_store st = iso_state_store(s);
    assert_int_equal(iso_buf_append(&got, "", 0, &e), ISO_OK);
    assert_int_equal(st.scan(st.ctx, table, collect, &got, &e), ISO_OK);
    assert_int_equal(iso_buf_append(&got, "", 1, &e), ISO_OK);
    assert_string_equal((char *)got.data, expected);
    iso_buf_free(&got);
}

static void records_survive_reopening_in_key_order(void **state)
{
    iso_state *s = open_state(*state);
    iso_store st = iso_state_store(s);
    iso_op first[] = {op_of(ISO_OP_PUT, 1, "b", "2"), op_of(ISO_OP_INSERT, 1, "a", "1"),
                      op_of(ISO_OP_PUT, 0, "x", "")};
    assert_int_equal(st.commit(st.ctx, first, 3, NULL), ISO_OK);
    iso_op second[] = {op_of(ISO_OP_PUT, 1, "b", "3"), op_of(ISO_OP_DELETE, 1, "none", ""),
                       op_of(ISO_OP_DELETE, 1, "a", "")};
    assert_int_equal(st.commit(st.ctx, second, 3, NULL), ISO_OK);
    iso_state_close(s);
    s = open_state(*state);
    assert_false(iso_state_was_unclean(s));
    expect_rows(s, 1, "b=3;");
    expect_rows(s, 0, "x=;");
    iso_state_close(s);
}

static void insert_of_a_known_key_rolls_the_whole_transaction_back(void **state)
{
    iso_state *s = open_state(*state);
    iso_store st = iso_state_store(s);
    iso_op first = op_of(ISO_OP_INSERT, 1, "k", "1");
    assert_int_equal(st.commit(st.ctx, &first, 1, NULL), ISO_OK);
    iso_op ops[] = {op_of(ISO_OP_PUT, 1, "other", "x"), op_of(ISO_OP_INSERT, 1, "k", "2")};
    iso_error e;
    assert_int_equal(st.commit(st.ctx, ops, 2, &e), ISO_ERR_INTERNAL);
    expect_rows(s, 1, "k=1;");
    iso_state_close(s);
}

static void S81_second_opener_is_refused_with_the_pid(void **state)
{
    iso_state *s = open_state(*state);
    int pipes[2], status = 0;
    assert_int_equal(pipe(pipes), 0);
    pid_t child = fork();
    if (child == 0) {
        iso_state *other = NULL;
        iso_error e = {0};
        iso_err err = iso_state_open(&other, *state, &options, &e);
        (void)!write(pipes[1], e.text, strlen(e.text) + 1);
        _exit(err == ISO_ERR_RESOURCE ? 5 : 0);
    }
    char text[300] = {0}, pid[32];
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(read(pipes[0], text, sizeof text - 1) > 0);
    snprintf(pid, sizeof pid, "%d", (int)getpid());
    assert_int_equal(WEXITSTATUS(status), 5);
    assert_non_null(strstr(text, pid));
    close(pipes[0]);
    close(pipes[1]);
    iso_state_close(s);
}

static void S81_database_is_wal_and_exclusive(void **state)
{
    iso_state *s = open_state(*state);
    iso_store st = iso_state_store(s);
    iso_op op = op_of(ISO_OP_PUT, 1, "k", "1");
    assert_int_equal(st.commit(st.ctx, &op, 1, NULL), ISO_OK);
    char path[256];
    snprintf(path, sizeof path, "%s/state.db", (char *)*state);
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, "SELECT * FROM item", NULL, NULL, NULL), SQLITE_BUSY);
    sqlite3_close(db);
    iso_state_close(s);
}

static void S81_later_schema_and_foreign_database_are_refused(void **state)
{
    iso_state_close(open_state(*state));
    iso_state *s = NULL;
    iso_error e;
    iso_state_options later = options;
    later.schema = 2;
    assert_int_equal(iso_state_open(&s, *state, &later, &e), ISO_OK);
    iso_state_close(s);
    assert_int_equal(iso_state_open(&s, *state, &options, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "schema 2"));
    later.application_id++;
    assert_int_equal(iso_state_open(&s, *state, &later, &e), ISO_ERR_DATA);
}

static void damaged_database_is_refused_after_an_unclean_stop(void **state)
{
    iso_state *s = open_state(*state);
    iso_store st = iso_state_store(s);
    char value[3000];
    memset(value, 'v', sizeof value - 1);
    value[sizeof value - 1] = 0;
    for (int i = 0; i < 64; i++) {
        char key[16];
        snprintf(key, sizeof key, "%03d", i);
        iso_op op = op_of(ISO_OP_PUT, 1, key, value);
        assert_int_equal(st.commit(st.ctx, &op, 1, NULL), ISO_OK);
    }
    iso_state_close(s);
    char path[256];
    snprintf(path, sizeof path, "%s/state.open", (char *)*state);
    assert_int_equal(iso_write_file(path, "open\n", 5, 0600, NULL), ISO_OK);
    snprintf(path, sizeof path, "%s/state.db", (char *)*state);
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    for (long at = 5 * 4096; at < 12 * 4096; at += 512) {
        fseek(f, at, SEEK_SET);
        fwrite("garbage garbage garbage garbage ", 1, 32, f);
    }
    fclose(f);
    iso_error e;
    assert_int_equal(iso_state_open(&s, *state, &options, &e), ISO_ERR_DATA);
}

static void S84_blobs_are_named_by_content(void **state)
{
    iso_state *s = open_state(*state);
    iso_store st = iso_state_store(s);
    iso_digest d, wrong = {{1}};
    iso_error e;
    assert_int_equal(st.blob_put(st.ctx, "hello blob", 10, NULL, &d, &e), ISO_OK);
    assert_int_equal(st.blob_put(st.ctx, "hello blob", 10, &d, NULL, &e), ISO_OK);
    assert_int_equal(st.blob_put(st.ctx, "hello blob", 10, &wrong, NULL, &e), ISO_ERR_DATA);
    uint64_t size = 0;
    assert_int_equal(st.blob_size(st.ctx, &d, &size, &e), ISO_OK);
    assert_int_equal(size, 10);
    char piece[16] = {0};
    size_t got = 0;
    assert_int_equal(st.blob_read(st.ctx, &d, 6, piece, sizeof piece, &got, &e), ISO_OK);
    assert_int_equal(got, 4);
    assert_string_equal(piece, "blob");
    assert_int_equal(st.blob_size(st.ctx, &wrong, &size, &e), ISO_ERR_DATA);
    assert_int_equal(st.blob_delete(st.ctx, &d, &e), ISO_OK);
    assert_int_equal(st.blob_read(st.ctx, &d, 0, piece, 4, &got, &e), ISO_ERR_DATA);
    iso_state_close(s);
}

static void S84_adopting_replaces_a_damaged_blob_only(void **state)
{
    iso_state *s = open_state(*state);
    iso_store st = iso_state_store(s);
    iso_blob_dir *blobs = iso_state_blobs(s);
    iso_digest d;
    char path[512], temp[256];
    assert_int_equal(st.blob_put(st.ctx, "content", 7, NULL, &d, NULL), ISO_OK);
    iso_blob_dir_path(blobs, &d, path, sizeof path);
    assert_int_equal(iso_write_file(path, "CONTENT", 7, 0600, NULL), ISO_OK); /* disk rot */
    assert_int_equal(iso_blob_dir_verify(blobs, &d, NULL), ISO_ERR_DATA);
    snprintf(temp, sizeof temp, "%s/tmp/new", (char *)*state);
    assert_int_equal(iso_write_file(temp, "content", 7, 0600, NULL), ISO_OK);
    assert_int_equal(iso_blob_dir_adopt(blobs, temp, &d, NULL), ISO_OK);
    assert_int_equal(iso_blob_dir_verify(blobs, &d, NULL), ISO_OK);
    assert_false(iso_path_exists(temp));
    iso_state_close(s);
}

static bool is_kept(void *arg, const iso_digest *d)
{
    return iso_digest_equal(arg, d);
}

static void S84_start_removes_orphans_and_temporaries(void **state)
{
    iso_state *s = open_state(*state);
    iso_store st = iso_state_store(s);
    iso_digest keep, orphan;
    char temp[256];
    assert_int_equal(st.blob_put(st.ctx, "keep", 4, NULL, &keep, NULL), ISO_OK);
    assert_int_equal(st.blob_put(st.ctx, "orphan", 6, NULL, &orphan, NULL), ISO_OK);
    snprintf(temp, sizeof temp, "%s/tmp/half", (char *)*state);
    assert_int_equal(iso_write_file(temp, "x", 1, 0600, NULL), ISO_OK);
    iso_state_close(s);
    s = open_state(*state);
    st = iso_state_store(s);
    assert_false(iso_path_exists(temp));
    uint64_t removed = 0, size;
    assert_int_equal(iso_blob_dir_sweep(iso_state_blobs(s), is_kept, &keep, &removed, NULL),
                     ISO_OK);
    assert_int_equal(removed, 1);
    assert_int_equal(st.blob_size(st.ctx, &keep, &size, NULL), ISO_OK);
    assert_int_equal(st.blob_size(st.ctx, &orphan, &size, NULL), ISO_ERR_DATA);
    iso_state_close(s);
}

static void S83_a_removed_database_file_is_noticed(void **state)
{
    iso_state *s = open_state(*state);
    assert_int_equal(iso_state_check_file(s, NULL), ISO_OK);
    char path[256];
    snprintf(path, sizeof path, "%s/state.db", (char *)*state);
    assert_int_equal(unlink(path), 0);
    iso_error e;
    assert_int_equal(iso_state_check_file(s, &e), ISO_ERR_RESOURCE);
    iso_state_close(s);
}

/* A disk that takes no more: files may not grow (EFBIG stands for ENOSPC, which needs a file
 * system of its own). The transaction is rolled back, earlier rows are whole, the reserve is free.
 */
static void S87_full_disk_rolls_back_and_frees_the_reserve(void **state)
{
    iso_state *s = open_state(*state);
    char reserve[256];
    snprintf(reserve, sizeof reserve, "%s/state.reserve", (char *)*state);
    assert_true(iso_path_exists(reserve));
    iso_store st = iso_state_store(s);
    iso_op small = op_of(ISO_OP_PUT, 1, "kept", "1");
    assert_int_equal(st.commit(st.ctx, &small, 1, NULL), ISO_OK);
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit before, limit;
    getrlimit(RLIMIT_FSIZE, &before);
    limit = (struct rlimit){.rlim_cur = 128 * 1024, .rlim_max = before.rlim_max};
    setrlimit(RLIMIT_FSIZE, &limit);
    static char big[512 * 1024];
    memset(big, 'b', sizeof big);
    iso_op op = {.table = 1,
                 .kind = ISO_OP_PUT,
                 .key_bytes = 1,
                 .value_bytes = sizeof big,
                 .key = (const uint8_t *)"k",
                 .value = (const uint8_t *)big};
    iso_error e = {0};
    iso_err rows = st.commit(st.ctx, &op, 1, &e);
    iso_err blob = st.blob_put(st.ctx, big, sizeof big, NULL, NULL, NULL);
    setrlimit(RLIMIT_FSIZE, &before);
    assert_int_equal(rows, ISO_ERR_RESOURCE);
    assert_int_equal(blob, ISO_ERR_RESOURCE);
    assert_false(iso_path_exists(reserve));
    expect_rows(s, 1, "kept=1;");
    assert_int_equal(iso_state_make_reserve(s, NULL), ISO_OK);
    assert_true(iso_path_exists(reserve));
    iso_state_close(s);
}

/* Each named point between two durable steps: the process dies there, and after a restart the
 * record is there exactly when its commit had returned; no half blob is ever visible. */
static void S89_crash_points_leave_whole_blobs_or_none(void **state)
{
    static const struct {
        const char *point;
        bool is_blob_there;
    } rows[] = {{"F3", false}, {"F4", true}, {"F5", true}, {"F25", true}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char dir[256], key[16];
        snprintf(dir, sizeof dir, "%s/%s", (char *)*state, rows[i].point);
        assert_int_equal(mkdir(dir, 0700), 0);
        snprintf(key, sizeof key, "k");
        pid_t child = fork();
        if (child == 0) {
            iso_state *s = NULL;
            iso_digest d;
            if (!iso_crash_arm(rows[i].point) || iso_state_open(&s, dir, &options, NULL))
                _exit(1);
            iso_store st = iso_state_store(s);
            if (st.blob_put(st.ctx, "payload", 7, NULL, &d, NULL))
                _exit(2);
            iso_op op = op_of(ISO_OP_PUT, 1, key, "row");
            if (st.commit(st.ctx, &op, 1, NULL))
                _exit(3);
            _exit(4); /* the point was not reached */
        }
        int status = 0;
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
        iso_state *s = open_state(dir);
        assert_true(iso_state_was_unclean(s));
        iso_store st = iso_state_store(s);
        iso_digest d = iso_digest_of("payload", 7);
        uint64_t size = 0;
        bool is_there = st.blob_size(st.ctx, &d, &size, NULL) == ISO_OK;
        assert_int_equal(is_there, rows[i].is_blob_there);
        if (is_there)
            assert_int_equal(iso_blob_dir_verify(iso_state_blobs(s), &d, NULL), ISO_OK);
        expect_rows(s, 1, "");
        iso_state_close(s);
    }
}

static void crash_names_are_parsed(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        bool is_ok;
    } rows[] = {{"F5", true},
                {"F5:3", true},
                {"", false},
                {"F5:", false},
                {"F5:0", false},
                {"F5:x", false},
                {"a-name-that-is-too-long", false},
                {NULL, true}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        assert_int_equal(iso_crash_arm(rows[i].name), rows[i].is_ok);
    iso_crash_point("F5"); /* disarmed: nothing happens */
}

int main(void)
{
#define row(f) cmocka_unit_test_setup_teardown(f, make_folder, remove_folder)
    const struct CMUnitTest tests[] = {
        row(records_survive_reopening_in_key_order),
        row(insert_of_a_known_key_rolls_the_whole_transaction_back),
        row(S81_second_opener_is_refused_with_the_pid),
        row(S81_database_is_wal_and_exclusive),
        row(S81_later_schema_and_foreign_database_are_refused),
        row(damaged_database_is_refused_after_an_unclean_stop),
        row(S84_blobs_are_named_by_content),
        row(S84_adopting_replaces_a_damaged_blob_only),
        row(S84_start_removes_orphans_and_temporaries),
        row(S83_a_removed_database_file_is_noticed),
        row(S87_full_disk_rolls_back_and_frees_the_reserve),
        row(S89_crash_points_leave_whole_blobs_or_none),
        cmocka_unit_test(crash_names_are_parsed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
