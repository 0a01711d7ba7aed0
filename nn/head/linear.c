/* Linear heads; see linear.h. */
#include "nn/head/linear.h"

#include "core/json.h"
#include "core/parallel.h"
#include "core/safetensors.h"
#include "core/simd.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { HEAD_FILE_MAX = 256 << 20, CLASSES_MAX = 4096, NAME_MAX_BYTES = 255 };

/* The names' pointers and characters in one allocation. */
static const char **copy_names(const char *const *names, size_t n)
{
    size_t bytes = 0;
    for (size_t i = 0; i < n; i++)
        bytes += strlen(names[i]) + 1;
    const char **out = iso_calloc(n * sizeof *out + bytes, 1);
    if (!out)
        return NULL;
    char *at = (char *)(out + n);
    for (size_t i = 0; i < n; i++) {
        size_t len = strlen(names[i]) + 1;
        memcpy(at, names[i], len);
        out[i] = at;
        at += len;
    }
    return out;
}

iso_err iso_linear_init(iso_linear_head *h, size_t classes, size_t dim, const char *const *names,
                        iso_error *e)
{
    size_t cells;
    *h = (iso_linear_head){.classes = classes, .dim = dim};
    if (!classes || !dim || classes > CLASSES_MAX || !iso_mul_size(classes, dim, &cells))
        return iso_fail(e, ISO_ERR_SHAPE, "a head of %zu classes on %zu features is not possible",
                        classes, dim);
    h->W = iso_calloc(cells, sizeof *h->W);
    h->b = iso_calloc(classes, sizeof *h->b);
    h->class_names = copy_names(names, classes);
    if (!h->W || !h->b || !h->class_names) {
        iso_linear_free(h);
        return iso_nomem(e, cells * sizeof *h->W);
    }
    return ISO_OK;
}

iso_err iso_linear_copy(iso_linear_head *out, const iso_linear_head *h, iso_error *e)
{
    iso_err err = iso_linear_init(out, h->classes, h->dim, h->class_names, e);
    if (err)
        return err;
    memcpy(out->W, h->W, h->classes * h->dim * sizeof *h->W);
    memcpy(out->b, h->b, h->classes * sizeof *h->b);
    return ISO_OK;
}

void iso_linear_free(iso_linear_head *h)
{
    free(h->W);
    free(h->b);
    free((void *)h->class_names);
    *h = (iso_linear_head){0};
}

/* ---- scores ---- */

ISO_CLONES
static double dot(const float *a, const float *b, size_t n)
{
    double s = 0;
#pragma omp simd reduction(+ : s)
    for (size_t i = 0; i < n; i++)
        s += (double)a[i] * (double)b[i];
    return s;
}

typedef struct {
    const iso_linear_head *h;
    const float *features;
    float *logits;
} scoring;

static void score_row(void *ctx, size_t i, int worker)
{
    scoring *s = ctx;
    const iso_linear_head *h = s->h;
    (void)worker;
    for (size_t c = 0; c < h->classes; c++)
        s->logits[i * h->classes + c] =
            (float)(dot(h->W + c * h->dim, s->features + i * h->dim, h->dim) + (double)h->b[c]);
}

void iso_linear_logits(const iso_linear_head *h, const float *features, size_t n, float *logits)
{
    scoring s = {h, features, logits};
    iso_parallel_for(n, 64, score_row, &s);
}

void iso_linear_predict(const iso_linear_head *h, const float *features, size_t n, int *labels)
{
    for (size_t i = 0; i < n; i++) {
        double best = -HUGE_VAL;
        labels[i] = 0;
        for (size_t c = 0; c < h->classes; c++) {
            /* rounded to float as in the logits, so that both name the same class */
            double z = (double)(float)(dot(h->W + c * h->dim, features + i * h->dim, h->dim) +
                                       (double)h->b[c]);
            if (z > best) {
                best = z;
                labels[i] = (int)c;
            }
        }
    }
}

double iso_linear_accuracy(const iso_linear_head *h, const float *features, const int *labels,
                           size_t n)
{
    size_t right = 0;
    for (size_t i = 0; i < n; i++) {
        int predicted;
        iso_linear_predict(h, features + i * h->dim, 1, &predicted);
        right += predicted == labels[i];
    }
    return (double)right / (double)n;
}

