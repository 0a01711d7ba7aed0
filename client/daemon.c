#include "client/daemon.h"

#include "client/daemon_inner.h"
#include "client/outbox.h"
#include "core/crash.h"
#include "core/fsio.h"
#include "core/parallel.h"
#include "crypto/init.h"
#include "crypto/sealer_real.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum {
    STATE_APPLICATION = 0x49534643, /* "ISFC" */
    STATE_SCHEMA = 1,
    DISK_MS = 10000,
    FILE_MS = 60000,
    EVENTS_A_TURN = 64,
    FEED_MAX = 100000,
    NOTES_MAX = 20
};
static const uint64_t reserve_bytes = 16ull << 20;

/* ---- feeding the core ---- */

static iso_err step(iso_daemon *d, const iso_agent_event *ev, iso_error *e)
{
    iso_agent_effects_reset(&d->effects);
    iso_agent_step(d->agent, ev, d->clock.mono_ms(d->clock.ctx), d->clock.wall_ms(d->clock.ctx),
                   &d->effects);
    if (d->effects.is_out_of_memory)
        return iso_nomem(e, d->effects.arena.held_bytes);
    for (size_t i = 0; i < d->effects.count; i++) {
        iso_err err = iso_daemon_perform(d, &d->effects.items[i], e);
        if (err != ISO_OK)
            return err;
    }
    return iso_agent_check(d->agent, e); /* I9, I11, I12: asserted after every event */
}

static iso_err drain_queue(iso_daemon *d, iso_error *e)
{
    iso_err err = ISO_OK;
    for (int n = 0; d->first && err == ISO_OK; n++) {
        iso_queued_event *q = d->first;
        d->first = q->next;
        if (!d->first)
            d->last = NULL;
        err =
            n < FEED_MAX ? step(d, &q->ev, e) : iso_fail(e, ISO_ERR_INTERNAL, "events without end");
        free(q);
    }
    return err;
}

iso_err iso_daemon_feed(iso_daemon *d, const iso_agent_event *ev, iso_error *e)
{
    iso_err err = step(d, ev, e);
    return err ? err : drain_queue(d, e);
}

/* ---- opening ---- */

iso_err iso_client_keys_read(const char *dir, const char *passphrase, iso_key *transport,
                             iso_key *sign, iso_error *e)
{
    char *t = iso_path_join(dir, "keys/transport.key"), *s = iso_path_join(dir, "keys/sign.key");
    iso_err err = t && s ? iso_key_read(t, ISO_KEY_SITE_TRANSPORT, passphrase, transport, e)
                         : iso_nomem(e, strlen(dir));
    if (err == ISO_OK)
        err = iso_key_read(s, ISO_KEY_SITE_SIGN, passphrase, sign, e);
    free(t);
    free(s);
    return err;
}

static uint64_t log_clock(void *ctx)
{
    const iso_clock *c = ctx;
    return c->wall_ms(c->ctx);
}

static iso_err open_state(iso_daemon *d, iso_error *e)
{
    const iso_state_options o = {.tables = iso_agent_table_names,
                                 .table_count = ISO_AT_COUNT,
                                 .application_id = STATE_APPLICATION,
                                 .schema = STATE_SCHEMA,
                                 .reserve_bytes = reserve_bytes};
    iso_err err = iso_state_open(&d->state, d->dir, &o, e);
    if (err != ISO_OK)
        return err;
    d->store = iso_state_store(d->state);
    return iso_files_open(&d->files, d->dir, &d->store, iso_state_blobs(d->state), e);
}

static iso_err open_agent(iso_daemon *d, iso_error *e)
{
    iso_agent_config c;
    iso_agent_config_defaults(&c);
    memcpy(c.federation_id, d->enrolment.federation_id, 16);
    memcpy(c.site_id, d->enrolment.site_id, 16);
    memcpy(c.root_fingerprint, d->enrolment.root_fingerprint, ISO_FINGERPRINT_BYTES);
    for (size_t i = 0; i < d->config.data_count; i++) {
        d->tasks[i].name = d->config.data[i].task;
        iso_agent_task_id(c.federation_id, d->tasks[i].name, d->tasks[i].id);
    }
    c.tasks = d->tasks;
    c.task_count = d->config.data_count;
    c.generation_digest = d->backbone->generation;
    c.accept_manual = d->config.accept == 1;
    c.margin = d->config.margin;
    c.ping_ms = d->config.ping_ms;
    c.spread_ms = d->config.spread_ms;
    c.outbox_bytes = d->config.outbox_bytes;
    c.release_bytes = d->config.release_bytes;
    c.disk_floor_bytes = d->config.disk_floor_bytes;
    const iso_agent_seams seams = {.sealer = iso_sealer_real(&d->sign),
                                   .entropy = iso_entropy_real()};
    iso_err err = iso_agent_new(&c, &seams, &d->agent, e);
    return err ? err : iso_agent_restore(d->agent, &d->store, e);
}

