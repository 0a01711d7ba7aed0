#include "coordinator/worker_job.h"

#include "core/fsio.h"

#include <string.h>

enum { JOB_MAX_BYTES = 64 << 20, TASKS_MAX = 10000, UPDATES_MAX = 100000, CANDIDATES_MAX = 256 };

static iso_err need_hex(const iso_json *o, const char *key, uint8_t *out, size_t n, iso_error *e)
{
    const char *text;
    iso_err err = iso_json_need_str(o, key, &text, e);
    if (!err && !iso_unhex(out, n, text))
        err = iso_fail(e, ISO_ERR_DATA, "\"%s\" is not %zu hexadecimal characters", key, 2 * n);
    return err;
}

/* Absent is all zero. */
static iso_err get_hex(const iso_json *o, const char *key, uint8_t *out, size_t n, iso_error *e)
{
    memset(out, 0, n);
    const iso_json *j = iso_json_key(o, key);
    return !j || iso_json_is_null(j) ? ISO_OK : need_hex(o, key, out, n, e);
}

static iso_err need_array(const iso_json *o, const char *key, size_t max, const iso_json **out,
                          size_t *count, iso_error *e)
{
    *out = iso_json_key(o, key);
    *count = iso_json_count(*out);
    if (!iso_json_is_array(*out) || *count > max)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" must be a list of at most %zu", key, max);
    return ISO_OK;
}

static iso_err copy_text(iso_arena *a, const iso_json *j, const char **out, iso_error *e)
{
    const char *s = iso_json_str(j);
    if (!s)
        return iso_fail(e, ISO_ERR_DATA, "expected a string");
    *out = iso_arena_strdup(a, s);
    return *out ? ISO_OK : iso_nomem(e, strlen(s));
}

static iso_err read_names(iso_arena *a, const iso_json *o, const char *key, const char ***out,
                          size_t *count, iso_error *e)
{
    const iso_json *list = iso_json_key(o, key);
    *count = 0;
    if (!list)
        return ISO_OK;
    iso_err err = need_array(o, key, ISO_CLASSES_MAX, &list, count, e);
    if (err)
        return err;
    const char **names = iso_arena_calloc(a, *count, sizeof *names);
    if (!names)
        return iso_nomem(e, *count * sizeof *names);
    for (size_t i = 0; i < *count && !err; i++)
        err = copy_text(a, iso_json_at(list, i), &names[i], e);
    *out = names;
    return err;
}

static iso_err read_update(const iso_json *j, iso_worker_update *u, iso_error *e)
{
    iso_err err = need_hex(j, "update_id", u->update_id, sizeof u->update_id, e);
    if (!err)
        err = need_hex(j, "blob", u->blob.b, sizeof u->blob.b, e);
    if (!err)
        err = need_hex(j, "header", u->header, sizeof u->header, e);
    if (!err)
        err = need_hex(j, "signature", u->signature, sizeof u->signature, e);
    if (!err)
        err = need_hex(j, "sign_pk", u->sign_pk, sizeof u->sign_pk, e);
    if (!err)
        err = iso_json_get_num(j, "weight", 1.0, &u->weight, e);
    if (!err && !(u->weight >= 0 && u->weight <= (double)ISO_SAMPLES_MAX))
        err = iso_fail(e, ISO_ERR_DATA, "weight %g is outside 0..%llu", u->weight, ISO_SAMPLES_MAX);
    return err;
}

/* "aggregate": "multi_krum", "aggregate_parameters": {"f": 1} */
static iso_err read_aggregate(iso_arena *a, const iso_json *j, iso_worker_task *t, iso_error *e)
{
    enum { PARAMETERS_MAX = 16 };
    const char *rule;
    const iso_json *all = iso_json_key(j, "aggregate_parameters");
    size_t n = all ? iso_json_count(all) : 0;
    iso_err err = iso_json_get_str(j, "aggregate", "mean", &rule, e);
    if (err)
        return err;
    if (n > PARAMETERS_MAX)
        return iso_fail(e, ISO_ERR_DATA, "aggregate_parameters: %zu entries, at most %d", n,
                        PARAMETERS_MAX);
    t->aggregate = iso_arena_strdup(a, rule);
    t->aggregate_names = iso_arena_calloc(a, n + 1, sizeof(const char *));
    t->aggregate_values = iso_arena_calloc(a, n + 1, sizeof *t->aggregate_values);
    if (!t->aggregate || !t->aggregate_names || !t->aggregate_values)
        return iso_nomem(e, strlen(rule));
    for (size_t i = 0; i < n; i++) {
        const char *key;
        const iso_json *value = iso_json_member(all, i, &key);
        if (!key || !iso_json_num(value, &t->aggregate_values[i]))
            return iso_fail(e, ISO_ERR_DATA, "aggregate_parameters: expected names with numbers");
        t->aggregate_names[i] = iso_arena_strdup(a, key);
        if (!t->aggregate_names[i])
            return iso_nomem(e, strlen(key));
        t->aggregate_count = i + 1;
    }
    return ISO_OK;
}

