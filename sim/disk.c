#include "sim/disk.h"

#include <stdlib.h>
#include <string.h>

/* ---- pool ---- */

static size_t bucket_of(const iso_sim_pool *p, const iso_digest *d)
{
    return (size_t)iso_get_u64(d->b) & (p->bucket_count - 1);
}

static bool grow_pool(iso_sim_pool *p)
{
    size_t n = p->bucket_count ? 2 * p->bucket_count : 1024;
    iso_sim_blob **buckets = iso_calloc(n, sizeof(iso_sim_blob *)), **old = p->buckets;
    size_t old_count = p->bucket_count;
    if (!buckets)
        return false;
    p->buckets = buckets;
    p->bucket_count = n;
    for (size_t i = 0; i < old_count; i++)
        for (iso_sim_blob *b = old[i]; b;) {
            iso_sim_blob *next = b->next;
            size_t at = bucket_of(p, &b->digest);
            b->next = buckets[at];
            buckets[at] = b;
            b = next;
        }
    free(old);
    return true;
}

iso_sim_blob *iso_sim_pool_put(iso_sim_pool *p, const void *data, size_t bytes,
                               const iso_digest *as)
{
    iso_digest d = as ? *as : p->digest(p->digest_ctx, data, bytes);
    if (p->count >= p->bucket_count && !grow_pool(p))
        return NULL;
    size_t at = bucket_of(p, &d);
    for (iso_sim_blob *b = p->buckets[at]; b; b = b->next)
        if (iso_digest_equal(&b->digest, &d) && b->bytes == bytes)
            return iso_sim_blob_ref(b);
    iso_sim_blob *b = malloc(sizeof *b + bytes);
    if (!b)
        return NULL;
    b->next = p->buckets[at];
    b->digest = d;
    b->refs = 1;
    b->note = 0;
    b->bytes = bytes;
    if (bytes)
        memcpy(b->data, data, bytes);
    p->buckets[at] = b;
    p->count++;
    p->bytes += sizeof *b + bytes;
    return b;
}

iso_sim_blob *iso_sim_blob_ref(iso_sim_blob *b)
{
    b->refs++;
    return b;
}

void iso_sim_blob_drop(iso_sim_pool *p, iso_sim_blob *b)
{
    if (!b || --b->refs > 0)
        return;
    iso_sim_blob **at = &p->buckets[bucket_of(p, &b->digest)];
    while (*at != b)
        at = &(*at)->next;
    *at = b->next;
    p->count--;
    p->bytes -= sizeof *b + b->bytes;
    free(b);
}

void iso_sim_pool_free(iso_sim_pool *p)
{
    for (size_t i = 0; i < p->bucket_count; i++)
        for (iso_sim_blob *b = p->buckets[i]; b;) {
            iso_sim_blob *next = b->next;
            free(b);
            b = next;
        }
    free(p->buckets);
    *p = (iso_sim_pool){0};
}

/* ---- rows ---- */

static uint32_t row_hash(int table, const uint8_t *key, size_t bytes)
{
    uint64_t h = 0x9e3779b97f4a7c15u * ((uint64_t)table + 1), w;
    while (bytes > 0) {
        size_t n = bytes < 8 ? bytes : 8;
        w = 0;
        memcpy(&w, key, n);
        unsigned __int128 p = (unsigned __int128)(h ^ w) * 0xe7037ed1a0b428dbu;
        h = (uint64_t)p ^ (uint64_t)(p >> 64);
        key += n;
        bytes -= n;
    }
    return (uint32_t)(h ^ h >> 32);
}

static bool is_row(const iso_sim_row *r, int table, const void *key, size_t key_bytes)
{
    return r->table == table && r->key_bytes == key_bytes && memcmp(r->data, key, key_bytes) == 0;
}

/* Slot of the row, or the free one where it would go. */
static size_t row_slot(const iso_sim_disk *d, int table, const void *key, size_t key_bytes,
                       uint32_t tag)
{
    size_t mask = d->row_capacity - 1, i = tag & mask;
    while (d->rows[i] && !(d->tags[i] == tag && is_row(d->rows[i], table, key, key_bytes)))
        i = (i + 1) & mask;
    return i;
}

