/* isofed simulate: plays a scenario with the shipped cores and virtual time (DESIGN 7). */
#include "cli/command.h"
#include "core/args.h"
#include "core/digest.h"
#include "core/json.h"
#include "core/parallel.h"
#include "core/progress.h"
#include "sim/report.h"
#include "sim/world.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

enum { TRACED = 60 };

typedef struct {
    int64_t seed, replay, events, threads;
    const char *report;
    bool json, quiet;
} options;

static const iso_arg_row rows[] = {
    {"seed", 0, ISO_ARG_INT, offsetof(options, seed), "N", "in place of the scenario's", -1, 9e15,
     NULL},
    {"replay", 0, ISO_ARG_INT, offsetof(options, replay), "EVENT",
     "run to that event and print what came just before it", 0, 9e15, NULL},
    {"events", 0, ISO_ARG_INT, offsetof(options, events), "N", "stop after N events; 0: never", 0,
     9e15, NULL},
    {"report", 0, ISO_ARG_STRING, offsetof(options, report), "FILE.html", "write a report", 0, 0,
     NULL},
    {"threads", 0, ISO_ARG_INT, offsetof(options, threads), "N",
     "for merging; 0: all processors; results do not depend on it", 0, 4096, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "results as JSON", 0, 0, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "no progress", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed simulate [options] SCENARIO.yaml",
    .summary =
        "Play a federation with virtual time, faults, and its invariants checked at every "
        "commit, message, job and swap. SCENARIO may be \"random\": a small one drawn from --seed.",
    .example = "isofed simulate sim/scenarios/crashes.yaml --seed 7",
    .rows = rows,
    .min_words = 1,
    .max_words = 1,
};

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

typedef struct {
    iso_progress bar;
} progress;

static void tick(void *ctx, uint64_t rounds, uint64_t events)
{
    progress *p = ctx;
    char note[64];
    snprintf(note, sizeof note, "%llu events", (unsigned long long)events);
    iso_progress_update(&p->bar, (double)rounds, note);
}

static void print_line(void *ctx, const char *text)
{
    fprintf(ctx, "%s\n", text);
}

static void print_json(const iso_scenario *s, const iso_sim_result *r, double wall_s, iso_err err,
                       const iso_error *e)
{
    iso_json *o = iso_sim_result_json(s, r, wall_s);
    iso_buf text = {0};
    iso_json_set(o, "ok", iso_json_boolean(!err));
    if (err)
        iso_json_set(o, "error", iso_json_string(e->text));
    if (iso_json_dump(o, ISO_JSON_COMPACT, &text, NULL) == ISO_OK)
        printf("%.*s\n", (int)text.size, (const char *)text.data);
    iso_json_free(o);
    iso_buf_free(&text);
}

/* What to type to see it again. */
static void complain(const iso_scenario *s, const char *file, const options *o,
                     const iso_sim_result *r, const iso_error *e)
{
    char when[48];
    iso_duration_text(when, sizeof when, (double)r->virtual_ms / 1000.0);
    if (r->broken_event)
        fprintf(stderr,
                "isofed simulate: %s broken at event %llu, seed %llu, t = %s: isofed simulate %s "
                "--seed %llu --replay %llu reproduces it\n",
                e->text, (unsigned long long)r->broken_event, (unsigned long long)s->seed, when,
                file, (unsigned long long)s->seed, (unsigned long long)r->broken_event);
    else
        fprintf(stderr, "isofed simulate: %s (event %llu, seed %llu, t = %s)\n", e->text,
                (unsigned long long)r->events, (unsigned long long)s->seed, when);
    (void)o;
}

static int play(const iso_scenario *s, const char *file, const options *o)
{
    iso_sim *w = NULL;
    iso_sim_result r = {0};
    iso_error e = {0};
    progress p;
    iso_sim_options so = {.events = (uint64_t)(o->replay ? o->replay : o->events),
                          .stop = &iso_cli_interrupted,
                          .progress = tick,
                          .progress_ctx = &p};
    if (o->replay)
        so.trace_from = o->replay > TRACED ? (uint64_t)o->replay - TRACED : 1;
    iso_progress_start(&p.bar, s->name, "rounds", s->rounds, o->quiet || o->json);
    double begun = seconds();
    iso_err err = iso_sim_open(&w, s, &so, &e);
    if (!err)
        err = iso_sim_run(w, &r, &e);
    double wall_s = seconds() - begun;
    iso_progress_end(&p.bar, (double)r.rounds);
    if (o->replay && w)
        iso_sim_each_trace(w, print_line, stdout);
    if (o->json)
        print_json(s, &r, wall_s, err, &e);
    else if (!o->replay)
        iso_sim_result_print(stdout, s, &r, wall_s);
    iso_err report_err = ISO_OK;
    iso_error report_error;
    if (o->report)
        report_err = iso_sim_report(o->report, s, &r, wall_s, err ? e.text : NULL, &report_error);
    iso_sim_close(w);
    if (report_err)
        return iso_cli_fail("simulate", report_err, &report_error);
    if (err == ISO_OK)
        return 0;
    if (err == ISO_ERR_INTERNAL || err == ISO_ERR_NO) {
        complain(s, file, o, &r, &e);
        return 1;
    }
    return iso_cli_fail("simulate", err, &e);
}

static int run(int argc, char **argv)
{
    options o = {.seed = -1};
    iso_arg_list words = {0};
    iso_scenario s;
    iso_arena arena = {0};
    bool is_done = false;
    iso_error e;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (err)
        return iso_cli_fail("simulate", err, &e);
    if (is_done)
        return 0;
    iso_set_threads((int)o.threads);
    if (strcmp(words.items[0], "random") == 0)
        iso_scenario_random(o.seed < 0 ? 1 : (uint64_t)o.seed, &s);
    else
        err = iso_scenario_read(words.items[0], &s, &arena, &e);
    if (!err && o.seed >= 0)
        s.seed = (uint64_t)o.seed;
    int rc = err ? iso_cli_fail("simulate", err, &e) : play(&s, words.items[0], &o);
    iso_arena_free(&arena);
    return rc;
}

const iso_command iso_cmd_simulate = {"simulate", "a federation with virtual time and faults", run};
