/* What an operator sees: sites, tasks, rounds, releases, status as JSON (users.md N2, F). Names are
 * checked at the door, sentences were written here; nothing of a payload is shown. */
#include "coordinator/inner.h"
#include "crypto/key.h"

#include <math.h>
#include <string.h>

static void set_text(iso_json *o, const char *key, const char *v)
{
    iso_json_set(o, key, iso_json_string(v));
}
static void set_int(iso_json *o, const char *key, uint64_t v)
{
    iso_json_set(o, key, iso_json_integer((int64_t)v));
}
static void set_real(iso_json *o, const char *key, double v)
{
    iso_json_set(o, key, iso_json_real(v)); /* NaN becomes null */
}
static void set_bool(iso_json *o, const char *key, bool v)
{
    iso_json_set(o, key, iso_json_boolean(v));
}
static void set_digest(iso_json *o, const char *key, const iso_digest *d)
{
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, d->b, ISO_DIGEST_BYTES);
    set_text(o, key, iso_digest_is_zero(d) ? "" : hex);
}

static iso_json *task_names(const iso_coord *c, uint64_t mask)
{
    iso_json *list = iso_json_array();
    for (size_t t = 0; t < c->config.task_count; t++)
        if (mask >> t & 1)
            iso_json_push(list, iso_json_string(c->config.tasks[t].name));
    return list;
}

static bool is_online(const iso_c_site *s)
{
    return s->peer && !s->peer->is_cut && s->peer->has_hello;
}

/* ---- sites ---- */

iso_json *iso_c_show_site(iso_coord *c, const iso_c_site *s, bool is_full)
{
    iso_json *o = iso_json_object();
    uint8_t fingerprint[ISO_FINGERPRINT_BYTES];
    char text[ISO_FINGERPRINT_TEXT], id[33];
    uint64_t updates = 0;
    for (size_t i = c->rounds_with_details; i < c->round_count; i++)
        for (size_t k = 0; k < c->rounds[i]->update_count; k++)
            updates += c->rounds[i]->updates[k]->site == s;
    iso_site_fingerprint(s->transport_pk, s->sign_pk, fingerprint);
    iso_fingerprint_text(fingerprint, text);
    iso_hex(id, s->id, 16);
    set_text(o, "name", s->name);
    set_text(o, "id", id);
    set_text(o, "state", iso_site_state_name(s->state));
    set_text(o, "fingerprint", text);
    set_bool(o, "online", is_online(s));
    if (s->seen_wall)
        set_int(o, "last_seen_ms", c->wall > s->seen_wall ? c->wall - s->seen_wall : 0);
    set_int(o, "release", s->serving);
    set_int(o, "updates", updates);
    set_int(o, "refusals", s->refused_total);
    set_text(o, "software", s->software);
    iso_json_set(o, "tasks", task_names(c, s->tasks));
    if (!is_full)
        return o;
    set_int(o, "enrolled_ms", s->enrolled_ms);
    set_int(o, "sequence", s->sequence);
    set_int(o, "verdict_of", s->verdict_number);
    set_text(o, "verdict", iso_verdict_name((iso_verdict)s->verdict));
    iso_json *decisions = iso_json_array();
    size_t shown = 0;
    for (size_t i = c->round_count; i > c->rounds_with_details && shown < 20; i--)
        for (size_t k = 0; k < c->rounds[i - 1]->update_count; k++) {
            const iso_c_update *u = c->rounds[i - 1]->updates[k];
            if (u->site != s)
                continue;
            iso_json *row = iso_json_object();
            set_int(row, "round", u->round);
            set_text(row, "code", iso_code_name(u->code));
            set_text(row, "sentence", u->sentence ? u->sentence : "");
            set_real(row, "score", (double)u->score);
            set_int(row, "samples", u->samples);
            iso_json_push(decisions, row);
            shown++;
        }
    iso_json_set(o, "decisions", decisions);
    return o;
}

/* ---- tasks ---- */

