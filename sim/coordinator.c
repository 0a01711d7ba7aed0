/* Shell of the coordinator's core, as coordinator/perform.c is: rows of several steps become
 * durable in one transaction, and only then is seen what stands behind them (S88). A crash between
 * loses the transaction or keeps it, and loses the rest. */
#include "sim/inner.h"

#include <stdlib.h>
#include <string.h>

static iso_time mono(const iso_sim *w)
{
    return w->now_us / 1000 + 1000;
}

static void step(iso_sim *w, const iso_coord_event *ev);

/* ---- one effect each ---- */

static void answer(iso_sim *w, iso_coord_event_kind kind, const uint8_t id[16], uint32_t chunks,
                   iso_stored stored)
{
    sim_coordinator *c = &w->c;
    iso_coord_event ev = {.kind = kind, .chunks = chunks, .stored = stored};
    memcpy(ev.id, id, 16);
    if (c->answer_count == c->answer_capacity) {
        size_t capacity = c->answer_capacity ? 2 * c->answer_capacity : 64;
        iso_coord_event *wider = realloc(c->answers, capacity * sizeof *wider);
        iso_error e;
        if (!wider) {
            sim_fail(w, iso_nomem(&e, capacity * sizeof *wider), &e);
            return;
        }
        c->answers = wider;
        c->answer_capacity = capacity;
    }
    c->answers[c->answer_count++] = ev;
}

static void do_upload(iso_sim *w, const iso_coord_effect *x)
{
    iso_sim_disk *d = &w->c.disk;
    iso_sim_partial *p;
    switch (x->kind) {
    case ISO_CX_UPLOAD_OPEN:
        if (!(p = iso_sim_disk_partial_open(d, x->id, 16)) || d->is_full)
            break;
        p->chunk_bytes = x->chunk_bytes;
        p->total_bytes = x->body_bytes;
        uint32_t chunks =
            (uint32_t)(p->content.size == x->body_bytes ? x->chunk_count
                                                        : p->content.size / x->chunk_bytes);
        p->content.size =
            p->content.size == x->body_bytes ? p->content.size : (size_t)chunks * x->chunk_bytes;
        answer(w, ISO_CE_UPLOAD_OPENED, x->id, chunks, ISO_STORED_OK);
        return;
    case ISO_CX_UPLOAD_WRITE:
        if ((p = iso_sim_disk_partial(d, x->id, 16)) && !d->is_full &&
            iso_buf_append(&p->content, x->data, x->data_bytes, NULL) == ISO_OK)
            return;
        break;
    case ISO_CX_UPLOAD_STORE: {
        if (!(p = iso_sim_disk_partial(d, x->id, 16)) || d->is_full)
            break;
        iso_digest got = w->c.sealer.digest(w->c.sealer.ctx, p->content.data, p->content.size);
        bool is_right = iso_digest_equal(&got, &x->digest) && p->content.size == x->body_bytes;
        iso_error e;
        if (is_right && iso_sim_disk_put(d, p->content.data, p->content.size, NULL, &e))
            break;
        iso_sim_disk_partial_drop(d, x->id, 16);
        answer(w, ISO_CE_UPLOAD_STORED, x->id, 0, is_right ? ISO_STORED_OK : ISO_STORED_DIGEST);
        return;
    }
    default:
        iso_sim_disk_partial_drop(d, x->id, 16);
        return;
    }
    answer(w, ISO_CE_UPLOAD_STORED, x->id, 0, ISO_STORED_DISK);
}

