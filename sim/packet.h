/* A message under way: a deep copy of what a core said, with its second frame. With `wire:
 * protobuf` it is encoded and decoded by proto/codec as the daemons do; else its struct is copied,
 * which is an order of magnitude faster and loses nothing that a core looks at. */
#ifndef ISO_SIM_PACKET_H
#define ISO_SIM_PACKET_H

#include "proto/message.h"
#include "sim/disk.h"

enum { ISO_PACKET_CLASSES = 12 };

typedef struct iso_packet {
    struct iso_packet *next; /* in a free list */
    uint32_t size_class, refs;
    uint32_t bytes;      /* on the wire, both frames; about, with wire: struct */
    void *line;          /* the connection it travels on; the network's */
    const char *fault;   /* not NULL: it does not decode, and why */
    iso_sim_blob *blob;  /* second frame: a piece of it, or NULL */
    const uint8_t *body; /* second frame */
    size_t body_bytes;
    const iso_msg *msg; /* what a core gets; valid as far as its type reaches */
    max_align_t room[];
} iso_packet;

typedef struct {
    iso_packet *free[ISO_PACKET_CLASSES];
    iso_arena arena;
    size_t live;
} iso_packet_pool;

/* `blob` (may be NULL) is taken with a reference; else `body` is copied. NULL on exhaustion, or
 * when the message cannot be encoded: *e says so. */
iso_packet *iso_packet_make(iso_packet_pool *pool, const iso_msg *m, iso_sim_blob *blob,
                            const uint8_t *body, size_t body_bytes, bool is_encoded, iso_error *e);
void iso_packet_drop(iso_packet_pool *pool, iso_sim_pool *blobs, iso_packet *p);
void iso_packet_pool_free(iso_packet_pool *pool);

#endif
