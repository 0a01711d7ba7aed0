/* Rows of the site's store, read: what agent_save.c writes (docs/FORMATS.md "State of a client").
 *
 * A row that is damaged or of another version stops the start with its table's name: state is
 * never guessed. Rows of a task that is no longer configured are left alone. */
#include "client/agent_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    iso_agent *a;
    const uint8_t *p, *end;
    bool is_bad;
} reader;

static const uint8_t *r_take(reader *r, size_t bytes)
{
    static const uint8_t zeros[512];
    if (r->is_bad || (size_t)(r->end - r->p) < bytes) {
        r->is_bad = true;
        return bytes <= sizeof zeros ? zeros : NULL;
    }
    const uint8_t *p = r->p;
    r->p += bytes;
    return p;
}

static void r_bytes(reader *r, void *out, size_t bytes)
{
    const uint8_t *p = r_take(r, bytes);
    if (p)
        memcpy(out, p, bytes);
}

static uint8_t r_u8(reader *r)
{
    return *r_take(r, 1);
}

static bool r_bool(reader *r)
{
    return r_u8(r) != 0;
}

static uint32_t r_u32(reader *r)
{
    return iso_get_u32(r_take(r, 4));
}

static uint64_t r_u64(reader *r)
{
    return iso_get_u64(r_take(r, 8));
}

