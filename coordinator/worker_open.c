#include "coordinator/worker_open.h"

#include "core/fsio.h"
#include "merge/guard.h"

#include <errno.h>
#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

char *iso_worker_blob_path(const char *state_dir, const iso_digest *d)
{
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, d->b, ISO_DIGEST_BYTES);
    return iso_strf("%s/blobs/%.2s/%s", state_dir, hex, hex);
}

/* ---- the envelope as it was on the wire: header of the job, body of the blob, signature ---- */

typedef struct {
    const iso_worker_update *update;
    int fd;
    uint64_t body_bytes;
} parts;

static iso_err read_part(void *ctx, uint64_t offset, void *out, size_t bytes, iso_error *e)
{
    const parts *p = ctx;
    uint8_t *to = out;
    const uint64_t body_at = ISO_ENVELOPE_HEADER_BYTES, tail_at = body_at + p->body_bytes;
    while (bytes) {
        size_t n;
        if (offset < body_at) {
            n = (size_t)(body_at - offset);
            n = n < bytes ? n : bytes;
            memcpy(to, p->update->header + offset, n);
        } else if (offset < tail_at) {
            n = tail_at - offset < bytes ? (size_t)(tail_at - offset) : bytes;
            ssize_t got = pread(p->fd, to, n, (off_t)(offset - body_at));
            if (got <= 0)
                return iso_fail_errno(e, ISO_ERR_RESOURCE, got ? errno : EIO, "sealed update");
            n = (size_t)got;
        } else {
            n = bytes;
            if (offset - tail_at + n > ISO_SIGNATURE_BYTES)
                return iso_fail(e, ISO_ERR_INTERNAL, "read beyond the envelope");
            memcpy(to, p->update->signature + (offset - tail_at), n);
        }
        to += n;
        offset += n;
        bytes -= n;
    }
    return ISO_OK;
}

static iso_err open_envelope(const iso_worker_ground *g, const iso_worker_job *w,
                             const iso_worker_update *u, iso_opened *o, iso_error *e)
{
    parts p = {.update = u, .fd = -1};
    struct stat st;
    char *path = iso_worker_blob_path(g->state_dir, &u->blob);
    if (!path)
        return iso_nomem(e, 256);
    iso_err err = ISO_OK;
    p.fd = open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW);
    if (p.fd < 0 || fstat(p.fd, &st) != 0) {
        /* Row 12 "disk rot": the update is lost, the round is not. */
        o->code = ISO_CODE_BODY_DIGEST;
        iso_fail_errno(&o->why, ISO_ERR_DATA, errno, "the stored update cannot be read");
        goto done;
    }
    p.body_bytes = (uint64_t)st.st_size;
    iso_envelope_source source = {
        .ctx = &p,
        .size = ISO_ENVELOPE_HEADER_BYTES + p.body_bytes + ISO_ENVELOPE_TRAILER_BYTES,
        .read = read_part,
    };
    iso_open_options opt = {
        .merge_key = g->merge_key, .sign_pk = u->sign_pk, .federation_id = w->federation};
    iso_err refused = iso_envelope_open(&source, &opt, &o->header, &o->payload, &o->code, &o->why);
    if (refused == ISO_ERR_MEMORY || refused == ISO_ERR_RESOURCE)
        err = iso_fail(e, refused, "%s", o->why.text);
    else if (refused && o->code == ISO_CODE_OK)
        o->code = ISO_CODE_SEALED;
done:
    if (p.fd >= 0)
        close(p.fd);
    free(path);
    return err;
}

/* ---- what is inside ---- */

static const iso_named_tensor *find_weight(const iso_safetensors *st, const char *module)
{
    char name[512];
    const char *dot = strchr(module, '.');
    /* Hugging Face files carry the model's prefix ("vit.") with a head, and none without. */
    const char *const forms[] = {module, dot ? dot + 1 : module};
    for (size_t i = 0; i < 2; i++) {
        if ((size_t)snprintf(name, sizeof name, "%s.weight", forms[i]) >= sizeof name)
            return NULL;
        const iso_named_tensor *t = iso_safetensors_find(st, name);
        if (t)
            return t;
    }
    for (size_t i = 0; i < 2; i++) {
        static const char *const prefix[] = {"vit.", "deit."};
        if ((size_t)snprintf(name, sizeof name, "%s%s.weight", prefix[i], module) >= sizeof name)
            return NULL;
        const iso_named_tensor *t = iso_safetensors_find(st, name);
        if (t)
            return t;
    }
    return NULL;
}

