/* Audit entries and chain, signed heads, receipts (S52, S101, S104, S105). */
#include "crypto/chain.h"
#include "crypto/sealer_real.h"
#include "tests/crypto/support.h"

#include <sodium.h>

static iso_buf entry_of(uint64_t seq, uint64_t time_ms, const char *details)
{
    iso_audit_entry a = {.seq = seq,
                         .time_ms = time_ms,
                         .type = ISO_AUDIT_COMMITTED,
                         .details = details,
                         .details_bytes = strlen(details)};
    iso_buf out = {0};
    memset(a.actor, 0xac, 16);
    memset(a.subject.b, 0x5b, 32);
    assert_ok(iso_audit_encode(&a, &out, E));
    return out;
}

static void S101_entry_bytes(void **state)
{
    (void)state;
    iso_buf b = entry_of(7, 1234, "{\"bytes\":10}\n");
    iso_audit_entry a;
    assert_int_equal(b.size, 70 + 13);
    assert_int_equal(iso_get_u64(b.data), 7);
    assert_int_equal(iso_get_u64(b.data + 8), 1234);
    assert_int_equal(iso_get_u16(b.data + 16), 0x100 | ISO_AUDIT_COMMITTED);
    assert_int_equal(b.data[18], 0xac);
    assert_int_equal(b.data[34], 0x5b);
    assert_int_equal(iso_get_u32(b.data + 66), 13);
    assert_memory_equal(b.data + 70, "{\"bytes\":10}\n", 13);
    assert_ok(iso_audit_decode(b.data, b.size, &a, E));
    assert_int_equal(a.seq, 7);
    assert_int_equal(a.type, ISO_AUDIT_COMMITTED);
    assert_string_equal(iso_audit_type_name(a.type), "committed");
    for (size_t n = 0; n < b.size; n++) {
        iso_error e;
        uint8_t *copy = malloc(n ? n : 1);
        memcpy(copy, b.data, n);
        assert_int_equal(iso_audit_decode(copy, n, &a, &e), ISO_ERR_DATA);
        free(copy);
    }
    iso_buf_free(&b);
}

static void S101_entries_that_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *name, *details;
        size_t at;
        uint8_t value;
    } rows[] = {{"format 0", "{}\n", 17, 0},      {"format 2", "{}\n", 17, 2},
                {"type 0", "{}\n", 16, 0},        {"type 255", "{}\n", 16, 255},
                {"details long", "{}\n", 66, 4},  {"details short", "{}\n", 66, 2},
                {"blank in JSON", "{ }\n", 0, 1}, {"no newline", "{}", 0, 1},
                {"no JSON", "x\n", 0, 1},         {"keys not sorted", "{\"b\":1,\"a\":2}\n", 0, 1}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_buf b = entry_of(1, 0, rows[i].details);
        iso_audit_entry a;
        iso_error e;
        b.data[rows[i].at] = rows[i].value;
        if (iso_audit_decode(b.data, b.size, &a, &e) != ISO_ERR_DATA)
            fail_msg("accepted: %s", rows[i].name);
        iso_buf_free(&b);
    }
    char *large = calloc(1, 5000);
    memset(large, 'x', 4999);
    iso_audit_entry a = {.type = ISO_AUDIT_INIT, .details = large, .details_bytes = 4999};
    iso_buf out = {0};
    iso_error e;
    assert_int_equal(iso_audit_encode(&a, &out, &e), ISO_ERR_INTERNAL);
    a.details_bytes = 2;
    a.type = ISO_AUDIT_TYPES;
    assert_int_equal(iso_audit_encode(&a, &out, &e), ISO_ERR_INTERNAL);
    free(large);
    iso_buf_free(&out);
}

