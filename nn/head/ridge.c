/* Ridge regression on one-hot targets with the penalty chosen by exact leave-one-out error.
 *
 * With centred X (n, d), Y (n, C) and an intercept that is not penalised, fitted values are linear
 * in Y by the matrix H = 1/n + X (X'X + n lambda I)^-1 X', and leaving sample i out changes its
 * residual to r_i / (1 - H_ii) exactly (Allen's PRESS; Golub, Heath, Wahba 1979). One
 * eigendecomposition serves all lambda: of X'X = V S V' when d <= n, else of X X' = U S U'. With
 * Z = X V = U S^1/2 and c = Z'Y:  H_ii = 1/n + sum_k Z_ik^2 / (s_k + n lambda),
 * fitted_i = mean(Y) + sum_k Z_ik c_k / (s_k + n lambda). */
#include "nn/head/fit.h"
#include "nn/kernel/gemm.h"

#include <lapacke.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { GRID = 19 };

typedef struct {
    const iso_fit_data *t;
    size_t m;       /* min(n, d) */
    bool is_primal; /* d <= n */
    double *Xc;     /* (n, d) centred */
    double *basis;  /* V (d, m) or U (n, m), row-major */
    double *s;      /* (m) eigenvalues */
    double *Z;      /* (n, m) */
    double *c;      /* (m, C) */
    double *xm, *ym;
} ridge;

static double target(const ridge *r, size_t i, size_t c)
{
    return (r->t->y[i] == (int)c ? 1.0 : 0.0) - r->ym[c];
}

static iso_err decompose(ridge *r, iso_error *e)
{
    size_t n = r->t->n, d = r->t->d, C = r->t->C;
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < d; j++)
            r->xm[j] += r->t->X[i * d + j] / (double)n;
    for (size_t i = 0; i < n; i++) {
        r->ym[r->t->y[i]] += 1.0 / (double)n;
        for (size_t j = 0; j < d; j++)
            r->Xc[i * d + j] = r->t->X[i * d + j] - r->xm[j];
    }
    if (r->is_primal) /* symmetric, so LAPACK's column-major reading changes nothing */
        iso_gemm_f64(true, false, d, d, n, 1, r->Xc, d, r->Xc, d, 0, r->basis, d);
    else
        iso_gemm_f64(false, true, n, n, d, 1, r->Xc, d, r->Xc, d, 0, r->basis, n);
    lapack_int info = LAPACKE_dsyevd(LAPACK_COL_MAJOR, 'V', 'U', (lapack_int)r->m, r->basis,
                                     (lapack_int)r->m, r->s);
    if (info)
        return iso_fail(e, ISO_ERR_INTERNAL, "eigenvalues of the features do not converge (%d)",
                        (int)info);
    for (size_t k = 0; k < r->m; k++)
        r->s[k] = r->s[k] > 0 ? r->s[k] : 0;
    /* LAPACK's eigenvector k is a column of its matrix, a row of ours */
    if (r->is_primal)
        iso_gemm_f64(false, true, n, r->m, d, 1, r->Xc, d, r->basis, r->m, 0, r->Z, r->m);
    else
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < r->m; k++)
                r->Z[i * r->m + k] = r->basis[k * r->m + i] * sqrt(r->s[k]);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < C; c++) {
            double y = target(r, i, c);
            for (size_t k = 0; k < r->m; k++)
                r->c[k * C + c] += r->Z[i * r->m + k] * y;
        }
    return ISO_OK;
}

/* Leave-one-out scores for one penalty; returns their mean squared error. */
static double leave_one_out(const ridge *r, double lambda, double *loo)
{
    size_t n = r->t->n, C = r->t->C, m = r->m;
    double total = 0;
    for (size_t i = 0; i < n; i++) {
        double h = 1.0 / (double)n;
        double *row = loo + i * C;
        memset(row, 0, C * sizeof *row);
        for (size_t k = 0; k < m; k++) {
            double z = r->Z[i * m + k], g = z / (r->s[k] + (double)n * lambda);
            h += z * g;
            for (size_t c = 0; c < C; c++)
                row[c] += g * r->c[k * C + c];
        }
        double keep = 1 - h > 1e-12 ? 1 - h : 1e-12;
        for (size_t c = 0; c < C; c++) {
            double left_out = (target(r, i, c) - row[c]) / keep; /* residual */
            total += left_out * left_out;
            row[c] = (r->t->y[i] == (int)c ? 1.0 : 0.0) - left_out;
        }
    }
    return total / (double)(n * C);
}

static void weights(const ridge *r, double lambda, iso_fit_head *h, double *alpha)
{
    size_t n = r->t->n, d = r->t->d, C = r->t->C, m = r->m;
    memset(h->W, 0, C * d * sizeof *h->W);
    for (size_t c = 0; c < C; c++) {
        double *w = h->W + c * d;
        if (r->is_primal) {
            for (size_t k = 0; k < m; k++) {
                double g = r->c[k * C + c] / (r->s[k] + (double)n * lambda);
                for (size_t j = 0; j < d; j++)
                    w[j] += g * r->basis[k * m + j];
            }
        } else { /* W = X' U (S + n lambda)^-1 U' Y */
            memset(alpha, 0, n * sizeof *alpha);
            for (size_t k = 0; k < m; k++) {
                double g = 0;
                for (size_t i = 0; i < n; i++)
                    g += r->basis[k * m + i] * target(r, i, c);
                g /= r->s[k] + (double)n * lambda;
                for (size_t i = 0; i < n; i++)
                    alpha[i] += g * r->basis[k * m + i];
            }
            for (size_t i = 0; i < n; i++)
                for (size_t j = 0; j < d; j++)
                    w[j] += alpha[i] * r->Xc[i * d + j];
        }
        h->b[c] = r->ym[c] - iso_fit_dot(w, r->xm, d);
    }
}

iso_err iso_fit_ridge(const iso_fit_data *train, iso_fit_head *h, double *loo, double *lambda,
                      iso_error *e)
{
    size_t n = train->n, d = train->d, C = train->C, m = n < d ? n : d;
    iso_err err;
    ridge r = {.t = train, .m = m, .is_primal = d <= n};
    double *alpha = iso_calloc(n, sizeof *alpha);
    r.Xc = iso_calloc(n * d, sizeof *r.Xc);
    r.basis = iso_calloc(m * m, sizeof *r.basis);
    r.s = iso_calloc(m, sizeof *r.s);
    r.Z = iso_calloc(n * m, sizeof *r.Z);
    r.c = iso_calloc(m * C, sizeof *r.c);
    r.xm = iso_calloc(d, sizeof *r.xm);
    r.ym = iso_calloc(C, sizeof *r.ym);
    if (!alpha || !r.Xc || !r.basis || !r.s || !r.Z || !r.c || !r.xm || !r.ym) {
        err = iso_nomem(e, n * d * sizeof *r.Xc);
        goto done;
    }
    if ((err = decompose(&r, e)))
        goto done;
    double best = HUGE_VAL;
    for (int g = 0; g < GRID; g++) { /* half decades, 1e-4 .. 1e5; features have variance 1 */
        double candidate = pow(10, -4 + 0.5 * g);
        double error = leave_one_out(&r, candidate, loo);
        if (error < best) {
            best = error;
            *lambda = candidate;
        }
    }
    (void)leave_one_out(&r, *lambda, loo);
    weights(&r, *lambda, h, alpha);
done:
    free(alpha);
    free(r.Xc);
    free(r.basis);
    free(r.s);
    free(r.Z);
    free(r.c);
    free(r.xm);
    free(r.ym);
    return err;
}
