/* merge/linalg against plain reference versions, over shapes and conditions 1e0 .. 1e8. */
#include "core/rng.h"
#include "merge/linalg/linalg.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void fill(double *x, size_t n, uint64_t stream)
{
    iso_rng r = iso_rng_make(7, ISO_RNG_TEST, stream);
    for (size_t i = 0; i < n; i++)
        x[i] = iso_rng_normal(&r);
}

/* C (m, n) = A (m, k) B (k, n), the plain way. */
static void multiply(size_t m, size_t n, size_t k, const double *A, const double *B, double *C)
{
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++) {
            double s = 0;
            for (size_t l = 0; l < k; l++)
                s += A[i * k + l] * B[l * n + j];
            C[i * n + j] = s;
        }
}

static double difference(const double *x, const double *y, size_t n)
{
    double d = 0;
    for (size_t i = 0; i < n; i++)
        d = fmax(d, fabs(x[i] - y[i]));
    return d;
}

/* max |X X' - I| over the rows of X (r, n). */
static double off_orthonormal(size_t r, size_t n, const double *X)
{
    double worst = 0;
    for (size_t i = 0; i < r; i++)
        for (size_t j = 0; j < r; j++) {
            double s = 0;
            for (size_t k = 0; k < n; k++)
                s += X[i * n + k] * X[j * n + k];
            worst = fmax(worst, fabs(s - (i == j ? 1.0 : 0.0)));
        }
    return worst;
}

/* Orthonormal rows by Gram-Schmidt, twice. */
static void orthonormal_rows(size_t r, size_t n, double *X, uint64_t stream)
{
    fill(X, r * n, stream);
    for (size_t i = 0; i < r; i++) {
        for (int pass = 0; pass < 2; pass++)
            for (size_t j = 0; j < i; j++) {
                double s = 0;
                for (size_t k = 0; k < n; k++)
                    s += X[i * n + k] * X[j * n + k];
                for (size_t k = 0; k < n; k++)
                    X[i * n + k] -= s * X[j * n + k];
            }
        double norm = 0;
        for (size_t k = 0; k < n; k++)
            norm += X[i * n + k] * X[i * n + k];
        for (size_t k = 0; k < n; k++)
            X[i * n + k] /= sqrt(norm);
    }
}

/* M = U' diag(S) V with a geometric spectrum 1 .. 1/condition; polar (m, n) = U' V. */
static double *planted(size_t m, size_t n, double condition, double *polar, double *S)
{
    size_t q = m < n ? m : n;
    double *U = iso_calloc(q * m, 8), *V = iso_calloc(q * n, 8), *M = iso_calloc(m * n, 8);
    orthonormal_rows(q, m, U, 1);
    orthonormal_rows(q, n, V, 2);
    for (size_t l = 0; l < q; l++)
        S[l] = q > 1 ? pow(condition, -(double)l / (double)(q - 1)) : 1.0;
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < n; j++)
            for (size_t l = 0; l < q; l++) {
                polar[i * n + j] += U[l * m + i] * V[l * n + j];
                M[i * n + j] += S[l] * U[l * m + i] * V[l * n + j];
            }
    free(U);
    free(V);
    return M;
}

