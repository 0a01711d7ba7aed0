/* Recognises a path by what it holds, never by its name alone, and reads it (DESIGN 6). */
#include "cli/inspect_read.h"

#include "core/peft.h"
#include "crypto/init.h"
#include "crypto/key.h"
#include "crypto/manifest.h"
#include "merge/guard.h"
#include "merge/jobs.h"
#include "merge/linalg/linalg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT_BYTES = 1 << 20 };

static void set_text(iso_json *o, const char *key, const char *value)
{
    iso_json_set(o, key, iso_json_string(value ? value : ""));
}

static void set_count(iso_json *o, const char *key, uint64_t value)
{
    iso_json_set(o, key, iso_json_integer((int64_t)value));
}

static void set_hex(iso_json *o, const char *key, const uint8_t *bytes, size_t n)
{
    char hex[129];
    iso_hex(hex, bytes, n);
    iso_json_set(o, key, iso_json_string(hex));
}

/* ---- tensors ---- */
typedef struct {
    const iso_safetensors *st;
    iso_inspected *out;
    bool want_spectra;
    double *norms, *nonfinite; /* counts as doubles: one array kind */
} tensor_work;

static bool is_float(iso_dtype t)
{
    return t == ISO_F64 || t == ISO_F32 || t == ISO_F16 || t == ISO_BF16;
}

static iso_err tensor_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    tensor_work *w = ctx;
    const iso_tensor *v = &w->st->items[i].view;
    size_t count = iso_tensor_count(v);
    if (!is_float(v->dtype) || count == 0)
        return ISO_OK;
    double *x = iso_arena_alloc(scratch, count, sizeof *x);
    if (!x)
        return iso_nomem(e, count * sizeof *x);
    iso_err err = iso_tensor_to_f64(v, x, e);
    if (err)
        return err;
    for (size_t k = 0; k < count; k++)
        w->nonfinite[i] += !isfinite(x[k]);
    w->norms[i] = iso_norm(x, count);
    iso_spectrum *s = &w->out->spectra[i];
    s->norm = w->norms[i];
    if (w->want_spectra && v->ndim == 2 && w->nonfinite[i] == 0.0)
        err = iso_svd(v->shape[0], v->shape[1], x, NULL, s->S, NULL, scratch, e);
    else
        s->count = 0;
    return err ? iso_error_context(e, "tensor \"%s\"", s->name) : ISO_OK;
}

static iso_json *shape_json(const iso_tensor *v)
{
    char text[96];
    iso_shape_text(v, text, sizeof text);
    return iso_json_string(text);
}

