/* The store seam on SQLite (WAL, synchronous FULL, exclusive) and a folder of blobs.
 * Traps: specs/security.md T14 (NORMAL is not durable at commit, unlinked files swallow commits),
 * T15 (a full disk forbids deletions too), S85 (an fsync error is final for its descriptor). */
#include "core/state_sqlite.h"

#include "core/crash.h"
#include "core/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

struct iso_state {
    char *dir;
    int lock_fd;
    sqlite3 *db;
    sqlite3_stmt *begin, *commit, *rollback;
    sqlite3_stmt *put[ISO_TABLES_MAX], *insert[ISO_TABLES_MAX], *remove[ISO_TABLES_MAX],
        *scan[ISO_TABLES_MAX];
    size_t table_count;
    uint64_t reserve_bytes;
    bool was_unclean;
    iso_blob_dir blobs;
};

static void path_in(const iso_state *s, const char *name, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/%s", s->dir, name);
}

/* ---- SQLite ---- */

static iso_err sql_fail(iso_state *s, iso_error *e, const char *what)
{
    int rc = sqlite3_extended_errcode(s->db);
    iso_err code = ISO_ERR_RESOURCE;
    if ((rc & 0xff) == SQLITE_CORRUPT || (rc & 0xff) == SQLITE_NOTADB)
        code = ISO_ERR_DATA;
    if ((rc & 0xff) == SQLITE_CONSTRAINT || (rc & 0xff) == SQLITE_MISUSE)
        code = ISO_ERR_INTERNAL;
    if ((rc & 0xff) == SQLITE_BUSY || (rc & 0xff) == SQLITE_LOCKED)
        return iso_fail(e, ISO_ERR_RESOURCE, "state.db: another process has it open");
    return iso_fail(e, code, "state.db: %s: %s (%d)", what, sqlite3_errmsg(s->db), rc);
}

/* Runs one statement; its first column as text, if any, into `answer`. */
static iso_err sql_run(iso_state *s, const char *sql, char *answer, size_t answer_bytes,
                       iso_error *e)
{
    sqlite3_stmt *stmt = NULL;
    if (sqlite3_prepare_v2(s->db, sql, -1, &stmt, NULL) != SQLITE_OK)
        return sql_fail(s, e, sql);
    int rc = sqlite3_step(stmt);
    if (answer)
        answer[0] = 0;
    if (rc == SQLITE_ROW && answer) {
        const unsigned char *text = sqlite3_column_text(stmt, 0);
        snprintf(answer, answer_bytes, "%s", text ? (const char *)text : "");
    }
    while (rc == SQLITE_ROW)
        rc = sqlite3_step(stmt);
    iso_err err = rc == SQLITE_DONE ? ISO_OK : sql_fail(s, e, sql);
    sqlite3_finalize(stmt);
    return err;
}

/* A PRAGMA whose answer must be what was asked for: SQLite ignores what it does not like (S81). */
static iso_err pragma(iso_state *s, const char *set, const char *get, const char *expect,
                      iso_error *e)
{
    char answer[64];
    iso_err err = sql_run(s, set, answer, sizeof answer, e);
    if (!err && get)
        err = sql_run(s, get, answer, sizeof answer, e);
    if (!err && strcmp(answer, expect) != 0)
        err = iso_fail(e, ISO_ERR_RESOURCE, "state.db: %s answered \"%s\", needed \"%s\"", set,
                       answer, expect);
    return err;
}

static iso_err set_up_connection(iso_state *s, iso_error *e)
{
    static const struct {
        const char *set, *get, *expect;
    } rows[] = {
        {"PRAGMA locking_mode=EXCLUSIVE", NULL, "exclusive"},
        {"PRAGMA journal_mode=WAL", NULL, "wal"},
        {"PRAGMA synchronous=FULL", "PRAGMA synchronous", "2"},
        {"PRAGMA foreign_keys=ON", "PRAGMA foreign_keys", "1"},
        {"PRAGMA trusted_schema=OFF", "PRAGMA trusted_schema", "0"},
        {"PRAGMA cell_size_check=ON", "PRAGMA cell_size_check", "1"},
        {"PRAGMA wal_autocheckpoint=1000", NULL, "1000"},
        {"PRAGMA temp_store=MEMORY", "PRAGMA temp_store", "2"},
    };
    sqlite3_db_config(s->db, SQLITE_DBCONFIG_DEFENSIVE, 1, NULL);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_err err = pragma(s, rows[i].set, rows[i].get, rows[i].expect, e);
        if (err)
            return err;
    }
    return ISO_OK;
}

