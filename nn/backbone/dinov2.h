/* DINOv2, with or without registers, Hugging Face names (Oquab et al. 2023; Darcet et al. 2023). */
#ifndef ISO_NN_BACKBONE_DINOV2_H
#define ISO_NN_BACKBONE_DINOV2_H

#include "nn/backbone/backbone.h"

extern const iso_backbone_family iso_dinov2_family;
extern const iso_backbone_family iso_dinov2_registers_family;

#endif
