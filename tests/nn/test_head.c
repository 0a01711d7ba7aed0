/* Linear heads: scores, files, the shared head; probes against direct computation. */
#include "core/json.h"
#include "core/parallel.h"
#include "core/rng.h"
#include "core/safetensors.h"
#include "nn/head/fit.h"
#include "nn/head/probe.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

enum { D = 6, C = 3, N_MAX = 400 };
static const char *const names[C] = {"dent", "ok", "scratch"};

typedef struct {
    float x[N_MAX * D];
    int y[N_MAX];
    iso_feature_set set;
} samples;

/* Clouds around class centres, features of different scales and offsets. */
static void draw(samples *s, size_t n, double spread, uint64_t seed)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < n; i++) {
        s->y[i] = (int)(i % C);
        for (size_t j = 0; j < D; j++) {
            double centre = (int)(j % C) == s->y[i] ? 1 : 0;
            double scale = 1 + (double)(j * j);
            s->x[i * D + j] =
                (float)(scale * (centre + spread * iso_rng_normal(&r)) + 10 * (double)j);
        }
    }
    s->set = (iso_feature_set){s->x, s->y, n};
}

static void close_to(double got, double want, double slack)
{
    if (!(fabs(got - want) <= slack))
        fail_msg("%.12g instead of %.12g", got, want);
}

/* ---- linear ---- */

static iso_linear_head sample_head(void)
{
    iso_linear_head h;
    iso_error e;
    assert_int_equal(iso_linear_init(&h, C, D, names, &e), ISO_OK);
    iso_rng r = iso_rng_make(3, ISO_RNG_TEST, 1);
    for (size_t i = 0; i < C * D; i++)
        h.W[i] = (float)iso_rng_normal(&r);
    for (size_t c = 0; c < C; c++)
        h.b[c] = (float)iso_rng_normal(&r);
    return h;
}

static void logits_and_predictions(void **state)
{
    (void)state;
    samples s;
    float logits[90 * C];
    int labels[90];
    size_t right = 0;
    iso_linear_head h = sample_head();
    draw(&s, 90, 0.5, 1);
    iso_linear_logits(&h, s.x, 90, logits);
    iso_linear_predict(&h, s.x, 90, labels);
    for (size_t i = 0; i < 90; i++) {
        size_t best = 0;
        for (size_t c = 0; c < C; c++) {
            double z = (double)h.b[c];
            for (size_t j = 0; j < D; j++)
                z += (double)h.W[c * D + j] * (double)s.x[i * D + j];
            close_to((double)logits[i * C + c], z, 1e-5 * (1 + fabs(z)));
            if (logits[i * C + c] > logits[i * C + best])
                best = c;
        }
        assert_int_equal(labels[i], best);
        right += labels[i] == s.y[i];
    }
    close_to(iso_linear_accuracy(&h, s.x, s.y, 90), (double)right / 90, 1e-12);
    iso_linear_free(&h);
}

static void files_round_trip(void **state)
{
    (void)state;
    iso_error e;
    iso_buf b = {0};
    iso_linear_head h = sample_head(), back;
    assert_int_equal(iso_linear_save_buf(&h, &b, &e), ISO_OK);
    assert_int_equal(iso_linear_parse(&back, b.data, b.size, "head", &e), ISO_OK);
    assert_int_equal(back.classes, C);
    assert_int_equal(back.dim, D);
    assert_memory_equal(back.W, h.W, C * D * sizeof *h.W);
    assert_memory_equal(back.b, h.b, C * sizeof *h.b);
    for (size_t c = 0; c < C; c++)
        assert_string_equal(back.class_names[c], names[c]);
    iso_linear_free(&back);
    char path[] = "/tmp/iso-head-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(iso_linear_save(&h, path, &e), ISO_OK);
    assert_int_equal(iso_linear_load(&back, path, &e), ISO_OK);
    assert_memory_equal(back.W, h.W, C * D * sizeof *h.W);
    iso_linear_free(&back);
    unlink(path);
    for (size_t n = 0; n < b.size; n += 5)
        assert_int_not_equal(iso_linear_parse(&back, b.data, n, "head", &e), ISO_OK);
    iso_linear_free(&h);
    iso_buf_free(&b);
}

