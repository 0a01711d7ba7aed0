/* Adapter folders of kinds other than LoRA (DESIGN 6): the same two files, adapter_config.json with
 * a peft_type ISOFED_* and adapter_model.safetensors, whose tensors the kind names itself. What the
 * fields and tensors mean stands with the kind; here they are read and written whole. */
#ifndef ISO_CORE_PEFT_PARTS_H
#define ISO_CORE_PEFT_PARTS_H

#include "core/json.h"
#include "core/safetensors.h"

typedef struct {
    const char *peft_type; /* points into config */
    iso_json *config;      /* owned */
    iso_safetensors st;
    iso_map map; /* behind st, where it was opened from a folder */
} iso_peft_parts;

/* The peft_type of a folder, for those who choose by it. New string (free). */
iso_err iso_peft_type_of(const char *folder, char **out, iso_error *e) ISO_MUST_CHECK;
/* The same of an adapter_config.json in memory. */
iso_err iso_peft_type_in(const void *config, size_t config_size, char **out,
                         iso_error *e) ISO_MUST_CHECK;

/* Every tensor is of a float type and, with check_finite, finite. Errors name folder or `what`. */
iso_err iso_peft_parts_open(iso_peft_parts *p, const char *folder, bool check_finite,
                            iso_error *e) ISO_MUST_CHECK;
/* From memory; `tensors` must live as long. */
iso_err iso_peft_parts_parse(iso_peft_parts *p, const void *config, size_t config_size,
                             const void *tensors, size_t tensors_size, bool check_finite,
                             const char *what, iso_error *e) ISO_MUST_CHECK;
void iso_peft_parts_close(iso_peft_parts *p); /* zeroed struct is fine */

/* Tensor `name` with dimensions dims[0 .. n-1], converted into out. ISO_ERR_DATA when it is absent,
 * ISO_ERR_SHAPE when it differs. */
iso_err iso_peft_parts_read(const iso_peft_parts *p, const char *name, const size_t *dims, int n,
                            float *out, iso_error *e) ISO_MUST_CHECK;

iso_err iso_peft_parts_write(const char *folder, const iso_json *config,
                             const iso_named_tensor *tensors, size_t count,
                             iso_error *e) ISO_MUST_CHECK;
iso_err iso_peft_parts_write_bufs(const iso_json *config, const iso_named_tensor *tensors,
                                  size_t count, iso_buf *config_out, iso_buf *tensors_out,
                                  iso_error *e) ISO_MUST_CHECK;

#endif
