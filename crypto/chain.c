#include "crypto/chain.h"
#include "core/json.h"

#include <sodium.h>
#include <string.h>

static const char head_magic[8] = {'I', 'S', 'O', 'F', 'E', 'D', 'H', '1'};
static const char receipt_magic[8] = {'I', 'S', 'O', 'F', 'E', 'D', 'R', '1'};
enum { CLOCK_SLACK_MS = 5000 };

static const char *const type_names[ISO_AUDIT_TYPES] = {
    [ISO_AUDIT_INIT] = "init",
    [ISO_AUDIT_KEY] = "key",
    [ISO_AUDIT_TOKEN] = "token",
    [ISO_AUDIT_ENROL] = "enrol",
    [ISO_AUDIT_APPROVE] = "approve",
    [ISO_AUDIT_REVOKE] = "revoke",
    [ISO_AUDIT_ROUND] = "round",
    [ISO_AUDIT_BEGIN_REFUSED] = "begin_refused",
    [ISO_AUDIT_COMMITTED] = "committed",
    [ISO_AUDIT_REFUSED] = "refused",
    [ISO_AUDIT_EQUIVOCATION] = "equivocation",
    [ISO_AUDIT_INPUT_SET] = "input_set",
    [ISO_AUDIT_MERGE] = "merge",
    [ISO_AUDIT_GATE] = "gate",
    [ISO_AUDIT_RELEASE] = "release",
    [ISO_AUDIT_ROLLBACK] = "rollback",
    [ISO_AUDIT_GENERATION] = "generation",
    [ISO_AUDIT_CONFIG] = "config",
    [ISO_AUDIT_ADMIN_LOGIN] = "admin_login",
    [ISO_AUDIT_BACKUP] = "backup",
    [ISO_AUDIT_RESTORE] = "restore",
    [ISO_AUDIT_RETENTION] = "retention",
    [ISO_AUDIT_ALARM] = "alarm",
    [ISO_AUDIT_START] = "start",
    [ISO_AUDIT_STOP] = "stop",
    [ISO_AUDIT_QUARANTINE] = "quarantine",
    [ISO_AUDIT_VERDICT] = "verdict",
};

const char *iso_audit_type_name(iso_audit_type t)
{
    return (unsigned)t < ISO_AUDIT_TYPES && type_names[t] ? type_names[t] : "unknown";
}

/* ---- entries ---- */

iso_err iso_audit_encode(const iso_audit_entry *a, iso_buf *out, iso_error *e)
{
    uint8_t p[ISO_AUDIT_PREFIX_BYTES];
    if (a->type <= 0 || a->type >= ISO_AUDIT_TYPES)
        return iso_fail(e, ISO_ERR_INTERNAL, "audit type %d", (int)a->type);
    if (a->details_bytes > ISO_AUDIT_ENTRY_MAX_BYTES - ISO_AUDIT_PREFIX_BYTES)
        return iso_fail(e, ISO_ERR_INTERNAL, "audit entry above %d bytes",
                        ISO_AUDIT_ENTRY_MAX_BYTES);
    iso_put_u64(p, a->seq);
    iso_put_u64(p + 8, a->time_ms);
    iso_put_u16(p + 16, (uint16_t)(ISO_AUDIT_FORMAT << 8 | a->type));
    memcpy(p + 18, a->actor, 16);
    memcpy(p + 34, a->subject.b, 32);
    iso_put_u32(p + 66, (uint32_t)a->details_bytes);
    iso_err err = iso_buf_append(out, p, sizeof p, e);
    if (!err)
        err = iso_buf_append(out, a->details, a->details_bytes, e);
    return err;
}

