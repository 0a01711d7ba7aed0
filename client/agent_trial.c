/* A fetched release on the site's own images: look inside, try, judge, swap, or not
 * (specs/security.md S93-S97; transactions K7, K8, K9).
 *
 * What serves changes in one row (K9), after the new folder is complete and synced, and goes back
 * in one row when the swapped release does not answer a known input as it did in its trial. */
#include "client/agent_inner.h"
#include "crypto/request.h"
#include "nn/train/metrics.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RETRY_MS = 10 * 1000, FAILURES_MAX = 3 };

static agent_task *task_by_id(const iso_agent *a, const uint8_t id[16])
{
    for (size_t i = 0; i < a->config.task_count; i++)
        if (memcmp(a->tasks[i].config->id, id, 16) == 0)
            return &a->tasks[i];
    return NULL;
}

void agent_verdict_send(iso_agent *a, uint64_t number, iso_verdict verdict, const float scores[3],
                        const char *reason)
{
    if (!agent_is_online(a))
        return;
    char text[ISO_REASON_MAX + 1];
    snprintf(text, sizeof text, "%s", reason ? reason : "");
    iso_msg_release_verdict *m = &agent_send(a, ISO_MSG_RELEASE_VERDICT, NULL)->release_verdict;
    uint8_t bytes[ISO_VERDICT_BYTES];
    m->number = number;
    m->verdict = verdict;
    m->before = scores[0];
    m->delivered = scores[1];
    m->refitted = scores[2];
    m->reason = agent_copy(a, text, strlen(text) + 1);
    iso_verdict_bytes(a->config.federation_id, a->config.site_id, number, verdict, scores[0],
                      scores[1], scores[2], text, bytes);
    a->seams.sealer.sign(a->seams.sealer.ctx, ISO_LABEL_REQUEST, bytes, sizeof bytes, m->signature);
}

static bool is_decided(const iso_agent *a, const agent_release *r)
{
    return r->state == ISO_RS_REJECTED || r->state == ISO_RS_RETURNED ||
           (r->state == ISO_RS_ACCEPTED && r->number == a->current && r->is_checked);
}

void agent_verdicts_send(iso_agent *a)
{
    for (size_t i = a->release_count; i-- > 0;) {
        agent_release *r = &a->releases[i];
        if (!is_decided(a, r))
            continue;
        if (!r->is_verdict_sent && agent_is_online(a)) {
            const float scores[3] = {r->before, r->delivered, r->refitted};
            agent_verdict_send(a, r->number, r->verdict, scores, r->reason);
            r->is_verdict_sent = true;
        }
        return;
    }
}

/* Rows and folders that nothing needs any more. */
static void prune(iso_agent *a)
{
    for (size_t i = 0; a->release_count > AGENT_RELEASES_KEPT && i < a->release_count; i++) {
        const agent_release *r = &a->releases[i];
        if (r->number == a->current || r->number == a->previous || i + 1 == a->release_count)
            continue;
        uint8_t key[8];
        for (int k = 0; k < 8; k++)
            key[k] = (uint8_t)(r->number >> (56 - 8 * k));
        agent_delete(a, ISO_AT_RELEASE, key, sizeof key);
        agent_drop_release(a, i--);
    }
    agent_commit(a);
    agent_collect(a);
}

static void finish(iso_agent *a)
{
    agent_pending_clear(a);
    agent_verdicts_send(a);
    prune(a);
}

static void reject(iso_agent *a, agent_release *r, iso_verdict verdict, const char *why)
{
    r->state = ISO_RS_REJECTED;
    r->verdict = verdict;
    agent_text(a, &r->reason, why);
    agent_save_release(a, r); /* K8 */
    agent_commit(a);
    char quoted[2 * ISO_SENTENCE_MAX];
    iso_log_quote(quoted, sizeof quoted, why);
    agent_log(a, ISO_LOG_WARN, "release_rejected", "number=%llu serving=%llu reason=\"%s\"",
              (unsigned long long)r->number, (unsigned long long)a->current, quoted);
    finish(a);
}

static void accept(iso_agent *a, agent_release *r)
{
    r->state = ISO_RS_ACCEPTED;
    agent_save_release(a, r); /* K8 */
    agent_commit(a);
    a->pending.phase = PENDING_INSTALL;
    a->pending.is_installing = false;
}

static float best(const iso_score_pair *p)
{
    float v = p->delivered.is_known ? p->delivered.value : 0;
    return p->refitted.is_known && p->refitted.value > v ? p->refitted.value : v;
}

static bool is_scored(const iso_score_pair *p)
{
    return p->delivered.is_known || p->refitted.is_known;
}

