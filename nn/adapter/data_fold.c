/* DATA at its mean gates: what they are, switching between the gated and the folded form, and what
 * folding changes. specs/data.md 10. */
#include "nn/adapter/data_inner.h"

#include <math.h>
#include <stdlib.h>

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