static void do_send(iso_sim *w, const iso_coord_effect *x)
{
    iso_error e;
    iso_sim_blob *blob = NULL;
    iso_msg mutated;
    const iso_msg *m = sim_mutate_send(w, x->msg, &mutated);
    iso_err err = iso_history_send(&w->history, m, &e);
    if (err) {
        sim_fail(w, err, &e);
        return;
    }
    if (x->is_blob_piece) {
        blob = iso_sim_disk_blob(&w->c.disk, &x->digest);
        if (!blob || blob->bytes < x->piece_offset + x->piece_bytes) {
            iso_coord_blob_damaged(w->c.core, &x->digest);
            return;
        }
    }
    if (m->type == ISO_MSG_ERROR && m->error.code >= ISO_CODE_BAD_ENVELOPE &&
        m->error.code < ISO_CODE_BLOB_UNKNOWN)
        w->result.refused_by[m->error.code]++;
    if (sim_is_traced(w)) {
        const sim_line *line = sim_line_of(w, x->peer);
        sim_trace(w, "coordinator -> %s: %s %s", line ? w->sites[line->site]->name : "nobody",
                  iso_msg_type_name(m->type),
                  m->type == ISO_MSG_ERROR ? iso_code_name(m->error.code) : "");
    }
    sim_send_down(w, x->peer, m, blob, x->piece_offset, x->piece_bytes);
}

static void do_job(iso_sim *w, const iso_job *job)
{
    static const uint64_t base_ms[] = {0, 2000, 5000, 500};
    sim_coordinator *c = &w->c;
    iso_error e;
    iso_arena_reset(&c->job_arena);
    c->job = iso_sim_job_copy(job, &c->job_arena);
    if (!c->job) {
        sim_fail(w, iso_nomem(&e, 0), &e);
        return;
    }
    sim_mutate_job(w, c->job);
    iso_err err = iso_history_job(&w->history, c->job, &e);
    if (err)
        sim_fail(w, err, &e);
    c->job_number++;
    uint64_t ms = base_ms[job->kind] + sim_random(&w->work, 1000);
    sim_trace(w, "coordinator: worker starts %s of round %llu",
              job->kind == ISO_JOB_SIGN    ? "sign"
              : job->kind == ISO_JOB_MERGE ? "merge"
                                           : "heads",
              (unsigned long long)job->round);
    sim_push(w, w->now_us + ms * 1000, EV_JOB, 0, c->job_number, NULL);
}

static void perform(iso_sim *w, const iso_coord_effect *x)
{
    sim_coordinator *c = &w->c;
    iso_error e;
    switch (x->kind) {
    case ISO_CX_PUT_BLOB:
        if (iso_sim_disk_put(&c->disk, x->data, x->data_bytes, NULL, &e))
            c->must_reload = true;
        break;
    case ISO_CX_DELETE_BLOB:
        iso_sim_disk_delete(&c->disk, &x->digest);
        break;
    case ISO_CX_SEND:
        do_send(w, x);
        break;
    case ISO_CX_CUT:
        sim_cut(w, x->peer);
        break;
    case ISO_CX_ADMITTED:
        c->is_admitted_old = true;
        break;
    case ISO_CX_UPLOAD_OPEN:
    case ISO_CX_UPLOAD_WRITE:
    case ISO_CX_UPLOAD_STORE:
    case ISO_CX_UPLOAD_DROP:
        do_upload(w, x);
        break;
    case ISO_CX_JOB_START:
        do_job(w, x->job);
        break;
    case ISO_CX_JOB_CANCEL:
        if (c->job && memcmp(c->job->id, x->id, 16) == 0)
            c->job = NULL;
        break;
    case ISO_CX_ADMIN_REPLY:
        free(c->admin_reply);
        c->admin_reply = iso_strdup(x->text);
        break;
    case ISO_CX_LOG:
        sim_trace(w, "coordinator: %s %s", x->event, x->text);
        break;
    case ISO_CX_STOP:
    case ISO_CX_COMMIT:
        break;
    }
}

/* ---- group commit ---- */

static bool hold(sim_coordinator *c, const iso_coord_effect *x)
{
    if (c->held_count == c->held_capacity) {
        size_t capacity = c->held_capacity ? 2 * c->held_capacity : 256;
        const iso_coord_effect **wider = realloc(c->held, capacity * sizeof(*wider));
        if (!wider)
            return false;
        c->held = wider;
        c->held_capacity = capacity;
    }
    c->held[c->held_count++] = x;
    return true;
}

