/* Inside of the site core: its state, shared by the client/agent_*.c files only.
 *
 * agent_link.c connection, greeting, notices; agent_roster.c who is who and audit heads;
 * agent_fetch.c downloads; agent_invite.c invitation to sealed update; agent_upload.c outbox;
 * agent_release.c offer to verified; agent_trial.c trial, verdict, swap; agent_eval.c requests for
 * scores; agent_jobs.c which long job runs; agent_save.c and agent_restore.c bytes of the rows;
 * agent_out.c effects.
 *
 * All of them work inside one step: `mono`, `wall` and `out` are those of the step. */
#ifndef ISO_CLIENT_AGENT_INNER_H
#define ISO_CLIENT_AGENT_INNER_H

#include "client/agent.h"
#include "crypto/chain.h"

enum {
    AGENT_INVITES_MAX = 32,   /* kept for idempotent replies */
    AGENT_OUTBOX_MEMORY = 32, /* finished entries kept in memory; their rows stay */
    AGENT_RELEASES_KEPT = 16,
    AGENT_EVALS_KEPT = 16,
    AGENT_REQUESTS_MAX = 64, /* evaluation requests waiting at a time */
    AGENT_WANTS_MAX = 256,
    AGENT_HEADS_KEPT = 1000, /* S105 */
    AGENT_CHAIN_MAX = 1000,  /* S92: missing manifests asked for */
    AGENT_SENT_RING = 64,
    AGENT_TRIES = 3, /* S55 */
    AGENT_SIGNATURE_MAX = 8192,
    AGENT_RECORD_VERSION = 1,
    AGENT_SPEC_BYTES = 512 /* strings of an invitation are few: no 64 KiB for each kept one */
};

#define AGENT_NEVER UINT64_MAX

/* ---- tasks ---- */
typedef struct {
    const iso_agent_task *config;
    uint64_t train, val, test, data_bytes;
    iso_digest data;
    bool has_data; /* the spool has spoken since start */
    /* record */
    uint64_t round;
    iso_digest head; /* the task's head as last invited or released */
    uint32_t head_mode;
    iso_score_pair probe[2], own[2], serving[2];
    uint32_t class_count;
    char (*classes)[ISO_CLASS_NAME_MAX + 1]; /* owned */
    char *reason;                            /* owned */
} agent_task;

/* ---- invitations ---- */
typedef enum {
    INVITE_ACCEPTED = 1,
    INVITE_DECLINED,
    INVITE_TRAINED, /* K3: container and score are there */
    INVITE_SENT,    /* K4: the update lies in the outbox */
    INVITE_FAILED,
    INVITE_ABANDONED, /* superseded, or its deadline passed */
    INVITE_STATES
} agent_invite_state;

typedef struct {
    uint8_t id[16];
    size_t task;
    uint64_t round, generation;
    iso_digest generation_digest, base;
    uint64_t deadline_ms; /* coordinator's wall clock */
    uint8_t merge_key_id[16];
    agent_invite_state state;
    uint64_t samples; /* answered */
    char *reason;     /* owned */
    /* spec; strings owned by `arena` */
    iso_train_spec spec;
    iso_digest head;
    uint64_t update_bytes;
    iso_arena arena;
    /* TRAINED */
    iso_digest container;
    uint64_t container_bytes, used_samples;
    float score;
    /* not recorded */
    bool is_sealing;
    uint32_t failures;
    iso_time retry_ms;
} agent_invite;

/* ---- outbox ---- */
typedef enum { OUTBOX_WAITING = 1, OUTBOX_ACKNOWLEDGED, OUTBOX_REFUSED } agent_outbox_state;

typedef struct {
    uint8_t update_id[16];
    uint8_t invite_id[16];
    agent_outbox_state state;
    uint64_t sequence, round;
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES];
    uint8_t signature[ISO_SIGNATURE_BYTES];
    iso_digest body;
    uint64_t body_bytes;
    bool has_file;
    uint8_t receipt[ISO_RECEIPT_BYTES], receipt_signature[ISO_SIGNATURE_BYTES];
    uint64_t epoch, audit_seq; /* of the receipt */
    uint64_t done_ms;          /* wall */
    iso_code code;             /* refusal, or verdict by notice */
    char *sentence;            /* owned */
} agent_update;

