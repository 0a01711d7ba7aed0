#include "nn/train/checkpoint.h"

#include "core/safetensors.h"

#include <string.h>

#define FORMAT "isofed-checkpoint"

enum { SCALARS = sizeof(iso_checkpoint_state) / sizeof(double) };

static iso_named_tensor vector(const char *name, iso_dtype type, size_t n, const void *data)
{
    return (iso_named_tensor){.name = name,
                              .view = {.dtype = type, .ndim = 1, .shape = {n}, .data = data}};
}

iso_err iso_checkpoint_write(const char *path, const iso_checkpoint *c, iso_error *e)
{
    char run[ISO_DIGEST_HEX], data[ISO_DIGEST_HEX];
    iso_hex(run, c->run.b, ISO_DIGEST_BYTES);
    iso_hex(data, c->data.b, ISO_DIGEST_BYTES);
    const char *meta[] = {"format", FORMAT, "version", "1", "run", run, "data", data};
    iso_named_tensor tensors[5] = {
        vector("params", ISO_F32, c->count, c->params), vector("m", ISO_F32, c->count, c->m),
        vector("v", ISO_F32, c->count, c->v), vector("state", ISO_F64, SCALARS, &c->state),
        vector("best", ISO_F32, c->count, c->best)};
    return iso_safetensors_write(path, tensors, c->best ? 5 : 4, meta, 4, e);
}

static iso_err take(const iso_safetensors *st, const char *name, iso_dtype type, size_t n,
                    size_t item_bytes, void *out, iso_error *e)
{
    const iso_named_tensor *t = iso_safetensors_find(st, name);
    if (!t || t->view.dtype != type || t->view.ndim != 1 || t->view.shape[0] != n)
        return iso_fail(e, ISO_ERR_DATA, "tensor \"%s\" of %zu numbers expected", name, n);
    memcpy(out, t->view.data, n * item_bytes);
    return ISO_OK;
}

static bool has_meta(const iso_safetensors *st, const char *key, const char *value)
{
    const char *is = iso_safetensors_meta(st, key);
    return is && strcmp(is, value) == 0;
}

iso_err iso_checkpoint_read(const char *path, iso_checkpoint *c, bool *data_differs, iso_error *e)
{
    iso_safetensors st = {0};
    char run[ISO_DIGEST_HEX], data[ISO_DIGEST_HEX];
    iso_hex(run, c->run.b, ISO_DIGEST_BYTES);
    iso_hex(data, c->data.b, ISO_DIGEST_BYTES);
    iso_err err = iso_safetensors_open(&st, path, e);
    if (err)
        return err;
    if (!has_meta(&st, "format", FORMAT) || !has_meta(&st, "version", "1")) {
        err = iso_fail(e, ISO_ERR_DATA, "%s: no checkpoint of version 1", path);
        goto done;
    }
    if (!has_meta(&st, "run", run)) {
        err =
            iso_fail(e, ISO_ERR_DATA,
                     "%s: checkpoint of another run (options, backbone or adapter differ); remove "
                     "it to start again",
                     path);
        goto done;
    }
    if ((err = take(&st, "params", ISO_F32, c->count, sizeof(float), c->params, e)) ||
        (err = take(&st, "m", ISO_F32, c->count, sizeof(float), c->m, e)) ||
        (err = take(&st, "v", ISO_F32, c->count, sizeof(float), c->v, e)) ||
        (err = take(&st, "state", ISO_F64, SCALARS, sizeof(double), &c->state, e)) ||
        (c->best && (err = take(&st, "best", ISO_F32, c->count, sizeof(float), c->best, e)))) {
        iso_error_context(e, "%s", path);
        goto done;
    }
    *data_differs = !iso_digest_is_zero(&c->data) && !has_meta(&st, "data", data);
done:
    iso_safetensors_close(&st);
    return err;
}
