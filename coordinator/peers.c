/* Peers: greeting, what each may say in which state (specs/security.md 4.5), limits and refusals
 * (S58), status and notices (S37). Every message is checked against its site's row here, in the
 * step that applies it (S26, I5). */
#include "coordinator/inner.h"
#include "proto/codec.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void peer_key(iso_peer id, uint8_t key[16])
{
    memset(key, 0, 16);
    iso_put_u64(key, id);
}

iso_c_peer *iso_c_peer_by_id(const iso_coord *c, iso_peer id)
{
    uint8_t key[16];
    peer_key(id, key);
    return iso_index_get(&c->peer_by_id, key);
}

static iso_c_peer *peer_new(iso_coord *c, const iso_coord_event *ev)
{
    uint8_t key[16];
    peer_key(ev->peer, key);
    iso_c_peer *p = iso_calloc(1, sizeof *p);
    if (!p || !iso_c_push(c, (void ***)&c->peers, &c->peer_count, &c->peer_capacity, p) ||
        !iso_index_put(&c->peer_by_id, key, p)) {
        c->is_out_of_memory = true;
        return NULL;
    }
    p->id = ev->peer;
    p->name = ev->name;
    p->since = p->rate_at = c->now;
    p->rate_tokens = c->config.request_burst * 1000u;
    if (ev->name.kind == ISO_PEER_SITE)
        p->site = iso_c_site_by_id(c, ev->name.id);
    else
        p->token = iso_c_token_by_id(c, ev->name.id);
    return p;
}

void iso_c_peer_drop(iso_coord *c, iso_c_peer *p)
{
    uint8_t key[16];
    peer_key(p->id, key);
    iso_index_remove(&c->peer_by_id, key);
    iso_c_remove((void **)c->peers, &c->peer_count, p);
    if (p->site && p->site->peer == p)
        p->site->peer = NULL;
    free(p);
}

void iso_c_on_peer_gone(iso_coord *c, iso_peer id)
{
    iso_c_peer *p = iso_c_peer_by_id(c, id);
    if (!p)
        return;
    if (p->site && p->site->peer == p)
        iso_c_log(c, ISO_LOG_INFO, "site_offline", "site=%s", p->site->name);
    iso_c_uploads_peer_gone(c, id);
    iso_c_peer_drop(c, p);
}

/* ---- refusals ---- */

static bool is_within_window(iso_coord *c, uint32_t *count, iso_time *since, uint64_t window_ms,
                             uint32_t limit)
{
    if (c->now - *since >= window_ms) {
        *since = c->now;
        *count = 0;
    }
    return ++*count <= limit;
}

void iso_c_refuse(iso_coord *c, iso_c_peer *p, uint64_t about, iso_code code, const void *what,
                  size_t what_bytes, const char *sentence, ...)
{
    char text[ISO_SENTENCE_MAX + 1];
    va_list args;
    va_start(args, sentence);
    vsnprintf(text, sizeof text, sentence, args);
    va_end(args);
    iso_c_site *s = p->site;
    c->stats.refusals++;
    iso_c_log(c, ISO_LOG_WARN, "refused", "site=%s code=%s why=\"%s\"", s ? s->name : "-",
              iso_code_name(code), iso_c_quote(c, text));
    /* Rows of the audit log only for what is refused of updates, and not more than 60 an hour. */
    if (s && code >= ISO_CODE_BAD_ENVELOPE && code < ISO_CODE_BLOB_UNKNOWN &&
        is_within_window(c, &s->audited, &s->audited_since, 3600000u, AUDITED_REFUSALS_HOUR)) {
        iso_digest subject = {{0}};
        if (what)
            memcpy(subject.b, what, what_bytes < 32 ? what_bytes : 32);
        iso_c_audit(c, ISO_AUDIT_BEGIN_REFUSED, s->id, &subject, "\"code\":\"%s\"",
                    iso_code_name(code));
    }
    uint64_t retry_ms = iso_code_is_retryable(code) ? 1000 : 0;
    bool is_too_many = false;
    if (s) {
        s->refused_total++;
        is_too_many =
            !is_within_window(c, &s->refusals, &s->refusals_since, 60000u, REFUSALS_A_MINUTE);
        if (is_too_many) {
            retry_ms = 60000u << (s->penalty < 6 ? s->penalty : 6);
            if (retry_ms > 3600000u)
                retry_ms = 3600000u;
            if (s->penalty < 6)
                s->penalty++;
            s->penalty_until = c->now + retry_ms;
        }
    }
    iso_msg_error *m = &iso_c_send(c, p, ISO_MSG_ERROR, about)->error;
    m->code = code;
    m->sentence = iso_c_text(c, "%s", text);
    m->retry_after_ms = retry_ms;
    m->about_id = about;
    if (what && what_bytes) {
        uint8_t *copy = iso_c_alloc(c, what_bytes, 1);
        if (copy)
            memcpy(copy, what, what_bytes);
        m->what = (iso_span){.data = copy, .size = copy ? what_bytes : 0};
    }
    if (is_too_many)
        iso_c_cut(c, p, "more than 10 refusals a minute");
}

