/* The table behind the codec, private to proto/: one row a field of the schema, with where it lies
 * in the plain struct and what it may be (specs/security.md S48). A new message is one table here,
 * one row in iso_proto_messages and one struct in message.h. */
#ifndef ISO_PROTO_FIELDS_H
#define ISO_PROTO_FIELDS_H

#include "proto/message.h"

#include <protobuf-c/protobuf-c.h>

typedef enum {
    ISO_FIELD_U32,  /* at most `max` */
    ISO_FIELD_U64,  /* at most `max` */
    ISO_FIELD_KIND, /* uint32 that stands for an enum of ours: above `max` is UNKNOWN_ENUM */
    ISO_FIELD_ENUM, /* enum of the schema; an int of ours */
    ISO_FIELD_BOOL,
    ISO_FIELD_F32,   /* finite */
    ISO_FIELD_FIXED, /* `max` bytes in place; `may_lack`: absent is all zero */
    ISO_FIELD_SPAN,  /* iso_span of `min` to `max` bytes; `may_lack`: or none */
    ISO_FIELD_TEXT,  /* const char *, `min` to `max` bytes */
    ISO_FIELD_NAME,  /* the same, and iso_name_is_valid() */
    ISO_FIELD_TEXTS, /* const char *const *, count; at most `count_max` of at most `max` bytes */
    ISO_FIELD_ONE,   /* nested struct in place; `may_lack`: absent is all zero */
    ISO_FIELD_MANY   /* pointer to structs, count; at most `count_max` */
} iso_field_kind;

typedef struct {
    const char *name; /* in the schema */
    iso_field_kind kind;
    size_t offset, count_offset; /* in the plain struct */
    uint64_t min, max;
    size_t count_max;
    bool may_lack;
} iso_field;

typedef struct {
    iso_msg_type type; /* ISO_MSG_NONE for nested messages */
    const ProtobufCMessageDescriptor *descriptor;
    size_t struct_bytes;
    const iso_field *fields; /* in the order of the descriptor: by number */
    size_t field_count;
} iso_message_row;

extern const iso_message_row iso_proto_messages[];
extern const size_t iso_proto_message_count;

/* The row of a type, or of a descriptor; NULL if there is none. */
const iso_message_row *iso_proto_row(iso_msg_type type);
const iso_message_row *iso_proto_row_of(const ProtobufCMessageDescriptor *d);

#endif
