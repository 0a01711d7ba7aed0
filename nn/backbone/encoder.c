#include "nn/backbone/encoder.h"

#include "core/simd.h"
#include "nn/kernel/attention.h"

#include <math.h>
#include <string.h>

/* What one block leaves for its backward. x also receives the previous block's output. */
typedef struct {
    float *x;       /* (images * tokens, dim) */
    float *qkv;     /* (images * tokens, 3 dim) */
    float *att;     /* (images * nq, dim): heads side by side */
    float *mid;     /* (images * nq, dim) */
    float *sum;     /* (images * tokens, dim): before norm2; post-norm only */
    float *h;       /* (images * nq, mlp): before GELU */
    float *log_sum; /* (images, heads, nq) */
} block_state;

typedef struct {
    float *states;
    size_t state_floats; /* of one block; 0 when blocks share one state */
    float *xn;           /* (images * tokens, dim): a norm's output */
    float *g;            /* (images * tokens, mlp) */
    float *scores;       /* attention's scratch */
    float *last;         /* (images * read, dim): before the final norm */
    float *dqkv, *datt, *dg, *d, *dlast;
} layout;

static size_t take(size_t *at, size_t floats)
{
    size_t here = *at;
    *at += (floats + 15) / 16 * 16;
    return here;
}

/* Offsets of everything, in floats; with base NULL only the total counts. */
static size_t lay_out(const iso_encoder *n, const iso_pass *p, size_t images, float *base,
                      layout *l)
{
    size_t rows = images * n->tokens, d = n->dim, at = 0, state = 0;
    take(&state, rows * d);
    take(&state, rows * 3 * d);
    take(&state, rows * d);
    take(&state, rows * d);
    take(&state, rows * n->mlp);
    take(&state, rows * n->heads);
    take(&state, n->is_post_norm ? rows * d : 0);
    size_t states = take(&at, state * (p->keep ? n->depth - p->first : 1));
    size_t xn = take(&at, rows * d), g = take(&at, rows * n->mlp);
    size_t scores = take(&at, 2 * iso_attention_scratch(n->tokens, n->tokens));
    size_t last = take(&at, images * p->read * d);
    size_t back = at;
    size_t dqkv = take(&at, rows * 3 * d), datt = take(&at, rows * d);
    size_t dg = take(&at, rows * n->mlp), dd = take(&at, rows * d);
    size_t dlast = take(&at, images * p->read * d);
    if (!p->keep)
        at = back;
    if (base)
        *l = (layout){.states = base + states,
                      .state_floats = p->keep ? state : 0,
                      .xn = base + xn,
                      .g = base + g,
                      .scores = base + scores,
                      .last = base + last,
                      .dqkv = base + dqkv,
                      .datt = base + datt,
                      .dg = base + dg,
                      .d = base + dd,
                      .dlast = base + dlast};
    return at;
}

static block_state state_of(const iso_encoder *n, const iso_pass *p, size_t images, const layout *l,
                            size_t block)
{
    size_t rows = images * n->tokens, d = n->dim, at = 0;
    float *base = l->states + (block - p->first) * l->state_floats;
    block_state s;
    s.x = base + take(&at, rows * d);
    s.qkv = base + take(&at, rows * 3 * d);
    s.att = base + take(&at, rows * d);
    s.mid = base + take(&at, rows * d);
    s.h = base + take(&at, rows * n->mlp);
    s.log_sum = base + take(&at, rows * n->heads);
    s.sum = base + take(&at, n->is_post_norm ? rows * d : 0);
    return s;
}

/* Rows of an image in this pass: padding is kept to what the longest needs. */
static size_t tokens_of(const iso_encoder *n, const iso_pass *p)
{
    return p->tokens ? p->tokens : n->tokens;
}

/* Tokens of which block b computes queries: all, but in the last block only those that are read. */
static size_t queries(const iso_encoder *n, const iso_pass *p, size_t block)
{
    return block + 1 == n->depth && p->read < tokens_of(n, p) ? p->read : tokens_of(n, p);
}

