/* Adapter folders of any peft_type; see peft_parts.h. LoRA's own rules stand in peft.c. */
#include "core/peft_parts.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_CONFIG_BYTES = 1024 * 1024 };

static const char *const meta[] = {"format", "pt"};

static iso_err type_of(const iso_json *config, const char **type, iso_error *e)
{
    if (!iso_json_is_object(config))
        return iso_fail(e, ISO_ERR_DATA, "adapter_config.json: not a JSON object");
    iso_err err = iso_json_need_str(config, "peft_type", type, e);
    return err ? (e ? iso_error_context(e, "adapter_config.json") : err) : ISO_OK;
}

iso_err iso_peft_type_in(const void *config, size_t config_size, char **out, iso_error *e)
{
    iso_json *j = NULL;
    const char *type;
    iso_err err = ISO_OK;
    *out = NULL;
    if (config_size > MAX_CONFIG_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "adapter_config.json has %zu bytes; at most %d are read",
                        config_size, MAX_CONFIG_BYTES);
    if (!(err = iso_json_parse(config, config_size, "adapter_config.json", &j, e)) &&
        !(err = type_of(j, &type, e)) && !(*out = iso_strdup(type)))
        err = iso_nomem(e, strlen(type));
    iso_json_free(j);
    return err;
}

iso_err iso_peft_type_of(const char *folder, char **out, iso_error *e)
{
    iso_buf text = {0};
    char *path = iso_path_join(folder, "adapter_config.json");
    *out = NULL;
    iso_err err =
        path ? iso_read_file(path, MAX_CONFIG_BYTES, &text, e) : iso_nomem(e, strlen(folder));
    if (!err && (err = iso_peft_type_in(text.data, text.size, out, e)))
        iso_error_context(e, "%s", folder);
    iso_buf_free(&text);
    free(path);
    return err;
}

static iso_err check_tensors(const iso_safetensors *st, bool check_finite, iso_error *e)
{
    for (size_t i = 0; i < st->count; i++) {
        const iso_named_tensor *t = &st->items[i];
        iso_dtype d = t->view.dtype;
        if (d != ISO_F64 && d != ISO_F32 && d != ISO_F16 && d != ISO_BF16)
            return iso_fail(e, ISO_ERR_SHAPE,
                            "tensor \"%.96s\" has type %s; expected F32, F64, F16 or BF16", t->name,
                            iso_dtype_name(d));
        size_t bad = check_finite ? iso_tensor_find_nonfinite(&t->view) : SIZE_MAX;
        if (bad != SIZE_MAX)
            return iso_fail(e, ISO_ERR_NONFINITE, "tensor \"%.96s\" is not finite at index %zu",
                            t->name, bad);
    }
    return st->count ? ISO_OK : iso_fail(e, ISO_ERR_DATA, "an adapter without tensors");
}

iso_err iso_peft_parts_parse(iso_peft_parts *p, const void *config, size_t config_size,
                             const void *tensors, size_t tensors_size, bool check_finite,
                             const char *what, iso_error *e)
{
    *p = (iso_peft_parts){0};
    iso_err err = ISO_OK;
    if (config_size > MAX_CONFIG_BYTES)
        err = iso_fail(e, ISO_ERR_DATA, "adapter_config.json has %zu bytes; at most %d are read",
                       config_size, MAX_CONFIG_BYTES);
    if (!err && !(err = iso_json_parse(config, config_size, "adapter_config.json", &p->config, e)))
        err = type_of(p->config, &p->peft_type, e);
    if (!err && !(err = iso_safetensors_parse(&p->st, tensors, tensors_size,
                                              "adapter_model.safetensors", e)))
        err = check_tensors(&p->st, check_finite, e);
    if (err) {
        iso_error_context(e, "%s", what);
        iso_peft_parts_close(p);
    }
    return err;
}

iso_err iso_peft_parts_open(iso_peft_parts *p, const char *folder, bool check_finite, iso_error *e)
{
    iso_buf config = {0};
    iso_map map = {0};
    char *config_path = iso_path_join(folder, "adapter_config.json");
    char *tensors_path = iso_path_join(folder, "adapter_model.safetensors");
    *p = (iso_peft_parts){0};
    iso_err err = config_path && tensors_path
                      ? iso_read_file(config_path, MAX_CONFIG_BYTES, &config, e)
                      : iso_nomem(e, strlen(folder));
    if (!err)
        err = iso_map_open(&map, tensors_path, e);
    if (!err)
        err = iso_peft_parts_parse(p, config.data, config.size, map.data, map.size, check_finite,
                                   folder, e);
    if (err)
        iso_map_close(&map);
    else
        p->map = map;
    iso_buf_free(&config);
    free(config_path);
    free(tensors_path);
    return err;
}

void iso_peft_parts_close(iso_peft_parts *p)
{
    iso_json_free(p->config);
    iso_safetensors_close(&p->st);
    iso_map_close(&p->map);
    *p = (iso_peft_parts){0};
}

iso_err iso_peft_parts_read(const iso_peft_parts *p, const char *name, const size_t *dims, int n,
                            float *out, iso_error *e)
{
    const iso_named_tensor *t = iso_safetensors_find(&p->st, name);
    if (!t)
        return iso_fail(e, ISO_ERR_DATA, "tensor \"%.120s\" is missing", name);
    iso_tensor want = {.ndim = n};
    memcpy(want.shape, dims, (size_t)n * sizeof *dims);
    if (!iso_tensor_same_shape(&t->view, &want)) {
        char is[96], wanted[96];
        iso_shape_text(&t->view, is, sizeof is);
        iso_shape_text(&want, wanted, sizeof wanted);
        return iso_fail(e, ISO_ERR_SHAPE, "tensor \"%.120s\" is %s; expected %s", name, is, wanted);
    }
    return iso_tensor_to_f32(&t->view, out, e);
}

iso_err iso_peft_parts_write_bufs(const iso_json *config, const iso_named_tensor *tensors,
                                  size_t count, iso_buf *config_out, iso_buf *tensors_out,
                                  iso_error *e)
{
    iso_err err = iso_json_dump(config, ISO_JSON_PRETTY, config_out, e);
    return err ? err : iso_safetensors_write_buf(tensors_out, tensors, count, meta, 1, e);
}

iso_err iso_peft_parts_write(const char *folder, const iso_json *config,
                             const iso_named_tensor *tensors, size_t count, iso_error *e)
{
    iso_buf text = {0};
    char *config_path = iso_path_join(folder, "adapter_config.json");
    char *tensors_path = iso_path_join(folder, "adapter_model.safetensors");
    iso_err err = config_path && tensors_path ? iso_json_dump(config, ISO_JSON_PRETTY, &text, e)
                                              : iso_nomem(e, strlen(folder));
    if (!err)
        err = iso_make_dirs(folder, 0755, e);
    /* The configuration last: a folder that has one has its tensors. */
    if (!err)
        err = iso_safetensors_write(tensors_path, tensors, count, meta, 1, e);
    if (!err)
        err = iso_write_file(config_path, text.data, text.size, 0644, e);
    iso_buf_free(&text);
    free(config_path);
    free(tensors_path);
    return err;
}
