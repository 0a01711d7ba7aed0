/* safetensors: header (little-endian u64 length, JSON), then the data of all tensors end to end.
 * specs/security.md 9.1: every rule there is checked before a byte of data is used, and the header
 * costs at most four times its size in memory. Hence a reader of its own for the few JSON forms
 * that a header may hold, with nothing allocated a value: one pass counts, one pass fills.
 * Shards stand in safetensors_files.c, writing in safetensors_write.c. */
#include "core/safetensors.h"

#include "core/utf8.h"

#include <stdlib.h>
#include <string.h>

enum { LENGTH_BYTES = 8, MAX_META = 10000 };

/* ---- the header's JSON ---- */

typedef struct {
    const char *what; /* the file, for errors */
    const uint8_t *at, *end, *begin;
    char *pool; /* decoded strings go here; as large as the header */
    size_t pool_used;
    iso_error *e;
} scanner;

static iso_err bad(scanner *s, const char *reason)
{
    return iso_fail(s->e, ISO_ERR_DATA, "%s: header byte %zu: %s", s->what,
                    (size_t)(s->at - s->begin), reason);
}

static void skip_space(scanner *s)
{
    while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\r' || *s->at == '\t'))
        s->at++;
}

/* True and past it if the next character is c. */
static bool next_is(scanner *s, char c)
{
    skip_space(s);
    if (s->at == s->end || *s->at != (uint8_t)c)
        return false;
    s->at++;
    return true;
}

static iso_err expect(scanner *s, char c, const char *reason)
{
    return next_is(s, c) ? ISO_OK : bad(s, reason);
}

static bool read_hex4(scanner *s, uint32_t *out)
{
    uint8_t b[2];
    char hex[5] = {0};
    if (s->end - s->at < 4)
        return false;
    memcpy(hex, s->at, 4);
    if (!iso_unhex(b, 2, hex))
        return false;
    s->at += 4;
    *out = (uint32_t)b[0] << 8 | b[1];
    return true;
}

