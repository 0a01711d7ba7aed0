/* The site's connection, rows of the client table of specs/security.md 4.5, back-off (S56),
 * greeting, epoch (S86), audit heads (S105, S108), roster steps (S14). */
#include "tests/client/rig.h"

static void table_4_5_offline_timer_connects(void **state)
{
    (void)state;
    rig *r = rig_open();
    assert_int_equal(r->a->link, ISO_AS_CONNECTING); /* at the first start at once */
    rig_down(r, ISO_DOWN_FAILED, "refused");
    assert_int_equal(r->a->link, ISO_AS_OFFLINE);
    uint64_t first = r->link;
    rig_tick(r, iso_agent_next_wake(r->a) - r->mono);
    assert_int_equal(r->a->link, ISO_AS_CONNECTING);
    assert_int_equal(r->link, first + 1); /* a fresh socket a try */
    rig_close(r);
}

static void table_4_5_handshake_sends_one_hello(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_up(r);
    assert_int_equal(r->a->link, ISO_AS_GREETING);
    assert_int_equal(rig_count(r, ISO_MSG_HELLO), 1);
    const iso_msg *m = rig_last(r, ISO_MSG_HELLO);
    assert_int_equal(m->hello.min_version, 1);
    assert_memory_equal(m->hello.federation_id, r->config.federation_id, 16);
    assert_int_equal(m->hello.roster_version, 0);
    /* S58: one Hello a connection; no answer is a lost link */
    rig_tick(r, r->config.reply_ms);
    assert_int_equal(rig_count(r, ISO_MSG_HELLO), 1);
    assert_int_equal(r->a->link, ISO_AS_OFFLINE);
    rig_close(r);
}

static void S56_not_admitted_waits_a_minute_and_is_shown(void **state)
{
    (void)state;
    iso_agent_status s;
    rig *r = rig_open();
    for (int i = 0; i < 50; i++) {
        rig_down(r, ISO_DOWN_REFUSED, "not admitted");
        iso_time wait = iso_agent_next_wake(r->a) - r->mono;
        assert_in_range(wait, 60000, 360000);
        iso_agent_get_status(r->a, &s);
        assert_true(s.is_not_admitted);
        assert_string_equal(s.link_reason, "not admitted");
        rig_tick(r, wait);
        assert_int_equal(r->a->link, ISO_AS_CONNECTING);
    }
    rig_close(r);
}

/* Full jitter: uniform in [0, min(300 s, 1 s * 2^n)] at the n-th failure. */
static void S56_backoff_is_full_jitter(void **state)
{
    enum { SITES = 400, FAILURES = 12 };
    (void)state;
    double sum[FAILURES] = {0};
    uint64_t low[FAILURES], high[FAILURES] = {0};
    for (int n = 0; n < FAILURES; n++)
        low[n] = UINT64_MAX;
    for (int s = 0; s < SITES; s++) {
        rig *r = rig_open();
        r->entropy_state = 977 * (uint64_t)s + 1;
        for (int n = 0; n < FAILURES; n++) {
            rig_down(r, ISO_DOWN_FAILED, "refused");
            uint64_t wait = iso_agent_next_wake(r->a) - r->mono;
            sum[n] += (double)wait;
            low[n] = wait < low[n] ? wait : low[n];
            high[n] = wait > high[n] ? wait : high[n];
            rig_tick(r, wait);
        }
        rig_close(r);
    }
    for (int n = 0; n < FAILURES; n++) {
        double cap = 1000.0 * (double)(1u << n);
        cap = cap < 300000 ? cap : 300000;
        assert_true((double)high[n] <= cap);
        assert_true((double)high[n] > 0.9 * cap); /* of 400 uniform draws */
        assert_true((double)low[n] < 0.1 * cap);
        double mean = sum[n] / SITES; /* cap / 2, standard error cap / sqrt(12 * 400) */
        assert_true(mean > 0.42 * cap && mean < 0.58 * cap);
    }
}

static void S56_health_resets_and_a_lost_session_is_spread(void **state)
{
    (void)state;
    rig *r = rig_open();
    for (int n = 0; n < 8; n++) {
        rig_down(r, ISO_DOWN_FAILED, "refused");
        rig_tick(r, iso_agent_next_wake(r->a) - r->mono);
    }
    rig_connect(r);
    rig_tick(r, 59000);
    assert_int_equal(r->a->attempts, 8); /* eight failures before, not healthy for long enough */
    rig_tick(r, 1000);
    assert_int_equal(r->a->attempts, 0);
    uint64_t most = 0;
    for (int i = 0; i < 100; i++) {
        rig_down(r, ISO_DOWN_LOST, "gone");
        uint64_t wait = iso_agent_next_wake(r->a) - r->mono;
        assert_in_range(wait, 0, 30000);
        most = wait > most ? wait : most;
        rig_connect(r);
        rig_tick(r, 60000);
    }
    assert_in_range(most, 20000, 30000);
    rig_close(r);
}

