/* preprocessor_config.json: the forms that are out there, and bad ones; resizing by a plain
 * reference. */
#include "nn/data/preprocess.h"

#include "core/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static iso_err parse(const char *text, iso_preprocess *p, iso_error *e)
{
    return iso_preprocess_parse(p, text, strlen(text), "config", e);
}

static void known_forms(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        int edge, rh, rw, crop, oh, ow; /* crop: 1 when cropped */
    } rows[] = {
        {"{\"size\":{\"shortest_edge\":68},\"crop_size\":{\"height\":64,\"width\":60},"
         "\"do_center_crop\":true,\"resample\":3}",
         68, 68, 68, 1, 64, 60},
        {"{\"size\":{\"height\":224,\"width\":200},\"resample\":2}", 0, 224, 200, 0, 224, 200},
        {"{\"size\":224}", 0, 224, 224, 0, 224, 224},
        {"{\"size\":224.0}", 0, 224, 224, 0, 224, 224},
        {"{\"size\":224,\"crop_size\":200,\"image_processor_type\":\"CLIPImageProcessor\"}", 224,
         224, 224, 1, 200, 200},
        {"{\"size\":{\"shortest_edge\":50}}", 50, 50, 50, 1, 50, 50},
        {"{\"do_resize\":false,\"crop_size\":32}", 0, 224, 224, 1, 32, 32},
        {"{\"size\":256,\"crop_size\":224,\"do_center_crop\":false}", 0, 256, 256, 0, 256, 256},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_preprocess p;
        iso_error e;
        int h, w;
        if (parse(rows[i].text, &p, &e))
            fail_msg("%s: %s", rows[i].text, e.text);
        iso_preprocess_size(&p, &h, &w);
        assert_int_equal(p.shortest_edge, rows[i].edge);
        assert_int_equal(p.resize_height, rows[i].rh);
        assert_int_equal(p.resize_width, rows[i].rw);
        assert_int_equal(p.do_center_crop, rows[i].crop);
        assert_int_equal(h, rows[i].oh);
        assert_int_equal(w, rows[i].ow);
    }
}

