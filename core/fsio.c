/* Files: bounded reads, maps, atomic durable writes, folders, the lock of a state folder.
 * specs/security.md S80 (durable), S81 (lock), 9.1 (regular files only, bounded, no links). */
#include "core/fsio.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum {
    READ_STEP_BYTES = 64 * 1024,
    TEMP_ATTEMPTS = 1000,
    TEMP_BASE_BYTES = 200, /* leaves room for pid and number below NAME_MAX */
    TREE_DEPTH = 128       /* one descriptor a level */
};

/* What an errno of open, mkdir, ... means for the person: a name that is wrong, a right that is
 * missing, or a machine that has run out. */
static iso_err code_of(int errno_value)
{
    switch (errno_value) {
    case ENOENT:
    case ENOTDIR:
    case EISDIR:
    case ELOOP:
    case ENAMETOOLONG:
    case ENXIO:
        return ISO_ERR_DATA;
    case EACCES:
    case EPERM:
        return ISO_ERR_TRUST;
    case ENOMEM:
        return ISO_ERR_MEMORY;
    default:
        return ISO_ERR_RESOURCE;
    }
}

static iso_err fail_errno(iso_error *e, int errno_value, const char *what, const char *path)
{
    return iso_fail_errno(e, code_of(errno_value), errno_value, "%s %s", what, path);
}

/* ---- reading ---- */

/* O_NONBLOCK: a FIFO would otherwise block in open() before fstat() can refuse it. */
static iso_err open_regular(int folder_fd, const char *path, int flags, int *fd_out,
                            struct stat *info, iso_error *e)
{
    int fd = openat(folder_fd, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | flags);
    if (fd < 0) {
        if (errno == ELOOP && (flags & O_NOFOLLOW))
            return iso_fail(e, ISO_ERR_DATA, "%s is a symbolic link; expected a regular file",
                            path);
        return fail_errno(e, errno, "cannot open", path);
    }
    iso_err err = ISO_OK;
    if (fstat(fd, info) != 0)
        err = fail_errno(e, errno, "cannot stat", path);
    else if (!S_ISREG(info->st_mode))
        err = iso_fail(e, ISO_ERR_DATA, "%s is not a regular file", path);
    if (err) {
        close(fd);
        return err;
    }
    *fd_out = fd;
    return ISO_OK;
}

static iso_err too_large(iso_error *e, const char *path, size_t max_bytes)
{
    return iso_fail(e, ISO_ERR_DATA, "%s is larger than the %zu bytes allowed", path, max_bytes);
}

iso_err iso_read_file(const char *path, size_t max_bytes, iso_buf *out, iso_error *e)
{
    int fd = -1;
    struct stat info;
    *out = (iso_buf){0};
    iso_err err = open_regular(AT_FDCWD, path, 0, &fd, &info, e);
    if (err)
        return err;
    if (info.st_size > 0 && (uint64_t)info.st_size > max_bytes) {
        err = too_large(e, path, max_bytes);
        goto done;
    }
    /* Room for the NUL. The size is a hint only: the file may grow while we read. */
    if ((err = iso_buf_reserve(out, (size_t)info.st_size + 1, e)))
        goto done;
    for (;;) {
        size_t room = out->capacity - out->size - 1;
        if (room == 0) {
            if ((err = iso_buf_reserve(out, READ_STEP_BYTES + 1, e)))
                goto done;
            room = out->capacity - out->size - 1;
        }
        ssize_t n = read(fd, out->data + out->size, room);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0) {
            err = fail_errno(e, errno, "cannot read", path);
            goto done;
        }
        if (n == 0)
            break;
        out->size += (size_t)n;
        if (out->size > max_bytes) {
            err = too_large(e, path, max_bytes);
            goto done;
        }
    }
    out->data[out->size] = 0;
done:
    close(fd);
    if (err)
        iso_buf_free(out);
    return err;
}

static iso_err map_at(iso_map *m, int folder_fd, const char *path, int flags, iso_error *e)
{
    int fd = -1;
    struct stat info;
    *m = (iso_map){0};
    iso_err err = open_regular(folder_fd, path, flags, &fd, &info, e);
    if (err)
        return err;
    if (info.st_size > 0) {
        void *p = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED)
            err = fail_errno(e, errno, "cannot map", path);
        else
            *m = (iso_map){p, (size_t)info.st_size};
    }
    close(fd);
    return err;
}

iso_err iso_map_open(iso_map *m, const char *path, iso_error *e)
{
    return map_at(m, AT_FDCWD, path, 0, e);
}

