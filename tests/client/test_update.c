/* Invitation, training, sealing, upload: client table of specs/security.md 4.5, S51-S54, K2-K6. */
#include "tests/client/rig.h"

static rig *online(void)
{
    rig *r = rig_open();
    rig_data(r, 0, 200, 100, 50);
    rig_data(r, 1, 200, 100, 50);
    rig_connect(r);
    rig_clear(r);
    return r;
}

/* Position of a line in the transcript, or -1. */
static long at(const rig *r, const char *line)
{
    const char *text = r->text.data ? (const char *)r->text.data : "";
    const char *p = strstr(text, line);
    return p ? (long)(p - text) : -1;
}

static void K2_invitation_is_durable_before_its_answer(void **state)
{
    (void)state;
    rig *r = online();
    iso_msg m = rig_invite(r, 0, 1, true);
    rig_say_to(r, &m, NULL, 0);
    assert_true(at(r, "commit task invite") >= 0);
    assert_true(at(r, "commit task invite") < at(r, "send InviteReply accept=1"));
    assert_true(at(r, "send InviteReply accept=1") < at(r, "start head"));
    rig_close(r);
}

static void S54_same_invitation_same_answer(void **state)
{
    (void)state;
    rig *r = online();
    iso_msg m = rig_invite(r, 0, 1, true);
    rig_say_to(r, &m, NULL, 0);
    size_t commits = r->commits, jobs = r->jobs;
    for (int i = 0; i < 3; i++)
        rig_say_to(r, &m, NULL, 0);
    assert_int_equal(rig_count(r, ISO_MSG_INVITE_REPLY), 4);
    assert_int_equal(r->commits, commits);
    assert_int_equal(r->jobs, jobs);
    rig_close(r);
}

static void invitations_that_do_not_fit_are_declined_with_a_reason(void **state)
{
    (void)state;
    const struct {
        const char *name, *reason;
    } rows[] = {
        {"task not here", "not in this site's configuration"},
        {"too few images", "200 training images, the task asks for 201"},
        {"other backbone", "backbone_missing"},
        {"kind", "LoRA adapters only"},
        {"late", "deadline has passed"},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        rig *r = online();
        iso_msg m = rig_invite(r, 0, 1, false);
        if (i == 0)
            m.invite.task_id[0] ^= 1;
        else if (i == 1)
            m.invite.spec.min_samples = 201;
        else if (i == 2)
            m.invite.generation_digest[0] ^= 1;
        else if (i == 3)
            m.invite.spec.adapter_kind = ISO_KIND_TOAST;
        else
            m.invite.deadline_ms = r->wall - 1;
        rig_say_to(r, &m, NULL, 0);
        const iso_msg *reply = rig_last(r, ISO_MSG_INVITE_REPLY);
        assert_non_null(reply);
        assert_false(reply->invite_reply.accept);
        if (at(r, rows[i].reason) < 0)
            fail_msg("%s: %.*s", rows[i].name, (int)r->text.size, (const char *)r->text.data);
        assert_false(r->has_job);
        rig_close(r);
    }
}

static void adapter_round_fetches_head_and_start_before_it_trains(void **state)
{
    (void)state;
    rig *r = online();
    static uint8_t base[200000];
    iso_digest head = rig_offer_blob(r, "a head", 6), start = rig_offer_blob(r, base, sizeof base);
    iso_msg m = rig_invite(r, 0, 2, false);
    memcpy(m.invite.spec.head_digest, head.b, 32);
    memcpy(m.invite.base_digest, start.b, 32);
    rig_say_to(r, &m, NULL, 0);
    assert_false(r->has_job);
    rig_serve(r);
    assert_true(r->has_job);
    assert_int_equal(r->job.kind, ISO_TRAINER_TRAIN);
    assert_true(iso_digest_equal(&r->job.head, &head));
    assert_true(iso_digest_equal(&r->job.base, &start));
    assert_int_equal(r->job_spec.steps, 100);
    rig_close(r);
}

static void later_round_of_a_task_takes_the_place_of_the_first(void **state)
{
    (void)state;
    rig *r = online();
    iso_msg m = rig_invite(r, 0, 1, true);
    rig_say_to(r, &m, NULL, 0);
    iso_msg n = rig_invite(r, 0, 2, true);
    rig_say_to(r, &n, NULL, 0);
    assert_int_equal(r->cancels, 1);
    assert_int_equal(r->job.round, 2);
    assert_int_equal(r->a->invites[0].state, INVITE_ABANDONED);
    rig_close(r);
}

