/* Passes over all tensors before the merge, for methods that decide something of all of them
 * together: a threshold over a task's parameters, distances between updates. */
#include "merge/jobs.h"
#include "merge/method/method.h"

typedef struct {
    const iso_method *method;
    const iso_method_args *a;
    void *state;
    iso_deltas_fn *get;
    void *ctx;
} pass;

static iso_err scan_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    pass *p = ctx;
    iso_deltas d = {0};
    iso_err err = p->get(p->ctx, i, &d, scratch, e);
    if (err || d.T == 0)
        return err;
    d.index = i;
    err = p->method->survey->scan(p->state, p->a, &d, scratch, e);
    return err && d.name ? iso_error_context(e, "\"%s\"", d.name) : err;
}

iso_err iso_survey_run(const iso_method *m, iso_method_args *a, size_t T, iso_deltas_fn *get,
                       void *ctx, const iso_jobs *like, iso_arena *arena, iso_error *e)
{
    pass p = {.method = m, .a = a, .get = get, .ctx = ctx};
    if (!m->survey)
        return ISO_OK;
    bool is_done = false;
    iso_jobs jobs = {.count = like->count,
                     .scratch_bytes = like->scratch_bytes,
                     .costs = like->costs,
                     .run = scan_job,
                     .ctx = &p,
                     .stop = like->stop};
    iso_err err = m->survey->begin(a, T, like->count, &p.state, arena, e);
    while (!err && !is_done) {
        err = iso_jobs_run(&jobs, e);
        if (!err)
            err = m->survey->end_pass(p.state, &is_done, e);
    }
    if (!err)
        a->survey = p.state;
    return err;
}

iso_err iso_survey_one(const iso_method *m, iso_method_args *a, const iso_deltas *d,
                       iso_arena *arena, iso_error *e)
{
    void *state = NULL;
    bool is_done = false;
    if (!m->survey)
        return ISO_OK;
    iso_deltas alone = *d;
    alone.index = 0;
    iso_err err = m->survey->begin(a, d->T, 1, &state, arena, e);
    while (!err && !is_done) {
        err = m->survey->scan(state, a, &alone, arena, e);
        if (!err)
            err = m->survey->end_pass(state, &is_done, e);
    }
    if (!err)
        a->survey = state;
    return err;
}
