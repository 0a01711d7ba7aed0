/* Adapters that compute beside the weights: their run of a micro-batch, and the first of two passes
 * (TOAST), computed in place or taken from what was kept. */
#include "nn/model_inner.h"

#include "core/parallel.h"

#include <stdlib.h>
#include <string.h>

bool iso_model_runs(const iso_model *m)
{
    return m->adapter && iso_adapter_runs(m->adapter);
}

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

size_t iso_work_reserve(iso_work *w, const iso_model *m, size_t at)
{
    size_t tokens = w->micro * m->backbone->shape.tokens * m->backbone->shape.dim;
    w->run = w->start = w->z = at;
    if (!iso_model_runs(m))
        return at;
    at += round16(m->adapter->kind->run_floats(m->adapter, w->micro, m->trains));
    if (!m->adapter->kind->is_two_pass)
        return at;
    w->start = at;
    w->z = at += round16(tokens);
    return at + round16(tokens);
}

/* Final norm of all tokens of the frozen backbone into w->z; the pass's input is put back. */
static void first_pass(const iso_model *m, size_t n, iso_pass *p, iso_work *w, float *base)
{
    const iso_backbone *b = m->backbone;
    size_t floats = n * (p->tokens ? p->tokens : b->shape.tokens) * b->shape.dim;
    iso_pass first = {.weights = m->weights,
                      .first = p->first,
                      .read = b->shape.tokens,
                      .tokens = p->tokens,
                      .lengths = p->lengths};
    memcpy(base + w->start, b->family->input(b, p, base), floats * sizeof *base);
    memmove(b->family->input(b, &first, base), base + w->start, floats * sizeof *base);
    b->family->forward(b, &first, n, base, base + w->z);
    memcpy(b->family->input(b, p, base), base + w->start, floats * sizeof *base);
}

void iso_work_begin(const iso_model *m, const iso_source *s, const uint32_t *idx, size_t n,
                    iso_pass *p, iso_work *w, int worker, float *grad, size_t batch,
                    iso_adapter_run *r, iso_pass_hooks *h)
{
    const iso_adapter *a = m->adapter;
    const iso_backbone_shape *shape = &m->backbone->shape;
    float *base = w->data + (size_t)worker * w->floats;
    *r = (iso_adapter_run){.adapter = a,
                           .params = m->params,
                           .derived = m->derived,
                           .trains = m->trains,
                           .weights = m->weights,
                           .images = n,
                           .tokens = p->tokens ? p->tokens : shape->tokens,
                           .lengths = p->lengths,
                           .work = base + w->run,
                           .scratch = base + w->scratch,
                           .grad = grad,
                           .batch = batch};
    if (a->kind->begin)
        a->kind->begin(r);
    if (a->kind->is_two_pass) {
        size_t image = shape->tokens * shape->dim;
        if (s->first_pass && s->first_pass->z)
            for (size_t i = 0; i < n; i++)
                memcpy(base + w->z + i * image, s->first_pass->z + idx[i] * image,
                       image * sizeof *base);
        else
            first_pass(m, n, p, w, base);
        a->kind->select(r, base + w->z);
    }
    *h = iso_run_hooks(r);
    p->hooks = h;
}

/* ---- kept for all images ---- */

typedef struct {
    const iso_model *model;
    const iso_source *source;
    iso_work *work;
    float *z;
} first_job;

static void first_item(void *ctx, size_t item, int worker)
{
    const first_job *j = ctx;
    const iso_backbone *b = j->model->backbone;
    iso_work *w = j->work;
    size_t begin = item * w->micro, left = j->source->n - begin;
    size_t n = w->micro < left ? w->micro : left, image = b->shape.tokens * b->shape.dim;
    float *base = w->data + (size_t)worker * w->floats;
    uint32_t *idx = w->idx + (size_t)worker * w->micro;
    for (size_t i = 0; i < n; i++)
        idx[i] = (uint32_t)(begin + i);
    iso_pass p = {.weights = j->model->weights,
                  .first = iso_source_first(j->source),
                  .read = b->shape.tokens};
    iso_work_load(j->model, j->source, idx, n, 0, &p, w, worker);
    b->family->forward(b, &p, n, base, j->z + begin * image);
}

iso_err iso_model_first_pass(const iso_model *m, const iso_source *s, size_t budget_bytes,
                             iso_first_pass *f, iso_error *e)
{
    const iso_backbone_shape *shape = &m->backbone->shape;
    size_t bytes;
    iso_work *w = NULL;
    *f = (iso_first_pass){.n = s->n};
    if (!iso_model_runs(m) || !m->adapter->kind->is_two_pass || m->backbone->family->lengths ||
        s->n == 0 || !iso_mul_size(s->n, shape->tokens * shape->dim * sizeof(float), &bytes) ||
        bytes > budget_bytes)
        return ISO_OK;
    iso_err err = iso_work_open_as(&w, m, shape->tokens, false, e);
    if (err)
        return err;
    f->z = iso_alloc_aligned(bytes, 1);
    if (!f->z) {
        iso_work_close(w);
        return iso_nomem(e, bytes);
    }
    first_job j = {m, s, w, f->z};
    iso_parallel_for((s->n + w->micro - 1) / w->micro, 1, first_item, &j);
    iso_work_close(w);
    return ISO_OK;
}

void iso_first_pass_free(iso_first_pass *f)
{
    free(f->z);
    f->z = NULL;
}
