/* Continual runs; see train_sequence.h. Which numbers are made: R[i][j], the score on task j's test
 * images (validation images without them) after task i, for j <= i; R[j-1][j] by the head that task
 * j begins with, fitted on the features that the tasks before it left; b_j by one on the frozen
 * backbone. */
#include "cli/train_sequence.h"

#include "cli/command.h"
#include "cli/table.h"
#include "cli/train_kinds.h"
#include "core/fsio.h"
#include "core/report.h"
#include "nn/adapter/data.h"
#include "nn/train/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TASKS = 64, MAX_FILE = 1 << 16 };

const char *const iso_sequence_modes[] = {"continue", "fresh", "frozen", NULL};

typedef struct {
    char *folder;
    iso_train_outcome *data; /* its vision is the sequence's, borrowed */
    iso_linear_head head;    /* after its training */
    iso_adapter *own;        /* mode fresh */
    float *features[3];      /* of train, val and the scored split, with the adapter of now */
} seq_task;

typedef struct {
    iso_vision vision;
    const iso_train_plan *plan;
    iso_sequence_mode mode;
    seq_task tasks[MAX_TASKS];
    size_t count;
    iso_adapter *adapter; /* mode continue */
    double *R;            /* (count, count) */
    double *probe;        /* b_j */
} sequence;

/* ---- the list ---- */

static iso_err read_list(sequence *s, const char *file, iso_error *e)
{
    iso_buf text = {0};
    char *folder = iso_path_dir(file), *rest = NULL;
    iso_err err = folder ? iso_read_file(file, MAX_FILE, &text, e) : iso_nomem(e, strlen(file));
    char *line = err ? NULL : strtok_r((char *)text.data, "\r\n", &rest);
    for (; !err && line; line = strtok_r(NULL, "\r\n", &rest)) {
        line += strspn(line, " \t");
        size_t n = strcspn(line, "#");
        while (n && (line[n - 1] == ' ' || line[n - 1] == '\t'))
            n--;
        line[n] = 0;
        if (!n)
            continue;
        if (s->count == MAX_TASKS) {
            err = iso_fail(e, ISO_ERR_USAGE, "%s: more than %d tasks", file, MAX_TASKS);
            break;
        }
        seq_task *t = &s->tasks[s->count++];
        t->folder = *line == '/' ? iso_strdup(line) : iso_path_join(folder, line);
        t->data = iso_calloc(1, sizeof *t->data);
        if (!t->folder || !t->data)
            err = iso_nomem(e, sizeof *t->data);
    }
    if (!err && s->count < 2)
        err = iso_fail(e, ISO_ERR_USAGE, "%s: a sequence has two tasks at least", file);
    free(folder);
    iso_buf_free(&text);
    return err;
}

/* ---- one task ---- */

static void drop_features(seq_task *t)
{
    for (int k = 0; k < 3; k++) {
        free(t->features[k]);
        t->features[k] = NULL;
    }
}

static iso_train_split *split_of(seq_task *t, int k)
{
    return k == 0              ? &t->data->train
           : k == 1            ? &t->data->val
           : t->data->has_test ? &t->data->test
                               : &t->data->val;
}

/* Features of the three sets with adapter `a` (or none). */
static iso_err embed(sequence *s, seq_task *t, const iso_adapter *a, bool only_scored, iso_error *e)
{
    iso_vision v = s->vision;
    v.model = NULL;
    drop_features(t);
    iso_err err = iso_model_open(&v.model, v.backbone, a, false, e);
    for (int k = only_scored ? 2 : 0; !err && k < 3; k++) {
        iso_train_split *split = split_of(t, k);
        int *labels = NULL;
        if (!split->set.count)
            continue;
        err = iso_vision_features(&v, &split->set, s->plan->quiet, &t->features[k], &labels, e);
        free(split->labels);
        split->labels = labels;
    }
    iso_model_close(v.model);
    return err;
}

static double score(seq_task *t, const iso_linear_head *h)
{
    const iso_train_split *x = split_of(t, 2);
    return x->set.count ? iso_linear_accuracy(h, t->features[2], x->labels, x->set.count)
                        : (double)NAN;
}

static iso_err fit(sequence *s, seq_task *t, iso_linear_head *h, iso_error *e)
{
    const iso_image_set *set = &t->data->train.set;
    iso_feature_set train = {t->features[0], t->data->train.labels, set->count};
    iso_feature_set val = {t->features[1], t->data->val.labels, t->data->val.set.count};
    return iso_probe_fit(h, s->plan->probe, &train, &val, s->vision.backbone->shape.feature,
                         set->class_names, set->class_count, NULL, e);
}

