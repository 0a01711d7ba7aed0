/* The coordinator's daemon: the core with sockets, disk and worker around it. One thread owns them
 * all (S82); the ZAP handler and libzmq's I/O have their own. */
#ifndef ISO_COORDINATOR_DAEMON_H
#define ISO_COORDINATOR_DAEMON_H

#include "core/log.h"

typedef struct {
    const char *dir;        /* holds coordinator.yaml, keys/, root/ ... */
    const char *passphrase; /* of the key files, NULL: bare */
    const char *program;    /* path of this program: the worker lies beside it */
    bool check_config;      /* read everything, change nothing, return */
    iso_log *log;
} iso_daemon_options;

/* Runs until SIGTERM, SIGINT or `stop`. ISO_OK after a clean stop. */
iso_err iso_coord_daemon_run(const iso_daemon_options *options, iso_error *e) ISO_MUST_CHECK;

#endif
