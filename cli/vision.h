/* What train, eval, predict and embed share: a model from its folders, sets of images or texts with
 * their warnings, features. Which of the two it is, the backbone says. */
#ifndef ISO_CLI_VISION_H
#define ISO_CLI_VISION_H

#include "nn/data/images.h"
#include "nn/data/texts.h"
#include "nn/head/linear.h"
#include "nn/model.h"

enum { ISO_VISION_TEXT_TOKENS = 128 }; /* texts are cut there, or where the positions end */

typedef struct {
    iso_backbone *backbone;
    iso_adapter *adapter; /* NULL: none */
    iso_model *model;
    iso_preprocess pre;       /* images */
    iso_tokenizer *tokenizer; /* text; else NULL */
    iso_text_coding coding;
} iso_vision;

/* Backbone with its preprocessing (the default for its size, with a note, where the folder has no
 * preprocessor_config.json; a text backbone's tokenizer). ISO_ERR_DATA when they do not fit. */
iso_err iso_vision_open(iso_vision *v, const char *command, const char *backbone,
                        iso_error *e) ISO_MUST_CHECK;
/* Makes the model; adapter is a PEFT folder, or NULL. */
iso_err iso_vision_adapt(iso_vision *v, const char *adapter, iso_error *e) ISO_MUST_CHECK;
void iso_vision_close(iso_vision *v); /* zeroed struct is fine */
/* "images" or "texts". */
const char *iso_vision_noun(const iso_vision *v);

/* Loads one split, or training and validation, from a folder of images or a table of texts; o->pre
 * is filled in. ISO_ERR_USAGE when the data are not what the backbone takes. */
iso_err iso_vision_load(const iso_vision *v, iso_image_set *s, const iso_image_options *o,
                        iso_error *e) ISO_MUST_CHECK;
iso_err iso_vision_load_train_val(const iso_vision *v, iso_image_set *train, iso_image_set *val,
                                  const iso_image_options *o, double val_share, uint64_t seed,
                                  iso_error *e) ISO_MUST_CHECK;
bool iso_vision_has_split(const iso_vision *v, const char *data, const char *split);

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
