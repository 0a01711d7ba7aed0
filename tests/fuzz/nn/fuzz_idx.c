/* Any bytes as an IDX file, plain or gzipped. */
#include "nn/data/idx.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_error e = {0};
    iso_idx x;
    if (iso_idx_parse(&x, data, size, "input", &e)) {
        if (x.data || !e.text[0])
            abort();
        return 0;
    }
    size_t n = 1;
    for (int k = 0; k < x.ndim; k++)
        n *= x.shape[k];
    volatile uint8_t sum = 0; /* every byte that the shape names is there */
    for (size_t i = 0; i < n; i++)
        sum = (uint8_t)(sum + x.data[i]);
    iso_idx_free(&x);
    return 0;
}
