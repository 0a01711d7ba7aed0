/* Plots and pages: well formed whatever the data and the text, nothing loaded or run, labels within
 * the picture. How they look was judged by eye. */
#include "core/fsio.h"
#include "core/report.h"
#include "core/rng.h"
#include "core/svg_draw.h"
#include "core/utf8.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* ---- a judge of markup ---- */

/* Whether tags are closed in order, attributes quoted and nothing escaped wrongly. Void elements of
 * HTML need no end. */
static const char *fault_in(const char *text, size_t size)
{
    static const char *const voids[] = {"meta", "img", "!doctype"};
    char stack[32][16];
    size_t depth = 0;
    if (!iso_utf8_is_valid(text, size) || strlen(text) != size)
        return "not UTF-8";
    for (const char *p = text; *p;) {
        if (*p == '&') {
            static const char *const known[] = {"&amp;", "&lt;", "&gt;", "&quot;"};
            bool is_known = false;
            for (size_t i = 0; i < 4; i++)
                is_known = is_known || !strncmp(p, known[i], strlen(known[i]));
            if (!is_known)
                return p;
        }
        if (*p != '<') {
            p++;
            continue;
        }
        bool is_end = p[1] == '/';
        const char *name = p + 1 + is_end;
        size_t n = strcspn(name, " >/\n");
        if (!n || n > 15)
            return p;
        const char *at = name + n;
        bool is_empty = false;
        while (*at && *at != '>') {
            is_empty = *at == '/';
            if (*at == '<')
                return p;
            if (*at == '"' && !(at = strchr(at + 1, '"')))
                return p;
            at++;
        }
        if (!*at)
            return p;
        bool is_void = false;
        for (size_t i = 0; i < 3; i++)
            is_void = is_void || (strlen(voids[i]) == n && !strncmp(voids[i], name, n));
        if (is_end) {
            if (!depth || strlen(stack[depth - 1]) != n || strncmp(stack[depth - 1], name, n) != 0)
                return p;
            depth--;
        } else if (!is_empty && !is_void) {
            if (depth == 32)
                return p;
            snprintf(stack[depth++], sizeof stack[0], "%.*s", (int)n, name);
        }
        p = at + 1;
        if (!is_end && n == 5 && !strncmp(name, "style", 5)) /* its text is no markup */
            p = strstr(p, "</style>");
    }
    return depth ? "tags left open" : NULL;
}

/* Numbers in attributes are finite, and every text begins within the picture. */
static void check_svg(const iso_buf *svg, double width, double height)
{
    iso_buf copy = {0};
    assert_int_equal(iso_buf_append(&copy, svg->data, svg->size, NULL), ISO_OK);
    assert_int_equal(iso_buf_append(&copy, "", 1, NULL), ISO_OK);
    char *text = (char *)copy.data;
    const char *fault = fault_in(text, svg->size);
    if (fault)
        fail_msg("%.200s", fault);
    for (const char *p = text; (p = strchr(p, '"')); p++)
        if (!strncmp(p, "\"nan", 4) || !strncmp(p, "\"-nan", 5) || !strncmp(p, "\"inf", 4) ||
            !strncmp(p, "\"-inf", 5))
            fail_msg("%.80s", p - 20);
    for (const char *p = text; (p = strstr(p, "<text x=\"")); p++) {
        double x, y;
        assert_int_equal(sscanf(p, "<text x=\"%lf\" y=\"%lf\"", &x, &y), 2);
        if (x < 0 || x > width || y < 0 || y > height)
            fail_msg("outside %gx%g: %.80s", width, height, p);
    }
    iso_buf_free(&copy);
}

/* ---- plots ---- */

static const char *const hostile[] = {
    "<script>alert(1)</script>", "a & b \"c\"", "\xff\x01 bad", "",
    "a very long name of a task that will not fit anywhere at all"};

static double awkward(iso_rng *r)
{
    switch (iso_rng_below(r, 12)) {
    case 0:
        return (double)NAN;
    case 1:
        return (double)INFINITY;
    case 2:
        return 0;
    case 3:
        return iso_rng_normal(r) * 1e12;
    case 4:
        return iso_rng_normal(r) * 1e-12;
    default:
        return iso_rng_normal(r);
    }
}

