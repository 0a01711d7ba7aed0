/* Texts and JSON of `isofed merge`. */
#include "cli/merge_report.h"

#include "cli/table.h"
#include "core/parallel.h"
#include "core/progress.h"
#include "merge/robust/robust.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *convention_name(iso_convention c)
{
    static const char *const names[] = {"auto", "dense", "rank"};
    return names[c];
}

/* ---- methods ---- */
static iso_json *method_json(const iso_method *m)
{
    static const char *const needs[] = {"sum", "factors", "all"};
    iso_json *o = iso_json_object(), *params = iso_json_array();
    for (const iso_method_param *p = m->params; p->name; p++) {
        iso_json *q = iso_json_object();
        iso_json_set(q, "name", iso_json_string(p->name));
        iso_json_set(q, "default", iso_json_real(p->otherwise));
        iso_json_set(q, "min", iso_json_real(p->min));
        iso_json_set(q, "max", iso_json_real(p->max));
        if (p->words) {
            iso_json *words = iso_json_array();
            for (size_t i = 0; p->words[i]; i++)
                iso_json_push(words, iso_json_string(p->words[i]));
            iso_json_set(q, "words", words);
        }
        iso_json_set(q, "help", iso_json_string(p->help));
        iso_json_push(params, q);
    }
    iso_json_set(o, "name", iso_json_string(m->name));
    iso_json_set(o, "help", iso_json_string(m->help));
    iso_json_set(o, "source", iso_json_string(m->source));
    iso_json_set(o, "needs", iso_json_string(needs[m->needs]));
    iso_json_set(o, "convention", iso_json_boolean(m->has_convention));
    iso_json_set(o, "parameters", params);
    return o;
}

static void print_method(const iso_method *m)
{
    static const char *const needs[] = {"the running sum", "LoRA factors", "every task's update"};
    printf("\n%s\n    %s\n    needs %s; %s\n", m->name, m->help, needs[m->needs], m->source);
    for (const iso_method_param *p = m->params; p->name; p++) {
        if (!p->words) {
            printf("    --set %s=%g    %s (%g to %g)\n", p->name, p->otherwise, p->help, p->min,
                   p->max);
            continue;
        }
        printf("    --set %s=%s    %s (", p->name, p->words[(size_t)p->otherwise], p->help);
        for (size_t i = 0; p->words[i]; i++)
            printf("%s%s", i ? ", " : "", p->words[i]);
        printf(")\n");
    }
    if (m->has_convention)
        printf("    --convention rank|dense    over how many directions the mean singular value "
               "is taken\n"
               "                               [rank for adapters, dense for whole matrices]\n");
}

static void push_methods(iso_json *all, const iso_method *const *methods, const char *kind)
{
    for (size_t i = 0; methods[i]; i++) {
        iso_json *o = method_json(methods[i]);
        iso_json_set(o, "kind", iso_json_string(kind));
        iso_json_push(all, o);
    }
}

void iso_merge_print_methods(bool json)
{
    if (json) {
        iso_json *all = iso_json_array();
        push_methods(all, iso_methods, "method");
        push_methods(all, iso_robust_rules, "rule");
        iso_json_print(all);
        iso_json_free(all);
        return;
    }
    printf("Methods across tasks: --method NAME\n");
    for (size_t i = 0; iso_methods[i]; i++)
        print_method(iso_methods[i]);
    printf("\nRules inside a task, over the updates of its sites: --aggregate RULE\n");
    for (size_t i = 0; iso_robust_rules[i]; i++)
        print_method(iso_robust_rules[i]);
}

/* ---- recipe ---- */
static iso_json *layer_scales(const iso_merge_options *o)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < o->layer_scale_count; i++) {
        iso_json *row = iso_json_object();
        iso_json_set(row, "names", iso_json_string(o->layer_scales[i].pattern));
        iso_json_set(row, "factor", iso_json_float9(o->layer_scales[i].scale));
        iso_json_push(list, row);
    }
    return list;
}

static iso_json *guards(const iso_guard_options *g)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "norm_cap", iso_json_float9(g->norm_cap));
    iso_json_set(o, "floor", iso_json_float9(g->floor));
    iso_json_set(o, "gain_cap", iso_json_float9(g->gain_cap));
    return o;
}

