/* DATA: decomposed attention-based task adaptation (Liao et al. 2025; specs/data.md). Each linear
 * layer gets a low-rank (lo) and a higher-rank (hi) addition, each under a gate in (0, 1) that is
 * computed for every sample from the hidden states entering a group of `gap` blocks:
 *   y = W x + b + g_lo U_lo D_lo x + g_hi U_hi D_hi x                                        (L1)
 *   g = sigmoid(tau sum_n sum_k a_nk kappa_k omega_k), a = q/|q|, q = A x (G1-G6) Rows of A, K, W
 * grow with every task; those of earlier tasks are frozen (they are not in `params`). Files:
 * peft_type ISOFED_DATA; fields rank_lo, rank_hi, prompts, gap, reduce, ortho_mu, task_index,
 * target_modules, gate_mean, gate_var, fixed_gate; tensors MODULE.data_{lo,hi}.{down,up} and
 * gate.GROUP.{lo,hi}.{A,K,W}. */
#ifndef ISO_NN_ADAPTER_DATA_H
#define ISO_NN_ADAPTER_DATA_H

#include "nn/adapter/adapter.h"
#include "nn/model.h"

enum { ISO_DATA_LO, ISO_DATA_HI, ISO_DATA_BRANCHES };

extern const iso_adapter_kind iso_data_kind;

/* Ranks 2 and 8, 8 prompts, gap 4, mean over tokens, no penalty (specs/data.md 8). */
void iso_data_defaults(iso_adapter_options *o);

size_t iso_data_groups(const iso_adapter *a);
size_t iso_data_task(const iso_adapter *a); /* 0 for the first */

/* Continues with a new task: factors as they are, all rows so far frozen, `prompts` new ones (E1).
 * ISO_ERR_USAGE when there would be more rows than dim. Mean gates are those of the old task until
 * they are measured again. */
iso_err iso_data_expand(iso_adapter **out, const iso_adapter *a, uint64_t seed,
                        iso_error *e) ISO_MUST_CHECK;
/* The adapter as samples of an earlier task see it: factors as they are now, rows up to that task's
 * (specs/data.md 10: the task is known). */
iso_err iso_data_at_task(iso_adapter **out, const iso_adapter *a, size_t task,
                         iso_error *e) ISO_MUST_CHECK;
/* New rows (p, d) of draws (p, d): Gram-Schmidt against old (n, d) and the new rows before, then
 * unit length. Returns the first row whose projection vanishes, or p. */
size_t iso_data_orthonormal(const double *old, size_t n, const double *draws, size_t p, size_t d,
                            double *rows);

/* Mean gates and their variance over the samples of `s` (F1), kept with the adapter; m runs it. */
iso_err iso_data_measure(iso_adapter *a, const iso_model *m, const iso_source *s,
                         iso_error *e) ISO_MUST_CHECK;
/* (groups, branches) each; has: whether they were measured or read. */
bool iso_data_has_gates(const iso_adapter *a);
const double *iso_data_gate_mean(const iso_adapter *a);
const double *iso_data_gate_variance(const iso_adapter *a);

/* Serve (and train on) at the mean gates, folded into the weights, instead of per sample. Only
 * where the gates are known; an adapter with a constant gate always is. Before a model is opened.
 */
void iso_data_set_folded(iso_adapter *a, bool is_folded);

/* What folding changes, from logits (n, classes): of the gated form, the folded one, the frozen
 * backbone's. */
typedef struct {
    double largest;   /* |gated - folded| */
    double relative;  /* |gated - folded|_F / |gated - base|_F; 0 where both vanish */
    double agreement; /* share of equal labels */
} iso_fold_error;
iso_fold_error iso_fold_error_of(const float *gated, const float *folded, const float *base,
                                 size_t n, size_t classes);

/* ---- what the kind computes, for tests and golden cases ---- */

/* One branch of one group over one micro-batch. Rows: `old` frozen ones, then `fresh`; P together.
 * kappa: sum of the normalised key row (G3); omega: row sum of W (G4). */
typedef struct {
    size_t images, tokens, d, old, fresh;
    const float *A_old, *A; /* (old, d), (fresh, d) */
    const double *kappa, *omega;
    const uint32_t *lengths; /* NULL: all tokens */
    bool is_sum;
} iso_data_gate;

/* z, g (images) of X (images, tokens, d). a (tokens, P) is scratch, unless all_a is set: then it
 * has (images, tokens, P) and keeps the unit vectors of every image. (G1-G6) */
void iso_data_gate_forward(const iso_data_gate *q, const float *X, float *a, bool all_a, double *z,
                           double *g);
/* gbar (images) -> adds to dA (fresh, d), c_bar (P) and, where that is not NULL, to dX (images,
 * tokens, d). scratch (tokens, P). (GB1-GB3, GB6-GB8) */
void iso_data_gate_backward(const iso_data_gate *q, const float *X, const double *g,
                            const double *gbar, float *dA, double *c_bar, float *dX,
                            float *scratch);
/* kappa of a row of K, omega of a row of W. */
double iso_data_kappa(const float *K, size_t d);
double iso_data_omega(const float *W, size_t d);
/* (GB4), (GB5) for one row: added to dK, dW (d). */
void iso_data_row_backward(const float *K, size_t d, double kappa, double omega, double c_bar,
                           float *dK, float *dW);
/* (O2) of one branch: mean of R over A, normalised K and W, each of old and fresh rows; s times its
 * gradient is added to dA, dK, dW (fresh, d). NaN where memory runs out. (O1, O2, OB1) */
typedef struct {
    size_t old, fresh, d;
    const float *before[3], *rows[3]; /* A, K, W: (old, d), (fresh, d) */
} iso_data_rows;
double iso_data_penalty(const iso_data_rows *r, double s, float *dA, float *dK, float *dW);

#endif
