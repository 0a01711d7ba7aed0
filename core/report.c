/* One HTML page that carries everything in itself: style, plots as SVG, pictures as data URIs. */
#include "core/report.h"

#include "core/fsio.h"
#include "core/utf8.h"

#include <png.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_IMAGE_SIDE = 4096 };

static iso_err put(iso_buf *out, const char *text, iso_error *e)
{
    return iso_buf_append(out, text, strlen(text), e);
}

iso_err iso_html_escape(iso_buf *out, const char *text, iso_error *e)
{
    iso_err err = ISO_OK;
    for (size_t left = strlen(text); left && !err;) {
        size_t n = iso_utf8_length(text, left), step = n ? n : 1;
        unsigned char c = (unsigned char)*text;
        const char *entity = c == '&'   ? "&amp;"
                             : c == '<' ? "&lt;"
                             : c == '>' ? "&gt;"
                             : c == '"' ? "&quot;"
                                        : NULL;
        bool is_bad = !n || (n == 1 && (c < 0x20 || c == 0x7F) && c != '\n' && c != '\t');
        if (entity || is_bad) /* XML knows no control characters, not even escaped */
            err = put(out, entity ? entity : "\xEF\xBF\xBD", e);
        else
            err = iso_buf_append(out, text, n, e);
        text += step;
        left -= step;
    }
    return err;
}

/* <tag>escaped text</tag> */
static iso_err element(iso_buf *out, const char *tag, const char *text, iso_error *e)
{
    iso_err err = iso_buf_printf(out, e, "<%s>", tag);
    if (!err)
        err = iso_html_escape(out, text, e);
    return err ? err : iso_buf_printf(out, e, "</%s>\n", tag);
}

static const char style[] =
    "<style>\n"
    ":root{color-scheme:light dark;--text:#24292f;--soft:#57606a;--line:#d8dee4;--paper:#ffffff;"
    "--stripe:#f6f8fa}\n"
    "@media(prefers-color-scheme:dark){:root{--text:#e6edf3;--soft:#9aa4af;--line:#2b3138;"
    "--paper:#14181d;--stripe:#1b2026}}\n"
    "body{margin:0 auto;padding:2rem 1.25rem 4rem;max-width:60rem;color:var(--text);"
    "background:var(--paper);font:16px/1.55 system-ui,-apple-system,\"Segoe UI\",\"DejaVu Sans\","
    "sans-serif}\n"
    "h1{font-size:1.7rem;line-height:1.25;margin:0 0 .25rem}h2{font-size:1.2rem;margin:2.5rem 0 "
    ".75rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}\n"
    "p{margin:.6rem 0;max-width:44rem}.subtitle{color:var(--soft);margin-bottom:1.5rem}\n"
    ".wide{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:.9rem;"
    "font-variant-numeric:tabular-nums}\n"
    "caption,figcaption{text-align:left;color:var(--soft);font-size:.85rem;padding:.3rem 0}\n"
    "th,td{padding:.3rem .75rem;border-bottom:1px solid var(--line);text-align:left;"
    "white-space:nowrap}th{font-weight:600}\n"
    "tbody tr:nth-child(even){background:var(--stripe)}.number{text-align:right}\n"
    "figure{margin:1rem 0}figure svg{max-width:100%;height:auto}\n"
    "figure.image{display:inline-block;margin:.4rem .8rem .4rem 0;vertical-align:top;"
    "width:9rem}\n"
    "figure.image img{display:block;width:100%;height:auto;border-radius:3px}\n"
    "</style>\n";

iso_err iso_report_begin(iso_report *r, const char *title, const char *subtitle, iso_error *e)
{
    *r = (iso_report){0};
    iso_err err = put(&r->html,
                      "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n"
                      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n"
                      /* Whatever stands in the page, it loads and runs nothing. */
                      "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; "
                      "style-src 'unsafe-inline'; img-src data:\">\n",
                      e);
    if (!err)
        err = element(&r->html, "title", title, e);
    if (!err)
        err = put(&r->html, style, e);
    if (!err)
        err = put(&r->html, "</head>\n<body>\n", e);
    if (!err)
        err = element(&r->html, "h1", title, e);
    if (!err && subtitle && *subtitle) {
        err = put(&r->html, "<p class=\"subtitle\">", e);
        if (!err)
            err = iso_html_escape(&r->html, subtitle, e);
        if (!err)
            err = put(&r->html, "</p>\n", e);
    }
    if (err)
        iso_report_free(r);
    return err;
}

iso_err iso_report_heading(iso_report *r, const char *text, iso_error *e)
{
    return element(&r->html, "h2", text, e);
}

iso_err iso_report_text(iso_report *r, iso_error *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *text = n < 0 ? NULL : malloc((size_t)n + 1);
    if (text)
        vsnprintf(text, (size_t)n + 1, fmt, again);
    va_end(again);
    iso_err err = text ? element(&r->html, "p", text, e) : iso_nomem(e, (size_t)(n < 0 ? 0 : n));
    free(text);
    return err;
}

/* "12", "-0.5", "93.1 %", "-" for nothing: what stands right-aligned in a column. */
static bool is_number(const char *text)
{
    size_t n = strspn(text, "0123456789+-.,eE ");
    bool has_digit = strpbrk(text, "0123456789") != NULL;
    if (!strcmp(text, "-") || !strcmp(text, "\xE2\x80\x93") || !strcmp(text, "nan"))
        return true;
    return has_digit && (!text[n] || !strcmp(text + n, "%") || !strcmp(text + n, "x"));
}