iso_json *iso_merge_recipe(const iso_merge_inputs *in, const iso_merge_options *o)
{
    iso_json *r = iso_json_object(), *params = iso_json_object(), *inputs = iso_json_array();
    iso_convention c = o->args.convention;
    if (c == ISO_CONVENTION_AUTO)
        c = in->is_lora ? ISO_CONVENTION_RANK : ISO_CONVENTION_DENSE;
    for (size_t i = 0; o->method->params[i].name; i++) {
        const char *word = iso_method_word(&o->method->params[i], o->args.value[i]);
        iso_json_set(params, o->method->params[i].name,
                     word ? iso_json_string(word) : iso_json_float9(o->args.value[i]));
    }
    for (size_t t = 0; t < in->count; t++) {
        char hex[ISO_DIGEST_HEX];
        iso_json *input = iso_json_object();
        iso_hex(hex, in->digests[t].b, ISO_DIGEST_BYTES);
        iso_json_set(input, "name", iso_json_string(iso_path_base(in->paths[t])));
        iso_json_set(input, "digest",
                     iso_digest_is_zero(&in->digests[t]) ? iso_json_null() : iso_json_string(hex));
        iso_json_set(input, "weight", iso_json_float9(o->weights ? o->weights[t] : 1.0));
        iso_json_push(inputs, input);
    }
    iso_json_set(r, "format", iso_json_string("isofed-merge"));
    iso_json_set(r, "version", iso_json_integer(1));
    iso_json_set(r, "made_by", iso_json_string("isofed " ISO_VERSION));
    iso_json_set(r, "method", iso_json_string(o->method->name));
    iso_json_set(r, "parameters", params);
    if (o->method->has_convention)
        iso_json_set(r, "convention", iso_json_string(convention_name(c)));
    iso_json_set(r, "treatment", iso_json_string(o->is_reference ? "reference" : "default"));
    iso_json_set(r, "rank_cap", iso_json_integer((int64_t)o->rank_cap));
    iso_json_set(r, "energy", iso_json_float9(o->energy > 0.0 ? o->energy : 1.0));
    if (o->layer_scale_count)
        iso_json_set(r, "layer_alpha", layer_scales(o));
    if (o->guard.norm_cap > 0.0 || o->guard.floor > 0.0 || o->guard.gain_cap > 0.0)
        iso_json_set(r, "guards", guards(&o->guard));
    iso_json_set(r, "inputs", inputs);
    return r;
}

/* ---- plan ---- */
typedef struct {
    size_t rank_min, rank_max, rank_sum, out_rank;
    double bytes, flops;
    double result; /* of bytes: the merged adapter */
} cost;

/* Rough: what one worker holds times the workers, and products at 10 GFLOP/s a core. */
static cost cost_lora(const iso_merge_inputs *in, const iso_merge_options *o)
{
    cost c = {.rank_min = SIZE_MAX};
    double largest = 0.0;
    for (size_t t = 0; t < in->count; t++)
        for (size_t i = 0; i < in->lora[t].count; i++) {
            size_t r = in->lora[t].layers[i].rank;
            c.rank_min = r < c.rank_min ? r : c.rank_min;
            c.rank_max = r > c.rank_max ? r : c.rank_max;
        }
    for (size_t i = 0; i < in->lora[0].count; i++) {
        const iso_lora_layer *l = &in->lora[0].layers[i];
        size_t R = 0, q = l->out < l->in ? l->out : l->in;
        for (size_t t = 0; t < in->count; t++) {
            const iso_lora_layer *same = iso_peft_find(&in->adapters[t], l->module);
            R += same ? same->rank : 0;
        }
        size_t k = R < q ? R : q, out = o->rank_cap && o->rank_cap < k ? o->rank_cap : k;
        double side = (double)(l->out + l->in), r = (double)k;
        largest =
            fmax(largest, 8.0 * (3.0 * (double)R * side + (double)in->count * r * r + 8.0 * r * r));
        c.bytes += 4.0 * (double)out * side;
        c.flops += 6.0 * side * (double)R * r + 40.0 * r * r * r;
        c.rank_sum = R > c.rank_sum ? R : c.rank_sum;
        c.out_rank = out > c.out_rank ? out : c.out_rank;
    }
    c.result = c.bytes;
    c.bytes += largest * iso_threads();
    return c;
}

double iso_merge_lora_bytes(const iso_merge_inputs *in, const iso_merge_options *o)
{
    double inputs = 24.0 * 1048576.0; /* the program itself */
    for (size_t t = 0; t < in->count; t++)
        for (size_t i = 0; i < in->lora[t].count; i++) {
            const iso_lora_layer *l = &in->lora[t].layers[i];
            inputs += 4.0 * (double)l->rank * (double)(l->out + l->in);
        }
    cost c = cost_lora(in, o);
    return inputs + c.bytes + c.result; /* what was written is mapped again for its digest */
}

/* Decompositions at 40 GFLOP/s a core, files at 1 GB/s: measured, on a loaded machine. */
static cost cost_dense(const iso_tensors_plan *t)
{
    return (cost){.bytes = t->fixed_bytes + t->worker_bytes * t->threads,
                  .flops = t->flops / 4.0 + 10.0 * (t->read_bytes + t->written_bytes) * t->threads};
}

