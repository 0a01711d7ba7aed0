/* WordPiece, as BERT's uncased and cased models use it (Devlin et al. 2019; Wu et al. 2016).
 *
 * Text is cleaned (control characters and bytes that are no UTF-8 dropped, every space a blank),
 * lower-cased and stripped of accents where the model is uncased, cut at spaces, at every mark of
 * punctuation and around every CJK ideograph; each word is then taken apart greedily into the
 * longest pieces of the vocabulary, pieces within a word with "##" before them. A word that cannot
 * be, or has more than 100 characters, is [UNK]. Names of special tokens in a text are text. */
#ifndef ISO_NN_DATA_TOKENIZER_H
#define ISO_NN_DATA_TOKENIZER_H

#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct iso_tokenizer iso_tokenizer;

typedef struct {
    bool lower;   /* lower-case: do_lower_case */
    bool accents; /* strip them: strip_accents; lower, where that is not given */
    bool cjk;     /* ideographs are words: tokenize_chinese_chars */
} iso_tokenizer_options;

/* From a folder's vocab.txt (a token a line) and, where it is there, tokenizer_config.json.
 * ISO_ERR_DATA without [CLS], [SEP] or [UNK]. Read-only afterwards: shared between threads. */
iso_err iso_tokenizer_open(iso_tokenizer **out, const char *folder, iso_error *e) ISO_MUST_CHECK;
/* The same from memory; `what` names it in errors. */
iso_err iso_tokenizer_make(iso_tokenizer **out, const void *vocabulary, size_t size,
                           const iso_tokenizer_options *o, const char *what,
                           iso_error *e) ISO_MUST_CHECK;
void iso_tokenizer_close(iso_tokenizer *t);         /* NULL is fine */
size_t iso_tokenizer_count(const iso_tokenizer *t); /* of the vocabulary */

/* [CLS] pieces [SEP] of n bytes of text into ids, at most `most` (2 or more) of them: what does not
 * fit is cut. Returns their number. */
size_t iso_tokenizer_encode(const iso_tokenizer *t, const char *text, size_t n, int32_t *ids,
                            size_t most);

#endif
