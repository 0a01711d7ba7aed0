/* Golden cases of weight factorization and centralization (golden/factorization). The speech cases
 * of the same folder have a runner of their own. */
#include "tests/golden/manifest_cases.h"

#include "merge/centralize.h"
#include "nn/adapter/factorised.h"

/* A backbone of one linear layer, and an adapter on it with the case's factors. */
typedef struct {
    iso_module module;
    iso_packed matrix;
    iso_backbone backbone;
    iso_adapter *adapter;
    float *W;
    size_t out, in;
} layer;

static const struct {
    char letter;
    bool is_out;
} LETTERS[] = {{'r', true}, {'s', false}, {'a', true}, {'b', false}};

static iso_factor_form form_of(const char *name)
{
    for (int f = 0; iso_factor_forms[f]; f++)
        if (strcmp(iso_factor_forms[f], name) == 0)
            return (iso_factor_form)f;
    fail_msg("form %s is not known", name);
    return ISO_FORM_BOTH;
}

static void open_layer(layer *l, golden_case *c)
{
    const iso_tensor *w = golden_need(c, "weight");
    iso_error e = {0};
    *l = (layer){.out = w->shape[0], .in = w->shape[1], .W = golden_f32(c, "weight", NULL)};
    l->module = (iso_module){.name = "encoder.x", .out = l->out, .in = l->in};
    l->matrix = (iso_packed){.out = l->out, .in = l->in, .W = l->W};
    l->backbone.shape.depth = 1;
    l->backbone.modules = &l->module;
    l->backbone.module_count = 1;
    l->backbone.matrices = &l->matrix;
    l->backbone.matrix_count = 1;
    iso_adapter_options o = {
        .kind = "factorised", .rank = golden_size(c, "k"), .form = form_of(golden_text(c, "form"))};
    if (iso_adapter_create(&l->adapter, &l->backbone, &o, &e))
        fail_msg("%s", e.text);
    size_t at = 0; /* of a module: r, s, a, b, those that there are */
    for (size_t i = 0; i < 4; i++) {
        char name[2] = {LETTERS[i].letter, 0};
        size_t n = o.rank * (LETTERS[i].is_out ? l->out : l->in);
        if (!golden_find(c, name))
            continue;
        golden_read(c, name, l->adapter->params + at, n);
        at += n;
    }
    assert_int_equal(at, l->adapter->param_count);
}

static void close_layer(layer *l)
{
    iso_adapter_close(l->adapter);
    iso_arena_free(&l->backbone.arena);
    free(l->W);
}

static float *fold_layer(layer *l)
{
    float *W = iso_calloc(l->out * l->in, sizeof *W);
    l->adapter->kind->fold(l->adapter, l->adapter->params, 0,
                           &(iso_packed){.out = l->out, .in = l->in}, W);
    return W;
}

static void factorised_linear(golden_case *c)
{
    layer l;
    size_t m;
    open_layer(&l, c);
    float *x = golden_f32(c, "x", &m), *dy = golden_f32(c, "dy", NULL);
    float *bias = golden_f32(c, "bias", NULL), *W = fold_layer(&l);
    m /= l.in;
    float *y = iso_calloc(m * l.out, sizeof *y), *dx = iso_calloc(m * l.in, sizeof *dx);
    float *grad = iso_calloc(l.adapter->param_count, sizeof *grad);
    float *scratch = iso_calloc(l.adapter->kind->scratch_floats(l.adapter, m), sizeof *scratch);
    iso_packed folded = {.out = l.out, .in = l.in, .W = W};
    iso_packed_forward(&folded, 0, l.out, bias, m, x, l.in, NULL, 0, y, l.out);
    iso_packed_backward(&folded, 0, l.out, m, dy, l.out, NULL, 0, dx, l.in);
    l.adapter->kind->grad(l.adapter, l.adapter->params, grad, 0, 0, l.out, m, x, l.in, dy, l.out,
                          scratch);
    golden_compare(c, "effective", W, l.out * l.in);
    golden_compare(c, "y", y, m * l.out);
    golden_compare(c, "dx", dx, m * l.in);
    size_t at = 0, k = golden_size(c, "k");
    for (size_t i = 0; i < 4; i++) {
        char name[3] = {'d', LETTERS[i].letter, 0};
        size_t n = k * (LETTERS[i].is_out ? l.out : l.in);
        if (!golden_find(c, name))
            continue;
        golden_compare(c, name, grad + at, n);
        at += n;
    }
    assert_int_equal(at, l.adapter->param_count);
    free(x);
    free(dy);
    free(bias);
    free(W);
    free(y);
    free(dx);
    free(grad);
    free(scratch);
    close_layer(&l);
}

static void factorised_identity(golden_case *c)
{
    layer l;
    open_layer(&l, c);
    float *W = fold_layer(&l);
    golden_compare(c, "effective", W, l.out * l.in);
    assert_memory_equal(W, l.W, l.out * l.in * sizeof *W);
    free(W);
    close_layer(&l);
}

static float *factor(const golden_case *c, const char *letter, size_t n)
{
    char name[64];
    snprintf(name, sizeof name, "%s.%zu", letter, n);
    return golden_f32(c, name, NULL);
}

static void centralize(golden_case *c)
{
    enum { MAX = 16 };
    const iso_tensor *w = golden_need(c, "weight");
    size_t out = w->shape[0], in = w->shape[1], N = golden_size(c, "N");
    double *W = golden_f64(c, "weight", NULL), *next = iso_calloc(out * in, sizeof *next);
    iso_block_change changes[MAX] = {0};
    bool is_lora = strcmp(golden_text(c, "form"), "lora") == 0;
    assert_true(N <= MAX);
    for (size_t n = 0; n < N; n++) {
        char name[64];
        snprintf(name, sizeof name, "%s.%zu", is_lora ? "A" : "s", n);
        changes[n].k = golden_need(c, name)->shape[0];
        changes[n].scale = golden_number(c, "scale", 1);
        changes[n].r = factor(c, "r", n);
        changes[n].s = factor(c, "s", n);
        changes[n].a = factor(c, "a", n);
        changes[n].b = factor(c, "b", n);
        changes[n].B = factor(c, "B", n);
        changes[n].A = factor(c, "A", n);
    }
    iso_centralize_weight(W, out, in, changes, N, NULL, next);
    golden_compare_f64(c, "next", next, out * in);
    for (size_t n = 0; n < N; n++) {
        const float *all[] = {changes[n].r, changes[n].s, changes[n].a,
                              changes[n].b, changes[n].B, changes[n].A};
        for (size_t i = 0; i < 6; i++)
            free((void *)(uintptr_t)all[i]);
    }
    free(W);
    free(next);
}

static void golden_factorization(void **state)
{
    static const golden_kind kinds[] = {
        {"factorised_linear", factorised_linear, NULL},
        {"factorised_identity", factorised_identity, NULL},
        {"centralize", centralize, NULL},
        {"log_mel", NULL, "the speech runner"},
        {"ctc", NULL, "the speech runner"},
        {"ctc_impossible", NULL, "the speech runner"},
        {"decode", NULL, "the speech runner"},
        {0},
    };
    (void)state;
    run_golden("factorization", kinds);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(golden_factorization)};
    return cmocka_run_group_tests_name("golden factorization", tests, NULL, NULL);
}
