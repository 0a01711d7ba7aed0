/* The public socket over loopback, with a scripted DEALER on the other side: who gets in, which
 * frames do, how a live connection is cut (specs/security.md S25, S42, S43, S47; T5, T6, T8). */
#include "coordinator/server.h"
#include "core/wire.h"
#include "crypto/init.h"
#include "crypto/key.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <zmq.h>

#include <cmocka.h>

typedef struct {
    iso_server *server;
    iso_key key;
    void *context, *socket, *monitor;
    iso_key site;
    uint64_t now;
} bed;

static void pause_ms(long ms)
{
    nanosleep(&(struct timespec){.tv_nsec = ms * 1000000}, NULL);
}

static void knock(bed *b, const iso_key *key)
{
    char endpoint[64];
    int zero = 0;
    if (b->socket) {
        zmq_socket_monitor(b->socket, NULL, 0);
        zmq_close(b->monitor);
        zmq_close(b->socket);
    }
    b->socket = zmq_socket(b->context, ZMQ_DEALER);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", iso_server_port(b->server));
    zmq_setsockopt(b->socket, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_setsockopt(b->socket, ZMQ_CURVE_SERVERKEY, b->key.public_key, 32), 0);
    assert_int_equal(zmq_setsockopt(b->socket, ZMQ_CURVE_PUBLICKEY, key->public_key, 32), 0);
    assert_int_equal(zmq_setsockopt(b->socket, ZMQ_CURVE_SECRETKEY, key->secret, 32), 0);
    assert_int_equal(zmq_socket_monitor(b->socket, "inproc://test.monitor",
                                        ZMQ_EVENT_HANDSHAKE_FAILED_AUTH | ZMQ_EVENT_DISCONNECTED),
                     0);
    b->monitor = zmq_socket(b->context, ZMQ_PAIR);
    zmq_setsockopt(b->monitor, ZMQ_LINGER, &zero, sizeof zero);
    assert_int_equal(zmq_connect(b->monitor, "inproc://test.monitor"), 0);
    assert_int_equal(zmq_connect(b->socket, endpoint), 0);
}

static void send_frames(bed *b, const size_t *sizes, size_t count)
{
    uint8_t *data = calloc(1, 400000);
    assert_non_null(data);
    for (size_t i = 0; i < count; i++)
        zmq_send(b->socket, data, sizes[i], i + 1 < count ? ZMQ_SNDMORE : 0);
    free(data);
}

/* The server's next message within two seconds. */
static bool next(bed *b, iso_server_message *m)
{
    for (int i = 0; i < 100; i++) {
        b->now += 20;
        iso_server_tick(b->server, b->now);
        if (iso_server_next(b->server, m))
            return true;
        pause_ms(20);
    }
    return false;
}

static bool hears(bed *b, uint16_t event, uint32_t *value)
{
    for (int i = 0; i < 100; i++) {
        uint8_t bytes[16];
        b->now += 20;
        iso_server_tick(b->server, b->now);
        if (zmq_recv(b->monitor, bytes, sizeof bytes, ZMQ_DONTWAIT) >= 6) {
            *value = iso_get_u32(bytes + 2);
            uint16_t got = iso_get_u16(bytes);
            zmq_recv(b->monitor, bytes, sizeof bytes, 0); /* address */
            if (got == event)
                return true;
        }
        pause_ms(20);
    }
    return false;
}

static iso_zap_key site_key(const bed *b)
{
    iso_zap_key k = {.name = {.kind = ISO_PEER_SITE, .id = {7}}};
    memcpy(k.pk, b->site.public_key, 32);
    return k;
}

static int set_up(void **state)
{
    bed *b = calloc(1, sizeof *b);
    iso_error e = {0};
    assert_non_null(b);
    assert_int_equal(iso_crypto_init(&e), ISO_OK);
    assert_int_equal(iso_key_make(ISO_KEY_COORDINATOR_TRANSPORT, 0, &b->key, &e), ISO_OK);
    assert_int_equal(iso_key_make(ISO_KEY_SITE_TRANSPORT, 0, &b->site, &e), ISO_OK);
    iso_zap_key k = site_key(b);
    iso_server_options o = {.host = "127.0.0.1",
                            .transport_pk = b->key.public_key,
                            .transport_secret = b->key.secret,
                            .connections = 100,
                            .handshakes_per_s = 200,
                            .handshake_burst = 1000,
                            .keys = &k, /* known before the port opens */
                            .key_count = 1};
    if (iso_server_open(&b->server, &o, &e) != ISO_OK) /* runs the self-test (S43) */
        fail_msg("%s", e.text);
    b->context = zmq_ctx_new();
    *state = b;
    return 0;
}

static int tear_down(void **state)
{
    bed *b = *state;
    if (b->socket) {
        zmq_socket_monitor(b->socket, NULL, 0);
        zmq_close(b->monitor);
        zmq_close(b->socket);
    }
    zmq_ctx_term(b->context);
    iso_server_close(b->server);
    iso_key_free(&b->key);
    iso_key_free(&b->site);
    free(b);
    return 0;
}

