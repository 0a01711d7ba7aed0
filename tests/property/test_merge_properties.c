/* Properties of specs/merging.md 10 over random draws; a failure prints the seed. */
#include "core/parallel.h"
#include "core/rng.h"
#include "merge/layer.h"
#include "merge/merge.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { DRAWS = 12, MAX_T = 6 };

typedef struct {
    uint64_t seed;
    size_t T, m, n;
    double *D[MAX_T];
    iso_arena arena; /* scratch of the methods */
} draw;

static void draw_tasks(draw *d, uint64_t seed)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 0);
    *d = (draw){.seed = seed};
    d->T = 2 + iso_rng_below(&r, MAX_T - 1);
    d->m = 6 + iso_rng_below(&r, 30);
    d->n = 6 + iso_rng_below(&r, 30);
    for (size_t t = 0; t < d->T; t++) {
        d->D[t] = iso_calloc(d->m * d->n, 8);
        for (size_t i = 0; i < d->m * d->n; i++)
            d->D[t][i] = iso_rng_normal(&r);
    }
}

static void free_draw(draw *d)
{
    for (size_t t = 0; t < d->T; t++)
        free(d->D[t]);
    iso_arena_free(&d->arena);
}

static double relative(const double *x, const double *y, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

/* New (m, n) result; second: Iso-C's beta or Iso-CTS's fraction, NAN for the default. */
static double *merged_as(draw *d, const char *name, double *const *D, size_t T, size_t m, size_t n,
                         double second)
{
    iso_tensor views[MAX_T];
    for (size_t t = 0; t < T; t++)
        views[t] = (iso_tensor){ISO_F64, 2, {m, n}, D[t]};
    iso_deltas deltas = {.T = T,
                         .m = m,
                         .n = n,
                         .views = views,
                         .rank_tol = iso_rank_tol(m, n, true),
                         .full_q = m < n ? m : n};
    const iso_method *method = iso_method_find(name);
    iso_method_args args;
    iso_decisions decisions;
    iso_error e;
    double *out = iso_calloc(m * n, 8);
    iso_method_defaults(method, &args);
    args.convention = ISO_CONVENTION_DENSE;
    if (!isnan(second))
        args.value[1] = second;
    iso_arena_reset(&d->arena);
    if (iso_layer_dense(method, &args, &deltas, out, &decisions, &d->arena, &e))
        fail_msg("seed %llu: %s", (unsigned long long)d->seed, e.text);
    return out;
}

static double *merged(draw *d, const char *name)
{
    return merged_as(d, name, d->D, d->T, d->m, d->n, (double)NAN);
}

/* Methods that take T whole matrices as they are. */
static bool takes(const iso_method *m, size_t T)
{
    iso_method_args a;
    iso_method_defaults(m, &a);
    return m->needs != ISO_NEEDS_FACTORS && (!m->check || m->check(&a, T, NULL) == ISO_OK);
}

/* What is drawn at random belongs to the number of an input, and slerp has a first and a second. */
static bool is_symmetric(const iso_method *m)
{
    return strncmp(m->name, "dare_", 5) != 0 && strcmp(m->name, "slerp") != 0;
}

#define NEAR(x, y, bound, what)                                                                    \
    do {                                                                                           \
        double near_error = relative(x, y, d.m * d.n);                                             \
        if (!(near_error < (bound)))                                                               \
            fail_msg("seed %llu, %zux%zu, T=%zu: %s, off by %.2e", (unsigned long long)d.seed,     \
                     d.m, d.n, d.T, what, near_error);                                             \
    } while (0)

static void order_of_tasks_does_not_matter(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        double *turned[MAX_T];
        for (size_t t = 0; t < d.T; t++)
            turned[t] = d.D[(t + 1) % d.T];
        for (size_t c = 0; iso_methods[c]; c++) {
            if (!takes(iso_methods[c], d.T) || !is_symmetric(iso_methods[c]))
                continue;
            double *a = merged(&d, iso_methods[c]->name);
            double *b = merged_as(&d, iso_methods[c]->name, turned, d.T, d.m, d.n, (double)NAN);
            NEAR(b, a, 1e-9, iso_methods[c]->name);
            free(a), free(b);
        }
        free_draw(&d);
    }
}

