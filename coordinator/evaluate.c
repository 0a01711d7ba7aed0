/* Evaluation of candidates by the sites: questions, answers, means (FED "Evaluation", C9).
 *
 * A question is (candidate, task, metric); every site that owns the task answers it on its own
 * images and sends a number: those that sent an update in this round, and whoever else is
 * connected. Which sites are asked stands in the round's record, so that a restart waits for the
 * same ones (I8). */
#include "coordinator/inner.h"
#include "crypto/request.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const char *const iso_c_metric_names[METRICS] = {"accuracy", "accuracy_refit", "accuracy@test",
                                                 "accuracy_refit@test"};

static void eval_id(const iso_coord *c, const iso_c_round *r, const iso_c_question *q,
                    uint8_t id[16])
{
    uint8_t text[13 + 8 + 32 + 16 + 1] = "isofed-eval-1";
    iso_put_u64(text + 13, r->number);
    if (q->candidate >= 0)
        memcpy(text + 21, r->candidates[q->candidate].manifest.b, 32);
    memcpy(text + 53, c->tasks[q->task].id, 16);
    text[69] = (uint8_t)q->metric;
    iso_digest d = c->sealer.digest(c->sealer.ctx, text, sizeof text);
    memcpy(id, d.b, 16);
}

/* The frozen backbone is asked once for each task that is new to the release: its baseline. */
bool iso_c_questions_make(iso_coord *c, iso_c_round *r)
{
    size_t tasks = (size_t)__builtin_popcountll(r->eval_tasks);
    size_t most = (r->candidate_count + 1) * tasks * METRICS;
    free(r->questions);
    r->question_count = 0;
    r->questions = iso_calloc(most, sizeof *r->questions);
    if (!r->questions)
        return false;
    for (int x = -1; x < (int)r->candidate_count; x++)
        for (size_t t = 0; t < c->config.task_count; t++) {
            uint64_t mask = x < 0 ? r->fresh_tasks : r->eval_tasks;
            if (!(mask >> t & 1))
                continue;
            for (uint32_t k = 0; k < r->metric_count; k++) {
                iso_c_question *q = &r->questions[r->question_count++];
                *q = (iso_c_question){.candidate = x, .task = (int)t, .metric = (int)k};
                eval_id(c, r, q, q->eval_id);
            }
        }
    return true;
}

iso_c_evaluator *iso_c_evaluator_add(iso_coord *c, iso_c_round *r, iso_c_site *s)
{
    iso_c_evaluator *wider = realloc(r->evaluators, (r->evaluator_count + 1) * sizeof *wider);
    if (wider)
        r->evaluators = wider;
    iso_c_answer *answers = iso_calloc(r->question_count, sizeof *answers);
    if (!wider || !answers) {
        free(answers);
        c->is_out_of_memory = true;
        return NULL;
    }
    iso_c_evaluator *v = &r->evaluators[r->evaluator_count++];
    *v = (iso_c_evaluator){.site = s, .answers = answers};
    for (size_t k = 0; k < r->question_count; k++)
        if (s->tasks >> r->questions[k].task & 1) {
            answers[k].state = ANSWER_OPEN;
            v->open++;
            r->open_answers++;
        }
    return v;
}

static iso_c_evaluator *evaluator_of(const iso_c_round *r, const iso_c_site *s)
{
    /* The place is remembered with the site; a stale one is found out by looking. */
    if (s->evaluator_at < r->evaluator_count && r->evaluators[s->evaluator_at].site == s)
        return &r->evaluators[s->evaluator_at];
    for (size_t i = 0; i < r->evaluator_count; i++)
        if (r->evaluators[i].site == s)
            return &r->evaluators[i];
    return NULL;
}

static bool is_online(const iso_c_site *s)
{
    return s->state == ISO_SITE_ACTIVE && s->peer && !s->peer->is_cut &&
           s->peer->state == PEER_READY;
}

