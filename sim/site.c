/* Shell of a site's core, as client/effects.c is: effects are done in their order, answers come
 * back as events of the heap, so that a crash can fall between any two of them. */
#include "sim/inner.h"

#include "crypto/key.h"
#include "crypto/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DISK_US = 300, SEAL_US = 2000, ENROL_RETRY_MS = 20000 };

static iso_time mono(const iso_sim *w, const sim_site *s)
{
    return w->now_us / 1000 + 1000 + s->index;
}

/* ---- answers of disk and sealer ---- */

static sim_answer *new_answer(iso_sim *w, const sim_site *s)
{
    sim_answer *a = w->free_answers;
    iso_error e;
    if (a)
        w->free_answers = a->next;
    else if (!(a = malloc(sizeof *a))) {
        sim_fail(w, iso_nomem(&e, sizeof *a), &e);
        return NULL;
    }
    memset(&a->ev, 0, sizeof a->ev);
    a->boot = s->boot;
    return a;
}

static void push_answer(iso_sim *w, const sim_site *s, sim_answer *a, uint64_t us)
{
    sim_push(w, w->now_us + us, EV_ANSWER, s->index + 1, 0, a);
}

static void fetched(iso_sim *w, const sim_site *s, const iso_digest *d, iso_err code)
{
    sim_answer *a = new_answer(w, s);
    if (!a)
        return;
    a->ev.kind = ISO_AE_FETCH_DONE;
    a->ev.digest = *d;
    a->ev.code = code;
    a->ev.text = code ? "the download is not what was asked for" : NULL;
    push_answer(w, s, a, DISK_US);
}

static void do_fetch(iso_sim *w, sim_site *s, const iso_agent_effect *x)
{
    iso_sim_disk *d = &s->disk;
    iso_sim_partial *p;
    iso_error e;
    switch (x->kind) {
    case ISO_AX_FETCH_OPEN: {
        if (iso_sim_disk_blob(d, &x->digest)) {
            fetched(w, s, &x->digest, ISO_OK);
            return;
        }
        sim_answer *a = new_answer(w, s);
        p = iso_sim_disk_partial_open(d, x->digest.b, 32);
        if (!a || !p)
            return;
        p->content.size -= p->content.size % x->chunk_bytes;
        a->ev.kind = ISO_AE_FETCH_READY;
        a->ev.digest = x->digest;
        a->ev.offset = p->content.size;
        push_answer(w, s, a, DISK_US);
        return;
    }
    case ISO_AX_FETCH_WRITE:
        p = iso_sim_disk_partial(d, x->digest.b, 32);
        if (!p || p->content.size != x->offset ||
            iso_buf_append(&p->content, x->data, x->data_bytes, &e))
            fetched(w, s, &x->digest, ISO_ERR_RESOURCE);
        return;
    case ISO_AX_FETCH_CLOSE: {
        p = iso_sim_disk_partial(d, x->digest.b, 32);
        iso_sealer sealer = iso_sealer_hash(&s->signer);
        iso_digest got =
            sealer.digest(sealer.ctx, p ? p->content.data : NULL, p ? p->content.size : 0);
        iso_err err = iso_digest_equal(&got, &x->digest) ? ISO_OK : ISO_ERR_DATA;
        if (!err)
            err = iso_sim_disk_put(d, p->content.data, p->content.size, NULL, &e);
        iso_sim_disk_partial_drop(d, x->digest.b, 32);
        fetched(w, s, &x->digest, err);
        return;
    }
    default:
        iso_sim_disk_partial_drop(d, x->digest.b, 32);
        return;
    }
}

