/* minisign's files (format of minisign 0.11), so that people can check a release without us
 * (specs/security.md S91). Prehashed "ED" signatures only: Ed25519 over BLAKE2b-512 of the data,
 * and a second signature over the first and the trusted comment. Legacy "Ed" is refused. */
#ifndef ISO_CRYPTO_MINISIGN_H
#define ISO_CRYPTO_MINISIGN_H

#include "core/mem.h"
#include "core/wire.h"
#include "crypto/sign.h"

enum {
    ISO_MINISIGN_COMMENT_MAX = 1024,
    ISO_MINISIGN_FILE_MAX_BYTES = 8192,
    ISO_MINISIGN_ID_BYTES = 8
};

typedef struct {
    uint8_t key_id[ISO_MINISIGN_ID_BYTES];
    uint8_t public_key[ISO_PK_BYTES];
} iso_minisign_public;

typedef struct {
    iso_minisign_public public_part;
    uint8_t *secret; /* owned, locked: 64 bytes */
} iso_minisign_key;

iso_err iso_minisign_make(iso_minisign_key *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_minisign_from_seed(const uint8_t key_id[8], const uint8_t seed[ISO_SEED_BYTES],
                               iso_minisign_key *out, iso_error *e) ISO_MUST_CHECK;
void iso_minisign_free(iso_minisign_key *k);

/* minisign.pub: two lines. */
iso_err iso_minisign_public_format(const iso_minisign_public *p, iso_buf *out,
                                   iso_error *e) ISO_MUST_CHECK;
iso_err iso_minisign_public_parse(const void *text, size_t size, const char *what,
                                  iso_minisign_public *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_minisign_public_read(const char *path, iso_minisign_public *out,
                                 iso_error *e) ISO_MUST_CHECK;

/* minisign.key: passphrase NULL writes an unencrypted key (as `minisign -G -W`), else scrypt with
 * minisign's own cost (it takes a second and 1 GiB; set `quick` in tests only). */
iso_err iso_minisign_key_format(const iso_minisign_key *k, const char *passphrase, bool quick,
                                iso_buf *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_minisign_key_parse(const void *text, size_t size, const char *what,
                               const char *passphrase, iso_minisign_key *out,
                               iso_error *e) ISO_MUST_CHECK;
/* Rules of S11 for the file. */
iso_err iso_minisign_key_write(const iso_minisign_key *k, const char *path, const char *passphrase,
                               iso_error *e) ISO_MUST_CHECK;
iso_err iso_minisign_key_read(const char *path, const char *passphrase, iso_minisign_key *out,
                              iso_error *e) ISO_MUST_CHECK;

/* Text of the .minisig file; the comment may not hold control characters. */
iso_err iso_minisign_sign(const iso_minisign_key *k, const void *data, size_t bytes,
                          const char *trusted_comment, iso_buf *out, iso_error *e) ISO_MUST_CHECK;
/* ISO_ERR_TRUST when it does not verify under `p`; the trusted comment goes to `comment` (may be
 * NULL) only when it does. `what` names the signature file in errors. */
iso_err iso_minisign_verify(const iso_minisign_public *p, const void *data, size_t bytes,
                            const void *signature_text, size_t signature_bytes, const char *what,
                            char comment[ISO_MINISIGN_COMMENT_MAX], iso_error *e) ISO_MUST_CHECK;
/* Key id that a signature file names, unverified: to choose among the roster's keys. */
iso_err iso_minisign_signer(const void *signature_text, size_t signature_bytes, const char *what,
                            uint8_t key_id[8], iso_error *e) ISO_MUST_CHECK;

/* Root fingerprint of the enrolment line: first 20 bytes of BLAKE2b-256 of the file root.pub as
 * iso_minisign_public_format() (and `minisign -G`) writes it, so `b2sum -l 256 root.pub` shows it
 * too. */
void iso_minisign_fingerprint(const iso_minisign_public *p, uint8_t out[ISO_FINGERPRINT_BYTES]);

#endif
