/* Peers and sites: who may say what, versions, limits, revocation, enrolment, gate margin, index
 * (specs/security.md S17, S18, S26, S50, S58). */
#include "tests/coordinator/rig.h"

#include <math.h>

/* A token's peer after Hello; returns its name through `who`. */
static rig_site *token_peer(rig *r, iso_peer_name *who)
{
    rig_site *s = rig_enrol(r, "a"); /* the token it used stays known */
    *who = (iso_peer_name){.kind = ISO_PEER_TOKEN};
    memcpy(who->id, r->c->tokens[0]->id, 4);
    s->peer = r->next_peer++;
    iso_msg hello = {.type = ISO_MSG_HELLO, .hello = {.min_version = 1, .max_version = 1}};
    rig_message(r, s->peer, who, &hello, NULL, 0);
    return s;
}

static void S17_a_token_can_only_enrol(void **state)
{
    (void)state;
    static const iso_msg_type types[] = {ISO_MSG_STATUS, ISO_MSG_UPDATE_BEGIN, ISO_MSG_BLOB_GET,
                                         ISO_MSG_EVAL_RESULT, ISO_MSG_RELEASE_VERDICT};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        rig *r = rig_new();
        iso_peer_name who;
        rig_site *s = token_peer(r, &who);
        iso_msg m = {.type = types[i]};
        rig_message(r, s->peer, &who, &m, NULL, 0);
        assert_int_equal(s->last_error, ISO_CODE_NOT_PERMITTED);
        assert_int_equal(s->peer, 0); /* cut */
        rig_free(r);
    }
}

static void S18_a_used_token_with_other_keys_is_refused_and_noted(void **state)
{
    (void)state;
    rig *r = rig_new();
    iso_peer_name who;
    rig_site *s = token_peer(r, &who);
    const iso_c_token *t = r->c->tokens[0];
    iso_msg m = {.type = ISO_MSG_ENROLL, .enroll = {.name = "thief"}};
    uint8_t bytes[ISO_ENROL_BYTES];
    memset(m.enroll.transport_pk, 9, 32);
    memcpy(m.enroll.sign_pk, s->sign.public_key, 32);
    iso_enrol_bytes(r->identity.federation, t->id, s->nonce, m.enroll.transport_pk,
                    m.enroll.sign_pk, bytes);
    iso_sign(ISO_LABEL_ENROL, bytes, sizeof bytes, s->sign.secret, m.enroll.signature);
    iso_mac(t->proof_key, bytes, sizeof bytes, m.enroll.mac);
    rig_message(r, s->peer, &who, &m, NULL, 0);
    assert_int_equal(s->last_error, ISO_CODE_TOKEN_USED);
    iso_coord_stats st;
    iso_coord_get_stats(r->c, &st);
    assert_int_equal(st.sites, 1);
    rig_free(r);
}

static void S20_five_wrong_proofs_burn_a_token(void **state)
{
    (void)state;
    rig *r = rig_new();
    iso_peer_name who;
    for (int i = 0; i < 5; i++) {
        rig_site *s = i ? &r->sites[0] : token_peer(r, &who);
        if (i) {
            iso_msg hello = {.type = ISO_MSG_HELLO, .hello = {.min_version = 1, .max_version = 1}};
            s->peer = r->next_peer++;
            rig_message(r, s->peer, &who, &hello, NULL, 0);
        }
        iso_msg m = {.type = ISO_MSG_ENROLL, .enroll = {.name = "a"}};
        rig_message(r, s->peer, &who, &m, NULL, 0);
        assert_int_equal(s->last_error, ISO_CODE_MAC);
    }
    assert_false(iso_c_token_is_open(r->c, r->c->tokens[0]));
    rig_free(r);
}

