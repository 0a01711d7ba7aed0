/* CTC against all paths of small cases and by differences, decoding against all labellings, log-mel
 * of sounds that are known. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "core/mem.h"
#include "core/rng.h"
#include "nn/data/logmel.h"
#include "nn/head/ctc.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { T = 6, C = 4, PATHS = 4096 /* C^T */ };

static void draw_logits(float *z, size_t n, uint64_t seed)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < n; i++)
        z[i] = (float)(1.5 * iso_rng_normal(&r));
}

static void softmax_rows(const float *z, double *p)
{
    for (size_t t = 0; t < T; t++) {
        double sum = 0.0;
        for (size_t c = 0; c < C; c++)
            sum += exp((double)z[t * C + c]);
        for (size_t c = 0; c < C; c++)
            p[t * C + c] = exp((double)z[t * C + c]) / sum;
    }
}

/* The labelling of path number `path`; the path's probability. */
static double read_path(size_t path, int blank, const double *p, int *labels, size_t *n)
{
    double q = 1.0;
    int before = -1;
    *n = 0;
    for (size_t t = 0; t < T; t++, path /= C) {
        int c = (int)(path % C);
        q *= p[t * C + (size_t)c];
        if (c != before && c != blank)
            labels[(*n)++] = c;
        before = c;
    }
    return q;
}

/* Probabilities of all labellings at once, by their number in base C + 1. */
enum { LABELLINGS = 15625 /* (C + 1)^T */ };

static size_t number_of(const int *labels, size_t n)
{
    size_t number = 0;
    for (size_t i = n; i-- > 0;)
        number = number * (C + 1) + (size_t)labels[i] + 1;
    return number;
}

static double totals[LABELLINGS];

static void add_all_paths(int blank, const double *p)
{
    memset(totals, 0, sizeof totals);
    for (size_t path = 0; path < PATHS; path++) {
        int labels[T];
        size_t n;
        double q = read_path(path, blank, p, labels, &n);
        totals[number_of(labels, n)] += q;
    }
}

static void the_loss_is_the_sum_over_all_paths(void **state)
{
    static const struct {
        int target[T];
        size_t length;
        int blank;
    } rows[] = {{{1, 2, 3}, 3, 0}, {{2, 2}, 2, 0},       {{0}, 0, 0},
                {{1}, 1, 0},       {{1, 1, 1}, 3, 0},    {{3, 1, 2, 1, 3, 1}, 6, 0},
                {{0, 1, 0}, 3, 3}, {{2, 2, 1, 1}, 4, 3}, {{0, 0, 2}, 3, 1}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float z[T * C], d[T * C];
        double p[T * C], scratch[512], loss;
        draw_logits(z, T * C, i);
        softmax_rows(z, p);
        assert_true(iso_ctc_scratch(T, C, rows[i].length) <= 512);
        assert_int_equal(iso_ctc_loss(z, T, C, rows[i].target, rows[i].length, rows[i].blank, 1.0,
                                      &loss, d, scratch, NULL),
                         ISO_OK);
        add_all_paths(rows[i].blank, p);
        double want = -log(totals[number_of(rows[i].target, rows[i].length)]);
        if (fabs(loss - want) > 1e-6 * fabs(want))
            fail_msg("row %zu: %.9g, all paths say %.9g", i, loss, want);
        for (size_t k = 0; k < T * C; k++) {
            float keep = z[k];
            double side[2];
            for (int s = 0; s < 2; s++) {
                z[k] = keep + (s ? 1.0F : -1.0F) / 512.0F;
                assert_int_equal(iso_ctc_loss(z, T, C, rows[i].target, rows[i].length,
                                              rows[i].blank, 1.0, &side[s], NULL, scratch, NULL),
                                 ISO_OK);
            }
            z[k] = keep;
            double slope = (side[1] - side[0]) * 256.0;
            if (fabs(slope - (double)d[k]) > 2e-5)
                fail_msg("row %zu, logit %zu: slope %g, gradient %g", i, k, slope, (double)d[k]);
        }
    }
}

static void targets_that_do_not_fit_are_refused(void **state)
{
    static const struct {
        int target[8];
        size_t length, frames;
        int blank;
    } rows[] = {{{1, 1, 1}, 3, 4, 0}, {{1, 2, 3, 1}, 4, 3, 0}, {{1}, 1, 0, 0},
                {{0}, 1, 4, 0},       {{4}, 1, 4, 0},          {{-1}, 1, 4, 0}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        float z[T * C];
        double scratch[512], loss = 7.0;
        iso_error e = {0};
        draw_logits(z, T * C, i);
        assert_int_equal(iso_ctc_loss(z, rows[i].frames, C, rows[i].target, rows[i].length,
                                      rows[i].blank, 1.0, &loss, NULL, scratch, &e),
                         ISO_ERR_DATA);
        assert_true(loss == 7.0);
    }
    assert_int_equal(iso_ctc_frames_needed((int[]){1, 1, 2, 2, 2}, 5), 8);
}

