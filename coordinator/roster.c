/* Who is who: sites, tokens, enrolment (specs/security.md 2.3, C1), and what an operator does to a
 * site (C2, S24 - S27). Names are labels; a site is its keys (S9). */
#include "coordinator/inner.h"
#include "crypto/key.h"
#include "crypto/request.h"
#include "crypto/token.h"

#include <stdlib.h>
#include <string.h>

iso_c_site *iso_c_site_by_id(const iso_coord *c, const uint8_t id[16])
{
    return iso_index_get(&c->site_by_id, id);
}

/* A revoked site keeps its name in the history; the living one of that name is meant. */
iso_c_site *iso_c_site_by_name(const iso_coord *c, const char *name)
{
    iso_c_site *found = NULL;
    for (size_t i = 0; i < c->site_count; i++)
        if (strcmp(c->sites[i]->name, name) == 0 && (!found || found->state == ISO_SITE_REVOKED))
            found = c->sites[i];
    return found;
}

iso_c_site *iso_c_site_new(iso_coord *c, const uint8_t id[16])
{
    iso_c_site *s = iso_calloc(1, sizeof *s);
    if (!s || !iso_c_push(c, (void ***)&c->sites, &c->site_count, &c->site_capacity, s) ||
        !iso_index_put(&c->site_by_id, id, s)) {
        c->is_out_of_memory = true;
        return NULL;
    }
    memcpy(s->id, id, 16);
    s->next_event = 1;
    return s;
}

void iso_c_site_free(iso_c_site *s)
{
    free(s->task_ids);
    free(s->notices);
    free(s);
}

iso_c_token *iso_c_token_by_id(const iso_coord *c, const uint8_t id[4])
{
    for (size_t i = 0; i < c->token_count; i++)
        if (memcmp(c->tokens[i]->id, id, 4) == 0)
            return c->tokens[i];
    return NULL;
}

iso_c_token *iso_c_token_new(iso_coord *c, const uint8_t id[4])
{
    iso_c_token *t = iso_calloc(1, sizeof *t);
    if (!t || !iso_c_push(c, (void ***)&c->tokens, &c->token_count, &c->token_capacity, t)) {
        c->is_out_of_memory = true;
        free(t);
        return NULL;
    }
    memcpy(t->id, id, 4);
    return t;
}

void iso_c_task_id(const iso_coord *c, const char *name, uint8_t id[16])
{
    uint8_t text[13 + 16 + ISO_NAME_MAX];
    size_t n = strlen(name);
    if (n > ISO_NAME_MAX)
        n = ISO_NAME_MAX;
    memcpy(text, "isofed-task-1", 13);
    memcpy(text + 13, c->identity.federation, 16);
    memcpy(text + 29, name, n);
    iso_digest d = iso_digest_of(text, 29 + n);
    memcpy(id, d.b, 16);
}

int iso_c_task_by_id(const iso_coord *c, const uint8_t id[16])
{
    for (size_t i = 0; i < c->config.task_count; i++)
        if (memcmp(c->tasks[i].id, id, 16) == 0)
            return (int)i;
    return -1;
}

int iso_c_task_by_name(const iso_coord *c, const char *name)
{
    for (size_t i = 0; i < c->config.task_count; i++)
        if (strcmp(c->config.tasks[i].name, name) == 0)
            return (int)i;
    return -1;
}

void iso_c_site_tasks(const iso_coord *c, iso_c_site *s)
{
    s->tasks = 0;
    for (size_t i = 0; i < c->config.task_count; i++) {
        const iso_coord_task *t = &c->config.tasks[i];
        bool is_own = false;
        for (size_t k = 0; k < t->site_count && !is_own; k++)
            is_own = strcmp(t->sites[k], s->name) == 0;
        for (size_t k = 0; k < s->task_count && !is_own; k++)
            is_own = memcmp(s->task_ids[k], c->tasks[i].id, 16) == 0;
        if (is_own)
            s->tasks |= UINT64_C(1) << i;
    }
}