size_t iso_encoder_workspace(const iso_encoder *n, const iso_pass *p, size_t images)
{
    return lay_out(n, p, images, NULL, NULL);
}

float *iso_encoder_input(const iso_encoder *n, const iso_pass *p, float *workspace)
{
    (void)n, (void)p;
    return workspace; /* x of the first state lies first */
}

static iso_attention head_of(const iso_encoder *n, const iso_pass *p, const block_state *s,
                             size_t nq, size_t image, size_t head)
{
    size_t dh = n->dim / n->heads;
    size_t t = tokens_of(n, p);
    const float *base = s->qkv + image * t * 3 * n->dim + head * dh;
    return (iso_attention){.nq = nq,
                           .n = p->lengths ? p->lengths[image] : t,
                           .d = dh,
                           .scale = 1.0F / sqrtf((float)dh),
                           .q = base,
                           .k = base + n->dim,
                           .v = base + 2 * n->dim,
                           .ldq = 3 * n->dim,
                           .ldkv = 3 * n->dim};
}

/* y = x + scale * y, and out = scale * dy: layer scale. */
ISO_CLONES static void scale_forward(const float *scale, size_t m, size_t d, const float *x,
                                     size_t ldx, float *y, size_t ldy)
{
    for (size_t i = 0; i < m; i++, x += ldx, y += ldy) {
#pragma omp simd
        for (size_t j = 0; j < d; j++)
            y[j] = x[j] + scale[j] * y[j];
    }
}

ISO_CLONES static void scale_backward(const float *scale, size_t m, size_t d, const float *dy,
                                      float *out)
{
    for (size_t i = 0; i < m; i++, dy += d, out += d) {
#pragma omp simd
        for (size_t j = 0; j < d; j++)
            out[j] = scale[j] * dy[j];
    }
}

/* One linear layer, or rows of it, and what the adapter adds. */
static void linear(const iso_pass *p, size_t matrix, size_t row, size_t rows, const float *bias,
                   size_t m, const float *x, size_t ldx, const float *add, size_t ld_add, float *y,
                   size_t ldy)
{
    iso_packed_forward(&p->weights[matrix], row, rows, bias, m, x, ldx, add, ld_add, y, ldy);
    if (p->hooks && p->hooks->add)
        p->hooks->add(p->hooks->ctx, matrix, row, rows, m, x, ldx, bias, y, ldy);
}

/* Its input's gradient, and what the adapter adds to that. */
static void linear_backward(const iso_pass *p, const iso_backward *bw, size_t matrix, size_t row,
                            size_t rows, size_t m, const float *dy, size_t ldy, const float *add,
                            size_t ld_add, float *dx, size_t ldx)
{
    iso_packed_backward(&p->weights[matrix], row, rows, m, dy, ldy, add, ld_add, dx, ldx);
    if (bw->back)
        bw->back(bw->ctx, matrix, row, rows, m, dy, ldy, dx, ldx);
}

/* Whose output the MLP takes: norm2, in post-norm blocks norm1. Its input is `mid` in both. */
static const iso_norm *norm_before_mlp(const iso_encoder *n, const iso_encoder_block *b)
{
    return n->is_post_norm ? &b->norm1 : &b->norm2;
}