static bool gather(sim_coordinator *c, const iso_coord_effect *x)
{
    if (c->op_count + x->op_count > c->op_capacity) {
        size_t capacity = 2 * (c->op_count + x->op_count);
        iso_op *wider = realloc(c->ops, capacity * sizeof *wider);
        if (!wider)
            return false;
        c->ops = wider;
        c->op_capacity = capacity;
    }
    memcpy(c->ops + c->op_count, x->ops, x->op_count * sizeof *x->ops);
    c->op_count += x->op_count;
    return true;
}

/* What nobody sees before the transaction returns. */
static bool is_private(const iso_coord_effect *x, bool has_own_commit)
{
    return x->kind == ISO_CX_PUT_BLOB || x->kind == ISO_CX_LOG || x->kind == ISO_CX_UPLOAD_WRITE ||
           (x->kind == ISO_CX_UPLOAD_STORE && !has_own_commit);
}

static void take_effects(iso_sim *w, iso_coord_effects *out)
{
    sim_coordinator *c = &w->c;
    bool has_own_commit = false;
    iso_error e;
    if (out->is_out_of_memory)
        sim_fail(w, iso_nomem(&e, 0), &e);
    for (size_t i = 0; i < out->count && !w->err && !c->must_reload; i++) {
        const iso_coord_effect *x = &out->items[i];
        bool is_ok = true;
        if (x->kind == ISO_CX_COMMIT) {
            has_own_commit = true;
            is_ok = gather(c, x);
        } else if (c->op_count == 0 || is_private(x, has_own_commit)) {
            size_t before = c->answer_count;
            perform(w, x);
            if (x->kind == ISO_CX_UPLOAD_WRITE && c->answer_count > before)
                break; /* no acknowledgement of what was not written */
        } else {
            is_ok = hold(c, x);
        }
        if (!is_ok)
            sim_fail(w, iso_nomem(&e, 0), &e);
    }
}

static bool commit(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    iso_error e;
    size_t count = c->op_count;
    c->op_count = 0;
    if (count == 0)
        return true;
    if (c->disk.is_full) {
        sim_trace(w, "coordinator: commit failed, the disk is full");
        c->must_reload = true;
        return false;
    }
    count = sim_mutate_ops(w, c->ops, count);
    iso_err err = iso_history_commit(&w->history, c->ops, count, &e);
    if (!err)
        err = iso_sim_disk_commit(&c->disk, c->ops, count, &e);
    for (size_t i = 0; i < count; i++) {
        sim_digest(w, c->ops[i].key, c->ops[i].key_bytes);
        sim_digest(w, c->ops[i].value, c->ops[i].value_bytes);
    }
    if (err)
        sim_fail(w, err, &e);
    return !err;
}

static void stop_core(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    iso_coord_free(c->core);
    c->core = NULL;
    c->job = NULL;
    c->op_count = c->held_count = c->step_count = c->answer_count = c->answer_first = 0;
    c->is_gathering = c->must_reload = false;
    c->die_after = 0;
    c->batch++;
    c->tick_us = SIM_NEVER;
    for (size_t i = 0; i < w->site_count; i++)
        sim_break_all(w, w->sites[i], false);
}

/* The transaction returns; what was held back is done, unless death comes between. */
static void flush(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    c->is_gathering = false;
    c->batch++;
    bool is_ok = commit(w);
    size_t count = c->held_count;
    for (size_t i = 0; i < count && is_ok && !w->err && !c->must_reload; i++) {
        if (c->die_after && --c->die_after == 0) {
            sim_coordinator_crash(w);
            return;
        }
        perform(w, c->held[i]);
    }
    c->held_count = 0;
    c->step_count = 0;
}