typedef enum { UPLOAD_IDLE, UPLOAD_BEGUN, UPLOAD_SENDING, UPLOAD_COMMITTED } agent_upload_state;
typedef struct {
    agent_upload_state state;
    uint8_t update_id[16], upload_id[16];
    iso_envelope envelope;
    uint32_t received, next, credit; /* chunks acknowledged, next to send, allowed in flight */
    iso_time deadline_ms;            /* of the reply awaited */
    uint32_t tries;
    iso_time retry_ms; /* not before, after a retryable refusal */
    uint32_t refusals;
} agent_upload;

/* ---- downloads ---- */
typedef enum {
    FETCH_ROSTER = 1,
    FETCH_MANIFEST,
    FETCH_SIGNATURE,
    FETCH_CHAIN,     /* manifest of a release that was missed */
    FETCH_CANDIDATE, /* manifest of a candidate */
    FETCH_FILE       /* into the store; the others stay in memory */
} agent_purpose;

typedef struct {
    agent_purpose purpose;
    iso_digest digest;
    uint64_t max_bytes;
    uint64_t bytes; /* 0: not known before */
    bool is_alias;  /* named by something else than its digest */
} agent_want;

typedef struct {
    bool is_active;
    enum { FETCH_OPENING, FETCH_RUNNING, FETCH_CLOSING } state;
    agent_want want;
    bool has_size;
    uint64_t size;
    uint32_t count, next, granted;
    iso_buf memory;
    uint64_t request;
    iso_time deadline_ms;
    uint32_t tries, bad;
} agent_fetch;

typedef struct {
    iso_digest digest;
    uint64_t bytes;
    bool is_complete;
} agent_blob;

/* ---- releases ---- */
typedef struct {
    uint8_t task_id[16];
    iso_digest head;
    iso_score_pair val, test, before;
    iso_digest output;
    bool is_tried;
} agent_release_task;

typedef struct {
    uint64_t number;
    iso_digest manifest, signature;
    uint8_t key_id[8];
    uint64_t epoch, created_ms, valid_until_ms, rollback_of;
    bool force;
    iso_release_kind kind;
    iso_agent_file *files; /* owned, with their paths */
    size_t file_count;
    agent_release_task *tasks; /* owned: of the site's tasks those the release has a head for */
    size_t task_count;
    iso_agent_release_state state;
    iso_verdict verdict;
    bool is_checked;      /* S95: the swap's known input came out as in the trial */
    bool is_verdict_sent; /* not recorded: said again at each greeting */
    float before, delivered, refitted;
    uint64_t samples;
    char *reason; /* owned */
} agent_release;

typedef enum {
    PENDING_NONE,
    PENDING_MANIFEST, /* manifest, signature, chain: in memory */
    PENDING_FILES,
    PENDING_INSPECT,
    PENDING_TRIAL,
    PENDING_OPERATOR,
    PENDING_INSTALL,
    PENDING_CHECK /* K9 is done; one known input */
} agent_pending_phase;

/* The last offer, kept until it is taken up or refused. */
typedef struct {
    bool is_there;
    uint64_t number, valid_until_ms, bytes_total;
    iso_digest manifest, base;
    uint8_t head[ISO_SIGNED_HEAD_BYTES];
    uint32_t failures;
    iso_time retry_ms;
} agent_offer;

typedef struct {
    agent_pending_phase phase;
    uint64_t number;
    iso_digest manifest, signature;
    uint64_t offered_bytes;
    iso_buf manifest_text, signature_text;
    bool has_signature;
    uint64_t chain_number; /* next older manifest to see, 0: done */
    iso_digest chain_digest;
    uint32_t chain_steps;
    agent_release release; /* before K7; later the row in `releases` counts */
    bool is_installing;
    uint32_t failures;
    iso_time retry_ms;
    size_t check; /* PENDING_INSPECT, PENDING_CHECK: task that is looked at */
} agent_pending;