static bool is_target(const iso_worker_task *t, const char *module)
{
    if (!t->target_count)
        return true;
    size_t n = strlen(module);
    for (size_t i = 0; i < t->target_count; i++) {
        size_t k = strlen(t->targets[i]);
        if (k <= n && !strcmp(module + n - k, t->targets[i]) &&
            (k == n || module[n - k - 1] == '.'))
            return true;
    }
    return false;
}

iso_err iso_worker_check_shapes(const iso_safetensors *backbone, const iso_worker_task *t,
                                const iso_peft *p, iso_error *e)
{
    size_t cap = t->rank_cap > t->rank ? t->rank_cap : t->rank;
    for (size_t i = 0; i < p->count; i++) {
        const iso_lora_layer *l = &p->layers[i];
        const iso_named_tensor *weight = find_weight(backbone, l->module);
        if (!weight || weight->view.ndim != 2)
            return iso_fail(e, ISO_ERR_SHAPE, "the backbone has no linear layer \"%s\"", l->module);
        if (weight->view.shape[0] != l->out || weight->view.shape[1] != l->in)
            return iso_fail(e, ISO_ERR_SHAPE, "layer \"%s\" is %zux%zu, the backbone has %zux%zu",
                            l->module, l->out, l->in, weight->view.shape[0], weight->view.shape[1]);
        if (!is_target(t, l->module))
            return iso_fail(e, ISO_ERR_SHAPE, "layer \"%s\" is not a target of task %s", l->module,
                            t->name);
        if (cap && l->rank > cap)
            return iso_fail(e, ISO_ERR_SHAPE, "layer \"%s\" has rank %zu, task %s allows %zu",
                            l->module, l->rank, t->name, cap);
    }
    return ISO_OK;
}

static void refuse(iso_opened *o, iso_code code)
{
    o->code = code;
}

static iso_err check_adapter(const iso_worker_ground *g, const iso_worker_task *t, iso_opened *o,
                             iso_error *e)
{
    iso_err err = iso_worker_check_shapes(g->backbone, t, &o->adapter, &o->why);
    if (err) {
        refuse(o, ISO_CODE_SHAPE);
        return ISO_OK;
    }
    double total = 0;
    iso_arena scratch = {0};
    for (size_t i = 0; i < o->adapter.count && !err && o->code == ISO_CODE_OK; i++) {
        double norm = 0;
        err = iso_lora_norm(&o->adapter.layers[i], &norm, &scratch, e);
        iso_arena_reset(&scratch);
        if (err)
            break;
        total += norm;
        if (!isfinite(norm) || (t->norm_cap > 0 && norm > t->norm_cap)) {
            iso_fail(&o->why, ISO_ERR_NO, "layer \"%s\" has norm %.4g, the cap is %.4g",
                     o->adapter.layers[i].module, norm, t->norm_cap);
            refuse(o, ISO_CODE_NORM);
        }
    }
    iso_arena_free(&scratch);
    if (!err && o->code == ISO_CODE_OK && total == 0) {
        iso_fail(&o->why, ISO_ERR_NO, "every layer of the adapter is zero: nothing was trained");
        refuse(o, ISO_CODE_EMPTY);
    }
    return err;
}

