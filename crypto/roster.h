/* roster.json: who is who (specs/security.md S14). Canonical JSON signed by the root key; a new one
 * is taken only if its version is greater by exactly one and the root key of the step before signed
 * it (a change of root: signed by both). */
#ifndef ISO_CRYPTO_ROSTER_H
#define ISO_CRYPTO_ROSTER_H

#include "core/digest.h"
#include "core/mem.h"
#include "core/wire.h"
#include "crypto/minisign.h"

enum { ISO_ROSTER_KEYS_MAX = 8, ISO_ROSTER_FORMAT = 1 };

typedef enum {
    ISO_ROSTER_ACTIVE,       /* seals or signs */
    ISO_ROSTER_DECRYPT_ONLY, /* merge keys: opens what open rounds hold (S23) */
    ISO_ROSTER_RETIRED,
    ISO_ROSTER_STATES
} iso_roster_state;

typedef struct {
    uint8_t id[16]; /* iso_merge_key_id of pk */
    uint8_t pk[32];
    uint64_t not_before_ms, not_after_ms; /* not_after 0: no end */
    iso_roster_state state;
} iso_roster_merge;

typedef struct {
    iso_minisign_public key;
    uint64_t not_before_ms, not_after_ms;
    iso_roster_state state;
} iso_roster_release;

typedef struct {
    uint8_t federation_id[16];
    uint64_t version; /* 1, 2, 3 ... */
    uint8_t coordinator_transport_pk[32];
    uint8_t audit_pk[32];
    iso_minisign_public root;
    iso_roster_merge merge[ISO_ROSTER_KEYS_MAX];
    size_t merge_count;
    iso_roster_release release[ISO_ROSTER_KEYS_MAX];
    size_t release_count;
    uint32_t threshold; /* release signatures needed: 1 or 2 */
} iso_roster;

iso_err iso_roster_format(const iso_roster *r, iso_buf *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_roster_parse(const void *text, size_t size, iso_roster *out,
                         iso_error *e) ISO_MUST_CHECK;

/* Trusted comment: "isofed-roster federation=<hex> version=<n> digest=<hex>". */
iso_err iso_roster_sign(const iso_minisign_key *root, const void *text, size_t size,
                        iso_buf *signature, iso_error *e) ISO_MUST_CHECK;
/* First roster of a site: signed by `root`, which must be the roster's own root. */
iso_err iso_roster_verify(const iso_minisign_public *root, const void *text, size_t size,
                          const void *signature, size_t signature_bytes, iso_roster *out,
                          iso_error *e) ISO_MUST_CHECK;
/* A step from the held one: federation equal, version + 1, signed by held->root and, when the root
 * changes, by the new root too (second signature, else NULL, 0). `out` is written only when all
 * holds; out == held is fine. */
iso_err iso_roster_step(const iso_roster *held, const void *text, size_t size,
                        const void *signature, size_t signature_bytes, const void *second,
                        size_t second_bytes, iso_roster *out, iso_error *e) ISO_MUST_CHECK;

/* The merge key to seal to at `now_ms` (active and valid, newest not_before), or NULL. */
const iso_roster_merge *iso_roster_merge_now(const iso_roster *r, uint64_t now_ms);
/* The release key with that id, active and valid at `now_ms`, or NULL. */
const iso_roster_release *iso_roster_release_key(const iso_roster *r, const uint8_t key_id[8],
                                                 uint64_t now_ms);

#endif
