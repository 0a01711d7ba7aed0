/* Iso-CTS: isotropic merging in the common and the task-specific subspaces.
 * Marczak et al. 2025, section 4.2 (specs/merging.md 3.2, 3.3; routes: specs/performance.md 5.3.3).
 *
 *   M = sum_t D_t = U S V'; Uc, Sc, Vc its first k triples
 *   X_t = D_t - Uc Uc' D_t = U_t S_t V_t', first p triples, p = rint((q - floor(q f)) / T)
 *   D = alpha sigma polar([U_1 .. U_T, Uc]) polar([V_1; ..; V_T; Vc]), sigma = mean of all S
 *   partly flattened (3.4): alpha polar(..) diag((1 - beta) S + beta sigma) polar(..)
 *
 * Singular vectors are rows here (merge/linalg). What makes it cheap and stays exact:
 *   wide M   Uc and its complement Q are the eigenvectors of M M', so X_t is Q (Q' D_t): only
 *            q - k rows to decompose a task;
 *   tall M   X_t' X_t is a difference of Gram matrices, and p of its eigenvectors are enough;
 *   left     U_t is orthogonal to Uc: only the task rows need whitening;
 *   right    V* V*' differs from the identity on span{Vc V_s', V_s} only: an eigenproblem of order
 *            2 p T in place of q.
 * The projection acts on the left side alone, so tall matrices are not transposed. */
#include "merge/method/method.h"

#include <float.h>
#include <math.h>
#include <string.h>

enum { ALPHA, COMMON_FRACTION, BETA };

/* Residuals of a task that M's common part spans entirely are rounding; how large that is grows
 * with the condition of M. Never above this: real directions are kept. */
#define RESIDUAL_TOL_MAX 1e-9

/* A difference of Gram matrices is trusted while the eigenvalues wanted stay above this share of
 * |D|_F^2: their relative error is then about 1e-7 at worst, 1e-9 in ordinary merges. */
#define DIFFERENCE_MIN_RATIO 1e-9

typedef struct {
    const iso_deltas *d;
    const iso_method_args *a;
    iso_decisions *r;
    iso_arena *scratch;
    size_t q, k, p, s;    /* s: task rows in all */
    double exact_tol;     /* rank tolerance of what is computed in double */
    double *left, *right; /* (c, m), (c, n): task rows first, then k common ones */
    double *S;            /* c values, in the same order */
} cts;

static size_t task_rank_sum(const cts *c, size_t limit, iso_err *err, iso_error *e)
{
    const iso_deltas *d = c->d;
    size_t sum = 0, q = d->m < d->n ? d->m : d->n;
    if (d->ranks) {
        for (size_t t = 0; t < d->T; t++)
            sum += d->ranks[t];
        return sum < limit ? sum : limit;
    }
    double *x = iso_arena_alloc(c->scratch, d->m * d->n + 1, sizeof *x),
           *S = iso_arena_alloc(c->scratch, q + 1, sizeof *S);
    if (!x || !S) {
        *err = iso_nomem(e, d->m * d->n * sizeof *x);
        return 0;
    }
    for (size_t t = 0; t < d->T && sum < limit && !*err; t++) {
        const double *D = iso_delta_get(d, t, x);
        if (D != x)
            memcpy(x, D, d->m * d->n * sizeof *x);
        *err = iso_svd(d->m, d->n, x, NULL, S, NULL, c->scratch, e);
        for (size_t i = 0; i < q && !*err && S[i] > S[0] * d->rank_tol; i++)
            sum++;
    }
    return sum < limit ? sum : limit;
}

/* Step 2: floor and rint in double precision, without tolerance, as published. */
static void decide_sizes(cts *c)
{
    double k0 = floor((double)c->q * c->a->value[COMMON_FRACTION]);
    double p = rint(((double)c->q - k0) / (double)c->d->T);
    c->p = p > 0.0 ? (size_t)p : 0;
    if (c->p * c->d->T > c->q)
        c->p = c->q / c->d->T;
    c->k = c->q - c->p * c->d->T;
}

/* Largest singular value of D (m, n) by power iteration from its largest row; a lower bound, within
 * a percent or so after these steps. */
