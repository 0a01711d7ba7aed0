/* Lines of the server: who is connected by which routing id and descriptor, and the few messages
 * that wait for a slow one (specs/security.md S25, S59). No socket is touched here. */
#ifndef ISO_COORDINATOR_LINES_H
#define ISO_COORDINATOR_LINES_H

#include "coordinator/index.h"
#include "core/transport.h"

typedef struct iso_waiting {
    struct iso_waiting *next;
    size_t head_bytes, body_bytes;
    uint8_t bytes[]; /* head, body */
} iso_waiting;

typedef struct {
    iso_peer id;
    uint8_t routing[16]; /* length, then the library's own bytes */
    iso_peer_name name;
    int fd; /* -1: unknown */
    iso_waiting *first, *last;
    size_t waiting_count, waiting_bytes;
    uint64_t cut_at; /* 0: not */
    size_t at;       /* its place in the list */
} iso_line;

typedef struct {
    iso_line **items;
    size_t count, capacity;
    iso_index by_routing, by_id;
    iso_peer next_id;
    iso_peer *gone; /* not yet told */
    size_t gone_count, gone_capacity;
} iso_lines;

iso_line *iso_lines_add(iso_lines *l, const uint8_t routing[16], const iso_peer_name *name);
iso_line *iso_lines_by_routing(const iso_lines *l, const uint8_t routing[16]);
iso_line *iso_lines_by_id(const iso_lines *l, iso_peer id);
/* Frees the line and remembers its number for iso_lines_next_gone(). */
void iso_lines_drop(iso_lines *l, iso_line *line);
bool iso_lines_next_gone(iso_lines *l, iso_peer *out);
void iso_lines_free(iso_lines *l);

/* Copies a message to the end of what waits; false above the ceilings of S59. */
bool iso_line_push(iso_line *line, const void *head, size_t head_bytes, const void *body,
                   size_t body_bytes);
/* The first that waits has left. */
void iso_line_pop(iso_line *line);

#endif
