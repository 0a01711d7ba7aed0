/* Gates of DATA: attention over prompt rows, its backward, the orthogonality penalty, new rows.
 * specs/data.md 3-6; equations by number. Sums over tokens in double. */
#include "nn/adapter/data.h"

#include "core/simd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double EPS = 1e-12;

static size_t tokens_of(const iso_data_gate *q, size_t image)
{
    return q->lengths ? q->lengths[image] : q->tokens;
}

/* tau_b: 1/sqrt(d), or one over the tokens that are there. */
static double tau_of(const iso_data_gate *q, size_t image)
{
    return q->is_sum ? 1.0 / sqrt((double)q->d) : 1.0 / (double)tokens_of(q, image);
}

ISO_CLONES static double norm_of(size_t n, const float *x)
{
    double s = 0.0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++)
        s += (double)x[i] * (double)x[i];
    return sqrt(s);
}

ISO_CLONES static double sum_of(size_t n, const float *x)
{
    double s = 0.0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++)
        s += (double)x[i];
    return s;
}

double iso_data_kappa(const float *K, size_t d)
{
    double n = norm_of(d, K);
    return sum_of(d, K) / (n > EPS ? n : EPS);
}

double iso_data_omega(const float *W, size_t d)
{
    return sum_of(d, W);
}

/* q = A x of one image's tokens (G1). */
static void queries(const iso_data_gate *q, const float *X, size_t n, float *out)
{
    size_t P = q->old + q->fresh;
    if (q->old)
        iso_gemm(false, true, n, q->old, q->d, 1.0F, X, q->d, q->A_old, q->d, 0.0F, out, P);
    if (q->fresh)
        iso_gemm(false, true, n, q->fresh, q->d, 1.0F, X, q->d, q->A, q->d, 0.0F, out + q->old, P);
}

void iso_data_gate_forward(const iso_data_gate *q, const float *X, float *a, bool all_a, double *z,
                           double *g)
{
    size_t P = q->old + q->fresh;
    for (size_t b = 0; b < q->images; b++) {
        float *ab = all_a ? a + b * q->tokens * P : a;
        size_t n = all_a ? q->tokens : tokens_of(q, b), there = tokens_of(q, b);
        double s = 0.0;
        queries(q, X + b * q->tokens * q->d, n, ab);
        for (size_t i = 0; i < n; i++) {
            float *row = ab + i * P;
            double norm = norm_of(P, row), dot = 0.0;
            norm = norm > EPS ? norm : EPS;
            for (size_t k = 0; k < P; k++) {
                row[k] = (float)((double)row[k] / norm);
                dot += (double)row[k] * q->kappa[k] * q->omega[k];
            }
            s += i < there ? dot : 0.0;
        }
        z[b] = tau_of(q, b) * s;
        g[b] = 1.0 / (1.0 + exp(-z[b]));
    }
}

void iso_data_gate_backward(const iso_data_gate *q, const float *X, const double *g,
                            const double *gbar, float *dA, double *c_bar, float *dX, float *scratch)
{
    size_t P = q->old + q->fresh, d = q->d;
    for (size_t b = 0; b < q->images; b++) {
        const float *x = X + b * q->tokens * d;
        size_t n = tokens_of(q, b);
        double w = gbar[b] * g[b] * (1.0 - g[b]) * tau_of(q, b); /* (GB1), (GB2) */
        queries(q, x, n, scratch);
        for (size_t i = 0; i < n; i++) {
            float *row = scratch + i * P;
            double norm = norm_of(P, row), dot = 0.0;
            bool is_small = norm <= EPS;
            norm = is_small ? EPS : norm;
            for (size_t k = 0; k < P; k++) {
                double a = (double)row[k] / norm;
                c_bar[k] += w * a;
                dot += a * w * q->kappa[k] * q->omega[k];
            }
            for (size_t k = 0; k < P; k++) { /* (GB6), (GB7) */
                double a = (double)row[k] / norm, abar = w * q->kappa[k] * q->omega[k];
                row[k] = (float)((abar - (is_small ? 0.0 : a * dot)) / norm);
            }
        }
        if (q->fresh)
            iso_gemm(true, false, q->fresh, d, n, 1.0F, scratch + q->old, P, x, d, 1.0F, dA, d);
        if (dX && q->old)
            iso_gemm(false, false, n, d, q->old, 1.0F, scratch, P, q->A_old, d, 1.0F,
                     dX + b * q->tokens * d, d);
        if (dX && q->fresh)
            iso_gemm(false, false, n, d, q->fresh, 1.0F, scratch + q->old, P, q->A, d, 1.0F,
                     dX + b * q->tokens * d, d);
    }
}

