/* Frame 1 of the wire: every message there and back, every limit, protobuf's laxness (S47 - S50,
 * T10). */
#include "core/rng.h"
#include "proto/codec.h"
#include "proto/fields.h"

#include "proto/isofed.pb-c.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- random messages that keep their limits ---- */

typedef struct {
    iso_rng rng;
    iso_arena arena;
    bool full; /* every list and text at its longest that fits a head */
} maker;

static const char *make_text(maker *k, const iso_field *f)
{
    static const char *const parts[] = {"a", "Z", "7", "-", "é", "試", "\xf0\x9f\x8f\xad", " "};
    size_t max = f->max > 300 ? 300 : (size_t)f->max;
    size_t n = k->full ? max : iso_rng_below(&k->rng, (uint32_t)max + 1);
    char *text = iso_arena_calloc(&k->arena, n + 8, 1);
    size_t at = 0;
    if (f->kind == ISO_FIELD_NAME) {
        n = n ? n : 1;
        memset(text, 'p', n);
        return text;
    }
    while (at < n) {
        const char *part = parts[iso_rng_below(&k->rng, 8)];
        if (at + strlen(part) > n)
            part = "x";
        memcpy(text + at, part, strlen(part));
        at += strlen(part);
    }
    return text;
}

static void make_struct(maker *k, const iso_message_row *row, uint8_t *out);

static void make_field(maker *k, const iso_message_row *row, size_t i, uint8_t *out)
{
    const iso_field *f = &row->fields[i];
    const ProtobufCFieldDescriptor *d = &row->descriptor->fields[i];
    uint8_t *to = out + f->offset;
    uint64_t v = iso_rng_u64(&k->rng) >> iso_rng_below(&k->rng, 64);
    bool lacks = f->may_lack && !k->full && iso_rng_below(&k->rng, 3) == 0;
    switch (f->kind) {
    case ISO_FIELD_U32:
    case ISO_FIELD_KIND: {
        uint32_t w = k->full ? (uint32_t)f->max : (uint32_t)(v % (f->max + 1));
        memcpy(to, &w, 4);
        break;
    }
    case ISO_FIELD_U64: {
        uint64_t w = f->max == UINT64_MAX ? v : v % (f->max + 1);
        memcpy(to, &w, 8);
        break;
    }
    case ISO_FIELD_ENUM: {
        const ProtobufCEnumDescriptor *e = d->descriptor;
        int w = e->values[iso_rng_below(&k->rng, e->n_values)].value;
        memcpy(to, &w, 4);
        break;
    }
    case ISO_FIELD_BOOL:
        *(bool *)(void *)to = v & 1;
        break;
    case ISO_FIELD_F32: {
        float w = (float)iso_rng_normal(&k->rng);
        memcpy(to, &w, 4);
        break;
    }
    case ISO_FIELD_FIXED:
        for (size_t b = 0; b < f->max && !lacks; b++)
            to[b] = (uint8_t)(iso_rng_u32(&k->rng) | 1);
        break;
    case ISO_FIELD_SPAN:
        if (!lacks) {
            uint8_t *data = iso_arena_calloc(&k->arena, f->max, 1);
            memset(data, 0x5a, f->max);
            size_t n = f->min + iso_rng_below(&k->rng, (uint32_t)(f->max - f->min) + 1);
            *(iso_span *)(void *)to = (iso_span){.data = n ? data : NULL, .size = n};
        }
        break;
    case ISO_FIELD_TEXT:
    case ISO_FIELD_NAME: {
        const char *text = make_text(k, f);
        memcpy(to, &text, sizeof text);
        break;
    }
    case ISO_FIELD_TEXTS: {
        size_t n = k->full ? 40 : iso_rng_below(&k->rng, 8);
        const char **list = iso_arena_calloc(&k->arena, n + 1, sizeof *list);
        for (size_t j = 0; j < n; j++)
            list[j] = make_text(k, f);
        memcpy(to, &list, sizeof list);
        memcpy(out + f->count_offset, &n, sizeof n);
        break;
    }
    case ISO_FIELD_ONE:
        if (!lacks)
            make_struct(k, iso_proto_row_of(d->descriptor), to);
        break;
    case ISO_FIELD_MANY: {
        const iso_message_row *inner = iso_proto_row_of(d->descriptor);
        size_t n = k->full ? f->count_max : iso_rng_below(&k->rng, (uint32_t)f->count_max + 1);
        uint8_t *list = iso_arena_calloc(&k->arena, n + 1, inner->struct_bytes);
        for (size_t j = 0; j < n; j++)
            make_struct(k, inner, list + j * inner->struct_bytes);
        memcpy(to, &list, sizeof list);
        memcpy(out + f->count_offset, &n, sizeof n);
        break;
    }
    }
}

