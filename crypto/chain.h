/* Audit chain, signed heads and receipts (specs/security.md S52, S101, S105). All little-endian.
 *
 * Entry   u64 seq, u64 time_ms, u16 type, 16 actor, 32 subject digest, u32 len, canonical JSON
 *         (70 bytes before the JSON; the type's high byte is the entry format's version, 1)
 * Head    152 bytes: magic "ISOFEDH1" 0, federation_id 8, epoch 24, seq 32, h 40, release number
 * 72, manifest digest 80, time_ms 112, digest of the previous head 120 (zero for the first) Receipt
 * 136 bytes: magic "ISOFEDR1" 0, federation_id 8, site_id 24, update_id 40, header digest 56, epoch
 * 88, audit_seq 96, audit_head 104 */
#ifndef ISO_CRYPTO_CHAIN_H
#define ISO_CRYPTO_CHAIN_H

#include "core/digest.h"
#include "core/mem.h"
#include "core/wire.h"
#include "crypto/sign.h"

enum {
    ISO_AUDIT_PREFIX_BYTES = 70,
    ISO_AUDIT_FORMAT = 1,
    ISO_HEAD_BYTES = 152,
    ISO_SIGNED_HEAD_BYTES = 152 + 64,
    ISO_RECEIPT_BYTES = 136
};

/* S103. Append only. */
typedef enum {
    ISO_AUDIT_INIT = 1,
    ISO_AUDIT_KEY,
    ISO_AUDIT_TOKEN,
    ISO_AUDIT_ENROL,
    ISO_AUDIT_APPROVE,
    ISO_AUDIT_REVOKE,
    ISO_AUDIT_ROUND,
    ISO_AUDIT_BEGIN_REFUSED,
    ISO_AUDIT_COMMITTED,
    ISO_AUDIT_REFUSED,
    ISO_AUDIT_EQUIVOCATION,
    ISO_AUDIT_INPUT_SET,
    ISO_AUDIT_MERGE,
    ISO_AUDIT_GATE,
    ISO_AUDIT_RELEASE,
    ISO_AUDIT_ROLLBACK,
    ISO_AUDIT_GENERATION,
    ISO_AUDIT_CONFIG,
    ISO_AUDIT_ADMIN_LOGIN,
    ISO_AUDIT_BACKUP,
    ISO_AUDIT_RESTORE,
    ISO_AUDIT_RETENTION,
    ISO_AUDIT_ALARM,
    ISO_AUDIT_START,
    ISO_AUDIT_STOP,
    ISO_AUDIT_QUARANTINE,
    ISO_AUDIT_VERDICT,
    ISO_AUDIT_TYPES
} iso_audit_type;
const char *iso_audit_type_name(iso_audit_type t); /* "begin_refused" */

typedef struct {
    uint64_t seq; /* 1, 2, 3 ... */
    uint64_t time_ms;
    iso_audit_type type;
    uint8_t actor[16];   /* site id, operator, or zero for the coordinator itself */
    iso_digest subject;  /* what it is about: an update's header, a manifest ... or zero */
    const char *details; /* canonical JSON with its newline; on decoding borrowed from the bytes */
    size_t details_bytes;
} iso_audit_entry;

/* Appends the entry's bytes to `out`; ISO_ERR_INTERNAL above 4 KiB or with an unknown type. */
iso_err iso_audit_encode(const iso_audit_entry *a, iso_buf *out, iso_error *e) ISO_MUST_CHECK;
/* Layout, known type and format, canonical JSON. */
iso_err iso_audit_decode(const void *bytes, size_t size, iso_audit_entry *out,
                         iso_error *e) ISO_MUST_CHECK;

/* h_0: keyed digest over federation id, epoch, audit public key. */
iso_digest iso_chain_start(const uint8_t federation_id[16], uint64_t epoch,
                           const uint8_t audit_pk[32]);
/* h_i: keyed digest over h_(i-1) and the entry's bytes. */
iso_digest iso_chain_next(const iso_digest *previous, const void *entry, size_t bytes);

/* Walks a chain and checks S104's part that needs no key: seq without gaps, time not falling by
 * more than 5 s, entries well formed. */
typedef struct {
    uint64_t seq, time_ms;
    iso_digest h;
} iso_chain;
iso_chain iso_chain_open(const uint8_t federation_id[16], uint64_t epoch,
                         const uint8_t audit_pk[32]);
iso_err iso_chain_add(iso_chain *c, const void *entry, size_t bytes, iso_error *e) ISO_MUST_CHECK;

/* ---- signed head ---- */
typedef struct {
    uint8_t federation_id[16];
    uint64_t epoch, seq;
    iso_digest h;
    uint64_t release;    /* newest number, 0 before the first */
    iso_digest manifest; /* of release.json, zero before the first */
    uint64_t time_ms;
    iso_digest previous; /* BLAKE2b-256 of the previous head's 152 bytes */
} iso_head;
void iso_head_encode(const iso_head *h, uint8_t out[ISO_HEAD_BYTES]);
iso_err iso_head_decode(const void *bytes, size_t size, iso_head *out, iso_error *e) ISO_MUST_CHECK;
/* Digest that the next head's `previous` holds. */
iso_digest iso_head_digest(const uint8_t bytes[ISO_HEAD_BYTES]);
/* Head and signature, 216 bytes, as HelloReply and ReleaseOffer carry it. Label ISO_LABEL_HEAD. */
void iso_head_sign(const iso_head *h, const iso_sealer *sealer, uint8_t out[ISO_SIGNED_HEAD_BYTES]);
iso_err iso_head_check(const void *bytes, size_t size, const uint8_t audit_pk[32],
                       const iso_sealer *sealer, iso_head *out, iso_error *e) ISO_MUST_CHECK;

/* ---- receipt ---- */
typedef struct {
    uint8_t federation_id[16], site_id[16], update_id[16];
    iso_digest header_digest;
    uint64_t epoch, audit_seq;
    iso_digest audit_head;
} iso_receipt;
void iso_receipt_encode(const iso_receipt *r, uint8_t out[ISO_RECEIPT_BYTES]);
iso_err iso_receipt_decode(const void *bytes, size_t size, iso_receipt *out,
                           iso_error *e) ISO_MUST_CHECK;
/* Label ISO_LABEL_RECEIPT. */
iso_err iso_receipt_check(const void *bytes, size_t size,
                          const uint8_t signature[ISO_SIGNATURE_BYTES], const uint8_t audit_pk[32],
                          const iso_sealer *sealer, iso_receipt *out, iso_error *e) ISO_MUST_CHECK;

#endif
