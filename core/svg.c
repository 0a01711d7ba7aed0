/* The four plots of reports. Colours are named in the picture's style, so that light and dark need
 * no second picture; text is measured generously, since fonts differ. */
#include "core/svg.h"

#include "core/svg_draw.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDTH = 640, HEIGHT = 360, SMALL = 11 };
static const double TINY = 9.5;

static iso_pen pen_of(iso_buf *out, iso_error *e)
{
    return (iso_pen){.out = out, .before = out->size, .e = e};
}

static double width_of(const iso_plot *p)
{
    return p->width > 0 ? p->width : WIDTH;
}

typedef struct {
    double min, max;
    bool is_whole;
} range;

static range empty_range(void)
{
    return (range){(double)INFINITY, -(double)INFINITY, true};
}

static void widen(range *r, double v)
{
    if (!isfinite(v))
        return;
    r->min = fmin(r->min, v);
    r->max = fmax(r->max, v);
    r->is_whole = r->is_whole && v == floor(v);
}

static bool is_empty(const range *r)
{
    return r->min > r->max;
}

static void say_no_data(iso_pen *pen, const iso_frame *f)
{
    iso_pen_text(pen, (f->left + f->right) / 2, (f->top + f->bottom) / 2, "middle", "small", 0,
                 "no data");
}

/* The y axis of lines and bars: the caller's limits, or the data's. */
static void make_y_axis(iso_axis *y, const iso_plot *p, range r, double height)
{
    bool is_given = p->y_min != 0 || p->y_max != 0;
    if (is_given && !(p->log_y && p->y_min <= 0))
        r = (range){p->y_min, p->y_max, false};
    else if (is_empty(&r))
        r = (range){p->log_y ? 1 : 0, p->log_y ? 10 : 1, false};
    iso_axis_make(y, r.min, r.max, p->log_y, !is_given, false, (int)fmax(2, fmin(8, height / 48)));
}

/* ---- lines ---- */

static double x_of(const iso_series *s, size_t i)
{
    return s->x ? s->x[i] : (double)i;
}

static bool is_drawn(const iso_plot *p, const iso_series *s, size_t i)
{
    return isfinite(s->y[i]) && isfinite(x_of(s, i)) && !(p->log_y && s->y[i] <= 0);
}

static void draw_series(iso_pen *pen, const iso_plot *p, const iso_series *s, size_t colour,
                        const iso_axis *x, const iso_axis *y)
{
    enum { MOST_MARKS = 30 };
    iso_pen_printf(pen, "<path class=\"line s%zu\" d=\"", colour);
    for (size_t i = 0; i < s->n; i++) {
        if (!is_drawn(p, s, i))
            continue;
        bool is_first = i == 0 || !is_drawn(p, s, i - 1);
        iso_pen_printf(pen, "%c%.1f %.1f", is_first ? 'M' : 'L', iso_axis_at(x, x_of(s, i)),
                       iso_axis_at(y, s->y[i]));
    }
    iso_pen_printf(pen, "\"/>\n");
    for (size_t i = 0; i < s->n; i++) {
        bool is_alone =
            (i == 0 || !is_drawn(p, s, i - 1)) && (i + 1 == s->n || !is_drawn(p, s, i + 1));
        if (is_drawn(p, s, i) && (is_alone || s->n <= MOST_MARKS))
            iso_pen_printf(pen, "<circle class=\"f%zu\" cx=\"%.1f\" cy=\"%.1f\" r=\"2.8\"/>\n",
                           colour, iso_axis_at(x, x_of(s, i)), iso_axis_at(y, s->y[i]));
    }
}

