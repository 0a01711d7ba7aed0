#include "nn/train/schedule.h"

#include <math.h>

double iso_schedule_at(const iso_schedule *s, uint64_t step)
{
    if (step < s->warmup)
        return (double)(step + 1) / (double)s->warmup;
    if (s->steps <= s->warmup + 1)
        return 1.0;
    double done = (double)(step - s->warmup) / (double)(s->steps - s->warmup - 1);
    if (done > 1.0)
        done = 1.0;
    return s->final_share + (1.0 - s->final_share) * 0.5 * (1.0 + cos(3.14159265358979324 * done));
}
