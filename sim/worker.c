#include "sim/worker.h"

#include "core/json.h"
#include "merge/guard.h"
#include "sim/mix.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- opening: rows 12 - 15 ---- */

typedef struct {
    iso_buf payload;
    iso_lora_layer layers[ISO_SYNTH_LAYERS_MAX];
    size_t count;
    bool is_head;
} opened;

static iso_code check_layers(const iso_sim_worker *w, const iso_job_task *t, const opened *o,
                             iso_arena *scratch, char *why, size_t why_bytes)
{
    double norm = 0.0, total = 0.0;
    if (o->count != iso_synth_layers(w->synth)) {
        snprintf(why, why_bytes, "%zu layers, the task has %zu", o->count,
                 iso_synth_layers(w->synth));
        return ISO_CODE_SHAPE;
    }
    for (size_t l = 0; l < o->count; l++) {
        const iso_lora_layer *x = &o->layers[l];
        if (x->in != iso_synth_width(w->synth) || x->rank > t->config->rank) {
            snprintf(why, why_bytes, "layer %zu: rank %zu, at most %u", l, x->rank,
                     t->config->rank);
            return ISO_CODE_SHAPE;
        }
        for (size_t i = 0; i < x->rank * x->in; i++)
            if (!isfinite(x->A[i]) || !isfinite(x->B[i])) {
                snprintf(why, why_bytes, "layer %zu holds NaN or Inf", l);
                return ISO_CODE_NONFINITE;
            }
        if (iso_lora_norm(x, &norm, scratch, NULL) != ISO_OK)
            return ISO_CODE_INTERNAL;
        if (norm > t->config->norm_cap) {
            snprintf(why, why_bytes, "layer %zu has norm %.3g, at most %.3g", l, norm,
                     t->config->norm_cap);
            return ISO_CODE_NORM;
        }
        total += norm;
    }
    if (total == 0.0) {
        snprintf(why, why_bytes, "the adapter is zero");
        return ISO_CODE_EMPTY;
    }
    return ISO_CODE_OK;
}

static iso_code open_one(const iso_sim_worker *w, iso_job_kind kind, const iso_job_task *t,
                         const iso_job_update *u, opened *o, iso_arena *scratch, char *why,
                         size_t why_bytes)
{
    const iso_sim_blob *body = iso_sim_disk_blob(w->disk, &u->blob);
    iso_error e;
    *why = 0;
    if (!body) {
        snprintf(why, why_bytes, "its body is gone");
        return ISO_CODE_BODY_DIGEST;
    }
    iso_code code = iso_hash_open(&w->world, w->merge_pk, u->sign_pk, u->header, body->data,
                                  body->bytes, &o->payload);
    if (code != ISO_CODE_OK) {
        snprintf(why, why_bytes, "%s", iso_code_sentence(code));
        return code;
    }
    o->is_head = o->payload.size >= 4 && memcmp(o->payload.data, "ISYH", 4) == 0;
    if (kind == ISO_JOB_HEADS)
        return o->is_head ? ISO_CODE_OK : ISO_CODE_BAD_FILE;
    if (o->is_head || iso_synth_parse(o->payload.data, o->payload.size, o->layers,
                                      ISO_SYNTH_LAYERS_MAX, &o->count, &e) != ISO_OK) {
        snprintf(why, why_bytes, "%.100s", o->is_head ? "a head, no adapter" : e.text);
        return ISO_CODE_BAD_FILE;
    }
    return check_layers(w, t, o, scratch, why, why_bytes);
}

typedef struct {
    opened *all; /* owned */
    size_t count;
} opened_set;

static void close_set(opened_set *s)
{
    for (size_t i = 0; i < s->count; i++)
        iso_buf_free(&s->all[i].payload);
    free(s->all);
}

