/* Symmetric eigenproblem by divide and conquer (LAPACK dsyevd), in descending order. */
#include "merge/linalg/linalg.h"

#include <lapacke.h>
#include <string.h>

/* dsyevd sorts upwards; rows (its columns) are swapped end for end. */
static void reverse_order(size_t n, double *A, double *w)
{
    for (size_t i = 0; i < n / 2; i++) {
        size_t k = n - 1 - i;
        double t = w[i];
        w[i] = w[k];
        w[k] = t;
        for (size_t j = 0; j < n; j++) {
            t = A[i * n + j];
            A[i * n + j] = A[k * n + j];
            A[k * n + j] = t;
        }
    }
}

iso_err iso_eigen(size_t n, double *A, double *w, iso_arena *scratch, iso_error *e)
{
    if (n == 0)
        return ISO_OK;
    lapack_int order = (lapack_int)n, int_count = 0;
    double work_size = 0;
    lapack_int info = LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'U', order, A, order, w,
                                          &work_size, -1, &int_count, -1);
    if (info != 0)
        return iso_fail(e, ISO_ERR_INTERNAL, "dsyevd of order %zu: workspace query says %d", n,
                        (int)info);
    size_t work_count = (size_t)work_size;
    double *work = iso_arena_alloc(scratch, work_count, sizeof *work);
    lapack_int *ints = iso_arena_alloc(scratch, (size_t)int_count, sizeof *ints);
    if (!work || !ints)
        return iso_nomem(e, work_count * sizeof *work);
    info = LAPACKE_dsyevd_work(LAPACK_COL_MAJOR, 'V', 'U', order, A, order, w, work,
                               (lapack_int)work_count, ints, int_count);
    if (info != 0)
        return iso_fail(e, ISO_ERR_NONFINITE,
                        "eigenproblem of order %zu did not converge (dsyevd %d)", n, (int)info);
    reverse_order(n, A, w);
    return ISO_OK;
}
