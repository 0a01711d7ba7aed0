/* CLIP vision: a ViT with a norm over the embedded tokens ("pre_layrnorm", so spelt in the files)
 * and quick GELU. Where the file has visual_projection, a feature is the projected class token,
 * projection_dim numbers; else the normed class token. Of a whole CLIP (model_type "clip") the
 * image side is read: vision_config and the tensors of vision_model. */
#include "nn/backbone/clip.h"

#include "nn/backbone/tower.h"

static iso_err read_config(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    int64_t projection;
    iso_err err;
    if ((err = iso_config_encoder(c, 1e-5, s, e)) || (err = iso_config_image(c, 32, 1, s, e)) ||
        (err = iso_json_get_int(c, "projection_dim", 1, ISO_MAX_DIM, 512, &projection, e)))
        return err;
    s->feature = (size_t)projection; /* load() says whether there is a projection */
    return ISO_OK;
}

/* projection_dim of both sides stands at the top. */
static iso_err read_config_whole(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    int64_t projection;
    const iso_json *vision = iso_json_key(c, "vision_config");
    if (!vision || !iso_json_is_object(vision))
        return iso_fail(e, ISO_ERR_DATA, "\"vision_config\" is missing");
    iso_err err = read_config(vision, s, e);
    if (err)
        return iso_error_context(e, "vision_config");
    err =
        iso_json_get_int(c, "projection_dim", 1, ISO_MAX_DIM, (int64_t)s->feature, &projection, e);
    s->feature = (size_t)projection;
    return err;
}

static const iso_block_names BLOCKS = {.layers = "encoder.layers.",
                                       .norm1 = "layer_norm1",
                                       .norm2 = "layer_norm2",
                                       .linears = {"self_attn.q_proj", "self_attn.k_proj",
                                                   "self_attn.v_proj", "self_attn.out_proj",
                                                   "mlp.fc1", "mlp.fc2"}};

static iso_err visit(const iso_reader *r, iso_backbone_shape *s, void *own, iso_error *e)
{
    static const iso_lead lead[] = {{"embeddings.class_embedding", 1, 1, true}, {0}};
    static const iso_embedding_names names = {lead, "embeddings.position_embedding.weight", 2,
                                              "embeddings.patch_embedding", false};
    iso_reader plain = {.st = r->st, .prefix = "", .arena = r->arena};
    iso_tower *t = own;
    iso_err err;
    t->head_count = 0;
    if ((err = iso_tower_embedding(r, s, &names, t, e)) ||
        (err = iso_reader_norm(r, "pre_layrnorm", s, &t->stem, e)) ||
        (err = iso_reader_blocks(r, s, &BLOCKS, e)) ||
        (err = iso_reader_norm(r, "post_layernorm", s, &t->encoder.final, e)))
        return err;
    if (iso_reader_has(&plain, "visual_projection.weight")) {
        size_t dims[] = {s->feature, s->dim, 0};
        t->encoder.projection = (iso_packed){.out = s->feature, .in = s->dim};
        err = iso_reader_new(&plain, "visual_projection.weight", dims, &t->encoder.projection.W, e);
    } else {
        s->feature = s->dim;
    }
    return err ? err : iso_tower_head(r, s, t, "classifier", 0, e);
}

static iso_err load(iso_backbone *b, const iso_safetensors *st, iso_error *e)
{
    static const char *const prefixes[] = {"vision_model.", ""};
    return iso_backbone_load(b, st, iso_reader_prefix(st, prefixes, "embeddings.class_embedding"),
                             &BLOCKS, sizeof(iso_tower), visit, e);
}

const iso_backbone_family iso_clip_vision_family = {.model_type = "clip_vision_model",
                                                    .help = "CLIP's image side",
                                                    .read_config = read_config,
                                                    .load = load,
                                                    .workspace_floats = iso_tower_workspace,
                                                    .input = iso_tower_input,
                                                    .embed = iso_tower_embed,
                                                    .forward = iso_tower_forward,
                                                    .backward = iso_tower_backward,
                                                    .classify = iso_tower_classify};
const iso_backbone_family iso_clip_family = {.model_type = "clip",
                                             .help = "CLIP, of which the image side is used",
                                             .read_config = read_config_whole,
                                             .load = load,
                                             .workspace_floats = iso_tower_workspace,
                                             .input = iso_tower_input,
                                             .embed = iso_tower_embed,
                                             .forward = iso_tower_forward,
                                             .backward = iso_tower_backward,
                                             .classify = iso_tower_classify};
