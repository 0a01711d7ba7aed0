/* A model: a backbone and, maybe, an adapter as one thing that runs.
 *
 * "Images" and "pixels" stand for samples of any modality (nn/backbone/backbone.h). Images go
 * through in micro-batches of a fixed size, each on one thread from pixels to result
 * (specs/performance.md 9 row 9), so results do not depend on the number of threads. A model is
 * read-only between calls of iso_model_fold: any number of threads may use it at once. */
#ifndef ISO_NN_MODEL_H
#define ISO_NN_MODEL_H

#include "nn/adapter/adapter.h"

typedef struct iso_model iso_model;

/* Samples idx[0 .. n-1] into out (n, sample): pixels (channels, side, side). `draw` names the
 * random numbers of augmentation: 0 means none. Called from several threads at once. */
typedef void iso_pixels_fn(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out);

/* Hidden states before block `block` of images 0 .. n-1: what frozen blocks give, kept once. */
typedef struct {
    size_t n, block;
    size_t tokens;     /* rows of a sample; of texts what the longest needs */
    float *hidden;     /* (n, tokens, dim), owned; NULL: nothing kept */
    uint32_t *lengths; /* (n), owned; NULL: all tokens are there */
} iso_prefix;

/* What the first of two passes gives, kept once (TOAST; specs/toast.md 9). */
typedef struct {
    size_t n;
    float *z; /* (n, tokens, dim), owned; NULL: nothing kept */
} iso_first_pass;

/* Where images come from: pixels, or a prefix where that is not NULL and holds something. */
typedef struct {
    size_t n;
    iso_pixels_fn *pixels;
    void *ctx;
    const iso_prefix *prefix;
    const iso_first_pass *first_pass; /* NULL or empty: computed each time */
} iso_source;

/* `a` may be NULL. Both are borrowed. trains: panels for the backward are made as well. */
iso_err iso_model_open(iso_model **out, const iso_backbone *b, const iso_adapter *a, bool trains,
                       iso_error *e) ISO_MUST_CHECK;
/* After the adapter's parameters changed: folds them into the weights again, on all threads.
 * params NULL takes the adapter's own, else another vector of the same layout. */
void iso_model_fold(iso_model *m, const float *params);
void iso_model_close(iso_model *m); /* NULL is fine */
const iso_backbone *iso_model_backbone(const iso_model *m);
const iso_adapter *iso_model_adapter(const iso_model *m);
size_t iso_model_dim(const iso_model *m);   /* of a feature */
size_t iso_model_bytes(const iso_model *m); /* held beside the backbone and the adapter */
/* Images of one micro-batch: a function of the backbone alone. */
size_t iso_model_micro_batch(const iso_model *m);

/* Features out (n, dim): final-norm class token (CLIP: projected; text: mean over tokens) of images
 * idx[0 .. n-1] (NULL: 0 .. n-1). */
iso_err iso_model_features_of(const iso_model *m, const iso_source *s, const uint32_t *idx,
                              size_t n, float *out, iso_error *e) ISO_MUST_CHECK;
/* The same of samples (n, sample). */
iso_err iso_model_features(const iso_model *m, const float *pixels, size_t n, float *out,
                           iso_error *e) ISO_MUST_CHECK;
/* Logits (n, classes) of the classifier that came with the backbone; ISO_ERR_DATA without one. */
iso_err iso_model_logits(const iso_model *m, const float *pixels, size_t n, float *logits,
                         iso_error *e) ISO_MUST_CHECK;

/* Computes hidden states before block `block` of all images of `s`, when they fit in budget_bytes
 * (else p->hidden stays NULL and ISO_OK). Blocks below must not be adapted. */
iso_err iso_model_prefix(const iso_model *m, const iso_source *s, size_t block, size_t budget_bytes,
                         iso_prefix *p, iso_error *e) ISO_MUST_CHECK;
void iso_prefix_free(iso_prefix *p); /* zeroed struct is fine */

/* The first of two passes of all images of `s`, where it fits in budget_bytes and the adapter's
 * kind has two (else f->z stays NULL and ISO_OK). Not for samples of different lengths. */
iso_err iso_model_first_pass(const iso_model *m, const iso_source *s, size_t budget_bytes,
                             iso_first_pass *f, iso_error *e) ISO_MUST_CHECK;
void iso_first_pass_free(iso_first_pass *f); /* zeroed struct is fine */

/* What the adapter's kind shows of its forward (iso_adapter_kind.observe): out (n, observed) of all
 * images of `s`. Only for kinds that run. */
iso_err iso_model_observe(const iso_model *m, const iso_source *s, float *out,
                          iso_error *e) ISO_MUST_CHECK;

/* ---- training ---- */

/* Workspaces of iso_threads() workers, allocated once. */
typedef struct iso_work iso_work;
iso_err iso_work_open(iso_work **out, const iso_model *m, size_t read, iso_error *e) ISO_MUST_CHECK;
void iso_work_close(iso_work *w);
size_t iso_work_bytes(const iso_work *w);
/* iso_model_features_of without allocation, in a workspace opened with read = 1. */
void iso_model_features_in(const iso_model *m, iso_work *w, const iso_source *s,
                           const uint32_t *idx, size_t n, float *out);

/* Loss of one micro-batch: images first .. first+n-1 of the batch; out (n, read, feature) are their
 * final-norm tokens, dout gets the gradient. extra: the micro-batch's gradient beyond the
 * adapter's, zeroed before (may be NULL). Called from several threads at once. */
typedef double iso_loss_fn(void *ctx, size_t first, size_t n, const float *out, float *dout,
                           float *extra);

/* Loss (sum in order of micro-batches) and gradient of images idx[0 .. n-1] with leading tokens
 * `read` of iso_work_open. grads (micro-batches, stride) is scratch; row 0 holds the sum at the
 * end: the adapter's param_count numbers, then `extra` ones. No allocation. draw: see
 * iso_pixels_fn. */
typedef struct {
    const iso_source *source;
    const uint32_t *idx;
    size_t n;
    uint64_t draw;
    iso_loss_fn *loss;
    void *loss_ctx;
    float *grads;
    size_t stride, extra;
    double *losses; /* one per micro-batch */
    /* Two-pass kinds: a loss of the first pass too, z (n, ..) with the first tokens ldz apart; it
     * trains `extra` alone. NULL: none. */
    double (*first_loss)(void *ctx, size_t first, size_t n, const float *z, size_t ldz,
                         float *extra);
} iso_gradient_job;
double iso_model_gradient(const iso_model *m, iso_work *w, const iso_gradient_job *job);

#endif
