/* TOAST as an adapter kind; see toast.h. Files stand in toast_files.c, starts in toast_start.c.
 *
 * Rows are tokens: u = u_above F', so products run over the rows of a micro-batch. No gradient
 * flows into pass 1 (specs/toast.md 5). */
#include "nn/adapter/toast_inner.h"

#include "core/rng.h"
#include "core/simd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 4096 };

static const double EPS = 1e-12;

/* ---- layout ---- */

size_t iso_toast_at(const iso_adapter *a, int which, size_t block, int part)
{
    const iso_toast *t = a->own;
    size_t one = t->is_lite ? 2 * t->r * t->d : t->d * t->d;
    return ((size_t)which * t->depth + block) * one + (part ? t->r * t->d : 0);
}

size_t iso_toast_xi_at(const iso_adapter *a)
{
    return ((const iso_toast *)a->own)->xi;
}

size_t iso_toast_P_at(const iso_adapter *a)
{
    return ((const iso_toast *)a->own)->P;
}

float *iso_toast_start(const iso_adapter *a, int which, size_t block)
{
    const iso_toast *t = a->own;
    return t->start + ((size_t)which * t->depth + block) * t->d * t->d;
}

/* By geometry: the last third of the matrix that query, key and value share. */
static iso_err find_values(iso_adapter *a, iso_toast *t, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    for (size_t i = 0; i < b->module_count; i++) {
        const iso_module *m = &b->modules[i];
        if (m->in == t->d && m->out == t->d && b->matrices[m->matrix].out == 3 * t->d &&
            m->row == 2 * t->d) {
            t->values[m->block].module = m;
            a->is_adapted[m->matrix] = true;
        }
    }
    for (size_t l = 0; l < t->depth; l++)
        if (!t->values[l].module)
            return iso_fail(e, ISO_ERR_USAGE, "block %zu has no value projection for TOAST", l);
    return ISO_OK;
}

iso_err iso_toast_lay_out(iso_adapter *a, const iso_toast *config, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    size_t d = b->shape.dim, L = b->shape.depth;
    iso_err err;
    iso_toast *t = iso_arena_calloc(&a->arena, 1, sizeof *t);
    if (!t)
        return iso_nomem(e, sizeof *t);
    *t = *config;
    t->d = d;
    t->depth = L;
    if (b->shape.feature != d)
        return iso_fail(e, ISO_ERR_USAGE,
                        "features of %zu, hidden states of %zu: TOAST needs them equal",
                        b->shape.feature, d);
    t->values = iso_arena_calloc(&a->arena, L, sizeof *t->values);
    t->start = iso_arena_calloc(&a->arena, 2 * L * d * d, sizeof *t->start);
    if (!t->values || !t->start)
        return iso_nomem(e, 2 * L * d * d * sizeof *t->start);
    if ((err = find_values(a, t, e)))
        return err;
    a->own = t;
    size_t at = 2 * L * (t->is_lite ? 2 * t->r * d : d * d);
    t->P = t->trains_P ? at : SIZE_MAX;
    at += t->trains_P ? d * d : 0;
    t->xi = a->decay_count = at; /* no decay on xi: only its direction counts */
    a->param_count = at + d;
    a->params = iso_arena_calloc(&a->arena, a->param_count, sizeof *a->params);
    if (!a->params)
        return iso_nomem(e, a->param_count * sizeof *a->params);
    for (size_t l = 0; l < L; l++)
        for (size_t i = 0; i < d; i++)
            iso_toast_start(a, ISO_TOAST_F, l)[i * d + i] = 1.0F;
    for (size_t i = 0; t->trains_P && i < d; i++)
        a->params[t->P + i * d + i] = 1.0F;
    return ISO_OK;
}

