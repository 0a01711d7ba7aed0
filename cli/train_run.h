/* One training as `isofed train` does it: probe, adapter, scores. The command parses options,
 * saves and prints; this does the work. */
#ifndef ISO_CLI_TRAIN_RUN_H
#define ISO_CLI_TRAIN_RUN_H

#include "cli/vision.h"
#include "nn/data/feed.h"
#include "nn/head/probe.h"
#include "nn/train/loop.h"

typedef struct {
    const char *data;
    size_t limit_per_class;
    double val_share;
    bool allow_unreadable, quiet, resume;
    iso_probe_kind probe;
    const char *head_file; /* start from this head (a task's shared head); NULL: fit one */
    const char *start;     /* start from this PEFT folder; NULL: a fresh adapter */
    iso_adapter_options adapter;
    iso_train_options train;
    int shift;
    bool is_mirrored;
} iso_train_plan;

/* A split with its labels and features of the frozen backbone. */
typedef struct {
    iso_image_set set;
    iso_image_feed feed;
    int *labels;
    float *features;
} iso_train_split;

enum { ISO_TRAIN_CURVE_MAX = 512 };

typedef struct {
    iso_vision vision;
    iso_train_split train, val, test; /* test may be empty */
    bool has_test;
    iso_linear_head head;  /* as trained or fitted */
    iso_linear_head refit; /* fitted on the adapted features */
    iso_probe_info probe_info;
    iso_training_status status;
    size_t training_bytes;
    double seconds;
    /* shares of one; NaN where there is nothing to score */
    double chance, probe, own, own_refit; /* on test, else on val */
    double probe_val, own_val;
    size_t scored;  /* images behind the four scores */
    float *adapted; /* features of the scored split with the adapter, (scored, dim) */
    /* loss of the steps and validation accuracy, thinned to at most ISO_TRAIN_CURVE_MAX points */
    double curve_step[ISO_TRAIN_CURVE_MAX], curve_loss[ISO_TRAIN_CURVE_MAX],
        curve_val[ISO_TRAIN_CURVE_MAX];
    size_t curve_count;
} iso_train_outcome;

/* Only the data, as the training would load them. */
iso_err iso_train_load(iso_train_outcome *t, const iso_train_plan *plan,
                       iso_error *e) ISO_MUST_CHECK;
/* Trains. v is the opened backbone and becomes the outcome's. The outcome is released by
 * iso_train_outcome_free also after an error. */
iso_err iso_train_run(iso_train_outcome *t, const iso_train_plan *plan,
                      iso_error *e) ISO_MUST_CHECK;
void iso_train_outcome_free(iso_train_outcome *t);

/* The split that was scored. */
const iso_train_split *iso_train_scored(const iso_train_outcome *t);

#endif
