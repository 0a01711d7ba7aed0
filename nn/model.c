#include "nn/model.h"

#include "core/parallel.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum { MICRO_ROWS = 400, MICRO_IMAGES = 4, SUM_BLOCK = 16384 };

struct iso_model {
    const iso_backbone *backbone;
    const iso_adapter *adapter; /* or NULL */
    iso_packed *weights;        /* one per matrix; those not adapted are the backbone's */
    float **folded;             /* W of adapted matrices that need one, else NULL */
    iso_arena arena;
};

static size_t min_size(size_t a, size_t b)
{
    return a < b ? a : b;
}

/* ---- weights ---- */

typedef struct {
    iso_model *model;
    const float *params;
} fold_job;

static void fold_item(void *ctx, size_t i, int worker)
{
    const fold_job *j = ctx;
    (void)worker;
    iso_model *m = j->model;
    const iso_adapter *a = m->adapter;
    if (!a->is_adapted[i])
        return;
    if (m->folded[i] && m->weights[i].forward) { /* modules that begin within a panel */
        a->kind->fold(a, j->params, i,
                      &(iso_packed){.out = m->weights[i].out, .in = m->weights[i].in},
                      m->folded[i]);
        iso_pack(&m->weights[i]);
    } else {
        a->kind->fold(a, j->params, i, &m->weights[i], m->folded[i]);
    }
}

void iso_model_fold(iso_model *m, const float *params)
{
    if (!m->adapter)
        return;
    fold_job j = {m, params ? params : m->adapter->params};
    iso_parallel_for(m->backbone->matrix_count, 1, fold_item, &j);
}

/* True when the modules of matrix i can be folded in panels. */
static bool folds_in_panels(const iso_backbone *b, size_t i)
{
    for (size_t k = 0; k < b->module_count; k++)
        if (b->modules[k].matrix == i && !iso_packed_is_aligned(b->modules[k].row))
            return false;
    return b->matrices[i].forward != NULL;
}

/* Own panels for matrix i where the model needs what the backbone does not have. They start as the
 * frozen ones; an adapted matrix has a W of its own only where panels cannot hold it. */
static iso_err own_weights(iso_model *m, size_t i, bool trains, iso_error *e)
{
    const iso_packed *frozen = &m->backbone->matrices[i];
    iso_packed *w = &m->weights[i];
    bool is_adapted = m->adapter && m->adapter->is_adapted[i];
    bool has_panels = frozen->forward != NULL;
    size_t in = frozen->in, out = frozen->out;
    *w = *frozen;
    if (is_adapted && (m->adapter->kind->folds_whole || !folds_in_panels(m->backbone, i))) {
        m->folded[i] = iso_arena_alloc(&m->arena, out * in, sizeof(float));
        if (!m->folded[i])
            return iso_nomem(e, out * in * sizeof(float));
        memcpy(m->folded[i], frozen->W, out * in * sizeof(float));
        w->W = m->folded[i];
    }
    if (is_adapted && has_panels) {
        size_t floats = iso_packed_forward_floats(out, in);
        w->forward = iso_arena_alloc(&m->arena, floats, sizeof(float));
        if (!w->forward)
            return iso_nomem(e, floats * sizeof(float));
        memcpy(w->forward, frozen->forward, floats * sizeof(float));
    }
    if (trains && has_panels) {
        size_t floats = iso_packed_backward_floats(out, in);
        w->backward = iso_arena_alloc(&m->arena, floats, sizeof(float));
        if (!w->backward)
            return iso_nomem(e, floats * sizeof(float));
        iso_pack(&(iso_packed){out, in, frozen->W, NULL, w->backward});
    }
    if (is_adapted && !m->folded[i])
        w->W = NULL; /* panels only: nobody may read the frozen numbers by mistake */
    return ISO_OK;
}

