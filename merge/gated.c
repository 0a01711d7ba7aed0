/* Gate-weighted aggregation; see gated.h. (M2) is a weighted mean of products with weights
 * w_s g_s / g, which sum to one. */
#include "merge/gated.h"

#include <stdlib.h>

iso_err iso_aggregate_gated(const iso_lora_input *sites, size_t n, const double *weights,
                            const double *gates, size_t rank_cap, double *gate,
                            iso_merged_lora *out, iso_error *e)
{
    double total = 0.0;
    double *w = iso_calloc(n, sizeof *w);
    if (!w)
        return iso_nomem(e, n * sizeof *w);
    *gate = 0.0;
    for (size_t s = 0; s < n; s++) {
        if (!(gates[s] > 0.0 && gates[s] < 1.0)) {
            free(w);
            return iso_fail(e, ISO_ERR_DATA, "%s: mean gate %g; expected between 0 and 1",
                            sites[s].name, gates[s]);
        }
        total += weights ? weights[s] : 1.0;
    }
    for (size_t s = 0; s < n; s++) {
        w[s] = (weights ? weights[s] : 1.0) * gates[s];
        *gate += w[s] / total;
    }
    iso_err err = iso_aggregate_lora(sites, n, w, rank_cap, out, e);
    free(w);
    return err;
}
