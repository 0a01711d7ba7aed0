/* The state's file and its tasks. Tensors are named task/<number>/<module>.<A|B|scale>; who the
 * tasks are stands in the metadata as JSON. */
#include "merge/task_state.h"

#include "core/yaml.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FORMAT "isofed-merge-state"
enum { VERSION = 1, MAX_TASKS = 4096, NAME_BYTES = 200 };

/* ---- tasks in memory ---- */
static int by_name(const void *a, const void *b)
{
    return strcmp(((const iso_task *)a)->name, ((const iso_task *)b)->name);
}

static int by_module(const void *a, const void *b)
{
    return strcmp(((const iso_lora_layer *)a)->module, ((const iso_lora_layer *)b)->module);
}

static iso_task *find(const iso_task_state *s, const char *name)
{
    for (size_t t = 0; t < s->count; t++)
        if (strcmp(s->tasks[t].name, name) == 0)
            return &s->tasks[t];
    return NULL;
}

static iso_err need(const iso_task_state *s, const char *name, iso_task **out, iso_error *e)
{
    *out = find(s, name);
    if (*out)
        return ISO_OK;
    const char *names[256];
    size_t n = s->count < 256 ? s->count : 256;
    for (size_t t = 0; t < n; t++)
        names[t] = s->tasks[t].name;
    const char *near = iso_nearest(name, names, n);
    return iso_fail(e, ISO_ERR_USAGE, "the state has no task \"%s\"%s%s%s", name,
                    near ? "; did you mean \"" : "", near ? near : "", near ? "\"?" : "");
}

static iso_err copy_layer(iso_task_state *s, const iso_lora_layer *from, iso_lora_layer *to,
                          iso_error *e)
{
    size_t a = from->rank * from->in, b = from->rank * from->out;
    *to = *from;
    to->module = iso_arena_strdup(&s->arena, from->module);
    to->A = iso_arena_alloc(&s->arena, a + 1, sizeof *to->A);
    to->B = iso_arena_alloc(&s->arena, b + 1, sizeof *to->B);
    if (!to->module || !to->A || !to->B)
        return iso_nomem(e, (a + b) * sizeof *to->A);
    memcpy(to->A, from->A, a * sizeof *to->A);
    memcpy(to->B, from->B, b * sizeof *to->B);
    return ISO_OK;
}

static iso_err check_weight(const char *name, double weight, iso_error *e)
{
    if (isfinite(weight) && weight >= 0.0)
        return ISO_OK;
    return iso_fail(e, ISO_ERR_USAGE, "weight of \"%s\" is %g; weights are finite and not negative",
                    name, weight);
}

static iso_err check_shapes(const iso_task_state *s, const char *name, const iso_lora_input *in,
                            iso_error *e)
{
    for (size_t t = 0; t < s->count; t++)
        for (size_t i = 0; i < in->count; i++) {
            const iso_lora_layer *l = &in->layers[i];
            const iso_lora_layer *same =
                bsearch(l, s->tasks[t].layers, s->tasks[t].count, sizeof *same, by_module);
            if (same && strcmp(s->tasks[t].name, name) != 0 &&
                (same->out != l->out || same->in != l->in))
                return iso_fail(e, ISO_ERR_SHAPE,
                                "%s: layer \"%s\" is %zux%zu, task \"%s\" has %zux%zu", in->name,
                                l->module, l->out, l->in, s->tasks[t].name, same->out, same->in);
        }
    return ISO_OK;
}

static iso_err grow(iso_task_state *s, iso_error *e)
{
    if (s->count < s->room)
        return ISO_OK;
    if (s->count >= MAX_TASKS)
        return iso_fail(e, ISO_ERR_USAGE, "a state holds at most %d tasks", MAX_TASKS);
    size_t room = s->room ? 2 * s->room : 16;
    iso_task *more = iso_arena_calloc(&s->arena, room, sizeof *more);
    if (!more)
        return iso_nomem(e, room * sizeof *more);
    if (s->count)
        memcpy(more, s->tasks, s->count * sizeof *more);
    s->tasks = more;
    s->room = room;
    return ISO_OK;
}

