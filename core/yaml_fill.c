/* A table of rows fills a struct from a YAML map; the readers of single values serve command lines
 * too (core/args.c). An unknown key names the nearest one, a bad value says what would be right. */
#include "core/yaml.h"

#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* ---- single values ---- */

bool iso_int_parse(const char *text, int64_t *out)
{
    const char *digits = text + (*text == '-' || *text == '+');
    if (!isdigit((unsigned char)*digits))
        return false;
    char *end;
    errno = 0;
    long long v = strtoll(text, &end, 10);
    if (*end || errno)
        return false;
    *out = v;
    return true;
}

bool iso_double_parse(const char *text, double *out)
{
    if (!*text || strspn(text, "0123456789+-.eE") != strlen(text)) /* no inf, nan, hexadecimals */
        return false;
    char *end;
    double v = strtod(text, &end);
    if (end == text || *end || !isfinite(v))
        return false;
    *out = v;
    return true;
}

typedef struct {
    const char *name;
    double factor;
} unit;

/* A number and one of the units (the last has name NULL), spaces between allowed. */
static bool parse_with_unit(const char *text, const unit *units, uint64_t *out)
{
    size_t n = strspn(text, "0123456789.");
    char number[32];
    double v;
    if (n == 0 || n >= sizeof number)
        return false;
    memcpy(number, text, n);
    number[n] = 0;
    if (!iso_double_parse(number, &v))
        return false;
    text += n;
    text += strspn(text, " ");
    for (; units->name; units++)
        if (!strcmp(text, units->name)) {
            int64_t whole;
            /* Exact for whole numbers without a unit; doubles carry the others. */
            if (units->factor == 1 && iso_int_parse(number, &whole)) {
                *out = (uint64_t)whole;
                return true;
            }
            v *= units->factor;
            if (v >= 0x1p63)
                return false;
            *out = (uint64_t)llround(v);
            return true;
        }
    return false;
}

bool iso_bytes_parse(const char *text, uint64_t *out)
{
    static const unit units[] = {
        {"", 1},         {"B", 1},        {"KiB", 0x1p10}, {"MiB", 0x1p20},
        {"GiB", 0x1p30}, {"TiB", 0x1p40}, {"kB", 1e3},     {"MB", 1e6},
        {"GB", 1e9},     {"TB", 1e12},    {NULL, 0},
    };
    return parse_with_unit(text, units, out);
}

bool iso_duration_parse(const char *text, uint64_t *out)
{
    static const unit units[] = {
        {"ms", 1}, {"s", 1e3}, {"m", 60e3}, {"min", 60e3}, {"h", 3600e3}, {"d", 86400e3}, {NULL, 0},
    };
    if (!strcmp(text, "0")) {
        *out = 0;
        return true;
    }
    return parse_with_unit(text, units, out);
}

bool iso_in_range(double v, double min, double max)
{
    return (min == 0 && max == 0) || (v >= min && v <= max);
}

void iso_range_text(char *out, size_t out_bytes, double min, double max)
{
    if ((min == 0 && max == 0) || (isinf(min) && isinf(max)))
        snprintf(out, out_bytes, "any number");
    else if (isinf(max))
        snprintf(out, out_bytes, "at least %.12g", min);
    else if (isinf(min))
        snprintf(out, out_bytes, "up to %.12g", max);
    else
        snprintf(out, out_bytes, "%.12g..%.12g", min, max);
}

/* ---- the nearest word ---- */

enum { MAX_WORD = 63 };

