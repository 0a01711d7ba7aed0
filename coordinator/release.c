/* Releases: manifest, number, offers, verdicts, rollback (specs/security.md 7, C10, C11). A number
 * is never used twice and what it names never changes (I2); the worker's ledger checks the same. */
#include "coordinator/inner.h"
#include "crypto/manifest.h"
#include "crypto/request.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

iso_c_release *iso_c_release_current(const iso_coord *c)
{
    return c->release_count ? c->releases[c->release_count - 1] : NULL;
}

iso_c_release *iso_c_release_by_number(const iso_coord *c, uint64_t number)
{
    for (size_t i = c->release_count; i > 0; i--)
        if (c->releases[i - 1]->number == number)
            return c->releases[i - 1];
    return NULL;
}

iso_c_release *iso_c_release_new(iso_coord *c, uint64_t number)
{
    iso_c_release *r = iso_calloc(1, sizeof *r);
    if (!r || !iso_c_push(c, (void ***)&c->releases, &c->release_count, &c->release_capacity, r)) {
        c->is_out_of_memory = true;
        free(r);
        return NULL;
    }
    r->number = number;
    return r;
}

void iso_c_release_free(iso_c_release *r)
{
    free(r->files);
    free(r->tasks);
    free(r);
}

static uint64_t next_number(const iso_coord *c)
{
    const iso_c_release *last = iso_c_release_current(c);
    uint64_t highest = last ? last->number : 0;
    return (c->release_floor > highest ? c->release_floor : highest) + 1;
}

/* ---- what a release holds ---- */

static bool add_file(iso_c_release *x, const char *path, const iso_digest *d, uint64_t bytes,
                     const uint8_t task_id[16])
{
    iso_c_file *wider = realloc(x->files, (x->file_count + 1) * sizeof *wider);
    if (!wider)
        return false;
    x->files = wider;
    iso_c_file *f = &x->files[x->file_count++];
    *f = (iso_c_file){.digest = *d, .bytes = bytes};
    snprintf(f->path, sizeof f->path, "%s", path);
    if (task_id)
        memcpy(f->task_id, task_id, 16);
    x->total_bytes += bytes;
    return true;
}

static bool fill_merge(iso_coord *c, const iso_c_round *r, iso_c_release *x)
{
    const iso_c_candidate *y = &r->candidates[r->chosen];
    bool is_ok = true;
    x->candidate = y->manifest;
    snprintf(x->method, sizeof x->method, "%s", y->method);
    snprintf(x->convention, sizeof x->convention, "%s", y->convention);
    for (uint32_t i = 0; i < y->file_count; i++)
        is_ok =
            is_ok && add_file(x, y->files[i].path, &y->files[i].digest, y->files[i].bytes, NULL);
    x->tasks = iso_calloc(c->config.task_count, sizeof *x->tasks);
    if (!x->tasks)
        return false;
    for (size_t t = 0; t < c->config.task_count; t++) {
        const iso_c_task *s = &c->tasks[t];
        if (!(r->eval_tasks >> t & 1))
            continue;
        char path[96];
        snprintf(path, sizeof path, "heads/%.64s.safetensors", c->config.tasks[t].name);
        if (!iso_digest_is_zero(&s->head))
            is_ok = is_ok && add_file(x, path, &s->head, s->head_bytes, s->id);
        iso_c_release_task *z = &x->tasks[x->task_count++];
        memcpy(z->task_id, s->id, 16);
        for (int k = 0; k < METRICS; k++)
            z->score[k] = iso_c_mean_score(r, r->chosen, (int)t, k, &z->samples);
        (void)iso_c_mean_score(r, r->chosen, (int)t, c->config.gate_metric, &z->samples);
        uint64_t unused;
        z->baseline = isnan(s->baseline[c->config.gate_metric])
                          ? iso_c_mean_score(r, -1, (int)t, c->config.gate_metric, &unused)
                          : s->baseline[c->config.gate_metric];
        z->updates = s->updates;
    }
    return is_ok;
}

