/* PEFT folders in: adapter_config.json + adapter_model.safetensors, LoRA only.
 * specs/security.md 9.1 (PEFT json) and 9.3 (ceilings), DESIGN 2 (scale). What changes the meaning
 * of A and B and is not understood here is refused with a sentence, never ignored: an adapter that
 * loads means what PEFT means by it. Writing stands in peft_write.c. */
#include "core/peft.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Patterns are tried one by one for each layer: their number is bounded with that in mind. */
enum { MAX_CONFIG_BYTES = 1024 * 1024, MAX_PATTERNS = 10000 };

static const char prefix[] = "base_model.model.";
static const char suffix_a[] = ".lora_A.weight";
static const char suffix_b[] = ".lora_B.weight";

/* ---- adapter_config.json ---- */

static iso_err check_kind(const iso_json *config, iso_error *e)
{
    const char *type, *bias;
    iso_err err = iso_json_need_str(config, "peft_type", &type, e);
    if (err)
        return err;
    if (strcmp(type, "LORA") != 0)
        return iso_fail(e, ISO_ERR_DATA, "peft_type \"%.32s\"; only LORA is read here", type);
    if ((err = iso_json_get_str(config, "bias", "none", &bias, e)))
        return err;
    if (strcmp(bias, "none") != 0)
        return iso_fail(e, ISO_ERR_DATA,
                        "bias \"%.32s\": trained biases are not read; train with bias \"none\"",
                        bias);
    static const struct {
        const char *key, *sentence;
    } flags[] = {
        {"fan_in_fan_out", "weights stored as (in, out) are not read"},
        {"use_dora", "DoRA scales each row of the weight and cannot be merged as B*A"},
        {"lora_bias", "a bias beside lora_B is not read"},
        {"use_qalora", "QALoRA pools the input and is not B*A of the whole layer"},
    };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        bool is_on;
        if ((err = iso_json_get_bool(config, flags[i].key, false, &is_on, e)))
            return err;
        if (is_on)
            return iso_fail(e, ISO_ERR_DATA, "%s is true: %s", flags[i].key, flags[i].sentence);
    }
    static const struct {
        const char *key, *sentence;
    } absent[] = {
        {"auto_mapping", "code named by a file is never loaded"},
        {"modules_to_save", "fully trained modules are not LoRA; keep heads in files of their own"},
        {"layer_replication", "replicated layers are not read"},
        {"target_parameters", "LoRA on bare parameters is not read"},
    };
    for (size_t i = 0; i < sizeof absent / sizeof *absent; i++) {
        const iso_json *j = iso_json_key(config, absent[i].key);
        bool is_empty = !j || iso_json_is_null(j) ||
                        ((iso_json_is_array(j) || iso_json_is_object(j)) && !iso_json_count(j));
        if (!is_empty)
            return iso_fail(e, ISO_ERR_DATA, "%s is set: %s", absent[i].key, absent[i].sentence);
    }
    return ISO_OK;
}

static bool is_alpha(const iso_json *j, double *out)
{
    return iso_json_num(j, out) && isfinite(*out) && fabs(*out) <= ISO_PEFT_MAX_ALPHA;
}

static bool is_rank(const iso_json *j, int64_t *out)
{
    return iso_json_int(j, out) && *out >= 1 && *out <= ISO_PEFT_MAX_RANK;
}

/* Keys are names or ends of names. PEFT would take them for regular expressions: one that is more
 * than a name is refused rather than run. */
static iso_err check_pattern(const iso_json *config, const char *which, bool is_of_ranks,
                             iso_error *e)
{
    const iso_json *pattern = iso_json_key(config, which), *value;
    if (!pattern || iso_json_is_null(pattern))
        return ISO_OK;
    if (!iso_json_is_object(pattern) || iso_json_count(pattern) > MAX_PATTERNS)
        return iso_fail(e, ISO_ERR_DATA, "%s is not an object of at most %d modules", which,
                        MAX_PATTERNS);
    void *at = NULL;
    const char *key;
    while (iso_json_next(pattern, &at, &key, &value)) {
        int64_t rank;
        double alpha;
        if (!*key || strpbrk(key, "*+?()[]{}|\\^$"))
            return iso_fail(e, ISO_ERR_DATA,
                            "%s key \"%.64s\" is a regular expression; only names of modules are "
                            "read",
                            which, key);
        if (is_of_ranks ? !is_rank(value, &rank) : !is_alpha(value, &alpha))
            return iso_fail(e, ISO_ERR_DATA, "%s[\"%.64s\"] is not %s %d", which, key,
                            is_of_ranks ? "an integer from 1 to" : "a number of at most",
                            is_of_ranks ? ISO_PEFT_MAX_RANK : ISO_PEFT_MAX_ALPHA);
    }
    return ISO_OK;
}

