/* Scores, by the formulas of DESIGN 2 (forgetting as AMENDMENTS 15 corrects it).
 *
 * The accuracy matrix R is (T, T) row-major: R[i*T + j] is the score on task j after wave i, tasks
 * numbered in the order in which they were learnt. NaN marks what was not measured; an aggregate
 * leaves such terms out and is NaN when nothing is left. */
#ifndef ISO_NN_TRAIN_METRICS_H
#define ISO_NN_TRAIN_METRICS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Share of equal entries; NaN for n = 0. */
double iso_accuracy(const int *predicted, const int *labels, size_t n);
/* counts[label * classes + predicted]; entries outside 0 .. classes-1 are not counted. */
void iso_confusion(const int *predicted, const int *labels, size_t n, size_t classes,
                   uint64_t *counts);
/* Mean over the classes that occur of their recall. */
double iso_balanced_accuracy(const uint64_t *counts, size_t classes);
/* Mean cross-entropy of logits (n, classes), stable, in double. */
double iso_cross_entropy(const float *logits, const int *labels, size_t n, size_t classes);

double iso_acc(const double *R, size_t T); /* mean_j R[T-1][j] */
double iso_forgetting(const double *R,
                      size_t T);           /* mean_{j<T-1} (max_{j<=i<T-1} R[i][j] - R[T-1][j]) */
double iso_bwt(const double *R, size_t T); /* mean_{j<T-1} (R[T-1][j] - R[j][j]) */
/* mean_{j>=1} (R[j-1][j] - probe[j]) */
double iso_fwt(const double *R, const double *probe, size_t T);

double iso_normalised(double merged, double own); /* NaN unless own > 0 */

/* (merged - probe) / (own - probe), NaN where own - probe is below 2 points (0.02): scores are
 * shares of one. */
double iso_gain_kept(double merged, double probe, double own);
bool iso_gain_is_given(double probe, double own);

/* Half-width of the two-sided 95 % interval of a share p of n samples, normal approximation:
 * 1.96 sqrt(p (1 - p) / n), with p drawn in to at least 1/n from either end so that 0 and 1 are not
 * taken as certain (specs/security.md S94). n >= 1. */
double iso_binomial_half_width(double p, size_t n);

#endif
