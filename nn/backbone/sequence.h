/* Families whose samples differ in length (text, sound): every token is computed, and with read = 1
 * a feature is the mean over the tokens that are there. `own` of the backbone begins with an
 * iso_encoder. */
#ifndef ISO_NN_BACKBONE_SEQUENCE_H
#define ISO_NN_BACKBONE_SEQUENCE_H

#include "nn/backbone/encoder.h"

size_t iso_sequence_workspace(const iso_backbone *b, const iso_pass *p, size_t images);
float *iso_sequence_input(const iso_backbone *b, const iso_pass *p, float *workspace);
void iso_sequence_forward(const iso_backbone *b, const iso_pass *p, size_t images, float *workspace,
                          float *out);
void iso_sequence_backward(const iso_backbone *b, const iso_pass *p, const iso_backward *w,
                           size_t images, float *workspace, const float *dout);

#endif
