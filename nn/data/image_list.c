/* Listing of image folders; see image_list.h.
 *
 * manifest.tsv comes from outside (specs/security.md 9.1, TSV): long lines, NUL, bad UTF-8, missing
 * columns and paths that leave the folder are refused with their line number. */
#include "nn/data/image_list.h"

#include "core/fsio.h"
#include "core/utf8.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MANIFEST_MAX_BYTES = 64 << 20, LINE_MAX_BYTES = 16 << 10, NAME_MAX_BYTES = 255 };

static const char *const splits[] = {"train", "val", "test"};

/* ---- growing lists ---- */

static iso_err grow(void **items, size_t *capacity, size_t count, size_t item_bytes, iso_error *e)
{
    size_t bytes;
    if (count < *capacity)
        return ISO_OK;
    size_t wanted = *capacity ? *capacity * 2 : 64;
    if (!iso_mul_size(wanted, item_bytes, &bytes))
        return iso_nomem(e, SIZE_MAX);
    void *p = realloc(*items, bytes);
    if (!p)
        return iso_nomem(e, bytes);
    *items = p;
    *capacity = wanted;
    return ISO_OK;
}

iso_err iso_image_list_add(iso_image_list *l, const iso_image_row *row, iso_error *e)
{
    void *items = l->rows;
    iso_err err = grow(&items, &l->capacity, l->count, sizeof *l->rows, e);
    l->rows = items;
    if (!err)
        l->rows[l->count++] = *row;
    return err;
}

iso_err iso_image_list_note(iso_image_list *l, iso_note_kind kind, const char *path,
                            const char *reason, iso_arena *arena, iso_error *e)
{
    void *items = l->notes;
    iso_err err = grow(&items, &l->note_capacity, l->note_count, sizeof *l->notes, e);
    l->notes = items;
    if (err)
        return err;
    iso_image_note n = {kind, iso_arena_strdup(arena, path), iso_arena_strdup(arena, reason)};
    if (!n.path || !n.reason)
        return iso_nomem(e, strlen(path) + strlen(reason));
    l->notes[l->note_count++] = n;
    return ISO_OK;
}

void iso_image_list_free(iso_image_list *l)
{
    free(l->rows);
    free(l->notes);
    *l = (iso_image_list){0};
}

/* ---- names ---- */

/* UTF-8 without control characters, 1..255 bytes: it will stand in JSON and in logs. */
static bool is_clean(const char *s)
{
    size_t n = strlen(s);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)s[i] < 0x20 || s[i] == 0x7F)
            return false;
    return n >= 1 && n <= NAME_MAX_BYTES && iso_utf8_is_valid(s, n);
}

static int class_index(const char *const *names, size_t n, const char *name)
{
    for (size_t i = 0; i < n; i++)
        if (!strcmp(names[i], name))
            return (int)i;
    return -1;
}

