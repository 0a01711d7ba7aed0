#include "nn/kernel/attention.h"

#include "core/simd.h"
#include "nn/kernel/gemm.h"
#include "nn/kernel/vmath.h"

#include <math.h>

/* Lane by lane: a maximum as an omp reduction vectorises with gcc only. */
static inline __attribute__((always_inline)) float largest(size_t n, const float *x)
{
    enum { LANES = 16 };
    float lane[LANES], top = x[0];
    for (size_t k = 0; k < LANES; k++)
        lane[k] = top;
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) {
#pragma omp simd
        for (size_t k = 0; k < LANES; k++)
            lane[k] = x[j + k] > lane[k] ? x[j + k] : lane[k];
    }
    for (; j < n; j++)
        top = x[j] > top ? x[j] : top;
    for (size_t k = 0; k < LANES; k++)
        top = lane[k] > top ? lane[k] : top;
    return top;
}

ISO_CLONES void iso_softmax_rows(size_t m, size_t n, float *s, size_t ld, float *log_sum)
{
    for (size_t i = 0; i < m; i++) {
        float *row = s + i * ld;
        float top = largest(n, row), sum = 0.0F;
#pragma omp simd reduction(+ : sum)
        for (size_t j = 0; j < n; j++) {
            float p = iso_exp(row[j] - top);
            row[j] = p;
            sum += p;
        }
        float inverse = 1.0F / sum;
#pragma omp simd
        for (size_t j = 0; j < n; j++)
            row[j] *= inverse;
        if (log_sum)
            log_sum[i] = top + logf(sum);
    }
}

/* Scores become probabilities again: p = exp(s - log_sum). */
ISO_CLONES static void restore_rows(size_t m, size_t n, float *s, const float *log_sum)
{
    for (size_t i = 0; i < m; i++) {
        float *row = s + i * n;
        float l = log_sum[i];
#pragma omp simd
        for (size_t j = 0; j < n; j++)
            row[j] = iso_exp(row[j] - l);
    }
}

/* dp becomes ds. */
ISO_CLONES static void softmax_backward_rows(size_t m, size_t n, const float *p, float *dp,
                                             float scale)
{
    for (size_t i = 0; i < m; i++, p += n, dp += n) {
        float dot = 0.0F;
#pragma omp simd reduction(+ : dot)
        for (size_t j = 0; j < n; j++)
            dot += p[j] * dp[j];
#pragma omp simd
        for (size_t j = 0; j < n; j++)
            dp[j] = scale * p[j] * (dp[j] - dot);
    }
}

size_t iso_attention_scratch(size_t nq, size_t n)
{
    return (nq * n + 15) / 16 * 16;
}

void iso_attention_forward(const iso_attention *a, float *o, size_t ldo, float *log_sum,
                           float *scratch)
{
    iso_gemm(false, true, a->nq, a->n, a->d, a->scale, a->q, a->ldq, a->k, a->ldkv, 0.0F, scratch,
             a->n);
    iso_softmax_rows(a->nq, a->n, scratch, a->n, log_sum);
    iso_gemm(false, false, a->nq, a->d, a->n, 1.0F, scratch, a->n, a->v, a->ldkv, 0.0F, o, ldo);
}

void iso_attention_backward(const iso_attention *a, const float *log_sum, const float *dout,
                            size_t ldo, float *dq, size_t lddq, float *dk, float *dv, size_t lddkv,
                            float *scratch)
{
    float *p = scratch, *ds = scratch + iso_attention_scratch(a->nq, a->n);
    iso_gemm(false, true, a->nq, a->n, a->d, a->scale, a->q, a->ldq, a->k, a->ldkv, 0.0F, p, a->n);
    restore_rows(a->nq, a->n, p, log_sum);
    iso_gemm(true, false, a->n, a->d, a->nq, 1.0F, p, a->n, dout, ldo, 0.0F, dv, lddkv);
    iso_gemm(false, true, a->nq, a->n, a->d, 1.0F, dout, ldo, a->v, a->ldkv, 0.0F, ds, a->n);
    softmax_backward_rows(a->nq, a->n, p, ds, a->scale);
    iso_gemm(false, false, a->nq, a->d, a->n, 1.0F, ds, a->n, a->k, a->ldkv, 0.0F, dq, lddq);
    iso_gemm(true, false, a->n, a->d, a->nq, 1.0F, ds, a->n, a->q, a->ldq, 0.0F, dk, lddkv);
}