static iso_err new_adapter(sequence *s, size_t i, iso_adapter **now, iso_error *e)
{
    if (s->mode == ISO_SEQUENCE_FRESH || i == 0)
        return iso_adapter_create(now, s->vision.backbone, &s->plan->adapter, e);
    if (s->adapter->kind != &iso_data_kind) {
        *now = s->adapter;
        return ISO_OK;
    }
    iso_err err = iso_data_expand(now, s->adapter, s->plan->adapter.seed, e);
    if (!err)
        iso_adapter_close(s->adapter);
    return err;
}

static bool stop(void *ctx)
{
    (void)ctx;
    return iso_cli_interrupted;
}

static iso_err train(sequence *s, size_t i, iso_adapter *a, iso_error *e)
{
    seq_task *t = &s->tasks[i];
    iso_training *training = NULL;
    iso_training_setup setup = {
        .backbone = s->vision.backbone, .adapter = a, .head = &t->head, .options = s->plan->train};
    iso_train_split *sets[2] = {&t->data->train, &t->data->val};
    iso_train_set *to[2] = {&setup.train, &setup.val};
    for (int k = 0; k < 2; k++)
        *to[k] = (iso_train_set){.n = sets[k]->set.count,
                                 .pixels = iso_image_feed_pixels,
                                 .ctx = &sets[k]->feed,
                                 .labels = sets[k]->labels};
    setup.options.augments = s->plan->shift > 0 || s->plan->is_mirrored;
    setup.options.seed += i;
    t->data->vision.adapter = a;
    iso_err err = iso_kind_prepare(t->data, s->plan, e);
    if (!err && !(err = iso_training_open(&training, &setup, e)))
        err = iso_training_run(training, stop, NULL, NULL, e);
    iso_training_close(training);
    if (!err)
        err = iso_kind_conclude(t->data, e);
    t->data->vision.adapter = NULL;
    return err;
}

/* Row i of R up to task i. */
static iso_err score_all(sequence *s, size_t i, iso_error *e)
{
    iso_err err = ISO_OK;
    for (size_t j = 0; !err && j <= i; j++) {
        seq_task *t = &s->tasks[j];
        iso_adapter *seen = NULL;
        const iso_adapter *a = s->mode == ISO_SEQUENCE_CONTINUE ? s->adapter : t->own;
        if (s->mode == ISO_SEQUENCE_CONTINUE && a->kind == &iso_data_kind) {
            if ((err = iso_data_at_task(&seen, a, j, e)))
                break;
            a = seen;
        }
        if (!(err = embed(s, t, a, true, e)))
            s->R[i * s->count + j] = score(t, &t->head);
        iso_adapter_close(seen);
        drop_features(t);
    }
    return err;
}

static iso_err one_task(sequence *s, size_t i, iso_error *e)
{
    seq_task *t = &s->tasks[i];
    iso_linear_head frozen = {0};
    iso_train_plan plan = *s->plan;
    iso_adapter *a = NULL;
    plan.data = t->folder;
    t->data->vision = s->vision;
    iso_err err = iso_train_load(t->data, &plan, e);
    if (err || (err = embed(s, t, NULL, false, e)) || (err = fit(s, t, &frozen, e)))
        goto done;
    s->probe[i] = score(t, &frozen);
    if (s->mode != ISO_SEQUENCE_FROZEN) {
        if (i > 0 && s->mode == ISO_SEQUENCE_CONTINUE) {
            if ((err = embed(s, t, s->adapter, false, e)) || (err = fit(s, t, &t->head, e)))
                goto done;
            s->R[(i - 1) * s->count + i] = score(t, &t->head);
        } else if ((err = iso_linear_copy(&t->head, &frozen, e))) {
            goto done;
        }
        if ((err = new_adapter(s, i, &a, e)))
            goto done;
        *(s->mode == ISO_SEQUENCE_FRESH ? &t->own : &s->adapter) = a;
        if ((err = train(s, i, a, e)))
            goto done;
    } else if ((err = iso_linear_copy(&t->head, &frozen, e))) {
        goto done;
    }
    err = score_all(s, i, e);
done:
    iso_linear_free(&frozen);
    drop_features(t);
    return err;
}

/* ---- results ---- */

static const struct {
    const char *name, *key;
} NUMBERS[] = {{"average accuracy", "acc"},
               {"learning accuracy", "la"},
               {"forgetting", "forgetting"},
               {"backward transfer", "bwt"},
               {"forward transfer", "fwt"}};
