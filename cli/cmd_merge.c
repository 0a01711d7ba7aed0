/* isofed merge: adapters or whole tensors into one, by a method (specs/users.md L and N4). */
#include "cli/command.h"
#include "cli/merge_inputs.h"
#include "cli/merge_page.h"
#include "cli/merge_recipe.h"
#include "cli/merge_report.h"
#include "cli/merge_state.h"
#include "cli/merge_tensors.h"
#include "cli/table.h"
#include "core/parallel.h"
#include "core/progress.h"
#include "merge/robust/robust.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *method, *aggregate, *out, *alpha, *common_fraction, *beta, *base, *dtype;
    iso_arg_list set, weights, layer_alpha;
    int convention, compat;
    int64_t rank, threads;
    double energy, norm_cap, floor, gain_cap;
    uint64_t memory_limit;
    const char *recipe, *report;
    iso_state_request state;
    bool list, allow_missing, any_base, transposed, dry_run, resume, digests, json, quiet;
} options;

static const char *const conventions[] = {"auto", "dense", "rank", NULL};
static const char *const compats[] = {"default", "reference", NULL};

#define AT(field) offsetof(options, field)
static const iso_arg_row rows[] = {
    {"method", 'm', ISO_ARG_STRING, AT(method), "NAME", "how to merge; --list shows them", 0, 0,
     NULL},
    {"aggregate", 0, ISO_ARG_STRING, AT(aggregate), "RULE",
     "inputs are updates of one task: by a rule inside a task instead of a method", 0, 0, NULL},
    {"list", 0, ISO_ARG_FLAG, AT(list), NULL,
     "the methods with parameters, defaults, needs and source", 0, 0, NULL},
    {"out", 'o', ISO_ARG_STRING, AT(out), "OUT",
     "PEFT folder; for whole tensors a .safetensors file, or a folder sharded as the first input",
     0, 0, NULL},
    {"alpha", 0, ISO_ARG_STRING, AT(alpha), "X", "scale of the merged update", 0, 0, NULL},
    {"common-fraction", 0, ISO_ARG_STRING, AT(common_fraction), "X",
     "Iso-CTS: share of common directions", 0, 0, NULL},
    {"beta", 0, ISO_ARG_STRING, AT(beta), "X", "Iso-C, Iso-CTS: how far the spectrum is flattened",
     0, 0, NULL},
    {"set", 0, ISO_ARG_LIST, AT(set), "NAME=X", "any parameter of the method", 0, 0, NULL},
    {"layer-alpha", 0, ISO_ARG_LIST, AT(layer_alpha), "NAMES=X",
     "factor on alpha where the layer's name matches (*, ?); first match", 0, 0, NULL},
    {"norm-cap", 0, ISO_ARG_DOUBLE, AT(norm_cap), "X",
     "guard: scale inputs down to X times the median of their norms; 0: off", 0, 1e6, NULL},
    {"floor", 0, ISO_ARG_DOUBLE, AT(floor), "X",
     "guard: drop an adapter's directions below this share of its largest; 0: off", 0, 1, NULL},
    {"gain-cap", 0, ISO_ARG_DOUBLE, AT(gain_cap), "X",
     "guard: isotropic methods lift no direction more than X times; 0: off", 0, 1e6, NULL},
    {"convention", 0, ISO_ARG_ENUM, AT(convention), "WORD", "what the mean singular value is over",
     0, 0, conventions},
    {"weights", 'w', ISO_ARG_LIST, AT(weights), "X,X,...", "one weight an input", 0, 0, NULL},
    {"rank", 'r', ISO_ARG_INT, AT(rank), "N", "rank of every merged layer at most N; 0: no cap", 0,
     65536, NULL},
    {"energy", 0, ISO_ARG_DOUBLE, AT(energy), "X", "least rank that keeps this share; 0: all", 0, 1,
     NULL},
    {"base", 0, ISO_ARG_STRING, AT(base), "FILE",
     "inputs are whole weights of this base; the result too", 0, 0, NULL},
    {"dtype", 0, ISO_ARG_STRING, AT(dtype), "TYPE", "F64, F32, F16, BF16 for whole tensors", 0, 0,
     NULL},
    {"compat", 0, ISO_ARG_ENUM, AT(compat), "WORD", "which tensors are averaged", 0, 0, compats},
    {"transposed", 0, ISO_ARG_FLAG, AT(transposed), NULL, "whole weights are stored (in, out)", 0,
     0, NULL},
    {"allow-missing", 0, ISO_ARG_FLAG, AT(allow_missing), NULL,
     "merge layers that one input alone has", 0, 0, NULL},
    {"any-base", 0, ISO_ARG_FLAG, AT(any_base), NULL, "merge adapters that name different bases", 0,
     0, NULL},
    {"threads", 0, ISO_ARG_INT, AT(threads), "N", "0: all processors", 0, 4096, NULL},
    {"dry-run", 0, ISO_ARG_FLAG, AT(dry_run), NULL,
     "check everything, print the plan, write nothing", 0, 0, NULL},
    {"report", 0, ISO_ARG_STRING, AT(report), "PAGE.html",
     "adapters: spectra, alignment between tasks, layers, on one page", 0, 0, NULL},
    {"recipe", 0, ISO_ARG_STRING, AT(recipe), "FILE",
     "everything from a YAML file; options given beside it win", 0, 0, NULL},
    {"state", 0, ISO_ARG_STRING, AT(state.path), "FILE",
     "tasks' factors, kept: the inputs are its tasks, and the merge is the joint one", 0, 0, NULL},
    {"add", 0, ISO_ARG_LIST, AT(state.add), "TASK=ADAPTER", "a task joins the state", 0, 0, NULL},
    {"replace", 0, ISO_ARG_LIST, AT(state.replace), "TASK=ADAPTER", "a task's adapter is new", 0, 0,
     NULL},
    {"remove", 0, ISO_ARG_LIST, AT(state.remove), "TASK", "a task leaves the state", 0, 0, NULL},
    {"weight", 0, ISO_ARG_LIST, AT(state.weight), "TASK=X", "a task's weight in the state", 0, 0,
     NULL},
    {"compress", 0, ISO_ARG_INT, AT(state.compress), "N",
     "state: at most N directions a task and layer; says what is lost", 0, 4096, NULL},
    {"memory-limit", 0, ISO_ARG_BYTES, AT(memory_limit), "BYTES",
     "fewer threads where needed; not started where one does not fit (2GiB)", 0, 0, NULL},
    {"resume", 0, ISO_ARG_FLAG, AT(resume), NULL,
     "go on with the complete shards that an interrupted merge left in OUT.part", 0, 0, NULL},
    {"digests", 0, ISO_ARG_FLAG, AT(digests), NULL,
     "digests of content also of more than 1 GiB of tensors", 0, 0, NULL},
    {"json", 0, ISO_ARG_FLAG, AT(json), NULL, "everything that was decided, as JSON", 0, 0, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, AT(quiet), NULL, "only errors", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed merge [options] INPUT... -o OUT",
    .summary = "Merge PEFT folders, or safetensors of whole tensors, into one.",
    .example = "isofed merge adapters/weld adapters/paint --method iso_cts --rank 32 -o merged",
    .rows = rows,
    .max_words = 256,
};

static iso_err read_number(const char *what, const char *text, double *out, iso_error *e)
{
    char *end;
    *out = strtod(text, &end);
    if (end == text || *end || !isfinite(*out))
        return iso_fail(e, ISO_ERR_USAGE, "--%s is \"%.40s\"; it takes a number", what, text);
    return ISO_OK;
}

/* "NAME=TEXT" into name (64) and text. */
static iso_err split(const char *option, const char *item, char name[64], const char **text,
                     iso_error *e)
{
    const char *equals = strrchr(item, '=');
    if (!equals || equals == item || equals - item >= 64)
        return iso_fail(e, ISO_ERR_USAGE, "--%s %.60s: write NAME=VALUE", option, item);
    snprintf(name, 64, "%.*s", (int)(equals - item), item);
    *text = equals + 1;
    return ISO_OK;
}

static iso_err set_parameters(const options *c, iso_merge_options *o, iso_error *e)
{
    const struct {
        const char *param, *text;
    } named[] = {{"alpha", c->alpha}, {"common_fraction", c->common_fraction}, {"beta", c->beta}};
    iso_err err = ISO_OK;
    for (size_t i = 0; i < 3 && !err; i++)
        if (named[i].text)
            err = iso_method_set_text(o->method, &o->args, named[i].param, named[i].text, e);
    for (size_t i = 0; i < c->set.count && !err; i++) {
        char name[64];
        const char *text;
        err = split("set", c->set.items[i], name, &text, e);
        if (!err)
            err = iso_method_set_text(o->method, &o->args, name, text, e);
    }
    return err;
}

/* Names live in `arena`. */
static iso_err set_layer_scales(const options *c, iso_merge_options *o, iso_arena *arena,
                                iso_error *e)
{
    size_t n = c->layer_alpha.count;
    iso_layer_scale *scales = iso_arena_calloc(arena, n + 1, sizeof *scales);
    if (!scales)
        return iso_nomem(e, n * sizeof *scales);
    for (size_t i = 0; i < n; i++) {
        char name[64];
        const char *text;
        iso_err err = split("layer-alpha", c->layer_alpha.items[i], name, &text, e);
        if (!err)
            err = read_number("layer-alpha", text, &scales[i].scale, e);
        if (err)
            return err;
        scales[i].pattern = iso_arena_strdup(arena, name);
        if (!scales[i].pattern)
            return iso_nomem(e, sizeof name);
    }
    o->layer_scales = scales;
    o->layer_scale_count = n;
    return ISO_OK;
}

static iso_err set_weights(const options *c, size_t T, double *weights, iso_merge_options *o,
                           iso_error *e)
{
    if (c->weights.count == 0)
        return ISO_OK;
    if (c->weights.count != T)
        return iso_fail(e, ISO_ERR_USAGE, "%zu weights for %zu inputs", c->weights.count, T);
    for (size_t t = 0; t < T; t++) {
        iso_err err = read_number("weights", c->weights.items[t], &weights[t], e);
        if (err)
            return err;
    }
    o->weights = weights;
    return ISO_OK;
}

static iso_err read_dtype(const options *c, iso_dtype *out, iso_error *e)
{
    *out = ISO_DTYPE_COUNT;
    if (!c->dtype)
        return ISO_OK;
    if (!iso_dtype_parse(c->dtype, out) ||
        (*out != ISO_F64 && *out != ISO_F32 && *out != ISO_F16 && *out != ISO_BF16))
        return iso_fail(e, ISO_ERR_USAGE, "--dtype is \"%.20s\"; it takes F64, F32, F16 or BF16",
                        c->dtype);
    return ISO_OK;
}

static void on_progress(void *ctx, size_t done, size_t total)
{
    (void)total;
    iso_progress_update(ctx, (double)done, NULL);
}

/* ---- writing ---- */
static void set_digest(iso_json *result, const iso_digest *d)
{
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, d->b, ISO_DIGEST_BYTES);
    iso_json_set(result, "digest", iso_json_string(hex));
}

