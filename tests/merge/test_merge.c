/* The front door: layers that only some inputs have, mixed ranks, caps, guards, bad input, threads.
 */
#include "core/parallel.h"
#include "core/rng.h"
#include "merge/merge.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_T = 8, MAX_LAYERS = 12 };

/* ---- adapters in memory ---- */
typedef struct {
    iso_lora_layer layers[MAX_LAYERS];
    char names[MAX_LAYERS][16];
    size_t count;
} adapter;

static void add_layer(adapter *a, const char *name, size_t out, size_t in, size_t rank,
                      double scale, uint64_t stream)
{
    iso_lora_layer *l = &a->layers[a->count];
    snprintf(a->names[a->count], sizeof a->names[0], "%s", name);
    *l = (iso_lora_layer){a->names[a->count],       out, in, rank, scale, iso_calloc(rank * in, 4),
                          iso_calloc(out * rank, 4)};
    iso_rng r = iso_rng_make(5, ISO_RNG_TEST, stream);
    for (size_t i = 0; i < rank * in; i++)
        l->A[i] = (float)iso_rng_normal(&r);
    for (size_t i = 0; i < out * rank; i++)
        l->B[i] = (float)iso_rng_normal(&r);
    a->count++;
}

static void free_adapters(adapter *a, size_t n)
{
    for (size_t t = 0; t < n; t++)
        for (size_t i = 0; i < a[t].count; i++)
            free(a[t].layers[i].A), free(a[t].layers[i].B);
}

static void add_product(const iso_lora_layer *l, double weight, double *out)
{
    for (size_t i = 0; i < l->out; i++)
        for (size_t j = 0; j < l->in; j++)
            for (size_t r = 0; r < l->rank; r++)
                out[i * l->in + j] +=
                    weight * l->scale * (double)l->B[i * l->rank + r] * (double)l->A[r * l->in + j];
}

static double relative(const double *x, const double *y, size_t n)
{
    double d = 0, norm = 0;
    for (size_t i = 0; i < n; i++) {
        d += (x[i] - y[i]) * (x[i] - y[i]);
        norm += y[i] * y[i];
    }
    return norm > 0 ? sqrt(d / norm) : sqrt(d);
}

static void list_inputs(const adapter *a, size_t T, iso_lora_input *in)
{
    static const char *const names[] = {"site-a", "site-b", "site-c", "site-d", "e", "f", "g", "h"};
    for (size_t t = 0; t < T; t++)
        in[t] = (iso_lora_input){names[t], a[t].layers, a[t].count};
}

static iso_merge_options options(const char *method)
{
    return iso_merge_defaults(iso_method_find(method));
}

/* ---- within a task ---- */
static void aggregation_is_the_exact_mean_of_products(void **state)
{
    (void)state;
    adapter a[3] = {0};
    add_layer(&a[0], "q", 20, 14, 2, 2.0, 1);
    add_layer(&a[1], "q", 20, 14, 3, 0.5, 2); /* mixed ranks and scales */
    add_layer(&a[2], "q", 20, 14, 1, 1.0, 3);
    static const double weights[] = {10, 30, 60};
    iso_lora_input in[3];
    list_inputs(a, 3, in);
    iso_merged_lora m;
    double want[280] = {0}, got[280] = {0};
    for (size_t t = 0; t < 3; t++)
        add_product(&a[t].layers[0], weights[t] / 100, want);
    assert_int_equal(iso_aggregate_lora(in, 3, weights, 0, &m, NULL), ISO_OK);
    add_product(&m.layers[0], 1, got);
    assert_int_equal(m.layers[0].rank, 6);
    assert_true(m.layers[0].scale == 1.0 && m.reports[0].energy_kept == 1.0);
    assert_true(relative(got, want, 280) < 1e-6);
    iso_merged_lora_free(&m);

    /* the cap keeps the best rank-2 part and says what it lost */
    assert_int_equal(iso_aggregate_lora(in, 3, weights, 2, &m, NULL), ISO_OK);
    memset(got, 0, sizeof got);
    add_product(&m.layers[0], 1, got);
    double lost = relative(got, want, 280);
    assert_int_equal(m.layers[0].rank, 2);
    assert_int_equal(m.reports[0].full_rank, 6);
    assert_true(fabs(1 - lost * lost - m.reports[0].energy_kept) < 1e-5);
    assert_true(m.summary.energy_kept == m.reports[0].energy_kept && lost > 1e-3);
    iso_merged_lora_free(&m);

    /* weights are normalised: ten times as many samples everywhere are the same mean */
    static const double more[] = {100, 300, 600};
    assert_int_equal(iso_aggregate_lora(in, 3, more, 0, &m, NULL), ISO_OK);
    memset(got, 0, sizeof got);
    add_product(&m.layers[0], 1, got);
    assert_true(relative(got, want, 280) < 1e-6);
    iso_merged_lora_free(&m);
    free_adapters(a, 3);
}

