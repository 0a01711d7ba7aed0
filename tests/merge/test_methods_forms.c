/* Closed forms of the methods that came after the isotropic ones, a plain TIES over several
 * tensors, adapters against their products, parameters out of range (specs/merging.md 4, 5, 10). */
#include "merge/alpha.h"
#include "tests/merge/adapters.h"

static const char *const all_names[] = {
    "average", "task_arithmetic", "iso_c",       "iso_cts",      "tsv_m",       "knots",
    "ties",    "dare_ties",       "dare_linear", "consensus_ta", "breadcrumbs", NULL};

/* ---- TIES ---- */
static int descending(const void *a, const void *b)
{
    double x = fabs(*(const double *)a), y = fabs(*(const double *)b);
    return (x < y) - (x > y);
}

/* By sorting a copy of each task's numbers, all tensors in one vector. */
static void plain_ties(double *const *x, size_t T, size_t N, size_t kept, const double *w,
                       double *out)
{
    double threshold[SITES_MAX], *sorted = iso_calloc(N, 8), *sums = iso_calloc(N, 8), signs = 0;
    for (size_t t = 0; t < T; t++) {
        memcpy(sorted, x[t], N * 8);
        qsort(sorted, N, 8, descending);
        threshold[t] = kept ? fabs(sorted[kept - 1]) : HUGE_VAL;
    }
    for (size_t i = 0; i < N; i++) {
        for (size_t t = 0; t < T; t++)
            sums[i] += fabs(x[t][i]) >= threshold[t] ? w[t] * x[t][i] : 0;
        signs += (sums[i] > 0) - (sums[i] < 0);
    }
    for (size_t i = 0; i < N; i++) {
        double sign = sums[i] > 0 ? 1 : sums[i] < 0 ? -1 : signs < 0 ? -1 : 1, sum = 0, over = 0;
        for (size_t t = 0; t < T; t++)
            if (fabs(x[t][i]) >= threshold[t] && x[t][i] * sign > 0) {
                sum += w[t] * x[t][i];
                over += w[t];
            }
        out[i] = over > 0 ? sum / over : 0;
    }
    free(sorted), free(sums);
}

static void ties_trims_over_all_tensors_of_a_task_together(void **state)
{
    (void)state;
    enum { M1 = 30, N1 = 41, M2 = 7, N2 = 9, N = M1 * N1 + M2 * N2, T = 3 };
    static const double weights[T] = {1, 2, 0.5}, equal[T] = {1, 1, 1};
    static const double densities[] = {0, 0.001, 0.2, 0.5, 0.97, 1};
    double *x[T], *want = iso_calloc(N, 8);
    iso_named_tensor tensors[T][2];
    iso_dense_input in[T];
    for (size_t t = 0; t < T; t++) {
        iso_rng r = iso_rng_make(3, ISO_RNG_TEST, t);
        x[t] = iso_calloc(N, 8);
        for (size_t i = 0; i < N; i++) /* coarse: many ties, zeros, exact cancellation */
            x[t][i] =
                i % 2 ? round(4 * iso_rng_normal(&r)) : iso_rng_normal(&r) * (i < 900 ? 1 : 5);
        tensors[t][0] = (iso_named_tensor){"a", {ISO_F64, 2, {M1, N1}, x[t]}};
        tensors[t][1] = (iso_named_tensor){"b", {ISO_F64, 2, {M2, N2}, x[t] + M1 * N1}};
        in[t] = (iso_dense_input){"in", tensors[t], 2};
    }
    for (size_t c = 0; c < 2 * sizeof densities / sizeof *densities; c++) {
        iso_merge_options o = iso_merge_defaults(iso_method_find("ties"));
        iso_merged_dense got;
        double density = densities[c / 2];
        o.weights = c % 2 ? weights : NULL;
        o.args.value[0] = density;
        plain_ties(x, T, N, (size_t)ceil(density * N), c % 2 ? weights : equal, want);
        assert_int_equal(iso_merge_dense(in, T, NULL, ISO_F64, &o, &got, NULL), ISO_OK);
        double off = relative_to(got.tensors[0].view.data, want, M1 * N1) +
                     relative_to(got.tensors[1].view.data, want + M1 * N1, M2 * N2);
        if (!(off < 1e-14))
            fail_msg("density %g, case %zu: off by %.2e", density, c, off);
        iso_merged_dense_free(&got);
    }
    for (size_t t = 0; t < T; t++)
        free(x[t]);
    free(want);
}