static void do_seal(iso_sim *w, sim_site *s, const iso_agent_effect *x)
{
    const iso_sim_blob *plain = iso_sim_disk_blob(&s->disk, &x->digest);
    sim_answer *a = new_answer(w, s);
    iso_buf body = {0};
    iso_envelope h = *x->envelope;
    iso_error e;
    if (!a)
        return;
    a->ev.kind = ISO_AE_SEALED;
    memcpy(a->ev.id, x->id, 16);
    a->ev.code = !plain ? ISO_ERR_DATA
                        : iso_hash_seal(&s->signer, &h, plain->data, plain->bytes, x->merge_pk,
                                        a->header, a->signature, &body, &e);
    iso_sim_blob *sealed =
        a->ev.code ? NULL : iso_sim_pool_put(&w->pool, body.data, body.size, NULL);
    if (sealed) {
        sealed->note = ISO_NOTE_SEALED;
        a->ev.code = iso_sim_disk_add(&s->disk, sealed, &e);
        if (s->malice == ISO_MALICE_OVERSIZE)
            sim_malice_sealed(w, s, &h, a->header, a->signature);
        a->ev.header = a->header;
        a->ev.signature = a->signature;
    } else {
        a->ev.text = "sealing failed";
    }
    iso_sim_blob_drop(&w->pool, sealed);
    iso_buf_free(&body);
    push_answer(w, s, a, SEAL_US);
}

/* ---- effects ---- */

static void do_commit(iso_sim *w, sim_site *s, const iso_agent_effect *x)
{
    iso_error e;
    if (w->o.mutant)
        sim_mutate_site(w, s, (iso_op *)(uintptr_t)x->ops, x->op_count);
    iso_err err =
        iso_history_client_commit(&w->history, &s->history, &s->disk, x->ops, x->op_count, &e);
    if (!err)
        err = iso_sim_disk_commit(&s->disk, x->ops, x->op_count, &e);
    for (size_t i = 0; i < x->op_count; i++)
        sim_digest(w, x->ops[i].value, x->ops[i].value_bytes);
    if (err)
        sim_fail(w, err, &e);
}

static void do_send(iso_sim *w, sim_site *s, const iso_agent_effect *x)
{
    iso_error e;
    iso_sim_blob *blob = NULL;
    uint64_t offset = x->offset;
    if (x->is_blob_piece) {
        blob = iso_sim_disk_blob(&s->disk, &x->digest);
        if (!blob || blob->bytes < offset + x->bytes) {
            sim_fail(w,
                     iso_fail(&e, ISO_ERR_INTERNAL,
                              "invariant I1: a sealed update is gone before its receipt"),
                     &e);
            return;
        }
        if (w->o.mutant)
            blob = sim_mutate_body(w, s, blob);
    }
    iso_err err = iso_history_client_send(&w->history, x->msg, blob, &e);
    if (err) {
        sim_fail(w, err, &e);
        return;
    }
    if (x->link != (s->line ? s->line->link : 0))
        return;
    if (s->malice == ISO_MALICE_DIGEST && blob) {
        blob = sim_malice_body(w, s, x->msg, blob, &offset, (size_t)x->bytes);
        if (!blob)
            return;
        sim_send_up(w, s, x->msg, blob, 0, (size_t)x->bytes);
        iso_sim_blob_drop(&w->pool, blob);
        return;
    }
    sim_send_up(w, s, x->msg, blob, offset, (size_t)x->bytes);
}

static void do_install(iso_sim *w, sim_site *s, const iso_agent_effect *x)
{
    iso_error e;
    sim_answer *a = new_answer(w, s);
    iso_err err = iso_history_client_serve(&w->history, &s->disk, x->release->number, &e);
    if (err)
        sim_fail(w, err, &e);
    if (!a)
        return;
    a->ev.kind = ISO_AE_INSTALLED;
    a->ev.number = x->release->number;
    if (!w->are_faults_over && w->s->disk.full_every_ms && sim_chance(&w->disk, 0.05)) {
        a->ev.code = ISO_ERR_RESOURCE;
        a->ev.text = "disk full";
    }
    push_answer(w, s, a, 10 * DISK_US);
}