static iso_err read_tensors(const iso_safetensors *st, bool want_spectra, iso_inspected *out,
                            iso_error *e)
{
    tensor_work w = {.st = st, .out = out, .want_spectra = want_spectra};
    out->count = st->count;
    out->spectra = iso_arena_calloc(&out->arena, st->count + 1, sizeof *out->spectra);
    w.norms = iso_arena_calloc(&out->arena, st->count + 1, sizeof *w.norms);
    w.nonfinite = iso_arena_calloc(&out->arena, st->count + 1, sizeof *w.nonfinite);
    if (!out->spectra || !w.norms || !w.nonfinite)
        return iso_nomem(e, st->count * sizeof *out->spectra);
    for (size_t i = 0; i < st->count; i++) {
        const iso_tensor *v = &st->items[i].view;
        out->spectra[i].name = iso_arena_strdup(&out->arena, st->items[i].name);
        if (!want_spectra || v->ndim != 2 || !is_float(v->dtype))
            continue;
        out->spectra[i].count = v->shape[0] < v->shape[1] ? v->shape[0] : v->shape[1];
        out->spectra[i].S =
            iso_arena_calloc(&out->arena, out->spectra[i].count + 1, sizeof(double));
        if (!out->spectra[i].S)
            return iso_nomem(e, out->spectra[i].count * sizeof(double));
    }
    iso_jobs jobs = {.count = st->count, .run = tensor_job, .ctx = &w};
    iso_err err = iso_jobs_run(&jobs, e);
    if (err)
        return err;
    uint64_t parameters = 0, bytes = 0, bad = 0;
    bool seen[ISO_DTYPE_COUNT] = {false};
    iso_json *list = iso_json_array(), *types = iso_json_array();
    double square = 0.0;
    for (size_t i = 0; i < st->count; i++) {
        const iso_tensor *v = &st->items[i].view;
        iso_json *t = iso_json_object();
        set_text(t, "name", st->items[i].name);
        iso_json_set(t, "shape", shape_json(v));
        set_text(t, "dtype", iso_dtype_name(v->dtype));
        if (is_float(v->dtype))
            iso_json_set(t, "norm", iso_json_real(w.norms[i]));
        if (w.nonfinite[i] > 0.0)
            set_count(t, "nonfinite", (uint64_t)w.nonfinite[i]);
        iso_json_push(list, t);
        parameters += iso_tensor_count(v);
        bytes += iso_tensor_bytes(v);
        bad += w.nonfinite[i] > 0.0;
        square += w.norms[i] * w.norms[i];
        if (!seen[v->dtype])
            iso_json_push(types, iso_json_string(iso_dtype_name(v->dtype)));
        seen[v->dtype] = true;
    }
    iso_digest digest = iso_tensor_list_digest(st->items, st->count);
    set_count(out->json, "tensor_count", st->count);
    set_count(out->json, "parameters", parameters);
    set_count(out->json, "bytes", bytes);
    iso_json_set(out->json, "dtypes", types);
    iso_json_set(out->json, "norm", iso_json_real(sqrt(square)));
    set_count(out->json, "nonfinite_tensors", bad);
    set_hex(out->json, "digest", digest.b, ISO_DIGEST_BYTES);
    iso_json_set(out->json, "tensors", list);
    return ISO_OK;
}

static iso_err open_and_read_tensors(const char *path, bool want_spectra, iso_inspected *out,
                                     iso_error *e)
{
    iso_safetensors st = {0};
    iso_err err = iso_safetensors_open(&st, path, e);
    if (!err)
        err = read_tensors(&st, want_spectra, out, e);
    iso_safetensors_close(&st);
    return err;
}

/* ---- adapters ---- */
typedef struct {
    const iso_peft *p;
    iso_inspected *out;
} adapter_work;

static iso_err layer_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    adapter_work *w = ctx;
    iso_spectrum *s = &w->out->spectra[i];
    iso_err err = iso_lora_spectrum(&w->p->layers[i], s->S, &s->count, scratch, e);
    double square = 0.0;
    for (size_t k = 0; k < s->count; k++)
        square += s->S[k] * s->S[k];
    s->norm = sqrt(square);
    return err ? iso_error_context(e, "layer \"%s\"", s->name) : ISO_OK;
}

static iso_json *layer_json(const iso_lora_layer *l, const iso_spectrum *s)
{
    iso_json *o = iso_json_object(), *values = iso_json_array();
    for (size_t k = 0; k < s->count; k++)
        iso_json_push(values, iso_json_real(s->S[k]));
    set_text(o, "name", l->module);
    set_count(o, "out", l->out);
    set_count(o, "in", l->in);
    set_count(o, "rank", l->rank);
    set_count(o, "numerical_rank", s->count);
    iso_json_set(o, "scale", iso_json_real(l->scale));
    iso_json_set(o, "norm", iso_json_real(s->norm));
    iso_json_set(o, "energy_first",
                 iso_json_real(s->norm > 0.0 ? s->S[0] * s->S[0] / (s->norm * s->norm) : 0.0));
    iso_json_set(o, "spectrum", values);
    return o;
}

