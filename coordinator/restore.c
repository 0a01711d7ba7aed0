/* Rows of the store, read back: the mirror of records.c, and the audit chain checked on the way
 * (I7). What does not decode is ISO_ERR_DATA with the table and key named: the daemon stops rather
 * than run on half a state. */
#include "coordinator/record.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* The one record of counters is called "coordinator"; rosters are "roster" and their version. */
static iso_err read_meta(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    if (memcmp(key, "roster", 6) == 0)
        return iso_c_roster_read(c, r) ? ISO_OK : iso_nomem(e, sizeof(iso_c_roster));
    uint8_t federation[16];
    iso_r_bytes(r, federation, 16);
    uint64_t epoch = iso_r_u64(r);
    c->release_floor = iso_r_u64(r);
    c->retired_receipts = iso_r_u64(r);
    c->retired_used = iso_r_u64(r);
    c->retired_refused = iso_r_u64(r);
    c->auto_rounds = iso_r_u32(r);
    iso_r_bytes(r, c->signed_head, ISO_SIGNED_HEAD_BYTES);
    iso_r_bytes(r, c->last_signed_head.b, 32);
    c->signed_release = iso_r_u64(r);
    c->signed_ms = iso_r_u64(r);
    if (!r->is_bad && memcmp(federation, c->identity.federation, 16) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "state belongs to another federation than the roster");
    if (!r->is_bad && epoch != c->identity.epoch)
        return iso_fail(e, ISO_ERR_TRUST, "state belongs to epoch %llx, the folder says %llx",
                        (unsigned long long)epoch, (unsigned long long)c->identity.epoch);
    return ISO_OK;
}

static bool read_ids(iso_reader *r, uint8_t (**ids)[16], size_t *count)
{
    *count = iso_r_count(r, 10000, 16);
    *ids = iso_calloc(*count, 16);
    if (!*ids)
        return false;
    iso_r_bytes(r, *ids, *count * 16);
    return true;
}

static iso_err read_site(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_site *s = iso_c_site_new(c, key);
    if (!s)
        return iso_nomem(e, sizeof *s);
    unsigned state = iso_r_u8(r);
    s->state = (iso_site_state)state;
    iso_r_text(r, s->name, sizeof s->name);
    iso_r_bytes(r, s->transport_pk, 32);
    iso_r_bytes(r, s->sign_pk, 32);
    s->enrolled_ms = iso_r_u64(r);
    s->revoked_seq = iso_r_u64(r);
    s->sequence = iso_r_u64(r);
    s->next_event = iso_r_u64(r);
    if (state == 0 || state >= ISO_SITE_STATES)
        r->is_bad = true;
    if (!read_ids(r, &s->task_ids, &s->task_count))
        return iso_nomem(e, 0);
    iso_c_site_tasks(c, s);
    return ISO_OK;
}

static iso_err read_token(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_token *t = iso_c_token_new(c, key);
    if (!t)
        return iso_nomem(e, sizeof *t);
    t->is_used = iso_r_u8(r) != 0;
    iso_r_text(r, t->name, sizeof t->name);
    iso_r_bytes(r, t->transport_pk, 32);
    iso_r_bytes(r, t->proof_key, 32);
    t->created_ms = iso_r_u64(r);
    t->expires_ms = iso_r_u64(r);
    t->wrong_macs = iso_r_u32(r);
    iso_r_bytes(r, t->site_id, 16);
    return read_ids(r, &t->task_ids, &t->task_count) ? ISO_OK : iso_nomem(e, 0);
}

static iso_err read_task(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    (void)e;
    iso_c_task dropped, *t = &dropped; /* a task that left the configuration keeps its row */
    int i = iso_c_task_by_id(c, key);
    if (i >= 0)
        t = &c->tasks[i];
    iso_r_bytes(r, t->head.b, 32);
    t->head_bytes = iso_r_u64(r);
    t->head_round = iso_r_u64(r);
    iso_r_bytes(r, t->adapter.b, 32);
    t->adapter_bytes = iso_r_u64(r);
    t->adapter_round = iso_r_u64(r);
    t->rank = iso_r_u32(r);
    t->updates = iso_r_u64(r);
    t->samples = iso_r_u64(r);
    for (int k = 0; k < METRICS; k++)
        t->own[k] = iso_r_f64(r);
    for (int k = 0; k < METRICS; k++)
        t->baseline[k] = iso_r_f64(r);
    return ISO_OK;
}

