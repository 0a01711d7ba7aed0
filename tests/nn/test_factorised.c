/* Factorised adapters: start, gradients by differences, threads, files, refusals. */
#include "tests/nn/kind_fixture.h"

#include "nn/adapter/factorised.h"

static const iso_factor_form FORMS[] = {ISO_FORM_BOTH, ISO_FORM_LORA, ISO_FORM_MULTIPLICATIVE,
                                        ISO_FORM_ADDITIVE};
enum { FORM_COUNT = sizeof FORMS / sizeof *FORMS };

static iso_adapter_options options(iso_factor_form form)
{
    return (iso_adapter_options){
        .kind = "factorised", .rank = 3, .alpha = 3, .form = form, .seed = 7};
}

static void starts_at_the_frozen_backbone_bit_for_bit(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    float *frozen = fixture_features(&f, NULL);
    for (size_t i = 0; i < FORM_COUNT; i++) {
        iso_adapter_options o = options(FORMS[i]);
        iso_adapter *a = fixture_adapter(&f, &o);
        float *x = fixture_features(&f, a);
        assert_memory_equal(x, frozen, IMAGES * f.backbone->shape.dim * sizeof *x);
        free(x);
        iso_adapter_close(a);
    }
    free(frozen);
    fixture_close(&f);
}

static void gradients_agree_with_differences(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    for (size_t i = 0; i < FORM_COUNT; i++) {
        iso_adapter_options o = options(FORMS[i]);
        iso_adapter *a = fixture_adapter(&f, &o);
        fixture_shake(a, 0.05);
        fixture_check_gradient(&f, a, 0.004, 5e-3);
        iso_adapter_close(a);
    }
    fixture_close(&f);
}

static void threads_and_files_change_nothing(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    for (size_t i = 0; i < FORM_COUNT; i++) {
        iso_adapter_options o = options(FORMS[i]);
        iso_adapter *a = fixture_adapter(&f, &o);
        fixture_shake(a, 0.05);
        fixture_check_threads(&f, a);
        iso_adapter *again = fixture_reread(&f, a, 0.0);
        assert_int_equal(again->param_count, a->param_count);
        assert_memory_equal(again->params, a->params, a->param_count * sizeof *a->params);
        iso_adapter_close(again);
        iso_adapter_close(a);
    }
    fixture_close(&f);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options(ISO_FORM_BOTH);
    o.rank = 0;
    fixture_refuses(&f, &o, "k 0");
    o = options((iso_factor_form)9);
    fixture_refuses(&f, &o, "form 9");
    const char *none[] = {"nothing"};
    o = options(ISO_FORM_BOTH);
    o.targets = none;
    o.target_count = 1;
    fixture_refuses(&f, &o, "\"nothing\" is no linear layer");
    fixture_close(&f);
}

/* A file whose factors do not fit is refused by name. */
static void bad_files_are_refused(void **state)
{
    (void)state;
    fixture f;
    iso_buf tensors = {0};
    iso_error e = {0};
    iso_adapter *a = NULL;
    fixture_open(&f);
    const char *module = f.backbone->modules[0].name;
    char name[128];
    float x[4] = {0};
    snprintf(name, sizeof name, "%s.factor.r", module);
    iso_named_tensor t = {name, {.dtype = ISO_F32, .ndim = 2, .shape = {2, 2}, .data = x}};
    assert_int_equal(iso_safetensors_write_buf(&tensors, &t, 1, NULL, 0, &e), ISO_OK);
    const char *config = "{\"peft_type\":\"ISOFED_FACTORISED\",\"form\":\"both\",\"k\":2}";
    assert_int_equal(iso_adapter_parse(&a, f.backbone, config, strlen(config), tensors.data,
                                       tensors.size, "upload", &e),
                     ISO_ERR_SHAPE);
    assert_non_null(strstr(e.text, "2x2; expected 2x48"));
    iso_buf_free(&tensors);
    fixture_close(&f);
}

int main(void)
{
    iso_set_threads(1);
    const struct CMUnitTest tests[] = {cmocka_unit_test(starts_at_the_frozen_backbone_bit_for_bit),
                                       cmocka_unit_test(gradients_agree_with_differences),
                                       cmocka_unit_test(threads_and_files_change_nothing),
                                       cmocka_unit_test(bad_options_are_refused),
                                       cmocka_unit_test(bad_files_are_refused)};
    return cmocka_run_group_tests_name("factorised", tests, NULL, NULL);
}
