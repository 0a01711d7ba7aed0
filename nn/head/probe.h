/* Probes: a task's head fitted on frozen features (DESIGN 2, Heads).
 *
 * A head that stays fixed while the adapter trains must leave it a gradient, so the default does
 * not fit the training images to the end:
 *   ridge     one-hot targets, least squares with a penalty chosen by exact leave-one-out error, in
 *             closed form (Allen's PRESS); then one logit scale, chosen by minimising the cross-
 *             entropy of the leave-one-out predictions (or of the validation images when given), so
 *             that its confidence is honest. The default of `head: fixed`.
 *   logistic  multinomial logistic regression by L-BFGS in double, penalty chosen on the validation
 *             images, else by a seeded fold. The strongest probe; the figure that tables call
 * probe. means     class means with a cosine scale fitted likewise. Features are standardised
 * inside and the transformation is folded back into W and b, so every result is a plain linear
 * head. All in double, deterministic for any number of threads. */
#ifndef ISO_NN_HEAD_PROBE_H
#define ISO_NN_HEAD_PROBE_H

#include "nn/head/linear.h"

#include <stdint.h>

typedef enum { ISO_PROBE_RIDGE, ISO_PROBE_LOGISTIC, ISO_PROBE_MEANS } iso_probe_kind;

typedef struct {
    const float *features; /* (n, dim) */
    const int *labels;     /* 0 .. classes-1 */
    size_t n;
} iso_feature_set;

typedef struct {
    double lambda;       /* penalty chosen, relative to n */
    double logit_scale;  /* ridge and means: factor on the scores */
    double loo_accuracy; /* ridge: leave-one-out accuracy on the training set, else NaN */
    double val_accuracy; /* on the validation set, NaN without one */
    double train_loss;   /* mean cross-entropy of the head on its training set */
    int iterations;      /* logistic */
} iso_probe_info;

/* Fits a head; val may be NULL or empty. dim columns; info may be NULL. Classes without a sample
 * get weight 0 and a bias that never wins. ISO_ERR_DATA when no sample is given,
 * ISO_ERR_NONFINITE when a feature is not finite. */
iso_err iso_probe_fit(iso_linear_head *out, iso_probe_kind kind, const iso_feature_set *train,
                      const iso_feature_set *val, size_t dim, const char *const *class_names,
                      size_t classes, iso_probe_info *info, iso_error *e) ISO_MUST_CHECK;

bool iso_probe_parse_kind(const char *name, iso_probe_kind *out); /* ridge, logistic, means */
const char *iso_probe_kind_name(iso_probe_kind kind);

#endif