/* Used ones may still ask: the same keys get the same answer, other keys TOKEN_USED (S18). */
bool iso_c_token_is_open(const iso_coord *c, const iso_c_token *t)
{
    /* What the log has seen as past stays past: a clock set back opens nothing again. */
    uint64_t now = c->wall > c->audit_time_ms ? c->wall : c->audit_time_ms;
    return now < t->expires_ms && t->wrong_macs < WRONG_MACS_BURN;
}

/* ---- tokens ---- */

static bool copy_ids(iso_coord *c, uint64_t mask, uint8_t (**ids)[16], size_t *count)
{
    *ids = iso_calloc(ISO_COORD_TASKS_MAX, 16);
    *count = 0;
    for (size_t i = 0; *ids && i < c->config.task_count; i++)
        if (mask >> i & 1)
            memcpy((*ids)[(*count)++], c->tasks[i].id, 16);
    return *ids != NULL;
}

iso_err iso_c_token_make(iso_coord *c, const char *site, const uint64_t *tasks, double hours,
                         const char **line, iso_error *e)
{
    if (!iso_name_is_valid(site))
        return iso_fail(e, ISO_ERR_USAGE, "site: 1 to 64 letters, digits, '.', '_' or '-'");
    iso_c_site *known = iso_c_site_by_name(c, site);
    if (known && known->state != ISO_SITE_REVOKED)
        return iso_fail(e, ISO_ERR_USAGE, "site %s is enrolled already", site);
    if (!(hours > 0.0 && hours <= 720.0))
        return iso_fail(e, ISO_ERR_USAGE, "hours: more than 0 and at most 720");
    if (c->port == 0)
        return iso_fail(e, ISO_ERR_INTERNAL, "the endpoint is not bound yet");
    size_t open = 0;
    for (size_t i = 0; i < c->token_count; i++)
        open += !c->tokens[i]->is_used && iso_c_token_is_open(c, c->tokens[i]);
    if (open >= 10000)
        return iso_fail(e, ISO_ERR_RESOURCE, "10000 tokens are outstanding");
    iso_enrol_line l = {.port = c->port};
    iso_token_keys keys;
    do
        c->entropy.fill(c->entropy.ctx, &l.token, sizeof l.token);
    while (iso_c_token_by_id(c, l.token.id));
    iso_token_derive(&l.token, &keys);
    memcpy(l.host, c->host, sizeof l.host);
    memcpy(l.coordinator_pk, c->identity.transport_pk, 32);
    memcpy(l.root_fingerprint, c->identity.root.b, ISO_FINGERPRINT_BYTES);
    char *text = iso_c_alloc(c, ISO_ENROL_LINE_TEXT, 1);
    if (!text)
        return iso_nomem(e, ISO_ENROL_LINE_TEXT);
    iso_err err = iso_enrol_line_format(&l, text, e);
    iso_c_token *t = err ? NULL : iso_c_token_new(c, l.token.id);
    if (!err && (!t || !copy_ids(c, tasks ? *tasks : 0, &t->task_ids, &t->task_count)))
        err = iso_nomem(e, sizeof *t);
    if (!err) {
        memcpy(t->transport_pk, keys.transport_pk, 32);
        memcpy(t->proof_key, keys.proof_key, 32);
        memcpy(t->name, site, strlen(site) + 1);
        t->created_ms = c->wall;
        t->expires_ms = c->wall + (uint64_t)(hours * 3600e3);
        iso_c_save_token(c, t, ISO_OP_INSERT);
        iso_c_audit(c, ISO_AUDIT_TOKEN, NULL, NULL, "\"site\":\"%s\",\"token\":\"%s\"", site,
                    iso_c_hex(c, t->id, 4));
        iso_c_emit(c, ISO_CX_ADMITTED);
        *line = text;
    }
    memset(&keys, 0, sizeof keys);
    memset(&l, 0, sizeof l);
    return err;
}

/* ---- C1: enrolment ---- */

static void reply_enrolled(iso_coord *c, iso_c_peer *p, const iso_msg *m, const iso_c_site *s)
{
    iso_msg_enroll_reply *r = &iso_c_send(c, p, ISO_MSG_ENROLL_REPLY, m->id)->enroll_reply;
    memcpy(r->site_id, s->id, 16);
    r->state = s->state;
    r->roster_version = c->identity.roster_version;
    memcpy(r->root_digest, c->identity.root.b, 32);
    iso_c_cut(c, p, "enrolled: comes back with its own key");
}