void iso_data_row_backward(const float *K, size_t d, double kappa, double omega, double c_bar,
                           float *dK, float *dW)
{
    double norm = norm_of(d, K);
    bool is_small = norm <= EPS;
    norm = is_small ? EPS : norm;
    for (size_t j = 0; j < d; j++) {
        double along = is_small ? 0.0 : kappa * (double)K[j] / norm;
        dW[j] += (float)(c_bar * kappa);
        dK[j] += (float)(c_bar * omega * (1.0 - along) / norm);
    }
}

/* ---- penalty ---- */

/* R(M) of (O1) and G = (4/P^2)(M M' - I) M; gram (P, P). */
static double orthogonality(const double *M, size_t P, size_t d, double *gram, double *G)
{
    double value = 0.0, scale = 1.0 / ((double)P * (double)P);
    iso_gemm_f64(false, true, P, P, d, 1.0, M, d, M, d, 0.0, gram, P);
    for (size_t i = 0; i < P; i++) {
        gram[i * P + i] -= 1.0;
        for (size_t j = 0; j < P; j++)
            value += gram[i * P + j] * gram[i * P + j];
    }
    iso_gemm_f64(false, false, P, d, P, 4.0 * scale, gram, P, M, d, 0.0, G, d);
    return value * scale;
}

static void widen(const float *x, size_t n, double *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i];
}

double iso_data_penalty(const iso_data_rows *r, double s, float *dA, float *dK, float *dW)
{
    size_t d = r->d, P = r->old + r->fresh;
    float *grads[3] = {dA, dK, dW};
    double value = 0.0;
    double *M = iso_calloc(2 * P * d + P * P + P, sizeof *M);
    if (!M)
        return (double)NAN;
    double *G = M + P * d, *gram = G + P * d, *norms = gram + P * P;
    for (size_t t = 0; t < 3; t++) {
        widen(r->before[t], r->old * d, M);
        widen(r->rows[t], r->fresh * d, M + r->old * d);
        for (size_t k = 0; t == 1 && k < P; k++) { /* keys are normalised first */
            double *row = M + k * d, n = 0.0;
            for (size_t j = 0; j < d; j++)
                n += row[j] * row[j];
            norms[k] = sqrt(n) > EPS ? sqrt(n) : EPS;
            for (size_t j = 0; j < d; j++)
                row[j] /= norms[k];
        }
        value += orthogonality(M, P, d, gram, G) / 3.0;
        for (size_t k = r->old; k < P; k++) {
            const double *row = M + k * d, *from = G + k * d;
            float *to = grads[t] + (k - r->old) * d;
            double along = 0.0, norm = t == 1 ? norms[k] : 1.0;
            for (size_t j = 0; t == 1 && j < d; j++)
                along += row[j] * from[j];
            for (size_t j = 0; j < d; j++)
                to[j] += (float)(s / 3.0 * (from[j] - row[j] * along) / norm);
        }
    }
    free(M);
    return value;
}

/* ---- new rows ---- */

size_t iso_data_orthonormal(const double *old, size_t n, const double *draws, size_t p, size_t d,
                            double *rows)
{
    for (size_t k = 0; k < p; k++) {
        const double *v = draws + k * d;
        double *u = rows + k * d, length = 0.0;
        memcpy(u, v, d * sizeof *u);
        for (size_t j = 0; j < n + k; j++) { /* classical: projections of v, not of the rest */
            const double *w = j < n ? old + j * d : rows + (j - n) * d;
            double vw = 0.0, ww = 0.0;
            for (size_t i = 0; i < d; i++) {
                vw += v[i] * w[i];
                ww += w[i] * w[i];
            }
            for (size_t i = 0; i < d; i++)
                u[i] -= vw / ww * w[i];
        }
        for (size_t i = 0; i < d; i++)
            length += u[i] * u[i];
        if (!(length >= 1e-8))
            return k;
        for (size_t i = 0; i < d; i++)
            u[i] /= sqrt(length);
    }
    return p;
}