static void a_single_input_is_returned_unchanged_when_asked(void **state)
{
    (void)state;
    adapter a[1] = {0};
    add_layer(&a[0], "q", 9, 7, 4, 0.37, 1);
    iso_lora_input in[1];
    list_inputs(a, 1, in);
    iso_merge_options o = options("iso_cts");
    o.is_single_kept = true;
    iso_merged_lora m;
    assert_int_equal(iso_merge_lora(in, 1, &o, &m, NULL), ISO_OK);
    assert_memory_equal(m.layers[0].A, a[0].layers[0].A, 4 * 7 * 4);
    assert_memory_equal(m.layers[0].B, a[0].layers[0].B, 9 * 4 * 4);
    assert_true(m.layers[0].scale == 0.37);
    iso_merged_lora_free(&m);
    o.rank_cap = 2; /* a cap still holds */
    o.method = iso_method_find("average");
    assert_int_equal(iso_merge_lora(in, 1, &o, &m, NULL), ISO_OK);
    assert_int_equal(m.layers[0].rank, 2);
    iso_merged_lora_free(&m);
    free_adapters(a, 1);
}

/* ---- across tasks ---- */
static void U89_layers_that_only_some_have_count_as_zero(void **state)
{
    (void)state;
    adapter a[3] = {0}, b[3] = {0};
    for (size_t t = 0; t < 3; t++) {
        add_layer(&a[t], "k", 12, 10, 2 + t, 1, t);
        add_layer(&b[t], "k", 12, 10, 2 + t, 1, t);
    }
    add_layer(&a[1], "v", 6, 10, 2, 1, 9); /* only site-b has it; the others have zeros in b */
    for (size_t t = 0; t < 3; t++) {
        add_layer(&b[t], "v", 6, 10, 2, 1, 9);
        if (t != 1)
            memset(b[t].layers[1].B, 0, 6 * 2 * 4);
    }
    iso_lora_input in[3], zeros[3];
    list_inputs(a, 3, in);
    list_inputs(b, 3, zeros);
    static const char *const methods[] = {"average", "task_arithmetic", "iso_c", "iso_cts"};
    for (size_t c = 0; c < 4; c++) {
        iso_merge_options o = options(methods[c]);
        iso_merged_lora m, z;
        assert_int_equal(iso_merge_lora(in, 3, &o, &m, NULL), ISO_OK);
        assert_int_equal(iso_merge_lora(zeros, 3, &o, &z, NULL), ISO_OK);
        assert_int_equal(m.count, 2);
        assert_int_equal(m.reports[1].present, 1);
        assert_int_equal(m.summary.partial, 1);
        double got[60] = {0}, want[60] = {0};
        add_product(&m.layers[1], 1, got);
        add_product(&z.layers[1], 1, want);
        assert_true(relative(got, want, 60) < 1e-6);
        iso_merged_lora_free(&m);
        iso_merged_lora_free(&z);
    }
    free_adapters(a, 3);
    free_adapters(b, 3);
}