static void scaling_the_inputs_scales_the_result(void **state)
{
    (void)state;
    static const double scales[] = {1e-6, -3, 1e8};
    for (uint64_t seed = 1; seed <= DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        double s = scales[seed % 3], *scaled[MAX_T];
        for (size_t t = 0; t < d.T; t++) {
            scaled[t] = iso_calloc(d.m * d.n, 8);
            for (size_t i = 0; i < d.m * d.n; i++)
                scaled[t][i] = s * d.D[t][i];
        }
        for (size_t c = 0; iso_methods[c]; c++) {
            if (!takes(iso_methods[c], d.T))
                continue;
            double *a = merged(&d, iso_methods[c]->name);
            double *b = merged_as(&d, iso_methods[c]->name, scaled, d.T, d.m, d.n, (double)NAN);
            for (size_t i = 0; i < d.m * d.n; i++)
                a[i] *= s;
            NEAR(b, a, 1e-9, iso_methods[c]->name);
            free(a), free(b);
        }
        for (size_t t = 0; t < d.T; t++)
            free(scaled[t]);
        free_draw(&d);
    }
}

/* Orthogonal (k, k): a Householder reflection of a random vector. */
static double *orthogonal(size_t k, uint64_t seed)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 77);
    double *v = iso_calloc(k, 8), *P = iso_calloc(k * k, 8), norm = 0;
    for (size_t i = 0; i < k; i++) {
        v[i] = iso_rng_normal(&r);
        norm += v[i] * v[i];
    }
    for (size_t i = 0; i < k; i++)
        for (size_t j = 0; j < k; j++)
            P[i * k + j] = (i == j ? 1.0 : 0.0) - 2 * v[i] * v[j] / norm;
    free(v);
    return P;
}

static void spectral_methods_follow_rotations(void **state)
{
    (void)state;
    static const char *const names[] = {"iso_c", "iso_cts", "tsv_m"};
    for (uint64_t seed = 1; seed <= DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        double *P = orthogonal(d.m, seed), *Q = orthogonal(d.n, seed + 100), *rotated[MAX_T];
        double *tmp = iso_calloc(d.m * d.n, 8);
        for (size_t t = 0; t < d.T; t++) {
            rotated[t] = iso_calloc(d.m * d.n, 8);
            iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d.m, d.n, d.m, 1, P, d.m, d.D[t], d.n, 0, tmp, d.n);
            iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d.m, d.n, d.n, 1, tmp, d.n, Q, d.n, 0, rotated[t],
                        d.n);
        }
        for (size_t c = 0; c < 3; c++) {
            double *a = merged(&d, names[c]), *want = iso_calloc(d.m * d.n, 8);
            double *b = merged_as(&d, names[c], rotated, d.T, d.m, d.n, (double)NAN);
            iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d.m, d.n, d.m, 1, P, d.m, a, d.n, 0, tmp, d.n);
            iso_la_gemm(ISO_AS_IS, ISO_AS_IS, d.m, d.n, d.n, 1, tmp, d.n, Q, d.n, 0, want, d.n);
            NEAR(b, want, 1e-8, names[c]);
            free(a), free(b), free(want);
        }
        for (size_t t = 0; t < d.T; t++)
            free(rotated[t]);
        free(P), free(Q), free(tmp);
        free_draw(&d);
    }
}

static void iso_c_commutes_with_transposition_and_iso_cts_does_not(void **state)
{
    (void)state;
    double most = 0; /* where nothing is common there is nothing to project, and it does */
    for (uint64_t seed = 1; seed <= DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        double *turned[MAX_T], *back = iso_calloc(d.m * d.n, 8);
        for (size_t t = 0; t < d.T; t++) {
            turned[t] = iso_calloc(d.m * d.n, 8);
            iso_transpose(d.m, d.n, d.D[t], turned[t]);
        }
        double *a = merged(&d, "iso_c"),
               *b = merged_as(&d, "iso_c", turned, d.T, d.n, d.m, (double)NAN);
        iso_transpose(d.n, d.m, b, back);
        NEAR(back, a, 1e-9, "Iso-C of the transposes");
        free(a), free(b);
        a = merged_as(&d, "iso_cts", d.D, d.T, d.m, d.n, 0.2);
        b = merged_as(&d, "iso_cts", turned, d.T, d.n, d.m, 0.2);
        iso_transpose(d.n, d.m, b, back);
        most = fmax(most, relative(back, a, d.m * d.n));
        free(a), free(b), free(back);
        for (size_t t = 0; t < d.T; t++)
            free(turned[t]);
        free_draw(&d);
    }
    assert_true(most > 0.05);
}

