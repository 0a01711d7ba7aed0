/* Independent layers over the threads: each worker has an arena, each layer its own error. */
#ifndef ISO_MERGE_JOBS_H
#define ISO_MERGE_JOBS_H

#include "core/mem.h"

typedef iso_err iso_job_fn(void *ctx, size_t i, iso_arena *scratch, iso_error *e);

typedef struct iso_jobs {
    size_t count;
    size_t scratch_bytes; /* what the largest job is thought to need; 0: unknown */
    const double *costs;  /* count, or NULL: the dearest start first; results do not depend on it */
    iso_job_fn *run;
    void *ctx;
    void (*progress)(void *ctx, size_t done, size_t total); /* may be NULL; from one thread */
    void *progress_ctx;
    const volatile int *stop; /* may be NULL; non-zero: ISO_ERR_INTERRUPTED */
} iso_jobs;

/* The error returned is that of the first failing index, whatever ran first. */
iso_err iso_jobs_run(const iso_jobs *jobs, iso_error *e) ISO_MUST_CHECK;

#endif