static void U88_opposite_updates_merge_to_nothing(void **state)
{
    (void)state;
    adapter a[2] = {0};
    add_layer(&a[0], "q", 12, 10, 3, 1, 1);
    add_layer(&a[1], "q", 12, 10, 3, 1, 1);
    for (size_t i = 0; i < 12 * 3; i++)
        a[1].layers[0].B[i] = -a[1].layers[0].B[i];
    iso_lora_input in[2];
    list_inputs(a, 2, in);
    static const char *const methods[] = {"average", "task_arithmetic", "iso_c", "iso_cts"};
    for (size_t c = 0; c < 4; c++) {
        iso_merge_options o = options(methods[c]);
        iso_merged_lora m;
        assert_int_equal(iso_merge_lora(in, 2, &o, &m, NULL), ISO_OK);
        double got[120] = {0}, zero[120] = {0};
        add_product(&m.layers[0], 1, got);
        assert_memory_equal(got, zero, sizeof got);
        assert_int_equal(m.layers[0].rank, 1); /* still a PEFT layer */
        assert_int_equal(m.summary.zero, 1);   /* what the warning rests on */
        iso_merged_lora_free(&m);
    }
    free_adapters(a, 2);
}

/* Some methods take a fixed number of inputs. */
static bool takes(const iso_method *m, size_t T)
{
    iso_method_args a;
    iso_method_defaults(m, &a);
    return !m->check || m->check(&a, T, NULL) == ISO_OK;
}

static void zero_adapters_and_zero_weights_are_fine(void **state)
{
    (void)state;
    adapter a[2] = {0};
    add_layer(&a[0], "q", 12, 10, 3, 1, 1);
    add_layer(&a[1], "q", 12, 10, 2, 1, 2);
    memset(a[1].layers[0].B, 0, 12 * 2 * 4);
    iso_lora_input in[2];
    list_inputs(a, 2, in);
    static const double no_weights[] = {0, 1}; /* only the zero adapter is left */
    for (size_t c = 0; iso_methods[c]; c++) {
        iso_merge_options o = iso_merge_defaults(iso_methods[c]);
        iso_merged_lora m;
        assert_int_equal(iso_merge_lora(in, 2, &o, &m, NULL), ISO_OK);
        bool is_consensus = strcmp(iso_methods[c]->name, "consensus_ta") == 0;
        assert_true(is_consensus || m.reports[0].norm > 0); /* of one: nothing is agreed on */
        iso_merged_lora_free(&m);
        o.weights = no_weights;
        assert_int_equal(iso_merge_lora(in, 2, &o, &m, NULL), ISO_OK);
        assert_int_equal(m.summary.zero, 1);
        iso_merged_lora_free(&m);
    }
    free_adapters(a, 2);
}

static void U91_rank_cap_and_energy_bound_the_output(void **state)
{
    (void)state;
    adapter a[4] = {0};
    for (size_t t = 0; t < 4; t++)
        add_layer(&a[t], "q", 30, 26, 4, 1, t);
    iso_lora_input in[4];
    list_inputs(a, 4, in);
    for (size_t c = 0; iso_methods[c]; c++) {
        double full[780] = {0}, last = 2;
        iso_merge_options o = iso_merge_defaults(iso_methods[c]);
        iso_merged_lora m;
        if (!takes(iso_methods[c], 4))
            continue;
        assert_int_equal(iso_merge_lora(in, 4, &o, &m, NULL), ISO_OK);
        bool is_in_span = iso_methods[c]->coefficients || iso_methods[c]->core;
        assert_true(m.layers[0].rank <= (is_in_span ? 16 : 26));
        add_product(&m.layers[0], 1, full);
        iso_merged_lora_free(&m);
        for (size_t cap = 1; cap <= 16; cap += 3) {
            o.rank_cap = cap;
            assert_int_equal(iso_merge_lora(in, 4, &o, &m, NULL), ISO_OK);
            assert_true(m.layers[0].rank <= cap);
            double got[780] = {0};
            add_product(&m.layers[0], 1, got);
            double lost = relative(got, full, 780);
            assert_true(lost < last);
            assert_true(fabs(1 - lost * lost - m.reports[0].energy_kept) < 1e-5);
            last = lost;
            iso_merged_lora_free(&m);
        }
        o.rank_cap = 0;
        o.energy = 0.9;
        assert_int_equal(iso_merge_lora(in, 4, &o, &m, NULL), ISO_OK);
        assert_true(m.reports[0].energy_kept >= 0.9);
        assert_true(m.layers[0].rank < (is_in_span ? 16 : 26));
        iso_merged_lora_free(&m);
    }
    free_adapters(a, 4);
}

