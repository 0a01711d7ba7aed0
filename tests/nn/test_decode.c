/* Decoding of images, good and bad (specs/security.md 9.1, row PNG / JPEG). */
#include "nn/data/decode.h"
#include "tests/nn/image_fixture.h"

#include <png.h>

typedef struct {
    iso_err err;
    int h, w;
    uint8_t *rgb;
    iso_error e;
} decoded;

/* From an exact copy, so that a sanitizer sees a read past the end. */
static decoded decode(const void *data, size_t size)
{
    decoded d = {0};
    uint8_t *copy = malloc(size ? size : 1);
    assert_non_null(copy);
    memcpy(copy, data, size);
    d.err = iso_image_decode(copy, size, &d.rgb, &d.h, &d.w, &d.e);
    free(copy);
    return d;
}

static void refused(const void *data, size_t size, const char *wanted_in_line)
{
    decoded d = decode(data, size);
    assert_int_equal(d.err, ISO_ERR_DATA);
    assert_null(d.rgb);
    if (!strstr(d.e.text, wanted_in_line))
        fail_msg("\"%s\" does not say \"%s\"", d.e.text, wanted_in_line);
}

static void png_rgb_and_grey(void **state)
{
    (void)state;
    uint8_t p[5 * 4 * 3];
    for (int channels = 1; channels <= 3; channels += 2) {
        fixture_pixels(p, 5, 4, channels, 3);
        iso_buf b = fixture_png(5, 4, channels, 3);
        decoded d = decode(b.data, b.size);
        assert_int_equal(d.err, ISO_OK);
        assert_int_equal(d.h, 5);
        assert_int_equal(d.w, 4);
        for (int i = 0; i < 5 * 4; i++)
            for (int c = 0; c < 3; c++)
                assert_int_equal(d.rgb[i * 3 + c], p[channels == 3 ? i * 3 + c : i]);
        free(d.rgb);
        iso_buf_free(&b);
    }
}

/* Bytes of a PNG written by libpng in any of its forms. */
typedef struct {
    uint8_t bytes[8192];
    size_t size;
} png_bytes;

static void collect(png_structp png, png_bytep data, png_size_t n)
{
    png_bytes *out = png_get_io_ptr(png);
    assert_true(out->size + n <= sizeof out->bytes);
    memcpy(out->bytes + out->size, data, n);
    out->size += n;
}

static png_bytes write_png(int w, int h, int depth, int colour, int interlace, png_bytepp rows)
{
    png_bytes out = {.size = 0};
    png_structp png = png_create_write_struct(PNG_LIBPNG_VER_STRING, NULL, NULL, NULL);
    png_infop info = png_create_info_struct(png);
    assert_non_null(info);
    if (setjmp(png_jmpbuf(png)))
        fail_msg("libpng cannot write the test's picture");
    png_set_write_fn(png, &out, collect, NULL);
    png_set_IHDR(png, info, (png_uint_32)w, (png_uint_32)h, depth, colour, interlace,
                 PNG_COMPRESSION_TYPE_DEFAULT, PNG_FILTER_TYPE_DEFAULT);
    if (colour == PNG_COLOR_TYPE_PALETTE) {
        png_color palette[4] = {{1, 2, 3}, {40, 50, 60}, {70, 80, 90}, {250, 251, 252}};
        png_byte alpha[4] = {0, 10, 200, 255};
        png_set_PLTE(png, info, palette, 4);
        png_set_tRNS(png, info, alpha, 4, NULL);
    }
    png_set_rows(png, info, rows);
    png_write_png(png, info, PNG_TRANSFORM_IDENTITY, NULL);
    png_destroy_write_struct(&png, &info);
    return out;
}

