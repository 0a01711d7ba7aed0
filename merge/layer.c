/* One weight of a merge (specs/merging.md 5): stacks LoRA factors, finds orthonormal bases of both
 * stacks, lets the method work on the small cores C_t = Qb D_t Qa', and expands the result.
 *   Bs' (R, m) and As (R, n) hold one vector a row: Bs' = Cb Qb, As = Ca Qa, M = Qb' (Cb' Ca) Qa.
 * Linear methods need none of it while the stack fits the rank cap: the stack is the result. */
#include "merge/layer.h"

#include <float.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

double iso_rank_tol(size_t m, size_t n, bool is_exact)
{
    double side = (double)(m > n ? m : n);
    return is_exact ? 8.0 * side * DBL_EPSILON : side * (double)FLT_EPSILON;
}

iso_err iso_layer_dense(const iso_method *method, const iso_method_args *a, const iso_deltas *d,
                        double *out, iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    *r = (iso_decisions){.rank_tol = d->rank_tol, .smallest = 1.0};
    iso_method_args alone = *a;
    iso_err unfit = method->check ? method->check(a, d->T, e) : ISO_OK;
    if (unfit)
        return unfit;
    iso_err err = a->survey ? ISO_OK : iso_survey_one(method, &alone, d, scratch, e);
    if (err)
        return err;
    a = &alone;
    if (method->coefficients) {
        double noise, *c = iso_arena_alloc(scratch, d->T, sizeof *c);
        if (!c)
            return iso_nomem(e, d->T * sizeof *c);
        method->coefficients(a, d->weights, d->T, c);
        iso_deltas weighted = *d;
        weighted.weights = c;
        strcpy(r->route, "linear");
        err = iso_delta_sum(&weighted, out, NULL, &noise, scratch, e);
        r->sum_norm = err ? 0.0 : iso_norm(out, d->m * d->n);
    } else if (method->entries) {
        strcpy(r->route, "entries");
        err = iso_entries_merge(method, a, d, out, scratch, e);
    } else if (method->dense) {
        err = method->dense(d, a, out, r, scratch, e);
    } else if (method->core) {
        iso_product p;
        err = method->core(d, a, &p, r, scratch, e);
        if (!err)
            iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, d->m, d->n, p.c, 1.0, p.left, d->m, p.right,
                        d->n, 0.0, out, d->n);
    } else {
        return iso_fail(e, ISO_ERR_INTERNAL, "method %s knows no way to merge", method->name);
    }
    if (!err && !isfinite(iso_norm(out, d->m * d->n)))
        err = iso_fail(e, ISO_ERR_NONFINITE, "the merged update is not finite");
    return err;
}

/* ---- the stacks ---- */
typedef struct {
    const iso_lora_stack *in;
    size_t R;
    size_t *first, *ranks; /* T: rows of task t in the stacks; ranks[t] = 0: contributes nothing */
    double *Bt, *A;        /* (R, m) scaled by weight and LoRA scale; (R, n) */
    double *weights;       /* T: the method's coefficients, or the given weights */
    double norm_sum;       /* sum over tasks of a bound of |D_t|_F */
} stack;

static bool is_all_zero(const float *x, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (x[i] != 0.0f) /* NaN is not zero either */
            return false;
    return true;
}

