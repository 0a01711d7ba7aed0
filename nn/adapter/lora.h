/* LoRA: dW = s B A on linear layers (Hu et al. 2022; rsLoRA: Kalajdzievski 2023). */
#ifndef ISO_NN_ADAPTER_LORA_H
#define ISO_NN_ADAPTER_LORA_H

#include "nn/adapter/adapter.h"

extern const iso_adapter_kind iso_lora_kind;

#endif
