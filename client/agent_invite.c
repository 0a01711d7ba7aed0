/* From an invitation to a sealed update in the outbox (specs/security.md 4.5; transactions K2, K3,
 * K4; DESIGN 2, heads).
 *
 * One invitation a task is worked on; a later round of the task takes its place. The sequence
 * number is taken in the transaction that puts the update into the outbox, so an update that was
 * sealed and never recorded leaves no trace (F19). */
#include "client/agent_inner.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RETRY_MS = 10 * 1000, FAILURES_MAX = 3 };
static const uint64_t head_max_bytes = 64ull << 20;

static agent_invite *find(iso_agent *a, const uint8_t id[16])
{
    for (size_t i = 0; i < a->invite_count; i++)
        if (memcmp(a->invites[i].id, id, 16) == 0)
            return &a->invites[i];
    return NULL;
}

void agent_drop_invite(iso_agent *a, size_t i)
{
    agent_invite *v = &a->invites[i];
    iso_arena_free(&v->arena);
    free(v->reason);
    memmove(v, v + 1, (a->invite_count - i - 1) * sizeof *v);
    a->invite_count--;
}

static void reply(iso_agent *a, const uint8_t id[16], bool accept, const char *reason,
                  uint64_t samples)
{
    if (a->link != ISO_AS_ONLINE)
        return; /* asked again at the next greeting */
    char text[ISO_REASON_MAX + 1];
    snprintf(text, sizeof text, "%s", reason ? reason : "");
    iso_msg_invite_reply *m = &agent_send(a, ISO_MSG_INVITE_REPLY, NULL)->invite_reply;
    memcpy(m->invite_id, id, 16);
    m->accept = accept;
    m->reason = agent_copy(a, text, strlen(text) + 1);
    m->samples = samples;
}

/* A finished invitation answers repeated questions and needs no strings for that. */
static void forget_spec(agent_invite *v)
{
    iso_arena_free(&v->arena);
    v->spec.targets = v->spec.classes = NULL;
    v->spec.target_count = v->spec.class_count = 0;
    v->spec.kind_parameters = "";
}

static void end_invite(iso_agent *a, agent_invite *v, agent_invite_state state, const char *reason)
{
    agent_jobs_stop(a, v->id);
    bool has_container = v->state == INVITE_TRAINED;
    iso_digest container = v->container;
    v->state = state;
    agent_text(a, &v->reason, reason);
    agent_save_invite(a, v);
    agent_text(a, &a->tasks[v->task].reason, reason);
    agent_save_task(a, &a->tasks[v->task]);
    agent_commit(a);
    if (has_container)
        agent_effect(a, ISO_AX_DELETE_BLOB)->digest = container;
    memcpy(agent_effect(a, ISO_AX_JOB_FORGET)->id, v->id, 16);
    agent_log(a, ISO_LOG_WARN, "invite_ended", "task=%s round=%llu reason=\"%s\"",
              a->tasks[v->task].config->name, (unsigned long long)v->round, reason);
    forget_spec(v);
    agent_collect(a);
}

static bool copy_spec(agent_invite *v, const iso_msg_task_spec *m)
{
    v->arena.first_bytes = AGENT_SPEC_BYTES;
    iso_train_spec *s = &v->spec;
    *s = (iso_train_spec){.adapter_kind = m->adapter_kind,
                          .rank = m->rank,
                          .alpha = m->alpha,
                          .is_rslora = m->rslora,
                          .steps = m->steps,
                          .learning_rate = m->learning_rate,
                          .seed = m->seed,
                          .head_mode = m->head_mode,
                          .norm_cap = m->norm_cap,
                          .min_samples = m->min_samples,
                          .target_count = (uint32_t)m->target_count,
                          .class_count = (uint32_t)m->class_count};
    const char **targets = iso_arena_calloc(&v->arena, m->target_count, sizeof *targets);
    const char **classes = iso_arena_calloc(&v->arena, m->class_count, sizeof *classes);
    s->kind_parameters = iso_arena_strdup(&v->arena, m->kind_parameters ? m->kind_parameters : "");
    bool is_whole = targets && classes && s->kind_parameters;
    for (size_t i = 0; i < m->target_count && is_whole; i++)
        is_whole = (targets[i] = iso_arena_strdup(&v->arena, m->targets[i])) != NULL;
    for (size_t i = 0; i < m->class_count && is_whole; i++)
        is_whole = (classes[i] = iso_arena_strdup(&v->arena, m->classes[i])) != NULL;
    s->targets = targets;
    s->classes = classes;
    memcpy(v->head.b, m->head_digest, 32);
    v->update_bytes = m->update_bytes;
    return is_whole;
}