static double largest_singular_value(const double *D, size_t m, size_t n, double *v, double *u)
{
    enum { STEPS = 20 };
    double best = 0.0, s = 0.0;
    for (size_t i = 0; i < m; i++) {
        double norm = iso_norm(D + i * n, n);
        if (norm > best) {
            best = norm;
            memcpy(v, D + i * n, n * sizeof *v);
        }
    }
    for (int step = 0; step < STEPS && best > 0.0; step++) {
        double norm = iso_norm(v, n);
        for (size_t j = 0; j < n; j++)
            v[j] /= norm;
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, m, 1, n, 1.0, D, n, v, 1, 0.0, u, 1);
        s = iso_norm(u, m);
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, n, 1, m, 1.0, D, n, u, 1, 0.0, v, 1);
    }
    return s;
}

/* How many of S (descending, p) are above tol times D's largest singular value. That value is
 * worked out only where the bounds |D|_F / sqrt(q) <= s_1 <= |D|_F leave one in doubt. */
static iso_err count_above(cts *c, const double *D, double norm, double tol, const double *S,
                           size_t p, size_t *found, iso_error *e)
{
    size_t m = c->d->m, n = c->d->n;
    double low = tol * norm / sqrt((double)(m < n ? m : n)), high = tol * norm;
    *found = 0;
    while (*found < p && S[*found] > high)
        ++*found;
    if (*found == p || !(S[*found] > low))
        return ISO_OK;
    double *v = iso_arena_alloc(c->scratch, n, sizeof *v),
           *u = iso_arena_alloc(c->scratch, m, sizeof *u);
    if (!v || !u)
        return iso_nomem(e, n * sizeof *v);
    double floor = tol * largest_singular_value(D, m, n, v, u);
    while (*found < p && S[*found] > floor)
        ++*found;
    return ISO_OK;
}

/* The first p triples of X (a, n), the residual of D (m, n), into rows of `left` (p, a) and `right`
 * (p, n); of these only those above tol times D's largest singular value. */
static iso_err leading_triples(cts *c, size_t a, const double *X, const double *D, double tol,
                               double *left, double *S, double *right, size_t *found, iso_error *e)
{
    iso_thin t;
    size_t m = c->d->m, n = c->d->n, q = a < n ? a : n, p = c->p < q ? c->p : q;
    double norm = iso_norm(D, m * n), low = tol * norm / sqrt((double)(m < n ? m : n));
    *found = 0;
    iso_err err = iso_thin_svd(a, n, X, c->exact_tol, low, p, c->a->route, &t, c->scratch, e);
    if (err || t.rank == 0)
        return err;
    p = p < t.rank ? p : t.rank;
    err = iso_thin_far(&t, X, p, c->scratch, e);
    if (!err)
        err = count_above(c, D, norm, tol, t.S, p, found, e);
    if (err)
        return err;
    memcpy(left, t.Ut, *found * a * sizeof *left);
    memcpy(right, t.Vt, *found * n * sizeof *right);
    memcpy(S, t.S, *found * sizeof *S);
    return ISO_OK;
}

/* Task rows when the complement Q (rest, m) of Uc is at hand: X_t = Q' (Q D_t). Left rows are first
 * made in Q's coordinates, whitened there, and expanded. */
static iso_err tasks_in_complement(cts *c, const double *Q, size_t rest, double tol, iso_error *e)
{
    const iso_deltas *d = c->d;
    double *x = iso_arena_alloc(c->scratch, d->m * d->n + 1, sizeof *x);
    double *X = iso_arena_alloc(c->scratch, rest * d->n + 1, sizeof *X);
    double *Z = iso_arena_alloc(c->scratch, c->p * d->T * rest + 1, sizeof *Z);
    if (!x || !X || !Z)
        return iso_nomem(e, d->m * d->n * sizeof *x);
    for (size_t t = 0; t < d->T && rest > 0; t++) {
        size_t found = 0;
        const double *D = iso_delta_get(d, t, x);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, rest, d->n, d->m, 1.0, Q, d->m, D, d->n, 0.0, X, d->n);
        iso_err err = leading_triples(c, rest, X, D, tol, Z + c->s * rest, c->S + c->s,
                                      c->right + c->s * d->n, &found, e);
        if (err)
            return err;
        c->s += found;
    }
    size_t rank = 0;
    double smallest = 1.0;
    iso_err err = iso_polar(c->s, rest, Z, c->exact_tol, &smallest, &rank, c->scratch, e);
    if (err)
        return err;
    if (c->s)
        c->r->smallest = fmin(c->r->smallest, smallest);
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, c->s, d->m, rest, 1.0, Z, rest, Q, d->m, 0.0, c->left, d->m);
    return ISO_OK;
}

typedef struct {
    double *x, *X, *W, *H, *w; /* (m, n) twice, (k, n), (n, n), n */
} tall_scratch;

