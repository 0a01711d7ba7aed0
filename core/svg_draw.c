#include "core/svg_draw.h"

#include "core/report.h"
#include "core/utf8.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SMALL = 11, NORMAL = 12, TITLE = 14, LEGEND_ROW = 18, TITLE_ROW = 24 };

/* ---- pen ---- */

void iso_pen_printf(iso_pen *pen, const char *fmt, ...)
{
    char text[512];
    if (pen->err)
        return;
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    if (n < 0 || (size_t)n >= sizeof text)
        pen->err = iso_fail(pen->e, ISO_ERR_INTERNAL, "a piece of SVG is too long");
    else
        pen->err = iso_buf_append(pen->out, text, (size_t)n, pen->e);
}

static void put_escaped(iso_pen *pen, const char *text)
{
    if (!pen->err)
        pen->err = iso_html_escape(pen->out, text, pen->e);
}

void iso_pen_text(iso_pen *pen, double x, double y, const char *anchor, const char *css,
                  double turn, const char *text)
{
    iso_pen_printf(pen, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" class=\"%s\"", x, y, anchor,
                   css);
    if (turn != 0)
        iso_pen_printf(pen, " transform=\"rotate(%.0f %.1f %.1f)\"", turn, x, y);
    iso_pen_printf(pen, ">");
    put_escaped(pen, text);
    iso_pen_printf(pen, "</text>\n");
}

void iso_pen_tooltip(iso_pen *pen, const char *text)
{
    iso_pen_printf(pen, "<title>");
    put_escaped(pen, text);
    iso_pen_printf(pen, "</title>");
}

/* In units of the font size, of the character at `text`; *length is its bytes. */
static double character_width(const char *text, size_t left, size_t *length)
{
    size_t n = iso_utf8_length(text, left);
    *length = n ? n : 1;
    bool is_narrow = n == 1 && strchr("iljtfr.,:;'|!()[] -/", *text);
    bool is_wide = n >= 3 || (n == 1 && strchr("mwMW@%", *text));
    return is_narrow ? 0.36 : is_wide ? 0.95 : 0.61;
}

double iso_text_width(const char *text, double font_px)
{
    double units = 0;
    for (size_t left = strlen(text), n; left; text += n, left -= n)
        units += character_width(text, left, &n);
    return units * font_px;
}

void iso_text_fit(char *out, size_t out_bytes, const char *text, double font_px, double most_px)
{
    static const char ellipsis[] = "\xE2\x80\xA6";
    size_t all = strlen(text), used = 0, n;
    if (all < out_bytes && iso_text_width(text, font_px) <= most_px) {
        memcpy(out, text, all + 1);
        return;
    }
    double units = character_width(ellipsis, 3, &n);
    for (; used < all; used += n) {
        units += character_width(text + used, all - used, &n);
        if (units * font_px > most_px || used + n + sizeof ellipsis > out_bytes)
            break;
    }
    memcpy(out, text, used);
    memcpy(out + used, ellipsis, sizeof ellipsis);
}

/* ---- axes ---- */

/* 1, 2 or 5 times a power of ten, near span / wanted. */
static double round_step(double span, int wanted)
{
    double raw = span / wanted, power = pow(10, floor(log10(raw))), part = raw / power;
    return power * (part < 1.41 ? 1 : part < 3.16 ? 2 : part < 7.07 ? 5 : 10);
}

static void add_tick(iso_axis *a, double v)
{
    double slack = (a->max - a->min) * 1e-9;
    if (a->tick_count < ISO_SVG_TICKS && v >= a->min - slack && v <= a->max + slack)
        a->ticks[a->tick_count++] = v;
}

static void make_linear(iso_axis *a, bool is_open, bool whole, int wanted)
{
    double span = a->max - a->min;
    double step = round_step(span, wanted);
    if (whole && step < 1)
        step = 1;
    if (is_open) {
        a->min = step * floor(a->min / step + 1e-9);
        a->max = step * ceil(a->max / step - 1e-9);
    }
    double first = ceil(a->min / step - 1e-9);
    for (int i = 0; i < ISO_SVG_TICKS; i++)
        add_tick(a, (first + i) * step + 0.0); /* + 0: no "-0" */
    double largest = fmax(fabs(a->min), fabs(a->max));
    int places = (int)-floor(log10(step) + 1e-9);
    a->decimals = largest >= 1e6 || places > 4 ? -1 : places > 0 ? places : 0;
}

static void make_log(iso_axis *a, bool is_open)
{
    double low = log10(a->min), high = log10(a->max);
    if (is_open) {
        low = floor(low + 1e-9);
        high = ceil(high - 1e-9);
        if (high == low)
            high += 1;
        a->min = pow(10, low);
        a->max = pow(10, high);
    }
    int decades = (int)ceil(high - low), every = decades > 8 ? (decades + 7) / 8 : 1;
    for (int k = (int)floor(low); k <= (int)ceil(high); k += every) {
        add_tick(a, pow(10, k));
        if (decades <= 2) {
            add_tick(a, 2 * pow(10, k));
            add_tick(a, 5 * pow(10, k));
        }
    }
    a->decimals = -1;
}

