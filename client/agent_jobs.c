/* Which long job runs: one at a time, the most urgent first (seam core/trainer.h).
 *
 * Scores for the coordinator's gate have the shortest deadline, then a release's own trial, then
 * training. Training is stopped at its next step for them and goes on from its checkpoint after. */
#include "client/agent_inner.h"

#include <string.h>

void agent_release_job_id(uint64_t number, iso_trainer_job_kind kind, const uint8_t task_id[16],
                          uint8_t id[16])
{
    uint8_t bytes[8 + 8 + 1 + 16] = "release1";
    iso_put_u64(bytes + 8, number);
    bytes[16] = (uint8_t)kind;
    memcpy(bytes + 17, task_id, 16);
    iso_digest d = iso_digest_of(bytes, sizeof bytes);
    memcpy(id, d.b, 16);
}

static const iso_agent_file *adapter_file(const agent_release *r, bool is_config)
{
    return r ? agent_release_file(r, is_config ? "adapter/adapter_config.json"
                                               : "adapter/adapter_model.safetensors")
             : NULL;
}

static void set_adapter(const agent_release *r, iso_digest *config, iso_digest *model)
{
    const iso_agent_file *c = adapter_file(r, true), *m = adapter_file(r, false);
    if (c && m) {
        *config = c->digest;
        *model = m->digest;
    }
}

static const agent_task *task_by_id(const iso_agent *a, const uint8_t id[16])
{
    for (size_t i = 0; i < a->config.task_count; i++)
        if (memcmp(a->tasks[i].config->id, id, 16) == 0)
            return &a->tasks[i];
    return NULL;
}

/* What serves the task now: the head of the current release, where it has the task. */
static const agent_release_task *served(const agent_release *current, const uint8_t task_id[16])
{
    for (size_t i = 0; current && i < current->task_count; i++)
        if (memcmp(current->tasks[i].task_id, task_id, 16) == 0)
            return &current->tasks[i];
    return NULL;
}

static bool release_job(iso_agent *a, iso_trainer_job *j, size_t *task)
{
    const agent_pending *p = &a->pending;
    if (a->mono < p->retry_ms)
        return false;
    const agent_release *r =
        p->phase == PENDING_INSPECT ? &p->release : agent_find_release(a, p->number);
    static const uint8_t none[16];
    const uint8_t *task_id = none;
    if (!r)
        return false;
    switch (p->phase) {
    case PENDING_INSPECT:
        j->kind = ISO_TRAINER_INSPECT;
        if (p->check < r->task_count) {
            j->head = r->tasks[p->check].head;
            task_id = r->tasks[p->check].task_id;
        }
        break;
    case PENDING_TRIAL: {
        const agent_release_task *t = agent_trial_next(a, r);
        if (!t)
            return false;
        const agent_release *current = a->current ? agent_find_release(a, a->current) : NULL;
        const agent_release_task *now = served(current, t->task_id);
        j->kind = ISO_TRAINER_TRIAL;
        j->head = t->head;
        task_id = t->task_id;
        if (now) {
            set_adapter(current, &j->before_config, &j->before_model);
            j->before_head = now->head;
        }
        break;
    }
    case PENDING_CHECK:
        if (p->check >= r->task_count)
            return false;
        j->kind = ISO_TRAINER_CHECK;
        j->head = r->tasks[p->check].head;
        task_id = r->tasks[p->check].task_id;
        break;
    default:
        return false;
    }
    const agent_task *t = task_by_id(a, task_id);
    *task = t ? (size_t)(t - a->tasks) : 0;
    if (!t && j->kind != ISO_TRAINER_INSPECT)
        return false;
    if (a->config.task_count > 0)
        j->task = a->tasks[*task].config->name;
    memcpy(j->task_id, task_id, 16);
    j->number = p->number;
    set_adapter(r, &j->adapter_config, &j->adapter_model);
    agent_release_job_id(p->number, j->kind, task_id, j->id);
    return true;
}