/* ---- bad input ---- */
static void bad_input_is_refused_with_its_place(void **state)
{
    (void)state;
    static const struct {
        int spoil;
        iso_err err;
        const char *says;
    } cases[] = {{0, ISO_ERR_SHAPE, "site-b: layer \"q\" is 8x190, site-a has 8x192"},
                 {1, ISO_ERR_NONFINITE, "layer \"q\""},
                 {2, ISO_ERR_DATA, "occurs twice"},
                 {3, ISO_ERR_USAGE, "weight 2 is -1"},
                 {4, ISO_ERR_USAGE, "all weights are zero"},
                 {5, ISO_ERR_USAGE, "no inputs"},
                 {6, ISO_ERR_USAGE, "energy is 2"},
                 {7, ISO_ERR_NONFINITE, "layer \"q\""},
                 {8, ISO_ERR_INTERRUPTED, "stopped"}};
    static const double negative[] = {1, -1}, none[] = {0, 0};
    static const volatile int stop = 1;
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        adapter a[2] = {0};
        add_layer(&a[0], "q", 8, 192, 2, 1, 1);
        add_layer(&a[1], "q", 8, cases[c].spoil == 0 ? 190 : 192, 2, 1, 2);
        if (cases[c].spoil == 2)
            add_layer(&a[1], "q", 8, 192, 2, 1, 3);
        if (cases[c].spoil == 1)
            a[1].layers[0].A[5] = NAN;
        if (cases[c].spoil == 7)
            a[0].layers[0].B[3] = -INFINITY;
        iso_merge_options o = options("iso_cts");
        o.weights = cases[c].spoil == 3 ? negative : cases[c].spoil == 4 ? none : NULL;
        o.energy = cases[c].spoil == 6 ? 2 : 0;
        o.stop = cases[c].spoil == 8 ? &stop : NULL;
        iso_lora_input in[2];
        list_inputs(a, 2, in);
        iso_merged_lora m;
        iso_error e = {0};
        assert_int_equal(iso_merge_lora(in, cases[c].spoil == 5 ? 0 : 2, &o, &m, &e), cases[c].err);
        if (!strstr(e.text, cases[c].says))
            fail_msg("\"%s\" does not say \"%s\"", e.text, cases[c].says);
        assert_null(m.layers);
        free_adapters(a, 2);
    }
}

/* ---- guards (specs/merging.md 8) ---- */
static void guards_are_off_by_default_and_say_what_they_changed(void **state)
{
    (void)state;
    adapter a[4] = {0};
    for (size_t t = 0; t < 4; t++) {
        add_layer(&a[t], "q", 30, 26, 4, 1, t);
        for (size_t i = 0; i < 30; i++) /* a direction of a thousandth of the others */
            a[t].layers[0].B[i * 4 + 3] *= 1e-3f;
    }
    a[2].layers[0].scale = 100;
    iso_lora_input in[4];
    list_inputs(a, 4, in);
    iso_merge_options o = options("iso_c");
    iso_merged_lora m;
    assert_int_equal(iso_merge_lora(in, 4, &o, &m, NULL), ISO_OK);
    assert_int_equal(m.summary.capped_tasks + m.summary.floored + m.summary.gain_capped, 0);
    iso_merged_lora_free(&m);

    o.guard = iso_guard_defaults();
    assert_true(o.guard.norm_cap == 3 && o.guard.floor == 1e-2 && o.guard.gain_cap == 10);
    assert_int_equal(iso_merge_lora(in, 4, &o, &m, NULL), ISO_OK);
    assert_int_equal(m.summary.capped_tasks, 1);
    assert_true(m.task_scales[2] < 0.05 && m.task_scales[0] == 1.0);
    assert_int_equal(m.summary.floored, 4);
    assert_int_equal(m.reports[0].floored, 4);
    assert_int_equal(m.layers[0].rank, 12); /* 4 tasks x 3 directions that are left */
    iso_merged_lora_free(&m);

    o.guard = (iso_guard_options){.gain_cap = 10};
    assert_int_equal(iso_merge_lora(in, 4, &o, &m, NULL), ISO_OK);
    assert_true(m.summary.gain_capped >= 4);
    iso_merged_lora_free(&m);
    free_adapters(a, 4);
}

