/* Factorised adapters; see factorised.h.
 *
 * Training computes with the folded weight, formed once a step, and with dW' = dy' x:
 *   dr_j = (dW' * W) s_j    ds_j = (dW' * W)' r_j    da_j = dW' b_j    db_j = dW'' a_j
 * The factored way around W' needs 2k products of full size where this needs one and k thin ones
 * (specs/factorization.md 2), so there is no second path. dW' is formed in bands of rows that stay
 * in cache. Form `lora` is LoRA under another name and runs through it. */
#include "nn/adapter/factorised.h"

#include "core/rng.h"
#include "core/simd.h"
#include "nn/adapter/lora.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_K = 4096, BAND = 96 };

const char *const iso_factor_forms[] = {"both", "lora", "multiplicative", "additive", NULL};

typedef struct {
    const iso_module *module;
    size_t r, s, a, b; /* where each begins in params; SIZE_MAX: the form has none */
} factor_part;

typedef struct {
    iso_factor_form form;
    size_t k;
    factor_part *parts; /* in order of matrix and row */
    size_t count;
    size_t *first; /* matrix_count + 1 */
    size_t max_in;
    void *lora; /* form lora: what LoRA keeps in `own` */
} factorised;

static bool has_product(iso_factor_form f)
{
    return f == ISO_FORM_BOTH || f == ISO_FORM_MULTIPLICATIVE;
}

static bool has_sum(iso_factor_form f)
{
    return f == ISO_FORM_BOTH || f == ISO_FORM_ADDITIVE;
}

/* The same adapter as LoRA sees it. */
static iso_adapter as_lora(const iso_adapter *a)
{
    iso_adapter inner = *a;
    inner.kind = &iso_lora_kind;
    inner.own = ((const factorised *)a->own)->lora;
    return inner;
}

/* Takes over what LoRA's create or from_peft made of `a`. */
static iso_err adopt(iso_adapter *a, factorised *f, iso_err err)
{
    f->lora = a->own;
    a->own = f;
    return err;
}

static iso_err new_own(iso_adapter *a, iso_factor_form form, size_t k, factorised **out,
                       iso_error *e)
{
    const iso_backbone *b = a->backbone;
    factorised *f = iso_arena_calloc(&a->arena, 1, sizeof *f);
    if (!f)
        return iso_nomem(e, sizeof *f);
    f->form = form;
    f->k = k;
    f->parts = iso_arena_calloc(&a->arena, b->module_count, sizeof *f->parts);
    f->first = iso_arena_calloc(&a->arena, b->matrix_count + 1, sizeof *f->first);
    if (!f->parts || !f->first)
        return iso_nomem(e, b->module_count * sizeof *f->parts);
    *out = f;
    return ISO_OK;
}

/* Lays out params for the modules in is_target. */
static iso_err lay_out(iso_adapter *a, factorised *f, const bool *is_target, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    size_t at = 0;
    for (size_t m = 0; m < b->matrix_count; m++) {
        f->first[m] = f->count;
        for (size_t i = 0; i < b->module_count; i++) {
            const iso_module *q = &b->modules[i];
            if (!is_target[i] || q->matrix != m)
                continue;
            factor_part *p = &f->parts[f->count++];
            *p = (factor_part){q, SIZE_MAX, SIZE_MAX, SIZE_MAX, SIZE_MAX};
            if (has_product(f->form)) {
                p->r = at;
                p->s = at += f->k * q->out;
                at += f->k * q->in;
            }
            if (has_sum(f->form)) {
                p->a = at;
                p->b = at += f->k * q->out;
                at += f->k * q->in;
            }
            f->max_in = q->in > f->max_in ? q->in : f->max_in;
            a->is_adapted[m] = true;
        }
    }
    f->first[b->matrix_count] = f->count;
    a->param_count = at;
    a->params = iso_arena_calloc(&a->arena, at, sizeof *a->params);
    if (!a->params)
        return iso_nomem(e, at * sizeof *a->params);
    a->own = f;
    return ISO_OK;
}

/* r and a normal with deviation 1/sqrt(k), s and b zero. */
static void initialise(iso_adapter *a, const factorised *f, uint64_t seed)
{
    for (size_t i = 0; i < f->count; i++) {
        const factor_part *p = &f->parts[i];
        size_t starts[2] = {p->r, p->a};
        for (uint64_t j = 0; j < 2; j++) {
            iso_rng g = iso_rng_make(iso_rng_seed_name(seed, p->module->name), ISO_RNG_INIT, j);
            for (size_t n = 0; starts[j] != SIZE_MAX && n < f->k * p->module->out; n++)
                a->params[starts[j] + n] = (float)(iso_rng_normal(&g) / sqrt((double)f->k));
        }
    }
}