static iso_err set_up_schema(iso_state *s, const iso_state_options *o, iso_error *e)
{
    char text[256], answer[64];
    iso_err err = sql_run(s, "PRAGMA user_version", answer, sizeof answer, e);
    if (err)
        return err;
    unsigned long have = strtoul(answer, NULL, 10);
    if (have > o->schema)
        return iso_fail(e, ISO_ERR_DATA,
                        "state.db: schema %lu, this program knows up to %u: install the newer one",
                        have, o->schema);
    if ((err = sql_run(s, "PRAGMA application_id", answer, sizeof answer, e)) != ISO_OK)
        return err;
    if (have != 0 && strtoul(answer, NULL, 10) != o->application_id)
        return iso_fail(e, ISO_ERR_DATA, "state.db: belongs to another program (id %s)", answer);
    if ((err = sql_run(s, "BEGIN IMMEDIATE", NULL, 0, e)) != ISO_OK)
        return err;
    for (size_t i = 0; i < o->table_count && !err; i++) {
        snprintf(text, sizeof text,
                 "CREATE TABLE IF NOT EXISTS \"%s\"(key BLOB PRIMARY KEY, value BLOB NOT NULL)"
                 " WITHOUT ROWID",
                 o->tables[i]);
        err = sql_run(s, text, NULL, 0, e);
    }
    if (!err) {
        snprintf(text, sizeof text, "PRAGMA application_id=%u", o->application_id);
        err = sql_run(s, text, NULL, 0, e);
    }
    if (!err) {
        snprintf(text, sizeof text, "PRAGMA user_version=%u", o->schema);
        err = sql_run(s, text, NULL, 0, e);
    }
    return err ? err : sql_run(s, "COMMIT", NULL, 0, e);
}

static iso_err prepare(iso_state *s, sqlite3_stmt **out, iso_error *e, const char *fmt,
                       const char *table)
{
    char sql[256];
    snprintf(sql, sizeof sql, fmt, table);
    if (sqlite3_prepare_v3(s->db, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL) != SQLITE_OK)
        return sql_fail(s, e, sql);
    return ISO_OK;
}

static iso_err prepare_all(iso_state *s, const iso_state_options *o, iso_error *e)
{
    iso_err err = prepare(s, &s->begin, e, "BEGIN IMMEDIATE%s", "");
    if (!err)
        err = prepare(s, &s->commit, e, "COMMIT%s", "");
    if (!err)
        err = prepare(s, &s->rollback, e, "ROLLBACK%s", "");
    for (size_t i = 0; i < o->table_count && !err; i++) {
        const char *t = o->tables[i];
        err = prepare(s, &s->put[i], e, "INSERT OR REPLACE INTO \"%s\" VALUES(?1,?2)", t);
        if (!err)
            err = prepare(s, &s->insert[i], e, "INSERT INTO \"%s\" VALUES(?1,?2)", t);
        if (!err)
            err = prepare(s, &s->remove[i], e, "DELETE FROM \"%s\" WHERE key=?1", t);
        if (!err)
            err = prepare(s, &s->scan[i], e, "SELECT key,value FROM \"%s\" ORDER BY key", t);
    }
    return err;
}

static int step_once(sqlite3_stmt *stmt)
{
    int rc = sqlite3_step(stmt);
    sqlite3_reset(stmt);
    return rc;
}

static iso_err apply_op(iso_state *s, const iso_op *op, iso_error *e)
{
    if (op->table >= s->table_count || op->key_bytes > ISO_KEY_MAX_BYTES ||
        op->value_bytes > ISO_VALUE_MAX_BYTES)
        return iso_fail(e, ISO_ERR_INTERNAL, "state.db: operation outside the seam's limits");
    sqlite3_stmt *stmt = op->kind == ISO_OP_PUT      ? s->put[op->table]
                         : op->kind == ISO_OP_INSERT ? s->insert[op->table]
                                                     : s->remove[op->table];
    sqlite3_bind_blob(stmt, 1, op->key_bytes ? (const void *)op->key : "", op->key_bytes,
                      SQLITE_STATIC);
    if (op->kind != ISO_OP_DELETE)
        sqlite3_bind_blob(stmt, 2, op->value_bytes ? (const void *)op->value : "",
                          (int)op->value_bytes, SQLITE_STATIC);
    int rc = step_once(stmt);
    iso_err err = rc == SQLITE_DONE ? ISO_OK : sql_fail(s, e, "write");
    sqlite3_clear_bindings(stmt);
    return err;
}

