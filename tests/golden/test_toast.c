/* Golden cases of the TOAST adapter (golden/toast): selection, chain, attention with top-down
 * values, whole models of both stages with every gradient, the collapsed form, the closed form of
 * stage 1, ten optimiser steps. */
#include "tests/golden/token_backbone.h"

#include "nn/adapter/toast.h"
#include "nn/kernel/attention.h"

enum { NAME = 96 };

/* ---- parts alone: a backbone of geometry, an adapter on it, a run ---- */

typedef struct {
    iso_module *modules;
    iso_packed *matrices;
    iso_backbone backbone;
    iso_adapter *adapter;
    iso_adapter_run run;
    float *work, *scratch, *grad, *zeros;
} parts;

/* Blocks whose query, key and value matrix is W (3 d, d); W NULL: zeros. */
static void parts_open(parts *p, size_t depth, size_t d, size_t images, size_t tokens_of,
                       const float *W, bool trains_P, bool is_twice)
{
    iso_error e = {0};
    *p = (parts){.modules = iso_calloc(depth, sizeof *p->modules),
                 .matrices = iso_calloc(depth, sizeof *p->matrices),
                 .zeros = iso_calloc(3 * d * d, sizeof(float))};
    for (size_t l = 0; l < depth; l++) {
        p->modules[l] =
            (iso_module){.name = "v", .out = d, .in = d, .block = l, .matrix = l, .row = 2 * d};
        p->matrices[l] = (iso_packed){.out = 3 * d, .in = d, .W = W ? W : p->zeros};
    }
    p->backbone.shape =
        (iso_backbone_shape){.depth = depth, .dim = d, .feature = d, .tokens = tokens_of};
    p->backbone.modules = p->modules;
    p->backbone.module_count = p->backbone.matrix_count = depth;
    p->backbone.matrices = p->matrices;
    iso_adapter_options o = {
        .kind = "toast", .is_full = true, .trains_P = trains_P, .is_bias_twice = is_twice};
    if (iso_adapter_create(&p->adapter, &p->backbone, &o, &e))
        fail_msg("%s", e.text);
    const iso_adapter *a = p->adapter;
    p->work = iso_calloc(a->kind->run_floats(a, images, true), sizeof(float));
    p->scratch = iso_calloc(a->kind->scratch_floats(a, images * tokens_of), sizeof(float));
    p->grad = iso_calloc(a->param_count, sizeof(float));
    p->run = (iso_adapter_run){.adapter = a,
                               .params = a->params,
                               .trains = true,
                               .weights = p->matrices,
                               .images = images,
                               .tokens = tokens_of,
                               .work = p->work,
                               .scratch = p->scratch,
                               .grad = p->grad,
                               .batch = images};
}