static void spectra_and_norms_of_layers(void **state)
{
    (void)state;
    adapter a[1] = {0};
    add_layer(&a[0], "q", 30, 26, 4, 0.7, 3);
    iso_arena arena = {0};
    double S[4], norm, product[780] = {0}, square = 0, sum = 0;
    size_t count;
    add_product(&a[0].layers[0], 1, product);
    for (size_t i = 0; i < 780; i++)
        square += product[i] * product[i];
    assert_int_equal(iso_lora_norm(&a[0].layers[0], &norm, &arena, NULL), ISO_OK);
    assert_true(fabs(norm - sqrt(square)) < 1e-9 * norm);
    assert_int_equal(iso_lora_spectrum(&a[0].layers[0], S, &count, &arena, NULL), ISO_OK);
    assert_int_equal(count, 4);
    for (size_t i = 0; i < 4; i++)
        sum += S[i] * S[i];
    assert_true(fabs(sum - square) < 1e-9 * square && S[0] >= S[3]);
    double norms[] = {1, 2, 3, 100}, scales[4];
    assert_int_equal(iso_guard_norm_scales(norms, 4, 3, scales), 1);
    assert_true(fabs(scales[3] - 7.5 / 100) < 1e-15); /* three medians of 2.5 */
    assert_int_equal(iso_guard_norm_scales(norms, 4, 0, scales), 0);
    iso_arena_free(&arena);
    free_adapters(a, 1);
}

