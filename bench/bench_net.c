/* The network against itself (DESIGN 9): updates of 10 MiB and of 64 KiB, sealed, signed, verified
 * and durable through a real coordinator process, against the bare loopback throughput of the same
 * library with CURVE in the same run; idle connections in bytes of the coordinator's memory.
 *
 * Updates are sealed before the clock starts: that is the sites' work. Rounds of the rival and of
 * ours take turns, the best of each counts. Chunks are the product's (256 KiB + 17). */
#include "bench/bench.h"
#include "bench/net_rig.h"
#include "crypto/init.h"
#include "proto/message.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zmq.h>

enum {
    TURNS = 3,
    BIG_A_TURN = 8,
    BIG = TURNS * BIG_A_TURN, /* sites, one update of 10 MiB each */
    SMALL = 32,               /* sites, an update of 64 KiB for each of 63 tasks */
    FIRST_SMALL = BIG,
    QUIET = BIG + SMALL, /* answers nothing, so that the round stays open */
    FIRST_IDLE = QUIET + 1,
    WIRE = ISO_CHUNK_MAX_BYTES + ISO_CHUNK_OVERHEAD_BYTES
};
#define BIG_BYTES   ((size_t)10 << 20)
#define SMALL_BYTES ((size_t)64 << 10)

/* ---- rival: the same bytes over the same library, nothing done with them ---- */

typedef struct {
    void *context, *socket;
    size_t messages;
} receiver;

static void *receive_all(void *arg)
{
    receiver *v = arg;
    zmq_msg_t m;
    for (size_t i = 0; i < v->messages; i++)
        for (int more = 1; more;) {
            zmq_msg_init(&m);
            if (zmq_msg_recv(&m, v->socket, 0) < 0)
                return NULL;
            more = zmq_msg_more(&m);
            zmq_msg_close(&m);
        }
    return NULL;
}

/* MiB/s of `updates` messages of 10 MiB, four senders. */
static double loopback(size_t updates)
{
    char server_pk[41], server_secret[41], pk[41], secret[41], endpoint[128];
    size_t endpoint_bytes = sizeof endpoint, chunks = BIG_BYTES / ISO_CHUNK_MAX_BYTES;
    int one = 1, zero = 0, hwm = 16;
    void *sender_context = zmq_ctx_new(), *senders[4];
    receiver v = {.context = zmq_ctx_new(), .messages = updates * chunks};
    v.socket = zmq_socket(v.context, ZMQ_ROUTER);
    uint8_t *chunk = calloc(1, WIRE);
    char head[64] = {0};
    pthread_t thread;
    double seconds = (double)NAN;
    if (!chunk || zmq_curve_keypair(server_pk, server_secret) || zmq_curve_keypair(pk, secret) ||
        zmq_setsockopt(v.socket, ZMQ_CURVE_SERVER, &one, sizeof one) ||
        zmq_setsockopt(v.socket, ZMQ_CURVE_SECRETKEY, server_secret, 40) ||
        zmq_setsockopt(v.socket, ZMQ_RCVHWM, &hwm, sizeof hwm) ||
        zmq_bind(v.socket, "tcp://127.0.0.1:*") ||
        zmq_getsockopt(v.socket, ZMQ_LAST_ENDPOINT, endpoint, &endpoint_bytes))
        goto done;
    for (int i = 0; i < 4; i++) {
        senders[i] = zmq_socket(sender_context, ZMQ_DEALER);
        zmq_setsockopt(senders[i], ZMQ_LINGER, &zero, sizeof zero);
        zmq_setsockopt(senders[i], ZMQ_SNDHWM, &hwm, sizeof hwm);
        zmq_setsockopt(senders[i], ZMQ_CURVE_SERVERKEY, server_pk, 40);
        zmq_setsockopt(senders[i], ZMQ_CURVE_PUBLICKEY, pk, 40);
        zmq_setsockopt(senders[i], ZMQ_CURVE_SECRETKEY, secret, 40);
        zmq_connect(senders[i], endpoint);
    }
    receiver first = v; /* every line is up before the clock starts */
    first.messages = 4;
    for (int i = 0; i < 4; i++) {
        zmq_send(senders[i], head, sizeof head, ZMQ_SNDMORE);
        zmq_send(senders[i], "", 0, 0);
    }
    receive_all(&first);
    double start = iso_bench_now();
    if (pthread_create(&thread, NULL, receive_all, &v))
        goto done;
    for (size_t i = 0; i < v.messages; i++) {
        zmq_send(senders[i % 4], head, sizeof head, ZMQ_SNDMORE);
        zmq_send(senders[i % 4], chunk, WIRE, 0);
    }
    pthread_join(thread, NULL);
    seconds = iso_bench_now() - start;
    for (int i = 0; i < 4; i++)
        zmq_close(senders[i]);
done:
    free(chunk);
    zmq_close(v.socket);
    zmq_ctx_term(sender_context);
    zmq_ctx_term(v.context);
    return (double)(updates * BIG_BYTES) / seconds / 1048576.0;
}

/* ---- ours ---- */

static bool is_through(const net_site *s)
{
    return s->done == s->update_count;
}

static bool is_invited_once(const net_site *s)
{
    return s->invite_count >= 1;
}

static bool is_invited_to_all(const net_site *s)
{
    return s->invite_count >= NET_TASKS;
}