/* ---- files ---- */

iso_err iso_linear_save_buf(const iso_linear_head *h, iso_buf *out, iso_error *e)
{
    iso_buf names = {0};
    iso_json *list = iso_json_array();
    iso_err err = ISO_OK;
    for (size_t c = 0; c < h->classes; c++)
        if (!iso_json_push(list, iso_json_string(h->class_names[c])))
            err = iso_nomem(e, 0);
    if (!err)
        err = iso_json_dump(list, ISO_JSON_COMPACT, &names, e);
    if (!err)
        err = iso_buf_append(&names, "", 1, e); /* a string for the metadata */
    if (!err) {
        iso_named_tensor t[2] = {
            {"bias", {.dtype = ISO_F32, .ndim = 1, .shape = {h->classes}, .data = h->b}},
            {"weight", {.dtype = ISO_F32, .ndim = 2, .shape = {h->classes, h->dim}, .data = h->W}}};
        const char *meta[] = {"format", "isofed-head", "version",
                              "1",      "classes",     (const char *)names.data};
        err = iso_safetensors_write_buf(out, t, 2, meta, 3, e);
    }
    iso_json_free(list);
    iso_buf_free(&names);
    return err;
}

iso_err iso_linear_save(const iso_linear_head *h, const char *path, iso_error *e)
{
    iso_buf b = {0};
    iso_err err = iso_linear_save_buf(h, &b, e);
    if (!err)
        err = iso_write_file(path, b.data, b.size, 0644, e);
    iso_buf_free(&b);
    return err;
}

static iso_err read_names(const iso_safetensors *st, const char *what, size_t classes,
                          iso_json **root, const char ***names, iso_error *e)
{
    const char *text = iso_safetensors_meta(st, "classes");
    iso_err err;
    if (!text)
        return iso_fail(e, ISO_ERR_DATA, "%s: has no class names", what);
    if ((err = iso_json_parse(text, strlen(text), what, root, e)))
        return err;
    if (!iso_json_is_array(*root) || iso_json_count(*root) != classes)
        return iso_fail(e, ISO_ERR_SHAPE, "%s: the class names do not match %zu rows", what,
                        classes);
    *names = iso_calloc(classes, sizeof **names);
    if (!*names)
        return iso_nomem(e, classes * sizeof **names);
    for (size_t i = 0; i < classes; i++) {
        const char *s = iso_json_str(iso_json_at(*root, i));
        if (!s || !*s || strlen(s) > NAME_MAX_BYTES)
            return iso_fail(e, ISO_ERR_DATA, "%s: class name %zu is not a string of 1 to %d bytes",
                            what, i, NAME_MAX_BYTES);
        for (size_t k = 0; k < i; k++)
            if (!strcmp((*names)[k], s))
                return iso_fail(e, ISO_ERR_DATA, "%s: class name \"%s\" stands twice", what, s);
        (*names)[i] = s;
    }
    return ISO_OK;
}

static iso_err from_tensors(iso_linear_head *h, const iso_safetensors *st, const char *what,
                            iso_error *e)
{
    const iso_named_tensor *w = iso_safetensors_find(st, "weight");
    const iso_named_tensor *b = iso_safetensors_find(st, "bias");
    const char *format = iso_safetensors_meta(st, "format");
    const char *version = iso_safetensors_meta(st, "version");
    iso_json *root = NULL;
    const char **names = NULL;
    iso_err err;
    if (!format || strcmp(format, "isofed-head") != 0)
        return iso_fail(e, ISO_ERR_DATA, "%s: is not a head (format isofed-head)", what);
    if (!version || strcmp(version, "1") != 0)
        return iso_fail(e, ISO_ERR_DATA,
                        "%s: version %.16s of the head format, this program reads 1", what,
                        version ? version : "none");
    if (!w || !b || w->view.ndim != 2 || b->view.ndim != 1 || w->view.shape[0] < 1 ||
        w->view.shape[1] < 1 || w->view.shape[0] > CLASSES_MAX ||
        b->view.shape[0] != w->view.shape[0])
        return iso_fail(e, ISO_ERR_SHAPE, "%s: needs weight (classes, dim) and bias (classes)",
                        what);
    if (iso_tensor_find_nonfinite(&w->view) != SIZE_MAX ||
        iso_tensor_find_nonfinite(&b->view) != SIZE_MAX)
        return iso_fail(e, ISO_ERR_NONFINITE, "%s: holds values that are not finite", what);
    if (!(err = read_names(st, what, w->view.shape[0], &root, &names, e)) &&
        !(err = iso_linear_init(h, w->view.shape[0], w->view.shape[1], names, e)) &&
        ((err = iso_tensor_to_f32(&w->view, h->W, e)) ||
         (err = iso_tensor_to_f32(&b->view, h->b, e)))) {
        iso_linear_free(h);
        iso_error_context(e, "%s", what);
    }
    free((void *)names);
    iso_json_free(root);
    return err;
}