/* ---- evaluation ---- */
typedef enum { METRIC_VAL, METRIC_VAL_REFIT, METRIC_TEST, METRIC_TEST_REFIT } agent_metric;
typedef struct {
    uint8_t eval_id[16];
    size_t task;
    iso_digest candidate;
    agent_metric metric;
    uint64_t deadline_ms; /* coordinator's wall clock */
} agent_eval_request;

typedef struct {
    iso_digest candidate;
    size_t task;
    uint64_t stamp; /* rises; the oldest goes first */
    bool is_fetched;
    bool is_asked; /* manifest wanted */
    iso_digest config, model, head;
    uint64_t config_bytes, model_bytes, head_bytes;
    bool is_scored;
    iso_digest data; /* images it was scored on */
    iso_score_pair val, test;
    uint32_t failures;
    iso_time retry_ms;
} agent_eval;

/* ---- the whole ---- */
typedef struct {
    bool is_running;
    uint8_t id[16];
    iso_trainer_job_kind kind;
    size_t task;
    uint64_t round, step, steps, checkpoint_step;
    float loss;
} agent_job;

struct iso_agent {
    iso_agent_config config;
    iso_agent_seams seams;
    agent_task *tasks;

    /* the step */
    iso_time mono, wall;
    iso_agent_effects *out;
    iso_op *ops; /* transaction being built, in out's arena */
    size_t op_count, op_capacity;
    iso_agent_effect spare; /* written when memory ran out */

    /* record "agent" */
    uint64_t epoch, next_sequence, highest_number, current, previous, event_cursor;
    uint64_t head_count; /* of heads ever stored */
    bool has_head, has_conflict, is_paused;
    uint8_t head[ISO_SIGNED_HEAD_BYTES]; /* newest verified */
    iso_head head_fields;

    /* roster */
    const iso_roster *roster; /* NULL: none yet */
    iso_roster *own_roster;   /* owned, when not given */
    iso_digest roster_container;
    uint64_t offered_roster;
    iso_digest offered_roster_digest;
    uint8_t early_head[ISO_SIGNED_HEAD_BYTES]; /* said before there was a roster */
    bool has_early_head;

    /* link */
    iso_agent_state link; /* OFFLINE .. ONLINE */
    uint64_t link_number; /* of the last CONNECT */
    iso_time since_ms, next_try_ms, greeting_ms, ping_ms, heard_ms, online_ms;
    uint32_t attempts, greetings;
    bool is_not_admitted;
    char link_reason[ISO_SENTENCE_MAX + 1];
    iso_site_state site;
    uint32_t protocol, chunk_bytes, credit;
    uint64_t update_bytes;
    int64_t clock_offset_ms;
    bool is_clock_known;
    uint64_t next_request;
    uint8_t sent[AGENT_SENT_RING]; /* type of request id % ring */
    uint64_t disk_free;

    agent_invite *invites; /* owned, in order of arrival */
    size_t invite_count;
    agent_update *outbox; /* owned, in order of sequence */
    size_t outbox_count;
    agent_upload upload;
    agent_want *wants; /* owned queue */
    size_t want_count;
    agent_fetch fetch;
    agent_blob *blobs; /* owned: downloads */
    size_t blob_count;
    agent_release *releases; /* owned, in order of number */
    size_t release_count;
    agent_offer offer;
    agent_pending pending;
    agent_eval_request *requests; /* owned */
    size_t request_count;
    agent_eval *evals; /* owned */
    size_t eval_count;
    uint64_t eval_stamp;
    agent_job job;
    bool is_restoring, is_broken; /* is_broken: memory ran out outside the effects */
};

/* ---- agent_out.c ---- */
iso_agent_effect *agent_effect(iso_agent *a, iso_agent_effect_kind kind);
void *agent_alloc(iso_agent *a, size_t bytes); /* in the effects; never NULL: zeroed, or spare */
void *agent_copy(iso_agent *a, const void *data, size_t bytes);
iso_msg *agent_send(iso_agent *a, iso_msg_type type, iso_agent_effect **effect);
void agent_log(iso_agent *a, iso_level level, const char *event, const char *fmt, ...)
    ISO_PRINTF(4, 5);
