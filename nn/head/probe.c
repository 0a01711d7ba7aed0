/* Probes; see probe.h. Ridge is in ridge.c, the logistic objective in logistic.c. */
#include "nn/head/probe.h"

#include "core/parallel.h"
#include "core/simd.h"
#include "nn/data/sampler.h"
#include "nn/head/fit.h"
#include "nn/train/metrics.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const kind_names[] = {"ridge", "logistic", "means"};

/* Of a class without samples: finite, and below any score that a head gives. */
static const double never_wins = -1000;

/* ---- shared by the kinds ---- */

ISO_CLONES
double iso_fit_dot(const double *a, const double *b, size_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

typedef struct {
    const iso_fit_data *x;
    const iso_fit_head *h;
    double *scores;
} scoring;

static void score_row(void *ctx, size_t i, int worker)
{
    scoring *s = ctx;
    size_t d = s->x->d, C = s->x->C;
    (void)worker;
    for (size_t c = 0; c < C; c++)
        s->scores[i * C + c] = iso_fit_dot(s->h->W + c * d, s->x->X + i * d, d) + s->h->b[c];
}

void iso_fit_scores(const iso_fit_data *x, const iso_fit_head *h, double *scores)
{
    scoring s = {x, h, scores};
    iso_parallel_for(x->n, 32, score_row, &s);
}

double iso_fit_loss(const double *scores, const int *y, size_t n, size_t C, double factor)
{
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        const double *z = scores + i * C;
        double top = -HUGE_VAL, total = 0;
        for (size_t c = 0; c < C; c++)
            top = fmax(top, factor * z[c]);
        for (size_t c = 0; c < C; c++)
            total += exp(factor * z[c] - top);
        sum += log(total) + top - factor * z[y[i]];
    }
    return n ? sum / (double)n : 0;
}

double iso_fit_accuracy(const double *scores, const int *y, size_t n, size_t C)
{
    size_t right = 0;
    for (size_t i = 0; i < n; i++) {
        size_t best = 0;
        for (size_t c = 1; c < C; c++)
            if (scores[i * C + c] > scores[i * C + best])
                best = c;
        right += (int)best == y[i];
    }
    return n ? (double)right / (double)n : (double)NAN;
}

/* ---- standardising ---- */

typedef struct {
    double *mean, *inverse; /* (d): 1 / deviation, 0 for a constant feature */
} scaler;

static void scaler_fit(scaler *s, const iso_feature_set *f, size_t d)
{
    double n = (double)f->n;
    for (size_t i = 0; i < f->n; i++)
        for (size_t j = 0; j < d; j++)
            s->mean[j] += (double)f->features[i * d + j] / n;
    for (size_t i = 0; i < f->n; i++)
        for (size_t j = 0; j < d; j++) {
            double v = (double)f->features[i * d + j] - s->mean[j];
            s->inverse[j] += v * v / n;
        }
    for (size_t j = 0; j < d; j++) {
        double deviation = sqrt(s->inverse[j]);
        s->inverse[j] = deviation > 1e-7 * (1 + fabs(s->mean[j])) ? 1 / deviation : 0;
    }
}

/* Standardised copy; X may be NULL for an empty set. */
static iso_err standardise(iso_fit_data *out, const iso_feature_set *f, const scaler *s, size_t d,
                           size_t C, const char *what, iso_error *e)
{
    *out = (iso_fit_data){.y = f->labels, .n = f->n, .d = d, .C = C};
    size_t cells;
    if (!iso_mul_size(f->n, d, &cells) || !(out->X = iso_calloc(cells, sizeof *out->X)))
        return iso_nomem(e, f->n * d * sizeof *out->X);
    for (size_t i = 0; i < f->n; i++) {
        if (f->labels[i] < 0 || (size_t)f->labels[i] >= C)
            return iso_fail(e, ISO_ERR_DATA, "label %d of %s sample %zu is not below %zu",
                            f->labels[i], what, i, C);
        for (size_t j = 0; j < d; j++) {
            double v = (double)f->features[i * d + j];
            if (!isfinite(v))
                return iso_fail(e, ISO_ERR_NONFINITE, "feature %zu of %s sample %zu is not finite",
                                j, what, i);
            out->X[i * d + j] = (v - s->mean[j]) * s->inverse[j];
        }
    }
    return ISO_OK;
}

