/* Scores against matrices worked by hand (U79). */
#include "nn/train/metrics.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

static void same(double got, double want)
{
    if (!(fabs(got - want) < 1e-12) && !(isnan(got) && isnan(want)))
        fail_msg("%.15g instead of %.15g", got, want);
}

static void U79_continual_scores_by_hand(void **state)
{
    (void)state;
    /* rows: after wave 1, 2, 3; columns: tasks */
    const double R[9] = {0.80, 0.30, 0.20, /**/ 0.70, 0.90, 0.40, /**/ 0.75, 0.60, 0.95};
    const double probe[3] = {0.5, 0.25, 0.35};
    same(iso_acc(R, 3), (0.75 + 0.60 + 0.95) / 3);
    /* task 1: max(0.80, 0.70) - 0.75; task 2: 0.90 - 0.60 (0.30 was before it was learnt) */
    same(iso_forgetting(R, 3), (0.05 + 0.30) / 2);
    same(iso_bwt(R, 3), ((0.75 - 0.80) + (0.60 - 0.90)) / 2);
    same(iso_fwt(R, probe, 3), ((0.30 - 0.25) + (0.40 - 0.35)) / 2);
}

static void A15_forgetting_starts_when_a_task_was_learnt(void **state)
{
    (void)state;
    const double R[9] = {0.5, 0.99, 0, /**/ 0.5, 0.6, 0, /**/ 0.5, 0.6, 0.5};
    same(iso_forgetting(R, 3), 0); /* 0.99 before wave 2 is luck, not learning */
}

static void one_task_and_gaps(void **state)
{
    (void)state;
    const double one[1] = {0.7};
    const double probe[2] = {0.1, 0.2};
    same(iso_acc(one, 1), 0.7);
    same(iso_forgetting(one, 1), (double)NAN);
    same(iso_bwt(one, 1), (double)NAN);
    same(iso_fwt(one, probe, 1), (double)NAN);
    const double gap[4] = {0.6, (double)NAN, 0.5, 0.9};
    same(iso_acc(gap, 2), 0.7);
    same(iso_fwt(gap, probe, 2), (double)NAN);
    same(iso_forgetting(gap, 2), 0.1);
}

static void gain_kept_and_normalised(void **state)
{
    (void)state;
    same(iso_normalised(0.8, 0.9), 0.8 / 0.9);
    same(iso_normalised(0.8, 0), (double)NAN);
    same(iso_gain_kept(0.8, 0.6, 0.9), 2.0 / 3);
    same(iso_gain_kept(0.5, 0.6, 0.9), -1.0 / 3);
    same(iso_gain_kept(0.84, 0.83, 0.849), (double)NAN); /* own gains 1.9 points */
    assert_true(iso_gain_is_given(0.83, 0.85));
    assert_false(iso_gain_is_given(0.83, 0.8499));
}

static void confusion_and_balance(void **state)
{
    (void)state;
    const int y[] = {0, 0, 0, 0, 1, 1}, p[] = {0, 0, 0, 1, 1, 0};
    uint64_t c[9];
    same(iso_accuracy(p, y, 6), 4.0 / 6);
    same(iso_accuracy(p, y, 0), (double)NAN);
    iso_confusion(p, y, 6, 3, c);
    const uint64_t want[9] = {3, 1, 0, 1, 1, 0, 0, 0, 0};
    for (int i = 0; i < 9; i++)
        assert_int_equal(c[i], want[i]);
    same(iso_balanced_accuracy(c, 3), (0.75 + 0.5) / 2); /* class 2 does not occur */
}

static void cross_entropy_is_stable(void **state)
{
    (void)state;
    const float z[] = {0, 0, 1000, 0};
    const int y[] = {1, 1};
    same(iso_cross_entropy(z, y, 1, 2), log(2));
    same(iso_cross_entropy(z + 2, y, 1, 2), 1000);
    same(iso_cross_entropy(z, y, 2, 2), (log(2) + 1000) / 2);
}

static void S94_half_width(void **state)
{
    (void)state;
    same(iso_binomial_half_width(0.5, 100), 1.96 * 0.05);
    same(iso_binomial_half_width(0.9, 30), 1.96 * sqrt(0.09 / 30));
    same(iso_binomial_half_width(1.0, 50), 1.96 * sqrt(0.02 * 0.98 / 50)); /* not certain */
    same(iso_binomial_half_width(0.0, 50), iso_binomial_half_width(1.0, 50));
    same(iso_binomial_half_width(1.0, 1), 1.96 * 0.5);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(U79_continual_scores_by_hand),
        cmocka_unit_test(A15_forgetting_starts_when_a_task_was_learnt),
        cmocka_unit_test(one_task_and_gaps),
        cmocka_unit_test(gain_kept_and_normalised),
        cmocka_unit_test(confusion_and_balance),
        cmocka_unit_test(cross_entropy_is_stable),
        cmocka_unit_test(S94_half_width),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
