/* The gate: does a candidate become a release (C9; DESIGN 4). A candidate passes when no task falls
 * more than the margin below what it has now: its score under the current release, or, for a task
 * that is new to it, the frozen backbone with the task's head. */
#include "coordinator/inner.h"

#include <math.h>
#include <stdio.h>

/* The configured margin, or the two-sided 95 % binomial half-width at the baseline if larger: below
 * that a difference is chance (S94). */
double iso_c_gate_margin(double least, double baseline, uint64_t samples)
{
    double p = baseline < 0.0 ? 0.0 : baseline > 1.0 ? 1.0 : baseline;
    double half = samples ? 1.96 * sqrt(p * (1.0 - p) / (double)samples) : 1.0;
    return half > least ? half : least;
}

static double baseline_of(const iso_coord *c, const iso_c_round *r, int task)
{
    uint64_t samples;
    double stored = c->tasks[task].baseline[c->config.gate_metric];
    return isnan(stored) ? iso_c_mean_score(r, -1, task, c->config.gate_metric, &samples) : stored;
}

/* Judges one candidate; the reason names the task that fell furthest. */
static void judge(iso_coord *c, const iso_c_round *r, int index)
{
    iso_c_candidate *x = &r->candidates[index];
    double worst = (double)INFINITY, sum = 0.0;
    size_t tasks = 0;
    x->is_judged = x->has_passed = true;
    x->reason[0] = 0;
    for (size_t t = 0; t < c->config.task_count; t++) {
        if (!(r->eval_tasks >> t & 1))
            continue;
        uint64_t samples;
        double score = iso_c_mean_score(r, index, (int)t, c->config.gate_metric, &samples);
        double baseline = baseline_of(c, r, (int)t);
        const char *name = c->config.tasks[t].name;
        if (isnan(score) || isnan(baseline)) {
            x->has_passed = false;
            worst = (double)-INFINITY;
            snprintf(x->reason, sizeof x->reason, "%s: no site answered", name);
            continue;
        }
        double margin = iso_c_gate_margin(c->config.gate_margin, baseline, samples);
        double slack = score - (baseline - margin);
        if (slack < 0.0)
            x->has_passed = false;
        if (slack < worst) {
            worst = slack;
            snprintf(x->reason, sizeof x->reason, "%s: %.3f -> %.3f (margin %.3f)", name, baseline,
                     score, margin);
        }
        double own = c->tasks[t].own[0];
        sum += own > 0.0 ? score / own : score;
        tasks++;
    }
    x->mean = tasks ? sum / (double)tasks : 0.0;
}

static int best_of(const iso_c_round *r, bool must_pass)
{
    int best = -1;
    for (int i = 0; i < (int)r->candidate_count; i++) {
        const iso_c_candidate *x = &r->candidates[i];
        if ((x->has_passed || !must_pass) && (best < 0 || x->mean > r->candidates[best].mean))
            best = i;
    }
    return best;
}

static int first_of(const iso_c_round *r)
{
    for (int i = 0; i < (int)r->candidate_count; i++)
        if (r->candidates[i].has_passed)
            return i;
    return -1;
}

static void note_task_scores(iso_coord *c, iso_c_round *r)
{
    for (size_t i = 0; i < r->task_count; i++) {
        uint64_t samples;
        r->tasks[i].score =
            iso_c_mean_score(r, r->chosen, r->tasks[i].task, c->config.gate_metric, &samples);
        r->tasks[i].baseline = baseline_of(c, r, r->tasks[i].task);
    }
}

void iso_c_gate(iso_coord *c, iso_c_round *r)
{
    for (int i = 0; i < (int)r->candidate_count; i++) {
        judge(c, r, i);
        iso_c_log(c, ISO_LOG_INFO, "gate", "round=%llu method=%s passed=%d mean=%.4f why=\"%s\"",
                  (unsigned long long)r->number, r->candidates[i].method,
                  r->candidates[i].has_passed, r->candidates[i].mean,
                  iso_c_quote(c, r->candidates[i].reason));
    }
    r->judged_ms = c->wall;
    r->chosen = c->config.choose == ISO_CHOOSE_FIRST ? first_of(r) : best_of(r, true);
    iso_c_audit(c, ISO_AUDIT_GATE, NULL, r->chosen >= 0 ? &r->candidates[r->chosen].manifest : NULL,
                "\"candidates\":%zu,\"passed\":%s,\"round\":%llu", r->candidate_count,
                r->chosen >= 0 ? "true" : "false", (unsigned long long)r->number);
    if (r->chosen < 0) {
        int best = best_of(r, false);
        r->chosen = best;
        note_task_scores(c, r);
        r->chosen = -1;
        iso_c_round_hold(c, r,
                         iso_c_text(c, "no candidate passed the gate; best %s: %s",
                                    r->candidates[best].method, r->candidates[best].reason));
        return;
    }
    note_task_scores(c, r);
    iso_c_release_prepare(c, r);
}

iso_err iso_c_release_accept(iso_coord *c, iso_c_round *r, const char *by, iso_error *e)
{
    if (r->state != ROUND_HELD || r->candidate_count == 0)
        return iso_fail(e, ISO_ERR_NO, "round %llu is %s%s", (unsigned long long)r->number,
                        iso_c_round_state_name(r->state),
                        r->state == ROUND_HELD ? " and has no candidate" : ", not held");
    r->chosen = best_of(r, true);
    if (r->chosen < 0)
        r->chosen = best_of(r, false);
    r->by_operator = true;
    r->reason[0] = 0;
    note_task_scores(c, r);
    iso_c_audit(c, ISO_AUDIT_GATE, NULL, &r->candidates[r->chosen].manifest,
                "\"accepted_by\":\"%s\",\"round\":%llu", iso_c_quote(c, by),
                (unsigned long long)r->number);
    iso_c_release_prepare(c, r);
    return ISO_OK;
}