static void png_other_forms(void **state)
{
    (void)state;
    /* 16-bit RGBA, interlaced: high bytes stay, alpha goes */
    uint8_t r0[16] = {1, 99, 2, 99, 3, 99, 0, 7, 200, 1, 100, 2, 50, 3, 255, 255};
    uint8_t r1[16] = {9, 0, 8, 0, 7, 0, 128, 0, 6, 255, 5, 255, 4, 255, 1, 1};
    png_bytep rows[2] = {r0, r1};
    png_bytes p = write_png(2, 2, 16, PNG_COLOR_TYPE_RGB_ALPHA, PNG_INTERLACE_ADAM7, rows);
    decoded d = decode(p.bytes, p.size);
    const uint8_t want[] = {1, 2, 3, 200, 100, 50, 9, 8, 7, 6, 5, 4};
    assert_int_equal(d.err, ISO_OK);
    assert_memory_equal(d.rgb, want, sizeof want);
    free(d.rgb);
    /* palette of 2 bits with transparency: its colours as they are */
    uint8_t packed[1] = {0x1B}; /* 0 1 2 3 */
    png_bytep one[1] = {packed};
    p = write_png(4, 1, 2, PNG_COLOR_TYPE_PALETTE, PNG_INTERLACE_NONE, one);
    d = decode(p.bytes, p.size);
    const uint8_t colours[] = {1, 2, 3, 40, 50, 60, 70, 80, 90, 250, 251, 252};
    assert_int_equal(d.err, ISO_OK);
    assert_memory_equal(d.rgb, colours, sizeof colours);
    free(d.rgb);
    /* one bit of grey */
    uint8_t bits[1] = {0xA0};
    png_bytep bit_row[1] = {bits};
    p = write_png(3, 1, 1, PNG_COLOR_TYPE_GRAY, PNG_INTERLACE_NONE, bit_row);
    d = decode(p.bytes, p.size);
    const uint8_t grey[] = {255, 255, 255, 0, 0, 0, 255, 255, 255};
    assert_int_equal(d.err, ISO_OK);
    assert_memory_equal(d.rgb, grey, sizeof grey);
    free(d.rgb);
}

static uint32_t crc_of(const uint8_t *p, size_t n)
{
    uint32_t c = 0xFFFFFFFF;
    for (size_t i = 0; i < n; i++) {
        c ^= p[i];
        for (int k = 0; k < 8; k++)
            c = c & 1 ? 0xEDB88320 ^ (c >> 1) : c >> 1;
    }
    return ~c;
}

static void put_be(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static void S91_png_claims_are_checked_before_memory_is_taken(void **state)
{
    (void)state;
    const struct {
        uint32_t w, h;
    } sizes[] = {{0x7FFFFFFF, 0x7FFFFFFF}, {65535, 65535}, {64000001, 1}, {8001, 8000}};
    iso_buf b = fixture_png(5, 4, 3, 1);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        put_be(b.data + 16, sizes[i].w);
        put_be(b.data + 20, sizes[i].h);
        put_be(b.data + 29, crc_of(b.data + 12, 17));
        decoded d = decode(b.data, b.size);
        assert_int_equal(d.err, ISO_ERR_DATA);
        assert_null(d.rgb);
    }
    iso_buf_free(&b);
}

static void S91_cut_and_changed_files_are_refused(void **state)
{
    (void)state;
    uint8_t p[24 * 20 * 3];
    fixture_pixels(p, 24, 20, 3, 7);
    iso_buf png = fixture_png(24, 20, 3, 7);
    iso_buf jpeg = fixture_jpeg(p, 24, 20, TJPF_RGB, 0);
    for (size_t n = 0; n < png.size; n += 7) {
        decoded d = decode(png.data, n);
        assert_int_equal(d.err, ISO_ERR_DATA);
        assert_null(d.rgb);
    }
    for (size_t n = 0; n + 2 < jpeg.size; n += 7) {
        decoded d = decode(jpeg.data, n);
        assert_int_equal(d.err, ISO_ERR_DATA);
        assert_null(d.rgb);
    }
    png.data[png.size / 2] ^= 0x10; /* inside the compressed rows */
    refused(png.data, png.size, "PNG cannot be decoded");
    refused("", 0, "empty");
    refused("GIF89a............", 18, "neither a PNG nor a JPEG");
    refused("hello, world", 12, "neither a PNG nor a JPEG");
    iso_buf_free(&png);
    iso_buf_free(&jpeg);
}

/* Largest difference to pixels that a good JPEG of smooth content may show. */
static void close_to(const uint8_t *a, const uint8_t *b, size_t n, int slack)
{
    for (size_t i = 0; i < n; i++)
        if (abs((int)a[i] - (int)b[i]) > slack)
            fail_msg("byte %zu is %d, expected about %d", i, a[i], b[i]);
}

