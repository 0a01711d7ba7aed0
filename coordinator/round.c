/* A round: open, invite, collect, close, end (specs/security.md C3, C7; FED states).
 *
 * OPEN -> MERGING -> EVALUATING -> SIGNING -> RELEASED, or HELD, ABORTED, FAILED; a round that only
 * makes heads ends DONE after MERGING and the adapters' round follows by itself. jobs.c,
 * evaluate.c, gate.c and release.c carry on after the close. */
#include "coordinator/inner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *iso_c_round_state_name(iso_c_round_state s)
{
    static const char *const names[] = {"?",    "open",     "merging", "evaluating", "signing",
                                        "held", "released", "done",    "aborted",    "failed"};
    return (size_t)s < sizeof names / sizeof names[0] ? names[s] : "?";
}

const char *iso_c_round_kind_name(iso_c_round_kind k)
{
    static const char *const names[] = {"?", "head", "adapter", "rollback"};
    return (size_t)k < sizeof names / sizeof names[0] ? names[k] : "?";
}

bool iso_c_round_has_ended(const iso_c_round *r)
{
    return r->state >= ROUND_RELEASED;
}

iso_c_round *iso_c_round_active(const iso_coord *c)
{
    iso_c_round *last = c->round_count ? c->rounds[c->round_count - 1] : NULL;
    return last && !iso_c_round_has_ended(last) ? last : NULL;
}

iso_c_round *iso_c_round_by_number(const iso_coord *c, uint64_t number)
{
    /* Numbers rise by one from 1, so a number is a place. */
    if (number == 0 || number > c->round_count || c->rounds[number - 1]->number != number)
        return NULL;
    return c->rounds[number - 1];
}

iso_c_round *iso_c_round_new(iso_coord *c, uint64_t number)
{
    iso_c_round *r = iso_calloc(1, sizeof *r);
    if (!r || !iso_c_push(c, (void ***)&c->rounds, &c->round_count, &c->round_capacity, r)) {
        c->is_out_of_memory = true;
        free(r);
        return NULL;
    }
    r->number = number;
    r->chosen = -1;
    return r;
}

void iso_c_update_free(iso_c_update *u)
{
    free(u->sentence);
    free(u->raw);
    free(u);
}

static void free_details(iso_c_round *r)
{
    for (size_t i = 0; i < r->update_count; i++)
        iso_c_update_free(r->updates[i]);
    for (size_t i = 0; i < r->evaluator_count; i++)
        free(r->evaluators[i].answers);
    free(r->updates);
    free(r->evaluators);
    free(r->questions);
    r->updates = NULL;
    r->evaluators = NULL;
    r->questions = NULL;
    r->update_count = r->update_capacity = r->evaluator_count = r->question_count = 0;
}

void iso_c_round_free(iso_c_round *r)
{
    free_details(r);
    free(r->invites);
    free(r->candidates);
    free(r);
}

iso_c_round_task *iso_c_round_task_of(iso_c_round *r, int task)
{
    for (size_t i = 0; i < r->task_count; i++)
        if (r->tasks[i].task == task)
            return &r->tasks[i];
    return NULL;
}

bool iso_c_round_add_update(iso_coord *c, iso_c_round *r, iso_c_update *u)
{
    if (!iso_index_put(&c->update_by_id, u->id, u) ||
        !iso_c_push(c, (void ***)&r->updates, &r->update_count, &r->update_capacity, u)) {
        c->is_out_of_memory = true;
        return false;
    }
    return true;
}

/* ---- opening: C3 ---- */

