/* The life of a site: enrolment, links that come and go, starts from its disk, crashes, rest; and
 * how one is made. What its core asks for is done in site.c. */
#include "sim/inner.h"

#include "crypto/key.h"
#include "crypto/request.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ENROL_RETRY_MS = 20000 };

/* ---- enrolment: client/enroll.c's talk ---- */

static void enrol_again(iso_sim *w, sim_site *s)
{
    if (s->line)
        sim_close(w, s, s->line);
    s->state = SITE_NEW;
    sim_push(w, w->now_us + (ENROL_RETRY_MS / 2 + sim_random(&w->churn, ENROL_RETRY_MS)) * 1000,
             EV_START, s->index + 1, s->boot, NULL);
}

static void say(iso_sim *w, sim_site *s, iso_msg *m, uint64_t id)
{
    m->version = ISO_PROTO_VERSION_MAX;
    m->id = id;
    sim_send_up(w, s, m, NULL, 0, 0);
}

static void say_enroll(iso_sim *w, sim_site *s, const iso_msg_hello_reply *reply)
{
    iso_msg m = {.type = ISO_MSG_ENROLL, .epoch = reply->epoch, .enroll = {.name = s->name}};
    uint8_t bytes[ISO_ENROL_BYTES];
    iso_sealer sealer = iso_sealer_hash(&s->signer);
    iso_enrol_bytes(w->c.identity.federation, s->token_id, reply->nonce, s->transport_pk,
                    s->signer.pk, bytes);
    memcpy(m.enroll.transport_pk, s->transport_pk, 32);
    memcpy(m.enroll.sign_pk, s->signer.pk, 32);
    sealer.sign(sealer.ctx, ISO_LABEL_ENROL, bytes, sizeof bytes, m.enroll.signature);
    sealer.mac(sealer.ctx, s->token.proof_key, bytes, sizeof bytes, m.enroll.mac);
    say(w, s, &m, 2);
}

static void enrolling(iso_sim *w, sim_site *s, const iso_msg *m)
{
    if (m->type == ISO_MSG_HELLO_REPLY) {
        say_enroll(w, s, &m->hello_reply);
    } else if (m->type == ISO_MSG_ENROLL_REPLY) {
        memcpy(s->id, m->enroll_reply.site_id, 16);
        s->is_enrolled = true;
        s->state = SITE_DEAD;
        sim_trace(w, "%s: is enrolled", s->name);
        sim_close(w, s, s->line);
        sim_push(w, w->now_us + 1000000, EV_START, s->index + 1, s->boot, NULL);
    } else if (m->type == ISO_MSG_ERROR) {
        if (!iso_code_is_retryable(m->error.code))
            s->has_token = false; /* a new one is asked for */
        enrol_again(w, s);
    }
}

/* ---- links ---- */

void sim_site_link(iso_sim *w, sim_site *s, sim_line *line, bool is_up, iso_agent_down why)
{
    if (!line->is_down || s->line != line || (is_up && line->is_broken))
        return;
    if (!is_up) {
        line->is_down = false;
        s->line = NULL;
    }
    if (s->state == SITE_ENROLLING) {
        iso_msg m = {.type = ISO_MSG_HELLO,
                     .hello = {.min_version = ISO_PROTO_VERSION_MIN,
                               .max_version = ISO_PROTO_VERSION_MAX,
                               .software = ISO_VERSION}};
        if (is_up)
            say(w, s, &m, 1);
        else
            enrol_again(w, s);
        return;
    }
    if (!s->agent)
        return;
    iso_agent_event ev = {.kind = is_up ? ISO_AE_LINK_UP : ISO_AE_LINK_DOWN,
                          .link = line->link,
                          .down = why,
                          .text = why == ISO_DOWN_REFUSED ? "not admitted" : "the line is dead"};
    sim_site_step(w, s, &ev);
}

void sim_site_message(iso_sim *w, sim_site *s, iso_packet *p)
{
    if (s->state == SITE_ENROLLING) {
        enrolling(w, s, p->msg);
        return;
    }
    if (!s->agent)
        return;
    iso_agent_event ev = {.kind = ISO_AE_MESSAGE,
                          .link = ((sim_line *)p->line)->link,
                          .msg = p->msg,
                          .body = p->body,
                          .body_bytes = p->body_bytes};
    sim_site_step(w, s, &ev);
}

/* ---- life ---- */