iso_err iso_svg_lines(iso_buf *out, const iso_plot *p, const iso_series *s, size_t n, iso_error *e)
{
    iso_pen pen = pen_of(out, e);
    iso_frame f;
    iso_axis x, y;
    range rx = empty_range(), ry = empty_range();
    const char **labels = iso_calloc(n, sizeof *labels);
    if (!labels)
        return iso_nomem(e, n * sizeof *labels);
    for (size_t k = 0; k < n; k++) {
        labels[k] = s[k].label ? s[k].label : "";
        for (size_t i = 0; i < s[k].n; i++)
            if (is_drawn(p, &s[k], i)) {
                widen(&rx, x_of(&s[k], i));
                widen(&ry, s[k].y[i]);
            }
    }
    bool has_data = !is_empty(&rx);
    if (!has_data)
        rx = (range){0, 1, false};
    double height = p->height > 0 ? p->height : HEIGHT;
    make_y_axis(&y, p, ry, height - 80);
    iso_axis_make(&x, rx.min, rx.max, false, false, rx.is_whole, 8);
    iso_frame_begin(&pen, &f, p, width_of(p), height, labels, n, iso_axis_width(&y) + 8, 22);
    y.from = f.bottom;
    y.to = f.top;
    x.from = f.left + 8;
    x.to = f.right - 8;
    iso_draw_y_axis(&pen, &f, &y);
    iso_draw_x_axis(&pen, &f, &x, false);
    /* An inner picture cuts off what lies beyond the caller's limits. */
    double pad = 3;
    iso_pen_printf(&pen,
                   "<svg x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
                   "viewBox=\"%.1f %.1f %.1f %.1f\">\n",
                   f.left, f.top - pad, f.right - f.left, f.bottom - f.top + 2 * pad, f.left,
                   f.top - pad, f.right - f.left, f.bottom - f.top + 2 * pad);
    for (size_t k = 0; k < n; k++)
        draw_series(&pen, p, &s[k], k % ISO_SVG_COLOURS, &x, &y);
    iso_pen_printf(&pen, "</svg>\n");
    if (!has_data)
        say_no_data(&pen, &f);
    iso_frame_end(&pen);
    free(labels);
    return pen.err;
}

/* ---- bars ---- */

static void draw_bar(iso_pen *pen, const iso_frame *f, const iso_axis *y, double x, double width,
                     size_t colour, double v, const char *name)
{
    double base = y->is_log || y->min > 0 ? y->min : y->max < 0 ? y->max : 0;
    double shown = fmin(fmax(v, y->min), y->max);
    double a = iso_axis_at(y, shown), b = iso_axis_at(y, base);
    char text[32], tip[160];
    if (y->decimals < 0)
        snprintf(text, sizeof text, "%.3g", v);
    else /* one place more than the axis, the same for all bars */
        snprintf(text, sizeof text, "%.*f", y->decimals + 1, v);
    snprintf(tip, sizeof tip, "%.100s: %.6g", name, v);
    iso_pen_printf(pen,
                   "<rect class=\"f%zu\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\">",
                   colour, x, fmin(a, b), fmax(width - 1, 0.5), fmax(fabs(a - b), 0.5));
    iso_pen_tooltip(pen, tip);
    iso_pen_printf(pen, "</rect>\n");
    bool is_up = v >= base;
    if (iso_text_width(text, TINY) <= width) {
        double at = is_up ? fmin(a, b) - 4 : fmax(a, b) + 12;
        if (at > f->top - 4 && at < f->bottom + 2)
            iso_pen_text(pen, x + width / 2, at, "middle", "tiny", 0, text);
    }
}

