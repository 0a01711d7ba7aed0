/* Symmetric A = Q T Q' with T tridiagonal (LAPACK dsytrd), and what follows from it: eigenpairs by
 * divide and conquer (dstedc), and the inverse square root without any eigenvector.
 *
 * Q is a product of reflectors, kept as LAPACK left them, one a row; it is applied in blocks
 * I - V' F V (Schreiber and Van Loan 1989) with our own products: dormtr took as long as the whole
 * rest of the eigenproblem. The inverse root is a sum over shifts s of c (T + s)^-1, with shifts
 * and weights of Hale, Higham and Trefethen 2008 (method 3: elliptic functions), which converges at
 * 2 pi^2 / (log(condition) + 3) a term. A shifted tridiagonal inverse has closed-form columns, so
 * each term costs n^2 operations. */
#include "merge/linalg/linalg.h"

#include "core/simd.h"

#include <float.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

enum { BLOCK = 96, STRIP = 64, MAX_TERMS = 128 };

iso_err iso_tridiagonalise(size_t n, double *A, iso_tridiagonal *t, iso_arena *scratch,
                           iso_error *e)
{
    *t = (iso_tridiagonal){.n = n, .V = A};
    t->d = iso_arena_alloc(scratch, n + 1, sizeof *t->d);
    t->e = iso_arena_calloc(scratch, n + 1, sizeof *t->e);
    t->tau = iso_arena_calloc(scratch, n + 1, sizeof *t->tau);
    if (!t->d || !t->e || !t->tau)
        return iso_nomem(e, 3 * n * sizeof *t->d);
    if (n == 0)
        return ISO_OK;
    lapack_int order = (lapack_int)n;
    double size = 0;
    iso_blas_serial();
    lapack_int info =
        LAPACKE_dsytrd_work(LAPACK_COL_MAJOR, 'L', order, A, order, t->d, t->e, t->tau, &size, -1);
    double *work = iso_arena_alloc(scratch, (size_t)size + 1, sizeof *work);
    if (!work)
        return iso_nomem(e, (size_t)size * sizeof *work);
    if (info == 0)
        info = LAPACKE_dsytrd_work(LAPACK_COL_MAJOR, 'L', order, A, order, t->d, t->e, t->tau, work,
                                   (lapack_int)size);
    return info == 0 ? ISO_OK
                     : iso_fail(e, ISO_ERR_INTERNAL, "dsytrd of order %zu says %d", n, (int)info);
}

/* ---- Q ---- */
/* Reflectors j .. j + b - 1: V (b, w) over columns first .. n - 1, and F with
 * H_j .. H_{j+b-1} = I - V' F V (F upper triangular). */
typedef struct {
    size_t b, first, w;
    double *V, *F, *S; /* (b, w), (b, b) twice */
} block;

static void block_make(const iso_tridiagonal *t, size_t j, block *k)
{
    size_t n = t->n;
    k->b = n - 1 - j < BLOCK ? n - 1 - j : BLOCK;
    k->first = j + 1;
    k->w = n - k->first;
    for (size_t i = 0; i < k->b; i++) {
        double *row = k->V + i * k->w;
        memset(row, 0, i * sizeof *row);
        row[i] = 1.0;
        memcpy(row + i + 1, t->V + (j + i) * n + j + i + 2, (k->w - i - 1) * sizeof *row);
    }
    iso_la_gemm_upper(ISO_AS_IS, ISO_TRANSPOSED, k->b, k->w, 1.0, k->V, k->w, k->V, k->w, 0.0, k->S,
                      k->b);
    memset(k->F, 0, k->b * k->b * sizeof *k->F);
    for (size_t i = 0; i < k->b; i++) {
        double tau = t->tau[j + i];
        k->F[i * k->b + i] = tau;
        for (size_t r = 0; r < i; r++) {
            double sum = 0.0;
            for (size_t c = r; c < i; c++)
                sum += k->F[r * k->b + c] * k->S[c * k->b + i];
            k->F[r * k->b + i] = -tau * sum;
        }
    }
}

