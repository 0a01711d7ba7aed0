#include "cli/report_page.h"

#include "core/progress.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Cells of a table: rows of short texts. */
typedef struct {
    char (*text)[48];
    const char **cells;
    size_t cols, count, capacity;
} grid;

static bool grid_open(grid *g, size_t rows, size_t cols)
{
    *g = (grid){.cols = cols, .capacity = rows * cols};
    g->text = iso_calloc(g->capacity, sizeof *g->text);
    g->cells = iso_calloc(g->capacity, sizeof *g->cells);
    return g->text && g->cells;
}

static void grid_close(grid *g)
{
    free(g->text);
    free(g->cells);
}

static char *grid_next(grid *g)
{
    char *cell = g->text[g->count < g->capacity ? g->count : g->capacity - 1];
    g->cells[g->count < g->capacity ? g->count : g->capacity - 1] = cell;
    g->count++;
    return cell;
}

static void grid_text(grid *g, const char *s)
{
    snprintf(grid_next(g), sizeof *g->text, "%s", s);
}

/* Per cent with one decimal; "–" where nothing is known. */
static void grid_share(grid *g, double v)
{
    if (isnan(v))
        grid_text(g, "–");
    else
        snprintf(grid_next(g), sizeof *g->text, "%.1f", 100 * v);
}

static void grid_bytes(grid *g, double v)
{
    iso_bytes_text(grid_next(g), sizeof *g->text, v);
}

/* ---- sections ---- */

static void grid_pair(grid *g, double delivered, double refit)
{
    if (isnan(refit))
        grid_text(g, "–");
    else
        snprintf(grid_next(g), sizeof *g->text, "%.1f / %.1f", 100 * delivered, 100 * refit);
}

static iso_err add_scores(iso_report *r, const report_data *d, iso_error *e)
{
    const char *header[4 + REPORT_METHODS_MAX] = {"task", "chance", "probe", "own"};
    const size_t cols = 4 + d->method_count;
    grid g;
    for (size_t m = 0; m < d->method_count; m++)
        header[4 + m] = d->methods[m].name;
    if (!grid_open(&g, d->task_count, cols)) {
        grid_close(&g);
        return iso_nomem(e, d->task_count * cols * 48);
    }
    for (size_t t = 0; t < d->task_count; t++) {
        const report_task *x = &d->tasks[t];
        grid_text(&g, x->name);
        grid_share(&g, x->chance);
        grid_pair(&g, x->probe_delivered, x->probe);
        grid_pair(&g, x->own_delivered, x->own);
        for (size_t m = 0; m < d->method_count; m++)
            grid_pair(&g, d->methods[m].delivered->delivered[t], d->methods[m].refitted->refit[t]);
    }
    char caption[320];
    snprintf(caption, sizeof caption,
             "Accuracy in per cent on the sites' %s images, as delivered / with the head refitted "
             "at the site. probe: the frozen backbone, the task's head / the strongest head on its "
             "features; own: the site's own adapter; then the merges.",
             d->is_test ? "test" : "validation");
    iso_err err = iso_report_table(r, caption, header, cols, g.cells, d->task_count, e);
    grid_close(&g);
    return err;
}

/* Normalised accuracy over alpha, a line a method; a method with one alpha is a level. */
static iso_err add_alphas(iso_report *r, const report_data *d, iso_error *e)
{
    const report_wave *w = d->wave_count ? &d->waves[d->wave_count - 1] : NULL;
    double x[REPORT_METHODS_MAX][REPORT_CANDIDATES_MAX + 1];
    double y[REPORT_METHODS_MAX][REPORT_CANDIDATES_MAX + 1];
    iso_series series[REPORT_METHODS_MAX];
    double largest = 0;
    iso_buf svg = {0};
    for (size_t c = 0; w && c < w->candidate_count; c++)
        largest = fmax(largest, w->candidates[c].alpha);
    for (size_t m = 0; m < d->method_count; m++) {
        size_t n = 0;
        for (size_t c = 0; c < w->candidate_count; c++)
            if (!strcmp(w->candidates[c].method, d->methods[m].name)) {
                x[m][n] = w->candidates[c].alpha;
                y[m][n++] = 100 * w->candidates[c].refitted_mean.normalised;
            }
        if (n == 1) {
            x[m][0] = 0;
            x[m][n] = largest;
            y[m][n++] = y[m][0];
        }
        series[m] = (iso_series){d->methods[m].name, x[m], y[m], n};
    }
    if (d->method_count == 0)
        return ISO_OK;
    iso_plot plot = {.title = "How much alpha matters",
                     .x_label = "alpha",
                     .y_label = "mean normalised accuracy, per cent"};
    iso_err err = iso_svg_lines(&svg, &plot, series, d->method_count, e);
    if (!err)
        err = iso_report_svg(r, &svg,
                             "Test images, heads refitted. Alpha itself is chosen on validation "
                             "images.",
                             e);
    iso_buf_free(&svg);
    return err;
}

