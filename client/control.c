#include "client/control.h"

#include "core/fsio.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { LINE_MAX_BYTES = 64 * 1024, SEND_MS = 2000 };

iso_err iso_control_open(iso_control *c, const char *dir, iso_error *e)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    memset(c, 0, sizeof *c);
    c->listen_fd = -1;
    for (int i = 0; i < ISO_CONTROL_CLIENTS; i++)
        c->peers[i].fd = -1;
    c->path = iso_path_join(dir, "control.sock");
    if (!c->path)
        return iso_nomem(e, strlen(dir));
    if (strlen(c->path) >= sizeof address.sun_path)
        return iso_fail(e, ISO_ERR_USAGE, "%s: the path of a socket has at most %zu characters",
                        c->path, sizeof address.sun_path - 1);
    strcpy(address.sun_path, c->path);
    unlink(c->path); /* of a run that was killed: the folder's lock says that it is ours */
    c->listen_fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    mode_t mask = umask(0177);
    int rc = c->listen_fd < 0 ||
             bind(c->listen_fd, (const struct sockaddr *)&address, sizeof address) ||
             listen(c->listen_fd, ISO_CONTROL_CLIENTS);
    int failure = errno;
    umask(mask);
    if (rc) {
        iso_err err = iso_fail_errno(e, ISO_ERR_RESOURCE, failure, "%s", c->path);
        iso_control_close(c);
        return err;
    }
    return ISO_OK;
}

static void drop(iso_control *c, int i)
{
    close(c->peers[i].fd);
    c->peers[i].fd = -1;
    iso_buf_free(&c->peers[i].in);
}

void iso_control_close(iso_control *c)
{
    if (!c->path)
        return;
    for (int i = 0; i < ISO_CONTROL_CLIENTS; i++)
        if (c->peers[i].fd >= 0)
            drop(c, i);
    if (c->listen_fd >= 0) {
        close(c->listen_fd);
        unlink(c->path);
    }
    free(c->path);
    memset(c, 0, sizeof *c);
}

size_t iso_control_fds(const iso_control *c, int *fds)
{
    size_t n = 0;
    fds[n++] = c->listen_fd;
    for (int i = 0; i < ISO_CONTROL_CLIENTS; i++)
        if (c->peers[i].fd >= 0)
            fds[n++] = c->peers[i].fd;
    return n;
}

static bool is_permitted(int fd)
{
    struct ucred who;
    socklen_t bytes = sizeof who;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &who, &bytes) == 0 &&
           (who.uid == geteuid() || who.uid == 0);
}

static void accept_peers(iso_control *c)
{
    int fd;
    while ((fd = accept4(c->listen_fd, NULL, NULL, SOCK_CLOEXEC)) >= 0) {
        int slot = 0;
        /* Answers are small; a peer that does not read for two seconds loses its connection. */
        const struct timeval patience = {.tv_sec = SEND_MS / 1000};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        while (slot < ISO_CONTROL_CLIENTS && c->peers[slot].fd >= 0)
            slot++;
        if (slot == ISO_CONTROL_CLIENTS || !is_permitted(fd)) {
            close(fd);
            continue;
        }
        c->peers[slot].fd = fd;
    }
}

static bool send_all(int fd, const uint8_t *p, size_t bytes)
{
    while (bytes) {
        ssize_t n = send(fd, p, bytes, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        bytes -= (size_t)n;
    }
    return true;
}

static bool reply(int fd, iso_json *result, const char *code, const iso_error *error)
{
    iso_buf out = {0};
    iso_json *j = iso_json_object();
    iso_json_set(j, "ok", iso_json_boolean(result != NULL));
    if (result) {
        iso_json_set(j, "result", result);
    } else {
        iso_json_set(j, "code", iso_json_string(code));
        iso_json_set(j, "error", iso_json_string(error->text));
    }
    bool is_sent = iso_json_dump(j, ISO_JSON_COMPACT, &out, NULL) == ISO_OK;
    if (is_sent && (out.size == 0 || out.data[out.size - 1] != '\n'))
        is_sent = iso_buf_append(&out, "\n", 1, NULL) == ISO_OK;
    is_sent = is_sent && send_all(fd, out.data, out.size);
    iso_buf_free(&out);
    iso_json_free(j);
    return is_sent;
}

static bool answer_line(int fd, const char *line, size_t bytes, iso_control_fn *answer, void *ctx)
{
    iso_json *request = NULL, *result = NULL;
    iso_error error = {0};
    const char *command = NULL, *code = "bad_request";
    if (iso_json_parse(line, bytes, "request", &request, &error) == ISO_OK &&
        iso_json_need_str(request, "cmd", &command, &error) == ISO_OK)
        result = answer(ctx, command, iso_json_key(request, "args"), &code, &error);
    bool is_sent = reply(fd, result, code, &error);
    iso_json_free(request);
    return is_sent;
}

static bool read_peer(iso_control *c, int i, iso_control_fn *answer, void *ctx)
{
    uint8_t chunk[4096];
    ssize_t n = recv(c->peers[i].fd, chunk, sizeof chunk, MSG_DONTWAIT);
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    if (n == 0 || c->peers[i].in.size + (size_t)n > LINE_MAX_BYTES ||
        iso_buf_append(&c->peers[i].in, chunk, (size_t)n, NULL) != ISO_OK)
        return false;
    iso_buf *in = &c->peers[i].in;
    uint8_t *end;
    while (in->size && (end = memchr(in->data, '\n', in->size))) {
        size_t line = (size_t)(end - in->data);
        if (!answer_line(c->peers[i].fd, (const char *)in->data, line, answer, ctx))
            return false;
        memmove(in->data, end + 1, in->size - line - 1);
        in->size -= line + 1;
    }
    return true;
}

void iso_control_serve(iso_control *c, iso_control_fn *answer, void *ctx)
{
    accept_peers(c);
    for (int i = 0; i < ISO_CONTROL_CLIENTS; i++)
        if (c->peers[i].fd >= 0 && !read_peer(c, i, answer, ctx))
            drop(c, i);
}
