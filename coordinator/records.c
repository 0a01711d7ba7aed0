/* Rows of the store, written: one function a table. restore.c reads them back, field by field in
 * the same order; docs/FORMATS.md "State" has the layouts. */
#include "coordinator/record.h"

#include <string.h>

static void put(iso_coord *c, int table, iso_op_kind kind, const void *key, size_t key_bytes,
                const iso_writer *w)
{
    iso_c_put(c, table, kind, key, key_bytes, w->data, w->size);
}

void iso_c_save_meta(iso_coord *c)
{
    iso_writer w = iso_writer_begin(c, 400);
    iso_w_bytes(&w, c->identity.federation, 16);
    iso_w_u64(&w, c->identity.epoch);
    iso_w_u64(&w, c->release_floor);
    iso_w_u64(&w, c->retired_receipts);
    iso_w_u64(&w, c->retired_used);
    iso_w_u64(&w, c->retired_refused);
    iso_w_u32(&w, c->auto_rounds);
    iso_w_bytes(&w, c->signed_head, ISO_SIGNED_HEAD_BYTES);
    iso_w_bytes(&w, c->last_signed_head.b, 32);
    iso_w_u64(&w, c->signed_release);
    iso_w_u64(&w, c->signed_ms);
    put(c, ISO_CT_META, ISO_OP_PUT, "coordinator", 11, &w);
}

static void write_ids(iso_writer *w, uint8_t (*ids)[16], size_t count)
{
    iso_w_u32(w, count);
    iso_w_bytes(w, ids, count * 16);
}

void iso_c_save_site(iso_coord *c, const iso_c_site *s, iso_op_kind kind)
{
    iso_writer w = iso_writer_begin(c, 256);
    iso_w_u8(&w, (unsigned)s->state);
    iso_w_text(&w, s->name);
    iso_w_bytes(&w, s->transport_pk, 32);
    iso_w_bytes(&w, s->sign_pk, 32);
    iso_w_u64(&w, s->enrolled_ms);
    iso_w_u64(&w, s->revoked_seq);
    iso_w_u64(&w, s->sequence);
    iso_w_u64(&w, s->next_event);
    write_ids(&w, s->task_ids, s->task_count);
    put(c, ISO_CT_SITE, kind, s->id, 16, &w);
}

void iso_c_save_token(iso_coord *c, const iso_c_token *t, iso_op_kind kind)
{
    iso_writer w = iso_writer_begin(c, 256);
    iso_w_u8(&w, t->is_used);
    iso_w_text(&w, t->name);
    iso_w_bytes(&w, t->transport_pk, 32);
    iso_w_bytes(&w, t->proof_key, 32);
    iso_w_u64(&w, t->created_ms);
    iso_w_u64(&w, t->expires_ms);
    iso_w_u32(&w, t->wrong_macs);
    iso_w_bytes(&w, t->site_id, 16);
    write_ids(&w, t->task_ids, t->task_count);
    put(c, ISO_CT_TOKEN, kind, t->id, 4, &w);
}

void iso_c_save_task(iso_coord *c, const iso_c_task *t)
{
    iso_writer w = iso_writer_begin(c, 256);
    iso_w_bytes(&w, t->head.b, 32);
    iso_w_u64(&w, t->head_bytes);
    iso_w_u64(&w, t->head_round);
    iso_w_bytes(&w, t->adapter.b, 32);
    iso_w_u64(&w, t->adapter_bytes);
    iso_w_u64(&w, t->adapter_round);
    iso_w_u32(&w, t->rank);
    iso_w_u64(&w, t->updates);
    iso_w_u64(&w, t->samples);
    for (int i = 0; i < METRICS; i++)
        iso_w_f64(&w, t->own[i]);
    for (int i = 0; i < METRICS; i++)
        iso_w_f64(&w, t->baseline[i]);
    put(c, ISO_CT_TASK, ISO_OP_PUT, t->id, 16, &w);
}

