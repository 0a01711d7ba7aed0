/* DATA as an adapter kind; see data.h. The gates' mathematics stands in data_gate.c, files in
 * data_files.c.
 *
 * Of a matrix, the D's of all its modules lie together, (ranks, in), lo above hi within a module,
 * so h = x D' is one product; U is kept transposed, (r_lo + r_hi, out). The r-wide middle is scaled
 * by the gates of each row's image (LB1-LB5). At constant gates the same code trains folded. */
#include "nn/adapter/data_inner.h"

#include "core/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 4096, MAX_PROMPTS = 4096 };

void iso_data_defaults(iso_adapter_options *o)
{
    o->rank_lo = o->rank_lo ? o->rank_lo : 2;
    o->rank_hi = o->rank_hi ? o->rank_hi : 8;
    o->prompts = o->prompts ? o->prompts : 8;
    o->gap = o->gap ? o->gap : 4;
}

/* ---- layout ---- */

size_t iso_data_groups(const iso_adapter *a)
{
    return ((const iso_data *)a->own)->groups;
}

size_t iso_data_task(const iso_adapter *a)
{
    const iso_data *t = a->own;
    return t->prompts ? t->old / t->prompts : 0;
}

static size_t rows_at(size_t group, size_t branch, size_t letter)
{
    return (group * ISO_DATA_BRANCHES + branch) * 3 + letter;
}

size_t iso_data_rows_in_params(const iso_adapter *a, size_t group, size_t branch, size_t letter)
{
    const iso_data *t = a->own;
    return t->gates + rows_at(group, branch, letter) * t->prompts * a->backbone->shape.dim;
}

float *iso_data_frozen_rows(const iso_adapter *a, size_t group, size_t branch, size_t letter)
{
    const iso_data *t = a->own;
    return t->frozen + rows_at(group, branch, letter) * t->old * a->backbone->shape.dim;
}

iso_err iso_data_lay_out(iso_adapter *a, const iso_data *config, const bool *is_target,
                         iso_error *e)
{
    const iso_backbone *b = a->backbone;
    size_t d = b->shape.dim, at = 0, up = 0, r = config->lo + config->hi;
    iso_data *t = iso_arena_calloc(&a->arena, 1, sizeof *t);
    if (!t)
        return iso_nomem(e, sizeof *t);
    *t = *config;
    t->groups = (b->shape.depth + t->gap - 1) / t->gap;
    if (t->old + t->prompts > d)
        return iso_fail(e, ISO_ERR_USAGE,
                        "%zu prompt rows of %zu tasks; a width of %zu holds at most as many",
                        t->old + t->prompts, t->old / t->prompts + 1, d);
    size_t numbers = t->groups * ISO_DATA_BRANCHES;
    t->parts = iso_arena_calloc(&a->arena, b->module_count, sizeof *t->parts);
    t->first = iso_arena_calloc(&a->arena, b->matrix_count + 1, sizeof *t->first);
    t->frozen = iso_arena_calloc(&a->arena, numbers * 3 * t->old * d, sizeof *t->frozen);
    t->mean = iso_arena_calloc(&a->arena, numbers, sizeof *t->mean);
    t->variance = iso_arena_calloc(&a->arena, numbers, sizeof *t->variance);
    if (!t->parts || !t->first || !t->frozen || !t->mean || !t->variance)
        return iso_nomem(e, b->module_count * sizeof *t->parts);
    for (size_t m = 0; m < b->matrix_count; m++) {
        size_t begin = t->count, column = 0;
        t->first[m] = begin;
        for (size_t i = 0; i < b->module_count; i++) {
            if (!is_target[i] || b->modules[i].matrix != m)
                continue;
            t->parts[t->count++] =
                (iso_data_part){.module = &b->modules[i], .down = at, .scaled = up};
            at += r * b->modules[i].in;
            up += r * b->modules[i].out;
            column += r;
        }
        for (size_t i = begin; i < t->count; i++) {
            t->parts[i].up = at;
            at += r * t->parts[i].module->out;
        }
        a->is_adapted[m] = t->count > begin;
        t->max_rank = column > t->max_rank ? column : t->max_rank;
    }
    t->first[b->matrix_count] = t->count;
    t->gates = a->decay_count = at;
    a->param_count = at + numbers * 3 * t->prompts * d;
    a->params = iso_arena_calloc(&a->arena, a->param_count, sizeof *a->params);
    t->scaled = iso_arena_alloc(&a->arena, up, sizeof *t->scaled);
    if (!a->params || !t->scaled)
        return iso_nomem(e, a->param_count * sizeof *a->params);
    if (t->fixed > 0.0) {
        for (size_t i = 0; i < numbers; i++)
            t->mean[i] = t->fixed;
        t->has_gates = a->is_folded = true;
    }
    a->own = t;
    return ISO_OK;
}