static void do_job(iso_sim *w, sim_site *s, const iso_trainer_job *job)
{
    s->job = *job;
    if (job->spec) {
        s->spec = *job->spec;
        s->job.spec = &s->spec;
    }
    s->has_job = true;
    sim_push(w, w->now_us + sim_train_us(w, s, job), EV_TRAINED, s->index + 1, ++s->job_number,
             NULL);
}

static const char *effect_name(const iso_agent_effect *x)
{
    static const char *const names[] = {
        "commit", "put blob", "delete blob", "connect",   "close",       "send",
        "job",    "cancel",   "forget job",  "seal",      "fetch: open", "write",
        "close",  "drop",     "install",     "uninstall", "serve",       "log"};
    return x->kind == ISO_AX_SEND ? iso_msg_type_name(x->msg->type) : names[x->kind];
}

static void perform(iso_sim *w, sim_site *s, const iso_agent_effect *x)
{
    iso_error e;
    iso_err err = ISO_OK;
    if (sim_is_traced(w)) {
        if (x->kind == ISO_AX_LOG)
            sim_trace(w, "%s: %s %s", s->name, x->event, x->text);
        else
            sim_trace(w, "%s: %s", s->name, effect_name(x));
    }
    switch (x->kind) {
    case ISO_AX_COMMIT:
        do_commit(w, s, x);
        break;
    case ISO_AX_PUT_BLOB:
        err = iso_sim_disk_put(&s->disk, x->data, x->data_bytes, NULL, &e);
        break;
    case ISO_AX_DELETE_BLOB:
        iso_sim_disk_delete(&s->disk, &x->digest);
        break;
    case ISO_AX_CONNECT:
        sim_connect(w, s, x->link);
        break;
    case ISO_AX_CLOSE:
        if (s->line && s->line->link == x->link)
            sim_close(w, s, s->line);
        break;
    case ISO_AX_SEND:
        do_send(w, s, x);
        break;
    case ISO_AX_JOB_START:
        do_job(w, s, x->job);
        break;
    case ISO_AX_JOB_CANCEL:
        if (s->has_job && memcmp(s->job.id, x->id, 16) == 0) {
            s->has_job = false;
            s->job_number++;
        }
        break;
    case ISO_AX_SEAL:
        do_seal(w, s, x);
        break;
    case ISO_AX_FETCH_OPEN:
    case ISO_AX_FETCH_WRITE:
    case ISO_AX_FETCH_CLOSE:
    case ISO_AX_FETCH_DROP:
        do_fetch(w, s, x);
        break;
    case ISO_AX_INSTALL:
        do_install(w, s, x);
        break;
    case ISO_AX_SERVE:
        err = iso_history_client_serve(&w->history, &s->disk, x->number, &e);
        sim_digest(w, &x->number, sizeof x->number);
        break;
    case ISO_AX_JOB_FORGET:
    case ISO_AX_UNINSTALL:
    case ISO_AX_LOG:
        break;
    }
    if (err)
        sim_fail(w, err, &e);
}

static void schedule_tick(iso_sim *w, sim_site *s)
{
    iso_time wake = iso_agent_next_wake(s->agent), now = mono(w, s);
    if (wake == UINT64_MAX)
        return;
    uint64_t at = wake > now ? w->now_us + (wake - now) * 1000 : w->now_us + 1000;
    if (at < s->tick_us) {
        s->tick_us = at;
        sim_push(w, at, EV_TICK, s->index + 1, s->boot, NULL);
    }
}

static void after(iso_sim *w, sim_site *s)
{
    const iso_agent_effects *out = &w->out;
    iso_error e;
    if (out->is_out_of_memory)
        sim_fail(w, iso_nomem(&e, out->arena.held_bytes), &e);
    for (size_t i = 0; i < out->count && !w->err; i++) {
        if (s->die_after && --s->die_after == 0) {
            sim_site_crash(w, s);
            return;
        }
        perform(w, s, &out->items[i]);
    }
    if (w->err || !s->agent)
        return;
    if (++s->steps_done % w->s->check_site_every == 0)
        sim_site_check(w, s);
    schedule_tick(w, s);
}

