/* What malicious sites add to what their core says. They hold their own key only: they can sign
 * anything in their own name, and nothing in another's (specs/security.md 1.1). What they do to
 * their adapters is in train.c. */
#include "sim/inner.h"

#include <string.h>

iso_sim_blob *sim_malice_body(iso_sim *w, sim_site *s, const iso_msg *m, iso_sim_blob *blob,
                              uint64_t *offset, size_t bytes)
{
    iso_buf body = {0};
    iso_sim_blob *changed = NULL;
    (void)s;
    (void)m;
    if (iso_buf_append(&body, blob->data + *offset, bytes, NULL) == ISO_OK && bytes) {
        body.data[sim_random(&w->work, bytes)] ^= (uint8_t)(1u << sim_random(&w->work, 8));
        changed = iso_sim_pool_put(&w->pool, body.data, body.size, NULL);
    }
    iso_buf_free(&body);
    return changed;
}

void sim_malice_sealed(iso_sim *w, const sim_site *s, iso_envelope *h,
                       uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                       uint8_t signature[ISO_SIGNATURE_BYTES])
{
    iso_sim_signer signer = s->signer;
    iso_sealer sealer = iso_sealer_hash(&signer);
    (void)w;
    h->plain_size = 200u << 20;
    h->stream_size = h->plain_size + ISO_ENVELOPE_INNER_BYTES;
    h->chunk_count = (uint32_t)((h->stream_size + h->chunk_size - 1) / h->chunk_size);
    iso_envelope_encode(h, header);
    sealer.sign(sealer.ctx, ISO_LABEL_UPDATE, header, ISO_ENVELOPE_HEADER_BYTES, signature);
}

static void put(iso_sim *w, sim_site *s, const iso_msg *m, const char *fault)
{
    iso_error e;
    iso_packet *p = iso_packet_make(&w->packets, m, NULL, NULL, 0, false, &e);
    if (!p) {
        sim_fail(w, ISO_ERR_INTERNAL, &e);
        return;
    }
    p->fault = fault;
    sim_put_up(w, s->line, p);
}

/* Another header of the same round, well signed. */
static void begin_again(iso_sim *w, sim_site *s, const iso_msg *m, const uint8_t *as_site)
{
    iso_envelope h;
    iso_code code;
    iso_msg other = *m;
    iso_sealer sealer = iso_sealer_hash(&s->signer);
    iso_msg_update_begin *b = &other.update_begin;
    if (iso_envelope_decode(b->header, sizeof b->header, &h, &code, NULL) != ISO_OK)
        return;
    if (as_site)
        memcpy(h.site_id, as_site, 16);
    else
        h.sequence += 1000000;
    h.score = 0.999f;
    iso_update_id(h.site_id, h.task_id, h.round, h.sequence, h.update_id);
    iso_envelope_encode(&h, b->header);
    memcpy(b->idempotency, h.update_id, 16);
    sealer.sign(sealer.ctx, ISO_LABEL_UPDATE, b->header, sizeof b->header, b->signature);
    put(w, s, &other, NULL);
}

static void forge(iso_sim *w, sim_site *s, const iso_msg *m)
{
    const sim_site *victim = w->sites[sim_random(&w->work, w->site_count)];
    if (victim != s && victim->is_enrolled)
        begin_again(w, s, m, victim->id);
    iso_msg other = *m;
    other.update_begin.signature[5] ^= 1;
    put(w, s, &other, NULL);
}

static void replay(iso_sim *w, sim_site *s, iso_packet *p)
{
    uint32_t slot = (uint32_t)sim_random(&w->work, SIM_KEPT);
    iso_packet *old = s->kept[slot];
    if (old) {
        if (old->blob)
            iso_sim_blob_ref(old->blob);
        put(w, s, old->msg, NULL);
        iso_sim_blob_drop(&w->pool, old->blob);
    }
    if (p->msg->type == ISO_MSG_UPDATE_CHUNK)
        return; /* its body is not kept */
    iso_packet_drop(&w->packets, &w->pool, old);
    p->refs++;
    s->kept[slot] = p;
}

static void garbage(iso_sim *w, sim_site *s)
{
    iso_msg m = {.version = 1, .id = 9999};
    switch (sim_random(&w->work, 4)) {
    case 0:
        m.type = ISO_MSG_PING;
        put(w, s, &m, "bytes that do not decode");
        break;
    case 1:
        m.type = ISO_MSG_ENROLL; /* a token may only enrol, and a site may not */
        m.enroll.name = "other";
        put(w, s, &m, NULL);
        break;
    case 2:
        m.type = ISO_MSG_UPDATE_CHUNK; /* of no upload */
        sim_entropy(w, m.update_chunk.upload_id, 16);
        put(w, s, &m, NULL);
        break;
    default:
        m.type = ISO_MSG_EVAL_RESULT; /* of no question */
        m.eval_result.score = 1.0f;
        m.eval_result.samples = 5;
        put(w, s, &m, NULL);
        break;
    }
}

void sim_malice_sent(iso_sim *w, sim_site *s, const iso_msg *m, iso_packet *p)
{
    if (s->state != SITE_RUNNING)
        return;
    switch (s->malice) {
    case ISO_MALICE_EQUIVOCATE:
        if (m->type == ISO_MSG_UPDATE_COMMIT && s->kept[0])
            begin_again(w, s, s->kept[0]->msg, NULL);
        if (m->type == ISO_MSG_UPDATE_BEGIN) {
            iso_packet_drop(&w->packets, &w->pool, s->kept[0]);
            p->refs++;
            s->kept[0] = p;
        }
        break;
    case ISO_MALICE_FORGE:
        if (m->type == ISO_MSG_UPDATE_BEGIN)
            forge(w, s, m);
        break;
    case ISO_MALICE_REPLAY:
        if (sim_chance(&w->work, 0.5))
            replay(w, s, p);
        break;
    case ISO_MALICE_GARBAGE:
        if (sim_chance(&w->work, 0.2))
            garbage(w, s);
        break;
    default:
        break;
    }
}
