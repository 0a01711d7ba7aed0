/* Admission: rows 1 - 11 of the order of checks (specs/security.md 3.2), each with its code, and
 * what is refused leaves no upload behind (S36). */
#include "tests/coordinator/rig.h"

typedef struct {
    const char *name;
    void (*spoil)(rig *r, rig_site *s, iso_envelope *h);
    iso_code code;
} spoiled;

static void wrong_federation(rig *r, rig_site *s, iso_envelope *h)
{
    (void)r;
    (void)s;
    h->federation_id[0] ^= 1;
}
static void wrong_site(rig *r, rig_site *s, iso_envelope *h)
{
    (void)s;
    memcpy(h->site_id, r->sites[1].id, 16);
    iso_update_id(h->site_id, h->task_id, h->round, h->sequence, h->update_id);
}
static void foreign_task(rig *r, rig_site *s, iso_envelope *h)
{
    (void)s;
    memcpy(h->task_id, r->c->tasks[1].id, 16);
    iso_update_id(h->site_id, h->task_id, h->round, h->sequence, h->update_id);
}
static void other_kind(rig *r, rig_site *s, iso_envelope *h)
{
    (void)r;
    (void)s;
    h->adapter_kind = ISO_KIND_TOAST;
}
static void too_large(rig *r, rig_site *s, iso_envelope *h)
{
    (void)s;
    h->plain_size = r->tasks[0].update_bytes + 1;
    h->stream_size = h->plain_size + 160;
    h->chunk_count = (uint32_t)((h->stream_size + h->chunk_size - 1) / h->chunk_size);
}
static void full_disk(rig *r, rig_site *s, iso_envelope *h)
{
    (void)s;
    (void)h;
    iso_coord_event ev = {.kind = ISO_CE_DISK, .disk_free = 1 << 20};
    rig_step(r, &ev);
}
static void other_round(rig *r, rig_site *s, iso_envelope *h)
{
    (void)r;
    (void)s;
    h->round = 9;
    iso_update_id(h->site_id, h->task_id, h->round, h->sequence, h->update_id);
}
static void other_generation(rig *r, rig_site *s, iso_envelope *h)
{
    (void)r;
    (void)s;
    h->generation_digest.b[3] ^= 1;
}
static void other_base(rig *r, rig_site *s, iso_envelope *h)
{
    (void)r;
    (void)s;
    h->base_digest.b[0] = 1;
}
static void other_merge_key(rig *r, rig_site *s, iso_envelope *h)
{
    (void)r;
    (void)s;
    h->merge_key_id[0] ^= 1;
}

static const spoiled rows[] = {
    {"row 2: federation", wrong_federation, ISO_CODE_WRONG_SITE},
    {"row 2: site", wrong_site, ISO_CODE_WRONG_SITE},
    {"row 3: task of another site", foreign_task, ISO_CODE_TASK},
    {"row 3: kind", other_kind, ISO_CODE_TASK},
    {"row 4: size", too_large, ISO_CODE_TOO_LARGE},
    {"row 4: disk", full_disk, ISO_CODE_DISK},
    {"row 5: round", other_round, ISO_CODE_ROUND_CLOSED},
    {"row 5: generation", other_generation, ISO_CODE_GENERATION},
    {"row 5: base", other_base, ISO_CODE_BASE},
    {"row 6: merge key", other_merge_key, ISO_CODE_MERGE_KEY},
};

/* Two sites of one task, a round open. */
static rig *open_round(void)
{
    rig *r = rig_new();
    rig_site *a = rig_enrol(r, "a"), *b = rig_enrol(r, "b");
    rig_hello(r, a);
    rig_hello(r, b);
    rig_admin(r, "{\"cmd\":\"rounds.open\",\"args\":{\"tasks\":[\"steel\"]}}");
    assert_non_null(strstr(r->admin, "\"ok\":true"));
    return r;
}

static void S36_each_row_refuses_before_a_byte_of_body(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        rig *r = open_round();
        rig_site *a = &r->sites[0];
        iso_envelope h = rig_envelope(r, a, 0);
        rows[i].spoil(r, a, &h);
        rig_sign_header(a, 0, &h);
        rig_begin(r, a, 0);
        if (a->last_error != rows[i].code)
            fail_msg("%s: %s, expected %s", rows[i].name, iso_code_name(a->last_error),
                     iso_code_name(rows[i].code));
        iso_coord_stats s;
        iso_coord_get_stats(r->c, &s);
        assert_int_equal(s.uploads, 0);
        assert_int_equal(s.receipts, 0);
        rig_free(r);
    }
}

