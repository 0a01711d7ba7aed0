/* Shared by train, eval, predict and embed; see vision.h. */
#include "cli/vision.h"

#include "cli/command.h"
#include "core/fsio.h"
#include "core/log.h"
#include "core/progress.h"
#include "nn/data/feed.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NOTES_SHOWN = 8, IMAGES_A_CALL = 256 };

/* ---- model ---- */

static iso_err open_tokenizer(iso_vision *v, const char *backbone, iso_error *e)
{
    iso_err err = iso_tokenizer_open(&v->tokenizer, backbone, e);
    if (err)
        return err;
    size_t count = iso_tokenizer_count(v->tokenizer), words = v->backbone->shape.vocabulary;
    v->coding = (iso_text_coding){v->tokenizer, v->backbone->shape.tokens};
    return count <= words
               ? ISO_OK
               : iso_fail(e, ISO_ERR_DATA, "%s: vocab.txt has %zu tokens, the backbone knows %zu",
                          backbone, count, words);
}

iso_err iso_vision_open(iso_vision *v, const char *command, const char *backbone, iso_error *e)
{
    int h, w;
    *v = (iso_vision){0};
    if (!backbone)
        return iso_fail(e, ISO_ERR_USAGE, "say which backbone: --backbone DIR");
    iso_backbone_options o = {.max_tokens = ISO_VISION_TEXT_TOKENS};
    iso_err err = iso_backbone_open_as(&v->backbone, backbone, &o, e);
    if (err)
        return err;
    if (v->backbone->shape.modality == ISO_MODALITY_TEXT)
        return open_tokenizer(v, backbone, e);
    if (v->backbone->shape.modality == ISO_MODALITY_SOUND)
        return iso_fail(e, ISO_ERR_USAGE, "%s: takes sound, which this command does not read",
                        backbone);
    int side = (int)v->backbone->shape.image_size;
    char *config = iso_path_join(backbone, "preprocessor_config.json");
    if (!config)
        return iso_nomem(e, strlen(backbone));
    if (iso_path_exists(config)) {
        err = iso_preprocess_read(&v->pre, config, e);
    } else {
        iso_preprocess_default(&v->pre, side);
        fprintf(stderr,
                "isofed %s: note: %s has no preprocessor_config.json; images are resized to %d and "
                "normalised with mean and deviation 0.5\n",
                command, backbone, side);
    }
    free(config);
    if (err)
        return err;
    iso_preprocess_size(&v->pre, &h, &w);
    if (h != side || w != side)
        return iso_fail(e, ISO_ERR_DATA,
                        "%s: preprocessor_config.json gives %dx%d pixels, the backbone takes %dx%d",
                        backbone, w, h, side, side);
    return ISO_OK;
}

iso_err iso_vision_adapt(iso_vision *v, const char *adapter, iso_error *e)
{
    iso_err err = ISO_OK;
    if (adapter)
        err = iso_adapter_open(&v->adapter, v->backbone, adapter, e);
    return err ? err : iso_model_open(&v->model, v->backbone, v->adapter, false, e);
}

void iso_vision_close(iso_vision *v)
{
    iso_model_close(v->model);
    iso_adapter_close(v->adapter);
    iso_backbone_close(v->backbone);
    iso_tokenizer_close(v->tokenizer);
    *v = (iso_vision){0};
}

const char *iso_vision_noun(const iso_vision *v)
{
    return v->tokenizer ? "texts" : "images";
}

/* ---- data ---- */

static iso_err check_data(const iso_vision *v, const char *data, iso_error *e)
{
    bool is_text = iso_texts_are_at(data);
    if (v->tokenizer && !is_text && iso_path_exists(data))
        return iso_fail(e, ISO_ERR_USAGE,
                        "%s: the backbone takes texts: a folder with texts.tsv, or a .tsv file",
                        data);
    if (!v->tokenizer && is_text)
        return iso_fail(e, ISO_ERR_USAGE, "%s: are texts, and the backbone takes images", data);
    return ISO_OK;
}

