/* A folder of blobs named by their digest (specs/security.md S84).
 *
 *   blobs/aa/<hex of BLAKE2b-256>   aa: its first two letters
 *   tmp/                            being written; emptied at open
 *
 * A put or adopted blob is durable when the call returns, and stands under its name whole or not
 * at all. Crash points F3 (synced, not renamed), F4 (renamed, folder not synced), F5 (durable,
 * no record names it yet). */
#ifndef ISO_CORE_BLOB_DIR_H
#define ISO_CORE_BLOB_DIR_H

#include "core/digest.h"

enum { ISO_BLOB_DIR_OPEN = 16 };

typedef struct {
    iso_digest digest;
    int fd; /* -1: free */
    uint64_t used;
} iso_open_blob;

typedef struct {
    char *dir;   /* owned */
    int sync_fd; /* open all the time: an error of writing back is told to it once */
    uint64_t temp_counter, clock;
    iso_open_blob files[ISO_BLOB_DIR_OPEN]; /* descriptors of blobs read lately (S60) */
} iso_blob_dir;

iso_err iso_blob_dir_open(iso_blob_dir *s, const char *dir, iso_error *e) ISO_MUST_CHECK;
void iso_blob_dir_close(iso_blob_dir *s); /* a zeroed struct is fine */

void iso_blob_dir_path(const iso_blob_dir *s, const iso_digest *d, char *out, size_t out_bytes);
/* As the store seam's blob functions. */
iso_err iso_blob_dir_put(iso_blob_dir *s, const void *data, size_t bytes, const iso_digest *expect,
                         iso_digest *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_blob_dir_size(iso_blob_dir *s, const iso_digest *d, uint64_t *bytes,
                          iso_error *e) ISO_MUST_CHECK;
iso_err iso_blob_dir_read(iso_blob_dir *s, const iso_digest *d, uint64_t offset, void *out,
                          size_t bytes, size_t *got, iso_error *e) ISO_MUST_CHECK;
iso_err iso_blob_dir_delete(iso_blob_dir *s, const iso_digest *d, iso_error *e) ISO_MUST_CHECK;

/* Takes in a complete, synced file known to have digest `d`; it is gone on success. */
iso_err iso_blob_dir_adopt(iso_blob_dir *s, const char *path, const iso_digest *d,
                           iso_error *e) ISO_MUST_CHECK;
/* Many at once (S88): place() each, of files that need not be synced, then one sync() of the whole
 * file system before any record names one of them. A crash in between may leave a torn file under a
 * name that no record has: sweep removes it, adopt and place replace it. */
iso_err iso_blob_dir_place(iso_blob_dir *s, const char *path, const iso_digest *d,
                           iso_error *e) ISO_MUST_CHECK;
iso_err iso_blob_dir_sync(iso_blob_dir *s, iso_error *e) ISO_MUST_CHECK;
/* Re-hashes; ISO_ERR_DATA when missing or other bytes. */
iso_err iso_blob_dir_verify(iso_blob_dir *s, const iso_digest *d, iso_error *e) ISO_MUST_CHECK;
/* Removes every blob for which `is_live` says no. Files with other names are left alone. */
typedef bool iso_blob_live_fn(void *arg, const iso_digest *d);
iso_err iso_blob_dir_sweep(iso_blob_dir *s, iso_blob_live_fn *is_live, void *arg, uint64_t *removed,
                           iso_error *e) ISO_MUST_CHECK;

#endif
