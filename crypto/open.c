/* Opening a sealed update: rows 12 and 13 of specs/security.md 3.2, after rows 1 to 7 once more
 * (the worker does not trust the daemon's word). Cheap before dear; nothing is allocated by a
 * number that has not been bounded, and the payload is handed out only when everything holds. */
#include "crypto/container.h"
#include "crypto/envelope_inner.h"
#include "crypto/init.h"

#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zstd.h>
#include <zstd_errors.h>

enum { WINDOW_LOG_MAX = 23, /* 8 MiB */ INFLATE_STEP_BYTES = 64 * 1024 };

static iso_err refuse(iso_code *code, iso_code why, iso_err err, iso_error *e)
{
    *code = why;
    return iso_fail(e, err, "update refused, %s: %s", iso_code_name(why), iso_code_sentence(why));
}

/* Rows 1 to 7, as far as the worker can see them. */
static iso_err check_header(const iso_envelope_source *s, const iso_open_options *opt,
                            iso_envelope *h, iso_code *code, iso_error *e)
{
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES], signature[ISO_SIGNATURE_BYTES];
    uint8_t merge_key_id[16];
    uint64_t ceiling = opt->max_plain_bytes ? opt->max_plain_bytes : ISO_UPDATE_MAX_BYTES;
    if (s->size < ISO_ENVELOPE_HEADER_BYTES)
        return refuse(code, ISO_CODE_BAD_ENVELOPE, ISO_ERR_DATA, e);
    iso_err err = s->read(s->ctx, 0, header, sizeof header, e);
    if (!err)
        err = iso_envelope_decode(header, sizeof header, h, code, e);
    if (err)
        return err;
    if (memcmp(h->federation_id, opt->federation_id, 16) != 0)
        return refuse(code, ISO_CODE_WRONG_SITE, ISO_ERR_TRUST, e);
    if (h->plain_size > ceiling)
        return refuse(code, ISO_CODE_TOO_LARGE, ISO_ERR_DATA, e);
    iso_merge_key_id(opt->merge_key->public_key, merge_key_id);
    if (memcmp(h->merge_key_id, merge_key_id, 16) != 0)
        return refuse(code, ISO_CODE_MERGE_KEY, ISO_ERR_TRUST, e);
    if (s->size != iso_envelope_file_bytes(h)) /* too short, or bytes after the last chunk */
        return refuse(code, ISO_CODE_TRUNCATED, ISO_ERR_DATA, e);
    *code = ISO_CODE_INTERNAL;
    err = s->read(s->ctx, s->size - ISO_ENVELOPE_TRAILER_BYTES, signature, sizeof signature, e);
    if (err)
        return err;
    return iso_envelope_check_signature(header, signature, opt->sign_pk, code, e);
}

/* The bytes on this disk are those that were signed: before any of them is decrypted. */
static iso_err check_body_digest(const iso_envelope_source *s, const iso_envelope *h,
                                 uint8_t *sealed, iso_code *code, iso_error *e)
{
    iso_hasher hasher;
    uint64_t at = ISO_ENVELOPE_HEADER_BYTES;
    iso_hasher_init(&hasher);
    for (uint32_t i = 0; i < h->chunk_count; i++) {
        uint32_t bytes = iso_envelope_chunk_bytes(h, i);
        *code = ISO_CODE_INTERNAL;
        iso_err err = s->read(s->ctx, at, sealed, bytes, e);
        if (err)
            return err;
        iso_hasher_add(&hasher, sealed, bytes);
        at += bytes;
    }
    iso_digest d = iso_hasher_end(&hasher);
    if (!iso_digest_equal(&d, &h->body_digest))
        return refuse(code, ISO_CODE_BODY_DIGEST, ISO_ERR_DATA, e);
    return ISO_OK;
}

/* ---- plain bytes to payload ---- */

typedef struct {
    const iso_envelope *h;
    iso_buf *payload;
    ZSTD_DCtx *zstd; /* NULL: not compressed */
    bool is_over;    /* the zstd frame has ended */
} inflater;

/* One frame, at most plain_size bytes; memory grows with what really came out (S35). */
static iso_err inflate_some(inflater *f, const uint8_t *bytes, size_t size, iso_code *code,
                            iso_error *e)
{
    ZSTD_inBuffer in = {.src = bytes, .size = size};
    bool may_hold_more = true; /* output was cut by our buffer: ask again without new input */
    while (in.pos < in.size || may_hold_more) {
        if (f->is_over)
            return in.pos < in.size ? refuse(code, ISO_CODE_INFLATE, ISO_ERR_DATA, e) : ISO_OK;
        uint64_t left = f->h->plain_size - f->payload->size;
        /* One byte more than may come: getting it is the proof that the sizes lie. */
        size_t room = left + 1 < INFLATE_STEP_BYTES ? (size_t)left + 1 : INFLATE_STEP_BYTES;
        iso_err err = iso_buf_reserve(f->payload, room, e);
        if (err) {
            *code = ISO_CODE_INTERNAL;
            return err;
        }
        ZSTD_outBuffer out = {.dst = f->payload->data + f->payload->size, .size = room};
        size_t rc = ZSTD_decompressStream(f->zstd, &out, &in);
        f->payload->size += out.pos;
        if (ZSTD_getErrorCode(rc) == ZSTD_error_memory_allocation) { /* our want, not the site's */
            *code = ISO_CODE_INTERNAL;
            return iso_fail(e, ISO_ERR_MEMORY, "no memory for zstd");
        }
        if (ZSTD_isError(rc) || out.pos > left)
            return refuse(code, ISO_CODE_INFLATE, ISO_ERR_DATA, e);
        f->is_over = rc == 0;
        may_hold_more = out.pos == out.size;
    }
    return ISO_OK;
}

