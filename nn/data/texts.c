#include "nn/data/texts.h"

#include "core/fsio.h"
#include "core/parallel.h"
#include "core/utf8.h"
#include "nn/data/image_list.h"
#include "nn/data/sampler.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { TABLE_MAX_BYTES = 256 << 20, TEXT_MAX_BYTES = 1 << 20, LABEL_MAX_BYTES = 255, COLUMNS = 32 };
enum { TRAIN, VAL, TEST, SPLITS };

static const char *const split_names[SPLITS] = {"train", "val", "test"};

/* ---- the table ---- */

typedef struct {
    const char *text, *label;
    int split;
    size_t line;
} table_row;

typedef struct {
    size_t line;
    int split; /* that it would belong to; train where that cannot be told */
    const char *reason;
} bad_line;

typedef struct {
    iso_buf bytes; /* the file, cut up in place */
    char *name;    /* of the file, for notes */
    table_row *rows;
    bad_line *bad;
    size_t count, bad_count;
    int text_at, label_at, split_at; /* columns; -1: not there */
} table;

static void table_free(table *t)
{
    iso_buf_free(&t->bytes);
    free(t->name);
    free(t->rows);
    free(t->bad);
}

static int split_of(const char *name)
{
    for (int k = 0; k < SPLITS; k++)
        if (strcmp(name, split_names[k]) == 0)
            return k;
    return -1;
}

/* Cuts a line at its tabs, in place; at most COLUMNS. */
static size_t cut(char *line, char *columns[COLUMNS])
{
    size_t n = 0;
    for (char *at = line; at && n < COLUMNS; n++) {
        columns[n] = at;
        at = strchr(at, '\t');
        if (at)
            *at++ = 0;
    }
    return n;
}

static void unescape(char *s)
{
    char *out = s;
    for (; *s; s++) {
        if (*s == '\\' && (s[1] == 't' || s[1] == 'n' || s[1] == '\\')) {
            s++;
            *out++ = *s == 't' ? '\t' : *s == 'n' ? '\n' : '\\';
        } else {
            *out++ = *s;
        }
    }
    *out = 0;
}

/* NULL when the line is a row; else what is wrong. */
static const char *read_row(const table *t, char *line, size_t size, table_row *r, int *split)
{
    char *columns[COLUMNS];
    *split = TRAIN;
    if (memchr(line, 0, size))
        return "has a NUL byte";
    if (!iso_utf8_is_valid(line, size))
        return "is no UTF-8";
    size_t n = cut(line, columns);
    int last = t->text_at > t->label_at ? t->text_at : t->label_at;
    if ((int)n <= last || (int)n <= t->split_at)
        return "has too few columns";
    if (t->split_at >= 0 && (*split = split_of(columns[t->split_at])) < 0) {
        *split = TRAIN;
        return "has a split that is none of train, val, test";
    }
    *r = (table_row){.text = columns[t->text_at], .label = columns[t->label_at], .split = *split};
    if (!r->text[0] || strlen(r->text) > TEXT_MAX_BYTES)
        return "has no text, or one of more than 1 MiB";
    if (!r->label[0] || strlen(r->label) > LABEL_MAX_BYTES)
        return "has no label, or one of more than 255 bytes";
    unescape(columns[t->text_at]);
    return NULL;
}

static iso_err read_header(table *t, char *line, iso_error *e)
{
    char *columns[COLUMNS];
    size_t n = cut(line, columns);
    t->text_at = t->label_at = t->split_at = -1;
    for (size_t i = 0; i < n; i++) {
        t->text_at = strcmp(columns[i], "text") == 0 ? (int)i : t->text_at;
        t->label_at = strcmp(columns[i], "label") == 0 ? (int)i : t->label_at;
        t->split_at = strcmp(columns[i], "split") == 0 ? (int)i : t->split_at;
    }
    if (t->text_at < 0 || t->label_at < 0)
        return iso_fail(e, ISO_ERR_DATA, "the first line must name the columns text and label");
    return ISO_OK;
}

