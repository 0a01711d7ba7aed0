/* Who is who at the site: the roster's steps and the coordinator's signed audit heads
 * (specs/security.md S14, S92 root and timestamp, S105, S108).
 *
 * The first roster is checked against the root fingerprint of the enrolment line; each later one
 * must be the next version, signed by the root key of the one held. */
#include "client/agent_inner.h"

#include <stdlib.h>
#include <string.h>

enum { ROSTER_BLOB_MAX = ISO_MANIFEST_MAX_BYTES + 16384 };

void agent_roster_offered(iso_agent *a, const iso_msg_roster_offer *m)
{
    uint64_t held = a->roster ? a->roster->version : 0;
    if (m->version <= held)
        return;
    a->offered_roster = m->version;
    memcpy(a->offered_roster_digest.b, m->digest, 32);
    agent_fetch_want(a, FETCH_ROSTER, &a->offered_roster_digest, 0, ROSTER_BLOB_MAX);
}

/* The container of S32's form with a roster's file names: u32 n, then u16 length, name, u64 size,
 * bytes. Views into `bytes`. False unless exactly root.pub, roster.json, its signature and, when
 * the root changes, a second signature are in it, in order. */
typedef struct {
    iso_span root, text, signature, second;
} roster_parts;

static bool unpack(const uint8_t *p, size_t size, roster_parts *out)
{
    static const char *const names[] = {"root.pub", "roster.json", "roster.json.minisig",
                                        "roster.json.minisig2"};
    iso_span *parts[] = {&out->root, &out->text, &out->signature, &out->second};
    memset(out, 0, sizeof *out);
    if (size < 4)
        return false;
    uint32_t n = iso_get_u32(p);
    if (n != 3 && n != 4)
        return false;
    size_t at = 4;
    for (uint32_t i = 0; i < n; i++) {
        size_t name_bytes = strlen(names[i]);
        if (size - at < 2 + name_bytes + 8 || iso_get_u16(p + at) != name_bytes ||
            memcmp(p + at + 2, names[i], name_bytes) != 0)
            return false;
        at += 2 + name_bytes;
        uint64_t bytes = iso_get_u64(p + at);
        at += 8;
        if (bytes > size - at)
            return false;
        *parts[i] = (iso_span){p + at, (size_t)bytes};
        at += (size_t)bytes;
    }
    return at == size;
}

/* First 20 bytes of the digest of the file root.pub, as the enrolment line names it. */
static bool is_pinned_root(const iso_agent *a, const iso_span *root)
{
    iso_digest d = iso_digest_of(root->data, root->size);
    return memcmp(d.b, a->config.root_fingerprint, ISO_FINGERPRINT_BYTES) == 0;
}

void agent_roster_fetched(iso_agent *a, const iso_digest *digest, const void *bytes, size_t size)
{
    iso_error error = {0};
    roster_parts parts;
    iso_minisign_public root;
    iso_roster *roster = iso_calloc(1, sizeof *roster);
    bool is_taken = false;
    if (!roster) {
        a->is_broken = true;
        return;
    }
    if (!unpack(bytes, size, &parts)) {
        iso_fail(&error, ISO_ERR_DATA, "roster: the container is malformed");
    } else if (a->roster) {
        is_taken = iso_roster_step(a->roster, parts.text.data, parts.text.size,
                                   parts.signature.data, parts.signature.size, parts.second.data,
                                   parts.second.size, roster, &error) == ISO_OK;
    } else if (!is_pinned_root(a, &parts.root)) {
        iso_fail(&error, ISO_ERR_TRUST,
                 "roster: root.pub is not the one that the enrolment line names");
    } else if (iso_minisign_public_parse(parts.root.data, parts.root.size, "root.pub", &root,
                                         &error) == ISO_OK) {
        is_taken = iso_roster_verify(&root, parts.text.data, parts.text.size, parts.signature.data,
                                     parts.signature.size, roster, &error) == ISO_OK;
        if (is_taken && memcmp(roster->federation_id, a->config.federation_id, 16) != 0) {
            iso_fail(&error, ISO_ERR_TRUST, "roster: it is of another federation");
            is_taken = false;
        }
    }
    if (!is_taken) {
        char quoted[2 * ISO_ERROR_BYTES];
        iso_log_quote(quoted, sizeof quoted, error.text);
        agent_log(a, ISO_LOG_ERROR, "roster_refused", "error=\"%s\"", quoted);
        free(roster);
        return;
    }
    free(a->own_roster);
    a->own_roster = roster;
    a->roster = roster;
    a->roster_container = *digest;
    agent_save_roster(a, parts.text.data, parts.text.size);
    if (a->has_early_head) { /* said in the greeting, before its key was known */
        iso_head head;
        iso_span span = {a->early_head, sizeof a->early_head};
        a->has_early_head = false;
        if (agent_head_said(a, &span, &head))
            agent_save_meta(a);
    }
    agent_commit(a); /* K10 */
    agent_log(a, ISO_LOG_INFO, "roster", "version=%llu", (unsigned long long)roster->version);
}

static void conflict(iso_agent *a, const char *why)
{
    if (!a->has_conflict)
        agent_log(a, ISO_LOG_ERROR, "history_conflict",
                  "reason=\"%s\" remedy=\"isofed releases accept-epoch, if the coordinator was "
                  "restored on purpose\"",
                  why);
    a->has_conflict = true;
}

bool agent_head_said(iso_agent *a, const iso_span *said, iso_head *out)
{
    if (said->size == 0)
        return false;
    if (!a->roster) {
        if (said->size == sizeof a->early_head) {
            memcpy(a->early_head, said->data, said->size);
            a->has_early_head = true;
        }
        return false;
    }
    iso_error error = {0};
    iso_head head;
    if (iso_head_check(said->data, said->size, a->roster->audit_pk, &a->seams.sealer, &head,
                       &error) != ISO_OK) {
        agent_log(a, ISO_LOG_ERROR, "head_refused", "reason=\"signature of the audit head\"");
        return false;
    }
    if (memcmp(head.federation_id, a->config.federation_id, 16) != 0 || head.epoch != a->epoch) {
        agent_log(a, ISO_LOG_ERROR, "head_refused", "reason=\"of another federation or epoch\"");
        return false;
    }
    *out = head;
    const iso_head *held = &a->head_fields;
    if (a->has_head) {
        /* A chain that ends before what we hold, or says something else there, was cut or
         * rewritten (S105 table); with a new epoch it was restored from a backup. */
        if (head.seq < held->seq) {
            conflict(a, "its history ends before the audit head held here");
            return true;
        }
        if (head.seq == held->seq && !iso_digest_equal(&head.h, &held->h)) {
            conflict(a, "its history differs from the audit head held here");
            return true;
        }
        if (head.seq == held->seq && head.time_ms <= held->time_ms)
            return true;
    }
    memcpy(a->head, said->data, sizeof a->head);
    a->head_fields = head;
    a->has_head = true;
    agent_save_head(a);
    agent_save_meta(a);
    return true;
}

void agent_accept_epoch(iso_agent *a)
{
    if (!a->has_conflict)
        return;
    a->has_conflict = false;
    a->has_head = false; /* the next one said is taken as it is */
    agent_save_meta(a);
    agent_commit(a);
    agent_log(a, ISO_LOG_WARN, "history_accepted", "by=operator");
    if (a->link == ISO_AS_ONLINE) { /* ask again what is offered now */
        agent_link_lost(a, ISO_DOWN_LOST, "history accepted: greeting again");
        a->next_try_ms = a->mono;
    }
}
