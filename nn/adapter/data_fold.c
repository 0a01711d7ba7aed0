/* DATA at its mean gates: what they are, switching between the gated and the folded form, and what
 * folding changes. specs/data.md 10. */
#include "nn/adapter/data_inner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

bool iso_data_has_gates(const iso_adapter *a)
{
    return ((const iso_data *)a->own)->has_gates;
}

const double *iso_data_gate_mean(const iso_adapter *a)
{
    return ((const iso_data *)a->own)->mean;
}

const double *iso_data_gate_variance(const iso_adapter *a)
{
    return ((const iso_data *)a->own)->variance;
}

void iso_data_set_folded(iso_adapter *a, bool is_folded)
{
    const iso_data *t = a->own;
    a->is_folded = t->fixed > 0.0 || (is_folded && t->has_gates);
    iso_adapter_settle(a);
}

iso_err iso_data_measure(iso_adapter *a, const iso_model *m, const iso_source *s, iso_error *e)
{
    iso_data *t = a->own;
    size_t k = t->groups * ISO_DATA_BRANCHES;
    if (!iso_adapter_runs(a) || s->n == 0)
        return ISO_OK;
    float *g = iso_calloc(s->n, k * sizeof *g);
    if (!g)
        return iso_nomem(e, s->n * k * sizeof *g);
    iso_err err = iso_model_observe(m, s, g, e);
    for (size_t j = 0; !err && j < k; j++) {
        double sum = 0.0, squares = 0.0;
        for (size_t i = 0; i < s->n; i++)
            sum += (double)g[i * k + j];
        t->mean[j] = sum / (double)s->n;
        for (size_t i = 0; i < s->n; i++) {
            double off = (double)g[i * k + j] - t->mean[j];
            squares += off * off;
        }
        t->variance[j] = squares / (double)s->n;
    }
    t->has_gates = t->has_gates || !err;
    free(g);
    return err;
}

static size_t top_of(const float *z, size_t n)
{
    size_t top = 0;
    for (size_t i = 1; i < n; i++)
        top = z[i] > z[top] ? i : top;
    return top;
}

iso_fold_error iso_fold_error_of(const float *gated, const float *folded, const float *base,
                                 size_t n, size_t classes)
{
    iso_fold_error r = {0};
    double off = 0.0, all = 0.0;
    size_t same = 0;
    for (size_t i = 0; i < n * classes; i++) {
        double x = (double)gated[i] - (double)folded[i], y = (double)gated[i] - (double)base[i];
        r.largest = fabs(x) > r.largest ? fabs(x) : r.largest;
        off += x * x;
        all += y * y;
    }
    for (size_t i = 0; i < n; i++)
        same += top_of(gated + i * classes, classes) == top_of(folded + i * classes, classes);
    r.relative = all > 0.0 ? sqrt(off / all) : 0.0;
    r.agreement = n ? (double)same / (double)n : 1.0;
    return r;
}

static int by_module(const void *x, const void *y)
{
    return strcmp(((const iso_lora_layer *)x)->module, ((const iso_lora_layer *)y)->module);
}

iso_err iso_data_to_layers(const iso_adapter *a, iso_arena *arena, iso_lora_layer **layers,
                           size_t *count, iso_error *e)
{
    const iso_data *t = a->own;
    size_t r = t->lo + t->hi;
    if (!t->has_gates)
        return iso_fail(e, ISO_ERR_USAGE, "the mean gates are not known");
    iso_lora_layer *out = iso_arena_calloc(arena, t->count, sizeof *out);
    if (!out)
        return iso_nomem(e, t->count * sizeof *out);
    for (size_t i = 0; i < t->count; i++) {
        const iso_data_part *p = &t->parts[i];
        const double *mean = t->mean + p->module->block / t->gap * ISO_DATA_BRANCHES;
        iso_lora_layer *l = &out[i];
        *l = (iso_lora_layer){.module = iso_arena_strdup(arena, p->module->name),
                              .out = p->module->out,
                              .in = p->module->in,
                              .rank = r,
                              .scale = 1.0,
                              .A = iso_arena_alloc(arena, r * p->module->in, sizeof(float)),
                              .B = iso_arena_alloc(arena, r * p->module->out, sizeof(float))};
        if (!l->module || !l->A || !l->B)
            return iso_nomem(e, r * (l->in + l->out) * sizeof(float));
        memcpy(l->A, a->params + p->down, r * l->in * sizeof(float));
        for (size_t k = 0; k < r; k++)
            for (size_t o = 0; o < l->out; o++)
                l->B[o * r + k] =
                    (float)(mean[k < t->lo ? 0 : 1] * (double)a->params[p->up + k * l->out + o]);
    }
    qsort(out, t->count, sizeof *out, by_module);
    *layers = out;
    *count = t->count;
    return ISO_OK;
}
