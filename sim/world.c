/* Clock, heap and hosts: opens the world, runs it to its end, adds up what happened. */
#include "sim/inner.h"

#include "core/parallel.h"
#include "crypto/chain.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- small things that every part uses ---- */

bool sim_push(iso_sim *w, uint64_t at_us, sim_event_kind kind, uint32_t host, uint64_t tag,
              void *data)
{
    iso_sim_event ev = {
        .at_us = at_us, .kind = (uint32_t)kind, .host = host, .tag = tag, .data = data};
    if (iso_sim_heap_push(&w->heap, ev))
        return true;
    iso_error e;
    sim_fail(w, iso_nomem(&e, sizeof ev), &e);
    return false;
}

void sim_fail(iso_sim *w, iso_err err, const iso_error *e)
{
    if (w->err)
        return;
    w->err = err;
    w->error = *e;
    if (err == ISO_ERR_INTERNAL)
        w->result.broken_event = w->events;
    sim_trace(w, "BROKEN %s", e->text);
}

bool sim_is_traced(const iso_sim *w)
{
    return w->trace && w->events >= w->o.trace_from;
}

void sim_trace(iso_sim *w, const char *fmt, ...)
{
    if (!sim_is_traced(w))
        return;
    char *line = w->trace[w->trace_lines++ % SIM_TRACE];
    int n = snprintf(line, 256, "%10llu %14.3f s  ", (unsigned long long)w->events,
                     (double)w->now_us / 1e6);
    va_list args;
    va_start(args, fmt);
    vsnprintf(line + n, 256 - (size_t)n, fmt, args);
    va_end(args);
}

void iso_sim_each_trace(const iso_sim *w, void (*line)(void *ctx, const char *text), void *ctx)
{
    uint64_t n = w->trace_lines < SIM_TRACE ? w->trace_lines : SIM_TRACE;
    for (uint64_t i = w->trace_lines - n; i < w->trace_lines; i++)
        line(ctx, w->trace[i % SIM_TRACE]);
}

void sim_digest(iso_sim *w, const void *data, size_t bytes)
{
    iso_sim_key k;
    memcpy(k.key, w->digest, sizeof k.key);
    iso_digest d = iso_short_hash(&k, data, bytes);
    memcpy(w->digest, d.b, sizeof w->digest);
}

uint64_t sim_wall(const iso_sim *w, int64_t skew_ms)
{
    return (uint64_t)((int64_t)(SIM_WALL + w->now_us / 1000) + skew_ms);
}

void sim_entropy(void *ctx, void *out, size_t bytes)
{
    iso_sim *w = ctx;
    uint8_t *p = out;
    while (bytes > 0) {
        uint32_t x = iso_rng_u32(&w->entropy);
        size_t n = bytes < 4 ? bytes : 4;
        memcpy(p, &x, n);
        p += n;
        bytes -= n;
    }
}

bool sim_chance(iso_rng *g, double p)
{
    return p > 0.0 && (double)iso_rng_u32(g) < p * 4294967296.0;
}

uint64_t sim_random(iso_rng *g, uint64_t below)
{
    return below ? (uint64_t)(((unsigned __int128)iso_rng_u64(g) * below) >> 64) : 0;
}

uint64_t sim_after(iso_rng *g, uint64_t mean_ms)
{
    double u = 1.0 - iso_rng_uniform(g);
    return 1 + (uint64_t)(-log(u) * (double)mean_ms * 1000.0);
}

const char *sim_host_name(const iso_sim *w, uint32_t host)
{
    return host == 0 ? "coordinator" : w->sites[host - 1]->name;
}

/* ---- opening ---- */

static void make_keys(iso_sim *w)
{
    iso_rng g = iso_rng_make(w->s->seed, ISO_RNG_SIM_CHURN, 7);
    for (int i = 0; i < 4; i++)
        w->key.key[i] = iso_rng_u64(&g);
    iso_coord_identity *d = &w->c.identity;
    uint8_t *const parts[] = {d->federation,          d->audit_pk,
                              d->transport_pk,        w->merge_pk,
                              w->release_key.key_id,  w->release_key.public_key,
                              d->generation_digest.b, d->root.b};
    const size_t sizes[] = {16, 32, 32, 32, 8, 32, 32, 32};
    for (size_t k = 0; k < sizeof sizes / sizeof *sizes; k++)
        for (size_t i = 0; i < sizes[k]; i++)
            parts[k][i] = (uint8_t)iso_rng_u32(&g);
    d->epoch = iso_rng_u64(&g) | 1;
    d->generation = 0;
    memcpy(d->merge_keys[0].pk, w->merge_pk, 32);
    iso_merge_key_id(w->merge_pk, d->merge_keys[0].id);
    d->merge_keys[0].is_usable = true;
    d->merge_key_count = 1;
    w->c.signer.world = w->key;
    memcpy(w->c.signer.pk, d->audit_pk, 32);
    w->c.sealer = iso_sealer_hash(&w->c.signer);
}

