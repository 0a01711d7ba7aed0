/* Inputs of `isofed merge`: kinds, digests, base models, names that meet or do not. */
#include "cli/merge_inputs.h"

#include "cli/merge_tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_adapter(const char *path)
{
    char *config = iso_path_join(path, "adapter_config.json");
    bool found = config && iso_path_exists(config);
    free(config);
    return found;
}

static iso_err open_adapter(iso_merge_inputs *in, size_t i, iso_error *e)
{
    const char *path = in->paths[i];
    iso_err err = iso_peft_open(&in->adapters[i], path, true, e);
    if (err)
        return err;
    in->lora[i] = (iso_lora_input){path, in->adapters[i].layers, in->adapters[i].count};
    char *tensors = iso_path_join(path, "adapter_model.safetensors");
    iso_safetensors st = {0};
    if (!tensors)
        return iso_nomem(e, strlen(path));
    err = iso_safetensors_open(&st, tensors, e);
    if (!err)
        in->digests[i] = iso_tensor_list_digest(st.items, st.count);
    iso_safetensors_close(&st);
    free(tensors);
    return err;
}

static iso_err open_tensors(iso_merge_inputs *in, size_t i, iso_error *e)
{
    iso_err err = iso_safetensors_open(&in->files[i], in->paths[i], e);
    if (err)
        return err;
    in->dense[i] = (iso_dense_input){in->paths[i], in->files[i].items, in->files[i].count};
    return ISO_OK;
}

static void digest_tensors(iso_merge_inputs *in, bool is_wanted)
{
    uint64_t bytes = 0;
    for (size_t i = 0; i < in->count; i++)
        for (size_t k = 0; k < in->files[i].map_count; k++)
            bytes += in->files[i].maps[k].size;
    if (!is_wanted && bytes > ISO_DIGEST_LIMIT_BYTES)
        return;
    for (size_t i = 0; i < in->count; i++)
        in->digests[i] = iso_tensor_list_digest(in->files[i].items, in->files[i].count);
}

/* N4: "adapters/k says base_model X, the others say Y". Empty names say nothing. */
static iso_err check_bases(const iso_merge_inputs *in, iso_error *e)
{
    size_t first = in->count;
    for (size_t i = 0; i < in->count; i++) {
        const char *base = in->adapters[i].base_model;
        if (!base || !*base)
            continue;
        if (first == in->count)
            first = i;
        else if (strcmp(base, in->adapters[first].base_model) != 0)
            return iso_fail(e, ISO_ERR_DATA,
                            "%s says base model \"%.48s\", %s says \"%.48s\": leave one out, or "
                            "pass --any-base",
                            in->paths[i], base, in->paths[first], in->adapters[first].base_model);
    }
    return ISO_OK;
}

iso_err iso_merge_inputs_open(iso_merge_inputs *in, const iso_arg_list *paths, const char *base,
                              bool any_base, bool want_digests, iso_error *e)
{
    size_t n = paths->count;
    *in = (iso_merge_inputs){.count = n, .paths = paths->items};
    in->is_lora = n > 0 && is_adapter(paths->items[0]);
    in->adapters = iso_calloc(n, sizeof *in->adapters);
    in->files = iso_calloc(n, sizeof *in->files);
    in->lora = iso_arena_calloc(&in->arena, n + 1, sizeof *in->lora);
    in->dense = iso_arena_calloc(&in->arena, n + 1, sizeof *in->dense);
    in->digests = iso_arena_calloc(&in->arena, n + 1, sizeof *in->digests);
    if (!in->adapters || !in->files || !in->lora || !in->dense || !in->digests)
        return iso_nomem(e, n * sizeof *in->adapters);
    for (size_t i = 0; i < n; i++) {
        if (!iso_path_exists(in->paths[i]))
            return iso_fail(e, ISO_ERR_DATA, "%s: no such file or folder", in->paths[i]);
        if (is_adapter(in->paths[i]) != in->is_lora)
            return iso_fail(
                e, ISO_ERR_USAGE, "%s is %s, %s is not: adapters and whole tensors do not mix",
                in->paths[i], in->is_lora ? "no PEFT folder" : "a PEFT folder", in->paths[0]);
        iso_err err = in->is_lora ? open_adapter(in, i, e) : open_tensors(in, i, e);
        if (err)
            return err;
    }
    if (in->is_lora && base)
        return iso_fail(e, ISO_ERR_USAGE, "--base is for whole weights; adapters need none");
    if (base) {
        iso_err err = iso_safetensors_open(&in->base_file, base, e);
        if (err)
            return err;
        in->base = (iso_dense_input){base, in->base_file.items, in->base_file.count};
    }
    if (!in->is_lora)
        digest_tensors(in, want_digests);
    return in->is_lora && !any_base ? check_bases(in, e) : ISO_OK;
}

