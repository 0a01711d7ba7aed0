/* Audit entries: what is read is written back to the same bytes. */
#include "crypto/chain.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_audit_entry a;
    iso_error e;
    iso_buf again = {0};
    if (iso_audit_decode(data, size, &a, &e) == ISO_OK)
        if (iso_audit_encode(&a, &again, &e) || again.size != size ||
            memcmp(again.data, data, size) != 0)
            abort();
    iso_buf_free(&again);
    return 0;
}
