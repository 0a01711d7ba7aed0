/* Merging whole tensors: which tensor is merged how (specs/merging.md 2), one job a tensor.
 *
 * A method says which tensors it takes: linear ones every floating tensor, by their formula. Of the
 * others: two-dimensional weights by the method; vectors, kernels and named exceptions by the mean
 * over the tasks times alpha; a tensor that an input lacks counts as a zero update. */
#include "merge/merge.h"

#include "merge/alpha.h"
#include "merge/jobs.h"
#include "merge/layer.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { REPORT_BYTES = 8 << 20 }; /* of inputs read, between two reports to a sink */

typedef struct {
    const iso_named_tensor *tensor;
    size_t t;
} entry;

typedef struct {
    const iso_dense_input *in, *base;
    const iso_merge_options *o;
    size_t T;
    iso_method_args args;
    iso_dtype out_type;
    iso_tensor *views;        /* count x T; data NULL where an input lacks the tensor */
    const iso_tensor **bases; /* count; NULL without a base */
    double *weights;          /* T: the caller's (not votes) times guard (a) */
    double *norms;            /* count x T, for guard (a) */
    iso_merged_dense *out;
} work;

static int by_name(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int order = strcmp(x->tensor->name, y->tensor->name);
    return order ? order : (x->t > y->t) - (x->t < y->t);
}

static bool is_float(iso_dtype t)
{
    return t == ISO_F64 || t == ISO_F32 || t == ISO_F16 || t == ISO_BF16;
}

static bool contains_any(const char *name, const char *const *words)
{
    for (; *words; words++)
        if (strstr(name, *words))
            return true;
    return false;
}

iso_treatment iso_merge_treatment(const iso_method *method, bool is_reference, const char *name,
                                  const iso_tensor *t)
{
    static const char *const published[] = {"text_projection", NULL};
    static const char *const embeddings[] = {"embed", "wte.", "wpe.", NULL};
    if (!is_float(t->dtype))
        return ISO_BY_COPY;
    iso_method_takes takes = method->takes;
    if (takes == ISO_TAKES_ALL || (takes == ISO_TAKES_ALL_IF_REFERENCE && is_reference))
        return ISO_BY_METHOD;
    if (t->ndim != 2 || contains_any(name, published))
        return ISO_BY_MEAN;
    return !is_reference && contains_any(name, embeddings) ? ISO_BY_MEAN : ISO_BY_METHOD;
}

static const iso_tensor *find_base(const iso_dense_input *base, const char *name)
{
    for (size_t i = 0; base && i < base->count; i++)
        if (strcmp(base->tensors[i].name, name) == 0)
            return &base->tensors[i].view;
    return NULL;
}

static iso_err check_group(const work *w, const entry *group, size_t n, const iso_tensor *base,
                           iso_error *e)
{
    char here[64], there[64];
    const iso_tensor *a = &group[0].tensor->view;
    for (size_t i = 0; i < n; i++) {
        const iso_tensor *b = &group[i].tensor->view;
        const char *input = w->in[group[i].t].name, *name = group[i].tensor->name;
        iso_shape_text(b, here, sizeof here);
        iso_shape_text(a, there, sizeof there);
        if (i > 0 && group[i].t == group[i - 1].t)
            return iso_fail(e, ISO_ERR_DATA, "%s: tensor \"%s\" occurs twice", input, name);
        if (!iso_tensor_same_shape(a, b))
            return iso_fail(e, ISO_ERR_SHAPE, "%s: tensor \"%s\" is %s, %s has %s", input, name,
                            here, w->in[group[0].t].name, there);
        if (is_float(a->dtype) != is_float(b->dtype) ||
            (!is_float(a->dtype) && a->dtype != b->dtype))
            return iso_fail(e, ISO_ERR_SHAPE, "%s: tensor \"%s\" is %s, %s has %s", input, name,
                            iso_dtype_name(b->dtype), w->in[group[0].t].name,
                            iso_dtype_name(a->dtype));
        if (!is_float(a->dtype) && memcmp(a->data, b->data, iso_tensor_bytes(a)) != 0)
            return iso_fail(
                e, ISO_ERR_DATA,
                "%s: tensor \"%s\" (%s) differs from that of %s; only floating tensors are merged",
                input, name, iso_dtype_name(b->dtype), w->in[group[0].t].name);
    }
    if (w->base && !base)
        return iso_fail(e, ISO_ERR_DATA, "%s: tensor \"%s\" is not in the base %s",
                        w->in[group[0].t].name, group[0].tensor->name, w->base->name);
    if (base) {
        iso_shape_text(a, here, sizeof here);
        iso_shape_text(base, there, sizeof there);
        if (!iso_tensor_same_shape(a, base) || is_float(a->dtype) != is_float(base->dtype))
            return iso_fail(e, ISO_ERR_SHAPE, "%s: tensor \"%s\" is %s, the base %s has %s",
                            w->in[group[0].t].name, group[0].tensor->name, here, w->base->name,
                            there);
    }
    return ISO_OK;
}