iso_err iso_c_round_open(iso_coord *c, uint64_t tasks, const char *by, iso_c_round **out,
                         iso_error *e)
{
    iso_c_round *active = iso_c_round_active(c);
    if (active && active->state == ROUND_HELD)
        iso_c_round_end(c, active, ROUND_ABORTED, "superseded by a new round");
    else if (active)
        return iso_fail(e, ISO_ERR_NO, "round %llu is %s: one round at a time",
                        (unsigned long long)active->number, iso_c_round_state_name(active->state));
    uint64_t headless = 0;
    for (size_t t = 0; t < c->config.task_count; t++) {
        if (!(tasks >> t & 1))
            continue;
        bool has_site = false;
        for (size_t i = 0; i < c->site_count && !has_site; i++)
            has_site = iso_c_policy_may_invite(c, c->sites[i], (int)t);
        if (!has_site)
            return iso_fail(e, ISO_ERR_NO, "task %s has no active site", c->config.tasks[t].name);
        if (iso_digest_is_zero(&c->tasks[t].head))
            headless |= UINT64_C(1) << t;
    }
    if (tasks == 0)
        return iso_fail(e, ISO_ERR_USAGE, "a round needs a task");
    uint64_t mine = headless ? headless : tasks;
    iso_c_round *r = iso_c_round_new(c, c->round_count + 1);
    if (!r)
        return iso_nomem(e, sizeof *r);
    r->kind = headless ? ROUND_HEAD : ROUND_ADAPTER;
    r->state = ROUND_OPEN;
    r->follow = headless ? tasks : 0;
    r->opened_ms = c->wall;
    r->deadline_ms = c->wall + c->config.deadline_ms;
    r->deadline = c->now + c->config.deadline_ms;
    for (size_t t = 0; t < c->config.task_count; t++)
        if (mine >> t & 1)
            r->tasks[r->task_count++] = (iso_c_round_task){.task = (int)t,
                                                           .quorum = c->config.tasks[t].quorum,
                                                           .score = (double)NAN,
                                                           .baseline = (double)NAN};
    if (!iso_c_invites_make(c, r, mine)) {
        c->is_out_of_memory = true;
        return iso_nomem(e, 0);
    }
    c->stats.rounds++;
    if (r->kind == ROUND_ADAPTER)
        c->auto_rounds++;
    iso_c_save_round(c, r, ISO_OP_INSERT);
    for (size_t i = 0; i < r->invite_count; i++)
        iso_c_save_invite(c, r, &r->invites[i], ISO_OP_INSERT);
    iso_c_audit(c, ISO_AUDIT_ROUND, NULL, NULL,
                "\"by\":\"%s\",\"invites\":%zu,\"kind\":\"%s\",\"round\":%llu,\"state\":\"open\"",
                iso_c_quote(c, by), r->invite_count, iso_c_round_kind_name(r->kind),
                (unsigned long long)r->number);
    iso_c_save_meta(c);
    iso_c_log(c, ISO_LOG_INFO, "round_open", "round=%llu kind=%s tasks=%zu invites=%zu by=\"%s\"",
              (unsigned long long)r->number, iso_c_round_kind_name(r->kind), r->task_count,
              r->invite_count, iso_c_quote(c, by));
    for (size_t i = 0; i < r->invite_count; i++)
        if (i == 0 || r->invites[i].site != r->invites[i - 1].site) {
            iso_c_round_send_invites(c, r, r->invites[i].site);
            r->invites[i].site->offered = c->now;
        }
    if (out)
        *out = r;
    return ISO_OK;
}

/* ---- updates' fates ---- */

void iso_c_update_judge(iso_coord *c, iso_c_update *u, iso_update_state state, iso_code code,
                        const char *sentence)
{
    if (u->state != ISO_UPDATE_PENDING)
        return; /* used once or refused once, never again (I1) */
    u->state = state;
    u->code = state == ISO_UPDATE_USED ? ISO_CODE_OK : code;
    if (state != ISO_UPDATE_USED) {
        free(u->sentence);
        char text[SENTENCE_BYTES];
        snprintf(text, sizeof text, "%s", sentence);
        u->sentence = iso_strdup(text);
        iso_c_notify(c, u->site, code, u->id, text);
        iso_c_audit(c, ISO_AUDIT_REFUSED, u->site->id, &u->header_digest,
                    "\"code\":\"%s\",\"round\":%llu", iso_code_name(code),
                    (unsigned long long)u->round);
        iso_c_log(c, ISO_LOG_WARN, "update_refused", "site=%s round=%llu code=%s why=\"%s\"",
                  u->site->name, (unsigned long long)u->round, iso_code_name(code),
                  iso_c_quote(c, text));
    }
    iso_c_save_update(c, u, ISO_OP_PUT);
}

