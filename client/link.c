#include "client/link.h"

#include "proto/codec.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum { QUEUE_MESSAGES = 64, QUEUE_BYTES = 4 << 20, HANDSHAKE_MS = 15000, WAIT_FDS = 24 };

typedef struct queued {
    struct queued *next;
    size_t head_bytes, body_bytes;
    uint8_t bytes[];
} queued;

struct iso_link {
    iso_link_options options;
    void *context, *socket, *monitor;
    uint64_t number;
    bool is_up, is_down; /* is_down: LINK_DOWN is to be reported */
    iso_agent_down down;
    char reason[256];
    char monitor_name[64];
    uint64_t monitor_count;
    queued *first, *last;
    size_t queue_count, queue_bytes;
    uint64_t sent, received;
    iso_arena arena; /* of the message handed out last */
    iso_msg msg;
    uint8_t *body; /* ISO_FRAME_MAX_BYTES */
};

/* ---- options, each set and read back (S42) ---- */

static iso_err set_int(void *socket, int option, int value, const char *name, iso_error *e)
{
    int got = 0;
    size_t bytes = sizeof got;
    if (zmq_setsockopt(socket, option, &value, sizeof value) ||
        zmq_getsockopt(socket, option, &got, &bytes) || got != value)
        return iso_fail(e, ISO_ERR_RESOURCE, "link: option %s does not take %d (it is %d)", name,
                        value, got);
    return ISO_OK;
}

static iso_err set_max_message(void *socket, iso_error *e)
{
    int64_t value = ISO_FRAME_MAX_BYTES, got = 0;
    size_t bytes = sizeof got;
    if (zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &value, sizeof value) ||
        zmq_getsockopt(socket, ZMQ_MAXMSGSIZE, &got, &bytes) || got != value)
        return iso_fail(e, ISO_ERR_RESOURCE, "link: option MAXMSGSIZE does not take");
    return ISO_OK;
}

static iso_err set_key(void *socket, int option, const uint8_t key[32], const char *name,
                       iso_error *e)
{
    uint8_t got[32] = {0};
    size_t bytes = sizeof got;
    if (zmq_setsockopt(socket, option, key, 32) || zmq_getsockopt(socket, option, got, &bytes) ||
        memcmp(got, key, 32) != 0)
        return iso_fail(e, ISO_ERR_RESOURCE, "link: option %s does not take", name);
    return ISO_OK;
}

static iso_err set_options(const iso_link *l, iso_error *e)
{
    int heartbeat = (int)l->options.heartbeat_ms;
    const struct {
        int option, value;
        const char *name;
    } rows[] = {
        {ZMQ_LINGER, 0, "LINGER"},
        {ZMQ_IMMEDIATE, 1, "IMMEDIATE"},
        {ZMQ_RCVHWM, 16, "RCVHWM"},
        {ZMQ_SNDHWM, 16, "SNDHWM"},
        {ZMQ_RECONNECT_IVL, -1, "RECONNECT_IVL"},
        {ZMQ_HANDSHAKE_IVL, HANDSHAKE_MS, "HANDSHAKE_IVL"},
        {ZMQ_HEARTBEAT_IVL, heartbeat, "HEARTBEAT_IVL"},
        {ZMQ_HEARTBEAT_TIMEOUT, 3 * heartbeat, "HEARTBEAT_TIMEOUT"},
        {ZMQ_HEARTBEAT_TTL, 4 * heartbeat, "HEARTBEAT_TTL"},
        {ZMQ_TCP_KEEPALIVE, 1, "TCP_KEEPALIVE"},
        {ZMQ_TCP_KEEPALIVE_IDLE, 60, "TCP_KEEPALIVE_IDLE"},
        {ZMQ_IPV6, 1, "IPV6"},
    };
    iso_err err = set_max_message(l->socket, e);
    for (size_t i = 0; err == ISO_OK && i < sizeof rows / sizeof *rows; i++)
        err = set_int(l->socket, rows[i].option, rows[i].value, rows[i].name, e);
    if (err == ISO_OK)
        err = set_key(l->socket, ZMQ_CURVE_SERVERKEY, l->options.coordinator_pk, "CURVE_SERVERKEY",
                      e);
    if (err == ISO_OK)
        err =
            set_key(l->socket, ZMQ_CURVE_PUBLICKEY, l->options.transport_pk, "CURVE_PUBLICKEY", e);
    if (err == ISO_OK)
        err = set_key(l->socket, ZMQ_CURVE_SECRETKEY, l->options.transport_secret,
                      "CURVE_SECRETKEY", e);
    return err;
}

