/* Loss and gradient of a batch: micro-batches on all threads, summed in order. */
#include "nn/model_inner.h"

#include "core/parallel.h"

#include <string.h>

enum { SUM_BLOCK = 16384 };

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
    size_t begin = item * w->micro, n = w->micro < j->n - begin ? w->micro : j->n - begin;
    float *base = w->data + (size_t)worker * w->floats;
    float *grad = j->grads + item * j->stride;
    size_t params = m->adapter ? m->adapter->param_count : 0;
    memset(grad, 0, (params + j->extra) * sizeof *grad);
    iso_pass p = {
        .weights = m->weights, .first = iso_source_first(j->source), .read = w->read, .keep = true};
    iso_work_load(m, j->source, j->idx + begin, n, j->draw, &p, w, worker);
    iso_adapter_run r;
    iso_pass_hooks h;
    double first = 0.0;
    bool runs = iso_model_runs(m);
    if (runs) {
        iso_work_begin(m, j->source, j->idx + begin, n, &p, w, worker, grad, j->n, &r, &h);
        if (j->first_loss)
            first = j->first_loss(j->loss_ctx, begin, n, base + w->z, r.tokens * b->shape.dim,
                                  grad + params);
    }
    b->family->forward(b, &p, n, base, base + w->out);
    j->losses[item] = j->loss(j->loss_ctx, begin, n, base + w->out, base + w->dout, grad + params);
    if (runs) {
        iso_backward back = iso_run_backward(&r);
        b->family->backward(b, &p, &back, n, base, base + w->dout);
        if (m->adapter->kind->finish)
            m->adapter->kind->finish(&r);
        j->losses[item] += first + r.loss;
    } else if (params) {
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
    size_t begin = i * SUM_BLOCK, n = s->count - begin < SUM_BLOCK ? s->count - begin : SUM_BLOCK;
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