static void S101_hash_is_keyed_blake2b_over_previous_and_entry(void **state)
{
    (void)state;
    uint8_t fed[16], pk[32], key[16] = "isofed-audit-1", bytes[56], expected[32];
    memset(fed, 1, 16);
    memset(pk, 2, 32);
    memcpy(bytes, fed, 16);
    iso_put_u64(bytes + 16, 99);
    memcpy(bytes + 24, pk, 32);
    iso_digest h0 = iso_chain_start(fed, 99, pk);
    crypto_generichash(expected, 32, bytes, 56, key, 16);
    assert_memory_equal(h0.b, expected, 32);
    iso_buf b = entry_of(1, 5, "{}\n"), joined = {0};
    assert_ok(iso_buf_append(&joined, h0.b, 32, E));
    assert_ok(iso_buf_append(&joined, b.data, b.size, E));
    iso_digest h1 = iso_chain_next(&h0, b.data, b.size);
    crypto_generichash(expected, 32, joined.data, joined.size, key, 16);
    assert_memory_equal(h1.b, expected, 32);
    iso_sealer s = iso_sealer_real(NULL);
    iso_digest again = s.chain(s.ctx, &h0, b.data, b.size);
    assert_true(iso_digest_equal(&again, &h1));
    iso_buf_free(&b);
    iso_buf_free(&joined);
}

static void S104_edit_insert_delete_reorder_show(void **state)
{
    (void)state;
    enum { N = 12 };
    iso_buf entries[N];
    uint8_t fed[16] = {1}, pk[32] = {2};
    iso_error e;
    for (uint64_t i = 0; i < N; i++)
        entries[i] = entry_of(i + 1, 1000 * i, "{}\n");
    iso_chain whole = iso_chain_open(fed, 1, pk);
    for (int i = 0; i < N; i++)
        assert_ok(iso_chain_add(&whole, entries[i].data, entries[i].size, E));
    assert_int_equal(whole.seq, N);

    for (int i = 0; i < N; i++) { /* any byte that may be edited leads to another head */
        iso_chain c = iso_chain_open(fed, 1, pk);
        entries[i].data[40] ^= 1;
        for (int k = 0; k < N; k++)
            assert_ok(iso_chain_add(&c, entries[k].data, entries[k].size, E));
        assert_false(iso_digest_equal(&c.h, &whole.h));
        entries[i].data[40] ^= 1;
    }
    iso_chain c = iso_chain_open(fed, 1, pk); /* deleted */
    assert_ok(iso_chain_add(&c, entries[0].data, entries[0].size, E));
    assert_int_equal(iso_chain_add(&c, entries[2].data, entries[2].size, &e), ISO_ERR_NO);
    assert_int_equal(iso_chain_add(&c, entries[0].data, entries[0].size, &e), ISO_ERR_NO);
    assert_int_equal(c.seq, 1); /* a refused entry leaves the chain where it was */
    for (int i = 0; i < N; i++)
        iso_buf_free(&entries[i]);

    static const struct {
        uint64_t first, second;
        iso_err err;
    } times[] = {{10000, 5000, ISO_OK}, {10000, 4999, ISO_ERR_NO}, {0, UINT64_MAX, ISO_OK}};
    for (size_t i = 0; i < sizeof times / sizeof times[0]; i++) {
        iso_buf a = entry_of(1, times[i].first, "{}\n"), b = entry_of(2, times[i].second, "{}\n");
        c = iso_chain_open(fed, 1, pk);
        assert_ok(iso_chain_add(&c, a.data, a.size, E));
        assert_int_equal(iso_chain_add(&c, b.data, b.size, &e), times[i].err);
        iso_buf_free(&a);
        iso_buf_free(&b);
    }
    iso_digest other = iso_chain_start(fed, 2, pk), mine = iso_chain_start(fed, 1, pk);
    assert_false(iso_digest_equal(&other, &mine)); /* a restored epoch is another chain */
}

