/* The simulation itself: same seed, same bits; restarts that change nothing (I8); broken cores that
 * are caught; scenarios that do not read. */
#include "sim/world.h"

#include "core/parallel.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static iso_err play(const iso_scenario *s, iso_mutant mutant, iso_sim_result *r, iso_error *e)
{
    iso_sim *w = NULL;
    const iso_sim_options o = {.mutant = mutant};
    memset(r, 0, sizeof *r);
    iso_err err = iso_sim_open(&w, s, &o, e);
    if (!err)
        err = iso_sim_run(w, r, e);
    iso_sim_close(w);
    return err;
}

static void same_seed_same_digest_for_any_threads(void **state)
{
    (void)state;
    for (uint64_t seed = 301; seed < 313; seed++) {
        iso_scenario s;
        iso_sim_result r[3];
        iso_error e = {0};
        iso_scenario_random(seed, &s);
        for (int k = 0; k < 3; k++) {
            iso_set_threads(k == 2 ? 2 : 1);
            if (play(&s, ISO_MUTANT_NONE, &r[k], &e))
                fail_msg("seed %llu: %s", (unsigned long long)seed, e.text);
        }
        assert_memory_equal(r[0].digest, r[1].digest, 32);
        assert_memory_equal(r[0].digest, r[2].digest, 32);
        assert_true(r[0].events == r[1].events && r[0].virtual_ms == r[2].virtual_ms);
    }
    iso_set_threads(0);
}

static void other_seed_other_digest(void **state)
{
    (void)state;
    iso_scenario s;
    iso_sim_result r[2];
    iso_error e;
    iso_scenario_defaults(&s);
    for (uint64_t k = 0; k < 2; k++) {
        s.seed = k + 1;
        assert_int_equal(play(&s, ISO_MUTANT_NONE, &r[k], &e), ISO_OK);
    }
    assert_memory_not_equal(r[0].digest, r[1].digest, 32);
}

static void a_run_stops_where_it_is_told(void **state)
{
    (void)state;
    iso_scenario s;
    iso_sim *w = NULL;
    iso_sim_result r;
    iso_error e;
    const iso_sim_options o = {.events = 500, .trace_from = 460};
    iso_scenario_defaults(&s);
    assert_int_equal(iso_sim_open(&w, &s, &o, &e), ISO_OK);
    assert_int_equal(iso_sim_run(w, &r, &e), ISO_OK);
    assert_true(r.events >= 500 && r.events < 520);
    iso_sim_close(w);
}

/* A core or a disk that lies is caught, and by the invariant that it breaks. */
static void every_mutant_is_caught(void **state)
{
    (void)state;
    static const struct {
        iso_mutant mutant;
        const char *says;
    } rows[] = {{ISO_MUTANT_EARLY_RECEIPT, "I1"},  {ISO_MUTANT_COUNTS_TWICE, "I1"},
                {ISO_MUTANT_NUMBER_AGAIN, "I2"},   {ISO_MUTANT_UNSIGNED, "I3"},
                {ISO_MUTANT_REVOKED_COUNTS, "I5"}, {ISO_MUTANT_CHAIN, "I7"},
                {ISO_MUTANT_SEQUENCE, "I9"},       {ISO_MUTANT_RAW, "I4"},
                {ISO_MUTANT_LOST_ROW, "I8"}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_scenario s;
        iso_sim_result r;
        iso_error e = {0};
        char expected[16];
        iso_scenario_defaults(&s);
        s.rounds = 6;
        s.sites = 12;
        s.check_every = 1;
        s.churn.revoke_every_ms = 30000;
        s.crash.coordinator_every_ms = rows[i].mutant == ISO_MUTANT_LOST_ROW ? 60000 : 0;
        if (play(&s, ISO_MUTANT_NONE, &r, &e))
            fail_msg("without a mutant: event %llu: %s", (unsigned long long)r.events, e.text);
        iso_err err = play(&s, rows[i].mutant, &r, &e);
        snprintf(expected, sizeof expected, "invariant %s:", rows[i].says);
        if (err != ISO_ERR_INTERNAL || !strstr(e.text, expected))
            fail_msg("mutant %d: %s, expected %s", (int)rows[i].mutant, err ? e.text : "not caught",
                     expected);
        assert_true(r.broken_event > 0);
    }
}

