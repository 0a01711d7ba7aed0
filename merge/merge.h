/* Merging: the front door of the room, for `isofed merge` and the coordinator's worker.
 *
 * Two levels (DESIGN 1): within a task iso_aggregate_lora(), across tasks iso_merge_lora() or, for
 * whole matrices, iso_merge_dense(). Layers run in parallel (core/parallel), each with serial BLAS;
 * results are the same bits for any number of threads. Nothing is printed; what was decided is in
 * the reports. specs/merging.md */
#ifndef ISO_MERGE_MERGE_H
#define ISO_MERGE_MERGE_H

#include "core/peft.h"
#include "merge/guard.h"
#include "merge/method/method.h"

/* Whitening below this means two tasks are nearly, not exactly, equal: digits are lost
 * (specs/merging.md 3.2). */
#define ISO_NEAR_EQUAL 1e-6

/* A factor on alpha for the layers whose name matches `pattern` (shell wildcards; alpha.h). */
typedef struct {
    const char *pattern;
    double scale;
} iso_layer_scale;

/* Where the tensors of a merge go when they need not fit into memory (stream.h). Called from any
 * thread, for several tensors at a time; the parts of one tensor come in order. */
typedef struct {
    void *ctx;
    /* What will come, in order of name, with final types. `done` (count): set where a tensor is
     * there already; `rank` (count): those with the lowest start first. */
    iso_err (*begin)(void *ctx, const iso_named_tensor *tensors, size_t count, bool *done,
                     double *rank, iso_error *e);
    /* Elements first .. of tensor i. */
    iso_err (*part)(void *ctx, size_t i, size_t first, const void *data, size_t bytes,
                    iso_error *e);
    iso_err (*end)(void *ctx, size_t i, iso_error *e);
    void (*touched)(void *ctx, size_t bytes); /* of the inputs were read; may be NULL */
} iso_dense_sink;

typedef struct {
    const iso_method *method;
    iso_method_args args;                /* convention may be AUTO */
    const double *weights;               /* T, or NULL: all one */
    const iso_layer_scale *layer_scales; /* the first that matches counts */
    size_t layer_scale_count;
    size_t rank_cap;         /* rank of every merged layer at most this; 0: no cap (LoRA) */
    double energy;           /* least rank that keeps this share of |D|_F^2; 0 or 1: all (LoRA) */
    bool is_single_kept;     /* one input is returned unchanged (AMENDMENTS 14); the coordinator's
                                choice */
    bool is_reference;       /* treat tensors as the published code does (specs/merging.md 2.1) */
    bool is_transposed;      /* whole matrices are stored (in, out) */
    double rank_tol;         /* 0: by the inputs' storage (specs/merging.md 1) */
    iso_guard_options guard; /* all zero: off */
    void (*progress)(void *ctx, size_t done,
                     size_t total); /* may be NULL; called from one thread */
    void *progress_ctx;
    const volatile int *stop;   /* may be NULL; non-zero stops with ISO_ERR_INTERRUPTED */
    const iso_dense_sink *sink; /* whole tensors: NULL keeps them in memory */
} iso_merge_options;

/* Defaults of a method: its parameters, no guards, no cap. */
iso_merge_options iso_merge_defaults(const iso_method *method);

typedef enum {
    ISO_BY_METHOD,
    ISO_BY_MEAN, /* vectors, embeddings, kernels: mean over the tasks, times alpha */
    ISO_BY_COPY  /* not floating point, equal in all inputs */
} iso_treatment;
const char *iso_treatment_name(iso_treatment t);

/* What happened to one layer or tensor. */
typedef struct {
    const char *name; /* owned by the result */
    iso_treatment treatment;
    size_t m, n;        /* out, in; vectors and kernels: 1, number of values */
    size_t present;     /* inputs that have it */
    size_t rank;        /* of the merged factors; 0 for whole matrices */
    size_t full_rank;   /* before cap and energy */
    double energy_kept; /* share of |D|_F^2 that cap and energy left */
    double norm;        /* |D|_F of the merged update */
    size_t floored;     /* directions dropped by guard (b) */
    bool is_resumed;    /* was there from an interrupted run: norm and decisions are not known */
    iso_decisions decisions;
} iso_layer_report;