static iso_err read_counts(iso_opened *o, const iso_container_file *meta, iso_error *e)
{
    iso_json *j = NULL;
    o->class_counts = iso_calloc(o->head.classes, sizeof *o->class_counts);
    if (!o->class_counts)
        return iso_nomem(e, o->head.classes * sizeof *o->class_counts);
    if (!meta || iso_json_parse(meta->data, meta->size, "metadata.json", &j, &o->why)) {
        if (!meta)
            iso_fail(&o->why, ISO_ERR_DATA, "metadata.json is missing");
        refuse(o, ISO_CODE_BAD_FILE);
        return ISO_OK;
    }
    const iso_json *counts = iso_json_key(j, "class_counts");
    for (size_t i = 0; i < o->head.classes; i++) {
        double n = 0;
        if (iso_json_num(iso_json_key(counts, o->head.class_names[i]), &n) &&
            !(n >= 0 && n <= (double)ISO_SAMPLES_MAX)) {
            iso_fail(&o->why, ISO_ERR_DATA, "metadata.json: class count %g of \"%s\"", n,
                     o->head.class_names[i]);
            refuse(o, ISO_CODE_BAD_FILE);
        }
        o->class_counts[i] = n;
    }
    iso_json_free(j);
    return ISO_OK;
}

/* Maps an error of a file's parser to the code of rows 14 and 15; memory stays an error of ours. */
static iso_err refuse_file(iso_opened *o, iso_err err, iso_error *e)
{
    if (err == ISO_ERR_MEMORY)
        return iso_fail(e, err, "%s", o->why.text);
    refuse(o, err == ISO_ERR_NONFINITE ? ISO_CODE_NONFINITE
              : err == ISO_ERR_SHAPE   ? ISO_CODE_SHAPE
                                       : ISO_CODE_BAD_FILE);
    return ISO_OK;
}

static iso_err read_payload(const iso_worker_ground *g, const iso_worker_job *w,
                            const iso_worker_task *t, iso_opened *o, iso_error *e)
{
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t n = 0;
    iso_err err =
        iso_container_unpack(o->payload.data, o->payload.size, files, &n, &o->code, &o->why);
    if (err)
        return err == ISO_ERR_MEMORY ? iso_fail(e, err, "%s", o->why.text) : ISO_OK;
    const iso_container_file *config = iso_container_find(files, n, "adapter_config.json");
    const iso_container_file *tensors = iso_container_find(files, n, "adapter_model.safetensors");
    const iso_container_file *head = iso_container_find(files, n, "head.safetensors");
    const bool needs_head = w->kind == ISO_WORKER_HEADS;
    if ((needs_head && !head) || (!needs_head && (!config || !tensors))) {
        iso_fail(&o->why, ISO_ERR_DATA, "the update holds no %s",
                 needs_head ? "head.safetensors" : "adapter");
        refuse(o, ISO_CODE_CONTAINER);
        return ISO_OK;
    }
    if (!needs_head) {
        err = iso_peft_parse(&o->adapter, config->data, config->size, tensors->data, tensors->size,
                             true, "adapter", &o->why);
        if (err)
            return refuse_file(o, err, e);
        o->has_adapter = true;
        return check_adapter(g, t, o, e);
    }
    err = iso_linear_parse(&o->head, head->data, head->size, "head.safetensors", &o->why);
    if (err)
        return refuse_file(o, err, e);
    o->has_head = true;
    return read_counts(o, iso_container_find(files, n, "metadata.json"), e);
}

iso_err iso_worker_open(const iso_worker_ground *g, const iso_worker_job *w,
                        const iso_worker_task *t, const iso_worker_update *u, iso_opened *o,
                        iso_error *e)
{
    *o = (iso_opened){.code = ISO_CODE_OK};
    iso_err err = open_envelope(g, w, u, o, e);
    if (err || o->code != ISO_CODE_OK)
        return err;
    if (memcmp(o->header.task_id, t->id, ISO_ID_BYTES) != 0 || o->header.round != w->round ||
        !iso_digest_equal(&o->header.generation_digest, &w->generation_digest)) {
        iso_fail(&o->why, ISO_ERR_NO, "task, round or generation differ from the job's");
        refuse(o, ISO_CODE_INNER_MISMATCH);
        return ISO_OK;
    }
    return read_payload(g, w, t, o, e);
}

void iso_opened_close(iso_opened *o)
{
    if (o->has_adapter)
        iso_peft_close(&o->adapter);
    if (o->has_head)
        iso_linear_free(&o->head);
    free(o->class_counts);
    iso_buf_free(&o->payload);
    *o = (iso_opened){0};
}
