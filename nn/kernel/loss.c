#include "nn/kernel/loss.h"

#include <assert.h>
#include <math.h>

double iso_loss_rows(size_t m, size_t classes, const float *logits, const int *labels, float scale,
                     float *dlogits)
{
    double total = 0.0;
    for (size_t i = 0; i < m; i++) {
        const float *z = logits + i * classes;
        assert(labels[i] >= 0 && (size_t)labels[i] < classes);
        size_t label = (size_t)labels[i];
        double top = (double)z[0], sum = 0.0;
        for (size_t c = 1; c < classes; c++)
            top = (double)z[c] > top ? (double)z[c] : top;
        for (size_t c = 0; c < classes; c++)
            sum += exp((double)z[c] - top);
        double log_sum = top + log(sum);
        total += log_sum - (double)z[label];
        if (dlogits) {
            float *d = dlogits + i * classes;
            for (size_t c = 0; c < classes; c++) {
                double p = exp((double)z[c] - log_sum) - (c == label ? 1.0 : 0.0);
                d[c] = (float)((double)scale * p);
            }
        }
    }
    return total;
}