static iso_err configure(iso_buf *out, size_t sites, iso_error *e)
{
    iso_err err = iso_buf_printf(
        out, e,
        "limits: {handshakes_per_s: 100000, connections: %zu, disk_floor: 0, disk_reserve: 0}\n"
        "tasks:\n  - {name: big, classes: [a, b], sites: [s%d",
        sites + 64, QUIET);
    for (int i = 0; i < BIG && !err; i++)
        err = iso_buf_printf(out, e, ", s%d", i);
    if (!err)
        err = iso_buf_printf(out, e, "]}\n");
    for (int t = 0; t < NET_TASKS && !err; t++) {
        err = iso_buf_printf(out, e, "  - {name: t%d, classes: [a, b], sites: [s%d", t, QUIET);
        for (int i = 0; i < SMALL && !err; i++)
            err = iso_buf_printf(out, e, ", s%d", FIRST_SMALL + i);
        if (!err)
            err = iso_buf_printf(out, e, "]}\n");
    }
    return err;
}

static iso_err open_round(net_rig *r, iso_error *e)
{
    iso_buf command = {0}, reply = {0};
    iso_err err =
        iso_buf_printf(&command, e, "{\"cmd\":\"rounds.open\",\"args\":{\"tasks\":[\"big\"");
    for (int t = 0; t < NET_TASKS && !err; t++)
        err = iso_buf_printf(&command, e, ",\"t%d\"", t);
    if (!err)
        err = iso_buf_printf(&command, e, "]}}");
    if (!err)
        err = net_command(r, (const char *)command.data, &reply, e);
    iso_buf_free(&command);
    iso_buf_free(&reply);
    if (!err)
        err = net_run(r, 0, BIG, is_invited_once, 60, e);
    return err ? err : net_run(r, FIRST_SMALL, FIRST_SMALL + SMALL, is_invited_to_all, 60, e);
}

/* Seconds until every update of the sites has its receipt. */
static iso_err upload(net_rig *r, size_t from, size_t to, double *seconds, iso_error *e)
{
    double start = iso_bench_now();
    iso_err err = ISO_OK;
    for (size_t i = from; i < to && !err; i++)
        err = net_start(r, &r->sites[i], e);
    if (!err)
        err = net_run(r, from, to, is_through, 300, e);
    *seconds = iso_bench_now() - start;
    return err;
}

static iso_err big_updates(net_rig *r, const iso_bench_options *o, iso_error *e)
{
    double ours = 0, rival = 0, processor = 0, wall = 0;
    iso_err err = ISO_OK;
    for (size_t i = 0; i < BIG && !err; i++)
        err = net_seal(r, &r->sites[i], 0, BIG_BYTES, e);
    for (size_t turn = 0; turn < TURNS && !err; turn++) {
        double seconds, before = net_processor(r);
        rival = fmax(rival, loopback(BIG_A_TURN));
        err = upload(r, turn * BIG_A_TURN, (turn + 1) * BIG_A_TURN, &seconds, e);
        ours = fmax(ours, (double)(BIG_A_TURN * BIG_BYTES) / seconds / 1048576.0);
        processor += net_processor(r) - before;
        wall += seconds;
    }
    if (err)
        return err;
    iso_bench_row(o, "net_updates_10MiB", ours, "MiB/s", "loopback CURVE", rival, ours / rival,
                  0.6);
    iso_bench_row(o, "net_updates_10MiB_coordinator", processor / wall, "cores", NULL, (double)NAN,
                  (double)NAN, (double)NAN);
    return ISO_OK;
}

static iso_err small_updates(net_rig *r, const iso_bench_options *o, iso_error *e)
{
    double seconds, before;
    iso_err err = ISO_OK;
    for (size_t i = FIRST_SMALL; i < FIRST_SMALL + SMALL && !err; i++)
        for (size_t t = 0; t < NET_TASKS && !err; t++)
            err = net_seal(r, &r->sites[i], t, SMALL_BYTES, e);
    before = net_processor(r);
    if (!err)
        err = upload(r, FIRST_SMALL, FIRST_SMALL + SMALL, &seconds, e);
    if (err)
        return err;
    double rate = SMALL * NET_TASKS / seconds;
    iso_bench_row(o, "net_updates_64KiB", rate, "1/s", "wanted", 4000, rate / 4000, 1);
    iso_bench_row(o, "net_updates_64KiB_coordinator", (net_processor(r) - before) / seconds,
                  "cores", NULL, (double)NAN, (double)NAN, (double)NAN);
    return ISO_OK;
}

static iso_err idle_connections(net_rig *r, const iso_bench_options *o, size_t count, iso_error *e)
{
    char name[64];
    uint64_t before = net_resident(r);
    iso_err err = net_join(r, FIRST_IDLE, FIRST_IDLE + count, e);
    if (err)
        return err;
    double each = (double)(net_resident(r) - before) / (double)count / 1024.0;
    snprintf(name, sizeof name, "net_idle_connections_%zu", count);
    iso_bench_row(o, name, each, "KiB each", "allowed", 40, 40 / each, 1);
    return ISO_OK;
}

static int run(const iso_bench_options *o)
{
    size_t idle = o->full ? 10000 : 1000;
    net_rig r;
    iso_buf config = {0};
    iso_error e = {0};
    iso_err err = iso_crypto_init(&e);
    if (!err)
        err = configure(&config, FIRST_IDLE + idle, &e);
    if (!err)
        err = net_open(&r, (const char *)config.data, FIRST_IDLE + idle, &e);
    if (!err)
        err = net_join(&r, 0, FIRST_IDLE, &e);
    if (!err)
        err = open_round(&r, &e);
    if (!err)
        err = big_updates(&r, o, &e);
    if (!err)
        err = small_updates(&r, o, &e);
    if (!err)
        err = idle_connections(&r, o, idle, &e);
    if (err)
        fprintf(stderr, "isofed bench net: %s\n", e.text);
    net_close(&r);
    iso_buf_free(&config);
    return iso_exit_code(err);
}

const iso_bench iso_bench_net = {"net", "updates through the coordinator against loopback CURVE",
                                 run};
