/* Preprocessing of images; see preprocess.h.
 *
 * Resampling: output pixel x looks at the input around centre = (x + 1/2) * scale within
 * support = filter's radius * max(scale, 1); weights are the filter at the distance divided by
 * max(scale, 1), normalised to sum 1, then rounded to 22 fraction bits. Two passes, each rounded
 * and clipped to 8 bits, horizontal first: this order and these roundings are Pillow's, and give
 * its grey levels. */
#include "nn/data/preprocess.h"

#include "core/fsio.h"
#include "core/json.h"
#include "core/mem.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FRACTION_BITS = 22, CONFIG_MAX_BYTES = 1 << 20 };

/* ---- resampling ---- */

static double bilinear(double x)
{
    x = fabs(x);
    return x < 1 ? 1 - x : 0;
}

/* Keys' cubic with a = -1/2. */
static double bicubic(double x)
{
    const double a = -0.5;
    x = fabs(x);
    if (x < 1)
        return ((a + 2) * x - (a + 3)) * x * x + 1;
    if (x < 2)
        return (((x - 5) * x + 8) * x - 4) * a;
    return 0;
}

/* The weights of one axis: output i sums `count[i]` inputs from `first[i]`, weights at w + i*taps.
 */
typedef struct {
    int *first, *count;
    int32_t *w;
    int taps;
} axis;

static void axis_free(axis *a)
{
    free(a->first);
    free(a->count);
    free(a->w);
}

static iso_err axis_init(axis *a, int in, int out, iso_resample filter, iso_error *e)
{
    double (*f)(double) = filter == ISO_RESAMPLE_BICUBIC ? bicubic : bilinear;
    double radius = filter == ISO_RESAMPLE_BICUBIC ? 2 : 1;
    double scale = (double)in / (double)out;
    double stretch = scale < 1 ? 1 : scale;
    double support = radius * stretch;
    size_t cells;
    double *k = NULL;
    *a = (axis){.taps = (int)ceil(support) * 2 + 1};
    if (!iso_mul_size((size_t)out, (size_t)a->taps, &cells))
        return iso_nomem(e, SIZE_MAX);
    a->first = iso_calloc((size_t)out, sizeof *a->first);
    a->count = iso_calloc((size_t)out, sizeof *a->count);
    a->w = iso_calloc(cells, sizeof *a->w);
    k = iso_calloc((size_t)a->taps, sizeof *k);
    if (!a->first || !a->count || !a->w || !k) {
        free(k);
        axis_free(a);
        *a = (axis){0};
        return iso_nomem(e, cells * sizeof *a->w);
    }
    for (int i = 0; i < out; i++) {
        double centre = (i + 0.5) * scale;
        int lo = (int)(centre - support + 0.5), hi = (int)(centre + support + 0.5);
        if (lo < 0)
            lo = 0;
        if (hi > in)
            hi = in;
        double total = 0;
        for (int x = lo; x < hi; x++) {
            k[x - lo] = f((x - centre + 0.5) / stretch);
            total += k[x - lo];
        }
        for (int x = lo; x < hi; x++) {
            double v = (total != 0 ? k[x - lo] / total : k[x - lo]) * (1 << FRACTION_BITS);
            a->w[(size_t)i * (size_t)a->taps + (size_t)(x - lo)] =
                (int32_t)(v < 0 ? v - 0.5 : v + 0.5);
        }
        a->first[i] = lo;
        a->count[i] = hi - lo;
    }
    free(k);
    return ISO_OK;
}

static uint8_t clip8(int32_t sum)
{
    int32_t v = sum >> FRACTION_BITS; /* arithmetic shift: negative sums stay negative */
    return (uint8_t)(v < 0 ? 0 : v > 255 ? 255 : v);
}

/* rows of (in, c) to rows of (out, c). The sum fits 32 bits: the weights' absolute values sum to
 * less than 1.6 and 255 * 1.6 * 2^22 < 2^31. */
static void pass_horizontal(const axis *a, const uint8_t *in, int rows, int w, int c, uint8_t *out,
                            int ow)
{
    for (int y = 0; y < rows; y++) {
        const uint8_t *src = in + (size_t)y * (size_t)w * (size_t)c;
        uint8_t *dst = out + (size_t)y * (size_t)ow * (size_t)c;
        for (int x = 0; x < ow; x++) {
            const int32_t *k = a->w + (size_t)x * (size_t)a->taps;
            const uint8_t *p = src + (size_t)a->first[x] * (size_t)c;
            int32_t s[4] = {1 << (FRACTION_BITS - 1), 1 << (FRACTION_BITS - 1),
                            1 << (FRACTION_BITS - 1), 1 << (FRACTION_BITS - 1)};
            for (int t = 0; t < a->count[x]; t++, p += c)
                for (int ch = 0; ch < c; ch++)
                    s[ch] += p[ch] * k[t];
            for (int ch = 0; ch < c; ch++)
                dst[(size_t)x * (size_t)c + (size_t)ch] = clip8(s[ch]);
        }
    }
}

