/* The ZAP handler's thread. Domain, mechanism, credential and version are all checked: whatever is
 * not exactly ours is answered 500, an unknown key 400 (T1, T2). */
#include "coordinator/zap.h"

#include "core/digest.h"
#include "core/mem.h"
#include "core/wire.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

typedef struct {
    size_t count;
    iso_zap_key keys[];
} key_set;

struct iso_zap {
    void *context, *control; /* control: our end of the pair */
    pthread_t thread;
    uint32_t per_s, burst;
    char pair[64];
};

typedef struct {
    void *handler, *control;
    key_set *set;
    double bucket;
    struct timespec at;
    uint32_t per_s, burst;
} zap_state;

static int compare_keys(const void *a, const void *b)
{
    return memcmp(((const iso_zap_key *)a)->pk, ((const iso_zap_key *)b)->pk, 32);
}

static bool has_budget(zap_state *z)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double passed =
        (double)(now.tv_sec - z->at.tv_sec) + 1e-9 * (double)(now.tv_nsec - z->at.tv_nsec);
    z->at = now;
    z->bucket += passed * z->per_s;
    if (z->bucket > z->burst)
        z->bucket = z->burst;
    if (z->bucket < 1.0)
        return false;
    z->bucket -= 1.0;
    return true;
}

static void format_user(const iso_peer_name *name, char out[40])
{
    bool is_site = name->kind == ISO_PEER_SITE;
    out[0] = is_site ? 's' : 't';
    out[1] = ':';
    iso_hex(out + 2, name->id, is_site ? 16 : 4);
}

bool iso_zap_parse_user(const char *user_id, iso_peer_name *out)
{
    *out = (iso_peer_name){0};
    if (!user_id || (user_id[0] != 's' && user_id[0] != 't') || user_id[1] != ':')
        return false;
    out->kind = user_id[0] == 's' ? ISO_PEER_SITE : ISO_PEER_TOKEN;
    return iso_unhex(out->id, out->kind == ISO_PEER_SITE ? 16 : 4, user_id + 2);
}

enum { PARTS = 7, PART_BYTES = 256 };

/* Reads a request: version, id, domain, address, identity, mechanism, credential. False: malformed
 * (drained all the same). */
static bool read_request(void *socket, char parts[PARTS][PART_BYTES], size_t sizes[PARTS])
{
    int more = 1, count = 0;
    bool is_ok = true;
    size_t more_bytes = sizeof more;
    while (more) {
        char spare[PART_BYTES];
        char *into = count < PARTS ? parts[count] : spare;
        int n = zmq_recv(socket, into, PART_BYTES, 0);
        if (n < 0)
            return false;
        if (n >= PART_BYTES || count >= PARTS)
            is_ok = false;
        else
            sizes[count] = (size_t)n;
        count++;
        zmq_getsockopt(socket, ZMQ_RCVMORE, &more, &more_bytes);
    }
    return is_ok && count == PARTS;
}

static bool is_text(const char *part, size_t size, const char *expected)
{
    return size == strlen(expected) && memcmp(part, expected, size) == 0;
}

static void answer(zap_state *z)
{
    char parts[PARTS][PART_BYTES], user[40] = "";
    size_t sizes[PARTS] = {0};
    const char *status = "500", *text = "not a request of ours";
    bool is_whole = read_request(z->handler, parts, sizes);
    if (is_whole && is_text(parts[0], sizes[0], "1.0") &&
        is_text(parts[2], sizes[2], ISO_ZAP_DOMAIN) && is_text(parts[5], sizes[5], "CURVE") &&
        sizes[6] == 32) {
        iso_zap_key wanted;
        memcpy(wanted.pk, parts[6], 32);
        const iso_zap_key *found =
            z->set ? bsearch(&wanted, z->set->keys, z->set->count, sizeof wanted, compare_keys)
                   : NULL;
        status = "400";
        text = "not admitted";
        if (found && !has_budget(z)) {
            status = "300"; /* known, but not now: too many handshakes */
            text = "busy";
        } else if (found) {
            status = "200";
            text = "OK";
            format_user(&found->name, user);
        }
    }
    zmq_send(z->handler, "1.0", 3, ZMQ_SNDMORE);
    zmq_send(z->handler, parts[1], is_whole ? sizes[1] : 0, ZMQ_SNDMORE);
    zmq_send(z->handler, status, 3, ZMQ_SNDMORE);
    zmq_send(z->handler, text, strlen(text), ZMQ_SNDMORE);
    zmq_send(z->handler, user, strlen(user), ZMQ_SNDMORE);
    zmq_send(z->handler, "", 0, 0);
}

