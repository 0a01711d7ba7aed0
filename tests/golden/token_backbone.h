/* The backbone of golden/data and golden/toast: pre-norm blocks on given embeddings, made from the
 * "param/" tensors of a case as a family of its own, so that a case runs through nn/model as any
 * backbone does. A sample is its embeddings (tokens, dim) and, last, how many tokens are there. */
#ifndef ISO_TESTS_TOKEN_BACKBONE_H
#define ISO_TESTS_TOKEN_BACKBONE_H

#include "tests/golden/manifest_cases.h"

#include "nn/adapter/run.h"
#include "nn/backbone/encoder.h"
#include "nn/kernel/loss.h"
#include "nn/model.h"
#include "nn/train/optimizer.h"

enum { TOKEN_MODULES = 6, TOKEN_NAME = 96 };

typedef struct {
    iso_encoder encoder;
    iso_encoder_block *blocks;
    iso_backbone backbone;
    iso_arena arena;
    size_t batch, classes;
    float *samples; /* (batch, sample) */
    int *labels;
    float *head_W, *head_b;
} tokens;

static inline size_t token_workspace(const iso_backbone *b, const iso_pass *p, size_t n)
{
    return iso_encoder_workspace(&((const tokens *)b->own)->encoder, p, n);
}

static inline float *token_input(const iso_backbone *b, const iso_pass *p, float *workspace)
{
    return iso_encoder_input(&((const tokens *)b->own)->encoder, p, workspace);
}

static inline void token_lengths(const iso_backbone *b, const float *samples, size_t n,
                                 uint32_t *lengths)
{
    for (size_t i = 0; i < n; i++)
        lengths[i] = (uint32_t)samples[(i + 1) * b->shape.sample - 1];
}

static inline void token_embed(const iso_backbone *b, const iso_pass *p, const float *samples,
                               size_t n, float *workspace, float *hidden)
{
    size_t t = p->tokens ? p->tokens : b->shape.tokens, d = b->shape.dim;
    (void)workspace;
    for (size_t i = 0; i < n; i++)
        memcpy(hidden + i * t * d, samples + i * b->shape.sample, t * d * sizeof *hidden);
}

static inline void token_forward(const iso_backbone *b, const iso_pass *p, size_t n,
                                 float *workspace, float *out)
{
    iso_encoder_forward(&((const tokens *)b->own)->encoder, p, n, workspace, out);
}

static inline void token_backward(const iso_backbone *b, const iso_pass *p, const iso_backward *w,
                                  size_t n, float *workspace, const float *dout)
{
    iso_encoder_backward(&((const tokens *)b->own)->encoder, p, w, n, workspace, dout);
}

static inline const iso_backbone_family *token_family(bool has_mask)
{
    static const iso_backbone_family plain = {.model_type = "tokens",
                                              .workspace_floats = token_workspace,
                                              .input = token_input,
                                              .embed = token_embed,
                                              .forward = token_forward,
                                              .backward = token_backward};
    static iso_backbone_family masked;
    masked = plain;
    masked.lengths = token_lengths;
    return has_mask ? &masked : &plain;
}

static inline float *token_param(tokens *t, const golden_case *c, const char *name, size_t n)
{
    char full[TOKEN_NAME + 64];
    float *out = iso_arena_alloc(&t->arena, n, sizeof *out);
    snprintf(full, sizeof full, "param/%s", name);
    golden_read(c, full, out, n);
    return out;
}

static inline iso_norm token_norm(tokens *t, const golden_case *c, const char *name)
{
    char full[TOKEN_NAME + 32];
    iso_norm n = {.dim = t->encoder.dim, .eps = (float)golden_number(c, "ln_eps", 1e-6)};
    snprintf(full, sizeof full, "%s.weight", name);
    n.w = token_param(t, c, full, n.dim);
    snprintf(full, sizeof full, "%s.bias", name);
    n.b = token_param(t, c, full, n.dim);
    return n;
}

