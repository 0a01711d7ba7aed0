#include "client/trainer.h"

#include "core/crash.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { PROGRESS_MS = 200 };

/* What travels through the two pipes: pointers to these, owned by whoever holds them. */
typedef enum { ORDER_START = 1, ORDER_FORGET, ORDER_QUIT } order_kind;
typedef struct {
    order_kind kind;
    uint64_t ticket;     /* rises with each start */
    uint8_t id[16];      /* FORGET */
    iso_trainer_job job; /* START: with everything it borrows in `arena` */
    iso_train_spec spec;
    iso_arena arena;
} order;

typedef struct {
    uint64_t ticket;
    iso_trainer_event event;
    iso_buf container;
} report;

struct iso_client_trainer {
    iso_engine *engine;
    int nice;
    pthread_t thread;
    bool has_thread;
    int orders[2], reports[2]; /* read end, write end */
    _Atomic uint64_t stopped;  /* tickets up to this one are not wanted any more */
    /* the daemon's thread only */
    iso_store store;
    uint64_t ticket; /* of the last start */
    bool is_running;
    uint8_t running[16];
    /* the engine's thread only */
    uint64_t working, told_ms;
};

static void order_free(order *o)
{
    if (!o)
        return;
    iso_arena_free(&o->arena);
    free(o);
}

static void report_free(report *r)
{
    if (!r)
        return;
    iso_buf_free(&r->container);
    free(r);
}

/* A pointer is far below PIPE_BUF, so it goes through whole or not at all. */
static bool put(int fd, void *p)
{
    ssize_t n;
    while ((n = write(fd, &p, sizeof p)) < 0 && errno == EINTR)
        ;
    return n == (ssize_t)sizeof p;
}

static void *get(int fd)
{
    void *p = NULL;
    ssize_t n;
    while ((n = read(fd, &p, sizeof p)) < 0 && errno == EINTR)
        ;
    return n == (ssize_t)sizeof p ? p : NULL;
}

static bool hold_texts(iso_arena *arena, const char *const **field, uint32_t n)
{
    const char **copy = iso_arena_calloc(arena, n, sizeof *copy);
    for (uint32_t i = 0; copy && i < n; i++)
        if (!(copy[i] = iso_arena_strdup(arena, (*field)[i])))
            return false;
    *field = copy;
    return copy != NULL;
}

static bool hold(order *o, const iso_trainer_job *job)
{
    bool is_whole = true;
    o->job = *job;
    o->job.task = iso_arena_strdup(&o->arena, job->task ? job->task : "");
    if (job->spec) {
        const char *parameters = job->spec->kind_parameters;
        o->spec = *job->spec;
        o->spec.kind_parameters = iso_arena_strdup(&o->arena, parameters ? parameters : "");
        is_whole = hold_texts(&o->arena, &o->spec.targets, o->spec.target_count) &&
                   hold_texts(&o->arena, &o->spec.classes, o->spec.class_count) &&
                   o->spec.kind_parameters;
        o->job.spec = &o->spec;
    }
    return is_whole && o->job.task;
}

/* ---- the engine's thread ---- */

static bool should_stop(void *ctx)
{
    const iso_client_trainer *t = ctx;
    return atomic_load(&t->stopped) >= t->working;
}

static uint64_t now_ms(void)
{
    struct timespec ts;
    clock_gettime(CLOCK_MONOTONIC, &ts);
    return (uint64_t)ts.tv_sec * 1000 + (uint64_t)ts.tv_nsec / 1000000;
}

static void on_progress(void *ctx, const iso_trainer_event *ev)
{
    iso_client_trainer *t = ctx;
    iso_crash_point("T1"); /* killed between two steps of training (U32) */
    uint64_t now = now_ms();
    if (now - t->told_ms < PROGRESS_MS)
        return;
    t->told_ms = now;
    report *r = iso_calloc(1, sizeof *r);
    if (!r)
        return; /* progress is a courtesy */
    r->ticket = t->working;
    r->event = *ev;
    if (!put(t->reports[1], r))
        report_free(r);
}

static void run_one(iso_client_trainer *t, const order *o)
{
    iso_error error = {0};
    const iso_engine_hooks hooks = {should_stop, on_progress, t};
    report *r = iso_calloc(1, sizeof *r);
    if (!r)
        return; /* the daemon's own allocations fail as well and stop it */
    t->working = o->ticket;
    r->ticket = o->ticket;
    iso_err err = iso_engine_run(t->engine, &o->job, &hooks, &r->event, &r->container, &error);
    if (err == ISO_ERR_INTERRUPTED) {
        report_free(r);
        return;
    }
    if (err != ISO_OK) {
        r->event.kind = ISO_TRAINER_FAILED;
        r->event.code = err;
        r->event.is_final = err != ISO_ERR_RESOURCE && err != ISO_ERR_MEMORY;
        memcpy(r->event.sentence, error.text, sizeof r->event.sentence);
    }
    if (!put(t->reports[1], r))
        report_free(r);
}

