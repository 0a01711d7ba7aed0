/* People and chance: the operator opens rounds and decides about held ones, sites come and are
 * revoked, hosts die, lines are cut. When the rounds are over nothing fails any more, and
 * everything has to come to rest: the liveness that DESIGN 7 asks for. */
#include "sim/inner.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

enum { LOOK_MS = 10000, FIRST_LOOK_MS = 60000, QUIET_MS = 120000 };

static uint64_t mean_ms(const iso_sim *w, sim_fault fault)
{
    const iso_scenario *s = w->s;
    switch (fault) {
    case FAULT_COORDINATOR:
        return s->crash.coordinator_every_ms;
    case FAULT_SITE:
        return s->crash.site_every_ms;
    case FAULT_PARTITION:
        return s->net.partition_every_ms;
    case FAULT_DISK:
        return s->disk.full_every_ms;
    case FAULT_CLOCK:
        return s->clock.jump_every_ms;
    case FAULT_JOIN:
        return s->churn.join_every_ms;
    case FAULT_REVOKE:
        return s->churn.revoke_every_ms;
    default:
        return 0;
    }
}

static void again(iso_sim *w, sim_fault fault)
{
    uint64_t mean = mean_ms(w, fault);
    if (mean)
        sim_push(w, w->now_us + sim_after(&w->churn, mean), EV_FAULT, 0, fault, NULL);
}

void sim_operate_start(iso_sim *w)
{
    for (int k = 0; k < FAULT_COUNT; k++)
        again(w, (sim_fault)k);
    sim_push(w, FIRST_LOOK_MS * 1000ull, EV_OPERATE, 0, 0, NULL);
}

/* ---- faults ---- */

static sim_site *any_site(iso_sim *w)
{
    return w->sites[sim_random(&w->churn, w->site_count)];
}

/* Half of the deaths come at once, half after one of the next things that the host does. */
static void kill_coordinator(iso_sim *w)
{
    if (w->c.core && sim_chance(&w->churn, 0.5))
        w->c.die_after = 1 + (uint32_t)sim_random(&w->churn, 20);
    else
        sim_coordinator_crash(w);
}

static void kill_site(iso_sim *w)
{
    sim_site *s = any_site(w);
    if (s->agent && sim_chance(&w->churn, 0.6))
        s->die_after = 1 + (uint32_t)sim_random(&w->churn, 30);
    else
        sim_site_crash(w, s);
}

static void partition(iso_sim *w)
{
    uint64_t until = w->now_us + sim_after(&w->churn, w->s->net.partition_for_ms);
    for (size_t i = 0; i < w->site_count; i++)
        if (sim_chance(&w->churn, w->s->net.partition_share))
            sim_partition(w, w->sites[i], until);
}

static void revoke(iso_sim *w)
{
    char command[200];
    sim_site *s = any_site(w);
    if (!s->is_enrolled || sim_site_is_revoked(w, s))
        return;
    snprintf(command, sizeof command,
             "{\"cmd\":\"sites.revoke\",\"args\":{\"name\":\"%s\",\"reason\":\"sold\","
             "\"withdraw\":%s}}",
             s->name, sim_chance(&w->churn, w->s->churn.withdraw) ? "true" : "false");
    /* Without force: the last site of a task stays, or its rounds could never end well. */
    sim_admin(w, command);
    if (sim_site_is_revoked(w, s))
        sim_trace(w, "operator: %s is revoked", s->name);
}

static void jump(iso_sim *w)
{
    int64_t by =
        (int64_t)sim_random(&w->churn, 2 * w->s->clock.jump_ms) - (int64_t)w->s->clock.jump_ms;
    if (sim_chance(&w->churn, 0.2))
        w->c.wall_skew_ms += by;
    else
        any_site(w)->wall_skew_ms += by;
}

void sim_fault_now(iso_sim *w, sim_fault fault)
{
    if (fault == FAULT_DISK_END) {
        w->c.disk.is_full = false;
        return;
    }
    if (w->are_faults_over)
        return;
    switch (fault) {
    case FAULT_COORDINATOR:
        kill_coordinator(w);
        break;
    case FAULT_SITE:
        kill_site(w);
        break;
    case FAULT_PARTITION:
        partition(w);
        break;
    case FAULT_DISK:
        w->c.disk.is_full = true;
        sim_trace(w, "coordinator: disk full");
        sim_push(w, w->now_us + sim_after(&w->churn, w->s->disk.full_for_ms), EV_FAULT, 0,
                 FAULT_DISK_END, NULL);
        break;
    case FAULT_CLOCK:
        jump(w);
        break;
    case FAULT_JOIN:
        if (w->site_count < 4ull * w->s->sites && !w->is_closing && !sim_site_new(w, true)) {
            iso_error e;
            sim_fail(w, iso_nomem(&e, sizeof(sim_site)), &e);
        }
        break;
    case FAULT_REVOKE:
        revoke(w);
        break;
    default:
        break;
    }
    again(w, fault);
}

/* ---- the operator ---- */