static void block_forward(const iso_encoder *n, const iso_pass *p, size_t images, const layout *l,
                          size_t block, float *out)
{
    const iso_encoder_block *b = &n->blocks[block];
    size_t m0 = block * ISO_MATRICES_PER_BLOCK;
    size_t t = tokens_of(n, p), d = n->dim, rows = images * t, nq = queries(n, p, block);
    size_t qrows = images * nq, dh = d / n->heads;
    block_state s = state_of(n, p, images, l, block);

    if (p->hooks && p->hooks->enter)
        p->hooks->enter(p->hooks->ctx, block, s.x);
    const float *attended = n->is_post_norm ? s.x : l->xn;
    if (!n->is_post_norm)
        iso_norm_forward(&b->norm1, rows, s.x, d, l->xn);
    const float *qkv_bias = b->bias[ISO_QKV];
    if (nq == t) {
        linear(p, m0 + ISO_QKV, 0, 3 * d, qkv_bias, rows, attended, d, NULL, 0, s.qkv, 3 * d);
    } else {
        linear(p, m0 + ISO_QKV, d, 2 * d, qkv_bias + d, rows, l->xn, d, NULL, 0, s.qkv + d, 3 * d);
        for (size_t j = 0; j < nq; j++)
            linear(p, m0 + ISO_QKV, 0, d, qkv_bias, images, l->xn + j * d, t * d, NULL, 0,
                   s.qkv + j * 3 * d, t * 3 * d);
    }
    for (size_t i = 0; i < images; i++)
        for (size_t h = 0; h < n->heads; h++) {
            iso_attention a = head_of(n, p, &s, nq, i, h);
            iso_attention_forward(&a, s.att + i * nq * d + h * dh, d,
                                  s.log_sum + (i * n->heads + h) * nq, l->scores);
        }
    const float *residual = b->scale1 ? NULL : s.x;
    if (nq == t)
        linear(p, m0 + ISO_OUT, 0, d, b->bias[ISO_OUT], rows, s.att, d, residual, d, s.mid, d);
    else
        for (size_t j = 0; j < nq; j++)
            linear(p, m0 + ISO_OUT, 0, d, b->bias[ISO_OUT], images, s.att + j * d, nq * d,
                   residual ? residual + j * d : NULL, t * d, s.mid + j * d, nq * d);
    for (size_t j = 0; b->scale1 && j < nq; j++)
        scale_forward(b->scale1, images, d, s.x + j * d, t * d, s.mid + j * d, nq * d);
    iso_norm_forward(norm_before_mlp(n, b), qrows, s.mid, d, l->xn);
    linear(p, m0 + ISO_FC1, 0, n->mlp, b->bias[ISO_FC1], qrows, l->xn, d, NULL, 0, s.h, n->mlp);
    n->act->forward(qrows * n->mlp, s.h, l->g);
    residual = n->is_post_norm ? l->xn : b->scale2 ? NULL : s.mid;
    float *y = n->is_post_norm ? s.sum : out;
    linear(p, m0 + ISO_FC2, 0, d, b->bias[ISO_FC2], qrows, l->g, n->mlp, residual, d, y, d);
    if (b->scale2)
        scale_forward(b->scale2, qrows, d, s.mid, d, out, d);
    if (n->is_post_norm)
        iso_norm_forward(&b->norm2, qrows, s.sum, d, out);
}

void iso_encoder_forward(const iso_encoder *n, const iso_pass *p, size_t images, float *workspace,
                         float *out)
{
    layout l;
    lay_out(n, p, images, workspace, &l);
    if (p->tap)
        p->tap(p->tap_ctx, p->first, workspace);
    size_t end = p->last ? p->last : n->depth;
    for (size_t block = p->first; block < end; block++) {
        bool is_last = block + 1 == n->depth;
        /* Without keep all blocks share a state; x is free once mid is there. */
        float *to = is_last ? l.last : state_of(n, p, images, &l, block + 1).x;
        block_forward(n, p, images, &l, block, to);
        if (p->tap)
            p->tap(p->tap_ctx, block + 1, to);
    }
    if (end == n->depth && queries(n, p, n->depth - 1) == tokens_of(n, p) && p->hooks &&
        p->hooks->enter)
        p->hooks->enter(p->hooks->ctx, n->depth, l.last);
    if (end < n->depth || !out)
        return;
    size_t read = images * queries(n, p, n->depth - 1), d = n->dim;
    float *normed = n->projection.W ? l.xn : out;
    if (n->final.w)
        iso_norm_forward(&n->final, read, l.last, d, normed);
    else
        memcpy(normed, l.last, read * d * sizeof *normed);
    if (n->projection.W)
        iso_packed_forward(&n->projection, 0, n->projection.out, NULL, read, normed, d, NULL, 0,
                           out, n->projection.out);
}