static void U39_unknown_key_is_refused_at_the_handshake(void **state)
{
    bed *b = *state;
    iso_key stranger = {0};
    iso_server_message m;
    uint32_t value = 0;
    assert_int_equal(iso_key_make(ISO_KEY_SITE_TRANSPORT, 0, &stranger, NULL), ISO_OK);
    knock(b, &stranger);
    send_frames(b, (size_t[]){5, 0}, 2);
    assert_true(hears(b, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH, &value));
    assert_int_equal(value, 400);
    assert_false(iso_server_next(b->server, &m));
    iso_key_free(&stranger);
}

static void known_key_is_named_and_answered(void **state)
{
    bed *b = *state;
    iso_server_message m;
    char answer[16];
    knock(b, &b->site);
    send_frames(b, (size_t[]){5, 3}, 2);
    assert_true(next(b, &m));
    assert_null(m.fault);
    assert_int_equal(m.name.kind, ISO_PEER_SITE);
    assert_int_equal(m.name.id[0], 7);
    assert_int_equal(m.head_bytes, 5);
    assert_int_equal(m.body_bytes, 3);
    iso_server_send(b->server, m.peer, "head", 4, "body", 4);
    assert_int_equal(zmq_recv(b->socket, answer, sizeof answer, 0), 4);
    assert_memory_equal(answer, "head", 4);
    assert_int_equal(zmq_recv(b->socket, answer, sizeof answer, 0), 4);
}

/* T8: CURVE takes 33 bytes of MAXMSGSIZE; one byte more and the connection is dropped. */
static void S42_largest_frame_at_its_edge(void **state)
{
    bed *b = *state;
    iso_server_message m;
    uint32_t value;
    knock(b, &b->site);
    send_frames(b, (size_t[]){5, ISO_BODY_MAX_BYTES}, 2);
    assert_true(next(b, &m));
    assert_null(m.fault);
    assert_int_equal(m.body_bytes, ISO_BODY_MAX_BYTES);
    send_frames(b, (size_t[]){5, ISO_FRAME_MAX_BYTES - 33}, 2);
    assert_true(next(b, &m));
    assert_string_equal(m.fault, "a frame is too large");
    send_frames(b, (size_t[]){5, ISO_FRAME_MAX_BYTES - 32}, 2);
    assert_true(hears(b, ZMQ_EVENT_DISCONNECTED, &value));
}

static void S47_a_message_has_two_frames(void **state)
{
    bed *b = *state;
    iso_server_message m;
    uint32_t value;
    knock(b, &b->site);
    send_frames(b, (size_t[]){5}, 1);
    assert_true(next(b, &m));
    assert_string_equal(m.fault, "a message has two frames");
    send_frames(b, (size_t[]){ISO_HEAD_MAX_BYTES + 1, 0}, 2);
    assert_true(next(b, &m));
    assert_string_equal(m.fault, "a frame is too large");
    send_frames(b, (size_t[]){5, 0, 9, 9}, 4);
    assert_true(next(b, &m));
    assert_string_equal(m.fault, "more than two frames");
    assert_true(hears(b, ZMQ_EVENT_DISCONNECTED, &value)); /* drained and cut */
}

static void S25_revocation_cuts_a_live_connection_for_good(void **state)
{
    bed *b = *state;
    iso_server_message m;
    iso_peer gone = 0;
    uint32_t value = 0;
    knock(b, &b->site);
    send_frames(b, (size_t[]){5, 0}, 2);
    assert_true(next(b, &m));
    iso_peer peer = m.peer;
    assert_int_equal(iso_server_admit(b->server, NULL, 0, NULL), ISO_OK);
    iso_server_cut(b->server, peer);
    send_frames(b, (size_t[]){5, 0}, 2); /* on the connection that is still up */
    assert_true(
        hears(b, ZMQ_EVENT_HANDSHAKE_FAILED_AUTH, &value)); /* it came back, and was refused */
    assert_int_equal(value, 400);
    assert_true(iso_server_next_gone(b->server, &gone));
    assert_int_equal(gone, peer);
    assert_false(iso_server_next(b->server, &m));
}

static void a_taken_port_is_named(void **state)
{
    bed *b = *state;
    iso_server *other = NULL;
    iso_error e = {0};
    char port[16];
    iso_server_options o = {.host = "127.0.0.1",
                            .port = iso_server_port(b->server),
                            .transport_pk = b->key.public_key,
                            .transport_secret = b->key.secret,
                            .connections = 10,
                            .handshakes_per_s = 200,
                            .handshake_burst = 1000};
    assert_int_equal(iso_server_open(&other, &o, &e), ISO_ERR_RESOURCE);
    snprintf(port, sizeof port, "port %u", o.port);
    assert_non_null(strstr(e.text, port));
}

static void user_ids_are_parsed_strictly(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        bool is_ok;
    } rows[] = {{"s:000102030405060708090a0b0c0d0e0f", true},
                {"t:00010203", true},
                {"s:00010203", false},
                {"t:0001020304", false},
                {"x:00010203", false},
                {"s", false},
                {"", false},
                {NULL, false}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_peer_name name;
        assert_int_equal(iso_zap_parse_user(rows[i].text, &name), rows[i].is_ok);
    }
}

int main(void)
{
#define row(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        row(U39_unknown_key_is_refused_at_the_handshake),
        row(known_key_is_named_and_answered),
        row(S42_largest_frame_at_its_edge),
        row(S47_a_message_has_two_frames),
        row(S25_revocation_cuts_a_live_connection_for_good),
        row(a_taken_port_is_named),
        cmocka_unit_test(user_ids_are_parsed_strictly),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
