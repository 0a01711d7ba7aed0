/* Every method against a plain version of its formula: one-sided Jacobi for the SVD, loops for the
 * rest; no LAPACK, no Gram matrices, no structure used (specs/merging.md 3). */
#include "core/parallel.h"
#include "core/rng.h"
#include "merge/layer.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_T = 6 };

/* ---- plain reference ---- */
typedef struct {
    size_t m, n, q;
    double *U, *S, *V; /* U (m, q), V (n, q): columns */
} plain_svd;

static void rotate(double *a, double *b, size_t n, size_t stride, double c, double s)
{
    for (size_t i = 0; i < n; i++) {
        double x = a[i * stride], y = b[i * stride];
        a[i * stride] = c * x - s * y;
        b[i * stride] = s * x + c * y;
    }
}

/* Tall A (m, n), m >= n: rotates pairs of columns until all are orthogonal. */
static plain_svd jacobi_tall(size_t m, size_t n, const double *A)
{
    plain_svd r = {m, n, n, iso_calloc(m * n, 8), iso_calloc(n, 8), iso_calloc(n * n, 8)};
    memcpy(r.U, A, m * n * 8);
    for (size_t i = 0; i < n; i++)
        r.V[i * n + i] = 1;
    double scale = 0;
    for (size_t k = 0; k < m * n; k++)
        scale += A[k] * A[k];
    for (int sweep = 0; sweep < 60; sweep++) {
        double worst = 0;
        for (size_t p = 0; p < n; p++)
            for (size_t q = p + 1; q < n; q++) {
                double a = 0, b = 0, d = 0;
                for (size_t i = 0; i < m; i++) {
                    a += r.U[i * n + p] * r.U[i * n + p];
                    b += r.U[i * n + q] * r.U[i * n + q];
                    d += r.U[i * n + p] * r.U[i * n + q];
                }
                if (fabs(d) <= 1e-15 * sqrt(a * b) || fabs(d) < 1e-32 * scale)
                    continue;
                worst = fmax(worst, fabs(d) / sqrt(a * b));
                double z = (b - a) / (2 * d), t = (z >= 0 ? 1 : -1) / (fabs(z) + sqrt(1 + z * z));
                double c = 1 / sqrt(1 + t * t);
                rotate(r.U + p, r.U + q, m, n, c, c * t);
                rotate(r.V + p, r.V + q, n, n, c, c * t);
            }
        if (worst < 1e-14)
            break;
    }
    for (size_t j = 0; j < n; j++) {
        for (size_t i = 0; i < m; i++)
            r.S[j] += r.U[i * n + j] * r.U[i * n + j];
        r.S[j] = sqrt(r.S[j]);
    }
    for (size_t j = 0; j < n; j++) { /* descending */
        size_t best = j;
        for (size_t k = j + 1; k < n; k++)
            if (r.S[k] > r.S[best])
                best = k;
        double s = r.S[j];
        r.S[j] = r.S[best];
        r.S[best] = s;
        for (size_t i = 0; i < m && best != j; i++) {
            double x = r.U[i * n + j];
            r.U[i * n + j] = r.U[i * n + best];
            r.U[i * n + best] = x;
        }
        for (size_t i = 0; i < n && best != j; i++) {
            double x = r.V[i * n + j];
            r.V[i * n + j] = r.V[i * n + best];
            r.V[i * n + best] = x;
        }
        for (size_t i = 0; i < m && r.S[j] > 0; i++)
            r.U[i * n + j] /= r.S[j];
    }
    return r;
}

static plain_svd plain(size_t m, size_t n, const double *A)
{
    if (m >= n)
        return jacobi_tall(m, n, A);
    double *At = iso_calloc(m * n, 8);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            At[j * m + i] = A[i * n + j];
    plain_svd t = jacobi_tall(n, m, At), r = {m, n, m, t.V, t.S, t.U};
    free(At);
    return r;
}

static void plain_free(plain_svd *s)
{
    free(s->U);
    free(s->S);
    free(s->V);
}

