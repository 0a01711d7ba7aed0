#include "nn/adapter/adapter.h"

#include <stdlib.h>
#include <string.h>

const iso_adapter_kind *iso_adapter_kind_find(const char *name)
{
    for (size_t i = 0; iso_adapter_kinds[i]; i++)
        if (strcmp(iso_adapter_kinds[i]->name, name) == 0)
            return iso_adapter_kinds[i];
    return NULL;
}

bool iso_adapter_matches(const char *module, const char *target)
{
    size_t m = strlen(module), t = strlen(target);
    if (t == 0 || t > m || strcmp(module + m - t, target) != 0)
        return false;
    return t == m || module[m - t - 1] == '.';
}

iso_err iso_adapter_blank(iso_adapter **out, const iso_backbone *b, const iso_adapter_kind *kind,
                          iso_error *e)
{
    iso_adapter *a = iso_calloc(1, sizeof *a);
    if (!a)
        return iso_nomem(e, sizeof *a);
    a->kind = kind;
    a->backbone = b;
    a->is_adapted = iso_arena_calloc(&a->arena, b->matrix_count, sizeof *a->is_adapted);
    if (!a->is_adapted) {
        iso_adapter_close(a);
        return iso_nomem(e, b->matrix_count);
    }
    *out = a;
    return ISO_OK;
}

/* What follows from the modules that the kind took. */
void iso_adapter_settle(iso_adapter *a)
{
    const iso_backbone *b = a->backbone;
    if (!a->decay_count)
        a->decay_count = a->param_count;
    a->lowest_block = b->shape.depth;
    for (size_t i = 0; i < b->module_count; i++)
        if (a->is_adapted[b->modules[i].matrix] && b->modules[i].block < a->lowest_block)
            a->lowest_block = b->modules[i].block;
    if (a->kind->first_block)
        a->lowest_block = a->kind->first_block(a, a->lowest_block);
}

iso_err iso_adapter_create(iso_adapter **out, const iso_backbone *b, const iso_adapter_options *o,
                           iso_error *e)
{
    const iso_adapter_kind *kind = iso_adapter_kind_find(o->kind);
    if (!kind)
        return iso_fail(e, ISO_ERR_USAGE, "adapter kind \"%.40s\" is not known", o->kind);
    iso_adapter *a = NULL;
    iso_err err = iso_adapter_blank(&a, b, kind, e);
    if (err)
        return err;
    err = kind->create(a, o, e);
    if (err) {
        iso_adapter_close(a);
        return err;
    }
    iso_adapter_settle(a);
    *out = a;
    return ISO_OK;
}

iso_err iso_adapter_from_peft(iso_adapter **out, const iso_backbone *b, const iso_peft *p,
                              iso_error *e)
{
    const iso_adapter_kind *kind = NULL;
    for (size_t i = 0; iso_adapter_kinds[i] && !kind; i++)
        if (iso_adapter_kinds[i]->from_peft &&
            strcmp(iso_adapter_kinds[i]->peft_type, p->peft_type) == 0)
            kind = iso_adapter_kinds[i];
    if (!kind)
        return iso_fail(e, ISO_ERR_DATA, "peft_type \"%.40s\" is not supported", p->peft_type);
    iso_adapter *a = NULL;
    iso_err err = iso_adapter_blank(&a, b, kind, e);
    if (err)
        return err;
    err = kind->from_peft(a, p, e);
    if (err) {
        iso_adapter_close(a);
        return err;
    }
    iso_adapter_settle(a);
    *out = a;
    return ISO_OK;
}