iso_err iso_vision_load(const iso_vision *v, iso_image_set *s, const iso_image_options *o,
                        iso_error *e)
{
    iso_image_options own = *o;
    iso_err err = check_data(v, o->folder, e);
    own.pre = &v->pre;
    if (err)
        return err;
    return v->tokenizer ? iso_texts_load(s, &own, &v->coding, e) : iso_images_load(s, &own, e);
}

iso_err iso_vision_load_train_val(const iso_vision *v, iso_image_set *train, iso_image_set *val,
                                  const iso_image_options *o, double val_share, uint64_t seed,
                                  iso_error *e)
{
    iso_image_options own = *o;
    iso_err err = check_data(v, o->folder, e);
    own.pre = &v->pre;
    if (err)
        return err;
    return v->tokenizer ? iso_texts_load_train_val(train, val, &own, val_share, seed, &v->coding, e)
                        : iso_images_load_train_val(train, val, &own, val_share, seed, e);
}

bool iso_vision_has_split(const iso_vision *v, const char *data, const char *split)
{
    return v->tokenizer ? iso_texts_have_split(data, split) : iso_images_has_split(data, split);
}

void iso_vision_print_notes(const char *command, const iso_image_set *s)
{
    size_t shown[ISO_NOTE_OTHER + 1] = {0};
    for (size_t i = 0; i < s->note_count; i++) {
        const iso_image_note *n = &s->notes[i];
        char path[512];
        if (++shown[n->kind] > NOTES_SHOWN)
            continue;
        iso_log_quote(path, sizeof path, n->path);
        if (n->kind == ISO_NOTE_UNREADABLE)
            fprintf(stderr, "isofed %s: warning: left out %s: %s\n", command, path, n->reason);
        else
            fprintf(stderr, "isofed %s: warning: %s %s\n", command, path, n->reason);
    }
    for (int k = 0; k <= ISO_NOTE_OTHER; k++)
        if (shown[k] > NOTES_SHOWN)
            fprintf(stderr, "isofed %s: warning: ... and %zu more of this kind\n", command,
                    shown[k] - NOTES_SHOWN);
}

iso_err iso_vision_features(const iso_vision *v, const iso_image_set *s, bool quiet,
                            float **features, int **labels, iso_error *e)
{
    iso_image_feed feed = {.set = s};
    iso_source source = {.n = s->count, .pixels = iso_image_feed_pixels, .ctx = &feed};
    size_t dim = iso_model_dim(v->model);
    iso_err err = ISO_OK;
    iso_progress p;
    uint32_t idx[IMAGES_A_CALL];
    *features = iso_calloc(s->count, dim * sizeof **features);
    *labels = iso_calloc(s->count, sizeof **labels);
    if (!*features || !*labels)
        return iso_nomem(e, s->count * dim * sizeof **features);
    iso_images_labels(s, *labels);
    iso_progress_start(&p, "features", iso_vision_noun(v), (double)s->count, quiet);
    for (size_t at = 0; !err && at < s->count; at += IMAGES_A_CALL) {
        size_t n = s->count - at < IMAGES_A_CALL ? s->count - at : IMAGES_A_CALL;
        for (size_t i = 0; i < n; i++)
            idx[i] = (uint32_t)(at + i);
        err = iso_model_features_of(v->model, &source, idx, n, *features + at * dim, e);
        if (!err && iso_cli_interrupted)
            err = iso_fail(e, ISO_ERR_INTERRUPTED, "stopped after %zu of %zu %s", at + n, s->count,
                           iso_vision_noun(v));
        iso_progress_update(&p, (double)(at + n), NULL);
    }
    iso_progress_end(&p, (double)s->count);
    return err;
}

iso_err iso_vision_head(const iso_vision *v, const char *path, iso_linear_head *h, iso_error *e)
{
    if (!path)
        return iso_fail(e, ISO_ERR_USAGE, "say which head: --head FILE");
    iso_err err = iso_linear_load(h, path, e);
    if (!err && h->dim != v->backbone->shape.feature) {
        err = iso_fail(e, ISO_ERR_SHAPE, "%s: head takes %zu features, the backbone gives %zu",
                       path, h->dim, v->backbone->shape.feature);
        iso_linear_free(h);
    }
    return err;
}
