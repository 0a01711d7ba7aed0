/* TIES over blocks of entries: for the method itself and for methods that have it inside. */
#ifndef ISO_MERGE_METHOD_TIES_H
#define ISO_MERGE_METHOD_TIES_H

#include "merge/method/method.h"

typedef struct iso_ties iso_ties;

/* votes: T weights that the disjoint mean divides by, or NULL; kept. */
iso_err iso_ties_begin(double density, const iso_method_args *a, size_t T, iso_ties **out,
                       iso_arena *arena, iso_error *e) ISO_MUST_CHECK;
/* Counts a block: x[t], `count` values each. Any thread, any order. */
void iso_ties_scan(iso_ties *s, double *const *x, size_t count);
void iso_ties_end_pass(iso_ties *s, bool *is_done);
/* After the last pass. out[i] = alpha * the mean of the elected values. */
void iso_ties_block(const iso_ties *s, double *const *x, size_t count, double alpha, double *out);
/* The magnitude from which on task t's entries are kept. */
double iso_ties_threshold(const iso_ties *s, size_t t);

#endif
