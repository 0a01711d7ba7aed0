/* Enrolment tokens and lines (S16, AMENDMENT 1). */
#include "crypto/text.h"
#include "crypto/token.h"
#include "tests/crypto/support.h"

#include <sodium.h>

static iso_token token_of(uint64_t seed)
{
    iso_token t;
    fill_random(t.id, sizeof t.id, seed);
    fill_random(t.seed, sizeof t.seed, seed + 1000);
    return t;
}

static void S16_there_and_back(void **state)
{
    (void)state;
    for (uint64_t seed = 0; seed < 100; seed++) {
        iso_token t = token_of(seed), back;
        char text[ISO_TOKEN_TEXT], lower[ISO_TOKEN_TEXT];
        iso_token_format(&t, text);
        assert_int_equal(strlen(text), 8 + 44);
        assert_int_equal(strncmp(text, "isofed1-", 8), 0);
        assert_ok(iso_token_parse(text, &back, E));
        assert_memory_equal(&back, &t, sizeof t);
        for (size_t i = 0; i < sizeof lower; i++)
            lower[i] = (char)(text[i] >= 'A' && text[i] <= 'Z' ? text[i] + 32 : text[i]);
        assert_ok(iso_token_parse(lower, &back, E));
        assert_memory_equal(&back, &t, sizeof t);
    }
    iso_token a, b;
    iso_token_make(&a);
    iso_token_make(&b);
    assert_memory_not_equal(&a, &b, sizeof a);
}

static void S16_keys_come_from_the_seed(void **state)
{
    (void)state;
    iso_token t = token_of(5);
    iso_token_keys k;
    uint8_t stretched[64], pk[32], sk[32];
    iso_token_derive(&t, &k);
    assert_int_equal(
        crypto_generichash(stretched, 64, (const uint8_t *)"isofed-token-1", 14, t.seed, 20), 0);
    crypto_box_seed_keypair(pk, sk, stretched);
    assert_memory_equal(k.transport_pk, pk, 32);
    assert_memory_equal(k.transport_secret, sk, 32);
    assert_memory_equal(k.proof_key, stretched + 32, 32);
    crypto_scalarmult_base(pk, k.transport_secret); /* what zmq_curve_public computes */
    assert_memory_equal(k.transport_pk, pk, 32);
}

/* A changed character: refused, and the group that is named is the right one (nearly always: two
 * of the 1,400 repairs that are tried may agree by chance, then no group is named). */
static void S16_a_mistyped_character_names_its_group(void **state)
{
    (void)state;
    static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";
    int named = 0, tries = 0;
    for (uint64_t seed = 0; seed < 12; seed++)
        for (int i = 0; i < 44; i++) {
            iso_token t = token_of(seed), back;
            char text[ISO_TOKEN_TEXT], group[32];
            iso_error e = {.text = ""};
            iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, (uint64_t)i);
            iso_token_format(&t, text);
            char kept = text[8 + i];
            while (text[8 + i] == kept)
                text[8 + i] = alphabet[iso_rng_below(&r, 32)];
            assert_int_equal(iso_token_parse(text, &back, &e), ISO_ERR_USAGE);
            snprintf(group, sizeof group, "group %d (", i / 4 + 1);
            tries++;
            if (strstr(e.text, "check group"))
                named += strstr(e.text, group) != NULL;
        }
    if (named * 100 < tries * 95)
        fail_msg("named %d of %d", named, tries);
}

static void S16_neighbours_swapped_names_the_group(void **state)
{
    (void)state;
    int named = 0, tries = 0;
    for (uint64_t seed = 0; seed < 40; seed++)
        for (int i = 0; i < 43; i += 2) { /* both in one group */
            iso_token t = token_of(seed), back;
            iso_error e = {.text = ""};
            char text[ISO_TOKEN_TEXT], group[32];
            iso_token_format(&t, text);
            char kept = text[8 + i];
            if (kept == text[9 + i])
                continue;
            text[8 + i] = text[9 + i];
            text[9 + i] = kept;
            assert_int_equal(iso_token_parse(text, &back, &e), ISO_ERR_USAGE);
            snprintf(group, sizeof group, "group %d (", i / 4 + 1);
            tries++;
            if (strstr(e.text, "check group"))
                named += strstr(e.text, group) != NULL;
        }
    if (named * 100 < tries * 95)
        fail_msg("named %d of %d", named, tries);
}

static void S16_what_is_no_token(void **state)
{
    (void)state;
    iso_token t = token_of(1), back;
    char text[ISO_TOKEN_TEXT + 8], copy[ISO_TOKEN_TEXT + 8];
    iso_error e;
    iso_token_format(&t, text);
    strcpy(copy, text);
    copy[8 + 9] = 'U';
    assert_int_equal(iso_token_parse(copy, &back, &e), ISO_ERR_USAGE);
    assert_non_null(strstr(e.text, "group 3"));
    strcpy(copy, text);
    copy[51] = 0;
    assert_int_equal(iso_token_parse(copy, &back, &e), ISO_ERR_USAGE);
    strcpy(copy, text);
    strcat(copy, "0");
    assert_int_equal(iso_token_parse(copy, &back, &e), ISO_ERR_USAGE);
    assert_int_equal(iso_token_parse("", &back, &e), ISO_ERR_USAGE);
    assert_int_equal(iso_token_parse("isofed2-0000", &back, &e), ISO_ERR_USAGE);
    /* another version with a right checksum */
    uint8_t bytes[27] = {2};
    iso_put_u16(bytes + 25, iso_crc16(bytes, 25));
    iso_base32_encode(bytes, 27, copy + 8);
    assert_int_equal(iso_token_parse(copy, &back, &e), ISO_ERR_USAGE);
    bytes[0] = 1;
    iso_put_u16(bytes + 25, iso_crc16(bytes, 25));
    iso_base32_encode(bytes, 27, copy + 8);
    assert_ok(iso_token_parse(copy, &back, E));
}