static iso_err parse(table *t, iso_error *e)
{
    char *at = (char *)t->bytes.data, *end = at + t->bytes.size;
    size_t lines = 1;
    for (size_t i = 0; i < t->bytes.size; i++)
        lines += at[i] == '\n';
    t->rows = iso_calloc(lines, sizeof *t->rows);
    t->bad = iso_calloc(lines, sizeof *t->bad);
    if (!t->rows || !t->bad)
        return iso_nomem(e, lines * sizeof *t->rows);
    if (t->bytes.size >= 3 && memcmp(at, "\xef\xbb\xbf", 3) == 0) /* byte order mark */
        at += 3;
    for (size_t line = 1; at < end; line++) {
        char *stop = memchr(at, '\n', (size_t)(end - at)); /* bytes.data ends with a NUL */
        size_t size = stop ? (size_t)(stop - at) : (size_t)(end - at);
        if (size && at[size - 1] == '\r')
            size--;
        at[size] = 0;
        if (line == 1) {
            iso_err err = read_header(t, at, e);
            if (err)
                return err;
        } else if (size) {
            table_row *r = &t->rows[t->count];
            int split;
            const char *reason = read_row(t, at, size, r, &split);
            r->line = line;
            if (reason)
                t->bad[t->bad_count++] = (bad_line){line, split, reason};
            else
                t->count++;
        }
        at = stop ? stop + 1 : end;
    }
    return ISO_OK;
}

static iso_err table_read(table *t, const char *path, iso_error *e)
{
    *t = (table){0};
    char *file = iso_is_dir(path) ? iso_path_join(path, "texts.tsv") : iso_strdup(path);
    t->name = file ? iso_strdup(iso_path_base(file)) : NULL;
    iso_err err =
        t->name ? iso_read_file(file, TABLE_MAX_BYTES, &t->bytes, e) : iso_nomem(e, strlen(path));
    if (!err && (err = parse(t, e)))
        iso_error_context(e, "%s", file);
    free(file);
    return err;
}

/* ---- sets ---- */

