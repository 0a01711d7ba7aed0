/* The engine's jobs that learn: a head on frozen features, an adapter; and the update that each
 * becomes. */
#include "client/engine_inner.h"
#include "core/fsio.h"
#include "core/json.h"
#include "core/yaml.h"
#include "crypto/container.h"
#include "nn/head/probe.h"
#include "nn/train/loop.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Numbers and class names only: this is what leaves the site beside the weights (S4, U103). */
static iso_err metadata(const iso_task_view *v, const char *const *names, uint64_t steps,
                        const iso_trainer_event *r, double loss, iso_buf *out, iso_error *e)
{
    iso_json *j = iso_json_object(), *counts = iso_json_object();
    bool is_built = true;
    for (size_t i = 0; i < v->classes; i++)
        is_built = is_built &&
                   iso_json_set(counts, names[i], iso_json_integer((int64_t)v->class_counts[i]));
    is_built =
        iso_json_set(j, "class_counts", counts) && is_built &&
        iso_json_set(j, "format", iso_json_integer(1)) &&
        iso_json_set(j, "samples", iso_json_integer((int64_t)r->samples)) &&
        iso_json_set(j, "steps", iso_json_integer((int64_t)steps)) &&
        iso_json_set(j, "val_samples", iso_json_integer((int64_t)r->val.delivered.samples)) &&
        iso_json_set(j, "val_score", iso_json_float9((double)r->val.delivered.value)) &&
        iso_json_set(j, "val_score_refitted", iso_json_float9((double)r->val.refitted.value));
    if (steps && isfinite(loss))
        is_built = iso_json_set(j, "loss", iso_json_float9(loss)) && is_built;
    iso_err err = is_built ? iso_json_dump(j, ISO_JSON_CANONICAL, out, e) : iso_nomem(e, 4096);
    iso_json_free(j);
    return err;
}

static void seal_result(iso_trainer_event *out, const iso_buf *container)
{
    out->container = iso_digest_of(container->data, container->size);
    out->container_bytes = container->size;
}

static iso_err check_generation(const iso_engine *g, const iso_trainer_job *j, iso_error *e)
{
    if (iso_digest_is_zero(&j->generation) ||
        iso_digest_equal(&j->generation, &g->options.backbone->generation))
        return ISO_OK;
    return iso_fail(e, ISO_ERR_DATA, "the round is for another backbone than the one here");
}

iso_err iso_engine_run_head(iso_engine *g, const iso_trainer_job *j, iso_trainer_event *out,
                            iso_buf *container, iso_error *e)
{
    const iso_train_spec *s = j->spec;
    iso_task_view v = {0};
    const iso_feature_set_of *f;
    iso_linear_head head = {0};
    iso_buf head_file = {0}, meta = {0};
    const iso_digest frozen = {0};
    iso_err err = check_generation(g, j, e);
    if (err == ISO_OK)
        err = iso_engine_view(g->data, j->task, s->classes, s->class_count, &v, e);
    if (err != ISO_OK)
        goto done;
    err = iso_engine_features(g->data, &v, NULL, &frozen, s->classes, &f, e);
    if (err != ISO_OK)
        goto done;
    const iso_view *train = &v.split[ISO_SPLIT_TRAIN];
    iso_feature_set set = {f->features[ISO_SPLIT_TRAIN], train->labels, train->n};
    /* Ridge by leave-one-out: honest confidence, so that a fixed head leaves the adapter a gradient
     * (DESIGN 2). The refitted score beside it is the strongest probe, what tables call probe. */
    err = iso_probe_fit(&head, ISO_PROBE_RIDGE, &set, NULL, g->options.backbone->shape.feature,
                        s->classes, s->class_count, NULL, e);
    if (err != ISO_OK)
        goto done;
    iso_engine_fill_scores(out, &head, &v, f);
    iso_engine_fill_data(out, &v);
    err = iso_linear_save_buf(&head, &head_file, e);
    if (err == ISO_OK)
        err = metadata(&v, s->classes, 0, out, 0, &meta, e);
    if (err == ISO_OK) {
        iso_container_file files[] = {{"head.safetensors", head_file.data, head_file.size},
                                      {"metadata.json", meta.data, meta.size}};
        err = iso_container_pack(files, 2, container, e);
    }
    seal_result(out, container);
done:
    iso_task_view_free(&v);
    iso_linear_free(&head);
    iso_buf_free(&head_file);
    iso_buf_free(&meta);
    return err;
}

/* What TaskSpec carries as text: {"batch":"16", ...}; canonical JSON keeps fractions as strings. */
typedef struct {
    double batch, warmup, patience, weight_decay, shift, mirror, first_block;
} parameters;

typedef struct {
    const char *key;
    size_t offset;
    double otherwise, min, max;
} parameter_row;

