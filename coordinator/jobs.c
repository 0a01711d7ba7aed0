/* Jobs of the merge worker: what a round gives it and what becomes of the answer (C7, C8). The
 * job's id follows from round and kind, so after a restart the same job is asked for again. */
#include "coordinator/inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

uint64_t iso_c_merge_mask(const iso_coord *c)
{
    uint64_t mask = 0;
    for (size_t t = 0; t < c->config.task_count; t++)
        if (!iso_digest_is_zero(&c->tasks[t].adapter))
            mask |= UINT64_C(1) << t;
    return mask;
}

static iso_job_kind kind_of(const iso_c_round *r)
{
    if (r->state == ROUND_SIGNING)
        return ISO_JOB_SIGN;
    return r->kind == ROUND_HEAD ? ISO_JOB_HEADS : ISO_JOB_MERGE;
}

static void job_id(const iso_coord *c, const iso_c_round *r, uint8_t id[16])
{
    uint8_t text[12 + 16 + 8 + 1];
    memcpy(text, "isofed-job-1", 12);
    memcpy(text + 12, c->identity.federation, 16);
    iso_put_u64(text + 28, r->number);
    text[36] = (uint8_t)kind_of(r);
    iso_digest d = c->sealer.digest(c->sealer.ctx, text, sizeof text);
    memcpy(id, d.b, 16);
}

static int by_site(const void *a, const void *b)
{
    const iso_c_update *x = *(iso_c_update *const *)a, *y = *(iso_c_update *const *)b;
    return memcmp(x->site->id, y->site->id, 16);
}

/* Pending updates of a task in order of site, whatever the order of arrival (U36). */
static bool fill_updates(iso_coord *c, const iso_c_round *r, int task, iso_job_task *out)
{
    size_t count = 0;
    iso_c_update **sorted = iso_c_alloc(c, r->update_count + 1, sizeof *sorted);
    iso_job_update *updates = iso_c_alloc(c, r->update_count + 1, sizeof *updates);
    if (!sorted || !updates)
        return false;
    for (size_t i = 0; i < r->update_count; i++)
        if (r->updates[i]->task == task && r->updates[i]->state == ISO_UPDATE_PENDING &&
            r->updates[i]->raw)
            sorted[count++] = r->updates[i];
    qsort(sorted, count, sizeof *sorted, by_site);
    for (size_t i = 0; i < count; i++) {
        const iso_c_update *u = sorted[i];
        memcpy(updates[i].update_id, u->id, 16);
        updates[i].blob = u->blob;
        updates[i].header = u->raw;
        updates[i].signature = u->raw + 384;
        updates[i].sign_pk = u->site->sign_pk;
        updates[i].samples = u->samples;
    }
    out->updates = updates;
    out->update_count = count;
    return true;
}

static bool fill_tasks(iso_coord *c, const iso_c_round *r, iso_job *job)
{
    uint64_t mask = r->kind == ROUND_HEAD ? 0 : iso_c_merge_mask(c);
    for (size_t i = 0; i < r->task_count; i++)
        if (!r->tasks[i].is_out)
            mask |= UINT64_C(1) << r->tasks[i].task;
    job->tasks = iso_c_alloc(c, c->config.task_count + 1, sizeof *job->tasks);
    if (!job->tasks)
        return false;
    for (size_t t = 0; t < c->config.task_count; t++) {
        if (!(mask >> t & 1))
            continue;
        iso_job_task *x = &job->tasks[job->task_count++];
        memcpy(x->id, c->tasks[t].id, 16);
        x->config = c->tasks[t].config;
        x->previous = c->tasks[t].adapter;
        x->head = c->tasks[t].head;
        if (!fill_updates(c, r, (int)t, x))
            return false;
    }
    return true;
}