iso_json *iso_c_show_task(iso_coord *c, int task)
{
    const iso_c_task *s = &c->tasks[task];
    const iso_coord_task *t = s->config;
    iso_json *o = iso_json_object(), *classes = iso_json_array(), *sites = iso_json_array();
    char id[33];
    iso_hex(id, s->id, 16);
    set_text(o, "name", t->name);
    set_text(o, "id", id);
    for (size_t i = 0; i < t->class_count; i++)
        iso_json_push(classes, iso_json_string(t->classes[i]));
    iso_json_set(o, "classes", classes);
    for (size_t i = 0; i < c->site_count; i++)
        if (c->sites[i]->state != ISO_SITE_REVOKED && (c->sites[i]->tasks >> task & 1))
            iso_json_push(sites, iso_json_string(c->sites[i]->name));
    iso_json_set(o, "sites", sites);
    set_int(o, "rank", t->rank);
    set_int(o, "quorum", t->quorum);
    set_text(o, "head_mode", t->head_mode ? "joint" : "fixed");
    set_bool(o, "has_head", !iso_digest_is_zero(&s->head));
    set_digest(o, "head", &s->head);
    set_digest(o, "adapter", &s->adapter);
    set_int(o, "adapter_round", s->adapter_round);
    set_int(o, "adapter_rank", s->rank);
    set_int(o, "updates", s->updates);
    set_int(o, "samples", s->samples);
    set_real(o, "score", s->adapter_round ? s->own[0] : (double)NAN);
    for (int k = 0; k < METRICS; k++)
        if (!isnan(s->baseline[k]))
            set_real(o, iso_c_metric_names[k], s->baseline[k]);
    return o;
}

/* ---- rounds ---- */

static iso_json *show_update(const iso_coord *c, const iso_c_update *u)
{
    static const char *const verdicts[] = {"pending", "used", "refused", "late"};
    iso_json *o = iso_json_object();
    char id[33];
    iso_hex(id, u->id, 16);
    set_text(o, "id", id);
    set_text(o, "site", u->site->name);
    set_text(o, "task", u->task >= 0 ? c->config.tasks[u->task].name : "?");
    set_int(o, "samples", u->samples);
    set_real(o, "score", (double)u->score);
    set_int(o, "bytes", u->blob_bytes);
    set_int(o, "sequence", u->sequence);
    set_int(o, "committed_ms", u->committed_ms);
    set_int(o, "audit_seq", u->audit_seq);
    set_text(o, "verdict", verdicts[u->state]);
    set_text(o, "code", iso_code_name(u->code));
    set_text(o, "sentence", u->sentence ? u->sentence : "");
    return o;
}

static iso_json *show_candidates(const iso_coord *c, const iso_c_round *r)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < r->candidate_count; i++) {
        const iso_c_candidate *x = &r->candidates[i];
        iso_json *o = iso_json_object(), *tasks = iso_json_array();
        set_text(o, "method", x->method);
        set_text(o, "convention", x->convention);
        set_real(o, "alpha", x->alpha);
        set_real(o, "common_fraction", x->common_fraction);
        set_int(o, "rank_max", x->rank_max);
        set_digest(o, "manifest", &x->manifest);
        set_bool(o, "chosen", r->chosen == (int)i);
        if (x->is_judged) {
            set_bool(o, "passed", x->has_passed);
            set_real(o, "mean_normalised", x->mean);
            set_text(o, "reason", x->reason);
        }
        for (size_t t = 0; t < c->config.task_count; t++) {
            if (!(r->eval_tasks >> t & 1) || r->question_count == 0)
                continue;
            iso_json *row = iso_json_object();
            set_text(row, "task", c->config.tasks[t].name);
            for (uint32_t k = 0; k < r->metric_count; k++) {
                uint64_t samples;
                set_real(row, iso_c_metric_names[k],
                         iso_c_mean_score(r, (int)i, (int)t, (int)k, &samples));
                set_int(row, "samples", samples);
            }
            iso_json_push(tasks, row);
        }
        iso_json_set(o, "tasks", tasks);
        iso_json_push(list, o);
    }
    return list;
}

/* Every answer: candidate ("frozen" is the backbone with the task's head), site, task, metric. */
static iso_json *show_scores(const iso_coord *c, const iso_c_round *r)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < r->evaluator_count; i++)
        for (size_t k = 0; k < r->question_count; k++) {
            const iso_c_question *q = &r->questions[k];
            const iso_c_answer *a = &r->evaluators[i].answers[k];
            if (a->state != ANSWER_GIVEN)
                continue;
            iso_json *o = iso_json_object();
            set_text(o, "candidate",
                     q->candidate < 0 ? "frozen" : r->candidates[q->candidate].method);
            iso_json_set(o, "index", iso_json_integer(q->candidate));
            set_text(o, "site", r->evaluators[i].site->name);
            set_text(o, "task", c->config.tasks[q->task].name);
            set_text(o, "metric", iso_c_metric_names[q->metric]);
            set_real(o, "score", (double)a->score);
            set_int(o, "samples", a->samples);
            set_int(o, "outcome", a->outcome);
            iso_json_push(list, o);
        }
    return list;
}

