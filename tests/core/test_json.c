/* JSON: what is refused (specs/security.md T17, 9.1), the canonical form (S90) against jansson's
 * own writer, marks of what could not be made. */
#include "core/json.h"
#include "core/rng.h"

#include <jansson.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void S9_1_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t size; /* 0: up to the terminator */
        iso_err code;
    } rows[] = {
        {"{}", 0, ISO_OK},
        {" [1, 2.5, \"x\", null, true, {}] ", 0, ISO_OK},
        {"{\"a\":\"\\u0041\\ud83d\\ude00\"}", 0, ISO_OK},
        {"", 0, ISO_ERR_DATA},
        {"1", 0, ISO_ERR_DATA},
        {"{\"a\":1,\"a\":2}", 0, ISO_ERR_DATA},
        {"{\"a\":1,\"\\u0061\":2}", 0, ISO_ERR_DATA},
        {"{} {}", 0, ISO_ERR_DATA},
        {"[1,]", 0, ISO_ERR_DATA},
        {"[\"a\0b\"]", 7, ISO_ERR_DATA},
        {"[\"\\u0000\"]", 0, ISO_ERR_DATA},
        {"[\"\xff\"]", 0, ISO_ERR_DATA},
        {"[\"\xc0\xaf\"]", 0, ISO_ERR_DATA},
        {"[1e999]", 0, ISO_ERR_DATA},
        {"[NaN]", 0, ISO_ERR_DATA},
        {"[Infinity]", 0, ISO_ERR_DATA},
        {"[12345678901234567890]", 0, ISO_ERR_DATA},
        {"[01]", 0, ISO_ERR_DATA},
        {"{\"a\":1", 0, ISO_ERR_DATA},
        {"// no comment\n{}", 0, ISO_ERR_DATA},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_error e = {0};
        iso_json *j;
        size_t size = rows[i].size ? rows[i].size : strlen(rows[i].text);
        iso_err got = iso_json_parse(rows[i].text, size, "it", &j, &e);
        if (got != rows[i].code)
            fail_msg("%s: code %d, \"%s\"", rows[i].text, got, e.text);
        assert_true((j != NULL) == (got == ISO_OK));
        if (got)
            assert_int_equal(strncmp(e.text, "it", 2), 0);
        iso_json_free(j);
    }
}

static void S9_3_depth_is_32(void **state)
{
    (void)state;
    char text[2 * 40 + 64];
    for (int depth = 31; depth <= 34; depth++)
        for (int kind = 0; kind < 2; kind++) {
            size_t n = 0;
            for (int i = 0; i < depth; i++)
                n += (size_t)sprintf(text + n, kind && i % 2 ? "{\"\":" : "[");
            n += (size_t)sprintf(text + n, "\"[[[[[[[[[[[[[[[[\"");
            for (int i = depth; i--;)
                text[n++] = kind && i % 2 ? '}' : ']';
            iso_json *j;
            iso_error e;
            char room[sizeof text];
            memcpy(room, text, n);
            assert_true(n < sizeof text);
            assert_int_equal(iso_json_parse(room, n, "it", &j, &e),
                             depth <= 32 ? ISO_OK : ISO_ERR_DATA);
            iso_json_free(j);
        }
    iso_json *inner = iso_json_array();
    for (int i = 0; i < 32; i++) {
        iso_json *outer = iso_json_array();
        iso_json_push(outer, inner);
        inner = outer;
    }
    iso_buf out = {0};
    assert_int_not_equal(iso_json_dump(inner, ISO_JSON_COMPACT, &out, NULL), ISO_OK);
    iso_buf_free(&out);
    iso_json_free(inner);
}

