/* isofed init coordinator|client DIR: a commented configuration that starts unedited, with keys. */
#include "cli/command.h"
#include "client/init.h"
#include "coordinator/init.h"
#include "core/args.h"
#include "crypto/init.h"
#include "crypto/passphrase.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *name, *listen, *advertise, *backbone, *data;
    int64_t passphrase_fd;
    bool quiet;
} options;

static const iso_arg_row rows[] = {
    {"name", 'n', ISO_ARG_STRING, offsetof(options, name), "NAME", "coordinator: of the federation",
     0, 0, NULL},
    {"listen", 'l', ISO_ARG_STRING, offsetof(options, listen), "HOST:PORT",
     "coordinator: where it listens (port 0: any)", 0, 0, NULL},
    {"advertise", 'a', ISO_ARG_STRING, offsetof(options, advertise), "HOST:PORT",
     "coordinator: how sites reach it, when that differs", 0, 0, NULL},
    {"backbone", 'b', ISO_ARG_STRING, offsetof(options, backbone), "DIR",
     "folder of the backbone (config.json, model.safetensors)", 0, 0, NULL},
    {"data", 0, ISO_ARG_STRING, offsetof(options, data), "TASK=DIR",
     "client: images of a task, DIR/{train,val,test}/<class>/", 0, 0, NULL},
    {"passphrase-fd", 0, ISO_ARG_INT, offsetof(options, passphrase_fd), "N",
     "descriptor with a passphrase for the keys (else they lie bare, mode 0600)", 0, 1024, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "print nothing", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed init coordinator|client DIR [options]",
    .summary = "Make a daemon's folder: keys and a commented configuration that works unedited.",
    .example = "isofed init coordinator centre --name acme --listen 0.0.0.0:7443 --backbone "
               "models/embedded",
    .rows = rows,
    .min_words = 2,
    .max_words = 2,
};

static iso_err init_coordinator(const char *dir, const options *o, const char *passphrase,
                                iso_error *e)
{
    iso_coordinator_init_options c = {.name = o->name,
                                      .listen = o->listen,
                                      .advertise = o->advertise,
                                      .backbone = o->backbone,
                                      .passphrase = passphrase};
    iso_err err = iso_coordinator_init(dir, &c, e);
    if (!err && !o->quiet)
        printf(
            "%s: configuration coordinator.yaml, keys in keys/ merge/ release/ root/\n"
            "The root key lies beside the others: move root/minisign.key to a safe place offline "
            "(it is needed only to change keys).\n"
            "No secure aggregation, no differential privacy: who holds merge/merge.key can read "
            "each site's update.\n"
            "next: name your tasks in %s/coordinator.yaml, then isofed-coordinator %s\n",
            dir, dir, dir);
    return err;
}

static iso_err init_client(const char *dir, const options *o, const char *passphrase, iso_error *e)
{
    iso_client_init_options c = {.backbone = o->backbone, .passphrase = passphrase};
    char fingerprint[ISO_FINGERPRINT_TEXT];
    char *task = NULL;
    if (o->data) {
        const char *equals = strchr(o->data, '=');
        if (!equals || equals == o->data || !equals[1])
            return iso_fail(e, ISO_ERR_USAGE, "--data \"%s\": expected TASK=FOLDER", o->data);
        task = iso_strdup(o->data);
        if (!task)
            return iso_nomem(e, strlen(o->data));
        task[equals - o->data] = 0;
        c.task = task;
        c.folder = equals + 1;
    }
    iso_err err = iso_client_init(dir, &c, fingerprint, e);
    if (!err && !o->quiet)
        printf("%s: configuration client.yaml, keys in keys/\nfingerprint %s\n"
               "next: isofed enroll 'LINE' --dir %s --name SITE, with the line that the "
               "coordinator's `isofed token new` printed\n",
               dir, fingerprint, dir);
    free(task);
    return err;
}

static int run(int argc, char **argv)
{
    options o = {.passphrase_fd = -1};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    char *passphrase = NULL;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && is_done)
        return 0;
    if (!err)
        err = iso_crypto_init(&e);
    if (!err && o.passphrase_fd >= 0)
        err = iso_passphrase_from_fd((int)o.passphrase_fd, &passphrase, &e);
    if (!err && !strcmp(words.items[0], "coordinator"))
        err = init_coordinator(words.items[1], &o, passphrase, &e);
    else if (!err && !strcmp(words.items[0], "client"))
        err = init_client(words.items[1], &o, passphrase, &e);
    else if (!err)
        err = iso_fail(&e, ISO_ERR_USAGE, "\"%s\": expected coordinator or client", words.items[0]);
    iso_secret_free(passphrase);
    return err ? iso_cli_fail("init", err, &e) : 0;
}

const iso_command iso_cmd_init = {"init", "make a coordinator's or a client's folder", run};
