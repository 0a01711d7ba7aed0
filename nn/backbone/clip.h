/* CLIP's image side, Hugging Face names (Radford et al. 2021). */
#ifndef ISO_NN_BACKBONE_CLIP_H
#define ISO_NN_BACKBONE_CLIP_H

#include "nn/backbone/backbone.h"

extern const iso_backbone_family iso_clip_vision_family;
extern const iso_backbone_family iso_clip_family;

#endif
