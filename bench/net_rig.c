#include "bench/net_rig.h"

#include "bench/bench.h"
#include "coordinator/init.h"
#include "core/fsio.h"
#include "core/json.h"
#include "core/safetensors.h"
#include "crypto/chain.h"
#include "crypto/request.h"
#include "crypto/roster.h"
#include "crypto/token.h"
#include "proto/codec.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zmq.h>

extern char **environ;

enum { POLLED = 128, SOCKETS = 21000 };

/* ---- the coordinator ---- */

static iso_err write_backbone(const net_rig *r, iso_error *e)
{
    char path[128];
    float one = 1.0f;
    iso_named_tensor t = {.name = "w",
                          .view = {.data = &one, .dtype = ISO_F32, .ndim = 1, .shape = {1}}};
    snprintf(path, sizeof path, "%s/backbone", r->dir);
    iso_err err = iso_make_dirs(path, 0700, e);
    snprintf(path, sizeof path, "%s/backbone/model.safetensors", r->dir);
    return err ? err : iso_safetensors_write(path, &t, 1, NULL, 0, e);
}

static iso_err spawn(net_rig *r, iso_error *e)
{
    char program[PATH_MAX], log[128];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 32);
    if (n <= 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "/proc/self/exe");
    program[n] = 0;
    strcpy(strrchr(program, '/') + 1, "isofed-coordinator");
    if (access(program, X_OK) != 0)
        return iso_fail_errno(e, ISO_ERR_USAGE, errno, "%.300s", program);
    snprintf(log, sizeof log, "%s/log", r->dir);
    char *argv[] = {program, r->dir, NULL};
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 2, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    int rc = posix_spawn(&r->pid, program, &actions, NULL, argv, environ);
    posix_spawn_file_actions_destroy(&actions);
    if (rc)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, rc, "%.300s", program);
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    snprintf(a.sun_path, sizeof a.sun_path, "%s/admin.sock", r->dir);
    r->admin = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    for (int i = 0; i < 400; i++) {
        if (connect(r->admin, (struct sockaddr *)&a, sizeof a) == 0)
            return ISO_OK;
        if (waitpid(r->pid, NULL, WNOHANG) == r->pid) {
            r->pid = 0;
            return iso_fail(e, ISO_ERR_RESOURCE, "the coordinator did not start: see %s", log);
        }
        usleep(25000);
    }
    return iso_fail(e, ISO_ERR_RESOURCE, "the coordinator does not answer: see %s", log);
}

static iso_err read_keys(net_rig *r, iso_error *e)
{
    char path[128];
    iso_buf text = {0};
    iso_roster *roster = iso_calloc(1, sizeof *roster);
    snprintf(path, sizeof path, "%s/root/roster.json", r->dir);
    iso_err err = roster ? iso_read_file(path, ISO_MANIFEST_MAX_BYTES, &text, e)
                         : iso_nomem(e, sizeof *roster);
    if (!err)
        err = iso_roster_parse(text.data, text.size, roster, e);
    if (!err) {
        memcpy(r->federation, roster->federation_id, 16);
        memcpy(r->coordinator_pk, roster->coordinator_transport_pk, 32);
        memcpy(r->merge_pk, roster->merge[0].pk, 32);
    }
    iso_buf_free(&text);
    free(roster);
    snprintf(path, sizeof path, "%s/endpoint", r->dir);
    if (!err)
        err = iso_read_file(path, 400, &text, e);
    if (!err)
        r->port = (uint16_t)strtoul(strrchr((const char *)text.data, ':') + 1, NULL, 10);
    iso_buf_free(&text);
    return err;
}

iso_err net_open(net_rig *r, const char *config, size_t site_count, iso_error *e)
{
    const char *root = getenv("TMPDIR");
    char path[128], backbone[96];
    iso_buf text = {0};
    memset(r, 0, sizeof *r);
    r->admin = -1;
    snprintf(r->dir, sizeof r->dir, "%.30s/isofed-bench-XXXXXX", root ? root : "/tmp");
    if (!mkdtemp(r->dir))
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", r->dir);
    snprintf(backbone, sizeof backbone, "%s/backbone", r->dir);
    const iso_coordinator_init_options o = {.name = "bench", .backbone = backbone};
    iso_err err = write_backbone(r, e);
    if (!err)
        err = iso_coordinator_init(r->dir, &o, e);
    if (!err)
        err = iso_buf_printf(&text, e,
                             "federation: bench\nlisten: 127.0.0.1:0\nbackbone: %s\n"
                             "rounds: {trigger: operator, deadline: 2h}\n"
                             "candidates:\n  - {method: average}\n%s",
                             backbone, config);
    snprintf(path, sizeof path, "%s/coordinator.yaml", r->dir);
    if (!err)
        err = iso_write_file(path, text.data, text.size, 0600, e);
    iso_buf_free(&text);
    if (!err)
        err = spawn(r, e);
    if (!err)
        err = read_keys(r, e);
    r->site_count = site_count;
    if (!err && !(r->sites = iso_calloc(site_count, sizeof *r->sites)))
        err = iso_nomem(e, site_count * sizeof *r->sites);
    if (!err && !(r->context = zmq_ctx_new()))
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "zmq");
    if (!err)
        zmq_ctx_set(r->context, ZMQ_MAX_SOCKETS, SOCKETS);
    return err;
}