static int by_name(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* The classes that are wanted, or all labels of the table in order of name. */
static iso_err set_classes(iso_image_set *s, const table *t, const iso_image_options *o,
                           iso_error *e)
{
    size_t n = o->class_names ? o->class_count : t->count, kept = 0;
    const char **names = iso_calloc(n, sizeof *names);
    if (!names)
        return iso_nomem(e, n * sizeof *names);
    for (size_t i = 0; i < n; i++)
        names[i] = o->class_names ? o->class_names[i] : t->rows[i].label;
    if (!o->class_names) {
        qsort(names, n, sizeof *names, by_name);
        for (size_t i = 0; i < n; i++)
            if (!i || strcmp(names[i], names[kept - 1]) != 0)
                names[kept++] = names[i];
        n = kept;
    }
    iso_err err = n > ISO_IMAGE_CLASSES_MAX ? iso_fail(e, ISO_ERR_DATA, "%zu classes; at most %d",
                                                       n, ISO_IMAGE_CLASSES_MAX)
                                            : ISO_OK;
    s->class_names = iso_arena_calloc(&s->arena, n, sizeof *s->class_names);
    s->class_count = n;
    for (size_t i = 0; !err && i < n; i++)
        if (!s->class_names || !(s->class_names[i] = iso_arena_strdup(&s->arena, names[i])))
            err = iso_nomem(e, n * sizeof *names);
    free(names);
    return err;
}

static int label_of(const iso_image_set *s, const char *label)
{
    for (size_t i = 0; i < s->class_count; i++)
        if (strcmp(s->class_names[i], label) == 0)
            return (int)i;
    return -1;
}

static iso_err note_unknown(iso_image_set *s, iso_image_list *l, const char *label, iso_error *e)
{
    for (size_t i = 0; i < l->note_count; i++)
        if (l->notes[i].kind == ISO_NOTE_UNKNOWN_CLASS && strcmp(l->notes[i].path, label) == 0)
            return ISO_OK;
    return iso_image_list_note(l, ISO_NOTE_UNKNOWN_CLASS, label,
                               "is none of the wanted classes: left out", &s->arena, e);
}

static iso_err note_bad(iso_image_set *s, iso_image_list *l, const table *t,
                        const iso_image_options *o, int split, iso_error *e)
{
    size_t first = SIZE_MAX;
    char path[300];
    for (size_t i = 0; i < t->bad_count; i++) {
        if (t->bad[i].split != split)
            continue;
        snprintf(path, sizeof path, "%.200s:%zu", t->name, t->bad[i].line);
        iso_err err =
            iso_image_list_note(l, ISO_NOTE_UNREADABLE, path, t->bad[i].reason, &s->arena, e);
        if (err)
            return err;
        first = first == SIZE_MAX ? i : first;
        s->unreadable_count++;
    }
    size_t allowed = s->listed_count / 100 > 1 ? s->listed_count / 100 : 1;
    if (s->unreadable_count > allowed && !o->allow_unreadable)
        return iso_fail(e, ISO_ERR_DATA,
                        "%zu of %zu lines cannot be used (at most %zu are skipped), first line "
                        "%zu: %s",
                        s->unreadable_count, s->listed_count, allowed, t->bad[first].line,
                        t->bad[first].reason);
    return ISO_OK;
}

static iso_err add_row(iso_image_set *s, iso_image_list *l, const table *t, const table_row *r,
                       int label, iso_error *e)
{
    char path[300];
    size_t size = strlen(r->text);
    snprintf(path, sizeof path, "%.200s:%zu", t->name, r->line);
    iso_image_row row = {.path = iso_arena_strdup(&s->arena, path),
                         .group = "",
                         .label = label,
                         .text = iso_arena_strdup(&s->arena, r->text),
                         .size = size,
                         .digest = iso_digest_of(r->text, size)};
    if (!row.path || !row.text)
        return iso_nomem(e, size);
    s->file_bytes += size;
    return iso_image_list_add(l, &row, e);
}

typedef struct {
    iso_image_set *s;
    const iso_text_coding *c;
} coding;

static void code_item(void *ctx, size_t i, int worker)
{
    const coding *c = ctx;
    const char *text = c->s->rows[i].text;
    (void)worker;
    iso_text_encode(c->c, text, strlen(text), c->s->tokens + i * c->c->room);
}

static iso_err code_all(iso_image_set *s, const iso_text_coding *c, iso_error *e)
{
    size_t n;
    if (!c->tokenizer)
        return ISO_OK;
    if (!iso_mul_size(s->count, c->room, &n) || !(s->tokens = iso_calloc(n, sizeof *s->tokens)))
        return iso_nomem(e, s->count * c->room * sizeof *s->tokens);
    s->token_room = c->room;
    iso_parallel_for(s->count, 16, code_item, &(coding){s, c});
    return ISO_OK;
}

/* Rows of one split into s, which has its classes. taken: of the table's rows, which belong to s
 * (NULL: those of the split). */
static iso_err fill(iso_image_set *s, const table *t, const iso_image_options *o, int split,
                    const bool *taken, const iso_text_coding *c, iso_error *e)
{
    iso_image_list l = {0};
    iso_err err = ISO_OK;
    size_t *seen = iso_calloc(s->class_count, sizeof *seen);
    if (!seen)
        return iso_nomem(e, s->class_count * sizeof *seen);
    for (size_t i = 0; i < t->bad_count && !taken; i++)
        s->listed_count += t->bad[i].split == split;
    for (size_t i = 0; !err && i < t->count; i++) {
        if (taken ? !taken[i] : t->rows[i].split != split)
            continue;
        int label = label_of(s, t->rows[i].label);
        s->listed_count++;
        if (label < 0)
            err = note_unknown(s, &l, t->rows[i].label, e);
        else if (!o->limit_per_class || seen[label]++ < o->limit_per_class)
            err = add_row(s, &l, t, &t->rows[i], label, e);
        else
            continue;
    }
    if (!err && !taken)
        err = note_bad(s, &l, t, o, split, e);
    s->rows = l.rows;
    s->count = l.count;
    memset(seen, 0, s->class_count * sizeof *seen);
    for (size_t i = 0; i < s->count; i++)
        seen[s->rows[i].label]++;
    for (size_t k = 0; !err && k < s->class_count; k++) {
        char reason[64];
        snprintf(reason, sizeof reason, "has no usable text in %s", split_names[split]);
        if (!seen[k])
            err = iso_image_list_note(&l, ISO_NOTE_EMPTY_CLASS, s->class_names[k], reason,
                                      &s->arena, e);
    }
    s->notes = l.notes;
    s->note_count = l.note_count;
    free(seen);
    return err ? err : code_all(s, c, e);
}

/* ---- public ---- */

bool iso_texts_are_at(const char *path)
{
    size_t n = strlen(path);
    if (!iso_is_dir(path))
        return n > 4 && strcmp(path + n - 4, ".tsv") == 0 && iso_path_exists(path);
    char *file = iso_path_join(path, "texts.tsv");
    bool is_there = file && iso_path_exists(file);
    free(file);
    return is_there;
}

bool iso_texts_have_split(const char *path, const char *split)
{
    table t;
    bool has = false;
    if (!table_read(&t, path, NULL))
        for (size_t i = 0; i < t.count && !has; i++)
            has = t.rows[i].split == split_of(split);
    table_free(&t);
    return has;
}

void iso_text_encode(const iso_text_coding *c, const char *text, size_t n, int32_t *out)
{
    size_t count = iso_tokenizer_encode(c->tokenizer, text, n, out, c->room);
    for (size_t i = count; i < c->room; i++)
        out[i] = -1;
}

iso_err iso_texts_load(iso_image_set *s, const iso_image_options *o, const iso_text_coding *c,
                       iso_error *e)
{
    table t;
    int split = split_of(o->split);
    *s = (iso_image_set){0};
    iso_err err = table_read(&t, o->folder, e);
    if (!err && split < 0)
        err = iso_fail(e, ISO_ERR_USAGE, "split \"%.40s\"; expected train, val or test", o->split);
    if (!err && !(err = set_classes(s, &t, o, e)) && !(err = fill(s, &t, o, split, NULL, c, e)) &&
        !s->count)
        err = iso_fail(e, ISO_ERR_DATA, "%s: split \"%s\" has no text", o->folder, o->split);
    table_free(&t);
    if (err)
        iso_images_free(s);
    return err;
}

/* Which of the training rows are drawn for validation. */
static iso_err draw(const iso_image_set *s, const table *t, const iso_image_options *o,
                    double share, uint64_t seed, bool *in_train, bool *in_val, iso_error *e)
{
    iso_err err = ISO_OK;
    size_t n = 0;
    int *labels = iso_calloc(t->count, sizeof *labels);
    size_t *at = iso_calloc(t->count, sizeof *at), *seen = iso_calloc(s->class_count, sizeof *seen);
    bool *is_val = iso_calloc(t->count, sizeof *is_val);
    uint32_t *scratch = iso_calloc(t->count, sizeof *scratch);
    if (!labels || !at || !seen || !is_val || !scratch) {
        err = iso_nomem(e, t->count * sizeof *labels);
        goto done;
    }
    for (size_t i = 0; i < t->count; i++) {
        int label = label_of(s, t->rows[i].label);
        if (t->rows[i].split != TRAIN || label < 0 ||
            (o->limit_per_class && seen[label]++ >= o->limit_per_class))
            continue;
        labels[n] = label;
        at[n++] = i;
    }
    iso_split_classes(labels, n, s->class_count, share, seed, is_val, scratch);
    for (size_t i = 0; i < n; i++)
        (is_val[i] ? in_val : in_train)[at[i]] = true;
done:
    free(labels);
    free(at);
    free(seen);
    free(is_val);
    free(scratch);
    return err;
}

iso_err iso_texts_load_train_val(iso_image_set *train, iso_image_set *val,
                                 const iso_image_options *o, double val_share, uint64_t seed,
                                 const iso_text_coding *c, iso_error *e)
{
    table t;
    iso_image_options ov = *o;
    bool *in_train = NULL, *in_val = NULL, has_val = false;
    *train = *val = (iso_image_set){0};
    iso_err err = table_read(&t, o->folder, e);
    if (err || (err = set_classes(train, &t, o, e)))
        goto done;
    ov.class_names = train->class_names; /* both number the classes alike */
    ov.class_count = train->class_count;
    ov.limit_per_class = 0; /* few-sample studies limit what is trained on */
    if ((err = set_classes(val, &t, &ov, e)))
        goto done;
    for (size_t i = 0; i < t.count && !has_val; i++)
        has_val = t.rows[i].split == VAL;
    if (has_val) {
        if (!(err = fill(train, &t, o, TRAIN, NULL, c, e)))
            err = fill(val, &t, &ov, VAL, NULL, c, e);
    } else {
        in_train = iso_calloc(t.count, sizeof *in_train);
        in_val = iso_calloc(t.count, sizeof *in_val);
        if (!in_train || !in_val)
            err = iso_nomem(e, t.count);
        else if (!(err = draw(train, &t, o, val_share, seed, in_train, in_val, e)) &&
                 !(err = fill(train, &t, &ov, TRAIN, in_train, c, e)))
            err = fill(val, &t, &ov, VAL, in_val, c, e);
        iso_image_list bad = {.notes = train->notes,
                              .note_count = train->note_count,
                              .note_capacity = train->note_count};
        if (!err) {
            train->listed_count += t.bad_count;
            err = note_bad(train, &bad, &t, o, TRAIN, e);
        }
        train->notes = bad.notes;
        train->note_count = bad.note_count;
    }
    if (!err && !train->count)
        err = iso_fail(e, ISO_ERR_DATA, "split \"train\" has no text");
done:
    if (err && e)
        iso_error_context(e, "%s", o->folder);
    free(in_train);
    free(in_val);
    table_free(&t);
    if (err) {
        iso_images_free(train);
        iso_images_free(val);
    }
    return err;
}
