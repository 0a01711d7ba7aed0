/* Frame 1: a head that is read can be written and read to the same again, within its arena. */
#include "proto/codec.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_msg m, again;
    iso_arena arena = {0};
    iso_code code;
    iso_error e;
    uint8_t head[ISO_HEAD_MAX_BYTES], second[ISO_HEAD_MAX_BYTES];
    size_t head_bytes, second_bytes;
    iso_err err = iso_msg_decode(data, size, &arena, &m, &code, &e);
    if (arena.used_bytes > ISO_ARENA_MAX_BYTES || (err == ISO_OK) != (code == ISO_CODE_OK))
        abort();
    if (!err) {
        if (iso_msg_encode(&m, head, sizeof head, &head_bytes, &e) ||
            iso_msg_decode(head, head_bytes, &arena, &again, &code, &e) ||
            iso_msg_encode(&again, second, sizeof second, &second_bytes, &e) ||
            head_bytes != second_bytes || memcmp(head, second, head_bytes) != 0)
            abort();
    }
    iso_arena_free(&arena);
    return 0;
}