static uint64_t span(uint64_t from, uint64_t to)
{
    return from && to > from ? to - from : 0;
}

static iso_json *show_timings(const iso_c_round *r)
{
    iso_json *o = iso_json_object();
    set_int(o, "opened_ms", r->opened_ms);
    set_int(o, "deadline_ms", r->deadline_ms);
    set_int(o, "closed_ms", r->closed_ms);
    set_int(o, "merged_ms", r->merged_ms);
    set_int(o, "judged_ms", r->judged_ms);
    set_int(o, "ended_ms", r->ended_ms);
    set_int(o, "collect", span(r->opened_ms, r->closed_ms));
    set_int(o, "merge", span(r->closed_ms, r->merged_ms));
    set_int(o, "evaluate", span(r->merged_ms, r->judged_ms));
    set_int(o, "sign", span(r->judged_ms, r->ended_ms));
    set_int(o, "worker", r->worker_ms);
    return o;
}

static iso_json *show_round_tasks(const iso_coord *c, const iso_c_round *r)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < r->task_count; i++) {
        const iso_c_round_task *t = &r->tasks[i];
        iso_json *o = iso_json_object();
        set_text(o, "name", c->config.tasks[t->task].name);
        set_int(o, "quorum", t->quorum);
        set_int(o, "updates", t->updates);
        set_bool(o, "left_out", t->is_out);
        set_text(o, "reason", t->reason);
        set_real(o, "score", t->score);
        set_real(o, "baseline", t->baseline);
        iso_json_push(list, o);
    }
    return list;
}

iso_json *iso_c_show_round(iso_coord *c, const iso_c_round *r, bool is_full)
{
    iso_json *o = iso_json_object();
    uint64_t mask = 0, asked = 0;
    for (size_t i = 0; i < r->task_count; i++)
        mask |= UINT64_C(1) << r->tasks[i].task;
    for (size_t i = 0; i < r->evaluator_count; i++)
        for (size_t k = 0; k < r->question_count; k++)
            asked += r->evaluators[i].answers[k].state != ANSWER_NONE;
    const iso_c_round *next = iso_c_round_by_number(c, r->number + 1);
    set_int(o, "number", r->number);
    set_text(o, "kind", iso_c_round_kind_name(r->kind));
    set_text(o, "state", iso_c_round_state_name(r->state));
    set_bool(o, "paused", r->is_paused);
    iso_json_set(o, "tasks", task_names(c, mask));
    set_int(o, "invited", r->invite_count ? r->invite_count : r->update_count);
    set_int(o, "asked", asked);
    set_int(o, "scores", asked - r->open_answers);
    set_int(o, "release", r->state == ROUND_RELEASED ? r->release : 0);
    set_text(o, "reason", r->reason);
    set_text(o, "follows",
             r->follow && next ? iso_c_text(c, "%llu", (unsigned long long)next->number) : "");
    if (r->state == ROUND_OPEN)
        set_int(o, "closes_in_ms", r->deadline > c->now ? r->deadline - c->now : 0);
    if (!is_full) {
        set_int(o, "updates", r->update_count);
        return o;
    }
    iso_json *updates = iso_json_array(), *invites = iso_json_array();
    for (size_t i = 0; i < r->update_count; i++)
        iso_json_push(updates, show_update(c, r->updates[i]));
    for (size_t i = 0; i < r->invite_count; i++) {
        static const char *const states[] = {"sent", "accepted", "declined"};
        const iso_c_invite *v = &r->invites[i];
        iso_json *row = iso_json_object();
        set_text(row, "site", v->site->name);
        set_text(row, "task", c->config.tasks[v->task].name);
        set_text(row, "state", v->update ? "answered" : states[v->state]);
        set_text(row, "reason", v->reason);
        iso_json_push(invites, row);
    }
    iso_json_set(o, "updates", updates);
    iso_json_set(o, "invites", invites);
    iso_json_set(o, "by_task", show_round_tasks(c, r));
    iso_json_set(o, "candidates", show_candidates(c, r));
    iso_json_set(o, "evaluations", show_scores(c, r));
    iso_json_set(o, "timings", show_timings(r));
    return o;
}

