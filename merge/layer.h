/* One weight of a merge: from task vectors, whole or in LoRA factors, to the merged update. Picks
 * the route a method offers; works in double in the caller's arena. The front door is merge.h. */
#ifndef ISO_MERGE_LAYER_H
#define ISO_MERGE_LAYER_H

#include "core/peft.h"
#include "merge/method/method.h"

/* Whole matrices, or tensors of any shape seen as (1, n) for linear methods. out (m, n). */
iso_err iso_layer_dense(const iso_method *method, const iso_method_args *a, const iso_deltas *d,
                        double *out, iso_decisions *r, iso_arena *scratch,
                        iso_error *e) ISO_MUST_CHECK;

/* The LoRA factors of one layer over the tasks. */
typedef struct {
    size_t T, m, n; /* m = out, n = in */
    const iso_lora_layer *const
        *layers;           /* T; NULL: the task does not have this layer, a zero delta */
    const double *weights; /* T, or NULL: all one */
    double rank_tol;       /* 0: for exact factors (specs/merging.md 1) */
    size_t rank_cap;       /* rank of the result at most this; 0: no cap */
    double energy;         /* least rank that keeps this share of |D|_F^2; 0 or 1: all */
    const char *name;      /* of the layer, or NULL */
    size_t index;          /* of the layer among all of the merge */
    bool is_decomposed;    /* the result as singular triples, also where a stack would do */
} iso_lora_stack;

typedef struct {
    iso_product product; /* D = left' right: left (c, m), right (c, n), in the arena */
    double norm;         /* |D|_F before truncation */
    double energy_kept;  /* share of |D|_F^2 after it; 1 without */
    size_t full_rank;    /* rank before truncation */
} iso_layer_factors;

iso_err iso_layer_merge_factors(const iso_method *method, const iso_method_args *a,
                                const iso_lora_stack *in, iso_layer_factors *out, iso_decisions *r,
                                iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

/* The task vectors of a layer as factors, one row a vector, weights and LoRA scales in Bt: what
 * surveys and methods without a core look at. */
iso_err iso_layer_deltas(const iso_lora_stack *in, iso_deltas *out, iso_arena *scratch,
                         iso_error *e) ISO_MUST_CHECK;

/* Default rank tolerances: exact factors and doubles, or float32 and below (specs/merging.md 1). */
double iso_rank_tol(size_t m, size_t n, bool is_exact);

#endif
