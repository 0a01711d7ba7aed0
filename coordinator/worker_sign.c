/* Job "sign": the release key's own rules (AMENDMENTS 2). A manifest is signed only if the gate
 * passed, every file of it is one of a candidate that this worker made, and its number is the last
 * signed plus one; the last number and digest stand in release/ledger.json. Signing the same
 * manifest again is fine: a job that was killed after the signature is run again. */
#include "coordinator/worker.h"
#include "core/fsio.h"
#include "crypto/manifest.h"

#include <stdlib.h>
#include <string.h>

enum { LEDGER_MAX_BYTES = 64 * 1024 };

typedef struct {
    uint64_t number; /* 0: nothing signed yet */
    iso_digest manifest;
} ledger;

static iso_err read_ledger(const char *path, ledger *l, iso_error *e)
{
    *l = (ledger){0};
    if (!iso_path_exists(path))
        return ISO_OK;
    iso_json *j = NULL;
    int64_t number = 0;
    const char *hex = NULL;
    iso_err err = iso_json_read(path, LEDGER_MAX_BYTES, &j, e);
    if (!err)
        err = iso_json_need_int(j, "number", 1, INT64_MAX, &number, e);
    if (!err)
        err = iso_json_need_str(j, "manifest", &hex, e);
    if (!err && !iso_unhex(l->manifest.b, sizeof l->manifest.b, hex))
        err = iso_fail(e, ISO_ERR_DATA, "%s: \"manifest\" is no digest", path);
    l->number = (uint64_t)number;
    iso_json_free(j);
    return err;
}

static iso_err write_ledger(const char *path, const ledger *l, iso_error *e)
{
    iso_buf text = {0};
    iso_json *j = iso_json_object();
    iso_json_set(j, "format", iso_json_integer(1));
    iso_json_set(j, "number", iso_json_integer((int64_t)l->number));
    iso_json_set(j, "manifest", iso_worker_hex(l->manifest.b, sizeof l->manifest.b));
    iso_err err = iso_json_dump(j, ISO_JSON_CANONICAL, &text, e);
    if (!err)
        err = iso_write_file(path, text.data, text.size, 0600, e);
    iso_json_free(j);
    iso_buf_free(&text);
    return err;
}

/* The adapter files of the release must be those of the candidate that the gate passed. */
static iso_err check_candidate(const iso_worker_options *o, const iso_worker_job *w,
                               const iso_manifest *m, iso_error *e)
{
    iso_buf text = {0};
    iso_json *j = NULL;
    iso_err err =
        iso_worker_get_blob(o->state_dir, &w->candidate, ISO_MANIFEST_MAX_BYTES, &text, e);
    if (!err)
        err = iso_json_parse(text.data, text.size, "candidate", &j, e);
    const iso_json *files = iso_json_key(j, "files");
    for (size_t i = 0; !err && i < iso_json_count(files); i++) {
        const char *path, *hex;
        uint8_t digest[ISO_DIGEST_BYTES];
        bool found = false;
        err = iso_json_need_str(iso_json_at(files, i), "path", &path, e);
        if (!err)
            err = iso_json_need_str(iso_json_at(files, i), "digest", &hex, e);
        if (err || !iso_unhex(digest, sizeof digest, hex))
            break;
        for (size_t k = 0; k < m->file_count; k++)
            found |= !strcmp(m->files[k].path, path) &&
                     !memcmp(m->files[k].digest.b, digest, sizeof digest);
        if (!found)
            err =
                iso_fail(e, ISO_ERR_TRUST, "the manifest's %s is not that of the candidate", path);
    }
    iso_json_free(j);
    iso_buf_free(&text);
    return err;
}

static iso_err check(const iso_worker_options *o, const iso_worker_job *w, const iso_manifest *m,
                     const ledger *l, iso_error *e)
{
    if (m->number != w->number)
        return iso_fail(e, ISO_ERR_TRUST, "the job says release %llu, the manifest %llu",
                        (unsigned long long)w->number, (unsigned long long)m->number);
    if (m->number == l->number && iso_digest_equal(&l->manifest, &w->manifest))
        return ISO_OK;
    if (m->number != l->number + 1)
        return iso_fail(e, ISO_ERR_TRUST, "release %llu does not follow %llu, the last one signed",
                        (unsigned long long)m->number, (unsigned long long)l->number);
    if (strcmp(w->gate, "passed") != 0 && strcmp(w->gate, "accepted") != 0)
        return iso_fail(e, ISO_ERR_TRUST, "the gate says \"%s\", not passed", w->gate);
    if (m->kind == ISO_RELEASE_ROLLBACK)
        return ISO_OK; /* its content was signed before; sites check it by digest */
    return check_candidate(o, w, m, e);
}

iso_err iso_worker_sign(const iso_worker_options *o, const iso_worker_job *w, iso_json *result,
                        iso_error *e)
{
    iso_buf text = {0}, signature = {0};
    iso_arena arena = {0};
    iso_manifest m;
    iso_minisign_key key = {0};
    ledger l;
    iso_digest digest;
    char *key_path = iso_path_join(o->state_dir, "release/minisign.key");
    char *ledger_path = iso_path_join(o->state_dir, "release/ledger.json");
    iso_err err = key_path && ledger_path ? ISO_OK : iso_nomem(e, strlen(o->state_dir));
    if (!err)
        err = iso_worker_get_blob(o->state_dir, &w->manifest, ISO_MANIFEST_MAX_BYTES, &text, e);
    if (!err)
        err = iso_manifest_parse(text.data, text.size, &arena, &m, e);
    if (!err)
        err = read_ledger(ledger_path, &l, e);
    if (!err)
        err = check(o, w, &m, &l, e);
    if (!err)
        err = iso_minisign_key_read(key_path, o->passphrase, &key, e);
    if (!err)
        err = iso_manifest_sign(&key, text.data, text.size, &signature, e);
    if (!err)
        err = iso_worker_put_blob(o->state_dir, &signature, &digest, e);
    if (!err) {
        l = (ledger){m.number, w->manifest};
        err = write_ledger(ledger_path, &l, e);
    }
    if (!err) {
        iso_json_set(result, "signature", iso_worker_hex(digest.b, sizeof digest.b));
        iso_json_set(result, "bytes", iso_json_integer((int64_t)signature.size));
    }
    iso_minisign_free(&key);
    iso_arena_free(&arena);
    iso_buf_free(&text);
    iso_buf_free(&signature);
    free(key_path);
    free(ledger_path);
    return err;
}