/* U23: order of start does not matter; it waits, and says for what, since when, until when. */
static void U23_waits_without_a_coordinator_and_says_so(void **state)
{
    (void)state;
    iso_agent_status s;
    rig *r = rig_open();
    iso_time start = r->mono;
    size_t tries = 0;
    while (r->mono - start < 3600000) {
        rig_down(r, ISO_DOWN_FAILED, "cannot reach fl.corp:7443");
        iso_agent_get_status(r->a, &s);
        assert_int_equal(s.state, ISO_AS_OFFLINE);
        assert_string_equal(s.link_reason, "cannot reach fl.corp:7443");
        assert_true(s.next_try_ms >= r->mono && s.next_try_ms - r->mono <= 300000);
        rig_tick(r, s.next_try_ms - r->mono);
        tries++;
    }
    assert_in_range(tries, 12, 60);
    rig_up(r);
    rig_hello_reply(r, ISO_SITE_ACTIVE);
    iso_agent_get_status(r->a, &s);
    assert_int_equal(s.state, ISO_AS_ONLINE);
    rig_close(r);
}

static void S50_no_common_version_names_both(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_up(r);
    iso_msg m = {.type = ISO_MSG_HELLO_REPLY, .hello_reply = {.version = 9, .epoch = 7}};
    rig_say_to(r, &m, NULL, 0);
    assert_int_equal(r->a->link, ISO_AS_OFFLINE);
    assert_non_null(strstr(r->a->link_reason, "protocol 9"));
    assert_non_null(strstr(r->a->link_reason, "1..1"));
    rig_close(r);
}

static void S50_nothing_counts_before_the_greeting(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_up(r);
    rig_clear(r);
    iso_msg m = rig_invite(r, 0, 1, true);
    rig_say_to(r, &m, NULL, 0);
    assert_int_equal(r->text.size, 0);
    rig_close(r);
}

static void S55_silence_is_noticed(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_connect(r);
    rig_clear(r);
    rig_tick(r, r->config.ping_ms);
    assert_int_equal(rig_count(r, ISO_MSG_PING), 1);
    rig_tick(r, r->config.ping_ms);
    assert_int_equal(r->a->link, ISO_AS_ONLINE);
    rig_tick(r, r->config.reply_ms);
    assert_int_equal(r->a->link, ISO_AS_OFFLINE);
    rig_close(r);
}

static void S57_pong_with_news_asks_for_notices(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_connect(r);
    rig_clear(r);
    iso_msg m = {.type = ISO_MSG_PONG, .pong = {.next_event = 5}};
    rig_say_to(r, &m, NULL, 0);
    assert_non_null(rig_last(r, ISO_MSG_STATUS));
    iso_msg reply = {.type = ISO_MSG_STATUS_REPLY, .status_reply = {.next_event = 5}};
    rig_say_to(r, &reply, NULL, 0);
    assert_int_equal(r->a->event_cursor, 5);
    rig_restart(r);
    assert_int_equal(r->a->event_cursor, 5);
    rig_close(r);
}

static void S21_pending_site_asks_and_greets_again_when_approved(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_up(r);
    rig_hello_reply(r, ISO_SITE_PENDING);
    const iso_msg_notice pending = {.code = ISO_CODE_PENDING, .sentence = "waits"};
    iso_msg m = {.type = ISO_MSG_STATUS_REPLY,
                 .status_reply = {.notices = &pending, .notice_count = 1}};
    rig_say_to(r, &m, NULL, 0);
    assert_int_equal(r->a->link, ISO_AS_ONLINE);
    rig_clear(r);
    rig_tick(r, r->config.ping_ms);
    assert_int_equal(rig_count(r, ISO_MSG_STATUS), 1); /* Hello and Status only (S21) */
    assert_int_equal(rig_count(r, ISO_MSG_BLOB_GET), 0);
    m.status_reply.notice_count = 0;
    rig_say_to(r, &m, NULL, 0);
    assert_int_equal(r->a->link, ISO_AS_CONNECTING);
    rig_close(r);
}

static void S14_first_roster_must_be_of_the_pinned_root(void **state)
{
    (void)state;
    rig *r = rig_open();
    r->config.root_fingerprint[0] ^= 1;
    rig_restart(r); /* another line was given at enrolment */
    rig_connect(r);
    assert_null(r->a->roster);
    r->config.root_fingerprint[0] ^= 1;
    rig_restart(r);
    rig_connect(r);
    assert_non_null(r->a->roster);
    assert_int_equal(r->a->roster->version, 1);
    rig_restart(r);
    assert_non_null(r->a->roster); /* kept */
    rig_close(r);
}