/* S94 over all tasks of the site: the better of delivered and refitted, now against before; a task
 * that falls by more than its margin rejects the whole. */
static void decide(iso_agent *a, agent_release *r)
{
    double sums[3] = {0};
    char worst[ISO_REASON_MAX] = "";
    uint64_t samples = 0;
    bool is_any_judged = false;
    for (size_t i = 0; i < r->task_count; i++) {
        const agent_release_task *t = &r->tasks[i];
        uint64_t n = t->val.delivered.is_known ? t->val.delivered.samples : t->val.refitted.samples;
        if (!is_scored(&t->val) || n == 0)
            continue;
        double now = (double)best(&t->val), before = (double)best(&t->before);
        sums[0] += before * (double)n;
        sums[1] += (double)t->val.delivered.value * (double)n;
        sums[2] += (double)t->val.refitted.value * (double)n;
        samples += n;
        if (n < a->config.few_samples || !is_scored(&t->before))
            continue;
        is_any_judged = true;
        double margin = iso_binomial_half_width(before, (size_t)n);
        if (margin < a->config.margin)
            margin = a->config.margin;
        const agent_task *task = task_by_id(a, t->task_id);
        if (now < before - margin && !worst[0])
            snprintf(worst, sizeof worst, "%s: %.3f here, %.3f before (margin %.3f)",
                     task ? task->config->name : "task", now, before, margin);
    }
    if (samples > 0) {
        r->before = (float)(sums[0] / (double)samples);
        r->delivered = (float)(sums[1] / (double)samples);
        r->refitted = (float)(sums[2] / (double)samples);
    }
    r->samples = samples;
    const agent_release *old = r->rollback_of ? agent_find_release(a, r->rollback_of) : NULL;
    if (old && old->state == ISO_RS_REJECTED && !r->force) {
        char why[ISO_REASON_MAX];
        snprintf(why, sizeof why, "its content was rejected here as release %llu",
                 (unsigned long long)old->number);
        reject(a, r, ISO_VERDICT_REJECTED, why);
        return;
    }
    if (worst[0]) {
        reject(a, r, ISO_VERDICT_REJECTED, worst);
        return;
    }
    r->verdict = is_any_judged ? ISO_VERDICT_ACCEPTED : ISO_VERDICT_TOO_FEW;
    if (!is_any_judged) {
        char why[ISO_REASON_MAX];
        snprintf(why, sizeof why, "accepted with %llu validation images, fewer than %u",
                 (unsigned long long)samples, a->config.few_samples);
        agent_text(a, &r->reason, why);
    }
    if (a->config.accept_manual) {
        r->state = ISO_RS_OPERATOR;
        agent_save_release(a, r);
        agent_commit(a);
        a->pending.phase = PENDING_OPERATOR;
        agent_log(a, ISO_LOG_INFO, "release_waits", "number=%llu remedy=\"isofed releases accept\"",
                  (unsigned long long)r->number);
        return;
    }
    accept(a, r);
}

const agent_release_task *agent_trial_next(const iso_agent *a, const agent_release *r)
{
    for (size_t i = 0; i < r->task_count; i++) {
        const agent_task *t = task_by_id(a, r->tasks[i].task_id);
        if (!r->tasks[i].is_tried && t && t->has_data)
            return &r->tasks[i];
    }
    return NULL;
}

static agent_release *insert(iso_agent *a)
{
    agent_release *r = agent_grow(a, &a->releases, &a->release_count, sizeof *r);
    if (!r)
        return NULL;
    agent_release moved = a->pending.release;
    memset(&a->pending.release, 0, sizeof a->pending.release);
    size_t i = a->release_count - 1; /* in order of number */
    for (; i > 0 && a->releases[i - 1].number > moved.number; i--)
        a->releases[i] = a->releases[i - 1];
    a->releases[i] = moved;
    return &a->releases[i];
}

void agent_trial_fetched(iso_agent *a)
{
    agent_pending *p = &a->pending;
    const iso_buf *bufs[2] = {&p->manifest_text, &p->signature_text};
    for (int i = 0; i < 2; i++) {
        iso_agent_effect *x = agent_effect(a, ISO_AX_PUT_BLOB);
        x->data = agent_copy(a, bufs[i]->data, bufs[i]->size);
        x->data_bytes = bufs[i]->size;
        x->digest = i == 0 ? p->release.manifest : p->release.signature;
        agent_blob *b = agent_grow(a, &a->blobs, &a->blob_count, sizeof *b);
        if (!b)
            return;
        *b = (agent_blob){.digest = x->digest, .bytes = bufs[i]->size, .is_complete = true};
        agent_save_blob(a, b);
    }
    agent_release *r = insert(a);
    if (!r)
        return;
    if (r->number > a->highest_number)
        a->highest_number = r->number; /* I12 */
    agent_save_release(a, r);
    agent_save_meta(a); /* K7: only now does the number count as seen */
    agent_commit(a);
    a->offer.is_there = a->offer.is_there && a->offer.number != r->number;
    p->phase = PENDING_TRIAL;
    p->failures = 0;
    agent_log(a, ISO_LOG_INFO, "release_verified", "number=%llu files=%zu",
              (unsigned long long)r->number, r->file_count);
}

