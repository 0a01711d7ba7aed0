/* Whisper's encoder: two convolutions over time (kernel 3, the second with stride 2) with GELU,
 * positions, pre-norm blocks, final norm. Of a whole Whisper the encoder is read.
 *
 * A sample is (frames, mels) of log-mel features, two frames a token; the first frame that begins
 * with ISO_NO_FRAME ends it. Shorter sound takes the first positions only, where the published
 * model pads every input to 30 s: cheaper, and close but not equal to it. The convolutions are
 * frozen, sums of three products with shifted rows. */
#include "nn/backbone/whisper.h"

#include "nn/backbone/load.h"
#include "nn/backbone/sequence.h"

#include <string.h>

enum { TAPS = 3, MAX_MELS = 1024 };

typedef struct {
    iso_encoder encoder; /* first: iso_backbone_load */
    /* Taps of the kernels, each a matrix (dim, mels) or (dim, dim). */
    iso_packed conv1[TAPS], conv2[TAPS];
    const float *bias1, *bias2, *position; /* (dim), (dim), (positions, dim) */
} whisper;

/* ---- files ---- */

static iso_err read_config(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    const char *act;
    iso_err err;
    if ((err = iso_config_size(c, "d_model", ISO_MAX_DIM, &s->dim, e)) ||
        (err = iso_config_size(c, "encoder_layers", ISO_MAX_DEPTH, &s->depth, e)) ||
        (err = iso_config_size(c, "encoder_attention_heads", ISO_MAX_DIM, &s->heads, e)) ||
        (err = iso_config_size(c, "encoder_ffn_dim", (int64_t)4 * ISO_MAX_DIM, &s->mlp, e)) ||
        (err = iso_config_size(c, "num_mel_bins", MAX_MELS, &s->channels, e)) ||
        (err = iso_config_size(c, "max_source_positions", ISO_MAX_TOKENS, &s->tokens, e)) ||
        (err = iso_json_get_str(c, "activation_function", "gelu", &act, e)))
        return err;
    if (s->dim % s->heads)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"encoder_attention_heads\" is %zu, which does not divide d_model %zu",
                        s->heads, s->dim);
    s->act = iso_activation_find(act);
    if (!s->act)
        return iso_fail(e, ISO_ERR_DATA, "\"activation_function\" is \"%.20s\"; expected \"gelu\"",
                        act);
    if (s->tokens < 2)
        return iso_fail(e, ISO_ERR_DATA, "\"max_source_positions\" is %zu; at least 2", s->tokens);
    s->eps = 1e-5;
    s->feature = s->dim;
    s->modality = ISO_MODALITY_SOUND;
    s->sample_rows = 2;
    s->sample = s->tokens * s->sample_rows * s->channels;
    s->head_rows = 1;
    return ISO_OK;
}

static const iso_block_names BLOCKS = {.layers = "layers.",
                                       .norm1 = "self_attn_layer_norm",
                                       .norm2 = "final_layer_norm",
                                       .linears = {"self_attn.q_proj", "self_attn.k_proj",
                                                   "self_attn.v_proj", "self_attn.out_proj", "fc1",
                                                   "fc2"},
                                       .bias_is_optional = true};

/* The file's kernel (dim, in, 3) as three matrices (dim, in). */
static iso_err read_kernel(const iso_reader *r, const char *name, size_t out, size_t in,
                           iso_packed *taps, iso_error *e)
{
    size_t dims[] = {out, in, TAPS, 0};
    const float *kernel = NULL;
    iso_err err = iso_reader_new(r, name, dims, &kernel, e);
    for (size_t k = 0; !err && r->arena && k < TAPS; k++) {
        float *W = iso_arena_alloc(r->arena, out * in, sizeof *W);
        if (!W)
            return iso_nomem(e, out * in * sizeof *W);
        for (size_t i = 0; i < out * in; i++)
            W[i] = kernel[i * TAPS + k];
        taps[k] = (iso_packed){.out = out, .in = in, .W = W};
    }
    return err;
}

static iso_err visit(const iso_reader *r, iso_backbone_shape *s, void *own, iso_error *e)
{
    whisper *w = own;
    const iso_named_tensor *t;
    char name[64] = "";
    strncat(name, r->prefix, 32);
    strcat(name, "embed_positions.weight");
    t = iso_safetensors_find(r->st, name);
    /* Sound may be cut shorter than the positions reach. */
    size_t rows =
        t && t->view.ndim == 2 && t->view.shape[0] > s->tokens ? t->view.shape[0] : s->tokens;
    size_t pdims[] = {rows, s->dim, 0}, bdims[] = {s->dim, 0};
    iso_err err;
    if ((err = read_kernel(r, "conv1.weight", s->dim, s->channels, w->conv1, e)) ||
        (err = iso_reader_new(r, "conv1.bias", bdims, &w->bias1, e)) ||
        (err = read_kernel(r, "conv2.weight", s->dim, s->dim, w->conv2, e)) ||
        (err = iso_reader_new(r, "conv2.bias", bdims, &w->bias2, e)) ||
        (err = iso_reader_new(r, "embed_positions.weight", pdims, &w->position, e)) ||
        (err = iso_reader_blocks(r, s, &BLOCKS, e)))
        return err;
    return iso_reader_norm(r, "layer_norm", s, &w->encoder.final, e);
}

