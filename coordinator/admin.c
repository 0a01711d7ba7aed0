/* Operators' connections: bounded in number, in the length of a line and in what waits to be
 * written; an operator who does not read is closed, nobody is waited for. */
#include "coordinator/admin.h"

#include "core/mem.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { LINE_BYTES = 64 * 1024, OUTPUT_BYTES = 64 << 20 };

typedef struct {
    int fd; /* -1: free */
    uint32_t uid;
    uint64_t id;
    char *line; /* owned, LINE_BYTES */
    size_t have, taken;
    bool is_waiting; /* a line was handed out and not answered */
    iso_buf out;
    size_t written;
} connection;

struct iso_admin {
    int fd;
    char path[108];
    connection at[ISO_ADMIN_CONNECTIONS];
    uint64_t next_id;
};

static void close_one(connection *k)
{
    if (k->fd >= 0)
        close(k->fd);
    free(k->line);
    iso_buf_free(&k->out);
    *k = (connection){.fd = -1};
}

iso_err iso_admin_open(iso_admin **out, const char *path, iso_error *e)
{
    *out = NULL;
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return iso_fail(e, ISO_ERR_USAGE, "%.60s...: a socket's path has at most 107 letters",
                        path);
    iso_admin *a = iso_calloc(1, sizeof *a);
    if (!a)
        return iso_nomem(e, sizeof *a);
    for (int i = 0; i < ISO_ADMIN_CONNECTIONS; i++)
        a->at[i].fd = -1;
    memcpy(address.sun_path, path, strlen(path) + 1);
    memcpy(a->path, path, strlen(path) + 1);
    unlink(path); /* the folder's lock is ours: what lies there is left over */
    a->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    mode_t mask = umask(0117); /* 0660 from the first moment on */
    bool is_ok = a->fd >= 0 && bind(a->fd, (struct sockaddr *)&address, sizeof address) == 0 &&
                 listen(a->fd, 16) == 0;
    int error = errno;
    umask(mask);
    if (!is_ok) {
        if (a->fd >= 0)
            close(a->fd);
        free(a);
        return iso_fail_errno(e, ISO_ERR_RESOURCE, error, "%s", path);
    }
    *out = a;
    return ISO_OK;
}

void iso_admin_close(iso_admin *a)
{
    if (!a)
        return;
    for (int i = 0; i < ISO_ADMIN_CONNECTIONS; i++)
        close_one(&a->at[i]);
    close(a->fd);
    unlink(a->path);
    free(a);
}

size_t iso_admin_fds(const iso_admin *a, struct pollfd *fds)
{
    size_t n = 0;
    fds[n++] = (struct pollfd){.fd = a->fd, .events = POLLIN};
    for (int i = 0; i < ISO_ADMIN_CONNECTIONS; i++)
        if (a->at[i].fd >= 0)
            fds[n++] = (struct pollfd){
                .fd = a->at[i].fd,
                .events = (short)(POLLIN | (a->at[i].out.size > a->at[i].written ? POLLOUT : 0))};
    return n;
}

static void accept_all(iso_admin *a)
{
    for (;;) {
        int fd = accept4(a->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        struct ucred who;
        socklen_t bytes = sizeof who;
        int i = 0;
        while (i < ISO_ADMIN_CONNECTIONS && a->at[i].fd >= 0)
            i++;
        if (i == ISO_ADMIN_CONNECTIONS ||
            getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) != 0) {
            close(fd);
            continue;
        }
        connection *k = &a->at[i];
        *k = (connection){.fd = fd, .uid = who.uid, .id = ++a->next_id};
        if (!(k->line = malloc(LINE_BYTES + 1)))
            close_one(k);
    }
}

static void write_some(connection *k)
{
    while (k->fd >= 0 && k->written < k->out.size) {
        ssize_t n = send(k->fd, k->out.data + k->written, k->out.size - k->written, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (n <= 0) {
            close_one(k);
            return;
        }
        k->written += (size_t)n;
    }
    k->out.size = k->written = 0;
}

static void read_some(connection *k)
{
    while (k->fd >= 0 && k->have < LINE_BYTES) {
        ssize_t n = recv(k->fd, k->line + k->have, LINE_BYTES - k->have, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK))
            return;
        if (n <= 0) {
            close_one(k);
            return;
        }
        k->have += (size_t)n;
    }
    if (k->fd >= 0 && k->have == LINE_BYTES && !memchr(k->line, '\n', k->have))
        close_one(k); /* no command is that long */
}

void iso_admin_serve(iso_admin *a)
{
    accept_all(a);
    for (int i = 0; i < ISO_ADMIN_CONNECTIONS; i++)
        if (a->at[i].fd >= 0) {
            write_some(&a->at[i]);
            if (a->at[i].fd >= 0)
                read_some(&a->at[i]);
        }
}

bool iso_admin_next(iso_admin *a, uint64_t *id, uint32_t *uid, const char **line)
{
    for (int i = 0; i < ISO_ADMIN_CONNECTIONS; i++) {
        connection *k = &a->at[i];
        if (k->fd < 0)
            continue;
        if (k->taken) { /* the line that was handed out last time */
            memmove(k->line, k->line + k->taken, k->have - k->taken);
            k->have -= k->taken;
            k->taken = 0;
        }
        char *end = memchr(k->line, '\n', k->have);
        if (!end)
            continue;
        *end = 0;
        k->taken = (size_t)(end - k->line) + 1;
        k->is_waiting = true;
        *id = k->id;
        *uid = k->uid;
        *line = k->line;
        return true;
    }
    return false;
}

void iso_admin_reply(iso_admin *a, uint64_t id, const char *text)
{
    for (int i = 0; i < ISO_ADMIN_CONNECTIONS; i++) {
        connection *k = &a->at[i];
        if (k->fd < 0 || k->id != id)
            continue;
        k->is_waiting = false;
        if (k->out.size > OUTPUT_BYTES ||
            iso_buf_append(&k->out, text, strlen(text), NULL) != ISO_OK ||
            iso_buf_append(&k->out, "\n", 1, NULL) != ISO_OK)
            close_one(k);
        else
            write_some(k);
        return;
    }
}

void iso_admin_fail_all(iso_admin *a, const char *text)
{
    for (int i = 0; i < ISO_ADMIN_CONNECTIONS; i++)
        if (a->at[i].fd >= 0 && a->at[i].is_waiting)
            iso_admin_reply(a, a->at[i].id, text);
}