static iso_err open_task(const iso_sim_worker *w, iso_job_kind kind, const iso_job_task *t,
                         opened_set *s, iso_job_task_result *out, iso_arena *arena, iso_error *e)
{
    iso_arena scratch = {0};
    s->count = t->update_count;
    s->all = iso_calloc(s->count, sizeof *s->all);
    out->verdicts = iso_arena_calloc(arena, s->count, sizeof *out->verdicts);
    if (!s->all || !out->verdicts) {
        s->count = 0;
        return iso_nomem(e, t->update_count * sizeof *s->all);
    }
    out->verdict_count = s->count;
    for (size_t i = 0; i < s->count; i++) {
        iso_job_verdict *v = &out->verdicts[i];
        memcpy(v->update_id, t->updates[i].update_id, 16);
        iso_arena_reset(&scratch);
        v->code = open_one(w, kind, t, &t->updates[i], &s->all[i], &scratch, v->sentence,
                           sizeof v->sentence);
        v->verdict = v->code == ISO_CODE_OK ? ISO_UPDATE_USED : ISO_UPDATE_REFUSED;
        if (v->code != ISO_CODE_OK && !v->sentence[0])
            snprintf(v->sentence, sizeof v->sentence, "%s", iso_code_sentence(v->code));
        v->samples = t->updates[i].samples;
    }
    iso_arena_free(&scratch);
    return ISO_OK;
}

/* ---- heads: the mean over the sites ---- */

static iso_err heads_of(const iso_sim_worker *w, const opened_set *s, iso_job_task_result *out,
                        iso_error *e)
{
    uint8_t file[4 + 8 * sizeof(float)] = "ISYH";
    double sum[8] = {0};
    float mean[8];
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++) {
        float v[8];
        if (out->verdicts[i].verdict != ISO_UPDATE_USED || s->all[i].payload.size < sizeof file)
            continue;
        memcpy(v, s->all[i].payload.data + 4, sizeof v);
        for (int k = 0; k < 8; k++)
            sum[k] += (double)v[k];
        n++;
    }
    if (n == 0)
        return ISO_OK;
    for (int k = 0; k < 8; k++)
        mean[k] = (float)(sum[k] / (double)n);
    memcpy(file + 4, mean, sizeof mean);
    out->bytes = sizeof file;
    return iso_sim_disk_put(w->disk, file, sizeof file, &out->blob, e);
}

/* ---- merge ---- */

typedef struct {
    iso_mix merged;
    iso_lora_layer kept[ISO_SYNTH_LAYERS_MAX];
    iso_mix_input in;
} ready_task;

static iso_err aggregate(const iso_sim_worker *w, const iso_job_task *t, const opened_set *s,
                         ready_task *r, iso_job_task_result *out, iso_error *e)
{
    iso_mix_input *in = iso_calloc(s->count, sizeof *in);
    double *weights = iso_calloc(s->count, sizeof *weights);
    size_t n = 0;
    iso_buf file = {0};
    iso_err err = in && weights ? ISO_OK : iso_nomem(e, s->count * sizeof *in);
    for (size_t i = 0; !err && i < s->count; i++)
        if (out->verdicts[i].verdict == ISO_UPDATE_USED) {
            in[n] = (iso_mix_input){t->config->name, s->all[i].layers, s->all[i].count};
            weights[n++] = t->updates[i].samples ? (double)t->updates[i].samples : 1.0;
        }
    if (err || n == 0)
        goto done;
    err = iso_mix_aggregate(in, n, weights, t->config->rank_cap, &r->merged, e);
    if (!err)
        err = iso_synth_write(r->merged.layers, r->merged.count, &file, e);
    if (!err)
        err = iso_sim_disk_put(w->disk, file.data, file.size, &out->blob, e);
    if (err)
        goto done;
    out->bytes = file.size;
    for (size_t l = 0; l < r->merged.count; l++)
        if (r->merged.layers[l].rank > out->rank)
            out->rank = (uint32_t)r->merged.layers[l].rank;
    out->lost_energy = 1.0 - r->merged.energy_kept;
    r->in = (iso_mix_input){t->config->name, r->merged.layers, r->merged.count};
done:
    free(in);
    free(weights);
    iso_buf_free(&file);
    return err;
}

