/* ViT: class token, patches, learned positions, a pre-norm encoder, final norm. DeiT adds a
 * distillation token; its two heads, where both came along, are averaged.
 * Names as in Hugging Face, with or without the "vit." or "deit." prefix. */
#include "nn/backbone/vit.h"

#include "nn/backbone/encoder.h"
#include "nn/kernel/patch.h"

#include <stdio.h>
#include <string.h>

enum {
    MAX_DEPTH = 256,
    MAX_DIM = 16384,
    MAX_SIDE = 4096,
    MAX_TOKENS = 16384,
    MAX_CLASSES = 1 << 20,
    MAX_HEADS_OF_FILE = 2
};

typedef struct {
    iso_encoder encoder;
    iso_packed projection;
    const float *projection_bias;
    const float *lead;     /* (lead, dim): class and distillation token with their positions */
    const float *position; /* (patches, dim) */
    size_t head_count;
    iso_packed head[MAX_HEADS_OF_FILE];
    const float *head_bias[MAX_HEADS_OF_FILE];
    size_t head_token[MAX_HEADS_OF_FILE];
} vit;

/* ---- configuration ---- */

static iso_err need_size(const iso_json *o, const char *key, int64_t max, size_t *out, iso_error *e)
{
    int64_t v;
    iso_err err = iso_json_need_int(o, key, 1, max, &v, e);
    if (!err)
        *out = (size_t)v;
    return err;
}

static iso_err read_config(const iso_json *c, size_t lead, iso_backbone_shape *s, iso_error *e)
{
    iso_err err;
    const char *act;
    bool has_bias;
    int64_t channels, patch;
    if ((err = need_size(c, "hidden_size", MAX_DIM, &s->dim, e)) ||
        (err = need_size(c, "num_hidden_layers", MAX_DEPTH, &s->depth, e)) ||
        (err = need_size(c, "num_attention_heads", MAX_DIM, &s->heads, e)) ||
        (err = need_size(c, "intermediate_size", 4 * MAX_DIM, &s->mlp, e)) ||
        (err = need_size(c, "image_size", MAX_SIDE, &s->image_size, e)) ||
        (err = iso_json_get_int(c, "patch_size", 1, MAX_SIDE, 16, &patch, e)) ||
        (err = iso_json_get_int(c, "num_channels", 3, 3, 3, &channels, e)) ||
        (err = iso_json_get_num(c, "layer_norm_eps", 1e-12, &s->eps, e)) ||
        (err = iso_json_get_str(c, "hidden_act", "gelu", &act, e)) ||
        (err = iso_json_get_bool(c, "qkv_bias", true, &has_bias, e)))
        return err;
    s->patch = (size_t)patch;
    s->channels = (size_t)channels;
    s->lead = lead;
    if (s->dim % s->heads)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"num_attention_heads\" is %zu, which does not divide hidden_size %zu",
                        s->heads, s->dim);
    if (s->image_size % s->patch)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"patch_size\" is %zu, which does not divide image_size %zu", s->patch,
                        s->image_size);
    size_t grid = s->image_size / s->patch;
    if (grid * grid + lead > MAX_TOKENS)
        return iso_fail(e, ISO_ERR_DATA, "%zu tokens an image; at most %d are supported",
                        grid * grid + lead, MAX_TOKENS);
    s->tokens = grid * grid + lead;
    if (strcmp(act, "gelu") != 0)
        return iso_fail(e, ISO_ERR_DATA, "\"hidden_act\" is \"%.20s\"; expected \"gelu\"", act);
    if (!has_bias)
        return iso_fail(e, ISO_ERR_DATA, "\"qkv_bias\" is false; expected true");
    if (!(s->eps > 0.0 && s->eps <= 1.0))
        return iso_fail(e, ISO_ERR_DATA, "\"layer_norm_eps\" is %g; expected above 0, up to 1",
                        s->eps);
    return ISO_OK;
}

static iso_err read_config_vit(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    return read_config(c, 1, s, e);
}

static iso_err read_config_deit(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    return read_config(c, 2, s, e);
}

/* ---- tensors ---- */

/* The linear layers of a block by name, and where they lie. */
typedef struct {
    const char *name;
    int matrix;
    int part; /* rows part*dim .. of the matrix */
} linear_row;
static const linear_row LINEARS[] = {
    {"attention.attention.query", ISO_QKV, 0}, {"attention.attention.key", ISO_QKV, 1},
    {"attention.attention.value", ISO_QKV, 2}, {"attention.output.dense", ISO_OUT, 0},
    {"intermediate.dense", ISO_FC1, 0},        {"output.dense", ISO_FC2, 0}};
enum { LINEARS_PER_BLOCK = sizeof LINEARS / sizeof *LINEARS };