iso_json *iso_merge_plan(const iso_merge_inputs *in, const iso_merge_options *o,
                         const iso_tensors_plan *tensors, size_t names)
{
    cost c = in->is_lora ? cost_lora(in, o) : cost_dense(tensors);
    if (in->is_lora)
        c.bytes = iso_merge_lora_bytes(in, o);
    iso_json *p = iso_json_object();
    iso_json_set(p, "inputs", iso_json_integer((int64_t)in->count));
    iso_json_set(p, in->is_lora ? "layers" : "tensors", iso_json_integer((int64_t)names));
    iso_json_set(p, "route", iso_json_string(in->is_lora ? "factored" : "dense"));
    iso_json_set(p, "method", iso_json_string(o->method->name));
    if (in->is_lora) {
        iso_json_set(p, "rank_min", iso_json_integer((int64_t)c.rank_min));
        iso_json_set(p, "rank_max", iso_json_integer((int64_t)c.rank_max));
        iso_json_set(p, "rank_sum", iso_json_integer((int64_t)c.rank_sum));
        iso_json_set(p, "output_rank_at_most", iso_json_integer((int64_t)c.out_rank));
    }
    if (!in->is_lora) {
        iso_json_set(p, "threads", iso_json_integer(tensors->threads));
        iso_json_set(p, "read_bytes", iso_json_integer((int64_t)tensors->read_bytes));
        iso_json_set(p, "written_bytes", iso_json_integer((int64_t)tensors->written_bytes));
        iso_json_set(p, "shards", iso_json_integer((int64_t)tensors->shards));
    }
    iso_json_set(p, "needs_bytes", iso_json_integer((int64_t)c.bytes));
    iso_json_set(p, "about_seconds", iso_json_real(c.flops / 1e10 / iso_threads()));
    iso_json_set(p, "recipe", iso_merge_recipe(in, o));
    return p;
}

static int64_t number(const iso_json *o, const char *key)
{
    int64_t v = 0;
    iso_json_int(iso_json_key(o, key), &v);
    return v;
}

void iso_merge_print_plan(const iso_json *p)
{
    char bytes[32], time[32];
    double seconds = 0.0;
    iso_json_num(iso_json_key(p, "about_seconds"), &seconds);
    iso_bytes_text(bytes, sizeof bytes, (double)number(p, "needs_bytes"));
    iso_duration_text(time, sizeof time, seconds);
    bool is_lora = iso_json_key(p, "layers") != NULL;
    printf("%s: %lld inputs, %lld %s, ", iso_json_str(iso_json_key(p, "method")),
           (long long)number(p, "inputs"), (long long)number(p, is_lora ? "layers" : "tensors"),
           is_lora ? "layers" : "tensors");
    if (is_lora)
        printf("ranks %lld..%lld (sum %lld), ", (long long)number(p, "rank_min"),
               (long long)number(p, "rank_max"), (long long)number(p, "rank_sum"));
    printf("%s route, needs %s, about %s", iso_json_str(iso_json_key(p, "route")), bytes, time);
    if (is_lora)
        printf("; output rank at most %lld", (long long)number(p, "output_rank_at_most"));
    if (!is_lora) {
        char in[32], out[32];
        iso_bytes_text(in, sizeof in, (double)number(p, "read_bytes"));
        iso_bytes_text(out, sizeof out, (double)number(p, "written_bytes"));
        printf(" with %lld threads; reads %s, writes %s", (long long)number(p, "threads"), in, out);
    }
    printf("\nnothing was written\n");
}

/* ---- result ---- */
static iso_json *layer_json(const iso_layer_report *r, size_t T, bool is_lora)
{
    iso_json *o = iso_json_object();
    iso_json_set(o, "name", iso_json_string(r->name));
    iso_json_set(o, "treatment", iso_json_string(iso_treatment_name(r->treatment)));
    iso_json_set(o, "route", iso_json_string(r->decisions.route));
    iso_json_set(o, "out", iso_json_integer((int64_t)r->m));
    iso_json_set(o, "in", iso_json_integer((int64_t)r->n));
    iso_json_set(o, "inputs", iso_json_integer((int64_t)r->present));
    iso_json_set(o, "tasks", iso_json_integer((int64_t)T));
    iso_json_set(o, "norm", iso_json_real(r->norm));
    if (is_lora) {
        iso_json_set(o, "rank", iso_json_integer((int64_t)r->rank));
        iso_json_set(o, "full_rank", iso_json_integer((int64_t)r->full_rank));
        iso_json_set(o, "energy_kept", iso_json_real(r->energy_kept));
    }
    if (r->decisions.sigma > 0.0) {
        iso_json_set(o, "sigma", iso_json_real(r->decisions.sigma));
        iso_json_set(o, "directions", iso_json_integer((int64_t)r->decisions.kept));
        iso_json_set(o, "rank_tolerance", iso_json_real(r->decisions.rank_tol));
        iso_json_set(o, "least_whitened", iso_json_real(r->decisions.smallest));
        iso_json_set(o, "common", iso_json_integer((int64_t)r->decisions.common));
        iso_json_set(o, "per_task", iso_json_integer((int64_t)r->decisions.per_task));
    }
    return o;
}

