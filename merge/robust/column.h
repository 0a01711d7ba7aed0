/* One entry over all updates, sorted: for the coordinate rules. */
#ifndef ISO_MERGE_ROBUST_COLUMN_H
#define ISO_MERGE_ROBUST_COLUMN_H

#include "merge/method/method.h"

enum { ISO_COLUMN_MAX = 1024 };

static inline iso_err iso_column_check(size_t T, iso_error *e)
{
    return T <= ISO_COLUMN_MAX
               ? ISO_OK
               : iso_fail(e, ISO_ERR_USAGE, "%zu updates; coordinate rules take up to %d", T,
                          ISO_COLUMN_MAX);
}

/* Insertion: T is small, and for a few values nothing is faster. */
static inline void iso_column_sorted(const iso_entries *x, size_t i, double *column)
{
    for (size_t t = 0; t < x->T; t++) {
        double v = x->x[t][i];
        size_t k = t;
        for (; k > 0 && column[k - 1] > v; k--)
            column[k] = column[k - 1];
        column[k] = v;
    }
}

#endif