/* A pointer to the new set, or none: stop. Answered with one byte when it is in force. */
static bool take_set(zap_state *z)
{
    key_set *set = NULL;
    int n = zmq_recv(z->control, &set, sizeof set, 0);
    if (n != (int)sizeof set)
        return false;
    free(z->set);
    z->set = set;
    zmq_send(z->control, "k", 1, 0);
    return true;
}

typedef struct {
    void *handler, *control;
    uint32_t per_s, burst;
} thread_arg;

static void *run(void *arg)
{
    thread_arg a = *(thread_arg *)arg;
    free(arg);
    zap_state z = {.handler = a.handler,
                   .control = a.control,
                   .per_s = a.per_s,
                   .burst = a.burst,
                   .bucket = a.burst};
    clock_gettime(CLOCK_MONOTONIC, &z.at);
    bool goes_on = true;
    while (goes_on) {
        zmq_pollitem_t items[] = {{z.handler, 0, ZMQ_POLLIN, 0}, {z.control, 0, ZMQ_POLLIN, 0}};
        if (zmq_poll(items, 2, -1) < 0 && errno != EINTR)
            break;
        if (items[0].revents & ZMQ_POLLIN)
            answer(&z);
        if (items[1].revents & ZMQ_POLLIN)
            goes_on = take_set(&z);
    }
    free(z.set);
    zmq_close(z.handler);
    zmq_close(z.control);
    return NULL;
}

iso_err iso_zap_start(iso_zap **out, void *context, uint32_t per_s, uint32_t burst, iso_error *e)
{
    *out = NULL;
    iso_zap *z = iso_calloc(1, sizeof *z);
    thread_arg *arg = iso_calloc(1, sizeof *arg);
    if (!z || !arg) {
        free(z);
        free(arg);
        return iso_nomem(e, sizeof *z);
    }
    snprintf(z->pair, sizeof z->pair, "inproc://isofed.zap.%p", (void *)z);
    z->context = context;
    z->control = zmq_socket(context, ZMQ_PAIR);
    *arg = (thread_arg){.handler = zmq_socket(context, ZMQ_REP),
                        .control = zmq_socket(context, ZMQ_PAIR),
                        .per_s = per_s,
                        .burst = burst};
    int zero = 0;
    bool is_ok = z->control && arg->handler && arg->control &&
                 zmq_setsockopt(arg->handler, ZMQ_LINGER, &zero, sizeof zero) == 0 &&
                 zmq_setsockopt(z->control, ZMQ_LINGER, &zero, sizeof zero) == 0 &&
                 zmq_bind(arg->handler, "inproc://zeromq.zap.01") == 0 &&
                 zmq_bind(z->control, z->pair) == 0 && zmq_connect(arg->control, z->pair) == 0 &&
                 pthread_create(&z->thread, NULL, run, arg) == 0;
    if (!is_ok) {
        iso_err err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "ZAP handler");
        if (arg->handler)
            zmq_close(arg->handler);
        if (arg->control)
            zmq_close(arg->control);
        if (z->control)
            zmq_close(z->control);
        free(arg);
        free(z);
        return err;
    }
    *out = z;
    return ISO_OK;
}

void iso_zap_stop(iso_zap *z)
{
    if (!z)
        return;
    zmq_send(z->control, "", 0, 0);
    pthread_join(z->thread, NULL);
    zmq_close(z->control);
    free(z);
}

iso_err iso_zap_admit(iso_zap *z, const iso_zap_key *keys, size_t count, iso_error *e)
{
    key_set *set = malloc(sizeof *set + count * sizeof *keys);
    char ok;
    if (!set)
        return iso_nomem(e, count * sizeof *keys);
    set->count = count;
    if (count)
        memcpy(set->keys, keys, count * sizeof *keys);
    qsort(set->keys, count, sizeof *keys, compare_keys);
    if (zmq_send(z->control, &set, sizeof set, 0) != (int)sizeof set) {
        free(set);
        return iso_fail_errno(e, ISO_ERR_INTERNAL, errno, "ZAP handler");
    }
    if (zmq_recv(z->control, &ok, 1, 0) != 1)
        return iso_fail_errno(e, ISO_ERR_INTERNAL, errno, "ZAP handler");
    return ISO_OK;
}

