#include "client/files.h"

#include "client/outbox.h"
#include "core/crash.h"
#include "core/fsio.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char *below(const iso_client_files *f, const char *name)
{
    return iso_path_join(f->dir, name);
}

static char *part_path(const iso_client_files *f, const iso_digest *d)
{
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, d->b, sizeof d->b);
    return iso_strf("%s/fetch/%s.part", f->dir, hex);
}

iso_err iso_files_open(iso_client_files *f, const char *dir, const iso_store *store,
                       iso_blob_dir *blobs, iso_error *e)
{
    static const char *const folders[] = {"fetch", "releases"};
    *f = (iso_client_files){.dir = dir, .store = store, .blobs = blobs, .fd = -1};
    for (int i = 0; i < 2; i++) {
        char *path = below(f, folders[i]);
        iso_err err = path ? iso_make_dirs(path, 0700, e) : iso_nomem(e, strlen(dir));
        free(path);
        if (err != ISO_OK)
            return err;
    }
    return ISO_OK;
}

static void close_part(iso_client_files *f)
{
    if (f->fd >= 0)
        close(f->fd);
    f->fd = -1;
}

void iso_files_close(iso_client_files *f)
{
    if (f->dir)
        close_part(f);
}

/* ---- downloads ---- */

iso_err iso_fetch_open(iso_client_files *f, const iso_digest *d, uint64_t bytes,
                       uint32_t chunk_bytes, bool *is_done, uint64_t *offset, iso_error *e)
{
    struct stat st;
    uint64_t held;
    *is_done = f->store->blob_size(f->store->ctx, d, &held, NULL) == ISO_OK;
    *offset = 0;
    close_part(f);
    if (*is_done)
        return ISO_OK;
    char *path = part_path(f, d);
    if (!path)
        return iso_nomem(e, strlen(f->dir));
    iso_err err = ISO_OK;
    f->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (f->fd < 0 || fstat(f->fd, &st)) {
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    } else {
        held = (uint64_t)st.st_size;
        if (!bytes || held != bytes)
            held -= held % chunk_bytes;
        if (bytes && held > bytes)
            held = 0;
        if (ftruncate(f->fd, (off_t)held))
            err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
        f->fetching = *d;
        *offset = held;
    }
    free(path);
    return err;
}

static iso_err need_part(const iso_client_files *f, const iso_digest *d, iso_error *e)
{
    if (f->fd < 0 || !iso_digest_equal(&f->fetching, d))
        return iso_fail(e, ISO_ERR_INTERNAL, "no such download is open");
    return ISO_OK;
}

