/* Adapters: the small trained part, chosen by kind (LoRA, DATA, TOAST, factorised).
 *
 * All of an adapter's trained numbers are one flat vector, `params`; the kind knows its layout, the
 * optimiser and checkpoints need not. Gradients have the same layout. A kind that folds gives the
 * weight that a module computes with, W + dW; the forward is then that of the backbone. A kind that
 * runs computes beside the frozen weights, by the hooks of a pass (iso_adapter_run). */
#ifndef ISO_NN_ADAPTER_ADAPTER_H
#define ISO_NN_ADAPTER_ADAPTER_H

#include "core/peft.h"
#include "core/peft_parts.h"
#include "nn/backbone/backbone.h"

typedef struct iso_adapter iso_adapter;

/* What factors a module has (specs/factorization.md 1). */
typedef enum {
    ISO_FORM_BOTH, /* the default: multiplicative and additive */
    ISO_FORM_LORA,
    ISO_FORM_MULTIPLICATIVE,
    ISO_FORM_ADDITIVE,
    ISO_FORM_COUNT
} iso_factor_form;

typedef struct {
    const char *kind;           /* "lora" */
    size_t rank;                /* 1 .. 4096 */
    double alpha;               /* > 0 */
    bool use_rslora;            /* scale alpha / sqrt(rank) instead of alpha / rank */
    const char *const *targets; /* module names or their ends ("query", "output.dense"); */
    size_t target_count;        /* 0: every linear of attention and MLP */
    size_t first_block;         /* blocks below stay frozen */
    uint64_t seed;
    iso_factor_form form; /* factorised; rank is its k */
    /* DATA (0: the default of nn/adapter/data.h) */
    size_t rank_lo, rank_hi, prompts, gap;
    bool is_sum;       /* gates by the published sum over tokens instead of the mean */
    double ortho;      /* weight of the orthogonality penalty */
    double fixed_gate; /* above 0: all gates are this constant (the control) */
    /* TOAST (nn/adapter/toast.h) */
    bool is_full;       /* train F and G whole; else low-rank parts of `rank` beside them */
    bool trains_P;      /* and the transform after the selection */
    bool is_bias_twice; /* value bias as in the published vision code */
    double recon;       /* weight of the reconstruction term: stage 1; 0: stage 2 */
    const float *xi;    /* (dim), where the selection starts; NULL: random */
} iso_adapter_options;

/* One micro-batch through a kind that runs: made by the model, one thread, one pass. */
typedef struct {
    const iso_adapter *adapter;
    const float *params;
    const float *derived;      /* what `derive` made of params, or NULL */
    bool trains;               /* a backward follows; `derived` was made for training */
    const iso_packed *weights; /* of the pass */
    size_t images, tokens;     /* of this pass */
    const uint32_t *lengths;   /* see iso_pass, or NULL */
    float *work, *scratch;     /* run_floats, scratch_floats */
    float *grad;               /* (param_count), added to; NULL without a backward */
    size_t batch;              /* images of the whole batch, for terms that are means */
    const float *z;            /* two-pass kinds: tokens of the first pass */
    double loss;               /* the kind's own terms of the loss, times batch */
} iso_adapter_run;