static iso_err group_tensors(work *w, iso_error *e)
{
    iso_merged_dense *out = w->out;
    size_t total = 0, k = 0;
    for (size_t t = 0; t < w->T; t++)
        total += w->in[t].count;
    entry *all = iso_calloc(total, sizeof *all);
    if (!all)
        return iso_nomem(e, total * sizeof *all);
    iso_err err = ISO_OK;
    for (size_t t = 0; t < w->T; t++)
        for (size_t i = 0; i < w->in[t].count; i++)
            all[k++] = (entry){&w->in[t].tensors[i], t};
    qsort(all, total, sizeof *all, by_name);
    for (size_t i = 0; i < total; i++)
        out->count += i == 0 || strcmp(all[i].tensor->name, all[i - 1].tensor->name) != 0;
    out->tensors = iso_arena_calloc(&out->arena, out->count + 1, sizeof *out->tensors);
    out->reports = iso_arena_calloc(&out->arena, out->count + 1, sizeof *out->reports);
    out->blocks = iso_arena_calloc(&out->arena, out->count + 1, sizeof *out->blocks);
    w->views = iso_calloc(out->count * w->T, sizeof *w->views);
    w->bases = iso_calloc(out->count, sizeof(const iso_tensor *));
    if (!out->tensors || !out->reports || !out->blocks || !w->views || !w->bases) {
        err = iso_nomem(e, out->count * w->T * sizeof *w->views);
        goto done;
    }
    size_t index = 0;
    for (size_t i = 0; i < total; index++) {
        size_t n = 1;
        while (i + n < total && strcmp(all[i + n].tensor->name, all[i].tensor->name) == 0)
            n++;
        const iso_named_tensor *first = all[i].tensor;
        w->bases[index] = find_base(w->base, first->name);
        err = check_group(w, all + i, n, w->bases[index], e);
        if (err)
            goto done;
        char *name = iso_arena_strdup(&out->arena, first->name);
        if (!name) {
            err = iso_nomem(e, strlen(first->name));
            goto done;
        }
        iso_layer_report *r = &out->reports[index];
        *r = (iso_layer_report){.name = name, .present = n, .energy_kept = 1.0};
        r->treatment = iso_merge_treatment(w->o->method, w->o->is_reference, name, &first->view);
        bool is_matrix = first->view.ndim == 2;
        r->m = is_matrix ? first->view.shape[0] : 1;
        r->n = is_matrix ? first->view.shape[1] : iso_tensor_count(&first->view);
        r->decisions.smallest = 1.0;
        out->tensors[index] = (iso_named_tensor){.name = name, .view = first->view};
        for (size_t j = 0; j < n; j++) {
            const iso_tensor *v = &all[i + j].tensor->view;
            w->views[index * w->T + all[i + j].t] = *v;
            if (w->out_type == ISO_DTYPE_COUNT && v->dtype == ISO_F64)
                out->tensors[index].view.dtype = ISO_F64;
        }
        if (is_float(first->view.dtype) && w->out_type != ISO_DTYPE_COUNT)
            out->tensors[index].view.dtype = w->out_type;
        else if (is_float(first->view.dtype) && out->tensors[index].view.dtype != ISO_F64)
            out->tensors[index].view.dtype = ISO_F32;
        i += n;
    }
done:
    free(all);
    return err;
}

