/* The state of a training run in one file: safetensors, written whole or not at all.
 *
 * Tensors: params, m, v (float32: adapter, then head), best (as params; only with keeps_best),
 * state (float64, see iso_checkpoint_state). Metadata: format isofed-checkpoint, version 1, run
 * (digest of everything that decides the bits but the data), data (digest of the images). */
#ifndef ISO_NN_TRAIN_CHECKPOINT_H
#define ISO_NN_TRAIN_CHECKPOINT_H

#include "core/digest.h"

#include <stdbool.h>
#include <stddef.h>

/* Scalars; all doubles, so that they are one tensor. Append only. */
typedef struct {
    double step, loss, smooth_loss, val_accuracy, val_loss;
    double best_accuracy, best_loss, best_step, without_gain, stopped_early, has_best;
} iso_checkpoint_state;

typedef struct {
    size_t count;          /* parameters */
    float *params, *m, *v; /* (count) */
    float *best;           /* (count), or NULL */
    iso_checkpoint_state state;
    iso_digest run, data;
} iso_checkpoint;

iso_err iso_checkpoint_write(const char *path, const iso_checkpoint *c,
                             iso_error *e) ISO_MUST_CHECK;
/* Fills the arrays of `c` (whose count and run are set) from a file. ISO_ERR_DATA when it is of
 * another run or malformed; *data_differs tells whether c->data (when not zero) is another. */
iso_err iso_checkpoint_read(const char *path, iso_checkpoint *c, bool *data_differs,
                            iso_error *e) ISO_MUST_CHECK;

#endif