/* A column is one of numbers if every cell that says something is: the header follows. */
static bool is_number_column(const char *const *cells, size_t rows, size_t cols, size_t col)
{
    bool any = false;
    for (size_t i = 0; i < rows; i++) {
        const char *cell = cells[i * cols + col];
        if (!cell || !*cell)
            continue;
        if (!is_number(cell))
            return false;
        any = true;
    }
    return any;
}

static iso_err cell(iso_report *r, const char *tag, bool is_right, const char *text, iso_error *e)
{
    iso_err err = iso_buf_printf(&r->html, e, "<%s%s>", tag, is_right ? " class=\"number\"" : "");
    if (!err && text)
        err = iso_html_escape(&r->html, text, e);
    return err ? err : iso_buf_printf(&r->html, e, "</%s>", tag);
}

iso_err iso_report_table(iso_report *r, const char *caption, const char *const *header, size_t cols,
                         const char *const *cells, size_t rows, iso_error *e)
{
    iso_err err = put(&r->html, "<div class=\"wide\"><table>\n", e);
    if (!err && caption && *caption)
        err = element(&r->html, "caption", caption, e);
    if (!err)
        err = put(&r->html, "<thead><tr>", e);
    for (size_t k = 0; k < cols && !err; k++)
        err = cell(r, "th", is_number_column(cells, rows, cols, k), header[k], e);
    if (!err)
        err = put(&r->html, "</tr></thead>\n<tbody>\n", e);
    for (size_t i = 0; i < rows && !err; i++) {
        err = put(&r->html, "<tr>", e);
        for (size_t k = 0; k < cols && !err; k++) {
            const char *text = cells[i * cols + k];
            err = cell(r, "td", text && is_number(text), text, e);
        }
        if (!err)
            err = put(&r->html, "</tr>\n", e);
    }
    return err ? err : put(&r->html, "</tbody></table></div>\n", e);
}

static iso_err figure_end(iso_report *r, const char *caption, iso_error *e)
{
    iso_err err = caption && *caption ? element(&r->html, "figcaption", caption, e) : ISO_OK;
    return err ? err : put(&r->html, "</figure>\n", e);
}

iso_err iso_report_svg(iso_report *r, const iso_buf *svg, const char *caption, iso_error *e)
{
    iso_err err = put(&r->html, "<figure>\n", e);
    if (!err)
        err = iso_buf_append(&r->html, svg->data, svg->size, e);
    return err ? err : figure_end(r, caption, e);
}

static iso_err put_base64(iso_buf *out, const uint8_t *p, size_t n, iso_error *e)
{
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    iso_err err = iso_buf_reserve(out, n / 3 * 4 + 4, e);
    for (size_t i = 0; i < n && !err; i += 3) {
        uint32_t v = (uint32_t)p[i] << 16 | (i + 1 < n ? (uint32_t)p[i + 1] << 8 : 0) |
                     (i + 2 < n ? p[i + 2] : 0);
        char four[4] = {digits[v >> 18], digits[v >> 12 & 63],
                        i + 1 < n ? digits[v >> 6 & 63] : '=', i + 2 < n ? digits[v & 63] : '='};
        err = iso_buf_append(out, four, sizeof four, e);
    }
    return err;
}

iso_err iso_report_image(iso_report *r, const uint8_t *rgb, int width, int height,
                         const char *caption, iso_error *e)
{
    if (width < 1 || height < 1 || width > MAX_IMAGE_SIDE || height > MAX_IMAGE_SIDE)
        return iso_fail(e, ISO_ERR_SHAPE, "a picture of %dx%d; sides are 1..%d", width, height,
                        MAX_IMAGE_SIDE);
    png_image image = {.version = PNG_IMAGE_VERSION,
                       .width = (png_uint_32)width,
                       .height = (png_uint_32)height,
                       .format = PNG_FORMAT_RGB};
    png_alloc_size_t size = PNG_IMAGE_PNG_SIZE_MAX(image);
    uint8_t *png = malloc(size);
    iso_err err = png ? ISO_OK : iso_nomem(e, size);
    if (!err && !png_image_write_to_memory(&image, png, &size, 0, rgb, 0, NULL))
        err = iso_fail(e, ISO_ERR_MEMORY, "cannot make a PNG: %s", image.message);
    if (!err)
        err = put(&r->html, "<figure class=\"image\"><img alt=\"", e);
    if (!err)
        err = iso_html_escape(&r->html, caption ? caption : "", e);
    if (!err)
        err = iso_buf_printf(&r->html, e,
                             "\" width=\"%d\" height=\"%d\" src=\"data:image/png;base64,", width,
                             height);
    if (!err)
        err = put_base64(&r->html, png, size, e);
    if (!err)
        err = put(&r->html, "\">\n", e);
    if (!err)
        err = figure_end(r, caption, e);
    png_image_free(&image);
    free(png);
    return err;
}

iso_err iso_report_write(iso_report *r, const char *path, iso_error *e)
{
    static const char end[] = "</body>\n</html>\n";
    size_t before = r->html.size;
    iso_err err = put(&r->html, end, e);
    if (!err)
        err = iso_write_file(path, r->html.data, r->html.size, 0644, e);
    r->html.size = before; /* the page may grow and be written again */
    return err;
}

void iso_report_free(iso_report *r)
{
    iso_buf_free(&r->html);
}
