/* BERT and its small relatives (MiniLM), Hugging Face names (Devlin et al. 2019). */
#ifndef ISO_NN_BACKBONE_BERT_H
#define ISO_NN_BACKBONE_BERT_H

#include "nn/backbone/backbone.h"

extern const iso_backbone_family iso_bert_family;

#endif