/* (h, n) to (oh, n), n = width * channels; `sum` holds n numbers. */
static void pass_vertical(const axis *a, const uint8_t *in, size_t n, uint8_t *out, int oh,
                          int32_t *sum)
{
    for (int y = 0; y < oh; y++) {
        const int32_t *k = a->w + (size_t)y * (size_t)a->taps;
        for (size_t x = 0; x < n; x++)
            sum[x] = 1 << (FRACTION_BITS - 1);
        for (int t = 0; t < a->count[y]; t++) {
            const uint8_t *src = in + (size_t)(a->first[y] + t) * n;
            for (size_t x = 0; x < n; x++)
                sum[x] += src[x] * k[t];
        }
        for (size_t x = 0; x < n; x++)
            out[(size_t)y * n + x] = clip8(sum[x]);
    }
}

iso_err iso_resize_u8(const uint8_t *in, int h, int w, int channels, uint8_t *out, int oh, int ow,
                      iso_resample filter, iso_error *e)
{
    iso_err err = ISO_OK;
    axis across = {0}, down = {0};
    uint8_t *mid = NULL;
    int32_t *sum = NULL;
    if (h < 1 || w < 1 || oh < 1 || ow < 1 || channels < 1 || channels > 4)
        return iso_fail(e, ISO_ERR_SHAPE, "cannot resize %dx%d pixels of %d channels to %dx%d", w,
                        h, channels, ow, oh);
    size_t c = (size_t)channels, mid_row = (size_t)ow * c, mid_bytes;
    if (!iso_mul_size((size_t)h, mid_row, &mid_bytes))
        return iso_nomem(e, SIZE_MAX);
    const uint8_t *rows = in;
    if (ow != w) { /* Pillow skips a pass that changes nothing, too */
        if ((err = axis_init(&across, w, ow, filter, e)))
            goto done;
        mid = iso_calloc(mid_bytes, 1);
        if (!mid) {
            err = iso_nomem(e, mid_bytes);
            goto done;
        }
        pass_horizontal(&across, in, h, w, channels, mid, ow);
        rows = mid;
    }
    if (oh == h) {
        memcpy(out, rows, mid_bytes);
        goto done;
    }
    if ((err = axis_init(&down, h, oh, filter, e)))
        goto done;
    sum = iso_calloc(mid_row, sizeof *sum);
    if (!sum) {
        err = iso_nomem(e, mid_row * sizeof *sum);
        goto done;
    }
    pass_vertical(&down, rows, mid_row, out, oh, sum);
done:
    axis_free(&across);
    axis_free(&down);
    free(mid);
    free(sum);
    return err;
}

/* ---- sizes, crop, normalisation ---- */

void iso_preprocess_size(const iso_preprocess *p, int *height, int *width)
{
    *height = p->do_center_crop ? p->crop_height : p->resize_height;
    *width = p->do_center_crop ? p->crop_width : p->resize_width;
}

static iso_err resized_size(const iso_preprocess *p, int h, int w, int *rh, int *rw, iso_error *e)
{
    *rh = h;
    *rw = w;
    if (!p->do_resize)
        return ISO_OK;
    *rh = p->resize_height;
    *rw = p->resize_width;
    if (p->shortest_edge) {
        int64_t edge = p->shortest_edge;
        int64_t longer = edge * (w <= h ? h : w) / (w <= h ? w : h); /* truncated, as in Python */
        if (longer * edge > 64 * 1000 * 1000)
            return iso_fail(e, ISO_ERR_DATA, "%dx%d pixels is too narrow to resize to %d", w, h,
                            p->shortest_edge);
        *rw = (int)(w <= h ? edge : longer);
        *rh = (int)(w <= h ? longer : edge);
    }
    return ISO_OK;
}

/* Centre crop; parts outside the picture are black. */
static void crop(const uint8_t *in, int h, int w, uint8_t *out, int ch, int cw)
{
    int top = h >= ch ? (h - ch) / 2 : -((ch - h) / 2 + (ch - h) % 2);
    int left = w >= cw ? (w - cw) / 2 : -((cw - w) / 2 + (cw - w) % 2);
    memset(out, 0, (size_t)ch * (size_t)cw * 3);
    for (int y = 0; y < ch; y++) {
        int sy = y + top;
        if (sy < 0 || sy >= h)
            continue;
        int from = left < 0 ? -left : 0;
        int to = left + cw > w ? w - left : cw;
        memcpy(out + ((size_t)y * (size_t)cw + (size_t)from) * 3,
               in + ((size_t)sy * (size_t)w + (size_t)(from + left)) * 3, (size_t)(to - from) * 3);
    }
}