/* 50 requests a second, burst 200 (S58); chunks are bounded by credit instead. */
static bool has_budget(iso_coord *c, iso_c_peer *p)
{
    uint64_t gained = (c->now - p->rate_at) * c->config.requests_per_s;
    uint64_t most = c->config.request_burst * 1000u;
    p->rate_at = c->now;
    p->rate_tokens = p->rate_tokens + gained > most ? most : p->rate_tokens + gained;
    if (p->rate_tokens < 1000)
        return false;
    p->rate_tokens -= 1000;
    return true;
}

/* ---- greeting ---- */

void iso_c_greet(iso_coord *c, iso_c_site *s)
{
    iso_c_round *r = iso_c_round_active(c);
    if (r && r->state == ROUND_OPEN)
        iso_c_round_send_invites(c, r, s);
    if (r && r->state == ROUND_EVALUATING)
        iso_c_evaluate_joined(c, r, s);
    iso_c_release_offer(c, s);
    s->offered = c->now;
}

static void send_hello_reply(iso_coord *c, iso_c_peer *p, const iso_msg *m, uint32_t version)
{
    const iso_c_release *release = iso_c_release_current(c);
    iso_span head = iso_c_signed_head(c);
    c->entropy.fill(c->entropy.ctx, p->nonce, sizeof p->nonce);
    iso_msg_hello_reply *r = &iso_c_send(c, p, ISO_MSG_HELLO_REPLY, m->id)->hello_reply;
    r->version = version;
    memcpy(r->nonce, p->nonce, sizeof r->nonce);
    r->epoch = c->identity.epoch;
    r->next_sequence = p->site ? p->site->sequence + 1 : 0;
    r->roster_version = c->identity.roster_version;
    r->release = release ? release->number : 0;
    r->signed_head = head;
    r->wall_ms = c->wall;
    r->limits = (iso_msg_limits){.chunk_bytes = ISO_CHUNK_MAX_BYTES,
                                 .credit = c->config.credit,
                                 .update_bytes = c->config.update_bytes,
                                 .requests_per_s = c->config.requests_per_s,
                                 .blob_bytes = ISO_RELEASE_MAX_BYTES};
    r->state = p->site ? p->site->state : ISO_SITE_UNKNOWN;
    if (p->site)
        p->site->head_ms = c->signed_ms;
}

/* A number above ours means that our state is older than what sites have seen (S86). */
static void note_release_head(iso_coord *c, const iso_c_site *s, uint64_t reported)
{
    const iso_c_release *current = iso_c_release_current(c);
    uint64_t ours = current ? current->number : 0;
    if (reported <= ours || reported <= c->release_floor)
        return;
    c->release_floor = reported;
    iso_c_save_meta(c);
    iso_c_audit(c, ISO_AUDIT_ALARM, s->id, NULL,
                "\"alarm\":\"site has seen a later release\",\"ours\":%llu,\"theirs\":%llu",
                (unsigned long long)ours, (unsigned long long)reported);
    iso_c_log(c, ISO_LOG_ERROR, "release_ahead", "site=%s theirs=%llu ours=%llu", s->name,
              (unsigned long long)reported, (unsigned long long)ours);
}

