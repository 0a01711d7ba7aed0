/* The daemon's hands: what the core's effects do to disk, line and training. */
#include "client/daemon_inner.h"

#include "client/outbox.h"
#include "core/crash.h"

#include <stdlib.h>
#include <string.h>

void iso_daemon_queue(iso_daemon *d, const iso_agent_event *ev)
{
    iso_queued_event *q = iso_calloc(1, sizeof *q);
    if (!q) {
        d->effects.is_out_of_memory = true;
        return;
    }
    q->ev = *ev;
    if (ev->text) {
        snprintf(q->text, sizeof q->text, "%s", ev->text);
        q->ev.text = q->text;
    }
    if (ev->header) {
        memcpy(q->header, ev->header, sizeof q->header);
        memcpy(q->signature, ev->signature, sizeof q->signature);
        q->ev.header = q->header;
        q->ev.signature = q->signature;
    }
    if (ev->trainer) {
        q->trainer = *ev->trainer;
        q->ev.trainer = &q->trainer;
    }
    if (d->last)
        d->last->next = q;
    else
        d->first = q;
    d->last = q;
}

static iso_err send(iso_daemon *d, const iso_agent_effect *x, iso_error *e)
{
    static uint8_t piece[ISO_BODY_MAX_BYTES]; /* the daemon's thread only */
    const void *body = x->data;
    size_t bytes = x->data_bytes;
    if (x->is_blob_piece) {
        size_t got = 0;
        if (x->bytes > sizeof piece)
            return iso_fail(e, ISO_ERR_INTERNAL, "a piece of %llu bytes",
                            (unsigned long long)x->bytes);
        iso_err err = d->store.blob_read(d->store.ctx, &x->digest, x->offset, piece,
                                         (size_t)x->bytes, &got, e);
        if (err == ISO_OK && got != x->bytes)
            err = iso_fail(e, ISO_ERR_DATA, "a sealed update in the store is shorter than it was");
        if (err != ISO_OK)
            return err;
        body = piece;
        bytes = got;
    }
    return iso_link_send(d->link, x->msg, body, bytes, e);
}

static void start_job(iso_daemon *d, const iso_agent_effect *x)
{
    iso_error error = {0};
    if (x->job->kind == ISO_TRAINER_TRIAL)
        iso_crash_point("F15"); /* K7 is written, the trial has not begun */
    iso_err err = d->seam.start(d->seam.ctx, x->job, &error);
    if (err == ISO_OK)
        return;
    iso_trainer_event failed = {.kind = ISO_TRAINER_FAILED, .code = err};
    memcpy(failed.id, x->job->id, 16);
    memcpy(failed.sentence, error.text, sizeof failed.sentence);
    iso_daemon_queue(d, &(iso_agent_event){.kind = ISO_AE_TRAINER, .trainer = &failed});
}

static void seal(iso_daemon *d, const iso_agent_effect *x)
{
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES], signature[ISO_SIGNATURE_BYTES];
    iso_error error = {0};
    iso_agent_event ev = {.kind = ISO_AE_SEALED};
    memcpy(ev.id, x->id, 16);
    ev.code = iso_outbox_seal(&d->store, &x->digest, x->bytes, x->envelope, &d->sign, x->merge_pk,
                              header, signature, &error);
    if (ev.code == ISO_OK) {
        ev.header = header;
        ev.signature = signature;
    } else {
        ev.text = error.text;
    }
    iso_daemon_queue(d, &ev);
}

static void fetch_failed(iso_daemon *d, const iso_digest *digest, iso_err code, const char *text)
{
    iso_daemon_queue(d,
                     &(iso_agent_event){
                         .kind = ISO_AE_FETCH_DONE, .digest = *digest, .code = code, .text = text});
}

static void fetch_open(iso_daemon *d, const iso_agent_effect *x)
{
    iso_error error = {0};
    bool is_done;
    uint64_t offset;
    iso_err err =
        iso_fetch_open(&d->files, &x->digest, x->bytes, x->chunk_bytes, &is_done, &offset, &error);
    if (err != ISO_OK) {
        fetch_failed(d, &x->digest, err, error.text);
        return;
    }
    iso_daemon_queue(d, &(iso_agent_event){.kind = is_done ? ISO_AE_FETCH_DONE : ISO_AE_FETCH_READY,
                                           .digest = x->digest,
                                           .offset = offset});
}