static iso_err write_lora(const char *out, const iso_merge_inputs *in, const iso_merged_lora *m,
                          const iso_json *recipe, iso_json *result, iso_error *e)
{
    iso_peft_output o = {.layers = m->layers,
                         .count = m->count,
                         .base_model =
                             *in->adapters[0].base_model ? in->adapters[0].base_model : NULL,
                         .extra = recipe};
    iso_safetensors st = {0};
    char *path = iso_path_join(out, "adapter_model.safetensors");
    if (!path)
        return iso_nomem(e, strlen(out));
    iso_err err = iso_peft_write(out, &o, e);
    if (!err)
        err = iso_safetensors_open(&st, path, e);
    if (!err) {
        iso_digest d = iso_tensor_list_digest(st.items, st.count);
        set_digest(result, &d);
    }
    iso_safetensors_close(&st);
    free(path);
    return err;
}

/* ---- what is worth knowing, on stderr ---- */
static void print_warnings(const iso_merge_match *match, const iso_merge_summary *s,
                           const iso_layer_report *reports, bool is_lora)
{
    const char *unit = is_lora ? "layers" : "tensors";
    if (match->lines.size)
        fprintf(stderr, "%s", (const char *)match->lines.data);
    if (s->zero == s->layers)
        fprintf(stderr,
                "isofed merge: warning: the merged update is zero in %zu of %zu %s; the result "
                "equals the base\n",
                s->zero, s->layers, unit);
    else if (s->zero)
        fprintf(stderr, "isofed merge: warning: the merged update is zero in %zu of %zu %s\n",
                s->zero, s->layers, unit);
    for (size_t i = 0; i < s->layers && s->near_equal; i++) {
        double least = reports[i].decisions.smallest;
        if (!(least > 0.0 && least < ISO_NEAR_EQUAL))
            continue;
        fprintf(stderr,
                "isofed merge: warning: two inputs are nearly equal in %zu of %zu %s, first %s "
                "(%.1e apart); "
                "digits are lost there\n",
                s->near_equal, s->layers, unit, reports[i].name, least);
        break;
    }
}

