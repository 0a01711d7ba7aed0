/* Conversions between float types against plain references, for every half and for awkward floats;
 * views at odd addresses; search for NaN and Inf. */
#include "core/rng.h"
#include "core/tensor.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint32_t bits(float v)
{
    uint32_t u;
    memcpy(&u, &v, sizeof u);
    return u;
}

static float from_bits(uint32_t u)
{
    float v;
    memcpy(&v, &u, sizeof v);
    return v;
}

/* By the definition of the format: sign, exponent, fraction. */
static double half_value(uint16_t h, int exponent_bits)
{
    int fraction_bits = 15 - exponent_bits, bias = (1 << (exponent_bits - 1)) - 1;
    int exponent = h >> fraction_bits & ((1 << exponent_bits) - 1);
    int fraction = h & ((1 << fraction_bits) - 1);
    double sign = h & 0x8000 ? -1 : 1;
    if (exponent == (1 << exponent_bits) - 1)
        return fraction ? (double)NAN : sign * (double)INFINITY;
    if (exponent == 0)
        return sign * ldexp(fraction, 1 - bias - fraction_bits);
    return sign * ldexp((1 << fraction_bits) + fraction, exponent - bias - fraction_bits);
}

static void every_half_reads_as_defined_and_returns(void **state)
{
    (void)state;
    for (uint32_t h = 0; h < 0x10000; h++) {
        double want16 = half_value((uint16_t)h, 5), want_bf = half_value((uint16_t)h, 8);
        float f16 = iso_f16_to_f32((uint16_t)h), bf = iso_bf16_to_f32((uint16_t)h);
        if (isnan(want16)) {
            assert_true(isnan(f16));
            assert_true(isnan(iso_f16_to_f32(iso_f32_to_f16(f16))));
        } else {
            assert_true((double)f16 == want16 && !signbit(f16) == !signbit(want16));
            assert_int_equal(iso_f32_to_f16(f16), h);
        }
        if (isnan(want_bf)) {
            assert_true(isnan(bf));
            assert_true(isnan(iso_bf16_to_f32(iso_f32_to_bf16(bf))));
        } else {
            assert_true((double)bf == want_bf && !signbit(bf) == !signbit(want_bf));
            assert_int_equal(iso_f32_to_bf16(bf), h);
        }
    }
}

/* The nearest half of v (ties to even) by search over all of one sign. Halves of one sign rise with
 * their bits, so the neighbours stand side by side. */
static uint16_t nearest_half(double v, int exponent_bits)
{
    uint16_t sign = signbit(v) ? 0x8000 : 0, low = 0, inf;
    int fraction_bits = 15 - exponent_bits;
    inf = (uint16_t)(((1 << exponent_bits) - 1) << fraction_bits);
    double a = fabs(v);
    uint16_t high = inf;
    while (high - low > 1) {
        uint16_t middle = (uint16_t)((low + high) / 2);
        if (half_value(middle, exponent_bits) <= a)
            low = middle;
        else
            high = middle;
    }
    /* Beyond the largest, Inf stands for the next power of two (IEEE 754, 4.3.1). */
    double below = half_value(low, exponent_bits);
    double above =
        high == inf ? ldexp(1, 1 << (exponent_bits - 1)) : half_value(high, exponent_bits);
    uint16_t best = a - below < above - a || (a - below == above - a && low % 2 == 0) ? low : high;
    return sign | best;
}

static void rounding_is_to_nearest_even(void **state)
{
    (void)state;
    iso_rng r = iso_rng_make(7, ISO_RNG_TEST, 0);
    for (int i = 0; i < 200000; i++) {
        float f = from_bits(iso_rng_u32(&r));
        if (i % 4 == 0) /* into the range of float16 */
            f = from_bits((bits(f) & 0x807FFFFFu) | (100 + iso_rng_below(&r, 45)) << 23);
        if (i % 3 == 0) /* onto a tie or beside it */
            f = from_bits((bits(f) & 0xFFFFE000u) + 0x1000u + iso_rng_below(&r, 3) - 1);
        if (isnan(f))
            continue;
        assert_int_equal(iso_f32_to_f16(f), nearest_half((double)f, 5));
        assert_int_equal(iso_f32_to_bf16(f), nearest_half((double)f, 8));
    }
}

