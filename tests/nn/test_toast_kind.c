/* TOAST: the zero module, gradients by differences, kept first pass, collapsed form, threads,
 * files, what is selected, the closed form of stage 1 (specs/toast.md 15). */
#include "tests/nn/kind_fixture.h"

#include "nn/adapter/toast.h"

static iso_adapter_options options(bool is_full, bool trains_P)
{
    return (iso_adapter_options){
        .kind = "toast", .rank = 2, .is_full = is_full, .trains_P = trains_P, .seed = 7};
}

/* xi that selects most tokens: of a fresh adapter, its look at the images. */
static void look(const fixture *f, iso_adapter *a, double *share)
{
    iso_error e = {0};
    iso_model *m = NULL;
    iso_toast_selection did;
    iso_source s = {.n = IMAGES, .pixels = fixture_give, .ctx = (void *)(uintptr_t)f};
    if (iso_model_open(&m, f->backbone, a, false, &e) ||
        iso_toast_check_selection(a, m, &s, &did, share, &e))
        fail_msg("%s", e.text);
    iso_model_close(m);
}

static void the_zero_module_is_the_backbone_bit_for_bit(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    float *frozen = fixture_features(&f, NULL);
    for (int which = 0; which < 4; which++) {
        iso_adapter_options o = options(which % 2, which / 2);
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
    for (int which = 0; which < 4; which++) {
        iso_adapter_options o = options(which % 2, which / 2);
        o.is_bias_twice = which == 1;
        iso_adapter *a = fixture_adapter(&f, &o);
        look(&f, a, NULL);
        fixture_shake(a, 0.02);
        fixture_check_gradient(&f, a, 0.02, 2e-2);
        iso_adapter_close(a);
    }
    fixture_close(&f);
}

static void threads_files_and_a_kept_first_pass_change_nothing(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    for (int which = 0; which < 4; which++) {
        iso_adapter_options o = options(which % 2, which / 2);
        iso_adapter *a = fixture_adapter(&f, &o);
        look(&f, a, NULL);
        fixture_shake(a, 0.05);
        fixture_check_threads(&f, a);
        double loss[2];
        float *x = fixture_gradient(&f, a, true, &loss[0]);
        float *y = fixture_gradient(&f, a, false, &loss[1]);
        assert_true(loss[0] == loss[1]);
        assert_memory_equal(x, y, a->param_count * sizeof *x);
        free(x);
        free(y);
        iso_adapter_close(fixture_reread(&f, a, 1e-6)); /* xi is stored of unit length */
        iso_adapter_close(a);
    }
    fixture_close(&f);
}

/* (C1): the short form of inference against the chain that training uses. */
static void the_collapsed_form_agrees_with_the_chain(void **state)
{
    (void)state;
    fixture f;
    iso_error e = {0};
    fixture_open(&f);
    size_t d = f.backbone->shape.dim;
    for (int which = 0; which < 4; which++) {
        iso_adapter_options o = options(which % 2, which / 2);
        iso_adapter *a = fixture_adapter(&f, &o);
        look(&f, a, NULL);
        fixture_shake(a, 0.05);
        float *brief = fixture_features(&f, a), *chain = iso_calloc(IMAGES * d, sizeof *chain);
        iso_model *m = NULL;
        double off = 0.0, norm = 0.0;
        if (iso_model_open(&m, f.backbone, a, true, &e) ||
            iso_model_features(m, f.pixels, IMAGES, chain, &e))
            fail_msg("%s", e.text);
        for (size_t i = 0; i < IMAGES * d; i++) {
            off += ((double)brief[i] - (double)chain[i]) * ((double)brief[i] - (double)chain[i]);
            norm += (double)chain[i] * (double)chain[i];
        }
        assert_true(sqrt(off / norm) < 1e-5);
        iso_model_close(m);
        free(brief);
        free(chain);
        iso_adapter_close(a);
    }
    fixture_close(&f);
}

static void only_the_direction_of_xi_counts(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options(true, false);
    iso_adapter *a = fixture_adapter(&f, &o);
    size_t d = f.backbone->shape.dim;
    look(&f, a, NULL);
    fixture_shake(a, 0.05);
    float *x = fixture_features(&f, a);
    for (size_t i = 0; i < d; i++)
        a->params[iso_toast_xi_at(a) + i] *= 4.0F;
    float *y = fixture_features(&f, a);
    for (size_t i = 0; i < IMAGES * d; i++)
        assert_true(fabsf(x[i] - y[i]) <= 1e-5F * (1.0F + fabsf(x[i])));
    free(x);
    free(y);
    iso_adapter_close(a);
    fixture_close(&f);
}

static void a_dead_selection_is_turned_around(void **state)
{
    (void)state;
    fixture f;
    double share;
    fixture_open(&f);
    iso_adapter_options o = options(true, false);
    iso_adapter *a = fixture_adapter(&f, &o);
    look(&f, a, &share);
    float *xi = a->params + iso_toast_xi_at(a);
    for (size_t i = 0; i < f.backbone->shape.dim; i++)
        xi[i] = -xi[i];
    look(&f, a, &share);
    assert_true(share >= 0.5);
    iso_adapter_close(a);
    fixture_close(&f);
}

/* (Q1) is finite and does not depend on the number of threads. */
static void the_closed_form_is_the_same_with_any_threads(void **state)
{
    (void)state;
    fixture f;
    iso_error e = {0};
    fixture_open(&f);
    size_t n = 3 * f.backbone->shape.dim * f.backbone->shape.dim;
    iso_source s = {.n = IMAGES, .pixels = fixture_give, .ctx = &f};
    float *F[2];
    for (int k = 0; k < 2; k++) {
        F[k] = iso_calloc(n, sizeof *F[k]);
        iso_set_threads(k + 1);
        if (iso_toast_ridge(f.backbone, &s, 1e-3, F[k], &e))
            fail_msg("%s", e.text);
    }
    iso_set_threads(1);
    assert_memory_equal(F[0], F[1], n * sizeof *F[0]);
    double norm = 0.0;
    for (size_t i = 0; i < n; i++)
        norm += (double)F[0][i] * (double)F[0][i];
    assert_true(isfinite(norm) && norm > 1.0);
    free(F[0]);
    free(F[1]);
    fixture_close(&f);
}

static void bad_options_are_refused(void **state)
{
    (void)state;
    fixture f;
    fixture_open(&f);
    iso_adapter_options o = options(false, false);
    o.rank = 5000;
    fixture_refuses(&f, &o, "rank 5000");
    o = options(true, false);
    o.recon = -1.0;
    fixture_refuses(&f, &o, "reconstruction weight -1");
    fixture_close(&f);
}

int main(void)
{
    iso_set_threads(1);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_zero_module_is_the_backbone_bit_for_bit),
        cmocka_unit_test(gradients_agree_with_differences),
        cmocka_unit_test(threads_files_and_a_kept_first_pass_change_nothing),
        cmocka_unit_test(the_collapsed_form_agrees_with_the_chain),
        cmocka_unit_test(only_the_direction_of_xi_counts),
        cmocka_unit_test(a_dead_selection_is_turned_around),
        cmocka_unit_test(the_closed_form_is_the_same_with_any_threads),
        cmocka_unit_test(bad_options_are_refused)};
    return cmocka_run_group_tests_name("toast", tests, NULL, NULL);
}
