/* Recipes: one YAML file that says what `isofed merge` does, with no hidden rules (specs/users.md
 * U98). */
#ifndef ISO_CLI_MERGE_RECIPE_H
#define ISO_CLI_MERGE_RECIPE_H

#include "core/args.h"

/* A recipe as the options it stands for; texts live in the arena. Absent keys are NULL, empty or
 * zero. */
typedef struct {
    const char *method, *aggregate, *base, *out, *dtype;
    iso_arg_list inputs, weights; /* weights: empty unless one input names one */
    iso_arg_list set;             /* "parameter=value" */
    iso_arg_list layer_alpha;     /* "pattern=factor" */
    int convention, compat;
    int64_t rank;
    double energy, norm_cap, floor, gain_cap;
} iso_recipe;

/* Errors name line and key. Paths stay as they are written: relative to where the command runs. */
iso_err iso_recipe_read(const char *path, iso_arena *arena, iso_recipe *out,
                        iso_error *e) ISO_MUST_CHECK;

#endif
