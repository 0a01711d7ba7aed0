/* Small backbones of each family with seeded random weights, as the bytes of their two files. */
#ifndef ISO_TESTS_NN_FAMILY_FIXTURE_H
#define ISO_TESTS_NN_FAMILY_FIXTURE_H

#include "core/rng.h"
#include "nn/backbone/backbone.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    const char *type; /* model_type */
    size_t depth, dim, heads, mlp;
    size_t side, patch;      /* images */
    size_t registers;        /* dinov2_with_registers */
    size_t projection;       /* clip_vision_model; 0: none */
    size_t words, positions; /* bert; whisper has positions */
    size_t mels;             /* whisper */
    size_t classes;          /* 0: no classifier */
} family_shape;

typedef struct {
    iso_arena arena;
    iso_named_tensor t[128];
    size_t count;
} family_tensors;

/* A tensor around `around`, its own stream by name. dims end with 0. */
static inline void family_add(family_tensors *f, const char *name, const size_t *dims,
                              double around, double deviation)
{
    iso_named_tensor *t = &f->t[f->count++];
    size_t n = 1;
    *t = (iso_named_tensor){.name = iso_arena_strdup(&f->arena, name), .view = {.dtype = ISO_F32}};
    for (int i = 0; dims[i]; i++) {
        t->view.shape[t->view.ndim++] = dims[i];
        n *= dims[i];
    }
    float *data = iso_arena_alloc(&f->arena, n, sizeof *data);
    iso_rng r = iso_rng_make(iso_rng_seed_name(3, name), ISO_RNG_TEST, 1);
    for (size_t i = 0; i < n; i++)
        data[i] = (float)(around + deviation * iso_rng_normal(&r));
    t->view.data = data;
}

/* "weight" and "bias" of a linear layer (in > 0) or a norm (in = 0). */
static inline void family_pair(family_tensors *f, const char *name, size_t out, size_t in)
{
    char full[160];
    snprintf(full, sizeof full, "%s.weight", name);
    family_add(f, full, (size_t[]){out, in, 0}, in ? 0.0 : 1.0, in ? 1.0 / sqrt((double)in) : 0.1);
    snprintf(full, sizeof full, "%s.bias", name);
    family_add(f, full, (size_t[]){out, 0}, 0.0, 0.1);
}

static inline bool family_is(const family_shape *s, const char *start)
{
    return strncmp(s->type, start, strlen(start)) == 0;
}

static inline void family_embeddings(family_tensors *f, const family_shape *s)
{
    size_t d = s->dim, patches = s->patch ? s->side / s->patch * (s->side / s->patch) : 0;
    if (family_is(s, "dinov2")) {
        family_add(f, "embeddings.cls_token", (size_t[]){1, 1, d, 0}, 0.0, 0.5);
        family_add(f, "embeddings.position_embeddings", (size_t[]){1, 1 + patches, d, 0}, 0.0, 0.5);
        if (s->registers)
            family_add(f, "embeddings.register_tokens", (size_t[]){1, s->registers, d, 0}, 0.0,
                       0.5);
        family_add(f, "embeddings.patch_embeddings.projection.weight",
                   (size_t[]){d, 3, s->patch, s->patch, 0}, 0.0, 0.2);
        family_add(f, "embeddings.patch_embeddings.projection.bias", (size_t[]){d, 0}, 0.0, 0.1);
        family_pair(f, "layernorm", d, 0);
    } else if (family_is(s, "clip")) {
        family_add(f, "vision_model.embeddings.class_embedding", (size_t[]){d, 0}, 0.0, 0.5);
        family_add(f, "vision_model.embeddings.position_embedding.weight",
                   (size_t[]){1 + patches, d, 0}, 0.0, 0.5);
        family_add(f, "vision_model.embeddings.patch_embedding.weight",
                   (size_t[]){d, 3, s->patch, s->patch, 0}, 0.0, 0.2);
        family_pair(f, "vision_model.pre_layrnorm", d, 0);
        family_pair(f, "vision_model.post_layernorm", d, 0);
        if (s->projection)
            family_add(f, "visual_projection.weight", (size_t[]){s->projection, d, 0}, 0.0,
                       1.0 / sqrt((double)d));
    } else if (family_is(s, "whisper")) {
        family_add(f, "model.encoder.conv1.weight", (size_t[]){d, s->mels, 3, 0}, 0.0, 0.3);
        family_add(f, "model.encoder.conv1.bias", (size_t[]){d, 0}, 0.0, 0.1);
        family_add(f, "model.encoder.conv2.weight", (size_t[]){d, d, 3, 0}, 0.0, 0.2);
        family_add(f, "model.encoder.conv2.bias", (size_t[]){d, 0}, 0.0, 0.1);
        family_add(f, "model.encoder.embed_positions.weight", (size_t[]){s->positions, d, 0}, 0.0,
                   0.5);
        family_pair(f, "model.encoder.layer_norm", d, 0);
    } else {
        family_add(f, "bert.embeddings.word_embeddings.weight", (size_t[]){s->words, d, 0}, 0.0,
                   0.5);
        family_add(f, "bert.embeddings.position_embeddings.weight", (size_t[]){s->positions, d, 0},
                   0.0, 0.3);
        family_add(f, "bert.embeddings.token_type_embeddings.weight", (size_t[]){2, d, 0}, 0.0,
                   0.3);
        family_pair(f, "bert.embeddings.LayerNorm", d, 0);
    }
}

