/* Bytes that requests sign (S33: nothing signed is protobuf). One fixed layout each, little-endian;
 * docs/FORMATS.md has the tables. Sign and check them with iso_sign()/the sealer seam under the
 * label named. */
#ifndef ISO_CRYPTO_REQUEST_H
#define ISO_CRYPTO_REQUEST_H

#include "core/digest.h"
#include "core/wire.h"

/* Enroll: signature under ISO_LABEL_ENROL, MAC over the same bytes (S18).
 * "ENROLLv1" 8, federation 16, token id 4, nonce 32, transport pk 32, sign pk 32 */
enum { ISO_ENROL_BYTES = 124 };
void iso_enrol_bytes(const uint8_t federation_id[16], const uint8_t token_id[4],
                     const uint8_t nonce[32], const uint8_t transport_pk[32],
                     const uint8_t sign_pk[32], uint8_t out[ISO_ENROL_BYTES]);

/* ReleaseVerdict: ISO_LABEL_REQUEST.
 * "VERDICT1" 8, federation 16, site 16, number 8, verdict 4, before 4, delivered 4, refitted 4
 * (bits of the float32), BLAKE2b-256 of the reason 32 */
enum { ISO_VERDICT_BYTES = 96 };
void iso_verdict_bytes(const uint8_t federation_id[16], const uint8_t site_id[16], uint64_t number,
                       uint32_t verdict, float before, float delivered, float refitted,
                       const char *reason, uint8_t out[ISO_VERDICT_BYTES]);

/* EvalResult: ISO_LABEL_REQUEST.
 * "EVALRES1" 8, federation 16, site 16, eval id 16, score 4, samples 8, margin 4, outcome 4 */
enum { ISO_EVAL_BYTES = 76 };
void iso_eval_bytes(const uint8_t federation_id[16], const uint8_t site_id[16],
                    const uint8_t eval_id[16], float score, uint64_t samples, float margin,
                    uint32_t outcome, uint8_t out[ISO_EVAL_BYTES]);

/* RotateKeys: ISO_LABEL_REQUEST by the old and by the new signing key (S22).
 * "ROTATEv1" 8, federation 16, site 16, new transport pk 32, new sign pk 32 */
enum { ISO_ROTATE_BYTES = 104 };
void iso_rotate_bytes(const uint8_t federation_id[16], const uint8_t site_id[16],
                      const uint8_t transport_pk[32], const uint8_t sign_pk[32],
                      uint8_t out[ISO_ROTATE_BYTES]);

#endif
