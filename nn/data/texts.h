/* Labelled texts from a table: a folder with texts.tsv, or a .tsv file itself (DESIGN 6).
 *
 * The first line names the columns: text, label and, where there is more than one, split (train
 * without it); others are ignored. In a text \t, \n and \\ stand for tab, line feed and backslash.
 * What is loaded is an image set whose rows have a text and token ids instead of pixels, so that
 * all that works on rows, labels, notes and digests is shared. A line that cannot be used is left
 * out and noted with its number; more than max(1, 1 %) of such lines is an error unless allowed
 * (specs/security.md 9.1). Order is that of the file. */
#ifndef ISO_NN_DATA_TEXTS_H
#define ISO_NN_DATA_TEXTS_H

#include "nn/data/images.h"
#include "nn/data/tokenizer.h"

typedef struct {
    const iso_tokenizer *tokenizer; /* NULL: no tokens, only rows */
    size_t room;                    /* most tokens of a text, 2 or more */
} iso_text_coding;

/* True for a folder with texts.tsv and for a regular file whose name ends in .tsv. */
bool iso_texts_are_at(const char *path);
bool iso_texts_have_split(const char *path, const char *split);

/* As iso_images_load and iso_images_load_train_val (o->pre is not looked at). */
iso_err iso_texts_load(iso_image_set *s, const iso_image_options *o, const iso_text_coding *c,
                       iso_error *e) ISO_MUST_CHECK;
iso_err iso_texts_load_train_val(iso_image_set *train, iso_image_set *val,
                                 const iso_image_options *o, double val_share, uint64_t seed,
                                 const iso_text_coding *c, iso_error *e) ISO_MUST_CHECK;

/* One text into out (room), -1 behind the last token. */
void iso_text_encode(const iso_text_coding *c, const char *text, size_t n, int32_t *out);

#endif
