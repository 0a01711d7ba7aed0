/* Subcommands of `isofed`: one file cmd_<name>.c and one row in cli/registry.c each. */
#ifndef ISO_CLI_COMMAND_H
#define ISO_CLI_COMMAND_H

#include "core/err.h"

typedef struct {
    const char *name, *help;
    int (*run)(int argc, char **argv); /* argv[0] is the subcommand's name; returns the exit code */
} iso_command;

/* Prints "isofed COMMAND: line" to stderr and returns the exit code of DESIGN 3. */
int iso_cli_fail(const char *command, iso_err err, const iso_error *e);

/* Set by SIGINT and SIGTERM (installed by main): long work looks at it and stops cleanly. */
extern volatile int iso_cli_interrupted;

#endif