/* From the files of a kind other than LoRA. */
static iso_err from_parts(iso_adapter **out, const iso_backbone *b, const iso_peft_parts *p,
                          iso_error *e)
{
    const iso_adapter_kind *kind = NULL;
    for (size_t i = 0; iso_adapter_kinds[i] && !kind; i++)
        if (iso_adapter_kinds[i]->from_parts &&
            strcmp(iso_adapter_kinds[i]->peft_type, p->peft_type) == 0)
            kind = iso_adapter_kinds[i];
    if (!kind)
        return iso_fail(e, ISO_ERR_DATA, "peft_type \"%.40s\" is not supported", p->peft_type);
    char here[ISO_DIGEST_HEX];
    const char *generation;
    iso_adapter *a = NULL;
    iso_err err = iso_json_get_str(p->config, "generation", "", &generation, e);
    if (err)
        return err;
    iso_hex(here, b->generation.b, ISO_DIGEST_BYTES);
    if (*generation && strcmp(generation, here) != 0)
        return iso_fail(e, ISO_ERR_DATA, "trained on generation %.12s, the backbone is %.12s",
                        generation, here);
    err = iso_adapter_blank(&a, b, kind, e);
    if (err)
        return err;
    err = kind->from_parts(a, p, e);
    if (err) {
        iso_adapter_close(a);
        return err;
    }
    iso_adapter_settle(a);
    *out = a;
    return ISO_OK;
}

static bool is_lora(const char *peft_type)
{
    return strcmp(peft_type, "LORA") == 0;
}

iso_err iso_adapter_open(iso_adapter **out, const iso_backbone *b, const char *folder, iso_error *e)
{
    iso_peft p = {0};
    iso_peft_parts parts = {0};
    char *type = NULL;
    iso_err err = iso_peft_type_of(folder, &type, e);
    if (err)
        return err;
    if (is_lora(type)) {
        if (!(err = iso_peft_open(&p, folder, true, e)) &&
            (err = iso_adapter_from_peft(out, b, &p, e)))
            iso_error_context(e, "%s", folder);
    } else if (!(err = iso_peft_parts_open(&parts, folder, true, e)) &&
               (err = from_parts(out, b, &parts, e))) {
        iso_error_context(e, "%s", folder);
    }
    iso_peft_close(&p);
    iso_peft_parts_close(&parts);
    free(type);
    return err;
}

iso_err iso_adapter_parse(iso_adapter **out, const iso_backbone *b, const void *config,
                          size_t config_size, const void *tensors, size_t tensors_size,
                          const char *what, iso_error *e)
{
    iso_peft p = {0};
    iso_peft_parts parts = {0};
    char *type = NULL;
    iso_err err = iso_peft_type_in(config, config_size, &type, e);
    if (err)
        return e ? iso_error_context(e, "%s", what) : err;
    if (is_lora(type)) {
        if (!(err =
                  iso_peft_parse(&p, config, config_size, tensors, tensors_size, true, what, e)) &&
            (err = iso_adapter_from_peft(out, b, &p, e)))
            iso_error_context(e, "%s", what);
    } else if (!(err = iso_peft_parts_parse(&parts, config, config_size, tensors, tensors_size,
                                            true, what, e)) &&
               (err = from_parts(out, b, &parts, e))) {
        iso_error_context(e, "%s", what);
    }
    iso_peft_close(&p);
    iso_peft_parts_close(&parts);
    free(type);
    return err;
}

static iso_err as_output(const iso_adapter *a, iso_arena *arena, const char *base_model,
                         const iso_json *extra, iso_peft_output *o, iso_error *e)
{
    iso_lora_layer *layers = NULL;
    size_t count = 0;
    iso_err err = a->kind->to_layers(a, arena, &layers, &count, e);
    if (err)
        return err;
    *o = (iso_peft_output){.layers = layers,
                           .count = count,
                           .base_model = base_model,
                           .use_rslora = a->use_rslora,
                           .extra = extra};
    return ISO_OK;
}

/* What the kind says of itself, and what every adapter says. */
static iso_err as_parts(const iso_adapter *a, iso_arena *arena, const char *base_model,
                        const iso_json *extra, iso_json **config, iso_named_tensor **tensors,
                        size_t *count, iso_error *e)
{
    char hex[ISO_DIGEST_HEX];
    iso_json *c = *config = iso_json_object();
    iso_hex(hex, a->backbone->generation.b, ISO_DIGEST_BYTES);
    iso_json_set(c, "peft_type", iso_json_string(a->kind->peft_type));
    iso_json_set(c, "base_model_name_or_path",
                 base_model ? iso_json_string(base_model) : iso_json_null());
    iso_json_set(c, "generation", iso_json_string(hex));
    iso_err err = a->kind->to_parts(a, arena, c, tensors, count, e);
    if (!err && extra)
        iso_json_set(c, "isofed", iso_json_copy(extra));
    return err;
}

