/* Header of the envelope: bytes <-> struct, the checks that need no key, the signature (S29). */
#include "crypto/envelope.h"

#include <math.h>
#include <string.h>

static const char magic[8] = {'I', 'S', 'O', 'F', 'E', 'D', 'U', '1'};
enum { VERSION = 1, RESERVED_AT = 368 };

void iso_envelope_encode(const iso_envelope *h, uint8_t out[ISO_ENVELOPE_HEADER_BYTES])
{
    uint32_t score_bits;
    memcpy(&score_bits, &h->score, sizeof score_bits);
    memset(out, 0, ISO_ENVELOPE_HEADER_BYTES);
    memcpy(out, magic, 8);
    iso_put_u16(out + 8, VERSION);
    iso_put_u16(out + 10, ISO_ENVELOPE_HEADER_BYTES);
    out[12] = h->seal_mode;
    out[13] = h->compression;
    memcpy(out + 16, h->federation_id, 16);
    memcpy(out + 32, h->site_id, 16);
    memcpy(out + 48, h->task_id, 16);
    iso_put_u64(out + 64, h->round);
    iso_put_u64(out + 72, h->generation);
    memcpy(out + 80, h->generation_digest.b, 32);
    memcpy(out + 112, h->base_digest.b, 32);
    iso_put_u64(out + 144, h->sequence);
    iso_put_u64(out + 152, h->created_ms);
    iso_put_u64(out + 160, h->plain_size);
    iso_put_u64(out + 168, h->stream_size);
    iso_put_u32(out + 176, h->chunk_size);
    iso_put_u32(out + 180, h->chunk_count);
    iso_put_u64(out + 184, h->sample_count);
    iso_put_u32(out + 192, score_bits);
    iso_put_u16(out + 196, h->adapter_kind);
    iso_put_u16(out + 198, h->metric);
    memcpy(out + 200, h->merge_key_id, 16);
    memcpy(out + 216, h->update_id, 16);
    memcpy(out + 232, h->stream_header, 24);
    memcpy(out + 256, h->key_box, 80);
    memcpy(out + 336, h->body_digest.b, 32);
}

static void read_fields(const uint8_t *p, iso_envelope *h)
{
    uint32_t score_bits = iso_get_u32(p + 192);
    *h = (iso_envelope){
        .seal_mode = p[12],
        .compression = p[13],
        .round = iso_get_u64(p + 64),
        .generation = iso_get_u64(p + 72),
        .sequence = iso_get_u64(p + 144),
        .created_ms = iso_get_u64(p + 152),
        .plain_size = iso_get_u64(p + 160),
        .stream_size = iso_get_u64(p + 168),
        .chunk_size = iso_get_u32(p + 176),
        .chunk_count = iso_get_u32(p + 180),
        .sample_count = iso_get_u64(p + 184),
        .adapter_kind = iso_get_u16(p + 196),
        .metric = iso_get_u16(p + 198),
    };
    memcpy(&h->score, &score_bits, sizeof h->score);
    memcpy(h->federation_id, p + 16, 16);
    memcpy(h->site_id, p + 32, 16);
    memcpy(h->task_id, p + 48, 16);
    memcpy(h->generation_digest.b, p + 80, 32);
    memcpy(h->base_digest.b, p + 112, 32);
    memcpy(h->merge_key_id, p + 200, 16);
    memcpy(h->update_id, p + 216, 16);
    memcpy(h->stream_header, p + 232, 24);
    memcpy(h->key_box, p + 256, 80);
    memcpy(h->body_digest.b, p + 336, 32);
}

/* Sizes that fit together in one way only. What is wrong, or NULL. */
static const char *check_sizes(const iso_envelope *h)
{
    bool is_power = h->chunk_size && (h->chunk_size & (h->chunk_size - 1)) == 0;
    if (!is_power || h->chunk_size < ISO_CHUNK_MIN_BYTES || h->chunk_size > ISO_CHUNK_MAX_BYTES)
        return "chunk size is not a power of two of 64 to 256 KiB";
    if (h->stream_size <= ISO_ENVELOPE_INNER_BYTES ||
        h->stream_size > (uint64_t)ISO_CHUNKS_MAX * h->chunk_size)
        return "stream size is out of range";
    if (h->chunk_count != (h->stream_size + h->chunk_size - 1) / h->chunk_size)
        return "chunk count does not follow from the sizes";
    uint64_t packed = h->stream_size - ISO_ENVELOPE_INNER_BYTES;
    if (h->compression == ISO_COMPRESSION_NONE && h->plain_size != packed)
        return "plain size does not follow from the stream size";
    if (h->compression == ISO_COMPRESSION_ZSTD &&
        (h->plain_size == 0 || h->plain_size > packed * ISO_PLAIN_RATIO_MAX))
        return "plain size is more than 20 times the compressed size";
    return NULL;
}