/* ---- releases ---- */

iso_json *iso_c_show_release(iso_coord *c, const iso_c_release *r, bool is_full)
{
    iso_json *o = iso_json_object(), *tasks = iso_json_array();
    set_int(o, "number", r->number);
    set_text(o, "kind", r->rollback_of ? "rollback" : "merge");
    set_text(o, "method", r->method);
    set_text(o, "convention", r->convention);
    for (size_t i = 0; i < r->task_count; i++) {
        int t = iso_c_task_by_id(c, r->tasks[i].task_id);
        iso_json_push(tasks, iso_json_string(t >= 0 ? c->config.tasks[t].name : "?"));
    }
    iso_json_set(o, "tasks", tasks);
    set_int(o, "bytes", r->total_bytes);
    set_int(o, "accepted", r->accepted);
    set_int(o, "rejected", r->rejected);
    set_bool(o, "is_current", iso_c_release_current(c) == r);
    set_int(o, "round", r->round);
    set_int(o, "rollback_of", r->rollback_of);
    set_int(o, "created_ms", r->created_ms);
    set_int(o, "valid_until_ms", r->valid_until_ms);
    set_text(o, "reason", r->reason);
    set_digest(o, "manifest", &r->manifest);
    set_digest(o, "signature", &r->signature);
    if (!is_full)
        return o;
    iso_json *files = iso_json_array(), *scores = iso_json_array();
    for (size_t i = 0; i < r->file_count; i++) {
        iso_json *row = iso_json_object();
        set_text(row, "path", r->files[i].path);
        set_int(row, "size", r->files[i].bytes);
        set_digest(row, "digest", &r->files[i].digest);
        iso_json_push(files, row);
    }
    for (size_t i = 0; i < r->task_count; i++) {
        const iso_c_release_task *t = &r->tasks[i];
        iso_json *row = iso_json_object();
        int task = iso_c_task_by_id(c, t->task_id);
        set_text(row, "task", task >= 0 ? c->config.tasks[task].name : "?");
        for (int k = 0; k < METRICS; k++)
            set_real(row, iso_c_metric_names[k], t->score[k]);
        set_real(row, "baseline", t->baseline);
        set_int(row, "samples", t->samples);
        set_int(row, "updates", t->updates);
        iso_json_push(scores, row);
    }
    iso_json_set(o, "files", files);
    iso_json_set(o, "scores", scores);
    return o;
}

iso_json *iso_c_show_status(iso_coord *c)
{
    iso_json *o = iso_json_object();
    iso_coord_stats s;
    iso_coord_get_stats(c, &s);
    uint64_t active = 0, online = 0;
    for (size_t i = 0; i < c->site_count; i++) {
        active += c->sites[i]->state == ISO_SITE_ACTIVE;
        online += is_online(c->sites[i]);
    }
    char federation[33];
    iso_hex(federation, c->identity.federation, 16);
    set_text(o, "federation_name", c->config.name ? c->config.name : "");
    set_text(o, "federation", federation);
    set_text(o, "endpoint", iso_c_text(c, "tcp://%s:%u", c->host, c->port));
    set_int(o, "uptime_ms", c->now - c->started);
    set_int(o, "sites", c->site_count);
    set_int(o, "sites_active", active);
    set_int(o, "sites_online", online);
    set_int(o, "round", s.round ? s.round : c->round_count);
    const iso_c_round *last = iso_c_round_by_number(c, s.round ? s.round : c->round_count);
    set_text(o, "round_state", last ? iso_c_round_state_name(last->state) : "none");
    set_int(o, "release", s.release);
    set_int(o, "updates_acknowledged", s.receipts);
    set_int(o, "updates_used", s.used);
    set_int(o, "updates_refused", s.refused);
    set_int(o, "updates_pending", s.pending);
    set_int(o, "uploads", s.uploads);
    set_int(o, "refusals", s.refusals);
    if (c->is_disk_known)
        set_int(o, "disk_free_bytes", c->disk_free);
    set_int(o, "audit_seq", s.audit_seq);
    set_digest(o, "audit_head", &s.audit_head);
    set_int(o, "generation", c->identity.generation);
    set_digest(o, "generation_digest", &c->identity.generation_digest);
    set_int(o, "damaged_blobs", c->damaged_count);
    return o;
}