static void print_caution(const iso_merge_options *o, size_t T)
{
    char text[ISO_ERROR_BYTES] = "";
    if (o->method->caution)
        o->method->caution(&o->args, T, text, sizeof text);
    if (text[0])
        fprintf(stderr, "isofed merge: warning: %s\n", text);
}

typedef struct {
    const options *c;
    iso_merge_inputs in;
    iso_merge_match match;
    iso_merge_options o;
    double weights[256];
    iso_dtype dtype;
    iso_tensors_plan plan; /* whole tensors */
    iso_task_state state;
    iso_buf notes;
    bool is_weighted; /* by the state */
    iso_merged_lora lora;
    iso_merged_dense dense;
    iso_json *recipe, *result;
    iso_arena arena; /* names of --layer-alpha */
} job;

static iso_err check_match(const job *j, iso_error *e)
{
    const iso_merge_match *m = &j->match;
    if (m->differ > 1) /* one alone is named by the merge itself */
        return iso_fail(e, ISO_ERR_SHAPE, "%zu of %zu %s differ in shape: %.170s%s", m->differ,
                        m->total, j->in.is_lora ? "layers" : "tensors",
                        (const char *)m->differ_names.data,
                        m->differ > 5 || m->differ_names.size > 170 ? " ..." : "");
    if (m->unmatched == 0 || j->c->allow_missing || j->in.count == 1)
        return ISO_OK;
    return iso_fail(e, ISO_ERR_NO,
                    "%zu of %zu %s match; unmatched: %.120s%s; rename them or pass --allow-missing",
                    m->total - m->unmatched, m->total, j->in.is_lora ? "target layers" : "tensors",
                    (const char *)m->unmatched_names.data,
                    m->unmatched > 6 || m->unmatched_names.size > 120 ? " ..." : "");
}

