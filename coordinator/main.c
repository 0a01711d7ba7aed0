/* isofed-coordinator DIR */
#include "coordinator/daemon.h"
#include "core/args.h"
#include "core/clock.h"
#include "core/crash.h"
#include "crypto/init.h"
#include "crypto/passphrase.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    bool version, check_config, json_log;
    const char *log_level, *crash_at;
    int64_t passphrase_fd;
} options;

static const iso_arg_row rows[] = {
    {"version", 0, ISO_ARG_FLAG, offsetof(options, version), NULL, "print the version", 0, 0, NULL},
    {"check-config", 0, ISO_ARG_FLAG, offsetof(options, check_config), NULL,
     "read configuration, keys and backbone, say ok, change nothing", 0, 0, NULL},
    {"log-level", 0, ISO_ARG_STRING, offsetof(options, log_level), "LEVEL",
     "trace debug info warn error (default info)", 0, 0, NULL},
    {"log-json", 0, ISO_ARG_FLAG, offsetof(options, json_log), NULL, "log lines as JSON", 0, 0,
     NULL},
    {"passphrase-fd", 0, ISO_ARG_INT, offsetof(options, passphrase_fd), "N",
     "read the keys' passphrase from descriptor N", 0, 65535, NULL},
    {0}};

/* Fault tests only, hence not in the help. */
static const char *take_crash_at(int *argc, char **argv)
{
    for (int i = 1; i + 1 < *argc; i++)
        if (strcmp(argv[i], "--crash-at") == 0) {
            const char *name = argv[i + 1];
            memmove(&argv[i], &argv[i + 2], (size_t)(*argc - i - 1) * sizeof *argv);
            *argc -= 2;
            return name;
        }
    return NULL;
}

static iso_err get_passphrase(const options *o, char **out, iso_error *e)
{
    if (o->passphrase_fd >= 0)
        return iso_passphrase_from_fd((int)o->passphrase_fd, out, e);
    return iso_passphrase_from_credential("isofed-passphrase", out, e);
}

int main(int argc, char **argv)
{
    static const iso_arg_spec spec = {
        .usage = "isofed-coordinator [options] DIR",
        .summary = "Runs the coordinator of a federation from its folder.",
        .example = "isofed init coordinator /var/lib/isofed && isofed-coordinator /var/lib/isofed",
        .rows = rows,
        .min_words = 0,
        .max_words = 1};
    options o = {.log_level = "info", .passphrase_fd = -1};
    iso_arg_list words = {0};
    iso_error e = {0};
    bool is_done = false;
    char *passphrase = NULL;
    iso_clock clock = iso_clock_system();
    iso_log log = {.out = stderr,
                   .program = "isofed-coordinator",
                   .wall_ms = clock.wall_ms,
                   .clock_ctx = clock.ctx};
    const char *crash_at = take_crash_at(&argc, argv);
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && is_done)
        return 0;
    if (!err && o.version) {
        printf("isofed-coordinator %s\n", ISO_VERSION);
        return 0;
    }
    if (!err && words.count != 1)
        err = iso_fail(&e, ISO_ERR_USAGE, "names the folder to run from: isofed-coordinator DIR");
    if (!err && !iso_log_parse_level(o.log_level, &log.level))
        err = iso_fail(&e, ISO_ERR_USAGE, "log level \"%s\": trace debug info warn error",
                       o.log_level);
    if (!err && !iso_crash_arm(crash_at))
        err = iso_fail(&e, ISO_ERR_USAGE, "--crash-at %s", crash_at);
    log.json = o.json_log;
    if (!err)
        err = iso_crypto_init(&e);
    if (!err)
        err = get_passphrase(&o, &passphrase, &e);
    iso_daemon_options d = {.dir = words.items[0],
                            .passphrase = passphrase,
                            .program = argv[0],
                            .check_config = o.check_config,
                            .log = &log};
    if (!err)
        err = iso_coord_daemon_run(&d, &e);
    iso_secret_free(passphrase);
    if (err)
        fprintf(stderr, "isofed-coordinator: %s\n", e.text);
    else if (o.check_config)
        printf("%s: ok\n", d.dir);
    return iso_exit_code(err);
}
