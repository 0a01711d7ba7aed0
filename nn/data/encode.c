/* PNG by libpng's simplified writer; see encode.h. */
#include "nn/data/encode.h"

#include <png.h>
#include <string.h>

iso_err iso_png_encode(const uint8_t *pixels, int h, int w, int channels, iso_buf *out,
                       iso_error *e)
{
    png_alloc_size_t bytes = 0;
    png_image image;
    iso_err err;
    memset(&image, 0, sizeof image);
    image.version = PNG_IMAGE_VERSION;
    if (h < 1 || w < 1 || (channels != 1 && channels != 3))
        return iso_fail(e, ISO_ERR_SHAPE, "cannot write %dx%d pixels of %d channels", w, h,
                        channels);
    image.height = (png_uint_32)h;
    image.width = (png_uint_32)w;
    image.format = channels == 1 ? PNG_FORMAT_GRAY : PNG_FORMAT_RGB;
    bytes = PNG_IMAGE_PNG_SIZE_MAX(image); /* an upper bound: one compression is enough */
    if ((err = iso_buf_reserve(out, bytes, e)))
        return err;
    if (!png_image_write_to_memory(&image, out->data + out->size, &bytes, 0, pixels, 0, NULL))
        return iso_fail(e, ISO_ERR_INTERNAL, "PNG cannot be written: %s", image.message);
    out->size += bytes;
    return ISO_OK;
}