void agent_put(iso_agent *a, iso_agent_table table, const void *key, size_t key_bytes,
               const iso_buf *value);
void agent_delete(iso_agent *a, iso_agent_table table, const void *key, size_t key_bytes);
void agent_commit(iso_agent *a); /* the transaction built so far; nothing when empty */
/* Appends a zeroed item to an owned array; NULL when memory ran out (is_broken is set). */
void *agent_grow(iso_agent *a, void *array, size_t *count, size_t item_bytes);
void agent_text(iso_agent *a, char **field, const char *text); /* replaces an owned string */
uint64_t agent_random_below(iso_agent *a, uint64_t n);
/* The coordinator's wall clock now, as far as we know. */
uint64_t agent_coordinator_ms(const iso_agent *a);

/* ---- agent_save.c ---- */
void agent_save_meta(iso_agent *a);
void agent_save_roster(iso_agent *a, const void *text, size_t bytes);
void agent_save_task(iso_agent *a, const agent_task *t);
void agent_save_invite(iso_agent *a, const agent_invite *v);
void agent_save_update(iso_agent *a, const agent_update *u);
void agent_save_release(iso_agent *a, const agent_release *r);
void agent_save_eval(iso_agent *a, const agent_eval *v);
void agent_save_head(iso_agent *a);
void agent_save_blob(iso_agent *a, const agent_blob *b);
void agent_drop_invite(iso_agent *a, size_t i); /* memory only */
void agent_drop_release(iso_agent *a, size_t i);
void agent_release_clear(agent_release *r);

/* ---- agent_link.c ---- */
void agent_link_start(iso_agent *a);
void agent_link_event(iso_agent *a, const iso_agent_event *ev);
void agent_link_tick(iso_agent *a);
iso_time agent_link_wake(const iso_agent *a);
void agent_link_lost(iso_agent *a, iso_agent_down why, const char *text);
void agent_message(iso_agent *a, const iso_agent_event *ev);
bool agent_is_online(const iso_agent *a); /* ONLINE and an active site */

/* ---- agent_roster.c ---- */
void agent_roster_offered(iso_agent *a, const iso_msg_roster_offer *m);
void agent_roster_fetched(iso_agent *a, const iso_digest *digest, const void *bytes, size_t size);
/* Takes a signed head: verified, on our chain, newer ones are stored. False: not to be believed. */
bool agent_head_said(iso_agent *a, const iso_span *head, iso_head *out);
void agent_accept_epoch(iso_agent *a);

/* ---- agent_fetch.c ---- */
void agent_fetch_want(iso_agent *a, agent_purpose purpose, const iso_digest *digest, uint64_t bytes,
                      uint64_t max_bytes);
void agent_fetch_forget(iso_agent *a, agent_purpose purpose, const iso_digest *digest);
bool agent_has_blob(const iso_agent *a, const iso_digest *digest);
void agent_fetch_next(iso_agent *a); /* starts the next want when online and idle */
void agent_fetch_lost(iso_agent *a); /* the link is gone */
void agent_fetch_chunk(iso_agent *a, const iso_msg_blob_chunk *m, const uint8_t *body,
                       size_t bytes);
void agent_fetch_event(iso_agent *a, const iso_agent_event *ev);
void agent_fetch_error(iso_agent *a, const iso_msg_error *m);
void agent_fetch_tick(iso_agent *a);
iso_time agent_fetch_wake(const iso_agent *a);
void agent_collect(iso_agent *a); /* drops downloads that nothing refers to */
/* Every blob some state refers to, downloads or not. */
void agent_each_blob(const iso_agent *a, iso_agent_blob_fn *fn, void *arg);