static iso_err block_room(size_t n, block *k, iso_arena *scratch, iso_error *e)
{
    k->V = iso_arena_alloc(scratch, BLOCK * n + 1, sizeof *k->V);
    k->F = iso_arena_alloc(scratch, BLOCK * BLOCK, sizeof *k->F);
    k->S = iso_arena_alloc(scratch, BLOCK * BLOCK, sizeof *k->S);
    return k->V && k->F && k->S ? ISO_OK : iso_nomem(e, BLOCK * n * sizeof *k->V);
}

/* Start of the last block; blocks begin at multiples of BLOCK. */
static size_t last_block(size_t n)
{
    return n < 2 ? 0 : (n - 2) / BLOCK * BLOCK;
}

iso_err iso_tridiagonal_apply(const iso_tridiagonal *t, size_t count, double *E, iso_arena *scratch,
                              iso_error *e)
{
    size_t n = t->n;
    block k = {0};
    double *W = iso_arena_alloc(scratch, 2 * count * BLOCK + 1, sizeof *W);
    iso_err err = block_room(n, &k, scratch, e);
    if (err || !W)
        return err ? err : iso_nomem(e, 2 * count * BLOCK * sizeof *W);
    double *WF = W + count * BLOCK;
    for (size_t j = last_block(n), more = n >= 2; more; more = j > 0, j -= more ? BLOCK : 0) {
        block_make(t, j, &k);
        iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, count, k.b, k.w, 1.0, E + k.first, n, k.V, k.w, 0.0,
                    W, k.b);
        iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, count, k.b, k.b, 1.0, W, k.b, k.F, k.b, 0.0, WF,
                    k.b);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, count, k.w, k.b, -1.0, WF, k.b, k.V, k.w, 1.0,
                    E + k.first, n);
    }
    return ISO_OK;
}

/* X (n, n), both triangles, becomes Q X Q'. With Z = X V' F' - V' (F V X V' F') / 2 a block changes
 * X by - V' Z' - Z V: rows before the block on one side only, the rest symmetrically. */
static iso_err conjugate(const iso_tridiagonal *t, double *X, iso_arena *scratch, iso_error *e)
{
    size_t n = t->n;
    block k = {0};
    double *Y = iso_arena_alloc(scratch, n * BLOCK + 1, sizeof *Y),
           *Z = iso_arena_alloc(scratch, n * BLOCK + 1, sizeof *Z);
    double *S = iso_arena_alloc(scratch, 2 * BLOCK * BLOCK, sizeof *S);
    iso_err err = block_room(n, &k, scratch, e);
    if (err || !Y || !Z || !S)
        return err ? err : iso_nomem(e, 2 * n * BLOCK * sizeof *Y);
    double *half = S + BLOCK * BLOCK;
    for (size_t j = last_block(n), more = n >= 2; more; more = j > 0, j -= more ? BLOCK : 0) {
        block_make(t, j, &k);
        size_t b = k.b, f = k.first, w = k.w;
        double *corner = X + f * n + f;
        iso_mirror(w, corner, n); /* the later blocks changed the upper triangle only */
        iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, n, b, w, 1.0, X + f, n, k.V, w, 0.0, Y, b);
        iso_la_gemm(ISO_AS_IS, ISO_TRANSPOSED, n, b, b, 1.0, Y, b, k.F, b, 0.0, Z, b);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, b, b, w, 0.5, k.V, w, Z + f * b, b, 0.0, S, b);
        iso_la_gemm(ISO_AS_IS, ISO_AS_IS, b, b, b, 1.0, k.F, b, S, b, 0.0, half, b);
        if (f > 0) /* columns of the earlier rows; V is zero there */
            iso_la_gemm(ISO_AS_IS, ISO_AS_IS, f, w, b, -1.0, Z, b, k.V, w, 1.0, X + f, n);
        iso_la_gemm(ISO_TRANSPOSED, ISO_AS_IS, w, b, b, -1.0, k.V, w, half, b, 1.0, Z + f * b, b);
        iso_la_gemm_upper(ISO_AS_IS, ISO_AS_IS, w, b, -1.0, Z + f * b, b, k.V, w, 1.0, corner, n);
        iso_la_gemm_upper(ISO_TRANSPOSED, ISO_TRANSPOSED, w, b, -1.0, k.V, w, Z + f * b, b, 1.0,
                          corner, n);
    }
    iso_mirror(n, X, n);
    return ISO_OK;
}