static void products_match_plain_loops(void **state)
{
    (void)state;
    static const size_t shapes[][3] = {{1, 1, 1}, {5, 7, 3}, {33, 17, 40}, {64, 64, 1}};
    for (size_t c = 0; c < 4; c++) {
        size_t m = shapes[c][0], n = shapes[c][1], k = shapes[c][2];
        double *A = iso_calloc(m * k, 8), *At = iso_calloc(m * k, 8), *B = iso_calloc(k * n, 8),
               *Bt = iso_calloc(k * n, 8);
        double *want = iso_calloc(m * n, 8), *got = iso_calloc(m * n, 8), *G = iso_calloc(m * m, 8),
               *G2 = iso_calloc(m * m, 8);
        fill(A, m * k, 10);
        fill(B, k * n, 11);
        iso_transpose(m, k, A, At);
        iso_transpose(k, n, B, Bt);
        multiply(m, n, k, A, B, want);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, m, n, k, 1, A, k, B, n, 0, got, n);
        assert_true(difference(got, want, m * n) < 1e-12);
        iso_la_gemm(ISO_TRANSPOSED, ISO_TRANSPOSED, m, n, k, 1, At, m, Bt, k, 0, got, n);
        assert_true(difference(got, want, m * n) < 1e-12);
        multiply(m, m, k, A, At, G);
        iso_gram(ISO_AS_IS, m, k, A, G2);
        assert_true(difference(G, G2, m * m) < 1e-12);
        iso_gram(ISO_TRANSPOSED, k, m, At, G2);
        assert_true(difference(G, G2, m * m) < 1e-12);
        free(A), free(At), free(B), free(Bt), free(want), free(got), free(G), free(G2);
    }
    double C[2] = {3, 4};
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, 1, 2, 0, 1, C, 1, C, 2, 0, C, 2); /* empty inner dimension */
    assert_true(C[0] == 0 && C[1] == 0);
}

static void eigenvectors_rebuild_the_matrix(void **state)
{
    (void)state;
    static const size_t sizes[] = {1, 2, 9, 50};
    for (size_t c = 0; c < 4; c++) {
        size_t n = sizes[c];
        double *X = iso_calloc(n * n, 8), *A = iso_calloc(n * n, 8), *E = iso_calloc(n * n, 8),
               *w = iso_calloc(n, 8);
        double *scaled = iso_calloc(n * n, 8), *Et = iso_calloc(n * n, 8),
               *back = iso_calloc(n * n, 8);
        iso_arena arena = {0};
        fill(X, n * n, c);
        iso_gram(ISO_AS_IS, n, n, X, A);
        memcpy(E, A, n * n * 8);
        assert_int_equal(iso_eigen(n, E, w, &arena, NULL), ISO_OK);
        assert_true(off_orthonormal(n, n, E) < 1e-12);
        for (size_t i = 0; i < n; i++) {
            assert_true(i == 0 || w[i] <= w[i - 1]);
            for (size_t j = 0; j < n; j++)
                scaled[i * n + j] = w[i] * E[i * n + j];
        }
        iso_transpose(n, n, E, Et);
        multiply(n, n, n, Et, scaled, back);
        assert_true(difference(back, A, n * n) < 1e-11 * (w[0] + 1));
        iso_arena_free(&arena);
        free(X), free(A), free(E), free(w), free(scaled), free(Et), free(back);
    }
}

static void leading_eigenpairs_are_the_first_of_all(void **state)
{
    (void)state;
    static const size_t cases[][2] = {{300, 10}, {300, 75}, {300, 200}, {40, 5}};
    for (size_t c = 0; c < 4; c++) {
        size_t n = cases[c][0], count = cases[c][1];
        double *X = iso_calloc(n * n, 8), *A = iso_calloc(n * n, 8), *B = iso_calloc(n * n, 8);
        double *w = iso_calloc(n, 8), *w_all = iso_calloc(n, 8);
        iso_arena arena = {0};
        fill(X, n * n, 20 + c);
        iso_gram(ISO_AS_IS, n, n, X, A);
        memcpy(B, A, n * n * 8);
        assert_int_equal(iso_eigen_leading(n, count, A, w, &arena, NULL), ISO_OK);
        assert_int_equal(iso_eigen(n, B, w_all, &arena, NULL), ISO_OK);
        assert_true(difference(w, w_all, count) < 1e-11 * w_all[0]);
        assert_true(off_orthonormal(count, n, A) < 1e-11);
        for (size_t i = 0; i < count; i++) /* up to sign */
            assert_true(fabs(fabs(iso_dot(A + i * n, B + i * n, n)) - 1) < 1e-8);
        iso_arena_free(&arena);
        free(X), free(A), free(B), free(w), free(w_all);
    }
}

