/* Merge methods: what a method is, and the table of them. Adding one is a file here and a row in
 * registry.c; nothing else changes. Rules inside a task are methods too (merge/robust).
 *
 * A method merges the task vectors D_t = W_t - W0 of one weight (specs/merging.md 1). It says how
 * in one of four ways, and the driver (merge/layer.c) does the rest:
 *
 *   coefficients  linear, D = sum c_t D_t: on factors by stacking them
 *   core          D = left' right with few rows: serves whole matrices and, through orthonormal
 *                 bases of the stacked factors, LoRA (specs/merging.md 5)
 *   entries       entry by entry, block by block: on LoRA over blocks of the products s B A, the
 *                 result as factors again
 *   dense         whole matrices: alone, or beside core as a faster way to the same result
 *
 * A method that must have seen all tensors before it merges the first has a survey (survey.c). */
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
    bool is_whole;            /* takes whole numbers only */
    const char *const *words; /* or NULL; the value is then the index of a word */
} iso_method_param;

typedef struct {
    double value[ISO_METHOD_PARAMS]; /* in the order of the method's table */
    iso_convention convention;       /* decided: never AUTO here */
    double gain_cap;      /* guard (c) of specs/merging.md 8: s' = min(sigma, g s); 0 off */
    iso_route_wish route; /* AUTO, or one route for tests and benches */
    bool is_reference;    /* to the letter of the published code, where that differs */
    const double *votes;  /* T: the weights as they were given, for methods that divide by them;
                             NULL: all one, or not known apart from those of the deltas */
    const void *survey;   /* what the method's survey found; NULL: of the one tensor at hand */
} iso_method_args;

/* D = Bt' A: Bt (rank, m), A (rank, n). */
typedef struct {
    size_t rank;
    const double *Bt, *A;
} iso_factor;

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
    const iso_factor *factors; /* T, or NULL. Given: D_t is the product, weights already in it; the
                                  views are not looked at */
    const char *name;          /* of the tensor; may be NULL */
    size_t index;              /* of the tensor among all of the merge */
} iso_deltas;

/* D_t as doubles: a pointer into the view where it already is that, else `scratch` (m, n). */
const double *iso_delta_get(const iso_deltas *d, size_t t, double *scratch);
/* Elements first .. first + count - 1 of D_t. Of factors: whole rows only. Not transposed. */
const double *iso_delta_part(const iso_deltas *d, size_t t, size_t first, size_t count,
                             double *scratch);
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

/* A block of entries of all tasks: x[t][i] is element first + i of D_t. */
typedef struct {
    const iso_deltas *d;
    size_t T, first, count;
    double *const *x; /* may be written over */
} iso_entries;

/* Looks at all tensors of a merge, as often as it needs, before the first one is merged. Scans run
 * on any thread in any order: what they add up must not depend on it (whole numbers, or one slot a
 * tensor). */
typedef struct {
    iso_err (*begin)(const iso_method_args *a, size_t T, size_t tensors, void **state,
                     iso_arena *arena, iso_error *e);
    iso_err (*scan)(void *state, const iso_method_args *a, const iso_deltas *d, iso_arena *scratch,
                    iso_error *e);
    iso_err (*end_pass)(void *state, bool *is_done, iso_error *e);
} iso_survey;

/* Which tensors of whole models a method takes; the others are averaged (specs/merging.md 2). */
typedef enum {
    ISO_TAKES_MATRICES,
    ISO_TAKES_ALL_IF_REFERENCE, /* as published: all of a task's parameters as one vector */
    ISO_TAKES_ALL
} iso_method_takes;

