/* JSON behind our errors and limits: duplicates refused, depth <= 32, size checked before parsing.
 * Canonical form (specs/security.md S90): UTF-8, keys sorted bytewise, no spaces, integers in
 * decimal, floats as strings of "%.9g" made by the writer, one trailing newline.
 * Nodes are jansson's, opaque here; a parsed or new root is owned and released with iso_json_free;
 * children are borrowed. */
#ifndef ISO_CORE_JSON_H
#define ISO_CORE_JSON_H

#include "core/mem.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct json_t iso_json;

iso_err iso_json_parse(const void *text, size_t size, const char *what, iso_json **out,
                       iso_error *e) ISO_MUST_CHECK; /* `what` names the source in errors */
iso_err iso_json_read(const char *path, size_t max_bytes, iso_json **out,
                      iso_error *e) ISO_MUST_CHECK;
void iso_json_free(iso_json *root);

/* Reading. "need" functions fail with a line naming the key; "get" functions return the default
 * when the key is absent, and fail when it is there with the wrong type or out of range. */
const iso_json *iso_json_key(const iso_json *object, const char *key); /* NULL if absent */
bool iso_json_is_object(const iso_json *j);
bool iso_json_is_array(const iso_json *j);
bool iso_json_is_null(const iso_json *j);
size_t iso_json_count(const iso_json *j); /* members or elements */
const iso_json *iso_json_at(const iso_json *array, size_t i);
/* Member i of an object in its order; key borrowed. */
const iso_json *iso_json_member(const iso_json *object, size_t i, const char **key);
/* Walks an object in its order, in constant time a step: *at is NULL at first; false at the end. */
bool iso_json_next(const iso_json *object, void **at, const char **key, const iso_json **value);
const char *iso_json_str(const iso_json *j);        /* NULL unless a string */
bool iso_json_int(const iso_json *j, int64_t *out); /* false unless an integer */
bool iso_json_num(const iso_json *j, double *out);  /* integer or real */
bool iso_json_bool(const iso_json *j, bool *out);
iso_err iso_json_need_str(const iso_json *o, const char *key, const char **out,
                          iso_error *e) ISO_MUST_CHECK;
iso_err iso_json_need_int(const iso_json *o, const char *key, int64_t min, int64_t max,
                          int64_t *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_json_get_int(const iso_json *o, const char *key, int64_t min, int64_t max,
                         int64_t otherwise, int64_t *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_json_get_num(const iso_json *o, const char *key, double otherwise, double *out,
                         iso_error *e) ISO_MUST_CHECK;
iso_err iso_json_get_bool(const iso_json *o, const char *key, bool otherwise, bool *out,
                          iso_error *e) ISO_MUST_CHECK;
iso_err iso_json_get_str(const iso_json *o, const char *key, const char *otherwise,
                         const char **out, iso_error *e) ISO_MUST_CHECK;

/* Writing. Setters take ownership of `value` (also on failure). A member that could not be made or
 * stored (exhaustion: `value` NULL) marks its object or array, and iso_json_dump refuses a tree
 * with a mark, or NULL, with ISO_ERR_MEMORY: calls can be nested and checked once at the end. Fill
 * a child before it is set: where it cannot be stored it is released. */
iso_json *iso_json_object(void);
iso_json *iso_json_array(void);
iso_json *iso_json_string(const char *s); /* invalid UTF-8 is replaced */
iso_json *iso_json_integer(int64_t v);
iso_json *iso_json_real(double v); /* not finite becomes null */
iso_json *iso_json_boolean(bool v);
iso_json *iso_json_null(void);
iso_json *iso_json_float9(double v); /* the canonical string form "%.9g" */
bool iso_json_set(iso_json *object, const char *key, iso_json *value);
bool iso_json_push(iso_json *array, iso_json *value);

/* A deep copy; NULL on exhaustion or for NULL. */
iso_json *iso_json_copy(const iso_json *j);

/* Compact: one line, keys in the order they were set, no newline. Pretty: indented by two, newline.
 * Reals are the shortest decimal that reads back to the same double. */
typedef enum { ISO_JSON_COMPACT, ISO_JSON_PRETTY, ISO_JSON_CANONICAL } iso_json_style;
iso_err iso_json_dump(const iso_json *j, iso_json_style style, iso_buf *out,
                      iso_error *e) ISO_MUST_CHECK;
/* ISO_ERR_DATA unless text is byte-identical to its own canonical form. */
iso_err iso_json_check_canonical(const void *text, size_t size, const char *what,
                                 iso_error *e) ISO_MUST_CHECK;

#endif