/* Gradients of keys and values of tokens that are padding. */
static void zero_padding(float *dq, size_t from, size_t tokens, size_t dim, size_t dh)
{
    for (size_t j = from; j < tokens; j++)
        for (size_t part = 1; part < 3; part++)
            memset(dq + j * 3 * dim + part * dim, 0, dh * sizeof *dq);
}

/* One block's backward: d is the gradient of its output (images * nq, dim) and becomes that of
 * mid; *next receives that of its input. Returns false when the lowest adapted matrix is reached.
 */
static bool block_backward(const iso_encoder *n, const iso_pass *p, const iso_backward *bw,
                           size_t images, const layout *l, size_t block, size_t lowest,
                           float *d_out, float *next)
{
    const iso_encoder_block *b = &n->blocks[block];
    size_t m0 = block * ISO_MATRICES_PER_BLOCK;
    size_t t = tokens_of(n, p), d = n->dim, rows = images * t, nq = queries(n, p, block);
    size_t qrows = images * nq, dh = d / n->heads;
    block_state s = state_of(n, p, images, l, block);
    const bool *adapted = bw->is_adapted + m0;

    /* mlp: dy is the gradient of fc2's output */
    const float *dy = d_out;
    if (n->is_post_norm)
        iso_norm_backward(&b->norm2, qrows, s.sum, d_out, NULL, d_out, d);
    if (b->scale2) {
        scale_backward(b->scale2, qrows, d, d_out, l->datt);
        dy = l->datt;
    }
    if (lowest == m0 + ISO_FC2) {
        n->act->forward(qrows * n->mlp, s.h, l->g);
    } else {
        linear_backward(p, bw, m0 + ISO_FC2, 0, d, qrows, dy, d, NULL, 0, l->dg, n->mlp);
        n->act->backward(qrows * n->mlp, s.h, l->dg, l->dg, l->g);
    }
    if (adapted[ISO_FC2])
        bw->grad(bw->ctx, m0 + ISO_FC2, 0, d, qrows, l->g, n->mlp, dy, d);
    if (lowest == m0 + ISO_FC2)
        return false;
    if (adapted[ISO_FC1]) {
        iso_norm_forward(norm_before_mlp(n, b), qrows, s.mid, d, l->xn);
        bw->grad(bw->ctx, m0 + ISO_FC1, 0, n->mlp, qrows, l->xn, d, l->dg, n->mlp);
    }
    if (lowest == m0 + ISO_FC1)
        return false;
    /* The residual goes around the norm in pre-norm blocks, with it through the norm in post-norm.
     */
    linear_backward(p, bw, m0 + ISO_FC1, 0, n->mlp, qrows, l->dg, n->mlp,
                    n->is_post_norm ? d_out : NULL, d, l->xn, d);
    iso_norm_backward(norm_before_mlp(n, b), qrows, s.mid, l->xn, n->is_post_norm ? NULL : d_out,
                      d_out, d);

    /* attention: dy is the gradient of Wo's output */
    dy = d_out;
    if (b->scale1) {
        scale_backward(b->scale1, qrows, d, d_out, l->xn);
        dy = l->xn;
    }
    if (adapted[ISO_OUT])
        bw->grad(bw->ctx, m0 + ISO_OUT, 0, d, qrows, s.att, d, dy, d);
    if (lowest == m0 + ISO_OUT)
        return false;
    linear_backward(p, bw, m0 + ISO_OUT, 0, d, qrows, dy, d, NULL, 0, l->datt, d);
    for (size_t i = 0; i < images; i++)
        for (size_t h = 0; h < n->heads; h++) {
            iso_attention a = head_of(n, p, &s, nq, i, h);
            float *dq = l->dqkv + i * t * 3 * d + h * dh;
            if (a.n < t) /* nobody attended to padding */
                zero_padding(dq, a.n, t, n->dim, dh);
            iso_attention_backward(&a, s.log_sum + (i * n->heads + h) * nq,
                                   l->datt + i * nq * d + h * dh, d, dq, 3 * d, dq + d, dq + 2 * d,
                                   3 * d, l->scores);
        }
    if (adapted[ISO_QKV]) {
        const float *attended = n->is_post_norm ? s.x : l->xn;
        if (!n->is_post_norm)
            iso_norm_forward(&b->norm1, rows, s.x, d, l->xn);
        if (nq == t) {
            bw->grad(bw->ctx, m0, 0, 3 * d, rows, attended, d, l->dqkv, 3 * d);
        } else {
            bw->grad(bw->ctx, m0, d, 2 * d, rows, l->xn, d, l->dqkv + d, 3 * d);
            for (size_t j = 0; j < nq; j++)
                bw->grad(bw->ctx, m0, 0, d, images, l->xn + j * d, t * d, l->dqkv + j * 3 * d,
                         t * 3 * d);
        }
    }
    if (lowest >= m0)
        return false;

    /* to the block's input */
    if (n->is_post_norm) {
        linear_backward(p, bw, m0 + ISO_QKV, 0, 3 * d, rows, l->dqkv, 3 * d, d_out, d, next, d);
    } else if (nq == t) {
        linear_backward(p, bw, m0 + ISO_QKV, 0, 3 * d, rows, l->dqkv, 3 * d, NULL, 0, l->xn, d);
        iso_norm_backward(&b->norm1, rows, s.x, l->xn, d_out, next, d);
    } else {
        linear_backward(p, bw, m0 + ISO_QKV, d, 2 * d, rows, l->dqkv + d, 3 * d, NULL, 0, l->xn, d);
        for (size_t j = 0; j < nq; j++)
            linear_backward(p, bw, m0 + ISO_QKV, 0, d, images, l->dqkv + j * 3 * d, t * 3 * d,
                            l->xn + j * d, t * d, l->xn + j * d, t * d);
        iso_norm_backward(&b->norm1, rows, s.x, l->xn, NULL, next, d);
        for (size_t i = 0; i < images; i++)
            for (size_t j = 0; j < nq * d; j++)
                next[i * t * d + j] += d_out[i * nq * d + j];
    }
    return true;
}

