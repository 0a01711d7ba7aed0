/* Attention of one head of one image, all in cache: P = softmax(scale q k'), o = P v.
 * Vaswani et al. 2017; specs/performance.md 9 row 8: P is not kept, the backward recomputes it from
 * one number a row. Shapes: q, o (nq, d); k, v (n, d); rows ld apart (heads lie side by side). */
#ifndef ISO_NN_KERNEL_ATTENTION_H
#define ISO_NN_KERNEL_ATTENTION_H

#include <stddef.h>

typedef struct {
    size_t nq, n, d;
    float scale;
    const float *q, *k, *v;
    size_t ldq, ldkv;
} iso_attention;

/* Floats of scratch that a call needs: forward 1 x, backward 2 x this. */
size_t iso_attention_scratch(size_t nq, size_t n);

/* o rows ldo apart; log_sum (nq): log of the row's sum of exp(scale q k'), for the backward. */
void iso_attention_forward(const iso_attention *a, float *o, size_t ldo, float *log_sum,
                           float *scratch);
/* dq (rows lddq apart), dk, dv (rows lddkv apart) are overwritten. dout has rows ldo apart.
 *   dP = do v',  dS = scale P (dP - rowsum(P dP)),  dq = dS k,  dk = dS' q,  dv = P' do */
void iso_attention_backward(const iso_attention *a, const float *log_sum, const float *dout,
                            size_t ldo, float *dq, size_t lddq, float *dk, float *dv, size_t lddkv,
                            float *scratch);

/* Softmax of rows in place: p = exp(s - max) / sum; log_sum (m) may be NULL. */
void iso_softmax_rows(size_t m, size_t n, float *s, size_t ld, float *log_sum);

#endif