typedef struct {
    const char *name;      /* "lora" */
    const char *peft_type; /* "LORA" */
    const char *help;      /* one line */
    iso_err (*create)(iso_adapter *a, const iso_adapter_options *o, iso_error *e) ISO_MUST_CHECK;
    iso_err (*from_peft)(iso_adapter *a, const iso_peft *p, iso_error *e) ISO_MUST_CHECK;
    /* Layers in order of module, for iso_peft_write; memory from `arena`. LoRA: what it is. Kinds
     * with to_parts: what they are folded (NULL: no product of thin factors). */
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

    /* Kinds other than LoRA: their own files. to_parts sets fields of config; names and data live
     * in `arena` or in the adapter. */
    iso_err (*from_parts)(iso_adapter *a, const iso_peft_parts *p, iso_error *e) ISO_MUST_CHECK;
    iso_err (*to_parts)(const iso_adapter *a, iso_arena *arena, iso_json *config,
                        iso_named_tensor **tensors, size_t *count, iso_error *e) ISO_MUST_CHECK;
    /* The block from which the adapter needs hidden states, where that lies below the lowest
     * adapted one. NULL: there. */
    size_t (*first_block)(const iso_adapter *a, size_t lowest);
    bool folds_whole; /* `fold` needs W: what it adds is no product of thin factors */

    /* ---- kinds that run; all NULL: the kind only folds ---- */
    bool is_two_pass; /* a frozen pass goes first; `select` gets its final norm's tokens */
    size_t (*run_floats)(const iso_adapter *a, size_t images, bool trains); /* as in the run */
    /* Numbers that follow from params once a step; derived_floats 0: none. */
    size_t (*derived_floats)(const iso_adapter *a, bool trains);
    void (*derive)(const iso_adapter *a, const float *params, bool trains, float *derived);
    void (*begin)(iso_adapter_run *r);                  /* before the pass */
    void (*select)(iso_adapter_run *r, const float *z); /* z (images, tokens, dim) */
    /* As in iso_pass_hooks and iso_backward. */
    void (*enter)(iso_adapter_run *r, size_t block, const float *hidden);
    void (*add)(iso_adapter_run *r, size_t matrix, size_t row, size_t rows, size_t m,
                const float *x, size_t ldx, const float *bias, float *y, size_t ldy);
    void (*run_grad)(iso_adapter_run *r, size_t matrix, size_t row, size_t rows, size_t m,
                     const float *x, size_t ldx, const float *dy, size_t ldy);
    void (*back)(iso_adapter_run *r, size_t matrix, size_t row, size_t rows, size_t m,
                 const float *dy, size_t ldy, float *dx, size_t ldx);
    void (*leave)(iso_adapter_run *r, size_t block, const float *hidden, float *dhidden);
    void (*finish)(iso_adapter_run *r); /* after the backward */
    /* What a forward shows of itself, numbers an image (DATA: gates; TOAST: tokens selected). */
    size_t (*observed)(const iso_adapter *a);
    void (*observe)(const iso_adapter_run *r, float *out); /* (images, observed) */
    /* A term of the loss in params alone; its gradient is added to grad. NULL: none. */
    double (*penalty)(const iso_adapter *a, const float *params, float *grad);
} iso_adapter_kind;

struct iso_adapter {
    const iso_adapter_kind *kind;
    const iso_backbone *backbone; /* borrowed: must outlive the adapter */
    float *params;
    size_t param_count;
    size_t decay_count;  /* of these the first: weight decay and restoration apply */
    bool *is_adapted;    /* one per matrix of the backbone */
    size_t lowest_block; /* of an adapted matrix; depth when there is none */
    bool is_folded;      /* a kind that runs and can fold: used folded (DATA at mean gates) */
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
/* From the two files in memory, of any kind; `what` names them in errors. */
iso_err iso_adapter_parse(iso_adapter **out, const iso_backbone *b, const void *config,
                          size_t config_size, const void *tensors, size_t tensors_size,
                          const char *what, iso_error *e) ISO_MUST_CHECK;
/* Writes a PEFT folder (extra: see iso_peft_output; may be NULL). */
iso_err iso_adapter_write(const iso_adapter *a, const char *folder, const char *base_model,
                          const iso_json *extra, iso_error *e) ISO_MUST_CHECK;
/* The two files of the folder in memory. */
iso_err iso_adapter_write_bufs(const iso_adapter *a, const char *base_model, const iso_json *extra,
                               iso_buf *config, iso_buf *tensors, iso_error *e) ISO_MUST_CHECK;
/* A kind that can be folded into thin factors (DATA at its mean gates) as LoRA's PEFT folder. */
iso_err iso_adapter_write_folded(const iso_adapter *a, const char *folder, const char *base_model,
                                 iso_error *e) ISO_MUST_CHECK;
void iso_adapter_close(iso_adapter *a); /* NULL is fine */

/* The registry. */
extern const iso_adapter_kind *const iso_adapter_kinds[]; /* ends with NULL */
const iso_adapter_kind *iso_adapter_kind_find(const char *name);

/* An adapter without anything, to be laid out by its kind, and then settled. */
iso_err iso_adapter_blank(iso_adapter **out, const iso_backbone *b, const iso_adapter_kind *kind,
                          iso_error *e) ISO_MUST_CHECK;
void iso_adapter_settle(iso_adapter *a);
/* True when the adapter computes beside the weights: the model needs hooks. */
bool iso_adapter_runs(const iso_adapter *a);

/* ---- for kinds ---- */

/* The modules that the options name (all where they name none) and that lie in first_block or
 * later: is_target (module_count) is filled. ISO_ERR_USAGE for a target that no module has. */
iso_err iso_adapter_targets(const iso_backbone *b, const iso_adapter_options *o, bool *is_target,
                            iso_error *e) ISO_MUST_CHECK;
/* True when a module's name is `target` or ends with ".target" (PEFT's rule). */
bool iso_adapter_matches(const char *module, const char *target);

#endif
