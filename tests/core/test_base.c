/* The ground: errors, sizes, arena, buffer, random numbers, digest, parallel loops, texts of
 * durations and sizes. */
#include "core/digest.h"
#include "core/mem.h"
#include "core/parallel.h"
#include "core/progress.h"
#include "core/rng.h"
#include "core/utf8.h"

#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* Requests that no machine can grant are part of this test. */
const char *__asan_default_options(void);
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1";
}

/* ---- errors ---- */

static void an_error_is_one_line(void **state)
{
    (void)state;
    iso_error e;
    assert_int_equal(iso_fail(&e, ISO_ERR_DATA, "file %s", "a\nb\x1b\x7f"), ISO_ERR_DATA);
    assert_string_equal(e.text, "file a?b??");
    assert_int_equal(iso_error_context(&e, "folder %d", 1), ISO_ERR_DATA);
    assert_string_equal(e.text, "folder 1: file a?b??");
    assert_int_equal(iso_fail_errno(&e, ISO_ERR_RESOURCE, ENOSPC, "x"), ISO_ERR_RESOURCE);
    assert_string_equal(e.text, "x: No space left on device");
    assert_int_equal(iso_fail(NULL, ISO_ERR_DATA, "x"), ISO_ERR_DATA);
    assert_int_equal(iso_fail_errno(NULL, ISO_ERR_DATA, 1, "x"), ISO_ERR_DATA);
    char text[400];
    memset(text, 'y', sizeof text - 1);
    text[399] = 0;
    iso_fail_errno(&e, ISO_ERR_DATA, 1, "%s", text);
    iso_error_context(&e, "%s", text);
    assert_int_equal(strlen(e.text), ISO_ERROR_BYTES - 1);
}

static void every_code_has_an_exit_code_and_a_name(void **state)
{
    (void)state;
    static const int want[ISO_ERR_COUNT] = {0, 1, 2, 3, 3, 3, 4, 5, 5, 130, 1};
    for (int i = 0; i < ISO_ERR_COUNT; i++) {
        assert_int_equal(iso_exit_code((iso_err)i), want[i]);
        assert_true(strlen(iso_err_name((iso_err)i)) > 1);
    }
}

/* ---- memory ---- */

static void sizes_do_not_wrap(void **state)
{
    (void)state;
    size_t out = 7;
    assert_false(iso_mul_size(SIZE_MAX / 2, 3, &out));
    assert_false(iso_add_size(SIZE_MAX, 1, &out));
    assert_int_equal(out, 7);
    assert_true(iso_mul_size(6, 7, &out));
    assert_int_equal(out, 42);
    assert_null(iso_calloc(SIZE_MAX / 2, 4));
    assert_null(iso_alloc_aligned(SIZE_MAX / 2, 4));
    assert_null(iso_alloc_aligned(SIZE_MAX - 8, 1));
    iso_arena arena = {0};
    assert_null(iso_arena_alloc(&arena, SIZE_MAX / 2, 4));
    assert_null(iso_arena_alloc(&arena, SIZE_MAX / 4, 1));
    assert_null(iso_arena_calloc(&arena, SIZE_MAX / 2, 4));
    iso_buf b = {0};
    iso_error e;
    assert_int_equal(iso_buf_append(&b, "x", 1, &e), ISO_OK);
    assert_int_equal(iso_buf_reserve(&b, SIZE_MAX, &e), ISO_ERR_MEMORY);
    assert_int_equal(iso_buf_reserve(&b, SIZE_MAX - 1, &e), ISO_ERR_MEMORY);
    assert_int_equal(b.size, 1);
    assert_int_equal(b.data[0], 'x');
    iso_buf_free(&b);
    iso_arena_free(&arena);
    void *p = iso_calloc(0, 0);
    assert_non_null(p);
    free(p);
}

