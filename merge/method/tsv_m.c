/* TSV-M: task singular vectors, whitened against each other.
 * Gargiulo et al. 2025, arXiv 2412.00081, Algorithm 1 (specs/merging.md 4).
 *
 *   D_t = U_t S_t V_t', the first k = floor(q / T) triples of each, q = min(m, n)
 *   D = alpha * polar([U_1 .. U_T]) diag(S_1 .. S_T) polar([V_1 .. V_T])
 *
 * Only triples with data are taken (rank decision), so that nothing arbitrary is whitened; with one
 * task the result is the task. On LoRA: on the cores of the stacked factors, q that of the layer.
 */
#include "merge/method/method.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { ALPHA };

typedef struct {
    size_t c;
    double *left, *right, *S; /* (c, m), (c, n), c */
} triples;

static iso_err collect(const iso_deltas *d, const iso_method_args *a, size_t k, triples *s,
                       iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    size_t count = d->m * d->n;
    double *x = iso_arena_alloc(scratch, count + 1, sizeof *x);
    if (!x)
        return iso_nomem(e, count * sizeof *x);
    strcpy(r->route, "zero");
    for (size_t t = 0; t < d->T; t++) {
        iso_thin thin = {0};
        const double *D = iso_delta_get(d, t, x);
        double noise = fmax(16.0 * DBL_EPSILON * iso_norm(D, count), d->noise);
        iso_err err =
            iso_thin_svd(d->m, d->n, D, d->rank_tol, noise, k, a->route, &thin, scratch, e);
        size_t some = thin.rank < k ? thin.rank : k;
        if (!err)
            err = iso_thin_far(&thin, D, some, scratch, e);
        if (err)
            return err;
        if (some == 0)
            continue;
        iso_route_of(&thin, r->route);
        memcpy(s->left + s->c * d->m, thin.Ut, some * d->m * sizeof *s->left);
        memcpy(s->right + s->c * d->n, thin.Vt, some * d->n * sizeof *s->right);
        memcpy(s->S + s->c, thin.S, some * sizeof *s->S);
        s->c += some;
    }
    return ISO_OK;
}

static iso_err core(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    size_t k = d->full_q / d->T, q = d->m < d->n ? d->m : d->n, rank = 0;
    size_t most = d->T * (k < q ? k : q), side = d->m > d->n ? d->m : d->n;
    triples s = {.left = iso_arena_alloc(scratch, most * d->m + 1, sizeof *s.left),
                 .right = iso_arena_alloc(scratch, most * d->n + 1, sizeof *s.right),
                 .S = iso_arena_alloc(scratch, most + 1, sizeof *s.S)};
    *out = (iso_product){0};
    r->smallest = 1.0;
    r->rank_tol = d->rank_tol;
    r->per_task = k;
    if (!s.left || !s.right || !s.S)
        return iso_nomem(e, most * (d->m + d->n) * sizeof *s.left);
    iso_err err = collect(d, a, k, &s, r, scratch, e);
    if (err || s.c == 0)
        return err;
    double tol =
        fmin(d->rank_tol, 8.0 * (double)(side > d->full_q ? side : d->full_q) * DBL_EPSILON);
    double left = 1.0, right = 1.0;
    err = iso_polar(s.c, d->m, s.left, tol, &left, &rank, scratch, e);
    if (!err)
        err = iso_polar(s.c, d->n, s.right, tol, &right, &rank, scratch, e);
    if (err)
        return err;
    r->smallest = fmin(1.0, fmin(left, right));
    r->rank = r->kept = s.c;
    for (size_t i = 0; i < s.c; i++) {
        double scale = a->value[ALPHA] * s.S[i], root = sqrt(fabs(scale));
        for (size_t j = 0; j < d->m; j++)
            s.left[i * d->m + j] *= root;
        for (size_t j = 0; j < d->n; j++)
            s.right[i * d->n + j] *= scale < 0.0 ? -root : root;
    }
    *out = (iso_product){.c = s.c, .left = s.left, .right = s.right};
    return ISO_OK;
}

static const iso_method_param params[] = {
    [ALPHA] = {"alpha", "scale of the merged update", 1.0, -100, 100, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_tsv_m = {
    .name = "tsv_m",
    .help = "each task's leading directions, whitened against the others'",
    .source = "Gargiulo et al. 2025, arXiv 2412.00081, TSV-Merge",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .core = core,
};
