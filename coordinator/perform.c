/* Effects become deeds, in their order: rows of several steps in one transaction, and only then
 * what the world may see (specs/security.md S88, 6.1). */
#include "coordinator/shell.h"

#include "core/crash.h"
#include "crypto/chain.h"
#include "proto/codec.h"

#include <stdlib.h>
#include <string.h>

static void answer(iso_shell *s, const iso_coord_event *ev)
{
    if (s->answer_count == s->answer_capacity) {
        size_t capacity = s->answer_capacity ? s->answer_capacity * 2 : 64;
        iso_coord_event *wider = realloc(s->answers, capacity * sizeof *wider);
        if (!wider) {
            s->must_reload = true;
            return;
        }
        s->answers = wider;
        s->answer_capacity = capacity;
    }
    s->answers[s->answer_count++] = *ev;
}

static void answer_upload(iso_shell *s, iso_coord_event_kind kind, const uint8_t id[16],
                          uint32_t chunks, iso_stored stored)
{
    iso_coord_event ev = {.kind = kind, .chunks = chunks, .stored = stored};
    memcpy(ev.id, id, 16);
    answer(s, &ev);
}

/* ---- one effect each ---- */

static void do_send(iso_shell *s, const iso_coord_effect *x)
{
    uint8_t head[ISO_HEAD_MAX_BYTES];
    size_t head_bytes = 0, body_bytes = x->data_bytes;
    const void *body = x->data;
    iso_error e = {0};
    if (x->is_blob_piece) {
        iso_err err = s->store.blob_read(s->store.ctx, &x->digest, x->piece_offset, s->piece,
                                         x->piece_bytes, &body_bytes, &e);
        if (err || body_bytes != x->piece_bytes) {
            iso_log_event(s->log, ISO_LOG_ERROR, "blob_unreadable", "why=\"%s\"", e.text);
            iso_coord_blob_damaged(s->core, &x->digest);
            return;
        }
        body = s->piece;
    }
    if (iso_msg_encode(x->msg, head, sizeof head, &head_bytes, &e) != ISO_OK) {
        iso_log_event(s->log, ISO_LOG_ERROR, "message_not_sent", "type=%s why=\"%s\"",
                      iso_msg_type_name(x->msg->type), e.text);
        return;
    }
    iso_server_send(s->server, x->peer, head, head_bytes, body ? body : "", body_bytes);
}

static void add_key(void *arg, const uint8_t pk[32], const iso_peer_name *name)
{
    iso_key_list *l = arg;
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 64;
        iso_zap_key *wider = realloc(l->keys, capacity * sizeof *wider);
        if (!wider)
            return; /* one key too few: that site is refused, nobody else */
        l->keys = wider;
        l->capacity = capacity;
    }
    memcpy(l->keys[l->count].pk, pk, 32);
    l->keys[l->count++].name = *name;
}

void iso_shell_keys(const iso_shell *s, iso_key_list *out)
{
    iso_coord_keys(s->core, add_key, out);
}

static void do_admit(iso_shell *s)
{
    iso_key_list l = {0};
    iso_error e = {0};
    iso_shell_keys(s, &l);
    if (iso_server_admit(s->server, l.keys, l.count, &e) != ISO_OK)
        iso_log_event(s->log, ISO_LOG_ERROR, "zap", "why=\"%s\"", e.text);
    free(l.keys);
}

static void do_upload(iso_shell *s, const iso_coord_effect *x)
{
    iso_error e = {0};
    iso_err err = ISO_OK;
    uint32_t chunks = 0;
    switch (x->kind) {
    case ISO_CX_UPLOAD_OPEN:
        err = iso_partial_open(&s->partials, x->id, x->chunk_bytes, x->body_bytes, &chunks, &e);
        if (!err)
            answer_upload(s, ISO_CE_UPLOAD_OPENED, x->id, chunks, ISO_STORED_OK);
        break;
    case ISO_CX_UPLOAD_WRITE:
        err = iso_partial_write(&s->partials, x->id, x->data, x->data_bytes, &e);
        break;
    case ISO_CX_UPLOAD_STORE:
        if (s->store_count == SHELL_BATCH)
            iso_shell_store(s);
        s->stores[s->store_count] = (iso_partial_file){.digest = x->digest, .bytes = x->body_bytes};
        memcpy(s->stores[s->store_count++].id, x->id, 16);
        break;
    default:
        iso_partial_drop(&s->partials, x->id);
        break;
    }
    if (err) {
        iso_log_event(s->log, ISO_LOG_ERROR, "upload_failed", "why=\"%s\"", e.text);
        iso_state_release_reserve(s->state);
        answer_upload(s, ISO_CE_UPLOAD_STORED, x->id, 0, ISO_STORED_DISK);
    }
}

