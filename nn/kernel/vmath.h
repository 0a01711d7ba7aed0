/* exp and the Gaussian integral for loops that vectorise: no branches, no tables, no libm.
 *
 * The polynomials are our own least-maximum fits (relative error over the stated range):
 *   2^f on [-1/2, 1/2]: 2e-9;   erfc(z) e^{z^2} in t = 1/(1 + 0.33 z), z >= 0: 1e-7.
 * Evaluated in single precision the results are within 3e-7 of the true value, relative for exp and
 * for the tail of the integral. Every path (vector body, remainder) does the same operations in the
 * same order, so bits do not depend on alignment or length. */
#ifndef ISO_NN_KERNEL_VMATH_H
#define ISO_NN_KERNEL_VMATH_H

#include <stdint.h>
#include <string.h>

/* e^x; arguments beyond -87 and 88 are taken as these. */
static inline float iso_exp(float x)
{
    x = x < -87.0F ? -87.0F : x;
    x = x > 88.0F ? 88.0F : x;
    float shifted = x * 1.44269504F + 12582912.0F; /* 1.5 * 2^23: rounds to the nearest integer */
    float n = shifted - 12582912.0F;
    float r = (x - n * 0.693359375F) - n * -2.12194440e-4F; /* ln 2 in two parts */
    float f = r * 1.44269504F;
    float p = 1.53533591e-4F;
    p = p * f + 1.33988754e-3F;
    p = p * f + 9.61843738e-3F;
    p = p * f + 5.55033247e-2F;
    p = p * f + 2.40226479e-1F;
    p = p * f + 6.93147203e-1F;
    p = p * f + 1.0F;
    /* n stands in the last bits of `shifted`; no conversion, which would be undefined for NaN. */
    uint32_t bits;
    float scale;
    memcpy(&bits, &shifted, sizeof bits);
    bits = (bits - 0x4b400000U + 127U) << 23;
    memcpy(&scale, &bits, sizeof scale);
    return p * scale;
}

/* Phi(x) = (1 + erf(x / sqrt 2)) / 2; *pdf is its derivative. */
static inline float iso_normal_cdf(float x, float *pdf)
{
    float magnitude = x < 0.0F ? -x : x;
    float z = magnitude * 0.707106781F;
    float t = 1.0F / (1.0F + 0.33F * z);
    float e = iso_exp(-0.5F * x * x);
    float p = -0.135352458F;
    p = p * t + 0.460263675F;
    p = p * t + -0.351192802F;
    p = p * t + 0.408537399F;
    p = p * t + 0.0472019169F;
    p = p * t + 0.201229293F;
    p = p * t + 0.182955110F;
    p = p * t + 0.186357856F;
    float half_erfc = 0.5F * (p * t) * e;
    *pdf = e * 0.398942280F;
    return x < 0.0F ? half_erfc : 1.0F - half_erfc;
}

#endif
