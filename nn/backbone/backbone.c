#include "nn/backbone/backbone.h"

#include "nn/data/preprocess.h"

#include <stdlib.h>
#include <string.h>

#define TOP_DOWN_FILE "top_down.safetensors"

enum { CONFIG_MAX_BYTES = 1 << 20, MAX_TOKENS = 16384, MAX_SIDE = 4096 };

const iso_backbone_family *iso_backbone_family_find(const char *model_type)
{
    for (size_t i = 0; iso_backbone_families[i]; i++)
        if (strcmp(iso_backbone_families[i]->model_type, model_type) == 0)
            return iso_backbone_families[i];
    return NULL;
}

static iso_err unknown_family(const char *model_type, iso_error *e)
{
    char known[128] = "";
    for (size_t i = 0; iso_backbone_families[i]; i++) {
        strncat(known, i ? ", " : "", sizeof known - strlen(known) - 1);
        strncat(known, iso_backbone_families[i]->model_type, sizeof known - strlen(known) - 1);
    }
    return iso_fail(e, ISO_ERR_DATA, "model_type \"%.40s\" is not supported; there are: %s",
                    model_type, known);
}

iso_err iso_backbone_tensor(const iso_safetensors *st, const char *prefix, const char *name,
                            const size_t *dims, const iso_tensor **out, iso_error *e)
{
    char full[256];
    if (strlen(prefix) + strlen(name) >= sizeof full)
        return iso_fail(e, ISO_ERR_INTERNAL, "tensor name too long");
    strcpy(full, prefix);
    strcat(full, name);
    const iso_named_tensor *t = iso_safetensors_find(st, full);
    if (!t)
        return iso_fail(e, ISO_ERR_DATA, "tensor \"%s\" is missing", full);
    int ndim = 0;
    bool fits = true;
    for (; dims[ndim]; ndim++)
        fits = fits && ndim < t->view.ndim && t->view.shape[ndim] == dims[ndim];
    if (!fits || ndim != t->view.ndim) {
        iso_tensor want = {.ndim = ndim};
        memcpy(want.shape, dims, (size_t)ndim * sizeof *dims);
        char is[96], wanted[96];
        iso_shape_text(&t->view, is, sizeof is);
        iso_shape_text(&want, wanted, sizeof wanted);
        return iso_fail(e, ISO_ERR_SHAPE, "tensor \"%s\" has shape %s, config.json says %s", full,
                        is, wanted);
    }
    iso_dtype d = t->view.dtype;
    if (d != ISO_F32 && d != ISO_BF16 && d != ISO_F16 && d != ISO_F64)
        return iso_fail(e, ISO_ERR_SHAPE, "tensor \"%s\" has type %s; expected F32, BF16 or F16",
                        full, iso_dtype_name(d));
    *out = &t->view;
    return ISO_OK;
}

iso_err iso_backbone_read(const iso_safetensors *st, const char *prefix, const char *name,
                          const size_t *dims, float *out, iso_error *e)
{
    const iso_tensor *t;
    iso_err err = iso_backbone_tensor(st, prefix, name, dims, &t, e);
    if (err)
        return err;
    size_t bad = iso_tensor_find_nonfinite(t);
    if (bad != SIZE_MAX)
        return iso_fail(e, ISO_ERR_NONFINITE, "tensor \"%s%s\" is not finite at index %zu", prefix,
                        name, bad);
    return iso_tensor_to_f32(t, out, e);
}

iso_err iso_backbone_resize(iso_backbone_shape *s, size_t image_size, iso_error *e)
{
    if (image_size < 1 || image_size > MAX_SIDE || image_size % s->patch)
        return iso_fail(e, ISO_ERR_DATA,
                        "\"patch_size\" is %zu, which does not divide image_size %zu", s->patch,
                        image_size);
    size_t grid = image_size / s->patch;
    if (grid * grid + s->lead > MAX_TOKENS)
        return iso_fail(e, ISO_ERR_DATA, "%zu tokens an image; at most %d are supported",
                        grid * grid + s->lead, MAX_TOKENS);
    s->image_size = image_size;
    s->tokens = grid * grid + s->lead;
    s->sample = s->channels * image_size * image_size;
    return ISO_OK;
}

static iso_err apply_options(iso_backbone_shape *s, const iso_backbone_options *o, iso_error *e)
{
    if (o && o->image_size && s->modality == ISO_MODALITY_IMAGE)
        return iso_backbone_resize(s, o->image_size, e);
    if (o && o->max_tokens && s->modality != ISO_MODALITY_IMAGE && o->max_tokens < s->tokens) {
        if (o->max_tokens < 2)
            return iso_fail(e, ISO_ERR_USAGE, "samples of %zu tokens; at least 2", o->max_tokens);
        s->sample = s->sample / s->tokens * o->max_tokens;
        s->tokens = o->max_tokens;
    }
    return ISO_OK;
}

iso_err iso_backbone_make(iso_backbone **out, const iso_json *config, const iso_safetensors *st,
                          const char *what, iso_error *e)
{
    return iso_backbone_make_as(out, config, st, NULL, what, e);
}

