/* isofed inspect: what a file is; spectra as a picture (DESIGN 3, specs/users.md N4). */
#include "cli/command.h"
#include "cli/inspect_read.h"
#include "cli/table.h"
#include "core/args.h"
#include "core/fsio.h"
#include "core/parallel.h"
#include "core/svg.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_PATHS = 256, MAX_LINES = 10 };

typedef struct {
    const char *plot;
    bool parts, spectra, json;
    int64_t threads;
} options;

static const iso_arg_row rows[] = {
    {"plot", 0, ISO_ARG_STRING, offsetof(options, plot), "OUT.svg", "draw the singular values", 0,
     0, NULL},
    {"parts", 'p', ISO_ARG_FLAG, offsetof(options, parts), NULL, "list every layer or tensor", 0, 0,
     NULL},
    {"spectra", 0, ISO_ARG_FLAG, offsetof(options, spectra), NULL,
     "singular values of whole tensors too (slow)", 0, 0, NULL},
    {"threads", 0, ISO_ARG_INT, offsetof(options, threads), "N", "0: all processors", 0, 4096,
     NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "everything, as JSON", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed inspect [options] PATH...",
    .summary = "What a file is: adapters, backbones, tensors, releases, keys (public part).",
    .example = "isofed inspect adapters/weld adapters/paint --plot spectra.svg",
    .rows = rows,
    .min_words = 1,
    .max_words = MAX_PATHS,
};

/* ---- text ---- */
static bool is_kind(const iso_inspected *i, const char *kind)
{
    const char *k = iso_json_str(iso_json_key(i->json, "kind"));
    return k && strcmp(k, kind) == 0;
}

static double number(const iso_json *o, const char *key)
{
    double v = 0.0;
    iso_json_num(iso_json_key(o, key), &v);
    return v;
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

/* Adapters that stand out among others get a "note": a far larger norm, another base. */
static void mark_outliers(iso_inspected *all, size_t n)
{
    double norms[MAX_PATHS];
    size_t count = 0;
    const char *first = NULL;
    for (size_t i = 0; i < n; i++) {
        if (!is_kind(&all[i], "adapter"))
            continue;
        norms[count++] = number(all[i].json, "norm");
        const char *base = iso_json_str(iso_json_key(all[i].json, "base_model"));
        if (!first && base && *base)
            first = base;
    }
    if (count < 2)
        return;
    qsort(norms, count, sizeof *norms, by_value);
    double median = 0.5 * (norms[(count - 1) / 2] + norms[count / 2]);
    for (size_t i = 0; i < n; i++) {
        char note[128] = "";
        const char *base = iso_json_str(iso_json_key(all[i].json, "base_model"));
        double norm = number(all[i].json, "norm");
        if (!is_kind(&all[i], "adapter"))
            continue;
        if (norm == 0.0)
            snprintf(note, sizeof note, "zero update");
        else if (norm > 3.0 * median)
            snprintf(note, sizeof note, "norm %.1f x the median", norm / median);
        else if (first && base && *base && strcmp(base, first) != 0)
            snprintf(note, sizeof note, "other base");
        if (note[0])
            iso_json_set(all[i].json, "note", iso_json_string(note));
    }
}

static void print_one_kind(const iso_inspected *all, size_t n, const char *kind,
                           const iso_column *columns, size_t column_count)
{
    iso_json *list = iso_json_array();
    for (size_t i = 0; i < n; i++)
        if (is_kind(&all[i], kind))
            iso_json_push(list, iso_json_copy(all[i].json));
    if (iso_json_count(list))
        iso_table_print(list, columns, column_count);
    iso_json_free(list);
}

static const iso_column adapter_columns[] = {
    {"path", "adapter", ISO_CELL_TEXT},
    {"base_model", "base", ISO_CELL_TEXT},
    {"layer_count", "layers", ISO_CELL_COUNT},
    {"ranks", "ranks", ISO_CELL_TEXT},
    {"alpha", "alpha", ISO_CELL_COUNT},
    {"rslora", "rslora", ISO_CELL_TEXT},
    {"dtype", "dtype", ISO_CELL_TEXT},
    {"norm", "norm", ISO_CELL_COUNT},
    {"energy_first", "first %", ISO_CELL_SHARE},
    {"digest", "digest", ISO_CELL_ID},
    {"note", "note", ISO_CELL_TEXT},
};
static const iso_column tensor_columns[] = {
    {"path", "path", ISO_CELL_TEXT},
    {"model_type", "model", ISO_CELL_TEXT},
    {"tensor_count", "tensors", ISO_CELL_COUNT},
    {"parameters", "parameters", ISO_CELL_COUNT},
    {"bytes", "size", ISO_CELL_BYTES},
    {"dtypes", "dtypes", ISO_CELL_TEXT},
    {"norm", "norm", ISO_CELL_COUNT},
    {"nonfinite_tensors", "not finite", ISO_CELL_COUNT},
    {"digest", "digest", ISO_CELL_ID},
};
static const iso_column release_columns[] = {
    {"path", "path", ISO_CELL_TEXT},         {"number", "release", ISO_CELL_COUNT},
    {"release_kind", "kind", ISO_CELL_TEXT}, {"generation", "generation", ISO_CELL_COUNT},
    {"method", "method", ISO_CELL_TEXT},     {"convention", "convention", ISO_CELL_TEXT},
    {"tasks", "tasks", ISO_CELL_COUNT},      {"files", "files", ISO_CELL_COUNT},
    {"bytes", "size", ISO_CELL_BYTES},       {"signed_by", "signed by", ISO_CELL_TEXT},
    {"digest", "digest", ISO_CELL_ID},
};
static const iso_column key_columns[] = {
    {"path", "path", ISO_CELL_TEXT},
    {"key_kind", "key", ISO_CELL_TEXT},
    {"algorithm", "algorithm", ISO_CELL_TEXT},
    {"public_key", "public key", ISO_CELL_TEXT},
};
static const iso_column minisign_columns[] = {
    {"path", "path", ISO_CELL_TEXT},
    {"kind", "kind", ISO_CELL_TEXT},
    {"fingerprint", "fingerprint", ISO_CELL_TEXT},
    {"signed_by", "signed by", ISO_CELL_TEXT},
};
static const iso_column layer_columns[] = {
    {"name", "layer", ISO_CELL_TEXT},
    {"out", "out", ISO_CELL_COUNT},
    {"in", "in", ISO_CELL_COUNT},
    {"rank", "rank", ISO_CELL_COUNT},
    {"scale", "scale", ISO_CELL_COUNT},
    {"norm", "norm", ISO_CELL_COUNT},
    {"energy_first", "first %", ISO_CELL_SHARE},
};
static const iso_column part_columns[] = {
    {"name", "tensor", ISO_CELL_TEXT},           {"shape", "shape", ISO_CELL_TEXT},
    {"dtype", "dtype", ISO_CELL_TEXT},           {"norm", "norm", ISO_CELL_COUNT},
    {"nonfinite", "not finite", ISO_CELL_COUNT},
};

#define COLUMNS(c) c, sizeof(c) / sizeof *(c)
static void print_text(const iso_inspected *all, size_t n, bool parts)
{
    static const struct {
        const char *kind;
        const iso_column *columns;
        size_t count;
    } tables[] = {
        {"adapter", COLUMNS(adapter_columns)},
        {"backbone", COLUMNS(tensor_columns)},
        {"tensors", COLUMNS(tensor_columns)},
        {"release", COLUMNS(release_columns)},
        {"key", COLUMNS(key_columns)},
        {"minisign public key", COLUMNS(minisign_columns)},
        {"minisign signature", COLUMNS(minisign_columns)},
    };
    for (size_t t = 0; t < sizeof tables / sizeof *tables; t++)
        print_one_kind(all, n, tables[t].kind, tables[t].columns, tables[t].count);
    for (size_t i = 0; i < n && (parts || n == 1); i++) {
        const iso_json *layers = iso_json_key(all[i].json, "layers"),
                       *tensors = iso_json_key(all[i].json, "tensors");
        const iso_json *list = layers ? layers : iso_json_is_array(tensors) ? tensors : NULL;
        if (!list)
            continue;
        printf("\n%s\n", all[i].path);
        if (layers)
            iso_table_print(list, COLUMNS(layer_columns));
        else
            iso_table_print(list, COLUMNS(part_columns));
    }
}

/* ---- picture ---- */
/* One path: its parts with the largest norms. Several: each path's root mean square over parts. */
static size_t collect_lines(const iso_inspected *all, size_t n, iso_series *lines, double *values,
                            size_t stride)
{
    size_t count = 0;
    if (n == 1) {
        bool used[4096] = {false};
        for (; count < MAX_LINES; count++) {
            size_t best = SIZE_MAX;
            for (size_t i = 0; i < all->count && i < 4096; i++)
                if (!used[i] && all->spectra[i].count &&
                    (best == SIZE_MAX || all->spectra[i].norm > all->spectra[best].norm))
                    best = i;
            if (best == SIZE_MAX)
                break;
            used[best] = true;
            lines[count] = (iso_series){all->spectra[best].name, NULL, all->spectra[best].S,
                                        all->spectra[best].count};
        }
        return count;
    }
    for (size_t p = 0; p < n && count < MAX_LINES; p++) {
        double *mean = values + p * stride;
        size_t longest = 0, parts = 0;
        for (size_t i = 0; i < all[p].count; i++) {
            const iso_spectrum *s = &all[p].spectra[i];
            parts += s->count > 0;
            longest = s->count > longest ? s->count : longest;
            for (size_t k = 0; k < s->count; k++)
                mean[k] += s->S[k] * s->S[k];
        }
        for (size_t k = 0; k < longest; k++)
            mean[k] = sqrt(mean[k] / (double)parts);
        if (longest)
            lines[count++] = (iso_series){all[p].path, NULL, mean, longest};
    }
    return count;
}

static iso_err draw(const char *out, const iso_inspected *all, size_t n, iso_error *e)
{
    iso_series lines[MAX_LINES];
    size_t stride = 1;
    for (size_t p = 0; p < n; p++)
        for (size_t i = 0; i < all[p].count; i++)
            stride = all[p].spectra[i].count > stride ? all[p].spectra[i].count : stride;
    double *values = iso_calloc(n * stride, sizeof *values);
    if (!values)
        return iso_nomem(e, n * stride * sizeof *values);
    size_t count = collect_lines(all, n, lines, values, stride);
    iso_plot plot = {.title = n == 1 ? "Singular values, largest parts"
                                     : "Singular values, root mean square over parts",
                     .x_label = "direction",
                     .y_label = "singular value",
                     .log_y = true};
    iso_buf svg = {0};
    iso_err err = count ? iso_svg_lines(&svg, &plot, lines, count, e)
                        : iso_fail(e, ISO_ERR_DATA, "nothing with singular values to draw");
    if (!err)
        err = iso_write_file(out, svg.data, svg.size, 0644, e);
    iso_buf_free(&svg);
    free(values);
    return err;
}

static int run(int argc, char **argv)
{
    options c = {0};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e = {0};
    iso_err err = iso_args_parse(&spec, argc, argv, &c, &words, &is_done, &e);
    if (err)
        return iso_cli_fail("inspect", err, &e);
    if (is_done)
        return 0;
    iso_set_threads((int)c.threads);
    iso_inspected *all = iso_calloc(words.count, sizeof *all);
    iso_json *list = iso_json_array();
    size_t n = 0;
    if (!all || !list)
        err = iso_nomem(&e, words.count * sizeof *all);
    for (; n < words.count && !err; n++)
        err = iso_inspect(words.items[n], c.spectra || c.plot, &all[n], &e);
    if (!err) {
        mark_outliers(all, n);
        for (size_t i = 0; i < n; i++)
            iso_json_push(list, iso_json_copy(all[i].json));
        if (c.json)
            iso_json_print(list);
        else
            print_text(all, n, c.parts);
        if (c.plot)
            err = draw(c.plot, all, n, &e);
    }
    for (size_t i = 0; all && i < n; i++)
        iso_inspected_free(&all[i]);
    free(all);
    iso_json_free(list);
    return err ? iso_cli_fail("inspect", err, &e) : 0;
}

const iso_command iso_cmd_inspect = {"inspect", "what a file is: tensors, ranks, spectra, digests",
                                     run};
