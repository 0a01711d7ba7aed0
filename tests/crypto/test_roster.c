/* roster.json and its steps (S14, S23). */
#include "crypto/roster.h"
#include "tests/crypto/support.h"

static iso_minisign_key root_of(uint8_t fill)
{
    uint8_t id[8], seed[32];
    iso_minisign_key k;
    memset(id, fill, 8);
    memset(seed, fill, 32);
    assert_ok(iso_minisign_from_seed(id, seed, &k, E));
    return k;
}

static iso_roster roster_of(const iso_minisign_key *root, uint64_t version)
{
    iso_roster r = {.version = version,
                    .root = root->public_part,
                    .merge_count = 2,
                    .release_count = 1,
                    .threshold = 1};
    memset(r.federation_id, 0xfe, 16);
    memset(r.coordinator_transport_pk, 1, 32);
    memset(r.audit_pk, 2, 32);
    memset(r.merge[0].pk, 3, 32);
    memset(r.merge[1].pk, 4, 32);
    for (int i = 0; i < 2; i++)
        iso_merge_key_id(r.merge[i].pk, r.merge[i].id);
    r.merge[0].state = ISO_ROSTER_DECRYPT_ONLY;
    r.merge[1].not_before_ms = 1000;
    r.merge[1].not_after_ms = 5000;
    memset(r.release[0].key.key_id, 5, 8);
    memset(r.release[0].key.public_key, 6, 32);
    r.release[0].not_before_ms = 10;
    return r;
}

typedef struct {
    iso_buf text, sig;
} signed_roster;

static signed_roster sign_roster(const iso_roster *r, const iso_minisign_key *root)
{
    signed_roster s = {0};
    assert_ok(iso_roster_format(r, &s.text, E));
    assert_ok(iso_roster_sign(root, s.text.data, s.text.size, &s.sig, E));
    return s;
}

static void free_signed(signed_roster *s)
{
    iso_buf_free(&s->text);
    iso_buf_free(&s->sig);
}

static void S14_there_and_back(void **state)
{
    (void)state;
    iso_minisign_key root = root_of(1);
    iso_roster r = roster_of(&root, 1), back;
    signed_roster s = sign_roster(&r, &root);
    assert_ok(iso_roster_verify(&root.public_part, s.text.data, s.text.size, s.sig.data, s.sig.size,
                                &back, E));
    iso_buf again = {0};
    assert_ok(iso_roster_format(&back, &again, E));
    assert_int_equal(again.size, s.text.size);
    assert_memory_equal(again.data, s.text.data, again.size);
    assert_int_equal(back.merge[0].state, ISO_ROSTER_DECRYPT_ONLY);
    assert_int_equal(back.merge[1].not_after_ms, 5000);
    assert_non_null(strstr((char *)s.sig.data, "trusted comment: isofed-roster federation=fefe"));
    iso_buf_free(&again);
    free_signed(&s);
    iso_minisign_free(&root);
}

static void S14_only_the_next_version_by_the_held_root(void **state)
{
    (void)state;
    iso_minisign_key root = root_of(1), thief = root_of(2);
    iso_roster held = roster_of(&root, 7), out;
    iso_error e;
    static const struct {
        uint64_t version;
        bool by_thief, other_federation;
        iso_err err;
    } rows[] = {{8, false, false, ISO_OK},        {7, false, false, ISO_ERR_TRUST},
                {6, false, false, ISO_ERR_TRUST}, {9, false, false, ISO_ERR_TRUST},
                {8, true, false, ISO_ERR_TRUST},  {8, false, true, ISO_ERR_TRUST}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_roster next = roster_of(&root, rows[i].version);
        if (rows[i].other_federation)
            next.federation_id[0] = 0;
        signed_roster s = sign_roster(&next, rows[i].by_thief ? &thief : &root);
        memset(&out, 0x5a, sizeof out);
        iso_err err = iso_roster_step(&held, s.text.data, s.text.size, s.sig.data, s.sig.size, NULL,
                                      0, &out, &e);
        assert_int_equal(err, rows[i].err);
        if (err)
            assert_int_equal(out.threshold, 0x5a5a5a5a); /* untouched */
        free_signed(&s);
    }
    iso_minisign_free(&root);
    iso_minisign_free(&thief);
}

static void S14_a_change_of_root_is_signed_by_both(void **state)
{
    (void)state;
    iso_minisign_key old = root_of(1), new = root_of(2);
    iso_roster held = roster_of(&old, 1), next = roster_of(&new, 2), out;
    iso_error e;
    signed_roster s = sign_roster(&next, &old);
    iso_buf second = {0};
    assert_int_equal(
        iso_roster_step(&held, s.text.data, s.text.size, s.sig.data, s.sig.size, NULL, 0, &out, &e),
        ISO_ERR_TRUST);
    assert_int_equal(iso_roster_step(&held, s.text.data, s.text.size, s.sig.data, s.sig.size,
                                     s.sig.data, s.sig.size, &out, &e),
                     ISO_ERR_TRUST);
    assert_ok(iso_roster_sign(&new, s.text.data, s.text.size, &second, E));
    assert_int_equal(iso_roster_step(&held, s.text.data, s.text.size, second.data, second.size,
                                     s.sig.data, s.sig.size, &out, &e),
                     ISO_ERR_TRUST); /* the new root alone decides nothing */
    assert_ok(iso_roster_step(&held, s.text.data, s.text.size, s.sig.data, s.sig.size, second.data,
                              second.size, &held, E)); /* in place */
    assert_memory_equal(&held.root, &new.public_part, sizeof held.root);
    assert_int_equal(iso_roster_verify(&old.public_part, s.text.data, s.text.size, s.sig.data,
                                       s.sig.size, &out, &e),
                     ISO_ERR_TRUST); /* a first roster names the pinned root */
    iso_buf_free(&second);
    free_signed(&s);
    iso_minisign_free(&old);
    iso_minisign_free(&new);
}

