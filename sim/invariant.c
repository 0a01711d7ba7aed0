#include "sim/invariant.h"

#include "client/agent.h"
#include "sim/sealer_hash.h"

#include <stdlib.h>
#include <string.h>

static iso_err broken(iso_error *e, const char *which, const char *what, uint64_t a, uint64_t b)
{
    return iso_fail(e, ISO_ERR_INTERNAL, "invariant %s: %s (%llu, %llu)", which, what,
                    (unsigned long long)a, (unsigned long long)b);
}

static uint64_t key_number(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | p[i];
    return v;
}

void iso_history_open(iso_history *h, const iso_sealer *sealer, const iso_digest *start)
{
    *h = (iso_history){.sealer = sealer, .audit_head = *start};
}

static void free_all(iso_index *x)
{
    for (size_t i = 0; i < x->capacity; i++)
        free(x->slots[i].value);
    iso_index_free(x);
}

void iso_history_close(iso_history *h)
{
    free_all(&h->updates);
    free_all(&h->sites);
    iso_index_free(&h->once);
    free(h->signed_releases);
    free(h->releases);
    *h = (iso_history){0};
}

/* ---- rows of the coordinator ---- */

static iso_history_site *site_of(iso_history *h, const uint8_t id[16])
{
    iso_history_site *s = iso_index_get(&h->sites, id);
    if (s)
        return s;
    s = iso_calloc(1, sizeof *s);
    if (!s)
        return NULL;
    memcpy(s->id, id, 16);
    if (!iso_index_put(&h->sites, id, s)) {
        free(s);
        return NULL;
    }
    return s;
}

/* I5: a row that only a site's own message makes. */
static iso_err check_actor(const iso_history *h, const uint8_t id[16], const char *what,
                           iso_error *e)
{
    const iso_history_site *s = iso_index_get(&h->sites, id);
    if (!s)
        return broken(e, "I5", "a row of a site that is not enrolled", 0, 0);
    if (s->state == ISO_SITE_REVOKED)
        return iso_fail(e, ISO_ERR_INTERNAL, "invariant I5: %s of a revoked site was recorded",
                        what);
    return ISO_OK;
}

static void once_key(const uint8_t *site, const uint8_t *task, uint64_t round, uint8_t key[16])
{
    static const iso_sim_key k = {{11, 12, 13, 14}};
    uint8_t text[40];
    memcpy(text, site, 16);
    memcpy(text + 16, task, 16);
    iso_put_u64(text + 32, round);
    iso_digest d = iso_short_hash(&k, text, sizeof text);
    memcpy(key, d.b, 16);
}

static void count_state(iso_history *h, unsigned state, int by)
{
    uint64_t *of[] = {NULL, &h->used, &h->refused, &h->late};
    if (state < 4 && of[state])
        *of[state] += (uint64_t)by;
}

/* The fields of an update's row (docs/FORMATS.md "update"). */
typedef struct {
    unsigned state;
    uint32_t code;
    const uint8_t *site, *task, *header, *receipt;
    uint64_t round, sequence;
} update_row;

static bool read_update(const iso_op *op, update_row *r)
{
    const uint8_t *p = op->value;
    size_t n = op->value_bytes;
    if (n < 8)
        return false;
    r->state = p[1];
    r->code = iso_get_u32(p + 2);
    size_t text = iso_get_u16(p + 6), at = 8 + text;
    enum { FIXED = 16 + 16 + 8 * 6 + 32 + 32 + 8 + 8 + 32 + 8 + 64 };
    if (n < at + FIXED)
        return false;
    p += at;
    r->site = p;
    r->task = p + 16;
    r->round = iso_get_u64(p + 32);
    r->sequence = iso_get_u64(p + 40);
    r->header = p + 80;
    r->receipt = p + 80 + 32 + 32 + 8 + 8 + 32 + 8;
    return true;
}

static iso_err new_update(iso_history *h, const iso_op *op, const update_row *r, iso_error *e)
{
    uint8_t key[16];
    iso_err err = check_actor(h, r->site, "an update", e);
    if (err)
        return err;
    iso_history_site *s = site_of(h, r->site);
    if (iso_index_get(&h->updates, op->key))
        return broken(e, "I1", "an update was committed twice", r->round, r->sequence);
    if (r->sequence <= s->sequence)
        return broken(e, "I9", "a site's sequence did not rise", r->sequence, s->sequence);
    s->sequence = r->sequence;
    once_key(r->site, r->task, r->round, key);
    if (iso_index_get(&h->once, key))
        return broken(e, "I10", "two updates of one site, task and round", r->round, r->sequence);
    iso_history_update *u = iso_calloc(1, sizeof *u);
    if (!u || !iso_index_put(&h->updates, op->key, u) || !iso_index_put(&h->once, key, u))
        return iso_nomem(e, sizeof *u);
    memcpy(u->id, op->key, 16);
    memcpy(u->site, r->site, 16);
    memcpy(u->task, r->task, 16);
    memcpy(u->header.b, r->header, 32);
    memcpy(u->receipt, r->receipt, 64);
    u->round = r->round;
    u->sequence = r->sequence;
    u->state = (uint8_t)r->state;
    h->receipts++;
    return ISO_OK;
}

