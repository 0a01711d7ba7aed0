#include "sim/mix.h"

#include "merge/merge.h"

#include <stdlib.h>
#include <string.h>

typedef iso_err mix_fn(const iso_lora_input *in, size_t n, void *arg, iso_merged_lora *out,
                       iso_error *e);

static iso_err mix(const iso_mix_input *in, size_t n, mix_fn *run, void *arg, iso_mix *out,
                   iso_error *e)
{
    iso_lora_input *list = iso_calloc(n, sizeof *list);
    iso_merged_lora *m = iso_calloc(1, sizeof *m);
    *out = (iso_mix){0};
    if (!list || !m) {
        free(list);
        free(m);
        return iso_nomem(e, n * sizeof *list);
    }
    for (size_t i = 0; i < n; i++)
        list[i] = (iso_lora_input){in[i].name, in[i].layers, in[i].count};
    iso_err err = run(list, n, arg, m, e);
    free(list);
    *out = (iso_mix){.layers = m->layers,
                     .count = err ? 0 : m->count,
                     .energy_kept = m->summary.energy_kept,
                     .own = m};
    if (err)
        iso_mix_free(out);
    return err;
}

typedef struct {
    const double *weights;
    size_t rank_cap;
} aggregation;

static iso_err aggregate(const iso_lora_input *in, size_t n, void *arg, iso_merged_lora *out,
                         iso_error *e)
{
    const aggregation *a = arg;
    return iso_aggregate_lora(in, n, a->weights, a->rank_cap, out, e);
}

iso_err iso_mix_aggregate(const iso_mix_input *in, size_t n, const double *weights, size_t rank_cap,
                          iso_mix *out, iso_error *e)
{
    aggregation a = {weights, rank_cap};
    return mix(in, n, aggregate, &a, out, e);
}

static iso_err merge(const iso_lora_input *in, size_t n, void *arg, iso_merged_lora *out,
                     iso_error *e)
{
    return iso_merge_lora(in, n, arg, out, e);
}

iso_err iso_mix_merge(const iso_mix_input *in, size_t n, const char *name, double alpha,
                      double common_fraction, bool is_dense, iso_mix *out, iso_error *e)
{
    const iso_method *method = NULL;
    *out = (iso_mix){0};
    iso_err err = iso_method_need(name, &method, e);
    if (err)
        return err;
    iso_merge_options o = iso_merge_defaults(method);
    for (const iso_method_param *p = method->params; p && p->name && !err; p++) {
        if (!strcmp(p->name, "alpha"))
            err = iso_method_set(method, &o.args, "alpha", alpha, e);
        if (!strcmp(p->name, "common_fraction"))
            err = iso_method_set(method, &o.args, "common_fraction", common_fraction, e);
    }
    o.args.convention = is_dense ? ISO_CONVENTION_DENSE : ISO_CONVENTION_RANK;
    o.is_single_kept = true; /* AMENDMENTS 14 */
    o.guard = iso_guard_defaults();
    return err ? err : mix(in, n, merge, &o, out, e);
}

void iso_mix_free(iso_mix *m)
{
    if (m->own)
        iso_merged_lora_free(m->own);
    free(m->own);
    *m = (iso_mix){0};
}