iso_err iso_preprocess_u8(const iso_preprocess *p, const uint8_t *rgb, int h, int w, uint8_t *out,
                          iso_error *e)
{
    int rh, rw, oh, ow;
    iso_err err = resized_size(p, h, w, &rh, &rw, e);
    if (err)
        return err;
    iso_preprocess_size(p, &oh, &ow);
    if (!p->do_center_crop)
        return iso_resize_u8(rgb, h, w, 3, out, oh, ow, p->resample, e);
    if (rh == h && rw == w) {
        crop(rgb, h, w, out, oh, ow);
        return ISO_OK;
    }
    uint8_t *tmp = iso_calloc((size_t)rh * (size_t)rw, 3);
    if (!tmp)
        return iso_nomem(e, (size_t)rh * (size_t)rw * 3);
    err = iso_resize_u8(rgb, h, w, 3, tmp, rh, rw, p->resample, e);
    if (!err)
        crop(tmp, rh, rw, out, oh, ow);
    free(tmp);
    return err;
}

void iso_preprocess_levels(const iso_preprocess *p, float levels[3][256])
{
    for (int c = 0; c < 3; c++)
        for (int v = 0; v < 256; v++) {
            double x = p->do_rescale ? v * p->rescale_factor : v;
            levels[c][v] = (float)(p->do_normalize ? (x - p->mean[c]) / p->std[c] : x);
        }
}

void iso_preprocess_float(const iso_preprocess *p, const uint8_t *u8, float *out)
{
    int h, w;
    float levels[3][256];
    iso_preprocess_size(p, &h, &w);
    iso_preprocess_levels(p, levels);
    size_t n = (size_t)h * (size_t)w;
    for (size_t c = 0; c < 3; c++)
        for (size_t i = 0; i < n; i++)
            out[c * n + i] = levels[c][u8[i * 3 + c]];
}

/* ---- configuration ---- */

void iso_preprocess_default(iso_preprocess *p, int side)
{
    *p = (iso_preprocess){.do_resize = true,
                          .do_center_crop = true,
                          .do_rescale = true,
                          .do_normalize = true,
                          .shortest_edge = side,
                          .resample = ISO_RESAMPLE_BICUBIC,
                          .crop_height = side,
                          .crop_width = side,
                          .rescale_factor = 1 / 255.0,
                          .mean = {0.5, 0.5, 0.5},
                          .std = {0.5, 0.5, 0.5}};
}

static iso_err side(const iso_json *j, const char *field, int *out, iso_error *e)
{
    int64_t v;
    double d;
    bool is_whole = j && iso_json_int(j, &v);
    if (j && !is_whole && iso_json_num(j, &d) && d >= 1 && d <= ISO_IMAGE_SIDE_MAX &&
        d == floor(d)) {
        v = (int64_t)d; /* some writers store 224.0 */
        is_whole = true;
    }
    if (!is_whole || v < 1 || v > ISO_IMAGE_SIDE_MAX)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" must be a whole number from 1 to %d", field,
                        ISO_IMAGE_SIDE_MAX);
    *out = (int)v;
    return ISO_OK;
}

/* An integer, {height, width} or {shortest_edge}; `edge` NULL: a shortest edge means a square. */
static iso_err read_size(const iso_json *root, const char *field, bool int_is_edge, int *h, int *w,
                         int *edge, bool *is_there, iso_error *e)
{
    const iso_json *j = iso_json_key(root, field);
    iso_err err;
    *is_there = j && !iso_json_is_null(j);
    if (!*is_there)
        return ISO_OK;
    const iso_json *shortest = iso_json_is_object(j) ? iso_json_key(j, "shortest_edge") : NULL;
    if (!iso_json_is_object(j) || shortest) {
        int v;
        if ((err = side(shortest ? shortest : j, field, &v, e)))
            return err;
        *h = *w = v;
        if (edge)
            *edge = shortest || int_is_edge ? v : 0;
        return ISO_OK;
    }
    if (edge)
        *edge = 0;
    if ((err = side(iso_json_key(j, "height"), field, h, e)))
        return err;
    return side(iso_json_key(j, "width"), field, w, e);
}

static iso_err read_triple(const iso_json *root, const char *field, bool positive, double out[3],
                           iso_error *e)
{
    const iso_json *j = iso_json_key(root, field);
    if (!j || iso_json_is_null(j))
        return ISO_OK;
    if (!iso_json_is_array(j) || iso_json_count(j) != 3)
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" must be a list of three numbers", field);
    for (size_t i = 0; i < 3; i++)
        if (!iso_json_num(iso_json_at(j, i), &out[i]) || !isfinite(out[i]) || fabs(out[i]) > 1e6 ||
            (positive && !(out[i] > 1e-9)))
            return iso_fail(e, ISO_ERR_DATA, "\"%s\" must be a list of three %snumbers", field,
                            positive ? "positive " : "");
    return ISO_OK;
}