static float r_f32(reader *r)
{
    uint32_t bits = r_u32(r);
    float v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

static iso_digest r_digest(reader *r)
{
    iso_digest d;
    r_bytes(r, d.b, sizeof d.b);
    return d;
}

static uint32_t r_count(reader *r, uint32_t max)
{
    uint32_t n = r_u32(r);
    if (n > max)
        r->is_bad = true;
    return r->is_bad ? 0 : n;
}

/* A new string; NULL for an empty one. */
static char *r_text(reader *r)
{
    uint32_t n = r_count(r, 65536);
    const uint8_t *p = n ? r_take(r, n) : NULL;
    if (!p || r->is_bad)
        return NULL;
    char *s = malloc((size_t)n + 1);
    if (!s) {
        r->is_bad = true;
        return NULL;
    }
    memcpy(s, p, n);
    s[n] = '\0';
    return s;
}

static const char *r_arena_text(reader *r, iso_arena *arena)
{
    char *s = r_text(r);
    char *copy = iso_arena_strdup(arena, s ? s : "");
    free(s);
    if (!copy)
        r->is_bad = true;
    return copy ? copy : "";
}

static iso_score_pair r_pair(reader *r)
{
    iso_score_pair p;
    iso_score *s[2] = {&p.delivered, &p.refitted};
    for (int i = 0; i < 2; i++) {
        s[i]->is_known = r_bool(r);
        s[i]->value = r_f32(r);
        s[i]->samples = r_u64(r);
    }
    return p;
}

static agent_task *task_of(iso_agent *a, const uint8_t id[16])
{
    for (size_t i = 0; i < a->config.task_count; i++)
        if (memcmp(a->tasks[i].config->id, id, 16) == 0)
            return &a->tasks[i];
    return NULL;
}

static void read_meta(reader *r)
{
    iso_agent *a = r->a;
    a->epoch = r_u64(r);
    a->next_sequence = r_u64(r);
    a->highest_number = r_u64(r);
    a->current = r_u64(r);
    a->previous = r_u64(r);
    a->event_cursor = r_u64(r);
    a->head_count = r_u64(r);
    a->has_conflict = r_bool(r);
    a->is_paused = r_bool(r);
    a->has_head = r_bool(r);
    r_bytes(r, a->head, sizeof a->head);
    if (a->has_head && iso_head_decode(a->head, ISO_HEAD_BYTES, &a->head_fields, NULL) != ISO_OK)
        r->is_bad = true;
}

static void read_roster(reader *r)
{
    iso_agent *a = r->a;
    iso_digest container = r_digest(r);
    iso_roster *roster = iso_calloc(1, sizeof *roster);
    if (!roster || iso_roster_parse(r->p, (size_t)(r->end - r->p), roster, NULL) != ISO_OK) {
        free(roster);
        r->is_bad = true;
        return;
    }
    r->p = r->end;
    free(a->own_roster);
    a->own_roster = roster;
    a->roster = roster;
    a->roster_container = container;
}

static void read_task(reader *r, agent_task *t)
{
    t->train = r_u64(r);
    t->val = r_u64(r);
    t->test = r_u64(r);
    t->data_bytes = r_u64(r);
    t->data = r_digest(r);
    t->round = r_u64(r);
    t->head = r_digest(r);
    t->head_mode = r_u32(r);
    for (int i = 0; i < 2; i++) {
        t->probe[i] = r_pair(r);
        t->own[i] = r_pair(r);
        t->serving[i] = r_pair(r);
    }
    uint32_t n = r_count(r, ISO_CLASSES_MAX);
    t->classes = iso_calloc(n, sizeof *t->classes);
    for (uint32_t i = 0; i < n && t->classes; i++) {
        char *s = r_text(r);
        if (s)
            snprintf(t->classes[i], sizeof t->classes[i], "%s", s);
        free(s);
    }
    t->class_count = t->classes ? n : 0;
    t->reason = r_text(r);
}

static void read_invite(reader *r, const uint8_t *key)
{
    iso_agent *a = r->a;
    uint8_t task_id[16];
    r_bytes(r, task_id, 16);
    const agent_task *t = task_of(a, task_id);
    if (!t) { /* no longer configured: the row says nothing to us */
        r->p = r->end;
        return;
    }
    agent_invite *v = agent_grow(a, &a->invites, &a->invite_count, sizeof *v);
    if (!v)
        return;
    memcpy(v->id, key, 16);
    v->task = (size_t)(t - a->tasks);
    v->round = r_u64(r);
    v->generation = r_u64(r);
    v->generation_digest = r_digest(r);
    v->base = r_digest(r);
    v->deadline_ms = r_u64(r);
    r_bytes(r, v->merge_key_id, 16);
    v->state = r_u8(r);
    v->samples = r_u64(r);
    v->reason = r_text(r);
    iso_train_spec *s = &v->spec;
    v->arena.first_bytes = AGENT_SPEC_BYTES;
    s->adapter_kind = r_u32(r);
    s->rank = r_u32(r);
    s->alpha = r_f32(r);
    s->is_rslora = r_bool(r);
    s->target_count = r_count(r, ISO_TARGETS_MAX);
    const char **targets = iso_arena_calloc(&v->arena, s->target_count, sizeof *targets);
    for (uint32_t i = 0; i < s->target_count && targets; i++)
        targets[i] = r_arena_text(r, &v->arena);
    s->targets = targets;
    s->steps = r_u32(r);
    s->learning_rate = r_f32(r);
    s->seed = r_u64(r);
    s->head_mode = r_u32(r);
    s->norm_cap = r_f32(r);
    s->min_samples = r_u32(r);
    s->class_count = r_count(r, ISO_CLASSES_MAX);
    const char **classes = iso_arena_calloc(&v->arena, s->class_count, sizeof *classes);
    for (uint32_t i = 0; i < s->class_count && classes; i++)
        classes[i] = r_arena_text(r, &v->arena);
    s->classes = classes;
    s->kind_parameters = r_arena_text(r, &v->arena);
    v->head = r_digest(r);
    v->update_bytes = r_u64(r);
    v->container = r_digest(r);
    v->container_bytes = r_u64(r);
    v->used_samples = r_u64(r);
    v->score = r_f32(r);
    if (!targets || !classes || v->state < INVITE_ACCEPTED || v->state >= INVITE_STATES)
        r->is_bad = true;
}

/* Finished entries beyond the newest few stay on disk only. */
static void trim_outbox(iso_agent *a)
{
    size_t finished = 0;
    for (size_t i = a->outbox_count; i-- > 0;) {
        agent_update *u = &a->outbox[i];
        if (u->state == OUTBOX_WAITING || u->has_file || ++finished <= AGENT_OUTBOX_MEMORY)
            continue;
        free(u->sentence);
        memmove(u, u + 1, (a->outbox_count - i - 1) * sizeof *u);
        a->outbox_count--;
    }
}

static void read_update(reader *r, const uint8_t *key)
{
    iso_agent *a = r->a;
    agent_update u = {0};
    memcpy(u.update_id, key, 16);
    r_bytes(r, u.invite_id, 16);
    u.state = r_u8(r);
    u.sequence = r_u64(r);
    u.round = r_u64(r);
    r_bytes(r, u.header, sizeof u.header);
    r_bytes(r, u.signature, sizeof u.signature);
    u.body = r_digest(r);
    u.body_bytes = r_u64(r);
    u.has_file = r_bool(r);
    r_bytes(r, u.receipt, sizeof u.receipt);
    r_bytes(r, u.receipt_signature, sizeof u.receipt_signature);
    u.epoch = r_u64(r);
    u.audit_seq = r_u64(r);
    u.done_ms = r_u64(r);
    u.code = (iso_code)r_u32(r);
    u.sentence = r_text(r);
    if (u.state < OUTBOX_WAITING || u.state > OUTBOX_REFUSED)
        r->is_bad = true;
    agent_update *slot = agent_grow(a, &a->outbox, &a->outbox_count, sizeof *slot);
    if (!slot) {
        free(u.sentence);
        return;
    }
    size_t i =
        a->outbox_count - 1; /* rows come in order of id; the outbox is in order of sequence */
    for (; i > 0 && a->outbox[i - 1].sequence > u.sequence; i--)
        a->outbox[i] = a->outbox[i - 1];
    a->outbox[i] = u;
    trim_outbox(a);
}

static void read_release(reader *r, const uint8_t *key)
{
    iso_agent *a = r->a;
    agent_release *v = agent_grow(a, &a->releases, &a->release_count, sizeof *v);
    if (!v)
        return;
    for (int i = 0; i < 8; i++)
        v->number = v->number << 8 | key[i];
    v->manifest = r_digest(r);
    v->signature = r_digest(r);
    r_bytes(r, v->key_id, sizeof v->key_id);
    v->epoch = r_u64(r);
    v->created_ms = r_u64(r);
    v->valid_until_ms = r_u64(r);
    v->rollback_of = r_u64(r);
    v->force = r_bool(r);
    v->kind = r_u8(r);
    v->file_count = r_count(r, ISO_RELEASE_FILES_MAX);
    v->files = iso_calloc(v->file_count, sizeof *v->files);
    for (size_t i = 0; i < v->file_count && v->files; i++) {
        v->files[i].path = r_text(r);
        v->files[i].digest = r_digest(r);
        v->files[i].bytes = r_u64(r);
        if (!v->files[i].path)
            r->is_bad = true;
    }
    v->task_count = r_count(r, ISO_MANIFEST_TASKS_MAX);
    v->tasks = iso_calloc(v->task_count, sizeof *v->tasks);
    for (size_t i = 0; i < v->task_count && v->tasks; i++) {
        agent_release_task *t = &v->tasks[i];
        r_bytes(r, t->task_id, 16);
        t->head = r_digest(r);
        t->val = r_pair(r);
        t->test = r_pair(r);
        t->before = r_pair(r);
        t->output = r_digest(r);
        t->is_tried = r_bool(r);
    }
    v->state = r_u8(r);
    v->verdict = r_u8(r);
    v->is_checked = r_bool(r);
    v->before = r_f32(r);
    v->delivered = r_f32(r);
    v->refitted = r_f32(r);
    v->samples = r_u64(r);
    v->reason = r_text(r);
    if (!v->files || !v->tasks || v->state < ISO_RS_FETCHED || v->state > ISO_RS_RETURNED)
        r->is_bad = true;
}

static void read_eval(reader *r, const uint8_t *key)
{
    iso_agent *a = r->a;
    const agent_task *t = task_of(a, key + 32);
    if (!t) {
        r->p = r->end;
        return;
    }
    agent_eval *v = agent_grow(a, &a->evals, &a->eval_count, sizeof *v);
    if (!v)
        return;
    memcpy(v->candidate.b, key, 32);
    v->task = (size_t)(t - a->tasks);
    v->stamp = r_u64(r);
    v->config = r_digest(r);
    v->model = r_digest(r);
    v->head = r_digest(r);
    v->data = r_digest(r);
    v->val = r_pair(r);
    v->test = r_pair(r);
    v->is_fetched = v->is_scored = true;
    if (v->stamp >= a->eval_stamp)
        a->eval_stamp = v->stamp + 1;
}

static void read_blob(reader *r, const uint8_t *key)
{
    iso_agent *a = r->a;
    agent_blob *b = agent_grow(a, &a->blobs, &a->blob_count, sizeof *b);
    if (!b)
        return;
    memcpy(b->digest.b, key, 32);
    b->bytes = r_u64(r);
    b->is_complete = r_bool(r);
}

iso_err iso_agent_restore_row(iso_agent *a, int table, const uint8_t *key, size_t key_bytes,
                              const uint8_t *value, size_t value_bytes, iso_error *e)
{
    static const size_t key_size[ISO_AT_COUNT] = {0, 16, 16, 16, 8, 48, 8, 32};
    if (table < 0 || table >= ISO_AT_COUNT)
        return iso_fail(e, ISO_ERR_DATA, "state: there is no table %d", table);
    const char *name = iso_agent_table_names[table];
    if (value_bytes < 1 || value[0] != AGENT_RECORD_VERSION)
        return iso_fail(e, ISO_ERR_DATA, "state: a row of table %s has version %u, known is %d",
                        name, value_bytes ? value[0] : 0u, AGENT_RECORD_VERSION);
    if (key_size[table] && key_bytes != key_size[table])
        return iso_fail(e, ISO_ERR_DATA, "state: a key of table %s has %zu bytes, not %zu", name,
                        key_bytes, key_size[table]);
    reader r = {.a = a, .p = value + 1, .end = value + value_bytes};
    switch ((iso_agent_table)table) {
    case ISO_AT_META:
        if (key_bytes == 5 && memcmp(key, "agent", 5) == 0)
            read_meta(&r);
        else if (key_bytes == 6 && memcmp(key, "roster", 6) == 0)
            read_roster(&r);
        else
            r.is_bad = true;
        break;
    case ISO_AT_TASK: {
        agent_task *t = task_of(a, key);
        if (t)
            read_task(&r, t);
        else
            r.p = r.end;
        break;
    }
    case ISO_AT_INVITE:
        read_invite(&r, key);
        break;
    case ISO_AT_OUTBOX:
        read_update(&r, key);
        break;
    case ISO_AT_RELEASE:
        read_release(&r, key);
        break;
    case ISO_AT_EVAL:
        read_eval(&r, key);
        break;
    case ISO_AT_HEAD:
        r.p = r.end; /* the newest stands in the meta row; these are evidence */
        break;
    case ISO_AT_BLOB:
        read_blob(&r, key);
        break;
    case ISO_AT_COUNT:
        break;
    }
    if (a->is_broken)
        return iso_nomem(e, value_bytes);
    if (r.is_bad || r.p != r.end)
        return iso_fail(e, ISO_ERR_DATA, "state: a row of table %s is damaged (%zu bytes)", name,
                        value_bytes);
    return ISO_OK;
}

typedef struct {
    iso_agent *a;
    int table;
} scan_arg;

static iso_err restore_one(void *arg, const uint8_t *key, size_t key_bytes, const uint8_t *value,
                           size_t value_bytes, iso_error *e)
{
    const scan_arg *s = arg;
    return iso_agent_restore_row(s->a, s->table, key, key_bytes, value, value_bytes, e);
}

iso_err iso_agent_restore(iso_agent *a, const iso_store *store, iso_error *e)
{
    for (int t = 0; t < ISO_AT_COUNT; t++) {
        scan_arg s = {a, t};
        iso_err err = store->scan(store->ctx, t, restore_one, &s, e);
        if (err != ISO_OK)
            return err;
    }
    return ISO_OK;
}