static iso_err take(inflater *f, const uint8_t *bytes, size_t size, iso_code *code, iso_error *e)
{
    if (f->zstd)
        return inflate_some(f, bytes, size, code, e);
    *code = ISO_CODE_INTERNAL; /* only memory can fail: the header's sizes add up */
    return iso_buf_append(f->payload, bytes, size, e);
}

static iso_err pull_all(const iso_envelope_source *s, const iso_envelope *h, const uint8_t *key,
                        uint8_t *sealed, uint8_t *plain, uint8_t inner[ISO_ENVELOPE_INNER_BYTES],
                        inflater *f, iso_code *code, iso_error *e)
{
    uint8_t ad[ISO_CHUNK_AD_BYTES];
    crypto_secretstream_xchacha20poly1305_state stream;
    uint64_t at = ISO_ENVELOPE_HEADER_BYTES;
    iso_err err = ISO_OK;
    if (crypto_secretstream_xchacha20poly1305_init_pull(&stream, h->stream_header, key) != 0)
        return refuse(code, ISO_CODE_STREAM, ISO_ERR_DATA, e);
    iso_chunk_ad(h, ad);
    for (uint32_t i = 0; !err && i < h->chunk_count; i++) {
        uint32_t bytes = iso_envelope_chunk_bytes(h, i);
        size_t skip = i == 0 ? ISO_ENVELOPE_INNER_BYTES : 0;
        size_t size = bytes - ISO_CHUNK_OVERHEAD_BYTES;
        bool is_last = i + 1 == h->chunk_count;
        unsigned char tag = 0;
        iso_put_u32(ad + 32, i);
        *code = ISO_CODE_INTERNAL;
        err = s->read(s->ctx, at, sealed, bytes, e);
        if (err)
            break;
        at += bytes;
        /* A stream cut at a chunk's end pulls without complaint; only the tag tells (T13). */
        if (crypto_secretstream_xchacha20poly1305_pull(&stream, plain, NULL, &tag, sealed, bytes,
                                                       ad, sizeof ad) != 0)
            err = refuse(code, ISO_CODE_STREAM, ISO_ERR_DATA, e);
        else if (is_last && tag == crypto_secretstream_xchacha20poly1305_TAG_MESSAGE)
            err = refuse(code, ISO_CODE_TRUNCATED, ISO_ERR_DATA, e);
        else if (tag != (is_last ? crypto_secretstream_xchacha20poly1305_TAG_FINAL
                                 : crypto_secretstream_xchacha20poly1305_TAG_MESSAGE))
            err = refuse(code, ISO_CODE_STREAM_TAG, ISO_ERR_DATA, e);
        else if (i == 0)
            memcpy(inner, plain, ISO_ENVELOPE_INNER_BYTES);
        if (!err)
            err = take(f, plain + skip, size - skip, code, e);
    }
    iso_wipe(&stream, sizeof stream);
    return err;
}

/* Row 13: the sealed part names the signer, the key, the federation and the payload (S31). */
static iso_err check_inside(const iso_envelope *h, const iso_open_options *opt,
                            const uint8_t inner[ISO_ENVELOPE_INNER_BYTES], const iso_buf *payload,
                            iso_code *code, iso_error *e)
{
    uint8_t expected[ISO_ENVELOPE_INNER_BYTES];
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t count;
    iso_digest d = iso_digest_of(payload->data, payload->size);
    iso_inner_encode(h, opt->sign_pk, opt->merge_key->public_key, &d, expected);
    if (memcmp(inner, expected, sizeof expected) != 0)
        return refuse(code, ISO_CODE_INNER_MISMATCH, ISO_ERR_TRUST, e);
    return iso_container_unpack(payload->data, payload->size, files, &count, code, e);
}