static iso_err create(iso_adapter *a, const iso_adapter_options *o, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    factorised *f = NULL;
    if (o->form < 0 || o->form >= ISO_FORM_COUNT)
        return iso_fail(e, ISO_ERR_USAGE, "form %d is not known", (int)o->form);
    if (o->rank < 1 || o->rank > MAX_K)
        return iso_fail(e, ISO_ERR_USAGE, "k %zu; expected 1..%d", o->rank, MAX_K);
    iso_err err = new_own(a, o->form, o->rank, &f, e);
    if (err)
        return err;
    if (o->form == ISO_FORM_LORA)
        return adopt(a, f, iso_lora_kind.create(a, o, e));
    bool *is_target = iso_arena_calloc(&a->arena, b->module_count, sizeof *is_target);
    if (!is_target)
        return iso_nomem(e, b->module_count);
    if (!(err = iso_adapter_targets(b, o, is_target, e)) && !(err = lay_out(a, f, is_target, e)))
        initialise(a, f, o->seed);
    return err;
}

/* ---- files ---- */

static const char *const LETTERS[4] = {"r", "s", "a", "b"};

static void factor_shape(const factorised *f, const factor_part *p, int letter, size_t *at,
                         size_t dims[2])
{
    const size_t starts[4] = {p->r, p->s, p->a, p->b};
    *at = starts[letter];
    dims[0] = f->k;
    dims[1] = letter % 2 ? p->module->in : p->module->out;
}

/* The module of "NAME.factor.x", or NULL. */
static const iso_module *module_of(const iso_backbone *b, const char *tensor)
{
    char name[ISO_SAFETENSORS_NAME_BYTES + 1];
    size_t n = strlen(tensor), tail = strlen(".factor.x");
    if (n <= tail || n > ISO_SAFETENSORS_NAME_BYTES ||
        strncmp(tensor + n - tail, ".factor.", tail - 1) != 0)
        return NULL;
    memcpy(name, tensor, n - tail);
    name[n - tail] = 0;
    return iso_backbone_module(b, name);
}

static iso_err read_factors(iso_adapter *a, factorised *f, const iso_peft_parts *p, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    bool *is_target = iso_arena_calloc(&a->arena, b->module_count, sizeof *is_target);
    /* the name that the file uses for each module: with or without the backbone's prefix */
    const char **base = iso_arena_calloc(&a->arena, b->module_count, sizeof *base);
    if (!is_target || !base)
        return iso_nomem(e, b->module_count * sizeof *base);
    for (size_t i = 0; i < p->st.count; i++) {
        const iso_module *m = module_of(b, p->st.items[i].name);
        if (!m)
            return iso_fail(e, ISO_ERR_SHAPE,
                            "tensor \"%.120s\" belongs to no linear layer of the backbone",
                            p->st.items[i].name);
        is_target[m - b->modules] = true;
        base[m - b->modules] = p->st.items[i].name;
    }
    iso_err err = lay_out(a, f, is_target, e);
    size_t read = 0;
    for (size_t i = 0; !err && i < f->count; i++)
        for (int l = 0; !err && l < 4; l++) {
            size_t at, dims[2];
            char name[ISO_SAFETENSORS_NAME_BYTES + 1];
            factor_shape(f, &f->parts[i], l, &at, dims);
            if (at == SIZE_MAX)
                continue;
            strcpy(name, base[f->parts[i].module - b->modules]);
            name[strlen(name) - 1] = *LETTERS[l];
            read++;
            err = iso_peft_parts_read(p, name, dims, 2, a->params + at, e);
        }
    if (!err && read != p->st.count)
        err = iso_fail(e, ISO_ERR_DATA, "%zu tensors; form \"%s\" has %zu", p->st.count,
                       iso_factor_forms[f->form], read);
    return err;
}

/* Form lora: PEFT's tensors, read as a LoRA of this k and scale. */
static iso_err read_lora(iso_adapter *a, factorised *f, const iso_peft_parts *p, double alpha,
                         iso_error *e)
{
    iso_peft lora = {0};
    iso_json *c = iso_json_object();
    iso_buf config = {0}, tensors = {0};
    iso_json_set(c, "peft_type", iso_json_string("LORA"));
    iso_json_set(c, "r", iso_json_integer((int64_t)f->k));
    iso_json_set(c, "lora_alpha", iso_json_real(alpha));
    iso_err err = iso_json_dump(c, ISO_JSON_COMPACT, &config, e);
    if (!err &&
        !(err = iso_safetensors_write_buf(&tensors, p->st.items, p->st.count, NULL, 0, e)) &&
        !(err = iso_peft_parse(&lora, config.data, config.size, tensors.data, tensors.size, false,
                               "form lora", e)))
        err = adopt(a, f, iso_lora_kind.from_peft(a, &lora, e));
    iso_peft_close(&lora);
    iso_json_free(c);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    return err;
}

