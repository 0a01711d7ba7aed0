/* Writing: temporary file, fdatasync, rename, fsync of the folders; reading by pread through a few
 * cached descriptors. An fsync error is final for its descriptor (S85). */
#include "core/blob_dir.h"

#include "core/crash.h"
#include "core/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATH_BYTES = 4096 };

static void path_in(const iso_blob_dir *s, const char *name, char out[PATH_BYTES])
{
    snprintf(out, PATH_BYTES, "%s/%s", s->dir, name);
}

void iso_blob_dir_path(const iso_blob_dir *s, const iso_digest *d, char *out, size_t out_bytes)
{
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, d->b, ISO_DIGEST_BYTES);
    snprintf(out, out_bytes, "%s/blobs/%.2s/%s", s->dir, hex, hex);
}

static void forget_open(iso_blob_dir *s, const iso_digest *d)
{
    for (int i = 0; i < ISO_BLOB_DIR_OPEN; i++)
        if (s->files[i].fd >= 0 && (!d || iso_digest_equal(&s->files[i].digest, d))) {
            close(s->files[i].fd);
            s->files[i].fd = -1;
        }
}

/* Gives the file its name. *is_new: so is the folder it stands in. */
static iso_err place(iso_blob_dir *s, const char *path, const iso_digest *d,
                     char folder[PATH_BYTES], bool *is_new, iso_error *e)
{
    char final[PATH_BYTES];
    iso_blob_dir_path(s, d, final, sizeof final);
    snprintf(folder, PATH_BYTES, "%.*s", (int)(strrchr(final, '/') - final), final);
    *is_new = mkdir(folder, 0700) == 0;
    if (!*is_new && errno != EEXIST)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", folder);
    iso_crash_point("F3");
    if (renameat2(AT_FDCWD, path, AT_FDCWD, final, RENAME_NOREPLACE) != 0) {
        if (errno != EEXIST)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", final);
        /* Same name, same content, unless that file is damaged: ours is known to be right. */
        struct stat have, ours;
        bool is_same = stat(final, &have) == 0 && stat(path, &ours) == 0 &&
                       have.st_size == ours.st_size && iso_blob_dir_verify(s, d, NULL) == ISO_OK;
        if (is_same ? unlink(path) != 0 : rename(path, final) != 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", final);
        forget_open(s, d);
    }
    iso_crash_point("F4");
    return ISO_OK;
}

iso_err iso_blob_dir_adopt(iso_blob_dir *s, const char *path, const iso_digest *d, iso_error *e)
{
    char folder[PATH_BYTES], root[PATH_BYTES];
    bool is_new;
    path_in(s, "blobs", root);
    iso_err err = place(s, path, d, folder, &is_new, e);
    if (!err)
        err = iso_sync_dir(folder, e);
    if (!err && is_new)
        err = iso_sync_dir(root, e);
    if (!err)
        iso_crash_point("F5");
    return err;
}

iso_err iso_blob_dir_place(iso_blob_dir *s, const char *path, const iso_digest *d, iso_error *e)
{
    char folder[PATH_BYTES];
    bool is_new;
    return place(s, path, d, folder, &is_new, e);
}

iso_err iso_blob_dir_sync(iso_blob_dir *s, iso_error *e)
{
    if (syncfs(s->sync_fd) != 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", s->dir);
    iso_crash_point("F5");
    return ISO_OK;
}

static iso_err write_temp(iso_blob_dir *s, const void *data, size_t bytes, char path[PATH_BYTES],
                          iso_error *e)
{
    char name[64];
    snprintf(name, sizeof name, "tmp/put-%llu", (unsigned long long)++s->temp_counter);
    path_in(s, name, path);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    iso_err err = ISO_OK;
    const uint8_t *p = data;
    for (size_t done = 0; done < bytes && !err;) {
        ssize_t n = write(fd, p + done, bytes - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            err = iso_fail_errno(e, ISO_ERR_RESOURCE, n < 0 ? errno : ENOSPC, "%s", path);
        else
            done += (size_t)n;
    }
    if (!err && fdatasync(fd) != 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    if (close(fd) != 0 && !err)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    if (err)
        unlink(path);
    return err;
}

iso_err iso_blob_dir_put(iso_blob_dir *s, const void *data, size_t bytes, const iso_digest *expect,
                         iso_digest *out, iso_error *e)
{
    iso_digest d = iso_digest_of(data, bytes);
    if (out)
        *out = d;
    if (expect && !iso_digest_equal(expect, &d))
        return iso_fail(e, ISO_ERR_DATA, "blob: its bytes have another digest");
    char path[PATH_BYTES], final[PATH_BYTES];
    iso_blob_dir_path(s, &d, final, sizeof final);
    struct stat st;
    if (stat(final, &st) == 0 && (uint64_t)st.st_size == bytes &&
        iso_blob_dir_verify(s, &d, NULL) == ISO_OK)
        return ISO_OK;
    iso_err err = write_temp(s, data, bytes, path, e);
    if (err) /* S85: once more, under a new name, from the source */
        err = write_temp(s, data, bytes, path, e);
    return err ? err : iso_blob_dir_adopt(s, path, &d, e);
}

iso_err iso_blob_dir_size(iso_blob_dir *s, const iso_digest *d, uint64_t *bytes, iso_error *e)
{
    char path[PATH_BYTES];
    struct stat st;
    iso_blob_dir_path(s, d, path, sizeof path);
    if (stat(path, &st) != 0 || !S_ISREG(st.st_mode))
        return iso_fail(e, ISO_ERR_DATA, "blob %.8s is missing", strrchr(path, '/') + 1);
    *bytes = (uint64_t)st.st_size;
    return ISO_OK;
}

static int open_cached(iso_blob_dir *s, const iso_digest *d, iso_error *e)
{
    int oldest = 0;
    s->clock++;
    for (int i = 0; i < ISO_BLOB_DIR_OPEN; i++) {
        if (s->files[i].fd >= 0 && iso_digest_equal(&s->files[i].digest, d)) {
            s->files[i].used = s->clock;
            return s->files[i].fd;
        }
        if (s->files[i].fd < 0 ||
            (s->files[oldest].fd >= 0 && s->files[i].used < s->files[oldest].used))
            oldest = i;
    }
    char path[PATH_BYTES];
    iso_blob_dir_path(s, d, path, sizeof path);
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0) {
        iso_fail_errno(e, ISO_ERR_DATA, errno, "blob %.8s", strrchr(path, '/') + 1);
        return -1;
    }
    if (s->files[oldest].fd >= 0)
        close(s->files[oldest].fd);
    s->files[oldest] = (iso_open_blob){.digest = *d, .fd = fd, .used = s->clock};
    return fd;
}

iso_err iso_blob_dir_read(iso_blob_dir *s, const iso_digest *d, uint64_t offset, void *out,
                          size_t bytes, size_t *got, iso_error *e)
{
    *got = 0;
    int fd = open_cached(s, d, e);
    if (fd < 0)
        return ISO_ERR_DATA;
    while (*got < bytes) {
        ssize_t n = pread(fd, (uint8_t *)out + *got, bytes - *got, (off_t)(offset + *got));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "blob");
        if (n == 0)
            break;
        *got += (size_t)n;
    }
    return ISO_OK;
}

iso_err iso_blob_dir_delete(iso_blob_dir *s, const iso_digest *d, iso_error *e)
{
    char path[PATH_BYTES];
    forget_open(s, d);
    iso_blob_dir_path(s, d, path, sizeof path);
    if (unlink(path) != 0 && errno != ENOENT)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    return ISO_OK;
}

iso_err iso_blob_dir_verify(iso_blob_dir *s, const iso_digest *d, iso_error *e)
{
    enum { PIECE = 256 * 1024 };
    uint8_t *piece = malloc(PIECE);
    if (!piece)
        return iso_nomem(e, PIECE);
    iso_hasher h;
    iso_hasher_init(&h);
    size_t got = PIECE;
    iso_err err = ISO_OK;
    for (uint64_t at = 0; !err && got == PIECE; at += got)
        if ((err = iso_blob_dir_read(s, d, at, piece, PIECE, &got, e)) == ISO_OK)
            iso_hasher_add(&h, piece, got);
    iso_digest have = iso_hasher_end(&h);
    if (!err && !iso_digest_equal(&have, d))
        err = iso_fail(e, ISO_ERR_DATA, "blob %02x%02x%02x%02x: its bytes have another digest",
                       d->b[0], d->b[1], d->b[2], d->b[3]);
    free(piece);
    return err;
}

iso_err iso_blob_dir_sweep(iso_blob_dir *s, iso_blob_live_fn *is_live, void *arg, uint64_t *removed,
                           iso_error *e)
{
    char root[PATH_BYTES], folder[PATH_BYTES * 2];
    path_in(s, "blobs", root);
    iso_names folders = {0};
    iso_err err = iso_list_dir(root, &folders, e);
    *removed = 0;
    for (size_t i = 0; i < folders.count && !err; i++) {
        snprintf(folder, sizeof folder, "%s/%s", root, folders.names[i]);
        iso_names files = {0};
        err = iso_list_dir(folder, &files, e);
        for (size_t k = 0; k < files.count && !err; k++) {
            iso_digest d;
            bool is_blob = iso_unhex(d.b, ISO_DIGEST_BYTES, files.names[k]);
            if (is_blob && is_live(arg, &d))
                continue;
            if (!is_blob)
                continue; /* not ours: leave it to the operator */
            err = iso_blob_dir_delete(s, &d, e);
            (*removed)++;
        }
        iso_names_free(&files);
    }
    iso_names_free(&folders);
    return err;
}

static iso_err empty_temp(iso_blob_dir *s, iso_error *e)
{
    char path[PATH_BYTES];
    path_in(s, "tmp", path);
    iso_err err = iso_remove_tree(path, e);
    return err ? err : iso_make_dirs(path, 0700, e);
}

iso_err iso_blob_dir_open(iso_blob_dir *s, const char *dir, iso_error *e)
{
    *s = (iso_blob_dir){.sync_fd = -1};
    for (int i = 0; i < ISO_BLOB_DIR_OPEN; i++)
        s->files[i].fd = -1;
    if (strlen(dir) > PATH_BYTES - 128)
        return iso_fail(e, ISO_ERR_USAGE, "%.40s...: path too long", dir);
    if (!(s->dir = iso_strdup(dir)))
        return iso_nomem(e, strlen(dir));
    char path[PATH_BYTES];
    path_in(s, "blobs", path);
    iso_err err = iso_make_dirs(path, 0700, e);
    if (!err && (s->sync_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC)) < 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    return err ? err : empty_temp(s, e);
}

void iso_blob_dir_close(iso_blob_dir *s)
{
    if (s->dir) {
        forget_open(s, NULL);
        if (s->sync_fd >= 0)
            close(s->sync_fd);
    }
    free(s->dir);
    *s = (iso_blob_dir){0};
}