/* The generation's start tensors over F = I, G = 0. */
iso_err iso_toast_take_start(iso_adapter *a, iso_error *e)
{
    iso_toast *t = a->own;
    const iso_safetensors *st = a->backbone->top_down;
    iso_peft_parts parts = {0};
    iso_err err = ISO_OK;
    if (!st)
        return ISO_OK;
    parts.st = *st;
    for (size_t i = 0; !err && i < 2 * t->depth; i++) {
        char name[48];
        size_t dims[2] = {t->d, t->d};
        snprintf(name, sizeof name, "top_down.%zu.%c", i / 2, i % 2 ? 'G' : 'F');
        err =
            iso_peft_parts_read(&parts, name, dims, 2, iso_toast_start(a, (int)(i % 2), i / 2), e);
    }
    if (err)
        iso_error_context(e, ISO_TOAST_START_FILE);
    t->start_digest = iso_tensor_list_digest(st->items, st->count);
    return err;
}

static void initialise(iso_adapter *a, const iso_adapter_options *o)
{
    const iso_toast *t = a->own;
    size_t d = t->d;
    iso_rng g = iso_rng_make(iso_rng_seed_name(o->seed, "select.xi"), ISO_RNG_INIT, 0);
    for (size_t i = 0; i < d; i++)
        a->params[t->xi + i] = o->xi ? o->xi[i] : (float)iso_rng_normal(&g);
    for (size_t i = 0; i < 2 * t->depth; i++) {
        int which = (int)(i % 2);
        float *p = a->params + iso_toast_at(a, which, i / 2, 0);
        if (!t->is_lite) {
            memcpy(p, iso_toast_start(a, which, i / 2), d * d * sizeof *p);
            continue;
        }
        iso_rng u = iso_rng_make(iso_rng_seed_name(o->seed, "top_down"), ISO_RNG_INIT, i);
        double bound = 1.0 / sqrt((double)d); /* Kaiming with slope sqrt 5; B is zero */
        for (size_t k = 0; k < t->r * d; k++)
            p[k] = (float)((2.0 * iso_rng_uniform(&u) - 1.0) * bound);
    }
}

static iso_err create(iso_adapter *a, const iso_adapter_options *o, iso_error *e)
{
    size_t r = o->rank ? o->rank : 4;
    if (r > MAX_RANK)
        return iso_fail(e, ISO_ERR_USAGE, "rank %zu; expected 1..%d", r, MAX_RANK);
    if (!(o->recon >= 0.0 && o->recon <= 1e6))
        return iso_fail(e, ISO_ERR_USAGE, "reconstruction weight %g; expected >= 0", o->recon);
    iso_toast config = {.r = r,
                        .is_lite = !o->is_full,
                        .trains_P = o->trains_P,
                        .is_twice = o->is_bias_twice,
                        .scale = 1.0 / (double)r,
                        .recon = o->recon};
    iso_err err = iso_toast_lay_out(a, &config, e);
    if (err || (err = iso_toast_take_start(a, e)))
        return err;
    initialise(a, o);
    return ISO_OK;
}

/* ---- what follows from params ---- */

/* W = start + scale * B A (lite) of F or G of a block. */
static void effective(const iso_adapter *a, const float *params, int which, size_t block, float *W)
{
    const iso_toast *t = a->own;
    size_t d = t->d;
    const float *p = params + iso_toast_at(a, which, block, 0);
    if (!t->is_lite) {
        memcpy(W, p, d * d * sizeof *W);
        return;
    }
    memcpy(W, iso_toast_start(a, which, block), d * d * sizeof *W);
    iso_gemm(false, false, d, d, t->r, (float)t->scale, params + iso_toast_at(a, which, block, 1),
             t->r, p, d, 1.0F, W, d);
}

void iso_toast_effective(const iso_adapter *a, const float *params, float *F, float *G)
{
    const iso_toast *t = a->own;
    for (size_t l = 0; l < t->depth; l++) {
        effective(a, params, ISO_TOAST_F, l, F + l * t->d * t->d);
        effective(a, params, ISO_TOAST_G, l, G + l * t->d * t->d);
    }
}

/* Training: F', G' of the lite form (the full one has them in params). Inference: C_l, and room for
 * five matrices in double on the way. */
