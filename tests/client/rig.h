/* A site's core with a shell of memory around it: store, blobs, partial downloads, folders of
 * releases, a trainer that answers when told to, and a coordinator's keys to sign with. Shared by
 * the tests of this folder. After every step the invariants are checked. What a coordinator says
 * and does stands in coordinator.h. */
#ifndef ISO_TESTS_CLIENT_RIG_H
#define ISO_TESTS_CLIENT_RIG_H

#include "client/agent_inner.h"
#include "crypto/container.h"
#include "crypto/init.h"
#include "crypto/key.h"
#include "crypto/request.h"
#include "crypto/sealer_real.h"
#include "tests/memory_rows.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { RIG_ROWS = 2048, RIG_BLOBS = 256, RIG_SENT = 512, RIG_QUEUE = 64, RIG_DAY = 86400000 };
#define RIG_WALL 1790000000000ull

typedef struct {
    iso_digest digest;
    uint8_t *data;
    size_t bytes;
} rig_blob;

typedef struct {
    iso_agent *a;
    iso_agent_config config;
    iso_agent_seams seams;
    iso_agent_task tasks[2];
    iso_key audit, sign, merge;
    iso_minisign_key root, release, other_release;
    iso_sealer audit_sealer;
    uint64_t entropy_state;
    iso_roster roster; /* the coordinator's, as last signed */
    iso_buf roster_container;
    iso_digest roster_digest;
    uint64_t epoch;
    iso_head head; /* the coordinator's newest */
    iso_time mono;
    uint64_t wall;
    iso_agent_effects out;
    rig_row rows[RIG_ROWS];
    size_t row_count;
    rig_blob blobs[RIG_BLOBS]; /* the site's store */
    size_t blob_count;
    rig_blob served[RIG_BLOBS]; /* what the coordinator has */
    size_t served_count;
    iso_buf partial; /* of the download that is open */
    iso_digest partial_digest;
    uint64_t link, serving, installed;
    /* what was sent since rig_clear(); pointers are of the step it was sent in */
    iso_msg sent[RIG_SENT];
    iso_digest sent_blob[RIG_SENT];
    size_t sent_count;
    bool has_job;
    iso_trainer_job job; /* the last started; strings borrowed from the agent */
    iso_train_spec job_spec;
    size_t jobs, cancels;
    size_t commits;
    iso_buf text; /* transcript since rig_clear() */
    bool is_dead; /* performs nothing after `die_at` effects, as a killed process */
    size_t die_at, effects;
    bool is_install_failing;
    struct {
        iso_agent_event ev;
        uint8_t header[384], signature[64];
    } queue[RIG_QUEUE];
    size_t queue_first, queue_count;
} rig;

static inline void rig_fill(void *ctx, void *out, size_t bytes)
{
    rig *r = ctx;
    for (size_t i = 0; i < bytes; i++) {
        r->entropy_state = r->entropy_state * 6364136223846793005u + 1442695040888963407u;
        ((uint8_t *)out)[i] = (uint8_t)(r->entropy_state >> 56);
    }
}

static inline void rig_say(rig *r, const char *fmt, ...) ISO_PRINTF(2, 3);
static inline void rig_say(rig *r, const char *fmt, ...)
{
    char line[512];
    va_list args;
    va_start(args, fmt);
    vsnprintf(line, sizeof line, fmt, args);
    va_end(args);
    assert_int_equal(iso_buf_printf(&r->text, NULL, "%s\n", line), ISO_OK);
}

/* ---- store ---- */

static inline void rig_commit(rig *r, const iso_op *ops, size_t count)
{
    char line[400] = "";
    for (size_t i = 0; i < count; i++) {
        const iso_op *op = &ops[i];
        size_t at = strlen(line);
        snprintf(line + at, sizeof line - at, " %s%s", op->kind == ISO_OP_DELETE ? "-" : "",
                 iso_agent_table_names[op->table]);
        rig_rows_apply(r->rows, &r->row_count, RIG_ROWS, op);
    }
    r->commits++;
    rig_say(r, "  commit%s", line);
}

