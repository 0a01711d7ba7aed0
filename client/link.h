/* The site's one connection: a DEALER over TCP with CURVE, on a fresh socket for every try
 * (specs/security.md S42, S47, S56, S59). Frames in, messages out; no decision is taken here. */
#ifndef ISO_CLIENT_LINK_H
#define ISO_CLIENT_LINK_H

#include "client/agent.h"

typedef struct iso_link iso_link;

typedef struct {
    char host[256];
    uint16_t port;
    uint8_t coordinator_pk[32];
    const uint8_t *transport_pk, *transport_secret; /* borrowed: 32 bytes each */
    uint64_t heartbeat_ms;
} iso_link_options;

iso_err iso_link_open(iso_link **out, const iso_link_options *options, iso_error *e) ISO_MUST_CHECK;
void iso_link_close(iso_link *l);

/* Closes what is open and dials; the outcome comes as an event with this number. ISO_ERR_RESOURCE
 * when no socket can be had or an option does not take. */
iso_err iso_link_connect(iso_link *l, uint64_t number, iso_error *e) ISO_MUST_CHECK;
void iso_link_hang_up(iso_link *l, uint64_t number);

/* Queues a message with its second frame (may be empty). Above 64 messages or 4 MiB waiting the
 * link is given up (S59): the next event says so. */
iso_err iso_link_send(iso_link *l, const iso_msg *m, const void *body, size_t body_bytes,
                      iso_error *e) ISO_MUST_CHECK;

/* The next LINK_UP, LINK_DOWN or MESSAGE, or false. What the event points to lives until the next
 * call. */
bool iso_link_next(iso_link *l, iso_agent_event *ev);

/* Waits until something of the link or of `fds` (readable) happens, at most timeout_ms. ready[i]
 * tells for fds[i]. */
iso_err iso_link_wait(iso_link *l, const int *fds, bool *ready, size_t count, long timeout_ms,
                      iso_error *e) ISO_MUST_CHECK;

/* Application bytes since open: both frames of every message, without what CURVE and TCP add. */
void iso_link_bytes(const iso_link *l, uint64_t *sent, uint64_t *received);

#endif