void iso_merge_inputs_close(iso_merge_inputs *in)
{
    for (size_t i = 0; in->adapters && in->files && i < in->count; i++) {
        if (in->is_lora)
            iso_peft_close(&in->adapters[i]);
        iso_safetensors_close(&in->files[i]);
    }
    iso_safetensors_close(&in->base_file);
    free(in->adapters);
    free(in->files);
    iso_arena_free(&in->arena);
    *in = (iso_merge_inputs){0};
}

/* ---- names ---- */
typedef struct {
    const char *name;
    size_t input;
    const iso_tensor *view;      /* whole tensors */
    const iso_lora_layer *layer; /* adapters */
} entry;

static void shape_of(const entry *x, char *out, size_t out_bytes)
{
    if (x->view)
        iso_shape_text(x->view, out, out_bytes);
    else
        snprintf(out, out_bytes, "%zux%zu", x->layer->out, x->layer->in);
}

static iso_err compare_shapes(const iso_merge_inputs *in, const entry *group, size_t n,
                              iso_merge_match *m, iso_error *e)
{
    enum { SHOWN = 5 };
    char first[64], other[64];
    shape_of(&group[0], first, sizeof first);
    for (size_t i = 1; i < n; i++) {
        shape_of(&group[i], other, sizeof other);
        if (strcmp(first, other) == 0)
            continue;
        m->differ++;
        return m->differ > SHOWN ? ISO_OK
                                 : iso_buf_printf(&m->differ_names, e, "%s%s is %s in %s, %s in %s",
                                                  m->differ > 1 ? "; " : "", group->name, first,
                                                  iso_path_base(in->paths[group[0].input]), other,
                                                  iso_path_base(in->paths[group[i].input]));
    }
    return ISO_OK;
}

static int by_name(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = strcmp(x->name, y->name);
    return order ? order : (x->input > y->input) - (x->input < y->input);
}

static iso_err note(const iso_merge_inputs *in, const entry *group, size_t n, iso_merge_match *m,
                    iso_error *e)
{
    enum { SHOWN = 6 };
    m->total++;
    if (n == in->count)
        return ISO_OK;
    m->partial++;
    if (n > 1)
        return iso_buf_printf(&m->lines, e,
                              "%s %s: in %zu of %zu inputs; missing ones count as zero\n",
                              in->is_lora ? "layer" : "tensor", group->name, n, in->count);
    m->unmatched++;
    if (m->unmatched > SHOWN)
        return ISO_OK;
    return iso_buf_printf(&m->unmatched_names, e, "%s%s (only in %s)", m->unmatched > 1 ? ", " : "",
                          group->name, in->paths[group->input]);
}

iso_err iso_merge_inputs_match(const iso_merge_inputs *in, iso_merge_match *out, iso_error *e)
{
    *out = (iso_merge_match){0};
    size_t total = 0, k = 0;
    for (size_t i = 0; i < in->count; i++)
        total += in->is_lora ? in->lora[i].count : in->dense[i].count;
    entry *all = iso_calloc(total, sizeof *all);
    if (!all)
        return iso_nomem(e, total * sizeof *all);
    for (size_t i = 0; i < in->count; i++) {
        size_t count = in->is_lora ? in->lora[i].count : in->dense[i].count;
        for (size_t j = 0; j < count; j++)
            all[k++] =
                in->is_lora
                    ? (entry){in->lora[i].layers[j].module, i, NULL, &in->lora[i].layers[j]}
                    : (entry){in->dense[i].tensors[j].name, i, &in->dense[i].tensors[j].view, NULL};
    }
    qsort(all, total, sizeof *all, by_name);
    iso_err err = ISO_OK;
    for (size_t i = 0, n; i < total && !err; i += n) {
        n = 1;
        while (i + n < total && strcmp(all[i + n].name, all[i].name) == 0)
            n++;
        err = note(in, all + i, n, out, e);
        if (!err)
            err = compare_shapes(in, all + i, n, out, e);
    }
    free(all);
    if (err)
        iso_merge_match_free(out);
    return err;
}

void iso_merge_match_free(iso_merge_match *m)
{
    iso_buf_free(&m->lines);
    iso_buf_free(&m->differ_names);
    iso_buf_free(&m->unmatched_names);
    *m = (iso_merge_match){0};
}