void sim_site_step(iso_sim *w, sim_site *s, const iso_agent_event *ev)
{
    w->events++;
    if (sim_is_traced(w)) {
        static const char *const names[] = {
            "tick",    "link up", "link down",    "message",     "data",
            "trainer", "sealed",  "fetch: ready", "fetch: done", "installed",
            "disk",    "pause",   "resume",       "accept",      "accept epoch"};
        sim_trace(w, "%s <- %s", s->name,
                  ev->kind == ISO_AE_MESSAGE ? iso_msg_type_name(ev->msg->type) : names[ev->kind]);
    }
    iso_agent_effects_reset(&w->out);
    iso_agent_step(s->agent, ev, mono(w, s), sim_wall(w, s->wall_skew_ms), &w->out);
    after(w, s);
}

void sim_site_tick(iso_sim *w, sim_site *s, const iso_sim_event *ev)
{
    if (ev->tag != s->boot || ev->at_us != s->tick_us || !s->agent)
        return;
    s->tick_us = SIM_NEVER;
    if (iso_agent_next_wake(s->agent) > mono(w, s)) {
        schedule_tick(w, s);
        return;
    }
    sim_site_step(w, s, &(iso_agent_event){.kind = ISO_AE_TICK});
}

void sim_site_trained(iso_sim *w, sim_site *s, uint64_t number)
{
    iso_trainer_event done;
    if (!s->agent || !s->has_job || number != s->job_number)
        return;
    s->has_job = false;
    sim_train(w, s, &done);
    sim_site_step(w, s, &(iso_agent_event){.kind = ISO_AE_TRAINER, .trainer = &done});
}

void sim_site_answer(iso_sim *w, sim_site *s, sim_answer *a)
{
    if (s->agent && a->boot == s->boot)
        sim_site_step(w, s, &a->ev);
    a->next = w->free_answers;
    w->free_answers = a;
}

void sim_site_check(iso_sim *w, sim_site *s)
{
    iso_error e;
    iso_err err = iso_agent_check(s->agent, &e);
    if (err) {
        iso_error_context(&e, "invariant at %s", s->name);
        sim_fail(w, err, &e);
    }
}

/* ---- enrolment: client/enroll.c's talk ---- */

static void enrol_again(iso_sim *w, sim_site *s)
{
    if (s->line)
        sim_close(w, s, s->line);
    s->state = SITE_NEW;
    sim_push(w, w->now_us + (ENROL_RETRY_MS / 2 + sim_random(&w->churn, ENROL_RETRY_MS)) * 1000,
             EV_START, s->index + 1, s->boot, NULL);
}

static void say(iso_sim *w, sim_site *s, iso_msg *m, uint64_t id)
{
    m->version = ISO_PROTO_VERSION_MAX;
    m->id = id;
    sim_send_up(w, s, m, NULL, 0, 0);
}

static void say_enroll(iso_sim *w, sim_site *s, const iso_msg_hello_reply *reply)
{
    iso_msg m = {.type = ISO_MSG_ENROLL, .epoch = reply->epoch, .enroll = {.name = s->name}};
    uint8_t bytes[ISO_ENROL_BYTES];
    iso_sealer sealer = iso_sealer_hash(&s->signer);
    iso_enrol_bytes(w->c.identity.federation, s->token_id, reply->nonce, s->transport_pk,
                    s->signer.pk, bytes);
    memcpy(m.enroll.transport_pk, s->transport_pk, 32);
    memcpy(m.enroll.sign_pk, s->signer.pk, 32);
    sealer.sign(sealer.ctx, ISO_LABEL_ENROL, bytes, sizeof bytes, m.enroll.signature);
    sealer.mac(sealer.ctx, s->token.proof_key, bytes, sizeof bytes, m.enroll.mac);
    say(w, s, &m, 2);
}

