/* What all plots share: a pen that remembers its first error, axes with round ticks, the frame with
 * title, labels and legend. For core/svg*.c only. */
#ifndef ISO_CORE_SVG_DRAW_H
#define ISO_CORE_SVG_DRAW_H

#include "core/svg.h"

enum { ISO_SVG_COLOURS = 8, ISO_SVG_TICKS = 24 };

typedef struct {
    iso_buf *out;
    size_t before; /* size of out at the start, restored on failure */
    iso_error *e;
    iso_err err;
} iso_pen;

void iso_pen_printf(iso_pen *pen, const char *fmt, ...) ISO_PRINTF(2, 3);
/* <text>; anchor: start, middle or end; turn in degrees about (x, y). */
void iso_pen_text(iso_pen *pen, double x, double y, const char *anchor, const char *css,
                  double turn, const char *text);
void iso_pen_tooltip(iso_pen *pen, const char *text); /* <title>, shown on hovering */

/* Pixels that `text` takes at a font size, on the safe side. */
double iso_text_width(const char *text, double font_px);

/* `text`, or as much of it as fits into `most_px` and an ellipsis. */
void iso_text_fit(char *out, size_t out_bytes, const char *text, double font_px, double most_px);

typedef struct {
    double min, max; /* in data */
    double from, to; /* in pixels; from > to for a y axis */
    bool is_log;
    double ticks[ISO_SVG_TICKS];
    size_t tick_count;
    int decimals; /* of tick labels; -1: %g */
} iso_axis;

/* Chooses the ticks for about `wanted` of them. Widens min..max to ticks when is_open. whole: the
 * values are whole numbers, so ticks are too. */
void iso_axis_make(iso_axis *a, double min, double max, bool is_log, bool is_open, bool whole,
                   int wanted);
double iso_axis_at(const iso_axis *a, double v);
void iso_axis_label(const iso_axis *a, double v, char *out, size_t out_bytes);

typedef struct {
    double width, height;            /* of the picture */
    double left, right, top, bottom; /* of the plotting area, in pixels */
} iso_frame;

/* Starts the picture and writes title, axis labels and legend (colour i for label i; at least two,
 * else none). Reserves left_px for y tick labels and bottom_px for x tick labels. */
void iso_frame_begin(iso_pen *pen, iso_frame *f, const iso_plot *p, double width, double height,
                     const char *const *legend, size_t legend_count, double left_px,
                     double bottom_px);
void iso_frame_end(iso_pen *pen);
/* Height that title and legend take. */
double iso_frame_top(const iso_plot *p, double width, const char *const *legend, size_t count);

void iso_draw_y_axis(iso_pen *pen, const iso_frame *f, const iso_axis *a);
void iso_draw_x_axis(iso_pen *pen, const iso_frame *f, const iso_axis *a, bool with_grid);
/* Widest label of an axis. */
double iso_axis_width(const iso_axis *a);

/* Names under (or over) n equal slots: level where they fit, else slanted. */
double iso_names_height(const char *const *names, size_t n, double slot_px);
void iso_draw_names(iso_pen *pen, const iso_frame *f, const char *const *names, size_t n);

#endif
