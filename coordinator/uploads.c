/* Uploads: chunks by credit, commit, receipt (specs/security.md 4.5 upload table, S51 - S53, C5).
 *
 * Credit is a window: chunks below received + credit may be sent. Every chunk is written before it
 * is acknowledged, so what is granted and not yet received bounds the memory of the transport; the
 * sum over all uploads is bounded by the pool (I6). */
#include "coordinator/inner.h"

#include <stdlib.h>
#include <string.h>

iso_c_upload *iso_c_upload_new(iso_coord *c)
{
    iso_c_upload *u = iso_calloc(1, sizeof *u);
    if (!u || !iso_c_push(c, (void ***)&c->uploads, &c->upload_count, &c->upload_capacity, u)) {
        c->is_out_of_memory = true;
        free(u);
        return NULL;
    }
    return u;
}

static iso_c_upload *upload_by_id(const iso_coord *c, const uint8_t id[16])
{
    for (size_t i = 0; i < c->upload_count; i++)
        if (memcmp(c->uploads[i]->id, id, 16) == 0)
            return c->uploads[i];
    return NULL;
}

bool iso_coord_has_upload(const iso_coord *c, const uint8_t upload_id[16])
{
    return upload_by_id(c, upload_id) != NULL;
}

iso_coord_busy iso_coord_peer_busy(const iso_coord *c, iso_peer peer)
{
    iso_coord_busy busy = ISO_BUSY_NOT;
    for (size_t i = 0; i < c->upload_count; i++) {
        const iso_c_upload *u = c->uploads[i];
        if (u->peer != peer)
            continue;
        if (u->state == UPLOAD_STORING)
            return ISO_BUSY_STORING;
        if (u->credit > 0)
            busy = ISO_BUSY_UPLOADING;
    }
    return busy;
}

/* ---- credit ---- */

static void set_credit(iso_coord *c, iso_c_upload *u, uint32_t credit)
{
    c->stats.credit_chunks += credit;
    c->stats.credit_chunks -= u->credit;
    u->credit = credit;
}

/* As much of the window as the pool and the rest of the body allow. */
static void renew_credit(iso_coord *c, iso_c_upload *u)
{
    uint64_t pool = c->config.chunk_pool_bytes / ISO_CHUNK_MAX_BYTES;
    uint64_t others = c->stats.credit_chunks - u->credit;
    uint64_t room = pool > others ? pool - others : 0;
    uint32_t left = u->h.chunk_count - u->next_chunk;
    uint32_t credit = c->config.credit < left ? c->config.credit : left;
    set_credit(c, u, room < credit ? (uint32_t)room : credit);
}

static void send_ack(iso_coord *c, iso_c_upload *u, iso_c_peer *p, uint64_t about)
{
    iso_msg_chunk_ack *k = &iso_c_send(c, p, ISO_MSG_CHUNK_ACK, about)->chunk_ack;
    memcpy(k->upload_id, u->id, 16);
    k->received = u->next_chunk;
    k->credit = u->credit;
}

static void send_grant(iso_coord *c, iso_c_upload *u, iso_c_peer *p, uint64_t about)
{
    iso_msg_update_grant *g = &iso_c_send(c, p, ISO_MSG_UPDATE_GRANT, about)->update_grant;
    memcpy(g->upload_id, u->id, 16);
    g->next_chunk = u->next_chunk;
    g->credit = u->credit;
    g->expires_ms = u->begun_ms + c->config.upload_age_ms;
}

/* Credit that came back goes to those who wait with none, the longest first. */
static void top_up(iso_coord *c)
{
    for (size_t i = 0; i < c->upload_count; i++) {
        iso_c_upload *u = c->uploads[i];
        iso_c_peer *p = u->peer ? iso_c_peer_by_id(c, u->peer) : NULL;
        if (u->state != UPLOAD_OPEN || u->credit > 0 || u->next_chunk == u->h.chunk_count || !p)
            continue;
        renew_credit(c, u);
        if (u->credit == 0)
            return;
        send_ack(c, u, p, 0);
    }
}

void iso_c_upload_free(iso_coord *c, iso_c_upload *u)
{
    set_credit(c, u, 0);
    if (u->site) {
        u->site->uploads--;
        u->site->partial_bytes -= iso_envelope_body_bytes(&u->h);
    }
    iso_c_remove((void **)c->uploads, &c->upload_count, u);
    free(u);
}

/* Row and partial file go; the row first (S84). */
static void drop(iso_coord *c, iso_c_upload *u)
{
    iso_c_delete_upload(c, u);
    iso_coord_effect *x = iso_c_emit(c, ISO_CX_UPLOAD_DROP);
    memcpy(x->id, u->id, 16);
    iso_c_upload_free(c, u);
}