void iso_c_start_job(iso_coord *c, iso_c_round *r)
{
    iso_job *job = iso_c_alloc(c, 1, sizeof *job);
    if (!job)
        return;
    job_id(c, r, r->job);
    r->has_job = true;
    job->kind = kind_of(r);
    memcpy(job->id, r->job, 16);
    memcpy(job->federation, c->identity.federation, 16);
    job->round = r->number;
    job->generation = c->identity.generation;
    job->generation_digest = c->identity.generation_digest;
    job->backbone = c->config.backbone;
    if (job->kind == ISO_JOB_SIGN) {
        job->number = r->release;
        job->manifest = r->manifest;
        job->is_accepted = r->by_operator;
        if (r->chosen >= 0)
            job->candidate = r->candidates[r->chosen].manifest;
        else if (r->rollback_of)
            job->candidate = iso_c_release_by_number(c, r->rollback_of)->candidate;
    } else if (!fill_tasks(c, r, job)) {
        return;
    }
    if (job->kind == ISO_JOB_MERGE) {
        job->candidates = c->config.candidates;
        job->candidate_count = c->config.candidate_count;
    }
    iso_c_save_round(c, r, ISO_OP_PUT);
    iso_c_emit(c, ISO_CX_JOB_START)->job = job;
}

/* ---- answers ---- */

static const iso_job_verdict *verdict_of(const iso_job_task_result *t, const uint8_t id[16])
{
    for (size_t i = 0; i < t->verdict_count; i++)
        if (memcmp(t->verdicts[i].update_id, id, 16) == 0)
            return &t->verdicts[i];
    return NULL;
}

/* Every update of the input set gets its verdict now: used once, or refused with a reason (I1). */
static void apply_verdicts(iso_coord *c, iso_c_round *r, const iso_job_task_result *t, int task,
                           iso_c_task *state)
{
    uint64_t samples = 0, used = 0;
    double own = 0.0;
    for (size_t i = 0; i < r->update_count; i++) {
        iso_c_update *u = r->updates[i];
        if (u->task != task || u->state != ISO_UPDATE_PENDING)
            continue;
        const iso_job_verdict *v = verdict_of(t, u->id);
        if (!v) {
            iso_c_update_judge(c, u, ISO_UPDATE_REFUSED, ISO_CODE_INTERNAL,
                               "the merge worker did not say what became of it");
            continue;
        }
        u->worker_score = v->score;
        iso_c_update_judge(c, u, v->verdict, v->code, v->sentence);
        if (v->verdict == ISO_UPDATE_USED) {
            used++;
            samples += u->samples;
            own += (double)u->score * (double)u->samples;
        }
    }
    if (r->kind != ROUND_ADAPTER || used == 0)
        return;
    state->updates = used;
    state->samples = samples;
    state->own[0] = samples ? own / (double)samples : 0.0;
}

static void leave_out(iso_c_round *r, int task, const char *why)
{
    iso_c_round_task *t = iso_c_round_task_of(r, task);
    if (!t || t->is_out)
        return;
    t->is_out = true;
    snprintf(t->reason, sizeof t->reason, "%s", why);
}

/* Verdicts and task states of a result, the same for heads and adapters. */
static void apply_tasks(iso_coord *c, iso_c_round *r, const iso_job_result *result)
{
    static const iso_job_task_result nothing;
    for (size_t t = 0; t < c->config.task_count; t++) {
        iso_c_task *state = &c->tasks[t];
        const iso_job_task_result *x = NULL;
        for (size_t i = 0; i < result->task_count; i++)
            if (memcmp(result->tasks[i].id, state->id, 16) == 0)
                x = &result->tasks[i];
        bool is_of_round = iso_c_round_task_of(r, (int)t) != NULL;
        if (is_of_round)
            apply_verdicts(c, r, x ? x : &nothing, (int)t, state);
        if (!x || iso_digest_is_zero(&x->blob)) {
            if (is_of_round)
                leave_out(r, (int)t, "no update of it was usable");
            continue;
        }
        if (r->kind == ROUND_HEAD) {
            state->head = x->blob;
            state->head_bytes = x->bytes;
            state->head_round = r->number;
        } else {
            if (!iso_digest_equal(&state->adapter, &x->blob))
                state->adapter_round = r->number;
            state->adapter = x->blob;
            state->adapter_bytes = x->bytes;
            state->rank = x->rank;
            if (!iso_digest_is_zero(&x->head)) {
                state->head = x->head;
                state->head_bytes = x->head_bytes;
                state->head_round = r->number;
            }
        }
        iso_c_save_task(c, state);
    }
}

