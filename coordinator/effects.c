/* What a step says, in order. Rows are gathered into one transaction that is emitted before the
 * first effect that the world could see; blobs that rows name stand before it (S84). */
#include "coordinator/inner.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void iso_coord_effects_reset(iso_coord_effects *out)
{
    out->count = 0;
    iso_arena_reset(&out->arena);
}

void iso_coord_effects_free(iso_coord_effects *out)
{
    free(out->items);
    iso_arena_free(&out->arena);
    *out = (iso_coord_effects){0};
}

/* Exhaustion cannot be handled in the middle of a step: a scratch object takes what is written, the
 * flag stops the shell before it performs anything of this step. */
static void out_of_memory(iso_coord *c)
{
    c->is_out_of_memory = true;
    c->out->is_out_of_memory = true;
}

void *iso_c_alloc(iso_coord *c, size_t n, size_t item_bytes)
{
    void *p = iso_arena_calloc(&c->out->arena, n, item_bytes);
    if (!p)
        out_of_memory(c);
    return p;
}

char *iso_c_text(iso_coord *c, const char *fmt, ...)
{
    char text[1024];
    va_list args;
    va_start(args, fmt);
    int n = vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    size_t bytes = n < 0 ? 0 : (size_t)n < sizeof text ? (size_t)n : sizeof text - 1;
    char *p = iso_c_alloc(c, bytes + 1, 1);
    if (p)
        memcpy(p, text, bytes);
    return p;
}

static iso_coord_effect *append(iso_coord *c, iso_coord_effect_kind kind)
{
    static iso_coord_effect scratch;
    iso_coord_effects *out = c->out;
    if (out->count == out->capacity) {
        size_t capacity = out->capacity ? out->capacity * 2 : 32;
        iso_coord_effect *items = realloc(out->items, capacity * sizeof *items);
        if (!items) {
            out_of_memory(c);
            scratch = (iso_coord_effect){.kind = kind};
            return &scratch;
        }
        out->items = items;
        out->capacity = capacity;
    }
    iso_coord_effect *x = &out->items[out->count++];
    *x = (iso_coord_effect){.kind = kind};
    return x;
}

void iso_c_flush(iso_coord *c)
{
    if (c->op_count == 0)
        return;
    iso_op *ops = iso_c_alloc(c, c->op_count, sizeof *ops);
    if (ops) {
        memcpy(ops, c->ops, c->op_count * sizeof *ops);
        iso_coord_effect *x = append(c, ISO_CX_COMMIT);
        x->ops = ops;
        x->op_count = c->op_count;
    }
    c->op_count = 0;
}

iso_coord_effect *iso_c_emit(iso_coord *c, iso_coord_effect_kind kind)
{
    bool may_precede = kind == ISO_CX_PUT_BLOB || kind == ISO_CX_UPLOAD_WRITE || kind == ISO_CX_LOG;
    if (!may_precede)
        iso_c_flush(c);
    return append(c, kind);
}

void iso_c_put(iso_coord *c, int table, iso_op_kind kind, const void *key, size_t key_bytes,
               const void *value, size_t value_bytes)
{
    if (c->op_count == c->op_capacity) {
        size_t capacity = c->op_capacity ? c->op_capacity * 2 : 64;
        iso_op *ops = realloc(c->ops, capacity * sizeof *ops);
        if (!ops) {
            out_of_memory(c);
            return;
        }
        c->ops = ops;
        c->op_capacity = capacity;
    }
    uint8_t *copy = iso_c_alloc(c, key_bytes + value_bytes, 1);
    if (!copy)
        return;
    memcpy(copy, key, key_bytes);
    if (value_bytes)
        memcpy(copy + key_bytes, value, value_bytes);
    c->ops[c->op_count++] = (iso_op){.table = (uint8_t)table,
                                     .kind = (uint8_t)kind,
                                     .key_bytes = (uint16_t)key_bytes,
                                     .value_bytes = (uint32_t)value_bytes,
                                     .key = copy,
                                     .value = copy + key_bytes};
}

void iso_c_delete(iso_coord *c, int table, const void *key, size_t key_bytes)
{
    iso_c_put(c, table, ISO_OP_DELETE, key, key_bytes, NULL, 0);
}

iso_msg *iso_c_send(iso_coord *c, iso_c_peer *p, iso_msg_type type, uint64_t about)
{
    static iso_msg scratch;
    iso_msg *m = iso_c_alloc(c, 1, sizeof *m);
    if (!m)
        return &scratch;
    m->version = ISO_PROTO_VERSION_MAX;
    m->id = about;
    m->epoch = c->identity.epoch;
    m->type = type;
    iso_coord_effect *x = iso_c_emit(c, ISO_CX_SEND);
    x->peer = p->id;
    x->msg = m;
    return m;
}

void iso_c_cut(iso_coord *c, iso_c_peer *p, const char *why)
{
    if (p->is_cut)
        return;
    p->is_cut = true;
    c->stats.cuts++;
    iso_c_log(c, ISO_LOG_INFO, "peer_cut", "site=%s why=\"%s\"", p->site ? p->site->name : "-",
              iso_c_quote(c, why));
    iso_c_emit(c, ISO_CX_CUT)->peer = p->id;
}

iso_digest iso_c_put_blob(iso_coord *c, const void *data, size_t bytes)
{
    iso_digest d = c->sealer.digest(c->sealer.ctx, data, bytes);
    uint8_t *copy = iso_c_alloc(c, bytes + 1, 1);
    if (copy) {
        memcpy(copy, data, bytes);
        iso_coord_effect *x = iso_c_emit(c, ISO_CX_PUT_BLOB);
        x->data = copy;
        x->data_bytes = bytes;
        x->digest = d;
    }
    return d;
}

void iso_c_log(iso_coord *c, iso_level level, const char *event, const char *pairs, ...)
{
    char text[512];
    va_list args;
    va_start(args, pairs);
    vsnprintf(text, sizeof text, pairs, args);
    va_end(args);
    char *copy = iso_c_text(c, "%s", text);
    iso_coord_effect *x = iso_c_emit(c, ISO_CX_LOG);
    x->level = level;
    x->event = event;
    x->text = copy ? copy : "";
}

void iso_c_reply_json(iso_coord *c, uint64_t admin, iso_json *reply)
{
    iso_buf text = {0};
    char *copy = NULL;
    if (iso_json_dump(reply, ISO_JSON_COMPACT, &text, NULL) == ISO_OK &&
        (copy = iso_c_alloc(c, text.size + 1, 1)) != NULL)
        memcpy(copy, text.data, text.size);
    iso_buf_free(&text);
    iso_json_free(reply);
    iso_coord_effect *x = iso_c_emit(c, ISO_CX_ADMIN_REPLY);
    x->admin = admin;
    x->text = copy ? copy : "{\"ok\":false,\"code\":\"memory\",\"error\":\"out of memory\"}";
}

bool iso_c_push(iso_coord *c, void ***items, size_t *count, size_t *capacity, void *item)
{
    if (*count == *capacity) {
        size_t wider = *capacity ? *capacity * 2 : 16;
        void **grown = realloc(*items, wider * sizeof *grown);
        if (!grown) {
            c->is_out_of_memory = true;
            return false;
        }
        *items = grown;
        *capacity = wider;
    }
    (*items)[(*count)++] = item;
    return true;
}

void iso_c_remove(void **items, size_t *count, const void *item)
{
    for (size_t i = 0; i < *count; i++)
        if (items[i] == item) {
            memmove(&items[i], &items[i + 1], (*count - i - 1) * sizeof *items);
            (*count)--;
            return;
        }
}