/* I8, S89: crashes of the coordinator and of sites, at any moment, with unsynced writes lost,
 * change nothing of what is learnt: every release holds the same adapter as without them. */
static void I8_crashes_change_no_release(void **state)
{
    (void)state;
    for (uint64_t seed = 1; seed <= 6; seed++) {
        iso_scenario s;
        iso_sim_result r[2];
        iso_error e = {0};
        iso_scenario_defaults(&s);
        s.seed = seed;
        s.rounds = 3;
        s.quorum = 2;
        s.deadline_ms = 24ull * 3600000; /* nobody is left out for being slow */
        s.evaluate_timeout_ms = 24ull * 3600000;
        for (int k = 0; k < 2; k++) {
            s.crash.coordinator_every_ms = k ? 40000 : 0;
            s.crash.site_every_ms = k ? 15000 : 0;
            s.crash.restart_ms = 5000;
            if (play(&s, ISO_MUTANT_NONE, &r[k], &e))
                fail_msg("seed %llu: %s", (unsigned long long)seed, e.text);
        }
        assert_true(r[1].crashes_coordinator > 0 && r[1].crashes_site > 0);
        assert_int_equal(r[0].releases, r[1].releases);
        assert_memory_equal(r[0].content, r[1].content, 32);
    }
}

/* The planted problem tells methods apart, and learning helps. */
static void methods_differ_on_the_planted_problem(void **state)
{
    (void)state;
    static const char *const methods[] = {"average", "iso_cts"};
    double accuracy[2];
    for (int k = 0; k < 2; k++) {
        iso_scenario s;
        iso_sim_result r;
        iso_error e = {0};
        iso_scenario_defaults(&s);
        s.methods[0] = methods[k];
        s.rounds = 2;
        assert_int_equal(play(&s, ISO_MUTANT_NONE, &r, &e), ISO_OK);
        accuracy[k] = r.accuracy_last;
        assert_true(r.accuracy_last > r.accuracy_probe + 0.02);
    }
    assert_true(accuracy[0] - accuracy[1] > 0.005 || accuracy[1] - accuracy[0] > 0.005);
}

static void bad_scenarios_are_refused_by_name(void **state)
{
    (void)state;
    static const struct {
        const char *text, *says;
    } rows[] = {
        {"format: 1\nsite: 4\n", "sites"},
        {"sites: 4\n", "format"},
        {"format: 2\n", "format"},
        {"format: 1\nsites: 0\n", "sites"},
        {"format: 1\nsites: 2\ntasks: 4\n", "each task needs one"},
        {"format: 1\nnet: {latncy: 3ms}\n", "latency"},
        {"format: 1\nnet: {loss: 1.5}\n", "loss"},
        {"format: 1\nmalicious: {share: 0.5, kinds: [nann]}\n", "nan"},
        {"format: 1\ntrainer: {width: 8, rank: 5}\n", "rank"},
        {"format: 1\nsites: 100\ntrigger: auto\n", "auto"},
        {"format: 1\ncrash: 3\n", "x.yaml:2"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        iso_scenario s;
        iso_arena arena = {0};
        iso_error e = {0};
        iso_err err =
            iso_scenario_parse(rows[i].text, strlen(rows[i].text), "x.yaml", &s, &arena, &e);
        if (err != ISO_ERR_USAGE || !strstr(e.text, rows[i].says))
            fail_msg("%s -> %s", rows[i].text, err ? e.text : "accepted");
        iso_arena_free(&arena);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(same_seed_same_digest_for_any_threads),
        cmocka_unit_test(other_seed_other_digest),
        cmocka_unit_test(a_run_stops_where_it_is_told),
        cmocka_unit_test(every_mutant_is_caught),
        cmocka_unit_test(I8_crashes_change_no_release),
        cmocka_unit_test(methods_differ_on_the_planted_problem),
        cmocka_unit_test(bad_scenarios_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