static size_t rank_of(const plain_svd *s)
{
    size_t r = 0;
    double tol = 8 * (double)(s->m > s->n ? s->m : s->n) * 2.220446049250313e-16;
    while (r < s->q && s->S[r] > s->S[0] * tol)
        r++;
    return r;
}

static void plain_iso_c(const double *const *D, size_t T, size_t m, size_t n, double alpha,
                        double beta, bool is_rank, double *out)
{
    double *M = iso_calloc(m * n, 8), sum = 0;
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < m * n; i++)
            M[i] += D[t][i];
    plain_svd s = plain(m, n, M);
    size_t r = rank_of(&s);
    for (size_t k = 0; k < r; k++)
        sum += s.S[k];
    double sigma = r ? sum / (double)(is_rank ? r : s.q) : 0;
    memset(out, 0, m * n * 8);
    for (size_t k = 0; k < r; k++)
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++)
                out[i * n + j] += alpha * ((1 - beta) * s.S[k] + beta * sigma) * s.U[i * s.q + k] *
                                  s.V[j * s.q + k];
    plain_free(&s);
    free(M);
}

/* polar of (m, c) columns, over the numerical rank, in place */
static void plain_polar(size_t m, size_t c, double *X)
{
    plain_svd s = plain(m, c, X);
    size_t r = rank_of(&s);
    memset(X, 0, m * c * 8);
    for (size_t k = 0; k < r; k++)
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < c; j++)
                X[i * c + j] += s.U[i * s.q + k] * s.V[j * s.q + k];
    plain_free(&s);
}

static void plain_iso_cts(const double *const *D, size_t T, size_t m, size_t n, double alpha,
                          double f, bool is_rank, double *out)
{
    double *M = iso_calloc(m * n, 8), *X = iso_calloc(m * n, 8), sum = 0;
    size_t q = m < n ? m : n, total = 0;
    for (size_t t = 0; t < T; t++) {
        for (size_t i = 0; i < m * n; i++)
            M[i] += D[t][i];
        plain_svd s = plain(m, n, D[t]);
        total += rank_of(&s);
        plain_free(&s);
    }
    size_t divisor = q;
    if (is_rank && total < q)
        q = total;
    plain_svd s = plain(m, n, M);
    size_t p = (size_t)rint(((double)q - floor((double)q * f)) / (double)T);
    if (p * T > q)
        p = q / T;
    size_t k = q - p * T, cols = 0, r = rank_of(&s);
    k = k < r ? k : r;
    double *U = iso_calloc(m * (q + 1), 8), *V = iso_calloc(n * (q + 1), 8); /* columns, stride q */
    for (size_t t = 0; t < T; t++) {
        double norm = 0;
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++) {
                double x = D[t][i * n + j];
                for (size_t l = 0; l < k; l++) {
                    double w = 0;
                    for (size_t a = 0; a < m; a++)
                        w += s.U[a * s.q + l] * D[t][a * n + j];
                    x -= s.U[i * s.q + l] * w;
                }
                X[i * n + j] = x;
                norm += D[t][i * n + j] * D[t][i * n + j];
            }
        plain_svd own = plain(m, n, X);
        for (size_t l = 0; l < p && l < own.q && own.S[l] > 1e-10 * sqrt(norm); l++, cols++) {
            sum += own.S[l];
            for (size_t i = 0; i < m; i++)
                U[i * q + cols] = own.U[i * own.q + l];
            for (size_t j = 0; j < n; j++)
                V[j * q + cols] = own.V[j * own.q + l];
        }
        plain_free(&own);
    }
    for (size_t l = 0; l < k; l++, cols++) {
        sum += s.S[l];
        for (size_t i = 0; i < m; i++)
            U[i * q + cols] = s.U[i * s.q + l];
        for (size_t j = 0; j < n; j++)
            V[j * q + cols] = s.V[j * s.q + l];
    }
    double *Uc = iso_calloc(m * cols, 8), *Vc = iso_calloc(n * cols, 8);
    for (size_t l = 0; l < cols; l++) {
        for (size_t i = 0; i < m; i++)
            Uc[i * cols + l] = U[i * q + l];
        for (size_t j = 0; j < n; j++)
            Vc[j * cols + l] = V[j * q + l];
    }
    memset(out, 0, m * n * 8);
    if (r > 0) {
        plain_polar(m, cols, Uc);
        plain_polar(n, cols, Vc);
        double sigma = sum / (double)(is_rank ? cols : divisor);
        for (size_t i = 0; i < m; i++)
            for (size_t j = 0; j < n; j++)
                for (size_t l = 0; l < cols; l++)
                    out[i * n + j] += alpha * sigma * Uc[i * cols + l] * Vc[j * cols + l];
    }
    plain_free(&s);
    free(M), free(X), free(U), free(V), free(Uc), free(Vc);
}

