/* The merge worker inside the simulation: opens the sealed bodies of a job, judges each update by
 * rows 12 - 15 of specs/security.md 3.2, aggregates and merges with the merge/ library as shipped,
 * and keeps the signer's ledger (AMENDMENT 2). coordinator/worker*.c do the same on files. */
#ifndef ISO_SIM_WORKER_H
#define ISO_SIM_WORKER_H

#include "coordinator/core.h"
#include "sim/disk.h"
#include "sim/sealer_hash.h"
#include "sim/trainer_synthetic.h"

typedef struct {
    iso_sim_disk *disk; /* the coordinator's: bodies in, results out; borrowed */
    const iso_synth *synth;
    iso_sim_key world;
    uint8_t merge_pk[ISO_PK_BYTES];
    iso_minisign_public release_key;
    uint64_t last_number; /* ledger */
    iso_digest last_manifest;
} iso_sim_worker;

/* ISO_OK with a whole result, or why the job fails. `arena` holds what the result points to. */
iso_err iso_sim_worker_run(iso_sim_worker *w, const iso_job *job, iso_arena *arena,
                           iso_job_result *result, iso_error *e) ISO_MUST_CHECK;

/* A job is only read while it is started; this keeps it. */
iso_job *iso_sim_job_copy(const iso_job *job, iso_arena *arena);

#endif
