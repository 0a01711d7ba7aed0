#include "client/engine_inner.h"
#include "core/fsio.h"
#include "crypto/container.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

iso_err iso_engine_open(iso_engine **out, const iso_engine_options *options, iso_error *e)
{
    *out = NULL;
    if (options->backbone->shape.modality != ISO_MODALITY_IMAGE)
        return iso_fail(e, ISO_ERR_USAGE, "sites train on images: the backbone reads %s",
                        options->backbone->shape.modality == ISO_MODALITY_TEXT ? "text" : "sound");
    iso_engine *g = iso_calloc(1, sizeof *g);
    if (!g)
        return iso_nomem(e, sizeof *g);
    g->options = *options;
    iso_err err = iso_engine_data_open(&g->data, options, e);
    if (err == ISO_OK && options->checkpoint_dir)
        err = iso_make_dirs(options->checkpoint_dir, 0700, e);
    if (err != ISO_OK) {
        iso_engine_close(g);
        return err;
    }
    *out = g;
    return ISO_OK;
}

void iso_engine_close(iso_engine *g)
{
    if (!g)
        return;
    iso_engine_data_close(g->data);
    free(g);
}

iso_err iso_engine_preprocess(const char *folder, const iso_backbone *b, iso_preprocess *out,
                              iso_error *e)
{
    int height, width;
    char *path = iso_path_join(folder, "preprocessor_config.json");
    if (!path)
        return iso_nomem(e, strlen(folder));
    iso_err err = ISO_OK;
    if (iso_path_exists(path))
        err = iso_preprocess_read(out, path, e);
    else
        iso_preprocess_default(out, (int)b->shape.image_size);
    free(path);
    if (err != ISO_OK)
        return err;
    iso_preprocess_size(out, &height, &width);
    if ((size_t)height != b->shape.image_size || (size_t)width != b->shape.image_size)
        return iso_fail(e, ISO_ERR_SHAPE, "%s: images become %dx%d, the backbone takes %zux%zu",
                        folder, height, width, b->shape.image_size, b->shape.image_size);
    return ISO_OK;
}

char *iso_engine_checkpoint(const iso_engine *g, const uint8_t id[16])
{
    char hex[33];
    iso_hex(hex, id, 16);
    return g->options.checkpoint_dir ? iso_strf("%s/%s.safetensors", g->options.checkpoint_dir, hex)
                                     : NULL;
}

void iso_engine_forget(iso_engine *g, const uint8_t id[16])
{
    char *path = iso_engine_checkpoint(g, id);
    if (path)
        remove(path); /* missing is fine; what stays is overwritten by the next job of that id */
    free(path);
}

/* ---- pieces of jobs ---- */

iso_err iso_engine_head(iso_engine *g, const iso_digest *d, iso_linear_head *out, iso_error *e)
{
    iso_buf bytes = {0};
    iso_err err = iso_digest_is_zero(d) ? iso_fail(e, ISO_ERR_DATA, "the task has no head yet")
                                        : g->options.read_blob(g->options.blob_ctx, d, &bytes, e);
    if (err == ISO_OK)
        err = iso_linear_parse(out, bytes.data, bytes.size, "head", e);
    iso_buf_free(&bytes);
    if (err == ISO_OK && out->dim != g->options.backbone->shape.feature) {
        err = iso_fail(e, ISO_ERR_SHAPE, "the head is for features of %zu, the backbone has %zu",
                       out->dim, g->options.backbone->shape.feature);
        iso_linear_free(out);
    }
    return err;
}

static iso_err parse_adapter(const iso_engine *g, const iso_buf *config, const iso_buf *model,
                             iso_adapter **out, iso_error *e)
{
    iso_peft peft = {0};
    iso_err err = iso_peft_parse(&peft, config->data, config->size, model->data, model->size, true,
                                 "adapter", e);
    if (err == ISO_OK) {
        err = iso_adapter_from_peft(out, g->options.backbone, &peft, e);
        iso_peft_close(&peft);
    }
    return err;
}