/* Called from the training thread: blobs are files that never change. */
static iso_err read_blob_file(void *ctx, const iso_digest *digest, iso_buf *out, iso_error *e)
{
    const iso_daemon *d = ctx;
    char path[4096];
    iso_blob_dir_path(d->files.blobs, digest, path, sizeof path);
    return iso_read_file(path, ISO_RELEASE_MAX_BYTES, out, e);
}

/* Called from the training thread: files that are left out are named here, at the site, and only
 * counted elsewhere. A line a file up to a handful, so that a broken disk does not fill the log. */
static void looked(void *ctx, size_t task, const iso_image_set sets[3])
{
    iso_daemon *d = ctx;
    uint64_t skipped = 0;
    int lines = 0;
    for (int s = 0; s < 3; s++) {
        skipped += sets[s].unreadable_count;
        for (size_t i = 0; i < sets[s].note_count && lines < NOTES_MAX; i++) {
            const iso_image_note *n = &sets[s].notes[i];
            char path[2 * ISO_ERROR_BYTES], reason[2 * ISO_ERROR_BYTES];
            if (n->kind == ISO_NOTE_UNKNOWN_CLASS)
                continue;
            iso_log_quote(path, sizeof path, n->path);
            iso_log_quote(reason, sizeof reason, n->reason);
            iso_log_event(&d->log, ISO_LOG_WARN,
                          n->kind == ISO_NOTE_EMPTY_CLASS ? "class_empty" : "image_skipped",
                          "task=%s file=\"%s\" reason=\"%s\"", d->tasks[task].name, path, reason);
            lines++;
        }
    }
    if (lines == NOTES_MAX)
        iso_log_event(&d->log, ISO_LOG_WARN, "images_skipped", "task=%s count=%llu",
                      d->tasks[task].name, (unsigned long long)skipped);
    d->skipped[task] = skipped;
}

static iso_err open_trainer(iso_daemon *d, iso_error *e)
{
    char *checkpoints = iso_path_join(d->dir, "training");
    iso_engine_options o = {.backbone = d->backbone,
                            .data = d->config.data,
                            .data_count = d->config.data_count,
                            .val_share = d->config.val_share,
                            .checkpoint_every = (size_t)d->config.checkpoint_every,
                            .cache_bytes = (size_t)d->config.cache_bytes,
                            .read_blob = read_blob_file,
                            .looked = looked,
                            .blob_ctx = d};
    iso_err err = checkpoints
                      ? iso_engine_preprocess(d->config.backbone, d->backbone, &o.preprocess, e)
                      : iso_nomem(e, strlen(d->dir));
    o.checkpoint_dir = checkpoints ? iso_arena_strdup(&d->arena, checkpoints) : NULL;
    free(checkpoints);
    if (err == ISO_OK)
        err = iso_client_trainer_open(&d->trainer, &o, &d->store, (int)d->config.nice, e);
    if (err == ISO_OK)
        d->seam = iso_client_trainer_seam(d->trainer);
    return err;
}

typedef struct {
    const iso_agent *agent;
    const iso_digest *wanted;
    bool is_found;
} live_search;

static void compare(void *arg, const iso_digest *digest)
{
    live_search *s = arg;
    s->is_found = s->is_found || iso_digest_equal(digest, s->wanted);
}

static bool is_live(void *arg, const iso_digest *digest)
{
    live_search s = {.agent = arg, .wanted = digest};
    iso_agent_live_blobs(s.agent, compare, &s);
    return s.is_found;
}

/* S84: what no record names goes: blobs, partial downloads, half-built release folders. */
static iso_err sweep(iso_daemon *d, iso_error *e)
{
    uint64_t removed = 0;
    iso_names names = {0};
    iso_agent_status s;
    iso_err err = iso_blob_dir_sweep(d->files.blobs, is_live, d->agent, &removed, e);
    if (err == ISO_OK)
        err = iso_fetch_sweep(&d->files, is_live, d->agent, e);
    char *path = iso_path_join(d->dir, "releases");
    if (err == ISO_OK)
        err = path ? iso_list_dir(path, &names, e) : iso_nomem(e, strlen(d->dir));
    iso_agent_get_status(d->agent, &s);
    for (size_t i = 0; err == ISO_OK && i < names.count; i++) {
        char *end;
        uint64_t number = strtoull(names.names[i], &end, 10);
        bool is_kept =
            *end == '\0' && number &&
            (number == s.release || number == s.release_previous || number == s.release_pending);
        char *folder = iso_path_join(path, names.names[i]);
        if (!is_kept)
            err = folder ? iso_remove_tree(folder, e) : iso_nomem(e, strlen(path));
        free(folder);
    }
    iso_names_free(&names);
    free(path);
    if (err == ISO_OK && removed)
        iso_log_event(&d->log, ISO_LOG_INFO, "swept", "blobs=%llu", (unsigned long long)removed);
    return err;
}