static size_t derived_floats(const iso_adapter *a, bool trains)
{
    const iso_toast *t = a->own;
    size_t dd = t->d * t->d;
    return trains ? (t->is_lite ? 2 * t->depth * dd : 0) : (t->depth + 12) * dd + 16;
}

static void widen(const float *x, size_t n, double *out)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (double)x[i];
}

/* (C1), the chain in double. W_v is the frozen one. */
static void collapse(const iso_adapter *a, const float *params, float *C)
{
    const iso_toast *t = a->own;
    size_t d = t->d, dd = d * d;
    float *single = C + t->depth * dd;
    double *chain = (double *)(void *)(C + ((t->depth + 2) * dd + 15) / 16 * 16),
           *next = chain + dd;
    double *W = next + dd, *V = W + dd, *product = V + dd;
    for (size_t i = 0; i < dd; i++)
        chain[i] = t->trains_P ? (double)params[t->P + i % d * d + i / d] : i % (d + 1) == 0;
    for (size_t l = t->depth; l-- > 0;) {
        const iso_module *m = t->values[l].module;
        effective(a, params, ISO_TOAST_F, l, single);
        widen(single, dd, W);
        iso_gemm_f64(false, false, d, d, d, 1.0, W, d, chain, d, 0.0, next, d);
        memcpy(chain, next, dd * sizeof *chain);
        effective(a, params, ISO_TOAST_G, l, single);
        widen(single, dd, W);
        widen(a->backbone->matrices[m->matrix].W + m->row * d, dd, V);
        iso_gemm_f64(false, false, d, d, d, 1.0, V, d, W, d, 0.0, product, d);
        iso_gemm_f64(false, false, d, d, d, 1.0, product, d, chain, d, 0.0, next, d);
        for (size_t i = 0; i < dd; i++)
            C[l * dd + i] = (float)next[i];
    }
}

static void derive(const iso_adapter *a, const float *params, bool trains, float *derived)
{
    const iso_toast *t = a->own;
    if (trains)
        iso_toast_effective(a, params, derived, derived + t->depth * t->d * t->d);
    else
        collapse(a, params, derived);
}

/* F or G as the run uses it, while training. */
static const float *matrix_of(const iso_adapter_run *r, int which, size_t block)
{
    const iso_toast *t = r->adapter->own;
    return t->is_lite ? r->derived + ((size_t)which * t->depth + block) * t->d * t->d
                      : r->params + iso_toast_at(r->adapter, which, block, 0);
}

/* ---- a micro-batch ---- */

/* In work: cosines and s of the tokens, xi's gradient (doubles), y = s z; while training u of all
 * blocks and their tbar; with a reconstruction term the state before the block, and e. */
typedef struct {
    float *c, *s, *y, *u, *tbar, *before, *e;
    double *xi;
} areas;

static size_t token_floats(size_t rows)
{
    return (rows + 15) / 16 * 16;
}

static size_t xi_floats(const iso_toast *t)
{
    return 2 * ((t->d + 15) / 16 * 16);
}

static areas areas_of(const iso_adapter_run *r)
{
    const iso_toast *t = r->adapter->own;
    size_t rows = r->images * r->tokens, n = rows * t->d;
    areas w = {.xi = (double *)(void *)r->work};
    w.c = r->work + xi_floats(t);
    w.s = w.c + token_floats(rows);
    w.y = w.s + token_floats(rows);
    if (r->trains) {
        w.u = w.y + n;
        w.tbar = w.u + (t->depth + 1) * n;
        w.before = w.tbar + t->depth * n;
        w.e = w.before + n; /* both only with a reconstruction term */
    }
    return w;
}

static size_t run_floats(const iso_adapter *a, size_t images, bool trains)
{
    const iso_toast *t = a->own;
    size_t rows = images * a->backbone->shape.tokens, n = rows * t->d;
    return xi_floats(t) + 2 * token_floats(rows) + n +
           (trains ? (2 * t->depth + 1 + (t->recon > 0.0 ? 2 : 0)) * n : 0);
}

