#include "crypto/minisign.h"
#include "core/digest.h"
#include "core/fsio.h"
#include "crypto/init.h"
#include "crypto/key.h"
#include "crypto/text.h"

#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    PUBLIC_BYTES = 2 + 8 + 32,
    PUBLIC_TEXT = 160,
    SIGNATURE_BYTES = 2 + 8 + 64,
    SALT_BYTES = 32,
    /* algorithm 2, kdf 2, checksum 2, salt 32, ops 8, memory 8, then what scrypt hides: */
    HIDDEN_AT = 54,
    HIDDEN_BYTES = 8 + 64 + 32,
    SECRET_BYTES = HIDDEN_AT + HIDDEN_BYTES,
    SECRET_CHARS = (SECRET_BYTES + 2) / 3 * 4
};
static const char untrusted[] = "untrusted comment: ";
static const char trusted[] = "trusted comment: ";

/* ---- pairs ---- */

iso_err iso_minisign_from_seed(const uint8_t key_id[8], const uint8_t seed[ISO_SEED_BYTES],
                               iso_minisign_key *out, iso_error *e)
{
    memset(out, 0, sizeof *out);
    uint8_t *secret = iso_secret_alloc(ISO_ED25519_SECRET_BYTES);
    if (!secret)
        return iso_nomem(e, ISO_ED25519_SECRET_BYTES);
    memcpy(out->public_part.key_id, key_id, 8);
    crypto_sign_seed_keypair(out->public_part.public_key, secret, seed);
    out->secret = secret;
    return ISO_OK;
}

iso_err iso_minisign_make(iso_minisign_key *out, iso_error *e)
{
    uint8_t id[8];
    memset(out, 0, sizeof *out);
    uint8_t *seed = iso_secret_alloc(ISO_SEED_BYTES);
    if (!seed)
        return iso_nomem(e, ISO_SEED_BYTES);
    iso_random(id, sizeof id);
    iso_random(seed, ISO_SEED_BYTES);
    iso_err err = iso_minisign_from_seed(id, seed, out, e);
    iso_secret_free(seed);
    return err;
}

void iso_minisign_free(iso_minisign_key *k)
{
    iso_secret_free(k->secret);
    memset(k, 0, sizeof *k);
}

/* The key id as minisign prints it: a little-endian number in upper-case hex, not padded. */
static void id_text(const uint8_t id[8], char out[17])
{
    snprintf(out, 17, "%llX", (unsigned long long)iso_get_u64(id));
}

/* ---- lines ---- */

typedef struct {
    const char *at;
    size_t chars; /* without its newline, and without the '\r' before it */
} text_line;

/* Cuts `text` into exactly `count` lines (the last may lack its newline). */
static bool cut_lines(const char *text, size_t size, text_line lines[], size_t count)
{
    size_t at = 0, n = 0;
    while (at < size) {
        const char *end = memchr(text + at, '\n', size - at);
        size_t chars = end ? (size_t)(end - text) - at : size - at;
        if (n == count)
            return false;
        lines[n] = (text_line){.at = text + at, .chars = chars};
        if (chars && text[at + chars - 1] == '\r')
            lines[n].chars--;
        n++;
        at += chars + (end ? 1 : 0);
    }
    return n == count;
}

static bool starts_with(const text_line *l, const char *prefix)
{
    size_t n = strlen(prefix);
    return l->chars >= n && memcmp(l->at, prefix, n) == 0;
}

/* ---- public key ---- */

/* The file's two lines, to the byte as `minisign -G` writes them. */
static size_t public_text(const iso_minisign_public *p, char out[PUBLIC_TEXT])
{
    uint8_t bytes[PUBLIC_BYTES];
    char text[PUBLIC_BYTES * 2], id[17];
    memcpy(bytes, "Ed", 2);
    memcpy(bytes + 2, p->key_id, 8);
    memcpy(bytes + 10, p->public_key, 32);
    iso_base64_encode(bytes, sizeof bytes, text);
    id_text(p->key_id, id);
    return (size_t)snprintf(out, PUBLIC_TEXT, "%sminisign public key %s\n%s\n", untrusted, id,
                            text);
}

