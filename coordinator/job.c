/* Writing job.json and reading result.json. Both sides are ours, but the result is read as strictly
 * as anything else: the worker has opened what sites sent. */
#include "coordinator/job.h"

#include "core/json.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- job.json ---- */

static iso_json *hex_of(const uint8_t *bytes, size_t n)
{
    char text[2 * 384 + 1];
    iso_hex(text, bytes, n);
    return iso_json_string(text);
}

static iso_json *names_of(const char *const *names, size_t count)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < count; i++)
        iso_json_push(list, iso_json_string(names[i]));
    return list;
}

static iso_json *update_of(const iso_job_update *u)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "update_id", hex_of(u->update_id, 16));
    iso_json_set(o, "blob", hex_of(u->blob.b, 32));
    iso_json_set(o, "header", hex_of(u->header, 384));
    iso_json_set(o, "signature", hex_of(u->signature, 64));
    iso_json_set(o, "sign_pk", hex_of(u->sign_pk, 32));
    iso_json_set(o, "weight", iso_json_integer((int64_t)u->samples));
    return o;
}

static iso_json *task_of(const iso_job *job, const iso_job_task *t)
{
    const iso_coord_task *c = t->config;
    iso_json *o = iso_json_object(), *updates = iso_json_array();
    iso_json_set(o, "id", hex_of(t->id, 16));
    iso_json_set(o, "name", iso_json_string(c->name));
    iso_json_set(o, "classes", names_of(c->classes, c->class_count));
    for (size_t i = 0; i < t->update_count; i++)
        iso_json_push(updates, update_of(&t->updates[i]));
    iso_json_set(o, "updates", updates);
    if (job->kind != ISO_JOB_MERGE)
        return o;
    iso_json_set(o, "rank", iso_json_integer(c->rank));
    iso_json_set(o, "rank_cap", iso_json_integer(c->rank_cap));
    iso_json_set(o, "norm_cap", iso_json_real(c->norm_cap));
    iso_json_set(o, "alpha", iso_json_real(c->alpha));
    iso_json_set(o, "rslora", iso_json_boolean(c->rslora));
    iso_json_set(o, "targets", names_of(c->targets, c->target_count));
    iso_json_set(o, "aggregate", iso_json_string(c->aggregate));
    if (!iso_digest_is_zero(&t->previous))
        iso_json_set(o, "previous", hex_of(t->previous.b, 32));
    if (!iso_digest_is_zero(&t->head))
        iso_json_set(o, "head", hex_of(t->head.b, 32));
    return o;
}

iso_err iso_job_text(const iso_job *job, iso_buf *out, iso_error *e)
{
    static const char *const kinds[] = {"?", "heads", "merge", "sign"};
    iso_json *root = iso_json_object(), *generation = iso_json_object();
    iso_json_set(root, "format", iso_json_integer(1));
    iso_json_set(root, "kind", iso_json_string(kinds[job->kind]));
    iso_json_set(root, "job", hex_of(job->id, 16));
    iso_json_set(root, "federation", hex_of(job->federation, 16));
    iso_json_set(root, "round", iso_json_integer((int64_t)job->round));
    iso_json_set(generation, "number", iso_json_integer((int64_t)job->generation));
    iso_json_set(generation, "digest", hex_of(job->generation_digest.b, 32));
    iso_json_set(root, "generation", generation);
    if (job->kind == ISO_JOB_SIGN) {
        iso_json_set(root, "number", iso_json_integer((int64_t)job->number));
        iso_json_set(root, "manifest", hex_of(job->manifest.b, 32));
        iso_json_set(root, "candidate", hex_of(job->candidate.b, 32));
        iso_json_set(root, "gate", iso_json_string(job->is_accepted ? "accepted" : "passed"));
    } else {
        iso_json *tasks = iso_json_array();
        for (size_t i = 0; i < job->task_count; i++)
            iso_json_push(tasks, task_of(job, &job->tasks[i]));
        iso_json_set(root, "tasks", tasks);
    }
    if (job->kind == ISO_JOB_MERGE) {
        iso_json *candidates = iso_json_array();
        for (size_t i = 0; i < job->candidate_count; i++) {
            const iso_coord_candidate *c = &job->candidates[i];
            iso_json *o = iso_json_object();
            iso_json_set(o, "method", iso_json_string(c->method));
            iso_json_set(o, "alpha", iso_json_real(c->alpha));
            iso_json_set(o, "convention", iso_json_string(c->convention));
            iso_json_set(o, "common_fraction", iso_json_real(c->common_fraction));
            iso_json_push(candidates, o);
        }
        iso_json_set(root, "candidates", candidates);
        iso_json_set(root, "backbone", iso_json_string(job->backbone ? job->backbone : ""));
    }
    iso_err err = iso_json_dump(root, ISO_JSON_COMPACT, out, e);
    iso_json_free(root);
    return err;
}

