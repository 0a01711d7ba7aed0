/* Versions of the roster (specs/security.md S14, C14): a site takes a roster only when its version
 * is the one it holds plus one, so that each step is checked with the root key of the step before.
 * Every container that was ever offered is kept, and a site that was away walks through them. */
#include "coordinator/record.h"

#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 6 };

void iso_c_save_roster(iso_coord *c, const iso_c_roster *r)
{
    uint8_t key[NAME_BYTES + 8];
    iso_writer w = iso_writer_begin(c, 64);
    memcpy(key, "roster", NAME_BYTES);
    iso_key_u64(key + NAME_BYTES, r->version);
    iso_w_u64(&w, r->version);
    iso_w_bytes(&w, r->container.b, 32);
    iso_w_u64(&w, r->bytes);
    iso_c_put(c, ISO_CT_META, ISO_OP_INSERT, key, sizeof key, w.data, w.size);
}

bool iso_c_roster_add(iso_coord *c, const iso_c_roster *r)
{
    iso_c_roster *wider = realloc(c->rosters, (c->roster_count + 1) * sizeof *wider);
    if (!wider) {
        c->is_out_of_memory = true;
        return false;
    }
    c->rosters = wider;
    c->rosters[c->roster_count++] = *r;
    return true;
}

bool iso_c_roster_read(iso_coord *c, iso_reader *r)
{
    iso_c_roster x = {.version = iso_r_u64(r)};
    iso_r_bytes(r, x.container.b, 32);
    x.bytes = iso_r_u64(r);
    return iso_c_roster_add(c, &x);
}

static const iso_c_roster *by_version(const iso_coord *c, uint64_t version)
{
    for (size_t i = 0; i < c->roster_count; i++)
        if (c->rosters[i].version == version)
            return &c->rosters[i];
    return NULL;
}

iso_err iso_c_rosters_check(const iso_coord *c, iso_error *e)
{
    uint64_t version = c->identity.roster_version;
    uint64_t newest = c->roster_count ? c->rosters[c->roster_count - 1].version : 0;
    const iso_c_roster *same = by_version(c, version);
    if (version == 0 || newest == 0)
        return ISO_OK;
    if (same && !iso_digest_equal(&same->container, &c->identity.roster))
        return iso_fail(e, ISO_ERR_TRUST,
                        "root/roster.json differs from the version %llu that sites have: a change "
                        "needs the next version",
                        (unsigned long long)version);
    if (version != newest && version != newest + 1)
        return iso_fail(e, ISO_ERR_TRUST,
                        "root/roster.json has version %llu after %llu: versions rise by one, sites "
                        "check each step",
                        (unsigned long long)version, (unsigned long long)newest);
    return ISO_OK;
}

void iso_c_rosters_start(iso_coord *c)
{
    const iso_coord_identity *d = &c->identity;
    iso_c_roster now = {
        .version = d->roster_version, .container = d->roster, .bytes = d->roster_bytes};
    if (now.version == 0 || by_version(c, now.version) || !iso_c_roster_add(c, &now))
        return;
    iso_c_save_roster(c, &now);
    iso_c_audit(c, ISO_AUDIT_KEY, NULL, &now.container, "\"roster\":%llu",
                (unsigned long long)now.version);
}

void iso_c_roster_offer(iso_coord *c, iso_c_peer *p, iso_c_site *s)
{
    /* A new site pinned the newest root by its enrolment line: it begins with the newest roster. */
    uint64_t next = s->roster_held ? s->roster_held + 1 : c->identity.roster_version;
    const iso_c_roster *r = by_version(c, next);
    if (!r || next > c->identity.roster_version)
        return;
    iso_msg_roster_offer *o = &iso_c_send(c, p, ISO_MSG_ROSTER_OFFER, 0)->roster_offer;
    o->version = r->version;
    memcpy(o->digest, r->container.b, 32);
}

void iso_c_roster_fetched(iso_coord *c, iso_c_peer *p, const iso_digest *container)
{
    iso_c_site *s = p->site;
    for (size_t i = 0; s && i < c->roster_count; i++) {
        const iso_c_roster *r = &c->rosters[i];
        if (!iso_digest_equal(&r->container, container) || r->version <= s->roster_held)
            continue;
        s->roster_held = r->version;
        iso_c_roster_offer(c, p, s);
        return;
    }
}