iso_err iso_minisign_public_format(const iso_minisign_public *p, iso_buf *out, iso_error *e)
{
    char text[PUBLIC_TEXT];
    size_t n = public_text(p, text);
    return iso_buf_append(out, text, n, e);
}

void iso_minisign_fingerprint(const iso_minisign_public *p, uint8_t out[ISO_FINGERPRINT_BYTES])
{
    char text[PUBLIC_TEXT];
    iso_digest d = iso_digest_of(text, public_text(p, text));
    memcpy(out, d.b, ISO_FINGERPRINT_BYTES);
}

iso_err iso_minisign_public_parse(const void *text, size_t size, const char *what,
                                  iso_minisign_public *out, iso_error *e)
{
    uint8_t bytes[PUBLIC_BYTES];
    text_line lines[2];
    memset(out, 0, sizeof *out);
    if (size > ISO_MINISIGN_FILE_MAX_BYTES || !cut_lines(text, size, lines, 2) ||
        !starts_with(&lines[0], untrusted) ||
        !iso_base64_decode(lines[1].at, lines[1].chars, bytes, sizeof bytes) ||
        memcmp(bytes, "Ed", 2) != 0)
        return iso_fail(e, ISO_ERR_DATA, "%s: is not a minisign public key", what);
    memcpy(out->key_id, bytes + 2, 8);
    memcpy(out->public_key, bytes + 10, 32);
    return ISO_OK;
}

iso_err iso_minisign_public_read(const char *path, iso_minisign_public *out, iso_error *e)
{
    iso_buf text = {0};
    memset(out, 0, sizeof *out);
    iso_err err = iso_read_file(path, ISO_MINISIGN_FILE_MAX_BYTES, &text, e);
    if (!err)
        err = iso_minisign_public_parse(text.data, text.size, path, out, e);
    iso_buf_free(&text);
    return err;
}

/* ---- secret key ---- */

/* BLAKE2b-256 of algorithm, key id and secret. */
static void checksum(const uint8_t id[8], const uint8_t secret[64], uint8_t out[32])
{
    crypto_generichash_state h;
    crypto_generichash_init(&h, NULL, 0, 32);
    crypto_generichash_update(&h, (const uint8_t *)"Ed", 2);
    crypto_generichash_update(&h, id, 8);
    crypto_generichash_update(&h, secret, 64);
    crypto_generichash_final(&h, out, 32);
}

/* minisign hides key id, secret and checksum by exclusive or with scrypt's output. */
static iso_err hide(uint8_t hidden[HIDDEN_BYTES], const char *passphrase,
                    const uint8_t salt[SALT_BYTES], uint64_t ops, uint64_t memory, iso_error *e)
{
    uint8_t *stream = iso_secret_alloc(HIDDEN_BYTES);
    if (!stream)
        return iso_nomem(e, HIDDEN_BYTES);
    iso_err err = ISO_OK;
    if (crypto_pwhash_scryptsalsa208sha256(stream, HIDDEN_BYTES, passphrase, strlen(passphrase),
                                           salt, ops, (size_t)memory) != 0)
        err = iso_fail(e, ISO_ERR_MEMORY, "no memory for scrypt (%llu MiB)",
                       (unsigned long long)memory >> 20);
    for (size_t i = 0; i < HIDDEN_BYTES && !err; i++)
        hidden[i] ^= stream[i];
    iso_secret_free(stream);
    return err;
}

