/* Jobs "heads" and "merge": within a task a rule (the exact mean, or one of merge/robust), across
 * tasks every configured method
 * (DESIGN 1, two levels; AMENDMENTS 4 for heads, 14 for a single task). */
#include "coordinator/worker.h"
#include "merge/robust/robust.h"

#include <stdlib.h>
#include <string.h>

/* ---- heads ---- */

typedef struct {
    iso_opened *opened; /* of one task; count in `n` */
    size_t n;
} opened_set;

static void close_set(opened_set *s)
{
    for (size_t i = 0; i < s->n; i++)
        iso_opened_close(&s->opened[i]);
    free(s->opened);
    *s = (opened_set){0};
}

/* Opens every update of a task and writes its verdict; refused ones stay in the set, marked. */
static iso_err open_task(const iso_worker_ground *g, const iso_worker_job *w,
                         const iso_worker_task *t, opened_set *s, iso_json *verdicts, iso_error *e)
{
    s->opened = iso_calloc(t->update_count, sizeof *s->opened);
    if (!s->opened)
        return iso_nomem(e, t->update_count * sizeof *s->opened);
    for (size_t i = 0; i < t->update_count; i++) {
        s->n = i + 1;
        iso_err err = iso_worker_open(g, w, t, &t->updates[i], &s->opened[i], e);
        if (err)
            return err;
        iso_worker_verdict(verdicts, &t->updates[i], &s->opened[i]);
    }
    return ISO_OK;
}

/* Mean of the heads of the updates that are in, class by class; *bytes 0 when there is none. */
static iso_err mean_head(const iso_worker_ground *g, const iso_worker_task *t, const opened_set *s,
                         iso_digest *digest, size_t *bytes, iso_error *e)
{
    iso_head_part *parts = iso_calloc(s->n, sizeof *parts);
    iso_linear_head mean = {0};
    iso_buf file = {0};
    size_t n = 0;
    iso_err err = parts ? ISO_OK : iso_nomem(e, s->n * sizeof *parts);
    *bytes = 0;
    for (size_t i = 0; !err && i < s->n; i++)
        if (s->opened[i].code == ISO_CODE_OK && s->opened[i].has_head)
            parts[n++] = (iso_head_part){&s->opened[i].head, s->opened[i].class_counts};
    if (err || !n)
        goto done;
    err = iso_linear_mean(&mean, parts, n, t->classes, t->class_count, e);
    if (!err)
        err = iso_linear_save_buf(&mean, &file, e);
    if (!err)
        err = iso_worker_put_blob(g->state_dir, &file, digest, e);
    *bytes = file.size;
done:
    free(parts);
    iso_linear_free(&mean);
    iso_buf_free(&file);
    return err;
}

iso_err iso_worker_heads(const iso_worker_ground *g, const iso_worker_job *w, iso_json *result,
                         iso_error *e)
{
    iso_json *tasks = iso_json_array();
    iso_err err = ISO_OK;
    for (size_t k = 0; k < w->task_count && !err; k++) {
        const iso_worker_task *t = &w->tasks[k];
        opened_set s = {0};
        iso_json *row = iso_json_object(), *verdicts = iso_json_array();
        iso_digest digest = {0};
        size_t bytes = 0;
        err = open_task(g, w, t, &s, verdicts, e);
        if (!err)
            err = mean_head(g, t, &s, &digest, &bytes, e);
        iso_json_set(row, "id", iso_worker_hex(t->id, sizeof t->id));
        if (bytes) {
            iso_json_set(row, "head", iso_worker_hex(digest.b, sizeof digest.b));
            iso_json_set(row, "bytes", iso_json_integer((int64_t)bytes));
        }
        iso_json_set(row, "updates", verdicts);
        iso_json_push(tasks, row);
        close_set(&s);
    }
    iso_json_set(result, "tasks", tasks);
    return err;
}

/* ---- merge ---- */

/* A task as it goes into the merge: aggregated in this round, or kept from an earlier one. */
typedef struct {
    const char *name;
    iso_merged_lora merged; /* of this round */
    iso_buf stored;         /* container of an earlier round, and what is in it */
    iso_peft kept;
    bool has_kept;
    const iso_lora_layer *layers;
    size_t count;
} ready_task;