void iso_c_evaluate_ask(iso_coord *c, iso_c_round *r, iso_c_site *s, bool is_again)
{
    iso_c_evaluator *v = evaluator_of(r, s);
    if (!v || !is_online(s))
        return;
    for (size_t k = 0; k < r->question_count; k++) {
        iso_c_answer *a = &v->answers[k];
        if (is_again && a->state == ANSWER_SENT) {
            a->state = ANSWER_OPEN;
            v->in_flight--;
        }
    }
    for (size_t k = 0; k < r->question_count && v->in_flight < EVALS_IN_FLIGHT; k++) {
        const iso_c_question *q = &r->questions[k];
        iso_c_answer *a = &v->answers[k];
        if (a->state != ANSWER_OPEN)
            continue;
        a->state = ANSWER_SENT;
        v->in_flight++;
        iso_msg_eval_request *m = &iso_c_send(c, s->peer, ISO_MSG_EVAL_REQUEST, 0)->eval_request;
        memcpy(m->eval_id, q->eval_id, 16);
        memcpy(m->task_id, c->tasks[q->task].id, 16);
        if (q->candidate >= 0)
            memcpy(m->candidate_digest, r->candidates[q->candidate].manifest.b, 32);
        m->deadline_ms = c->wall + (r->eval_deadline > c->now ? r->eval_deadline - c->now : 0);
        m->metric = iso_c_metric_names[q->metric];
    }
}

/* Through its invitations, which stand together: not one pass over the updates for each site. */
static bool has_contributed(const iso_c_round *r, const iso_c_site *s)
{
    for (size_t i = s->invite_at; i < s->invite_at + s->invite_count && i < r->invite_count; i++)
        if (r->invites[i].site == s && r->invites[i].update)
            return true;
    return false;
}

void iso_c_evaluate_begin(iso_coord *c, iso_c_round *r)
{
    r->state = ROUND_EVALUATING;
    r->eval_deadline = c->now + c->config.evaluate_timeout_ms;
    r->eval_tasks = iso_c_merge_mask(c);
    r->fresh_tasks = 0;
    r->metric_count = c->config.evaluate_test ? 4 : 2;
    for (size_t t = 0; t < c->config.task_count; t++)
        if ((r->eval_tasks >> t & 1) && isnan(c->tasks[t].baseline[c->config.gate_metric]))
            r->fresh_tasks |= UINT64_C(1) << t;
    if (!iso_c_questions_make(c, r)) {
        c->is_out_of_memory = true;
        return;
    }
    for (size_t i = 0; i < c->site_count; i++) {
        iso_c_site *s = c->sites[i];
        bool is_asked = s->state == ISO_SITE_ACTIVE && (is_online(s) || has_contributed(r, s));
        if (!(s->tasks & r->eval_tasks) || !is_asked)
            continue;
        s->evaluator_at = r->evaluator_count;
        if (!iso_c_evaluator_add(c, r, s))
            return;
    }
    iso_c_save_round(c, r, ISO_OP_PUT);
    iso_c_log(c, ISO_LOG_INFO, "evaluating", "round=%llu candidates=%zu sites=%zu answers=%llu",
              (unsigned long long)r->number, r->candidate_count, r->evaluator_count,
              (unsigned long long)r->open_answers);
    for (size_t i = 0; i < r->evaluator_count; i++)
        iso_c_evaluate_ask(c, r, r->evaluators[i].site, false);
}

void iso_c_evaluate_joined(iso_coord *c, iso_c_round *r, iso_c_site *s)
{
    if (!evaluator_of(r, s) && (s->tasks & r->eval_tasks)) {
        s->evaluator_at = r->evaluator_count;
        if (!iso_c_evaluator_add(c, r, s))
            return;
        iso_c_save_round(c, r, ISO_OP_PUT);
    }
    iso_c_evaluate_ask(c, r, s, true);
}

