/* Golden cases of the DATA adapter (golden/data): gate, penalty and layer alone, whole models with
 * every gradient, new rows, restoration, folding, ten
 * optimiser steps. The merge of two sites has a runner of its own. */
#include "tests/golden/token_backbone.h"

#include "nn/adapter/data.h"
#include "nn/train/restore.h"

static const char *const BRANCHES[] = {"lo", "hi"};

/* ---- gate and penalty alone ---- */

static void gate(golden_case *c)
{
    const iso_tensor *shape = golden_need(c, "input/X");
    size_t B = shape->shape[0], N = shape->shape[1], d = shape->shape[2];
    size_t P = golden_need(c, "input/A")->shape[0];
    float *X = golden_f32(c, "input/X", NULL), *A = golden_f32(c, "input/A", NULL);
    float *K = golden_f32(c, "input/K", NULL), *W = golden_f32(c, "input/W", NULL);
    float *mask = golden_f32(c, "input/mask", NULL);
    double *gbar = golden_f64(c, "input/g_bar", NULL);
    double *kappa = iso_calloc(P, sizeof *kappa), *omega = iso_calloc(P, sizeof *omega);
    double *z = iso_calloc(B, sizeof *z), *g = iso_calloc(B, sizeof *g);
    double *c_bar = iso_calloc(P, sizeof *c_bar);
    uint32_t *lengths = iso_calloc(B, sizeof *lengths);
    float *a = iso_calloc(B * N * P, sizeof *a), *scratch = iso_calloc(N * P, sizeof *scratch);
    float *dA = iso_calloc(P * d, sizeof *dA), *dK = iso_calloc(P * d, sizeof *dK);
    float *dW = iso_calloc(P * d, sizeof *dW), *dX = iso_calloc(B * N * d, sizeof *dX);
    for (size_t b = 0; b < B; b++)
        for (size_t i = 0; i < N; i++)
            lengths[b] += !mask || mask[b * N + i] != 0.0F;
    for (size_t k = 0; k < P; k++) {
        kappa[k] = iso_data_kappa(K + k * d, d);
        omega[k] = iso_data_omega(W + k * d, d);
    }
    /* As the second task of two sees it: the first rows count as frozen in the products. */
    for (size_t old = 0; old <= P / 2; old += P / 2) {
        iso_data_gate q = {.images = B,
                           .tokens = N,
                           .d = d,
                           .old = old,
                           .fresh = P - old,
                           .A_old = A,
                           .A = A + old * d,
                           .kappa = kappa,
                           .omega = omega,
                           .lengths = mask ? lengths : NULL,
                           .is_sum = strcmp(golden_text(c, "reduce"), "sum") == 0};
        memset(dX, 0, B * N * d * sizeof *dX);
        memset(c_bar, 0, P * sizeof *c_bar);
        iso_data_gate_forward(&q, X, a, true, z, g);
        iso_data_gate_backward(&q, X, g, gbar, dA + old * d, c_bar, dX, scratch);
        if (old == 0) {
            golden_compare(c, "out/a", a, B * N * P);
            golden_compare(c, "grad/A", dA, P * d);
            golden_compare(c, "grad/X", dX, B * N * d);
        } else {
            golden_compare(c, "grad/X", dX, B * N * d);
        }
    }
    for (size_t k = 0; k < P; k++)
        iso_data_row_backward(K + k * d, d, kappa[k], omega[k], c_bar[k], dK + k * d, dW + k * d);
    golden_compare_f64(c, "out/z", z, B);
    golden_compare_f64(c, "out/g", g, B);
    golden_compare(c, "grad/K", dK, P * d);
    golden_compare(c, "grad/W", dW, P * d);
    golden_expect_compared(c, 1);
    void *all[] = {X, A,     K,       W, mask,    gbar, kappa, omega, z,
                   g, c_bar, lengths, a, scratch, dA,   dK,    dW,    dX};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
}

static void ortho(golden_case *c)
{
    static const char *const names[3] = {"A", "K", "W"};
    const iso_tensor *shape = golden_need(c, "input/A");
    size_t P = shape->shape[0], d = shape->shape[1], old = golden_size(c, "frozen_rows");
    iso_data_rows r = {.old = old, .fresh = P - old, .d = d};
    float *rows[3], *grads[3];
    for (size_t i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "input/%s", names[i]);
        rows[i] = golden_f32(c, name, NULL);
        grads[i] = iso_calloc(P * d, sizeof(float));
        r.before[i] = rows[i];
        r.rows[i] = rows[i] + old * d;
    }
    golden_compare_number(
        c, "out/penalty",
        iso_data_penalty(&r, 1.0, grads[0] + old * d, grads[1] + old * d, grads[2] + old * d));
    for (size_t i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "grad/%s", names[i]);
        golden_compare(c, name, grads[i], P * d);
        free(rows[i]);
        free(grads[i]);
    }
    golden_expect_compared(c, 0);
}

