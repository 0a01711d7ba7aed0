/* Multinomial logistic regression by L-BFGS (Nocedal 1980) in double.
 *
 * f(W, b) = 1/n sum_i [log sum_c exp z_ic - z_i,y_i] + lambda/2 |W|^2,  z = W x + b.
 * Convex and smooth, so a backtracking line search is enough. Sums run in the order of the samples
 * for any number of threads. */
#include "core/parallel.h"
#include "core/simd.h"
#include "nn/head/fit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MEMORY = 12, ITERATIONS_MAX = 300, HALVINGS_MAX = 40 };

static const double gradient_tolerance = 1e-6;

/* Parameters are one vector: W (C, d), then b (C). */
typedef struct {
    const iso_fit_data *t;
    double lambda;
    size_t size;
    double *residual; /* (n, C): softmax - one-hot, / n */
    double *loss;     /* (n) */
    const double *p;
    double *g;
} objective;

static void sample_loss(void *ctx, size_t i, int worker)
{
    objective *f = ctx;
    size_t d = f->t->d, C = f->t->C;
    double *z = f->residual + i * C, top = -HUGE_VAL, total = 0;
    (void)worker;
    for (size_t c = 0; c < C; c++) {
        z[c] = iso_fit_dot(f->p + c * d, f->t->X + i * d, d) + f->p[C * d + c];
        top = fmax(top, z[c]);
    }
    double right = z[f->t->y[i]];
    for (size_t c = 0; c < C; c++)
        total += exp(z[c] - top);
    f->loss[i] = log(total) + top - right;
    for (size_t c = 0; c < C; c++)
        z[c] = (exp(z[c] - top) / total - (f->t->y[i] == (int)c ? 1 : 0)) / (double)f->t->n;
}

ISO_CLONES
static void add_scaled(double *y, double a, const double *x, size_t n)
{
#pragma omp simd
    for (size_t i = 0; i < n; i++)
        y[i] += a * x[i];
}

static void class_gradient(void *ctx, size_t c, int worker)
{
    objective *f = ctx;
    size_t d = f->t->d, C = f->t->C, n = f->t->n;
    double *g = f->g + c * d, bias = 0;
    (void)worker;
    for (size_t j = 0; j < d; j++)
        g[j] = f->lambda * f->p[c * d + j];
    for (size_t i = 0; i < n; i++) {
        add_scaled(g, f->residual[i * C + c], f->t->X + i * d, d);
        bias += f->residual[i * C + c];
    }
    f->g[C * d + c] = bias;
}

static double evaluate(objective *f, const double *p, double *g)
{
    size_t n = f->t->n, weights = f->t->C * f->t->d;
    double sum = 0;
    f->p = p;
    f->g = g;
    iso_parallel_for(n, 32, sample_loss, f);
    iso_parallel_for(f->t->C, 1, class_gradient, f);
    for (size_t i = 0; i < n; i++)
        sum += f->loss[i];
    return sum / (double)n + 0.5 * f->lambda * iso_fit_dot(p, p, weights);
}

/* The last steps s and changes of gradient y, a ring of MEMORY rows. */
typedef struct {
    double *s, *y;
    double rho[MEMORY];
    size_t count, next;
} history;

/* direction = -H g by the two-loop recursion. */
static void direction_of(const history *h, const double *g, double *direction, size_t n)
{
    double a[MEMORY];
    for (size_t i = 0; i < n; i++)
        direction[i] = -g[i];
    for (size_t k = 0; k < h->count; k++) {
        size_t at = (h->next + MEMORY - 1 - k) % MEMORY;
        a[at] = h->rho[at] * iso_fit_dot(h->s + at * n, direction, n);
        add_scaled(direction, -a[at], h->y + at * n, n);
    }
    if (h->count) {
        size_t at = (h->next + MEMORY - 1) % MEMORY;
        double scale =
            1 / (h->rho[at] * iso_fit_dot(h->y + at * n, h->y + at * n, n)); /* s'y / y'y */
        for (size_t i = 0; i < n; i++)
            direction[i] *= scale;
    }
    for (size_t k = h->count; k-- > 0;) {
        size_t at = (h->next + MEMORY - 1 - k) % MEMORY;
        double b = h->rho[at] * iso_fit_dot(h->y + at * n, direction, n);
        add_scaled(direction, a[at] - b, h->s + at * n, n);
    }
}

static void remember(history *h, const double *p0, const double *p1, const double *g0,
                     const double *g1, size_t n)
{
    double *s = h->s + h->next * n, *y = h->y + h->next * n;
    for (size_t i = 0; i < n; i++) {
        s[i] = p1[i] - p0[i];
        y[i] = g1[i] - g0[i];
    }
    double sy = iso_fit_dot(s, y, n);
    if (!(sy > 1e-14 * iso_fit_dot(y, y, n)))
        return; /* no curvature seen: nothing to learn from this step */
    h->rho[h->next] = 1 / sy;
    h->next = (h->next + 1) % MEMORY;
    if (h->count < MEMORY)
        h->count++;
}

/* p, g and their next values; all of size n. */
static int minimise(objective *f, history *h, double *p, double *g, double *p1, double *g1,
                    double *direction)
{
    size_t n = f->size;
    double value = evaluate(f, p, g);
    int it = 0;
    for (; it < ITERATIONS_MAX; it++) {
        double largest = 0;
        for (size_t i = 0; i < n; i++)
            largest = fmax(largest, fabs(g[i]));
        if (largest < gradient_tolerance)
            break;
        direction_of(h, g, direction, n);
        double slope = iso_fit_dot(g, direction, n), step = 1, next = value;
        int k = 0;
        for (; k < HALVINGS_MAX; k++, step /= 2) {
            for (size_t i = 0; i < n; i++)
                p1[i] = p[i] + step * direction[i];
            next = evaluate(f, p1, g1);
            if (next <= value + 1e-4 * step * slope)
                break;
        }
        if (k == HALVINGS_MAX)
            break; /* at the limit of double */
        remember(h, p, p1, g, g1, n);
        memcpy(p, p1, n * sizeof *p);
        memcpy(g, g1, n * sizeof *g);
        value = next;
    }
    return it;
}

iso_err iso_fit_logistic(const iso_fit_data *train, double lambda, iso_fit_head *h, int *iterations,
                         iso_error *e)
{
    size_t weights = train->C * train->d, n = weights + train->C;
    iso_err err = ISO_OK;
    history past = {.s = iso_calloc(MEMORY * n, sizeof(double)),
                    .y = iso_calloc(MEMORY * n, sizeof(double))};
    objective f = {.t = train,
                   .lambda = lambda,
                   .size = n,
                   .residual = iso_calloc(train->n * train->C, sizeof(double)),
                   .loss = iso_calloc(train->n, sizeof(double))};
    double *work = iso_calloc(5 * n, sizeof *work);
    if (!past.s || !past.y || !f.residual || !f.loss || !work) {
        err = iso_nomem(e, (2 * MEMORY + 5) * n * sizeof(double));
        goto done;
    }
    memcpy(work, h->W, weights * sizeof *work);
    memcpy(work + weights, h->b, train->C * sizeof *work);
    *iterations = minimise(&f, &past, work, work + n, work + 2 * n, work + 3 * n, work + 4 * n);
    memcpy(h->W, work, weights * sizeof *work);
    memcpy(h->b, work + weights, train->C * sizeof *work);
done:
    free(past.s);
    free(past.y);
    free(f.residual);
    free(f.loss);
    free(work);
    return err;
}
