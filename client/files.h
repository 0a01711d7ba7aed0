/* The client's files beside its store: partial downloads and release folders.
 *
 *   fetch/<hex>.part   a download under way; survives a crash, cut to whole chunks when taken up
 *   releases/<n>/      a release that was installed: release.json, .minisig, adapter/, heads/ ...
 *   current            symbolic link to the release that serves; replaced by rename (S95) */
#ifndef ISO_CLIENT_FILES_H
#define ISO_CLIENT_FILES_H

#include "client/agent.h"
#include "core/blob_dir.h"
#include "core/store.h"

typedef struct {
    const char *dir; /* borrowed: the client's folder */
    const iso_store *store;
    iso_blob_dir *blobs;
    iso_digest fetching;
    int fd; /* of the partial file, -1 */
} iso_client_files;

iso_err iso_files_open(iso_client_files *f, const char *dir, const iso_store *store,
                       iso_blob_dir *blobs, iso_error *e) ISO_MUST_CHECK;
void iso_files_close(iso_client_files *f);

/* Opens the partial file of a blob. *is_done: the store has it already; else *offset bytes, a
 * multiple of chunk_bytes (or the whole of `bytes`), are there. */
iso_err iso_fetch_open(iso_client_files *f, const iso_digest *d, uint64_t bytes,
                       uint32_t chunk_bytes, bool *is_done, uint64_t *offset,
                       iso_error *e) ISO_MUST_CHECK;
iso_err iso_fetch_write(iso_client_files *f, const iso_digest *d, uint64_t offset, const void *data,
                        size_t bytes, iso_error *e) ISO_MUST_CHECK;
/* Synced, compared with its digest (ISO_ERR_DATA), a blob. */
iso_err iso_fetch_close(iso_client_files *f, const iso_digest *d, iso_error *e) ISO_MUST_CHECK;
void iso_fetch_drop(iso_client_files *f, const iso_digest *d);
/* Removes partial files of blobs that `is_live` does not know. */
iso_err iso_fetch_sweep(iso_client_files *f, iso_blob_live_fn *is_live, void *arg,
                        iso_error *e) ISO_MUST_CHECK;

/* Makes releases/<n>/ complete and synced; a folder that is there already was complete. */
iso_err iso_install(const iso_client_files *f, const iso_agent_install *r,
                    iso_error *e) ISO_MUST_CHECK;
void iso_uninstall(const iso_client_files *f, uint64_t number);
/* Points `current` at releases/<n>/; 0 removes it. */
iso_err iso_serve(const iso_client_files *f, uint64_t number, iso_error *e) ISO_MUST_CHECK;

#endif
