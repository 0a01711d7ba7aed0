#include "nn/backbone/load.h"

#include <stdio.h>
#include <string.h>

/* ---- configuration ---- */

iso_err iso_config_size(const iso_json *c, const char *key, int64_t max, size_t *out, iso_error *e)
{
    int64_t v;
    iso_err err = iso_json_need_int(c, key, 1, max, &v, e);
    if (!err)
        *out = (size_t)v;
    return err;
}

/* intermediate_size; DINOv2 gives the ratio to the width instead. */
static iso_err config_mlp(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    double ratio;
    if (iso_json_key(c, "intermediate_size") || !iso_json_key(c, "mlp_ratio"))
        return iso_config_size(c, "intermediate_size", (int64_t)4 * ISO_MAX_DIM, &s->mlp, e);
    iso_err err = iso_json_get_num(c, "mlp_ratio", 4.0, &ratio, e);
    if (err)
        return err;
    if (!(ratio > 0.0 && ratio <= 16.0) || ratio * (double)s->dim < 1.0)
        return iso_fail(e, ISO_ERR_DATA, "\"mlp_ratio\" is %g; expected above 0, up to 16", ratio);
    s->mlp = (size_t)(ratio * (double)s->dim);
    return ISO_OK;
}

iso_err iso_config_encoder(const iso_json *c, double default_eps, iso_backbone_shape *s,
                           iso_error *e)
{
    iso_err err;
    const char *act;
    if ((err = iso_config_size(c, "hidden_size", ISO_MAX_DIM, &s->dim, e)) ||
        (err = iso_config_size(c, "num_hidden_layers", ISO_MAX_DEPTH, &s->depth, e)) ||
        (err = iso_config_size(c, "num_attention_heads", ISO_MAX_DIM, &s->heads, e)) ||
        (err = config_mlp(c, s, e)) ||
        (err = iso_json_get_num(c, "layer_norm_eps", default_eps, &s->eps, e)) ||
        (err = iso_json_get_str(c, "hidden_act", "gelu", &act, e)))
        return err;
    s->feature = s->dim;
    s->act = iso_activation_find(act);
    if (s->dim % s->heads)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"num_attention_heads\" is %zu, which does not divide hidden_size %zu",
                        s->heads, s->dim);
    if (!s->act)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"hidden_act\" is \"%.20s\"; expected \"gelu\" or \"quick_gelu\"", act);
    if (!(s->eps > 0.0 && s->eps <= 1.0))
        return iso_fail(e, ISO_ERR_DATA, "\"layer_norm_eps\" is %g; expected above 0, up to 1",
                        s->eps);
    return ISO_OK;
}

iso_err iso_config_image(const iso_json *c, int64_t default_patch, size_t lead,
                         iso_backbone_shape *s, iso_error *e)
{
    iso_err err;
    int64_t channels, patch;
    if ((err = iso_config_size(c, "image_size", ISO_MAX_SIDE, &s->image_size, e)) ||
        (err = iso_json_get_int(c, "patch_size", 1, ISO_MAX_SIDE, default_patch, &patch, e)) ||
        (err = iso_json_get_int(c, "num_channels", 3, 3, 3, &channels, e)))
        return err;
    s->patch = (size_t)patch;
    s->channels = (size_t)channels;
    s->lead = lead;
    s->head_rows = 1;
    if (s->image_size < s->patch)
        return iso_fail(e, ISO_ERR_DATA, "\"patch_size\" is %zu, larger than image_size %zu",
                        s->patch, s->image_size);
    s->native_size = s->image_size;
    return iso_backbone_resize(s, s->image_size, e);
}

/* ---- tensors ---- */

const char *iso_reader_prefix(const iso_safetensors *st, const char *const *prefixes,
                              const char *name)
{
    for (size_t i = 0;; i++) {
        char full[128];
        snprintf(full, sizeof full, "%s%s", prefixes[i], name);
        if (!prefixes[i][0] || iso_safetensors_find(st, full))
            return prefixes[i];
    }
}

bool iso_reader_has(const iso_reader *r, const char *name)
{
    char full[256];
    int n = snprintf(full, sizeof full, "%s%s", r->prefix, name);
    return n > 0 && (size_t)n < sizeof full && iso_safetensors_find(r->st, full);
}

iso_err iso_reader_get(const iso_reader *r, const char *name, const size_t *dims, float *out,
                       iso_error *e)
{
    const iso_tensor *t;
    return r->arena ? iso_backbone_read(r->st, r->prefix, name, dims, out, e)
                    : iso_backbone_tensor(r->st, r->prefix, name, dims, &t, e);
}

