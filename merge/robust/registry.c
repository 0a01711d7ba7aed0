/* The table of rules inside a task. */
#include "core/yaml.h"
#include "merge/robust/robust.h"

#include <string.h>

extern const iso_method iso_method_average, iso_rule_coordinate_median, iso_rule_trimmed_mean,
    iso_rule_geometric_median, iso_rule_multi_krum, iso_rule_norm_clip;

const iso_method *const iso_robust_rules[] = {
    &iso_method_average,
    &iso_rule_norm_clip,
    &iso_rule_geometric_median,
    &iso_rule_multi_krum,
    &iso_rule_coordinate_median,
    &iso_rule_trimmed_mean,
    NULL,
};

const iso_method *iso_robust_find(const char *name)
{
    if (strcmp(name, "mean") == 0)
        return iso_robust_rules[0];
    for (size_t i = 0; iso_robust_rules[i]; i++)
        if (strcmp(iso_robust_rules[i]->name, name) == 0)
            return iso_robust_rules[i];
    return NULL;
}

iso_err iso_robust_need(const char *name, const iso_method **out, iso_error *e)
{
    *out = iso_robust_find(name);
    if (*out)
        return ISO_OK;
    const char *names[32] = {"mean"};
    size_t n = 1;
    for (size_t i = 1; iso_robust_rules[i] && n < 32; i++)
        names[n++] = iso_robust_rules[i]->name;
    const char *nearest = iso_nearest(name, names, n);
    return iso_fail(e, ISO_ERR_USAGE, "unknown rule \"%.40s\"%s%s%s; isofed merge --list shows all",
                    name, nearest ? " (near \"" : "", nearest ? nearest : "", nearest ? "\")" : "");
}

iso_err iso_robust_aggregate_lora(const iso_lora_input *in, size_t T, const iso_method *rule,
                                  const iso_method_args *args, const double *weights,
                                  size_t rank_cap, iso_merged_lora *out, iso_error *e)
{
    iso_merge_options o = iso_merge_defaults(rule);
    if (args)
        o.args = *args;
    o.weights = weights;
    o.rank_cap = rank_cap;
    o.is_single_kept = true;
    return iso_merge_lora(in, T, &o, out, e);
}
