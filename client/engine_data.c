#include "client/engine_data.h"

#include "client/spool.h"
#include "nn/head/probe.h"

#include <stdlib.h>
#include <string.h>

enum { FEATURES_KEPT = 6, SPLIT_SEED = 1, PIXEL_CHUNK = 16 };

typedef struct {
    iso_digest spool; /* of the scan that the images were loaded at */
    bool is_loaded;
    iso_image_set set[ISO_SPLITS];
    iso_digest data;
} task_images;

typedef struct {
    iso_digest key;
    uint64_t used; /* 0: free */
    iso_feature_set_of f;
} kept_features;

/* Hidden states under the lowest adapted block: many candidates are scored on the same images, and
 * frozen blocks give the same each time. Of one task at a time. */
typedef struct {
    iso_digest data;
    iso_prefix split[ISO_SPLITS];
} kept_prefix;

struct iso_engine_data {
    iso_engine_options options;
    task_images *tasks; /* one a configured task */
    kept_features kept[FEATURES_KEPT];
    kept_prefix prefix;
    uint64_t clock;
};

iso_err iso_engine_data_open(iso_engine_data **out, const iso_engine_options *options, iso_error *e)
{
    iso_engine_data *d = iso_calloc(1, sizeof *d);
    *out = NULL;
    if (!d)
        return iso_nomem(e, sizeof *d);
    d->options = *options;
    d->tasks = iso_calloc(options->data_count, sizeof *d->tasks);
    if (!d->tasks) {
        free(d);
        return iso_nomem(e, options->data_count * sizeof *d->tasks);
    }
    *out = d;
    return ISO_OK;
}

static void drop_features(kept_features *k)
{
    for (int s = 0; s < ISO_SPLITS; s++)
        free(k->f.features[s]);
    iso_linear_free(&k->f.head);
    memset(k, 0, sizeof *k);
}

static void drop_prefix(kept_prefix *p)
{
    for (int s = 0; s < ISO_SPLITS; s++)
        iso_prefix_free(&p->split[s]);
    memset(p, 0, sizeof *p);
}

static void drop_images(task_images *t)
{
    for (int s = 0; s < ISO_SPLITS; s++)
        iso_images_free(&t->set[s]);
    memset(t, 0, sizeof *t);
}

void iso_engine_data_close(iso_engine_data *d)
{
    if (!d)
        return;
    for (int i = 0; i < FEATURES_KEPT; i++)
        drop_features(&d->kept[i]);
    for (size_t i = 0; i < d->options.data_count; i++)
        drop_images(&d->tasks[i]);
    drop_prefix(&d->prefix);
    free(d->tasks);
    free(d);
}

/* ---- images ---- */

static iso_err load(iso_engine_data *d, size_t task, const iso_digest *spool, iso_error *e)
{
    task_images *t = &d->tasks[task];
    const char *folder = d->options.data[task].folder;
    iso_image_options o = {
        .folder = folder, .pre = &d->options.preprocess, .allow_unreadable = true};
    drop_images(t);
    iso_err err = iso_images_load_train_val(&t->set[ISO_SPLIT_TRAIN], &t->set[ISO_SPLIT_VAL], &o,
                                            d->options.val_share, SPLIT_SEED, e);
    if (err == ISO_OK && iso_images_has_split(folder, "test")) {
        o.split = "test";
        err = iso_images_load(&t->set[ISO_SPLIT_TEST], &o, e);
    }
    if (err == ISO_OK && d->options.looked)
        d->options.looked(d->options.blob_ctx, task, t->set);
    if (err != ISO_OK) {
        drop_images(t);
        return err;
    }
    iso_hasher h;
    iso_hasher_init(&h);
    for (int s = 0; s < ISO_SPLITS; s++) {
        iso_digest of = {0};
        if (t->set[s].count)
            of = iso_images_digest(&t->set[s]);
        iso_hasher_add(&h, of.b, sizeof of.b);
    }
    t->data = iso_hasher_end(&h);
    t->spool = *spool;
    t->is_loaded = true;
    return ISO_OK;
}

