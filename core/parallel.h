/* Loops over independent items: the only threads outside daemons (OpenMP, core/parallel.c).
 *
 * Items own what they write; nothing is summed across items here. Partial sums are combined by the
 * caller in index order, so results do not depend on the number of threads. Nested calls run
 * serially. BLAS is called single-threaded from inside items. */
#ifndef ISO_CORE_PARALLEL_H
#define ISO_CORE_PARALLEL_H

#include <stddef.h>

/* 0 asks for the number of processors this process may use. Set once, at program start. */
void iso_set_threads(int n);
int iso_threads(void);

/* Calls body(ctx, i, worker) for i = 0 .. n-1; worker in 0 .. iso_threads()-1 names a scratch slot.
 * Items are handed out dynamically in index order, `grain` at a time. */
typedef void iso_item_fn(void *ctx, size_t i, int worker);
void iso_parallel_for(size_t n, size_t grain, iso_item_fn *body, void *ctx);

#endif