/* Error of U'V over the given route, relative to the planted polar factor. */
static double polar_error(size_t m, size_t n, double condition, iso_route_wish wish,
                          iso_route *route, double *s_error)
{
    size_t q = m < n ? m : n;
    double *polar = iso_calloc(m * n, 8), *S = iso_calloc(q, 8), *got = iso_calloc(m * n, 8),
           diff = 0;
    double *M = planted(m, n, condition, polar, S);
    iso_arena arena = {0};
    iso_thin t;
    double tol = 8 * (double)(m > n ? m : n) * DBL_EPSILON;
    assert_int_equal(iso_thin_svd(m, n, M, tol, 0, q, wish, &t, &arena, NULL), ISO_OK);
    assert_int_equal(iso_thin_far(&t, M, t.rank, &arena, NULL), ISO_OK);
    assert_int_equal(t.rank, q);
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, m, n, q, 1, t.Ut, m, t.Vt, n, 0, got, n);
    for (size_t i = 0; i < m * n; i++)
        diff += (got[i] - polar[i]) * (got[i] - polar[i]);
    *s_error = difference(t.S, S, q);
    *route = t.route;
    iso_arena_free(&arena);
    free(polar), free(S), free(got), free(M);
    return sqrt(diff / (double)q);
}

/* Bounds ten times what specs/merging.md 6 measured. */
static void polar_factor_holds_its_accuracy_from_1e0_to_1e8(void **state)
{
    (void)state;
    static const struct {
        double condition, bound;
        iso_route route;
    } rows[] = {{1e0, 1e-12, ISO_ROUTE_GRAM}, {1e2, 1e-11, ISO_ROUTE_GRAM},
                {1e4, 1e-8, ISO_ROUTE_GRAM},  {1e5, 1e-6, ISO_ROUTE_GRAM},
                {1e6, 1e-9, ISO_ROUTE_SVD},   {1e7, 1e-8, ISO_ROUTE_SVD},
                {1e8, 1e-7, ISO_ROUTE_SVD}};
    static const size_t shapes[][2] = {{40, 40}, {30, 70}, {70, 30}};
    for (size_t c = 0; c < sizeof rows / sizeof *rows; c++)
        for (size_t s = 0; s < 3; s++) {
            iso_route route;
            double s_error, error = polar_error(shapes[s][0], shapes[s][1], rows[c].condition,
                                                ISO_WISH_AUTO, &route, &s_error);
            if (error > rows[c].bound || route != rows[c].route || s_error > 1e-12)
                fail_msg("%zux%zu condition %g: error %g, route %d, S off by %g", shapes[s][0],
                         shapes[s][1], rows[c].condition, error, (int)route, s_error);
        }
}

static void routes_agree_where_both_serve(void **state)
{
    (void)state;
    iso_route route;
    double s_error;
    assert_true(polar_error(60, 45, 1e2, ISO_WISH_SVD, &route, &s_error) < 1e-12);
    assert_int_equal(route, ISO_ROUTE_SVD);
    assert_true(polar_error(60, 45, 1e2, ISO_WISH_GRAM, &route, &s_error) < 1e-11);
    assert_int_equal(route, ISO_ROUTE_GRAM);
}

