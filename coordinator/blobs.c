/* Serving blobs: which site may have which, and pieces by credit (specs/security.md S51, S60).
 * Nothing but what is named here leaves the coordinator: releases, roster, heads and adapters of
 * the site's own tasks, candidates under evaluation. */
#include "coordinator/inner.h"

#include <string.h>

typedef struct {
    const iso_c_site *site; /* NULL: everything (what is live at all) */
    iso_digest wanted;
    bool is_found;
    iso_digest blob; /* where its bytes are */
    uint64_t bytes;
} search;

static bool offer(search *s, const iso_digest *name, const iso_digest *blob, uint64_t bytes)
{
    if (!iso_digest_equal(&s->wanted, name) || iso_digest_is_zero(name))
        return false;
    s->is_found = true;
    s->blob = *blob;
    s->bytes = bytes;
    return true;
}

void iso_c_signature_alias(const iso_coord *c, const iso_digest *manifest, iso_digest *out)
{
    uint8_t text[16 + 32];
    memcpy(text, "isofed-minisig-1", 16);
    memcpy(text + 16, manifest->b, 32);
    *out = c->sealer.digest(c->sealer.ctx, text, sizeof text);
}

static bool in_release(const iso_coord *c, search *s, const iso_c_release *r)
{
    iso_digest alias;
    iso_c_signature_alias(c, &r->manifest, &alias);
    if (offer(s, &r->manifest, &r->manifest, r->manifest_bytes) ||
        offer(s, &alias, &r->signature, r->signature_bytes))
        return true;
    static const uint8_t everybody[16];
    for (size_t i = 0; i < r->file_count; i++) {
        const iso_c_file *f = &r->files[i];
        int task = iso_c_task_by_id(c, f->task_id);
        bool is_for_site =
            memcmp(f->task_id, everybody, 16) == 0 || (task >= 0 && (s->site->tasks >> task & 1));
        if (is_for_site && offer(s, &f->digest, &f->digest, f->bytes))
            return true;
    }
    return false;
}

static bool in_candidates(search *s, const iso_c_round *r)
{
    for (size_t i = 0; i < r->candidate_count; i++) {
        const iso_c_candidate *x = &r->candidates[i];
        if (offer(s, &x->manifest, &x->manifest, x->bytes))
            return true;
        for (uint32_t k = 0; k < x->file_count; k++)
            if (offer(s, &x->files[k].digest, &x->files[k].digest, x->files[k].bytes))
                return true;
    }
    return false;
}

static bool find(const iso_coord *c, search *s)
{
    for (size_t i = c->roster_count; i > 0; i--)
        if (offer(s, &c->rosters[i - 1].container, &c->rosters[i - 1].container,
                  c->rosters[i - 1].bytes))
            return true;
    for (size_t i = c->release_count; i > 0 && i + 2 > c->release_count; i--)
        if (in_release(c, s, c->releases[i - 1]))
            return true;
    /* A site that was away follows the line of manifests back to what it holds (S92). */
    size_t chained = c->release_count > RELEASES_CHAINED ? c->release_count - RELEASES_CHAINED : 0;
    for (size_t i = chained; i < c->release_count; i++)
        if (offer(s, &c->releases[i]->manifest, &c->releases[i]->manifest,
                  c->releases[i]->manifest_bytes))
            return true;
    const iso_c_round *r = iso_c_round_active(c);
    if (r && r->state == ROUND_EVALUATING && in_candidates(s, r))
        return true;
    for (size_t i = 0; i < c->config.task_count; i++) {
        const iso_c_task *t = &c->tasks[i];
        if (!(s->site->tasks >> i & 1))
            continue;
        if (offer(s, &t->head, &t->head, t->head_bytes) ||
            offer(s, &t->adapter, &t->adapter, t->adapter_bytes))
            return true;
    }
    return false;
}

static bool is_damaged(const iso_coord *c, const iso_digest *d)
{
    for (size_t i = 0; i < c->damaged_count; i++)
        if (iso_digest_equal(&c->damaged[i], d))
            return true;
    return false;
}

/* "Send me `credit` chunks from `from_chunk` on": stateless, so a repeated or later request is
 * simply served again; the receiver grants what it can take. */