/* The first p triples of the residual of a tall D from X'X = D'D - W'W, W = Uc D, without forming
 * X: two thirds of the products, and few eigenvectors. The difference keeps its digits while what
 * is left is not small beside D; *is_done false otherwise. Left rows are X v, projected explicitly.
 */
static iso_err triples_by_difference(cts *c, const tall_scratch *k, const double *Uc,
                                     const double *D, double tol, size_t *found, bool *is_done,
                                     iso_error *e)
{
    const iso_deltas *d = c->d;
    size_t m = d->m, n = d->n, p = c->p;
    double norm = iso_norm(D, m * n), *left = c->left + c->s * m, *right = c->right + c->s * n;
    *is_done = false;
    if (p == 0 || p > n || c->a->route == ISO_WISH_SVD)
        return ISO_OK;
    iso_gram(ISO_TRANSPOSED, m, n, D, k->H);
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, n, n, c->k, -1.0, k->W, n, k->W, n, 1.0, k->H, n);
    iso_err err = iso_eigen_leading(n, p, k->H, k->w, c->scratch, e);
    if (err || !(k->w[p - 1] > DIFFERENCE_MIN_RATIO * norm * norm))
        return err;
    double *coef = iso_arena_alloc(c->scratch, p * c->k + 1, sizeof *coef);
    if (!coef)
        return iso_nomem(e, p * c->k * sizeof *coef);
    memcpy(right, k->H, p * n * sizeof *right);
    iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, p, m, n, 1.0, right, n, D, n, 0.0, left, m);
    iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, p, c->k, m, 1.0, left, m, Uc, m, 0.0, coef, c->k);
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, p, m, c->k, -1.0, coef, c->k, Uc, m, 1.0, left, m);
    for (size_t i = 0; i < p; i++) {
        double s = c->S[c->s + i] = iso_norm(left + i * m, m);
        for (size_t j = 0; j < m; j++)
            left[i * m + j] = s > 0.0 ? left[i * m + j] / s : 0.0;
    }
    *is_done = true;
    return count_above(c, D, norm, tol, c->S + c->s, p, found, e);
}

/* Task rows of a tall M, whose complement is as large as M: by the difference of Gram matrices, or
 * X_t is formed. */
static iso_err tasks_by_projection(cts *c, const double *Uc, double tol, iso_error *e)
{
    const iso_deltas *d = c->d;
    size_t count = d->m * d->n, rank = 0;
    double smallest = 1.0;
    tall_scratch k = {.x = iso_arena_alloc(c->scratch, count + 1, sizeof(double)),
                      .X = iso_arena_alloc(c->scratch, count + 1, sizeof(double)),
                      .W = iso_arena_alloc(c->scratch, c->k * d->n + 1, sizeof(double)),
                      .H = iso_arena_alloc(c->scratch, d->n * d->n, sizeof(double)),
                      .w = iso_arena_alloc(c->scratch, d->n, sizeof(double))};
    if (!k.x || !k.X || !k.W || !k.H || !k.w)
        return iso_nomem(e, 3 * count * sizeof *k.x);
    for (size_t t = 0; t < d->T; t++) {
        size_t found = 0;
        bool is_done = false;
        const double *D = iso_delta_get(d, t, k.x);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, c->k, d->n, d->m, 1.0, Uc, d->m, D, d->n, 0.0, k.W, d->n);
        iso_err err = triples_by_difference(c, &k, Uc, D, tol, &found, &is_done, e);
        if (!err && !is_done) {
            memcpy(k.X, D, count * sizeof *k.X);
            iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, d->m, d->n, c->k, -1.0, Uc, d->m, k.W, d->n, 1.0,
                        k.X, d->n);
            err = leading_triples(c, d->m, k.X, D, tol, c->left + c->s * d->m, c->S + c->s,
                                  c->right + c->s * d->n, &found, e);
        }
        if (err)
            return err;
        c->s += found;
    }
    iso_err err = iso_polar(c->s, d->m, c->left, c->exact_tol, &smallest, &rank, c->scratch, e);
    if (!err && c->s)
        c->r->smallest = fmin(c->r->smallest, smallest);
    return err;
}

/* Right side through the small eigenproblem. With Vs the s task rows, Vc the common rows, C = Vc
 * Vs' = Qc Rc: V* V*' = I + E (G - I) E' on the span of E = [Qc, 0; 0, I], G = [I, Rc; Rc', Vs
 * Vs']. So V+ = V* + E (G^-1/2 - I) E' V*. *is_done false when G is too ill-conditioned to be
 * squared. */
