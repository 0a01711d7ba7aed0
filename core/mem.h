/* Memory: checked sizes, an arena for what lives as long as a step, a growable byte buffer. */
#ifndef ISO_CORE_MEM_H
#define ISO_CORE_MEM_H

#include "core/err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* a * b and a + b; false (and *out untouched) on overflow. */
bool iso_mul_size(size_t a, size_t b, size_t *out);
bool iso_add_size(size_t a, size_t b, size_t *out);

/* Zeroed allocation of n items; NULL on overflow or exhaustion (also for n = 0: never NULL).
 * Freed by free(). */
void *iso_calloc(size_t n, size_t item_bytes);
/* 64-byte aligned, not zeroed; freed by free(). */
void *iso_alloc_aligned(size_t n, size_t item_bytes);
char *iso_strdup(const char *s);
/* printf into a new string; NULL on exhaustion. Freed by free(). */
char *iso_strf(const char *fmt, ...) ISO_PRINTF(1, 2);

/* ISO_ERR_MEMORY with the size in the line: `return iso_nomem(e, bytes)`. */
iso_err iso_nomem(iso_error *e, size_t bytes);

/* ---- arena: many allocations, one release; 64-byte aligned ---- */
typedef struct iso_arena_block iso_arena_block;
typedef struct {
    iso_arena_block *head;
    size_t used_bytes;  /* handed out since the last reset */
    size_t held_bytes;  /* taken from the system */
    size_t first_bytes; /* of the first block, set before use; 0: 64 KiB */
} iso_arena;

/* Not zeroed. NULL on exhaustion. An all-zero iso_arena is ready. */
void *iso_arena_alloc(iso_arena *a, size_t n, size_t item_bytes);
void *iso_arena_calloc(iso_arena *a, size_t n, size_t item_bytes);
char *iso_arena_strdup(iso_arena *a, const char *s);
/* Forgets all allocations, keeps the largest block. */
void iso_arena_reset(iso_arena *a);
void iso_arena_free(iso_arena *a);

/* ---- growable bytes ---- */
typedef struct {
    uint8_t *data; /* owned */
    size_t size;
    size_t capacity;
} iso_buf;

iso_err iso_buf_reserve(iso_buf *b, size_t more, iso_error *e) ISO_MUST_CHECK;
iso_err iso_buf_append(iso_buf *b, const void *data, size_t size, iso_error *e) ISO_MUST_CHECK;
iso_err iso_buf_printf(iso_buf *b, iso_error *e, const char *fmt, ...)
    ISO_PRINTF(3, 4) ISO_MUST_CHECK;
void iso_buf_free(iso_buf *b);

/* ---- little-endian fields of fixed byte formats ---- */
void iso_put_u16(uint8_t *p, uint16_t v);
void iso_put_u32(uint8_t *p, uint32_t v);
void iso_put_u64(uint8_t *p, uint64_t v);
uint16_t iso_get_u16(const uint8_t *p);
uint32_t iso_get_u32(const uint8_t *p);
uint64_t iso_get_u64(const uint8_t *p);

#endif