/* U57: known before it starts. Threads are fewer where that fits the limit. */
static iso_err check_memory(job *j, iso_error *e)
{
    const options *c = j->c;
    if (!j->in.is_lora) {
        iso_err err = iso_merge_tensors_plan(&j->in, &j->o, j->dtype, c->memory_limit, &j->plan, e);
        if (!err)
            iso_set_threads(j->plan.threads);
        return err;
    }
    double needed = iso_merge_lora_bytes(&j->in, &j->o);
    for (int n = iso_threads(); c->memory_limit && needed > (double)c->memory_limit && n > 1;) {
        iso_set_threads(--n);
        needed = iso_merge_lora_bytes(&j->in, &j->o);
    }
    if (c->memory_limit && needed > (double)c->memory_limit)
        return iso_fail(e, ISO_ERR_RESOURCE,
                        "needs %.2f GiB with one thread, the limit is %.2f GiB; not started",
                        needed / 1073741824.0, (double)c->memory_limit / 1073741824.0);
    return ISO_OK;
}

/* The state's tasks are the inputs, with its weights. */
static iso_err prepare_state(job *j, const iso_arg_list *words, size_t *T, iso_error *e)
{
    const options *c = j->c;
    if (words->count > 0 || c->weights.count > 0)
        return iso_fail(e, ISO_ERR_USAGE,
                        "--state has its inputs and weights: --add TASK=ADAPTER, --weight TASK=X");
    iso_err err = iso_merge_state_prepare(&c->state, c->any_base, &j->state, &j->in, &j->notes, e);
    if (err)
        return err;
    *T = j->state.count;
    if (*T > sizeof j->weights / sizeof *j->weights)
        return iso_fail(e, ISO_ERR_USAGE, "the state has %zu tasks; at most %zu are merged", *T,
                        sizeof j->weights / sizeof *j->weights);
    for (size_t t = 0; t < *T; t++)
        j->weights[t] = j->state.tasks[t].weight;
    j->is_weighted = true;
    return ISO_OK;
}