/* Why this site does not take part, or NULL. */
static const char *objection(const iso_agent *a, const iso_msg_invite *m, const agent_task *t,
                             char *text, size_t text_bytes)
{
    const iso_agent_config *c = &a->config;
    if (m->spec.adapter_kind != ISO_KIND_LORA && m->spec.steps > 0)
        return "this client trains LoRA adapters only";
    if (!iso_digest_is_zero(&c->generation_digest) &&
        memcmp(c->generation_digest.b, m->generation_digest, 32) != 0) {
        char want[17], have[17];
        iso_hex(want, m->generation_digest, 8);
        iso_hex(have, c->generation_digest.b, 8);
        snprintf(text, text_bytes, "backbone %s here, the round is for %s [backbone_missing]", have,
                 want);
        return text;
    }
    if (t->train < m->spec.min_samples) {
        snprintf(text, text_bytes, "%llu training images, the task asks for %u",
                 (unsigned long long)t->train, m->spec.min_samples);
        return text;
    }
    if (a->is_clock_known && m->deadline_ms && m->deadline_ms <= agent_coordinator_ms(a))
        return "the deadline has passed";
    uint32_t waiting = 0;
    for (size_t i = 0; i < a->outbox_count; i++)
        waiting += a->outbox[i].state == OUTBOX_WAITING;
    if (waiting >= c->outbox_updates)
        return "the outbox is full of updates that wait for a receipt";
    return NULL;
}

/* What status and later evaluations need to know of the task. */
static void learn_task(iso_agent *a, agent_task *t, const agent_invite *v)
{
    t->round = v->round;
    t->head_mode = v->spec.head_mode;
    if (!iso_digest_is_zero(&v->head))
        t->head = v->head;
    char(*classes)[ISO_CLASS_NAME_MAX + 1] = iso_calloc(v->spec.class_count, sizeof *classes);
    if (!classes) {
        a->is_broken = true;
        return;
    }
    for (uint32_t i = 0; i < v->spec.class_count; i++)
        snprintf(classes[i], sizeof classes[i], "%s", v->spec.classes[i]);
    free(t->classes);
    t->classes = classes;
    t->class_count = v->spec.class_count;
}

void agent_invited(iso_agent *a, const iso_msg_invite *m)
{
    agent_invite *v = find(a, m->invite_id);
    if (v) { /* S54: the same answer again */
        bool accepted = v->state != INVITE_DECLINED && v->state != INVITE_FAILED;
        reply(a, v->id, accepted, accepted ? "" : v->reason, v->samples);
        return;
    }
    size_t task = 0;
    while (task < a->config.task_count && memcmp(a->tasks[task].config->id, m->task_id, 16) != 0)
        task++;
    if (task == a->config.task_count) {
        reply(a, m->invite_id, false, "the task is not in this site's configuration (data:)", 0);
        return;
    }
    if (!agent_is_online(a))
        return;
    agent_task *t = &a->tasks[task];
    for (size_t i = 0; i < a->invite_count; i++) {
        agent_invite *old = &a->invites[i];
        if (old->task == task && (old->state == INVITE_ACCEPTED || old->state == INVITE_TRAINED))
            end_invite(a, old, INVITE_ABANDONED, "a later round of the task took its place");
    }
    for (size_t i = 0; a->invite_count >= AGENT_INVITES_MAX && i < a->invite_count; i++) {
        if (a->invites[i].state == INVITE_ACCEPTED || a->invites[i].state == INVITE_TRAINED)
            continue;
        agent_delete(a, ISO_AT_INVITE, a->invites[i].id, 16);
        agent_drop_invite(a, i--);
    }
    char text[ISO_REASON_MAX];
    const char *why = objection(a, m, t, text, sizeof text);
    v = agent_grow(a, &a->invites, &a->invite_count, sizeof *v);
    if (!v)
        return;
    memcpy(v->id, m->invite_id, 16);
    v->task = task;
    v->round = m->round;
    v->generation = m->generation;
    memcpy(v->generation_digest.b, m->generation_digest, 32);
    memcpy(v->base.b, m->base_digest, 32);
    v->deadline_ms = m->deadline_ms;
    memcpy(v->merge_key_id, m->merge_key_id, 16);
    v->state = why ? INVITE_DECLINED : INVITE_ACCEPTED;
    v->samples = t->train;
    if (!copy_spec(v, &m->spec)) {
        a->is_broken = true;
        return;
    }
    agent_text(a, &v->reason, why);
    learn_task(a, t, v);
    agent_text(a, &t->reason, why);
    agent_save_task(a, t);
    agent_save_invite(a, v); /* K2 */
    agent_commit(a);
    reply(a, v->id, !why, why, v->samples);
    agent_log(a, why ? ISO_LOG_WARN : ISO_LOG_INFO, "invited",
              "task=%s round=%llu kind=%s answer=%s", t->config->name, (unsigned long long)v->round,
              v->spec.steps ? "adapter" : "head", why ? "no" : "yes");
    agent_collect(a);
}

