/* isofed centralize: adapters of several data blocks averaged into the backbone, which becomes the
 * next generation; or a step that another machine made, applied. specs/factorization.md 3, 4. */
#include "cli/command.h"
#include "cli/table.h"
#include "core/args.h"
#include "core/fsio.h"
#include "core/parallel.h"
#include "merge/difference.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_BLOCKS = 256, MAX_FILE = 1 << 26 };

typedef struct {
    const char *backbone, *out, *apply, *method;
    iso_arg_list weights;
    int64_t threads;
    bool json;
} options;

#define AT(field) offsetof(options, field)
static const iso_arg_row rows[] = {
    {"backbone", 0, ISO_ARG_STRING, AT(backbone), "DIR", "Hugging Face folder of generation g", 0,
     0, NULL},
    {"out", 'o', ISO_ARG_STRING, AT(out), "DIR", "folder for generation g+1", 0, 0, NULL},
    {"method", 'm', ISO_ARG_STRING, AT(method), "NAME",
     "mean, or a method of isofed merge in its place", 0, 0, NULL},
    {"weights", 'w', ISO_ARG_LIST, AT(weights), "X,X,...", "one weight an adapter (equal)", 0, 0,
     NULL},
    {"apply", 0, ISO_ARG_STRING, AT(apply), "FILE", "a difference.safetensors instead of adapters",
     0, 0, NULL},
    {"threads", 0, ISO_ARG_INT, AT(threads), "N", "0: all processors; the result is the same", 0,
     1024, NULL},
    {"json", 0, ISO_ARG_FLAG, AT(json), NULL, "print one JSON object", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed centralize --backbone DIR -o DIR ADAPTER...\n"
             "       isofed centralize --backbone DIR -o DIR --apply difference.safetensors",
    .summary = "Average adapters of data blocks into the backbone: its next generation.",
    .example = "isofed centralize --backbone models/embedded -o gen1 block-1 block-2 block-3",
    .rows = rows,
    .max_words = MAX_BLOCKS,
};

/* Configuration, vocabulary and so on; weights and what belongs to the old generation not. */
static iso_err copy_rest(const char *from, const char *to, iso_error *e)
{
    static const char *const left[] = {"generation.json", "difference.safetensors"};
    iso_names names = {0};
    iso_err err = iso_list_dir(from, &names, e);
    for (size_t i = 0; !err && i < names.count; i++) {
        const char *n = names.names[i];
        bool is_left = strstr(n, ".safetensors") != NULL;
        for (size_t k = 0; k < sizeof left / sizeof *left; k++)
            is_left = is_left || strcmp(n, left[k]) == 0;
        iso_buf data = {0};
        char *a = iso_path_join(from, n), *b = iso_path_join(to, n);
        if (!a || !b)
            err = iso_nomem(e, strlen(n));
        else if (!is_left && !iso_is_dir(a) && !(err = iso_read_file(a, MAX_FILE, &data, e)))
            err = iso_write_file(b, data.data, data.size, 0644, e);
        free(a);
        free(b);
        iso_buf_free(&data);
    }
    iso_names_free(&names);
    return err;
}

/* 1 + the number in the folder's generation.json; 1 without one. */
static iso_err next_number(const char *backbone, int64_t *out, iso_error *e)
{
    iso_json *j = NULL;
    char *path = iso_path_join(backbone, "generation.json");
    iso_err err = path ? ISO_OK : iso_nomem(e, strlen(backbone));
    *out = 1;
    if (!err && iso_path_exists(path) && !(err = iso_json_read(path, 1 << 20, &j, e)) &&
        !(err = iso_json_need_int(j, "number", 0, 1000000, out, e)))
        ++*out;
    iso_json_free(j);
    free(path);
    return err;
}

static iso_json *describe(const iso_generation *g, int64_t number, const char *method,
                          const iso_block *blocks, size_t n)
{
    char hex[ISO_DIGEST_HEX];
    iso_json *j = iso_json_object(), *list = iso_json_array();
    iso_json_set(j, "format", iso_json_string("isofed-generation"));
    iso_json_set(j, "version", iso_json_integer(1));
    iso_json_set(j, "number", iso_json_integer(number));
    iso_hex(hex, g->after.b, ISO_DIGEST_BYTES);
    iso_json_set(j, "digest", iso_json_string(hex));
    iso_hex(hex, g->before.b, ISO_DIGEST_BYTES);
    iso_json_set(j, "previous", iso_json_string(hex));
    iso_json_set(j, "method", iso_json_string(method));
    for (size_t i = 0; i < n; i++) {
        iso_hex(hex, blocks[i].digest.b, ISO_DIGEST_BYTES);
        iso_json_push(list, iso_json_string(hex));
    }
    iso_json_set(j, "blocks", list);
    iso_json_set(j, "changed_tensors", iso_json_integer((int64_t)g->changed));
    iso_json_set(j, "change_norm", iso_json_real(g->change_norm));
    return j;
}

static iso_err write_folder(const options *o, const iso_generation *g, const iso_block *blocks,
                            size_t n, const iso_centralize_options *how, const iso_json *about,
                            iso_error *e)
{
    static const char *const meta[] = {"format", "pt"};
    iso_buf text = {0};
    char *model = iso_path_join(o->out, "model.safetensors");
    char *step = iso_path_join(o->out, "difference.safetensors");
    char *json = iso_path_join(o->out, "generation.json");
    iso_err err = model && step && json ? iso_make_dirs(o->out, 0755, e) : iso_nomem(e, 1);
    if (!err && !(err = copy_rest(o->backbone, o->out, e)) &&
        !(err = iso_safetensors_write(model, g->tensors, g->count, meta, 1, e)) &&
        !(n && (err = iso_difference_write(step, g, blocks, n, how, e))) &&
        !(err = iso_json_dump(about, ISO_JSON_PRETTY, &text, e)))
        err = iso_write_file(json, text.data, text.size, 0644, e);
    free(model);
    free(step);
    free(json);
    iso_buf_free(&text);
    return err;
}

static iso_err check(const options *o, const iso_arg_list *words, iso_error *e)
{
    if (!o->backbone || !o->out)
        return iso_fail(e, ISO_ERR_USAGE, "say which backbone and where to: --backbone DIR -o DIR");
    if (!o->apply == !words->count)
        return iso_fail(e, ISO_ERR_USAGE, "give adapters, or --apply FILE");
    if (iso_path_exists(o->out))
        return iso_fail(e, ISO_ERR_USAGE, "%s is there already; a generation is never overwritten",
                        o->out);
    if (o->weights.count && o->weights.count != words->count)
        return iso_fail(e, ISO_ERR_USAGE, "%zu weights for %zu adapters", o->weights.count,
                        words->count);
    return ISO_OK;
}

static iso_err centralize(const options *o, const iso_arg_list *words, iso_error *e)
{
    iso_safetensors backbone = {0}, step = {0};
    iso_block *blocks = iso_calloc(MAX_BLOCKS, sizeof *blocks);
    double weights[MAX_BLOCKS];
    iso_generation g = {0};
    iso_json *about = NULL;
    int64_t number = 0;
    size_t n = 0;
    bool is_mean = strcmp(o->method, "mean") == 0;
    iso_centralize_options how = {.method = is_mean ? NULL : iso_method_find(o->method)};
    iso_err err = blocks ? check(o, words, e) : iso_nomem(e, MAX_BLOCKS * sizeof *blocks);
    if (!err && !is_mean && !how.method)
        err = iso_fail(e, ISO_ERR_USAGE,
                       "method \"%.40s\" is not known; mean, or see isofed merge "
                       "--list",
                       o->method);
    if (err)
        goto done;
    if (how.method)
        how.args = iso_merge_defaults(how.method).args;
    for (size_t i = 0; i < o->weights.count; i++) {
        char *end;
        weights[i] = strtod(o->weights.items[i], &end);
        if (*end || end == o->weights.items[i]) {
            err = iso_fail(e, ISO_ERR_USAGE, "weight \"%.40s\" is no number", o->weights.items[i]);
            goto done;
        }
        how.weights = weights;
    }
    if ((err = next_number(o->backbone, &number, e)) ||
        (err = iso_safetensors_open(&backbone, o->backbone, e)))
        goto done;
    if (o->apply) {
        if ((err = iso_safetensors_open(&step, o->apply, e)))
            goto done;
        if ((err = iso_difference_apply(&g, &backbone, &step, e))) {
            iso_error_context(e, "%s", o->apply);
            goto done;
        }
    } else {
        for (; n < words->count; n++)
            if ((err = iso_block_open(&blocks[n], words->items[n], e)))
                goto done;
        if ((err = iso_centralize(&g, &backbone, blocks, n, &how, e)))
            goto done;
    }
    about = describe(&g, number, o->apply ? "applied" : o->method, blocks, n);
    if ((err = write_folder(o, &g, blocks, n, &how, about, e)))
        goto done;
    if (o->json)
        iso_json_print(about);
    else
        printf("generation %lld of %zu adapters in %s\n  %s\n  %zu tensors changed, by %.4g "
               "together\n",
               (long long)number, n, o->out, iso_json_str(iso_json_key(about, "digest")), g.changed,
               g.change_norm);
done:
    iso_json_free(about);
    iso_generation_free(&g);
    for (size_t i = 0; blocks && i < MAX_BLOCKS; i++)
        iso_block_close(&blocks[i]);
    free(blocks);
    iso_safetensors_close(&backbone);
    iso_safetensors_close(&step);
    return err;
}

static int run(int argc, char **argv)
{
    options o = {.method = "mean"};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && !is_done) {
        iso_set_threads((int)o.threads);
        err = centralize(&o, &words, &e);
    }
    return err ? iso_cli_fail("centralize", err, &e) : 0;
}

const iso_command iso_cmd_centralize = {"centralize",
                                        "average adapters into the backbone: next generation", run};
