/* A whole life of a site as a readable transcript (tests/client/life/site.txt), and the same life
 * with the process killed after every single effect: what it ends with is the same (S89, I8). */
#include "tests/client/rig.h"

#include "core/fsio.h"

static const char transcript_path[] = "tests/client/life/site.txt";

/* One act of the coordinator, the trainer or the operator. Each is done again until the state it
 * is to lead to is reached, as a coordinator repeats what was not answered. */
typedef struct {
    const char *name;
    void (*act)(rig *r);
    bool (*is_reached)(const rig *r);
} stage;

static iso_digest first_release;

static void connect_it(rig *r)
{
    if (!r->a->tasks[0].has_data)
        rig_data(r, 0, 200, 100, 50);
    if (!r->a->tasks[1].has_data)
        rig_data(r, 1, 200, 100, 50);
    if (!r->is_dead && r->a->link != ISO_AS_ONLINE)
        rig_connect(r);
    if (!r->is_dead && !r->a->roster)
        rig_offer_roster(r);
}

static bool is_enrolled(const rig *r)
{
    return r->a->link == ISO_AS_ONLINE && r->a->roster;
}

/* Carries an update to its receipt, from wherever it stands. */
static void carry(rig *r, uint64_t round, bool is_head)
{
    connect_it(r);
    iso_msg m = rig_invite(r, 0, round, is_head);
    iso_digest head = rig_offer_blob(r, "head of press", 13);
    if (!is_head)
        memcpy(m.invite.spec.head_digest, head.b, 32);
    if (!r->is_dead)
        rig_say_to(r, &m, NULL, 0);
    if (!r->is_dead)
        rig_serve(r);
    if (!r->is_dead && r->has_job)
        rig_finish_job(r, 0.8f, 0.8f, 0, 1000);
    if (!r->is_dead && r->a->upload.state == UPLOAD_BEGUN)
        rig_grant(r, 0, 8);
    if (!r->is_dead && r->a->upload.state == UPLOAD_SENDING)
        rig_ack(r, r->a->upload.envelope.chunk_count, 8);
    if (!r->is_dead && r->a->upload.state == UPLOAD_COMMITTED)
        rig_receipt(r, &r->audit, NULL);
}

static bool has_receipt(const rig *r, uint64_t round)
{
    for (size_t i = 0; i < r->a->outbox_count; i++)
        if (r->a->outbox[i].round == round && r->a->outbox[i].state == OUTBOX_ACKNOWLEDGED)
            return true;
    return false;
}

static void head_round(rig *r)
{
    carry(r, 1, true);
}

static bool head_is_in(const rig *r)
{
    return has_receipt(r, 1);
}

static void adapter_round(rig *r)
{
    carry(r, 2, false);
}

static bool adapter_is_in(const rig *r)
{
    return has_receipt(r, 2);
}

static void evaluation(rig *r)
{
    connect_it(r);
    iso_msg m = {.type = ISO_MSG_EVAL_REQUEST,
                 .eval_request = {.deadline_ms = r->wall + 600000, .metric = "accuracy_refit"}};
    memset(m.eval_request.eval_id, 0xe1, 16);
    memcpy(m.eval_request.task_id, r->tasks[0].id, 16);
    if (!r->is_dead)
        rig_say_to(r, &m, NULL, 0);
    if (!r->is_dead)
        rig_serve(r);
    if (!r->is_dead && r->has_job && r->job.kind == ISO_TRAINER_EVALUATE)
        rig_finish_job(r, 0.5f, 0.625f, 0, 0);
}

static bool is_evaluated(const rig *r)
{
    return r->a->eval_count == 1 && r->a->evals[0].is_scored;
}

static void release_one(rig *r)
{
    connect_it(r);
    if (r->is_dead)
        return;
    rig_release v = rig_release_of(r, 1, NULL);
    v.valid_until_ms = RIG_WALL + 30ull * RIG_DAY;
    first_release = rig_offer_release(r, &v);
    if (!r->is_dead)
        rig_try_release(r, 0.8f, 0.8f, 0.7f);
}

static bool serves_one(const rig *r)
{
    return r->a->current == 1 && r->a->pending.phase == PENDING_NONE && r->serving == 1 &&
           r->installed == 1;
}

