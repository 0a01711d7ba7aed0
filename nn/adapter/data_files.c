/* Files of DATA (specs/data.md 2, 12): fields and tensors as data.h names them. U is stored (out,
 * r) and kept transposed; rows of all tasks lie in one tensor, this task's last. */
#include "nn/adapter/data_inner.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum { MAX_RANK = 4096, MAX_ROWS = 1 << 20, NAME = ISO_SAFETENSORS_NAME_BYTES + 1 };

static const char *const BRANCHES[] = {"lo", "hi"};
static const char *const LETTERS[] = {"A", "K", "W"};
static const char *const SIDES[] = {"down", "up"};

static size_t rank_of(const iso_data *t, size_t branch)
{
    return branch ? t->hi : t->lo;
}

/* ---- out ---- */

static iso_named_tensor matrix(iso_arena *arena, const char *name, size_t rows, size_t columns,
                               const float *data)
{
    return (iso_named_tensor){
        iso_arena_strdup(arena, name),
        {.dtype = ISO_F32, .ndim = 2, .shape = {rows, columns}, .data = data}};
}

static void put_gates(iso_json *config, const char *key, const iso_data *t, const double *values)
{
    iso_json *all = iso_json_object();
    for (size_t g = 0; g < t->groups; g++) {
        char name[24];
        iso_json *one = iso_json_object();
        snprintf(name, sizeof name, "%zu", g);
        for (size_t b = 0; b < ISO_DATA_BRANCHES; b++)
            iso_json_set(one, BRANCHES[b], iso_json_real(values[g * ISO_DATA_BRANCHES + b]));
        iso_json_set(all, name, one);
    }
    iso_json_set(config, key, all);
}

static void put_config(const iso_adapter *a, iso_json *c)
{
    const iso_data *t = a->own;
    iso_json *names = iso_json_array();
    iso_json_set(c, "rank_lo", iso_json_integer((int64_t)t->lo));
    iso_json_set(c, "rank_hi", iso_json_integer((int64_t)t->hi));
    iso_json_set(c, "prompts", iso_json_integer((int64_t)t->prompts));
    iso_json_set(c, "gap", iso_json_integer((int64_t)t->gap));
    iso_json_set(c, "reduce", iso_json_string(t->is_sum ? "sum" : "mean"));
    iso_json_set(c, "ortho_mu", iso_json_real(t->ortho));
    iso_json_set(c, "task_index", iso_json_integer((int64_t)iso_data_task(a)));
    if (t->fixed > 0.0)
        iso_json_set(c, "fixed_gate", iso_json_real(t->fixed));
    for (size_t i = 0; i < t->count; i++)
        iso_json_push(names, iso_json_string(t->parts[i].module->name));
    iso_json_set(c, "target_modules", names);
    if (t->has_gates && !(t->fixed > 0.0)) {
        put_gates(c, "gate_mean", t, t->mean);
        put_gates(c, "gate_var", t, t->variance);
    }
}

static const float *untransposed(iso_arena *arena, const float *x, size_t rows, size_t columns)
{
    float *y = iso_arena_alloc(arena, rows * columns, sizeof *y);
    for (size_t i = 0; y && i < rows; i++)
        for (size_t j = 0; j < columns; j++)
            y[j * rows + i] = x[i * columns + j];
    return y;
}

static const float *all_rows(const iso_adapter *a, iso_arena *arena, size_t g, size_t b, size_t l)
{
    const iso_data *t = a->own;
    size_t d = a->backbone->shape.dim;
    float *y = iso_arena_alloc(arena, (t->old + t->prompts) * d, sizeof *y);
    if (y) {
        memcpy(y, iso_data_frozen_rows(a, g, b, l), t->old * d * sizeof *y);
        memcpy(y + t->old * d, a->params + iso_data_rows_in_params(a, g, b, l),
               t->prompts * d * sizeof *y);
    }
    return y;
}