/* ---- the factor on the scores ---- */

/* Scores of the training set (left out) and of the validation set, taken together. */
typedef struct {
    const double *scores[2];
    const int *y[2];
    size_t n[2], C;
} factor_data;

static double factor_loss(const factor_data *f, double log_factor)
{
    double sum = 0;
    for (int k = 0; k < 2; k++)
        if (f->n[k])
            sum += iso_fit_loss(f->scores[k], f->y[k], f->n[k], f->C, exp(log_factor)) *
                   (double)f->n[k];
    return sum;
}

/* Minimises the cross-entropy, which is convex in the factor, by golden section on its logarithm.
 */
static double fit_factor(const factor_data *f)
{
    const double ratio = (sqrt(5) - 1) / 2;
    double lo = log(0.05), hi = log(60);
    double x1 = hi - ratio * (hi - lo), x2 = lo + ratio * (hi - lo);
    double f1 = factor_loss(f, x1), f2 = factor_loss(f, x2);
    for (int k = 0; k < 48; k++) {
        if (f1 < f2) {
            hi = x2;
            x2 = x1;
            f2 = f1;
            x1 = hi - ratio * (hi - lo);
            f1 = factor_loss(f, x1);
        } else {
            lo = x1;
            x1 = x2;
            f1 = f2;
            x2 = lo + ratio * (hi - lo);
            f2 = factor_loss(f, x2);
        }
    }
    return exp((lo + hi) / 2);
}

static void scale_head(iso_fit_head *h, double factor, size_t C, size_t d)
{
    for (size_t i = 0; i < C * d; i++)
        h->W[i] *= factor;
    for (size_t c = 0; c < C; c++)
        h->b[c] *= factor;
}

/* ---- class means ---- */

/* Direction of each class mean. loo: the same with the sample itself left out of its class. */
static void fit_means(const iso_fit_data *t, const size_t *counts, iso_fit_head *h, double *loo)
{
    size_t d = t->d, C = t->C;
    memset(h->W, 0, C * d * sizeof *h->W);
    memset(h->b, 0, C * sizeof *h->b);
    for (size_t i = 0; i < t->n; i++)
        for (size_t j = 0; j < d; j++)
            h->W[(size_t)t->y[i] * d + j] += t->X[i * d + j];
    for (size_t i = 0; i < t->n; i++)
        for (size_t c = 0; c < C; c++) {
            const double *sum = h->W + c * d, *x = t->X + i * d;
            double sx = iso_fit_dot(sum, x, d), ss = iso_fit_dot(sum, sum, d);
            if (t->y[i] == (int)c) { /* |sum - x|^2 and (sum - x)'x */
                double xx = iso_fit_dot(x, x, d);
                ss += xx - 2 * sx;
                sx -= xx;
            }
            loo[i * C + c] = ss > 1e-12 ? sx / sqrt(ss) : 0;
        }
    for (size_t c = 0; c < C; c++) {
        double length = sqrt(iso_fit_dot(h->W + c * d, h->W + c * d, d));
        for (size_t j = 0; j < d && counts[c]; j++)
            h->W[c * d + j] /= length > 0 ? length : 1;
    }
}

/* ---- logistic: choosing the penalty ---- */

enum { PENALTIES = 9 };

static double penalty(int k)
{
    return pow(10, 1 - 0.5 * k); /* 10 .. 1e-3, strong first: each starts from the last */
}

