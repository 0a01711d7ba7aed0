/* Updates from UpdateBegin to their receipt: rows 1 - 11 of the order of checks
 * (specs/security.md 3.2), cheap before dear, no state before authenticity. A refusal names its
 * row's code; what is admitted becomes a durable upload (C4). uploads.c carries it on. */
#include "coordinator/inner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    iso_coord *c;
    iso_c_peer *p;
    const iso_msg_update_begin *m;
    iso_envelope h;
    iso_digest header_digest;
    int task;
    iso_c_round *round;
    iso_c_invite *invite;
    char why[ISO_ERROR_BYTES];
} admission;

#define because(...) snprintf(a->why, sizeof a->why, __VA_ARGS__)

static iso_code row1_envelope(admission *a)
{
    iso_code code = ISO_CODE_BAD_ENVELOPE;
    iso_error e = {0};
    if (a->p->site->state != ISO_SITE_ACTIVE && a->p->site->state != ISO_SITE_QUARANTINED) {
        because("the site is %s", iso_site_state_name(a->p->site->state));
        return ISO_CODE_BUSY;
    }
    if (iso_envelope_decode(a->m->header, sizeof a->m->header, &a->h, &code, &e) != ISO_OK) {
        because("%s", e.text);
        return code;
    }
    if (memcmp(a->m->idempotency, a->h.update_id, 16) != 0) {
        because("the request's key is not the update's id");
        return ISO_CODE_BAD_ENVELOPE;
    }
    return ISO_CODE_OK;
}

static iso_code row2_site(admission *a)
{
    if (memcmp(a->h.federation_id, a->c->identity.federation, 16) != 0 ||
        memcmp(a->h.site_id, a->p->site->id, 16) != 0) {
        because("the header names another site or federation than the connection");
        return ISO_CODE_WRONG_SITE;
    }
    return ISO_CODE_OK;
}

static iso_code row3_task(admission *a)
{
    a->task = iso_c_task_by_id(a->c, a->h.task_id);
    if (a->task < 0 || !(a->p->site->tasks >> a->task & 1)) {
        because("no such task for this site");
        return ISO_CODE_TASK;
    }
    if (a->h.adapter_kind != ISO_KIND_LORA || a->h.metric != ISO_METRIC_ACCURACY) {
        because("task %s takes kind lora and metric accuracy", a->c->config.tasks[a->task].name);
        return ISO_CODE_TASK;
    }
    return ISO_CODE_OK;
}

static iso_code row4_sizes(admission *a)
{
    iso_coord *c = a->c;
    const iso_coord_task *t = &c->config.tasks[a->task];
    uint64_t body = iso_envelope_body_bytes(&a->h);
    if (a->h.plain_size > t->update_bytes || body > c->config.update_bytes ||
        a->h.chunk_count > ISO_CHUNKS_MAX) {
        because("%llu bytes, task %s takes %llu (update_bytes)",
                (unsigned long long)a->h.plain_size, t->name, (unsigned long long)t->update_bytes);
        return ISO_CODE_TOO_LARGE;
    }
    if (a->h.sample_count > ISO_SAMPLES_MAX || !isfinite(a->h.score)) {
        because("sample count or score out of range");
        return ISO_CODE_BAD_ENVELOPE;
    }
    if (c->is_disk_known && c->disk_free < c->config.disk_floor_bytes + body) {
        because("the coordinator's disk is nearly full");
        return ISO_CODE_DISK;
    }
    return ISO_CODE_OK;
}

static iso_code row5_round(admission *a)
{
    iso_coord *c = a->c;
    iso_c_round *r = iso_c_round_active(c);
    iso_c_round_task *t = r ? iso_c_round_task_of(r, a->task) : NULL;
    if (!r || r->number != a->h.round || r->state != ROUND_OPEN || !t) {
        because("round %llu is closed for task %s", (unsigned long long)a->h.round,
                c->config.tasks[a->task].name);
        return ISO_CODE_ROUND_CLOSED;
    }
    a->round = r;
    a->invite = iso_c_invite_of(r, a->p->site, a->task);
    if (!a->invite) {
        because("the site was not invited to round %llu", (unsigned long long)r->number);
        return ISO_CODE_ROUND_CLOSED;
    }
    if (a->h.generation != c->identity.generation ||
        !iso_digest_equal(&a->h.generation_digest, &c->identity.generation_digest)) {
        because("trained on generation %llu, current is %llu", (unsigned long long)a->h.generation,
                (unsigned long long)c->identity.generation);
        return ISO_CODE_GENERATION;
    }
    static const iso_digest none;
    const iso_digest *base = r->kind == ROUND_ADAPTER ? &c->tasks[a->task].adapter : &none;
    if (!iso_digest_equal(&a->h.base_digest, base)) {
        because("training did not start from the task's current adapter");
        return ISO_CODE_BASE;
    }
    return ISO_CODE_OK;
}

