/* The outbox: sealed updates travel in order of their sequence, one at a time, until a receipt or
 * a final refusal is durable (specs/security.md 4.5, S51-S54; transactions K5, K6).
 *
 * An update survives everything: what is not acknowledged is begun again after each reconnect and
 * goes on at the chunk that the coordinator names. */
#include "client/agent_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NO_CREDIT_MS = 60 * 1000, RETRY_MS = 1000, RETRY_MAX_MS = 300000, CHUNK_REFUSALS = 3 };

agent_update *agent_find_update(iso_agent *a, const uint8_t update_id[16])
{
    for (size_t i = 0; i < a->outbox_count; i++)
        if (memcmp(a->outbox[i].update_id, update_id, 16) == 0)
            return &a->outbox[i];
    return NULL;
}

static agent_update *traveller(iso_agent *a)
{
    return a->upload.state == UPLOAD_IDLE ? NULL : agent_find_update(a, a->upload.update_id);
}

static void begin(iso_agent *a, const agent_update *u)
{
    iso_msg_update_begin *m = &agent_send(a, ISO_MSG_UPDATE_BEGIN, NULL)->update_begin;
    memcpy(m->header, u->header, sizeof m->header);
    memcpy(m->signature, u->signature, sizeof m->signature);
    memcpy(m->idempotency, u->update_id, 16);
    memcpy(m->invite_id, u->invite_id, 16);
    a->upload.state = UPLOAD_BEGUN;
    a->upload.deadline_ms = a->mono + a->config.reply_ms;
}

void agent_upload_next(iso_agent *a)
{
    if (a->upload.state != UPLOAD_IDLE || !agent_is_online(a) || a->mono < a->upload.retry_ms)
        return;
    for (size_t i = 0; i < a->outbox_count; i++) {
        const agent_update *u = &a->outbox[i];
        if (u->state != OUTBOX_WAITING)
            continue;
        agent_upload *p = &a->upload;
        iso_code code;
        uint32_t refusals = memcmp(p->update_id, u->update_id, 16) == 0 ? p->refusals : 0;
        memset(p, 0, sizeof *p);
        p->refusals = refusals;
        memcpy(p->update_id, u->update_id, 16);
        if (iso_envelope_decode(u->header, sizeof u->header, &p->envelope, &code, NULL) != ISO_OK) {
            a->is_broken = true; /* checked when it was sealed, and by the store since */
            return;
        }
        begin(a, u);
        return;
    }
}

void agent_upload_lost(iso_agent *a)
{
    a->upload.state = UPLOAD_IDLE;
}

static void commit_upload(iso_agent *a, const agent_update *u)
{
    iso_msg_update_commit *m = &agent_send(a, ISO_MSG_UPDATE_COMMIT, NULL)->update_commit;
    memcpy(m->upload_id, a->upload.upload_id, 16);
    memcpy(m->body_digest, u->body.b, 32);
    a->upload.state = UPLOAD_COMMITTED;
    a->upload.deadline_ms = a->mono + a->config.commit_ms;
}

/* As many chunks as the coordinator lets be in flight. */
static void pump(iso_agent *a, const agent_update *u)
{
    agent_upload *p = &a->upload;
    if (p->received >= p->envelope.chunk_count) {
        commit_upload(a, u);
        return;
    }
    uint64_t step = (uint64_t)p->envelope.chunk_size + ISO_CHUNK_OVERHEAD_BYTES;
    while (p->next < p->envelope.chunk_count && p->next - p->received < p->credit) {
        iso_agent_effect *x;
        iso_msg_update_chunk *m = &agent_send(a, ISO_MSG_UPDATE_CHUNK, &x)->update_chunk;
        memcpy(m->upload_id, p->upload_id, 16);
        m->index = p->next;
        x->is_blob_piece = true;
        x->digest = u->body;
        x->offset = p->next * step;
        x->bytes = iso_envelope_chunk_bytes(&p->envelope, p->next);
        p->next++;
    }
    p->deadline_ms = a->mono + (p->next > p->received ? a->config.reply_ms : NO_CREDIT_MS);
}

