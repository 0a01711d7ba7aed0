/* LoRA adapters as PEFT folders: adapter_config.json + adapter_model.safetensors.
 *
 * A layer is named by its module path ("vit.encoder.layer.0.attention.attention.query"); its keys
 * are base_model.model.<module>.lora_A.weight (r, in) and .lora_B.weight (out, r).
 * dW = scale * B * A, scale = alpha / r, or alpha / sqrt(r) with use_rslora; rank_pattern and
 * alpha_pattern give r and alpha per module (literal suffix match; specs/security.md 9.1). */
#ifndef ISO_CORE_PEFT_H
#define ISO_CORE_PEFT_H

#include "core/json.h"
#include "core/safetensors.h"

enum { ISO_PEFT_MAX_RANK = 4096, ISO_PEFT_MAX_ALPHA = 1000000 };

typedef struct {
    char *module; /* owned by the adapter's arena */
    size_t out, in, rank;
    double scale;
    float *A; /* (rank, in), float32, arena */
    float *B; /* (out, rank) */
} iso_lora_layer;

typedef struct {
    iso_lora_layer *layers; /* in order of module, bytewise */
    size_t count;
    char *peft_type;  /* "LORA", or ISOFED_* of the other kinds */
    char *base_model; /* base_model_name_or_path, or "" */
    int r;
    double alpha;
    bool use_rslora;
    iso_dtype stored; /* widest type found in the file */
    iso_json *config; /* the whole adapter_config.json, owned */
    iso_arena arena;
} iso_peft;

/* Fails on non-finite values only when check_finite; names layer and index then. */
iso_err iso_peft_open(iso_peft *p, const char *folder, bool check_finite,
                      iso_error *e) ISO_MUST_CHECK;
iso_err iso_peft_parse(iso_peft *p, const void *config, size_t config_size, const void *tensors,
                       size_t tensors_size, bool check_finite, const char *what,
                       iso_error *e) ISO_MUST_CHECK;
void iso_peft_close(iso_peft *p);
const iso_lora_layer *iso_peft_find(const iso_peft *p, const char *module);

/* alpha / rank, or alpha / sqrt(rank). */
double iso_peft_scale(double alpha, size_t rank, bool use_rslora);
/* PEFT's rule for rank_pattern, alpha_pattern, target_modules: module is key or ends in ".key". */
bool iso_peft_key_matches(const char *key, const char *module);

/* Writing. All layers of one result share r and alpha when they can; layers of other rank or scale
 * go into rank_pattern / alpha_pattern. `extra` (may be NULL) is merged into the config under
 * "isofed". A, B are stored as float32. */
typedef struct {
    const iso_lora_layer *layers;
    size_t count;
    const char *base_model; /* may be NULL */
    bool use_rslora;
    const iso_json *extra;
} iso_peft_output;
iso_err iso_peft_write(const char *folder, const iso_peft_output *o, iso_error *e) ISO_MUST_CHECK;
iso_err iso_peft_write_bufs(const iso_peft_output *o, iso_buf *config, iso_buf *tensors,
                            iso_error *e) ISO_MUST_CHECK;

#endif
