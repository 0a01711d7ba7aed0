/* Training of an adapter, and of its head in mode `joint` (DESIGN 2): seeded, in steps, with
 * checkpoints from which a killed run goes on to the same bits.
 *
 * All memory is allocated by iso_training_open; a step allocates nothing. Which images a step sees
 * is a pure function of (seed, step). Validation images are scored every eval_every steps and at
 * the end. */
#ifndef ISO_NN_TRAIN_LOOP_H
#define ISO_NN_TRAIN_LOOP_H

#include "nn/head/linear.h"
#include "nn/model.h"
#include "nn/train/restore.h"

/* Images and their labels; labels in 0 .. head's classes - 1. n = 0: none (validation only). */
typedef struct {
    size_t n;
    iso_pixels_fn *pixels;
    void *ctx;
    const int *labels;
} iso_train_set;

typedef struct {
    uint64_t seed;
    size_t steps, batch;     /* batch 1 .. 4096 */
    double lr;               /* peak, adapter */
    double head_lr;          /* joint only; 0: lr */
    double weight_decay;     /* not on the head's bias */
    double clip_norm;        /* of the whole gradient; 0: off */
    size_t warmup;           /* steps */
    double final_share;      /* of lr at the last step */
    bool trains_head;        /* head: joint; else the head is frozen */
    bool augments;           /* pixels() is given draw = step + 1: no prefix is kept for training */
    size_t eval_every;       /* steps; 0: only at the end */
    bool keeps_best;         /* the result is the best by validation (accuracy, then loss) */
    size_t patience;         /* evaluations without improvement before it stops; 0: never */
    size_t cache_bytes;      /* budget of each kept prefix */
    const char *checkpoint;  /* file; NULL: none is written or read */
    size_t checkpoint_every; /* steps; 0: only when interrupted or done */
    bool is_quiet;           /* no progress line in iso_training_run */
    iso_digest data;         /* of the training images, for U60; zero: not compared */
    iso_restore restore;     /* parameters that return to where this training began; zero: none */
    /* Stage 1 of TOAST: the mean of both passes' losses; the head is trained (toast.md R1). */
    bool is_stage1;
} iso_train_options;

/* 300 steps of 16, lr 1e-3, weight decay 0.01, warm-up 20, clip 1, joint off, cache 512 MiB. */
iso_train_options iso_train_defaults(void);

typedef struct {
    const iso_backbone *backbone;
    iso_adapter *adapter;  /* trained in place; borrowed */
    iso_linear_head *head; /* trained in place with trains_head; borrowed */
    iso_train_set train, val;
    iso_train_options options;
} iso_training_setup;

typedef struct {
    uint64_t step;                   /* done so far */
    double loss;                     /* mean over the last step's batch; NaN before */
    double smooth_loss;              /* decaying mean over about 20 steps */
    double val_accuracy, val_loss;   /* last evaluation; NaN before, or without validation images */
    double best_accuracy, best_loss; /* of the best evaluation; NaN before */
    uint64_t best_step, checkpoint_step;
    bool is_done, stopped_early;
    bool resumed;      /* a checkpoint was taken up */
    bool data_changed; /* ... that was written with other training images (U60) */
} iso_training_status;

typedef struct iso_training iso_training;

/* Checks, allocates, keeps prefixes, takes up the checkpoint if there is one. ISO_ERR_USAGE for an
 * option out of range, ISO_ERR_DATA for a label out of range, a set without images, or a checkpoint
 * of another run (its file is named). */
iso_err iso_training_open(iso_training **out, const iso_training_setup *s,
                          iso_error *e) ISO_MUST_CHECK;
/* At most n more steps; fewer at the end. ISO_ERR_NONFINITE when the loss is no number: the step is
 * named, adapter and head stay as they were before it. */
iso_err iso_training_step(iso_training *t, size_t n, iso_training_status *status,
                          iso_error *e) ISO_MUST_CHECK;
iso_training_status iso_training_now(const iso_training *t);
/* Writes the checkpoint now. */
iso_err iso_training_checkpoint(iso_training *t, iso_error *e) ISO_MUST_CHECK;
/* Puts the result into the setup's adapter and head: the best state with keeps_best (and validation
 * images), else the current one. Training may not go on after that. */
void iso_training_result(iso_training *t, iso_training_status *status);
void iso_training_close(iso_training *t); /* NULL is fine */

/* Bytes that a training takes at its peak, prefixes included, the backbone not (U57). */
size_t iso_training_bytes(const iso_training *t);

/* All steps with a progress line, then the result. should_stop (may be NULL) is asked after every
 * step: true writes the checkpoint and gives ISO_ERR_INTERRUPTED. */
iso_err iso_training_run(iso_training *t, bool (*should_stop)(void *ctx), void *ctx,
                         iso_training_status *status, iso_error *e) ISO_MUST_CHECK;

/* Share of right answers and mean cross-entropy (may be NULL) of features (n, dim). */
double iso_training_score(const iso_linear_head *h, const float *features, const int *labels,
                          size_t n, float *logits, double *loss);

#endif
