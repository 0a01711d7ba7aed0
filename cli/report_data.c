#include "cli/report_data.h"

#include "cli/admin_client.h"
#include "nn/train/metrics.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

/* ---- reading answers ---- */

static double number(const iso_json *o, const char *key)
{
    double v;
    return iso_json_num(iso_json_key(o, key), &v) ? v : (double)NAN;
}

static double number_or_zero(const iso_json *o, const char *key)
{
    double v = number(o, key);
    return isnan(v) ? 0 : v;
}

static void copy_name(char out[REPORT_NAME_BYTES], const iso_json *o, const char *key)
{
    const char *s = iso_json_str(iso_json_key(o, key));
    snprintf(out, REPORT_NAME_BYTES, "%s", s ? s : "");
}

int report_task_index(const report_data *d, const char *name)
{
    for (size_t i = 0; name && i < d->task_count; i++)
        if (!strcmp(d->tasks[i].name, name))
            return (int)i;
    return -1;
}

static void add_tasks(report_data *d, const iso_json *list)
{
    for (size_t i = 0; i < iso_json_count(list) && d->task_count < REPORT_TASKS_MAX; i++) {
        const iso_json *row = iso_json_at(list, i);
        report_task *t = &d->tasks[d->task_count++];
        *t = (report_task){.first_wave = SIZE_MAX};
        copy_name(t->name, row, "name");
        t->classes = iso_json_count(iso_json_key(row, "classes"));
        t->chance = t->classes ? 1.0 / (double)t->classes : (double)NAN;
    }
}

/* ---- the sites' own numbers ---- */

typedef struct {
    double sum, weight;
} mean;

static void mean_add(mean *m, double value, double weight)
{
    if (isnan(value) || !(weight > 0))
        return;
    m->sum += weight * value;
    m->weight += weight;
}

static double mean_of(const mean *m)
{
    return m->weight > 0 ? m->sum / m->weight : (double)NAN;
}

typedef struct {
    mean probe[2], own[2];           /* val, test; heads refitted */
    mean probe_head[2], own_head[2]; /* with the task's head */
} site_means;

/* Pairs in a client's status: {"probe": {"val": 0.71, "test": 0.69}, ...}. */
static void add_pair(mean out[2], const iso_json *task, const char *key)
{
    const iso_json *pair = iso_json_key(task, key);
    mean_add(&out[0], number(pair, "val"), 1);
    mean_add(&out[1], number(pair, "test"), 1);
}

static iso_err add_site(report_data *d, const char *dir, site_means *means, iso_error *e)
{
    iso_json *reply = NULL;
    const iso_json *status = NULL;
    iso_err err = iso_admin_call(dir, "status", NULL, &reply, &status, e);
    if (err)
        return err;
    report_site *s = &d->sites[d->site_count++];
    copy_name(s->name, status, "name");
    snprintf(s->dir, sizeof s->dir, "%s", dir);
    s->sent_bytes = number_or_zero(status, "sent_bytes");
    s->received_bytes = number_or_zero(status, "received_bytes");
    s->image_bytes = number_or_zero(status, "image_bytes");
    s->images = number_or_zero(status, "images");
    s->release = (uint64_t)number_or_zero(status, "release");
    const iso_json *tasks = iso_json_key(status, "tasks");
    for (size_t i = 0; i < iso_json_count(tasks); i++) {
        const iso_json *row = iso_json_at(tasks, i);
        int t = report_task_index(d, iso_json_str(iso_json_key(row, "task")));
        if (t < 0)
            continue;
        add_pair(means[t].probe, row, "probe");
        add_pair(means[t].own, row, "own_refit");
        add_pair(means[t].probe_head, row, "probe_head");
        add_pair(means[t].own_head, row, "own");
    }
    iso_json_free(reply);
    return ISO_OK;
}

static void take_means(report_data *d, const site_means *means)
{
    d->is_test = true;
    for (size_t t = 0; t < d->task_count; t++)
        d->is_test &= means[t].own[0].weight <= 0 || means[t].own[1].weight > 0;
    const int split = d->is_test ? 1 : 0;
    for (size_t t = 0; t < d->task_count; t++) {
        d->tasks[t].probe = mean_of(&means[t].probe[split]);
        d->tasks[t].own = mean_of(&means[t].own[split]);
        d->tasks[t].probe_delivered = mean_of(&means[t].probe_head[split]);
        d->tasks[t].own_delivered = mean_of(&means[t].own_head[split]);
        d->tasks[t].own_val = mean_of(&means[t].own[0]);
    }
}