static void enrolling(iso_sim *w, sim_site *s, const iso_msg *m)
{
    if (m->type == ISO_MSG_HELLO_REPLY) {
        say_enroll(w, s, &m->hello_reply);
    } else if (m->type == ISO_MSG_ENROLL_REPLY) {
        memcpy(s->id, m->enroll_reply.site_id, 16);
        s->is_enrolled = true;
        s->state = SITE_DEAD;
        sim_trace(w, "%s: is enrolled", s->name);
        sim_close(w, s, s->line);
        sim_push(w, w->now_us + 1000000, EV_START, s->index + 1, s->boot, NULL);
    } else if (m->type == ISO_MSG_ERROR) {
        if (!iso_code_is_retryable(m->error.code))
            s->has_token = false; /* a new one is asked for */
        enrol_again(w, s);
    }
}

/* ---- links ---- */

void sim_site_link(iso_sim *w, sim_site *s, sim_line *line, bool is_up, iso_agent_down why)
{
    if (!line->is_down || s->line != line || (is_up && line->is_broken))
        return;
    if (!is_up) {
        line->is_down = false;
        s->line = NULL;
    }
    if (s->state == SITE_ENROLLING) {
        iso_msg m = {.type = ISO_MSG_HELLO,
                     .hello = {.min_version = ISO_PROTO_VERSION_MIN,
                               .max_version = ISO_PROTO_VERSION_MAX,
                               .software = ISO_VERSION}};
        if (is_up)
            say(w, s, &m, 1);
        else
            enrol_again(w, s);
        return;
    }
    if (!s->agent)
        return;
    iso_agent_event ev = {.kind = is_up ? ISO_AE_LINK_UP : ISO_AE_LINK_DOWN,
                          .link = line->link,
                          .down = why,
                          .text = why == ISO_DOWN_REFUSED ? "not admitted" : "the line is dead"};
    sim_site_step(w, s, &ev);
}

void sim_site_message(iso_sim *w, sim_site *s, iso_packet *p)
{
    if (s->state == SITE_ENROLLING) {
        enrolling(w, s, p->msg);
        return;
    }
    if (!s->agent)
        return;
    iso_agent_event ev = {.kind = ISO_AE_MESSAGE,
                          .link = ((sim_line *)p->line)->link,
                          .msg = p->msg,
                          .body = p->body,
                          .body_bytes = p->body_bytes};
    sim_site_step(w, s, &ev);
}

/* ---- life ---- */

/* Parsed once, whichever sites ask. */
iso_err sim_manifest_parse(iso_sim *w, const void *text, size_t size, iso_manifest *out,
                           iso_error *e)
{
    iso_digest d = w->c.sealer.digest(w->c.sealer.ctx, text, size);
    for (size_t i = w->manifest_count; i-- > 0;)
        if (iso_digest_equal(&w->manifests[i].digest, &d)) {
            *out = w->manifests[i].manifest;
            return ISO_OK;
        }
    sim_manifest *wider = realloc(w->manifests, (w->manifest_count + 1) * sizeof *wider);
    if (!wider)
        return iso_nomem(e, sizeof *wider);
    w->manifests = wider;
    iso_err err = iso_manifest_parse(text, size, &w->arena, out, e);
    if (!err)
        w->manifests[w->manifest_count++] = (sim_manifest){.digest = d, .manifest = *out};
    return err;
}

/* The client's seam: signature, then content (client/agent.h). */
static iso_err check_manifest(void *ctx, const iso_minisign_public *key, const void *text,
                              size_t size, const void *signature, size_t signature_bytes,
                              iso_arena *arena, iso_manifest *out, iso_error *e)
{
    iso_sim *w = ctx;
    (void)arena;
    if (!iso_hash_minisign_holds(&w->key, key, text, size, signature, signature_bytes))
        return iso_fail(e, ISO_ERR_TRUST, "the signature does not hold");
    return sim_manifest_parse(w, text, size, out, e);
}