void iso_c_on_enroll(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    const iso_msg_enroll *q = &m->enroll;
    iso_c_token *t = p->token;
    uint8_t id[16], bytes[ISO_ENROL_BYTES];
    iso_site_id(q->transport_pk, q->sign_pk, id);
    iso_enrol_bytes(c->identity.federation, t->id, p->nonce, q->transport_pk, q->sign_pk, bytes);
    if (!c->sealer.mac_verify(c->sealer.ctx, t->proof_key, bytes, sizeof bytes, q->mac)) {
        t->wrong_macs++; /* S20: five burn it */
        iso_c_save_token(c, t, ISO_OP_PUT);
        if (t->wrong_macs >= WRONG_MACS_BURN)
            iso_c_emit(c, ISO_CX_ADMITTED);
        iso_c_refuse(c, p, m->id, ISO_CODE_MAC, t->id, 4, "wrong proof for this token");
        iso_c_cut(c, p, "wrong proof for its token");
        return;
    }
    if (!c->sealer.verify(c->sealer.ctx, ISO_LABEL_ENROL, q->sign_pk, bytes, sizeof bytes,
                          q->signature)) {
        iso_c_refuse(c, p, m->id, ISO_CODE_SIGNATURE, t->id, 4,
                     "not signed by the signing key that it names");
        iso_c_cut(c, p, "enrolment not signed");
        return;
    }
    if (t->is_used) {
        iso_c_site *known = iso_c_site_by_id(c, id);
        if (known && memcmp(t->site_id, id, 16) == 0) {
            reply_enrolled(c, p, m, known);
            return;
        }
        /* It shows a copied token. */
        iso_c_audit(c, ISO_AUDIT_ALARM, t->site_id, NULL,
                    "\"alarm\":\"token used twice\",\"token\":\"%s\"", iso_c_hex(c, t->id, 4));
        iso_c_log(c, ISO_LOG_WARN, "token_used_twice", "site=%s token=%s", t->name,
                  iso_c_hex(c, t->id, 4));
        iso_c_refuse(c, p, m->id, ISO_CODE_TOKEN_USED, t->id, 4,
                     "this token enrolled another installation already: ask for a new one");
        iso_c_cut(c, p, "token used");
        return;
    }
    const char *name = t->name[0] ? t->name : q->name;
    iso_c_site *namesake = iso_c_site_by_name(c, name);
    if (iso_c_site_by_id(c, id) || (namesake && namesake->state != ISO_SITE_REVOKED)) {
        iso_c_refuse(c, p, m->id, ISO_CODE_NAME_TAKEN, t->id, 4, "site %s is enrolled already",
                     name);
        iso_c_cut(c, p, "name taken");
        return;
    }
    iso_c_site *s = iso_c_site_new(c, id);
    if (!s)
        return;
    memcpy(s->name, name, strlen(name) + 1);
    memcpy(s->transport_pk, q->transport_pk, 32);
    memcpy(s->sign_pk, q->sign_pk, 32);
    s->state = c->config.approve ? ISO_SITE_PENDING : ISO_SITE_ACTIVE;
    s->enrolled_ms = c->wall;
    if ((s->task_ids = iso_calloc(t->task_count, 16)) != NULL) {
        memcpy(s->task_ids, t->task_ids, t->task_count * 16);
        s->task_count = t->task_count;
    }
    iso_c_site_tasks(c, s);
    t->is_used = true;
    memcpy(t->site_id, id, 16);
    iso_c_save_token(c, t, ISO_OP_PUT);
    iso_c_save_site(c, s, ISO_OP_INSERT);
    iso_c_audit(c, ISO_AUDIT_ENROL, id, NULL, "\"site\":\"%s\",\"state\":\"%s\"", s->name,
                iso_site_state_name(s->state));
    iso_c_log(c, ISO_LOG_INFO, "site_enrolled", "site=%s state=%s", s->name,
              iso_site_state_name(s->state));
    iso_c_emit(c, ISO_CX_ADMITTED);
    reply_enrolled(c, p, m, s);
}

/* ---- C2: what an operator does to a site ---- */