#define at(member) offsetof(parameters, member)
static const parameter_row parameter_rows[] = {
    {"batch", at(batch), 16, 1, 4096},
    {"early_stop", at(patience), 0, 0, 1e6},
    {"first_block", at(first_block), 0, 0, 1000},
    {"mirror", at(mirror), 0, 0, 1},
    {"shift", at(shift), 0, 0, 64},
    {"warmup", at(warmup), 20, 0, 1e6},
    {"weight_decay", at(weight_decay), 0.01, 0, 1},
};
#undef at

static iso_err read_parameters(const iso_train_spec *s, parameters *out, iso_error *e)
{
    iso_json *j = NULL;
    iso_err err = ISO_OK;
    if (s->kind_parameters && *s->kind_parameters)
        err = iso_json_parse(s->kind_parameters, strlen(s->kind_parameters), "kind_parameters", &j,
                             e);
    for (size_t i = 0; err == ISO_OK && i < sizeof parameter_rows / sizeof *parameter_rows; i++) {
        const parameter_row *row = &parameter_rows[i];
        const iso_json *v = j ? iso_json_key(j, row->key) : NULL;
        const char *text = v ? iso_json_str(v) : NULL;
        double number = row->otherwise;
        bool is_number =
            !v || iso_json_num(v, &number) || (text && iso_double_parse(text, &number));
        if (!is_number || !(number >= row->min && number <= row->max))
            err = iso_fail(e, ISO_ERR_DATA, "kind_parameters: %s must be a number from %g to %g",
                           row->key, row->min, row->max);
        else
            *(double *)(void *)((char *)out + row->offset) = number;
    }
    iso_json_free(j);
    return err;
}

static void training_options(const iso_engine *g, const iso_trainer_job *j, const parameters *p,
                             const iso_task_view *v, const char *checkpoint, iso_train_options *o)
{
    const iso_train_spec *s = j->spec;
    *o = iso_train_defaults();
    o->weight_decay = p->weight_decay;
    o->seed = s->seed;
    o->steps = s->steps;
    o->batch = (size_t)p->batch;
    o->warmup = p->warmup < s->steps ? (size_t)p->warmup : s->steps;
    o->patience = (size_t)p->patience;
    o->lr = (double)s->learning_rate;
    o->trains_head = s->head_mode == ISO_HEAD_JOINT;
    o->augments = p->shift > 0 || p->mirror > 0;
    /* The best of a handful of looks at the validation images is what is sent. */
    o->eval_every = s->steps >= 6 ? s->steps / 6 : 1;
    o->keeps_best = v->split[ISO_SPLIT_VAL].n > 0;
    o->cache_bytes = g->options.cache_bytes;
    o->checkpoint = checkpoint;
    o->checkpoint_every = g->options.checkpoint_every;
    o->is_quiet = true;
    o->data = v->data;
}

static iso_err train_steps(iso_training *t, const iso_trainer_job *j, const iso_engine_hooks *hooks,
                           iso_training_status *status, iso_error *e)
{
    iso_err err = ISO_OK;
    *status = iso_training_now(t);
    while (err == ISO_OK && !status->is_done) {
        if (hooks->should_stop && hooks->should_stop(hooks->ctx)) {
            err = iso_training_checkpoint(t, e);
            return err ? err : iso_fail(e, ISO_ERR_INTERRUPTED, "stopped");
        }
        err = iso_training_step(t, 1, status, e);
        if (err == ISO_OK && hooks->progress) {
            iso_trainer_event p = {.kind = ISO_TRAINER_PROGRESS,
                                   .step = status->step,
                                   .steps = j->spec->steps,
                                   .loss = (float)status->smooth_loss,
                                   .checkpoint_step = status->checkpoint_step};
            memcpy(p.id, j->id, 16);
            hooks->progress(hooks->ctx, &p);
        }
    }
    if (err == ISO_OK)
        iso_training_result(t, status);
    return err;
}

/* U56: an update that changes nothing is not sent. */
static iso_err check_not_empty(const iso_adapter *a, iso_error *e)
{
    iso_arena arena = {0};
    iso_lora_layer *layers = NULL;
    size_t count = 0;
    bool is_empty = true;
    iso_err err = a->kind->to_layers(a, &arena, &layers, &count, e);
    for (size_t i = 0; err == ISO_OK && i < count && is_empty; i++)
        for (size_t k = 0; k < layers[i].out * layers[i].rank && is_empty; k++)
            is_empty = layers[i].B[k] == 0.0F;
    iso_arena_free(&arena);
    if (err == ISO_OK && is_empty)
        err = iso_fail(e, ISO_ERR_DATA, "training changed nothing: every lora_B is zero [empty]");
    return err;
}

