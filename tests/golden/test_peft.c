/* PEFT equality: an adapter folder gives here the logits that the formula gives in PyTorch
 * (tests/golden/peft/make_vectors.py made folders and numbers). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "nn/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FOLDER "tests/golden/peft"

static float *read_numbers(const iso_json *list, size_t *n)
{
    *n = iso_json_count(list);
    float *out = iso_calloc(*n, sizeof *out);
    for (size_t i = 0; i < *n; i++) {
        double v;
        assert_true(iso_json_num(iso_json_at(list, i), &v));
        out[i] = (float)v;
    }
    return out;
}

/* Relative Frobenius error of the logits with this adapter (NULL: none). */
static double off(const iso_backbone *b, const char *adapter, const float *pixels, size_t images,
                  const iso_json *want)
{
    iso_error e = {0};
    iso_adapter *a = NULL;
    iso_model *m;
    size_t n;
    float *expected = read_numbers(want, &n), *got = iso_calloc(n, sizeof *got);
    assert_int_equal(n, images * b->shape.classes);
    if ((adapter && iso_adapter_open(&a, b, adapter, &e)) || iso_model_open(&m, b, a, false, &e) ||
        iso_model_logits(m, pixels, images, got, &e))
        fail_msg("%s", e.text);
    double d = 0.0, s = 0.0;
    for (size_t i = 0; i < n; i++) {
        double w = (double)expected[i];
        d += ((double)got[i] - w) * ((double)got[i] - w);
        s += w * w;
    }
    iso_model_close(m);
    iso_adapter_close(a);
    free(expected);
    free(got);
    return sqrt(d / s);
}

static void the_logits_are_those_of_the_formula(void **state)
{
    (void)state;
    iso_json *j = NULL;
    iso_backbone *b = NULL;
    iso_error e = {0};
    size_t count;
    int64_t images = 0;
    if (iso_json_read(FOLDER "/expected.json", 1 << 20, &j, &e) ||
        iso_json_need_int(j, "images", 1, 64, &images, &e) ||
        iso_backbone_open(&b, FOLDER "/model", &e))
        fail_msg("%s", e.text);
    float *pixels = read_numbers(iso_json_key(j, "pixel_values"), &count);
    assert_int_equal(count, (size_t)images * b->shape.sample);
    double frozen = off(b, NULL, pixels, (size_t)images, iso_json_key(j, "frozen"));
    printf("  %-16s %.1e\n", "frozen", frozen);
    assert_true(frozen <= 1e-5);
    const iso_json *adapters = iso_json_key(j, "adapters");
    assert_int_equal(iso_json_count(adapters), 4);
    for (size_t i = 0; i < iso_json_count(adapters); i++) {
        const char *name;
        const iso_json *want = iso_json_member(adapters, i, &name);
        char *folder = iso_path_join(FOLDER, name);
        double error = off(b, folder, pixels, (size_t)images, want);
        printf("  %-16s %.1e\n", name, error);
        if (!(error <= 1e-5))
            fail_msg("%s: %.1e off", name, error);
        /* and it is the adapter that makes the difference */
        assert_true(off(b, NULL, pixels, (size_t)images, want) > 1e-2);
        free(folder);
    }
    free(pixels);
    iso_json_free(j);
    iso_backbone_close(b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_logits_are_those_of_the_formula)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