static iso_err make_roster(iso_sim *w, iso_error *e)
{
    iso_coord_identity *d = &w->c.identity;
    iso_roster *r = &w->roster;
    memcpy(r->federation_id, d->federation, 16);
    r->version = 1;
    memcpy(r->coordinator_transport_pk, d->transport_pk, 32);
    memcpy(r->audit_pk, d->audit_pk, 32);
    memcpy(r->merge[0].id, d->merge_keys[0].id, 16);
    memcpy(r->merge[0].pk, w->merge_pk, 32);
    r->merge_count = 1;
    r->release[0].key = w->release_key;
    r->release_count = 1;
    r->threshold = 1;
    static const char text[] = "roster";
    d->roster_version = 1;
    d->roster_bytes = sizeof text;
    iso_err err = iso_sim_disk_put(&w->c.disk, text, sizeof text, &d->roster, e);
    w->roster_digest = d->roster;
    return err;
}

static iso_err make_config(iso_sim *w, iso_error *e)
{
    static const char *const classes[] = {"bad", "good"};
    const iso_scenario *s = w->s;
    iso_coord_config *c = &w->c.config;
    iso_coord_config_defaults(c);
    c->name = "simulation";
    c->trigger = s->is_auto ? ISO_TRIGGER_AUTO : ISO_TRIGGER_OPERATOR;
    c->max_rounds = s->is_auto ? s->rounds : 0;
    c->deadline_ms = s->deadline_ms;
    c->evaluate_timeout_ms = s->evaluate_timeout_ms;
    c->interval_ms = s->interval_ms;
    c->choose = s->choose_first ? ISO_CHOOSE_FIRST : ISO_CHOOSE_BEST;
    c->keep_rounds = s->keep_rounds;
    c->disk_floor_bytes = 0;
    c->candidate_count = s->method_count;
    for (size_t i = 0; i < s->method_count; i++)
        c->candidates[i] = (iso_coord_candidate){
            .method = s->methods[i], .alpha = 1.0, .convention = "rank", .common_fraction = 0.8};
    w->c.tasks = iso_calloc(s->tasks, sizeof *w->c.tasks);
    if (!w->c.tasks)
        return iso_nomem(e, s->tasks * sizeof *w->c.tasks);
    c->tasks = w->c.tasks;
    c->task_count = s->tasks;
    for (uint32_t t = 0; t < s->tasks; t++) {
        iso_coord_task *x = &w->c.tasks[t];
        char name[24];
        *x = iso_coord_task_defaults();
        snprintf(name, sizeof name, "task-%02u", t);
        x->name = iso_arena_strdup(&w->arena, name);
        x->classes = classes;
        x->class_count = 2;
        uint32_t owners = (s->sites - t + s->tasks - 1) / s->tasks; /* at least */
        x->quorum = s->quorum < owners ? s->quorum : owners;
        x->rank = s->trainer.rank;
        x->rank_cap = 2 * s->trainer.rank;
        x->steps = s->trainer.steps;
        x->update_bytes = 16u << 20;
        if (!x->name)
            return iso_nomem(e, sizeof name);
        if (!s->is_auto)
            continue; /* tokens say whose tasks they are; names are only for the policy */
        const char **names = iso_arena_calloc(&w->arena, s->sites, sizeof *names);
        if (!names)
            return iso_nomem(e, s->sites * sizeof *names);
        for (uint32_t i = t; i < s->sites; i += s->tasks) {
            snprintf(name, sizeof name, "site-%05u", i + 1);
            if (!(names[x->site_count++] = iso_arena_strdup(&w->arena, name)))
                return iso_nomem(e, sizeof name);
        }
        x->sites = names;
    }
    return ISO_OK;
}

