/* Alpha: the scale of a merged update (specs/merging.md 3.5). Per layer by name, or chosen from
 * scores that sites send (numbers only). */
#ifndef ISO_MERGE_ALPHA_H
#define ISO_MERGE_ALPHA_H

#include "merge/merge.h"

/* Factor on alpha of a layer: that of the first pattern that matches its name, else 1. `*` and `?`
 * match any characters, also dots. */
double iso_layer_scale_of(const iso_layer_scale *scales, size_t count, const char *name);

/* Picks one of `count` settings. scores (count, tasks): higher is better; reference (tasks): what
 * each task's own adapter scores, to normalise by; NULL: not normalised. The best mean over the
 * tasks wins, ties (within 1e-12) go to the smaller alpha. A setting with a score that is not
 * finite cannot win; ISO_ERR_DATA when none can, ISO_ERR_USAGE when there is nothing to choose from
 * or a reference is not positive. */
iso_err iso_alpha_choose(const double *alphas, size_t count, const double *scores, size_t tasks,
                         const double *reference, size_t *best, double *best_mean,
                         iso_error *e) ISO_MUST_CHECK;

#endif
