/* Lies, for the tests of the checks: each mutant falsifies one thing that a core says or a disk
 * keeps, once it can, as a broken core would. Every one of them has to be caught. */
#include "sim/inner.h"

#include <stdlib.h>
#include <string.h>

/* A copy of a value that may be changed; lives as long as the world. */
static uint8_t *own(iso_sim *w, iso_op *op)
{
    uint8_t *copy = iso_arena_alloc(&w->arena, 1, op->value_bytes + 1u);
    if (copy) {
        memcpy(copy, op->value, op->value_bytes);
        op->value = copy;
    }
    return copy;
}

static uint8_t *own_key(iso_sim *w, iso_op *op)
{
    uint8_t *copy = iso_arena_alloc(&w->arena, 1, op->key_bytes + 1u);
    if (copy) {
        memcpy(copy, op->key, op->key_bytes);
        op->key = copy;
    }
    return copy;
}

static const sim_site *revoked(const iso_sim *w)
{
    for (size_t i = 0; i < w->site_count; i++)
        if (sim_site_is_revoked(w, w->sites[i]))
            return w->sites[i];
    return NULL;
}

static size_t drop_op(iso_op *ops, size_t count, size_t i)
{
    memmove(ops + i, ops + i + 1, (count - i - 1) * sizeof *ops);
    return count - 1;
}

size_t sim_mutate_ops(iso_sim *w, iso_op *ops, size_t count)
{
    uint8_t *p;
    if (!w->o.mutant)
        return count;
    for (size_t i = 0; i < count; i++) {
        iso_op *op = &ops[i];
        switch (w->o.mutant) {
        case ISO_MUTANT_EARLY_RECEIPT:
            if (op->table == ISO_CT_UPDATE && op->kind == ISO_OP_INSERT)
                return drop_op(ops, count, i);
            break;
        case ISO_MUTANT_NUMBER_AGAIN:
            if (op->table == ISO_CT_RELEASE && op->kind == ISO_OP_INSERT &&
                w->history.release_count && (p = own_key(w, op)))
                p[7]--;
            break;
        case ISO_MUTANT_REVOKED_COUNTS: {
            const sim_site *s = revoked(w);
            if (op->table == ISO_CT_SCORE && s && (p = own_key(w, op)))
                memcpy(p + 25, s->id, 16);
            break;
        }
        case ISO_MUTANT_CHAIN:
            if (op->table == ISO_CT_AUDIT && w->history.audit_seq > 20 && (p = own(w, op)))
                p[40] ^= 1;
            break;
        default:
            break;
        }
    }
    return count;
}

void sim_mutate_job(iso_sim *w, iso_job *job)
{
    if (w->o.mutant != ISO_MUTANT_COUNTS_TWICE || job->kind != ISO_JOB_MERGE)
        return;
    for (size_t k = 0; k < job->task_count; k++) {
        if (job->tasks[k].update_count == 0)
            continue;
        iso_job_update *u = &job->tasks[k].updates[0];
        if (w->mutant_count++ == 0)
            memcpy(w->mutant_id, u->update_id, 16); /* of an earlier merge, from now on */
        else if (job->round > 2)
            memcpy(u->update_id, w->mutant_id, 16);
    }
}

const iso_msg *sim_mutate_send(iso_sim *w, const iso_msg *m, iso_msg *room)
{
    if (w->o.mutant != ISO_MUTANT_UNSIGNED || m->type != ISO_MSG_RELEASE_OFFER)
        return m;
    *room = *m;
    room->release_offer.manifest_digest[3] ^= 1;
    return room;
}

void sim_mutate_disk(iso_sim *w)
{
    iso_sim_disk *d = &w->c.disk;
    if (w->o.mutant != ISO_MUTANT_LOST_ROW)
        return;
    for (size_t i = 0; i < d->row_capacity; i++)
        if (d->rows[i] && d->rows[i]->table == ISO_CT_UPDATE) {
            uint8_t key[ISO_KEY_MAX_BYTES];
            iso_error e;
            iso_op op = {.table = ISO_CT_UPDATE,
                         .kind = ISO_OP_DELETE,
                         .key_bytes = d->rows[i]->key_bytes,
                         .key = key};
            memcpy(key, d->rows[i]->data, d->rows[i]->key_bytes);
            (void)!iso_sim_disk_commit(d, &op, 1, &e);
            return;
        }
}

void sim_mutate_site(iso_sim *w, sim_site *s, iso_op *ops, size_t count)
{
    uint8_t *p;
    if (w->o.mutant != ISO_MUTANT_SEQUENCE)
        return;
    for (size_t i = 0; i < count; i++) {
        iso_op *op = &ops[i];
        if (op->table == ISO_AT_OUTBOX && s->history.sequence &&
            iso_get_u64(op->value + 18) > s->history.sequence && (p = own(w, op)))
            iso_put_u64(p + 18, s->history.sequence);
    }
}

iso_sim_blob *sim_mutate_body(iso_sim *w, const sim_site *s, iso_sim_blob *blob)
{
    if (w->o.mutant != ISO_MUTANT_RAW)
        return blob;
    for (size_t i = 0; i < s->disk.blob_capacity; i++)
        if (s->disk.blobs[i] && s->disk.blobs[i]->note != ISO_NOTE_SEALED)
            return s->disk.blobs[i];
    return blob;
}
