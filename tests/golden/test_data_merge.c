/* Golden cases of the DATA adapter (golden/data), kind merge: the updates of a task's sites. The
 * other kinds: golden.data. */
#include "tests/golden/manifest_cases.h"

#include "merge/gated.h"

static const char *const BRANCHES[] = {"lo", "hi"};

static void merge_sites(golden_case *c)
{
    enum { MAX = 16 };
    size_t n = golden_size(c, "sites"), out = 0, in = 0;
    double *weights = golden_f64(c, "input/weights", NULL), *delta = NULL;
    iso_error e = {0};
    assert_true(n <= MAX);
    for (size_t br = 0; br < 2; br++) {
        iso_lora_layer layers[MAX];
        iso_lora_input sites[MAX];
        iso_merged_lora merged = {0};
        char name[96];
        double gate;
        snprintf(name, sizeof name, "input/%s.gate_mean", BRANCHES[br]);
        double *gates = golden_f64(c, name, NULL);
        for (size_t s = 0; s < n; s++) {
            snprintf(name, sizeof name, "input/site%zu.%s.up", s, BRANCHES[br]);
            const iso_tensor *up = golden_need(c, name);
            layers[s] = (iso_lora_layer){.module = (char *)(uintptr_t) "w",
                                         .out = up->shape[0],
                                         .rank = up->shape[1],
                                         .scale = 1.0,
                                         .B = golden_f32(c, name, NULL)};
            snprintf(name, sizeof name, "input/site%zu.%s.down", s, BRANCHES[br]);
            layers[s].in = golden_need(c, name)->shape[1];
            layers[s].A = golden_f32(c, name, NULL);
            sites[s] = (iso_lora_input){"site", &layers[s], 1};
            out = layers[s].out;
            in = layers[s].in;
        }
        if (iso_aggregate_gated(sites, n, weights, gates, 0, &gate, &merged, &e))
            fail_msg("%s", e.text);
        const iso_lora_layer *l = &merged.layers[0];
        double *product = iso_calloc(out * in, sizeof *product);
        delta = delta ? delta : iso_calloc(out * in, sizeof *delta);
        for (size_t i = 0; i < out; i++)
            for (size_t k = 0; k < l->rank; k++)
                for (size_t j = 0; j < in; j++)
                    product[i * in + j] +=
                        l->scale * (double)l->B[i * l->rank + k] * (double)l->A[k * in + j];
        for (size_t i = 0; i < out * in; i++)
            delta[i] += gate * product[i];
        snprintf(name, sizeof name, "out/%s.gate_mean", BRANCHES[br]);
        golden_compare_number(c, name, gate);
        snprintf(name, sizeof name, "out/%s.product", BRANCHES[br]);
        golden_compare_f64(c, name, product, out * in);
        for (size_t s = 0; s < n; s++) {
            free(layers[s].A);
            free(layers[s].B);
        }
        iso_merged_lora_free(&merged);
        free(product);
        free(gates);
    }
    golden_compare_f64(c, "out/delta", delta, out * in);
    golden_expect_compared(c, 0);
    free(delta);
    free(weights);
}

static void golden_data_merge(void **state)
{
    static const golden_kind kinds[] = {
        {"merge", merge_sites, NULL},     {"gate", NULL, "golden.data"},
        {"ortho", NULL, "golden.data"},   {"linear", NULL, "golden.data"},
        {"model", NULL, "golden.data"},   {"expand", NULL, "golden.data"},
        {"restore", NULL, "golden.data"}, {"fold", NULL, "golden.data"},
        {"train", NULL, "golden.data"},   {0}};
    (void)state;
    run_golden("data", kinds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_data_merge)};
    return cmocka_run_group_tests_name("golden data merge", tests, NULL, NULL);
}