static void ties_counts_as_published_under_reference(void **state)
{
    (void)state;
    static const double a[10] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10};
    const double *D[] = {a};
    double out[10];
    iso_merge_options o = options_with("ties", "density=0.2");
    merge_matrices(&o, D, 1, 2, 5, out);
    assert_true(out[7] == 0 && out[8] == 9 && out[9] == 10);
    o.is_reference = true; /* floor(0.2 * 10) + 1 */
    merge_matrices(&o, D, 1, 2, 5, out);
    assert_true(out[6] == 0 && out[7] == 8 && out[9] == 10);
}

static void ties_breaks_exact_cancellation_by_the_majority(void **state)
{
    (void)state;
    static const double a[6] = {-5, -4, -3, 2, 0, 1}, b[6] = {-5, -4, -3, -2, 0, 1};
    const double *D[] = {a, b};
    double out[6];
    iso_merge_options o = options_with("ties", "density=1");
    merge_matrices(&o, D, 2, 2, 3, out);
    assert_true(out[0] == -5 && out[3] == -2 && out[4] == 0 && out[5] == 1);
}

/* ---- DARE ---- */
static void dare_keeps_a_share_rescaled_and_is_its_inner_method_at_density_1(void **state)
{
    (void)state;
    enum { M = 200, N = 150 };
    double *a = iso_calloc(M * N, 8), *b = iso_calloc(M * N, 8), *out = iso_calloc(M * N, 8),
           *again = iso_calloc(M * N, 8);
    for (size_t i = 0; i < M * N; i++) {
        a[i] = 1;
        b[i] = (double)(i % 7) - 3;
    }
    const double *one[] = {a}, *two[] = {a, b};
    iso_merge_options o = options_with("dare_linear", "density=0.25 alpha=1 seed=7");
    merge_matrices(&o, one, 1, M, N, out);
    size_t kept = 0;
    for (size_t i = 0; i < M * N; i++) {
        assert_true(out[i] == 0 || out[i] == 4);
        kept += out[i] != 0;
    }
    double share = (double)kept / (M * N); /* four standard deviations */
    assert_true(fabs(share - 0.25) < 4 * sqrt(0.25 * 0.75 / (M * N)));
    merge_matrices(&o, one, 1, M, N, again);
    assert_memory_equal(out, again, M * N * 8);
    o = options_with("dare_linear", "density=0.25 alpha=1 seed=8");
    merge_matrices(&o, one, 1, M, N, again);
    assert_true(memcmp(out, again, M * N * 8) != 0);

    o = options_with("dare_linear", "density=1 alpha=0.4");
    merge_matrices(&o, two, 2, M, N, out);
    o = options_with("task_arithmetic", "alpha=0.4");
    merge_matrices(&o, two, 2, M, N, again);
    assert_true(relative_to(out, again, M * N) < 1e-15);
    o = options_with("dare_ties", "density=1 trim=0.3");
    merge_matrices(&o, two, 2, M, N, out);
    o = options_with("ties", "density=0.3");
    merge_matrices(&o, two, 2, M, N, again);
    assert_memory_equal(out, again, M * N * 8);
    free(a), free(b), free(out), free(again);
}

/* ---- masks ---- */
static void consensus_keeps_what_enough_tasks_care_for(void **state)
{
    (void)state;
    static const double a[4] = {1, 4, 0, -2}, b[4] = {1, 0.1, 0, 1}, c[4] = {1, 0.1, 3, 1};
    const double *D[] = {a, b, c};
    double out[4];
    iso_merge_options o = options_with("consensus_ta", "lambda=0.4 k=2 alpha=0.5");
    merge_matrices(&o, D, 3, 2, 2, out);
    /* entry 0: all; 1: only a; 2: only c; 3: all (sum 0) */
    assert_true(out[0] == 1.5 && out[1] == 0 && out[2] == 0 && out[3] == 0);
    o = options_with("consensus_ta", "lambda=0.4 k=1 alpha=1");
    merge_matrices(&o, D, 3, 2, 2, out);
    assert_true(fabs(out[1] - 4.2) < 1e-15 && out[2] == 3);
    o = options_with("consensus_ta", "lambda=0 k=3 alpha=1"); /* every entry counts for all */
    merge_matrices(&o, D, 3, 2, 2, out);
    assert_true(out[0] == 3 && out[2] == 3);
    o.is_reference = true; /* strictly more than nothing: the zeros of a and b do not count */
    merge_matrices(&o, D, 3, 2, 2, out);
    assert_true(out[0] == 3 && out[2] == 0);
    char text[200] = "";
    o.method->caution(&o.args, 2, text, sizeof text);
    assert_non_null(strstr(text, "nothing is kept"));
}