void iso_axis_make(iso_axis *a, double min, double max, bool is_log, bool is_open, bool whole,
                   int wanted)
{
    if (!(max > min)) { /* one value, or none: some room around it */
        double room = is_log ? min * 0.5 : fabs(min) > 0 ? fabs(min) * 0.1 : 1;
        if (whole)
            room = 1;
        min -= room;
        max += room;
    }
    *a = (iso_axis){.min = min, .max = max, .is_log = is_log};
    if (is_log)
        make_log(a, is_open);
    else
        make_linear(a, is_open, whole, wanted);
}

double iso_axis_at(const iso_axis *a, double v)
{
    double part = a->is_log ? (log10(v) - log10(a->min)) / (log10(a->max) - log10(a->min))
                            : (v - a->min) / (a->max - a->min);
    return a->from + part * (a->to - a->from);
}

void iso_axis_label(const iso_axis *a, double v, char *out, size_t out_bytes)
{
    if (a->decimals < 0)
        snprintf(out, out_bytes, "%.4g", v);
    else
        snprintf(out, out_bytes, "%.*f", a->decimals, v);
    char *exponent = strchr(out, 'e'); /* "1e-05" as "1e-5" */
    if (exponent)
        snprintf(exponent, out_bytes - (size_t)(exponent - out), "e%d", atoi(exponent + 1));
}

double iso_axis_width(const iso_axis *a)
{
    double widest = 0;
    char text[32];
    for (size_t i = 0; i < a->tick_count; i++) {
        iso_axis_label(a, a->ticks[i], text, sizeof text);
        widest = fmax(widest, iso_text_width(text, SMALL));
    }
    return widest;
}

