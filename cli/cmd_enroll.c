/* isofed enroll LINE: one line from central IT makes this machine a site (AMENDMENTS 1). */
#include "cli/command.h"
#include "client/enroll.h"
#include "core/args.h"
#include "core/fsio.h"
#include "crypto/init.h"
#include "crypto/passphrase.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { LINE_FILE_MAX_BYTES = 4096 };

typedef struct {
    const char *dir, *name, *file;
    int64_t passphrase_fd;
    bool json;
} options;

static const iso_arg_row rows[] = {
    {"dir", 'd', ISO_ARG_STRING, offsetof(options, dir), "DIR",
     "the client's folder (default: $ISOFED_DIR, else /var/lib/isofed)", 0, 0, NULL},
    {"name", 'n', ISO_ARG_STRING, offsetof(options, name), "SITE",
     "the site's name, as the token was made for", 0, 0, NULL},
    {"file", 'f', ISO_ARG_STRING, offsetof(options, file), "FILE", "read the line from a file", 0,
     0, NULL},
    {"passphrase-fd", 0, ISO_ARG_INT, offsetof(options, passphrase_fd), "N",
     "descriptor with the passphrase of the keys", 0, 1024, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "print the result as JSON", 0, 0,
     NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed enroll 'LINE' --name SITE [options]",
    .summary = "Enrol this machine with the line that `isofed token new` printed.",
    .example = "isofed enroll --file line.txt --name plant-7 --dir /var/lib/isofed-client",
    .rows = rows,
    .max_words = 1,
};

static iso_err read_line(const char *path, iso_buf *out, iso_error *e)
{
    iso_err err = iso_read_file(path, LINE_FILE_MAX_BYTES, out, e);
    if (!err)
        out->data[strcspn((const char *)out->data, "\r\n")] = 0;
    return err;
}

static void print_result(const iso_enroll_result *r, bool json)
{
    if (json)
        printf("{\"name\":\"%s\",\"state\":\"%s\",\"fingerprint\":\"%s\"}\n", r->enrolment.name,
               iso_site_state_name(r->state), r->fingerprint);
    else if (r->state == ISO_SITE_PENDING)
        printf("enrolled as %s, waiting for approval; tell central IT the fingerprint %s\n",
               r->enrolment.name, r->fingerprint);
    else
        printf("enrolled as %s (fingerprint %s)\n", r->enrolment.name, r->fingerprint);
}

static int run(int argc, char **argv)
{
    options o = {.dir = getenv("ISOFED_DIR"), .passphrase_fd = -1};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_buf line = {0};
    char *passphrase = NULL;
    iso_enroll_result result;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && is_done)
        return 0;
    if (!err && (words.count == 1) == (o.file != NULL))
        err = iso_fail(&e, ISO_ERR_USAGE, "give the enrolment line, or --file with it");
    if (!err && !o.name)
        err = iso_fail(&e, ISO_ERR_USAGE, "--name SITE is needed: the name the token was made for");
    if (!err)
        err = iso_crypto_init(&e);
    if (!err && o.passphrase_fd >= 0)
        err = iso_passphrase_from_fd((int)o.passphrase_fd, &passphrase, &e);
    if (!err && o.file)
        err = read_line(o.file, &line, &e);
    if (!err) {
        iso_enroll_options opt = {.passphrase = passphrase};
        err = iso_client_enroll(o.dir ? o.dir : "/var/lib/isofed",
                                o.file ? (const char *)line.data : words.items[0], o.name, &opt,
                                &result, &e);
    }
    if (!err)
        print_result(&result, o.json);
    iso_buf_free(&line);
    iso_secret_free(passphrase);
    return err ? iso_cli_fail("enroll", err, &e) : 0;
}

const iso_command iso_cmd_enroll = {"enroll", "make this machine a site, with one line", run};