static bool fill_rollback(iso_coord *c, const iso_c_round *r, iso_c_release *x)
{
    const iso_c_release *old = iso_c_release_by_number(c, r->rollback_of);
    x->rollback_of = r->rollback_of;
    x->candidate = old->candidate;
    memcpy(x->method, old->method, sizeof x->method);
    memcpy(x->convention, old->convention, sizeof x->convention);
    bool is_ok = true;
    for (size_t i = 0; i < old->file_count; i++)
        is_ok = is_ok && add_file(x, old->files[i].path, &old->files[i].digest, old->files[i].bytes,
                                  old->files[i].task_id);
    x->tasks = iso_calloc(old->task_count, sizeof *x->tasks);
    if (!x->tasks)
        return false;
    memcpy(x->tasks, old->tasks, old->task_count * sizeof *x->tasks);
    x->task_count = old->task_count;
    return is_ok;
}

static bool fill(iso_coord *c, const iso_c_round *r, iso_c_release *x)
{
    x->round = r->number;
    x->created_ms = r->release_created_ms;
    x->valid_until_ms = r->release_valid_until_ms;
    snprintf(x->reason, sizeof x->reason, "%s", r->reason);
    return r->kind == ROUND_ROLLBACK ? fill_rollback(c, r, x) : fill_merge(c, r, x);
}

/* ---- texts that travel with it ---- */

static iso_err recipe_text(const iso_coord *c, const iso_c_round *r, iso_buf *out, iso_error *e)
{
    const iso_c_candidate *y = &r->candidates[r->chosen];
    iso_err err = iso_buf_printf(out, e,
                                 "# How release %llu was merged (round %llu).\nformat: 1\n"
                                 "method: %s\nalpha: %.9g\nconvention: %s\n"
                                 "common_fraction: %.9g\ntasks:\n",
                                 (unsigned long long)r->release, (unsigned long long)r->number,
                                 y->method, y->alpha, y->convention, y->common_fraction);
    for (size_t t = 0; t < c->config.task_count && !err; t++) {
        char hex[ISO_DIGEST_HEX];
        if (!(r->eval_tasks >> t & 1))
            continue;
        iso_hex(hex, c->tasks[t].adapter.b, 32);
        err = iso_buf_printf(out, e, "  - {name: %s, adapter: %s, updates: %llu, samples: %llu}\n",
                             c->config.tasks[t].name, hex, (unsigned long long)c->tasks[t].updates,
                             (unsigned long long)c->tasks[t].samples);
    }
    return err;
}

/* Means over the sites, never a single site's score (S102). */
static iso_err eval_text(const iso_coord *c, const iso_c_round *r, iso_buf *out, iso_error *e)
{
    iso_json *root = iso_json_object(), *candidates = iso_json_array();
    iso_json_set(root, "format", iso_json_integer(1));
    iso_json_set(root, "round", iso_json_integer((int64_t)r->number));
    for (int x = -1; x < (int)r->candidate_count; x++) {
        iso_json *row = iso_json_object(), *tasks = iso_json_object();
        iso_json_set(row, "method", iso_json_string(x < 0 ? "frozen" : r->candidates[x].method));
        for (size_t t = 0; t < c->config.task_count; t++) {
            iso_json *scores = iso_json_object();
            for (uint32_t k = 0; k < r->metric_count; k++) {
                uint64_t samples;
                double mean = iso_c_mean_score(r, x, (int)t, (int)k, &samples);
                if (!isnan(mean))
                    iso_json_set(scores, iso_c_metric_names[k], iso_json_float9(mean));
            }
            if (iso_json_count(scores))
                iso_json_set(tasks, c->config.tasks[t].name, scores);
            else
                iso_json_free(scores);
        }
        iso_json_set(row, "tasks", tasks);
        iso_json_push(candidates, row);
    }
    iso_json_set(root, "candidates", candidates);
    iso_err err = iso_json_dump(root, ISO_JSON_CANONICAL, out, e);
    iso_json_free(root);
    return err;
}

