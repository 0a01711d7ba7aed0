/* Enrolment: one line from central IT makes this folder a site (specs/security.md 2.3). */
#ifndef ISO_CLIENT_ENROLL_H
#define ISO_CLIENT_ENROLL_H

#include "client/config.h"
#include "crypto/key.h"

typedef struct {
    const char *passphrase; /* seals keys that are made here; NULL: bare (`kdf: none`) */
    uint64_t timeout_ms;    /* 0: 30 s */
} iso_enroll_options;

typedef struct {
    iso_enrolment enrolment;
    iso_site_state state; /* active, or pending: waits for the operator's approval */
    char fingerprint[ISO_FINGERPRINT_TEXT];
} iso_enroll_result;

/* Makes DIR/keys if they are missing, connects with the token's key, enrols under `name` and writes
 * DIR/enrolment.json. Asking again with the same line and keys gives the same answer (S18). A line
 * with a wrong checksum is refused before anything is sent, as is a server whose key differs from
 * the line's. ISO_ERR_USAGE, ISO_ERR_TRUST, ISO_ERR_RESOURCE with the line for the person. */
iso_err iso_client_enroll(const char *dir, const char *line, const char *name,
                          const iso_enroll_options *options, iso_enroll_result *out,
                          iso_error *e) ISO_MUST_CHECK;

/* DIR/keys/transport.key and sign.key, made unless they are there. */
iso_err iso_client_make_keys(const char *dir, const char *passphrase, iso_error *e) ISO_MUST_CHECK;

#endif
