/* What `isofed train` does for the kinds of adapter beside LoRA: their options, what has to happen
 * before and after a training, and stage 1 of TOAST. */
#ifndef ISO_CLI_TRAIN_KINDS_H
#define ISO_CLI_TRAIN_KINDS_H

#include "cli/train_run.h"

typedef struct {
    int form, reduce, value_bias, stage1; /* indices of the choices below */
    int64_t rank_lo, rank_hi, prompts, gap, stage;
    double ortho, fixed_gate, restore_every, restore_p, recon;
    bool full, train_p;
} iso_kind_options;

extern const char *const iso_reduce_choices[], *const iso_value_bias_choices[],
                                                   *const iso_stage1_choices[];

iso_kind_options iso_kind_defaults(void);
/* Puts them into the plan. ISO_ERR_USAGE for an option that the plan's kind does not have. */
iso_err iso_kind_apply(const iso_kind_options *o, iso_train_plan *p, iso_error *e) ISO_MUST_CHECK;

/* Before a training, after the adapter was made: what TOAST selects, random chains of stage 1. */
iso_err iso_kind_prepare(iso_train_outcome *t, const iso_train_plan *plan,
                         iso_error *e) ISO_MUST_CHECK;
/* After it: DATA's mean gates on the training samples. */
iso_err iso_kind_conclude(iso_train_outcome *t, iso_error *e) ISO_MUST_CHECK;

/* DATA: the adapter at its mean gates as a LoRA folder, out/folded: for serving without gates, for
 * merging and for centralize. */
iso_err iso_kind_save_folded(const iso_train_outcome *t, const char *out, const char *base_model,
                             iso_error *e) ISO_MUST_CHECK;

/* Stage 1: by the closed form, without training (the outcome has its data). */
iso_err iso_kind_ridge(iso_train_outcome *t, const iso_train_plan *plan, const char *out,
                       iso_error *e) ISO_MUST_CHECK;
/* Stage 1: what was trained, as start tensors in folder `out`. */
iso_err iso_kind_save_start(const iso_train_outcome *t, const char *out,
                            iso_error *e) ISO_MUST_CHECK;

#endif
