/* What a coordinator's folder says it is: keys, roster, generation, epoch (specs/security.md 2). */
#ifndef ISO_COORDINATOR_IDENTITY_H
#define ISO_COORDINATOR_IDENTITY_H

#include "coordinator/core.h"
#include "crypto/key.h"

typedef struct {
    iso_coord_identity identity;
    iso_key transport, audit;
    iso_buf roster; /* container of root.pub, roster.json, roster.json.minisig */
} iso_coord_keys_file;

/* Reads keys/, root/, epoch and the digest of the backbone. passphrase may be NULL. */
iso_err iso_coord_identity_read(const char *dir, const char *backbone, const char *passphrase,
                                uint64_t wall_ms, iso_coord_keys_file *out,
                                iso_error *e) ISO_MUST_CHECK;
void iso_coord_identity_free(iso_coord_keys_file *k);

/* The container's bytes: u32 n, then per file u16 name length, name, u64 size, bytes (S32's form).
 */
iso_err iso_roster_container(const char *root_dir, iso_buf *out, iso_error *e) ISO_MUST_CHECK;

#endif
