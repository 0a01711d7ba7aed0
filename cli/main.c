/* isofed: the one command for people. Subcommands live in cmd_*.c, one registry row each. */
#include "cli/command.h"
#include "cli/registry.h"
#include "core/yaml.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

volatile int iso_cli_interrupted;

static void on_signal(int number)
{
    (void)number;
    iso_cli_interrupted = 1;
}

int iso_cli_fail(const char *command, iso_err err, const iso_error *e)
{
    fprintf(stderr, "isofed %s: %s\n", command, e->text);
    return iso_exit_code(err);
}

static void print_help(FILE *out)
{
    fprintf(out, "usage: isofed COMMAND [options]\n\n"
                 "Factories teach one model together; no image leaves a factory.\n\n");
    for (const iso_command *const *c = iso_commands; *c; c++)
        fprintf(out, "  %-12s %s\n", (*c)->name, (*c)->help);
    fprintf(out, "\n`isofed COMMAND --help` shows options and an example.\n"
                 "Daemons: isofed-coordinator, isofed-client; worker: isofed-merge.\n");
}

static int unknown(const char *name)
{
    const char *names[64];
    size_t n = 0;
    for (const iso_command *const *c = iso_commands; *c && n < 64; c++)
        names[n++] = (*c)->name;
    const char *near = iso_nearest(name, names, n);
    if (near)
        fprintf(stderr, "isofed: unknown command \"%s\"; did you mean \"%s\"?\n", name, near);
    else
        fprintf(stderr, "isofed: unknown command \"%s\"; `isofed --help` lists them\n", name);
    return 2;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_help(stderr);
        return 2;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
        print_help(stdout);
        return 0;
    }
    if (!strcmp(argv[1], "--version")) {
        printf("isofed %s\n", ISO_VERSION);
        return 0;
    }
    struct sigaction stop = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigaction(SIGINT, &stop, NULL); /* a second Ctrl-C ends at once */
    sigaction(SIGTERM, &stop, NULL);
    signal(SIGPIPE, SIG_IGN);
    for (const iso_command *const *c = iso_commands; *c; c++)
        if (!strcmp((*c)->name, argv[1]))
            return (*c)->run(argc - 1, argv + 1);
    return unknown(argv[1]);
}
