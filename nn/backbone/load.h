/* What families share when they read a Hugging Face folder: numbers of config.json, tensors into
 * an encoder's blocks, names of the linear layers. */
#ifndef ISO_NN_BACKBONE_LOAD_H
#define ISO_NN_BACKBONE_LOAD_H

#include "nn/backbone/encoder.h"

enum {
    ISO_MAX_DEPTH = 256,
    ISO_MAX_DIM = 16384,
    ISO_MAX_SIDE = 4096,
    ISO_MAX_TOKENS = 16384,
    ISO_MAX_CLASSES = 1 << 20,
    ISO_LINEARS_PER_BLOCK = 6
};

/* ---- configuration ---- */

iso_err iso_config_size(const iso_json *c, const char *key, int64_t max, size_t *out,
                        iso_error *e) ISO_MUST_CHECK;
/* Width, depth, heads, activation, eps: hidden_size, num_hidden_layers, num_attention_heads,
 * intermediate_size (mlp_ratio where that is missing), hidden_act, layer_norm_eps. */
iso_err iso_config_encoder(const iso_json *c, double default_eps, iso_backbone_shape *s,
                           iso_error *e) ISO_MUST_CHECK;
/* image_size, patch_size (with this default), num_channels; `lead` tokens stand before the patches.
 * One image is read as a square. */
iso_err iso_config_image(const iso_json *c, int64_t default_patch, size_t lead,
                         iso_backbone_shape *s, iso_error *e) ISO_MUST_CHECK;

/* ---- tensors ---- */

/* One visitor for two passes: with `arena` unset it checks that each tensor is there and fits, with
 * it set it reads. So nothing is allocated for a file that does not match its configuration. */
typedef struct {
    const iso_safetensors *st;
    const char *prefix;
    iso_arena *arena; /* NULL: only check */
    /* where the blocks go, when arena is set */
    iso_encoder_block *blocks;
    iso_packed *matrices;
} iso_reader;

/* The first of the prefixes (the last is "") under which `name` is there. */
const char *iso_reader_prefix(const iso_safetensors *st, const char *const *prefixes,
                              const char *name);
bool iso_reader_has(const iso_reader *r, const char *name);
/* Into `out` (untouched while checking). dims end with 0. */
iso_err iso_reader_get(const iso_reader *r, const char *name, const size_t *dims, float *out,
                       iso_error *e) ISO_MUST_CHECK;
/* A vector or matrix of its own. */
iso_err iso_reader_new(const iso_reader *r, const char *name, const size_t *dims, const float **out,
                       iso_error *e) ISO_MUST_CHECK;
/* `name`.weight and `name`.bias. */
iso_err iso_reader_norm(const iso_reader *r, const char *name, const iso_backbone_shape *s,
                        iso_norm *norm, iso_error *e) ISO_MUST_CHECK;

/* How a family calls what lies in block i: `layers`i.`name`. */
typedef struct {
    const char *layers; /* "encoder.layer." */
    const char *norm1, *norm2;
    /* query, key, value, attention's output, the two of the MLP */
    const char *linears[ISO_LINEARS_PER_BLOCK];
    const char *scale1, *scale2; /* layer scale, or NULL */
    bool bias_is_optional;       /* a linear without one gets zeros */
} iso_block_names;

iso_err iso_reader_blocks(const iso_reader *r, const iso_backbone_shape *s,
                          const iso_block_names *names, iso_error *e) ISO_MUST_CHECK;

/* ---- the whole ---- */

/* Reads all tensors of a family into `own`, which begins with an iso_encoder. */
typedef iso_err iso_visit_fn(const iso_reader *r, iso_backbone_shape *s, void *own, iso_error *e);
/* Checks, allocates own_bytes and the blocks, reads; then the encoder's numbers and the names of
 * the modules are filled in. */
iso_err iso_backbone_load(iso_backbone *b, const iso_safetensors *st, const char *prefix,
                          const iso_block_names *names, size_t own_bytes, iso_visit_fn *visit,
                          iso_error *e) ISO_MUST_CHECK;

#endif