static iso_code row6_merge_key(admission *a)
{
    for (size_t i = 0; i < a->c->identity.merge_key_count; i++)
        if (a->c->identity.merge_keys[i].is_usable &&
            memcmp(a->c->identity.merge_keys[i].id, a->h.merge_key_id, 16) == 0)
            return ISO_CODE_OK;
    because("sealed to a merge key that the roster does not hold now");
    return ISO_CODE_MERGE_KEY;
}

static iso_code row7_signature(admission *a)
{
    if (a->c->sealer.verify(a->c->sealer.ctx, ISO_LABEL_UPDATE, a->p->site->sign_pk, a->m->header,
                            sizeof a->m->header, a->m->signature))
        return ISO_CODE_OK;
    because("the header is not signed by this site's key");
    return ISO_CODE_SIGNATURE;
}

/* S38: both headers and signatures are kept as proof, once. */
static void keep_proof(iso_coord *c, const uint8_t update_id[16], const uint8_t first[448],
                       const admission *a)
{
    uint8_t key[48], value[1 + 2 * 448];
    memcpy(key, update_id, 16);
    memcpy(key + 16, a->header_digest.b, 32);
    value[0] = 1;
    memset(value + 1, 0, 448);
    if (first)
        memcpy(value + 1, first, 448);
    memcpy(value + 449, a->m->header, 384);
    memcpy(value + 449 + 384, a->m->signature, 64);
    iso_c_put(c, ISO_CT_PROOF, ISO_OP_PUT, key, sizeof key, value, sizeof value);
    iso_c_audit(c, ISO_AUDIT_EQUIVOCATION, a->p->site->id, &a->header_digest, "\"round\":%llu",
                (unsigned long long)a->h.round);
    iso_c_log(c, ISO_LOG_ERROR, "equivocation", "site=%s round=%llu", a->p->site->name,
              (unsigned long long)a->h.round);
}

static iso_code row8_sequence(admission *a)
{
    iso_coord *c = a->c;
    iso_c_update *same = iso_index_get(&c->update_by_id, a->h.update_id);
    iso_c_update *counted = a->invite->update;
    if (same || counted) { /* the same header was answered with its receipt before */
        const iso_c_update *first = same ? same : counted;
        keep_proof(c, first->id, first->raw, a);
        because("this site's update of round %llu stands already, with other content",
                (unsigned long long)a->h.round);
        return ISO_CODE_EQUIVOCATION;
    }
    for (size_t i = 0; i < c->upload_count; i++) {
        const iso_c_upload *u = c->uploads[i];
        if (u->site != a->p->site || u->h.round != a->h.round ||
            memcmp(u->h.task_id, a->h.task_id, 16) != 0)
            continue;
        if (iso_digest_equal(&u->header_digest, &a->header_digest))
            return ISO_CODE_OK; /* resume */
        keep_proof(c, u->h.update_id, u->raw, a);
        because("an upload of this round with other content is under way");
        return ISO_CODE_EQUIVOCATION;
    }
    if (a->h.sequence <= a->p->site->sequence) {
        because("sequence %llu, the last one was %llu", (unsigned long long)a->h.sequence,
                (unsigned long long)a->p->site->sequence);
        return ISO_CODE_SEQUENCE;
    }
    if (a->p->site->uploads >= UPLOADS_A_SITE ||
        a->p->site->partial_bytes + iso_envelope_body_bytes(&a->h) > PARTIAL_BYTES_A_SITE) {
        because("at most %d partial uploads a site", UPLOADS_A_SITE);
        return ISO_CODE_QUOTA;
    }
    return ISO_CODE_OK;
}

static iso_code (*const rows[])(admission *a) = {row1_envelope,  row2_site,    row3_task,
                                                 row4_sizes,     row5_round,   row6_merge_key,
                                                 row7_signature, row8_sequence};

/* S39: what was acknowledged once is answered the same for ever, whatever has closed since. */
static bool answer_again(admission *a, uint64_t about)
{
    iso_c_update *u = iso_index_get(&a->c->update_by_id, a->h.update_id);
    if (!u || u->site != a->p->site || !iso_digest_equal(&u->header_digest, &a->header_digest))
        return false;
    iso_c_send_receipt(a->c, a->p, u, about);
    return true;
}

void iso_c_on_update_begin(iso_coord *c, iso_c_peer *p, const iso_msg *msg)
{
    admission a = {.c = c, .p = p, .m = &msg->update_begin};
    a.header_digest = c->sealer.digest(c->sealer.ctx, a.m->header, sizeof a.m->header);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_code code = rows[i](&a);
        if (code != ISO_CODE_OK) {
            iso_c_refuse(c, p, msg->id, code, a.m->idempotency, 16, "%s", a.why);
            return;
        }
        if (i == 1 && answer_again(&a, msg->id))
            return;
    }
    iso_c_upload_begin(c, p, &a.h, a.m->header, a.m->signature, &a.header_digest, msg->id);
}