void iso_c_on_blob_get(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    const iso_msg_blob_get *g = &m->blob_get;
    search s = {.site = p->site};
    memcpy(s.wanted.b, g->digest, 32);
    if (!find(c, &s) || is_damaged(c, &s.blob)) {
        iso_c_refuse(c, p, m->id, ISO_CODE_BLOB_UNKNOWN, g->digest, 32,
                     s.is_found ? "this blob is damaged here" : "no blob of that name for you");
        return;
    }
    uint64_t count64 = (s.bytes + ISO_CHUNK_MAX_BYTES - 1) / ISO_CHUNK_MAX_BYTES;
    uint32_t count = count64 > ISO_CHUNKS_MAX ? ISO_CHUNKS_MAX : (uint32_t)count64;
    uint32_t credit = g->credit < c->config.credit ? g->credit : c->config.credit;
    if (count != 0 && g->from_chunk >= count) {
        iso_c_refuse(c, p, m->id, ISO_CODE_CHUNK, g->digest, 32, "it has %u chunks", count);
        return;
    }
    for (uint32_t i = g->from_chunk; i < g->from_chunk + credit && (i < count || count == 0); i++) {
        uint64_t offset = (uint64_t)i * ISO_CHUNK_MAX_BYTES;
        uint64_t left = s.bytes - offset;
        iso_msg_blob_chunk *k = &iso_c_send(c, p, ISO_MSG_BLOB_CHUNK, m->id)->blob_chunk;
        memcpy(k->digest, g->digest, 32);
        k->index = i;
        k->count = count;
        k->size = s.bytes;
        iso_coord_effect *x = &c->out->items[c->out->count - 1];
        x->is_blob_piece = true;
        x->digest = s.blob;
        x->piece_offset = offset;
        x->piece_bytes = left < ISO_CHUNK_MAX_BYTES ? (uint32_t)left : ISO_CHUNK_MAX_BYTES;
        if (count == 0)
            break;
    }
    if (g->from_chunk + credit >= count)
        iso_c_roster_fetched(c, p, &s.blob);
}

/* ---- what is live (S84) ---- */

static void all_of_release(const iso_coord *c, const iso_c_release *r, iso_coord_blob_fn *fn,
                           void *arg)
{
    (void)c;
    fn(arg, &r->manifest, r->manifest_bytes, "release");
    fn(arg, &r->signature, r->signature_bytes, "release");
    for (size_t i = 0; i < r->file_count; i++)
        fn(arg, &r->files[i].digest, r->files[i].bytes, "release");
}

void iso_coord_live_blobs(const iso_coord *c, iso_coord_blob_fn *fn, void *arg)
{
    if (c->identity.roster_version) /* before start it is not among the recorded ones */
        fn(arg, &c->identity.roster, c->identity.roster_bytes, "roster");
    for (size_t i = 0; i < c->roster_count; i++)
        fn(arg, &c->rosters[i].container, c->rosters[i].bytes, "roster");
    for (size_t i = 0; i < c->config.task_count; i++) {
        if (!iso_digest_is_zero(&c->tasks[i].head))
            fn(arg, &c->tasks[i].head, c->tasks[i].head_bytes, "head");
        if (!iso_digest_is_zero(&c->tasks[i].adapter))
            fn(arg, &c->tasks[i].adapter, c->tasks[i].adapter_bytes, "adapter");
    }
    size_t first = c->release_count > RELEASES_KEPT ? c->release_count - RELEASES_KEPT : 0;
    size_t chained = c->release_count > RELEASES_CHAINED ? c->release_count - RELEASES_CHAINED : 0;
    for (size_t i = chained; i < first; i++)
        fn(arg, &c->releases[i]->manifest, c->releases[i]->manifest_bytes, "manifest");
    for (size_t i = first; i < c->release_count; i++)
        all_of_release(c, c->releases[i], fn, arg);
    for (size_t i = iso_c_first_detailed(c); i < c->round_count; i++) {
        const iso_c_round *r = c->rounds[i];
        for (size_t k = 0; k < r->update_count; k++)
            fn(arg, &r->updates[k]->blob, r->updates[k]->blob_bytes, "update");
        for (size_t k = 0; k < r->candidate_count; k++) {
            fn(arg, &r->candidates[k].manifest, r->candidates[k].bytes, "candidate");
            for (uint32_t f = 0; f < r->candidates[k].file_count; f++)
                fn(arg, &r->candidates[k].files[f].digest, r->candidates[k].files[f].bytes,
                   "candidate");
        }
        if (r->state == ROUND_SIGNING)
            fn(arg, &r->manifest, r->manifest_bytes, "manifest");
    }
}

static void note_live(void *arg, const iso_digest *d, uint64_t bytes, const char *what)
{
    (void)bytes;
    (void)what;
    iso_index_remove(arg, d->b);
}

/* Digests are random: their first half names them. */
void iso_c_delete_blobs_unless_live(iso_coord *c, const iso_digest *gone, size_t count)
{
    iso_index dead = {0};
    bool is_whole = true;
    for (size_t i = 0; i < count && is_whole; i++)
        if (!iso_digest_is_zero(&gone[i]))
            is_whole = iso_index_put(&dead, gone[i].b, (void *)(uintptr_t)&gone[i]);
    iso_coord_live_blobs(c, note_live, &dead);
    for (size_t i = 0; i < count && is_whole; i++) /* memory ran out: a later start sweeps them */
        if (iso_index_get(&dead, gone[i].b) == &gone[i])
            iso_c_emit(c, ISO_CX_DELETE_BLOB)->digest = gone[i];
    iso_index_free(&dead);
}
