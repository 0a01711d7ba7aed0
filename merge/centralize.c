/* Centralization; see centralize.h. One weight is one item of work: double, element by element in
 * the order of the blocks, so the bits depend on nothing but the numbers. */
#include "merge/centralize.h"

#include "core/parallel.h"
#include "core/simd.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- one weight ---- */

/* acc (in) += c * x (in). */
ISO_CLONES static void axpy(size_t n, double c, const float *x, double *acc)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        acc[i] += c * (double)x[i];
}

ISO_CLONES static void scale_row(size_t n, const double *w, double *acc)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        acc[i] *= w[i];
}

ISO_CLONES static void add_row(size_t n, double c, const double *x, double *acc)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        acc[i] += c * x[i];
}

/* Row o of W'_n - W into d (in). */
static void change_row(const iso_block_change *b, const double *w, size_t out, size_t in, size_t o,
                       double *d)
{
    memset(d, 0, in * sizeof *d);
    for (size_t j = 0; b->r && j < b->k; j++)
        axpy(in, (double)b->r[j * out + o], b->s + j * in, d);
    if (b->r)
        scale_row(in, w, d);
    for (size_t j = 0; b->a && j < b->k; j++)
        axpy(in, (double)b->a[j * out + o], b->b + j * in, d);
    for (size_t j = 0; b->B && j < b->k; j++)
        axpy(in, b->scale * (double)b->B[o * b->k + j], b->A + j * in, d);
}

void iso_centralize_weight(const double *W, size_t out, size_t in, const iso_block_change *blocks,
                           size_t n, const double *weights, double *next)
{
    double *d = iso_calloc(2 * in, sizeof *d), *sum = d ? d + in : NULL;
    if (!d) { /* the caller sees a result that is not finite */
        for (size_t i = 0; i < out * in; i++)
            next[i] = (double)NAN;
        return;
    }
    for (size_t o = 0; o < out; o++) {
        memset(sum, 0, in * sizeof *sum);
        for (size_t b = 0; b < n; b++) {
            change_row(&blocks[b], W + o * in, out, in, o, d);
            add_row(in, weights ? weights[b] : 1.0 / (double)n, d, sum);
        }
        for (size_t i = 0; i < in; i++)
            next[o * in + i] = sum[i] == 0.0 ? W[o * in + i] : W[o * in + i] + sum[i];
    }
    free(d);
}

/* ---- blocks ---- */

static iso_err reserve(iso_block *b, size_t n, iso_error *e)
{
    b->modules = iso_arena_calloc(&b->arena, n, sizeof *b->modules);
    b->changes = iso_arena_calloc(&b->arena, n, sizeof *b->changes);
    b->out = iso_arena_calloc(&b->arena, n, sizeof *b->out);
    b->in = iso_arena_calloc(&b->arena, n, sizeof *b->in);
    return b->modules && b->changes && b->out && b->in ? ISO_OK
                                                       : iso_nomem(e, n * sizeof *b->changes);
}

static float *copy(iso_block *b, const float *x, size_t n)
{
    float *y = iso_arena_alloc(&b->arena, n, sizeof *y);
    if (y)
        memcpy(y, x, n * sizeof *y);
    return y;
}

static iso_err take_lora(iso_block *b, const iso_peft *p, iso_error *e)
{
    iso_err err = reserve(b, p->count, e);
    for (size_t i = 0; !err && i < p->count; i++) {
        const iso_lora_layer *l = &p->layers[i];
        iso_block_change *c = &b->changes[i];
        c->k = l->rank;
        c->scale = l->scale;
        c->A = copy(b, l->A, l->rank * l->in);
        c->B = copy(b, l->B, l->rank * l->out);
        b->out[i] = l->out;
        b->in[i] = l->in;
        b->modules[i] = iso_arena_strdup(&b->arena, l->module);
        if (!c->A || !c->B || !b->modules[i])
            err = iso_nomem(e, l->rank * (l->in + l->out) * sizeof(float));
    }
    b->count = p->count;
    return err;
}