/* ---- comparison ---- */
static double relative(const double *x, const double *y, size_t n)
{
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return norm > 0 ? sqrt(d / norm) : sqrt(d);
}

typedef struct {
    double *D[MAX_T];
    iso_tensor views[MAX_T];
    iso_deltas deltas;
} tasks;

/* rank 0: full rank. Spectrum of some decay, and a part that all tasks share. */
static void make_tasks(tasks *k, size_t T, size_t m, size_t n, size_t rank, uint64_t seed)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, m * 1000 + n);
    *k = (tasks){0};
    for (size_t t = 0; t < T; t++) {
        double *D = k->D[t] = iso_calloc(m * n, 8);
        for (size_t i = 0; i < m * n && !rank; i++)
            D[i] = iso_rng_normal(&r) * (0.5 + (double)t);
        for (size_t l = 0; l < rank; l++) {
            double *u = iso_calloc(m + n, 8);
            for (size_t i = 0; i < m + n; i++)
                u[i] = iso_rng_normal(&r);
            for (size_t i = 0; i < m; i++)
                for (size_t j = 0; j < n; j++)
                    D[i * n + j] += u[i] * u[m + j] / (1 + (double)l);
            free(u);
        }
        k->views[t] = (iso_tensor){ISO_F64, 2, {m, n}, D};
    }
    k->deltas = (iso_deltas){.T = T,
                             .m = m,
                             .n = n,
                             .views = k->views,
                             .rank_tol = iso_rank_tol(m, n, true),
                             .full_q = m < n ? m : n};
}

static void free_tasks(tasks *k)
{
    for (size_t t = 0; t < MAX_T; t++)
        free(k->D[t]);
}

typedef struct {
    size_t m, n, T, rank;
    double a, b; /* beta for Iso-C, fraction for Iso-CTS; alpha */
    bool is_rank_convention;
} row;

static const row rows[] = {
    {12, 8, 3, 0, 1, 1.3, false},  {8, 12, 3, 0, 0.5, 1, false},  {16, 16, 4, 0, 0.8, 1, false},
    {33, 17, 5, 0, 0.8, 1, false}, {17, 33, 5, 0, 0.8, 1, false}, {24, 20, 3, 2, 0.5, 1, false},
    {24, 20, 3, 2, 0.5, 1, true},  {20, 24, 4, 3, 0.6, 2, true},  {20, 24, 4, 3, 0.6, 2, false},
    {15, 15, 1, 0, 0.8, 1, false}, {6, 6, 4, 0, 0, 1, false},     {1, 9, 2, 0, 0.8, 1, false},
    {9, 1, 2, 0, 0.8, 1, false},   {40, 60, 6, 0, 0.9, 1, false}, {60, 40, 2, 0, 0, -1, false},
    {48, 48, 2, 30, 0.7, 1, true},
};

