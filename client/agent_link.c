/* The site's connection: dial, greet, stay, lose, dial again (specs/security.md 4.4, 4.5).
 *
 * Full-jitter back-off on a fresh socket each time (S56); one Hello a connection; a Ping each
 * minute carries the cursor of the coordinator's notices (S57). */
#include "client/agent_inner.h"

#include <stdio.h>
#include <string.h>

enum {
    CONNECT_MS = 20 * 1000,  /* the library's own handshake limit is 15 s (S42) */
    HEALTHY_MS = 60 * 1000,  /* back-off starts over after so long online */
    BACKOFF_MS = 1000,       /* 1 s * 2^n */
    BACKOFF_MAX_MS = 300000, /* up to 5 min */
    REFUSED_MS = 60 * 1000   /* after ZAP's 400: from there up */
};

const char *iso_agent_state_name(iso_agent_state s)
{
    static const char *const names[ISO_AS_COUNT] = {"offline", "connecting", "greeting", "online",
                                                    "sending", "waiting",    "fetching", "trial"};
    return s >= 0 && s < ISO_AS_COUNT ? names[s] : "unknown";
}

bool agent_is_online(const iso_agent *a)
{
    return a->link == ISO_AS_ONLINE &&
           (a->site == ISO_SITE_ACTIVE || a->site == ISO_SITE_QUARANTINED);
}

static void set_link(iso_agent *a, iso_agent_state state)
{
    a->link = state;
    a->since_ms = a->mono;
}

/* Uniform in [0, min(300 s, 1 s * 2^n)]. */
static uint64_t jitter_ms(iso_agent *a)
{
    uint32_t n = a->attempts < 20 ? a->attempts : 20;
    uint64_t cap = (uint64_t)BACKOFF_MS << n;
    if (cap > BACKOFF_MAX_MS)
        cap = BACKOFF_MAX_MS;
    a->attempts++;
    return agent_random_below(a, cap + 1);
}

static void lost(iso_agent *a, iso_agent_down why, const char *text, uint64_t retry_after_ms)
{
    if (a->link == ISO_AS_OFFLINE)
        return;
    bool was_online = a->link == ISO_AS_ONLINE;
    agent_effect(a, ISO_AX_CLOSE)->link = a->link_number;
    agent_upload_lost(a);
    agent_fetch_lost(a);
    for (size_t i = 0; i < a->release_count; i++)
        a->releases[i].is_verdict_sent = false;
    uint64_t delay = jitter_ms(a);
    if (why == ISO_DOWN_REFUSED)
        delay += REFUSED_MS;
    else if (was_online) {
        /* When a coordinator restarts all its sites lose it at once: spread them (S56). */
        uint64_t spread = agent_random_below(a, a->config.spread_ms + 1);
        delay = delay > spread ? delay : spread;
    }
    if (delay < retry_after_ms)
        delay = retry_after_ms + agent_random_below(a, retry_after_ms / 4 + 1);
    a->is_not_admitted = why == ISO_DOWN_REFUSED;
    set_link(a, ISO_AS_OFFLINE);
    a->next_try_ms = a->mono + delay;
    snprintf(a->link_reason, sizeof a->link_reason, "%s", text ? text : "");
    char quoted[2 * ISO_SENTENCE_MAX];
    iso_log_quote(quoted, sizeof quoted, a->link_reason);
    agent_log(a, was_online ? ISO_LOG_INFO : ISO_LOG_WARN, "link_down",
              "reason=\"%s\" admitted=%s next_try_ms=%llu", quoted,
              a->is_not_admitted ? "no" : "yes", (unsigned long long)delay);
}

void agent_link_lost(iso_agent *a, iso_agent_down why, const char *text)
{
    lost(a, why, text, 0);
}

void agent_link_start(iso_agent *a)
{
    a->protocol = ISO_PROTO_VERSION_MAX;
    set_link(a, ISO_AS_OFFLINE);
    a->next_try_ms = a->mono;
}

static void connect_now(iso_agent *a)
{
    set_link(a, ISO_AS_CONNECTING);
    a->link_number++;
    a->greeting_ms = a->mono + CONNECT_MS;
    agent_effect(a, ISO_AX_CONNECT)->link = a->link_number;
}