static iso_err keep_previous(const iso_sim_worker *w, const iso_job_task *t, ready_task *r,
                             iso_error *e)
{
    const iso_sim_blob *b = iso_sim_disk_blob(w->disk, &t->previous);
    size_t count = 0;
    if (!b)
        return iso_fail(e, ISO_ERR_DATA, "task %s: its adapter is gone", t->config->name);
    iso_err err = iso_synth_parse(b->data, b->bytes, r->kept, ISO_SYNTH_LAYERS_MAX, &count, e);
    if (!err)
        r->in = (iso_mix_input){t->config->name, r->kept, count};
    return err;
}

static iso_err store_candidate(const iso_sim_worker *w, const iso_mix *m,
                               const iso_coord_candidate *c, iso_job_candidate_result *out,
                               iso_error *e)
{
    static const char *const paths[2] = {"adapter/adapter_config.json",
                                         "adapter/adapter_model.safetensors"};
    iso_buf files[2] = {{0}, {0}}, list = {0};
    iso_err err =
        iso_buf_printf(&files[0], e, "{\"method\":\"%s\",\"peft_type\":\"LORA\"}\n", c->method);
    if (!err)
        err = iso_synth_write(m->layers, m->count, &files[1], e);
    iso_json *root = iso_json_object(), *rows = iso_json_array();
    for (int i = 0; i < 2 && !err; i++) {
        iso_job_file *f = &out->files[out->file_count++];
        char hex[ISO_DIGEST_HEX];
        snprintf(f->path, sizeof f->path, "%s", paths[i]);
        f->bytes = files[i].size;
        err = iso_sim_disk_put(w->disk, files[i].data, files[i].size, &f->digest, e);
        iso_json *row = iso_json_object();
        iso_hex(hex, f->digest.b, 32);
        iso_json_set(row, "digest", iso_json_string(hex));
        iso_json_set(row, "path", iso_json_string(paths[i]));
        iso_json_set(row, "size", iso_json_integer((int64_t)f->bytes));
        iso_json_push(rows, row);
    }
    iso_json_set(root, "files", rows);
    iso_json_set(root, "format", iso_json_integer(1));
    iso_json_set(root, "kind", iso_json_string("candidate"));
    if (!err)
        err = iso_json_dump(root, ISO_JSON_CANONICAL, &list, e);
    if (!err)
        err = iso_sim_disk_put(w->disk, list.data, list.size, &out->manifest, e);
    out->bytes = list.size;
    for (size_t l = 0; l < m->count; l++)
        if (m->layers[l].rank > out->rank_max)
            out->rank_max = (uint32_t)m->layers[l].rank;
    iso_json_free(root);
    iso_buf_free(&files[0]);
    iso_buf_free(&files[1]);
    iso_buf_free(&list);
    return err;
}

static iso_err candidate(const iso_sim_worker *w, const iso_coord_candidate *c,
                         const iso_mix_input *in, size_t n, iso_job_candidate_result *out,
                         iso_error *e)
{
    iso_mix m;
    iso_err err = iso_mix_merge(in, n, c->method, c->alpha, c->common_fraction,
                                !strcmp(c->convention, "dense"), &m, e);
    if (!err)
        err = store_candidate(w, &m, c, out, e);
    out->config = *c;
    iso_mix_free(&m);
    return err;
}