/* With fewer updates than this a rule cannot tell who is wrong: the mean (specs/merging.md 8 d). */
enum { ROBUST_FROM = 4 };

/* The task's rule with its parameters, or the mean while there are too few updates for it. */
static iso_err rule_of(const iso_worker_task *t, size_t updates, const iso_method **rule,
                       iso_method_args *args, iso_error *e)
{
    iso_err err = iso_robust_need(t->aggregate, rule, e);
    if (err)
        return err;
    iso_method_defaults(*rule, args);
    for (size_t i = 0; i < t->aggregate_count && !err; i++)
        err = iso_method_set(*rule, args, t->aggregate_names[i], t->aggregate_values[i], e);
    if (err)
        return err;
    bool is_enough = updates >= ROBUST_FROM &&
                     (!(*rule)->check || (*rule)->check(args, updates, NULL) == ISO_OK);
    if (!is_enough) {
        *rule = iso_robust_find("mean");
        iso_method_defaults(*rule, args);
    }
    return ISO_OK;
}

/* What a site claims about its number of samples counts in the mean only: a rule that is there
 * because a site may lie gives each one vote. */
static iso_err aggregate(const iso_worker_task *t, const opened_set *s, ready_task *r,
                         iso_json *row, iso_error *e)
{
    const iso_method *rule = NULL;
    iso_method_args args;
    iso_lora_input *in = iso_calloc(s->n, sizeof *in);
    double *weights = iso_calloc(s->n, sizeof *weights);
    size_t n = 0;
    iso_err err = in && weights ? ISO_OK : iso_nomem(e, s->n * sizeof *in);
    for (size_t i = 0; !err && i < s->n; i++)
        if (s->opened[i].code == ISO_CODE_OK) {
            in[n] =
                (iso_lora_input){t->name, s->opened[i].adapter.layers, s->opened[i].adapter.count};
            weights[n++] = t->updates[i].weight > 0 ? t->updates[i].weight : 1;
        }
    if (!err && n)
        err = rule_of(t, n, &rule, &args, e);
    if (!err && n) {
        bool is_mean = rule == iso_robust_find("mean");
        err = iso_robust_aggregate_lora(in, n, rule, &args, is_mean ? weights : NULL, t->rank_cap,
                                        &r->merged, e);
        iso_json_set(row, "aggregate", iso_json_string(is_mean ? "mean" : rule->name));
        r->layers = r->merged.layers;
        r->count = r->merged.count;
    }
    free(in);
    free(weights);
    return err;
}

static iso_err keep_previous(const iso_worker_ground *g, const iso_worker_task *t, ready_task *r,
                             iso_error *e)
{
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t n = 0;
    iso_code code;
    iso_err err =
        iso_worker_get_blob(g->state_dir, &t->previous, ISO_UPDATE_MAX_BYTES, &r->stored, e);
    if (!err)
        err = iso_container_unpack(r->stored.data, r->stored.size, files, &n, &code, e);
    if (err)
        return err;
    const iso_container_file *config = iso_container_find(files, n, "adapter_config.json");
    const iso_container_file *tensors = iso_container_find(files, n, "adapter_model.safetensors");
    if (!config || !tensors)
        return iso_fail(e, ISO_ERR_DATA, "stored adapter of task %s is incomplete", t->name);
    err = iso_peft_parse(&r->kept, config->data, config->size, tensors->data, tensors->size, true,
                         t->name, e);
    if (err)
        return err;
    r->has_kept = true;
    r->layers = r->kept.layers;
    r->count = r->kept.count;
    return ISO_OK;
}

static void ready_free(ready_task *r)
{
    iso_merged_lora_free(&r->merged);
    if (r->has_kept)
        iso_peft_close(&r->kept);
    iso_buf_free(&r->stored);
}

static iso_err store_task_adapter(const iso_worker_ground *g, const ready_task *r,
                                  iso_digest *digest, size_t *bytes, iso_error *e)
{
    iso_buf config = {0}, tensors = {0}, container = {0};
    iso_peft_output out = {.layers = r->layers, .count = r->count};
    iso_err err = iso_peft_write_bufs(&out, &config, &tensors, e);
    if (!err) {
        iso_container_file files[] = {
            {"adapter_config.json", config.data, config.size},
            {"adapter_model.safetensors", tensors.data, tensors.size},
        };
        err = iso_container_pack(files, 2, &container, e);
    }
    if (!err)
        err = iso_worker_put_blob(g->state_dir, &container, digest, e);
    *bytes = container.size;
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    iso_buf_free(&container);
    return err;
}

