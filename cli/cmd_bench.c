/* isofed bench NAME: figures as ratios against rivals measured in the same run (DESIGN 9). */
#include "bench/bench.h"
#include "cli/command.h"
#include "core/args.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    bool json, full;
} options;

static const iso_arg_row rows[] = {
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "one JSON object a line", 0, 0, NULL},
    {"full", 0, ISO_ARG_FLAG, offsetof(options, full), NULL, "the long shapes too", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed bench [options] NAME...",
    .summary = "Measure against rivals in the same run. Names: kernels train merge net sim.",
    .example = "isofed bench merge --json",
    .rows = rows,
    .min_words = 1,
    .max_words = 16,
};

static int run(int argc, char **argv)
{
    options o = {0};
    iso_arg_list names = {0};
    bool is_done = false;
    iso_error e;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &names, &is_done, &e);
    if (err)
        return iso_cli_fail("bench", err, &e);
    if (is_done)
        return 0;
    iso_bench_options bench = {.json = o.json, .full = o.full};
    for (size_t i = 0; i < names.count; i++) {
        const iso_bench *const *b = iso_benches;
        while (*b && strcmp((*b)->name, names.items[i]))
            b++;
        if (!*b) {
            iso_fail(&e, ISO_ERR_USAGE, "unknown bench \"%s\"; names: kernels train merge net sim",
                     names.items[i]);
            return iso_cli_fail("bench", ISO_ERR_USAGE, &e);
        }
        int rc = (*b)->run(&bench);
        if (rc)
            return rc;
    }
    return 0;
}

const iso_command iso_cmd_bench = {"bench", "figures as ratios against rivals, in one run", run};