static bool take_candidates(iso_coord *c, iso_c_round *r, const iso_job_result *result)
{
    size_t n = result->candidate_count;
    if (n > ISO_COORD_CANDIDATES_MAX)
        n = ISO_COORD_CANDIDATES_MAX;
    free(r->candidates);
    r->candidates = iso_calloc(n, sizeof *r->candidates);
    r->candidate_count = 0;
    if (!r->candidates) {
        c->is_out_of_memory = true;
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        const iso_job_candidate_result *x = &result->candidates[i];
        iso_c_candidate *y = &r->candidates[r->candidate_count++];
        snprintf(y->method, sizeof y->method, "%s", x->config.method);
        snprintf(y->convention, sizeof y->convention, "%s", x->config.convention);
        y->alpha = x->config.alpha;
        y->common_fraction = x->config.common_fraction;
        y->manifest = x->manifest;
        y->bytes = x->bytes;
        y->rank_max = x->rank_max;
        y->file_count = x->file_count < 4 ? (uint32_t)x->file_count : 4;
        memcpy(y->files, x->files, sizeof y->files);
    }
    return n > 0;
}

static void heads_done(iso_coord *c, iso_c_round *r, const iso_job_result *result)
{
    apply_tasks(c, r, result);
    uint64_t follow = 0;
    for (size_t t = 0; t < c->config.task_count; t++)
        if ((r->follow >> t & 1) && !iso_digest_is_zero(&c->tasks[t].head))
            follow |= UINT64_C(1) << t;
    iso_c_audit(c, ISO_AUDIT_MERGE, NULL, NULL, "\"heads\":%zu,\"round\":%llu", result->task_count,
                (unsigned long long)r->number);
    if (!follow) {
        iso_c_round_end(c, r, ROUND_FAILED, "no task got a head");
        return;
    }
    iso_c_round_end(c, r, ROUND_DONE, "");
    iso_error e;
    if (iso_c_round_open(c, follow, "the head round before", NULL, &e) != ISO_OK)
        iso_c_log(c, ISO_LOG_WARN, "round_not_opened", "why=\"%s\"", iso_c_quote(c, e.text));
}

static void merge_done(iso_coord *c, iso_c_round *r, const iso_job_result *result)
{
    apply_tasks(c, r, result);
    bool has_candidate = take_candidates(c, r, result);
    iso_c_audit(c, ISO_AUDIT_MERGE, NULL, has_candidate ? &r->candidates[0].manifest : NULL,
                "\"candidates\":%zu,\"round\":%llu,\"tasks\":%zu", r->candidate_count,
                (unsigned long long)r->number, result->task_count);
    if (!has_candidate) {
        iso_c_round_end(c, r, ROUND_FAILED, "the merge gave no candidate");
        return;
    }
    iso_c_evaluate_begin(c, r);
}

void iso_c_on_job_done(iso_coord *c, const iso_job_result *result)
{
    iso_c_round *r = iso_c_round_active(c);
    if (!r || !r->has_job || memcmp(r->job, result->id, 16) != 0)
        return; /* of a round that was aborted, or the same twice */
    r->has_job = false;
    r->worker_ms += result->worker_ms;
    if (r->state == ROUND_SIGNING) {
        iso_c_release_signed(c, r, result);
        return;
    }
    r->merged_ms = c->wall;
    if (r->kind == ROUND_HEAD)
        heads_done(c, r, result);
    else
        merge_done(c, r, result);
}

void iso_c_on_job_failed(iso_coord *c, const uint8_t id[16], const char *why)
{
    iso_c_round *r = iso_c_round_active(c);
    if (!r || !r->has_job || memcmp(r->job, id, 16) != 0)
        return;
    r->has_job = false;
    iso_c_round_hold(c, r, iso_c_text(c, "merge worker: %.120s", why ? why : "failed"));
}
