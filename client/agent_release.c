/* A release from its offer to its files (specs/security.md S90-S93, S96, S97, S108).
 *
 * Order of S93: head signature, number, sizes, manifest signature, canonical text, federation,
 * epoch, generation, chain of `previous`, ceilings and disk, blobs by digest, then the look inside
 * (agent_trial.c). Nothing is written before all checks of a step hold. */
#include "client/agent_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RETRY_MS = 60 * 1000, RETRY_DOUBLINGS = 6 };
static const uint64_t day_ms = 86400000ull;

/* Names of blobs are the seam's: the coordinator's core makes the same (simulation). */
static iso_digest digest_of(const iso_agent *a, const void *data, size_t bytes)
{
    return a->seams.sealer.digest(a->seams.sealer.ctx, data, bytes);
}

const iso_agent_file *agent_release_file(const agent_release *r, const char *path)
{
    for (size_t i = 0; i < r->file_count; i++)
        if (strcmp(r->files[i].path, path) == 0)
            return &r->files[i];
    return NULL;
}

agent_release *agent_find_release(iso_agent *a, uint64_t number)
{
    for (size_t i = 0; i < a->release_count; i++)
        if (a->releases[i].number == number)
            return &a->releases[i];
    return NULL;
}

void agent_release_clear(agent_release *r)
{
    for (size_t i = 0; i < r->file_count; i++)
        free((char *)(uintptr_t)r->files[i].path);
    free(r->files);
    free(r->tasks);
    free(r->reason);
    memset(r, 0, sizeof *r);
}

void agent_drop_release(iso_agent *a, size_t i)
{
    agent_release_clear(&a->releases[i]);
    memmove(&a->releases[i], &a->releases[i + 1], (a->release_count - i - 1) * sizeof *a->releases);
    a->release_count--;
}

void agent_pending_clear(iso_agent *a)
{
    agent_pending *p = &a->pending;
    if (p->phase == PENDING_MANIFEST) {
        agent_fetch_forget(a, FETCH_MANIFEST, &p->manifest);
        agent_fetch_forget(a, FETCH_SIGNATURE, &p->signature);
        agent_fetch_forget(a, FETCH_CHAIN, &p->chain_digest);
    }
    for (size_t i = 0; p->phase == PENDING_FILES && i < p->release.file_count; i++)
        agent_fetch_forget(a, FETCH_FILE, &p->release.files[i].digest);
    iso_buf_free(&p->manifest_text);
    iso_buf_free(&p->signature_text);
    agent_release_clear(&p->release);
    memset(p, 0, sizeof *p);
}

/* Something on the way failed that may work another time: the offer is taken up again later. */
static void put_off(iso_agent *a, const char *why)
{
    agent_log(a, ISO_LOG_WARN, "release_put_off", "number=%llu reason=\"%s\"",
              (unsigned long long)a->pending.number, why);
    agent_pending_clear(a);
    uint32_t n = a->offer.failures++;
    a->offer.retry_ms =
        a->mono + ((uint64_t)RETRY_MS << (n < RETRY_DOUBLINGS ? n : RETRY_DOUBLINGS));
    agent_collect(a);
}

/* What is offered does not hold: said upstream, and not looked at again until a new offer. */
static void refuse(iso_agent *a, uint64_t number, const char *why)
{
    static const float none[3];
    char quoted[2 * ISO_ERROR_BYTES];
    iso_log_quote(quoted, sizeof quoted, why);
    agent_log(a, ISO_LOG_ERROR, "release_refused", "number=%llu reason=\"%s\"",
              (unsigned long long)number, quoted);
    agent_verdict_send(a, number, ISO_VERDICT_UNVERIFIED, none, why);
    agent_pending_clear(a);
    a->offer.is_there = false;
    agent_collect(a);
}

/* The newest release seen of this epoch under that key, which a new number must follow: a number
 * run up by a stolen key ends with that key (S92, rollback and fast-forward). */
static const agent_release *newest_of_key(const iso_agent *a, const uint8_t key_id[8])
{
    const agent_release *newest = NULL;
    for (size_t i = 0; i < a->release_count; i++) {
        const agent_release *r = &a->releases[i];
        if (r->epoch == a->epoch && memcmp(r->key_id, key_id, 8) == 0 &&
            (!newest || r->number > newest->number))
            newest = r;
    }
    return newest;
}