static void make_struct(maker *k, const iso_message_row *row, uint8_t *out)
{
    for (size_t i = 0; i < row->field_count; i++)
        make_field(k, row, i, out);
}

/* ---- equal by meaning: pointers are followed, padding is not looked at ---- */

static void assert_same(const iso_message_row *row, const uint8_t *a, const uint8_t *b);

static void assert_same_field(const iso_message_row *row, size_t i, const uint8_t *a,
                              const uint8_t *b)
{
    const iso_field *f = &row->fields[i];
    const uint8_t *x = a + f->offset, *y = b + f->offset;
    size_t n = 0, m = 0;
    switch (f->kind) {
    case ISO_FIELD_U32:
    case ISO_FIELD_KIND:
    case ISO_FIELD_ENUM:
    case ISO_FIELD_F32:
        assert_memory_equal(x, y, 4);
        break;
    case ISO_FIELD_U64:
        assert_memory_equal(x, y, 8);
        break;
    case ISO_FIELD_BOOL:
        assert_int_equal(*(const bool *)(const void *)x, *(const bool *)(const void *)y);
        break;
    case ISO_FIELD_FIXED:
        assert_memory_equal(x, y, f->max);
        break;
    case ISO_FIELD_SPAN: {
        const iso_span *s = (const void *)x, *t = (const void *)y;
        assert_int_equal(s->size, t->size);
        if (s->size)
            assert_memory_equal(s->data, t->data, s->size);
        break;
    }
    case ISO_FIELD_TEXT:
    case ISO_FIELD_NAME:
        assert_string_equal(*(char *const *)(const void *)x, *(char *const *)(const void *)y);
        break;
    case ISO_FIELD_TEXTS:
    case ISO_FIELD_MANY:
        memcpy(&n, a + f->count_offset, sizeof n);
        memcpy(&m, b + f->count_offset, sizeof m);
        assert_int_equal(n, m);
        for (size_t j = 0; j < n; j++) {
            if (f->kind == ISO_FIELD_TEXTS) {
                assert_string_equal((*(char *const *const *)(const void *)x)[j],
                                    (*(char *const *const *)(const void *)y)[j]);
            } else {
                const iso_message_row *inner =
                    iso_proto_row_of(row->descriptor->fields[i].descriptor);
                const uint8_t *p, *q;
                memcpy(&p, x, sizeof p);
                memcpy(&q, y, sizeof q);
                assert_same(inner, p + j * inner->struct_bytes, q + j * inner->struct_bytes);
            }
        }
        break;
    case ISO_FIELD_ONE: {
        const iso_message_row *inner = iso_proto_row_of(row->descriptor->fields[i].descriptor);
        assert_same(inner, x, y);
        break;
    }
    }
}

static void assert_same(const iso_message_row *row, const uint8_t *a, const uint8_t *b)
{
    for (size_t i = 0; i < row->field_count; i++)
        assert_same_field(row, i, a, b);
}

/* ---- the table against the schema ---- */