static iso_err whiten_right_structured(cts *c, bool *is_done, iso_error *e)
{
    size_t s = c->s, k = c->k, n = c->d->n, s2 = 2 * s;
    double *Vs = c->right, *Vc = c->right + s * n;
    iso_arena *m = c->scratch;
    double *Ct = iso_arena_alloc(m, s * k, sizeof *Ct), *G = iso_arena_alloc(m, s2 * s2, sizeof *G);
    double *W = iso_arena_alloc(m, s * s, sizeof *W), *w = iso_arena_alloc(m, s2, sizeof *w);
    double *N = iso_arena_alloc(m, s2 * s2, sizeof *N),
           *tmp = iso_arena_alloc(m, s2 * s2, sizeof *tmp);
    double *SV = iso_arena_alloc(m, s2 * n, sizeof *SV),
           *NS = iso_arena_alloc(m, s2 * n, sizeof *NS);
    double *Qc = iso_arena_alloc(m, s * k, sizeof *Qc);
    if (!Ct || !G || !W || !w || !N || !tmp || !SV || !NS || !Qc)
        return iso_nomem(e, s2 * n * sizeof *SV);
    *is_done = false;
    iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, s, k, n, 1.0, Vs, n, Vc, n, 0.0, Ct, k);
    iso_basis
        basis; /* rows of Ct in an orthonormal basis: Ct = coords Q, so Rc' = coords, Qc' = Q */
    iso_err err = iso_basis_make(s, k, Ct, &basis, m, e);
    if (err)
        return err;
    iso_gram(ISO_AS_IS, s, n, Vs, W);
    memset(G, 0, s2 * s2 * sizeof *G);
    for (size_t i = 0; i < s; i++) {
        G[i * s2 + i] = 1.0;
        for (size_t j = 0; j < s; j++) {
            G[(s + i) * s2 + s + j] = W[i * s + j];
            G[(s + i) * s2 + j] = basis.coords[i * s + j];
            G[j * s2 + s + i] = basis.coords[i * s + j];
        }
    }
    err = iso_eigen(s2, G, w, m, e);
    if (err || !(w[s2 - 1] > ISO_GRAM_MIN_RATIO * w[0]))
        return err;
    c->r->smallest = fmin(c->r->smallest, sqrt(w[s2 - 1]));
    iso_inverse_root_minus_identity(s2, G, w, N, tmp);
    memset(W, 0, s * s * sizeof *W);
    for (size_t i = 0; i < s; i++)
        W[i * s + i] = 1.0;
    iso_basis_expand(&basis, s, W, Qc); /* Qc' (s, k) */
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, s, n, k, 1.0, Qc, k, Vc, n, 0.0, SV, n);
    memcpy(SV + s * n, Vs, s * n * sizeof *SV);
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, s2, n, s2, 1.0, N, s2, SV, n, 0.0, NS, n);
    for (size_t i = 0; i < s * n; i++)
        Vs[i] += NS[s * n + i];
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, k, n, s, 1.0, Qc, k, NS, n, 1.0, Vc, n);
    *is_done = true;
    return ISO_OK;
}

static iso_err whiten_right(cts *c, iso_error *e)
{
    bool is_done = c->s == 0; /* Vc alone is orthonormal */
    if (!is_done && c->s < c->k && c->a->route != ISO_WISH_SVD) {
        iso_err err = whiten_right_structured(c, &is_done, e);
        if (err)
            return err;
    }
    if (is_done)
        return ISO_OK;
    double smallest = 1.0;
    size_t rank = 0;
    iso_err err =
        iso_polar(c->s + c->k, c->d->n, c->right, c->exact_tol, &smallest, &rank, c->scratch, e);
    c->r->smallest = fmin(c->r->smallest, smallest);
    return err;
}

/* sigma, the gain cap (AMENDMENTS 13), alpha: onto the rows of the left side. */
static void scale(cts *c, iso_product *out)
{
    double sum = 0.0;
    size_t rows = c->s + c->k;
    for (size_t i = 0; i < rows; i++)
        sum += c->S[i];
    double over = c->a->convention == ISO_CONVENTION_DENSE ? (double)c->d->full_q : (double)rows;
    c->r->sigma = rows ? sum / over : 0.0;
    for (size_t i = 0; i < rows; i++) {
        double s = c->r->sigma;
        if (c->a->gain_cap > 0.0 && s > c->a->gain_cap * c->S[i]) {
            s = c->a->gain_cap * c->S[i];
            c->r->capped++;
        }
        s = c->a->value[ALPHA] * ((1.0 - c->a->value[BETA]) * c->S[i] + c->a->value[BETA] * s);
        double root = sqrt(fabs(s)), sign = s < 0.0 ? -1.0 : 1.0;
        for (size_t j = 0; j < c->d->m; j++)
            c->left[i * c->d->m + j] *= root;
        for (size_t j = 0; j < c->d->n; j++)
            c->right[i * c->d->n + j] *= sign * root;
    }
    *out = (iso_product){.c = rows, .left = c->left, .right = c->right};
    c->r->kept = rows;
}