/* ---- life ---- */

iso_err iso_link_open(iso_link **out, const iso_link_options *options, iso_error *e)
{
    iso_link *l = iso_calloc(1, sizeof *l);
    *out = NULL;
    if (!l)
        return iso_nomem(e, sizeof *l);
    l->options = *options;
    l->context = zmq_ctx_new();
    l->body = malloc(ISO_FRAME_MAX_BYTES);
    if (!l->context || !l->body) {
        iso_link_close(l);
        return iso_fail(e, ISO_ERR_RESOURCE, "link: no context for sockets");
    }
    *out = l;
    return ISO_OK;
}

static void clear_queue(iso_link *l)
{
    while (l->first) {
        queued *q = l->first;
        l->first = q->next;
        free(q);
    }
    l->last = NULL;
    l->queue_count = l->queue_bytes = 0;
}

static void close_sockets(iso_link *l)
{
    if (l->socket)
        zmq_socket_monitor(l->socket, NULL, 0);
    if (l->monitor)
        zmq_close(l->monitor);
    if (l->socket)
        zmq_close(l->socket);
    l->socket = l->monitor = NULL;
    l->is_up = l->is_down = false;
    clear_queue(l);
}

void iso_link_close(iso_link *l)
{
    if (!l)
        return;
    close_sockets(l);
    if (l->context)
        zmq_ctx_term(l->context);
    iso_arena_free(&l->arena);
    free(l->body);
    free(l);
}

iso_err iso_link_connect(iso_link *l, uint64_t number, iso_error *e)
{
    char endpoint[300];
    const int watched = ZMQ_EVENT_HANDSHAKE_SUCCEEDED | ZMQ_EVENT_HANDSHAKE_FAILED_AUTH |
                        ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL | ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL |
                        ZMQ_EVENT_DISCONNECTED | ZMQ_EVENT_CLOSED;
    close_sockets(l);
    l->number = number;
    l->socket = zmq_socket(l->context, ZMQ_DEALER);
    l->monitor = zmq_socket(l->context, ZMQ_PAIR);
    if (!l->socket || !l->monitor) {
        close_sockets(l);
        return iso_fail(e, ISO_ERR_RESOURCE, "link: no socket: %s", zmq_strerror(errno));
    }
    snprintf(l->monitor_name, sizeof l->monitor_name, "inproc://link-%llu",
             (unsigned long long)++l->monitor_count);
    bool is_v6 = strchr(l->options.host, ':') != NULL;
    snprintf(endpoint, sizeof endpoint, is_v6 ? "tcp://[%s]:%u" : "tcp://%s:%u", l->options.host,
             l->options.port);
    iso_err err = set_options(l, e);
    if (err == ISO_OK && (zmq_socket_monitor(l->socket, l->monitor_name, watched) ||
                          zmq_connect(l->monitor, l->monitor_name)))
        err = iso_fail(e, ISO_ERR_RESOURCE, "link: no monitor: %s", zmq_strerror(errno));
    if (err == ISO_OK && zmq_connect(l->socket, endpoint))
        err = iso_fail(e, ISO_ERR_RESOURCE, "cannot dial %s: %s", endpoint, zmq_strerror(errno));
    if (err != ISO_OK)
        close_sockets(l);
    return err;
}

void iso_link_hang_up(iso_link *l, uint64_t number)
{
    if (number == l->number)
        close_sockets(l);
}

static void give_up(iso_link *l, iso_agent_down down, const char *reason)
{
    if (l->is_down)
        return;
    l->is_down = true;
    l->down = down;
    snprintf(l->reason, sizeof l->reason, "%s", reason);
}

