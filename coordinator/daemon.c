/* Life of the daemon: open, loop over socket, operators, worker and time, close. */
#include "coordinator/daemon.h"

#include "coordinator/shell.h"
#include "core/crash.h"
#include "core/fsio.h"
#include "crypto/chain.h"
#include "crypto/init.h"
#include "crypto/sealer_real.h"
#include "proto/codec.h"

#include <errno.h>
#include <limits.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <unistd.h>

enum { MINUTE_MS = 60000, DISK_MS = 5000, RELOADS_MAX = 3 };

/* ---- one turn of the loop ---- */

static void take_messages(iso_shell *s)
{
    iso_server_message m;
    /* Bounded, so that operators and the worker have their turn under load. */
    for (int i = 0; i < SHELL_BATCH && iso_server_next(s->server, &m); i++) {
        iso_msg msg;
        iso_code code;
        iso_error e = {0};
        iso_coord_event ev = {.kind = ISO_CE_MESSAGE,
                              .peer = m.peer,
                              .name = m.name,
                              .msg = &msg,
                              .body = m.body,
                              .body_bytes = m.body_bytes,
                              .text = m.fault};
        iso_arena_reset(&s->message);
        if (!ev.text &&
            iso_msg_decode(m.head, m.head_bytes, &s->message, &msg, &code, &e) != ISO_OK)
            ev.text = e.text;
        else if (!ev.text && m.body_bytes && !iso_msg_has_body(msg.type))
            ev.text = "a body behind a message that has none";
        if (ev.text)
            ev.kind = ISO_CE_BAD_MESSAGE;
        iso_shell_step(s, &ev);
        iso_shell_settle(s);
    }
}

/* The one command that needs the store: the whole chain, entry by entry (S104). */
typedef struct {
    iso_chain chain;
    uint64_t entries;
} chain_walk;

static iso_err walk_entry(void *arg, const uint8_t *key, size_t key_bytes, const uint8_t *value,
                          size_t bytes, iso_error *e)
{
    chain_walk *w = arg;
    (void)key;
    (void)key_bytes;
    if (bytes < 32)
        return iso_fail(e, ISO_ERR_DATA, "entry %llu is cut", (unsigned long long)w->entries + 1);
    iso_err err = iso_chain_add(&w->chain, value, bytes - 32, e);
    if (!err && memcmp(w->chain.h.b, value + bytes - 32, 32) != 0)
        err = iso_fail(e, ISO_ERR_NO, "the chain breaks at entry %llu",
                       (unsigned long long)w->chain.seq);
    w->entries++;
    return err;
}

static void audit_verify(iso_shell *s, uint64_t id)
{
    iso_error e = {0};
    iso_coord_stats stats;
    char text[800], head[ISO_DIGEST_HEX], why[ISO_ERROR_BYTES * 2];
    const iso_coord_identity *d = &s->keys.identity;
    chain_walk w = {.chain = iso_chain_open(d->federation, d->epoch, d->audit_pk)};
    iso_coord_get_stats(s->core, &stats);
    iso_err err = s->store.scan(s->store.ctx, ISO_CT_AUDIT, walk_entry, &w, &e);
    if (!err && !iso_digest_equal(&w.chain.h, &stats.audit_head))
        err = iso_fail(&e, ISO_ERR_NO, "the chain's end is not the head that is signed");
    iso_hex(head, w.chain.h.b, 32);
    iso_log_quote(why, sizeof why, err ? e.text : "");
    snprintf(
        text, sizeof text,
        "{\"ok\":true,\"result\":{\"entries\":%llu,\"ok\":%s,\"head\":\"%s\",\"reason\":\"%s\"}}",
        (unsigned long long)w.entries, err ? "false" : "true", head, why);
    iso_admin_reply(s->admin, id, text);
}

static void take_commands(iso_shell *s)
{
    iso_coord_event ev = {.kind = ISO_CE_ADMIN};
    iso_admin_serve(s->admin);
    while (iso_admin_next(s->admin, &ev.admin, &ev.admin_uid, &ev.text)) {
        if (strstr(ev.text, "\"audit.verify\"")) {
            iso_shell_flush(s);
            audit_verify(s, ev.admin);
            continue;
        }
        iso_shell_step(s, &ev);
        iso_shell_settle(s);
    }
}

static void look_at_worker(iso_shell *s)
{
    iso_job_result result = {0};
    char why[300] = "";
    if (!s->spawn.is_busy)
        return;
    iso_arena_reset(&s->result);
    iso_coord_event ev = {.kind = ISO_CE_JOB_DONE, .result = &result, .text = why};
    iso_spawn_state state = iso_spawn_look(&s->spawn, &s->store, s->clock.mono_ms(s->clock.ctx),
                                           &s->result, &result, why, sizeof why);
    if (state == ISO_SPAWN_RUNS)
        return;
    if (state == ISO_SPAWN_DONE && s->spawn.kind == ISO_JOB_SIGN)
        iso_crash_point("F12");
    if (state == ISO_SPAWN_FAILED)
        ev.kind = ISO_CE_JOB_FAILED;
    memcpy(ev.id, s->spawn.id, 16);
    iso_shell_step(s, &ev);
    iso_shell_settle(s);
}

/* The database is still the file of its name (S83); how much room there is (S87): an update that is
 * refused for want of room is offered again as soon as there is some. */
