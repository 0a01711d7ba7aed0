/* Checks of a data folder; see train_check.h. */
#include "cli/train_check.h"

#include "cli/table.h"
#include "core/log.h"
#include "nn/data/texts.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SPLITS = 3, CHECK_SIDE = 16, SHOWN = 5, FEW = 5, COLUMNS = 5 };

static const char *const split_names[SPLITS] = {"train", "val", "test"};

typedef struct {
    iso_image_set split[SPLITS];
    bool is_there[SPLITS];
    iso_arena arena;
    const char **class_names;
    size_t classes;
    iso_json *answer, *findings;
    bool is_json;
} checking;

/* One line under the table, and an entry of "findings". */
static void found(checking *c, const char *kind, const char *where, const char *what)
{
    char quoted[512];
    iso_json *o = iso_json_object();
    iso_log_quote(quoted, sizeof quoted, where);
    iso_json_set(o, "kind", iso_json_string(kind));
    iso_json_set(o, "where", iso_json_string(where));
    iso_json_set(o, "what", iso_json_string(what));
    iso_json_push(c->findings, o);
    if (!c->is_json)
        printf("%s: %s\n", quoted, what);
}

static iso_err load(checking *c, const char *folder, iso_error *e)
{
    iso_preprocess pre;
    bool is_text = iso_texts_are_at(folder);
    iso_err err = ISO_OK;
    if (!is_text)
        err = iso_images_classes(folder, &c->arena, &c->class_names, &c->classes, e);
    iso_preprocess_default(&pre, CHECK_SIDE); /* every file is decoded as training would */
    for (int k = 0; !err && k < SPLITS; k++) {
        iso_image_options o = {.folder = folder,
                               .split = split_names[k],
                               .pre = &pre,
                               .allow_unreadable = true,
                               .class_names = c->class_names,
                               .class_count = c->classes};
        iso_error own;
        err = is_text ? iso_texts_load(&c->split[k], &o, &(iso_text_coding){0}, &own)
                      : iso_images_load(&c->split[k], &o, &own);
        if (!err && is_text && k == 0) { /* the labels of all splits */
            c->class_names = c->split[0].class_names;
            c->classes = c->split[0].class_count;
        }
        c->is_there[k] = !err;
        if (err == ISO_ERR_MEMORY || err == ISO_ERR_INTERNAL || (err && k == 0)) {
            *e = own;
            return err;
        }
        err = ISO_OK; /* val and test may be missing */
    }
    return err;
}

static size_t count_of(const iso_image_set *s, size_t label)
{
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++)
        n += s->rows[i].label == (int)label;
    return n;
}

/* Of unreadable files of a class, by the class folder in their path. */
static size_t unreadable_of(const checking *c, const char *class_name)
{
    size_t n = 0, m = strlen(class_name);
    for (int k = 0; k < SPLITS; k++)
        for (size_t i = 0; i < c->split[k].note_count; i++) {
            const iso_image_note *note = &c->split[k].notes[i];
            const char *inner = strchr(note->path, '/');
            n += note->kind == ISO_NOTE_UNREADABLE && inner && !strncmp(inner + 1, class_name, m) &&
                 inner[1 + m] == '/';
        }
    return n;
}

static void classes_table(checking *c)
{
    static const iso_column columns[COLUMNS] = {{"class", "class", ISO_CELL_TEXT},
                                                {"train", "train", ISO_CELL_COUNT},
                                                {"val", "val", ISO_CELL_COUNT},
                                                {"test", "test", ISO_CELL_COUNT},
                                                {"unreadable", "unreadable", ISO_CELL_COUNT}};
    iso_json *rows = iso_json_array();
    for (size_t k = 0; k < c->classes; k++) {
        iso_json *o = iso_json_object();
        iso_json_set(o, "class", iso_json_string(c->class_names[k]));
        for (int s = 0; s < SPLITS; s++)
            iso_json_set(o, split_names[s], iso_json_integer((int64_t)count_of(&c->split[s], k)));
        iso_json_set(o, "unreadable",
                     iso_json_integer((int64_t)unreadable_of(c, c->class_names[k])));
        iso_json_push(rows, o);
    }
    if (!c->is_json)
        iso_table_print(rows, columns, COLUMNS);
    iso_json_set(c->answer, "classes", rows);
}

static void files_with_trouble(checking *c)
{
    size_t n = 0;
    for (int k = 0; k < SPLITS; k++)
        for (size_t i = 0; i < c->split[k].note_count; i++) {
            const iso_image_note *note = &c->split[k].notes[i];
            if (note->kind == ISO_NOTE_UNREADABLE) {
                if (n++ < SHOWN)
                    found(c, "unreadable", note->path, note->reason);
            } else if (note->kind == ISO_NOTE_OTHER) {
                found(c, "other", note->path, note->reason);
            }
        }
    if (n > SHOWN && !c->is_json)
        printf("... and %zu more unreadable files\n", n - SHOWN);
    iso_json_set(c->answer, "unreadable", iso_json_integer((int64_t)n));
}

typedef struct {
    const iso_image_row *row;
    int split;
} entry;