static iso_err put_texts(iso_coord *c, iso_c_round *r, iso_error *e)
{
    iso_c_candidate *y = &r->candidates[r->chosen];
    iso_err (*const make[])(const iso_coord *, const iso_c_round *, iso_buf *,
                            iso_error *) = {recipe_text, eval_text};
    static const char *const paths[] = {"recipe.yaml", "eval.json"};
    for (int i = 0; i < 2; i++) {
        iso_buf text = {0};
        iso_err err = y->file_count < 4 ? make[i](c, r, &text, e)
                                        : iso_fail(e, ISO_ERR_INTERNAL, "too many files");
        if (!err) {
            iso_job_file *f = &y->files[y->file_count++];
            *f = (iso_job_file){.bytes = text.size};
            snprintf(f->path, sizeof f->path, "%s", paths[i]);
            f->digest = iso_c_put_blob(c, text.data, text.size);
        }
        iso_buf_free(&text);
        if (err)
            return err;
    }
    return ISO_OK;
}

/* ---- the manifest (S90) ---- */

static iso_err manifest_text(iso_coord *c, const iso_c_round *r, const iso_c_release *x,
                             iso_buf *out, iso_error *e)
{
    const iso_c_release *previous = iso_c_release_current(c);
    size_t score_count = 0;
    iso_manifest m = {.epoch = c->identity.epoch,
                      .number = r->release,
                      .created_ms = x->created_ms,
                      .valid_until_ms = x->valid_until_ms,
                      .kind = x->rollback_of ? ISO_RELEASE_ROLLBACK : ISO_RELEASE_MERGE,
                      .rollback_of = x->rollback_of,
                      .generation = c->identity.generation,
                      .generation_digest = c->identity.generation_digest,
                      .method = x->method,
                      .spectrum = x->convention,
                      .audit_seq = c->audit_seq,
                      .audit_head = c->audit_head,
                      .min_software = "0.1.0",
                      .task_count = x->task_count,
                      .file_count = x->file_count};
    memcpy(m.federation, c->identity.federation, 16);
    if (previous) {
        m.previous_number = previous->number;
        m.previous_digest = previous->manifest;
    }
    iso_manifest_task *tasks = iso_c_alloc(c, x->task_count + 1, sizeof *tasks);
    iso_manifest_file *files = iso_c_alloc(c, x->file_count + 1, sizeof *files);
    iso_manifest_score *scores = iso_c_alloc(c, x->task_count * METRICS + 1, sizeof *scores);
    iso_manifest_parameter *parameters = iso_c_alloc(c, 2, sizeof *parameters);
    if (!tasks || !files || !scores || !parameters)
        return iso_nomem(e, 0);
    for (size_t i = 0; i < x->task_count; i++) {
        const iso_c_release_task *t = &x->tasks[i];
        int task = iso_c_task_by_id(c, t->task_id);
        memcpy(tasks[i].id, t->task_id, 16);
        tasks[i].score =
            isnan(t->score[c->config.gate_metric]) ? 0.0 : t->score[c->config.gate_metric];
        tasks[i].baseline = isnan(t->baseline) ? 0.0 : t->baseline;
        tasks[i].samples = t->samples;
        tasks[i].updates = t->updates;
        for (int k = 0; k < METRICS && task >= 0; k++)
            if (!isnan(t->score[k]))
                scores[score_count++] =
                    (iso_manifest_score){.name = iso_c_text(c, "%s/%s", c->config.tasks[task].name,
                                                            iso_c_metric_names[k]),
                                         .value = t->score[k]};
    }
    for (size_t i = 0; i < x->file_count; i++)
        files[i] = (iso_manifest_file){
            .path = x->files[i].path, .size = x->files[i].bytes, .digest = x->files[i].digest};
    if (r->chosen >= 0) {
        const iso_c_candidate *y = &r->candidates[r->chosen];
        parameters[0] = (iso_manifest_parameter){"alpha", iso_c_text(c, "%.9g", y->alpha)};
        parameters[1] =
            (iso_manifest_parameter){"common_fraction", iso_c_text(c, "%.9g", y->common_fraction)};
        m.parameter_count = 2;
    }
    m.tasks = tasks;
    m.files = files;
    m.scores = scores;
    m.score_count = score_count;
    m.parameters = parameters;
    return iso_manifest_format(&m, out, e);
}

