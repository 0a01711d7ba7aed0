/* A matrix as a product of few rows: its singular triples, the root of each value on both sides. */
#include "merge/method/method.h"

#include <math.h>
#include <string.h>

void iso_route_of(const iso_thin *t, char *route)
{
    strcpy(route, t->route == ISO_ROUTE_GRAM ? "gram" : t->route == ISO_ROUTE_SVD ? "svd" : "zero");
}

iso_err iso_product_of(size_t m, size_t n, const double *D, double rank_tol, double noise,
                       size_t cap, iso_product *p, char *route, iso_arena *scratch, iso_error *e)
{
    iso_thin t = {0};
    size_t q = m < n ? m : n;
    iso_err err = iso_thin_svd(m, n, D, rank_tol, noise, cap && cap < q ? cap : q, ISO_WISH_AUTO,
                               &t, scratch, e);
    size_t count = cap && cap < t.rank ? cap : t.rank;
    if (!err)
        err = iso_thin_far(&t, D, count, scratch, e);
    if (err)
        return err;
    for (size_t i = 0; i < count; i++) {
        double root = sqrt(t.S[i]);
        for (size_t j = 0; j < m; j++)
            t.Ut[i * m + j] *= root;
        for (size_t j = 0; j < n; j++)
            t.Vt[i * n + j] *= root;
    }
    *p = (iso_product){.c = count, .left = t.Ut, .right = t.Vt, .is_ordered = true};
    if (route)
        iso_route_of(&t, route);
    return ISO_OK;
}