/* The letter of "MODULE.factor.x" and the module, in which name has room for the tensor's. */
static bool factor_of(const char *tensor, char *module, char *letter)
{
    size_t n = strlen(tensor), tail = strlen(".factor.x");
    if (n <= tail || strncmp(tensor + n - tail, ".factor.", tail - 1) != 0 ||
        !strchr("rsab", tensor[n - 1]))
        return false;
    memcpy(module, tensor, n - tail);
    module[n - tail] = 0;
    *letter = tensor[n - 1];
    return true;
}

static iso_err take_factors(iso_block *b, const iso_peft_parts *p, iso_error *e)
{
    char module[ISO_SAFETENSORS_NAME_BYTES + 1], letter;
    iso_err err = reserve(b, p->st.count, e);
    for (size_t i = 0; !err && i < p->st.count; i++) { /* in order of name: a module's together */
        const iso_named_tensor *t = &p->st.items[i];
        if (!factor_of(t->name, module, &letter) || t->view.ndim != 2)
            return iso_fail(e, ISO_ERR_DATA, "tensor \"%.120s\" is no factor of a module", t->name);
        if (!b->count || strcmp(b->modules[b->count - 1], module) != 0) {
            b->modules[b->count] = iso_arena_strdup(&b->arena, module);
            if (!b->modules[b->count++])
                return iso_nomem(e, sizeof module);
        }
        size_t at = b->count - 1, k = t->view.shape[0], width = t->view.shape[1];
        bool is_out = letter == 'r' || letter == 'a';
        size_t *side = is_out ? &b->out[at] : &b->in[at];
        iso_block_change *c = &b->changes[at];
        if ((c->k && c->k != k) || (*side && *side != width))
            return iso_fail(e, ISO_ERR_SHAPE,
                            "tensor \"%.120s\" is %zux%zu; the module's others "
                            "have k %zu",
                            t->name, k, width, c->k);
        c->k = k;
        *side = width;
        float *x = iso_arena_alloc(&b->arena, k * width, sizeof *x);
        if (!x)
            return iso_nomem(e, k * width * sizeof *x);
        err = iso_tensor_to_f32(&t->view, x, e);
        *(letter == 'r' ? &c->r : letter == 's' ? &c->s : letter == 'a' ? &c->a : &c->b) = x;
    }
    for (size_t i = 0; !err && i < b->count; i++) {
        const iso_block_change *c = &b->changes[i];
        if (!c->r != !c->s || !c->a != !c->b)
            err = iso_fail(e, ISO_ERR_DATA, "module \"%.120s\" has one factor of a pair alone",
                           b->modules[i]);
    }
    return err;
}

/* Form lora: PEFT's tensors beside our configuration. */
static iso_err take_parts(iso_block *b, const iso_peft_parts *p, iso_error *e)
{
    const char *form;
    int64_t k;
    iso_peft lora = {0};
    iso_buf config = {0}, tensors = {0};
    iso_err err;
    if (strcmp(p->peft_type, "ISOFED_FACTORISED") != 0)
        return iso_fail(e, ISO_ERR_DATA,
                        "peft_type \"%.40s\" is not centralized; LORA and "
                        "ISOFED_FACTORISED are",
                        p->peft_type);
    if ((err = iso_json_get_str(p->config, "form", "both", &form, e)))
        return err;
    if (strcmp(form, "lora") != 0)
        return take_factors(b, p, e);
    iso_json *c = iso_json_object();
    double alpha;
    if (!(err = iso_json_need_int(p->config, "k", 1, ISO_PEFT_MAX_RANK, &k, e)) &&
        !(err = iso_json_get_num(p->config, "lora_alpha", (double)k, &alpha, e))) {
        iso_json_set(c, "peft_type", iso_json_string("LORA"));
        iso_json_set(c, "r", iso_json_integer(k));
        iso_json_set(c, "lora_alpha", iso_json_real(alpha));
        if (!(err = iso_json_dump(c, ISO_JSON_COMPACT, &config, e)) &&
            !(err = iso_safetensors_write_buf(&tensors, p->st.items, p->st.count, NULL, 0, e)) &&
            !(err = iso_peft_parse(&lora, config.data, config.size, tensors.data, tensors.size,
                                   true, "form lora", e)))
            err = take_lora(b, &lora, e);
    }
    iso_json_free(c);
    iso_peft_close(&lora);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    return err;
}

