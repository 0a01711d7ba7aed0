/* Hooks of a pass handed to the kind; see run.h. */
#include "nn/adapter/run.h"

static void enter(void *ctx, size_t block, const float *hidden)
{
    iso_adapter_run *r = ctx;
    r->adapter->kind->enter(r, block, hidden);
}

static void add(void *ctx, size_t matrix, size_t row, size_t rows, size_t m, const float *x,
                size_t ldx, const float *bias, float *y, size_t ldy)
{
    iso_adapter_run *r = ctx;
    if (r->adapter->is_adapted[matrix])
        r->adapter->kind->add(r, matrix, row, rows, m, x, ldx, bias, y, ldy);
}

static void grad(void *ctx, size_t matrix, size_t row, size_t rows, size_t m, const float *x,
                 size_t ldx, const float *dy, size_t ldy)
{
    iso_adapter_run *r = ctx;
    r->adapter->kind->run_grad(r, matrix, row, rows, m, x, ldx, dy, ldy);
}

static void back(void *ctx, size_t matrix, size_t row, size_t rows, size_t m, const float *dy,
                 size_t ldy, float *dx, size_t ldx)
{
    iso_adapter_run *r = ctx;
    if (r->adapter->is_adapted[matrix])
        r->adapter->kind->back(r, matrix, row, rows, m, dy, ldy, dx, ldx);
}

static void leave(void *ctx, size_t block, const float *hidden, float *dhidden)
{
    iso_adapter_run *r = ctx;
    r->adapter->kind->leave(r, block, hidden, dhidden);
}

iso_pass_hooks iso_run_hooks(iso_adapter_run *r)
{
    const iso_adapter_kind *k = r->adapter->kind;
    return (iso_pass_hooks){.ctx = r, .enter = k->enter ? enter : NULL, .add = k->add ? add : NULL};
}

iso_backward iso_run_backward(iso_adapter_run *r)
{
    const iso_adapter_kind *k = r->adapter->kind;
    return (iso_backward){.is_adapted = r->adapter->is_adapted,
                          .grad = grad,
                          .ctx = r,
                          .back = k->back ? back : NULL,
                          .leave = k->leave ? leave : NULL};
}
