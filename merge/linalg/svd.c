/* Thin SVD in double (LAPACK dgesdd; dgesvd where that does not converge).
 *
 * LAPACK is column-major: the row-major A (m, n) is its A' (n, m) = V S U', so LAPACK's U holds
 * our V and its V' our U. */
#include "merge/linalg/linalg.h"

#include <lapacke.h>
#include <string.h>

typedef struct {
    lapack_int rows, cols, q; /* of LAPACK's view: n, m, min */
    char job;                 /* 'S' thin vectors, 'N' values only */
    double *v;                /* LAPACK's U: (q, n) row-major */
    double *u;                /* LAPACK's V', leading dimension q: (m, q) row-major */
} lapack_view;

static lapack_int run_gesdd(const lapack_view *a, double *A, double *S, double *work,
                            lapack_int work_count, lapack_int *ints)
{
    return LAPACKE_dgesdd_work(LAPACK_COL_MAJOR, a->job, a->rows, a->cols, A, a->rows, S, a->v,
                               a->rows, a->u, a->q, work, work_count, ints);
}

static lapack_int run_gesvd(const lapack_view *a, double *A, double *S, double *work,
                            lapack_int work_count)
{
    return LAPACKE_dgesvd_work(LAPACK_COL_MAJOR, a->job, a->job, a->rows, a->cols, A, a->rows, S,
                               a->v, a->rows, a->u, a->q, work, work_count);
}

iso_err iso_svd(size_t m, size_t n, double *A, double *Ut, double *S, double *Vt,
                iso_arena *scratch, iso_error *e)
{
    size_t q = m < n ? m : n, bytes = m * n * sizeof *A;
    if (q == 0)
        return ISO_OK;
    double *u = NULL, *copy = iso_arena_alloc(scratch, m * n, sizeof *copy);
    lapack_int *ints = iso_arena_alloc(scratch, 8 * q, sizeof *ints);
    if (Ut)
        u = iso_arena_alloc(scratch, m * q, sizeof *u);
    if (!copy || !ints || (Ut && !u))
        return iso_nomem(e, bytes);
    memcpy(copy, A, bytes);

    lapack_view view = {(lapack_int)n, (lapack_int)m, (lapack_int)q, Ut ? 'S' : 'N', Vt, u};
    double size = 0, size_2 = 0;
    iso_blas_serial();
    lapack_int info = run_gesdd(&view, A, S, &size, -1, ints);
    if (info == 0)
        info = run_gesvd(&view, A, S, &size_2, -1);
    if (info != 0)
        return iso_fail(e, ISO_ERR_INTERNAL, "dgesdd of %zux%zu: workspace query says %d", m, n,
                        (int)info);
    size_t work_count = (size_t)(size > size_2 ? size : size_2);
    double *work = iso_arena_alloc(scratch, work_count, sizeof *work);
    if (!work)
        return iso_nomem(e, work_count * sizeof *work);

    info = run_gesdd(&view, A, S, work, (lapack_int)work_count, ints);
    if (info > 0) {
        memcpy(A, copy, bytes);
        info = run_gesvd(&view, A, S, work, (lapack_int)work_count);
    }
    if (info != 0)
        return iso_fail(e, ISO_ERR_NONFINITE,
                        "singular values of a %zux%zu matrix did not converge (%d)", m, n,
                        (int)info);
    if (Ut)
        iso_transpose(m, q, u, Ut);
    return ISO_OK;
}
