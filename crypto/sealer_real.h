/* The seam core/sealer.h on libsodium. Under ISO_LABEL_UPDATE the message is the 384-byte header:
 * BLAKE2b-512 of it is taken here (S29), so a core hands over the header as it came. */
#ifndef ISO_CRYPTO_SEALER_REAL_H
#define ISO_CRYPTO_SEALER_REAL_H

#include "core/sealer.h"
#include "crypto/key.h"

/* `key` (Ed25519: audit, site-sign) signs; may be NULL for a party that only checks (sign() then
 * writes zeros, which verify nowhere). Borrowed: it must outlive the sealer. */
iso_sealer iso_sealer_real(const iso_key *key);

#endif
