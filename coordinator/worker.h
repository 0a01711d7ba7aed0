/* The merge worker: opens sealed updates, merges, signs manifests; no network.
 *
 * One job a run (coordinator/worker_job.h), started by the daemon or by hand. It alone holds the
 * merge key (specs/security.md S19) and, when releases are signed unattended, the release key
 * (AMENDMENTS 2). Same job, same bytes out: a job that was killed is run again. */
#ifndef ISO_COORDINATOR_WORKER_H
#define ISO_COORDINATOR_WORKER_H

#include "coordinator/worker_open.h"
#include "core/log.h"

typedef struct {
    const char *state_dir;  /* holds blobs/, jobs/, merge/merge.key, release/ */
    const char *passphrase; /* of the key files; NULL: they are bare */
    iso_log *log;           /* may be NULL */
} iso_worker_options;

/* Reads job_path, does the work, writes result.json beside it. */
iso_err iso_worker_run(const iso_worker_options *o, const char *job_path,
                       iso_error *e) ISO_MUST_CHECK;

/* ---- the three kinds; each fills `result` (an object with format and job already in it) ---- */
iso_err iso_worker_heads(const iso_worker_ground *g, const iso_worker_job *w, iso_json *result,
                         iso_error *e) ISO_MUST_CHECK;
iso_err iso_worker_merge(const iso_worker_ground *g, const iso_worker_job *w, iso_json *result,
                         iso_error *e) ISO_MUST_CHECK;
iso_err iso_worker_sign(const iso_worker_options *o, const iso_worker_job *w, iso_json *result,
                        iso_error *e) ISO_MUST_CHECK;

/* Durable blob below state_dir; the same content twice is fine. */
iso_err iso_worker_put_blob(const char *state_dir, const iso_buf *data, iso_digest *out,
                            iso_error *e) ISO_MUST_CHECK;
iso_err iso_worker_get_blob(const char *state_dir, const iso_digest *d, size_t max_bytes,
                            iso_buf *out, iso_error *e) ISO_MUST_CHECK;
/* Hex strings for results. */
iso_json *iso_worker_hex(const uint8_t *bytes, size_t n);
/* The verdict row of one update, appended to `verdicts`. */
void iso_worker_verdict(iso_json *verdicts, const iso_worker_update *u, const iso_opened *o);

#endif