static iso_err add_methods(iso_report *r, const report_data *d, iso_error *e)
{
    static const char *const header[] = {"method", "alpha", "normalised", "gain kept",
                                         "tasks with a gain"};
    static const char *const series[] = {"mean normalised accuracy", "mean gain kept"};
    const char *groups[REPORT_METHODS_MAX];
    double values[2 * REPORT_METHODS_MAX];
    grid g;
    iso_buf svg = {0};
    if (!grid_open(&g, d->method_count ? d->method_count : 1, 5)) {
        grid_close(&g);
        return iso_nomem(e, 4096);
    }
    for (size_t m = 0; m < d->method_count; m++) {
        const report_method *x = &d->methods[m];
        const report_candidate *raw = x->delivered, *refit = x->refitted;
        groups[m] = x->name;
        values[2 * m] = 100 * refit->refitted_mean.normalised;
        values[2 * m + 1] = 100 * refit->refitted_mean.gain_kept;
        grid_text(&g, x->name);
        snprintf(grid_next(&g), sizeof *g.text, "%.3g / %.3g", raw->alpha, refit->alpha);
        grid_pair(&g, raw->delivered_mean.normalised, refit->refitted_mean.normalised);
        grid_pair(&g, raw->delivered_mean.gain_kept, refit->refitted_mean.gain_kept);
        snprintf(grid_next(&g), sizeof *g.text, "%zu of %zu", x->gain_tasks, d->task_count);
    }
    iso_err err = iso_report_table(
        r,
        "Per cent, as delivered / with the head refitted, each at the alpha that the sites' "
        "validation images chose for that use. normalised: merged / own; gain kept: (merged - "
        "probe) / (own - probe), over tasks whose own gain is at least 2 points.",
        header, 5, g.cells, d->method_count, e);
    iso_plot plot = {.title = "Merge methods side by side", .y_label = "per cent"};
    if (!err)
        err = iso_svg_bars(&svg, &plot, groups, d->method_count, series, 2, values, e);
    if (!err)
        err = iso_report_svg(r, &svg, "Head refitted at the sites.", e);
    iso_buf_free(&svg);
    grid_close(&g);
    return err;
}

static iso_err add_matrix(iso_report *r, const report_data *d, iso_error *e)
{
    const char *rows[REPORT_WAVES_MAX], *cols[REPORT_TASKS_MAX];
    char names[REPORT_WAVES_MAX][48];
    double *values = iso_calloc(REPORT_WAVES_MAX * REPORT_TASKS_MAX, sizeof *values);
    iso_buf svg = {0};
    if (!values)
        return iso_nomem(e, REPORT_WAVES_MAX * REPORT_TASKS_MAX * sizeof *values);
    for (size_t t = 0; t < d->task_count; t++)
        cols[t] = d->tasks[t].name;
    for (size_t w = 0; w < d->wave_count; w++) {
        snprintf(names[w], sizeof names[w], "release %llu",
                 (unsigned long long)d->waves[w].release);
        rows[w] = names[w];
        for (size_t t = 0; t < d->task_count; t++)
            values[w * d->task_count + t] = 100 * report_matrix(d, w, t);
    }
    iso_plot plot = {.title = "Accuracy matrix"};
    iso_err err =
        iso_svg_heatmap(&svg, &plot, rows, d->wave_count, cols, d->task_count, values, "%.1f", e);
    if (!err)
        err = iso_report_svg(r, &svg, "Score of each release on each task, head refitted.", e);
    if (!err && !isnan(d->forgetting))
        err = iso_report_text(r, e,
                              "Forgetting %.2f points, backward transfer %+.2f points, over the "
                              "tasks of the earlier waves.",
                              100 * d->forgetting, 100 * d->backward_transfer);
    iso_buf_free(&svg);
    free(values);
    return err;
}