/* ---- rounds ---- */

typedef enum { VAL, VAL_REFIT, TEST, TEST_REFIT, METRIC_COUNT } metric;

static int metric_index(const char *name)
{
    static const char *const names[METRIC_COUNT] = {"accuracy", "accuracy_refit", "accuracy@test",
                                                    "accuracy_refit@test"};
    for (int m = 0; name && m < METRIC_COUNT; m++)
        if (!strcmp(names[m], name))
            return m;
    return -1;
}

static void read_candidates(report_wave *w, const iso_json *list)
{
    for (size_t i = 0; i < iso_json_count(list) && i < REPORT_CANDIDATES_MAX; i++) {
        const iso_json *row = iso_json_at(list, i);
        report_candidate *c = &w->candidates[w->candidate_count++];
        copy_name(c->method, row, "method");
        c->alpha = number(row, "alpha");
        bool chosen = false;
        c->is_chosen = iso_json_bool(iso_json_key(row, "chosen"), &chosen) && chosen;
        for (size_t t = 0; t < REPORT_TASKS_MAX; t++)
            c->delivered[t] = c->refit[t] = c->refit_val[t] = c->delivered_val[t] = NAN;
    }
}

/* Scores of one round: {"index": 0, "task": "steel", "metric": "accuracy", "score", "samples"}, one
 * a site; index -1 is the frozen backbone. Sites of a task are weighted by their images. */
static void read_scores(const report_data *d, report_wave *w, const iso_json *list)
{
    static mean cells[REPORT_CANDIDATES_MAX][REPORT_TASKS_MAX][METRIC_COUNT];
    memset(cells, 0, sizeof cells);
    for (size_t i = 0; i < iso_json_count(list); i++) {
        const iso_json *row = iso_json_at(list, i);
        int64_t c = -1;
        int t = report_task_index(d, iso_json_str(iso_json_key(row, "task")));
        int m = metric_index(iso_json_str(iso_json_key(row, "metric")));
        if (!iso_json_int(iso_json_key(row, "index"), &c) || t < 0 || m < 0 || c < 0 ||
            c >= (int64_t)w->candidate_count)
            continue;
        mean_add(&cells[c][t][m], number(row, "score"), number(row, "samples"));
    }
    for (size_t c = 0; c < w->candidate_count; c++)
        for (size_t t = 0; t < d->task_count; t++) {
            const mean *cell = cells[c][t];
            w->candidates[c].delivered[t] = mean_of(&cell[d->is_test ? TEST : VAL]);
            w->candidates[c].refit[t] = mean_of(&cell[d->is_test ? TEST_REFIT : VAL_REFIT]);
            w->candidates[c].delivered_val[t] = mean_of(&cell[VAL]);
            w->candidates[c].refit_val[t] = mean_of(&cell[VAL_REFIT]);
        }
}

/* Asks for one round; *reply is its root. */
static iso_err show_round(const char *dir, int64_t number, iso_json **reply, const iso_json **show,
                          iso_error *e)
{
    iso_json *args = iso_json_object();
    iso_json_set(args, "number", iso_json_integer(number));
    return iso_admin_call(dir, "rounds.show", args, reply, show, e);
}

static void read_wave(const report_data *d, const iso_json *show, report_wave *w)
{
    const iso_json *timings = iso_json_key(show, "timings");
    w->round = (uint64_t)number_or_zero(show, "number");
    w->release = (uint64_t)number_or_zero(show, "release");
    w->opened_ms = number_or_zero(timings, "opened_ms");
    w->closed_ms = number_or_zero(timings, "closed_ms");
    w->merged_ms = number_or_zero(timings, "merged_ms");
    w->judged_ms = number_or_zero(timings, "judged_ms");
    w->ended_ms = number_or_zero(timings, "ended_ms");
    read_candidates(w, iso_json_key(show, "candidates"));
    read_scores(d, w, iso_json_key(show, "evaluations"));
}