static iso_err make_problem(iso_sim *w, iso_error *e)
{
    const iso_scenario *s = w->s;
    const iso_synth_options o = {.seed = s->seed,
                                 .width = s->trainer.width,
                                 .rank = s->trainer.rank,
                                 .layers = s->trainer.layers,
                                 .noise = s->trainer.noise,
                                 .overlap = s->trainer.overlap,
                                 .chance = 0.5,
                                 .probe = 0.7,
                                 .top = 0.95,
                                 .payload_bytes = s->trainer.payload_bytes};
    return iso_synth_open(&w->synth, &o, s->tasks, e);
}

static iso_digest pool_digest(void *ctx, const void *data, size_t bytes)
{
    const iso_sim *w = ctx;
    return w->c.sealer.digest(w->c.sealer.ctx, data, bytes);
}

iso_err iso_sim_open(iso_sim **out, const iso_scenario *s, const iso_sim_options *o, iso_error *e)
{
    iso_sim *w = iso_calloc(1, sizeof *w);
    *out = w;
    if (!w)
        return iso_nomem(e, sizeof *w);
    w->s = s;
    w->o = *o;
    w->net = iso_rng_make(s->seed, ISO_RNG_SIM_NET, 0);
    w->disk = iso_rng_make(s->seed, ISO_RNG_SIM_DISK, 0);
    w->churn = iso_rng_make(s->seed, ISO_RNG_SIM_CHURN, 0);
    w->work = iso_rng_make(s->seed, ISO_RNG_SIM_TRAINER, 1u << 30);
    w->entropy = iso_rng_make(s->seed, ISO_RNG_BACKOFF, 0);
    w->scores = iso_calloc(SIM_SCORES, sizeof *w->scores);
    w->trace = o->trace_from ? iso_calloc(SIM_TRACE, sizeof *w->trace) : NULL;
    if (!w->scores || (o->trace_from && !w->trace))
        return iso_nomem(e, SIM_SCORES * sizeof *w->scores);
    w->pool.digest = pool_digest;
    w->pool.digest_ctx = w;
    w->c.disk.pool = &w->pool;
    w->c.tick_us = SIM_NEVER;
    make_keys(w);
    iso_digest start =
        iso_chain_start(w->c.identity.federation, w->c.identity.epoch, w->c.identity.audit_pk);
    iso_history_open(&w->history, &w->c.sealer, &start);
    iso_err err = make_problem(w, e);
    if (!err)
        err = make_roster(w, e);
    if (!err)
        err = make_config(w, e);
    if (err)
        return err;
    w->c.worker = (iso_sim_worker){
        .disk = &w->c.disk, .synth = w->synth, .world = w->key, .release_key = w->release_key};
    memcpy(w->c.worker.merge_pk, w->merge_pk, 32);
    w->next_full_check = s->check_every;
    for (uint32_t i = 0; i < s->sites; i++)
        if (!sim_site_new(w, false))
            return iso_nomem(e, sizeof(sim_site));
    sim_coordinator_start(w);
    sim_operate_start(w);
    if (w->err && e)
        *e = w->error;
    return w->err;
}

void iso_sim_close(iso_sim *w)
{
    iso_sim_event ev;
    if (!w)
        return;
    w->is_over = true;
    while (iso_sim_heap_pop(&w->heap, &ev)) {
        if (ev.kind == EV_UP || ev.kind == EV_DOWN) {
            iso_packet *p = ev.data;
            sim_line_drop(w, p->line);
            iso_packet_drop(&w->packets, &w->pool, p);
        } else if (ev.kind == EV_HANDSHAKE || ev.kind == EV_LINK_UP || ev.kind == EV_LINK_DOWN ||
                   ev.kind == EV_GONE) {
            sim_line_drop(w, ev.data);
        } else if (ev.kind == EV_ANSWER) {
            free(ev.data);
        }
    }
    while (w->free_answers) {
        sim_answer *next = w->free_answers->next;
        free(w->free_answers);
        w->free_answers = next;
    }
    for (size_t i = 0; i < w->site_count; i++)
        sim_site_free(w, w->sites[i]);
    free(w->sites);
    sim_coordinator_free(w);
    iso_agent_effects_free(&w->out);
    iso_history_close(&w->history);
    iso_synth_close(w->synth);
    iso_packet_pool_free(&w->packets);
    iso_sim_pool_free(&w->pool);
    iso_sim_heap_free(&w->heap);
    iso_arena_free(&w->arena);
    free(w->manifests);
    free(w->scores);
    free(w->trace);
    free(w);
}