static iso_err prepare(job *j, const iso_arg_list *words, iso_error *e)
{
    const options *c = j->c;
    const iso_method *method = NULL;
    size_t T = words->count;
    iso_err err = c->state.path ? prepare_state(j, words, &T, e) : ISO_OK;
    if (err)
        return err;
    err = c->aggregate ? iso_robust_need(c->aggregate, &method, e)
                       : iso_method_need(c->method, &method, e);
    if (err)
        return err;
    if (T == 0)
        return iso_fail(e, ISO_ERR_USAGE, "no inputs; usage: %s", spec.usage);
    if (!c->out && !c->dry_run && !c->state.path)
        return iso_fail(e, ISO_ERR_USAGE, "no output; say -o OUT, or --dry-run");
    j->o = iso_merge_defaults(method);
    j->o.args.convention = (iso_convention)c->convention;
    j->o.rank_cap = (size_t)c->rank;
    j->o.energy = c->energy;
    j->o.is_reference = c->compat == 1;
    j->o.is_transposed = c->transposed;
    j->o.guard = (iso_guard_options){c->norm_cap, c->floor, c->gain_cap};
    j->o.stop = &iso_cli_interrupted;
    if (j->is_weighted)
        j->o.weights = j->weights;
    if ((err = set_parameters(c, &j->o, e)) || (err = set_layer_scales(c, &j->o, &j->arena, e)) ||
        (!c->state.path && (err = set_weights(c, T, j->weights, &j->o, e))) ||
        (err = read_dtype(c, &j->dtype, e)) || (err = iso_merge_check(&j->o, T, e)) ||
        (!c->state.path &&
         (err = iso_merge_inputs_open(&j->in, words, c->base, c->any_base, c->digests, e))))
        return err;
    if (!j->in.is_lora && (c->rank || c->energy > 0.0))
        return iso_fail(e, ISO_ERR_USAGE,
                        "--rank and --energy are for adapters, not whole tensors");
    if (!j->in.is_lora && c->report)
        return iso_fail(e, ISO_ERR_USAGE, "--report is for adapters, not whole tensors");
    if ((err = iso_merge_inputs_match(&j->in, &j->match, e)) || (err = check_match(j, e)))
        return err;
    j->recipe = iso_merge_recipe(&j->in, &j->o);
    return check_memory(j, e);
}

static iso_err merge_and_write(job *j, iso_error *e)
{
    bool is_lora = j->in.is_lora;
    iso_progress progress;
    iso_progress_start(&progress, "merging", is_lora ? "layers" : "tensors", (double)j->match.total,
                       j->c->quiet || j->c->json);
    j->o.progress = on_progress;
    j->o.progress_ctx = &progress;
    j->result = iso_json_object();
    if (!is_lora)
        iso_merge_catch_truncation(&j->in);
    iso_err err = is_lora
                      ? iso_merge_lora(j->in.lora, j->in.count, &j->o, &j->lora, e)
                      : iso_merge_tensors_write(&j->in, &j->o, j->dtype, j->c->out, j->c->resume,
                                                j->c->digests, j->recipe, &j->dense, j->result, e);
    iso_progress_end(&progress, (double)j->match.total);
    if (err)
        return err;
    const iso_layer_report *reports = is_lora ? j->lora.reports : j->dense.reports;
    const iso_merge_summary *s = is_lora ? &j->lora.summary : &j->dense.summary;
    iso_merge_result(reports, s->layers, j->in.count, s, is_lora, j->result);
    iso_json_set(j->result, "recipe", iso_json_copy(j->recipe));
    iso_json_set(j->result, "out", iso_json_string(j->c->out));
    if (is_lora)
        err = write_lora(j->c->out, &j->in, &j->lora, j->recipe, j->result, e);
    if (!err && j->c->report)
        err = iso_merge_page_write(j->c->report, &j->in, &j->o, &j->lora, e);
    if (err)
        return err;
    if (!j->c->quiet)
        print_caution(&j->o, j->in.count);
    if (!j->c->quiet)
        print_warnings(&j->match, s, reports, is_lora);
    if (j->c->json)
        iso_json_print(j->result);
    else if (!j->c->quiet)
        iso_merge_print_result(&j->o, j->result, s, reports, j->in.count, is_lora);
    return ISO_OK;
}

