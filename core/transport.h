/* Seam: messages to and from peers. A core names peers by number; the shell knows their sockets. */
#ifndef ISO_CORE_TRANSPORT_H
#define ISO_CORE_TRANSPORT_H

#include <stddef.h>
#include <stdint.h>

/* One connection for as long as it lives; never reused within a process. 0 is nobody. */
typedef uint64_t iso_peer;

/* Who the transport says the peer is (ZAP User-Id); the application's messages add nothing to it.
 */
typedef enum { ISO_PEER_SITE = 1, ISO_PEER_TOKEN = 2 } iso_peer_kind;
typedef struct {
    iso_peer_kind kind;
    uint8_t id[16]; /* site id, or token id in the first four bytes */
} iso_peer_name;

#endif