/* Parsed once, whichever sites ask. */
iso_err sim_manifest_parse(iso_sim *w, const void *text, size_t size, iso_manifest *out,
                           iso_error *e)
{
    iso_digest d = w->c.sealer.digest(w->c.sealer.ctx, text, size);
    for (size_t i = w->manifest_count; i-- > 0;)
        if (iso_digest_equal(&w->manifests[i].digest, &d)) {
            *out = w->manifests[i].manifest;
            return ISO_OK;
        }
    sim_manifest *wider = realloc(w->manifests, (w->manifest_count + 1) * sizeof *wider);
    if (!wider)
        return iso_nomem(e, sizeof *wider);
    w->manifests = wider;
    iso_err err = iso_manifest_parse(text, size, &w->arena, out, e);
    if (!err)
        w->manifests[w->manifest_count++] = (sim_manifest){.digest = d, .manifest = *out};
    return err;
}

/* The client's seam: signature, then content (client/agent.h). */
static iso_err check_manifest(void *ctx, const iso_minisign_public *key, const void *text,
                              size_t size, const void *signature, size_t signature_bytes,
                              iso_arena *arena, iso_manifest *out, iso_error *e)
{
    iso_sim *w = ctx;
    (void)arena;
    if (!iso_hash_minisign_holds(&w->key, key, text, size, signature, signature_bytes))
        return iso_fail(e, ISO_ERR_TRUST, "the signature does not hold");
    return sim_manifest_parse(w, text, size, out, e);
}

static bool ask_token(iso_sim *w, sim_site *s)
{
    char command[256], tasks[96] = "", line[ISO_ENROL_LINE_TEXT];
    iso_enrol_line parsed;
    for (uint32_t i = 0; i < s->task_count; i++)
        snprintf(tasks + strlen(tasks), sizeof tasks - strlen(tasks), "%s\"%s\"", i ? "," : "",
                 w->c.tasks[s->task_numbers[i]].name);
    snprintf(command, sizeof command,
             "{\"cmd\":\"token.new\",\"args\":{\"site\":\"%s\",\"tasks\":[%s],\"hours\":720}}",
             s->name, tasks);
    const char *reply = sim_admin(w, command);
    const char *at = reply ? strstr(reply, "isofed1-") : NULL;
    if (!at)
        return false;
    size_t n = 0; /* JSON may escape '/' */
    for (; *at && *at != '"' && n + 1 < sizeof line; at++)
        if (*at != '\\')
            line[n++] = *at;
    line[n] = 0;
    if (iso_enrol_line_parse(line, &parsed, NULL) != ISO_OK)
        return false;
    iso_token_derive(&parsed.token, &s->token);
    memcpy(s->token_id, parsed.token.id, 4);
    return s->has_token = true;
}

static void start_enrolment(iso_sim *w, sim_site *s)
{
    if (!s->has_token && !ask_token(w, s)) {
        enrol_again(w, s);
        return;
    }
    s->state = SITE_ENROLLING;
    sim_connect(w, s, 0);
    if (!w->c.core || s->partition_until_us > w->now_us)
        enrol_again(w, s);
}

static void give_data(iso_sim *w, sim_site *s)
{
    for (uint32_t i = 0; i < s->task_count && s->agent && !w->err; i++) {
        iso_agent_event ev = {.kind = ISO_AE_DATA,
                              .train = s->samples,
                              .val = s->samples / 2,
                              .test = s->samples / 2,
                              .data_bytes = s->samples * 40000};
        memcpy(ev.task_id, s->tasks[i].id, 16);
        ev.digest.b[0] = 1;
        iso_put_u32(ev.digest.b + 1, s->index);
        iso_put_u32(ev.digest.b + 5, s->task_numbers[i]);
        sim_site_step(w, s, &ev);
    }
}