/* One escape after its backslash. A code point from \u is at most as long as its six characters. */
static bool read_escape(scanner *s, char *out, size_t *used)
{
    static const char names[] = "\"\\/bfnrt", values[] = "\"\\/\b\f\n\r\t";
    if (s->at == s->end)
        return false;
    uint8_t c = *s->at++;
    if (c != 'u') {
        const char *at = c ? strchr(names, c) : NULL;
        if (!at)
            return false;
        out[(*used)++] = values[at - names];
        return true;
    }
    uint32_t code, low;
    if (!read_hex4(s, &code) || code == 0)
        return false;
    if (code >= 0xD800 && code < 0xE000) {
        if (code >= 0xDC00 || s->end - s->at < 2 || s->at[0] != '\\' || s->at[1] != 'u')
            return false;
        s->at += 2;
        if (!read_hex4(s, &low) || low < 0xDC00 || low >= 0xE000)
            return false;
        code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    *used += iso_utf8_put(out + *used, code);
    return true;
}

/* A string into the pool, terminated. Quotes are two bytes, so the terminator always fits. */
static iso_err read_string(scanner *s, const char **out)
{
    iso_err err = expect(s, '"', "expected a string");
    if (err)
        return err;
    char *text = s->pool + s->pool_used;
    size_t used = 0;
    for (;;) {
        if (s->at == s->end)
            return bad(s, "string without an end");
        uint8_t c = *s->at++;
        if (c == '"')
            break;
        if (c < 0x20)
            return bad(s, "control character in a string");
        if (c != '\\')
            text[used++] = (char)c;
        else if (!read_escape(s, text, &used))
            return bad(s, "bad escape in a string");
    }
    text[used] = 0;
    if (!iso_utf8_is_valid(text, used))
        return bad(s, "string is not UTF-8");
    s->pool_used += used + 1;
    *out = text;
    return ISO_OK;
}

/* Digits only: a sign, a fraction or an exponent leaves a character that the caller refuses. */
static iso_err read_size(scanner *s, const char *name, uint64_t *out)
{
    skip_space(s);
    const uint8_t *first = s->at;
    uint64_t v = 0;
    while (s->at < s->end && *s->at >= '0' && *s->at <= '9') {
        if (v > (UINT64_MAX - 9) / 10)
            goto bad;
        v = 10 * v + (uint64_t)(*s->at++ - '0');
    }
    if (s->at == first || (s->at - first > 1 && *first == '0') || v > INT64_MAX)
        goto bad;
    *out = v;
    return ISO_OK;
bad:
    return iso_fail(s->e, ISO_ERR_DATA,
                    "%s: tensor \"%s\": header byte %zu: expected a whole number from 0 to 2^63-1",
                    s->what, name, (size_t)(first - s->begin));
}

/* ---- one tensor's entry ---- */

typedef struct {
    uint64_t begin, end;
    size_t item; /* index in the order of the header */
} span;

static iso_err read_shape(scanner *s, const char *name, iso_tensor *view)
{
    iso_err err = expect(s, '[', "expected the shape as a list");
    view->ndim = 0;
    if (err || next_is(s, ']'))
        return err;
    do {
        uint64_t v;
        if (view->ndim == ISO_MAX_RANK)
            return iso_fail(s->e, ISO_ERR_DATA, "%s: tensor \"%s\": more than %d dimensions",
                            s->what, name, ISO_MAX_RANK);
        if ((err = read_size(s, name, &v)))
            return err;
        view->shape[view->ndim++] = (size_t)v;
    } while (next_is(s, ','));
    return expect(s, ']', "expected , or ] in a shape");
}

static iso_err read_dtype(scanner *s, const char *name, iso_dtype *out)
{
    const char *text;
    size_t mark = s->pool_used;
    iso_err err = read_string(s, &text);
    if (!err && !iso_dtype_parse(text, out))
        err = iso_fail(s->e, ISO_ERR_DATA,
                       "%s: tensor \"%s\": type \"%.32s\"; known are F64 F32 F16 BF16 I64 I32 I16 "
                       "I8 U8 BOOL",
                       s->what, name, text);
    s->pool_used = mark;
    return err;
}

static iso_err read_offsets(scanner *s, const char *name, span *out)
{
    iso_err err = expect(s, '[', "expected data_offsets as a list of two");
    if (!err)
        err = read_size(s, name, &out->begin);
    if (!err)
        err = expect(s, ',', "expected two data_offsets");
    if (!err)
        err = read_size(s, name, &out->end);
    return err ? err : expect(s, ']', "expected two data_offsets");
}

/* Size from shape and type against the size from the offsets; nothing is multiplied unchecked. */
static iso_err check_size(scanner *s, const char *name, const iso_tensor *view, const span *where)
{
    size_t bytes = iso_dtype_bytes(view->dtype);
    bool fits = true;
    for (int i = 0; i < view->ndim && fits; i++)
        fits = iso_mul_size(bytes, view->shape[i], &bytes);
    if (!fits)
        return iso_fail(s->e, ISO_ERR_DATA, "%s: tensor \"%s\": the product of the shape overflows",
                        s->what, name);
    if (where->end < where->begin)
        return iso_fail(s->e, ISO_ERR_DATA, "%s: tensor \"%s\": data_offsets are reversed", s->what,
                        name);
    if (where->end - where->begin != bytes)
        return iso_fail(s->e, ISO_ERR_DATA,
                        "%s: tensor \"%s\": data_offsets hold %llu bytes, its shape and type need "
                        "%zu",
                        s->what, name, (unsigned long long)(where->end - where->begin), bytes);
    return ISO_OK;
}

static iso_err read_entry(scanner *s, const char *name, iso_tensor *view, span *where)
{
    enum { DTYPE = 1, SHAPE = 2, OFFSETS = 4, ALL = 7 };
    int seen = 0;
    iso_err err = expect(s, '{', "expected an object for a tensor");
    if (err)
        return err;
    *view = (iso_tensor){0};
    do {
        const char *key;
        size_t mark = s->pool_used;
        if ((err = read_string(s, &key)) || (err = expect(s, ':', "expected :")))
            return err;
        int which = !strcmp(key, "dtype")          ? DTYPE
                    : !strcmp(key, "shape")        ? SHAPE
                    : !strcmp(key, "data_offsets") ? OFFSETS
                                                   : 0;
        if (!which || (seen & which))
            return iso_fail(s->e, ISO_ERR_DATA,
                            "%s: tensor \"%s\": %s field \"%.32s\"; expected dtype, shape and "
                            "data_offsets once each",
                            s->what, name, which ? "repeated" : "unknown", key);
        seen |= which;
        s->pool_used = mark;
        err = which == DTYPE   ? read_dtype(s, name, &view->dtype)
              : which == SHAPE ? read_shape(s, name, view)
                               : read_offsets(s, name, where);
        if (err)
            return err;
    } while (next_is(s, ','));
    if ((err = expect(s, '}', "expected , or } in a tensor's entry")))
        return err;
    if (seen != ALL)
        return iso_fail(s->e, ISO_ERR_DATA, "%s: tensor \"%s\": %s is missing", s->what, name,
                        !(seen & DTYPE)   ? "dtype"
                        : !(seen & SHAPE) ? "shape"
                                          : "data_offsets");
    return check_size(s, name, view, where);
}

/* ---- the whole header ---- */

/* Upper bounds for the arrays: objects and strings outside of which nothing can be an entry. */
static void count_parts(const uint8_t *p, size_t n, size_t *objects, size_t *strings)
{
    bool in_string = false;
    *objects = *strings = 0;
    for (size_t i = 0; i < n; i++) {
        if (in_string && p[i] == '\\') {
            i++;
        } else if (p[i] == '"') {
            *strings += !in_string;
            in_string = !in_string;
        } else if (!in_string && p[i] == '{') {
            ++*objects;
        }
    }
}

static int compare_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static iso_err read_meta(scanner *s, iso_safetensors *st, size_t room)
{
    if (st->meta)
        return iso_fail(s->e, ISO_ERR_DATA, "%s: __metadata__ stands twice", s->what);
    /* At most as many pairs as the header has strings left; keys are sorted for the check below. */
    size_t most = room < MAX_META ? room : MAX_META;
    st->meta = iso_arena_alloc(&st->arena, most, 2 * sizeof *st->meta);
    const char **keys = malloc((most ? most : 1) * sizeof *keys);
    iso_err err = ISO_OK;
    if (!st->meta || !keys) {
        err = iso_nomem(s->e, 3 * most * sizeof *keys);
        goto done;
    }
    if ((err = expect(s, '{', "expected an object for __metadata__")) || next_is(s, '}'))
        goto done;
    do {
        const char *pair[2];
        if ((err = read_string(s, &pair[0])) || (err = expect(s, ':', "expected :")) ||
            (err = read_string(s, &pair[1])))
            goto done;
        if (st->meta_count == most) {
            err = iso_fail(s->e, ISO_ERR_DATA, "%s: more than %d entries of __metadata__", s->what,
                           MAX_META);
            goto done;
        }
        keys[st->meta_count] = pair[0];
        memcpy(st->meta + 2 * st->meta_count++, pair, sizeof pair);
    } while (next_is(s, ','));
    if ((err = expect(s, '}', "expected , or } in __metadata__")))
        goto done;
    qsort(keys, st->meta_count, sizeof *keys, compare_text);
    for (size_t i = 1; i < st->meta_count && !err; i++)
        if (!strcmp(keys[i - 1], keys[i]))
            err = iso_fail(s->e, ISO_ERR_DATA, "%s: __metadata__ key \"%.64s\" stands twice",
                           s->what, keys[i]);
done:
    free(keys);
    return err;
}

static int compare_spans(const void *a, const void *b)
{
    const span *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end; /* empty tensors before the one that begins */
}

/* The data must be covered from its first byte to its last, each byte once. */
static iso_err check_cover(const iso_safetensors *st, span *spans, uint64_t data_bytes,
                           const char *what, iso_error *e)
{
    qsort(spans, st->count, sizeof *spans, compare_spans);
    uint64_t at = 0;
    for (size_t i = 0; i < st->count; i++) {
        const char *name = st->items[spans[i].item].name;
        if (spans[i].end > data_bytes)
            return iso_fail(e, ISO_ERR_DATA,
                            "%s: tensor \"%s\" ends at byte %llu of the data, which has %llu", what,
                            name, (unsigned long long)spans[i].end, (unsigned long long)data_bytes);
        if (spans[i].begin != at)
            return iso_fail(e, ISO_ERR_DATA, "%s: tensor \"%s\" %s at byte %llu of the data", what,
                            name, spans[i].begin < at ? "overlaps its neighbour" : "leaves a gap",
                            (unsigned long long)at);
        at = spans[i].end;
    }
    if (at != data_bytes)
        return iso_fail(e, ISO_ERR_DATA, "%s: %llu bytes after the last tensor", what,
                        (unsigned long long)(data_bytes - at));
    return ISO_OK;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(((const iso_named_tensor *)a)->name, ((const iso_named_tensor *)b)->name);
}

iso_err iso_safetensors_sort(iso_safetensors *st, const char *what, iso_error *e)
{
    if (st->count)
        qsort(st->items, st->count, sizeof *st->items, compare_names);
    for (size_t i = 1; i < st->count; i++)
        if (!strcmp(st->items[i - 1].name, st->items[i].name))
            return iso_fail(e, ISO_ERR_DATA, "%s: tensor \"%s\" stands twice", what,
                            st->items[i].name);
    return ISO_OK;
}

static iso_err read_items(scanner *s, iso_safetensors *st, span *spans, size_t room,
                          size_t string_count)
{
    iso_err err = ISO_OK;
    if (s->at == s->end || *s->at != '{')
        return bad(s, "expected {");
    s->at++;
    if (!next_is(s, '}')) {
        do {
            const char *name;
            if ((err = read_string(s, &name)) || (err = expect(s, ':', "expected :")))
                return err;
            if (!strcmp(name, "__metadata__")) {
                err = read_meta(s, st, string_count / 2);
            } else {
                if (!*name || strlen(name) > ISO_SAFETENSORS_NAME_BYTES)
                    return bad(s, "a tensor's name has 1 to 512 bytes");
                if (st->count == room)
                    return bad(s, "expected an object for a tensor");
                iso_named_tensor *item = &st->items[st->count];
                item->name = name;
                spans[st->count].item = st->count;
                err = read_entry(s, name, &item->view, &spans[st->count]);
                st->count++;
            }
            if (err)
                return err;
        } while (next_is(s, ','));
        if ((err = expect(s, '}', "expected , or }")))
            return err;
    }
    skip_space(s);
    return s->at == s->end ? ISO_OK : bad(s, "text after the header's object");
}

iso_err iso_safetensors_parse(iso_safetensors *st, const void *data, size_t size, const char *what,
                              iso_error *e)
{
    *st = (iso_safetensors){0};
    span *spans = NULL;
    iso_err err = ISO_OK;
    if (size < LENGTH_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "%s: %zu bytes; a safetensors file has at least 8", what,
                        size);
    const uint8_t *bytes = data;
    uint64_t header = iso_get_u64(bytes);
    if (header == 0 || header > ISO_SAFETENSORS_HEADER_BYTES || header > size - LENGTH_BYTES)
        return iso_fail(e, ISO_ERR_DATA,
                        "%s: header of %llu bytes; expected 1 to %d and no more than the file has "
                        "(%zu)",
                        what, (unsigned long long)header, ISO_SAFETENSORS_HEADER_BYTES,
                        size - LENGTH_BYTES);
    const uint8_t *text = bytes + LENGTH_BYTES;
    size_t objects, strings;
    count_parts(text, (size_t)header, &objects, &strings);
    if (objects > ISO_SAFETENSORS_TENSORS + 2) /* the outer one and __metadata__ */
        return iso_fail(e, ISO_ERR_DATA, "%s: more than %d tensors", what, ISO_SAFETENSORS_TENSORS);

    scanner s = {.what = what, .at = text, .begin = text, .end = text + header, .e = e};
    s.pool = iso_arena_alloc(&st->arena, (size_t)header + 1, 1);
    st->items = iso_arena_alloc(&st->arena, objects, sizeof *st->items);
    spans = malloc((objects ? objects : 1) * sizeof *spans);
    if (!s.pool || !st->items || !spans) {
        err = iso_nomem(e, (size_t)header + objects * (sizeof *st->items + sizeof *spans));
        goto done;
    }
    if ((err = read_items(&s, st, spans, objects, strings)))
        goto done;
    if (st->count > ISO_SAFETENSORS_TENSORS) {
        err = iso_fail(e, ISO_ERR_DATA, "%s: more than %d tensors", what, ISO_SAFETENSORS_TENSORS);
        goto done;
    }
    const uint8_t *payload = text + header;
    for (size_t i = 0; i < st->count; i++) {
        /* Checked right below, before anyone can read through it. */
        uint64_t begin = spans[i].begin <= size ? spans[i].begin : 0;
        st->items[i].view.data = payload + begin;
    }
    err = check_cover(st, spans, size - LENGTH_BYTES - header, what, e);
    if (!err)
        err = iso_safetensors_sort(st, what, e);
done:
    free(spans);
    if (err)
        iso_safetensors_close(st);
    return err;
}

void iso_safetensors_close(iso_safetensors *st)
{
    for (size_t i = 0; i < st->map_count; i++)
        iso_map_close(&st->maps[i]);
    iso_arena_free(&st->arena);
    *st = (iso_safetensors){0};
}

const iso_named_tensor *iso_safetensors_find(const iso_safetensors *st, const char *name)
{
    iso_named_tensor key = {.name = name};
    return st->count ? bsearch(&key, st->items, st->count, sizeof key, compare_names) : NULL;
}

const char *iso_safetensors_meta(const iso_safetensors *st, const char *key)
{
    for (size_t i = 0; i < st->meta_count; i++)
        if (!strcmp(st->meta[2 * i], key))
            return st->meta[2 * i + 1];
    return NULL;
}
