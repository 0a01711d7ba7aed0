/* Where TOAST starts: the closed form of stage 1 over first-pass activations, and the look at what
 * xi selects. specs/toast.md 6, 7. */
#include "nn/adapter/toast_inner.h"

#include "core/parallel.h"
#include "nn/head/spd.h"
#include "nn/model_inner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- xi ---- */

static double mean_share(const float *seen, size_t n, size_t k)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += (double)seen[i * k];
    return n ? sum / (double)n : 0.0;
}

/* xi = mean token of the images, of length sqrt(d). */
static void take_mean(const float *seen, size_t n, size_t d, float *xi)
{
    double length = 0.0;
    for (size_t j = 0; j < d; j++) {
        double sum = 0.0;
        for (size_t i = 0; i < n; i++)
            sum += (double)seen[i * (1 + d) + 1 + j];
        xi[j] = (float)(sum / (double)n);
        length += (double)xi[j] * (double)xi[j];
    }
    for (size_t j = 0; length > 0.0 && j < d; j++)
        xi[j] = (float)((double)xi[j] * sqrt((double)d / length));
}

iso_err iso_toast_check_selection(iso_adapter *a, const iso_model *m, const iso_source *s,
                                  iso_toast_selection *did, double *share, iso_error *e)
{
    const iso_toast *t = a->own;
    float *xi = a->params + t->xi;
    float *seen = iso_calloc(s->n, (1 + t->d) * sizeof *seen);
    *did = ISO_TOAST_KEPT;
    if (!seen)
        return iso_nomem(e, s->n * (1 + t->d) * sizeof *seen);
    iso_err err = iso_model_observe(m, s, seen, e);
    double found = mean_share(seen, s->n, 1 + t->d);
    for (int step = 0; !err && found < 0.5 && step < 2; step++) {
        if (step == 0)
            for (size_t j = 0; j < t->d; j++)
                xi[j] = -xi[j];
        else
            take_mean(seen, s->n, t->d, xi);
        *did = step == 0 ? ISO_TOAST_FLIPPED : ISO_TOAST_MEAN;
        err = iso_model_observe(m, s, seen, e);
        found = mean_share(seen, s->n, 1 + t->d);
    }
    if (share)
        *share = found;
    free(seen);
    return err;
}

/* ---- the closed form ---- */

void iso_toast_moments(size_t m, size_t d, const float *in, const float *out, double *S, double *C,
                       float *scratch)
{
    enum { ROWS = 512 }; /* sums in single precision are no longer than this */
    for (size_t at = 0; at < m; at += ROWS) {
        size_t n = m - at < ROWS ? m - at : ROWS;
        const float *x = out + at * d, *y = in + at * d;
        iso_gemm(true, false, d, d, n, 1.0F, x, d, x, d, 0.0F, scratch, d);
        for (size_t i = 0; i < d * d; i++)
            S[i] += (double)scratch[i];
        iso_gemm(true, false, d, d, n, 1.0F, y, d, x, d, 0.0F, scratch, d);
        for (size_t i = 0; i < d * d; i++)
            C[i] += (double)scratch[i];
    }
}

iso_err iso_toast_solve(size_t d, double *S, const double *C, double lambda, float *F, iso_error *e)
{
    double *X = iso_calloc(d * d, sizeof *X);
    if (!X)
        return iso_nomem(e, d * d * sizeof *X);
    memcpy(X, C, d * d * sizeof *X);
    for (size_t i = 0; i < d; i++)
        S[i * d + i] += lambda;
    iso_err err = iso_spd_solve_rows(d, S, d, X, e);
    for (size_t i = 0; !err && i < d * d; i++)
        F[i] = (float)X[i];
    free(X);
    return err;
}

/* Some images at a time: their states before every block, side by side over images; then their
 * moments, side by side over blocks. So sums have a fixed order. */
typedef struct {
    const iso_model *model;
    const iso_source *source;
    iso_work *work;
    size_t begin, n;    /* of these images */
    size_t image;       /* floats */
    float *states;      /* (depth + 1, n, tokens, d) */
    double *S, *C;      /* (depth, d, d) */
    float *scratch;     /* (threads, d, d) */
    double ridge, rows; /* rows behind the sums */
    float *F;
    iso_err *failed;
    iso_error *errors;
} ridge_job;

typedef struct {
    ridge_job *job;
    size_t at, n; /* images of this micro-batch within the job's */
} ridge_tap;

