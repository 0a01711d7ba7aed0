/* Weight factorization: per data block low-rank or multiplicative + additive factors on a frozen
 * backbone (Ugan et al. 2025; Pham et al. 2021; specs/factorization.md 1-3). What becomes of the
 * factors of several blocks stands in merge/centralize.h.
 *
 * Of a module with W (out, in): r, a (k, out) and s, b (k, in);
 *   W' = W * (1 + sum_j r_j s_j^T) + sum_j a_j b_j^T    (* elementwise)
 * s = b = 0 gives W bit for bit. Files (AMENDMENTS 11): peft_type ISOFED_FACTORISED, fields form, k
 * (lora: also scale), target_modules; tensors MODULE.factor.{r,s,a,b}, of form lora
 * base_model.model.MODULE.lora_A.weight and .lora_B.weight. */
#ifndef ISO_NN_ADAPTER_FACTORISED_H
#define ISO_NN_ADAPTER_FACTORISED_H

#include "nn/adapter/adapter.h"

extern const iso_adapter_kind iso_factorised_kind;

/* "both", "lora", "multiplicative", "additive": names of the forms, in the enum's order, NULL. */
extern const char *const iso_factor_forms[];

#endif
