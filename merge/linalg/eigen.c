/* Symmetric eigenproblems in descending order: all of it by divide and conquer (LAPACK dstedc on
 * the tridiagonal form), or a few leading pairs (dsyevr: a third of the time for 19 of 768). */
#include "merge/linalg/linalg.h"

#include <lapacke.h>
#include <string.h>

void iso_reverse_rows(size_t n, double *E, double *w)
{
    for (size_t i = 0; i < n / 2; i++) {
        size_t k = n - 1 - i;
        double t = w[i];
        w[i] = w[k];
        w[k] = t;
        for (size_t j = 0; j < n; j++) {
            t = E[i * n + j];
            E[i * n + j] = E[k * n + j];
            E[k * n + j] = t;
        }
    }
}

/* Small problems: dsyevd, whose own reflectors cost little. */
static iso_err by_dsyevd(size_t n, double *A, double *w, iso_arena *scratch, iso_error *e)
{
    lapack_int order = (lapack_int)n, int_count = 0;
    double work_size = 0;
    iso_blas_serial();
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
    iso_reverse_rows(n, A, w); /* dsyevd sorts upwards */
    return ISO_OK;
}

iso_err iso_eigen(size_t n, double *A, double *w, iso_arena *scratch, iso_error *e)
{
    enum { BLOCKS_PAY = 160 };
    if (n == 0)
        return ISO_OK;
    if (n < BLOCKS_PAY)
        return by_dsyevd(n, A, w, scratch, e);
    iso_tridiagonal t;
    double *E = iso_arena_alloc(scratch, n * n, sizeof *E);
    if (!E)
        return iso_nomem(e, n * n * sizeof *E);
    iso_err err = iso_tridiagonalise(n, A, &t, scratch, e);
    if (!err)
        err = iso_tridiagonal_eigen(&t, E, w, scratch, e);
    if (!err)
        memcpy(A, E, n * n * sizeof *A);
    return err;
}

iso_err iso_eigen_leading(size_t n, size_t count, double *A, double *w, iso_arena *scratch,
                          iso_error *e)
{
    if (n < 256 || 4 * count > n) /* measured: nothing gained below */
        return iso_eigen(n, A, w, scratch, e);
    lapack_int order = (lapack_int)n, found = 0, int_size = 0;
    lapack_int first = order - (lapack_int)count + 1;
    double size = 0;
    double *copy = iso_arena_alloc(scratch, n * n, sizeof *copy);
    double *Z = iso_arena_alloc(scratch, n * count + 1, sizeof *Z);
    lapack_int *support = iso_arena_alloc(scratch, 2 * n, sizeof *support);
    if (!copy || !Z || !support)
        return iso_nomem(e, n * n * sizeof *copy);
    memcpy(copy, A, n * n * sizeof *copy);
    iso_blas_serial();
    lapack_int info =
        LAPACKE_dsyevr_work(LAPACK_COL_MAJOR, 'V', 'I', 'U', order, copy, order, 0, 0, first, order,
                            0, &found, w, Z, order, support, &size, -1, &int_size, -1);
    double *work = iso_arena_alloc(scratch, (size_t)size + 1, sizeof *work);
    lapack_int *ints = iso_arena_alloc(scratch, (size_t)int_size + 1, sizeof *ints);
    if (!work || !ints)
        return iso_nomem(e, (size_t)size * sizeof *work);
    if (info == 0)
        info = LAPACKE_dsyevr_work(LAPACK_COL_MAJOR, 'V', 'I', 'U', order, copy, order, 0, 0, first,
                                   order, 0, &found, w, Z, order, support, work, (lapack_int)size,
                                   ints, int_size);
    if (info != 0 || found != (lapack_int)count)
        return iso_eigen(n, A, w, scratch, e);
    for (size_t i = 0; i < count; i++) /* ascending in Z */
        memcpy(A + i * n, Z + (count - 1 - i) * n, n * sizeof *A);
    for (size_t i = 0; i < count / 2; i++) {
        double t = w[i];
        w[i] = w[count - 1 - i];
        w[count - 1 - i] = t;
    }
    for (size_t i = count; i < n; i++)
        w[i] = 0.0;
    return ISO_OK;
}