static void S105_head_bytes_and_signature(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_AUDIT, 1), other = key_of(ISO_KEY_AUDIT, 2);
    iso_sealer s = iso_sealer_real(&k);
    iso_head h = {.epoch = 2, .seq = 3, .release = 4, .time_ms = 5}, back;
    uint8_t p[ISO_SIGNED_HEAD_BYTES], bare[ISO_HEAD_BYTES];
    iso_error e;
    memset(h.federation_id, 1, 16);
    memset(h.h.b, 6, 32);
    memset(h.manifest.b, 7, 32);
    memset(h.previous.b, 8, 32);
    iso_head_sign(&h, &s, p);
    iso_head_encode(&h, bare);
    assert_memory_equal(p, bare, ISO_HEAD_BYTES);
    assert_memory_equal(p, "ISOFEDH1", 8);
    assert_int_equal(p[8], 1);
    assert_int_equal(iso_get_u64(p + 24), 2);
    assert_int_equal(iso_get_u64(p + 32), 3);
    assert_int_equal(p[40], 6);
    assert_int_equal(iso_get_u64(p + 72), 4);
    assert_int_equal(p[80], 7);
    assert_int_equal(iso_get_u64(p + 112), 5);
    assert_int_equal(p[120], 8);
    assert_ok(iso_head_check(p, sizeof p, k.public_key, &s, &back, E));
    assert_memory_equal(&back, &h, sizeof h);
    assert_int_equal(iso_head_check(p, sizeof p, other.public_key, &s, &back, &e), ISO_ERR_TRUST);
    assert_int_equal(iso_head_check(p, sizeof p - 1, k.public_key, &s, &back, &e), ISO_ERR_DATA);
    for (size_t i = 0; i < sizeof p; i++) {
        p[i] ^= 1;
        assert_int_not_equal(iso_head_check(p, sizeof p, k.public_key, &s, &back, &e), ISO_OK);
        p[i] ^= 1;
    }
    iso_digest d = iso_head_digest(p), expected = iso_digest_of(p, 152);
    assert_true(iso_digest_equal(&d, &expected));
    iso_key_free(&k);
    iso_key_free(&other);
}

static void S52_receipt_bytes_and_signature(void **state)
{
    (void)state;
    iso_key k = key_of(ISO_KEY_AUDIT, 1);
    iso_sealer s = iso_sealer_real(&k);
    iso_receipt r = {.epoch = 2, .audit_seq = 3}, back;
    uint8_t p[ISO_RECEIPT_BYTES], signature[64];
    iso_error e;
    memset(r.federation_id, 1, 16);
    memset(r.site_id, 4, 16);
    memset(r.update_id, 5, 16);
    memset(r.header_digest.b, 6, 32);
    memset(r.audit_head.b, 7, 32);
    iso_receipt_encode(&r, p);
    assert_memory_equal(p, "ISOFEDR1", 8);
    assert_int_equal(p[8], 1);
    assert_int_equal(p[24], 4);
    assert_int_equal(p[40], 5);
    assert_int_equal(p[56], 6);
    assert_int_equal(iso_get_u64(p + 88), 2);
    assert_int_equal(iso_get_u64(p + 96), 3);
    assert_int_equal(p[104], 7);
    s.sign(s.ctx, ISO_LABEL_RECEIPT, p, sizeof p, signature);
    assert_ok(iso_receipt_check(p, sizeof p, signature, k.public_key, &s, &back, E));
    assert_memory_equal(&back, &r, sizeof r);
    for (size_t i = 0; i < sizeof p; i++) {
        p[i] ^= 1;
        assert_int_not_equal(iso_receipt_check(p, sizeof p, signature, k.public_key, &s, &back, &e),
                             ISO_OK);
        p[i] ^= 1;
    }
    s.sign(s.ctx, ISO_LABEL_HEAD, p, sizeof p, signature); /* another label */
    assert_int_equal(iso_receipt_check(p, sizeof p, signature, k.public_key, &s, &back, &e),
                     ISO_ERR_TRUST);
    assert_int_equal(iso_receipt_decode(p, 135, &back, &e), ISO_ERR_DATA);
    iso_key_free(&k);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S101_entry_bytes),
        cmocka_unit_test(S101_entries_that_are_refused),
        cmocka_unit_test(S101_hash_is_keyed_blake2b_over_previous_and_entry),
        cmocka_unit_test(S104_edit_insert_delete_reorder_show),
        cmocka_unit_test(S105_head_bytes_and_signature),
        cmocka_unit_test(S52_receipt_bytes_and_signature),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