static inline void token_samples(tokens *t, const golden_case *c)
{
    iso_backbone_shape *s = &t->backbone.shape;
    size_t n, embedding = s->tokens * s->dim;
    float *x = golden_f32(c, "input/x", &n), *mask = golden_f32(c, "input/mask", NULL);
    double *labels = golden_f64(c, "input/labels", NULL);
    t->batch = n / embedding;
    t->samples = iso_arena_calloc(&t->arena, t->batch * s->sample, sizeof *t->samples);
    t->labels = iso_arena_calloc(&t->arena, t->batch, sizeof *t->labels);
    for (size_t i = 0; i < t->batch; i++) {
        size_t there = 0;
        for (size_t k = 0; mask && k < s->tokens; k++) {
            assert_true(mask[i * s->tokens + k] == 0.0F || there == k); /* padding comes last */
            there += mask[i * s->tokens + k] != 0.0F;
        }
        memcpy(t->samples + i * s->sample, x + i * embedding, embedding * sizeof *x);
        t->samples[(i + 1) * s->sample - 1] = (float)(mask ? there : s->tokens);
        t->labels[i] = labels ? (int)labels[i] : 0;
    }
    free(x);
    free(mask);
    free(labels);
}

static inline void tokens_open(tokens *t, const golden_case *c)
{
    static const struct {
        const char *name;
        int matrix;
        size_t part;
    } rows[TOKEN_MODULES] = {{"attn.q", ISO_QKV, 0},  {"attn.k", ISO_QKV, 1},
                             {"attn.v", ISO_QKV, 2},  {"attn.o", ISO_OUT, 0},
                             {"mlp.fc1", ISO_FC1, 0}, {"mlp.fc2", ISO_FC2, 0}};
    char name[TOKEN_NAME], full[TOKEN_NAME + 8];
    *t = (tokens){0};
    size_t d = golden_size(c, "dim"), L = golden_size(c, "blocks"), f = golden_size(c, "mlp");
    iso_backbone *b = &t->backbone;
    b->shape = (iso_backbone_shape){.depth = L,
                                    .dim = d,
                                    .heads = golden_size(c, "heads"),
                                    .mlp = f,
                                    .feature = d,
                                    .tokens = golden_size(c, "tokens"),
                                    .lead = 1,
                                    .eps = golden_number(c, "ln_eps", 1e-6)};
    b->shape.sample = b->shape.tokens * d + 1;
    b->matrix_count = L * ISO_MATRICES_PER_BLOCK;
    b->matrices = iso_arena_calloc(&t->arena, b->matrix_count, sizeof *b->matrices);
    iso_module *modules = iso_arena_calloc(&t->arena, L * TOKEN_MODULES, sizeof *modules);
    t->blocks = iso_arena_calloc(&t->arena, L, sizeof *t->blocks);
    t->encoder = (iso_encoder){.depth = L,
                               .dim = d,
                               .heads = b->shape.heads,
                               .mlp = f,
                               .tokens = b->shape.tokens,
                               .blocks = t->blocks,
                               .act = iso_activation_find("gelu")};
    for (size_t i = 0; i < L; i++) {
        float *W[ISO_MATRICES_PER_BLOCK], *bias[ISO_MATRICES_PER_BLOCK];
        for (int m = 0; m < ISO_MATRICES_PER_BLOCK; m++) {
            size_t out = m == ISO_QKV ? 3 * d : m == ISO_FC1 ? f : d, in = m == ISO_FC2 ? f : d;
            W[m] = iso_arena_alloc(&t->arena, out * in, sizeof(float));
            bias[m] = iso_arena_alloc(&t->arena, out, sizeof(float));
            t->blocks[i].bias[m] = bias[m];
            b->matrices[i * ISO_MATRICES_PER_BLOCK + (size_t)m] =
                (iso_packed){.out = out, .in = in, .W = W[m]};
        }
        snprintf(name, sizeof name, "blocks.%zu.norm1", i);
        t->blocks[i].norm1 = token_norm(t, c, name);
        snprintf(name, sizeof name, "blocks.%zu.norm2", i);
        t->blocks[i].norm2 = token_norm(t, c, name);
        for (size_t k = 0; k < TOKEN_MODULES; k++) {
            size_t in = rows[k].matrix == ISO_FC2 ? f : d, out = rows[k].matrix == ISO_FC1 ? f : d;
            size_t row = rows[k].part * d;
            snprintf(name, sizeof name, "blocks.%zu.%s", i, rows[k].name);
            snprintf(full, sizeof full, "%s.weight", name);
            memcpy(W[rows[k].matrix] + row * in, token_param(t, c, full, out * in),
                   out * in * sizeof(float));
            snprintf(full, sizeof full, "%s.bias", name);
            memcpy(bias[rows[k].matrix] + row, token_param(t, c, full, out), out * sizeof(float));
            modules[i * TOKEN_MODULES + k] =
                (iso_module){.name = iso_arena_strdup(&t->arena, name),
                             .out = out,
                             .in = in,
                             .block = i,
                             .matrix = i * ISO_MATRICES_PER_BLOCK + (size_t)rows[k].matrix,
                             .row = row};
        }
    }
    t->encoder.final = token_norm(t, c, "norm");
    b->modules = modules;
    b->module_count = L * TOKEN_MODULES;
    b->own = t;
    b->family = token_family(golden_find(c, "input/mask") != NULL);
    t->classes = golden_size(c, "classes");
    t->head_W = token_param(t, c, "head.weight", t->classes * d);
    t->head_b = token_param(t, c, "head.bias", t->classes);
    token_samples(t, c);
}