static void breadcrumbs_drops_both_ends_of_each_tensor(void **state)
{
    (void)state;
    double a[100], out[100], sum[100];
    for (size_t i = 0; i < 100; i++)
        a[i] = (i % 2 ? -1.0 : 1.0) * (double)((i * 37) % 100 + 1); /* magnitudes 1..100, mixed */
    const double *D[] = {a, a};
    iso_merge_options o = options_with("breadcrumbs", "beta=0.3 gamma=0.05 alpha=1");
    merge_matrices(&o, D, 1, 10, 10, out);
    for (size_t i = 0; i < 100; i++)
        assert_true(out[i] == (fabs(a[i]) > 30 && fabs(a[i]) <= 95 ? a[i] : 0));
    o = options_with("breadcrumbs", "beta=0 gamma=0 alpha=0.3");
    merge_matrices(&o, D, 2, 10, 10, out);
    o = options_with("task_arithmetic", "alpha=0.3");
    merge_matrices(&o, D, 2, 10, 10, sum);
    assert_true(relative_to(out, sum, 100) < 1e-15);
}

/* ---- SLERP ---- */
static void slerp_runs_along_the_circle(void **state)
{
    (void)state;
    static const double a[4] = {2, 0, 0, 0}, b[4] = {0, 2, 0, 0}, c[4] = {6, 0, 0, 0}, z[4] = {0};
    const double *ab[] = {a, b}, *ac[] = {a, c}, *az[] = {a, z};
    double out[4];
    iso_merge_options o = options_with("slerp", "t=0");
    merge_matrices(&o, ab, 2, 2, 2, out);
    assert_true(relative_to(out, a, 4) < 1e-15);
    o = options_with("slerp", "t=1");
    merge_matrices(&o, ab, 2, 2, 2, out);
    assert_true(relative_to(out, b, 4) < 1e-15);
    o = options_with("slerp", "t=0.5");
    merge_matrices(&o, ab, 2, 2, 2, out);
    assert_true(fabs(out[0] - sqrt(2)) < 1e-15 && fabs(out[1] - sqrt(2)) < 1e-15);
    merge_matrices(&o, ac, 2, 2, 2, out); /* parallel: linear */
    assert_true(fabs(out[0] - 4) < 1e-15);
    merge_matrices(&o, az, 2, 2, 2, out);
    assert_true(fabs(out[0] - 1) < 1e-15);
    iso_error e = {0};
    assert_int_equal(iso_merge_check(&o, 3, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "exactly two inputs"));
}

