/* Inside of the daemon: its parts, and how effects become deeds. */
#ifndef ISO_COORDINATOR_SHELL_H
#define ISO_COORDINATOR_SHELL_H

#include "coordinator/admin.h"
#include "coordinator/daemon.h"
#include "coordinator/identity.h"
#include "coordinator/metrics.h"
#include "coordinator/partial.h"
#include "coordinator/server.h"
#include "coordinator/spawn.h"
#include "core/clock.h"
#include "core/state_sqlite.h"
#include "crypto/token.h"

#include <stdio.h>

enum { SHELL_BATCH = 256 };

typedef struct {
    const iso_daemon_options *options;
    iso_coord_config config;
    iso_coord_keys_file keys;
    iso_arena arena; /* configuration */
    iso_clock clock;
    iso_sealer sealer;
    iso_entropy entropy;
    iso_log *log;
    iso_state *state;
    iso_store store;
    iso_server *server;
    iso_admin *admin;
    iso_metrics *metrics; /* NULL: off */
    iso_partials partials;
    iso_spawn spawn;
    iso_coord *core;
    char dir[3072], worker[4096], host[ISO_HOST_MAX + 1];
    FILE *audit;

    /* group commit (S88): steps whose rows wait for one transaction */
    iso_coord_effects steps[SHELL_BATCH];
    size_t step_count;
    iso_op *ops;
    size_t op_count, op_capacity;
    const iso_coord_effect **held; /* effects that come after it */
    size_t held_count, held_capacity;

    iso_partial_file stores[SHELL_BATCH]; /* complete uploads that wait for one sync (S88) */
    size_t store_count;

    iso_coord_event *answers; /* events that effects caused, to be stepped next */
    size_t answer_count, answer_capacity;
    uint8_t *piece; /* one blob chunk */
    iso_arena message, result;
    bool is_stopping, must_reload;
    uint64_t commits, disk_free;
    int failures; /* commits that failed in a row */
    iso_time minute, looked, watched;
} iso_shell;

/* Opens all of options->dir; with check_config only what the configuration and keys say. */
iso_err iso_shell_open(iso_shell *s, iso_error *e) ISO_MUST_CHECK;
void iso_shell_close(iso_shell *s);
/* Who may connect, as the core has it; keys is allocated, to be freed. */
typedef struct {
    iso_zap_key *keys;
    size_t count, capacity;
} iso_key_list;
void iso_shell_keys(const iso_shell *s, iso_key_list *out);
/* A core from what is stored. */
iso_err iso_shell_make_core(iso_shell *s, iso_error *e) ISO_MUST_CHECK;
/* Says where we listen: to the file `endpoint` and to the core, for enrolment lines. */
iso_err iso_shell_write_endpoint(iso_shell *s, iso_error *e) ISO_MUST_CHECK;

/* Steps the core and performs or holds what it says. */
void iso_shell_step(iso_shell *s, const iso_coord_event *ev);
/* Of this process. */
uint64_t iso_shell_resident_bytes(void);
/* Cuts connections when memory runs short; looks once a second (S46). */
void iso_shell_watch_memory(iso_shell *s);
/* An iso_metrics_page_fn; ctx is the shell. */
iso_err iso_shell_figures(void *ctx, iso_buf *out, iso_error *e) ISO_MUST_CHECK;
/* One transaction for all that waits, then the effects behind it. */
void iso_shell_flush(iso_shell *s);
/* Makes the uploads that are complete durable, together. */
void iso_shell_store(iso_shell *s);
/* Steps what effects have answered, until nothing is left. */
void iso_shell_settle(iso_shell *s);
/* Starts the core (after restore) and performs what it resumes. */
void iso_shell_start_core(iso_shell *s);

#endif