/* t, or the chain's ubar and its next; and rank-wide products of the lite form. */
static size_t scratch_floats(const iso_adapter *a, size_t m)
{
    const iso_toast *t = a->own;
    return 2 * m * t->d + (t->is_lite ? 2 * m * t->r : 0);
}

const float *iso_toast_u(const iso_adapter_run *r, size_t block)
{
    const iso_toast *t = r->adapter->own;
    return areas_of(r).u + block * r->images * r->tokens * t->d;
}

const float *iso_toast_tbar(const iso_adapter_run *r, size_t block)
{
    const iso_toast *t = r->adapter->own;
    return areas_of(r).tbar + block * r->images * r->tokens * t->d;
}

const float *iso_toast_cosines(const iso_adapter_run *r)
{
    return areas_of(r).c;
}

const float *iso_toast_selected(const iso_adapter_run *r)
{
    return areas_of(r).s;
}

ISO_CLONES static double dot(size_t n, const float *x, const float *y)
{
    double s = 0.0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++)
        s += (double)x[i] * (double)y[i];
    return s;
}

static double norm_of(size_t n, const float *x)
{
    double s = sqrt(dot(n, x, x));
    return s > EPS ? s : EPS;
}

static bool is_there(const iso_adapter_run *r, size_t row)
{
    return !r->lengths || row % r->tokens < r->lengths[row / r->tokens];
}

/* (S1)-(S3), and (B1) where a backward follows. */
static void select_tokens(iso_adapter_run *r, const float *z)
{
    const iso_toast *t = r->adapter->own;
    size_t d = t->d, rows = r->images * r->tokens, n = rows * d;
    areas w = areas_of(r);
    const float *xi = r->params + t->xi;
    double xi_norm = norm_of(d, xi);
    r->z = z;
    for (size_t i = 0; i < rows; i++) {
        const float *zi = z + i * d;
        double c = dot(d, zi, xi) / (norm_of(d, zi) * xi_norm);
        double s = is_there(r, i) ? (c < 0.0 ? 0.0 : c > 1.0 ? 1.0 : c) : 0.0;
        w.c[i] = (float)c;
        w.s[i] = (float)s;
        for (size_t j = 0; j < d; j++)
            w.y[i * d + j] = w.s[i] * zi[j];
    }
    if (!r->trains)
        return;
    float *top = w.u + t->depth * n;
    if (t->trains_P)
        iso_gemm(false, false, rows, d, d, 1.0F, w.y, d, r->params + t->P, d, 0.0F, top, d);
    else
        memcpy(top, w.y, n * sizeof *top);
    for (size_t l = t->depth; l-- > 0;)
        iso_gemm(false, true, rows, d, d, 1.0F, w.u + (l + 1) * n, d, matrix_of(r, ISO_TOAST_F, l),
                 d, 0.0F, w.u + l * n, d);
}

/* Rows of the value projection within rows row .. row+rows-1 of the matrix; false: not there. */
static bool value_within(const iso_toast *t, size_t matrix, size_t row, size_t rows, size_t *block,
                         size_t *offset)
{
    size_t l = 0;
    while (l < t->depth && t->values[l].module->matrix != matrix)
        l++;
    if (l == t->depth || t->values[l].module->row < row || t->values[l].module->row >= row + rows)
        return false;
    *block = l;
    *offset = t->values[l].module->row - row;
    return true;
}

