#include "cli/admin_client.h"

#include "core/fsio.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

enum { REPLY_MAX_BYTES = 64 << 20 };

static iso_err connect_to(const char *dir, int *fd_out, iso_error *e)
{
    static const char *const names[] = {"admin.sock", "control.sock"};
    int last = ENOENT;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct sockaddr_un a = {.sun_family = AF_UNIX};
        int n = snprintf(a.sun_path, sizeof a.sun_path, "%s/%s", dir, names[i]);
        if (n < 0 || (size_t)n >= sizeof a.sun_path)
            return iso_fail(e, ISO_ERR_USAGE,
                            "%s: folder name is too long for a socket (%zu bytes)", dir,
                            sizeof a.sun_path);
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (fd < 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "socket");
        if (connect(fd, (struct sockaddr *)&a, sizeof a) == 0) {
            *fd_out = fd;
            return ISO_OK;
        }
        if (errno != ENOENT)
            last = errno;
        close(fd);
    }
    if (last == EACCES || last == EPERM)
        return iso_fail(e, ISO_ERR_TRUST, "%s: its socket is not open to this user", dir);
    return iso_fail(e, ISO_ERR_RESOURCE, "no daemon answers in %s: is it running there?", dir);
}

static iso_err send_all(int fd, const iso_buf *b, iso_error *e)
{
    for (size_t done = 0; done < b->size;) {
        ssize_t n = send(fd, b->data + done, b->size - done, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "writing to the daemon");
        done += (size_t)n;
    }
    return ISO_OK;
}

static iso_err receive_line(int fd, iso_buf *b, iso_error *e)
{
    for (;;) {
        iso_err err = iso_buf_reserve(b, 65536, e);
        if (err)
            return err;
        ssize_t n = recv(fd, b->data + b->size, 65536, 0);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "reading from the daemon");
        if (n == 0)
            return b->size ? ISO_OK
                           : iso_fail(e, ISO_ERR_RESOURCE, "the daemon closed without an answer");
        const uint8_t *end = memchr(b->data + b->size, '\n', (size_t)n);
        b->size += (size_t)n;
        if (end) {
            b->size = (size_t)(end - b->data);
            return ISO_OK;
        }
        if (b->size > REPLY_MAX_BYTES)
            return iso_fail(e, ISO_ERR_DATA, "the daemon's answer exceeds %d MiB",
                            REPLY_MAX_BYTES >> 20);
    }
}

static iso_err refusal(const iso_json *reply, iso_error *e)
{
    const char *code = iso_json_str(iso_json_key(reply, "code"));
    const char *line = iso_json_str(iso_json_key(reply, "error"));
    iso_err err = ISO_ERR_NO;
    if (code && !strcmp(code, "not_permitted"))
        err = ISO_ERR_TRUST;
    else if (code && (!strncmp(code, "unknown", 7) || !strcmp(code, "usage")))
        err = ISO_ERR_USAGE;
    return iso_fail(e, err, "%s [%s]", line ? line : "refused without a reason", code ? code : "?");
}

iso_err iso_admin_call(const char *dir, const char *cmd, iso_json *args, iso_json **reply,
                       const iso_json **result, iso_error *e)
{
    int fd = -1;
    iso_buf out = {0}, in = {0};
    iso_json *request = iso_json_object();
    *reply = NULL;
    iso_json_set(request, "cmd", iso_json_string(cmd));
    iso_json_set(request, "args", args ? args : iso_json_object());
    iso_err err = iso_json_dump(request, ISO_JSON_COMPACT, &out, e);
    if (!err)
        err = iso_buf_append(&out, "\n", 1, e);
    if (!err)
        err = connect_to(dir, &fd, e);
    if (!err)
        err = send_all(fd, &out, e);
    if (!err)
        err = receive_line(fd, &in, e);
    if (!err)
        err = iso_json_parse(in.data, in.size, "the daemon's answer", reply, e);
    if (err)
        goto done;
    bool ok = false;
    if (!iso_json_bool(iso_json_key(*reply, "ok"), &ok) || !ok) {
        err = refusal(*reply, e);
        iso_json_free(*reply);
        *reply = NULL;
        goto done;
    }
    *result = iso_json_key(*reply, "result");
done:
    if (fd >= 0)
        close(fd);
    iso_buf_free(&out);
    iso_buf_free(&in);
    iso_json_free(request);
    return err;
}
