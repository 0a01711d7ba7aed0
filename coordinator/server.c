/* ROUTER socket, its monitor, cuts. Traps: specs/security.md T1 - T12. */
#include "coordinator/server.h"

#include "coordinator/lines.h"
#include "core/mem.h"
#include "core/wire.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <zmq.h>

enum { CUT_DELAY_MS = 150, LIVE_FDS_MAX = 1 << 17 };

struct iso_server {
    void *context, *socket, *monitor;
    iso_zap *zap;
    iso_log *log;
    uint16_t port;
    uint32_t connections, live_count;
    iso_lines lines;
    uint8_t *live; /* bit a descriptor: connected now */
    uint64_t now;
    bool has_waiting;
    zmq_msg_t head, body;
    bool has_message;
};

bool iso_server_next_gone(iso_server *s, iso_peer *out)
{
    return iso_lines_next_gone(&s->lines, out);
}

/* ---- connections: descriptors by monitor events (S25) ---- */

static bool is_live(const iso_server *s, int fd)
{
    return fd >= 0 && fd < LIVE_FDS_MAX && (s->live[fd / 8] >> (fd % 8) & 1);
}

static void set_live(iso_server *s, int fd, bool is_on)
{
    if (fd < 0 || fd >= LIVE_FDS_MAX || is_live(s, fd) == is_on)
        return;
    s->live[fd / 8] ^= (uint8_t)(1u << (fd % 8));
    s->live_count += is_on ? 1 : -1u;
}

static void read_monitor(iso_server *s)
{
    zmq_msg_t m;
    for (;;) {
        zmq_msg_init(&m);
        if (zmq_msg_recv(&m, s->monitor, ZMQ_DONTWAIT) < 6) {
            zmq_msg_close(&m);
            return;
        }
        const uint8_t *d = zmq_msg_data(&m);
        uint16_t event = iso_get_u16(d);
        int fd = (int)iso_get_u32(d + 2);
        bool more = zmq_msg_more(&m);
        zmq_msg_close(&m);
        zmq_msg_init(&m);
        if (more)
            zmq_msg_recv(&m, s->monitor, ZMQ_DONTWAIT); /* address */
        zmq_msg_close(&m);
        if (event == ZMQ_EVENT_ACCEPTED) {
            set_live(s, fd, true);
            if (s->live_count > s->connections)
                shutdown(fd, SHUT_RDWR); /* S45: the newest goes */
        } else if (event == ZMQ_EVENT_DISCONNECTED || event == ZMQ_EVENT_CLOSED) {
            set_live(s, fd, false);
            for (size_t i = s->lines.count; i > 0; i--)
                if (s->lines.items[i - 1]->fd == fd)
                    iso_lines_drop(&s->lines, s->lines.items[i - 1]);
        }
    }
}

/* Two live descriptors a User-Id; the older goes (S45). */
static void limit_user(iso_server *s, const iso_line *newest)
{
    size_t count = 0;
    iso_line *oldest = NULL;
    for (size_t i = 0; i < s->lines.count; i++) {
        iso_line *p = s->lines.items[i];
        if (p->cut_at || memcmp(&p->name, &newest->name, sizeof p->name) != 0)
            continue;
        count++;
        if (p != newest && (!oldest || p->id < oldest->id))
            oldest = p;
    }
    if (count > 2 && oldest)
        iso_server_cut(s, oldest->id);
}

/* ---- receiving ---- */

static void end_message(iso_server *s)
{
    if (s->has_message) {
        zmq_msg_close(&s->head);
        zmq_msg_close(&s->body);
        s->has_message = false;
    }
}

/* Reads what is left of a multipart message without keeping any of it (S47). */
static size_t drain(iso_server *s)
{
    int more = 1;
    size_t bytes = sizeof more, count = 0;
    zmq_getsockopt(s->socket, ZMQ_RCVMORE, &more, &bytes);
    while (more) {
        zmq_msg_t m;
        zmq_msg_init(&m);
        if (zmq_msg_recv(&m, s->socket, ZMQ_DONTWAIT) < 0)
            more = 0;
        else
            more = zmq_msg_more(&m);
        zmq_msg_close(&m);
        count++;
    }
    return count;
}