static void write_files(iso_writer *w, const iso_job_file *files, size_t count)
{
    iso_w_u32(w, count);
    for (size_t i = 0; i < count; i++) {
        iso_w_text(w, files[i].path);
        iso_w_bytes(w, files[i].digest.b, 32);
        iso_w_u64(w, files[i].bytes);
    }
}

/* Tasks are stored by id: their order in the configuration may change. */
static void write_mask(const iso_coord *c, iso_writer *w, uint64_t mask)
{
    size_t count = 0;
    for (size_t i = 0; i < c->config.task_count; i++)
        count += mask >> i & 1;
    iso_w_u32(w, count);
    for (size_t i = 0; i < c->config.task_count; i++)
        if (mask >> i & 1)
            iso_w_bytes(w, c->tasks[i].id, 16);
}

void iso_c_save_round(iso_coord *c, const iso_c_round *r, iso_op_kind kind)
{
    iso_writer w = iso_writer_begin(c, 1024);
    uint8_t key[8];
    iso_key_u64(key, r->number);
    iso_w_u8(&w, (unsigned)r->kind);
    iso_w_u8(&w, (unsigned)r->state);
    iso_w_u8(&w, r->is_paused);
    iso_w_u8(&w, r->by_operator);
    iso_w_u8(&w, r->has_job);
    iso_w_bytes(&w, r->job, 16);
    const uint64_t times[] = {r->opened_ms, r->deadline_ms, r->closed_ms, r->merged_ms,
                              r->judged_ms, r->ended_ms,    r->worker_ms};
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++)
        iso_w_u64(&w, times[i]);
    iso_w_text(&w, r->reason);
    iso_w_u32(&w, (uint64_t)(int64_t)r->chosen);
    iso_w_u64(&w, r->release);
    iso_w_bytes(&w, r->manifest.b, 32);
    iso_w_u64(&w, r->manifest_bytes);
    iso_w_u64(&w, r->release_created_ms);
    iso_w_u64(&w, r->release_valid_until_ms);
    iso_w_u64(&w, r->rollback_of);
    iso_w_u32(&w, r->task_count);
    for (size_t i = 0; i < r->task_count; i++) {
        const iso_c_round_task *t = &r->tasks[i];
        iso_w_bytes(&w, c->tasks[t->task].id, 16);
        iso_w_u32(&w, t->quorum);
        iso_w_u32(&w, t->updates);
        iso_w_u8(&w, t->is_out);
        iso_w_text(&w, t->reason);
        iso_w_f64(&w, t->score);
        iso_w_f64(&w, t->baseline);
    }
    write_mask(c, &w, r->follow);
    write_mask(c, &w, r->eval_tasks);
    write_mask(c, &w, r->fresh_tasks);
    iso_w_u32(&w, r->metric_count);
    iso_w_u32(&w, r->candidate_count);
    for (size_t i = 0; i < r->candidate_count; i++) {
        const iso_c_candidate *x = &r->candidates[i];
        iso_w_text(&w, x->method);
        iso_w_text(&w, x->convention);
        iso_w_f64(&w, x->alpha);
        iso_w_f64(&w, x->common_fraction);
        iso_w_bytes(&w, x->manifest.b, 32);
        iso_w_u64(&w, x->bytes);
        iso_w_u32(&w, x->rank_max);
        write_files(&w, x->files, x->file_count);
        iso_w_u8(&w, x->is_judged);
        iso_w_u8(&w, x->has_passed);
        iso_w_f64(&w, x->mean);
        iso_w_text(&w, x->reason);
    }
    iso_w_u32(&w, r->evaluator_count);
    for (size_t i = 0; i < r->evaluator_count; i++)
        iso_w_bytes(&w, r->evaluators[i].site->id, 16);
    put(c, ISO_CT_ROUND, kind, key, 8, &w);
}