iso_err iso_svg_bars(iso_buf *out, const iso_plot *p, const char *const *groups, size_t group_count,
                     const char *const *series, size_t series_count, const double *values,
                     iso_error *e)
{
    iso_pen pen = pen_of(out, e);
    iso_frame f;
    iso_axis y;
    range r = empty_range();
    size_t n = group_count * series_count;
    for (size_t i = 0; i < n; i++)
        if (!(p->log_y && values[i] <= 0))
            widen(&r, values[i]);
    bool has_data = !is_empty(&r);
    if (has_data && !p->log_y) { /* a bar's length is its value: from zero */
        widen(&r, 0);
        if (r.max > 0) /* room for the numbers */
            r.max += (r.max - r.min) * 0.04;
    }
    double width = width_of(p), height = p->height > 0 ? p->height : HEIGHT;
    double names = iso_names_height(groups, group_count, width * 0.9 / (double)(group_count + 1));
    make_y_axis(&y, p, r, height - 60 - names);
    double left = iso_axis_width(&y) + 8;
    double slot = (width - left - 48) / (double)(group_count ? group_count : 1);
    iso_frame_begin(&pen, &f, p, width, height, series, series_count, left,
                    iso_names_height(groups, group_count, slot));
    y.from = f.bottom;
    y.to = f.top;
    iso_draw_y_axis(&pen, &f, &y);
    slot = (f.right - f.left) / (double)(group_count ? group_count : 1);
    double bar = fmin(slot * 0.84 / (double)(series_count ? series_count : 1), 64);
    for (size_t g = 0; g < group_count; g++)
        for (size_t k = 0; k < series_count; k++) {
            double v = values[g * series_count + k];
            if (!isfinite(v) || (p->log_y && v <= 0))
                continue;
            double x =
                f.left + slot * ((double)g + 0.5) + bar * ((double)k - (double)series_count / 2);
            draw_bar(&pen, &f, &y, x, bar, k % ISO_SVG_COLOURS, v, series[k]);
        }
    double zero = y.is_log || y.min > 0 ? f.bottom : y.max < 0 ? f.top : iso_axis_at(&y, 0);
    iso_pen_printf(&pen, "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                   f.left, f.right, zero, zero);
    if (group_count)
        iso_draw_names(&pen, &f, groups, group_count);
    if (!has_data)
        say_no_data(&pen, &f);
    iso_frame_end(&pen);
    return pen.err;
}

/* ---- heat map ---- */

/* One conversion of a double and nothing else that printf would act on. */
static bool is_number_format(const char *s)
{
    int conversions = 0;
    for (; *s; s++) {
        if (*s != '%')
            continue;
        if (s[1] == '%') {
            s++;
            continue;
        }
        s++;
        s += strspn(s, "+- 0#.123456789");
        if (!*s || !strchr("eEfFgG", *s))
            return false;
        conversions++;
    }
    return conversions == 1;
}

static double widest_of(const char *const *names, size_t n)
{
    double widest = 0;
    for (size_t i = 0; i < n; i++)
        widest = fmax(widest, iso_text_width(names[i], SMALL));
    return widest;
}

static void draw_cell(iso_pen *pen, double x, double y, double w, double h, double part,
                      const char *text)
{
    double strength = 0.06 + 0.86 * part;
    double font = fmin(12, fmax(6, (w - 4) / fmax(iso_text_width(text, 1), 0.1)));
    iso_pen_printf(pen,
                   "<rect class=\"f0\" fill-opacity=\"%.2f\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" "
                   "height=\"%.1f\"/>\n",
                   strength, x, y, w - 1, h - 1);
    iso_pen_printf(
        pen,
        "<text class=\"%s\" style=\"font-size:%.1fpx\" text-anchor=\"middle\" x=\"%.1f\" "
        "y=\"%.1f\">%s</text>\n",
        strength > 0.55 ? "on" : "cell", font, x + (w - 1) / 2, y + h / 2 + font * 0.35, text);
}

iso_err iso_svg_heatmap(iso_buf *out, const iso_plot *p, const char *const *rows, size_t row_count,
                        const char *const *cols, size_t col_count, const double *values,
                        const char *number_format, iso_error *e)
{
    enum { CELL = 34, WIDEST_CELL = 96 };
    if (!is_number_format(number_format))
        return iso_fail(e, ISO_ERR_INTERNAL, "number format \"%s\"; expected one such as %%.2f",
                        number_format);
    iso_pen pen = pen_of(out, e);
    iso_frame f;
    range r = empty_range();
    for (size_t i = 0; i < row_count * col_count; i++)
        widen(&r, values[i]);
    double width = width_of(p), left = fmin(widest_of(rows, row_count) + 8, width * 0.45);
    double cell = (width - left - 48) / (double)(col_count ? col_count : 1);
    double names = iso_names_height(cols, col_count, fmin(cell, WIDEST_CELL));
    double around = iso_frame_top(p, width, NULL, 0) + 6 + names + (p->x_label ? 20 : 0);
    double height = p->height > 0 ? p->height : around + CELL * (double)row_count;
    iso_frame_begin(&pen, &f, p, width, height, NULL, 0, left, names);
    cell = fmin((f.right - f.left) / (double)(col_count ? col_count : 1), WIDEST_CELL);
    f.right = f.left + cell * (double)col_count;
    double row = (f.bottom - f.top) / (double)(row_count ? row_count : 1);
    for (size_t i = 0; i < row_count; i++) {
        double y = f.top + row * (double)i;
        char name[128];
        iso_text_fit(name, sizeof name, rows[i], SMALL, left);
        iso_pen_text(&pen, f.left - 6, y + row / 2 + 4, "end", "small", 0, name);
        for (size_t k = 0; k < col_count; k++) {
            double v = values[i * col_count + k];
            if (!isfinite(v))
                continue;
            char
                text[48]; /* digits, signs and what the format adds: checked above, escaped never */
            snprintf(text, sizeof text, number_format, v);
            if (strpbrk(text, "<>&\""))
                pen.err = iso_fail(e, ISO_ERR_INTERNAL, "number format \"%s\"", number_format);
            draw_cell(&pen, f.left + cell * (double)k, y, cell, row,
                      r.max > r.min ? (v - r.min) / (r.max - r.min) : 0.5, text);
        }
    }
    if (col_count)
        iso_draw_names(&pen, &f, cols, col_count);
    if (is_empty(&r))
        say_no_data(&pen, &f);
    iso_frame_end(&pen);
    return pen.err;
}

/* ---- timeline ---- */

static size_t lane_of(const char **lanes, size_t *count, const char *name)
{
    for (size_t i = 0; i < *count; i++)
        if (!strcmp(lanes[i], name))
            return i;
    lanes[*count] = name;
    return (*count)++;
}

static void draw_span(iso_pen *pen, const iso_frame *f, const iso_axis *x, const iso_span *s,
                      double y, double h)
{
    const char *label = s->label ? s->label : "";
    double from = fmax(iso_axis_at(x, s->start), f->left);
    double to = fmin(iso_axis_at(x, s->end), f->right);
    char tip[200];
    snprintf(tip, sizeof tip, "%.60s %.60s: %.6g to %.6g", s->lane, label, s->start, s->end);
    iso_pen_printf(
        pen, "<rect class=\"f%d\" x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" rx=\"2\">",
        (s->colour % ISO_SVG_COLOURS + ISO_SVG_COLOURS) % ISO_SVG_COLOURS, from, y + 3,
        fmax(to - from, 1.5), h - 6);
    iso_pen_tooltip(pen, tip);
    iso_pen_printf(pen, "</rect>\n");
    if (*label && iso_text_width(label, SMALL) <= to - from - 6)
        iso_pen_text(pen, (from + to) / 2, y + h / 2 + 4, "middle", "on small", 0, label);
}

iso_err iso_svg_timeline(iso_buf *out, const iso_plot *p, const iso_span *spans, size_t n,
                         iso_error *e)
{
    enum { LANE = 26 };
    iso_pen pen = pen_of(out, e);
    iso_frame f;
    iso_axis x;
    range r = empty_range();
    size_t lane_count = 0;
    const char **lanes = iso_calloc(n, sizeof *lanes);
    if (!lanes)
        return iso_nomem(e, n * sizeof *lanes);
    for (size_t i = 0; i < n; i++) {
        lane_of(lanes, &lane_count, spans[i].lane);
        widen(&r, spans[i].start);
        widen(&r, spans[i].end);
    }
    bool has_data = !is_empty(&r);
    if (!has_data)
        r = (range){0, 1, false};
    double width = width_of(p), left = fmin(widest_of(lanes, lane_count) + 8, width * 0.4);
    double around = iso_frame_top(p, width, NULL, 0) + 28 + (p->x_label ? 20 : 0);
    double height =
        p->height > 0 ? p->height : around + LANE * (double)(lane_count ? lane_count : 1);
    iso_axis_make(&x, r.min, r.max, false, false, false, 8);
    iso_frame_begin(&pen, &f, p, width, height, NULL, 0, left, 22);
    x.from = f.left;
    x.to = f.right;
    iso_draw_x_axis(&pen, &f, &x, true);
    double lane = (f.bottom - f.top) / (double)(lane_count ? lane_count : 1);
    for (size_t i = 0; i < lane_count; i++) {
        char name[128];
        iso_text_fit(name, sizeof name, lanes[i], SMALL, left);
        iso_pen_text(&pen, f.left - 6, f.top + lane * ((double)i + 0.5) + 4, "end", "small", 0,
                     name);
    }
    for (size_t i = 0; i < n; i++) {
        size_t at = lane_of(lanes, &lane_count, spans[i].lane);
        if (isfinite(spans[i].start) && isfinite(spans[i].end))
            draw_span(&pen, &f, &x, &spans[i], f.top + lane * (double)at, lane);
    }
    if (!has_data)
        say_no_data(&pen, &f);
    iso_frame_end(&pen);
    free(lanes);
    return pen.err;
}
