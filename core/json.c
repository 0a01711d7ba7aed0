/* JSON on jansson: our limits in front of its parser, our writer behind it.
 * specs/security.md T17 (what jansson lets through), S90 (canonical form), 9.1 and 9.3 (ceilings).
 *
 * Marks (see json.h): a tree in which something is missing must never be written and signed as if
 * it were whole. The mark is the top bit of jansson's reference count, which no real count reaches;
 * it is taken off again before jansson sees the node for release. */
#include "core/json.h"

#include "core/fsio.h"
#include "core/utf8.h"

#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_DEPTH = 32, MAX_TEXT_BYTES = 64 * 1024 * 1024 };

static const size_t MARK = (size_t)1 << (sizeof(size_t) * 8 - 1);

/* ---- reading ---- */

/* jansson's own ceiling is 2,048 levels and fixed when it is built. */
static bool is_too_deep(const char *text, size_t size)
{
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < size; i++) {
        char c = text[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > MAX_DEPTH)
                return true;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return false;
}

iso_err iso_json_parse(const void *text, size_t size, const char *what, iso_json **out,
                       iso_error *e)
{
    *out = NULL;
    if (size > MAX_TEXT_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "%s: %zu bytes of JSON; at most %d are read", what, size,
                        MAX_TEXT_BYTES);
    if (is_too_deep(text, size))
        return iso_fail(e, ISO_ERR_DATA, "%s: JSON nested deeper than %d levels", what, MAX_DEPTH);
    json_error_t why;
    *out = json_loadb(size ? text : "", size, JSON_REJECT_DUPLICATES, &why);
    if (*out)
        return ISO_OK;
    /* jansson finds words for everything but a refused allocation between tokens. Inside of one it
     * reports bad syntax, or drops a character unseen (2.14, lex_save): nothing to be done here. */
    if (!why.text[0])
        return iso_nomem(e, size);
    return iso_fail(e, ISO_ERR_DATA, "%s:%d: %s", what, why.line, why.text);
}

iso_err iso_json_read(const char *path, size_t max_bytes, iso_json **out, iso_error *e)
{
    iso_buf text = {0};
    *out = NULL;
    iso_err err = iso_read_file(path, max_bytes, &text, e);
    if (!err)
        err = iso_json_parse(text.data, text.size, path, out, e);
    iso_buf_free(&text);
    return err;
}

static bool is_container(const json_t *j)
{
    return json_is_object(j) || json_is_array(j);
}

static void unmark(json_t *j)
{
    if (!is_container(j))
        return;
    j->refcount &= ~MARK;
    if (json_is_array(j)) {
        for (size_t i = 0; i < json_array_size(j); i++)
            unmark(json_array_get(j, i));
    } else {
        for (void *at = json_object_iter(j); at; at = json_object_iter_next(j, at))
            unmark(json_object_iter_value(at));
    }
}

void iso_json_free(iso_json *root)
{
    if (!root)
        return;
    unmark(root);
    json_decref(root);
}

const iso_json *iso_json_key(const iso_json *object, const char *key)
{
    return json_object_get(object, key);
}

bool iso_json_is_object(const iso_json *j)
{
    return json_is_object(j);
}

bool iso_json_is_array(const iso_json *j)
{
    return json_is_array(j);
}

bool iso_json_is_null(const iso_json *j)
{
    return json_is_null(j);
}

size_t iso_json_count(const iso_json *j)
{
    return json_is_object(j) ? json_object_size(j) : json_array_size(j);
}

const iso_json *iso_json_at(const iso_json *array, size_t i)
{
    return json_array_get(array, i);
}

const iso_json *iso_json_member(const iso_json *object, size_t i, const char **key)
{
    json_t *o = (json_t *)(uintptr_t)object; /* jansson's iterators take no const */
    void *at = json_object_iter(o);
    while (at && i--)
        at = json_object_iter_next(o, at);
    if (key)
        *key = at ? json_object_iter_key(at) : NULL;
    return at ? json_object_iter_value(at) : NULL;
}

