/* A linear head: logits = W f + b on a backbone's feature, with the classes' names.
 *
 * File: head.safetensors with `weight` (classes, dim) and `bias` (classes), float32; metadata
 * "format" = "isofed-head", "version" = "1", "classes" = JSON array of names in row order. */
#ifndef ISO_NN_HEAD_LINEAR_H
#define ISO_NN_HEAD_LINEAR_H

#include "core/mem.h"

#include <stdbool.h>

typedef struct {
    size_t classes, dim;
    float *W;                 /* (classes, dim), owned */
    float *b;                 /* (classes), owned */
    const char **class_names; /* owned, one allocation with the strings */
} iso_linear_head;

/* Zero weights. names are copied. */
iso_err iso_linear_init(iso_linear_head *h, size_t classes, size_t dim, const char *const *names,
                        iso_error *e) ISO_MUST_CHECK;
iso_err iso_linear_copy(iso_linear_head *out, const iso_linear_head *h,
                        iso_error *e) ISO_MUST_CHECK;
void iso_linear_free(iso_linear_head *h); /* zeroed struct is fine */

/* logits (n, classes) of features (n, dim). Sums in double; the same bits for any thread count. */
void iso_linear_logits(const iso_linear_head *h, const float *features, size_t n, float *logits);
/* Index of the largest logit a row (the first among equals). */
void iso_linear_predict(const iso_linear_head *h, const float *features, size_t n, int *labels);
/* Share of rows whose prediction is the label; n >= 1. */
double iso_linear_accuracy(const iso_linear_head *h, const float *features, const int *labels,
                           size_t n);

iso_err iso_linear_save(const iso_linear_head *h, const char *path, iso_error *e) ISO_MUST_CHECK;
iso_err iso_linear_save_buf(const iso_linear_head *h, iso_buf *out, iso_error *e) ISO_MUST_CHECK;
/* Checks format, shapes, finite values, names. */
iso_err iso_linear_load(iso_linear_head *h, const char *path, iso_error *e) ISO_MUST_CHECK;
iso_err iso_linear_parse(iso_linear_head *h, const void *data, size_t size, const char *what,
                         iso_error *e) ISO_MUST_CHECK;

/* The head that several sites share (AMENDMENTS 4): mean of the sites' heads, class by class and by
 * name, each weighted by its count of that class's samples. A head without a class, or with count
 * 0, contributes nothing to it; a class that nobody has is ISO_ERR_DATA. */
typedef struct {
    const iso_linear_head *head;
    const double *counts; /* head->classes numbers >= 0 */
} iso_head_part;
iso_err iso_linear_mean(iso_linear_head *out, const iso_head_part *parts, size_t n,
                        const char *const *class_names, size_t classes,
                        iso_error *e) ISO_MUST_CHECK;

#endif