void iso_c_release_prepare(iso_coord *c, iso_c_round *r)
{
    iso_error e = {0};
    iso_buf text = {0};
    iso_c_release x = {0};
    r->release = next_number(c);
    r->release_created_ms = c->wall;
    r->release_valid_until_ms = c->wall + c->config.release_valid_ms;
    iso_err err = r->kind == ROUND_ROLLBACK ? ISO_OK : put_texts(c, r, &e);
    if (!err && !fill(c, r, &x))
        err = iso_nomem(&e, 0);
    if (!err)
        err = manifest_text(c, r, &x, &text, &e);
    if (!err) {
        r->manifest = iso_c_put_blob(c, text.data, text.size);
        r->manifest_bytes = text.size;
        r->state = ROUND_SIGNING;
        iso_c_start_job(c, r);
    } else {
        iso_c_round_hold(c, r, e.text);
    }
    free(x.files);
    free(x.tasks);
    iso_buf_free(&text);
}

/* C10, C11: the number is taken, the content is current, the next gate compares with it. */
void iso_c_release_signed(iso_coord *c, iso_c_round *r, const iso_job_result *result)
{
    if (r->release != next_number(c)) { /* I2: never a number twice, whatever happened between */
        iso_c_round_hold(c, r, "the release number was taken meanwhile");
        return;
    }
    iso_c_release *x = iso_c_release_new(c, r->release);
    if (!x || !fill(c, r, x)) {
        c->is_out_of_memory = true;
        return;
    }
    x->manifest = r->manifest;
    x->manifest_bytes = r->manifest_bytes;
    x->signature = result->signature;
    x->signature_bytes = result->signature_bytes;
    for (size_t i = 0; i < x->task_count; i++) {
        int task = iso_c_task_by_id(c, x->tasks[i].task_id);
        if (task < 0)
            continue;
        memcpy(c->tasks[task].baseline, x->tasks[i].score, sizeof c->tasks[task].baseline);
        iso_c_save_task(c, &c->tasks[task]);
    }
    iso_c_save_release(c, x, ISO_OP_INSERT);
    iso_c_audit(c, x->rollback_of ? ISO_AUDIT_ROLLBACK : ISO_AUDIT_RELEASE, NULL, &x->manifest,
                "\"method\":\"%s\",\"number\":%llu,\"of\":%llu,\"round\":%llu", x->method,
                (unsigned long long)x->number, (unsigned long long)x->rollback_of,
                (unsigned long long)r->number);
    iso_c_log(c, ISO_LOG_INFO, "released", "release=%llu method=%s round=%llu bytes=%llu",
              (unsigned long long)x->number, x->method, (unsigned long long)r->number,
              (unsigned long long)x->total_bytes);
    iso_c_round_end(c, r, ROUND_RELEASED, r->reason);
    iso_c_flush(c);
    for (size_t i = 0; i < c->site_count; i++)
        iso_c_release_offer(c, c->sites[i]);
}

void iso_c_release_offer(iso_coord *c, iso_c_site *s)
{
    const iso_c_release *x = iso_c_release_current(c);
    bool is_there = s->peer && !s->peer->is_cut && s->peer->state == PEER_READY;
    bool has_it = x && (s->serving >= x->number || s->verdict_number >= x->number);
    /* Said again each hour for the sake of its signed head: a site that hears nothing newer for a
     * day must think that it is being kept from something (S92 freeze, S105). */
    if (!x || !is_there || (has_it && c->wall < s->head_ms + HEAD_EVERY_MS))
        return;
    iso_span head = iso_c_signed_head(c);
    s->head_ms = c->signed_ms;
    iso_msg_release_offer *m = &iso_c_send(c, s->peer, ISO_MSG_RELEASE_OFFER, 0)->release_offer;
    m->number = x->number;
    memcpy(m->manifest_digest, x->manifest.b, 32);
    m->signed_head = head;
    m->valid_until_ms = x->valid_until_ms;
    memcpy(m->base_digest, c->identity.generation_digest.b, 32);
    m->bytes_total = x->total_bytes;
}