bool iso_json_next(const iso_json *object, void **at, const char **key, const iso_json **value)
{
    json_t *o = (json_t *)(uintptr_t)object;
    *at = *at ? json_object_iter_next(o, *at) : json_object_iter(o);
    if (!*at)
        return false;
    *key = json_object_iter_key(*at);
    *value = json_object_iter_value(*at);
    return true;
}

const char *iso_json_str(const iso_json *j)
{
    return json_string_value(j);
}

bool iso_json_int(const iso_json *j, int64_t *out)
{
    if (!json_is_integer(j))
        return false;
    *out = json_integer_value(j);
    return true;
}

bool iso_json_num(const iso_json *j, double *out)
{
    if (!json_is_number(j))
        return false;
    *out = json_number_value(j);
    return true;
}

bool iso_json_bool(const iso_json *j, bool *out)
{
    if (!json_is_boolean(j))
        return false;
    *out = json_is_true(j);
    return true;
}

static iso_err missing(iso_error *e, const char *key)
{
    return iso_fail(e, ISO_ERR_DATA, "key \"%s\" is missing", key);
}

iso_err iso_json_need_str(const iso_json *o, const char *key, const char **out, iso_error *e)
{
    const iso_json *j = iso_json_key(o, key);
    if (!j)
        return missing(e, key);
    if (!(*out = iso_json_str(j)))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" is not a string", key);
    return ISO_OK;
}

iso_err iso_json_need_int(const iso_json *o, const char *key, int64_t min, int64_t max,
                          int64_t *out, iso_error *e)
{
    const iso_json *j = iso_json_key(o, key);
    int64_t v;
    if (!j)
        return missing(e, key);
    if (!iso_json_int(j, &v))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" is not an integer", key);
    if (v < min || v > max)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" is %" PRId64 "; expected %" PRId64 "..%" PRId64,
                        key, v, min, max);
    *out = v;
    return ISO_OK;
}

iso_err iso_json_get_int(const iso_json *o, const char *key, int64_t min, int64_t max,
                         int64_t otherwise, int64_t *out, iso_error *e)
{
    if (iso_json_key(o, key))
        return iso_json_need_int(o, key, min, max, out, e);
    *out = otherwise;
    return ISO_OK;
}

iso_err iso_json_get_num(const iso_json *o, const char *key, double otherwise, double *out,
                         iso_error *e)
{
    const iso_json *j = iso_json_key(o, key);
    double v = otherwise;
    if (j && !iso_json_num(j, &v))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" is not a number", key);
    *out = v;
    return ISO_OK;
}

iso_err iso_json_get_bool(const iso_json *o, const char *key, bool otherwise, bool *out,
                          iso_error *e)
{
    const iso_json *j = iso_json_key(o, key);
    bool v = otherwise;
    if (j && !iso_json_bool(j, &v))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" is neither true nor false", key);
    *out = v;
    return ISO_OK;
}

iso_err iso_json_get_str(const iso_json *o, const char *key, const char *otherwise,
                         const char **out, iso_error *e)
{
    if (iso_json_key(o, key))
        return iso_json_need_str(o, key, out, e);
    *out = otherwise;
    return ISO_OK;
}

/* ---- making ---- */

iso_json *iso_json_object(void)
{
    return json_object();
}

iso_json *iso_json_array(void)
{
    return json_array();
}

iso_json *iso_json_string(const char *s)
{
    if (!s)
        return NULL;
    if (iso_utf8_is_valid(s, strlen(s)))
        return json_string(s);
    /* Each bad byte becomes U+FFFD, three bytes. */
    char *text = iso_calloc(strlen(s) + 1, 3);
    if (!text)
        return NULL;
    size_t used = 0;
    for (size_t left = strlen(s); left;) {
        size_t n = iso_utf8_length(s, left), step = n ? n : 1;
        memcpy(text + used, n ? s : "\xEF\xBF\xBD", n ? n : 3);
        used += n ? n : 3;
        s += step;
        left -= step;
    }
    json_t *j = json_stringn(text, used);
    free(text);
    return j;
}

iso_json *iso_json_integer(int64_t v)
{
    return json_integer(v);
}

iso_json *iso_json_real(double v)
{
    return isfinite(v) ? json_real(v) : json_null();
}