static iso_err from_parts(iso_adapter *a, const iso_peft_parts *p, iso_error *e)
{
    const char *name;
    int64_t k;
    double alpha;
    factorised *f = NULL;
    iso_err err;
    if ((err = iso_json_get_str(p->config, "form", iso_factor_forms[0], &name, e)) ||
        (err = iso_json_need_int(p->config, "k", 1, MAX_K, &k, e)) ||
        (err = iso_json_get_num(p->config, "lora_alpha", (double)k, &alpha, e)))
        return err;
    int form = 0;
    while (iso_factor_forms[form] && strcmp(iso_factor_forms[form], name) != 0)
        form++;
    if (!iso_factor_forms[form])
        return iso_fail(e, ISO_ERR_DATA,
                        "form \"%.20s\"; expected both, lora, multiplicative or additive", name);
    if (!(alpha > 0.0 && alpha <= ISO_PEFT_MAX_ALPHA))
        return iso_fail(e, ISO_ERR_DATA, "lora_alpha %g; expected above 0, up to %d", alpha,
                        ISO_PEFT_MAX_ALPHA);
    if ((err = new_own(a, (iso_factor_form)form, (size_t)k, &f, e)))
        return err;
    return form == ISO_FORM_LORA ? read_lora(a, f, p, alpha, e) : read_factors(a, f, p, e);
}

static iso_err lora_tensors(const iso_adapter *a, iso_arena *arena, iso_json *config,
                            iso_named_tensor **tensors, size_t *count, iso_error *e)
{
    iso_adapter inner = as_lora(a);
    iso_lora_layer *layers;
    size_t n;
    iso_err err = iso_lora_kind.to_layers(&inner, arena, &layers, &n, e);
    if (err)
        return err;
    iso_named_tensor *t = iso_arena_calloc(arena, 2 * n, sizeof *t);
    iso_json *names = iso_json_array();
    for (size_t i = 0; t && i < n; i++) {
        const iso_lora_layer *l = &layers[i];
        char name[ISO_SAFETENSORS_NAME_BYTES + 1];
        iso_json_push(names, iso_json_string(l->module));
        for (size_t k = 0; k < 2; k++) {
            snprintf(name, sizeof name, "base_model.model.%s.lora_%c.weight", l->module,
                     k ? 'B' : 'A');
            t[2 * i + k] = (iso_named_tensor){iso_arena_strdup(arena, name),
                                              {.dtype = ISO_F32,
                                               .ndim = 2,
                                               .shape = {k ? l->out : l->rank, k ? l->rank : l->in},
                                               .data = k ? l->B : l->A}};
            if (!t[2 * i + k].name)
                t = NULL;
            if (!t)
                break;
        }
    }
    iso_json_set(config, "lora_alpha",
                 iso_json_real(n ? layers[0].scale * (double)layers[0].rank : 1.0));
    iso_json_set(config, "target_modules", names);
    if (!t)
        return iso_nomem(e, 2 * n * sizeof *t);
    *tensors = t;
    *count = 2 * n;
    return ISO_OK;
}

static iso_err factor_tensors(const iso_adapter *a, iso_arena *arena, iso_json *config,
                              iso_named_tensor **tensors, size_t *count, iso_error *e)
{
    const factorised *f = a->own;
    iso_named_tensor *t = iso_arena_calloc(arena, 4 * f->count, sizeof *t);
    iso_json *names = iso_json_array();
    size_t n = 0;
    for (size_t i = 0; t && i < f->count; i++) {
        iso_json_push(names, iso_json_string(f->parts[i].module->name));
        for (int l = 0; t && l < 4; l++) {
            size_t at, dims[2];
            char name[ISO_SAFETENSORS_NAME_BYTES + 1];
            factor_shape(f, &f->parts[i], l, &at, dims);
            if (at == SIZE_MAX)
                continue;
            snprintf(name, sizeof name, "%s.factor.%s", f->parts[i].module->name, LETTERS[l]);
            t[n] = (iso_named_tensor){
                iso_arena_strdup(arena, name),
                {.dtype = ISO_F32, .ndim = 2, .shape = {dims[0], dims[1]}, .data = a->params + at}};
            t = t[n++].name ? t : NULL;
        }
    }
    iso_json_set(config, "target_modules", names);
    if (!t)
        return iso_nomem(e, 4 * f->count * sizeof *t);
    *tensors = t;
    *count = n;
    return ISO_OK;
}

static iso_err to_parts(const iso_adapter *a, iso_arena *arena, iso_json *config,
                        iso_named_tensor **tensors, size_t *count, iso_error *e)
{
    const factorised *f = a->own;
    iso_json_set(config, "form", iso_json_string(iso_factor_forms[f->form]));
    iso_json_set(config, "k", iso_json_integer((int64_t)f->k));
    return f->form == ISO_FORM_LORA ? lora_tensors(a, arena, config, tensors, count, e)
                                    : factor_tensors(a, arena, config, tensors, count, e);
}

