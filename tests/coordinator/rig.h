/* A coordinator's core with a shell of memory around it: store, blobs, partial files, worker.
 * Shared by the tests of this folder. Keys and signatures are real; bodies are arbitrary bytes,
 * since the core never opens one. After every step all invariants are checked. */
#ifndef ISO_TESTS_COORDINATOR_RIG_H
#define ISO_TESTS_COORDINATOR_RIG_H

#include "coordinator/inner.h"
#include "crypto/init.h"
#include "crypto/key.h"
#include "crypto/request.h"
#include "crypto/sealer_real.h"
#include "crypto/token.h"
#include "tests/memory_rows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* No test uses all of these. */
#define RIG static __attribute__((unused))

enum { RIG_SITES = 8, RIG_ROWS = 20000, RIG_BLOBS = 512, RIG_BODY = 160 + 1000 + 17 };

typedef struct {
    char name[32];
    iso_key transport, sign;
    uint8_t id[16];
    iso_peer peer; /* 0: not connected */
    uint64_t sequence;
    iso_msg_invite invite[4]; /* by task */
    uint8_t task_id[4][16];
    uint8_t header[4][384], signature[4][64];
    iso_msg_eval_request asked[64];
    size_t asked_count;
    uint64_t offered;
    iso_digest offer;
    iso_code last_error;
    iso_msg_receipt receipt;
    size_t receipts;
    uint8_t nonce[32];
    iso_msg_chunk_ack ack;
    iso_msg_update_grant grant;
    uint64_t release;
    uint64_t roster; /* version it says it holds */
    iso_msg_roster_offer roster_offer;
    size_t notices;
    char notice[ISO_SENTENCE_MAX + 1];
} rig_site;

typedef struct {
    iso_coord *c;
    iso_coord_config config;
    iso_coord_task tasks[3];
    iso_coord_identity identity;
    iso_key audit, merge;
    iso_sealer sealer;
    iso_entropy entropy;
    uint64_t entropy_state;
    rig_row *rows;
    size_t row_count;
    struct {
        iso_digest digest;
        size_t bytes;
    } blobs[RIG_BLOBS];
    size_t blob_count;
    iso_digest deleted[RIG_BLOBS];
    size_t deleted_count;
    struct {
        uint8_t id[16];
        iso_hasher hash;
        uint64_t bytes;
        uint32_t chunks;
    } partial[16];
    size_t partial_count;
    rig_site sites[RIG_SITES];
    size_t site_count;
    iso_time now;
    uint64_t wall;
    iso_peer next_peer;
    iso_coord_effects out;
    /* job at hand */
    bool has_job;
    iso_job_kind job_kind;
    uint8_t job_id[16];
    struct {
        uint8_t id[16], update[8][16];
        size_t updates;
        iso_digest previous;
    } job_tasks[4];
    size_t job_task_count, job_candidates;
    uint64_t job_number;
    char admin[65536]; /* last reply */
    iso_buf text;      /* transcript of effects since rig_clear_text() */
    bool is_disk_full, is_digest_wrong, restart_each_step;
    size_t steps, commits, cuts;
} rig;

static const char *const rig_classes[] = {"good", "bad"};
static const char *const rig_shared[] = {"a", "b"};
static const char *const rig_second[] = {"c"};

RIG void rig_fill(void *ctx, void *out, size_t bytes)
{
    rig *r = ctx;
    for (size_t i = 0; i < bytes; i++) {
        r->entropy_state = r->entropy_state * 6364136223846793005u + 1442695040888963407u;
        ((uint8_t *)out)[i] = (uint8_t)(r->entropy_state >> 56);
    }
}

RIG void rig_say(rig *r, const char *fmt, ...) ISO_PRINTF(2, 3);
RIG void rig_say(rig *r, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    assert_int_equal(iso_buf_printf(&r->text, NULL, "  %s\n", line), ISO_OK);
}

/* ---- store of memory ---- */