static void keys_are_read_with_their_types(void **state)
{
    (void)state;
    static const char text[] = "{\"i\":7,\"n\":-1,\"r\":2.5,\"s\":\"x\",\"t\":true,\"z\":null}";
    iso_json *j;
    iso_error e;
    int64_t i;
    double d;
    bool b;
    const char *s;
    assert_int_equal(iso_json_parse(text, strlen(text), "it", &j, &e), ISO_OK);
    assert_int_equal(iso_json_need_int(j, "i", 0, 7, &i, &e), ISO_OK);
    assert_int_equal(i, 7);
    assert_int_equal(iso_json_need_int(j, "i", 8, 9, &i, &e), ISO_ERR_DATA);
    assert_string_equal(e.text, "\"i\" is 7; expected 8..9");
    assert_int_equal(iso_json_need_int(j, "r", 0, 9, &i, &e), ISO_ERR_DATA);
    assert_int_equal(iso_json_need_int(j, "none", 0, 9, &i, &e), ISO_ERR_DATA);
    assert_string_equal(e.text, "key \"none\" is missing");
    assert_int_equal(iso_json_get_int(j, "none", 0, 9, 42, &i, &e), ISO_OK);
    assert_int_equal(i, 42);
    assert_int_equal(iso_json_get_int(j, "n", 0, 9, 42, &i, &e), ISO_ERR_DATA);
    assert_int_equal(iso_json_get_int(j, "s", 0, 9, 42, &i, &e), ISO_ERR_DATA);
    assert_int_equal(iso_json_get_num(j, "i", 0, &d, &e), ISO_OK);
    assert_true(d == 7);
    assert_int_equal(iso_json_get_num(j, "s", 0, &d, &e), ISO_ERR_DATA);
    assert_int_equal(iso_json_get_num(j, "none", 0.5, &d, &e), ISO_OK);
    assert_true(d == 0.5);
    assert_int_equal(iso_json_get_bool(j, "t", false, &b, &e), ISO_OK);
    assert_true(b);
    assert_int_equal(iso_json_get_bool(j, "i", false, &b, &e), ISO_ERR_DATA);
    assert_int_equal(iso_json_need_str(j, "s", &s, &e), ISO_OK);
    assert_string_equal(s, "x");
    assert_int_equal(iso_json_need_str(j, "i", &s, &e), ISO_ERR_DATA);
    assert_int_equal(iso_json_get_str(j, "none", "y", &s, &e), ISO_OK);
    assert_string_equal(s, "y");
    assert_int_equal(iso_json_get_str(j, "z", "y", &s, &e), ISO_ERR_DATA);
    assert_true(iso_json_is_null(iso_json_key(j, "z")));
    const char *key;
    assert_int_equal(iso_json_count(j), 6);
    assert_ptr_equal(iso_json_member(j, 2, &key), iso_json_key(j, "r"));
    assert_string_equal(key, "r");
    assert_null(iso_json_member(j, 6, &key));
    void *at = NULL;
    const iso_json *value;
    size_t n = 0;
    while (iso_json_next(j, &at, &key, &value))
        assert_ptr_equal(iso_json_member(j, n++, NULL), value);
    assert_int_equal(n, 6);
    iso_json_free(j);
}

static void S90_canonical_form(void **state)
{
    (void)state;
    static const struct {
        const char *text, *canonical; /* NULL: it is */
    } rows[] = {
        {"{}\n", NULL},
        {"{\"a\":1,\"b\":[true,null,-5],\"c\":{}}\n", NULL},
        {"{\"b\":1,\"a\":2}", "{\"a\":2,\"b\":1}\n"},
        {"{ \"a\" : 1 }\n", "{\"a\":1}\n"},
        {"{\"a\":1}", "{\"a\":1}\n"},
        {"{\"a\":1}\n\n", "{\"a\":1}\n"},
        {"{\"a\":1.5}\n", "{\"a\":\"1.5\"}\n"},
        {"{\"a\":0.1}\n", "{\"a\":\"0.1\"}\n"},
        {"{\"\\u0061\":\"\\u00e9\\/\"}\n", "{\"a\":\"\xc3\xa9/\"}\n"},
        {"{\"a\":\"\\n\\u001f\\u007f\\\"\\\\\"}\n", "{\"a\":\"\\n\\u001F\x7f\\\"\\\\\"}\n"},
        {"{\"Z\":1,\"a\":1,\"aa\":1,\"\xc3\xa9\":1}\n", NULL},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_json *j;
        iso_error e;
        iso_buf out = {0};
        const char *want = rows[i].canonical ? rows[i].canonical : rows[i].text;
        assert_int_equal(iso_json_check_canonical(rows[i].text, strlen(rows[i].text), "it", &e),
                         rows[i].canonical ? ISO_ERR_DATA : ISO_OK);
        assert_int_equal(iso_json_check_canonical(want, strlen(want), "it", &e), ISO_OK);
        assert_int_equal(iso_json_parse(rows[i].text, strlen(rows[i].text), "it", &j, &e), ISO_OK);
        assert_int_equal(iso_json_dump(j, ISO_JSON_CANONICAL, &out, &e), ISO_OK);
        assert_string_equal((char *)out.data, want);
        iso_buf_free(&out);
        iso_json_free(j);
    }
}

static iso_json *random_tree(iso_rng *r, int depth)
{
    static const char *const words[] = {
        "", "a", "b\"", "\\", "\x01\x1f\n\t", "\xc3", "\xe2\x82\xac", "\x7f", "long word", "/"};
    switch (iso_rng_below(r, depth > 4 ? 5 : 8)) {
    case 0:
        return iso_json_integer((int64_t)iso_rng_u64(r));
    case 1:
        return iso_json_boolean(iso_rng_below(r, 2));
    case 2:
        return iso_json_null();
    case 3:
        return iso_json_float9(iso_rng_normal(r));
    case 4:
        return iso_json_string(words[iso_rng_below(r, 10)]);
    case 5: {
        iso_json *list = iso_json_array();
        for (uint32_t n = iso_rng_below(r, 5); n--;)
            assert_true(iso_json_push(list, random_tree(r, depth + 1)));
        return list;
    }
    default: {
        iso_json *object = iso_json_object();
        for (uint32_t n = iso_rng_below(r, 6); n--;) {
            char key[8] = "k";
            key[1] = (char)('0' + iso_rng_below(r, 9));
            assert_true(iso_json_set(object, key, random_tree(r, depth + 1)));
        }
        return object;
    }
    }
}