static uint64_t read_mask(iso_coord *c, iso_reader *r)
{
    uint64_t mask = 0;
    for (size_t n = iso_r_count(r, ISO_COORD_TASKS_MAX, 16); n > 0; n--) {
        uint8_t id[16];
        iso_r_bytes(r, id, 16);
        int task = iso_c_task_by_id(c, id);
        if (task >= 0)
            mask |= UINT64_C(1) << task;
    }
    return mask;
}

static void read_candidate(iso_reader *r, iso_c_candidate *x)
{
    iso_r_text(r, x->method, sizeof x->method);
    iso_r_text(r, x->convention, sizeof x->convention);
    x->alpha = iso_r_f64(r);
    x->common_fraction = iso_r_f64(r);
    iso_r_bytes(r, x->manifest.b, 32);
    x->bytes = iso_r_u64(r);
    x->rank_max = iso_r_u32(r);
    x->file_count = (uint32_t)iso_r_count(r, 4, 42);
    for (uint32_t k = 0; k < x->file_count; k++) {
        iso_r_text(r, x->files[k].path, sizeof x->files[k].path);
        iso_r_bytes(r, x->files[k].digest.b, 32);
        x->files[k].bytes = iso_r_u64(r);
    }
    x->is_judged = iso_r_u8(r) != 0;
    x->has_passed = iso_r_u8(r) != 0;
    x->mean = iso_r_f64(r);
    iso_r_text(r, x->reason, sizeof x->reason);
}

static iso_err read_round(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_round *x = iso_c_round_new(c, iso_key_get_u64(key));
    if (!x)
        return iso_nomem(e, sizeof *x);
    x->kind = (iso_c_round_kind)iso_r_u8(r);
    x->state = (iso_c_round_state)iso_r_u8(r);
    x->is_paused = iso_r_u8(r) != 0;
    x->by_operator = iso_r_u8(r) != 0;
    x->has_job = iso_r_u8(r) != 0;
    iso_r_bytes(r, x->job, 16);
    uint64_t *times[] = {&x->opened_ms, &x->deadline_ms, &x->closed_ms, &x->merged_ms,
                         &x->judged_ms, &x->ended_ms,    &x->worker_ms};
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++)
        *times[i] = iso_r_u64(r);
    iso_r_text(r, x->reason, sizeof x->reason);
    x->chosen = (int)(int32_t)iso_r_u32(r);
    x->release = iso_r_u64(r);
    iso_r_bytes(r, x->manifest.b, 32);
    x->manifest_bytes = iso_r_u64(r);
    x->release_created_ms = iso_r_u64(r);
    x->release_valid_until_ms = iso_r_u64(r);
    x->rollback_of = iso_r_u64(r);
    for (size_t n = iso_r_count(r, ISO_COORD_TASKS_MAX, 43); n > 0; n--) {
        uint8_t id[16];
        iso_c_round_task t = {0};
        iso_r_bytes(r, id, 16);
        t.quorum = iso_r_u32(r);
        t.updates = iso_r_u32(r);
        t.is_out = iso_r_u8(r) != 0;
        iso_r_text(r, t.reason, sizeof t.reason);
        t.score = iso_r_f64(r);
        t.baseline = iso_r_f64(r);
        t.task = iso_c_task_by_id(c, id);
        if (t.task >= 0)
            x->tasks[x->task_count++] = t;
    }
    x->follow = read_mask(c, r);
    x->eval_tasks = read_mask(c, r);
    x->fresh_tasks = read_mask(c, r);
    x->metric_count = iso_r_u32(r);
    x->candidate_count = iso_r_count(r, ISO_COORD_CANDIDATES_MAX, 64);
    x->candidates = iso_calloc(x->candidate_count, sizeof *x->candidates);
    if (!x->candidates)
        return iso_nomem(e, 0);
    for (size_t i = 0; i < x->candidate_count; i++)
        read_candidate(r, &x->candidates[i]);
    if (x->kind < ROUND_HEAD || x->kind > ROUND_ROLLBACK || x->state < ROUND_OPEN ||
        x->state > ROUND_FAILED || x->metric_count > METRICS ||
        x->chosen >= (int)x->candidate_count)
        r->is_bad = true;
    if (!r->is_bad && !iso_c_questions_make(c, x))
        return iso_nomem(e, 0);
    for (size_t n = iso_r_count(r, 100000, 16); n > 0; n--) {
        uint8_t id[16];
        iso_r_bytes(r, id, 16);
        iso_c_site *s = iso_c_site_by_id(c, id);
        if (!s)
            r->is_bad = true;
        else if (!iso_c_evaluator_add(c, x, s))
            return iso_nomem(e, 0);
    }
    return ISO_OK;
}