iso_err iso_map_open_at(iso_map *m, int folder_fd, const char *name, iso_error *e)
{
    *m = (iso_map){0};
    if (!*name || strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
        return iso_fail(e, ISO_ERR_DATA, "\"%s\" is not the plain name of a file", name);
    return map_at(m, folder_fd, name, O_NOFOLLOW, e);
}

void iso_map_close(iso_map *m)
{
    if (m->data)
        munmap((void *)(uintptr_t)m->data, m->size);
    *m = (iso_map){0};
}

/* ---- paths ---- */

bool iso_path_exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

bool iso_is_dir(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISDIR(info.st_mode);
}

char *iso_path_join(const char *a, const char *b)
{
    size_t n = strlen(a);
    if (n == 0)
        return iso_strdup(b);
    while (*b == '/')
        b++;
    return iso_strf("%s%s%s", a, a[n - 1] == '/' ? "" : "/", b);
}

const char *iso_path_base(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

char *iso_path_dir(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return iso_strdup(".");
    if (slash == path)
        return iso_strdup("/");
    return iso_strf("%.*s", (int)(slash - path), path);
}

/* ---- writing ---- */

iso_err iso_sync_dir(const char *path, iso_error *e)
{
    int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(e, errno, "cannot open folder", path);
    iso_err err = ISO_OK;
    /* EINVAL: a file system without fsync of folders has nothing to sync. */
    if (fsync(fd) != 0 && errno != EINVAL)
        err = fail_errno(e, errno, "cannot sync folder", path);
    close(fd);
    return err;
}

static iso_err sync_parent(const char *path, iso_error *e)
{
    char *folder = iso_path_dir(path);
    if (!folder)
        return iso_nomem(e, strlen(path));
    iso_err err = iso_sync_dir(folder, e);
    free(folder);
    return err;
}

iso_err iso_out_begin(iso_out_file *f, const char *path, unsigned mode, iso_error *e)
{
    *f = (iso_out_file){.fd = -1};
    iso_err err = ISO_OK;
    char *folder = iso_path_dir(path);
    f->path = iso_strdup(path);
    if (!folder || !f->path) {
        err = iso_nomem(e, strlen(path));
        goto done;
    }
    for (int n = 0; n < TEMP_ATTEMPTS && f->fd < 0; n++) {
        free(f->temp);
        f->temp = iso_strf("%s/.%.*s.%ld.%d.tmp", folder, TEMP_BASE_BYTES, iso_path_base(path),
                           (long)getpid(), n);
        if (!f->temp) {
            err = iso_nomem(e, strlen(path));
            goto done;
        }
        f->fd = open(f->temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, (mode_t)mode);
        if (f->fd < 0 && errno != EEXIST)
            break;
    }
    if (f->fd < 0) {
        err = fail_errno(e, errno, "cannot create a file in", folder);
        free(f->temp); /* not ours to remove */
        f->temp = NULL;
    }
done:
    free(folder);
    if (err)
        iso_out_abort(f);
    return err;
}

iso_err iso_out_write(iso_out_file *f, const void *data, size_t size, iso_error *e)
{
    const uint8_t *p = data;
    while (size) {
        ssize_t n = write(f->fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return fail_errno(e, errno, "cannot write", f->path);
        p += n;
        size -= (size_t)n;
        f->size += (uint64_t)n;
    }
    return ISO_OK;
}

iso_err iso_out_commit(iso_out_file *f, iso_error *e)
{
    iso_err err = ISO_OK;
    if (fdatasync(f->fd) != 0) {
        err = fail_errno(e, errno, "cannot sync", f->path);
        goto done;
    }
    int rc = close(f->fd);
    f->fd = -1;
    if (rc != 0) { /* network file systems report a full disk here */
        err = fail_errno(e, errno, "cannot close", f->path);
        goto done;
    }
    if (rename(f->temp, f->path) != 0) {
        err = fail_errno(e, errno, "cannot rename to", f->path);
        goto done;
    }
    free(f->temp);
    f->temp = NULL;
    err = sync_parent(f->path, e);
done:
    iso_out_abort(f);
    return err;
}

void iso_out_abort(iso_out_file *f)
{
    if (f->fd >= 0)
        close(f->fd);
    if (f->temp)
        unlink(f->temp);
    free(f->temp);
    free(f->path);
    *f = (iso_out_file){.fd = -1};
}

iso_err iso_write_file(const char *path, const void *data, size_t size, unsigned mode, iso_error *e)
{
    iso_out_file f;
    iso_err err = iso_out_begin(&f, path, mode, e);
    if (err)
        return err;
    if ((err = iso_out_write(&f, data, size, e))) {
        iso_out_abort(&f);
        return err;
    }
    return iso_out_commit(&f, e);
}

/* ---- folders ---- */

iso_err iso_make_dirs(const char *path, unsigned mode, iso_error *e)
{
    char *copy = iso_strdup(path);
    if (!copy)
        return iso_nomem(e, strlen(path));
    iso_err err = ISO_OK;
    for (char *p = copy + (*copy == '/');; p++) {
        if (*p && *p != '/')
            continue;
        char end = *p;
        *p = 0;
        if (*copy && mkdir(copy, (mode_t)mode) == 0)
            err = sync_parent(copy, e);
        else if (*copy && (errno != EEXIST || !iso_is_dir(copy)))
            err = fail_errno(e, errno == EEXIST ? ENOTDIR : errno, "cannot make folder", copy);
        *p = end;
        if (err || !end)
            break;
    }
    free(copy);
    return err;
}

static iso_err remove_at(int parent_fd, const char *name, int depth, iso_error *e)
{
    if (unlinkat(parent_fd, name, 0) == 0 || errno == ENOENT)
        return ISO_OK;
    if (errno != EISDIR && errno != EPERM) /* POSIX says EPERM for a folder, Linux EISDIR */
        return fail_errno(e, errno, "cannot remove", name);
    if (depth >= TREE_DEPTH)
        return iso_fail(e, ISO_ERR_DATA, "%s lies deeper than %d folders", name, TREE_DEPTH);
    int fd = openat(parent_fd, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return fail_errno(e, errno, "cannot open folder", name);
    DIR *dir = fdopendir(fd);
    if (!dir) {
        close(fd);
        return fail_errno(e, errno, "cannot read folder", name);
    }
    iso_err err = ISO_OK;
    const struct dirent *entry;
    while (!err && (errno = 0, entry = readdir(dir)))
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            err = remove_at(fd, entry->d_name, depth + 1, e);
    if (!err && errno)
        err = fail_errno(e, errno, "cannot read folder", name);
    closedir(dir);
    if (!err && unlinkat(parent_fd, name, AT_REMOVEDIR) != 0 && errno != ENOENT)
        err = fail_errno(e, errno, "cannot remove folder", name);
    return err;
}

iso_err iso_remove_tree(const char *path, iso_error *e)
{
    return remove_at(AT_FDCWD, path, 0, e);
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

iso_err iso_list_dir(const char *path, iso_names *out, iso_error *e)
{
    *out = (iso_names){0};
    DIR *dir = opendir(path);
    if (!dir)
        return fail_errno(e, errno, "cannot open folder", path);
    iso_err err = ISO_OK;
    size_t room = 0;
    const struct dirent *entry;
    while ((errno = 0, entry = readdir(dir))) {
        if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, ".."))
            continue;
        if (out->count == room) {
            room = room ? 2 * room : 32;
            char **more = realloc(out->names, room * sizeof *more);
            if (!more) {
                err = iso_nomem(e, room * sizeof *more);
                goto done;
            }
            out->names = more;
        }
        char *name = iso_strdup(entry->d_name);
        if (!name) {
            err = iso_nomem(e, strlen(entry->d_name));
            goto done;
        }
        out->names[out->count++] = name;
    }
    if (errno)
        err = fail_errno(e, errno, "cannot read folder", path);
    else if (out->count)
        qsort(out->names, out->count, sizeof *out->names, by_bytes);
done:
    closedir(dir);
    if (err)
        iso_names_free(out);
    return err;
}

void iso_names_free(iso_names *n)
{
    for (size_t i = 0; i < n->count; i++)
        free(n->names[i]);
    free(n->names);
    *n = (iso_names){0};
}

/* ---- lock ---- */

iso_err iso_lock_file(const char *path, int *fd_out, iso_error *e)
{
    *fd_out = -1;
    int fd = open(path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK, 0600);
    if (fd < 0)
        return fail_errno(e, errno, "cannot open", path);
    iso_err err = ISO_OK;
    /* Of the open file, not of the process: another thread or library that opens and closes the
     * same file cannot drop it. */
    struct flock lock = {.l_type = F_WRLCK, .l_whence = SEEK_SET};
    if (fcntl(fd, F_OFD_SETLK, &lock) != 0) {
        int reason = errno;
        char text[64] = {0};
        long pid = 0;
        if ((reason == EAGAIN || reason == EACCES) && pread(fd, text, sizeof text - 1, 0) > 0 &&
            strncmp(text, "pid ", 4) == 0)
            pid = strtol(text + 4, NULL, 10);
        if (reason == EAGAIN || reason == EACCES)
            err = iso_fail(e, ISO_ERR_RESOURCE, "%s is locked by process %ld; stop it first", path,
                           pid);
        else
            err = fail_errno(e, reason, "cannot lock", path);
        goto done;
    }
    char text[64];
    struct timespec now;
    struct tm utc;
    clock_gettime(CLOCK_REALTIME, &now);
    gmtime_r(&now.tv_sec, &utc);
    int n = snprintf(text, sizeof text, "pid %ld\nstarted ", (long)getpid());
    n += (int)strftime(text + n, sizeof text - (size_t)n, "%Y-%m-%dT%H:%M:%SZ\n", &utc);
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n)
        err = fail_errno(e, errno, "cannot write", path);
done:
    if (err)
        close(fd);
    else
        *fd_out = fd;
    return err;
}

void iso_unlock_file(int fd)
{
    if (fd >= 0)
        close(fd);
}

iso_err iso_disk_free(const char *path, uint64_t *bytes, iso_error *e)
{
    struct statvfs info;
    if (statvfs(path, &info) != 0)
        return fail_errno(e, errno, "cannot ask for free space at", path);
    *bytes = (uint64_t)info.f_bavail * info.f_frsize;
    return ISO_OK;
}