void agent_upload_grant(iso_agent *a, const iso_msg_update_grant *m)
{
    agent_upload *p = &a->upload;
    agent_update *u = traveller(a);
    if (!u || p->state != UPLOAD_BEGUN || m->next_chunk > p->envelope.chunk_count)
        return;
    memcpy(p->upload_id, m->upload_id, 16);
    p->state = UPLOAD_SENDING;
    p->received = p->next = m->next_chunk;
    p->credit = m->credit;
    p->tries = 0;
    if (m->next_chunk > 0)
        agent_log(a, ISO_LOG_INFO, "upload_resumed", "chunk=%u of=%u", m->next_chunk,
                  p->envelope.chunk_count);
    pump(a, u);
}

void agent_upload_ack(iso_agent *a, const iso_msg_chunk_ack *m)
{
    agent_upload *p = &a->upload;
    agent_update *u = traveller(a);
    if (!u || p->state != UPLOAD_SENDING || memcmp(m->upload_id, p->upload_id, 16) != 0 ||
        m->received < p->received || m->received > p->next)
        return;
    p->received = m->received;
    p->credit = m->credit;
    p->tries = 0;
    pump(a, u);
}

void agent_upload_receipt(iso_agent *a, const iso_msg_receipt *m)
{
    agent_update *u = traveller(a);
    iso_receipt r;
    iso_error error = {0};
    if (!u)
        return;
    if (!a->roster) {
        agent_log(a, ISO_LOG_WARN, "receipt_unchecked", "reason=\"no roster yet\"");
        return; /* the roster comes first; the update is begun again and answered the same */
    }
    iso_err err = iso_receipt_check(m->receipt, sizeof m->receipt, m->signature,
                                    a->roster->audit_pk, &a->seams.sealer, &r, &error);
    iso_digest header = a->seams.sealer.digest(a->seams.sealer.ctx, u->header, sizeof u->header);
    if (err == ISO_OK && (memcmp(r.federation_id, a->config.federation_id, 16) != 0 ||
                          memcmp(r.site_id, a->config.site_id, 16) != 0 ||
                          memcmp(r.update_id, u->update_id, 16) != 0 ||
                          !iso_digest_equal(&r.header_digest, &header)))
        err = iso_fail(&error, ISO_ERR_TRUST, "receipt: it is not for this update");
    if (err != ISO_OK) { /* S52: nothing is deleted on such a word */
        agent_log(a, ISO_LOG_ERROR, "receipt_refused", "error=\"%s\"", error.text);
        return;
    }
    u->state = OUTBOX_ACKNOWLEDGED;
    u->epoch = r.epoch;
    u->audit_seq = r.audit_seq;
    u->done_ms = a->wall;
    memcpy(u->receipt, m->receipt, sizeof u->receipt);
    memcpy(u->receipt_signature, m->signature, sizeof u->receipt_signature);
    agent_save_update(a, u); /* K5 */
    agent_commit(a);
    a->upload.state = UPLOAD_IDLE;
    a->upload.refusals = 0;
    agent_log(a, ISO_LOG_INFO, "receipt", "round=%llu sequence=%llu audit_seq=%llu",
              (unsigned long long)u->round, (unsigned long long)u->sequence,
              (unsigned long long)u->audit_seq);
}

static void drop_file(iso_agent *a, agent_update *u)
{
    if (!u->has_file)
        return;
    u->has_file = false;
    agent_save_update(a, u); /* the row first, then the file (S84) */
    agent_commit(a);
    agent_effect(a, ISO_AX_DELETE_BLOB)->digest = u->body;
}

static void refuse(iso_agent *a, agent_update *u, const iso_msg_error *m)
{
    u->state = OUTBOX_REFUSED;
    u->code = m->code;
    u->done_ms = a->wall;
    agent_text(a, &u->sentence, m->sentence);
    a->upload.state = UPLOAD_IDLE;
    char quoted[2 * ISO_SENTENCE_MAX];
    iso_log_quote(quoted, sizeof quoted, m->sentence);
    agent_log(a, ISO_LOG_WARN, "update_refused", "round=%llu code=%s sentence=\"%s\"",
              (unsigned long long)u->round, iso_code_name(m->code), quoted);
    if (u->has_file) {
        drop_file(a, u); /* K6: code and the file's end in one row */
    } else {
        agent_save_update(a, u);
        agent_commit(a);
    }
}