static void on_hello(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    const iso_msg_hello *h = &m->hello;
    static const uint8_t none[16];
    uint32_t version = iso_proto_pick_version(h->min_version, h->max_version);
    if (version == 0) {
        iso_c_refuse(c, p, m->id, ISO_CODE_VERSION, NULL, 0,
                     "you speak protocol %u..%u, this coordinator %d..%d: upgrade the older side",
                     h->min_version, h->max_version, ISO_PROTO_VERSION_MIN, ISO_PROTO_VERSION_MAX);
        iso_c_cut(c, p, "no common version");
        return;
    }
    bool is_ours = memcmp(h->federation_id, c->identity.federation, 16) == 0 ||
                   (p->token && memcmp(h->federation_id, none, 16) == 0);
    if (!is_ours) {
        iso_c_refuse(c, p, m->id, ISO_CODE_FEDERATION, NULL, 0, "this is another federation");
        iso_c_cut(c, p, "other federation");
        return;
    }
    iso_c_site *s = p->site;
    if (s && c->now < s->penalty_until) {
        iso_msg_error *m2 = &iso_c_send(c, p, ISO_MSG_ERROR, m->id)->error;
        m2->code = ISO_CODE_RATE;
        m2->sentence = "refused too often";
        m2->about_id = m->id;
        m2->retry_after_ms = s->penalty_until - c->now;
        iso_c_cut(c, p, "refused too often lately");
        return;
    }
    p->has_hello = true;
    p->state = p->token ? PEER_TOKEN : s->state == ISO_SITE_PENDING ? PEER_PENDING : PEER_READY;
    if (s) {
        /* A reconnect replaces the old session at once (U24). */
        if (s->peer && s->peer != p)
            iso_c_cut(c, s->peer, "replaced by a new connection");
        s->peer = p;
        s->serving = h->release;
        snprintf(s->software, sizeof s->software, "%s", h->software ? h->software : "");
        note_release_head(c, s, h->release_head);
        iso_c_log(c, ISO_LOG_INFO, "site_online", "site=%s software=\"%s\" release=%llu", s->name,
                  iso_c_quote(c, s->software), (unsigned long long)h->release);
    }
    send_hello_reply(c, p, m, version);
    if (s) {
        s->roster_held = h->roster_version;
        iso_c_roster_offer(c, p, s);
    }
    if (p->state == PEER_READY)
        iso_c_greet(c, s);
}

static void on_ping(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    iso_msg_pong *r = &iso_c_send(c, p, ISO_MSG_PONG, m->id)->pong;
    r->t = m->ping.t;
    r->next_event = p->site ? p->site->next_event : 0;
}

/* Notices from the cursor on: the cursor is the next_event of the reply before, 0 at first. */
static void on_status(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    iso_c_site *s = p->site;
    s->serving = m->status.release;
    iso_msg_notice *notices = iso_c_alloc(c, s->notice_count + 1, sizeof *notices);
    size_t count = 0;
    if (!notices)
        return;
    if (s->state == ISO_SITE_PENDING) {
        notices[count++] = (iso_msg_notice){.code = ISO_CODE_PENDING,
                                            .sentence = "waits for the operator's approval"};
    }
    for (size_t i = 0; i < s->notice_count && count < ISO_NOTICES_MAX; i++) {
        const iso_c_notice *n = &s->notices[i];
        if (n->event < m->status.since_event)
            continue;
        notices[count].event = n->event;
        notices[count].code = n->code;
        notices[count].sentence = iso_c_text(c, "%s", n->sentence);
        memcpy(notices[count].update_id, n->update_id, 16);
        count++;
    }
    iso_msg_status_reply *r = &iso_c_send(c, p, ISO_MSG_STATUS_REPLY, m->id)->status_reply;
    r->notices = notices;
    r->notice_count = count;
    r->next_event = s->next_event;
}

static void on_bye(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    (void)m;
    iso_c_cut(c, p, "said goodbye");
}

/* S22 comes with a later wave: the refusal says so. */
static void on_rotate(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    iso_c_refuse(c, p, m->id, ISO_CODE_NOT_PERMITTED, NULL, 0,
                 "key rotation is not offered by this coordinator: enrol anew");
}

/* ---- who may say what ---- */

#define in(state) (1u << (state))
static const struct {
    iso_msg_type type;
    unsigned states;
    void (*handle)(iso_coord *c, iso_c_peer *p, const iso_msg *m);
} rows[] = {
    {ISO_MSG_HELLO, in(PEER_ADMITTED), on_hello},
    {ISO_MSG_PING, in(PEER_ADMITTED) | in(PEER_TOKEN) | in(PEER_PENDING) | in(PEER_READY), on_ping},
    {ISO_MSG_BYE, in(PEER_ADMITTED) | in(PEER_TOKEN) | in(PEER_PENDING) | in(PEER_READY), on_bye},
    {ISO_MSG_ENROLL, in(PEER_TOKEN), iso_c_on_enroll},
    {ISO_MSG_STATUS, in(PEER_PENDING) | in(PEER_READY), on_status},
    {ISO_MSG_INVITE_REPLY, in(PEER_READY), iso_c_on_invite_reply},
    {ISO_MSG_UPDATE_BEGIN, in(PEER_READY), iso_c_on_update_begin},
    {ISO_MSG_UPDATE_COMMIT, in(PEER_READY), iso_c_on_update_commit},
    {ISO_MSG_BLOB_GET, in(PEER_READY), iso_c_on_blob_get},
    {ISO_MSG_EVAL_RESULT, in(PEER_READY), iso_c_on_eval_result},
    {ISO_MSG_RELEASE_VERDICT, in(PEER_READY), iso_c_on_verdict},
    {ISO_MSG_ROTATE_KEYS, in(PEER_READY), on_rotate},
};