static iso_err core(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e)
{
    cts c = {.d = d, .a = a, .r = r, .scratch = scratch};
    double noise = 0.0, *M = iso_arena_alloc(scratch, d->m * d->n + 1, sizeof *M);
    if (!M)
        return iso_nomem(e, d->m * d->n * sizeof *M);
    iso_err err = iso_delta_sum(d, M, NULL, &noise, scratch, e);
    if (err)
        return err;
    c.q = d->full_q;
    if (a->convention == ISO_CONVENTION_RANK)
        c.q = task_rank_sum(&c, c.q, &err, e);
    if (err)
        return err;
    decide_sizes(&c);
    size_t long_side = d->m > d->n ? d->m : d->n;
    c.exact_tol = fmin(d->rank_tol,
                       8.0 * (double)(long_side > d->full_q ? long_side : d->full_q) * DBL_EPSILON);
    r->sum_norm = iso_norm(M, d->m * d->n);
    r->rank_tol = d->rank_tol;
    r->smallest = 1.0;

    iso_thin t = {0};
    err = iso_thin_svd(d->m, d->n, M, d->rank_tol, noise, c.k ? c.k : 1, a->route, &t, scratch, e);
    if (err)
        return err;
    *out = (iso_product){0};
    strcpy(r->route, t.route == ISO_ROUTE_GRAM  ? "gram"
                     : t.route == ISO_ROUTE_SVD ? "svd"
                                                : "zero");
    if (t.rank == 0)
        return ISO_OK;
    c.k = c.k < t.rank ? c.k : t.rank;
    r->rank = t.rank;
    r->common = c.k;
    r->per_task = c.p;
    size_t most = c.k + c.p * d->T;
    c.left = iso_arena_alloc(scratch, most * d->m + 1, sizeof *c.left);
    c.right = iso_arena_alloc(scratch, most * d->n + 1, sizeof *c.right);
    c.S = iso_arena_alloc(scratch, most + 1, sizeof *c.S);
    if (!c.left || !c.right || !c.S)
        return iso_nomem(e, most * (d->m + d->n) * sizeof *c.left);
    err = iso_thin_far(&t, M, c.k, scratch, e);
    if (err)
        return err;

    double tol = d->rank_tol;
    if (c.k == t.rank && c.k > 0)
        tol = fmax(tol, fmin(tol * t.S[0] / t.S[c.k - 1], RESIDUAL_TOL_MAX));
    if (c.p > 0)
        err = d->m <= d->n ? tasks_in_complement(&c, t.Ut + c.k * d->m, t.q - c.k, tol, e)
                           : tasks_by_projection(&c, t.Ut, tol, e);
    if (err)
        return err;
    memcpy(c.left + c.s * d->m, t.Ut, c.k * d->m * sizeof *c.left);
    memcpy(c.right + c.s * d->n, t.Vt, c.k * d->n * sizeof *c.right);
    memcpy(c.S + c.s, t.S, c.k * sizeof *c.S);
    err = whiten_right(&c, e);
    if (!err)
        scale(&c, out);
    return err;
}

static const iso_method_param params[] = {
    [ALPHA] = {"alpha", "scale of the merged update", 1.0, -100, 100, false, NULL},
    [COMMON_FRACTION] = {"common_fraction",
                         "share of the directions taken from the sum; the rest is the tasks' own",
                         0.8, 0, 1, false, NULL},
    [BETA] = {"beta", "how far the spectrum is flattened: S* becomes (1 - beta) S* + beta sigma",
              1.0, 0, 1, false, NULL},
    {.name = NULL},
};

const iso_method iso_method_iso_cts = {
    .name = "iso_cts",
    .help = "common directions of the sum and each task's own, whitened and made equal",
    .source = "Marczak et al. 2025, arXiv 2502.04959, Iso-CTS",
    .needs = ISO_NEEDS_ALL,
    .params = params,
    .has_convention = true,
    .core = core,
};
