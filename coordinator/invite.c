/* Invitations of a round: who is asked, with what, and their answers (specs/security.md C3).
 * An invitation's id follows from round, site and task, so that asking again is the same question.
 */
#include "coordinator/inner.h"

#include <stdio.h>
#include <string.h>

iso_c_invite *iso_c_invite_of(const iso_c_round *r, const iso_c_site *s, int task)
{
    for (size_t i = s->invite_at; i < s->invite_at + s->invite_count && i < r->invite_count; i++)
        if (r->invites[i].site == s && r->invites[i].task == task)
            return &r->invites[i];
    return NULL;
}

/* Where each site's invitations stand, and how many wait for an answer. */
void iso_c_invites_index(iso_c_round *r)
{
    r->unanswered = 0;
    for (size_t i = 0; i < r->invite_count; i++) {
        iso_c_invite *v = &r->invites[i];
        if (i == 0 || r->invites[i - 1].site != v->site) {
            v->site->invite_at = i;
            v->site->invite_count = 0;
        }
        v->site->invite_count++;
        r->unanswered += !v->update && v->state != INVITE_DECLINED;
    }
}

/* ---- invitations ---- */

static const char *kind_parameters(iso_coord *c, const iso_coord_task *t)
{
    return iso_c_text(
        c,
        "{\"batch\":\"%u\",\"early_stop\":\"0\",\"first_block\":\"%u\",\"mirror\":\"%d\","
        "\"shift\":\"%u\",\"warmup\":\"%u\",\"weight_decay\":\"%.9g\"}\n",
        t->batch, t->first_block, t->mirror, t->shift, t->warmup, t->weight_decay);
}

static void send_invite(iso_coord *c, const iso_c_round *r, const iso_c_invite *v)
{
    const iso_c_task *state = &c->tasks[v->task];
    const iso_coord_task *t = state->config;
    const char *parameters = kind_parameters(c, t);
    iso_msg_invite *m = &iso_c_send(c, v->site->peer, ISO_MSG_INVITE, 0)->invite;
    memcpy(m->invite_id, v->id, 16);
    memcpy(m->task_id, state->id, 16);
    m->round = r->number;
    m->generation = c->identity.generation;
    memcpy(m->generation_digest, c->identity.generation_digest.b, 32);
    m->deadline_ms = r->deadline_ms;
    for (size_t i = 0; i < c->identity.merge_key_count; i++)
        if (c->identity.merge_keys[i].is_usable)
            memcpy(m->merge_key_id, c->identity.merge_keys[i].id, 16);
    m->spec = (iso_msg_task_spec){.adapter_kind = ISO_KIND_LORA,
                                  .rank = t->rank,
                                  .alpha = (float)t->alpha,
                                  .targets = t->targets,
                                  .target_count = t->target_count,
                                  .learning_rate = (float)t->learning_rate,
                                  .seed = t->seed,
                                  .head_mode = (uint32_t)t->head_mode,
                                  .norm_cap = (float)t->norm_cap,
                                  .update_bytes = t->update_bytes,
                                  .min_samples = t->min_samples,
                                  .metric = "accuracy",
                                  .classes = t->classes,
                                  .class_count = t->class_count,
                                  .rslora = t->rslora,
                                  .modality = "image",
                                  .kind_parameters = parameters};
    if (r->kind == ROUND_ADAPTER) { /* a head round has 0 steps, no head and no base */
        m->spec.steps = t->steps;
        memcpy(m->spec.head_digest, state->head.b, 32);
        memcpy(m->base_digest, state->adapter.b, 32);
    }
}

void iso_c_round_send_invites(iso_coord *c, iso_c_round *r, iso_c_site *s)
{
    if (!s->peer || s->peer->is_cut || s->peer->state != PEER_READY || r->is_paused)
        return;
    for (size_t i = s->invite_at; i < s->invite_at + s->invite_count && i < r->invite_count; i++) {
        const iso_c_invite *v = &r->invites[i];
        if (v->site == s && !v->update && v->state != INVITE_DECLINED)
            send_invite(c, r, v);
    }
}

void iso_c_on_invite_reply(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    const iso_msg_invite_reply *q = &m->invite_reply;
    iso_c_round *r = iso_c_round_active(c);
    iso_c_site *s = p->site;
    for (size_t i = s->invite_at; r && i < s->invite_at + s->invite_count && i < r->invite_count;
         i++) {
        iso_c_invite *v = &r->invites[i];
        if (v->site != s || memcmp(v->id, q->invite_id, 16) != 0)
            continue;
        iso_c_invite_state state = q->accept ? INVITE_ACCEPTED : INVITE_DECLINED;
        if (v->update || v->state == state || r->state != ROUND_OPEN)
            return; /* the same again, or too late to matter */
        r->unanswered += v->state == INVITE_DECLINED;
        r->unanswered -= state == INVITE_DECLINED;
        v->state = state;
        v->samples = q->samples;
        snprintf(v->reason, sizeof v->reason, "%.60s", q->reason ? q->reason : "");
        iso_c_save_invite(c, r, v, ISO_OP_PUT);
        iso_c_log(c, ISO_LOG_INFO, "invite_reply", "site=%s round=%llu accept=%d why=\"%s\"",
                  s->name, (unsigned long long)r->number, q->accept, iso_c_quote(c, v->reason));
        return;
    }
    iso_c_refuse(c, p, m->id, ISO_CODE_ROUND_CLOSED, q->invite_id, 16,
                 "no invitation of that id is open");
}

static void invite_id(const iso_coord *c, const iso_c_round *r, const iso_c_site *s, int task,
                      uint8_t id[16])
{
    uint8_t text[15 + 16 + 8 + 16 + 16];
    memcpy(text, "isofed-invite-1", 15);
    memcpy(text + 15, c->identity.federation, 16);
    iso_put_u64(text + 31, r->number);
    memcpy(text + 39, s->id, 16);
    memcpy(text + 55, c->tasks[task].id, 16);
    iso_digest d = c->sealer.digest(c->sealer.ctx, text, sizeof text);
    memcpy(id, d.b, 16);
}

bool iso_c_invites_make(iso_coord *c, iso_c_round *r, uint64_t tasks)
{
    size_t most = 0;
    for (size_t i = 0; i < c->site_count; i++)
        most += (size_t)__builtin_popcountll(c->sites[i]->tasks & tasks);
    r->invites = iso_calloc(most, sizeof *r->invites);
    if (!r->invites)
        return false;
    for (size_t i = 0; i < c->site_count; i++)
        for (size_t t = 0; t < c->config.task_count; t++) {
            if (!(tasks >> t & 1) || !iso_c_policy_may_invite(c, c->sites[i], (int)t))
                continue;
            iso_c_invite *v = &r->invites[r->invite_count++];
            v->site = c->sites[i];
            v->task = (int)t;
            invite_id(c, r, v->site, v->task, v->id);
        }
    iso_c_invites_index(r);
    return true;
}
