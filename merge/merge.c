/* Merging LoRA adapters: names the layers of all inputs, runs one job a layer, sums up. */
#include "merge/merge.h"

#include "merge/alpha.h"
#include "merge/jobs.h"
#include "merge/layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

extern const iso_method iso_method_average;

iso_merge_options iso_merge_defaults(const iso_method *method)
{
    iso_merge_options o = {.method = method};
    iso_method_defaults(method, &o.args);
    return o;
}

const char *iso_treatment_name(iso_treatment t)
{
    static const char *const names[] = {"method", "mean", "copy"};
    return names[t];
}

iso_err iso_merge_check(const iso_merge_options *o, size_t T, iso_error *e)
{
    if (T == 0)
        return iso_fail(e, ISO_ERR_USAGE, "nothing to merge: no inputs");
    double sum = 0.0;
    for (size_t t = 0; o->weights && t < T; t++) {
        if (!isfinite(o->weights[t]) || o->weights[t] < 0.0)
            return iso_fail(e, ISO_ERR_USAGE,
                            "weight %zu is %g; weights are finite and not negative", t + 1,
                            o->weights[t]);
        sum += o->weights[t];
    }
    if (o->weights && !(sum > 0.0))
        return iso_fail(e, ISO_ERR_USAGE, "all weights are zero");
    if (!(o->energy >= 0.0 && o->energy <= 1.0))
        return iso_fail(e, ISO_ERR_USAGE, "energy is %g; it takes 0 to 1", o->energy);
    for (size_t i = 0; i < o->layer_scale_count; i++)
        if (!isfinite(o->layer_scales[i].scale))
            return iso_fail(e, ISO_ERR_USAGE, "the scale of \"%s\" is %g; it takes a finite number",
                            o->layer_scales[i].pattern, o->layer_scales[i].scale);
    return o->method->check ? o->method->check(&o->args, T, e) : ISO_OK;
}

void iso_merge_summarise(const iso_layer_report *reports, size_t count, size_t T,
                         iso_merge_summary *s)
{
    double total = 0.0, kept = 0.0;
    for (size_t i = 0; i < count; i++) {
        const iso_layer_report *r = &reports[i];
        s->layers++;
        s->partial += r->present < T;
        s->zero += r->norm == 0.0 && !r->is_resumed;
        s->resumed += r->is_resumed;
        s->near_equal += r->decisions.smallest < ISO_NEAR_EQUAL && r->decisions.smallest > 0.0;
        s->by_mean += r->treatment == ISO_BY_MEAN;
        s->by_copy += r->treatment == ISO_BY_COPY;
        s->floored += r->floored;
        s->gain_capped += r->decisions.capped;
        if (r->energy_kept < reports[s->lowest_energy].energy_kept)
            s->lowest_energy = i;
        total += r->norm * r->norm;
        kept += r->energy_kept * r->norm * r->norm;
    }
    s->norm = sqrt(kept);
    s->energy_kept = total > 0.0 ? kept / total : 1.0;
}

/* ---- the layers of all inputs, by name ---- */
typedef struct {
    const iso_lora_layer *layer;
    size_t t;
} entry;

static int by_module(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = strcmp(x->layer->module, y->layer->module);
    return order ? order : (x->t > y->t) - (x->t < y->t);
}

typedef struct {
    const iso_lora_input *in;
    const iso_merge_options *o;
    size_t T;
    iso_method_args args;
    double *weights;              /* T: the caller's times guard (a) */
    const iso_lora_layer **table; /* count x T; NULL where an input lacks the layer */
    double *norms;                /* count x T, for guard (a) */
    iso_merged_lora *out;
} work;

static iso_err check_shapes(const work *w, const entry *group, size_t n, iso_error *e)
{
    const iso_lora_layer *a = group[0].layer;
    for (size_t i = 1; i < n; i++) {
        const iso_lora_layer *b = group[i].layer;
        const char *name = w->in[group[i].t].name, *first = w->in[group[0].t].name;
        if (group[i].t == group[i - 1].t)
            return iso_fail(e, ISO_ERR_DATA, "%s: layer \"%s\" occurs twice", name, b->module);
        if (a->out != b->out || a->in != b->in)
            return iso_fail(e, ISO_ERR_SHAPE, "%s: layer \"%s\" is %zux%zu, %s has %zux%zu", name,
                            b->module, b->out, b->in, first, a->out, a->in);
    }
    return ISO_OK;
}