static void S14_a_release_comment_signs_no_roster(void **state)
{
    (void)state;
    iso_minisign_key root = root_of(1);
    iso_roster r = roster_of(&root, 1), out;
    iso_buf text = {0}, sig = {0};
    iso_error e;
    assert_ok(iso_roster_format(&r, &text, E));
    assert_ok(iso_minisign_sign(&root, text.data, text.size, "isofed-release number=1", &sig, E));
    assert_int_equal(
        iso_roster_verify(&root.public_part, text.data, text.size, sig.data, sig.size, &out, &e),
        ISO_ERR_TRUST);
    iso_buf_free(&text);
    iso_buf_free(&sig);
    iso_minisign_free(&root);
}

static void S14_what_is_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name, *from, *to;
    } rows[] = {{"format", "\"format\":1", "\"format\":2"},
                {"version 0", "\"version\":1", "\"version\":0"},
                {"threshold 0", "\"threshold\":1", "\"threshold\":0"},
                {"threshold 3", "\"threshold\":1", "\"threshold\":3"},
                {"unknown key", "\"format\":1", "\"format\":1,\"g\":1"},
                {"missing key", "\"threshold\":1,", ""},
                {"state", "\"active\"", "\"actove\""},
                {"merge id", "\"pk\":\"0303", "\"pk\":\"0304"},
                {"ends before it begins", "\"not_after_ms\":5000", "\"not_after_ms\":500"},
                {"blank", "\"format\":1", "\"format\": 1"}};
    iso_minisign_key root = root_of(1);
    iso_roster r = roster_of(&root, 1), out;
    iso_buf text = {0};
    iso_error e;
    assert_ok(iso_roster_format(&r, &text, E));
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_buf b = {0};
        const char *start = (char *)text.data, *at = strstr(start, rows[i].from);
        assert_non_null(at);
        assert_ok(iso_buf_printf(&b, E, "%.*s%s%s", (int)(at - start), start, rows[i].to,
                                 at + strlen(rows[i].from)));
        if (iso_roster_parse(b.data, b.size, &out, &e) != ISO_ERR_DATA)
            fail_msg("accepted: %s", rows[i].name);
        iso_buf_free(&b);
    }
    for (size_t n = 0; n < text.size; n++)
        assert_int_equal(iso_roster_parse(text.data, n, &out, &e), ISO_ERR_DATA);
    iso_roster bad = roster_of(&root, 1);
    text.size = 0;
    bad.merge[1] = bad.merge[0]; /* one key twice */
    assert_int_equal(iso_roster_format(&bad, &text, &e), ISO_ERR_DATA);
    bad = roster_of(&root, 1);
    bad.release[0].state = ISO_ROSTER_DECRYPT_ONLY;
    assert_int_equal(iso_roster_format(&bad, &text, &e), ISO_ERR_DATA);
    bad = roster_of(&root, 1);
    bad.merge_count = ISO_ROSTER_KEYS_MAX + 1;
    assert_int_equal(iso_roster_format(&bad, &text, &e), ISO_ERR_DATA);
    bad = roster_of(&root, 1);
    bad.merge[0].state = ISO_ROSTER_STATES;
    assert_int_equal(iso_roster_format(&bad, &text, &e), ISO_ERR_DATA);
    assert_int_equal(text.size, 0);
    iso_buf_free(&text);
    iso_minisign_free(&root);
}

static void S23_which_key_is_used_when(void **state)
{
    (void)state;
    iso_minisign_key root = root_of(1);
    iso_roster r = roster_of(&root, 1);
    const uint8_t id[8] = {5, 5, 5, 5, 5, 5, 5, 5}, other[8] = {0};
    assert_null(iso_roster_merge_now(&r, 999));
    assert_ptr_equal(iso_roster_merge_now(&r, 1000), &r.merge[1]);
    assert_null(iso_roster_merge_now(&r, 5000));
    r.merge[0].state = ISO_ROSTER_ACTIVE;
    assert_ptr_equal(iso_roster_merge_now(&r, 999), &r.merge[0]);
    assert_ptr_equal(iso_roster_merge_now(&r, 2000), &r.merge[1]); /* the newer one */
    assert_null(iso_roster_release_key(&r, id, 9));
    assert_ptr_equal(iso_roster_release_key(&r, id, 10), &r.release[0]);
    assert_null(iso_roster_release_key(&r, other, 10));
    r.release[0].state = ISO_ROSTER_RETIRED;
    assert_null(iso_roster_release_key(&r, id, 10));
    iso_minisign_free(&root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S14_there_and_back),
        cmocka_unit_test(S14_only_the_next_version_by_the_held_root),
        cmocka_unit_test(S14_a_change_of_root_is_signed_by_both),
        cmocka_unit_test(S14_a_release_comment_signs_no_roster),
        cmocka_unit_test(S14_what_is_refused),
        cmocka_unit_test(S23_which_key_is_used_when),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