static void make_agent(iso_sim *w, sim_site *s)
{
    iso_agent_seams seams = {.sealer = iso_sealer_hash(&s->signer),
                             .entropy = {.ctx = w, .fill = sim_entropy},
                             .manifest = check_manifest,
                             .manifest_ctx = w};
    iso_agent_config *c = &s->config;
    const iso_store store = iso_sim_disk_store(&s->disk);
    iso_error e;
    iso_agent_config_defaults(c);
    memcpy(c->federation_id, w->c.identity.federation, 16);
    memcpy(c->site_id, s->id, 16);
    c->tasks = s->tasks;
    c->task_count = s->task_count;
    c->generation_digest = w->c.identity.generation_digest;
    c->receipt_keep_ms = w->s->receipt_keep_ms;
    for (uint32_t i = 0; i < s->task_count; i++) {
        s->tasks[i].name = w->c.tasks[s->task_numbers[i]].name;
        iso_agent_task_id(c->federation_id, s->tasks[i].name, s->tasks[i].id);
    }
    iso_err err = iso_agent_new(c, &seams, &s->agent, &e);
    if (!err && s->disk.row_count)
        err = iso_agent_restore(s->agent, &store, &e);
    if (err) {
        iso_error_context(&e, "invariant I8: %s does not start again", s->name);
        sim_fail(w, ISO_ERR_INTERNAL, &e);
        return;
    }
    iso_agent_give_roster(s->agent, &w->roster, &w->roster_digest);
}

typedef struct {
    iso_digest *live;
    size_t count;
    bool is_counting;
} live_set;

static void note_live(void *arg, const iso_digest *d)
{
    live_set *l = arg;
    if (!l->is_counting)
        l->live[l->count] = *d;
    l->count++;
}

static bool is_live(void *arg, const iso_digest *d)
{
    const live_set *l = arg;
    for (size_t i = 0; i < l->count; i++)
        if (iso_digest_equal(&l->live[i], d))
            return true;
    return false;
}

/* S84 at a start: blobs that nothing names, partial downloads that are whole blobs by now. */
static void sweep(iso_sim *w, sim_site *s)
{
    live_set l = {.is_counting = true};
    iso_error e;
    iso_agent_live_blobs(s->agent, note_live, &l);
    l = (live_set){.live = iso_calloc(l.count, sizeof *l.live)};
    if (!l.live) {
        sim_fail(w, iso_nomem(&e, 0), &e);
        return;
    }
    iso_agent_live_blobs(s->agent, note_live, &l);
    iso_sim_disk_sweep(&s->disk, is_live, &l);
    free(l.live);
}

void sim_site_start(iso_sim *w, sim_site *s, uint64_t boot)
{
    if (boot != s->boot || s->agent)
        return;
    if (!s->is_enrolled) {
        start_enrolment(w, s);
        return;
    }
    bool is_restart = s->disk.row_count > 0;
    make_agent(w, s);
    if (w->err)
        return;
    s->state = SITE_RUNNING;
    s->tick_us = SIM_NEVER;
    if (is_restart) {
        sim_site_check(w, s);
        sweep(w, s);
    }
    sim_trace(w, "%s: starts", s->name);
    w->events++;
    iso_agent_effects_reset(&w->out);
    iso_agent_start(s->agent, sim_site_mono(w, s), sim_wall(w, s->wall_skew_ms), &w->out);
    sim_site_after(w, s);
    give_data(w, s);
}

void sim_site_crash(iso_sim *w, sim_site *s)
{
    s->die_after = 0;
    if (!s->agent)
        return;
    sim_trace(w, "%s: CRASHES", s->name);
    iso_agent_free(s->agent);
    s->agent = NULL;
    s->state = SITE_DEAD;
    s->boot++;
    s->job_number++;
    s->has_job = false;
    s->tick_us = SIM_NEVER;
    sim_break_all(w, s, true);
    iso_sim_disk_crash(&s->disk, &w->disk, w->s->disk.is_torn);
    w->result.crashes_site++;
    uint64_t down_ms = w->s->crash.restart_ms / 2 + sim_random(&w->disk, w->s->crash.restart_ms);
    sim_push(w, w->now_us + down_ms * 1000, EV_START, s->index + 1, s->boot, NULL);
}

bool sim_site_is_revoked(const iso_sim *w, const sim_site *s)
{
    const iso_history_site *x = s->is_enrolled ? iso_index_get(&w->history.sites, s->id) : NULL;
    return x && x->state == ISO_SITE_REVOKED;
}