/* ---- running ---- */

static void deliver_up(iso_sim *w, iso_packet *p)
{
    sim_line *line = p->line;
    if (!line->is_broken && line->is_up && w->c.core) {
        sim_site *s = w->sites[line->site];
        iso_coord_event ev = {.kind = p->fault ? ISO_CE_BAD_MESSAGE : ISO_CE_MESSAGE,
                              .peer = line->id,
                              .name = line->name,
                              .msg = p->msg,
                              .body = p->body,
                              .body_bytes = p->body_bytes,
                              .text = p->fault};
        w->result.messages++;
        w->result.received_bytes += p->bytes;
        s->sent_bytes += p->bytes;
        sim_coordinator_step(w, &ev);
    }
    sim_line_drop(w, line);
    iso_packet_drop(&w->packets, &w->pool, p);
}

static void deliver_down(iso_sim *w, iso_packet *p)
{
    sim_line *line = p->line;
    sim_site *s = w->sites[line->site];
    if (!line->is_broken && line->is_down && s->line == line) {
        w->result.messages++;
        w->result.sent_bytes += p->bytes;
        s->received_bytes += p->bytes;
        sim_site_message(w, s, p);
    }
    sim_line_drop(w, line);
    iso_packet_drop(&w->packets, &w->pool, p);
}

static void gone(iso_sim *w, sim_line *line)
{
    if (line->is_up) {
        line->is_up = false;
        iso_coord_event ev = {.kind = ISO_CE_PEER_GONE, .peer = line->id};
        if (w->c.core)
            sim_coordinator_step(w, &ev);
    }
    sim_line_drop(w, line);
}

static void dispatch(iso_sim *w, const iso_sim_event *ev)
{
    sim_site *s = ev->host ? w->sites[ev->host - 1] : NULL;
    switch ((sim_event_kind)ev->kind) {
    case EV_TICK:
        if (s)
            sim_site_tick(w, s, ev);
        else
            sim_coordinator_tick(w, ev->at_us);
        break;
    case EV_HANDSHAKE:
        sim_handshake(w, ev->data);
        break;
    case EV_LINK_UP:
    case EV_LINK_DOWN: {
        sim_line *line = ev->data;
        sim_site_link(w, w->sites[line->site], line, ev->kind == EV_LINK_UP,
                      (iso_agent_down)ev->tag);
        sim_line_drop(w, line);
        break;
    }
    case EV_GONE:
        gone(w, ev->data);
        break;
    case EV_UP:
        deliver_up(w, ev->data);
        break;
    case EV_DOWN:
        deliver_down(w, ev->data);
        break;
    case EV_FLUSH:
        sim_coordinator_flush(w, ev->tag);
        break;
    case EV_JOB:
        sim_coordinator_job(w, ev->tag);
        break;
    case EV_TRAINED:
        sim_site_trained(w, s, ev->tag);
        break;
    case EV_ANSWER:
        sim_site_answer(w, s, ev->data);
        break;
    case EV_START:
        if (s)
            sim_site_start(w, s, ev->tag);
        else if (!w->c.core)
            sim_coordinator_start(w);
        break;
    case EV_CRASH:
        if (s)
            sim_site_crash(w, s);
        else
            sim_coordinator_crash(w);
        break;
    case EV_OPERATE:
        sim_operate(w);
        break;
    case EV_FAULT:
        sim_fault_now(w, (sim_fault)ev->tag);
        break;
    }
}

static void look_at_all(iso_sim *w)
{
    if (w->c.core)
        sim_coordinator_check(w, true);
    for (size_t i = 0; i < w->site_count && !w->err; i++)
        if (w->sites[i]->agent)
            sim_site_check(w, w->sites[i]);
    w->result.full_checks++;
}

static double mean_accuracy(const iso_sim *w, const iso_digest *model)
{
    double sum = 0.0;
    iso_lora_layer layers[ISO_SYNTH_LAYERS_MAX];
    size_t count = 0;
    const iso_sim_blob *b = model ? iso_sim_disk_blob(&w->c.disk, model) : NULL;
    if (b && iso_synth_parse(b->data, b->bytes, layers, ISO_SYNTH_LAYERS_MAX, &count, NULL))
        count = 0;
    for (uint32_t t = 0; t < w->s->tasks; t++) {
        double error = iso_synth_error(w->synth, t, layers, count);
        double a = 0.7 + 0.25 * (1.0 - error);
        sum += a > 0.5 ? a : 0.5;
    }
    return sum / w->s->tasks;
}