void iso_shell_store(iso_shell *s)
{
    iso_error e = {0};
    size_t count = s->store_count;
    s->store_count = 0;
    iso_partials_store(&s->partials, s->stores, count, iso_state_blobs(s->state), &e);
    for (size_t i = 0; i < count; i++) {
        const iso_partial_file *f = &s->stores[i];
        iso_stored stored = f->err == ISO_OK         ? ISO_STORED_OK
                            : f->err == ISO_ERR_DATA ? ISO_STORED_DIGEST
                                                     : ISO_STORED_DISK;
        if (stored == ISO_STORED_DISK) {
            iso_log_event(s->log, ISO_LOG_ERROR, "upload_failed", "why=\"%s\"", e.text);
            iso_state_release_reserve(s->state);
        }
        answer_upload(s, ISO_CE_UPLOAD_STORED, f->id, 0, stored);
    }
}

static void do_job(iso_shell *s, const iso_job *job)
{
    iso_error e = {0};
    if (iso_spawn_start(&s->spawn, job, s->clock.mono_ms(s->clock.ctx), &e) == ISO_OK) {
        iso_log_event(s->log, ISO_LOG_INFO, "job_started", "kind=%d round=%llu", (int)job->kind,
                      (unsigned long long)job->round);
        return;
    }
    static char why[ISO_ERROR_BYTES]; /* lives until the event is stepped */
    memcpy(why, e.text, sizeof why);
    iso_coord_event ev = {.kind = ISO_CE_JOB_FAILED, .text = why};
    memcpy(ev.id, job->id, 16);
    answer(s, &ev);
}

static void perform(iso_shell *s, const iso_coord_effect *x)
{
    iso_error e = {0};
    switch (x->kind) {
    case ISO_CX_PUT_BLOB:
        if (s->store.blob_put(s->store.ctx, x->data, x->data_bytes, &x->digest, NULL, &e)) {
            iso_log_event(s->log, ISO_LOG_ERROR, "blob_not_stored", "why=\"%s\"", e.text);
            s->must_reload = true;
        }
        break;
    case ISO_CX_DELETE_BLOB:
        if (s->store.blob_delete(s->store.ctx, &x->digest, &e))
            iso_log_event(s->log, ISO_LOG_WARN, "blob_not_deleted", "why=\"%s\"", e.text);
        break;
    case ISO_CX_SEND:
        do_send(s, x);
        break;
    case ISO_CX_CUT:
        iso_server_cut(s->server, x->peer);
        break;
    case ISO_CX_ADMITTED:
        do_admit(s);
        break;
    case ISO_CX_UPLOAD_OPEN:
    case ISO_CX_UPLOAD_WRITE:
    case ISO_CX_UPLOAD_STORE:
    case ISO_CX_UPLOAD_DROP:
        do_upload(s, x);
        break;
    case ISO_CX_JOB_START:
        do_job(s, x->job);
        break;
    case ISO_CX_JOB_CANCEL:
        iso_spawn_cancel(&s->spawn, x->id);
        break;
    case ISO_CX_ADMIN_REPLY:
        iso_admin_reply(s->admin, x->admin, x->text);
        break;
    case ISO_CX_LOG:
        iso_log_event(s->log, x->level, x->event, "%s", x->text);
        break;
    case ISO_CX_STOP:
        s->is_stopping = true;
        break;
    case ISO_CX_COMMIT:
        break; /* gathered, see hold() */
    }
}

/* ---- group commit ---- */

static bool hold(iso_shell *s, const iso_coord_effect *x)
{
    if (s->held_count == s->held_capacity) {
        size_t capacity = s->held_capacity ? s->held_capacity * 2 : 256;
        const iso_coord_effect **wider =
            realloc(s->held, capacity * sizeof(const iso_coord_effect *));
        if (!wider)
            return false;
        s->held = wider;
        s->held_capacity = capacity;
    }
    s->held[s->held_count++] = x;
    return true;
}

static bool gather(iso_shell *s, const iso_coord_effect *x)
{
    if (s->op_count + x->op_count > s->op_capacity) {
        size_t capacity = (s->op_count + x->op_count) * 2;
        iso_op *wider = realloc(s->ops, capacity * sizeof *wider);
        if (!wider)
            return false;
        s->ops = wider;
        s->op_capacity = capacity;
    }
    memcpy(s->ops + s->op_count, x->ops, x->op_count * sizeof *x->ops);
    s->op_count += x->op_count;
    return true;
}

/* What may be done at once: nothing of it is seen by anyone before the transaction returns. */
static bool is_private(const iso_coord_effect *x, bool has_own_commit)
{
    return x->kind == ISO_CX_PUT_BLOB || x->kind == ISO_CX_LOG || x->kind == ISO_CX_UPLOAD_WRITE ||
           (x->kind == ISO_CX_UPLOAD_STORE && !has_own_commit);
}