static void S48_every_field_of_the_schema_has_a_row(void **state)
{
    (void)state;
    const ProtobufCMessageDescriptor *envelope = &isofed__v1__envelope__descriptor;
    size_t bodies = 0;
    for (unsigned i = 0; i < envelope->n_fields; i++) {
        if (envelope->fields[i].id < 10)
            continue;
        const iso_message_row *row = iso_proto_row((iso_msg_type)envelope->fields[i].id);
        assert_non_null(row);
        assert_ptr_equal(row->descriptor, envelope->fields[i].descriptor);
        assert_string_equal(iso_msg_type_name(row->type), row->descriptor->short_name);
        bodies++;
    }
    assert_int_equal(bodies, 26);
    for (size_t m = 0; m < iso_proto_message_count; m++) {
        const iso_message_row *row = &iso_proto_messages[m];
        assert_int_equal(row->field_count, row->descriptor->n_fields);
        for (size_t i = 0; i < row->field_count; i++) {
            const ProtobufCFieldDescriptor *d = &row->descriptor->fields[i];
            const iso_field *f = &row->fields[i];
            static const ProtobufCType types[] = {[ISO_FIELD_U32] = PROTOBUF_C_TYPE_UINT32,
                                                  [ISO_FIELD_U64] = PROTOBUF_C_TYPE_UINT64,
                                                  [ISO_FIELD_KIND] = PROTOBUF_C_TYPE_UINT32,
                                                  [ISO_FIELD_ENUM] = PROTOBUF_C_TYPE_ENUM,
                                                  [ISO_FIELD_BOOL] = PROTOBUF_C_TYPE_BOOL,
                                                  [ISO_FIELD_F32] = PROTOBUF_C_TYPE_FLOAT,
                                                  [ISO_FIELD_FIXED] = PROTOBUF_C_TYPE_BYTES,
                                                  [ISO_FIELD_SPAN] = PROTOBUF_C_TYPE_BYTES,
                                                  [ISO_FIELD_TEXT] = PROTOBUF_C_TYPE_STRING,
                                                  [ISO_FIELD_NAME] = PROTOBUF_C_TYPE_STRING,
                                                  [ISO_FIELD_TEXTS] = PROTOBUF_C_TYPE_STRING,
                                                  [ISO_FIELD_ONE] = PROTOBUF_C_TYPE_MESSAGE,
                                                  [ISO_FIELD_MANY] = PROTOBUF_C_TYPE_MESSAGE};
            bool is_list = f->kind == ISO_FIELD_TEXTS || f->kind == ISO_FIELD_MANY;
            assert_string_equal(f->name, d->name);
            assert_int_equal(d->type, types[f->kind]);
            assert_int_equal(d->label == PROTOBUF_C_LABEL_REPEATED, is_list);
            assert_in_range(f->offset, 0, row->struct_bytes - 1);
            if (d->type == PROTOBUF_C_TYPE_BYTES || d->type == PROTOBUF_C_TYPE_STRING)
                assert_in_range(f->max, 1, ISO_HEAD_MAX_BYTES);
            if (d->type == PROTOBUF_C_TYPE_MESSAGE) /* no recursion: nested ones hold no message */
                for (unsigned k = 0; k < iso_proto_row_of(d->descriptor)->descriptor->n_fields; k++)
                    assert_int_not_equal(
                        iso_proto_row_of(d->descriptor)->descriptor->fields[k].type,
                        PROTOBUF_C_TYPE_MESSAGE);
        }
    }
}

static void S48_codes_and_states_are_those_of_the_schema(void **state)
{
    (void)state;
    const ProtobufCEnumDescriptor *d = &isofed__v1__code__descriptor;
    for (unsigned i = 0; i < d->n_values; i++) {
        iso_code code = (iso_code)d->values[i].value, parsed;
        assert_true(iso_code_is_known((uint32_t)code));
        assert_string_equal(iso_code_name(code), d->values[i].name);
        assert_true(iso_code_parse(d->values[i].name, &parsed));
        assert_int_equal(parsed, code);
        assert_in_range(strlen(iso_code_sentence(code)), 1, ISO_SENTENCE_MAX);
    }
    size_t known = 0;
    for (uint32_t n = 0; n < 1000; n++)
        known += iso_code_is_known(n);
    assert_int_equal(known, d->n_values);
    assert_string_equal(iso_code_name((iso_code)999), "UNKNOWN");
    static const char *const again[] = {"BUSY",  "RATE",     "DISK",          "PENDING",
                                        "EPOCH", "INTERNAL", "UPLOAD_UNKNOWN"};
    size_t retryable = 0;
    for (uint32_t n = 0; n < ISO_CODE_END; n++)
        retryable += iso_code_is_retryable((iso_code)n);
    assert_int_equal(retryable, 7);
    for (size_t i = 0; i < 7; i++) {
        iso_code code;
        assert_true(iso_code_parse(again[i], &code));
        assert_true(iso_code_is_retryable(code));
    }
    assert_int_equal(isofed__v1__site_state__descriptor.n_values, ISO_SITE_STATES);
}

/* ---- there and back ---- */