static iso_err read_layers(const iso_peft *p, iso_inspected *out, iso_error *e)
{
    out->count = p->count;
    out->spectra = iso_arena_calloc(&out->arena, p->count + 1, sizeof *out->spectra);
    if (!out->spectra)
        return iso_nomem(e, p->count * sizeof *out->spectra);
    for (size_t i = 0; i < p->count; i++) {
        iso_spectrum *s = &out->spectra[i];
        s->name = iso_arena_strdup(&out->arena, p->layers[i].module);
        s->S = iso_arena_calloc(&out->arena, p->layers[i].rank + 1, sizeof *s->S);
        if (!s->name || !s->S)
            return iso_nomem(e, p->layers[i].rank * sizeof *s->S);
    }
    adapter_work w = {p, out};
    iso_jobs jobs = {.count = p->count, .run = layer_job, .ctx = &w};
    iso_err err = iso_jobs_run(&jobs, e);
    if (err)
        return err;
    uint64_t rank_min = UINT64_MAX, rank_max = 0, parameters = 0;
    double square = 0.0, first = 0.0;
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < p->count; i++) {
        const iso_lora_layer *l = &p->layers[i];
        const iso_spectrum *s = &out->spectra[i];
        iso_json_push(list, layer_json(l, s));
        rank_min = l->rank < rank_min ? l->rank : rank_min;
        rank_max = l->rank > rank_max ? l->rank : rank_max;
        parameters += l->rank * (l->in + l->out);
        square += s->norm * s->norm;
        first += s->count ? s->S[0] * s->S[0] : 0.0;
    }
    char ranks[48];
    snprintf(ranks, sizeof ranks, rank_min == rank_max ? "%llu" : "%llu..%llu",
             (unsigned long long)(p->count ? rank_min : 0), (unsigned long long)rank_max);
    set_count(out->json, "layer_count", p->count);
    set_text(out->json, "ranks", ranks);
    set_count(out->json, "parameters", parameters);
    iso_json_set(out->json, "norm", iso_json_real(sqrt(square)));
    iso_json_set(out->json, "energy_first", iso_json_real(square > 0.0 ? first / square : 0.0));
    iso_json_set(out->json, "layers", list);
    return ISO_OK;
}

static iso_err read_lora(const char *path, iso_inspected *out, iso_error *e)
{
    iso_peft p = {0};
    iso_safetensors st = {0};
    char *tensors = iso_path_join(path, "adapter_model.safetensors");
    if (!tensors)
        return iso_nomem(e, strlen(path));
    iso_err err = iso_peft_open(&p, path, true, e);
    if (err)
        goto done;
    set_text(out->json, "base_model", p.base_model);
    iso_json_set(out->json, "alpha", iso_json_real(p.alpha));
    iso_json_set(out->json, "rslora", iso_json_boolean(p.use_rslora));
    set_text(out->json, "dtype", iso_dtype_name(p.stored));
    const iso_json *made = iso_json_key(p.config, "isofed");
    if (made)
        iso_json_set(out->json, "made_by", iso_json_copy(made));
    err = read_layers(&p, out, e);
    if (!err)
        err = iso_safetensors_open(&st, tensors, e);
    if (!err) {
        iso_digest d = iso_tensor_list_digest(st.items, st.count);
        set_hex(out->json, "digest", d.b, ISO_DIGEST_BYTES);
    }
done:
    iso_safetensors_close(&st);
    iso_peft_close(&p);
    free(tensors);
    return err;
}

/* Kinds other than LoRA are listed by their tensors. */
static iso_err read_adapter(const char *path, const char *config_path, bool want_spectra,
                            iso_inspected *out, iso_error *e)
{
    iso_json *config = NULL;
    const char *type = NULL;
    char *tensors = iso_path_join(path, "adapter_model.safetensors");
    iso_err err = tensors ? iso_json_read(config_path, MAX_TEXT_BYTES, &config, e)
                          : iso_nomem(e, strlen(path));
    if (!err)
        err = iso_json_need_str(config, "peft_type", &type, e);
    if (!err) {
        set_text(out->json, "kind", "adapter");
        set_text(out->json, "peft_type", type);
        err = strcmp(type, "LORA") == 0 ? read_lora(path, out, e)
                                        : open_and_read_tensors(tensors, want_spectra, out, e);
    }
    iso_json_free(config);
    free(tensors);
    return err;
}

