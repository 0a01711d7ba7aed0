/* Who may connect: the ZAP handler of the coordinator's context (specs/security.md S43, S44).
 *
 * A thread answers libzmq's questions from a set in memory; the state thread replaces the set by
 * message and waits until the new one is in force. No lock, no disk. */
#ifndef ISO_COORDINATOR_ZAP_H
#define ISO_COORDINATOR_ZAP_H

#include "core/err.h"
#include "core/transport.h"

#include <stdbool.h>

typedef struct iso_zap iso_zap;

typedef struct {
    uint8_t pk[32];
    iso_peer_name name;
} iso_zap_key;

#define ISO_ZAP_DOMAIN "isofed"

/* `context` is a zmq context. Limits handshakes by a token bucket (S44). */
iso_err iso_zap_start(iso_zap **out, void *context, uint32_t per_s, uint32_t burst,
                      iso_error *e) ISO_MUST_CHECK;
void iso_zap_stop(iso_zap *z); /* NULL is fine; before the context ends */
/* Replaces the set; in force when it returns. Keys are copied. */
iso_err iso_zap_admit(iso_zap *z, const iso_zap_key *keys, size_t count,
                      iso_error *e) ISO_MUST_CHECK;
/* Sets every option of S42 on a ROUTER socket, and reads each back: libzmq ignores what it does not
 * know, and one missing option opens the door (T1, T2). */
iso_err iso_zap_socket_options(void *socket, const uint8_t transport_secret[32],
                               iso_error *e) ISO_MUST_CHECK;

/* Proof at every start, before the public bind, that ZAP is asked and refuses (S43): binds `socket`
 * to a loopback port of its own, knocks with an unknown key (must be refused with 400) and with a
 * known one (its message must arrive), unbinds. ISO_ERR_TRUST when either fails. */
iso_err iso_zap_selftest(void *context, void *socket, iso_zap *zap, const uint8_t server_pk[32],
                         iso_error *e) ISO_MUST_CHECK;

/* "s:<hex>" or "t:<hex>" to a name; false if it is neither. */
bool iso_zap_parse_user(const char *user_id, iso_peer_name *out);

#endif