/* The same tree by two writers. */
static void S90_agrees_with_the_writer_of_jansson(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 500; seed++) {
        iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 1);
        iso_json *tree = iso_json_array();
        assert_true(iso_json_push(tree, random_tree(&r, 0)));
        iso_buf ours = {0};
        iso_error e;
        assert_int_equal(iso_json_dump(tree, ISO_JSON_CANONICAL, &ours, &e), ISO_OK);
        char *theirs = json_dumps(tree, JSON_COMPACT | JSON_SORT_KEYS);
        assert_non_null(theirs);
        if (strlen(theirs) + 1 != ours.size || memcmp(theirs, ours.data, ours.size - 1) != 0)
            fail_msg("seed %llu: %s%s", (unsigned long long)seed, (char *)ours.data, theirs);
        assert_int_equal(iso_json_check_canonical(ours.data, ours.size, "it", &e), ISO_OK);
        free(theirs);
        for (int style = ISO_JSON_COMPACT; style <= ISO_JSON_PRETTY; style++) {
            iso_buf text = {0};
            iso_json *again;
            assert_int_equal(iso_json_dump(tree, (iso_json_style)style, &text, &e), ISO_OK);
            assert_int_equal(iso_json_parse(text.data, text.size, "it", &again, &e), ISO_OK);
            assert_true(json_equal(tree, again));
            iso_json_free(again);
            iso_buf_free(&text);
        }
        iso_buf_free(&ours);
        iso_json_free(tree);
    }
}

static void reals_are_short_and_exact(void **state)
{
    (void)state;
    static const struct {
        double v;
        const char *text;
    } rows[] = {{0.1, "[0.1]"},
                {1, "[1.0]"},
                {-0.0, "[-0.0]"},
                {1e300, "[1e+300]"},
                {0.30000000000000004, "[0.30000000000000004]"},
                {1.0 / 3, "[0.3333333333333333]"},
                {(double)NAN, "[null]"},
                {(double)INFINITY, "[null]"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_json *j = iso_json_array();
        iso_buf out = {0};
        assert_true(iso_json_push(j, iso_json_real(rows[i].v)));
        assert_int_equal(iso_json_dump(j, ISO_JSON_COMPACT, &out, NULL), ISO_OK);
        assert_string_equal((char *)out.data, rows[i].text);
        iso_buf_free(&out);
        iso_json_free(j);
    }
    iso_json *f = iso_json_float9(1.0 / 3);
    assert_string_equal(iso_json_str(f), "0.333333333");
    iso_json_free(f);
}

static void invalid_utf8_is_replaced(void **state)
{
    (void)state;
    iso_json *j = iso_json_string("a\xff\xe2\x82z\xc3\xa9");
    assert_string_equal(iso_json_str(j), "a\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\xc3\xa9");
    iso_json_free(j);
    assert_null(iso_json_string(NULL));
}

/* A member that could not be made: the whole tree is refused, wherever it is, and can be freed. */
static void what_is_incomplete_is_never_written(void **state)
{
    (void)state;
    for (int where = 0; where < 4; where++) {
        iso_json *root = iso_json_object(), *list = iso_json_array();
        iso_json_set(root, "list", list);
        iso_json_set(root, "fine", iso_json_integer(1));
        iso_buf out = {0};
        iso_error e;
        assert_int_equal(iso_json_dump(root, ISO_JSON_COMPACT, &out, &e), ISO_OK);
        out.size = 0;
        bool is_set = where == 0   ? iso_json_set(root, "x", NULL)
                      : where == 1 ? iso_json_push(list, NULL)
                      : where == 2 ? iso_json_set(list, "x", iso_json_null())
                                   : iso_json_push(root, iso_json_object());
        assert_false(is_set);
        assert_int_equal(iso_json_dump(root, ISO_JSON_CANONICAL, &out, &e), ISO_ERR_MEMORY);
        assert_int_equal(out.size, 0);
        assert_null(iso_json_copy(root));
        iso_json_set(root, "list", iso_json_null()); /* releases a marked one */
        iso_json_free(root);
        iso_buf_free(&out);
    }
    assert_false(iso_json_set(NULL, "x", iso_json_object()));
    assert_int_equal(iso_json_dump(NULL, ISO_JSON_COMPACT, NULL, NULL), ISO_ERR_MEMORY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S9_1_what_is_refused),
        cmocka_unit_test(S9_3_depth_is_32),
        cmocka_unit_test(keys_are_read_with_their_types),
        cmocka_unit_test(S90_canonical_form),
        cmocka_unit_test(S90_agrees_with_the_writer_of_jansson),
        cmocka_unit_test(reals_are_short_and_exact),
        cmocka_unit_test(invalid_utf8_is_replaced),
        cmocka_unit_test(what_is_incomplete_is_never_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
