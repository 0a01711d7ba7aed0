/* isofed-client DIR: the daemon of one site. */
#include "client/check.h"
#include "client/daemon.h"
#include "core/args.h"
#include "core/crash.h"
#include "crypto/init.h"
#include "crypto/passphrase.h"

#include <signal.h>
#include <stdio.h>
#include <string.h>

typedef struct {
    bool check, what_leaves, version;
    int64_t passphrase_fd;
    const char *crash_at; /* hidden: fault tests */
} options;

static const iso_arg_row rows[] = {
    {"check", 0, ISO_ARG_FLAG, offsetof(options, check), NULL,
     "test name, port, clock, keys, disk, memory, data, backbone; then exit", 0, 0, NULL},
    {"what-leaves", 0, ISO_ARG_FLAG, offsetof(options, what_leaves), NULL,
     "list every field that this client sends; then exit", 0, 0, NULL},
    {"passphrase-fd", 0, ISO_ARG_INT, offsetof(options, passphrase_fd), "N",
     "read the keys' passphrase from this descriptor", 0, 1024, NULL},
    {"version", 0, ISO_ARG_FLAG, offsetof(options, version), NULL, "print the version", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed-client [options] DIR",
    .summary = "Daemon of a site: trains on its images, sends sealed updates, serves releases.",
    .example = "isofed-client --check /var/lib/isofed",
    .rows = rows,
    .min_words = 0,
    .max_words = 1,
};

static int fail(iso_err err, const iso_error *e)
{
    fprintf(stderr, "isofed-client: %s\n", e->text);
    return iso_exit_code(err);
}

/* --crash-at NAME is for tests and not in the help: taken out before options are parsed. */
static int take_crash_point(int argc, char **argv, const char **name)
{
    int n = 0;
    for (int i = 0; i < argc; i++) {
        if (strcmp(argv[i], "--crash-at") == 0 && i + 1 < argc)
            *name = argv[++i];
        else
            argv[n++] = argv[i];
    }
    argv[n] = NULL;
    return n;
}

static iso_err get_passphrase(const options *o, char **out, iso_error *e)
{
    *out = NULL;
    if (o->passphrase_fd >= 0)
        return iso_passphrase_from_fd((int)o->passphrase_fd, out, e);
    return iso_passphrase_from_credential("client-passphrase", out, e);
}

static int serve(const char *dir, const char *passphrase)
{
    static iso_daemon d;
    iso_error e = {0};
    const iso_daemon_options o = {.passphrase = passphrase, .log_out = stderr};
    iso_err err = iso_daemon_open(&d, dir, &o, &e);
    if (err == ISO_OK)
        err = iso_daemon_run(&d, &e);
    iso_daemon_close(&d);
    return err == ISO_OK ? 0 : fail(err, &e);
}

int main(int argc, char **argv)
{
    options o = {.passphrase_fd = -1};
    iso_arg_list words = {0};
    iso_error e = {0};
    bool is_done = false;
    char *passphrase = NULL;
    argc = take_crash_point(argc, argv, &o.crash_at);
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (err != ISO_OK)
        return fail(err, &e);
    if (is_done)
        return 0;
    if (o.version) {
        puts("isofed-client " ISO_VERSION);
        return 0;
    }
    if (o.what_leaves) {
        iso_client_what_leaves(stdout);
        return 0;
    }
    if (words.count != 1) {
        fprintf(stderr, "isofed-client: which folder? isofed-client DIR (--help)\n");
        return 2;
    }
    if (o.crash_at && !iso_crash_arm(o.crash_at)) {
        fprintf(stderr, "isofed-client: \"%s\" is no crash point\n", o.crash_at);
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    if ((err = iso_crypto_init(&e)) != ISO_OK || (err = iso_crypto_no_dumps(&e)) != ISO_OK ||
        (err = get_passphrase(&o, &passphrase, &e)) != ISO_OK)
        return fail(err, &e);
    int code;
    if (o.check) {
        int failed = 0;
        err = iso_client_check(words.items[0], passphrase, stdout, &failed, &e);
        code = err != ISO_OK ? fail(err, &e) : failed ? 1 : 0;
    } else {
        code = serve(words.items[0], passphrase);
    }
    iso_secret_free(passphrase);
    return code;
}