/* NULL for the frozen backbone. */
iso_err iso_engine_adapter(iso_engine *g, const iso_digest *config, const iso_digest *model,
                           iso_adapter **out, iso_error *e)
{
    iso_buf c = {0}, m = {0};
    *out = NULL;
    if (iso_digest_is_zero(model))
        return ISO_OK;
    iso_err err = g->options.read_blob(g->options.blob_ctx, config, &c, e);
    if (err == ISO_OK)
        err = g->options.read_blob(g->options.blob_ctx, model, &m, e);
    if (err == ISO_OK)
        err = parse_adapter(g, &c, &m, out, e);
    iso_buf_free(&c);
    iso_buf_free(&m);
    return err;
}

iso_err iso_engine_base(iso_engine *g, const iso_digest *d, iso_adapter **out, iso_error *e)
{
    iso_buf bytes = {0};
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t n = 0;
    iso_code code;
    iso_err err = g->options.read_blob(g->options.blob_ctx, d, &bytes, e);
    if (err == ISO_OK)
        err = iso_container_unpack(bytes.data, bytes.size, files, &n, &code, e);
    if (err == ISO_OK) {
        const iso_container_file *c = iso_container_find(files, n, "adapter_config.json");
        const iso_container_file *m = iso_container_find(files, n, "adapter_model.safetensors");
        if (!c || !m) {
            err = iso_fail(e, ISO_ERR_DATA, "the adapter to start from is incomplete");
        } else {
            iso_buf config = {.data = (uint8_t *)(uintptr_t)c->data, .size = c->size};
            iso_buf model = {.data = (uint8_t *)(uintptr_t)m->data, .size = m->size};
            err = parse_adapter(g, &config, &model, out, e);
        }
    }
    iso_buf_free(&bytes);
    return err;
}

/* Names the adapter for the cache of features. */
static iso_digest adapter_key(const iso_digest *config, const iso_digest *model)
{
    iso_hasher h;
    iso_hasher_init(&h);
    iso_hasher_add(&h, config->b, sizeof config->b);
    iso_hasher_add(&h, model->b, sizeof model->b);
    return iso_hasher_end(&h);
}

void iso_engine_fill_scores(iso_trainer_event *out, const iso_linear_head *head,
                            const iso_task_view *v, const iso_feature_set_of *f)
{
    out->val =
        (iso_score_pair){iso_engine_score(head, v, ISO_SPLIT_VAL, f), f->refitted[ISO_SPLIT_VAL]};
    out->test =
        (iso_score_pair){iso_engine_score(head, v, ISO_SPLIT_TEST, f), f->refitted[ISO_SPLIT_TEST]};
}

void iso_engine_fill_data(iso_trainer_event *out, const iso_task_view *v)
{
    out->samples = v->split[ISO_SPLIT_TRAIN].n;
    out->data_images = v->images;
    out->data_bytes = v->bytes;
}

/* ---- the jobs that judge ---- */

/* Logits of the first image of the task, as a digest: the known input of S95. */
static iso_err known_input(iso_engine *g, const iso_task_view *v, const iso_adapter *adapter,
                           const iso_linear_head *head, iso_digest *out, iso_error *e)
{
    const iso_view *w = &v->split[v->split[ISO_SPLIT_VAL].n ? ISO_SPLIT_VAL : ISO_SPLIT_TRAIN];
    iso_source source = {.n = w->n, .pixels = iso_view_pixels, .ctx = (void *)(uintptr_t)w};
    const uint32_t first = 0;
    iso_model *model = NULL;
    float *feature = iso_calloc(head->dim, sizeof *feature);
    float *logits = iso_calloc(head->classes, sizeof *logits);
    iso_err err = feature && logits ? iso_model_open(&model, g->options.backbone, adapter, false, e)
                                    : iso_nomem(e, head->dim * sizeof *feature);
    if (err == ISO_OK)
        err = iso_model_features_of(model, &source, &first, 1, feature, e);
    if (err == ISO_OK) {
        iso_linear_logits(head, feature, 1, logits);
        *out = iso_digest_of(logits, head->classes * sizeof *logits);
    }
    iso_model_close(model);
    free(feature);
    free(logits);
    return err;
}

