/* Results to files as they come (stream.h). A file's header is known before its data, so each part
 * has its place; shards are started in order, so that an interruption loses one or two of them. */
#include "merge/stream.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 64, TRIM_BYTES = 64 << 20, RESERVE_BYTES = 16 << 20 };

typedef struct {
    char name[PATH_BYTES]; /* within the folder */
    iso_out_file file;     /* fd -1: not started, or complete */
    bool is_done, is_started;
    size_t tensors, ended; /* of it */
    uint64_t bytes;
} shard;

struct iso_stream {
    iso_stream_options o;
    bool is_folder, is_ours; /* OUT.part was made or accepted */
    char *staging;           /* OUT.part, or NULL */
    shard *shards;
    size_t shard_count;
    iso_named_tensor *tensors; /* sorted by shard, then as they came */
    size_t count, *shard_of;
    uint64_t *offsets; /* in its file */
    iso_dense_sink sink;
    atomic_ullong written;
    atomic_size_t untrimmed;
    size_t kept_shards;
    bool is_committed;
    pthread_mutex_t lock; /* over shards: started and ended by any thread */
};

/* ---- inputs ---- */
/* Pages of the inputs that were read count as ours until they are given back; the page cache keeps
 * them. Whoever still reads one faults it in again. */
static void on_touched(void *ctx, size_t bytes)
{
    iso_stream *s = ctx;
    if (atomic_fetch_add(&s->untrimmed, bytes) + bytes < TRIM_BYTES)
        return;
    atomic_store(&s->untrimmed, 0);
    for (size_t i = 0; i < s->o.map_count; i++)
        for (size_t k = 0; k < s->o.maps[i]->map_count; k++) {
            const iso_map *m = &s->o.maps[i]->maps[k];
            if (m->data)
                (void)madvise((void *)(uintptr_t)m->data, m->size, MADV_DONTNEED);
        }
}

/* Which of the shards of `like` holds these bytes; its last for bytes of others. */
static size_t shard_of_data(const iso_safetensors *like, const void *data)
{
    uintptr_t p = (uintptr_t)data;
    for (size_t k = 0; k < like->map_count; k++) {
        uintptr_t begin = (uintptr_t)like->maps[k].data;
        if (p >= begin && p < begin + like->maps[k].size)
            return k;
    }
    return like->map_count ? like->map_count - 1 : 0;
}

/* ---- files ---- */
static char *shard_path(const iso_stream *s, const shard *k)
{
    return s->is_folder ? iso_path_join(s->staging, k->name) : iso_strdup(s->o.out);
}

/* Which tensors lie in shard k: `list` (count), their indices in `index`. */
static size_t members(const iso_stream *s, size_t k, iso_named_tensor *list, size_t *index)
{
    size_t n = 0;
    for (size_t i = 0; i < s->count; i++)
        if (s->shard_of[i] == k) {
            list[n] = s->tensors[i];
            index[n++] = i;
        }
    return n;
}

static iso_err lay_out(iso_stream *s, size_t k, iso_buf *header, uint64_t *total, iso_error *e)
{
    const char *const meta[] = {"format", "pt", "isofed", s->o.recipe};
    iso_named_tensor *list = iso_calloc(s->count, sizeof *list);
    size_t *index = iso_calloc(s->count, sizeof *index), n = 0;
    uint64_t *offsets = iso_calloc(s->count, sizeof *offsets);
    iso_err err = ISO_OK;
    if (!list || !index || !offsets) {
        err = iso_nomem(e, s->count * sizeof *list);
    } else {
        n = members(s, k, list, index);
        err = iso_safetensors_layout(list, n, meta, s->o.recipe ? 2 : 1, header, offsets, total, e);
    }
    for (size_t j = 0; !err && j < n; j++)
        s->offsets[index[j]] = offsets[j];
    s->shards[k].tensors = n;
    free(list);
    free(index);
    free(offsets);
    return err;
}

/* Under the lock. */
static iso_err start_shard(iso_stream *s, size_t k, iso_error *e)
{
    shard *h = &s->shards[k];
    if (h->is_started)
        return ISO_OK;
    iso_buf header = {0};
    uint64_t total = 0;
    char *path = shard_path(s, h);
    iso_err err = path ? lay_out(s, k, &header, &total, e) : iso_nomem(e, 1);
    if (!err)
        err = iso_out_begin(&h->file, path, 0644, e);
    if (!err)
        err = iso_out_write(&h->file, header.data, header.size, e);
    h->is_started = !err;
    iso_buf_free(&header);
    free(path);
    return err;
}