static iso_enrol_line line_of(const char *host, uint16_t port)
{
    iso_enrol_line l = {.token = token_of(9), .port = port};
    strcpy(l.host, host);
    fill_random(l.coordinator_pk, 32, 1);
    fill_random(l.root_fingerprint, 20, 2);
    return l;
}

static void A1_enrolment_line_there_and_back(void **state)
{
    (void)state;
    static const struct {
        const char *host, *shown;
        uint16_t port;
    } rows[] = {{"fl.corp", "@fl.corp:7443/", 7443},
                {"10.0.0.7", "@10.0.0.7:1/", 1},
                {"::1", "@[::1]:65535/", 65535},
                {"plant_7-a", "@plant_7-a:80/", 80}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_enrol_line l = line_of(rows[i].host, rows[i].port), back;
        char text[ISO_ENROL_LINE_TEXT], spaced[ISO_ENROL_LINE_TEXT + 8];
        assert_ok(iso_enrol_line_format(&l, text, E));
        assert_non_null(strstr(text, rows[i].shown));
        assert_int_equal(strlen(strrchr(text, '/') + 1), 32);
        assert_ok(iso_enrol_line_parse(text, &back, E));
        assert_memory_equal(&back, &l, sizeof l);
        snprintf(spaced, sizeof spaced, "  %s\r\n", text);
        assert_ok(iso_enrol_line_parse(spaced, &back, E));
        assert_memory_equal(&back, &l, sizeof l);
    }
    char longest[ISO_HOST_MAX + 1], text[ISO_ENROL_LINE_TEXT];
    memset(longest, 'a', ISO_HOST_MAX);
    longest[ISO_HOST_MAX] = 0;
    iso_enrol_line l = line_of(longest, 65535), back;
    assert_ok(iso_enrol_line_format(&l, text, E));
    assert_ok(iso_enrol_line_parse(text, &back, E));
    assert_string_equal(back.host, longest);
}

static void A1_lines_that_are_refused(void **state)
{
    (void)state;
    iso_enrol_line l = line_of("host", 7443), back;
    char text[ISO_ENROL_LINE_TEXT], copy[2 * ISO_ENROL_LINE_TEXT];
    iso_error e;
    assert_ok(iso_enrol_line_format(&l, text, E));
    static const struct {
        const char *name, *from, *to;
    } rows[] = {{"no at sign", "@", "!"},
                {"no key", "/", "!"},
                {"no port", ":7443", ""},
                {"port zero", ":7443", ":0"},
                {"port leading zero", ":7443", ":07443"},
                {"port too large", ":7443", ":65536"},
                {"port signed", ":7443", ":+443"},
                {"no host", "@host", "@"},
                {"bare IPv6", "@host", "@::1"},
                {"brackets around a name", "@host", "@[host]"},
                {"control in the host", "@host", "@ho\033st"},
                {"host is an option", "@host", "@-h"},
                {"blank in the middle", "@host", "@ho st"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        char *at = strstr(text, rows[i].from);
        snprintf(copy, sizeof copy, "%.*s%s%s", (int)(at - text), text, rows[i].to,
                 at + strlen(rows[i].from));
        if (iso_enrol_line_parse(copy, &back, &e) != ISO_ERR_USAGE)
            fail_msg("accepted: %s", rows[i].name);
    }
    for (size_t n = 0; n < strlen(text); n++) { /* every prefix */
        memcpy(copy, text, n);
        copy[n] = 0;
        assert_int_equal(iso_enrol_line_parse(copy, &back, &e), ISO_ERR_USAGE);
    }
    memset(copy, 'a', sizeof copy - 1);
    copy[sizeof copy - 1] = 0;
    assert_int_equal(iso_enrol_line_parse(copy, &back, &e), ISO_ERR_USAGE);
    l.port = 0;
    assert_int_equal(iso_enrol_line_format(&l, text, &e), ISO_ERR_USAGE);
    l.port = 1;
    strcpy(l.host, "a b");
    assert_int_equal(iso_enrol_line_format(&l, text, &e), ISO_ERR_USAGE);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S16_there_and_back),
        cmocka_unit_test(S16_keys_come_from_the_seed),
        cmocka_unit_test(S16_a_mistyped_character_names_its_group),
        cmocka_unit_test(S16_neighbours_swapped_names_the_group),
        cmocka_unit_test(S16_what_is_no_token),
        cmocka_unit_test(A1_enrolment_line_there_and_back),
        cmocka_unit_test(A1_lines_that_are_refused),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
