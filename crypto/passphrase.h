/* Passphrases (specs/security.md S12): from a terminal without echo, from a descriptor, or from a
 * systemd credential; never from an argument or the environment. */
#ifndef ISO_CRYPTO_PASSPHRASE_H
#define ISO_CRYPTO_PASSPHRASE_H

#include "core/err.h"

#include <stdbool.h>

enum { ISO_PASSPHRASE_MAX = 1024 };

/* First line of the descriptor, without its newline, in locked memory (iso_secret_free). */
iso_err iso_passphrase_from_fd(int fd, char **out, iso_error *e) ISO_MUST_CHECK;
/* Asks on /dev/tty; `twice` asks again and compares (new keys). */
iso_err iso_passphrase_prompt(const char *question, bool twice, char **out,
                              iso_error *e) ISO_MUST_CHECK;
/* File `name` of the folder $CREDENTIALS_DIRECTORY; *out is NULL when there is none. */
iso_err iso_passphrase_from_credential(const char *name, char **out, iso_error *e) ISO_MUST_CHECK;

#endif