/* (A1): values += t W_v' (+ b_v once more). */
static void add(iso_adapter_run *r, size_t matrix, size_t row, size_t rows, size_t m,
                const float *x, size_t ldx, const float *bias, float *y, size_t ldy)
{
    const iso_toast *t = r->adapter->own;
    size_t d = t->d, l, at;
    areas w = areas_of(r);
    (void)x, (void)ldx;
    if (!value_within(t, matrix, row, rows, &l, &at))
        return;
    const float *b = t->is_twice ? bias + at : NULL;
    if (!r->trains) {
        iso_packed C = {.out = d, .in = d, .W = r->derived + l * d * d};
        iso_packed_forward(&C, 0, d, b, m, w.y, d, y + at, ldy, y + at, ldy);
        return;
    }
    iso_gemm(false, true, m, d, d, 1.0F, w.u + l * m * d, d, matrix_of(r, ISO_TOAST_G, l), d, 0.0F,
             r->scratch, d);
    iso_packed_forward(&r->weights[matrix], row + at, d, b, m, r->scratch, d, y + at, ldy, y + at,
                       ldy);
}

/* Adds left' right (d, d) to the gradient of F or G of a block (D2, D4). */
static void add_gradient(iso_adapter_run *r, int which, size_t block, size_t m, float scale,
                         const float *left, const float *right)
{
    const iso_adapter *a = r->adapter;
    const iso_toast *t = a->own;
    size_t d = t->d;
    float *g = r->grad + iso_toast_at(a, which, block, 0);
    if (!t->is_lite) {
        iso_gemm(true, false, d, d, m, scale, left, d, right, d, 1.0F, g, d);
        return;
    }
    const float *A = r->params + iso_toast_at(a, which, block, 0);
    const float *B = r->params + iso_toast_at(a, which, block, 1);
    float *h = r->scratch + 2 * m * d, *k = h + m * t->r, s = scale * (float)t->scale;
    iso_gemm(false, true, m, t->r, d, 1.0F, right, d, A, d, 0.0F, h, t->r);
    iso_gemm(true, false, d, t->r, m, s, left, d, h, t->r, 1.0F,
             r->grad + iso_toast_at(a, which, block, 1), t->r);
    iso_gemm(false, false, m, t->r, d, 1.0F, left, d, B, t->r, 0.0F, k, t->r);
    iso_gemm(true, false, t->r, d, m, s, k, t->r, right, d, 1.0F, g, d);
}

/* The reconstruction term: e = F_l x_out - x_in in pass 2, both constants (R1, 5.4). */
static void enter(iso_adapter_run *r, size_t block, const float *hidden)
{
    const iso_toast *t = r->adapter->own;
    size_t d = t->d, m = r->images * r->tokens, n = m * d;
    if (!r->trains || !r->grad || t->recon == 0.0)
        return;
    areas w = areas_of(r);
    if (block > 0) {
        double squares = 0.0, mean = 1.0 / ((double)r->tokens * (double)d);
        iso_gemm(false, true, m, d, d, 1.0F, hidden, d, matrix_of(r, ISO_TOAST_F, block - 1), d,
                 0.0F, w.e, d);
        for (size_t i = 0; i < n; i++)
            w.e[i] -= w.before[i];
        squares = dot(n, w.e, w.e);
        r->loss += t->recon * mean * squares;
        add_gradient(r, ISO_TOAST_F, block - 1, m,
                     (float)(2.0 * t->recon * mean / (double)r->batch), w.e, hidden);
    }
    memcpy(w.before, hidden, n * sizeof *hidden);
}

/* tbar = W_v' vbar (X4). */
static void run_grad(iso_adapter_run *r, size_t matrix, size_t row, size_t rows, size_t m,
                     const float *x, size_t ldx, const float *dy, size_t ldy)
{
    const iso_toast *t = r->adapter->own;
    size_t l, at;
    (void)x, (void)ldx;
    if (value_within(t, matrix, row, rows, &l, &at))
        iso_packed_backward(&r->weights[matrix], row + at, t->d, m, dy + at, ldy, NULL, 0,
                            areas_of(r).tbar + l * m * t->d, t->d);
}

