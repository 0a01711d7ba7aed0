#include "cli/eval_fold.h"

#include <stdlib.h>

/* Features of the set with another adapter, or none. */
static iso_err features_with(const iso_vision *v, const iso_adapter *a, const iso_image_set *set,
                             bool quiet, float **features, iso_error *e)
{
    iso_vision other = *v;
    int *labels = NULL;
    other.model = NULL;
    iso_err err = iso_model_open(&other.model, v->backbone, a, false, e);
    if (!err)
        err = iso_vision_features(&other, set, quiet, features, &labels, e);
    iso_model_close(other.model);
    free(labels);
    return err;
}

iso_err iso_eval_fold_of(const iso_vision *v, const iso_image_set *set, const iso_linear_head *h,
                         const float *gated, const int *labels, bool quiet, iso_eval_fold *out,
                         iso_error *e)
{
    size_t n = set->count, C = h->classes;
    iso_adapter *folded = NULL;
    float *base = NULL, *at_means = NULL;
    *out = (iso_eval_fold){0};
    if (!v->adapter || v->adapter->kind != &iso_data_kind || !iso_adapter_runs(v->adapter) ||
        !iso_data_has_gates(v->adapter) || !n)
        return ISO_OK;
    float *z = iso_calloc(3 * n, C * sizeof *z);
    iso_err err = z ? iso_adapter_copy(&folded, v->adapter, e) : iso_nomem(e, n * C * sizeof *z);
    if (err)
        goto done;
    iso_data_set_folded(folded, true);
    if ((err = features_with(v, folded, set, quiet, &at_means, e)) ||
        (err = features_with(v, NULL, set, quiet, &base, e)))
        goto done;
    iso_linear_logits(h, gated, n, z);
    iso_linear_logits(h, at_means, n, z + n * C);
    iso_linear_logits(h, base, n, z + 2 * n * C);
    out->is_there = true;
    out->error = iso_fold_error_of(z, z + n * C, z + 2 * n * C, n, C);
    out->accuracy = iso_linear_accuracy(h, at_means, labels, n);
done:
    free(z);
    free(base);
    free(at_means);
    iso_adapter_close(folded);
    return err;
}