static void mark_first_waves(report_data *d)
{
    for (size_t w = 0; w < d->wave_count; w++)
        for (size_t t = 0; t < d->task_count; t++)
            if (d->tasks[t].first_wave == SIZE_MAX && !isnan(report_matrix(d, w, t)))
                d->tasks[t].first_wave = w;
}

/* Waves are the adapter rounds that ended in a release; a head round belongs to the next. */
static iso_err add_rounds(report_data *d, const char *dir, iso_error *e)
{
    iso_json *reply = NULL;
    const iso_json *result = NULL;
    iso_err err = iso_admin_call(dir, "rounds.list", NULL, &reply, &result, e);
    const iso_json *list = err ? NULL : iso_json_key(result, "rounds");
    double head_opened = 0, head_ended = 0;
    for (size_t i = 0; i < iso_json_count(list) && !err; i++) { /* rising numbers */
        iso_json *one = NULL;
        const iso_json *show = NULL;
        int64_t n = 0;
        if (!iso_json_int(iso_json_key(iso_json_at(list, i), "number"), &n))
            continue;
        err = show_round(dir, n, &one, &show, e);
        if (err)
            break;
        const char *kind = iso_json_str(iso_json_key(show, "kind"));
        const char *state = iso_json_str(iso_json_key(show, "state"));
        const iso_json *timings = iso_json_key(show, "timings");
        if (kind && !strcmp(kind, "head")) {
            head_opened = number_or_zero(timings, "opened_ms");
            head_ended = number_or_zero(timings, "ended_ms");
        } else if (state && !strcmp(state, "released") && d->wave_count < REPORT_WAVES_MAX) {
            report_wave *w = &d->waves[d->wave_count++];
            w->head_opened_ms = head_opened;
            w->head_ended_ms = head_ended;
            head_opened = head_ended = 0;
            read_wave(d, show, w);
            d->releases[d->release_count++] = w->release;
        }
        iso_json_free(one);
    }
    iso_json_free(reply);
    return err;
}

/* ---- formulas ---- */

double report_matrix(const report_data *d, size_t wave, size_t task)
{
    const report_wave *w = &d->waves[wave];
    for (size_t c = 0; c < w->candidate_count; c++)
        if (w->candidates[c].is_chosen)
            return w->candidates[c].refit[task];
    return NAN;
}

/* Forgetting and backward transfer over the tasks learnt before the last wave, from the wave in
 * which each was learnt (AMENDMENTS 15). Waves hold several tasks, so R is not square here. */
static void forget(report_data *d)
{
    double lost = 0, moved = 0;
    size_t n = 0, last = d->wave_count ? d->wave_count - 1 : 0;
    for (size_t t = 0; t < d->task_count && d->wave_count > 1; t++) {
        const size_t first = d->tasks[t].first_wave;
        if (first >= last)
            continue;
        double best = -INFINITY, now = report_matrix(d, last, t);
        for (size_t w = first; w < last; w++)
            best = fmax(best, report_matrix(d, w, t));
        if (isnan(now) || !isfinite(best))
            continue;
        lost += best - now;
        moved += now - report_matrix(d, first, t);
        n++;
    }
    d->forgetting = n ? lost / (double)n : (double)NAN;
    d->backward_transfer = n ? moved / (double)n : (double)NAN;
}

/* Which of a task's references a score is compared with. */
typedef enum { REFITTED, DELIVERED, VALIDATION } against;

static double own_of(const report_task *t, against a)
{
    return a == VALIDATION ? t->own_val : a == DELIVERED ? t->own_delivered : t->own;
}

static double mean_normalised(const report_data *d, const double *scores, against a)
{
    mean m = {0};
    for (size_t t = 0; t < d->task_count; t++)
        mean_add(&m, iso_normalised(scores[t], own_of(&d->tasks[t], a)), 1);
    return mean_of(&m);
}

static double mean_gain(const report_data *d, const double *scores, against a, size_t *tasks)
{
    mean m = {0};
    for (size_t t = 0; t < d->task_count; t++) {
        const report_task *x = &d->tasks[t];
        double probe = a == DELIVERED ? x->probe_delivered : x->probe;
        mean_add(&m, iso_gain_kept(scores[t], probe, own_of(x, a)), 1);
    }
    *tasks = (size_t)m.weight;
    return mean_of(&m);
}

