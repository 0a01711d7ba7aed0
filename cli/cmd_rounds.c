/* isofed rounds: open, watch, pause, resume, abort. */
#include "cli/admin_client.h"
#include "cli/admin_command.h"
#include "cli/command.h"
#include "core/args.h"
#include "core/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const iso_column list[] = {
    {"number", "round", ISO_CELL_COUNT},    {"kind", "kind", ISO_CELL_TEXT},
    {"state", "state", ISO_CELL_TEXT},      {"tasks", "tasks", ISO_CELL_TEXT},
    {"updates", "updates", ISO_CELL_COUNT}, {"invited", "invited", ISO_CELL_COUNT},
    {"release", "release", ISO_CELL_COUNT}, {"reason", "reason", ISO_CELL_TEXT},
};

static const iso_column one[] = {
    {"number", "round", ISO_CELL_COUNT},
    {"kind", "kind", ISO_CELL_TEXT},
    {"state", "state", ISO_CELL_TEXT},
    {"reason", "reason", ISO_CELL_TEXT},
};

static const iso_column updates[] = {
    {"site", "site", ISO_CELL_TEXT},        {"task", "task", ISO_CELL_TEXT},
    {"samples", "samples", ISO_CELL_COUNT}, {"score", "own score", ISO_CELL_SHARE},
    {"bytes", "sealed", ISO_CELL_BYTES},    {"verdict", "verdict", ISO_CELL_TEXT},
    {"sentence", "reason", ISO_CELL_TEXT},
};

static const iso_admin_verb verbs[] = {
    {"", "rounds.list", "list the rounds", ISO_WORD_NONE, NULL, "rounds", ISO_COLUMNS(list), NULL},
    {"list", "rounds.list", "list the rounds", ISO_WORD_NONE, NULL, "rounds", ISO_COLUMNS(list),
     NULL},
    {"show", "rounds.show", "updates and verdicts of a round", ISO_WORD_NUMBER, "number", "updates",
     ISO_COLUMNS(updates), NULL},
    {"open", "rounds.open", "open a round for --tasks", ISO_WORD_NONE, NULL, NULL, ISO_COLUMNS(one),
     NULL},
    {"pause", "rounds.pause", "sites stop at their next step", ISO_WORD_NUMBER, "number", NULL,
     ISO_COLUMNS(one), NULL},
    {"resume", "rounds.resume", "go on", ISO_WORD_NUMBER, "number", NULL, ISO_COLUMNS(one), NULL},
    {"abort", "rounds.abort", "end it without a release", ISO_WORD_NUMBER, "number", NULL,
     ISO_COLUMNS(one), NULL},
    {"watch", "", "follow the rounds until none is open (see watch --help)", ISO_WORD_NONE, NULL,
     NULL, NULL, 0, NULL},
    {0},
};

static const iso_admin_command command = {
    .name = "rounds",
    .summary = "Open rounds and follow them.",
    .example = "isofed rounds open --tasks steel,material --dir /var/lib/isofed",
    .verbs = verbs,
};

/* ---- watch ---- */

typedef struct {
    const char *dir;
    bool quiet;
} watch_options;

static const iso_arg_row watch_rows[] = {
    {"dir", 'd', ISO_ARG_STRING, offsetof(watch_options, dir), "DIR",
     "the coordinator's folder (default: $ISOFED_DIR, else /var/lib/isofed)", 0, 0, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(watch_options, quiet), NULL, "only the exit code", 0, 0,
     NULL},
    {0},
};

static const iso_arg_spec watch_spec = {
    .usage = "isofed rounds watch [options]",
    .summary = "Follow the rounds until none is open. Exit 0: released; 1: held, failed, aborted.",
    .example = "isofed rounds watch --dir /var/lib/isofed",
    .rows = watch_rows,
};

static int64_t integer(const iso_json *o, const char *key)
{
    int64_t v = 0;
    return iso_json_int(iso_json_key(o, key), &v) ? v : 0;
}

static const char *text(const iso_json *o, const char *key)
{
    const char *s = iso_json_str(iso_json_key(o, key));
    return s ? s : "";
}

static bool is_over(const char *state)
{
    static const char *const ends[] = {"released", "done", "held", "failed", "aborted"};
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++)
        if (!strcmp(state, ends[i]))
            return true;
    return false;
}