/* ---- one adapted layer, through the kind ---- */

static void linear(golden_case *c)
{
    const iso_tensor *x_shape = golden_need(c, "input/x");
    size_t B = x_shape->shape[0], N = x_shape->shape[1], in = x_shape->shape[2];
    size_t out = golden_need(c, "input/weight")->shape[0], m = B * N;
    size_t ranks[2] = {golden_need(c, "input/lo.down")->shape[0],
                       golden_need(c, "input/hi.down")->shape[0]};
    float *W = golden_f32(c, "input/weight", NULL), *bias = golden_f32(c, "input/bias", NULL);
    float *x = golden_f32(c, "input/x", NULL), *dy = golden_f32(c, "input/dy", NULL);
    iso_error e = {0};
    iso_module module = {.name = "encoder.w", .out = out, .in = in};
    iso_packed matrix = {.out = out, .in = in, .W = W};
    iso_backbone b = {.shape = {.depth = 1, .dim = in, .tokens = N},
                      .modules = &module,
                      .module_count = 1,
                      .matrices = &matrix,
                      .matrix_count = 1};
    iso_adapter_options o = {
        .kind = "data", .rank_lo = ranks[0], .rank_hi = ranks[1], .prompts = 1, .gap = 1};
    iso_adapter *a = NULL;
    if (iso_adapter_create(&a, &b, &o, &e))
        fail_msg("%s", e.text);
    /* params: D lo, D hi, then U' lo, U' hi */
    size_t r = ranks[0] + ranks[1], at = 0, up = r * in;
    for (size_t br = 0; br < 2; br++) {
        char name[64];
        snprintf(name, sizeof name, "input/%s.down", BRANCHES[br]);
        golden_read(c, name, a->params + at, ranks[br] * in);
        at += ranks[br] * in;
        snprintf(name, sizeof name, "input/%s.up", BRANCHES[br]);
        float *U = golden_f32(c, name, NULL);
        for (size_t i = 0; i < out; i++)
            for (size_t k = 0; k < ranks[br]; k++)
                a->params[up + k * out + i] = U[i * ranks[br] + k];
        up += ranks[br] * out;
        free(U);
    }
    float *work = iso_calloc(a->kind->run_floats(a, B, true), sizeof *work);
    float *scratch = iso_calloc(a->kind->scratch_floats(a, m), sizeof *scratch);
    float *grad = iso_calloc(a->param_count, sizeof *grad);
    float *y = iso_calloc(m * out, sizeof *y), *dx = iso_calloc(m * in, sizeof *dx);
    iso_adapter_run run = {.adapter = a,
                           .params = a->params,
                           .trains = true,
                           .weights = &matrix,
                           .images = B,
                           .tokens = N,
                           .work = work,
                           .scratch = scratch,
                           .grad = grad,
                           .batch = B};
    a->kind->begin(&run);
    double *g = (double *)(void *)work; /* (branch, image): the first thing in a run's work */
    for (size_t br = 0; br < 2; br++) {
        char name[64];
        snprintf(name, sizeof name, "input/%s.gate", BRANCHES[br]);
        double *values = golden_f64(c, name, NULL);
        memcpy(g + br * B, values, B * sizeof *g);
        free(values);
    }
    iso_packed_forward(&matrix, 0, out, bias, m, x, in, NULL, 0, y, out);
    a->kind->add(&run, 0, 0, out, m, x, in, bias, y, out);
    golden_compare(c, "out/y", y, m * out);
    iso_packed_backward(&matrix, 0, out, m, dy, out, NULL, 0, dx, in);
    a->kind->back(&run, 0, 0, out, m, dy, out, dx, in);
    golden_compare(c, "grad/x", dx, m * in);
    a->kind->run_grad(&run, 0, 0, out, m, x, in, dy, out);
    const double *gbar = g + 2 * 2 * B; /* after g and z */
    for (size_t br = 0, down = 0, upper = r * in; br < 2; br++) {
        char name[64];
        snprintf(name, sizeof name, "grad/%s.down", BRANCHES[br]);
        golden_compare(c, name, grad + down, ranks[br] * in);
        down += ranks[br] * in;
        float *U = iso_calloc(ranks[br] * out, sizeof *U);
        for (size_t i = 0; i < out; i++)
            for (size_t k = 0; k < ranks[br]; k++)
                U[i * ranks[br] + k] = grad[upper + k * out + i];
        upper += ranks[br] * out;
        snprintf(name, sizeof name, "grad/%s.up", BRANCHES[br]);
        golden_compare(c, name, U, ranks[br] * out);
        free(U);
        snprintf(name, sizeof name, "grad/%s.gate", BRANCHES[br]);
        golden_compare_f64(c, name, gbar + br * B, B);
    }
    golden_expect_compared(c, 0);
    void *all[] = {W, bias, x, dy, work, scratch, grad, y, dx};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    iso_adapter_close(a);
}

