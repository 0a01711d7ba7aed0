/* Reading a recipe (docs/MERGING.md, "Recipes"). */
#include "cli/merge_recipe.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    iso_recipe r;
    const iso_yaml *inputs, *parameters, *layers, *guards;
} file;

static const char *const conventions[] = {"auto", "dense", "rank", NULL};
static const char *const compats[] = {"default", "reference", NULL};

#define AT(field) offsetof(file, field)
static const iso_yaml_row rows[] = {
    {"inputs", ISO_YAML_NODE, AT(inputs), true, 0, 0, NULL, "paths, or maps of path and weight"},
    {"method", ISO_YAML_STRING, AT(r.method), false, 0, 0, NULL, "isofed merge --list"},
    {"aggregate", ISO_YAML_STRING, AT(r.aggregate), false, 0, 0, NULL, "a rule inside one task"},
    {"parameters", ISO_YAML_NODE, AT(parameters), false, 0, 0, NULL, "of the method, by name"},
    {"layers", ISO_YAML_NODE, AT(layers), false, 0, 0, NULL, "list of match and alpha"},
    {"guards", ISO_YAML_NODE, AT(guards), false, 0, 0, NULL, "norm_cap, floor, gain_cap"},
    {"convention", ISO_YAML_ENUM, AT(r.convention), false, 0, 0, conventions, "auto, dense, rank"},
    {"compat", ISO_YAML_ENUM, AT(r.compat), false, 0, 0, compats, "default, reference"},
    {"rank", ISO_YAML_INT, AT(r.rank), false, 0, 65536, NULL, "rank cap; 0: none"},
    {"energy", ISO_YAML_DOUBLE, AT(r.energy), false, 0, 1, NULL, "share that is kept"},
    {"base", ISO_YAML_STRING, AT(r.base), false, 0, 0, NULL, "whole weights: their base"},
    {"dtype", ISO_YAML_STRING, AT(r.dtype), false, 0, 0, NULL, "F64, F32, F16, BF16"},
    {"out", ISO_YAML_STRING, AT(r.out), false, 0, 0, NULL, "unless -o says another"},
    {0},
};

typedef struct {
    const char *path;
    double weight;
} input;

static const iso_yaml_row input_rows[] = {
    {"path", ISO_YAML_STRING, offsetof(input, path), true, 0, 0, NULL, "adapter or tensors"},
    {"weight", ISO_YAML_DOUBLE, offsetof(input, weight), false, 0, 1e9, NULL, "1 unless said"},
    {0},
};

typedef struct {
    const char *match;
    double alpha;
} layer;

static const iso_yaml_row layer_rows[] = {
    {"match", ISO_YAML_STRING, offsetof(layer, match), true, 0, 0, NULL, "name; * and ?"},
    {"alpha", ISO_YAML_DOUBLE, offsetof(layer, alpha), true, -1e6, 1e6, NULL, "factor on alpha"},
    {0},
};

static const iso_yaml_row guard_rows[] = {
    {"norm_cap", ISO_YAML_DOUBLE, offsetof(iso_recipe, norm_cap), false, 0, 1e6, NULL, "medians"},
    {"floor", ISO_YAML_DOUBLE, offsetof(iso_recipe, floor), false, 0, 1, NULL, "share of largest"},
    {"gain_cap", ISO_YAML_DOUBLE, offsetof(iso_recipe, gain_cap), false, 0, 1e6, NULL, "times"},
    {0},
};

static iso_err push(iso_arg_list *list, const char *text, const char *what, int line, iso_error *e)
{
    if (list->count == sizeof list->items / sizeof *list->items)
        return iso_fail(e, ISO_ERR_USAGE, "%s: line %d: more than %zu entries", what, line,
                        list->count);
    if (!text)
        return iso_nomem(e, 64);
    list->items[list->count++] = text;
    return ISO_OK;
}

static iso_err need_list(const iso_yaml *y, const char *key, const char *what, iso_error *e)
{
    if (y->kind == ISO_YAML_LIST)
        return ISO_OK;
    return iso_fail(e, ISO_ERR_USAGE, "%s: line %d: %s takes a list", what, y->line, key);
}

/* "name=number" in the arena. */
static const char *assign(iso_arena *arena, const char *name, const char *value)
{
    char text[512];
    int n = snprintf(text, sizeof text, "%s=%s", name, value);
    return n > 0 && (size_t)n < sizeof text ? iso_arena_strdup(arena, text) : NULL;
}

static iso_err read_inputs(const iso_yaml *y, const char *what, iso_arena *arena, iso_recipe *r,
                           iso_error *e)
{
    bool has_weights = false;
    iso_err err = need_list(y, "inputs", what, e);
    for (size_t i = 0; !err && i < y->count; i++) {
        input in = {.weight = 1.0};
        char number[32];
        const iso_yaml *item = y->items[i];
        if (item->kind == ISO_YAML_SCALAR)
            in.path = item->scalar;
        else
            err = iso_yaml_fill(item, input_rows, what, &in, arena, e);
        if (err)
            break;
        has_weights = has_weights || (item->kind == ISO_YAML_MAP && iso_yaml_key(item, "weight"));
        snprintf(number, sizeof number, "%.17g", in.weight);
        err = push(&r->inputs, in.path, what, item->line, e);
        if (!err)
            err = push(&r->weights, iso_arena_strdup(arena, number), what, item->line, e);
    }
    if (!has_weights)
        r->weights.count = 0;
    return err;
}

static iso_err read_parameters(const iso_yaml *y, const char *what, iso_arena *arena, iso_recipe *r,
                               iso_error *e)
{
    if (y->kind != ISO_YAML_MAP)
        return iso_fail(e, ISO_ERR_USAGE, "%s: line %d: parameters takes name: value", what,
                        y->line);
    iso_err err = ISO_OK;
    for (size_t i = 0; i < y->count && !err; i++) {
        if (y->items[i]->kind != ISO_YAML_SCALAR)
            return iso_fail(e, ISO_ERR_USAGE, "%s: line %d: parameter %s takes one value", what,
                            y->items[i]->line, y->keys[i]);
        err = push(&r->set, assign(arena, y->keys[i], y->items[i]->scalar), what, y->line, e);
    }
    return err;
}

static iso_err read_layers(const iso_yaml *y, const char *what, iso_arena *arena, iso_recipe *r,
                           iso_error *e)
{
    iso_err err = need_list(y, "layers", what, e);
    for (size_t i = 0; !err && i < y->count; i++) {
        layer l = {0};
        char number[32];
        err = iso_yaml_fill(y->items[i], layer_rows, what, &l, arena, e);
        if (err)
            break;
        snprintf(number, sizeof number, "%.17g", l.alpha);
        err = push(&r->layer_alpha, assign(arena, l.match, number), what, y->items[i]->line, e);
    }
    return err;
}

iso_err iso_recipe_read(const char *path, iso_arena *arena, iso_recipe *out, iso_error *e)
{
    file f = {0};
    const iso_yaml *root = NULL;
    iso_err err = iso_yaml_read(path, arena, &root, e);
    if (!err)
        err = iso_yaml_fill(root, rows, path, &f, arena, e);
    if (!err)
        err = read_inputs(f.inputs, path, arena, &f.r, e);
    if (!err && f.parameters)
        err = read_parameters(f.parameters, path, arena, &f.r, e);
    if (!err && f.layers)
        err = read_layers(f.layers, path, arena, &f.r, e);
    if (!err && f.guards)
        err = iso_yaml_fill(f.guards, guard_rows, path, &f.r, arena, e);
    *out = f.r;
    return err;
}
