/* LoRA: y = x (W + s B A)' + b. Hu et al. 2022.
 *
 * Training computes with the folded weight: W + s B A costs r products a weight and step, the
 * separate path r products a token (specs/performance.md 9 rows 6-7). What is left of LoRA in a
 * step is its gradient, from four thin products over the rows of a micro-batch: t = x A'  (m, r) u
 * = s dy B  (m, r)     dA = u' x     dB' = s t' dy The A's of modules that share a matrix lie
 * together, so query, key and value are one product each for t and dA. B is kept transposed, (r,
 * out): its products then run along whole rows. */
#include "nn/adapter/lora.h"

#include "core/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 4096 };

typedef struct {
    const iso_module *module;
    size_t rank;
    float scale;
    size_t a, b;   /* where A (rank, in) and B' (rank, out) begin in params */
    size_t column; /* first of the module's ranks among those of its matrix */
} lora_part;

typedef struct {
    lora_part *parts; /* in order of computation: those of one matrix follow each other */
    size_t count;
    size_t *first;   /* matrix_count + 1: parts of matrix i are first[i] .. first[i+1]-1 */
    size_t max_rank; /* largest sum of ranks of a matrix */
} lora;

/* Lays out params for the parts that are there (module, rank, scale set), in order of matrix. */
static iso_err lay_out(iso_adapter *a, lora *l, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    size_t at = 0, part = 0;
    l->first = iso_arena_calloc(&a->arena, b->matrix_count + 1, sizeof *l->first);
    if (!l->first)
        return iso_nomem(e, (b->matrix_count + 1) * sizeof *l->first);
    for (size_t m = 0; m < b->matrix_count; m++) {
        size_t begin = part, column = 0;
        l->first[m] = part;
        for (; part < l->count && l->parts[part].module->matrix == m; part++) {
            lora_part *p = &l->parts[part];
            p->a = at;
            p->column = column;
            at += p->rank * p->module->in;
            column += p->rank;
        }
        for (size_t i = begin; i < part; i++) {
            l->parts[i].b = at;
            at += l->parts[i].rank * l->parts[i].module->out;
        }
        a->is_adapted[m] = part > begin;
        l->max_rank = column > l->max_rank ? column : l->max_rank;
    }
    l->first[b->matrix_count] = part;
    a->param_count = at;
    a->params = iso_arena_calloc(&a->arena, at, sizeof *a->params);
    if (!a->params)
        return iso_nomem(e, at * sizeof *a->params);
    a->own = l;
    return ISO_OK;
}

static iso_err new_parts(iso_adapter *a, lora **out, iso_error *e)
{
    lora *l = iso_arena_calloc(&a->arena, 1, sizeof *l);
    if (l)
        l->parts = iso_arena_calloc(&a->arena, a->backbone->module_count, sizeof *l->parts);
    if (!l || !l->parts)
        return iso_nomem(e, a->backbone->module_count * sizeof *l->parts);
    *out = l;
    return ISO_OK;
}

/* A uniform in +-1/sqrt(in) (Kaiming with slope sqrt 5, as PEFT does), B zero. */
static void initialise(iso_adapter *a, const lora *l, uint64_t seed)
{
    for (size_t i = 0; i < l->count; i++) {
        const lora_part *p = &l->parts[i];
        iso_rng r = iso_rng_make(iso_rng_seed_name(seed, p->module->name), ISO_RNG_INIT, 0);
        double bound = 1.0 / sqrt((double)p->module->in);
        float *A = a->params + p->a;
        for (size_t j = 0; j < p->rank * p->module->in; j++)
            A[j] = (float)((2.0 * iso_rng_uniform(&r) - 1.0) * bound);
    }
}

static bool is_target(const iso_module *m, const iso_adapter_options *o)
{
    if (m->block < o->first_block)
        return false;
    for (size_t i = 0; i < o->target_count; i++)
        if (iso_adapter_matches(m->name, o->targets[i]))
            return true;
    return o->target_count == 0;
}