static void S26_a_revoked_sites_messages_have_no_effect(void **state)
{
    (void)state;
    rig *r = rig_new();
    rig_site *a = rig_enrol(r, "a"), *b = rig_enrol(r, "b");
    rig_hello(r, a);
    rig_hello(r, b);
    rig_admin(r, "{\"cmd\":\"rounds.open\",\"args\":{\"tasks\":[\"steel\"]}}");
    iso_envelope h = rig_envelope(r, a, 0);
    rig_sign_header(a, 0, &h);
    rig_begin(r, a, 0);
    iso_peer alive = a->peer;
    rig_admin(r, "{\"cmd\":\"sites.revoke\",\"args\":{\"name\":\"a\",\"reason\":\"stolen\"}}");
    assert_non_null(strstr(r->admin, "\"revoked\""));
    assert_int_equal(a->peer, 0); /* its live connection was cut */
    a->peer = alive;              /* and what it still sends is refused */
    iso_digest before = rig_digest(r, false);
    rig_chunk(r, a, 0, 0, RIG_BODY);
    assert_int_equal(a->last_error, ISO_CODE_REVOKED);
    iso_digest after = rig_digest(r, false);
    assert_memory_equal(before.b, after.b, 32);
    iso_coord_stats s;
    iso_coord_get_stats(r->c, &s);
    assert_int_equal(s.uploads, 0);
    rig_free(r);
}

static void revoking_the_last_site_of_a_task_asks_for_force(void **state)
{
    (void)state;
    rig *r = rig_new();
    rig_enrol(r, "c");
    rig_admin(r, "{\"cmd\":\"sites.revoke\",\"args\":{\"name\":\"c\"}}");
    assert_non_null(strstr(r->admin, "without sites"));
    rig_admin(r, "{\"cmd\":\"sites.revoke\",\"args\":{\"name\":\"c\",\"force\":true}}");
    assert_non_null(strstr(r->admin, "\"ok\":true"));
    rig_free(r);
}

static void S50_versions_and_federations_must_fit(void **state)
{
    (void)state;
    static const struct {
        uint32_t min, max;
        uint8_t federation;
        iso_code code;
    } rows[] = {{1, 3, 0xfe, ISO_CODE_OK},
                {2, 3, 0xfe, ISO_CODE_VERSION},
                {1, 1, 0xff, ISO_CODE_FEDERATION}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        rig *r = rig_new();
        rig_site *a = rig_enrol(r, "a");
        iso_msg m = {.type = ISO_MSG_HELLO,
                     .hello = {.min_version = rows[i].min, .max_version = rows[i].max}};
        memset(m.hello.federation_id, rows[i].federation, 16);
        a->peer = r->next_peer++;
        rig_send(r, a, &m);
        assert_int_equal(a->last_error, rows[i].code);
        rig_free(r);
    }
}

static void first_message_must_be_hello(void **state)
{
    (void)state;
    rig *r = rig_new();
    rig_site *a = rig_enrol(r, "a");
    a->peer = r->next_peer++;
    rig_status(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_NOT_PERMITTED);
    assert_int_equal(a->peer, 0);
    rig_free(r);
}

static void S58_floods_are_refused_then_cut(void **state)
{
    (void)state;
    rig *r = rig_new();
    rig_site *a = rig_enrol(r, "a");
    rig_hello(r, a);
    int sent = 0;
    for (; sent < 400 && a->peer; sent++)
        rig_status(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_RATE);
    assert_int_equal(a->peer, 0);
    assert_true(sent >= ISO_REQUESTS_BURST && sent < ISO_REQUESTS_BURST + 20);
    rig_hello(r, a); /* at once again: refused until the penalty is over */
    assert_int_equal(a->peer, 0);
    r->now += 61000;
    r->wall += 61000;
    rig_hello(r, a);
    assert_int_not_equal(a->peer, 0);
    rig_free(r);
}

static void U24_a_reconnect_replaces_the_old_session(void **state)
{
    (void)state;
    rig *r = rig_new();
    rig_site *a = rig_enrol(r, "a");
    rig_hello(r, a);
    size_t cuts = r->cuts;
    rig_hello(r, a);
    assert_int_equal(r->cuts, cuts + 1);
    assert_int_not_equal(a->peer, 0);
    rig_free(r);
}

/* The coordinator starts again with the roster that the operator put there. */
static void install_roster(rig *r, uint64_t version)
{
    char text[32];
    int n = snprintf(text, sizeof text, "roster %llu", (unsigned long long)version);
    r->identity.roster_version = version;
    r->identity.roster = iso_digest_of(text, (size_t)n);
    r->identity.roster_bytes = (uint64_t)n;
    rig_restore(r);
}

static void fetch(rig *r, rig_site *s, const uint8_t digest[32])
{
    iso_msg m = {.type = ISO_MSG_BLOB_GET, .blob_get = {.credit = 8}};
    memcpy(m.blob_get.digest, digest, 32);
    s->last_error = ISO_CODE_OK;
    rig_send(r, s, &m);
}

