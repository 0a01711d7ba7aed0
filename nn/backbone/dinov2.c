/* DINOv2: a ViT with layer scale (Touvron et al. 2021, CaiT); with registers, tokens without
 * position stand between the class token and the patches and are never read. Trained at 518 pixels
 * and used at 224: positions are interpolated. The gated MLP of the giant model is not built. */
#include "nn/backbone/dinov2.h"

#include "nn/backbone/tower.h"

enum { MAX_REGISTERS = 64 };

static iso_err read_config(const iso_json *c, size_t registers, iso_backbone_shape *s, iso_error *e)
{
    bool is_gated;
    iso_err err;
    if ((err = iso_config_encoder(c, 1e-6, s, e)) ||
        (err = iso_config_image(c, 14, 1 + registers, s, e)) ||
        (err = iso_json_get_bool(c, "use_swiglu_ffn", false, &is_gated, e)))
        return err;
    if (is_gated)
        return iso_fail(e, ISO_ERR_DATA, "\"use_swiglu_ffn\" is true; only false is supported");
    return ISO_OK;
}

static iso_err read_config_plain(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    return read_config(c, 0, s, e);
}

static iso_err read_config_registers(const iso_json *c, iso_backbone_shape *s, iso_error *e)
{
    int64_t registers;
    iso_err err = iso_json_get_int(c, "num_register_tokens", 1, MAX_REGISTERS, 4, &registers, e);
    return err ? err : read_config(c, (size_t)registers, s, e);
}

static const iso_block_names BLOCKS = {
    .layers = "encoder.layer.",
    .norm1 = "norm1",
    .norm2 = "norm2",
    .linears = {"attention.attention.query", "attention.attention.key", "attention.attention.value",
                "attention.output.dense", "mlp.fc1", "mlp.fc2"},
    .scale1 = "layer_scale1.lambda1",
    .scale2 = "layer_scale2.lambda1",
    .bias_is_optional = true};

static iso_err visit(const iso_reader *r, iso_backbone_shape *s, void *own, iso_error *e)
{
    const iso_lead lead[] = {
        {"embeddings.cls_token", 3, 1, true},
        {s->lead > 1 ? "embeddings.register_tokens" : NULL, 3, s->lead - 1, false},
        {0}};
    const iso_embedding_names names = {lead, "embeddings.position_embeddings", 3,
                                       "embeddings.patch_embeddings.projection", true};
    iso_tower *t = own;
    iso_err err;
    t->head_count = 0;
    if ((err = iso_tower_embedding(r, s, &names, t, e)) ||
        (err = iso_reader_blocks(r, s, &BLOCKS, e)) ||
        (err = iso_reader_norm(r, "layernorm", s, &t->encoder.final, e)))
        return err;
    return iso_tower_head(r, s, t, "classifier", 0, e);
}

static iso_err load(iso_backbone *b, const iso_safetensors *st, iso_error *e)
{
    static const char *const prefixes[] = {"dinov2.", "dinov2_with_registers.", ""};
    return iso_backbone_load(b, st, iso_reader_prefix(st, prefixes, "embeddings.cls_token"),
                             &BLOCKS, sizeof(iso_tower), visit, e);
}

const iso_backbone_family iso_dinov2_family = {.model_type = "dinov2",
                                               .help = "DINOv2",
                                               .read_config = read_config_plain,
                                               .load = load,
                                               .workspace_floats = iso_tower_workspace,
                                               .input = iso_tower_input,
                                               .embed = iso_tower_embed,
                                               .forward = iso_tower_forward,
                                               .backward = iso_tower_backward,
                                               .classify = iso_tower_classify};
const iso_backbone_family iso_dinov2_registers_family = {.model_type = "dinov2_with_registers",
                                                         .help = "DINOv2 with registers",
                                                         .read_config = read_config_registers,
                                                         .load = load,
                                                         .workspace_floats = iso_tower_workspace,
                                                         .input = iso_tower_input,
                                                         .embed = iso_tower_embed,
                                                         .forward = iso_tower_forward,
                                                         .backward = iso_tower_backward,
                                                         .classify = iso_tower_classify};
