#include "core/mem.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ALIGNMENT = 64, FIRST_BLOCK_BYTES = 64 * 1024 };

bool iso_mul_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_mul_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

bool iso_add_size(size_t a, size_t b, size_t *out)
{
    size_t r;
    if (__builtin_add_overflow(a, b, &r))
        return false;
    *out = r;
    return true;
}

void *iso_calloc(size_t n, size_t item_bytes)
{
    size_t bytes;
    if (!iso_mul_size(n, item_bytes, &bytes)) /* calloc would say so too; sanitizers stop there */
        return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *iso_alloc_aligned(size_t n, size_t item_bytes)
{
    size_t bytes;
    if (!iso_mul_size(n, item_bytes, &bytes) || !iso_add_size(bytes, ALIGNMENT - 1, &bytes))
        return NULL;
    bytes &= ~(size_t)(ALIGNMENT - 1);
    return aligned_alloc(ALIGNMENT, bytes ? bytes : ALIGNMENT);
}

char *iso_strdup(const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = malloc(n);
    if (copy)
        memcpy(copy, s, n);
    return copy;
}

char *iso_strf(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    char *s = n < 0 ? NULL : malloc((size_t)n + 1);
    if (s)
        vsnprintf(s, (size_t)n + 1, fmt, again);
    va_end(again);
    return s;
}

iso_err iso_nomem(iso_error *e, size_t bytes)
{
    return iso_fail(e, ISO_ERR_MEMORY, "no memory for %zu bytes", bytes);
}

/* ---- arena ---- */

struct iso_arena_block {
    iso_arena_block *next;
    size_t size, used;
};

enum { HEADER_BYTES = (sizeof(iso_arena_block) + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT };

void *iso_arena_alloc(iso_arena *a, size_t n, size_t item_bytes)
{
    size_t bytes;
    if (!iso_mul_size(n, item_bytes, &bytes) || bytes > SIZE_MAX / 4)
        return NULL;
    bytes = (bytes + ALIGNMENT - 1) & ~(size_t)(ALIGNMENT - 1);
    if (!bytes)
        bytes = ALIGNMENT;
    iso_arena_block *b = a->head;
    if (!b || b->size - b->used < bytes) {
        size_t size = b ? b->size * 2 : a->first_bytes ? a->first_bytes : FIRST_BLOCK_BYTES;
        if (size < bytes)
            size = bytes;
        b = iso_alloc_aligned(1, HEADER_BYTES + size);
        if (!b)
            return NULL;
        *b = (iso_arena_block){.next = a->head, .size = size, .used = 0};
        a->head = b;
        a->held_bytes += size;
    }
    void *p = (uint8_t *)b + HEADER_BYTES + b->used;
    b->used += bytes;
    a->used_bytes += bytes;
    return p;
}

void *iso_arena_calloc(iso_arena *a, size_t n, size_t item_bytes)
{
    void *p = iso_arena_alloc(a, n, item_bytes);
    if (p)
        memset(p, 0, n * item_bytes);
    return p;
}

char *iso_arena_strdup(iso_arena *a, const char *s)
{
    size_t n = strlen(s) + 1;
    char *copy = iso_arena_alloc(a, n, 1);
    if (copy)
        memcpy(copy, s, n);
    return copy;
}

void iso_arena_reset(iso_arena *a)
{
    if (!a->head)
        return;
    /* Blocks double, so the newest one is the largest unless one request was huge. */
    iso_arena_block *keep = a->head;
    for (iso_arena_block *b = a->head; b; b = b->next)
        if (b->size > keep->size)
            keep = b;
    for (iso_arena_block *b = a->head; b;) {
        iso_arena_block *next = b->next;
        if (b != keep)
            free(b);
        b = next;
    }
    keep->next = NULL;
    keep->used = 0;
    a->head = keep;
    a->used_bytes = 0;
    a->held_bytes = keep->size;
}

void iso_arena_free(iso_arena *a)
{
    for (iso_arena_block *b = a->head; b;) {
        iso_arena_block *next = b->next;
        free(b);
        b = next;
    }
    *a = (iso_arena){0};
}

/* ---- buffer ---- */

iso_err iso_buf_reserve(iso_buf *b, size_t more, iso_error *e)
{
    size_t need;
    if (!iso_add_size(b->size, more, &need))
        return iso_nomem(e, more);
    if (need <= b->capacity)
        return ISO_OK;
    size_t capacity = b->capacity ? b->capacity : 256;
    while (capacity < need)
        capacity = capacity > SIZE_MAX / 2 ? need : capacity * 2;
    uint8_t *data = realloc(b->data, capacity);
    if (!data)
        return iso_nomem(e, capacity);
    b->data = data;
    b->capacity = capacity;
    return ISO_OK;
}

iso_err iso_buf_append(iso_buf *b, const void *data, size_t size, iso_error *e)
{
    iso_err err = iso_buf_reserve(b, size, e);
    if (err)
        return err;
    if (size)
        memcpy(b->data + b->size, data, size);
    b->size += size;
    return ISO_OK;
}

iso_err iso_buf_printf(iso_buf *b, iso_error *e, const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    va_list again;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    iso_err err = n < 0 ? iso_fail(e, ISO_ERR_INTERNAL, "format \"%s\"", fmt)
                        : iso_buf_reserve(b, (size_t)n + 1, e);
    if (!err) {
        vsnprintf((char *)b->data + b->size, (size_t)n + 1, fmt, again);
        b->size += (size_t)n;
    }
    va_end(again);
    return err;
}

void iso_buf_free(iso_buf *b)
{
    free(b->data);
    *b = (iso_buf){0};
}

/* ---- little-endian fields ---- */

void iso_put_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void iso_put_u32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

void iso_put_u64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

uint16_t iso_get_u16(const uint8_t *p)
{
    return (uint16_t)(p[0] | p[1] << 8);
}

uint32_t iso_get_u32(const uint8_t *p)
{
    uint32_t v = 0;
    for (int i = 3; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}

uint64_t iso_get_u64(const uint8_t *p)
{
    uint64_t v = 0;
    for (int i = 7; i >= 0; i--)
        v = v << 8 | p[i];
    return v;
}
