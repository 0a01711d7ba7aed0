/* State folder: records in SQLite, blobs named by digest (specs/security.md 6, S80 - S87).
 *
 *   state.db     a table per number: (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID
 *   blobs/ tmp/  core/blob_dir.h
 *   state.lock   held while open (S81); state.reserve: bytes freed when the disk is full (S87)
 *   state.open   there while open: its presence at start means the last stop was not clean
 *
 * One owner, one thread, one connection (S82). Everything that returns ISO_OK is durable. */
#ifndef ISO_CORE_STATE_SQLITE_H
#define ISO_CORE_STATE_SQLITE_H

#include "core/blob_dir.h"
#include "core/store.h"

typedef struct iso_state iso_state;

typedef struct {
    const char *const *tables; /* names: letters and _ */
    size_t table_count;
    uint32_t application_id; /* of the database file: whose it is */
    uint32_t schema;         /* user_version; a newer one on disk is refused */
    uint64_t reserve_bytes;  /* 0: none */
    bool allow_network_fs;
} iso_state_options;

/* Creates what is missing. ISO_ERR_RESOURCE when another process holds the folder (the line names
 * its pid), when the disk is full; ISO_ERR_DATA when the database is damaged or of a later schema.
 * `dir` must exist. */
iso_err iso_state_open(iso_state **out, const char *dir, const iso_state_options *options,
                       iso_error *e) ISO_MUST_CHECK;
/* Checkpoints, marks the stop as clean, unlocks. NULL is fine. */
void iso_state_close(iso_state *s);

/* The seam; valid until close. */
iso_store iso_state_store(iso_state *s);
/* The last stop was not clean (quick_check has passed all the same). */
bool iso_state_was_unclean(const iso_state *s);

/* The folder of blobs, for what the seam does not say: adopt, sweep, verify, paths. */
iso_blob_dir *iso_state_blobs(iso_state *s);

/* S83, each minute: the open database is still the file of its name. */
iso_err iso_state_check_file(iso_state *s, iso_error *e) ISO_MUST_CHECK;
/* S87: free bytes below the folder; gives the reserve back to the disk; makes it anew. */
iso_err iso_state_free_bytes(const iso_state *s, uint64_t *bytes, iso_error *e) ISO_MUST_CHECK;
void iso_state_release_reserve(iso_state *s);
iso_err iso_state_make_reserve(iso_state *s, iso_error *e) ISO_MUST_CHECK;

#endif