/* ---- one task, copies, tasks that do not meet ---- */
static void one_task_and_copies_have_closed_forms(void **state)
{
    (void)state;
    enum { M = 14, N = 10 };
    double a[M * N], out[M * N];
    iso_rng r = iso_rng_make(1, ISO_RNG_TEST, 9);
    for (size_t i = 0; i < M * N; i++)
        a[i] = iso_rng_normal(&r);
    const double *D[] = {a, a, a};
    static const struct {
        const char *name, *settings;
        double one, three; /* times the task itself */
    } rows[] = {
        {"tsv_m", "alpha=1", 1, 0}, /* of three copies a third of the directions: not compared */
        {"ties", "density=1", 1, 1},
        {"dare_ties", "density=1", 1, 1},
        {"dare_linear", "density=1 alpha=1", 1, 3},
        {"consensus_ta", "k=1 alpha=1", 1, 3},
        {"breadcrumbs", "beta=0 gamma=0 alpha=1", 1, 3},
        {"knots", "density=1", 1, 1},
        {"knots", "inner=average", 1, 1},
        {"coordinate_median", "", 1, 1},
        {"trimmed_mean", "cut=0", 1, 1},
        {"geometric_median", "", 1, 1},
        {"norm_clip", "", 1, 1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        for (size_t T = 1; T <= 3; T += 2) {
            double want[M * N], factor = T == 1 ? rows[i].one : rows[i].three;
            iso_merge_options o = options_with(rows[i].name, rows[i].settings);
            if (factor == 0)
                continue;
            for (size_t k = 0; k < M * N; k++)
                want[k] = factor * a[k];
            merge_matrices(&o, D, T, M, N, out);
            double off = relative_to(out, want, M * N);
            if (!(off < 1e-9))
                fail_msg("%s %s, T=%zu: off by %.2e", rows[i].name, rows[i].settings, T, off);
        }
}

static void tsv_m_of_tasks_that_do_not_meet_is_their_sum(void **state)
{
    (void)state;
    enum { M = 12, N = 9 };
    double a[M * N] = {0}, b[M * N] = {0}, c[M * N] = {0}, sum[M * N], out[M * N];
    iso_rng r = iso_rng_make(2, ISO_RNG_TEST, 9);
    for (size_t i = 0; i < 3; i++) /* three blocks of rank three: q / T triples each */
        for (size_t j = 0; j < 3; j++) {
            a[i * N + j] = iso_rng_normal(&r);
            b[(4 + i) * N + 3 + j] = iso_rng_normal(&r);
            c[(8 + i) * N + 6 + j] = iso_rng_normal(&r);
        }
    const double *D[] = {a, b, c};
    for (size_t i = 0; i < M * N; i++)
        sum[i] = a[i] + b[i] + c[i];
    iso_merge_options o = options_with("tsv_m", "alpha=1");
    merge_matrices(&o, D, 3, M, N, out);
    assert_true(relative_to(out, sum, M * N) < 1e-12);
}

/* ---- adapters ---- */
static void factored_equals_dense_over_several_layers(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 4; seed++) {
        inputs in;
        inputs_mixed(&in, 4, seed);
        for (size_t c = 0; all_names[c]; c++) {
            iso_merge_options o = options_with(all_names[c], "");
            assert_factored_equals_dense(&in, &o, 2e-6); /* the factors are stored in float32 */
        }
        iso_merge_options o = options_with("knots", "inner=average");
        assert_factored_equals_dense(&in, &o, 2e-6);
        iso_arena_free(&in.arena);
        inputs_mixed(&in, 2, seed);
        o = options_with("slerp", "t=0.3");
        assert_factored_equals_dense(&in, &o, 2e-6);
        iso_arena_free(&in.arena);
    }
}

static double compare_merges(const inputs *in, const iso_merge_options *x,
                             const iso_merge_options *y)
{
    iso_merged_lora a, b;
    iso_error e = {0};
    double worst = 0;
    if (iso_merge_lora(in->lora_in, in->T, x, &a, &e) ||
        iso_merge_lora(in->lora_in, in->T, y, &b, &e))
        fail_msg("%s", e.text);
    for (size_t i = 0; i < a.count; i++) {
        double *p = product_of_layer(&a.layers[i]), *q = product_of_layer(&b.layers[i]);
        worst = fmax(worst, relative_to(p, q, a.layers[i].out * a.layers[i].in));
        free(p), free(q);
    }
    iso_merged_lora_free(&a);
    iso_merged_lora_free(&b);
    return worst;
}

static void core_space_is_lossless_and_of_its_own_only_for_entries(void **state)
{
    (void)state;
    static const char *const free_of_bases[] = {"iso_c", "iso_cts", "tsv_m", "task_arithmetic"};
    inputs in;
    inputs_mixed(&in, 4, 5);
    for (size_t i = 0; i < 4; i++) {
        char settings[60];
        iso_merge_options plain = options_with(free_of_bases[i], "alpha=1");
        snprintf(settings, sizeof settings, "inner=%s alpha=1", free_of_bases[i]);
        iso_merge_options inside = options_with("core_space", settings);
        double off = compare_merges(&in, &inside, &plain);
        if (!(off < 2e-6))
            fail_msg("inner %s: off by %.2e", free_of_bases[i], off);
    }
    iso_merge_options ties = options_with("ties", ""), inside = options_with("core_space", "");
    assert_true(compare_merges(&in, &inside, &ties) > 0.01);
    iso_lora_input turned[4]; /* the bases do not depend on the order */
    for (size_t t = 0; t < 4; t++)
        turned[t] = in.lora_in[3 - t];
    iso_merged_lora a, b;
    assert_int_equal(iso_merge_lora(in.lora_in, 4, &inside, &a, NULL), ISO_OK);
    assert_int_equal(iso_merge_lora(turned, 4, &inside, &b, NULL), ISO_OK);
    for (size_t i = 0; i < a.count; i++) {
        double *p = product_of_layer(&a.layers[i]), *q = product_of_layer(&b.layers[i]);
        assert_true(relative_to(p, q, a.layers[i].out * a.layers[i].in) < 1e-5);
        free(p), free(q);
    }
    iso_merged_lora_free(&a);
    iso_merged_lora_free(&b);
    iso_merged_dense dense;
    iso_error e = {0};
    assert_int_equal(iso_merge_dense(in.dense_in, 4, NULL, ISO_F64, &inside, &dense, &e),
                     ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "LoRA factors only"));
    iso_arena_free(&in.arena);
}