/* EVALUATE, TRIAL, CHECK: an adapter that came from outside, on the site's images. */
static iso_err run_score(iso_engine *g, const iso_trainer_job *j, iso_trainer_event *out,
                         iso_error *e)
{
    iso_task_view v = {0}, w = {0};
    iso_linear_head head = {0}, old = {0};
    iso_adapter *adapter = NULL, *before = NULL;
    const iso_feature_set_of *f;
    iso_err err = iso_engine_head(g, &j->head, &head, e);
    if (err == ISO_OK)
        err = iso_engine_adapter(g, &j->adapter_config, &j->adapter_model, &adapter, e);
    if (err == ISO_OK)
        err = iso_engine_view(g->data, j->task, head.class_names, head.classes, &v, e);
    if (err != ISO_OK)
        goto done;
    iso_engine_fill_data(out, &v);
    if (j->kind != ISO_TRAINER_EVALUATE) {
        err = known_input(g, &v, adapter, &head, &out->output, e);
        if (err != ISO_OK || j->kind == ISO_TRAINER_CHECK)
            goto done;
    }
    iso_digest key = adapter_key(&j->adapter_config, &j->adapter_model);
    if (!adapter)
        key = (iso_digest){0};
    err = iso_engine_features(g->data, &v, adapter, &key, head.class_names, &f, e);
    if (err != ISO_OK)
        goto done;
    iso_engine_fill_scores(out, &head, &v, f);
    if (j->kind != ISO_TRAINER_TRIAL)
        goto done;
    err = iso_engine_head(g, iso_digest_is_zero(&j->before_head) ? &j->head : &j->before_head, &old,
                          e);
    if (err == ISO_OK)
        err = iso_engine_adapter(g, &j->before_config, &j->before_model, &before, e);
    if (err == ISO_OK)
        err = iso_engine_view(g->data, j->task, old.class_names, old.classes, &w, e);
    if (err != ISO_OK)
        goto done;
    key = before ? adapter_key(&j->before_config, &j->before_model) : (iso_digest){0};
    err = iso_engine_features(g->data, &w, before, &key, old.class_names, &f, e);
    if (err == ISO_OK)
        out->val_before = (iso_score_pair){iso_engine_score(&old, &w, ISO_SPLIT_VAL, f),
                                           f->refitted[ISO_SPLIT_VAL]};
done:
    iso_adapter_close(adapter);
    iso_adapter_close(before);
    iso_linear_free(&head);
    iso_linear_free(&old);
    iso_task_view_free(&v);
    iso_task_view_free(&w);
    return err;
}

/* S93: what the files say fits the backbone, and every number is finite. */
static iso_err run_inspect(iso_engine *g, const iso_trainer_job *j, iso_error *e)
{
    iso_linear_head head = {0};
    iso_adapter *adapter = NULL;
    iso_err err = iso_engine_adapter(g, &j->adapter_config, &j->adapter_model, &adapter, e);
    if (err == ISO_OK && !iso_digest_is_zero(&j->head))
        err = iso_engine_head(g, &j->head, &head, e);
    iso_adapter_close(adapter);
    iso_linear_free(&head);
    return err;
}

iso_err iso_engine_run(iso_engine *g, const iso_trainer_job *job, const iso_engine_hooks *hooks,
                       iso_trainer_event *out, iso_buf *container, iso_error *e)
{
    static const iso_engine_hooks none;
    memset(out, 0, sizeof *out);
    out->kind = ISO_TRAINER_DONE;
    memcpy(out->id, job->id, 16);
    if (!hooks)
        hooks = &none;
    switch (job->kind) {
    case ISO_TRAINER_HEAD:
        return iso_engine_run_head(g, job, out, container, e);
    case ISO_TRAINER_TRAIN:
        return iso_engine_run_train(g, job, hooks, out, container, e);
    case ISO_TRAINER_EVALUATE:
    case ISO_TRAINER_TRIAL:
    case ISO_TRAINER_CHECK:
        return run_score(g, job, out, e);
    case ISO_TRAINER_INSPECT:
        return run_inspect(g, job, e);
    }
    return iso_fail(e, ISO_ERR_INTERNAL, "unknown job");
}
