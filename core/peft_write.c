/* PEFT folders out. The configuration gives most layers r and lora_alpha; the others stand in
 * rank_pattern and alpha_pattern under their full names. PEFT takes the first key that a module's
 * name is or ends with, so keys go longest first, and a layer whose name merely ends with another
 * layer's key gets a key of its own. */
#include "core/peft.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What one layer needs in the configuration. */
typedef struct {
    const iso_lora_layer *layer;
    double rank, alpha;
} wish;

/* alpha so that alpha / r (or / sqrt r) is the scale again, to the bit where that is possible. A
 * whole number is tried first: that is what people wrote. */
static double alpha_of(const iso_lora_layer *layer, bool use_rslora)
{
    double r = (double)layer->rank, alpha = layer->scale * (use_rslora ? sqrt(r) : r);
    double near[] = {round(alpha), alpha, nextafter(alpha, (double)INFINITY),
                     nextafter(alpha, -(double)INFINITY)};
    for (size_t i = 0; i < sizeof near / sizeof *near; i++)
        if (iso_peft_scale(near[i], layer->rank, use_rslora) == layer->scale)
            return near[i];
    return alpha;
}

static iso_json *number(double v)
{
    return v == round(v) && fabs(v) < 1e15 ? iso_json_integer((int64_t)v) : iso_json_real(v);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* The most frequent of n values, which are sorted here; the smallest among equals. */
static double commonest(double *values, size_t n)
{
    double best = values[0];
    size_t best_run = 0;
    qsort(values, n, sizeof *values, by_value);
    for (size_t i = 0, end; i < n; i = end) {
        for (end = i; end < n && values[end] == values[i]; end++)
            ;
        if (end - i > best_run) {
            best_run = end - i;
            best = values[i];
        }
    }
    return best;
}

static int longest_first(const void *a, const void *b)
{
    const char *x = ((const wish *)a)->layer->module, *y = ((const wish *)b)->layer->module;
    size_t n = strlen(x), m = strlen(y);
    return n != m ? (n > m ? -1 : 1) : strcmp(x, y);
}

/* {module: value} of the layers that differ from `base`; `at` is the field's offset in wish. */
static iso_json *pattern(const wish *wishes, size_t n, size_t at, double base)
{
    iso_json *object = iso_json_object();
    for (size_t i = 0; i < n; i++) {
        double value = *(const double *)(const void *)((const char *)&wishes[i] + at);
        bool is_needed = value != base;
        /* Keys that could catch this layer are shorter, hence further down. */
        for (size_t k = i + 1; k < n && !is_needed; k++)
            is_needed = *(const double *)(const void *)((const char *)&wishes[k] + at) != base &&
                        iso_peft_key_matches(wishes[k].layer->module, wishes[i].layer->module);
        if (is_needed)
            iso_json_set(object, wishes[i].layer->module, number(value));
    }
    return object;
}

static iso_err make_wishes(const iso_peft_output *o, wish *wishes, iso_error *e)
{
    for (size_t i = 0; i < o->count; i++) {
        const iso_lora_layer *layer = &o->layers[i];
        if (layer->rank < 1 || layer->rank > ISO_PEFT_MAX_RANK || !layer->in || !layer->out)
            return iso_fail(e, ISO_ERR_SHAPE,
                            "layer \"%.96s\": %zux%zu of rank %zu cannot be written; rank is 1..%d",
                            layer->module, layer->out, layer->in, layer->rank, ISO_PEFT_MAX_RANK);
        double alpha = alpha_of(layer, o->use_rslora);
        if (!isfinite(alpha) || fabs(alpha) > ISO_PEFT_MAX_ALPHA)
            return iso_fail(e, ISO_ERR_NONFINITE,
                            "layer \"%.96s\": scale %g needs a lora_alpha beyond %d", layer->module,
                            layer->scale, ISO_PEFT_MAX_ALPHA);
        wishes[i] = (wish){layer, (double)layer->rank, alpha};
    }
    qsort(wishes, o->count, sizeof *wishes, longest_first);
    return ISO_OK;
}

static int by_module(const void *a, const void *b)
{
    return strcmp((*(const iso_lora_layer *const *)a)->module,
                  (*(const iso_lora_layer *const *)b)->module);
}

/* Full names: the end of a name could stand elsewhere in a model that we do not see. */
static iso_json *targets(const wish *wishes, size_t n, const iso_lora_layer **scratch)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < n; i++)
        scratch[i] = wishes[i].layer;
    qsort(scratch, n, sizeof *scratch, by_module);
    for (size_t i = 0; i < n; i++)
        iso_json_push(list, iso_json_string(scratch[i]->module));
    return list;
}