static void a_product_cut_to_a_rank_says_what_it_lost(void **state)
{
    (void)state;
    inputs in;
    inputs_mixed(&in, 4, 6);
    static const char *const names[] = {"ties", "knots", "core_space", "breadcrumbs", "dare_ties"};
    for (size_t c = 0; c < 5; c++) {
        iso_merge_options full = options_with(names[c], ""), cut = full;
        cut.rank_cap = 2;
        iso_merged_lora a, b;
        assert_int_equal(iso_merge_lora(in.lora_in, 4, &full, &a, NULL), ISO_OK);
        assert_int_equal(iso_merge_lora(in.lora_in, 4, &cut, &b, NULL), ISO_OK);
        for (size_t i = 0; i < a.count; i++) {
            double *p = product_of_layer(&a.layers[i]), *q = product_of_layer(&b.layers[i]);
            double lost = relative_to(q, p, a.layers[i].out * a.layers[i].in);
            assert_true(b.layers[i].rank <= 2 && b.reports[i].full_rank == a.layers[i].rank);
            assert_true(fabs(1 - lost * lost - b.reports[i].energy_kept) < 1e-5);
            free(p), free(q);
        }
        iso_merged_lora_free(&a);
        iso_merged_lora_free(&b);
    }
    iso_arena_free(&in.arena);
}

/* ---- alpha, caps ---- */
static void layers_have_their_own_alpha_and_tasks_a_cap(void **state)
{
    (void)state;
    inputs in;
    inputs_mixed(&in, 3, 7);
    static const iso_layer_scale scales[] = {{"b*", 0.5}, {"?", 2}, {"c", 9}};
    assert_true(iso_layer_scale_of(scales, 3, "b.q") == 0.5);
    assert_true(iso_layer_scale_of(scales, 3, "c") == 2 &&
                iso_layer_scale_of(scales, 3, "dd") == 1);
    iso_merge_options o = options_with("iso_c", ""), scaled = o;
    scaled.layer_scales = scales;
    scaled.layer_scale_count = 3;
    iso_merged_lora a, b;
    iso_merged_dense c, d;
    assert_int_equal(iso_merge_lora(in.lora_in, 3, &o, &a, NULL), ISO_OK);
    assert_int_equal(iso_merge_lora(in.lora_in, 3, &scaled, &b, NULL), ISO_OK);
    assert_int_equal(iso_merge_dense(in.dense_in, 3, NULL, ISO_F64, &o, &c, NULL), ISO_OK);
    assert_int_equal(iso_merge_dense(in.dense_in, 3, NULL, ISO_F64, &scaled, &d, NULL), ISO_OK);
    for (size_t i = 0; i < 3; i++) {
        double want = i == 1 ? 0.5 : 2;
        assert_true(fabs(b.reports[i].norm - want * a.reports[i].norm) < 1e-6 * a.reports[i].norm);
        assert_true(fabs(d.reports[i].norm - want * c.reports[i].norm) < 1e-6 * c.reports[i].norm);
    }
    iso_merged_lora_free(&a), iso_merged_lora_free(&b);
    iso_merged_dense_free(&c), iso_merged_dense_free(&d);

    o = options_with("task_arithmetic", "alpha=1");
    o.guard.norm_cap = 0.8;
    assert_factored_equals_dense(&in, &o, 2e-6);
    assert_int_equal(iso_merge_dense(in.dense_in, 3, NULL, ISO_F64, &o, &c, NULL), ISO_OK);
    assert_true(c.summary.capped_tasks >= 2);
    iso_merged_dense_free(&c);
    o = options_with("average", "");
    o.guard.norm_cap = 0.01; /* the mean of updates that are a hundredth of the median at most */
    assert_int_equal(iso_merge_dense(in.dense_in, 3, NULL, ISO_F64, &o, &c, NULL), ISO_OK);
    double cap = c.summary.norm;
    iso_merged_dense_free(&c);
    o.guard.norm_cap = 0;
    assert_int_equal(iso_merge_dense(in.dense_in, 3, NULL, ISO_F64, &o, &c, NULL), ISO_OK);
    assert_true(cap < 0.03 * c.summary.norm);
    iso_merged_dense_free(&c);
    iso_arena_free(&in.arena);
}

