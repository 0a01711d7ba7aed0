/* Downloads: blobs by digest, window by window, resumed where they stopped (specs/security.md S51,
 * S53, S60). One at a time.
 *
 * Small things that the core itself reads (roster, manifests, signatures) stay in memory; files go
 * to the shell chunk by chunk and become blobs only when their digest holds. A file is recorded
 * when it is begun, so that what a crash leaves is found again. */
#include "client/agent_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static bool is_file(const agent_want *w)
{
    return w->purpose == FETCH_FILE;
}

static agent_blob *find_blob(const iso_agent *a, const iso_digest *digest)
{
    for (size_t i = 0; i < a->blob_count; i++)
        if (iso_digest_equal(&a->blobs[i].digest, digest))
            return &a->blobs[i];
    return NULL;
}

bool agent_has_blob(const iso_agent *a, const iso_digest *digest)
{
    const agent_blob *b = find_blob(a, digest);
    return b && b->is_complete;
}

void agent_fetch_want(iso_agent *a, agent_purpose purpose, const iso_digest *digest, uint64_t bytes,
                      uint64_t max_bytes)
{
    if (purpose == FETCH_FILE && agent_has_blob(a, digest))
        return;
    const agent_want *active = &a->fetch.want;
    if (a->fetch.is_active && active->purpose == purpose &&
        iso_digest_equal(&active->digest, digest))
        return;
    for (size_t i = 0; i < a->want_count; i++)
        if (a->wants[i].purpose == purpose && iso_digest_equal(&a->wants[i].digest, digest))
            return;
    if (a->want_count >= AGENT_WANTS_MAX)
        return; /* asked again by whoever still needs it */
    agent_want *w = agent_grow(a, &a->wants, &a->want_count, sizeof *w);
    if (!w)
        return;
    *w = (agent_want){.purpose = purpose,
                      .digest = *digest,
                      .bytes = bytes,
                      .max_bytes = max_bytes,
                      .is_alias = purpose == FETCH_SIGNATURE};
}

static void stop_fetch(iso_agent *a)
{
    iso_buf_free(&a->fetch.memory);
    memset(&a->fetch, 0, sizeof a->fetch);
}

static void drop_want(iso_agent *a, size_t i)
{
    memmove(&a->wants[i], &a->wants[i + 1], (a->want_count - i - 1) * sizeof *a->wants);
    a->want_count--;
}

void agent_fetch_forget(iso_agent *a, agent_purpose purpose, const iso_digest *digest)
{
    for (size_t i = a->want_count; i-- > 0;)
        if (a->wants[i].purpose == purpose && iso_digest_equal(&a->wants[i].digest, digest))
            drop_want(a, i);
    if (a->fetch.is_active && a->fetch.want.purpose == purpose &&
        iso_digest_equal(&a->fetch.want.digest, digest))
        stop_fetch(a);
}

static void failed(iso_agent *a, const agent_want *want, const char *why)
{
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, want->digest.b, 32);
    agent_log(a, ISO_LOG_WARN, "fetch_failed", "blob=%.16s reason=\"%s\"", hex, why);
    const iso_digest digest = want->digest;
    switch (want->purpose) {
    case FETCH_ROSTER:
        break; /* offered again at the next greeting */
    case FETCH_MANIFEST:
    case FETCH_SIGNATURE:
    case FETCH_CHAIN:
        agent_release_blob_failed(a, &digest, why);
        break;
    case FETCH_CANDIDATE:
        agent_eval_blob_failed(a, &digest, why);
        break;
    case FETCH_FILE:
        agent_invite_blob_failed(a, &digest, why);
        agent_release_blob_failed(a, &digest, why);
        agent_eval_blob_failed(a, &digest, why);
        break;
    }
}

static void give_up(iso_agent *a, const char *why)
{
    agent_want want = a->fetch.want;
    if (is_file(&want)) {
        agent_effect(a, ISO_AX_FETCH_DROP)->digest = want.digest;
        agent_blob *b = find_blob(a, &want.digest);
        if (b) {
            agent_delete(a, ISO_AT_BLOB, b->digest.b, 32);
            agent_commit(a);
            *b = a->blobs[--a->blob_count];
        }
    }
    stop_fetch(a);
    failed(a, &want, why);
}

