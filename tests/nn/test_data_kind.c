/* DATA: start, gradients by differences, frozen rows, threads, files, folding (specs/data.md 15).
 */
#include "tests/nn/kind_fixture.h"

#include "nn/adapter/data.h"
#include "nn/train/optimizer.h"
#include "nn/train/restore.h"

static iso_adapter_options options(void)
{
    return (iso_adapter_options){
        .kind = "data", .rank_lo = 2, .rank_hi = 4, .prompts = 3, .gap = 2, .seed = 7};
}

static void a_fresh_adapter_is_the_backbone_bit_for_bit(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options();
    iso_adapter *a = fixture_adapter(&f, &o);
    float *x = fixture_features(&f, a), *frozen = fixture_features(&f, NULL);
    assert_memory_equal(x, frozen, IMAGES * f.backbone->shape.dim * sizeof *x);
    free(x);
    free(frozen);
    iso_adapter_close(a);
    fixture_close(&f);
}

static void gradients_agree_with_differences(void **state)
{
    (void)state;
    static const char *const some[] = {"query", "output.dense"};
    fixture f;
    fixture_open(&f);
    for (int which = 0; which < 4; which++) {
        iso_adapter_options o = options();
        o.is_sum = which == 1;
        o.first_block = which == 2 ? 1 : 0; /* a group whose first block is not adapted */
        o.targets = some;
        o.target_count = which == 3 ? 2 : 0;
        iso_adapter *a = fixture_adapter(&f, &o);
        fixture_shake(a, 0.1);
        fixture_check_gradient(&f, a, 0.004, 1e-2);
        iso_adapter_close(a);
    }
    fixture_close(&f);
}

static void the_penalty_s_gradient_agrees_with_differences(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options();
    o.ortho = 0.7;
    iso_adapter *a = fixture_adapter(&f, &o);
    fixture_shake(a, 0.1);
    float *g = iso_calloc(a->param_count, sizeof *g), *none = iso_calloc(a->param_count, sizeof *g);
    (void)a->kind->penalty(a, a->params, g);
    for (size_t i = a->decay_count; i < a->param_count; i += 97) {
        float was = a->params[i];
        double h = 1e-2, l[2];
        a->params[i] = was + (float)h;
        l[0] = a->kind->penalty(a, a->params, none);
        a->params[i] = was - (float)h;
        l[1] = a->kind->penalty(a, a->params, none);
        a->params[i] = was;
        assert_true(fabs((l[0] - l[1]) / (2 * h) - (double)g[i]) < 2e-4);
    }
    free(g);
    free(none);
    iso_adapter_close(a);
    fixture_close(&f);
}

static void rows_of_earlier_tasks_never_move(void **state)
{
    (void)state;
    enum { STEPS = 100 };
    fixture f;
    iso_error e = {0};
    fixture_open(&f);
    iso_adapter_options o = options();
    iso_adapter *first = fixture_adapter(&f, &o), *second = NULL;
    fixture_shake(first, 0.1);
    assert_int_equal(iso_data_expand(&second, first, 8, &e), ISO_OK);
    assert_int_equal(iso_data_task(second), 1);
    size_t d = f.backbone->shape.dim;
    iso_buf config[2] = {{0}}, tensors[2] = {{0}};
    float *m = iso_calloc(second->param_count, sizeof *m);
    float *v = iso_calloc(second->param_count, sizeof *v);
    for (int k = 0; k < 2; k++) {
        assert_int_equal(iso_adapter_write_bufs(second, NULL, NULL, &config[k], &tensors[k], &e),
                         ISO_OK);
        for (uint64_t s = 0; k == 0 && s < STEPS; s++) {
            double loss;
            float *g = s % 25 == 0 ? fixture_gradient(&f, second, false, &loss)
                                   : iso_calloc(second->param_count, sizeof *g);
            iso_adamw w = iso_adamw_default(1e-3, 0.5);
            iso_adamw_step(&w, s + 1, second->param_count, second->params, g, 1.0F, m, v);
            free(g);
        }
    }
    iso_safetensors before = {0}, after = {0};
    assert_int_equal(iso_safetensors_parse(&before, tensors[0].data, tensors[0].size, "before", &e),
                     ISO_OK);
    assert_int_equal(iso_safetensors_parse(&after, tensors[1].data, tensors[1].size, "after", &e),
                     ISO_OK);
    size_t gates = 0;
    for (size_t i = 0; i < before.count; i++) {
        if (strncmp(before.items[i].name, "gate.", 5) != 0)
            continue;
        gates++;
        const char *x = before.items[i].view.data, *y = after.items[i].view.data;
        size_t half = 3 * d * sizeof(float);
        assert_memory_equal(x, y, half);
        assert_memory_not_equal(x + half, y + half, half);
    }
    assert_int_equal(gates, 2 * 2 * 3);
    for (int k = 0; k < 2; k++) {
        iso_buf_free(&config[k]);
        iso_buf_free(&tensors[k]);
    }
    iso_safetensors_close(&before);
    iso_safetensors_close(&after);
    free(m);
    free(v);
    iso_adapter_close(first);
    iso_adapter_close(second);
    fixture_close(&f);
}