iso_err iso_block_open(iso_block *b, const char *folder, iso_error *e)
{
    *b = (iso_block){0};
    char *type = NULL;
    iso_peft lora = {0};
    iso_peft_parts parts = {0};
    iso_err err = iso_peft_type_of(folder, &type, e);
    if (err)
        return err;
    if (!(err = iso_peft_parts_open(&parts, folder, true, e))) {
        const char *generation = iso_json_str(iso_json_key(parts.config, "generation"));
        b->digest = iso_tensor_list_digest(parts.st.items, parts.st.count);
        snprintf(b->generation, sizeof b->generation, "%s", generation ? generation : "");
        if (strcmp(type, "LORA") != 0)
            err = take_parts(b, &parts, e);
        else if (!(err = iso_peft_open(&lora, folder, true, e)))
            err = take_lora(b, &lora, e);
        if (err)
            iso_error_context(e, "%s", folder);
    }
    if (!err && !(b->name = iso_strdup(folder)))
        err = iso_nomem(e, strlen(folder));
    iso_peft_close(&lora);
    iso_peft_parts_close(&parts);
    free(type);
    if (err)
        iso_block_close(b);
    return err;
}

void iso_block_close(iso_block *b)
{
    iso_arena_free(&b->arena);
    free(b->name);
    *b = (iso_block){0};
}

/* ---- the backbone ---- */

/* Where the changes of one tensor are: by block, SIZE_MAX where a block leaves it alone. */
typedef struct {
    const iso_block *blocks;
    size_t n;
    size_t *of; /* (tensors, n) */
    const iso_safetensors *backbone;
    const iso_centralize_options *o;
    const double *weights;
    iso_generation *g;
    void **data;     /* of changed tensors */
    double *squares; /* of their change */
    iso_err *failed;
    iso_error *errors;
} work;

/* "vit.encoder.x" and "encoder.x" name the same module. */
static const char *without_prefix(const char *name)
{
    const char *dot = strstr(name, "encoder.");
    return dot ? dot : name;
}

static size_t tensor_of(const iso_safetensors *st, const char *module)
{
    char name[ISO_SAFETENSORS_NAME_BYTES + 16];
    snprintf(name, sizeof name, "%s.weight", module);
    const iso_named_tensor *t = iso_safetensors_find(st, name);
    if (t)
        return (size_t)(t - st->items);
    for (size_t i = 0; i < st->count; i++)
        if (strcmp(without_prefix(st->items[i].name), without_prefix(name)) == 0)
            return i;
    return SIZE_MAX;
}

static iso_err match(work *w, iso_error *e)
{
    char here[ISO_DIGEST_HEX];
    iso_hex(here, w->g->before.b, ISO_DIGEST_BYTES);
    for (size_t b = 0; b < w->n; b++) {
        const iso_block *k = &w->blocks[b];
        if (k->generation[0] && strcmp(k->generation, here) != 0)
            return iso_fail(e, ISO_ERR_TRUST,
                            "%s was trained on generation %.12s, the backbone is %.12s", k->name,
                            k->generation, here);
        for (size_t i = 0; i < k->count; i++) {
            size_t t = tensor_of(w->backbone, k->modules[i]);
            if (t == SIZE_MAX)
                return iso_fail(e, ISO_ERR_SHAPE, "%s: the backbone has no module \"%.120s\"",
                                k->name, k->modules[i]);
            const iso_tensor *v = &w->backbone->items[t].view;
            if (v->ndim != 2 || v->shape[0] != k->out[i] || v->shape[1] != k->in[i])
                return iso_fail(e, ISO_ERR_SHAPE,
                                "%s: factors of \"%.100s\" are for %zux%zu; the backbone differs",
                                k->name, k->modules[i], k->out[i], k->in[i]);
            w->of[t * w->n + b] = i;
            w->g->is_changed[t] = true;
        }
    }
    for (size_t t = 0; t < w->backbone->count; t++)
        w->g->changed += w->g->is_changed[t];
    return w->g->changed ? ISO_OK : iso_fail(e, ISO_ERR_DATA, "the blocks change nothing");
}