static void emit_open(iso_coord *c, const iso_c_upload *u)
{
    iso_coord_effect *x = iso_c_emit(c, ISO_CX_UPLOAD_OPEN);
    memcpy(x->id, u->id, 16);
    x->chunk_bytes = u->h.chunk_size + ISO_CHUNK_OVERHEAD_BYTES;
    x->chunk_count = u->h.chunk_count;
    x->body_bytes = iso_envelope_body_bytes(&u->h);
}

/* ---- begin: C4, or the same again ---- */

void iso_c_upload_begin(iso_coord *c, iso_c_peer *p, const iso_envelope *h,
                        const uint8_t header[384], const uint8_t signature[64],
                        const iso_digest *header_digest, uint64_t about)
{
    iso_c_upload *u = upload_by_id(c, header_digest->b);
    if (u) { /* resume (S53): the newest connection of the site goes on with it */
        u->peer = p->id;
        u->request_id = about;
        if (u->state == UPLOAD_OPEN) {
            renew_credit(c, u);
            send_grant(c, u, p, about);
        }
        return;
    }
    if (!(u = iso_c_upload_new(c)))
        return;
    memcpy(u->id, header_digest->b, 16);
    u->state = UPLOAD_OPENING;
    u->site = p->site;
    u->h = *h;
    memcpy(u->raw, header, 384);
    memcpy(u->raw + 384, signature, 64);
    u->header_digest = *header_digest;
    u->begun_ms = c->wall;
    u->peer = p->id;
    u->request_id = about;
    p->site->uploads++;
    p->site->partial_bytes += iso_envelope_body_bytes(h);
    iso_c_save_upload(c, u);
    emit_open(c, u);
}

void iso_c_on_upload_opened(iso_coord *c, const uint8_t id[16], uint32_t chunks)
{
    iso_c_upload *u = upload_by_id(c, id);
    if (!u || u->state != UPLOAD_OPENING)
        return;
    u->state = UPLOAD_OPEN;
    u->next_chunk = chunks < u->h.chunk_count ? chunks : u->h.chunk_count;
    u->is_from_disk = chunks > 0;
    iso_c_peer *p = u->peer ? iso_c_peer_by_id(c, u->peer) : NULL;
    if (!p)
        return;
    renew_credit(c, u);
    send_grant(c, u, p, u->request_id);
}

/* ---- chunks: row 9 ---- */

/* The upload that a message of this peer names; NULL: it has been told. */
static iso_c_upload *own_upload(iso_coord *c, iso_c_peer *p, const uint8_t id[16], uint64_t about)
{
    iso_c_upload *u = upload_by_id(c, id);
    if (u && u->site == p->site && u->state == UPLOAD_OPEN)
        return u;
    iso_c_refuse(c, p, about, ISO_CODE_UPLOAD_UNKNOWN, id, 16, "no open upload of that id");
    return NULL;
}

static void fault(iso_coord *c, iso_c_peer *p, const iso_c_upload *u, uint64_t about,
                  const char *why)
{
    iso_c_refuse(c, p, about, ISO_CODE_CHUNK, u->h.update_id, 16, "%s", why);
    if (++p->faults >= FAULTS_BEFORE_CUT)
        iso_c_cut(c, p, "three bad chunks");
}

void iso_c_on_update_chunk(iso_coord *c, iso_c_peer *p, const iso_msg *m, const uint8_t *body,
                           size_t bytes)
{
    iso_c_upload *u = own_upload(c, p, m->update_chunk.upload_id, m->id);
    uint32_t index = m->update_chunk.index;
    if (!u)
        return;
    if (index < u->next_chunk) { /* a duplicate: acknowledged, not written */
        u->peer = p->id;
        send_ack(c, u, p, m->id);
        return;
    }
    if (index > u->next_chunk || u->credit == 0) {
        fault(c, p, u, m->id, index > u->next_chunk ? "not the next chunk" : "outside the credit");
        return;
    }
    if (bytes != iso_envelope_chunk_bytes(&u->h, index)) {
        fault(c, p, u, m->id, "not the length that the header gives it");
        return;
    }
    u->peer = p->id;
    iso_coord_effect *x = iso_c_emit(c, ISO_CX_UPLOAD_WRITE);
    memcpy(x->id, u->id, 16);
    x->data = body; /* written before the event's memory goes */
    x->data_bytes = bytes;
    u->next_chunk++;
    renew_credit(c, u);
    send_ack(c, u, p, m->id);
    if (u->next_chunk == u->h.chunk_count)
        top_up(c);
}

/* ---- commit: rows 10, 11 ---- */

