/* Squared distances between updates and their norms, over all tensors together: what the rules need
 * whose result is a linear combination. On LoRA from inner products of factors,
 * <D_i, D_j> = sum of (B_i' B_j) o (A_i A_j'). */
#ifndef ISO_MERGE_ROBUST_DISTANCES_H
#define ISO_MERGE_ROBUST_DISTANCES_H

#include "merge/method/method.h"

typedef struct {
    size_t T, tensors;
    iso_method_args args; /* of the rule */
    double *slots;        /* (tensors, T * T): each tensor's share, so that the sum has one order */
    double *squared;      /* (T, T): |D_i - D_j|^2; on the diagonal |D_i|^2 */
    double *coefficients; /* T: for the rule to fill; the result is their combination */
    double *scratch;      /* 2 T */
} iso_distances;

/* For the rule's survey; one pass. */
iso_err iso_distances_begin(const iso_method_args *a, size_t T, size_t tensors, void **state,
                            iso_arena *arena, iso_error *e);
iso_err iso_distances_scan(void *state, const iso_method_args *a, const iso_deltas *d,
                           iso_arena *scratch, iso_error *e);
/* Adds up the slots. */
void iso_distances_sum(iso_distances *s);
double iso_distances_vote(const iso_distances *s, size_t t);

/* For the rule's row: what it filled in, times what guards made of the updates. */
void iso_distances_coefficients(const iso_method_args *a, const double *weights, size_t T,
                                double *out);

#endif