/* Edit distance in which a swap of neighbours counts one (Damerau; optimal string alignment). */
static size_t distance(const char *a, const char *b)
{
    size_t n = strlen(a), m = strlen(b);
    uint8_t row[3][MAX_WORD + 1];
    uint8_t *before = row[0], *last = row[1], *now = row[2];
    for (size_t j = 0; j <= m; j++)
        last[j] = (uint8_t)j;
    for (size_t i = 1; i <= n; i++) {
        now[0] = (uint8_t)i;
        for (size_t j = 1; j <= m; j++) {
            int best = last[j - 1] + (a[i - 1] != b[j - 1]);
            if (last[j] + 1 < best)
                best = last[j] + 1;
            if (now[j - 1] + 1 < best)
                best = now[j - 1] + 1;
            if (i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] &&
                before[j - 2] + 1 < best)
                best = before[j - 2] + 1;
            now[j] = (uint8_t)best;
        }
        uint8_t *spare = before;
        before = last;
        last = now;
        now = spare;
    }
    return last[m];
}

const char *iso_nearest(const char *word, const char *const *words, size_t n)
{
    size_t length = strlen(word), best = length / 3 + 1;
    const char *nearest = NULL;
    if (length > MAX_WORD)
        return NULL;
    for (size_t i = 0; i < n; i++) {
        if (strlen(words[i]) > MAX_WORD)
            continue;
        size_t d = distance(word, words[i]);
        if (d < best) { /* the first among equals */
            best = d;
            nearest = words[i];
        }
    }
    return nearest;
}

/* ---- filling ---- */

/* What one row is filled from, and where complaints go. */
typedef struct {
    const iso_yaml_row *row;
    const iso_yaml *node;
    const char *what;
    iso_arena *arena;
    iso_error *e;
} source;

static iso_err expected(const source *s, const char *right)
{
    const char *value = s->node->kind == ISO_YAML_SCALAR ? s->node->scalar
                        : s->node->kind == ISO_YAML_MAP  ? "a map"
                                                         : "a list";
    return iso_fail(s->e, ISO_ERR_USAGE, "%s:%d: \"%s\" is %s%.48s%s; expected %s", s->what,
                    s->node->line, s->row->key, s->node->kind == ISO_YAML_SCALAR ? "\"" : "", value,
                    s->node->kind == ISO_YAML_SCALAR ? "\"" : "", right);
}

static iso_err expected_range(const source *s, const char *kind)
{
    char range[64], right[128];
    iso_range_text(range, sizeof range, s->row->min, s->row->max);
    bool is_bounded = s->row->min != 0 || s->row->max != 0;
    snprintf(right, sizeof right, "%s%s%s", kind, is_bounded ? ", " : "", is_bounded ? range : "");
    return expected(s, right);
}

static iso_err fill_enum(const source *s, int *out)
{
    size_t n = 0;
    for (; s->row->choices[n]; n++)
        if (!strcmp(s->row->choices[n], s->node->scalar)) {
            *out = (int)n;
            return ISO_OK;
        }
    char right[160] = "one of";
    size_t used = strlen(right);
    for (size_t i = 0; i < n && used < sizeof right; i++)
        used += (size_t)snprintf(right + used, sizeof right - used, " %s", s->row->choices[i]);
    const char *near = iso_nearest(s->node->scalar, s->row->choices, n);
    if (near)
        snprintf(right, sizeof right, "%s", near);
    return expected(s, right);
}

static iso_err fill_bool(const source *s, bool *out)
{
    static const char *const words[] = {"false", "no", "off", "true", "yes", "on"};
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcasecmp(words[i], s->node->scalar)) {
            *out = i >= 3;
            return ISO_OK;
        }
    return expected(s, "true or false");
}

static iso_err fill_strings(const source *s, iso_yaml_strings *out)
{
    const iso_yaml *node = s->node;
    if (node->kind == ISO_YAML_MAP)
        return expected(s, "a list of words");
    size_t n = node->kind == ISO_YAML_LIST ? node->count : 1;
    const char **items = iso_arena_alloc(s->arena, n, sizeof *items);
    if (!items)
        return iso_nomem(s->e, n * sizeof *items);
    for (size_t i = 0; i < n; i++) {
        const iso_yaml *item = node->kind == ISO_YAML_LIST ? node->items[i] : node;
        if (item->kind != ISO_YAML_SCALAR)
            return iso_fail(s->e, ISO_ERR_USAGE, "%s:%d: \"%s\" is a list of words only", s->what,
                            item->line, s->row->key);
        items[i] = item->scalar;
    }
    *out = (iso_yaml_strings){items, n};
    return ISO_OK;
}