void iso_draw_y_axis(iso_pen *pen, const iso_frame *f, const iso_axis *a)
{
    char text[32];
    for (size_t i = 0; i < a->tick_count; i++) {
        double y = iso_axis_at(a, a->ticks[i]);
        iso_pen_printf(pen,
                       "<line class=\"grid\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                       f->left, f->right, y, y);
        iso_axis_label(a, a->ticks[i], text, sizeof text);
        iso_pen_text(pen, f->left - 6, y + 4, "end", "small", 0, text);
    }
}

void iso_draw_x_axis(iso_pen *pen, const iso_frame *f, const iso_axis *a, bool with_grid)
{
    char text[32];
    for (size_t i = 0; i < a->tick_count; i++) {
        double x = iso_axis_at(a, a->ticks[i]);
        iso_pen_printf(
            pen, "<line class=\"%s\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
            with_grid ? "grid" : "axis", x, x, with_grid ? f->top : f->bottom, f->bottom + 4);
        iso_axis_label(a, a->ticks[i], text, sizeof text);
        iso_pen_text(pen, x, f->bottom + 16, "middle", "small", 0, text);
    }
    iso_pen_printf(pen, "<line class=\"axis\" x1=\"%.1f\" x2=\"%.1f\" y1=\"%.1f\" y2=\"%.1f\"/>\n",
                   f->left, f->right, f->bottom, f->bottom);
}

/* ---- names of groups ---- */

/* Names that do not fit lie slanted by 35 degrees. */
static const double MOST_NAME = 180, SLANT_SIN = 0.574, SLANT_COS = 0.819;

static double widest_name(const char *const *names, size_t n)
{
    double widest = 0;
    for (size_t i = 0; i < n; i++)
        widest = fmax(widest, iso_text_width(names[i], SMALL));
    return widest;
}

double iso_names_height(const char *const *names, size_t n, double slot_px)
{
    double widest = widest_name(names, n);
    return widest <= slot_px - 6 ? 22 : 16 + fmin(widest, MOST_NAME) * SLANT_SIN;
}

void iso_draw_names(iso_pen *pen, const iso_frame *f, const char *const *names, size_t n)
{
    double slot = (f->right - f->left) / (double)n;
    bool is_level = widest_name(names, n) <= slot - 6;
    for (size_t i = 0; i < n; i++) {
        double x = f->left + slot * ((double)i + 0.5);
        if (is_level)
            iso_pen_text(pen, x, f->bottom + 16, "middle", "small", 0, names[i]);
        else {
            char text[128];
            iso_text_fit(text, sizeof text, names[i], SMALL, fmin(MOST_NAME, (x - 4) / SLANT_COS));
            iso_pen_text(pen, x + 4, f->bottom + 14, "end", "small", -35, text);
        }
    }
}

/* ---- frame ---- */

/* Lays the legend out in rows; draws it when pen is given. Returns its height. */
static double legend_rows(iso_pen *pen, double width, double top, const char *const *labels,
                          size_t count)
{
    enum { SWATCH = 12, GAP = 18, EDGE = 12 };
    double x = EDGE, y = top;
    if (count < 2)
        return 0;
    for (size_t i = 0; i < count; i++) {
        double takes = SWATCH + 5 + iso_text_width(labels[i], SMALL);
        if (x > EDGE && x + takes > width - EDGE) {
            x = EDGE;
            y += LEGEND_ROW;
        }
        if (pen) {
            iso_pen_printf(pen,
                           "<rect class=\"f%zu\" x=\"%.1f\" y=\"%.1f\" width=\"%d\" height=\"%d\" "
                           "rx=\"2\"/>\n",
                           i % ISO_SVG_COLOURS, x, y + 2, SWATCH, SWATCH - 2);
            iso_pen_text(pen, x + SWATCH + 5, y + 11, "start", "small", 0, labels[i]);
        }
        x += takes + GAP;
    }
    return y + LEGEND_ROW - top + 4;
}

double iso_frame_top(const iso_plot *p, double width, const char *const *legend, size_t count)
{
    return (p->title && *p->title ? TITLE_ROW + 6 : 10) +
           legend_rows(NULL, width, 0, legend, count);
}

/* A picture may stand in a page or alone, so it brings its own colours, light and dark. */
static void put_style(iso_pen *pen)
{
    static const char *const light[ISO_SVG_COLOURS] = {"#2f6fb0", "#d9602b", "#2a8f5b", "#a8489a",
                                                       "#b08a00", "#1a8ea3", "#7a5cc0", "#6b7280"};
    static const char *const dark[ISO_SVG_COLOURS] = {"#6fa8e0", "#f08a5b", "#5cc08c", "#d683c8",
                                                      "#d9b84a", "#5cc9d9", "#a78df0", "#a1a8b3"};
    iso_pen_printf(pen, "<style>.iso{--text:#24292f;--soft:#57606a;--grid:#e3e6ea;--axis:#8c959f;"
                        "--on:#ffffff;--paper:#ffffff;");
    for (int i = 0; i < ISO_SVG_COLOURS; i++)
        iso_pen_printf(pen, "--c%d:%s;", i, light[i]);
    iso_pen_printf(pen,
                   "font:%dpx system-ui,-apple-system,\"Segoe UI\",\"DejaVu Sans\",sans-serif}\n",
                   NORMAL);
    iso_pen_printf(pen, "@media(prefers-color-scheme:dark){.iso{--text:#e6edf3;--soft:#9aa4af;"
                        "--grid:#2b3138;--axis:#6e7681;--on:#0d1117;--paper:#14181d;");
    for (int i = 0; i < ISO_SVG_COLOURS; i++)
        iso_pen_printf(pen, "--c%d:%s;", i, dark[i]);
    iso_pen_printf(pen,
                   "}}\n.iso text{fill:var(--text)}.iso .small{font-size:%dpx;fill:var(--soft)}"
                   ".iso .tiny{font-size:9.5px;fill:var(--soft)}"
                   ".iso .title{font-size:%dpx;font-weight:600}.iso .paper{fill:var(--paper)}"
                   ".iso .grid{stroke:var(--grid)}.iso .axis{stroke:var(--axis)}",
                   SMALL, TITLE);
    iso_pen_printf(pen, ".iso text.on{fill:var(--on)}.iso .line{fill:none;stroke-width:2;"
                        "stroke-linejoin:round;stroke-linecap:round}");
    for (int i = 0; i < ISO_SVG_COLOURS; i++)
        iso_pen_printf(pen, ".iso .f%d{fill:var(--c%d)}.iso .s%d{stroke:var(--c%d)}", i, i, i, i);
    iso_pen_printf(pen, "</style>\n");
}

void iso_frame_begin(iso_pen *pen, iso_frame *f, const iso_plot *p, double width, double height,
                     const char *const *legend, size_t legend_count, double left_px,
                     double bottom_px)
{
    bool has_title = p->title && *p->title, has_x = p->x_label && *p->x_label;
    bool has_y = p->y_label && *p->y_label;
    *f = (iso_frame){.width = width, .height = height};
    f->left = 10 + (has_y ? 20 : 0) + left_px;
    f->right = width - 18;
    f->top = iso_frame_top(p, width, legend, legend_count);
    f->bottom = height - 6 - (has_x ? 20 : 0) - bottom_px;
    iso_pen_printf(pen,
                   "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"iso\" role=\"img\" "
                   "viewBox=\"0 0 %.0f %.0f\" width=\"%.0f\" height=\"%.0f\">\n",
                   width, height, width, height);
    if (has_title)
        iso_pen_tooltip(pen, p->title);
    put_style(pen);
    iso_pen_printf(pen, "<rect class=\"paper\" width=\"100%%\" height=\"100%%\"/>\n");
    if (has_title)
        iso_pen_text(pen, 12, 20, "start", "title", 0, p->title);
    legend_rows(pen, width, has_title ? TITLE_ROW + 6 : 8, legend, legend_count);
    if (has_x)
        iso_pen_text(pen, (f->left + f->right) / 2, height - 8, "middle", "label", 0, p->x_label);
    if (has_y)
        iso_pen_text(pen, 16, (f->top + f->bottom) / 2, "middle", "label", -90, p->y_label);
}

void iso_frame_end(iso_pen *pen)
{
    iso_pen_printf(pen, "</svg>\n");
    if (pen->err)
        pen->out->size = pen->before;
}
