/* Inside of TOAST, for toast*.c only. */
#ifndef ISO_NN_ADAPTER_TOAST_INNER_H
#define ISO_NN_ADAPTER_TOAST_INNER_H

#include "nn/adapter/toast.h"

typedef struct {
    const iso_module *module; /* the value projection */
} iso_toast_value;

typedef struct {
    size_t depth, d, r;
    bool is_lite, trains_P, is_twice;
    double scale, recon;
    float *start;            /* (F G, depth, d, d) */
    iso_toast_value *values; /* depth */
    iso_digest start_digest; /* zero: F = I, G = 0 */
    size_t P, xi;            /* offsets in params; P SIZE_MAX */
} iso_toast;

/* Value projections, start tensors, room for params; config has the switches. */
iso_err iso_toast_lay_out(iso_adapter *a, const iso_toast *config, iso_error *e) ISO_MUST_CHECK;
/* The generation's start tensors over F = I, G = 0. */
iso_err iso_toast_take_start(iso_adapter *a, iso_error *e) ISO_MUST_CHECK;
iso_err iso_toast_from_parts(iso_adapter *a, const iso_peft_parts *p, iso_error *e) ISO_MUST_CHECK;
iso_err iso_toast_to_parts(const iso_adapter *a, iso_arena *arena, iso_json *config,
                           iso_named_tensor **tensors, size_t *count, iso_error *e) ISO_MUST_CHECK;

#endif