/* D normal with deviation 1/r^2 of its branch, U zero. */
static void draw_factors(iso_adapter *a, uint64_t seed)
{
    const iso_data *t = a->own;
    for (size_t i = 0; i < t->count; i++) {
        const iso_data_part *p = &t->parts[i];
        iso_rng g = iso_rng_make(iso_rng_seed_name(seed, p->module->name), ISO_RNG_INIT, 0);
        for (size_t n = 0; n < (t->lo + t->hi) * p->module->in; n++) {
            double r = (double)(n < t->lo * p->module->in ? t->lo : t->hi);
            a->params[p->down + n] = (float)(iso_rng_normal(&g) / (r * r));
        }
    }
}

/* New rows of every gate by (E1); draws that vanish are drawn again. */
static iso_err draw_rows(iso_adapter *a, uint64_t seed, iso_error *e)
{
    const iso_data *t = a->own;
    size_t d = a->backbone->shape.dim, p = t->prompts;
    double *work = iso_calloc((t->old + 2 * p) * d + 1, sizeof *work);
    if (!work)
        return iso_nomem(e, (t->old + 2 * p) * d * sizeof *work);
    double *old = work, *draws = old + t->old * d, *rows = draws + p * d;
    for (size_t i = 0; i < t->groups * ISO_DATA_BRANCHES * 3; i++) {
        size_t group = i / 6, branch = i / 3 % 2, letter = i % 3;
        char name[64];
        snprintf(name, sizeof name, "gate %zu.%zu.%zu", group, branch, letter);
        iso_rng g = iso_rng_make(iso_rng_seed_name(seed, name), ISO_RNG_INIT, iso_data_task(a));
        const float *frozen = iso_data_frozen_rows(a, group, branch, letter);
        for (size_t j = 0; j < t->old * d; j++)
            old[j] = (double)frozen[j];
        for (size_t j = 0; j < p * d; j++)
            draws[j] = iso_rng_normal(&g);
        for (size_t bad; (bad = iso_data_orthonormal(old, t->old, draws, p, d, rows)) < p;)
            for (size_t j = 0; j < d; j++)
                draws[bad * d + j] = iso_rng_normal(&g);
        float *to = a->params + iso_data_rows_in_params(a, group, branch, letter);
        for (size_t j = 0; j < p * d; j++)
            to[j] = (float)rows[j];
    }
    free(work);
    return ISO_OK;
}

static iso_err create(iso_adapter *a, const iso_adapter_options *given, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    iso_adapter_options o = *given;
    iso_data_defaults(&o);
    if (o.rank_lo > MAX_RANK || o.rank_hi > MAX_RANK)
        return iso_fail(e, ISO_ERR_USAGE, "ranks %zu and %zu; expected 1..%d", o.rank_lo, o.rank_hi,
                        MAX_RANK);
    if (o.prompts > MAX_PROMPTS || o.gap > b->shape.depth * 1000)
        return iso_fail(e, ISO_ERR_USAGE, "%zu prompts, gap %zu; expected at most %d and a few",
                        o.prompts, o.gap, MAX_PROMPTS);
    if (!(o.ortho >= 0.0 && o.ortho <= 1e6) || !(o.fixed_gate >= 0.0 && o.fixed_gate <= 1.0))
        return iso_fail(e, ISO_ERR_USAGE,
                        "orthogonality %g, constant gate %g; expected >= 0 and 0..1", o.ortho,
                        o.fixed_gate);
    iso_data config = {.lo = o.rank_lo,
                       .hi = o.rank_hi,
                       .prompts = o.fixed_gate > 0.0 ? 0 : o.prompts,
                       .gap = o.gap,
                       .is_sum = o.is_sum,
                       .ortho = o.ortho,
                       .fixed = o.fixed_gate};
    bool *is_target = iso_arena_calloc(&a->arena, b->module_count, sizeof *is_target);
    if (!is_target)
        return iso_nomem(e, b->module_count);
    iso_err err = iso_adapter_targets(b, &o, is_target, e);
    if (err || (err = iso_data_lay_out(a, &config, is_target, e)))
        return err;
    draw_factors(a, o.seed);
    return config.prompts ? draw_rows(a, o.seed, e) : ISO_OK;
}

