/* The client's control socket: DIR/control.sock, mode 0600, one JSON object a line each way. Only
 * the daemon's own user and root are answered (SO_PEERCRED). */
#ifndef ISO_CLIENT_CONTROL_H
#define ISO_CLIENT_CONTROL_H

#include "core/json.h"

enum { ISO_CONTROL_CLIENTS = 8 };

typedef struct {
    char *path; /* owned */
    int listen_fd;
    struct {
        int fd;
        iso_buf in;
    } peers[ISO_CONTROL_CLIENTS];
} iso_control;

/* Answers one command: a new result object, or NULL and *code (snake_case) with the line in e. */
typedef iso_json *iso_control_fn(void *ctx, const char *command, const iso_json *args,
                                 const char **code, iso_error *e);

iso_err iso_control_open(iso_control *c, const char *dir, iso_error *e) ISO_MUST_CHECK;
void iso_control_close(iso_control *c);
/* Descriptors to wait for, into fds (ISO_CONTROL_CLIENTS + 1); returns how many. */
size_t iso_control_fds(const iso_control *c, int *fds);
/* Accepts, reads whole lines, answers. Never blocks. */
void iso_control_serve(iso_control *c, iso_control_fn *answer, void *ctx);

#endif