/* Rank tolerance by the least exact storage among the inputs. */
static double rank_tol_of(const work *w, size_t i, size_t m, size_t n)
{
    if (w->o->rank_tol > 0.0)
        return w->o->rank_tol;
    bool is_exact = true;
    for (size_t t = 0; t < w->T; t++) {
        const iso_tensor *v = &w->views[i * w->T + t];
        is_exact = is_exact && (!v->data || v->dtype == ISO_F64);
    }
    return iso_rank_tol(m, n, is_exact || w->o->is_reference);
}

/* ---- results ---- */
/* Elements first .. of the result, to the sink or into the tensor's block. */
static iso_err emit(work *w, size_t i, size_t first, const void *data, size_t bytes, iso_error *e)
{
    iso_named_tensor *o = &w->out->tensors[i];
    if (w->o->sink)
        return w->o->sink->part(w->o->sink->ctx, i, first, data, bytes, e);
    if (!w->out->blocks[i]) {
        w->out->blocks[i] = iso_calloc(iso_tensor_bytes(&o->view), 1);
        if (!w->out->blocks[i])
            return iso_nomem(e, iso_tensor_bytes(&o->view));
        o->view.data = w->out->blocks[i];
    }
    memcpy((char *)w->out->blocks[i] + first * iso_dtype_bytes(o->view.dtype), data, bytes);
    return ISO_OK;
}

static iso_err end(work *w, size_t i, iso_error *e)
{
    return w->o->sink ? w->o->sink->end(w->o->sink->ctx, i, e) : ISO_OK;
}

static void touched(const work *w, size_t i)
{
    const iso_dense_sink *s = w->o->sink;
    size_t bytes = w->bases[i] ? iso_tensor_bytes(w->bases[i]) : 0;
    for (size_t t = 0; t < w->T; t++)
        bytes += w->views[i * w->T + t].data ? iso_tensor_bytes(&w->views[i * w->T + t]) : 0;
    if (s && s->touched)
        s->touched(s->ctx, bytes);
}

static iso_err finish(work *w, size_t i, double *D, const iso_deltas *d, iso_arena *scratch,
                      iso_error *e)
{
    const iso_named_tensor *o = &w->out->tensors[i];
    size_t count = d->m * d->n, bytes = count * iso_dtype_bytes(o->view.dtype);
    if (d->is_transposed) {
        double *back = iso_arena_alloc(scratch, count + 1, sizeof *back);
        if (!back)
            return iso_nomem(e, count * sizeof *back);
        iso_transpose(d->m, d->n, D, back);
        D = back;
    }
    if (d->base) {
        double *w0 = iso_arena_alloc(scratch, count + 1, sizeof *w0);
        if (!w0)
            return iso_nomem(e, count * sizeof *w0);
        iso_err err = iso_tensor_to_f64(d->base, w0, e);
        if (err)
            return err;
        for (size_t j = 0; j < count; j++)
            D[j] += w0[j];
    }
    void *block = iso_arena_alloc(scratch, bytes + 1, 1);
    if (!block)
        return iso_nomem(e, bytes);
    iso_err err = iso_f64_to(o->view.dtype, D, count, block, e);
    return err ? err : emit(w, i, 0, block, bytes, e);
}

static iso_err copy_job(work *w, size_t i, iso_error *e)
{
    const iso_tensor *v = &w->out->tensors[i].view;
    strcpy(w->out->reports[i].decisions.route, "copy");
    iso_err err = emit(w, i, 0, v->data, iso_tensor_bytes(v), e);
    return err ? err : end(w, i, e);
}

/* Linear and entrywise methods take a weight as it is stored. */
static iso_deltas deltas_of(const work *w, size_t i)
{
    const iso_layer_report *r = &w->out->reports[i];
    const iso_method *method = w->o->method;
    bool is_transposed = w->o->is_transposed && r->treatment == ISO_BY_METHOD &&
                         w->out->tensors[i].view.ndim == 2 && !method->coefficients &&
                         !method->entries;
    return (iso_deltas){.T = w->T,
                        .m = is_transposed ? r->n : r->m,
                        .n = is_transposed ? r->m : r->n,
                        .views = w->views + i * w->T,
                        .weights = w->weights,
                        .base = w->bases[i],
                        .is_transposed = is_transposed,
                        .rank_tol = rank_tol_of(w, i, r->m, r->n),
                        .full_q = r->m < r->n ? r->m : r->n,
                        .name = r->name,
                        .index = i};
}

