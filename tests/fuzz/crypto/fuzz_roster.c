/* roster.json: one text, one meaning. */
#include "crypto/roster.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_roster r;
    iso_error e;
    iso_buf again = {0};
    if (iso_roster_parse(data, size, &r, &e) == ISO_OK)
        if (iso_roster_format(&r, &again, &e) || again.size != size ||
            memcmp(again.data, data, size) != 0)
            abort();
    iso_buf_free(&again);
    return 0;
}