static void matrix_shape(const iso_backbone_shape *s, int matrix, size_t *out, size_t *in)
{
    *out = matrix == ISO_QKV ? 3 * s->dim : matrix == ISO_FC1 ? s->mlp : s->dim;
    *in = matrix == ISO_FC2 ? s->mlp : s->dim;
}

static size_t linear_out(const iso_backbone_shape *s, const linear_row *r)
{
    return r->matrix == ISO_FC1 ? s->mlp : s->dim;
}

/* One visitor for both passes: with `b` unset it checks that each tensor is there and fits, with
 * it set it reads. So nothing is allocated for a file that does not match its configuration. */
typedef struct {
    const iso_safetensors *st;
    const char *prefix;
    iso_arena *arena; /* NULL: only check */
} reader;

static iso_err get(const reader *r, const char *name, const size_t *dims, float *out, iso_error *e)
{
    const iso_tensor *t;
    return r->arena ? iso_backbone_read(r->st, r->prefix, name, dims, out, e)
                    : iso_backbone_tensor(r->st, r->prefix, name, dims, &t, e);
}

/* A vector or matrix of its own. */
static iso_err get_new(const reader *r, const char *name, const size_t *dims, const float **out,
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
    return get(r, name, dims, data, e);
}

static iso_err get_norm(const reader *r, const char *name, const iso_backbone_shape *s,
                        iso_norm *norm, iso_error *e)
{
    char full[160];
    size_t dims[] = {s->dim, 0};
    norm->dim = s->dim;
    norm->eps = (float)s->eps;
    snprintf(full, sizeof full, "%s.weight", name);
    iso_err err = get_new(r, full, dims, &norm->w, e);
    if (err)
        return err;
    snprintf(full, sizeof full, "%s.bias", name);
    return get_new(r, full, dims, &norm->b, e);
}

static iso_err get_block(const reader *r, const iso_backbone_shape *s, size_t block,
                         iso_encoder_block *b, iso_packed *matrices, iso_error *e)
{
    char name[128];
    iso_err err;
    snprintf(name, sizeof name, "encoder.layer.%zu.layernorm_before", block);
    if ((err = get_norm(r, name, s, &b->norm1, e)))
        return err;
    snprintf(name, sizeof name, "encoder.layer.%zu.layernorm_after", block);
    if ((err = get_norm(r, name, s, &b->norm2, e)))
        return err;
    float *W[ISO_MATRICES_PER_BLOCK] = {0}, *bias[ISO_MATRICES_PER_BLOCK] = {0};
    for (int m = 0; r->arena && m < ISO_MATRICES_PER_BLOCK; m++) {
        size_t out, in;
        matrix_shape(s, m, &out, &in);
        size_t panel = iso_packed_forward_floats(out, in);
        W[m] = iso_arena_alloc(r->arena, out * in, sizeof(float));
        bias[m] = iso_arena_alloc(r->arena, out, sizeof(float));
        float *forward = panel ? iso_arena_alloc(r->arena, panel, sizeof(float)) : NULL;
        if (!W[m] || !bias[m] || (panel && !forward))
            return iso_nomem(e, (out * in + panel) * sizeof(float));
        matrices[m] = (iso_packed){.out = out, .in = in, .W = W[m], .forward = forward};
        b->bias[m] = bias[m];
    }
    for (size_t i = 0; i < LINEARS_PER_BLOCK; i++) {
        const linear_row *l = &LINEARS[i];
        size_t out, in, rows = linear_out(s, l);
        matrix_shape(s, l->matrix, &out, &in);
        size_t row = (size_t)l->part * s->dim;
        size_t wdims[] = {rows, in, 0}, bdims[] = {rows, 0};
        snprintf(name, sizeof name, "encoder.layer.%zu.%s.weight", block, l->name);
        if ((err = get(r, name, wdims, r->arena ? W[l->matrix] + row * in : NULL, e)))
            return err;
        snprintf(name, sizeof name, "encoder.layer.%zu.%s.bias", block, l->name);
        if ((err = get(r, name, bdims, r->arena ? bias[l->matrix] + row : NULL, e)))
            return err;
    }
    for (int m = 0; r->arena && m < ISO_MATRICES_PER_BLOCK; m++)
        iso_pack(&matrices[m]);
    return ISO_OK;
}

