/* Sealing an update (specs/security.md 3.1). The header stands first in the file but holds the
 * digest of what follows, so it is written last, in place. */
#include "core/fsio.h"
#include "crypto/envelope_inner.h"
#include "crypto/init.h"

#include <errno.h>
#include <math.h>
#include <sodium.h>
#include <stdlib.h>
#include <unistd.h>
#include <zstd.h>

_Static_assert(crypto_secretstream_xchacha20poly1305_ABYTES == ISO_CHUNK_OVERHEAD_BYTES, "");
_Static_assert(crypto_secretstream_xchacha20poly1305_HEADERBYTES == 24, "");
_Static_assert(crypto_secretstream_xchacha20poly1305_KEYBYTES + crypto_box_SEALBYTES == 80, "");

enum { ZSTD_LEVEL = 3, WINDOW_LOG_MAX = 23 /* 8 MiB */ };

/* Where the bytes go. */
typedef struct {
    void *ctx;
    iso_err (*append)(void *ctx, const void *bytes, size_t size, iso_error *e);
    iso_err (*set_header)(void *ctx, const uint8_t header[ISO_ENVELOPE_HEADER_BYTES], iso_error *e);
} sink;

/* ---- payload, perhaps compressed ---- */

typedef struct {
    const uint8_t *bytes;
    size_t size;
    void *owned; /* NULL: `bytes` is the caller's payload */
} packed;

/* Fills `out` and sets h->compression to what it became: adapters of noise do not shrink, and one
 * that shrinks more than 20 times would be refused (S35). */
static iso_err compress(iso_envelope *h, const void *payload, size_t size, packed *out,
                        iso_error *e)
{
    *out = (packed){.bytes = payload, .size = size};
    if (h->compression == ISO_COMPRESSION_NONE)
        return ISO_OK;
    size_t bound = ZSTD_compressBound(size);
    void *buffer = malloc(bound);
    ZSTD_CCtx *z = ZSTD_createCCtx();
    iso_err err = ISO_OK;
    if (!buffer || !z) {
        err = iso_nomem(e, bound);
    } else {
        ZSTD_CCtx_setParameter(z, ZSTD_c_compressionLevel, ZSTD_LEVEL);
        ZSTD_CCtx_setParameter(z, ZSTD_c_windowLog, WINDOW_LOG_MAX);
        size_t n = ZSTD_compress2(z, buffer, bound, payload, size);
        if (ZSTD_isError(n)) {
            err = iso_fail(e, ISO_ERR_INTERNAL, "zstd: %s", ZSTD_getErrorName(n));
        } else if (n < size && size <= n * ISO_PLAIN_RATIO_MAX) {
            *out = (packed){.bytes = buffer, .size = n, .owned = buffer};
            buffer = NULL;
        } else {
            h->compression = ISO_COMPRESSION_NONE;
        }
    }
    ZSTD_freeCCtx(z);
    free(buffer);
    return err;
}

static iso_err fill_header(iso_envelope *h, size_t payload_size, size_t packed_size,
                           const uint8_t merge_pk[32], iso_error *e)
{
    h->seal_mode = 0;
    if (h->chunk_size == 0)
        h->chunk_size = ISO_CHUNK_MAX_BYTES;
    h->plain_size = payload_size;
    h->stream_size = (uint64_t)packed_size + ISO_ENVELOPE_INNER_BYTES;
    uint64_t count = (h->stream_size + h->chunk_size - 1) / h->chunk_size;
    if (count > ISO_CHUNKS_MAX)
        return iso_fail(e, ISO_ERR_DATA, "update of %zu bytes needs more than 2^20 chunks",
                        payload_size);
    h->chunk_count = (uint32_t)count;
    iso_merge_key_id(merge_pk, h->merge_key_id);
    iso_update_id(h->site_id, h->task_id, h->round, h->sequence, h->update_id);
    memset(h->body_digest.b, 0, 32);
    return ISO_OK;
}