static iso_block_change no_change(void)
{
    return (iso_block_change){0};
}

/* D of a method other than the mean, added to W. */
static iso_err by_method(const work *w, size_t t, const double *W, size_t out, size_t in,
                         const iso_block_change *changes, double *next, iso_error *e)
{
    iso_err err = ISO_OK;
    double *d = iso_calloc(w->n * out * in, sizeof *d), one = 1.0;
    iso_dense_input *inputs = iso_calloc(w->n, sizeof *inputs);
    iso_named_tensor *named = iso_calloc(w->n, sizeof *named);
    iso_merged_dense merged = {0};
    iso_merge_options o = iso_merge_defaults(w->o->method);
    o.args = w->o->args;
    o.weights = w->o->weights;
    if (!d || !inputs || !named) {
        err = iso_nomem(e, w->n * out * in * sizeof *d);
        goto done;
    }
    for (size_t b = 0; b < w->n; b++) {
        double *x = d + b * out * in;
        iso_centralize_weight(W, out, in, &changes[b], 1, &one, x);
        for (size_t i = 0; i < out * in; i++)
            x[i] -= W[i];
        named[b] = (iso_named_tensor){w->backbone->items[t].name,
                                      {.dtype = ISO_F64, .ndim = 2, .shape = {out, in}, .data = x}};
        inputs[b] = (iso_dense_input){w->blocks[b].name, &named[b], 1};
    }
    if ((err = iso_merge_dense(inputs, w->n, NULL, ISO_F64, &o, &merged, e)))
        goto done;
    if ((err = iso_tensor_to_f64(&merged.tensors[0].view, next, e)))
        goto done;
    for (size_t i = 0; i < out * in; i++)
        next[i] += W[i];
done:
    iso_merged_dense_free(&merged);
    free(d);
    free(inputs);
    free(named);
    return err;
}

static iso_err one_weight(const work *w, size_t t, iso_error *e)
{
    const iso_tensor *v = &w->backbone->items[t].view;
    size_t out = v->shape[0], in = v->shape[1], count = out * in;
    iso_err err = ISO_OK;
    double *W = iso_calloc(count, sizeof *W), *next = iso_calloc(count, sizeof *next);
    iso_block_change *changes = iso_calloc(w->n, sizeof *changes);
    w->data[t] = iso_alloc_aligned(count, iso_dtype_bytes(v->dtype));
    if (!W || !next || !changes || !w->data[t]) {
        err = iso_nomem(e, 2 * count * sizeof *W);
        goto done;
    }
    if ((err = iso_tensor_to_f64(v, W, e)))
        goto done;
    for (size_t b = 0; b < w->n; b++) {
        size_t i = w->of[t * w->n + b];
        changes[b] = i == SIZE_MAX ? no_change() : w->blocks[b].changes[i];
    }
    if (w->o->method)
        err = by_method(w, t, W, out, in, changes, next, e);
    else
        iso_centralize_weight(W, out, in, changes, w->n, w->weights, next);
    if (err)
        goto done;
    for (size_t i = 0; i < count; i++)
        w->squares[t] += (next[i] - W[i]) * (next[i] - W[i]);
    if (!isfinite(w->squares[t])) {
        err = iso_fail(e, ISO_ERR_NONFINITE, "\"%.120s\" is not finite after the step",
                       w->backbone->items[t].name);
        goto done;
    }
    err = iso_f64_to(v->dtype, next, count, w->data[t], e);
done:
    free(W);
    free(next);
    free(changes);
    return err;
}

