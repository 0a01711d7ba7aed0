#include "coordinator/worker.h"

#include "core/fsio.h"
#include "crypto/init.h"

#include <stdlib.h>
#include <string.h>

iso_json *iso_worker_hex(const uint8_t *bytes, size_t n)
{
    char text[2 * ISO_DIGEST_BYTES + 1];
    iso_hex(text, bytes, n);
    return iso_json_string(text);
}

iso_err iso_worker_put_blob(const char *state_dir, const iso_buf *data, iso_digest *out,
                            iso_error *e)
{
    *out = iso_digest_of(data->data, data->size);
    char *path = iso_worker_blob_path(state_dir, out);
    char *folder = path ? iso_strdup(path) : NULL;
    iso_err err = ISO_OK;
    if (!folder) {
        err = iso_nomem(e, 256);
        goto done;
    }
    *strrchr(folder, '/') = 0;
    if (iso_path_exists(path))
        goto done;
    err = iso_make_dirs(folder, 0700, e);
    if (!err)
        err = iso_write_file(path, data->data, data->size, 0600, e);
    if (!err)
        /* The two-letter folder may be new: its own name must survive as well (S84). */
        err = iso_sync_dir(state_dir, e);
done:
    free(path);
    free(folder);
    return err;
}

iso_err iso_worker_get_blob(const char *state_dir, const iso_digest *d, size_t max_bytes,
                            iso_buf *out, iso_error *e)
{
    char *path = iso_worker_blob_path(state_dir, d);
    if (!path)
        return iso_nomem(e, 256);
    iso_err err = iso_read_file(path, max_bytes, out, e);
    if (!err) {
        iso_digest got = iso_digest_of(out->data, out->size);
        if (!iso_digest_equal(&got, d))
            err = iso_fail(e, ISO_ERR_DATA, "%s: the stored blob is damaged", path);
    }
    free(path);
    return err;
}

void iso_worker_verdict(iso_json *verdicts, const iso_worker_update *u, const iso_opened *o)
{
    iso_json *v = iso_json_object();
    iso_json_set(v, "update_id", iso_worker_hex(u->update_id, sizeof u->update_id));
    iso_json_set(v, "verdict", iso_json_string(o->code == ISO_CODE_OK ? "used" : "refused"));
    iso_json_set(v, "code", iso_json_string(iso_code_name(o->code)));
    iso_json_set(v, "sentence", iso_json_string(o->code == ISO_CODE_OK ? "" : o->why.text));
    iso_json_set(v, "score", iso_json_real((double)o->header.score));
    iso_json_set(v, "samples", iso_json_integer((int64_t)o->header.sample_count));
    iso_json_push(verdicts, v);
}

/* result.json beside job.json. */
static iso_err write_result(const char *job_path, const iso_json *result, iso_error *e)
{
    iso_buf text = {0};
    char *path = iso_strdup(job_path), *final = NULL;
    iso_err err = path ? ISO_OK : iso_nomem(e, strlen(job_path));
    if (!err) {
        char *slash = strrchr(path, '/');
        if (slash)
            *slash = 0;
        final = iso_path_join(slash ? path : ".", "result.json");
        err = final ? ISO_OK : iso_nomem(e, strlen(path));
    }
    if (!err)
        err = iso_json_dump(result, ISO_JSON_PRETTY, &text, e);
    if (!err)
        err = iso_write_file(final, text.data, text.size, 0600, e);
    iso_buf_free(&text);
    free(path);
    free(final);
    return err;
}

static iso_err open_ground(const iso_worker_options *o, const iso_worker_job *w, iso_key *key,
                           iso_safetensors *backbone, iso_worker_ground *g, iso_error *e)
{
    char *path = iso_path_join(o->state_dir, "merge/merge.key");
    if (!path)
        return iso_nomem(e, strlen(o->state_dir));
    iso_err err = iso_key_read(path, ISO_KEY_MERGE, o->passphrase, key, e);
    free(path);
    if (!err && w->kind == ISO_WORKER_MERGE)
        err = iso_safetensors_open(backbone, w->backbone, e);
    *g = (iso_worker_ground){.state_dir = o->state_dir, .merge_key = key, .backbone = backbone};
    return err;
}

iso_err iso_worker_run(const iso_worker_options *o, const char *job_path, iso_error *e)
{
    iso_worker_job w = {0};
    iso_key key = {0};
    iso_safetensors backbone = {0};
    iso_worker_ground g = {0};
    iso_json *result = NULL;
    iso_err err = iso_crypto_init(e);
    if (!err)
        err = iso_worker_job_read(&w, job_path, e);
    if (err)
        goto done;
    result = iso_json_object();
    iso_json_set(result, "format", iso_json_integer(1));
    iso_json_set(result, "job", iso_json_string(w.job));
    if (w.kind == ISO_WORKER_SIGN) {
        err = iso_worker_sign(o, &w, result, e);
    } else {
        err = open_ground(o, &w, &key, &backbone, &g, e);
        if (!err)
            err = w.kind == ISO_WORKER_HEADS ? iso_worker_heads(&g, &w, result, e)
                                             : iso_worker_merge(&g, &w, result, e);
    }
    if (!err)
        err = write_result(job_path, result, e);
done:
    iso_json_free(result);
    iso_safetensors_close(&backbone);
    iso_key_free(&key);
    iso_worker_job_free(&w);
    return err;
}