static inline rig_blob *rig_find_blob(rig_blob *list, size_t count, const iso_digest *d)
{
    for (size_t i = 0; i < count; i++)
        if (iso_digest_equal(&list[i].digest, d))
            return &list[i];
    return NULL;
}

static inline void rig_add_blob(rig_blob *list, size_t *count, const iso_digest *d,
                                const void *data, size_t bytes)
{
    if (rig_find_blob(list, *count, d))
        return;
    assert_true(*count < RIG_BLOBS);
    rig_blob *b = &list[(*count)++];
    b->digest = *d;
    b->data = malloc(bytes + 1);
    memcpy(b->data, data, bytes);
    b->bytes = bytes;
}

static inline iso_digest rig_keep(rig *r, const void *data, size_t bytes)
{
    iso_digest d = iso_digest_of(data, bytes);
    rig_add_blob(r->blobs, &r->blob_count, &d, data, bytes);
    return d;
}

/* Something that the coordinator has and the site may ask for. */
static inline iso_digest rig_offer_blob(rig *r, const void *data, size_t bytes)
{
    iso_digest d = iso_digest_of(data, bytes);
    rig_add_blob(r->served, &r->served_count, &d, data, bytes);
    return d;
}

/* ---- effects ---- */

static inline void rig_queue(rig *r, const iso_agent_event *ev)
{
    assert_true(r->queue_count < RIG_QUEUE);
    size_t at = (r->queue_first + r->queue_count++) % RIG_QUEUE;
    r->queue[at].ev = *ev;
    if (ev->header) {
        memcpy(r->queue[at].header, ev->header, 384);
        memcpy(r->queue[at].signature, ev->signature, 64);
    }
}

static inline void rig_seal(rig *r, const iso_agent_effect *x)
{
    iso_envelope h = *x->envelope;
    iso_buf sealed = {0};
    iso_agent_event ev = {.kind = ISO_AE_SEALED};
    rig_blob *plain = rig_find_blob(r->blobs, r->blob_count, &x->digest);
    memcpy(ev.id, x->id, 16);
    assert_non_null(plain);
    assert_int_equal(
        iso_envelope_seal(&h, plain->data, plain->bytes, &r->sign, x->merge_pk, &sealed, NULL),
        ISO_OK);
    rig_add_blob(r->blobs, &r->blob_count, &h.body_digest, sealed.data + 384, sealed.size - 448);
    ev.header = sealed.data;
    ev.signature = sealed.data + sealed.size - 64;
    rig_queue(r, &ev);
    iso_buf_free(&sealed);
}

static inline void rig_fetch(rig *r, const iso_agent_effect *x)
{
    iso_agent_event ev = {.kind = ISO_AE_FETCH_DONE, .digest = x->digest};
    if (x->kind == ISO_AX_FETCH_OPEN) {
        if (!rig_find_blob(r->blobs, r->blob_count, &x->digest)) {
            if (!iso_digest_equal(&r->partial_digest, &x->digest))
                r->partial.size = 0;
            r->partial_digest = x->digest;
            ev.kind = ISO_AE_FETCH_READY;
            ev.offset = r->partial.size - r->partial.size % x->chunk_bytes;
            r->partial.size = (size_t)ev.offset;
        }
        rig_queue(r, &ev);
    } else if (x->kind == ISO_AX_FETCH_WRITE) {
        assert_int_equal(r->partial.size, x->offset);
        assert_int_equal(iso_buf_append(&r->partial, x->data, x->data_bytes, NULL), ISO_OK);
    } else if (x->kind == ISO_AX_FETCH_CLOSE) {
        iso_digest got = iso_digest_of(r->partial.data, r->partial.size);
        if (iso_digest_equal(&got, &x->digest))
            rig_keep(r, r->partial.data, r->partial.size);
        else
            ev.code = ISO_ERR_DATA;
        r->partial.size = 0;
        memset(&r->partial_digest, 0, sizeof r->partial_digest);
        rig_queue(r, &ev);
    } else {
        r->partial.size = 0;
    }
}