static iso_err stack_make(const iso_lora_stack *in, const double *weights, stack *s,
                          iso_arena *scratch, iso_error *e)
{
    *s = (stack){.in = in};
    s->first = iso_arena_calloc(scratch, in->T + 1, sizeof *s->first);
    s->ranks = iso_arena_calloc(scratch, in->T + 1, sizeof *s->ranks);
    s->weights = iso_arena_alloc(scratch, in->T + 1, sizeof *s->weights);
    if (!s->first || !s->ranks || !s->weights)
        return iso_nomem(e, in->T * sizeof *s->first);
    for (size_t t = 0; t < in->T; t++) {
        const iso_lora_layer *l = in->layers[t];
        s->weights[t] = weights ? weights[t] : 1.0;
        s->first[t] = s->R;
        if (!l || s->weights[t] == 0.0 || l->scale == 0.0 || is_all_zero(l->B, in->m * l->rank) ||
            is_all_zero(l->A, in->n * l->rank))
            continue;
        if (l->out != in->m || l->in != in->n)
            return iso_fail(e, ISO_ERR_SHAPE,
                            "layer \"%s\" is %zux%zu in input %zu and %zux%zu in others", l->module,
                            l->out, l->in, t + 1, in->m, in->n);
        s->ranks[t] = l->rank;
        s->R += l->rank;
    }
    s->Bt = iso_arena_alloc(scratch, s->R * in->m + 1, sizeof *s->Bt);
    s->A = iso_arena_alloc(scratch, s->R * in->n + 1, sizeof *s->A);
    if (!s->Bt || !s->A)
        return iso_nomem(e, s->R * (in->m + in->n) * sizeof *s->Bt);
    for (size_t t = 0; t < in->T; t++) {
        const iso_lora_layer *l = in->layers[t];
        size_t rank = s->ranks[t];
        if (rank == 0)
            continue;
        double *Bt = s->Bt + s->first[t] * in->m, *A = s->A + s->first[t] * in->n;
        double scale = s->weights[t] * l->scale;
        for (size_t i = 0; i < in->m; i++)
            for (size_t j = 0; j < rank; j++)
                Bt[j * in->m + i] = scale * (double)l->B[i * rank + j];
        for (size_t i = 0; i < rank * in->n; i++)
            A[i] = (double)l->A[i];
        double bound = iso_norm(Bt, rank * in->m) * iso_norm(A, rank * in->n);
        if (!isfinite(bound))
            return iso_fail(e, ISO_ERR_NONFINITE,
                            "layer \"%s\" of input %zu holds NaN, Inf, or too large values",
                            l->module, t + 1);
        s->norm_sum += bound;
    }
    return ISO_OK;
}

/* |left' right|_F from the Gram matrices of both sides. */
static iso_err product_norm(const iso_product *p, size_t m, size_t n, double *norm,
                            iso_arena *scratch, iso_error *e)
{
    double *G = iso_arena_alloc(scratch, 2 * p->c * p->c + 1, sizeof *G);
    if (!G)
        return iso_nomem(e, 2 * p->c * p->c * sizeof *G);
    iso_gram(ISO_AS_IS, p->c, m, p->left, G);
    iso_gram(ISO_AS_IS, p->c, n, p->right, G + p->c * p->c);
    double square = iso_dot(G, G + p->c * p->c, p->c * p->c);
    *norm = square > 0.0 ? sqrt(square) : 0.0;
    return ISO_OK;
}

/* ---- cores ---- */
typedef struct {
    iso_basis b, a;
    iso_deltas deltas;
    double *sum; /* (kb, ka) */
} cores;

/* Rank of Cb_t' Ca_t: both factors are reduced to their triangles first. */
static iso_err core_rank(const cores *c, size_t first, size_t rank, double rank_tol, size_t *out,
                         iso_arena *scratch, iso_error *e)
{
    iso_basis b, a;
    iso_err err = iso_basis_make(rank, c->b.k, c->b.coords + first * c->b.k, &b, scratch, e);
    if (!err)
        err = iso_basis_make(rank, c->a.k, c->a.coords + first * c->a.k, &a, scratch, e);
    if (err)
        return err;
    size_t q = b.k < a.k ? b.k : a.k;
    double *P = iso_arena_alloc(scratch, b.k * a.k + 1, sizeof *P),
           *S = iso_arena_alloc(scratch, q + 1, sizeof *S);
    if (!P || !S)
        return iso_nomem(e, b.k * a.k * sizeof *P);
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, b.k, a.k, rank, 1.0, b.coords, b.k, a.coords, a.k, 0.0,
                P, a.k);
    err = iso_svd(b.k, a.k, P, NULL, S, NULL, scratch, e);
    for (*out = 0; !err && *out < q && S[*out] > S[0] * rank_tol;)
        ++*out;
    return err;
}

