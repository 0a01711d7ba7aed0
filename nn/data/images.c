/* Loading of image splits; see images.h. Listing is in image_list.c, decoding in decode.c.
 *
 * Files are read, digested, decoded and resized in parallel, each into its own slot; what failed
 * is taken out afterwards in order, so the result does not depend on the number of threads. */
#include "nn/data/images.h"

#include "core/fsio.h"
#include "core/parallel.h"
#include "nn/data/image_list.h"
#include "nn/data/sampler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- decoding of a list ---- */

typedef struct {
    const iso_image_options *o;
    iso_image_row *rows;
    uint8_t *pixels;
    size_t image_bytes;
    iso_error *errors; /* one an image; code ISO_OK when it is good */
} decoding;

/* size and digest of the file's bytes may be NULL. */
static iso_err read_one(const char *path, const iso_preprocess *pre, uint8_t *out, uint64_t *size,
                        iso_digest *digest, iso_error *e)
{
    iso_buf file = {0};
    uint8_t *rgb = NULL;
    int h, w;
    iso_err err = iso_read_file(path, ISO_IMAGE_FILE_MAX, &file, e);
    if (!err && size) {
        *size = file.size;
        *digest = iso_digest_of(file.data, file.size);
    }
    if (!err && !(err = iso_image_decode(file.data, file.size, &rgb, &h, &w, e)))
        err = iso_preprocess_u8(pre, rgb, h, w, out, e);
    free(rgb);
    iso_buf_free(&file);
    return err;
}

static void decode_one(void *ctx, size_t i, int worker)
{
    decoding *d = ctx;
    iso_image_row *row = &d->rows[i];
    iso_error *e = &d->errors[i];
    (void)worker;
    *e = (iso_error){0};
    char *path = iso_path_join(d->o->folder, row->path);
    e->code = path ? read_one(path, d->o->pre, d->pixels + i * d->image_bytes, &row->size,
                              &row->digest, e)
                   : iso_nomem(e, strlen(row->path));
    free(path);
}

/* The line of iso_read_file() names the whole path again; the note has it already. */
static const char *reason_of(const iso_error *e, const char *folder, const char *path)
{
    const char *text = e->text;
    size_t n = strlen(folder);
    if (!strncmp(text, folder, n) && text[n] == '/') {
        size_t m = strlen(path);
        if (!strncmp(text + n + 1, path, m) && !strncmp(text + n + 1 + m, ": ", 2))
            return text + n + 1 + m + 2;
    }
    return text;
}

static iso_err note_empty_classes(iso_image_list *l, iso_image_set *s, const char *split,
                                  iso_error *e)
{
    iso_err err = ISO_OK;
    size_t *n = iso_calloc(s->class_count, sizeof *n);
    if (!n)
        return iso_nomem(e, s->class_count * sizeof *n);
    for (size_t i = 0; i < s->count; i++)
        n[s->rows[i].label]++;
    for (size_t c = 0; !err && c < s->class_count; c++) {
        char reason[64];
        snprintf(reason, sizeof reason, "has no usable image in %s", split);
        if (!n[c])
            err = iso_image_list_note(l, ISO_NOTE_EMPTY_CLASS, s->class_names[c], reason, &s->arena,
                                      e);
    }
    free(n);
    return err;
}

/* Takes the failed images out of rows and pixels and notes them. */
static iso_err keep_good(iso_image_set *s, iso_image_list *l, const decoding *d, iso_error *e)
{
    size_t first_bad = SIZE_MAX;
    s->listed_count = l->count;
    for (size_t i = 0; i < l->count; i++) {
        const iso_error *why = &d->errors[i];
        if (why->code == ISO_ERR_MEMORY || why->code == ISO_ERR_INTERNAL) {
            if (e)
                *e = *why; /* our trouble, not the file's */
            return iso_error_context(e, "%s", l->rows[i].path);
        }
        if (why->code) {
            iso_err err =
                iso_image_list_note(l, ISO_NOTE_UNREADABLE, l->rows[i].path,
                                    reason_of(why, d->o->folder, l->rows[i].path), &s->arena, e);
            if (err)
                return err;
            if (first_bad == SIZE_MAX)
                first_bad = i;
            s->unreadable_count++;
            continue;
        }
        if (s->count != i) {
            l->rows[s->count] = l->rows[i];
            memmove(d->pixels + s->count * d->image_bytes, d->pixels + i * d->image_bytes,
                    d->image_bytes);
        }
        s->file_bytes += l->rows[s->count].size;
        s->count++;
    }
    size_t allowed = l->count / 100 > 1 ? l->count / 100 : 1;
    if (first_bad != SIZE_MAX && !d->o->allow_unreadable && s->unreadable_count > allowed) {
        const iso_error *why = &d->errors[first_bad];
        const char *path = l->notes[l->note_count - s->unreadable_count].path;
        return iso_fail(e, ISO_ERR_DATA,
                        "%zu of %zu files cannot be read (at most %zu are skipped), first %s: %s",
                        s->unreadable_count, l->count, allowed, path,
                        reason_of(why, d->o->folder, path));
    }
    return ISO_OK;
}