static inline void tokens_close(tokens *t)
{
    iso_arena_free(&t->arena);
}

/* The adapter that the case's "param/" tensors are, of those whose name `is_adapter`. */
static inline iso_adapter *tokens_adapter(const tokens *t, const golden_case *c, iso_json *config,
                                          bool (*is_adapter)(const char *name))
{
    iso_named_tensor *list = iso_calloc(c->st.count, sizeof *list);
    size_t n = 0;
    iso_buf text = {0}, data = {0};
    iso_error e = {0};
    iso_adapter *a = NULL;
    for (size_t i = 0; i < c->st.count; i++)
        if (strncmp(c->st.items[i].name, "param/", 6) == 0 && is_adapter(c->st.items[i].name + 6))
            list[n++] = (iso_named_tensor){c->st.items[i].name + 6, c->st.items[i].view};
    if (iso_json_dump(config, ISO_JSON_COMPACT, &text, &e) ||
        iso_safetensors_write_buf(&data, list, n, NULL, 0, &e) ||
        iso_adapter_parse(&a, &t->backbone, text.data, text.size, data.data, data.size, c->name,
                          &e))
        fail_msg("%s", e.text);
    iso_json_free(config);
    iso_buf_free(&text);
    iso_buf_free(&data);
    free(list);
    return a;
}

/* Calls fn for every tensor of the adapter's files. */
static inline void tokens_each(const iso_adapter *a, void (*fn)(void *, const iso_named_tensor *),
                               void *ctx)
{
    iso_arena arena = {0};
    iso_json *config = iso_json_object();
    iso_named_tensor *list = NULL;
    size_t n = 0;
    iso_error e = {0};
    if (a->kind->to_parts(a, &arena, config, &list, &n, &e))
        fail_msg("%s", e.text);
    for (size_t i = 0; i < n; i++)
        fn(ctx, &list[i]);
    iso_json_free(config);
    iso_arena_free(&arena);
}

/* ---- passes ---- */

static inline void token_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const tokens *t = ctx;
    size_t s = t->backbone.shape.sample;
    (void)draw;
    for (size_t i = 0; i < n; i++)
        memcpy(out + i * s, t->samples + idx[i] * s, s * sizeof *out);
}

static inline iso_source token_source(tokens *t)
{
    return (iso_source){.n = t->batch, .pixels = token_pixels, .ctx = t};
}

/* Cross-entropy of the head on token 0; read tokens of each image are there. */
typedef struct {
    tokens *t;
    size_t read;
    float weight; /* of this loss */
} token_loss;

static inline double token_ce(const tokens *t, float weight, size_t first, size_t n, const float *f,
                              size_t ldf, float *df, float *extra)
{
    size_t d = t->backbone.shape.dim, C = t->classes;
    float *z = iso_calloc(n * C, sizeof *z);
    for (size_t i = 0; i < n; i++)
        memcpy(z + i * C, t->head_b, C * sizeof *z);
    iso_gemm(false, true, n, C, d, 1.0F, f, ldf, t->head_W, d, 1.0F, z, C);
    double loss = iso_loss_rows(n, C, z, t->labels + first, weight / (float)t->batch, z);
    if (df)
        iso_gemm(false, false, n, d, C, 1.0F, z, C, t->head_W, d, 0.0F, df, ldf);
    iso_gemm(true, false, C, d, n, 1.0F, z, C, f, ldf, 1.0F, extra, d);
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < C; k++)
            extra[C * d + k] += z[i * C + k];
    free(z);
    return loss * (double)weight;
}