RIG void rig_commit(rig *r, const iso_coord_effect *x)
{
    size_t count[ISO_CT_COUNT][3] = {{0}};
    char line[400] = "commit", *at = line + 6;
    for (size_t i = 0; i < x->op_count; i++) {
        const iso_op *op = &x->ops[i];
        count[op->table][op->kind]++;
        rig_rows_apply(r->rows, &r->row_count, RIG_ROWS, op);
    }
    for (int t = 0; t < ISO_CT_COUNT; t++)
        for (int k = 0; k < 3; k++)
            if (count[t][k] && t != ISO_CT_META)
                at += sprintf(at, " %s%s%zu", iso_coord_table_names[t],
                              k == ISO_OP_INSERT   ? "+"
                              : k == ISO_OP_DELETE ? "-"
                                                   : "=",
                              count[t][k]);
    if (at != line + 6)
        rig_say(r, "%s", line);
    r->commits++;
}

/* Digest of all records: two runs that end alike have the same. */
RIG iso_digest rig_digest(rig *r, bool with_audit)
{
    iso_hasher h;
    iso_hasher_init(&h);
    rig_rows_sort(r->rows, r->row_count);
    for (size_t i = 0; i < r->row_count; i++) {
        if (!with_audit && (r->rows[i].table == ISO_CT_AUDIT || r->rows[i].table == ISO_CT_META))
            continue;
        iso_hasher_add(&h, &r->rows[i].table, sizeof r->rows[i].table);
        iso_hasher_add(&h, r->rows[i].key, r->rows[i].key_bytes);
        iso_hasher_add(&h, r->rows[i].value, r->rows[i].value_bytes);
    }
    return iso_hasher_end(&h);
}

/* ---- effects ---- */

RIG rig_site *rig_by_peer(rig *r, iso_peer peer)
{
    for (size_t i = 0; i < r->site_count; i++)
        if (r->sites[i].peer == peer)
            return &r->sites[i];
    return NULL;
}

RIG const char *rig_task_name(rig *r, const uint8_t id[16])
{
    int t = iso_c_task_by_id(r->c, id);
    return t < 0 ? "?" : r->config.tasks[t].name;
}

RIG void rig_deliver(rig *r, const iso_coord_effect *x)
{
    rig_site *s = rig_by_peer(r, x->peer);
    const iso_msg *m = x->msg;
    if (!s)
        return;
    char more[256] = "";
    switch (m->type) {
    case ISO_MSG_HELLO_REPLY:
        memcpy(s->nonce, m->hello_reply.nonce, 32);
        snprintf(more, sizeof more, " state=%s next_sequence=%llu release=%llu",
                 iso_site_state_name(m->hello_reply.state),
                 (unsigned long long)m->hello_reply.next_sequence,
                 (unsigned long long)m->hello_reply.release);
        break;
    case ISO_MSG_INVITE: {
        int t = iso_c_task_by_id(r->c, m->invite.task_id);
        s->invite[t] = m->invite;
        memcpy(s->task_id[t], m->invite.task_id, 16);
        snprintf(more, sizeof more, " round=%llu task=%s steps=%u",
                 (unsigned long long)m->invite.round, rig_task_name(r, m->invite.task_id),
                 m->invite.spec.steps);
        break;
    }
    case ISO_MSG_UPDATE_GRANT:
        s->grant = m->update_grant;
        snprintf(more, sizeof more, " next=%u credit=%u", s->grant.next_chunk, s->grant.credit);
        break;
    case ISO_MSG_CHUNK_ACK:
        s->ack = m->chunk_ack;
        snprintf(more, sizeof more, " received=%u credit=%u", s->ack.received, s->ack.credit);
        break;
    case ISO_MSG_RECEIPT:
        s->receipt = m->receipt;
        s->receipts++;
        break;
    case ISO_MSG_ERROR:
        s->last_error = m->error.code;
        snprintf(more, sizeof more, " %s \"%s\"", iso_code_name(m->error.code), m->error.sentence);
        break;
    case ISO_MSG_EVAL_REQUEST: {
        static const uint8_t none[32];
        assert_true(s->asked_count < 64);
        s->asked[s->asked_count++] = m->eval_request;
        snprintf(more, sizeof more, " task=%s metric=%s%s",
                 rig_task_name(r, m->eval_request.task_id), m->eval_request.metric,
                 memcmp(m->eval_request.candidate_digest, none, 32) ? "" : " frozen");
        break;
    }
    case ISO_MSG_RELEASE_OFFER:
        s->offered = m->release_offer.number;
        memcpy(s->offer.b, m->release_offer.manifest_digest, 32);
        snprintf(more, sizeof more, " number=%llu", (unsigned long long)s->offered);
        break;
    case ISO_MSG_ROSTER_OFFER:
        s->roster_offer = m->roster_offer;
        snprintf(more, sizeof more, " version=%llu", (unsigned long long)m->roster_offer.version);
        break;
    case ISO_MSG_STATUS_REPLY:
        s->notices = m->status_reply.notice_count;
        if (s->notices)
            snprintf(s->notice, sizeof s->notice, "%s",
                     m->status_reply.notices[s->notices - 1].sentence);
        snprintf(more, sizeof more, " notices=%zu next_event=%llu", s->notices,
                 (unsigned long long)m->status_reply.next_event);
        break;
    default:
        break;
    }
    rig_say(r, "send %s %s%s", s->name, iso_msg_type_name(m->type), more);
}