/* Nothing is waited for: the newest release is judged, the outbox is empty. */
bool sim_site_is_at_rest(const iso_sim *w, const sim_site *s, const char **why)
{
    iso_agent_status st;
    if (sim_site_is_revoked(w, s) || s->malice)
        return true;
    *why = "is not running";
    if (!s->agent)
        return false;
    iso_agent_get_status(s->agent, &st);
    *why = "has updates that wait for a receipt";
    if (st.outbox_waiting)
        return false;
    *why = "sees a conflict of histories";
    if (st.has_conflict)
        return false;
    const iso_history *h = &w->history;
    uint64_t last = h->release_count ? h->releases[h->release_count - 1].number : 0;
    *why = "has not judged the newest release";
    if (st.release == last)
        return true;
    for (size_t i = 0; i < iso_agent_release_count(s->agent); i++) {
        iso_agent_release_status r;
        iso_agent_get_release(s->agent, i, &r);
        if (r.number == last && (r.state == ISO_RS_REJECTED || r.state == ISO_RS_RETURNED))
            return true;
    }
    return false;
}

/* ---- making one ---- */

static bool choose_tasks(iso_sim *w, sim_site *s)
{
    uint32_t first = s->index % w->s->tasks;
    bool has_second = w->s->tasks > 1 && sim_chance(&w->churn, w->s->second_task);
    s->task_count = has_second ? 2 : 1;
    s->tasks = iso_calloc(s->task_count, sizeof *s->tasks);
    s->task_numbers = iso_calloc(s->task_count, sizeof *s->task_numbers);
    if (!s->tasks || !s->task_numbers)
        return false;
    s->task_numbers[0] = first;
    if (has_second)
        s->task_numbers[1] =
            (first + 1 + (uint32_t)sim_random(&w->churn, w->s->tasks - 1)) % w->s->tasks;
    return true;
}

static void choose_malice(iso_sim *w, sim_site *s)
{
    uint32_t kinds = w->s->malicious.kinds & ~1u;
    if (!kinds || !sim_chance(&w->churn, w->s->malicious.share))
        return;
    uint32_t n = (uint32_t)sim_random(&w->churn, (uint64_t)__builtin_popcount(kinds));
    for (uint32_t k = 1; k < ISO_MALICE_COUNT; k++)
        if ((kinds >> k & 1) && n-- == 0)
            s->malice = (iso_malice)k;
}

sim_site *sim_site_new(iso_sim *w, bool is_joining)
{
    sim_site *s = iso_calloc(1, sizeof *s);
    if (w->site_count == w->site_capacity) {
        size_t capacity = w->site_capacity ? 2 * w->site_capacity : 64;
        sim_site **wider = realloc(w->sites, capacity * sizeof(*wider));
        if (!wider) {
            free(s);
            return NULL;
        }
        w->sites = wider;
        w->site_capacity = capacity;
    }
    if (!s)
        return NULL;
    s->index = (uint32_t)w->site_count;
    s->disk.pool = &w->pool;
    s->tick_us = SIM_NEVER;
    s->signer.world = w->key;
    snprintf(s->name, sizeof s->name, "site-%05u", s->index + 1);
    w->sites[w->site_count++] = s;
    if (!choose_tasks(w, s))
        return NULL;
    sim_entropy(w, s->signer.pk, 32);
    sim_entropy(w, s->transport_pk, 32);
    s->samples = w->s->trainer.samples / 2 + sim_random(&w->churn, w->s->trainer.samples) + 20;
    s->slowness = 0.7 + 0.6 * iso_rng_uniform(&w->churn);
    if (sim_chance(&w->churn, w->s->stragglers.share))
        s->slowness *= w->s->stragglers.factor;
    s->bytes_a_second = w->s->net.bytes_a_second;
    if (s->bytes_a_second && sim_chance(&w->churn, w->s->net.slow))
        s->bytes_a_second = (uint64_t)((double)s->bytes_a_second / w->s->net.slow_factor) + 1;
    if (w->s->clock.skew_ms)
        s->wall_skew_ms =
            (int64_t)sim_random(&w->churn, 2 * w->s->clock.skew_ms) - (int64_t)w->s->clock.skew_ms;
    choose_malice(w, s);
    uint64_t spread_us = is_joining ? 1000 : 20000000;
    sim_push(w, w->now_us + sim_random(&w->churn, spread_us), EV_START, s->index + 1, 0, NULL);
    return s;
}

void sim_site_free(iso_sim *w, sim_site *s)
{
    iso_agent_free(s->agent);
    for (int i = 0; i < SIM_KEPT; i++)
        iso_packet_drop(&w->packets, &w->pool, s->kept[i]);
    while (s->lines) {
        sim_line *next = s->lines->next;
        free(s->lines);
        s->lines = next;
    }
    iso_sim_disk_free(&s->disk);
    free(s->tasks);
    free(s->task_numbers);
    free(s);
}