/* The classifier that came along, if any; heads are optional, but what is there must fit. */
static iso_err get_heads(const reader *r, iso_backbone_shape *s, vit *v, iso_error *e)
{
    static const struct {
        const char *name;
        size_t token;
    } heads[] = {{"classifier", 0}, {"cls_classifier", 0}, {"distillation_classifier", 1}};
    reader plain = {r->st, "", r->arena};
    v->head_count = 0;
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        char weight[64], bias[64];
        snprintf(weight, sizeof weight, "%s.weight", heads[i].name);
        snprintf(bias, sizeof bias, "%s.bias", heads[i].name);
        const iso_named_tensor *t = iso_safetensors_find(r->st, weight);
        if (!t || heads[i].token >= s->lead || v->head_count == MAX_HEADS_OF_FILE)
            continue;
        size_t classes = t->view.ndim == 2 ? t->view.shape[0] : 0;
        if (classes < 1 || classes > MAX_CLASSES || (s->classes && s->classes != classes))
            return iso_fail(e, ISO_ERR_SHAPE, "tensor \"%s\" does not have a row for each class",
                            weight);
        size_t wdims[] = {classes, s->dim, 0}, bdims[] = {classes, 0};
        size_t k = v->head_count++;
        iso_packed *h = &v->head[k];
        *h = (iso_packed){.out = classes, .in = s->dim};
        v->head_token[k] = heads[i].token;
        iso_err err = get_new(&plain, weight, wdims, &h->W, e);
        if (!err)
            err = get_new(&plain, bias, bdims, &v->head_bias[k], e);
        if (err)
            return err;
        s->classes = classes;
    }
    return ISO_OK;
}

/* Class and distillation token with their positions added; positions of the patches. */
static iso_err get_tokens(const reader *r, const iso_backbone_shape *s, vit *v, iso_error *e)
{
    static const char *const tokens[] = {"embeddings.cls_token", "embeddings.distillation_token"};
    size_t pdims[] = {1, s->tokens, s->dim, 0}, tdims[] = {1, 1, s->dim, 0};
    const float *position = NULL;
    iso_err err = get_new(r, "embeddings.position_embeddings", pdims, &position, e);
    float *lead = NULL;
    if (!err && r->arena) {
        lead = iso_arena_alloc(r->arena, s->lead * s->dim, sizeof *lead);
        if (!lead)
            return iso_nomem(e, s->lead * s->dim * sizeof *lead);
    }
    for (size_t i = 0; !err && i < s->lead; i++) {
        err = get(r, tokens[i], tdims, r->arena ? lead + i * s->dim : NULL, e);
        for (size_t j = 0; !err && r->arena && j < s->dim; j++)
            lead[i * s->dim + j] += position[i * s->dim + j];
    }
    if (!err && r->arena) {
        v->lead = lead;
        v->position = position + s->lead * s->dim;
    }
    return err;
}

static iso_err get_all(const reader *r, iso_backbone_shape *s, vit *v, iso_encoder_block *blocks,
                       iso_packed *matrices, iso_error *e)
{
    iso_err err = get_tokens(r, s, v, e);
    if (err)
        return err;
    size_t wdims[] = {s->dim, s->channels, s->patch, s->patch, 0}, bdims[] = {s->dim, 0};
    v->projection = (iso_packed){.out = s->dim, .in = s->channels * s->patch * s->patch};
    if ((err = get_new(r, "embeddings.patch_embeddings.projection.weight", wdims, &v->projection.W,
                       e)) ||
        (err = get_new(r, "embeddings.patch_embeddings.projection.bias", bdims, &v->projection_bias,
                       e)))
        return err;
    for (size_t i = 0; i < s->depth; i++)
        if ((err = get_block(r, s, i, r->arena ? &blocks[i] : &(iso_encoder_block){0},
                             r->arena ? matrices + i * ISO_MATRICES_PER_BLOCK : NULL, e)))
            return err;
    if ((err = get_norm(r, "layernorm", s, &v->encoder.final, e)))
        return err;
    return get_heads(r, s, v, e);
}

static iso_err name_modules(iso_backbone *b, const char *prefix, iso_error *e)
{
    const iso_backbone_shape *s = &b->shape;
    size_t count = s->depth * LINEARS_PER_BLOCK;
    iso_module *m = iso_arena_alloc(&b->arena, count, sizeof *m);
    if (!m)
        return iso_nomem(e, count * sizeof *m);
    for (size_t i = 0; i < count; i++) {
        size_t block = i / LINEARS_PER_BLOCK;
        const linear_row *l = &LINEARS[i % LINEARS_PER_BLOCK];
        char name[128];
        snprintf(name, sizeof name, "%sencoder.layer.%zu.%s", prefix, block, l->name);
        size_t out, in;
        matrix_shape(s, l->matrix, &out, &in);
        m[i] = (iso_module){.name = iso_arena_strdup(&b->arena, name),
                            .out = linear_out(s, l),
                            .in = in,
                            .block = block,
                            .matrix = block * ISO_MATRICES_PER_BLOCK + (size_t)l->matrix,
                            .row = (size_t)l->part * s->dim};
        if (!m[i].name)
            return iso_nomem(e, sizeof name);
    }
    b->modules = m;
    b->module_count = count;
    return ISO_OK;
}