static iso_err create(iso_adapter *a, const iso_adapter_options *o, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    if (o->rank < 1 || o->rank > MAX_RANK)
        return iso_fail(e, ISO_ERR_USAGE, "rank %zu; expected 1..%d", o->rank, MAX_RANK);
    if (!(o->alpha > 0.0 && o->alpha <= 1e6))
        return iso_fail(e, ISO_ERR_USAGE, "alpha %g; expected above 0, up to 1e6", o->alpha);
    for (size_t i = 0; i < o->target_count; i++) {
        bool is_known = false;
        for (size_t j = 0; j < b->module_count && !is_known; j++)
            is_known = iso_adapter_matches(b->modules[j].name, o->targets[i]);
        if (!is_known)
            return iso_fail(e, ISO_ERR_USAGE,
                            "target \"%.60s\" is no linear layer of this backbone (one is \"%s\")",
                            o->targets[i], b->modules[0].name);
    }
    if (o->first_block >= b->shape.depth)
        return iso_fail(e, ISO_ERR_USAGE, "first block %zu; the backbone has %zu", o->first_block,
                        b->shape.depth);
    lora *l = NULL;
    iso_err err = new_parts(a, &l, e);
    if (err)
        return err;
    double r = (double)o->rank;
    a->use_rslora = o->use_rslora;
    for (size_t i = 0; i < b->module_count; i++)
        if (is_target(&b->modules[i], o))
            l->parts[l->count++] =
                (lora_part){.module = &b->modules[i],
                            .rank = o->rank,
                            .scale = (float)(o->alpha / (o->use_rslora ? sqrt(r) : r))};
    err = lay_out(a, l, e);
    if (!err)
        initialise(a, l, o->seed);
    return err;
}

static iso_err from_peft(iso_adapter *a, const iso_peft *p, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    lora *l = NULL;
    iso_err err = new_parts(a, &l, e);
    if (err)
        return err;
    const iso_lora_layer **source =
        iso_arena_calloc(&a->arena, b->module_count, sizeof *source); /* by module */
    if (!source)
        return iso_nomem(e, b->module_count * sizeof *source);
    for (size_t i = 0; i < p->count; i++) {
        const iso_lora_layer *s = &p->layers[i];
        const iso_module *m = iso_backbone_module(b, s->module);
        if (!m)
            return iso_fail(e, ISO_ERR_SHAPE, "layer \"%s\" is no linear layer of the backbone",
                            s->module);
        if (s->in != m->in || s->out != m->out)
            return iso_fail(e, ISO_ERR_SHAPE,
                            "lora rank %zu of layer \"%s\" is for %zux%zu, backbone has %zux%zu",
                            s->rank, s->module, s->out, s->in, m->out, m->in);
        if (s->rank < 1 || s->rank > MAX_RANK)
            return iso_fail(e, ISO_ERR_DATA, "lora rank %zu of layer \"%s\"; expected 1..%d",
                            s->rank, s->module, MAX_RANK);
        if (source[m - b->modules])
            return iso_fail(e, ISO_ERR_DATA, "layer \"%s\" is there twice", s->module);
        source[m - b->modules] = s;
    }
    a->use_rslora = p->use_rslora;
    for (size_t i = 0; i < b->module_count; i++)
        if (source[i])
            l->parts[l->count++] = (lora_part){.module = &b->modules[i],
                                               .rank = source[i]->rank,
                                               .scale = (float)source[i]->scale};
    err = lay_out(a, l, e);
    if (err)
        return err;
    for (size_t i = 0; i < l->count; i++) {
        const lora_part *q = &l->parts[i];
        const iso_lora_layer *s = source[q->module - b->modules];
        memcpy(a->params + q->a, s->A, q->rank * s->in * sizeof(float));
        for (size_t r = 0; r < q->rank; r++)
            for (size_t o = 0; o < s->out; o++)
                a->params[q->b + r * s->out + o] = s->B[o * q->rank + r];
    }
    return ISO_OK;
}

static int by_module(const void *x, const void *y)
{
    return strcmp(((const iso_lora_layer *)x)->module, ((const iso_lora_layer *)y)->module);
}