void agent_upload_error(iso_agent *a, const iso_msg_error *m)
{
    agent_upload *p = &a->upload;
    agent_update *u = traveller(a);
    if (!u)
        return;
    p->refusals++;
    /* CHUNK names our place in the stream, not the update: begin again tells where we are. */
    bool is_out_of_step = m->code == ISO_CODE_CHUNK && p->refusals < CHUNK_REFUSALS;
    if (!iso_code_is_retryable(m->code) && !is_out_of_step) {
        refuse(a, u, m);
        return;
    }
    p->state = UPLOAD_IDLE;
    uint64_t wait = 0;
    if (m->code != ISO_CODE_UPLOAD_UNKNOWN || p->refusals > 1) {
        uint32_t n = p->refusals < 9 ? p->refusals - 1 : 8;
        uint64_t cap = (uint64_t)RETRY_MS << n;
        wait = agent_random_below(a, (cap < RETRY_MAX_MS ? cap : RETRY_MAX_MS) + 1);
    }
    p->retry_ms = a->mono + (wait > m->retry_after_ms ? wait : m->retry_after_ms);
    agent_log(a, ISO_LOG_INFO, "upload_waits", "code=%s retry_ms=%llu", iso_code_name(m->code),
              (unsigned long long)(p->retry_ms - a->mono));
}

/* Sealed files stay for a while after their receipt, within the outbox's ceiling (S86). */
static void expire_files(iso_agent *a)
{
    uint64_t held = 0;
    for (size_t i = a->outbox_count; i-- > 0;) {
        agent_update *u = &a->outbox[i];
        if (!u->has_file)
            continue;
        held += u->body_bytes;
        if (u->state == OUTBOX_ACKNOWLEDGED &&
            (held > a->config.outbox_bytes ||
             (a->wall > u->done_ms && a->wall - u->done_ms >= a->config.receipt_keep_ms)))
            drop_file(a, u);
    }
}

void agent_upload_tick(iso_agent *a)
{
    expire_files(a);
    agent_upload *p = &a->upload;
    agent_update *u = traveller(a);
    if (!u || a->mono < p->deadline_ms)
        return;
    if (++p->tries >= AGENT_TRIES) {
        agent_link_lost(a, ISO_DOWN_LOST, "an upload got no answer");
    } else if (p->state == UPLOAD_COMMITTED) {
        commit_upload(a, u);
    } else {
        begin(a, u); /* the answer says which chunks are written */
    }
}

iso_time agent_upload_wake(const iso_agent *a)
{
    iso_time wake = AGENT_NEVER;
    bool is_waiting = false;
    for (size_t i = 0; i < a->outbox_count; i++) {
        const agent_update *u = &a->outbox[i];
        is_waiting = is_waiting || u->state == OUTBOX_WAITING;
        if (u->state == OUTBOX_ACKNOWLEDGED && u->has_file) {
            uint64_t due = u->done_ms + a->config.receipt_keep_ms; /* wall */
            iso_time at = due > a->wall ? a->mono + (due - a->wall) : a->mono;
            wake = at < wake ? at : wake;
        }
    }
    if (a->upload.state != UPLOAD_IDLE)
        wake = a->upload.deadline_ms < wake ? a->upload.deadline_ms : wake;
    else if (is_waiting && agent_is_online(a) && a->upload.retry_ms < wake)
        wake = a->upload.retry_ms;
    return wake;
}

void agent_upload_epoch(iso_agent *a, uint64_t restored_seq)
{
    for (size_t i = 0; i < a->outbox_count; i++) {
        agent_update *u = &a->outbox[i];
        if (u->state == OUTBOX_ACKNOWLEDGED && u->has_file && u->audit_seq > restored_seq) {
            u->state = OUTBOX_WAITING;
            agent_save_update(a, u);
        }
    }
}