static void schedule_tick(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    iso_time wake = iso_coord_next_wake(c->core);
    if (wake == UINT64_MAX)
        return;
    uint64_t at = wake > mono(w) ? (wake - 1000) * 1000 : w->now_us + 1000;
    if (at < c->tick_us) {
        c->tick_us = at;
        sim_push(w, at, EV_TICK, 0, 0, NULL);
    }
}

static void settle(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    while (c->core && c->answer_first < c->answer_count && !w->err && !c->must_reload) {
        iso_coord_event ev = c->answers[c->answer_first++];
        step(w, &ev);
    }
    if (c->answer_first == c->answer_count)
        c->answer_first = c->answer_count = 0;
}

/* A commit or blob failed: the same as a restart (coordinator/core.h, Order). */
static void reload(iso_sim *w)
{
    stop_core(w);
    w->result.crashes_coordinator++;
    sim_push(w, w->now_us + (w->s->crash.restart_ms + 1000) * 1000, EV_START, 0, 0, NULL);
}

static void step(iso_sim *w, const iso_coord_event *ev)
{
    sim_coordinator *c = &w->c;
    if (c->step_count == SIM_BATCH)
        flush(w);
    if (!c->core || c->must_reload)
        return;
    iso_coord_effects *out = &c->steps[c->step_count++];
    iso_coord_effects_reset(out);
    w->events++;
    iso_coord_step(c->core, ev, mono(w), sim_wall(w, c->wall_skew_ms), out);
    take_effects(w, out);
    if (c->op_count == 0 && c->held_count == 0)
        c->step_count = 0;
}

static void after(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    settle(w);
    if (c->core && !c->must_reload && !w->err && (c->op_count || c->held_count) &&
        w->s->disk.commit_ms == 0) {
        flush(w);
        settle(w);
    }
    if (c->core && c->must_reload)
        reload(w);
    if (!c->core || w->err)
        return;
    if ((c->op_count || c->held_count) && !c->is_gathering) {
        c->is_gathering = true;
        sim_push(w, w->now_us + w->s->disk.commit_ms * 1000, EV_FLUSH, 0, c->batch, NULL);
    }
    schedule_tick(w);
}

void sim_coordinator_step(iso_sim *w, const iso_coord_event *ev)
{
    if (sim_is_traced(w)) {
        const sim_line *line = sim_line_of(w, ev->peer);
        sim_trace(w, "coordinator <- %s: %s", line ? w->sites[line->site]->name : "itself",
                  ev->kind == ISO_CE_MESSAGE     ? iso_msg_type_name(ev->msg->type)
                  : ev->kind == ISO_CE_PEER_GONE ? "gone"
                  : ev->kind == ISO_CE_ADMIN     ? ev->text
                  : ev->kind == ISO_CE_TICK      ? "tick"
                                                 : "event");
    }
    step(w, ev);
    after(w);
}

void sim_coordinator_flush(iso_sim *w, uint64_t batch)
{
    if (!w->c.core || batch != w->c.batch)
        return;
    flush(w);
    after(w);
}

void sim_coordinator_tick(iso_sim *w, uint64_t at_us)
{
    sim_coordinator *c = &w->c;
    if (!c->core || at_us != c->tick_us)
        return;
    c->tick_us = SIM_NEVER;
    if (iso_coord_next_wake(c->core) > mono(w)) {
        schedule_tick(w);
        return;
    }
    iso_coord_event ev = {.kind = ISO_CE_TICK};
    sim_coordinator_step(w, &ev);
}