void iso_shell_step(iso_shell *s, const iso_coord_event *ev)
{
    if (s->must_reload)
        return;
    if (s->step_count == SHELL_BATCH)
        iso_shell_flush(s);
    iso_coord_effects *out = &s->steps[s->step_count++];
    iso_coord_effects_reset(out);
    iso_coord_step(s->core, ev, s->clock.mono_ms(s->clock.ctx), s->clock.wall_ms(s->clock.ctx),
                   out);
    bool has_own_commit = false;
    if (out->is_out_of_memory)
        s->must_reload = true;
    for (size_t i = 0; i < out->count && !s->must_reload; i++) {
        const iso_coord_effect *x = &out->items[i];
        bool is_ok = true;
        if (x->kind == ISO_CX_COMMIT) {
            has_own_commit = true;
            is_ok = gather(s, x);
        } else if (s->op_count == 0 || is_private(x, has_own_commit)) {
            size_t before = s->answer_count;
            perform(s, x);
            bool has_failed = x->kind == ISO_CX_UPLOAD_WRITE && s->answer_count > before;
            if (has_failed)
                break; /* no acknowledgement of what was not written */
        } else {
            is_ok = hold(s, x);
        }
        if (!is_ok)
            s->must_reload = true;
    }
    if (s->op_count == 0 && s->held_count == 0)
        s->step_count = 0;
}

static void mirror_audit(iso_shell *s)
{
    for (size_t i = 0; s->audit && i < s->op_count; i++) {
        iso_audit_entry entry;
        char hex[ISO_DIGEST_HEX];
        const iso_op *op = &s->ops[i];
        if (op->table != ISO_CT_AUDIT || op->value_bytes < 32 ||
            iso_audit_decode(op->value, op->value_bytes - 32, &entry, NULL) != ISO_OK)
            continue;
        iso_hex(hex, op->value + op->value_bytes - 32, 32);
        fprintf(s->audit, "%llu %llu %s %s %.*s", (unsigned long long)entry.seq,
                (unsigned long long)entry.time_ms, hex, iso_audit_type_name(entry.type),
                (int)entry.details_bytes, entry.details);
    }
    if (s->audit)
        fflush(s->audit);
}

/* Crash points between a commit and what follows it: F6 receipt, F11 evaluation, F13 offers. */
static void crash_points(const iso_shell *s)
{
    for (size_t i = 0; i < s->held_count; i++) {
        const iso_msg *m = s->held[i]->kind == ISO_CX_SEND ? s->held[i]->msg : NULL;
        if (m && m->type == ISO_MSG_RECEIPT)
            iso_crash_point("F6");
        if (m && m->type == ISO_MSG_EVAL_REQUEST)
            iso_crash_point("F11");
        if (m && m->type == ISO_MSG_RELEASE_OFFER)
            iso_crash_point("F13");
    }
}

void iso_shell_flush(iso_shell *s)
{
    iso_error e = {0};
    if (s->op_count && !s->must_reload) {
        if (s->store.commit(s->store.ctx, s->ops, s->op_count, &e) != ISO_OK) {
            iso_log_event(s->log, ISO_LOG_ERROR, "commit_failed", "why=\"%s\"", e.text);
            s->must_reload = true;
        } else {
            s->failures = 0;
            s->commits++;
            mirror_audit(s);
            crash_points(s);
        }
    }
    s->op_count = 0; /* effects of answers below start a new batch */
    size_t count = s->held_count;
    for (size_t i = 0; i < count && !s->must_reload; i++)
        perform(s, s->held[i]);
    s->held_count = 0;
    s->step_count = 0;
}

void iso_shell_settle(iso_shell *s)
{
    while (!s->must_reload) {
        iso_peer gone;
        while (!s->must_reload && iso_server_next_gone(s->server, &gone)) {
            iso_coord_event ev = {.kind = ISO_CE_PEER_GONE, .peer = gone};
            iso_shell_step(s, &ev);
        }
        if (s->answer_count) {
            iso_coord_event ev = s->answers[0];
            memmove(s->answers, s->answers + 1, --s->answer_count * sizeof *s->answers);
            iso_shell_step(s, &ev);
        } else {
            return; /* when to flush is the caller's decision */
        }
    }
}

void iso_shell_start_core(iso_shell *s)
{
    iso_coord_effects *out = &s->steps[0];
    iso_coord_effects_reset(out);
    iso_coord_start(s->core, s->clock.mono_ms(s->clock.ctx), s->clock.wall_ms(s->clock.ctx), out);
    s->op_count = s->held_count = 0;
    s->step_count = 1;
    for (size_t i = 0; i < out->count && !s->must_reload; i++)
        if (out->items[i].kind == ISO_CX_COMMIT ? !gather(s, &out->items[i])
                                                : !hold(s, &out->items[i]))
            s->must_reload = true;
    iso_shell_flush(s);
}
