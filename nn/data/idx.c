/* IDX files; see idx.h. Sizes are checked against what is there before anything is allocated. */
#include "nn/data/idx.h"

#include "core/fsio.h"

#include <stdlib.h>
#include <string.h>
#include <zlib.h>

enum { FILE_MAX_BYTES = 256 << 20, TYPE_U8 = 8, HEAD_MAX_BYTES = 4 + 3 * 4 };

/* Where the bytes come from: memory as it is, or inflated as it is asked for. */
typedef struct {
    const uint8_t *data;
    size_t size, at;
    bool is_gzip;
    z_stream z;
} source;

static iso_err source_open(source *s, const uint8_t *data, size_t size, const char *what,
                           iso_error *e)
{
    *s = (source){.data = data, .size = size};
    s->is_gzip = size >= 2 && data[0] == 0x1F && data[1] == 0x8B;
    if (!s->is_gzip)
        return ISO_OK;
    if (size > FILE_MAX_BYTES)
        return iso_fail(e, ISO_ERR_DATA, "%s: more than %d bytes", what, FILE_MAX_BYTES);
    s->z.next_in = (Bytef *)(uintptr_t)data; /* zlib's interface is older than const */
    s->z.avail_in = (uInt)size;
    if (inflateInit2(&s->z, 16 + MAX_WBITS) != Z_OK) {
        s->is_gzip = false;
        return iso_nomem(e, 0);
    }
    return ISO_OK;
}

static void source_close(source *s)
{
    if (s->is_gzip)
        inflateEnd(&s->z);
}

/* Takes exactly n bytes; false when there are fewer. */
static bool source_take(source *s, uint8_t *out, size_t n)
{
    if (!s->is_gzip) {
        if (n > s->size - s->at)
            return false;
        memcpy(out, s->data + s->at, n);
        s->at += n;
        return true;
    }
    s->z.next_out = out;
    s->z.avail_out = (uInt)n; /* n <= FILE_MAX_BYTES */
    while (s->z.avail_out) {
        int rc = inflate(&s->z, Z_NO_FLUSH);
        if (rc == Z_STREAM_END)
            break;
        if (rc != Z_OK)
            return false;
    }
    return s->z.avail_out == 0;
}

/* True when nothing is left, and for gzip also the checksum holds. */
static bool source_is_done(source *s)
{
    uint8_t more;
    if (!s->is_gzip)
        return s->at == s->size;
    s->z.next_out = &more;
    s->z.avail_out = 1;
    return inflate(&s->z, Z_NO_FLUSH) == Z_STREAM_END && s->z.avail_out == 1 && s->z.avail_in == 0;
}

static uint32_t big_endian(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static iso_err take_all(iso_idx *x, source *s, const char *what, iso_error *e)
{
    uint8_t head[HEAD_MAX_BYTES];
    size_t total = 1;
    if (!source_take(s, head, 4))
        return iso_fail(e, ISO_ERR_DATA, "%s: shorter than an IDX head", what);
    if (head[0] || head[1] || head[2] != TYPE_U8 || head[3] < 1 || head[3] > 3)
        return iso_fail(
            e, ISO_ERR_DATA,
            "%s: not an IDX file of bytes with 1 to 3 dimensions (head %02x%02x%02x%02x)", what,
            head[0], head[1], head[2], head[3]);
    x->ndim = head[3];
    if (!source_take(s, head + 4, (size_t)x->ndim * 4))
        return iso_fail(e, ISO_ERR_DATA, "%s: shorter than its IDX head", what);
    for (int k = 0; k < x->ndim; k++) {
        x->shape[k] = big_endian(head + 4 + k * 4);
        if (!iso_mul_size(total, x->shape[k], &total) || total > FILE_MAX_BYTES)
            return iso_fail(e, ISO_ERR_DATA, "%s: says more than %d bytes of data", what,
                            FILE_MAX_BYTES);
    }
    if (!s->is_gzip && total != s->size - s->at)
        return iso_fail(e, ISO_ERR_DATA, "%s: has %zu bytes of data, its head says %zu", what,
                        s->size - s->at, total);
    x->data = iso_calloc(total, 1); /* zeroed pages cost nothing until they are filled */
    if (!x->data)
        return iso_nomem(e, total);
    if (!source_take(s, x->data, total) || !source_is_done(s))
        return iso_fail(e, ISO_ERR_DATA, "%s: its compressed data is damaged or not %zu bytes",
                        what, total);
    return ISO_OK;
}

void iso_idx_free(iso_idx *x)
{
    free(x->data);
    *x = (iso_idx){0};
}

iso_err iso_idx_parse(iso_idx *x, const void *bytes, size_t size, const char *what, iso_error *e)
{
    source s;
    *x = (iso_idx){0};
    iso_err err = source_open(&s, bytes, size, what, e);
    if (!err)
        err = take_all(x, &s, what, e);
    source_close(&s);
    if (err)
        iso_idx_free(x);
    return err;
}

iso_err iso_idx_read(iso_idx *x, const char *path, iso_error *e)
{
    iso_buf b = {0};
    char *packed = iso_strf("%s.gz", path);
    *x = (iso_idx){0};
    if (!packed)
        return iso_nomem(e, strlen(path) + 4);
    const char *there = !iso_path_exists(path) && iso_path_exists(packed) ? packed : path;
    iso_err err = iso_read_file(there, FILE_MAX_BYTES, &b, e);
    if (!err)
        err = iso_idx_parse(x, b.data, b.size, there, e);
    iso_buf_free(&b);
    free(packed);
    return err;
}
