#include "nn/head/spd.h"

#include <lapacke.h>

iso_err iso_spd_solve_rows(size_t n, double *S, size_t m, double *X, iso_error *e)
{
    /* A row of ours is a column of LAPACK's, and S is symmetric: S x' = (x S)'. */
    lapack_int info = LAPACKE_dposv(LAPACK_COL_MAJOR, 'L', (lapack_int)n, (lapack_int)m, S,
                                    (lapack_int)n, X, (lapack_int)n);
    if (info > 0)
        return iso_fail(e, ISO_ERR_DATA, "matrix is not positive definite at row %d", (int)info);
    return info ? iso_fail(e, ISO_ERR_INTERNAL, "dposv refuses argument %d", -(int)info) : ISO_OK;
}