static size_t largest_rank(const iso_lora_layer *layers, size_t n)
{
    size_t rank = 0;
    for (size_t i = 0; i < n; i++)
        rank = layers[i].rank > rank ? layers[i].rank : rank;
    return rank;
}

/* One task of a merge job: its row of the result, and what goes on to the merge. */
static iso_err prepare_task(const iso_worker_ground *g, const iso_worker_job *w,
                            const iso_worker_task *t, ready_task *r, iso_json *row, iso_error *e)
{
    opened_set s = {0};
    iso_json *verdicts = iso_json_array();
    iso_digest digest = {0};
    size_t bytes = 0;
    *r = (ready_task){.name = t->name};
    iso_err err = open_task(g, w, t, &s, verdicts, e);
    if (!err)
        err = aggregate(t, &s, r, row, e);
    if (!err && !r->count && !iso_digest_is_zero(&t->previous))
        err = keep_previous(g, t, r, e);
    if (!err && r->merged.count) {
        err = store_task_adapter(g, r, &digest, &bytes, e);
        iso_json_set(row, "adapter", iso_worker_hex(digest.b, sizeof digest.b));
        iso_json_set(row, "bytes", iso_json_integer((int64_t)bytes));
        iso_json_set(row, "rank", iso_json_integer((int64_t)largest_rank(r->layers, r->count)));
        iso_json_set(row, "lost_energy", iso_json_real(1.0 - r->merged.summary.energy_kept));
    }
    if (!err && r->merged.count) {
        /* Heads that were trained with the adapter travel with it (head mode joint). */
        err = mean_head(g, t, &s, &digest, &bytes, e);
        if (!err && bytes) {
            iso_json_set(row, "head", iso_worker_hex(digest.b, sizeof digest.b));
            iso_json_set(row, "head_bytes", iso_json_integer((int64_t)bytes));
        }
    }
    iso_json_set(row, "id", iso_worker_hex(t->id, sizeof t->id));
    iso_json_set(row, "updates", verdicts);
    close_set(&s);
    return err;
}

static iso_err candidate_options(const iso_worker_candidate *c, iso_merge_options *o, iso_error *e)
{
    const iso_method *method = NULL;
    iso_err err = iso_method_need(c->method, &method, e);
    if (err)
        return err;
    *o = iso_merge_defaults(method);
    for (const iso_method_param *p = method->params; p && p->name && !err; p++) {
        if (!strcmp(p->name, "alpha"))
            err = iso_method_set(method, &o->args, "alpha", c->alpha, e);
        if (!strcmp(p->name, "common_fraction"))
            err = iso_method_set(method, &o->args, "common_fraction", c->common_fraction, e);
    }
    o->args.convention =
        !strcmp(c->convention, "dense") ? ISO_CONVENTION_DENSE : ISO_CONVENTION_RANK;
    o->is_single_kept = true;
    o->guard = iso_guard_defaults();
    return err;
}

static iso_json *file_row(const char *path, const iso_digest *d, size_t bytes)
{
    iso_json *f = iso_json_object();
    iso_json_set(f, "digest", iso_worker_hex(d->b, sizeof d->b));
    iso_json_set(f, "path", iso_json_string(path));
    iso_json_set(f, "size", iso_json_integer((int64_t)bytes));
    return f;
}