static iso_err read_invite(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_round *x = iso_c_round_by_number(c, iso_key_get_u64(key));
    iso_c_site *s = iso_c_site_by_id(c, key + 8);
    int task = iso_c_task_by_id(c, key + 24);
    iso_c_invite v = {.site = s, .task = task};
    iso_r_bytes(r, v.id, 16);
    v.state = (iso_c_invite_state)iso_r_u8(r);
    v.samples = iso_r_u64(r);
    iso_r_text(r, v.reason, sizeof v.reason);
    if (!x || !s || task < 0 || iso_c_round_has_ended(x))
        return ISO_OK; /* of a task that left the configuration */
    iso_c_invite *wider = realloc(x->invites, (x->invite_count + 1) * sizeof *wider);
    if (!wider)
        return iso_nomem(e, 0);
    x->invites = wider;
    x->invites[x->invite_count++] = v;
    return ISO_OK;
}

static iso_err read_upload(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_upload *u = iso_c_upload_new(c);
    if (!u)
        return iso_nomem(e, sizeof *u);
    uint8_t site[16];
    iso_code code;
    memcpy(u->id, key, 16);
    iso_r_bytes(r, site, 16);
    iso_r_bytes(r, u->raw, sizeof u->raw);
    u->begun_ms = iso_r_u64(r);
    u->site = iso_c_site_by_id(c, site);
    u->header_digest = c->sealer.digest(c->sealer.ctx, u->raw, 384);
    u->state = UPLOAD_OPENING;
    if (!u->site || iso_envelope_decode(u->raw, 384, &u->h, &code, NULL) != ISO_OK) {
        r->is_bad = true;
        return ISO_OK;
    }
    u->site->uploads++;
    u->site->partial_bytes += iso_envelope_body_bytes(&u->h);
    return ISO_OK;
}

static iso_err read_update(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_update *u = iso_calloc(1, sizeof *u);
    if (!u)
        return iso_nomem(e, sizeof *u);
    char sentence[SENTENCE_BYTES];
    uint8_t site[16];
    memcpy(u->id, key, 16);
    u->state = (iso_update_state)iso_r_u8(r);
    u->code = (iso_code)iso_r_u32(r);
    iso_r_text(r, sentence, sizeof sentence);
    iso_r_bytes(r, site, 16);
    iso_r_bytes(r, u->task_id, 16);
    u->round = iso_r_u64(r);
    u->sequence = iso_r_u64(r);
    u->samples = iso_r_u64(r);
    u->committed_ms = iso_r_u64(r);
    u->score = (float)iso_r_f64(r);
    u->worker_score = iso_r_f64(r);
    iso_r_bytes(r, u->header_digest.b, 32);
    iso_r_bytes(r, u->blob.b, 32);
    u->blob_bytes = iso_r_u64(r);
    u->audit_seq = iso_r_u64(r);
    iso_r_bytes(r, u->audit_head.b, 32);
    u->epoch = iso_r_u64(r);
    iso_r_bytes(r, u->receipt_signature, 64);
    bool has_raw = iso_r_u8(r) != 0;
    u->task = iso_c_task_by_id(c, u->task_id);
    u->site = iso_c_site_by_id(c, site);
    iso_c_round *x = iso_c_round_by_number(c, u->round);
    if (has_raw && (u->raw = iso_calloc(1, 384 + 64)) != NULL)
        iso_r_bytes(r, u->raw, 384 + 64);
    if (sentence[0])
        u->sentence = iso_strdup(sentence);
    if (!u->site || !x || u->state > ISO_UPDATE_LATE)
        r->is_bad = true;
    bool is_kept = !r->is_bad && (!has_raw || u->raw) && iso_c_round_add_update(c, x, u);
    if (!is_kept) {
        free(u->raw);
        free(u->sentence);
        free(u);
        return r->is_bad ? ISO_OK : iso_nomem(e, 0);
    }
    return ISO_OK;
}