static iso_err fill_view(iso_view *v, const iso_image_set *set, const char *const *names,
                         size_t classes, iso_arena *arena, iso_error *e)
{
    v->feed = (iso_image_feed){.set = set};
    v->rows = iso_arena_alloc(arena, set->count, sizeof *v->rows);
    v->labels = iso_arena_alloc(arena, set->count, sizeof *v->labels);
    int *map = iso_arena_alloc(arena, set->class_count, sizeof *map);
    if (!v->rows || !v->labels || !map)
        return iso_nomem(e, set->count * sizeof *v->labels);
    for (size_t c = 0; c < set->class_count; c++) {
        map[c] = -1;
        for (size_t k = 0; k < classes; k++)
            if (strcmp(set->class_names[c], names[k]) == 0)
                map[c] = (int)k;
    }
    v->n = 0;
    for (size_t i = 0; i < set->count; i++) {
        int label = map[set->rows[i].label];
        if (label < 0)
            continue; /* a class that the task does not have */
        v->rows[v->n] = (uint32_t)i;
        v->labels[v->n++] = label;
    }
    return ISO_OK;
}

iso_err iso_engine_view(iso_engine_data *d, const char *task, const char *const *names,
                        size_t classes, iso_task_view *out, iso_error *e)
{
    iso_spool_state spool;
    size_t i = 0;
    memset(out, 0, sizeof *out);
    while (i < d->options.data_count && strcmp(d->options.data[i].task, task) != 0)
        i++;
    if (i == d->options.data_count)
        return iso_fail(e, ISO_ERR_DATA, "task \"%.64s\" has no folder here", task);
    iso_err err = iso_spool_scan(d->options.data[i].folder, d->options.val_share, &spool, e);
    task_images *t = &d->tasks[i];
    if (err == ISO_OK && (!t->is_loaded || !iso_digest_equal(&t->spool, &spool.digest)))
        err = load(d, i, &spool.digest, e);
    for (int s = 0; s < ISO_SPLITS && err == ISO_OK; s++) {
        err = fill_view(&out->split[s], &t->set[s], names, classes, &out->arena, e);
        out->images += t->set[s].count;
        out->bytes += t->set[s].file_bytes;
    }
    if (err == ISO_OK && out->split[ISO_SPLIT_TRAIN].n == 0)
        err = iso_fail(e, ISO_ERR_DATA,
                       "task %s: none of its training images is of the task's classes", task);
    if (err != ISO_OK) {
        iso_task_view_free(out);
        return err;
    }
    out->classes = classes;
    out->class_counts = iso_arena_calloc(&out->arena, classes, sizeof *out->class_counts);
    if (!out->class_counts) {
        iso_task_view_free(out);
        return iso_nomem(e, classes * sizeof *out->class_counts);
    }
    for (size_t k = 0; k < out->split[ISO_SPLIT_TRAIN].n; k++)
        out->class_counts[out->split[ISO_SPLIT_TRAIN].labels[k]]++;
    iso_hasher h;
    iso_hasher_init(&h);
    iso_hasher_add(&h, t->data.b, sizeof t->data.b);
    for (size_t k = 0; k < classes; k++)
        iso_hasher_add(&h, names[k], strlen(names[k]) + 1);
    out->data = iso_hasher_end(&h);
    return ISO_OK;
}

void iso_task_view_free(iso_task_view *v)
{
    iso_arena_free(&v->arena);
    memset(v, 0, sizeof *v);
}

void iso_view_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out)
{
    const iso_view *v = ctx;
    size_t image = (size_t)v->feed.set->height * (size_t)v->feed.set->width * 3;
    for (size_t at = 0; at < n; at += PIXEL_CHUNK) {
        uint32_t rows[PIXEL_CHUNK];
        size_t m = n - at < PIXEL_CHUNK ? n - at : PIXEL_CHUNK;
        for (size_t i = 0; i < m; i++)
            rows[i] = v->rows[idx[at + i]];
        iso_image_feed_pixels((void *)(uintptr_t)&v->feed, rows, m, draw, out + at * image);
    }
}

/* ---- features ---- */

iso_score iso_engine_score(const iso_linear_head *h, const iso_task_view *v, iso_split s,
                           const iso_feature_set_of *f)
{
    const iso_view *w = &v->split[s];
    if (w->n == 0)
        return (iso_score){0};
    return (iso_score){
        .is_known = true,
        .value = (float)iso_linear_accuracy(h, f->features[s], w->labels, w->n),
        .samples = w->n,
    };
}

