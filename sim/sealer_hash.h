/* Crypto of the simulation: a keyed short hash in place of BLAKE2b, Ed25519 and sealed boxes
 * (DESIGN 7). It takes tens of nanoseconds and keeps what the cores rely on: a signature holds for
 * one key, one label and one message; a changed byte gives another digest; a sealed body opens with
 * the merge key it was sealed to and names its sender. It is no cryptography: whoever knows the
 * world's key can forge. Only the worker and the sealers hold that key; hosts, malicious ones too,
 * get a sealer bound to their own identity. */
#ifndef ISO_SIM_SEALER_HASH_H
#define ISO_SIM_SEALER_HASH_H

#include "core/mem.h"
#include "core/sealer.h"
#include "crypto/envelope.h"
#include "crypto/minisign.h"

typedef struct {
    uint64_t key[4];
} iso_sim_key;

/* 256 bits of `bytes` under a key. */
iso_digest iso_short_hash(const iso_sim_key *key, const void *data, size_t bytes);

typedef struct {
    iso_sim_key world;
    uint8_t pk[ISO_PK_BYTES]; /* whose signatures `sign` makes */
} iso_sim_signer;

/* `signer` is borrowed for as long as the sealer is used. */
iso_sealer iso_sealer_hash(iso_sim_signer *signer);

/* As iso_envelope_seal(), with the same header, sizes and chunks. `out` gets the body only, header
 * and signature go to their arguments. h->site_id etc. must be filled in. */
iso_err iso_hash_seal(const iso_sim_signer *signer, iso_envelope *h, const void *payload,
                      size_t payload_bytes, const uint8_t merge_pk[ISO_PK_BYTES],
                      uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                      uint8_t signature[ISO_SIGNATURE_BYTES], iso_buf *out,
                      iso_error *e) ISO_MUST_CHECK;

/* Rows 12 and 13 of specs/security.md 3.2. `payload` gets the container; on refusal the code says
 * why. Sizes of `body` are checked here. */
iso_code iso_hash_open(const iso_sim_key *world, const uint8_t merge_pk[ISO_PK_BYTES],
                       const uint8_t sign_pk[ISO_PK_BYTES], const uint8_t *header, const void *body,
                       size_t body_bytes, iso_buf *payload);

/* The file release.json.minisig: minisign's form, with short hashes where its signatures stand. */
iso_err iso_hash_minisign(const iso_sim_key *world, const iso_minisign_public *key,
                          const void *text, size_t bytes, iso_buf *out,
                          iso_error *e) ISO_MUST_CHECK;
bool iso_hash_minisign_holds(const iso_sim_key *world, const iso_minisign_public *key,
                             const void *text, size_t bytes, const void *signature,
                             size_t signature_bytes);

#endif
