/* Random adapters and their products, for tests that compare merges of LoRA with merges of whole
 * matrices. */
#ifndef ISO_TESTS_MERGE_ADAPTERS_H
#define ISO_TESTS_MERGE_ADAPTERS_H

#include "core/parallel.h"
#include "core/rng.h"
#include "merge/robust/robust.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SITES_MAX = 9, LAYERS_MAX = 4 };

/* Several inputs, each as adapter and as whole matrices. */
typedef struct {
    size_t T, layers;
    iso_lora_layer lora[SITES_MAX][LAYERS_MAX];
    iso_named_tensor dense[SITES_MAX][LAYERS_MAX];
    iso_lora_input lora_in[SITES_MAX];
    iso_dense_input dense_in[SITES_MAX];
    iso_arena arena;
} inputs;

static inline void inputs_add(inputs *in, size_t t, const char *name, size_t m, size_t n,
                              size_t rank, double scale, uint64_t seed)
{
    size_t i = in->lora_in[t].count;
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 100 * t + i);
    assert_true(t < SITES_MAX && i < LAYERS_MAX);
    iso_lora_layer *l = &in->lora[t][i];
    *l = (iso_lora_layer){iso_arena_strdup(&in->arena, name),
                          m,
                          n,
                          rank,
                          scale,
                          iso_arena_calloc(&in->arena, rank * n, 4),
                          iso_arena_calloc(&in->arena, rank * m, 4)};
    for (size_t k = 0; k < rank * n; k++)
        l->A[k] = (float)iso_rng_normal(&r);
    for (size_t k = 0; k < rank * m; k++)
        l->B[k] = (float)iso_rng_normal(&r);
    in->T = t + 1 > in->T ? t + 1 : in->T;
    in->lora_in[t] = (iso_lora_input){"adapter", in->lora[t], i + 1};
}

static inline void inputs_products(inputs *in)
{
    for (size_t t = 0; t < in->T; t++) {
        for (size_t i = 0; i < in->lora_in[t].count; i++) {
            const iso_lora_layer *l = &in->lora[t][i];
            double *D = iso_arena_calloc(&in->arena, l->out * l->in, 8);
            for (size_t a = 0; a < l->out; a++)
                for (size_t r = 0; r < l->rank; r++)
                    for (size_t b = 0; b < l->in; b++)
                        D[a * l->in + b] +=
                            l->scale * (double)l->B[a * l->rank + r] * (double)l->A[r * l->in + b];
            in->dense[t][i] = (iso_named_tensor){l->module, {ISO_F64, 2, {l->out, l->in}, D}};
        }
        in->dense_in[t] = (iso_dense_input){"matrices", in->dense[t], in->lora_in[t].count};
    }
}

/* Mixed ranks and scales, three layers; input 1 lacks the last one. */
static inline void inputs_mixed(inputs *in, size_t T, uint64_t seed)
{
    static const char *const names[] = {"a", "b", "c"};
    *in = (inputs){0};
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < 3; i++)
            if (!(t == 1 && i == 2))
                inputs_add(in, t, names[i], 11 + 5 * i, 17 - 3 * i, 1 + (t + i) % 3,
                           0.5 + 0.25 * (double)t, seed);
    inputs_products(in);
}

static inline double relative_to(const double *x, const double *y, size_t n)
{
    double diff = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        diff += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return norm > 0 ? sqrt(diff / norm) : sqrt(diff);
}

static inline double *product_of_layer(const iso_lora_layer *l)
{
    double *D = iso_calloc(l->out * l->in, 8);
    for (size_t a = 0; a < l->out; a++)
        for (size_t r = 0; r < l->rank; r++)
            for (size_t b = 0; b < l->in; b++)
                D[a * l->in + b] +=
                    l->scale * (double)l->B[a * l->rank + r] * (double)l->A[r * l->in + b];
    return D;
}

/* Whole matrices from plain numbers: one tensor "w" of (1, n) or as given. */
static inline void dense_inputs(const double *const *D, size_t T, size_t m, size_t n,
                                iso_named_tensor *tensors, iso_dense_input *in)
{
    for (size_t t = 0; t < T; t++) {
        tensors[t] = (iso_named_tensor){"w", {ISO_F64, 2, {m, n}, D[t]}};
        in[t] = (iso_dense_input){"in", &tensors[t], 1};
    }
}

static inline void merge_matrices(const iso_merge_options *o, const double *const *D, size_t T,
                                  size_t m, size_t n, double *out)
{
    iso_named_tensor tensors[SITES_MAX];
    iso_dense_input in[SITES_MAX];
    iso_merged_dense got;
    iso_error e = {0};
    dense_inputs(D, T, m, n, tensors, in);
    if (iso_merge_dense(in, T, NULL, ISO_F64, o, &got, &e))
        fail_msg("%s: %s", o->method->name, e.text);
    memcpy(out, got.tensors[0].view.data, m * n * 8);
    iso_merged_dense_free(&got);
}

/* Options of a method or rule with parameters "name=value ...". */
static inline iso_merge_options options_with(const char *name, const char *settings)
{
    const iso_method *m = iso_method_find(name);
    iso_merge_options o = iso_merge_defaults(m ? m : iso_robust_find(name));
    char text[200], *save = NULL;
    snprintf(text, sizeof text, "%s", settings);
    for (char *s = strtok_r(text, " ", &save); s; s = strtok_r(NULL, " ", &save)) {
        iso_error e = {0};
        char *equals = strchr(s, '=');
        *equals = 0;
        if (iso_method_set_text(o.method, &o.args, s, equals + 1, &e))
            fail_msg("%s", e.text);
    }
    return o;
}

/* The adapters and their products merge to the same matrices. */
static inline void assert_factored_equals_dense(const inputs *in, const iso_merge_options *o,
                                                double tol)
{
    iso_merged_lora lora;
    iso_merged_dense dense;
    iso_error e = {0};
    iso_merge_options both = *o;
    if (both.args.convention == ISO_CONVENTION_AUTO)
        both.args.convention = ISO_CONVENTION_RANK;
    if (iso_merge_lora(in->lora_in, in->T, &both, &lora, &e))
        fail_msg("%s: %s", o->method->name, e.text);
    if (iso_merge_dense(in->dense_in, in->T, NULL, ISO_F64, &both, &dense, &e))
        fail_msg("%s: %s", o->method->name, e.text);
    assert_int_equal(lora.count, dense.count);
    for (size_t i = 0; i < lora.count; i++) {
        const iso_lora_layer *l = &lora.layers[i];
        double *got = product_of_layer(l);
        double off = relative_to(got, dense.tensors[i].view.data, l->out * l->in);
        if (!(off < tol))
            fail_msg("%s, layer %s: factored and dense differ by %.2e", o->method->name, l->module,
                     off);
        free(got);
    }
    iso_merged_lora_free(&lora);
    iso_merged_dense_free(&dense);
}

#endif
