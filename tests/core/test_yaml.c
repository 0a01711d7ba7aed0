/* YAML: what is refused (specs/security.md 9.1), lines in messages, tables that fill structs. */
#include "core/yaml.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static void S9_1_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says; /* NULL: it is read */
    } rows[] = {
        {"a: 1\nb: [x, 'y', \"z\"]\n", NULL},
        {"", NULL},
        {"# nothing\n", NULL},
        {"---\na: 1\n...\n", NULL},
        {"a: b: c\n", "f.yaml:1: "},
        {"a: &x 1\n", "f.yaml:1: anchors"},
        {"a: &x [1]\n", "f.yaml:1: anchors"},
        {"a: &x {b: 1}\n", "f.yaml:1: anchors"},
        {"a: 1\nb: *x\n", "f.yaml:2: aliases"},
        {"*x: 1\n", "f.yaml:1: aliases"},
        {"a: !!str 1\n", "f.yaml:1: tags"},
        {"a: !local {b: 1}\n", "f.yaml:1: tags"},
        {"a: !!binary [x]\n", "f.yaml:1: tags"},
        {"<<: {a: 1}\n", "f.yaml:1: merge keys"},
        {"%YAML 1.1\n---\na: 1\n", "f.yaml:1: directives"},
        {"a: 1\n---\nb: 1\n", "f.yaml:2: a second document"},
        {"a: 1\nb:\n  c: 1\na: 2\n", "f.yaml:4: key \"a\" stands twice; first at line 1"},
        {"a:\n\t- x\n", "f.yaml:2: "},
        {"a: [1\n", "f.yaml:"},
        {"a: 'x\n", "f.yaml:"},
        {"? {b: 1}\n: x\n", "f.yaml:1: a map or list cannot be a key"},
        {"? [b]\n: x\n", "f.yaml:1: a map or list cannot be a key"},
        {"a: \"x\\0y\"\n", "f.yaml:1: a NUL"},
        {"a: \xff\n", "f.yaml"},
        {"a: \x01\n", "f.yaml"},
        {"[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]", NULL},
        {"\n[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]", "f.yaml:2: nested deeper than 16"},
        {"a: &a [x,x]\nb: &b [*a,*a]\nc: &c [*b,*b]\n", "anchors"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_arena arena = {0};
        const iso_yaml *y;
        iso_error e = {0};
        iso_err got = iso_yaml_parse(rows[i].text, strlen(rows[i].text), "f.yaml", &arena, &y, &e);
        if (got != (rows[i].says ? ISO_ERR_USAGE : ISO_OK) ||
            (rows[i].says && !strstr(e.text, rows[i].says)))
            fail_msg("%s: code %d, \"%s\"", rows[i].text, got, e.text);
        assert_true((y != NULL) == (got == ISO_OK));
        iso_arena_free(&arena);
    }
}

static void S9_3_size_and_keys_are_bounded(void **state)
{
    (void)state;
    iso_buf b = {0};
    iso_error e;
    iso_arena arena = {0};
    const iso_yaml *y;
    for (int i = 0; i <= 10000; i++)
        assert_int_equal(iso_buf_printf(&b, &e, "k%d: 1\n", i), ISO_OK);
    assert_int_equal(iso_yaml_parse(b.data, b.size, "f", &arena, &y, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "f:10001: more than 10000 keys"));
    b.size = 0;
    while (b.size <= 1 << 20)
        assert_int_equal(iso_buf_printf(&b, &e, "# %090d\n", 0), ISO_OK);
    assert_int_equal(iso_yaml_parse(b.data, b.size, "f", &arena, &y, &e), ISO_ERR_USAGE);
    assert_int_equal(iso_yaml_parse(b.data, (1 << 20) - 10, "f", &arena, &y, &e), ISO_OK);
    iso_buf_free(&b);
    iso_arena_free(&arena);
    assert_int_equal(iso_yaml_read("/nowhere.yaml", &arena, &y, &e), ISO_ERR_USAGE);
    assert_int_equal(e.code, ISO_ERR_USAGE);
}

