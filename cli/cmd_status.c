/* isofed status: one screen of what a daemon does, coordinator or client. */
#include "cli/admin_client.h"
#include "cli/command.h"
#include "cli/table.h"
#include "core/args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef struct {
    const char *dir;
    bool json, watch;
} options;

static const iso_arg_row rows[] = {
    {"dir", 'd', ISO_ARG_STRING, offsetof(options, dir), "DIR",
     "the daemon's folder (default: $ISOFED_DIR, else /var/lib/isofed)", 0, 0, NULL},
    {"watch", 'w', ISO_ARG_FLAG, offsetof(options, watch), NULL, "again every second, until Ctrl-C",
     0, 0, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "print the whole answer as JSON", 0, 0,
     NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed status [options]",
    .summary = "What a daemon does now: rounds, sites, releases, links, training.",
    .example = "isofed status --dir /var/lib/isofed --watch",
    .rows = rows,
};

static const iso_column coordinator[] = {
    {"federation_name", "federation", ISO_CELL_TEXT},
    {"endpoint", "endpoint", ISO_CELL_TEXT},
    {"uptime_ms", "up for", ISO_CELL_AGO_MS},
    {"sites_active", "sites active", ISO_CELL_COUNT},
    {"sites_online", "sites online", ISO_CELL_COUNT},
    {"round", "round", ISO_CELL_COUNT},
    {"round_state", "round state", ISO_CELL_TEXT},
    {"release", "release", ISO_CELL_COUNT},
    {"updates_acknowledged", "updates acknowledged", ISO_CELL_COUNT},
    {"updates_used", "updates used", ISO_CELL_COUNT},
    {"updates_refused", "updates refused", ISO_CELL_COUNT},
    {"disk_free_bytes", "disk free", ISO_CELL_BYTES},
    {"audit_seq", "audit entries", ISO_CELL_COUNT},
};

static const iso_column client[] = {
    {"name", "site", ISO_CELL_TEXT},
    {"site_state", "state", ISO_CELL_TEXT},
    {"link", "link", ISO_CELL_TEXT},
    {"release", "release serving", ISO_CELL_COUNT},
    {"outbox", "outbox", ISO_CELL_COUNT},
    {"job", "working on", ISO_CELL_TEXT},
    {"sent_bytes", "sent", ISO_CELL_BYTES},
    {"received_bytes", "received", ISO_CELL_BYTES},
    {"image_bytes", "images here", ISO_CELL_BYTES},
};

static const iso_column client_tasks[] = {
    {"task", "task", ISO_CELL_TEXT},
    {"images", "images", ISO_CELL_COUNT},
    {"chance", "chance", ISO_CELL_SHARE},
    {"probe_val", "probe", ISO_CELL_SHARE},
    {"own_val", "own", ISO_CELL_SHARE},
    {"delivered_val", "release", ISO_CELL_SHARE},
    {"refit_val", "release, head refitted", ISO_CELL_SHARE},
};

static void print(const iso_json *result)
{
    bool is_client = iso_json_key(result, "link") != NULL;
    if (is_client)
        iso_record_print(result, client, sizeof client / sizeof *client);
    else
        iso_record_print(result, coordinator, sizeof coordinator / sizeof *coordinator);
    if (is_client && iso_json_count(iso_json_key(result, "tasks"))) {
        printf("\n");
        iso_table_print(iso_json_key(result, "tasks"), client_tasks,
                        sizeof client_tasks / sizeof *client_tasks);
    }
}

static int run(int argc, char **argv)
{
    options o = {.dir = getenv("ISOFED_DIR")};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (err)
        return iso_cli_fail("status", err, &e);
    if (is_done)
        return 0;
    if (!o.dir)
        o.dir = "/var/lib/isofed";
    do {
        iso_json *reply = NULL;
        const iso_json *result = NULL;
        err = iso_admin_call(o.dir, "status", NULL, &reply, &result, &e);
        if (err)
            return iso_cli_fail("status", err, &e);
        if (o.watch)
            printf("\033[H\033[2J");
        if (o.json)
            iso_json_print(result);
        else
            print(result);
        fflush(stdout);
        iso_json_free(reply);
        if (o.watch)
            nanosleep(&(struct timespec){.tv_sec = 1}, NULL);
    } while (o.watch && !iso_cli_interrupted);
    return 0;
}

const iso_command iso_cmd_status = {"status", "one screen of what a daemon does", run};