/* I1: used once or refused once, with a code, and never anything else after. */
static iso_err put_update(iso_history *h, const iso_op *op, iso_error *e)
{
    update_row r;
    if (!read_update(op, &r))
        return broken(e, "I1", "an update's row does not read", op->value_bytes, 0);
    iso_history_update *u = iso_index_get(&h->updates, op->key);
    if (op->kind == ISO_OP_INSERT || !u) {
        iso_err err = op->kind == ISO_OP_INSERT
                          ? new_update(h, op, &r, e)
                          : broken(e, "I1", "a row of an update that was never committed", r.round,
                                   r.sequence);
        if (err)
            return err;
        u = iso_index_get(&h->updates, op->key);
        if (r.state == ISO_UPDATE_PENDING)
            return ISO_OK;
        u->state = ISO_UPDATE_PENDING;
    }
    if (u->round != r.round || u->sequence != r.sequence || memcmp(u->site, r.site, 16) != 0 ||
        memcmp(u->header.b, r.header, 32) != 0)
        return broken(e, "I1", "an acknowledged update changed", r.round, r.sequence);
    if (r.state == u->state)
        return ISO_OK;
    if (u->state != ISO_UPDATE_PENDING)
        return broken(e, "I1", "an update that was judged is judged again", u->state, r.state);
    if (r.state == ISO_UPDATE_USED && !u->has_job)
        return broken(e, "I1", "an update counts that was in no merge's input", r.round,
                      r.sequence);
    if (r.state == ISO_UPDATE_REFUSED && r.code == ISO_CODE_OK)
        return broken(e, "I1", "an update is refused without a code", r.round, r.sequence);
    u->state = (uint8_t)r.state;
    count_state(h, r.state, 1);
    if (r.state == ISO_UPDATE_REFUSED && r.code < ISO_CODE_END)
        h->refused_by[r.code]++;
    return ISO_OK;
}

/* C13: rows of old rounds go, each with a fate. */
static iso_err delete_update(iso_history *h, const iso_op *op, iso_error *e)
{
    uint8_t key[16];
    iso_history_update *u = iso_index_get(&h->updates, op->key);
    if (!u)
        return ISO_OK;
    if (u->state == ISO_UPDATE_PENDING)
        return broken(e, "I1", "an acknowledged update was deleted without a fate", u->round,
                      u->sequence);
    once_key(u->site, u->task, u->round, key);
    iso_index_remove(&h->once, key);
    iso_index_remove(&h->updates, op->key);
    free(u);
    h->retired++;
    return ISO_OK;
}

static iso_err put_site(iso_history *h, const iso_op *op, iso_error *e)
{
    iso_history_site *s = site_of(h, op->key);
    if (!s || op->value_bytes < 2)
        return iso_nomem(e, sizeof *s);
    if (s->state == ISO_SITE_REVOKED && op->value[1] != ISO_SITE_REVOKED)
        return broken(e, "I5", "a revoked site came back", op->value[1], 0);
    s->state = op->value[1];
    return ISO_OK;
}

/* I2: numbers rise by one, and what a number names never changes. I3: it is signed. */
static iso_err put_release(iso_history *h, const iso_op *op, iso_error *e)
{
    uint64_t number = key_number(op->key);
    iso_digest manifest;
    if (op->value_bytes < 49)
        return broken(e, "I2", "a release's row does not read", number, 0);
    memcpy(manifest.b, op->value + 17, 32);
    for (size_t i = 0; i < h->release_count; i++)
        if (h->releases[i].number == number)
            return iso_digest_equal(&h->releases[i].manifest, &manifest) &&
                           op->kind != ISO_OP_INSERT
                       ? ISO_OK
                       : broken(e, "I2", "a release number was used twice", number, 0);
    uint64_t last = h->release_count ? h->releases[h->release_count - 1].number : 0;
    if (number != last + 1)
        return broken(e, "I2", "release numbers do not rise by one", number, last);
    bool is_signed = false;
    for (size_t i = h->signed_count; i-- > 0 && !is_signed;)
        is_signed = h->signed_releases[i].number == number &&
                    iso_digest_equal(&h->signed_releases[i].manifest, &manifest);
    if (!is_signed)
        return broken(e, "I3", "a release that was not signed", number, 0);
    iso_history_release *wider = realloc(h->releases, (h->release_count + 1) * sizeof *wider);
    if (!wider)
        return iso_nomem(e, sizeof *wider);
    h->releases = wider;
    h->releases[h->release_count++] = (iso_history_release){number, manifest};
    return ISO_OK;
}