iso_err iso_reader_new(const iso_reader *r, const char *name, const size_t *dims, const float **out,
                       iso_error *e)
{
    float *data = NULL;
    if (r->arena) {
        size_t n = 1;
        for (int i = 0; dims[i]; i++)
            n *= dims[i];
        data = iso_arena_alloc(r->arena, n, sizeof *data);
        if (!data)
            return iso_nomem(e, n * sizeof *data);
        *out = data;
    }
    return iso_reader_get(r, name, dims, data, e);
}

iso_err iso_reader_norm(const iso_reader *r, const char *name, const iso_backbone_shape *s,
                        iso_norm *norm, iso_error *e)
{
    char full[160];
    size_t dims[] = {s->dim, 0};
    norm->dim = s->dim;
    norm->eps = (float)s->eps;
    snprintf(full, sizeof full, "%s.weight", name);
    iso_err err = iso_reader_new(r, full, dims, &norm->w, e);
    if (err)
        return err;
    snprintf(full, sizeof full, "%s.bias", name);
    return iso_reader_new(r, full, dims, &norm->b, e);
}

/* Where the six linear layers of a block lie. */
static const struct {
    int matrix, part; /* rows part*dim .. of the matrix */
} PLACES[ISO_LINEARS_PER_BLOCK] = {{ISO_QKV, 0}, {ISO_QKV, 1}, {ISO_QKV, 2},
                                   {ISO_OUT, 0}, {ISO_FC1, 0}, {ISO_FC2, 0}};

static void matrix_shape(const iso_backbone_shape *s, int matrix, size_t *out, size_t *in)
{
    *out = matrix == ISO_QKV ? 3 * s->dim : matrix == ISO_FC1 ? s->mlp : s->dim;
    *in = matrix == ISO_FC2 ? s->mlp : s->dim;
}

static size_t linear_out(const iso_backbone_shape *s, int matrix)
{
    return matrix == ISO_FC1 ? s->mlp : s->dim;
}

static iso_err allocate_matrices(const iso_reader *r, const iso_backbone_shape *s,
                                 iso_packed *matrices, float **W, float **bias, iso_error *e)
{
    for (int m = 0; m < ISO_MATRICES_PER_BLOCK; m++) {
        size_t out, in;
        matrix_shape(s, m, &out, &in);
        size_t panel = iso_packed_forward_floats(out, in);
        W[m] = iso_arena_alloc(r->arena, out * in, sizeof(float));
        bias[m] = iso_arena_calloc(r->arena, out, sizeof(float));
        float *forward = panel ? iso_arena_alloc(r->arena, panel, sizeof(float)) : NULL;
        if (!W[m] || !bias[m] || (panel && !forward))
            return iso_nomem(e, (out * in + panel) * sizeof(float));
        matrices[m] = (iso_packed){.out = out, .in = in, .W = W[m], .forward = forward};
    }
    return ISO_OK;
}

static iso_err read_linear(const iso_reader *r, const iso_backbone_shape *s,
                           const iso_block_names *names, size_t block, size_t i, float **W,
                           float **bias, iso_error *e)
{
    char name[160];
    int m = PLACES[i].matrix;
    size_t out, in, rows = linear_out(s, m), row = (size_t)PLACES[i].part * s->dim;
    matrix_shape(s, m, &out, &in);
    size_t wdims[] = {rows, in, 0}, bdims[] = {rows, 0};
    snprintf(name, sizeof name, "%s%zu.%s.weight", names->layers, block, names->linears[i]);
    iso_err err = iso_reader_get(r, name, wdims, r->arena ? W[m] + row * in : NULL, e);
    snprintf(name, sizeof name, "%s%zu.%s.bias", names->layers, block, names->linears[i]);
    if (err || (names->bias_is_optional && !iso_reader_has(r, name)))
        return err;
    return iso_reader_get(r, name, bdims, r->arena ? bias[m] + row : NULL, e);
}