RIG void rig_take_job(rig *r, const iso_job *j)
{
    static const char *const kinds[] = {"?", "heads", "merge", "sign"};
    size_t updates = 0;
    r->has_job = true;
    r->job_kind = j->kind;
    memcpy(r->job_id, j->id, 16);
    r->job_task_count = j->task_count;
    r->job_candidates = j->candidate_count;
    r->job_number = j->number;
    for (size_t i = 0; i < j->task_count; i++) {
        memcpy(r->job_tasks[i].id, j->tasks[i].id, 16);
        r->job_tasks[i].updates = j->tasks[i].update_count;
        r->job_tasks[i].previous = j->tasks[i].previous;
        for (size_t k = 0; k < j->tasks[i].update_count; k++)
            memcpy(r->job_tasks[i].update[k], j->tasks[i].updates[k].update_id, 16);
        updates += j->tasks[i].update_count;
    }
    rig_say(r, "job %s tasks=%zu updates=%zu", kinds[j->kind], j->task_count, updates);
}

RIG void rig_put_blob(rig *r, const iso_digest *d, size_t bytes)
{
    for (size_t i = 0; i < r->blob_count; i++)
        if (iso_digest_equal(&r->blobs[i].digest, d))
            return;
    assert_true(r->blob_count < RIG_BLOBS);
    r->blobs[r->blob_count].digest = *d;
    r->blobs[r->blob_count++].bytes = bytes;
}

RIG void rig_step(rig *r, const iso_coord_event *ev);

static size_t rig_partial(rig *r, const uint8_t id[16])
{
    size_t i = 0;
    while (i < r->partial_count && memcmp(r->partial[i].id, id, 16) != 0)
        i++;
    return i;
}