static bool all_zero(const uint8_t *p, size_t n)
{
    uint8_t any = 0;
    for (size_t i = 0; i < n; i++)
        any = any | p[i];
    return any == 0;
}

iso_err iso_envelope_decode(const void *bytes, size_t size, iso_envelope *out, iso_code *code,
                            iso_error *e)
{
    const uint8_t *p = bytes;
    uint8_t id[16];
    const char *wrong = NULL;
    *code = ISO_CODE_BAD_ENVELOPE;
    memset(out, 0, sizeof *out);
    if (size != ISO_ENVELOPE_HEADER_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "envelope header has %zu bytes, should have %d", size,
                        ISO_ENVELOPE_HEADER_BYTES);
    read_fields(p, out);
    iso_update_id(out->site_id, out->task_id, out->round, out->sequence, id);
    if (memcmp(p, magic, 8) != 0)
        wrong = "no magic ISOFEDU1";
    else if (iso_get_u16(p + 8) != VERSION || iso_get_u16(p + 10) != ISO_ENVELOPE_HEADER_BYTES)
        wrong = "version is not 1 with a header of 384 bytes";
    else if (iso_get_u16(p + 14) != 0 || !all_zero(p + RESERVED_AT, 16))
        wrong = "reserved bytes are not zero";
    else if (out->compression > ISO_COMPRESSION_ZSTD)
        wrong = "compression is not known";
    else if (!isfinite(out->score))
        wrong = "score is not finite";
    else if (out->sample_count > ISO_SAMPLES_MAX)
        wrong = "sample count is above 10^9";
    else if (memcmp(id, out->update_id, 16) != 0)
        wrong = "update id does not follow from site, task, round and sequence";
    else
        wrong = check_sizes(out);
    if (wrong)
        return iso_fail(e, ISO_ERR_DATA, "envelope: %s", wrong);
    if (out->seal_mode != 0) { /* S2 */
        *code = ISO_CODE_SEAL_MODE;
        return iso_fail(e, ISO_ERR_DATA, "envelope: seal mode %u is not known", out->seal_mode);
    }
    *code = ISO_CODE_OK;
    return ISO_OK;
}

iso_err iso_envelope_check_signature(const uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                                     const uint8_t signature[ISO_SIGNATURE_BYTES],
                                     const uint8_t sign_pk[ISO_PK_BYTES], iso_code *code,
                                     iso_error *e)
{
    *code = ISO_CODE_OK;
    if (iso_sign_check(ISO_LABEL_UPDATE, header, ISO_ENVELOPE_HEADER_BYTES, sign_pk, signature))
        return ISO_OK;
    *code = ISO_CODE_SIGNATURE;
    return iso_fail(e, ISO_ERR_TRUST, "envelope: the signature does not hold under the site's key");
}

iso_digest iso_envelope_digest(const uint8_t header[ISO_ENVELOPE_HEADER_BYTES])
{
    return iso_digest_of(header, ISO_ENVELOPE_HEADER_BYTES);
}

void iso_update_id(const uint8_t site_id[16], const uint8_t task_id[16], uint64_t round,
                   uint64_t sequence, uint8_t out[16])
{
    uint8_t bytes[48];
    memcpy(bytes, site_id, 16);
    memcpy(bytes + 16, task_id, 16);
    iso_put_u64(bytes + 32, round);
    iso_put_u64(bytes + 40, sequence);
    iso_digest d = iso_digest_of(bytes, sizeof bytes);
    memcpy(out, d.b, 16);
}

uint32_t iso_envelope_chunk_bytes(const iso_envelope *h, uint32_t i)
{
    uint64_t start = (uint64_t)i * h->chunk_size;
    if (start >= h->stream_size)
        return 0;
    uint64_t plain = h->stream_size - start;
    if (plain > h->chunk_size)
        plain = h->chunk_size;
    return (uint32_t)plain + ISO_CHUNK_OVERHEAD_BYTES;
}

uint64_t iso_envelope_body_bytes(const iso_envelope *h)
{
    return h->stream_size + (uint64_t)h->chunk_count * ISO_CHUNK_OVERHEAD_BYTES;
}

uint64_t iso_envelope_file_bytes(const iso_envelope *h)
{
    return ISO_ENVELOPE_HEADER_BYTES + iso_envelope_body_bytes(h) + ISO_ENVELOPE_TRAILER_BYTES;
}