/* ---- agent_invite.c ---- */
void agent_invited(iso_agent *a, const iso_msg_invite *m);
void agent_invite_tick(iso_agent *a);
iso_time agent_invite_wake(const iso_agent *a);
bool agent_invite_is_ready(const iso_agent *a, const agent_invite *v); /* its blobs are there */
void agent_invite_trained(iso_agent *a, const iso_trainer_event *ev);
void agent_invite_failed(iso_agent *a, const iso_trainer_event *ev);
void agent_invite_sealed(iso_agent *a, const iso_agent_event *ev);
void agent_invite_blob_failed(iso_agent *a, const iso_digest *digest, const char *why);
void agent_invite_advance(iso_agent *a); /* wants blobs, seals what is trained */

/* ---- agent_upload.c ---- */
agent_update *agent_find_update(iso_agent *a, const uint8_t update_id[16]);
void agent_upload_next(iso_agent *a);
void agent_upload_lost(iso_agent *a);
void agent_upload_grant(iso_agent *a, const iso_msg_update_grant *m);
void agent_upload_ack(iso_agent *a, const iso_msg_chunk_ack *m);
void agent_upload_receipt(iso_agent *a, const iso_msg_receipt *m);
void agent_upload_error(iso_agent *a, const iso_msg_error *m);
void agent_upload_tick(iso_agent *a);
iso_time agent_upload_wake(const iso_agent *a);
void agent_upload_epoch(iso_agent *a, uint64_t restored_seq); /* S86: offers again */

/* ---- agent_release.c ---- */
void agent_release_offered(iso_agent *a, const iso_msg_release_offer *m);
void agent_release_bytes(iso_agent *a, agent_purpose purpose, const iso_digest *digest,
                         const void *bytes, size_t size);
void agent_release_blob_failed(iso_agent *a, const iso_digest *digest, const char *why);
void agent_release_advance(iso_agent *a);
iso_time agent_release_wake(const iso_agent *a);
agent_release *agent_find_release(iso_agent *a, uint64_t number);
void agent_pending_clear(iso_agent *a);
/* Bytes and digest of a file of a release; NULL if it has none of that path. */
const iso_agent_file *agent_release_file(const agent_release *r, const char *path);

/* ---- agent_trial.c ---- */
void agent_trial_done(iso_agent *a, const iso_trainer_event *ev);
void agent_trial_failed(iso_agent *a, const iso_trainer_event *ev);
void agent_trial_installed(iso_agent *a, const iso_agent_event *ev);
void agent_trial_accept(iso_agent *a, uint64_t number);
void agent_trial_fetched(iso_agent *a); /* K7, then the trial */
void agent_trial_restart(iso_agent *a); /* takes up what a restart found */
void agent_trial_advance(iso_agent *a);
/* Tells the coordinator what became of a release; nothing is recorded here. Scores: before,
 * delivered, refitted. */
void agent_verdict_send(iso_agent *a, uint64_t number, iso_verdict verdict, const float scores[3],
                        const char *reason);
void agent_verdicts_send(iso_agent *a); /* the newest, if not said on this connection */
const agent_release_task *agent_trial_next(const iso_agent *a, const agent_release *r);

/* ---- agent_eval.c ---- */
void agent_eval_requested(iso_agent *a, const iso_msg_eval_request *m);
void agent_eval_bytes(iso_agent *a, const iso_digest *digest, const void *bytes, size_t size);
void agent_eval_blob_failed(iso_agent *a, const iso_digest *digest, const char *why);
void agent_eval_done(iso_agent *a, const iso_trainer_event *ev);
void agent_eval_failed(iso_agent *a, const iso_trainer_event *ev);
void agent_eval_advance(iso_agent *a);
iso_time agent_eval_wake(const iso_agent *a);
const agent_eval *agent_eval_ready(const iso_agent *a); /* one whose job may start */
void agent_eval_job_id(const iso_digest *candidate, const uint8_t task_id[16], uint8_t id[16]);

/* ---- agent_jobs.c ---- */
void agent_jobs_next(iso_agent *a);
void agent_jobs_event(iso_agent *a, const iso_trainer_event *ev);
void agent_jobs_stop(iso_agent *a, const uint8_t id[16]); /* if that one runs */
void agent_release_job_id(uint64_t number, iso_trainer_job_kind kind, const uint8_t task_id[16],
                          uint8_t id[16]);

#endif
