/* Cross-entropy of logits: loss = -log softmax(z)[label], averaged by the caller's scale. */
#ifndef ISO_NN_KERNEL_LOSS_H
#define ISO_NN_KERNEL_LOSS_H

#include <stddef.h>

/* Sum of the losses of m rows of logits (m, classes), in double. When dlogits is not NULL it gets
 * scale * (softmax(z) - onehot) (scale = 1 / batch size for a mean); it may be logits.
 * Labels must lie in 0 .. classes-1. */
double iso_loss_rows(size_t m, size_t classes, const float *logits, const int *labels, float scale,
                     float *dlogits);

#endif
