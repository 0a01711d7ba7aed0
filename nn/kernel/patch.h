/* Patch embedding: a convolution whose stride is its kernel, as a product over cut-out patches.
 * Dosovitskiy et al. 2021. The projection is frozen; the pixels need no gradient. */
#ifndef ISO_NN_KERNEL_PATCH_H
#define ISO_NN_KERNEL_PATCH_H

#include "nn/kernel/gemm.h"

/* Patches of one image: pixels (channels, side, side) to rows (patches, channels * p * p), patches
 * in reading order, a row in the order of the convolution's weight (channel, y, x). */
void iso_patch_rows(const float *pixels, size_t channels, size_t side, size_t p, float *rows);

/* tokens (patches, dim), rows ldt apart = patches x projection' + bias + position. projection is
 * (dim, channels * p * p); position (patches, dim). */
void iso_patch_embed(const iso_packed *projection, const float *bias, const float *position,
                     const float *pixels, size_t channels, size_t side, size_t p, float *rows,
                     float *tokens, size_t ldt);

#endif