iso_err iso_fetch_write(iso_client_files *f, const iso_digest *d, uint64_t offset, const void *data,
                        size_t bytes, iso_error *e)
{
    const uint8_t *p = data;
    iso_err err = need_part(f, d, e);
    while (err == ISO_OK && bytes) {
        ssize_t n = pwrite(f->fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, n < 0 ? errno : ENOSPC,
                                  "a download cannot be written [disk_full]");
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    if (err == ISO_OK)
        iso_crash_point("F14"); /* in the middle of a download */
    return err;
}

iso_err iso_fetch_close(iso_client_files *f, const iso_digest *d, iso_error *e)
{
    iso_err err = need_part(f, d, e);
    char *path = err == ISO_OK ? part_path(f, d) : NULL;
    if (err == ISO_OK && !path)
        err = iso_nomem(e, strlen(f->dir));
    if (err == ISO_OK && fdatasync(f->fd)) /* S85: the file is fetched again under a new name */
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    close_part(f);
    if (err == ISO_OK) {
        iso_map map;
        err = iso_map_open(&map, path, e);
        if (err == ISO_OK) {
            iso_digest got = iso_digest_of(map.data ? map.data : (const uint8_t *)"", map.size);
            if (!iso_digest_equal(&got, d))
                err = iso_fail(e, ISO_ERR_DATA,
                               "%zu bytes were fetched and their digest is not the one asked for",
                               map.size);
            iso_map_close(&map);
        }
    }
    if (err == ISO_OK)
        err = iso_blob_dir_adopt(f->blobs, path, d, e);
    free(path);
    return err;
}

void iso_fetch_drop(iso_client_files *f, const iso_digest *d)
{
    char *path = part_path(f, d);
    if (f->fd >= 0 && iso_digest_equal(&f->fetching, d))
        close_part(f);
    if (path)
        unlink(path); /* missing is fine */
    free(path);
}

iso_err iso_fetch_sweep(iso_client_files *f, iso_blob_live_fn *is_live, void *arg, iso_error *e)
{
    iso_names names = {0};
    char *path = below(f, "fetch");
    iso_err err = path ? iso_list_dir(path, &names, e) : iso_nomem(e, strlen(f->dir));
    for (size_t i = 0; err == ISO_OK && i < names.count; i++) {
        char hex[ISO_DIGEST_HEX] = "";
        iso_digest d;
        snprintf(hex, sizeof hex, "%s", names.names[i]);
        if (iso_unhex(d.b, sizeof d.b, hex) && !is_live(arg, &d))
            iso_fetch_drop(f, &d);
    }
    iso_names_free(&names);
    free(path);
    return err;
}

/* ---- releases ---- */

static iso_err copy_blob(const iso_client_files *f, const iso_digest *d, const char *folder,
                         const char *name, uint64_t bytes, iso_error *e)
{
    iso_buf data = {0};
    char *path = iso_path_join(folder, name);
    char *parent = path ? iso_path_dir(path) : NULL;
    iso_err err = parent ? iso_make_dirs(parent, 0755, e) : iso_nomem(e, strlen(folder));
    if (err == ISO_OK)
        err = iso_read_blob(f->store, d, &data, e);
    if (err == ISO_OK && bytes && data.size != bytes) /* U66 */
        err = iso_fail(e, ISO_ERR_DATA, "%s is %zu bytes, the manifest says %llu", name, data.size,
                       (unsigned long long)bytes);
    if (err == ISO_OK)
        err = iso_write_file(path, data.data, data.size, 0644, e);
    iso_buf_free(&data);
    free(parent);
    free(path);
    return err;
}

/* Every folder of the tree, from the leaves up, so that each name in it is durable. */
static iso_err sync_tree(const char *folder, iso_error *e)
{
    iso_names names = {0};
    iso_err err = iso_list_dir(folder, &names, e);
    for (size_t i = 0; err == ISO_OK && i < names.count; i++) {
        char *path = iso_path_join(folder, names.names[i]);
        if (!path)
            err = iso_nomem(e, strlen(folder));
        else if (iso_is_dir(path))
            err = sync_tree(path, e);
        free(path);
    }
    iso_names_free(&names);
    return err ? err : iso_sync_dir(folder, e);
}

iso_err iso_install(const iso_client_files *f, const iso_agent_install *r, iso_error *e)
{
    char *releases = below(f, "releases");
    char *final = iso_strf("%s/releases/%llu", f->dir, (unsigned long long)r->number);
    char *temp = iso_strf("%s/releases/.%llu.new", f->dir, (unsigned long long)r->number);
    iso_err err = ISO_OK;
    if (!releases || !final || !temp) {
        err = iso_nomem(e, strlen(f->dir));
        goto done;
    }
    if (iso_is_dir(final)) /* it was renamed complete: an earlier run came that far */
        goto done;
    err = iso_remove_tree(temp, e);
    if (err == ISO_OK)
        err = iso_make_dirs(temp, 0755, e);
    if (err == ISO_OK)
        err = copy_blob(f, &r->manifest, temp, "release.json", 0, e);
    if (err == ISO_OK)
        err = copy_blob(f, &r->signature, temp, "release.json.minisig", 0, e);
    for (size_t i = 0; err == ISO_OK && i < r->file_count; i++)
        err = copy_blob(f, &r->files[i].digest, temp, r->files[i].path, r->files[i].bytes, e);
    if (err == ISO_OK)
        err = sync_tree(temp, e);
    if (err == ISO_OK && rename(temp, final))
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", final);
    if (err == ISO_OK)
        err = iso_sync_dir(releases, e);
done:
    if (err != ISO_OK)
        iso_error_context(e, "release %llu", (unsigned long long)r->number);
    free(releases);
    free(final);
    free(temp);
    return err;
}

void iso_uninstall(const iso_client_files *f, uint64_t number)
{
    char *path = iso_strf("%s/releases/%llu", f->dir, (unsigned long long)number);
    if (path && iso_remove_tree(path, NULL) != ISO_OK) {
        /* what stays costs room only; the next start sweeps it */
    }
    free(path);
}

iso_err iso_serve(const iso_client_files *f, uint64_t number, iso_error *e)
{
    char target[64];
    char *link = below(f, "current"), *temp = below(f, "current.new");
    iso_err err = ISO_OK;
    if (!link || !temp) {
        err = iso_nomem(e, strlen(f->dir));
        goto done;
    }
    unlink(temp);
    snprintf(target, sizeof target, "releases/%llu", (unsigned long long)number);
    if (number == 0) {
        unlink(link);
    } else if (symlink(target, temp) || rename(temp, link)) {
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", link);
    }
    if (err == ISO_OK)
        err = iso_sync_dir(f->dir, e);
done:
    free(link);
    free(temp);
    return err;
}