static iso_err write_at(const shard *h, const void *data, size_t bytes, uint64_t at, iso_error *e)
{
    const uint8_t *p = data;
    while (bytes) {
        ssize_t n = pwrite(h->file.fd, p, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "cannot write %s", h->file.path);
        p += n;
        at += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return ISO_OK;
}

static iso_err on_part(void *ctx, size_t i, size_t first, const void *data, size_t bytes,
                       iso_error *e)
{
    iso_stream *s = ctx;
    size_t k = s->shard_of[i];
    pthread_mutex_lock(&s->lock);
    iso_err err = start_shard(s, k, e);
    pthread_mutex_unlock(&s->lock);
    if (err)
        return err;
    uint64_t at = s->offsets[i] + (uint64_t)first * iso_dtype_bytes(s->tensors[i].view.dtype);
    atomic_fetch_add(&s->written, bytes);
    return write_at(&s->shards[k], data, bytes, at, e);
}

static iso_err on_end(void *ctx, size_t i, iso_error *e)
{
    iso_stream *s = ctx;
    shard *h = &s->shards[s->shard_of[i]];
    pthread_mutex_lock(&s->lock);
    iso_err err = start_shard(s, s->shard_of[i], e); /* of empty tensors only */
    bool is_last = !err && ++h->ended == h->tensors;
    pthread_mutex_unlock(&s->lock);
    if (!err && is_last) {
        err = iso_out_commit(&h->file, e);
        h->is_done = !err;
    }
    return err;
}

/* ---- resuming ---- */
static iso_err write_identity(const iso_stream *s, iso_error *e)
{
    char hex[ISO_DIGEST_HEX], *path = iso_path_join(s->staging, "merge.id");
    if (!path)
        return iso_nomem(e, 1);
    iso_hex(hex, s->o.identity->b, ISO_DIGEST_BYTES);
    iso_err err = iso_write_file(path, hex, strlen(hex), 0644, e);
    free(path);
    return err;
}

static iso_err check_identity(const iso_stream *s, iso_error *e)
{
    char hex[ISO_DIGEST_HEX], *path = iso_path_join(s->staging, "merge.id");
    iso_buf text = {0};
    if (!path)
        return iso_nomem(e, 1);
    iso_hex(hex, s->o.identity->b, ISO_DIGEST_BYTES);
    iso_err err = iso_read_file(path, 4096, &text, e);
    if (!err && strcmp((const char *)text.data, hex) != 0)
        err = iso_fail(e, ISO_ERR_USAGE,
                       "%s is of a merge with other inputs or parameters; remove it to start anew",
                       s->staging);
    iso_buf_free(&text);
    free(path);
    return err;
}

/* A shard that stands under its name is complete: it is taken if it holds what it should. */
static iso_err find_done(iso_stream *s, bool *done, iso_error *e)
{
    for (size_t k = 0; k < s->shard_count; k++) {
        char *path = shard_path(s, &s->shards[k]);
        iso_safetensors st = {0};
        if (!path)
            return iso_nomem(e, 1);
        iso_err err = iso_path_exists(path) ? iso_safetensors_open(&st, path, e) : ISO_ERR_NO;
        free(path);
        if (err == ISO_ERR_NO)
            continue;
        size_t n = 0;
        for (size_t i = 0; !err && i < s->count; i++) {
            if (s->shard_of[i] != k)
                continue;
            const iso_named_tensor *t = iso_safetensors_find(&st, s->tensors[i].name);
            if (!t || t->view.dtype != s->tensors[i].view.dtype ||
                !iso_tensor_same_shape(&t->view, &s->tensors[i].view))
                err = iso_fail(e, ISO_ERR_DATA, "%s/%s does not hold tensor \"%s\" as it should",
                               s->staging, s->shards[k].name, s->tensors[i].name);
            done[i] = true;
            n++;
        }
        iso_safetensors_close(&st);
        if (err)
            return err;
        s->shards[k].is_done = s->shards[k].is_started = n > 0;
        s->kept_shards += n > 0;
    }
    return ISO_OK;
}

/* Temporary files of a process that was killed. */
static void sweep(const char *folder)
{
    iso_names names = {0};
    if (iso_list_dir(folder, &names, NULL))
        return;
    for (size_t i = 0; i < names.count; i++) {
        size_t n = strlen(names.names[i]);
        char *path = iso_path_join(folder, names.names[i]);
        if (path && names.names[i][0] == '.' && n > 4 && !strcmp(names.names[i] + n - 4, ".tmp"))
            unlink(path);
        free(path);
    }
    iso_names_free(&names);
}

static iso_err open_staging(iso_stream *s, iso_error *e)
{
    bool is_there = iso_path_exists(s->staging);
    if (is_there && !s->o.resume)
        return iso_fail(e, ISO_ERR_USAGE,
                        "%s holds an interrupted merge: --resume goes on with it; remove it to "
                        "start anew",
                        s->staging);
    if (is_there) {
        iso_err err = check_identity(s, e);
        if (!err)
            sweep(s->staging);
        s->is_ours = !err;
        return err;
    }
    iso_err err = iso_make_dirs(s->staging, 0755, e);
    s->is_ours = !err;
    return err ? err : write_identity(s, e);
}

/* ---- the sink ---- */
static iso_err check_space(const iso_stream *s, const bool *done, iso_error *e)
{
    uint64_t needed = RESERVE_BYTES, available = 0;
    char *folder = s->is_folder ? iso_strdup(s->staging) : iso_path_dir(s->o.out);
    for (size_t i = 0; i < s->count; i++)
        needed += done[i] ? 0 : iso_tensor_bytes(&s->tensors[i].view);
    iso_err err = folder ? iso_disk_free(folder, &available, e) : iso_nomem(e, 1);
    if (!err && available < needed)
        err = iso_fail(e, ISO_ERR_RESOURCE, "%s: %.1f GiB needed, %.1f GiB free", folder,
                       (double)needed / 1073741824.0, (double)available / 1073741824.0);
    free(folder);
    return err;
}

static iso_err on_begin(void *ctx, const iso_named_tensor *tensors, size_t count, bool *done,
                        double *rank, iso_error *e)
{
    iso_stream *s = ctx;
    s->count = count;
    s->tensors = iso_calloc(count, sizeof *s->tensors);
    s->shard_of = iso_calloc(count, sizeof *s->shard_of);
    s->offsets = iso_calloc(count, sizeof *s->offsets);
    if (!s->tensors || !s->shard_of || !s->offsets)
        return iso_nomem(e, count * sizeof *s->tensors);
    for (size_t i = 0; i < count; i++) {
        s->tensors[i] = tensors[i];
        s->shard_of[i] = s->shard_count > 1 ? shard_of_data(s->o.like, tensors[i].view.data) : 0;
        rank[i] = (double)s->shard_of[i];
        s->shards[s->shard_of[i]].bytes += iso_tensor_bytes(&tensors[i].view);
    }
    iso_err err = s->is_folder ? open_staging(s, e) : ISO_OK;
    if (!err && s->is_folder)
        err = find_done(s, done, e);
    return err ? err : check_space(s, done, e);
}

/* ---- opening and closing ---- */
static bool is_same_file(const char *a, const char *b)
{
    struct stat x, y;
    return stat(a, &x) == 0 && stat(b, &y) == 0 && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

bool iso_stream_is_input(const char *out, const char *const *inputs, size_t n, const char **which)
{
    for (size_t i = 0; i < n; i++)
        if (inputs[i] && is_same_file(out, inputs[i])) {
            *which = inputs[i];
            return true;
        }
    return false;
}

static bool names_file(const char *path)
{
    size_t n = strlen(path);
    return n > 12 && strcmp(path + n - 12, ".safetensors") == 0;
}

iso_err iso_stream_open(const iso_stream_options *o, iso_stream **out, iso_error *e)
{
    iso_stream *s = iso_calloc(1, sizeof *s);
    if (!s)
        return iso_nomem(e, sizeof *s);
    *out = s;
    s->o = *o;
    pthread_mutex_init(&s->lock, NULL);
    s->is_folder = !names_file(o->out);
    s->shard_count = s->is_folder && o->like->map_count > 1 ? o->like->map_count : 1;
    s->shards = iso_calloc(s->shard_count, sizeof *s->shards);
    if (!s->shards)
        return iso_nomem(e, s->shard_count * sizeof *s->shards);
    for (size_t k = 0; k < s->shard_count; k++) {
        s->shards[k].file.fd = -1;
        if (s->shard_count > 1)
            snprintf(s->shards[k].name, PATH_BYTES, "model-%05zu-of-%05zu.safetensors", k + 1,
                     s->shard_count);
        else
            snprintf(s->shards[k].name, PATH_BYTES, "model.safetensors");
    }
    s->sink = (iso_dense_sink){s, on_begin, on_part, on_end, on_touched};
    if (!s->is_folder)
        return ISO_OK;
    size_t n = strlen(o->out);
    while (n > 1 && o->out[n - 1] == '/')
        n--;
    s->staging = iso_strf("%.*s.part", (int)n, o->out);
    if (!s->staging)
        return iso_nomem(e, n);
    return iso_path_exists(o->out)
               ? iso_fail(e, ISO_ERR_USAGE, "%s exists already; choose another name or remove it",
                          o->out)
               : ISO_OK;
}

const iso_dense_sink *iso_stream_sink(const iso_stream *s)
{
    return &s->sink;
}

static iso_err write_index(const iso_stream *s, iso_error *e)
{
    iso_json *root = iso_json_object(), *meta = iso_json_object(), *map = iso_json_object();
    iso_buf text = {0};
    uint64_t total = 0;
    for (size_t i = 0; i < s->count; i++) {
        total += iso_tensor_bytes(&s->tensors[i].view);
        iso_json_set(map, s->tensors[i].name, iso_json_string(s->shards[s->shard_of[i]].name));
    }
    iso_json_set(meta, "total_size", iso_json_integer((int64_t)total));
    iso_json_set(root, "metadata", meta);
    iso_json_set(root, "weight_map", map);
    char *path = iso_path_join(s->staging, "model.safetensors.index.json");
    iso_err err = path ? iso_json_dump(root, ISO_JSON_PRETTY, &text, e) : iso_nomem(e, 1);
    if (!err)
        err = iso_write_file(path, text.data, text.size, 0644, e);
    iso_json_free(root);
    iso_buf_free(&text);
    free(path);
    return err;
}

iso_err iso_stream_commit(iso_stream *s, iso_error *e)
{
    for (size_t k = 0; k < s->shard_count; k++) /* a shard that has no tensors is none */
        if (!s->shards[k].is_done && s->shards[k].bytes > 0)
            return iso_fail(e, ISO_ERR_INTERNAL, "shard %zu is not complete", k + 1);
    if (!s->is_folder) {
        s->is_committed = true;
        return ISO_OK;
    }
    iso_err err = s->shard_count > 1 ? write_index(s, e) : ISO_OK;
    char *id = iso_path_join(s->staging, "merge.id"), *folder = iso_path_dir(s->staging);
    if (!err && (!id || !folder))
        err = iso_nomem(e, 1);
    if (!err)
        unlink(id);
    if (!err && rename(s->staging, s->o.out) != 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "cannot rename %s to %s", s->staging,
                             s->o.out);
    s->is_committed = !err;
    if (!err)
        err = iso_sync_dir(folder, e);
    free(id);
    free(folder);
    return err;
}

void iso_stream_counts(const iso_stream *s, uint64_t *written, size_t *shards, size_t *kept_shards)
{
    *written = atomic_load(&s->written);
    *shards = s->shard_count;
    *kept_shards = s->kept_shards;
}

const char *iso_stream_kept(const iso_stream *s)
{
    bool has_shard = false;
    for (size_t k = 0; k < s->shard_count; k++)
        has_shard = has_shard || s->shards[k].is_done;
    return s->is_folder && !s->is_committed && has_shard ? s->staging : NULL;
}

void iso_stream_close(iso_stream *s)
{
    if (!s)
        return;
    for (size_t k = 0; s->shards && k < s->shard_count; k++)
        iso_out_abort(&s->shards[k].file);
    bool is_empty = s->is_ours && !s->is_committed && !iso_stream_kept(s);
    iso_error ignored;
    if (is_empty && iso_remove_tree(s->staging, &ignored))
        ignored.code = ISO_OK; /* nothing of worth is left in it */
    pthread_mutex_destroy(&s->lock);
    free(s->staging);
    free(s->shards);
    free(s->tensors);
    free(s->shard_of);
    free(s->offsets);
    free(s);
}
