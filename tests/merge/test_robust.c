/* Rules inside a task: closed forms, outliers, adapters against their products, number of inputs
 * (specs/merging.md 4; AMENDMENTS 30). */
#include "tests/merge/adapters.h"

static void coordinate_rules_sort_each_entry(void **state)
{
    (void)state;
    static const double a[4] = {1, -1, 9, 0}, b[4] = {2, 5, 1, 0}, c[4] = {3, 0, 4, 0},
                        d[4] = {40, 2, 2, 8};
    const double *D[] = {a, b, c, d};
    double out[4];
    iso_merge_options o = options_with("coordinate_median", "");
    merge_matrices(&o, D, 3, 2, 2, out);
    assert_true(out[0] == 2 && out[1] == 0 && out[2] == 4 && out[3] == 0);
    merge_matrices(&o, D, 4, 2, 2, out);
    assert_true(out[0] == 2.5 && out[1] == 1 && out[2] == 3 && out[3] == 0);
    o = options_with("trimmed_mean", "cut=1");
    merge_matrices(&o, D, 4, 2, 2, out);
    assert_true(out[0] == 2.5 && out[1] == 1 && out[2] == 3 && out[3] == 0);
    o = options_with("trimmed_mean", "cut=0");
    merge_matrices(&o, D, 4, 2, 2, out);
    assert_true(out[0] == 11.5);
    static const double weights[] = {1, 1, 1, 100}; /* claims do not move a coordinate rule */
    o = options_with("coordinate_median", "");
    o.weights = weights;
    merge_matrices(&o, D, 4, 2, 2, out);
    assert_true(out[0] == 2.5);
}

static void geometric_median_of_points_one_knows(void **state)
{
    (void)state;
    static const double a[2] = {0, 0}, b[2] = {1, 0}, c[2] = {10, 0};
    static const double p[2] = {0, 0}, q[2] = {1, 0}, r[2] = {0.5, 0.86602540378443864676};
    static const double far[2] = {1e6, 1e6};
    const double *line[] = {a, b, c}, *triangle[] = {p, q, r}, *held[] = {a, a, b, far};
    double out[2];
    iso_merge_options o = options_with("geometric_median", "");
    merge_matrices(&o, line, 3, 1, 2, out); /* on a line: the median */
    assert_true(fabs(out[0] - 1) < 1e-4 && out[1] == 0);
    merge_matrices(&o, triangle, 3, 1, 2, out); /* the centre */
    assert_true(fabs(out[0] - 0.5) < 1e-9 && fabs(out[1] - 0.28867513459481288) < 1e-9);
    merge_matrices(&o, held, 4, 1, 2, out); /* half of the votes at one point hold it there */
    assert_true(fabs(out[0]) < 0.01 && fabs(out[1]) < 0.01);
    static const double weights[] = {1, 1, 5};
    o.weights = weights; /* more than half of the weight */
    merge_matrices(&o, line, 3, 1, 2, out);
    assert_true(fabs(out[0] - 10) < 1e-4);
}

/* Sites 0-3 agree; 4 is far away in one tensor and exact in the other. Per tensor it would be
 * chosen in "b", where the others differ a little. */
static void krum_and_distances_see_all_tensors_of_an_update_together(void **state)
{
    (void)state;
    double a[5][4], b[5][4];
    iso_named_tensor tensors[5][2];
    iso_dense_input in[5];
    for (size_t t = 0; t < 5; t++) {
        for (size_t i = 0; i < 4; i++) {
            a[t][i] = t == 4 ? 50 : 1 + 0.01 * (double)((t * 7 + i) % 5);
            b[t][i] = t == 4 ? 2 : 2 + 0.1 * (double)((t * 3 + i) % 4) - 0.15;
        }
        tensors[t][0] = (iso_named_tensor){"a", {ISO_F64, 2, {2, 2}, a[t]}};
        tensors[t][1] = (iso_named_tensor){"b", {ISO_F64, 1, {4}, b[t]}};
        in[t] = (iso_dense_input){"site", tensors[t], 2};
    }
    iso_merge_options o = options_with("multi_krum", "f=1 m=4");
    iso_merged_dense got;
    assert_int_equal(iso_merge_dense(in, 5, NULL, ISO_F64, &o, &got, NULL), ISO_OK);
    for (int k = 0; k < 2; k++) { /* the vector too, though it has one dimension */
        const double *x = got.tensors[k].view.data;
        for (size_t i = 0; i < 4; i++) {
            double mean = 0;
            for (size_t t = 0; t < 4; t++)
                mean += (k ? b[t][i] : a[t][i]) / 4;
            assert_true(fabs(x[i] - mean) < 1e-12);
        }
    }
    iso_merged_dense_free(&got);
    o = options_with("geometric_median", "");
    assert_int_equal(iso_merge_dense(in, 5, NULL, ISO_F64, &o, &got, NULL), ISO_OK);
    assert_true(fabs(((const double *)got.tensors[0].view.data)[0] - 1.02) < 0.05);
    iso_merged_dense_free(&got);
}