void sim_coordinator_job(iso_sim *w, uint64_t number)
{
    sim_coordinator *c = &w->c;
    iso_error e = {0};
    if (!c->core || !c->job || number != c->job_number)
        return;
    iso_coord_event ev = {.kind = ISO_CE_JOB_DONE, .result = &c->result, .text = e.text};
    memcpy(ev.id, c->job->id, 16);
    iso_err err = !w->are_faults_over && sim_chance(&w->disk, w->s->crash.worker)
                      ? iso_fail(&e, ISO_ERR_RESOURCE, "killed three times")
                      : iso_sim_worker_run(&c->worker, c->job, &c->job_arena, &c->result, &e);
    if (err)
        ev.kind = ISO_CE_JOB_FAILED;
    if (!err && c->job->kind == ISO_JOB_SIGN) {
        const iso_sim_blob *text = iso_sim_disk_blob(&c->disk, &c->job->manifest);
        iso_manifest m;
        iso_err bad = iso_history_signed(&w->history, c->job->number, &c->job->manifest, &e);
        if (!bad)
            bad = sim_manifest_parse(w, text->data, text->bytes, &m, &e);
        if (bad)
            sim_fail(w, bad, &e);
    }
    sim_trace(w, "coordinator: worker %s %s", err ? "failed:" : "is done", e.text);
    c->job = NULL;
    sim_coordinator_step(w, &ev);
}

/* ---- life ---- */

typedef struct {
    iso_sim *w;
    iso_digest *live;
    size_t count, capacity;
    bool is_short;
} live_set;

static void note_live(void *arg, const iso_digest *d, uint64_t bytes, const char *what)
{
    live_set *l = arg;
    (void)bytes;
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? 2 * l->capacity : 256;
        iso_digest *wider = realloc(l->live, capacity * sizeof *wider);
        if (!wider) {
            l->is_short = true;
            return;
        }
        l->live = wider;
        l->capacity = capacity;
    }
    l->live[l->count++] = *d;
    if (!iso_sim_disk_blob(&l->w->c.disk, d)) {
        iso_error e;
        sim_fail(l->w,
                 iso_fail(&e, ISO_ERR_INTERNAL,
                          "invariant I8: a record names a blob that is not there (%s)", what),
                 &e);
    }
}

static int by_bytes(const void *a, const void *b)
{
    return memcmp(a, b, ISO_DIGEST_BYTES);
}

static bool is_live(void *arg, const iso_digest *d)
{
    const live_set *l = arg;
    return bsearch(d, l->live, l->count, sizeof *d, by_bytes) != NULL;
}

/* As coordinator/daemon.c does at its start: what no record names goes (S84). */
static void sweep(iso_sim *w)
{
    live_set l = {.w = w};
    iso_coord_live_blobs(w->c.core, note_live, &l);
    if (l.count)
        qsort(l.live, l.count, sizeof *l.live, by_bytes);
    if (!l.is_short && l.count && !iso_coord_has_job(w->c.core))
        iso_sim_disk_sweep(&w->c.disk, is_live, &l);
    for (size_t i = w->c.disk.partial_count; i-- > 0;)
        if (!iso_coord_has_upload(w->c.core, w->c.disk.partials[i].id))
            iso_sim_disk_partial_drop(&w->c.disk, w->c.disk.partials[i].id, 16);
    free(l.live);
}

void sim_coordinator_start(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    iso_error e;
    const iso_entropy entropy = {.ctx = w, .fill = sim_entropy};
    const iso_store store = iso_sim_disk_store(&c->disk);
    bool is_restart = w->history.audit_seq > 0;
    sim_trace(w, "coordinator: starts");
    iso_err err = iso_coord_new(&c->config, &c->identity, &c->sealer, &entropy, &c->core, &e);
    if (!err && is_restart)
        err = iso_coord_restore(c->core, &store, &e);
    if (!err && is_restart)
        err = iso_history_restored(&w->history, c->core, &e);
    if (err) {
        sim_fail(w, err == ISO_ERR_MEMORY ? err : ISO_ERR_INTERNAL, &e);
        return;
    }
    iso_coord_set_endpoint(c->core, "fl.corp", 7443);
    c->is_admitted_old = true;
    if (is_restart)
        sweep(w);
    iso_coord_effects *out = &c->steps[0];
    iso_coord_effects_reset(out);
    w->events++;
    iso_coord_start(c->core, mono(w), sim_wall(w, c->wall_skew_ms), out);
    c->step_count = 1;
    for (size_t i = 0; i < out->count; i++) /* everything waits for the one transaction */
        if (out->items[i].kind == ISO_CX_COMMIT ? !gather(c, &out->items[i])
                                                : !hold(c, &out->items[i]))
            sim_fail(w, iso_nomem(&e, 0), &e);
    flush(w);
    after(w);
    if (c->core)
        sim_coordinator_check(w, true);
}

