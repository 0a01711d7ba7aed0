/* TOAST: top-down attention steering (Shi et al. 2023; specs/toast.md). The frozen backbone runs
 * twice: the final tokens of pass 1 are weighted by their similarity to xi (selection), sent down a
 * chain of linear maps, one step a block, and added to the input of the value projections of pass
 * 2: s = clamp(cos(z, xi), 0, 1), u^L = P' (s z)      u^l = F_l u^{l+1}, t^l = G_l u^l (S1-B2) v =
 * W_v (h + t^l) + b_v   ("twice": b_v once more, as the published vision code)          (A1) full
 * trains F and G, lite low-rank parts beside frozen ones: F' = F + s B A, s = 1/r. Inference
 * shortens the chain to one matrix a block, C_l = W_v G_l F_l .. F_{L-1} P' (C1).
 *
 * F and G start from the generation's start tensors: file top_down.safetensors in the backbone's
 * folder (top_down.BLOCK.{F,G}; metadata format isofed-top-down, version 1, generation), else F =
 * I, G = 0. Adapter files: peft_type ISOFED_TOAST; fields lite, r, scale, value_bias, train_p,
 * start_digest; tensors top_down.BLOCK.{F,G} as differences to the start, or .lora_A and .lora_B;
 * select.xi of unit length; select.P minus I where it is trained. */
#ifndef ISO_NN_ADAPTER_TOAST_H
#define ISO_NN_ADAPTER_TOAST_H

#include "nn/adapter/adapter.h"
#include "nn/model.h"

enum { ISO_TOAST_F, ISO_TOAST_G };

#define ISO_TOAST_START_FILE "top_down.safetensors"

extern const iso_adapter_kind iso_toast_kind;

/* ---- layout of params ---- */

/* F or G of a block: part 0 the matrix (d, d), or A (r, d) of the lite form; part 1 its B (d, r).
 */
size_t iso_toast_at(const iso_adapter *a, int which, size_t block, int part);
size_t iso_toast_xi_at(const iso_adapter *a);
size_t iso_toast_P_at(const iso_adapter *a); /* SIZE_MAX: P is I, fixed */
/* The start of F or G of a block (d, d): what the lite form adds to. */
float *iso_toast_start(const iso_adapter *a, int which, size_t block);

/* ---- inside of a run, for tests: u (block 0 .. depth; depth: u^L), s and c a token ---- */
const float *iso_toast_u(const iso_adapter_run *r, size_t block);
const float *iso_toast_tbar(const iso_adapter_run *r, size_t block);
const float *iso_toast_cosines(const iso_adapter_run *r);
const float *iso_toast_selected(const iso_adapter_run *r);

/* ---- starting ---- */

typedef enum { ISO_TOAST_KEPT, ISO_TOAST_FLIPPED, ISO_TOAST_MEAN } iso_toast_selection;
/* Share of the tokens that xi selects over the images of `s`; under one half gradients die (D6):
 * then -xi is taken, or, where that is no better, the mean first-pass feature scaled to sqrt(d).
 * share (may be NULL): of what was kept. */
iso_err iso_toast_check_selection(iso_adapter *a, const iso_model *m, const iso_source *s,
                                  iso_toast_selection *did, double *share,
                                  iso_error *e) ISO_MUST_CHECK;

/* The closed form of stage 1 (Q1): F_l = C_l (S_l + lambda I)^-1 over first-pass activations,
 * lambda = ridge * trace(S_l) / d. F (depth, d, d). The images need no labels. */
iso_err iso_toast_ridge(const iso_backbone *b, const iso_source *s, double ridge, float *F,
                        iso_error *e) ISO_MUST_CHECK;
/* S += sum out out', C += sum in out' over m rows (m, d). */
void iso_toast_moments(size_t m, size_t d, const float *in, const float *out, double *S, double *C,
                       float *scratch);
/* F = C (S + lambda I)^-1; S (d, d) is destroyed. scratch of moments: (d, d). */
iso_err iso_toast_solve(size_t d, double *S, const double *C, double lambda, float *F,
                        iso_error *e) ISO_MUST_CHECK;

/* Writes the start file of a generation: F, G (depth, d, d), G NULL: zero. method: how it was made.
 */
iso_err iso_toast_write_start(const iso_backbone *b, const float *F, const float *G,
                              const char *method, const char *path, iso_error *e) ISO_MUST_CHECK;
/* F and G as they are now (lite: with their low-rank parts), into (depth, d, d) each. */
void iso_toast_effective(const iso_adapter *a, const float *params, float *F, float *G);

#endif