static void S14_roster_moves_by_exactly_one_signed_step(void **state)
{
    const struct {
        const char *name;
        uint64_t version;
        bool by_other_root, is_taken;
    } rows[] = {
        {"same version", 1, false, false},
        {"two at once", 3, false, false},
        {"signed by another root", 2, true, false},
        {"next one", 2, false, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rig *r = rig_open();
        rig_connect(r);
        r->roster.version = rows[i].version;
        rig_sign_roster(r, rows[i].by_other_root ? &r->other_release : &r->root);
        rig_offer_roster(r);
        uint64_t want = rows[i].is_taken ? rows[i].version : 1;
        if (r->a->roster->version != want)
            fail_msg("%s: version %llu", rows[i].name, (unsigned long long)r->a->roster->version);
        rig_close(r);
    }
}

/* What a coordinator does for a site that was away: one offer after the other, each a step. */
static void S14_rosters_missed_are_taken_one_by_one(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_connect(r);
    for (uint64_t version = 2; version <= 4; version++) {
        r->roster.version = version;
        rig_sign_roster(r, &r->root);
        rig_offer_roster(r);
        assert_int_equal(r->a->roster->version, version);
    }
    rig_restart(r);
    assert_int_equal(r->a->roster->version, 4);
    rig_close(r);
}

static void S105_newest_head_is_kept_and_said_in_hello(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_connect(r); /* the head came before the roster, was kept aside and then checked */
    assert_true(r->a->has_head);
    assert_int_equal(r->a->head_fields.seq, 10);
    rig_restart(r);
    rig_clear(r);
    rig_up(r);
    assert_int_equal(rig_last(r, ISO_MSG_HELLO)->hello.audit_head.size, ISO_SIGNED_HEAD_BYTES);
    rig_close(r);
}

static void S108_cut_or_rewritten_history_stops_releases(void **state)
{
    const struct {
        const char *name;
        uint64_t seq;
        uint8_t h;
        bool is_conflict;
    } rows[] = {
        {"goes on", 12, 0xbb, false},
        {"the same", 10, 0xaa, false},
        {"tail cut", 9, 0xaa, true},
        {"rewritten", 10, 0xbb, true},
    };
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rig *r = rig_open();
        rig_connect(r);
        rig_down(r, ISO_DOWN_LOST, "gone");
        r->head.seq = rows[i].seq;
        memset(r->head.h.b, rows[i].h, 32);
        rig_connect(r);
        if (r->a->has_conflict != rows[i].is_conflict)
            fail_msg("%s", rows[i].name);
        if (rows[i].is_conflict) {
            rig_restart(r);
            assert_true(r->a->has_conflict); /* durable */
            rig_connect(r);
            rig_release v = rig_release_of(r, 1, NULL);
            rig_offer_release(r, &v);
            assert_false(r->has_job);
            rig_step(r, &(iso_agent_event){.kind = ISO_AE_ACCEPT_EPOCH});
            assert_false(r->a->has_conflict);
            rig_connect(r);
            rig_offer_release(r, &v);
            assert_true(r->has_job); /* it is looked into now */
        }
        rig_close(r);
    }
}

static void S86_new_epoch_offers_again_what_was_lost(void **state)
{
    (void)state;
    rig *r = rig_open();
    rig_data(r, 0, 200, 100, 0);
    rig_connect(r);
    rig_make_update(r, 1, 1000);
    rig_grant(r, 0, 8);
    rig_ack(r, 1, 8);
    rig_receipt(r, &r->audit, NULL); /* audit_seq 11 */
    assert_int_equal(r->a->outbox[0].state, OUTBOX_ACKNOWLEDGED);
    rig_down(r, ISO_DOWN_LOST, "gone");
    r->epoch = 8; /* restored from a backup that ends before */
    r->head.epoch = 8;
    r->head.seq = 10;
    rig_clear(r);
    rig_connect(r);
    assert_int_equal(r->a->epoch, 8);
    assert_int_equal(r->a->outbox[0].state, OUTBOX_WAITING);
    assert_non_null(rig_last(r, ISO_MSG_UPDATE_BEGIN));
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(table_4_5_offline_timer_connects),
        cmocka_unit_test(table_4_5_handshake_sends_one_hello),
        cmocka_unit_test(S56_not_admitted_waits_a_minute_and_is_shown),
        cmocka_unit_test(S56_backoff_is_full_jitter),
        cmocka_unit_test(S56_health_resets_and_a_lost_session_is_spread),
        cmocka_unit_test(U23_waits_without_a_coordinator_and_says_so),
        cmocka_unit_test(S50_no_common_version_names_both),
        cmocka_unit_test(S50_nothing_counts_before_the_greeting),
        cmocka_unit_test(S55_silence_is_noticed),
        cmocka_unit_test(S57_pong_with_news_asks_for_notices),
        cmocka_unit_test(S21_pending_site_asks_and_greets_again_when_approved),
        cmocka_unit_test(S14_first_roster_must_be_of_the_pinned_root),
        cmocka_unit_test(S14_roster_moves_by_exactly_one_signed_step),
        cmocka_unit_test(S14_rosters_missed_are_taken_one_by_one),
        cmocka_unit_test(S105_newest_head_is_kept_and_said_in_hello),
        cmocka_unit_test(S108_cut_or_rewritten_history_stops_releases),
        cmocka_unit_test(S86_new_epoch_offers_again_what_was_lost),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
