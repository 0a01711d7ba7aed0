/* Envelope of an adapter update: signed header, sealed body (specs/security.md 3).
 *
 * The signature covers the ciphertext (through the header's body digest) and the sealed part names
 * the signer, so neither re-signing a stolen body nor re-sealing works. File: header 384 bytes,
 * chunks of ciphertext, signature 64 bytes. docs/FORMATS.md has the byte table. */
#ifndef ISO_CRYPTO_ENVELOPE_H
#define ISO_CRYPTO_ENVELOPE_H

#include "core/digest.h"
#include "core/mem.h"
#include "core/wire.h"
#include "crypto/key.h"

enum {
    ISO_ENVELOPE_HEADER_BYTES = 384,
    ISO_ENVELOPE_INNER_BYTES = 160,
    ISO_ENVELOPE_TRAILER_BYTES = 64, /* the signature */
    ISO_COMPRESSION_NONE = 0,
    ISO_COMPRESSION_ZSTD = 1
};

typedef struct {
    uint8_t seal_mode;   /* 0: sealed to the merge key; others reserved (S2) */
    uint8_t compression; /* ISO_COMPRESSION_* */
    uint8_t federation_id[16], site_id[16], task_id[16];
    uint64_t round;
    uint64_t generation;
    iso_digest generation_digest;
    iso_digest base_digest; /* adapter the training started from; zero if fresh */
    uint64_t sequence;      /* per site, strictly rising */
    uint64_t created_ms;
    uint64_t plain_size;  /* payload bytes before compression */
    uint64_t stream_size; /* 160 + payload bytes after compression */
    uint32_t chunk_size;
    uint32_t chunk_count;
    uint64_t sample_count;
    float score;           /* finite */
    uint16_t adapter_kind; /* iso_kind */
    uint16_t metric;       /* iso_metric */
    uint8_t merge_key_id[16];
    uint8_t update_id[16];
    uint8_t stream_header[24];
    uint8_t key_box[80];
    iso_digest body_digest;
} iso_envelope;

/* Bytes of a header; no check. */
void iso_envelope_encode(const iso_envelope *h, uint8_t out[ISO_ENVELOPE_HEADER_BYTES]);
/* Row 1 of 3.2 and what the header alone shows to be canonical (S33): size, magic, version,
 * reserved zeros, known compression, exact chunk arithmetic, inflation ratio, update_id, finite
 * score, sample_count. On refusal *code is BAD_ENVELOPE (SEAL_MODE for an unknown seal mode). The
 * caller compares kind and metric with the task (row 3) and sizes with its ceilings (row 4). */
iso_err iso_envelope_decode(const void *bytes, size_t size, iso_envelope *out, iso_code *code,
                            iso_error *e) ISO_MUST_CHECK;
/* Row 7: from header and trailer alone. *code is SIGNATURE on refusal. */
iso_err iso_envelope_check_signature(const uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                                     const uint8_t signature[ISO_SIGNATURE_BYTES],
                                     const uint8_t sign_pk[ISO_PK_BYTES], iso_code *code,
                                     iso_error *e) ISO_MUST_CHECK;

/* BLAKE2b-256 of the 384 bytes: names the header in receipts, resume and equivocation (S38, S52).
 */
iso_digest iso_envelope_digest(const uint8_t header[ISO_ENVELOPE_HEADER_BYTES]);
/* First 16 bytes of BLAKE2b-256(site_id + task_id + round + sequence). */
void iso_update_id(const uint8_t site_id[16], const uint8_t task_id[16], uint64_t round,
                   uint64_t sequence, uint8_t out[16]);
/* Ciphertext bytes of chunk i, of the body, of the whole file. Header must have been checked. */
uint32_t iso_envelope_chunk_bytes(const iso_envelope *h, uint32_t i);
uint64_t iso_envelope_body_bytes(const iso_envelope *h);
uint64_t iso_envelope_file_bytes(const iso_envelope *h);

/* Seals `payload` (a container, below) into `out`, which is appended to nothing: it must be empty.
 *   h        in: federation, site, task, round, generation and digests, base, sequence, created_ms,
 *            sample_count, score, kind, metric, compression, chunk_size (0: 256 KiB);
 *            out: every field as written
 *   sign     the site's signing key (ISO_KEY_SITE_SIGN)
 *   merge_pk merge public key of the roster; merge_key_id follows from it
 * zstd falls back to none when it does not make the payload smaller. The stream key is fresh each
 * time, so a second call gives other bytes: sealing again needs a new sequence (S34). */
iso_err iso_envelope_seal(iso_envelope *h, const void *payload, size_t payload_bytes,
                          const iso_key *sign, const uint8_t merge_pk[ISO_PK_BYTES], iso_buf *out,
                          iso_error *e) ISO_MUST_CHECK;
/* The same into a new file (mode 0600), durable on return; memory is one chunk, and the compressed
 * payload with zstd. */
iso_err iso_envelope_seal_file(iso_envelope *h, const void *payload, size_t payload_bytes,
                               const iso_key *sign, const uint8_t merge_pk[ISO_PK_BYTES],
                               const char *path, iso_error *e) ISO_MUST_CHECK;

/* Where a sealed update is read from: memory, a file, parts of it. Reads exactly `bytes`. */
typedef struct {
    void *ctx;
    uint64_t size; /* of the whole envelope */
    iso_err (*read)(void *ctx, uint64_t offset, void *out, size_t bytes, iso_error *e);
} iso_envelope_source;

typedef struct {
    const iso_key *merge_key;     /* ISO_KEY_MERGE, with secret */
    const uint8_t *sign_pk;       /* 32 bytes: the site's signing key by the roster */
    const uint8_t *federation_id; /* 16 bytes */
    uint64_t max_plain_bytes;     /* the task's ceiling; 0: ISO_UPDATE_MAX_BYTES */
} iso_open_options;

/* Rows 1, 7, 12 and 13 of 3.2, in that order; `payload` holds the container only when all hold.
 * On refusal *code says why (BAD_ENVELOPE SEAL_MODE WRONG_SITE TOO_LARGE MERGE_KEY SIGNATURE
 * BODY_DIGEST SEALED STREAM STREAM_TAG TRUNCATED INNER_MISMATCH INFLATE CONTAINER) and payload is
 * empty. Memory before the payload itself: one chunk + 64 KiB (and zstd's window, <= 8 MiB). */
iso_err iso_envelope_open(const iso_envelope_source *source, const iso_open_options *opt,
                          iso_envelope *h, iso_buf *payload, iso_code *code,
                          iso_error *e) ISO_MUST_CHECK;
iso_err iso_envelope_open_memory(const void *bytes, size_t size, const iso_open_options *opt,
                                 iso_envelope *h, iso_buf *payload, iso_code *code,
                                 iso_error *e) ISO_MUST_CHECK;
iso_err iso_envelope_open_file(const char *path, const iso_open_options *opt, iso_envelope *h,
                               iso_buf *payload, iso_code *code, iso_error *e) ISO_MUST_CHECK;

#endif