iso_err iso_minisign_key_format(const iso_minisign_key *k, const char *passphrase, bool quick,
                                iso_buf *out, iso_error *e)
{
    char *text = iso_secret_alloc(SECRET_CHARS + 1);
    uint8_t *bytes = iso_secret_alloc(SECRET_BYTES);
    uint64_t ops = quick ? crypto_pwhash_scryptsalsa208sha256_OPSLIMIT_MIN
                         : crypto_pwhash_scryptsalsa208sha256_OPSLIMIT_SENSITIVE;
    uint64_t memory = quick ? crypto_pwhash_scryptsalsa208sha256_MEMLIMIT_MIN
                            : crypto_pwhash_scryptsalsa208sha256_MEMLIMIT_SENSITIVE;
    iso_err err = ISO_OK;
    if (!text || !bytes) {
        err = iso_nomem(e, SECRET_CHARS);
        goto done;
    }
    if (!k->secret) {
        err = iso_fail(e, ISO_ERR_INTERNAL, "minisign key without its secret");
        goto done;
    }
    memcpy(bytes, "Ed", 2);
    memcpy(bytes + 4, "B2", 2);
    memcpy(bytes + HIDDEN_AT, k->public_part.key_id, 8);
    memcpy(bytes + HIDDEN_AT + 8, k->secret, 64);
    if (passphrase) { /* else kdf, salt, cost and checksum stay zero, as minisign -G -W does */
        checksum(k->public_part.key_id, k->secret, bytes + HIDDEN_AT + 72);
        memcpy(bytes + 2, "Sc", 2);
        iso_random(bytes + 6, SALT_BYTES);
        iso_put_u64(bytes + 38, ops);
        iso_put_u64(bytes + 46, memory);
        err = hide(bytes + HIDDEN_AT, passphrase, bytes + 6, ops, memory, e);
    }
    if (err)
        goto done;
    iso_base64_encode(bytes, SECRET_BYTES, text);
    err = iso_buf_reserve(out, 512, e); /* no copies by growth */
    if (!err)
        err = iso_buf_printf(out, e, "%sminisign %s secret key\n%s\n", untrusted,
                             passphrase ? "encrypted" : "unencrypted", text);
done:
    iso_secret_free(text);
    iso_secret_free(bytes);
    return err;
}

iso_err iso_minisign_key_parse(const void *text, size_t size, const char *what,
                               const char *passphrase, iso_minisign_key *out, iso_error *e)
{
    static const uint8_t no_kdf[2] = {0, 0};
    text_line lines[2];
    uint8_t sum[32], *hidden = NULL;
    memset(out, 0, sizeof *out);
    uint8_t *bytes = iso_secret_alloc(SECRET_BYTES);
    if (!bytes)
        return iso_nomem(e, SECRET_BYTES);
    iso_err err = ISO_OK;
    bool is_sealed = false;
    if (size > ISO_MINISIGN_FILE_MAX_BYTES || !cut_lines(text, size, lines, 2) ||
        !starts_with(&lines[0], untrusted) ||
        !iso_base64_decode(lines[1].at, lines[1].chars, bytes, SECRET_BYTES) ||
        memcmp(bytes, "Ed", 2) != 0 || memcmp(bytes + 4, "B2", 2) != 0) {
        err = iso_fail(e, ISO_ERR_DATA, "%s: is not a minisign secret key", what);
        goto done;
    }
    hidden = bytes + HIDDEN_AT;
    is_sealed = memcmp(bytes + 2, "Sc", 2) == 0;
    if (!is_sealed && memcmp(bytes + 2, no_kdf, 2) != 0) {
        err = iso_fail(e, ISO_ERR_DATA, "%s: its key derivation is not known", what);
        goto done;
    }
    if (is_sealed && !passphrase) {
        err = iso_fail(e, ISO_ERR_TRUST, "%s: is sealed: a passphrase is needed", what);
        goto done;
    }
    if (is_sealed) {
        uint64_t ops = iso_get_u64(bytes + 38), memory = iso_get_u64(bytes + 46);
        /* minisign's own cost is the ceiling: a file must not choose ours (9.1, KDF bomb). */
        if (ops > crypto_pwhash_scryptsalsa208sha256_OPSLIMIT_SENSITIVE ||
            memory > crypto_pwhash_scryptsalsa208sha256_MEMLIMIT_SENSITIVE) {
            err = iso_fail(e, ISO_ERR_TRUST, "%s: KEY_KDF: asks for more than minisign does", what);
            goto done;
        }
        err = hide(hidden, passphrase, bytes + 6, ops, memory, e);
        if (err)
            goto done;
    }
    checksum(hidden, hidden + 8, sum);
    if (!is_sealed && sodium_is_zero(hidden + 72, 32)) /* minisign writes none without a kdf */
        memcpy(hidden + 72, sum, 32);
    if (!iso_secret_equal(sum, hidden + 72, 32)) {
        err = iso_fail(e, ISO_ERR_TRUST, "%s: wrong passphrase, or the file was edited", what);
        goto done;
    }
    err = iso_minisign_from_seed(hidden, hidden + 8, out, e);
    /* S13: the secret's second half is the public key; it must be what the seed gives. */
    if (!err && memcmp(out->secret, hidden + 8, 64) != 0)
        err = iso_fail(e, ISO_ERR_TRUST, "%s: the public key does not belong to the secret", what);
done:
    iso_secret_free(bytes);
    if (err)
        iso_minisign_free(out);
    return err;
}

