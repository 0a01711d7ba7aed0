/* Files of TOAST (specs/toast.md 11): an adapter as differences to the generation's start tensors,
 * and the start tensors themselves. */
#include "nn/adapter/toast_inner.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK = 4096, NAME = 64 };

static char letter_of(int which)
{
    return which == ISO_TOAST_F ? 'F' : 'G';
}

/* ---- out ---- */

static iso_named_tensor tensor(iso_arena *arena, const char *name, size_t rows, size_t columns,
                               const float *data)
{
    return (iso_named_tensor){
        iso_arena_strdup(arena, name),
        {.dtype = ISO_F32, .ndim = columns ? 2 : 1, .shape = {rows, columns}, .data = data}};
}

/* x - y, or x minus the identity (y NULL). */
static float *difference(iso_arena *arena, const float *x, const float *y, size_t d)
{
    float *out = iso_arena_alloc(arena, d * d, sizeof *out);
    for (size_t i = 0; out && i < d * d; i++)
        out[i] = x[i] - (y ? y[i] : i % (d + 1) == 0 ? 1.0F : 0.0F);
    return out;
}

static float *unit(iso_arena *arena, const float *x, size_t d)
{
    double s = 0.0;
    float *out = iso_arena_alloc(arena, d, sizeof *out);
    for (size_t i = 0; i < d; i++)
        s += (double)x[i] * (double)x[i];
    for (size_t i = 0; out && i < d; i++)
        out[i] = s > 0.0 ? (float)((double)x[i] / sqrt(s)) : 0.0F;
    return out;
}

iso_err iso_toast_to_parts(const iso_adapter *a, iso_arena *arena, iso_json *config,
                           iso_named_tensor **tensors, size_t *count, iso_error *e)
{
    const iso_toast *t = a->own;
    char name[NAME], hex[ISO_DIGEST_HEX] = "";
    size_t n = 0, d = t->d;
    bool is_good = true;
    iso_named_tensor *out = iso_arena_calloc(arena, 4 * t->depth + 2, sizeof *out);
    if (!iso_digest_is_zero(&t->start_digest))
        iso_hex(hex, t->start_digest.b, ISO_DIGEST_BYTES);
    iso_json_set(config, "lite", iso_json_boolean(t->is_lite));
    iso_json_set(config, "r", iso_json_integer((int64_t)t->r));
    iso_json_set(config, "scale", iso_json_real(t->scale));
    iso_json_set(config, "value_bias", iso_json_string(t->is_twice ? "twice" : "once"));
    iso_json_set(config, "train_p", iso_json_boolean(t->trains_P));
    iso_json_set(config, "start_digest", iso_json_string(hex));
    for (size_t i = 0; out && is_good && i < 2 * t->depth; i++) {
        int which = (int)(i % 2);
        const float *p = a->params + iso_toast_at(a, which, i / 2, 0);
        if (t->is_lite) {
            snprintf(name, sizeof name, "top_down.%zu.%c.lora_A", i / 2, letter_of(which));
            out[n++] = tensor(arena, name, t->r, d, p);
            snprintf(name, sizeof name, "top_down.%zu.%c.lora_B", i / 2, letter_of(which));
            out[n++] = tensor(arena, name, d, t->r, a->params + iso_toast_at(a, which, i / 2, 1));
        } else {
            const float *x = difference(arena, p, iso_toast_start(a, which, i / 2), d);
            snprintf(name, sizeof name, "top_down.%zu.%c", i / 2, letter_of(which));
            out[n++] = tensor(arena, name, d, d, x);
            is_good = x != NULL;
        }
        is_good = is_good && out[n - 1].name;
    }
    const float *xi = unit(arena, a->params + t->xi, d);
    if (out && is_good && xi)
        out[n++] = tensor(arena, "select.xi", d, 0, xi);
    if (out && is_good && t->trains_P) {
        const float *P = difference(arena, a->params + t->P, NULL, d);
        out[n++] = tensor(arena, "select.P", d, d, P);
        is_good = P != NULL;
    }
    if (!out || !is_good || !xi)
        return iso_nomem(e, d * d * sizeof(float));
    *tensors = out;
    *count = n;
    return ISO_OK;
}

iso_err iso_toast_write_start(const iso_backbone *b, const float *F, const float *G,
                              const char *method, const char *path, iso_error *e)
{
    size_t L = b->shape.depth, dd = b->shape.dim * b->shape.dim;
    iso_arena arena = {0};
    char hex[ISO_DIGEST_HEX], name[NAME];
    iso_err err = ISO_OK;
    iso_named_tensor *out = iso_arena_calloc(&arena, 2 * L, sizeof *out);
    float *zero = iso_arena_calloc(&arena, dd, sizeof *zero);
    if (!out || !zero)
        err = iso_nomem(e, dd * sizeof *zero);
    for (size_t i = 0; !err && i < 2 * L; i++) {
        const float *x = i % 2 == 0 ? F + i / 2 * dd : G ? G + i / 2 * dd : zero;
        snprintf(name, sizeof name, "top_down.%zu.%c", i / 2, letter_of((int)(i % 2)));
        out[i] = tensor(&arena, name, b->shape.dim, b->shape.dim, x);
        if (!out[i].name)
            err = iso_nomem(e, sizeof name);
    }
    iso_hex(hex, b->generation.b, ISO_DIGEST_BYTES);
    const char *meta[] = {"format", "isofed-top-down", "version", "1", "generation",
                          hex,      "method",          method};
    if (!err)
        err = iso_safetensors_write(path, out, 2 * L, meta, 4, e);
    iso_arena_free(&arena);
    return err;
}