static void run(const char *name, const row *c, iso_route_wish wish, double bound)
{
    tasks k;
    make_tasks(&k, c->T, c->m, c->n, c->rank, 3);
    const iso_method *method = iso_method_find(name);
    iso_method_args args;
    iso_method_defaults(method, &args);
    args.value[0] = c->b;
    args.value[1] = c->a;
    args.convention = c->is_rank_convention ? ISO_CONVENTION_RANK : ISO_CONVENTION_DENSE;
    args.route = wish;
    iso_decisions decisions;
    iso_arena arena = {0};
    iso_error e = {0};
    double *got = iso_calloc(c->m * c->n, 8), *want = iso_calloc(c->m * c->n, 8);
    if (iso_layer_dense(method, &args, &k.deltas, got, &decisions, &arena, &e))
        fail_msg("%s", e.text);
    const double *const *D = (const double *const *)k.D;
    if (strcmp(name, "iso_c") == 0)
        plain_iso_c(D, c->T, c->m, c->n, c->b, c->a, c->is_rank_convention, want);
    else
        plain_iso_cts(D, c->T, c->m, c->n, c->b, c->a, c->is_rank_convention, want);
    double error = relative(got, want, c->m * c->n);
    if (!(error < bound))
        fail_msg("%s %zux%zu T=%zu rank %zu: differs by %.2e (route %s, rank %zu, common %zu, p "
                 "%zu, kept %zu)",
                 name, c->m, c->n, c->T, c->rank, error, decisions.route, decisions.rank,
                 decisions.common, decisions.per_task, decisions.kept);
    iso_arena_free(&arena);
    free(got), free(want);
    free_tasks(&k);
}

static void iso_c_equals_its_formula(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        run("iso_c", &rows[i], ISO_WISH_AUTO, 1e-9);
        run("iso_c", &rows[i], ISO_WISH_SVD, 1e-11);
    }
}

static void iso_cts_equals_its_formula(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        run("iso_cts", &rows[i], ISO_WISH_AUTO, 1e-8);
        run("iso_cts", &rows[i], ISO_WISH_SVD, 1e-9);
    }
}

/* Large enough for partial eigenproblems and differences of Gram matrices; Jacobi would take
 * minutes, the SVD route was held against it above. */
static void fast_routes_equal_the_svd_route(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{420, 300, 3}, {300, 420, 3}, {320, 320, 4}, {500, 60, 2}};
    for (size_t c = 0; c < 4; c++) {
        size_t m = shapes[c][0], n = shapes[c][1];
        tasks k;
        make_tasks(&k, shapes[c][2], m, n, 0, 12);
        for (size_t t = 0; t < shapes[c][2];
             t++) /* a strong common part, so that residuals are small */
            for (size_t i = 0; i < m; i++)
                for (size_t j = 0; j < n; j++)
                    k.D[t][i * n + j] += 3.0 * sin((double)(i + 1)) * cos((double)j);
        double *fast = iso_calloc(m * n, 8), *slow = iso_calloc(m * n, 8);
        const iso_method *method = iso_method_find("iso_cts");
        iso_method_args args;
        iso_decisions a, b;
        iso_arena arena = {0};
        iso_method_defaults(method, &args);
        args.convention = ISO_CONVENTION_DENSE;
        assert_int_equal(iso_layer_dense(method, &args, &k.deltas, fast, &a, &arena, NULL), ISO_OK);
        args.route = ISO_WISH_SVD;
        assert_int_equal(iso_layer_dense(method, &args, &k.deltas, slow, &b, &arena, NULL), ISO_OK);
        assert_string_equal(a.route, "gram");
        assert_string_equal(b.route, "svd");
        assert_int_equal(a.kept, b.kept);
        double error = relative(fast, slow, m * n);
        if (!(error < 1e-9))
            fail_msg("%zux%zu: %.2e", m, n, error);
        iso_arena_free(&arena);
        free(fast), free(slow);
        free_tasks(&k);
    }
}

