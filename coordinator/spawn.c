/* Starting, watching and repeating the worker. It gets a process group of its own, so that a
 * Ctrl-C at the daemon's terminal does not tear a merge; what it did not finish is done again. */
#include "coordinator/spawn.h"

#include "core/crash.h"
#include "core/fsio.h"

#include <errno.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TRIES = 3, RESULT_MAX_BYTES = 256 << 20 };

extern char **environ;

void iso_spawn_init(iso_spawn *s, const char *program, const char *dir, iso_log *log)
{
    *s = (iso_spawn){.program = program, .dir = dir, .log = log, .pid = -1, .pidfd = -1};
}

static iso_err run_worker(iso_spawn *s, iso_error *e)
{
    char job[4200];
    snprintf(job, sizeof job, "%s/job.json", s->folder);
    char *argv[] = {(char *)s->program, "--state", (char *)s->dir, "--job", job, NULL};
    posix_spawnattr_t attributes;
    sigset_t none;
    pid_t pid = -1;
    sigemptyset(&none);
    posix_spawnattr_init(&attributes);
    posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGMASK);
    posix_spawnattr_setpgroup(&attributes, 0);
    posix_spawnattr_setsigmask(&attributes, &none);
    int rc = posix_spawn(&pid, s->program, NULL, &attributes, argv, environ);
    posix_spawnattr_destroy(&attributes);
    if (rc != 0)
        return iso_fail_errno(e, ISO_ERR_RESOURCE, rc, "%s", s->program);
    s->pid = pid;
    s->pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
    s->tries++;
    return ISO_OK;
}

static void end_child(iso_spawn *s, bool must_kill)
{
    if (s->pid > 0) {
        int status;
        if (must_kill)
            kill(-s->pid, SIGKILL);
        while (waitpid(s->pid, &status, 0) < 0 && errno == EINTR)
            ;
    }
    if (s->pidfd >= 0)
        close(s->pidfd);
    s->pid = s->pidfd = -1;
}

iso_err iso_spawn_start(iso_spawn *s, const iso_job *job, uint64_t now_ms, iso_error *e)
{
    char hex[33], path[4200];
    iso_buf text = {0};
    end_child(s, true);
    iso_hex(hex, job->id, 16);
    snprintf(s->folder, sizeof s->folder, "%.4000s/jobs/%s", s->dir, hex);
    snprintf(path, sizeof path, "%s/job.json", s->folder);
    memcpy(s->id, job->id, 16);
    s->kind = job->kind;
    s->is_busy = true;
    s->tries = 0;
    s->started_ms = now_ms;
    iso_err err = iso_make_dirs(s->folder, 0700, e);
    if (!err)
        err = iso_job_text(job, &text, e);
    if (!err)
        err = iso_write_file(path, text.data, text.size, 0600, e);
    iso_buf_free(&text);
    snprintf(path, sizeof path, "%s/result.json", s->folder);
    iso_crash_point("F8");
    if (!err && !iso_path_exists(path))
        err = run_worker(s, e);
    if (err)
        s->is_busy = false;
    return err;
}

/* The result, if it is there and whole. */
static iso_err read_result(iso_spawn *s, const iso_store *store, iso_arena *arena,
                           iso_job_result *out, iso_error *e)
{
    char path[4200];
    iso_buf text = {0};
    snprintf(path, sizeof path, "%s/result.json", s->folder);
    iso_err err = iso_read_file(path, RESULT_MAX_BYTES, &text, e);
    if (!err)
        err = iso_job_result_read(text.data, text.size, store, arena, out, e);
    if (!err && memcmp(out->id, s->id, 16) != 0)
        err = iso_fail(e, ISO_ERR_DATA, "%s: result of another job", path);
    iso_buf_free(&text);
    if (err == ISO_ERR_DATA || err == ISO_ERR_TRUST)
        unlink(path); /* not usable: the next try writes it anew */
    out->kind = s->kind;
    return err;
}

iso_spawn_state iso_spawn_look(iso_spawn *s, const iso_store *store, uint64_t now_ms,
                               iso_arena *arena, iso_job_result *result, char *why,
                               size_t why_bytes)
{
    int status = 0;
    iso_error e = {0};
    if (s->pid > 0) {
        pid_t rc = waitpid(s->pid, &status, WNOHANG);
        if (rc == 0 || (rc < 0 && errno == EINTR))
            return ISO_SPAWN_RUNS;
        s->pid = -1;
        end_child(s, false);
    }
    bool is_good = WIFEXITED(status) && WEXITSTATUS(status) == 0;
    if (is_good && read_result(s, store, arena, result, &e) == ISO_OK) {
        iso_crash_point("F10");
        result->worker_ms = now_ms - s->started_ms;
        s->is_busy = false;
        return ISO_SPAWN_DONE;
    }
    if (WIFSIGNALED(status))
        snprintf(why, why_bytes, "ended by signal %d", WTERMSIG(status));
    else if (!is_good)
        snprintf(why, why_bytes, "exit code %d, its line is in the log above", WEXITSTATUS(status));
    else
        snprintf(why, why_bytes, "%s", e.text);
    iso_log_event(s->log, ISO_LOG_WARN, "worker_failed", "try=%d of=%d why=\"%s\"", s->tries, TRIES,
                  why);
    if (s->tries < TRIES && run_worker(s, &e) == ISO_OK)
        return ISO_SPAWN_RUNS;
    s->is_busy = false;
    return ISO_SPAWN_FAILED;
}

void iso_spawn_cancel(iso_spawn *s, const uint8_t id[16])
{
    if (s->is_busy && memcmp(s->id, id, 16) == 0)
        iso_spawn_stop(s);
}

void iso_spawn_stop(iso_spawn *s)
{
    end_child(s, true);
    s->is_busy = false;
}