static void completed(iso_agent *a)
{
    agent_want want = a->fetch.want;
    if (is_file(&want)) {
        agent_blob *b = find_blob(a, &want.digest);
        if (b) {
            b->is_complete = true;
            agent_save_blob(a, b);
            agent_commit(a);
        }
        stop_fetch(a);
        return;
    }
    iso_buf memory = a->fetch.memory;
    a->fetch.memory = (iso_buf){0};
    stop_fetch(a);
    switch (want.purpose) {
    case FETCH_ROSTER:
        agent_roster_fetched(a, &want.digest, memory.data, memory.size);
        break;
    case FETCH_CANDIDATE:
        agent_eval_bytes(a, &want.digest, memory.data, memory.size);
        break;
    default:
        agent_release_bytes(a, want.purpose, &want.digest, memory.data, memory.size);
        break;
    }
    iso_buf_free(&memory);
}

static void request(iso_agent *a)
{
    agent_fetch *f = &a->fetch;
    iso_msg *m = agent_send(a, ISO_MSG_BLOB_GET, NULL);
    memcpy(m->blob_get.digest, f->want.digest.b, 32);
    m->blob_get.from_chunk = f->next;
    m->blob_get.credit = a->credit;
    f->granted = f->next + a->credit;
    f->request = m->id;
    f->deadline_ms = a->mono + a->config.reply_ms;
}

void agent_fetch_next(iso_agent *a)
{
    if (!agent_is_online(a) || a->fetch.is_active || a->want_count == 0)
        return;
    agent_fetch *f = &a->fetch;
    f->want = a->wants[0];
    f->is_active = true;
    drop_want(a, 0);
    if (!is_file(&f->want)) {
        f->state = FETCH_RUNNING;
        request(a);
        return;
    }
    if (a->disk_free && a->disk_free < a->config.disk_floor_bytes + f->want.bytes) {
        char why[ISO_SENTENCE_MAX];
        snprintf(why, sizeof why, "%llu bytes needed, %llu free with a floor of %llu [disk_full]",
                 (unsigned long long)f->want.bytes, (unsigned long long)a->disk_free,
                 (unsigned long long)a->config.disk_floor_bytes);
        give_up(a, why);
        return;
    }
    if (!find_blob(a, &f->want.digest)) {
        agent_blob *b = agent_grow(a, &a->blobs, &a->blob_count, sizeof *b);
        if (!b)
            return;
        b->digest = f->want.digest;
        b->bytes = f->want.bytes;
        agent_save_blob(a, b);
        agent_commit(a);
    }
    f->state = FETCH_OPENING;
    iso_agent_effect *x = agent_effect(a, ISO_AX_FETCH_OPEN);
    x->digest = f->want.digest;
    x->bytes = f->want.bytes;
    x->chunk_bytes = a->chunk_bytes;
}

void agent_fetch_lost(iso_agent *a)
{
    agent_fetch *f = &a->fetch;
    if (!f->is_active || f->state == FETCH_CLOSING)
        return; /* closing needs no link */
    agent_want want = f->want;
    stop_fetch(a);
    agent_want *w = agent_grow(a, &a->wants, &a->want_count, sizeof *w);
    if (!w)
        return;
    memmove(a->wants + 1, a->wants, (a->want_count - 1) * sizeof *a->wants);
    a->wants[0] = want;
}

/* What a chunk says of its blob must fit what was asked for, and never change (S92, endless data).
 */
static const char *check_chunk(const iso_agent *a, const iso_msg_blob_chunk *m, size_t bytes)
{
    const agent_fetch *f = &a->fetch;
    if (m->size > f->want.max_bytes || (f->want.bytes && m->size != f->want.bytes))
        return "its size is not what was announced";
    if (f->has_size && (m->size != f->size || m->count != f->count))
        return "its size changed while it was sent";
    if (m->count != (m->size + a->chunk_bytes - 1) / a->chunk_bytes)
        return "its chunks do not add up to its size";
    if (m->count == 0)
        return bytes == 0 ? NULL : "an empty blob with bytes";
    uint64_t at = (uint64_t)m->index * a->chunk_bytes;
    uint64_t left = m->size - at;
    if (bytes != (left < a->chunk_bytes ? left : a->chunk_bytes))
        return "a chunk has the wrong length";
    return NULL;
}

