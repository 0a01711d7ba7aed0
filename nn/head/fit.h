/* What the probes share: standardised samples in double, and the head as they see it. Private to
 * nn/head. */
#ifndef ISO_NN_HEAD_FIT_H
#define ISO_NN_HEAD_FIT_H

#include "nn/head/probe.h"

/* n samples of d standardised features, labels 0 .. C-1. */
typedef struct {
    double *X; /* (n, d) */
    const int *y;
    size_t n, d, C;
} iso_fit_data;

/* Scores = W x + b on standardised features. */
typedef struct {
    double *W; /* (C, d) */
    double *b; /* (C) */
} iso_fit_head;

/* Ridge with lambda by leave-one-out; loo (n, C) receives the leave-one-out scores. */
iso_err iso_fit_ridge(const iso_fit_data *train, iso_fit_head *h, double *loo, double *lambda,
                      iso_error *e) ISO_MUST_CHECK;

/* Multinomial logistic regression with penalty lambda/2 |W|^2 on the mean loss, from h as it is. */
iso_err iso_fit_logistic(const iso_fit_data *train, double lambda, iso_fit_head *h, int *iterations,
                         iso_error *e) ISO_MUST_CHECK;

double iso_fit_dot(const double *a, const double *b, size_t n);
/* scores (n, C) */
void iso_fit_scores(const iso_fit_data *x, const iso_fit_head *h, double *scores);
/* Mean cross-entropy of factor * scores. */
double iso_fit_loss(const double *scores, const int *y, size_t n, size_t C, double factor);
double iso_fit_accuracy(const double *scores, const int *y, size_t n, size_t C);

#endif
