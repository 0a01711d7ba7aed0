/* Preprocessing against Pillow: the cases of kind "preprocess" in golden/backbones/manifest.json,
 * found in $ISO_GOLDEN_DIR or ../shared/golden. Cases of other kinds belong to other runners and
 * are counted. */
#include "core/fsio.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "nn/data/images.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *golden_folder(void)
{
    const char *dir = getenv("ISO_GOLDEN_DIR");
    return iso_path_join(dir ? dir : "../shared/golden", "backbones");
}

static void fill_triple(const iso_json *params, const char *key, double out[3])
{
    for (size_t i = 0; i < 3; i++)
        assert_true(iso_json_num(iso_json_at(iso_json_key(params, key), i), &out[i]));
}

static iso_preprocess from_params(const iso_json *params)
{
    iso_preprocess p;
    iso_error e;
    int64_t edge, crop;
    const char *mode;
    assert_int_equal(iso_json_need_int(params, "shortest_edge", 1, 4096, &edge, &e), ISO_OK);
    assert_int_equal(iso_json_need_int(params, "crop", 1, 4096, &crop, &e), ISO_OK);
    assert_int_equal(iso_json_need_str(params, "resample", &mode, &e), ISO_OK);
    iso_preprocess_default(&p, (int)edge);
    p.crop_height = p.crop_width = (int)crop;
    p.resample = strcmp(mode, "bicubic") ? ISO_RESAMPLE_BILINEAR : ISO_RESAMPLE_BICUBIC;
    fill_triple(params, "mean", p.mean);
    fill_triple(params, "std", p.std);
    return p;
}

/* Returns the largest difference in grey levels. */
static int run_case(const char *folder, const iso_json *c, const char *name)
{
    iso_error e;
    iso_buf file = {0};
    iso_safetensors st = {0};
    uint8_t *rgb;
    int h, w, oh, ow;
    int64_t atol;
    iso_preprocess p = from_params(iso_json_key(c, "params"));
    char *image = iso_path_join(folder, iso_json_str(iso_json_key(c, "image")));
    char *expected = iso_path_join(folder, iso_json_str(iso_json_key(c, "expected")));
    assert_int_equal(iso_json_need_int(c, "atol_u8", 0, 255, &atol, &e), ISO_OK);
    assert_int_equal(iso_read_file(image, 1 << 20, &file, &e), ISO_OK);
    assert_int_equal(iso_image_decode(file.data, file.size, &rgb, &h, &w, &e), ISO_OK);
    assert_int_equal(iso_safetensors_open(&st, expected, &e), ISO_OK);
    iso_preprocess_size(&p, &oh, &ow);
    size_t n = (size_t)oh * (size_t)ow * 3;
    uint8_t *got = malloc(n);
    float *tensor = malloc(n * sizeof *tensor);
    double *want_tensor = malloc(n * sizeof *want_tensor);
    assert_non_null(got);
    assert_non_null(tensor);
    assert_non_null(want_tensor);
    assert_int_equal(iso_preprocess_u8(&p, rgb, h, w, got, &e), ISO_OK);
    const iso_named_tensor *want = iso_safetensors_find(&st, "resized_u8");
    const iso_named_tensor *want_t = iso_safetensors_find(&st, "tensor");
    assert_non_null(want);
    assert_non_null(want_t);
    assert_int_equal(iso_tensor_count(&want->view), n);
    assert_int_equal(iso_tensor_count(&want_t->view), n);
    int worst = 0;
    for (size_t i = 0; i < n; i++) {
        int d = abs((int)got[i] - (int)((const uint8_t *)want->view.data)[i]);
        worst = d > worst ? d : worst;
    }
    if (worst > atol)
        fail_msg("%s: %d grey levels apart, at most %d allowed", name, worst, (int)atol);
    iso_preprocess_float(&p, got, tensor);
    assert_int_equal(iso_tensor_to_f64(&want_t->view, want_tensor, &e), ISO_OK);
    for (size_t i = 0; i < n; i++) { /* the grey levels allowed, and rounding to float */
        double slack = (double)worst / 255 / 0.224 + 1e-6;
        if (fabs((double)tensor[i] - want_tensor[i]) > slack)
            fail_msg("%s: value %zu is %g, expected %g", name, i, (double)tensor[i],
                     want_tensor[i]);
    }
    free(got);
    free(tensor);
    free(want_tensor);
    free(rgb);
    free(image);
    free(expected);
    iso_buf_free(&file);
    iso_safetensors_close(&st);
    return worst;
}