static iso_err check_targets(const iso_json *config, iso_error *e)
{
    /* Never used to find layers (the tensors name them), so a regular expression is harmless. */
    const iso_json *targets = iso_json_key(config, "target_modules");
    if (!targets || iso_json_is_null(targets) || iso_json_str(targets))
        return ISO_OK;
    bool is_right = iso_json_is_array(targets);
    for (size_t i = 0; is_right && i < iso_json_count(targets); i++)
        is_right = iso_json_str(iso_json_at(targets, i)) != NULL;
    return is_right ? ISO_OK
                    : iso_fail(e, ISO_ERR_DATA, "target_modules is not a list of module names");
}

static iso_err read_config(iso_peft *p, iso_error *e)
{
    const iso_json *c = p->config;
    const char *type, *base;
    int64_t r;
    if (!iso_json_is_object(c))
        return iso_fail(e, ISO_ERR_DATA, "not a JSON object");
    iso_err err = check_kind(c, e);
    if (!err)
        err = iso_json_need_int(c, "r", 1, ISO_PEFT_MAX_RANK, &r, e);
    if (!err)
        err = iso_json_get_bool(c, "use_rslora", false, &p->use_rslora, e);
    if (!err)
        err = check_pattern(c, "rank_pattern", true, e);
    if (!err)
        err = check_pattern(c, "alpha_pattern", false, e);
    if (!err)
        err = check_targets(c, e);
    if (!err)
        err = iso_json_need_str(c, "peft_type", &type, e);
    if (err)
        return err;
    if (!is_alpha(iso_json_key(c, "lora_alpha"), &p->alpha))
        return iso_fail(e, ISO_ERR_DATA, "lora_alpha is not a number of at most %d",
                        ISO_PEFT_MAX_ALPHA);
    base = iso_json_str(iso_json_key(c, "base_model_name_or_path"));
    p->r = (int)r;
    p->peft_type = iso_arena_strdup(&p->arena, type);
    p->base_model = iso_arena_strdup(&p->arena, base ? base : "");
    return p->peft_type && p->base_model ? ISO_OK : iso_nomem(e, strlen(base ? base : ""));
}

/* The value of the first key that is the module or the end of it after a dot: PEFT's rule. */
static const iso_json *match(const iso_json *pattern, const char *module)
{
    void *at = NULL;
    const char *key;
    const iso_json *value;
    if (!iso_json_is_object(pattern))
        return NULL;
    while (iso_json_next(pattern, &at, &key, &value))
        if (iso_peft_key_matches(key, module))
            return value;
    return NULL;
}

bool iso_peft_key_matches(const char *key, const char *module)
{
    size_t n = strlen(module), m = strlen(key);
    return n >= m && !strcmp(module + n - m, key) && (n == m || module[n - m - 1] == '.');
}

double iso_peft_scale(double alpha, size_t rank, bool use_rslora)
{
    return alpha / (use_rslora ? sqrt((double)rank) : (double)rank);
}

/* ---- tensors ---- */

static bool ends_with(const char *s, const char *tail)
{
    size_t n = strlen(s), m = strlen(tail);
    return n > m && !strcmp(s + n - m, tail);
}

/* The tensor of the same module with the other suffix. */
static const iso_named_tensor *partner(const iso_safetensors *st, const char *name,
                                       const char *other)
{
    char text[ISO_SAFETENSORS_NAME_BYTES + 1];
    size_t n = strlen(name);
    memcpy(text, name, n + 1);
    memcpy(text + n - strlen(other), other, strlen(other));
    return iso_safetensors_find(st, text);
}

static iso_err unknown_tensor(const char *name, iso_error *e)
{
    if (strstr(name, "lora_magnitude_vector"))
        return iso_fail(e, ISO_ERR_DATA, "tensor \"%.96s\" belongs to DoRA, which is not read",
                        name);
    if (strstr(name, "lora_embedding_"))
        return iso_fail(e, ISO_ERR_DATA, "tensor \"%.96s\": LoRA on embeddings is not read", name);
    return iso_fail(e, ISO_ERR_DATA,
                    "tensor \"%.96s\" is not named as PEFT names LoRA "
                    "(base_model.model.<module>.lora_A.weight or .lora_B.weight)",
                    name);
}

