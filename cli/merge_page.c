/* The page of a merge. Everything is worked out in factors: an orthonormal basis Q_t of each task's
 * outputs B_t, cosines of principal angles as singular values of Q_t Q_u'. */
#include "cli/merge_page.h"

#include "core/report.h"
#include "merge/jobs.h"
#include "merge/linalg/linalg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TASKS = 24, MAX_LAYERS = 40 };

/* Share of the merged update's energy that its leading directions hold. */
#define LEADING_ENERGY 0.95

typedef struct {
    const iso_merge_inputs *in;
    const iso_merged_lora *m;
    size_t T, layers;
    double *overlap; /* layers x T x T: mean squared cosine; NaN where one lacks the layer */
    double *square;  /* layers x T: |D_t|_F^2 */
    double *inside;  /* layers x T: of it within the merged update's leading directions */
} study;

/* Rows of an orthonormal basis of l's outputs: Q (k, out), and B' = C Q. */
static iso_err outputs_of(const iso_lora_layer *l, double **Q, double **C, size_t *k,
                          iso_arena *scratch, iso_error *e)
{
    size_t r = l->rank, m = l->out;
    double *Bt = iso_arena_alloc(scratch, r * m + 1, sizeof *Bt);
    if (!Bt)
        return iso_nomem(e, r * m * sizeof *Bt);
    for (size_t i = 0; i < m; i++)
        for (size_t j = 0; j < r; j++)
            Bt[j * m + i] = l->scale * (double)l->B[i * r + j];
    iso_basis b;
    iso_err err = iso_basis_make(r, m, Bt, &b, scratch, e);
    if (err)
        return err;
    *k = b.k;
    *C = b.coords;
    *Q = iso_arena_alloc(scratch, b.k * m + 1, sizeof **Q);
    double *I = iso_arena_calloc(scratch, b.k * b.k + 1, sizeof *I);
    if (!*Q || !I)
        return iso_nomem(e, b.k * m * sizeof *I);
    for (size_t i = 0; i < b.k; i++)
        I[i * b.k + i] = 1.0;
    iso_basis_expand(&b, b.k, I, *Q);
    return ISO_OK;
}

/* A A' (r, r). */
static iso_err inputs_gram(const iso_lora_layer *l, double **G, iso_arena *scratch, iso_error *e)
{
    double *A = iso_arena_alloc(scratch, l->rank * l->in + 1, sizeof *A);
    *G = iso_arena_alloc(scratch, l->rank * l->rank + 1, sizeof **G);
    if (!A || !*G)
        return iso_nomem(e, l->rank * l->in * sizeof *A);
    for (size_t i = 0; i < l->rank * l->in; i++)
        A[i] = (double)l->A[i];
    iso_gram(ISO_AS_IS, l->rank, l->in, A, *G);
    return ISO_OK;
}

/* Leading left singular vectors of the merged layer: rows of U (p, out). */
static iso_err leading(const iso_lora_layer *l, double **U, size_t *p, iso_arena *scratch,
                       iso_error *e)
{
    double *Q = NULL, *C = NULL, *G = NULL, total = 0.0, sum = 0.0;
    size_t k = 0, r = l->rank;
    iso_err err = outputs_of(l, &Q, &C, &k, scratch, e);
    if (!err)
        err = inputs_gram(l, &G, scratch, e);
    if (err)
        return err;
    double *GC = iso_arena_alloc(scratch, r * k + 1, sizeof *GC);
    double *K = iso_arena_alloc(scratch, k * k + 1, sizeof *K);
    double *w = iso_arena_alloc(scratch, k + 1, sizeof *w);
    *U = iso_arena_alloc(scratch, k * l->out + 1, sizeof **U);
    if (!GC || !K || !w || !*U)
        return iso_nomem(e, k * l->out * sizeof *K);
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, r, k, r, 1.0, G, r, C, k, 0.0, GC, k);
    iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, k, k, r, 1.0, C, k, GC, k, 0.0, K, k);
    err = iso_eigen(k, K, w, scratch, e);
    for (size_t i = 0; i < k; i++)
        total += fmax(0.0, w[i]);
    for (*p = 0; *p < k && sum < LEADING_ENERGY * total; ++*p)
        sum += fmax(0.0, w[*p]);
    iso_la_gemm(ISO_AS_IS, ISO_AS_IS, *p, l->out, k, 1.0, K, k, Q, l->out, 0.0, *U, l->out);
    return err;
}

