#include "nn/kernel/gelu.h"

#include "core/simd.h"
#include "nn/kernel/vmath.h"

#include <string.h>

ISO_CLONES void iso_gelu_forward(size_t n, const float *h, float *g)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float pdf;
        float x = h[i];
        g[i] = x * iso_normal_cdf(x, &pdf);
    }
}

ISO_CLONES void iso_gelu_backward(size_t n, const float *h, const float *dg, float *dh, float *g)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float pdf;
        float x = h[i];
        float cdf = iso_normal_cdf(x, &pdf);
        dh[i] = dg[i] * (cdf + x * pdf);
        g[i] = x * cdf;
    }
}

ISO_CLONES void iso_quick_gelu_forward(size_t n, const float *h, float *g)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float x = h[i];
        g[i] = x / (1.0F + iso_exp(-1.702F * x));
    }
}

ISO_CLONES void iso_quick_gelu_backward(size_t n, const float *h, const float *dg, float *dh,
                                        float *g)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float x = h[i];
        float S = 1.0F / (1.0F + iso_exp(-1.702F * x));
        dh[i] = dg[i] * (S + 1.702F * x * S * (1.0F - S));
        g[i] = x * S;
    }
}

const iso_activation *iso_activation_find(const char *name)
{
    static const iso_activation rows[] = {
        {"gelu", iso_gelu_forward, iso_gelu_backward},
        {"quick_gelu", iso_quick_gelu_forward, iso_quick_gelu_backward}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        if (strcmp(rows[i].name, name) == 0)
            return &rows[i];
    return NULL;
}