static void judge_candidates(report_data *d)
{
    for (size_t w = 0; w < d->wave_count; w++)
        for (size_t c = 0; c < d->waves[w].candidate_count; c++) {
            report_candidate *x = &d->waves[w].candidates[c];
            size_t ignored;
            x->refitted_mean.normalised_val = mean_normalised(d, x->refit_val, VALIDATION);
            x->refitted_mean.normalised = mean_normalised(d, x->refit, REFITTED);
            x->refitted_mean.gain_kept = mean_gain(d, x->refit, REFITTED, &ignored);
            x->delivered_mean.normalised_val = mean_normalised(d, x->delivered_val, VALIDATION);
            x->delivered_mean.normalised = mean_normalised(d, x->delivered, DELIVERED);
            x->delivered_mean.gain_kept = mean_gain(d, x->delivered, DELIVERED, &ignored);
        }
}

/* Ties go to the smaller alpha. */
static bool is_better(double score, double alpha, double best, double best_alpha)
{
    return score > best || (score >= best && alpha < best_alpha);
}

/* Each method stands at the alpha with the best mean normalised validation score
 * (specs/merging.md 3.5): the test images choose nothing. */
static void choose_methods(report_data *d)
{
    if (!d->wave_count)
        return;
    const report_wave *w = &d->waves[d->wave_count - 1];
    for (size_t c = 0; c < w->candidate_count; c++) {
        const report_candidate *x = &w->candidates[c];
        size_t m = 0;
        while (m < d->method_count && strcmp(d->methods[m].name, x->method) != 0)
            m++;
        if (m == REPORT_METHODS_MAX)
            continue;
        report_method *method = &d->methods[m];
        if (m == d->method_count) {
            memcpy(method->name, x->method, sizeof x->method);
            method->refitted = method->delivered = x;
            d->method_count++;
        }
        if (is_better(x->refitted_mean.normalised_val, x->alpha,
                      method->refitted->refitted_mean.normalised_val, method->refitted->alpha))
            method->refitted = x;
        if (is_better(x->delivered_mean.normalised_val, x->alpha,
                      method->delivered->delivered_mean.normalised_val, method->delivered->alpha))
            method->delivered = x;
    }
    for (size_t m = 0; m < d->method_count; m++)
        mean_gain(d, d->methods[m].refitted->refit, REFITTED, &d->methods[m].gain_tasks);
}

iso_err report_gather(const char *dir, const char *const *client_dirs, size_t clients,
                      report_data *out, iso_error *e)
{
    iso_json *reply = NULL;
    const iso_json *result = NULL;
    site_means means[REPORT_TASKS_MAX] = {0};
    *out = (report_data){0};
    if (clients > REPORT_SITES_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "%zu clients, a report holds %d", clients,
                        REPORT_SITES_MAX);
    iso_err err = iso_admin_call(dir, "tasks.list", NULL, &reply, &result, e);
    if (err)
        return err;
    add_tasks(out, iso_json_key(result, "tasks"));
    iso_json_free(reply);
    for (size_t i = 0; i < clients && !err; i++)
        err = add_site(out, client_dirs[i], means, e);
    take_means(out, means);
    if (!err)
        err = add_rounds(out, dir, e);
    if (err)
        return err;
    mark_first_waves(out);
    forget(out);
    judge_candidates(out);
    choose_methods(out);
    return ISO_OK;
}

/* ---- summary.json ---- */

static iso_json *methods_of_task(const report_data *d, size_t t)
{
    iso_json *merged = iso_json_object();
    for (size_t m = 0; m < d->method_count; m++) {
        iso_json *one = iso_json_object();
        iso_json_set(one, "delivered", iso_json_real(d->methods[m].delivered->delivered[t]));
        iso_json_set(one, "refit", iso_json_real(d->methods[m].refitted->refit[t]));
        iso_json_set(merged, d->methods[m].name, one);
    }
    return merged;
}