/* CLIP's and the convolutional processors take an integer size as the shortest edge, the others as
 * a square. */
static bool int_means_edge(const iso_json *root)
{
    const char *type = iso_json_str(iso_json_key(root, "image_processor_type"));
    if (!type)
        type = iso_json_str(iso_json_key(root, "feature_extractor_type"));
    return type && (strstr(type, "CLIP") || strstr(type, "Bit") || strstr(type, "ConvNext"));
}

static iso_err fill(iso_preprocess *p, const iso_json *root, iso_error *e)
{
    iso_err err;
    bool has_size, has_crop;
    int64_t resample;
    iso_preprocess_default(p, 224);
    p->shortest_edge = 0;
    p->resize_height = p->resize_width = 224;
    p->resample = ISO_RESAMPLE_BILINEAR;
    if ((err = read_size(root, "size", int_means_edge(root), &p->resize_height, &p->resize_width,
                         &p->shortest_edge, &has_size, e)) ||
        (err = read_size(root, "crop_size", false, &p->crop_height, &p->crop_width, NULL, &has_crop,
                         e)) ||
        (err = iso_json_get_bool(root, "do_resize", true, &p->do_resize, e)) ||
        (err = iso_json_get_bool(root, "do_center_crop", has_crop, &p->do_center_crop, e)) ||
        (err = iso_json_get_bool(root, "do_rescale", true, &p->do_rescale, e)) ||
        (err = iso_json_get_bool(root, "do_normalize", true, &p->do_normalize, e)) ||
        (err = iso_json_get_int(root, "resample", 0, 5, p->resample, &resample, e)) ||
        (err = iso_json_get_num(root, "rescale_factor", 1 / 255.0, &p->rescale_factor, e)) ||
        (err = read_triple(root, "image_mean", false, p->mean, e)) ||
        (err = read_triple(root, "image_std", true, p->std, e)))
        return err;
    if (p->do_resize && resample != ISO_RESAMPLE_BILINEAR && resample != ISO_RESAMPLE_BICUBIC)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"resample\" is %d; 2 (bilinear) and 3 (bicubic) are supported",
                        (int)resample);
    p->resample = resample == ISO_RESAMPLE_BICUBIC ? ISO_RESAMPLE_BICUBIC : ISO_RESAMPLE_BILINEAR;
    if (!isfinite(p->rescale_factor) || !(p->rescale_factor > 0) || p->rescale_factor > 1e6)
        return iso_fail(e, ISO_ERR_DATA, "\"rescale_factor\" must be a positive number");
    if (p->do_center_crop && !has_crop) {
        if (!has_size)
            return iso_fail(e, ISO_ERR_DATA, "neither \"size\" nor \"crop_size\" is given");
        p->crop_height = p->resize_height;
        p->crop_width = p->resize_width;
    }
    if (!p->do_center_crop && (p->shortest_edge || !p->do_resize)) {
        p->do_center_crop = true; /* otherwise sizes would differ from picture to picture */
        p->crop_height = p->resize_height;
        p->crop_width = p->resize_width;
    }
    return ISO_OK;
}

iso_err iso_preprocess_parse(iso_preprocess *p, const void *text, size_t size, const char *what,
                             iso_error *e)
{
    iso_json *root = NULL;
    iso_err err;
    if (size > CONFIG_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "%s: %zu bytes, the limit is %d", what, size,
                        CONFIG_MAX_BYTES);
    if ((err = iso_json_parse(text, size, what, &root, e)))
        return err;
    if (!iso_json_is_object(root))
        err = iso_fail(e, ISO_ERR_DATA, "%s: not a JSON object", what);
    else if ((err = fill(p, root, e))) {
        err = err == ISO_ERR_USAGE ? ISO_ERR_DATA : err; /* a file from outside, not a setting */
        iso_error_context(e, "%s", what);
        if (e)
            e->code = err;
    }
    iso_json_free(root);
    return err;
}

iso_err iso_preprocess_read(iso_preprocess *p, const char *path, iso_error *e)
{
    iso_buf text = {0};
    iso_err err;
    char *file =
        iso_is_dir(path) ? iso_path_join(path, "preprocessor_config.json") : iso_strdup(path);
    if (!file)
        return iso_nomem(e, strlen(path) + 32);
    if (!(err = iso_read_file(file, CONFIG_MAX_BYTES, &text, e)))
        err = iso_preprocess_parse(p, text.data, text.size, file, e);
    iso_buf_free(&text);
    free(file);
    return err;
}
