/* Job and result files between the coordinator daemon and the merge worker (docs/FORMATS.md).
 *
 * DIR/jobs/<job>/job.json is written by the daemon, result.json by the worker, both atomically; a
 * job without a complete result is simply run again. Digests name blobs of DIR/blobs. */
#ifndef ISO_COORDINATOR_WORKER_JOB_H
#define ISO_COORDINATOR_WORKER_JOB_H

#include "core/digest.h"
#include "core/json.h"
#include "core/wire.h"
#include "crypto/envelope.h"

typedef enum { ISO_WORKER_HEADS, ISO_WORKER_MERGE, ISO_WORKER_SIGN } iso_worker_kind;

typedef struct {
    uint8_t update_id[ISO_ID_BYTES];
    iso_digest blob; /* the sealed body */
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES];
    uint8_t signature[ISO_SIGNATURE_BYTES];
    uint8_t sign_pk[ISO_PK_BYTES];
    double weight; /* sample count */
} iso_worker_update;

typedef struct {
    uint8_t id[ISO_ID_BYTES];
    const char *name;
    const char **classes;
    size_t class_count;
    const char **targets; /* module suffixes; empty: any linear of the backbone */
    size_t target_count;
    size_t rank, rank_cap;
    const char *aggregate;        /* rule over the task's updates (merge/robust); "mean" */
    const char **aggregate_names; /* its parameters and their values */
    double *aggregate_values;
    size_t aggregate_count;
    double norm_cap;     /* Frobenius, of one layer's s B A; 0: none */
    iso_digest previous; /* container of the task's adapter of an earlier round, or zero */
    const iso_worker_update *updates;
    size_t update_count;
} iso_worker_task;

typedef struct {
    const char *method, *convention;
    double alpha, common_fraction;
} iso_worker_candidate;

typedef struct {
    iso_worker_kind kind;
    const char *job; /* hex id */
    uint8_t federation[ISO_ID_BYTES];
    uint64_t round, generation;
    iso_digest generation_digest;
    const char *backbone; /* folder */
    const iso_worker_task *tasks;
    size_t task_count;
    const iso_worker_candidate *candidates;
    size_t candidate_count;
    /* sign */
    uint64_t number;
    iso_digest manifest, candidate;
    const char *gate;
    iso_arena arena;
} iso_worker_job;

iso_err iso_worker_job_read(iso_worker_job *w, const char *path, iso_error *e) ISO_MUST_CHECK;
void iso_worker_job_free(iso_worker_job *w);

#endif