static iso_err state_commit(void *ctx, const iso_op *ops, size_t count, iso_error *e)
{
    iso_state *s = ctx;
    if (step_once(s->begin) != SQLITE_DONE)
        return sql_fail(s, e, "begin");
    iso_err err = ISO_OK;
    for (size_t i = 0; i < count && !err; i++) {
        err = apply_op(s, &ops[i], e);
        if (i == count / 2)
            iso_crash_point("F25"); /* inside the transaction that appends to the audit chain */
    }
    if (!err && step_once(s->commit) != SQLITE_DONE)
        err = sql_fail(s, e, "commit");
    if (err && !sqlite3_get_autocommit(s->db))
        step_once(s->rollback);
    if (err == ISO_ERR_RESOURCE)
        iso_state_release_reserve(s); /* T15: deletions and checkpoints need room of their own */
    return err;
}

static iso_err state_scan(void *ctx, int table, iso_row_fn *row, void *arg, iso_error *e)
{
    iso_state *s = ctx;
    if (table < 0 || (size_t)table >= s->table_count)
        return iso_fail(e, ISO_ERR_INTERNAL, "state.db: no table %d", table);
    sqlite3_stmt *stmt = s->scan[table];
    iso_err err = ISO_OK;
    int rc;
    while ((rc = sqlite3_step(stmt)) == SQLITE_ROW && !err)
        err = row(arg, sqlite3_column_blob(stmt, 0), (size_t)sqlite3_column_bytes(stmt, 0),
                  sqlite3_column_blob(stmt, 1), (size_t)sqlite3_column_bytes(stmt, 1), e);
    if (!err && rc != SQLITE_DONE)
        err = sql_fail(s, e, "read");
    sqlite3_reset(stmt);
    return err;
}

/* ---- blobs: the folder beside the database ---- */

static iso_err state_blob_put(void *ctx, const void *data, size_t bytes, const iso_digest *expect,
                              iso_digest *out, iso_error *e)
{
    return iso_blob_dir_put(&((iso_state *)ctx)->blobs, data, bytes, expect, out, e);
}

static iso_err state_blob_size(void *ctx, const iso_digest *d, uint64_t *bytes, iso_error *e)
{
    return iso_blob_dir_size(&((iso_state *)ctx)->blobs, d, bytes, e);
}

static iso_err state_blob_read(void *ctx, const iso_digest *d, uint64_t offset, void *out,
                               size_t bytes, size_t *got, iso_error *e)
{
    return iso_blob_dir_read(&((iso_state *)ctx)->blobs, d, offset, out, bytes, got, e);
}

static iso_err state_blob_delete(void *ctx, const iso_digest *d, iso_error *e)
{
    return iso_blob_dir_delete(&((iso_state *)ctx)->blobs, d, e);
}

iso_blob_dir *iso_state_blobs(iso_state *s)
{
    return &s->blobs;
}

/* ---- folder ---- */

