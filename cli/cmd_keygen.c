/* isofed keygen: one key of the table in specs/security.md 2, as a file of mode 0600. Release and
 * root keys are minisign's and get their public file beside them. */
#include "cli/command.h"
#include "core/args.h"
#include "core/clock.h"
#include "core/fsio.h"
#include "core/json.h"
#include "crypto/init.h"
#include "crypto/key.h"
#include "crypto/minisign.h"
#include "crypto/passphrase.h"
#include "crypto/text.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* In the order of iso_key_kind from its first real kind on, then minisign's two. */
static const char *const kinds[] = {"coordinator-transport",
                                    "site-transport",
                                    "site-sign",
                                    "merge",
                                    "audit",
                                    "backup",
                                    "release",
                                    "root",
                                    NULL};
enum { KIND_RELEASE = 6 };

typedef struct {
    int kind;
    const char *out, *public_out;
    int64_t passphrase_fd;
    bool no_passphrase, json, quiet;
} options;

static const iso_arg_row rows[] = {
    {"kind", 'k', ISO_ARG_ENUM, offsetof(options, kind), "KIND", "what the key is for", 0, 0,
     kinds},
    {"out", 'o', ISO_ARG_STRING, offsetof(options, out), "FILE", "key file; must not exist", 0, 0,
     NULL},
    {"public", 0, ISO_ARG_STRING, offsetof(options, public_out), "FILE",
     "public file of a release or root key (FILE with .pub)", 0, 0, NULL},
    {"passphrase-fd", 0, ISO_ARG_INT, offsetof(options, passphrase_fd), "N",
     "read the passphrase from this descriptor, not the terminal", 0, 1023, NULL},
    {"no-passphrase", 0, ISO_ARG_FLAG, offsetof(options, no_passphrase), NULL,
     "bare key, for unattended start; said in `isofed status`", 0, 0, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "result as JSON", 0, 0, NULL},
    {"quiet", 'q', ISO_ARG_FLAG, offsetof(options, quiet), NULL, "print nothing", 0, 0, NULL},
    {0},
};

static const iso_arg_spec spec = {
    .usage = "isofed keygen --kind KIND -o FILE [options]",
    .summary =
        "Makes a key: coordinator-transport, site-transport, site-sign, merge, audit, backup, "
        "release or root.",
    .example = "isofed keygen --kind root -o root.key --no-passphrase",
    .rows = rows,
};

/* What there is to print. */
typedef struct {
    char public_key[64]; /* base64 */
    char name[64];       /* of the next: "fingerprint", "merge_key_id", "key_id" or "" */
    char id[ISO_FINGERPRINT_TEXT];
    char *public_file; /* owned; NULL if none */
} result;

static iso_err get_passphrase(const options *o, char **out, iso_error *e)
{
    *out = NULL;
    if (o->no_passphrase && o->passphrase_fd >= 0)
        return iso_fail(e, ISO_ERR_USAGE, "--no-passphrase and --passphrase-fd exclude each other");
    if (o->no_passphrase)
        return ISO_OK;
    if (o->passphrase_fd >= 0)
        return iso_passphrase_from_fd((int)o->passphrase_fd, out, e);
    return iso_passphrase_prompt("passphrase for the new key", true, out, e);
}

/* "x.key" -> "x.pub", anything else gains ".pub". */
static char *public_name(const options *o)
{
    size_t n = strlen(o->out);
    if (o->public_out)
        return iso_strdup(o->public_out);
    if (n > 4 && !strcmp(o->out + n - 4, ".key"))
        n -= 4;
    return iso_strf("%.*s.pub", (int)n, o->out);
}

static iso_err make_minisign(const options *o, const char *passphrase, result *r, iso_error *e)
{
    iso_minisign_key key = {0};
    iso_buf text = {0};
    uint8_t fingerprint[ISO_FINGERPRINT_BYTES];
    iso_err err = ISO_OK;
    r->public_file = public_name(o);
    if (!r->public_file)
        return iso_nomem(e, strlen(o->out));
    /* Before the secret: a public file that cannot be written must not leave half a pair. */
    if (iso_path_exists(r->public_file))
        err = iso_fail(e, ISO_ERR_TRUST, "%s exists: a key is never overwritten, remove it first",
                       r->public_file);
    if (!err)
        err = iso_minisign_make(&key, e);
    if (!err)
        err = iso_minisign_public_format(&key.public_part, &text, e);
    if (!err)
        err = iso_minisign_key_write(&key, o->out, passphrase, e);
    if (!err)
        err = iso_write_file(r->public_file, text.data, text.size, 0644, e);
    if (!err) {
        iso_base64_encode(key.public_part.public_key, 32, r->public_key);
        if (o->kind == KIND_RELEASE) {
            uint64_t id = iso_get_u64(key.public_part.key_id);
            snprintf(r->name, sizeof r->name, "key_id");
            snprintf(r->id, sizeof r->id, "%llX", (unsigned long long)id);
        } else {
            snprintf(r->name, sizeof r->name, "fingerprint");
            iso_minisign_fingerprint(&key.public_part, fingerprint);
            iso_fingerprint_text(fingerprint, r->id);
        }
    }
    iso_minisign_free(&key);
    iso_buf_free(&text);
    return err;
}