/* ---- models ---- */

static bool is_adapter(const char *name)
{
    return strstr(name, ".data_") || strncmp(name, "gate.", 5) == 0;
}

static iso_adapter *open_adapter(const tokens *t, const golden_case *c)
{
    iso_json *j = iso_json_object();
    iso_json_set(j, "peft_type", iso_json_string("ISOFED_DATA"));
    static const char *const sizes[] = {"rank_lo", "rank_hi", "prompts", "gap"};
    for (size_t i = 0; i < 4; i++)
        iso_json_set(j, sizes[i], iso_json_integer((int64_t)golden_size(c, sizes[i])));
    iso_json_set(j, "task_index", iso_json_integer((int64_t)golden_size(c, "task")));
    iso_json_set(j, "reduce", iso_json_string(golden_text(c, "reduce")));
    iso_json_set(j, "ortho_mu", iso_json_real(golden_number(c, "ortho_mu", 0)));
    return tokens_adapter(t, c, j, is_adapter);
}

typedef struct {
    golden_case *c;
    const char *prefix;
    size_t frozen; /* rows of gates that must have no gradient */
} each;

static void compare_part(void *ctx, const iso_named_tensor *t)
{
    each *k = ctx;
    char name[TOKEN_NAME + 16];
    size_t n = iso_tensor_count(&t->view);
    snprintf(name, sizeof name, "%s/%s", k->prefix, t->name);
    if (!golden_find(k->c, name))
        return;
    float *x = iso_calloc(n, sizeof *x);
    memcpy(x, t->view.data, n * sizeof *x);
    if (strncmp(t->name, "gate.", 5) == 0) /* rows of earlier tasks are not in the gradient */
        memset(x, 0, k->frozen * t->view.shape[1] * sizeof *x);
    golden_compare(k->c, name, x, n);
    free(x);
}

static void model(golden_case *c)
{
    tokens t;
    tokens_open(&t, c);
    iso_adapter *a = open_adapter(&t, c);
    size_t d = t.backbone.shape.dim, N = t.backbone.shape.tokens, C = t.classes;
    double loss;
    float *g = token_gradient(&t, a, false, &loss);
    float *zero = iso_calloc(a->param_count, sizeof *zero);
    double penalty = a->kind->penalty(a, a->params, zero);
    free(zero);
    golden_compare_number(c, "out/loss", loss);
    golden_compare_number(c, "out/loss_ortho", penalty);
    golden_compare_number(c, "out/loss_ce", loss - penalty);
    golden_compare(c, "grad/head.weight", g + a->param_count, C * d);
    golden_compare(c, "grad/head.bias", g + a->param_count + C * d, C);
    /* what the forward passes through */
    token_trace trace;
    token_open_trace(&t, a, NULL, false, &trace);
    for (size_t i = 0; i < t.backbone.shape.depth; i++) {
        char name[64];
        snprintf(name, sizeof name, "out/blocks.%zu.out", i);
        golden_compare(c, name, trace.blocks[i], t.batch * N * d);
    }
    float *features = iso_calloc(t.batch * d, sizeof *features);
    for (size_t i = 0; i < t.batch; i++)
        memcpy(features + i * d, trace.out + i * N * d, d * sizeof *features);
    golden_compare(c, "out/feature", features, t.batch * d);
    free(features);
    size_t groups = iso_data_groups(a);
    const double *state = (const double *)(const void *)trace.run.work;
    for (size_t e = 0; e < groups; e++)
        for (size_t br = 0; br < 2; br++) {
            char name[64];
            snprintf(name, sizeof name, "out/gate.%zu.%s.g", e, BRANCHES[br]);
            golden_compare_f64(c, name, state + (e * 2 + br) * t.batch, t.batch);
            snprintf(name, sizeof name, "out/gate.%zu.%s.z", e, BRANCHES[br]);
            golden_compare_f64(c, name, state + ((groups + e) * 2 + br) * t.batch, t.batch);
        }
    float *z = token_logits(&t, a);
    golden_compare(c, "out/logits", z, t.batch * C);
    free(z);
    /* gradients by the names of the files */
    memcpy(a->params, g, a->param_count * sizeof *g);
    each k = {c, "grad", golden_size(c, "task") * golden_size(c, "prompts")};
    tokens_each(a, compare_part, &k);
    golden_expect_compared(c, 0);
    free(g);
    iso_adapter_close(a);
    tokens_close(&t);
}