/* A beam as wide as there are labellings finds the most probable one. */
static void a_wide_beam_is_exact(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 8; seed++) {
        float z[T * C];
        double p[T * C], lp[T * C], best = 0.0, score;
        int want[T] = {0}, got[T];
        size_t want_length = 0, length;
        draw_logits(z, T * C, 100 + seed);
        softmax_rows(z, p);
        for (size_t k = 0; k < T * C; k++)
            lp[k] = log(p[k]);
        add_all_paths(0, p);
        for (size_t path = 0; path < PATHS; path++) {
            int labels[T];
            size_t n;
            read_path(path, 0, p, labels, &n);
            double q = totals[number_of(labels, n)];
            if (q > best) {
                best = q;
                want_length = n;
                memcpy(want, labels, sizeof want);
            }
        }
        assert_int_equal(iso_ctc_beam(lp, T, C, 0, 4096, got, &length, &score, NULL), ISO_OK);
        assert_int_equal(length, want_length);
        assert_memory_equal(got, want, length * sizeof *got);
        assert_true(fabs(score - log(best)) <= 1e-9);
        /* of one beam what greedy finds is a labelling too, and never a better one */
        assert_int_equal(iso_ctc_beam(lp, T, C, 0, 1, got, &length, &score, NULL), ISO_OK);
        assert_true(score <= log(best) + 1e-12);
    }
}

static void equal_prefixes_go_by_label_order(void **state)
{
    (void)state;
    const double third = log(1.0 / 3.0), lp[] = {third, third, third};
    int got[1];
    size_t length = 9;
    assert_int_equal(iso_ctc_beam(lp, 1, 3, 0, 3, got, &length, NULL, NULL), ISO_OK);
    assert_int_equal(length, 0); /* nothing stands before "1" and "2" */
    assert_int_equal(iso_ctc_beam(lp, 1, 3, 2, 3, got, &length, NULL, NULL), ISO_OK);
    assert_int_equal(length, 0);
    assert_int_equal(iso_ctc_beam(lp, 0, 3, 0, 3, got, &length, NULL, NULL), ISO_OK);
    assert_int_equal(length, 0);
    assert_int_equal(iso_ctc_beam(lp, 1, 3, 3, 3, got, &length, NULL, NULL), ISO_ERR_USAGE);
}

/* ---- log-mel ---- */

static void a_tone_is_found_in_its_band(void **state)
{
    static const struct {
        size_t rate;
        double hz;
    } rows[] = {{8000, 440.0}, {8000, 2500.0}, {16000, 1000.0}, {16000, 6000.0}, {44100, 3000.0}};
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_mel_shape s = iso_mel_default(rows[i].rate);
        iso_error e = {0};
        if (iso_mel_check(&s, &e))
            fail_msg("%s", e.text);
        size_t n = rows[i].rate / 2, frames = iso_mel_frames(&s, n), bins = s.n_fft / 2 + 1;
        float *x = iso_calloc(n, sizeof *x), *y = iso_calloc(s.mels * frames, sizeof *y);
        float *filters = iso_calloc(s.mels * bins, sizeof *filters);
        for (size_t k = 0; k < n; k++)
            x[k] = (float)(0.5 * sin(2.0 * 3.14159265358979 * rows[i].hz * (double)k /
                                     (double)rows[i].rate));
        assert_int_equal(iso_log_mel(&s, x, n, y, &e), ISO_OK);
        iso_mel_filters(&s, filters);
        size_t bin = (size_t)(rows[i].hz * (double)s.n_fft / (double)rows[i].rate + 0.5), top = 0;
        for (size_t m = 1; m < s.mels; m++)
            if (y[m * frames + frames / 2] > y[top * frames + frames / 2])
                top = m;
        assert_true(filters[top * bins + bin] > 0.0F || filters[top * bins + bin - 1] > 0.0F ||
                    filters[top * bins + bin + 1] > 0.0F);
        free(x), free(y), free(filters);
    }
}

static void short_and_bad_sounds(void **state)
{
    iso_mel_shape s = iso_mel_default(8000);
    iso_error e = {0};
    float x[300] = {0}, y[40 * 4];
    (void)state;
    assert_int_equal(s.n_fft, 256);
    assert_int_equal(s.mels, 40);
    assert_int_equal(iso_mel_frames(&s, 10), 3);
    x[3] = 1.0F;
    assert_int_equal(iso_log_mel(&s, x, 10, y, &e), ISO_OK);
    assert_int_equal(iso_log_mel(&s, x, 0, y, &e), ISO_OK);
    for (size_t i = 0; i < 40 * 3; i++) /* silence: (-10 + 4) / 4 */
        assert_true(y[i] == -1.5F);
    x[5] = (float)NAN;
    assert_int_equal(iso_log_mel(&s, x, 10, y, &e), ISO_ERR_NONFINITE);
    static const iso_mel_shape bad[] = {
        {0, 256, 80, 40},   {8000, 255, 80, 40},  {8000, 256, 0, 40},     {8000, 256, 257, 40},
        {8000, 256, 80, 0}, {8000, 256, 80, 129}, {8000, 1 << 20, 80, 40}};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(iso_mel_check(&bad[i], &e), ISO_ERR_DATA);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(the_loss_is_the_sum_over_all_paths),
                                       cmocka_unit_test(targets_that_do_not_fit_are_refused),
                                       cmocka_unit_test(a_wide_beam_is_exact),
                                       cmocka_unit_test(equal_prefixes_go_by_label_order),
                                       cmocka_unit_test(a_tone_is_found_in_its_band),
                                       cmocka_unit_test(short_and_bad_sounds)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
