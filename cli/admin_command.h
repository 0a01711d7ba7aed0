/* Commands that ask a daemon: `isofed sites revoke plant-3 --reason stolen`. A command is a table
 * of verbs; each verb is one request on the daemon's socket and one way to print the answer. */
#ifndef ISO_CLI_ADMIN_COMMAND_H
#define ISO_CLI_ADMIN_COMMAND_H

#include "cli/table.h"

typedef enum { ISO_WORD_NONE, ISO_WORD_TEXT, ISO_WORD_NUMBER } iso_word_kind;

typedef struct {
    const char *verb;    /* "" is the verb when none is given */
    const char *request; /* "sites.revoke" */
    const char *help;
    iso_word_kind word;   /* the argument after the verb */
    const char *word_key; /* its key in the request */
    const char *array;    /* key of the array in the answer to print as a table; NULL: a record */
    const iso_column *columns;
    size_t column_count;
    const char *line; /* instead of a record: print this string of the answer alone */
} iso_admin_verb;

typedef struct {
    const char *name, *summary, *example;
    const iso_admin_verb *verbs; /* ends with verb NULL */
} iso_admin_command;

/* Options: --dir, --json, --reason, --tasks, --site, --hours, --force. Returns the exit code. */
int iso_admin_command_run(const iso_admin_command *c, int argc, char **argv);

#define ISO_COLUMNS(a) (a), sizeof(a) / sizeof *(a)

#endif
