/* safetensors in and out: one file, or shards with an index.
 * Every rule of specs/security.md 9.1 is checked before a byte of data is used. */
#ifndef ISO_CORE_SAFETENSORS_H
#define ISO_CORE_SAFETENSORS_H

#include "core/digest.h"
#include "core/fsio.h"
#include "core/tensor.h"

enum {
    ISO_SAFETENSORS_HEADER_BYTES = 16 * 1024 * 1024, /* also of an index */
    ISO_SAFETENSORS_TENSORS = 100000,
    ISO_SAFETENSORS_NAME_BYTES = 512
};

typedef struct {
    const char *name; /* owned by the file */
    iso_tensor view;  /* data points into the file's bytes */
} iso_named_tensor;

typedef struct {
    iso_named_tensor *items; /* in order of name, bytewise */
    size_t count;
    const char **meta; /* 2 * meta_count strings: key, value */
    size_t meta_count;
    iso_map *maps; /* mapped shards (opened from disk) */
    size_t map_count;
    iso_arena arena;
} iso_safetensors;

/* A .safetensors file, a .index.json, or a folder holding model.safetensors or
 * model.safetensors.index.json. Mapped, not read. */
iso_err iso_safetensors_open(iso_safetensors *st, const char *path, iso_error *e) ISO_MUST_CHECK;
/* From memory (not copied: `data` must live as long). `what` names it in errors. */
iso_err iso_safetensors_parse(iso_safetensors *st, const void *data, size_t size, const char *what,
                              iso_error *e) ISO_MUST_CHECK;
void iso_safetensors_close(iso_safetensors *st); /* zeroed struct is fine */

/* Puts items in order of name; a name that stands twice is ISO_ERR_DATA. For those who fill one. */
iso_err iso_safetensors_sort(iso_safetensors *st, const char *what, iso_error *e) ISO_MUST_CHECK;

/* NULL if absent. Binary search. */
const iso_named_tensor *iso_safetensors_find(const iso_safetensors *st, const char *name);
const char *iso_safetensors_meta(const iso_safetensors *st, const char *key);

/* Writes tensors atomically, whatever order they come in: by size of element, largest first, then
 * by name, so that each is aligned to its type (the format allows no gaps); header padded to 8
 * bytes. meta: 2 * meta_count strings. A repeated or impossible name is ISO_ERR_DATA. */
iso_err iso_safetensors_write(const char *path, const iso_named_tensor *tensors, size_t count,
                              const char *const *meta, size_t meta_count,
                              iso_error *e) ISO_MUST_CHECK;
iso_err iso_safetensors_write_buf(iso_buf *out, const iso_named_tensor *tensors, size_t count,
                                  const char *const *meta, size_t meta_count,
                                  iso_error *e) ISO_MUST_CHECK;

/* For those who write the data themselves, in any order: the bytes before it (appended to an empty
 * `header`), where in the file each tensor begins (offsets, count) and how long the file is. Only
 * names, types and shapes are looked at. */
iso_err iso_safetensors_layout(const iso_named_tensor *tensors, size_t count,
                               const char *const *meta, size_t meta_count, iso_buf *header,
                               uint64_t *offsets, uint64_t *total, iso_error *e) ISO_MUST_CHECK;

/* Digest of the canonical tensor list (DESIGN 1): over tensors in order of name, each
 * u32 name length, name, u8 dtype, u8 ndim, u64 dims..., data; numbers little-endian. The tensors
 * may come in any order; sorted ones take linear time. */
iso_digest iso_tensor_list_digest(const iso_named_tensor *tensors, size_t count);

#endif