/* ---- eigenpairs ---- */
iso_err iso_tridiagonal_eigen(const iso_tridiagonal *t, double *E, double *w, iso_arena *scratch,
                              iso_error *e)
{
    size_t n = t->n;
    if (n == 0)
        return ISO_OK;
    lapack_int order = (lapack_int)n, int_size = 0;
    double size = 0, *off = iso_arena_alloc(scratch, n, sizeof *off);
    if (!off)
        return iso_nomem(e, n * sizeof *off);
    memcpy(w, t->d, n * sizeof *w);
    memcpy(off, t->e, n * sizeof *off);
    iso_blas_serial();
    lapack_int info = LAPACKE_dstedc_work(LAPACK_COL_MAJOR, 'I', order, w, off, E, order, &size, -1,
                                          &int_size, -1);
    double *work = iso_arena_alloc(scratch, (size_t)size + 1, sizeof *work);
    lapack_int *ints = iso_arena_alloc(scratch, (size_t)int_size + 1, sizeof *ints);
    if (!work || !ints)
        return iso_nomem(e, (size_t)size * sizeof *work);
    if (info == 0)
        info = LAPACKE_dstedc_work(LAPACK_COL_MAJOR, 'I', order, w, off, E, order, work,
                                   (lapack_int)size, ints, int_size);
    if (info != 0)
        return iso_fail(e, ISO_ERR_NONFINITE,
                        "eigenproblem of order %zu did not converge (dstedc %d)", n, (int)info);
    iso_reverse_rows(n, E, w); /* dstedc sorts upwards */
    return iso_tridiagonal_apply(t, n, E, scratch, e);
}

/* ---- eigenvalues without eigenvectors ---- */
/* How many eigenvalues of T are below x (Sturm). */
static size_t count_below(const iso_tridiagonal *t, double x)
{
    size_t below = 0;
    double q = 1.0;
    for (size_t i = 0; i < t->n; i++) {
        double off = i ? t->e[i - 1] : 0.0;
        q = t->d[i] - x - (i ? off * off / q : 0.0);
        if (fabs(q) < DBL_MIN)
            q = -DBL_MIN;
        below += q < 0.0;
    }
    return below;
}

/* The k-th smallest eigenvalue (k from 0), to a relative 1e-3 or 2^-60 of the largest. */
static double eigenvalue(const iso_tridiagonal *t, size_t k, double low, double high)
{
    enum { STEPS = 64 };
    double floor = high * 0x1p-60;
    for (int i = 0; i < STEPS && high - low > 1e-3 * fabs(high) && high > floor; i++) {
        double middle = low > 0.0 && high > 4.0 * low ? sqrt(low * high) : 0.5 * (low + high);
        if (count_below(t, middle) > k)
            high = middle;
        else
            low = middle;
    }
    return 0.5 * (low + high);
}

void iso_tridiagonal_extremes(const iso_tridiagonal *t, double *smallest, double *largest)
{
    double low = 0.0, high = 0.0;
    for (size_t i = 0; i < t->n; i++) { /* Gershgorin */
        double radius = (i ? fabs(t->e[i - 1]) : 0.0) + (i + 1 < t->n ? fabs(t->e[i]) : 0.0);
        low = fmin(low, t->d[i] - radius);
        high = fmax(high, t->d[i] + radius);
    }
    *largest = *smallest = 0.0;
    if (t->n == 0 || !(high > 0.0) || !isfinite(high))
        return;
    *largest = eigenvalue(t, t->n - 1, 0.0, high);
    double floor = *largest * 1e-16;
    *smallest = count_below(t, floor) ? fmin(0.0, low) : eigenvalue(t, 0, floor, high);
}