/* Fits on `fit` for each penalty, keeps the one with the lowest cross-entropy on `judge`. */
static iso_err choose_penalty(const iso_fit_data *fit, const iso_fit_data *judge, iso_fit_head *h,
                              double *scores, double *lambda, iso_error *e)
{
    double best = HUGE_VAL;
    size_t weights = fit->C * fit->d;
    memset(h->W, 0, weights * sizeof *h->W);
    memset(h->b, 0, fit->C * sizeof *h->b);
    for (int k = 0; k < PENALTIES; k++) {
        int iterations;
        iso_err err = iso_fit_logistic(fit, penalty(k), h, &iterations, e);
        if (err)
            return err;
        iso_fit_scores(judge, h, scores);
        double loss = iso_fit_loss(scores, judge->y, judge->n, judge->C, 1);
        if (loss < best) {
            best = loss;
            *lambda = penalty(k);
        } else if (loss > 1.2 * best) {
            break; /* weaker penalties only fit the training set more */
        }
    }
    return ISO_OK;
}

/* A seeded fifth of the training set stands in for a validation set. */
static iso_err choose_by_fold(const iso_fit_data *t, iso_fit_head *h, double *scores,
                              double *lambda, iso_error *e)
{
    iso_err err = ISO_OK;
    size_t nf = 0, nj = 0, d = t->d;
    bool *is_held = iso_calloc(t->n, sizeof *is_held);
    uint32_t *scratch = iso_calloc(t->n, sizeof *scratch);
    double *X = iso_calloc(t->n * d, sizeof *X);
    int *y = iso_calloc(t->n, sizeof *y);
    if (!is_held || !scratch || !X || !y) {
        err = iso_nomem(e, t->n * d * sizeof *X);
        goto done;
    }
    iso_split_classes(t->y, t->n, t->C, 0.2, 1, is_held, scratch);
    for (size_t i = 0; i < t->n; i++) { /* held ones from the end */
        size_t at = is_held[i] ? t->n - 1 - nj++ : nf++;
        memcpy(X + at * d, t->X + i * d, d * sizeof *X);
        y[at] = t->y[i];
    }
    *lambda = 0.1;
    if (nj) {
        iso_fit_data fit = {X, y, nf, d, t->C};
        iso_fit_data judge = {X + nf * d, y + nf, nj, d, t->C};
        err = choose_penalty(&fit, &judge, h, scores, lambda, e);
    }
done:
    free(is_held);
    free(scratch);
    free(X);
    free(y);
    return err;
}

static iso_err fit_logistic(const iso_fit_data *t, const iso_fit_data *val, iso_fit_head *h,
                            double *scores, iso_probe_info *info, iso_error *e)
{
    iso_err err = val->n ? choose_penalty(t, val, h, scores, &info->lambda, e)
                         : choose_by_fold(t, h, scores, &info->lambda, e);
    if (err)
        return err;
    memset(h->W, 0, t->C * t->d * sizeof *h->W); /* a result that does not depend on the path */
    memset(h->b, 0, t->C * sizeof *h->b);
    return iso_fit_logistic(t, info->lambda, h, &info->iterations, e);
}

/* ---- public ---- */

bool iso_probe_parse_kind(const char *name, iso_probe_kind *out)
{
    for (int k = 0; k < 3; k++)
        if (!strcmp(name, kind_names[k])) {
            *out = (iso_probe_kind)k;
            return true;
        }
    return false;
}

const char *iso_probe_kind_name(iso_probe_kind kind)
{
    return kind_names[kind];
}

