/* isofed releases: list, show, roll back; `verify` checks a release folder without any daemon. */
#include "cli/admin_command.h"
#include "cli/command.h"
#include "core/args.h"
#include "core/fsio.h"
#include "crypto/init.h"
#include "crypto/manifest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const iso_column list[] = {
    {"number", "release", ISO_CELL_COUNT},    {"kind", "kind", ISO_CELL_TEXT},
    {"method", "method", ISO_CELL_TEXT},      {"tasks", "tasks", ISO_CELL_TEXT},
    {"bytes", "size", ISO_CELL_BYTES},        {"accepted", "sites accepted", ISO_CELL_COUNT},
    {"rejected", "rejected", ISO_CELL_COUNT}, {"is_current", "current", ISO_CELL_TEXT},
};

static const iso_admin_verb verbs[] = {
    {"", "releases.list", "list the releases", ISO_WORD_NONE, NULL, "releases", ISO_COLUMNS(list),
     NULL},
    {"list", "releases.list", "list the releases", ISO_WORD_NONE, NULL, "releases",
     ISO_COLUMNS(list), NULL},
    {"show", "releases.show", "one release", ISO_WORD_NUMBER, "number", NULL, ISO_COLUMNS(list),
     NULL},
    {"rollback", "releases.rollback", "make an old content current under a new number",
     ISO_WORD_NUMBER, "number", NULL, ISO_COLUMNS(list), NULL},
    {"accept", "releases.accept", "release a held round in spite of the gate", ISO_WORD_NUMBER,
     "round", NULL, ISO_COLUMNS(list), NULL},
    {"verify", "", "check a release folder offline, with --key (see verify --help)", ISO_WORD_TEXT,
     "FOLDER", NULL, NULL, 0, NULL},
    {0},
};

static const iso_admin_command command = {
    .name = "releases",
    .summary = "List the releases of a federation and act on one.",
    .example = "isofed releases rollback 17 --reason \"weld complaints\" --dir /var/lib/isofed",
    .verbs = verbs,
};

/* ---- verify ---- */

typedef struct {
    const char *key;
    bool json;
} verify_options;

static const iso_arg_row verify_rows[] = {
    {"key", 'k', ISO_ARG_STRING, offsetof(verify_options, key), "FILE",
     "public release key (minisign.pub)", 0, 0, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(verify_options, json), NULL, "print the result as JSON", 0,
     0, NULL},
    {0},
};

static const iso_arg_spec verify_spec = {
    .usage = "isofed releases verify FOLDER --key minisign.pub",
    .summary = "Check signature, canonical form and the digest of every file of a release folder.",
    .example = "isofed releases verify releases/3 --key release/minisign.pub",
    .rows = verify_rows,
    .min_words = 1,
    .max_words = 1,
};

static iso_err check_file(const char *folder, const iso_manifest_file *f, bool *is_missing,
                          iso_error *e)
{
    iso_map m = {0};
    char *path = iso_path_join(folder, f->path);
    if (!path)
        return iso_nomem(e, strlen(f->path));
    iso_err err = ISO_OK;
    *is_missing = !iso_path_exists(path);
    if (*is_missing)
        goto done;
    err = iso_map_open(&m, path, e);
    if (err)
        goto done;
    if (m.size != f->size) {
        err = iso_fail(e, ISO_ERR_NO, "%s is %zu bytes, the manifest says %llu", f->path, m.size,
                       (unsigned long long)f->size);
        goto done;
    }
    iso_digest d = iso_digest_of(m.data, m.size);
    if (!iso_digest_equal(&d, &f->digest))
        err = iso_fail(e, ISO_ERR_NO, "%s: its content is not what was signed", f->path);
done:
    iso_map_close(&m);
    free(path);
    return err;
}

static iso_err verify(const char *folder, const char *key_path, iso_arena *arena,
                      iso_manifest *manifest, size_t *missing, iso_error *e)
{
    iso_buf text = {0}, signature = {0};
    iso_minisign_public key;
    char *text_path = iso_path_join(folder, "release.json");
    char *signature_path = iso_path_join(folder, "release.json.minisig");
    iso_err err = ISO_OK;
    if (!text_path || !signature_path)
        err = iso_nomem(e, 256);
    if (!err)
        err = iso_crypto_init(e);
    if (!err)
        err = iso_minisign_public_read(key_path, &key, e);
    if (!err)
        err = iso_read_file(text_path, ISO_MANIFEST_MAX_BYTES, &text, e);
    if (!err)
        err = iso_read_file(signature_path, ISO_MINISIGN_FILE_MAX_BYTES, &signature, e);
    if (!err)
        err = iso_manifest_verify(&key, text.data, text.size, signature.data, signature.size, arena,
                                  manifest, e);
    *missing = 0;
    for (size_t i = 0; !err && i < manifest->file_count; i++) {
        bool is_missing = false;
        err = check_file(folder, &manifest->files[i], &is_missing, e);
        *missing += is_missing;
    }
    free(text_path);
    free(signature_path);
    iso_buf_free(&text);
    iso_buf_free(&signature);
    return err;
}

static int run_verify(int argc, char **argv)
{
    verify_options o = {0};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_arena arena = {0};
    iso_manifest m = {0};
    size_t missing = 0;
    iso_err err = iso_args_parse(&verify_spec, argc, argv, &o, &words, &is_done, &e);
    if (!err && is_done)
        return 0;
    if (!err && !o.key)
        err = iso_fail(&e, ISO_ERR_USAGE, "verify needs --key FILE, the public release key");
    if (!err)
        err = verify(words.items[0], o.key, &arena, &m, &missing, &e);
    if (!err && o.json)
        printf("{\"number\":%llu,\"verified\":true,\"files\":%zu,\"absent\":%zu}\n",
               (unsigned long long)m.number, m.file_count, missing);
    else if (!err)
        /* A site fetches the heads of its own tasks only: the others are absent, not wrong. */
        printf("release %llu: signature good, %zu of %zu files here and as signed\n",
               (unsigned long long)m.number, m.file_count - missing, m.file_count);
    iso_arena_free(&arena);
    return err ? iso_cli_fail("releases verify", err, &e) : 0;
}

static int run(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "verify"))
        return run_verify(argc - 1, argv + 1);
    return iso_admin_command_run(&command, argc, argv);
}

const iso_command iso_cmd_releases = {"releases", "list, verify, roll back releases", run};
