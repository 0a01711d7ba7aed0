/* Transformer encoder: the trunk that all families share.
 *
 *   pre-norm   mid = x + s1 o(attention(q, k, v of norm1(x)))   out = mid + s2
 * fc2(act(fc1(norm2(mid)))) post-norm  mid = x + o(attention(q, k, v of x))             sum =
 * norm1(mid) + fc2(act(fc1(norm1(mid)))) out = norm2(sum)
 *
 * Dosovitskiy et al. 2021 (pre-norm), Touvron et al. 2021 (layer scale s1, s2), Devlin et al. 2019
 * (post-norm). Matrices of block b: 4b + {0 [Wq; Wk; Wv], 1 Wo, 2 Wfc1, 3 Wfc2}.
 * The last block is computed only for the tokens that are read, keys and values excepted
 * (specs/performance.md 9 row 2); the backward stops at the lowest adapted matrix (row 3).
 * Sequences of different length lie behind each other without padding (iso_pass.start). */
#ifndef ISO_NN_BACKBONE_ENCODER_H
#define ISO_NN_BACKBONE_ENCODER_H

#include "nn/backbone/backbone.h"
#include "nn/kernel/gelu.h"
#include "nn/kernel/norm.h"

enum { ISO_QKV, ISO_OUT, ISO_FC1, ISO_FC2, ISO_MATRICES_PER_BLOCK };

typedef struct {
    iso_norm norm1, norm2;
    const float *bias[ISO_MATRICES_PER_BLOCK]; /* (3 dim), (dim), (mlp), (dim) */
    const float *scale1, *scale2;              /* (dim); NULL: one */
} iso_encoder_block;

typedef struct {
    size_t depth, dim, heads, mlp, tokens;
    const iso_encoder_block *blocks;
    bool is_post_norm;         /* no scales then; every token is read */
    const iso_activation *act; /* of the MLP */
    iso_norm final;            /* w NULL: none */
    iso_packed projection;     /* behind the final norm, no bias; W NULL: none */
} iso_encoder;

size_t iso_encoder_workspace(const iso_encoder *n, const iso_pass *p, size_t images);
float *iso_encoder_input(const iso_encoder *n, const iso_pass *p, float *workspace);
void iso_encoder_forward(const iso_encoder *n, const iso_pass *p, size_t images, float *workspace,
                         float *out);
void iso_encoder_backward(const iso_encoder *n, const iso_pass *p, const iso_backward *w,
                          size_t images, float *workspace, const float *dout);

#endif
