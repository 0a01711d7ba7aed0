/* isofed token: enrolment tokens; `new` prints the one line that a site needs (AMENDMENTS 1). */
#include "cli/admin_command.h"
#include "cli/command.h"

static const iso_column list[] = {
    {"id", "token", ISO_CELL_TEXT},
    {"site", "for site", ISO_CELL_TEXT},
    {"state", "state", ISO_CELL_TEXT},
    {"expires_in_ms", "expires in", ISO_CELL_AGO_MS},
};

static const iso_admin_verb verbs[] = {
    {"new", "token.new", "make one for --site; prints the enrolment line", ISO_WORD_NONE, NULL,
     NULL, NULL, 0, "line"},
    {"list", "token.list", "list outstanding tokens", ISO_WORD_NONE, NULL, "tokens",
     ISO_COLUMNS(list), NULL},
    {"", "token.list", "list outstanding tokens", ISO_WORD_NONE, NULL, "tokens", ISO_COLUMNS(list),
     NULL},
    {0},
};

static const iso_admin_command command = {
    .name = "token",
    .summary = "Make and list enrolment tokens; each is good for one site.",
    .example = "isofed token new --site plant-7 --hours 24 --dir /var/lib/isofed",
    .verbs = verbs,
};

static int run(int argc, char **argv)
{
    return iso_admin_command_run(&command, argc, argv);
}

const iso_command iso_cmd_token = {"token", "make and list enrolment tokens", run};