/* ---- whole tensors ---- */
static void tensors_are_treated_by_kind(void **state)
{
    (void)state;
    static double w[2][24], b[2][6], k[2][16], emb[2][24], proj[2][24];
    static int64_t ids[2][3] = {{1, 2, 3}, {1, 2, 3}};
    iso_named_tensor tensors[2][6];
    iso_dense_input in[2];
    for (size_t t = 0; t < 2; t++) {
        iso_rng r = iso_rng_make(5, ISO_RNG_TEST, t);
        for (size_t i = 0; i < 24; i++) {
            w[t][i] = iso_rng_normal(&r);
            emb[t][i] = iso_rng_normal(&r);
            proj[t][i] = iso_rng_normal(&r);
            k[t][i % 16] = iso_rng_normal(&r);
            b[t][i % 6] = iso_rng_normal(&r);
        }
        tensors[t][0] = (iso_named_tensor){"b.bias", {ISO_F64, 1, {6}, b[t]}};
        tensors[t][1] = (iso_named_tensor){"conv", {ISO_F64, 4, {2, 2, 2, 2}, k[t]}};
        tensors[t][2] = (iso_named_tensor){"ids", {ISO_I64, 1, {3}, ids[t]}};
        tensors[t][3] = (iso_named_tensor){"text_projection", {ISO_F64, 2, {6, 4}, proj[t]}};
        tensors[t][4] = (iso_named_tensor){"token_embedding.weight", {ISO_F64, 2, {6, 4}, emb[t]}};
        tensors[t][5] = (iso_named_tensor){"w", {ISO_F64, 2, {6, 4}, w[t]}};
        in[t] = (iso_dense_input){t ? "b" : "a", tensors[t], 6};
    }
    iso_merge_options o = options("iso_c");
    assert_int_equal(iso_method_set(o.method, &o.args, "alpha", 1.5, NULL), ISO_OK);
    iso_merged_dense m;
    iso_error e;
    for (int is_reference = 0; is_reference < 2; is_reference++) {
        o.is_reference = is_reference;
        assert_int_equal(iso_merge_dense(in, 2, NULL, ISO_DTYPE_COUNT, &o, &m, &e), ISO_OK);
        static const iso_treatment wanted[] = {ISO_BY_MEAN, ISO_BY_MEAN, ISO_BY_COPY,
                                               ISO_BY_MEAN, ISO_BY_MEAN, ISO_BY_METHOD};
        for (size_t i = 0; i < 6; i++)
            assert_int_equal(m.reports[i].treatment,
                             i == 4 && is_reference ? ISO_BY_METHOD : wanted[i]);
        const double *got = m.tensors[0].view.data;
        for (size_t i = 0; i < 6; i++)
            assert_true(fabs(got[i] - 1.5 * 0.5 * (b[0][i] + b[1][i])) < 1e-14);
        assert_memory_equal(m.tensors[2].view.data, ids[0], sizeof ids[0]);
        iso_merged_dense_free(&m);
    }
    /* with a base, the same inputs as whole weights */
    static double zero_w[24];
    iso_named_tensor base_tensors[6];
    memcpy(base_tensors, tensors[0], sizeof base_tensors);
    base_tensors[5].view.data = zero_w;
    iso_dense_input base = {"base", base_tensors, 6};
    assert_int_equal(iso_merge_dense(in, 2, &base, ISO_F32, &o, &m, &e), ISO_OK);
    assert_int_equal(m.tensors[5].view.dtype, ISO_F32);
    const float *bias = m.tensors[0].view.data; /* W0 = b[0]: its own delta is zero */
    for (size_t i = 0; i < 6; i++)
        assert_true(fabs((double)bias[i] - (b[0][i] + 1.5 * 0.5 * (b[1][i] - b[0][i]))) < 1e-6);
    iso_merged_dense_free(&m);
    base.count = 5;
    assert_int_equal(iso_merge_dense(in, 2, &base, ISO_F32, &o, &m, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "not in the base"));
    /* integers must agree */
    ids[1][2] = 4;
    assert_int_equal(iso_merge_dense(in, 2, NULL, ISO_F32, &o, &m, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "\"ids\""));
    ids[1][2] = 3;
    /* U96: embeddings of different sizes are named */
    tensors[1][4].view.shape[0] = 5;
    assert_int_equal(iso_merge_dense(in, 2, NULL, ISO_F32, &o, &m, &e), ISO_ERR_SHAPE);
    assert_non_null(strstr(e.text, "b: tensor \"token_embedding.weight\" is 5x4, a has 6x4"));
    /* U95: mixed types in */
    tensors[1][4].view.shape[0] = 6;
    static float single[24];
    for (size_t i = 0; i < 24; i++)
        single[i] = (float)w[1][i];
    tensors[1][5].view = (iso_tensor){ISO_F32, 2, {6, 4}, single};
    assert_int_equal(iso_merge_dense(in, 2, NULL, ISO_DTYPE_COUNT, &o, &m, &e), ISO_OK);
    assert_int_equal(m.tensors[5].view.dtype, ISO_F64);
    iso_merged_dense_free(&m);
    single[7] = NAN;
    assert_int_equal(iso_merge_dense(in, 2, NULL, ISO_DTYPE_COUNT, &o, &m, &e), ISO_ERR_NONFINITE);
    assert_non_null(strstr(e.text, "tensor \"w\""));
}

static void U97_weights_do_what_they_say(void **state)
{
    (void)state;
    adapter a[1] = {0};
    add_layer(&a[0], "q", 9, 7, 3, 1, 1);
    iso_lora_input in[1];
    list_inputs(a, 1, in);
    static const double weight[] = {1.1};
    double want[63] = {0}, got[63] = {0};
    add_product(&a[0].layers[0], 1.1 * 0.3, want);
    iso_merge_options o = options("task_arithmetic");
    o.weights = weight;
    iso_merged_lora m;
    assert_int_equal(iso_merge_lora(in, 1, &o, &m, NULL), ISO_OK);
    add_product(&m.layers[0], 1, got);
    assert_true(relative(got, want, 63) < 1e-6);
    iso_merged_lora_free(&m);
    free_adapters(a, 1);
}