void net_close(net_rig *r)
{
    for (size_t i = 0; r->sites && i < r->site_count; i++) {
        net_site *s = &r->sites[i];
        if (s->socket)
            zmq_close(s->socket);
        for (size_t k = 0; k < s->update_count; k++)
            iso_buf_free(&s->updates[k].sealed);
        free(s->updates);
        iso_key_free(&s->transport);
        iso_key_free(&s->sign);
    }
    free(r->sites);
    if (r->context)
        zmq_ctx_term(r->context);
    if (r->admin >= 0)
        close(r->admin);
    if (r->pid > 0) {
        kill(r->pid, SIGTERM);
        waitpid(r->pid, NULL, 0);
    }
    iso_arena_free(&r->arena);
    (void)!iso_remove_tree(r->dir, NULL);
}

iso_err net_command(net_rig *r, const char *json, iso_buf *reply, iso_error *e)
{
    if (json && (send(r->admin, json, strlen(json), MSG_NOSIGNAL) < 0 ||
                 send(r->admin, "\n", 1, MSG_NOSIGNAL) < 0))
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "admin socket");
    reply->size = 0;
    for (char c = 0; c != '\n';) { /* a letter at a time: the next line may follow at once */
        if (recv(r->admin, &c, 1, 0) != 1)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "admin socket");
        iso_err err = iso_buf_append(reply, &c, 1, e);
        if (err)
            return err;
    }
    reply->data[--reply->size] = 0;
    if (!strstr((const char *)reply->data, "\"ok\":true"))
        return iso_fail(e, ISO_ERR_INTERNAL, "%.120s: %.120s", json ? json : "command",
                        (const char *)reply->data);
    return ISO_OK;
}

