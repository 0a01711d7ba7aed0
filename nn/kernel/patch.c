#include "nn/kernel/patch.h"

#include <string.h>

void iso_patch_rows(const float *pixels, size_t channels, size_t side, size_t p, float *rows)
{
    size_t grid = side / p;
    for (size_t gy = 0; gy < grid; gy++)
        for (size_t gx = 0; gx < grid; gx++)
            for (size_t c = 0; c < channels; c++)
                for (size_t y = 0; y < p; y++) {
                    memcpy(rows, pixels + (c * side + gy * p + y) * side + gx * p,
                           p * sizeof *rows);
                    rows += p;
                }
}

void iso_patch_embed(const iso_packed *projection, const float *bias, const float *position,
                     const float *pixels, size_t channels, size_t side, size_t p, float *rows,
                     float *tokens, size_t ldt)
{
    size_t grid = side / p;
    iso_patch_rows(pixels, channels, side, p, rows);
    iso_packed_forward(projection, 0, projection->out, bias, grid * grid, rows, projection->in,
                       position, projection->out, tokens, ldt);
}