static void command(iso_sim *w, const char *fmt, ...) ISO_PRINTF(2, 3);
static void command(iso_sim *w, const char *fmt, ...)
{
    char text[200];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    const char *reply = sim_admin(w, text);
    sim_trace(w, "operator: %s -> %.120s", text, reply ? reply : "no answer");
}

static void stop_faults(iso_sim *w)
{
    if (w->are_faults_over)
        return;
    w->are_faults_over = true;
    w->c.disk.is_full = false;
    w->c.die_after = 0;
    for (size_t i = 0; i < w->site_count; i++)
        w->sites[i]->die_after = 0;
    sim_trace(w, "operator: no more faults");
}

static const char *unrest(const iso_sim *w, const char **who)
{
    const char *why = NULL;
    const iso_history *h = &w->history;
    *who = "coordinator";
    if (!w->c.core)
        return "is down";
    bool is_open = h->round && h->round_state < ISO_HISTORY_RELEASED;
    if (is_open && !w->s->is_auto) /* the policy opens the next one by itself */
        return "has a round that has not ended";
    if (!is_open && h->receipts != h->used + h->refused + h->late)
        return "holds updates without a fate";
    for (size_t i = 0; i < w->site_count; i++)
        if (!sim_site_is_at_rest(w, w->sites[i], &why)) {
            *who = w->sites[i]->name;
            return why;
        }
    return NULL;
}

/* The rounds are over. At rest for two minutes: done. Not at rest in time: liveness is broken. */
static void close_down(iso_sim *w)
{
    const char *who, *why = unrest(w, &who);
    if (!w->is_closing) {
        w->is_closing = true;
        stop_faults(w);
        w->rest_since_us = w->now_us;
    }
    if (!why) {
        w->is_over = true;
    } else if (w->now_us - w->rest_since_us > w->s->settle_ms * 1000) {
        iso_error e;
        sim_fail(w,
                 iso_fail(&e, ISO_ERR_NO, "liveness: %s %s %llu min after the last fault", who, why,
                          (unsigned long long)(w->s->settle_ms / 60000)),
                 &e);
    }
}

static void held(iso_sim *w)
{
    if (sim_chance(&w->churn, w->s->operate.accept))
        command(w, "{\"cmd\":\"releases.accept\",\"args\":{\"round\":%llu}}",
                (unsigned long long)w->history.round);
    if (w->history.round_state == ISO_HISTORY_HELD)
        command(w, "{\"cmd\":\"rounds.abort\",\"args\":{\"number\":%llu,\"reason\":\"held\"}}",
                (unsigned long long)w->history.round);
}

static void between_rounds(iso_sim *w)
{
    const iso_history *h = &w->history;
    if (h->release_count > 1 && sim_chance(&w->churn, w->s->operate.rollback)) {
        command(w, "{\"cmd\":\"releases.rollback\",\"args\":{\"number\":%llu,\"reason\":\"test\"}}",
                (unsigned long long)h->releases[h->release_count - 2].number);
        return;
    }
    if (!w->s->is_auto)
        command(w, "{\"cmd\":\"rounds.open\",\"args\":{}}");
}

static void during_round(iso_sim *w)
{
    enum { OPEN = 1 };
    if (w->history.round_state != OPEN || !sim_chance(&w->churn, w->s->operate.pause * 0.1))
        return;
    command(w, "{\"cmd\":\"rounds.pause\",\"args\":{\"number\":%llu}}",
            (unsigned long long)w->history.round);
    command(w, "{\"cmd\":\"rounds.resume\",\"args\":{\"number\":%llu}}",
            (unsigned long long)w->history.round);
}

void sim_operate(iso_sim *w)
{
    const iso_history *h = &w->history;
    uint64_t next_ms = LOOK_MS < w->s->interval_ms ? LOOK_MS : w->s->interval_ms;
    if (w->s->faults_until_ms && w->now_us / 1000 >= w->s->faults_until_ms)
        stop_faults(w);
    bool is_late = w->now_us / 1000 >= w->s->until_ms;
    bool is_done = h->rounds_ended >= w->s->rounds;
    bool is_between = h->round == 0 || h->round_state >= ISO_HISTORY_RELEASED;
    if (w->c.core && h->round_state == ISO_HISTORY_HELD)
        held(w);
    else if (is_late && !is_done && !w->is_closing) {
        iso_error e;
        sim_fail(w,
                 iso_fail(&e, ISO_ERR_NO, "liveness: %llu of %u rounds after %llu h",
                          (unsigned long long)h->rounds_ended, w->s->rounds,
                          (unsigned long long)(w->s->until_ms / 3600000)),
                 &e);
    } else if (is_done && (is_between || w->is_closing))
        close_down(w);
    else if (w->c.core && is_between)
        between_rounds(w);
    else if (w->c.core)
        during_round(w);
    if (w->is_closing)
        next_ms = QUIET_MS / 4;
    sim_push(w, w->now_us + (next_ms ? next_ms : 1000) * 1000, EV_OPERATE, 0, 0, NULL);
}
