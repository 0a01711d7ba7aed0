/* Any bytes as preprocessor_config.json; what is accepted must work on a picture. */
#include "nn/data/preprocess.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_error e = {0};
    iso_preprocess p;
    int h, w;
    if (iso_preprocess_parse(&p, data, size, "input", &e)) {
        if (!e.text[0])
            abort();
        return 0;
    }
    iso_preprocess_size(&p, &h, &w);
    if (h < 1 || w < 1 || h > ISO_IMAGE_SIDE_MAX || w > ISO_IMAGE_SIDE_MAX)
        abort();
    if (h > 256 || w > 256 || p.shortest_edge > 256 || p.resize_height > 256 ||
        p.resize_width > 256)
        return 0; /* right, but slow */
    static const uint8_t picture[4 * 3 * 3] = {9, 200, 30, 255, 0, 1};
    uint8_t *out = malloc((size_t)(h * w) * 3);
    float *f = malloc((size_t)(h * w) * 3 * sizeof *f);
    if (!out || !f)
        exit(5);
    if (!iso_preprocess_u8(&p, picture, 4, 3, out, &e)) {
        iso_preprocess_float(&p, out, f);
        for (size_t i = 0; i < (size_t)(h * w) * 3; i++)
            if (isnan(f[i]))
                abort();
    }
    free(out);
    free(f);
    return 0;
}
