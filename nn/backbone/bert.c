/* BERT: word, position and type embeddings with a norm over their sum, a post-norm encoder. A
 * feature is the mean over the tokens that are there, as sentence encoders use it (Reimers and
 * Gurevych 2019); a classifier is one on that feature. Where the file has BERT's pooler its
 * classifier sits behind that, and is not taken up.
 *
 * Tokens that are masked (-1 in a sample) are left out, the others keep their positions: what the
 * published attention mask computes, without computing the masked rows. */
#include "nn/backbone/bert.h"

#include "nn/backbone/load.h"
#include "nn/backbone/sequence.h"

#include <string.h>

enum { MAX_VOCABULARY = 1 << 22 };

typedef struct {
    iso_encoder encoder;                 /* first: iso_backbone_load */
    const float *word, *position, *type; /* (vocabulary, dim), (positions, dim), first row (dim) */
    iso_norm norm;
    iso_packed head;
    const float *head_bias;
} bert;

/* ---- files ---- */

static iso_err read_config(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    const char *position;
    size_t types;
    iso_err err;
    if ((err = iso_config_encoder(c, 1e-12, s, e)) ||
        (err = iso_config_size(c, "vocab_size", MAX_VOCABULARY, &s->vocabulary, e)) ||
        (err = iso_config_size(c, "max_position_embeddings", ISO_MAX_TOKENS, &s->tokens, e)) ||
        (err = iso_config_size(c, "type_vocab_size", ISO_MAX_DIM, &types, e)) ||
        (err = iso_json_get_str(c, "position_embedding_type", "absolute", &position, e)))
        return err;
    if (strcmp(position, "absolute") != 0)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"position_embedding_type\" is \"%.30s\"; expected \"absolute\"",
                        position);
    if (s->tokens < 2)
        return iso_fail(e, ISO_ERR_DATA, "\"max_position_embeddings\" is %zu; at least 2",
                        s->tokens);
    s->modality = ISO_MODALITY_TEXT;
    s->sample = s->tokens;
    s->head_rows = 1;
    return ISO_OK;
}

static const iso_block_names BLOCKS = {.layers = "encoder.layer.",
                                       .norm1 = "attention.output.LayerNorm",
                                       .norm2 = "output.LayerNorm",
                                       .linears = {"attention.self.query", "attention.self.key",
                                                   "attention.self.value", "attention.output.dense",
                                                   "intermediate.dense", "output.dense"}};

/* A table whose number of rows is the file's: texts may be cut shorter than the positions reach. */
static iso_err read_table(const iso_reader *r, const char *name, size_t least_rows, size_t dim,
                          const float **out, iso_error *e)
{
    char full[128] = "";
    strncat(full, r->prefix, 32);
    strncat(full, name, 64);
    const iso_named_tensor *t = iso_safetensors_find(r->st, full);
    size_t rows = t && t->view.ndim == 2 ? t->view.shape[0] : least_rows;
    size_t dims[] = {rows < least_rows ? least_rows : rows, dim, 0};
    return iso_reader_new(r, name, dims, out, e);
}