static iso_err read_score(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    (void)e;
    iso_c_round *x = iso_c_round_by_number(c, iso_key_get_u64(key));
    iso_c_answer a = {.state = ANSWER_GIVEN, .outcome = (uint8_t)iso_r_u8(r)};
    a.score = (float)iso_r_f64(r);
    a.samples = iso_r_u64(r);
    int task = iso_c_task_by_id(c, key + 9);
    for (size_t i = 0; x && i < x->evaluator_count; i++) {
        iso_c_evaluator *v = &x->evaluators[i];
        if (memcmp(v->site->id, key + 25, 16) != 0)
            continue;
        for (size_t k = 0; k < x->question_count; k++) {
            const iso_c_question *q = &x->questions[k];
            if (q->candidate + 1 == key[8] && q->task == task && q->metric == key[41] &&
                v->answers[k].state == ANSWER_OPEN) {
                v->answers[k] = a;
                v->open--;
                x->open_answers--;
            }
        }
    }
    return ISO_OK;
}

static iso_err read_release(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_release *x = iso_c_release_new(c, iso_key_get_u64(key));
    if (!x)
        return iso_nomem(e, sizeof *x);
    x->round = iso_r_u64(r);
    x->rollback_of = iso_r_u64(r);
    iso_r_bytes(r, x->manifest.b, 32);
    x->manifest_bytes = iso_r_u64(r);
    iso_r_bytes(r, x->signature.b, 32);
    x->signature_bytes = iso_r_u64(r);
    iso_r_bytes(r, x->candidate.b, 32);
    x->total_bytes = iso_r_u64(r);
    x->created_ms = iso_r_u64(r);
    x->valid_until_ms = iso_r_u64(r);
    iso_r_text(r, x->method, sizeof x->method);
    iso_r_text(r, x->convention, sizeof x->convention);
    iso_r_text(r, x->reason, sizeof x->reason);
    x->file_count = iso_r_count(r, ISO_RELEASE_FILES_MAX + ISO_COORD_TASKS_MAX, 58);
    x->files = iso_calloc(x->file_count, sizeof *x->files);
    if (!x->files)
        return iso_nomem(e, 0);
    for (size_t i = 0; i < x->file_count; i++) {
        iso_r_text(r, x->files[i].path, sizeof x->files[i].path);
        iso_r_bytes(r, x->files[i].digest.b, 32);
        x->files[i].bytes = iso_r_u64(r);
        iso_r_bytes(r, x->files[i].task_id, 16);
    }
    x->task_count = iso_r_count(r, ISO_COORD_TASKS_MAX, 72);
    x->tasks = iso_calloc(x->task_count, sizeof *x->tasks);
    if (!x->tasks)
        return iso_nomem(e, 0);
    for (size_t i = 0; i < x->task_count; i++) {
        iso_c_release_task *t = &x->tasks[i];
        iso_r_bytes(r, t->task_id, 16);
        for (int k = 0; k < METRICS; k++)
            t->score[k] = iso_r_f64(r);
        t->baseline = iso_r_f64(r);
        t->samples = iso_r_u64(r);
        t->updates = iso_r_u64(r);
    }
    return ISO_OK;
}

static iso_err read_verdict(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    (void)e;
    uint64_t number = iso_key_get_u64(key);
    iso_c_site *s = iso_c_site_by_id(c, key + 8);
    iso_c_release *x = iso_c_release_by_number(c, number);
    uint32_t verdict = iso_r_u32(r);
    char reason[ISO_REASON_MAX + 1];
    uint8_t signature[64];
    for (int i = 0; i < 3; i++)
        (void)iso_r_f64(r);
    iso_r_text(r, reason, sizeof reason);
    iso_r_bytes(r, signature, sizeof signature);
    if (s && number > s->verdict_number) {
        s->verdict_number = number;
        s->verdict = verdict;
    }
    if (x && (verdict == ISO_VERDICT_ACCEPTED || verdict == ISO_VERDICT_TOO_FEW))
        x->accepted++;
    else if (x)
        x->rejected++;
    return ISO_OK;
}

static iso_err read_notice(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    iso_c_site *s = iso_c_site_by_id(c, key);
    iso_c_notice n = {.event = iso_key_get_u64(key + 16), .code = (iso_code)iso_r_u32(r)};
    iso_r_bytes(r, n.update_id, 16);
    iso_r_text(r, n.sentence, sizeof n.sentence);
    if (!s || s->notice_count >= ISO_NOTICES_MAX)
        return ISO_OK;
    iso_c_notice *wider = realloc(s->notices, (s->notice_count + 1) * sizeof *wider);
    if (!wider)
        return iso_nomem(e, 0);
    s->notices = wider;
    s->notices[s->notice_count++] = n;
    return ISO_OK;
}

/* The value is the entry's bytes and h (32); it has no version byte: S109 puts that into the type.
 */
