/* Writer and reader of record values. */
#include "coordinator/record.h"

#include <string.h>

iso_writer iso_writer_begin(iso_coord *c, size_t guess_bytes)
{
    iso_writer w = {.c = c, .capacity = guess_bytes + 16};
    w.data = iso_c_alloc(c, w.capacity, 1);
    if (!w.data)
        w.capacity = 0;
    iso_w_u8(&w, RECORD_VERSION);
    return w;
}

void iso_w_bytes(iso_writer *w, const void *data, size_t n)
{
    if (w->size + n > w->capacity) {
        size_t capacity = (w->size + n) * 2;
        uint8_t *wider = iso_c_alloc(w->c, capacity, 1);
        if (!wider)
            return; /* noted by iso_c_alloc: the step is never performed */
        if (w->size)
            memcpy(wider, w->data, w->size);
        w->data = wider;
        w->capacity = capacity;
    }
    if (n)
        memcpy(w->data + w->size, data, n);
    w->size += n;
}

void iso_w_u8(iso_writer *w, unsigned v)
{
    uint8_t b = (uint8_t)v;
    iso_w_bytes(w, &b, 1);
}

void iso_w_u32(iso_writer *w, uint64_t v)
{
    uint8_t b[4];
    iso_put_u32(b, (uint32_t)v);
    iso_w_bytes(w, b, sizeof b);
}

void iso_w_u64(iso_writer *w, uint64_t v)
{
    uint8_t b[8];
    iso_put_u64(b, v);
    iso_w_bytes(w, b, sizeof b);
}

void iso_w_f64(iso_writer *w, double v)
{
    uint64_t bits;
    memcpy(&bits, &v, sizeof bits);
    iso_w_u64(w, bits);
}

void iso_w_text(iso_writer *w, const char *s)
{
    size_t n = s ? strlen(s) : 0;
    if (n > UINT16_MAX)
        n = UINT16_MAX;
    uint8_t b[2];
    iso_put_u16(b, (uint16_t)n);
    iso_w_bytes(w, b, sizeof b);
    iso_w_bytes(w, s, n);
}

iso_reader iso_reader_begin(const void *data, size_t size)
{
    iso_reader r = {.p = data, .left = size};
    if (iso_r_u8(&r) != RECORD_VERSION)
        r.is_bad = true;
    return r;
}

void iso_r_bytes(iso_reader *r, void *out, size_t n)
{
    if (r->is_bad || r->left < n) {
        r->is_bad = true;
        memset(out, 0, n);
        return;
    }
    memcpy(out, r->p, n);
    r->p += n;
    r->left -= n;
}

unsigned iso_r_u8(iso_reader *r)
{
    uint8_t b;
    iso_r_bytes(r, &b, 1);
    return b;
}

uint32_t iso_r_u32(iso_reader *r)
{
    uint8_t b[4];
    iso_r_bytes(r, b, sizeof b);
    return iso_get_u32(b);
}

uint64_t iso_r_u64(iso_reader *r)
{
    uint8_t b[8];
    iso_r_bytes(r, b, sizeof b);
    return iso_get_u64(b);
}

double iso_r_f64(iso_reader *r)
{
    uint64_t bits = iso_r_u64(r);
    double v;
    memcpy(&v, &bits, sizeof v);
    return v;
}

void iso_r_text(iso_reader *r, char *out, size_t out_bytes)
{
    uint8_t b[2];
    iso_r_bytes(r, b, sizeof b);
    size_t n = iso_get_u16(b);
    if (n >= out_bytes) {
        r->is_bad = true;
        n = 0;
    }
    iso_r_bytes(r, out, n);
    out[n] = 0;
}

size_t iso_r_count(iso_reader *r, size_t max, size_t item_bytes)
{
    size_t n = iso_r_u32(r);
    if (n > max || n > r->left / (item_bytes ? item_bytes : 1)) {
        r->is_bad = true;
        return 0;
    }
    return n;
}

bool iso_r_done(const iso_reader *r)
{
    return !r->is_bad && r->left == 0;
}

void iso_key_u64(uint8_t out[8], uint64_t v)
{
    for (int i = 0; i < 8; i++)
        out[i] = (uint8_t)(v >> (56 - 8 * i));
}

uint64_t iso_key_get_u64(const uint8_t in[8])
{
    uint64_t v = 0;
    for (int i = 0; i < 8; i++)
        v = v << 8 | in[i];
    return v;
}