static bool ask_token(iso_sim *w, sim_site *s)
{
    char command[256], tasks[96] = "", line[ISO_ENROL_LINE_TEXT];
    iso_enrol_line parsed;
    for (uint32_t i = 0; i < s->task_count; i++)
        snprintf(tasks + strlen(tasks), sizeof tasks - strlen(tasks), "%s\"%s\"", i ? "," : "",
                 w->c.tasks[s->task_numbers[i]].name);
    snprintf(command, sizeof command,
             "{\"cmd\":\"token.new\",\"args\":{\"site\":\"%s\",\"tasks\":[%s],\"hours\":720}}",
             s->name, tasks);
    const char *reply = sim_admin(w, command);
    const char *at = reply ? strstr(reply, "isofed1-") : NULL;
    if (!at)
        return false;
    size_t n = 0; /* JSON may escape '/' */
    for (; *at && *at != '"' && n + 1 < sizeof line; at++)
        if (*at != '\\')
            line[n++] = *at;
    line[n] = 0;
    if (iso_enrol_line_parse(line, &parsed, NULL) != ISO_OK)
        return false;
    iso_token_derive(&parsed.token, &s->token);
    memcpy(s->token_id, parsed.token.id, 4);
    return s->has_token = true;
}

static void start_enrolment(iso_sim *w, sim_site *s)
{
    if (!s->has_token && !ask_token(w, s)) {
        enrol_again(w, s);
        return;
    }
    s->state = SITE_ENROLLING;
    sim_connect(w, s, 0);
    if (!w->c.core || s->partition_until_us > w->now_us)
        enrol_again(w, s);
}

static void give_data(iso_sim *w, sim_site *s)
{
    for (uint32_t i = 0; i < s->task_count && s->agent && !w->err; i++) {
        iso_agent_event ev = {.kind = ISO_AE_DATA,
                              .train = s->samples,
                              .val = s->samples / 2,
                              .test = s->samples / 2,
                              .data_bytes = s->samples * 40000};
        memcpy(ev.task_id, s->tasks[i].id, 16);
        ev.digest.b[0] = 1;
        iso_put_u32(ev.digest.b + 1, s->index);
        iso_put_u32(ev.digest.b + 5, s->task_numbers[i]);
        sim_site_step(w, s, &ev);
    }
}

static void make_agent(iso_sim *w, sim_site *s)
{
    iso_agent_seams seams = {.sealer = iso_sealer_hash(&s->signer),
                             .entropy = {.ctx = w, .fill = sim_entropy},
                             .manifest = check_manifest,
                             .manifest_ctx = w};
    iso_agent_config *c = &s->config;
    const iso_store store = iso_sim_disk_store(&s->disk);
    iso_error e;
    iso_agent_config_defaults(c);
    memcpy(c->federation_id, w->c.identity.federation, 16);
    memcpy(c->site_id, s->id, 16);
    c->tasks = s->tasks;
    c->task_count = s->task_count;
    c->generation_digest = w->c.identity.generation_digest;
    c->receipt_keep_ms = w->s->receipt_keep_ms;
    for (uint32_t i = 0; i < s->task_count; i++) {
        s->tasks[i].name = w->c.tasks[s->task_numbers[i]].name;
        iso_agent_task_id(c->federation_id, s->tasks[i].name, s->tasks[i].id);
    }
    iso_err err = iso_agent_new(c, &seams, &s->agent, &e);
    if (!err && s->disk.row_count)
        err = iso_agent_restore(s->agent, &store, &e);
    if (err) {
        iso_error_context(&e, "invariant I8: %s does not start again", s->name);
        sim_fail(w, ISO_ERR_INTERNAL, &e);
        return;
    }
    iso_agent_give_roster(s->agent, &w->roster, &w->roster_digest);
}

typedef struct {
    iso_digest *live;
    size_t count;
    bool is_counting;
} live_set;