void iso_encoder_backward(const iso_encoder *n, const iso_pass *p, const iso_backward *bw,
                          size_t images, float *workspace, const float *dout)
{
    layout l;
    lay_out(n, p, images, workspace, &l);
    size_t lowest = p->first * ISO_MATRICES_PER_BLOCK, count = n->depth * ISO_MATRICES_PER_BLOCK;
    while (lowest < count && !bw->is_adapted[lowest])
        lowest++;
    if (lowest == count)
        return;
    size_t read = images * queries(n, p, n->depth - 1);
    if (n->projection.W) {
        iso_packed_backward(&n->projection, 0, n->projection.out, read, dout, n->projection.out,
                            NULL, 0, l.xn, n->dim);
        dout = l.xn;
    }
    if (n->final.w)
        iso_norm_backward(&n->final, read, l.last, dout, NULL, l.dlast, n->dim);
    else
        memcpy(l.dlast, dout, read * n->dim * sizeof *l.dlast);
    float *d = l.dlast;
    bool goes_on = true;
    for (size_t block = n->depth; block-- > p->first && (goes_on || bw->leave);) {
        float *next = queries(n, p, block) == tokens_of(n, p) ? d : l.d;
        goes_on = goes_on && block_backward(n, p, bw, images, &l, block, lowest, d, next);
        d = next;
        if (bw->leave)
            bw->leave(bw->ctx, block, state_of(n, p, images, &l, block).x, goes_on ? d : NULL);
    }
}
