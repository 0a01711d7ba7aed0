/* Sealing for the outbox: a container from the store becomes a sealed body in the store. */
#ifndef ISO_CLIENT_OUTBOX_H
#define ISO_CLIENT_OUTBOX_H

#include "core/store.h"
#include "crypto/envelope.h"

/* Seals blob `container` as `h` says (see iso_envelope_seal), signs with `sign`; the ciphertext is
 * a durable blob when it returns. header and signature are what UpdateBegin carries. */
iso_err iso_outbox_seal(const iso_store *store, const iso_digest *container, uint64_t bytes,
                        const iso_envelope *h, const iso_key *sign,
                        const uint8_t merge_pk[ISO_PK_BYTES],
                        uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                        uint8_t signature[ISO_SIGNATURE_BYTES], iso_error *e) ISO_MUST_CHECK;

/* The whole blob, appended to out. */
iso_err iso_read_blob(const iso_store *store, const iso_digest *d, iso_buf *out,
                      iso_error *e) ISO_MUST_CHECK;

#endif
