#include "nn/kernel/norm.h"

#include "core/simd.h"

#include <math.h>

/* Two passes over a row that is in L1: the variance does not suffer from a large mean. */
static inline __attribute__((always_inline)) float moments(size_t d, const float *x, float eps,
                                                           float *mean)
{
    float sum = 0.0F, squares = 0.0F;
#pragma omp simd reduction(+ : sum)
    for (size_t j = 0; j < d; j++)
        sum += x[j];
    float mu = sum / (float)d;
#pragma omp simd reduction(+ : squares)
    for (size_t j = 0; j < d; j++)
        squares += (x[j] - mu) * (x[j] - mu);
    *mean = mu;
    return 1.0F / sqrtf(squares / (float)d + eps);
}

ISO_CLONES void iso_norm_forward(const iso_norm *n, size_t m, const float *x, size_t ldx, float *y)
{
    size_t d = n->dim;
    const float *w = n->w, *b = n->b;
    for (size_t i = 0; i < m; i++, x += ldx, y += d) {
        float mean;
        float rstd = moments(d, x, n->eps, &mean);
#pragma omp simd
        for (size_t j = 0; j < d; j++)
            y[j] = (x[j] - mean) * rstd * w[j] + b[j];
    }
}

/* With u = dy w and v = (x - mean) rstd: dx = rstd (u - mean(u) - v mean(u v)). */
ISO_CLONES void iso_norm_backward(const iso_norm *n, size_t m, const float *x, const float *dy,
                                  const float *add, float *dx, size_t ldx)
{
    size_t d = n->dim;
    const float *w = n->w;
    for (size_t i = 0; i < m; i++) {
        const float *xi = x + i * ldx, *dyi = dy + i * d;
        float *dxi = dx + i * ldx;
        float mean, sum_u = 0.0F, sum_uv = 0.0F;
        float rstd = moments(d, xi, n->eps, &mean);
#pragma omp simd reduction(+ : sum_u, sum_uv)
        for (size_t j = 0; j < d; j++) {
            float u = dyi[j] * w[j];
            sum_u += u;
            sum_uv += u * ((xi[j] - mean) * rstd);
        }
        float mean_u = sum_u / (float)d, mean_uv = sum_uv / (float)d;
        if (add) {
            const float *ai = add + i * ldx;
#pragma omp simd
            for (size_t j = 0; j < d; j++)
                dxi[j] =
                    ai[j] + rstd * (dyi[j] * w[j] - mean_u - ((xi[j] - mean) * rstd) * mean_uv);
        } else {
#pragma omp simd
            for (size_t j = 0; j < d; j++)
                dxi[j] = rstd * (dyi[j] * w[j] - mean_u - ((xi[j] - mean) * rstd) * mean_uv);
        }
    }
}
