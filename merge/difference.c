/* The file between two generations; see difference.h. */
#include "merge/difference.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME = ISO_SAFETENSORS_NAME_BYTES + 1, MAX_BLOCKS = 1024, WEIGHTS = 64 * MAX_BLOCKS };

/* ---- out ---- */

typedef struct {
    iso_arena *arena;
    iso_named_tensor *items;
    size_t count;
    bool is_good;
} list;

static void put(list *l, iso_dtype type, const char *name, int ndim, size_t rows, size_t columns,
                const void *data)
{
    const char *own = data ? iso_arena_strdup(l->arena, name) : NULL;
    l->is_good = l->is_good && (!data || own);
    if (own)
        l->items[l->count++] = (iso_named_tensor){
            own, {.dtype = type, .ndim = ndim, .shape = {rows, columns}, .data = data}};
}

static void put_change(list *l, size_t block, const iso_block *b, size_t i)
{
    const iso_block_change *c = &b->changes[i];
    const struct {
        char letter;
        const float *data;
        size_t rows, columns;
    } parts[] = {{'r', c->r, c->k, b->out[i]}, {'s', c->s, c->k, b->in[i]},
                 {'a', c->a, c->k, b->out[i]}, {'b', c->b, c->k, b->in[i]},
                 {'A', c->A, c->k, b->in[i]},  {'B', c->B, b->out[i], c->k}};
    char name[NAME + 32];
    for (size_t p = 0; p < sizeof parts / sizeof *parts; p++) {
        snprintf(name, sizeof name, "block.%zu.%s.%c", block, b->modules[i], parts[p].letter);
        put(l, ISO_F32, name, 2, parts[p].rows, parts[p].columns, parts[p].data);
    }
    snprintf(name, sizeof name, "block.%zu.%s.scale", block, b->modules[i]);
    put(l, ISO_F64, name, 1, 1, 0, c->A ? &c->scale : NULL);
}

static void weights_text(char *out, const iso_centralize_options *o, size_t n)
{
    size_t at = 0;
    for (size_t i = 0; i < n; i++)
        at += (size_t)snprintf(out + at, WEIGHTS - at, "%a ", o->weights ? o->weights[i] : 1.0);
}

iso_err iso_difference_write(const char *path, const iso_generation *g, const iso_block *blocks,
                             size_t n, const iso_centralize_options *o, iso_error *e)
{
    char before[ISO_DIGEST_HEX], after[ISO_DIGEST_HEX], name[NAME + 16];
    iso_arena arena = {0};
    size_t room = g->count;
    iso_err err = ISO_OK;
    if (n > MAX_BLOCKS)
        return iso_fail(e, ISO_ERR_USAGE, "%zu blocks; at most %d", n, MAX_BLOCKS);
    for (size_t b = 0; b < n; b++)
        room += 7 * blocks[b].count;
    char *weights = iso_arena_calloc(&arena, WEIGHTS, 1);
    list l = {&arena, iso_arena_calloc(&arena, room, sizeof(iso_named_tensor)), 0, true};
    if (!l.items || !weights) {
        err = iso_nomem(e, room * sizeof *l.items);
        goto done;
    }
    for (size_t b = 0; !o->method && b < n; b++)
        for (size_t i = 0; i < blocks[b].count; i++)
            put_change(&l, b, &blocks[b], i);
    for (size_t t = 0; o->method && t < g->count; t++)
        if (g->is_changed[t]) {
            const iso_tensor *v = &g->tensors[t].view;
            snprintf(name, sizeof name, "tensor.%s", g->tensors[t].name);
            put(&l, v->dtype, name, v->ndim, v->shape[0], v->shape[1], v->data);
        }
    if (!l.is_good) {
        err = iso_nomem(e, room * sizeof *l.items);
        goto done;
    }
    weights_text(weights, o, n);
    iso_hex(before, g->before.b, ISO_DIGEST_BYTES);
    iso_hex(after, g->after.b, ISO_DIGEST_BYTES);
    const char *meta[] = {"format", "isofed-difference", "version", "1", "before", before, "after",
                          after,    "weights",           weights};
    err = iso_safetensors_write(path, l.items, l.count, meta, 5, e);
done:
    iso_arena_free(&arena);
    return err;
}

/* ---- in ---- */