static inline void family_block(family_tensors *f, const family_shape *s, size_t block)
{
    static const struct {
        const char *start, *layers, *names[8]; /* six linears, two norms */
    } rows[] = {
        {"dinov2",
         "encoder.layer.",
         {"attention.attention.query", "attention.attention.key", "attention.attention.value",
          "attention.output.dense", "mlp.fc1", "mlp.fc2", "norm1", "norm2"}},
        {"clip",
         "vision_model.encoder.layers.",
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj",
          "mlp.fc1", "mlp.fc2", "layer_norm1", "layer_norm2"}},
        {"bert",
         "bert.encoder.layer.",
         {"attention.self.query", "attention.self.key", "attention.self.value",
          "attention.output.dense", "intermediate.dense", "output.dense",
          "attention.output.LayerNorm", "output.LayerNorm"}},
        {"whisper",
         "model.encoder.layers.",
         {"self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj", "fc1",
          "fc2", "self_attn_layer_norm", "final_layer_norm"}}};
    for (size_t r = 0; r < sizeof rows / sizeof *rows; r++)
        for (size_t k = 0; k < 8 && family_is(s, rows[r].start); k++) {
            char name[128];
            size_t out = k == 4 ? s->mlp : s->dim, in = k > 5 ? 0 : k == 5 ? s->mlp : s->dim;
            snprintf(name, sizeof name, "%s%zu.%s", rows[r].layers, block, rows[r].names[k]);
            family_pair(f, name, out, in);
        }
    for (int k = 1; k <= 2 && family_is(s, "dinov2"); k++) {
        char name[128];
        snprintf(name, sizeof name, "encoder.layer.%zu.layer_scale%d.lambda1", block, k);
        family_add(f, name, (size_t[]){s->dim, 0}, 0.7, 0.3);
    }
}

static inline iso_err family_files(const family_shape *s, iso_buf *config, iso_buf *tensors,
                                   iso_error *e)
{
    family_tensors f = {.count = 0};
    family_embeddings(&f, s);
    for (size_t i = 0; i < s->depth; i++)
        family_block(&f, s, i);
    if (s->classes)
        family_pair(&f, "classifier", s->classes, s->projection ? s->projection : s->dim);
    iso_err err = iso_buf_printf(
        config, e,
        "{\"model_type\":\"%s\",\"hidden_size\":%zu,\"num_hidden_layers\":%zu,"
        "\"num_attention_heads\":%zu,\"intermediate_size\":%zu,\"hidden_act\":\"%s\","
        "\"layer_norm_eps\":1e-6,\"image_size\":%zu,\"patch_size\":%zu,\"num_channels\":3,"
        "\"num_register_tokens\":%zu,\"projection_dim\":%zu,\"vocab_size\":%zu,"
        "\"max_position_embeddings\":%zu,\"type_vocab_size\":2,\"d_model\":%zu,"
        "\"encoder_layers\":%zu,\"encoder_attention_heads\":%zu,\"encoder_ffn_dim\":%zu,"
        "\"num_mel_bins\":%zu,\"max_source_positions\":%zu}",
        s->type, s->dim, s->depth, s->heads, s->mlp, family_is(s, "clip") ? "quick_gelu" : "gelu",
        s->side, s->patch, s->registers, s->projection ? s->projection : 512, s->words,
        s->positions, s->dim, s->depth, s->heads, s->mlp, s->mels, s->positions);
    if (!err)
        err = iso_safetensors_write_buf(tensors, f.t, f.count, NULL, 0, e);
    iso_arena_free(&f.arena);
    return err;
}

#endif