static iso_err read_task(iso_arena *a, const iso_json *j, iso_worker_task *t, iso_error *e)
{
    int64_t rank = 0, cap = 0;
    const iso_json *list = NULL;
    iso_err err = need_hex(j, "id", t->id, sizeof t->id, e);
    if (!err)
        err = copy_text(a, iso_json_key(j, "name"), &t->name, e);
    if (!err)
        err = read_names(a, j, "classes", &t->classes, &t->class_count, e);
    if (!err)
        err = read_names(a, j, "targets", &t->targets, &t->target_count, e);
    if (!err)
        err = iso_json_get_int(j, "rank", 0, ISO_RANK_MAX, 0, &rank, e);
    if (!err)
        err = iso_json_get_int(j, "rank_cap", 0, ISO_RANK_MAX, 0, &cap, e);
    if (!err)
        err = iso_json_get_num(j, "norm_cap", 0.0, &t->norm_cap, e);
    if (!err)
        err = read_aggregate(a, j, t, e);
    if (!err)
        err = get_hex(j, "previous", t->previous.b, sizeof t->previous.b, e);
    if (!err)
        err = need_array(j, "updates", UPDATES_MAX, &list, &t->update_count, e);
    if (err)
        return err;
    t->rank = (size_t)rank;
    t->rank_cap = (size_t)cap;
    iso_worker_update *updates = iso_arena_calloc(a, t->update_count, sizeof *updates);
    if (!updates)
        return iso_nomem(e, t->update_count * sizeof *updates);
    for (size_t i = 0; i < t->update_count && !err; i++)
        err = read_update(iso_json_at(list, i), &updates[i], e);
    t->updates = updates;
    return err;
}

static iso_err read_candidate(iso_arena *a, const iso_json *j, iso_worker_candidate *c,
                              iso_error *e)
{
    const char *convention;
    iso_err err = copy_text(a, iso_json_key(j, "method"), &c->method, e);
    if (!err)
        err = iso_json_get_num(j, "alpha", 1.0, &c->alpha, e);
    if (!err)
        err = iso_json_get_num(j, "common_fraction", 0.8, &c->common_fraction, e);
    if (!err)
        err = iso_json_get_str(j, "convention", "rank", &convention, e);
    if (err)
        return err;
    c->convention = iso_arena_strdup(a, convention);
    return c->convention ? ISO_OK : iso_nomem(e, 8);
}

static iso_err read_sign(iso_worker_job *w, const iso_json *o, iso_error *e)
{
    int64_t number = 0;
    iso_err err = iso_json_need_int(o, "number", 1, INT64_MAX, &number, e);
    w->number = (uint64_t)number;
    if (!err)
        err = need_hex(o, "manifest", w->manifest.b, sizeof w->manifest.b, e);
    if (!err)
        err = need_hex(o, "candidate", w->candidate.b, sizeof w->candidate.b, e);
    if (!err)
        err = copy_text(&w->arena, iso_json_key(o, "gate"), &w->gate, e);
    return err;
}

static iso_err read_rounds_work(iso_worker_job *w, const iso_json *o, iso_error *e)
{
    int64_t round = 0, number = 0;
    const iso_json *list = NULL, *generation = iso_json_key(o, "generation");
    iso_err err = need_hex(o, "federation", w->federation, sizeof w->federation, e);
    if (!err)
        err = iso_json_need_int(o, "round", 0, INT64_MAX, &round, e);
    if (!err)
        err = iso_json_need_int(generation, "number", 0, INT64_MAX, &number, e);
    if (!err)
        err = need_hex(generation, "digest", w->generation_digest.b, ISO_DIGEST_BYTES, e);
    if (!err)
        err = need_array(o, "tasks", TASKS_MAX, &list, &w->task_count, e);
    if (err)
        return err;
    w->round = (uint64_t)round;
    w->generation = (uint64_t)number;
    iso_worker_task *tasks = iso_arena_calloc(&w->arena, w->task_count, sizeof *tasks);
    if (!tasks)
        return iso_nomem(e, w->task_count * sizeof *tasks);
    for (size_t i = 0; i < w->task_count && !err; i++)
        err = read_task(&w->arena, iso_json_at(list, i), &tasks[i], e);
    w->tasks = tasks;
    if (err || w->kind != ISO_WORKER_MERGE)
        return err;
    err = copy_text(&w->arena, iso_json_key(o, "backbone"), &w->backbone, e);
    if (!err)
        err = need_array(o, "candidates", CANDIDATES_MAX, &list, &w->candidate_count, e);
    if (err)
        return err;
    iso_worker_candidate *c = iso_arena_calloc(&w->arena, w->candidate_count, sizeof *c);
    if (!c)
        return iso_nomem(e, w->candidate_count * sizeof *c);
    for (size_t i = 0; i < w->candidate_count && !err; i++)
        err = read_candidate(&w->arena, iso_json_at(list, i), &c[i], e);
    w->candidates = c;
    return err;
}

iso_err iso_worker_job_read(iso_worker_job *w, const char *path, iso_error *e)
{
    static const char *const kinds[] = {"heads", "merge", "sign"};
    *w = (iso_worker_job){0};
    iso_json *root = NULL;
    const char *kind = NULL;
    int64_t format = 0;
    iso_err err = iso_json_read(path, JOB_MAX_BYTES, &root, e);
    if (err)
        return err;
    err = iso_json_need_int(root, "format", 1, 1, &format, e);
    if (!err)
        err = iso_json_need_str(root, "kind", &kind, e);
    if (!err)
        err = copy_text(&w->arena, iso_json_key(root, "job"), &w->job, e);
    if (err)
        goto done;
    size_t k = 0;
    while (k < 3 && strcmp(kinds[k], kind) != 0)
        k++;
    if (k == 3) {
        err = iso_fail(e, ISO_ERR_DATA, "unknown kind of job \"%s\"", kind);
        goto done;
    }
    w->kind = (iso_worker_kind)k;
    err = w->kind == ISO_WORKER_SIGN ? read_sign(w, root, e) : read_rounds_work(w, root, e);
done:
    iso_json_free(root);
    if (err) {
        iso_worker_job_free(w);
        iso_error_context(e, "%s", path);
    }
    return err;
}

void iso_worker_job_free(iso_worker_job *w)
{
    iso_arena_free(&w->arena);
    *w = (iso_worker_job){0};
}