iso_err iso_task_state_add(iso_task_state *s, const char *name, const iso_lora_input *in,
                           const iso_digest *digest, double weight, const char *base_model,
                           bool replace, iso_error *e)
{
    iso_task *there = find(s, name);
    if (!*name || strlen(name) > NAME_BYTES)
        return iso_fail(e, ISO_ERR_USAGE, "a task's name has 1 to %d bytes", NAME_BYTES);
    if (there && !replace)
        return iso_fail(e, ISO_ERR_USAGE, "the state has a task \"%s\" already; --replace it",
                        name);
    iso_err err = ISO_OK;
    if (!there && replace && (err = need(s, name, &there, e)))
        return err;
    if (isnan(weight))
        weight = there ? there->weight : 1.0;
    if ((err = check_weight(name, weight, e)) || (err = check_shapes(s, name, in, e)) ||
        (!there && (err = grow(s, e))))
        return err;
    iso_task task = {.name = iso_arena_strdup(&s->arena, name),
                     .weight = weight,
                     .digest = *digest,
                     .count = in->count};
    task.layers = iso_arena_calloc(&s->arena, in->count + 1, sizeof *task.layers);
    if (!task.name || !task.layers)
        return iso_nomem(e, in->count * sizeof *task.layers);
    for (size_t i = 0; i < in->count && !err; i++)
        err = copy_layer(s, &in->layers[i], &task.layers[i], e);
    if (err)
        return err;
    if (in->count)
        qsort(task.layers, task.count, sizeof *task.layers, by_module);
    if (base_model && *base_model && (!s->base_model || !*s->base_model))
        s->base_model = iso_arena_strdup(&s->arena, base_model);
    if (there) {
        *there = task;
        return ISO_OK;
    }
    s->tasks[s->count++] = task;
    qsort(s->tasks, s->count, sizeof *s->tasks, by_name);
    return ISO_OK;
}

iso_err iso_task_state_remove(iso_task_state *s, const char *name, iso_error *e)
{
    iso_task *task;
    iso_err err = need(s, name, &task, e);
    if (err)
        return err;
    size_t after = s->count - (size_t)(task - s->tasks) - 1;
    memmove(task, task + 1, after * sizeof *task);
    s->count--;
    return ISO_OK;
}

iso_err iso_task_state_weigh(iso_task_state *s, const char *name, double weight, iso_error *e)
{
    iso_task *task;
    iso_err err = need(s, name, &task, e);
    if (!err)
        err = check_weight(name, weight, e);
    if (!err)
        task->weight = weight;
    return err;
}

iso_err iso_task_state_compress(iso_task_state *s, size_t rank, iso_compressed *out, iso_error *e)
{
    *out = (iso_compressed){0};
    double square = 0.0;
    for (size_t t = 0; t < s->count; t++) {
        iso_task *task = &s->tasks[t];
        iso_lora_input in = {task->name, task->layers, task->count};
        iso_merged_lora m;
        double lost = 0.0;
        iso_err err = iso_aggregate_lora(&in, 1, NULL, rank, &m, e);
        for (size_t i = 0; i < task->count && !err; i++) {
            const iso_layer_report *r = &m.reports[i];
            square += r->norm * r->norm;
            if (r->full_rank <= r->rank)
                continue;
            out->dropped += r->full_rank - r->rank;
            lost += fmax(0.0, 1.0 - r->energy_kept) * r->norm * r->norm;
            err = copy_layer(s, &m.layers[i], &task->layers[i], e);
        }
        iso_merged_lora_free(&m);
        if (err)
            return err;
        out->sum_error += task->weight * sqrt(lost);
    }
    out->norm = sqrt(square);
    return ISO_OK;
}

/* ---- the file ---- */
static iso_err write_tasks(const iso_task_state *s, iso_buf *text, iso_error *e)
{
    iso_json *root = iso_json_object(), *list = iso_json_array();
    for (size_t t = 0; t < s->count; t++) {
        char hex[ISO_DIGEST_HEX];
        iso_json *task = iso_json_object();
        iso_hex(hex, s->tasks[t].digest.b, ISO_DIGEST_BYTES);
        iso_json_set(task, "name", iso_json_string(s->tasks[t].name));
        iso_json_set(task, "weight", iso_json_real(s->tasks[t].weight));
        iso_json_set(task, "digest", iso_json_string(hex));
        iso_json_set(task, "layers", iso_json_integer((int64_t)s->tasks[t].count));
        iso_json_push(list, task);
    }
    iso_json_set(root, "format", iso_json_string(FORMAT));
    iso_json_set(root, "version", iso_json_integer(VERSION));
    iso_json_set(root, "base_model", iso_json_string(s->base_model ? s->base_model : ""));
    iso_json_set(root, "tasks", list);
    iso_err err = iso_json_dump(root, ISO_JSON_COMPACT, text, e);
    iso_json_free(root);
    return err;
}