static void linear_methods_equal_their_formulas(void **state)
{
    (void)state;
    tasks k;
    make_tasks(&k, 3, 5, 7, 0, 9);
    static const double weights[] = {1, 0, 2.5};
    k.deltas.weights = weights;
    double got[35], want[35];
    iso_decisions decisions;
    iso_arena arena = {0};
    iso_method_args args;
    for (int is_sum = 0; is_sum < 2; is_sum++) {
        const iso_method *method = iso_method_find(is_sum ? "task_arithmetic" : "average");
        iso_method_defaults(method, &args);
        assert_int_equal(iso_layer_dense(method, &args, &k.deltas, got, &decisions, &arena, NULL),
                         ISO_OK);
        for (size_t i = 0; i < 35; i++) {
            double sum = weights[0] * k.D[0][i] + weights[2] * k.D[2][i];
            want[i] = is_sum ? 0.3 * sum : sum / 3.5;
        }
        assert_true(relative(got, want, 35) < 1e-14);
    }
    iso_arena_free(&arena);
    free_tasks(&k);
}

/* ---- the steps that are easy to get wrong ---- */
static void iso_cts_sizes_round_half_to_even_and_stay_within_q(void **state)
{
    (void)state;
    static const struct {
        size_t q, T;
        double f;
        size_t k, p;
    } cases[] = {
        {10, 2, 0.5, 6, 2},  /* 5 / 2 = 2.5 -> 2 */
        {14, 2, 0.5, 6, 4},  /* 7 / 2 = 3.5 -> 4 */
        {6, 4, 0.0, 2, 1},   /* rint(1.5) = 2 would need 8 > 6 */
        {10, 3, 1.0, 10, 0}, /* Iso-C */
        {20, 3, 0.8, 17, 1}, /* floor(16.0) = 16, 4 / 3 */
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        tasks k;
        make_tasks(&k, cases[i].T, cases[i].q, cases[i].q, 0, 4);
        const iso_method *method = iso_method_find("iso_cts");
        iso_method_args args;
        iso_decisions decisions;
        iso_arena arena = {0};
        double *out = iso_calloc(cases[i].q * cases[i].q, 8);
        iso_method_defaults(method, &args);
        args.value[1] = cases[i].f;
        args.convention = ISO_CONVENTION_DENSE;
        assert_int_equal(iso_layer_dense(method, &args, &k.deltas, out, &decisions, &arena, NULL),
                         ISO_OK);
        assert_int_equal(decisions.common, cases[i].k);
        assert_int_equal(decisions.per_task, cases[i].p);
        free(out);
        iso_arena_free(&arena);
        free_tasks(&k);
    }
}

static void nearly_equal_tasks_show_in_the_whitening(void **state)
{
    (void)state;
    static const double distances[] = {1e-1, 1e-4, 1e-8, 0};
    for (size_t c = 0; c < 4; c++) {
        tasks k;
        make_tasks(&k, 3, 24, 20, 0, 6);
        iso_rng r = iso_rng_make(1, ISO_RNG_TEST, 99);
        for (size_t i = 0; i < 24 * 20; i++)
            k.D[1][i] = k.D[0][i] + distances[c] * iso_rng_normal(&r);
        const iso_method *method = iso_method_find("iso_cts");
        iso_method_args args;
        iso_decisions decisions;
        iso_arena arena = {0};
        double out[24 * 20];
        iso_method_defaults(method, &args);
        args.convention = ISO_CONVENTION_DENSE;
        assert_int_equal(iso_layer_dense(method, &args, &k.deltas, out, &decisions, &arena, NULL),
                         ISO_OK);
        for (size_t i = 0; i < 24 * 20; i++)
            assert_true(isfinite(out[i]));
        if (distances[c] == 0) /* exact copies are rank-decided away */
            assert_true(decisions.smallest > 1e-3);
        else
            assert_true(decisions.smallest < 10 * distances[c] &&
                        decisions.smallest > distances[c] / 1000);
        iso_arena_free(&arena);
        free_tasks(&k);
    }
}