static iso_line *sender(iso_server *s, zmq_msg_t *routing, zmq_msg_t *head)
{
    uint8_t key[16] = {0};
    size_t n = zmq_msg_size(routing);
    if (n == 0 || n > 15)
        return NULL;
    key[0] = (uint8_t)n;
    memcpy(key + 1, zmq_msg_data(routing), n);
    int fd = zmq_msg_get(head, ZMQ_SRCFD);
    iso_line *p = iso_lines_by_routing(&s->lines, key);
    if (!p && !is_live(s, fd))
        read_monitor(s); /* accepted since the last look */
    if (!p && !is_live(s, fd))
        return NULL; /* left over from a connection that is gone */
    if (!p) {
        iso_peer_name name;
        if (!iso_zap_parse_user(zmq_msg_gets(head, "User-Id"), &name))
            return NULL; /* cannot be: ZAP names everyone it admits */
        if (!(p = iso_lines_add(&s->lines, key, &name)))
            return NULL;
        limit_user(s, p);
    }
    p->fd = is_live(s, fd) ? fd : -1;
    return p;
}

bool iso_server_next(iso_server *s, iso_server_message *m)
{
    end_message(s);
    read_monitor(s);
    for (;;) {
        zmq_msg_t routing;
        zmq_msg_init(&routing);
        if (zmq_msg_recv(&routing, s->socket, ZMQ_DONTWAIT) < 0) {
            zmq_msg_close(&routing);
            return false;
        }
        zmq_msg_init(&s->head);
        zmq_msg_init(&s->body);
        s->has_message = true;
        *m = (iso_server_message){0};
        bool has_head =
            zmq_msg_more(&routing) && zmq_msg_recv(&s->head, s->socket, ZMQ_DONTWAIT) >= 0;
        bool has_body = has_head && zmq_msg_more(&s->head) &&
                        zmq_msg_recv(&s->body, s->socket, ZMQ_DONTWAIT) >= 0;
        iso_line *p = has_head ? sender(s, &routing, &s->head) : NULL;
        size_t extra = has_body && zmq_msg_more(&s->body) ? drain(s) : 0;
        zmq_msg_close(&routing);
        if (!p || p->cut_at) { /* nobody we know, or on its way out */
            end_message(s);
            continue;
        }
        m->peer = p->id;
        m->name = p->name;
        m->head = zmq_msg_data(&s->head);
        m->head_bytes = zmq_msg_size(&s->head);
        m->body = zmq_msg_data(&s->body);
        m->body_bytes = zmq_msg_size(&s->body);
        if (extra) {
            m->fault = "more than two frames";
            iso_server_cut(s, p->id);
        } else if (!has_body) {
            m->fault = "a message has two frames";
        } else if (m->head_bytes > ISO_HEAD_MAX_BYTES || m->body_bytes > ISO_BODY_MAX_BYTES) {
            m->fault = "a frame is too large";
        }
        return true;
    }
}

/* ---- sending ---- */

typedef enum { SENT, WAITS, GONE } send_outcome;

