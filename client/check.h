/* Before and beside the daemon: the pre-flight check (U5), and what leaves this site (U103). */
#ifndef ISO_CLIENT_CHECK_H
#define ISO_CLIENT_CHECK_H

#include "client/config.h"

#include <stdio.h>

/* One line a check on `out`: "ok" and what was found, or what is wrong and what to do. *failed
 * counts the latter. An error is returned only when the check itself cannot go on. */
iso_err iso_client_check(const char *dir, const char *passphrase, FILE *out, int *failed,
                         iso_error *e) ISO_MUST_CHECK;

/* Every field of every message that this client can send, with its size; nothing else leaves. */
void iso_client_what_leaves(FILE *out);

#endif
