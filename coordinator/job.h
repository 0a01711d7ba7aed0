/* Jobs of the merge worker as files: job.json out, result.json in (docs/FORMATS.md "Worker"). */
#ifndef ISO_COORDINATOR_JOB_H
#define ISO_COORDINATOR_JOB_H

#include "coordinator/core.h"

/* Appends the text of job.json. */
iso_err iso_job_text(const iso_job *job, iso_buf *out, iso_error *e) ISO_MUST_CHECK;

/* Reads a result; text and arrays live in `arena`. `store` gives the size of what it names and must
 * hold every blob that it names: a result whose blobs are missing is ISO_ERR_DATA, and the job is
 * run again. */
iso_err iso_job_result_read(const void *text, size_t size, const iso_store *store, iso_arena *arena,
                            iso_job_result *out, iso_error *e) ISO_MUST_CHECK;

#endif