void iso_c_round_committed(iso_coord *c, iso_c_update *u)
{
    iso_c_round *r = iso_c_round_by_number(c, u->round);
    iso_c_round_task *t = iso_c_round_task_of(r, u->task);
    iso_c_invite *v = iso_c_invite_of(r, u->site, u->task);
    if (v && !v->update) {
        r->unanswered -= v->state != INVITE_DECLINED;
        v->update = u;
    }
    if (t)
        t->updates++;
}

static void refuse_pending(iso_coord *c, iso_c_round *r, int task, iso_code code, const char *why)
{
    for (size_t i = 0; i < r->update_count; i++)
        if (task < 0 || r->updates[i]->task == task)
            iso_c_update_judge(c, r->updates[i], ISO_UPDATE_REFUSED, code, why);
}

/* ---- ends ---- */

void iso_c_round_end(iso_coord *c, iso_c_round *r, iso_c_round_state state, const char *reason)
{
    bool is_bad = state == ROUND_ABORTED || state == ROUND_FAILED;
    r->state = state;
    r->ended_ms = c->wall;
    if (reason)
        snprintf(r->reason, sizeof r->reason, "%s", reason);
    if (is_bad) {
        refuse_pending(c, r, -1, ISO_CODE_ROUND_CLOSED, r->reason);
        /* Both sides agree when something ended (U33). */
        for (size_t i = 0; i < r->invite_count; i++)
            if (!r->invites[i].update && r->invites[i].state != INVITE_DECLINED)
                iso_c_notify(c, r->invites[i].site, ISO_CODE_ROUND_CLOSED, NULL,
                             iso_c_text(c, "round %llu %s: %s", (unsigned long long)r->number,
                                        iso_c_round_state_name(state), r->reason));
    }
    for (size_t i = 0; i < r->invite_count; i++) {
        iso_c_delete_invite(c, r, &r->invites[i]);
        r->invites[i].site->invite_count = 0;
    }
    free(r->invites);
    r->invites = NULL;
    r->invite_count = r->unanswered = 0;
    for (size_t i = 0; i < r->update_count; i++) { /* kept on disk, not needed in memory */
        free(r->updates[i]->raw);
        r->updates[i]->raw = NULL;
    }
    iso_c_save_round(c, r, ISO_OP_PUT);
    iso_c_audit(c, ISO_AUDIT_ROUND, NULL, NULL, "\"reason\":\"%s\",\"round\":%llu,\"state\":\"%s\"",
                iso_c_quote(c, r->reason), (unsigned long long)r->number,
                iso_c_round_state_name(state));
    iso_c_log(c, is_bad ? ISO_LOG_WARN : ISO_LOG_INFO, "round_ended",
              "round=%llu state=%s reason=\"%s\"", (unsigned long long)r->number,
              iso_c_round_state_name(state), iso_c_quote(c, r->reason));
    c->auto_not_before = c->now + c->config.interval_ms;
    bool had_job = r->has_job;
    r->has_job = false;
    iso_c_uploads_drop(c, NULL, r->number, ISO_CODE_ROUND_CLOSED, "the round has ended");
    if (had_job) {
        iso_coord_effect *x = iso_c_emit(c, ISO_CX_JOB_CANCEL);
        memcpy(x->id, r->job, 16);
    }
    iso_c_rounds_retire(c);
}

void iso_c_round_hold(iso_coord *c, iso_c_round *r, const char *reason)
{
    r->state = ROUND_HELD;
    snprintf(r->reason, sizeof r->reason, "%s", reason);
    iso_c_save_round(c, r, ISO_OP_PUT);
    iso_c_audit(c, ISO_AUDIT_ROUND, NULL, NULL,
                "\"reason\":\"%s\",\"round\":%llu,\"state\":\"held\"", iso_c_quote(c, r->reason),
                (unsigned long long)r->number);
    iso_c_log(c, ISO_LOG_WARN, "round_held", "round=%llu reason=\"%s\"",
              (unsigned long long)r->number, iso_c_quote(c, r->reason));
}

iso_err iso_c_round_abort(iso_coord *c, iso_c_round *r, const char *by, const char *reason,
                          iso_error *e)
{
    if (iso_c_round_has_ended(r))
        return iso_fail(e, ISO_ERR_NO, "round %llu is %s already", (unsigned long long)r->number,
                        iso_c_round_state_name(r->state));
    iso_c_round_end(c, r, ROUND_ABORTED,
                    iso_c_text(c, "aborted by operator %s%s%s", by, reason[0] ? ": " : "", reason));
    return ISO_OK;
}