static void rank_is_decided_and_rounding_is_not_data(void **state)
{
    (void)state;
    enum { M = 24, N = 20, R = 6 };
    double L[M * R], X[R * N], P[M * N];
    iso_arena arena = {0};
    iso_thin t;
    fill(L, M * R, 1);
    fill(X, R * N, 2);
    multiply(M, N, R, L, X, P);
    assert_int_equal(
        iso_thin_svd(M, N, P, 8 * M * DBL_EPSILON, 0, N, ISO_WISH_AUTO, &t, &arena, NULL), ISO_OK);
    assert_int_equal(t.rank, R);
    assert_int_equal(t.route, ISO_ROUTE_SVD); /* a Gram matrix cannot tell 1e-14 from zero */
    /* float32 tolerance: the Gram matrix can, and full data of small size is dropped as told */
    assert_int_equal(
        iso_thin_svd(M, N, P, M * (double)FLT_EPSILON, 0, N, ISO_WISH_AUTO, &t, &arena, NULL),
        ISO_OK);
    assert_int_equal(t.rank, R);
    assert_int_equal(t.route, ISO_ROUTE_GRAM);
    /* everything below the noise given: rank 0 */
    assert_int_equal(iso_thin_svd(M, N, P, 1e-12, 1e9, N, ISO_WISH_AUTO, &t, &arena, NULL), ISO_OK);
    assert_int_equal(t.rank, 0);
    memset(P, 0, sizeof P);
    assert_int_equal(iso_thin_svd(M, N, P, 1e-12, 0, N, ISO_WISH_AUTO, &t, &arena, NULL), ISO_OK);
    assert_int_equal(t.rank, 0);
    P[3] = (double)NAN;
    iso_error e;
    assert_int_equal(iso_thin_svd(M, N, P, 1e-12, 0, N, ISO_WISH_AUTO, &t, &arena, &e),
                     ISO_ERR_NONFINITE);
    assert_non_null(strstr(e.text, "24x20"));
    iso_arena_free(&arena);
}

static void polar_of_dependent_rows_keeps_their_rank(void **state)
{
    (void)state;
    enum { R = 6, N = 15 };
    double X[R * N], P[R * N], G[R * R], smallest;
    size_t rank;
    iso_arena arena = {0};
    fill(X, R * N, 5);
    memcpy(P, X, sizeof P);
    assert_int_equal(iso_polar(R, N, P, 1e-12, &smallest, &rank, &arena, NULL), ISO_OK);
    assert_int_equal(rank, R);
    assert_true(off_orthonormal(R, N, P) < 1e-12);
    memcpy(X + 2 * N, X, N * sizeof *X); /* an exact copy */
    memcpy(P, X, sizeof P);
    assert_int_equal(iso_polar(R, N, P, 1e-12, &smallest, &rank, &arena, NULL), ISO_OK);
    assert_int_equal(rank, R - 1);
    assert_true(smallest > 1e-3);
    /* P P' is a projector of that rank */
    double trace = 0, worst = 0;
    iso_gram(ISO_AS_IS, R, N, P, G);
    for (size_t i = 0; i < R; i++) {
        trace += G[i * R + i];
        for (size_t j = 0; j < R; j++) {
            double s = 0;
            for (size_t k = 0; k < R; k++)
                s += G[i * R + k] * G[k * R + j];
            worst = fmax(worst, fabs(s - G[i * R + j]));
        }
    }
    assert_true(fabs(trace - (R - 1)) < 1e-12 && worst < 1e-12);
    iso_arena_free(&arena);
}

static void bases_span_the_stack_in_every_route(void **state)
{
    (void)state;
    static const struct {
        size_t R, m;
        int spoil; /* 1: a copy, 2: nearly a copy, 3: a zero row */
        iso_basis_kind kind;
    } rows[] = {{6, 40, 0, ISO_BASIS_CHOLESKY},    {6, 40, 1, ISO_BASIS_HOUSEHOLDER},
                {6, 40, 2, ISO_BASIS_HOUSEHOLDER}, {6, 40, 3, ISO_BASIS_HOUSEHOLDER},
                {12, 12, 0, ISO_BASIS_IDENTITY},   {20, 12, 0, ISO_BASIS_IDENTITY},
                {1, 5, 0, ISO_BASIS_CHOLESKY}};
    for (size_t c = 0; c < sizeof rows / sizeof *rows; c++) {
        size_t R = rows[c].R, m = rows[c].m;
        double *X = iso_calloc(R * m, 8), *back = iso_calloc(R * m, 8);
        iso_arena arena = {0};
        iso_basis b;
        fill(X, R * m, c);
        for (size_t i = 0; i < m && rows[c].spoil; i++)
            X[3 * m + i] =
                rows[c].spoil == 3 ? 0 : X[m + i] + (rows[c].spoil == 2 ? 1e-7 * X[i] : 0);
        assert_int_equal(iso_basis_make(R, m, X, &b, &arena, NULL), ISO_OK);
        assert_int_equal(b.kind, rows[c].kind);
        double *W = iso_arena_alloc(&arena, R * b.k, 8),
               *I = iso_arena_calloc(&arena, b.k * b.k, 8);
        double *Q = iso_arena_alloc(&arena, b.k * m, 8);
        for (size_t i = 0; i < b.k; i++)
            I[i * b.k + i] = 1;
        memcpy(W, b.coords, R * b.k * 8); /* coords Q is the stack, and Q is orthonormal */
        iso_basis_expand(&b, b.k, I, Q);
        assert_true(off_orthonormal(b.k, m, Q) < 1e-11);
        iso_basis_expand(&b, R, W, back);
        assert_true(difference(back, X, R * m) < 1e-12);
        iso_arena_free(&arena);
        free(X), free(back);
    }
}