static iso_err survey_tensor(void *ctx, size_t i, iso_deltas *out, iso_arena *scratch, iso_error *e)
{
    const work *w = ctx;
    (void)scratch, (void)e;
    if (w->out->reports[i].treatment == ISO_BY_METHOD) {
        *out = deltas_of(w, i);
        touched(w, i);
    }
    return ISO_OK;
}

static iso_err norms_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    work *w = ctx;
    if (w->out->reports[i].treatment == ISO_BY_COPY)
        return ISO_OK;
    iso_deltas d = deltas_of(w, i);
    double *x = iso_arena_alloc(scratch, d.m * d.n + 1, sizeof *x);
    if (!x)
        return iso_nomem(e, d.m * d.n * sizeof *x);
    for (size_t t = 0; t < w->T; t++)
        w->norms[i * w->T + t] = iso_norm(iso_delta_get(&d, t, x), d.m * d.n);
    return ISO_OK;
}

/* Guard (a): norms over all tensors of a task together. */
static iso_err apply_norm_cap(work *w, const iso_jobs *like, iso_error *e)
{
    iso_jobs jobs = *like;
    jobs.run = norms_job;
    jobs.progress = NULL;
    double *totals = iso_calloc(2 * w->T, sizeof *totals), *scales = totals + w->T;
    w->norms = iso_calloc(w->out->count * w->T, sizeof *w->norms);
    iso_err err = totals && w->norms ? iso_jobs_run(&jobs, e)
                                     : iso_nomem(e, w->out->count * w->T * sizeof *totals);
    if (!err) {
        for (size_t t = 0; t < w->T; t++) {
            for (size_t i = 0; i < w->out->count; i++)
                totals[t] += w->norms[i * w->T + t] * w->norms[i * w->T + t];
            totals[t] = sqrt(totals[t]);
        }
        w->out->summary.capped_tasks =
            iso_guard_norm_scales(totals, w->T, w->o->guard.norm_cap, scales);
        for (size_t t = 0; t < w->T; t++)
            w->weights[t] *= scales[t];
    }
    free(totals);
    return err;
}

/* ---- entry by entry ---- */
static bool is_entrywise(const iso_method *m, iso_treatment t)
{
    return t == ISO_BY_MEAN || (t == ISO_BY_METHOD && (m->coefficients || m->entries));
}

typedef struct {
    work *w;
    size_t i;
    double factor; /* on the plain sum, or on what the method made */
    bool is_sum;
    double square; /* |D|_F^2 so far */
    size_t since;  /* bytes of inputs since they were last reported */
    double *D, *w0;
    void *bytes;
    size_t room; /* elements of the three */
} slices;

/* Block of entries to the result; iso_entries_walk() hands them out in order. */
static iso_err slice(void *ctx, const iso_entries *x, iso_error *e)
{
    slices *s = ctx;
    const work *w = s->w;
    const iso_dense_sink *sink = w->o->sink;
    iso_dtype type = w->out->tensors[s->i].view.dtype;
    double *D = s->D;
    if (w->o->stop && *w->o->stop)
        return iso_fail(e, ISO_ERR_INTERRUPTED, "stopped");
    if (s->is_sum) {
        memcpy(D, x->x[0], x->count * sizeof *D);
        for (size_t t = 1; t < x->T; t++)
            for (size_t j = 0; j < x->count; j++)
                D[j] += x->x[t][j];
    } else {
        w->o->method->entries(x, &w->args, D);
    }
    for (size_t j = 0; s->factor != 1.0 && j < x->count; j++)
        D[j] *= s->factor;
    s->square += iso_dot(D, D, x->count);
    if (x->d->base) {
        iso_tensor part = {x->d->base->dtype,
                           1,
                           {x->count},
                           (const char *)x->d->base->data +
                               x->first * iso_dtype_bytes(x->d->base->dtype)};
        iso_err err = iso_tensor_to_f64(&part, s->w0, e);
        if (err)
            return err;
        for (size_t j = 0; j < x->count; j++)
            D[j] += s->w0[j];
    }
    iso_err err = iso_f64_to(type, D, x->count, s->bytes, e);
    if (!err)
        err = emit(s->w, s->i, x->first, s->bytes, x->count * iso_dtype_bytes(type), e);
    s->since += (x->T + 1) * x->count * 4;
    if (sink && sink->touched && s->since > REPORT_BYTES) {
        sink->touched(sink->ctx, s->since);
        s->since = 0;
    }
    return err;
}

