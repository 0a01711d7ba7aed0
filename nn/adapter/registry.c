/* Adapter kinds: one row each. */
#include "nn/adapter/data.h"
#include "nn/adapter/factorised.h"
#include "nn/adapter/lora.h"
#include "nn/adapter/toast.h"

const iso_adapter_kind *const iso_adapter_kinds[] = {&iso_lora_kind, &iso_data_kind,
                                                     &iso_factorised_kind, &iso_toast_kind, NULL};