/* I7: the chain goes on from what is durable, entry by entry. */
static iso_err put_audit(iso_history *h, const iso_op *op, iso_error *e)
{
    if (op->value_bytes < 32 + 70 || op->kind != ISO_OP_INSERT)
        return broken(e, "I7", "an audit entry does not read", op->value_bytes, op->kind);
    uint64_t seq = iso_get_u64(op->value);
    size_t bytes = op->value_bytes - 32;
    if (seq != h->audit_seq + 1 || key_number(op->key) != seq)
        return broken(e, "I7", "audit entries do not follow each other", seq, h->audit_seq);
    iso_digest next = h->sealer->chain(h->sealer->ctx, &h->audit_head, op->value, bytes);
    if (memcmp(next.b, op->value + bytes, 32) != 0)
        return broken(e, "I7", "the audit chain breaks", seq, 0);
    h->audit_head = next;
    h->audit_seq = seq;
    return ISO_OK;
}

static void note_round(iso_history *h, uint64_t number, int kind, int state)
{
    if (number < h->round)
        return; /* what C13 leaves of an old one */
    bool had_ended = number == h->round && h->round_state >= ISO_HISTORY_RELEASED;
    bool is_counted = kind == ISO_HISTORY_ADAPTER_ROUND ||
                      (kind == ISO_HISTORY_HEAD_ROUND && state >= ISO_HISTORY_ABORTED);
    h->rounds_ended += is_counted && state >= ISO_HISTORY_RELEASED && !had_ended;
    h->round = number;
    h->round_kind = kind;
    h->round_state = state;
}

iso_err iso_history_commit(iso_history *h, const iso_op *ops, size_t count, iso_error *e)
{
    iso_err err = ISO_OK;
    for (size_t i = 0; i < count && !err; i++) {
        const iso_op *op = &ops[i];
        bool is_put = op->kind != ISO_OP_DELETE;
        switch (op->table) {
        case ISO_CT_SITE:
            err = is_put ? put_site(h, op, e) : broken(e, "I5", "a site was deleted", 0, 0);
            break;
        case ISO_CT_UPDATE:
            err = is_put ? put_update(h, op, e) : delete_update(h, op, e);
            break;
        case ISO_CT_RELEASE:
            err = is_put ? put_release(h, op, e) : broken(e, "I2", "a release was deleted", 0, 0);
            break;
        case ISO_CT_AUDIT:
            err =
                is_put ? put_audit(h, op, e) : broken(e, "I7", "an audit entry was deleted", 0, 0);
            break;
        case ISO_CT_UPLOAD:
            err = is_put ? check_actor(h, op->value + 1, "an upload", e) : ISO_OK;
            break;
        case ISO_CT_SCORE:
            err = is_put ? check_actor(h, op->key + 25, "a score", e) : ISO_OK;
            break;
        case ISO_CT_VERDICT:
            err = is_put ? check_actor(h, op->key + 8, "a verdict", e) : ISO_OK;
            if (is_put && op->value_bytes > 5)
                h->verdicts[iso_get_u32(op->value + 1) % ISO_VERDICTS]++;
            break;
        case ISO_CT_INVITE: /* replaced: the site answered */
            err = op->kind == ISO_OP_PUT ? check_actor(h, op->key + 8, "an answer", e) : ISO_OK;
            break;
        case ISO_CT_ROUND:
            if (is_put && op->value_bytes > 2)
                note_round(h, key_number(op->key), op->value[1], op->value[2]);
            break;
        default:
            break;
        }
    }
    return err;
}

/* ---- what the coordinator says and starts ---- */

static bool is_released(const iso_history *h, uint64_t number, const uint8_t manifest[32])
{
    for (size_t i = h->release_count; i-- > 0;)
        if (h->releases[i].number == number)
            return memcmp(h->releases[i].manifest.b, manifest, 32) == 0;
    return false;
}

