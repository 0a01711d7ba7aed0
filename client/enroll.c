#include "client/enroll.h"

#include "client/daemon.h"
#include "core/fsio.h"
#include "crypto/chain.h"
#include "crypto/init.h"
#include "crypto/request.h"
#include "crypto/token.h"

#include <stdlib.h>
#include <string.h>

enum { DEFAULT_TIMEOUT_MS = 30000 };

static iso_err make_key(const char *path, iso_key_kind kind, const char *passphrase, iso_error *e)
{
    const iso_clock clock = iso_clock_system();
    iso_key key = {0};
    if (iso_path_exists(path))
        return ISO_OK;
    iso_err err = iso_key_make(kind, clock.wall_ms(clock.ctx), &key, e);
    if (err == ISO_OK)
        err = iso_key_write(&key, path, passphrase, NULL, e);
    iso_key_free(&key);
    return err;
}

iso_err iso_client_make_keys(const char *dir, const char *passphrase, iso_error *e)
{
    char *keys = iso_path_join(dir, "keys");
    char *t = iso_path_join(dir, "keys/transport.key"), *s = iso_path_join(dir, "keys/sign.key");
    iso_err err = keys && t && s ? iso_make_dirs(keys, 0700, e) : iso_nomem(e, strlen(dir));
    if (err == ISO_OK)
        err = make_key(t, ISO_KEY_SITE_TRANSPORT, passphrase, e);
    if (err == ISO_OK)
        err = make_key(s, ISO_KEY_SITE_SIGN, passphrase, e);
    free(keys);
    free(t);
    free(s);
    return err;
}

/* ---- the conversation: Hello, HelloReply, Enroll, EnrollReply ---- */

typedef struct {
    iso_link *link;
    iso_clock clock;
    iso_time deadline_ms;
    uint64_t next_id;
    const char *name;
    const iso_enrol_line *line;
    const iso_token_keys *token;
    const iso_key *transport, *sign;
    iso_enroll_result *out;
    bool is_done;
} talk;

static iso_err send(talk *t, iso_msg *m, iso_error *e)
{
    m->version = ISO_PROTO_VERSION_MAX;
    m->id = ++t->next_id;
    return iso_link_send(t->link, m, NULL, 0, e);
}

static iso_err say_hello(talk *t, iso_error *e)
{
    iso_msg m = {.type = ISO_MSG_HELLO,
                 .hello = {.min_version = ISO_PROTO_VERSION_MIN,
                           .max_version = ISO_PROTO_VERSION_MAX,
                           .software = ISO_VERSION,
                           .wall_ms = t->clock.wall_ms(t->clock.ctx)}};
    return send(t, &m, e);
}

static iso_err say_enroll(talk *t, const iso_msg_hello_reply *reply, iso_error *e)
{
    iso_msg m = {.type = ISO_MSG_ENROLL, .epoch = reply->epoch};
    iso_head head;
    uint8_t bytes[ISO_ENROL_BYTES];
    if (reply->signed_head.size != ISO_SIGNED_HEAD_BYTES ||
        iso_head_decode(reply->signed_head.data, ISO_HEAD_BYTES, &head, e) != ISO_OK)
        return iso_fail(e, ISO_ERR_TRUST, "the coordinator did not name its federation");
    /* The head's signature is checked later, with the key of the roster that root.pub vouches for;
     * a false federation here would make every later message and signature fail. */
    memcpy(t->out->enrolment.federation_id, head.federation_id, 16);
    memcpy(m.enroll.transport_pk, t->transport->public_key, 32);
    memcpy(m.enroll.sign_pk, t->sign->public_key, 32);
    m.enroll.name = t->name;
    iso_enrol_bytes(head.federation_id, t->line->token.id, reply->nonce, m.enroll.transport_pk,
                    m.enroll.sign_pk, bytes);
    iso_sign(ISO_LABEL_ENROL, bytes, sizeof bytes, t->sign->secret, m.enroll.signature);
    iso_mac(t->token->proof_key, bytes, sizeof bytes, m.enroll.mac);
    return send(t, &m, e);
}

static iso_err enrolled(talk *t, const iso_msg_enroll_reply *m, iso_error *e)
{
    uint8_t expected[16];
    iso_site_id(t->transport->public_key, t->sign->public_key, expected);
    if (memcmp(expected, m->site_id, 16) != 0)
        return iso_fail(e, ISO_ERR_TRUST, "the coordinator enrolled another key than this site's");
    if (memcmp(m->root_digest, t->line->root_fingerprint, ISO_FINGERPRINT_BYTES) != 0)
        return iso_fail(e, ISO_ERR_TRUST,
                        "the coordinator's root key is not the one of the enrolment line");
    memcpy(t->out->enrolment.site_id, m->site_id, 16);
    t->out->state = m->state;
    t->is_done = true;
    return ISO_OK;
}

