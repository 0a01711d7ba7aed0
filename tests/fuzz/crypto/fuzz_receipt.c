/* Receipts and signed heads. */
#include "crypto/chain.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_receipt r;
    iso_head h;
    iso_error e;
    uint8_t again[ISO_HEAD_BYTES];
    if (iso_receipt_decode(data, size, &r, &e) == ISO_OK) {
        iso_receipt_encode(&r, again);
        if (memcmp(again, data, size) != 0)
            abort();
    }
    if (iso_head_decode(data, size, &h, &e) == ISO_OK) {
        iso_head_encode(&h, again);
        if (memcmp(again, data, size) != 0)
            abort();
    }
    return 0;
}
