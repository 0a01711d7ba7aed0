/* ViT and DeiT, Hugging Face names (Dosovitskiy et al. 2021; Touvron et al. 2021). */
#ifndef ISO_NN_BACKBONE_VIT_H
#define ISO_NN_BACKBONE_VIT_H

#include "nn/backbone/backbone.h"

extern const iso_backbone_family iso_vit_family;
extern const iso_backbone_family iso_deit_family;

#endif
