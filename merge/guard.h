/* Guards around a merge (specs/merging.md 8): isotropy lifts small directions, also planted ones.
 * All off by default here and in `isofed merge`; the coordinator turns them on. Each says what it
 * changed. The gain cap (c) acts inside the isotropic methods: iso_method_args.gain_cap. */
#ifndef ISO_MERGE_GUARD_H
#define ISO_MERGE_GUARD_H

#include "core/peft.h"

typedef struct {
    double
        norm_cap; /* (a) tasks above this many medians of the tasks' norms are scaled down; 0 off */
    double floor; /* (b) own singular values below this share of the largest are dropped; 0 off */
    double gain_cap; /* (c) s' = min(sigma, gain_cap * s); 0 off */
} iso_guard_options;

/* The coordinator's: c = 3, rho = 1e-2, g = 10. */
iso_guard_options iso_guard_defaults(void);

/* (a) scales[t] = min(1, cap * median / norm[t]); norms are over all layers of a task together
 * (AMENDMENTS 30). Returns how many tasks were scaled. cap 0: all one. */
size_t iso_guard_norm_scales(const double *norms, size_t T, double cap, double *scales);

/* |s B A|_F without forming the product. */
iso_err iso_lora_norm(const iso_lora_layer *l, double *norm, iso_arena *scratch,
                      iso_error *e) ISO_MUST_CHECK;

/* Singular values of s B A, descending; S has room for min(rank, out, in). */
iso_err iso_lora_spectrum(const iso_lora_layer *l, double *S, size_t *count, iso_arena *scratch,
                          iso_error *e) ISO_MUST_CHECK;

/* (b) *out is the layer itself, or a copy in `scratch` without the directions below the floor. */
iso_err iso_guard_floor(const iso_lora_layer *l, double floor, iso_lora_layer *out, size_t *dropped,
                        iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

#endif
