/* Symmetric positive definite systems, by Cholesky in double (LAPACK). */
#ifndef ISO_NN_HEAD_SPD_H
#define ISO_NN_HEAD_SPD_H

#include "core/err.h"

/* Every row x of X (m, n) becomes x S^-1; S (n, n) is destroyed. ISO_ERR_DATA when S is not
 * positive definite. */
iso_err iso_spd_solve_rows(size_t n, double *S, size_t m, double *X, iso_error *e) ISO_MUST_CHECK;

#endif
