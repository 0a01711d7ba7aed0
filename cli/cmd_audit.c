/* isofed audit: the chain of everything that was decided. */
#include "cli/admin_command.h"
#include "cli/command.h"

static const iso_column result[] = {
    {"entries", "entries", ISO_CELL_COUNT},
    {"ok", "chain holds", ISO_CELL_TEXT},
    {"head", "head", ISO_CELL_TEXT},
    {"reason", "reason", ISO_CELL_TEXT},
};

static const iso_admin_verb verbs[] = {
    {"verify", "audit.verify", "walk the whole chain", ISO_WORD_NONE, NULL, NULL,
     ISO_COLUMNS(result), NULL},
    {0},
};

static const iso_admin_command command = {
    .name = "audit",
    .summary = "Verify the audit chain of a coordinator.",
    .example = "isofed audit verify --dir /var/lib/isofed",
    .verbs = verbs,
};

static int run(int argc, char **argv)
{
    return iso_admin_command_run(&command, argc, argv);
}

const iso_command iso_cmd_audit = {"audit", "verify the chain of decisions", run};
