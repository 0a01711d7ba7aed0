#include "crypto/manifest.h"
#include "crypto/json_fields.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_MAX = 256, SOFTWARE_MAX = 32 };

static const char *const release_kinds[ISO_RELEASE_KINDS] = {"merge", "rollback", "generation"};

bool iso_release_path_is_valid(const char *path)
{
    size_t n = 0, part = 0;
    for (; path[n]; n++) {
        char c = path[n];
        bool is_fine = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
                       c == '.' || c == '_' || c == '-' || c == '/';
        if (!is_fine || n >= ISO_MANIFEST_PATH_MAX)
            return false;
        if (c == '/') { /* an empty part: "/x", "x//y" */
            if (part == 0)
                return false;
            part = 0;
            continue;
        }
        if (part == 0 && c == '.') /* ".", "..", hidden */
            return false;
        part++;
    }
    return part > 0;
}

bool iso_manifest_total(const iso_manifest *m, uint64_t *bytes)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < m->file_count; i++)
        if (__builtin_add_overflow(sum, m->files[i].size, &sum))
            return false;
    *bytes = sum;
    return true;
}

/* ---- what a manifest must hold whichever way it goes ---- */

static int by_path(const void *a, const void *b)
{
    return strcmp(((const iso_manifest_file *)a)->path, ((const iso_manifest_file *)b)->path);
}

static int by_id(const void *a, const void *b)
{
    return memcmp(((const iso_manifest_task *)a)->id, ((const iso_manifest_task *)b)->id, 16);
}

/* Lists sorted without duplicates: both orders of a file list would else be canonical. */
static iso_err check_lists(const iso_manifest *m, iso_error *e)
{
    for (size_t i = 0; i < m->file_count; i++) {
        if (!iso_release_path_is_valid(m->files[i].path))
            return iso_fail(e, ISO_ERR_DATA, "manifest: \"%.80s\" is no path of a release",
                            m->files[i].path);
        if (i && by_path(&m->files[i - 1], &m->files[i]) >= 0)
            return iso_fail(e, ISO_ERR_DATA,
                            "manifest: files are not sorted, or one is there twice");
    }
    for (size_t i = 1; i < m->task_count; i++)
        if (by_id(&m->tasks[i - 1], &m->tasks[i]) >= 0)
            return iso_fail(e, ISO_ERR_DATA,
                            "manifest: tasks are not sorted, or one is there twice");
    return ISO_OK;
}

static iso_err check_rules(const iso_manifest *m, iso_error *e)
{
    if (m->number == 0)
        return iso_fail(e, ISO_ERR_DATA, "manifest: releases are numbered from 1");
    if (m->previous_number + 1 != m->number)
        return iso_fail(e, ISO_ERR_DATA, "manifest: release %" PRIu64 " cannot follow %" PRIu64,
                        m->number, m->previous_number);
    if ((m->previous_number == 0) != iso_digest_is_zero(&m->previous_digest))
        return iso_fail(e, ISO_ERR_DATA,
                        "manifest: exactly the first release has no previous digest");
    if (m->valid_until_ms <= m->created_ms)
        return iso_fail(e, ISO_ERR_DATA, "manifest: valid_until_ms is not after created_ms");
    bool is_rollback = m->kind == ISO_RELEASE_ROLLBACK;
    if (is_rollback != (m->rollback_of != 0) || m->rollback_of >= m->number ||
        (m->force && !is_rollback))
        return iso_fail(e, ISO_ERR_DATA,
                        "manifest: rollback_of and force belong to a rollback, and to it only");
    return ISO_OK;
}

/* ---- struct to text ---- */

static iso_json *number_and_digest(uint64_t number, const iso_digest *d)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "number", iso_json_integer((int64_t)number));
    iso_json_set(o, "digest", iso_json_hex(d->b, 32));
    return o;
}

static iso_json *tasks_json(const iso_manifest_task *tasks, size_t count)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < count; i++) {
        iso_json *o = iso_json_object();
        iso_json_set(o, "id", iso_json_hex(tasks[i].id, 16));
        iso_json_set(o, "score", iso_json_float9(tasks[i].score));
        iso_json_set(o, "baseline", iso_json_float9(tasks[i].baseline));
        iso_json_set(o, "samples", iso_json_integer((int64_t)tasks[i].samples));
        iso_json_set(o, "updates", iso_json_integer((int64_t)tasks[i].updates));
        iso_json_push(list, o);
    }
    return list;
}

