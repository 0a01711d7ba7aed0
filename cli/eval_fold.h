/* What folding a DATA adapter's gates costs on one set of samples (specs/data.md 10). */
#ifndef ISO_CLI_EVAL_FOLD_H
#define ISO_CLI_EVAL_FOLD_H

#include "cli/vision.h"
#include "nn/adapter/data.h"

typedef struct {
    bool is_there; /* the adapter is DATA with gates per sample */
    iso_fold_error error;
    double accuracy; /* folded, with the same head */
} iso_eval_fold;

/* gated: features of the set with the adapter as it is. */
iso_err iso_eval_fold_of(const iso_vision *v, const iso_image_set *set, const iso_linear_head *h,
                         const float *gated, const int *labels, bool quiet, iso_eval_fold *out,
                         iso_error *e) ISO_MUST_CHECK;

#endif