static void close_fetch(iso_agent *a)
{
    agent_fetch *f = &a->fetch;
    if (is_file(&f->want)) {
        f->state = FETCH_CLOSING;
        iso_agent_effect *x = agent_effect(a, ISO_AX_FETCH_CLOSE);
        x->digest = f->want.digest;
        x->bytes = f->size;
        return;
    }
    iso_digest got = a->seams.sealer.digest(
        a->seams.sealer.ctx, f->memory.data ? f->memory.data : (uint8_t *)"", f->memory.size);
    if (!f->want.is_alias && !iso_digest_equal(&got, &f->want.digest)) {
        give_up(a, "its digest is not the one asked for");
        return;
    }
    completed(a);
}

void agent_fetch_chunk(iso_agent *a, const iso_msg_blob_chunk *m, const uint8_t *body, size_t bytes)
{
    agent_fetch *f = &a->fetch;
    if (!f->is_active || f->state != FETCH_RUNNING ||
        memcmp(m->digest, f->want.digest.b, 32) != 0 || m->index != f->next)
        return; /* of a transfer given up, or sent twice */
    const char *why = check_chunk(a, m, bytes);
    if (why) {
        give_up(a, why);
        return;
    }
    f->has_size = true;
    f->size = m->size;
    f->count = m->count;
    f->tries = 0;
    f->deadline_ms = a->mono + a->config.reply_ms;
    if (bytes && is_file(&f->want)) {
        iso_agent_effect *x = agent_effect(a, ISO_AX_FETCH_WRITE);
        x->digest = f->want.digest;
        x->offset = (uint64_t)m->index * a->chunk_bytes;
        x->data = body;
        x->data_bytes = bytes;
        uint8_t *copy = agent_copy(a, body, bytes);
        x->data = copy;
    } else if (bytes && iso_buf_append(&f->memory, body, bytes, NULL) != ISO_OK) {
        a->is_broken = true;
        return;
    }
    if (m->count)
        f->next++;
    if (f->next >= f->count)
        close_fetch(a);
    else if (f->next == f->granted)
        request(a);
}

void agent_fetch_event(iso_agent *a, const iso_agent_event *ev)
{
    agent_fetch *f = &a->fetch;
    if (!f->is_active || !is_file(&f->want) || !iso_digest_equal(&f->want.digest, &ev->digest))
        return;
    if (ev->kind == ISO_AE_FETCH_READY && f->state == FETCH_OPENING) {
        f->state = FETCH_RUNNING;
        f->next = (uint32_t)(ev->offset / a->chunk_bytes);
        if (f->want.bytes && ev->offset >= f->want.bytes) { /* whole, but not yet checked */
            f->size = f->want.bytes;
            close_fetch(a);
            return;
        }
        if (a->link == ISO_AS_ONLINE)
            request(a);
        return;
    }
    if (ev->kind != ISO_AE_FETCH_DONE || f->state == FETCH_RUNNING)
        return;
    if (ev->code == ISO_OK) {
        completed(a);
    } else if (ev->code == ISO_ERR_DATA && f->bad == 0) {
        /* A damaged rest of an earlier run: once more from the beginning. */
        agent_effect(a, ISO_AX_FETCH_DROP)->digest = f->want.digest;
        iso_agent_effect *x = agent_effect(a, ISO_AX_FETCH_OPEN);
        x->digest = f->want.digest;
        x->bytes = f->want.bytes;
        x->chunk_bytes = a->chunk_bytes;
        f->bad++;
        f->has_size = false;
        f->next = 0;
        f->state = FETCH_OPENING;
    } else {
        give_up(a, ev->text ? ev->text : "it could not be stored");
    }
}