iso_err iso_linear_parse(iso_linear_head *h, const void *data, size_t size, const char *what,
                         iso_error *e)
{
    iso_safetensors st = {0};
    *h = (iso_linear_head){0};
    iso_err err = iso_safetensors_parse(&st, data, size, what, e);
    if (!err)
        err = from_tensors(h, &st, what, e);
    iso_safetensors_close(&st);
    return err;
}

iso_err iso_linear_load(iso_linear_head *h, const char *path, iso_error *e)
{
    iso_buf b = {0};
    *h = (iso_linear_head){0};
    iso_err err = iso_read_file(path, HEAD_FILE_MAX, &b, e);
    if (!err)
        err = iso_linear_parse(h, b.data, b.size, path, e);
    iso_buf_free(&b);
    return err;
}

/* ---- the shared head ---- */

static size_t row_of(const iso_linear_head *h, const char *name)
{
    for (size_t c = 0; c < h->classes; c++)
        if (!strcmp(h->class_names[c], name))
            return c;
    return SIZE_MAX;
}

static iso_err mean_of_class(iso_linear_head *out, size_t c, double *row,
                             const iso_head_part *parts, size_t n, iso_error *e)
{
    double total = 0, bias = 0;
    memset(row, 0, out->dim * sizeof *row);
    for (size_t i = 0; i < n; i++) {
        size_t r = row_of(parts[i].head, out->class_names[c]);
        double weight = r == SIZE_MAX ? 0 : parts[i].counts[r];
        if (!isfinite(weight) || weight < 0)
            return iso_fail(e, ISO_ERR_DATA, "head %zu: count of class \"%s\" is not valid", i,
                            out->class_names[c]);
        if (weight == 0)
            continue;
        total += weight;
        for (size_t d = 0; d < out->dim; d++)
            row[d] += weight * (double)parts[i].head->W[r * out->dim + d];
        bias += weight * (double)parts[i].head->b[r];
    }
    if (total == 0)
        return iso_fail(e, ISO_ERR_DATA, "no head has samples of class \"%s\"",
                        out->class_names[c]);
    for (size_t d = 0; d < out->dim; d++)
        out->W[c * out->dim + d] = (float)(row[d] / total);
    out->b[c] = (float)(bias / total);
    return ISO_OK;
}

iso_err iso_linear_mean(iso_linear_head *out, const iso_head_part *parts, size_t n,
                        const char *const *class_names, size_t classes, iso_error *e)
{
    iso_err err;
    *out = (iso_linear_head){0};
    if (!n)
        return iso_fail(e, ISO_ERR_DATA, "no head given");
    for (size_t i = 1; i < n; i++)
        if (parts[i].head->dim != parts[0].head->dim)
            return iso_fail(e, ISO_ERR_SHAPE, "head %zu has %zu features, head 0 has %zu", i,
                            parts[i].head->dim, parts[0].head->dim);
    if ((err = iso_linear_init(out, classes, parts[0].head->dim, class_names, e)))
        return err;
    double *row = iso_calloc(out->dim, sizeof *row);
    if (!row)
        err = iso_nomem(e, out->dim * sizeof *row);
    for (size_t c = 0; !err && c < classes; c++)
        err = mean_of_class(out, c, row, parts, n, e);
    free(row);
    if (err)
        iso_linear_free(out);
    return err;
}
