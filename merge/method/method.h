/* Merge methods: what a method is, and the table of them. Adding one is a file here and a row in
 * registry.c; nothing else changes.
 *
 * A method merges the task vectors D_t = W_t - W0 of one weight (specs/merging.md 1). It says how
 * in one of three ways, and the driver (merge/layer.c) does the rest: coefficients  linear: D = sum
 * c_t D_t, on tensors of any shape, on factors by stacking them core          D = left' right with
 * few rows: serves whole matrices and, through orthonormal bases of the stacked factors, LoRA
 * (specs/merging.md 5) dense         whole matrices only, or a faster way to the same result for
 * them */
#ifndef ISO_MERGE_METHOD_H
#define ISO_MERGE_METHOD_H

#include "core/tensor.h"
#include "merge/linalg/linalg.h"

enum { ISO_METHOD_PARAMS = 12, ISO_ROUTE_TEXT = 48 };

/* Over how many directions the mean singular value is taken when fewer than min(m, n) carry data
 * (specs/merging.md 3.3). AUTO: rank for factors, dense for whole matrices. */
typedef enum { ISO_CONVENTION_AUTO, ISO_CONVENTION_DENSE, ISO_CONVENTION_RANK } iso_convention;

typedef enum {
    ISO_NEEDS_SUM,     /* only sum w_t D_t: can be streamed */
    ISO_NEEDS_FACTORS, /* only LoRA factors */
    ISO_NEEDS_ALL      /* every task's own matrix */
} iso_method_needs;

typedef struct {
    const char *name, *help;
    double otherwise; /* default */
    double min, max;
    bool is_whole; /* takes whole numbers only */
} iso_method_param;

typedef struct {
    double value[ISO_METHOD_PARAMS]; /* in the order of the method's table */
    iso_convention convention;       /* decided: never AUTO here */
    double gain_cap;      /* guard (c) of specs/merging.md 8: s' = min(sigma, g s); 0 off */
    iso_route_wish route; /* AUTO, or one route for tests and benches */
} iso_method_args;

/* The task vectors of one weight, still in the types they came in. */
typedef struct {
    size_t T, m, n;
    const iso_tensor *views; /* T; data NULL: the task has no such tensor, a zero delta */
    const double *weights;   /* T, or NULL: all one */
    const iso_tensor *base;  /* W0, when the views are whole weights; else NULL */
    bool is_transposed;      /* views are (n, m): fan_in_fan_out, Conv1D */
    double rank_tol;         /* relative; specs/merging.md 1 */
    size_t full_q;           /* min(m, n) of the whole layer (a core is smaller) */
    const size_t *ranks;     /* T known ranks of the D_t, or NULL */
    double noise;            /* rounding already in the views, as a norm; added to the sum's own */
} iso_deltas;

/* D_t as doubles: a pointer into the view where it already is that, else `scratch` (m, n). */
const double *iso_delta_get(const iso_deltas *d, size_t t, double *scratch);
/* M = sum_t D_t; *norms (T, may be NULL) gets |D_t|_F; *noise the size of rounding in M. */
iso_err iso_delta_sum(const iso_deltas *d, double *M, double *norms, double *noise,
                      iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

/* What was decided on the way; kept with the result. */
typedef struct {
    char route[ISO_ROUTE_TEXT]; /* "gram", "svd", "stacked", "cholesky+gram", ... */
    double rank_tol;
    size_t rank;             /* of the sum, where the method decides it; else 0 */
    double sigma;            /* common singular value (before alpha), isotropic methods */
    size_t common, per_task; /* Iso-CTS: k and p */
    size_t kept;             /* directions in the result */
    double smallest;         /* least singular value whitened (1: nothing to whiten) */
    size_t capped;           /* directions held back by the gain cap */
    double sum_norm;         /* |sum D_t|_F */
} iso_decisions;

/* D = left' right; left (c, m), right (c, n). is_ordered: rows are orthogonal on both sides and
 * their products fall, so that the first rows are the best of their number. */
typedef struct {
    size_t c;
    double *left, *right;
    bool is_ordered;
} iso_product;

typedef struct iso_method {
    const char *name, *help, *source;
    iso_method_needs needs;
    const iso_method_param *params; /* ends with name NULL */
    bool has_convention;
    void (*coefficients)(const iso_method_args *a, const double *weights, size_t T, double *out);
    iso_err (*core)(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e);
    iso_err (*dense)(const iso_deltas *d, const iso_method_args *a, double *out, iso_decisions *r,
                     iso_arena *scratch, iso_error *e); /* out (m, n) */
} iso_method;

extern const iso_method *const iso_methods[]; /* ends with NULL */
const iso_method *iso_method_find(const char *name);
/* ISO_ERR_USAGE that names the nearest method. */
iso_err iso_method_need(const char *name, const iso_method **out, iso_error *e) ISO_MUST_CHECK;

void iso_method_defaults(const iso_method *m, iso_method_args *a);
/* Unknown name or value out of range: ISO_ERR_USAGE with the range or the nearest name. */
iso_err iso_method_set(const iso_method *m, iso_method_args *a, const char *param, double value,
                       iso_error *e) ISO_MUST_CHECK;
/* Value by name; `otherwise` where the method has no such parameter. */
double iso_method_get(const iso_method *m, const iso_method_args *a, const char *param,
                      double otherwise);

#endif