enum { NUMBER_COUNT = sizeof NUMBERS / sizeof *NUMBERS };

static void numbers_of(const sequence *s, double out[NUMBER_COUNT])
{
    double la = 0.0;
    for (size_t j = 0; j < s->count; j++)
        la += s->R[j * s->count + j] / (double)s->count;
    out[0] = iso_acc(s->R, s->count);
    out[1] = la;
    out[2] = iso_forgetting(s->R, s->count);
    out[3] = iso_bwt(s->R, s->count);
    out[4] = iso_fwt(s->R, s->probe, s->count);
}

static iso_json *as_json(const sequence *s)
{
    double numbers[NUMBER_COUNT];
    iso_json *j = iso_json_object(), *names = iso_json_array(), *rows = iso_json_array();
    iso_json *probe = iso_json_array();
    numbers_of(s, numbers);
    for (size_t i = 0; i < s->count; i++) {
        iso_json *row = iso_json_array();
        for (size_t k = 0; k < s->count; k++)
            iso_json_push(row, iso_json_real(s->R[i * s->count + k]));
        iso_json_push(rows, row);
        iso_json_push(names, iso_json_string(iso_path_base(s->tasks[i].folder)));
        iso_json_push(probe, iso_json_real(s->probe[i]));
    }
    iso_json_set(j, "format", iso_json_string("isofed-sequence"));
    iso_json_set(j, "version", iso_json_integer(1));
    iso_json_set(j, "adapter",
                 iso_json_string(s->mode == ISO_SEQUENCE_FROZEN ? "none" : s->plan->adapter.kind));
    iso_json_set(j, "mode", iso_json_string(iso_sequence_modes[s->mode]));
    iso_json_set(j, "seed", iso_json_integer((int64_t)s->plan->train.seed));
    iso_json_set(j, "tasks", names);
    iso_json_set(j, "probe", probe);
    iso_json_set(j, "R", rows);
    for (size_t i = 0; i < NUMBER_COUNT; i++)
        iso_json_set(j, NUMBERS[i].key, iso_json_real(numbers[i]));
    return j;
}

static void print_text(const sequence *s)
{
    double numbers[NUMBER_COUNT];
    numbers_of(s, numbers);
    printf("%-16s", "after \\ on");
    for (size_t j = 0; j < s->count; j++)
        printf(" %12.12s", iso_path_base(s->tasks[j].folder));
    printf("\n%-16s", "frozen, probe");
    for (size_t j = 0; j < s->count; j++)
        printf(" %12.1f", 100 * s->probe[j]);
    for (size_t i = 0; i < s->count; i++) {
        printf("\n%-16.16s", iso_path_base(s->tasks[i].folder));
        for (size_t j = 0; j < s->count; j++)
            if (isnan(s->R[i * s->count + j]))
                printf(" %12s", "");
            else
                printf(" %12.1f", 100 * s->R[i * s->count + j]);
    }
    printf("\n");
    for (size_t i = 0; i < NUMBER_COUNT; i++)
        if (isnan(numbers[i]))
            printf("%-20s not defined\n", NUMBERS[i].name);
        else
            printf("%-20s %5.1f\n", NUMBERS[i].name, 100 * numbers[i]);
}