static void greet(iso_agent *a)
{
    set_link(a, ISO_AS_GREETING);
    a->is_not_admitted = false;
    a->greeting_ms = a->mono + a->config.reply_ms;
    a->next_request = 0;
    iso_msg_hello *h = &agent_send(a, ISO_MSG_HELLO, NULL)->hello;
    h->min_version = ISO_PROTO_VERSION_MIN;
    h->max_version = ISO_PROTO_VERSION_MAX;
    h->software = a->config.software;
    memcpy(h->federation_id, a->config.federation_id, 16);
    h->roster_version = a->roster ? a->roster->version : 0;
    h->release = a->current;
    h->release_head = a->highest_number;
    h->last_sequence = a->next_sequence - 1;
    if (a->has_head)
        h->audit_head = (iso_span){agent_copy(a, a->head, sizeof a->head), ISO_SIGNED_HEAD_BYTES};
    h->wall_ms = a->wall;
}

static void send_status(iso_agent *a)
{
    iso_msg_status *s = &agent_send(a, ISO_MSG_STATUS, NULL)->status;
    for (size_t i = 0; i < a->config.task_count; i++)
        s->spool_samples += a->tasks[i].train + a->tasks[i].val + a->tasks[i].test;
    for (size_t i = 0; i < a->outbox_count; i++)
        s->outbox += a->outbox[i].state == OUTBOX_WAITING;
    s->release = a->current;
    s->state = (uint32_t)a->link;
    s->disk_free = a->disk_free;
    s->since_event = a->event_cursor;
}

static void greeted(iso_agent *a, const iso_msg_hello_reply *m)
{
    if (m->version < ISO_PROTO_VERSION_MIN || m->version > ISO_PROTO_VERSION_MAX) {
        char text[ISO_SENTENCE_MAX];
        snprintf(text, sizeof text,
                 "coordinator chose protocol %u, this client speaks %d..%d: upgrade the older one",
                 m->version, ISO_PROTO_VERSION_MIN, ISO_PROTO_VERSION_MAX);
        agent_link_lost(a, ISO_DOWN_FAILED, text);
        return;
    }
    a->protocol = m->version;
    a->site = m->state;
    a->clock_offset_ms = (int64_t)m->wall_ms - (int64_t)a->wall;
    a->is_clock_known = true;
    a->chunk_bytes = m->limits.chunk_bytes ? m->limits.chunk_bytes : ISO_CHUNK_MAX_BYTES;
    if (a->chunk_bytes > ISO_CHUNK_MAX_BYTES)
        a->chunk_bytes = ISO_CHUNK_MAX_BYTES;
    a->credit = m->limits.credit ? m->limits.credit : ISO_CREDIT_CHUNKS;
    if (a->credit > ISO_CREDIT_CHUNKS)
        a->credit = ISO_CREDIT_CHUNKS;
    a->update_bytes = m->limits.update_bytes;

    /* An offer of the last session carries a head that is older than the one said now: taken up
     * later it would look like a history that was cut. What is current is offered again. */
    a->offer.is_there = false;
    bool is_new_epoch = a->epoch != 0 && a->epoch != m->epoch;
    iso_head head;
    bool has_head = false;
    if (is_new_epoch) /* numbers and sequences go on above the highest that was seen (S86) */
        a->event_cursor = 0;
    if (a->epoch != m->epoch) {
        agent_log(a, is_new_epoch ? ISO_LOG_WARN : ISO_LOG_INFO, "epoch", "old=%016llx new=%016llx",
                  (unsigned long long)a->epoch, (unsigned long long)m->epoch);
        a->epoch = m->epoch;
    }
    if (m->next_sequence > a->next_sequence)
        a->next_sequence = m->next_sequence;
    has_head = agent_head_said(a, &m->signed_head, &head);
    agent_save_meta(a); /* K10 */
    if (is_new_epoch && has_head)
        agent_upload_epoch(a, head.seq);
    agent_commit(a);

    set_link(a, ISO_AS_ONLINE);
    a->online_ms = a->heard_ms = a->mono;
    a->ping_ms = a->mono + a->config.ping_ms;
    a->greetings++;
    a->link_reason[0] = '\0';
    agent_log(a, ISO_LOG_INFO, "link_up", "site=%s release=%llu clock_offset_ms=%lld",
              iso_site_state_name(m->state), (unsigned long long)m->release,
              (long long)a->clock_offset_ms);
    if (a->clock_offset_ms > 600000 || a->clock_offset_ms < -600000) /* S55 */
        agent_log(a, ISO_LOG_WARN, "clock_offset",
                  "offset_ms=%lld remedy=\"set this machine's clock (timedatectl)\"",
                  (long long)a->clock_offset_ms);
    send_status(a);
    agent_verdicts_send(a);
}