static void invite_key(const iso_coord *c, const iso_c_round *r, const iso_c_invite *v,
                       uint8_t key[40])
{
    iso_key_u64(key, r->number);
    memcpy(key + 8, v->site->id, 16);
    memcpy(key + 24, c->tasks[v->task].id, 16);
}

void iso_c_save_invite(iso_coord *c, const iso_c_round *r, const iso_c_invite *v, iso_op_kind kind)
{
    iso_writer w = iso_writer_begin(c, 128);
    uint8_t key[40];
    invite_key(c, r, v, key);
    iso_w_bytes(&w, v->id, 16);
    iso_w_u8(&w, (unsigned)v->state);
    iso_w_u64(&w, v->samples);
    iso_w_text(&w, v->reason);
    put(c, ISO_CT_INVITE, kind, key, sizeof key, &w);
}

void iso_c_delete_invite(iso_coord *c, const iso_c_round *r, const iso_c_invite *v)
{
    uint8_t key[40];
    invite_key(c, r, v, key);
    iso_c_delete(c, ISO_CT_INVITE, key, sizeof key);
}

void iso_c_save_upload(iso_coord *c, const iso_c_upload *u)
{
    iso_writer w = iso_writer_begin(c, 512);
    iso_w_bytes(&w, u->site->id, 16);
    iso_w_bytes(&w, u->raw, sizeof u->raw);
    iso_w_u64(&w, u->begun_ms);
    put(c, ISO_CT_UPLOAD, ISO_OP_INSERT, u->id, 16, &w);
}

void iso_c_delete_upload(iso_coord *c, const iso_c_upload *u)
{
    iso_c_delete(c, ISO_CT_UPLOAD, u->id, 16);
}

void iso_c_save_update(iso_coord *c, const iso_c_update *u, iso_op_kind kind)
{
    iso_writer w = iso_writer_begin(c, 900);
    iso_w_u8(&w, (unsigned)u->state);
    iso_w_u32(&w, (uint64_t)u->code);
    iso_w_text(&w, u->sentence ? u->sentence : "");
    iso_w_bytes(&w, u->site->id, 16);
    iso_w_bytes(&w, u->task_id, 16);
    iso_w_u64(&w, u->round);
    iso_w_u64(&w, u->sequence);
    iso_w_u64(&w, u->samples);
    iso_w_u64(&w, u->committed_ms);
    iso_w_f64(&w, (double)u->score);
    iso_w_f64(&w, u->worker_score);
    iso_w_bytes(&w, u->header_digest.b, 32);
    iso_w_bytes(&w, u->blob.b, 32);
    iso_w_u64(&w, u->blob_bytes);
    iso_w_u64(&w, u->audit_seq);
    iso_w_bytes(&w, u->audit_head.b, 32);
    iso_w_u64(&w, u->epoch);
    iso_w_bytes(&w, u->receipt_signature, 64);
    iso_w_u8(&w, u->raw != NULL);
    if (u->raw)
        iso_w_bytes(&w, u->raw, 384 + 64);
    put(c, ISO_CT_UPDATE, kind, u->id, 16, &w);
}

void iso_c_delete_update(iso_coord *c, const iso_c_update *u)
{
    iso_c_delete(c, ISO_CT_UPDATE, u->id, 16);
}

static void score_key(const iso_coord *c, const iso_c_round *r, const iso_c_question *q,
                      const iso_c_site *s, uint8_t key[42])
{
    iso_key_u64(key, r->number);
    key[8] = (uint8_t)(q->candidate + 1);
    memcpy(key + 9, c->tasks[q->task].id, 16);
    memcpy(key + 25, s->id, 16);
    key[41] = (uint8_t)q->metric;
}

void iso_c_save_score(iso_coord *c, const iso_c_round *r, const iso_c_question *q,
                      const iso_c_site *s, const iso_c_answer *a)
{
    iso_writer w = iso_writer_begin(c, 32);
    uint8_t key[42];
    score_key(c, r, q, s, key);
    iso_w_u8(&w, a->outcome);
    iso_w_f64(&w, (double)a->score);
    iso_w_u64(&w, a->samples);
    put(c, ISO_CT_SCORE, ISO_OP_PUT, key, sizeof key, &w);
}

