/* The work behind the trainer seam: one site's jobs on its images, each run to its end.
 *
 * Pure in its inputs: the same job on the same images gives the same bits, for any number of
 * threads, also when it was stopped and goes on from its checkpoint (U32). The daemon runs it on a
 * thread of its own (client/trainer.c); the simulation with real learning runs it in place. */
#ifndef ISO_CLIENT_ENGINE_H
#define ISO_CLIENT_ENGINE_H

#include "client/config.h"
#include "core/trainer.h"
#include "nn/backbone/backbone.h"
#include "nn/data/images.h"

typedef struct iso_engine iso_engine;

typedef struct {
    const iso_backbone *backbone; /* borrowed */
    iso_preprocess preprocess;
    const iso_client_data *data; /* borrowed */
    size_t data_count;
    double val_share;
    size_t checkpoint_every, cache_bytes;
    const char *checkpoint_dir; /* borrowed; NULL: none are written */
    /* The whole blob `d`, appended to `out`. Called from the engine's thread. */
    iso_err (*read_blob)(void *ctx, const iso_digest *d, iso_buf *out, iso_error *e);
    /* Told after the images of data[task] were read: training, validation, test set. Called from
     * the engine's thread; may be NULL. */
    void (*looked)(void *ctx, size_t task, const iso_image_set sets[3]);
    void *blob_ctx; /* of both */
} iso_engine_options;

/* Asked and told between steps; any may be NULL. */
typedef struct {
    bool (*should_stop)(void *ctx);
    void (*progress)(void *ctx, const iso_trainer_event *ev);
    void *ctx;
} iso_engine_hooks;

iso_err iso_engine_open(iso_engine **out, const iso_engine_options *options,
                        iso_error *e) ISO_MUST_CHECK;
void iso_engine_close(iso_engine *g); /* NULL is fine */

/* Runs the job. `out` gets what ISO_TRAINER_DONE carries (kind and id too), `container` the
 * update's container of HEAD and TRAIN (its digest and size stand in `out`). ISO_ERR_INTERRUPTED
 * when should_stop said so: the checkpoint is written. ISO_ERR_RESOURCE, ISO_ERR_MEMORY may pass;
 * every other error would come again. */
iso_err iso_engine_run(iso_engine *g, const iso_trainer_job *job, const iso_engine_hooks *hooks,
                       iso_trainer_event *out, iso_buf *container, iso_error *e) ISO_MUST_CHECK;
/* Removes the job's checkpoint. */
void iso_engine_forget(iso_engine *g, const uint8_t id[16]);

/* The preprocessing that comes with a backbone's folder, or its default. */
iso_err iso_engine_preprocess(const char *folder, const iso_backbone *b, iso_preprocess *out,
                              iso_error *e) ISO_MUST_CHECK;

#endif