static iso_err make_plain(const options *o, const char *passphrase, result *r, iso_error *e)
{
    iso_key key = {0};
    iso_key_kind kind = ISO_KEY_ANY;
    iso_clock clock = iso_clock_system();
    uint8_t id[ISO_ID_BYTES];
    if (o->public_out)
        return iso_fail(e, ISO_ERR_USAGE, "--public is for release and root keys only");
    if (!iso_key_kind_parse(kinds[o->kind], &kind))
        return iso_fail(e, ISO_ERR_INTERNAL, "kind %s", kinds[o->kind]);
    iso_err err = iso_key_make(kind, clock.wall_ms(clock.ctx), &key, e);
    if (!err)
        err = iso_key_write(&key, o->out, passphrase, NULL, e);
    if (!err) {
        iso_base64_encode(key.public_key, 32, r->public_key);
        if (kind == ISO_KEY_MERGE) {
            snprintf(r->name, sizeof r->name, "merge_key_id");
            iso_merge_key_id(key.public_key, id);
            iso_hex(r->id, id, sizeof id);
        }
    }
    iso_key_free(&key);
    return err;
}

static iso_err print(const options *o, const result *r, iso_error *e)
{
    if (o->quiet)
        return ISO_OK;
    if (!o->json) {
        printf("%s key in %s\npublic: %s\n", kinds[o->kind], o->out, r->public_key);
        if (r->name[0])
            printf("%s: %s\n", r->name, r->id);
        if (r->public_file)
            printf("public file: %s\n", r->public_file);
        if (o->no_passphrase)
            printf("no passphrase: whoever reads the file has the key\n");
        return ISO_OK;
    }
    iso_buf text = {0};
    iso_json *j = iso_json_object();
    iso_json_set(j, "kind", iso_json_string(kinds[o->kind]));
    iso_json_set(j, "file", iso_json_string(o->out));
    iso_json_set(j, "public", iso_json_string(r->public_key));
    if (r->name[0])
        iso_json_set(j, r->name, iso_json_string(r->id));
    if (r->public_file)
        iso_json_set(j, "public_file", iso_json_string(r->public_file));
    iso_json_set(j, "sealed", iso_json_boolean(!o->no_passphrase));
    iso_err err = iso_json_dump(j, ISO_JSON_COMPACT, &text, e);
    if (!err)
        printf("%.*s\n", (int)text.size, (const char *)text.data);
    iso_json_free(j);
    iso_buf_free(&text);
    return err;
}

static int run(int argc, char **argv)
{
    options o = {.kind = -1, .passphrase_fd = -1};
    result r = {0};
    iso_arg_list words = {0};
    iso_error e = {.text = ""};
    char *passphrase = NULL;
    bool is_done = false;
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (is_done)
        return 0;
    if (!err && o.kind < 0)
        err = iso_fail(&e, ISO_ERR_USAGE, "say what the key is for: --kind KIND");
    if (!err && !o.out)
        err = iso_fail(&e, ISO_ERR_USAGE, "say where the key goes: -o FILE");
    if (!err)
        err = iso_crypto_init(&e);
    if (!err)
        err = iso_crypto_no_dumps(&e);
    /* Asked for only when the file can be new: nobody types a passphrase twice for nothing. */
    if (!err && iso_path_exists(o.out))
        err = iso_fail(&e, ISO_ERR_TRUST, "%s exists: a key is never overwritten, remove it first",
                       o.out);
    if (!err)
        err = get_passphrase(&o, &passphrase, &e);
    if (!err)
        err = o.kind >= KIND_RELEASE ? make_minisign(&o, passphrase, &r, &e)
                                     : make_plain(&o, passphrase, &r, &e);
    if (!err)
        err = print(&o, &r, &e);
    iso_secret_free(passphrase);
    free(r.public_file);
    return err ? iso_cli_fail("keygen", err, &e) : 0;
}

const iso_command iso_cmd_keygen = {.name = "keygen", .help = "make a key file", .run = run};