iso_err iso_backbone_make_as(iso_backbone **out, const iso_json *config, const iso_safetensors *st,
                             const iso_backbone_options *o, const char *what, iso_error *e)
{
    const char *type;
    iso_backbone *b = NULL;
    iso_err err = iso_json_need_str(config, "model_type", &type, e);
    if (err)
        return iso_error_context(e, "%s: config.json", what);
    const iso_backbone_family *family = iso_backbone_family_find(type);
    if (!family) {
        unknown_family(type, e);
        return e ? iso_error_context(e, "%s: config.json", what) : ISO_ERR_DATA;
    }
    iso_backbone_shape shape = {0};
    err = family->read_config(config, &shape, e);
    if (!err)
        err = apply_options(&shape, o, e);
    if (err) {
        iso_error_context(e, "%s: config.json", what);
        return err;
    }
    b = iso_calloc(1, sizeof *b);
    if (!b)
        return iso_nomem(e, sizeof *b);
    b->family = family;
    b->shape = shape;
    b->generation = iso_tensor_list_digest(st->items, st->count);
    err = family->load(b, st, e);
    if (err) {
        iso_error_context(e, "%s", what);
        iso_backbone_close(b);
        return err;
    }
    *out = b;
    return ISO_OK;
}

/* Side of the images that the folder's preprocessing makes; 0 where it says nothing. */
static iso_err preprocessed_size(const char *folder, size_t *side, iso_error *e)
{
    iso_preprocess pre;
    int height = 0, width = 0;
    char *path = iso_path_join(folder, "preprocessor_config.json");
    if (!path)
        return iso_nomem(e, strlen(folder));
    iso_err err = iso_path_exists(path) ? iso_preprocess_read(&pre, path, e) : ISO_OK;
    if (!err && iso_path_exists(path))
        iso_preprocess_size(&pre, &height, &width);
    *side = height == width && height > 0 ? (size_t)height : 0;
    free(path);
    return err;
}

iso_err iso_backbone_open(iso_backbone **out, const char *folder, iso_error *e)
{
    return iso_backbone_open_as(out, folder, &(iso_backbone_options){0}, e);
}

/* Start tensors beside the backbone, where there are: of this generation, or refused. */
static iso_err open_top_down(iso_backbone *b, const char *folder, iso_error *e)
{
    char hex[ISO_DIGEST_HEX];
    iso_err err = ISO_OK;
    iso_safetensors *st = iso_arena_calloc(&b->arena, 1, sizeof *st);
    char *path = iso_path_join(folder, TOP_DOWN_FILE);
    if (!st || !path) {
        err = iso_nomem(e, sizeof *st);
    } else if (iso_path_exists(path) && !(err = iso_safetensors_open(st, path, e))) {
        b->top_down = st;
        const char *of = iso_safetensors_meta(st, "generation");
        iso_hex(hex, b->generation.b, ISO_DIGEST_BYTES);
        if (!of || strcmp(of, hex) != 0)
            err = iso_fail(e, ISO_ERR_DATA, "%s: made for generation %.12s, the backbone is %.12s",
                           path, of ? of : "unknown", hex);
    }
    free(path);
    return err;
}

iso_err iso_backbone_open_as(iso_backbone **out, const char *folder, const iso_backbone_options *o,
                             iso_error *e)
{
    iso_json *config = NULL;
    iso_safetensors st = {0};
    iso_backbone_options own = *o;
    char *path = iso_path_join(folder, "config.json");
    iso_err err = path ? iso_json_read(path, CONFIG_MAX_BYTES, &config, e) : iso_nomem(e, 1);
    if (err)
        goto done;
    if (!own.image_size && (err = preprocessed_size(folder, &own.image_size, e)))
        goto done;
    err = iso_safetensors_open(&st, folder, e);
    if (err)
        goto done;
    err = iso_backbone_make_as(out, config, &st, &own, folder, e);
    if (!err && (err = open_top_down(*out, folder, e))) {
        iso_backbone_close(*out);
        *out = NULL;
    }
done:
    free(path);
    iso_json_free(config);
    iso_safetensors_close(&st);
    return err;
}

void iso_backbone_close(iso_backbone *b)
{
    if (!b)
        return;
    if (b->top_down)
        iso_safetensors_close((iso_safetensors *)(uintptr_t)b->top_down);
    iso_arena_free(&b->arena);
    free(b);
}

/* "vit.encoder.x" and "encoder.x" name the same module. */
static const char *without_prefix(const char *name)
{
    const char *dot = strstr(name, "encoder.");
    return dot ? dot : name;
}

const iso_module *iso_backbone_module(const iso_backbone *b, const char *name)
{
    const char *tail = without_prefix(name);
    if (strstr(name, "text_model.")) /* CLIP's other side has layers of the same names */
        return NULL;
    for (size_t i = 0; i < b->module_count; i++)
        if (strcmp(b->modules[i].name, name) == 0 ||
            strcmp(without_prefix(b->modules[i].name), tail) == 0)
            return &b->modules[i];
    return NULL;
}