static iso_err heads_and_merge(const iso_sim_worker *w, const iso_job *job, iso_arena *arena,
                               iso_job_result *result, iso_error *e)
{
    ready_task *ready = iso_calloc(job->task_count, sizeof *ready);
    iso_mix_input *in = iso_calloc(job->task_count, sizeof *in);
    size_t prepared = 0, n = 0;
    result->tasks = iso_arena_calloc(arena, job->task_count, sizeof *result->tasks);
    result->candidates = iso_arena_calloc(arena, job->candidate_count, sizeof *result->candidates);
    iso_err err = ready && in && result->tasks && result->candidates
                      ? ISO_OK
                      : iso_nomem(e, job->task_count * sizeof *ready);
    for (size_t k = 0; k < job->task_count && !err; k++) {
        const iso_job_task *t = &job->tasks[k];
        iso_job_task_result *out = &result->tasks[k];
        opened_set s = {0};
        prepared = k + 1;
        memcpy(out->id, t->id, 16);
        err = open_task(w, job->kind, t, &s, out, arena, e);
        if (!err && job->kind == ISO_JOB_HEADS)
            err = heads_of(w, &s, out, e);
        else if (!err)
            err = aggregate(w, t, &s, &ready[k], out, e);
        if (!err && job->kind == ISO_JOB_MERGE && !ready[k].in.count &&
            !iso_digest_is_zero(&t->previous)) /* merged again, and said nothing of */
            err = keep_previous(w, t, &ready[k], e);
        if (!err && ready[k].in.count)
            in[n++] = ready[k].in;
        close_set(&s);
    }
    result->task_count = job->task_count;
    for (size_t c = 0; n && c < job->candidate_count && !err; c++)
        err = candidate(w, &job->candidates[c], in, n,
                        &result->candidates[result->candidate_count++], e);
    for (size_t k = 0; k < prepared; k++)
        iso_mix_free(&ready[k].merged);
    free(ready);
    free(in);
    return err;
}

/* A number once signed is never signed with another content (the worker's own ledger). */
static iso_err sign(iso_sim_worker *w, const iso_job *job, iso_job_result *result, iso_error *e)
{
    const iso_sim_blob *text = iso_sim_disk_blob(w->disk, &job->manifest);
    iso_buf file = {0};
    bool is_again =
        job->number == w->last_number && iso_digest_equal(&job->manifest, &w->last_manifest);
    if (!text)
        return iso_fail(e, ISO_ERR_DATA, "the manifest to sign is gone");
    if (job->number <= w->last_number && !is_again)
        return iso_fail(e, ISO_ERR_NO, "release %llu was signed before with another content",
                        (unsigned long long)job->number);
    iso_err err = iso_hash_minisign(&w->world, &w->release_key, text->data, text->bytes, &file, e);
    if (!err)
        err = iso_sim_disk_put(w->disk, file.data, file.size, &result->signature, e);
    if (!err) {
        result->signature_bytes = file.size;
        w->last_number = job->number;
        w->last_manifest = job->manifest;
    }
    iso_buf_free(&file);
    return err;
}

iso_err iso_sim_worker_run(iso_sim_worker *w, const iso_job *job, iso_arena *arena,
                           iso_job_result *result, iso_error *e)
{
    *result = (iso_job_result){.kind = job->kind};
    memcpy(result->id, job->id, 16);
    return job->kind == ISO_JOB_SIGN ? sign(w, job, result, e)
                                     : heads_and_merge(w, job, arena, result, e);
}

iso_job *iso_sim_job_copy(const iso_job *job, iso_arena *arena)
{
    iso_job *j = iso_arena_calloc(arena, 1, sizeof *j);
    iso_job_task *tasks = iso_arena_calloc(arena, job->task_count, sizeof *tasks);
    if (!j || !tasks)
        return NULL;
    *j = *job;
    j->tasks = tasks;
    for (size_t k = 0; k < job->task_count; k++) {
        const iso_job_task *from = &job->tasks[k];
        tasks[k] = *from;
        tasks[k].updates = iso_arena_calloc(arena, from->update_count, sizeof *from->updates);
        uint8_t *bytes = iso_arena_calloc(arena, from->update_count, 384 + 64 + 32);
        if (!tasks[k].updates || !bytes)
            return NULL;
        for (size_t i = 0; i < from->update_count; i++, bytes += 384 + 64 + 32) {
            iso_job_update *u = &tasks[k].updates[i];
            *u = from->updates[i];
            memcpy(bytes, u->header, 384);
            memcpy(bytes + 384, u->signature, 64);
            memcpy(bytes + 448, u->sign_pk, 32);
            u->header = bytes;
            u->signature = bytes + 384;
            u->sign_pk = bytes + 448;
        }
    }
    return j;
}