iso_err iso_task_state_write(const iso_task_state *s, const char *path, iso_error *e)
{
    size_t total = 0, n = 0;
    for (size_t t = 0; t < s->count; t++)
        total += 3 * s->tasks[t].count;
    iso_arena names = {0};
    iso_buf text = {0};
    iso_named_tensor *list = iso_arena_calloc(&names, total + 1, sizeof *list);
    iso_err err = list ? write_tasks(s, &text, e) : iso_nomem(e, total * sizeof *list);
    for (size_t t = 0; t < s->count && !err; t++)
        for (size_t i = 0; i < s->tasks[t].count && !err; i++) {
            const iso_lora_layer *l = &s->tasks[t].layers[i];
            const iso_tensor views[] = {{ISO_F32, 2, {l->rank, l->in}, l->A},
                                        {ISO_F32, 2, {l->out, l->rank}, l->B},
                                        {ISO_F64, 1, {1}, &l->scale}};
            static const char *const parts[] = {"A", "B", "scale"};
            for (size_t k = 0; k < 3 && !err; k++) {
                char *name = iso_strf("task/%zu/%s.%s", t, l->module, parts[k]);
                list[n] =
                    (iso_named_tensor){name ? iso_arena_strdup(&names, name) : NULL, views[k]};
                if (!list[n++].name)
                    err = iso_nomem(e, strlen(l->module));
                free(name);
            }
        }
    if (!err) {
        const char *const meta[] = {FORMAT, (const char *)text.data};
        err = iso_safetensors_write(path, list, n, meta, 1, e);
    }
    iso_arena_free(&names);
    iso_buf_free(&text);
    return err;
}

/* The layers of task t: every ".A" under its prefix, with the B and scale that belong to it. */
static iso_err read_layers(iso_task_state *s, const iso_safetensors *st, size_t t, iso_task *task,
                           const char *path, iso_error *e)
{
    char prefix[32], key[ISO_SAFETENSORS_NAME_BYTES + 16];
    int head = snprintf(prefix, sizeof prefix, "task/%zu/", t);
    size_t count = 0;
    for (size_t i = 0; i < st->count; i++) {
        const char *name = st->items[i].name;
        size_t length = strlen(name);
        if (strncmp(name, prefix, (size_t)head) != 0 || length < (size_t)head + 3 ||
            strcmp(name + length - 2, ".A") != 0)
            continue;
        const iso_tensor *A = &st->items[i].view;
        int body = (int)length - head - 2;
        snprintf(key, sizeof key, "%s%.*s.B", prefix, body, name + head);
        const iso_named_tensor *B = iso_safetensors_find(st, key);
        snprintf(key, sizeof key, "%s%.*s.scale", prefix, body, name + head);
        const iso_named_tensor *scale = iso_safetensors_find(st, key);
        iso_lora_layer *l = &task->layers[count];
        if (count == task->count || !B || !scale || A->ndim != 2 || B->view.ndim != 2 ||
            A->dtype != ISO_F32 || B->view.dtype != ISO_F32 || A->shape[0] != B->view.shape[1] ||
            A->shape[0] == 0 || iso_tensor_count(&scale->view) != 1)
            return iso_fail(e, ISO_ERR_DATA, "%s: tensor \"%s\" is not as a merge state has it",
                            path, name);
        size_t a = iso_tensor_count(A), b = iso_tensor_count(&B->view);
        *l = (iso_lora_layer){.out = B->view.shape[0], .in = A->shape[1], .rank = A->shape[0]};
        snprintf(key, sizeof key, "%.*s", body, name + head);
        l->module = iso_arena_strdup(&s->arena, key);
        l->A = iso_arena_alloc(&s->arena, a + 1, sizeof *l->A);
        l->B = iso_arena_alloc(&s->arena, b + 1, sizeof *l->B);
        if (!l->module || !l->A || !l->B)
            return iso_nomem(e, (a + b) * sizeof *l->A);
        iso_err err = iso_tensor_to_f32(A, l->A, e);
        if (!err)
            err = iso_tensor_to_f32(&B->view, l->B, e);
        if (!err)
            err = iso_tensor_to_f64(&scale->view, &l->scale, e);
        if (err)
            return err;
        if (iso_tensor_find_nonfinite(A) != SIZE_MAX ||
            iso_tensor_find_nonfinite(&B->view) != SIZE_MAX || !isfinite(l->scale))
            return iso_fail(e, ISO_ERR_NONFINITE, "%s: layer \"%s\" of task \"%s\" is not finite",
                            path, l->module, task->name);
        count++;
    }
    if (count != task->count)
        return iso_fail(e, ISO_ERR_DATA, "%s: task \"%s\" has %zu layers, its entry says %zu", path,
                        task->name, count, task->count);
    if (count)
        qsort(task->layers, count, sizeof *task->layers, by_module);
    return ISO_OK;
}

