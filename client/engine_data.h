/* Images and features as the engine's jobs need them: loaded once, kept while they do not change.
 */
#ifndef ISO_CLIENT_ENGINE_DATA_H
#define ISO_CLIENT_ENGINE_DATA_H

#include "client/engine.h"
#include "nn/data/feed.h"
#include "nn/head/linear.h"
#include "nn/model.h"

typedef enum { ISO_SPLIT_TRAIN, ISO_SPLIT_VAL, ISO_SPLIT_TEST, ISO_SPLITS } iso_split;

/* One task's images, and how they are seen by a list of class names. */
typedef struct {
    iso_image_feed feed; /* as they are, until a training asks for shifts */
    uint32_t *rows;      /* of the feed's set; images of other classes are left out */
    int *labels;         /* index in the list of names */
    size_t n;
} iso_view;

typedef struct {
    iso_view split[ISO_SPLITS];
    uint64_t *class_counts; /* of the training images */
    size_t classes;
    uint64_t images, bytes; /* of the folder: all splits, all classes */
    iso_digest data;        /* of images and names: what results are keyed by */
    iso_arena arena;
} iso_task_view;

/* Features (n, dim) by split, and the head fitted on those of the training images. */
typedef struct {
    float *features[ISO_SPLITS];
    iso_score refitted[ISO_SPLITS];
    iso_linear_head head; /* the refitted one */
} iso_feature_set_of;

typedef struct iso_engine_data iso_engine_data;

iso_err iso_engine_data_open(iso_engine_data **out, const iso_engine_options *options,
                             iso_error *e) ISO_MUST_CHECK;
void iso_engine_data_close(iso_engine_data *d);

/* The task's images under `names`; loads or reloads them when the folder changed. A task without
 * a readable training image is ISO_ERR_DATA. */
iso_err iso_engine_view(iso_engine_data *d, const char *task, const char *const *names,
                        size_t classes, iso_task_view *out, iso_error *e) ISO_MUST_CHECK;
void iso_task_view_free(iso_task_view *v);

/* An iso_pixels_fn (nn/model.h) over a view: ctx is the iso_view, idx counts in the view. */
void iso_view_pixels(void *ctx, const uint32_t *idx, size_t n, uint64_t draw, float *out);

/* Features of all splits under `adapter` (NULL: frozen), refitted head and its scores. Kept under
 * `key` (names the adapter; the view's digest is added), owned by the cache: valid until the next
 * call. */
iso_err iso_engine_features(iso_engine_data *d, const iso_task_view *v, const iso_adapter *adapter,
                            const iso_digest *key, const char *const *names,
                            const iso_feature_set_of **out, iso_error *e) ISO_MUST_CHECK;

/* Share of right answers of a head on a split; unknown without images. */
iso_score iso_engine_score(const iso_linear_head *h, const iso_task_view *v, iso_split s,
                           const iso_feature_set_of *f);

#endif
