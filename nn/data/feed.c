/* Seeded pixels of an image set; see feed.h. */
#include "nn/data/feed.h"

#include "core/rng.h"

enum { NUMBERS_AN_IMAGE = 4 }; /* its own part of the stream */

static int clamp(int v, int n)
{
    return v < 0 ? 0 : v >= n ? n - 1 : v;
}

void iso_image_feed_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const iso_image_feed *f = ctx;
    const iso_image_set *s = f->set;
    if (s->tokens) {
        for (size_t i = 0; i < n * s->token_room; i++)
            out[i] = (float)s->tokens[idx[i / s->token_room] * s->token_room + i % s->token_room];
        return;
    }
    int h = s->height, w = s->width;
    size_t plane = (size_t)h * (size_t)w, bytes = plane * 3;
    float level[3][256];
    iso_preprocess_levels(&s->pre, level);
    for (size_t i = 0; i < n; i++) {
        const uint8_t *in = s->pixels + idx[i] * bytes;
        int dx = 0, dy = 0;
        bool mirror = false;
        if (draw && (f->shift || f->is_mirrored)) {
            iso_rng r = iso_rng_make(f->seed, ISO_RNG_AUGMENT, draw);
            r.index = (uint64_t)idx[i] * NUMBERS_AN_IMAGE;
            uint32_t a = iso_rng_u32(&r), b = iso_rng_u32(&r), c = iso_rng_u32(&r);
            uint32_t span = 2 * (uint32_t)f->shift + 1; /* bias of the remainder: below 1e-7 */
            dx = (int)(a % span) - f->shift;
            dy = (int)(b % span) - f->shift;
            mirror = f->is_mirrored && (c & 1);
        }
        float *o = out + i * bytes;
        for (int y = 0; y < h; y++) {
            const uint8_t *row = in + (size_t)clamp(y + dy, h) * (size_t)w * 3;
            for (int x = 0; x < w; x++) {
                const uint8_t *p = row + (size_t)clamp((mirror ? w - 1 - x : x) + dx, w) * 3;
                size_t at = (size_t)y * (size_t)w + (size_t)x;
                for (size_t c = 0; c < 3; c++)
                    o[c * plane + at] = level[c][p[c]];
            }
        }
    }
}
