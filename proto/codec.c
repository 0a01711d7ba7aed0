#include "proto/codec.h"
#include "proto/check.h"

#include "proto/isofed.pb-c.h"

#include <inttypes.h>
#include <string.h>

/* ---- the look before unpacking ----
 *
 * protobuf takes the last of several oneof members and merges repeated ones; here a head has
 * exactly one body. The scan also finds id, version and epoch, which the refusal of a bad head
 * needs. */

typedef struct {
    const uint8_t *at, *end;
} reader;

static bool read_varint(reader *r, uint64_t *out)
{
    uint64_t v = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
        if (r->at == r->end)
            return false;
        uint8_t b = *r->at++;
        if (shift < 64)
            v |= (uint64_t)(b & 127) << shift;
        if (!(b & 128)) {
            *out = v;
            return true;
        }
    }
    return false;
}

static bool skip(reader *r, uint64_t bytes)
{
    if (bytes > (uint64_t)(r->end - r->at))
        return false;
    r->at += bytes;
    return true;
}

/* Fills version, id and epoch; returns how many bodies there are, or -1 if the head is malformed.
 */
static int scan(const uint8_t *head, size_t size, iso_msg *out)
{
    enum { VARINT = 0, FIXED64 = 1, BYTES = 2, FIXED32 = 5 };
    reader r = {.at = head, .end = head + size};
    int bodies = 0;
    while (r.at < r.end) {
        uint64_t tag, value = 0;
        if (!read_varint(&r, &tag) || tag >> 3 == 0 || tag >> 3 > UINT32_MAX >> 3)
            return -1;
        uint64_t field = tag >> 3;
        bool holds = true;
        switch (tag & 7) {
        case VARINT:
            holds = read_varint(&r, &value);
            break;
        case FIXED64:
            holds = skip(&r, 8);
            break;
        case BYTES:
            holds = read_varint(&r, &value) && skip(&r, value);
            break;
        case FIXED32:
            holds = skip(&r, 4);
            break;
        default: /* groups */
            holds = false;
        }
        if (!holds)
            return -1;
        if (field == 1 && (tag & 7) == VARINT)
            out->version = (uint32_t)value;
        else if (field == 2 && (tag & 7) == VARINT)
            out->id = value;
        else if (field == 3 && (tag & 7) == VARINT)
            out->epoch = value;
        else if (iso_proto_row((iso_msg_type)field) && (tag & 7) == BYTES)
            bodies++;
    }
    return bodies;
}

/* ---- protobuf to plain ---- */

static bool to_plain(iso_scratch *s, const iso_message_row *row, const ProtobufCMessage *m,
                     void *out);

static bool many_to_plain(iso_scratch *s, const iso_message_row *row, size_t count,
                          ProtobufCMessage *const *items, void *pointer)
{
    uint8_t *list = count ? iso_scratch_alloc(s, count * row->struct_bytes) : NULL;
    if (count && !list)
        return false;
    for (size_t i = 0; i < count; i++)
        if (!to_plain(s, row, items[i], list + i * row->struct_bytes))
            return false;
    memcpy(pointer, &list, sizeof list);
    return true;
}