static iso_err layer_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    study *s = ctx;
    size_t T = s->T, p = 0, k[MAX_TASKS] = {0};
    double *Q[MAX_TASKS] = {NULL}, *U = NULL;
    const iso_lora_layer *merged = &s->m->layers[i];
    iso_err err = leading(merged, &U, &p, scratch, e);
    for (size_t t = 0; t < T && !err; t++) {
        const iso_lora_layer key = {.module = merged->module}, *l = NULL;
        for (size_t j = 0; j < s->in->lora[t].count && !l; j++)
            if (strcmp(s->in->lora[t].layers[j].module, key.module) == 0)
                l = &s->in->lora[t].layers[j];
        if (!l)
            continue;
        double *C = NULL, *G = NULL, norm = 0.0;
        err = outputs_of(l, &Q[t], &C, &k[t], scratch, e);
        if (!err)
            err = iso_lora_norm(l, &norm, scratch, e);
        if (!err)
            err = inputs_gram(l, &G, scratch, e);
        /* |U B A|^2 = trace((U B)' (U B) A A') with U B = (C Q U')' */
        double *P = iso_arena_alloc(scratch, k[t] * p + 1, sizeof *P);
        double *H = iso_arena_alloc(scratch, l->rank * p + 1, sizeof *H);
        double *N = iso_arena_alloc(scratch, l->rank * l->rank + 1, sizeof *N);
        if (!err && (!P || !H || !N))
            err = iso_nomem(e, l->rank * p * sizeof *H);
        if (err)
            return err;
        iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, k[t], p, l->out, 1.0, Q[t], l->out, U, l->out, 0.0,
                    P, p ? p : 1);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, l->rank, p, k[t], 1.0, C, k[t] ? k[t] : 1, P, p ? p : 1,
                    0.0, H, p ? p : 1);
        iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, l->rank, l->rank, p, 1.0, H, p ? p : 1, H, p ? p : 1,
                    0.0, N, l->rank);
        s->square[i * T + t] = norm * norm;
        s->inside[i * T + t] = fmax(0.0, iso_dot(N, G, l->rank * l->rank));
    }
    for (size_t t = 0; t < T && !err; t++)
        for (size_t u = 0; u < T && !err; u++) {
            size_t least = k[t] < k[u] ? k[t] : k[u];
            double *P = iso_arena_alloc(scratch, k[t] * k[u] + 1, sizeof *P);
            if (!P)
                return iso_nomem(e, k[t] * k[u] * sizeof *P);
            double *cell = &s->overlap[(i * T + t) * T + u];
            *cell = (double)NAN;
            if (least == 0)
                continue;
            iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, k[t], k[u], merged->out, 1.0, Q[t], merged->out,
                        Q[u], merged->out, 0.0, P, k[u]);
            *cell = iso_dot(P, P, k[t] * k[u]) / (double)least;
        }
    return err;
}

/* ---- parts of the page ---- */
static double mean_known(const double *x, size_t n, size_t stride)
{
    double sum = 0.0;
    size_t count = 0;
    for (size_t i = 0; i < n; i++)
        if (isfinite(x[i * stride])) {
            sum += x[i * stride];
            count++;
        }
    return count ? sum / (double)count : (double)NAN;
}

