/* Orthonormal bases that do not depend on the order of the tasks or on how a stack was factored:
 * singular vectors of what is stacked. For methods that merge coordinates (KnOTS, Core Space). */
#ifndef ISO_MERGE_METHOD_SHARED_H
#define ISO_MERGE_METHOD_SHARED_H

#include "merge/method/method.h"

/* Directions below this share of the largest singular value are left out: they come from a Gram
 * matrix, whose rounding is about 1e-8 of it. */
#define ISO_SHARED_TOL 1e-7

/* Row j of the stack X (R, m) is sum_i coords[j, i] * (vector i), `k` vectors, singular values
 * S descending. */
typedef struct {
    iso_basis basis; /* of the stack, in the order of its rows */
    size_t k;
    double *S;      /* k */
    double *turn;   /* (k, basis.k): the vectors in that basis */
    double *coords; /* (R, k) */
} iso_shared;

/* Of the rows of X, each R rows long stack of tasks first[t] .. first[t + 1] - 1. weights: NULL, or
 * (for every task) the Gram matrix (r_t, r_t) of what the rows of task t are multiplied by, so that
 * the singular vectors are those of the products. */
iso_err iso_shared_make(size_t R, size_t m, const double *X, size_t T, const size_t *first,
                        double *const *weights, iso_shared *out, iso_arena *scratch,
                        iso_error *e) ISO_MUST_CHECK;
/* out (c, m) = W (c, k) times the vectors. */
iso_err iso_shared_expand(const iso_shared *s, size_t c, const double *W, double *out,
                          iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

/* The factors of all tasks stacked: Bt (R, m), A (R, n); first has T + 1 entries. */
iso_err iso_stack_factors(const iso_deltas *d, size_t *R, size_t **first, double **Bt, double **A,
                          iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

#endif
