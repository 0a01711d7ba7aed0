/* Seam: what survives. Records (key and value bytes in numbered tables) and blobs named by digest.
 *
 * A commit is one transaction and durable when it returns (specs/security.md S80); a blob is
 * durable when put returns, and is put before the record that names it. The real one is SQLite and
 * a blob folder (core/state_sqlite.c), the simulation's forgets unsynced writes at a crash
 * (sim/disk.c). */
#ifndef ISO_CORE_STORE_H
#define ISO_CORE_STORE_H

#include "core/digest.h"
#include "core/mem.h"

enum { ISO_KEY_MAX_BYTES = 64, ISO_VALUE_MAX_BYTES = 1 << 20, ISO_TABLES_MAX = 32 };

typedef enum {
    ISO_OP_PUT,    /* insert or replace */
    ISO_OP_INSERT, /* the key must be new: else the whole transaction fails with ISO_ERR_INTERNAL */
    ISO_OP_DELETE  /* missing is fine */
} iso_op_kind;

typedef struct {
    uint8_t table; /* the owner's enum, below ISO_TABLES_MAX */
    uint8_t kind;  /* iso_op_kind */
    uint16_t key_bytes;
    uint32_t value_bytes;
    const uint8_t *key, *value; /* borrowed for the call */
} iso_op;

typedef iso_err iso_row_fn(void *arg, const uint8_t *key, size_t key_bytes, const uint8_t *value,
                           size_t value_bytes, iso_error *e);

typedef struct {
    void *ctx;
    iso_err (*commit)(void *ctx, const iso_op *ops, size_t count, iso_error *e);
    /* Rows in key order (bytewise). */
    iso_err (*scan)(void *ctx, int table, iso_row_fn *row, void *arg, iso_error *e);
    /* `expect` may be NULL; when given, other content is refused. */
    iso_err (*blob_put)(void *ctx, const void *data, size_t bytes, const iso_digest *expect,
                        iso_digest *out, iso_error *e);
    iso_err (*blob_size)(void *ctx, const iso_digest *d, uint64_t *bytes, iso_error *e);
    /* Reads up to `bytes` from `offset`; *got is less only at the end. */
    iso_err (*blob_read)(void *ctx, const iso_digest *d, uint64_t offset, void *out, size_t bytes,
                         size_t *got, iso_error *e);
    iso_err (*blob_delete)(void *ctx, const iso_digest *d, iso_error *e);
} iso_store;

#endif