/* Fills table, names and shapes; counts layers first when w->table is NULL. */
static iso_err group_layers(work *w, iso_error *e)
{
    size_t total = 0, count = 0;
    for (size_t t = 0; t < w->T; t++)
        total += w->in[t].count;
    entry *all = iso_calloc(total, sizeof *all);
    if (!all)
        return iso_nomem(e, total * sizeof *all);
    iso_err err = ISO_OK;
    size_t k = 0;
    for (size_t t = 0; t < w->T; t++)
        for (size_t i = 0; i < w->in[t].count; i++)
            all[k++] = (entry){&w->in[t].layers[i], t};
    qsort(all, total, sizeof *all, by_module);
    for (size_t i = 0; i < total; i++)
        count += i == 0 || strcmp(all[i].layer->module, all[i - 1].layer->module) != 0;

    iso_merged_lora *out = w->out;
    out->count = count;
    out->layers = iso_arena_calloc(&out->arena, count + 1, sizeof *out->layers);
    out->reports = iso_arena_calloc(&out->arena, count + 1, sizeof *out->reports);
    out->blocks = iso_arena_calloc(&out->arena, count + 1, sizeof *out->blocks);
    w->table = iso_calloc(count * w->T, sizeof(const iso_lora_layer *));
    w->norms = iso_calloc(count * w->T, sizeof *w->norms);
    if (!out->layers || !out->reports || !out->blocks || !w->table || !w->norms) {
        err = iso_nomem(e, count * w->T * sizeof *w->norms);
        goto done;
    }
    size_t layer = 0;
    for (size_t i = 0; i < total && !err; layer++) {
        size_t n = 1;
        while (i + n < total && strcmp(all[i + n].layer->module, all[i].layer->module) == 0)
            n++;
        err = check_shapes(w, all + i, n, e);
        if (err)
            break;
        const iso_lora_layer *first = all[i].layer;
        char *name = iso_arena_strdup(&out->arena, first->module);
        if (!name) {
            err = iso_nomem(e, strlen(first->module));
            break;
        }
        for (size_t j = 0; j < n; j++)
            w->table[layer * w->T + all[i + j].t] = all[i + j].layer;
        out->layers[layer] = (iso_lora_layer){.module = name, .out = first->out, .in = first->in};
        out->reports[layer] =
            (iso_layer_report){.name = name, .m = first->out, .n = first->in, .present = n};
        i += n;
    }
done:
    free(all);
    return err;
}

/* ---- jobs ---- */
static iso_err norms_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    work *w = ctx;
    for (size_t t = 0; t < w->T; t++) {
        const iso_lora_layer *l = w->table[i * w->T + t];
        iso_err err = l ? iso_lora_norm(l, &w->norms[i * w->T + t], scratch, e) : ISO_OK;
        if (err)
            return iso_error_context(e, "%s", w->in[t].name);
    }
    return ISO_OK;
}

/* Factors of the result as float32 in one block: A (rank, in), then B (out, rank). A zero update
 * still needs a rank of one in a PEFT folder. */
static iso_err store(work *w, size_t i, const iso_product *p, iso_error *e)
{
    iso_lora_layer *l = &w->out->layers[i];
    l->rank = p->c ? p->c : 1;
    l->scale = 1.0;
    float *block = iso_calloc(l->rank * (l->out + l->in), sizeof *block);
    if (!block)
        return iso_nomem(e, l->rank * (l->out + l->in) * sizeof *block);
    w->out->blocks[i] = block;
    l->A = block;
    l->B = block + l->rank * l->in;
    for (size_t j = 0; j < p->c * l->in; j++)
        l->A[j] = (float)p->right[j];
    for (size_t j = 0; j < p->c; j++)
        for (size_t k = 0; k < l->out; k++)
            l->B[k * l->rank + j] = (float)p->left[j * l->out + k];
    return ISO_OK;
}

