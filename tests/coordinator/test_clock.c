/* What the wall clock does to a coordinator: set back by an hour, set forward by a day, in the
 * middle of a round and over a restart (issue: clock set back), and the hourly signed head (S105).
 */
#include "tests/coordinator/rig.h"

static void check_times(rig *r)
{
    uint64_t last = 0, entries = 0;
    rig_rows_sort(r->rows, r->row_count);
    for (size_t i = 0; i < r->row_count; i++) {
        iso_audit_entry entry;
        if (r->rows[i].table != ISO_CT_AUDIT)
            continue;
        assert_int_equal(
            iso_audit_decode(r->rows[i].value, r->rows[i].value_bytes - 32, &entry, NULL), ISO_OK);
        if (entry.time_ms < last)
            fail_msg("entry %llu is older than the one before it", (unsigned long long)entry.seq);
        last = entry.time_ms;
        entries++;
    }
    assert_true(entries > 10);
}

/* Head round and adapter round of task steel to its release; `step` is called between all steps. */
static void run_round(rig *r, rig_site *a, rig_site *b, void (*step)(rig *r))
{
    rig_site *const sites[] = {a, b};
    assert_non_null(strstr(
        rig_admin(r, "{\"cmd\":\"rounds.open\",\"args\":{\"tasks\":[\"steel\"]}}"), "\"ok\":true"));
    for (int round = 0; round < 2; round++) {
        for (int i = 0; i < 2; i++) {
            step(r);
            rig_upload(r, sites[i], 0);
        }
        step(r);
        rig_finish_job(r, false);
    }
    for (int i = 0; i < 2; i++) {
        step(r);
        rig_answer_all(r, sites[i], 0.8f, 0.7f);
    }
    step(r);
    rig_finish_job(r, false);
    step(r);
}

static void still(rig *r)
{
    (void)r;
}

static void back(rig *r)
{
    r->wall -= 3600000;
}

static void forth_and_back(rig *r)
{
    static bool is_ahead;
    r->wall += is_ahead ? (uint64_t)-86400000 : 86400000u;
    is_ahead = !is_ahead;
}

static void back_over_a_restart(rig *r)
{
    r->wall -= 3600000;
    rig_restore(r);
    for (size_t i = 0; i < r->site_count; i++)
        rig_hello(r, &r->sites[i]);
}

static void a_round_ends_whatever_the_wall_clock_does(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        void (*step)(rig *r);
    } rows[] = {{"still", still},
                {"an hour back at each step", back},
                {"a day forth and back", forth_and_back},
                {"an hour back at each restart", back_over_a_restart}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rig *r = rig_new();
        rig_site *a = rig_enrol(r, "a"), *b = rig_enrol(r, "b");
        iso_coord_stats s;
        rig_hello(r, a);
        rig_hello(r, b);
        run_round(r, a, b, rows[i].step);
        iso_coord_get_stats(r->c, &s);
        if (s.release != 1 || s.used != 4 || s.receipts != 4)
            fail_msg("%s: release %llu, %llu of %llu used", rows[i].name,
                     (unsigned long long)s.release, (unsigned long long)s.used,
                     (unsigned long long)s.receipts);
        check_times(r);
        rig_free(r);
    }
}

static void S16_an_expired_token_stays_expired(void **state)
{
    (void)state;
    rig *r = rig_new();
    assert_non_null(
        strstr(rig_admin(r, "{\"cmd\":\"token.new\",\"args\":{\"site\":\"late\",\"hours\":1}}"),
               "isofed1-"));
    const iso_c_token *t = r->c->tokens[0];
    assert_true(iso_c_token_is_open(r->c, t));
    rig_tick(r, 3600001);
    assert_false(iso_c_token_is_open(r->c, t));
    rig_restore(r); /* an entry of the log: this time has been seen */
    r->wall -= 7200000;
    rig_tick(r, 1000);
    assert_false(iso_c_token_is_open(r->c, r->c->tokens[0]));
    rig_free(r);
}

static void S105_a_connected_site_hears_a_signed_head_each_hour(void **state)
{
    (void)state;
    rig *r = rig_new();
    rig_site *a = rig_enrol(r, "a"), *b = rig_enrol(r, "b");
    rig_hello(r, a);
    rig_hello(r, b);
    run_round(r, a, b, still);
    assert_int_equal(a->offered, 1);
    rig_verdict(r, a, 1, ISO_VERDICT_ACCEPTED);
    int heads = 0;
    for (int minute = 0; minute < 5 * 60; minute++) {
        a->offered = 0;
        rig_tick(r, 60000);
        rig_status(r, a, 0);
        heads += a->offered == 1;
    }
    assert_in_range(heads, 4, 6);
    assert_int_equal(r->c->wall - r->c->signed_ms < 3600000 + 60000, 1);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_round_ends_whatever_the_wall_clock_does),
        cmocka_unit_test(S16_an_expired_token_stays_expired),
        cmocka_unit_test(S105_a_connected_site_hears_a_signed_head_each_hour),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