static void item(void *ctx, size_t t, int worker)
{
    work *w = ctx;
    (void)worker;
    if (w->g->is_changed[t])
        w->failed[t] = one_weight(w, t, &w->errors[t]);
}

static iso_err normalise(const iso_centralize_options *o, size_t n, double *weights, iso_error *e)
{
    double sum = 0.0;
    for (size_t b = 0; b < n; b++) {
        weights[b] = o->weights ? o->weights[b] : 1.0;
        if (!(weights[b] >= 0.0 && weights[b] <= 1e18))
            return iso_fail(e, ISO_ERR_USAGE, "weight %g; expected 0..1e18", weights[b]);
        sum += weights[b];
    }
    if (!(sum > 0.0))
        return iso_fail(e, ISO_ERR_USAGE, "the weights are all zero");
    for (size_t b = 0; b < n; b++)
        weights[b] /= sum;
    return ISO_OK;
}

iso_err iso_centralize(iso_generation *g, const iso_safetensors *backbone, const iso_block *blocks,
                       size_t n, const iso_centralize_options *o, iso_error *e)
{
    *g = (iso_generation){0};
    if (!n)
        return iso_fail(e, ISO_ERR_USAGE, "no block to centralize");
    size_t T = backbone->count;
    iso_arena *a = &g->arena;
    iso_arena own = {0};
    double *weights = iso_arena_calloc(&own, n, sizeof *weights);
    work w = {.blocks = blocks, .n = n, .backbone = backbone, .o = o, .weights = weights, .g = g};
    iso_err err = ISO_OK;
    g->tensors = iso_arena_calloc(a, T, sizeof *g->tensors);
    g->is_changed = iso_arena_calloc(a, T, sizeof *g->is_changed);
    w.of = iso_arena_calloc(&own, T * n, sizeof *w.of);
    w.data = iso_arena_calloc(&own, T, sizeof *w.data);
    w.squares = iso_arena_calloc(&own, T, sizeof *w.squares);
    w.failed = iso_arena_calloc(&own, T, sizeof *w.failed);
    w.errors = iso_arena_calloc(&own, T, sizeof *w.errors);
    if (!weights || !g->tensors || !g->is_changed || !w.of || !w.data || !w.squares || !w.failed ||
        !w.errors) {
        err = iso_nomem(e, T * n * sizeof *w.of);
        goto done;
    }
    for (size_t i = 0; i < T * n; i++)
        w.of[i] = SIZE_MAX;
    g->count = T;
    g->before = iso_tensor_list_digest(backbone->items, T);
    if ((err = normalise(o, n, weights, e)) || (err = match(&w, e)))
        goto done;
    iso_parallel_for(T, 1, item, &w);
    for (size_t t = 0; t < T; t++) {
        g->tensors[t] = backbone->items[t];
        if (w.failed[t] && !err && (err = w.failed[t]) && e)
            *e = w.errors[t];
        if (!w.data[t])
            continue;
        size_t bytes = iso_tensor_bytes(&backbone->items[t].view);
        void *data = err ? NULL : iso_arena_alloc(a, bytes, 1);
        if (data)
            memcpy(data, w.data[t], bytes);
        else if (!err)
            err = iso_nomem(e, bytes);
        g->tensors[t].view.data = data;
        g->change_norm += w.squares[t];
    }
    g->change_norm = sqrt(g->change_norm);
    if (!err)
        g->after = iso_tensor_list_digest(g->tensors, T);
done:
    for (size_t t = 0; w.data && t < T; t++)
        free(w.data[t]);
    iso_arena_free(&own);
    if (err)
        iso_generation_free(g);
    return err;
}

void iso_generation_free(iso_generation *g)
{
    iso_arena_free(&g->arena);
    *g = (iso_generation){0};
}