static void S49_every_message_there_and_back(void **state)
{
    (void)state;
    for (size_t m = 0; m < iso_proto_message_count; m++) {
        const iso_message_row *row = &iso_proto_messages[m];
        for (uint64_t seed = 0; row->type && seed < 60; seed++) {
            maker k = {.rng = iso_rng_make(seed, ISO_RNG_TEST, m), .full = seed == 0};
            iso_msg a = {.version = 1, .id = seed, .epoch = seed * 3, .type = row->type}, b;
            uint8_t head[ISO_HEAD_MAX_BYTES];
            size_t size;
            iso_arena arena = {0};
            iso_code code;
            iso_error e = {.text = ""};
            make_struct(&k, row, (uint8_t *)&a.hello);
            if (iso_msg_encode(&a, head, sizeof head, &size, &e))
                fail_msg("%s, seed %d: %s", iso_msg_type_name(row->type), (int)seed, e.text);
            uint8_t *exact = malloc(size);
            memcpy(exact, head, size);
            if (iso_msg_decode(exact, size, &arena, &b, &code, &e))
                fail_msg("%s, seed %d: %s", iso_msg_type_name(row->type), (int)seed, e.text);
            free(exact);
            assert_int_equal(code, ISO_CODE_OK);
            assert_int_equal(b.type, a.type);
            assert_int_equal(b.id, a.id);
            assert_int_equal(b.epoch, a.epoch);
            assert_int_equal(b.version, 1);
            assert_same(row, (const uint8_t *)&a.hello, (const uint8_t *)&b.hello);
            uint8_t again[ISO_HEAD_MAX_BYTES];
            size_t again_size;
            assert_int_equal(iso_msg_encode(&b, again, sizeof again, &again_size, &e), ISO_OK);
            assert_int_equal(again_size, size);
            assert_memory_equal(again, head, size);
            assert_int_equal(iso_msg_encode(&b, again, size - 1, &again_size, &e),
                             ISO_ERR_INTERNAL); /* no room: nothing is written past it */
            assert_true(arena.used_bytes <= ISO_ARENA_MAX_BYTES);
            iso_arena_free(&arena);
            iso_arena_free(&k.arena);
        }
    }
}

/* Every prefix and seeded mutations of every message: refused or read, never more. */
static void S48_damaged_heads_do_no_harm(void **state)
{
    (void)state;
    size_t refused = 0, tries = 0;
    for (size_t m = 0; m < iso_proto_message_count; m++) {
        const iso_message_row *row = &iso_proto_messages[m];
        if (!row->type)
            continue;
        maker k = {.rng = iso_rng_make(1, ISO_RNG_TEST, m)};
        iso_msg a = {.type = row->type}, b;
        uint8_t head[ISO_HEAD_MAX_BYTES];
        size_t size;
        iso_error e;
        iso_code code;
        make_struct(&k, row, (uint8_t *)&a.hello);
        assert_int_equal(iso_msg_encode(&a, head, sizeof head, &size, &e), ISO_OK);
        for (size_t n = 0; n < size + 300; n++, tries++) {
            iso_arena arena = {0};
            size_t length = n < size ? n : size;
            uint8_t *copy = malloc(length ? length : 1);
            memcpy(copy, head, length);
            if (n >= size)
                copy[iso_rng_below(&k.rng, (uint32_t)size)] ^=
                    (uint8_t)(1u << iso_rng_below(&k.rng, 8));
            refused += iso_msg_decode(copy, length, &arena, &b, &code, &e) != ISO_OK;
            assert_true(arena.used_bytes <= ISO_ARENA_MAX_BYTES);
            free(copy);
            iso_arena_free(&arena);
        }
        iso_arena_free(&k.arena);
    }
    assert_in_range(refused, tries / 4, tries);
}

/* ---- T10: what protobuf-c lets through ---- */

/* A head under construction, in protobuf's own bytes. */
typedef struct {
    uint8_t b[ISO_HEAD_MAX_BYTES + 64];
    size_t n;
} raw;

static void put(raw *r, const void *bytes, size_t n)
{
    assert_true(r->n + n <= sizeof r->b);
    memcpy(r->b + r->n, bytes, n);
    r->n += n;
}

static void varint(raw *r, uint64_t v)
{
    do {
        uint8_t b = (uint8_t)(v & 127);
        v >>= 7;
        if (v)
            b |= 128;
        put(r, &b, 1);
    } while (v);
}

static void number(raw *r, unsigned field, uint64_t v)
{
    varint(r, field << 3);
    varint(r, v);
}

static void bytes(raw *r, unsigned field, const void *p, size_t n)
{
    varint(r, field << 3 | 2);
    varint(r, n);
    put(r, p, n);
}

static raw head_of(unsigned type, const raw *body)
{
    raw r = {.n = 0};
    number(&r, 1, 1);
    number(&r, 2, 77);
    number(&r, 3, 88);
    bytes(&r, type, body->b, body->n);
    return r;
}

static iso_code decode_raw(const raw *r, iso_msg *out, iso_arena *arena)
{
    iso_code code = ISO_CODE_OK;
    iso_error e = {.text = ""};
    uint8_t *copy = malloc(r->n ? r->n : 1);
    memcpy(copy, r->b, r->n);
    iso_err err = iso_msg_decode(copy, r->n, arena, out, &code, &e);
    free(copy);
    assert_int_equal(err != ISO_OK, code != ISO_CODE_OK);
    assert_true(arena->used_bytes <= ISO_ARENA_MAX_BYTES);
    return code;
}