/* Plain bytes [start, start + n) of the stream: inner header, then the packed payload. */
static const uint8_t *stream_part(const uint8_t inner[ISO_ENVELOPE_INNER_BYTES], const packed *p,
                                  uint64_t start, size_t n, uint8_t *scratch)
{
    if (start >= ISO_ENVELOPE_INNER_BYTES)
        return p->bytes + (start - ISO_ENVELOPE_INNER_BYTES);
    /* Only the first chunk holds the inner header (chunks are larger than it). */
    memcpy(scratch, inner, ISO_ENVELOPE_INNER_BYTES);
    memcpy(scratch + ISO_ENVELOPE_INNER_BYTES, p->bytes, n - ISO_ENVELOPE_INNER_BYTES);
    return scratch;
}

static iso_err seal_body(iso_envelope *h, const uint8_t inner[ISO_ENVELOPE_INNER_BYTES],
                         const packed *p, crypto_secretstream_xchacha20poly1305_state *stream,
                         const sink *out, iso_error *e)
{
    uint8_t ad[ISO_CHUNK_AD_BYTES];
    uint8_t *scratch = malloc(h->chunk_size);
    uint8_t *sealed = malloc((size_t)h->chunk_size + ISO_CHUNK_OVERHEAD_BYTES);
    iso_hasher hasher;
    iso_err err = scratch && sealed ? ISO_OK : iso_nomem(e, h->chunk_size);
    iso_hasher_init(&hasher);
    iso_chunk_ad(h, ad);
    for (uint32_t i = 0; !err && i < h->chunk_count; i++) {
        uint32_t bytes = iso_envelope_chunk_bytes(h, i);
        size_t plain = bytes - ISO_CHUNK_OVERHEAD_BYTES;
        bool is_last = i + 1 == h->chunk_count;
        iso_put_u32(ad + 32, i);
        crypto_secretstream_xchacha20poly1305_push(
            stream, sealed, NULL,
            stream_part(inner, p, (uint64_t)i * h->chunk_size, plain, scratch), plain, ad,
            sizeof ad,
            is_last ? crypto_secretstream_xchacha20poly1305_TAG_FINAL
                    : crypto_secretstream_xchacha20poly1305_TAG_MESSAGE);
        iso_hasher_add(&hasher, sealed, bytes);
        err = out->append(out->ctx, sealed, bytes, e);
    }
    h->body_digest = iso_hasher_end(&hasher);
    if (scratch)
        iso_wipe(scratch, h->chunk_size);
    free(scratch);
    free(sealed);
    return err;
}

static iso_err check_request(const iso_envelope *h, size_t payload_size, const iso_key *sign,
                             iso_error *e)
{
    if (!sign->secret || !iso_key_kind_signs(sign->kind))
        return iso_fail(e, ISO_ERR_INTERNAL, "sealing needs the site's signing key");
    if (payload_size == 0)
        return iso_fail(e, ISO_ERR_DATA, "an empty payload cannot be sealed");
    if (!isfinite(h->score))
        return iso_fail(e, ISO_ERR_NONFINITE, "the update's score is not finite");
    if (h->sample_count > ISO_SAMPLES_MAX)
        return iso_fail(e, ISO_ERR_DATA, "sample count is above 10^9");
    if (h->compression > ISO_COMPRESSION_ZSTD)
        return iso_fail(e, ISO_ERR_INTERNAL, "compression %u", h->compression);
    if (h->chunk_size != 0 &&
        (h->chunk_size < ISO_CHUNK_MIN_BYTES || h->chunk_size > ISO_CHUNK_MAX_BYTES ||
         (h->chunk_size & (h->chunk_size - 1)) != 0))
        return iso_fail(e, ISO_ERR_INTERNAL, "chunk size %u", h->chunk_size);
    return ISO_OK;
}