/* Decodes a list into s; takes ownership of its rows and notes. s has classes and arena. */
static iso_err load_list(iso_image_set *s, iso_image_list *l, const iso_image_options *o,
                         iso_error *e)
{
    decoding d = {.o = o, .rows = l->rows};
    size_t bytes;
    iso_err err;
    s->pre = *o->pre;
    iso_preprocess_size(o->pre, &s->height, &s->width);
    d.image_bytes = (size_t)s->height * (size_t)s->width * 3;
    if (!iso_mul_size(l->count, d.image_bytes, &bytes)) {
        err = iso_nomem(e, SIZE_MAX);
        goto done;
    }
    s->pixels = d.pixels = iso_alloc_aligned(l->count ? l->count : 1, d.image_bytes);
    d.errors = iso_calloc(l->count, sizeof *d.errors);
    if (!s->pixels || !d.errors) {
        err = iso_nomem(e, bytes);
        goto done;
    }
    iso_parallel_for(l->count, 4, decode_one, &d);
    s->rows = l->rows;
    if ((err = keep_good(s, l, &d, e)) || (err = note_empty_classes(l, s, o->split, e)))
        goto done;
    if (!s->count)
        err = iso_fail(e, ISO_ERR_DATA, "split \"%s\" has no image", o->split);
done:
    s->rows = l->rows;
    s->notes = l->notes;
    s->note_count = l->note_count;
    *l = (iso_image_list){0};
    free(d.errors);
    return err;
}

/* ---- public ---- */

iso_err iso_image_read(const char *path, const iso_preprocess *pre, uint8_t *out, iso_error *e)
{
    iso_err err = read_one(path, pre, out, NULL, NULL, e);
    if (err && e && !strstr(e->text, path))
        iso_error_context(e, "%s", path);
    return err;
}

void iso_images_free(iso_image_set *s)
{
    free(s->rows);
    free(s->pixels);
    free(s->tokens);
    free(s->notes);
    iso_arena_free(&s->arena);
    *s = (iso_image_set){0};
}

static iso_err set_classes(iso_image_set *s, const iso_image_options *o, iso_error *e)
{
    if (!o->class_names)
        return iso_images_classes(o->folder, &s->arena, &s->class_names, &s->class_count, e);
    if (!iso_is_dir(o->folder))
        return iso_fail(e, ISO_ERR_DATA, "%s: is not a folder that can be read", o->folder);
    s->class_names = iso_arena_alloc(&s->arena, o->class_count, sizeof *s->class_names);
    if (!s->class_names)
        return iso_nomem(e, o->class_count * sizeof *s->class_names);
    for (size_t i = 0; i < o->class_count; i++)
        if (!(s->class_names[i] = iso_arena_strdup(&s->arena, o->class_names[i])))
            return iso_nomem(e, strlen(o->class_names[i]));
    s->class_count = o->class_count;
    return ISO_OK;
}

static iso_err list_split(iso_image_set *s, iso_image_list *l, const iso_image_options *o,
                          iso_error *e)
{
    iso_err err = set_classes(s, o, e);
    if (err)
        return err;
    err = iso_image_list_fill(l, o->folder, o->split, s->class_names, s->class_count,
                              o->limit_per_class, &s->arena, e);
    return err ? iso_error_context(e, "%s", o->folder) : ISO_OK;
}

iso_err iso_images_load(iso_image_set *s, const iso_image_options *o, iso_error *e)
{
    iso_image_list l = {0};
    *s = (iso_image_set){0};
    iso_err err = list_split(s, &l, o, e);
    if (!err && (err = load_list(s, &l, o, e)))
        iso_error_context(e, "%s", o->folder);
    iso_image_list_free(&l);
    if (err)
        iso_images_free(s);
    return err;
}