static iso_err fill_number(const source *s, void *field)
{
    const iso_yaml_row *row = s->row;
    const char *text = s->node->scalar;
    int64_t i;
    uint64_t u;
    double d;
    switch (row->type) {
    case ISO_YAML_INT:
        if (!iso_int_parse(text, &i) || !iso_in_range((double)i, row->min, row->max))
            return expected_range(s, "a whole number");
        memcpy(field, &i, sizeof i);
        return ISO_OK;
    case ISO_YAML_DOUBLE:
        if (!iso_double_parse(text, &d) || !iso_in_range(d, row->min, row->max))
            return expected_range(s, "a number");
        memcpy(field, &d, sizeof d);
        return ISO_OK;
    case ISO_YAML_BYTES:
        if (!iso_bytes_parse(text, &u) || !iso_in_range((double)u, row->min, row->max))
            return expected_range(s, "a size such as 64MiB");
        memcpy(field, &u, sizeof u);
        return ISO_OK;
    default:
        if (!iso_duration_parse(text, &u) || !iso_in_range((double)u, row->min, row->max))
            return expected_range(s, "a time such as 250ms, 10s or 2h");
        memcpy(field, &u, sizeof u);
        return ISO_OK;
    }
}

static iso_err fill_row(const source *s, void *field)
{
    switch (s->row->type) {
    case ISO_YAML_NODE:
        memcpy(field, &s->node, sizeof s->node);
        return ISO_OK;
    case ISO_YAML_STRINGS:
        return fill_strings(s, field);
    default:
        break;
    }
    if (s->node->kind != ISO_YAML_SCALAR)
        return expected(s, "a single value");
    switch (s->row->type) {
    case ISO_YAML_STRING:
        memcpy(field, &s->node->scalar, sizeof s->node->scalar);
        return ISO_OK;
    case ISO_YAML_BOOL:
        return fill_bool(s, field);
    case ISO_YAML_ENUM:
        return fill_enum(s, field);
    default:
        return fill_number(s, field);
    }
}

static iso_err unknown_key(const iso_yaml *map, size_t at, const iso_yaml_row *rows, size_t n,
                           const char *what, iso_error *e)
{
    enum { MOST = 128 };
    const char *keys[MOST];
    for (size_t i = 0; i < n && i < MOST; i++)
        keys[i] = rows[i].key;
    const char *near = iso_nearest(map->keys[at], keys, n < MOST ? n : MOST);
    return iso_fail(e, ISO_ERR_USAGE, "%s:%d: unknown key \"%.64s\"%s%s%s", what,
                    map->key_lines[at], map->keys[at], near ? "; did you mean \"" : "",
                    near ? near : "", near ? "\"?" : "");
}

iso_err iso_yaml_fill(const iso_yaml *map, const iso_yaml_row *rows, const char *what, void *out,
                      iso_arena *arena, iso_error *e)
{
    if (map->kind != ISO_YAML_MAP)
        return iso_fail(e, ISO_ERR_USAGE, "%s:%d: expected \"key: value\" lines", what, map->line);
    size_t n = 0;
    while (rows[n].key)
        n++;
    for (size_t i = 0; i < map->count; i++) {
        const iso_yaml_row *row = rows;
        while (row->key && strcmp(row->key, map->keys[i]) != 0)
            row++;
        if (!row->key)
            return unknown_key(map, i, rows, n, what, e);
        source s = {row, map->items[i], what, arena, e};
        iso_err err = fill_row(&s, (char *)out + row->offset);
        if (err)
            return err;
    }
    for (const iso_yaml_row *row = rows; row->key; row++)
        if (row->required && !iso_yaml_key(map, row->key))
            return iso_fail(e, ISO_ERR_USAGE, "%s:%d: key \"%s\" is missing", what, map->line,
                            row->key);
    return ISO_OK;
}