/* Gates look at the entry of the first block of a group, so that is where a group begins. */
static size_t first_block(const iso_adapter *a, size_t lowest)
{
    const iso_data *t = a->own;
    return a->is_folded || lowest >= a->backbone->shape.depth ? lowest : lowest / t->gap * t->gap;
}

/* A new adapter with the factors of `a` and room for `old` frozen rows. */
static iso_err with_rows(iso_adapter **out, const iso_adapter *a, size_t old, iso_error *e)
{
    const iso_data *t = a->own;
    const iso_backbone *b = a->backbone;
    iso_adapter *n = NULL;
    iso_data config = {.lo = t->lo,
                       .hi = t->hi,
                       .prompts = t->prompts,
                       .gap = t->gap,
                       .old = old,
                       .is_sum = t->is_sum,
                       .ortho = t->ortho,
                       .fixed = t->fixed};
    iso_err err = iso_adapter_blank(&n, b, &iso_data_kind, e);
    if (err)
        return err;
    bool *is_target = iso_arena_calloc(&n->arena, b->module_count, sizeof *is_target);
    if (!is_target)
        err = iso_nomem(e, b->module_count);
    for (size_t i = 0; !err && i < t->count; i++)
        is_target[t->parts[i].module - b->modules] = true;
    if (err || (err = iso_data_lay_out(n, &config, is_target, e))) {
        iso_adapter_close(n);
        return err;
    }
    iso_data *fresh = n->own;
    memcpy(n->params, a->params, t->gates * sizeof *n->params);
    memcpy(fresh->mean, t->mean, t->groups * ISO_DATA_BRANCHES * sizeof *t->mean);
    memcpy(fresh->variance, t->variance, t->groups * ISO_DATA_BRANCHES * sizeof *t->variance);
    fresh->has_gates = t->has_gates;
    n->is_folded = a->is_folded;
    iso_adapter_settle(n);
    *out = n;
    return ISO_OK;
}

/* Row k of all rows of `a`, frozen or trained. */
static const float *row_of(const iso_adapter *a, size_t group, size_t branch, size_t letter,
                           size_t k)
{
    const iso_data *t = a->own;
    size_t d = a->backbone->shape.dim;
    return k < t->old
               ? iso_data_frozen_rows(a, group, branch, letter) + k * d
               : a->params + iso_data_rows_in_params(a, group, branch, letter) + (k - t->old) * d;
}

/* The first rows of `from` become the frozen rows of `to`, and the next its trained ones as far as
 * there are. */
static void take_rows(iso_adapter *to, const iso_adapter *from)
{
    const iso_data *t = to->own, *f = from->own;
    size_t d = to->backbone->shape.dim;
    for (size_t i = 0; i < t->groups * 6; i++)
        for (size_t k = 0; k < t->old + t->prompts && k < f->old + f->prompts; k++)
            memcpy((float *)(uintptr_t)row_of(to, i / 6, i / 3 % 2, i % 3, k),
                   row_of(from, i / 6, i / 3 % 2, i % 3, k), d * sizeof(float));
}

