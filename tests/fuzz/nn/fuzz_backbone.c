/* A backbone folder from outside: two bytes of length, config.json, model.safetensors. What opens
 * must also run. */
#include "nn/backbone/random.h"
#include "nn/model.h"

#include <stdlib.h>

enum { MAX_FLOATS = 1 << 18 };

static void run_once(const iso_backbone *b)
{
    const iso_backbone_shape *s = &b->shape;
    iso_model *m = NULL;
    if (s->sample > MAX_FLOATS || s->feature > MAX_FLOATS || s->tokens * s->dim > MAX_FLOATS ||
        s->tokens * s->mlp > MAX_FLOATS)
        return;
    if (iso_model_open(&m, b, NULL, true, NULL))
        return;
    float *image = iso_calloc(s->sample, sizeof *image);
    float *out = iso_calloc(s->feature, sizeof *out);
    if (image && out && iso_model_features(m, image, 1, out, NULL))
        abort(); /* nothing in it may fail */
    free(image);
    free(out);
    iso_model_close(m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_json *config = NULL;
    iso_safetensors st = {0};
    iso_backbone *b = NULL;
    if (size < 2)
        return 0;
    size_t length = iso_get_u16(data);
    if (length > size - 2)
        return 0;
    if (!iso_json_parse(data + 2, length, "fuzz", &config, NULL) &&
        !iso_safetensors_parse(&st, data + 2 + length, size - 2 - length, "fuzz", NULL) &&
        !iso_backbone_make(&b, config, &st, "fuzz", NULL)) {
        run_once(b);
        iso_backbone_close(b);
    }
    iso_safetensors_close(&st);
    iso_json_free(config);
    return 0;
}