static iso_err write_page(const sequence *s, const char *path, iso_error *e)
{
    iso_report r = {0};
    iso_buf svg = {0};
    const char *names[MAX_TASKS];
    double numbers[NUMBER_COUNT], shares[MAX_TASKS * MAX_TASKS], curves[MAX_TASKS * MAX_TASKS];
    iso_series lines[MAX_TASKS];
    static const char *const header[] = {"number", "points"};
    char text[NUMBER_COUNT][32];
    const char *cells[NUMBER_COUNT * 2];
    size_t T = s->count;
    iso_plot heat = {.title = "Accuracy after each task", .x_label = "on", .y_label = "after"};
    iso_plot plot = {
        .title = "Tasks over time", .x_label = "tasks learnt", .y_label = "accuracy %"};
    numbers_of(s, numbers);
    for (size_t i = 0; i < T; i++) {
        names[i] = iso_path_base(s->tasks[i].folder);
        for (size_t j = 0; j < T; j++) {
            shares[i * T + j] = 100 * s->R[i * T + j];
            curves[j * T + i] = j <= i ? shares[i * T + j] : (double)NAN;
        }
    }
    for (size_t j = 0; j < T; j++)
        lines[j] = (iso_series){names[j], NULL, curves + j * T, T};
    for (size_t i = 0; i < NUMBER_COUNT; i++) {
        snprintf(text[i], sizeof text[i], "%.1f", 100 * numbers[i]);
        cells[2 * i] = NUMBERS[i].name;
        cells[2 * i + 1] = text[i];
    }
    iso_err err = iso_report_begin(&r, "Tasks in sequence", "isofed train --sequence", e);
    if (!err &&
        !(err = iso_report_text(&r, e, "%s, %s, %zu steps a task, seed %llu", s->plan->adapter.kind,
                                iso_sequence_modes[s->mode], s->plan->train.steps,
                                (unsigned long long)s->plan->train.seed)) &&
        !(err =
              iso_report_table(&r, "Over the whole sequence", header, 2, cells, NUMBER_COUNT, e)) &&
        !(err = iso_svg_heatmap(&svg, &heat, names, T, names, T, shares, "%.1f", e)))
        err = iso_report_svg(&r, &svg,
                             "Above the diagonal: by a head fitted before the task was learnt", e);
    svg.size = 0;
    if (!err && !(err = iso_svg_lines(&svg, &plot, lines, T, e)))
        err = iso_report_svg(&r, &svg, "Each task from when it was learnt", e);
    if (!err)
        err = iso_report_write(&r, path, e);
    iso_buf_free(&svg);
    iso_report_free(&r);
    return err;
}

static iso_err save(const sequence *s, const iso_json *answer, const char *out, iso_error *e)
{
    iso_buf text = {0};
    char *path = iso_path_join(out, "sequence.json");
    iso_err err = path ? iso_make_dirs(out, 0755, e) : iso_nomem(e, strlen(out));
    if (!err && !(err = iso_json_dump(answer, ISO_JSON_PRETTY, &text, e)))
        err = iso_write_file(path, text.data, text.size, 0644, e);
    free(path);
    iso_buf_free(&text);
    for (size_t i = 0; !err && i < s->count; i++) {
        char name[64];
        snprintf(name, sizeof name, "head-%zu.safetensors", i + 1);
        path = iso_path_join(out, name);
        err = path ? iso_linear_save(&s->tasks[i].head, path, e) : iso_nomem(e, sizeof name);
        free(path);
    }
    if (!err && s->adapter) {
        path = iso_path_join(out, "adapter");
        err = path ? iso_adapter_write(s->adapter, path, NULL, NULL, e) : iso_nomem(e, 8);
        free(path);
    }
    return err;
}

iso_err iso_train_sequence(const char *backbone, const char *file, const iso_train_plan *plan,
                           iso_sequence_mode mode, const char *out, const char *report, bool json,
                           iso_error *e)
{
    sequence *s = iso_calloc(1, sizeof *s);
    iso_json *answer = NULL;
    if (!s)
        return iso_nomem(e, sizeof *s);
    s->plan = plan;
    s->mode = mode;
    iso_err err = iso_vision_open(&s->vision, "train", backbone, e);
    if (err || (err = read_list(s, file, e)))
        goto done;
    s->R = iso_calloc(s->count * s->count, sizeof *s->R);
    s->probe = iso_calloc(s->count, sizeof *s->probe);
    if (!s->R || !s->probe) {
        err = iso_nomem(e, s->count * s->count * sizeof *s->R);
        goto done;
    }
    for (size_t i = 0; i < s->count * s->count; i++)
        s->R[i] = (double)NAN;
    for (size_t i = 0; !err && i < s->count; i++)
        if ((err = one_task(s, i, e)))
            iso_error_context(e, "task %zu, %s", i + 1, s->tasks[i].folder);
    if (err)
        goto done;
    answer = as_json(s);
    if ((out && (err = save(s, answer, out, e))) || (report && (err = write_page(s, report, e))))
        goto done;
    if (json)
        iso_json_print(answer);
    else
        print_text(s);
done:
    iso_json_free(answer);
    for (size_t i = 0; i < s->count; i++) {
        seq_task *t = &s->tasks[i];
        drop_features(t);
        iso_linear_free(&t->head);
        iso_adapter_close(t->own);
        if (t->data) {
            t->data->vision = (iso_vision){0}; /* it is the sequence's */
            iso_train_outcome_free(t->data);
        }
        free(t->data);
        free(t->folder);
    }
    iso_adapter_close(s->adapter);
    iso_vision_close(&s->vision);
    free(s->R);
    free(s->probe);
    free(s);
    return err;
}
