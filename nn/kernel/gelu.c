#include "nn/kernel/gelu.h"

#include "core/simd.h"
#include "nn/kernel/vmath.h"

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
