#include "nn/backbone/random.h"

#include "core/rng.h"

#include <math.h>
#include <stdio.h>

enum { PER_BLOCK = 16, AROUND = 8 };

typedef struct {
    iso_arena arena;
    iso_named_tensor *items;
    size_t count;
    uint64_t seed;
    bool is_short; /* of memory */
} maker;

/* One tensor: value + normal * deviation, its own stream by name. */
static void add(maker *m, const char *name, const size_t *dims, double value, double deviation)
{
    iso_named_tensor *t = &m->items[m->count];
    size_t n = 1;
    *t = (iso_named_tensor){.name = iso_arena_strdup(&m->arena, name), .view = {.dtype = ISO_F32}};
    for (int i = 0; dims[i]; i++) {
        t->view.shape[t->view.ndim++] = dims[i];
        n *= dims[i];
    }
    float *data = iso_arena_alloc(&m->arena, n, sizeof *data);
    if (!t->name || !data) {
        m->is_short = true;
        return;
    }
    iso_rng r = iso_rng_make(iso_rng_seed_name(m->seed, name), ISO_RNG_INIT, 1);
    for (size_t i = 0; i < n; i++)
        data[i] = (float)(value + (deviation > 0.0 ? deviation * iso_rng_normal(&r) : 0.0));
    t->view.data = data;
    m->count++;
}

static void add_linear(maker *m, const char *prefix, const char *name, size_t out, size_t in)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s.weight", prefix, name);
    add(m, full, (size_t[]){out, in, 0}, 0.0, 1.0 / sqrt((double)in));
    snprintf(full, sizeof full, "%s%s.bias", prefix, name);
    add(m, full, (size_t[]){out, 0}, 0.0, 0.0);
}

static void add_norm(maker *m, const char *prefix, const char *name, size_t dim)
{
    char full[128];
    snprintf(full, sizeof full, "%s%s.weight", prefix, name);
    add(m, full, (size_t[]){dim, 0}, 1.0, 0.0);
    snprintf(full, sizeof full, "%s%s.bias", prefix, name);
    add(m, full, (size_t[]){dim, 0}, 0.0, 0.0);
}

static iso_err make_tensors(maker *m, const iso_random_vit *o, iso_error *e)
{
    size_t d = o->dim, grid = o->image_size / o->patch;
    m->seed = o->seed;
    m->items = iso_arena_calloc(&m->arena, o->depth * PER_BLOCK + AROUND, sizeof *m->items);
    if (!m->items)
        return iso_nomem(e, o->depth * PER_BLOCK * sizeof *m->items);
    add(m, "vit.embeddings.cls_token", (size_t[]){1, 1, d, 0}, 0.0, 0.02);
    add(m, "vit.embeddings.position_embeddings", (size_t[]){1, grid * grid + 1, d, 0}, 0.0, 0.02);
    add(m, "vit.embeddings.patch_embeddings.projection.weight",
        (size_t[]){d, 3, o->patch, o->patch, 0}, 0.0,
        1.0 / sqrt(3.0 * (double)(o->patch * o->patch)));
    add(m, "vit.embeddings.patch_embeddings.projection.bias", (size_t[]){d, 0}, 0.0, 0.0);
    for (size_t i = 0; i < o->depth; i++) {
        char layer[64];
        snprintf(layer, sizeof layer, "vit.encoder.layer.%zu.", i);
        add_norm(m, layer, "layernorm_before", d);
        add_linear(m, layer, "attention.attention.query", d, d);
        add_linear(m, layer, "attention.attention.key", d, d);
        add_linear(m, layer, "attention.attention.value", d, d);
        add_linear(m, layer, "attention.output.dense", d, d);
        add_norm(m, layer, "layernorm_after", d);
        add_linear(m, layer, "intermediate.dense", o->mlp, d);
        add_linear(m, layer, "output.dense", d, o->mlp);
    }
    add_norm(m, "vit.", "layernorm", d);
    if (o->classes)
        add_linear(m, "", "classifier", o->classes, d);
    return m->is_short ? iso_nomem(e, m->arena.held_bytes) : ISO_OK;
}

iso_err iso_backbone_random_files(const iso_random_vit *o, iso_buf *config, iso_buf *tensors,
                                  iso_error *e)
{
    maker m = {0};
    if (o->patch < 1 || o->image_size < o->patch || o->dim < 1)
        return iso_fail(e, ISO_ERR_USAGE, "random backbone: image, patch or dim out of range");
    iso_err err = make_tensors(&m, o, e);
    if (!err)
        err =
            iso_buf_printf(config, e,
                           "{\"model_type\":\"vit\",\"hidden_size\":%zu,\"num_hidden_layers\":%zu,"
                           "\"num_attention_heads\":%zu,\"intermediate_size\":%zu,"
                           "\"hidden_act\":\"gelu\",\"layer_norm_eps\":1e-6,\"image_size\":%zu,"
                           "\"patch_size\":%zu,\"num_channels\":3,\"qkv_bias\":true}",
                           o->dim, o->depth, o->heads, o->mlp, o->image_size, o->patch);
    if (!err)
        err = iso_safetensors_write_buf(tensors, m.items, m.count, NULL, 0, e);
    iso_arena_free(&m.arena);
    return err;
}

iso_err iso_backbone_random(iso_backbone **out, const iso_random_vit *o, iso_error *e)
{
    iso_buf text = {0}, tensors = {0};
    iso_json *config = NULL;
    iso_safetensors st = {0};
    iso_err err = iso_backbone_random_files(o, &text, &tensors, e);
    if (err)
        goto done;
    if ((err = iso_json_parse(text.data, text.size, "random backbone", &config, e)) ||
        (err = iso_safetensors_parse(&st, tensors.data, tensors.size, "random backbone", e)))
        goto done;
    err = iso_backbone_make(out, config, &st, "random backbone", e);
done:
    iso_safetensors_close(&st);
    iso_json_free(config);
    iso_buf_free(&text);
    iso_buf_free(&tensors);
    return err;
}
