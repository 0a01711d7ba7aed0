#include "proto/check.h"
#include "core/utf8.h"

#include <math.h>
#include <string.h>

enum { PIECE_HEADER_BYTES = 8, PIECE_ALIGNMENT = 8 };

void *iso_scratch_alloc(void *ctx, size_t size)
{
    iso_scratch *s = ctx;
    if (size > ISO_ARENA_MAX_BYTES)
        return NULL;
    size_t need =
        PIECE_HEADER_BYTES + ((size + PIECE_ALIGNMENT - 1) & ~(size_t)(PIECE_ALIGNMENT - 1));
    if (need > s->size - s->used)
        return NULL;
    uint8_t *p = s->block + s->used;
    s->used += need;
    uint64_t asked = size;
    memcpy(p, &asked, sizeof asked);
    return p + PIECE_HEADER_BYTES;
}

void iso_scratch_free(void *ctx, void *p)
{
    (void)ctx;
    (void)p; /* all at once, with the arena */
}

/* Bytes asked for when p was allocated; 0 if p is not a piece of this scratch (a default value). */
static size_t piece_size(const iso_scratch *s, const void *p)
{
    uintptr_t at = (uintptr_t)p, start = (uintptr_t)s->block;
    if (at < start + PIECE_HEADER_BYTES || at >= start + s->used)
        return 0;
    uint64_t asked;
    memcpy(&asked, (const uint8_t *)p - PIECE_HEADER_BYTES, sizeof asked);
    return (size_t)asked;
}

static iso_err refuse(iso_proto_check *c, iso_code code, const iso_message_row *row,
                      const iso_field *f, const char *why)
{
    *c->code = code;
    return iso_fail(c->e, ISO_ERR_DATA, "%s.%s %s", row->descriptor->short_name, f->name, why);
}

static iso_err check_text(iso_proto_check *c, const iso_message_row *row, const iso_field *f,
                          const char *text)
{
    size_t n = strlen(text);
    size_t piece = c->heap ? piece_size(c->heap, text) : 0;
    if (n > f->max)
        return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "is too long");
    if (piece && piece != n + 1)
        return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "holds a NUL");
    if (!iso_utf8_is_valid(text, n))
        return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "is not UTF-8");
    if (n < f->min || (f->kind == ISO_FIELD_NAME && !iso_name_is_valid(text)))
        return refuse(c, ISO_CODE_BAD_MESSAGE, row, f,
                      "should be 1 to 64 of letters, digits and \"._-\"");
    return ISO_OK;
}

static iso_err check_field(iso_proto_check *c, const iso_message_row *row, const iso_field *f,
                           const ProtobufCFieldDescriptor *d, const ProtobufCMessage *m)
{
    const uint8_t *member = (const uint8_t *)m + d->offset;
    size_t count = 0;
    iso_err err = ISO_OK;
    switch (f->kind) {
    case ISO_FIELD_U32:
        if (*(const uint32_t *)(const void *)member > f->max)
            return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "is out of range");
        break;
    case ISO_FIELD_U64:
        if (*(const uint64_t *)(const void *)member > f->max)
            return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "is out of range");
        break;
    case ISO_FIELD_KIND:
        if (*(const uint32_t *)(const void *)member > f->max)
            return refuse(c, ISO_CODE_UNKNOWN_ENUM, row, f, "is not known");
        break;
    case ISO_FIELD_ENUM:
        if (!protobuf_c_enum_descriptor_get_value(d->descriptor,
                                                  *(const int *)(const void *)member))
            return refuse(c, ISO_CODE_UNKNOWN_ENUM, row, f, "is not known");
        break;
    case ISO_FIELD_BOOL:
        break;
    case ISO_FIELD_F32:
        if (!isfinite(*(const float *)(const void *)member))
            return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "is not finite");
        break;
    case ISO_FIELD_FIXED:
    case ISO_FIELD_SPAN: {
        const ProtobufCBinaryData *b = (const void *)member;
        bool lacks = b->len == 0 && f->may_lack;
        if (!lacks && (b->len < f->min || b->len > f->max))
            return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "has a wrong length");
        break;
    }
    case ISO_FIELD_TEXT:
    case ISO_FIELD_NAME:
        return check_text(c, row, f, *(char *const *)(const void *)member);
    case ISO_FIELD_TEXTS:
    case ISO_FIELD_MANY:
        count = *(const size_t *)(const void *)((const uint8_t *)m + d->quantifier_offset);
        if (count > f->count_max)
            return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "has too many elements");
        for (size_t i = 0; i < count && !err; i++) {
            const void *item = (*(void *const *const *)(const void *)member)[i];
            err = f->kind == ISO_FIELD_TEXTS
                      ? check_text(c, row, f, item)
                      : iso_proto_check_message(c, iso_proto_row_of(d->descriptor), item);
        }
        break;
    case ISO_FIELD_ONE: {
        const ProtobufCMessage *inner = *(ProtobufCMessage *const *)(const void *)member;
        if (inner)
            return iso_proto_check_message(c, iso_proto_row_of(d->descriptor), inner);
        if (!f->may_lack)
            return refuse(c, ISO_CODE_BAD_MESSAGE, row, f, "is missing");
        break;
    }
    }
    return err;
}

iso_err iso_proto_check_message(iso_proto_check *c, const iso_message_row *row,
                                const ProtobufCMessage *m)
{
    c->unknown += m->n_unknown_fields;
    iso_err err = ISO_OK;
    for (size_t i = 0; i < row->field_count && !err; i++)
        err = check_field(c, row, &row->fields[i], &row->descriptor->fields[i], m);
    return err;
}