static void iso_c_has_equal_singular_values(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        size_t q = d.m < d.n ? d.m : d.n;
        double *a = merged(&d, "iso_c"), *S = iso_calloc(q, 8);
        assert_int_equal(iso_svd(d.m, d.n, a, NULL, S, NULL, &d.arena, NULL), ISO_OK);
        if (!(S[0] - S[q - 1] < 1e-9 * S[0]))
            fail_msg("seed %llu: from %g to %g", (unsigned long long)seed, S[q - 1], S[0]);
        free(a), free(S);
        free_draw(&d);
    }
}

static void copies_sum_up_under_iso_c_only(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        double *copies[3] = {d.D[0], d.D[0], d.D[0]};
        double *one = merged_as(&d, "iso_c", d.D, 1, d.m, d.n, (double)NAN);
        double *three = merged_as(&d, "iso_c", copies, 3, d.m, d.n, (double)NAN);
        for (size_t i = 0; i < d.m * d.n; i++)
            one[i] *= 3;
        NEAR(three, one, 1e-9, "three copies under Iso-C");
        double *cts = merged_as(&d, "iso_cts", copies, 3, d.m, d.n, 0.2);
        assert_true(relative(cts, one, d.m * d.n) > 0.02);
        free(one), free(three), free(cts);
        free_draw(&d);
    }
}

static void the_ends_of_the_parameters_are_other_methods(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        double *iso_c = merged(&d, "iso_c"),
               *all_common = merged_as(&d, "iso_cts", d.D, d.T, d.m, d.n, 1.0);
        NEAR(all_common, iso_c, 1e-9, "Iso-CTS at fraction 1 is Iso-C");
        double *flat_0 = merged_as(&d, "iso_c", d.D, d.T, d.m, d.n, 0.0),
               *sum = iso_calloc(d.m * d.n, 8);
        for (size_t t = 0; t < d.T; t++)
            for (size_t i = 0; i < d.m * d.n; i++)
                sum[i] += d.D[t][i];
        NEAR(flat_0, sum, 1e-12, "beta 0 is task arithmetic");
        free(iso_c), free(all_common), free(flat_0), free(sum);
        free_draw(&d);
    }
}

/* Mixed ranks and scales, layers missing in a task, near copies, a zero adapter. */
static void factored_equals_dense(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 3 * DRAWS; seed++) {
        draw d;
        draw_tasks(&d, seed);
        iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 5);
        iso_lora_layer layers[MAX_T];
        const iso_lora_layer *list[MAX_T];
        iso_tensor views[MAX_T];
        for (size_t t = 0; t < d.T; t++) {
            size_t rank = 1 + iso_rng_below(&r, 4);
            layers[t] = (iso_lora_layer){NULL,
                                         d.m,
                                         d.n,
                                         rank,
                                         0.25 + iso_rng_uniform(&r),
                                         iso_calloc(rank * d.n, 4),
                                         iso_calloc(d.m * rank, 4)};
            for (size_t i = 0; i < rank * d.n; i++)
                layers[t].A[i] = (float)iso_rng_normal(&r);
            for (size_t i = 0; i < d.m * rank && !(seed % 5 == 0 && t == 1); i++)
                layers[t].B[i] = (float)iso_rng_normal(&r);
            list[t] = seed % 4 == 0 && t == 0 ? NULL : &layers[t];
            memset(d.D[t], 0, d.m * d.n * 8);
            for (size_t i = 0; i < d.m && list[t]; i++)
                for (size_t j = 0; j < d.n; j++)
                    for (size_t k = 0; k < rank; k++)
                        d.D[t][i * d.n + j] += layers[t].scale * (double)layers[t].B[i * rank + k] *
                                               (double)layers[t].A[k * d.n + j];
            views[t] = (iso_tensor){ISO_F64, 2, {d.m, d.n}, d.D[t]};
        }
        double tol = iso_rank_tol(d.m, d.n, true);
        iso_deltas deltas = {.T = d.T,
                             .m = d.m,
                             .n = d.n,
                             .views = views,
                             .rank_tol = tol,
                             .full_q = d.m < d.n ? d.m : d.n};
        iso_lora_stack stack = {.T = d.T, .m = d.m, .n = d.n, .layers = list};
        double *dense = iso_calloc(d.m * d.n, 8), *product = iso_calloc(d.m * d.n, 8);
        for (size_t c = 0; iso_methods[c]; c++)
            for (int convention = ISO_CONVENTION_DENSE; convention <= ISO_CONVENTION_RANK;
                 convention++) {
                iso_method_args args;
                iso_decisions decisions;
                iso_layer_factors f;
                iso_error e;
                if (!takes(iso_methods[c], d.T))
                    continue;
                iso_method_defaults(iso_methods[c], &args);
                args.convention = (iso_convention)convention;
                iso_arena_reset(&d.arena);
                if (iso_layer_dense(iso_methods[c], &args, &deltas, dense, &decisions, &d.arena,
                                    &e) ||
                    iso_layer_merge_factors(iso_methods[c], &args, &stack, &f, &decisions, &d.arena,
                                            &e))
                    fail_msg("seed %llu: %s", (unsigned long long)seed, e.text);
                iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, d.m, d.n, f.product.c, 1, f.product.left,
                            d.m, f.product.right, d.n, 0, product, d.n);
                NEAR(product, dense, 1e-8, iso_methods[c]->name);
            }
        for (size_t t = 0; t < d.T; t++)
            free(layers[t].A), free(layers[t].B);
        free(dense), free(product);
        free_draw(&d);
    }
}