static void gain_cap_holds_small_directions_back(void **state)
{
    (void)state;
    enum { N = 8 };
    double D[N * N] = {0}, out[N * N];
    for (size_t i = 0; i < N; i++)
        D[i * N + i] = i == N - 1 ? 1e-3 : 1.0;
    iso_tensor view = {ISO_F64, 2, {N, N}, D};
    iso_deltas d = {
        .T = 1, .m = N, .n = N, .views = &view, .rank_tol = iso_rank_tol(N, N, true), .full_q = N};
    static const char *const names[] = {"iso_c", "iso_cts"};
    for (int c = 0; c < 2; c++) {
        const iso_method *method = iso_method_find(names[c]);
        iso_method_args args;
        iso_decisions decisions;
        iso_arena arena = {0};
        iso_method_defaults(method, &args);
        args.convention = ISO_CONVENTION_DENSE;
        args.gain_cap = 10;
        assert_int_equal(iso_layer_dense(method, &args, &d, out, &decisions, &arena, NULL), ISO_OK);
        assert_int_equal(decisions.capped, 1);
        assert_true(fabs(out[N * N - 1] - 1e-2) < 1e-9);       /* g s */
        assert_true(fabs(out[0] - (N - 1 + 1e-3) / N) < 1e-9); /* sigma */
        iso_arena_free(&arena);
    }
}

static void transposed_storage_is_merged_as_out_in(void **state)
{
    (void)state;
    tasks k;
    make_tasks(&k, 3, 10, 14, 0, 8);
    double *turned[3], straight[140], other[140];
    iso_tensor views[3];
    iso_arena arena = {0};
    iso_decisions decisions;
    const iso_method *method = iso_method_find("iso_cts");
    iso_method_args args;
    iso_method_defaults(method, &args);
    args.convention = ISO_CONVENTION_DENSE;
    for (size_t t = 0; t < 3; t++) {
        turned[t] = iso_calloc(140, 8);
        iso_transpose(10, 14, k.D[t], turned[t]);
        views[t] = (iso_tensor){ISO_F64, 2, {14, 10}, turned[t]};
    }
    assert_int_equal(iso_layer_dense(method, &args, &k.deltas, straight, &decisions, &arena, NULL),
                     ISO_OK);
    iso_deltas d = k.deltas;
    d.views = views;
    d.is_transposed = true;
    assert_int_equal(iso_layer_dense(method, &args, &d, other, &decisions, &arena, NULL), ISO_OK);
    assert_memory_equal(straight, other, sizeof straight);
    for (size_t t = 0; t < 3; t++)
        free(turned[t]);
    iso_arena_free(&arena);
    free_tasks(&k);
}

static void parameters_are_checked_by_name_and_range(void **state)
{
    (void)state;
    const iso_method *m;
    iso_method_args a;
    iso_error e;
    assert_int_equal(iso_method_need("iso_ct", &m, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "iso_c"));
    assert_int_equal(iso_method_need("iso_cts", &m, &e), ISO_OK);
    iso_method_defaults(m, &a);
    assert_int_equal(iso_method_set(m, &a, "common_fraction", 1.5, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "0 to 1"));
    assert_int_equal(iso_method_set(m, &a, "common_fraction", (double)NAN, &e), ISO_ERR_USAGE);
    assert_int_equal(iso_method_set(m, &a, "comon_fraction", 0.5, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "common_fraction"));
    assert_int_equal(iso_method_set(m, &a, "common_fraction", 0.5, &e), ISO_OK);
    assert_true(iso_method_get(m, &a, "common_fraction", 0) == 0.5);
    assert_true(iso_method_get(m, &a, "density", 7) == 7);
}

int main(void)
{
    iso_blas_serial();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(iso_c_equals_its_formula),
        cmocka_unit_test(iso_cts_equals_its_formula),
        cmocka_unit_test(fast_routes_equal_the_svd_route),
        cmocka_unit_test(linear_methods_equal_their_formulas),
        cmocka_unit_test(iso_cts_sizes_round_half_to_even_and_stay_within_q),
        cmocka_unit_test(nearly_equal_tasks_show_in_the_whitening),
        cmocka_unit_test(gain_cap_holds_small_directions_back),
        cmocka_unit_test(transposed_storage_is_merged_as_out_in),
        cmocka_unit_test(parameters_are_checked_by_name_and_range),
    };
    return cmocka_run_group_tests_name("merge methods", tests, NULL, NULL);
}
