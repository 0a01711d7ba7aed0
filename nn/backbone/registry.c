/* Backbone families: one row each. */
#include "nn/backbone/vit.h"

const iso_backbone_family *const iso_backbone_families[] = {&iso_vit_family, &iso_deit_family,
                                                            NULL};