/* The most urgent job that could start now. */
static bool choose(iso_agent *a, iso_trainer_job *j, size_t *task)
{
    memset(j, 0, sizeof *j);
    const agent_eval *v = agent_eval_ready(a);
    if (v) {
        j->kind = ISO_TRAINER_EVALUATE;
        *task = v->task;
        j->task = a->tasks[v->task].config->name;
        memcpy(j->task_id, a->tasks[v->task].config->id, 16);
        j->head = v->head;
        j->adapter_config = v->config;
        j->adapter_model = v->model;
        agent_eval_job_id(&v->candidate, j->task_id, j->id);
        return true;
    }
    if (release_job(a, j, task))
        return true;
    if (a->is_paused)
        return false;
    for (size_t i = 0; i < a->invite_count; i++) {
        agent_invite *w = &a->invites[i];
        if (!agent_invite_is_ready(a, w) || !a->tasks[w->task].has_data)
            continue;
        j->kind = w->spec.steps ? ISO_TRAINER_TRAIN : ISO_TRAINER_HEAD;
        *task = w->task;
        j->task = a->tasks[w->task].config->name;
        memcpy(j->task_id, a->tasks[w->task].config->id, 16);
        memcpy(j->id, w->id, 16);
        j->round = w->round;
        j->spec = &w->spec;
        j->generation = w->generation_digest;
        j->head = w->head;
        j->base = w->base;
        return true;
    }
    return false;
}

static bool is_training(iso_trainer_job_kind kind)
{
    return kind == ISO_TRAINER_TRAIN || kind == ISO_TRAINER_HEAD;
}

void agent_jobs_stop(iso_agent *a, const uint8_t id[16])
{
    if (!a->job.is_running || memcmp(a->job.id, id, 16) != 0)
        return;
    memcpy(agent_effect(a, ISO_AX_JOB_CANCEL)->id, id, 16);
    memset(&a->job, 0, sizeof a->job);
}

void agent_jobs_next(iso_agent *a)
{
    iso_trainer_job *j = NULL, chosen;
    size_t task = 0;
    if (a->job.is_running && (!is_training(a->job.kind) || a->is_paused)) {
        if (is_training(a->job.kind)) {
            uint8_t id[16];
            memcpy(id, a->job.id, 16);
            agent_jobs_stop(a, id); /* U34: stops at the next step, the checkpoint stays */
        } else {
            return;
        }
    }
    if (!choose(a, &chosen, &task))
        return;
    if (a->job.is_running) {
        if (is_training(chosen.kind))
            return;
        uint8_t id[16];
        memcpy(id, a->job.id, 16);
        agent_jobs_stop(a, id);
    }
    j = agent_copy(a, &chosen, sizeof chosen);
    if (!j)
        return;
    if (chosen.spec) /* the strings live in the invitation, which may end before the shell looks */
        j->spec = agent_copy(a, chosen.spec, sizeof *chosen.spec);
    a->job = (agent_job){.is_running = true, .kind = chosen.kind, .task = task};
    memcpy(a->job.id, chosen.id, 16);
    a->job.round = chosen.round;
    a->job.steps = chosen.spec ? chosen.spec->steps : 0;
    agent_effect(a, ISO_AX_JOB_START)->job = j;
}

void agent_jobs_event(iso_agent *a, const iso_trainer_event *ev)
{
    if (!a->job.is_running || memcmp(a->job.id, ev->id, 16) != 0)
        return; /* of a job that was stopped */
    if (ev->kind == ISO_TRAINER_PROGRESS) {
        a->job.step = ev->step;
        a->job.steps = ev->steps;
        a->job.loss = ev->loss;
        a->job.checkpoint_step = ev->checkpoint_step;
        return;
    }
    iso_trainer_job_kind kind = a->job.kind;
    memset(&a->job, 0, sizeof a->job);
    bool is_done = ev->kind == ISO_TRAINER_DONE;
    switch (kind) {
    case ISO_TRAINER_HEAD:
    case ISO_TRAINER_TRAIN:
        (is_done ? agent_invite_trained : agent_invite_failed)(a, ev);
        break;
    case ISO_TRAINER_EVALUATE:
        (is_done ? agent_eval_done : agent_eval_failed)(a, ev);
        break;
    case ISO_TRAINER_INSPECT:
    case ISO_TRAINER_TRIAL:
    case ISO_TRAINER_CHECK:
        (is_done ? agent_trial_done : agent_trial_failed)(a, ev);
        break;
    }
}
