/* The coordinator's core: creation, start, one step, and what a shell may look at. */
#include "coordinator/inner.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

iso_err iso_coord_new(const iso_coord_config *config, const iso_coord_identity *identity,
                      const iso_sealer *sealer, const iso_entropy *entropy, iso_coord **out,
                      iso_error *e)
{
    *out = NULL;
    if (config->task_count > ISO_COORD_TASKS_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "%zu tasks: at most %d", config->task_count,
                        ISO_COORD_TASKS_MAX);
    iso_coord *c = iso_calloc(1, sizeof *c);
    if (!c)
        return iso_nomem(e, sizeof *c);
    c->config = *config;
    c->identity = *identity;
    c->sealer = *sealer;
    c->entropy = *entropy;
    c->audit_head = iso_chain_start(identity->federation, identity->epoch, identity->audit_pk);
    for (size_t i = 0; i < config->task_count; i++) {
        iso_c_task *t = &c->tasks[i];
        t->config = &config->tasks[i];
        iso_c_task_id(c, t->config->name, t->id);
        for (int k = 0; k < METRICS; k++)
            t->baseline[k] = (double)NAN;
    }
    *out = c;
    return ISO_OK;
}

void iso_coord_free(iso_coord *c)
{
    if (!c)
        return;
    for (size_t i = 0; i < c->site_count; i++)
        iso_c_site_free(c->sites[i]);
    for (size_t i = 0; i < c->token_count; i++) {
        free(c->tokens[i]->task_ids);
        free(c->tokens[i]);
    }
    for (size_t i = 0; i < c->peer_count; i++)
        free(c->peers[i]);
    for (size_t i = 0; i < c->upload_count; i++)
        free(c->uploads[i]);
    for (size_t i = 0; i < c->round_count; i++)
        iso_c_round_free(c->rounds[i]);
    for (size_t i = 0; i < c->release_count; i++)
        iso_c_release_free(c->releases[i]);
    free(c->sites);
    free(c->tokens);
    free(c->peers);
    free(c->uploads);
    free(c->rounds);
    free(c->releases);
    free(c->damaged);
    free(c->rosters);
    free(c->ops);
    iso_index_free(&c->site_by_id);
    iso_index_free(&c->peer_by_id);
    iso_index_free(&c->update_by_id);
    free(c);
}

static void begin(iso_coord *c, iso_time mono_now, iso_time wall_now, iso_coord_effects *out)
{
    c->now = mono_now > c->now ? mono_now : c->now;
    c->wall = wall_now;
    c->out = out;
    c->op_count = 0;
}

static void finish(iso_coord *c)
{
    iso_c_flush(c);
    if (c->is_out_of_memory)
        c->out->is_out_of_memory = true;
    c->out = NULL;
}

void iso_coord_set_endpoint(iso_coord *c, const char *host, uint16_t port)
{
    size_t n = strlen(host);
    if (n > ISO_HOST_MAX)
        n = ISO_HOST_MAX;
    memcpy(c->host, host, n);
    c->host[n] = 0;
    c->port = port;
}

/* What C13 took before the last stop stays taken; a shell asks before the start (S84). */
size_t iso_c_first_detailed(const iso_coord *c)
{
    size_t keep = c->config.keep_rounds ? c->config.keep_rounds : 1, first = 0;
    if (c->is_started)
        return c->rounds_with_details;
    while (first + keep < c->round_count && c->rounds[first]->update_count == 0)
        first++;
    return first;
}

void iso_coord_start(iso_coord *c, iso_time mono_now, iso_time wall_now, iso_coord_effects *out)
{
    begin(c, mono_now, wall_now, out);
    c->rounds_with_details = iso_c_first_detailed(c);
    c->stats.rounds = c->round_count;
    bool is_first = c->audit_seq == 0;
    iso_c_audit(c, is_first ? ISO_AUDIT_INIT : ISO_AUDIT_START, NULL, NULL,
                "\"release\":%llu,\"rounds\":%zu,\"sites\":%zu",
                (unsigned long long)(c->release_count ? iso_c_release_current(c)->number : 0),
                c->round_count, c->site_count);
    iso_c_save_meta(c);
    iso_c_rosters_start(c);
    for (size_t i = 0; i < c->round_count; i++)
        if (iso_c_round_has_ended(c->rounds[i]))
            for (size_t k = 0; k < c->rounds[i]->update_count; k++) {
                free(c->rounds[i]->updates[k]->raw);
                c->rounds[i]->updates[k]->raw = NULL;
            }
    iso_c_uploads_start(c);
    iso_c_round *r = iso_c_round_active(c);
    if (r)
        iso_c_round_resume(c, r);
    iso_c_emit(c, ISO_CX_ADMITTED);
    c->housekeeping = c->now + HOUSEKEEPING_MS;
    c->is_started = true;
    c->started = c->now;
    finish(c);
}