/* ---- inverse square root ---- */
typedef struct {
    size_t count;
    double shift[MAX_TERMS], weight[MAX_TERMS];
} terms;

/* sn, cn, dn (u | 1 - k2) by descending Landen transformations. */
static void elliptic(double u, double k2, double *sn, double *cn, double *dn)
{
    enum { DEPTH = 16 };
    double a[DEPTH + 1], c[DEPTH + 1], b = sqrt(k2), power = 1.0;
    int n = 0;
    a[0] = 1.0;
    c[0] = sqrt(1.0 - k2);
    while (n < DEPTH && fabs(c[n]) > 1e-17 * a[n]) {
        a[n + 1] = 0.5 * (a[n] + b);
        c[n + 1] = 0.5 * (a[n] - b);
        b = sqrt(a[n] * b);
        power *= 2.0;
        n++;
    }
    double phi = power * a[n] * u;
    for (; n > 0; n--)
        phi = 0.5 * (phi + asin(c[n] / a[n] * sin(phi)));
    *sn = sin(phi);
    *cn = cos(phi);
    *dn = sqrt(*cn * *cn + k2 * *sn * *sn);
}

static double agm(double a, double b)
{
    for (int i = 0; i < 40 && fabs(a - b) > 1e-16 * a; i++) {
        double mean = 0.5 * (a + b);
        b = sqrt(a * b);
        a = mean;
    }
    return a;
}

/* x^-1/2 = sum weight / (x + shift) on [low, high], to about rounding. */
static void terms_make(double low, double high, terms *s)
{
    const double pi = 3.14159265358979323846, wanted = 34.0; /* -log of the error */
    double k2 = low / high, n = ceil(wanted * (log(1.0 / k2) + 3.0) / (2.0 * pi * pi));
    s->count = n < MAX_TERMS ? (size_t)n : MAX_TERMS;
    double K = 0.5 * pi / agm(1.0, sqrt(k2));
    for (size_t j = 0; j < s->count; j++) {
        double sn, cn, dn;
        elliptic(((double)j + 0.5) * K / (double)s->count, k2, &sn, &cn, &dn);
        s->shift[j] = low * (sn / cn) * (sn / cn);
        s->weight[j] = 2.0 * K * sqrt(low) / (pi * (double)s->count) * dn / (cn * cn);
    }
}

/* Columns of one shifted inverse: X_jj = diagonal[j], X_ij = X_i,j-1 ratio[j] for i < j. */
static void shifted_inverse(const iso_tridiagonal *t, double shift, double *diagonal, double *ratio)
{
    size_t n = t->n;
    ratio[0] = 0.0;
    double after = t->d[n - 1] + shift; /* pivots from the end */
    diagonal[n - 1] = after;
    for (size_t j = n - 1; j > 0; j--) {
        ratio[j] = -t->e[j - 1] / after;
        after = t->d[j - 1] + shift + t->e[j - 1] * ratio[j];
        diagonal[j - 1] = after;
    }
    double before = 0.0; /* e^2 / pivot from the start */
    for (size_t j = 0; j < n; j++) {
        double pivot = t->d[j] + shift - before;
        diagonal[j] = 1.0 / (diagonal[j] - before);
        before = t->e[j] * t->e[j] / pivot;
    }
}

/* row[0 .. STRIP) of every term times its ratio, summed up with weights into out. */
ISO_CLONES static void advance(size_t count, double *x, const double *ratio, const double *weight,
                               double *out)
{
    double sum[STRIP];
    for (size_t i = 0; i < STRIP; i++)
        sum[i] = 0.0;
    for (size_t s = 0; s < count; s++) {
        double r = ratio[s], w = weight[s], *row = x + s * STRIP;
#pragma omp simd
        for (size_t i = 0; i < STRIP; i++) {
            row[i] *= r;
            sum[i] += w * row[i];
        }
    }
    for (size_t i = 0; i < STRIP; i++)
        out[i] = sum[i];
}

