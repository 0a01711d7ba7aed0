/* Dense linear algebra for merging, in double, over row-major matrices.
 *
 * Singular vectors are kept as rows: a thin SVD of M (m, n) is Ut (q, m), S (q), Vt (q, n) with
 * M = Ut' diag(S) Vt and q = min(m, n), so that "the first k" and "the rest" are contiguous.
 * LAPACK and BLAS run with one thread; callers run one matrix a thread (core/parallel), so results
 * do not depend on the number of threads. Scratch and results come from the caller's arena.
 * Routes and thresholds: specs/merging.md 6, specs/performance.md 5.3. */
#ifndef ISO_MERGE_LINALG_H
#define ISO_MERGE_LINALG_H

#include "core/mem.h"

/* A Gram matrix squares the condition number: below this ratio of its eigenvalues the SVD of the
 * matrix itself is taken (specs/merging.md 6). */
#define ISO_GRAM_MIN_RATIO 1e-11

/* Makes BLAS and LAPACK single-threaded for the calling thread. Called before every call of them
 * here, and by every entry of merge/; programs call it once at start as well. */
void iso_blas_serial(void);

/* ---- products (blas.c) ---- */
typedef enum { ISO_AS_IS, ISO_TRANSPOSED } iso_op;

/* C (m, n) = alpha * op(A) op(B) + beta * C; inner dimension k; ld = length of a stored row. */
void iso_la_gemm(iso_op a_op, iso_op b_op, size_t m, size_t n, size_t k, double alpha,
                 const double *A, size_t lda, const double *B, size_t ldb, double beta, double *C,
                 size_t ldc);
/* The same for a C (n, n) that is symmetric: what lies below the diagonal is left undefined. */
void iso_la_gemm_upper(iso_op a_op, iso_op b_op, size_t n, size_t k, double alpha, const double *A,
                       size_t lda, const double *B, size_t ldb, double beta, double *C, size_t ldc);
/* Copies the upper triangle of G (n, n) onto the lower one. */
void iso_mirror(size_t n, double *G, size_t ld);
/* G (m, m) = X X', or G (n, n) = X' X when transposed; both triangles filled. X is (m, n). */
void iso_gram(iso_op op, size_t m, size_t n, const double *X, double *G);
void iso_transpose(size_t m, size_t n, const double *A, double *At);
double iso_dot(const double *x, const double *y, size_t n);
double iso_norm(const double *x, size_t n); /* Frobenius */