static iso_json *files_json(const iso_manifest_file *files, size_t count)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < count; i++) {
        iso_json *o = iso_json_object();
        iso_json_set(o, "path", iso_json_string(files[i].path));
        iso_json_set(o, "size", iso_json_integer((int64_t)files[i].size));
        iso_json_set(o, "digest", iso_json_hex(files[i].digest.b, 32));
        iso_json_push(list, o);
    }
    return list;
}

static iso_json *method_json(const iso_manifest *m)
{
    iso_json *o = iso_json_object(), *parameters = iso_json_object();
    for (size_t i = 0; i < m->parameter_count; i++)
        iso_json_set(parameters, m->parameters[i].name, iso_json_string(m->parameters[i].value));
    iso_json_set(o, "name", iso_json_string(m->method));
    iso_json_set(o, "parameters", parameters);
    iso_json_set(o, "spectrum", iso_json_string(m->spectrum));
    return o;
}

static iso_json *build(const iso_manifest *m)
{
    uint8_t epoch[8];
    iso_json *o = iso_json_object(), *scores = iso_json_object();
    for (int i = 0; i < 8; i++) /* as a number reads: high byte first */
        epoch[i] = (uint8_t)(m->epoch >> (56 - 8 * i));
    for (size_t i = 0; i < m->score_count; i++)
        iso_json_set(scores, m->scores[i].name, iso_json_float9(m->scores[i].value));
    iso_json_set(o, "format", iso_json_integer(ISO_MANIFEST_FORMAT));
    iso_json_set(o, "federation", iso_json_hex(m->federation, 16));
    iso_json_set(o, "epoch", iso_json_hex(epoch, 8));
    iso_json_set(o, "number", iso_json_integer((int64_t)m->number));
    iso_json_set(o, "previous", number_and_digest(m->previous_number, &m->previous_digest));
    iso_json_set(o, "created_ms", iso_json_integer((int64_t)m->created_ms));
    iso_json_set(o, "valid_until_ms", iso_json_integer((int64_t)m->valid_until_ms));
    iso_json_set(o, "kind", iso_json_string(release_kinds[m->kind]));
    iso_json_set(o, "rollback_of", iso_json_integer((int64_t)m->rollback_of));
    if (m->force)
        iso_json_set(o, "force", iso_json_boolean(true));
    iso_json_set(o, "generation", number_and_digest(m->generation, &m->generation_digest));
    iso_json_set(o, "tasks", tasks_json(m->tasks, m->task_count));
    iso_json_set(o, "method", method_json(m));
    iso_json_set(o, "files", files_json(m->files, m->file_count));
    iso_json_set(o, "scores", scores);
    iso_json_set(o, "audit_seq", iso_json_integer((int64_t)m->audit_seq));
    iso_json_set(o, "audit_head", iso_json_hex(m->audit_head.b, 32));
    iso_json_set(o, "min_software", iso_json_string(m->min_software));
    return o;
}

static iso_err check_numbers(const iso_manifest *m, iso_error *e)
{
    uint64_t any = m->number | m->created_ms | m->valid_until_ms | m->rollback_of | m->generation |
                   m->audit_seq | m->previous_number;
    bool is_finite = true;
    if ((unsigned)m->kind >= ISO_RELEASE_KINDS || m->task_count > ISO_MANIFEST_TASKS_MAX ||
        m->file_count > ISO_RELEASE_FILES_MAX || m->parameter_count > ISO_MANIFEST_PAIRS_MAX ||
        m->score_count > ISO_MANIFEST_PAIRS_MAX || !m->method || !m->spectrum || !m->min_software)
        return iso_fail(e, ISO_ERR_DATA,
                        "manifest: kind, a list's length or a text is out of range");
    for (size_t i = 0; i < m->task_count; i++) {
        any |= m->tasks[i].samples | m->tasks[i].updates;
        is_finite = is_finite && isfinite(m->tasks[i].score) && isfinite(m->tasks[i].baseline);
    }
    for (size_t i = 0; i < m->file_count; i++)
        any |= m->files[i].size;
    for (size_t i = 0; i < m->score_count; i++)
        is_finite = is_finite && isfinite(m->scores[i].value);
    if (any >> 63)
        return iso_fail(e, ISO_ERR_DATA, "manifest: a number is above 2^63 - 1");
    if (!is_finite)
        return iso_fail(e, ISO_ERR_NONFINITE, "manifest: a score is not finite");
    return ISO_OK;
}