static void fetch_close(iso_daemon *d, const iso_agent_effect *x)
{
    iso_error error = {0};
    iso_err err = iso_fetch_close(&d->files, &x->digest, &error);
    fetch_failed(d, &x->digest, err, err == ISO_OK ? NULL : error.text);
}

static void install(iso_daemon *d, const iso_agent_effect *x)
{
    iso_error error = {0};
    iso_err err = iso_install(&d->files, x->release, &error);
    iso_crash_point("F17"); /* K8 is written and the folder complete, K9 is not */
    iso_daemon_queue(d, &(iso_agent_event){.kind = ISO_AE_INSTALLED,
                                           .number = x->release->number,
                                           .code = err,
                                           .text = err == ISO_OK ? NULL : error.text});
}

/* Errors returned here stop the daemon: the next start takes up from what is durable (I8). */
iso_err iso_daemon_perform(iso_daemon *d, const iso_agent_effect *x, iso_error *e)
{
    iso_error error = {0};
    switch (x->kind) {
    case ISO_AX_COMMIT:
        return d->store.commit(d->store.ctx, x->ops, x->op_count, e);
    case ISO_AX_PUT_BLOB: {
        iso_digest got;
        return d->store.blob_put(d->store.ctx, x->data, x->data_bytes, &x->digest, &got, e);
    }
    case ISO_AX_DELETE_BLOB:
        if (d->store.blob_delete(d->store.ctx, &x->digest, &error) != ISO_OK)
            iso_log_event(&d->log, ISO_LOG_WARN, "blob_stays", "error=\"%s\"", error.text);
        return ISO_OK;
    case ISO_AX_CONNECT:
        if (iso_link_connect(d->link, x->link, &error) != ISO_OK)
            iso_daemon_queue(d, &(iso_agent_event){.kind = ISO_AE_LINK_DOWN,
                                                   .link = x->link,
                                                   .down = ISO_DOWN_FAILED,
                                                   .text = error.text});
        return ISO_OK;
    case ISO_AX_CLOSE:
        iso_link_hang_up(d->link, x->link);
        return ISO_OK;
    case ISO_AX_SEND:
        return send(d, x, e);
    case ISO_AX_JOB_START:
        start_job(d, x);
        return ISO_OK;
    case ISO_AX_JOB_CANCEL:
        d->seam.cancel(d->seam.ctx, x->id);
        return ISO_OK;
    case ISO_AX_JOB_FORGET:
        d->seam.forget(d->seam.ctx, x->id);
        return ISO_OK;
    case ISO_AX_SEAL:
        seal(d, x);
        return ISO_OK;
    case ISO_AX_FETCH_OPEN:
        fetch_open(d, x);
        return ISO_OK;
    case ISO_AX_FETCH_WRITE:
        if (iso_fetch_write(&d->files, &x->digest, x->offset, x->data, x->data_bytes, &error) !=
            ISO_OK)
            fetch_failed(d, &x->digest, ISO_ERR_RESOURCE, error.text);
        return ISO_OK;
    case ISO_AX_FETCH_CLOSE:
        fetch_close(d, x);
        return ISO_OK;
    case ISO_AX_FETCH_DROP:
        iso_fetch_drop(&d->files, &x->digest);
        return ISO_OK;
    case ISO_AX_INSTALL:
        install(d, x);
        return ISO_OK;
    case ISO_AX_UNINSTALL:
        iso_uninstall(&d->files, x->number);
        return ISO_OK;
    case ISO_AX_SERVE:
        iso_crash_point("F18"); /* K9 is written, nothing is reopened */
        return iso_serve(&d->files, x->number, e);
    case ISO_AX_LOG:
        iso_log_event(&d->log, x->level, x->event, "%s", x->text);
        return ISO_OK;
    }
    return iso_fail(e, ISO_ERR_INTERNAL, "unknown effect %d", (int)x->kind);
}