/* Bases of both stacks; one core a task, or their sum alone where the method needs no more. */
static iso_err cores_make(const stack *s, bool is_sum_enough, double rank_tol, cores *c,
                          iso_arena *scratch, iso_error *e)
{
    const iso_lora_stack *in = s->in;
    *c = (cores){0};
    iso_err err = iso_basis_make(s->R, in->m, s->Bt, &c->b, scratch, e);
    if (!err)
        err = iso_basis_make(s->R, in->n, s->A, &c->a, scratch, e);
    if (err)
        return err;
    size_t kb = c->b.k, ka = c->a.k, T = is_sum_enough ? 1 : in->T;
    double *all = iso_arena_alloc(scratch, T * kb * ka + 1, sizeof *all);
    iso_tensor *views = iso_arena_calloc(scratch, T, sizeof *views);
    size_t *ranks = iso_arena_calloc(scratch, T, sizeof *ranks);
    if (!all || !views || !ranks)
        return iso_nomem(e, T * kb * ka * sizeof *all);
    /* a vector's coordinates in a Cholesky basis show that the vectors of each task are independent
     */
    bool is_full = c->b.kind == ISO_BASIS_CHOLESKY && c->a.kind == ISO_BASIS_CHOLESKY;
    for (size_t t = 0; t < T; t++) {
        size_t first = is_sum_enough ? 0 : s->first[t], rank = is_sum_enough ? s->R : s->ranks[t];
        double *C = all + t * kb * ka;
        if (rank == 0)
            continue;
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, kb, ka, rank, 1.0, c->b.coords + first * kb, kb,
                    c->a.coords + first * ka, ka, 0.0, C, ka);
        views[t] = (iso_tensor){ISO_F64, 2, {kb, ka}, C};
        ranks[t] = rank;
        if (!is_full && !is_sum_enough)
            err = core_rank(c, first, rank, rank_tol, &ranks[t], scratch, e);
        if (err)
            return err;
    }
    c->sum = all;
    c->deltas = (iso_deltas){.T = T,
                             .m = kb,
                             .n = ka,
                             .views = views,
                             .rank_tol = rank_tol,
                             .full_q = in->m < in->n ? in->m : in->n,
                             .name = in->name,
                             .index = in->index,
                             .ranks = is_sum_enough ? NULL : ranks,
                             .noise = 16.0 * DBL_EPSILON * s->norm_sum};
    return ISO_OK;
}

/* Rank cap and energy (users.md U91). An ordered product is cut; another is decomposed first. */
static iso_err truncate_core(const iso_lora_stack *in, size_t kb, size_t ka, double rank_tol,
                             iso_layer_factors *f, iso_arena *scratch, iso_error *e)
{
    iso_product *p = &f->product;
    size_t q = kb < ka ? kb : ka;
    bool has_energy = in->energy > 0.0 && in->energy < 1.0;
    f->full_rank = p->c;
    f->energy_kept = 1.0;
    if (p->c <= q && !(in->rank_cap && p->c > in->rank_cap) && !has_energy)
        return ISO_OK;
    if (!p->is_ordered) {
        double *D = iso_arena_alloc(scratch, kb * ka + 1, sizeof *D);
        if (!D)
            return iso_nomem(e, kb * ka * sizeof *D);
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, kb, ka, p->c, 1.0, p->left, kb, p->right, ka, 0.0, D,
                    ka);
        iso_err err = iso_product_of(kb, ka, D, rank_tol, 0.0, has_energy ? 0 : in->rank_cap, p,
                                     NULL, scratch, e);
        if (err)
            return err;
        if (f->full_rank > q)
            f->full_rank = q;
    }
    double total = f->norm * f->norm, kept = 0.0;
    size_t c = 0, cap = in->rank_cap && in->rank_cap < p->c ? in->rank_cap : p->c;
    while (c < cap && !(has_energy && kept >= in->energy * total)) {
        double s = iso_norm(p->left + c * kb, kb) * iso_norm(p->right + c * ka, ka);
        kept += s * s;
        c++;
    }
    p->c = c;
    f->energy_kept = total > 0.0 ? fmin(1.0, kept / total) : 1.0;
    return ISO_OK;
}

