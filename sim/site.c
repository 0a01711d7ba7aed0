/* Shell of a site's core, as client/effects.c is: effects are done in their order, answers come
 * back as events of the heap, so that a crash can fall between any two of them. */
#include "sim/inner.h"

#include "crypto/key.h"
#include "crypto/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DISK_US = 300, SEAL_US = 2000 };

iso_time sim_site_mono(const iso_sim *w, const sim_site *s)
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
    iso_time wake = iso_agent_next_wake(s->agent), now = sim_site_mono(w, s);
    if (wake == UINT64_MAX)
        return;
    uint64_t at = wake > now ? w->now_us + (wake - now) * 1000 : w->now_us + 1000;
    if (at < s->tick_us) {
        s->tick_us = at;
        sim_push(w, at, EV_TICK, s->index + 1, s->boot, NULL);
    }
}

void sim_site_after(iso_sim *w, sim_site *s)
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
    iso_agent_step(s->agent, ev, sim_site_mono(w, s), sim_wall(w, s->wall_skew_ms), &w->out);
    sim_site_after(w, s);
}

void sim_site_tick(iso_sim *w, sim_site *s, const iso_sim_event *ev)
{
    if (ev->tag != s->boot || ev->at_us != s->tick_us || !s->agent)
        return;
    s->tick_us = SIM_NEVER;
    if (iso_agent_next_wake(s->agent) > sim_site_mono(w, s)) {
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