static void bad_forms_name_the_field(void **state)
{
    (void)state;
    static const struct {
        const char *text, *wanted;
    } rows[] = {
        {"[]", "object"},
        {"{\"size\":0}", "\"size\""},
        {"{\"size\":1000000000}", "\"size\""},
        {"{\"size\":\"big\"}", "\"size\""},
        {"{\"size\":{\"height\":224}}", "\"size\""},
        {"{\"size\":224.5}", "\"size\""},
        {"{\"size\":64,\"crop_size\":{\"height\":-1,\"width\":3}}", "\"crop_size\""},
        {"{\"size\":64,\"resample\":1}", "\"resample\""},
        {"{\"size\":64,\"resample\":99}", "resample"},
        {"{\"size\":64,\"image_std\":[0.1,0,0.1]}", "\"image_std\""},
        {"{\"size\":64,\"image_mean\":[0.1,0.1]}", "\"image_mean\""},
        {"{\"size\":64,\"image_mean\":[0.1,0.1,\"x\"]}", "\"image_mean\""},
        {"{\"size\":64,\"rescale_factor\":-1}", "\"rescale_factor\""},
        {"{\"size\":64,\"do_resize\":\"yes\"}", "do_resize"},
        {"{\"do_center_crop\":true}", "neither"},
        {"{", "config"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_preprocess p;
        iso_error e;
        iso_err err = parse(rows[i].text, &p, &e);
        if (err != ISO_ERR_DATA || !strstr(e.text, rows[i].wanted))
            fail_msg("%s: %s, \"%s\"", rows[i].text, iso_err_name(err), err ? e.text : "");
    }
}

/* One axis in double without intermediate rounding: the definition. */
static double weight(double x, iso_resample f)
{
    x = fabs(x);
    if (f == ISO_RESAMPLE_BILINEAR)
        return x < 1 ? 1 - x : 0;
    if (x < 1)
        return 1.5 * x * x * x - 2.5 * x * x + 1;
    return x < 2 ? -0.5 * x * x * x + 2.5 * x * x - 4 * x + 2 : 0;
}

static void reference_axis(const double *in, int n, size_t stride, double *out, int m,
                           size_t out_stride, iso_resample f)
{
    double scale = (double)n / m, stretch = scale > 1 ? scale : 1;
    for (int i = 0; i < m; i++) {
        double centre = (i + 0.5) * scale, sum = 0, total = 0;
        for (int x = 0; x < n; x++) {
            double k = weight((x + 0.5 - centre) / stretch, f);
            sum += k * in[(size_t)x * stride];
            total += k;
        }
        double v = sum / total;
        out[(size_t)i * out_stride] = v < 0 ? 0 : v > 255 ? 255 : v;
    }
}

static void resizing_agrees_with_the_definition(void **state)
{
    (void)state;
    static const int shapes[][4] = {{7, 5, 3, 9}, {30, 41, 8, 8}, {1, 1, 4, 4}, {64, 3, 5, 20},
                                    {9, 9, 9, 9}, {2, 50, 2, 7},  {50, 2, 7, 2}};
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++)
        for (int f = 2; f <= 3; f++) {
            int h = shapes[k][0], w = shapes[k][1], oh = shapes[k][2], ow = shapes[k][3];
            uint8_t in[64 * 64], out[32 * 32];
            double a[64 * 64], mid[64 * 64], want[64 * 64];
            iso_error e;
            iso_rng r = iso_rng_make(k, ISO_RNG_TEST, 0);
            for (int i = 0; i < h * w; i++)
                a[i] = in[i] = (uint8_t)iso_rng_below(&r, 256);
            assert_int_equal(iso_resize_u8(in, h, w, 1, out, oh, ow, (iso_resample)f, &e), ISO_OK);
            for (int y = 0; y < h; y++)
                reference_axis(a + y * w, w, 1, mid + y * ow, ow, 1, (iso_resample)f);
            for (int x = 0; x < ow; x++)
                reference_axis(mid + x, h, (size_t)ow, want + x, oh, (size_t)ow, (iso_resample)f);
            for (int i = 0; i < oh * ow; i++) /* two roundings to 8 bits */
                if (fabs(out[i] - want[i]) > 1.3)
                    fail_msg("%dx%d to %dx%d: %d instead of %g", w, h, ow, oh, out[i], want[i]);
        }
}

static void crop_pads_with_black(void **state)
{
    (void)state;
    iso_preprocess p;
    iso_error e;
    uint8_t in[2 * 2 * 3], out[5 * 4 * 3];
    memset(in, 200, sizeof in);
    iso_preprocess_default(&p, 4);
    p.do_resize = false;
    p.crop_height = 5;
    assert_int_equal(iso_preprocess_u8(&p, in, 2, 2, out, &e), ISO_OK);
    int lit = 0;
    for (int i = 0; i < 5 * 4; i++)
        lit += out[i * 3] == 200;
    assert_int_equal(lit, 4);
    assert_int_equal(out[(2 * 4 + 1) * 3], 200);
}

static void narrow_pictures_are_refused(void **state)
{
    (void)state;
    iso_preprocess p;
    iso_error e;
    uint8_t out[224 * 224 * 3];
    uint8_t *in = calloc(60000, 3);
    assert_non_null(in);
    iso_preprocess_default(&p, 224);
    assert_int_equal(iso_preprocess_u8(&p, in, 1, 60000, out, &e), ISO_ERR_DATA);
    free(in);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_forms),
        cmocka_unit_test(bad_forms_name_the_field),
        cmocka_unit_test(resizing_agrees_with_the_definition),
        cmocka_unit_test(crop_pads_with_black),
        cmocka_unit_test(narrow_pictures_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
