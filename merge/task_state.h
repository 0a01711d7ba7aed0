/* Merge state: the factors of every task, so that a task that joins, changes or leaves later gives
 * the merge that a joint run would have given (DESIGN 1; specs/merging.md 7). Merging a merge is
 * lossy; this is not.
 *
 * One safetensors file (docs/FORMATS.md, "Merge state"): about (out + in) r numbers a layer and
 * task, whatever the number of merges made from it. */
#ifndef ISO_MERGE_TASK_STATE_H
#define ISO_MERGE_TASK_STATE_H

#include "merge/merge.h"

typedef struct {
    const char *name;
    double weight;
    iso_digest digest;      /* of the adapter's tensors as it came */
    iso_lora_layer *layers; /* in order of module */
    size_t count;
} iso_task;

typedef struct {
    iso_task *tasks; /* in order of name */
    size_t count, room;
    const char *base_model; /* "" where no task names one */
    iso_arena arena;        /* everything above */
} iso_task_state;

/* A missing file is an empty state when `create`. */
iso_err iso_task_state_open(iso_task_state *s, const char *path, bool create,
                            iso_error *e) ISO_MUST_CHECK;
/* Atomic. */
iso_err iso_task_state_write(const iso_task_state *s, const char *path,
                             iso_error *e) ISO_MUST_CHECK;
void iso_task_state_close(iso_task_state *s); /* zeroed struct is fine */

/* Copies the layers. A name that is there is ISO_ERR_USAGE unless replace, then it must be there;
 * replacing keeps the weight when `weight` is NaN. Layers of other shape than another task's are
 * ISO_ERR_SHAPE. base_model may be NULL. */
iso_err iso_task_state_add(iso_task_state *s, const char *name, const iso_lora_input *in,
                           const iso_digest *digest, double weight, const char *base_model,
                           bool replace, iso_error *e) ISO_MUST_CHECK;
/* Unknown names are ISO_ERR_USAGE with the nearest. */
iso_err iso_task_state_remove(iso_task_state *s, const char *name, iso_error *e) ISO_MUST_CHECK;
iso_err iso_task_state_weigh(iso_task_state *s, const char *name, double weight,
                             iso_error *e) ISO_MUST_CHECK;

/* What recompression cost. */
typedef struct {
    size_t dropped;   /* directions */
    double sum_error; /* bound on the change of sum w_t D_t, Frobenius over all layers */
    double norm;      /* |D_t|_F over all layers and tasks, to compare with */
} iso_compressed;

/* Every layer of every task to at most `rank` directions, the largest. Linear methods change by at
 * most sum_error; isotropic ones lift every direction to the same size, so that each one dropped
 * may change the polar factor by one, however small it was (specs/merging.md 7). */
iso_err iso_task_state_compress(iso_task_state *s, size_t rank, iso_compressed *out,
                                iso_error *e) ISO_MUST_CHECK;

#endif