static void an_arena_gives_aligned_apart_memory(void **state)
{
    (void)state;
    iso_arena a = {0};
    iso_rng r = iso_rng_make(1, ISO_RNG_TEST, 0);
    for (int pass = 0; pass < 3; pass++) {
        uint8_t *parts[200];
        size_t sizes[200];
        for (int i = 0; i < 200; i++) {
            sizes[i] = i % 50 == 49 ? 300000 : iso_rng_below(&r, 3000);
            parts[i] = i % 2 ? iso_arena_alloc(&a, sizes[i], 1) : iso_arena_calloc(&a, sizes[i], 1);
            assert_non_null(parts[i]);
            assert_int_equal((uintptr_t)parts[i] % 64, 0);
            for (size_t k = 0; !(i % 2) && k < sizes[i]; k++)
                assert_int_equal(parts[i][k], 0);
            memset(parts[i], i, sizes[i]);
        }
        for (int i = 0; i < 200; i++)
            for (size_t k = 0; k < sizes[i]; k++)
                assert_int_equal(parts[i][k], i);
        assert_true(a.used_bytes <= a.held_bytes);
        iso_arena_reset(&a);
        assert_int_equal(a.used_bytes, 0);
        assert_true(a.held_bytes > 0);
    }
    assert_string_equal(iso_arena_strdup(&a, "text"), "text");
    iso_arena_free(&a);
    assert_int_equal(a.held_bytes, 0);
    iso_arena_reset(&a);
    iso_arena_free(&a);
}

static void a_buffer_grows(void **state)
{
    (void)state;
    iso_buf b = {0};
    iso_error e;
    for (int i = 0; i < 1000; i++)
        assert_int_equal(iso_buf_printf(&b, &e, "%d,", i), ISO_OK);
    assert_int_equal(b.size, 3890);
    assert_int_equal(strncmp((char *)b.data, "0,1,2,", 6), 0);
    assert_int_equal(iso_buf_append(&b, NULL, 0, &e), ISO_OK);
    iso_buf_free(&b);
    char *s = iso_strf("%s-%d", "a", 5);
    assert_string_equal(s, "a-5");
    free(s);
}

static void fields_are_little_endian(void **state)
{
    (void)state;
    uint8_t b[8];
    static const uint8_t want[8] = {8, 7, 6, 5, 4, 3, 2, 0xF1};
    iso_put_u64(b, 0xF102030405060708u);
    assert_memory_equal(b, want, 8);
    assert_true(iso_get_u64(b) == 0xF102030405060708u);
    assert_true(iso_get_u32(b) == 0x05060708u);
    assert_true(iso_get_u16(b) == 0x0708u);
    iso_put_u32(b, 0xF1020304u);
    assert_true(iso_get_u32(b) == 0xF1020304u);
    iso_put_u16(b, 0xF102u);
    assert_true(iso_get_u16(b) == 0xF102u);
}

