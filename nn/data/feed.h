/* Images as a model asks for them: an iso_pixels_fn (nn/model.h) over an image set, with seeded
 * shifts and mirroring for training. What image i looks like in draw d depends on seed, i and d
 * alone, so that resumed and parallel runs see the same pixels. */
#ifndef ISO_NN_DATA_FEED_H
#define ISO_NN_DATA_FEED_H

#include "nn/data/images.h"

typedef struct {
    const iso_image_set *set; /* borrowed */
    uint64_t seed;
    int shift;        /* up to this many pixels in each direction; borders repeat. 0: none */
    bool is_mirrored; /* left and right swapped in half of the draws */
} iso_image_feed;

/* ctx: const iso_image_feed *. Normalised pixels of rows idx[0..n-1] into out (n, 3, height,
 * width); draw 0 means the images as they are. Of a text set: token ids (n, token_room), always as
 * they are. */
void iso_image_feed_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out);

#endif
