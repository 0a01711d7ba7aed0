/* Backbones: frozen pretrained networks, loaded from Hugging Face folders, chosen by model_type.
 *
 * A backbone is its shape, its linear layers by name (modules, what adapters attach to), the frozen
 * matrices that hold them, and a family's functions. It knows nothing of adapters: a pass is given
 * the weights to use (frozen or folded, DESIGN 1) and a function that takes each matrix's input and
 * output gradient. After opening it is read-only and shared between threads. */
#ifndef ISO_NN_BACKBONE_BACKBONE_H
#define ISO_NN_BACKBONE_BACKBONE_H

#include "core/json.h"
#include "core/safetensors.h"
#include "nn/kernel/gelu.h"
#include "nn/kernel/gemm.h"

typedef struct iso_backbone iso_backbone;

/* A sample, what a backbone takes one of: an image's normalised pixels (channels, side, side), or a
 * text's token ids as floats, `tokens` of them, with -1 where there is none; or log-mel frames
 * (frames, mels) of sound, ISO_NO_FRAME at the start of the first that is not there. */
typedef enum { ISO_MODALITY_IMAGE, ISO_MODALITY_TEXT, ISO_MODALITY_SOUND } iso_modality;
#define ISO_NO_FRAME (-1e30F)

typedef struct {
    iso_modality modality;
    size_t depth, dim, heads, mlp;
    size_t feature;                     /* numbers of a feature; dim but where CLIP projects */
    size_t sample;                      /* floats of a sample */
    size_t image_size, patch, channels; /* images; else 0, but channels of sound are mels */
    size_t sample_rows;                 /* sound: frames a token; else 0 */
    size_t native_size;                 /* of the images that it was trained on */
    size_t vocabulary;                  /* text; else 0 */
    size_t lead;      /* tokens before the patches: class, DeiT also distillation, registers */
    size_t tokens;    /* lead + patches; of a text at most */
    size_t classes;   /* of the classifier that came along; 0: none */
    size_t head_rows; /* rows of the output that it reads */
    double eps;
    const iso_activation *act; /* of the MLP */
} iso_backbone_shape;

/* A linear layer: rows row .. row+out-1 of a matrix (query, key, value share one). */
typedef struct {
    const char *name; /* "vit.encoder.layer.0.attention.attention.query" */
    size_t out, in;
    size_t block;  /* 0 .. depth-1 */
    size_t matrix; /* index in matrices */
    size_t row;
} iso_module;

/* What an adapter that computes beside the frozen weights adds to a pass (DATA: gated low-rank
 * parts, TOAST: top-down values). Called on the thread of the pass, in a fixed order; each may be
 * NULL. */
typedef struct {
    void *ctx;
    /* The residual stream (images, tokens, dim) as it enters block `block`; block = depth: as it
     * leaves the last one, only where all tokens are read. */
    void (*enter)(void *ctx, size_t block, const float *hidden);
    /* After y (m, rows) = x (m, in) W[row .. row+rows)' + bias (+ residual): adds to y. m is images
     * times rows of an image. */
    void (*add)(void *ctx, size_t matrix, size_t row, size_t rows, size_t m, const float *x,
                size_t ldx, const float *bias, float *y, size_t ldy);
} iso_pass_hooks;

/* What one pass over a micro-batch of images does. */
typedef void iso_tap_fn(void *ctx, size_t index, const float *hidden);
typedef void iso_grad_fn(void *ctx, size_t matrix, size_t row, size_t rows, size_t m,
                         const float *x, size_t ldx, const float *dy, size_t ldy);
typedef struct {
    const iso_packed *weights; /* one per matrix */
    size_t first;              /* block that the hidden state enters */
    size_t last;               /* stop before this block, no final norm; 0: run to the end */
    size_t read;               /* leading tokens that are read at the end, 1 .. tokens */
    size_t tokens; /* rows of an image in this pass, up to the shape's; 0: the shape's */
    bool keep;     /* keep what the backward needs */
    /* Hidden state (images, tokens, dim) before block `first` (index first) and after each block
     * (index block+1); needs read = tokens. NULL: not wanted. */
    iso_tap_fn *tap;
    void *tap_ctx;
    const iso_pass_hooks *hooks; /* NULL: none */
    /* One per image: leading tokens that are there; the others are padding, to which nobody
     * attends. 1 .. tokens. NULL: all. */
    const uint32_t *lengths;
} iso_pass;

/* One backward: matrices that have an adapter, and who takes their gradients. */
typedef struct {
    const bool *is_adapted; /* one per matrix */
    /* dW[row .. row+rows) = dy' x with x (m, in), dy (m, rows); called in a fixed order. */
    iso_grad_fn *grad;
    void *ctx;
    /* For adapters with hooks; may be NULL. back: after dx (m, in) = dy W[row .. row+rows), adds to
     * dx. leave: adds to dhidden, the gradient of what `enter` saw at that block; dhidden is NULL
     * where no gradient is wanted any more. Called for every block, last to first. */
    void (*back)(void *ctx, size_t matrix, size_t row, size_t rows, size_t m, const float *dy,
                 size_t ldy, float *dx, size_t ldx);
    void (*leave)(void *ctx, size_t block, const float *hidden, float *dhidden);
} iso_backward;

