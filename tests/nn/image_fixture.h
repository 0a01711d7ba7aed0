/* Temporary folders with images made on the spot, for the tests of nn/data. */
#ifndef TESTS_NN_IMAGE_FIXTURE_H
#define TESTS_NN_IMAGE_FIXTURE_H

#include "core/fsio.h"
#include "nn/data/encode.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>
#include <turbojpeg.h>

static inline char *fixture_folder(void)
{
    char name[] = "/tmp/iso-images-XXXXXX";
    assert_non_null(mkdtemp(name));
    return iso_strdup(name);
}

static inline void fixture_remove(char *folder)
{
    iso_error e;
    assert_int_equal(iso_remove_tree(folder, &e), ISO_OK);
    free(folder);
}

/* Writes bytes to folder/path, making the folders on the way. */
static inline void fixture_write(const char *folder, const char *path, const void *data,
                                 size_t size)
{
    iso_error e;
    char *full = iso_path_join(folder, path);
    char *parent = iso_strdup(full);
    *strrchr(parent, '/') = 0;
    assert_int_equal(iso_make_dirs(parent, 0755, &e), ISO_OK);
    assert_int_equal(iso_write_file(full, data, size, 0644, &e), ISO_OK);
    free(parent);
    free(full);
}

/* A picture whose pixels depend on `seed`. */
static inline void fixture_pixels(uint8_t *p, int h, int w, int channels, unsigned seed)
{
    for (int i = 0; i < h * w * channels; i++)
        p[i] = (uint8_t)((unsigned)i * (37 + 2 * seed) + seed * 11);
}

static inline iso_buf fixture_png(int h, int w, int channels, unsigned seed)
{
    iso_error e;
    iso_buf b = {0};
    uint8_t *p = iso_calloc((size_t)h * (size_t)w, (size_t)channels);
    assert_non_null(p);
    fixture_pixels(p, h, w, channels, seed);
    assert_int_equal(iso_png_encode(p, h, w, channels, &b, &e), ISO_OK);
    free(p);
    return b;
}

static inline void fixture_write_png(const char *folder, const char *path, unsigned seed)
{
    iso_buf b = fixture_png(9, 12, 3, seed);
    fixture_write(folder, path, b.data, b.size);
    iso_buf_free(&b);
}

/* format: TJPF_GRAY, TJPF_RGB or TJPF_CMYK; flags: TJFLAG_PROGRESSIVE */
static inline iso_buf fixture_jpeg(const uint8_t *pixels, int h, int w, int format, int flags)
{
    unsigned char *out = NULL;
    unsigned long size = 0;
    iso_error e;
    iso_buf b = {0};
    tjhandle tj = tjInitCompress();
    assert_non_null(tj);
    int rc = tjCompress2(tj, pixels, w, 0, h, format, &out, &size,
                         format == TJPF_GRAY ? TJSAMP_GRAY : TJSAMP_444, 95, flags);
    assert_int_equal(rc, 0);
    assert_int_equal(iso_buf_append(&b, out, size, &e), ISO_OK);
    tjFree(out);
    tjDestroy(tj);
    return b;
}

#endif
