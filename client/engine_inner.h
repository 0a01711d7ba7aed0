/* Shared by the files of the engine (client/engine*.c): blobs read, results filled in. */
#ifndef ISO_CLIENT_ENGINE_INNER_H
#define ISO_CLIENT_ENGINE_INNER_H

#include "client/engine.h"
#include "client/engine_data.h"

struct iso_engine {
    iso_engine_options options;
    iso_engine_data *data;
};

/* ISO_ERR_DATA without a head, ISO_ERR_SHAPE when it is for other features. */
iso_err iso_engine_head(iso_engine *g, const iso_digest *d, iso_linear_head *out,
                        iso_error *e) ISO_MUST_CHECK;
/* The adapter of two blobs; NULL for the frozen backbone (zero digests). */
iso_err iso_engine_adapter(iso_engine *g, const iso_digest *config, const iso_digest *model,
                           iso_adapter **out, iso_error *e) ISO_MUST_CHECK;
/* The adapter in a container: what a task's training starts from. */
iso_err iso_engine_base(iso_engine *g, const iso_digest *d, iso_adapter **out,
                        iso_error *e) ISO_MUST_CHECK;
/* File of the job's checkpoint, to be freed; NULL: none is kept. */
char *iso_engine_checkpoint(const iso_engine *g, const uint8_t id[16]);

void iso_engine_fill_scores(iso_trainer_event *out, const iso_linear_head *head,
                            const iso_task_view *v, const iso_feature_set_of *f);
void iso_engine_fill_data(iso_trainer_event *out, const iso_task_view *v);

/* The jobs that learn (client/engine_learn.c). */
iso_err iso_engine_run_head(iso_engine *g, const iso_trainer_job *j, iso_trainer_event *out,
                            iso_buf *container, iso_error *e) ISO_MUST_CHECK;
iso_err iso_engine_run_train(iso_engine *g, const iso_trainer_job *j, const iso_engine_hooks *hooks,
                             iso_trainer_event *out, iso_buf *container,
                             iso_error *e) ISO_MUST_CHECK;

#endif