static void row1_every_changed_reserved_byte_is_refused(void **state)
{
    (void)state;
    static const size_t places[] = {0, 8, 10, 12, 14, 216, 368, 383};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        rig *r = open_round();
        rig_site *a = &r->sites[0];
        iso_envelope h = rig_envelope(r, a, 0);
        rig_sign_header(a, 0, &h);
        a->header[0][places[i]] ^= 1;
        rig_begin(r, a, 0);
        assert_true(a->last_error == ISO_CODE_BAD_ENVELOPE || a->last_error == ISO_CODE_SEAL_MODE);
        rig_free(r);
    }
}

static void row7_a_header_signed_by_another_key_is_refused(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0];
    iso_envelope h = rig_envelope(r, a, 0);
    rig_sign_header(a, 0, &h);
    iso_sign(ISO_LABEL_UPDATE, a->header[0], 384, r->sites[1].sign.secret, a->signature[0]);
    rig_begin(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_SIGNATURE);
    iso_sign(ISO_LABEL_REQUEST, a->header[0], 384, a->sign.secret, a->signature[0]);
    rig_begin(r, a, 0); /* the right key under another label (S7) */
    assert_int_equal(a->last_error, ISO_CODE_SIGNATURE);
    rig_free(r);
}

static void row9_chunks_come_in_order_and_whole(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0];
    iso_envelope h = rig_envelope(r, a, 0);
    rig_sign_header(a, 0, &h);
    rig_begin(r, a, 0);
    rig_chunk(r, a, 0, 0, RIG_BODY - 1);
    assert_int_equal(a->last_error, ISO_CODE_CHUNK);
    rig_chunk(r, a, 0, 1, RIG_BODY);
    rig_commit_update(r, a, 0); /* chunks are missing: the third fault */
    assert_int_equal(a->last_error, ISO_CODE_CHUNK);
    assert_int_equal(a->peer, 0); /* cut */
    rig_hello(r, a);
    rig_begin(r, a, 0);
    rig_chunk(r, a, 0, 0, RIG_BODY);
    rig_chunk(r, a, 0, 0, RIG_BODY); /* a replayed chunk is acknowledged and not written */
    assert_int_equal(a->ack.received, 1);
    rig_commit_update(r, a, 0);
    assert_int_equal(a->receipts, 1);
    rig_free(r);
}

static void row10_a_body_with_another_digest_is_refused(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0];
    iso_envelope h = rig_envelope(r, a, 0);
    h.body_digest.b[0] ^= 1;
    rig_sign_header(a, 0, &h);
    rig_begin(r, a, 0);
    rig_chunk(r, a, 0, 0, RIG_BODY);
    rig_commit_update(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_BODY_DIGEST);
    assert_int_equal(a->receipts, 0);
    rig_free(r);
}

static void S53_a_body_torn_by_a_restart_is_sent_again(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0];
    iso_envelope h = rig_envelope(r, a, 0);
    rig_sign_header(a, 0, &h);
    rig_begin(r, a, 0);
    rig_chunk(r, a, 0, 0, RIG_BODY);
    assert_int_equal(r->partial_count, 1);
    rig_restore(r);
    iso_hasher_add(&r->partial[0].hash, "torn", 4);
    rig_hello(r, a);
    rig_begin(r, a, 0);
    rig_commit_update(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_DISK); /* may pass: the site keeps the update */
    assert_int_equal(a->receipts, 0);
    rig_begin(r, a, 0);
    rig_chunk(r, a, 0, 0, RIG_BODY);
    rig_commit_update(r, a, 0);
    assert_int_equal(a->receipts, 1);
    rig_free(r);
}

static void row11_a_full_disk_gives_no_receipt(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0];
    r->is_disk_full = true;
    rig_upload(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_DISK);
    assert_int_equal(a->receipts, 0);
    r->is_disk_full = false;
    rig_begin(r, a, 0);
    rig_chunk(r, a, 0, 0, RIG_BODY);
    rig_commit_update(r, a, 0);
    assert_int_equal(a->receipts, 1);
    rig_free(r);
}

