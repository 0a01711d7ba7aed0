/* What the control socket answers: status, releases, and the operator's few commands (U16, U23,
 * U32, U64, U68). */
#include "client/daemon.h"

#include "core/progress.h"

#include <stdio.h>
#include <string.h>

static iso_json *hex_of(const uint8_t *bytes, size_t n)
{
    char text[2 * 32 + 1];
    iso_hex(text, bytes, n);
    return iso_json_string(text);
}

static void set_count(iso_json *o, const char *key, uint64_t v)
{
    iso_json_set(o, key, iso_json_integer(v > INT64_MAX ? INT64_MAX : (int64_t)v));
}

static const char *job_name(iso_trainer_job_kind kind)
{
    switch (kind) {
    case ISO_TRAINER_HEAD:
        return "fitting the probe";
    case ISO_TRAINER_TRAIN:
        return "training";
    case ISO_TRAINER_EVALUATE:
        return "scoring a candidate";
    case ISO_TRAINER_INSPECT:
        return "looking into a release";
    case ISO_TRAINER_TRIAL:
        return "trying a release";
    case ISO_TRAINER_CHECK:
        return "checking the swap";
    }
    return "working";
}

static const char *task_name(const iso_daemon *d, const uint8_t id[16])
{
    for (size_t i = 0; i < d->config.data_count; i++)
        if (memcmp(d->tasks[i].id, id, 16) == 0)
            return d->tasks[i].name;
    return "";
}

/* One line: what the link does, since when, and what comes next (rule 3 of users.md O). */
static void link_text(const iso_daemon *d, const iso_agent_status *s, iso_time now, char *out,
                      size_t out_bytes)
{
    char since[32], next[32];
    iso_duration_text(since, sizeof since, (double)(now - s->since_ms) / 1000.0);
    if (s->state != ISO_AS_OFFLINE) {
        snprintf(out, out_bytes, "%s for %s%s", iso_agent_state_name(s->state), since,
                 s->site == ISO_SITE_PENDING ? ", waiting for the operator's approval" : "");
        return;
    }
    iso_time left = s->next_try_ms > now ? s->next_try_ms - now : 0;
    iso_duration_text(next, sizeof next, (double)left / 1000.0);
    snprintf(out, out_bytes, "%s %s:%u for %s, next try in %s%s%s",
             s->is_not_admitted ? "not admitted by" : "waiting for", d->enrolment.host,
             d->enrolment.port, since, next, *s->link_reason ? ": " : "", s->link_reason);
}

static iso_json *link_json(const iso_daemon *d, const iso_agent_status *s, iso_time now)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "state", iso_json_string(iso_agent_state_name(s->state)));
    set_count(o, "since_ms", now - s->since_ms);
    set_count(o, "next_try_ms",
              s->state == ISO_AS_OFFLINE && s->next_try_ms > now ? s->next_try_ms - now : 0);
    iso_json_set(o, "reason", iso_json_string(s->link_reason));
    iso_json_set(o, "admitted", iso_json_boolean(!s->is_not_admitted));
    iso_json_set(o, "host", iso_json_string(d->enrolment.host));
    set_count(o, "port", d->enrolment.port);
    if (s->is_clock_known)
        iso_json_set(o, "clock_offset_ms", iso_json_integer(s->clock_offset_ms));
    return o;
}

static iso_json *outbox_json(const iso_agent_status *s)
{
    iso_json *o = iso_json_object();
    set_count(o, "waiting", s->outbox_waiting);
    set_count(o, "bytes", s->outbox_bytes);
    set_count(o, "acknowledged", s->outbox_acknowledged);
    set_count(o, "refused", s->outbox_refused);
    set_count(o, "sent_chunks", s->sent_chunks);
    set_count(o, "chunks", s->chunk_total);
    return o;
}

static iso_json *release_json(const iso_agent_status *s)
{
    iso_json *o = iso_json_object();
    set_count(o, "serving", s->release);
    set_count(o, "previous", s->release_previous);
    set_count(o, "highest", s->release_highest);
    set_count(o, "pending", s->release_pending);
    iso_json_set(o, "phase", iso_json_string(s->release_phase));
    set_count(o, "bytes", s->release_bytes);
    set_count(o, "bytes_total", s->release_bytes_total);
    iso_json_set(o, "expired", iso_json_boolean(s->is_release_expired));
    iso_json_set(o, "head_old", iso_json_boolean(s->is_head_old));
    iso_json_set(o, "history_conflict", iso_json_boolean(s->has_conflict));
    return o;
}

