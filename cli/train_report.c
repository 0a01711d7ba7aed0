/* The page of one training; see train_report.h. */
#include "cli/train_report.h"

#include "core/report.h"
#include "nn/train/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

enum { PICTURES = 12, CELL_BYTES = 32 };

static iso_err scores(iso_report *r, const iso_train_outcome *t, iso_error *e)
{
    static const char *const header[] = {"score", "accuracy %", "+- (95 %)"};
    const struct {
        const char *name;
        double value;
        bool has_width;
    } rows[] = {{"chance", t->chance, false},
                {"probe (frozen backbone)", t->probe, true},
                {"own adapter", t->own, true},
                {"own adapter, head refitted", t->own_refit, true}};
    enum { ROWS = sizeof rows / sizeof *rows };
    char text[ROWS][2][CELL_BYTES];
    const char *cells[ROWS * 3];
    for (size_t i = 0; i < ROWS; i++) {
        snprintf(text[i][0], CELL_BYTES, "%.1f", 100 * rows[i].value);
        snprintf(text[i][1], CELL_BYTES, "%.1f",
                 rows[i].has_width && t->scored
                     ? 100 * iso_binomial_half_width(rows[i].value, t->scored)
                     : 0);
        cells[i * 3] = rows[i].name;
        cells[i * 3 + 1] = text[i][0];
        cells[i * 3 + 2] = rows[i].has_width && t->scored ? text[i][1] : "";
    }
    return iso_report_table(r, t->has_test ? "On the test split" : "On the validation split",
                            header, 3, cells, ROWS, e);
}

static iso_err curves(iso_report *r, const iso_train_outcome *t, iso_error *e)
{
    iso_buf svg = {0};
    iso_plot loss = {.title = "Training loss", .x_label = "step", .y_label = "cross-entropy"};
    iso_plot val = {.title = "Validation accuracy", .x_label = "step", .y_label = "share"};
    iso_series line = {"loss", t->curve_step, t->curve_loss, t->curve_count};
    iso_series score = {"accuracy", t->curve_step, t->curve_val, t->curve_count};
    iso_err err;
    if (!(err = iso_svg_lines(&svg, &loss, &line, 1, e)))
        err = iso_report_svg(r, &svg, "Mean over about 20 steps", e);
    svg.size = 0;
    if (!err && t->val.set.count && !(err = iso_svg_lines(&svg, &val, &score, 1, e)))
        err = iso_report_svg(r, &svg, "Scored every few steps", e);
    iso_buf_free(&svg);
    return err;
}

static iso_err confusion(iso_report *r, const iso_train_outcome *t, const int *predicted,
                         iso_error *e)
{
    const iso_train_split *s = iso_train_scored(t);
    size_t C = t->head.classes;
    uint64_t *counts = iso_calloc(C * C, sizeof *counts);
    double *values = iso_calloc(C * C, sizeof *values);
    iso_buf svg = {0};
    iso_plot plot = {.title = "Own adapter", .x_label = "predicted", .y_label = "label"};
    iso_err err = ISO_OK;
    if (!counts || !values) {
        err = iso_nomem(e, C * C * sizeof *values);
    } else {
        iso_confusion(predicted, s->labels, t->scored, C, counts);
        for (size_t i = 0; i < C * C; i++)
            values[i] = (double)counts[i];
        err = iso_svg_heatmap(&svg, &plot, t->head.class_names, C, t->head.class_names, C, values,
                              "%.0f", e);
    }
    if (!err)
        err = iso_report_svg(r, &svg, "Counts of labels (rows) and predictions (columns)", e);
    iso_buf_free(&svg);
    free(counts);
    free(values);
    return err;
}

/* Texts instead. */
static iso_err texts(iso_report *r, const iso_train_outcome *t, const int *predicted, iso_error *e)
{
    static const char *const header[] = {"text", "predicted", "label"};
    const iso_image_set *s = &iso_train_scored(t)->set;
    const char *cells[PICTURES * 3];
    size_t n = s->count < PICTURES ? s->count : PICTURES;
    for (size_t k = 0; k < n; k++) {
        size_t i = k * s->count / n;
        cells[k * 3] = s->rows[i].text;
        cells[k * 3 + 1] = s->class_names[predicted[i]];
        cells[k * 3 + 2] = s->class_names[s->rows[i].label];
    }
    return iso_report_table(r, "Some of the texts", header, 3, cells, n, e);
}

static iso_err pictures(iso_report *r, const iso_train_outcome *t, const int *predicted,
                        iso_error *e)
{
    const iso_image_set *s = &iso_train_scored(t)->set;
    if (!s->pixels)
        return texts(r, t, predicted, e);
    size_t bytes = (size_t)s->height * (size_t)s->width * 3;
    iso_err err = ISO_OK;
    for (size_t k = 0; !err && k < PICTURES && k < s->count; k++) {
        size_t i = k * s->count / (s->count < PICTURES ? s->count : PICTURES); /* spread out */
        char caption[600];
        snprintf(caption, sizeof caption, "%s, labelled %s", s->class_names[predicted[i]],
                 s->class_names[s->rows[i].label]);
        err = iso_report_image(r, s->pixels + i * bytes, s->width, s->height, caption, e);
    }
    return err;
}

iso_err iso_train_report(const iso_train_outcome *t, const iso_train_plan *plan, const char *title,
                         const char *path, iso_error *e)
{
    iso_report r = {0};
    int *predicted = iso_calloc(t->scored, sizeof *predicted);
    iso_err err = predicted ? iso_report_begin(&r, title, "isofed train", e)
                            : iso_nomem(e, t->scored * sizeof *predicted);
    if (err)
        goto done;
    if (t->scored)
        iso_linear_predict(&t->head, t->adapted, t->scored, predicted);
    if ((err = iso_report_text(&r, e,
                               "%zu training and %zu validation %s of %zu classes; %llu steps "
                               "of %zu, rank %zu, learning rate %g, head %s, seed %llu; "
                               "%.1f s.",
                               t->train.set.count, t->val.set.count, iso_vision_noun(&t->vision),
                               t->head.classes, (unsigned long long)t->status.step,
                               plan->train.batch, plan->adapter.rank, plan->train.lr,
                               plan->train.trains_head ? "joint" : "fixed",
                               (unsigned long long)plan->train.seed, t->seconds)) ||
        (err = iso_report_heading(&r, "Scores", e)) || (err = scores(&r, t, e)) ||
        (err = iso_report_heading(&r, "Training", e)) || (err = curves(&r, t, e)))
        goto done;
    if (t->scored &&
        ((err = iso_report_heading(&r, "Predictions", e)) ||
         (err = confusion(&r, t, predicted, e)) || (err = pictures(&r, t, predicted, e))))
        goto done;
    err = iso_report_write(&r, path, e);
done:
    iso_report_free(&r);
    free(predicted);
    return err;
}