static void the_tree_knows_its_lines(void **state)
{
    (void)state;
    static const char text[] = "# comment\nname: no\nsites:\n  - a\n  - {b: 1}\nempty:\n";
    iso_arena arena = {0};
    const iso_yaml *y;
    assert_int_equal(iso_yaml_parse(text, strlen(text), "f", &arena, &y, NULL), ISO_OK);
    assert_int_equal(y->kind, ISO_YAML_MAP);
    assert_int_equal(y->count, 3);
    assert_int_equal(y->key_lines[1], 3);
    assert_string_equal(iso_yaml_key(y, "name")->scalar, "no"); /* a word, not false */
    const iso_yaml *sites = iso_yaml_key(y, "sites");
    assert_int_equal(sites->kind, ISO_YAML_LIST);
    assert_int_equal(sites->items[0]->line, 4);
    assert_int_equal(sites->items[1]->line, 5);
    assert_string_equal(iso_yaml_key(y, "empty")->scalar, "");
    assert_null(iso_yaml_key(y, "other"));
    assert_null(iso_yaml_key(sites, "a"));
    iso_arena_free(&arena);
}

typedef struct {
    const char *name;
    bool is_on;
    int64_t min_sites;
    double alpha;
    uint64_t size, wait_ms;
    int method;
    iso_yaml_strings tasks;
    const iso_yaml *extra;
} settings;

static const char *const methods[] = {"average", "iso_c", "iso_cts", NULL};
#define ROW(k, t, f) .key = k, .type = t, .offset = offsetof(settings, f)
static const iso_yaml_row rows_of_settings[] = {
    {ROW("name", ISO_YAML_STRING, name), .required = true},
    {ROW("is_on", ISO_YAML_BOOL, is_on)},
    {ROW("min_sites", ISO_YAML_INT, min_sites), .min = 1, .max = 100},
    {ROW("alpha", ISO_YAML_DOUBLE, alpha), .min = 0, .max = (double)INFINITY},
    {ROW("size", ISO_YAML_BYTES, size), .min = 1, .max = 0x1p30},
    {ROW("wait", ISO_YAML_DURATION_MS, wait_ms)},
    {ROW("method", ISO_YAML_ENUM, method), .choices = methods},
    {ROW("tasks", ISO_YAML_STRINGS, tasks)},
    {ROW("extra", ISO_YAML_NODE, extra)},
    {0},
};

static iso_err fill(const char *text, settings *s, iso_arena *arena, iso_error *e)
{
    const iso_yaml *y;
    iso_err err = iso_yaml_parse(text, strlen(text), "f.yaml", arena, &y, e);
    return err ? err : iso_yaml_fill(y, rows_of_settings, "f.yaml", s, arena, e);
}

static void a_table_fills_a_struct(void **state)
{
    (void)state;
    settings s = {.min_sites = 7};
    iso_arena arena = {0};
    iso_error e;
    if (fill("name: no\nis_on: Yes\nalpha: 0.5\nsize: 64MiB\nwait: 2h\nmethod: iso_cts\n"
             "tasks: [a, b]\nextra: {x: 1}\n",
             &s, &arena, &e))
        fail_msg("%s", e.text);
    assert_string_equal(s.name, "no");
    assert_true(s.is_on);
    assert_int_equal(s.min_sites, 7); /* the default stays */
    assert_true(s.alpha == 0.5);
    assert_int_equal(s.size, 64 << 20);
    assert_int_equal(s.wait_ms, 7200000);
    assert_int_equal(s.method, 2);
    assert_int_equal(s.tasks.count, 2);
    assert_string_equal(s.tasks.items[1], "b");
    assert_string_equal(iso_yaml_key(s.extra, "x")->scalar, "1");
    assert_int_equal(fill("name: x\ntasks: alone\n", &s, &arena, &e), ISO_OK);
    assert_int_equal(s.tasks.count, 1);
    assert_int_equal(fill("name: x\ntasks: []\n", &s, &arena, &e), ISO_OK);
    assert_int_equal(s.tasks.count, 0);
    iso_arena_free(&arena);
}

