/* The operators' socket: a Unix stream socket, one JSON object a line each way (FED "Sockets").
 * Mode 0660; who connects is read by SO_PEERCRED. Only the socket: commands are the core's. */
#ifndef ISO_COORDINATOR_ADMIN_H
#define ISO_COORDINATOR_ADMIN_H

#include "core/err.h"

#include <poll.h>
#include <stdbool.h>
#include <stdint.h>

enum { ISO_ADMIN_CONNECTIONS = 32 };

typedef struct iso_admin iso_admin;

iso_err iso_admin_open(iso_admin **out, const char *path, iso_error *e) ISO_MUST_CHECK;
void iso_admin_close(iso_admin *a); /* removes the socket; NULL is fine */

/* Fills at most ISO_ADMIN_CONNECTIONS + 1 entries to wait for. */
size_t iso_admin_fds(const iso_admin *a, struct pollfd *fds);
/* After a wait: accepts, reads, writes what is ready. */
void iso_admin_serve(iso_admin *a);
/* The next whole line: its number for the reply, the user, the text (lives until the next call). */
bool iso_admin_next(iso_admin *a, uint64_t *id, uint32_t *uid, const char **line);
/* An answer to everybody who waits for one. */
void iso_admin_fail_all(iso_admin *a, const char *text);
void iso_admin_reply(iso_admin *a, uint64_t id, const char *text);

#endif