typedef struct {
    const char *model_type; /* of config.json */
    const char *help;       /* one line */
    /* Fills the shape from config.json; every number is checked here, before anything is
     * allocated. ISO_ERR_DATA names the field. */
    iso_err (*read_config)(const iso_json *config, iso_backbone_shape *shape,
                           iso_error *e) ISO_MUST_CHECK;
    /* Modules, matrices, everything else; shapes of all tensors are checked first. */
    iso_err (*load)(iso_backbone *b, const iso_safetensors *st, iso_error *e) ISO_MUST_CHECK;
    /* Floats of workspace for a pass over `images` images. */
    size_t (*workspace_floats)(const iso_backbone *b, const iso_pass *p, size_t images);
    /* Where in the workspace the hidden state (images, tokens, dim) goes before forward. */
    float *(*input)(const iso_backbone *b, const iso_pass *p, float *workspace);
    /* How many tokens of each sample are there, 1 .. tokens. NULL: all, always. */
    void (*lengths)(const iso_backbone *b, const float *samples, size_t n, uint32_t *lengths);
    /* Samples to the hidden state before block 0. */
    void (*embed)(const iso_backbone *b, const iso_pass *p, const float *samples, size_t images,
                  float *workspace, float *hidden);
    /* From the input to out (images, read, feature), final norm and projection applied. Text with
     * read = 1: the mean over the tokens that are there. */
    void (*forward)(const iso_backbone *b, const iso_pass *p, size_t images, float *workspace,
                    float *out);
    /* After forward with keep, on the same workspace: dout (images, read, feature). Stops at the
     * lowest adapted matrix; frozen weights get no gradient. */
    void (*backward)(const iso_backbone *b, const iso_pass *p, const iso_backward *w, size_t images,
                     float *workspace, const float *dout);
    /* Logits (n, classes) of the classifier that came along, from out (n, head_rows, feature). */
    void (*classify)(const iso_backbone *b, const float *out, size_t n, float *logits);
} iso_backbone_family;

struct iso_backbone {
    const iso_backbone_family *family;
    iso_backbone_shape shape;
    iso_digest generation;     /* canonical tensor list of the file (DESIGN 1) */
    const iso_module *modules; /* in order of computation */
    size_t module_count;
    iso_packed *matrices; /* frozen; forward panels filled */
    size_t matrix_count;
    void *own; /* the family's */
    /* Start tensors of TOAST that came in the same folder (nn/adapter/toast.h); NULL: none. */
    const iso_safetensors *top_down;
    iso_arena arena;
};

typedef struct {
    size_t image_size; /* side of the images; positions are interpolated. 0: as in config.json */
    size_t max_tokens; /* longest text or sound. 0: as long as the positions reach */
} iso_backbone_options;

/* Opens a folder with config.json and model.safetensors (or shards with an index), f32, bf16 or
 * f16. Where preprocessor_config.json makes other images than config.json says (DINOv2), the
 * backbone takes these. ISO_ERR_DATA for an unknown model_type (lists what there is) or a bad
 * field, ISO_ERR_SHAPE for a tensor that does not fit, ISO_ERR_NONFINITE. */
iso_err iso_backbone_open(iso_backbone **out, const char *folder, iso_error *e) ISO_MUST_CHECK;
/* The same with options. */
iso_err iso_backbone_open_as(iso_backbone **out, const char *folder, const iso_backbone_options *o,
                             iso_error *e) ISO_MUST_CHECK;
/* From a parsed configuration and tensors; `what` names them in errors; o may be NULL. */
iso_err iso_backbone_make_as(iso_backbone **out, const iso_json *config, const iso_safetensors *st,
                             const iso_backbone_options *o, const char *what,
                             iso_error *e) ISO_MUST_CHECK;
iso_err iso_backbone_make(iso_backbone **out, const iso_json *config, const iso_safetensors *st,
                          const char *what, iso_error *e) ISO_MUST_CHECK;
void iso_backbone_close(iso_backbone *b); /* NULL is fine */

/* By exact name, or with or without the file's prefix ("vit."). NULL if absent. */
const iso_module *iso_backbone_module(const iso_backbone *b, const char *name);

/* The registry. */
extern const iso_backbone_family *const iso_backbone_families[]; /* ends with NULL */
const iso_backbone_family *iso_backbone_family_find(const char *model_type);

/* ---- for families ---- */

/* Sets side, tokens and sample for images of this side; ISO_ERR_DATA when patches do not fit. */
iso_err iso_backbone_resize(iso_backbone_shape *s, size_t image_size, iso_error *e) ISO_MUST_CHECK;

/* Finds `prefix``name` and checks its shape (dims ends with 0). */
iso_err iso_backbone_tensor(const iso_safetensors *st, const char *prefix, const char *name,
                            const size_t *dims, const iso_tensor **out,
                            iso_error *e) ISO_MUST_CHECK;
/* The same, converted to float32 into `out`; finite values only. */
iso_err iso_backbone_read(const iso_safetensors *st, const char *prefix, const char *name,
                          const size_t *dims, float *out, iso_error *e) ISO_MUST_CHECK;

#endif