static void serve(iso_agent *a, const agent_release *r)
{
    for (size_t i = 0; i < a->config.task_count; i++)
        memset(a->tasks[i].serving, 0, sizeof a->tasks[i].serving);
    for (size_t i = 0; r && i < r->task_count; i++) {
        agent_task *t = task_by_id(a, r->tasks[i].task_id);
        if (!t)
            continue;
        t->serving[0] = r->tasks[i].val;
        t->serving[1] = r->tasks[i].test;
        if (!iso_digest_is_zero(&r->tasks[i].head))
            t->head = r->tasks[i].head;
    }
    for (size_t i = 0; i < a->config.task_count; i++)
        agent_save_task(a, &a->tasks[i]);
    agent_save_meta(a); /* K9: both pointers in one row */
    agent_commit(a);
    agent_effect(a, ISO_AX_SERVE)->number = a->current;
}

static void go_back(iso_agent *a, agent_release *r, const char *why)
{
    a->current = a->previous;
    a->previous = 0;
    r->state = ISO_RS_RETURNED;
    r->verdict = ISO_VERDICT_RETURNED;
    agent_text(a, &r->reason, why);
    agent_save_release(a, r);
    serve(a, a->current ? agent_find_release(a, a->current) : NULL);
    agent_effect(a, ISO_AX_UNINSTALL)->number = r->number;
    agent_log(a, ISO_LOG_ERROR, "release_returned", "number=%llu serving=%llu reason=\"%s\"",
              (unsigned long long)r->number, (unsigned long long)a->current, why);
    finish(a);
}

static void checked(iso_agent *a, agent_release *r)
{
    r->is_checked = true;
    agent_save_release(a, r);
    agent_commit(a);
    agent_log(a, ISO_LOG_INFO, "release_served",
              "number=%llu before=%.4f delivered=%.4f refitted=%.4f", (unsigned long long)r->number,
              (double)r->before, (double)r->delivered, (double)r->refitted);
    for (size_t i = 0; i < a->release_count; i++) {
        const agent_release *old = &a->releases[i];
        if (old->number != a->current && old->number != a->previous &&
            old->state == ISO_RS_ACCEPTED)
            agent_effect(a, ISO_AX_UNINSTALL)->number = old->number;
    }
    finish(a);
}

void agent_trial_installed(iso_agent *a, const iso_agent_event *ev)
{
    agent_pending *p = &a->pending;
    agent_release *r = agent_find_release(a, ev->number);
    if (p->phase != PENDING_INSTALL || !r || ev->number != p->number)
        return;
    p->is_installing = false;
    if (ev->code != ISO_OK) { /* the disk: what serves goes on serving, tried again later */
        uint32_t n = p->failures < 6 ? p->failures : 6;
        p->failures++;
        p->retry_ms = a->mono + ((uint64_t)RETRY_MS << n);
        agent_log(a, ISO_LOG_ERROR, "install_failed", "number=%llu reason=\"%s\"",
                  (unsigned long long)r->number, ev->text ? ev->text : "");
        return;
    }
    a->previous = a->current;
    a->current = r->number;
    serve(a, r);
    p->phase = PENDING_CHECK;
    p->check = 0;
    p->failures = 0;
}

static void inspected(iso_agent *a)
{
    agent_pending *p = &a->pending;
    if (++p->check >= p->release.task_count)
        agent_trial_fetched(a);
}

