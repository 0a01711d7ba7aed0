#include "nn/train/optimizer.h"

#include "core/simd.h"

#include <math.h>

iso_adamw iso_adamw_default(double lr, double weight_decay)
{
    return (iso_adamw){lr, 0.9, 0.999, 1e-8, weight_decay};
}

ISO_CLONES static void update(size_t n, float *p, const float *grad, float grad_scale, float *m,
                              float *v, float b1, float b2, float lr, float eps, float root,
                              float keep)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++) {
        float g = grad[i] * grad_scale;
        m[i] = b1 * m[i] + (1.0F - b1) * g;
        v[i] = b2 * v[i] + (1.0F - b2) * g * g;
        p[i] = keep * p[i] - lr * (m[i] / (sqrtf(v[i]) * root + eps));
    }
}

void iso_adamw_step(const iso_adamw *o, uint64_t step, size_t n, float *params, const float *grad,
                    float grad_scale, float *m, float *v)
{
    double correct1 = 1.0 - pow(o->beta1, (double)step);
    double correct2 = 1.0 - pow(o->beta2, (double)step);
    update(n, params, grad, grad_scale, m, v, (float)o->beta1, (float)o->beta2,
           (float)(o->lr / correct1), (float)o->eps, (float)(1.0 / sqrt(correct2)),
           (float)(1.0 - o->lr * o->weight_decay));
}

double iso_gradient_norm(const float *grad, size_t n)
{
    double squares = 0.0;
#pragma omp simd reduction(+ : squares)
    for (size_t i = 0; i < n; i++)
        squares += (double)grad[i] * (double)grad[i];
    return sqrt(squares);
}