void iso_c_on_verdict(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    const iso_msg_release_verdict *v = &m->release_verdict;
    iso_c_site *s = p->site;
    iso_c_release *x = iso_c_release_by_number(c, v->number);
    uint8_t bytes[ISO_VERDICT_BYTES], number[8];
    iso_put_u64(number, v->number);
    iso_verdict_bytes(c->identity.federation, s->id, v->number, v->verdict, v->before, v->delivered,
                      v->refitted, v->reason ? v->reason : "", bytes);
    if (!x || v->verdict == ISO_VERDICT_NONE || v->verdict >= ISO_VERDICTS) {
        iso_c_refuse(c, p, m->id, ISO_CODE_RELEASE_OLD, number, 8, "no such release or verdict");
        return;
    }
    if (!c->sealer.verify(c->sealer.ctx, ISO_LABEL_REQUEST, s->sign_pk, bytes, sizeof bytes,
                          v->signature)) {
        iso_c_refuse(c, p, m->id, ISO_CODE_SIGNATURE, number, 8,
                     "the verdict is not signed by this site's key");
        return;
    }
    /* One verdict a release; only a failed swap may take back an acceptance (S95). */
    bool is_return = v->verdict == ISO_VERDICT_RETURNED && s->verdict != ISO_VERDICT_RETURNED;
    if (s->verdict_number == v->number && !is_return)
        return;
    bool is_accepted = v->verdict == ISO_VERDICT_ACCEPTED || v->verdict == ISO_VERDICT_TOO_FEW;
    if (s->verdict_number == v->number)
        x->accepted -= x->accepted > 0;
    x->accepted += is_accepted;
    x->rejected += !is_accepted;
    if (v->number > s->verdict_number || is_return) {
        s->verdict_number = v->number;
        s->verdict = v->verdict;
    }
    if (is_accepted && v->number > s->serving)
        s->serving = v->number;
    iso_c_save_verdict(c, v->number, s, v);
    iso_c_audit(c, ISO_AUDIT_VERDICT, s->id, &x->manifest, "\"number\":%llu,\"verdict\":\"%s\"",
                (unsigned long long)v->number, iso_verdict_name((iso_verdict)v->verdict));
    iso_c_log(c, is_accepted ? ISO_LOG_INFO : ISO_LOG_WARN, "verdict",
              "site=%s release=%llu verdict=%s before=%.4f delivered=%.4f refitted=%.4f why=\"%s\"",
              s->name, (unsigned long long)v->number, iso_verdict_name((iso_verdict)v->verdict),
              (double)v->before, (double)v->delivered, (double)v->refitted,
              iso_c_quote(c, v->reason));
}

iso_err iso_c_rollback(iso_coord *c, uint64_t number, const char *by, const char *reason,
                       uint64_t *round, iso_error *e)
{
    const iso_c_release *old = iso_c_release_by_number(c, number);
    const iso_c_release *current = iso_c_release_current(c);
    if (!old || old == current)
        return iso_fail(e, ISO_ERR_NO, old ? "release %llu is the current one" : "no release %llu",
                        (unsigned long long)number);
    if (current->number - number > RELEASES_KEPT)
        return iso_fail(e, ISO_ERR_NO, "release %llu is too old: its files are gone",
                        (unsigned long long)number);
    iso_c_round *active = iso_c_round_active(c);
    if (active && active->state == ROUND_HELD)
        iso_c_round_end(c, active, ROUND_ABORTED, "superseded by a rollback");
    else if (active)
        return iso_fail(e, ISO_ERR_NO, "round %llu is %s: abort it first",
                        (unsigned long long)active->number, iso_c_round_state_name(active->state));
    iso_c_round *r = iso_c_round_new(c, c->round_count + 1);
    if (!r || !(r->candidates = iso_calloc(0, sizeof *r->candidates)))
        return iso_nomem(e, sizeof *r);
    r->kind = ROUND_ROLLBACK;
    r->state = ROUND_SIGNING;
    r->rollback_of = number;
    r->opened_ms = r->closed_ms = c->wall;
    snprintf(r->reason, sizeof r->reason, "back to %llu by %s: %s", (unsigned long long)number, by,
             reason);
    c->stats.rounds++;
    *round = r->number;
    iso_c_release_prepare(c, r);
    return ISO_OK;
}