/* Performs the effects of one step; answers come back as events when the step is done. */
RIG void rig_perform(rig *r)
{
    iso_coord_event answers[16];
    size_t answer_count = 0;
    assert_false(r->out.is_out_of_memory);
    for (size_t i = 0; i < r->out.count; i++) {
        const iso_coord_effect *x = &r->out.items[i];
        size_t p = rig_partial(r, x->id);
        switch (x->kind) {
        case ISO_CX_COMMIT:
            rig_commit(r, x);
            break;
        case ISO_CX_PUT_BLOB:
            rig_put_blob(r, &x->digest, x->data_bytes);
            rig_say(r, "blob");
            break;
        case ISO_CX_DELETE_BLOB:
            assert_true(r->deleted_count < RIG_BLOBS);
            r->deleted[r->deleted_count++] = x->digest;
            rig_say(r, "delete blob");
            break;
        case ISO_CX_SEND:
            rig_deliver(r, x);
            break;
        case ISO_CX_CUT: {
            rig_site *s = rig_by_peer(r, x->peer);
            rig_say(r, "cut %s", s ? s->name : "?");
            answers[answer_count++] = (iso_coord_event){.kind = ISO_CE_PEER_GONE, .peer = x->peer};
            if (s)
                s->peer = 0;
            r->cuts++;
            break;
        }
        case ISO_CX_ADMITTED:
            rig_say(r, "keys changed");
            break;
        case ISO_CX_UPLOAD_OPEN:
            if (p == r->partial_count) {
                assert_true(p < 16);
                r->partial_count++;
                memset(&r->partial[p], 0, sizeof r->partial[p]);
                memcpy(r->partial[p].id, x->id, 16);
                iso_hasher_init(&r->partial[p].hash);
            }
            answers[answer_count] =
                (iso_coord_event){.kind = ISO_CE_UPLOAD_OPENED, .chunks = r->partial[p].chunks};
            memcpy(answers[answer_count++].id, x->id, 16);
            rig_say(r, "upload open chunks=%u", x->chunk_count);
            break;
        case ISO_CX_UPLOAD_WRITE:
            assert_true(p < r->partial_count);
            iso_hasher_add(&r->partial[p].hash, x->data, x->data_bytes);
            r->partial[p].bytes += x->data_bytes;
            r->partial[p].chunks++;
            rig_say(r, "upload write %zu", x->data_bytes);
            break;
        case ISO_CX_UPLOAD_STORE: {
            assert_true(p < r->partial_count);
            iso_hasher h = r->partial[p].hash;
            iso_digest d = iso_hasher_end(&h);
            bool is_same = iso_digest_equal(&d, &x->digest) && r->partial[p].bytes == x->body_bytes;
            answers[answer_count] = (iso_coord_event){.kind = ISO_CE_UPLOAD_STORED,
                                                      .stored = r->is_disk_full ? ISO_STORED_DISK
                                                                : is_same       ? ISO_STORED_OK
                                                                          : ISO_STORED_DIGEST};
            memcpy(answers[answer_count++].id, x->id, 16);
            if (is_same && !r->is_disk_full) {
                rig_put_blob(r, &x->digest, x->body_bytes);
                r->partial[p] = r->partial[--r->partial_count];
            }
            rig_say(r, "upload store");
            break;
        }
        case ISO_CX_UPLOAD_DROP:
            if (p < r->partial_count)
                r->partial[p] = r->partial[--r->partial_count];
            rig_say(r, "upload drop");
            break;
        case ISO_CX_JOB_START:
            rig_take_job(r, x->job);
            break;
        case ISO_CX_JOB_CANCEL:
            r->has_job = false;
            rig_say(r, "job cancel");
            break;
        case ISO_CX_ADMIN_REPLY:
            snprintf(r->admin, sizeof r->admin, "%s", x->text);
            break;
        case ISO_CX_LOG:
            break;
        case ISO_CX_STOP:
            rig_say(r, "stop");
            break;
        }
    }
    iso_error e = {0};
    if (iso_coord_check(r->c, true, &e) != ISO_OK)
        fail_msg("step %zu: %s", r->steps, e.text);
    for (size_t i = 0; i < answer_count; i++)
        rig_step(r, &answers[i]);
}

RIG void rig_restore(rig *r);

RIG void rig_step(rig *r, const iso_coord_event *ev)
{
    iso_coord_effects_reset(&r->out);
    r->steps++;
    iso_coord_step(r->c, ev, r->now, r->wall, &r->out);
    rig_perform(r);
}