static iso_err seal(iso_envelope *h, const void *payload, size_t payload_size, const iso_key *sign,
                    const uint8_t merge_pk[ISO_PK_BYTES], const sink *out, iso_error *e)
{
    enum { KEY_BYTES = crypto_secretstream_xchacha20poly1305_KEYBYTES };
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES] = {0}, inner[ISO_ENVELOPE_INNER_BYTES];
    uint8_t signature[ISO_SIGNATURE_BYTES];
    crypto_secretstream_xchacha20poly1305_state stream;
    packed p = {0};
    iso_digest digest;
    uint8_t *key = NULL;
    iso_err err = check_request(h, payload_size, sign, e);
    if (!err)
        err = compress(h, payload, payload_size, &p, e);
    if (!err)
        err = fill_header(h, payload_size, p.size, merge_pk, e);
    if (err)
        goto done;
    key = iso_secret_alloc(KEY_BYTES);
    if (!key) {
        err = iso_nomem(e, KEY_BYTES);
        goto done;
    }
    crypto_secretstream_xchacha20poly1305_keygen(key); /* fresh each time: S34 */
    crypto_secretstream_xchacha20poly1305_init_push(&stream, h->stream_header, key);
    if (crypto_box_seal(h->key_box, key, KEY_BYTES, merge_pk) != 0) { /* low-order key: T13 */
        err = iso_fail(e, ISO_ERR_TRUST, "the merge key of the roster is not a usable public key");
        goto done;
    }
    digest = iso_digest_of(payload, payload_size);
    iso_inner_encode(h, sign->public_key, merge_pk, &digest, inner);
    err = out->append(out->ctx, header, sizeof header, e); /* its place */
    if (!err)
        err = seal_body(h, inner, &p, &stream, out, e);
    if (err)
        goto done;
    iso_envelope_encode(h, header);
    iso_sign(ISO_LABEL_UPDATE, header, sizeof header, sign->secret, signature);
    err = out->append(out->ctx, signature, sizeof signature, e);
    if (!err)
        err = out->set_header(out->ctx, header, e);
done:
    iso_wipe(&stream, sizeof stream);
    iso_secret_free(key);
    free(p.owned);
    return err;
}

/* ---- into memory ---- */

static iso_err buf_append(void *ctx, const void *bytes, size_t size, iso_error *e)
{
    return iso_buf_append(ctx, bytes, size, e);
}

static iso_err buf_set_header(void *ctx, const uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                              iso_error *e)
{
    (void)e;
    memcpy(((iso_buf *)ctx)->data, header, ISO_ENVELOPE_HEADER_BYTES);
    return ISO_OK;
}

iso_err iso_envelope_seal(iso_envelope *h, const void *payload, size_t payload_bytes,
                          const iso_key *sign, const uint8_t merge_pk[ISO_PK_BYTES], iso_buf *out,
                          iso_error *e)
{
    const sink to = {.ctx = out, .append = buf_append, .set_header = buf_set_header};
    if (out->size != 0)
        return iso_fail(e, ISO_ERR_INTERNAL, "the buffer to seal into is not empty");
    iso_err err = seal(h, payload, payload_bytes, sign, merge_pk, &to, e);
    if (err)
        out->size = 0;
    return err;
}

/* ---- into a file ---- */

static iso_err file_append(void *ctx, const void *bytes, size_t size, iso_error *e)
{
    return iso_out_write(ctx, bytes, size, e);
}

static iso_err file_set_header(void *ctx, const uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                               iso_error *e)
{
    const iso_out_file *f = ctx;
    ssize_t n = pwrite(f->fd, header, ISO_ENVELOPE_HEADER_BYTES, 0);
    if (n == ISO_ENVELOPE_HEADER_BYTES)
        return ISO_OK;
    return iso_fail_errno(e, ISO_ERR_RESOURCE, n < 0 ? errno : ENOSPC, "%s", f->path);
}

iso_err iso_envelope_seal_file(iso_envelope *h, const void *payload, size_t payload_bytes,
                               const iso_key *sign, const uint8_t merge_pk[ISO_PK_BYTES],
                               const char *path, iso_error *e)
{
    iso_out_file file = {.fd = -1};
    const sink to = {.ctx = &file, .append = file_append, .set_header = file_set_header};
    iso_err err = iso_out_begin(&file, path, 0600, e);
    if (!err)
        err = seal(h, payload, payload_bytes, sign, merge_pk, &to, e);
    if (!err)
        err = iso_out_commit(&file, e);
    iso_out_abort(&file);
    return err;
}
