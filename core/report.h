/* One self-contained HTML page: headings, text, tables, plots, pictures. No script, no network. */
#ifndef ISO_CORE_REPORT_H
#define ISO_CORE_REPORT_H

#include "core/svg.h"

typedef struct {
    iso_buf html; /* owned; grows */
} iso_report;

iso_err iso_report_begin(iso_report *r, const char *title, const char *subtitle,
                         iso_error *e) ISO_MUST_CHECK;
iso_err iso_report_heading(iso_report *r, const char *text, iso_error *e) ISO_MUST_CHECK;
iso_err iso_report_text(iso_report *r, iso_error *e, const char *fmt, ...)
    ISO_PRINTF(3, 4) ISO_MUST_CHECK;
/* cells[row * cols + col]; cells that parse as numbers are right-aligned; strings are escaped. */
iso_err iso_report_table(iso_report *r, const char *caption, const char *const *header, size_t cols,
                         const char *const *cells, size_t rows, iso_error *e) ISO_MUST_CHECK;
/* Raw SVG made by core/svg. */
iso_err iso_report_svg(iso_report *r, const iso_buf *svg, const char *caption,
                       iso_error *e) ISO_MUST_CHECK;
/* RGB pixels as an inline PNG (data URI, stored uncompressed or deflated by libpng). */
iso_err iso_report_image(iso_report *r, const uint8_t *rgb, int width, int height,
                         const char *caption, iso_error *e) ISO_MUST_CHECK;
iso_err iso_report_write(iso_report *r, const char *path, iso_error *e) ISO_MUST_CHECK;
void iso_report_free(iso_report *r);
/* Appends text with & < > " escaped. */
iso_err iso_html_escape(iso_buf *out, const char *text, iso_error *e) ISO_MUST_CHECK;

#endif