static void bad_files_are_named(void **state)
{
    (void)state;
    float w[2 * 2] = {1, 2, 3, 4}, bias[2] = {0, 0}, bad[4] = {1, 2, (float)NAN, 4};
    static const struct {
        const char *format, *version, *classes;
        size_t rows;
        bool is_nan;
        iso_err err;
        const char *wanted;
    } rows[] = {
        {"isofed-head", "1", "[\"a\",\"b\"]", 2, false, ISO_OK, ""},
        {"other", "1", "[\"a\",\"b\"]", 2, false, ISO_ERR_DATA, "not a head"},
        {"isofed-head", "9", "[\"a\",\"b\"]", 2, false, ISO_ERR_DATA, "version 9"},
        {"isofed-head", "1", "[\"a\"]", 2, false, ISO_ERR_SHAPE, "class names"},
        {"isofed-head", "1", "[\"a\",\"a\"]", 2, false, ISO_ERR_DATA, "twice"},
        {"isofed-head", "1", "[\"a\",3]", 2, false, ISO_ERR_DATA, "class name 1"},
        {"isofed-head", "1", "[\"a\",\"b\"]", 1, false, ISO_ERR_SHAPE, "bias"},
        {"isofed-head", "1", "[\"a\",\"b\"]", 2, true, ISO_ERR_NONFINITE, "finite"},
        {"isofed-head", "1", "[\"a\",", 2, false, ISO_ERR_DATA, "head"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_buf b = {0};
        iso_error e;
        iso_linear_head h;
        iso_named_tensor t[2] = {
            {"bias", {.dtype = ISO_F32, .ndim = 1, .shape = {rows[i].rows}, .data = bias}},
            {"weight",
             {.dtype = ISO_F32, .ndim = 2, .shape = {2, 2}, .data = rows[i].is_nan ? bad : w}}};
        const char *meta[] = {"format",        rows[i].format, "version",
                              rows[i].version, "classes",      rows[i].classes};
        assert_int_equal(iso_safetensors_write_buf(&b, t, 2, meta, 3, &e), ISO_OK);
        iso_err err = iso_linear_parse(&h, b.data, b.size, "head", &e);
        if (err != rows[i].err || (err && !strstr(e.text, rows[i].wanted)))
            fail_msg("row %zu: %s \"%s\"", i, iso_err_name(err), err ? e.text : "");
        iso_linear_free(&h);
        iso_buf_free(&b);
    }
}

static void A4_shared_head_is_weighted_class_by_class_and_by_name(void **state)
{
    (void)state;
    iso_error e;
    iso_linear_head a = sample_head(), b, out;
    const char *other[2] = {"scratch", "dent"}; /* another order, and no "ok" */
    assert_int_equal(iso_linear_init(&b, 2, D, other, &e), ISO_OK);
    for (size_t i = 0; i < 2 * D; i++)
        b.W[i] = (float)i;
    b.b[0] = 5;
    b.b[1] = 6;
    const double na[C] = {10, 4, 0}, nb[2] = {7, 30};
    iso_head_part parts[2] = {{&a, na}, {&b, nb}};
    assert_int_equal(iso_linear_mean(&out, parts, 2, names, C, &e), ISO_OK);
    for (size_t j = 0; j < D; j++) {
        close_to((double)out.W[j], (10 * (double)a.W[j] + 30 * (double)b.W[D + j]) / 40, 1e-6);
        close_to((double)out.W[D + j], (double)a.W[D + j], 0);
        close_to((double)out.W[2 * D + j], (double)b.W[j], 0);
    }
    close_to((double)out.b[0], (10 * (double)a.b[0] + 30 * 6) / 40, 1e-6);
    close_to((double)out.b[2], 5, 0);
    iso_linear_free(&out);
    const double none[2] = {0, 30};
    parts[1].counts = none;
    assert_int_equal(iso_linear_mean(&out, parts, 2, names, C, &e), ISO_ERR_DATA);
    assert_non_null(strstr(e.text, "\"scratch\""));
    iso_linear_free(&a);
    iso_linear_free(&b);
}

/* ---- ridge ---- */

/* Plain Gaussian elimination with pivoting: A (n, n) x = B (n, m), in place. */
static void solve(double *A, double *B, size_t n, size_t m)
{
    for (size_t k = 0; k < n; k++) {
        size_t p = k;
        for (size_t i = k + 1; i < n; i++)
            if (fabs(A[i * n + k]) > fabs(A[p * n + k]))
                p = i;
        for (size_t j = 0; j < n; j++) {
            double t = A[k * n + j];
            A[k * n + j] = A[p * n + j];
            A[p * n + j] = t;
        }
        for (size_t j = 0; j < m; j++) {
            double t = B[k * m + j];
            B[k * m + j] = B[p * m + j];
            B[p * m + j] = t;
        }
        for (size_t i = 0; i < n; i++) {
            if (i == k)
                continue;
            double f = A[i * n + k] / A[k * n + k];
            for (size_t j = 0; j < n; j++)
                A[i * n + j] -= f * A[k * n + j];
            for (size_t j = 0; j < m; j++)
                B[i * m + j] -= f * B[k * m + j];
        }
    }
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < m; j++)
            B[i * m + j] /= A[i * n + i];
}