/* ---- backbones ---- */
static iso_err read_backbone(const char *path, const char *config_path, bool want_spectra,
                             iso_inspected *out, iso_error *e)
{
    static const char *const keys[] = {"model_type",          "hidden_size", "num_hidden_layers",
                                       "num_attention_heads", "image_size",  "patch_size",
                                       "vocab_size"};
    iso_json *config = NULL;
    iso_err err = iso_json_read(config_path, MAX_TEXT_BYTES, &config, e);
    if (err)
        return err;
    set_text(out->json, "kind", "backbone");
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        const iso_json *v = iso_json_key(config, keys[i]);
        if (v)
            iso_json_set(out->json, keys[i], iso_json_copy(v));
    }
    iso_json_free(config);
    return open_and_read_tensors(path, want_spectra, out, e);
}

/* ---- releases and keys ---- */
static iso_err read_release(const char *manifest_path, iso_inspected *out, iso_error *e)
{
    static const char *const kinds[] = {"merge", "rollback", "generation"};
    iso_buf text = {0}, signature = {0};
    iso_manifest m;
    uint64_t bytes = 0;
    char *signature_path = iso_strf("%s.minisig", manifest_path);
    iso_err err =
        signature_path ? iso_read_file(manifest_path, MAX_TEXT_BYTES, &text, e) : iso_nomem(e, 1);
    if (!err)
        err = iso_manifest_parse(text.data, text.size, &out->arena, &m, e);
    if (err)
        goto done;
    iso_digest digest = iso_digest_of(text.data, text.size);
    set_text(out->json, "kind", "release");
    set_count(out->json, "number", m.number);
    set_text(out->json, "release_kind", kinds[m.kind]);
    set_hex(out->json, "federation", m.federation, sizeof m.federation);
    set_count(out->json, "epoch", m.epoch);
    set_count(out->json, "generation", m.generation);
    set_hex(out->json, "generation_digest", m.generation_digest.b, ISO_DIGEST_BYTES);
    set_count(out->json, "previous_number", m.previous_number);
    set_text(out->json, "method", m.method);
    set_text(out->json, "convention", m.spectrum);
    set_count(out->json, "tasks", m.task_count);
    set_count(out->json, "files", m.file_count);
    if (iso_manifest_total(&m, &bytes))
        set_count(out->json, "bytes", bytes);
    set_count(out->json, "created_ms", m.created_ms);
    set_count(out->json, "valid_until_ms", m.valid_until_ms);
    set_hex(out->json, "digest", digest.b, ISO_DIGEST_BYTES);
    uint8_t signer[8];
    iso_error ignored;
    /* who claims to have signed; `isofed releases verify` says whether it is true */
    bool is_signed =
        iso_path_exists(signature_path) &&
        !iso_read_file(signature_path, MAX_TEXT_BYTES, &signature, &ignored) &&
        !iso_minisign_signer(signature.data, signature.size, signature_path, signer, &ignored);
    if (is_signed)
        set_hex(out->json, "signed_by", signer, sizeof signer);
    else
        iso_json_set(out->json, "signed_by", iso_json_null());
done:
    iso_buf_free(&text);
    iso_buf_free(&signature);
    free(signature_path);
    return err;
}

static iso_err read_key(const char *path, iso_inspected *out, iso_error *e)
{
    iso_key key = {0};
    iso_err err = iso_crypto_init(e);
    if (!err)
        err = iso_key_read_public(path, &key, e);
    if (err)
        return err;
    set_text(out->json, "kind", "key");
    set_text(out->json, "key_kind", iso_key_kind_name(key.kind));
    set_text(out->json, "algorithm", iso_key_kind_signs(key.kind) ? "Ed25519" : "X25519");
    set_hex(out->json, "public_key", key.public_key, ISO_PK_BYTES);
    set_count(out->json, "created_ms", key.created_ms);
    iso_key_free(&key);
    return ISO_OK;
}