iso_err iso_c_round_pause(iso_coord *c, iso_c_round *r, bool is_paused, const char *by,
                          iso_error *e)
{
    if (r->state != ROUND_OPEN || r->is_paused == is_paused)
        return iso_fail(e, ISO_ERR_NO, "round %llu is %s%s", (unsigned long long)r->number,
                        iso_c_round_state_name(r->state), r->is_paused ? ", paused" : "");
    r->is_paused = is_paused;
    if (is_paused) {
        r->paused_at = c->now;
    } else { /* time that stood still does not count */
        r->deadline += c->now - r->paused_at;
        r->deadline_ms += c->now - r->paused_at;
    }
    iso_c_save_round(c, r, ISO_OP_PUT);
    iso_c_audit(c, ISO_AUDIT_ROUND, NULL, NULL, "\"by\":\"%s\",\"round\":%llu,\"state\":\"%s\"",
                iso_c_quote(c, by), (unsigned long long)r->number,
                is_paused ? "paused" : "resumed");
    for (size_t i = 0; !is_paused && i < r->invite_count; i++)
        if (i == 0 || r->invites[i].site != r->invites[i - 1].site)
            iso_c_round_send_invites(c, r, r->invites[i].site);
    return ISO_OK;
}

/* ---- closing: C7 ---- */

static int compare_digests(const void *a, const void *b)
{
    return memcmp(a, b, ISO_DIGEST_BYTES);
}

/* The input set is what is pending now: after this step no begin of this round passes row 5. Named
 * by the digest of its headers' digests in order, so that the order of arrival does not matter
 * (U36).
 */
static iso_digest input_set(iso_coord *c, const iso_c_round *r)
{
    size_t count = 0;
    iso_digest *set = iso_c_alloc(c, r->update_count + 1, sizeof *set);
    if (!set)
        return (iso_digest){{0}};
    for (size_t i = 0; i < r->update_count; i++)
        if (r->updates[i]->state == ISO_UPDATE_PENDING)
            set[count++] = r->updates[i]->header_digest;
    qsort(set, count, sizeof *set, compare_digests);
    return c->sealer.digest(c->sealer.ctx, set, count * sizeof *set);
}

static void close_round(iso_coord *c, iso_c_round *r, iso_c_close why)
{
    size_t left = 0, updates = 0;
    r->closed_ms = c->wall;
    for (size_t i = 0; i < r->update_count; i++)
        if (r->updates[i]->site->state == ISO_SITE_QUARANTINED)
            iso_c_update_judge(c, r->updates[i], ISO_UPDATE_REFUSED, ISO_CODE_QUARANTINED,
                               "quarantined: updates are kept, not used");
    for (size_t i = 0; i < r->task_count; i++) {
        iso_c_round_task *t = &r->tasks[i];
        uint32_t pending = 0;
        for (size_t k = 0; k < r->update_count; k++)
            pending += r->updates[k]->task == t->task && r->updates[k]->state == ISO_UPDATE_PENDING;
        t->updates = pending;
        if (pending >= t->quorum && pending > 0) {
            left++;
            updates += pending;
            continue;
        }
        t->is_out = true;
        snprintf(t->reason, sizeof t->reason, "%u of %u updates at the %s", pending, t->quorum,
                 why == CLOSE_DEADLINE ? "deadline" : "close");
        refuse_pending(c, r, t->task, ISO_CODE_ROUND_CLOSED,
                       iso_c_text(c, "task %s is left out of round %llu: %s",
                                  c->config.tasks[t->task].name, (unsigned long long)r->number,
                                  t->reason));
    }
    if (left == 0) {
        iso_c_round_end(c, r, ROUND_FAILED, "no task reached its quorum");
        return;
    }
    iso_digest set = input_set(c, r);
    r->state = ROUND_MERGING;
    iso_c_audit(c, ISO_AUDIT_INPUT_SET, NULL, &set, "\"round\":%llu,\"updates\":%zu",
                (unsigned long long)r->number, updates);
    iso_c_log(c, ISO_LOG_INFO, "round_closed", "round=%llu tasks=%zu updates=%zu by=%s",
              (unsigned long long)r->number, left, updates,
              why == CLOSE_DEADLINE ? "deadline" : "answers");
    iso_c_start_job(c, r); /* saves the round with its job: one transaction */
    iso_c_uploads_drop(c, NULL, r->number, ISO_CODE_ROUND_CLOSED, "the round has closed");
}