static iso_err refused(const iso_msg_error *m, iso_error *e)
{
    return iso_fail(e, ISO_ERR_TRUST, "%s [%s]",
                    *m->sentence ? m->sentence : iso_code_sentence(m->code),
                    iso_code_name(m->code));
}

static iso_err take(talk *t, const iso_agent_event *ev, iso_error *e)
{
    if (ev->kind == ISO_AE_LINK_UP)
        return say_hello(t, e);
    if (ev->kind == ISO_AE_LINK_DOWN)
        return iso_fail(e, ev->down == ISO_DOWN_REFUSED ? ISO_ERR_TRUST : ISO_ERR_RESOURCE, "%s",
                        ev->down == ISO_DOWN_REFUSED
                            ? "the token is unknown, used or expired: ask central IT for a new "
                              "enrolment line (isofed token new) [token_expired]"
                            : ev->text);
    switch (ev->msg->type) {
    case ISO_MSG_HELLO_REPLY:
        return say_enroll(t, &ev->msg->hello_reply, e);
    case ISO_MSG_ENROLL_REPLY:
        return enrolled(t, &ev->msg->enroll_reply, e);
    case ISO_MSG_ERROR:
        return refused(&ev->msg->error, e);
    default:
        return ISO_OK;
    }
}

static iso_err converse(talk *t, iso_error *e)
{
    iso_err err = iso_link_connect(t->link, 1, e);
    while (err == ISO_OK && !t->is_done) {
        iso_agent_event ev;
        iso_time now = t->clock.mono_ms(t->clock.ctx);
        if (now >= t->deadline_ms)
            return iso_fail(e, ISO_ERR_RESOURCE, "no answer from %s:%u [link_silent]",
                            t->line->host, t->line->port);
        while (err == ISO_OK && !t->is_done && iso_link_next(t->link, &ev))
            err = take(t, &ev, e);
        if (err == ISO_OK && !t->is_done)
            err = iso_link_wait(t->link, NULL, NULL, 0, (long)(t->deadline_ms - now), e);
    }
    return err;
}

iso_err iso_client_enroll(const char *dir, const char *line_text, const char *name,
                          const iso_enroll_options *options, iso_enroll_result *out, iso_error *e)
{
    iso_enrol_line line;
    iso_token_keys token;
    iso_key transport = {0}, sign = {0};
    iso_link_options l = {.heartbeat_ms = 15000};
    talk t = {
        .clock = iso_clock_system(), .line = &line, .token = &token, .name = name, .out = out};
    uint8_t print[ISO_FINGERPRINT_BYTES];
    memset(out, 0, sizeof *out);
    iso_err err = iso_enrol_line_parse(line_text, &line, e);
    if (err != ISO_OK)
        return err;
    if (!iso_name_is_valid(name))
        return iso_fail(e, ISO_ERR_USAGE,
                        "site name \"%.64s\": 1 to 64 of letters, digits, ._- are expected", name);
    iso_token_derive(&line.token, &token);
    err = iso_make_dirs(dir, 0750, e);
    if (err == ISO_OK)
        err = iso_client_make_keys(dir, options->passphrase, e);
    if (err == ISO_OK)
        err = iso_client_keys_read(dir, options->passphrase, &transport, &sign, e);
    if (err != ISO_OK)
        goto done;
    memcpy(l.host, line.host, sizeof line.host);
    l.port = line.port;
    memcpy(l.coordinator_pk, line.coordinator_pk, 32);
    l.transport_pk = token.transport_pk;
    l.transport_secret = token.transport_secret;
    t.transport = &transport;
    t.sign = &sign;
    t.deadline_ms = t.clock.mono_ms(t.clock.ctx) +
                    (options->timeout_ms ? options->timeout_ms : DEFAULT_TIMEOUT_MS);
    err = iso_link_open(&t.link, &l, e);
    if (err == ISO_OK)
        err = converse(&t, e);
    if (err != ISO_OK)
        goto done;
    iso_enrolment *n = &out->enrolment;
    memcpy(n->name, name, strlen(name) + 1);
    memcpy(n->host, line.host, sizeof line.host);
    n->port = line.port;
    memcpy(n->coordinator_pk, line.coordinator_pk, 32);
    memcpy(n->root_fingerprint, line.root_fingerprint, ISO_FINGERPRINT_BYTES);
    n->enrolled_ms = t.clock.wall_ms(t.clock.ctx);
    iso_site_fingerprint(transport.public_key, sign.public_key, print);
    iso_fingerprint_text(print, out->fingerprint);
    err = iso_enrolment_write(dir, n, e);
done:
    iso_link_close(t.link);
    iso_wipe(&token, sizeof token);
    iso_wipe(&line.token, sizeof line.token);
    iso_key_free(&transport);
    iso_key_free(&sign);
    return err;
}