iso_err iso_audit_decode(const void *bytes, size_t size, iso_audit_entry *out, iso_error *e)
{
    const uint8_t *p = bytes;
    memset(out, 0, sizeof *out);
    if (size < ISO_AUDIT_PREFIX_BYTES || size > ISO_AUDIT_ENTRY_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "audit entry of %zu bytes", size);
    uint16_t type = iso_get_u16(p + 16);
    uint32_t details = iso_get_u32(p + 66);
    if (type >> 8 != ISO_AUDIT_FORMAT || (type & 255) == 0 || (type & 255) >= ISO_AUDIT_TYPES)
        return iso_fail(e, ISO_ERR_DATA, "audit entry: type 0x%04x is not known", type);
    if (details != size - ISO_AUDIT_PREFIX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "audit entry: %u bytes of details named, %zu there",
                        details, size - ISO_AUDIT_PREFIX_BYTES);
    out->seq = iso_get_u64(p);
    out->time_ms = iso_get_u64(p + 8);
    out->type = (iso_audit_type)(type & 255);
    memcpy(out->actor, p + 18, 16);
    memcpy(out->subject.b, p + 34, 32);
    out->details = (const char *)p + ISO_AUDIT_PREFIX_BYTES;
    out->details_bytes = details;
    return iso_json_check_canonical(out->details, details, "audit entry", e);
}

/* ---- chain ---- */

/* BLAKE2b-256 keyed with "isofed-audit-1", zero padded to libsodium's least key length (S101). */
static iso_digest keyed(const void *a, size_t a_bytes, const void *b, size_t b_bytes)
{
    static const uint8_t key[16] = "isofed-audit-1";
    crypto_generichash_state h;
    iso_digest d;
    crypto_generichash_init(&h, key, sizeof key, sizeof d.b);
    crypto_generichash_update(&h, a, a_bytes);
    crypto_generichash_update(&h, b, b_bytes);
    crypto_generichash_final(&h, d.b, sizeof d.b);
    return d;
}

iso_digest iso_chain_start(const uint8_t federation_id[16], uint64_t epoch,
                           const uint8_t audit_pk[32])
{
    uint8_t p[24];
    memcpy(p, federation_id, 16);
    iso_put_u64(p + 16, epoch);
    return keyed(p, sizeof p, audit_pk, 32);
}

iso_digest iso_chain_next(const iso_digest *previous, const void *entry, size_t bytes)
{
    return keyed(previous->b, sizeof previous->b, entry, bytes);
}

iso_chain iso_chain_open(const uint8_t federation_id[16], uint64_t epoch,
                         const uint8_t audit_pk[32])
{
    return (iso_chain){.h = iso_chain_start(federation_id, epoch, audit_pk)};
}

iso_err iso_chain_add(iso_chain *c, const void *entry, size_t bytes, iso_error *e)
{
    iso_audit_entry a;
    iso_err err = iso_audit_decode(entry, bytes, &a, e);
    if (err) {
        iso_error_context(e, "audit seq %llu", (unsigned long long)c->seq + 1);
        return err;
    }
    if (a.seq != c->seq + 1)
        return iso_fail(e, ISO_ERR_NO, "audit: entry %llu stands where entry %llu should",
                        (unsigned long long)a.seq, (unsigned long long)c->seq + 1);
    if (a.time_ms < c->time_ms && c->time_ms - a.time_ms > CLOCK_SLACK_MS)
        return iso_fail(e, ISO_ERR_NO, "audit: time falls by more than 5 s at entry %llu",
                        (unsigned long long)a.seq);
    c->seq = a.seq;
    c->time_ms = a.time_ms;
    c->h = iso_chain_next(&c->h, entry, bytes);
    return ISO_OK;
}

/* ---- signed head ---- */

void iso_head_encode(const iso_head *h, uint8_t out[ISO_HEAD_BYTES])
{
    memcpy(out, head_magic, 8);
    memcpy(out + 8, h->federation_id, 16);
    iso_put_u64(out + 24, h->epoch);
    iso_put_u64(out + 32, h->seq);
    memcpy(out + 40, h->h.b, 32);
    iso_put_u64(out + 72, h->release);
    memcpy(out + 80, h->manifest.b, 32);
    iso_put_u64(out + 112, h->time_ms);
    memcpy(out + 120, h->previous.b, 32);
}

