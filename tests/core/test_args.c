/* Command lines: forms of options, messages, the help on one screen. */
#include "core/args.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

typedef struct {
    bool quiet, json;
    const char *out;
    int64_t rank;
    double alpha;
    int method;
    iso_arg_list weights;
    uint64_t memory;
} options;

static const char *const methods[] = {"average", "iso_c", "iso_cts", NULL};
#define ROW(f, t, v, h)                                                                            \
    .name = #f, .type = t, .offset = offsetof(options, f), .value_name = v, .help = h
static const iso_arg_row rows_of_options[] = {
    {ROW(out, ISO_ARG_STRING, "FOLDER", "where the result goes"), .letter = 'o'},
    {ROW(method, ISO_ARG_ENUM, "NAME", "how to merge"), .letter = 'm', .choices = methods},
    {ROW(rank, ISO_ARG_INT, "N", "rank of the result"), .min = 1, .max = 4096},
    {ROW(alpha, ISO_ARG_DOUBLE, "X", "scale of the merged task vector")},
    {ROW(weights, ISO_ARG_LIST, "W,W,...", "one a task")},
    {ROW(memory, ISO_ARG_BYTES, "SIZE", "most memory to use")},
    {ROW(quiet, ISO_ARG_FLAG, NULL, "no progress"), .letter = 'q'},
    {ROW(json, ISO_ARG_FLAG, NULL, "results as JSON"), .letter = 'j'},
    {0},
};
static const iso_arg_spec spec = {
    .usage = "isofed merge [options] ADAPTER...",
    .summary = "Merges adapters into one.",
    .example = "isofed merge a b -o merged",
    .rows = rows_of_options,
    .min_words = 1,
    .max_words = 3,
};

/* Splits at spaces; each call has its own words, since lists are cut in place. */
static iso_err parse(const char *line, char *room, options *o, iso_arg_list *words, bool *is_done,
                     iso_error *e)
{
    char *argv[32];
    int argc = 0;
    strcpy(room, line);
    for (char *w = strtok(room, " "); w; w = strtok(NULL, " "))
        argv[argc++] = w;
    *o = (options){.rank = 16, .alpha = 1, .method = 2};
    return iso_args_parse(&spec, argc, argv, o, words, is_done, e);
}

static void options_in_all_their_forms(void **state)
{
    (void)state;
    options o;
    iso_arg_list words;
    bool is_done;
    iso_error e;
    char room[256];
    if (parse("merge a -o x --rank 8 --alpha=-0.5 -qj b --weights 1,2 --weights=3 --memory 2GiB "
              "-miso_c -- --rank",
              room, &o, &words, &is_done, &e))
        fail_msg("%s", e.text);
    assert_false(is_done);
    assert_string_equal(o.out, "x");
    assert_int_equal(o.rank, 8);
    assert_true(o.alpha == -0.5);
    assert_true(o.quiet && o.json);
    assert_int_equal(o.weights.count, 3);
    assert_string_equal(o.weights.items[2], "3");
    assert_true(o.memory == (uint64_t)2 << 30);
    assert_int_equal(o.method, 1);
    assert_int_equal(words.count, 3);
    assert_string_equal(words.items[2], "--rank");
    assert_int_equal(
        parse("merge - --alpha -2 --rank 4 --rank 5 -qq", room, &o, &words, &is_done, &e), ISO_OK);
    assert_string_equal(words.items[0], "-");
    assert_true(o.alpha == -2);
    assert_int_equal(o.rank, 5);
    assert_int_equal(o.method, 2);
}

static void messages_name_what_would_be_right(void **state)
{
    (void)state;
    static const char *const rows[][2] = {
        {"merge a --ranks 3", "unknown option \"--ranks\"; did you mean \"--rank\"?"},
        {"merge a --hlep", "did you mean \"--help\"?"},
        {"merge a --zzzzzz=1", "unknown option \"--zzzzzz\"; --help lists them"},
        {"merge a -x", "unknown option \"-x\""},
        {"merge a --rank", "--rank needs a value: N"},
        {"merge a -o", "--out needs a value: FOLDER"},
        {"merge a --rank 0", "--rank is \"0\"; expected a whole number, 1..4096"},
        {"merge a --rank 2.5", "expected a whole number, 1..4096"},
        {"merge a --alpha nan", "--alpha is \"nan\"; expected a number"},
        {"merge a --memory lots", "expected a size such as 64MiB"},
        {"merge a --method iso-cts", "--method is \"iso-cts\"; expected iso_cts"},
        {"merge a --method ties", "expected one of average iso_c iso_cts"},
        {"merge a --quiet=yes", "--quiet takes no value"},
        {"merge a --weights 1,,2", "--weights has an empty item"},
        {"merge", "the argument is missing; usage: isofed merge"},
        {"merge a b c d", "\"d\" is one too many; usage: isofed merge"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        options o;
        iso_arg_list words;
        bool is_done;
        iso_error e = {0};
        char room[256];
        assert_int_equal(parse(rows[i][0], room, &o, &words, &is_done, &e), ISO_ERR_USAGE);
        if (!strstr(e.text, rows[i][1]))
            fail_msg("%s: \"%s\"", rows[i][0], e.text);
    }
}

/* The text of stdout while `line` is parsed. */
static char *printed(const char *line, bool *is_done)
{
    options o;
    iso_arg_list words;
    iso_error e;
    char room[256];
    static char text[8192];
    FILE *file = tmpfile();
    assert_non_null(file);
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    dup2(fileno(file), STDOUT_FILENO);
    iso_err err = parse(line, room, &o, &words, is_done, &e);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    rewind(file);
    text[fread(text, 1, sizeof text - 1, file)] = 0;
    fclose(file);
    assert_int_equal(err, ISO_OK);
    return text;
}

static void help_fits_a_screen_and_shows_defaults(void **state)
{
    (void)state;
    static const char *const lines[] = {"merge --help", "merge a -h",
                                        "merge --rank 3 --help --bad"};
    for (size_t i = 0; i < 3; i++) {
        bool is_done;
        const char *text = printed(lines[i], &is_done);
        assert_true(is_done);
        static const char *const parts[] = {"Merges adapters into one.",
                                            "usage: isofed merge",
                                            "  -o, --out FOLDER",
                                            "[16]",
                                            "1..4096",
                                            "average, iso_c, iso_cts",
                                            "[iso_cts]",
                                            "  -h, --help",
                                            "example:\n  isofed merge a b -o merged"};
        for (size_t k = 0; k < sizeof parts / sizeof *parts; k++)
            if (!strstr(text, parts[k]))
                fail_msg("no \"%s\" in\n%s", parts[k], text);
        int count = 0;
        for (const char *p = text; *p; count++) {
            size_t n = strcspn(p, "\n");
            assert_true(n <= 80);
            p += n + (p[n] == '\n');
        }
        assert_true(count <= 24);
    }
    bool is_done;
    printed("merge a --out --help", &is_done); /* a value, however it looks */
    assert_false(is_done);
    printed("merge -- --help", &is_done);
    assert_false(is_done);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_in_all_their_forms),
        cmocka_unit_test(messages_name_what_would_be_right),
        cmocka_unit_test(help_fits_a_screen_and_shows_defaults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
