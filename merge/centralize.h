/* Centralization: the changes of N data blocks averaged into the backbone (Ugan et al. 2025;
 * specs/factorization.md 3).
 *
 *   W_{g+1} = W_g + sum_n w_n (W'_n - W_g),  w_n = 1/N by default
 * in double, in a fixed order, rounded once to the type of the file. Block n's W'_n is given by its
 * factors: W * (1 + sum r s^T) + sum a b^T, or W + s B A. The same factors and weights give the
 * same bits on every machine, so the next generation travels as its factors (section 4). Iso-C,
 * Iso-CTS and the other methods may stand in place of the mean. */
#ifndef ISO_MERGE_CENTRALIZE_H
#define ISO_MERGE_CENTRALIZE_H

#include "core/peft.h"
#include "core/peft_parts.h"
#include "merge/merge.h"

/* One block's change of one weight. Pointers of forms that are not there are NULL. */
typedef struct {
    size_t k;
    const float *r, *s; /* (k, out), (k, in): multiplicative */
    const float *a, *b; /* (k, out), (k, in): additive */
    const float *B, *A; /* (out, k), (k, in): LoRA */
    double scale;       /* of B A */
} iso_block_change;

/* next (out, in) = W + sum_n weights[n] (W'_n - W). weights NULL: 1/n. next may be W. */
void iso_centralize_weight(const double *W, size_t out, size_t in, const iso_block_change *blocks,
                           size_t n, const double *weights, double *next);

/* An adapter folder as a block: LoRA, or ISOFED_FACTORISED of any form. */
typedef struct {
    char *name;                /* as given, for messages; owned */
    char **modules;            /* count, in order of name, owned */
    iso_block_change *changes; /* count */
    size_t *out, *in;          /* count */
    size_t count;
    iso_digest digest;               /* of the adapter's tensors */
    char generation[ISO_DIGEST_HEX]; /* it was trained on; "" where the folder does not say */
    iso_arena arena;
} iso_block;

iso_err iso_block_open(iso_block *b, const char *folder, iso_error *e) ISO_MUST_CHECK;
void iso_block_close(iso_block *b); /* zeroed struct is fine */

typedef struct {
    const iso_method *method; /* NULL: the mean */
    iso_method_args args;
    const double *weights; /* n, or NULL: equal. Normalised to sum 1 for the mean. */
} iso_centralize_options;

/* A backbone's tensors after the step. */
typedef struct {
    iso_named_tensor *tensors; /* all of the backbone's, changed ones with new data */
    size_t count;
    bool *is_changed; /* count */
    size_t changed;
    iso_digest before, after; /* generations */
    double change_norm;       /* |W_{g+1} - W_g|_F over all tensors */
    iso_arena arena;
} iso_generation;

/* backbone: its file, which must live as long as `out`. ISO_ERR_SHAPE for a module that the
 * backbone lacks or another shape, ISO_ERR_TRUST for a block that says another generation,
 * ISO_ERR_NONFINITE when the result is not finite. */
iso_err iso_centralize(iso_generation *out, const iso_safetensors *backbone,
                       const iso_block *blocks, size_t n, const iso_centralize_options *o,
                       iso_error *e) ISO_MUST_CHECK;
void iso_generation_free(iso_generation *g); /* zeroed struct is fine */

#endif
