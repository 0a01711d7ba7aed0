/* What frozen blocks give for every sample, computed once (specs/performance.md 9 row 4). */
#include "nn/model_inner.h"

#include "core/parallel.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { TEXTS_A_CALL = 64 };

typedef struct {
    const iso_model *model;
    const iso_source *source;
    iso_work *work;
    iso_prefix *prefix;
} prefix_job;

/* Keeps the hidden state before one block. */
typedef struct {
    size_t block, images;
    size_t floats;     /* of a sample in the pass */
    size_t out_floats; /* as it is kept, at least as many */
    float *out;
} keep_tap;

static void keep_hidden(void *ctx, size_t index, const float *hidden)
{
    const keep_tap *k = ctx;
    if (index == k->block)
        for (size_t i = 0; i < k->images; i++)
            memcpy(k->out + i * k->out_floats, hidden + i * k->floats, k->floats * sizeof *hidden);
}

static void prefix_item(void *ctx, size_t item, int worker)
{
    const prefix_job *j = ctx;
    const iso_backbone *b = j->model->backbone;
    iso_work *w = j->work;
    size_t begin = item * w->micro, left = j->source->n - begin,
           n = w->micro < left ? w->micro : left;
    size_t d = b->shape.dim, kept = j->prefix->tokens * d;
    float *base = w->data + (size_t)worker * w->floats;
    uint32_t *idx = w->idx + (size_t)worker * w->micro;
    for (size_t i = 0; i < n; i++)
        idx[i] = (uint32_t)(begin + i);
    keep_tap tap = {.block = j->prefix->block,
                    .images = n,
                    .out_floats = kept,
                    .out = j->prefix->hidden + begin * kept};
    iso_pass p = {.weights = j->model->weights,
                  .read = b->shape.tokens,
                  .last = j->prefix->block,
                  .tap = keep_hidden,
                  .tap_ctx = &tap};
    iso_work_load(j->model, j->source, idx, n, 0, &p, w, worker);
    tap.floats = (p.tokens ? p.tokens : b->shape.tokens) * d;
    if (p.last)
        b->family->forward(b, &p, n, base, NULL);
    else
        keep_hidden(&tap, 0, b->family->input(b, &p, base));
}

/* Lengths of all texts, and the longest. */
static iso_err measure(const iso_model *m, const iso_source *s, iso_prefix *p, iso_error *e)
{
    const iso_backbone *b = m->backbone;
    size_t sample = b->shape.sample;
    uint32_t idx[TEXTS_A_CALL];
    float *samples = iso_calloc(TEXTS_A_CALL * sample, sizeof *samples);
    p->lengths = iso_calloc(s->n, sizeof *p->lengths);
    if (!samples || !p->lengths) {
        free(samples);
        return iso_nomem(e, TEXTS_A_CALL * sample * sizeof *samples);
    }
    p->tokens = 1;
    for (size_t at = 0; at < s->n; at += TEXTS_A_CALL) {
        size_t n = s->n - at < TEXTS_A_CALL ? s->n - at : TEXTS_A_CALL;
        for (size_t i = 0; i < n; i++)
            idx[i] = (uint32_t)(at + i);
        s->pixels(s->ctx, idx, n, 0, samples);
        b->family->lengths(b, samples, n, p->lengths + at);
        for (size_t i = 0; i < n; i++)
            p->tokens = p->lengths[at + i] > p->tokens ? p->lengths[at + i] : p->tokens;
    }
    free(samples);
    return ISO_OK;
}

iso_err iso_model_prefix(const iso_model *m, const iso_source *s, size_t block, size_t budget_bytes,
                         iso_prefix *p, iso_error *e)
{
    const iso_backbone_shape *shape = &m->backbone->shape;
    size_t bytes;
    iso_work *w = NULL;
    *p = (iso_prefix){.n = s->n, .block = block, .tokens = shape->tokens};
    assert(block <= shape->depth && (!m->adapter || block <= m->adapter->lowest_block));
    if (block == shape->depth)
        return ISO_OK;
    iso_err err = m->backbone->family->lengths ? measure(m, s, p, e) : ISO_OK;
    if (err)
        goto fail;
    if (!iso_mul_size(s->n, p->tokens * shape->dim * sizeof(float), &bytes) || bytes > budget_bytes)
        goto fail; /* ISO_OK, nothing kept */
    if ((err = iso_work_open_as(&w, m, shape->tokens, false, e)))
        goto fail;
    p->hidden = iso_alloc_aligned(bytes, 1);
    if (!p->hidden) {
        err = iso_nomem(e, bytes);
        goto fail;
    }
    prefix_job j = {m, s, w, p};
    iso_parallel_for((s->n + w->micro - 1) / w->micro, 1, prefix_item, &j);
    iso_work_close(w);
    return ISO_OK;
fail:
    iso_work_close(w);
    iso_prefix_free(p);
    return err;
}

void iso_prefix_free(iso_prefix *p)
{
    free(p->hidden);
    free(p->lengths);
    p->hidden = NULL;
    p->lengths = NULL;
}