/* The recipe's values where no option was given. */
static iso_err take_recipe(options *c, iso_arg_list *words, iso_arena *arena, iso_error *e)
{
    iso_recipe r;
    iso_err err = iso_recipe_read(c->recipe, arena, &r, e);
    if (err)
        return err;
    if (words->count == 0) {
        *words = r.inputs;
        if (c->weights.count == 0)
            c->weights = r.weights;
    }
    c->method = c->method ? c->method : r.method;
    c->aggregate = c->aggregate ? c->aggregate : r.aggregate;
    c->base = c->base ? c->base : r.base;
    c->out = c->out ? c->out : r.out;
    c->dtype = c->dtype ? c->dtype : r.dtype;
    c->set = c->set.count ? c->set : r.set;
    c->layer_alpha = c->layer_alpha.count ? c->layer_alpha : r.layer_alpha;
    c->convention = c->convention ? c->convention : r.convention;
    c->compat = c->compat ? c->compat : r.compat;
    c->rank = c->rank ? c->rank : r.rank;
    c->energy = c->energy > 0.0 ? c->energy : r.energy;
    c->norm_cap = c->norm_cap > 0.0 ? c->norm_cap : r.norm_cap;
    c->floor = c->floor > 0.0 ? c->floor : r.floor;
    c->gain_cap = c->gain_cap > 0.0 ? c->gain_cap : r.gain_cap;
    return ISO_OK;
}

/* After a merge that succeeded, or alone without -o. */
static iso_err write_state(job *j, iso_error *e)
{
    if (!j->c->state.path)
        return ISO_OK;
    if (j->notes.size && !j->c->quiet)
        fprintf(stderr, "%s", (const char *)j->notes.data);
    iso_err err = iso_task_state_write(&j->state, j->c->state.path, e);
    for (size_t t = 0; !err && !j->c->quiet && !j->c->json && t < j->state.count; t++)
        printf("%s %-24s weight %-8g %zu layers\n", t ? "     " : "state", j->state.tasks[t].name,
               j->state.tasks[t].weight, j->state.tasks[t].count);
    return err;
}

static int run(int argc, char **argv)
{
    static options c; /* lists of words: not for the stack */
    c = (options){0};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e = {0};
    iso_err err = iso_args_parse(&spec, argc, argv, &c, &words, &is_done, &e);
    if (err)
        return iso_cli_fail("merge", err, &e);
    if (is_done)
        return 0;
    if (c.list) {
        iso_merge_print_methods(c.json);
        return 0;
    }
    iso_set_threads((int)c.threads);
    static job j; /* hundreds of weights: not for the stack */
    j = (job){.c = &c};
    if (c.recipe)
        err = take_recipe(&c, &words, &j.arena, &e);
    if (!c.method)
        c.method = "iso_cts";
    if (!err)
        err = prepare(&j, &words, &e);
    if (!err && c.dry_run) {
        iso_json *plan = iso_merge_plan(&j.in, &j.o, &j.plan, j.match.total);
        if (c.json)
            iso_json_print(plan);
        else
            iso_merge_print_plan(plan);
        iso_json_free(plan);
    } else if (!err) {
        if (c.out)
            err = merge_and_write(&j, &e);
        if (!err)
            err = write_state(&j, &e);
    }
    iso_json_free(j.recipe);
    iso_json_free(j.result);
    iso_merged_lora_free(&j.lora);
    iso_merged_dense_free(&j.dense);
    iso_merge_match_free(&j.match);
    iso_merge_inputs_close(&j.in);
    iso_task_state_close(&j.state);
    iso_buf_free(&j.notes);
    iso_arena_free(&j.arena);
    return err ? iso_cli_fail("merge", err, &e) : 0;
}

const iso_command iso_cmd_merge = {"merge", "merge adapters or whole tensors by a method", run};