iso_err iso_envelope_open(const iso_envelope_source *source, const iso_open_options *opt,
                          iso_envelope *h, iso_buf *payload, iso_code *code, iso_error *e)
{
    enum { KEY_BYTES = crypto_secretstream_xchacha20poly1305_KEYBYTES };
    uint8_t inner[ISO_ENVELOPE_INNER_BYTES] = {0};
    uint8_t *sealed = NULL, *plain = NULL, *key = NULL;
    inflater f = {.h = h, .payload = payload};
    iso_err err;
    *code = ISO_CODE_INTERNAL;
    memset(h, 0, sizeof *h);
    payload->size = 0;
    if (!opt->merge_key->secret || opt->merge_key->kind != ISO_KEY_MERGE)
        return iso_fail(e, ISO_ERR_INTERNAL, "opening needs the merge key");
    err = check_header(source, opt, h, code, e);
    if (err)
        goto done;
    *code = ISO_CODE_INTERNAL;
    sealed = malloc((size_t)h->chunk_size + ISO_CHUNK_OVERHEAD_BYTES);
    plain = malloc(h->chunk_size);
    key = iso_secret_alloc(KEY_BYTES);
    if (!sealed || !plain || !key) {
        err = iso_nomem(e, h->chunk_size);
        goto done;
    }
    err = check_body_digest(source, h, sealed, code, e);
    if (err)
        goto done;
    if (crypto_box_seal_open(key, h->key_box, sizeof h->key_box, opt->merge_key->public_key,
                             opt->merge_key->secret) != 0) {
        err = refuse(code, ISO_CODE_SEALED, ISO_ERR_DATA, e);
        goto done;
    }
    if (h->compression == ISO_COMPRESSION_ZSTD) {
        f.zstd = ZSTD_createDCtx();
        if (!f.zstd ||
            ZSTD_isError(ZSTD_DCtx_setParameter(f.zstd, ZSTD_d_windowLogMax, WINDOW_LOG_MAX))) {
            *code = ISO_CODE_INTERNAL;
            err = iso_fail(e, ISO_ERR_MEMORY, "no memory for zstd");
            goto done;
        }
    }
    err = pull_all(source, h, key, sealed, plain, inner, &f, code, e);
    if (!err && ((f.zstd && !f.is_over) || payload->size != h->plain_size))
        err = refuse(code, ISO_CODE_INFLATE, ISO_ERR_DATA, e);
    if (!err)
        err = check_inside(h, opt, inner, payload, code, e);
done:
    ZSTD_freeDCtx(f.zstd);
    iso_secret_free(key);
    if (plain)
        iso_wipe(plain, h->chunk_size);
    free(plain);
    free(sealed);
    if (err) {
        iso_buf_free(payload);
        if (*code == ISO_CODE_OK)
            *code = ISO_CODE_INTERNAL;
    } else {
        *code = ISO_CODE_OK;
    }
    return err;
}

/* ---- sources ---- */

typedef struct {
    const uint8_t *bytes;
    size_t size;
} memory;

static iso_err memory_read(void *ctx, uint64_t offset, void *out, size_t bytes, iso_error *e)
{
    const memory *m = ctx;
    if (offset > m->size || bytes > m->size - offset)
        return iso_fail(e, ISO_ERR_DATA, "read past the end of the sealed update");
    memcpy(out, m->bytes + offset, bytes);
    return ISO_OK;
}

iso_err iso_envelope_open_memory(const void *bytes, size_t size, const iso_open_options *opt,
                                 iso_envelope *h, iso_buf *payload, iso_code *code, iso_error *e)
{
    memory m = {.bytes = bytes, .size = size};
    const iso_envelope_source s = {.ctx = &m, .size = size, .read = memory_read};
    return iso_envelope_open(&s, opt, h, payload, code, e);
}

static iso_err file_read(void *ctx, uint64_t offset, void *out, size_t bytes, iso_error *e)
{
    int fd = *(const int *)ctx;
    uint8_t *p = out;
    while (bytes) {
        ssize_t n = pread(fd, p, bytes, (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "sealed update");
        if (n == 0)
            return iso_fail(e, ISO_ERR_DATA, "sealed update: the file shrank while it was read");
        p += n;
        offset += (uint64_t)n;
        bytes -= (size_t)n;
    }
    return ISO_OK;
}

iso_err iso_envelope_open_file(const char *path, const iso_open_options *opt, iso_envelope *h,
                               iso_buf *payload, iso_code *code, iso_error *e)
{
    struct stat st;
    *code = ISO_CODE_INTERNAL;
    memset(h, 0, sizeof *h);
    payload->size = 0;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return iso_fail_errno(e, ISO_ERR_DATA, errno, "%s", path);
    iso_err err;
    if (fstat(fd, &st) != 0)
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
    else if (!S_ISREG(st.st_mode))
        err = iso_fail(e, ISO_ERR_DATA, "%s is not a regular file", path);
    else {
        const iso_envelope_source s = {.ctx = &fd, .size = (uint64_t)st.st_size, .read = file_read};
        err = iso_envelope_open(&s, opt, h, payload, code, e);
    }
    if (err)
        iso_error_context(e, "%s", path);
    close(fd);
    return err;
}