static iso_json *training_json(const iso_daemon *d, const iso_agent_status *s)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "work", iso_json_string(job_name(s->job_kind)));
    iso_json_set(o, "task", iso_json_string(task_name(d, s->job_task)));
    set_count(o, "round", s->job_round);
    set_count(o, "step", s->step);
    set_count(o, "steps", s->steps);
    set_count(o, "checkpoint_step", s->checkpoint_step);
    iso_json_set(o, "loss", iso_json_real((double)s->loss));
    return o;
}

static void set_score(iso_json *o, const char *key, const iso_score *s)
{
    if (s->is_known)
        iso_json_set(o, key, iso_json_real((double)s->value));
}

/* {"val": 0.71, "test": 0.69}: what is not known is left out. */
static iso_json *pair_of(const iso_score_pair by_split[2], bool is_refitted)
{
    static const char *const splits[2] = {"val", "test"};
    iso_json *o = iso_json_object();
    for (int i = 0; i < 2; i++)
        set_score(o, splits[i], is_refitted ? &by_split[i].refitted : &by_split[i].delivered);
    return o;
}

static iso_json *task_json(const iso_daemon *d, size_t i)
{
    iso_agent_task_status t;
    iso_json *o = iso_json_object();
    iso_agent_get_task(d->agent, i, &t);
    iso_json_set(o, "task", iso_json_string(t.name));
    set_count(o, "images", t.train + t.val + t.test);
    set_count(o, "train", t.train);
    set_count(o, "val", t.val);
    set_count(o, "test", t.test);
    set_count(o, "image_bytes", t.data_bytes);
    set_count(o, "images_skipped", d->skipped[i]);
    set_count(o, "round", t.round);
    set_count(o, "classes", t.classes);
    iso_json_set(o, "phase", iso_json_string(t.phase));
    iso_json_set(o, "reason", iso_json_string(t.reason));
    if (t.classes)
        iso_json_set(o, "chance", iso_json_real((double)t.chance));
    /* probe: the strongest head on the frozen features; probe_head: the one that was sent. */
    iso_json_set(o, "probe", pair_of(t.probe, true));
    iso_json_set(o, "probe_head", pair_of(t.probe, false));
    iso_json_set(o, "own", pair_of(t.own, false));
    iso_json_set(o, "own_refit", pair_of(t.own, true));
    iso_json_set(o, "delivered", pair_of(t.serving, false));
    iso_json_set(o, "refit", pair_of(t.serving, true));
    set_score(o, "probe_val", &t.probe[0].refitted);
    set_score(o, "own_val", &t.own[0].delivered);
    set_score(o, "delivered_val", &t.serving[0].delivered);
    set_score(o, "refit_val", &t.serving[0].refitted);
    return o;
}

static iso_json *status(const iso_daemon *d)
{
    iso_agent_status s;
    iso_time now = d->clock.mono_ms(d->clock.ctx);
    iso_json *o = iso_json_object(), *tasks = iso_json_array();
    char text[512];
    uint64_t sent, received, images = 0, bytes = 0;
    uint8_t print[ISO_FINGERPRINT_BYTES];
    char fingerprint[ISO_FINGERPRINT_TEXT];
    iso_agent_get_status(d->agent, &s);
    iso_link_bytes(d->link, &sent, &received);
    iso_json_set(o, "program", iso_json_string("isofed-client"));
    iso_json_set(o, "version", iso_json_string(ISO_VERSION));
    set_count(o, "uptime_ms", now - d->started_ms);
    iso_json_set(o, "name", iso_json_string(d->enrolment.name));
    iso_json_set(o, "site", hex_of(d->enrolment.site_id, 16));
    iso_site_fingerprint(d->transport.public_key, d->sign.public_key, print);
    iso_fingerprint_text(print, fingerprint);
    iso_json_set(o, "fingerprint", iso_json_string(fingerprint));
    iso_json_set(o, "site_state", iso_json_string(iso_site_state_name(s.site)));
    iso_json_set(o, "keys_bare", iso_json_boolean(d->sign.is_bare || d->transport.is_bare));
    link_text(d, &s, now, text, sizeof text);
    iso_json_set(o, "link", iso_json_string(text));
    iso_json_set(o, "link_detail", link_json(d, &s, now));
    set_count(o, "release", s.release);
    iso_json_set(o, "release_detail", release_json(&s));
    set_count(o, "outbox", s.outbox_waiting);
    iso_json_set(o, "outbox_detail", outbox_json(&s));
    if (s.is_training && s.steps)
        snprintf(text, sizeof text, "%s %s, step %llu of %llu (checkpoint %llu)",
                 job_name(s.job_kind), task_name(d, s.job_task), (unsigned long long)s.step,
                 (unsigned long long)s.steps, (unsigned long long)s.checkpoint_step);
    else
        snprintf(text, sizeof text, "%s", s.is_training ? job_name(s.job_kind) : "");
    iso_json_set(o, "job", iso_json_string(text));
    if (s.is_training)
        iso_json_set(o, "training", training_json(d, &s));
    for (size_t i = 0; i < d->config.data_count; i++) {
        iso_agent_task_status t;
        iso_agent_get_task(d->agent, i, &t);
        images += t.train + t.val + t.test;
        bytes += t.data_bytes;
        iso_json_push(tasks, task_json(d, i));
    }
    iso_json_set(o, "tasks", tasks);
    set_count(o, "images", images);
    set_count(o, "image_bytes", bytes);
    set_count(o, "sent_bytes", sent);
    set_count(o, "received_bytes", received);
    iso_json_set(o, "paused", iso_json_boolean(s.is_paused));
    set_count(o, "roster_version", s.roster_version);
    set_count(o, "last_sequence", s.last_sequence);
    set_count(o, "audit_seq", s.audit_seq);
    return o;
}