static void *thread_main(void *arg)
{
    iso_client_trainer *t = arg;
    /* On Linux a thread has a nice value of its own; its OpenMP helpers inherit it. */
    if (t->nice > 0)
        setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), t->nice);
    for (;;) {
        order *o = get(t->orders[0]);
        if (!o || o->kind == ORDER_QUIT) {
            order_free(o);
            return NULL;
        }
        if (o->kind == ORDER_FORGET)
            iso_engine_forget(t->engine, o->id);
        else if (atomic_load(&t->stopped) < o->ticket)
            run_one(t, o);
        order_free(o);
    }
}

/* ---- the daemon's thread ---- */

static iso_err seam_start(void *ctx, const iso_trainer_job *job, iso_error *e)
{
    iso_client_trainer *t = ctx;
    if (t->is_running)
        return iso_fail(e, ISO_ERR_INTERNAL, "a job is running already");
    order *o = iso_calloc(1, sizeof *o);
    if (!o || !hold(o, job)) {
        order_free(o);
        return iso_nomem(e, sizeof *o);
    }
    o->kind = ORDER_START;
    o->ticket = ++t->ticket;
    if (!put(t->orders[1], o)) {
        order_free(o);
        return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "the training thread takes no job");
    }
    t->is_running = true;
    memcpy(t->running, job->id, 16);
    return ISO_OK;
}

static void seam_cancel(void *ctx, const uint8_t id[16])
{
    iso_client_trainer *t = ctx;
    if (!t->is_running || memcmp(t->running, id, 16) != 0)
        return;
    atomic_store(&t->stopped, t->ticket);
    t->is_running = false;
}

static bool seam_poll(void *ctx, iso_trainer_event *out)
{
    iso_client_trainer *t = ctx;
    report *r;
    while ((r = get(t->reports[0]))) {
        if (t->is_running && r->ticket == t->ticket)
            break;
        report_free(r); /* of a job that was stopped */
    }
    if (!r)
        return false;
    *out = r->event;
    t->is_running = out->kind == ISO_TRAINER_PROGRESS;
    if (r->container.size && out->kind == ISO_TRAINER_DONE) {
        iso_error error = {0};
        iso_digest d;
        iso_err err = t->store.blob_put(t->store.ctx, r->container.data, r->container.size,
                                        &out->container, &d, &error);
        if (err != ISO_OK) {
            out->kind = ISO_TRAINER_FAILED;
            out->code = err;
            out->is_final = false; /* the disk: worth another try */
            memcpy(out->sentence, error.text, sizeof out->sentence);
        }
    }
    report_free(r);
    return true;
}

static void seam_forget(void *ctx, const uint8_t id[16])
{
    iso_client_trainer *t = ctx;
    order *o = iso_calloc(1, sizeof *o);
    if (!o)
        return;
    o->kind = ORDER_FORGET;
    memcpy(o->id, id, 16);
    if (!put(t->orders[1], o))
        order_free(o); /* what stays is the file of a finished job */
}

iso_trainer iso_client_trainer_seam(iso_client_trainer *t)
{
    return (iso_trainer){t, seam_start, seam_cancel, seam_poll, seam_forget};
}

int iso_client_trainer_fd(const iso_client_trainer *t)
{
    return t->reports[0];
}

iso_err iso_client_trainer_open(iso_client_trainer **out, const iso_engine_options *options,
                                const iso_store *store, int nice, iso_error *e)
{
    iso_client_trainer *t = iso_calloc(1, sizeof *t);
    *out = NULL;
    if (!t)
        return iso_nomem(e, sizeof *t);
    t->store = *store;
    t->nice = nice;
    for (int i = 0; i < 2; i++)
        t->orders[i] = t->reports[i] = -1;
    iso_err err = iso_engine_open(&t->engine, options, e);
    if (err == ISO_OK && (pipe2(t->orders, O_CLOEXEC) || pipe2(t->reports, O_CLOEXEC) ||
                          fcntl(t->reports[0], F_SETFL, O_NONBLOCK)))
        err = iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "pipes to the training thread");
    if (err == ISO_OK) {
        int rc = pthread_create(&t->thread, NULL, thread_main, t);
        if (rc)
            err = iso_fail_errno(e, ISO_ERR_RESOURCE, rc, "training thread");
        t->has_thread = rc == 0;
    }
    if (err != ISO_OK) {
        iso_client_trainer_close(t);
        return err;
    }
    *out = t;
    return ISO_OK;
}

static void quit(iso_client_trainer *t)
{
    order *o = iso_calloc(1, sizeof *o);
    atomic_store(&t->stopped, UINT64_MAX);
    if (o) {
        o->kind = ORDER_QUIT;
        if (!put(t->orders[1], o))
            order_free(o);
    } else { /* the end of the pipe says the same */
        close(t->orders[1]);
        t->orders[1] = -1;
    }
    pthread_join(t->thread, NULL);
}

void iso_client_trainer_close(iso_client_trainer *t)
{
    if (!t)
        return;
    if (t->has_thread)
        quit(t);
    report *r;
    while (t->reports[0] >= 0 && (r = get(t->reports[0])))
        report_free(r);
    iso_engine_close(t->engine);
    for (int i = 0; i < 2; i++) {
        if (t->orders[i] >= 0)
            close(t->orders[i]);
        if (t->reports[i] >= 0)
            close(t->reports[i]);
    }
    free(t);
}
