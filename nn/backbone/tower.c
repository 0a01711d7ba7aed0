#include "nn/backbone/tower.h"

#include "nn/kernel/patch.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- positions ---- */

/* Weights of the four neighbours of a point t in [0, 1) behind the second (Keys 1981). */
static void cubic(double t, double w[4])
{
    const double a = -0.75;
    for (int k = 0; k < 4; k++) {
        double x = fabs(t - (double)(k - 1));
        w[k] = x <= 1.0 ? ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                        : ((a * x - 5.0 * a) * x + 8.0 * a) * x - 4.0 * a;
    }
}

/* Where the target's pixel i lies in the source; neighbours beyond the border repeat it. */
static void neighbours(size_t i, size_t m, size_t n, size_t at[4], double w[4])
{
    double x = ((double)i + 0.5) * (double)m / (double)n - 0.5, base = floor(x);
    cubic(x - base, w);
    for (int k = 0; k < 4; k++) {
        double p = base + (double)(k - 1);
        at[k] = p < 0.0 ? 0 : p > (double)(m - 1) ? m - 1 : (size_t)p;
    }
}

void iso_tower_interpolate(const float *table, size_t m, size_t n, size_t dim, float *out)
{
    for (size_t y = 0; y < n; y++)
        for (size_t x = 0; x < n; x++) {
            size_t rows[4], columns[4];
            double wy[4], wx[4];
            neighbours(y, m, n, rows, wy);
            neighbours(x, m, n, columns, wx);
            for (size_t j = 0; j < dim; j++) {
                double s = 0.0;
                for (int a = 0; a < 4; a++)
                    for (int b = 0; b < 4; b++)
                        s += wy[a] * wx[b] * (double)table[(rows[a] * m + columns[b]) * dim + j];
                *out++ = (float)s;
            }
        }
}

/* ---- tensors ---- */

static iso_err read_patches(const iso_reader *r, const iso_backbone_shape *s,
                            const iso_embedding_names *names, iso_tower *t, iso_error *e)
{
    char name[128];
    size_t wdims[] = {s->dim, s->channels, s->patch, s->patch, 0}, bdims[] = {s->dim, 0};
    t->projection = (iso_packed){.out = s->dim, .in = s->channels * s->patch * s->patch};
    snprintf(name, sizeof name, "%s.weight", names->patch);
    iso_err err = iso_reader_new(r, name, wdims, &t->projection.W, e);
    if (err || !names->patch_bias)
        return err;
    snprintf(name, sizeof name, "%s.bias", names->patch);
    return iso_reader_new(r, name, bdims, &t->projection_bias, e);
}

iso_err iso_tower_embedding(const iso_reader *r, const iso_backbone_shape *s,
                            const iso_embedding_names *names, iso_tower *t, iso_error *e)
{
    size_t d = s->dim, native = s->native_size / s->patch, grid = s->image_size / s->patch;
    size_t placed = 0, at = 0;
    for (const iso_lead *l = names->lead; l->name; l++)
        placed += l->has_position ? l->rows : 0;
    size_t pdims[] = {1, placed + native * native, d, 0};
    const float *position = NULL;
    float *lead = NULL;
    iso_err err =
        iso_reader_new(r, names->position, pdims + (names->position_ndim == 2), &position, e);
    if (!err && r->arena) {
        lead = iso_arena_alloc(r->arena, s->lead * d, sizeof *lead);
        if (!lead)
            return iso_nomem(e, s->lead * d * sizeof *lead);
    }
    for (const iso_lead *l = names->lead; !err && l->name; at += l->rows, l++) {
        size_t dims[] = {1, l->rows, d, 0};
        err = iso_reader_get(r, l->name, dims + (3 - l->ndim), lead ? lead + at * d : NULL, e);
        for (size_t j = 0; !err && lead && l->has_position && j < l->rows * d; j++)
            lead[at * d + j] += position[at * d + j];
    }
    if (!err && r->arena) {
        t->lead = lead;
        t->position = position + placed * d;
        if (grid != native) {
            float *other = iso_arena_alloc(r->arena, grid * grid * d, sizeof *other);
            if (!other)
                return iso_nomem(e, grid * grid * d * sizeof *other);
            iso_tower_interpolate(t->position, native, grid, d, other);
            t->position = other;
        }
    }
    return err ? err : read_patches(r, s, names, t, e);
}