static inline double token_loss_fn(void *ctx, size_t first, size_t n, const float *out, float *dout,
                                   float *extra)
{
    const token_loss *l = ctx;
    size_t d = l->t->backbone.shape.dim;
    /* With padding to the longest, fewer tokens may come. */
    memset(dout, 0, n * l->read * d * sizeof *dout);
    return token_ce(l->t, l->weight, first, n, out, l->read * d, dout, extra);
}

static inline double token_first_fn(void *ctx, size_t first, size_t n, const float *z, size_t ldz,
                                    float *extra)
{
    const token_loss *l = ctx;
    return token_ce(l->t, l->weight, first, n, z, ldz, NULL, extra);
}

/* Loss (mean over the batch) and gradient: adapter's numbers, then head W and b; new array. */
static inline float *token_gradient(tokens *t, iso_adapter *a, bool is_stage1, double *loss)
{
    iso_error e = {0};
    iso_model *m = NULL;
    iso_work *w = NULL;
    size_t d = t->backbone.shape.dim, extra = t->classes * d + t->classes;
    size_t stride = a->param_count + extra;
    token_loss l = {t, is_stage1 ? t->backbone.shape.tokens : 1, is_stage1 ? 0.5F : 1.0F};
    if (iso_model_open(&m, &t->backbone, a, true, &e) || iso_work_open(&w, m, l.read, &e))
        fail_msg("%s", e.text);
    size_t items = (t->batch + iso_model_micro_batch(m) - 1) / iso_model_micro_batch(m);
    float *grads = iso_calloc(items * stride, sizeof *grads);
    double *losses = iso_calloc(items, sizeof *losses);
    uint32_t *idx = iso_calloc(t->batch, sizeof *idx);
    for (size_t i = 0; i < t->batch; i++)
        idx[i] = (uint32_t)i;
    iso_source source = token_source(t);
    iso_gradient_job job = {.source = &source,
                            .idx = idx,
                            .n = t->batch,
                            .loss = token_loss_fn,
                            .loss_ctx = &l,
                            .grads = grads,
                            .stride = stride,
                            .extra = extra,
                            .losses = losses,
                            .first_loss = is_stage1 ? token_first_fn : NULL};
    *loss = iso_model_gradient(m, w, &job) / (double)t->batch;
    if (a->kind->penalty)
        *loss += a->kind->penalty(a, a->params, grads);
    free(losses);
    free(idx);
    iso_work_close(w);
    iso_model_close(m);
    return grads;
}

/* Logits (batch, classes) of a model with adapter `a` (or none). */
static inline float *token_logits(tokens *t, const iso_adapter *a)
{
    iso_error e = {0};
    iso_model *m = NULL;
    size_t d = t->backbone.shape.dim, C = t->classes;
    float *f = iso_calloc(t->batch * d, sizeof *f), *z = iso_calloc(t->batch * C, sizeof *z);
    if (iso_model_open(&m, &t->backbone, a, false, &e) ||
        iso_model_features(m, t->samples, t->batch, f, &e))
        fail_msg("%s", e.text);
    for (size_t i = 0; i < t->batch; i++)
        memcpy(z + i * C, t->head_b, C * sizeof *z);
    iso_gemm(false, true, t->batch, C, d, 1.0F, f, d, t->head_W, d, 1.0F, z, C);
    free(f);
    iso_model_close(m);
    return z;
}

/* A forward with everything in the open: all tokens, `tap` after each block. out (batch, tokens,
 * dim) after the final norm. The run's areas are in the arena. */
typedef struct {
    iso_adapter_run run;
    float *z; /* first pass, of two-pass kinds */
    float *out;
    float **blocks, **blocks1; /* depth: outputs of the pass, and of the first one */
} token_trace;

typedef struct {
    float **blocks;
    size_t floats;
} token_tap_ctx;

static inline void token_tap(void *ctx, size_t index, const float *hidden)
{
    token_tap_ctx *k = ctx;
    if (index)
        memcpy(k->blocks[index - 1], hidden, k->floats * sizeof *hidden);
}