static iso_code code_of(const raw *r)
{
    iso_arena arena = {0};
    iso_msg m;
    iso_code code = decode_raw(r, &m, &arena);
    iso_arena_free(&arena);
    return code;
}

/* A well-formed Enroll whose name is `n` bytes at `name`. */
static raw enroll_named(const void *name, size_t n)
{
    uint8_t some[64];
    raw body = {.n = 0};
    memset(some, 1, sizeof some);
    bytes(&body, 1, some, 32);
    bytes(&body, 2, some, 32);
    bytes(&body, 3, name, n);
    bytes(&body, 4, some, 64);
    bytes(&body, 5, some, 32);
    return head_of(ISO_MSG_ENROLL, &body);
}

static void T10_strings(void **state)
{
    (void)state;
    static const struct {
        const char *name, *text;
        size_t size;
        iso_code code;
    } rows[] = {{"plain", "plant-7", 7, ISO_CODE_OK},
                {"NUL inside",
                 "plant\0"
                 "7",
                 7, ISO_CODE_BAD_MESSAGE},
                {"NUL at the end", "plant\0", 6, ISO_CODE_BAD_MESSAGE},
                {"bad UTF-8", "plant\xff", 6, ISO_CODE_BAD_MESSAGE},
                {"overlong UTF-8", "\xc0\xaf", 2, ISO_CODE_BAD_MESSAGE},
                {"surrogate", "\xed\xa0\x80", 3, ISO_CODE_BAD_MESSAGE},
                {"empty name", "", 0, ISO_CODE_BAD_MESSAGE},
                {"new line", "plant\n7", 7, ISO_CODE_BAD_MESSAGE},
                {"escape", "\033[31m", 5, ISO_CODE_BAD_MESSAGE},
                {"markup", "<script>", 8, ISO_CODE_BAD_MESSAGE},
                {"right-to-left",
                 "a\xe2\x80\xae"
                 "b",
                 5, ISO_CODE_BAD_MESSAGE},
                {"path", "../x", 4, ISO_CODE_BAD_MESSAGE}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        raw r = enroll_named(rows[i].text, rows[i].size);
        if (code_of(&r) != rows[i].code)
            fail_msg("%s", rows[i].name);
    }
    char name[65];
    memset(name, 'a', sizeof name);
    raw r = enroll_named(name, 64);
    assert_int_equal(code_of(&r), ISO_CODE_OK);
    r = enroll_named(name, 65);
    assert_int_equal(code_of(&r), ISO_CODE_BAD_MESSAGE);
}

static void T10_a_second_body_is_refused_not_the_last_taken(void **state)
{
    (void)state;
    raw ping = {.n = 0};
    number(&ping, 1, 5);
    raw r = head_of(ISO_MSG_PING, &ping);
    assert_int_equal(code_of(&r), ISO_CODE_OK);
    bytes(&r, ISO_MSG_PONG, ping.b, ping.n);
    assert_int_equal(code_of(&r), ISO_CODE_BAD_MESSAGE);
    r = head_of(ISO_MSG_PING, &ping);
    bytes(&r, ISO_MSG_PING, ping.b, ping.n);
    assert_int_equal(code_of(&r), ISO_CODE_BAD_MESSAGE);
    raw none = {.n = 0};
    number(&none, 1, 1);
    assert_int_equal(code_of(&none), ISO_CODE_BAD_MESSAGE);
    raw empty = {.n = 0};
    assert_int_equal(code_of(&empty), ISO_CODE_BAD_MESSAGE);
    raw later = {.n = 0}; /* a message type of a later version */
    number(&later, 1, 1);
    bytes(&later, 99, "x", 1);
    assert_int_equal(code_of(&later), ISO_CODE_BAD_MESSAGE);
}

static void T10_malformed_wire(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint8_t b[16];
        size_t n;
    } rows[] = {
        {"length past the end", {0x08, 1, 0x82, 0x02, 5, 8}, 6},
        {"length 2^64 - 1", {0x82, 0x02, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, 12},
        {"group", {0x08, 1, 0x83, 0x02, 0x84, 0x02}, 6},
        {"field 0", {0x00, 1}, 2},
        {"wire type of a body is varint", {0x08, 1, 0x80, 0x02, 5}, 5},
        {"wire type of version is bytes", {0x0a, 1, 1, 0x82, 0x02, 0}, 6},
        {"overlong tag", {0x88, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x01, 1}, 12},
        {"varint of 11 bytes", {0x08, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1}, 12},
        {"cut in a tag", {0x08, 1, 0x82}, 3},
        {"fixed64 cut", {0x09, 1, 2, 3}, 4},
        {"fixed32 cut", {0x0d, 1, 2, 3}, 4},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        raw r = {.n = 0};
        put(&r, rows[i].b, rows[i].n);
        if (code_of(&r) != ISO_CODE_BAD_MESSAGE)
            fail_msg("%s", rows[i].name);
    }
}