static void matches_pillow(void **state)
{
    (void)state;
    iso_error e;
    iso_json *root = NULL;
    char *folder = golden_folder();
    char *manifest = iso_path_join(folder, "manifest.json");
    if (!iso_path_exists(manifest)) {
        printf("golden vectors are not at %s: set ISO_GOLDEN_DIR\n", folder);
        free(manifest);
        free(folder);
        skip();
    }
    assert_int_equal(iso_json_read(manifest, 1 << 20, &root, &e), ISO_OK);
    const iso_json *cases = iso_json_key(root, "cases");
    size_t ran = 0, other = 0;
    for (size_t i = 0; i < iso_json_count(cases); i++) {
        const iso_json *c = iso_json_at(cases, i);
        const char *name = iso_json_str(iso_json_key(c, "name"));
        if (strcmp(iso_json_str(iso_json_key(c, "kind")), "preprocess") != 0) {
            other++;
            continue;
        }
        printf("%s: at most %d grey levels apart\n", name, run_case(folder, c, name));
        ran++;
    }
    printf("%zu cases of kind preprocess agree; %zu cases of other kinds are not this runner's\n",
           ran, other);
    assert_true(ran > 0);
    iso_json_free(root);
    free(manifest);
    free(folder);
}

/* Photographs through the whole way, JPEG included: the pixel values beside each backbone of
 * ../shared/models. Returns the largest difference in grey levels. */
static double run_model(const char *model, const char *images, size_t *count)
{
    iso_error e;
    iso_json *notes = NULL;
    iso_safetensors st = {0};
    iso_preprocess p;
    int h, w;
    double worst = 0;
    char *list = iso_path_join(model, "expected.json");
    char *values = iso_path_join(model, "expected.safetensors");
    assert_int_equal(iso_json_read(list, 1 << 20, &notes, &e), ISO_OK);
    assert_int_equal(iso_safetensors_open(&st, values, &e), ISO_OK);
    assert_int_equal(iso_preprocess_read(&p, model, &e), ISO_OK);
    iso_preprocess_size(&p, &h, &w);
    const iso_named_tensor *want = iso_safetensors_find(&st, "pixel_values");
    assert_non_null(want);
    size_t n = (size_t)h * (size_t)w * 3;
    const iso_json *names = iso_json_key(notes, "images");
    assert_int_equal(iso_tensor_count(&want->view), n * iso_json_count(names));
    double *all = malloc(n * iso_json_count(names) * sizeof *all);
    uint8_t *u8 = malloc(n);
    float *got = malloc(n * sizeof *got);
    assert_true(all && u8 && got);
    assert_int_equal(iso_tensor_to_f64(&want->view, all, &e), ISO_OK);
    for (size_t i = 0; i < iso_json_count(names); i++, (*count)++) {
        char *path = iso_path_join(images, iso_json_str(iso_json_at(names, i)));
        if (iso_image_read(path, &p, u8, &e))
            fail_msg("%s", e.text);
        iso_preprocess_float(&p, u8, got);
        for (size_t k = 0; k < n; k++) {
            double levels = fabs((double)got[k] - all[i * n + k]) * p.std[k / (n / 3)] * 255;
            worst = levels > worst ? levels : worst;
        }
        free(path);
    }
    free(all);
    free(u8);
    free(got);
    free(list);
    free(values);
    iso_json_free(notes);
    iso_safetensors_close(&st);
    return worst;
}

static void photographs_match_pillow(void **state)
{
    (void)state;
    static const char *const models[] = {"../shared/models/vit-tiny-64",
                                         "../shared/models/deit-tiny"};
    const char *images = "../shared/data/images";
    size_t count = 0;
    for (size_t i = 0; i < 2; i++) {
        if (!iso_is_dir(models[i]) || !iso_is_dir(images))
            continue;
        double worst = run_model(models[i], images, &count);
        printf("%s: at most %.3f grey levels apart\n", models[i], worst);
        assert_true(worst < 1.01); /* JPEG decoders may differ by one */
    }
    if (!count) {
        printf("no backbones with expected values in ../shared/models\n");
        skip();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(matches_pillow),
                                       cmocka_unit_test(photographs_match_pillow)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