static iso_err read_minisign(const char *path, const iso_buf *text, iso_inspected *out,
                             iso_error *e)
{
    iso_minisign_public p;
    uint8_t id[8], fingerprint[ISO_FINGERPRINT_BYTES];
    char words[ISO_FINGERPRINT_TEXT];
    if (iso_minisign_public_parse(text->data, text->size, path, &p, e) == ISO_OK) {
        iso_minisign_fingerprint(&p, fingerprint);
        iso_fingerprint_text(fingerprint, words);
        set_text(out->json, "kind", "minisign public key");
        set_text(out->json, "fingerprint", words);
        return ISO_OK;
    }
    if (iso_minisign_signer(text->data, text->size, path, id, e) == ISO_OK) {
        set_text(out->json, "kind", "minisign signature");
        set_hex(out->json, "signed_by", id, sizeof id);
        return ISO_OK;
    }
    return iso_fail(e, ISO_ERR_DATA,
                    "%s: starts like a minisign file, but is neither public key nor signature",
                    path);
}

static bool starts_with(const iso_buf *b, const char *head)
{
    return b->size >= strlen(head) && memcmp(b->data, head, strlen(head)) == 0;
}

static iso_err read_other_file(const char *path, bool want_spectra, iso_inspected *out,
                               iso_error *e)
{
    iso_buf text = {0};
    iso_error ignored;
    iso_err err = iso_read_file(path, MAX_TEXT_BYTES, &text, &ignored); /* larger: tensors */
    bool is_text = !err && text.size >= 2;
    size_t length = strlen(path);
    bool is_named = length > 12 && strcmp(path + length - 12, ".safetensors") == 0;
    if (is_text && starts_with(&text, "isofed key 1")) {
        err = read_key(path, out, e);
    } else if (is_text && starts_with(&text, "untrusted comment:")) {
        err = read_minisign(path, &text, out, e);
    } else if (is_text && starts_with(&text, "{")) {
        err = read_release(path, out, e);
    } else {
        set_text(out->json, "kind", "tensors");
        err = open_and_read_tensors(path, want_spectra, out, e);
        if (err == ISO_ERR_DATA && !is_named)
            err = iso_fail(e, ISO_ERR_DATA,
                           "%s: neither tensors (safetensors), adapter, backbone, release nor key",
                           path);
    }
    iso_buf_free(&text);
    return err;
}

iso_err iso_inspect(const char *path, bool want_spectra, iso_inspected *out, iso_error *e)
{
    *out = (iso_inspected){.path = path, .json = iso_json_object()};
    if (!out->json)
        return iso_nomem(e, 1);
    set_text(out->json, "path", path);
    char *adapter = iso_path_join(path, "adapter_config.json"),
         *release = iso_path_join(path, "release.json");
    char *config = iso_path_join(path, "config.json");
    size_t length = strlen(path);
    bool is_index = length > 11 && strcmp(path + length - 11, ".index.json") == 0;
    iso_err err;
    if (!adapter || !release || !config)
        err = iso_nomem(e, length);
    else if (!iso_path_exists(path))
        err = iso_fail(e, ISO_ERR_DATA, "%s: no such file or folder", path);
    else if (iso_is_dir(path) && iso_path_exists(release))
        err = read_release(release, out, e);
    else if (iso_is_dir(path) && iso_path_exists(adapter))
        err = read_adapter(path, adapter, want_spectra, out, e);
    else if (iso_is_dir(path) && iso_path_exists(config))
        err = read_backbone(path, config, want_spectra, out, e);
    else if (iso_is_dir(path) || is_index) {
        set_text(out->json, "kind", "tensors");
        err = open_and_read_tensors(path, want_spectra, out, e);
    } else
        err = read_other_file(path, want_spectra, out, e);
    free(adapter);
    free(release);
    free(config);
    return err;
}

void iso_inspected_free(iso_inspected *i)
{
    iso_json_free(i->json);
    iso_arena_free(&i->arena);
    *i = (iso_inspected){0};
}