/* ---- sending ---- */

static bool send_frames(iso_link *l, const uint8_t *head, size_t head_bytes, const void *body,
                        size_t body_bytes)
{
    /* The library takes a message whole: after the first frame went in, so does the second. */
    if (zmq_send(l->socket, head, head_bytes, ZMQ_SNDMORE | ZMQ_DONTWAIT) < 0)
        return false;
    if (zmq_send(l->socket, body, body_bytes, ZMQ_DONTWAIT) < 0) {
        give_up(l, ISO_DOWN_LOST, "a message could not be finished");
        return true;
    }
    l->sent += head_bytes + body_bytes;
    return true;
}

static void flush(iso_link *l)
{
    while (l->first && !l->is_down) {
        queued *q = l->first;
        if (!send_frames(l, q->bytes, q->head_bytes, q->bytes + q->head_bytes, q->body_bytes))
            return;
        l->first = q->next;
        if (!l->first)
            l->last = NULL;
        l->queue_count--;
        l->queue_bytes -= q->head_bytes + q->body_bytes;
        free(q);
    }
}

iso_err iso_link_send(iso_link *l, const iso_msg *m, const void *body, size_t body_bytes,
                      iso_error *e)
{
    uint8_t head[ISO_HEAD_MAX_BYTES];
    size_t head_bytes;
    if (!l->socket || !l->is_up || l->is_down)
        return ISO_OK; /* the loss is on its way to the core, which begins again */
    iso_err err = iso_msg_encode(m, head, sizeof head, &head_bytes, e);
    if (err != ISO_OK)
        return err;
    if (!l->first && send_frames(l, head, head_bytes, body ? body : "", body_bytes))
        return ISO_OK;
    if (l->queue_count >= QUEUE_MESSAGES ||
        l->queue_bytes + head_bytes + body_bytes > QUEUE_BYTES) {
        give_up(l, ISO_DOWN_LOST, "the line takes nothing more");
        return ISO_OK;
    }
    queued *q = malloc(sizeof *q + head_bytes + body_bytes);
    if (!q)
        return iso_nomem(e, head_bytes + body_bytes);
    q->next = NULL;
    q->head_bytes = head_bytes;
    q->body_bytes = body_bytes;
    memcpy(q->bytes, head, head_bytes);
    if (body_bytes)
        memcpy(q->bytes + head_bytes, body, body_bytes);
    if (l->last)
        l->last->next = q;
    else
        l->first = q;
    l->last = q;
    l->queue_count++;
    l->queue_bytes += head_bytes + body_bytes;
    return ISO_OK;
}

/* ---- receiving ---- */

static bool has_more(const iso_link *l)
{
    int more = 0;
    size_t bytes = sizeof more;
    return zmq_getsockopt(l->socket, ZMQ_RCVMORE, &more, &bytes) == 0 && more;
}

/* Frames beyond the second are taken from the library one by one and dropped (S47). */
static void drain(iso_link *l)
{
    char nothing[1];
    while (has_more(l) && zmq_recv(l->socket, nothing, sizeof nothing, ZMQ_DONTWAIT) >= 0)
        ;
    give_up(l, ISO_DOWN_LOST, "the coordinator sent a message of more than two frames");
}

static bool receive(iso_link *l, iso_agent_event *ev)
{
    uint8_t head[ISO_HEAD_MAX_BYTES];
    int n = zmq_recv(l->socket, head, sizeof head, ZMQ_DONTWAIT);
    if (n < 0)
        return false;
    if (n > (int)sizeof head || !has_more(l)) {
        drain(l);
        return false;
    }
    int b = zmq_recv(l->socket, l->body, ISO_FRAME_MAX_BYTES, ZMQ_DONTWAIT);
    if (b < 0 || b > ISO_BODY_MAX_BYTES || has_more(l)) {
        drain(l);
        return false;
    }
    l->received += (uint64_t)n + (uint64_t)b;
    iso_error error = {0};
    iso_code code;
    iso_arena_reset(&l->arena);
    if (iso_msg_decode(head, (size_t)n, &l->arena, &l->msg, &code, &error) != ISO_OK) {
        give_up(l, ISO_DOWN_LOST, error.text);
        return false;
    }
    *ev = (iso_agent_event){.kind = ISO_AE_MESSAGE,
                            .link = l->number,
                            .msg = &l->msg,
                            .body = l->body,
                            .body_bytes = (size_t)b};
    return true;
}

