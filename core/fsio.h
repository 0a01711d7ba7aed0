/* Files: whole or not at all. Durable means S80 of specs/security.md: data synced, name synced. */
#ifndef ISO_CORE_FSIO_H
#define ISO_CORE_FSIO_H

#include "core/mem.h"

#include <stdbool.h>
#include <stdint.h>

/* Reads a regular file of at most max_bytes (FIFO, device, socket: refused; S9.1). Appends a NUL
 * that is not counted in size. */
iso_err iso_read_file(const char *path, size_t max_bytes, iso_buf *out,
                      iso_error *e) ISO_MUST_CHECK;

/* Writes temporary file, fdatasync, rename over path, fsync of the folder. Nothing half-written
 * is ever visible at `path`. mode: permission bits. */
iso_err iso_write_file(const char *path, const void *data, size_t size, unsigned mode,
                       iso_error *e) ISO_MUST_CHECK;

/* The same in steps, for large outputs: begin, write..., commit or abort. */
typedef struct {
    int fd;     /* -1 when closed */
    char *path; /* owned: final name */
    char *temp; /* owned: temporary name in the same folder */
    uint64_t size;
} iso_out_file;
iso_err iso_out_begin(iso_out_file *f, const char *path, unsigned mode,
                      iso_error *e) ISO_MUST_CHECK;
iso_err iso_out_write(iso_out_file *f, const void *data, size_t size, iso_error *e) ISO_MUST_CHECK;
iso_err iso_out_commit(iso_out_file *f, iso_error *e) ISO_MUST_CHECK;
void iso_out_abort(iso_out_file *f); /* also fine after commit, or on a zeroed struct with fd -1 */

/* Read-only map of a regular file; size 0 gives data NULL. */
typedef struct {
    const uint8_t *data;
    size_t size;
} iso_map;
iso_err iso_map_open(iso_map *m, const char *path, iso_error *e) ISO_MUST_CHECK;
/* The same for a plain name inside an open folder, never through a symbolic link: for names that
 * a file from outside brought along. A name with a slash, "." or ".." is refused. */
iso_err iso_map_open_at(iso_map *m, int folder_fd, const char *name, iso_error *e) ISO_MUST_CHECK;
void iso_map_close(iso_map *m);

iso_err iso_make_dirs(const char *path, unsigned mode, iso_error *e) ISO_MUST_CHECK; /* mkdir -p */
iso_err iso_sync_dir(const char *path, iso_error *e) ISO_MUST_CHECK;
bool iso_path_exists(const char *path);
bool iso_is_dir(const char *path);
/* a/b, one slash between them whatever they bring; new string, NULL on exhaustion. */
char *iso_path_join(const char *a, const char *b);
const char *iso_path_base(const char *path);
char *iso_path_dir(const char *path); /* "." without a slash; new string, NULL on exhaustion */
/* Removes a file or a whole folder; missing is fine. */
iso_err iso_remove_tree(const char *path, iso_error *e) ISO_MUST_CHECK;

/* Sorted names (bytewise) of the entries of a folder, without "." and "..". */
typedef struct {
    char **names; /* owned */
    size_t count;
} iso_names;
iso_err iso_list_dir(const char *path, iso_names *out, iso_error *e) ISO_MUST_CHECK;
void iso_names_free(iso_names *n);

/* Lock of a state folder (S81): fcntl OFD lock on path, pid and start time written inside. Taken:
 * ISO_ERR_RESOURCE and a line that names the pid that holds it. */
iso_err iso_lock_file(const char *path, int *fd_out, iso_error *e) ISO_MUST_CHECK;
void iso_unlock_file(int fd);

/* Free bytes on the file system of path. */
iso_err iso_disk_free(const char *path, uint64_t *bytes, iso_error *e) ISO_MUST_CHECK;

#endif