static iso_err put_config(const iso_peft_output *o, iso_buf *out, iso_error *e)
{
    size_t n = o->count;
    iso_json *config = iso_json_object();
    wish *wishes = iso_calloc(n, sizeof *wishes);
    double *values = iso_calloc(n, sizeof *values);
    const iso_lora_layer **scratch = iso_calloc(n, sizeof *scratch);
    iso_err err = ISO_OK;
    if (!config || !wishes || !values || !scratch) {
        err = iso_nomem(e, n * (sizeof *wishes + sizeof *values + sizeof *scratch));
        goto done;
    }
    if ((err = make_wishes(o, wishes, e)))
        goto done;
    for (size_t i = 0; i < n; i++)
        values[i] = wishes[i].rank;
    double rank = commonest(values, n);
    for (size_t i = 0; i < n; i++)
        values[i] = wishes[i].alpha;
    double alpha = commonest(values, n);
    iso_json_set(config, "peft_type", iso_json_string("LORA"));
    iso_json_set(config, "r", number(rank));
    iso_json_set(config, "lora_alpha", number(alpha));
    iso_json_set(config, "use_rslora", iso_json_boolean(o->use_rslora));
    iso_json_set(config, "rank_pattern", pattern(wishes, n, offsetof(wish, rank), rank));
    iso_json_set(config, "alpha_pattern", pattern(wishes, n, offsetof(wish, alpha), alpha));
    iso_json_set(config, "target_modules", targets(wishes, n, scratch));
    iso_json_set(config, "base_model_name_or_path",
                 o->base_model ? iso_json_string(o->base_model) : iso_json_null());
    iso_json_set(config, "bias", iso_json_string("none"));
    iso_json_set(config, "fan_in_fan_out", iso_json_boolean(false));
    iso_json_set(config, "inference_mode", iso_json_boolean(true));
    iso_json_set(config, "lora_dropout", iso_json_real(0));
    iso_json_set(config, "task_type", iso_json_null());
    if (o->extra)
        iso_json_set(config, "isofed", iso_json_copy(o->extra));
    err = iso_json_dump(config, ISO_JSON_PRETTY, out, e);
done:
    free(scratch);
    free(values);
    free(wishes);
    iso_json_free(config);
    return err;
}

/* Names and views of all factors; the names live in `arena`. */
static iso_err name_tensors(const iso_peft_output *o, iso_arena *arena, iso_named_tensor **out,
                            iso_error *e)
{
    static const char *const suffix[2] = {".lora_A.weight", ".lora_B.weight"};
    iso_named_tensor *list = iso_arena_calloc(arena, o->count, 2 * sizeof *list);
    if (!list)
        return iso_nomem(e, o->count * 2 * sizeof *list);
    for (size_t i = 0; i < o->count; i++) {
        const iso_lora_layer *layer = &o->layers[i];
        size_t bytes = strlen(layer->module) + sizeof "base_model.model." + sizeof ".lora_A.weight";
        for (int k = 0; k < 2; k++) {
            char *name = iso_arena_alloc(arena, bytes, 1);
            if (!name)
                return iso_nomem(e, bytes);
            snprintf(name, bytes, "base_model.model.%s%s", layer->module, suffix[k]);
            list[2 * i + (size_t)k] = (iso_named_tensor){
                name,
                {.dtype = ISO_F32,
                 .ndim = 2,
                 .shape = {k ? layer->out : layer->rank, k ? layer->rank : layer->in},
                 .data = k ? layer->B : layer->A},
            };
        }
    }
    *out = list;
    return ISO_OK;
}

/* transformers and PEFT refuse a file that does not say "pt". */
static const char *const meta[] = {"format", "pt"};

static iso_err check_output(const iso_peft_output *o, iso_error *e)
{
    return o->count ? ISO_OK : iso_fail(e, ISO_ERR_DATA, "an adapter without layers");
}

iso_err iso_peft_write_bufs(const iso_peft_output *o, iso_buf *config, iso_buf *tensors,
                            iso_error *e)
{
    iso_arena arena = {0};
    iso_named_tensor *list = NULL;
    iso_err err = check_output(o, e);
    if (!err)
        err = put_config(o, config, e);
    if (!err)
        err = name_tensors(o, &arena, &list, e);
    if (!err)
        err = iso_safetensors_write_buf(tensors, list, 2 * o->count, meta, 1, e);
    iso_arena_free(&arena);
    return err;
}

iso_err iso_peft_write(const char *folder, const iso_peft_output *o, iso_error *e)
{
    iso_arena arena = {0};
    iso_buf config = {0};
    iso_named_tensor *list = NULL;
    char *config_path = iso_path_join(folder, "adapter_config.json");
    char *tensors_path = iso_path_join(folder, "adapter_model.safetensors");
    iso_err err = config_path && tensors_path ? ISO_OK : iso_nomem(e, strlen(folder));
    if (!err)
        err = check_output(o, e);
    if (!err)
        err = put_config(o, &config, e);
    if (!err)
        err = name_tensors(o, &arena, &list, e);
    if (!err)
        err = iso_make_dirs(folder, 0755, e);
    /* The configuration last: a folder that has one has its tensors. */
    if (!err)
        err = iso_safetensors_write(tensors_path, list, 2 * o->count, meta, 1, e);
    if (!err)
        err = iso_write_file(config_path, config.data, config.size, 0644, e);
    iso_buf_free(&config);
    iso_arena_free(&arena);
    free(config_path);
    free(tensors_path);
    return err;
}