/* Shapes of one pair against each other and the configuration; fills all of `layer` but A and B. */
static iso_err check_pair(iso_peft *p, const iso_named_tensor *a, const iso_named_tensor *b,
                          iso_lora_layer *layer, iso_error *e)
{
    const iso_tensor *A = &a->view, *B = &b->view;
    const char *module = layer->module;
    char shape_a[96], shape_b[96];
    iso_shape_text(A, shape_a, sizeof shape_a);
    iso_shape_text(B, shape_b, sizeof shape_b);
    if (A->ndim != 2 || B->ndim != 2)
        return iso_fail(e, ISO_ERR_SHAPE,
                        "layer \"%.96s\": lora_A is %s, lora_B is %s; expected two matrices, the "
                        "LoRA of a linear layer",
                        module, shape_a, shape_b);
    if (A->shape[0] != B->shape[1] || !A->shape[0] || !A->shape[1] || !B->shape[0])
        return iso_fail(
            e, ISO_ERR_SHAPE,
            "layer \"%.96s\": lora_A is %s, lora_B is %s; expected (r, in) and (out, r)", module,
            shape_a, shape_b);
    int64_t rank = p->r;
    double alpha = p->alpha;
    const iso_json *own = match(iso_json_key(p->config, "rank_pattern"), module);
    if (own && !is_rank(own, &rank))
        return iso_fail(e, ISO_ERR_INTERNAL, "rank_pattern changed while it was read");
    own = match(iso_json_key(p->config, "alpha_pattern"), module);
    if (own && !is_alpha(own, &alpha))
        return iso_fail(e, ISO_ERR_INTERNAL, "alpha_pattern changed while it was read");
    if (A->shape[0] != (size_t)rank)
        return iso_fail(e, ISO_ERR_SHAPE,
                        "layer \"%.96s\": lora_A is %s, but adapter_config.json gives it rank %d",
                        module, shape_a, (int)rank);
    layer->rank = A->shape[0];
    layer->in = A->shape[1];
    layer->out = B->shape[0];
    layer->scale = iso_peft_scale(alpha, layer->rank, p->use_rslora);
    return ISO_OK;
}

static iso_err note_type(iso_peft *p, const iso_named_tensor *t, bool is_first, iso_error *e)
{
    iso_dtype d = t->view.dtype;
    if (d != ISO_F64 && d != ISO_F32 && d != ISO_F16 && d != ISO_BF16)
        return iso_fail(e, ISO_ERR_SHAPE,
                        "tensor \"%.96s\" has type %s; expected F32, F64, F16 or BF16", t->name,
                        iso_dtype_name(d));
    if (is_first || d == p->stored)
        p->stored = d;
    else if (d == ISO_F64 || p->stored == ISO_F64)
        p->stored = ISO_F64;
    else
        p->stored = ISO_F32; /* also holds both kinds of halves */
    return ISO_OK;
}

static iso_err load(const iso_named_tensor *t, const char *module, const char *which, float *out,
                    bool check_finite, iso_error *e)
{
    iso_err err = iso_tensor_to_f32(&t->view, out, e);
    if (err || !check_finite)
        return err;
    /* Of the float32 values: a double that does not fit is Inf by now. */
    iso_tensor loaded = t->view;
    loaded.dtype = ISO_F32;
    loaded.data = out;
    size_t at = iso_tensor_find_nonfinite(&loaded);
    if (at == SIZE_MAX)
        return ISO_OK;
    return iso_fail(e, ISO_ERR_NONFINITE, "layer \"%.96s\": %s[%zu] is %g", module, which, at,
                    (double)out[at]);
}

static int compare_modules(const void *a, const void *b)
{
    return strcmp(((const iso_lora_layer *)a)->module, ((const iso_lora_layer *)b)->module);
}

static size_t padded(size_t floats)
{
    return (floats + 15) / 16 * 16; /* each factor begins on a cache line */
}

/* Checks all pairs and adds up what they take; the floats follow in a second pass. */
static iso_err read_pairs(iso_peft *p, const iso_safetensors *st, size_t *floats, iso_error *e)
{
    p->layers = iso_arena_alloc(&p->arena, st->count / 2 + 1, sizeof *p->layers);
    if (!p->layers)
        return iso_nomem(e, st->count * sizeof *p->layers);
    for (size_t i = 0; i < st->count; i++) {
        const iso_named_tensor *t = &st->items[i];
        bool is_a = ends_with(t->name, suffix_a), is_b = ends_with(t->name, suffix_b);
        size_t ends = sizeof prefix - 1 + sizeof suffix_a - 1;
        if ((!is_a && !is_b) || strncmp(t->name, prefix, sizeof prefix - 1) != 0 ||
            strlen(t->name) <= ends)
            return unknown_tensor(t->name, e);
        iso_err err = note_type(p, t, i == 0, e);
        if (err)
            return err;
        const iso_named_tensor *other = partner(st, t->name, is_a ? suffix_b : suffix_a);
        if (!other)
            return iso_fail(e, ISO_ERR_DATA, "tensor \"%.96s\" has no %s beside it", t->name,
                            is_a ? "lora_B" : "lora_A");
        if (is_b)
            continue;
        iso_lora_layer *layer = &p->layers[p->count];
        *layer = (iso_lora_layer){0};
        layer->module = iso_arena_strdup(&p->arena, t->name + sizeof prefix - 1);
        if (!layer->module)
            return iso_nomem(e, strlen(t->name));
        layer->module[strlen(t->name) - ends] = 0;
        if ((err = check_pair(p, t, other, layer, e)))
            return err;
        p->count++;
        *floats += padded(iso_tensor_count(&t->view)) + padded(iso_tensor_count(&other->view));
    }
    if (!p->count)
        return iso_fail(e, ISO_ERR_DATA, "no LoRA layer in it");
    return ISO_OK;
}