iso_err iso_data_expand(iso_adapter **out, const iso_adapter *a, uint64_t seed, iso_error *e)
{
    const iso_data *t = a->own;
    iso_adapter *n = NULL;
    iso_err err = with_rows(&n, a, t->old + t->prompts, e);
    if (err)
        return err;
    take_rows(n, a);
    if (t->prompts && (err = draw_rows(n, seed, e))) {
        iso_adapter_close(n);
        return err;
    }
    *out = n;
    return ISO_OK;
}

iso_err iso_data_at_task(iso_adapter **out, const iso_adapter *a, size_t task, iso_error *e)
{
    const iso_data *t = a->own;
    if (task > iso_data_task(a))
        return iso_fail(e, ISO_ERR_USAGE, "task %zu; the adapter has seen %zu", task,
                        iso_data_task(a) + 1);
    iso_err err = with_rows(out, a, task * t->prompts, e);
    if (!err)
        take_rows(*out, a);
    return err;
}

/* ---- constant gates: folded ---- */

static const double *means_of(const iso_data *t, const iso_data_part *p)
{
    return t->mean + p->module->block / t->gap * ISO_DATA_BRANCHES;
}

/* (F2). Each part has its own rows of `scaled`: items of a fold run side by side. */
static void fold(const iso_adapter *a, const float *params, size_t matrix, const iso_packed *out,
                 float *W)
{
    const iso_data *t = a->own;
    for (size_t i = t->first[matrix]; i < t->first[matrix + 1]; i++) {
        const iso_data_part *p = &t->parts[i];
        size_t rows = p->module->out, r = t->lo + t->hi;
        const double *mean = means_of(t, p);
        for (size_t j = 0; j < r * rows; j++)
            t->scaled[p->scaled + j] =
                (float)(mean[j < t->lo * rows ? 0 : 1] * (double)params[p->up + j]);
        iso_packed_fold(out, W, &a->backbone->matrices[matrix], p->module->row, rows, r, 1.0F,
                        t->scaled + p->scaled, rows, params + p->down);
    }
}

/* ---- rows of a product under their gates ---- */

/* The parts of a matrix within rows row .. row+rows-1; neighbours. Returns their ranks together. */
static size_t parts_within(const iso_data *t, size_t matrix, size_t row, size_t rows, size_t *first,
                           size_t *end)
{
    *first = t->first[matrix];
    *end = t->first[matrix + 1];
    while (*first < *end && t->parts[*first].module->row < row)
        ++*first;
    while (*end > *first && t->parts[*end - 1].module->row >= row + rows)
        --*end;
    return (*end - *first) * (t->lo + t->hi);
}

/* x (m, r), rows ld apart, columns lo then hi: each times the gate of its row's image.
 * g (branches, images); per_image rows of an image; images 1: the same gates for all. */
static void under_gates(const iso_data *t, size_t m, size_t per_image, float *x, size_t ld,
                        const double *g, size_t images)
{
    for (size_t i = 0; i < m; i++) {
        size_t b = images > 1 ? i / per_image : 0;
        float lo = (float)g[b], hi = (float)g[images + b], *row = x + i * ld;
        for (size_t j = 0; j < t->lo; j++)
            row[j] *= lo;
        for (size_t j = t->lo; j < t->lo + t->hi; j++)
            row[j] *= hi;
    }
}

/* (LB2): gbar (branches, images) += sum over rows of t . h. */
static void gate_gradients(const iso_data *t, size_t m, size_t per_image, const float *u,
                           size_t ldu, const float *h, size_t ldh, double *gbar, size_t images)
{
    for (size_t i = 0; i < m; i++) {
        size_t b = images > 1 ? i / per_image : 0;
        double lo = 0.0, hi = 0.0;
        for (size_t j = 0; j < t->lo; j++)
            lo += (double)u[i * ldu + j] * (double)h[i * ldh + j];
        for (size_t j = t->lo; j < t->lo + t->hi; j++)
            hi += (double)u[i * ldu + j] * (double)h[i * ldh + j];
        gbar[b] += lo;
        gbar[images + b] += hi;
    }
}

/* What (LB2)-(LB4) need of a call; gbar NULL: constant gates. */
typedef struct {
    const iso_adapter *a;
    const float *params;
    float *grad, *scratch;
    const double *g;
    double *gbar;
    size_t images, per_image;
} gated_call;