static iso_err open_signals(iso_daemon *d, iso_error *e)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    /* Before any thread is made, so that all of them inherit the mask. */
    if (sigprocmask(SIG_BLOCK, &set, NULL))
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "signals");
    d->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return d->signal_fd >= 0 ? ISO_OK : iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "signalfd");
}

iso_err iso_daemon_open(iso_daemon *d, const char *dir, const iso_daemon_options *options,
                        iso_error *e)
{
    memset(d, 0, sizeof *d);
    d->dir = dir;
    d->clock = iso_clock_system();
    d->signal_fd = -1;
    d->control.listen_fd = -1;
    d->files.fd = -1;
    iso_err err = iso_client_config_read(dir, &d->config, &d->arena, e);
    if (err == ISO_OK)
        err = iso_enrolment_read(dir, &d->enrolment, e);
    if (err == ISO_OK)
        err = iso_client_keys_read(dir, options->passphrase, &d->transport, &d->sign, e);
    if (err != ISO_OK)
        return err;
    d->log = (iso_log){.out = options->log_out,
                       .level = (iso_level)d->config.log_level,
                       .json = d->config.log_json,
                       .program = "isofed-client",
                       .wall_ms = log_clock,
                       .clock_ctx = &d->clock,
                       .window_ms = 0};
    iso_set_threads((int)d->config.threads);
    if ((err = open_signals(d, e)) != ISO_OK || (err = open_state(d, e)) != ISO_OK ||
        (err = iso_backbone_open(&d->backbone, d->config.backbone, e)) != ISO_OK ||
        (err = open_agent(d, e)) != ISO_OK || (err = sweep(d, e)) != ISO_OK ||
        (err = open_trainer(d, e)) != ISO_OK)
        return err;
    iso_link_options l = {.port = d->enrolment.port,
                          .transport_pk = d->transport.public_key,
                          .transport_secret = d->transport.secret,
                          .heartbeat_ms = d->config.heartbeat_ms};
    memcpy(l.host, d->enrolment.host, sizeof l.host);
    memcpy(l.coordinator_pk, d->enrolment.coordinator_pk, 32);
    if ((err = iso_link_open(&d->link, &l, e)) != ISO_OK)
        return err;
    return iso_control_open(&d->control, dir, e);
}

void iso_daemon_close(iso_daemon *d)
{
    if (!d->dir)
        return;
    iso_control_close(&d->control);
    iso_client_trainer_close(d->trainer); /* waits for its step; the checkpoint is written */
    iso_link_close(d->link);
    while (d->first) {
        iso_queued_event *q = d->first;
        d->first = q->next;
        free(q);
    }
    iso_agent_free(d->agent);
    iso_agent_effects_free(&d->effects);
    iso_backbone_close(d->backbone);
    iso_files_close(&d->files);
    iso_state_close(d->state);
    iso_key_free(&d->transport);
    iso_key_free(&d->sign);
    if (d->signal_fd >= 0)
        close(d->signal_fd);
    iso_arena_free(&d->arena);
    memset(d, 0, sizeof *d);
}

/* ---- running ---- */

static iso_err scan(iso_daemon *d, iso_error *e)
{
    for (size_t i = 0; i < d->config.data_count; i++) {
        iso_spool_state s;
        iso_error error = {0};
        if (iso_spool_scan(d->config.data[i].folder, d->config.val_share, &s, &error) != ISO_OK) {
            /* A folder that is not there yet is no reason to stop: the line may start later. */
            iso_log_event(&d->log, ISO_LOG_WARN, "spool", "task=%s error=\"%s\"",
                          d->config.data[i].task, error.text);
            memset(&s, 0, sizeof s);
        }
        if (d->has_spool[i] && iso_digest_equal(&s.digest, &d->spool[i].digest))
            continue;
        d->spool[i] = s;
        d->has_spool[i] = true;
        iso_agent_event ev = {.kind = ISO_AE_DATA,
                              .train = s.train,
                              .val = s.val,
                              .test = s.test,
                              .data_bytes = s.bytes,
                              .digest = s.digest};
        memcpy(ev.task_id, d->tasks[i].id, 16);
        iso_err err = iso_daemon_feed(d, &ev, e);
        if (err != ISO_OK)
            return err;
    }
    return ISO_OK;
}

