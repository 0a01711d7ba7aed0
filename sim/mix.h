/* The merge/ library for the simulation's worker: adapters in, one adapter out. A door of its own,
 * because merge/linalg and core/store both call a type iso_op. */
#ifndef ISO_SIM_MIX_H
#define ISO_SIM_MIX_H

#include "core/peft.h"

typedef struct {
    const char *name;
    const iso_lora_layer *layers;
    size_t count;
} iso_mix_input;

typedef struct {
    iso_lora_layer *layers; /* live as long as `own` */
    size_t count;
    double energy_kept;
    void *own;
} iso_mix;

/* Within a task: the weighted mean of the products, cut to rank_cap. */
iso_err iso_mix_aggregate(const iso_mix_input *in, size_t n, const double *weights, size_t rank_cap,
                          iso_mix *out, iso_error *e) ISO_MUST_CHECK;
/* Across tasks, by a method of the registry, with the coordinator's guards. */
iso_err iso_mix_merge(const iso_mix_input *in, size_t n, const char *method, double alpha,
                      double common_fraction, bool is_dense, iso_mix *out,
                      iso_error *e) ISO_MUST_CHECK;
void iso_mix_free(iso_mix *m); /* a zeroed struct is fine */

#endif