static void U34_pause_stops_training_and_resume_goes_on(void **state)
{
    (void)state;
    rig *r = online();
    iso_msg m = rig_invite(r, 0, 1, true);
    rig_say_to(r, &m, NULL, 0);
    uint8_t id[16];
    memcpy(id, r->job.id, 16);
    rig_step(r, &(iso_agent_event){.kind = ISO_AE_PAUSE});
    assert_false(r->has_job);
    rig_restart(r);
    rig_data(r, 0, 200, 100, 50);
    assert_false(r->has_job); /* the pause survives */
    rig_step(r, &(iso_agent_event){.kind = ISO_AE_RESUME});
    assert_true(r->has_job);
    assert_memory_equal(id, r->job.id, 16); /* the same job: its checkpoint is taken up */
    rig_close(r);
}

static void failed_training_is_tried_three_times_then_said_upstream(void **state)
{
    (void)state;
    rig *r = online();
    iso_msg m = rig_invite(r, 0, 1, true);
    rig_say_to(r, &m, NULL, 0);
    for (int i = 0; i < 2; i++) {
        rig_fail_job(r, false, "the disk is full");
        assert_false(r->has_job);
        for (int k = 0; !r->has_job; k++) {
            iso_msg pong = {.type = ISO_MSG_PONG};
            assert_true(k < 30);
            rig_tick(r, 10000);
            rig_say_to(r, &pong, NULL, 0); /* the line stays */
        }
    }
    rig_clear(r);
    rig_fail_job(r, false, "the disk is full");
    assert_true(at(r, "send InviteReply accept=0 the disk is full") >= 0);
    rig_clear(r);
    m = rig_invite(r, 0, 2, true);
    rig_say_to(r, &m, NULL, 0);
    rig_fail_job(r, true, "no such class"); /* would come again: said at once */
    assert_true(at(r, "send InviteReply accept=0 no such class") >= 0);
    rig_close(r);
}

static void K4_sequence_and_outbox_in_one_transaction_before_begin(void **state)
{
    (void)state;
    rig *r = online();
    rig_make_update(r, 1, 1000);
    assert_true(at(r, "seal") < at(r, "commit outbox invite meta"));
    assert_true(at(r, "commit outbox invite meta") < at(r, "send UpdateBegin"));
    assert_int_equal(r->a->outbox[0].sequence, 1);
    assert_int_equal(r->a->next_sequence, 2);
    const iso_msg *m = rig_last(r, ISO_MSG_UPDATE_BEGIN);
    iso_envelope h;
    iso_code code;
    assert_int_equal(iso_envelope_decode(m->update_begin.header, 384, &h, &code, NULL), ISO_OK);
    assert_int_equal(h.round, 1);
    assert_int_equal(h.sequence, 1);
    assert_int_equal(h.sample_count, 200);
    assert_true(h.score == 0.7f);
    assert_memory_equal(h.site_id, r->config.site_id, 16);
    assert_int_equal(iso_envelope_check_signature(m->update_begin.header, m->update_begin.signature,
                                                  r->sign.public_key, &code, NULL),
                     ISO_OK);
    rig_close(r);
}

static void I9_sequences_rise_over_restarts_and_rounds(void **state)
{
    (void)state;
    rig *r = online();
    for (uint64_t round = 1; round <= 5; round++) {
        rig_make_update(r, round, 1000);
        if (round % 2)
            rig_restart(r);
        else
            rig_down(r, ISO_DOWN_LOST, "gone");
        rig_data(r, 0, 200, 100, 50);
        rig_connect(r);
    }
    assert_int_equal(r->a->outbox_count, 5);
    for (size_t i = 0; i < 5; i++)
        assert_int_equal(r->a->outbox[i].sequence, i + 1);
    rig_close(r);
}

static void S51_never_more_chunks_in_flight_than_credit(void **state)
{
    (void)state;
    rig *r = online();
    rig_make_update(r, 1, 20 * 64 * 1024);
    uint32_t count = r->a->upload.envelope.chunk_count;
    assert_in_range(count, 20, 22);
    rig_clear(r);
    rig_grant(r, 0, 3);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_CHUNK), 3);
    rig_ack(r, 1, 3);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_CHUNK), 4);
    rig_ack(r, 4, 0); /* the pool is empty */
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_CHUNK), 4);
    assert_int_equal(r->a->upload.next, 4);
    rig_ack(r, 4, 8);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_CHUNK), 12);
    rig_ack(r, 3, 8); /* an older word changes nothing */
    rig_ack(r, 99, 8);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_CHUNK), 12);
    for (uint32_t n = 5; n <= count; n++)
        rig_ack(r, n, 8);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_CHUNK), count);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_COMMIT), 1);
    rig_close(r);
}