static void utf8_by_the_standard(void **state)
{
    (void)state;
    char text[4];
    size_t valid = 0;
    for (unsigned code = 1; code < 0x110000; code++) {
        size_t n = iso_utf8_put(text, code);
        bool is_surrogate = code >= 0xD800 && code < 0xE000;
        assert_int_equal(iso_utf8_length(text, n), is_surrogate ? 0 : n);
        assert_int_equal(iso_utf8_length(text, n - 1), 0);
        valid += !is_surrogate;
    }
    assert_int_equal(valid, 0x110000 - 1 - 2048);
    static const char *const bad[] = {"\x80",
                                      "\xC0\x80",
                                      "\xC1\xBF",
                                      "\xE0\x9F\xBF",
                                      "\xF0\x8F\xBF\xBF",
                                      "\xF4\x90\x80\x80",
                                      "\xF8\x88\x80\x80\x80",
                                      "\xE2\x82",
                                      "\xFE"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(iso_utf8_is_valid(bad[i], strlen(bad[i])));
    assert_true(iso_utf8_is_valid("", 0));
}

/* ---- random numbers ---- */

/* Known answers of Random123 for philox4x32-10. The generator's names fix the counter's upper half
 * (purpose, step) and the key (seed). */
static void philox_gives_the_published_answers(void **state)
{
    (void)state;
    static const struct {
        uint32_t counter[4], key[2], out[4];
    } rows[] = {
        {{0, 0, 0, 0}, {0, 0}, {0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8}},
        {{~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}, {0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD}},
        {{0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344},
         {0xA4093822, 0x299F31D0},
         {0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1}},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_rng r = {.key = {rows[i].key[0], rows[i].key[1]},
                     .stream = {rows[i].counter[2], rows[i].counter[3]}};
        uint32_t out[4];
        iso_rng_block(&r, (uint64_t)rows[i].counter[1] << 32 | rows[i].counter[0], out);
        assert_memory_equal(out, rows[i].out, sizeof out);
    }
}

static void streams_are_apart_and_repeat(void **state)
{
    (void)state;
    iso_rng streams[] = {
        iso_rng_make(1, ISO_RNG_INIT, 0),
        iso_rng_make(2, ISO_RNG_INIT, 0),
        iso_rng_make(1, ISO_RNG_SHUFFLE, 0),
        iso_rng_make(1, ISO_RNG_INIT, 1),
        iso_rng_make((uint64_t)1 << 32 | 1, ISO_RNG_INIT, 0),
        iso_rng_make(1, ISO_RNG_INIT, (uint64_t)1 << 32),
        iso_rng_make(iso_rng_seed_name(1, "a"), ISO_RNG_INIT, 0),
        iso_rng_make(iso_rng_seed_name(1, "b"), ISO_RNG_INIT, 0),
    };
    enum { N = sizeof streams / sizeof *streams };
    uint64_t first[N];
    for (size_t i = 0; i < N; i++) {
        iso_rng again = streams[i];
        first[i] = iso_rng_u64(&again);
        uint32_t block[4];
        iso_rng_block(&streams[i], 0, block);
        assert_true(first[i] == ((uint64_t)block[0] << 32 | block[1]));
        for (size_t k = 0; k < i; k++)
            assert_true(first[i] != first[k]);
    }
}

static void numbers_are_spread_evenly(void **state)
{
    (void)state;
    /* 3 * 2^30: a plain remainder would favour the lower third by a factor of two. */
    iso_rng r = iso_rng_make(3, ISO_RNG_TEST, 0);
    int low = 0, n = 30000;
    for (int i = 0; i < n; i++) {
        uint32_t v = iso_rng_below(&r, 3u << 30);
        assert_true(v < 3u << 30);
        low += v < 1u << 30;
    }
    assert_true(abs(low - n / 3) < 5 * sqrt(n * 2.0 / 9));
    int counts[7] = {0};
    for (int i = 0; i < 70000; i++)
        counts[iso_rng_below(&r, 7)]++;
    double chi2 = 0;
    for (int i = 0; i < 7; i++)
        chi2 += (counts[i] - 10000.0) * (counts[i] - 10000.0) / 10000;
    assert_true(chi2 < 30); /* 6 degrees of freedom: beyond in 4 of 100,000 runs */
    assert_int_equal(iso_rng_below(&r, 1), 0);
    double sum = 0, sum2 = 0, sum4 = 0, least = 1, most = 0;
    for (int i = 0; i < 200000; i++) {
        double u = iso_rng_uniform(&r), z = iso_rng_normal(&r);
        least = fmin(least, u);
        most = fmax(most, u);
        sum += z;
        sum2 += z * z;
        sum4 += z * z * z * z;
    }
    assert_true(least >= 0 && least < 1e-4 && most < 1 && most > 1 - 1e-4);
    assert_true(fabs(sum / 2e5) < 0.012);
    assert_true(fabs(sum2 / 2e5 - 1) < 0.016);
    assert_true(fabs(sum4 / 2e5 - 3) < 0.12);
}

static void every_order_is_as_likely(void **state)
{
    (void)state;
    iso_rng r = iso_rng_make(4, ISO_RNG_TEST, 0);
    int counts[64] = {0};
    for (int i = 0; i < 60000; i++) {
        uint32_t items[3] = {0, 1, 2};
        iso_rng_shuffle(&r, items, 3);
        counts[items[0] * 16 + items[1] * 4 + items[2]]++;
    }
    int seen = 0;
    for (int i = 0; i < 64; i++)
        if (counts[i]) {
            seen++;
            assert_true(abs(counts[i] - 10000) < 500);
        }
    assert_int_equal(seen, 6);
    iso_rng_shuffle(&r, NULL, 0);
}

/* ---- digest ---- */

static void blake2b_256_of_known_texts(void **state)
{
    (void)state;
    /* By another implementation (Python's hashlib.blake2b, digest_size=32). */
    static const char *const rows[][2] = {
        {"", "0e5751c026e543b2e8ab2eb06099daa1d1e5df47778f7787faab45cdf12fe3a8"},
        {"abc", "bddd813c634239723171ef3fee98579b94964e3bb1cb3e427262c8c068d52319"},
    };
    for (size_t i = 0; i < 2; i++) {
        iso_digest d = iso_digest_of(rows[i][0], strlen(rows[i][0])), parsed;
        char hex[ISO_DIGEST_HEX];
        iso_hex(hex, d.b, sizeof d.b);
        assert_string_equal(hex, rows[i][1]);
        assert_true(iso_unhex(parsed.b, sizeof parsed.b, hex));
        assert_true(iso_digest_equal(&d, &parsed));
        assert_false(iso_digest_is_zero(&d));
        iso_hasher h;
        iso_hasher_init(&h);
        for (const char *p = rows[i][0]; *p; p++)
            iso_hasher_add(&h, p, 1);
        parsed = iso_hasher_end(&h);
        assert_true(iso_digest_equal(&d, &parsed));
    }
    iso_digest zero = {{0}};
    assert_true(iso_digest_is_zero(&zero));
    static const char *const bad[] = {"", "0", "000", "0g", "g0", "00 "};
    uint8_t byte;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(iso_unhex(&byte, 1, bad[i]));
    assert_true(iso_unhex(&byte, 1, "fA"));
    assert_int_equal(byte, 0xFA);
}

/* ---- parallel ---- */

enum { ITEMS = 5000 };
static int visits[ITEMS];
static int inner_visits[ITEMS];

static void inner(void *ctx, size_t i, int worker)
{
    (void)ctx;
    assert_true(worker >= 0 && worker < iso_threads());
    inner_visits[i]++;
}

static void outer(void *ctx, size_t i, int worker)
{
    (void)worker;
    visits[i]++;
    /* Items are apart, so nested loops may write without a lock. */
    if (i < 10)
        iso_parallel_for(1, 1, inner, ctx);
}

static void body(void *ctx, size_t i, int worker)
{
    (void)ctx;
    (void)i;
    (void)worker;
    visits[i]++;
}

static void each_item_is_done_once(void **state)
{
    (void)state;
    for (int threads = 0; threads <= 4; threads++) {
        iso_set_threads(threads);
        assert_true(iso_threads() >= 1);
        for (size_t grain = 0; grain < 100; grain += 33) {
            memset(visits, 0, sizeof visits);
            iso_parallel_for(ITEMS, grain, body, NULL);
            for (int i = 0; i < ITEMS; i++)
                assert_int_equal(visits[i], 1);
        }
        iso_parallel_for(0, 1, body, NULL);
    }
    iso_set_threads(1);
    memset(visits, 0, sizeof visits);
    iso_parallel_for(20, 1, outer, NULL);
    assert_int_equal(inner_visits[0], 10);
}

/* ---- texts ---- */

static void durations_and_sizes_read_well(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *time, *bytes;
    } rows[] = {
        {0, "0 ms", "0 B"},
        {0.412, "412 ms", NULL},
        {0.99951, "1.0 s", NULL},
        {59.96, "1 min 00 s", NULL},
        {192, "3 min 12 s", "192 B"},
        {3599.7, "1 h 00 min", NULL},
        {86399, "23 h 59 min", NULL},
        {90000, "1 d 01 h", NULL},
        {1024, NULL, "1.0 KiB"},
        {9.8 * 1048576, NULL, "9.8 MiB"},
        {1048575, NULL, "1.0 MiB"},
        {(double)INFINITY, "?", NULL},
        {-1, "?", NULL},
    };
    char text[32];
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        if (rows[i].time) {
            iso_duration_text(text, sizeof text, rows[i].v);
            assert_string_equal(text, rows[i].time);
        }
        if (rows[i].bytes) {
            iso_bytes_text(text, sizeof text, rows[i].v);
            assert_string_equal(text, rows[i].bytes);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_error_is_one_line),
        cmocka_unit_test(every_code_has_an_exit_code_and_a_name),
        cmocka_unit_test(sizes_do_not_wrap),
        cmocka_unit_test(an_arena_gives_aligned_apart_memory),
        cmocka_unit_test(a_buffer_grows),
        cmocka_unit_test(fields_are_little_endian),
        cmocka_unit_test(utf8_by_the_standard),
        cmocka_unit_test(philox_gives_the_published_answers),
        cmocka_unit_test(streams_are_apart_and_repeat),
        cmocka_unit_test(numbers_are_spread_evenly),
        cmocka_unit_test(every_order_is_as_likely),
        cmocka_unit_test(blake2b_256_of_known_texts),
        cmocka_unit_test(each_item_is_done_once),
        cmocka_unit_test(durations_and_sizes_read_well),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
