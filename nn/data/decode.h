/* Bytes of a PNG or JPEG file to RGB pixels, with every limit checked before memory is taken
 * (specs/security.md 9.1, 9.3). */
#ifndef ISO_NN_DATA_DECODE_H
#define ISO_NN_DATA_DECODE_H

#include "core/err.h"

#include <stddef.h>
#include <stdint.h>

enum {
    ISO_IMAGE_PIXELS_MAX = 64 * 1000 * 1000,
    ISO_IMAGE_EDGE_MAX = 65535,
    ISO_IMAGE_SCANS_MAX = 100 /* of a progressive JPEG */
};

/* Decodes a PNG or JPEG, recognised by its first bytes, to RGB (h, w, 3), a new allocation to be
 * freed. 16-bit becomes 8 by its high byte, grey becomes RGB, palettes are expanded, alpha is
 * dropped, CMYK is converted. EXIF rotation and colour profiles are not applied (neither do the
 * usual training tools unless told, and a factory's camera does not turn). A file that ends early
 * is refused, not completed with grey. */
iso_err iso_image_decode(const void *data, size_t size, uint8_t **rgb, int *h, int *w,
                         iso_error *e) ISO_MUST_CHECK;

#endif