static void U21_upload_goes_on_at_the_chunk_named(void **state)
{
    (void)state;
    rig *r = online();
    rig_make_update(r, 1, 20 * 64 * 1024);
    rig_grant(r, 0, 8);
    rig_ack(r, 6, 8);
    uint8_t header[384];
    memcpy(header, rig_last(r, ISO_MSG_UPDATE_BEGIN)->update_begin.header, 384);
    rig_restart(r);
    rig_data(r, 0, 200, 100, 50);
    rig_connect(r);
    assert_memory_equal(rig_last(r, ISO_MSG_UPDATE_BEGIN)->update_begin.header, header, 384);
    rig_clear(r);
    rig_grant(r, 6, 4);
    assert_int_equal(r->sent[0].update_chunk.index, 6);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_CHUNK), 4);
    rig_close(r);
}

static void S52_receipt_ends_it_and_the_file_stays_a_week(void **state)
{
    (void)state;
    rig *r = online();
    rig_make_update(r, 1, 1000);
    iso_digest body = r->a->outbox[0].body;
    rig_grant(r, 0, 8);
    rig_ack(r, 1, 8);
    rig_clear(r);
    rig_receipt(r, &r->audit, NULL);
    assert_true(at(r, "commit outbox") >= 0); /* K5 */
    assert_true(at(r, "delete_blob") < 0);
    assert_int_equal(r->a->outbox[0].state, OUTBOX_ACKNOWLEDGED);
    rig_tick(r, 7ull * RIG_DAY - 1000);
    assert_non_null(rig_find_blob(r->blobs, r->blob_count, &body));
    rig_clear(r);
    rig_tick(r, 1000);
    assert_null(rig_find_blob(r->blobs, r->blob_count, &body));
    assert_true(at(r, "commit outbox") < at(r, "delete_blob")); /* the row first (S84) */
    rig_close(r);
}

static void of_other_update(iso_receipt *q)
{
    q->update_id[0] ^= 1;
}

static void of_other_header(iso_receipt *q)
{
    q->header_digest.b[0] ^= 1;
}

static void of_other_site(iso_receipt *q)
{
    q->site_id[0] ^= 1;
}

static void S52_a_false_receipt_deletes_nothing(void **state)
{
    (void)state;
    void (*const changes[])(iso_receipt *) = {NULL, of_other_update, of_other_header,
                                              of_other_site};
    for (size_t i = 0; i < 4; i++) {
        rig *r = online();
        rig_make_update(r, 1, 1000);
        rig_grant(r, 0, 8);
        rig_ack(r, 1, 8);
        rig_receipt(r, i == 0 ? &r->sign : &r->audit, changes[i]); /* row 0: by another key */
        assert_int_equal(r->a->outbox[0].state, OUTBOX_WAITING);
        assert_non_null(rig_find_blob(r->blobs, r->blob_count, &r->a->outbox[0].body));
        rig_close(r);
    }
}

/* Every code of 4.3: the retryable ones keep the update, all others are final for it (4.5). */
static void table_4_5_refusals_final_and_retryable(void **state)
{
    (void)state;
    for (uint32_t code = 1; code < ISO_CODE_END; code++) {
        if (!iso_code_is_known(code))
            continue;
        rig *r = online();
        rig_make_update(r, 1, 1000);
        iso_digest body = r->a->outbox[0].body;
        rig_refuse(r, (iso_code)code, rig_last(r, ISO_MSG_UPDATE_BEGIN)->id);
        /* These say that the whole conversation is over, not this update. */
        bool is_about_link = code == ISO_CODE_REVOKED || code == ISO_CODE_FEDERATION ||
                             code == ISO_CODE_VERSION || code == ISO_CODE_EPOCH;
        bool is_kept =
            is_about_link || code == ISO_CODE_CHUNK || iso_code_is_retryable((iso_code)code);
        const agent_update *u = &r->a->outbox[0];
        if ((u->state == OUTBOX_WAITING) != is_kept)
            fail_msg("%s: %s", iso_code_name((iso_code)code), is_kept ? "dropped" : "kept");
        assert_int_equal(r->a->link == ISO_AS_ONLINE, !is_about_link);
        assert_int_equal(rig_find_blob(r->blobs, r->blob_count, &body) != NULL, is_kept);
        if (!is_kept) {
            assert_int_equal(u->code, code);
            assert_string_equal(u->sentence, "for a reason");
            rig_restart(r);
            assert_int_equal(r->a->outbox[0].state, OUTBOX_REFUSED); /* K6 */
            assert_int_equal(r->a->outbox[0].code, code);
        }
        rig_close(r);
    }
}

