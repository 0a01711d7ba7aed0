/* The merge worker as a child process: one job at a time, up to three tries, never waited for
 * (FED "Merge worker"). */
#ifndef ISO_COORDINATOR_SPAWN_H
#define ISO_COORDINATOR_SPAWN_H

#include "coordinator/job.h"

typedef struct {
    const char *program; /* isofed-merge */
    const char *dir;     /* the coordinator's folder, absolute */
    iso_log *log;
    bool is_busy;
    uint8_t id[16];
    iso_job_kind kind;
    int tries;
    int pid, pidfd; /* pidfd: -1 when none runs */
    uint64_t started_ms;
    char folder[4096];
} iso_spawn;

typedef enum { ISO_SPAWN_RUNS, ISO_SPAWN_DONE, ISO_SPAWN_FAILED } iso_spawn_state;

void iso_spawn_init(iso_spawn *s, const char *program, const char *dir, iso_log *log);
/* Writes jobs/<id>/job.json and starts the worker; a result that is there already is taken as it is
 * by the next look. A job that runs is stopped first. */
iso_err iso_spawn_start(iso_spawn *s, const iso_job *job, uint64_t now_ms,
                        iso_error *e) ISO_MUST_CHECK;
/* Looks without waiting; DONE: `result` is filled (arena), FAILED: `why` says it. Call when pidfd
 * is readable, and once after start. */
iso_spawn_state iso_spawn_look(iso_spawn *s, const iso_store *store, uint64_t now_ms,
                               iso_arena *arena, iso_job_result *result, char *why,
                               size_t why_bytes);
void iso_spawn_cancel(iso_spawn *s, const uint8_t id[16]);
void iso_spawn_stop(iso_spawn *s); /* at the daemon's end */

#endif