static void parts_close(parts *p)
{
    iso_adapter_close(p->adapter);
    iso_arena_free(&p->backbone.arena);
    void *all[] = {p->modules, p->matrices, p->work, p->scratch, p->grad, p->zeros};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void identity(float *F, size_t d)
{
    for (size_t i = 0; i < d * d; i++)
        F[i] = i % (d + 1) == 0 ? 1.0F : 0.0F;
}

/* With one block, F = I and G = I, tbar is the gradient of u^0 and so of u^L. */
static void select_case(golden_case *c)
{
    const iso_tensor *shape = golden_need(c, "input/z");
    size_t B = shape->shape[0], N = shape->shape[1], d = shape->shape[2];
    parts p;
    parts_open(&p, 1, d, B, N, NULL, true, false);
    iso_adapter *a = p.adapter;
    golden_read(c, "input/xi", a->params + iso_toast_xi_at(a), d);
    golden_read(c, "input/P", a->params + iso_toast_P_at(a), d * d);
    identity(a->params + iso_toast_at(a, ISO_TOAST_F, 0, 0), d);
    identity(a->params + iso_toast_at(a, ISO_TOAST_G, 0, 0), d);
    float *z = golden_f32(c, "input/z", NULL);
    a->kind->select(&p.run, z);
    golden_compare(c, "out/c", iso_toast_cosines(&p.run), B * N);
    golden_compare(c, "out/s", iso_toast_selected(&p.run), B * N);
    golden_compare(c, "out/u0", iso_toast_u(&p.run, 1), B * N * d);
    golden_read(c, "input/u0_bar", (float *)(uintptr_t)iso_toast_tbar(&p.run, 0), B * N * d);
    a->kind->finish(&p.run);
    golden_compare(c, "grad/xi", p.grad + iso_toast_xi_at(a), d);
    golden_compare(c, "grad/P", p.grad + iso_toast_P_at(a), d * d);
    golden_expect_compared(c, 0);
    free(z);
    parts_close(&p);
}

/* u^L is given: it goes in as z, with xi so that ... nothing is selected away: the run's u^L is
 * written over before the chain runs again. */
static void feedback(golden_case *c)
{
    const iso_tensor *shape = golden_need(c, "input/u0");
    size_t B = shape->shape[0], N = shape->shape[1], d = shape->shape[2], n = B * N * d;
    size_t L = golden_size(c, "blocks");
    char name[NAME];
    parts p;
    parts_open(&p, L, d, B, N, NULL, false, false);
    iso_adapter *a = p.adapter;
    for (size_t l = 0; l < L; l++) {
        snprintf(name, sizeof name, "param/top_down.%zu.F", l);
        golden_read(c, name, a->params + iso_toast_at(a, ISO_TOAST_F, l, 0), d * d);
        snprintf(name, sizeof name, "param/top_down.%zu.G", l);
        golden_read(c, name, a->params + iso_toast_at(a, ISO_TOAST_G, l, 0), d * d);
    }
    float *u0 = golden_f32(c, "input/u0", NULL), *z = iso_calloc(n, sizeof *z);
    /* each token is its own xi, so that s = 1: one run a token */
    float *u = iso_calloc((L + 1) * n, sizeof *u);
    for (size_t i = 0; i < B * N; i++) {
        memcpy(a->params + iso_toast_xi_at(a), u0 + i * d, d * sizeof *u0);
        a->kind->select(&p.run, u0);
        for (size_t l = 0; l <= L; l++)
            memcpy(u + l * n + i * d, iso_toast_u(&p.run, l) + i * d, d * sizeof *u);
    }
    memcpy((float *)(uintptr_t)iso_toast_u(&p.run, 0), u, (L + 1) * n * sizeof *u);
    float *t = iso_calloc(n, sizeof *t);
    for (size_t l = 0; l < L; l++) {
        snprintf(name, sizeof name, "out/u.%zu", l);
        golden_compare(c, name, u + l * n, n);
        iso_gemm(false, true, B * N, d, d, 1.0F, u + l * n, d,
                 a->params + iso_toast_at(a, ISO_TOAST_G, l, 0), d, 0.0F, t, d);
        snprintf(name, sizeof name, "out/t.%zu", l);
        golden_compare(c, name, t, n);
        snprintf(name, sizeof name, "input/t_bar.%zu", l);
        golden_read(c, name, (float *)(uintptr_t)iso_toast_tbar(&p.run, l), n);
    }
    a->kind->finish(&p.run);
    for (size_t l = 0; l < L; l++) {
        snprintf(name, sizeof name, "grad/top_down.%zu.F", l);
        golden_compare(c, name, p.grad + iso_toast_at(a, ISO_TOAST_F, l, 0), d * d);
        snprintf(name, sizeof name, "grad/top_down.%zu.G", l);
        golden_compare(c, name, p.grad + iso_toast_at(a, ISO_TOAST_G, l, 0), d * d);
    }
    /* ubar of u^L: where the chain left it, two buffers that swap once a block */
    golden_compare(c, "grad/u0", p.scratch + (L % 2 ? n : 0), n);
    golden_expect_compared(c, 0);
    free(u0);
    free(z);
    free(u);
    free(t);
    parts_close(&p);
}

/* One attention layer: the kind adds to the values and takes tbar; gradients of h from the same
 * kernels as the encoder's. */
static void attention(golden_case *c)
{
    static const char *const letters[] = {"q", "k", "v"};
    const iso_tensor *shape = golden_need(c, "input/h");
    size_t B = shape->shape[0], N = shape->shape[1], d = shape->shape[2], m = B * N;
    size_t heads = golden_size(c, "heads"), dh = d / heads;
    bool is_twice = strcmp(golden_text(c, "value_bias"), "twice") == 0;
    float *W = iso_calloc(3 * d * d, sizeof *W), *bias = iso_calloc(3 * d, sizeof *bias);
    char name[NAME];
    for (size_t i = 0; i < 3; i++) {
        snprintf(name, sizeof name, "param/%s.weight", letters[i]);
        golden_read(c, name, W + i * d * d, d * d);
        snprintf(name, sizeof name, "param/%s.bias", letters[i]);
        golden_read(c, name, bias + i * d, d);
    }
    float *Wo = golden_f32(c, "param/o.weight", NULL), *bo = golden_f32(c, "param/o.bias", NULL);
    float *h = golden_f32(c, "input/h", NULL), *t = golden_f32(c, "input/t", NULL);
    float *dy = golden_f32(c, "input/dy", NULL);
    parts p;
    parts_open(&p, 1, d, B, N, W, false, is_twice);
    iso_adapter *a = p.adapter;
    identity(a->params + iso_toast_at(a, ISO_TOAST_F, 0, 0), d);
    identity(a->params + iso_toast_at(a, ISO_TOAST_G, 0, 0), d);
    iso_packed out = {.out = d, .in = d, .W = Wo};
    float *qkv = iso_calloc(m * 3 * d, sizeof *qkv), *att = iso_calloc(m * d, sizeof *att);
    float *log_sum = iso_calloc(B * heads * N, sizeof *log_sum);
    float *scratch = iso_calloc(2 * iso_attention_scratch(N, N), sizeof *scratch);
    float *y = iso_calloc(m * d, sizeof *y), *datt = iso_calloc(m * d, sizeof *datt);
    float *dqkv = iso_calloc(m * 3 * d, sizeof *dqkv), *dh_ = iso_calloc(m * d, sizeof *dh_);
    for (int with = 0; with < 2; with++) {
        iso_packed_forward(&p.matrices[0], 0, 3 * d, bias, m, h, d, NULL, 0, qkv, 3 * d);
        if (with) {
            memcpy((float *)(uintptr_t)iso_toast_u(&p.run, 0), t, m * d * sizeof *t);
            a->kind->add(&p.run, 0, 0, 3 * d, m, h, d, bias, qkv, 3 * d);
        }
        for (size_t b = 0; b < B; b++)
            for (size_t k = 0; k < heads; k++) {
                const float *base = qkv + b * N * 3 * d + k * dh;
                iso_attention q = {.nq = N,
                                   .n = N,
                                   .d = dh,
                                   .scale = 1.0F / sqrtf((float)dh),
                                   .q = base,
                                   .k = base + d,
                                   .v = base + 2 * d,
                                   .ldq = 3 * d,
                                   .ldkv = 3 * d};
                iso_attention_forward(&q, att + b * N * d + k * dh, d,
                                      log_sum + (b * heads + k) * N, scratch);
                if (!with)
                    continue;
                float *dq = dqkv + b * N * 3 * d + k * dh;
                iso_packed_backward(&out, 0, d, m, dy, d, NULL, 0, datt, d);
                iso_attention_backward(&q, log_sum + (b * heads + k) * N, datt + b * N * d + k * dh,
                                       d, dq, 3 * d, dq + d, dq + 2 * d, 3 * d, scratch);
            }
        iso_packed_forward(&out, 0, d, bo, m, att, d, NULL, 0, y, d);
        golden_compare(c, with ? "out/y" : "out/y_without", y, m * d);
    }
    iso_packed_backward(&p.matrices[0], 0, 3 * d, m, dqkv, 3 * d, NULL, 0, dh_, d);
    a->kind->run_grad(&p.run, 0, 0, 3 * d, m, h, d, dqkv, 3 * d);
    golden_compare(c, "grad/h", dh_, m * d);
    golden_compare(c, "grad/t", iso_toast_tbar(&p.run, 0), m * d);
    golden_expect_compared(c, 0);
    void *all[] = {W, bias, Wo, bo, h, t, dy, qkv, att, log_sum, scratch, y, datt, dqkv, dh_};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    parts_close(&p);
}

/* ---- models ---- */

/* Names of a tensor of the adapter and where it lies in params. */
typedef void part_fn(void *ctx, const char *name, float *at, size_t n);

static void each_part(const iso_adapter *a, bool is_lite, size_t r, float *params, part_fn *fn,
                      void *ctx)
{
    size_t d = a->backbone->shape.dim;
    char name[NAME];
    for (size_t i = 0; i < 2 * a->backbone->shape.depth; i++) {
        int which = (int)(i % 2);
        const char *letter = which == ISO_TOAST_F ? "F" : "G";
        if (is_lite) {
            snprintf(name, sizeof name, "top_down.%zu.%s.lora_A", i / 2, letter);
            fn(ctx, name, params + iso_toast_at(a, which, i / 2, 0), r * d);
            snprintf(name, sizeof name, "top_down.%zu.%s.lora_B", i / 2, letter);
            fn(ctx, name, params + iso_toast_at(a, which, i / 2, 1), r * d);
        } else {
            snprintf(name, sizeof name, "top_down.%zu.%s", i / 2, letter);
            fn(ctx, name, params + iso_toast_at(a, which, i / 2, 0), d * d);
        }
    }
    fn(ctx, "select.xi", params + iso_toast_xi_at(a), d);
    fn(ctx, "select.P", params + iso_toast_P_at(a), d * d);
}

typedef struct {
    golden_case *c;
    const char *prefix;
} reading;

static void read_part(void *ctx, const char *name, float *at, size_t n)
{
    const reading *k = ctx;
    char full[NAME + 16];
    snprintf(full, sizeof full, "%s/%s", k->prefix, name);
    golden_read(k->c, full, at, n);
}

static void compare_part(void *ctx, const char *name, float *at, size_t n)
{
    const reading *k = ctx;
    char full[NAME + 16];
    snprintf(full, sizeof full, "%s/%s", k->prefix, name);
    if (golden_find(k->c, full))
        golden_compare(k->c, full, at, n);
}

static bool lite_of(const golden_case *c)
{
    bool is_lite = false;
    iso_json_bool(iso_json_key(c->params, "lite"), &is_lite);
    return is_lite;
}

static iso_adapter *open_adapter(const tokens *t, golden_case *c, bool is_stage1)
{
    iso_adapter *a = NULL;
    iso_error e = {0};
    bool is_lite = lite_of(c);
    iso_adapter_options o = {.kind = "toast",
                             .rank = golden_size(c, "lite_rank"),
                             .is_full = !is_lite,
                             .trains_P = true,
                             .is_bias_twice = strcmp(golden_text(c, "value_bias"), "twice") == 0,
                             .recon = is_stage1 ? golden_number(c, "recon_weight", 0) : 0.0};
    if (iso_adapter_create(&a, &t->backbone, &o, &e))
        fail_msg("%s", e.text);
    /* scale is 1/r here as there */
    assert_true(!is_lite || fabs(golden_number(c, "lite_scale", 0) * (double)o.rank - 1) < 1e-12);
    reading k = {c, "param"};
    each_part(a, is_lite, o.rank, a->params, read_part, &k);
    size_t d = t->backbone.shape.dim;
    for (size_t i = 0; is_lite && i < 2 * t->backbone.shape.depth; i++) {
        char name[NAME];
        snprintf(name, sizeof name, "param/top_down.%zu.%s", i / 2, i % 2 ? "G" : "F");
        golden_read(c, name, iso_toast_start(a, (int)(i % 2), i / 2), d * d);
    }
    return a;
}

static float *derived_of(const iso_adapter *a, bool trains)
{
    float *x = iso_alloc_aligned(a->kind->derived_floats(a, trains) + 1, sizeof *x);
    a->kind->derive(a, a->params, trains, x);
    return x;
}

static void put_logits(const tokens *t, const float *f, size_t ldf, float *z)
{
    size_t C = t->classes, d = t->backbone.shape.dim;
    for (size_t i = 0; i < t->batch; i++)
        memcpy(z + i * C, t->head_b, C * sizeof *z);
    iso_gemm(false, true, t->batch, C, d, 1.0F, f, ldf, t->head_W, d, 1.0F, z, C);
}

/* Everything that the forward passes through, in the long form. */
static void compare_forward(golden_case *c, tokens *t, const iso_adapter *a)
{
    size_t d = t->backbone.shape.dim, N = t->backbone.shape.tokens, n = t->batch * N * d;
    size_t L = t->backbone.shape.depth;
    char name[NAME];
    token_trace trace;
    float *derived = lite_of(c) ? derived_of(a, true) : NULL;
    token_open_trace(t, a, derived, true, &trace);
    golden_compare(c, "out/z", trace.z, n);
    golden_compare(c, "out/y", trace.out, n);
    golden_compare(c, "out/c", iso_toast_cosines(&trace.run), t->batch * N);
    golden_compare(c, "out/s", iso_toast_selected(&trace.run), t->batch * N);
    golden_compare(c, "out/u0", iso_toast_u(&trace.run, L), n);
    float *F = iso_calloc(2 * L * d * d, sizeof *F), *x = iso_calloc(n, sizeof *x);
    iso_toast_effective(a, a->params, F, F + L * d * d);
    for (size_t l = 0; l < L; l++) {
        snprintf(name, sizeof name, "out/u.%zu", l);
        golden_compare(c, name, iso_toast_u(&trace.run, l), n);
        iso_gemm(false, true, n / d, d, d, 1.0F, iso_toast_u(&trace.run, l), d, F + (L + l) * d * d,
                 d, 0.0F, x, d);
        snprintf(name, sizeof name, "out/t.%zu", l);
        golden_compare(c, name, x, n);
        snprintf(name, sizeof name, "out/outs1.%zu", l);
        golden_compare(c, name, trace.blocks1[l], n);
        snprintf(name, sizeof name, "out/outs2.%zu", l);
        golden_compare(c, name, trace.blocks[l], n);
    }
    float *z = iso_calloc(t->batch * t->classes, sizeof *z);
    put_logits(t, trace.z, N * d, z);
    golden_compare(c, "out/logits1", z, t->batch * t->classes);
    free(z);
    z = token_logits(t, a); /* the collapsed form */
    golden_compare(c, "out/logits", z, t->batch * t->classes);
    free(z);
    free(F);
    free(x);
    free(derived);
}

/* tbar of the whole model, by a backward with keep in the open. The loss is the pass-2 one. */
static void compare_tbar(golden_case *c, tokens *t, const iso_adapter *a)
{
    const iso_backbone *b = &t->backbone;
    const iso_backbone_shape *s = &b->shape;
    size_t d = s->dim, n = t->batch * s->tokens * d;
    float *derived = lite_of(c) ? derived_of(a, true) : NULL;
    token_trace trace;
    token_open_trace(t, a, derived, true, &trace);
    iso_pass_hooks h = iso_run_hooks(&trace.run);
    iso_pass p = {
        .weights = b->matrices, .read = 1, .keep = true, .hooks = &h, .lengths = trace.run.lengths};
    float *w = iso_arena_alloc(&t->arena, token_workspace(b, &p, t->batch), sizeof *w);
    float *out = iso_calloc(t->batch * d, sizeof *out),
          *dout = iso_calloc(t->batch * d, sizeof *out);
    float *extra = iso_calloc(t->classes * (d + 1), sizeof *extra);
    token_embed(b, &p, t->samples, t->batch, w, token_input(b, &p, w));
    token_forward(b, &p, t->batch, w, out);
    token_ce(t, 1.0F, 0, t->batch, out, d, dout, extra);
    iso_backward back = iso_run_backward(&trace.run);
    token_backward(b, &p, &back, t->batch, w, dout);
    for (size_t l = 0; l < s->depth; l++) {
        char name[NAME];
        snprintf(name, sizeof name, "grad_t/%zu", l);
        golden_compare(c, name, iso_toast_tbar(&trace.run, l), n);
    }
    free(out);
    free(dout);
    free(extra);
    free(derived);
}

static void model(golden_case *c)
{
    tokens t;
    tokens_open(&t, c);
    bool is_stage1 = golden_size(c, "stage") == 1;
    iso_adapter *a = open_adapter(&t, c, is_stage1);
    size_t d = t.backbone.shape.dim, C = t.classes;
    double loss;
    float *g = token_gradient(&t, a, is_stage1, &loss);
    golden_compare_number(c, "out/loss", loss);
    golden_compare(c, "grad/head.weight", g + a->param_count, C * d);
    golden_compare(c, "grad/head.bias", g + a->param_count + C * d, C);
    reading k = {c, "grad"};
    each_part(a, lite_of(c), golden_size(c, "lite_rank"), g, compare_part, &k);
    free(g);
    /* the losses apart: both passes' cross-entropy from their logits */
    iso_adapter *plain = open_adapter(&t, c, false);
    g = token_gradient(&t, plain, false, &loss);
    golden_compare_number(c, "out/loss_ce2", loss);
    free(g);
    if (is_stage1) {
        double total;
        float *z = token_logits(&t, NULL);
        double ce1 = iso_loss_rows(t.batch, C, z, t.labels, 0.0F, NULL) / (double)t.batch;
        golden_compare_number(c, "out/loss_ce1", ce1);
        free(z);
        free(token_gradient(&t, a, true, &total));
        golden_compare_number(c, "out/loss_recon",
                              (total - 0.5 * (ce1 + loss)) / golden_number(c, "recon_weight", 1));
    }
    compare_forward(c, &t, plain);
    compare_tbar(c, &t, plain);
    golden_expect_compared(c, 0);
    iso_adapter_close(a);
    iso_adapter_close(plain);
    tokens_close(&t);
}

static void train(golden_case *c)
{
    tokens t;
    tokens_open(&t, c);
    iso_adapter *a = open_adapter(&t, c, false);
    size_t steps = golden_size(c, "steps");
    double *losses = iso_calloc(steps, sizeof *losses);
    token_train(c, &t, a, losses);
    golden_compare_f64(c, "out/losses", losses, steps);
    golden_compare(c, "out/head.weight", t.head_W, t.classes * t.backbone.shape.dim);
    reading k = {c, "out"};
    each_part(a, lite_of(c), golden_size(c, "lite_rank"), a->params, compare_part, &k);
    golden_expect_compared(c, 0);
    free(losses);
    iso_adapter_close(a);
    tokens_close(&t);
}

/* ---- the collapsed and the closed form ---- */

static void collapsed(golden_case *c)
{
    tokens t;
    tokens_open(&t, c);
    iso_adapter *a = open_adapter(&t, c, false);
    size_t d = t.backbone.shape.dim, N = t.backbone.shape.tokens, m = t.batch * N;
    float *C = derived_of(a, false), *term = iso_calloc(m * d, sizeof *term);
    float *y = iso_calloc(m * d, sizeof *y);
    token_trace trace;
    token_open_trace(&t, a, C, false, &trace);
    for (size_t i = 0; i < m * d; i++)
        y[i] = iso_toast_selected(&trace.run)[i / d] * trace.z[i];
    for (size_t l = 0; l < t.backbone.shape.depth; l++) {
        char name[NAME];
        snprintf(name, sizeof name, "out/collapsed.%zu", l);
        golden_compare(c, name, C + l * d * d, d * d);
        iso_gemm(false, true, m, d, d, 1.0F, y, d, C + l * d * d, d, 0.0F, term, d);
        snprintf(name, sizeof name, "out/value_term.%zu", l);
        golden_compare(c, name, term, m * d);
    }
    float *z = token_logits(&t, a);
    golden_compare(c, "out/logits", z, t.batch * t.classes);
    golden_expect_compared(c, 0);
    free(z);
    free(C);
    free(y);
    free(term);
    iso_adapter_close(a);
    tokens_close(&t);
}

static void ridge(golden_case *c)
{
    const iso_tensor *shape = golden_need(c, "input/out");
    size_t m = shape->shape[0], d = shape->shape[1], dd = d * d, half = m / 2;
    float *out = golden_f32(c, "input/out", NULL), *in = golden_f32(c, "input/in", NULL);
    double *S = iso_calloc(dd, sizeof *S), *C = iso_calloc(dd, sizeof *C);
    float *scratch = iso_calloc(dd, sizeof *scratch), *F = iso_calloc(dd, sizeof *F);
    iso_error e = {0};
    for (size_t site = 0; site < 2; site++) { /* sums over rows: sites can pool them */
        double *s = iso_calloc(dd, sizeof *s), *x = iso_calloc(dd, sizeof *x);
        char name[NAME];
        size_t at = site ? half : 0, n = site ? m - half : half;
        iso_toast_moments(n, d, in + at * d, out + at * d, s, x, scratch);
        snprintf(name, sizeof name, "out/site%zu.gram_sum", site);
        golden_compare_f64(c, name, s, dd);
        snprintf(name, sizeof name, "out/site%zu.cross_sum", site);
        golden_compare_f64(c, name, x, dd);
        for (size_t i = 0; i < dd; i++) {
            S[i] += s[i] / (double)m;
            C[i] += x[i] / (double)m;
        }
        free(s);
        free(x);
    }
    golden_compare_f64(c, "out/gram", S, dd);
    golden_compare_f64(c, "out/cross", C, dd);
    if (iso_toast_solve(d, S, C, golden_number(c, "lambda", 0), F, &e))
        fail_msg("%s", e.text);
    golden_compare(c, "out/F", F, dd);
    double squares = 0.0;
    for (size_t i = 0; i < m; i++)
        for (size_t o = 0; o < d; o++) {
            double s = -(double)in[i * d + o];
            for (size_t k = 0; k < d; k++)
                s += (double)F[o * d + k] * (double)out[i * d + k];
            squares += s * s;
        }
    golden_compare_number(c, "out/mse", squares / (double)(m * d));
    golden_expect_compared(c, 0);
    void *all[] = {out, in, S, C, scratch, F};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void golden_toast(void **state)
{
    static const golden_kind kinds[] = {
        {"select", select_case, NULL},  {"feedback", feedback, NULL},
        {"attention", attention, NULL}, {"model", model, NULL},
        {"collapsed", collapsed, NULL}, {"ridge", ridge, NULL},
        {"train", train, NULL},         {0}};
    (void)state;
    run_golden("toast", kinds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_toast)};
    return cmocka_run_group_tests_name("golden toast", tests, NULL, NULL);
}
