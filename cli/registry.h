/* The table of subcommands: one row each. */
#ifndef ISO_CLI_REGISTRY_H
#define ISO_CLI_REGISTRY_H

#include "cli/command.h"

extern const iso_command *const iso_commands[]; /* ends with NULL */

#endif