/* ---- result.json ---- */

static iso_err need_hex(const iso_json *o, const char *key, uint8_t *out, size_t n, iso_error *e)
{
    const char *text;
    iso_err err = iso_json_need_str(o, key, &text, e);
    if (!err && !iso_unhex(out, n, text))
        err = iso_fail(e, ISO_ERR_DATA, "\"%s\" must be %zu hexadecimal digits", key, 2 * n);
    return err;
}

/* A digest that may be absent, and the size of its blob, which must be there. */
static iso_err get_blob(const iso_json *o, const char *key, const iso_store *store,
                        iso_digest *digest, uint64_t *bytes, iso_error *e)
{
    if (!iso_json_key(o, key))
        return ISO_OK;
    iso_err err = need_hex(o, key, digest->b, 32, e);
    return err ? err : store->blob_size(store->ctx, digest, bytes, e);
}

static iso_err read_verdict(const iso_json *j, iso_job_verdict *v, iso_error *e)
{
    const char *verdict, *code, *sentence;
    int64_t samples;
    iso_err err = need_hex(j, "update_id", v->update_id, 16, e);
    if (!err)
        err = iso_json_need_str(j, "verdict", &verdict, e);
    if (!err)
        err = iso_json_get_str(j, "code", "OK", &code, e);
    if (!err)
        err = iso_json_get_str(j, "sentence", "", &sentence, e);
    if (!err)
        err = iso_json_get_num(j, "score", 0.0, &v->score, e);
    if (!err)
        err = iso_json_get_int(j, "samples", 0, INT64_MAX, 0, &samples, e);
    if (err)
        return err;
    v->samples = (uint64_t)samples;
    v->verdict = strcmp(verdict, "used") == 0 ? ISO_UPDATE_USED : ISO_UPDATE_REFUSED;
    if (v->verdict == ISO_UPDATE_REFUSED && (!iso_code_parse(code, &v->code) || !v->code))
        v->code = ISO_CODE_INTERNAL;
    snprintf(v->sentence, sizeof v->sentence, "%.159s", sentence);
    return ISO_OK;
}

static iso_err read_task(const iso_json *j, const iso_store *store, iso_arena *arena,
                         iso_job_task_result *t, iso_error *e)
{
    int64_t rank;
    const iso_json *updates = iso_json_key(j, "updates");
    iso_err err = need_hex(j, "id", t->id, 16, e);
    bool is_adapter = iso_json_key(j, "adapter") != NULL;
    if (!err)
        err = get_blob(j, is_adapter ? "adapter" : "head", store, &t->blob, &t->bytes, e);
    if (!err && is_adapter)
        err = get_blob(j, "head", store, &t->head, &t->head_bytes, e);
    if (!err)
        err = iso_json_get_int(j, "rank", 0, ISO_RANK_MAX * 64, 0, &rank, e);
    if (!err)
        err = iso_json_get_num(j, "lost_energy", 0.0, &t->lost_energy, e);
    if (err)
        return err;
    t->rank = (uint32_t)rank;
    t->verdicts = iso_arena_calloc(arena, iso_json_count(updates) + 1, sizeof *t->verdicts);
    if (!t->verdicts)
        return iso_nomem(e, 0);
    for (size_t i = 0; i < iso_json_count(updates) && !err; i++)
        err = read_verdict(iso_json_at(updates, i), &t->verdicts[t->verdict_count++], e);
    return err;
}