static void S39_S52_a_replayed_update_gets_the_same_receipt(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0];
    rig_upload(r, a, 0);
    iso_msg_receipt first = a->receipt;
    iso_receipt receipt;
    assert_int_equal(iso_receipt_check(first.receipt, sizeof first.receipt, first.signature,
                                       r->audit.public_key, &r->sealer, &receipt, NULL),
                     ISO_OK);
    assert_memory_equal(receipt.site_id, a->id, 16);
    rig_begin(r, a, 0);
    assert_memory_equal(&a->receipt, &first, sizeof first);
    rig_commit_update(r, a, 0);
    assert_memory_equal(&a->receipt, &first, sizeof first);
    rig_restore(r);
    rig_hello(r, a);
    rig_begin(r, a, 0);
    assert_memory_equal(&a->receipt, &first, sizeof first);
    iso_coord_stats s;
    iso_coord_get_stats(r->c, &s);
    assert_int_equal(s.receipts, 1);
    rig_free(r);
}

static void S38_equivocation_is_kept_as_proof_and_the_first_counts(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0];
    rig_upload(r, a, 0);
    iso_envelope h = rig_envelope(r, a, 0); /* next sequence, same round and task */
    h.score = 0.99f;
    rig_sign_header(a, 0, &h);
    rig_begin(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_EQUIVOCATION);
    size_t proofs = 0;
    for (size_t i = 0; i < r->row_count; i++)
        if (r->rows[i].table == ISO_CT_PROOF) {
            proofs++;
            assert_int_equal(r->rows[i].value_bytes, 1 + 2 * 448);
            assert_memory_equal(r->rows[i].value + 449, a->header[0], 384);
        }
    assert_int_equal(proofs, 1);
    iso_coord_stats s;
    iso_coord_get_stats(r->c, &s);
    assert_int_equal(s.receipts, 1);
    rig_free(r);
}

static void I9_a_sequence_never_falls(void **state)
{
    (void)state;
    rig *r = open_round();
    rig_site *a = &r->sites[0], *b = &r->sites[1];
    rig_upload(r, a, 0);
    rig_upload(r, b, 0);
    rig_finish_job(r, false); /* heads; the adapters' round opens */
    a->sequence = 0;          /* as a site restored from an old disk would */
    iso_envelope h = rig_envelope(r, a, 0);
    rig_sign_header(a, 0, &h);
    rig_begin(r, a, 0);
    assert_int_equal(a->last_error, ISO_CODE_SEQUENCE);
    rig_free(r);
}

static void S51_the_pool_bounds_the_credit_of_all(void **state)
{
    (void)state;
    rig *r = open_round();
    r->config.chunk_pool_bytes = ISO_CHUNK_MAX_BYTES; /* one chunk for everybody */
    rig_restore(r);
    rig_site *a = &r->sites[0], *b = &r->sites[1];
    rig_hello(r, a);
    rig_hello(r, b);
    for (int i = 0; i < 2; i++) {
        iso_envelope h = rig_envelope(r, &r->sites[i], 0);
        rig_sign_header(&r->sites[i], 0, &h);
        rig_begin(r, &r->sites[i], 0);
    }
    assert_int_equal(a->grant.credit, 1);
    assert_int_equal(b->grant.credit, 0);
    rig_chunk(r, a, 0, 0, RIG_BODY); /* its credit is free again and goes to b */
    assert_int_equal(b->ack.credit, 1);
    rig_free(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S36_each_row_refuses_before_a_byte_of_body),
        cmocka_unit_test(row1_every_changed_reserved_byte_is_refused),
        cmocka_unit_test(row7_a_header_signed_by_another_key_is_refused),
        cmocka_unit_test(row9_chunks_come_in_order_and_whole),
        cmocka_unit_test(row10_a_body_with_another_digest_is_refused),
        cmocka_unit_test(S53_a_body_torn_by_a_restart_is_sent_again),
        cmocka_unit_test(row11_a_full_disk_gives_no_receipt),
        cmocka_unit_test(S39_S52_a_replayed_update_gets_the_same_receipt),
        cmocka_unit_test(S38_equivocation_is_kept_as_proof_and_the_first_counts),
        cmocka_unit_test(I9_a_sequence_never_falls),
        cmocka_unit_test(S51_the_pool_bounds_the_credit_of_all),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