void sim_coordinator_crash(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    if (!c->core)
        return;
    /* The last transaction may have reached the disk although nobody was told. */
    if (c->op_count && sim_chance(&w->disk, 0.5))
        commit(w);
    sim_trace(w, "coordinator: CRASHES");
    stop_core(w);
    iso_sim_disk_crash(&c->disk, &w->disk, w->s->disk.is_torn);
    sim_mutate_disk(w);
    w->result.crashes_coordinator++;
    uint64_t down_ms = w->s->crash.restart_ms / 2 + sim_random(&w->disk, w->s->crash.restart_ms);
    sim_push(w, w->now_us + down_ms * 1000, EV_START, 0, 0, NULL);
}

/* ---- who may connect ---- */

static void add_key(void *arg, const uint8_t pk[32], const iso_peer_name *name)
{
    iso_sim *w = arg;
    iso_peer_name *copy = iso_index_get(&w->c.admitted, pk);
    if (!copy)
        copy = iso_arena_alloc(&w->arena, 1, sizeof *copy);
    if (!copy || !iso_index_put(&w->c.admitted, pk, copy)) {
        iso_error e;
        sim_fail(w, iso_nomem(&e, sizeof *copy), &e);
        return;
    }
    *copy = *name;
}

bool sim_coordinator_admits(iso_sim *w, const uint8_t pk[32], iso_peer_name *name)
{
    sim_coordinator *c = &w->c;
    if (c->is_admitted_old) {
        /* Names stay in memory for the next time; those that are gone are told by kind 0. */
        for (size_t i = 0; i < c->admitted.capacity; i++)
            if (c->admitted.slots[i].value)
                ((iso_peer_name *)c->admitted.slots[i].value)->kind = 0;
        iso_coord_keys(c->core, add_key, w);
        c->is_admitted_old = false;
    }
    const iso_peer_name *found = iso_index_get(&c->admitted, pk);
    if (!found || !found->kind)
        return false;
    *name = *found;
    return true;
}

const char *sim_admin(iso_sim *w, const char *json)
{
    if (!w->c.core)
        return NULL;
    free(w->c.admin_reply);
    w->c.admin_reply = NULL;
    iso_coord_event ev = {.kind = ISO_CE_ADMIN, .text = json, .admin = 1, .admin_uid = 1000};
    sim_coordinator_step(w, &ev);
    /* People wait for the answer; nothing else happens in that time. */
    if (w->c.core && (w->c.op_count || w->c.held_count)) {
        flush(w);
        after(w);
    }
    return w->c.admin_reply;
}

void sim_coordinator_check(iso_sim *w, bool is_full)
{
    iso_error e;
    iso_err err = iso_coord_check(w->c.core, is_full, &e);
    if (err)
        sim_fail(w, err, &e);
}

void sim_coordinator_free(iso_sim *w)
{
    sim_coordinator *c = &w->c;
    iso_coord_free(c->core);
    for (size_t i = 0; i < SIM_BATCH; i++)
        iso_coord_effects_free(&c->steps[i]);
    iso_sim_disk_free(&c->disk);
    iso_index_free(&c->admitted);
    iso_arena_free(&c->job_arena);
    free(c->admin_reply);
    free(c->answers);
    free(c->tasks);
    free(c->held);
    free(c->ops);
}