static int compare_names(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* A set of strings, kept unsorted while it grows. */
typedef struct {
    const char **items;
    size_t count, capacity;
} name_set;

static iso_err name_set_add(name_set *s, const char *name, iso_arena *arena, iso_error *e)
{
    if (class_index(s->items, s->count, name) >= 0)
        return ISO_OK;
    if (s->count == ISO_IMAGE_CLASSES_MAX)
        return iso_fail(e, ISO_ERR_DATA, "more than %d classes", ISO_IMAGE_CLASSES_MAX);
    if (!is_clean(name)) /* the name itself could garble the line */
        return iso_fail(e, ISO_ERR_DATA,
                        "class %zu has a name that is not clean UTF-8 of at most %d bytes",
                        s->count, NAME_MAX_BYTES);
    void *items = (void *)s->items;
    iso_err err = grow(&items, &s->capacity, s->count, sizeof *s->items, e);
    s->items = items;
    if (err)
        return err;
    const char *copy = iso_arena_strdup(arena, name);
    if (!copy)
        return iso_nomem(e, strlen(name));
    s->items[s->count++] = copy;
    return ISO_OK;
}

/* ---- manifest.tsv ---- */

typedef struct {
    iso_buf text; /* NULs in place of tabs and newlines while lines are taken */
    size_t at;
    size_t line;
    size_t column[4]; /* of path, class, group, split; SIZE_MAX where there is none */
    const char *what;
} manifest;

enum { PATH, CLASS, GROUP, SPLIT, FIELDS };
static const char *const field_names[FIELDS] = {"path", "class", "group", "split"};

/* The next line as its fields of interest; false at the end. Columns count from 0. */
static iso_err next_line(manifest *m, bool is_head, char *fields[FIELDS], bool *is_end,
                         iso_error *e)
{
    char *p = (char *)m->text.data + m->at;
    size_t left = m->text.size - m->at;
    *is_end = left == 0;
    if (*is_end)
        return ISO_OK;
    m->line++;
    char *newline = memchr(p, '\n', left);
    size_t n = newline ? (size_t)(newline - p) : left;
    m->at += n + (newline ? 1 : 0);
    if (n > LINE_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "%s:%zu: line of %zu bytes, the limit is %d", m->what,
                        m->line, n, LINE_MAX_BYTES);
    if (memchr(p, 0, n))
        return iso_fail(e, ISO_ERR_DATA, "%s:%zu: holds a NUL byte", m->what, m->line);
    p[n] = 0; /* iso_read_file leaves room for one more */
    if (n && p[n - 1] == '\r')
        p[n - 1] = 0;
    for (int f = 0; f < FIELDS; f++) {
        fields[f] = NULL;
        if (is_head)
            m->column[f] = SIZE_MAX;
    }
    size_t column = 0;
    for (char *field = p; field; column++) {
        char *tab = strchr(field, '\t');
        if (tab)
            *tab = 0;
        for (int f = 0; f < FIELDS; f++) {
            if (is_head && !strcmp(field, field_names[f]))
                m->column[f] = column;
            if (m->column[f] == column)
                fields[f] = field;
        }
        field = tab ? tab + 1 : NULL;
    }
    return ISO_OK;
}

static iso_err manifest_open(manifest *m, const char *path, iso_error *e)
{
    char *fields[FIELDS];
    bool is_end;
    *m = (manifest){.what = "manifest.tsv"};
    iso_err err = iso_read_file(path, MANIFEST_MAX_BYTES, &m->text, e);
    if (!err)
        err = next_line(m, true, fields, &is_end, e);
    if (err)
        return err;
    if (m->column[PATH] == SIZE_MAX || m->column[CLASS] == SIZE_MAX ||
        m->column[SPLIT] == SIZE_MAX || is_end)
        return iso_fail(e, ISO_ERR_DATA,
                        "%s:1: the first line must name the columns path, class and split",
                        m->what);
    return ISO_OK;
}

/* Relative, below the folder. */
static bool stays_inside(const char *path)
{
    if (!*path || *path == '/')
        return false;
    for (const char *p = path; p;) {
        size_t n = strcspn(p, "/");
        if (n == 2 && p[0] == '.' && p[1] == '.')
            return false;
        p = p[n] ? p + n + 1 : NULL;
    }
    return true;
}

/* Next data row; blank lines are passed over. */
static iso_err manifest_row(manifest *m, char *fields[FIELDS], bool *is_end, iso_error *e)
{
    iso_err err;
    do {
        if ((err = next_line(m, false, fields, is_end, e)) || *is_end)
            return err;
    } while (!fields[PATH] || (!fields[PATH][0] && !fields[CLASS]));
    if (!fields[CLASS] || !fields[SPLIT])
        return iso_fail(e, ISO_ERR_DATA, "%s:%zu: %s is missing", m->what, m->line,
                        fields[CLASS] ? "split" : "class");
    if (!is_clean(fields[CLASS]))
        return iso_fail(e, ISO_ERR_DATA, "%s:%zu: class is not clean UTF-8 of 1 to %d bytes",
                        m->what, m->line, NAME_MAX_BYTES);
    if (!stays_inside(fields[PATH]))
        return iso_fail(e, ISO_ERR_DATA, "%s:%zu: path leaves the data folder", m->what, m->line);
    return ISO_OK;
}

static iso_err manifest_classes(const char *path, name_set *names, iso_arena *arena, iso_error *e)
{
    manifest m;
    char *fields[FIELDS];
    bool is_end = false;
    iso_err err = manifest_open(&m, path, e);
    while (!err && !(err = manifest_row(&m, fields, &is_end, e)) && !is_end)
        err = name_set_add(names, fields[CLASS], arena, e);
    iso_buf_free(&m.text);
    return err;
}

/* ---- what both forms do with a file ---- */

typedef struct {
    iso_image_list *list;
    const char *folder, *split;
    const char *const *class_names;
    size_t classes, limit;
    size_t *taken;    /* of each class */
    name_set unknown; /* classes noted as unknown */
    iso_arena *arena;
} listing;

static iso_err note_unknown(listing *s, const char *class_name, iso_error *e)
{
    if (class_index(s->unknown.items, s->unknown.count, class_name) >= 0)
        return ISO_OK;
    iso_err err = name_set_add(&s->unknown, class_name, s->arena, e);
    if (err)
        return err;
    return iso_image_list_note(s->list, ISO_NOTE_UNKNOWN_CLASS, class_name,
                               "is not a class of this task; its images are left out", s->arena, e);
}

static iso_err take(listing *s, int label, const char *path, const char *group, iso_error *e)
{
    if (s->limit && s->taken[label] >= s->limit)
        return ISO_OK;
    s->taken[label]++;
    iso_image_row row = {.path = iso_arena_strdup(s->arena, path),
                         .group = iso_arena_strdup(s->arena, group),
                         .label = label};
    if (!row.path || !row.group)
        return iso_nomem(e, strlen(path));
    return iso_image_list_add(s->list, &row, e);
}

static iso_err list_manifest(listing *s, const char *path, iso_error *e)
{
    manifest m;
    char *fields[FIELDS];
    bool is_end = false;
    iso_err err = manifest_open(&m, path, e);
    while (!err && !(err = manifest_row(&m, fields, &is_end, e)) && !is_end) {
        if (strcmp(fields[SPLIT], s->split) != 0)
            continue;
        int label = class_index(s->class_names, s->classes, fields[CLASS]);
        err = label < 0 ? note_unknown(s, fields[CLASS], e)
                        : take(s, label, fields[PATH], fields[GROUP] ? fields[GROUP] : "", e);
    }
    iso_buf_free(&m.text);
    return err;
}

static iso_err list_class_folder(listing *s, int label, const char *relative, iso_error *e)
{
    iso_names files = {0};
    char *full = iso_path_join(s->folder, relative);
    iso_err err = full ? iso_list_dir(full, &files, e) : iso_nomem(e, strlen(relative));
    for (size_t i = 0; !err && i < files.count; i++) {
        if (files.names[i][0] == '.') /* editors' and desktops' own files */
            continue;
        char *path = iso_path_join(relative, files.names[i]);
        char *file = iso_path_join(full, files.names[i]);
        if (!path || !file)
            err = iso_nomem(e, strlen(relative));
        else if (iso_is_dir(file))
            err = iso_image_list_note(s->list, ISO_NOTE_OTHER, path,
                                      "is a folder inside a class folder: left out", s->arena, e);
        else
            err = take(s, label, path, "", e);
        free(path);
        free(file);
    }
    free(full);
    iso_names_free(&files);
    return err;
}

static iso_err list_folders(listing *s, iso_error *e)
{
    iso_names classes = {0};
    char *full = iso_path_join(s->folder, s->split);
    iso_err err = full ? iso_list_dir(full, &classes, e) : iso_nomem(e, strlen(s->folder));
    for (size_t i = 0; !err && i < classes.count; i++) {
        const char *name = classes.names[i];
        if (name[0] == '.')
            continue;
        char *relative = iso_path_join(s->split, name);
        char *folder = relative ? iso_path_join(s->folder, relative) : NULL;
        int label = class_index(s->class_names, s->classes, name);
        if (!folder)
            err = iso_nomem(e, strlen(name));
        else if (!iso_is_dir(folder))
            err = iso_image_list_note(s->list, ISO_NOTE_OTHER, relative,
                                      "is not a folder of a class: left out", s->arena, e);
        else if (label < 0)
            err = note_unknown(s, name, e);
        else
            err = list_class_folder(s, label, relative, e);
        free(relative);
        free(folder);
    }
    free(full);
    iso_names_free(&classes);
    return err;
}

/* ---- public ---- */

static iso_err folder_classes(const char *folder, name_set *names, iso_arena *arena, iso_error *e)
{
    iso_err err = ISO_OK;
    for (size_t k = 0; !err && k < sizeof splits / sizeof *splits; k++) {
        iso_names entries = {0};
        char *full = iso_path_join(folder, splits[k]);
        if (!full)
            return iso_nomem(e, strlen(folder));
        if (iso_is_dir(full))
            err = iso_list_dir(full, &entries, e);
        for (size_t i = 0; !err && i < entries.count; i++) {
            char *sub = iso_path_join(full, entries.names[i]);
            if (!sub)
                err = iso_nomem(e, strlen(full));
            else if (entries.names[i][0] != '.' && iso_is_dir(sub))
                err = name_set_add(names, entries.names[i], arena, e);
            free(sub);
        }
        iso_names_free(&entries);
        free(full);
    }
    return err;
}

iso_err iso_images_classes(const char *folder, iso_arena *arena, const char ***names, size_t *count,
                           iso_error *e)
{
    name_set set = {0};
    iso_err err;
    *names = NULL;
    *count = 0;
    if (!iso_is_dir(folder)) {
        struct stat st;
        if (stat(folder, &st))
            return iso_fail_errno(e, ISO_ERR_DATA, errno, "%s", folder);
        return iso_fail(e, ISO_ERR_DATA, "%s: is not a folder", folder);
    }
    char *manifest_path = iso_path_join(folder, "manifest.tsv");
    if (!manifest_path)
        return iso_nomem(e, strlen(folder));
    err = iso_path_exists(manifest_path) ? manifest_classes(manifest_path, &set, arena, e)
                                         : folder_classes(folder, &set, arena, e);
    free(manifest_path);
    if (!err && !set.count)
        err = iso_fail(e, ISO_ERR_DATA,
                       "no class folders found; images are expected as "
                       "train/CLASS/FILE, val/CLASS/FILE, test/CLASS/FILE");
    if (!err) {
        *names = iso_arena_alloc(arena, set.count, sizeof **names);
        if (*names) {
            memcpy((void *)*names, (const void *)set.items, set.count * sizeof **names);
            qsort((void *)*names, set.count, sizeof **names, compare_names);
            *count = set.count;
        } else {
            err = iso_nomem(e, set.count * sizeof **names);
        }
    }
    free((void *)set.items);
    if (err)
        iso_error_context(e, "%s", folder);
    return err;
}

iso_err iso_image_list_fill(iso_image_list *l, const char *folder, const char *split,
                            const char *const *class_names, size_t classes, size_t limit_per_class,
                            iso_arena *arena, iso_error *e)
{
    listing s = {.list = l,
                 .folder = folder,
                 .split = split,
                 .class_names = class_names,
                 .classes = classes,
                 .limit = limit_per_class,
                 .taken = iso_calloc(classes, sizeof *s.taken),
                 .arena = arena};
    char *manifest_path = iso_path_join(folder, "manifest.tsv");
    iso_err err;
    if (!manifest_path || !s.taken)
        err = iso_nomem(e, classes * sizeof *s.taken);
    else if (iso_path_exists(manifest_path))
        err = list_manifest(&s, manifest_path, e);
    else
        err = list_folders(&s, e);
    free(manifest_path);
    free(s.taken);
    free((void *)s.unknown.items);
    return err;
}

bool iso_images_has_split(const char *folder, const char *split)
{
    char *full = iso_path_join(folder, split);
    bool is_there = full && iso_is_dir(full);
    free(full);
    return is_there;
}
