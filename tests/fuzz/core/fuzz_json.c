/* Any bytes as JSON: the canonical form of what is accepted is its own canonical form, and the
 * other styles read back to it. */
#include "core/json.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_json *j, *again;
    iso_error e;
    iso_buf canonical = {0};
    iso_err is_canonical = iso_json_check_canonical(data, size, "fuzz", &e);
    if (iso_json_parse(data, size, "fuzz", &j, &e)) {
        if (is_canonical == ISO_OK)
            abort();
        return 0;
    }
    if (iso_json_dump(j, ISO_JSON_CANONICAL, &canonical, &e) ||
        iso_json_check_canonical(canonical.data, canonical.size, "again", &e))
        abort();
    bool is_same = canonical.size == size && !memcmp(canonical.data, data, size);
    if (is_same != (is_canonical == ISO_OK))
        abort();
    for (int style = ISO_JSON_COMPACT; style <= ISO_JSON_PRETTY; style++) {
        iso_buf text = {0}, once_more = {0};
        if (iso_json_dump(j, (iso_json_style)style, &text, &e) ||
            iso_json_parse(text.data, text.size, "again", &again, &e) ||
            iso_json_dump(again, ISO_JSON_CANONICAL, &once_more, &e) ||
            once_more.size != canonical.size ||
            memcmp(once_more.data, canonical.data, canonical.size) != 0)
            abort();
        iso_buf_free(&text);
        iso_buf_free(&once_more);
        iso_json_free(again);
    }
    iso_buf_free(&canonical);
    iso_json_free(j);
    return 0;
}