static iso_err read_block(const iso_reader *r, const iso_backbone_shape *s,
                          const iso_block_names *names, size_t block, iso_error *e)
{
    char name[160];
    iso_err err;
    iso_encoder_block ignored = {0}, *b = r->arena ? &r->blocks[block] : &ignored;
    float *W[ISO_MATRICES_PER_BLOCK] = {0}, *bias[ISO_MATRICES_PER_BLOCK] = {0};
    iso_packed *matrices = r->arena ? r->matrices + block * ISO_MATRICES_PER_BLOCK : NULL;
    size_t dims[] = {s->dim, 0};
    snprintf(name, sizeof name, "%s%zu.%s", names->layers, block, names->norm1);
    if ((err = iso_reader_norm(r, name, s, &b->norm1, e)))
        return err;
    snprintf(name, sizeof name, "%s%zu.%s", names->layers, block, names->norm2);
    if ((err = iso_reader_norm(r, name, s, &b->norm2, e)))
        return err;
    if (names->scale1) {
        snprintf(name, sizeof name, "%s%zu.%s", names->layers, block, names->scale1);
        if ((err = iso_reader_new(r, name, dims, &b->scale1, e)))
            return err;
        snprintf(name, sizeof name, "%s%zu.%s", names->layers, block, names->scale2);
        if ((err = iso_reader_new(r, name, dims, &b->scale2, e)))
            return err;
    }
    if (r->arena && (err = allocate_matrices(r, s, matrices, W, bias, e)))
        return err;
    for (size_t i = 0; i < ISO_LINEARS_PER_BLOCK; i++)
        if ((err = read_linear(r, s, names, block, i, W, bias, e)))
            return err;
    for (int m = 0; r->arena && m < ISO_MATRICES_PER_BLOCK; m++) {
        b->bias[m] = bias[m];
        iso_pack(&matrices[m]);
    }
    return ISO_OK;
}

iso_err iso_reader_blocks(const iso_reader *r, const iso_backbone_shape *s,
                          const iso_block_names *names, iso_error *e)
{
    iso_err err = ISO_OK;
    for (size_t i = 0; !err && i < s->depth; i++)
        err = read_block(r, s, names, i, e);
    return err;
}

/* ---- the whole ---- */

static iso_err name_modules(iso_backbone *b, const char *prefix, const iso_block_names *names,
                            iso_error *e)
{
    const iso_backbone_shape *s = &b->shape;
    size_t count = s->depth * ISO_LINEARS_PER_BLOCK;
    iso_module *m = iso_arena_alloc(&b->arena, count, sizeof *m);
    if (!m)
        return iso_nomem(e, count * sizeof *m);
    for (size_t i = 0; i < count; i++) {
        size_t block = i / ISO_LINEARS_PER_BLOCK, k = i % ISO_LINEARS_PER_BLOCK;
        char name[192];
        snprintf(name, sizeof name, "%s%s%zu.%s", prefix, names->layers, block, names->linears[k]);
        size_t out, in;
        matrix_shape(s, PLACES[k].matrix, &out, &in);
        m[i] = (iso_module){.name = iso_arena_strdup(&b->arena, name),
                            .out = linear_out(s, PLACES[k].matrix),
                            .in = in,
                            .block = block,
                            .matrix = block * ISO_MATRICES_PER_BLOCK + (size_t)PLACES[k].matrix,
                            .row = (size_t)PLACES[k].part * s->dim};
        if (!m[i].name)
            return iso_nomem(e, sizeof name);
    }
    b->modules = m;
    b->module_count = count;
    return ISO_OK;
}

iso_err iso_backbone_load(iso_backbone *b, const iso_safetensors *st, const char *prefix,
                          const iso_block_names *names, size_t own_bytes, iso_visit_fn *visit,
                          iso_error *e)
{
    iso_backbone_shape *s = &b->shape;
    void *own = iso_arena_calloc(&b->arena, 1, own_bytes);
    if (!own)
        return iso_nomem(e, own_bytes);
    iso_reader check = {.st = st, .prefix = prefix};
    iso_err err = visit(&check, s, own, e);
    if (err)
        return err;
    memset(own, 0, own_bytes);
    b->matrix_count = s->depth * ISO_MATRICES_PER_BLOCK;
    b->matrices = iso_arena_calloc(&b->arena, b->matrix_count, sizeof *b->matrices);
    iso_encoder_block *blocks = iso_arena_calloc(&b->arena, s->depth, sizeof *blocks);
    if (!b->matrices || !blocks)
        return iso_nomem(e, s->depth * sizeof *blocks);
    iso_reader read = {st, prefix, &b->arena, blocks, b->matrices};
    if ((err = visit(&read, s, own, e)))
        return err;
    iso_encoder *n = own;
    n->depth = s->depth;
    n->dim = s->dim;
    n->heads = s->heads;
    n->mlp = s->mlp;
    n->tokens = s->tokens;
    n->blocks = blocks;
    n->act = s->act;
    b->own = own;
    return name_modules(b, prefix, names, e);
}
