/* The table of methods, and their parameters by name. */
#include "core/yaml.h"
#include "merge/method/method.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const iso_method iso_method_average, iso_method_task_arithmetic, iso_method_iso_c,
    iso_method_iso_cts, iso_method_tsv_m, iso_method_ties, iso_method_dare_linear,
    iso_method_dare_ties, iso_method_consensus_ta, iso_method_breadcrumbs, iso_method_slerp,
    iso_method_knots, iso_method_core_space;

const iso_method *const iso_methods[] = {
    &iso_method_iso_cts,      &iso_method_iso_c,
    &iso_method_tsv_m,        &iso_method_knots,
    &iso_method_core_space,   &iso_method_ties,
    &iso_method_dare_ties,    &iso_method_dare_linear,
    &iso_method_consensus_ta, &iso_method_breadcrumbs,
    &iso_method_slerp,        &iso_method_task_arithmetic,
    &iso_method_average,      NULL,
};

const iso_method *iso_method_find(const char *name)
{
    for (size_t i = 0; iso_methods[i]; i++)
        if (strcmp(iso_methods[i]->name, name) == 0)
            return iso_methods[i];
    return NULL;
}

iso_err iso_method_need(const char *name, const iso_method **out, iso_error *e)
{
    *out = iso_method_find(name);
    if (*out)
        return ISO_OK;
    const char *names[64];
    size_t n = 0;
    for (; iso_methods[n] && n < 64; n++)
        names[n] = iso_methods[n]->name;
    const char *nearest = iso_nearest(name, names, n);
    return iso_fail(e, ISO_ERR_USAGE, "unknown method \"%s\"%s%s%s; isofed merge --list shows all",
                    name, nearest ? " (near \"" : "", nearest ? nearest : "", nearest ? "\")" : "");
}

void iso_method_defaults(const iso_method *m, iso_method_args *a)
{
    *a = (iso_method_args){0};
    for (size_t i = 0; m->params[i].name; i++)
        a->value[i] = m->params[i].otherwise;
}

iso_err iso_method_set(const iso_method *m, iso_method_args *a, const char *param, double value,
                       iso_error *e)
{
    const char *names[ISO_METHOD_PARAMS];
    size_t n = 0;
    for (; m->params[n].name; n++) {
        const iso_method_param *p = &m->params[n];
        names[n] = p->name;
        if (strcmp(p->name, param) != 0)
            continue;
        if (!(value >= p->min && value <= p->max) || (p->is_whole && value != floor(value)))
            return iso_fail(e, ISO_ERR_USAGE, "%s of %s is %g; it takes %s from %g to %g", param,
                            m->name, value, p->is_whole ? "whole numbers" : "numbers", p->min,
                            p->max);
        a->value[n] = value;
        return ISO_OK;
    }
    const char *nearest = iso_nearest(param, names, n);
    return iso_fail(e, ISO_ERR_USAGE, "method %s has no parameter \"%s\"%s%s%s", m->name, param,
                    nearest ? ", did you mean \"" : "", nearest ? nearest : "",
                    nearest ? "\"?" : "");
}

const char *iso_method_word(const iso_method_param *p, double value)
{
    return p->words ? p->words[(size_t)value] : NULL;
}

static iso_err set_word(const iso_method *m, iso_method_args *a, size_t i, const char *text,
                        iso_error *e)
{
    const iso_method_param *p = &m->params[i];
    size_t n = 0;
    for (; p->words[n]; n++) {
        if (strcmp(p->words[n], text) != 0)
            continue;
        a->value[i] = (double)n;
        return ISO_OK;
    }
    char all[128] = "";
    for (size_t k = 0; k < n; k++)
        snprintf(all + strlen(all), sizeof all - strlen(all), "%s%s", k ? ", " : "", p->words[k]);
    return iso_fail(e, ISO_ERR_USAGE, "%s of %s is \"%.40s\"; it takes one of %s", p->name, m->name,
                    text, all);
}

iso_err iso_method_set_text(const iso_method *m, iso_method_args *a, const char *param,
                            const char *text, iso_error *e)
{
    for (size_t i = 0; m->params[i].name; i++)
        if (m->params[i].words && strcmp(m->params[i].name, param) == 0)
            return set_word(m, a, i, text, e);
    char *end;
    double value = strtod(text, &end);
    if (end == text || *end || !isfinite(value))
        return iso_fail(e, ISO_ERR_USAGE, "%s is \"%.40s\"; it takes a number", param, text);
    return iso_method_set(m, a, param, value, e);
}

double iso_method_get(const iso_method *m, const iso_method_args *a, const char *param,
                      double otherwise)
{
    for (size_t i = 0; m->params[i].name; i++)
        if (strcmp(m->params[i].name, param) == 0)
            return a->value[i];
    return otherwise;
}