/* ---- in ---- */

static iso_err read_config(const iso_json *c, iso_toast *t, char *start, iso_error *e)
{
    const char *bias, *digest;
    int64_t r;
    iso_err err;
    if ((err = iso_json_get_bool(c, "lite", true, &t->is_lite, e)) ||
        (err = iso_json_need_int(c, "r", 1, MAX_RANK, &r, e)) ||
        (err = iso_json_get_num(c, "scale", 1.0 / (double)r, &t->scale, e)) ||
        (err = iso_json_get_str(c, "value_bias", "once", &bias, e)) ||
        (err = iso_json_get_bool(c, "train_p", false, &t->trains_P, e)) ||
        (err = iso_json_get_str(c, "start_digest", "", &digest, e)))
        return err;
    t->r = (size_t)r;
    t->is_twice = strcmp(bias, "twice") == 0;
    if (!t->is_twice && strcmp(bias, "once") != 0)
        return iso_fail(e, ISO_ERR_DATA, "value_bias \"%.20s\"; expected \"once\" or \"twice\"",
                        bias);
    if (!(t->scale > 0.0 && t->scale <= 1e6))
        return iso_fail(e, ISO_ERR_DATA, "scale %g; expected above 0, up to 1e6", t->scale);
    if (strlen(digest) >= ISO_DIGEST_HEX)
        return iso_fail(e, ISO_ERR_DATA, "start_digest is no digest");
    strcpy(start, digest);
    return ISO_OK;
}

/* The adapter means nothing beside other start tensors. */
static iso_err check_start(const iso_adapter *a, const char *start, iso_error *e)
{
    const iso_toast *t = a->own;
    char here[ISO_DIGEST_HEX] = "";
    if (!iso_digest_is_zero(&t->start_digest))
        iso_hex(here, t->start_digest.b, ISO_DIGEST_BYTES);
    if (strcmp(here, start) == 0)
        return ISO_OK;
    return iso_fail(e, ISO_ERR_DATA,
                    "made from start tensors %.12s, the backbone's folder has %.12s (%s)",
                    *start ? start : "none", *here ? here : "none", ISO_TOAST_START_FILE);
}

static iso_err read_matrix(iso_adapter *a, const iso_peft_parts *p, int which, size_t block,
                           iso_error *e)
{
    const iso_toast *t = a->own;
    size_t d = t->d, down[2] = {t->r, d}, up[2] = {d, t->r}, whole[2] = {d, d};
    float *x = a->params + iso_toast_at(a, which, block, 0);
    char name[NAME];
    iso_err err;
    if (!t->is_lite) {
        const float *start = iso_toast_start(a, which, block);
        snprintf(name, sizeof name, "top_down.%zu.%c", block, letter_of(which));
        if ((err = iso_peft_parts_read(p, name, whole, 2, x, e)))
            return err;
        for (size_t i = 0; i < d * d; i++)
            x[i] += start[i];
        return ISO_OK;
    }
    snprintf(name, sizeof name, "top_down.%zu.%c.lora_A", block, letter_of(which));
    if ((err = iso_peft_parts_read(p, name, down, 2, x, e)))
        return err;
    snprintf(name, sizeof name, "top_down.%zu.%c.lora_B", block, letter_of(which));
    return iso_peft_parts_read(p, name, up, 2, a->params + iso_toast_at(a, which, block, 1), e);
}

iso_err iso_toast_from_parts(iso_adapter *a, const iso_peft_parts *p, iso_error *e)
{
    char start[ISO_DIGEST_HEX];
    iso_toast config = {0};
    iso_err err;
    if ((err = read_config(p->config, &config, start, e)) ||
        (err = iso_toast_lay_out(a, &config, e)) || (err = iso_toast_take_start(a, e)) ||
        (err = check_start(a, start, e)))
        return err;
    const iso_toast *t = a->own;
    size_t d = t->d, square[2] = {d, d};
    size_t expected = 2 * t->depth * (t->is_lite ? 2 : 1) + 1 + (t->trains_P ? 1 : 0);
    if (p->st.count != expected)
        return iso_fail(e, ISO_ERR_DATA, "%zu tensors; %zu expected", p->st.count, expected);
    for (size_t i = 0; i < 2 * t->depth; i++)
        if ((err = read_matrix(a, p, (int)(i % 2), i / 2, e)))
            return err;
    float *xi = a->params + t->xi;
    if ((err = iso_peft_parts_read(p, "select.xi", &d, 1, xi, e)))
        return err;
    for (size_t i = 0; i < d; i++)
        xi[i] *= sqrtf((float)d);
    if (t->trains_P && (err = iso_peft_parts_read(p, "select.P", square, 2, a->params + t->P, e)))
        return err;
    for (size_t i = 0; t->trains_P && i < d; i++)
        a->params[t->P + i * d + i] += 1.0F;
    return ISO_OK;
}
