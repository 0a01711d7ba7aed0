/* Header of a sealed update: what is read is written back to the same bytes. */
#include "crypto/envelope.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_envelope h;
    iso_code code;
    iso_error e;
    uint8_t again[ISO_ENVELOPE_HEADER_BYTES];
    if (iso_envelope_decode(data, size, &h, &code, &e) != ISO_OK)
        return 0;
    iso_envelope_encode(&h, again);
    if (memcmp(again, data, size) != 0 || iso_envelope_file_bytes(&h) < size)
        abort();
    for (uint32_t i = 0; i <= h.chunk_count && i < 4; i++)
        if (iso_envelope_chunk_bytes(&h, i) > ISO_BODY_MAX_BYTES)
            abort();
    return 0;
}
