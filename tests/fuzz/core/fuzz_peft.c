/* Any bytes as a PEFT folder: u16 length of the configuration, configuration, tensors. What is
 * accepted is written and read again with the same layers. */
#include "core/peft.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_peft p, again;
    iso_error e;
    if (size < 2)
        return 0;
    size_t config = iso_get_u16(data);
    if (config > size - 2)
        config = size - 2;
    /* A copy of its own for each part, so that reading on is seen. */
    uint8_t *text = malloc(config ? config : 1), *tensors = malloc(size - 2 - config + 1);
    if (!text || !tensors)
        abort();
    memcpy(text, data + 2, config);
    memcpy(tensors, data + 2 + config, size - 2 - config);
    bool check_finite = config & 1;
    iso_err err =
        iso_peft_parse(&p, text, config, tensors, size - 2 - config, check_finite, "fuzz", &e);
    free(text);
    free(tensors);
    if (err)
        return err == ISO_ERR_INTERNAL ? (abort(), 0) : 0;
    iso_peft_output o = {.layers = p.layers,
                         .count = p.count,
                         .base_model = p.base_model,
                         .use_rslora = p.use_rslora};
    iso_buf a = {0}, b = {0};
    if (iso_peft_write_bufs(&o, &a, &b, &e) == ISO_OK) {
        if (iso_peft_parse(&again, a.data, a.size, b.data, b.size, false, "again", &e) ||
            again.count != p.count)
            abort();
        for (size_t i = 0; i < p.count; i++)
            if (strcmp(p.layers[i].module, again.layers[i].module) != 0 ||
                p.layers[i].rank != again.layers[i].rank)
                abort();
        iso_peft_close(&again);
    }
    iso_buf_free(&a);
    iso_buf_free(&b);
    iso_peft_close(&p);
    return 0;
}
