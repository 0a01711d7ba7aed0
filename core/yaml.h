/* YAML with a schema, on libyaml's events: tables, not code.
 *
 * A file is read into a tree of maps, lists and scalars with line numbers; aliases, anchors, tags,
 * several documents, depth > 16 and > 1 MiB are refused; duplicate keys too
 * (specs/security.md 9.1). Then a table of rows fills a struct: an unknown key is an error that
 * names the nearest key, a bad value names the range. */
#ifndef ISO_CORE_YAML_H
#define ISO_CORE_YAML_H

#include "core/mem.h"

#include <stdbool.h>
#include <stdint.h>

typedef enum { ISO_YAML_SCALAR, ISO_YAML_MAP, ISO_YAML_LIST } iso_yaml_kind;
typedef struct iso_yaml {
    iso_yaml_kind kind;
    int line;
    const char *scalar;            /* kind scalar */
    const char **keys;             /* kind map: count keys */
    const int *key_lines;          /* kind map: where each key stands */
    const struct iso_yaml **items; /* kind map: values; kind list: elements */
    size_t count;
} iso_yaml;

/* The tree lives in `arena`. `what` names the source in errors. */
iso_err iso_yaml_parse(const void *text, size_t size, const char *what, iso_arena *arena,
                       const iso_yaml **out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_yaml_read(const char *path, iso_arena *arena, const iso_yaml **out,
                      iso_error *e) ISO_MUST_CHECK;
const iso_yaml *iso_yaml_key(const iso_yaml *map, const char *key);

typedef enum {
    ISO_YAML_STRING,      /* const char * in the arena */
    ISO_YAML_BOOL,        /* bool: true false yes no on off */
    ISO_YAML_INT,         /* int64_t within min..max */
    ISO_YAML_DOUBLE,      /* double within min..max */
    ISO_YAML_BYTES,       /* uint64_t: 64MiB, 1GiB, 4096; within min..max */
    ISO_YAML_DURATION_MS, /* uint64_t: 250ms 10s 5m 2h 1d; within min..max */
    ISO_YAML_ENUM,        /* int: index in `choices`, a NULL-terminated list of words */
    ISO_YAML_STRINGS,     /* iso_yaml_strings */
    ISO_YAML_NODE         /* const iso_yaml *: anything, read by the caller */
} iso_yaml_type;

typedef struct {
    const char **items;
    size_t count;
} iso_yaml_strings;

typedef struct {
    const char *key;
    iso_yaml_type type;
    size_t offset; /* offsetof the field */
    bool required;
    double min, max; /* numbers; both 0: unbounded */
    const char *const *choices;
    const char *help; /* one line, printed into generated configurations */
} iso_yaml_row;

/* Fills `out` (defaults already in it) from a map; rows end with key NULL. `what` is the file name.
 */
iso_err iso_yaml_fill(const iso_yaml *map, const iso_yaml_row *rows, const char *what, void *out,
                      iso_arena *arena, iso_error *e) ISO_MUST_CHECK;

/* "64MiB", "1.5 GiB", "10MB", "4096"; false if it is none or beyond 2^63. */
bool iso_bytes_parse(const char *text, uint64_t *out);
/* "250ms", "10s", "5m", "2h", "1d", "0"; false if it is none or beyond 2^63 ms. */
bool iso_duration_parse(const char *text, uint64_t *out);
/* Whole decimal numbers with nothing before or after them; false otherwise. */
bool iso_int_parse(const char *text, int64_t *out);
bool iso_double_parse(const char *text, double *out); /* finite */
/* Whether v lies in min..max (both 0: unbounded). */
bool iso_in_range(double v, double min, double max);
/* "1..16", "at least 1" (max infinite), "up to 8", "any number". */
void iso_range_text(char *out, size_t out_bytes, double min, double max);

/* The nearest of n words by edit distance, or NULL when none is within 1/3 of the length. */
const char *iso_nearest(const char *word, const char *const *words, size_t n);

#endif