static iso_err keep_single(work *w, size_t i, const iso_lora_layer *from, iso_arena *scratch,
                           iso_error *e)
{
    iso_lora_layer *l = &w->out->layers[i];
    iso_layer_report *r = &w->out->reports[i];
    size_t a = from->rank * from->in, b = from->rank * from->out;
    float *block = iso_calloc(a + b, sizeof *block);
    if (!block)
        return iso_nomem(e, (a + b) * sizeof *block);
    w->out->blocks[i] = block;
    l->rank = from->rank;
    l->scale = from->scale;
    l->A = block;
    l->B = block + a;
    memcpy(l->A, from->A, a * sizeof *block);
    memcpy(l->B, from->B, b * sizeof *block);
    strcpy(r->decisions.route, "kept");
    r->decisions.smallest = 1.0;
    r->rank = r->full_rank = from->rank;
    r->energy_kept = 1.0;
    return iso_lora_norm(from, &r->norm, scratch, e);
}

/* What goes into layer i, after guard (b). */
static iso_err stack_of(work *w, size_t i, iso_lora_stack *out, size_t *dropped_all,
                        iso_arena *scratch, iso_error *e)
{
    const iso_lora_layer **row = w->table + i * w->T;
    const iso_layer_report *r = &w->out->reports[i];
    const iso_lora_layer **layers = iso_arena_alloc(scratch, w->T, sizeof(const iso_lora_layer *));
    iso_lora_layer *floored = iso_arena_alloc(scratch, w->T, sizeof *floored);
    if (!layers || !floored)
        return iso_nomem(e, w->T * sizeof *floored);
    for (size_t t = 0; t < w->T; t++) {
        layers[t] = row[t];
        size_t dropped = 0;
        if (row[t] && w->o->guard.floor > 0.0) {
            iso_err err =
                iso_guard_floor(row[t], w->o->guard.floor, &floored[t], &dropped, scratch, e);
            if (err)
                return iso_error_context(e, "%s", w->in[t].name);
            layers[t] = &floored[t];
        }
        *dropped_all += dropped;
    }
    *out = (iso_lora_stack){.T = w->T,
                            .m = r->m,
                            .n = r->n,
                            .layers = layers,
                            .weights = w->weights,
                            .rank_tol = w->o->rank_tol,
                            .rank_cap = w->o->rank_cap,
                            .energy = w->o->energy,
                            .name = r->name,
                            .index = i};
    return ISO_OK;
}

static iso_err survey_layer(void *ctx, size_t i, iso_deltas *out, iso_arena *scratch, iso_error *e)
{
    iso_lora_stack stack;
    size_t ignored = 0;
    iso_err err = stack_of(ctx, i, &stack, &ignored, scratch, e);
    return err ? err : iso_layer_deltas(&stack, out, scratch, e);
}

/* The layer's own factor on alpha, onto the left side. */
static void scale_layer(const iso_merge_options *o, const char *name, iso_layer_factors *f,
                        size_t m)
{
    double scale = iso_layer_scale_of(o->layer_scales, o->layer_scale_count, name);
    for (size_t i = 0; scale != 1.0 && i < f->product.c * m; i++)
        f->product.left[i] *= scale;
    f->norm *= fabs(scale);
}

static iso_err merge_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    work *w = ctx;
    const iso_lora_layer **row = w->table + i * w->T;
    iso_layer_report *r = &w->out->reports[i];
    bool is_within_cap = !w->o->rank_cap || (row[0] && row[0]->rank <= w->o->rank_cap);
    if (w->T == 1 && w->o->is_single_kept && is_within_cap)
        return keep_single(w, i, row[0], scratch, e);

    iso_lora_stack stack;
    iso_layer_factors f;
    iso_err err = stack_of(w, i, &stack, &r->floored, scratch, e);
    if (err)
        return err;
    err = iso_layer_merge_factors(w->o->method, &w->args, &stack, &f, &r->decisions, scratch, e);
    if (err)
        return iso_error_context(e, "layer \"%s\"", r->name);
    scale_layer(w->o, r->name, &f, r->m);
    r->rank = f.product.c;
    r->full_rank = f.full_rank;
    r->energy_kept = f.energy_kept;
    r->norm = f.product.c ? f.norm : 0.0;
    return store(w, i, &f.product, e);
}