/* The kept prefix serves an adapter that leaves its blocks alone. */
static iso_err keep_prefix(iso_engine_data *d, const iso_model *model, const iso_task_view *v,
                           size_t lowest, iso_error *e)
{
    const iso_backbone_shape *shape = &d->options.backbone->shape;
    size_t budget = d->options.cache_bytes;
    kept_prefix *p = &d->prefix;
    bool is_same = iso_digest_equal(&p->data, &v->data);
    if (lowest == 0 || (is_same && p->split[ISO_SPLIT_TRAIN].block <= lowest))
        return ISO_OK;
    drop_prefix(p);
    p->data = v->data;
    for (int s = 0; s < ISO_SPLITS; s++) {
        const iso_view *w = &v->split[s];
        iso_source source = {.n = w->n, .pixels = iso_view_pixels, .ctx = (void *)(uintptr_t)w};
        iso_err err =
            w->n ? iso_model_prefix(model, &source, lowest, budget, &p->split[s], e) : ISO_OK;
        if (err != ISO_OK) {
            drop_prefix(p);
            return err;
        }
        p->split[s].block = lowest;
        if (p->split[s].hidden)
            budget -= w->n * shape->tokens * shape->dim * sizeof(float);
    }
    return ISO_OK;
}

static iso_err compute(iso_engine_data *d, const iso_task_view *v, const iso_adapter *adapter,
                       const char *const *names, iso_feature_set_of *f, iso_error *e)
{
    iso_model *model = NULL;
    size_t dim = d->options.backbone->shape.feature;
    iso_err err = iso_model_open(&model, d->options.backbone, adapter, false, e);
    if (err == ISO_OK && adapter)
        err = keep_prefix(d, model, v, adapter->lowest_block, e);
    for (int s = 0; s < ISO_SPLITS && err == ISO_OK; s++) {
        const iso_view *w = &v->split[s];
        iso_source source = {.n = w->n, .pixels = iso_view_pixels, .ctx = (void *)(uintptr_t)w};
        if (d->prefix.split[s].block && iso_digest_equal(&d->prefix.data, &v->data) &&
            (!adapter || d->prefix.split[s].block <= adapter->lowest_block))
            source.prefix = &d->prefix.split[s];
        f->features[s] = iso_alloc_aligned(w->n * dim + 1, sizeof(float));
        if (!f->features[s])
            err = iso_nomem(e, w->n * dim * sizeof(float));
        else if (w->n)
            err = iso_model_features_of(model, &source, NULL, w->n, f->features[s], e);
    }
    iso_model_close(model);
    if (err != ISO_OK)
        return err;
    const iso_view *train = &v->split[ISO_SPLIT_TRAIN];
    iso_feature_set set = {f->features[ISO_SPLIT_TRAIN], train->labels, train->n};
    /* Validation images stay unseen: they judge the release (S94). */
    err = iso_probe_fit(&f->head, ISO_PROBE_LOGISTIC, &set, NULL, dim, names, v->classes, NULL, e);
    for (int s = 0; s < ISO_SPLITS && err == ISO_OK; s++)
        f->refitted[s] = iso_engine_score(&f->head, v, (iso_split)s, f);
    return err;
}

iso_err iso_engine_features(iso_engine_data *d, const iso_task_view *v, const iso_adapter *adapter,
                            const iso_digest *key, const char *const *names,
                            const iso_feature_set_of **out, iso_error *e)
{
    iso_hasher h;
    iso_hasher_init(&h);
    iso_hasher_add(&h, key->b, sizeof key->b);
    iso_hasher_add(&h, v->data.b, sizeof v->data.b);
    iso_digest full = iso_hasher_end(&h);
    kept_features *slot = &d->kept[0];
    for (int i = 0; i < FEATURES_KEPT; i++) {
        kept_features *k = &d->kept[i];
        if (k->used && iso_digest_equal(&k->key, &full)) {
            k->used = ++d->clock;
            *out = &k->f;
            return ISO_OK;
        }
        if (k->used < slot->used)
            slot = k;
    }
    drop_features(slot);
    iso_err err = compute(d, v, adapter, names, &slot->f, e);
    if (err != ISO_OK) {
        drop_features(slot);
        return err;
    }
    slot->key = full;
    slot->used = ++d->clock;
    *out = &slot->f;
    return ISO_OK;
}
