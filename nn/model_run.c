/* Samples through a model: workspaces, features, logits. */
#include "nn/model_inner.h"

#include "core/parallel.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* ---- workspaces ---- */

static size_t round16(size_t n)
{
    return (n + 15) / 16 * 16;
}

void iso_work_close(iso_work *w)
{
    if (!w)
        return;
    free(w->data);
    free(w->idx);
    free(w->lengths);
    free(w);
}

size_t iso_work_bytes(const iso_work *w)
{
    return w->workers * w->floats * sizeof(float);
}

iso_err iso_work_open_as(iso_work **out, const iso_model *m, size_t read, bool keep, iso_error *e)
{
    const iso_backbone *b = m->backbone;
    const iso_backbone_shape *s = &b->shape;
    size_t micro = iso_model_micro_batch(m);
    /* Sized for the longest pass: from block 0. */
    iso_pass p = {.weights = m->weights, .first = 0, .read = read, .keep = keep};
    iso_work *w = iso_calloc(1, sizeof *w);
    if (!w)
        return iso_nomem(e, sizeof *w);
    w->workers = (size_t)iso_threads();
    w->read = read;
    w->micro = micro;
    size_t at = round16(b->family->workspace_floats(b, &p, micro));
    if (m->adapter && iso_model_runs(m)) { /* the first of two passes reads all tokens */
        iso_pass all = {.weights = m->weights, .read = s->tokens};
        size_t floats = round16(b->family->workspace_floats(b, &all, micro));
        at = m->adapter->kind->is_two_pass && floats > at ? floats : at;
    }
    w->pixels = at;
    at += round16(micro * s->sample);
    w->out = at;
    at += round16(micro * read * s->feature);
    w->dout = at;
    at += keep ? round16(micro * read * s->feature) : 0;
    w->scratch = at;
    if (m->adapter && (keep || iso_model_runs(m)))
        at += round16(m->adapter->kind->scratch_floats(m->adapter, micro * s->tokens));
    at = iso_work_reserve(w, m, at);
    w->floats = at;
    w->data = iso_alloc_aligned(w->workers * at, sizeof *w->data);
    w->idx = iso_calloc(w->workers * micro, sizeof *w->idx);
    w->lengths = iso_calloc(w->workers * micro, sizeof *w->lengths);
    if (!w->data || !w->idx || !w->lengths) {
        size_t bytes = iso_work_bytes(w);
        iso_work_close(w);
        return iso_nomem(e, bytes);
    }
    *out = w;
    return ISO_OK;
}

iso_err iso_work_open(iso_work **out, const iso_model *m, size_t read, iso_error *e)
{
    return iso_work_open_as(out, m, read, true, e);
}

/* Hidden states that were kept: rows of a sample may lie further apart there than here. */
static void load_prefix(const iso_model *m, const iso_prefix *x, const uint32_t *idx, size_t n,
                        iso_pass *p, iso_work *w, int worker, float *hidden)
{
    size_t d = m->backbone->shape.dim, kept = x->tokens * d;
    uint32_t *lengths = w->lengths + (size_t)worker * w->micro;
    p->tokens = x->tokens;
    if (x->lengths) {
        p->tokens = 0;
        for (size_t i = 0; i < n; i++) {
            lengths[i] = x->lengths[idx[i]];
            p->tokens = lengths[i] > p->tokens ? lengths[i] : p->tokens;
        }
        p->lengths = lengths;
    }
    for (size_t i = 0; i < n; i++)
        memcpy(hidden + i * p->tokens * d, x->hidden + idx[i] * kept,
               p->tokens * d * sizeof *hidden);
}

void iso_work_load(const iso_model *m, const iso_source *s, const uint32_t *idx, size_t n,
                   uint64_t draw, iso_pass *p, iso_work *w, int worker)
{
    const iso_backbone *b = m->backbone;
    float *base = w->data + (size_t)worker * w->floats, *hidden = b->family->input(b, p, base);
    if (s->prefix && s->prefix->hidden) {
        load_prefix(m, s->prefix, idx, n, p, w, worker, hidden);
        return;
    }
    s->pixels(s->ctx, idx, n, draw, base + w->pixels);
    if (b->family->lengths) {
        uint32_t *lengths = w->lengths + (size_t)worker * w->micro;
        b->family->lengths(b, base + w->pixels, n, lengths);
        for (size_t i = 0; i < n; i++)
            p->tokens = lengths[i] > p->tokens ? lengths[i] : p->tokens;
        p->lengths = lengths;
    }
    b->family->embed(b, p, base + w->pixels, n, base, hidden);
}

size_t iso_source_first(const iso_source *s)
{
    return s->prefix && s->prefix->hidden ? s->prefix->block : 0;
}

/* ---- inference ---- */

