/* One sealed update, opened and checked: rows 12-15 of specs/security.md 3.2. */
#ifndef ISO_COORDINATOR_WORKER_OPEN_H
#define ISO_COORDINATOR_WORKER_OPEN_H

#include "coordinator/worker_job.h"
#include "core/peft.h"
#include "crypto/container.h"
#include "nn/head/linear.h"

/* What the worker may read: the merge key, the blob folder, the generation's tensors. */
typedef struct {
    const char *state_dir;
    const iso_key *merge_key;
    const iso_safetensors *backbone; /* NULL for head rounds: no shapes to compare */
} iso_worker_ground;

typedef struct {
    iso_buf payload; /* the opened container; everything below points into it or is its own */
    iso_envelope header;
    iso_peft adapter; /* count 0 in a head round */
    iso_linear_head head;
    double *class_counts; /* head.classes numbers; NULL without a head */
    bool has_adapter, has_head;
    iso_code code; /* ISO_CODE_OK, or why it is refused ... */
    iso_error why; /* ... and the sentence */
} iso_opened;

/* A refusal of the update is ISO_OK with o->code set; an error is ours (disk, memory) and ends the
 * job. iso_opened_close() in every case. */
iso_err iso_worker_open(const iso_worker_ground *g, const iso_worker_job *w,
                        const iso_worker_task *t, const iso_worker_update *u, iso_opened *o,
                        iso_error *e) ISO_MUST_CHECK;
void iso_opened_close(iso_opened *o);

/* Shapes and names of an adapter against the generation and the task's targets (row 14). */
iso_err iso_worker_check_shapes(const iso_safetensors *backbone, const iso_worker_task *t,
                                const iso_peft *p, iso_error *e) ISO_MUST_CHECK;
/* Path of a blob below state_dir; new string or NULL. */
char *iso_worker_blob_path(const char *state_dir, const iso_digest *d);

#endif