void agent_trial_done(iso_agent *a, const iso_trainer_event *ev)
{
    agent_pending *p = &a->pending;
    if (p->phase == PENDING_INSPECT) {
        inspected(a);
        return;
    }
    agent_release *r = agent_find_release(a, p->number);
    if (!r)
        return;
    if (p->phase == PENDING_TRIAL) {
        for (size_t i = 0; i < r->task_count; i++) {
            agent_release_task *t = &r->tasks[i];
            uint8_t id[16];
            agent_release_job_id(r->number, ISO_TRAINER_TRIAL, t->task_id, id);
            if (memcmp(id, ev->id, 16) != 0)
                continue;
            t->val = ev->val;
            t->test = ev->test;
            t->before = ev->val_before;
            t->output = ev->output;
            t->is_tried = true;
        }
        p->failures = 0;
    } else if (p->phase == PENDING_CHECK && p->check < r->task_count) {
        const agent_release_task *t = &r->tasks[p->check];
        if (!iso_digest_is_zero(&t->output) && !iso_digest_equal(&t->output, &ev->output))
            go_back(a, r, "a known input came out differently than in its trial");
        else
            p->check++;
    }
}

void agent_trial_failed(iso_agent *a, const iso_trainer_event *ev)
{
    agent_pending *p = &a->pending;
    if (!ev->is_final && ++p->failures < FAILURES_MAX) {
        p->retry_ms = a->mono + ((uint64_t)RETRY_MS << p->failures);
        return;
    }
    agent_release *r = NULL;
    if (p->phase == PENDING_INSPECT) {
        /* Signed, whole, and unusable: its number is spent, it is not tried again. */
        agent_trial_fetched(a);
        r = agent_find_release(a, p->number);
    } else {
        r = agent_find_release(a, p->number);
    }
    if (!r)
        return;
    if (p->phase == PENDING_CHECK)
        go_back(a, r, ev->sentence);
    else
        reject(a, r, ISO_VERDICT_UNVERIFIED, ev->sentence);
}

void agent_trial_accept(iso_agent *a, uint64_t number)
{
    agent_release *r = agent_find_release(a, number);
    if (r && r->state == ISO_RS_OPERATOR && a->pending.phase == PENDING_OPERATOR &&
        a->pending.number == number)
        accept(a, r);
}

void agent_trial_advance(iso_agent *a)
{
    agent_pending *p = &a->pending;
    agent_release *r = agent_find_release(a, p->number);
    if (p->phase == PENDING_NONE || !r)
        return;
    if (p->phase == PENDING_TRIAL) {
        bool is_waiting = false;
        for (size_t i = 0; i < r->task_count; i++) {
            const agent_task *t = task_by_id(a, r->tasks[i].task_id);
            if (!t || (t->has_data && t->train + t->val == 0))
                r->tasks[i].is_tried = true; /* nothing to try it on */
            is_waiting = is_waiting || !r->tasks[i].is_tried;
        }
        if (!is_waiting)
            decide(a, r);
    }
    if (p->phase == PENDING_INSTALL && !p->is_installing && a->mono >= p->retry_ms) {
        r = agent_find_release(a, p->number);
        iso_agent_install *i = agent_alloc(a, sizeof *i);
        iso_agent_file *files = agent_copy(a, r->files, r->file_count * sizeof *files);
        if (!i || !files)
            return;
        for (size_t k = 0; k < r->file_count; k++)
            files[k].path = agent_copy(a, r->files[k].path, strlen(r->files[k].path) + 1);
        *i = (iso_agent_install){.number = r->number,
                                 .manifest = r->manifest,
                                 .signature = r->signature,
                                 .files = files,
                                 .file_count = r->file_count};
        p->is_installing = true;
        agent_effect(a, ISO_AX_INSTALL)->release = i;
    }
    if (p->phase == PENDING_CHECK) {
        /* A task without an output (nothing to try) has nothing to compare. */
        while (p->check < r->task_count && iso_digest_is_zero(&r->tasks[p->check].output))
            p->check++;
        if (p->check >= r->task_count)
            checked(a, r);
    }
}

void agent_trial_restart(iso_agent *a)
{
    agent_pending *p = &a->pending;
    const agent_release *r = NULL;
    for (size_t i = 0; i < a->release_count; i++) {
        const agent_release *v = &a->releases[i];
        bool is_open = v->state == ISO_RS_FETCHED || v->state == ISO_RS_OPERATOR ||
                       (v->state == ISO_RS_ACCEPTED && !v->is_checked);
        if (is_open && v->number >= a->current)
            r = v;
    }
    if (a->current)
        agent_effect(a, ISO_AX_SERVE)->number = a->current;
    if (!r)
        return;
    p->number = r->number;
    p->manifest = r->manifest;
    if (r->state == ISO_RS_FETCHED)
        p->phase = PENDING_TRIAL;
    else if (r->state == ISO_RS_OPERATOR)
        p->phase = PENDING_OPERATOR;
    else if (r->number == a->current)
        p->phase = PENDING_CHECK; /* between K9 and the known input */
    else
        p->phase = PENDING_INSTALL;
}