static iso_err refuse_network_fs(const char *dir, iso_error *e)
{
    static const struct {
        unsigned long magic;
        const char *name;
    } rows[] = {{0x6969, "NFS"},
                {0x517B, "SMB"},
                {0xFF534D42, "CIFS"},
                {0xFE534D42, "SMB"},
                {0x65735546, "FUSE"}};
    struct statfs fs;
    if (statfs(dir, &fs) != 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", dir);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if ((unsigned long)fs.f_type == rows[i].magic)
            return iso_fail(e, ISO_ERR_USAGE,
                            "%s: lies on %s, whose locks and syncs cannot be relied on; move it or "
                            "set allow_network_fs: true",
                            dir, rows[i].name);
    return ISO_OK;
}

static iso_err mark_open(iso_state *s, iso_error *e)
{
    char path[PATH_BYTES];
    path_in(s, "state.open", path);
    s->was_unclean = iso_path_exists(path);
    return s->was_unclean ? ISO_OK : iso_write_file(path, "open\n", 5, 0600, e);
}

iso_err iso_state_open(iso_state **out, const char *dir, const iso_state_options *o, iso_error *e)
{
    *out = NULL;
    if (o->table_count > ISO_TABLES_MAX)
        return iso_fail(e, ISO_ERR_INTERNAL, "state: %zu tables", o->table_count);
    iso_state *s = iso_calloc(1, sizeof *s);
    if (!s)
        return iso_nomem(e, sizeof *s);
    s->lock_fd = -1;
    s->table_count = o->table_count;
    s->reserve_bytes = o->reserve_bytes;
    char path[PATH_BYTES], answer[256];
    iso_err err = (s->dir = iso_strdup(dir)) ? ISO_OK : iso_nomem(e, strlen(dir));
    if (!err && !o->allow_network_fs)
        err = refuse_network_fs(dir, e);
    if (err)
        goto done;
    path_in(s, "state.lock", path);
    if ((err = iso_lock_file(path, &s->lock_fd, e)) != ISO_OK)
        goto done;
    if ((err = iso_blob_dir_open(&s->blobs, dir, e)) != ISO_OK || (err = mark_open(s, e)) != ISO_OK)
        goto done;
    path_in(s, "state.db", path);
    if (sqlite3_open_v2(path, &s->db,
                        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX |
                            SQLITE_OPEN_NOFOLLOW,
                        NULL) != SQLITE_OK) {
        err = sql_fail(s, e, "open");
        goto done;
    }
    if ((err = set_up_connection(s, e)) != ISO_OK)
        goto done;
    if (s->was_unclean) {
        if ((err = sql_run(s, "PRAGMA quick_check", answer, sizeof answer, e)) != ISO_OK)
            goto done;
        if (strcmp(answer, "ok") != 0) {
            err = iso_fail(e, ISO_ERR_DATA, "state.db: damaged: %.120s", answer);
            goto done;
        }
    }
    if ((err = set_up_schema(s, o, e)) != ISO_OK || (err = prepare_all(s, o, e)) != ISO_OK ||
        (err = iso_sync_dir(dir, e)) != ISO_OK)
        goto done;
    err = iso_state_make_reserve(s, e);
done:
    if (err) {
        bool holds_lock = s->lock_fd >= 0;
        if (holds_lock)
            iso_unlock_file(s->lock_fd);
        s->lock_fd = -1; /* close() must not mark the stop as clean */
        iso_state_close(s);
        return err;
    }
    *out = s;
    return ISO_OK;
}

void iso_state_close(iso_state *s)
{
    if (!s)
        return;
    bool is_clean = s->lock_fd >= 0;
    iso_blob_dir_close(&s->blobs);
    sqlite3_finalize(s->begin);
    sqlite3_finalize(s->commit);
    sqlite3_finalize(s->rollback);
    for (size_t i = 0; i < s->table_count; i++) {
        sqlite3_finalize(s->put[i]);
        sqlite3_finalize(s->insert[i]);
        sqlite3_finalize(s->remove[i]);
        sqlite3_finalize(s->scan[i]);
    }
    if (s->db) {
        if (is_clean)
            is_clean = sqlite3_wal_checkpoint_v2(s->db, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL,
                                                 NULL) == SQLITE_OK;
        is_clean = sqlite3_close(s->db) == SQLITE_OK && is_clean;
    }
    if (is_clean && s->dir) {
        char path[PATH_BYTES];
        path_in(s, "state.open", path);
        unlink(path);
        (void)!iso_sync_dir(s->dir, NULL);
    }
    if (s->lock_fd >= 0)
        iso_unlock_file(s->lock_fd);
    free(s->dir);
    free(s);
}

iso_store iso_state_store(iso_state *s)
{
    return (iso_store){.ctx = s,
                       .commit = state_commit,
                       .scan = state_scan,
                       .blob_put = state_blob_put,
                       .blob_size = state_blob_size,
                       .blob_read = state_blob_read,
                       .blob_delete = state_blob_delete};
}

bool iso_state_was_unclean(const iso_state *s)
{
    return s->was_unclean;
}

iso_err iso_state_check_file(iso_state *s, iso_error *e)
{
    char path[PATH_BYTES];
    struct stat named;
    sqlite3_file *file = NULL;
    int moved = 0;
    path_in(s, "state.db", path);
    if (stat(path, &named) != 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    if (sqlite3_file_control(s->db, "main", SQLITE_FCNTL_FILE_POINTER, &file) != SQLITE_OK ||
        sqlite3_file_control(s->db, "main", SQLITE_FCNTL_HAS_MOVED, &moved) != SQLITE_OK)
        return sql_fail(s, e, "file control");
    if (moved)
        return iso_fail(e, ISO_ERR_RESOURCE,
                        "%s: moved or removed while open; commits would be lost", path);
    return ISO_OK;
}

iso_err iso_state_free_bytes(const iso_state *s, uint64_t *bytes, iso_error *e)
{
    return iso_disk_free(s->dir, bytes, e);
}

void iso_state_release_reserve(iso_state *s)
{
    char path[PATH_BYTES];
    path_in(s, "state.reserve", path);
    unlink(path);
}

iso_err iso_state_make_reserve(iso_state *s, iso_error *e)
{
    char path[PATH_BYTES];
    struct stat st;
    path_in(s, "state.reserve", path);
    if (s->reserve_bytes == 0 || (stat(path, &st) == 0 && (uint64_t)st.st_size == s->reserve_bytes))
        return ISO_OK;
    int fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    int rc = posix_fallocate(fd, 0, (off_t)s->reserve_bytes);
    close(fd);
    if (rc != 0) {
        unlink(path);
        return iso_fail_errno(e, ISO_ERR_RESOURCE, rc, "%s: reserve of %llu bytes", path,
                              (unsigned long long)s->reserve_bytes);
    }
    return ISO_OK;
}
