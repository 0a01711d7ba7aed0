/* 200 small scenarios drawn from their seeds, all faults mixed: every invariant holds after every
 * event and everything comes to rest after the last fault (DESIGN 4, 7). A failure prints what
 * reproduces it: isofed simulate random --seed N --replay EVENT. */
#include "sim/world.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { SCENARIOS = 200, PARTS = 4 };

static void play(uint64_t seed, iso_sim_result *r)
{
    iso_scenario s;
    iso_sim *w = NULL;
    const iso_sim_options o = {0};
    iso_error e = {0};
    iso_scenario_random(seed, &s);
    iso_err err = iso_sim_open(&w, &s, &o, &e);
    if (!err)
        err = iso_sim_run(w, r, &e);
    iso_sim_close(w);
    if (err)
        fail_msg("seed %llu, event %llu: %s", (unsigned long long)seed,
                 (unsigned long long)(r->broken_event ? r->broken_event : r->events), e.text);
}

/* What the faults did, over all seeds: a mix in which something never happens shows nothing. */
static iso_sim_result all;

static void run_part(size_t part)
{
    for (size_t i = part; i < SCENARIOS; i += PARTS) {
        iso_sim_result r = {0};
        play(i + 1, &r);
        all.events += r.events;
        all.receipts += r.receipts;
        all.refused += r.refused;
        all.releases += r.releases;
        all.crashes_coordinator += r.crashes_coordinator;
        all.crashes_site += r.crashes_site;
        all.cuts += r.cuts;
        all.partitions += r.partitions;
        all.duplicates += r.duplicates;
        all.retransmissions += r.retransmissions;
        all.sites_revoked += r.sites_revoked;
        all.sites_malicious += r.sites_malicious;
        all.rejected += r.rejected;
        for (int k = 0; k < ISO_CODE_END; k++)
            all.refused_by[k] += r.refused_by[k];
    }
}

static void invariants_hold_1(void **state)
{
    (void)state;
    run_part(0);
}
static void invariants_hold_2(void **state)
{
    (void)state;
    run_part(1);
}
static void invariants_hold_3(void **state)
{
    (void)state;
    run_part(2);
}
static void invariants_hold_4(void **state)
{
    (void)state;
    run_part(3);
}

static void every_fault_happened(void **state)
{
    (void)state;
    static const iso_code codes[] = {
        ISO_CODE_NONFINITE,    ISO_CODE_NORM,         ISO_CODE_EMPTY,         ISO_CODE_SHAPE,
        ISO_CODE_BODY_DIGEST,  ISO_CODE_TOO_LARGE,    ISO_CODE_WRONG_SITE,    ISO_CODE_SIGNATURE,
        ISO_CODE_EQUIVOCATION, ISO_CODE_ROUND_CLOSED, ISO_CODE_UPLOAD_UNKNOWN};
    assert_true(all.receipts > 1000 && all.releases > 100);
    assert_true(all.crashes_coordinator > 50 && all.crashes_site > 50);
    assert_true(all.cuts > 50 && all.partitions > 20 && all.duplicates > 50);
    assert_true(all.retransmissions > 50 && all.sites_revoked > 10 && all.sites_malicious > 50);
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (all.refused_by[codes[i]] == 0)
            fail_msg("nothing was refused as %s", iso_code_name(codes[i]));
    print_message("%llu events, %llu receipts, %llu releases, %llu + %llu crashes\n",
                  (unsigned long long)all.events, (unsigned long long)all.receipts,
                  (unsigned long long)all.releases, (unsigned long long)all.crashes_coordinator,
                  (unsigned long long)all.crashes_site);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(invariants_hold_1),    cmocka_unit_test(invariants_hold_2),
        cmocka_unit_test(invariants_hold_3),    cmocka_unit_test(invariants_hold_4),
        cmocka_unit_test(every_fault_happened),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