static void train(golden_case *c)
{
    tokens t;
    tokens_open(&t, c);
    iso_adapter *a = open_adapter(&t, c);
    size_t steps = golden_size(c, "steps");
    double *losses = iso_calloc(steps, sizeof *losses);
    token_train(c, &t, a, losses);
    golden_compare_f64(c, "out/losses", losses, steps);
    golden_compare(c, "out/head.weight", t.head_W, t.classes * t.backbone.shape.dim);
    each k = {c, "out", 0};
    tokens_each(a, compare_part, &k);
    golden_expect_compared(c, 0);
    free(losses);
    iso_adapter_close(a);
    tokens_close(&t);
}

/* ---- rows, restoration, folding ---- */

static void expand(golden_case *c)
{
    const iso_tensor *shape = golden_need(c, "input/old");
    size_t n = shape->shape[0], d = shape->shape[1], p = golden_size(c, "prompts");
    double *old = golden_f64(c, "input/old", NULL), *draws = golden_f64(c, "input/draws", NULL);
    double *rows = iso_calloc(p * d, sizeof *rows);
    assert_int_equal(iso_data_orthonormal(old, n, draws, p, d, rows), p);
    golden_compare_f64(c, "out/new", rows, p * d);
    free(old);
    free(draws);
    free(rows);
}

static void restore(golden_case *c)
{
    size_t n;
    float *now = golden_f32(c, "input/current", &n);
    float *reference = golden_f32(c, "input/reference", NULL);
    double *uniform = golden_f64(c, "input/uniform", NULL),
           *mask = golden_f64(c, "input/mask", NULL);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(uniform[i] < golden_number(c, "p", 0), mask[i] != 0);
    iso_restore_masked(n, golden_number(c, "p", 0), uniform, reference, now);
    golden_compare(c, "out/restored", now, n);
    free(now);
    free(reference);
    free(uniform);
    free(mask);
}

static void fold(golden_case *c)
{
    tokens t;
    iso_error e = {0};
    tokens_open(&t, c);
    iso_adapter *a = open_adapter(&t, c);
    size_t C = t.classes, n = t.batch * C;
    iso_model *m = NULL;
    iso_source source = token_source(&t);
    if (iso_model_open(&m, &t.backbone, a, false, &e) || iso_data_measure(a, m, &source, &e))
        fail_msg("%s", e.text);
    iso_model_close(m);
    for (size_t i = 0; i < iso_data_groups(a) * 2; i++) {
        char name[64];
        snprintf(name, sizeof name, "out/gate.%zu.%s.mean", i / 2, BRANCHES[i % 2]);
        golden_compare_number(c, name, iso_data_gate_mean(a)[i]);
        snprintf(name, sizeof name, "out/gate.%zu.%s.var", i / 2, BRANCHES[i % 2]);
        golden_compare_number(c, name, iso_data_gate_variance(a)[i]);
    }
    float *base = token_logits(&t, NULL), *gated = token_logits(&t, a);
    iso_data_set_folded(a, true);
    float *folded = token_logits(&t, a);
    golden_compare(c, "out/logits_base", base, n);
    golden_compare(c, "out/logits_gated", gated, n);
    golden_compare(c, "out/logits_folded", folded, n);
    iso_fold_error error = iso_fold_error_of(gated, folded, base, t.batch, C);
    golden_compare_number(c, "out/fold_error_max", error.largest);
    golden_compare_number(c, "out/fold_error_rel", error.relative);
    golden_compare_number(c, "out/argmax_agreement", error.agreement);
    for (size_t i = 0; i < t.backbone.module_count; i++) {
        const iso_module *q = &t.backbone.modules[i];
        const iso_packed *frozen = &t.backbone.matrices[q->matrix];
        char name[TOKEN_NAME];
        float *W = iso_calloc(frozen->out * frozen->in, sizeof *W);
        memcpy(W, frozen->W, frozen->out * frozen->in * sizeof *W);
        a->kind->fold(a, a->params, q->matrix, &(iso_packed){.out = frozen->out, .in = frozen->in},
                      W);
        snprintf(name, sizeof name, "out/%s.weight", q->name);
        golden_compare(c, name, W + q->row * q->in, q->out * q->in);
        free(W);
    }
    golden_expect_compared(c, 0);
    free(base);
    free(gated);
    free(folded);
    iso_adapter_close(a);
    tokens_close(&t);
}

static void golden_data(void **state)
{
    static const golden_kind kinds[] = {{"gate", gate, NULL},
                                        {"ortho", ortho, NULL},
                                        {"linear", linear, NULL},
                                        {"model", model, NULL},
                                        {"expand", expand, NULL},
                                        {"restore", restore, NULL},
                                        {"fold", fold, NULL},
                                        {"train", train, NULL},
                                        {"merge", NULL, "golden.data_merge"},
                                        {0}};
    (void)state;
    run_golden("data", kinds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_data)};
    return cmocka_run_group_tests_name("golden data", tests, NULL, NULL);
}