/* U99: the same bits for any number of threads and on a rerun. */
static void U99_bits_do_not_depend_on_threads(void **state)
{
    (void)state;
    enum { T = 4, L = 10 };
    adapter a[T] = {0};
    for (size_t t = 0; t < T; t++)
        for (size_t i = 0; i < L; i++) {
            char name[16];
            snprintf(name, sizeof name, "layer%zu", i);
            add_layer(&a[t], name, 40 + 7 * i, 90 - 6 * i, 3 + t, 1, 100 * t + i);
        }
    iso_lora_input in[T];
    list_inputs(a, T, in);
    static const int threads[] = {1, 2, 5, 2};
    for (size_t c = 0; iso_methods[c]; c++) {
        iso_merged_lora first = {0}, m;
        iso_merge_options o = iso_merge_defaults(iso_methods[c]);
        if (!takes(iso_methods[c], T))
            continue;
        o.guard = iso_guard_defaults();
        o.rank_cap = 9;
        for (size_t i = 0; i < 4; i++) {
            iso_set_threads(threads[i]);
            assert_int_equal(iso_merge_lora(in, T, &o, i ? &m : &first, NULL), ISO_OK);
            for (size_t l = 0; l < L && i; l++) {
                const iso_lora_layer *x = &first.layers[l], *y = &m.layers[l];
                assert_int_equal(x->rank, y->rank);
                assert_memory_equal(x->A, y->A, x->rank * x->in * sizeof(float));
                assert_memory_equal(x->B, y->B, x->rank * x->out * sizeof(float));
            }
            if (i)
                iso_merged_lora_free(&m);
        }
        iso_merged_lora_free(&first);
    }
    iso_set_threads(1);
    free_adapters(a, T);
}

static size_t last_done;
static void on_progress(void *ctx, size_t done, size_t total)
{
    assert_true(done > last_done && done <= total);
    last_done = done;
    *(size_t *)ctx = total;
}

static void progress_ends_at_the_number_of_layers_on_one_thread(void **state)
{
    (void)state;
    adapter a[1] = {0};
    add_layer(&a[0], "q", 9, 7, 3, 1, 1);
    add_layer(&a[0], "r", 9, 7, 3, 1, 2);
    iso_lora_input in[1];
    list_inputs(a, 1, in);
    iso_merge_options o = options("iso_c");
    size_t total = 0;
    last_done = 0;
    o.progress = on_progress;
    o.progress_ctx = &total;
    iso_merged_lora m;
    assert_int_equal(iso_merge_lora(in, 1, &o, &m, NULL), ISO_OK);
    assert_int_equal(last_done, 2);
    assert_int_equal(total, 2);
    iso_merged_lora_free(&m);
    free_adapters(a, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(aggregation_is_the_exact_mean_of_products),
        cmocka_unit_test(a_single_input_is_returned_unchanged_when_asked),
        cmocka_unit_test(U89_layers_that_only_some_have_count_as_zero),
        cmocka_unit_test(U88_opposite_updates_merge_to_nothing),
        cmocka_unit_test(zero_adapters_and_zero_weights_are_fine),
        cmocka_unit_test(U91_rank_cap_and_energy_bound_the_output),
        cmocka_unit_test(bad_input_is_refused_with_its_place),
        cmocka_unit_test(guards_are_off_by_default_and_say_what_they_changed),
        cmocka_unit_test(spectra_and_norms_of_layers),
        cmocka_unit_test(tensors_are_treated_by_kind),
        cmocka_unit_test(U97_weights_do_what_they_say),
        cmocka_unit_test(U99_bits_do_not_depend_on_threads),
        cmocka_unit_test(progress_ends_at_the_number_of_layers_on_one_thread),
    };
    return cmocka_run_group_tests_name("merge front door", tests, NULL, NULL);
}