static void krum_counts_the_updates_it_needs(void **state)
{
    (void)state;
    iso_error e = {0};
    char text[200] = "";
    iso_merge_options o = options_with("multi_krum", "f=2");
    assert_int_equal(iso_merge_check(&o, 4, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "at least 5 inputs"));
    assert_int_equal(iso_merge_check(&o, 5, &e), ISO_OK);
    o.method->caution(&o.args, 5, text, sizeof text);
    assert_non_null(strstr(text, "takes 7"));
    text[0] = 0;
    o.method->caution(&o.args, 7, text, sizeof text);
    assert_string_equal(text, "");
    o = options_with("multi_krum", "f=1 m=6");
    assert_int_equal(iso_merge_check(&o, 5, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "0 to 5"));
    o = options_with("trimmed_mean", "cut=2");
    assert_int_equal(iso_merge_check(&o, 4, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "0 to 1"));
}

static void clipping_scales_down_to_the_norm_or_the_median(void **state)
{
    (void)state;
    static const double a[2] = {3, 4}, b[2] = {0, 10}, c[2] = {1, 0};
    const double *D[] = {a, b, c};
    double out[2];
    iso_merge_options o = options_with("norm_clip", "max_norm=2.5");
    merge_matrices(&o, D, 3, 1, 2, out);
    assert_true(fabs(out[0] - (1.5 + 0 + 1) / 3) < 1e-15 && fabs(out[1] - (2 + 2.5) / 3) < 1e-15);
    o = options_with("norm_clip", ""); /* median 5 */
    merge_matrices(&o, D, 3, 1, 2, out);
    assert_true(fabs(out[0] - 4.0 / 3) < 1e-15 && fabs(out[1] - 3) < 1e-15);
    static const double weights[] = {2, 0, 2};
    o.weights = weights;
    merge_matrices(&o, D, 3, 1, 2, out);
    assert_true(fabs(out[0] - 2) < 1e-15 && fabs(out[1] - 2) < 1e-15);
}

static void rules_on_adapters_equal_rules_on_their_products(void **state)
{
    (void)state;
    static const double weights[] = {1, 2, 3, 4, 5, 6};
    for (uint64_t seed = 1; seed <= 4; seed++) {
        inputs in;
        inputs_mixed(&in, 6, seed);
        for (size_t c = 0; iso_robust_rules[c]; c++)
            for (int weighted = 0; weighted < 2; weighted++) {
                iso_merge_options o = iso_merge_defaults(iso_robust_rules[c]);
                o.weights = weighted ? weights : NULL;
                assert_factored_equals_dense(&in, &o, 2e-6);
            }
        iso_arena_free(&in.arena);
    }
}

