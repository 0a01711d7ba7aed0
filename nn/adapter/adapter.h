/* Adapters: the small trained part, chosen by kind (LoRA; DATA, TOAST, factorised later).
 *
 * All of an adapter's trained numbers are one flat vector, `params`; the kind knows its layout, the
 * optimiser and checkpoints need not. Gradients have the same layout. A kind that folds gives the
 * weight that a module computes with, W + dW; the forward is then that of the backbone. */
#ifndef ISO_NN_ADAPTER_ADAPTER_H
#define ISO_NN_ADAPTER_ADAPTER_H

#include "core/peft.h"
#include "nn/backbone/backbone.h"

typedef struct iso_adapter iso_adapter;

typedef struct {
    const char *kind;           /* "lora" */
    size_t rank;                /* 1 .. 4096 */
    double alpha;               /* > 0 */
    bool use_rslora;            /* scale alpha / sqrt(rank) instead of alpha / rank */
    const char *const *targets; /* module names or their ends ("query", "output.dense"); */
    size_t target_count;        /* 0: every linear of attention and MLP */
    size_t first_block;         /* blocks below stay frozen */
    uint64_t seed;
} iso_adapter_options;

typedef struct {
    const char *name;      /* "lora" */
    const char *peft_type; /* "LORA" */
    const char *help;      /* one line */
    iso_err (*create)(iso_adapter *a, const iso_adapter_options *o, iso_error *e) ISO_MUST_CHECK;
    iso_err (*from_peft)(iso_adapter *a, const iso_peft *p, iso_error *e) ISO_MUST_CHECK;
    /* Layers in order of module, for iso_peft_write; memory from `arena`. */
    iso_err (*to_layers)(const iso_adapter *a, iso_arena *arena, iso_lora_layer **layers,
                         size_t *count, iso_error *e) ISO_MUST_CHECK;
    /* The matrix with the adapter in it, W + dW, into the forms that `out` has: its panels, and W
     * when that is not NULL. `out` held the frozen matrix or an earlier fold before: rows without
     * an adapter are left alone. */
    void (*fold)(const iso_adapter *a, const float *params, size_t matrix, const iso_packed *out,
                 float *W);
    /* Adds the gradient of `params` to grad: see iso_grad_fn. scratch has scratch_floats(m). */
    void (*grad)(const iso_adapter *a, const float *params, float *grad, size_t matrix, size_t row,
                 size_t rows, size_t m, const float *x, size_t ldx, const float *dy, size_t ldy,
                 float *scratch);
    size_t (*scratch_floats)(const iso_adapter *a, size_t m);
} iso_adapter_kind;

struct iso_adapter {
    const iso_adapter_kind *kind;
    const iso_backbone *backbone; /* borrowed: must outlive the adapter */
    float *params;
    size_t param_count;
    bool *is_adapted;    /* one per matrix of the backbone */
    size_t lowest_block; /* of an adapted matrix; depth when there is none */
    bool use_rslora;
    void *own;
    iso_arena arena;
};

/* A fresh adapter. ISO_ERR_USAGE: unknown kind, rank out of range, a target that no module has
 * (the line names it). */
iso_err iso_adapter_create(iso_adapter **out, const iso_backbone *b, const iso_adapter_options *o,
                           iso_error *e) ISO_MUST_CHECK;
/* From an opened PEFT folder; copies what it needs. ISO_ERR_SHAPE names layer and both shapes. */
iso_err iso_adapter_from_peft(iso_adapter **out, const iso_backbone *b, const iso_peft *p,
                              iso_error *e) ISO_MUST_CHECK;
/* From a folder; values must be finite. */
iso_err iso_adapter_open(iso_adapter **out, const iso_backbone *b, const char *folder,
                         iso_error *e) ISO_MUST_CHECK;
/* A copy with its own parameters. */
iso_err iso_adapter_copy(iso_adapter **out, const iso_adapter *a, iso_error *e) ISO_MUST_CHECK;
/* Writes a PEFT folder (extra: see iso_peft_output; may be NULL). */
iso_err iso_adapter_write(const iso_adapter *a, const char *folder, const char *base_model,
                          const iso_json *extra, iso_error *e) ISO_MUST_CHECK;
/* The two files of the folder in memory. */
iso_err iso_adapter_write_bufs(const iso_adapter *a, const char *base_model, const iso_json *extra,
                               iso_buf *config, iso_buf *tensors, iso_error *e) ISO_MUST_CHECK;
void iso_adapter_close(iso_adapter *a); /* NULL is fine */

/* The registry. */
extern const iso_adapter_kind *const iso_adapter_kinds[]; /* ends with NULL */
const iso_adapter_kind *iso_adapter_kind_find(const char *name);

/* For kinds: true when a module's name is `target` or ends with ".target" (PEFT's rule). */
bool iso_adapter_matches(const char *module, const char *target);

#endif