static inline void rig_sent(rig *r, const iso_agent_effect *x)
{
    const iso_msg *m = x->msg;
    char more[160] = "";
    assert_true(r->sent_count < RIG_SENT);
    r->sent[r->sent_count] = *m;
    r->sent_blob[r->sent_count++] = x->digest;
    if (m->type == ISO_MSG_INVITE_REPLY)
        snprintf(more, sizeof more, " accept=%d%s%s", m->invite_reply.accept,
                 *m->invite_reply.reason ? " " : "", m->invite_reply.reason);
    else if (m->type == ISO_MSG_UPDATE_CHUNK)
        snprintf(more, sizeof more, " %u", m->update_chunk.index);
    else if (m->type == ISO_MSG_BLOB_GET)
        snprintf(more, sizeof more, " from=%u", m->blob_get.from_chunk);
    else if (m->type == ISO_MSG_RELEASE_VERDICT)
        snprintf(more, sizeof more, " %llu %s %s", (unsigned long long)m->release_verdict.number,
                 iso_verdict_name((iso_verdict)m->release_verdict.verdict),
                 m->release_verdict.reason);
    else if (m->type == ISO_MSG_EVAL_RESULT)
        snprintf(more, sizeof more, " score=%.3f outcome=%u", (double)m->eval_result.score,
                 m->eval_result.outcome);
    rig_say(r, "  send %s%s", iso_msg_type_name(m->type), more);
}

static inline void rig_perform(rig *r, const iso_agent_effect *x)
{
    static const char *const jobs[] = {"",        "head",  "train", "evaluate",
                                       "inspect", "trial", "check"};
    if (r->die_at && r->effects++ >= r->die_at)
        r->is_dead = true;
    if (r->is_dead)
        return;
    switch (x->kind) {
    case ISO_AX_COMMIT:
        rig_commit(r, x->ops, x->op_count);
        break;
    case ISO_AX_PUT_BLOB: {
        iso_digest got = rig_keep(r, x->data, x->data_bytes);
        assert_true(iso_digest_equal(&got, &x->digest));
        rig_say(r, "  put_blob");
        break;
    }
    case ISO_AX_DELETE_BLOB: {
        rig_blob *b = rig_find_blob(r->blobs, r->blob_count, &x->digest);
        if (b) {
            free(b->data);
            *b = r->blobs[--r->blob_count];
        }
        rig_say(r, "  delete_blob");
        break;
    }
    case ISO_AX_CONNECT:
        r->link = x->link;
        rig_say(r, "  connect");
        break;
    case ISO_AX_CLOSE:
        rig_say(r, "  close");
        break;
    case ISO_AX_SEND:
        rig_sent(r, x);
        break;
    case ISO_AX_JOB_START:
        r->has_job = true;
        r->job = *x->job;
        if (x->job->spec)
            r->job_spec = *x->job->spec;
        r->jobs++;
        rig_say(r, "  start %s", jobs[x->job->kind]);
        break;
    case ISO_AX_JOB_CANCEL:
        r->has_job = false;
        r->cancels++;
        rig_say(r, "  cancel job");
        break;
    case ISO_AX_JOB_FORGET:
        rig_say(r, "  forget job");
        break;
    case ISO_AX_SEAL:
        rig_say(r, "  seal");
        rig_seal(r, x);
        break;
    case ISO_AX_FETCH_OPEN:
    case ISO_AX_FETCH_WRITE:
    case ISO_AX_FETCH_CLOSE:
    case ISO_AX_FETCH_DROP: {
        static const char *const names[] = {"open", "write", "close", "drop"};
        rig_say(r, "  fetch %s", names[x->kind - ISO_AX_FETCH_OPEN]);
        rig_fetch(r, x);
        break;
    }
    case ISO_AX_INSTALL: {
        iso_agent_event ev = {.kind = ISO_AE_INSTALLED, .number = x->release->number};
        for (size_t i = 0; i < x->release->file_count; i++)
            assert_non_null(rig_find_blob(r->blobs, r->blob_count, &x->release->files[i].digest));
        assert_non_null(rig_find_blob(r->blobs, r->blob_count, &x->release->manifest));
        if (r->is_install_failing) {
            ev.code = ISO_ERR_RESOURCE;
            ev.text = "disk full";
        } else {
            r->installed = x->release->number;
        }
        rig_say(r, "  install %llu", (unsigned long long)x->release->number);
        rig_queue(r, &ev);
        break;
    }
    case ISO_AX_UNINSTALL:
        rig_say(r, "  uninstall %llu", (unsigned long long)x->number);
        break;
    case ISO_AX_SERVE:
        r->serving = x->number;
        rig_say(r, "  serve %llu", (unsigned long long)x->number);
        break;
    case ISO_AX_LOG:
        break; /* logs are for people; transcripts show what is done */
    }
}

