/* Whisper's encoder, Hugging Face names (Radford et al. 2022), and our own speech encoder of the
 * same shape (specs/factorization.md 5). */
#ifndef ISO_NN_BACKBONE_WHISPER_H
#define ISO_NN_BACKBONE_WHISPER_H

#include "nn/backbone/backbone.h"

extern const iso_backbone_family iso_whisper_family;
extern const iso_backbone_family iso_speech_family;

#endif