uint64_t net_resident(const net_rig *r)
{
    char path[64];
    unsigned long long all = 0, resident = 0;
    snprintf(path, sizeof path, "/proc/%d/statm", (int)r->pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%llu %llu", &all, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

double net_processor(const net_rig *r)
{
    char path[64];
    unsigned long user = 0, system = 0;
    snprintf(path, sizeof path, "/proc/%d/stat", (int)r->pid);
    FILE *f = fopen(path, "re");
    if (f && fscanf(f, "%*d %*s %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user,
                    &system) != 2)
        user = system = 0;
    if (f)
        fclose(f);
    return (double)(user + system) / (double)sysconf(_SC_CLK_TCK);
}

/* ---- sites ---- */

static iso_err dial(net_rig *r, net_site *s, const uint8_t pk[32], const uint8_t secret[32],
                    iso_error *e)
{
    char endpoint[64];
    int zero = 0, hwm = 16;
    if (s->socket)
        zmq_close(s->socket);
    s->socket = zmq_socket(r->context, ZMQ_DEALER);
    snprintf(endpoint, sizeof endpoint, "tcp://127.0.0.1:%u", r->port);
    if (!s->socket || zmq_setsockopt(s->socket, ZMQ_LINGER, &zero, sizeof zero) ||
        zmq_setsockopt(s->socket, ZMQ_SNDHWM, &hwm, sizeof hwm) ||
        zmq_setsockopt(s->socket, ZMQ_RCVHWM, &hwm, sizeof hwm) ||
        zmq_setsockopt(s->socket, ZMQ_CURVE_SERVERKEY, r->coordinator_pk, 32) ||
        zmq_setsockopt(s->socket, ZMQ_CURVE_PUBLICKEY, pk, 32) ||
        zmq_setsockopt(s->socket, ZMQ_CURVE_SECRETKEY, secret, 32) ||
        zmq_connect(s->socket, endpoint))
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", endpoint);
    s->is_greeted = false;
    return ISO_OK;
}

static iso_err say(net_site *s, iso_msg *m, const void *body, size_t body_bytes, iso_error *e)
{
    uint8_t head[ISO_HEAD_MAX_BYTES];
    size_t bytes;
    m->version = ISO_PROTO_VERSION_MAX;
    m->id = ++s->next_id;
    iso_err err = iso_msg_encode(m, head, sizeof head, &bytes, e);
    if (!err && (zmq_send(s->socket, head, bytes, ZMQ_SNDMORE) < 0 ||
                 zmq_send(s->socket, body ? body : "", body_bytes, 0) < 0))
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", s->name);
    return err;
}

static iso_err say_hello(net_rig *r, net_site *s, iso_error *e)
{
    iso_msg m = {.type = ISO_MSG_HELLO,
                 .hello = {.min_version = ISO_PROTO_VERSION_MIN,
                           .max_version = ISO_PROTO_VERSION_MAX,
                           .software = "bench"}};
    if (s->is_enrolled)
        memcpy(m.hello.federation_id, r->federation, 16);
    return say(s, &m, NULL, 0, e);
}

static net_update *by_upload(net_site *s, const uint8_t id[16])
{
    for (size_t i = s->first_open; i < s->update_count; i++)
        if (s->updates[i].state > NET_BEGUN && memcmp(s->updates[i].upload_id, id, 16) == 0)
            return &s->updates[i];
    return NULL;
}

static iso_err send_chunks(net_site *s, net_update *u, iso_error *e)
{
    size_t wire = ISO_CHUNK_MAX_BYTES + ISO_CHUNK_OVERHEAD_BYTES;
    size_t body = u->sealed.size - ISO_ENVELOPE_HEADER_BYTES - ISO_ENVELOPE_TRAILER_BYTES;
    iso_err err = ISO_OK;
    while (!err && u->next < u->granted && u->next < u->chunks) {
        size_t at = u->next * wire, n = body - at < wire ? body - at : wire;
        iso_msg m = {.type = ISO_MSG_UPDATE_CHUNK, .update_chunk = {.index = u->next++}};
        memcpy(m.update_chunk.upload_id, u->upload_id, 16);
        err = say(s, &m, u->sealed.data + ISO_ENVELOPE_HEADER_BYTES + at, n, e);
    }
    if (err || u->next < u->chunks || u->state != NET_OPEN)
        return err;
    /* Behind its chunks on the same line: they are written when it is read. */
    iso_msg m = {.type = ISO_MSG_UPDATE_COMMIT};
    memcpy(m.update_commit.upload_id, u->upload_id, 16);
    memcpy(m.update_commit.body_digest, u->sealed.data + 336, 32);
    u->state = NET_COMMITTED;
    return say(s, &m, NULL, 0, e);
}

iso_err net_start(net_rig *r, net_site *s, iso_error *e)
{
    (void)r;
    iso_err err = ISO_OK;
    size_t open = 0;
    for (size_t i = s->first_open; i < s->update_count && open < NET_IN_FLIGHT && !err; i++) {
        net_update *u = &s->updates[i];
        if (u->state == NET_READY) {
            iso_msg m = {.type = ISO_MSG_UPDATE_BEGIN};
            memcpy(m.update_begin.header, u->sealed.data, ISO_ENVELOPE_HEADER_BYTES);
            memcpy(m.update_begin.signature,
                   u->sealed.data + u->sealed.size - ISO_ENVELOPE_TRAILER_BYTES, 64);
            memcpy(m.update_begin.idempotency, u->sealed.data + 216, 16);
            u->state = NET_BEGUN;
            err = say(s, &m, NULL, 0, e);
        }
        open += u->state != NET_DONE;
    }
    return err;
}

static iso_err take(net_rig *r, net_site *s, const iso_msg *m, iso_error *e)
{
    net_update *u;
    switch (m->type) {
    case ISO_MSG_HELLO_REPLY:
        memcpy(s->nonce, m->hello_reply.nonce, 32);
        s->is_greeted = true;
        return ISO_OK;
    case ISO_MSG_ENROLL_REPLY:
        s->is_enrolled = true;
        return ISO_OK;
    case ISO_MSG_INVITE:
        if (s->invite_count <= NET_TASKS)
            s->invites[s->invite_count++] = m->invite;
        return ISO_OK;
    case ISO_MSG_UPDATE_GRANT:
        for (size_t i = s->first_open; i < s->update_count; i++) {
            u = &s->updates[i];
            iso_digest d = iso_digest_of(u->sealed.data, ISO_ENVELOPE_HEADER_BYTES);
            if (u->state != NET_BEGUN || memcmp(d.b, m->update_grant.upload_id, 16) != 0)
                continue; /* an upload is named by its header */
            memcpy(u->upload_id, m->update_grant.upload_id, 16);
            u->state = NET_OPEN;
            u->next = m->update_grant.next_chunk;
            u->granted = u->next + m->update_grant.credit;
            return send_chunks(s, u, e);
        }
        return ISO_OK;
    case ISO_MSG_CHUNK_ACK:
        if (!(u = by_upload(s, m->chunk_ack.upload_id)))
            return ISO_OK;
        u->granted = m->chunk_ack.received + m->chunk_ack.credit;
        return u->state == NET_OPEN ? send_chunks(s, u, e) : ISO_OK;
    case ISO_MSG_RECEIPT:
        for (size_t i = s->first_open; i < s->update_count; i++)
            if (s->updates[i].state == NET_COMMITTED &&
                memcmp(s->updates[i].sealed.data + 216, m->receipt.receipt + 40, 16) == 0) {
                s->updates[i].state = NET_DONE;
                s->done++;
            }
        while (s->first_open < s->update_count && s->updates[s->first_open].state == NET_DONE)
            s->first_open++;
        return net_start(r, s, e);
    case ISO_MSG_ERROR:
        return iso_fail(e, ISO_ERR_INTERNAL, "%s: %s: %s", s->name, iso_code_name(m->error.code),
                        m->error.sentence);
    default:
        return ISO_OK;
    }
}

static iso_err receive(net_rig *r, net_site *s, bool *has_some, iso_error *e)
{
    uint8_t head[ISO_HEAD_MAX_BYTES], body[64];
    iso_err err = ISO_OK;
    for (int n; !err && (n = zmq_recv(s->socket, head, sizeof head, ZMQ_DONTWAIT)) > 0;) {
        iso_msg m;
        iso_code code;
        zmq_recv(s->socket, body, sizeof body, 0);
        iso_arena_reset(&r->arena);
        *has_some = true;
        err = iso_msg_decode(head, (size_t)n, &r->arena, &m, &code, e);
        if (!err)
            err = take(r, s, &m, e);
    }
    return err;
}

iso_err net_run(net_rig *r, size_t from, size_t to, bool (*is_done)(const net_site *s),
                double timeout_s, iso_error *e)
{
    double end = iso_bench_now() + timeout_s;
    iso_err err = ISO_OK;
    for (;;) {
        size_t left = 0;
        bool has_some = false;
        zmq_pollitem_t items[POLLED];
        int n = 0;
        for (size_t i = from; i < to && !err; i++) {
            err = receive(r, &r->sites[i], &has_some, e);
            if (is_done(&r->sites[i]))
                continue;
            left++;
            if (n < POLLED)
                items[n++] = (zmq_pollitem_t){r->sites[i].socket, 0, ZMQ_POLLIN, 0};
        }
        if (err || left == 0)
            return err;
        if (iso_bench_now() > end)
            return iso_fail(e, ISO_ERR_RESOURCE, "%zu of %zu sites got no answer in %.0f s", left,
                            to - from, timeout_s);
        if (!has_some)
            zmq_poll(items, n, left > POLLED ? 2 : 50);
    }
}

static bool is_greeted(const net_site *s)
{
    return s->is_greeted;
}

static bool is_enrolled(const net_site *s)
{
    return s->is_enrolled;
}

/* All tokens in one go: the coordinator makes those that wait together durable together. */
static iso_err get_tokens(net_rig *r, size_t from, size_t n, iso_token_keys *keys,
                          iso_token *tokens, iso_error *e)
{
    iso_buf commands = {0}, reply = {0};
    iso_err err = ISO_OK;
    for (size_t i = 0; i < n && !err; i++)
        err = iso_buf_printf(&commands, e, "{\"cmd\":\"token.new\",\"args\":{\"site\":\"%s\"}}%s",
                             r->sites[from + i].name, i + 1 < n ? "\n" : "");
    for (size_t i = 0; i < n && !err; i++) {
        iso_json *root = NULL;
        const char *text;
        char line[ISO_ENROL_LINE_TEXT];
        iso_enrol_line l;
        err = net_command(r, i == 0 ? (const char *)commands.data : NULL, &reply, e);
        if (!err)
            err = iso_json_parse(reply.data, reply.size, "token", &root, e);
        if (!err)
            err = iso_json_need_str(iso_json_key(root, "result"), "line", &text, e);
        if (!err) {
            snprintf(line, sizeof line, "%s", text);
            err = iso_enrol_line_parse(line, &l, e);
        }
        if (!err) {
            tokens[i] = l.token;
            iso_token_derive(&l.token, &keys[i]);
        }
        iso_json_free(root);
    }
    iso_buf_free(&commands);
    iso_buf_free(&reply);
    return err;
}

static iso_err say_enroll(net_rig *r, net_site *s, const iso_token *token,
                          const iso_token_keys *keys, iso_error *e)
{
    iso_msg m = {.type = ISO_MSG_ENROLL, .enroll = {.name = s->name}};
    uint8_t bytes[ISO_ENROL_BYTES];
    memcpy(m.enroll.transport_pk, s->transport.public_key, 32);
    memcpy(m.enroll.sign_pk, s->sign.public_key, 32);
    iso_enrol_bytes(r->federation, token->id, s->nonce, m.enroll.transport_pk, m.enroll.sign_pk,
                    bytes);
    iso_sign(ISO_LABEL_ENROL, bytes, sizeof bytes, s->sign.secret, m.enroll.signature);
    iso_mac(keys->proof_key, bytes, sizeof bytes, m.enroll.mac);
    return say(s, &m, NULL, 0, e);
}

static iso_err enrol(net_rig *r, size_t from, size_t to, iso_error *e)
{
    size_t n = to - from;
    iso_token *tokens = iso_calloc(n, sizeof *tokens);
    iso_token_keys *keys = iso_calloc(n, sizeof *keys);
    iso_err err = tokens && keys ? ISO_OK : iso_nomem(e, n * sizeof *keys);
    for (size_t i = 0; i < n && !err; i++) {
        net_site *s = &r->sites[from + i];
        snprintf(s->name, sizeof s->name, "s%zu", from + i);
        err = iso_key_make(ISO_KEY_SITE_TRANSPORT, 0, &s->transport, e);
        if (!err)
            err = iso_key_make(ISO_KEY_SITE_SIGN, 0, &s->sign, e);
        iso_site_id(s->transport.public_key, s->sign.public_key, s->id);
    }
    if (!err)
        err = get_tokens(r, from, n, keys, tokens, e);
    for (size_t i = 0; i < n && !err; i++) {
        net_site *s = &r->sites[from + i];
        err = dial(r, s, keys[i].transport_pk, keys[i].transport_secret, e);
        if (!err)
            err = say_hello(r, s, e);
    }
    if (!err)
        err = net_run(r, from, to, is_greeted, 120, e);
    for (size_t i = 0; i < n && !err; i++)
        err = say_enroll(r, &r->sites[from + i], &tokens[i], &keys[i], e);
    if (!err)
        err = net_run(r, from, to, is_enrolled, 120, e);
    free(tokens);
    free(keys);
    return err;
}

iso_err net_join(net_rig *r, size_t from, size_t to, iso_error *e)
{
    enum { AT_ONCE = 50 }; /* a handshake that takes over 5 s is given up (S42) */
    iso_err err = ISO_OK;
    for (size_t at = from; at < to && !err; at += AT_ONCE) {
        size_t end = at + AT_ONCE < to ? at + AT_ONCE : to;
        err = enrol(r, at, end, e);
        for (size_t i = at; i < end && !err; i++) {
            net_site *s = &r->sites[i];
            err = dial(r, s, s->transport.public_key, s->transport.secret, e);
            if (!err)
                err = say_hello(r, s, e);
        }
        if (!err)
            err = net_run(r, at, end, is_greeted, 120, e);
    }
    return err;
}

iso_err net_seal(net_rig *r, net_site *s, size_t invite, size_t bytes, iso_error *e)
{
    const iso_msg_invite *v = &s->invites[invite];
    iso_envelope h = {.round = v->round,
                      .generation = v->generation,
                      .sequence = ++s->sequence,
                      .created_ms = 1764000000000u,
                      .sample_count = 100,
                      .score = 0.5f,
                      .adapter_kind = ISO_KIND_LORA,
                      .metric = ISO_METRIC_ACCURACY};
    uint8_t *payload = malloc(bytes);
    net_update *wider = realloc(s->updates, (s->update_count + 1) * sizeof *wider);
    if (wider)
        s->updates = wider;
    if (!payload || !wider) {
        free(payload);
        return iso_nomem(e, bytes);
    }
    net_update *u = &s->updates[s->update_count++];
    *u = (net_update){.round = v->round};
    memset(payload, (int)s->sequence, bytes);
    memcpy(h.federation_id, r->federation, 16);
    memcpy(h.site_id, s->id, 16);
    memcpy(h.task_id, v->task_id, 16);
    memcpy(h.generation_digest.b, v->generation_digest, 32);
    iso_err err = iso_envelope_seal(&h, payload, bytes, &s->sign, r->merge_pk, &u->sealed, e);
    u->chunks = h.chunk_count;
    free(payload);
    return err;
}