void agent_release_offered(iso_agent *a, const iso_msg_release_offer *m)
{
    agent_offer *o = &a->offer;
    if (m->signed_head.size != sizeof o->head) {
        agent_log(a, ISO_LOG_ERROR, "release_refused", "number=%llu reason=\"no signed head\"",
                  (unsigned long long)m->number);
        return;
    }
    if (o->is_there && o->number == m->number && memcmp(o->manifest.b, m->manifest_digest, 32) == 0)
        o->retry_ms = a->mono; /* said again: no need to wait */
    else
        *o = (agent_offer){.failures = 0};
    o->is_there = true;
    o->number = m->number;
    o->valid_until_ms = m->valid_until_ms;
    o->bytes_total = m->bytes_total;
    memcpy(o->manifest.b, m->manifest_digest, 32);
    memcpy(o->base.b, m->base_digest, 32);
    memcpy(o->head, m->signed_head.data, sizeof o->head);
}

/* S96: with a clock a day before the running release's making nothing is judged by age. */
static bool is_clock_credible(iso_agent *a)
{
    const agent_release *r = a->current ? agent_find_release(a, a->current) : NULL;
    return !r || a->wall + day_ms >= r->created_ms;
}

static const char *check_offer(iso_agent *a, const agent_offer *o)
{
    iso_head head;
    iso_span span = {o->head, sizeof o->head};
    if (!agent_head_said(a, &span, &head))
        return "its signed head does not verify";
    agent_commit(a);
    if (a->has_conflict)
        return "the coordinator's history is not the one seen here";
    if (head.release != o->number || !iso_digest_equal(&head.manifest, &o->manifest))
        return "the signed head names another release";
    if (is_clock_credible(a) && o->valid_until_ms && o->valid_until_ms < a->wall)
        return "it has expired";
    if (!iso_digest_is_zero(&o->base) && !iso_digest_is_zero(&a->config.generation_digest) &&
        !iso_digest_equal(&o->base, &a->config.generation_digest))
        return "it is for another generation of the backbone";
    if (o->bytes_total > a->config.release_bytes)
        return "it is larger than this site's ceiling";
    return NULL;
}

static void take_up(iso_agent *a)
{
    agent_offer *o = &a->offer;
    agent_release *known = agent_find_release(a, o->number);
    if (known) { /* tried, installed or rejected before: said again, not done again */
        o->is_there = false;
        known->is_verdict_sent = false;
        if (!iso_digest_equal(&known->manifest, &o->manifest)) {
            refuse(a, o->number, "the number was seen with another content");
            return;
        }
        iso_head head;
        iso_span span = {o->head, sizeof o->head};
        if (agent_head_said(a, &span, &head)) /* each hour, so that age tells something (S105) */
            agent_commit(a);
        agent_verdicts_send(a);
        return;
    }
    const char *why = check_offer(a, o);
    if (a->has_conflict) { /* S108: nothing is refused for good, the site's operator decides */
        o->retry_ms = a->mono + RETRY_MS;
        return;
    }
    if (why) {
        refuse(a, o->number, why);
        return;
    }
    if (a->head_fields.time_ms + a->config.head_age_ms < a->wall)
        agent_log(a, ISO_LOG_WARN, "head_old", "time_ms=%llu",
                  (unsigned long long)a->head_fields.time_ms);
    agent_pending_clear(a);
    agent_pending *p = &a->pending;
    p->phase = PENDING_MANIFEST;
    p->number = o->number;
    p->manifest = o->manifest;
    p->offered_bytes = o->bytes_total;
    uint8_t named[16 + 32];
    memcpy(named, "isofed-minisig-1", 16);
    memcpy(named + 16, o->manifest.b, 32);
    p->signature = digest_of(a, named, sizeof named);
    agent_fetch_want(a, FETCH_MANIFEST, &p->manifest, 0, ISO_MANIFEST_MAX_BYTES);
    agent_fetch_want(a, FETCH_SIGNATURE, &p->signature, 0, AGENT_SIGNATURE_MAX);
}

/* "1.2.3" >= "1.2.0"; what is no such text counts as newer than anything. */
static bool is_new_enough(const char *have, const char *need)
{
    unsigned h[3] = {0}, n[3] = {0};
    if (sscanf(need, "%u.%u.%u", &n[0], &n[1], &n[2]) < 1)
        return false;
    sscanf(have, "%u.%u.%u", &h[0], &h[1], &h[2]);
    for (int i = 0; i < 3; i++)
        if (h[i] != n[i])
            return h[i] > n[i];
    return true;
}

