/* Keys and key files (specs/security.md 2, 2.1). A secret lives in locked memory and in one file
 * of mode 0600, sealed under a passphrase (Argon2id) or, for unattended start, bare (`kdf: none`).
 * Release and root keys are minisign's and live in its formats: crypto/minisign.h. */
#ifndef ISO_CRYPTO_KEY_H
#define ISO_CRYPTO_KEY_H

#include "core/mem.h"
#include "core/wire.h"
#include "crypto/sign.h"

typedef enum {
    ISO_KEY_ANY = 0,               /* for reading only */
    ISO_KEY_COORDINATOR_TRANSPORT, /* X25519 (CURVE): "coordinator-transport" */
    ISO_KEY_SITE_TRANSPORT,        /* X25519 (CURVE): "site-transport" */
    ISO_KEY_SITE_SIGN,             /* Ed25519: "site-sign" */
    ISO_KEY_MERGE,                 /* X25519: "merge" */
    ISO_KEY_AUDIT,                 /* Ed25519: "audit" */
    ISO_KEY_BACKUP,                /* X25519: "backup" (S28) */
    ISO_KEY_KINDS
} iso_key_kind;
const char *iso_key_kind_name(iso_key_kind kind);
bool iso_key_kind_parse(const char *name, iso_key_kind *out);
bool iso_key_kind_signs(iso_key_kind kind); /* Ed25519; else X25519 */

typedef struct {
    iso_key_kind kind;
    uint8_t public_key[ISO_PK_BYTES];
    uint8_t *secret;     /* owned, locked: 64 bytes (Ed25519) or 32 (X25519) */
    uint64_t created_ms; /* UTC, whole seconds */
    bool is_bare;        /* read from a file with `kdf: none` (said in `isofed status`, S12) */
} iso_key;

/* A fresh pair. */
iso_err iso_key_make(iso_key_kind kind, uint64_t created_ms, iso_key *out,
                     iso_error *e) ISO_MUST_CHECK;
/* The pair that a 32-byte seed gives (Ed25519 seed or X25519 secret); tests and recovery. */
iso_err iso_key_from_seed(iso_key_kind kind, const uint8_t seed[ISO_SEED_BYTES],
                          uint64_t created_ms, iso_key *out, iso_error *e) ISO_MUST_CHECK;
void iso_key_free(iso_key *k); /* wipes; a zeroed struct is fine */

/* What Argon2id costs; written into the file and bounded on reading (S10). */
typedef struct {
    uint32_t passes;       /* 1 - 10 */
    uint64_t memory_bytes; /* 8 MiB - 1 GiB */
} iso_kdf_cost;
iso_kdf_cost iso_kdf_moderate(void); /* 3 passes, 256 MiB */

/* The file's text. passphrase NULL: `kdf: none`. cost NULL: MODERATE. */
iso_err iso_key_format(const iso_key *k, const char *passphrase, const iso_kdf_cost *cost,
                       iso_buf *out, iso_error *e) ISO_MUST_CHECK;
/* `what` names the source in errors. passphrase NULL on a sealed file: ISO_ERR_TRUST "passphrase
 * needed". Bad text: ISO_ERR_DATA; wrong kind, wrong passphrase, edited line: ISO_ERR_TRUST. */
iso_err iso_key_parse(const void *text, size_t size, const char *what, iso_key_kind expected,
                      const char *passphrase, iso_key *out, iso_error *e) ISO_MUST_CHECK;
/* Public part only, without passphrase (kind, public key, created). */
iso_err iso_key_parse_public(const void *text, size_t size, const char *what, iso_key *out,
                             iso_error *e) ISO_MUST_CHECK;

/* S11: new file only (an existing one is ISO_ERR_TRUST), mode 0600, synced with its folder. */
iso_err iso_key_write(const iso_key *k, const char *path, const char *passphrase,
                      const iso_kdf_cost *cost, iso_error *e) ISO_MUST_CHECK;
/* S11, S13: refuses loose modes, foreign owners, symbolic links, a public key that does not fit. */
iso_err iso_key_read(const char *path, iso_key_kind expected, const char *passphrase, iso_key *out,
                     iso_error *e) ISO_MUST_CHECK;
iso_err iso_key_read_public(const char *path, iso_key *out, iso_error *e) ISO_MUST_CHECK;

/* Any secret text file under the rules of S11 (minisign secret keys too). */
iso_err iso_secret_file_write(const char *path, const void *text, size_t size,
                              iso_error *e) ISO_MUST_CHECK;
iso_err iso_secret_file_read(const char *path, size_t max_bytes, iso_buf *out,
                             iso_error *e) ISO_MUST_CHECK;

/* ---- who is who: S9 ---- */

/* First 16 bytes of BLAKE2b-256("isofed-site-1" + transport_pk + sign_pk). */
void iso_site_id(const uint8_t transport_pk[32], const uint8_t sign_pk[32],
                 uint8_t id[ISO_ID_BYTES]);
/* First 20 bytes of the same digest. */
void iso_site_fingerprint(const uint8_t transport_pk[32], const uint8_t sign_pk[32],
                          uint8_t out[ISO_FINGERPRINT_BYTES]);
/* First 16 bytes of BLAKE2b-256("isofed-merge-1" + pk): merge_key_id of the header. */
void iso_merge_key_id(const uint8_t pk[32], uint8_t id[ISO_ID_BYTES]);

enum { ISO_FINGERPRINT_TEXT = 32 + 7 + 1 }; /* 8 groups of 4 with '-' between, and NUL */
/* Crockford base32, groups of 4: "9TRA-…". */
void iso_fingerprint_text(const uint8_t fingerprint[ISO_FINGERPRINT_BYTES],
                          char out[ISO_FINGERPRINT_TEXT]);

#endif
