/* Labels, MAC, seam, text forms, signed byte layouts of requests (S7, S9, S29). */
#include "crypto/request.h"
#include "crypto/sealer_real.h"
#include "crypto/text.h"
#include "tests/crypto/support.h"

#include <sodium.h>

static void S7_a_signature_of_one_label_is_refused_under_all_others(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_SITE_SIGN, 3);
    uint8_t message[384];
    fill_random(message, sizeof message, 7);
    for (int a = 0; a < ISO_LABEL_COUNT; a++) {
        uint8_t signature[64];
        iso_sign((iso_label)a, message, sizeof message, k.secret, signature);
        for (int b = 0; b < ISO_LABEL_COUNT; b++)
            assert_int_equal(
                iso_sign_check((iso_label)b, message, sizeof message, k.public_key, signature),
                a == b);
        for (int c = 0; c < a; c++)
            assert_string_not_equal(iso_label_text((iso_label)a), iso_label_text((iso_label)c));
        assert_in_range(strlen(iso_label_text((iso_label)a)), 1, 15);
    }
    uint8_t zero[64] = {0}, signature[64];
    iso_sign(ISO_LABEL_COUNT, message, sizeof message, k.secret, signature);
    assert_memory_equal(signature, zero, 64);
    assert_false(iso_sign_check(ISO_LABEL_COUNT, message, sizeof message, k.public_key, signature));
    iso_key_free(&k);
}

static void S7_the_label_is_sixteen_bytes_before_the_message(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_AUDIT, 4);
    uint8_t joined[16 + 5] = "isofed-head-1", signature[64], expected[64];
    memcpy(joined + 16, "hello", 5);
    iso_sign(ISO_LABEL_HEAD, "hello", 5, k.secret, signature);
    crypto_sign_detached(expected, NULL, joined, sizeof joined, k.secret);
    assert_memory_equal(signature, expected, 64);
    iso_key_free(&k);
}

static void S7_messages_of_any_length(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_AUDIT, 4);
    uint8_t *message = malloc(5000);
    fill_random(message, 5000, 1);
    static const size_t sizes[] = {0, 1, 136, 495, 496, 497, 512, 5000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        uint8_t signature[64];
        iso_sign(ISO_LABEL_REQUEST, message, sizes[i], k.secret, signature);
        assert_true(iso_sign_check(ISO_LABEL_REQUEST, message, sizes[i], k.public_key, signature));
        if (sizes[i]) {
            message[sizes[i] - 1] ^= 1;
            assert_false(
                iso_sign_check(ISO_LABEL_REQUEST, message, sizes[i], k.public_key, signature));
            message[sizes[i] - 1] ^= 1;
        }
    }
    free(message);
    iso_key_free(&k);
}

static void S18_mac(void **state)
{
    (void)state;
    uint8_t key[32] = {1}, mac[32];
    iso_mac(key, "enrol", 5, mac);
    assert_true(iso_mac_check(key, "enrol", 5, mac));
    assert_false(iso_mac_check(key, "enrom", 5, mac));
    mac[31] ^= 1;
    assert_false(iso_mac_check(key, "enrol", 5, mac));
    mac[31] ^= 1;
    key[0] = 2;
    assert_false(iso_mac_check(key, "enrol", 5, mac));
}

static void S29_the_seam_signs_as_the_functions_do(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_SITE_SIGN, 5), box = key_of(ISO_KEY_MERGE, 5);
    iso_sealer s = iso_sealer_real(&k), none = iso_sealer_real(NULL), wrong = iso_sealer_real(&box);
    uint8_t header[384], signature[64], expected[64], zero[64] = {0};
    fill_random(header, sizeof header, 5);
    s.sign(s.ctx, ISO_LABEL_UPDATE, header, sizeof header, signature);
    iso_sign(ISO_LABEL_UPDATE, header, sizeof header, k.secret, expected);
    assert_memory_equal(signature, expected, 64);
    assert_true(
        none.verify(none.ctx, ISO_LABEL_UPDATE, k.public_key, header, sizeof header, signature));
    none.sign(none.ctx, ISO_LABEL_HEAD, header, 10, signature);
    assert_memory_equal(signature, zero, 64);
    wrong.sign(wrong.ctx, ISO_LABEL_HEAD, header, 10, signature);
    assert_memory_equal(signature, zero, 64);
    assert_false(s.verify(s.ctx, ISO_LABEL_HEAD, k.public_key, header, 10, zero));
    iso_digest d = s.digest(s.ctx, "abc", 3), e = iso_digest_of("abc", 3);
    assert_true(iso_digest_equal(&d, &e));
    uint8_t mac[32];
    s.mac(s.ctx, header, "x", 1, mac);
    assert_true(s.mac_verify(s.ctx, header, "x", 1, mac));
    iso_key_free(&k);
    iso_key_free(&box);
}