void iso_c_send_receipt(iso_coord *c, iso_c_peer *p, const iso_c_update *u, uint64_t about)
{
    iso_receipt r = {.header_digest = u->header_digest,
                     .epoch = u->epoch,
                     .audit_seq = u->audit_seq,
                     .audit_head = u->audit_head};
    memcpy(r.federation_id, c->identity.federation, 16);
    memcpy(r.site_id, u->site->id, 16);
    memcpy(r.update_id, u->id, 16);
    iso_msg_receipt *m = &iso_c_send(c, p, ISO_MSG_RECEIPT, about)->receipt;
    iso_receipt_encode(&r, m->receipt);
    memcpy(m->signature, u->receipt_signature, 64);
}

void iso_c_on_update_commit(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    const iso_msg_update_commit *q = &m->update_commit;
    iso_c_upload *u = upload_by_id(c, q->upload_id);
    if (!u || u->site != p->site) {
        /* Its name was the header's digest: a commit that comes again finds the receipt. */
        for (size_t i = c->round_count; i > c->rounds_with_details; i--)
            for (size_t k = 0; k < c->rounds[i - 1]->update_count; k++) {
                const iso_c_update *done = c->rounds[i - 1]->updates[k];
                if (done->site == p->site && !memcmp(done->header_digest.b, q->upload_id, 16)) {
                    iso_c_send_receipt(c, p, done, m->id);
                    return;
                }
            }
        own_upload(c, p, q->upload_id, m->id);
        return;
    }
    if (u->state == UPLOAD_STORING) {
        u->peer = p->id;
        u->request_id = m->id;
        return;
    }
    if (!own_upload(c, p, q->upload_id, m->id))
        return;
    if (u->next_chunk < u->h.chunk_count) {
        fault(c, p, u, m->id, "chunks are missing");
        return;
    }
    if (memcmp(q->body_digest, u->h.body_digest.b, 32) != 0) {
        iso_c_refuse(c, p, m->id, ISO_CODE_BODY_DIGEST, u->h.update_id, 16,
                     "the commit names another digest than the header");
        drop(c, u);
        return;
    }
    u->state = UPLOAD_STORING;
    u->peer = p->id;
    u->request_id = m->id;
    iso_coord_effect *x = iso_c_emit(c, ISO_CX_UPLOAD_STORE);
    memcpy(x->id, u->id, 16);
    x->digest = u->h.body_digest;
    x->body_bytes = iso_envelope_body_bytes(&u->h);
}

static iso_c_update *make_update(iso_coord *c, const iso_c_upload *u, iso_c_round *r)
{
    iso_c_update *x = iso_calloc(1, sizeof *x);
    if (!x || !(x->raw = iso_calloc(1, sizeof u->raw))) {
        c->is_out_of_memory = true;
        free(x);
        return NULL;
    }
    memcpy(x->id, u->h.update_id, 16);
    memcpy(x->raw, u->raw, sizeof u->raw);
    memcpy(x->task_id, u->h.task_id, 16);
    x->site = u->site;
    x->task = iso_c_task_by_id(c, u->h.task_id);
    x->round = u->h.round;
    x->sequence = u->h.sequence;
    x->samples = u->h.sample_count;
    x->score = u->h.score;
    x->committed_ms = c->wall;
    x->header_digest = u->header_digest;
    x->blob = u->h.body_digest;
    x->blob_bytes = iso_envelope_body_bytes(&u->h);
    x->epoch = c->identity.epoch;
    x->state = ISO_UPDATE_PENDING;
    if (!iso_c_round_add_update(c, r, x)) {
        free(x->raw);
        free(x);
        return NULL;
    }
    return x;
}