/* Guard (a): norms over all layers of a task together. */
static iso_err apply_norm_cap(work *w, iso_jobs *jobs, iso_error *e)
{
    double *totals = w->out->task_scales;
    jobs->run = norms_job;
    jobs->progress = NULL;
    iso_err err = iso_jobs_run(jobs, e);
    if (err)
        return err;
    for (size_t t = 0; t < w->T; t++) {
        double square = 0.0;
        for (size_t i = 0; i < w->out->count; i++)
            square += w->norms[i * w->T + t] * w->norms[i * w->T + t];
        totals[t] = sqrt(square);
    }
    double *scales = iso_calloc(w->T, sizeof *scales);
    if (!scales)
        return iso_nomem(e, w->T * sizeof *scales);
    w->out->summary.capped_tasks =
        iso_guard_norm_scales(totals, w->T, w->o->guard.norm_cap, scales);
    for (size_t t = 0; t < w->T; t++) {
        totals[t] = scales[t];
        w->weights[t] *= scales[t];
    }
    free(scales);
    return ISO_OK;
}

iso_err iso_merge_lora(const iso_lora_input *in, size_t T, const iso_merge_options *o,
                       iso_merged_lora *out, iso_error *e)
{
    *out = (iso_merged_lora){0};
    work w = {.in = in, .o = o, .T = T, .args = o->args, .out = out};
    double *costs = NULL;
    iso_err err = iso_merge_check(o, T, e);
    if (!err)
        err = group_layers(&w, e);
    if (err)
        goto done;
    if (w.args.convention == ISO_CONVENTION_AUTO)
        w.args.convention = ISO_CONVENTION_RANK;
    w.args.gain_cap = fmax(w.args.gain_cap, o->guard.gain_cap);
    w.weights = iso_calloc(2 * T, sizeof *w.weights); /* and the votes */
    out->task_scales = iso_arena_calloc(&out->arena, T, sizeof *out->task_scales);
    costs = iso_calloc(out->count, sizeof *costs);
    if (!w.weights || !out->task_scales || !costs) {
        err = iso_nomem(e, out->count * sizeof *costs);
        goto done;
    }
    for (size_t t = 0; t < T; t++) {
        w.weights[T + t] = o->weights ? o->weights[t] : 1.0;
        w.weights[t] = o->method->has_votes ? 1.0 : w.weights[T + t];
        out->task_scales[t] = 1.0;
    }
    w.args.votes = w.weights + T;
    w.args.is_reference = o->is_reference;
    double scratch = 0.0;
    for (size_t i = 0; i < out->count; i++) {
        double side = (double)out->reports[i].m + (double)out->reports[i].n, R = 0.0;
        for (size_t t = 0; t < T; t++)
            R += w.table[i * T + t] ? (double)w.table[i * T + t]->rank : 0.0;
        double k = fmin(R, fmin((double)out->reports[i].m, (double)out->reports[i].n));
        costs[i] = side * R * k;
        scratch = fmax(scratch, 8.0 * (4.0 * side * R + (double)(T + 10) * k * k));
    }
    iso_jobs jobs = {.count = out->count,
                     .scratch_bytes = (size_t)scratch,
                     .costs = costs,
                     .ctx = &w,
                     .stop = o->stop};
    if (o->guard.norm_cap > 0.0 && T > 1)
        err = apply_norm_cap(&w, &jobs, e);
    if (!err)
        err = iso_survey_run(o->method, &w.args, T, survey_layer, &w, &jobs, &out->arena, e);
    if (!err) {
        jobs.run = merge_job;
        jobs.progress = o->progress;
        jobs.progress_ctx = o->progress_ctx;
        err = iso_jobs_run(&jobs, e);
    }
    if (!err) {
        iso_merge_summarise(out->reports, out->count, T, &out->summary);
        out->summary.convention = w.args.convention;
    }
done:
    free(w.table);
    free(w.norms);
    free(w.weights);
    free(costs);
    if (err)
        iso_merged_lora_free(out);
    return err;
}

iso_err iso_aggregate_lora(const iso_lora_input *in, size_t T, const double *weights,
                           size_t rank_cap, iso_merged_lora *out, iso_error *e)
{
    iso_merge_options o = iso_merge_defaults(&iso_method_average);
    o.weights = weights;
    o.rank_cap = rank_cap;
    o.is_single_kept = true;
    return iso_merge_lora(in, T, &o, out, e);
}

void iso_merged_lora_free(iso_merged_lora *m)
{
    for (size_t i = 0; m->blocks && i < m->count; i++)
        free(m->blocks[i]);
    iso_arena_free(&m->arena);
    *m = (iso_merged_lora){0};
}
