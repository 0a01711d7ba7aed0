#include "client/outbox.h"

#include "core/crash.h"

#include <string.h>

iso_err iso_read_blob(const iso_store *store, const iso_digest *d, iso_buf *out, iso_error *e)
{
    uint64_t bytes = 0;
    size_t got = 0;
    iso_err err = store->blob_size(store->ctx, d, &bytes, e);
    if (err == ISO_OK)
        err = iso_buf_reserve(out, (size_t)bytes, e);
    if (err == ISO_OK)
        err = store->blob_read(store->ctx, d, 0, out->data + out->size, (size_t)bytes, &got, e);
    if (err == ISO_OK && got != bytes)
        err = iso_fail(e, ISO_ERR_DATA, "a stored blob is shorter than it was");
    if (err == ISO_OK)
        out->size += got;
    return err;
}

iso_err iso_outbox_seal(const iso_store *store, const iso_digest *container, uint64_t bytes,
                        const iso_envelope *h, const iso_key *sign,
                        const uint8_t merge_pk[ISO_PK_BYTES],
                        uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                        uint8_t signature[ISO_SIGNATURE_BYTES], iso_error *e)
{
    iso_buf plain = {0}, sealed = {0};
    iso_envelope full = *h;
    iso_digest body;
    iso_err err = iso_read_blob(store, container, &plain, e);
    if (err == ISO_OK && plain.size != bytes)
        err = iso_fail(e, ISO_ERR_DATA, "the container has %zu bytes, not %llu", plain.size,
                       (unsigned long long)bytes);
    if (err == ISO_OK)
        err = iso_envelope_seal(&full, plain.data, plain.size, sign, merge_pk, &sealed, e);
    if (err == ISO_OK) {
        size_t body_bytes = sealed.size - ISO_ENVELOPE_HEADER_BYTES - ISO_ENVELOPE_TRAILER_BYTES;
        memcpy(header, sealed.data, ISO_ENVELOPE_HEADER_BYTES);
        memcpy(signature, sealed.data + ISO_ENVELOPE_HEADER_BYTES + body_bytes,
               ISO_SIGNATURE_BYTES);
        err = store->blob_put(store->ctx, sealed.data + ISO_ENVELOPE_HEADER_BYTES, body_bytes,
                              &full.body_digest, &body, e);
    }
    if (err == ISO_OK)
        iso_crash_point("F19"); /* the file is durable, its row (K4) is not written */
    iso_buf_free(&plain);
    iso_buf_free(&sealed);
    return err;
}