static iso_err visit(const iso_reader *r, iso_backbone_shape *s, void *own, iso_error *e)
{
    iso_reader plain = {.st = r->st, .prefix = "", .arena = r->arena};
    bert *b = own;
    size_t words[] = {s->vocabulary, s->dim, 0};
    iso_err err;
    b->encoder.is_post_norm = true;
    if ((err = iso_reader_new(r, "embeddings.word_embeddings.weight", words, &b->word, e)) ||
        (err = read_table(r, "embeddings.position_embeddings.weight", s->tokens, s->dim,
                          &b->position, e)) ||
        (err = read_table(r, "embeddings.token_type_embeddings.weight", 1, s->dim, &b->type, e)) ||
        (err = iso_reader_norm(r, "embeddings.LayerNorm", s, &b->norm, e)) ||
        (err = iso_reader_blocks(r, s, &BLOCKS, e)))
        return err;
    const iso_named_tensor *head = iso_safetensors_find(r->st, "classifier.weight");
    if (!head || iso_reader_has(r, "pooler.dense.weight"))
        return ISO_OK;
    size_t classes = head->view.ndim == 2 ? head->view.shape[0] : 0;
    if (classes < 1 || classes > ISO_MAX_CLASSES)
        return iso_fail(e, ISO_ERR_SHAPE,
                        "tensor \"classifier.weight\" does not have a row for each class");
    size_t wdims[] = {classes, s->dim, 0}, bdims[] = {classes, 0};
    b->head = (iso_packed){.out = classes, .in = s->dim};
    if ((err = iso_reader_new(&plain, "classifier.weight", wdims, &b->head.W, e)) ||
        (err = iso_reader_new(&plain, "classifier.bias", bdims, &b->head_bias, e)))
        return err;
    s->classes = classes;
    return ISO_OK;
}

static iso_err load(iso_backbone *b, const iso_safetensors *st, iso_error *e)
{
    static const char *const prefixes[] = {"bert.", ""};
    return iso_backbone_load(b, st,
                             iso_reader_prefix(st, prefixes, "embeddings.word_embeddings.weight"),
                             &BLOCKS, sizeof(bert), visit, e);
}

/* ---- passes ---- */

/* A text without any token counts as one of id 0. */
static void lengths(const iso_backbone *b, const float *samples, size_t n, uint32_t *out)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t length = 0;
        for (size_t j = 0; j < b->shape.tokens; j++)
            length += samples[i * b->shape.tokens + j] >= 0.0F;
        out[i] = length ? length : 1;
    }
}

static void embed_one(const iso_backbone *b, size_t position, float id, float *h)
{
    const bert *own = b->own;
    size_t d = b->shape.dim;
    /* Ids beyond the vocabulary count as id 0. */
    size_t word = id > 0.0F && id < (float)b->shape.vocabulary ? (size_t)id : 0;
    const float *w = own->word + word * d, *p = own->position + position * d;
    for (size_t j = 0; j < d; j++)
        h[j] = w[j] + p[j] + own->type[j];
}

static void embed(const iso_backbone *b, const iso_pass *p, const float *samples, size_t images,
                  float *workspace, float *hidden)
{
    const bert *own = b->own;
    size_t d = b->shape.dim, tokens = p->tokens ? p->tokens : b->shape.tokens;
    (void)workspace;
    for (size_t i = 0; i < images; i++) {
        const float *ids = samples + i * b->shape.tokens;
        float *h = hidden + i * tokens * d, *end = h + tokens * d;
        for (size_t k = 0; k < b->shape.tokens && h < end; k++)
            if (ids[k] >= 0.0F) {
                embed_one(b, k, ids[k], h);
                h += d;
            }
        if (h == hidden + i * tokens * d) {
            embed_one(b, 0, 0.0F, h);
            h += d;
        }
        memset(h, 0, (size_t)(end - h) * sizeof *h); /* padding: computed, never read */
    }
    iso_norm_forward(&own->norm, images * tokens, hidden, d, hidden);
}

static void classify(const iso_backbone *b, const float *out, size_t n, float *logits)
{
    const bert *own = b->own;
    iso_packed_forward(&own->head, 0, own->head.out, own->head_bias, n, out, b->shape.dim, NULL, 0,
                       logits, own->head.out);
}

const iso_backbone_family iso_bert_family = {.model_type = "bert",
                                             .help = "BERT, MiniLM: text",
                                             .read_config = read_config,
                                             .load = load,
                                             .workspace_floats = iso_sequence_workspace,
                                             .input = iso_sequence_input,
                                             .lengths = lengths,
                                             .embed = embed,
                                             .forward = iso_sequence_forward,
                                             .backward = iso_sequence_backward,
                                             .classify = classify};
