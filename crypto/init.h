/* Start of the crypto room: libsodium's set-up, randomness, memory for secrets (specs S5, S6). */
#ifndef ISO_CRYPTO_INIT_H
#define ISO_CRYPTO_INIT_H

#include "core/entropy.h"
#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Once, at program start, before threads; a second call is fine. ISO_ERR_INTERNAL if libsodium
 * cannot start. Nothing else of this room may be called before. */
iso_err iso_crypto_init(iso_error *e) ISO_MUST_CHECK;

/* Core dumps off for this process (PR_SET_DUMPABLE 0, RLIMIT_CORE 0): S5. */
iso_err iso_crypto_no_dumps(iso_error *e) ISO_MUST_CHECK;

/* True if the system has swap switched on: programs that hold keys warn once (S5). */
bool iso_crypto_swap_is_on(void);

/* From the kernel's generator; cannot fail after iso_crypto_init(). */
void iso_random(void *out, size_t bytes);
/* The entropy seam on top of iso_random(). */
iso_entropy iso_entropy_real(void);

/* Zeroes so that the compiler keeps it. */
void iso_wipe(void *p, size_t bytes);
/* Locked, guarded memory, zeroed; NULL on exhaustion. Freed (and wiped) by iso_secret_free(). */
void *iso_secret_alloc(size_t bytes);
void iso_secret_free(void *p); /* NULL is fine */
/* Compares in time that depends on `bytes` only. */
bool iso_secret_equal(const void *a, const void *b, size_t bytes);

#endif