static bool field_to_plain(iso_scratch *s, const iso_field *f, const ProtobufCFieldDescriptor *d,
                           const ProtobufCMessage *m, uint8_t *out)
{
    const uint8_t *member = (const uint8_t *)m + d->offset;
    uint8_t *to = out + f->offset;
    switch (f->kind) {
    case ISO_FIELD_U32:
    case ISO_FIELD_KIND:
    case ISO_FIELD_ENUM:
    case ISO_FIELD_F32:
        memcpy(to, member, 4);
        break;
    case ISO_FIELD_U64:
        memcpy(to, member, 8);
        break;
    case ISO_FIELD_BOOL:
        *(bool *)(void *)to = *(const protobuf_c_boolean *)(const void *)member != 0;
        break;
    case ISO_FIELD_FIXED: {
        const ProtobufCBinaryData *b = (const void *)member;
        if (b->len)
            memcpy(to, b->data, b->len);
        break;
    }
    case ISO_FIELD_SPAN: {
        const ProtobufCBinaryData *b = (const void *)member;
        *(iso_span *)(void *)to = (iso_span){.data = b->len ? b->data : NULL, .size = b->len};
        break;
    }
    case ISO_FIELD_TEXT:
    case ISO_FIELD_NAME:
        memcpy(to, member, sizeof(char *));
        break;
    case ISO_FIELD_TEXTS:
    case ISO_FIELD_MANY: {
        size_t count = *(const size_t *)(const void *)((const uint8_t *)m + d->quantifier_offset);
        memcpy(out + f->count_offset, &count, sizeof count);
        if (f->kind == ISO_FIELD_TEXTS)
            memcpy(to, member, sizeof(char **));
        else
            return many_to_plain(s, iso_proto_row_of(d->descriptor), count,
                                 *(ProtobufCMessage *const *const *)(const void *)member, to);
        break;
    }
    case ISO_FIELD_ONE: {
        const ProtobufCMessage *inner = *(ProtobufCMessage *const *)(const void *)member;
        return !inner || to_plain(s, iso_proto_row_of(d->descriptor), inner, to);
    }
    }
    return true;
}

/* False on exhaustion of the scratch. `out` has row->struct_bytes bytes. */
static bool to_plain(iso_scratch *s, const iso_message_row *row, const ProtobufCMessage *m,
                     void *out)
{
    memset(out, 0, row->struct_bytes);
    for (size_t i = 0; i < row->field_count; i++)
        if (!field_to_plain(s, &row->fields[i], &row->descriptor->fields[i], m, out))
            return false;
    return true;
}

static void *plain_body(iso_msg *m)
{
    return &m->hello; /* every member of the union starts there */
}

iso_err iso_msg_decode(const void *head, size_t size, iso_arena *arena, iso_msg *out,
                       iso_code *code, iso_error *e)
{
    /* A repeated empty message costs most: two bytes become a scanned member, a struct and a
     * pointer, together below 128 x (T10 measured 52 x); small heads need not pay for large ones.
     */
    enum { GROWTH = 128, BASE_BYTES = 8 * 1024 };
    memset(out, 0, sizeof *out);
    *code = ISO_CODE_BAD_MESSAGE;
    if (size > ISO_HEAD_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "head of %zu bytes, at most %d are read", size,
                        ISO_HEAD_MAX_BYTES);
    int bodies = scan(head, size, out);
    if (bodies != 1)
        return iso_fail(e, ISO_ERR_DATA, "head %s",
                        bodies < 0    ? "is not protobuf"
                        : bodies == 0 ? "holds no message that is known here"
                                      : "holds more than one message");

    size_t room = size * GROWTH + BASE_BYTES;
    iso_scratch s = {.size = room < ISO_ARENA_MAX_BYTES ? room : ISO_ARENA_MAX_BYTES};
    s.block = iso_arena_alloc(arena, s.size, 1);
    if (!s.block) {
        *code = ISO_CODE_BUSY;
        return iso_nomem(e, s.size);
    }
    ProtobufCAllocator allocator = {
        .alloc = iso_scratch_alloc, .free = iso_scratch_free, .allocator_data = &s};
    Isofed__V1__Envelope *envelope = isofed__v1__envelope__unpack(&allocator, size, head);
    if (!envelope)
        return iso_fail(e, ISO_ERR_DATA,
                        "head is not protobuf of this schema, or unpacks too large");
    const iso_message_row *row = iso_proto_row((iso_msg_type)envelope->body_case);
    if (!row) /* the scan saw a body that unpacking did not take: a wrong wire type */
        return iso_fail(e, ISO_ERR_DATA, "head holds no message that is known here");
    out->type = row->type;
    bool is_hello = row->type == ISO_MSG_HELLO && out->version >= ISO_PROTO_VERSION_MIN;
    if (!is_hello &&
        (out->version < ISO_PROTO_VERSION_MIN || out->version > ISO_PROTO_VERSION_MAX)) {
        *code = ISO_CODE_VERSION;
        return iso_fail(e, ISO_ERR_DATA, "protocol version %" PRIu32 ", %d to %d are spoken here",
                        out->version, ISO_PROTO_VERSION_MIN, ISO_PROTO_VERSION_MAX);
    }
    iso_proto_check c = {.heap = &s, .code = code, .e = e};
    c.unknown = envelope->base.n_unknown_fields;
    const ProtobufCMessage *body = (const ProtobufCMessage *)envelope->hello; /* any member */
    iso_err err = iso_proto_check_message(&c, row, body);
    if (err)
        return err;
    if (c.unknown > ISO_UNKNOWN_FIELDS_MAX)
        return iso_fail(e, ISO_ERR_DATA, "head has %zu unknown fields, at most %d are ignored",
                        c.unknown, ISO_UNKNOWN_FIELDS_MAX);
    if (!to_plain(&s, row, body, plain_body(out)))
        return iso_fail(e, ISO_ERR_DATA, "head unpacks too large");
    *code = ISO_CODE_OK;
    return ISO_OK;
}