/* Moves the drawn share of `all` into `drawn`; the order of both stays. */
static iso_err draw(iso_image_list *all, iso_image_list *drawn, size_t classes, double share,
                    uint64_t seed, iso_error *e)
{
    iso_err err = ISO_OK;
    size_t kept = 0, n = all->count;
    int *labels = iso_calloc(n, sizeof *labels);
    bool *is_val = iso_calloc(n, sizeof *is_val);
    uint32_t *scratch = iso_calloc(n, sizeof *scratch);
    if (!labels || !is_val || !scratch) {
        err = iso_nomem(e, n * sizeof *labels);
        goto done;
    }
    for (size_t i = 0; i < n; i++)
        labels[i] = all->rows[i].label;
    iso_split_classes(labels, n, classes, share, seed, is_val, scratch);
    for (size_t i = 0; !err && i < n; i++)
        if (is_val[i])
            err = iso_image_list_add(drawn, &all->rows[i], e);
        else
            all->rows[kept++] = all->rows[i];
    all->count = kept;
done:
    free(labels);
    free(is_val);
    free(scratch);
    return err;
}

iso_err iso_images_load_train_val(iso_image_set *train, iso_image_set *val,
                                  const iso_image_options *o, double val_share, uint64_t seed,
                                  iso_error *e)
{
    iso_image_options ot = *o, ov = *o;
    iso_image_list lt = {0}, lv = {0};
    iso_err err;
    *train = *val = (iso_image_set){0};
    ot.split = "train";
    ov.split = "val";
    if ((err = list_split(train, &lt, &ot, e)))
        goto done;
    ov.class_names = train->class_names; /* both number the classes alike */
    ov.class_count = train->class_count;
    if (iso_images_has_split(o->folder, "val")) {
        ov.limit_per_class = 0; /* few-sample studies limit what is trained on */
        err = list_split(val, &lv, &ov, e);
    } else if (!(err = set_classes(val, &ov, e)) &&
               !(err = draw(&lt, &lv, train->class_count, val_share, seed, e))) {
        for (size_t i = 0; !err && i < lv.count; i++) { /* val's strings live in val's arena */
            lv.rows[i].path = iso_arena_strdup(&val->arena, lv.rows[i].path);
            lv.rows[i].group = iso_arena_strdup(&val->arena, lv.rows[i].group);
            if (!lv.rows[i].path || !lv.rows[i].group)
                err = iso_nomem(e, 0);
        }
    }
    if (err)
        goto done;
    if ((err = load_list(train, &lt, &ot, e)) || (lv.count && (err = load_list(val, &lv, &ov, e))))
        iso_error_context(e, "%s", o->folder);
done:
    iso_image_list_free(&lt);
    iso_image_list_free(&lv);
    if (err) {
        iso_images_free(train);
        iso_images_free(val);
    }
    return err;
}

typedef struct {
    const iso_image_set *s;
    const uint32_t *idx;
    float *out;
} batching;

static void batch_one(void *ctx, size_t i, int worker)
{
    batching *b = ctx;
    (void)worker;
    size_t n = (size_t)b->s->height * (size_t)b->s->width * 3;
    iso_preprocess_float(&b->s->pre, b->s->pixels + b->idx[i] * n, b->out + i * n);
}

void iso_images_batch(const iso_image_set *s, const uint32_t *idx, size_t n, float *out)
{
    batching b = {s, idx, out};
    iso_parallel_for(n, 4, batch_one, &b);
}

void iso_images_labels(const iso_image_set *s, int *out)
{
    for (size_t i = 0; i < s->count; i++)
        out[i] = s->rows[i].label;
}

iso_digest iso_images_digest(const iso_image_set *s)
{
    iso_hasher h;
    iso_hasher_init(&h);
    for (size_t i = 0; i < s->count; i++) {
        const iso_image_row *r = &s->rows[i];
        const char *name = s->class_names[r->label];
        iso_hasher_add(&h, r->path, strlen(r->path) + 1);
        iso_hasher_add(&h, name, strlen(name) + 1);
        iso_hasher_add(&h, r->digest.b, sizeof r->digest.b);
    }
    return iso_hasher_end(&h);
}