/* "round 2 (adapter) open: 3 of 5 updates" */
static void describe(const iso_json *r, char *out, size_t size)
{
    const char *state = text(r, "state");
    int n = snprintf(out, size, "round %lld (%s) %s", (long long)integer(r, "number"),
                     text(r, "kind"), state);
    if (n < 0 || (size_t)n >= size)
        return;
    if (!strcmp(state, "open"))
        snprintf(out + n, size - (size_t)n, ": %lld of %lld updates",
                 (long long)integer(r, "updates"), (long long)integer(r, "invited"));
    else if (!strcmp(state, "evaluating"))
        snprintf(out + n, size - (size_t)n, ": %lld of %lld scores",
                 (long long)integer(r, "scores"), (long long)integer(r, "asked"));
    else if (!strcmp(state, "released"))
        snprintf(out + n, size - (size_t)n, ": release %lld", (long long)integer(r, "release"));
    else if (*text(r, "reason"))
        snprintf(out + n, size - (size_t)n, ": %s", text(r, "reason"));
}

enum { LINE_EVERY_S = 10 }; /* piped: counts that rise within a state */

typedef struct {
    char line[160];
    double told_s;
} watched;

static size_t state_length(const char *line)
{
    return strcspn(line, ":");
}

static void show_state(const char *line, watched *w, double seconds, bool is_terminal)
{
    char took[32];
    size_t n = state_length(line);
    bool is_same_state = n == state_length(w->line) && !strncmp(line, w->line, n);
    iso_duration_text(took, sizeof took, seconds);
    if (is_terminal) {
        fprintf(stderr, "\r\033[K%s, %s", line, took);
    } else if (!is_same_state ||
               (strcmp(line, w->line) != 0 && seconds - w->told_s >= LINE_EVERY_S)) {
        fprintf(stderr, "%s, %s\n", line, took);
        w->told_s = seconds;
        snprintf(w->line, sizeof w->line, "%s", line);
    }
}

static int run_watch(int argc, char **argv)
{
    watch_options o = {.dir = getenv("ISOFED_DIR")};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    char line[160] = "";
    watched seen = {0};
    int64_t last = -1;
    iso_err err = iso_args_parse(&watch_spec, argc, argv, &o, &words, &is_done, &e);
    if (err)
        return iso_cli_fail("rounds watch", err, &e);
    if (is_done)
        return 0;
    const bool is_terminal = isatty(STDERR_FILENO) && !o.quiet;
    time_t start = time(NULL);
    for (;;) {
        iso_json *reply = NULL;
        const iso_json *result = NULL;
        err = iso_admin_call(o.dir ? o.dir : "/var/lib/isofed", "rounds.list", NULL, &reply,
                             &result, &e);
        if (err)
            return iso_cli_fail("rounds watch", err, &e);
        const iso_json *rounds = iso_json_key(result, "rounds"), *newest = NULL;
        for (size_t i = 0; i < iso_json_count(rounds); i++)
            if (!newest || integer(iso_json_at(rounds, i), "number") > integer(newest, "number"))
                newest = iso_json_at(rounds, i);
        const char *state = text(newest, "state");
        const bool over = !newest || is_over(state);
        /* A head round is followed by its adapter round at once: "done" alone is not the end. */
        const bool ended = over && (strcmp(state, "done") != 0 || !*text(newest, "follows"));
        const int rc = !newest || !strcmp(state, "released") || !strcmp(state, "done") ? 0 : 1;
        if (integer(newest, "number") != last && is_terminal && last >= 0)
            fputc('\n', stderr);
        last = integer(newest, "number");
        describe(newest, line, sizeof line);
        if (!o.quiet)
            show_state(line, &seen, difftime(time(NULL), start), is_terminal);
        iso_json_free(reply);
        if (ended || iso_cli_interrupted) {
            if (is_terminal)
                fputc('\n', stderr);
            return iso_cli_interrupted ? 130 : rc;
        }
        nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    }
}

static int run(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "watch"))
        return run_watch(argc - 1, argv + 1);
    return iso_admin_command_run(&command, argc, argv);
}

const iso_command iso_cmd_rounds = {"rounds", "open, show, pause, resume, abort rounds", run};
