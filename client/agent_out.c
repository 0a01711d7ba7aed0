/* Effects of the site core: what one step asks the shell to do, and the transaction it builds.
 *
 * Everything lives in the arena of the iso_agent_effects. When memory runs out the flag is set and
 * writes go to a spare item, so that the core needs no error path for it: the shell stops. */
#include "client/agent_inner.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void iso_agent_effects_reset(iso_agent_effects *out)
{
    out->count = 0;
    iso_arena_reset(&out->arena);
}

void iso_agent_effects_free(iso_agent_effects *out)
{
    free(out->items);
    iso_arena_free(&out->arena);
    memset(out, 0, sizeof *out);
}

iso_agent_effect *agent_effect(iso_agent *a, iso_agent_effect_kind kind)
{
    iso_agent_effects *out = a->out;
    if (out->count == out->capacity) {
        size_t capacity = out->capacity ? 2 * out->capacity : 16;
        iso_agent_effect *items = realloc(out->items, capacity * sizeof *items);
        if (!items) {
            out->is_out_of_memory = true;
            memset(&a->spare, 0, sizeof a->spare);
            a->spare.kind = kind;
            return &a->spare;
        }
        out->items = items;
        out->capacity = capacity;
    }
    iso_agent_effect *x = &out->items[out->count++];
    memset(x, 0, sizeof *x);
    x->kind = kind;
    return x;
}

void *agent_alloc(iso_agent *a, size_t bytes)
{
    void *p = iso_arena_calloc(&a->out->arena, 1, bytes ? bytes : 1);
    if (!p)
        a->out->is_out_of_memory = true;
    return p;
}

void *agent_copy(iso_agent *a, const void *data, size_t bytes)
{
    void *p = agent_alloc(a, bytes);
    if (p && bytes)
        memcpy(p, data, bytes);
    return p;
}

iso_msg *agent_send(iso_agent *a, iso_msg_type type, iso_agent_effect **effect)
{
    static iso_msg nowhere; /* written and never read: only when memory ran out */
    iso_msg *m = agent_alloc(a, sizeof *m);
    if (!m)
        m = &nowhere;
    m->version = a->protocol;
    m->id = ++a->next_request;
    m->epoch = a->epoch;
    m->type = type;
    a->sent[m->id % AGENT_SENT_RING] = (uint8_t)type;
    iso_agent_effect *x = agent_effect(a, ISO_AX_SEND);
    x->link = a->link_number;
    x->msg = m;
    if (effect)
        *effect = x;
    return m;
}

void agent_log(iso_agent *a, iso_level level, const char *event, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    char *copy = agent_copy(a, text, strlen(text) + 1);
    if (!copy)
        return;
    iso_agent_effect *x = agent_effect(a, ISO_AX_LOG);
    x->level = level;
    x->event = event;
    x->text = copy;
}

static iso_op *next_op(iso_agent *a)
{
    if (a->op_count == a->op_capacity) {
        size_t capacity = a->op_capacity ? 2 * a->op_capacity : 8;
        iso_op *ops = agent_alloc(a, capacity * sizeof *ops);
        if (!ops)
            return NULL;
        if (a->op_count)
            memcpy(ops, a->ops, a->op_count * sizeof *ops);
        a->ops = ops;
        a->op_capacity = capacity;
    }
    return &a->ops[a->op_count++];
}

void agent_put(iso_agent *a, iso_agent_table table, const void *key, size_t key_bytes,
               const iso_buf *value)
{
    const uint8_t *k = agent_copy(a, key, key_bytes);
    const uint8_t *v = agent_copy(a, value->data, value->size);
    iso_op *op = next_op(a);
    if (!k || !v || !op)
        return;
    *op = (iso_op){.table = (uint8_t)table,
                   .kind = ISO_OP_PUT,
                   .key_bytes = (uint16_t)key_bytes,
                   .value_bytes = (uint32_t)value->size,
                   .key = k,
                   .value = v};
}

void agent_delete(iso_agent *a, iso_agent_table table, const void *key, size_t key_bytes)
{
    const uint8_t *k = agent_copy(a, key, key_bytes);
    iso_op *op = next_op(a);
    if (!k || !op)
        return;
    *op = (iso_op){
        .table = (uint8_t)table, .kind = ISO_OP_DELETE, .key_bytes = (uint16_t)key_bytes, .key = k};
}

void agent_commit(iso_agent *a)
{
    if (a->op_count == 0)
        return;
    iso_agent_effect *x = agent_effect(a, ISO_AX_COMMIT);
    x->ops = a->ops;
    x->op_count = a->op_count;
    a->ops = NULL;
    a->op_count = a->op_capacity = 0;
}

void *agent_grow(iso_agent *a, void *array, size_t *count, size_t item_bytes)
{
    /* Grown by one: these arrays hold a handful of items and change a few times an hour. */
    void **field = array;
    uint8_t *p = realloc(*field, (*count + 1) * item_bytes);
    if (!p) {
        a->is_broken = true;
        return NULL;
    }
    *field = p;
    memset(p + *count * item_bytes, 0, item_bytes);
    return p + (*count)++ * item_bytes;
}

void agent_text(iso_agent *a, char **field, const char *text)
{
    if (*field && text && strcmp(*field, text) == 0)
        return;
    char *copy = text && *text ? iso_strdup(text) : NULL;
    if (text && *text && !copy)
        a->is_broken = true;
    free(*field);
    *field = copy;
}

uint64_t agent_random_below(iso_agent *a, uint64_t n)
{
    if (n == 0)
        return 0;
    uint64_t v = 0;
    a->seams.entropy.fill(a->seams.entropy.ctx, &v, sizeof v);
    /* The bias of the remainder is below n / 2^64: of no matter for jitter. */
    return v % n;
}

uint64_t agent_coordinator_ms(const iso_agent *a)
{
    return (uint64_t)((int64_t)a->wall + (a->is_clock_known ? a->clock_offset_ms : 0));
}
