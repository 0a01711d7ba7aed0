/* release.json: one text, one meaning. */
#include "crypto/manifest.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_manifest m;
    iso_arena arena = {0};
    iso_error e;
    iso_buf again = {0};
    if (iso_manifest_parse(data, size, &arena, &m, &e) == ISO_OK)
        if (iso_manifest_format(&m, &again, &e) || again.size != size ||
            memcmp(again.data, data, size) != 0)
            abort();
    iso_buf_free(&again);
    iso_arena_free(&arena);
    return 0;
}