void iso_c_round_tick(iso_coord *c)
{
    iso_c_round *r = iso_c_round_active(c);
    if (r && r->state == ROUND_OPEN && !r->is_paused) {
        iso_c_close why = iso_c_policy_close(c, r);
        if (why != CLOSE_NOT_YET && !iso_c_uploads_storing(c, r->number))
            close_round(c, r, why);
    }
    if (r && r->state == ROUND_EVALUATING && iso_c_evaluate_is_complete(c, r))
        iso_c_gate(c, r);
    if (r || c->config.trigger != ISO_TRIGGER_AUTO || c->now < c->auto_not_before ||
        c->is_stopping || (c->config.max_rounds && c->auto_rounds >= c->config.max_rounds))
        return;
    uint64_t ready = iso_c_policy_ready(c);
    iso_error e;
    if (ready && iso_c_round_open(c, ready, "policy", NULL, &e) != ISO_OK) {
        iso_c_log(c, ISO_LOG_WARN, "round_not_opened", "why=\"%s\"", iso_c_quote(c, e.text));
        c->auto_not_before = c->now + 60000u;
    }
}

void iso_c_round_resume(iso_coord *c, iso_c_round *r)
{
    iso_c_invites_index(r);
    for (size_t i = 0; i < r->update_count; i++) {
        iso_c_invite *v = iso_c_invite_of(r, r->updates[i]->site, r->updates[i]->task);
        if (v)
            v->update = r->updates[i];
    }
    iso_c_invites_index(r);
    uint64_t left = r->deadline_ms > c->wall ? r->deadline_ms - c->wall : 0;
    r->deadline = c->now + (left < c->config.deadline_ms ? left : c->config.deadline_ms);
    r->eval_deadline = c->now + c->config.evaluate_timeout_ms;
    r->paused_at = c->now;
    iso_c_log(c, ISO_LOG_INFO, "round_resumed", "round=%llu state=%s updates=%zu of %zu",
              (unsigned long long)r->number, iso_c_round_state_name(r->state), r->update_count,
              r->invite_count);
    if (r->has_job)
        iso_c_start_job(c, r);
}

/* ---- C13: what old rounds keep ---- */

void iso_c_rounds_retire(iso_coord *c)
{
    size_t keep = c->config.keep_rounds ? c->config.keep_rounds : 1;
    if (c->round_count <= keep || c->rounds_with_details >= c->round_count - keep)
        return;
    iso_c_round *r = c->rounds[c->rounds_with_details];
    if (!iso_c_round_has_ended(r))
        return;
    iso_digest *gone = iso_c_alloc(c, r->update_count + 5 * r->candidate_count, sizeof *gone);
    size_t count = 0;
    if (!gone)
        return;
    for (size_t i = 0; i < r->update_count; i++) {
        iso_c_update *u = r->updates[i];
        c->retired_receipts++;
        c->retired_used += u->state == ISO_UPDATE_USED;
        c->retired_refused += u->state == ISO_UPDATE_REFUSED;
        iso_c_delete_update(c, u);
        iso_index_remove(&c->update_by_id, u->id);
        gone[count++] = u->blob;
    }
    for (size_t i = 0; i < r->evaluator_count; i++)
        for (size_t k = 0; k < r->question_count; k++)
            if (r->evaluators[i].answers[k].state == ANSWER_GIVEN)
                iso_c_delete_score(c, r, &r->questions[k], r->evaluators[i].site);
    for (size_t i = 0; i < r->candidate_count; i++) {
        gone[count++] = r->candidates[i].manifest;
        for (uint32_t k = 0; k < r->candidates[i].file_count; k++)
            gone[count++] = r->candidates[i].files[k].digest;
    }
    free_details(r);
    c->rounds_with_details++;
    iso_c_save_round(c, r, ISO_OP_PUT);
    iso_c_save_meta(c);
    iso_c_flush(c); /* rows first, then files */
    iso_c_delete_blobs_unless_live(c, gone, count);
}