static bool grow_rows(iso_sim_disk *d)
{
    size_t capacity = d->row_capacity ? 2 * d->row_capacity : 32, mask = capacity - 1;
    iso_sim_row **rows = iso_calloc(capacity, sizeof(iso_sim_row *));
    uint32_t *tags = iso_calloc(capacity, sizeof *tags);
    if (!rows || !tags) {
        free(rows);
        free(tags);
        return false;
    }
    for (size_t i = 0; i < d->row_capacity; i++) {
        if (!d->rows[i])
            continue;
        size_t at = d->tags[i] & mask;
        while (rows[at])
            at = (at + 1) & mask;
        rows[at] = d->rows[i];
        tags[at] = d->tags[i];
    }
    free(d->rows);
    free(d->tags);
    d->rows = rows;
    d->tags = tags;
    d->row_capacity = capacity;
    return true;
}

static void delete_row(iso_sim_disk *d, size_t i)
{
    size_t mask = d->row_capacity - 1;
    d->row_bytes -= sizeof(iso_sim_row) + d->rows[i]->key_bytes + d->rows[i]->value_bytes;
    free(d->rows[i]);
    d->row_count--;
    for (size_t k = (i + 1) & mask; d->rows[k]; k = (k + 1) & mask) /* backward shift */
        if (((k - d->tags[k]) & mask) >= ((k - i) & mask)) {
            d->rows[i] = d->rows[k];
            d->tags[i] = d->tags[k];
            i = k;
        }
    d->rows[i] = NULL;
}

static iso_err put_row(iso_sim_disk *d, const iso_op *op, iso_error *e)
{
    if (2 * (d->row_count + 1) > d->row_capacity && !grow_rows(d))
        return iso_nomem(e, 16 * d->row_capacity);
    uint32_t tag = row_hash(op->table, op->key, op->key_bytes);
    size_t i = row_slot(d, op->table, op->key, op->key_bytes, tag);
    iso_sim_row *r = d->rows[i];
    if (r && op->kind == ISO_OP_INSERT)
        return iso_fail(e, ISO_ERR_INTERNAL, "table %u: the key is not new", op->table);
    size_t bytes = sizeof *r + op->key_bytes + op->value_bytes;
    if (!r || r->value_bytes != op->value_bytes) {
        if (r)
            d->row_bytes -= sizeof *r + r->key_bytes + r->value_bytes;
        iso_sim_row *made = realloc(r, bytes);
        if (!made)
            return iso_nomem(e, bytes);
        d->row_count += !r;
        d->row_bytes += bytes;
        r = d->rows[i] = made;
        d->tags[i] = tag;
        r->table = op->table;
        r->key_bytes = (uint8_t)op->key_bytes;
        r->value_bytes = op->value_bytes;
        memcpy(r->data, op->key, op->key_bytes);
    }
    if (op->value_bytes)
        memcpy(r->data + r->key_bytes, op->value, op->value_bytes);
    return ISO_OK;
}

iso_err iso_sim_disk_commit(iso_sim_disk *d, const iso_op *ops, size_t count, iso_error *e)
{
    if (d->is_full)
        return iso_fail(e, ISO_ERR_RESOURCE, "the disk is full");
    for (size_t i = 0; i < count; i++) {
        iso_err err = ISO_OK;
        if (ops[i].kind != ISO_OP_DELETE) {
            err = put_row(d, &ops[i], e);
        } else if (d->row_count) {
            size_t at = row_slot(d, ops[i].table, ops[i].key, ops[i].key_bytes,
                                 row_hash(ops[i].table, ops[i].key, ops[i].key_bytes));
            if (d->rows[at])
                delete_row(d, at);
        }
        if (err)
            return err; /* ends the simulation: not undone */
    }
    return ISO_OK;
}

const iso_sim_row *iso_sim_disk_row(const iso_sim_disk *d, int table, const void *key,
                                    size_t key_bytes)
{
    if (d->row_count == 0)
        return NULL;
    return d->rows[row_slot(d, table, key, key_bytes, row_hash(table, key, key_bytes))];
}

static int by_key(const void *a, const void *b)
{
    const iso_sim_row *x = *(iso_sim_row *const *)a, *y = *(iso_sim_row *const *)b;
    size_t n = x->key_bytes < y->key_bytes ? x->key_bytes : y->key_bytes;
    int c = memcmp(x->data, y->data, n);
    return c ? c : (int)x->key_bytes - (int)y->key_bytes;
}

/* ---- blobs ---- */