static iso_err read_tensors(iso_peft *p, const iso_safetensors *st, bool check_finite, iso_error *e)
{
    size_t floats = 0;
    iso_err err = read_pairs(p, st, &floats, e);
    if (err)
        return err;
    float *next = iso_arena_alloc(&p->arena, floats, sizeof *next);
    if (!next)
        return iso_nomem(e, floats * sizeof *next);
    iso_lora_layer *layer = p->layers;
    for (size_t i = 0; i < st->count && !err; i++) {
        const iso_named_tensor *a = &st->items[i];
        if (!ends_with(a->name, suffix_a))
            continue;
        const iso_named_tensor *b = partner(st, a->name, suffix_b);
        layer->A = next;
        layer->B = next + padded(iso_tensor_count(&a->view));
        next = layer->B + padded(iso_tensor_count(&b->view));
        err = load(a, layer->module, "lora_A", layer->A, check_finite, e);
        if (!err)
            err = load(b, layer->module, "lora_B", layer->B, check_finite, e);
        layer++;
    }
    /* Order of keys is not order of modules: "a.b" stands before "a" there. */
    qsort(p->layers, p->count, sizeof *p->layers, compare_modules);
    return err;
}

/* ---- public ---- */

iso_err iso_peft_parse(iso_peft *p, const void *config, size_t config_size, const void *tensors,
                       size_t tensors_size, bool check_finite, const char *what, iso_error *e)
{
    *p = (iso_peft){0};
    iso_safetensors st = {0};
    iso_err err = ISO_OK;
    if (config_size > MAX_CONFIG_BYTES)
        err = iso_fail(e, ISO_ERR_DATA, "adapter_config.json has %zu bytes; at most %d are read",
                       config_size, MAX_CONFIG_BYTES);
    if (!err)
        err = iso_json_parse(config, config_size, "adapter_config.json", &p->config, e);
    if (!err && (err = read_config(p, e)))
        iso_error_context(e, "adapter_config.json");
    if (!err)
        err = iso_safetensors_parse(&st, tensors, tensors_size, "adapter_model.safetensors", e);
    if (!err && (err = read_tensors(p, &st, check_finite, e)))
        iso_error_context(e, "adapter_model.safetensors");
    iso_safetensors_close(&st);
    if (err) {
        iso_error_context(e, "%s", what);
        iso_peft_close(p);
    }
    return err;
}

iso_err iso_peft_open(iso_peft *p, const char *folder, bool check_finite, iso_error *e)
{
    *p = (iso_peft){0};
    iso_buf config = {0};
    iso_map tensors = {0};
    char *config_path = iso_path_join(folder, "adapter_config.json");
    char *tensors_path = iso_path_join(folder, "adapter_model.safetensors");
    char *pickle_path = iso_path_join(folder, "adapter_model.bin");
    iso_err err;
    if (!config_path || !tensors_path || !pickle_path)
        err = iso_nomem(e, strlen(folder));
    else if (!iso_path_exists(tensors_path) && iso_path_exists(pickle_path))
        err = iso_fail(e, ISO_ERR_DATA, "%s may hold code and is not read; convert to safetensors",
                       pickle_path);
    else
        err = iso_read_file(config_path, MAX_CONFIG_BYTES, &config, e);
    if (!err)
        err = iso_map_open(&tensors, tensors_path, e);
    if (!err)
        err = iso_peft_parse(p, config.data, config.size, tensors.data, tensors.size, check_finite,
                             folder, e);
    iso_map_close(&tensors);
    iso_buf_free(&config);
    free(config_path);
    free(tensors_path);
    free(pickle_path);
    return err;
}

void iso_peft_close(iso_peft *p)
{
    iso_json_free(p->config);
    iso_arena_free(&p->arena);
    *p = (iso_peft){0};
}

const iso_lora_layer *iso_peft_find(const iso_peft *p, const char *module)
{
    iso_lora_layer key = {.module = (char *)(uintptr_t)module};
    return p->count ? bsearch(&key, p->layers, p->count, sizeof key, compare_modules) : NULL;
}