bool agent_invite_is_ready(const iso_agent *a, const agent_invite *v)
{
    return v->state == INVITE_ACCEPTED && a->mono >= v->retry_ms &&
           (iso_digest_is_zero(&v->head) || agent_has_blob(a, &v->head)) &&
           (iso_digest_is_zero(&v->base) || agent_has_blob(a, &v->base));
}

static void fail_once(iso_agent *a, agent_invite *v, bool is_final, const char *why)
{
    if (!is_final && ++v->failures < FAILURES_MAX) {
        v->retry_ms = a->mono + ((uint64_t)RETRY_MS << (2 * v->failures));
        agent_log(a, ISO_LOG_WARN, "job_retry", "task=%s failures=%u reason=\"%s\"",
                  a->tasks[v->task].config->name, v->failures, why);
        return;
    }
    uint8_t id[16];
    memcpy(id, v->id, 16);
    char text[ISO_REASON_MAX];
    snprintf(text, sizeof text, "%s", why);
    end_invite(a, v, INVITE_FAILED, text);
    reply(a, id, false, text, 0); /* U48: the reason reaches the one who can act */
}

void agent_invite_blob_failed(iso_agent *a, const iso_digest *digest, const char *why)
{
    for (size_t i = 0; i < a->invite_count; i++) {
        agent_invite *v = &a->invites[i];
        if (v->state == INVITE_ACCEPTED &&
            (iso_digest_equal(&v->head, digest) || iso_digest_equal(&v->base, digest)))
            fail_once(a, v, false, why);
    }
}

void agent_invite_trained(iso_agent *a, const iso_trainer_event *ev)
{
    agent_invite *v = find(a, ev->id);
    if (!v || v->state != INVITE_ACCEPTED)
        return;
    agent_task *t = &a->tasks[v->task];
    iso_score_pair *figures = v->spec.steps ? t->own : t->probe;
    figures[0] = ev->val;
    figures[1] = ev->test;
    v->state = INVITE_TRAINED;
    v->container = ev->container;
    v->container_bytes = ev->container_bytes;
    v->used_samples = ev->samples;
    v->score = ev->val.delivered.is_known ? ev->val.delivered.value : 0;
    v->failures = 0;
    v->retry_ms = 0;
    agent_text(a, &t->reason, NULL);
    agent_save_task(a, t);
    agent_save_invite(a, v); /* K3 */
    agent_commit(a);
    memcpy(agent_effect(a, ISO_AX_JOB_FORGET)->id, v->id, 16);
    agent_log(a, ISO_LOG_INFO, "trained", "task=%s round=%llu images=%llu score=%.4f",
              t->config->name, (unsigned long long)v->round, (unsigned long long)ev->samples,
              (double)v->score);
    if (v->update_bytes && v->container_bytes > v->update_bytes)
        fail_once(a, v, true, "the update is larger than the task's ceiling (update_bytes)");
}

void agent_invite_failed(iso_agent *a, const iso_trainer_event *ev)
{
    agent_invite *v = find(a, ev->id);
    if (v && v->state == INVITE_ACCEPTED)
        fail_once(a, v, ev->is_final, ev->sentence);
}

static const iso_roster_merge *merge_key(const iso_agent *a, const agent_invite *v)
{
    for (size_t i = 0; a->roster && i < a->roster->merge_count; i++) {
        const iso_roster_merge *k = &a->roster->merge[i];
        if (memcmp(k->id, v->merge_key_id, 16) == 0 && k->state == ISO_ROSTER_ACTIVE)
            return k;
    }
    return NULL; /* only a key of the signed roster is sealed to, whatever an invitation names */
}

static void seal(iso_agent *a, agent_invite *v, const iso_roster_merge *key)
{
    iso_envelope h = {.compression = ISO_COMPRESSION_ZSTD,
                      .round = v->round,
                      .generation = v->generation,
                      .generation_digest = v->generation_digest,
                      .base_digest = v->base,
                      .sequence = a->next_sequence,
                      .created_ms = agent_coordinator_ms(a),
                      .sample_count = v->used_samples,
                      .score = v->score,
                      .adapter_kind = ISO_KIND_LORA,
                      .metric = ISO_METRIC_ACCURACY,
                      .chunk_size = a->chunk_bytes};
    memcpy(h.federation_id, a->config.federation_id, 16);
    memcpy(h.site_id, a->config.site_id, 16);
    memcpy(h.task_id, a->tasks[v->task].config->id, 16);
    memcpy(h.merge_key_id, key->id, 16);
    v->is_sealing = true;
    iso_agent_effect *x = agent_effect(a, ISO_AX_SEAL);
    memcpy(x->id, v->id, 16);
    x->digest = v->container;
    x->bytes = v->container_bytes;
    x->envelope = agent_copy(a, &h, sizeof h);
    memcpy(x->merge_pk, key->pk, 32);
}