static const char *meta_of(const iso_safetensors *st, const char *key)
{
    const char *v = iso_safetensors_meta(st, key);
    return v ? v : "";
}

/* "block.N.MODULE.x" taken apart; false: another name. */
static bool take_apart(const char *tensor, size_t *block, char *module, char *part)
{
    char *end;
    if (strncmp(tensor, "block.", 6) != 0)
        return false;
    unsigned long n = strtoul(tensor + 6, &end, 10);
    const char *dot = strrchr(tensor, '.');
    if (end == tensor + 6 || *end != '.' || dot <= end || n >= MAX_BLOCKS || strlen(dot + 1) > 5)
        return false;
    *block = n;
    size_t length = (size_t)(dot - end - 1);
    memcpy(module, end + 1, length);
    module[length] = 0;
    strcpy(part, dot + 1);
    return true;
}

static iso_err take_part(iso_block *b, const char *module, const char *part, const iso_tensor *v,
                         size_t room, iso_error *e)
{
    size_t i = 0;
    while (i < b->count && strcmp(b->modules[i], module) != 0)
        i++;
    if (i == b->count) {
        if (i == room)
            return iso_fail(e, ISO_ERR_DATA, "too many modules");
        b->modules[b->count++] = iso_arena_strdup(&b->arena, module);
        if (!b->modules[i])
            return iso_nomem(e, strlen(module));
    }
    iso_block_change *c = &b->changes[i];
    if (strcmp(part, "scale") == 0 && iso_tensor_count(v) == 1)
        return iso_tensor_to_f64(v, &c->scale, e);
    const float **to = !strcmp(part, "r")   ? &c->r
                       : !strcmp(part, "s") ? &c->s
                       : !strcmp(part, "a") ? &c->a
                       : !strcmp(part, "b") ? &c->b
                       : !strcmp(part, "A") ? &c->A
                       : !strcmp(part, "B") ? &c->B
                                            : NULL;
    if (!to || v->ndim != 2)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" of \"%.100s\" is no factor", part, module);
    bool is_B = *part == 'B', is_out = strchr("raB", *part) != NULL;
    size_t k = v->shape[is_B ? 1 : 0], width = v->shape[is_B ? 0 : 1];
    size_t *side = is_out ? &b->out[i] : &b->in[i];
    if ((c->k && c->k != k) || (*side && *side != width))
        return iso_fail(e, ISO_ERR_SHAPE, "factors of \"%.100s\" do not fit each other", module);
    c->k = k;
    *side = width;
    float *x = iso_arena_alloc(&b->arena, k * width, sizeof *x);
    if (!x)
        return iso_nomem(e, k * width * sizeof *x);
    *to = x;
    return iso_tensor_to_f32(v, x, e);
}

static iso_err read_blocks(iso_block *blocks, size_t *n, const iso_safetensors *d, iso_error *e)
{
    iso_err err = ISO_OK;
    *n = 0;
    for (size_t i = 0; !err && i < d->count; i++) {
        char module[NAME], part[8];
        size_t at;
        if (!take_apart(d->items[i].name, &at, module, part))
            return iso_fail(e, ISO_ERR_DATA, "tensor \"%.100s\" is no part of a block",
                            d->items[i].name);
        iso_block *b = &blocks[at];
        *n = at + 1 > *n ? at + 1 : *n;
        if (!b->modules) {
            b->modules = iso_arena_calloc(&b->arena, d->count, sizeof *b->modules);
            b->changes = iso_arena_calloc(&b->arena, d->count, sizeof *b->changes);
            b->out = iso_arena_calloc(&b->arena, d->count, sizeof *b->out);
            b->in = iso_arena_calloc(&b->arena, d->count, sizeof *b->in);
            if (!b->modules || !b->changes || !b->out || !b->in)
                return iso_nomem(e, d->count * sizeof *b->changes);
        }
        err = take_part(b, module, part, &d->items[i].view, d->count, e);
    }
    for (size_t b = 0; !err && b < *n; b++)
        for (size_t i = 0; !err && i < blocks[b].count; i++) {
            const iso_block_change *c = &blocks[b].changes[i];
            if (!c->r != !c->s || !c->a != !c->b || !c->A != !c->B || !blocks[b].out[i] ||
                !blocks[b].in[i])
                err = iso_fail(e, ISO_ERR_DATA, "block %zu: \"%.100s\" lacks a factor", b,
                               blocks[b].modules[i]);
        }
    return err;
}