typedef struct {
    const iso_model *model;
    const iso_source *source;
    const uint32_t *idx; /* NULL: in order */
    size_t n, first;
    iso_work *work;
    float *out;      /* (n, read, dim) */
    float *observed; /* NULL, or what the kind shows: then `out` is one micro-batch's scratch */
} run_job;

static void run_item(void *ctx, size_t item, int worker)
{
    const run_job *j = ctx;
    const iso_backbone *b = j->model->backbone;
    iso_work *w = j->work;
    size_t begin = item * w->micro, n = w->micro < j->n - begin ? w->micro : j->n - begin;
    float *base = w->data + (size_t)worker * w->floats;
    uint32_t *idx = w->idx + (size_t)worker * w->micro;
    for (size_t i = 0; i < n; i++)
        idx[i] = j->idx ? j->idx[begin + i] : (uint32_t)(begin + i);
    iso_pass p = {.weights = j->model->weights, .first = j->first, .read = w->read};
    iso_work_load(j->model, j->source, idx, n, 0, &p, w, worker);
    iso_adapter_run r;
    iso_pass_hooks h;
    if (iso_model_runs(j->model))
        iso_work_begin(j->model, j->source, idx, n, &p, w, worker, NULL, n, &r, &h);
    float *out = j->observed ? base + w->out : j->out + begin * w->read * b->shape.feature;
    b->family->forward(b, &p, n, base, out);
    if (j->observed) {
        const iso_adapter *a = j->model->adapter;
        a->kind->observe(&r, j->observed + begin * a->kind->observed(a));
    }
}

static void run_in(const iso_model *m, iso_work *w, const iso_source *s, const uint32_t *idx,
                   size_t n, float *out)
{
    run_job j = {.model = m,
                 .source = s,
                 .idx = idx,
                 .n = n,
                 .first = iso_source_first(s),
                 .work = w,
                 .out = out};
    iso_parallel_for((n + w->micro - 1) / w->micro, 1, run_item, &j);
}

iso_err iso_model_observe(const iso_model *m, const iso_source *s, float *out, iso_error *e)
{
    iso_work *w = NULL;
    assert(iso_model_runs(m) && m->adapter->kind->observe);
    if (s->n == 0)
        return ISO_OK;
    iso_err err = iso_work_open_as(&w, m, 1, false, e);
    if (err)
        return err;
    run_job j = {.model = m,
                 .source = s,
                 .n = s->n,
                 .first = iso_source_first(s),
                 .work = w,
                 .observed = out};
    iso_parallel_for((s->n + w->micro - 1) / w->micro, 1, run_item, &j);
    iso_work_close(w);
    return ISO_OK;
}

static iso_err run(const iso_model *m, const iso_source *s, const uint32_t *idx, size_t n,
                   size_t read, float *out, iso_error *e)
{
    iso_work *w = NULL;
    if (n == 0)
        return ISO_OK;
    iso_err err = iso_work_open_as(&w, m, read, false, e);
    if (err)
        return err;
    run_in(m, w, s, idx, n, out);
    iso_work_close(w);
    return ISO_OK;
}

void iso_model_features_in(const iso_model *m, iso_work *w, const iso_source *s,
                           const uint32_t *idx, size_t n, float *out)
{
    assert(w->read == 1);
    run_in(m, w, s, idx, n, out);
}

iso_err iso_model_features_of(const iso_model *m, const iso_source *s, const uint32_t *idx,
                              size_t n, float *out, iso_error *e)
{
    return run(m, s, idx, n, 1, out, e);
}

typedef struct {
    const float *pixels;
    size_t image;
} array_source;

static void array_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const array_source *a = ctx;
    (void)draw;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * a->image, a->pixels + idx[i] * a->image, a->image * sizeof *out);
}

static iso_err run_pixels(const iso_model *m, const float *pixels, size_t n, size_t read,
                          float *out, iso_error *e)
{
    const iso_backbone_shape *s = &m->backbone->shape;
    array_source a = {pixels, s->sample};
    iso_source source = {.n = n, .pixels = array_pixels, .ctx = &a};
    return run(m, &source, NULL, n, read, out, e);
}

iso_err iso_model_features(const iso_model *m, const float *pixels, size_t n, float *out,
                           iso_error *e)
{
    return run_pixels(m, pixels, n, 1, out, e);
}

iso_err iso_model_logits(const iso_model *m, const float *pixels, size_t n, float *logits,
                         iso_error *e)
{
    const iso_backbone *b = m->backbone;
    size_t read = b->shape.head_rows;
    if (!b->shape.classes)
        return iso_fail(e, ISO_ERR_DATA, "the backbone came without a classifier");
    float *out = iso_alloc_aligned(n * read * b->shape.feature, sizeof *out);
    if (!out)
        return iso_nomem(e, n * read * b->shape.feature * sizeof *out);
    iso_err err = run_pixels(m, pixels, n, read, out, e);
    if (!err)
        b->family->classify(b, out, n, logits);
    free(out);
    return err;
}
