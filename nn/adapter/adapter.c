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

static iso_err start(iso_adapter **out, const iso_backbone *b, const iso_adapter_kind *kind,
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
static void finish(iso_adapter *a)
{
    const iso_backbone *b = a->backbone;
    a->lowest_block = b->shape.depth;
    for (size_t i = 0; i < b->module_count; i++)
        if (a->is_adapted[b->modules[i].matrix] && b->modules[i].block < a->lowest_block)
            a->lowest_block = b->modules[i].block;
}

iso_err iso_adapter_create(iso_adapter **out, const iso_backbone *b, const iso_adapter_options *o,
                           iso_error *e)
{
    const iso_adapter_kind *kind = iso_adapter_kind_find(o->kind);
    if (!kind)
        return iso_fail(e, ISO_ERR_USAGE, "adapter kind \"%.40s\" is not known", o->kind);
    iso_adapter *a = NULL;
    iso_err err = start(&a, b, kind, e);
    if (err)
        return err;
    err = kind->create(a, o, e);
    if (err) {
        iso_adapter_close(a);
        return err;
    }
    finish(a);
    *out = a;
    return ISO_OK;
}

iso_err iso_adapter_from_peft(iso_adapter **out, const iso_backbone *b, const iso_peft *p,
                              iso_error *e)
{
    const iso_adapter_kind *kind = NULL;
    for (size_t i = 0; iso_adapter_kinds[i] && !kind; i++)
        if (strcmp(iso_adapter_kinds[i]->peft_type, p->peft_type) == 0)
            kind = iso_adapter_kinds[i];
    if (!kind)
        return iso_fail(e, ISO_ERR_DATA, "peft_type \"%.40s\" is not supported", p->peft_type);
    iso_adapter *a = NULL;
    iso_err err = start(&a, b, kind, e);
    if (err)
        return err;
    err = kind->from_peft(a, p, e);
    if (err) {
        iso_adapter_close(a);
        return err;
    }
    finish(a);
    *out = a;
    return ISO_OK;
}

iso_err iso_adapter_open(iso_adapter **out, const iso_backbone *b, const char *folder, iso_error *e)
{
    iso_peft p = {0};
    iso_err err = iso_peft_open(&p, folder, true, e);
    if (err)
        return err;
    err = iso_adapter_from_peft(out, b, &p, e);
    if (err)
        iso_error_context(e, "%s", folder);
    iso_peft_close(&p);
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

iso_err iso_adapter_write(const iso_adapter *a, const char *folder, const char *base_model,
                          const iso_json *extra, iso_error *e)
{
    iso_arena arena = {0};
    iso_peft_output o;
    iso_err err = as_output(a, &arena, base_model, extra, &o, e);
    if (!err)
        err = iso_peft_write(folder, &o, e);
    iso_arena_free(&arena);
    return err;
}

iso_err iso_adapter_write_bufs(const iso_adapter *a, const char *base_model, const iso_json *extra,
                               iso_buf *config, iso_buf *tensors, iso_error *e)
{
    iso_arena arena = {0};
    iso_peft_output o;
    iso_err err = as_output(a, &arena, base_model, extra, &o, e);
    if (!err)
        err = iso_peft_write_bufs(&o, config, tensors, e);
    iso_arena_free(&arena);
    return err;
}

iso_err iso_adapter_copy(iso_adapter **out, const iso_adapter *a, iso_error *e)
{
    iso_arena arena = {0};
    iso_lora_layer *layers = NULL;
    size_t count = 0;
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

void iso_adapter_close(iso_adapter *a)
{
    if (!a)
        return;
    iso_arena_free(&a->arena);
    free(a);
}
