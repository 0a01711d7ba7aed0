/* A ViT with seeded random weights: for benches, tests and as a start for pretraining. */
#ifndef ISO_NN_BACKBONE_RANDOM_H
#define ISO_NN_BACKBONE_RANDOM_H

#include "nn/backbone/backbone.h"

typedef struct {
    size_t depth, dim, heads, mlp, image_size, patch;
    size_t classes; /* of the classifier; 0: none */
    uint64_t seed;
} iso_random_vit;

/* Linear weights normal with deviation 1/sqrt(in), tokens and positions 0.02, norms 1, biases 0. */
iso_err iso_backbone_random(iso_backbone **out, const iso_random_vit *o,
                            iso_error *e) ISO_MUST_CHECK;
/* The same as the bytes of a config.json and a model.safetensors. */
iso_err iso_backbone_random_files(const iso_random_vit *o, iso_buf *config, iso_buf *tensors,
                                  iso_error *e) ISO_MUST_CHECK;

#endif