void iso_c_on_eval_result(iso_coord *c, iso_c_peer *p, const iso_msg *m)
{
    const iso_msg_eval_result *q = &m->eval_result;
    iso_c_round *r = iso_c_round_active(c);
    iso_c_evaluator *v = r && r->state == ROUND_EVALUATING ? evaluator_of(r, p->site) : NULL;
    if (!v)
        return; /* too late: the gate has judged; no harm (C9) */
    size_t k = 0;
    while (k < r->question_count && (memcmp(r->questions[k].eval_id, q->eval_id, 16) != 0 ||
                                     v->answers[k].state == ANSWER_NONE))
        k++;
    if (k == r->question_count) {
        iso_c_refuse(c, p, m->id, ISO_CODE_NOT_PERMITTED, q->eval_id, 16,
                     "this site was not asked that");
        return;
    }
    uint8_t bytes[ISO_EVAL_BYTES];
    iso_eval_bytes(c->identity.federation, p->site->id, q->eval_id, q->score, q->samples, q->margin,
                   q->outcome, bytes);
    if (!c->sealer.verify(c->sealer.ctx, ISO_LABEL_REQUEST, p->site->sign_pk, bytes, sizeof bytes,
                          q->signature)) {
        iso_c_refuse(c, p, m->id, ISO_CODE_SIGNATURE, q->eval_id, 16,
                     "the result is not signed by this site's key");
        return;
    }
    if (!isfinite(q->score) || q->score < 0.0f || q->score > 1.0f || q->samples > ISO_SAMPLES_MAX) {
        iso_c_refuse(c, p, m->id, ISO_CODE_BAD_MESSAGE, q->eval_id, 16,
                     "score must be 0..1, samples at most 10^9");
        return;
    }
    iso_c_answer *a = &v->answers[k];
    if (a->state == ANSWER_GIVEN) {
        bool is_same = memcmp(&a->score, &q->score, sizeof a->score) == 0 &&
                       a->samples == q->samples && a->outcome == (uint8_t)q->outcome;
        if (!is_same)
            iso_c_refuse(c, p, m->id, ISO_CODE_EQUIVOCATION, q->eval_id, 16,
                         "this question was answered otherwise before; the first answer counts");
        return;
    }
    if (a->state == ANSWER_SENT)
        v->in_flight--;
    a->state = ANSWER_GIVEN;
    a->outcome = (uint8_t)q->outcome;
    a->score = q->score;
    a->samples = q->samples;
    v->open--;
    r->open_answers--;
    iso_c_save_score(c, r, &r->questions[k], p->site, a);
    iso_c_evaluate_ask(c, r, p->site, false);
}

/* All that were asked have answered, or time is up; revoked sites are not waited for. */
bool iso_c_evaluate_is_complete(const iso_coord *c, const iso_c_round *r)
{
    if (c->now >= r->eval_deadline)
        return true;
    if (r->evaluator_count == 0)
        return false;
    if (r->open_answers == 0)
        return true;
    for (size_t i = 0; i < r->evaluator_count; i++)
        if (r->evaluators[i].open && r->evaluators[i].site->state == ISO_SITE_ACTIVE)
            return false;
    return true;
}

double iso_c_mean_score(const iso_c_round *r, int candidate, int task, int metric,
                        uint64_t *samples)
{
    double sum = 0.0;
    *samples = 0;
    for (size_t k = 0; k < r->question_count; k++) {
        const iso_c_question *q = &r->questions[k];
        if (q->candidate != candidate || q->task != task || q->metric != metric)
            continue;
        for (size_t i = 0; i < r->evaluator_count; i++) {
            const iso_c_answer *a = &r->evaluators[i].answers[k];
            bool is_scored = a->state == ANSWER_GIVEN && a->samples > 0 &&
                             (a->outcome == ISO_EVAL_SCORED || a->outcome == ISO_EVAL_NONE);
            if (!is_scored)
                continue;
            sum += (double)a->score * (double)a->samples;
            *samples += a->samples;
        }
    }
    return *samples ? sum / (double)*samples : (double)NAN;
}
