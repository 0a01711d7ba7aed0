/* Plots as inline SVG: what reports need and no more. Colours and text follow the page's CSS
 * variables, so that a report reads in light and dark. All text is escaped. */
#ifndef ISO_CORE_SVG_H
#define ISO_CORE_SVG_H

#include "core/mem.h"

typedef struct {
    const char *label;
    const double *x; /* NULL: 0 .. n-1 */
    const double *y; /* NaN breaks the line */
    size_t n;
} iso_series;

typedef struct {
    const char *title, *x_label, *y_label;
    int width, height; /* 0: 640 x 360 */
    bool log_y;
    double y_min, y_max; /* both 0: from the data */
} iso_plot;

iso_err iso_svg_lines(iso_buf *out, const iso_plot *p, const iso_series *s, size_t n,
                      iso_error *e) ISO_MUST_CHECK;
/* Grouped bars: values[group * series_count + series]; NaN leaves a gap. */
iso_err iso_svg_bars(iso_buf *out, const iso_plot *p, const char *const *groups, size_t group_count,
                     const char *const *series, size_t series_count, const double *values,
                     iso_error *e) ISO_MUST_CHECK;
/* values[row * cols + col] with the number written in each cell; NaN is an empty cell. */
iso_err iso_svg_heatmap(iso_buf *out, const iso_plot *p, const char *const *rows, size_t row_count,
                        const char *const *cols, size_t col_count, const double *values,
                        const char *number_format, iso_error *e) ISO_MUST_CHECK;
/* Timeline: spans of lanes. */
typedef struct {
    const char *lane, *label;
    double start, end;
    int colour; /* index in the palette */
} iso_span;
iso_err iso_svg_timeline(iso_buf *out, const iso_plot *p, const iso_span *spans, size_t n,
                         iso_error *e) ISO_MUST_CHECK;

#endif