static void release_two(rig *r)
{
    connect_it(r);
    if (r->is_dead)
        return;
    rig_release v = rig_release_of(r, 2, &first_release);
    v.valid_until_ms = RIG_WALL + 30ull * RIG_DAY;
    v.adapter = "a worse adapter";
    rig_offer_release(r, &v);
    if (!r->is_dead)
        rig_try_release(r, 0.3f, 0.3f, 0.8f);
}

static bool rejected_two(const rig *r)
{
    const agent_release *v = agent_find_release(r->a, 2);
    return v && v->state == ISO_RS_REJECTED && r->a->pending.phase == PENDING_NONE;
}

static const stage stages[] = {
    {"enrolled: greeting and roster", connect_it, is_enrolled},
    {"head round: probe to receipt", head_round, head_is_in},
    {"adapter round: head, training, receipt", adapter_round, adapter_is_in},
    {"evaluation of the frozen backbone", evaluation, is_evaluated},
    {"release 1: fetched, tried, served", release_one, serves_one},
    {"release 2: worse here, rejected", release_two, rejected_two},
};
enum { STAGES = sizeof stages / sizeof *stages };

/* Kills once, after `die_at` effects (0: never), and lives to the end. */
static void live(rig *r, size_t die_at)
{
    r->die_at = die_at;
    for (size_t i = 0; i < STAGES; i++) {
        rig_say(r, "%s", stages[i].name);
        for (int tries = 0; r->is_dead || !stages[i].is_reached(r); tries++) {
            if (tries > 8)
                fail_msg("killed after effect %zu: never \"%s\"\n%.*s", die_at, stages[i].name,
                         (int)r->text.size, (const char *)r->text.data);
            if (r->is_dead)
                rig_restart(r);
            stages[i].act(r);
            r->sent_count = 0;
        }
    }
}

static void whole_life_as_a_transcript(void **state)
{
    (void)state;
    iso_buf want = {0};
    rig *r = rig_open();
    live(r, 0);
    if (getenv("ISO_UPDATE_TRANSCRIPTS"))
        assert_int_equal(iso_write_file(transcript_path, r->text.data, r->text.size, 0644, NULL),
                         ISO_OK);
    assert_int_equal(iso_read_file(transcript_path, 1 << 20, &want, NULL), ISO_OK);
    if (want.size != r->text.size || memcmp(want.data, r->text.data, want.size) != 0)
        fail_msg("%s differs from\n%.*s", transcript_path, (int)r->text.size,
                 (const char *)r->text.data);
    iso_buf_free(&want);
    rig_close(r);
}

/* What an end looks like to others: digests, numbers, states; not the bytes of sealings, which are
 * fresh each time by design (S34). */
static void expect_same_end(const rig *r, const rig *undisturbed, size_t die_at)
{
    const iso_agent *a = r->a, *b = undisturbed->a;
    bool is_same = a->current == b->current && a->previous == b->previous &&
                   a->highest_number == b->highest_number && a->next_sequence == b->next_sequence &&
                   a->outbox_count == b->outbox_count && a->release_count == b->release_count &&
                   a->eval_count == b->eval_count;
    for (size_t i = 0; is_same && i < a->release_count; i++)
        is_same = iso_digest_equal(&a->releases[i].manifest, &b->releases[i].manifest) &&
                  a->releases[i].state == b->releases[i].state;
    for (size_t i = 0; is_same && i < a->outbox_count; i++)
        is_same = a->outbox[i].state == b->outbox[i].state &&
                  a->outbox[i].sequence == b->outbox[i].sequence &&
                  a->outbox[i].round == b->outbox[i].round;
    for (size_t i = 0; is_same && i < a->eval_count; i++)
        is_same = a->evals[i].val.delivered.value == b->evals[i].val.delivered.value &&
                  a->evals[i].val.refitted.value == b->evals[i].val.refitted.value;
    if (!is_same)
        fail_msg("killed after effect %zu: another end", die_at);
}

static void I8_killed_after_every_effect_the_end_is_the_same(void **state)
{
    (void)state;
    rig *undisturbed = rig_open();
    live(undisturbed, 0);
    size_t survived = 0, n = 1;
    for (; !survived && n < 2000; n++) {
        rig *r = rig_open();
        live(r, n);
        expect_same_end(r, undisturbed, n);
        survived = r->die_at; /* still set: it never came to that effect */
        rig_close(r);
    }
    assert_in_range(n, 60, 1999); /* every effect of the life was the last one once */
    rig_close(undisturbed);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(whole_life_as_a_transcript),
        cmocka_unit_test(I8_killed_after_every_effect_the_end_is_the_same),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