iso_err iso_data_to_parts(const iso_adapter *a, iso_arena *arena, iso_json *config,
                          iso_named_tensor **tensors, size_t *count, iso_error *e)
{
    const iso_data *t = a->own;
    size_t n = 0, all = t->count * 4 + t->groups * 6;
    bool is_good = true;
    char name[NAME];
    iso_named_tensor *out = iso_arena_calloc(arena, all, sizeof *out);
    put_config(a, config);
    for (size_t i = 0; out && is_good && i < t->count; i++) {
        const iso_data_part *p = &t->parts[i];
        size_t down = p->down, up = p->up;
        for (size_t b = 0; b < ISO_DATA_BRANCHES; b++) {
            size_t r = rank_of(t, b);
            const float *U = untransposed(arena, a->params + up, r, p->module->out);
            snprintf(name, sizeof name, "%s.data_%s.down", p->module->name, BRANCHES[b]);
            out[n++] = matrix(arena, name, r, p->module->in, a->params + down);
            snprintf(name, sizeof name, "%s.data_%s.up", p->module->name, BRANCHES[b]);
            out[n++] = matrix(arena, name, p->module->out, r, U);
            is_good = is_good && U && out[n - 1].name && out[n - 2].name;
            down += r * p->module->in;
            up += r * p->module->out;
        }
    }
    for (size_t i = 0; out && is_good && t->prompts && i < t->groups * 6; i++) {
        const float *rows = all_rows(a, arena, i / 6, i / 3 % 2, i % 3);
        snprintf(name, sizeof name, "gate.%zu.%s.%s", i / 6, BRANCHES[i / 3 % 2], LETTERS[i % 3]);
        out[n++] = matrix(arena, name, t->old + t->prompts, a->backbone->shape.dim, rows);
        is_good = rows && out[n - 1].name;
    }
    if (!out || !is_good)
        return iso_nomem(e, all * sizeof *out);
    *tensors = out;
    *count = n;
    return ISO_OK;
}

/* ---- in ---- */

static iso_err read_config(const iso_json *c, iso_data *t, iso_error *e)
{
    int64_t lo, hi, prompts, gap, task;
    const char *reduce;
    iso_err err;
    if ((err = iso_json_need_int(c, "rank_lo", 1, MAX_RANK, &lo, e)) ||
        (err = iso_json_need_int(c, "rank_hi", 1, MAX_RANK, &hi, e)) ||
        (err = iso_json_need_int(c, "prompts", 0, MAX_RANK, &prompts, e)) ||
        (err = iso_json_need_int(c, "gap", 1, 1 << 20, &gap, e)) ||
        (err = iso_json_get_int(c, "task_index", 0, MAX_ROWS, 0, &task, e)) ||
        (err = iso_json_get_str(c, "reduce", "mean", &reduce, e)) ||
        (err = iso_json_get_num(c, "ortho_mu", 0.0, &t->ortho, e)) ||
        (err = iso_json_get_num(c, "fixed_gate", 0.0, &t->fixed, e)))
        return err;
    t->is_sum = strcmp(reduce, "sum") == 0;
    if (!t->is_sum && strcmp(reduce, "mean") != 0)
        return iso_fail(e, ISO_ERR_DATA, "reduce \"%.20s\"; expected \"mean\" or \"sum\"", reduce);
    if (!(t->ortho >= 0.0 && t->ortho <= 1e6) || !(t->fixed >= 0.0 && t->fixed <= 1.0))
        return iso_fail(e, ISO_ERR_DATA, "ortho_mu %g, fixed_gate %g; expected >= 0 and 0..1",
                        t->ortho, t->fixed);
    if ((prompts == 0) != (t->fixed > 0.0))
        return iso_fail(e, ISO_ERR_DATA, "%lld prompts with a constant gate of %g",
                        (long long)prompts, t->fixed);
    t->lo = (size_t)lo;
    t->hi = (size_t)hi;
    t->prompts = (size_t)prompts;
    t->gap = (size_t)gap;
    t->old = (size_t)task * t->prompts;
    return ISO_OK;
}

static iso_err get_gates(const iso_json *config, const char *key, const iso_data *t, double *out,
                         double min, double max, iso_error *e)
{
    const iso_json *all = iso_json_key(config, key);
    for (size_t g = 0; g < t->groups; g++) {
        char name[24];
        snprintf(name, sizeof name, "%zu", g);
        const iso_json *one = all ? iso_json_key(all, name) : NULL;
        for (size_t b = 0; b < ISO_DATA_BRANCHES; b++) {
            double v;
            const iso_json *j = one ? iso_json_key(one, BRANCHES[b]) : NULL;
            if (!j || !iso_json_num(j, &v) || !(v >= min && v <= max))
                return iso_fail(e, ISO_ERR_DATA, "%s of group %zu, %s is no number in %g..%g", key,
                                g, BRANCHES[b], min, max);
            out[g * ISO_DATA_BRANCHES + b] = v;
        }
    }
    return ISO_OK;
}

/* The module of "NAME.data_xx.SIDE", whose length within the tensor's name goes to *length. */
static const iso_module *module_of(const iso_backbone *b, const char *tensor, size_t *length)
{
    char name[NAME];
    const char *dot = strstr(tensor, ".data_");
    if (!dot || (size_t)(dot - tensor) >= sizeof name)
        return NULL;
    *length = (size_t)(dot - tensor);
    memcpy(name, tensor, *length);
    name[*length] = 0;
    return iso_backbone_module(b, name);
}