iso_err iso_history_send(iso_history *h, const iso_msg *m, iso_error *e)
{
    if (m->type == ISO_MSG_RECEIPT) { /* I1: acknowledged is durable; S39: always the same */
        const uint8_t *r = m->receipt.receipt;
        iso_history_update *u = iso_index_get(&h->updates, r + 40);
        if (!u)
            return broken(e, "I1", "a receipt for an update that is not durable", 0, 0);
        if (memcmp(r + 56, u->header.b, 32) != 0 ||
            memcmp(u->receipt, m->receipt.signature, 64) != 0)
            return broken(e, "I1", "two receipts of one update differ", u->round, u->sequence);
        u->has_receipt = true;
    }
    if (m->type == ISO_MSG_RELEASE_OFFER &&
        !is_released(h, m->release_offer.number, m->release_offer.manifest_digest))
        return broken(e, "I3", "an offer of what is no signed release", m->release_offer.number, 0);
    return ISO_OK;
}

iso_err iso_history_job(iso_history *h, const iso_job *job, iso_error *e)
{
    for (size_t k = 0; k < job->task_count; k++)
        for (size_t i = 0; i < job->tasks[k].update_count; i++) {
            iso_history_update *u = iso_index_get(&h->updates, job->tasks[k].updates[i].update_id);
            if (!u)
                return broken(e, "I1", "a merge's input is not durable", job->round, i);
            if (u->round != job->round)
                return broken(e, "I1", "an update is merged in another round", u->round,
                              job->round);
            if (u->has_job && memcmp(u->job, job->id, 16) != 0)
                return broken(e, "I1", "an update is the input of two merges", u->round,
                              u->sequence);
            if (u->state != ISO_UPDATE_PENDING)
                return broken(e, "I1", "an update that was judged is merged", u->round,
                              u->sequence);
            memcpy(u->job, job->id, 16);
            u->has_job = true;
        }
    return ISO_OK;
}

iso_err iso_history_signed(iso_history *h, uint64_t number, const iso_digest *manifest,
                           iso_error *e)
{
    for (size_t i = h->signed_count; i-- > 0;)
        if (h->signed_releases[i].number == number)
            return iso_digest_equal(&h->signed_releases[i].manifest, manifest)
                       ? ISO_OK
                       : broken(e, "I2", "a number was signed with two contents", number, 0);
    iso_history_release *wider = realloc(h->signed_releases, (h->signed_count + 1) * sizeof *wider);
    if (!wider)
        return iso_nomem(e, sizeof *wider);
    h->signed_releases = wider;
    h->signed_releases[h->signed_count++] = (iso_history_release){number, *manifest};
    return ISO_OK;
}

iso_err iso_history_restored(const iso_history *h, const iso_coord *c, iso_error *e)
{
    iso_coord_stats s;
    iso_coord_get_stats(c, &s);
    if (s.receipts != h->receipts)
        return broken(e, "I8", "a restart lost or found updates", s.receipts, h->receipts);
    if (s.used != h->used || s.refused != h->refused)
        return broken(e, "I8", "a restart changed an update's fate", s.used, h->used);
    uint64_t last = h->release_count ? h->releases[h->release_count - 1].number : 0;
    if (s.release != last)
        return broken(e, "I8", "a restart changed the current release", s.release, last);
    if (s.audit_seq != h->audit_seq)
        return broken(e, "I8", "a restart lost audit entries", s.audit_seq, h->audit_seq);
    return ISO_OK;
}

/* ---- sites ---- */

static iso_err client_outbox(const iso_history *h, iso_history_client *x, const iso_sim_disk *disk,
                             const iso_op *op, iso_error *e)
{
    enum { STATE_AT = 17, SEQUENCE_AT = 18, ACKNOWLEDGED = 2 };
    if (op->value_bytes < 34)
        return broken(e, "I9", "an outbox row does not read", op->value_bytes, 0);
    uint64_t sequence = iso_get_u64(op->value + SEQUENCE_AT);
    if (!iso_sim_disk_row(disk, ISO_AT_OUTBOX, op->key, op->key_bytes)) {
        if (sequence <= x->sequence)
            return broken(e, "I9", "a site used a sequence twice", sequence, x->sequence);
        x->sequence = sequence;
    }
    if (op->value[STATE_AT] == ACKNOWLEDGED) {
        const iso_history_update *u = iso_index_get(&h->updates, op->key);
        if (u && !u->has_receipt)
            return broken(e, "I1", "a site holds a receipt that was never sent", sequence, 0);
    }
    return ISO_OK;
}