/* ---- the socket's terms ---- */

enum { ZAP_ENFORCE_DOMAIN = 93 }; /* in the library, not in its header (S42) */

static iso_err set_int(void *socket, int option, int value, const char *name, iso_error *e)
{
    int back = ~value;
    size_t bytes = sizeof back;
    if (zmq_setsockopt(socket, option, &value, sizeof value) != 0)
        return iso_fail_errno(e, ISO_ERR_TRUST, errno, "zmq option %s", name);
    bool is_readable = option != ZMQ_ROUTER_MANDATORY && option != ZMQ_ROUTER_HANDOVER;
    if (is_readable && (zmq_getsockopt(socket, option, &back, &bytes) != 0 || back != value))
        return iso_fail(e, ISO_ERR_TRUST, "zmq option %s reads back %d, not %d", name, back, value);
    return ISO_OK;
}

iso_err iso_zap_socket_options(void *socket, const uint8_t transport_secret[32], iso_error *e)
{
    static const struct {
        int option, value;
        const char *name;
    } rows[] = {
        {ZMQ_CURVE_SERVER, 1, "CURVE_SERVER"},
        {ZAP_ENFORCE_DOMAIN, 1, "ZAP_ENFORCE_DOMAIN"},
        {ZMQ_RCVHWM, 16, "RCVHWM"},
        {ZMQ_SNDHWM, 64, "SNDHWM"},
        {ZMQ_ROUTER_MANDATORY, 1, "ROUTER_MANDATORY"},
        {ZMQ_ROUTER_HANDOVER, 0, "ROUTER_HANDOVER"},
        {ZMQ_HANDSHAKE_IVL, 5000, "HANDSHAKE_IVL"},
        {ZMQ_HEARTBEAT_IVL, 15000, "HEARTBEAT_IVL"},
        {ZMQ_HEARTBEAT_TIMEOUT, 45000, "HEARTBEAT_TIMEOUT"},
        {ZMQ_HEARTBEAT_TTL, 60000, "HEARTBEAT_TTL"},
        {ZMQ_LINGER, 0, "LINGER"},
        {ZMQ_BACKLOG, 1024, "BACKLOG"},
        {ZMQ_TCP_KEEPALIVE, 1, "TCP_KEEPALIVE"},
        {ZMQ_TCP_KEEPALIVE_IDLE, 60, "TCP_KEEPALIVE_IDLE"},
    };
    int64_t max = ISO_FRAME_MAX_BYTES, back = 0;
    size_t bytes = sizeof back;
    char domain[64];
    size_t domain_bytes = sizeof domain;
    uint8_t secret[32];
    size_t secret_bytes = sizeof secret;
    /* The domain before option 93: the pair is set together or not at all (T2). */
    if (zmq_setsockopt(socket, ZMQ_ZAP_DOMAIN, ISO_ZAP_DOMAIN, strlen(ISO_ZAP_DOMAIN)) != 0 ||
        zmq_getsockopt(socket, ZMQ_ZAP_DOMAIN, domain, &domain_bytes) != 0 ||
        strcmp(domain, ISO_ZAP_DOMAIN) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "zmq option ZAP_DOMAIN does not hold");
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_err err = set_int(socket, rows[i].option, rows[i].value, rows[i].name, e);
        if (err)
            return err;
    }
    if (zmq_setsockopt(socket, ZMQ_MAXMSGSIZE, &max, sizeof max) != 0 ||
        zmq_getsockopt(socket, ZMQ_MAXMSGSIZE, &back, &bytes) != 0 || back != max)
        return iso_fail(e, ISO_ERR_TRUST, "zmq option MAXMSGSIZE does not hold");
    if (zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, transport_secret, 32) != 0 ||
        zmq_getsockopt(socket, ZMQ_CURVE_SECRETKEY, secret, &secret_bytes) != 0 ||
        memcmp(secret, transport_secret, 32) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "zmq option CURVE_SECRETKEY does not hold");
    memset(secret, 0, sizeof secret);
    return ISO_OK;
}

/* ---- self-test ---- */

typedef struct {
    void *socket, *monitor;
    char public_key[41], secret_key[41];
} knock;

