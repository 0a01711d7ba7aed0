/* Updates of a DATA task within the task (specs/data.md 12): U_s D_s of each branch under the
 * site's mean gate g_s. g = sum_s w_s g_s (M1)      P = (1/g) sum_s w_s g_s U_s D_s (M2) so that g
 * P is the exact weighted mean of the folded updates. */
#ifndef ISO_MERGE_GATED_H
#define ISO_MERGE_GATED_H

#include "merge/merge.h"

/* One branch of all layers of a group: n sites, weights w (NULL: equal), their mean gates in (0,
 * 1). The product is cut to rank_cap (0: no cap). ISO_ERR_DATA for a gate outside (0, 1). */
iso_err iso_aggregate_gated(const iso_lora_input *sites, size_t n, const double *weights,
                            const double *gates, size_t rank_cap, double *gate,
                            iso_merged_lora *out, iso_error *e) ISO_MUST_CHECK;

#endif