static int by_digest(const void *a, const void *b)
{
    const entry *x = a, *y = b;
    int d = memcmp(x->row->digest.b, y->row->digest.b, ISO_DIGEST_BYTES);
    return d ? d : x->split != y->split ? x->split - y->split : strcmp(x->row->path, y->row->path);
}

/* Files with equal bytes. A pair in different splits, or under different labels, is worth a line;
 * copies inside a class are counted. */
static iso_err duplicates(checking *c, iso_error *e)
{
    size_t n = 0, total = 0, copies = 0, leaks = 0, conflicts = 0;
    for (int k = 0; k < SPLITS; k++)
        total += c->split[k].count;
    entry *all = iso_calloc(total, sizeof *all);
    if (!all)
        return iso_nomem(e, total * sizeof *all);
    for (int k = 0; k < SPLITS; k++)
        for (size_t i = 0; i < c->split[k].count; i++)
            all[n++] = (entry){&c->split[k].rows[i], k};
    qsort(all, n, sizeof *all, by_digest);
    for (size_t i = 1; i < n; i++) {
        const entry *a = &all[i - 1], *b = &all[i];
        char what[600];
        if (!iso_digest_equal(&a->row->digest, &b->row->digest))
            continue;
        copies++;
        if (a->row->label != b->row->label) {
            snprintf(what, sizeof what, "is the same picture as %s under another label",
                     a->row->path);
            if (conflicts++ < SHOWN)
                found(c, "label_conflict", b->row->path, what);
        } else if (a->split != b->split) {
            snprintf(what, sizeof what, "is also in the training or validation images: %s",
                     a->row->path);
            if (leaks++ < SHOWN)
                found(c, "leak", b->row->path, what);
        }
    }
    iso_json_set(c->answer, "exact_duplicates", iso_json_integer((int64_t)copies));
    iso_json_set(c->answer, "duplicates_across_splits", iso_json_integer((int64_t)leaks));
    iso_json_set(c->answer, "label_conflicts", iso_json_integer((int64_t)conflicts));
    if (copies && !c->is_json)
        printf("%zu exact duplicates (%zu across splits, %zu under another label)\n", copies, leaks,
               conflicts);
    free(all);
    return ISO_OK;
}

/* "scratch" and "Scratch " (U109): equal without case, spaces and separators. */
static bool spelt_alike(const char *a, const char *b)
{
    for (;;) {
        while (*a == ' ' || *a == '_' || *a == '-')
            a++;
        while (*b == ' ' || *b == '_' || *b == '-')
            b++;
        if (!*a || !*b)
            return !*a && !*b;
        if (tolower((unsigned char)*a++) != tolower((unsigned char)*b++))
            return false;
    }
}

static size_t class_findings(checking *c)
{
    size_t usable = 0;
    for (size_t k = 0; k < c->classes; k++) {
        size_t n = count_of(&c->split[0], k);
        char what[600];
        usable += n > 0;
        if (!n)
            found(c, "empty_class", c->class_names[k], "has no usable training image");
        else if (n < FEW) {
            snprintf(what, sizeof what, "has only %zu training images", n);
            found(c, "few", c->class_names[k], what);
        }
        for (size_t i = 0; i < k; i++)
            if (spelt_alike(c->class_names[i], c->class_names[k])) {
                snprintf(what, sizeof what, "is spelt almost like \"%s\": one class or two?",
                         c->class_names[i]);
                found(c, "spelling", c->class_names[k], what);
            }
    }
    return usable;
}

iso_err iso_train_check(const char *folder, bool json, iso_error *e)
{
    checking c = {.answer = iso_json_object(), .findings = iso_json_array(), .is_json = json};
    iso_err err = load(&c, folder, e);
    if (err)
        goto done;
    classes_table(&c);
    files_with_trouble(&c);
    size_t usable = class_findings(&c);
    if ((err = duplicates(&c, e)))
        goto done;
    size_t listed = 0, bad = 0;
    for (int k = 0; k < SPLITS; k++) {
        listed += c.split[k].listed_count;
        bad += c.split[k].unreadable_count;
    }
    if (usable < 2)
        err = iso_fail(e, ISO_ERR_DATA,
                       "%s: training needs images of two classes at least, there are %zu", folder,
                       usable);
    else if (bad > 1 && bad > listed / 100)
        err = iso_fail(e, ISO_ERR_DATA,
                       "%s: %zu of %zu files cannot be read, more than 1 %%: repair or remove them",
                       folder, bad, listed);
    iso_json_set(c.answer, "is_usable", iso_json_boolean(!err));
    iso_json_set(c.answer, "has_val", iso_json_boolean(c.is_there[1]));
    iso_json_set(c.answer, "has_test", iso_json_boolean(c.is_there[2]));
    iso_json_set(c.answer, "findings", c.findings);
    c.findings = NULL;
    if (json)
        iso_json_print(c.answer);
    else if (!err)
        printf("ok: %zu files of %zu classes can be trained on\n", listed - bad, usable);
done:
    for (int k = 0; k < SPLITS; k++)
        iso_images_free(&c.split[k]);
    iso_arena_free(&c.arena);
    iso_json_free(c.findings);
    iso_json_free(c.answer);
    return err;
}