static size_t blob_slot(const iso_sim_disk *d, const iso_digest *digest)
{
    size_t mask = d->blob_capacity - 1, i = (size_t)iso_get_u64(digest->b + 8) & mask;
    while (d->blobs[i] && !iso_digest_equal(&d->blobs[i]->digest, digest))
        i = (i + 1) & mask;
    return i;
}

static bool grow_blobs(iso_sim_disk *d)
{
    size_t old_capacity = d->blob_capacity;
    iso_sim_blob **old = d->blobs;
    size_t capacity = old_capacity ? 2 * old_capacity : 16;
    iso_sim_blob **blobs = iso_calloc(capacity, sizeof(iso_sim_blob *));
    if (!blobs)
        return false;
    d->blobs = blobs;
    d->blob_capacity = capacity;
    for (size_t i = 0; i < old_capacity; i++)
        if (old[i])
            blobs[blob_slot(d, &old[i]->digest)] = old[i];
    free(old);
    return true;
}

iso_err iso_sim_disk_add(iso_sim_disk *d, iso_sim_blob *b, iso_error *e)
{
    if (d->is_full)
        return iso_fail(e, ISO_ERR_RESOURCE, "the disk is full");
    if (2 * (d->blob_count + 1) > d->blob_capacity && !grow_blobs(d))
        return iso_nomem(e, 16 * d->blob_capacity);
    size_t i = blob_slot(d, &b->digest);
    if (!d->blobs[i]) {
        d->blobs[i] = iso_sim_blob_ref(b);
        d->blob_count++;
    }
    return ISO_OK;
}

iso_err iso_sim_disk_put(iso_sim_disk *d, const void *data, size_t bytes, iso_digest *out,
                         iso_error *e)
{
    iso_sim_blob *b = iso_sim_pool_put(d->pool, data, bytes, NULL);
    if (!b)
        return iso_nomem(e, bytes);
    iso_err err = iso_sim_disk_add(d, b, e);
    if (out)
        *out = b->digest;
    iso_sim_blob_drop(d->pool, b);
    return err;
}

iso_sim_blob *iso_sim_disk_blob(const iso_sim_disk *d, const iso_digest *digest)
{
    return d->blob_count ? d->blobs[blob_slot(d, digest)] : NULL;
}

void iso_sim_disk_delete(iso_sim_disk *d, const iso_digest *digest)
{
    size_t mask = d->blob_capacity - 1, i = d->blob_count ? blob_slot(d, digest) : 0;
    if (!d->blob_count || !d->blobs[i])
        return;
    iso_sim_blob_drop(d->pool, d->blobs[i]);
    d->blob_count--;
    for (size_t k = (i + 1) & mask; d->blobs[k]; k = (k + 1) & mask) {
        size_t home = (size_t)iso_get_u64(d->blobs[k]->digest.b + 8) & mask;
        if (((k - home) & mask) >= ((k - i) & mask)) {
            d->blobs[i] = d->blobs[k];
            i = k;
        }
    }
    d->blobs[i] = NULL;
}

void iso_sim_disk_sweep(iso_sim_disk *d, bool (*is_live)(void *arg, const iso_digest *digest),
                        void *arg)
{
    /* Deleting shifts others into the slot: look at it again. */
    for (size_t i = 0; i < d->blob_capacity; i++)
        while (d->blobs[i] && !is_live(arg, &d->blobs[i]->digest)) {
            iso_digest gone = d->blobs[i]->digest;
            iso_sim_disk_delete(d, &gone);
        }
}

/* ---- partial files ---- */

iso_sim_partial *iso_sim_disk_partial(iso_sim_disk *d, const void *id, size_t id_bytes)
{
    for (size_t i = 0; i < d->partial_count; i++)
        if (memcmp(d->partials[i].id, id, id_bytes) == 0)
            return &d->partials[i];
    return NULL;
}

iso_sim_partial *iso_sim_disk_partial_open(iso_sim_disk *d, const void *id, size_t id_bytes)
{
    iso_sim_partial *p = iso_sim_disk_partial(d, id, id_bytes);
    if (p)
        return p;
    iso_sim_partial *wider = realloc(d->partials, (d->partial_count + 1) * sizeof *wider);
    if (!wider)
        return NULL;
    d->partials = wider;
    p = &d->partials[d->partial_count++];
    memset(p, 0, sizeof *p);
    memcpy(p->id, id, id_bytes);
    return p;
}