/* Ridge without sample `skip` (SIZE_MAX: with all), by the normal equations with the intercept as
 * an unpenalised column; penalty as an absolute number. Scores of sample `at`. */
static void direct_ridge(const iso_fit_data *t, size_t skip, double penalty, const double *at,
                         double *scores)
{
    size_t m = t->d + 1;
    double *A = calloc(m * m, sizeof *A), *B = calloc(m * t->C, sizeof *B);
    assert_non_null(A);
    assert_non_null(B);
    for (size_t i = 0; i < t->n; i++) {
        if (i == skip)
            continue;
        for (size_t a = 0; a < m; a++) {
            double xa = a < t->d ? t->X[i * t->d + a] : 1;
            for (size_t b = 0; b < m; b++)
                A[a * m + b] += xa * (b < t->d ? t->X[i * t->d + b] : 1);
            B[a * t->C + (size_t)t->y[i]] += xa;
        }
    }
    for (size_t a = 0; a < t->d; a++)
        A[a * m + a] += penalty;
    solve(A, B, m, t->C);
    for (size_t c = 0; c < t->C; c++) {
        scores[c] = B[t->d * t->C + c];
        for (size_t j = 0; j < t->d; j++)
            scores[c] += at[j] * B[j * t->C + c];
    }
    free(A);
    free(B);
}

static void ridge_leaves_one_out_exactly(void **state)
{
    (void)state;
    static const struct {
        size_t n, d;
    } shapes[] = {{30, 6}, {10, 20}, {12, 12}, {5, 4}};
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        size_t n = shapes[k].n, d = shapes[k].d;
        double X[30 * 20], W[C * 20], b[C], loo[30 * C], want[C], lambda = 0;
        int y[30];
        iso_error e;
        iso_rng r = iso_rng_make(k, ISO_RNG_TEST, 2);
        for (size_t i = 0; i < n; i++) {
            y[i] = (int)(i % C);
            for (size_t j = 0; j < d; j++)
                X[i * d + j] = iso_rng_normal(&r) + ((int)(j % C) == y[i] ? 1.5 : 0) + 0.3;
        }
        iso_fit_data t = {X, y, n, d, C};
        iso_fit_head h = {W, b};
        assert_int_equal(iso_fit_ridge(&t, &h, loo, &lambda, &e), ISO_OK);
        assert_true(lambda > 0);
        double error = 0;
        for (size_t i = 0; i < n; i++) {
            direct_ridge(&t, i, lambda * (double)n, X + i * d, want);
            for (size_t c = 0; c < C; c++) {
                close_to(loo[i * C + c], want[c], 1e-7);
                double residual = (y[i] == (int)c) - want[c];
                error += residual * residual;
            }
            direct_ridge(&t, SIZE_MAX, lambda * (double)n, X + i * d, want);
            for (size_t c = 0; c < C; c++)
                close_to(iso_fit_dot(W + c * d, X + i * d, d) + b[c], want[c], 1e-7);
        }
        for (int g = -1; g <= 1; g += 2) { /* its neighbours on the grid are no better */
            double other = 0, penalty = lambda * pow(10, 0.5 * g) * (double)n;
            for (size_t i = 0; i < n; i++) {
                direct_ridge(&t, i, penalty, X + i * d, want);
                for (size_t c = 0; c < C; c++) {
                    double residual = (y[i] == (int)c) - want[c];
                    other += residual * residual;
                }
            }
            assert_true(other >= error - 1e-9);
        }
    }
}

