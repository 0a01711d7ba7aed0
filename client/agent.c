/* The site core's one step, its life and what a shell may look at. See client/agent.h. */
#include "client/agent_inner.h"

#include <stdlib.h>
#include <string.h>

void iso_agent_config_defaults(iso_agent_config *c)
{
    *c = (iso_agent_config){.software = ISO_VERSION,
                            .margin = 0.01,
                            .few_samples = 30,
                            .ping_ms = 60000,
                            .spread_ms = 30000,
                            .reply_ms = 10000,
                            .commit_ms = 60000,
                            .head_age_ms = 24ull * 3600 * 1000,
                            .receipt_keep_ms = 7ull * 24 * 3600 * 1000,
                            .outbox_bytes = 1ull << 30,
                            .outbox_updates = 16,
                            .release_bytes = ISO_RELEASE_MAX_BYTES,
                            .disk_floor_bytes = 0};
}

void iso_agent_task_id(const uint8_t federation_id[16], const char *name, uint8_t id[16])
{
    iso_hasher h;
    iso_hasher_init(&h);
    iso_hasher_add(&h, "isofed-task-1", 13);
    iso_hasher_add(&h, federation_id, 16);
    iso_hasher_add(&h, name, strlen(name));
    iso_digest d = iso_hasher_end(&h);
    memcpy(id, d.b, 16);
}

iso_err iso_agent_new(const iso_agent_config *config, const iso_agent_seams *seams, iso_agent **out,
                      iso_error *e)
{
    iso_agent *a = iso_calloc(1, sizeof *a);
    *out = NULL;
    if (!a)
        return iso_nomem(e, sizeof *a);
    a->config = *config;
    a->seams = *seams;
    a->next_sequence = 1;
    a->chunk_bytes = 0; /* learnt at the greeting */
    a->credit = ISO_CREDIT_CHUNKS;
    a->tasks = iso_calloc(config->task_count, sizeof *a->tasks);
    if (!a->tasks) {
        free(a);
        return iso_nomem(e, config->task_count * sizeof *a->tasks);
    }
    for (size_t i = 0; i < config->task_count; i++)
        a->tasks[i].config = &config->tasks[i];
    *out = a;
    return ISO_OK;
}

void iso_agent_free(iso_agent *a)
{
    if (!a)
        return;
    agent_pending_clear(a);
    while (a->invite_count)
        agent_drop_invite(a, a->invite_count - 1);
    while (a->release_count)
        agent_drop_release(a, a->release_count - 1);
    for (size_t i = 0; i < a->outbox_count; i++)
        free(a->outbox[i].sentence);
    for (size_t i = 0; i < a->config.task_count; i++) {
        free(a->tasks[i].classes);
        free(a->tasks[i].reason);
    }
    iso_buf_free(&a->fetch.memory);
    free(a->tasks);
    free(a->own_roster);
    free(a->invites);
    free(a->outbox);
    free(a->wants);
    free(a->blobs);
    free(a->releases);
    free(a->requests);
    free(a->evals);
    free(a);
}

void iso_agent_give_roster(iso_agent *a, const iso_roster *roster, const iso_digest *container)
{
    a->roster = roster;
    a->roster_container = *container;
}

static void enter(iso_agent *a, iso_time mono_now, iso_time wall_now, iso_agent_effects *out)
{
    a->mono = mono_now;
    a->wall = wall_now;
    a->out = out;
    a->ops = NULL;
    a->op_count = a->op_capacity = 0;
}

/* What any event may have made possible, in the order in which one thing enables the next. */
static void advance(iso_agent *a)
{
    agent_link_tick(a);
    agent_upload_tick(a);
    agent_fetch_tick(a);
    agent_invite_tick(a);
    agent_invite_advance(a);
    agent_eval_advance(a);
    agent_release_advance(a);
    agent_fetch_next(a);
    agent_upload_next(a);
    agent_jobs_next(a);
}

static void leave(iso_agent *a)
{
    agent_commit(a);
    if (a->is_broken)
        a->out->is_out_of_memory = true;
    a->out = NULL;
}

void iso_agent_start(iso_agent *a, iso_time mono_now, iso_time wall_now, iso_agent_effects *out)
{
    enter(a, mono_now, wall_now, out);
    agent_link_start(a);
    agent_trial_restart(a);
    advance(a);
    leave(a);
}

static void data_changed(iso_agent *a, const iso_agent_event *ev)
{
    for (size_t i = 0; i < a->config.task_count; i++) {
        agent_task *t = &a->tasks[i];
        if (memcmp(t->config->id, ev->task_id, 16) != 0)
            continue;
        bool is_same = iso_digest_equal(&t->data, &ev->digest);
        t->has_data = true;
        t->train = ev->train;
        t->val = ev->val;
        t->test = ev->test;
        t->data_bytes = ev->data_bytes;
        t->data = ev->digest;
        if (is_same)
            return;
        agent_save_task(a, t); /* K1 */
        agent_commit(a);
        agent_log(a, ISO_LOG_INFO, "data", "task=%s train=%llu val=%llu test=%llu", t->config->name,
                  (unsigned long long)t->train, (unsigned long long)t->val,
                  (unsigned long long)t->test);
        return;
    }
}