static void withdraw_pending(iso_coord *c, const iso_c_site *s, iso_code code, const char *why)
{
    for (size_t i = c->rounds_with_details; i < c->round_count; i++)
        for (size_t k = 0; k < c->rounds[i]->update_count; k++) {
            iso_c_update *u = c->rounds[i]->updates[k];
            if (u->site != s || u->state != ISO_UPDATE_PENDING)
                continue;
            u->state = ISO_UPDATE_REFUSED;
            u->code = code;
            free(u->sentence);
            u->sentence = iso_strdup(why);
            iso_c_save_update(c, u, ISO_OP_PUT);
            iso_c_audit(c, ISO_AUDIT_REFUSED, s->id, &u->header_digest, "\"code\":\"%s\"",
                        iso_code_name(code));
        }
}

iso_err iso_c_site_set_state(iso_coord *c, iso_c_site *s, iso_site_state state, const char *by,
                             const char *reason, bool withdraw, iso_error *e)
{
    if (s->state == ISO_SITE_REVOKED)
        return iso_fail(e, ISO_ERR_NO, "site %s is revoked: a revoked identity stays so", s->name);
    if (s->state == state)
        return iso_fail(e, ISO_ERR_NO, "site %s is %s already", s->name,
                        iso_site_state_name(state));
    bool is_revoked = state == ISO_SITE_REVOKED;
    iso_audit_type type = is_revoked                      ? ISO_AUDIT_REVOKE
                          : state == ISO_SITE_QUARANTINED ? ISO_AUDIT_QUARANTINE
                                                          : ISO_AUDIT_APPROVE;
    s->state = state;
    iso_c_audit(c, type, s->id, NULL, "\"by\":\"%s\",\"reason\":\"%s\",\"site\":\"%s\"",
                iso_c_quote(c, by), iso_c_quote(c, reason), s->name);
    if (is_revoked)
        s->revoked_seq = c->audit_seq;
    if (withdraw)
        withdraw_pending(c, s, is_revoked ? ISO_CODE_REVOKED : ISO_CODE_QUARANTINED,
                         is_revoked ? "withdrawn: its site was revoked"
                                    : "withdrawn: its site is quarantined");
    iso_c_save_site(c, s, ISO_OP_PUT);
    if (is_revoked)
        iso_c_uploads_drop(c, s, 0, ISO_CODE_REVOKED, "the site was revoked");
    iso_c_log(c, ISO_LOG_WARN, "site_state", "site=%s state=%s by=\"%s\" reason=\"%s\"", s->name,
              iso_site_state_name(state), iso_c_quote(c, by), iso_c_quote(c, reason));
    if (is_revoked) {
        iso_c_emit(c, ISO_CX_ADMITTED);
        for (size_t i = 0; i < c->peer_count; i++)
            if (c->peers[i]->site == s)
                iso_c_cut(c, c->peers[i], "revoked");
    } else if (state == ISO_SITE_ACTIVE && s->peer && s->peer->state == PEER_PENDING) {
        s->peer->state = PEER_READY;
        iso_c_greet(c, s);
    }
    return ISO_OK;
}

void iso_c_notify(iso_coord *c, iso_c_site *s, iso_code code, const uint8_t update_id[16],
                  const char *sentence)
{
    if (s->notice_count >= ISO_NOTICES_MAX) { /* the oldest was told often enough */
        iso_c_delete_notice(c, s, s->notices[0].event);
        memmove(s->notices, s->notices + 1, (s->notice_count - 1) * sizeof *s->notices);
        s->notice_count--;
    }
    iso_c_notice *wider = realloc(s->notices, (s->notice_count + 1) * sizeof *wider);
    if (!wider) {
        c->is_out_of_memory = true;
        return;
    }
    s->notices = wider;
    iso_c_notice *n = &s->notices[s->notice_count++];
    *n = (iso_c_notice){.event = s->next_event++, .code = code};
    if (update_id)
        memcpy(n->update_id, update_id, 16);
    size_t bytes = strlen(sentence);
    if (bytes >= sizeof n->sentence)
        bytes = sizeof n->sentence - 1;
    memcpy(n->sentence, sentence, bytes);
    iso_c_save_notice(c, s, n);
    iso_c_save_site(c, s, ISO_OP_PUT);
}
