/* Scores that the coordinator asks for before a release (DESIGN 4: sites send only numbers).
 *
 * A candidate is fetched and its features are computed once a task; all metrics are answered from
 * that one result, which is kept for a while so that a repeated question costs nothing. A zero
 * candidate means the frozen backbone with the task's head. */
#include "client/agent_inner.h"
#include "core/json.h"
#include "crypto/request.h"
#include "nn/train/metrics.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RETRY_MS = 10 * 1000, FAILURES_MAX = 3 };
static const uint64_t head_max_bytes = 64ull << 20;

void agent_eval_job_id(const iso_digest *candidate, const uint8_t task_id[16], uint8_t id[16])
{
    uint8_t bytes[8 + 32 + 16] = "evaluat1";
    memcpy(bytes + 8, candidate->b, 32);
    memcpy(bytes + 40, task_id, 16);
    iso_digest d = iso_digest_of(bytes, sizeof bytes);
    memcpy(id, d.b, 16);
}

static bool parse_metric(const char *name, agent_metric *out)
{
    static const char *const names[] = {"accuracy", "accuracy_refit", "accuracy@test",
                                        "accuracy_refit@test"};
    for (int i = 0; i < 4; i++)
        if (strcmp(name, names[i]) == 0) {
            *out = (agent_metric)i;
            return true;
        }
    return false;
}

static void answer(iso_agent *a, const uint8_t eval_id[16], const iso_score *s,
                   iso_eval_outcome outcome)
{
    iso_msg_eval_result *m = &agent_send(a, ISO_MSG_EVAL_RESULT, NULL)->eval_result;
    uint8_t bytes[ISO_EVAL_BYTES];
    memcpy(m->eval_id, eval_id, 16);
    if (outcome == ISO_EVAL_SCORED) {
        m->score = s->value;
        m->samples = s->samples;
        m->margin = (float)iso_binomial_half_width((double)s->value, (size_t)s->samples);
    }
    m->outcome = outcome;
    iso_eval_bytes(a->config.federation_id, a->config.site_id, eval_id, m->score, m->samples,
                   m->margin, outcome, bytes);
    a->seams.sealer.sign(a->seams.sealer.ctx, ISO_LABEL_REQUEST, bytes, sizeof bytes, m->signature);
}

static agent_eval *find(iso_agent *a, const iso_digest *candidate, size_t task)
{
    for (size_t i = 0; i < a->eval_count; i++)
        if (a->evals[i].task == task && iso_digest_equal(&a->evals[i].candidate, candidate))
            return &a->evals[i];
    return NULL;
}

static bool has_requests(const iso_agent *a, const agent_eval *v)
{
    for (size_t i = 0; i < a->request_count; i++)
        if (a->requests[i].task == v->task &&
            iso_digest_equal(&a->requests[i].candidate, &v->candidate))
            return true;
    return false;
}

static bool is_current(const iso_agent *a, const agent_eval *v)
{
    return v->is_scored && iso_digest_equal(&v->data, &a->tasks[v->task].data);
}

static void drop_request(iso_agent *a, size_t i)
{
    memmove(&a->requests[i], &a->requests[i + 1], (a->request_count - i - 1) * sizeof *a->requests);
    a->request_count--;
}

/* Answers every request of this candidate and task, with a score or without. */
static void answer_all(iso_agent *a, const agent_eval *v, iso_eval_outcome outcome)
{
    if (!agent_is_online(a))
        return; /* kept; the coordinator asks again at the greeting anyway */
    const iso_score *scores[4] = {&v->val.delivered, &v->val.refitted, &v->test.delivered,
                                  &v->test.refitted};
    for (size_t i = 0; i < a->request_count; i++) {
        const agent_eval_request *q = &a->requests[i];
        if (q->task != v->task || !iso_digest_equal(&q->candidate, &v->candidate))
            continue;
        const iso_score *s = scores[q->metric];
        iso_eval_outcome o = outcome;
        if (o == ISO_EVAL_SCORED && (!s->is_known || s->samples == 0))
            o = ISO_EVAL_NO_DATA;
        answer(a, q->eval_id, s, o);
        drop_request(a, i--);
    }
}

static void evict(iso_agent *a)
{
    while (a->eval_count > AGENT_EVALS_KEPT) {
        size_t oldest = a->eval_count;
        for (size_t i = 0; i < a->eval_count; i++)
            if (!has_requests(a, &a->evals[i]) &&
                (oldest == a->eval_count || a->evals[i].stamp < a->evals[oldest].stamp))
                oldest = i;
        if (oldest == a->eval_count)
            return;
        const agent_eval *v = &a->evals[oldest];
        uint8_t key[48];
        memcpy(key, v->candidate.b, 32);
        memcpy(key + 32, a->tasks[v->task].config->id, 16);
        agent_delete(a, ISO_AT_EVAL, key, sizeof key);
        agent_commit(a);
        memmove(&a->evals[oldest], &a->evals[oldest + 1],
                (a->eval_count - oldest - 1) * sizeof *a->evals);
        a->eval_count--;
    }
}

