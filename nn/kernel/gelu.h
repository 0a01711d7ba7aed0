/* GELU with the exact Gaussian integral: g = h Phi(h), g' = Phi(h) + h phi(h); and its fast
 * stand-in of CLIP: g = h S, g' = S + 1.702 h S (1 - S), S = 1 / (1 + exp(-1.702 h)). Hendrycks and
 * Gimpel 2016. */
#ifndef ISO_NN_KERNEL_GELU_H
#define ISO_NN_KERNEL_GELU_H

#include <stddef.h>

/* g[i] = gelu(h[i]); g may be h. */
void iso_gelu_forward(size_t n, const float *h, float *g);
/* dh[i] = dg[i] * gelu'(h[i]) and, in the same pass, g[i] = gelu(h[i]). dh may be dg, g may be h.
 */
void iso_gelu_backward(size_t n, const float *h, const float *dg, float *dh, float *g);

void iso_quick_gelu_forward(size_t n, const float *h, float *g);
void iso_quick_gelu_backward(size_t n, const float *h, const float *dg, float *dh, float *g);

/* By the name in config.json's hidden_act; NULL if there is none. */
typedef struct {
    const char *name;
    void (*forward)(size_t n, const float *h, float *g);
    void (*backward)(size_t n, const float *h, const float *dg, float *dh, float *g);
} iso_activation;
const iso_activation *iso_activation_find(const char *name);

#endif
