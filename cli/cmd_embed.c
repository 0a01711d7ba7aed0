/* isofed embed: features of a split of a data folder, as safetensors (features (n, dim) F32, labels
 * (n) I64; class names, paths and the backbone's digest in the metadata) or as TSV (path, class,
 * then the numbers). */
#include "cli/command.h"
#include "cli/vision.h"
#include "core/args.h"
#include "core/fsio.h"
#include "core/json.h"
#include "core/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *backbone, *adapter, *data, *split, *out;
    bool allow_unreadable, quiet;
} options;

static const iso_arg_row rows[] = {
    {"backbone", 0, ISO_ARG_STRING, offsetof(options, backbone), "DIR", "Hugging Face folder", 0, 0,
     NULL},
    {"adapter", 0, ISO_ARG_STRING, offsetof(options, adapter), "DIR",
     "PEFT folder; none: the frozen backbone", 0, 0, NULL},
    {"data", 0, ISO_ARG_STRING, offsetof(options, data), "DIR",
     "task folder: split/class/file, or texts.tsv", 0, 0, NULL},
    {"split", 0, ISO_ARG_STRING, offsetof(options, split), "NAME", "split to embed", 0, 0, NULL},
    {"out", 'o', ISO_ARG_STRING, offsetof(options, out), "FILE",
     "FILE.safetensors or FILE.tsv; none: TSV to standard output", 0, 0, NULL},
    {"allow-unreadable", 0, ISO_ARG_FLAG, offsetof(options, allow_unreadable), NULL,
     "go on however many files cannot be read", 0, 0, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "no progress", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed embed --backbone DIR --data DIR [options]",
    .summary = "Features of labelled images or texts, to a file or as TSV.",
    .example = "isofed embed --backbone models/embedded --data demo-data/tops --split test -o "
               "tops.safetensors",
    .rows = rows,
};

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n > m && !strcmp(s + n - m, end);
}

static iso_err to_tsv(const iso_image_set *s, const float *f, size_t dim, iso_buf *out,
                      iso_error *e)
{
    iso_err err = ISO_OK;
    for (size_t i = 0; !err && i < s->count; i++) {
        err = iso_buf_printf(out, e, "%s\t%s", s->rows[i].path, s->class_names[s->rows[i].label]);
        for (size_t j = 0; !err && j < dim; j++)
            err = iso_buf_printf(out, e, "\t%.9g", (double)f[i * dim + j]);
        if (!err)
            err = iso_buf_append(out, "\n", 1, e);
    }
    return err;
}

/* A JSON array of strings as a C string. */
static iso_err names_text(const iso_image_set *s, bool paths, iso_buf *out, iso_error *e)
{
    iso_json *list = iso_json_array();
    size_t n = paths ? s->count : s->class_count;
    for (size_t i = 0; i < n; i++)
        iso_json_push(list, iso_json_string(paths ? s->rows[i].path : s->class_names[i]));
    iso_err err = iso_json_dump(list, ISO_JSON_COMPACT, out, e);
    iso_json_free(list);
    return err ? err : iso_buf_append(out, "", 1, e);
}

static iso_err to_safetensors(const iso_image_set *s, const float *f, size_t dim,
                              const iso_digest *generation, const char *path, iso_error *e)
{
    iso_buf classes = {0}, paths = {0};
    char hex[ISO_DIGEST_HEX];
    int64_t *labels = iso_calloc(s->count, sizeof *labels);
    iso_err err = labels ? ISO_OK : iso_nomem(e, s->count * sizeof *labels);
    if (!err && !(err = names_text(s, false, &classes, e)) &&
        !(err = names_text(s, true, &paths, e))) {
        for (size_t i = 0; i < s->count; i++)
            labels[i] = s->rows[i].label;
        iso_hex(hex, generation->b, ISO_DIGEST_BYTES);
        iso_named_tensor t[2] = {
            {"features", {.dtype = ISO_F32, .ndim = 2, .shape = {s->count, dim}, .data = f}},
            {"labels", {.dtype = ISO_I64, .ndim = 1, .shape = {s->count}, .data = labels}}};
        const char *meta[] = {"format",   "isofed-features",
                              "version",  "1",
                              "classes",  (const char *)classes.data,
                              "paths",    (const char *)paths.data,
                              "backbone", hex};
        err = iso_safetensors_write(path, t, 2, meta, 5, e);
    }
    free(labels);
    iso_buf_free(&classes);
    iso_buf_free(&paths);
    return err;
}

static iso_err embed(const options *o, iso_vision *v, iso_error *e)
{
    iso_image_set set = {0};
    iso_buf text = {0};
    float *features = NULL;
    int *labels = NULL;
    iso_err err = ISO_OK;
    bool is_tsv = !o->out || ends_with(o->out, ".tsv");
    if (!o->data)
        err = iso_fail(e, ISO_ERR_USAGE, "say what to embed: --data DIR");
    else if (!is_tsv && !ends_with(o->out, ".safetensors"))
        err = iso_fail(e, ISO_ERR_USAGE, "-o %s: must end with .safetensors or .tsv", o->out);
    if (err || (err = iso_vision_open(v, "embed", o->backbone, e)) ||
        (err = iso_vision_adapt(v, o->adapter, e)))
        goto done;
    iso_image_options io = {
        .folder = o->data, .split = o->split, .allow_unreadable = o->allow_unreadable};
    if ((err = iso_vision_load(v, &set, &io, e)))
        goto done;
    iso_vision_print_notes("embed", &set);
    if ((err = iso_vision_features(v, &set, o->quiet || !o->out, &features, &labels, e)))
        goto done;
    size_t dim = iso_model_dim(v->model);
    if (!is_tsv)
        err = to_safetensors(&set, features, dim, &v->backbone->generation, o->out, e);
    else if (!(err = to_tsv(&set, features, dim, &text, e))) {
        if (o->out)
            err = iso_write_file(o->out, text.data, text.size, 0644, e);
        else if (fwrite(text.data, 1, text.size, stdout) != text.size || fflush(stdout))
            err = iso_fail(e, ISO_ERR_RESOURCE, "standard output cannot be written");
    }
    if (!err && o->out && !o->quiet)
        printf("%s: %zu %s, %zu numbers each\n", o->out, set.count, iso_vision_noun(v), dim);
done:
    free(features);
    free(labels);
    iso_buf_free(&text);
    iso_images_free(&set);
    return err;
}

static int run(int argc, char **argv)
{
    options o = {.split = "test"};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_vision v = {0};
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && !is_done)
        err = embed(&o, &v, &e);
    iso_vision_close(&v);
    return err ? iso_cli_fail("embed", err, &e) : 0;
}

const iso_command iso_cmd_embed = {"embed", "print features of labelled images or texts", run};