static void alpha_is_chosen_by_mean_normalised_score(void **state)
{
    (void)state;
    static const double alphas[] = {1.5, 0.5, 1.0}, reference[] = {0.9, 0.5};
    static const double scores[] = {0.9, 0.4, 0.81, 0.45, 0.81, 0.45};
    double mean;
    size_t best;
    iso_error e = {0};
    assert_int_equal(iso_alpha_choose(alphas, 3, scores, 2, reference, &best, &mean, NULL), ISO_OK);
    assert_int_equal(best, 1); /* 0.9 each; equal means: the smaller alpha */
    assert_true(fabs(mean - 0.9) < 1e-12);
    static const double lost[] = {(double)NAN, 1, (double)NAN, 1, 0.1, 0.1};
    assert_int_equal(iso_alpha_choose(alphas, 3, lost, 2, NULL, &best, &mean, NULL), ISO_OK);
    assert_int_equal(best, 2);
    assert_int_equal(iso_alpha_choose(alphas, 1, lost, 2, NULL, &best, &mean, &e), ISO_ERR_DATA);
    assert_int_equal(iso_alpha_choose(alphas, 0, lost, 2, NULL, &best, &mean, &e), ISO_ERR_USAGE);
    static const double bad[] = {0, 1};
    assert_int_equal(iso_alpha_choose(alphas, 1, scores, 2, bad, &best, &mean, &e), ISO_ERR_USAGE);
}

static void iso_cts_can_be_flattened_in_part(void **state)
{
    (void)state;
    inputs in;
    inputs_mixed(&in, 3, 8);
    double norms[3];
    static const char *const betas[] = {"beta=0", "beta=0.5", "beta=1"};
    for (size_t i = 0; i < 3; i++) {
        iso_merged_lora m;
        iso_merge_options o = options_with("iso_cts", betas[i]);
        assert_factored_equals_dense(&in, &o, 2e-6);
        assert_int_equal(iso_merge_lora(in.lora_in, 3, &o, &m, NULL), ISO_OK);
        norms[i] = m.summary.norm;
        iso_merged_lora_free(&m);
    }
    assert_true(norms[0] > norms[1] &&
                norms[1] > norms[2]); /* flattening keeps the sum of values */
    iso_arena_free(&in.arena);
}