typedef struct {
    size_t layers, partial, zero, near_equal, by_mean, by_copy; /* partial: not in every input */
    size_t resumed;                                             /* not merged again */
    size_t capped_tasks, floored, gain_capped;                  /* guards */
    size_t lowest_energy; /* index of the layer that lost most */
    double energy_kept;   /* over all layers together */
    double norm;          /* over all layers together */
    iso_convention convention;
} iso_merge_summary;

/* ---- LoRA ---- */
typedef struct {
    const char *name; /* for messages: "adapters/b", a site or task */
    const iso_lora_layer *layers;
    size_t count;
} iso_lora_input;

typedef struct {
    iso_lora_layer *layers; /* in order of module, bytewise; scale 1 unless kept single */
    iso_layer_report *reports;
    size_t count;
    double *task_scales; /* T: what guard (a) made of each input; 1 unchanged */
    iso_merge_summary summary;
    iso_arena arena;
    float **blocks; /* factors, owned */
} iso_merged_lora;

/* Layers that an input lacks count as zero, and the input still counts in T.
 * Errors: ISO_ERR_USAGE (weights, parameters), ISO_ERR_SHAPE / ISO_ERR_DATA / ISO_ERR_NONFINITE
 * with input and layer named. */
iso_err iso_merge_lora(const iso_lora_input *in, size_t T, const iso_merge_options *o,
                       iso_merged_lora *out, iso_error *e) ISO_MUST_CHECK;

/* Within a task: the weighted mean of the products s B A, exact by stacking, cut to rank_cap with
 * the lost energy in the reports (0: no cap). */
iso_err iso_aggregate_lora(const iso_lora_input *in, size_t T, const double *weights,
                           size_t rank_cap, iso_merged_lora *out, iso_error *e) ISO_MUST_CHECK;

void iso_merged_lora_free(iso_merged_lora *m); /* zeroed struct is fine */

/* ---- whole tensors ---- */
typedef struct {
    const char *name;
    const iso_named_tensor *tensors;
    size_t count;
} iso_dense_input;

typedef struct {
    iso_named_tensor *tensors; /* in order of name; deltas, or W0 + D where a base was given */
    iso_layer_report *reports;
    size_t count;
    iso_merge_summary summary;
    iso_arena arena;
    void **blocks; /* data, owned */
} iso_merged_dense;

/* Inputs are deltas, or whole weights when `base` (may be NULL) is given. out_type: element type of
 * floating tensors in the result; ISO_DTYPE_COUNT: F64 where an input is F64, else F32. */
iso_err iso_merge_dense(const iso_dense_input *in, size_t T, const iso_dense_input *base,
                        iso_dtype out_type, const iso_merge_options *o, iso_merged_dense *out,
                        iso_error *e) ISO_MUST_CHECK;
void iso_merged_dense_free(iso_merged_dense *m);

/* Working memory that one thread needs at most for an (m, n) weight: a bound where a decomposition
 * falls back to the SVD, a few blocks for methods that work entry by entry. Not: the inputs
 * (mapped) and, without a sink, the result. */
size_t iso_merge_dense_bytes(const iso_method *method, bool by_method, size_t T, size_t m, size_t n,
                             bool is_transposed);
/* How `name` (ndim dimensions) is treated. */
iso_treatment iso_merge_treatment(const iso_method *method, bool is_reference, const char *name,
                                  const iso_tensor *t);

/* ---- shared by merge.c and dense.c ---- */
iso_err iso_merge_check(const iso_merge_options *o, size_t T, iso_error *e) ISO_MUST_CHECK;
void iso_merge_summarise(const iso_layer_report *reports, size_t count, size_t T,
                         iso_merge_summary *s);

#endif
