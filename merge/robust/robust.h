/* Rules inside a task: how the updates of several sites become the adapter of their task
 * (specs/merging.md 4, 8 d). A rule is a method (merge/method/method.h) in a table of its own;
 * adding one is a file here and a row in registry.c.
 *
 * Distances, norms and scores are over all tensors of an update together, coordinate rules per
 * entry (AMENDMENTS 30). On LoRA the mean, norm clipping, multi-Krum and the geometric median are
 * linear in the updates, with coefficients from inner products of factors: exact by stacking.
 * Coordinate rules need the products, a few rows at a time, and the result is factored again with
 * the lost energy in the report. Every floating tensor of whole models is treated. A layer that an
 * update lacks is a zero. Weights are votes: the mean, clipping, the geometric median and the mean
 * over those that Krum chose use them, coordinate rules and Krum's choice do not. */
#ifndef ISO_MERGE_ROBUST_H
#define ISO_MERGE_ROBUST_H

#include "merge/merge.h"

extern const iso_method *const iso_robust_rules[]; /* ends with NULL; the first is the mean */
/* "mean" is the weighted average. */
const iso_method *iso_robust_find(const char *name);
/* ISO_ERR_USAGE that names the nearest rule. */
iso_err iso_robust_need(const char *name, const iso_method **out, iso_error *e) ISO_MUST_CHECK;

/* iso_aggregate_lora() by a rule. args NULL: the rule's defaults. */
iso_err iso_robust_aggregate_lora(const iso_lora_input *in, size_t T, const iso_method *rule,
                                  const iso_method_args *args, const double *weights,
                                  size_t rank_cap, iso_merged_lora *out,
                                  iso_error *e) ISO_MUST_CHECK;

#endif