static void noticed(iso_agent *a, const iso_msg_status_reply *m)
{
    bool is_pending = false;
    for (size_t i = 0; i < m->notice_count; i++) {
        const iso_msg_notice *n = &m->notices[i];
        is_pending = is_pending || n->code == ISO_CODE_PENDING;
        if (n->event && n->event < a->event_cursor)
            continue;
        agent_update *u = agent_find_update(a, n->update_id);
        if (u && u->state != OUTBOX_WAITING) {
            u->code = n->code;
            agent_text(a, &u->sentence, n->sentence);
            agent_save_update(a, u);
        }
        char quoted[2 * ISO_SENTENCE_MAX];
        iso_log_quote(quoted, sizeof quoted, n->sentence);
        agent_log(a, n->code == ISO_CODE_OK ? ISO_LOG_INFO : ISO_LOG_WARN, "notice",
                  "code=%s sentence=\"%s\"", iso_code_name(n->code), quoted);
    }
    if (m->next_event > a->event_cursor) {
        a->event_cursor = m->next_event;
        agent_save_meta(a);
    }
    agent_commit(a);
    if (a->site == ISO_SITE_PENDING && !is_pending && a->link == ISO_AS_ONLINE) {
        /* The operator has decided: a new greeting tells what. */
        agent_link_lost(a, ISO_DOWN_LOST, "no longer pending: greeting again");
        a->next_try_ms = a->mono;
    } else if (m->notice_count == ISO_NOTICES_MAX) {
        send_status(a); /* there may be more */
    }
}

static void refused(iso_agent *a, const iso_msg_error *m)
{
    uint8_t type = m->about_id && m->about_id <= a->next_request &&
                           a->next_request - m->about_id < AGENT_SENT_RING
                       ? a->sent[m->about_id % AGENT_SENT_RING]
                       : 0;
    char text[ISO_SENTENCE_MAX + 64];
    snprintf(text, sizeof text, "%s: %s", iso_code_name(m->code), m->sentence);
    if (a->link == ISO_AS_GREETING) {
        lost(a, ISO_DOWN_FAILED, text, m->retry_after_ms);
        return;
    }
    if (m->code == ISO_CODE_REVOKED || m->code == ISO_CODE_FEDERATION ||
        m->code == ISO_CODE_VERSION) {
        lost(a, ISO_DOWN_REFUSED, text, m->retry_after_ms);
        return;
    }
    if (m->code == ISO_CODE_EPOCH) { /* the coordinator was restored: greet to learn its epoch */
        lost(a, ISO_DOWN_LOST, text, m->retry_after_ms);
        return;
    }
    switch (type) {
    case ISO_MSG_UPDATE_BEGIN:
    case ISO_MSG_UPDATE_CHUNK:
    case ISO_MSG_UPDATE_COMMIT:
        agent_upload_error(a, m);
        break;
    case ISO_MSG_BLOB_GET:
        agent_fetch_error(a, m);
        break;
    default: {
        char quoted[2 * ISO_SENTENCE_MAX];
        iso_log_quote(quoted, sizeof quoted, m->sentence);
        agent_log(a, ISO_LOG_WARN, "refused", "request=%s code=%s sentence=\"%s\"",
                  type ? iso_msg_type_name((iso_msg_type)type) : "none", iso_code_name(m->code),
                  quoted);
        break;
    }
    }
}

