/* Inside of DATA, for data*.c only. */
#ifndef ISO_NN_ADAPTER_DATA_INNER_H
#define ISO_NN_ADAPTER_DATA_INNER_H

#include "nn/adapter/data.h"

typedef struct {
    const iso_module *module;
    size_t down, up; /* D (r, in), U' (r, out) in params; r = lo + hi, lo first */
    size_t scaled;   /* where its U' under mean gates goes */
} iso_data_part;

typedef struct {
    size_t lo, hi, prompts, gap, groups;
    size_t old; /* frozen rows */
    bool is_sum;
    double ortho, fixed;
    iso_data_part *parts; /* in order of matrix and row */
    size_t count, max_rank;
    size_t *first; /* matrix_count + 1 */
    size_t gates;  /* where the rows begin in params: (group, branch, A K W, prompts, d) */
    float *frozen; /* (group, branch, A K W, old, d) */
    float *scaled;
    double *mean, *variance; /* (group, branch) */
    bool has_gates;
} iso_data;

/* `config` has ranks, prompts, gap, old and the switches; a->own becomes a completed copy. */
iso_err iso_data_lay_out(iso_adapter *a, const iso_data *config, const bool *is_target,
                         iso_error *e) ISO_MUST_CHECK;
/* Rows of the current task, as an offset in params; rows of earlier tasks. letter: A, K, W. */
size_t iso_data_rows_in_params(const iso_adapter *a, size_t group, size_t branch, size_t letter);
float *iso_data_frozen_rows(const iso_adapter *a, size_t group, size_t branch, size_t letter);

/* (M4): the update at the mean gates as LoRA layers in order of module, scale 1. */
iso_err iso_data_to_layers(const iso_adapter *a, iso_arena *arena, iso_lora_layer **layers,
                           size_t *count, iso_error *e) ISO_MUST_CHECK;

iso_err iso_data_from_parts(iso_adapter *a, const iso_peft_parts *p, iso_error *e) ISO_MUST_CHECK;
iso_err iso_data_to_parts(const iso_adapter *a, iso_arena *arena, iso_json *config,
                          iso_named_tensor **tensors, size_t *count, iso_error *e) ISO_MUST_CHECK;

#endif
