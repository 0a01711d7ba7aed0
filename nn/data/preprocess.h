/* From decoded pixels to what a backbone expects, as its preprocessor_config.json says.
 *
 * Resizing follows Pillow's 8-bit resampling (antialiased: the filter widens with the downscale
 * factor; fixed-point coefficients of 22 bits; horizontal pass, rounded to 8 bits, then vertical),
 * since that is what backbones were trained with. The Hugging Face image processors' rules for
 * sizes hold: the short edge becomes shortest_edge and the long edge is truncated, the crop is
 * centred and padded with black where it is larger than the picture. */
#ifndef ISO_NN_DATA_PREPROCESS_H
#define ISO_NN_DATA_PREPROCESS_H

#include "core/err.h"

#include <stdbool.h>
#include <stdint.h>

/* Values are those of the field "resample". */
typedef enum { ISO_RESAMPLE_BILINEAR = 2, ISO_RESAMPLE_BICUBIC = 3 } iso_resample;

enum { ISO_IMAGE_SIDE_MAX = 4096 }; /* of an input to a backbone */

typedef struct {
    bool do_resize, do_center_crop, do_rescale, do_normalize;
    int shortest_edge;               /* 0 when height and width are fixed */
    int resize_height, resize_width; /* used when shortest_edge is 0 */
    iso_resample resample;
    int crop_height, crop_width;
    double rescale_factor;
    double mean[3], std[3]; /* RGB */
} iso_preprocess;

/* Square of `side` pixels: short edge resized to it (bicubic), centre crop, 1/255, mean and
 * deviation 0.5. For backbones without a preprocessor file. */
void iso_preprocess_default(iso_preprocess *p, int side);

/* Reads a preprocessor_config.json, or the one in a folder. Unknown fields are ignored (the files
 * carry many), known fields with a bad value are ISO_ERR_DATA with the field named. `size` and
 * `crop_size` may be an integer, {shortest_edge} or {height, width}. When the result would have no
 * fixed size (shortest_edge without a crop) a centre crop of that size is added. */
iso_err iso_preprocess_read(iso_preprocess *p, const char *path, iso_error *e) ISO_MUST_CHECK;
iso_err iso_preprocess_parse(iso_preprocess *p, const void *text, size_t size, const char *what,
                             iso_error *e) ISO_MUST_CHECK;

/* Height and width of the result. */
void iso_preprocess_size(const iso_preprocess *p, int *height, int *width);

/* Resizes interleaved 8-bit pixels (h, w, channels), channels 1..4, into out (oh, ow, channels). */
iso_err iso_resize_u8(const uint8_t *in, int h, int w, int channels, uint8_t *out, int oh, int ow,
                      iso_resample filter, iso_error *e) ISO_MUST_CHECK;

/* Resize and crop: rgb (h, w, 3) to out (height, width, 3) of iso_preprocess_size(). */
iso_err iso_preprocess_u8(const iso_preprocess *p, const uint8_t *rgb, int h, int w, uint8_t *out,
                          iso_error *e) ISO_MUST_CHECK;

/* What each grey level of each channel becomes. */
void iso_preprocess_levels(const iso_preprocess *p, float levels[3][256]);

/* Rescale and normalise: u8 (height, width, 3) to out (3, height, width). */
void iso_preprocess_float(const iso_preprocess *p, const uint8_t *u8, float *out);

#endif