/* The last dimension is the feature, or twice that where the mean of the patches is read too. */
iso_err iso_tower_head(const iso_reader *r, iso_backbone_shape *s, iso_tower *t, const char *name,
                       size_t token, iso_error *e)
{
    char weight[64], bias[64];
    iso_reader plain = {.st = r->st, .prefix = "", .arena = r->arena};
    snprintf(weight, sizeof weight, "%s.weight", name);
    snprintf(bias, sizeof bias, "%s.bias", name);
    const iso_named_tensor *w = iso_safetensors_find(r->st, weight);
    if (!w || token >= s->lead || t->head_count == ISO_TOWER_HEADS)
        return ISO_OK;
    size_t classes = w->view.ndim == 2 ? w->view.shape[0] : 0;
    if (classes < 1 || classes > ISO_MAX_CLASSES || (s->classes && s->classes != classes))
        return iso_fail(e, ISO_ERR_SHAPE, "tensor \"%s\" does not have a row for each class",
                        weight);
    t->takes_patches = w->view.shape[1] == 2 * s->feature;
    size_t in = t->takes_patches ? 2 * s->feature : s->feature;
    size_t wdims[] = {classes, in, 0}, bdims[] = {classes, 0};
    size_t k = t->head_count++;
    iso_packed *h = &t->head[k];
    *h = (iso_packed){.out = classes, .in = in};
    t->head_token[k] = token;
    iso_err err = iso_reader_new(&plain, weight, wdims, &h->W, e);
    if (!err)
        err = iso_reader_new(&plain, bias, bdims, &t->head_bias[k], e);
    if (err)
        return err;
    s->classes = classes;
    s->head_rows = t->takes_patches           ? s->tokens
                   : token + 1 > s->head_rows ? token + 1
                                              : s->head_rows;
    return ISO_OK;
}

/* ---- passes ---- */

size_t iso_tower_workspace(const iso_backbone *b, const iso_pass *p, size_t images)
{
    const iso_tower *t = b->own;
    /* The patches of one image are cut out into the encoder's workspace, behind the input. */
    size_t rows = (b->shape.tokens - b->shape.lead) * t->projection.in;
    size_t hidden = images * b->shape.tokens * b->shape.dim;
    size_t need = iso_encoder_workspace(&t->encoder, p, images);
    return need > hidden + 16 + rows ? need : hidden + 16 + rows;
}

float *iso_tower_input(const iso_backbone *b, const iso_pass *p, float *workspace)
{
    const iso_tower *t = b->own;
    return iso_encoder_input(&t->encoder, p, workspace);
}

void iso_tower_embed(const iso_backbone *b, const iso_pass *p, const float *pixels, size_t images,
                     float *workspace, float *hidden)
{
    const iso_tower *t = b->own;
    (void)p;
    const iso_backbone_shape *s = &b->shape;
    size_t d = s->dim, lead = s->lead * d;
    float *rows = workspace + (images * s->tokens * d + 15) / 16 * 16;
    for (size_t i = 0; i < images; i++) {
        float *h = hidden + i * s->tokens * d;
        memcpy(h, t->lead, lead * sizeof *h);
        iso_patch_embed(&t->projection, t->projection_bias, t->position,
                        pixels + i * s->channels * s->image_size * s->image_size, s->channels,
                        s->image_size, s->patch, rows, h + lead, d);
    }
    if (t->stem.w)
        iso_norm_forward(&t->stem, images * s->tokens, hidden, d, hidden);
}

void iso_tower_forward(const iso_backbone *b, const iso_pass *p, size_t images, float *workspace,
                       float *out)
{
    const iso_tower *t = b->own;
    iso_encoder_forward(&t->encoder, p, images, workspace, out);
}

void iso_tower_backward(const iso_backbone *b, const iso_pass *p, const iso_backward *w,
                        size_t images, float *workspace, const float *dout)
{
    const iso_tower *t = b->own;
    iso_encoder_backward(&t->encoder, p, w, images, workspace, dout);
}

/* logits += mean of the patches times the right half of W. */
static void add_patches(const iso_tower *t, const iso_backbone_shape *s, const float *out, size_t n,
                        float *logits)
{
    size_t f = s->feature, patches = s->tokens - s->lead;
    const float *W = t->head[0].W;
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < s->classes; c++) {
            const float *x = out + (i * s->tokens + s->lead) * f, *w = W + c * 2 * f + f;
            double sum = 0.0;
            for (size_t k = 0; k < patches; k++)
                for (size_t j = 0; j < f; j++)
                    sum += (double)x[k * f + j] * (double)w[j];
            logits[i * s->classes + c] += (float)(sum / (double)patches);
        }
}

void iso_tower_classify(const iso_backbone *b, const float *out, size_t n, float *logits)
{
    const iso_tower *t = b->own;
    const iso_backbone_shape *s = &b->shape;
    size_t f = s->feature, row = s->head_rows * f, c = s->classes;
    for (size_t k = 0; k < t->head_count; k++) {
        const float *x = out + t->head_token[k] * f;
        if (t->takes_patches) { /* the left half of each row of W */
            iso_gemm(false, true, n, c, f, 1.0F, x, row, t->head[k].W, 2 * f, 0.0F, logits, c);
            for (size_t i = 0; i < n * c; i++)
                logits[i] += t->head_bias[k][i % c];
            add_patches(t, s, out, n, logits);
        } else {
            iso_packed_forward(&t->head[k], 0, c, t->head_bias[k], n, x, row, k ? logits : NULL, c,
                               logits, c);
        }
    }
    if (t->head_count > 1)
        for (size_t i = 0; i < n * c; i++)
            logits[i] /= (float)t->head_count;
}