static const char *check_manifest(iso_agent *a, const iso_manifest *m, const agent_release *newest,
                                  char *text, size_t text_bytes)
{
    const agent_pending *p = &a->pending;
    uint64_t total;
    if (memcmp(m->federation, a->config.federation_id, 16) != 0)
        return "it is of another federation";
    if (m->epoch != a->epoch)
        return "it is of another epoch";
    if (m->number != p->number)
        return "its number is not the one offered";
    if (!iso_digest_is_zero(&a->config.generation_digest) &&
        !iso_digest_equal(&m->generation_digest, &a->config.generation_digest))
        return "it is for another generation of the backbone";
    if (newest && m->number <= newest->number) {
        snprintf(text, text_bytes, "its number is not above %llu, which was seen here",
                 (unsigned long long)newest->number);
        return text;
    }
    if (m->previous_number != m->number - 1)
        return "it does not follow the number before it";
    if (newest && m->number - newest->number > AGENT_CHAIN_MAX)
        return "more releases were missed than can be followed";
    if (is_clock_credible(a) && m->valid_until_ms < a->wall)
        return "it has expired";
    if (!is_new_enough(a->config.software, m->min_software)) {
        snprintf(text, text_bytes, "it needs version %.32s, this is %.32s: upgrade the client",
                 m->min_software, a->config.software);
        return text;
    }
    if (m->file_count > ISO_RELEASE_FILES_MAX)
        return "it has too many files";
    if (!iso_manifest_total(m, &total) || total > a->config.release_bytes ||
        (p->offered_bytes && total > p->offered_bytes))
        return "its files are larger than announced or allowed";
    return NULL;
}

static bool is_foreign_head(const iso_agent *a, const char *path)
{
    char own[ISO_MANIFEST_PATH_MAX];
    if (strncmp(path, "heads/", 6) != 0)
        return false;
    for (size_t i = 0; i < a->config.task_count; i++) {
        snprintf(own, sizeof own, "heads/%s.safetensors", a->tasks[i].config->name);
        if (strcmp(path, own) == 0)
            return false;
    }
    return true; /* heads of other sites' tasks are of no use here (FED: fetched by their owners) */
}

/* What the site needs of a manifest. False when memory ran out. */
static bool fill_release(iso_agent *a, const iso_manifest *m, const uint8_t key_id[8])
{
    agent_pending *p = &a->pending;
    agent_release *r = &p->release;
    agent_release_clear(r);
    r->number = m->number;
    r->manifest = p->manifest;
    r->signature = digest_of(a, p->signature_text.data, p->signature_text.size);
    memcpy(r->key_id, key_id, 8);
    r->epoch = m->epoch;
    r->created_ms = m->created_ms;
    r->valid_until_ms = m->valid_until_ms;
    r->rollback_of = m->rollback_of;
    r->force = m->force;
    r->kind = m->kind;
    r->state = ISO_RS_FETCHED;
    r->files = iso_calloc(m->file_count, sizeof *r->files);
    r->tasks = iso_calloc(a->config.task_count, sizeof *r->tasks);
    if (!r->files || !r->tasks)
        return false;
    for (size_t i = 0; i < m->file_count; i++) {
        const iso_manifest_file *f = &m->files[i];
        if (is_foreign_head(a, f->path))
            continue;
        char *path = iso_strdup(f->path);
        if (!path)
            return false;
        r->files[r->file_count++] =
            (iso_agent_file){.path = path, .digest = f->digest, .bytes = f->size};
    }
    for (size_t i = 0; i < a->config.task_count; i++) {
        char path[ISO_MANIFEST_PATH_MAX];
        snprintf(path, sizeof path, "heads/%s.safetensors", a->tasks[i].config->name);
        const iso_agent_file *f = agent_release_file(r, path);
        if (!f)
            continue;
        agent_release_task *t = &r->tasks[r->task_count++];
        memcpy(t->task_id, a->tasks[i].config->id, 16);
        t->head = f->digest;
    }
    return true;
}

static void verify(iso_agent *a)
{
    agent_pending *p = &a->pending;
    iso_error error = {0};
    iso_arena arena = {0};
    iso_manifest m;
    char text[ISO_SENTENCE_MAX];
    uint8_t key_id[8] = {0};
    const char *why = NULL;
    const iso_buf *t = &p->manifest_text, *s = &p->signature_text;
    iso_agent_manifest_fn *check = a->seams.manifest;
    const iso_roster_release *key = NULL;
    if (iso_minisign_signer(s->data, s->size, "release.json.minisig", key_id, &error) == ISO_OK)
        key = iso_roster_release_key(a->roster, key_id, a->wall);
    if (!key)
        why = "it is not signed by a release key of the roster";
    else if (a->roster->threshold > 1)
        why = "the roster asks for two signatures, it has one";
    else if (check ? check(a->seams.manifest_ctx, &key->key, t->data, t->size, s->data, s->size,
                           &arena, &m, &error) != ISO_OK
                   : iso_manifest_verify(&key->key, t->data, t->size, s->data, s->size, &arena, &m,
                                         &error) != ISO_OK)
        why = error.text;
    const agent_release *newest = newest_of_key(a, key_id);
    if (!why)
        why = check_manifest(a, &m, newest, text, sizeof text);
    if (!why && newest && m.number == newest->number + 1 &&
        !iso_digest_equal(&m.previous_digest, &newest->manifest))
        why = "it does not follow the release held here";
    if (why) {
        refuse(a, p->number, why);
    } else if (!fill_release(a, &m, key_id)) {
        a->is_broken = true;
    } else if (newest && m.number > newest->number + 1) {
        p->chain_number = m.previous_number; /* missed some: see that the line is unbroken */
        p->chain_digest = m.previous_digest;
        agent_fetch_want(a, FETCH_CHAIN, &p->chain_digest, 0, ISO_MANIFEST_MAX_BYTES);
    } else {
        p->phase = PENDING_FILES;
    }
    iso_arena_free(&arena);
}

