/* AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019). */
#ifndef ISO_NN_TRAIN_OPTIMIZER_H
#define ISO_NN_TRAIN_OPTIMIZER_H

#include <stddef.h>
#include <stdint.h>

typedef struct {
    double lr, beta1, beta2, eps, weight_decay;
} iso_adamw;

/* beta 0.9, 0.999, eps 1e-8. */
iso_adamw iso_adamw_default(double lr, double weight_decay);

/* One update of n parameters; step counts from 1. grad is multiplied by grad_scale first.
 *   m = b1 m + (1-b1) g   v = b2 v + (1-b2) g^2
 *   p = p - lr (m^ / (sqrt(v^) + eps) + wd p)   with m^ = m/(1-b1^step), v^ = v/(1-b2^step) */
void iso_adamw_step(const iso_adamw *o, uint64_t step, size_t n, float *params, const float *grad,
                    float grad_scale, float *m, float *v);

/* Euclidean norm, summed in double. */
double iso_gradient_norm(const float *grad, size_t n);

#endif