/* ---- plain to protobuf ---- */

static bool all_zero(const uint8_t *p, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++)
        any = any | p[i];
    return any == 0;
}

static ProtobufCMessage *to_proto(iso_scratch *s, const iso_message_row *row, const void *plain);

static bool many_to_proto(iso_scratch *s, const iso_message_row *row, size_t count,
                          const uint8_t *items, void *pointer)
{
    ProtobufCMessage **list = count ? iso_scratch_alloc(s, count * sizeof *list) : NULL;
    if (count && !list)
        return false;
    for (size_t i = 0; i < count; i++) {
        list[i] = to_proto(s, row, items + i * row->struct_bytes);
        if (!list[i])
            return false;
    }
    memcpy(pointer, &list, sizeof list);
    return true;
}

/* Points into the plain struct: nothing of it is changed, though protobuf-c's types are not const.
 */
static bool field_to_proto(iso_scratch *s, const iso_field *f, const ProtobufCFieldDescriptor *d,
                           const uint8_t *plain, ProtobufCMessage *m)
{
    uint8_t *member = (uint8_t *)m + d->offset;
    const uint8_t *from = plain + f->offset;
    switch (f->kind) {
    case ISO_FIELD_U32:
    case ISO_FIELD_KIND:
    case ISO_FIELD_ENUM:
    case ISO_FIELD_F32:
        memcpy(member, from, 4);
        break;
    case ISO_FIELD_U64:
        memcpy(member, from, 8);
        break;
    case ISO_FIELD_BOOL:
        *(protobuf_c_boolean *)(void *)member = *(const bool *)(const void *)from;
        break;
    case ISO_FIELD_FIXED:
        if (!f->may_lack || !all_zero(from, f->max))
            *(ProtobufCBinaryData *)(void *)member =
                (ProtobufCBinaryData){.len = f->max, .data = (uint8_t *)(uintptr_t)from};
        break;
    case ISO_FIELD_SPAN: {
        const iso_span *span = (const void *)from;
        *(ProtobufCBinaryData *)(void *)member =
            (ProtobufCBinaryData){.len = span->size, .data = (uint8_t *)(uintptr_t)span->data};
        break;
    }
    case ISO_FIELD_TEXT:
    case ISO_FIELD_NAME: {
        const char *text;
        memcpy(&text, from, sizeof text);
        if (text)
            memcpy(member, &text, sizeof text);
        break;
    }
    case ISO_FIELD_TEXTS:
    case ISO_FIELD_MANY: {
        size_t count;
        memcpy(&count, plain + f->count_offset, sizeof count);
        if (count > f->count_max) /* refused by the check; here so that nothing is sized by it */
            return false;
        *(size_t *)(void *)((uint8_t *)m + d->quantifier_offset) = count;
        const uint8_t *items;
        memcpy(&items, from, sizeof items);
        if (f->kind == ISO_FIELD_MANY)
            return many_to_proto(s, iso_proto_row_of(d->descriptor), count, items, member);
        memcpy(member, &items, sizeof items);
        break;
    }
    case ISO_FIELD_ONE: {
        const iso_message_row *row = iso_proto_row_of(d->descriptor);
        if (f->may_lack && all_zero(from, row->struct_bytes))
            break;
        ProtobufCMessage *inner = to_proto(s, row, from);
        if (!inner)
            return false;
        memcpy(member, &inner, sizeof inner);
        break;
    }
    }
    return true;
}