void agent_fetch_error(iso_agent *a, const iso_msg_error *m)
{
    agent_fetch *f = &a->fetch;
    if (!f->is_active || f->state != FETCH_RUNNING || m->about_id != f->request)
        return;
    if (iso_code_is_retryable(m->code)) {
        f->deadline_ms = a->mono + (m->retry_after_ms ? m->retry_after_ms : a->config.reply_ms);
        return;
    }
    char why[ISO_SENTENCE_MAX + 64];
    snprintf(why, sizeof why, "%s: %s", iso_code_name(m->code), m->sentence);
    give_up(a, why);
}

void agent_fetch_tick(iso_agent *a)
{
    agent_fetch *f = &a->fetch;
    if (!f->is_active || f->state != FETCH_RUNNING || a->link != ISO_AS_ONLINE ||
        a->mono < f->deadline_ms)
        return;
    if (++f->tries >= AGENT_TRIES)
        agent_link_lost(a, ISO_DOWN_LOST, "a download got no answer");
    else
        request(a);
}

iso_time agent_fetch_wake(const iso_agent *a)
{
    const agent_fetch *f = &a->fetch;
    return f->is_active && f->state == FETCH_RUNNING && a->link == ISO_AS_ONLINE ? f->deadline_ms
                                                                                 : AGENT_NEVER;
}

static void each_release(const agent_release *r, iso_agent_blob_fn *fn, void *arg)
{
    fn(arg, &r->manifest);
    fn(arg, &r->signature);
    for (size_t i = 0; i < r->file_count; i++)
        fn(arg, &r->files[i].digest);
}

void agent_each_blob(const iso_agent *a, iso_agent_blob_fn *fn, void *arg)
{
    for (size_t i = 0; i < a->config.task_count; i++)
        fn(arg, &a->tasks[i].head);
    for (size_t i = 0; i < a->invite_count; i++) {
        const agent_invite *v = &a->invites[i];
        if (v->state == INVITE_ACCEPTED) {
            fn(arg, &v->head);
            fn(arg, &v->base);
        } else if (v->state == INVITE_TRAINED) {
            fn(arg, &v->container);
        }
    }
    for (size_t i = 0; i < a->outbox_count; i++)
        if (a->outbox[i].has_file)
            fn(arg, &a->outbox[i].body);
    for (size_t i = 0; i < a->release_count; i++) {
        const agent_release *r = &a->releases[i];
        bool is_under_way =
            r->number > a->current && r->state != ISO_RS_REJECTED && r->state != ISO_RS_RETURNED;
        if (r->number == a->current || r->number == a->previous || is_under_way)
            each_release(r, fn, arg);
    }
    if (a->pending.phase != PENDING_NONE)
        for (size_t i = 0; i < a->pending.release.file_count; i++)
            fn(arg, &a->pending.release.files[i].digest);
    for (size_t i = 0; i < a->eval_count; i++) {
        fn(arg, &a->evals[i].config);
        fn(arg, &a->evals[i].model);
        fn(arg, &a->evals[i].head);
    }
}

typedef struct {
    const iso_digest *digest;
    bool is_found;
} search;

static void compare(void *arg, const iso_digest *digest)
{
    search *s = arg;
    s->is_found = s->is_found || iso_digest_equal(s->digest, digest);
}

void agent_collect(iso_agent *a)
{
    for (size_t i = a->blob_count; i-- > 0;) {
        agent_blob *b = &a->blobs[i];
        search s = {&b->digest, false};
        agent_each_blob(a, compare, &s);
        if (s.is_found || (a->fetch.is_active && iso_digest_equal(&a->fetch.want.digest, s.digest)))
            continue;
        for (size_t k = 0; k < a->want_count; k++)
            s.is_found = s.is_found || iso_digest_equal(&a->wants[k].digest, &b->digest);
        if (s.is_found)
            continue;
        agent_delete(a, ISO_AT_BLOB, b->digest.b, 32);
        agent_commit(a);
        agent_effect(a, b->is_complete ? ISO_AX_DELETE_BLOB : ISO_AX_FETCH_DROP)->digest =
            b->digest;
        a->blobs[i] = a->blobs[--a->blob_count];
    }
}

void iso_agent_live_blobs(const iso_agent *a, iso_agent_blob_fn *fn, void *arg)
{
    agent_each_blob(a, fn, arg);
    for (size_t i = 0; i < a->blob_count; i++)
        fn(arg, &a->blobs[i].digest);
}