static iso_err add_inputs(iso_report *page, const study *s, const iso_merge_options *o,
                          iso_error *e)
{
    static const char *const header[] = {"input", "weight", "norm", "alignment ratio"};
    char text[MAX_TASKS][3][32];
    const char *cells[MAX_TASKS * 4];
    for (size_t t = 0; t < s->T; t++) {
        double all = 0.0, inside = 0.0;
        for (size_t i = 0; i < s->layers; i++) {
            all += s->square[i * s->T + t];
            inside += s->inside[i * s->T + t];
        }
        snprintf(text[t][0], sizeof text[t][0], "%g", o->weights ? o->weights[t] : 1.0);
        snprintf(text[t][1], sizeof text[t][1], "%.4g", sqrt(all));
        snprintf(text[t][2], sizeof text[t][2], "%.3f", all > 0.0 ? sqrt(inside / all) : 0.0);
        cells[4 * t] = iso_path_base(s->in->paths[t]);
        for (size_t k = 0; k < 3; k++)
            cells[4 * t + 1 + k] = text[t][k];
    }
    return iso_report_table(page,
                            "Alignment ratio: share of the task's norm that lies in the directions "
                            "holding 95 % of the merged update's energy.",
                            header, 4, cells, s->T, e);
}

static iso_err add_heatmap(iso_report *page, const char *title, const char *const *rows,
                           size_t row_count, const char *const *cols, size_t col_count,
                           const double *values, const char *caption, iso_error *e)
{
    iso_buf svg = {0};
    iso_plot plot = {.title = title};
    iso_err err = iso_svg_heatmap(&svg, &plot, rows, row_count, cols, col_count, values, "%.2f", e);
    if (!err)
        err = iso_report_svg(page, &svg, caption, e);
    iso_buf_free(&svg);
    return err;
}

static iso_err add_alignment(iso_report *page, const study *s, iso_error *e)
{
    double pairs[MAX_TASKS * MAX_TASKS], per_layer[MAX_LAYERS * MAX_TASKS];
    const char *tasks[MAX_TASKS] = {NULL}, *layers[MAX_LAYERS] = {NULL};
    size_t T = s->T, shown = s->layers < MAX_LAYERS ? s->layers : MAX_LAYERS;
    for (size_t t = 0; t < T; t++)
        tasks[t] = iso_path_base(s->in->paths[t]);
    for (size_t c = 0; c < T * T; c++)
        pairs[c] = mean_known(s->overlap + c, s->layers, T * T);
    iso_err err = add_heatmap(page, "Alignment between tasks", tasks, T, tasks, T, pairs,
                              "Mean squared cosine of the principal angles between the tasks' "
                              "output spaces, over all layers: 0 orthogonal, 1 the same.",
                              e);
    for (size_t i = 0; i < shown; i++) {
        layers[i] = s->m->layers[i].module;
        for (size_t t = 0; t < T; t++) {
            double sum = 0.0;
            size_t n = 0;
            for (size_t u = 0; u < T; u++) {
                double v = s->overlap[(i * T + t) * T + u];
                if (u != t && isfinite(v)) {
                    sum += v;
                    n++;
                }
            }
            per_layer[i * T + t] = n ? sum / (double)n : (double)NAN;
        }
    }
    if (!err && T > 1)
        err = add_heatmap(page, "Per layer: each task against the others", layers, shown, tasks, T,
                          per_layer, s->layers > shown ? "The first layers." : "", e);
    return err;
}