/* One monitor message: u16 event, u32 value; then the address, which is not needed. */
static bool watch(iso_link *l, iso_agent_event *ev)
{
    uint8_t frame[16];
    char address[8];
    while (l->monitor && zmq_recv(l->monitor, frame, sizeof frame, ZMQ_DONTWAIT) >= 6) {
        uint16_t event;
        uint32_t value;
        memcpy(&event, frame, sizeof event);
        memcpy(&value, frame + 2, sizeof value);
        zmq_recv(l->monitor, address, sizeof address, 0);
        switch (event) {
        case ZMQ_EVENT_HANDSHAKE_SUCCEEDED:
            l->is_up = true;
            *ev = (iso_agent_event){.kind = ISO_AE_LINK_UP, .link = l->number};
            return true;
        case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH: /* ZAP's answer; final for the library (T6) */
            give_up(l, value == 400 ? ISO_DOWN_REFUSED : ISO_DOWN_FAILED,
                    value == 400 ? "not admitted: the coordinator does not know this key, or the "
                                   "site was revoked [not_admitted]"
                                 : "the coordinator cannot check keys at the moment");
            return false;
        case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            give_up(l, ISO_DOWN_FAILED,
                    "the server's key is not the one of the enrolment line, or this is no isofed "
                    "coordinator [server_key]");
            return false;
        case ZMQ_EVENT_DISCONNECTED:
        case ZMQ_EVENT_CLOSED:
            if (l->is_up) {
                give_up(l, ISO_DOWN_LOST, "the connection was closed");
            } else {
                char text[256];
                snprintf(text, sizeof text, "cannot reach %.180s:%u [link_refused]",
                         l->options.host, l->options.port);
                give_up(l, ISO_DOWN_FAILED, text);
            }
            return false;
        default:
            break;
        }
    }
    return false;
}

bool iso_link_next(iso_link *l, iso_agent_event *ev)
{
    if (!l->socket)
        return false;
    if (watch(l, ev))
        return true;
    flush(l);
    /* What arrived before the end is still good: a Bye, a refusal with its reason. */
    if (l->is_up && receive(l, ev))
        return true;
    if (l->is_down) {
        *ev = (iso_agent_event){
            .kind = ISO_AE_LINK_DOWN, .link = l->number, .down = l->down, .text = l->reason};
        close_sockets(l);
        return true;
    }
    return false;
}

iso_err iso_link_wait(iso_link *l, const int *fds, bool *ready, size_t count, long timeout_ms,
                      iso_error *e)
{
    zmq_pollitem_t items[WAIT_FDS + 2];
    int n = 0;
    if (count > WAIT_FDS)
        return iso_fail(e, ISO_ERR_INTERNAL, "too many descriptors to wait for");
    for (size_t i = 0; i < count; i++)
        items[n++] = (zmq_pollitem_t){.fd = fds[i], .events = ZMQ_POLLIN};
    if (l->socket) {
        short events = (short)(ZMQ_POLLIN | (l->first ? ZMQ_POLLOUT : 0));
        items[n++] = (zmq_pollitem_t){.socket = l->socket, .events = events};
        items[n++] = (zmq_pollitem_t){.socket = l->monitor, .events = ZMQ_POLLIN};
    }
    int rc = zmq_poll(items, n, l->is_down ? 0 : timeout_ms);
    if (rc < 0 && errno != EINTR)
        return iso_fail(e, ISO_ERR_RESOURCE, "waiting failed: %s", zmq_strerror(errno));
    for (size_t i = 0; i < count; i++)
        ready[i] = rc > 0 && items[i].revents != 0;
    return ISO_OK;
}

void iso_link_bytes(const iso_link *l, uint64_t *sent, uint64_t *received)
{
    *sent = l->sent;
    *received = l->received;
}
