/* ViT: class token, patches, learned positions, a pre-norm encoder, final norm. DeiT adds a
 * distillation token; its two heads, where both came along, are averaged.
 * Names as in Hugging Face, with or without the "vit." or "deit." prefix. */
#include "nn/backbone/vit.h"

#include "nn/backbone/tower.h"

static iso_err read_config(const iso_json *c, size_t lead, iso_backbone_shape *s, iso_error *e)
{
    bool has_bias;
    iso_err err;
    if ((err = iso_config_encoder(c, 1e-12, s, e)) || (err = iso_config_image(c, 16, lead, s, e)) ||
        (err = iso_json_get_bool(c, "qkv_bias", true, &has_bias, e)))
        return err;
    if (!has_bias)
        return iso_fail(e, ISO_ERR_DATA, "\"qkv_bias\" is false; expected true");
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

static const iso_block_names BLOCKS = {
    .layers = "encoder.layer.",
    .norm1 = "layernorm_before",
    .norm2 = "layernorm_after",
    .linears = {"attention.attention.query", "attention.attention.key", "attention.attention.value",
                "attention.output.dense", "intermediate.dense", "output.dense"}};

static iso_err visit(const iso_reader *r, iso_backbone_shape *s, void *own, iso_error *e)
{
    static const iso_lead class_token = {"embeddings.cls_token", 3, 1, true};
    static const iso_lead distillation_token = {"embeddings.distillation_token", 3, 1, true};
    const iso_lead lead[] = {class_token, s->lead == 2 ? distillation_token : (iso_lead){0}, {0}};
    const iso_embedding_names names = {lead, "embeddings.position_embeddings", 3,
                                       "embeddings.patch_embeddings.projection", true};
    iso_tower *t = own;
    iso_err err;
    t->head_count = 0;
    if ((err = iso_tower_embedding(r, s, &names, t, e)) ||
        (err = iso_reader_blocks(r, s, &BLOCKS, e)) ||
        (err = iso_reader_norm(r, "layernorm", s, &t->encoder.final, e)) ||
        (err = iso_tower_head(r, s, t, "classifier", 0, e)) ||
        (err = iso_tower_head(r, s, t, "cls_classifier", 0, e)))
        return err;
    return iso_tower_head(r, s, t, "distillation_classifier", 1, e);
}

static iso_err load(iso_backbone *b, const iso_safetensors *st, iso_error *e)
{
    static const char *const prefixes[] = {"vit.", "deit.", ""};
    return iso_backbone_load(b, st, iso_reader_prefix(st, prefixes, "embeddings.cls_token"),
                             &BLOCKS, sizeof(iso_tower), visit, e);
}

const iso_backbone_family iso_vit_family = {.model_type = "vit",
                                            .help = "Vision Transformer",
                                            .read_config = read_config_vit,
                                            .load = load,
                                            .workspace_floats = iso_tower_workspace,
                                            .input = iso_tower_input,
                                            .embed = iso_tower_embed,
                                            .forward = iso_tower_forward,
                                            .backward = iso_tower_backward,
                                            .classify = iso_tower_classify};
const iso_backbone_family iso_deit_family = {.model_type = "deit",
                                             .help = "ViT with a distillation token",
                                             .read_config = read_config_deit,
                                             .load = load,
                                             .workspace_floats = iso_tower_workspace,
                                             .input = iso_tower_input,
                                             .embed = iso_tower_embed,
                                             .forward = iso_tower_forward,
                                             .backward = iso_tower_backward,
                                             .classify = iso_tower_classify};