void agent_invite_sealed(iso_agent *a, const iso_agent_event *ev)
{
    agent_invite *v = find(a, ev->id);
    if (!v || v->state != INVITE_TRAINED || !v->is_sealing)
        return;
    v->is_sealing = false;
    iso_envelope h;
    iso_code code;
    iso_error error = {0};
    if (ev->code != ISO_OK) {
        fail_once(a, v, false, ev->text ? ev->text : "sealing failed");
        return;
    }
    if (iso_envelope_decode(ev->header, ISO_ENVELOPE_HEADER_BYTES, &h, &code, &error) != ISO_OK ||
        h.sequence != a->next_sequence) {
        fail_once(a, v, false, error.text[0] ? error.text : "sealed under another sequence");
        return;
    }
    agent_update *u = agent_grow(a, &a->outbox, &a->outbox_count, sizeof *u);
    if (!u)
        return;
    memcpy(u->update_id, h.update_id, 16);
    memcpy(u->invite_id, v->id, 16);
    u->state = OUTBOX_WAITING;
    u->sequence = h.sequence;
    u->round = v->round;
    memcpy(u->header, ev->header, sizeof u->header);
    memcpy(u->signature, ev->signature, sizeof u->signature);
    u->body = h.body_digest;
    u->body_bytes = iso_envelope_body_bytes(&h);
    u->has_file = true;
    a->next_sequence++;
    v->state = INVITE_SENT;
    agent_save_update(a, u); /* K4: outbox row and sequence in one transaction */
    agent_save_invite(a, v);
    agent_save_meta(a);
    agent_commit(a);
    agent_effect(a, ISO_AX_DELETE_BLOB)->digest = v->container;
    forget_spec(v);
    agent_log(a, ISO_LOG_INFO, "sealed", "round=%llu sequence=%llu bytes=%llu",
              (unsigned long long)v->round, (unsigned long long)u->sequence,
              (unsigned long long)u->body_bytes);
    agent_collect(a);
}

void agent_invite_advance(iso_agent *a)
{
    bool is_sealing = false;
    for (size_t i = 0; i < a->invite_count; i++)
        is_sealing = is_sealing || a->invites[i].is_sealing;
    for (size_t i = 0; i < a->invite_count; i++) {
        agent_invite *v = &a->invites[i];
        if (v->state == INVITE_ACCEPTED && a->mono >= v->retry_ms) {
            if (!iso_digest_is_zero(&v->head))
                agent_fetch_want(a, FETCH_FILE, &v->head, 0, head_max_bytes);
            if (!iso_digest_is_zero(&v->base))
                agent_fetch_want(a, FETCH_FILE, &v->base, 0, ISO_UPDATE_MAX_BYTES);
        }
        const iso_roster_merge *key = merge_key(a, v);
        if (v->state == INVITE_TRAINED && !is_sealing && a->mono >= v->retry_ms && key &&
            a->chunk_bytes) {
            seal(a, v, key);
            is_sealing = true;
        }
    }
}

void agent_invite_tick(iso_agent *a)
{
    if (!a->is_clock_known)
        return;
    for (size_t i = 0; i < a->invite_count; i++) {
        agent_invite *v = &a->invites[i];
        if (v->state == INVITE_ACCEPTED && v->deadline_ms &&
            v->deadline_ms < agent_coordinator_ms(a))
            end_invite(a, v, INVITE_ABANDONED, "the round's deadline passed before it was trained");
    }
}

iso_time agent_invite_wake(const iso_agent *a)
{
    iso_time wake = AGENT_NEVER;
    for (size_t i = 0; i < a->invite_count; i++) {
        const agent_invite *v = &a->invites[i];
        if (v->state != INVITE_ACCEPTED && v->state != INVITE_TRAINED)
            continue;
        if (v->retry_ms > a->mono && v->retry_ms < wake)
            wake = v->retry_ms;
        uint64_t now = agent_coordinator_ms(a);
        if (v->state == INVITE_ACCEPTED && a->is_clock_known && v->deadline_ms) {
            iso_time at = a->mono + (v->deadline_ms > now ? v->deadline_ms - now : 0) + 1;
            wake = at < wake ? at : wake;
        }
    }
    return wake;
}