/* Sizes that reach the packed kernel, with tiles that hang over every edge. */
static void large_products_match_plain_loops(void **state)
{
    (void)state;
    static const size_t cases[][3] = {{40, 50, 33}, {97, 25, 200}, {129, 71, 65}, {16, 400, 193}};
    for (size_t c = 0; c < 4; c++)
        for (int ops = 0; ops < 4; ops++) {
            size_t m = cases[c][0], n = cases[c][1], k = cases[c][2];
            double *A = iso_calloc(m * k, 8), *B = iso_calloc(k * n, 8), *At = iso_calloc(m * k, 8);
            double *Bt = iso_calloc(k * n, 8), *C = iso_calloc(m * n, 8), *D = iso_calloc(m * n, 8);
            double *want = iso_calloc(m * n, 8);
            fill(A, m * k, 40 + c), fill(B, k * n, 50 + c), fill(C, m * n, 60 + c);
            iso_transpose(m, k, A, At), iso_transpose(k, n, B, Bt);
            memcpy(D, C, m * n * 8);
            multiply(m, n, k, A, B, want);
            for (size_t i = 0; i < m * n; i++)
                want[i] = 0.5 * want[i] - 2.0 * C[i];
            bool ta = ops & 1, tb = ops & 2;
            iso_la_gemm(ta ? ISO_TRANSPOSED : ISO_AS_IS, tb ? ISO_TRANSPOSED : ISO_AS_IS, m, n, k,
                        0.5, ta ? At : A, ta ? m : k, tb ? Bt : B, tb ? k : n, -2.0, C, n);
            assert_true(difference(C, want, m * n) < 1e-12 * (double)k);
            free(A), free(B), free(At), free(Bt), free(C), free(D), free(want);
        }
    size_t n = 131, k = 60;
    double *X = iso_calloc(n * k, 8), *G = iso_calloc(n * n, 8), *want = iso_calloc(n * n, 8);
    double *Xt = iso_calloc(n * k, 8);
    fill(X, n * k, 70);
    iso_transpose(n, k, X, Xt);
    multiply(n, n, k, X, Xt, want);
    iso_gram(ISO_AS_IS, n, k, X, G);
    assert_true(difference(G, want, n * n) < 1e-11);
    iso_gram(ISO_TRANSPOSED, k, n, Xt, G);
    assert_true(difference(G, want, n * n) < 1e-11);
    free(X), free(G), free(want), free(Xt);
}

/* P M (or M P) with P = (M M')^-1/2 against the planted polar factor; the nuclear norm. Bounds as
 * for the Gram route, which loses the same digits. */