/* NULL on exhaustion or when a list is longer than its limit. */
static ProtobufCMessage *to_proto(iso_scratch *s, const iso_message_row *row, const void *plain)
{
    ProtobufCMessage *m = iso_scratch_alloc(s, row->descriptor->sizeof_message);
    if (!m)
        return NULL;
    protobuf_c_message_init(row->descriptor, m);
    for (size_t i = 0; i < row->field_count; i++)
        if (!field_to_proto(s, &row->fields[i], &row->descriptor->fields[i], plain, m))
            return NULL;
    return m;
}

iso_err iso_msg_encode(const iso_msg *m, uint8_t *out, size_t cap, size_t *size, iso_error *e)
{
    /* The largest body is a StatusReply of 32 notices, about 100 bytes each. */
    _Alignas(16) uint8_t block[16 * 1024];
    iso_scratch s = {.block = block, .size = sizeof block};
    iso_code code = ISO_CODE_OK;
    *size = 0;
    const iso_message_row *row = iso_proto_row(m->type);
    if (!row)
        return iso_fail(e, ISO_ERR_INTERNAL, "message type %d", (int)m->type);
    ProtobufCMessage *body = to_proto(&s, row, &m->hello);
    if (!body)
        return iso_fail(e, ISO_ERR_INTERNAL, "%s has a list that is too long",
                        row->descriptor->short_name);
    iso_proto_check c = {.code = &code, .e = e};
    if (iso_proto_check_message(&c, row, body)) {
        iso_error_context(e, "not sent");
        if (e)
            e->code = ISO_ERR_INTERNAL;
        return ISO_ERR_INTERNAL;
    }
    Isofed__V1__Envelope envelope = ISOFED__V1__ENVELOPE__INIT;
    envelope.version = m->version ? m->version : ISO_PROTO_VERSION_MAX;
    envelope.id = m->id;
    envelope.epoch = m->epoch;
    envelope.body_case = (Isofed__V1__Envelope__BodyCase)m->type;
    envelope.hello = (Isofed__V1__Hello *)body; /* any member of the union */
    size_t need = isofed__v1__envelope__get_packed_size(&envelope);
    if (need > ISO_HEAD_MAX_BYTES || need > cap)
        return iso_fail(e, ISO_ERR_INTERNAL, "%s needs %zu bytes, there is room for %zu",
                        row->descriptor->short_name, need,
                        cap < ISO_HEAD_MAX_BYTES ? cap : (size_t)ISO_HEAD_MAX_BYTES);
    *size = isofed__v1__envelope__pack(&envelope, out);
    return ISO_OK;
}

/* ---- small helpers of every shell ---- */

uint32_t iso_proto_pick_version(uint32_t min, uint32_t max)
{
    uint32_t highest = max < ISO_PROTO_VERSION_MAX ? max : ISO_PROTO_VERSION_MAX;
    return highest >= min && highest >= ISO_PROTO_VERSION_MIN ? highest : 0;
}

iso_msg iso_msg_refusal(iso_code code, uint64_t about_id, uint64_t retry_after_ms)
{
    return (iso_msg){
        .type = ISO_MSG_ERROR,
        .error = {.code = code,
                  .sentence = iso_code_sentence(code),
                  .retry_after_ms = retry_after_ms,
                  .about_id = about_id},
    };
}
