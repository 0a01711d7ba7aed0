/* Invariants of the coordinator over its whole state (specs/security.md 6.4). The simulation and
 * the tests ask after every step; the daemon of a dev build too. */
#include "coordinator/inner.h"

#include <string.h>

static iso_err broken(iso_error *e, const char *which, const char *what, uint64_t a, uint64_t b)
{
    return iso_fail(e, ISO_ERR_INTERNAL, "invariant %s: %s (%llu, %llu)", which, what,
                    (unsigned long long)a, (unsigned long long)b);
}

/* I1, I9, I10: every acknowledged update has one fate; one counts a site, task and round. */
static iso_err check_round(const iso_coord *c, const iso_c_round *r, iso_error *e)
{
    for (size_t i = 0; i < r->update_count; i++) {
        const iso_c_update *u = r->updates[i];
        if (u->round != r->number || iso_index_get(&c->update_by_id, u->id) != u)
            return broken(e, "I1", "an update stands in the wrong round", u->round, r->number);
        if (u->state == ISO_UPDATE_REFUSED && (u->code == ISO_CODE_OK || !u->sentence))
            return broken(e, "I1", "refused without code or sentence", u->sequence, r->number);
        if (u->state == ISO_UPDATE_PENDING && iso_c_round_has_ended(r))
            return broken(e, "I1", "pending in a round that has ended", u->sequence, r->number);
        if (u->sequence > u->site->sequence)
            return broken(e, "I9", "sequence above the site's", u->sequence, u->site->sequence);
        for (size_t k = 0; k < i; k++) {
            const iso_c_update *v = r->updates[k];
            if (u->site == v->site && memcmp(u->task_id, v->task_id, 16) == 0)
                return broken(e, "I10", "two updates of one site, task and round", u->sequence,
                              v->sequence);
        }
    }
    return ISO_OK;
}

static iso_err check_counts(const iso_coord *c, iso_error *e)
{
    iso_coord_stats s;
    iso_coord_get_stats(c, &s);
    if (s.receipts != s.used + s.refused + s.pending)
        return broken(e, "I1", "receipts differ from used + refused + pending", s.receipts,
                      s.used + s.refused + s.pending);
    size_t indexed = c->update_by_id.count, listed = 0;
    for (size_t i = c->rounds_with_details; i < c->round_count; i++)
        listed += c->rounds[i]->update_count;
    if (indexed != listed)
        return broken(e, "I1", "updates indexed and listed differ", indexed, listed);
    return ISO_OK;
}

/* I2: numbers rise; above the floor by one each. */
static iso_err check_releases(const iso_coord *c, iso_error *e)
{
    for (size_t i = 1; i < c->release_count; i++) {
        uint64_t before = c->releases[i - 1]->number, now = c->releases[i]->number;
        if (now != before + 1 && now != c->release_floor + 1)
            return broken(e, "I2", "release numbers do not rise by one", before, now);
    }
    for (size_t i = 0; i < c->release_count; i++) /* I3 */
        if (iso_digest_is_zero(&c->releases[i]->signature))
            return broken(e, "I3", "a release without signature", c->releases[i]->number, 0);
    return ISO_OK;
}

/* I6: ceilings of queues, credit and partial files. */
static iso_err check_ceilings(const iso_coord *c, iso_error *e)
{
    uint64_t credit = 0, pool = c->config.chunk_pool_bytes / ISO_CHUNK_MAX_BYTES;
    for (size_t i = 0; i < c->upload_count; i++) {
        const iso_c_upload *u = c->uploads[i];
        credit += u->credit;
        if (u->next_chunk + u->credit > u->h.chunk_count)
            return broken(e, "I6", "credit beyond the end of an upload", u->credit, u->next_chunk);
        if (u->site->state == ISO_SITE_REVOKED)
            return broken(e, "I5", "an upload of a revoked site", i, 0);
        if (u->site->uploads > UPLOADS_A_SITE)
            return broken(e, "I6", "too many uploads of a site", u->site->uploads, UPLOADS_A_SITE);
    }
    if (credit != c->stats.credit_chunks || credit > pool)
        return broken(e, "I6", "credit granted and pool", credit, pool);
    for (size_t i = 0; i < c->site_count; i++)
        if (c->sites[i]->notice_count > ISO_NOTICES_MAX)
            return broken(e, "I6", "too many notices", c->sites[i]->notice_count, ISO_NOTICES_MAX);
    return ISO_OK;
}

/* I5: nobody revoked is spoken to; a connection belongs to the site it was admitted as. */
static iso_err check_peers(const iso_coord *c, iso_error *e)
{
    for (size_t i = 0; i < c->peer_count; i++) {
        const iso_c_peer *p = c->peers[i];
        if (p->site && !p->is_cut && p->state == PEER_READY && p->site->state == ISO_SITE_REVOKED)
            return broken(e, "I5", "a revoked site is connected", p->id, 0);
        if (p->site && memcmp(p->site->id, p->name.id, 16) != 0)
            return broken(e, "I5", "a connection acts for another site", p->id, 0);
    }
    return ISO_OK;
}

static iso_err check_evaluation(const iso_coord *c, iso_error *e)
{
    const iso_c_round *r = iso_c_round_active(c);
    uint64_t open = 0;
    for (size_t i = 0; r && i < r->evaluator_count; i++) {
        if (r->evaluators[i].in_flight > EVALS_IN_FLIGHT)
            return broken(e, "I6", "too many questions at a site", r->evaluators[i].in_flight, 0);
        open += r->evaluators[i].open;
    }
    if (r && open != r->open_answers)
        return broken(e, "I6", "open answers are miscounted", open, r->open_answers);
    return ISO_OK;
}

iso_err iso_coord_check(const iso_coord *c, bool is_full, iso_error *e)
{
    iso_err err = check_ceilings(c, e);
    if (!err)
        err = check_evaluation(c, e);
    if (!err)
        err = check_peers(c, e);
    if (err || !is_full)
        return err;
    for (size_t i = c->rounds_with_details; i < c->round_count && !err; i++)
        err = check_round(c, c->rounds[i], e);
    if (!err)
        err = check_counts(c, e);
    if (!err)
        err = check_releases(c, e);
    return err;
}
