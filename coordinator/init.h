/* `isofed init coordinator DIR`: a folder that starts unedited (specs/security.md S15).
 *
 *   coordinator.yaml     commented configuration
 *   keys/                transport.key, audit.key, epoch
 *   merge/merge.key      opens sealed updates; only the worker reads it (S19)
 *   release/             minisign.key, minisign.pub
 *   root/                minisign.key (move it away), root.pub, roster.json, roster.json.minisig */
#ifndef ISO_COORDINATOR_INIT_H
#define ISO_COORDINATOR_INIT_H

#include "core/err.h"

typedef struct {
    const char *name;       /* of the federation; NULL: "isofed" */
    const char *listen;     /* NULL: 127.0.0.1:0 */
    const char *advertise;  /* may be NULL */
    const char *backbone;   /* folder; NULL: "backbone" below DIR */
    const char *passphrase; /* NULL: bare key files, mode 0600 */
} iso_coordinator_init_options;

/* Makes DIR if it is missing. A folder that holds a coordinator.yaml already is refused. */
iso_err iso_coordinator_init(const char *dir, const iso_coordinator_init_options *options,
                             iso_error *e) ISO_MUST_CHECK;

#endif