static void T10_non_minimal_value_varints_are_read(void **state)
{
    (void)state;
    static const uint8_t b[] = {0x08, 0x81, 0x80, 0x00, 0x82, 0x02, 2, 8, 5};
    raw r = {.n = 0};
    iso_arena arena = {0};
    iso_msg m;
    put(&r, b, sizeof b);
    assert_int_equal(decode_raw(&r, &m, &arena), ISO_CODE_OK);
    assert_int_equal(m.version, 1);
    assert_int_equal(m.ping.t, 5);
    iso_arena_free(&arena);
}

static void T10_enums_numbers_and_floats(void **state)
{
    (void)state;
    uint8_t some[64], f32[4];
    memset(some, 1, sizeof some);
    raw body = {.n = 0};
    number(&body, 1, 99); /* Error.code 99 */
    raw r = head_of(ISO_MSG_ERROR, &body);
    assert_int_equal(code_of(&r), ISO_CODE_UNKNOWN_ENUM);
    body.n = 0;
    number(&body, 1, (uint64_t)-1);
    r = head_of(ISO_MSG_ERROR, &body);
    assert_int_equal(code_of(&r), ISO_CODE_UNKNOWN_ENUM);
    body.n = 0;
    bytes(&body, 1, some, 16);
    number(&body, 2, 6); /* EnrollReply.state */
    r = head_of(ISO_MSG_ENROLL_REPLY, &body);
    assert_int_equal(code_of(&r), ISO_CODE_UNKNOWN_ENUM);
    body.n = 0;
    bytes(&body, 1, some, 16);
    number(&body, 2, 1u << 20); /* UpdateChunk.index */
    r = head_of(ISO_MSG_UPDATE_CHUNK, &body);
    assert_int_equal(code_of(&r), ISO_CODE_BAD_MESSAGE);
    static const uint32_t bits[] = {0x7fc00000, 0x7f800000, 0xff800000};
    for (size_t i = 0; i < 4; i++) {
        uint32_t v = i < 3 ? bits[i] : 0x3f800000;
        for (int k = 0; k < 4; k++)
            f32[k] = (uint8_t)(v >> 8 * k);
        body.n = 0;
        bytes(&body, 1, some, 16);
        varint(&body, 2 << 3 | 5);
        put(&body, f32, 4);
        bytes(&body, 6, some, 64);
        r = head_of(ISO_MSG_EVAL_RESULT, &body);
        assert_int_equal(code_of(&r), i < 3 ? ISO_CODE_BAD_MESSAGE : ISO_CODE_OK);
    }
    body.n = 0;
    bytes(&body, 1, some, 16);
    number(&body, 2, 5); /* bool 5 is true */
    r = head_of(ISO_MSG_INVITE_REPLY, &body);
    iso_arena arena = {0};
    iso_msg m;
    assert_int_equal(decode_raw(&r, &m, &arena), ISO_CODE_OK);
    assert_int_equal(m.invite_reply.accept, true);
    assert_string_equal(m.invite_reply.reason, "");
    iso_arena_free(&arena);
}

static void S48_lengths_of_bytes(void **state)
{
    (void)state;
    static const struct {
        size_t header, signature, idempotency, invite;
        iso_code code;
    } rows[] = {{384, 64, 16, 16, ISO_CODE_OK},          {384, 64, 16, 0, ISO_CODE_OK},
                {383, 64, 16, 16, ISO_CODE_BAD_MESSAGE}, {385, 64, 16, 16, ISO_CODE_BAD_MESSAGE},
                {384, 63, 16, 16, ISO_CODE_BAD_MESSAGE}, {384, 64, 15, 16, ISO_CODE_BAD_MESSAGE},
                {384, 64, 0, 16, ISO_CODE_BAD_MESSAGE},  {384, 64, 16, 15, ISO_CODE_BAD_MESSAGE},
                {0, 64, 16, 16, ISO_CODE_BAD_MESSAGE},   {384, 64, 16, 17, ISO_CODE_BAD_MESSAGE}};
    uint8_t some[400];
    memset(some, 7, sizeof some);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        raw body = {.n = 0};
        bytes(&body, 1, some, rows[i].header);
        bytes(&body, 2, some, rows[i].signature);
        bytes(&body, 3, some, rows[i].idempotency);
        bytes(&body, 4, some, rows[i].invite);
        raw r = head_of(ISO_MSG_UPDATE_BEGIN, &body);
        assert_int_equal(code_of(&r), rows[i].code);
    }
}