static inline void token_open_trace(tokens *t, const iso_adapter *a, const float *derived,
                                    bool trains, token_trace *out)
{
    const iso_backbone *b = &t->backbone;
    const iso_backbone_shape *s = &b->shape;
    size_t floats = t->batch * s->tokens * s->dim;
    uint32_t *lengths = iso_arena_alloc(&t->arena, t->batch, sizeof *lengths);
    token_lengths(b, t->samples, t->batch, lengths);
    *out = (token_trace){0};
    out->z = iso_arena_alloc(&t->arena, floats, sizeof(float));
    out->out = iso_arena_alloc(&t->arena, floats, sizeof(float));
    out->blocks = iso_arena_calloc(&t->arena, s->depth, sizeof(float *));
    out->blocks1 = iso_arena_calloc(&t->arena, s->depth, sizeof(float *));
    for (size_t i = 0; i < s->depth; i++) {
        out->blocks[i] = iso_arena_alloc(&t->arena, floats, sizeof(float));
        out->blocks1[i] = iso_arena_alloc(&t->arena, floats, sizeof(float));
    }
    iso_pass p = {.weights = b->matrices, .read = s->tokens, .tap = token_tap, .lengths = lengths};
    float *workspace =
        iso_arena_alloc(&t->arena, token_workspace(b, &p, t->batch), sizeof *workspace);
    out->run = (iso_adapter_run){
        .adapter = a,
        .params = a->params,
        .derived = derived,
        .trains = trains,
        .weights = b->matrices,
        .images = t->batch,
        .tokens = s->tokens,
        .lengths = lengths,
        .work = iso_arena_calloc(&t->arena, a->kind->run_floats(a, t->batch, trains), 4),
        .scratch = iso_arena_calloc(&t->arena, a->kind->scratch_floats(a, t->batch * s->tokens), 4),
        .batch = t->batch};
    if (a->kind->begin)
        a->kind->begin(&out->run);
    token_tap_ctx k = {out->blocks1, floats};
    p.tap_ctx = &k;
    if (a->kind->is_two_pass) {
        token_embed(b, &p, t->samples, t->batch, workspace, token_input(b, &p, workspace));
        token_forward(b, &p, t->batch, workspace, out->z);
        a->kind->select(&out->run, out->z);
    }
    iso_pass_hooks h = iso_run_hooks(&out->run);
    p.hooks = &h;
    k.blocks = out->blocks;
    token_embed(b, &p, t->samples, t->batch, workspace, token_input(b, &p, workspace));
    token_forward(b, &p, t->batch, workspace, out->out);
}

/* ---- ten steps ---- */

/* Losses before each step; the head lies behind the adapter's numbers. AdamW or SGD by params. */
static inline void token_train(golden_case *c, tokens *t, iso_adapter *a, double *losses)
{
    size_t d = t->backbone.shape.dim, head = t->classes * d + t->classes;
    size_t count = a->param_count + head, steps = golden_size(c, "steps");
    bool is_sgd = strcmp(golden_text(c, "optimizer"), "sgd") == 0;
    double lr = golden_number(c, "lr", 0), decay = golden_number(c, "weight_decay", 0);
    float momentum = (float)golden_number(c, "momentum", 0);
    float *p = iso_calloc(count, sizeof *p), *m = iso_calloc(count, sizeof *m);
    float *v = iso_calloc(count, sizeof *v);
    for (size_t s = 0; s < steps; s++) {
        float *g = token_gradient(t, a, false, &losses[s]);
        memcpy(p, a->params, a->param_count * sizeof *p);
        memcpy(p + a->param_count, t->head_W, t->classes * d * sizeof *p);
        memcpy(p + a->param_count + t->classes * d, t->head_b, t->classes * sizeof *p);
        if (is_sgd) {
            for (size_t i = 0; i < count; i++) {
                m[i] = momentum * m[i] + g[i] + (float)decay * p[i];
                p[i] -= (float)lr * m[i];
            }
        } else {
            iso_adamw w = iso_adamw_default(lr, decay);
            iso_adamw_step(&w, s + 1, count, p, g, 1.0F, m, v);
        }
        memcpy(a->params, p, a->param_count * sizeof *p);
        memcpy(t->head_W, p + a->param_count, t->classes * d * sizeof *p);
        memcpy(t->head_b, p + a->param_count + t->classes * d, t->classes * sizeof *p);
        free(g);
    }
    free(p);
    free(m);
    free(v);
}

#endif
