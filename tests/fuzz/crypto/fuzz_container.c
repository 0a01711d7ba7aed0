/* The payload's container: what is taken apart goes together to the same bytes. */
#include "crypto/container.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t count;
    iso_code code;
    iso_error e;
    iso_buf again = {0};
    if (iso_container_unpack(data, size, files, &count, &code, &e) == ISO_OK)
        if (iso_container_pack(files, count, &again, &e) || again.size != size ||
            memcmp(again.data, data, size) != 0)
            abort();
    iso_buf_free(&again);
    return 0;
}