iso_err iso_model_open(iso_model **out, const iso_backbone *b, const iso_adapter *a, bool trains,
                       iso_error *e)
{
    iso_model *m = iso_calloc(1, sizeof *m);
    if (!m)
        return iso_nomem(e, sizeof *m);
    m->backbone = b;
    m->adapter = a;
    iso_err err = ISO_OK;
    m->weights = iso_arena_calloc(&m->arena, b->matrix_count, sizeof *m->weights);
    m->folded = iso_arena_calloc(&m->arena, b->matrix_count, sizeof *m->folded);
    if (!m->weights || !m->folded)
        err = iso_nomem(e, b->matrix_count * sizeof *m->weights);
    for (size_t i = 0; !err && i < b->matrix_count; i++) {
        m->weights[i] = b->matrices[i];
        err = own_weights(m, i, trains, e);
    }
    if (err) {
        iso_model_close(m);
        return err;
    }
    iso_model_fold(m, NULL);
    *out = m;
    return ISO_OK;
}

void iso_model_close(iso_model *m)
{
    if (!m)
        return;
    iso_arena_free(&m->arena);
    free(m);
}

const iso_backbone *iso_model_backbone(const iso_model *m)
{
    return m->backbone;
}

const iso_adapter *iso_model_adapter(const iso_model *m)
{
    return m->adapter;
}

size_t iso_model_dim(const iso_model *m)
{
    return m->backbone->shape.dim;
}

size_t iso_model_bytes(const iso_model *m)
{
    return m->arena.held_bytes;
}

size_t iso_model_micro_batch(const iso_model *m)
{
    size_t n = MICRO_ROWS / m->backbone->shape.tokens;
    return n < 1 ? 1 : n > MICRO_IMAGES ? MICRO_IMAGES : n;
}

/* ---- workspaces ---- */

struct iso_work {
    size_t workers, read;
    size_t floats;                     /* of one worker */
    size_t pixels, out, dout, scratch; /* offsets behind the pass's workspace at 0 */
    float *data;
    uint32_t *idx; /* (workers, micro-batch) */
    size_t micro;
};

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
    free(w);
}

size_t iso_work_bytes(const iso_work *w)
{
    return w->workers * w->floats * sizeof(float);
}

static iso_err work_open(iso_work **out, const iso_model *m, size_t read, bool keep, iso_error *e)
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
    w->pixels = at;
    at += round16(micro * s->channels * s->image_size * s->image_size);
    w->out = at;
    at += round16(micro * read * s->dim);
    w->dout = at;
    at += keep ? round16(micro * read * s->dim) : 0;
    w->scratch = at;
    if (keep && m->adapter)
        at += round16(m->adapter->kind->scratch_floats(m->adapter, micro * s->tokens));
    w->floats = at;
    w->data = iso_alloc_aligned(w->workers * at, sizeof *w->data);
    w->idx = iso_calloc(w->workers * micro, sizeof *w->idx);
    if (!w->data || !w->idx) {
        size_t bytes = iso_work_bytes(w);
        iso_work_close(w);
        return iso_nomem(e, bytes);
    }
    *out = w;
    return ISO_OK;
}

iso_err iso_work_open(iso_work **out, const iso_model *m, size_t read, iso_error *e)
{
    return work_open(out, m, read, true, e);
}

/* Puts images idx[0 .. n-1] at the input of the pass. */
static void load_input(const iso_model *m, const iso_source *s, const uint32_t *idx, size_t n,
                       uint64_t draw, const iso_pass *p, iso_work *w, float *base)
{
    const iso_backbone *b = m->backbone;
    float *hidden = b->family->input(b, p, base);
    size_t image = b->shape.tokens * b->shape.dim;
    if (s->prefix && s->prefix->hidden) {
        for (size_t i = 0; i < n; i++)
            memcpy(hidden + i * image, s->prefix->hidden + idx[i] * image, image * sizeof *hidden);
        return;
    }
    s->pixels(s->ctx, idx, n, draw, base + w->pixels);
    b->family->embed(b, base + w->pixels, n, base, hidden);
}

static size_t first_block(const iso_source *s)
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
    float *out; /* (n, read, dim) */
} run_job;

/* Keeps the hidden state before block `block`. */
typedef struct {
    size_t block, floats;
    float *out;
} keep_tap;