static inline void rig_perform_all(rig *r)
{
    iso_error e = {0};
    assert_false(r->out.is_out_of_memory);
    for (size_t i = 0; i < r->out.count; i++)
        rig_perform(r, &r->out.items[i]);
    if (!r->is_dead && iso_agent_check(r->a, &e) != ISO_OK)
        fail_msg("%s", e.text);
}

static inline void rig_step(rig *r, const iso_agent_event *ev)
{
    if (r->is_dead)
        return;
    iso_agent_effects_reset(&r->out);
    iso_agent_step(r->a, ev, r->mono, r->wall, &r->out);
    rig_perform_all(r);
    while (r->queue_count && !r->is_dead) {
        size_t at = r->queue_first;
        iso_agent_event next = r->queue[at].ev;
        if (next.header) {
            next.header = r->queue[at].header;
            next.signature = r->queue[at].signature;
        }
        r->queue_first = (r->queue_first + 1) % RIG_QUEUE;
        r->queue_count--;
        iso_agent_effects_reset(&r->out);
        iso_agent_step(r->a, &next, r->mono, r->wall, &r->out);
        rig_perform_all(r);
    }
}

static inline void rig_tick(rig *r, uint64_t ms)
{
    r->mono += ms;
    r->wall += ms;
    rig_step(r, &(iso_agent_event){.kind = ISO_AE_TICK});
}

static inline void rig_clear(rig *r)
{
    r->sent_count = 0;
    r->text.size = 0;
}

/* ---- life ---- */

static inline void rig_make_agent(rig *r)
{
    iso_error e = {0};
    if (iso_agent_new(&r->config, &r->seams, &r->a, &e) != ISO_OK)
        fail_msg("%s", e.text);
}

/* What a killed process leaves: rows, blobs, partial file. A new agent takes it up. */
static inline void rig_restart(rig *r)
{
    iso_error e = {0};
    iso_agent_free(r->a);
    r->is_dead = r->has_job = false;
    r->die_at = r->effects = 0;
    r->queue_count = 0;
    rig_make_agent(r);
    rig_rows_sort(r->rows, r->row_count);
    for (size_t i = 0; i < r->row_count; i++) {
        const rig_row *w = &r->rows[i];
        if (iso_agent_restore_row(r->a, w->table, w->key, w->key_bytes, w->value, w->value_bytes,
                                  &e) != ISO_OK)
            fail_msg("%s", e.text);
    }
    rig_say(r, "  (restart)");
    iso_agent_effects_reset(&r->out);
    iso_agent_start(r->a, r->mono, r->wall, &r->out);
    rig_perform_all(r);
}

