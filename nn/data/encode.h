/* Pixels to PNG bytes, for the demo's data and the tests. */
#ifndef ISO_NN_DATA_ENCODE_H
#define ISO_NN_DATA_ENCODE_H

#include "core/mem.h"

/* Appends a PNG of 8-bit pixels (h, w, channels), channels 1 (grey) or 3 (RGB). */
iso_err iso_png_encode(const uint8_t *pixels, int h, int w, int channels, iso_buf *out,
                       iso_error *e) ISO_MUST_CHECK;

#endif
