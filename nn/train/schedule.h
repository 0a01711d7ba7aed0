/* Learning rate over a run: linear warm-up, then half a cosine down to a share of the peak
 * (Loshchilov and Hutter 2017). */
#ifndef ISO_NN_TRAIN_SCHEDULE_H
#define ISO_NN_TRAIN_SCHEDULE_H

#include <stdint.h>

typedef struct {
    uint64_t steps, warmup;
    double final_share; /* of the peak, at the last step */
} iso_schedule;

/* Factor on the peak learning rate for step 0 .. steps-1; 1 at the end of the warm-up. */
double iso_schedule_at(const iso_schedule *s, uint64_t step);

#endif