iso_err iso_manifest_format(const iso_manifest *m, iso_buf *out, iso_error *e)
{
    iso_json *o = NULL;
    iso_arena arena = {0};
    iso_manifest sorted = *m, again;
    size_t start = out->size;
    iso_manifest_file *files = NULL;
    iso_manifest_task *tasks = NULL;
    iso_err err = check_numbers(m, e);
    if (err)
        goto done;
    files = iso_calloc(m->file_count, sizeof *files);
    tasks = iso_calloc(m->task_count, sizeof *tasks);
    if (!files || !tasks)
        err = iso_nomem(e, m->file_count * sizeof *files);
    if (err)
        goto done;
    if (m->file_count)
        memcpy(files, m->files, m->file_count * sizeof *files);
    if (m->task_count)
        memcpy(tasks, m->tasks, m->task_count * sizeof *tasks);
    qsort(files, m->file_count, sizeof *files, by_path);
    qsort(tasks, m->task_count, sizeof *tasks, by_id);
    sorted.files = files;
    sorted.tasks = tasks;
    err = check_lists(&sorted, e);
    if (!err)
        err = check_rules(&sorted, e);
    if (err)
        goto done;
    o = build(&sorted);
    err = iso_json_dump(o, ISO_JSON_CANONICAL, out, e);
    /* What we write, we read: a name that JSON had to repair, or a parameter that is there twice,
     * shows here and not at the sites. */
    if (!err)
        err = iso_manifest_parse(out->data + start, out->size - start, &arena, &again, e);
    if (!err && (again.parameter_count != m->parameter_count ||
                 again.score_count != m->score_count || again.task_count != m->task_count ||
                 again.file_count != m->file_count || again.force != m->force))
        err = iso_fail(e, ISO_ERR_DATA,
                       "manifest: a parameter or score is there twice, or memory ran out");
done:
    iso_json_free(o);
    iso_arena_free(&arena);
    free(files);
    free(tasks);
    if (err)
        out->size = start;
    return err;
}

/* ---- text to struct ---- */

static iso_err read_pair(const iso_json *o, const char *key, uint64_t *number, iso_digest *digest,
                         iso_error *e)
{
    static const char *const keys[] = {"number", "digest", NULL};
    const iso_json *pair = NULL;
    iso_err err = iso_field_object(o, key, &pair, e);
    if (!err)
        err = iso_fields_exact(pair, key, keys, e);
    if (!err)
        err = iso_field_u64(pair, "number", number, e);
    if (!err)
        err = iso_field_hex(pair, "digest", digest->b, 32, e);
    return err;
}

static iso_err copy_text(iso_arena *arena, const char *text, const char **out, iso_error *e)
{
    *out = iso_arena_strdup(arena, text);
    return *out ? ISO_OK : iso_nomem(e, strlen(text));
}

static iso_err read_text(const iso_json *o, const char *key, size_t max, iso_arena *arena,
                         const char **out, iso_error *e)
{
    const char *text = NULL;
    iso_err err = iso_field_text(o, key, max, &text, e);
    return err ? err : copy_text(arena, text, out, e);
}

