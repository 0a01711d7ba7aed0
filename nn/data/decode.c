/* PNG by libpng, JPEG by libturbojpeg; see decode.h. */
#include "nn/data/decode.h"

#include "core/mem.h"

#include <png.h>
#include <setjmp.h>
#include <stdlib.h>
#include <string.h>
#include <turbojpeg.h>

enum {
    PNG_CHUNKS_MAX = 128,          /* ancillary chunks kept: text, profiles */
    PNG_CHUNK_BYTES_MAX = 8 << 20, /* of one chunk after inflation */
};

/* A progressive scan passes over all pixels again; this bounds the time of one file to seconds. */
static const double scan_pixels_max = 1e9;

static iso_err check_size(uint64_t w, uint64_t h, iso_error *e)
{
    if (w < 1 || h < 1 || w > ISO_IMAGE_EDGE_MAX || h > ISO_IMAGE_EDGE_MAX ||
        w * h > ISO_IMAGE_PIXELS_MAX)
        return iso_fail(e, ISO_ERR_DATA,
                        "%llux%llu pixels, the limit is 64 million and 65535 on an edge",
                        (unsigned long long)w, (unsigned long long)h);
    return ISO_OK;
}

/* ---- PNG ---- */

typedef struct {
    const uint8_t *data;
    size_t size, at;
    png_structp png;
    png_infop info;
    uint8_t *rgb;
    png_bytep *rows;
    uint32_t w, h;
    char message[96];
    iso_err err;
    iso_error *e;
} png_job;

static void png_read_bytes(png_structp png, png_bytep out, png_size_t n)
{
    png_job *j = png_get_io_ptr(png);
    if (n > j->size - j->at)
        png_error(png, "the file ends early");
    memcpy(out, j->data + j->at, n);
    j->at += n;
}

static void png_failed(png_structp png, png_const_charp text)
{
    png_job *j = png_get_error_ptr(png);
    strncpy(j->message, text, sizeof j->message - 1);
    longjmp(png_jmpbuf(png), 1);
}

static void png_warned(png_structp png, png_const_charp text)
{
    (void)png; /* a bad ancillary chunk does not touch the pixels */
    (void)text;
}

/* Everything that may longjmp; all state is in *j, so nothing is clobbered. */
static void png_steps(png_job *j)
{
    if (setjmp(png_jmpbuf(j->png))) {
        j->err = iso_fail(j->e, ISO_ERR_DATA, "PNG cannot be decoded: %s", j->message);
        return;
    }
    png_set_user_limits(j->png, ISO_IMAGE_EDGE_MAX, ISO_IMAGE_EDGE_MAX);
    png_set_chunk_cache_max(j->png, PNG_CHUNKS_MAX);
    png_set_chunk_malloc_max(j->png, PNG_CHUNK_BYTES_MAX);
    png_set_read_fn(j->png, j, png_read_bytes);
    png_read_info(j->png, j->info);
    j->w = png_get_image_width(j->png, j->info);
    j->h = png_get_image_height(j->png, j->info);
    if ((j->err = check_size(j->w, j->h, j->e)))
        return;
    png_set_expand(j->png);
    png_set_strip_16(j->png);
    png_set_strip_alpha(j->png);
    png_set_gray_to_rgb(j->png);
    (void)png_set_interlace_handling(j->png);
    png_read_update_info(j->png, j->info);
    if (png_get_rowbytes(j->png, j->info) != (size_t)j->w * 3) {
        j->err = iso_fail(j->e, ISO_ERR_INTERNAL, "PNG rows are not RGB after conversion");
        return;
    }
    j->rgb = iso_calloc((size_t)j->w * j->h, 3);
    j->rows = iso_calloc(j->h, sizeof *j->rows);
    if (!j->rgb || !j->rows) {
        j->err = iso_nomem(j->e, (size_t)j->w * j->h * 3);
        return;
    }
    for (uint32_t y = 0; y < j->h; y++)
        j->rows[y] = j->rgb + (size_t)y * j->w * 3;
    png_read_image(j->png, j->rows);
    png_read_end(j->png, NULL);
}

static iso_err decode_png(const uint8_t *data, size_t size, uint8_t **rgb, int *h, int *w,
                          iso_error *e)
{
    png_job j = {.data = data, .size = size, .e = e};
    j.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &j, png_failed, png_warned);
    j.info = j.png ? png_create_info_struct(j.png) : NULL;
    if (j.info)
        png_steps(&j);
    else
        j.err = iso_nomem(e, 0);
    png_destroy_read_struct(&j.png, &j.info, NULL);
    free(j.rows);
    if (j.err) {
        free(j.rgb);
        return j.err;
    }
    *rgb = j.rgb;
    *h = (int)j.h;
    *w = (int)j.w;
    return ISO_OK;
}

/* ---- JPEG ---- */

typedef struct {
    int scans;
    bool is_adobe; /* CMYK is stored inverted */
} jpeg_outline;