static void housekeep(iso_coord *c)
{
    if (c->now < c->housekeeping)
        return;
    c->housekeeping = c->now + HOUSEKEEPING_MS;
    iso_c_peers_tick(c);
    iso_c_uploads_tick(c);
}

void iso_coord_step(iso_coord *c, const iso_coord_event *ev, iso_time mono_now, iso_time wall_now,
                    iso_coord_effects *out)
{
    begin(c, mono_now, wall_now, out);
    c->stats.events++;
    switch (ev->kind) {
    case ISO_CE_TICK:
        break;
    case ISO_CE_MESSAGE:
        iso_c_on_message(c, ev);
        break;
    case ISO_CE_BAD_MESSAGE:
        iso_c_on_bad_message(c, ev);
        break;
    case ISO_CE_PEER_GONE:
        iso_c_on_peer_gone(c, ev->peer);
        break;
    case ISO_CE_UPLOAD_OPENED:
        iso_c_on_upload_opened(c, ev->id, ev->chunks);
        break;
    case ISO_CE_UPLOAD_STORED:
        iso_c_on_upload_stored(c, ev->id, ev->stored);
        break;
    case ISO_CE_JOB_DONE:
        iso_c_on_job_done(c, ev->result);
        break;
    case ISO_CE_JOB_FAILED:
        iso_c_on_job_failed(c, ev->id, ev->text);
        break;
    case ISO_CE_ADMIN:
        iso_c_on_admin(c, ev);
        break;
    case ISO_CE_DISK:
        c->disk_free = ev->disk_free;
        c->is_disk_known = true;
        break;
    }
    iso_c_round_tick(c);
    housekeep(c);
    finish(c);
}

iso_time iso_coord_next_wake(const iso_coord *c)
{
    iso_time wake = UINT64_MAX;
    if (c->peer_count || c->upload_count)
        wake = c->housekeeping;
    const iso_c_round *r = iso_c_round_active(c);
    if (r && r->state == ROUND_OPEN && !r->is_paused && r->deadline < wake)
        wake = r->deadline;
    if (r && r->state == ROUND_EVALUATING && r->eval_deadline < wake)
        wake = r->eval_deadline;
    if (!r && c->config.trigger == ISO_TRIGGER_AUTO && c->auto_not_before > c->now &&
        c->auto_not_before < wake)
        wake = c->auto_not_before;
    return wake;
}

void iso_coord_keys(const iso_coord *c, iso_coord_key_fn *fn, void *arg)
{
    for (size_t i = 0; i < c->site_count; i++) {
        const iso_c_site *s = c->sites[i];
        iso_peer_name name = {.kind = ISO_PEER_SITE};
        memcpy(name.id, s->id, 16);
        if (s->state != ISO_SITE_REVOKED)
            fn(arg, s->transport_pk, &name);
    }
    for (size_t i = 0; i < c->token_count; i++) {
        const iso_c_token *t = c->tokens[i];
        iso_peer_name name = {.kind = ISO_PEER_TOKEN};
        memcpy(name.id, t->id, 4);
        if (iso_c_token_is_open(c, t))
            fn(arg, t->transport_pk, &name);
    }
}

bool iso_coord_has_job(const iso_coord *c)
{
    const iso_c_round *r = iso_c_round_active(c);
    return r && r->has_job;
}

void iso_coord_blob_damaged(iso_coord *c, const iso_digest *digest)
{
    iso_digest *wider = realloc(c->damaged, (c->damaged_count + 1) * sizeof *wider);
    if (!wider) {
        c->is_out_of_memory = true;
        return;
    }
    c->damaged = wider;
    c->damaged[c->damaged_count++] = *digest;
}

void iso_coord_get_stats(const iso_coord *c, iso_coord_stats *out)
{
    *out = c->stats;
    out->receipts = c->retired_receipts;
    out->used = c->retired_used;
    out->refused = c->retired_refused;
    out->pending = 0;
    for (size_t i = c->rounds_with_details; i < c->round_count; i++)
        for (size_t k = 0; k < c->rounds[i]->update_count; k++) {
            const iso_c_update *u = c->rounds[i]->updates[k];
            out->receipts++;
            out->used += u->state == ISO_UPDATE_USED;
            out->refused += u->state == ISO_UPDATE_REFUSED;
            out->pending += u->state == ISO_UPDATE_PENDING;
        }
    const iso_c_release *current = iso_c_release_current(c);
    const iso_c_round *r = iso_c_round_active(c);
    out->release = current ? current->number : 0;
    out->audit_seq = c->audit_seq;
    out->audit_head = c->audit_head;
    out->sites = (uint32_t)c->site_count;
    out->peers = (uint32_t)c->peer_count;
    out->uploads = (uint32_t)c->upload_count;
    out->round = r ? r->number : 0;
    out->round_state = r ? (int)r->state : 0;
}