static void T10_amplification_stays_in_the_arena(void **state)
{
    (void)state;
    raw body = {.n = 0}, spec = {.n = 0}, r;
    uint8_t some[64];
    memset(some, 1, sizeof some);
    while (body.n + 2 < 16000) /* empty notices */
        bytes(&body, 1, "", 0);
    r = head_of(ISO_MSG_STATUS_REPLY, &body);
    assert_int_equal(code_of(&r), ISO_CODE_BAD_MESSAGE);
    body.n = 0;
    for (int i = 0; i < ISO_NOTICES_MAX; i++)
        bytes(&body, 1, "", 0);
    r = head_of(ISO_MSG_STATUS_REPLY, &body);
    assert_int_equal(code_of(&r), ISO_CODE_OK);
    bytes(&body, 1, "", 0);
    r = head_of(ISO_MSG_STATUS_REPLY, &body);
    assert_int_equal(code_of(&r), ISO_CODE_BAD_MESSAGE);

    static const size_t counts[] = {ISO_TARGETS_MAX, ISO_TARGETS_MAX + 1, 7000};
    for (size_t k = 0; k < 3; k++) {
        size_t count = counts[k];
        spec.n = body.n = 0;
        for (size_t i = 0; i < count; i++) /* empty target names */
            bytes(&spec, 4, "", 0);
        bytes(&body, 1, some, 16);
        bytes(&body, 2, some, 16);
        bytes(&body, 5, some, 32);
        bytes(&body, 8, some, 16);
        bytes(&body, 9, spec.b, spec.n);
        r = head_of(ISO_MSG_INVITE, &body);
        assert_int_equal(code_of(&r),
                         count <= ISO_TARGETS_MAX ? ISO_CODE_OK : ISO_CODE_BAD_MESSAGE);
    }
    body.n = 0;
    while (body.n + 2 < 16000) /* copies of one singular field: the last wins, within the arena */
        number(&body, 1, 9);
    r = head_of(ISO_MSG_PING, &body);
    assert_int_equal(code_of(&r), ISO_CODE_OK);
}

static void S48_more_than_32_unknown_fields_are_refused(void **state)
{
    (void)state;
    for (unsigned unknown = 31; unknown <= 33; unknown++) {
        raw body = {.n = 0};
        number(&body, 1, 5);
        for (unsigned i = 0; i + 1 < unknown; i++)
            number(&body, 100 + i, i);
        raw r = head_of(ISO_MSG_PING, &body);
        number(&r, 500, 1); /* one at the top level counts as well */
        iso_arena arena = {0};
        iso_msg m;
        iso_code code = decode_raw(&r, &m, &arena);
        assert_int_equal(code, unknown <= 32 ? ISO_CODE_OK : ISO_CODE_BAD_MESSAGE);
        if (code == ISO_CODE_OK) { /* and they are not sent on */
            uint8_t out[64];
            size_t size;
            iso_error e;
            assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_OK);
            assert_in_range(size, 1, 12);
        }
        iso_arena_free(&arena);
    }
}

static void S47_heads_above_16_KiB_are_not_read(void **state)
{
    (void)state;
    raw body = {.n = 0};
    number(&body, 1, 5);
    raw r = head_of(ISO_MSG_PING, &body);
    r.n = ISO_HEAD_MAX_BYTES + 1;
    assert_int_equal(code_of(&r), ISO_CODE_BAD_MESSAGE);
}

static void S47_a_refused_head_still_names_its_request(void **state)
{
    (void)state;
    raw body = {.n = 0};
    number(&body, 1, 99);
    raw r = head_of(ISO_MSG_ERROR, &body);
    iso_arena arena = {0};
    iso_msg m;
    assert_int_equal(decode_raw(&r, &m, &arena), ISO_CODE_UNKNOWN_ENUM);
    assert_int_equal(m.id, 77);
    assert_int_equal(m.epoch, 88);
    iso_arena_free(&arena);
}