void agent_eval_requested(iso_agent *a, const iso_msg_eval_request *m)
{
    size_t task = 0;
    agent_metric metric;
    if (!agent_is_online(a))
        return;
    while (task < a->config.task_count && memcmp(a->tasks[task].config->id, m->task_id, 16) != 0)
        task++;
    if (task == a->config.task_count || !parse_metric(m->metric, &metric)) {
        answer(a, m->eval_id, NULL, ISO_EVAL_FAILED);
        return;
    }
    for (size_t i = 0; i < a->request_count; i++)
        if (memcmp(a->requests[i].eval_id, m->eval_id, 16) == 0)
            return;
    if (a->request_count >= AGENT_REQUESTS_MAX)
        return; /* asked again when these are answered */
    agent_eval_request *q = agent_grow(a, &a->requests, &a->request_count, sizeof *q);
    if (!q)
        return;
    memcpy(q->eval_id, m->eval_id, 16);
    memcpy(q->candidate.b, m->candidate_digest, 32);
    q->task = task;
    q->metric = metric;
    q->deadline_ms = m->deadline_ms;
    if (find(a, &q->candidate, task))
        return;
    agent_eval *v = agent_grow(a, &a->evals, &a->eval_count, sizeof *v);
    if (!v)
        return;
    v->candidate = q->candidate;
    v->task = task;
    v->stamp = a->eval_stamp++;
    if (iso_digest_is_zero(&v->candidate)) {
        v->is_fetched = true;
        v->head = a->tasks[task].head;
    }
    evict(a);
}

static iso_err take_file(const iso_json *file, agent_eval *v, const char *head_path, iso_error *e)
{
    const char *path, *hex;
    int64_t size;
    iso_digest digest;
    iso_err err;
    if ((err = iso_json_need_str(file, "path", &path, e)) != ISO_OK ||
        (err = iso_json_need_str(file, "digest", &hex, e)) != ISO_OK ||
        (err = iso_json_need_int(file, "size", 0, (int64_t)ISO_RELEASE_MAX_BYTES, &size, e)) !=
            ISO_OK)
        return err;
    if (!iso_unhex(digest.b, 32, hex))
        return iso_fail(e, ISO_ERR_DATA, "candidate: \"digest\" of \"%.64s\" is no digest", path);
    if (strcmp(path, "adapter/adapter_config.json") == 0) {
        v->config = digest;
        v->config_bytes = (uint64_t)size;
    } else if (strcmp(path, "adapter/adapter_model.safetensors") == 0) {
        v->model = digest;
        v->model_bytes = (uint64_t)size;
    } else if (strcmp(path, head_path) == 0) {
        v->head = digest;
        v->head_bytes = (uint64_t)size;
    }
    return ISO_OK;
}

static iso_err read_candidate(iso_agent *a, agent_eval *v, const void *bytes, size_t size,
                              iso_error *e)
{
    iso_json *root = NULL;
    char head_path[ISO_MANIFEST_PATH_MAX];
    const char *kind;
    int64_t format;
    snprintf(head_path, sizeof head_path, "heads/%s.safetensors", a->tasks[v->task].config->name);
    iso_err err = iso_json_check_canonical(bytes, size, "candidate", e);
    if (err == ISO_OK)
        err = iso_json_parse(bytes, size, "candidate", &root, e);
    if (err == ISO_OK)
        err = iso_json_need_int(root, "format", 1, 1, &format, e);
    if (err == ISO_OK)
        err = iso_json_need_str(root, "kind", &kind, e);
    const iso_json *files = err == ISO_OK ? iso_json_key(root, "files") : NULL;
    if (err == ISO_OK && (strcmp(kind, "candidate") != 0 || !files || !iso_json_is_array(files) ||
                          iso_json_count(files) > ISO_RELEASE_FILES_MAX))
        err = iso_fail(e, ISO_ERR_DATA, "candidate: it is no list of a candidate's files");
    for (size_t i = 0; err == ISO_OK && i < iso_json_count(files); i++)
        err = take_file(iso_json_at(files, i), v, head_path, e);
    if (err == ISO_OK && (iso_digest_is_zero(&v->config) || iso_digest_is_zero(&v->model)))
        err = iso_fail(e, ISO_ERR_DATA, "candidate: it has no adapter");
    iso_json_free(root);
    return err;
}

static void fail_once(iso_agent *a, agent_eval *v, bool is_final, const char *why)
{
    agent_log(a, ISO_LOG_WARN, "evaluation_failed", "task=%s final=%s reason=\"%s\"",
              a->tasks[v->task].config->name, is_final ? "yes" : "no", why);
    if (!is_final && ++v->failures < FAILURES_MAX) {
        v->retry_ms = a->mono + ((uint64_t)RETRY_MS << v->failures);
        v->is_asked = false;
        return;
    }
    answer_all(a, v, ISO_EVAL_FAILED);
    v->failures = 0;
    v->is_asked = false;
}