static void the_root_gives_the_polar_factor_without_eigenvectors(void **state)
{
    (void)state;
    static const size_t shapes[][2] = {{64, 64}, {100, 170}, {210, 150}, {193, 193}};
    static const struct {
        double condition, bound;
    } rows[] = {{1e0, 1e-12}, {1e2, 1e-11}, {1e4, 1e-8}, {1e5, 1e-6}};
    for (size_t s = 0; s < 4; s++)
        for (size_t c = 0; c < 4; c++) {
            size_t m = shapes[s][0], n = shapes[s][1], q = m < n ? m : n;
            double *polar = iso_calloc(m * n, 8), *S = iso_calloc(q, 8), sum = 0.0, diff = 0.0;
            double *M = planted(m, n, rows[c].condition, polar, S), *D = iso_calloc(m * n, 8);
            iso_arena arena = {0};
            iso_thin t;
            iso_root root;
            assert_int_equal(
                iso_thin_root(m, n, M, 1e-12, 0, ISO_WISH_AUTO, &root, &t, &arena, NULL), ISO_OK);
            assert_non_null(root.P);
            assert_int_equal(t.rank, q);
            if (m <= n)
                iso_la_gemm(ISO_AS_IS, ISO_AS_IS, m, n, q, 1, root.P, q, M, n, 0, D, n);
            else
                iso_la_gemm(ISO_AS_IS, ISO_AS_IS, m, n, q, 1, M, n, root.P, q, 0, D, n);
            for (size_t i = 0; i < m * n; i++)
                diff += (D[i] - polar[i]) * (D[i] - polar[i]);
            for (size_t i = 0; i < q; i++)
                sum += S[i];
            if (sqrt(diff / (double)q) > rows[c].bound || fabs(root.nuclear / sum - 1.0) > 1e-7)
                fail_msg("%zux%zu condition %g: error %g, nuclear norm off by %g", m, n,
                         rows[c].condition, sqrt(diff / (double)q), root.nuclear / sum - 1.0);
            iso_arena_free(&arena);
            free(polar), free(S), free(M), free(D);
        }
}

static void no_root_where_the_rank_is_short_or_in_doubt(void **state)
{
    (void)state;
    size_t m = 90, n = 120;
    static const struct {
        double condition, tol;
        iso_route route;
    } rows[] = {{1e8, 1e-12, ISO_ROUTE_SVD}, {1e4, 1e-3, ISO_ROUTE_GRAM}};
    for (size_t c = 0; c < 2; c++) {
        double *polar = iso_calloc(m * n, 8), *S = iso_calloc(m, 8);
        double *M = planted(m, n, rows[c].condition, polar, S);
        iso_arena arena = {0};
        iso_thin t;
        iso_root root;
        assert_int_equal(
            iso_thin_root(m, n, M, rows[c].tol, 0, ISO_WISH_AUTO, &root, &t, &arena, NULL), ISO_OK);
        assert_null(root.P);
        assert_int_equal(t.route, rows[c].route);
        size_t rank = 0;
        while (rank < m && S[rank] > S[0] * rows[c].tol)
            rank++;
        assert_int_equal(t.rank, rank);
        iso_arena_free(&arena);
        free(polar), free(S), free(M);
    }
}

int main(void)
{
    iso_blas_serial();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_match_plain_loops),
        cmocka_unit_test(eigenvectors_rebuild_the_matrix),
        cmocka_unit_test(leading_eigenpairs_are_the_first_of_all),
        cmocka_unit_test(polar_factor_holds_its_accuracy_from_1e0_to_1e8),
        cmocka_unit_test(routes_agree_where_both_serve),
        cmocka_unit_test(rank_is_decided_and_rounding_is_not_data),
        cmocka_unit_test(polar_of_dependent_rows_keeps_their_rank),
        cmocka_unit_test(bases_span_the_stack_in_every_route),
        cmocka_unit_test(large_products_match_plain_loops),
        cmocka_unit_test(the_root_gives_the_polar_factor_without_eigenvectors),
        cmocka_unit_test(no_root_where_the_rank_is_short_or_in_doubt),
    };
    return cmocka_run_group_tests_name("merge linalg", tests, NULL, NULL);
}