static void S50_versions(void **state)
{
    (void)state;
    static const struct {
        unsigned type;
        uint64_t version;
        iso_code code;
    } rows[] = {{ISO_MSG_PING, 1, ISO_CODE_OK},      {ISO_MSG_PING, 0, ISO_CODE_VERSION},
                {ISO_MSG_PING, 2, ISO_CODE_VERSION}, {ISO_MSG_HELLO, 1, ISO_CODE_OK},
                {ISO_MSG_HELLO, 7, ISO_CODE_OK},     {ISO_MSG_HELLO, 0, ISO_CODE_VERSION}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        raw r = {.n = 0};
        number(&r, 1, rows[i].version);
        bytes(&r, rows[i].type, "", 0);
        assert_int_equal(code_of(&r), rows[i].code);
    }
    assert_int_equal(iso_proto_pick_version(1, 1), 1);
    assert_int_equal(iso_proto_pick_version(1, 9), 1);
    assert_int_equal(iso_proto_pick_version(0, 1), 1);
    assert_int_equal(iso_proto_pick_version(2, 9), 0);
    assert_int_equal(iso_proto_pick_version(0, 0), 0);
    assert_int_equal(iso_proto_pick_version(9, 1), 0);
    iso_msg m = iso_msg_refusal(ISO_CODE_RATE, 5, 60000);
    assert_int_equal(m.type, ISO_MSG_ERROR);
    assert_int_equal(m.error.about_id, 5);
    assert_string_equal(m.error.sentence, iso_code_sentence(ISO_CODE_RATE));
}

static void S48_what_we_may_not_send_is_not_sent(void **state)
{
    (void)state;
    uint8_t out[ISO_HEAD_MAX_BYTES];
    size_t size;
    iso_error e;
    char text[400];
    memset(text, 'a', sizeof text - 1);
    text[sizeof text - 1] = 0;
    iso_msg m = {.type = ISO_MSG_BYE, .bye = {.reason = text}};
    assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_ERR_INTERNAL);
    assert_int_equal(size, 0);
    assert_non_null(strstr(e.text, "Bye.reason"));
    m = (iso_msg){.type = ISO_MSG_BYE}; /* NULL text is "" */
    assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_OK);
    m = (iso_msg){.type = ISO_MSG_ERROR, .error = {.code = (iso_code)10}};
    assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_ERR_INTERNAL);
    m = (iso_msg){.type = ISO_MSG_STATUS_REPLY, .status_reply = {.notice_count = 33}};
    assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_ERR_INTERNAL);
    m = (iso_msg){.type = ISO_MSG_EVAL_RESULT, .eval_result = {.score = NAN}};
    assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_ERR_INTERNAL);
    m = (iso_msg){.type = ISO_MSG_NONE};
    assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_ERR_INTERNAL);
    const char *targets[ISO_TARGETS_MAX];
    for (size_t i = 0; i < ISO_TARGETS_MAX; i++)
        targets[i] = text + sizeof text - 1 - ISO_TARGET_NAME_MAX;
    m = (iso_msg){.type = ISO_MSG_INVITE,
                  .invite = {.spec = {.targets = targets, .target_count = ISO_TARGETS_MAX}}};
    assert_int_equal(iso_msg_encode(&m, out, sizeof out, &size, &e), ISO_ERR_INTERNAL);
    assert_non_null(strstr(e.text, "needs")); /* each within its limit, together above 16 KiB */
}

static void S47_only_chunks_have_a_second_frame(void **state)
{
    (void)state;
    size_t with = 0;
    for (int t = 0; t < ISO_MSG_END; t++)
        with += iso_msg_has_body((iso_msg_type)t);
    assert_int_equal(with, 2);
    assert_true(iso_msg_has_body(ISO_MSG_UPDATE_CHUNK));
    assert_true(iso_msg_has_body(ISO_MSG_BLOB_CHUNK));
    assert_string_equal(iso_msg_type_name(ISO_MSG_NONE), "unknown");
    assert_string_equal(iso_msg_type_name((iso_msg_type)77), "unknown");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S48_every_field_of_the_schema_has_a_row),
        cmocka_unit_test(S48_codes_and_states_are_those_of_the_schema),
        cmocka_unit_test(S49_every_message_there_and_back),
        cmocka_unit_test(S48_damaged_heads_do_no_harm),
        cmocka_unit_test(T10_strings),
        cmocka_unit_test(T10_a_second_body_is_refused_not_the_last_taken),
        cmocka_unit_test(T10_malformed_wire),
        cmocka_unit_test(T10_non_minimal_value_varints_are_read),
        cmocka_unit_test(T10_enums_numbers_and_floats),
        cmocka_unit_test(S48_lengths_of_bytes),
        cmocka_unit_test(T10_amplification_stays_in_the_arena),
        cmocka_unit_test(S48_more_than_32_unknown_fields_are_refused),
        cmocka_unit_test(S47_heads_above_16_KiB_are_not_read),
        cmocka_unit_test(S47_a_refused_head_still_names_its_request),
        cmocka_unit_test(S50_versions),
        cmocka_unit_test(S48_what_we_may_not_send_is_not_sent),
        cmocka_unit_test(S47_only_chunks_have_a_second_frame),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