/* Every candidate of the last wave: how much the choice of alpha matters. */
static iso_json *candidates_of_last_wave(const report_data *d)
{
    iso_json *list = iso_json_array();
    const report_wave *w = d->wave_count ? &d->waves[d->wave_count - 1] : NULL;
    for (size_t c = 0; w && c < w->candidate_count; c++) {
        const report_candidate *x = &w->candidates[c];
        iso_json *row = iso_json_object();
        iso_json_set(row, "method", iso_json_string(x->method));
        iso_json_set(row, "alpha", iso_json_real(x->alpha));
        iso_json_set(row, "released", iso_json_boolean(x->is_chosen));
        iso_json_set(row, "mean_normalised_val", iso_json_real(x->refitted_mean.normalised_val));
        iso_json_set(row, "mean_normalised", iso_json_real(x->refitted_mean.normalised));
        iso_json_set(row, "mean_gain_kept", iso_json_real(x->refitted_mean.gain_kept));
        iso_json_set(row, "mean_normalised_delivered", iso_json_real(x->delivered_mean.normalised));
        iso_json_set(row, "mean_gain_kept_delivered", iso_json_real(x->delivered_mean.gain_kept));
        iso_json_push(list, row);
    }
    return list;
}

iso_json *report_summary(const report_data *d, double seconds)
{
    iso_json *o = iso_json_object(), *tasks = iso_json_array(), *sites = iso_json_array();
    iso_json *normalised = iso_json_object(), *delivered = iso_json_object();
    iso_json *kept = iso_json_object(), *alphas = iso_json_object(), *releases = iso_json_array();
    iso_json *kept_delivered = iso_json_object(), *alphas_delivered = iso_json_object();
    for (size_t t = 0; t < d->task_count; t++) {
        iso_json *row = iso_json_object();
        iso_json_set(row, "name", iso_json_string(d->tasks[t].name));
        iso_json_set(row, "chance", iso_json_real(d->tasks[t].chance));
        iso_json_set(row, "probe", iso_json_real(d->tasks[t].probe));
        iso_json_set(row, "own", iso_json_real(d->tasks[t].own));
        iso_json_set(row, "probe_delivered", iso_json_real(d->tasks[t].probe_delivered));
        iso_json_set(row, "own_delivered", iso_json_real(d->tasks[t].own_delivered));
        iso_json_set(row, "merged", methods_of_task(d, t));
        iso_json_push(tasks, row);
    }
    for (size_t m = 0; m < d->method_count; m++) {
        const report_method *x = &d->methods[m];
        iso_json_set(normalised, x->name, iso_json_real(x->refitted->refitted_mean.normalised));
        iso_json_set(delivered, x->name, iso_json_real(x->delivered->delivered_mean.normalised));
        iso_json_set(kept, x->name, iso_json_real(x->refitted->refitted_mean.gain_kept));
        iso_json_set(kept_delivered, x->name,
                     iso_json_real(x->delivered->delivered_mean.gain_kept));
        iso_json_set(alphas, x->name, iso_json_real(x->refitted->alpha));
        iso_json_set(alphas_delivered, x->name, iso_json_real(x->delivered->alpha));
    }
    for (size_t i = 0; i < d->site_count; i++) {
        iso_json *row = iso_json_object();
        iso_json_set(row, "name", iso_json_string(d->sites[i].name));
        iso_json_set(row, "sent_bytes", iso_json_integer((int64_t)d->sites[i].sent_bytes));
        iso_json_set(row, "image_bytes", iso_json_integer((int64_t)d->sites[i].image_bytes));
        iso_json_push(sites, row);
    }
    for (size_t i = 0; i < d->release_count; i++)
        iso_json_push(releases, iso_json_integer((int64_t)d->releases[i]));
    iso_json_set(o, "format", iso_json_string("isofed-demo-summary 1"));
    iso_json_set(o, "split", iso_json_string(d->is_test ? "test" : "val"));
    iso_json_set(o, "tasks", tasks);
    iso_json_set(o, "mean_normalised", normalised);
    iso_json_set(o, "mean_normalised_delivered", delivered);
    iso_json_set(o, "mean_gain_kept", kept);
    iso_json_set(o, "mean_gain_kept_delivered", kept_delivered);
    iso_json_set(o, "alpha", alphas);
    iso_json_set(o, "alpha_delivered", alphas_delivered);
    iso_json_set(o, "candidates", candidates_of_last_wave(d));
    iso_json_set(o, "forgetting", iso_json_real(d->forgetting));
    iso_json_set(o, "backward_transfer", iso_json_real(d->backward_transfer));
    iso_json_set(o, "sites", sites);
    iso_json_set(o, "releases", releases);
    iso_json_set(o, "seconds", iso_json_real(seconds));
    return o;
}