iso_err iso_adapter_write(const iso_adapter *a, const char *folder, const char *base_model,
                          const iso_json *extra, iso_error *e)
{
    iso_arena arena = {0};
    iso_json *config = NULL;
    iso_named_tensor *tensors = NULL;
    size_t count = 0;
    iso_peft_output o;
    iso_err err;
    if (!a->kind->to_parts) {
        if (!(err = as_output(a, &arena, base_model, extra, &o, e)))
            err = iso_peft_write(folder, &o, e);
    } else if (!(err = as_parts(a, &arena, base_model, extra, &config, &tensors, &count, e))) {
        err = iso_peft_parts_write(folder, config, tensors, count, e);
    }
    iso_json_free(config);
    iso_arena_free(&arena);
    return err;
}

iso_err iso_adapter_write_folded(const iso_adapter *a, const char *folder, const char *base_model,
                                 iso_error *e)
{
    iso_arena arena = {0};
    iso_peft_output o;
    if (!a->kind->to_layers)
        return iso_fail(e, ISO_ERR_USAGE, "adapters of kind %s have no folded form", a->kind->name);
    iso_err err = as_output(a, &arena, base_model, NULL, &o, e);
    if (!err)
        err = iso_peft_write(folder, &o, e);
    iso_arena_free(&arena);
    return err;
}

iso_err iso_adapter_write_bufs(const iso_adapter *a, const char *base_model, const iso_json *extra,
                               iso_buf *config, iso_buf *tensors, iso_error *e)
{
    iso_arena arena = {0};
    iso_json *fields = NULL;
    iso_named_tensor *list = NULL;
    size_t count = 0;
    iso_peft_output o;
    iso_err err;
    if (!a->kind->to_parts) {
        if (!(err = as_output(a, &arena, base_model, extra, &o, e)))
            err = iso_peft_write_bufs(&o, config, tensors, e);
    } else if (!(err = as_parts(a, &arena, base_model, extra, &fields, &list, &count, e))) {
        err = iso_peft_parts_write_bufs(fields, list, count, config, tensors, e);
    }
    iso_json_free(fields);
    iso_arena_free(&arena);
    return err;
}

static iso_err copy_by_files(iso_adapter **out, const iso_adapter *a, iso_error *e)
{
    iso_buf config = {0}, tensors = {0};
    iso_err err = iso_adapter_write_bufs(a, NULL, NULL, &config, &tensors, e);
    if (!err)
        err = iso_adapter_parse(out, a->backbone, config.data, config.size, tensors.data,
                                tensors.size, "copy", e);
    if (!err)
        (*out)->is_folded = a->is_folded;
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    return err;
}

iso_err iso_adapter_copy(iso_adapter **out, const iso_adapter *a, iso_error *e)
{
    iso_arena arena = {0};
    iso_lora_layer *layers = NULL;
    size_t count = 0;
    if (a->kind->to_parts)
        return copy_by_files(out, a, e);
    iso_err err = a->kind->to_layers(a, &arena, &layers, &count, e);
    if (!err) {
        iso_peft p = {.layers = layers,
                      .count = count,
                      .peft_type = (char *)(uintptr_t)a->kind->peft_type,
                      .use_rslora = a->use_rslora};
        err = iso_adapter_from_peft(out, a->backbone, &p, e);
    }
    iso_arena_free(&arena);
    return err;
}

bool iso_adapter_runs(const iso_adapter *a)
{
    return a->kind->run_grad && !a->is_folded;
}

iso_err iso_adapter_targets(const iso_backbone *b, const iso_adapter_options *o, bool *is_target,
                            iso_error *e)
{
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
    for (size_t j = 0; j < b->module_count; j++) {
        is_target[j] = o->target_count == 0;
        for (size_t i = 0; i < o->target_count && !is_target[j]; i++)
            is_target[j] = iso_adapter_matches(b->modules[j].name, o->targets[i]);
        is_target[j] = is_target[j] && b->modules[j].block >= o->first_block;
    }
    return ISO_OK;
}

void iso_adapter_close(iso_adapter *a)
{
    if (!a)
        return;
    iso_arena_free(&a->arena);
    free(a);
}
