/* Any bytes as an image file: decoded within the limits or refused with a line. */
#include "nn/data/decode.h"
#include "nn/data/preprocess.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t small[16 * 16 * 3];
    iso_error e = {0};
    uint8_t *rgb;
    int h, w;
    if (iso_image_decode(data, size, &rgb, &h, &w, &e)) {
        if (rgb || !e.text[0] || strchr(e.text, '\n'))
            abort();
        return 0;
    }
    if (h < 1 || w < 1 || (int64_t)h * w > ISO_IMAGE_PIXELS_MAX)
        abort();
    iso_preprocess p;
    iso_preprocess_default(&p, 16);
    if (iso_preprocess_u8(&p, rgb, h, w, small, &e) && !e.text[0])
        abort();
    free(rgb);
    return 0;
}