static void S7_small_order_keys_and_zero_signatures_are_refused(void **state)
{
    (void)state;
    uint8_t pk[32] = {1}, signature[64] = {0};
    assert_false(iso_sign_check(ISO_LABEL_HEAD, "x", 1, pk, signature));
    memset(pk, 0, 32);
    assert_false(iso_sign_check(ISO_LABEL_HEAD, "x", 1, pk, signature));
}

static void S33_request_layouts(void **state)
{
    (void)state;
    uint8_t fed[16], site[16], token[4], nonce[32], t[32], k[32], id[16];
    uint8_t enrol[ISO_ENROL_BYTES], verdict[ISO_VERDICT_BYTES], eval[ISO_EVAL_BYTES],
        rotate[ISO_ROTATE_BYTES];
    memset(fed, 1, 16), memset(site, 2, 16), memset(token, 3, 4), memset(nonce, 4, 32);
    memset(t, 5, 32), memset(k, 6, 32), memset(id, 7, 16);
    iso_enrol_bytes(fed, token, nonce, t, k, enrol);
    assert_memory_equal(enrol, "ENROLLv1", 8);
    assert_memory_equal(enrol + 8, fed, 16);
    assert_memory_equal(enrol + 24, token, 4);
    assert_memory_equal(enrol + 28, nonce, 32);
    assert_memory_equal(enrol + 60, t, 32);
    assert_memory_equal(enrol + 92, k, 32);
    iso_verdict_bytes(fed, site, 9, ISO_VERDICT_REJECTED, 0.5f, 0.25f, 1.0f, "worse", verdict);
    assert_memory_equal(verdict, "VERDICT1", 8);
    assert_memory_equal(verdict + 24, site, 16);
    assert_int_equal(iso_get_u64(verdict + 40), 9);
    assert_int_equal(iso_get_u32(verdict + 48), 2);
    assert_int_equal(iso_get_u32(verdict + 52), 0x3f000000);
    assert_int_equal(iso_get_u32(verdict + 60), 0x3f800000);
    iso_digest reason = iso_digest_of("worse", 5);
    assert_memory_equal(verdict + 64, reason.b, 32);
    iso_eval_bytes(fed, site, id, 0.5f, 30, 0.25f, ISO_EVAL_SCORED, eval);
    assert_memory_equal(eval, "EVALRES1", 8);
    assert_memory_equal(eval + 40, id, 16);
    assert_int_equal(iso_get_u32(eval + 56), 0x3f000000);
    assert_int_equal(iso_get_u64(eval + 60), 30);
    assert_int_equal(iso_get_u32(eval + 72), 1);
    iso_rotate_bytes(fed, site, t, k, rotate);
    assert_memory_equal(rotate, "ROTATEv1", 8);
    assert_memory_equal(rotate + 40, t, 32);
    assert_memory_equal(rotate + 72, k, 32);
}

static void S9_site_id_and_fingerprint_are_one_digest(void **state)
{
    (void)state;
    uint8_t t[32] = {1}, k[32] = {2}, id[16], print[20], bytes[77] = "isofed-site-1";
    char text[ISO_FINGERPRINT_TEXT];
    memcpy(bytes + 13, t, 32);
    memcpy(bytes + 45, k, 32);
    iso_digest d = iso_digest_of(bytes, sizeof bytes);
    iso_site_id(t, k, id);
    iso_site_fingerprint(t, k, print);
    assert_memory_equal(id, d.b, 16);
    assert_memory_equal(print, d.b, 20);
    iso_fingerprint_text(print, text);
    assert_int_equal(strlen(text), 39);
    for (size_t i = 4; i < 39; i += 5)
        assert_int_equal(text[i], '-');
}