/* C5: the update, the site's sequence, the receipt and the audit entry in one transaction. */
static void committed(iso_coord *c, iso_c_upload *u)
{
    iso_c_round *r = iso_c_round_by_number(c, u->h.round);
    iso_c_update *x = r ? make_update(c, u, r) : NULL;
    if (!x)
        return;
    iso_c_site *s = u->site;
    iso_c_audit(c, ISO_AUDIT_COMMITTED, s->id, &x->header_digest,
                "\"round\":%llu,\"samples\":%llu,\"sequence\":%llu", (unsigned long long)x->round,
                (unsigned long long)x->samples, (unsigned long long)x->sequence);
    x->audit_seq = c->audit_seq;
    x->audit_head = c->audit_head;
    iso_receipt rec = {.header_digest = x->header_digest,
                       .epoch = x->epoch,
                       .audit_seq = x->audit_seq,
                       .audit_head = x->audit_head};
    uint8_t bytes[ISO_RECEIPT_BYTES];
    memcpy(rec.federation_id, c->identity.federation, 16);
    memcpy(rec.site_id, s->id, 16);
    memcpy(rec.update_id, x->id, 16);
    iso_receipt_encode(&rec, bytes);
    c->sealer.sign(c->sealer.ctx, ISO_LABEL_RECEIPT, bytes, sizeof bytes, x->receipt_signature);
    s->sequence = x->sequence;
    iso_c_save_site(c, s, ISO_OP_PUT);
    iso_c_save_update(c, x, ISO_OP_INSERT);
    iso_c_delete_upload(c, u);
    iso_c_peer *p = u->peer ? iso_c_peer_by_id(c, u->peer) : NULL;
    uint64_t about = u->request_id;
    iso_c_upload_free(c, u);
    iso_c_log(c, ISO_LOG_INFO, "update_committed", "site=%s round=%llu samples=%llu bytes=%llu",
              s->name, (unsigned long long)x->round, (unsigned long long)x->samples,
              (unsigned long long)x->blob_bytes);
    if (p && !p->is_cut)
        iso_c_send_receipt(c, p, x, about);
    top_up(c);
    iso_c_round_committed(c, x);
}

void iso_c_on_upload_stored(iso_coord *c, const uint8_t id[16], iso_stored stored)
{
    iso_c_upload *u = upload_by_id(c, id);
    if (!u)
        return;
    /* S26: a site revoked meanwhile has no uploads left; this is its last look. */
    if (stored == ISO_STORED_OK && u->site->state != ISO_SITE_REVOKED &&
        u->state == UPLOAD_STORING) {
        committed(c, u);
        return;
    }
    iso_c_peer *p = u->peer ? iso_c_peer_by_id(c, u->peer) : NULL;
    /* Chunks are not synced one by one: what a crash left may be torn. The site then sends it all
     * again; BODY_DIGEST would make it give the update up. */
    bool is_torn = stored == ISO_STORED_DIGEST && u->is_from_disk;
    iso_code code = stored == ISO_STORED_DISK || is_torn ? ISO_CODE_DISK : ISO_CODE_BODY_DIGEST;
    if (p && !p->is_cut)
        iso_c_refuse(c, p, u->request_id, code, u->h.update_id, 16, "%s",
                     is_torn                 ? "what a restart left of the body is torn: again"
                     : code == ISO_CODE_DISK ? "the coordinator's disk is full"
                                             : "the body is not what the header says");
    drop(c, u);
}

/* ---- time, peers, restart ---- */

void iso_c_uploads_start(iso_coord *c)
{
    for (size_t i = 0; i < c->upload_count; i++)
        emit_open(c, c->uploads[i]);
}

void iso_c_uploads_tick(iso_coord *c)
{
    for (size_t i = c->upload_count; i > 0; i--) {
        iso_c_upload *u = c->uploads[i - 1];
        if (u->state != UPLOAD_STORING && c->wall > u->begun_ms + c->config.upload_age_ms)
            drop(c, u);
    }
    top_up(c);
}

void iso_c_uploads_peer_gone(iso_coord *c, iso_peer id)
{
    bool is_freed = false;
    for (size_t i = 0; i < c->upload_count; i++)
        if (c->uploads[i]->peer == id) {
            c->uploads[i]->peer = 0;
            set_credit(c, c->uploads[i], 0);
            is_freed = true;
        }
    if (is_freed)
        top_up(c);
}

static bool is_meant(const iso_c_upload *u, const iso_c_site *s, uint64_t round, iso_code code)
{
    return (!s || u->site == s) && (round == 0 || u->h.round == round) &&
           (u->state != UPLOAD_STORING || code == ISO_CODE_REVOKED);
}

void iso_c_uploads_drop(iso_coord *c, const iso_c_site *s, uint64_t round, iso_code code,
                        const char *why)
{
    /* All rows first: they belong to the transaction of what made them fall. */
    for (size_t i = 0; i < c->upload_count; i++)
        if (is_meant(c->uploads[i], s, round, code)) {
            iso_c_notify(c, c->uploads[i]->site, code, c->uploads[i]->h.update_id, why);
            iso_c_delete_upload(c, c->uploads[i]);
        }
    for (size_t i = c->upload_count; i > 0; i--)
        if (is_meant(c->uploads[i - 1], s, round, code))
            drop(c, c->uploads[i - 1]);
    top_up(c);
}

bool iso_c_uploads_storing(const iso_coord *c, uint64_t round)
{
    for (size_t i = 0; i < c->upload_count; i++)
        if (c->uploads[i]->state == UPLOAD_STORING && c->uploads[i]->h.round == round)
            return true;
    return false;
}