iso_err iso_minisign_key_write(const iso_minisign_key *k, const char *path, const char *passphrase,
                               iso_error *e)
{
    iso_buf text = {0};
    iso_err err = iso_minisign_key_format(k, passphrase, false, &text, e);
    if (!err)
        err = iso_secret_file_write(path, text.data, text.size, e);
    if (text.data)
        iso_wipe(text.data, text.capacity);
    iso_buf_free(&text);
    return err;
}

iso_err iso_minisign_key_read(const char *path, const char *passphrase, iso_minisign_key *out,
                              iso_error *e)
{
    iso_buf text = {0};
    memset(out, 0, sizeof *out);
    iso_err err = iso_secret_file_read(path, ISO_MINISIGN_FILE_MAX_BYTES, &text, e);
    if (!err)
        err = iso_minisign_key_parse(text.data, text.size, path, passphrase, out, e);
    if (text.data)
        iso_wipe(text.data, text.capacity);
    iso_buf_free(&text);
    return err;
}

/* ---- signatures ---- */

/* No control characters, so that one line is one line; minisign's own comments hold tabs. */
static bool comment_is_fine(const char *comment, size_t chars)
{
    for (size_t i = 0; i < chars; i++)
        if (((unsigned char)comment[i] < 0x20 && comment[i] != '\t') || comment[i] == 0x7f)
            return false;
    return chars < ISO_MINISIGN_COMMENT_MAX;
}

/* The second signature covers the first and the trusted comment. */
static void global_message(const uint8_t signature[64], const char *comment, size_t chars,
                           uint8_t out[64 + ISO_MINISIGN_COMMENT_MAX])
{
    memcpy(out, signature, 64);
    memcpy(out + 64, comment, chars);
}

iso_err iso_minisign_sign(const iso_minisign_key *k, const void *data, size_t bytes,
                          const char *trusted_comment, iso_buf *out, iso_error *e)
{
    uint8_t digest[64], line[SIGNATURE_BYTES], global[64];
    uint8_t message[64 + ISO_MINISIGN_COMMENT_MAX];
    char text[SIGNATURE_BYTES * 2], global_text[96], id[17];
    size_t chars = strlen(trusted_comment);
    if (!k->secret)
        return iso_fail(e, ISO_ERR_INTERNAL, "minisign key without its secret");
    if (!comment_is_fine(trusted_comment, chars))
        return iso_fail(e, ISO_ERR_INTERNAL, "trusted comment is too long or holds controls");
    iso_blake2b_512(data, bytes, digest);
    memcpy(line, "ED", 2);
    memcpy(line + 2, k->public_part.key_id, 8);
    crypto_sign_detached(line + 10, NULL, digest, sizeof digest, k->secret);
    global_message(line + 10, trusted_comment, chars, message);
    crypto_sign_detached(global, NULL, message, 64 + chars, k->secret);
    iso_base64_encode(line, sizeof line, text);
    iso_base64_encode(global, sizeof global, global_text);
    id_text(k->public_part.key_id, id);
    return iso_buf_printf(out, e, "%ssignature by key %s\n%s\n%s%s\n%s\n", untrusted, id, text,
                          trusted, trusted_comment, global_text);
}