static iso_err to_layers(const iso_adapter *a, iso_arena *arena, iso_lora_layer **layers,
                         size_t *count, iso_error *e)
{
    const lora *l = a->own;
    iso_lora_layer *out = iso_arena_calloc(arena, l->count, sizeof *out);
    if (!out)
        return iso_nomem(e, l->count * sizeof *out);
    for (size_t i = 0; i < l->count; i++) {
        const lora_part *p = &l->parts[i];
        iso_lora_layer *q = &out[i];
        *q = (iso_lora_layer){.module = iso_arena_strdup(arena, p->module->name),
                              .out = p->module->out,
                              .in = p->module->in,
                              .rank = p->rank,
                              .scale = (double)p->scale,
                              .A = iso_arena_alloc(arena, p->rank * p->module->in, sizeof(float)),
                              .B = iso_arena_alloc(arena, p->rank * p->module->out, sizeof(float))};
        if (!q->module || !q->A || !q->B)
            return iso_nomem(e, p->rank * (q->in + q->out) * sizeof(float));
        memcpy(q->A, a->params + p->a, p->rank * q->in * sizeof(float));
        for (size_t r = 0; r < p->rank; r++)
            for (size_t o = 0; o < q->out; o++)
                q->B[o * p->rank + r] = a->params[p->b + r * q->out + o];
    }
    qsort(out, l->count, sizeof *out, by_module);
    *layers = out;
    *count = l->count;
    return ISO_OK;
}

static void fold(const iso_adapter *a, const float *params, size_t matrix, const iso_packed *out,
                 float *W)
{
    const lora *l = a->own;
    for (size_t i = l->first[matrix]; i < l->first[matrix + 1]; i++) {
        const lora_part *p = &l->parts[i];
        iso_packed_fold(out, W, &a->backbone->matrices[matrix], p->module->row, p->module->out,
                        p->rank, p->scale, params + p->b, p->module->out, params + p->a);
    }
}

static size_t scratch_floats(const iso_adapter *a, size_t m)
{
    const lora *l = a->own;
    return 2 * ((m * l->max_rank + 15) / 16 * 16);
}

static void grad(const iso_adapter *a, const float *params, float *g, size_t matrix, size_t row,
                 size_t rows, size_t m, const float *x, size_t ldx, const float *dy, size_t ldy,
                 float *scratch)
{
    const lora *l = a->own;
    size_t in = a->backbone->matrices[matrix].in;
    /* Parts within the rows at hand: neighbours, so their A's are one matrix. */
    size_t first = l->first[matrix], end = l->first[matrix + 1];
    while (first < end && l->parts[first].module->row < row)
        first++;
    while (end > first && l->parts[end - 1].module->row >= row + rows)
        end--;
    if (first == end)
        return;
    const lora_part *p0 = &l->parts[first], *last = &l->parts[end - 1];
    size_t ranks = last->column + last->rank - p0->column;
    float *t = scratch, *u = scratch + scratch_floats(a, m) / 2;
    iso_gemm(false, true, m, ranks, in, 1.0F, x, ldx, params + p0->a, in, 0.0F, t, ranks);
    for (size_t i = first; i < end; i++) {
        const lora_part *p = &l->parts[i];
        const float *dyp = dy + (p->module->row - row);
        size_t out = p->module->out, c = p->column - p0->column;
        iso_gemm(true, false, p->rank, out, m, p->scale, t + c, ranks, dyp, ldy, 1.0F, g + p->b,
                 out);
        iso_gemm(false, true, m, p->rank, out, p->scale, dyp, ldy, params + p->b, out, 0.0F, u + c,
                 ranks);
    }
    iso_gemm(true, false, ranks, in, m, 1.0F, u, ranks, x, ldx, 1.0F, g + p0->a, in);
}

const iso_adapter_kind iso_lora_kind = {.name = "lora",
                                        .peft_type = "LORA",
                                        .help = "low-rank updates of linear layers",
                                        .create = create,
                                        .from_peft = from_peft,
                                        .to_layers = to_layers,
                                        .fold = fold,
                                        .grad = grad,
                                        .scratch_floats = scratch_floats};