static iso_err add_timeline(iso_report *r, const report_data *d, iso_error *e)
{
    iso_span spans[REPORT_WAVES_MAX * 5];
    char lanes[REPORT_WAVES_MAX][32];
    size_t n = 0;
    iso_buf svg = {0};
    double zero = d->wave_count ? (d->waves[0].head_opened_ms > 0 ? d->waves[0].head_opened_ms
                                                                  : d->waves[0].opened_ms)
                                : 0;
    for (size_t w = 0; w < d->wave_count; w++) {
        const report_wave *x = &d->waves[w];
        const struct {
            const char *label;
            double start, end;
        } phases[] = {{"heads", x->head_opened_ms, x->head_ended_ms},
                      {"training", x->opened_ms, x->closed_ms},
                      {"merging", x->closed_ms, x->merged_ms},
                      {"evaluating", x->merged_ms, x->judged_ms},
                      {"signing", x->judged_ms, x->ended_ms}};
        snprintf(lanes[w], sizeof lanes[w], "wave %zu", w + 1);
        for (int p = 0; p < 5; p++)
            if (phases[p].end > phases[p].start && phases[p].start > 0)
                spans[n++] = (iso_span){lanes[w], phases[p].label, (phases[p].start - zero) / 1000,
                                        (phases[p].end - zero) / 1000, p};
    }
    iso_plot plot = {.title = "Timeline of the rounds", .x_label = "seconds"};
    iso_err err = iso_svg_timeline(&svg, &plot, spans, n, e);
    if (!err)
        err = iso_report_svg(r, &svg, NULL, e);
    iso_buf_free(&svg);
    return err;
}

static iso_err add_sites(iso_report *r, const report_data *d, iso_error *e)
{
    static const char *const header[] = {"site", "images",   "their bytes",
                                         "sent", "received", "release"};
    grid g;
    if (!grid_open(&g, d->site_count ? d->site_count : 1, 6)) {
        grid_close(&g);
        return iso_nomem(e, 4096);
    }
    for (size_t i = 0; i < d->site_count; i++) {
        const report_site *s = &d->sites[i];
        grid_text(&g, s->name);
        snprintf(grid_next(&g), sizeof *g.text, "%.0f", s->images);
        grid_bytes(&g, s->image_bytes);
        grid_bytes(&g, s->sent_bytes);
        grid_bytes(&g, s->received_bytes);
        snprintf(grid_next(&g), sizeof *g.text, "%llu", (unsigned long long)s->release);
    }
    iso_err err =
        iso_report_table(r,
                         "Bytes that the client's socket counted, both directions, beside "
                         "the bytes of the images that stayed.",
                         header, 6, g.cells, d->site_count, e);
    grid_close(&g);
    return err;
}

iso_err report_write_page(const report_data *d, const char *dir, double seconds, const char *path,
                          iso_error *e)
{
    iso_report r = {0};
    char subtitle[160], took[32];
    iso_duration_text(took, sizeof took, seconds);
    snprintf(subtitle, sizeof subtitle, "%zu sites, %zu tasks, %zu releases, %s", d->site_count,
             d->task_count, d->release_count, took);
    iso_err err = iso_report_begin(&r, "Factories teach one model together", subtitle, e);
    if (!err)
        err = iso_report_heading(&r, "What was learnt", e);
    if (!err)
        err = add_scores(&r, d, e);
    if (!err)
        err = iso_report_heading(&r, "Merge methods", e);
    if (!err)
        err = add_methods(&r, d, e);
    if (!err)
        err = add_alphas(&r, d, e);
    if (!err)
        err = iso_report_heading(&r, "Nothing forgotten?", e);
    if (!err)
        err = add_matrix(&r, d, e);
    if (!err)
        err = iso_report_heading(&r, "Spectra before and after the merge", e);
    if (!err)
        err = report_add_spectra(&r, d, dir, e);
    if (!err)
        err = iso_report_heading(&r, "What travelled", e);
    if (!err)
        err = add_sites(&r, d, e);
    if (!err)
        err = add_timeline(&r, d, e);
    if (!err)
        err = iso_report_heading(&r, "Test images and what the release says", e);
    if (!err)
        err = report_add_pictures(&r, d, dir, e);
    if (!err)
        err = iso_report_write(&r, path, e);
    iso_report_free(&r);
    return err;
}