static iso_err read_part(iso_adapter *a, const iso_peft_parts *p, const iso_data_part *part,
                         const char *module, size_t length, float *scratch, iso_error *e)
{
    const iso_data *t = a->own;
    size_t down = part->down, up = part->up, in = part->module->in, out = part->module->out;
    iso_err err = ISO_OK;
    char name[NAME + 16];
    for (size_t b = 0; !err && b < ISO_DATA_BRANCHES; b++) {
        size_t r = rank_of(t, b), ddims[2] = {r, in}, udims[2] = {out, r};
        snprintf(name, sizeof name, "%.*s.data_%s.%s", (int)length, module, BRANCHES[b], SIDES[0]);
        if ((err = iso_peft_parts_read(p, name, ddims, 2, a->params + down, e)))
            break;
        snprintf(name, sizeof name, "%.*s.data_%s.%s", (int)length, module, BRANCHES[b], SIDES[1]);
        if ((err = iso_peft_parts_read(p, name, udims, 2, scratch, e)))
            break;
        for (size_t i = 0; i < r; i++)
            for (size_t j = 0; j < out; j++)
                a->params[up + i * out + j] = scratch[j * r + i];
        down += r * in;
        up += r * out;
    }
    return err;
}

static iso_err read_rows(iso_adapter *a, const iso_peft_parts *p, iso_error *e)
{
    const iso_data *t = a->own;
    size_t d = a->backbone->shape.dim, P = t->old + t->prompts, dims[2] = {P, d};
    iso_err err = ISO_OK;
    float *rows = iso_arena_alloc(&a->arena, P * d, sizeof *rows);
    if (!rows)
        return iso_nomem(e, P * d * sizeof *rows);
    for (size_t i = 0; !err && t->prompts && i < t->groups * 6; i++) {
        size_t g = i / 6, b = i / 3 % 2, l = i % 3;
        char name[48];
        snprintf(name, sizeof name, "gate.%zu.%s.%s", g, BRANCHES[b], LETTERS[l]);
        if ((err = iso_peft_parts_read(p, name, dims, 2, rows, e)))
            break;
        memcpy(iso_data_frozen_rows(a, g, b, l), rows, t->old * d * sizeof *rows);
        memcpy(a->params + iso_data_rows_in_params(a, g, b, l), rows + t->old * d,
               t->prompts * d * sizeof *rows);
    }
    return err;
}

iso_err iso_data_from_parts(iso_adapter *a, const iso_peft_parts *p, iso_error *e)
{
    const iso_backbone *b = a->backbone;
    iso_data config = {0};
    iso_err err = read_config(p->config, &config, e);
    if (err)
        return err;
    bool *is_target = iso_arena_calloc(&a->arena, b->module_count, sizeof *is_target);
    const char **names = iso_arena_calloc(&a->arena, b->module_count, sizeof *names);
    size_t *lengths = iso_arena_calloc(&a->arena, b->module_count, sizeof *lengths);
    size_t largest = 1;
    if (!is_target || !names || !lengths)
        return iso_nomem(e, b->module_count * sizeof *names);
    for (size_t i = 0; i < p->st.count; i++) {
        size_t length = 0;
        if (strncmp(p->st.items[i].name, "gate.", 5) == 0)
            continue;
        const iso_module *m = module_of(b, p->st.items[i].name, &length);
        if (!m)
            return iso_fail(e, ISO_ERR_SHAPE,
                            "tensor \"%.120s\" belongs to no linear layer of the backbone",
                            p->st.items[i].name);
        is_target[m - b->modules] = true;
        names[m - b->modules] = p->st.items[i].name;
        lengths[m - b->modules] = length;
        largest = m->out > largest ? m->out : largest;
    }
    if ((err = iso_data_lay_out(a, &config, is_target, e)))
        return err;
    iso_data *t = a->own;
    size_t expected = t->count * 4 + (t->prompts ? t->groups * 6 : 0);
    if (p->st.count != expected)
        return iso_fail(e, ISO_ERR_DATA, "%zu tensors; %zu expected", p->st.count, expected);
    size_t r = t->lo > t->hi ? t->lo : t->hi;
    float *scratch = iso_arena_alloc(&a->arena, largest * r, sizeof *scratch);
    if (!scratch)
        return iso_nomem(e, largest * r * sizeof *scratch);
    for (size_t i = 0; !err && i < t->count; i++) {
        size_t m = (size_t)(t->parts[i].module - b->modules);
        err = read_part(a, p, &t->parts[i], names[m], lengths[m], scratch, e);
    }
    if (!err)
        err = read_rows(a, p, e);
    if (!err && iso_json_key(p->config, "gate_mean") && !(t->fixed > 0.0)) {
        if ((err = get_gates(p->config, "gate_mean", t, t->mean, 0.0, 1.0, e)) ||
            (iso_json_key(p->config, "gate_var") &&
             (err = get_gates(p->config, "gate_var", t, t->variance, 0.0, 1.0, e))))
            return err;
        t->has_gates = true;
    }
    return err;
}
