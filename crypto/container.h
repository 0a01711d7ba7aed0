/* Payload of an update: one PEFT folder as a flat container (specs/security.md S32).
 * u32 n, then per file u16 name_len, name, u64 size, bytes; n <= 8, names of a fixed set, sorted,
 * no duplicate, no gap, nothing behind. */
#ifndef ISO_CRYPTO_CONTAINER_H
#define ISO_CRYPTO_CONTAINER_H

#include "core/mem.h"
#include "core/wire.h"

enum { ISO_CONTAINER_FILES_MAX = 8 };

typedef struct {
    const char
        *name; /* adapter_config.json adapter_model.safetensors head.safetensors metadata.json */
    const uint8_t *data;
    size_t size;
} iso_container_file;

/* Any order in; sorted out. An unknown or repeated name is ISO_ERR_USAGE. Appends to `out`. */
iso_err iso_container_pack(const iso_container_file files[], size_t count, iso_buf *out,
                           iso_error *e) ISO_MUST_CHECK;
/* Views into `bytes`; names point to static strings. Refusal: ISO_ERR_DATA, *code CONTAINER. */
iso_err iso_container_unpack(const void *bytes, size_t size,
                             iso_container_file files[ISO_CONTAINER_FILES_MAX], size_t *count,
                             iso_code *code, iso_error *e) ISO_MUST_CHECK;
/* The file of that name, or NULL. */
const iso_container_file *iso_container_find(const iso_container_file files[], size_t count,
                                             const char *name);
/* From and to a folder: reads the known names that are there; writes each file whole (mode 0600).
 */
iso_err iso_container_pack_folder(const char *folder, uint64_t max_bytes, iso_buf *out,
                                  iso_error *e) ISO_MUST_CHECK;
iso_err iso_container_unpack_folder(const void *bytes, size_t size, const char *folder,
                                    iso_code *code, iso_error *e) ISO_MUST_CHECK;

#endif
