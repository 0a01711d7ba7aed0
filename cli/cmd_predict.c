/* isofed predict: labels images, or with a text backbone the lines of text files. Words are files
 * or folders (all files in them); a file that cannot be read is named on stderr and the others go
 * on, the exit code is 3 then. */
#include "cli/command.h"
#include "cli/vision.h"
#include "core/args.h"
#include "core/fsio.h"
#include "core/json.h"
#include "core/log.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORDS_MAX = 256, FILES_A_BATCH = 64, TEXT_FILE_MAX = 64 << 20 };

typedef struct {
    const char *backbone, *adapter, *head;
    bool json;
} options;

static const iso_arg_row rows[] = {
    {"backbone", 0, ISO_ARG_STRING, offsetof(options, backbone), "DIR", "Hugging Face folder", 0, 0,
     NULL},
    {"adapter", 0, ISO_ARG_STRING, offsetof(options, adapter), "DIR",
     "PEFT folder; none: the frozen backbone", 0, 0, NULL},
    {"head", 0, ISO_ARG_STRING, offsetof(options, head), "FILE", "head.safetensors", 0, 0, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "one JSON object a line", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed predict --backbone DIR --head FILE [options] FILE-OR-FOLDER...",
    .summary = "Label images, or lines of text: file, class and probability, one line each.",
    .example = "isofed predict --backbone models/embedded --adapter out --head "
               "out/head.safetensors demo-data/tops/test/shirt",
    .rows = rows,
    .min_words = 1,
    .max_words = WORDS_MAX,
};

typedef struct {
    const options *o;
    iso_vision v;
    iso_linear_head h;
    uint8_t *bytes;  /* one image */
    float *pixels;   /* (FILES_A_BATCH, sample) */
    int32_t *tokens; /* one text */
    float *features; /* (FILES_A_BATCH, dim) */
    float *logits;   /* (classes) */
    char *paths[FILES_A_BATCH];
    size_t count;
    size_t failed;
} labelling;

static iso_err print_one(labelling *l, const char *path, const float *features, iso_error *e)
{
    const iso_linear_head *h = &l->h;
    size_t best = 0;
    double total = 0;
    iso_err err = ISO_OK;
    iso_linear_logits(h, features, 1, l->logits);
    for (size_t c = 1; c < h->classes; c++)
        if (l->logits[c] > l->logits[best])
            best = c;
    for (size_t c = 0; c < h->classes; c++)
        total += exp((double)l->logits[c] - (double)l->logits[best]);
    if (!l->o->json) {
        char quoted[1024];
        iso_log_quote(quoted, sizeof quoted, path);
        printf("%s\t%s\t%.3f\n", quoted, h->class_names[best], 1 / total);
        return ISO_OK;
    }
    iso_buf line = {0};
    iso_json *o = iso_json_object(), *all = iso_json_object();
    for (size_t c = 0; c < h->classes; c++)
        iso_json_set(all, h->class_names[c],
                     iso_json_real(exp((double)l->logits[c] - (double)l->logits[best]) / total));
    iso_json_set(o, "file", iso_json_string(path));
    iso_json_set(o, "class", iso_json_string(h->class_names[best]));
    iso_json_set(o, "probability", iso_json_real(1 / total));
    iso_json_set(o, "probabilities", all);
    if (!(err = iso_json_dump(o, ISO_JSON_COMPACT, &line, e)))
        printf("%.*s\n", (int)line.size, (const char *)line.data);
    iso_json_free(o);
    iso_buf_free(&line);
    return err;
}

static iso_err flush(labelling *l, iso_error *e)
{
    size_t dim = iso_model_dim(l->v.model);
    iso_err err = ISO_OK;
    if (l->count)
        err = iso_model_features(l->v.model, l->pixels, l->count, l->features, e);
    for (size_t i = 0; i < l->count; i++) {
        if (!err)
            err = print_one(l, l->paths[i], l->features + i * dim, e);
        free(l->paths[i]);
    }
    l->count = 0;
    return err;
}

static iso_err add_file(labelling *l, const char *path, iso_error *e)
{
    int h, w;
    iso_preprocess_size(&l->v.pre, &h, &w);
    if (iso_cli_interrupted)
        return iso_fail(e, ISO_ERR_INTERRUPTED, "stopped");
    iso_err err = iso_image_read(path, &l->v.pre, l->bytes, e);
    if (err == ISO_ERR_MEMORY)
        return err;
    if (err) {
        char quoted[512];
        iso_log_quote(quoted, sizeof quoted, e->text);
        fprintf(stderr, "isofed predict: %s\n", quoted);
        l->failed++;
        return ISO_OK;
    }
    if (!(l->paths[l->count] = iso_strdup(path)))
        return iso_nomem(e, strlen(path));
    iso_preprocess_float(&l->v.pre, l->bytes, l->pixels + l->count * 3 * (size_t)h * (size_t)w);
    return ++l->count == FILES_A_BATCH ? flush(l, e) : ISO_OK;
}

/* A line's place is file:line. */
static iso_err add_text(labelling *l, const char *path, size_t line, const char *text, size_t n,
                        iso_error *e)
{
    size_t room = l->v.coding.room;
    float *sample = l->pixels + l->count * room;
    iso_text_encode(&l->v.coding, text, n, l->tokens);
    for (size_t j = 0; j < room; j++)
        sample[j] = (float)l->tokens[j];
    if (!(l->paths[l->count] = iso_strf("%s:%zu", path, line)))
        return iso_nomem(e, strlen(path));
    return ++l->count == FILES_A_BATCH ? flush(l, e) : ISO_OK;
}

static iso_err add_lines(labelling *l, const char *path, iso_error *e)
{
    iso_buf bytes = {0};
    iso_error own;
    iso_err err = iso_read_file(path, TEXT_FILE_MAX, &bytes, &own);
    if (err && err != ISO_ERR_MEMORY) {
        char quoted[512];
        iso_log_quote(quoted, sizeof quoted, own.text);
        fprintf(stderr, "isofed predict: %s\n", quoted);
        l->failed++;
        return ISO_OK;
    }
    if (err)
        *e = own;
    size_t line = 1;
    for (size_t at = 0; !err && at < bytes.size; line++) {
        const char *text = (const char *)bytes.data + at;
        const char *end = memchr(text, '\n', bytes.size - at);
        size_t n = end ? (size_t)(end - text) : bytes.size - at;
        if (iso_cli_interrupted)
            err = iso_fail(e, ISO_ERR_INTERRUPTED, "stopped");
        else if (n)
            err = add_text(l, path, line, text, n, e);
        at += n + 1;
    }
    iso_buf_free(&bytes);
    return err;
}

static iso_err add_word(labelling *l, const char *word, iso_error *e)
{
    iso_err (*add)(labelling *, const char *, iso_error *) = l->v.tokenizer ? add_lines : add_file;
    iso_names names = {0};
    iso_err err;
    if (!iso_is_dir(word))
        return add(l, word, e);
    err = iso_list_dir(word, &names, e);
    for (size_t i = 0; !err && i < names.count; i++) {
        char *path = iso_path_join(word, names.names[i]);
        if (!path)
            err = iso_nomem(e, strlen(word));
        else if (names.names[i][0] != '.' && !iso_is_dir(path))
            err = add(l, path, e);
        free(path);
    }
    iso_names_free(&names);
    return err;
}

static iso_err label_all(labelling *l, const iso_arg_list *words, iso_error *e)
{
    int h, w;
    iso_err err = iso_vision_open(&l->v, "predict", l->o->backbone, e);
    if (err || (err = iso_vision_head(&l->v, l->o->head, &l->h, e)) ||
        (err = iso_vision_adapt(&l->v, l->o->adapter, e)))
        return err;
    size_t values = l->v.coding.room;
    if (!l->v.tokenizer) {
        iso_preprocess_size(&l->v.pre, &h, &w);
        values = (size_t)h * (size_t)w * 3;
    }
    l->bytes = iso_calloc(values, 1);
    l->tokens = iso_calloc(values, sizeof *l->tokens);
    l->pixels = iso_calloc(values, FILES_A_BATCH * sizeof *l->pixels);
    l->features = iso_calloc(iso_model_dim(l->v.model), FILES_A_BATCH * sizeof *l->features);
    l->logits = iso_calloc(l->h.classes, sizeof *l->logits);
    if (!l->bytes || !l->tokens || !l->pixels || !l->features || !l->logits)
        return iso_nomem(e, values * FILES_A_BATCH * sizeof *l->pixels);
    for (size_t i = 0; !err && i < words->count; i++)
        err = add_word(l, words->items[i], e);
    if (!err)
        err = flush(l, e);
    if (!err && l->failed)
        err = iso_fail(e, ISO_ERR_DATA, "%zu files could not be read", l->failed);
    return err;
}

static int run(int argc, char **argv)
{
    options o = {0};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    labelling l = {.o = &o};
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && !is_done)
        err = label_all(&l, &words, &e);
    for (size_t i = 0; i < l.count; i++) /* after an error */
        free(l.paths[i]);
    free(l.bytes);
    free(l.tokens);
    free(l.pixels);
    free(l.features);
    free(l.logits);
    iso_linear_free(&l.h);
    iso_vision_close(&l.v);
    return err ? iso_cli_fail("predict", err, &e) : 0;
}

const iso_command iso_cmd_predict = {"predict", "label images or texts", run};