static iso_err expand(const cores *c, iso_layer_factors *f, iso_arena *scratch, iso_error *e)
{
    iso_product *p = &f->product;
    double *left = iso_arena_alloc(scratch, p->c * c->b.m + 1, sizeof *left);
    double *right = iso_arena_alloc(scratch, p->c * c->a.m + 1, sizeof *right);
    if (!left || !right)
        return iso_nomem(e, p->c * (c->b.m + c->a.m) * sizeof *left);
    iso_basis_expand(&c->b, p->c, p->left, left);
    iso_basis_expand(&c->a, p->c, p->right, right);
    p->left = left;
    p->right = right;
    if (!isfinite(iso_norm(left, p->c * c->b.m)) || !isfinite(iso_norm(right, p->c * c->a.m)))
        return iso_fail(e, ISO_ERR_NONFINITE, "the merged factors are not finite");
    return ISO_OK;
}

/* ---- methods that know no factors: on the products, layer by layer ---- */
static iso_err deltas_of(const stack *s, double rank_tol, iso_deltas *d, iso_arena *scratch,
                         iso_error *e)
{
    const iso_lora_stack *in = s->in;
    iso_factor *f = iso_arena_calloc(scratch, in->T + 1, sizeof *f);
    if (!f)
        return iso_nomem(e, in->T * sizeof *f);
    for (size_t t = 0; t < in->T; t++)
        f[t] = (iso_factor){s->ranks[t], s->Bt + s->first[t] * in->m, s->A + s->first[t] * in->n};
    *d = (iso_deltas){.T = in->T,
                      .m = in->m,
                      .n = in->n,
                      .factors = f,
                      .weights = in->weights,
                      .rank_tol = rank_tol,
                      .full_q = in->m < in->n ? in->m : in->n,
                      .noise = 16.0 * DBL_EPSILON * s->norm_sum,
                      .name = in->name,
                      .index = in->index};
    return ISO_OK;
}

iso_err iso_layer_deltas(const iso_lora_stack *in, iso_deltas *out, iso_arena *scratch,
                         iso_error *e)
{
    stack s;
    double rank_tol = in->rank_tol > 0.0 ? in->rank_tol : iso_rank_tol(in->m, in->n, true);
    iso_err err = stack_make(in, in->weights, &s, scratch, e);
    return err ? err : deltas_of(&s, rank_tol, out, scratch, e);
}

static iso_err merge_products(const iso_method *method, const iso_method_args *a, const stack *s,
                              iso_layer_factors *out, iso_decisions *r, iso_arena *scratch,
                              iso_error *e)
{
    const iso_lora_stack *in = s->in;
    iso_deltas d;
    char route[ISO_ROUTE_TEXT];
    double *D = iso_arena_alloc(scratch, in->m * in->n + 1, sizeof *D);
    if (!D)
        return iso_nomem(e, in->m * in->n * sizeof *D);
    iso_err err = deltas_of(s, r->rank_tol, &d, scratch, e);
    if (!err)
        err = iso_layer_dense(method, a, &d, D, r, scratch, e);
    if (err)
        return err;
    out->norm = iso_norm(D, in->m * in->n);
    err = iso_product_of(in->m, in->n, D, r->rank_tol, 0.0, 0, &out->product, route, scratch, e);
    if (err)
        return err;
    r->kept = out->product.c;
    snprintf(r->route + strlen(r->route), sizeof r->route - strlen(r->route), "+%.16s", route);
    return truncate_core(in, in->m, in->n, r->rank_tol, out, scratch, e);
}

