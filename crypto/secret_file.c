/* Files that hold secrets: the rules of specs/security.md S11. */
#include "core/fsio.h"
#include "crypto/init.h"
#include "crypto/key.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Folder of `path` as a new string; NULL on exhaustion. */
static char *folder_of(const char *path)
{
    const char *slash = strrchr(path, '/');
    if (!slash)
        return iso_strdup(".");
    if (slash == path)
        return iso_strdup("/");
    return iso_strf("%.*s", (int)(slash - path), path);
}

static iso_err write_all(int fd, const char *path, const uint8_t *p, size_t size, iso_error *e)
{
    while (size) {
        ssize_t n = write(fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, n < 0 ? errno : ENOSPC, "%s", path);
        p += n;
        size -= (size_t)n;
    }
    return ISO_OK;
}

iso_err iso_secret_file_write(const char *path, const void *text, size_t size, iso_error *e)
{
    uint8_t random[8];
    char suffix[17];
    iso_random(random, sizeof random);
    iso_hex(suffix, random, sizeof random);
    char *temp = iso_strf("%s.%s.tmp", path, suffix);
    char *folder = folder_of(path);
    int fd = -1;
    bool is_there = false;
    iso_err err = ISO_OK;
    if (!temp || !folder) {
        err = iso_nomem(e, strlen(path) + 32);
        goto done;
    }
    fd = open(temp, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0) {
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "cannot create %s", path);
        goto done;
    }
    is_there = true;
    err = write_all(fd, path, text, size, e);
    if (!err && fsync(fd) != 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    if (close(fd) != 0 && !err)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    fd = -1;
    /* A key is never written over another one: losing a key by a typing error is not repairable. */
    if (!err && renameat2(AT_FDCWD, temp, AT_FDCWD, path, RENAME_NOREPLACE) != 0) {
        if (errno == EEXIST)
            err = iso_fail(e, ISO_ERR_TRUST,
                           "%s exists: a key is never overwritten, remove it first", path);
        else
            err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "cannot name %s", path);
    } else if (!err) {
        is_there = false;
        err = iso_sync_dir(folder, e);
    }
done:
    if (fd >= 0)
        close(fd);
    if (is_there)
        unlink(temp);
    free(temp);
    free(folder);
    return err;
}

iso_err iso_secret_file_read(const char *path, size_t max_bytes, iso_buf *out, iso_error *e)
{
    /* O_NONBLOCK: a FIFO must not hang the start; what was opened is what is checked. */
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ELOOP)
        return iso_fail(e, ISO_ERR_TRUST, "%s is a symbolic link: name the key file itself", path);
    if (fd < 0 && (errno == EACCES || errno == EPERM))
        return iso_fail_errno(e, ISO_ERR_TRUST, errno, "%s", path);
    if (fd < 0)
        return iso_fail_errno(e, ISO_ERR_USAGE, errno, "%s", path);
    struct stat st;
    iso_err err = ISO_OK;
    size_t size = 0;
    if (fstat(fd, &st) != 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    else if (!S_ISREG(st.st_mode))
        err = iso_fail(e, ISO_ERR_TRUST, "%s is not a regular file", path);
    else if (st.st_uid != geteuid())
        err = iso_fail(e, ISO_ERR_TRUST, "%s belongs to user %u, not to user %u who runs this",
                       path, (unsigned)st.st_uid, (unsigned)geteuid());
    else if (st.st_mode & 077)
        err = iso_fail(e, ISO_ERR_TRUST, "%s can be read by others: run chmod 600 %s", path, path);
    else if (st.st_size < 0 || (uint64_t)st.st_size > max_bytes)
        err = iso_fail(e, ISO_ERR_DATA, "%s is larger than %zu bytes", path, max_bytes);
    if (!err)
        err = iso_buf_reserve(out, max_bytes + 1, e);
    while (!err && size <= max_bytes) {
        ssize_t n = read(fd, out->data + out->size, max_bytes + 1 - size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
        if (n <= 0)
            break;
        out->size += (size_t)n;
        size += (size_t)n;
    }
    if (!err && size > max_bytes) /* grew while we read */
        err = iso_fail(e, ISO_ERR_DATA, "%s is larger than %zu bytes", path, max_bytes);
    close(fd);
    return err;
}
