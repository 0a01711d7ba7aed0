/* GELU with the exact Gaussian integral: g = h Phi(h), g' = Phi(h) + h phi(h).
 * Hendrycks and Gimpel 2016. */
#ifndef ISO_NN_KERNEL_GELU_H
#define ISO_NN_KERNEL_GELU_H

#include <stddef.h>

/* g[i] = gelu(h[i]); g may be h. */
void iso_gelu_forward(size_t n, const float *h, float *g);
/* dh[i] = dg[i] * gelu'(h[i]) and, in the same pass, g[i] = gelu(h[i]). dh may be dg, g may be h.
 */
void iso_gelu_backward(size_t n, const float *h, const float *dg, float *dh, float *g);

#endif
