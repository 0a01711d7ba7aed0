/* Which image when: seeded orders and splits that are pure functions of their arguments. */
#ifndef ISO_NN_DATA_SAMPLER_H
#define ISO_NN_DATA_SAMPLER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A permutation of 0 .. n-1 for one epoch. */
void iso_epoch_order(uint64_t seed, uint64_t epoch, uint32_t *order, size_t n);

/* Marks a share of each class: round(share * n_c), at least 1 when the class has two or more
 * samples and share > 0, never all of them. Drawn per class, so that classes do not disturb each
 * other. is_val has n entries; scratch has n. */
void iso_split_classes(const int *labels, size_t n, size_t classes, double share, uint64_t seed,
                       bool *is_val, uint32_t *scratch);

#endif