static iso_err load(iso_backbone *b, const iso_safetensors *st, iso_error *e)
{
    static const char *const prefixes[] = {"model.encoder.", "encoder.", ""};
    return iso_backbone_load(b, st, iso_reader_prefix(st, prefixes, "conv1.weight"), &BLOCKS,
                             sizeof(whisper), visit, e);
}

/* ---- passes ---- */

static size_t frames_of(const iso_backbone *b, const float *sample)
{
    size_t most = b->shape.tokens * b->shape.sample_rows, n = 0;
    while (n < most && sample[n * b->shape.channels] > ISO_NO_FRAME)
        n++;
    return n;
}

/* Sound without a frame counts as one token. */
static void lengths(const iso_backbone *b, const float *samples, size_t n, uint32_t *out)
{
    for (size_t i = 0; i < n; i++) {
        size_t frames = frames_of(b, samples + i * b->shape.sample);
        out[i] = frames ? (uint32_t)((frames + 1) / 2) : 1;
    }
}

/* y (out_rows, dim) = act(convolution of x (rows, in) with kernel 3 and padding 1 + bias). */
static void convolve(const iso_packed *taps, const float *bias, const float *x, size_t rows,
                     size_t in, size_t stride, float *y, size_t out_rows, size_t d)
{
    /* the middle tap reaches every output row */
    iso_packed_forward(&taps[1], 0, d, bias, out_rows, x, stride * in, NULL, 0, y, d);
    /* the left one all but the first */
    if (out_rows > 1)
        iso_packed_forward(&taps[0], 0, d, NULL, out_rows - 1, x + (stride - 1) * in, stride * in,
                           y + d, d, y + d, d);
    /* the right one those with a row behind their middle */
    size_t right = (rows - 1 + stride - 1) / stride;
    if (right)
        iso_packed_forward(&taps[2], 0, d, NULL, right < out_rows ? right : out_rows, x + in,
                           stride * in, y, d, y, d);
    iso_gelu_forward(out_rows * d, y, y);
}

static size_t workspace_floats(const iso_backbone *b, const iso_pass *p, size_t images)
{
    size_t need = iso_sequence_workspace(b, p, images);
    size_t hidden = (images * b->shape.tokens * b->shape.dim + 15) / 16 * 16;
    size_t stem = hidden + b->shape.tokens * b->shape.sample_rows * b->shape.dim;
    return need > stem ? need : stem;
}

static void embed(const iso_backbone *b, const iso_pass *p, const float *samples, size_t images,
                  float *workspace, float *hidden)
{
    const whisper *w = b->own;
    const iso_backbone_shape *s = &b->shape;
    size_t d = s->dim, tokens = p->tokens ? p->tokens : s->tokens;
    float *stem = workspace + (images * s->tokens * d + 15) / 16 * 16;
    for (size_t i = 0; i < images; i++) {
        const float *x = samples + i * s->sample;
        float *h = hidden + i * tokens * d;
        size_t frames = frames_of(b, x), n = (frames + 1) / 2;
        if (frames) {
            convolve(w->conv1, w->bias1, x, frames, s->channels, 1, stem, frames, d);
            convolve(w->conv2, w->bias2, stem, frames, d, 2, h, n, d);
        }
        for (size_t j = 0; j < n * d; j++)
            h[j] += w->position[j];
        memset(h + n * d, 0, (tokens - n) * d * sizeof *h); /* padding: computed, never read */
    }
}

const iso_backbone_family iso_whisper_family = {.model_type = "whisper",
                                                .help = "Whisper's encoder: sound",
                                                .read_config = read_config,
                                                .load = load,
                                                .workspace_floats = workspace_floats,
                                                .input = iso_sequence_input,
                                                .lengths = lengths,
                                                .embed = embed,
                                                .forward = iso_sequence_forward,
                                                .backward = iso_sequence_backward};
const iso_backbone_family iso_speech_family = {.model_type = "isofed_speech",
                                               .help = "a small encoder of Whisper's shape",
                                               .read_config = read_config,
                                               .load = load,
                                               .workspace_floats = workspace_floats,
                                               .input = iso_sequence_input,
                                               .lengths = lengths,
                                               .embed = embed,
                                               .forward = iso_sequence_forward,
                                               .backward = iso_sequence_backward};