static const char *prefix_of(const iso_safetensors *st)
{
    static const char *const prefixes[] = {"vit.", "deit."};
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++) {
        char name[64];
        snprintf(name, sizeof name, "%sembeddings.cls_token", prefixes[i]);
        if (iso_safetensors_find(st, name))
            return prefixes[i];
    }
    return "";
}

static iso_err load(iso_backbone *b, const iso_safetensors *st, iso_error *e)
{
    iso_backbone_shape *s = &b->shape;
    reader check = {st, prefix_of(st), NULL};
    vit scratch = {0};
    iso_err err = get_all(&check, s, &scratch, NULL, NULL, e);
    if (err)
        return err;
    vit *v = iso_arena_calloc(&b->arena, 1, sizeof *v);
    iso_encoder_block *blocks = iso_arena_calloc(&b->arena, s->depth, sizeof *blocks);
    b->matrix_count = s->depth * ISO_MATRICES_PER_BLOCK;
    b->matrices = iso_arena_calloc(&b->arena, b->matrix_count, sizeof *b->matrices);
    if (!v || !blocks || !b->matrices)
        return iso_nomem(e, s->depth * sizeof *blocks);
    reader read = {st, check.prefix, &b->arena};
    err = get_all(&read, s, v, blocks, b->matrices, e);
    if (err)
        return err;
    v->encoder = (iso_encoder){.depth = s->depth,
                               .dim = s->dim,
                               .heads = s->heads,
                               .mlp = s->mlp,
                               .tokens = s->tokens,
                               .blocks = blocks,
                               .final = v->encoder.final};
    b->own = v;
    return name_modules(b, read.prefix, e);
}

/* ---- passes ---- */

static size_t workspace_floats(const iso_backbone *b, const iso_pass *p, size_t images)
{
    const vit *v = b->own;
    /* The patches of one image are cut out into the encoder's workspace, behind the input. */
    size_t rows = (b->shape.tokens - b->shape.lead) * v->projection.in;
    size_t hidden = images * b->shape.tokens * b->shape.dim;
    size_t need = iso_encoder_workspace(&v->encoder, p, images);
    return need > hidden + 16 + rows ? need : hidden + 16 + rows;
}

static float *input(const iso_backbone *b, const iso_pass *p, float *workspace)
{
    const vit *v = b->own;
    return iso_encoder_input(&v->encoder, p, workspace);
}

static void embed(const iso_backbone *b, const float *pixels, size_t images, float *workspace,
                  float *hidden)
{
    const vit *v = b->own;
    const iso_backbone_shape *s = &b->shape;
    size_t d = s->dim, lead = s->lead * d;
    float *rows = workspace + (images * s->tokens * d + 15) / 16 * 16;
    for (size_t i = 0; i < images; i++) {
        float *h = hidden + i * s->tokens * d;
        memcpy(h, v->lead, lead * sizeof *h);
        iso_patch_embed(&v->projection, v->projection_bias, v->position,
                        pixels + i * s->channels * s->image_size * s->image_size, s->channels,
                        s->image_size, s->patch, rows, h + lead, d);
    }
}

static void forward(const iso_backbone *b, const iso_pass *p, size_t images, float *workspace,
                    float *out)
{
    const vit *v = b->own;
    iso_encoder_forward(&v->encoder, p, images, workspace, out);
}

static void backward(const iso_backbone *b, const iso_pass *p, const iso_backward *w, size_t images,
                     float *workspace, const float *dout)
{
    const vit *v = b->own;
    iso_encoder_backward(&v->encoder, p, w, images, workspace, dout);
}

static void classify(const iso_backbone *b, const float *out, size_t n, float *logits)
{
    const vit *v = b->own;
    size_t lead = b->shape.lead, d = b->shape.dim, c = b->shape.classes;
    for (size_t k = 0; k < v->head_count; k++) {
        const float *x = out + v->head_token[k] * d;
        iso_packed_forward(&v->head[k], 0, c, v->head_bias[k], n, x, lead * d, k ? logits : NULL, c,
                           logits, c);
    }
    if (v->head_count > 1)
        for (size_t i = 0; i < n * c; i++)
            logits[i] /= (float)v->head_count;
}

const iso_backbone_family iso_vit_family = {.model_type = "vit",
                                            .help = "Vision Transformer",
                                            .read_config = read_config_vit,
                                            .load = load,
                                            .workspace_floats = workspace_floats,
                                            .input = input,
                                            .embed = embed,
                                            .forward = forward,
                                            .backward = backward,
                                            .classify = classify};
const iso_backbone_family iso_deit_family = {.model_type = "deit",
                                             .help = "ViT with a distillation token",
                                             .read_config = read_config_deit,
                                             .load = load,
                                             .workspace_floats = workspace_floats,
                                             .input = input,
                                             .embed = embed,
                                             .forward = forward,
                                             .backward = backward,
                                             .classify = classify};