/* One of five sites sends ten times the negative of what the others send. */
static void one_bad_site_of_five_does_not_move_a_rule_far(void **state)
{
    (void)state;
    static const struct {
        const char *rule;
        double at_most; /* relative distance from the mean of the four good ones */
    } rows[] = {{"coordinate_median", 0.15},
                {"trimmed_mean", 0.15},
                {"geometric_median", 0.15},
                {"multi_krum", 1e-6},
                {"norm_clip", 0.5}};
    inputs in = {0};
    for (size_t t = 0; t < 5; t++) {
        inputs_add(&in, t, "q", 24, 20, 4, 1, 50);
        iso_lora_layer *l = &in.lora[t][0];
        const iso_lora_layer *first = &in.lora[0][0];
        for (size_t i = 0; i < 4 * 20; i++)
            l->A[i] = first->A[i] + 0.1F * l->A[i] * (float)(t > 0);
        for (size_t i = 0; i < 4 * 24; i++)
            l->B[i] = first->B[i] + 0.1F * l->B[i] * (float)(t > 0);
        l->scale = t == 4 ? -10 : 1;
    }
    iso_merged_lora good, got;
    assert_int_equal(iso_aggregate_lora(in.lora_in, 4, NULL, 0, &good, NULL), ISO_OK);
    double *want = product_of_layer(&good.layers[0]);
    for (size_t c = 0; c < sizeof rows / sizeof *rows; c++) {
        const iso_method *rule = iso_robust_find(rows[c].rule);
        assert_int_equal(iso_robust_aggregate_lora(in.lora_in, 5, rule, NULL, NULL, 0, &got, NULL),
                         ISO_OK);
        double *x = product_of_layer(&got.layers[0]), off = relative_to(x, want, 24 * 20);
        if (!(off < rows[c].at_most))
            fail_msg("%s: %.3f off", rows[c].rule, off);
        free(x);
        iso_merged_lora_free(&got);
    }
    assert_int_equal(iso_aggregate_lora(in.lora_in, 5, NULL, 0, &got, NULL), ISO_OK);
    double *x = product_of_layer(&got.layers[0]);
    assert_true(relative_to(x, want, 24 * 20) > 1); /* the mean is ruined */
    free(x), free(want);
    iso_merged_lora_free(&got);
    iso_merged_lora_free(&good);
    iso_arena_free(&in.arena);
}

static void U99_rules_give_the_same_bits_for_any_threads(void **state)
{
    (void)state;
    inputs in;
    inputs_mixed(&in, 6, 11);
    for (size_t c = 0; iso_robust_rules[c]; c++) {
        iso_merge_options o = iso_merge_defaults(iso_robust_rules[c]);
        iso_merged_lora one, two;
        iso_merged_dense d1, d2;
        iso_set_threads(1);
        assert_int_equal(iso_merge_lora(in.lora_in, 6, &o, &one, NULL), ISO_OK);
        assert_int_equal(iso_merge_dense(in.dense_in, 6, NULL, ISO_F64, &o, &d1, NULL), ISO_OK);
        iso_set_threads(2);
        assert_int_equal(iso_merge_lora(in.lora_in, 6, &o, &two, NULL), ISO_OK);
        assert_int_equal(iso_merge_dense(in.dense_in, 6, NULL, ISO_F64, &o, &d2, NULL), ISO_OK);
        for (size_t i = 0; i < one.count; i++) {
            const iso_lora_layer *x = &one.layers[i], *y = &two.layers[i];
            assert_int_equal(x->rank, y->rank);
            assert_memory_equal(x->A, y->A, x->rank * x->in * 4);
            assert_memory_equal(x->B, y->B, x->rank * x->out * 4);
            assert_memory_equal(d1.tensors[i].view.data, d2.tensors[i].view.data,
                                iso_tensor_bytes(&d1.tensors[i].view));
        }
        iso_merged_lora_free(&one), iso_merged_lora_free(&two);
        iso_merged_dense_free(&d1), iso_merged_dense_free(&d2);
    }
    iso_set_threads(1);
    iso_arena_free(&in.arena);
}

static void rules_are_found_by_name(void **state)
{
    (void)state;
    const iso_method *rule = NULL;
    iso_error e = {0};
    assert_string_equal(iso_robust_find("mean")->name, "average");
    assert_null(iso_robust_find("iso_c"));
    assert_int_equal(iso_robust_need("multi_crum", &rule, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "multi_krum"));
}

int main(void)
{
    iso_set_threads(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(coordinate_rules_sort_each_entry),
        cmocka_unit_test(geometric_median_of_points_one_knows),
        cmocka_unit_test(krum_and_distances_see_all_tensors_of_an_update_together),
        cmocka_unit_test(krum_counts_the_updates_it_needs),
        cmocka_unit_test(clipping_scales_down_to_the_norm_or_the_median),
        cmocka_unit_test(rules_on_adapters_equal_rules_on_their_products),
        cmocka_unit_test(one_bad_site_of_five_does_not_move_a_rule_far),
        cmocka_unit_test(U99_rules_give_the_same_bits_for_any_threads),
        cmocka_unit_test(rules_are_found_by_name),
    };
    return cmocka_run_group_tests_name("rules inside a task", tests, NULL, NULL);
}