/* I12: the highest number seen never falls within an epoch. */
static iso_err client_meta(const iso_history *h, iso_history_client *x, const iso_op *op,
                           iso_error *e)
{
    if (op->key_bytes != 5 || op->value_bytes < 41)
        return ISO_OK;
    uint64_t epoch = iso_get_u64(op->value + 1), highest = iso_get_u64(op->value + 17);
    uint64_t current = iso_get_u64(op->value + 25);
    if (epoch == x->epoch && highest < x->highest)
        return broken(e, "I12", "the highest release number fell", highest, x->highest);
    if (current && (current > highest || current > h->signed_count))
        return broken(e, "I11", "a release serves that nobody signed", current, highest);
    x->epoch = epoch;
    x->highest = highest;
    return ISO_OK;
}

iso_err iso_history_client_commit(const iso_history *h, iso_history_client *x,
                                  const iso_sim_disk *disk, const iso_op *ops, size_t count,
                                  iso_error *e)
{
    iso_err err = ISO_OK;
    for (size_t i = 0; i < count && !err; i++) {
        if (ops[i].kind == ISO_OP_DELETE)
            continue;
        if (ops[i].table == ISO_AT_OUTBOX)
            err = client_outbox(h, x, disk, &ops[i], e);
        else if (ops[i].table == ISO_AT_META)
            err = client_meta(h, x, &ops[i], e);
    }
    return err;
}

iso_err iso_history_client_send(const iso_history *h, const iso_msg *m, const iso_sim_blob *body,
                                iso_error *e)
{
    (void)h;
    static const bool may[ISO_MSG_END] = {
        [ISO_MSG_HELLO] = true,        [ISO_MSG_ENROLL] = true,
        [ISO_MSG_INVITE_REPLY] = true, [ISO_MSG_UPDATE_BEGIN] = true,
        [ISO_MSG_UPDATE_CHUNK] = true, [ISO_MSG_UPDATE_COMMIT] = true,
        [ISO_MSG_BLOB_GET] = true,     [ISO_MSG_RELEASE_VERDICT] = true,
        [ISO_MSG_EVAL_RESULT] = true,  [ISO_MSG_STATUS] = true,
        [ISO_MSG_PING] = true,         [ISO_MSG_PONG] = true,
        [ISO_MSG_BYE] = true};
    if ((unsigned)m->type >= ISO_MSG_END || !may[m->type])
        return broken(e, "I4", "a site sent a message that sites do not send", m->type, 0);
    if (body && (m->type != ISO_MSG_UPDATE_CHUNK || body->note != ISO_NOTE_SEALED))
        return broken(e, "I4", "a site sent bytes that were not sealed", m->type, body->bytes);
    return ISO_OK;
}

/* I3, I11: signed by the release key with this content, complete, accepted when it serves. */
iso_err iso_history_client_serve(const iso_history *h, const iso_sim_disk *disk, uint64_t number,
                                 iso_error *e)
{
    uint8_t key[8];
    if (number == 0)
        return ISO_OK;
    for (int i = 0; i < 8; i++)
        key[i] = (uint8_t)(number >> (56 - 8 * i));
    const iso_sim_row *row = iso_sim_disk_row(disk, ISO_AT_RELEASE, key, 8);
    if (!row || row->value_bytes < 1 + 64 + 8 + 8 * 4 + 2 + 4)
        return broken(e, "I11", "a release serves that has no record", number, 0);
    const uint8_t *v = row->data + row->key_bytes;
    if (!is_released(h, number, v + 1)) {
        bool is_signed = false;
        for (size_t i = 0; i < h->signed_count; i++)
            is_signed = is_signed || (h->signed_releases[i].number == number &&
                                      memcmp(h->signed_releases[i].manifest.b, v + 1, 32) == 0);
        if (!is_signed)
            return broken(e, "I3", "a release serves that was not signed", number, 0);
    }
    enum { FILES_AT = 1 + 64 + 8 + 8 * 4 + 2 };
    size_t at = FILES_AT + 4, n = iso_get_u32(v + FILES_AT);
    for (size_t i = 0; i < n; i++) {
        iso_digest digest;
        if (row->value_bytes < at + 4)
            return broken(e, "I11", "a release's record does not read", number, i);
        at += 4 + iso_get_u32(v + at);
        if (row->value_bytes < at + 40)
            return broken(e, "I11", "a release's record does not read", number, i);
        memcpy(digest.b, v + at, 32);
        const iso_sim_blob *b = iso_sim_disk_blob(disk, &digest);
        if (!b || b->bytes != iso_get_u64(v + at + 32))
            return broken(e, "I11", "a release serves without one of its files", number, i);
        at += 40;
    }
    return ISO_OK;
}