/* Walks the markers without decoding: counts the scans, finds Adobe's APP14. Inside entropy-coded
 * data a 0xFF is followed by 0 or a restart marker, anything else is the next marker. */
static jpeg_outline outline_of(const uint8_t *p, size_t n)
{
    jpeg_outline o = {0};
    size_t at = 2;
    while (at + 4 <= n) {
        if (p[at] != 0xFF || p[at + 1] == 0 || p[at + 1] == 0xFF ||
            (p[at + 1] >= 0xD0 && p[at + 1] <= 0xD8)) {
            at++;
            continue;
        }
        uint8_t marker = p[at + 1];
        if (marker == 0xD9)
            break;
        size_t length = (size_t)p[at + 2] << 8 | p[at + 3];
        if (marker == 0xDA)
            o.scans++;
        if (marker == 0xEE && length >= 7 && at + 9 <= n && !memcmp(p + at + 4, "Adobe", 5))
            o.is_adobe = true;
        at += 2 + length;
    }
    return o;
}

/* In place: (n, 4) to (n, 3). Adobe's values are 255 - ink, so light is their product. */
static void cmyk_to_rgb(const uint8_t *cmyk, size_t n, bool is_adobe, uint8_t *rgb)
{
    for (size_t i = 0; i < n; i++) {
        unsigned flip = is_adobe ? 0 : 255;
        unsigned k = cmyk[i * 4 + 3] ^ flip;
        for (size_t c = 0; c < 3; c++)
            rgb[i * 3 + c] = (uint8_t)(((cmyk[i * 4 + c] ^ flip) * k + 127) / 255);
    }
}

/* The library goes on after damaged data, fills the rest with grey and calls it a warning, of which
 * it keeps only the first: so the first one ends the decoding. */
static iso_err jpeg_pixels(tjhandle tj, const uint8_t *data, size_t size, uint8_t **rgb, int *h,
                           int *w, iso_error *e)
{
    int subsampling, colour;
    iso_err err;
    jpeg_outline o = outline_of(data, size);
    if (tjDecompressHeader3(tj, data, (unsigned long)size, w, h, &subsampling, &colour))
        return iso_fail(e, ISO_ERR_DATA, "JPEG cannot be decoded: %s", tjGetErrorStr2(tj));
    if ((err = check_size((uint64_t)*w, (uint64_t)*h, e)))
        return err;
    size_t pixels = (size_t)*w * (size_t)*h;
    if (o.scans > ISO_IMAGE_SCANS_MAX || (double)pixels * o.scans > scan_pixels_max)
        return iso_fail(e, ISO_ERR_DATA, "JPEG of %dx%d pixels has %d scans, the limit is %d", *w,
                        *h, o.scans,
                        (int)(scan_pixels_max / (double)pixels < ISO_IMAGE_SCANS_MAX
                                  ? scan_pixels_max / (double)pixels
                                  : ISO_IMAGE_SCANS_MAX));
    bool is_cmyk = colour == TJCS_CMYK || colour == TJCS_YCCK;
    uint8_t *out = iso_calloc(pixels, is_cmyk ? 4 : 3);
    if (!out)
        return iso_nomem(e, pixels * 3);
    if (tjDecompress2(tj, data, (unsigned long)size, out, *w, 0, *h, is_cmyk ? TJPF_CMYK : TJPF_RGB,
                      TJFLAG_ACCURATEDCT | TJFLAG_STOPONWARNING)) {
        free(out);
        return iso_fail(e, ISO_ERR_DATA, "JPEG cannot be decoded: %s", tjGetErrorStr2(tj));
    }
    if (is_cmyk)
        cmyk_to_rgb(out, pixels, o.is_adobe, out); /* writes behind where it reads */
    *rgb = out;
    return ISO_OK;
}

static iso_err decode_jpeg(const uint8_t *data, size_t size, uint8_t **rgb, int *h, int *w,
                           iso_error *e)
{
    tjhandle tj = tjInitDecompress();
    if (!tj)
        return iso_nomem(e, 0);
    iso_err err = jpeg_pixels(tj, data, size, rgb, h, w, e);
    tjDestroy(tj);
    return err;
}

iso_err iso_image_decode(const void *data, size_t size, uint8_t **rgb, int *h, int *w, iso_error *e)
{
    const uint8_t *p = data;
    *rgb = NULL;
    *h = *w = 0;
    if (!size)
        return iso_fail(e, ISO_ERR_DATA, "the file is empty");
    if (size >= 8 && !memcmp(p, "\x89PNG\r\n\x1a\n", 8))
        return decode_png(p, size, rgb, h, w, e);
    if (size >= 3 && p[0] == 0xFF && p[1] == 0xD8 && p[2] == 0xFF)
        return decode_jpeg(p, size, rgb, h, w, e);
    return iso_fail(e, ISO_ERR_DATA, "neither a PNG nor a JPEG file");
}