/* One manifest further back: its digest was named by the one after it, so it needs no signature. */
static void follow_chain(iso_agent *a, const void *bytes, size_t size)
{
    agent_pending *p = &a->pending;
    iso_error error = {0};
    iso_arena arena = {0};
    iso_manifest m;
    const agent_release *newest = newest_of_key(a, p->release.key_id);
    if (iso_manifest_parse(bytes, size, &arena, &m, &error) != ISO_OK)
        refuse(a, p->number, error.text);
    else if (m.number != p->chain_number || m.previous_number != m.number - 1 || !newest)
        refuse(a, p->number, "the line of releases before it has a gap");
    else if (m.previous_number > newest->number) {
        p->chain_number = m.previous_number;
        p->chain_digest = m.previous_digest;
        if (++p->chain_steps > AGENT_CHAIN_MAX)
            refuse(a, p->number, "the line of releases before it is too long");
        else
            agent_fetch_want(a, FETCH_CHAIN, &p->chain_digest, 0, ISO_MANIFEST_MAX_BYTES);
    } else if (!iso_digest_equal(&m.previous_digest, &newest->manifest)) {
        refuse(a, p->number, "the line of releases before it is not the one held here");
    } else {
        p->chain_number = 0;
        p->phase = PENDING_FILES;
    }
    iso_arena_free(&arena);
}

void agent_release_bytes(iso_agent *a, agent_purpose purpose, const iso_digest *digest,
                         const void *bytes, size_t size)
{
    agent_pending *p = &a->pending;
    if (p->phase != PENDING_MANIFEST)
        return;
    iso_buf *into = NULL;
    if (purpose == FETCH_MANIFEST && iso_digest_equal(digest, &p->manifest))
        into = &p->manifest_text;
    else if (purpose == FETCH_SIGNATURE && iso_digest_equal(digest, &p->signature))
        into = &p->signature_text;
    else if (purpose == FETCH_CHAIN && iso_digest_equal(digest, &p->chain_digest))
        follow_chain(a, bytes, size);
    if (!into || into->size)
        return;
    if (iso_buf_append(into, bytes, size, NULL) != ISO_OK) {
        a->is_broken = true;
        return;
    }
    if (p->manifest_text.size && p->signature_text.size)
        verify(a);
}

void agent_release_blob_failed(iso_agent *a, const iso_digest *digest, const char *why)
{
    const agent_pending *p = &a->pending;
    bool is_ours = false;
    if (p->phase == PENDING_MANIFEST)
        is_ours = iso_digest_equal(digest, &p->manifest) ||
                  iso_digest_equal(digest, &p->signature) ||
                  iso_digest_equal(digest, &p->chain_digest);
    for (size_t i = 0; p->phase == PENDING_FILES && i < p->release.file_count; i++)
        is_ours = is_ours || iso_digest_equal(digest, &p->release.files[i].digest);
    if (is_ours)
        put_off(a, why);
}

void agent_release_advance(iso_agent *a)
{
    agent_pending *p = &a->pending;
    const agent_offer *o = &a->offer;
    /* A newer offer takes the place of one that is still being fetched, never of a swap. */
    if (o->is_there && a->roster && agent_is_online(a) && a->mono >= o->retry_ms &&
        (p->phase == PENDING_NONE || (p->phase <= PENDING_FILES && p->number != o->number)))
        take_up(a);
    if (p->phase == PENDING_FILES) {
        bool is_whole = true;
        for (size_t i = 0; i < p->release.file_count; i++) {
            const iso_agent_file *f = &p->release.files[i];
            if (agent_has_blob(a, &f->digest))
                continue;
            is_whole = false;
            agent_fetch_want(a, FETCH_FILE, &f->digest, f->bytes, f->bytes);
        }
        if (is_whole) {
            p->phase = PENDING_INSPECT;
            p->check = 0;
        }
    }
    agent_trial_advance(a);
}

iso_time agent_release_wake(const iso_agent *a)
{
    iso_time wake = AGENT_NEVER;
    const agent_offer *o = &a->offer;
    if (o->is_there && a->pending.phase == PENDING_NONE && o->retry_ms > a->mono)
        wake = o->retry_ms;
    if (a->pending.phase != PENDING_NONE && a->pending.retry_ms > a->mono &&
        a->pending.retry_ms < wake)
        wake = a->pending.retry_ms;
    return wake;
}