iso_json *iso_json_boolean(bool v)
{
    return json_boolean(v);
}

iso_json *iso_json_null(void)
{
    return json_null();
}

/* A locale with a decimal comma must not reach a file. */
static void format_real(char *out, size_t bytes, int digits, double v)
{
    snprintf(out, bytes, "%.*g", digits, v);
    for (char *p = out; *p; p++)
        if (*p == ',')
            *p = '.';
}

iso_json *iso_json_float9(double v)
{
    char text[32];
    format_real(text, sizeof text, 9, v);
    return json_string(text);
}

static bool is_marked(const json_t *j)
{
    if (!is_container(j))
        return false;
    bool found = (j->refcount & MARK) != 0;
    for (size_t i = 0; i < json_array_size(j) && !found; i++)
        found = is_marked(json_array_get(j, i));
    json_t *o = (json_t *)(uintptr_t)j;
    for (void *at = json_object_iter(o); at && !found; at = json_object_iter_next(o, at))
        found = is_marked(json_object_iter_value(at));
    return found;
}

iso_json *iso_json_copy(const iso_json *j)
{
    return is_marked(j) ? NULL : json_deep_copy(j);
}

static bool stored(json_t *container, bool is_stored)
{
    if (!is_stored && is_container(container))
        container->refcount |= MARK;
    return is_stored;
}

bool iso_json_set(iso_json *object, const char *key, iso_json *value)
{
    if (!value || !json_is_object(object)) {
        iso_json_free(value);
        return stored(object, false);
    }
    unmark(json_object_get(object, key)); /* is about to be released */
    return stored(object, json_object_set_new(object, key, value) == 0);
}

bool iso_json_push(iso_json *array, iso_json *value)
{
    if (!value || !json_is_array(array)) {
        iso_json_free(value);
        return stored(array, false);
    }
    return stored(array, json_array_append_new(array, value) == 0);
}

/* ---- writing ---- */

typedef struct {
    iso_buf *out;
    iso_error *e;
    iso_json_style style;
} writer;

static iso_err put(writer *w, const char *text, size_t size)
{
    return iso_buf_append(w->out, text, size, w->e);
}

static iso_err put_string(writer *w, const char *s, size_t size)
{
    iso_err err = put(w, "\"", 1);
    size_t plain = 0; /* begin of what needs no escape */
    for (size_t i = 0; i < size && !err; i++) {
        uint8_t c = (uint8_t)s[i];
        if (c >= 0x20 && c != '"' && c != '\\')
            continue;
        static const char letters[] = "\b\f\n\r\t\"\\", names[] = "bfnrt\"\\";
        char escape[8];
        const char *at = c ? strchr(letters, c) : NULL;
        int n = at ? snprintf(escape, sizeof escape, "\\%c", names[at - letters])
                   : snprintf(escape, sizeof escape, "\\u%04X", c);
        err = put(w, s + plain, i - plain);
        if (!err)
            err = put(w, escape, (size_t)n);
        plain = i + 1;
    }
    if (!err)
        err = put(w, s + plain, size - plain);
    return err ? err : put(w, "\"", 1);
}

static iso_err put_real(writer *w, double v)
{
    char text[40];
    if (w->style == ISO_JSON_CANONICAL) {
        format_real(text, sizeof text, 9, v);
        return put_string(w, text, strlen(text));
    }
    for (int digits = 15; digits <= 17; digits++) {
        format_real(text, sizeof text, digits, v);
        if (strtod(text, NULL) == v)
            break;
    }
    if (!strpbrk(text, ".e")) /* stays a real when it is read again */
        strcat(text, ".0");
    return put(w, text, strlen(text));
}

static iso_err put_newline(writer *w, int depth)
{
    if (w->style != ISO_JSON_PRETTY)
        return ISO_OK;
    iso_err err = put(w, "\n", 1);
    for (int i = 0; i < depth && !err; i++)
        err = put(w, "  ", 2);
    return err;
}