static void keep(void *ctx, size_t index, const float *hidden)
{
    const ridge_tap *k = ctx;
    const ridge_job *j = k->job;
    memcpy(j->states + (index * j->n + k->at) * j->image, hidden, k->n * j->image * sizeof *hidden);
}

static void state_item(void *ctx, size_t item, int worker)
{
    ridge_job *j = ctx;
    const iso_backbone *b = j->model->backbone;
    iso_work *w = j->work;
    size_t at = item * w->micro, n = j->n - at < w->micro ? j->n - at : w->micro;
    float *base = w->data + (size_t)worker * w->floats;
    uint32_t *idx = w->idx + (size_t)worker * w->micro;
    ridge_tap tap = {j, at, n};
    for (size_t i = 0; i < n; i++)
        idx[i] = (uint32_t)(j->begin + at + i);
    iso_pass p = {
        .weights = j->model->weights, .read = b->shape.tokens, .tap = keep, .tap_ctx = &tap};
    iso_work_load(j->model, j->source, idx, n, 0, &p, w, worker);
    b->family->forward(b, &p, n, base, base + w->out);
}

static void moment_item(void *ctx, size_t block, int worker)
{
    ridge_job *j = ctx;
    const iso_backbone_shape *s = &j->model->backbone->shape;
    size_t d = s->dim, dd = d * d, m = j->n * s->tokens;
    const float *in = j->states + block * j->n * j->image;
    iso_toast_moments(m, d, in, in + j->n * j->image, j->S + block * dd, j->C + block * dd,
                      j->scratch + (size_t)worker * dd);
}

static void solve_item(void *ctx, size_t block, int worker)
{
    ridge_job *j = ctx;
    size_t d = j->model->backbone->shape.dim, dd = d * d;
    double *S = j->S + block * dd, *C = j->C + block * dd, trace = 0.0;
    (void)worker;
    for (size_t i = 0; i < dd; i++) {
        S[i] /= j->rows;
        C[i] /= j->rows;
    }
    for (size_t i = 0; i < d; i++)
        trace += S[i * d + i];
    j->failed[block] = iso_toast_solve(d, S, C, j->ridge * trace / (double)d, j->F + block * dd,
                                       &j->errors[block]);
}

iso_err iso_toast_ridge(const iso_backbone *b, const iso_source *s, double ridge, float *F,
                        iso_error *e)
{
    enum { IMAGES = 16 };
    size_t d = b->shape.dim, dd = d * d, L = b->shape.depth, image = b->shape.tokens * d;
    iso_model *m = NULL;
    iso_work *w = NULL;
    ridge_job j = {.source = s, .image = image, .ridge = ridge, .F = F};
    iso_err err = ISO_OK;
    if (b->family->lengths)
        return iso_fail(e, ISO_ERR_USAGE, "the closed form takes samples of one length");
    if (s->n == 0)
        return iso_fail(e, ISO_ERR_DATA, "no images");
    if ((err = iso_model_open(&m, b, NULL, false, e)) ||
        (err = iso_work_open_as(&w, m, b->shape.tokens, false, e)))
        goto done;
    j.model = m;
    j.work = w;
    j.states = iso_alloc_aligned((L + 1) * IMAGES * image, sizeof(float));
    j.S = iso_calloc(L * dd, sizeof *j.S);
    j.C = iso_calloc(L * dd, sizeof *j.C);
    j.scratch = iso_alloc_aligned((size_t)iso_threads() * dd, sizeof(float));
    j.failed = iso_calloc(L, sizeof *j.failed);
    j.errors = iso_calloc(L, sizeof *j.errors);
    if (!j.states || !j.S || !j.C || !j.scratch || !j.failed || !j.errors) {
        err = iso_nomem(e, (L + 1) * IMAGES * image * sizeof(float));
        goto done;
    }
    for (j.begin = 0; j.begin < s->n; j.begin += IMAGES) {
        j.n = s->n - j.begin < IMAGES ? s->n - j.begin : IMAGES;
        iso_parallel_for((j.n + w->micro - 1) / w->micro, 1, state_item, &j);
        iso_parallel_for(L, 1, moment_item, &j);
    }
    j.rows = (double)s->n * (double)b->shape.tokens;
    iso_parallel_for(L, 1, solve_item, &j);
    for (size_t l = 0; !err && l < L; l++)
        if ((err = j.failed[l]) && e)
            *e = j.errors[l];
done:
    free(j.states);
    free(j.S);
    free(j.C);
    free(j.scratch);
    free(j.failed);
    free(j.errors);
    iso_work_close(w);
    iso_model_close(m);
    return err;
}
