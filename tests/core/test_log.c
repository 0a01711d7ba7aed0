/* Log lines: both forms, text from outside stays inside its value and its line, repeats. */
#include "core/json.h"
#include "core/log.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static uint64_t clock_ms;

static uint64_t now(void *ctx)
{
    (void)ctx;
    return clock_ms;
}

/* A log into memory. */
typedef struct {
    iso_log log;
    char *text;
    size_t size;
} capture;

static void open_capture(capture *c, bool json)
{
    *c = (capture){0};
    c->log = (iso_log){.level = ISO_LOG_INFO, .json = json, .program = "test"};
    c->log.out = open_memstream(&c->text, &c->size);
    assert_non_null(c->log.out);
}

static void close_capture(capture *c)
{
    fclose(c->log.out);
    free(c->text);
}

static void lines_have_two_forms(void **state)
{
    (void)state;
    static const char *const want[2] = {
        "time=2026-11-25T10:00:00.007Z level=info program=test event=round_closed round=3 "
        "name=\"a b\" share=0.5 ok=true id=007\n",
        "{\"time\":\"2026-11-25T10:00:00.007Z\",\"level\":\"info\",\"program\":\"test\","
        "\"event\":\"round_closed\",\"round\":3,\"name\":\"a b\",\"share\":0.5,\"ok\":true,"
        "\"id\":\"007\"}\n",
    };
    for (int json = 0; json < 2; json++) {
        capture c;
        open_capture(&c, json);
        c.log.wall_ms = now;
        clock_ms = 1795600800007;
        iso_log_event(&c.log, ISO_LOG_INFO, "round_closed",
                      "round=%d name=\"%s\" share=%g ok=%s id=%s", 3, "a b", 0.5, "true", "007");
        iso_log_event(&c.log, ISO_LOG_DEBUG, "hidden", "a=1");
        assert_string_equal(c.text, want[json]);
        close_capture(&c);
    }
    capture c;
    open_capture(&c, false);
    iso_log_event(&c.log, ISO_LOG_ERROR, "bare", "%s", "");
    assert_string_equal(c.text, "level=error program=test event=bare\n");
    close_capture(&c);
    iso_log nowhere = {0};
    iso_log_event(NULL, ISO_LOG_ERROR, "x", "a=1");
    iso_log_event(&nowhere, ISO_LOG_ERROR, "x", "a=1");
}

static const char *const hostile[] = {
    "a\" b=\"c",       "line\nbreak", "\x1b[31mred", "C:\\x\\new", "\xff\xfe", "tab\t",
    "\xe2\x80\xaetxt", "\xc2\x9b",    "\xc3\xa9 ok", "\\",         "\\u12",    "",
};

static void text_from_outside_stays_in_its_value(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof hostile / sizeof *hostile; i++)
        for (int raw = 0; raw < 3; raw++) /* quoted by the helper; forgotten; not even in quotes */
            for (int json = 0; json < 2; json++) {
                capture c;
                char quoted[128];
                open_capture(&c, json);
                iso_log_quote(quoted, sizeof quoted, hostile[i]);
                iso_log_event(&c.log, ISO_LOG_WARN, "odd",
                              raw == 2 ? "text=%s" : "text=\"%s\" end=1",
                              raw ? hostile[i] : quoted);
                assert_ptr_equal(strchr(c.text, '\n'), c.text + c.size - 1);
                for (size_t k = 0; k + 1 < c.size; k++)
                    assert_true((unsigned char)c.text[k] >= 0x20);
                if (json) {
                    iso_json *j;
                    iso_error e;
                    if (iso_json_parse(c.text, c.size, "line", &j, &e))
                        fail_msg("%s: %s", e.text, c.text);
                    if (raw == 0) {
                        assert_int_equal(iso_json_count(j), 5);
                        assert_non_null(iso_json_str(iso_json_key(j, "text")));
                    }
                    iso_json_free(j);
                }
                close_capture(&c);
            }
    static const char *const rows[][2] = {
        {"plain \xc3\xa9", "plain \xc3\xa9"},
        {"a\"b\\", "a\\\"b\\\\"},
        {"\n", "\\n"},
        {"\x1b", "\\u001b"},
        {"\xff", "\\\\xff"},
        {"\xc2\x9b", "\\u009b"},
        {"\xe2\x80\xae", "\\u202e"},
        {"\xe2\x81\xa6", "\\u2066"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        char out[64];
        iso_log_quote(out, sizeof out, rows[i][0]);
        assert_string_equal(out, rows[i][1]);
    }
    char tiny[4];
    iso_log_quote(tiny, sizeof tiny, "ab\ncd"); /* no half escapes */
    assert_string_equal(tiny, "ab");
}

static void S9_3_a_line_has_at_most_4_KiB(void **state)
{
    (void)state;
    static char text[9000];
    memset(text, 'x', sizeof text - 1);
    for (int json = 0; json < 2; json++) {
        capture c;
        open_capture(&c, json);
        iso_log_event(&c.log, ISO_LOG_WARN, "long", "a=1 text=\"%s\"", text);
        assert_true(c.size <= 4096);
        assert_ptr_equal(strchr(c.text, '\n'), c.text + c.size - 1);
        if (json) {
            iso_json *j;
            assert_int_equal(iso_json_parse(c.text, c.size, "line", &j, NULL), ISO_OK);
            iso_json_free(j);
        }
        close_capture(&c);
    }
}

static void repeats_are_counted_and_summed_up(void **state)
{
    (void)state;
    capture c;
    open_capture(&c, false);
    c.log.program = NULL;
    c.log.wall_ms = now;
    c.log.window_ms = 1000;
    clock_ms = 0;
    for (int i = 0; i < 5; i++)
        iso_log_event(&c.log, ISO_LOG_WARN, "refused", "i=%d", i);
    iso_log_event(&c.log, ISO_LOG_WARN, "other", "i=0");
    clock_ms = 1000;
    iso_log_event(&c.log, ISO_LOG_WARN, "refused", "i=9");
    static const char *const parts[] = {"event=refused i=0\n", "event=other i=0\n",
                                        "event=log_repeats of=refused count=4 window_ms=1000\n",
                                        "event=refused i=9\n"};
    const char *at = c.text;
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        at = strstr(at, parts[i]);
        if (!at)
            fail_msg("no \"%s\" in its place in\n%s", parts[i], c.text);
    }
    assert_null(strstr(c.text, "i=1\n"));
    /* More events than slots: written, not lost. */
    for (int i = 0; i < 10; i++) {
        char event[24];
        snprintf(event, sizeof event, "event_%d", i);
        iso_log_event(&c.log, ISO_LOG_WARN, event, "i=%d", i);
        assert_non_null(strstr(c.text, event));
    }
    /* A clock set back does not silence anything for long. */
    clock_ms = 10;
    iso_log_event(&c.log, ISO_LOG_WARN, "refused", "i=77");
    assert_non_null(strstr(c.text, "i=77"));
    close_capture(&c);
}

static void levels_have_names(void **state)
{
    (void)state;
    iso_level level;
    assert_true(iso_log_parse_level("warn", &level));
    assert_int_equal(level, ISO_LOG_WARN);
    assert_false(iso_log_parse_level("WARN", &level));
    assert_false(iso_log_parse_level("", &level));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_have_two_forms),
        cmocka_unit_test(text_from_outside_stays_in_its_value),
        cmocka_unit_test(S9_3_a_line_has_at_most_4_KiB),
        cmocka_unit_test(repeats_are_counted_and_summed_up),
        cmocka_unit_test(levels_have_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