typedef struct iso_method {
    const char *name, *help, *source;
    iso_method_needs needs;
    const iso_method_param *params; /* ends with name NULL */
    bool has_convention;
    bool wants_factors; /* core gets LoRA in the layer's own coordinates, as factors */
    bool has_votes;     /* weights are votes: they do not scale the updates */
    iso_method_takes takes;
    /* May be NULL. Parameters that do not fit the number of inputs: ISO_ERR_USAGE. */
    iso_err (*check)(const iso_method_args *a, size_t T, iso_error *e);
    /* May be NULL. One line into `text`, or nothing, where the result is worth a warning. */
    void (*caution)(const iso_method_args *a, size_t T, char *text, size_t text_bytes);
    const iso_survey *survey; /* may be NULL */
    void (*coefficients)(const iso_method_args *a, const double *weights, size_t T, double *out);
    iso_err (*core)(const iso_deltas *d, const iso_method_args *a, iso_product *out,
                    iso_decisions *r, iso_arena *scratch, iso_error *e);
    iso_err (*dense)(const iso_deltas *d, const iso_method_args *a, double *out, iso_decisions *r,
                     iso_arena *scratch, iso_error *e); /* out (m, n) */
    void (*entries)(const iso_entries *x, const iso_method_args *a, double *out);
} iso_method;

/* ---- product.c ---- */
/* Singular triples of D (m, n) over its rank, at most `cap` (0: all). route may be NULL. */
iso_err iso_product_of(size_t m, size_t n, const double *D, double rank_tol, double noise,
                       size_t cap, iso_product *p, char *route, iso_arena *scratch,
                       iso_error *e) ISO_MUST_CHECK;
void iso_route_of(const iso_thin *t, char *route);

/* ---- entries.c ---- */
typedef iso_err iso_entries_fn(void *ctx, const iso_entries *x, iso_error *e);
/* Entries of a task in one block. */
size_t iso_entries_block(const iso_deltas *d);
/* Calls fn for every block of d in order; ISO_ERR_NONFINITE with the input's number. */
iso_err iso_entries_walk(const iso_deltas *d, iso_entries_fn *fn, void *ctx, iso_arena *scratch,
                         iso_error *e) ISO_MUST_CHECK;
iso_err iso_entries_merge(const iso_method *m, const iso_method_args *a, const iso_deltas *d,
                          double *out, iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

/* ---- survey.c ---- */
/* Tensor i; T = 0: not one that the method merges. What it needs lives in `scratch`. */
typedef iso_err iso_deltas_fn(void *ctx, size_t i, iso_deltas *out, iso_arena *scratch,
                              iso_error *e);
struct iso_jobs;
/* Runs the method's survey over `like->count` tensors and leaves what it found in a->survey; costs,
 * scratch and stop are those of `like`. Nothing to do for a method without one. The state lives in
 * `arena`. */
iso_err iso_survey_run(const iso_method *m, iso_method_args *a, size_t T, iso_deltas_fn *get,
                       void *ctx, const struct iso_jobs *like, iso_arena *arena,
                       iso_error *e) ISO_MUST_CHECK;
/* The same over one tensor. */
iso_err iso_survey_one(const iso_method *m, iso_method_args *a, const iso_deltas *d,
                       iso_arena *arena, iso_error *e) ISO_MUST_CHECK;

extern const iso_method *const iso_methods[]; /* ends with NULL */
const iso_method *iso_method_find(const char *name);
/* ISO_ERR_USAGE that names the nearest method. */
iso_err iso_method_need(const char *name, const iso_method **out, iso_error *e) ISO_MUST_CHECK;

void iso_method_defaults(const iso_method *m, iso_method_args *a);
/* Unknown name or value out of range: ISO_ERR_USAGE with the range or the nearest name. */
iso_err iso_method_set(const iso_method *m, iso_method_args *a, const char *param, double value,
                       iso_error *e) ISO_MUST_CHECK;
/* The same from text: a number, or one of the parameter's words. */
iso_err iso_method_set_text(const iso_method *m, iso_method_args *a, const char *param,
                            const char *text, iso_error *e) ISO_MUST_CHECK;
/* The word that stands for a value, or NULL where the parameter is a number. */
const char *iso_method_word(const iso_method_param *p, double value);
/* Value by name; `otherwise` where the method has no such parameter. */
double iso_method_get(const iso_method *m, const iso_method_args *a, const char *param,
                      double otherwise);

#endif