static void keep_hidden(void *ctx, size_t index, const float *hidden)
{
    const keep_tap *k = ctx;
    if (index == k->block)
        memcpy(k->out, hidden, k->floats * sizeof *hidden);
}

static void run_item(void *ctx, size_t item, int worker)
{
    const run_job *j = ctx;
    const iso_backbone *b = j->model->backbone;
    iso_work *w = j->work;
    size_t begin = item * w->micro, n = min_size(w->micro, j->n - begin);
    float *base = w->data + (size_t)worker * w->floats;
    uint32_t *idx = w->idx + (size_t)worker * w->micro;
    for (size_t i = 0; i < n; i++)
        idx[i] = j->idx ? j->idx[begin + i] : (uint32_t)(begin + i);
    iso_pass p = {.weights = j->model->weights, .first = j->first, .read = w->read};
    load_input(j->model, j->source, idx, n, 0, &p, w, base);
    b->family->forward(b, &p, n, base, j->out + begin * w->read * b->shape.dim);
}

static void run_in(const iso_model *m, iso_work *w, const iso_source *s, const uint32_t *idx,
                   size_t n, float *out)
{
    run_job j = {.model = m,
                 .source = s,
                 .idx = idx,
                 .n = n,
                 .first = first_block(s),
                 .work = w,
                 .out = out};
    iso_parallel_for((n + w->micro - 1) / w->micro, 1, run_item, &j);
}

static iso_err run(const iso_model *m, const iso_source *s, const uint32_t *idx, size_t n,
                   size_t read, float *out, iso_error *e)
{
    iso_work *w = NULL;
    if (n == 0)
        return ISO_OK;
    iso_err err = work_open(&w, m, read, false, e);
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
    array_source a = {pixels, s->channels * s->image_size * s->image_size};
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
    size_t read = b->shape.lead;
    if (!b->shape.classes)
        return iso_fail(e, ISO_ERR_DATA, "the backbone came without a classifier");
    float *out = iso_alloc_aligned(n * read * b->shape.dim, sizeof *out);
    if (!out)
        return iso_nomem(e, n * read * b->shape.dim * sizeof *out);
    iso_err err = run_pixels(m, pixels, n, read, out, e);
    if (!err)
        b->family->classify(b, out, n, logits);
    free(out);
    return err;
}

/* ---- prefix ---- */

typedef struct {
    const iso_model *model;
    const iso_source *source;
    iso_work *work;
    iso_prefix *prefix;
} prefix_job;

static void prefix_item(void *ctx, size_t item, int worker)
{
    const prefix_job *j = ctx;
    const iso_backbone *b = j->model->backbone;
    iso_work *w = j->work;
    size_t begin = item * w->micro, n = min_size(w->micro, j->source->n - begin);
    size_t image = b->shape.tokens * b->shape.dim;
    float *base = w->data + (size_t)worker * w->floats;
    uint32_t *idx = w->idx + (size_t)worker * w->micro;
    for (size_t i = 0; i < n; i++)
        idx[i] = (uint32_t)(begin + i);
    keep_tap tap = {j->prefix->block, n * image, j->prefix->hidden + begin * image};
    iso_pass p = {.weights = j->model->weights,
                  .read = b->shape.tokens,
                  .last = j->prefix->block,
                  .tap = keep_hidden,
                  .tap_ctx = &tap};
    load_input(j->model, j->source, idx, n, 0, &p, w, base);
    if (p.last)
        b->family->forward(b, &p, n, base, NULL);
    else
        keep_hidden(&tap, 0, b->family->input(b, &p, base));
}

