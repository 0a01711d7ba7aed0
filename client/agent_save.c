/* Rows of the site's store, written: fixed little-endian layouts with a version byte first; read by
 * agent_restore.c (docs/FORMATS.md "State of a client"; transactions K1-K10 of
 * specs/security.md 6.2). */
#include "client/agent_inner.h"

#include <string.h>

const char *const iso_agent_table_names[ISO_AT_COUNT] = {"meta",    "task", "invite", "outbox",
                                                         "release", "eval", "head",   "download"};

enum { ROW_BYTES = 1000 };

/* ---- writing ---- */
typedef struct {
    iso_agent *a;
    iso_buf buf;
} writer;

static void w_bytes(writer *w, const void *data, size_t bytes)
{
    if (bytes && iso_buf_append(&w->buf, data, bytes, NULL) != ISO_OK)
        w->a->is_broken = true;
}

static void w_u8(writer *w, unsigned v)
{
    uint8_t b = (uint8_t)v;
    w_bytes(w, &b, 1);
}

static void w_u32(writer *w, uint32_t v)
{
    uint8_t b[4];
    iso_put_u32(b, v);
    w_bytes(w, b, sizeof b);
}

static void w_u64(writer *w, uint64_t v)
{
    uint8_t b[8];
    iso_put_u64(b, v);
    w_bytes(w, b, sizeof b);
}

static void w_f32(writer *w, float v)
{
    uint32_t bits;
    memcpy(&bits, &v, sizeof bits);
    w_u32(w, bits);
}

static void w_digest(writer *w, const iso_digest *d)
{
    w_bytes(w, d->b, sizeof d->b);
}

static void w_text(writer *w, const char *s)
{
    size_t n = s ? strlen(s) : 0;
    w_u32(w, (uint32_t)n);
    w_bytes(w, s, n);
}

static void w_pair(writer *w, const iso_score_pair *p)
{
    const iso_score *s[2] = {&p->delivered, &p->refitted};
    for (int i = 0; i < 2; i++) {
        w_u8(w, s[i]->is_known);
        w_f32(w, s[i]->value);
        w_u64(w, s[i]->samples);
    }
}

static writer begin(iso_agent *a)
{
    writer w = {.a = a};
    if (iso_buf_reserve(&w.buf, ROW_BYTES, NULL) != ISO_OK) /* most rows in one piece */
        a->is_broken = true;
    w_u8(&w, AGENT_RECORD_VERSION);
    return w;
}

static void end(writer *w, iso_agent_table table, const void *key, size_t key_bytes)
{
    agent_put(w->a, table, key, key_bytes, &w->buf);
    iso_buf_free(&w->buf);
}

static void number_key(uint64_t number, uint8_t key[8])
{
    for (int i = 0; i < 8; i++)
        key[i] = (uint8_t)(number >> (56 - 8 * i)); /* big endian: rows come in order of number */
}

static void eval_key(const iso_digest *candidate, const uint8_t task_id[16], uint8_t key[48])
{
    memcpy(key, candidate->b, 32);
    memcpy(key + 32, task_id, 16);
}

void agent_save_meta(iso_agent *a)
{
    writer w = begin(a);
    w_u64(&w, a->epoch);
    w_u64(&w, a->next_sequence);
    w_u64(&w, a->highest_number);
    w_u64(&w, a->current);
    w_u64(&w, a->previous);
    w_u64(&w, a->event_cursor);
    w_u64(&w, a->head_count);
    w_u8(&w, a->has_conflict);
    w_u8(&w, a->is_paused);
    w_u8(&w, a->has_head);
    w_bytes(&w, a->head, sizeof a->head);
    end(&w, ISO_AT_META, "agent", 5);
}

void agent_save_roster(iso_agent *a, const void *text, size_t bytes)
{
    writer w = begin(a);
    w_digest(&w, &a->roster_container);
    w_bytes(&w, text, bytes);
    end(&w, ISO_AT_META, "roster", 6);
}

void agent_save_task(iso_agent *a, const agent_task *t)
{
    writer w = begin(a);
    w_u64(&w, t->train);
    w_u64(&w, t->val);
    w_u64(&w, t->test);
    w_u64(&w, t->data_bytes);
    w_digest(&w, &t->data);
    w_u64(&w, t->round);
    w_digest(&w, &t->head);
    w_u32(&w, t->head_mode);
    for (int i = 0; i < 2; i++) {
        w_pair(&w, &t->probe[i]);
        w_pair(&w, &t->own[i]);
        w_pair(&w, &t->serving[i]);
    }
    w_u32(&w, t->class_count);
    for (uint32_t i = 0; i < t->class_count; i++)
        w_text(&w, t->classes[i]);
    w_text(&w, t->reason);
    end(&w, ISO_AT_TASK, t->config->id, 16);
}