static void gradients(const gated_call *q, size_t matrix, size_t row, size_t rows, size_t m,
                      const float *x, size_t ldx, const float *dy, size_t ldy)
{
    const iso_data *t = q->a->own;
    size_t first, end, in = q->a->backbone->matrices[matrix].in, r = t->lo + t->hi;
    size_t ranks = parts_within(t, matrix, row, rows, &first, &end);
    if (first == end)
        return;
    float *h = q->scratch, *u = h + m * t->max_rank;
    size_t down = t->parts[first].down;
    iso_gemm(false, true, m, ranks, in, 1.0F, x, ldx, q->params + down, in, 0.0F, h, ranks);
    for (size_t i = first; i < end; i++) {
        const iso_data_part *p = &t->parts[i];
        const float *dyp = dy + (p->module->row - row);
        size_t out = p->module->out, c = (i - first) * r;
        iso_gemm(false, true, m, r, out, 1.0F, dyp, ldy, q->params + p->up, out, 0.0F, u + c,
                 ranks);
        if (q->gbar)
            gate_gradients(t, m, q->per_image, u + c, ranks, h + c, ranks, q->gbar, q->images);
        under_gates(t, m, q->per_image, h + c, ranks, q->g, q->images);
        under_gates(t, m, q->per_image, u + c, ranks, q->g, q->images);
        iso_gemm(true, false, r, out, m, 1.0F, h + c, ranks, dyp, ldy, 1.0F, q->grad + p->up, out);
    }
    iso_gemm(true, false, ranks, in, m, 1.0F, u, ranks, x, ldx, 1.0F, q->grad + down, in);
}

static void grad_folded(const iso_adapter *a, const float *params, float *g, size_t matrix,
                        size_t row, size_t rows, size_t m, const float *x, size_t ldx,
                        const float *dy, size_t ldy, float *scratch)
{
    const iso_data *t = a->own;
    gated_call q = {.a = a,
                    .params = params,
                    .grad = g,
                    .scratch = scratch,
                    .g = means_of(t, &t->parts[t->first[matrix]]),
                    .images = 1,
                    .per_image = m};
    gradients(&q, matrix, row, rows, m, x, ldx, dy, ldy);
}

/* ---- a micro-batch ---- */

static size_t scratch_floats(const iso_adapter *a, size_t m)
{
    const iso_data *t = a->own;
    return 2 * m * t->max_rank + m * (t->old + t->prompts);
}

/* In work, as doubles: g, z, gbar (groups, branches, images); kappa, omega, c_bar (P). */
static double *state_of(const iso_adapter_run *r, size_t which, size_t group, size_t branch)
{
    const iso_data *t = r->adapter->own;
    double *base = (double *)(void *)r->work;
    return base + ((which * t->groups + group) * ISO_DATA_BRANCHES + branch) * r->images;
}

static double *rows_of(const iso_adapter_run *r, size_t which)
{
    const iso_data *t = r->adapter->own;
    return (double *)(void *)r->work + 3 * t->groups * ISO_DATA_BRANCHES * r->images +
           which * (t->old + t->prompts);
}

enum { STATE_G, STATE_Z, STATE_GBAR };

static size_t run_floats(const iso_adapter *a, size_t images, bool trains)
{
    const iso_data *t = a->own;
    (void)trains;
    return 2 * (3 * t->groups * ISO_DATA_BRANCHES * images + 3 * (t->old + t->prompts));
}

static void begin(iso_adapter_run *r)
{
    const iso_data *t = r->adapter->own;
    memset(state_of(r, STATE_GBAR, 0, 0), 0,
           t->groups * ISO_DATA_BRANCHES * r->images * sizeof(double));
}

