/* Partial files of uploads: DIR/uploads/<upload id>, written chunk by chunk, hashed on the way
 * (specs/security.md S53, S84, S85). */
#ifndef ISO_COORDINATOR_PARTIAL_H
#define ISO_COORDINATOR_PARTIAL_H

#include "coordinator/index.h"
#include "core/blob_dir.h"

typedef struct {
    char *folder; /* owned */
    iso_index files;
} iso_partials;

iso_err iso_partials_open(iso_partials *p, const char *dir, iso_error *e) ISO_MUST_CHECK;
void iso_partials_close(iso_partials *p); /* a zeroed struct is fine; files stay */

/* Opens or creates; what is there is cut back to whole chunks (the last may be shorter) and hashed
 * again. *chunks: how many it holds. */
iso_err iso_partial_open(iso_partials *p, const uint8_t id[16], uint32_t chunk_bytes,
                         uint64_t body_bytes, uint32_t *chunks, iso_error *e) ISO_MUST_CHECK;
iso_err iso_partial_write(iso_partials *p, const uint8_t id[16], const void *data, size_t bytes,
                          iso_error *e) ISO_MUST_CHECK;
typedef struct {
    uint8_t id[16];
    iso_digest digest;
    uint64_t bytes;
    iso_err err; /* out: ISO_OK, ISO_ERR_DATA: other bytes than `digest`, else the disk */
} iso_partial_file;
/* Compares, syncs, moves into the blobs: durable where err is ISO_OK. More than a few share one
 * sync of the file system instead of two calls each (S88). None is open any more afterwards. */
void iso_partials_store(iso_partials *p, iso_partial_file *files, size_t count, iso_blob_dir *blobs,
                        iso_error *e);
void iso_partial_drop(iso_partials *p, const uint8_t id[16]);
/* Removes the files of uploads that no longer are (after start). */
typedef bool iso_partial_live_fn(void *arg, const uint8_t id[16]);
iso_err iso_partials_sweep(iso_partials *p, iso_partial_live_fn *is_live, void *arg,
                           iso_error *e) ISO_MUST_CHECK;

#endif