typedef struct {
    uint8_t line[SIGNATURE_BYTES]; /* "ED", key id, signature */
    uint8_t global[64];
    text_line comment;
} signature_file;

static iso_err parse_signature(const void *text, size_t size, const char *what, signature_file *out,
                               iso_error *e)
{
    text_line lines[4];
    if (size > ISO_MINISIGN_FILE_MAX_BYTES || !cut_lines(text, size, lines, 4) ||
        !starts_with(&lines[0], untrusted) || !starts_with(&lines[2], trusted) ||
        !iso_base64_decode(lines[1].at, lines[1].chars, out->line, sizeof out->line) ||
        !iso_base64_decode(lines[3].at, lines[3].chars, out->global, sizeof out->global))
        return iso_fail(e, ISO_ERR_DATA, "%s: is not a minisign signature", what);
    if (memcmp(out->line, "Ed", 2) == 0)
        return iso_fail(e, ISO_ERR_TRUST,
                        "%s: is a legacy signature (\"Ed\"): sign with minisign 0.6 or newer",
                        what);
    if (memcmp(out->line, "ED", 2) != 0)
        return iso_fail(e, ISO_ERR_DATA, "%s: its signature algorithm is not known", what);
    out->comment.at = lines[2].at + strlen(trusted);
    out->comment.chars = lines[2].chars - strlen(trusted);
    if (!comment_is_fine(out->comment.at, out->comment.chars))
        return iso_fail(e, ISO_ERR_DATA, "%s: trusted comment is too long or holds controls", what);
    return ISO_OK;
}

iso_err iso_minisign_verify(const iso_minisign_public *p, const void *data, size_t bytes,
                            const void *signature_text, size_t signature_bytes, const char *what,
                            char comment[ISO_MINISIGN_COMMENT_MAX], iso_error *e)
{
    uint8_t digest[64], message[64 + ISO_MINISIGN_COMMENT_MAX];
    signature_file s;
    char has[17], wants[17];
    if (comment)
        comment[0] = 0;
    iso_err err = parse_signature(signature_text, signature_bytes, what, &s, e);
    if (err)
        return err;
    id_text(s.line + 2, has);
    id_text(p->key_id, wants);
    if (memcmp(s.line + 2, p->key_id, 8) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "%s: is by key %s, not by key %s", what, has, wants);
    iso_blake2b_512(data, bytes, digest);
    if (crypto_sign_verify_detached(s.line + 10, digest, sizeof digest, p->public_key) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "%s: the signature does not hold under key %s", what,
                        wants);
    global_message(s.line + 10, s.comment.at, s.comment.chars, message);
    if (crypto_sign_verify_detached(s.global, message, 64 + s.comment.chars, p->public_key) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "%s: the trusted comment was changed", what);
    if (comment) {
        memcpy(comment, s.comment.at, s.comment.chars);
        comment[s.comment.chars] = 0;
    }
    return ISO_OK;
}

iso_err iso_minisign_signer(const void *signature_text, size_t signature_bytes, const char *what,
                            uint8_t key_id[8], iso_error *e)
{
    signature_file s;
    memset(key_id, 0, 8);
    iso_err err = parse_signature(signature_text, signature_bytes, what, &s, e);
    if (!err)
        memcpy(key_id, s.line + 2, 8);
    return err;
}