static iso_err read_task(iso_task_state *s, const iso_json *entry, const iso_safetensors *st,
                         size_t t, const char *path, iso_error *e)
{
    const char *name = NULL, *hex = NULL;
    int64_t layers = 0;
    iso_task *task = &s->tasks[t];
    iso_err err = iso_json_need_str(entry, "name", &name, e);
    if (!err)
        err = iso_json_need_str(entry, "digest", &hex, e);
    if (!err)
        err = iso_json_need_int(entry, "layers", 0, ISO_SAFETENSORS_TENSORS, &layers, e);
    if (!err)
        err = iso_json_get_num(entry, "weight", 1.0, &task->weight, e);
    if (!err)
        err = check_weight(name, task->weight, e);
    if (!err && !iso_unhex(task->digest.b, ISO_DIGEST_BYTES, hex))
        err = iso_fail(e, ISO_ERR_DATA, "digest of task \"%s\" is not hexadecimal", name);
    if (err)
        return iso_error_context(e, "%s", path);
    task->name = iso_arena_strdup(&s->arena, name);
    task->count = (size_t)layers;
    task->layers = iso_arena_calloc(&s->arena, task->count + 1, sizeof *task->layers);
    if (!task->name || !task->layers)
        return iso_nomem(e, task->count * sizeof *task->layers);
    return read_layers(s, st, t, task, path, e);
}

iso_err iso_task_state_open(iso_task_state *s, const char *path, bool create, iso_error *e)
{
    *s = (iso_task_state){0};
    if (create && !iso_path_exists(path))
        return ISO_OK;
    iso_safetensors st = {0};
    iso_json *root = NULL;
    const char *format = NULL, *base = NULL;
    int64_t version = 0;
    iso_err err = iso_safetensors_open(&st, path, e);
    if (err)
        return err;
    const char *text = iso_safetensors_meta(&st, FORMAT);
    if (!text) {
        err = iso_fail(e, ISO_ERR_DATA, "%s is no merge state", path);
        goto done;
    }
    if ((err = iso_json_parse(text, strlen(text), path, &root, e)) ||
        (err = iso_json_need_str(root, "format", &format, e)) ||
        (err = iso_json_need_int(root, "version", VERSION, VERSION, &version, e)) ||
        (err = iso_json_need_str(root, "base_model", &base, e)))
        goto done;
    const iso_json *list = iso_json_key(root, "tasks");
    size_t count = list && iso_json_is_array(list) ? iso_json_count(list) : 0;
    if (count > MAX_TASKS) {
        err = iso_fail(e, ISO_ERR_DATA, "%s: %zu tasks; at most %d", path, count, MAX_TASKS);
        goto done;
    }
    s->base_model = iso_arena_strdup(&s->arena, base);
    s->tasks = iso_arena_calloc(&s->arena, count + 1, sizeof *s->tasks);
    s->room = count;
    if (!s->base_model || !s->tasks) {
        err = iso_nomem(e, count * sizeof *s->tasks);
        goto done;
    }
    for (; s->count < count && !err; s->count++)
        err = read_task(s, iso_json_at(list, s->count), &st, s->count, path, e);
done:
    iso_json_free(root);
    iso_safetensors_close(&st);
    if (err)
        iso_task_state_close(s);
    return err;
}

void iso_task_state_close(iso_task_state *s)
{
    iso_arena_free(&s->arena);
    *s = (iso_task_state){0};
}