static void retryable_refusal_is_tried_again_not_before_it_was_asked_to(void **state)
{
    (void)state;
    rig *r = online();
    rig_make_update(r, 1, 1000);
    iso_msg m = {.type = ISO_MSG_ERROR,
                 .error = {.code = ISO_CODE_BUSY,
                           .sentence = "busy",
                           .retry_after_ms = 5000,
                           .about_id = rig_last(r, ISO_MSG_UPDATE_BEGIN)->id}};
    rig_say_to(r, &m, NULL, 0);
    rig_clear(r);
    rig_tick(r, 4999);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_BEGIN), 0);
    rig_tick(r, 2000);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_BEGIN), 1);
    rig_close(r);
}

static void S55_three_times_then_reconnect(void **state)
{
    (void)state;
    rig *r = online();
    rig_make_update(r, 1, 1000);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_BEGIN), 1);
    rig_tick(r, 10000);
    rig_tick(r, 10000);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_BEGIN), 3);
    rig_tick(r, 10000);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_BEGIN), 3);
    assert_int_equal(r->a->link, ISO_AS_OFFLINE);
    assert_int_equal(r->a->outbox[0].state, OUTBOX_WAITING);
    rig_close(r);
}

static void U16_link_lost_while_training_delivers_later(void **state)
{
    (void)state;
    iso_agent_status s;
    rig *r = online();
    iso_msg m = rig_invite(r, 0, 1, true);
    rig_say_to(r, &m, NULL, 0);
    rig_down(r, ISO_DOWN_LOST, "gone");
    assert_true(r->has_job); /* training needs no line */
    rig_finish_job(r, 0.7f, 0.7f, 0, 1000);
    iso_agent_get_status(r->a, &s);
    assert_int_equal(s.outbox_waiting, 1);
    assert_true(s.outbox_bytes > 1000);
    rig_clear(r);
    rig_connect(r);
    assert_int_equal(rig_count(r, ISO_MSG_UPDATE_BEGIN), 1);
    rig_grant(r, 0, 8);
    rig_ack(r, 1, 8);
    rig_receipt(r, &r->audit, NULL);
    assert_int_equal(r->a->outbox[0].state, OUTBOX_ACKNOWLEDGED);
    rig_close(r);
}

static void S37_later_verdict_reaches_status(void **state)
{
    (void)state;
    iso_agent_task_status t;
    rig *r = online();
    rig_make_update(r, 1, 1000);
    rig_grant(r, 0, 8);
    rig_ack(r, 1, 8);
    rig_receipt(r, &r->audit, NULL);
    iso_msg_notice n = {
        .event = 3, .code = ISO_CODE_NORM, .sentence = "norm 120 above the cap 100"};
    memcpy(n.update_id, r->a->outbox[0].update_id, 16);
    iso_msg m = {.type = ISO_MSG_STATUS_REPLY,
                 .status_reply = {.notices = &n, .notice_count = 1, .next_event = 4}};
    rig_say_to(r, &m, NULL, 0);
    iso_agent_get_task(r->a, 0, &t);
    assert_string_equal(t.phase, "acknowledged");
    assert_string_equal(t.reason, "norm 120 above the cap 100");
    rig_close(r);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(K2_invitation_is_durable_before_its_answer),
        cmocka_unit_test(S54_same_invitation_same_answer),
        cmocka_unit_test(invitations_that_do_not_fit_are_declined_with_a_reason),
        cmocka_unit_test(adapter_round_fetches_head_and_start_before_it_trains),
        cmocka_unit_test(later_round_of_a_task_takes_the_place_of_the_first),
        cmocka_unit_test(U34_pause_stops_training_and_resume_goes_on),
        cmocka_unit_test(failed_training_is_tried_three_times_then_said_upstream),
        cmocka_unit_test(K4_sequence_and_outbox_in_one_transaction_before_begin),
        cmocka_unit_test(I9_sequences_rise_over_restarts_and_rounds),
        cmocka_unit_test(S51_never_more_chunks_in_flight_than_credit),
        cmocka_unit_test(U21_upload_goes_on_at_the_chunk_named),
        cmocka_unit_test(S52_receipt_ends_it_and_the_file_stays_a_week),
        cmocka_unit_test(S52_a_false_receipt_deletes_nothing),
        cmocka_unit_test(table_4_5_refusals_final_and_retryable),
        cmocka_unit_test(retryable_refusal_is_tried_again_not_before_it_was_asked_to),
        cmocka_unit_test(S55_three_times_then_reconnect),
        cmocka_unit_test(U16_link_lost_while_training_delivers_later),
        cmocka_unit_test(S37_later_verdict_reaches_status),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