static void doubles_are_rounded_once(void **state)
{
    (void)state;
    iso_rng r = iso_rng_make(8, ISO_RNG_TEST, 0);
    for (int i = 0; i < 100000; i++) {
        /* Just off a tie, by less than a float can hold: rounding twice would land on the tie. */
        double tie =
            ldexp((double)(2 * iso_rng_below(&r, 1024) + 1025), (int)iso_rng_below(&r, 40) - 30);
        double v = tie * (1 + ldexp(iso_rng_below(&r, 2) ? 1 : -1, -40));
        uint16_t f16, bf;
        assert_int_equal(iso_f64_to(ISO_F16, &v, 1, &f16, NULL), ISO_OK);
        assert_int_equal(iso_f64_to(ISO_BF16, &v, 1, &bf, NULL), ISO_OK);
        assert_int_equal(f16, nearest_half(v, 5));
        assert_int_equal(bf, nearest_half(v, 8));
    }
    static const double awkward[] = {0.0, -0.0, 1e300, -1e300, 1e-300, -1e-300, 65519.999, 65520};
    for (size_t i = 0; i < sizeof awkward / sizeof *awkward; i++) {
        uint16_t f16, bf;
        assert_int_equal(iso_f64_to(ISO_F16, &awkward[i], 1, &f16, NULL), ISO_OK);
        assert_int_equal(iso_f64_to(ISO_BF16, &awkward[i], 1, &bf, NULL), ISO_OK);
        assert_int_equal(f16, nearest_half(awkward[i], 5));
        assert_int_equal(bf, nearest_half(awkward[i], 8));
    }
}

static void nan_is_kept(void **state)
{
    (void)state;
    static const uint32_t nans[] = {0x7F800001u, 0xFF800001u, 0x7FFFFFFFu, 0x7FC00000u};
    for (size_t i = 0; i < sizeof nans / sizeof *nans; i++) {
        float f = from_bits(nans[i]);
        assert_true(isnan(iso_f16_to_f32(iso_f32_to_f16(f))));
        assert_true(isnan(iso_bf16_to_f32(iso_f32_to_bf16(f))));
        double d = (double)f;
        uint16_t h;
        assert_int_equal(iso_f64_to(ISO_F16, &d, 1, &h, NULL), ISO_OK);
        assert_true(isnan(iso_f16_to_f32(h)));
    }
}

/* All pairs of types, at addresses that are aligned to nothing, against one value at a time. */
static void S9_1_misaligned_data_converts(void **state)
{
    (void)state;
    static const iso_dtype types[] = {ISO_F64, ISO_F32, ISO_F16, ISO_BF16};
    enum { N = 133 };
    iso_rng r = iso_rng_make(9, ISO_RNG_TEST, 0);
    double in[N];
    for (int i = 0; i < N; i++)
        in[i] = (double)(float)iso_rng_normal(&r);
    for (size_t t = 0; t < 4; t++)
        for (size_t offset = 0; offset < 3; offset++) {
            uint8_t *raw = malloc(N * 8 + offset);
            assert_non_null(raw);
            assert_int_equal(iso_f64_to(types[t], in, N, raw + offset, NULL), ISO_OK);
            iso_tensor view = {types[t], 2, {7, 19}, raw + offset};
            float f32[N];
            double f64[N];
            assert_int_equal(iso_tensor_to_f32(&view, f32, NULL), ISO_OK);
            assert_int_equal(iso_tensor_to_f64(&view, f64, NULL), ISO_OK);
            uint8_t again[N * 8];
            assert_int_equal(iso_f32_to(types[t], f32, N, again, NULL), ISO_OK);
            assert_memory_equal(again, raw + offset, N * iso_dtype_bytes(types[t]));
            for (int i = 0; i < N; i++) {
                double want = types[t] == ISO_F16    ? half_value(nearest_half(in[i], 5), 5)
                              : types[t] == ISO_BF16 ? half_value(nearest_half(in[i], 8), 8)
                                                     : in[i];
                assert_true((double)f32[i] == want && f64[i] == want);
            }
            free(raw);
        }
}