/* ---- bad input ---- */
static void parameters_out_of_range_are_refused_with_the_range(void **state)
{
    (void)state;
    for (int table = 0; table < 2; table++) {
        const iso_method *const *all = table ? iso_robust_rules : iso_methods;
        for (size_t c = 0; all[c]; c++) {
            assert_true(strlen(all[c]->help) > 10 && strlen(all[c]->source) > 10);
            for (size_t i = 0; all[c]->params[i].name; i++) {
                const iso_method_param *p = &all[c]->params[i];
                iso_method_args a;
                iso_error e = {0};
                char range[64];
                iso_method_defaults(all[c], &a);
                assert_true(p->otherwise >= p->min && p->otherwise <= p->max);
                snprintf(range, sizeof range, "from %g to %g", p->min, p->max);
                assert_int_equal(iso_method_set(all[c], &a, p->name, p->min - 1, &e),
                                 ISO_ERR_USAGE);
                assert_non_null(strstr(e.text, range));
                assert_int_equal(iso_method_set(all[c], &a, p->name, 2 * p->max + 1, &e),
                                 ISO_ERR_USAGE);
                assert_int_equal(iso_method_set(all[c], &a, p->name, (double)NAN, &e),
                                 ISO_ERR_USAGE);
                assert_int_equal(iso_method_set_text(all[c], &a, p->name, "much", &e),
                                 ISO_ERR_USAGE);
                if (p->words) {
                    assert_non_null(strstr(e.text, p->words[0]));
                    assert_int_equal(iso_method_set_text(all[c], &a, p->name, p->words[1], &e),
                                     ISO_OK);
                    assert_string_equal(iso_method_word(p, a.value[i]), p->words[1]);
                } else if (p->is_whole) {
                    assert_int_equal(iso_method_set(all[c], &a, p->name, p->min + 0.5, &e),
                                     ISO_ERR_USAGE);
                }
            }
        }
    }
    iso_merge_options o = options_with("breadcrumbs", "beta=0.7 gamma=0.3");
    iso_error e = {0};
    assert_int_equal(iso_merge_check(&o, 2, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "below 1"));
}

static void numbers_that_are_not_finite_are_named_not_trimmed_away(void **state)
{
    (void)state;
    static const double a[4] = {1, 2, 3, 4};
    double b[4] = {1, (double)NAN, 3, 4};
    const double *D[] = {a, b};
    iso_named_tensor tensors[2];
    iso_dense_input in[2];
    static const char *const names[] = {"ties",         "dare_ties",         "dare_linear", "knots",
                                        "consensus_ta", "breadcrumbs",       "tsv_m",       "slerp",
                                        "norm_clip",    "coordinate_median", NULL};
    dense_inputs(D, 2, 2, 2, tensors, in);
    for (size_t i = 0; names[i]; i++)
        for (int inf = 0; inf < 2; inf++) {
            iso_merged_dense got;
            iso_error e = {0};
            b[1] = inf ? (double)INFINITY : (double)NAN;
            iso_merge_options o = options_with(names[i], "");
            iso_err err = iso_merge_dense(in, 2, NULL, ISO_F64, &o, &got, &e);
            if (err != ISO_ERR_NONFINITE || !strstr(e.text, "\"w\""))
                fail_msg("%s: %d, %s", names[i], (int)err, e.text);
        }
}

int main(void)
{
    iso_set_threads(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ties_trims_over_all_tensors_of_a_task_together),
        cmocka_unit_test(ties_counts_as_published_under_reference),
        cmocka_unit_test(ties_breaks_exact_cancellation_by_the_majority),
        cmocka_unit_test(dare_keeps_a_share_rescaled_and_is_its_inner_method_at_density_1),
        cmocka_unit_test(consensus_keeps_what_enough_tasks_care_for),
        cmocka_unit_test(breadcrumbs_drops_both_ends_of_each_tensor),
        cmocka_unit_test(slerp_runs_along_the_circle),
        cmocka_unit_test(one_task_and_copies_have_closed_forms),
        cmocka_unit_test(tsv_m_of_tasks_that_do_not_meet_is_their_sum),
        cmocka_unit_test(factored_equals_dense_over_several_layers),
        cmocka_unit_test(core_space_is_lossless_and_of_its_own_only_for_entries),
        cmocka_unit_test(a_product_cut_to_a_rank_says_what_it_lost),
        cmocka_unit_test(layers_have_their_own_alpha_and_tasks_a_cap),
        cmocka_unit_test(alpha_is_chosen_by_mean_normalised_score),
        cmocka_unit_test(iso_cts_can_be_flattened_in_part),
        cmocka_unit_test(parameters_out_of_range_are_refused_with_the_range),
        cmocka_unit_test(numbers_that_are_not_finite_are_named_not_trimmed_away),
    };
    return cmocka_run_group_tests_name("merge methods, closed forms", tests, NULL, NULL);
}