static void jpeg_forms(void **state)
{
    (void)state;
    enum { H = 16, W = 24 };
    uint8_t rgb[H * W * 3], grey[H * W], cmyk[H * W * 4];
    for (int i = 0; i < H * W; i++) {
        rgb[i * 3] = (uint8_t)(40 + i % W * 4);
        rgb[i * 3 + 1] = (uint8_t)(60 + i / W * 6);
        rgb[i * 3 + 2] = 128;
        grey[i] = (uint8_t)(i % W * 8);
        for (int c = 0; c < 3; c++) /* Adobe's way: light times black */
            cmyk[i * 4 + c] = rgb[i * 3 + c];
        cmyk[i * 4 + 3] = 255;
    }
    const int flags[] = {0, TJFLAG_PROGRESSIVE};
    for (size_t f = 0; f < 2; f++) {
        iso_buf b = fixture_jpeg(rgb, H, W, TJPF_RGB, flags[f]);
        decoded d = decode(b.data, b.size);
        assert_int_equal(d.err, ISO_OK);
        assert_int_equal(d.w, W);
        close_to(d.rgb, rgb, sizeof rgb, 6);
        free(d.rgb);
        iso_buf_free(&b);
    }
    iso_buf g = fixture_jpeg(grey, H, W, TJPF_GRAY, 0);
    decoded d = decode(g.data, g.size);
    assert_int_equal(d.err, ISO_OK);
    for (int i = 0; i < H * W; i++)
        for (int c = 0; c < 3; c++)
            close_to(&d.rgb[i * 3 + c], &grey[i], 1, 6);
    free(d.rgb);
    iso_buf_free(&g);
    iso_buf k = fixture_jpeg(cmyk, H, W, TJPF_CMYK, 0);
    d = decode(k.data, k.size);
    assert_int_equal(d.err, ISO_OK);
    close_to(d.rgb, rgb, sizeof rgb, 8);
    free(d.rgb);
    iso_buf_free(&k);
}

/* The library tells of its first warning only: stray bytes before a cut must not hide the cut. */
static void S91_stray_bytes_do_not_hide_a_cut(void **state)
{
    (void)state;
    uint8_t p[64 * 64 * 3];
    iso_error e;
    fixture_pixels(p, 64, 64, 3, 4);
    iso_buf b = fixture_jpeg(p, 64, 64, TJPF_RGB, 0), changed = {0};
    size_t scan = 2;
    while (b.data[scan] != 0xFF || b.data[scan + 1] != 0xDA) /* segment by segment */
        scan += 2 + ((size_t)b.data[scan + 2] << 8 | b.data[scan + 3]);
    assert_int_equal(iso_buf_append(&changed, b.data, scan, &e), ISO_OK);
    assert_int_equal(iso_buf_append(&changed, "stray", 5, &e), ISO_OK);
    assert_int_equal(iso_buf_append(&changed, b.data + scan, (b.size - scan) / 2, &e), ISO_OK);
    refused(changed.data, changed.size, "JPEG cannot be decoded");
    iso_buf_free(&b);
    iso_buf_free(&changed);
}

static void S91_progressive_bomb_is_refused(void **state)
{
    (void)state;
    uint8_t p[16 * 16];
    iso_error e;
    fixture_pixels(p, 16, 16, 1, 5);
    iso_buf b = fixture_jpeg(p, 16, 16, TJPF_GRAY, TJFLAG_PROGRESSIVE);
    /* the last scan again and again, before the end marker */
    size_t last = 0;
    for (size_t i = 2; i + 1 < b.size; i++)
        if (b.data[i] == 0xFF && b.data[i + 1] == 0xDA)
            last = i;
    assert_true(last > 0);
    size_t n = b.size - 2 - last;
    uint8_t *scan = malloc(n);
    assert_non_null(scan);
    memcpy(scan, b.data + last, n);
    b.size -= 2;
    for (int k = 0; k < 120; k++)
        assert_int_equal(iso_buf_append(&b, scan, n, &e), ISO_OK);
    assert_int_equal(iso_buf_append(&b, "\xFF\xD9", 2, &e), ISO_OK);
    refused(b.data, b.size, "scans");
    free(scan);
    iso_buf_free(&b);
}

static void S91_jpeg_claims_are_checked(void **state)
{
    (void)state;
    uint8_t p[16 * 16];
    fixture_pixels(p, 16, 16, 1, 5);
    iso_buf b = fixture_jpeg(p, 16, 16, TJPF_GRAY, 0);
    for (size_t i = 2; i + 9 < b.size; i++)
        if (b.data[i] == 0xFF && b.data[i + 1] == 0xC0) {
            memset(b.data + i + 5, 0xFF, 4); /* 65535 x 65535 */
            break;
        }
    decoded d = decode(b.data, b.size);
    assert_int_equal(d.err, ISO_ERR_DATA);
    iso_buf_free(&b);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(png_rgb_and_grey),
        cmocka_unit_test(png_other_forms),
        cmocka_unit_test(S91_png_claims_are_checked_before_memory_is_taken),
        cmocka_unit_test(S91_cut_and_changed_files_are_refused),
        cmocka_unit_test(jpeg_forms),
        cmocka_unit_test(S91_stray_bytes_do_not_hide_a_cut),
        cmocka_unit_test(S91_progressive_bomb_is_refused),
        cmocka_unit_test(S91_jpeg_claims_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