static void knock_close(knock *k)
{
    if (k->socket)
        zmq_socket_monitor(k->socket, NULL, 0);
    if (k->monitor)
        zmq_close(k->monitor);
    if (k->socket)
        zmq_close(k->socket);
    k->socket = k->monitor = NULL;
}

static bool knock_open(knock *k, void *context, const uint8_t server_pk[32], const char *endpoint,
                       const char *name)
{
    int zero = 0;
    char pair[64];
    snprintf(pair, sizeof pair, "inproc://isofed.selftest.%s", name);
    k->socket = zmq_socket(context, ZMQ_DEALER);
    return k->socket && zmq_setsockopt(k->socket, ZMQ_LINGER, &zero, sizeof zero) == 0 &&
           zmq_setsockopt(k->socket, ZMQ_CURVE_SERVERKEY, server_pk, 32) == 0 &&
           zmq_setsockopt(k->socket, ZMQ_CURVE_PUBLICKEY, k->public_key, 40) == 0 &&
           zmq_setsockopt(k->socket, ZMQ_CURVE_SECRETKEY, k->secret_key, 40) == 0 &&
           zmq_socket_monitor(k->socket, pair, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH) == 0 &&
           (k->monitor = zmq_socket(context, ZMQ_PAIR)) != NULL &&
           zmq_setsockopt(k->monitor, ZMQ_LINGER, &zero, sizeof zero) == 0 &&
           zmq_connect(k->monitor, pair) == 0 && zmq_connect(k->socket, endpoint) == 0 &&
           zmq_send(k->socket, "knock", 5, ZMQ_DONTWAIT) == 5;
}

/* 400 in the knocker's monitor, and nothing at the server, within two seconds. */
static bool is_refused(knock *k, void *server)
{
    zmq_pollitem_t items[] = {{k->monitor, 0, ZMQ_POLLIN, 0}, {server, 0, ZMQ_POLLIN, 0}};
    uint8_t event[16] = {0};
    if (zmq_poll(items, 2, 2000) <= 0 || (items[1].revents & ZMQ_POLLIN) ||
        zmq_recv(k->monitor, event, sizeof event, 0) < 6)
        return false;
    return iso_get_u16(event) == ZMQ_EVENT_HANDSHAKE_FAILED_AUTH && iso_get_u32(event + 2) == 400;
}

static bool is_admitted(void *server)
{
    zmq_pollitem_t item = {server, 0, ZMQ_POLLIN, 0};
    char text[64];
    bool has_arrived = zmq_poll(&item, 1, 2000) == 1;
    for (int i = 0; has_arrived && i < 2; i++) /* routing id, text */
        has_arrived = zmq_recv(server, text, sizeof text, ZMQ_DONTWAIT) >= 0;
    return has_arrived && memcmp(text, "knock", 5) == 0;
}

iso_err iso_zap_selftest(void *context, void *socket, iso_zap *zap, const uint8_t server_pk[32],
                         iso_error *e)
{
    char endpoint[128];
    size_t bytes = sizeof endpoint;
    knock stranger = {0}, known = {0};
    iso_zap_key key = {.name = {.kind = ISO_PEER_SITE}};
    if (zmq_bind(socket, "tcp://127.0.0.1:*") != 0 ||
        zmq_getsockopt(socket, ZMQ_LAST_ENDPOINT, endpoint, &bytes) != 0 ||
        zmq_curve_keypair(stranger.public_key, stranger.secret_key) != 0 ||
        zmq_curve_keypair(known.public_key, known.secret_key) != 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "self-test of the door");
    zmq_z85_decode(key.pk, known.public_key);
    iso_err err = iso_zap_admit(zap, &key, 1, e);
    if (!err && (!knock_open(&stranger, context, server_pk, endpoint, "stranger") ||
                 !is_refused(&stranger, socket)))
        err = iso_fail(e, ISO_ERR_TRUST,
                       "self-test: an unknown key was not refused; the door would be open");
    knock_close(&stranger);
    if (!err &&
        (!knock_open(&known, context, server_pk, endpoint, "known") || !is_admitted(socket)))
        err = iso_fail(e, ISO_ERR_TRUST, "self-test: a known key was not admitted");
    knock_close(&known);
    if (!err)
        err = iso_zap_admit(zap, NULL, 0, e);
    zmq_unbind(socket, endpoint);
    return err;
}