static void plots_are_well_formed_whatever_comes(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 300; seed++) {
        iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 2);
        enum { N = 60 };
        double x[N], y[3 * N];
        for (int i = 0; i < N; i++)
            x[i] = awkward(&r);
        for (int i = 0; i < 3 * N; i++)
            y[i] = awkward(&r);
        size_t n = iso_rng_below(&r, N), k = iso_rng_below(&r, 4);
        iso_plot p = {.title = hostile[iso_rng_below(&r, 5)],
                      .x_label = iso_rng_below(&r, 2) ? hostile[iso_rng_below(&r, 5)] : NULL,
                      .y_label = iso_rng_below(&r, 2) ? hostile[iso_rng_below(&r, 5)] : NULL,
                      .width = iso_rng_below(&r, 2) ? 400 : 0,
                      .height = iso_rng_below(&r, 2) ? 250 : 0,
                      .log_y = iso_rng_below(&r, 2)};
        if (iso_rng_below(&r, 3) == 0)
            p.y_max = 2;
        double width = p.width ? p.width : 640;
        iso_series s[3];
        for (size_t i = 0; i < 3; i++)
            s[i] = (iso_series){hostile[i], iso_rng_below(&r, 2) ? x : NULL, y + i * N, n};
        const char *names[N];
        iso_span spans[N];
        for (size_t i = 0; i < N; i++) {
            names[i] = hostile[iso_rng_below(&r, 5)];
            spans[i] = (iso_span){names[i], hostile[iso_rng_below(&r, 5)], x[i], y[i], (int)i - 5};
        }
        size_t groups = iso_rng_below(&r, 12);
        iso_error e = {0};
        iso_buf out = {0};
        for (int kind = 0; kind < 4; kind++) {
            out.size = 0;
            iso_err err =
                kind == 0   ? iso_svg_lines(&out, &p, s, k, &e)
                : kind == 1 ? iso_svg_bars(&out, &p, names, groups, hostile, k, y, &e)
                : kind == 2 ? iso_svg_heatmap(&out, &p, names, groups, names + 20, k, y, "%.3f", &e)
                            : iso_svg_timeline(&out, &p, spans, n, &e);
            if (err)
                fail_msg("seed %d, kind %d: %s", (int)seed, kind, e.text);
            double height = p.height ? p.height : 5000;
            check_svg(&out, width, height);
        }
        iso_buf_free(&out);
    }
}

