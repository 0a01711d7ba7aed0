/* What survives of a host: rows and blobs behind the store seam, partial files beside them.
 *
 * A commit is durable when it returns, and so is a blob that was put (core/store.h). Partial files
 * are written without a sync: a crash cuts them at any length and may tear what is left. Blobs of
 * all hosts lie in one pool, once each. */
#ifndef ISO_SIM_DISK_H
#define ISO_SIM_DISK_H

#include "core/mem.h"
#include "core/rng.h"
#include "core/store.h"

/* ---- the pool: one copy of a content, whoever has it ---- */
typedef struct iso_sim_blob {
    struct iso_sim_blob *next; /* in the pool's bucket */
    iso_digest digest;
    uint32_t refs;
    uint32_t note; /* the owner's: what the content was made for */
    size_t bytes;
    uint8_t data[];
} iso_sim_blob;

typedef struct {
    iso_sim_blob **buckets; /* owned */
    size_t bucket_count, count, bytes;
    iso_digest (*digest)(void *ctx, const void *data, size_t bytes);
    void *digest_ctx;
} iso_sim_pool;

/* With a reference for the caller; NULL on exhaustion. `as` names it otherwise than its digest
 * (a damaged content), else NULL. */
iso_sim_blob *iso_sim_pool_put(iso_sim_pool *p, const void *data, size_t bytes,
                               const iso_digest *as);
iso_sim_blob *iso_sim_blob_ref(iso_sim_blob *b);
void iso_sim_blob_drop(iso_sim_pool *p, iso_sim_blob *b); /* NULL is fine */
void iso_sim_pool_free(iso_sim_pool *p);

/* ---- one host ---- */
typedef struct {
    uint8_t table, key_bytes;
    uint32_t value_bytes;
    uint8_t data[]; /* key, value */
} iso_sim_row;

typedef struct {
    uint8_t id[32]; /* upload id (16), or digest of a download */
    uint32_t chunk_bytes;
    uint64_t total_bytes;
    iso_buf content;
} iso_sim_partial;

typedef struct {
    iso_sim_pool *pool; /* borrowed */
    iso_sim_row **rows; /* open addressing, owned */
    uint32_t *tags;     /* hash of each row: most slots are passed without looking at the row */
    size_t row_count, row_capacity, row_bytes;
    iso_sim_blob **blobs; /* open addressing, references */
    size_t blob_count, blob_capacity;
    iso_sim_partial *partials; /* owned */
    size_t partial_count;
    bool is_full; /* commits, blobs and partial writes fail */
} iso_sim_disk;

iso_store iso_sim_disk_store(iso_sim_disk *d);
iso_err iso_sim_disk_commit(iso_sim_disk *d, const iso_op *ops, size_t count,
                            iso_error *e) ISO_MUST_CHECK;
const iso_sim_row *iso_sim_disk_row(const iso_sim_disk *d, int table, const void *key,
                                    size_t key_bytes);
/* Takes a reference of its own. */
iso_err iso_sim_disk_add(iso_sim_disk *d, iso_sim_blob *b, iso_error *e) ISO_MUST_CHECK;
iso_err iso_sim_disk_put(iso_sim_disk *d, const void *data, size_t bytes, iso_digest *out,
                         iso_error *e) ISO_MUST_CHECK;
iso_sim_blob *iso_sim_disk_blob(const iso_sim_disk *d, const iso_digest *digest);
void iso_sim_disk_delete(iso_sim_disk *d, const iso_digest *digest);
/* Removes every blob that `is_live` says no of. */
void iso_sim_disk_sweep(iso_sim_disk *d, bool (*is_live)(void *arg, const iso_digest *digest),
                        void *arg);

iso_sim_partial *iso_sim_disk_partial(iso_sim_disk *d, const void *id, size_t id_bytes);
/* The partial file of that name, made when it is new; NULL on exhaustion. */
iso_sim_partial *iso_sim_disk_partial_open(iso_sim_disk *d, const void *id, size_t id_bytes);
void iso_sim_disk_partial_drop(iso_sim_disk *d, const void *id, size_t id_bytes);

/* The host died: partial files lose their unsynced ends; torn ones keep garbage in them. */
void iso_sim_disk_crash(iso_sim_disk *d, iso_rng *rng, bool is_torn);

void iso_sim_disk_free(iso_sim_disk *d);

#endif