/* ---- probes ---- */

static void probes_separate_what_can_be_separated(void **state)
{
    (void)state;
    samples train, val;
    draw(&train, 120, 0.35, 4);
    draw(&val, 90, 0.35, 5);
    for (int k = ISO_PROBE_RIDGE; k <= ISO_PROBE_MEANS; k++)
        for (int with_val = 0; with_val < 2; with_val++) {
            iso_linear_head h;
            iso_probe_info info;
            iso_error e;
            assert_int_equal(iso_probe_fit(&h, (iso_probe_kind)k, &train.set,
                                           with_val ? &val.set : NULL, D, names, C, &info, &e),
                             ISO_OK);
            double accuracy = iso_linear_accuracy(&h, val.x, val.y, 90);
            if (accuracy < 0.9)
                fail_msg("%s: %g", iso_probe_kind_name((iso_probe_kind)k), accuracy);
            if (with_val)
                close_to(info.val_accuracy, accuracy, 1e-12);
            else
                assert_true(isnan(info.val_accuracy));
            assert_true(info.train_loss > 0 && info.train_loss < log(3));
            assert_true(isnan(info.loo_accuracy) == (k == ISO_PROBE_LOGISTIC));
            iso_linear_free(&h);
        }
}

/* What the fixed head is for: with more features than images any images can be fitted, and the
 * adapter would get no gradient; the left-out scores keep the head modest. */
static void fixed_head_leaves_a_gradient_on_noise(void **state)
{
    (void)state;
    enum { WIDE = 64, N = 30 };
    float x[N * WIDE];
    int y[N];
    iso_rng r = iso_rng_make(9, ISO_RNG_TEST, 3);
    for (size_t i = 0; i < N; i++) {
        y[i] = (int)(i % C);
        for (size_t j = 0; j < WIDE; j++)
            x[i * WIDE + j] = (float)iso_rng_normal(&r);
    }
    iso_feature_set set = {x, y, N};
    iso_linear_head h;
    iso_probe_info info;
    iso_error e;
    assert_int_equal(iso_probe_fit(&h, ISO_PROBE_RIDGE, &set, NULL, WIDE, names, C, &info, &e),
                     ISO_OK);
    assert_true(info.train_loss > 0.5 * log(3));
    iso_linear_free(&h);
}

/* Gradient of the logistic objective at its result, by its definition. */
static void logistic_is_at_the_minimum(void **state)
{
    (void)state;
    enum { N = 60 };
    double X[N * D], W[C * D] = {0}, b[C] = {0}, g[C * D] = {0}, gb[C] = {0};
    int y[N], iterations;
    const double lambda = 0.01;
    iso_error e;
    iso_rng r = iso_rng_make(11, ISO_RNG_TEST, 4);
    for (size_t i = 0; i < N; i++) {
        y[i] = (int)(i % C);
        for (size_t j = 0; j < D; j++)
            X[i * D + j] = iso_rng_normal(&r) + (j == (size_t)y[i]);
    }
    iso_fit_data t = {X, y, N, D, C};
    iso_fit_head h = {W, b};
    assert_int_equal(iso_fit_logistic(&t, lambda, &h, &iterations, &e), ISO_OK);
    assert_true(iterations > 2 && iterations < 300);
    for (size_t i = 0; i < N; i++) {
        double z[C], total = 0;
        for (size_t c = 0; c < C; c++) {
            z[c] = exp(iso_fit_dot(W + c * D, X + i * D, D) + b[c]);
            total += z[c];
        }
        for (size_t c = 0; c < C; c++) {
            double p = (z[c] / total - (y[i] == (int)c)) / N;
            gb[c] += p;
            for (size_t j = 0; j < D; j++)
                g[c * D + j] += p * X[i * D + j];
        }
    }
    for (size_t c = 0; c < C; c++) {
        close_to(gb[c], 0, 2e-6);
        for (size_t j = 0; j < D; j++)
            close_to(g[c * D + j] + lambda * W[c * D + j], 0, 2e-6);
    }
}