/* Gate of a group and branch with kappa and omega of its rows. */
static iso_data_gate gate_of(const iso_adapter_run *r, size_t group, size_t branch)
{
    const iso_adapter *a = r->adapter;
    const iso_data *t = a->own;
    size_t d = a->backbone->shape.dim;
    double *kappa = rows_of(r, 0), *omega = rows_of(r, 1);
    for (size_t k = 0; k < t->old + t->prompts; k++) {
        bool is_old = k < t->old;
        size_t at = is_old ? k : k - t->old;
        const float *K = is_old ? iso_data_frozen_rows(a, group, branch, 1)
                                : r->params + iso_data_rows_in_params(a, group, branch, 1);
        const float *W = is_old ? iso_data_frozen_rows(a, group, branch, 2)
                                : r->params + iso_data_rows_in_params(a, group, branch, 2);
        kappa[k] = iso_data_kappa(K + at * d, d);
        omega[k] = iso_data_omega(W + at * d, d);
    }
    return (iso_data_gate){.images = r->images,
                           .tokens = r->tokens,
                           .d = d,
                           .old = t->old,
                           .fresh = t->prompts,
                           .A_old = iso_data_frozen_rows(a, group, branch, 0),
                           .A = r->params + iso_data_rows_in_params(a, group, branch, 0),
                           .kappa = kappa,
                           .omega = omega,
                           .lengths = r->lengths,
                           .is_sum = t->is_sum};
}

static void enter(iso_adapter_run *r, size_t block, const float *hidden)
{
    const iso_data *t = r->adapter->own;
    if (block % t->gap || block >= r->adapter->backbone->shape.depth)
        return;
    for (size_t br = 0; br < ISO_DATA_BRANCHES; br++) {
        size_t group = block / t->gap;
        iso_data_gate q = gate_of(r, group, br);
        iso_data_gate_forward(&q, hidden, r->scratch, false, state_of(r, STATE_Z, group, br),
                              state_of(r, STATE_G, group, br));
    }
}

static size_t group_of(const iso_data *t, size_t matrix)
{
    return t->parts[t->first[matrix]].module->block / t->gap;
}

/* (L1): y += (g * (x D')) U' */
static void add(iso_adapter_run *q, size_t matrix, size_t row, size_t rows, size_t m,
                const float *x, size_t ldx, const float *bias, float *y, size_t ldy)
{
    const iso_data *t = q->adapter->own;
    size_t first, end, in = q->adapter->backbone->matrices[matrix].in, r = t->lo + t->hi;
    size_t ranks = parts_within(t, matrix, row, rows, &first, &end);
    (void)bias;
    if (first == end)
        return;
    const double *g = state_of(q, STATE_G, group_of(t, matrix), 0);
    iso_gemm(false, true, m, ranks, in, 1.0F, x, ldx, q->params + t->parts[first].down, in, 0.0F,
             q->scratch, ranks);
    for (size_t i = first; i < end; i++) {
        const iso_data_part *p = &t->parts[i];
        float *h = q->scratch + (i - first) * r;
        under_gates(t, m, m / q->images, h, ranks, g, q->images);
        iso_gemm(false, false, m, p->module->out, r, 1.0F, h, ranks, q->params + p->up,
                 p->module->out, 1.0F, y + (p->module->row - row), ldy);
    }
}

static void run_grad(iso_adapter_run *r, size_t matrix, size_t row, size_t rows, size_t m,
                     const float *x, size_t ldx, const float *dy, size_t ldy)
{
    size_t group = group_of(r->adapter->own, matrix);
    gated_call q = {.a = r->adapter,
                    .params = r->params,
                    .grad = r->grad,
                    .scratch = r->scratch,
                    .g = state_of(r, STATE_G, group, 0),
                    .gbar = state_of(r, STATE_GBAR, group, 0),
                    .images = r->images,
                    .per_image = m / r->images};
    gradients(&q, matrix, row, rows, m, x, ldx, dy, ldy);
}