/* ---- computing ---- */

/* W = frozen + change, where the change is zero frozen to the bit (also -0). */
ISO_CLONES static void add_change(size_t n, const float *frozen, float *W)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        W[i] = W[i] == 0.0F ? frozen[i] : frozen[i] + W[i];
}

ISO_CLONES static void multiply(size_t n, const float *x, float *y)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        y[i] *= x[i];
}

static void fold(const iso_adapter *a, const float *params, size_t matrix, const iso_packed *out,
                 float *W)
{
    const factorised *f = a->own;
    const iso_packed *frozen = &a->backbone->matrices[matrix];
    if (f->form == ISO_FORM_LORA) {
        iso_adapter inner = as_lora(a);
        iso_lora_kind.fold(&inner, params, matrix, out, W);
        return;
    }
    for (size_t i = f->first[matrix]; i < f->first[matrix + 1]; i++) {
        const factor_part *p = &f->parts[i];
        size_t rows = p->module->out, in = p->module->in, at = p->module->row * in;
        float beta = 0.0F;
        if (has_product(f->form)) {
            iso_gemm(true, false, rows, in, f->k, 1.0F, params + p->r, rows, params + p->s, in,
                     0.0F, W + at, in);
            multiply(rows * in, frozen->W + at, W + at);
            beta = 1.0F;
        }
        if (has_sum(f->form))
            iso_gemm(true, false, rows, in, f->k, 1.0F, params + p->a, rows, params + p->b, in,
                     beta, W + at, in);
        add_change(rows * in, frozen->W + at, W + at);
    }
}

static size_t scratch_floats(const iso_adapter *a, size_t m)
{
    const factorised *f = a->own;
    if (f->form == ISO_FORM_LORA) {
        iso_adapter inner = as_lora(a);
        return iso_lora_kind.scratch_floats(&inner, m);
    }
    return BAND * f->max_in;
}

/* Rows j .. j+n-1 of a module's dW' lie in d (n, in): their part of the four gradients. */
static void grad_of_band(const factorised *f, const factor_part *p, const float *params, float *g,
                         size_t j, size_t n, const float *W, float *d)
{
    size_t out = p->module->out, in = p->module->in, k = f->k;
    if (has_sum(f->form)) {
        iso_gemm(false, true, k, n, in, 1.0F, params + p->b, in, d, in, 1.0F, g + p->a + j, out);
        iso_gemm(false, false, k, in, n, 1.0F, params + p->a + j, out, d, in, 1.0F, g + p->b, in);
    }
    if (has_product(f->form)) {
        multiply(n * in, W + (p->module->row + j) * in, d);
        iso_gemm(false, true, k, n, in, 1.0F, params + p->s, in, d, in, 1.0F, g + p->r + j, out);
        iso_gemm(false, false, k, in, n, 1.0F, params + p->r + j, out, d, in, 1.0F, g + p->s, in);
    }
}

static void grad(const iso_adapter *a, const float *params, float *g, size_t matrix, size_t row,
                 size_t rows, size_t m, const float *x, size_t ldx, const float *dy, size_t ldy,
                 float *scratch)
{
    const factorised *f = a->own;
    if (f->form == ISO_FORM_LORA) {
        iso_adapter inner = as_lora(a);
        iso_lora_kind.grad(&inner, params, g, matrix, row, rows, m, x, ldx, dy, ldy, scratch);
        return;
    }
    for (size_t i = f->first[matrix]; i < f->first[matrix + 1]; i++) {
        const factor_part *p = &f->parts[i];
        size_t in = p->module->in;
        if (p->module->row < row || p->module->row >= row + rows)
            continue;
        for (size_t j = 0; j < p->module->out; j += BAND) {
            size_t n = p->module->out - j < BAND ? p->module->out - j : BAND;
            iso_gemm(true, false, n, in, m, 1.0F, dy + (p->module->row - row) + j, ldy, x, ldx,
                     0.0F, scratch, in);
            grad_of_band(f, p, params, g, j, n, a->backbone->matrices[matrix].W, scratch);
        }
    }
}

const iso_adapter_kind iso_factorised_kind = {.name = "factorised",
                                              .peft_type = "ISOFED_FACTORISED",
                                              .help = "factors of one data block, to be averaged "
                                                      "into the backbone",
                                              .create = create,
                                              .from_parts = from_parts,
                                              .to_parts = to_parts,
                                              .fold = fold,
                                              .grad = grad,
                                              .scratch_floats = scratch_floats,
                                              .folds_whole = true};