void agent_save_invite(iso_agent *a, const agent_invite *v)
{
    writer w = begin(a);
    w_bytes(&w, a->tasks[v->task].config->id, 16);
    w_u64(&w, v->round);
    w_u64(&w, v->generation);
    w_digest(&w, &v->generation_digest);
    w_digest(&w, &v->base);
    w_u64(&w, v->deadline_ms);
    w_bytes(&w, v->merge_key_id, 16);
    w_u8(&w, v->state);
    w_u64(&w, v->samples);
    w_text(&w, v->reason);
    const iso_train_spec *s = &v->spec;
    w_u32(&w, s->adapter_kind);
    w_u32(&w, s->rank);
    w_f32(&w, s->alpha);
    w_u8(&w, s->is_rslora);
    w_u32(&w, s->target_count);
    for (uint32_t i = 0; i < s->target_count; i++)
        w_text(&w, s->targets[i]);
    w_u32(&w, s->steps);
    w_f32(&w, s->learning_rate);
    w_u64(&w, s->seed);
    w_u32(&w, s->head_mode);
    w_f32(&w, s->norm_cap);
    w_u32(&w, s->min_samples);
    w_u32(&w, s->class_count);
    for (uint32_t i = 0; i < s->class_count; i++)
        w_text(&w, s->classes[i]);
    w_text(&w, s->kind_parameters);
    w_digest(&w, &v->head);
    w_u64(&w, v->update_bytes);
    w_digest(&w, &v->container);
    w_u64(&w, v->container_bytes);
    w_u64(&w, v->used_samples);
    w_f32(&w, v->score);
    end(&w, ISO_AT_INVITE, v->id, 16);
}

void agent_save_update(iso_agent *a, const agent_update *u)
{
    writer w = begin(a);
    w_bytes(&w, u->invite_id, 16);
    w_u8(&w, u->state);
    w_u64(&w, u->sequence);
    w_u64(&w, u->round);
    w_bytes(&w, u->header, sizeof u->header);
    w_bytes(&w, u->signature, sizeof u->signature);
    w_digest(&w, &u->body);
    w_u64(&w, u->body_bytes);
    w_u8(&w, u->has_file);
    w_bytes(&w, u->receipt, sizeof u->receipt);
    w_bytes(&w, u->receipt_signature, sizeof u->receipt_signature);
    w_u64(&w, u->epoch);
    w_u64(&w, u->audit_seq);
    w_u64(&w, u->done_ms);
    w_u32(&w, (uint32_t)u->code);
    w_text(&w, u->sentence);
    end(&w, ISO_AT_OUTBOX, u->update_id, 16);
}

void agent_save_release(iso_agent *a, const agent_release *r)
{
    writer w = begin(a);
    w_digest(&w, &r->manifest);
    w_digest(&w, &r->signature);
    w_bytes(&w, r->key_id, sizeof r->key_id);
    w_u64(&w, r->epoch);
    w_u64(&w, r->created_ms);
    w_u64(&w, r->valid_until_ms);
    w_u64(&w, r->rollback_of);
    w_u8(&w, r->force);
    w_u8(&w, r->kind);
    w_u32(&w, (uint32_t)r->file_count);
    for (size_t i = 0; i < r->file_count; i++) {
        w_text(&w, r->files[i].path);
        w_digest(&w, &r->files[i].digest);
        w_u64(&w, r->files[i].bytes);
    }
    w_u32(&w, (uint32_t)r->task_count);
    for (size_t i = 0; i < r->task_count; i++) {
        const agent_release_task *t = &r->tasks[i];
        w_bytes(&w, t->task_id, 16);
        w_digest(&w, &t->head);
        w_pair(&w, &t->val);
        w_pair(&w, &t->test);
        w_pair(&w, &t->before);
        w_digest(&w, &t->output);
        w_u8(&w, t->is_tried);
    }
    w_u8(&w, r->state);
    w_u8(&w, r->verdict);
    w_u8(&w, r->is_checked);
    w_f32(&w, r->before);
    w_f32(&w, r->delivered);
    w_f32(&w, r->refitted);
    w_u64(&w, r->samples);
    w_text(&w, r->reason);
    uint8_t key[8];
    number_key(r->number, key);
    end(&w, ISO_AT_RELEASE, key, sizeof key);
}

void agent_save_eval(iso_agent *a, const agent_eval *v)
{
    writer w = begin(a);
    w_u64(&w, v->stamp);
    w_digest(&w, &v->config);
    w_digest(&w, &v->model);
    w_digest(&w, &v->head);
    w_digest(&w, &v->data);
    w_pair(&w, &v->val);
    w_pair(&w, &v->test);
    uint8_t key[48];
    eval_key(&v->candidate, a->tasks[v->task].config->id, key);
    end(&w, ISO_AT_EVAL, key, sizeof key);
}

void agent_save_head(iso_agent *a)
{
    writer w = begin(a);
    w_bytes(&w, a->head, sizeof a->head);
    uint8_t key[8];
    number_key(a->head_count++ % AGENT_HEADS_KEPT, key); /* a ring: the oldest is overwritten */
    end(&w, ISO_AT_HEAD, key, sizeof key);
}

void agent_save_blob(iso_agent *a, const agent_blob *b)
{
    writer w = begin(a);
    w_u64(&w, b->bytes);
    w_u8(&w, b->is_complete);
    end(&w, ISO_AT_BLOB, b->digest.b, 32);
}
