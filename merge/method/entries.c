/* Methods that work entry by entry: all tasks' values of a block side by side, whatever they come
 * from, so that the memory of a merge is a block a task and not a matrix a task. */
#include "merge/method/method.h"

#include <math.h>
#include <string.h>

enum { BLOCK_VALUES = 1 << 14 };

/* Blocks of factors are whole rows; a transposed weight is one block. */
size_t iso_entries_block(const iso_deltas *d)
{
    size_t count = d->m * d->n, rows = d->n ? BLOCK_VALUES / d->n : 0;
    if (d->is_transposed && !d->factors)
        return count;
    if (d->factors)
        return (rows > 0 ? rows : 1) * d->n;
    return count < BLOCK_VALUES ? count : BLOCK_VALUES;
}

iso_err iso_entries_walk(const iso_deltas *d, iso_entries_fn *fn, void *ctx, iso_arena *scratch,
                         iso_error *e)
{
    size_t count = d->m * d->n, block = iso_entries_block(d);
    double **x = iso_arena_alloc(scratch, d->T + 1, sizeof(double *));
    double *values = iso_arena_alloc(scratch, d->T * block + 1, sizeof *values);
    if (!x || !values)
        return iso_nomem(e, d->T * block * sizeof *values);
    for (size_t t = 0; t < d->T; t++)
        x[t] = values + t * block;
    for (size_t first = 0; first < count; first += block) {
        size_t some = count - first < block ? count - first : block;
        for (size_t t = 0; t < d->T; t++) {
            const double *D = d->is_transposed && !d->factors
                                  ? iso_delta_get(d, t, x[t])
                                  : iso_delta_part(d, t, first, some, x[t]);
            if (D != x[t])
                memcpy(x[t], D, some * sizeof *D);
            if (!isfinite(iso_norm(x[t], some)))
                return iso_fail(e, ISO_ERR_NONFINITE,
                                "input %zu holds NaN, Inf, or values too large to square", t + 1);
        }
        iso_err err = fn(ctx, &(iso_entries){d, d->T, first, some, x}, e);
        if (err)
            return err;
    }
    return ISO_OK;
}

typedef struct {
    const iso_method *method;
    const iso_method_args *a;
    double *out;
} merging;

static iso_err merge_block(void *ctx, const iso_entries *x, iso_error *e)
{
    const merging *m = ctx;
    (void)e;
    m->method->entries(x, m->a, m->out + x->first);
    return ISO_OK;
}

iso_err iso_entries_merge(const iso_method *m, const iso_method_args *a, const iso_deltas *d,
                          double *out, iso_arena *scratch, iso_error *e)
{
    merging merge = {m, a, out};
    return iso_entries_walk(d, merge_block, &merge, scratch, e);
}
