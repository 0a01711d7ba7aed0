/* Inside of iso_training, for the files loop*.c only. */
#ifndef ISO_NN_TRAIN_LOOP_INNER_H
#define ISO_NN_TRAIN_LOOP_INNER_H

#include "nn/train/loop.h"

enum { ISO_SCORE_CHUNK = 256 }; /* rows of logits at once */

struct iso_training {
    iso_training_setup setup;
    iso_model *model;
    iso_work *work, *read; /* read: for evaluations, where `work` reads more than one token */
    iso_prefix train_prefix, val_prefix;
    iso_first_pass train_first, val_first;
    float *reference; /* the adapter as it began, for restoration; or NULL */
    size_t adapter_count, head_count, weight_count; /* parameters; weight_count of the head's W */
    size_t micro_batches;                           /* of a batch */
    float *grads;                                   /* (micro_batches, adapter + head) */
    double *losses;
    float *m, *v;             /* optimiser, adapter then head */
    float *staged, *best;     /* parameters in one piece, for the checkpoint */
    uint32_t *order, *idx;    /* this epoch's order; this batch */
    uint64_t epoch;           /* of `order`; UINT64_MAX: none yet */
    int *labels;              /* of this batch */
    float *logits;            /* (batch, classes) */
    float *features, *scores; /* validation: (n, dim); (SCORE_CHUNK, classes) */
    iso_training_status now;
    double without_gain; /* evaluations */
    bool has_best;
    iso_digest run;
    iso_arena arena;
};

/* The images of a set as a model takes them. */
static inline iso_source iso_training_source(const iso_train_set *s, const iso_prefix *prefix,
                                             const iso_first_pass *first)
{
    return (iso_source){
        .n = s->n, .pixels = s->pixels, .ctx = s->ctx, .prefix = prefix, .first_pass = first};
}
/* Takes up the checkpoint, if there is one. */
iso_err iso_training_resume(iso_training *t, iso_error *e) ISO_MUST_CHECK;

#endif
