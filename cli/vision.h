/* What the image commands (train, eval, predict, embed) share: a model from its folders, image
 * sets with their warnings, features. */
#ifndef ISO_CLI_VISION_H
#define ISO_CLI_VISION_H

#include "nn/data/images.h"
#include "nn/head/linear.h"
#include "nn/model.h"

typedef struct {
    iso_backbone *backbone;
    iso_adapter *adapter; /* NULL: none */
    iso_model *model;
    iso_preprocess pre;
} iso_vision;

/* Backbone with its preprocessing (the default for its size, with a note, where the folder has no
 * preprocessor_config.json). ISO_ERR_DATA when the two disagree about the size. */
iso_err iso_vision_open(iso_vision *v, const char *command, const char *backbone,
                        iso_error *e) ISO_MUST_CHECK;
/* Makes the model; adapter is a PEFT folder, or NULL. */
iso_err iso_vision_adapt(iso_vision *v, const char *adapter, iso_error *e) ISO_MUST_CHECK;
void iso_vision_close(iso_vision *v); /* zeroed struct is fine */

/* One line on stderr for each note of the set, at most a few of a kind, then their number. */
void iso_vision_print_notes(const char *command, const iso_image_set *s);

/* Features (count, dim) and labels (count), new allocations; progress unless quiet. Stops with
 * ISO_ERR_INTERRUPTED at Ctrl-C. */
iso_err iso_vision_features(const iso_vision *v, const iso_image_set *s, bool quiet,
                            float **features, int **labels, iso_error *e) ISO_MUST_CHECK;

/* The head, checked against the backbone's feature size. */
iso_err iso_vision_head(const iso_vision *v, const char *path, iso_linear_head *h,
                        iso_error *e) ISO_MUST_CHECK;

#endif