/* Changed tensors in full. */
static iso_err replace(iso_generation *g, const iso_safetensors *backbone, const iso_safetensors *d,
                       iso_error *e)
{
    *g = (iso_generation){.count = backbone->count};
    g->tensors = iso_arena_calloc(&g->arena, g->count, sizeof *g->tensors);
    g->is_changed = iso_arena_calloc(&g->arena, g->count, sizeof *g->is_changed);
    if (!g->tensors || !g->is_changed)
        return iso_nomem(e, g->count * sizeof *g->tensors);
    memcpy(g->tensors, backbone->items, g->count * sizeof *g->tensors);
    for (size_t i = 0; i < d->count; i++) {
        const iso_named_tensor *from = &d->items[i];
        const iso_named_tensor *to = strncmp(from->name, "tensor.", 7) == 0
                                         ? iso_safetensors_find(backbone, from->name + 7)
                                         : NULL;
        if (!to || to->view.dtype != from->view.dtype ||
            !iso_tensor_same_shape(&to->view, &from->view))
            return iso_fail(e, ISO_ERR_SHAPE, "\"%.100s\" does not fit the backbone", from->name);
        void *data = iso_arena_alloc(&g->arena, iso_tensor_bytes(&from->view), 1);
        if (!data)
            return iso_nomem(e, iso_tensor_bytes(&from->view));
        memcpy(data, from->view.data, iso_tensor_bytes(&from->view));
        size_t at = (size_t)(to - backbone->items);
        g->tensors[at].view.data = data;
        g->is_changed[at] = true;
        g->changed++;
    }
    g->before = iso_tensor_list_digest(backbone->items, backbone->count);
    g->after = iso_tensor_list_digest(g->tensors, g->count);
    return ISO_OK;
}

iso_err iso_difference_apply(iso_generation *out, const iso_safetensors *backbone,
                             const iso_safetensors *d, iso_error *e)
{
    char hex[ISO_DIGEST_HEX];
    double weights[MAX_BLOCKS];
    size_t n = 0;
    iso_block *blocks = iso_calloc(MAX_BLOCKS, sizeof *blocks);
    iso_err err = ISO_OK;
    *out = (iso_generation){0};
    if (!blocks)
        return iso_nomem(e, MAX_BLOCKS * sizeof *blocks);
    iso_digest before = iso_tensor_list_digest(backbone->items, backbone->count);
    iso_hex(hex, before.b, ISO_DIGEST_BYTES);
    if (strcmp(meta_of(d, "format"), "isofed-difference") != 0 ||
        strcmp(meta_of(d, "version"), "1") != 0)
        err = iso_fail(e, ISO_ERR_DATA, "no difference of version 1");
    else if (strcmp(meta_of(d, "before"), hex) != 0)
        err = iso_fail(e, ISO_ERR_TRUST, "it starts from generation %.12s, the backbone is %.12s",
                       meta_of(d, "before"), hex);
    else if (d->count && strncmp(d->items[0].name, "tensor.", 7) == 0)
        err = replace(out, backbone, d, e);
    else if (!(err = read_blocks(blocks, &n, d, e))) {
        const char *text = meta_of(d, "weights");
        for (size_t i = 0; i < n; i++) {
            char *end;
            weights[i] = strtod(text, &end);
            if (end == text)
                weights[i] = -1.0; /* refused below */
            text = end;
            blocks[i].name = iso_strf("block %zu", i);
        }
        iso_centralize_options o = {.weights = weights};
        err = iso_centralize(out, backbone, blocks, n, &o, e);
    }
    if (!err) {
        iso_hex(hex, out->after.b, ISO_DIGEST_BYTES);
        if (strcmp(meta_of(d, "after"), hex) != 0)
            err = iso_fail(e, ISO_ERR_TRUST, "the result is generation %.12s, it names %.12s", hex,
                           meta_of(d, "after"));
    }
    for (size_t i = 0; i < MAX_BLOCKS; i++)
        iso_block_close(&blocks[i]);
    free(blocks);
    if (err)
        iso_generation_free(out);
    return err;
}
