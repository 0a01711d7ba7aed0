/* isofed sites: who takes part; approve, revoke, quarantine. */
#include "cli/admin_command.h"
#include "cli/command.h"

static const iso_column list[] = {
    {"name", "site", ISO_CELL_TEXT},
    {"state", "state", ISO_CELL_TEXT},
    {"fingerprint", "fingerprint", ISO_CELL_TEXT},
    {"online", "online", ISO_CELL_TEXT},
    {"last_seen_ms", "last message", ISO_CELL_AGO_MS},
    {"release", "release", ISO_CELL_COUNT},
    {"updates", "updates", ISO_CELL_COUNT},
    {"refusals", "refused", ISO_CELL_COUNT},
    {"software", "software", ISO_CELL_TEXT},
};

static const iso_column change[] = {
    {"name", "site", ISO_CELL_TEXT},
    {"state", "state", ISO_CELL_TEXT},
    {"at", "effective", ISO_CELL_TEXT},
};

static const iso_admin_verb verbs[] = {
    {"", "sites.list", "list the sites", ISO_WORD_NONE, NULL, "sites", ISO_COLUMNS(list), NULL},
    {"list", "sites.list", "list the sites", ISO_WORD_NONE, NULL, "sites", ISO_COLUMNS(list), NULL},
    {"show", "sites.show", "one site", ISO_WORD_TEXT, "name", NULL, ISO_COLUMNS(list), NULL},
    {"approve", "sites.approve", "let a pending site take part", ISO_WORD_TEXT, "name", NULL,
     ISO_COLUMNS(change), NULL},
    {"revoke", "sites.revoke", "shut a site out, live connections too", ISO_WORD_TEXT, "name", NULL,
     ISO_COLUMNS(change), NULL},
    {"quarantine", "sites.quarantine", "keep its updates, use none", ISO_WORD_TEXT, "name", NULL,
     ISO_COLUMNS(change), NULL},
    {0},
};

static const iso_admin_command command = {
    .name = "sites",
    .summary = "List the sites of a federation and act on one.",
    .example = "isofed sites revoke plant-3 --reason \"machine stolen\" --dir /var/lib/isofed",
    .verbs = verbs,
};

static int run(int argc, char **argv)
{
    return iso_admin_command_run(&command, argc, argv);
}

const iso_command iso_cmd_sites = {"sites", "list, approve, revoke, quarantine sites", run};
