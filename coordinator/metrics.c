/* Traps of the library (T16): no time-out by default, so that half a request holds its place for
 * ever, and any `Host` is served, so that a web page in the operator's browser can read us under a
 * name of its own (DNS rebinding). */
#include "coordinator/metrics.h"

#include <arpa/inet.h>
#include <errno.h>
#include <microhttpd.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CONNECTIONS = 32, TIMEOUT_S = 10, CONNECTION_BYTES = 16 * 1024 };

struct iso_metrics {
    struct MHD_Daemon *daemon;
    iso_metrics_page_fn *page;
    void *ctx;
    uint16_t port;
    int fd;
};

iso_err iso_metrics_line(iso_buf *out, const char *name, const char *kind, const char *help,
                         double value, iso_error *e)
{
    return iso_buf_printf(out, e, "# HELP isofed_%s %s\n# TYPE isofed_%s %s\nisofed_%s %.17g\n",
                          name, help, name, kind, name, value);
}

static bool is_own_name(const iso_metrics *m, const char *host, const char *prefix)
{
    static const char *const names[] = {"127.0.0.1", "localhost", "[::1]"};
    char text[64];
    for (size_t i = 0; host && i < sizeof names / sizeof *names; i++) {
        snprintf(text, sizeof text, "%s%s:%u", prefix, names[i], m->port);
        if (strcmp(host, text) == 0)
            return true;
    }
    return false;
}

static enum MHD_Result reply(struct MHD_Connection *c, unsigned status, const char *text,
                             size_t bytes)
{
    struct MHD_Response *r =
        MHD_create_response_from_buffer(bytes, (void *)(uintptr_t)text, MHD_RESPMEM_MUST_COPY);
    if (!r)
        return MHD_NO;
    MHD_add_response_header(r, "Content-Type", "text/plain; version=0.0.4; charset=utf-8");
    MHD_add_response_header(r, "Content-Security-Policy", "default-src 'self'");
    MHD_add_response_header(r, "X-Content-Type-Options", "nosniff");
    MHD_add_response_header(r, "Cache-Control", "no-store");
    enum MHD_Result result = MHD_queue_response(c, status, r);
    MHD_destroy_response(r);
    return result;
}

static enum MHD_Result refuse(struct MHD_Connection *c, unsigned status, const char *text)
{
    return reply(c, status, text, strlen(text));
}

static enum MHD_Result answer(void *ctx, struct MHD_Connection *c, const char *url,
                              const char *method, const char *version, const char *data,
                              size_t *data_bytes, void **state)
{
    const iso_metrics *m = ctx;
    (void)version;
    (void)data;
    static int seen;
    if (!*state) { /* headers only so far */
        *state = &seen;
        return MHD_YES;
    }
    if (*data_bytes) { /* a body that nobody asked for */
        *data_bytes = 0;
        return MHD_YES;
    }
    const char *origin = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Origin");
    const char *host = MHD_lookup_connection_value(c, MHD_HEADER_KIND, "Host");
    if (!is_own_name(m, host, "") || (origin && !is_own_name(m, origin, "http://")))
        return refuse(c, MHD_HTTP_FORBIDDEN, "this is not the name of this page\n");
    if (strcmp(method, "GET") != 0)
        return refuse(c, MHD_HTTP_METHOD_NOT_ALLOWED, "GET only\n");
    if (strcmp(url, "/metrics") != 0)
        return refuse(c, MHD_HTTP_NOT_FOUND, "there is /metrics and nothing else\n");
    iso_buf text = {0};
    iso_error e = {0};
    enum MHD_Result result =
        m->page(m->ctx, &text, &e) == ISO_OK
            ? reply(c, MHD_HTTP_OK, (const char *)text.data, text.size)
            : refuse(c, MHD_HTTP_INTERNAL_SERVER_ERROR, "the figures could not be written\n");
    iso_buf_free(&text);
    return result;
}

/* A bound socket; 127.0.0.1 or ::1. */
static int listen_on(bool is_v6, uint16_t port, uint16_t *bound)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } a = {.v4 = {.sin_family = AF_INET, .sin_port = htons(port)}};
    a.v4.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t bytes = sizeof a.v4;
    int one = 1;
    if (is_v6) {
        a.v6 = (struct sockaddr_in6){
            .sin6_family = AF_INET6, .sin6_port = htons(port), .sin6_addr = in6addr_loopback};
        bytes = sizeof a.v6;
    }
    int fd = socket(a.any.sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) != 0 ||
        bind(fd, &a.any, bytes) != 0 || listen(fd, CONNECTIONS) != 0 ||
        getsockname(fd, &a.any, &bytes) != 0) {
        int error = errno;
        close(fd);
        errno = error;
        return -1;
    }
    *bound = ntohs(is_v6 ? a.v6.sin6_port : a.v4.sin_port);
    return fd;
}

iso_err iso_metrics_open(iso_metrics **out, const char *host, uint16_t port,
                         iso_metrics_page_fn *page, void *ctx, iso_error *e)
{
    *out = NULL;
    bool is_v6 = strcmp(host, "::1") == 0;
    if (!is_v6 && strcmp(host, "127.0.0.1") != 0 && strcmp(host, "localhost") != 0)
        return iso_fail(e, ISO_ERR_USAGE,
                        "metrics: %.100s is not loopback (127.0.0.1 or [::1]); put a proxy that "
                        "asks for a password before it",
                        host);
    iso_metrics *m = iso_calloc(1, sizeof *m);
    if (!m)
        return iso_nomem(e, sizeof *m);
    m->page = page;
    m->ctx = ctx;
    int listener = listen_on(is_v6, port, &m->port);
    if (listener < 0) {
        iso_err err = errno == EADDRINUSE
                          ? iso_fail(e, ISO_ERR_RESOURCE,
                                     "metrics: port %u is in use by another program", port)
                          : iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "metrics: %.100s", host);
        free(m);
        return err;
    }
    m->daemon = MHD_start_daemon(MHD_USE_EPOLL, 0, NULL, NULL, answer, m, MHD_OPTION_LISTEN_SOCKET,
                                 listener, MHD_OPTION_CONNECTION_LIMIT, (unsigned)CONNECTIONS,
                                 MHD_OPTION_CONNECTION_TIMEOUT, (unsigned)TIMEOUT_S,
                                 MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)CONNECTION_BYTES,
                                 MHD_OPTION_END);
    const union MHD_DaemonInfo *info =
        m->daemon ? MHD_get_daemon_info(m->daemon, MHD_DAEMON_INFO_EPOLL_FD) : NULL;
    if (!info) {
        if (m->daemon)
            MHD_stop_daemon(m->daemon); /* closes the listener */
        else
            close(listener);
        free(m);
        return iso_fail(e, ISO_ERR_RESOURCE, "metrics: the HTTP server does not start");
    }
    m->fd = info->epoll_fd;
    *out = m;
    return ISO_OK;
}

void iso_metrics_close(iso_metrics *m)
{
    if (!m)
        return;
    MHD_stop_daemon(m->daemon);
    free(m);
}

uint16_t iso_metrics_port(const iso_metrics *m)
{
    return m->port;
}

int iso_metrics_fd(const iso_metrics *m)
{
    return m->fd;
}

void iso_metrics_serve(iso_metrics *m)
{
    MHD_run(m->daemon);
}