static inline void rig_data(rig *r, size_t task, uint64_t train, uint64_t val, uint64_t test)
{
    iso_agent_event ev = {
        .kind = ISO_AE_DATA, .train = train, .val = val, .test = test, .data_bytes = 1000 * train};
    uint64_t counts[3] = {train, val, test};
    ev.digest = iso_digest_of(counts, sizeof counts);
    memcpy(ev.task_id, r->tasks[task].id, 16);
    rig_step(r, &ev);
}

#include "tests/client/keys.h"

static inline rig *rig_open(void)
{
    rig *r = calloc(1, sizeof *r);
    iso_buf pub = {0};
    assert_int_equal(iso_crypto_init(NULL), ISO_OK);
    r->mono = 1000;
    r->wall = RIG_WALL;
    r->epoch = 7;
    r->entropy_state = 42;
    r->audit = rig_key(ISO_KEY_AUDIT, 1);
    r->sign = rig_key(ISO_KEY_SITE_SIGN, 2);
    r->merge = rig_key(ISO_KEY_MERGE, 3);
    rig_minisign(4, &r->root);
    rig_minisign(5, &r->release);
    rig_minisign(6, &r->other_release);
    r->audit_sealer = iso_sealer_real(&r->audit);
    iso_agent_config_defaults(&r->config);
    r->config.software = "0.1.0";
    memset(r->config.federation_id, 0xfe, 16);
    memset(r->config.site_id, 0x51, 16);
    r->tasks[0].name = "press";
    r->tasks[1].name = "weld";
    for (int i = 0; i < 2; i++)
        iso_agent_task_id(r->config.federation_id, r->tasks[i].name, r->tasks[i].id);
    r->config.tasks = r->tasks;
    r->config.task_count = 2;
    memset(r->config.generation_digest.b, 0x9e, 32);
    assert_int_equal(iso_minisign_public_format(&r->root.public_part, &pub, NULL), ISO_OK);
    iso_digest root = iso_digest_of(pub.data, pub.size);
    memcpy(r->config.root_fingerprint, root.b, ISO_FINGERPRINT_BYTES);
    iso_buf_free(&pub);
    r->seams = (iso_agent_seams){.sealer = iso_sealer_real(&r->sign), .entropy = {r, rig_fill}};
    r->roster = (iso_roster){.version = 1,
                             .root = r->root.public_part,
                             .merge_count = 1,
                             .release_count = 1,
                             .threshold = 1};
    memcpy(r->roster.federation_id, r->config.federation_id, 16);
    memset(r->roster.coordinator_transport_pk, 0x11, 32);
    memcpy(r->roster.audit_pk, r->audit.public_key, 32);
    memcpy(r->roster.merge[0].pk, r->merge.public_key, 32);
    iso_merge_key_id(r->merge.public_key, r->roster.merge[0].id);
    r->roster.release[0].key = r->release.public_part;
    rig_sign_roster(r, &r->root);
    r->head = (iso_head){.epoch = r->epoch, .seq = 10, .time_ms = RIG_WALL};
    memcpy(r->head.federation_id, r->config.federation_id, 16);
    memset(r->head.h.b, 0xaa, 32);
    rig_make_agent(r);
    iso_agent_effects_reset(&r->out);
    iso_agent_start(r->a, r->mono, r->wall, &r->out);
    rig_perform_all(r);
    return r;
}

static inline void rig_close(rig *r)
{
    iso_agent_free(r->a);
    iso_agent_effects_free(&r->out);
    rig_rows_free(r->rows, r->row_count);
    for (size_t i = 0; i < r->blob_count; i++)
        free(r->blobs[i].data);
    for (size_t i = 0; i < r->served_count; i++)
        free(r->served[i].data);
    iso_buf_free(&r->partial);
    iso_buf_free(&r->text);
    iso_buf_free(&r->roster_container);
    iso_key_free(&r->audit);
    iso_key_free(&r->sign);
    iso_key_free(&r->merge);
    iso_minisign_free(&r->root);
    iso_minisign_free(&r->release);
    iso_minisign_free(&r->other_release);
    free(r);
}

#include "tests/client/coordinator.h"

#endif