static int by_key(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static iso_err put_value(writer *w, const json_t *j, int depth);

static iso_err put_object(writer *w, const json_t *j, int depth)
{
    json_t *o = (json_t *)(uintptr_t)j;
    size_t n = json_object_size(o);
    const char **keys = iso_calloc(n, sizeof *keys);
    if (!keys)
        return iso_nomem(w->e, n * sizeof *keys);
    size_t i = 0;
    for (void *at = json_object_iter(o); at; at = json_object_iter_next(o, at))
        keys[i++] = json_object_iter_key(at);
    if (w->style == ISO_JSON_CANONICAL)
        qsort(keys, n, sizeof *keys, by_key);
    iso_err err = put(w, "{", 1);
    for (i = 0; i < n && !err; i++) {
        if (i)
            err = put(w, ",", 1);
        if (!err)
            err = put_newline(w, depth + 1);
        if (!err)
            err = put_string(w, keys[i], strlen(keys[i]));
        if (!err)
            err = put(w, ": ", w->style == ISO_JSON_PRETTY ? 2 : 1);
        if (!err)
            err = put_value(w, json_object_get(o, keys[i]), depth + 1);
    }
    free(keys);
    if (!err && n)
        err = put_newline(w, depth);
    return err ? err : put(w, "}", 1);
}

static iso_err put_array(writer *w, const json_t *j, int depth)
{
    size_t n = json_array_size(j);
    iso_err err = put(w, "[", 1);
    for (size_t i = 0; i < n && !err; i++) {
        if (i)
            err = put(w, ",", 1);
        if (!err)
            err = put_newline(w, depth + 1);
        if (!err)
            err = put_value(w, json_array_get(j, i), depth + 1);
    }
    if (!err && n)
        err = put_newline(w, depth);
    return err ? err : put(w, "]", 1);
}

static iso_err put_value(writer *w, const json_t *j, int depth)
{
    char text[24];
    if (is_container(j) && (j->refcount & MARK))
        return iso_fail(w->e, ISO_ERR_MEMORY, "no memory while the JSON was put together");
    if (is_container(j) && depth >= MAX_DEPTH) /* we could not read it again */
        return iso_fail(w->e, ISO_ERR_INTERNAL, "JSON nested deeper than %d levels", MAX_DEPTH);
    switch (json_typeof(j)) {
    case JSON_OBJECT:
        return put_object(w, j, depth);
    case JSON_ARRAY:
        return put_array(w, j, depth);
    case JSON_STRING:
        return put_string(w, json_string_value(j), json_string_length(j));
    case JSON_INTEGER:
        snprintf(text, sizeof text, "%" JSON_INTEGER_FORMAT, json_integer_value(j));
        return put(w, text, strlen(text));
    case JSON_REAL:
        return put_real(w, json_real_value(j));
    case JSON_TRUE:
        return put(w, "true", 4);
    case JSON_FALSE:
        return put(w, "false", 5);
    default:
        return put(w, "null", 4);
    }
}

iso_err iso_json_dump(const iso_json *j, iso_json_style style, iso_buf *out, iso_error *e)
{
    if (!j)
        return iso_fail(e, ISO_ERR_MEMORY, "no memory while the JSON was put together");
    size_t before = out->size;
    writer w = {out, e, style};
    iso_err err = put_value(&w, j, 0);
    if (!err && style != ISO_JSON_COMPACT)
        err = put(&w, "\n", 1);
    /* A NUL that does not count, for callers that print. */
    if (!err && !(err = iso_buf_reserve(out, 1, e)))
        out->data[out->size] = 0;
    if (err)
        out->size = before;
    return err;
}

iso_err iso_json_check_canonical(const void *text, size_t size, const char *what, iso_error *e)
{
    iso_json *j = NULL;
    iso_buf again = {0};
    iso_err err = iso_json_parse(text, size, what, &j, e);
    if (!err)
        err = iso_json_dump(j, ISO_JSON_CANONICAL, &again, e);
    if (!err && (again.size != size || memcmp(again.data, text, size) != 0))
        err = iso_fail(e, ISO_ERR_DATA,
                       "%s: not canonical JSON (keys sorted, no spaces, floats as strings, one "
                       "newline at the end)",
                       what);
    iso_buf_free(&again);
    iso_json_free(j);
    return err;
}