/* The candidate as blobs: two files and the canonical list that names them. */
static iso_err store_candidate(const iso_worker_ground *g, const iso_merged_lora *m, iso_json *row,
                               iso_error *e)
{
    iso_buf config = {0}, tensors = {0}, text = {0};
    iso_digest config_digest, tensors_digest, manifest_digest;
    iso_json *manifest = iso_json_object(), *files = iso_json_array(), *copy = iso_json_array();
    iso_peft_output out = {.layers = m->layers, .count = m->count};
    iso_err err = iso_peft_write_bufs(&out, &config, &tensors, e);
    if (!err)
        err = iso_worker_put_blob(g->state_dir, &config, &config_digest, e);
    if (!err)
        err = iso_worker_put_blob(g->state_dir, &tensors, &tensors_digest, e);
    if (err)
        goto done;
    for (int k = 0; k < 2; k++) {
        iso_json *list = k ? copy : files;
        iso_json_push(list, file_row("adapter/adapter_config.json", &config_digest, config.size));
        iso_json_push(list,
                      file_row("adapter/adapter_model.safetensors", &tensors_digest, tensors.size));
    }
    iso_json_set(manifest, "format", iso_json_integer(1));
    iso_json_set(manifest, "kind", iso_json_string("candidate"));
    iso_json_set(manifest, "files", files);
    files = NULL;
    err = iso_json_dump(manifest, ISO_JSON_CANONICAL, &text, e);
    if (!err)
        err = iso_worker_put_blob(g->state_dir, &text, &manifest_digest, e);
    if (err)
        goto done;
    iso_json_set(row, "manifest", iso_worker_hex(manifest_digest.b, sizeof manifest_digest.b));
    iso_json_set(row, "bytes", iso_json_integer((int64_t)(config.size + tensors.size)));
    iso_json_set(row, "rank_max", iso_json_integer((int64_t)largest_rank(m->layers, m->count)));
    iso_json_set(row, "files", copy);
    copy = NULL;
done:
    iso_json_free(manifest);
    iso_json_free(files);
    iso_json_free(copy);
    iso_buf_free(&config);
    iso_buf_free(&tensors);
    iso_buf_free(&text);
    return err;
}

static iso_err make_candidate(const iso_worker_ground *g, const iso_worker_candidate *c,
                              const iso_lora_input *in, size_t n, iso_json *row, iso_error *e)
{
    iso_merge_options o;
    iso_merged_lora m = {0};
    iso_err err = candidate_options(c, &o, e);
    if (!err)
        err = iso_merge_lora(in, n, &o, &m, e);
    if (!err)
        err = store_candidate(g, &m, row, e);
    if (!err) {
        iso_json_set(row, "norm", iso_json_real(m.summary.norm));
        iso_json_set(row, "capped_tasks", iso_json_integer((int64_t)m.summary.capped_tasks));
        iso_json_set(row, "floored", iso_json_integer((int64_t)m.summary.floored));
        iso_json_set(row, "gain_capped", iso_json_integer((int64_t)m.summary.gain_capped));
    }
    iso_json_set(row, "method", iso_json_string(c->method));
    iso_json_set(row, "alpha", iso_json_real(c->alpha));
    iso_json_set(row, "convention", iso_json_string(c->convention));
    iso_json_set(row, "common_fraction", iso_json_real(c->common_fraction));
    iso_merged_lora_free(&m);
    return err;
}

iso_err iso_worker_merge(const iso_worker_ground *g, const iso_worker_job *w, iso_json *result,
                         iso_error *e)
{
    ready_task *ready = iso_calloc(w->task_count, sizeof *ready);
    iso_lora_input *in = iso_calloc(w->task_count, sizeof *in);
    iso_json *tasks = iso_json_array(), *candidates = iso_json_array();
    size_t prepared = 0, n = 0;
    iso_err err = ready && in ? ISO_OK : iso_nomem(e, w->task_count * sizeof *ready);
    for (size_t k = 0; k < w->task_count && !err; k++) {
        iso_json *row = iso_json_object();
        prepared = k + 1;
        err = prepare_task(g, w, &w->tasks[k], &ready[k], row, e);
        iso_json_push(tasks, row);
        if (!err && ready[k].count)
            in[n++] = (iso_lora_input){ready[k].name, ready[k].layers, ready[k].count};
    }
    for (size_t c = 0; n && c < w->candidate_count && !err; c++) {
        iso_json *row = iso_json_object();
        err = make_candidate(g, &w->candidates[c], in, n, row, e);
        iso_json_push(candidates, row);
    }
    iso_json_set(result, "tasks", tasks);
    iso_json_set(result, "candidates", candidates);
    for (size_t k = 0; k < prepared; k++)
        ready_free(&ready[k]);
    free(ready);
    free(in);
    return err;
}
