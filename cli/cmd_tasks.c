/* isofed tasks: what is learnt, by whom. */
#include "cli/admin_command.h"
#include "cli/command.h"

static const iso_column list[] = {
    {"name", "task", ISO_CELL_TEXT},        {"classes", "classes", ISO_CELL_TEXT},
    {"sites", "sites", ISO_CELL_TEXT},      {"rank", "rank", ISO_CELL_COUNT},
    {"has_head", "head", ISO_CELL_TEXT},    {"adapter_round", "adapter of round", ISO_CELL_COUNT},
    {"score", "own score", ISO_CELL_SHARE},
};

static const iso_admin_verb verbs[] = {
    {"", "tasks.list", "list the tasks", ISO_WORD_NONE, NULL, "tasks", ISO_COLUMNS(list), NULL},
    {"list", "tasks.list", "list the tasks", ISO_WORD_NONE, NULL, "tasks", ISO_COLUMNS(list), NULL},
    {0},
};

static const iso_admin_command command = {
    .name = "tasks",
    .summary = "List the tasks of a federation.",
    .example = "isofed tasks --dir /var/lib/isofed --json",
    .verbs = verbs,
};

static int run(int argc, char **argv)
{
    return iso_admin_command_run(&command, argc, argv);
}

const iso_command iso_cmd_tasks = {"tasks", "list the tasks and where they stand", run};