static send_outcome send_now(iso_server *s, const iso_line *p, const void *head, size_t head_bytes,
                             const void *body, size_t body_bytes)
{
    if (zmq_send(s->socket, p->routing + 1, p->routing[0], ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return errno == EAGAIN ? WAITS : GONE;
    /* Once the first part is taken the rest of the message is too. */
    if (zmq_send(s->socket, head, head_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0 ||
        zmq_send(s->socket, body, body_bytes, ZMQ_DONTWAIT) < 0)
        return GONE;
    return SENT;
}

void iso_server_send(iso_server *s, iso_peer id, const void *head, size_t head_bytes,
                     const void *body, size_t body_bytes)
{
    iso_line *p = iso_lines_by_id(&s->lines, id);
    if (!p)
        return;
    send_outcome o = p->first ? WAITS : send_now(s, p, head, head_bytes, body, body_bytes);
    s->has_waiting = s->has_waiting || o == WAITS;
    if (o == WAITS && !iso_line_push(p, head, head_bytes, body, body_bytes)) {
        iso_log_event(s->log, ISO_LOG_WARN, "peer_slow", "peer=%llu queued=%zu",
                      (unsigned long long)id, p->waiting_count);
        iso_server_cut(s, id);
    } else if (o == GONE) {
        iso_lines_drop(&s->lines, p);
    }
}

void iso_server_cut(iso_server *s, iso_peer id)
{
    iso_line *p = iso_lines_by_id(&s->lines, id);
    if (p && !p->cut_at) {
        p->cut_at = s->now + CUT_DELAY_MS;
        s->has_waiting = true;
    }
}

static int newest_first(const void *a, const void *b)
{
    iso_peer x = *(const iso_peer *)a, y = *(const iso_peer *)b;
    return x < y ? 1 : x > y ? -1 : 0;
}

size_t iso_server_cut_newest(iso_server *s, iso_server_may_cut_fn *may_cut, void *arg, size_t most)
{
    size_t count = s->lines.count, done = 0;
    iso_peer *ids = iso_calloc(count, sizeof *ids); /* no memory for this: next second again */
    for (size_t i = 0; ids && i < count; i++)
        ids[i] = s->lines.items[i]->id;
    if (ids)
        qsort(ids, count, sizeof *ids, newest_first);
    for (size_t i = 0; ids && i < count && done < most; i++) {
        const iso_line *p = iso_lines_by_id(&s->lines, ids[i]);
        if (!p || p->cut_at || !may_cut(arg, p->id, &p->name))
            continue;
        iso_server_cut(s, p->id);
        done++;
    }
    free(ids);
    return done;
}

void iso_server_cut_all(iso_server *s)
{
    for (size_t i = s->lines.count; i > 0; i--) {
        iso_line *p = s->lines.items[i - 1];
        if (is_live(s, p->fd))
            shutdown(p->fd, SHUT_RDWR);
        iso_lines_drop(&s->lines, p);
    }
    s->lines.gone_count = 0; /* the new core never knew them */
}

void iso_server_tick(iso_server *s, uint64_t now_ms)
{
    s->now = now_ms;
    read_monitor(s);
    if (!s->has_waiting)
        return; /* thousands of idle peers cost nothing */
    s->has_waiting = false;
    for (size_t i = s->lines.count; i > 0; i--) {
        iso_line *p = s->lines.items[i - 1];
        send_outcome o = SENT;
        while (p->first && o == SENT) {
            const iso_waiting *q = p->first;
            o = send_now(s, p, q->bytes, q->head_bytes, q->bytes + q->head_bytes, q->body_bytes);
            if (o != SENT)
                break;
            iso_line_pop(p);
        }
        s->has_waiting = s->has_waiting || p->first || p->cut_at;
        if (p->cut_at && now_ms >= p->cut_at && is_live(s, p->fd))
            shutdown(p->fd, SHUT_RDWR);
        if (o == GONE || (p->cut_at && now_ms >= p->cut_at))
            iso_lines_drop(&s->lines, p);
    }
}

/* ---- waiting ---- */

iso_err iso_server_wait(iso_server *s, struct pollfd *fds, size_t count, long timeout_ms,
                        iso_error *e)
{
    zmq_pollitem_t items[64];
    if (count > 62)
        return iso_fail(e, ISO_ERR_INTERNAL, "%zu descriptors to wait for", count);
    items[0] = (zmq_pollitem_t){s->socket, 0, ZMQ_POLLIN, 0};
    items[1] = (zmq_pollitem_t){s->monitor, 0, ZMQ_POLLIN, 0};
    for (size_t i = 0; i < count; i++)
        items[i + 2] = (zmq_pollitem_t){NULL, fds[i].fd,
                                        (short)((fds[i].events & POLLIN ? ZMQ_POLLIN : 0) |
                                                (fds[i].events & POLLOUT ? ZMQ_POLLOUT : 0)),
                                        0};
    if (s->has_waiting && (timeout_ms < 0 || timeout_ms > 20))
        timeout_ms = 20;
    if (zmq_poll(items, (int)count + 2, timeout_ms) < 0 && errno != EINTR)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "poll");
    for (size_t i = 0; i < count; i++)
        fds[i].revents = (short)((items[i + 2].revents & ZMQ_POLLIN ? POLLIN : 0) |
                                 (items[i + 2].revents & ZMQ_POLLOUT ? POLLOUT : 0) |
                                 (items[i + 2].revents & ZMQ_POLLERR ? POLLERR : 0));
    return ISO_OK;
}

/* ---- opening ---- */

iso_err iso_server_admit(iso_server *s, const iso_zap_key *keys, size_t count, iso_error *e)
{
    return iso_zap_admit(s->zap, keys, count, e);
}

uint16_t iso_server_port(const iso_server *s)
{
    return s->port;
}

static iso_err bind_public(iso_server *s, const iso_server_options *o, iso_error *e)
{
    char address[300], bound[300];
    size_t bytes = sizeof bound;
    if (o->port)
        snprintf(address, sizeof address, "tcp://%.250s:%u", o->host, o->port);
    else
        snprintf(address, sizeof address, "tcp://%.250s:*", o->host);
    int rc = zmq_bind(s->socket, address);
    if (rc != 0 && errno == EADDRINUSE && o->is_port_a_wish) {
        snprintf(address, sizeof address, "tcp://%.250s:*", o->host);
        rc = zmq_bind(s->socket, address);
    }
    if (rc != 0) {
        if (errno == EADDRINUSE)
            return iso_fail(e, ISO_ERR_RESOURCE,
                            "port %u of %.100s is in use by another program: change `listen`",
                            o->port, o->host);
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%.200s", address);
    }
    if (zmq_getsockopt(s->socket, ZMQ_LAST_ENDPOINT, bound, &bytes) != 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%.200s", address);
    s->port = (uint16_t)strtoul(strrchr(bound, ':') + 1, NULL, 10);
    return ISO_OK;
}

iso_err iso_server_open(iso_server **out, const iso_server_options *o, iso_error *e)
{
    *out = NULL;
    iso_server *s = iso_calloc(1, sizeof *s);
    if (!s || !(s->live = iso_calloc(LIVE_FDS_MAX / 8, 1))) {
        free(s);
        return iso_nomem(e, sizeof *s);
    }
    s->log = o->log;
    s->connections = o->connections;
    iso_err err = ISO_OK;
    s->context = zmq_ctx_new();
    if (!s->context || !(s->socket = zmq_socket(s->context, ZMQ_ROUTER)))
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "zmq");
    if (!err)
        err = iso_zap_socket_options(s->socket, o->transport_secret, e);
    if (!err)
        err = iso_zap_start(&s->zap, s->context, o->handshakes_per_s, o->handshake_burst, e);
    if (!err)
        err = iso_zap_selftest(s->context, s->socket, s->zap, o->transport_pk, e);
    int zero = 0;
    if (!err &&
        (zmq_socket_monitor(s->socket, "inproc://isofed.monitor",
                            ZMQ_EVENT_ACCEPTED | ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED) != 0 ||
         !(s->monitor = zmq_socket(s->context, ZMQ_PAIR)) ||
         zmq_setsockopt(s->monitor, ZMQ_LINGER, &zero, sizeof zero) != 0 ||
         zmq_connect(s->monitor, "inproc://isofed.monitor") != 0))
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "zmq monitor");
    if (!err && o->key_count)
        err = iso_zap_admit(s->zap, o->keys, o->key_count, e);
    if (!err)
        err = bind_public(s, o, e);
    if (err) {
        iso_server_close(s);
        return err;
    }
    *out = s;
    return ISO_OK;
}

void iso_server_close(iso_server *s)
{
    if (!s)
        return;
    end_message(s);
    if (s->socket)
        zmq_socket_monitor(s->socket, NULL, 0);
    if (s->monitor)
        zmq_close(s->monitor);
    if (s->socket)
        zmq_close(s->socket);
    iso_zap_stop(s->zap);
    if (s->context)
        zmq_ctx_term(s->context);
    iso_lines_free(&s->lines);
    free(s->live);
    free(s);
}