/* (D5)-(D7): ubar is that of u^L; ybar (rows, d) is scratch. */
static void select_backward(iso_adapter_run *r, const float *ubar, float *ybar)
{
    const iso_toast *t = r->adapter->own;
    size_t d = t->d, rows = r->images * r->tokens;
    areas w = areas_of(r);
    const float *xi = r->params + t->xi, *y_bar = ubar;
    double xi_norm = norm_of(d, xi);
    if (t->trains_P) {
        iso_gemm(true, false, d, d, rows, 1.0F, w.y, d, ubar, d, 1.0F, r->grad + t->P, d);
        iso_gemm(false, true, rows, d, d, 1.0F, ubar, d, r->params + t->P, d, 0.0F, ybar, d);
        y_bar = ybar;
    }
    memset(w.xi, 0, d * sizeof *w.xi);
    for (size_t i = 0; i < rows; i++) {
        double c = (double)w.c[i];
        if (!is_there(r, i) || c < 0.0 || c > 1.0)
            continue;
        const float *z = r->z + i * d;
        double c_bar = dot(d, y_bar + i * d, z), z_norm = norm_of(d, z);
        for (size_t j = 0; j < d; j++)
            w.xi[j] += c_bar * ((double)z[j] / z_norm - c * (double)xi[j] / xi_norm);
    }
    for (size_t j = 0; j < d; j++)
        r->grad[t->xi + j] += (float)(w.xi[j] / xi_norm);
}

/* (D1)-(D3), from the first block up. */
static void finish(iso_adapter_run *r)
{
    const iso_toast *t = r->adapter->own;
    size_t d = t->d, m = r->images * r->tokens, n = m * d;
    areas w = areas_of(r);
    float *ubar = r->scratch, *next = ubar + n;
    memset(ubar, 0, n * sizeof *ubar);
    for (size_t l = 0; l < t->depth; l++) {
        const float *tbar = w.tbar + l * n;
        iso_gemm(false, false, m, d, d, 1.0F, tbar, d, matrix_of(r, ISO_TOAST_G, l), d, 1.0F, ubar,
                 d);
        add_gradient(r, ISO_TOAST_G, l, m, 1.0F, tbar, w.u + l * n);
        add_gradient(r, ISO_TOAST_F, l, m, 1.0F, ubar, w.u + (l + 1) * n);
        iso_gemm(false, false, m, d, d, 1.0F, ubar, d, matrix_of(r, ISO_TOAST_F, l), d, 0.0F, next,
                 d);
        float *swap = ubar;
        ubar = next;
        next = swap;
    }
    select_backward(r, ubar, next);
}

/* Share of the tokens that are selected, and the mean token. */
static size_t observed(const iso_adapter *a)
{
    return 1 + ((const iso_toast *)a->own)->d;
}

static void observe(const iso_adapter_run *r, float *out)
{
    const iso_toast *t = r->adapter->own;
    areas w = areas_of(r);
    for (size_t b = 0; b < r->images; b++, out += 1 + t->d) {
        size_t there = r->lengths ? r->lengths[b] : r->tokens, selected = 0;
        for (size_t j = 0; j < t->d; j++) {
            double sum = 0.0;
            for (size_t i = 0; i < there; i++)
                sum += (double)r->z[(b * r->tokens + i) * t->d + j];
            out[1 + j] = (float)(sum / (double)there);
        }
        for (size_t i = 0; i < there; i++)
            selected += w.s[b * r->tokens + i] > 0.0F;
        out[0] = (float)selected / (float)there;
    }
}

const iso_adapter_kind iso_toast_kind = {.name = "toast",
                                         .peft_type = "ISOFED_TOAST",
                                         .help = "a second pass whose attention is steered by the "
                                                 "first one's features",
                                         .create = create,
                                         .from_parts = iso_toast_from_parts,
                                         .to_parts = iso_toast_to_parts,
                                         .scratch_floats = scratch_floats,
                                         .is_two_pass = true,
                                         .run_floats = run_floats,
                                         .derived_floats = derived_floats,
                                         .derive = derive,
                                         .select = select_tokens,
                                         .enter = enter,
                                         .add = add,
                                         .run_grad = run_grad,
                                         .finish = finish,
                                         .observed = observed,
                                         .observe = observe};
