/* Scores, by the formulas of DESIGN 2; see metrics.h. */
#include "nn/train/metrics.h"

#include <math.h>

double iso_accuracy(const int *predicted, const int *labels, size_t n)
{
    size_t right = 0;
    for (size_t i = 0; i < n; i++)
        right += predicted[i] == labels[i];
    return n ? (double)right / (double)n : (double)NAN;
}

void iso_confusion(const int *predicted, const int *labels, size_t n, size_t classes,
                   uint64_t *counts)
{
    for (size_t i = 0; i < classes * classes; i++)
        counts[i] = 0;
    for (size_t i = 0; i < n; i++)
        if (labels[i] >= 0 && (size_t)labels[i] < classes && predicted[i] >= 0 &&
            (size_t)predicted[i] < classes)
            counts[(size_t)labels[i] * classes + (size_t)predicted[i]]++;
}

double iso_balanced_accuracy(const uint64_t *counts, size_t classes)
{
    double sum = 0;
    size_t present = 0;
    for (size_t c = 0; c < classes; c++) {
        uint64_t total = 0;
        for (size_t p = 0; p < classes; p++)
            total += counts[c * classes + p];
        if (!total)
            continue;
        present++;
        sum += (double)counts[c * classes + c] / (double)total;
    }
    return present ? sum / (double)present : (double)NAN;
}

double iso_cross_entropy(const float *logits, const int *labels, size_t n, size_t classes)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const float *z = logits + i * classes;
        double top = (double)z[0], total = 0;
        for (size_t c = 1; c < classes; c++)
            top = fmax(top, (double)z[c]);
        for (size_t c = 0; c < classes; c++)
            total += exp((double)z[c] - top);
        sum += log(total) + top - (double)z[labels[i]];
    }
    return n ? sum / (double)n : (double)NAN;
}

/* Mean that leaves NaN terms out. */
typedef struct {
    double sum;
    size_t n;
} mean;

static void mean_add(mean *m, double v)
{
    if (isnan(v))
        return;
    m->sum += v;
    m->n++;
}

static double mean_value(const mean *m)
{
    return m->n ? m->sum / (double)m->n : (double)NAN;
}

double iso_acc(const double *R, size_t T)
{
    mean m = {0};
    for (size_t j = 0; j < T; j++)
        mean_add(&m, R[(T - 1) * T + j]);
    return mean_value(&m);
}

double iso_forgetting(const double *R, size_t T)
{
    mean m = {0};
    for (size_t j = 0; j + 1 < T; j++) {
        double best = (double)NAN; /* fmax() ignores NaN */
        for (size_t i = j; i + 1 < T; i++)
            best = fmax(best, R[i * T + j]);
        mean_add(&m, best - R[(T - 1) * T + j]);
    }
    return mean_value(&m);
}

double iso_bwt(const double *R, size_t T)
{
    mean m = {0};
    for (size_t j = 0; j + 1 < T; j++)
        mean_add(&m, R[(T - 1) * T + j] - R[j * T + j]);
    return mean_value(&m);
}

double iso_fwt(const double *R, const double *probe, size_t T)
{
    mean m = {0};
    for (size_t j = 1; j < T; j++)
        mean_add(&m, R[(j - 1) * T + j] - probe[j]);
    return mean_value(&m);
}

double iso_normalised(double merged, double own)
{
    return own > 0 ? merged / own : (double)NAN;
}

bool iso_gain_is_given(double probe, double own)
{
    return own - probe >= 0.02 - 1e-12; /* 0.85 - 0.83 is 2 points in spite of rounding */
}

double iso_gain_kept(double merged, double probe, double own)
{
    return iso_gain_is_given(probe, own) ? (merged - probe) / (own - probe) : (double)NAN;
}

double iso_binomial_half_width(double p, size_t n)
{
    double edge = 1.0 / (double)n;
    if (edge > 0.5)
        edge = 0.5;
    p = fmin(fmax(p, edge), 1 - edge);
    return 1.96 * sqrt(p * (1 - p) / (double)n);
}