/* ---- decompositions ---- */
/* Symmetric A (n, n), destroyed: w in descending order; row i of A becomes eigenvector i. */
iso_err iso_eigen(size_t n, double *A, double *w, iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

/* The first `count` pairs only, in rows 0 .. count - 1; w beyond them may be zero. */
iso_err iso_eigen_leading(size_t n, size_t count, double *A, double *w, iso_arena *scratch,
                          iso_error *e) ISO_MUST_CHECK;

/* Rows of E (n, n) and values w end for end. */
void iso_reverse_rows(size_t n, double *E, double *w);

/* ---- tridiagonal form (tridiagonal.c): A = Q T Q' ---- */
typedef struct {
    size_t n;
    double *d, *e, *tau; /* T's diagonal (n) and neighbours (n - 1); of the reflectors */
    const double *V;     /* where A was: reflectors */
} iso_tridiagonal;

/* A (n, n) symmetric, becomes t->V and must stay as long as t is used. */
iso_err iso_tridiagonalise(size_t n, double *A, iso_tridiagonal *t, iso_arena *scratch,
                           iso_error *e) ISO_MUST_CHECK;
/* Eigenpairs of A: rows of E (n, n), w descending. */
iso_err iso_tridiagonal_eigen(const iso_tridiagonal *t, double *E, double *w, iso_arena *scratch,
                              iso_error *e) ISO_MUST_CHECK;
/* E (count, n) becomes E Q': eigenvectors of T in rows become those of A. */
iso_err iso_tridiagonal_apply(const iso_tridiagonal *t, size_t count, double *E, iso_arena *scratch,
                              iso_error *e) ISO_MUST_CHECK;
/* Smallest and largest eigenvalue within a percent, for a positive semidefinite A; smallest <= 0
 * when it is below rounding. */
void iso_tridiagonal_extremes(const iso_tridiagonal *t, double *smallest, double *largest);
/* X (n, n) = A^-1/2 for 0 < smallest, both within a percent; *trace that of A^1/2. No eigenvector
 * is formed. Relative error about rounding times largest / smallest, as of any function of A. */
iso_err iso_tridiagonal_inverse_root(const iso_tridiagonal *t, double smallest, double largest,
                                     double *X, double *trace, iso_arena *scratch,
                                     iso_error *e) ISO_MUST_CHECK;

/* Thin SVD of A (m, n), destroyed. Ut and Vt both given or both NULL (values only). dgesdd, and
 * dgesvd where that does not converge. */
iso_err iso_svd(size_t m, size_t n, double *A, double *Ut, double *S, double *Vt,
                iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

typedef enum { ISO_ROUTE_NONE, ISO_ROUTE_GRAM, ISO_ROUTE_SVD } iso_route;
typedef enum { ISO_WISH_AUTO, ISO_WISH_GRAM, ISO_WISH_SVD } iso_route_wish;

/* What is known of a matrix after iso_thin(). */
typedef struct {
    size_t m, n, q; /* q = min(m, n) */
    double *S;      /* q, descending */
    double *Ut;     /* (q, m); by the Gram route of a tall matrix only after iso_thin_far() */
    double *Vt;     /* (q, n); by the Gram route of a wide matrix only after iso_thin_far() */
    size_t rank;    /* number of S[i] > threshold */
    double threshold;
    iso_route route;
} iso_thin;

/* M is not modified. rank: S[i] > max(S[0] * rank_tol, noise). `leading` = how many leading
 * triples the caller will use; the Gram route is taken when those are well conditioned and the
 * rank can be decided from it. */
iso_err iso_thin_svd(size_t m, size_t n, const double *M, double rank_tol, double noise,
                     size_t leading, iso_route_wish wish, iso_thin *out, iso_arena *scratch,
                     iso_error *e) ISO_MUST_CHECK;
/* What a polar factor takes: P = (M M')^-1/2, or (M' M)^-1/2 of a tall M, so that it is P M or
 * M P, and the sum of the singular values. */
typedef struct {
    double *P; /* (q, q), or NULL: not of full rank, or too ill-conditioned for a Gram matrix */
    double nuclear;
} iso_root;

/* iso_thin_svd() with leading = q for callers to whom a root serves as well: *root where M has full
 * rank beyond doubt (out->rank = q, no S), else *out as usual. */
iso_err iso_thin_root(size_t m, size_t n, const double *M, double rank_tol, double noise,
                      iso_route_wish wish, iso_root *root, iso_thin *out, iso_arena *scratch,
                      iso_error *e) ISO_MUST_CHECK;

/* Fills the far side's first `count` rows (<= rank): Vt = S^-1 Ut M, or Ut = S^-1 Vt M', each row
 * normalised and its norm stored as the better S. Nothing to do after the SVD route. */
iso_err iso_thin_far(iso_thin *t, const double *M, size_t count, iso_arena *scratch,
                     iso_error *e) ISO_MUST_CHECK;

/* Replaces the rows of X (r, n) by its polar factor over the numerical rank, V+ = (X X')^-1/2 X.
 * *smallest: least singular value kept. */
iso_err iso_polar(size_t r, size_t n, double *X, double rank_tol, double *smallest, size_t *rank,
                  iso_arena *scratch, iso_error *e) ISO_MUST_CHECK;

/* N = A^-1/2 - I of a symmetric A = E' diag(w) E, w > 0, eigenvectors in the rows of E. */
void iso_inverse_root_minus_identity(size_t n, const double *E, const double *w, double *N,
                                     double *scratch_nn);

/* ---- orthonormal bases of stacked vectors (basis.c) ---- */
typedef enum { ISO_BASIS_IDENTITY, ISO_BASIS_CHOLESKY, ISO_BASIS_HOUSEHOLDER } iso_basis_kind;

/* Row j of X (R, m) is sum_i coords[j, i] * (row i of Q), Q (k, m) with orthonormal rows. */
typedef struct {
    iso_basis_kind kind;
    size_t R, m, k;
    const double *X; /* (R, m), kept, not owned */
    double *coords;  /* (R, k); the Cholesky factor itself in that route */
    double *Q;       /* (k, m) in the Householder route, else NULL */
} iso_basis;

iso_err iso_basis_make(size_t R, size_t m, const double *X, iso_basis *out, iso_arena *scratch,
                       iso_error *e) ISO_MUST_CHECK;
/* out (c, m) = W (c, k) Q; W is destroyed. */
void iso_basis_expand(const iso_basis *b, size_t c, double *W, double *out);

#endif
