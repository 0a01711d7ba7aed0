/* Crash points F1 and F2 stand around the write of a chunk. Chunks are not synced one by one: after
 * a power cut the file is hashed again, and what it lost is sent again (S53). */
#include "coordinator/partial.h"

#include "core/crash.h"
#include "core/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
    int fd;
    uint64_t bytes;
    uint64_t begun; /* given to the disk so far */
    iso_hasher hash;
} partial;

enum { WRITE_BACK_BYTES = 1 << 20, ONE_BY_ONE = 2 };

static void path_of(const iso_partials *p, const uint8_t id[16], char out[4096])
{
    char hex[33];
    iso_hex(hex, id, 16);
    snprintf(out, 4096, "%s/%s", p->folder, hex);
}

iso_err iso_partials_open(iso_partials *p, const char *dir, iso_error *e)
{
    *p = (iso_partials){0};
    p->folder = iso_path_join(dir, "uploads");
    return p->folder ? iso_make_dirs(p->folder, 0700, e) : iso_nomem(e, strlen(dir));
}

static void close_file(iso_partials *p, const uint8_t id[16])
{
    partial *f = iso_index_get(&p->files, id);
    if (!f)
        return;
    close(f->fd);
    iso_index_remove(&p->files, id);
    free(f);
}

void iso_partials_close(iso_partials *p)
{
    for (size_t i = 0; i < p->files.capacity; i++)
        if (p->files.slots[i].value) {
            close(((partial *)p->files.slots[i].value)->fd);
            free(p->files.slots[i].value);
        }
    iso_index_free(&p->files);
    free(p->folder);
    *p = (iso_partials){0};
}

/* Whole chunks of `have` bytes; the body's last chunk may be shorter than the others. */
static uint64_t whole_chunks(uint64_t have, uint32_t chunk_bytes, uint64_t body_bytes,
                             uint32_t *chunks)
{
    if (have >= body_bytes) {
        *chunks = (uint32_t)((body_bytes + chunk_bytes - 1) / chunk_bytes);
        return body_bytes;
    }
    *chunks = (uint32_t)(have / chunk_bytes);
    return (uint64_t)*chunks * chunk_bytes;
}

static iso_err rehash(partial *f, const char *path, iso_error *e)
{
    enum { PIECE = 256 * 1024 };
    uint8_t *piece = malloc(PIECE);
    if (!piece)
        return iso_nomem(e, PIECE);
    iso_err err = ISO_OK;
    for (uint64_t at = 0; at < f->bytes && !err;) {
        size_t want = f->bytes - at < PIECE ? (size_t)(f->bytes - at) : PIECE;
        ssize_t n = pread(f->fd, piece, want, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            err = iso_fail_errno(e, ISO_ERR_RESOURCE, n < 0 ? errno : EIO, "%s", path);
        else
            iso_hasher_add(&f->hash, piece, (size_t)n);
        at += n > 0 ? (uint64_t)n : 0;
    }
    free(piece);
    return err;
}

iso_err iso_partial_open(iso_partials *p, const uint8_t id[16], uint32_t chunk_bytes,
                         uint64_t body_bytes, uint32_t *chunks, iso_error *e)
{
    char path[4096];
    struct stat st;
    close_file(p, id);
    path_of(p, id, path);
    partial *f = iso_calloc(1, sizeof *f);
    if (!f)
        return iso_nomem(e, sizeof *f);
    iso_err err = ISO_OK;
    f->fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (f->fd < 0 || fstat(f->fd, &st) != 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    if (!err) {
        iso_hasher_init(&f->hash);
        f->bytes = whole_chunks((uint64_t)st.st_size, chunk_bytes, body_bytes, chunks);
        if (ftruncate(f->fd, (off_t)f->bytes) != 0)
            err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    }
    if (!err)
        err = rehash(f, path, e);
    if (!err && !iso_index_put(&p->files, id, f))
        err = iso_nomem(e, sizeof *f);
    if (err) {
        if (f->fd >= 0)
            close(f->fd);
        free(f);
    }
    return err;
}

iso_err iso_partial_write(iso_partials *p, const uint8_t id[16], const void *data, size_t bytes,
                          iso_error *e)
{
    partial *f = iso_index_get(&p->files, id);
    if (!f)
        return iso_fail(e, ISO_ERR_INTERNAL, "upload is not open");
    iso_crash_point("F1");
    const uint8_t *from = data;
    for (size_t done = 0; done < bytes;) {
        ssize_t n = pwrite(f->fd, from + done, bytes - done, (off_t)(f->bytes + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, n < 0 ? errno : ENOSPC, "upload");
        done += (size_t)n;
    }
    iso_hasher_add(&f->hash, data, bytes);
    f->bytes += bytes;
    /* The disk begins at once, so that the sync at the end has little left to wait for. */
    if (f->bytes - f->begun >= WRITE_BACK_BYTES) {
        sync_file_range(f->fd, (off_t)f->begun, (off_t)(f->bytes - f->begun),
                        SYNC_FILE_RANGE_WRITE);
        f->begun = f->bytes;
    }
    iso_crash_point("F2");
    return ISO_OK;
}

/* Is the file what its header said? */
static iso_err compare(const partial *f, const iso_partial_file *x, iso_error *e)
{
    iso_hasher h = f->hash;
    iso_digest have = iso_hasher_end(&h);
    return f->bytes == x->bytes && iso_digest_equal(&have, &x->digest)
               ? ISO_OK
               : iso_fail(e, ISO_ERR_DATA, "the body has another digest");
}

static iso_err store_one(iso_partials *p, const iso_partial_file *x, bool is_synced_alone,
                         iso_blob_dir *blobs, iso_error *e)
{
    char path[4096];
    partial *f = iso_index_get(&p->files, x->id);
    if (!f) /* dropped meanwhile, its site revoked: nobody waits for this answer */
        return iso_fail(e, ISO_ERR_DATA, "upload is not open");
    path_of(p, x->id, path);
    iso_err err = compare(f, x, e);
    if (!err && is_synced_alone && fdatasync(f->fd) != 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    close_file(p, x->id);
    if (err)
        return err;
    return (is_synced_alone ? iso_blob_dir_adopt : iso_blob_dir_place)(blobs, path, &x->digest, e);
}

void iso_partials_store(iso_partials *p, iso_partial_file *files, size_t count, iso_blob_dir *blobs,
                        iso_error *e)
{
    bool is_alone = count <= ONE_BY_ONE, has_some = false;
    for (size_t i = 0; i < count; i++) {
        files[i].err = store_one(p, &files[i], is_alone, blobs, e);
        has_some = has_some || !files[i].err;
    }
    iso_err err = !is_alone && has_some ? iso_blob_dir_sync(blobs, e) : ISO_OK;
    for (size_t i = 0; i < count && err; i++)
        if (!files[i].err)
            files[i].err = err; /* a blob that no record names: swept at the next start */
}

void iso_partial_drop(iso_partials *p, const uint8_t id[16])
{
    char path[4096];
    close_file(p, id);
    path_of(p, id, path);
    unlink(path);
}

iso_err iso_partials_sweep(iso_partials *p, iso_partial_live_fn *is_live, void *arg, iso_error *e)
{
    iso_names names = {0};
    iso_err err = iso_list_dir(p->folder, &names, e);
    for (size_t i = 0; i < names.count && !err; i++) {
        uint8_t id[16];
        if (iso_unhex(id, 16, names.names[i]) && !is_live(arg, id))
            iso_partial_drop(p, id);
    }
    iso_names_free(&names);
    return err;
}
