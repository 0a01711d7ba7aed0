/* What protobuf-c may allocate and what a message may hold, private to proto/ (specs/security.md
 * S48): the bounded scratch and the walk over a message that compares it with the field table. */
#ifndef ISO_PROTO_CHECK_H
#define ISO_PROTO_CHECK_H

#include "core/err.h"
#include "proto/fields.h"

/* A bump allocator over one block. Each piece is preceded by its size, which tells how long a
 * string was on the wire: protobuf-c keeps only the pointer, and a NUL inside would hide the rest.
 */
typedef struct {
    uint8_t *block; /* 8-byte aligned; not owned */
    size_t size, used;
} iso_scratch;

void *iso_scratch_alloc(void *scratch, size_t size); /* NULL when the block is full */
void iso_scratch_free(void *scratch, void *p);       /* nothing: all at once, with the block */

typedef struct {
    const iso_scratch *heap; /* where strings of a decoded message lie; NULL when encoding */
    size_t unknown;          /* out: unknown fields seen, added up */
    iso_code *code;          /* out: BAD_MESSAGE or UNKNOWN_ENUM on refusal */
    iso_error *e;
} iso_proto_check;

/* Every field of `m` and of what it holds is within its row's limits. */
iso_err iso_proto_check_message(iso_proto_check *c, const iso_message_row *row,
                                const ProtobufCMessage *m) ISO_MUST_CHECK;

#endif