/* Singular values of the inputs and of the result, of the layer whose merged update is largest. */
static iso_err add_spectra(iso_report *page, const study *s, iso_error *e)
{
    size_t best = 0, n = 0;
    for (size_t i = 1; i < s->layers; i++)
        if (s->m->reports[i].norm > s->m->reports[best].norm)
            best = i;
    iso_arena scratch = {0};
    iso_series series[MAX_TASKS + 1];
    iso_buf svg = {0};
    iso_err err = ISO_OK;
    const iso_lora_layer *merged = &s->m->layers[best];
    for (size_t t = 0; t <= s->T && !err; t++) {
        const iso_lora_layer *l = t == s->T ? merged : NULL;
        for (size_t j = 0; t < s->T && j < s->in->lora[t].count; j++)
            if (strcmp(s->in->lora[t].layers[j].module, merged->module) == 0)
                l = &s->in->lora[t].layers[j];
        if (!l)
            continue;
        double *S = iso_arena_calloc(&scratch, l->rank + 1, sizeof *S);
        size_t count = 0;
        err = S ? iso_lora_spectrum(l, S, &count, &scratch, e) : iso_nomem(e, l->rank * sizeof *S);
        series[n++] =
            (iso_series){t == s->T ? "merged" : iso_path_base(s->in->paths[t]), NULL, S, count};
    }
    iso_plot plot = {.title = merged->module,
                     .x_label = "direction",
                     .y_label = "singular value",
                     .log_y = true};
    if (!err)
        err = iso_svg_lines(&svg, &plot, series, n, e);
    if (!err)
        err = iso_report_svg(page, &svg, "Spectra of the layer with the largest merged update.", e);
    iso_buf_free(&svg);
    iso_arena_free(&scratch);
    return err;
}

static iso_err add_layers(iso_report *page, const study *s, iso_error *e)
{
    static const char *const header[] = {"layer", "inputs", "rank", "kept energy", "norm", "route"};
    size_t n = s->layers;
    char(*text)[4][32] = iso_calloc(n, sizeof *text);
    const char **cells = iso_calloc(6 * n, sizeof(const char *));
    iso_err err = text && cells ? ISO_OK : iso_nomem(e, 6 * n * sizeof(char *));
    for (size_t i = 0; !err && i < n; i++) {
        const iso_layer_report *r = &s->m->reports[i];
        snprintf(text[i][0], 32, "%zu", r->present);
        snprintf(text[i][1], 32, "%zu", r->rank);
        snprintf(text[i][2], 32, "%.4f", r->energy_kept);
        snprintf(text[i][3], 32, "%.4g", r->norm);
        cells[6 * i] = r->name;
        for (size_t k = 0; k < 4; k++)
            cells[6 * i + 1 + k] = text[i][k];
        cells[6 * i + 5] = r->decisions.route;
    }
    if (!err)
        err = iso_report_table(page, "Layers", header, 6, cells, n, e);
    free(text);
    free(cells);
    return err;
}

iso_err iso_merge_page_write(const char *path, const iso_merge_inputs *in,
                             const iso_merge_options *o, const iso_merged_lora *m, iso_error *e)
{
    size_t T = in->count, n = m->count;
    if (T > MAX_TASKS)
        return iso_fail(e, ISO_ERR_USAGE, "--report takes at most %d inputs", MAX_TASKS);
    study s = {.in = in, .m = m, .T = T, .layers = n};
    s.overlap = iso_calloc(n * T * T, sizeof *s.overlap);
    s.square = iso_calloc(n * T, sizeof *s.square);
    s.inside = iso_calloc(n * T, sizeof *s.inside);
    iso_report page = {0};
    char subtitle[160];
    snprintf(subtitle, sizeof subtitle, "%s over %zu adapters, %zu layers, norm %.4g",
             o->method->name, T, n, m->summary.norm);
    iso_jobs jobs = {.count = n, .run = layer_job, .ctx = &s};
    iso_err err = s.overlap && s.square && s.inside ? iso_jobs_run(&jobs, e)
                                                    : iso_nomem(e, n * T * T * sizeof *s.overlap);
    if (!err)
        err = iso_report_begin(&page, "Merge", subtitle, e);
    for (size_t i = 0; !err && o->method->params[i].name; i++)
        err = iso_report_text(&page, e, "%s = %g", o->method->params[i].name, o->args.value[i]);
    if (!err)
        err = add_inputs(&page, &s, o, e);
    if (!err && n > 0)
        err = add_spectra(&page, &s, e);
    if (!err && n > 0)
        err = add_alignment(&page, &s, e);
    if (!err)
        err = add_layers(&page, &s, e);
    if (!err)
        err = iso_report_write(&page, path, e);
    iso_report_free(&page);
    free(s.overlap);
    free(s.square);
    free(s.inside);
    return err;
}
