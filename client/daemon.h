/* The site's daemon: ties the core to clock, store, line, images and disk (client/daemon.c), and
 * answers on the control socket (client/daemon_status.c). */
#ifndef ISO_CLIENT_DAEMON_H
#define ISO_CLIENT_DAEMON_H

#include "client/agent.h"
#include "client/config.h"
#include "client/control.h"
#include "client/files.h"
#include "client/link.h"
#include "client/spool.h"
#include "client/trainer.h"
#include "core/state_sqlite.h"
#include "crypto/key.h"

typedef struct iso_queued_event iso_queued_event;

typedef struct {
    const char *dir;
    iso_client_config config;
    iso_enrolment enrolment;
    iso_arena arena; /* of the configuration */
    iso_log log;
    iso_clock clock;
    iso_key transport, sign;
    iso_state *state;
    iso_store store;
    iso_client_files files;
    iso_backbone *backbone;
    iso_client_trainer *trainer;
    iso_trainer seam;
    iso_link *link;
    iso_control control;
    iso_agent_task tasks[ISO_CLIENT_TASKS_MAX];
    iso_agent *agent;
    iso_agent_effects effects;
    iso_queued_event *first, *last; /* answers to effects, fed after the step that asked */
    iso_spool_state spool[ISO_CLIENT_TASKS_MAX];
    bool has_spool[ISO_CLIENT_TASKS_MAX];
    _Atomic uint64_t skipped[ISO_CLIENT_TASKS_MAX]; /* files that are no images; engine's thread */
    iso_time next_scan_ms, next_disk_ms, next_file_ms, started_ms;
    int signal_fd;
    bool should_stop;
} iso_daemon;

typedef struct {
    const char *passphrase; /* of both key files; NULL: they are bare */
    FILE *log_out;
} iso_daemon_options;

/* Opens everything; ISO_ERR_RESOURCE naming the pid when the folder is in use. */
iso_err iso_daemon_open(iso_daemon *d, const char *dir, const iso_daemon_options *options,
                        iso_error *e) ISO_MUST_CHECK;
/* Until SIGTERM, SIGINT, the control command `stop`, or an error that a restart must mend. */
iso_err iso_daemon_run(iso_daemon *d, iso_error *e) ISO_MUST_CHECK;
void iso_daemon_close(iso_daemon *d);

/* The event to the core, then every effect and every event that those cause. */
iso_err iso_daemon_feed(iso_daemon *d, const iso_agent_event *ev, iso_error *e) ISO_MUST_CHECK;

/* An iso_control_fn; ctx is the daemon. */
iso_json *iso_daemon_answer(void *ctx, const char *command, const iso_json *args, const char **code,
                            iso_error *e);

/* Reads DIR/keys/transport.key and sign.key. */
iso_err iso_client_keys_read(const char *dir, const char *passphrase, iso_key *transport,
                             iso_key *sign, iso_error *e) ISO_MUST_CHECK;

#endif
