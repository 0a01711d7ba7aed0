/* Any bytes as a configuration: a tree within its limits that fills a struct, or a line that names
 * the file. */
#include "core/yaml.h"

#include <stddef.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

typedef struct {
    const char *name;
    bool is_on;
    int64_t count;
    double alpha;
    uint64_t size, wait;
    int method;
    iso_yaml_strings tasks;
    const iso_yaml *extra;
} settings;

static const char *const methods[] = {"average", "iso_c", "iso_cts", NULL};
#define ROW(k, t) .key = #k, .type = t, .offset = offsetof(settings, k)
static const iso_yaml_row rows[] = {
    {ROW(name, ISO_YAML_STRING)},
    {ROW(is_on, ISO_YAML_BOOL)},
    {ROW(count, ISO_YAML_INT), .min = 1, .max = 100},
    {ROW(alpha, ISO_YAML_DOUBLE)},
    {ROW(size, ISO_YAML_BYTES), .min = 1, .max = 1e9},
    {ROW(wait, ISO_YAML_DURATION_MS)},
    {ROW(method, ISO_YAML_ENUM), .choices = methods},
    {ROW(tasks, ISO_YAML_STRINGS)},
    {ROW(extra, ISO_YAML_NODE)},
    {0},
};

static void walk(const iso_yaml *y, int depth)
{
    if (depth > 16 || y->line < 1)
        abort();
    if (y->kind == ISO_YAML_SCALAR && !y->scalar)
        abort();
    for (size_t i = 0; i < y->count; i++) {
        if (y->kind == ISO_YAML_MAP && iso_yaml_key(y, y->keys[i]) != y->items[i])
            abort(); /* a key that stands twice */
        walk(y->items[i], depth + 1);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_arena arena = {0};
    const iso_yaml *y;
    iso_error e = {0};
    settings s = {.count = 7};
    iso_err err = iso_yaml_parse(data, size, "fuzz", &arena, &y, &e);
    if (!err) {
        walk(y, 0);
        err = iso_yaml_fill(y, rows, "fuzz", &s, &arena, &e);
    }
    if (err ? strncmp(e.text, "fuzz:", 5) != 0 : s.count < 1 || s.count > 100)
        abort();
    iso_arena_free(&arena);
    return 0;
}