void iso_sim_disk_partial_drop(iso_sim_disk *d, const void *id, size_t id_bytes)
{
    iso_sim_partial *p = iso_sim_disk_partial(d, id, id_bytes);
    if (!p)
        return;
    iso_buf_free(&p->content);
    *p = d->partials[--d->partial_count];
    if (d->partial_count == 0) {
        free(d->partials);
        d->partials = NULL;
    }
}

void iso_sim_disk_crash(iso_sim_disk *d, iso_rng *rng, bool is_torn)
{
    for (size_t i = 0; i < d->partial_count; i++) {
        iso_buf *b = &d->partials[i].content;
        if (b->size == 0)
            continue;
        b->size = iso_rng_below(rng, (uint32_t)b->size + 1);
        if (is_torn && b->size && iso_rng_below(rng, 2)) { /* a page that never reached the disk */
            size_t at = iso_rng_below(rng, (uint32_t)b->size), n = b->size - at;
            memset(b->data + at, 0, n < 4096 ? n : 4096);
        }
    }
}

/* ---- the seam ---- */

static iso_err do_commit(void *ctx, const iso_op *ops, size_t count, iso_error *e)
{
    return iso_sim_disk_commit(ctx, ops, count, e);
}

static iso_err do_scan(void *ctx, int table, iso_row_fn *row, void *arg, iso_error *e)
{
    iso_sim_disk *d = ctx;
    iso_sim_row **list = iso_calloc(d->row_count, sizeof(iso_sim_row *));
    size_t n = 0;
    if (!list)
        return iso_nomem(e, 8 * d->row_count);
    for (size_t i = 0; i < d->row_capacity; i++)
        if (d->rows[i] && d->rows[i]->table == table)
            list[n++] = d->rows[i];
    if (n)
        qsort(list, n, sizeof(iso_sim_row *), by_key);
    iso_err err = ISO_OK;
    for (size_t i = 0; i < n && !err; i++)
        err = row(arg, list[i]->data, list[i]->key_bytes, list[i]->data + list[i]->key_bytes,
                  list[i]->value_bytes, e);
    free(list);
    return err;
}

static iso_err do_put(void *ctx, const void *data, size_t bytes, const iso_digest *expect,
                      iso_digest *out, iso_error *e)
{
    iso_digest got;
    iso_err err = iso_sim_disk_put(ctx, data, bytes, &got, e);
    if (!err && expect && !iso_digest_equal(&got, expect))
        err = iso_fail(e, ISO_ERR_DATA, "the content is not what its digest says");
    if (out)
        *out = got;
    return err;
}

static iso_err do_size(void *ctx, const iso_digest *digest, uint64_t *bytes, iso_error *e)
{
    const iso_sim_blob *b = iso_sim_disk_blob(ctx, digest);
    if (!b)
        return iso_fail(e, ISO_ERR_DATA, "no such blob");
    *bytes = b->bytes;
    return ISO_OK;
}

static iso_err do_read(void *ctx, const iso_digest *digest, uint64_t offset, void *out,
                       size_t bytes, size_t *got, iso_error *e)
{
    const iso_sim_blob *b = iso_sim_disk_blob(ctx, digest);
    if (!b)
        return iso_fail(e, ISO_ERR_DATA, "no such blob");
    size_t left = offset < b->bytes ? b->bytes - (size_t)offset : 0;
    *got = bytes < left ? bytes : left;
    if (*got)
        memcpy(out, b->data + offset, *got);
    return ISO_OK;
}

static iso_err do_delete(void *ctx, const iso_digest *digest, iso_error *e)
{
    (void)e;
    iso_sim_disk_delete(ctx, digest);
    return ISO_OK;
}

iso_store iso_sim_disk_store(iso_sim_disk *d)
{
    return (iso_store){.ctx = d,
                       .commit = do_commit,
                       .scan = do_scan,
                       .blob_put = do_put,
                       .blob_size = do_size,
                       .blob_read = do_read,
                       .blob_delete = do_delete};
}

void iso_sim_disk_free(iso_sim_disk *d)
{
    for (size_t i = 0; i < d->row_capacity; i++)
        free(d->rows[i]);
    for (size_t i = 0; i < d->blob_capacity; i++)
        iso_sim_blob_drop(d->pool, d->blobs[i]);
    for (size_t i = 0; i < d->partial_count; i++)
        iso_buf_free(&d->partials[i].content);
    free(d->rows);
    free(d->tags);
    free(d->blobs);
    free(d->partials);
    *d = (iso_sim_disk){0};
}
