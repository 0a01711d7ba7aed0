/* Stochastic restoration: now and then a share of the parameters returns to where the task began
 * (specs/data.md 7, R1), for any kind of adapter. Moments of the optimiser stay as they are. */
#ifndef ISO_NN_TRAIN_RESTORE_H
#define ISO_NN_TRAIN_RESTORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    double every;       /* share of all steps between two restorations, 0..1; 0: never */
    double probability; /* of each parameter, 0..1 */
} iso_restore;

/* True when parameters are restored after `done` of `steps` steps: every floor(every * steps)
 * steps, while at least as many remain. */
bool iso_restore_is_due(const iso_restore *r, uint64_t done, uint64_t steps);
/* params[i] = reference[i] where the number of (seed, step, i) is below the probability. */
void iso_restore_apply(const iso_restore *r, uint64_t seed, uint64_t step, size_t n,
                       const float *reference, float *params);
/* The same with given numbers in [0, 1). */
void iso_restore_masked(size_t n, double probability, const double *uniform, const float *reference,
                        float *params);

#endif