static iso_err slices_job(work *w, size_t i, iso_arena *scratch, iso_error *e)
{
    iso_layer_report *r = &w->out->reports[i];
    iso_deltas d = deltas_of(w, i);
    bool by_method = r->treatment == ISO_BY_METHOD;
    slices s = {.w = w, .i = i, .is_sum = !by_method || w->o->method->coefficients != NULL};
    s.room = iso_entries_block(&d);
    s.D = iso_arena_alloc(scratch, s.room + 1, sizeof *s.D);
    s.w0 = iso_arena_alloc(scratch, s.room + 1, sizeof *s.w0);
    s.bytes = iso_arena_alloc(scratch, s.room + 1, sizeof(double));
    double *c = iso_arena_alloc(scratch, w->T + 1, sizeof *c);
    if (!s.D || !s.w0 || !s.bytes || !c)
        return iso_nomem(e, 3 * s.room * sizeof *s.D);
    s.factor = iso_layer_scale_of(w->o->layer_scales, w->o->layer_scale_count, r->name);
    r->decisions.rank_tol = d.rank_tol;
    if (!by_method) {
        s.factor *= iso_method_get(w->o->method, &w->args, "alpha", 1.0) / (double)w->T;
        strcpy(r->decisions.route, "mean");
    } else if (w->o->method->coefficients) {
        w->o->method->coefficients(&w->args, d.weights, w->T, c);
        d.weights = c;
        strcpy(r->decisions.route, "linear");
    } else {
        strcpy(r->decisions.route, "entries");
    }
    iso_err err = iso_entries_walk(&d, slice, &s, scratch, e);
    r->norm = r->decisions.sum_norm = sqrt(s.square);
    if (!err && !isfinite(r->norm))
        err = iso_fail(e, ISO_ERR_NONFINITE, "the merged update is not finite");
    return err;
}

static iso_err matrix_job(work *w, size_t i, iso_arena *scratch, iso_error *e)
{
    iso_layer_report *r = &w->out->reports[i];
    iso_deltas d = deltas_of(w, i);
    double *D = iso_arena_alloc(scratch, r->m * r->n + 1, sizeof *D);
    if (!D)
        return iso_nomem(e, r->m * r->n * sizeof *D);
    iso_err err = iso_layer_dense(w->o->method, &w->args, &d, D, &r->decisions, scratch, e);
    if (err)
        return err;
    double scale = iso_layer_scale_of(w->o->layer_scales, w->o->layer_scale_count, r->name);
    for (size_t j = 0; scale != 1.0 && j < r->m * r->n; j++)
        D[j] *= scale;
    r->norm = iso_norm(D, r->m * r->n);
    touched(w, i);
    return finish(w, i, D, &d, scratch, e);
}

static iso_err merge_job(void *ctx, size_t i, iso_arena *scratch, iso_error *e)
{
    work *w = ctx;
    const iso_layer_report *r = &w->out->reports[i];
    if (r->is_resumed)
        return ISO_OK;
    if (r->treatment == ISO_BY_COPY)
        return copy_job(w, i, e);
    iso_err err = is_entrywise(w->o->method, r->treatment) ? slices_job(w, i, scratch, e)
                                                           : matrix_job(w, i, scratch, e);
    if (!err)
        err = end(w, i, e);
    return err ? iso_error_context(e, "tensor \"%s\"", r->name) : ISO_OK;
}

size_t iso_merge_dense_bytes(const iso_method *method, bool by_method, size_t T, size_t m, size_t n,
                             bool is_transposed)
{
    double count = (double)m * (double)n, q = (double)(m < n ? m : n);
    if (!is_entrywise(method, by_method ? ISO_BY_METHOD : ISO_BY_MEAN))
        return (size_t)(8.0 * (10.0 * count + 6.0 * q * q));
    iso_deltas d = {.m = m, .n = n, .is_transposed = is_transposed};
    return 8 * (T + 3) * iso_entries_block(&d);
}