static void refuse_out_of_turn(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    if (p->state == PEER_PENDING) {
        iso_c_refuse(c, p, m->id, ISO_CODE_PENDING, NULL, 0,
                     "this site waits for the operator's approval");
        return;
    }
    const char *why = p->state == PEER_ADMITTED ? "the first message must be Hello"
                      : p->state == PEER_TOKEN  ? "a token may only enrol"
                                                : "not a message that a site sends now";
    iso_c_refuse(c, p, m->id, ISO_CODE_NOT_PERMITTED, NULL, 0, "%s: %s", iso_msg_type_name(m->type),
                 why);
    if (p->state != PEER_READY || ++p->bad_messages >= FAULTS_BEFORE_CUT)
        iso_c_cut(c, p, why);
}

/* S26: the row of the site or token, now. Null when the peer may go on. */
static const char *no_longer_admitted(const iso_coord *c, const iso_c_peer *p, iso_code *code)
{
    *code = ISO_CODE_REVOKED;
    if (p->name.kind == ISO_PEER_SITE) {
        if (!p->site)
            return "this key is not enrolled";
        return p->site->state == ISO_SITE_REVOKED ? "this site was revoked" : NULL;
    }
    *code = ISO_CODE_TOKEN_UNKNOWN;
    if (!p->token)
        return "unknown token";
    *code = ISO_CODE_TOKEN_EXPIRED;
    return iso_c_token_is_open(c, p->token) ? NULL : "this token has expired: ask for a new one";
}

/* The peer of an event, known or new; NULL when it may not speak (it has been told and cut). */
static iso_c_peer *peer_of(iso_coord *c, const iso_coord_event *ev, uint64_t about)
{
    iso_c_peer *p = iso_c_peer_by_id(c, ev->peer);
    if (!p)
        p = peer_new(c, ev);
    if (!p || p->is_cut)
        return NULL;
    iso_code code;
    const char *why = no_longer_admitted(c, p, &code);
    if (why) {
        iso_c_refuse(c, p, about, code, NULL, 0, "%s", why);
        iso_c_cut(c, p, why);
        return NULL;
    }
    if (p->site) {
        p->site->seen = c->now;
        p->site->seen_wall = c->wall;
    }
    return p;
}

void iso_c_on_message(iso_coord *c, const iso_coord_event *ev)
{
    const iso_msg *m = ev->msg;
    c->stats.messages++;
    iso_c_peer *p = peer_of(c, ev, m->id);
    if (!p)
        return;
    if (m->type == ISO_MSG_UPDATE_CHUNK && p->state == PEER_READY) {
        iso_c_on_update_chunk(c, p, m, ev->body, ev->body_bytes);
        return;
    }
    if (!has_budget(c, p)) {
        iso_c_refuse(c, p, m->id, ISO_CODE_RATE, NULL, 0, "more than %u requests a second",
                     c->config.requests_per_s);
        return;
    }
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rows[i].type == m->type && (rows[i].states & in(p->state))) {
            rows[i].handle(c, p, m);
            return;
        }
    refuse_out_of_turn(c, p, m);
}

void iso_c_on_bad_message(iso_coord *c, const iso_coord_event *ev)
{
    iso_c_peer *p = peer_of(c, ev, 0);
    if (!p)
        return;
    iso_c_refuse(c, p, 0, ISO_CODE_BAD_MESSAGE, NULL, 0, "%s", ev->text ? ev->text : "malformed");
    if (++p->bad_messages >= FAULTS_BEFORE_CUT)
        iso_c_cut(c, p, "three malformed messages");
}

/* Connections that never said Hello; what was sent and not answered (a lost line is noticed by the
 * transport, a lost message is not). */
void iso_c_peers_tick(iso_coord *c)
{
    iso_c_round *r = iso_c_round_active(c);
    for (size_t i = 0; i < c->peer_count; i++) {
        iso_c_peer *p = c->peers[i];
        if (p->is_cut)
            continue;
        if (p->state == PEER_ADMITTED && c->now - p->since >= HELLO_TIMEOUT_MS)
            iso_c_cut(c, p, "no Hello within 10 s");
        iso_c_site *s = p->site;
        if (p->state != PEER_READY || !s || s->peer != p || c->now - s->offered < RESEND_MS)
            continue;
        s->offered = c->now;
        if (r && r->state == ROUND_OPEN)
            iso_c_round_send_invites(c, r, s);
        if (r && r->state == ROUND_EVALUATING)
            iso_c_evaluate_ask(c, r, s, true);
        iso_c_release_offer(c, s);
    }
}