static const char *state_name(iso_agent_release_state s)
{
    static const char *const names[] = {"",         "fetched",  "operator",
                                        "accepted", "rejected", "returned"};
    return names[s];
}

static iso_json *releases(const iso_daemon *d)
{
    iso_json *list = iso_json_array(), *o = iso_json_object();
    iso_agent_status s;
    iso_agent_get_status(d->agent, &s);
    for (size_t i = 0; i < iso_agent_release_count(d->agent); i++) {
        iso_agent_release_status r;
        iso_json *row = iso_json_object();
        iso_agent_get_release(d->agent, i, &r);
        set_count(row, "number", r.number);
        iso_json_set(row, "state", iso_json_string(state_name(r.state)));
        iso_json_set(row, "verdict", iso_json_string(iso_verdict_name(r.verdict)));
        iso_json_set(row, "serving", iso_json_boolean(r.number == s.release));
        iso_json_set(row, "before", iso_json_real((double)r.before));
        iso_json_set(row, "delivered", iso_json_real((double)r.delivered));
        iso_json_set(row, "refitted", iso_json_real((double)r.refitted));
        set_count(row, "samples", r.samples);
        iso_json_set(row, "reason", iso_json_string(r.reason));
        iso_json_set(row, "manifest", hex_of(r.manifest.b, 32));
        iso_json_push(list, row);
    }
    iso_json_set(o, "releases", list);
    return o;
}

static iso_json *feed(iso_daemon *d, const iso_agent_event *ev, const char **code, iso_error *e)
{
    if (iso_daemon_feed(d, ev, e) != ISO_OK) {
        d->should_stop = true; /* what failed here would fail the daemon: the restart mends it */
        *code = "internal";
        return NULL;
    }
    return iso_json_object();
}

static iso_json *accept(iso_daemon *d, const iso_json *args, const char **code, iso_error *e)
{
    int64_t number = 0;
    iso_agent_status s;
    *code = "bad_request";
    if (!args || iso_json_need_int(args, "number", 1, INT64_MAX, &number, e) != ISO_OK)
        return NULL;
    iso_agent_get_status(d->agent, &s);
    if (s.release_pending != (uint64_t)number || strcmp(s.release_phase, "operator") != 0) {
        *code = "release_not_waiting";
        iso_fail(e, ISO_ERR_NO, "release %lld does not wait for an operator", (long long)number);
        return NULL;
    }
    const iso_agent_event ev = {.kind = ISO_AE_ACCEPT, .offset = (uint64_t)number};
    return feed(d, &ev, code, e);
}

iso_json *iso_daemon_answer(void *ctx, const char *command, const iso_json *args, const char **code,
                            iso_error *e)
{
    static const struct {
        const char *name;
        iso_agent_event_kind kind;
    } plain[] = {{"pause", ISO_AE_PAUSE},
                 {"resume", ISO_AE_RESUME},
                 {"releases.accept-epoch", ISO_AE_ACCEPT_EPOCH}};
    iso_daemon *d = ctx;
    if (strcmp(command, "status") == 0)
        return status(d);
    if (strcmp(command, "releases.list") == 0)
        return releases(d);
    if (strcmp(command, "releases.accept") == 0)
        return accept(d, args, code, e);
    if (strcmp(command, "stop") == 0) {
        d->should_stop = true;
        return iso_json_object();
    }
    for (size_t i = 0; i < sizeof plain / sizeof *plain; i++)
        if (strcmp(command, plain[i].name) == 0)
            return feed(d, &(iso_agent_event){.kind = plain[i].kind}, code, e);
    *code = "unknown_command";
    iso_fail(e, ISO_ERR_USAGE,
             "\"%.60s\" is no command of a client; there are status, releases.list, "
             "releases.accept, releases.accept-epoch, pause, resume, stop",
             command);
    return NULL;
}
