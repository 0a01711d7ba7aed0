/* Changes of a merge state, and its tasks as inputs of a merge. */
#include "cli/merge_state.h"

#include "core/yaml.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* "NAME=REST" or "REST", whose last part is then the name. */
static iso_err split(const char *item, char **name, const char **rest, iso_error *e)
{
    const char *equals = strchr(item, '=');
    *rest = equals ? equals + 1 : item;
    *name = equals ? iso_strf("%.*s", (int)(equals - item), item) : iso_strdup(iso_path_base(item));
    return *name ? ISO_OK : iso_nomem(e, strlen(item));
}

static iso_err check_base(const iso_task_state *s, const iso_peft *p, const char *path,
                          iso_error *e)
{
    if (!s->base_model || !*s->base_model || !p->base_model || !*p->base_model ||
        strcmp(s->base_model, p->base_model) == 0)
        return ISO_OK;
    return iso_fail(e, ISO_ERR_DATA,
                    "%s says base model \"%.48s\", the state's tasks say \"%.48s\"; --any-base "
                    "takes it",
                    path, p->base_model, s->base_model);
}

static iso_err add(iso_task_state *s, const char *item, bool replace, bool any_base, iso_error *e)
{
    char *name = NULL, *tensors = NULL;
    const char *path;
    iso_peft p = {0};
    iso_safetensors st = {0};
    iso_err err = split(item, &name, &path, e);
    if (!err)
        err = iso_peft_open(&p, path, true, e);
    if (!err && !any_base)
        err = check_base(s, &p, path, e);
    if (!err && !(tensors = iso_path_join(path, "adapter_model.safetensors")))
        err = iso_nomem(e, strlen(path));
    if (!err)
        err = iso_safetensors_open(&st, tensors, e);
    if (!err) {
        iso_digest digest = iso_tensor_list_digest(st.items, st.count);
        iso_lora_input in = {path, p.layers, p.count};
        err = iso_task_state_add(s, name, &in, &digest, (double)NAN, p.base_model, replace, e);
    }
    iso_safetensors_close(&st);
    iso_peft_close(&p);
    free(tensors);
    free(name);
    return err;
}

static iso_err weigh(iso_task_state *s, const char *item, iso_error *e)
{
    char *name = NULL;
    const char *text;
    double weight = 0.0;
    iso_err err = split(item, &name, &text, e);
    if (!err && (text == item || !iso_double_parse(text, &weight)))
        err = iso_fail(e, ISO_ERR_USAGE, "--weight %.80s: write TASK=NUMBER", item);
    if (!err)
        err = iso_task_state_weigh(s, name, weight, e);
    free(name);
    return err;
}

static iso_err compress(iso_task_state *s, size_t rank, iso_buf *notes, iso_error *e)
{
    iso_compressed c;
    iso_err err = iso_task_state_compress(s, rank, &c, e);
    if (err || c.dropped == 0)
        return err;
    return iso_buf_printf(notes, e,
                          "state: %zu directions dropped; the weighted sum changes by at most %.3g "
                          "(the tasks together have norm %.3g). Isotropic methods lift every "
                          "direction: their result changes by up to sqrt(%zu) in the polar "
                          "factor\n",
                          c.dropped, c.sum_error, c.norm, c.dropped);
}

static iso_err present(const iso_task_state *s, iso_merge_inputs *in, iso_error *e)
{
    size_t n = s->count;
    *in = (iso_merge_inputs){.count = n, .is_lora = true};
    const char **paths = iso_arena_calloc(&in->arena, n + 1, sizeof(const char *));
    in->adapters = iso_calloc(n + 1, sizeof *in->adapters);
    in->files = iso_calloc(n + 1, sizeof *in->files);
    in->lora = iso_arena_calloc(&in->arena, n + 1, sizeof *in->lora);
    in->digests = iso_arena_calloc(&in->arena, n + 1, sizeof *in->digests);
    if (!paths || !in->adapters || !in->files || !in->lora || !in->digests)
        return iso_nomem(e, n * sizeof *in->adapters);
    for (size_t t = 0; t < n; t++) {
        const iso_task *task = &s->tasks[t];
        paths[t] = task->name;
        in->digests[t] = task->digest;
        in->lora[t] = (iso_lora_input){task->name, task->layers, task->count};
        in->adapters[t].layers = task->layers;
        in->adapters[t].count = task->count;
        in->adapters[t].base_model = (char *)(uintptr_t)(s->base_model ? s->base_model : "");
    }
    in->paths = paths;
    return ISO_OK;
}

iso_err iso_merge_state_prepare(const iso_state_request *r, bool any_base, iso_task_state *s,
                                iso_merge_inputs *in, iso_buf *notes, iso_error *e)
{
    iso_err err = iso_task_state_open(s, r->path, r->add.count > 0, e);
    for (size_t i = 0; i < r->remove.count && !err; i++)
        err = iso_task_state_remove(s, r->remove.items[i], e);
    for (size_t i = 0; i < r->add.count && !err; i++)
        err = add(s, r->add.items[i], false, any_base, e);
    for (size_t i = 0; i < r->replace.count && !err; i++)
        err = add(s, r->replace.items[i], true, any_base, e);
    for (size_t i = 0; i < r->weight.count && !err; i++)
        err = weigh(s, r->weight.items[i], e);
    if (!err && r->compress > 0)
        err = compress(s, (size_t)r->compress, notes, e);
    if (!err && s->count == 0)
        err = iso_fail(e, ISO_ERR_USAGE, "the state %s has no tasks; --add TASK=ADAPTER", r->path);
    return err ? err : present(s, in, e);
}