void agent_eval_bytes(iso_agent *a, const iso_digest *digest, const void *bytes, size_t size)
{
    for (size_t i = 0; i < a->eval_count; i++) {
        agent_eval *v = &a->evals[i];
        iso_error error = {0};
        if (v->is_fetched || !iso_digest_equal(&v->candidate, digest))
            continue;
        if (read_candidate(a, v, bytes, size, &error) != ISO_OK)
            fail_once(a, v, true, error.text);
        else
            v->is_fetched = true;
    }
}

void agent_eval_blob_failed(iso_agent *a, const iso_digest *digest, const char *why)
{
    for (size_t i = 0; i < a->eval_count; i++) {
        agent_eval *v = &a->evals[i];
        if (has_requests(a, v) &&
            (iso_digest_equal(digest, &v->candidate) || iso_digest_equal(digest, &v->config) ||
             iso_digest_equal(digest, &v->model) || iso_digest_equal(digest, &v->head)))
            fail_once(a, v, false, why);
    }
}

static agent_eval *by_job(iso_agent *a, const uint8_t id[16])
{
    for (size_t i = 0; i < a->eval_count; i++) {
        uint8_t own[16];
        agent_eval_job_id(&a->evals[i].candidate, a->tasks[a->evals[i].task].config->id, own);
        if (memcmp(own, id, 16) == 0)
            return &a->evals[i];
    }
    return NULL;
}

void agent_eval_done(iso_agent *a, const iso_trainer_event *ev)
{
    agent_eval *v = by_job(a, ev->id);
    if (!v)
        return;
    v->val = ev->val;
    v->test = ev->test;
    v->data = a->tasks[v->task].data;
    v->is_scored = true;
    v->failures = 0;
    agent_save_eval(a, v);
    agent_commit(a);
    answer_all(a, v, ISO_EVAL_SCORED);
    agent_collect(a);
}

void agent_eval_failed(iso_agent *a, const iso_trainer_event *ev)
{
    agent_eval *v = by_job(a, ev->id);
    if (v)
        fail_once(a, v, ev->is_final, ev->sentence);
}

const agent_eval *agent_eval_ready(const iso_agent *a)
{
    for (size_t i = 0; i < a->eval_count; i++) {
        const agent_eval *v = &a->evals[i];
        bool is_frozen = iso_digest_is_zero(&v->candidate);
        if (has_requests(a, v) && v->is_fetched && !is_current(a, v) && a->mono >= v->retry_ms &&
            a->tasks[v->task].has_data && agent_has_blob(a, &v->head) &&
            (is_frozen || (agent_has_blob(a, &v->config) && agent_has_blob(a, &v->model))))
            return v;
    }
    return NULL;
}

static void expire(iso_agent *a)
{
    for (size_t i = a->request_count; i-- > 0 && a->is_clock_known;)
        if (a->requests[i].deadline_ms && a->requests[i].deadline_ms < agent_coordinator_ms(a))
            drop_request(a, i);
}

void agent_eval_advance(iso_agent *a)
{
    expire(a);
    for (size_t i = 0; i < a->eval_count; i++) {
        agent_eval *v = &a->evals[i];
        const agent_task *t = &a->tasks[v->task];
        if (!has_requests(a, v))
            continue;
        if (iso_digest_is_zero(&v->candidate) && !iso_digest_equal(&v->head, &t->head)) {
            v->head = t->head; /* the frozen backbone goes with the task's head as it is now */
            v->is_scored = false;
        }
        if (is_current(a, v)) {
            answer_all(a, v, ISO_EVAL_SCORED);
            continue;
        }
        if (t->has_data && t->val + t->test == 0 && t->train == 0) {
            answer_all(a, v, ISO_EVAL_NO_DATA);
            continue;
        }
        if (a->mono < v->retry_ms)
            continue;
        if (!v->is_fetched) {
            if (!v->is_asked)
                agent_fetch_want(a, FETCH_CANDIDATE, &v->candidate, 0, ISO_MANIFEST_MAX_BYTES);
            v->is_asked = true;
            continue;
        }
        if (iso_digest_is_zero(&v->head))
            v->head = t->head;
        if (iso_digest_is_zero(&v->head)) {
            fail_once(a, v, true, "the task has no head here yet");
            continue;
        }
        agent_fetch_want(a, FETCH_FILE, &v->head, v->head_bytes, head_max_bytes);
        if (!iso_digest_is_zero(&v->candidate)) {
            agent_fetch_want(a, FETCH_FILE, &v->config, v->config_bytes, v->config_bytes);
            agent_fetch_want(a, FETCH_FILE, &v->model, v->model_bytes, v->model_bytes);
        }
    }
}

iso_time agent_eval_wake(const iso_agent *a)
{
    iso_time wake = AGENT_NEVER;
    for (size_t i = 0; i < a->eval_count; i++) {
        const agent_eval *v = &a->evals[i];
        if (v->retry_ms > a->mono && v->retry_ms < wake && has_requests(a, v))
            wake = v->retry_ms;
    }
    return wake;
}
