/* The one public socket: a ROUTER with CURVE behind a ZAP handler (specs/security.md 4.1, 4.2).
 *
 * Two frames a message, each bounded; a third is drained and its sender cut. Peers are numbered
 * here; a number is never used twice. Sending never blocks: what does not go at once waits in a
 * short queue of its own (S59). No decision about messages is taken here. */
#ifndef ISO_COORDINATOR_SERVER_H
#define ISO_COORDINATOR_SERVER_H

#include "coordinator/zap.h"
#include "core/log.h"

#include <poll.h>

typedef struct iso_server iso_server;

typedef struct {
    const char *host;                               /* address to bind */
    uint16_t port;                                  /* 0: any */
    bool is_port_a_wish;                            /* when it is taken, any other will do */
    const uint8_t *transport_pk, *transport_secret; /* 32 bytes each, borrowed during open */
    uint32_t connections, handshakes_per_s, handshake_burst;
    const iso_zap_key *keys; /* admitted before the port opens: a site that waits for a restart */
    size_t key_count;        /* must not be told that it is unknown. Borrowed during open */
    iso_log *log;
} iso_server_options;

/* Starts the ZAP handler, proves by a self-test that an unknown key is refused and a known one
 * admitted (S43; ISO_ERR_TRUST if not), then binds. Port taken: ISO_ERR_RESOURCE naming it. */
iso_err iso_server_open(iso_server **out, const iso_server_options *o, iso_error *e) ISO_MUST_CHECK;
void iso_server_close(iso_server *s); /* NULL is fine */
uint16_t iso_server_port(const iso_server *s);
/* Replaces the set of keys that may connect. */
iso_err iso_server_admit(iso_server *s, const iso_zap_key *keys, size_t count,
                         iso_error *e) ISO_MUST_CHECK;

typedef struct {
    iso_peer peer;
    iso_peer_name name;
    const char *fault; /* not NULL: the frames were refused, for this reason */
    const void *head, *body;
    size_t head_bytes, body_bytes;
} iso_server_message;
/* The next message, or false. Its bytes live until the next call. */
bool iso_server_next(iso_server *s, iso_server_message *m);
/* A peer that is gone, once each; false: none. */
bool iso_server_next_gone(iso_server *s, iso_peer *peer);

void iso_server_send(iso_server *s, iso_peer peer, const void *head, size_t head_bytes,
                     const void *body, size_t body_bytes);
/* Shuts the connection down shortly after, so that what was sent before can leave. */
void iso_server_cut(iso_server *s, iso_peer peer);
/* Cuts at most `most` of the newest peers that `may_cut` gives away; how many. */
typedef bool iso_server_may_cut_fn(void *arg, iso_peer peer, const iso_peer_name *name);
size_t iso_server_cut_newest(iso_server *s, iso_server_may_cut_fn *may_cut, void *arg, size_t most);
/* After a reload of the core: everybody comes back and says Hello again. */
void iso_server_cut_all(iso_server *s);
/* Queues that may go on, cuts that are due. `now_ms` monotonic. */
void iso_server_tick(iso_server *s, uint64_t now_ms);

/* Waits for the socket or one of `fds`, at most timeout_ms; revents are set. */
iso_err iso_server_wait(iso_server *s, struct pollfd *fds, size_t count, long timeout_ms,
                        iso_error *e) ISO_MUST_CHECK;

#endif