void iso_c_delete_score(iso_coord *c, const iso_c_round *r, const iso_c_question *q,
                        const iso_c_site *s)
{
    uint8_t key[42];
    score_key(c, r, q, s, key);
    iso_c_delete(c, ISO_CT_SCORE, key, sizeof key);
}

void iso_c_save_release(iso_coord *c, const iso_c_release *r, iso_op_kind kind)
{
    iso_writer w = iso_writer_begin(c, 1024);
    uint8_t key[8];
    iso_key_u64(key, r->number);
    iso_w_u64(&w, r->round);
    iso_w_u64(&w, r->rollback_of);
    iso_w_bytes(&w, r->manifest.b, 32);
    iso_w_u64(&w, r->manifest_bytes);
    iso_w_bytes(&w, r->signature.b, 32);
    iso_w_u64(&w, r->signature_bytes);
    iso_w_bytes(&w, r->candidate.b, 32);
    iso_w_u64(&w, r->total_bytes);
    iso_w_u64(&w, r->created_ms);
    iso_w_u64(&w, r->valid_until_ms);
    iso_w_text(&w, r->method);
    iso_w_text(&w, r->convention);
    iso_w_text(&w, r->reason);
    iso_w_u32(&w, r->file_count);
    for (size_t i = 0; i < r->file_count; i++) {
        iso_w_text(&w, r->files[i].path);
        iso_w_bytes(&w, r->files[i].digest.b, 32);
        iso_w_u64(&w, r->files[i].bytes);
        iso_w_bytes(&w, r->files[i].task_id, 16);
    }
    iso_w_u32(&w, r->task_count);
    for (size_t i = 0; i < r->task_count; i++) {
        const iso_c_release_task *t = &r->tasks[i];
        iso_w_bytes(&w, t->task_id, 16);
        for (int k = 0; k < METRICS; k++)
            iso_w_f64(&w, t->score[k]);
        iso_w_f64(&w, t->baseline);
        iso_w_u64(&w, t->samples);
        iso_w_u64(&w, t->updates);
    }
    put(c, ISO_CT_RELEASE, kind, key, 8, &w);
}

static void notice_key(const iso_c_site *s, uint64_t event, uint8_t key[24])
{
    memcpy(key, s->id, 16);
    iso_key_u64(key + 16, event);
}

void iso_c_save_notice(iso_coord *c, const iso_c_site *s, const iso_c_notice *n)
{
    iso_writer w = iso_writer_begin(c, 256);
    uint8_t key[24];
    notice_key(s, n->event, key);
    iso_w_u32(&w, (uint64_t)n->code);
    iso_w_bytes(&w, n->update_id, 16);
    iso_w_text(&w, n->sentence);
    put(c, ISO_CT_NOTICE, ISO_OP_PUT, key, sizeof key, &w);
}

void iso_c_delete_notice(iso_coord *c, const iso_c_site *s, uint64_t event)
{
    uint8_t key[24];
    notice_key(s, event, key);
    iso_c_delete(c, ISO_CT_NOTICE, key, sizeof key);
}

void iso_c_save_verdict(iso_coord *c, uint64_t number, const iso_c_site *s,
                        const iso_msg_release_verdict *v)
{
    iso_writer w = iso_writer_begin(c, 256);
    uint8_t key[24];
    iso_key_u64(key, number);
    memcpy(key + 8, s->id, 16);
    iso_w_u32(&w, v->verdict);
    iso_w_f64(&w, (double)v->before);
    iso_w_f64(&w, (double)v->delivered);
    iso_w_f64(&w, (double)v->refitted);
    iso_w_text(&w, v->reason);
    iso_w_bytes(&w, v->signature, 64);
    put(c, ISO_CT_VERDICT, ISO_OP_PUT, key, sizeof key, &w);
}
