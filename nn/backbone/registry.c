/* Backbone families: one row each. */
#include "nn/backbone/bert.h"
#include "nn/backbone/clip.h"
#include "nn/backbone/dinov2.h"
#include "nn/backbone/vit.h"
#include "nn/backbone/whisper.h"

const iso_backbone_family *const iso_backbone_families[] = {
    &iso_vit_family,         &iso_deit_family,
    &iso_dinov2_family,      &iso_dinov2_registers_family,
    &iso_clip_vision_family, &iso_clip_family,
    &iso_bert_family,        &iso_whisper_family,
    &iso_speech_family,      NULL};