void iso_merge_result(const iso_layer_report *reports, size_t count, size_t T,
                      const iso_merge_summary *s, bool is_lora, iso_json *out)
{
    iso_json *layers = iso_json_array(), *sum = iso_json_object();
    for (size_t i = 0; i < count; i++)
        iso_json_push(layers, layer_json(&reports[i], T, is_lora));
    iso_json_set(sum, "layers", iso_json_integer((int64_t)s->layers));
    iso_json_set(sum, "partial", iso_json_integer((int64_t)s->partial));
    iso_json_set(sum, "zero", iso_json_integer((int64_t)s->zero));
    iso_json_set(sum, "near_equal", iso_json_integer((int64_t)s->near_equal));
    iso_json_set(sum, "by_mean", iso_json_integer((int64_t)s->by_mean));
    iso_json_set(sum, "resumed", iso_json_integer((int64_t)s->resumed));
    iso_json_set(sum, "copied", iso_json_integer((int64_t)s->by_copy));
    iso_json_set(sum, "energy_kept", iso_json_real(s->energy_kept));
    iso_json_set(sum, "norm", iso_json_real(s->norm));
    iso_json_set(out, "summary", sum);
    iso_json_set(out, "layers", layers);
}

static int by_energy(const void *a, const void *b)
{
    const iso_layer_report *x = *(const iso_layer_report *const *)a,
                           *y = *(const iso_layer_report *const *)b;
    if (x->energy_kept != y->energy_kept)
        return x->energy_kept < y->energy_kept ? -1 : 1;
    return strcmp(x->name, y->name);
}

static void print_worst(const iso_layer_report *reports, size_t count, size_t T, bool is_lora)
{
    static const iso_column columns[] = {
        {"name", "layer", ISO_CELL_TEXT},
        {"inputs", "inputs", ISO_CELL_COUNT},
        {"rank", "rank", ISO_CELL_COUNT},
        {"full_rank", "of", ISO_CELL_COUNT},
        {"energy_kept", "energy %", ISO_CELL_SHARE},
        {"norm", "norm", ISO_CELL_COUNT},
        {"route", "route", ISO_CELL_TEXT},
    };
    const iso_layer_report **order = iso_calloc(count, sizeof(const iso_layer_report *));
    iso_json *rows = iso_json_array();
    for (size_t i = 0; order && i < count; i++)
        order[i] = &reports[i];
    if (order)
        qsort(order, count, sizeof *order, by_energy);
    for (size_t i = 0; order && i < count && i < 3; i++)
        iso_json_push(rows, layer_json(order[i], T, is_lora));
    iso_table_print(rows, columns, sizeof columns / sizeof *columns);
    iso_json_free(rows);
    free(order);
}

void iso_merge_print_result(const iso_merge_options *o, const iso_json *result,
                            const iso_merge_summary *s, const iso_layer_report *reports, size_t T,
                            bool is_lora)
{
    printf("%s over %zu inputs: %zu %s", o->method->name, T, s->layers,
           is_lora ? "layers" : "tensors");
    for (size_t i = 0; o->method->params[i].name; i++) {
        const char *word = iso_method_word(&o->method->params[i], o->args.value[i]);
        if (word)
            printf(", %s %s", o->method->params[i].name, word);
        else
            printf(", %s %g", o->method->params[i].name, o->args.value[i]);
    }
    if (o->method->has_convention)
        printf(", convention %s", convention_name(s->convention));
    if (!is_lora)
        printf("\n%zu by the method, %zu averaged, %zu copied", s->layers - s->by_mean - s->by_copy,
               s->by_mean, s->by_copy);
    if (s->resumed)
        printf(", %zu of them before the interruption", s->resumed);
    printf("; norm %.4g", s->norm);
    if (is_lora)
        printf("; kept energy %.4f", s->energy_kept);
    printf("\n");
    if (is_lora && s->layers)
        print_worst(reports, s->layers, T, is_lora);
    const char *out = iso_json_str(iso_json_key(result, "out")),
               *digest = iso_json_str(iso_json_key(result, "digest"));
    if (out && digest)
        printf("wrote %s, digest %.16s\n", out, digest);
    else if (out)
        printf("wrote %s\n", out);
}