static void other_types_are_refused(void **state)
{
    (void)state;
    int64_t whole[1] = {1};
    float out;
    double wide;
    iso_error e;
    for (int t = 0; t < ISO_DTYPE_COUNT; t++) {
        iso_tensor view = {(iso_dtype)t, 1, {1}, whole};
        bool is_float = t == ISO_F64 || t == ISO_F32 || t == ISO_F16 || t == ISO_BF16;
        iso_err want = is_float ? ISO_OK : ISO_ERR_SHAPE;
        assert_int_equal(iso_tensor_to_f32(&view, &out, &e), want);
        assert_int_equal(iso_tensor_to_f64(&view, &wide, &e), want);
        assert_int_equal(iso_f32_to((iso_dtype)t, &out, 1, whole, &e), want);
        assert_int_equal(iso_f64_to((iso_dtype)t, &wide, 1, whole, &e), want);
        whole[0] = 1;
        iso_dtype parsed;
        assert_true(iso_dtype_parse(iso_dtype_name((iso_dtype)t), &parsed));
        assert_int_equal(parsed, t);
    }
    iso_dtype parsed;
    assert_false(iso_dtype_parse("F8_E4M3", &parsed));
}

static void nonfinite_is_found_at_its_place(void **state)
{
    (void)state;
    static const iso_dtype types[] = {ISO_F64, ISO_F32, ISO_F16, ISO_BF16};
    enum { N = 9000 };
    float *values = iso_calloc(N, sizeof *values);
    uint8_t *raw = iso_calloc(N, 8);
    for (size_t t = 0; t < 4; t++) {
        iso_tensor view = {types[t], 1, {N}, raw};
        static const size_t places[] = {0, 1, 4095, 4096, 8191, N - 1};
        for (size_t i = 0; i < N; i++)
            values[i] = i % 2 ? 60000.0f : -1e-6f;
        assert_int_equal(iso_f32_to(types[t], values, N, raw, NULL), ISO_OK);
        assert_true(iso_tensor_find_nonfinite(&view) == SIZE_MAX);
        for (size_t p = sizeof places / sizeof *places;
             p--;) { /* the last one put in comes first */
            values[places[p]] = p % 2 ? NAN : -INFINITY;
            assert_int_equal(iso_f32_to(types[t], values, N, raw, NULL), ISO_OK);
            assert_int_equal(iso_tensor_find_nonfinite(&view), places[p]);
        }
    }
    iso_tensor whole = {ISO_I64, 1, {N}, raw};
    memset(raw, 0xFF, N * 8);
    assert_true(iso_tensor_find_nonfinite(&whole) == SIZE_MAX);
    free(values);
    free(raw);
}

static void shapes_are_counted_and_named(void **state)
{
    (void)state;
    static const struct {
        iso_tensor t;
        size_t count;
        const char *text;
    } rows[] = {
        {{ISO_F32, 0, {0}, NULL}, 1, "scalar"},
        {{ISO_F32, 1, {5}, NULL}, 5, "5"},
        {{ISO_F32, 3, {2, 3, 4}, NULL}, 24, "2x3x4"},
        {{ISO_F32, 2, {2, 0}, NULL}, 0, "2x0"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char text[32], tiny[4];
        iso_shape_text(&rows[i].t, text, sizeof text);
        assert_string_equal(text, rows[i].text);
        iso_shape_text(&rows[i].t, tiny, sizeof tiny);
        assert_true(strlen(tiny) < sizeof tiny);
        assert_int_equal(iso_tensor_count(&rows[i].t), rows[i].count);
        assert_int_equal(iso_tensor_bytes(&rows[i].t), 4 * rows[i].count);
        for (size_t k = 0; k < sizeof rows / sizeof *rows; k++)
            assert_int_equal(iso_tensor_same_shape(&rows[i].t, &rows[k].t), i == k);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_half_reads_as_defined_and_returns),
        cmocka_unit_test(rounding_is_to_nearest_even),
        cmocka_unit_test(doubles_are_rounded_once),
        cmocka_unit_test(nan_is_kept),
        cmocka_unit_test(S9_1_misaligned_data_converts),
        cmocka_unit_test(other_types_are_refused),
        cmocka_unit_test(nonfinite_is_found_at_its_place),
        cmocka_unit_test(shapes_are_counted_and_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