static iso_err periodic(iso_daemon *d, iso_time now, iso_error *e)
{
    iso_err err = ISO_OK;
    if (now >= d->next_scan_ms) {
        d->next_scan_ms = now + d->config.scan_ms;
        err = scan(d, e);
    }
    if (err == ISO_OK && now >= d->next_disk_ms) {
        iso_agent_event ev = {.kind = ISO_AE_DISK};
        d->next_disk_ms = now + DISK_MS;
        err = iso_state_free_bytes(d->state, &ev.offset, e);
        if (err == ISO_OK)
            err = iso_daemon_feed(d, &ev, e);
    }
    if (err == ISO_OK && now >= d->next_file_ms) {
        d->next_file_ms = now + FILE_MS;
        err = iso_state_check_file(d->state, e); /* S83 */
    }
    return err;
}

static iso_err take_events(iso_daemon *d, iso_error *e)
{
    iso_agent_event ev;
    iso_trainer_event done;
    iso_err err = ISO_OK;
    for (int n = 0; err == ISO_OK && n < EVENTS_A_TURN && iso_link_next(d->link, &ev); n++)
        err = iso_daemon_feed(d, &ev, e);
    while (err == ISO_OK && d->seam.poll(d->seam.ctx, &done)) {
        if (done.kind == ISO_TRAINER_DONE && !iso_digest_is_zero(&done.output))
            iso_crash_point("F16"); /* the trial has run, its result is not recorded */
        err = iso_daemon_feed(d, &(iso_agent_event){.kind = ISO_AE_TRAINER, .trainer = &done}, e);
    }
    return err;
}

static void take_signals(iso_daemon *d)
{
    struct signalfd_siginfo info;
    while (read(d->signal_fd, &info, sizeof info) == (ssize_t)sizeof info) {
        d->should_stop = true;
        iso_log_event(&d->log, ISO_LOG_INFO, "stopping", "signal=%u", info.ssi_signo);
    }
}

static long patience_ms(const iso_daemon *d, iso_time now)
{
    const iso_time due[] = {iso_agent_next_wake(d->agent), d->next_scan_ms, d->next_disk_ms,
                            d->next_file_ms};
    iso_time first = now + 60000;
    for (size_t i = 0; i < sizeof due / sizeof *due; i++)
        first = due[i] < first ? due[i] : first;
    return first > now ? (long)(first - now) : 0;
}

iso_err iso_daemon_run(iso_daemon *d, iso_error *e)
{
    iso_time now = d->clock.mono_ms(d->clock.ctx);
    iso_err err = ISO_OK;
    d->started_ms = now;
    iso_log_event(&d->log, ISO_LOG_INFO, "ready", "site=%s coordinator=%s:%u tasks=%zu unclean=%s",
                  d->enrolment.name, d->enrolment.host, d->enrolment.port, d->config.data_count,
                  iso_state_was_unclean(d->state) ? "yes" : "no");
    if (d->sign.is_bare || d->transport.is_bare)
        iso_log_event(&d->log, ISO_LOG_INFO, "keys", "kdf=none"); /* S12 */
    iso_agent_effects_reset(&d->effects);
    iso_agent_start(d->agent, now, d->clock.wall_ms(d->clock.ctx), &d->effects);
    for (size_t i = 0; err == ISO_OK && i < d->effects.count; i++)
        err = iso_daemon_perform(d, &d->effects.items[i], e);
    if (err == ISO_OK)
        err = drain_queue(d, e);
    while (err == ISO_OK && !d->should_stop) {
        int fds[ISO_CONTROL_CLIENTS + 3] = {d->signal_fd, iso_client_trainer_fd(d->trainer)};
        bool ready[ISO_CONTROL_CLIENTS + 3] = {false};
        size_t count = 2 + iso_control_fds(&d->control, fds + 2);
        now = d->clock.mono_ms(d->clock.ctx);
        if ((err = periodic(d, now, e)) != ISO_OK ||
            (err = iso_link_wait(d->link, fds, ready, count, patience_ms(d, now), e)) != ISO_OK ||
            (err = take_events(d, e)) != ISO_OK)
            break;
        bool is_asked = false;
        for (size_t i = 2; i < count; i++)
            is_asked = is_asked || ready[i];
        if (is_asked)
            iso_control_serve(&d->control, iso_daemon_answer, d);
        if (ready[0])
            take_signals(d);
        if (iso_agent_next_wake(d->agent) <= d->clock.mono_ms(d->clock.ctx))
            err = iso_daemon_feed(d, &(iso_agent_event){.kind = ISO_AE_TICK}, e);
    }
    if (err == ISO_OK)
        iso_log_event(&d->log, ISO_LOG_INFO, "stopped", "state=kept");
    return err;
}