static iso_err read_tasks(const iso_json *o, iso_arena *arena, iso_manifest *out, iso_error *e)
{
    static const char *const keys[] = {"id", "score", "baseline", "samples", "updates", NULL};
    const iso_json *list = NULL;
    iso_err err = iso_field_array(o, "tasks", ISO_MANIFEST_TASKS_MAX, &list, e);
    if (err)
        return err;
    size_t count = iso_json_count(list);
    iso_manifest_task *tasks = iso_arena_calloc(arena, count, sizeof *tasks);
    if (!tasks)
        return iso_nomem(e, count * sizeof *tasks);
    for (size_t i = 0; i < count && !err; i++) {
        const iso_json *t = iso_json_at(list, i);
        err = iso_fields_exact(t, "tasks", keys, e);
        if (!err)
            err = iso_field_hex(t, "id", tasks[i].id, 16, e);
        if (!err)
            err = iso_field_float(t, "score", &tasks[i].score, e);
        if (!err)
            err = iso_field_float(t, "baseline", &tasks[i].baseline, e);
        if (!err)
            err = iso_field_u64(t, "samples", &tasks[i].samples, e);
        if (!err)
            err = iso_field_u64(t, "updates", &tasks[i].updates, e);
    }
    out->tasks = tasks;
    out->task_count = count;
    return err;
}

static iso_err read_files(const iso_json *o, iso_arena *arena, iso_manifest *out, iso_error *e)
{
    static const char *const keys[] = {"path", "size", "digest", NULL};
    const iso_json *list = NULL;
    iso_err err = iso_field_array(o, "files", ISO_RELEASE_FILES_MAX, &list, e);
    if (err)
        return err;
    size_t count = iso_json_count(list);
    iso_manifest_file *files = iso_arena_calloc(arena, count, sizeof *files);
    if (!files)
        return iso_nomem(e, count * sizeof *files);
    for (size_t i = 0; i < count && !err; i++) {
        const iso_json *f = iso_json_at(list, i);
        err = iso_fields_exact(f, "files", keys, e);
        if (!err)
            err = read_text(f, "path", ISO_MANIFEST_PATH_MAX, arena, &files[i].path, e);
        if (!err)
            err = iso_field_u64(f, "size", &files[i].size, e);
        if (!err)
            err = iso_field_hex(f, "digest", files[i].digest.b, 32, e);
    }
    out->files = files;
    out->file_count = count;
    return err;
}

static iso_err read_method(const iso_json *o, iso_arena *arena, iso_manifest *out, iso_error *e)
{
    static const char *const keys[] = {"name", "parameters", "spectrum", NULL};
    const iso_json *method = NULL, *parameters = NULL;
    iso_err err = iso_field_object(o, "method", &method, e);
    if (!err)
        err = iso_fields_exact(method, "method", keys, e);
    if (!err)
        err = read_text(method, "name", TEXT_MAX, arena, &out->method, e);
    if (!err)
        err = read_text(method, "spectrum", TEXT_MAX, arena, &out->spectrum, e);
    if (!err)
        err = iso_field_object(method, "parameters", &parameters, e);
    if (err)
        return err;
    size_t count = iso_json_count(parameters);
    if (count > ISO_MANIFEST_PAIRS_MAX)
        return iso_fail(e, ISO_ERR_DATA, "manifest: too many parameters");
    iso_manifest_parameter *p = iso_arena_calloc(arena, count, sizeof *p);
    if (!p)
        return iso_nomem(e, count * sizeof *p);
    for (size_t i = 0; i < count && !err; i++) {
        const char *name = NULL;
        (void)iso_json_member(parameters, i, &name);
        err = copy_text(arena, name, &p[i].name, e);
        if (!err)
            err = read_text(parameters, name, TEXT_MAX, arena, &p[i].value, e);
    }
    out->parameters = p;
    out->parameter_count = count;
    return err;
}

static iso_err read_scores(const iso_json *o, iso_arena *arena, iso_manifest *out, iso_error *e)
{
    const iso_json *scores = NULL;
    iso_err err = iso_field_object(o, "scores", &scores, e);
    if (err)
        return err;
    size_t count = iso_json_count(scores);
    if (count > ISO_MANIFEST_PAIRS_MAX)
        return iso_fail(e, ISO_ERR_DATA, "manifest: too many scores");
    iso_manifest_score *s = iso_arena_calloc(arena, count, sizeof *s);
    if (!s)
        return iso_nomem(e, count * sizeof *s);
    for (size_t i = 0; i < count && !err; i++) {
        const char *name = NULL;
        (void)iso_json_member(scores, i, &name);
        err = copy_text(arena, name, &s[i].name, e);
        if (!err)
            err = iso_field_float(scores, name, &s[i].value, e);
    }
    out->scores = s;
    out->score_count = count;
    return err;
}