static void dense_merges_do_not_depend_on_threads(void **state)
{
    (void)state;
    enum { LAYERS = 6 };
    draw d[LAYERS];
    char names[LAYERS][8];
    iso_named_tensor tensors[2][LAYERS];
    for (size_t l = 0; l < LAYERS; l++) {
        draw_tasks(&d[l], 50 + l);
        snprintf(names[l], sizeof names[l], "w%zu", l);
        for (size_t t = 0; t < 2; t++)
            tensors[t][l] = (iso_named_tensor){names[l], {ISO_F64, 2, {d[l].m, d[l].n}, d[l].D[t]}};
    }
    iso_dense_input in[2] = {{"a", tensors[0], LAYERS}, {"b", tensors[1], LAYERS}};
    for (size_t c = 0; iso_methods[c]; c++) {
        iso_merge_options o = iso_merge_defaults(iso_methods[c]);
        iso_merged_dense one, more;
        if (!takes(iso_methods[c], 2))
            continue;
        iso_set_threads(1);
        assert_int_equal(iso_merge_dense(in, 2, NULL, ISO_DTYPE_COUNT, &o, &one, NULL), ISO_OK);
        for (int threads = 2; threads <= 7; threads += 5) {
            iso_set_threads(threads);
            assert_int_equal(iso_merge_dense(in, 2, NULL, ISO_DTYPE_COUNT, &o, &more, NULL),
                             ISO_OK);
            for (size_t l = 0; l < LAYERS; l++)
                assert_memory_equal(one.tensors[l].view.data, more.tensors[l].view.data,
                                    d[l].m * d[l].n * 8);
            iso_merged_dense_free(&more);
        }
        iso_merged_dense_free(&one);
    }
    iso_set_threads(1);
    for (size_t l = 0; l < LAYERS; l++)
        free_draw(&d[l]);
}

int main(void)
{
    iso_blas_serial();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(order_of_tasks_does_not_matter),
        cmocka_unit_test(scaling_the_inputs_scales_the_result),
        cmocka_unit_test(spectral_methods_follow_rotations),
        cmocka_unit_test(iso_c_commutes_with_transposition_and_iso_cts_does_not),
        cmocka_unit_test(iso_c_has_equal_singular_values),
        cmocka_unit_test(copies_sum_up_under_iso_c_only),
        cmocka_unit_test(the_ends_of_the_parameters_are_other_methods),
        cmocka_unit_test(factored_equals_dense),
        cmocka_unit_test(dense_merges_do_not_depend_on_threads),
    };
    return cmocka_run_group_tests_name("merge properties", tests, NULL, NULL);
}