static void set_paused(iso_agent *a, bool is_paused)
{
    if (a->is_paused == is_paused)
        return;
    a->is_paused = is_paused;
    agent_save_meta(a);
    agent_commit(a);
}

void iso_agent_step(iso_agent *a, const iso_agent_event *ev, iso_time mono_now, iso_time wall_now,
                    iso_agent_effects *out)
{
    enter(a, mono_now, wall_now, out);
    switch (ev->kind) {
    case ISO_AE_TICK:
        break;
    case ISO_AE_LINK_UP:
    case ISO_AE_LINK_DOWN:
        agent_link_event(a, ev);
        break;
    case ISO_AE_MESSAGE:
        agent_message(a, ev);
        break;
    case ISO_AE_DATA:
        data_changed(a, ev);
        break;
    case ISO_AE_TRAINER:
        agent_jobs_event(a, ev->trainer);
        break;
    case ISO_AE_SEALED:
        agent_invite_sealed(a, ev);
        break;
    case ISO_AE_FETCH_READY:
    case ISO_AE_FETCH_DONE:
        agent_fetch_event(a, ev);
        break;
    case ISO_AE_INSTALLED:
        agent_trial_installed(a, ev);
        break;
    case ISO_AE_DISK:
        a->disk_free = ev->offset;
        break;
    case ISO_AE_PAUSE:
        set_paused(a, true);
        break;
    case ISO_AE_RESUME:
        set_paused(a, false);
        break;
    case ISO_AE_ACCEPT:
        agent_trial_accept(a, ev->offset);
        break;
    case ISO_AE_ACCEPT_EPOCH:
        agent_accept_epoch(a);
        break;
    }
    advance(a);
    leave(a);
}

iso_time iso_agent_next_wake(const iso_agent *a)
{
    iso_time (*const of[])(const iso_agent *) = {agent_link_wake,    agent_upload_wake,
                                                 agent_fetch_wake,   agent_invite_wake,
                                                 agent_release_wake, agent_eval_wake};
    iso_time wake = AGENT_NEVER;
    for (size_t i = 0; i < sizeof of / sizeof *of; i++) {
        iso_time at = of[i](a);
        wake = at < wake ? at : wake;
    }
    return wake;
}

iso_err iso_agent_check(const iso_agent *a, iso_error *e)
{
    uint64_t last = 0;
    for (size_t i = 0; i < a->outbox_count; i++) {
        const agent_update *u = &a->outbox[i];
        if (u->sequence <= last || u->sequence >= a->next_sequence)
            return iso_fail(e, ISO_ERR_INTERNAL,
                            "I9: sequence %llu after %llu, the next is to be %llu",
                            (unsigned long long)u->sequence, (unsigned long long)last,
                            (unsigned long long)a->next_sequence);
        last = u->sequence;
        if (u->state == OUTBOX_WAITING && !u->has_file)
            return iso_fail(e, ISO_ERR_INTERNAL, "an update waits without its sealed file");
    }
    for (size_t i = 0; i < a->release_count; i++)
        if (a->releases[i].number > a->highest_number)
            return iso_fail(e, ISO_ERR_INTERNAL, "I12: release %llu is above the highest, %llu",
                            (unsigned long long)a->releases[i].number,
                            (unsigned long long)a->highest_number);
    const uint64_t pointers[2] = {a->current, a->previous};
    for (int k = 0; k < 2; k++) {
        const agent_release *r =
            pointers[k] ? agent_find_release((iso_agent *)(uintptr_t)a, pointers[k]) : NULL;
        if (pointers[k] && (!r || r->state != ISO_RS_ACCEPTED))
            return iso_fail(e, ISO_ERR_INTERNAL, "I11: release %llu serves and was not accepted",
                            (unsigned long long)pointers[k]);
        for (size_t i = 0; r && i < r->file_count; i++)
            if (!agent_has_blob(a, &r->files[i].digest))
                return iso_fail(e, ISO_ERR_INTERNAL, "I11: release %llu serves without %.100s",
                                (unsigned long long)r->number, r->files[i].path);
    }
    if (a->want_count > AGENT_WANTS_MAX || a->request_count > AGENT_REQUESTS_MAX)
        return iso_fail(e, ISO_ERR_INTERNAL, "I6: a queue is above its ceiling");
    if (a->upload.state == UPLOAD_SENDING && a->upload.next - a->upload.received > 64)
        return iso_fail(e, ISO_ERR_INTERNAL, "I6: more chunks in flight than any credit");
    return ISO_OK;
}
