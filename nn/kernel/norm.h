/* Layer norm over the last dimension: y = (x - mean) / sqrt(var + eps) * w + b, var biased.
 * Ba, Kiros and Hinton 2016. w and b are frozen: they get no gradient. */
#ifndef ISO_NN_KERNEL_NORM_H
#define ISO_NN_KERNEL_NORM_H

#include <stddef.h>

typedef struct {
    size_t dim;
    const float *w, *b; /* (dim) */
    float eps;
} iso_norm;

/* y (m, dim) dense; rows of x lie ldx apart. y may be x when ldx is dim. */
void iso_norm_forward(const iso_norm *n, size_t m, const float *x, size_t ldx, float *y);
/* dx = gradient to x [+ add]; dy (m, dim) dense, add and dx with rows ldx apart like x; add may be
 * NULL or dx; with ldx = dim dx may be dy. Mean and variance are recomputed from x: cheaper than a
 * read of saved ones' row. */
void iso_norm_backward(const iso_norm *n, size_t m, const float *x, const float *dy,
                       const float *add, float *dx, size_t ldx);

#endif