static void threads_and_files_change_nothing(void **state)
{
    (void)state;
    fixture f;
    iso_error e = {0};
    fixture_open(&f);
    iso_adapter_options o = options();
    iso_adapter *first = fixture_adapter(&f, &o), *a = NULL;
    fixture_shake(first, 0.1);
    assert_int_equal(iso_data_expand(&a, first, 8, &e), ISO_OK); /* with frozen rows */
    fixture_shake(a, 0.05);
    fixture_check_threads(&f, a);
    iso_adapter *again = fixture_reread(&f, a, 0.0);
    assert_memory_equal(again->params, a->params, a->param_count * sizeof *a->params);
    iso_adapter_close(again);
    iso_adapter_close(a);
    iso_adapter_close(first);
    fixture_close(&f);
}

/* What is kept of the first blocks changes no bit; groups begin where they must. */
static void a_kept_prefix_changes_nothing(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options();
    o.first_block = 2;
    iso_adapter *a = fixture_adapter(&f, &o);
    fixture_shake(a, 0.1);
    assert_int_equal(a->lowest_block, 2);
    double loss[2];
    float *x = fixture_gradient(&f, a, true, &loss[0]),
          *y = fixture_gradient(&f, a, false, &loss[1]);
    assert_true(loss[0] == loss[1]);
    assert_memory_equal(x, y, a->param_count * sizeof *x);
    free(x);
    free(y);
    iso_adapter_close(a);
    o.first_block = 1;
    a = fixture_adapter(&f, &o);
    assert_int_equal(a->lowest_block, 0); /* the gate looks there */
    iso_adapter_close(a);
    fixture_close(&f);
}

/* Constant gates, folded, are what the gated form gives when its gates are these. */
static void a_constant_gate_is_scaled_lora(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options();
    o.fixed_gate = 0.25;
    iso_adapter *a = fixture_adapter(&f, &o);
    assert_false(iso_adapter_runs(a));
    fixture_shake(a, 0.1);
    fixture_check_gradient(&f, a, 0.004, 5e-3);
    fixture_check_threads(&f, a);
    iso_adapter *again = fixture_reread(&f, a, 0.0);
    assert_false(iso_adapter_runs(again));
    iso_adapter_close(again);
    iso_adapter_close(a);
    fixture_close(&f);
}

/* The LoRA at the mean gates is the folded form. */
static void folded_it_is_a_lora(void **state)
{
    (void)state;
    fixture f;
    iso_error e = {0};
    fixture_open(&f);
    iso_adapter_options o = options();
    iso_adapter *a = fixture_adapter(&f, &o), *lora = NULL;
    iso_model *m = NULL;
    fixture_shake(a, 0.1);
    iso_source s = {.n = IMAGES, .pixels = fixture_give, .ctx = &f};
    if (iso_model_open(&m, f.backbone, a, false, &e) || iso_data_measure(a, m, &s, &e))
        fail_msg("%s", e.text);
    iso_model_close(m);
    iso_arena arena = {0};
    iso_peft p = {.peft_type = (char *)(uintptr_t) "LORA"};
    if (a->kind->to_layers(a, &arena, &p.layers, &p.count, &e) ||
        iso_adapter_from_peft(&lora, f.backbone, &p, &e))
        fail_msg("%s", e.text);
    iso_data_set_folded(a, true);
    assert_false(iso_adapter_runs(a));
    float *x = fixture_features(&f, a), *y = fixture_features(&f, lora);
    for (size_t i = 0; i < IMAGES * f.backbone->shape.dim; i++)
        assert_true(fabsf(x[i] - y[i]) <= 1e-5F * (1.0F + fabsf(x[i])));
    free(x);
    free(y);
    iso_adapter_close(lora);
    iso_arena_free(&arena);
    iso_adapter_close(a);
    fixture_close(&f);
}

static void restoration_is_seeded_and_rare(void **state)
{
    (void)state;
    enum { N = 20000 };
    iso_restore r = {0.1, 0.1};
    static float ref[N], a[N], b[N];
    size_t back = 0, due = 0;
    for (size_t i = 0; i < N; i++)
        a[i] = b[i] = 1.0F;
    iso_restore_apply(&r, 5, 30, N, ref, a);
    iso_restore_apply(&r, 5, 30, N, ref, b);
    assert_memory_equal(a, b, sizeof a);
    for (size_t i = 0; i < N; i++)
        back += a[i] == 0.0F;
    assert_in_range(back, N / 10 - 200, N / 10 + 200);
    for (uint64_t s = 1; s <= 300; s++)
        due += iso_restore_is_due(&r, s, 300);
    assert_int_equal(due, 9); /* every 30 steps while 30 remain */
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options();
    o.prompts = 49;
    fixture_refuses(&f, &o, "49 prompt rows");
    o = options();
    o.rank_hi = 5000;
    fixture_refuses(&f, &o, "5000");
    o = options();
    o.fixed_gate = 1.5;
    fixture_refuses(&f, &o, "constant gate 1.5");
    fixture_close(&f);
}

int main(void)
{
    iso_set_threads(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fresh_adapter_is_the_backbone_bit_for_bit),
        cmocka_unit_test(gradients_agree_with_differences),
        cmocka_unit_test(the_penalty_s_gradient_agrees_with_differences),
        cmocka_unit_test(rows_of_earlier_tasks_never_move),
        cmocka_unit_test(threads_and_files_change_nothing),
        cmocka_unit_test(a_kept_prefix_changes_nothing),
        cmocka_unit_test(a_constant_gate_is_scaled_lora),
        cmocka_unit_test(folded_it_is_a_lora),
        cmocka_unit_test(restoration_is_seeded_and_rare),
        cmocka_unit_test(bad_options_are_refused)};
    return cmocka_run_group_tests_name("data", tests, NULL, NULL);
}