static void S14_a_site_two_rosters_behind_is_led_step_by_step(void **state)
{
    (void)state;
    rig *r = rig_new();
    rig_site *a = rig_enrol(r, "a"), *b = rig_enrol(r, "b"), *c = rig_enrol(r, "c");
    for (uint64_t version = 1; version <= 4; version++)
        install_roster(r, version);
    a->roster = 2;
    rig_hello(r, a);
    for (uint64_t version = 3; version <= 4; version++) {
        assert_int_equal(a->roster_offer.version, version);
        fetch(r, a, a->roster_offer.digest); /* each is served, the next one offered after it */
        assert_int_equal(a->last_error, ISO_CODE_OK);
    }
    assert_int_equal(a->roster_offer.version, 4); /* and no further */
    rig_hello(r, b); /* holds none: its enrolment line pinned the newest root */
    assert_int_equal(b->roster_offer.version, 4);
    c->roster = 4;
    rig_hello(r, c);
    assert_int_equal(c->roster_offer.version, 0);
    /* A line that broke in the middle: asked again at the next greeting. */
    a->roster = 3;
    rig_hello(r, a);
    assert_int_equal(a->roster_offer.version, 4);
    rig_free(r);
}

static void S14_a_roster_that_sites_could_not_follow_is_refused_at_start(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t version;
        bool is_changed, is_fine;
    } rows[] = {{"the same", 2, false, true},
                {"the next", 3, true, true},
                {"two on", 4, true, false},
                {"back", 1, false, false},
                {"the same, changed", 2, true, false}};
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rig *r = rig_new();
        iso_error e = {0};
        install_roster(r, 1);
        install_roster(r, 2);
        r->c->identity.roster_version = rows[i].version;
        if (rows[i].is_changed)
            r->c->identity.roster.b[0] ^= 1;
        iso_err err = iso_c_rosters_check(r->c, &e);
        if (err != (rows[i].is_fine ? ISO_OK : ISO_ERR_TRUST))
            fail_msg("%s: %d %s", rows[i].name, err, e.text);
        rig_free(r);
    }
}

static void gate_margin_is_the_larger_of_both(void **state)
{
    (void)state;
    static const struct {
        double least, baseline;
        uint64_t samples;
        double expected;
    } rows[] = {{0.01, 0.5, 100, 0.098},
                {0.01, 0.5, 1000000, 0.01},
                {0.2, 0.5, 100, 0.2},
                {0.01, 1.0, 10, 0.01}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        double got = iso_c_gate_margin(rows[i].least, rows[i].baseline, rows[i].samples);
        assert_true(fabs(got - rows[i].expected) < 1e-9);
    }
}

static void index_finds_what_it_holds_and_nothing_else(void **state)
{
    (void)state;
    enum { N = 2000 };
    static int values[N];
    iso_index x = {0};
    uint8_t key[16] = {0};
    for (uint32_t i = 0; i < N; i++) {
        iso_put_u32(key, i * 7);
        assert_true(iso_index_put(&x, key, &values[i]));
    }
    for (uint32_t i = 0; i < N; i += 3) {
        iso_put_u32(key, i * 7);
        iso_index_remove(&x, key);
    }
    for (uint32_t i = 0; i < N; i++) {
        iso_put_u32(key, i * 7);
        assert_ptr_equal(iso_index_get(&x, key), i % 3 ? &values[i] : NULL);
    }
    iso_index_free(&x);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S17_a_token_can_only_enrol),
        cmocka_unit_test(S18_a_used_token_with_other_keys_is_refused_and_noted),
        cmocka_unit_test(S20_five_wrong_proofs_burn_a_token),
        cmocka_unit_test(S26_a_revoked_sites_messages_have_no_effect),
        cmocka_unit_test(revoking_the_last_site_of_a_task_asks_for_force),
        cmocka_unit_test(S50_versions_and_federations_must_fit),
        cmocka_unit_test(first_message_must_be_hello),
        cmocka_unit_test(S58_floods_are_refused_then_cut),
        cmocka_unit_test(U24_a_reconnect_replaces_the_old_session),
        cmocka_unit_test(S14_a_site_two_rosters_behind_is_led_step_by_step),
        cmocka_unit_test(S14_a_roster_that_sites_could_not_follow_is_refused_at_start),
        cmocka_unit_test(gate_margin_is_the_larger_of_both),
        cmocka_unit_test(index_finds_what_it_holds_and_nothing_else),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