/* ---- life ---- */

RIG void rig_restore(rig *r)
{
    iso_error e = {0};
    iso_coord_free(r->c);
    if (iso_coord_new(&r->config, &r->identity, &r->sealer, &r->entropy, &r->c, &e) != ISO_OK)
        fail_msg("%s", e.text);
    iso_coord_set_endpoint(r->c, "fl.corp", 7443);
    rig_rows_sort(r->rows, r->row_count);
    for (int t = 0; t < ISO_CT_COUNT; t++)
        for (size_t i = 0; i < r->row_count; i++)
            if (r->rows[i].table == t &&
                iso_coord_restore_row(r->c, t, r->rows[i].key, r->rows[i].key_bytes,
                                      r->rows[i].value, r->rows[i].value_bytes, &e) != ISO_OK)
                fail_msg("restore: %s", e.text);
    iso_coord_effects_reset(&r->out);
    iso_coord_start(r->c, r->now, r->wall, &r->out);
    rig_perform(r);
}

RIG rig *rig_new(void)
{
    rig *r = calloc(1, sizeof *r);
    assert_non_null(r);
    r->rows = calloc(RIG_ROWS, sizeof *r->rows);
    assert_non_null(r->rows);
    assert_int_equal(iso_crypto_init(NULL), ISO_OK);
    static const uint8_t seed[2][32] = {{1}, {2}};
    assert_int_equal(iso_key_from_seed(ISO_KEY_AUDIT, seed[0], 0, &r->audit, NULL), ISO_OK);
    assert_int_equal(iso_key_from_seed(ISO_KEY_MERGE, seed[1], 0, &r->merge, NULL), ISO_OK);
    r->sealer = iso_sealer_real(&r->audit);
    r->entropy = (iso_entropy){.ctx = r, .fill = rig_fill};
    iso_coord_config_defaults(&r->config);
    r->config.name = "test";
    r->config.candidates[0] = (iso_coord_candidate){"iso_cts", 1.0, "rank", 0.8};
    r->config.candidates[1] = (iso_coord_candidate){"average", 1.0, "rank", 0.8};
    r->config.candidate_count = 2;
    for (int i = 0; i < 2; i++) {
        r->tasks[i] = iso_coord_task_defaults();
        r->tasks[i].name = i ? "weld" : "steel";
        r->tasks[i].classes = rig_classes;
        r->tasks[i].class_count = 2;
        r->tasks[i].sites = i ? rig_second : rig_shared;
        r->tasks[i].site_count = i ? 1 : 2;
    }
    r->config.tasks = r->tasks;
    r->config.task_count = 2;
    memset(r->identity.federation, 0xfe, 16);
    r->identity.epoch = 7;
    memcpy(r->identity.audit_pk, r->audit.public_key, 32);
    memset(r->identity.transport_pk, 0x17, 32);
    r->identity.generation_digest = iso_digest_of("backbone", 8);
    memcpy(r->identity.merge_keys[0].pk, r->merge.public_key, 32);
    iso_merge_key_id(r->merge.public_key, r->identity.merge_keys[0].id);
    r->identity.merge_keys[0].is_usable = true;
    r->identity.merge_key_count = 1;
    r->now = 1000;
    r->wall = 1764000000000u;
    r->next_peer = 100;
    rig_restore(r);
    iso_buf_free(&r->text);
    return r;
}

RIG void rig_free(rig *r)
{
    iso_coord_free(r->c);
    iso_coord_effects_free(&r->out);
    rig_rows_free(r->rows, r->row_count);
    for (size_t i = 0; i < r->site_count; i++) {
        iso_key_free(&r->sites[i].transport);
        iso_key_free(&r->sites[i].sign);
    }
    iso_key_free(&r->audit);
    iso_key_free(&r->merge);
    iso_buf_free(&r->text);
    free(r->rows);
    free(r);
}

#include "tests/coordinator/sites.h"

#endif