static iso_err read_candidate(const iso_json *j, const iso_store *store, iso_arena *arena,
                              iso_job_candidate_result *x, iso_error *e)
{
    const char *method, *convention, *path;
    int64_t rank, size;
    const iso_json *files = iso_json_key(j, "files");
    iso_err err = iso_json_need_str(j, "method", &method, e);
    if (!err)
        err = iso_json_get_str(j, "convention", "rank", &convention, e);
    if (!err)
        err = iso_json_get_num(j, "alpha", 1.0, &x->config.alpha, e);
    if (!err)
        err = iso_json_get_num(j, "common_fraction", 0.0, &x->config.common_fraction, e);
    if (!err)
        err = iso_json_get_int(j, "rank_max", 0, INT32_MAX, 0, &rank, e);
    if (!err)
        err = need_hex(j, "manifest", x->manifest.b, 32, e);
    if (!err)
        err = store->blob_size(store->ctx, &x->manifest, &x->bytes, e);
    if (!err && (iso_json_count(files) == 0 || iso_json_count(files) > 2))
        err = iso_fail(e, ISO_ERR_DATA, "a candidate has %zu files", iso_json_count(files));
    for (size_t i = 0; i < iso_json_count(files) && !err; i++) {
        iso_job_file *f = &x->files[x->file_count++];
        err = iso_json_need_str(iso_json_at(files, i), "path", &path, e);
        if (!err)
            err = need_hex(iso_json_at(files, i), "digest", f->digest.b, 32, e);
        if (!err)
            err = iso_json_need_int(iso_json_at(files, i), "size", 0, INT64_MAX, &size, e);
        if (!err)
            err = store->blob_size(store->ctx, &f->digest, &f->bytes, e);
        if (!err && f->bytes != (uint64_t)size)
            err = iso_fail(e, ISO_ERR_DATA, "%s: has %llu bytes, the result says %lld", path,
                           (unsigned long long)f->bytes, (long long)size);
        if (!err)
            snprintf(f->path, sizeof f->path, "%.95s", path);
    }
    if (err)
        return err;
    x->rank_max = (uint32_t)rank;
    x->config.method = iso_arena_strdup(arena, method);
    x->config.convention = iso_arena_strdup(arena, convention);
    return x->config.method && x->config.convention ? ISO_OK : iso_nomem(e, 0);
}

static iso_err read_root(const iso_json *root, const iso_store *store, iso_arena *arena,
                         iso_job_result *out, iso_error *e)
{
    const iso_json *tasks = iso_json_key(root, "tasks");
    const iso_json *candidates = iso_json_key(root, "candidates");
    size_t task_count = iso_json_count(tasks), candidate_count = iso_json_count(candidates);
    iso_err err = need_hex(root, "job", out->id, 16, e);
    if (!err)
        err = get_blob(root, "signature", store, &out->signature, &out->signature_bytes, e);
    if (!err && (task_count > ISO_COORD_TASKS_MAX || candidate_count > ISO_COORD_CANDIDATES_MAX))
        err = iso_fail(e, ISO_ERR_DATA, "%zu tasks, %zu candidates", task_count, candidate_count);
    if (err)
        return err;
    out->tasks = iso_arena_calloc(arena, task_count + 1, sizeof *out->tasks);
    out->candidates = iso_arena_calloc(arena, candidate_count + 1, sizeof *out->candidates);
    if (!out->tasks || !out->candidates)
        return iso_nomem(e, 0);
    for (size_t i = 0; i < task_count && !err; i++)
        err = read_task(iso_json_at(tasks, i), store, arena, &out->tasks[out->task_count++], e);
    for (size_t i = 0; i < candidate_count && !err; i++)
        err = read_candidate(iso_json_at(candidates, i), store, arena,
                             &out->candidates[out->candidate_count++], e);
    return err;
}

iso_err iso_job_result_read(const void *text, size_t size, const iso_store *store, iso_arena *arena,
                            iso_job_result *out, iso_error *e)
{
    *out = (iso_job_result){0};
    iso_json *root = NULL;
    iso_err err = iso_json_parse(text, size, "result.json", &root, e);
    if (!err)
        err = read_root(root, store, arena, out, e);
    iso_json_free(root);
    return err;
}