static iso_err look_around(iso_shell *s, iso_error *e)
{
    iso_time now = s->clock.mono_ms(s->clock.ctx);
    iso_coord_event ev = {.kind = ISO_CE_DISK};
    if (s->looked && now - s->looked < DISK_MS)
        return ISO_OK;
    s->looked = now;
    iso_err err = iso_state_free_bytes(s->state, &ev.disk_free, e);
    if (!err && now - s->minute >= MINUTE_MS) {
        s->minute = now;
        err = iso_state_check_file(s->state, e);
    }
    if (err)
        return err;
    s->disk_free = ev.disk_free;
    if (ev.disk_free > s->config.disk_floor_bytes)
        (void)!iso_state_make_reserve(s->state, NULL);
    iso_shell_step(s, &ev);
    return ISO_OK;
}

/* A failed commit: nobody may be told anything of those steps; the state on disk is the truth. */
static iso_err reload(iso_shell *s, iso_error *e)
{
    if (++s->failures > RELOADS_MAX)
        return iso_fail(e, ISO_ERR_RESOURCE, "state cannot be written; see the log");
    iso_log_event(s->log, ISO_LOG_WARN, "reload", "try=%d", s->failures);
    iso_coord_free(s->core);
    s->core = NULL;
    s->must_reload = false;
    s->op_count = s->held_count = s->step_count = s->answer_count = s->store_count = 0;
    iso_server_cut_all(s->server);
    iso_admin_fail_all(s->admin, "{\"ok\":false,\"code\":\"not_stored\",\"error\":\"the state "
                                 "could not be written (is the disk full?): nothing was done\"}");
    iso_err err = iso_shell_make_core(s, e);
    if (!err)
        err = iso_shell_write_endpoint(s, e);
    if (!err)
        iso_shell_start_core(s);
    return err;
}

static long wait_ms(const iso_shell *s)
{
    iso_time now = s->clock.mono_ms(s->clock.ctx), wake = iso_coord_next_wake(s->core);
    if (s->answer_count || s->store_count || s->must_reload)
        return 0;
    uint64_t left = wake > now ? wake - now : 0;
    return left < 1000 ? (long)left : 1000;
}

static iso_err run_loop(iso_shell *s, int signal_fd, iso_error *e)
{
    while (!s->is_stopping) {
        struct pollfd fds[ISO_ADMIN_CONNECTIONS + 4];
        size_t n = iso_admin_fds(s->admin, fds);
        fds[n++] = (struct pollfd){.fd = signal_fd, .events = POLLIN};
        if (s->spawn.pidfd >= 0)
            fds[n++] = (struct pollfd){.fd = s->spawn.pidfd, .events = POLLIN};
        if (s->metrics)
            fds[n++] = (struct pollfd){.fd = iso_metrics_fd(s->metrics), .events = POLLIN};
        iso_err err = iso_server_wait(s->server, fds, n, wait_ms(s), e);
        if (err)
            return err;
        struct signalfd_siginfo info;
        if (read(signal_fd, &info, sizeof info) == (ssize_t)sizeof info)
            s->is_stopping = true;
        iso_server_tick(s->server, s->clock.mono_ms(s->clock.ctx));
        take_messages(s);
        take_commands(s);
        if (s->metrics)
            iso_metrics_serve(s->metrics);
        iso_shell_watch_memory(s);
        look_at_worker(s);
        iso_coord_event tick = {.kind = ISO_CE_TICK};
        iso_shell_step(s, &tick);
        if ((err = look_around(s, e)) != ISO_OK)
            return err;
        for (int i = 0; i < 2; i++) { /* what the first transaction has let go makes the second */
            iso_shell_store(s);
            iso_shell_settle(s);
            iso_shell_flush(s);
        }
        if (s->must_reload && (err = reload(s, e)) != ISO_OK)
            return err;
    }
    /* An answer that is on its way to an operator still leaves. */
    iso_shell_flush(s);
    iso_admin_serve(s->admin);
    return ISO_OK;
}

iso_err iso_coord_daemon_run(const iso_daemon_options *options, iso_error *e)
{
    sigset_t signals;
    iso_shell *s = iso_calloc(1, sizeof *s);
    if (!s)
        return iso_nomem(e, sizeof *s);
    s->options = options;
    s->log = options->log;
    s->clock = iso_clock_system();
    s->spawn.pid = s->spawn.pidfd = -1;
    sigemptyset(&signals);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL); /* before any thread starts */
    signal(SIGPIPE, SIG_IGN);
    int signal_fd = signalfd(-1, &signals, SFD_NONBLOCK | SFD_CLOEXEC);
    iso_err err = iso_crypto_init(e);
    if (!err)
        err = iso_crypto_no_dumps(e);
    if (!err && iso_crypto_swap_is_on())
        iso_log_event(s->log, ISO_LOG_WARN, "swap_is_on",
                      "keys=\"locked in memory, the rest not\"");
    if (!err)
        err = iso_shell_open(s, e);
    if (!err && !options->check_config) {
        iso_shell_start_core(s);
        iso_log_event(s->log, ISO_LOG_INFO, "ready", "endpoint=tcp://%s:%u", s->host,
                      iso_server_port(s->server));
        err = run_loop(s, signal_fd, e);
        iso_log_event(s->log, ISO_LOG_INFO, "stopped", "clean=%d", !err);
    }
    iso_shell_close(s);
    if (signal_fd >= 0)
        close(signal_fd);
    free(s);
    return err;
}
