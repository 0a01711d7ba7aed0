/* Policy: who is invited, when a round closes, when the next one opens by itself (U26, U29, U35).
 */
#include "coordinator/inner.h"

bool iso_c_policy_may_invite(const iso_coord *c, const iso_c_site *s, int task)
{
    (void)c;
    bool is_member = s->state == ISO_SITE_ACTIVE || s->state == ISO_SITE_QUARANTINED;
    return is_member && (s->tasks >> task & 1);
}

/* One silent site never holds a round beyond its deadline; nobody waits for it longer than needed
 * when all others have answered and it was not invited. */
iso_c_close iso_c_policy_close(const iso_coord *c, const iso_c_round *r)
{
    if (r->unanswered == 0)
        return CLOSE_ALL_ANSWERED;
    return c->now >= r->deadline ? CLOSE_DEADLINE : CLOSE_NOT_YET;
}

static bool is_ready(const iso_c_site *s)
{
    return s->state == ISO_SITE_ACTIVE && s->peer && !s->peer->is_cut &&
           s->peer->state == PEER_READY;
}

uint64_t iso_c_policy_ready(const iso_coord *c)
{
    uint64_t tasks = 0;
    for (size_t t = 0; t < c->config.task_count; t++) {
        const iso_coord_task *task = &c->config.tasks[t];
        bool has_owner = false;
        for (size_t i = 0; i < task->site_count; i++) {
            const iso_c_site *s = iso_c_site_by_name(c, task->sites[i]);
            if (s && s->state == ISO_SITE_REVOKED)
                continue; /* never comes back: nobody waits for it */
            if (!s || !is_ready(s))
                return 0;
            has_owner = true;
        }
        for (size_t i = 0; i < c->site_count && !has_owner; i++)
            has_owner = (c->sites[i]->tasks >> t & 1) && is_ready(c->sites[i]);
        if (has_owner)
            tasks |= UINT64_C(1) << t;
    }
    return tasks;
}