static iso_err pack_update(const iso_adapter *a, const iso_linear_head *joint_head,
                           const iso_buf *meta, iso_buf *container, iso_error *e)
{
    iso_buf config = {0}, model = {0}, head = {0};
    iso_container_file files[4];
    size_t n = 0;
    iso_err err = iso_adapter_write_bufs(a, NULL, NULL, &config, &model, e);
    if (err == ISO_OK && joint_head)
        err = iso_linear_save_buf(joint_head, &head, e);
    if (err == ISO_OK) {
        files[n++] = (iso_container_file){"adapter_config.json", config.data, config.size};
        files[n++] = (iso_container_file){"adapter_model.safetensors", model.data, model.size};
        files[n++] = (iso_container_file){"metadata.json", meta->data, meta->size};
        if (joint_head)
            files[n++] = (iso_container_file){"head.safetensors", head.data, head.size};
        err = iso_container_pack(files, n, container, e);
    }
    iso_buf_free(&config);
    iso_buf_free(&model);
    iso_buf_free(&head);
    return err;
}

static iso_err make_adapter(iso_engine *g, const iso_trainer_job *j, const parameters *p,
                            iso_adapter **out, iso_error *e)
{
    const iso_train_spec *s = j->spec;
    if (!iso_digest_is_zero(&j->base))
        return iso_engine_base(g, &j->base, out, e);
    iso_adapter_options o = {.kind = "lora",
                             .rank = s->rank,
                             .alpha = (double)s->alpha,
                             .use_rslora = s->is_rslora,
                             .targets = s->targets,
                             .target_count = s->target_count,
                             .first_block = (size_t)p->first_block,
                             .seed = s->seed};
    return iso_adapter_create(out, g->options.backbone, &o, e);
}

iso_err iso_engine_run_train(iso_engine *g, const iso_trainer_job *j, const iso_engine_hooks *hooks,
                             iso_trainer_event *out, iso_buf *container, iso_error *e)
{
    iso_task_view v = {0};
    iso_linear_head head = {0};
    iso_adapter *adapter = NULL;
    iso_training *training = NULL;
    iso_training_status status;
    iso_buf meta = {0};
    parameters p;
    char *checkpoint = iso_engine_checkpoint(g, j->id);
    iso_err err = check_generation(g, j, e);
    if (err == ISO_OK)
        err = iso_engine_head(g, &j->head, &head, e);
    if (err == ISO_OK)
        err = iso_engine_view(g->data, j->task, head.class_names, head.classes, &v, e);
    if (err == ISO_OK)
        err = read_parameters(j->spec, &p, e);
    if (err == ISO_OK)
        err = make_adapter(g, j, &p, &adapter, e);
    iso_training_setup setup = {.backbone = g->options.backbone, .adapter = adapter, .head = &head};
    if (err != ISO_OK)
        goto done;
    training_options(g, j, &p, &v, checkpoint, &setup.options);
    iso_image_feed *feed = &v.split[ISO_SPLIT_TRAIN].feed;
    feed->seed = j->spec->seed;
    feed->shift = (int)p.shift;
    feed->is_mirrored = p.mirror > 0;
    iso_train_set *sets[] = {&setup.train, &setup.val};
    for (int s = 0; s < 2; s++)
        *sets[s] = (iso_train_set){.n = v.split[s].n,
                                   .pixels = iso_view_pixels,
                                   .ctx = &v.split[s],
                                   .labels = v.split[s].labels};
    err = iso_training_open(&training, &setup, e);
    if (err == ISO_ERR_DATA && checkpoint && iso_path_exists(checkpoint)) {
        /* A checkpoint of another run under this id (the task's head changed): from the start. */
        iso_engine_forget(g, j->id);
        err = iso_training_open(&training, &setup, e);
    }
    if (err == ISO_OK)
        err = train_steps(training, j, hooks, &status, e);
    if (err == ISO_OK)
        err = check_not_empty(adapter, e);
    if (err != ISO_OK)
        goto done;
    iso_digest key = iso_digest_of(adapter->params, adapter->param_count * sizeof(float));
    const iso_feature_set_of *f;
    err = iso_engine_features(g->data, &v, adapter, &key, head.class_names, &f, e);
    if (err != ISO_OK)
        goto done;
    iso_engine_fill_scores(out, &head, &v, f);
    iso_engine_fill_data(out, &v);
    err = metadata(&v, head.class_names, status.step, out, status.smooth_loss, &meta, e);
    if (err == ISO_OK)
        err = pack_update(adapter, j->spec->head_mode == ISO_HEAD_JOINT ? &head : NULL, &meta,
                          container, e);
    seal_result(out, container);
done:
    iso_training_close(training);
    iso_adapter_close(adapter);
    iso_linear_free(&head);
    iso_task_view_free(&v);
    iso_buf_free(&meta);
    free(checkpoint);
    return err;
}