static iso_err fit_kind(iso_probe_kind kind, const iso_fit_data *t, const iso_fit_data *val,
                        const size_t *counts, iso_fit_head *h, double *scores, double *val_scores,
                        iso_probe_info *info, iso_error *e)
{
    iso_err err = ISO_OK;
    size_t d = t->d, C = t->C;
    if (kind == ISO_PROBE_LOGISTIC)
        err = fit_logistic(t, val, h, val->n > t->n ? val_scores : scores, info, e);
    else {
        if (kind == ISO_PROBE_RIDGE)
            err = iso_fit_ridge(t, h, scores, &info->lambda, e);
        else
            fit_means(t, counts, h, scores);
        if (err)
            return err;
        info->loo_accuracy = iso_fit_accuracy(scores, t->y, t->n, C);
        iso_fit_scores(val, h, val_scores);
        factor_data f = {{scores, val_scores}, {t->y, val->y}, {t->n, val->n}, C};
        info->logit_scale = fit_factor(&f);
        scale_head(h, info->logit_scale, C, d);
    }
    return err;
}

/* Back to the features as they are: w = W / deviation, b = B - w'mean. */
static void fold_back(iso_linear_head *out, const iso_fit_head *h, const scaler *s,
                      const size_t *counts)
{
    for (size_t c = 0; c < out->classes; c++) {
        double b = counts[c] ? h->b[c] : never_wins;
        for (size_t j = 0; j < out->dim; j++) {
            double w = counts[c] ? h->W[c * out->dim + j] * s->inverse[j] : 0;
            out->W[c * out->dim + j] = (float)w;
            b -= w * s->mean[j];
        }
        out->b[c] = (float)b;
    }
}

iso_err iso_probe_fit(iso_linear_head *out, iso_probe_kind kind, const iso_feature_set *train,
                      const iso_feature_set *val, size_t dim, const char *const *class_names,
                      size_t classes, iso_probe_info *info, iso_error *e)
{
    static const iso_feature_set nothing = {0};
    iso_probe_info local;
    iso_fit_data t = {0}, v = {0};
    scaler s = {0};
    iso_fit_head h = {0};
    double *scores = NULL, *val_scores = NULL;
    size_t *counts = NULL;
    iso_err err;
    info = info ? info : &local;
    val = val ? val : &nothing;
    *info = (iso_probe_info){
        .logit_scale = 1, .loo_accuracy = (double)NAN, .val_accuracy = (double)NAN};
    *out = (iso_linear_head){0};
    if (!train->n)
        return iso_fail(e, ISO_ERR_DATA, "no training sample to fit a head on");
    if ((err = iso_linear_init(out, classes, dim, class_names, e)))
        return err;
    size_t most = train->n > val->n ? train->n : val->n;
    s.mean = iso_calloc(dim, sizeof *s.mean);
    s.inverse = iso_calloc(dim, sizeof *s.inverse);
    h.W = iso_calloc(classes * dim, sizeof *h.W);
    h.b = iso_calloc(classes, sizeof *h.b);
    scores = iso_calloc(most * classes, sizeof *scores);
    val_scores = iso_calloc(most * classes, sizeof *val_scores);
    counts = iso_calloc(classes, sizeof *counts);
    if (!s.mean || !s.inverse || !h.W || !h.b || !scores || !val_scores || !counts) {
        err = iso_nomem(e, (classes * dim + 2 * most * classes) * sizeof(double));
        goto done;
    }
    scaler_fit(&s, train, dim);
    if ((err = standardise(&t, train, &s, dim, classes, "training", e)) ||
        (err = standardise(&v, val, &s, dim, classes, "validation", e)))
        goto done;
    for (size_t i = 0; i < t.n; i++)
        counts[t.y[i]]++;
    if ((err = fit_kind(kind, &t, &v, counts, &h, scores, val_scores, info, e)))
        goto done;
    fold_back(out, &h, &s, counts);
    iso_fit_scores(&t, &h, scores);
    info->train_loss = iso_fit_loss(scores, t.y, t.n, classes, 1);
    if (val->n)
        info->val_accuracy = iso_linear_accuracy(out, val->features, val->labels, val->n);
done:
    free(s.mean);
    free(s.inverse);
    free(h.W);
    free(h.b);
    free(scores);
    free(val_scores);
    free(counts);
    free(t.X);
    free(v.X);
    if (err)
        iso_linear_free(out);
    return err;
}
