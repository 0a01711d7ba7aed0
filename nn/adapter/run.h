/* Between a pass and a kind that runs: the hooks of nn/backbone/backbone.h, each handed on to the
 * kind with its micro-batch (iso_adapter_run). */
#ifndef ISO_NN_ADAPTER_RUN_H
#define ISO_NN_ADAPTER_RUN_H

#include "nn/adapter/adapter.h"

/* Hooks of a forward, and a backward, through `r`; r must live as long. */
iso_pass_hooks iso_run_hooks(iso_adapter_run *r);
iso_backward iso_run_backward(iso_adapter_run *r);

#endif