static void same_bits_for_any_number_of_threads(void **state)
{
    (void)state;
    samples train;
    draw(&train, 300, 0.8, 6);
    for (int k = ISO_PROBE_RIDGE; k <= ISO_PROBE_MEANS; k++) {
        iso_linear_head h[2];
        for (int t = 0; t < 2; t++) {
            iso_error e;
            iso_set_threads(t ? 4 : 1);
            assert_int_equal(
                iso_probe_fit(&h[t], (iso_probe_kind)k, &train.set, NULL, D, names, C, NULL, &e),
                ISO_OK);
        }
        assert_memory_equal(h[0].W, h[1].W, C * D * sizeof(float));
        assert_memory_equal(h[0].b, h[1].b, C * sizeof(float));
        iso_linear_free(&h[0]);
        iso_linear_free(&h[1]);
    }
    iso_set_threads(0);
}

static void odd_inputs(void **state)
{
    (void)state;
    samples s;
    iso_linear_head h;
    iso_error e;
    int predicted;
    draw(&s, 40, 0.3, 8);
    for (size_t i = 0; i < 40; i++) {
        if (s.y[i] == 1)
            s.y[i] = 0;     /* class "ok" has no sample */
        s.x[i * D + 2] = 7; /* a constant feature */
    }
    for (int k = ISO_PROBE_RIDGE; k <= ISO_PROBE_MEANS; k++) {
        assert_int_equal(iso_probe_fit(&h, (iso_probe_kind)k, &s.set, NULL, D, names, C, NULL, &e),
                         ISO_OK);
        for (size_t i = 0; i < 40; i++) {
            iso_linear_predict(&h, s.x + i * D, 1, &predicted);
            assert_int_not_equal(predicted, 1);
        }
        for (size_t c = 0; c < C; c++)
            assert_true(h.W[c * D + 2] == 0 && isfinite(h.b[c]));
        iso_linear_free(&h);
    }
    for (size_t n = 1; n <= 2; n++) { /* one and two samples are few, not wrong */
        iso_feature_set few = {s.x, s.y, n};
        for (int k = ISO_PROBE_RIDGE; k <= ISO_PROBE_MEANS; k++) {
            assert_int_equal(
                iso_probe_fit(&h, (iso_probe_kind)k, &few, NULL, D, names, C, NULL, &e), ISO_OK);
            for (size_t i = 0; i < C * D; i++)
                assert_true(isfinite(h.W[i]));
            iso_linear_free(&h);
        }
    }
    iso_feature_set none = {s.x, s.y, 0};
    assert_int_equal(iso_probe_fit(&h, ISO_PROBE_RIDGE, &none, NULL, D, names, C, NULL, &e),
                     ISO_ERR_DATA);
    s.y[3] = C;
    assert_int_equal(iso_probe_fit(&h, ISO_PROBE_RIDGE, &s.set, NULL, D, names, C, NULL, &e),
                     ISO_ERR_DATA);
    s.y[3] = 0;
    s.x[5] = (float)NAN;
    assert_int_equal(iso_probe_fit(&h, ISO_PROBE_RIDGE, &s.set, NULL, D, names, C, NULL, &e),
                     ISO_ERR_NONFINITE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_and_predictions),
        cmocka_unit_test(files_round_trip),
        cmocka_unit_test(bad_files_are_named),
        cmocka_unit_test(A4_shared_head_is_weighted_class_by_class_and_by_name),
        cmocka_unit_test(ridge_leaves_one_out_exactly),
        cmocka_unit_test(probes_separate_what_can_be_separated),
        cmocka_unit_test(fixed_head_leaves_a_gradient_on_noise),
        cmocka_unit_test(logistic_is_at_the_minimum),
        cmocka_unit_test(same_bits_for_any_number_of_threads),
        cmocka_unit_test(odd_inputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
