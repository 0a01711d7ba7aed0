/* Any bytes as a safetensors file: refused, or every view lies in the data and what is written
 * again is read again as the same list. */
#include "core/safetensors.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_safetensors st, again;
    iso_buf out = {0};
    iso_error e;
    if (iso_safetensors_parse(&st, data, size, "fuzz", &e)) {
        if (e.code == ISO_OK || e.code == ISO_ERR_INTERNAL || memchr(e.text, '\n', strlen(e.text)))
            abort();
        return 0;
    }
    for (size_t i = 0; i < st.count; i++) {
        const uint8_t *at = st.items[i].view.data;
        if (at < data || at > data + size ||
            iso_tensor_bytes(&st.items[i].view) > (size_t)(data + size - at))
            abort();
        (void)iso_tensor_find_nonfinite(&st.items[i].view);
    }
    iso_digest before = iso_tensor_list_digest(st.items, st.count);
    if (iso_safetensors_write_buf(&out, st.items, st.count, st.meta, st.meta_count, &e) ||
        iso_safetensors_parse(&again, out.data, out.size, "again", &e))
        abort();
    iso_digest after = iso_tensor_list_digest(again.items, again.count);
    if (!iso_digest_equal(&before, &after) || again.meta_count != st.meta_count)
        abort();
    iso_safetensors_close(&again);
    iso_safetensors_close(&st);
    iso_buf_free(&out);
    return 0;
}
