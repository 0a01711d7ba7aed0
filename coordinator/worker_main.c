/* isofed-merge: one job of the merge worker; started by the coordinator, or by a unit of its own.
 */
#include "coordinator/worker.h"
#include "core/args.h"
#include "core/parallel.h"
#include "crypto/init.h"
#include "crypto/passphrase.h"

#include <stdio.h>
#include <string.h>

typedef struct {
    const char *state, *job;
    int64_t passphrase_fd, threads;
    bool version;
} options;

static const iso_arg_row rows[] = {
    {"state", 's', ISO_ARG_STRING, offsetof(options, state), "DIR", "the coordinator's folder", 0,
     0, NULL},
    {"job", 'j', ISO_ARG_STRING, offsetof(options, job), "FILE",
     "job.json; the result goes beside it", 0, 0, NULL},
    {"passphrase-fd", 0, ISO_ARG_INT, offsetof(options, passphrase_fd), "N",
     "descriptor with the passphrase of the keys", 0, 1024, NULL},
    {"threads", 0, ISO_ARG_INT, offsetof(options, threads), "N", "0: all processors", 0, 1024,
     NULL},
    {"version", 0, ISO_ARG_FLAG, offsetof(options, version), NULL, "print the version", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed-merge --state DIR --job FILE",
    .summary = "Open sealed updates, merge, sign: one job, no network.",
    .example = "isofed-merge --state /var/lib/isofed --job /var/lib/isofed/jobs/0123/job.json",
    .rows = rows,
};

static iso_err run(const options *o, iso_error *e)
{
    char *passphrase = NULL;
    iso_err err = iso_crypto_init(e);
    if (!err)
        err = iso_crypto_no_dumps(e);
    if (!err && o->passphrase_fd >= 0)
        err = iso_passphrase_from_fd((int)o->passphrase_fd, &passphrase, e);
    if (!err) {
        iso_worker_options w = {.state_dir = o->state, .passphrase = passphrase};
        err = iso_worker_run(&w, o->job, e);
    }
    iso_secret_free(passphrase);
    return err;
}

int main(int argc, char **argv)
{
    options o = {.passphrase_fd = -1};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e = {0};
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && is_done)
        return 0;
    if (!err && o.version) {
        printf("isofed-merge %s\n", ISO_VERSION);
        return 0;
    }
    if (!err && (!o.state || !o.job))
        err = iso_fail(&e, ISO_ERR_USAGE, "--state DIR and --job FILE are needed");
    if (!err) {
        iso_set_threads((int)o.threads);
        err = run(&o, &e);
    }
    if (err)
        fprintf(stderr, "isofed-merge: %s\n", e.text);
    return iso_exit_code(err);
}