static void note_live(void *arg, const iso_digest *d)
{
    live_set *l = arg;
    if (!l->is_counting)
        l->live[l->count] = *d;
    l->count++;
}

static bool is_live(void *arg, const iso_digest *d)
{
    const live_set *l = arg;
    for (size_t i = 0; i < l->count; i++)
        if (iso_digest_equal(&l->live[i], d))
            return true;
    return false;
}

/* S84 at a start: blobs that nothing names, partial downloads that are whole blobs by now. */
static void sweep(iso_sim *w, sim_site *s)
{
    live_set l = {.is_counting = true};
    iso_error e;
    iso_agent_live_blobs(s->agent, note_live, &l);
    l = (live_set){.live = iso_calloc(l.count, sizeof *l.live)};
    if (!l.live) {
        sim_fail(w, iso_nomem(&e, 0), &e);
        return;
    }
    iso_agent_live_blobs(s->agent, note_live, &l);
    iso_sim_disk_sweep(&s->disk, is_live, &l);
    free(l.live);
}

void sim_site_start(iso_sim *w, sim_site *s, uint64_t boot)
{
    if (boot != s->boot || s->agent)
        return;
    if (!s->is_enrolled) {
        start_enrolment(w, s);
        return;
    }
    bool is_restart = s->disk.row_count > 0;
    make_agent(w, s);
    if (w->err)
        return;
    s->state = SITE_RUNNING;
    s->tick_us = SIM_NEVER;
    if (is_restart) {
        sim_site_check(w, s);
        sweep(w, s);
    }
    sim_trace(w, "%s: starts", s->name);
    w->events++;
    iso_agent_effects_reset(&w->out);
    iso_agent_start(s->agent, mono(w, s), sim_wall(w, s->wall_skew_ms), &w->out);
    after(w, s);
    give_data(w, s);
}

void sim_site_crash(iso_sim *w, sim_site *s)
{
    s->die_after = 0;
    if (!s->agent)
        return;
    sim_trace(w, "%s: CRASHES", s->name);
    iso_agent_free(s->agent);
    s->agent = NULL;
    s->state = SITE_DEAD;
    s->boot++;
    s->job_number++;
    s->has_job = false;
    s->tick_us = SIM_NEVER;
    sim_break_all(w, s, true);
    iso_sim_disk_crash(&s->disk, &w->disk, w->s->disk.is_torn);
    w->result.crashes_site++;
    uint64_t down_ms = w->s->crash.restart_ms / 2 + sim_random(&w->disk, w->s->crash.restart_ms);
    sim_push(w, w->now_us + down_ms * 1000, EV_START, s->index + 1, s->boot, NULL);
}

bool sim_site_is_revoked(const iso_sim *w, const sim_site *s)
{
    const iso_history_site *x = s->is_enrolled ? iso_index_get(&w->history.sites, s->id) : NULL;
    return x && x->state == ISO_SITE_REVOKED;
}

/* Nothing is waited for: the newest release is judged, the outbox is empty. */
bool sim_site_is_at_rest(const iso_sim *w, const sim_site *s, const char **why)
{
    iso_agent_status st;
    if (sim_site_is_revoked(w, s) || s->malice)
        return true;
    *why = "is not running";
    if (!s->agent)
        return false;
    iso_agent_get_status(s->agent, &st);
    *why = "has updates that wait for a receipt";
    if (st.outbox_waiting)
        return false;
    *why = "sees a conflict of histories";
    if (st.has_conflict)
        return false;
    const iso_history *h = &w->history;
    uint64_t last = h->release_count ? h->releases[h->release_count - 1].number : 0;
    *why = "has not judged the newest release";
    if (st.release == last)
        return true;
    for (size_t i = 0; i < iso_agent_release_count(s->agent); i++) {
        iso_agent_release_status r;
        iso_agent_get_release(s->agent, i, &r);
        if (r.number == last && (r.state == ISO_RS_REJECTED || r.state == ISO_RS_RETURNED))
            return true;
    }
    return false;
}