static iso_err read_audit(iso_coord *c, const uint8_t *key, const uint8_t *value, size_t size,
                          iso_error *e)
{
    uint64_t seq = iso_key_get_u64(key);
    iso_audit_entry entry;
    if (size < 32 || iso_audit_decode(value, size - 32, &entry, e) != ISO_OK)
        return iso_fail(e, ISO_ERR_DATA, "audit entry %llu: malformed", (unsigned long long)seq);
    iso_digest h = c->sealer.chain(c->sealer.ctx, &c->audit_head, value, size - 32);
    if (entry.seq != c->audit_seq + 1 || entry.seq != seq || memcmp(h.b, value + size - 32, 32))
        return iso_fail(e, ISO_ERR_DATA, "audit entry %llu: the chain breaks here",
                        (unsigned long long)seq);
    c->audit_seq = seq;
    c->audit_head = h;
    c->audit_time_ms = entry.time_ms;
    return ISO_OK;
}

static iso_err read_nothing(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e)
{
    (void)c;
    (void)key;
    (void)e;
    r->left = 0; /* kept for the operator, nothing of it is needed in memory */
    return ISO_OK;
}

static const struct {
    const char *name;
    size_t key_bytes; /* 0: any */
    iso_err (*read)(iso_coord *c, const uint8_t *key, iso_reader *r, iso_error *e);
} tables[ISO_CT_COUNT] = {
    [ISO_CT_META] = {"meta", 0, read_meta},
    [ISO_CT_SITE] = {"site", 16, read_site},
    [ISO_CT_TOKEN] = {"token", 4, read_token},
    [ISO_CT_TASK] = {"task", 16, read_task},
    [ISO_CT_ROUND] = {"round", 8, read_round},
    [ISO_CT_INVITE] = {"invite", 40, read_invite},
    [ISO_CT_UPLOAD] = {"upload", 16, read_upload},
    [ISO_CT_UPDATE] = {"update", 16, read_update},
    [ISO_CT_PROOF] = {"proof", 48, read_nothing},
    [ISO_CT_SCORE] = {"score", 42, read_score},
    [ISO_CT_RELEASE] = {"release", 8, read_release},
    [ISO_CT_VERDICT] = {"verdict", 24, read_verdict},
    [ISO_CT_NOTICE] = {"notice", 24, read_notice},
    [ISO_CT_AUDIT] = {"audit", 8, NULL},
};

const char *const iso_coord_table_names[ISO_CT_COUNT] = {
    "meta",   "site",  "token", "task",    "round",   "invite", "upload",
    "update", "proof", "score", "release", "verdict", "notice", "audit"};

iso_err iso_coord_restore_row(iso_coord *c, int table, const uint8_t *key, size_t key_bytes,
                              const uint8_t *value, size_t value_bytes, iso_error *e)
{
    if (table < 0 || table >= ISO_CT_COUNT)
        return iso_fail(e, ISO_ERR_INTERNAL, "state: no table %d", table);
    size_t want = tables[table].key_bytes;
    if (want ? key_bytes != want : key_bytes < 6) /* the shortest name of a meta row */
        return iso_fail(e, ISO_ERR_DATA, "state: %s: key of %zu bytes", tables[table].name,
                        key_bytes);
    if (!tables[table].read)
        return read_audit(c, key, value, value_bytes, e);
    iso_reader r = iso_reader_begin(value, value_bytes);
    iso_err err = tables[table].read(c, key, &r, e);
    if (!err && !iso_r_done(&r)) {
        char hex[33] = "";
        iso_hex(hex, key, key_bytes > 16 ? 16 : key_bytes);
        err = iso_fail(e, ISO_ERR_DATA, "state: %s %s: its record cannot be read",
                       tables[table].name, hex);
    }
    return err;
}

typedef struct {
    iso_coord *c;
    int table;
} restore_arg;

static iso_err restore_one(void *arg, const uint8_t *key, size_t key_bytes, const uint8_t *value,
                           size_t value_bytes, iso_error *e)
{
    restore_arg *a = arg;
    return iso_coord_restore_row(a->c, a->table, key, key_bytes, value, value_bytes, e);
}

iso_err iso_coord_restore(iso_coord *c, const iso_store *store, iso_error *e)
{
    for (int t = 0; t < ISO_CT_COUNT; t++) {
        restore_arg arg = {.c = c, .table = t};
        iso_err err = store->scan(store->ctx, t, restore_one, &arg, e);
        if (err)
            return err;
    }
    return iso_c_rosters_check(c, e);
}
