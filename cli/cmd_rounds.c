/* isofed rounds: open, watch, pause, resume, abort. */
#include "cli/admin_command.h"
#include "cli/command.h"

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
    {0},
};

static const iso_admin_command command = {
    .name = "rounds",
    .summary = "Open rounds and follow them.",
    .example = "isofed rounds open --tasks steel,material --dir /var/lib/isofed",
    .verbs = verbs,
};

static int run(int argc, char **argv)
{
    return iso_admin_command_run(&command, argc, argv);
}

const iso_command iso_cmd_rounds = {"rounds", "open, show, pause, resume, abort rounds", run};