/* ---- making one ---- */

static bool choose_tasks(iso_sim *w, sim_site *s)
{
    uint32_t first = s->index % w->s->tasks;
    bool has_second = w->s->tasks > 1 && sim_chance(&w->churn, w->s->second_task);
    s->task_count = has_second ? 2 : 1;
    s->tasks = iso_calloc(s->task_count, sizeof *s->tasks);
    s->task_numbers = iso_calloc(s->task_count, sizeof *s->task_numbers);
    if (!s->tasks || !s->task_numbers)
        return false;
    s->task_numbers[0] = first;
    if (has_second)
        s->task_numbers[1] =
            (first + 1 + (uint32_t)sim_random(&w->churn, w->s->tasks - 1)) % w->s->tasks;
    return true;
}

static void choose_malice(iso_sim *w, sim_site *s)
{
    uint32_t kinds = w->s->malicious.kinds & ~1u;
    if (!kinds || !sim_chance(&w->churn, w->s->malicious.share))
        return;
    uint32_t n = (uint32_t)sim_random(&w->churn, (uint64_t)__builtin_popcount(kinds));
    for (uint32_t k = 1; k < ISO_MALICE_COUNT; k++)
        if ((kinds >> k & 1) && n-- == 0)
            s->malice = (iso_malice)k;
}

sim_site *sim_site_new(iso_sim *w, bool is_joining)
{
    sim_site *s = iso_calloc(1, sizeof *s);
    if (w->site_count == w->site_capacity) {
        size_t capacity = w->site_capacity ? 2 * w->site_capacity : 64;
        sim_site **wider = realloc(w->sites, capacity * sizeof(*wider));
        if (!wider) {
            free(s);
            return NULL;
        }
        w->sites = wider;
        w->site_capacity = capacity;
    }
    if (!s)
        return NULL;
    s->index = (uint32_t)w->site_count;
    s->disk.pool = &w->pool;
    s->tick_us = SIM_NEVER;
    s->signer.world = w->key;
    snprintf(s->name, sizeof s->name, "site-%05u", s->index + 1);
    w->sites[w->site_count++] = s;
    if (!choose_tasks(w, s))
        return NULL;
    sim_entropy(w, s->signer.pk, 32);
    sim_entropy(w, s->transport_pk, 32);
    s->samples = w->s->trainer.samples / 2 + sim_random(&w->churn, w->s->trainer.samples) + 20;
    s->slowness = 0.7 + 0.6 * iso_rng_uniform(&w->churn);
    if (sim_chance(&w->churn, w->s->stragglers.share))
        s->slowness *= w->s->stragglers.factor;
    s->bytes_a_second = w->s->net.bytes_a_second;
    if (s->bytes_a_second && sim_chance(&w->churn, w->s->net.slow))
        s->bytes_a_second = (uint64_t)((double)s->bytes_a_second / w->s->net.slow_factor) + 1;
    if (w->s->clock.skew_ms)
        s->wall_skew_ms =
            (int64_t)sim_random(&w->churn, 2 * w->s->clock.skew_ms) - (int64_t)w->s->clock.skew_ms;
    choose_malice(w, s);
    uint64_t spread_us = is_joining ? 1000 : 20000000;
    sim_push(w, w->now_us + sim_random(&w->churn, spread_us), EV_START, s->index + 1, 0, NULL);
    return s;
}

void sim_site_free(iso_sim *w, sim_site *s)
{
    iso_agent_free(s->agent);
    for (int i = 0; i < SIM_KEPT; i++)
        iso_packet_drop(&w->packets, &w->pool, s->kept[i]);
    while (s->lines) {
        sim_line *next = s->lines->next;
        free(s->lines);
        s->lines = next;
    }
    iso_sim_disk_free(&s->disk);
    free(s->tasks);
    free(s->task_numbers);
    free(s);
}