/* What the sink has already, and in which order it wants the rest. */
static iso_err begin_sink(work *w, double *costs, iso_error *e)
{
    const iso_merged_dense *out = w->out;
    bool *done = iso_calloc(out->count, sizeof *done);
    double *rank = iso_calloc(out->count, sizeof *rank);
    iso_err err = ISO_OK;
    if (!done || !rank)
        err = iso_nomem(e, out->count * sizeof *rank);
    else
        err = w->o->sink->begin(w->o->sink->ctx, out->tensors, out->count, done, rank, e);
    double dearest = 1.0;
    for (size_t i = 0; !err && i < out->count; i++)
        dearest = fmax(dearest, costs[i]);
    for (size_t i = 0; !err && i < out->count; i++) {
        out->reports[i].is_resumed = done[i];
        costs[i] -= 2.0 * dearest * rank[i];
    }
    free(done);
    free(rank);
    return err;
}

iso_err iso_merge_dense(const iso_dense_input *in, size_t T, const iso_dense_input *base,
                        iso_dtype out_type, const iso_merge_options *o, iso_merged_dense *out,
                        iso_error *e)
{
    *out = (iso_merged_dense){0};
    work w = {
        .in = in, .base = base, .o = o, .T = T, .args = o->args, .out_type = out_type, .out = out};
    double *costs = NULL;
    iso_err err = iso_merge_check(o, T, e);
    if (!err)
        err = group_tensors(&w, e);
    if (err)
        goto done;
    if (w.args.convention == ISO_CONVENTION_AUTO)
        w.args.convention = ISO_CONVENTION_DENSE;
    w.args.gain_cap = fmax(w.args.gain_cap, o->guard.gain_cap);
    w.args.is_reference = o->is_reference;
    costs = iso_calloc(out->count, sizeof *costs);
    w.weights = iso_calloc(2 * T, sizeof *w.weights); /* and the votes */
    if (!costs || !w.weights) {
        err = iso_nomem(e, (out->count + T) * sizeof *costs);
        goto done;
    }
    for (size_t t = 0; t < T; t++) {
        w.weights[T + t] = o->weights ? o->weights[t] : 1.0;
        w.weights[t] = o->method->has_votes ? 1.0 : w.weights[T + t];
    }
    w.args.votes = w.weights + T;
    double scratch = 0.0;
    for (size_t i = 0; i < out->count; i++) {
        const iso_layer_report *r = &out->reports[i];
        double m = (double)r->m, n = (double)r->n, q = fmin(m, n);
        bool is_decomposed =
            r->treatment == ISO_BY_METHOD && !is_entrywise(o->method, r->treatment);
        costs[i] = is_decomposed ? m * n * q : m * n;
        if (is_decomposed)
            scratch = fmax(scratch, 8.0 * (9.0 * m * n + 6.0 * q * q));
    }
    if (o->sink && (err = begin_sink(&w, costs, e)))
        goto done;
    iso_jobs jobs = {.count = out->count,
                     .scratch_bytes = (size_t)scratch,
                     .costs = costs,
                     .run = merge_job,
                     .ctx = &w,
                     .progress = o->progress,
                     .progress_ctx = o->progress_ctx,
                     .stop = o->stop};
    if (o->guard.norm_cap > 0.0 && T > 1)
        err = apply_norm_cap(&w, &jobs, e);
    if (!err)
        err = iso_survey_run(o->method, &w.args, T, survey_tensor, &w, &jobs, &out->arena, e);
    if (!err)
        err = iso_jobs_run(&jobs, e);
    if (!err) {
        iso_merge_summarise(out->reports, out->count, T, &out->summary);
        out->summary.convention = w.args.convention;
    }
done:
    free(w.views);
    free(w.bases);
    free(w.weights);
    free(w.norms);
    free(costs);
    if (err)
        iso_merged_dense_free(out);
    return err;
}

void iso_merged_dense_free(iso_merged_dense *m)
{
    for (size_t i = 0; m->blocks && i < m->count; i++)
        free(m->blocks[i]);
    iso_arena_free(&m->arena);
    *m = (iso_merged_dense){0};
}