static void ticks_are_round_numbers(void **state)
{
    (void)state;
    static const struct {
        double min, max;
        bool is_log, whole;
        const char *labels; /* with blanks between */
    } rows[] = {
        {0, 1, false, false, "0.0 0.2 0.4 0.6 0.8 1.0"},
        {0.693, 0.744, false, false, "0.69 0.70 0.71 0.72 0.73 0.74 0.75"},
        {0, 63, false, true, "0 10 20 30 40 50 60 70"},
        {0, 2, false, true, "0 1 2"},
        {-7.8, 11.7, false, false, "-10 -5 0 5 10 15"},
        {0, 123456789, false, false, "0 2e7 4e7 6e7 8e7 1e8 1.2e8 1.4e8"},
        {0.012, 12, true, false, "0.01 0.1 1 10 100"},
        {3, 40, true, false, "1 2 5 10 20 50 100"},
        {5, 5, false, false, "4.4 4.6 4.8 5.0 5.2 5.4 5.6"},
        {0, 0, false, false, "-1.0 -0.5 0.0 0.5 1.0"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_axis a;
        char all[256] = "", one[32];
        iso_axis_make(&a, rows[i].min, rows[i].max, rows[i].is_log, true, rows[i].whole, 6);
        a.from = 0;
        a.to = 100;
        for (size_t k = 0; k < a.tick_count; k++) {
            iso_axis_label(&a, a.ticks[k], one, sizeof one);
            snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", k ? " " : "", one);
            double at = iso_axis_at(&a, a.ticks[k]);
            assert_true(at > -1e-6 && at < 100 + 1e-6);
        }
        if (strcmp(all, rows[i].labels) != 0)
            fail_msg("%g..%g: %s", rows[i].min, rows[i].max, all);
        assert_true(a.min <= rows[i].min && a.max >= rows[i].max);
    }
}

static void number_formats_are_checked(void **state)
{
    (void)state;
    static const char *const good[] = {"%.3f", "%g", "%+5.1f%%", "%.0f"};
    static const char *const bad[] = {"%s", "%n",    "%d",  "",    "x",
                                      "%",  "%f %f", "%*f", "%lf", "%.2f%s"};
    double v = 0.5;
    const char *name = "a";
    iso_plot p = {0};
    iso_buf out = {0};
    iso_error e;
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(iso_svg_heatmap(&out, &p, &name, 1, &name, 1, &v, good[i], &e), ISO_OK);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(iso_svg_heatmap(&out, &p, &name, 1, &name, 1, &v, bad[i], &e),
                         ISO_ERR_INTERNAL);
    iso_buf_free(&out);
}

static void long_names_end_in_an_ellipsis(void **state)
{
    (void)state;
    char out[64];
    iso_text_fit(out, sizeof out, "short", 10, 100);
    assert_string_equal(out, "short");
    iso_text_fit(out, sizeof out, "a much longer name", 10, 60);
    assert_non_null(strstr(out, "\xe2\x80\xa6"));
    assert_true(iso_text_width(out, 10) <= 60);
    iso_text_fit(out, sizeof out, "x", 10, -5);
    assert_string_equal(out, "\xe2\x80\xa6");
    char tiny[8];
    iso_text_fit(tiny, sizeof tiny, "\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9\xc3\xa9", 10, 1000);
    assert_true(iso_utf8_is_valid(tiny, strlen(tiny)));
}

/* ---- pages ---- */

static void a_page_is_well_formed_and_loads_nothing(void **state)
{
    (void)state;
    iso_report r;
    iso_error e;
    iso_buf svg = {0};
    static const char *const header[] = {"task", "score", "note"};
    static const char *const cells[] = {"<b>steel</b>", "93.1 %", "a & b", "solar", "-", NULL};
    static const double y[] = {1, 2, 3};
    static const iso_series s = {"<s>", NULL, y, 3};
    static uint8_t rgb[5 * 3 * 3];
    iso_plot p = {.title = hostile[0]};
    assert_int_equal(iso_report_begin(&r, hostile[0], hostile[1], &e), ISO_OK);
    assert_int_equal(iso_report_heading(&r, hostile[2], &e), ISO_OK);
    assert_int_equal(iso_report_text(&r, &e, "%s: %d%%", hostile[0], 5), ISO_OK);
    assert_int_equal(iso_report_table(&r, hostile[1], header, 3, cells, 2, &e), ISO_OK);
    assert_int_equal(iso_svg_lines(&svg, &p, &s, 1, &e), ISO_OK);
    assert_int_equal(iso_report_svg(&r, &svg, hostile[0], &e), ISO_OK);
    assert_int_equal(iso_report_image(&r, rgb, 5, 3, hostile[0], &e), ISO_OK);
    assert_int_equal(iso_report_image(&r, rgb, 0, 3, "", &e), ISO_ERR_SHAPE);
    assert_int_equal(iso_report_image(&r, rgb, 5, 5000, "", &e), ISO_ERR_SHAPE);
    char folder[] = "/tmp/isofed-test-report-XXXXXX";
    assert_non_null(mkdtemp(folder));
    char *path = iso_path_join(folder, "report.html");
    for (int again = 0; again < 2; again++) {
        iso_buf page;
        assert_int_equal(iso_report_write(&r, path, &e), ISO_OK);
        assert_int_equal(iso_read_file(path, 1 << 20, &page, &e), ISO_OK);
        const char *text = (char *)page.data;
        const char *fault = fault_in(text, page.size);
        if (fault)
            fail_msg("%.200s", fault);
        static const char *const never[] = {"<script", "<link",  "<iframe", "url(",
                                            "@import", "onload", "<b>"};
        for (size_t i = 0; i < sizeof never / sizeof *never; i++)
            if (strstr(text, never[i]))
                fail_msg("%s", never[i]);
        /* The only address is the name of the SVG language. */
        for (const char *at = text; (at = strstr(at, "http:")); at++)
            assert_int_equal(strncmp(at, "http://www.w3.org/2000/svg\"", 27), 0);
        assert_null(strstr(text, "https:"));
        assert_non_null(strstr(text, "<td class=\"number\">93.1 %</td>"));
        assert_non_null(strstr(text, "<td>&lt;b&gt;steel&lt;/b&gt;</td>"));
        assert_non_null(strstr(text, "src=\"data:image/png;base64,iVBORw0KGgo"));
        assert_string_equal(text + page.size - 16, "</body>\n</html>\n");
        iso_buf_free(&page);
    }
    iso_report_free(&r);
    iso_buf_free(&svg);
    free(path);
    assert_int_equal(iso_remove_tree(folder, &e), ISO_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plots_are_well_formed_whatever_comes),
        cmocka_unit_test(ticks_are_round_numbers),
        cmocka_unit_test(number_formats_are_checked),
        cmocka_unit_test(long_names_end_in_an_ellipsis),
        cmocka_unit_test(a_page_is_well_formed_and_loads_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