iso_err iso_model_prefix(const iso_model *m, const iso_source *s, size_t block, size_t budget_bytes,
                         iso_prefix *p, iso_error *e)
{
    const iso_backbone_shape *shape = &m->backbone->shape;
    size_t bytes;
    *p = (iso_prefix){.n = s->n, .block = block};
    assert(block <= shape->depth && (!m->adapter || block <= m->adapter->lowest_block));
    if (!iso_mul_size(s->n, shape->tokens * shape->dim * sizeof(float), &bytes) ||
        bytes > budget_bytes || block == shape->depth)
        return ISO_OK;
    iso_work *w = NULL;
    iso_err err = work_open(&w, m, shape->tokens, false, e);
    if (err)
        return err;
    p->hidden = iso_alloc_aligned(bytes, 1);
    if (!p->hidden) {
        iso_work_close(w);
        return iso_nomem(e, bytes);
    }
    prefix_job j = {m, s, w, p};
    iso_parallel_for((s->n + w->micro - 1) / w->micro, 1, prefix_item, &j);
    iso_work_close(w);
    return ISO_OK;
}

void iso_prefix_free(iso_prefix *p)
{
    free(p->hidden);
    p->hidden = NULL;
}

/* ---- training ---- */

typedef struct {
    const iso_model *model;
    iso_work *work;
    const iso_gradient_job *job;
} gradient_ctx;

typedef struct {
    const iso_model *model;
    float *grad, *scratch;
} module_ctx;

static void module_grad(void *ctx, size_t matrix, size_t row, size_t rows, size_t m, const float *x,
                        size_t ldx, const float *dy, size_t ldy)
{
    const module_ctx *c = ctx;
    const iso_adapter *a = c->model->adapter;
    a->kind->grad(a, a->params, c->grad, matrix, row, rows, m, x, ldx, dy, ldy, c->scratch);
}

static void gradient_item(void *ctx, size_t item, int worker)
{
    const gradient_ctx *c = ctx;
    const iso_gradient_job *j = c->job;
    const iso_model *m = c->model;
    const iso_backbone *b = m->backbone;
    iso_work *w = c->work;
    size_t begin = item * w->micro, n = min_size(w->micro, j->n - begin);
    float *base = w->data + (size_t)worker * w->floats;
    float *grad = j->grads + item * j->stride;
    size_t params = m->adapter ? m->adapter->param_count : 0;
    memset(grad, 0, (params + j->extra) * sizeof *grad);
    iso_pass p = {
        .weights = m->weights, .first = first_block(j->source), .read = w->read, .keep = true};
    load_input(m, j->source, j->idx + begin, n, j->draw, &p, w, base);
    b->family->forward(b, &p, n, base, base + w->out);
    j->losses[item] = j->loss(j->loss_ctx, begin, n, base + w->out, base + w->dout, grad + params);
    if (params) {
        module_ctx mc = {m, grad, base + w->scratch};
        iso_backward back = {.is_adapted = m->adapter->is_adapted, .grad = module_grad, .ctx = &mc};
        b->family->backward(b, &p, &back, n, base, base + w->dout);
    }
}

typedef struct {
    const iso_gradient_job *job;
    size_t count, rows;
} sum_ctx;

/* Rows are added in index order, whatever the threads did. */
static void sum_item(void *ctx, size_t i, int worker)
{
    const sum_ctx *s = ctx;
    (void)worker;
    size_t begin = i * SUM_BLOCK, n = min_size(SUM_BLOCK, s->count - begin);
    float *sum = s->job->grads + begin;
    for (size_t r = 1; r < s->rows; r++) {
        const float *g = s->job->grads + r * s->job->stride + begin;
#pragma omp simd
        for (size_t k = 0; k < n; k++)
            sum[k] += g[k];
    }
}

double iso_model_gradient(const iso_model *m, iso_work *w, const iso_gradient_job *job)
{
    size_t items = (job->n + w->micro - 1) / w->micro;
    size_t count = (m->adapter ? m->adapter->param_count : 0) + job->extra;
    gradient_ctx c = {m, w, job};
    iso_parallel_for(items, 1, gradient_item, &c);
    sum_ctx s = {job, count, items};
    iso_parallel_for((count + SUM_BLOCK - 1) / SUM_BLOCK, 1, sum_item, &s);
    double loss = 0.0;
    for (size_t i = 0; i < items; i++)
        loss += job->losses[i];
    return loss;
}