static const iso_manifest *manifest_of(const iso_sim *w, const iso_digest *digest)
{
    for (size_t i = 0; i < w->manifest_count; i++)
        if (iso_digest_equal(&w->manifests[i].digest, digest))
            return &w->manifests[i].manifest;
    return NULL;
}

static const iso_digest *model_of(const iso_manifest *m)
{
    for (size_t k = 0; k < m->file_count; k++)
        if (strcmp(m->files[k].path, "adapter/adapter_model.safetensors") == 0)
            return &m->files[k].digest;
    return NULL;
}

static void add_up(iso_sim *w)
{
    iso_sim_result *r = &w->result;
    const iso_history *h = &w->history;
    r->events = w->events;
    r->virtual_ms = w->now_us / 1000;
    r->sites = w->site_count;
    r->receipts = h->receipts;
    r->used = h->used;
    r->refused = h->refused;
    r->pending = h->receipts - h->used - h->refused - h->late;
    r->rounds = h->rounds_ended;
    r->releases = h->release_count;
    r->accepted = h->verdicts[ISO_VERDICT_ACCEPTED] + h->verdicts[ISO_VERDICT_TOO_FEW];
    r->rejected = h->verdicts[ISO_VERDICT_REJECTED] + h->verdicts[ISO_VERDICT_RETURNED] +
                  h->verdicts[ISO_VERDICT_UNVERIFIED];
    for (int k = 0; k < ISO_CODE_END; k++)
        r->refused_by[k] += h->refused_by[k];
    for (size_t i = 0; i < w->site_count; i++) {
        r->sites_revoked += sim_site_is_revoked(w, w->sites[i]);
        r->sites_malicious += w->sites[i]->malice != ISO_MALICE_NONE;
        r->disk_bytes += w->sites[i]->disk.row_bytes + 12 * w->sites[i]->disk.row_capacity +
                         8 * w->sites[i]->disk.blob_capacity;
    }
    r->disk_bytes += w->c.disk.row_bytes + w->pool.bytes;
    r->accuracy_probe = mean_accuracy(w, NULL);
    iso_sim_key content = {{0}};
    for (size_t i = 0; i < h->release_count; i++) {
        const iso_manifest *m = manifest_of(w, &h->releases[i].manifest);
        const iso_digest *model = m ? model_of(m) : NULL;
        iso_digest d = iso_short_hash(&content, model ? model->b : NULL, model ? 32 : 0);
        memcpy(content.key, d.b, sizeof content.key);
        if (i + 1 == h->release_count && model)
            r->accuracy_last = mean_accuracy(w, model);
    }
    memcpy(r->content, content.key, sizeof r->content);
    sim_digest(w, &w->events, sizeof w->events);
    memcpy(r->digest, w->digest, sizeof r->digest);
}

iso_err iso_sim_run(iso_sim *w, iso_sim_result *result, iso_error *e)
{
    iso_sim_event ev;
    bool was_stopped = false;
    while (!w->err && !w->is_over && iso_sim_heap_pop(&w->heap, &ev)) {
        w->now_us = ev.at_us;
        w->result.heap_events++;
        dispatch(w, &ev);
        if (w->events >= w->next_full_check && w->c.core && !w->err) {
            w->next_full_check = w->events + w->s->check_every;
            sim_coordinator_check(w, true);
            w->result.full_checks++;
        }
        if (w->o.events && w->events >= w->o.events)
            break;
        if ((w->result.heap_events & 1023) == 0 && w->o.stop && *w->o.stop) {
            was_stopped = true;
            break;
        }
        if ((w->result.heap_events & 65535) == 0 && w->o.progress)
            w->o.progress(w->o.progress_ctx, w->history.rounds_ended, w->events);
    }
    if (!w->err)
        look_at_all(w);
    add_up(w);
    *result = w->result;
    if (w->err) {
        if (e)
            *e = w->error;
        return w->err;
    }
    return was_stopped ? iso_fail(e, ISO_ERR_INTERRUPTED, "stopped at event %llu",
                                  (unsigned long long)w->events)
                       : ISO_OK;
}
