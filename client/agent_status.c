/* What a shell may look at: the site core's state in words and numbers (U16, U32, U64). */
#include "client/agent_inner.h"

#include <string.h>

static iso_agent_state shown_state(const iso_agent *a)
{
    if (a->link != ISO_AS_ONLINE)
        return a->link;
    if (a->upload.state == UPLOAD_COMMITTED)
        return ISO_AS_WAITING;
    if (a->upload.state != UPLOAD_IDLE)
        return ISO_AS_SENDING;
    switch (a->pending.phase) {
    case PENDING_MANIFEST:
    case PENDING_FILES:
        return ISO_AS_FETCHING;
    case PENDING_INSPECT:
    case PENDING_TRIAL:
    case PENDING_INSTALL:
    case PENDING_CHECK:
        return ISO_AS_TRIAL;
    default:
        return ISO_AS_ONLINE;
    }
}

static const char *phase_name(agent_pending_phase p)
{
    static const char *const names[] = {"",      "fetching", "fetching",   "trial",
                                        "trial", "operator", "installing", "installing"};
    return names[p];
}

static void release_status(const iso_agent *a, iso_agent_status *s)
{
    s->release = a->current;
    s->release_previous = a->previous;
    s->release_highest = a->highest_number;
    s->release_phase = phase_name(a->pending.phase);
    s->release_pending = a->pending.phase == PENDING_NONE ? 0 : a->pending.number;
    for (size_t i = 0; i < a->pending.release.file_count; i++) {
        const iso_agent_file *f = &a->pending.release.files[i];
        s->release_bytes_total += f->bytes;
        if (agent_has_blob(a, &f->digest))
            s->release_bytes += f->bytes;
        else if (a->fetch.is_active && iso_digest_equal(&a->fetch.want.digest, &f->digest))
            s->release_bytes += (uint64_t)a->fetch.next * a->chunk_bytes;
    }
    for (size_t i = 0; i < a->release_count; i++)
        if (a->releases[i].number == a->current)
            s->is_release_expired = a->releases[i].valid_until_ms < a->wall;
    s->is_head_old = a->has_head && a->head_fields.time_ms + a->config.head_age_ms < a->wall;
    s->has_conflict = a->has_conflict;
}

void iso_agent_get_status(const iso_agent *a, iso_agent_status *s)
{
    memset(s, 0, sizeof *s);
    s->state = shown_state(a);
    s->site = a->site;
    s->since_ms = a->since_ms;
    s->next_try_ms = a->next_try_ms;
    s->link_reason = a->link_reason;
    s->is_not_admitted = a->is_not_admitted;
    s->clock_offset_ms = a->clock_offset_ms;
    s->is_clock_known = a->is_clock_known;
    for (size_t i = 0; i < a->outbox_count; i++) {
        const agent_update *u = &a->outbox[i];
        s->outbox_waiting += u->state == OUTBOX_WAITING;
        s->outbox_acknowledged += u->state == OUTBOX_ACKNOWLEDGED;
        s->outbox_refused += u->state == OUTBOX_REFUSED;
        s->outbox_bytes += u->state == OUTBOX_WAITING ? u->body_bytes : 0;
    }
    if (a->upload.state != UPLOAD_IDLE) {
        s->sent_chunks = a->upload.received;
        s->chunk_total = a->upload.envelope.chunk_count;
    }
    release_status(a, s);
    s->is_paused = a->is_paused;
    s->roster_version = a->roster ? a->roster->version : 0;
    s->epoch = a->epoch;
    s->last_sequence = a->next_sequence - 1;
    s->audit_seq = a->has_head ? a->head_fields.seq : 0;
    s->is_training = a->job.is_running;
    if (a->job.is_running) {
        if (a->config.task_count)
            memcpy(s->job_task, a->tasks[a->job.task].config->id, 16);
        s->job_kind = a->job.kind;
        s->job_round = a->job.round;
        s->step = a->job.step;
        s->steps = a->job.steps;
        s->checkpoint_step = a->job.checkpoint_step;
        s->loss = a->job.loss;
    }
}

/* The newest invitation of the task in words. */
static const char *task_phase(const iso_agent *a, size_t task)
{
    for (size_t i = a->invite_count; i-- > 0;) {
        const agent_invite *v = &a->invites[i];
        if (v->task != task || v->round != a->tasks[task].round)
            continue;
        bool is_running = a->job.is_running && memcmp(a->job.id, v->id, 16) == 0;
        switch (v->state) {
        case INVITE_ACCEPTED:
            return is_running ? "training" : "invited";
        case INVITE_DECLINED:
            return "declined";
        case INVITE_TRAINED:
            return "sealing";
        case INVITE_FAILED:
            return "failed";
        case INVITE_ABANDONED:
            return "abandoned";
        default:
            break;
        }
        for (size_t k = 0; k < a->outbox_count; k++)
            if (memcmp(a->outbox[k].invite_id, v->id, 16) == 0)
                return a->outbox[k].state == OUTBOX_WAITING        ? "outbox"
                       : a->outbox[k].state == OUTBOX_ACKNOWLEDGED ? "acknowledged"
                                                                   : "refused";
        return "sent";
    }
    return "";
}

static const char *task_reason(const iso_agent *a, size_t task)
{
    for (size_t i = a->invite_count; i-- > 0;) {
        const agent_invite *v = &a->invites[i];
        if (v->task != task)
            continue;
        for (size_t k = 0; k < a->outbox_count; k++)
            if (memcmp(a->outbox[k].invite_id, v->id, 16) == 0 && a->outbox[k].sentence)
                return a->outbox[k].sentence;
        break;
    }
    return a->tasks[task].reason ? a->tasks[task].reason : "";
}

void iso_agent_get_task(const iso_agent *a, size_t task, iso_agent_task_status *out)
{
    const agent_task *t = &a->tasks[task];
    memset(out, 0, sizeof *out);
    out->name = t->config->name;
    out->train = t->train;
    out->val = t->val;
    out->test = t->test;
    out->data_bytes = t->data_bytes;
    out->chance = t->class_count ? 1.0f / (float)t->class_count : 0.0f;
    memcpy(out->probe, t->probe, sizeof out->probe);
    memcpy(out->own, t->own, sizeof out->own);
    memcpy(out->serving, t->serving, sizeof out->serving);
    out->round = t->round;
    out->phase = task_phase(a, task);
    out->reason = task_reason(a, task);
    out->classes = t->class_count;
    out->class_names = t->classes;
}

size_t iso_agent_release_count(const iso_agent *a)
{
    return a->release_count;
}

void iso_agent_get_release(const iso_agent *a, size_t i, iso_agent_release_status *out)
{
    const agent_release *r = &a->releases[i];
    *out = (iso_agent_release_status){.number = r->number,
                                      .manifest = r->manifest,
                                      .state = r->state,
                                      .verdict = r->verdict,
                                      .before = r->before,
                                      .delivered = r->delivered,
                                      .refitted = r->refitted,
                                      .samples = r->samples,
                                      .reason = r->reason ? r->reason : ""};
}