/* Methods that want the factors themselves, in the layer's own coordinates. */
static iso_err merge_whole(const iso_method *method, const iso_method_args *a, const stack *s,
                           iso_layer_factors *out, iso_decisions *r, iso_arena *scratch,
                           iso_error *e)
{
    const iso_lora_stack *in = s->in;
    iso_deltas d;
    iso_err err = deltas_of(s, r->rank_tol, &d, scratch, e);
    if (!err)
        err = method->core(&d, a, &out->product, r, scratch, e);
    if (!err)
        err = product_norm(&out->product, in->m, in->n, &out->norm, scratch, e);
    if (!err)
        err = truncate_core(in, in->m, in->n, r->rank_tol, out, scratch, e);
    return err;
}

iso_err iso_layer_merge_factors(const iso_method *method, const iso_method_args *a,
                                const iso_lora_stack *in, iso_layer_factors *out, iso_decisions *r,
                                iso_arena *scratch, iso_error *e)
{
    *out = (iso_layer_factors){.energy_kept = 1.0};
    double rank_tol = in->rank_tol > 0.0 ? in->rank_tol : iso_rank_tol(in->m, in->n, true);
    *r = (iso_decisions){.rank_tol = rank_tol, .smallest = 1.0};
    bool is_linear = method->coefficients != NULL;
    iso_method_args alone = *a;
    if (method->survey && !a->survey) {
        iso_deltas d;
        iso_err failed = iso_layer_deltas(in, &d, scratch, e);
        if (!failed)
            failed = iso_survey_one(method, &alone, &d, scratch, e);
        if (failed)
            return failed;
    }
    a = &alone;
    double *weights = iso_arena_alloc(scratch, in->T + 1, sizeof *weights);
    if (!weights)
        return iso_nomem(e, in->T * sizeof *weights);
    for (size_t t = 0; t < in->T; t++)
        weights[t] = in->weights ? in->weights[t] : 1.0;
    if (is_linear)
        method->coefficients(a, in->weights, in->T, weights);
    stack s;
    iso_err err = stack_make(in, weights, &s, scratch, e);
    if (err)
        return err;
    size_t q = in->m < in->n ? in->m : in->n;
    strcpy(r->route, "zero");
    if (s.R == 0)
        return ISO_OK;
    if (method->wants_factors)
        return merge_whole(method, a, &s, out, r, scratch, e);
    if (!is_linear && !method->core)
        return merge_products(method, a, &s, out, r, scratch, e);
    if (is_linear) {
        out->product = (iso_product){.c = s.R, .left = s.Bt, .right = s.A};
        err = product_norm(&out->product, in->m, in->n, &out->norm, scratch, e);
        if (err)
            return err;
        r->sum_norm = out->norm;
        out->full_rank = s.R;
        bool fits = !in->is_decomposed && s.R <= q && !(in->rank_cap && s.R > in->rank_cap) &&
                    !(in->energy > 0.0 && in->energy < 1.0);
        if (fits && out->norm > 1e-6 * s.norm_sum) { /* else updates that cancel: decide exactly */
            strcpy(r->route, "stacked");
            r->kept = s.R;
            return ISO_OK;
        }
    }
    cores c;
    err = cores_make(&s, is_linear || method->needs == ISO_NEEDS_SUM, rank_tol, &c, scratch, e);
    if (err)
        return err;
    char core_route[ISO_ROUTE_TEXT] = "";
    if (is_linear) {
        err = iso_product_of(c.b.k, c.a.k, c.sum, rank_tol, c.deltas.noise, 0, &out->product,
                             r->route, scratch, e);
        r->rank = r->kept = out->product.c;
    } else {
        err = method->core(&c.deltas, a, &out->product, r, scratch, e);
    }
    if (err)
        return err;
    memcpy(core_route, r->route, sizeof core_route);
    static const char *const kinds[] = {"identity", "cholesky", "householder"};
    snprintf(r->route, sizeof r->route, "%s+%.16s",
             kinds[c.b.kind > c.a.kind ? c.b.kind : c.a.kind], core_route);
    err = product_norm(&out->product, c.b.k, c.a.k, &out->norm, scratch, e);
    if (!err)
        err = truncate_core(in, c.b.k, c.a.k, rank_tol, out, scratch, e);
    if (!err)
        err = expand(&c, out, scratch, e);
    return err;
}