static void S16_base32_is_crockfords_with_one_encoding(void **state)
{
    (void)state;
    uint8_t bytes[27], back[27];
    char text[64];
    size_t bad = 99;
    const uint8_t known[5] = {0x00, 0x44, 0x32, 0x14, 0xc7}; /* digits 0 1 2 3 4 5 6 7 */
    iso_base32_encode(known, 5, text);
    assert_string_equal(text, "01234567");
    for (uint64_t seed = 0; seed < 200; seed++) {
        size_t n = 1 + seed % 27;
        fill_random(bytes, n, seed);
        iso_base32_encode(bytes, n, text);
        assert_int_equal(strlen(text), iso_base32_chars(n));
        for (char *c = text; *c; c++)
            if (*c >= 'A')
                *c = (char)(*c + ('a' - 'A')); /* people type lower case */
        assert_true(iso_base32_decode(text, n, back, &bad));
        assert_memory_equal(back, bytes, n);
    }
    assert_true(iso_base32_decode("o1Il4567", 5, back, &bad)); /* O I L are read as 0 1 1 */
    assert_false(iso_base32_decode("01U34567", 5, back, &bad));
    assert_int_equal(bad, 2);
    assert_false(iso_base32_decode("0123", 5, back, &bad)); /* short: stops at the NUL */
    assert_int_equal(bad, 4);
    assert_true(iso_base32_decode("00", 1, back, &bad));
    assert_false(iso_base32_decode("01", 1, back, &bad)); /* padding bit set */
    assert_int_equal(bad, 1);
}

static void S10_base64_has_one_encoding(void **state)
{
    (void)state;
    uint8_t bytes[40], back[40];
    char text[64];
    for (uint64_t seed = 0; seed < 100; seed++) {
        size_t n = 1 + seed % 40;
        fill_random(bytes, n, seed);
        iso_base64_encode(bytes, n, text);
        assert_int_equal(strlen(text), iso_base64_chars(n));
        assert_true(iso_base64_decode(text, strlen(text), back, n));
        assert_memory_equal(back, bytes, n);
        iso_base64url_encode(bytes, n, text);
        assert_int_equal(strlen(text), iso_base64url_chars(n));
        assert_true(iso_base64url_decode(text, strlen(text), back, n));
        assert_memory_equal(back, bytes, n);
    }
    assert_false(iso_base64_decode("AB==", 4, back, 1)); /* padding bits */
    assert_true(iso_base64_decode("AA==", 4, back, 1));
    assert_false(iso_base64_decode("AA=", 3, back, 1));
    assert_false(iso_base64_decode("AA\n=", 4, back, 1));
    assert_false(iso_base64_decode("AAAA", 4, back, 2));
}

static void S16_crc_is_ccitt_false(void **state)
{
    (void)state;
    assert_int_equal(iso_crc16("123456789", 9), 0x29b1); /* the published check value */
    assert_int_equal(iso_crc16("", 0), 0xffff);
}

static void S5_secrets_are_zeroed_and_dumps_are_off(void **state)
{
    (void)state;
    uint8_t zero[64] = {0};
    uint8_t *p = iso_secret_alloc(64);
    assert_non_null(p);
    assert_memory_equal(p, zero, 64);
    assert_true(iso_secret_equal(p, zero, 64));
    p[63] = 1;
    assert_false(iso_secret_equal(p, zero, 64));
    iso_secret_free(p);
    iso_secret_free(NULL);
    assert_ok(iso_crypto_no_dumps(E));
    iso_entropy r = iso_entropy_real();
    uint8_t a[32] = {0}, b[32] = {0};
    r.fill(r.ctx, a, 32);
    r.fill(r.ctx, b, 32);
    assert_memory_not_equal(a, b, 32);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S7_a_signature_of_one_label_is_refused_under_all_others),
        cmocka_unit_test(S7_the_label_is_sixteen_bytes_before_the_message),
        cmocka_unit_test(S7_messages_of_any_length),
        cmocka_unit_test(S18_mac),
        cmocka_unit_test(S29_the_seam_signs_as_the_functions_do),
        cmocka_unit_test(S7_small_order_keys_and_zero_signatures_are_refused),
        cmocka_unit_test(S33_request_layouts),
        cmocka_unit_test(S9_site_id_and_fingerprint_are_one_digest),
        cmocka_unit_test(S16_base32_is_crockfords_with_one_encoding),
        cmocka_unit_test(S10_base64_has_one_encoding),
        cmocka_unit_test(S16_crc_is_ccitt_false),
        cmocka_unit_test(S5_secrets_are_zeroed_and_dumps_are_off),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