void agent_message(iso_agent *a, const iso_agent_event *ev)
{
    const iso_msg *m = ev->msg;
    if (ev->link != a->link_number)
        return; /* of a link that was given up */
    a->heard_ms = a->mono;
    if (a->link == ISO_AS_GREETING) { /* S50: until the reply nothing else counts */
        if (m->type == ISO_MSG_HELLO_REPLY)
            greeted(a, &m->hello_reply);
        else if (m->type == ISO_MSG_ERROR)
            refused(a, &m->error);
        else if (m->type == ISO_MSG_BYE)
            agent_link_lost(a, ISO_DOWN_LOST, m->bye.reason);
        return;
    }
    if (a->link != ISO_AS_ONLINE)
        return;
    if (m->epoch && m->epoch != a->epoch) {
        agent_link_lost(a, ISO_DOWN_LOST, "the coordinator's epoch changed");
        return;
    }
    switch (m->type) {
    case ISO_MSG_INVITE:
        agent_invited(a, &m->invite);
        break;
    case ISO_MSG_UPDATE_GRANT:
        agent_upload_grant(a, &m->update_grant);
        break;
    case ISO_MSG_CHUNK_ACK:
        agent_upload_ack(a, &m->chunk_ack);
        break;
    case ISO_MSG_RECEIPT:
        agent_upload_receipt(a, &m->receipt);
        break;
    case ISO_MSG_RELEASE_OFFER:
        agent_release_offered(a, &m->release_offer);
        break;
    case ISO_MSG_BLOB_CHUNK:
        agent_fetch_chunk(a, &m->blob_chunk, ev->body, ev->body_bytes);
        break;
    case ISO_MSG_EVAL_REQUEST:
        agent_eval_requested(a, &m->eval_request);
        break;
    case ISO_MSG_STATUS_REPLY:
        noticed(a, &m->status_reply);
        break;
    case ISO_MSG_ROSTER_OFFER:
        agent_roster_offered(a, &m->roster_offer);
        break;
    case ISO_MSG_PING: {
        iso_msg_pong *p = &agent_send(a, ISO_MSG_PONG, NULL)->pong;
        p->t = m->ping.t;
        p->next_event = a->event_cursor;
        break;
    }
    case ISO_MSG_PONG:
        if (m->pong.next_event > a->event_cursor)
            send_status(a);
        break;
    case ISO_MSG_ERROR:
        refused(a, &m->error);
        break;
    case ISO_MSG_BYE:
        agent_link_lost(a, ISO_DOWN_LOST, m->bye.reason);
        break;
    default:
        break; /* not for a site: ignored */
    }
}

void agent_link_event(iso_agent *a, const iso_agent_event *ev)
{
    if (ev->link != a->link_number)
        return;
    if (ev->kind == ISO_AE_LINK_UP) {
        if (a->link == ISO_AS_CONNECTING)
            greet(a);
        return;
    }
    agent_link_lost(a, ev->down, ev->text);
}

void agent_link_tick(iso_agent *a)
{
    switch (a->link) {
    case ISO_AS_OFFLINE:
        if (a->mono >= a->next_try_ms)
            connect_now(a);
        break;
    case ISO_AS_CONNECTING:
        if (a->mono >= a->greeting_ms)
            agent_link_lost(a, ISO_DOWN_FAILED, "no answer from the coordinator's address");
        break;
    case ISO_AS_GREETING:
        if (a->mono >= a->greeting_ms)
            agent_link_lost(a, ISO_DOWN_FAILED, "connected, but the greeting was not answered");
        break;
    case ISO_AS_ONLINE:
        if (a->mono - a->online_ms >= HEALTHY_MS)
            a->attempts = 0;
        if (a->mono - a->heard_ms >= 2 * a->config.ping_ms + a->config.reply_ms) {
            agent_link_lost(a, ISO_DOWN_LOST, "the coordinator fell silent");
        } else if (a->mono >= a->ping_ms) {
            a->ping_ms = a->mono + a->config.ping_ms;
            if (a->site == ISO_SITE_PENDING)
                send_status(a);
            else
                agent_send(a, ISO_MSG_PING, NULL)->ping.t = a->mono;
        }
        break;
    default:
        break;
    }
}

iso_time agent_link_wake(const iso_agent *a)
{
    switch (a->link) {
    case ISO_AS_OFFLINE:
        return a->next_try_ms;
    case ISO_AS_CONNECTING:
    case ISO_AS_GREETING:
        return a->greeting_ms;
    default: {
        iso_time silent = a->heard_ms + 2 * a->config.ping_ms + a->config.reply_ms;
        return a->ping_ms < silent ? a->ping_ms : silent;
    }
    }
}