static iso_err read_plain(const iso_json *o, iso_arena *arena, iso_manifest *out, iso_error *e)
{
    int64_t format = 0;
    uint8_t epoch[8] = {0};
    const char *kind = NULL;
    iso_err err =
        iso_json_need_int(o, "format", ISO_MANIFEST_FORMAT, ISO_MANIFEST_FORMAT, &format, e);
    if (!err)
        err = iso_field_hex(o, "federation", out->federation, 16, e);
    if (!err)
        err = iso_field_hex(o, "epoch", epoch, 8, e);
    for (int i = 0; i < 8; i++)
        out->epoch = out->epoch << 8 | epoch[i];
    if (!err)
        err = iso_field_u64(o, "number", &out->number, e);
    if (!err)
        err = read_pair(o, "previous", &out->previous_number, &out->previous_digest, e);
    if (!err)
        err = iso_field_u64(o, "created_ms", &out->created_ms, e);
    if (!err)
        err = iso_field_u64(o, "valid_until_ms", &out->valid_until_ms, e);
    if (!err)
        err = iso_json_need_str(o, "kind", &kind, e);
    if (err)
        return err;
    unsigned k = 0;
    while (k < ISO_RELEASE_KINDS && strcmp(release_kinds[k], kind) != 0)
        k++;
    if (k == ISO_RELEASE_KINDS)
        return iso_fail(e, ISO_ERR_DATA, "manifest: kind \"%.40s\" is not known", kind);
    out->kind = (iso_release_kind)k;
    err = iso_field_u64(o, "rollback_of", &out->rollback_of, e);
    if (!err && iso_json_key(o, "force")) {
        /* Absent means false; "false" written out would be a second encoding. */
        bool is_true = iso_json_bool(iso_json_key(o, "force"), &out->force) && out->force;
        if (!is_true)
            err = iso_fail(e, ISO_ERR_DATA, "manifest: force is true or absent");
    }
    if (!err)
        err = read_pair(o, "generation", &out->generation, &out->generation_digest, e);
    if (!err)
        err = iso_field_u64(o, "audit_seq", &out->audit_seq, e);
    if (!err)
        err = iso_field_hex(o, "audit_head", out->audit_head.b, 32, e);
    if (!err)
        err = read_text(o, "min_software", SOFTWARE_MAX, arena, &out->min_software, e);
    return err;
}

iso_err iso_manifest_parse(const void *text, size_t size, iso_arena *arena, iso_manifest *out,
                           iso_error *e)
{
    static const char *const plain[] = {
        "format", "federation",     "epoch",       "number",     "previous",     "created_ms",
        "kind",   "valid_until_ms", "rollback_of", "generation", "tasks",        "method",
        "files",  "scores",         "audit_seq",   "audit_head", "min_software", NULL};
    static const char *const forced[] = {
        "format",     "federation",   "epoch",          "number",      "previous",
        "created_ms", "kind",         "valid_until_ms", "rollback_of", "generation",
        "tasks",      "method",       "files",          "scores",      "audit_seq",
        "audit_head", "min_software", "force",          NULL};
    iso_json *o = NULL;
    memset(out, 0, sizeof *out);
    if (size > ISO_MANIFEST_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "manifest: is larger than 256 KiB");
    iso_err err = iso_json_parse(text, size, "manifest", &o, e);
    if (!err)
        err = iso_json_check_canonical(text, size, "manifest", e);
    if (!err)
        err = iso_fields_exact(o, "manifest", iso_json_key(o, "force") ? forced : plain, e);
    if (!err)
        err = read_plain(o, arena, out, e);
    if (!err)
        err = read_tasks(o, arena, out, e);
    if (!err)
        err = read_files(o, arena, out, e);
    if (!err)
        err = read_method(o, arena, out, e);
    if (!err)
        err = read_scores(o, arena, out, e);
    if (!err)
        err = check_lists(out, e);
    if (!err)
        err = check_rules(out, e);
    iso_json_free(o);
    if (err)
        memset(out, 0, sizeof *out);
    return err;
}