/* (LB5): dx += (g * (dy U)) D */
static void back(iso_adapter_run *q, size_t matrix, size_t row, size_t rows, size_t m,
                 const float *dy, size_t ldy, float *dx, size_t ldx)
{
    const iso_data *t = q->adapter->own;
    size_t first, end, in = q->adapter->backbone->matrices[matrix].in, r = t->lo + t->hi;
    size_t ranks = parts_within(t, matrix, row, rows, &first, &end);
    if (first == end)
        return;
    const double *g = state_of(q, STATE_G, group_of(t, matrix), 0);
    for (size_t i = first; i < end; i++) {
        const iso_data_part *p = &t->parts[i];
        float *u = q->scratch + (i - first) * r;
        iso_gemm(false, true, m, r, p->module->out, 1.0F, dy + (p->module->row - row), ldy,
                 q->params + p->up, p->module->out, 0.0F, u, ranks);
        under_gates(t, m, m / q->images, u, ranks, g, q->images);
    }
    iso_gemm(false, false, m, in, ranks, 1.0F, q->scratch, ranks, q->params + t->parts[first].down,
             in, 1.0F, dx, ldx);
}

/* The group's gate, when the last of its blocks is done (GB1-GB8). */
static void leave(iso_adapter_run *r, size_t block, const float *hidden, float *dhidden)
{
    const iso_adapter *a = r->adapter;
    const iso_data *t = a->own;
    size_t d = a->backbone->shape.dim, P = t->old + t->prompts;
    if (block % t->gap)
        return;
    for (size_t br = 0; br < ISO_DATA_BRANCHES; br++) {
        size_t group = block / t->gap;
        iso_data_gate q = gate_of(r, group, br);
        double *c_bar = rows_of(r, 2);
        memset(c_bar, 0, P * sizeof *c_bar);
        iso_data_gate_backward(
            &q, hidden, state_of(r, STATE_G, group, br), state_of(r, STATE_GBAR, group, br),
            r->grad + iso_data_rows_in_params(a, group, br, 0), c_bar, dhidden, r->scratch);
        size_t K = iso_data_rows_in_params(a, group, br, 1);
        size_t W = iso_data_rows_in_params(a, group, br, 2);
        for (size_t k = t->old; k < P; k++) {
            size_t at = (k - t->old) * d;
            iso_data_row_backward(r->params + K + at, d, q.kappa[k], q.omega[k], c_bar[k],
                                  r->grad + K + at, r->grad + W + at);
        }
    }
}

static size_t observed(const iso_adapter *a)
{
    return iso_data_groups(a) * ISO_DATA_BRANCHES;
}

static void observe(const iso_adapter_run *r, float *out)
{
    size_t n = observed(r->adapter);
    for (size_t i = 0; i < r->images; i++)
        for (size_t k = 0; k < n; k++)
            out[i * n + k] = (float)state_of(r, STATE_G, k / 2, k % 2)[i];
}

/* (O3) */
static double penalty(const iso_adapter *a, const float *params, float *grad)
{
    const iso_data *t = a->own;
    double value = 0.0, s = t->ortho / (2.0 * (double)t->groups);
    if (s == 0.0 || !t->prompts)
        return 0.0;
    for (size_t i = 0; i < t->groups * ISO_DATA_BRANCHES; i++) {
        iso_data_rows rows = {.old = t->old, .fresh = t->prompts, .d = a->backbone->shape.dim};
        float *to[3];
        for (size_t l = 0; l < 3; l++) {
            rows.before[l] = iso_data_frozen_rows(a, i / 2, i % 2, l);
            rows.rows[l] = params + iso_data_rows_in_params(a, i / 2, i % 2, l);
            to[l] = grad + iso_data_rows_in_params(a, i / 2, i % 2, l);
        }
        value += s * iso_data_penalty(&rows, s, to[0], to[1], to[2]);
    }
    return value;
}

const iso_adapter_kind iso_data_kind = {.name = "data",
                                        .peft_type = "ISOFED_DATA",
                                        .help = "low- and high-rank updates under gates that look "
                                                "at the sample",
                                        .create = create,
                                        .first_block = first_block,
                                        .from_parts = iso_data_from_parts,
                                        .to_parts = iso_data_to_parts,
                                        .to_layers = iso_data_to_layers,
                                        .fold = fold,
                                        .grad = grad_folded,
                                        .scratch_floats = scratch_floats,
                                        .run_floats = run_floats,
                                        .begin = begin,
                                        .enter = enter,
                                        .add = add,
                                        .run_grad = run_grad,
                                        .back = back,
                                        .leave = leave,
                                        .observed = observed,
                                        .observe = observe,
                                        .penalty = penalty};