static void messages_say_where_and_what_would_be_right(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"name: x\nmin_site: 2\n",
         "f.yaml:2: unknown key \"min_site\"; did you mean \"min_sites\"?"},
        {"name: x\nmethdo:\n  a: 1\n",
         "f.yaml:2: unknown key \"methdo\"; did you mean \"method\"?"},
        {"name: x\nzzz: 1\n", "f.yaml:2: unknown key \"zzz\""},
        {"is_on: true\n", "f.yaml:1: key \"name\" is missing"},
        {"", "f.yaml:1: key \"name\" is missing"},
        {"[1]\n", "f.yaml:1: expected \"key: value\" lines"},
        {"name: x\n\nmin_sites: 0\n",
         "f.yaml:3: \"min_sites\" is \"0\"; expected a whole number, 1..100"},
        {"min_sites: 1.5\n", "expected a whole number, 1..100"},
        {"min_sites: 0x10\n", "expected a whole number"},
        {"min_sites: 99999999999999999999\n", "expected a whole number"},
        {"min_sites:\n", "\"min_sites\" is \"\"; expected"},
        {"alpha: -1\n", "\"alpha\" is \"-1\"; expected a number, at least 0"},
        {"alpha: .nan\n", "expected a number"},
        {"alpha: inf\n", "expected a number"},
        {"alpha: 1e999\n", "expected a number"},
        {"size: 2GiB\n", "expected a size such as 64MiB, 1..1073741824"},
        {"size: 64 megs\n", "expected a size"},
        {"size: -1\n", "expected a size"},
        {"wait: 10\n", "\"wait\" is \"10\"; expected a time such as 250ms, 10s or 2h"},
        {"method: iso_ctx\n", "\"method\" is \"iso_ctx\"; expected iso_cts"},
        {"method: ties\n", "expected one of average iso_c iso_cts"},
        {"is_on: maybe\n", "\"is_on\" is \"maybe\"; expected true or false"},
        {"name: [x]\n", "\"name\" is a list; expected a single value"},
        {"name: {x: 1}\n", "\"name\" is a map; expected a single value"},
        {"tasks: {x: 1}\n", "\"tasks\" is a map; expected a list of words"},
        {"tasks: [[x]]\n", "\"tasks\" is a list of words only"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        settings s = {0};
        iso_arena arena = {0};
        iso_error e = {0};
        assert_int_equal(fill(rows[i][0], &s, &arena, &e), ISO_ERR_USAGE);
        if (!strstr(e.text, rows[i][1]) || strncmp(e.text, "f.yaml:", 7) != 0)
            fail_msg("%s: \"%s\"", rows[i][0], e.text);
        iso_arena_free(&arena);
    }
}

static void sizes_and_times(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool is_size;
        int64_t want; /* -1: refused */
    } rows[] = {
        {"4096", true, 4096},
        {"1KiB", true, 1024},
        {"1.5 GiB", true, 1610612736},
        {"10MB", true, 10000000},
        {"9223372036854775807", true, INT64_MAX},
        {"0", true, 0},
        {"", true, -1},
        {"MiB", true, -1},
        {"1mib", true, -1},
        {"1 2", true, -1},
        {"+1", true, -1},
        {"1e3", true, -1},
        {"1..5KiB", true, -1},
        {"9999999999TiB", true, -1},
        {"9223372036854775808", true, -1},
        {"99999999999999999999999999999999999999", true, -1},
        {"250ms", false, 250},
        {"10s", false, 10000},
        {"1.5h", false, 5400000},
        {"5m", false, 300000},
        {"5min", false, 300000},
        {"1d", false, 86400000},
        {"0", false, 0},
        {"10", false, -1},
        {"10 weeks", false, -1},
        {"-1s", false, -1},
        {"99999999999999d", false, -1},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint64_t v = 0;
        bool is_read = rows[i].is_size ? iso_bytes_parse(rows[i].text, &v)
                                       : iso_duration_parse(rows[i].text, &v);
        if (is_read != (rows[i].want >= 0) || (is_read && v != (uint64_t)rows[i].want))
            fail_msg("%s: %d, %llu", rows[i].text, is_read, (unsigned long long)v);
    }
}

static void the_nearest_word(void **state)
{
    (void)state;
    static const char *const words[] = {"rank", "alpha", "method", "min_sites"};
    static const char *const rows[][2] = {
        {"ranks", "rank"},         {"rnak", "rank"}, {"alhpa", "alpha"}, {"mehtod", "method"},
        {"minsites", "min_sites"}, {"r", NULL},      {"zzzz", NULL},     {"", NULL},
        {"rank", "rank"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const char *near = iso_nearest(rows[i][0], words, 4);
        if ((near != NULL) != (rows[i][1] != NULL) || (near && strcmp(near, rows[i][1]) != 0))
            fail_msg("%s: %s", rows[i][0], near ? near : "none");
    }
    char longest[200];
    memset(longest, 'x', sizeof longest);
    longest[199] = 0;
    const char *both[] = {longest, "rank"};
    assert_null(iso_nearest(longest, both, 2));
    assert_string_equal(iso_nearest("rnk", both, 2), "rank");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S9_1_what_is_refused),
        cmocka_unit_test(S9_3_size_and_keys_are_bounded),
        cmocka_unit_test(the_tree_knows_its_lines),
        cmocka_unit_test(a_table_fills_a_struct),
        cmocka_unit_test(messages_say_where_and_what_would_be_right),
        cmocka_unit_test(sizes_and_times),
        cmocka_unit_test(the_nearest_word),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