/* Far from the diagonal a term dies out; it goes before its numbers become denormal. */
static size_t drop_dead(size_t count, double *x, size_t *which)
{
    size_t kept = 0;
    for (size_t s = 0; s < count; s++) {
        double largest = 0.0;
        for (size_t i = 0; i < STRIP; i++)
            largest = fmax(largest, fabs(x[s * STRIP + i]));
        if (largest < 1e-200)
            continue;
        if (kept != s)
            memcpy(x + kept * STRIP, x + s * STRIP, STRIP * sizeof *x);
        which[kept++] = which[s];
    }
    return kept;
}

/* X = T^-1/2 (n, n), rows j, columns i <= j; strips of columns i so that all terms fit the cache.
 * diagonals and ratios are (n, count). */
static void sum_terms(size_t n, const terms *s, const double *diagonals, const double *ratios,
                      double *x, double *X)
{
    enum { CHECK = 16 };
    double row[STRIP], ratio[MAX_TERMS], weight[MAX_TERMS];
    size_t which[MAX_TERMS];
    for (size_t i0 = 0; i0 < n; i0 += STRIP) {
        size_t width = n - i0 < STRIP ? n - i0 : STRIP, count = s->count;
        memset(x, 0, count * STRIP * sizeof *x);
        for (size_t k = 0; k < count; k++)
            which[k] = k;
        for (size_t j = i0; j < n; j++) {
            bool is_start = j < i0 + width;
            if (!is_start && j % CHECK == 0)
                count = drop_dead(count, x, which);
            for (size_t k = 0; k < count; k++) {
                ratio[k] = ratios[j * s->count + which[k]];
                weight[k] = s->weight[which[k]];
            }
            advance(count, x, ratio, weight, row);
            if (is_start) {
                double sum = 0.0;
                for (size_t k = 0; k < count; k++) {
                    x[k * STRIP + j - i0] = diagonals[j * s->count + k];
                    sum += weight[k] * diagonals[j * s->count + k];
                }
                row[j - i0] = sum;
            }
            memcpy(X + j * n + i0, row, (is_start ? j - i0 + 1 : width) * sizeof *X);
        }
    }
}

iso_err iso_tridiagonal_inverse_root(const iso_tridiagonal *t, double smallest, double largest,
                                     double *X, double *trace, iso_arena *scratch, iso_error *e)
{
    size_t n = t->n;
    terms s;
    terms_make(0.99 * smallest, 1.01 * largest, &s);
    double *D = iso_arena_alloc(scratch, 2 * n * s.count + 1, sizeof *D);
    double *one = iso_arena_alloc(scratch, 2 * n + 1, sizeof *one);
    double *x = iso_arena_alloc(scratch, s.count * STRIP, sizeof *x);
    if (!D || !one || !x)
        return iso_nomem(e, 2 * n * s.count * sizeof *D);
    double *R = D + n * s.count;
    for (size_t k = 0; k < s.count; k++) {
        shifted_inverse(t, s.shift[k], one, one + n);
        for (size_t j = 0; j < n; j++) {
            D[j * s.count + k] = one[j];
            R[j * s.count + k] = one[n + j];
        }
    }
    sum_terms(n, &s, D, R, x, X);
    *trace = 0.0; /* of T^1/2 = T T^-1/2 */
    for (size_t j = 0; j < n; j++) {
        *trace += t->d[j] * X[j * n + j];
        if (j > 0)
            *trace += 2.0 * t->e[j - 1] * X[j * n + j - 1];
        for (size_t i = 0; i < j; i++)
            X[i * n + j] = X[j * n + i];
    }
    return conjugate(t, X, scratch, e);
}