iso_err iso_head_decode(const void *bytes, size_t size, iso_head *out, iso_error *e)
{
    const uint8_t *p = bytes;
    memset(out, 0, sizeof *out);
    if (size != ISO_HEAD_BYTES || memcmp(p, head_magic, 8) != 0)
        return iso_fail(e, ISO_ERR_DATA, "signed head is not %d bytes that start with ISOFEDH1",
                        ISO_HEAD_BYTES);
    memcpy(out->federation_id, p + 8, 16);
    out->epoch = iso_get_u64(p + 24);
    out->seq = iso_get_u64(p + 32);
    memcpy(out->h.b, p + 40, 32);
    out->release = iso_get_u64(p + 72);
    memcpy(out->manifest.b, p + 80, 32);
    out->time_ms = iso_get_u64(p + 112);
    memcpy(out->previous.b, p + 120, 32);
    return ISO_OK;
}

iso_digest iso_head_digest(const uint8_t bytes[ISO_HEAD_BYTES])
{
    return iso_digest_of(bytes, ISO_HEAD_BYTES);
}

void iso_head_sign(const iso_head *h, const iso_sealer *sealer, uint8_t out[ISO_SIGNED_HEAD_BYTES])
{
    iso_head_encode(h, out);
    sealer->sign(sealer->ctx, ISO_LABEL_HEAD, out, ISO_HEAD_BYTES, out + ISO_HEAD_BYTES);
}

iso_err iso_head_check(const void *bytes, size_t size, const uint8_t audit_pk[32],
                       const iso_sealer *sealer, iso_head *out, iso_error *e)
{
    const uint8_t *p = bytes;
    memset(out, 0, sizeof *out);
    if (size != ISO_SIGNED_HEAD_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "signed head has %zu bytes, should have %d", size,
                        ISO_SIGNED_HEAD_BYTES);
    iso_head h;
    iso_err err = iso_head_decode(p, ISO_HEAD_BYTES, &h, e);
    if (err)
        return err;
    if (!sealer->verify(sealer->ctx, ISO_LABEL_HEAD, audit_pk, p, ISO_HEAD_BYTES,
                        p + ISO_HEAD_BYTES))
        return iso_fail(e, ISO_ERR_TRUST, "signed head: the signature does not hold");
    *out = h;
    return ISO_OK;
}

/* ---- receipt ---- */

void iso_receipt_encode(const iso_receipt *r, uint8_t out[ISO_RECEIPT_BYTES])
{
    memcpy(out, receipt_magic, 8);
    memcpy(out + 8, r->federation_id, 16);
    memcpy(out + 24, r->site_id, 16);
    memcpy(out + 40, r->update_id, 16);
    memcpy(out + 56, r->header_digest.b, 32);
    iso_put_u64(out + 88, r->epoch);
    iso_put_u64(out + 96, r->audit_seq);
    memcpy(out + 104, r->audit_head.b, 32);
}

iso_err iso_receipt_decode(const void *bytes, size_t size, iso_receipt *out, iso_error *e)
{
    const uint8_t *p = bytes;
    memset(out, 0, sizeof *out);
    if (size != ISO_RECEIPT_BYTES || memcmp(p, receipt_magic, 8) != 0)
        return iso_fail(e, ISO_ERR_DATA, "receipt is not %d bytes that start with ISOFEDR1",
                        ISO_RECEIPT_BYTES);
    memcpy(out->federation_id, p + 8, 16);
    memcpy(out->site_id, p + 24, 16);
    memcpy(out->update_id, p + 40, 16);
    memcpy(out->header_digest.b, p + 56, 32);
    out->epoch = iso_get_u64(p + 88);
    out->audit_seq = iso_get_u64(p + 96);
    memcpy(out->audit_head.b, p + 104, 32);
    return ISO_OK;
}

iso_err iso_receipt_check(const void *bytes, size_t size,
                          const uint8_t signature[ISO_SIGNATURE_BYTES], const uint8_t audit_pk[32],
                          const iso_sealer *sealer, iso_receipt *out, iso_error *e)
{
    iso_receipt r;
    memset(out, 0, sizeof *out);
    iso_err err = iso_receipt_decode(bytes, size, &r, e);
    if (err)
        return err;
    if (!sealer->verify(sealer->ctx, ISO_LABEL_RECEIPT, audit_pk, bytes, size, signature))
        return iso_fail(e, ISO_ERR_TRUST, "receipt: the signature does not hold");
    *out = r;
    return ISO_OK;
}
