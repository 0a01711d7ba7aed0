#include "nn/backbone/sequence.h"

#include <string.h>

/* The encoder's pass: every token is read, pooling comes behind it. */
static iso_pass all_tokens(const iso_backbone *b, const iso_pass *p)
{
    iso_pass all = *p;
    all.read = b->shape.tokens;
    return all;
}

static size_t rows_offset(const iso_backbone *b, const iso_pass *p, size_t images)
{
    const iso_encoder *n = b->own;
    iso_pass all = all_tokens(b, p);
    return (iso_encoder_workspace(n, &all, images) + 15) / 16 * 16;
}

size_t iso_sequence_workspace(const iso_backbone *b, const iso_pass *p, size_t images)
{
    return rows_offset(b, p, images) + images * b->shape.tokens * b->shape.dim;
}

float *iso_sequence_input(const iso_backbone *b, const iso_pass *p, float *workspace)
{
    const iso_encoder *n = b->own;
    return iso_encoder_input(n, p, workspace);
}

static size_t length_of(const iso_pass *p, size_t image, size_t tokens)
{
    return p->lengths ? p->lengths[image] : tokens;
}

void iso_sequence_forward(const iso_backbone *b, const iso_pass *p, size_t images, float *workspace,
                          float *out)
{
    const iso_encoder *n = b->own;
    iso_pass all = all_tokens(b, p);
    size_t d = b->shape.dim, tokens = p->tokens ? p->tokens : b->shape.tokens;
    bool is_pooled = out && !p->last && p->read == 1;
    float *rows = is_pooled ? workspace + rows_offset(b, p, images) : out;
    iso_encoder_forward(n, &all, images, workspace, rows);
    for (size_t i = 0; is_pooled && i < images; i++) {
        size_t length = length_of(p, i, tokens);
        const float *x = rows + i * tokens * d;
        float *y = out + i * d;
        memcpy(y, x, d * sizeof *y);
        for (size_t k = 1; k < length; k++)
            for (size_t j = 0; j < d; j++)
                y[j] += x[k * d + j];
        for (size_t j = 0; j < d; j++)
            y[j] /= (float)length;
    }
}

void iso_sequence_backward(const iso_backbone *b, const iso_pass *p, const iso_backward *w,
                           size_t images, float *workspace, const float *dout)
{
    const iso_encoder *n = b->own;
    iso_pass all = all_tokens(b, p);
    size_t d = b->shape.dim, tokens = p->tokens ? p->tokens : b->shape.tokens;
    if (p->read == 1) {
        float *rows = workspace + rows_offset(b, p, images);
        memset(rows, 0, images * tokens * d * sizeof *rows);
        for (size_t i = 0; i < images; i++) {
            size_t length = length_of(p, i, tokens);
            for (size_t k = 0; k < length; k++)
                for (size_t j = 0; j < d; j++)
                    rows[(i * tokens + k) * d + j] = dout[i * d + j] / (float)length;
        }
        dout = rows;
    }
    iso_encoder_backward(n, &all, w, images, workspace, dout);
}
