/* Objects of the coordinator's core: peers, sites, tokens, tasks, uploads, updates, rounds,
 * releases and the core that holds them. What is durable of them is written by records.c and read
 * back by restore.c; the functions over them stand in inner.h. */
#ifndef ISO_COORDINATOR_OBJECTS_H
#define ISO_COORDINATOR_OBJECTS_H

#include "coordinator/core.h"
#include "coordinator/index.h"
#include "core/json.h"
#include "core/wire.h"
#include "crypto/chain.h"
#include "crypto/envelope.h"
#include "crypto/token.h"

typedef struct iso_c_site iso_c_site;
typedef struct iso_c_update iso_c_update;
typedef struct iso_c_round iso_c_round;

enum {
    SENTENCE_BYTES = 160,
    FAULTS_BEFORE_CUT = 3,  /* bad chunks, bad messages (S51, 9.1) */
    REFUSALS_A_MINUTE = 10, /* S58 */
    AUDITED_REFUSALS_HOUR = 60,
    UPLOADS_A_SITE = 2,      /* 9.3 */
    WRONG_MACS_BURN = 5,     /* S20 */
    EVALS_IN_FLIGHT = 16,    /* questions a site holds at once */
    RELEASES_KEPT = 16,      /* with files, for rollback */
    RELEASES_CHAINED = 1000, /* with their manifests, for sites that were away (S92) */
    METRICS = 4
};
#define PARTIAL_BYTES_A_SITE (512ull << 20)
#define HELLO_TIMEOUT_MS     10000u
#define HOUSEKEEPING_MS      5000u
#define RESEND_MS            30000u
#define AWAY_MS              180000u
#define HEAD_EVERY_MS        3600000u

/* ---- peers: one connection each ---- */
typedef enum { PEER_ADMITTED, PEER_TOKEN, PEER_PENDING, PEER_READY } iso_c_peer_state;

typedef struct iso_c_token iso_c_token;
typedef struct {
    iso_peer id;
    iso_peer_name name;
    iso_c_peer_state state;
    iso_c_site *site;   /* name.kind SITE */
    iso_c_token *token; /* name.kind TOKEN */
    bool is_cut, has_hello;
    uint8_t nonce[32];
    iso_time since;
    uint64_t rate_tokens; /* thousandths of a request */
    iso_time rate_at;
    uint32_t faults, bad_messages;
} iso_c_peer;

/* ---- sites ---- */
typedef struct {
    uint64_t event;
    iso_code code;
    uint8_t update_id[16];
    char sentence[SENTENCE_BYTES];
} iso_c_notice;

struct iso_c_site {
    uint8_t id[16];
    char name[ISO_NAME_MAX + 1];
    iso_site_state state;
    uint8_t transport_pk[32], sign_pk[32];
    uint64_t enrolled_ms, revoked_seq;
    uint64_t sequence;   /* of its last committed update (I9) */
    uint64_t next_event; /* number of its next notice, from 1 */
    uint8_t (*task_ids)[16];
    size_t task_count;
    uint64_t tasks; /* bit i: configured task i is its own */
    iso_c_notice *notices;
    size_t notice_count;
    /* not durable */
    iso_c_peer *peer;
    iso_time seen;
    uint64_t seen_wall;
    uint64_t serving, verdict_number; /* release it serves, last one it judged */
    uint32_t verdict;                 /* iso_verdict of that */
    uint64_t head_ms;                 /* time in the newest signed head it was sent (S105) */
    uint64_t roster_held;             /* version it has, by its Hello and what it fetched since */
    iso_time offered;                 /* last offer or invitation sent */
    uint32_t refusals;                /* of this minute */
    iso_time refusals_since;
    uint32_t audited;
    iso_time audited_since;
    uint32_t penalty; /* doublings of retry_after (S58) */
    iso_time penalty_until;
    uint32_t uploads;
    uint64_t partial_bytes;
    char software[ISO_SOFTWARE_MAX + 1];
    uint64_t refused_total;
    size_t invite_at, invite_count; /* in the active round's list */
    size_t evaluator_at;
};

struct iso_c_token {
    uint8_t id[4];
    uint8_t transport_pk[32], proof_key[32];
    uint64_t created_ms, expires_ms;
    char name[ISO_NAME_MAX + 1];
    uint8_t (*task_ids)[16];
    size_t task_count;
    bool is_used;
    uint32_t wrong_macs;
    uint8_t site_id[16]; /* whom it made */
};

/* ---- tasks: beside the configuration, what became of them ---- */
typedef struct {
    uint8_t id[16];
    const iso_coord_task *config;
    iso_digest head, adapter;
    uint64_t head_bytes, adapter_bytes;
    uint64_t head_round, adapter_round;
    uint32_t rank;
    uint64_t updates, samples; /* of its adapter */
    double own[METRICS];       /* [0]: sites' own scores, weighted by samples */
    double baseline[METRICS];  /* under the current release; NAN: new to it */
} iso_c_task;

/* ---- uploads ---- */
typedef enum { UPLOAD_OPENING, UPLOAD_OPEN, UPLOAD_STORING } iso_c_upload_state;
typedef struct {
    uint8_t id[16];
    iso_c_upload_state state;
    iso_c_site *site;
    iso_envelope h;
    uint8_t raw[384 + 64]; /* header, signature */
    iso_digest header_digest;
    uint32_t next_chunk, credit;
    bool is_from_disk; /* chunks of an earlier life of this process: not synced, may be torn */
    uint64_t begun_ms;
    iso_peer peer;       /* who gets grants and the receipt */
    uint64_t request_id; /* of the begin or commit that waits for an answer */
} iso_c_upload;

struct iso_c_update {
    uint8_t id[16];
    iso_c_site *site;
    uint8_t task_id[16];
    int task; /* configured task, -1: gone */
    uint64_t round, sequence, samples, committed_ms;
    float score;
    iso_digest header_digest, blob;
    uint64_t blob_bytes;
    uint64_t audit_seq;
    iso_digest audit_head;
    uint8_t receipt_signature[64];
    uint64_t epoch;
    iso_update_state state;
    iso_code code;
    char *sentence; /* owned, NULL when used or pending */
    double worker_score;
    uint8_t *raw; /* header and signature, owned; NULL once the round is over */
};

/* ---- rounds ---- */
typedef enum { ROUND_HEAD = 1, ROUND_ADAPTER = 2, ROUND_ROLLBACK = 3 } iso_c_round_kind;
typedef enum {
    ROUND_OPEN = 1,
    ROUND_MERGING,
    ROUND_EVALUATING,
    ROUND_SIGNING,
    ROUND_HELD,
    /* ended */
    ROUND_RELEASED,
    ROUND_DONE,
    ROUND_ABORTED,
    ROUND_FAILED
} iso_c_round_state;

typedef enum { INVITE_SENT, INVITE_ACCEPTED, INVITE_DECLINED } iso_c_invite_state;
typedef struct {
    uint8_t id[16];
    iso_c_site *site;
    int task; /* index in the configuration */
    iso_c_invite_state state;
    uint64_t samples;
    iso_c_update *update; /* NULL: none yet */
    char reason[64];
} iso_c_invite;

typedef struct {
    int task;
    uint32_t quorum, updates;
    bool is_out; /* left out, with the reason */
    char reason[96];
    double score; /* chosen candidate, gate metric */
    double baseline;
} iso_c_round_task;

typedef struct {
    char method[32], convention[8];
    double alpha, common_fraction;
    iso_digest manifest;
    uint64_t bytes;
    uint32_t rank_max;
    iso_job_file files[4];
    uint32_t file_count;
    bool is_judged, has_passed;
    double mean; /* normalised score over its tasks */
    char reason[120];
} iso_c_candidate;

/* One question of the evaluation, the same for every site that owns the task. */
typedef struct {
    uint8_t eval_id[16];
    int candidate; /* -1: the frozen backbone with the task's head */
    int task;
    int metric;
} iso_c_question;

/* NONE: not asked of this site. */
typedef enum { ANSWER_NONE, ANSWER_OPEN, ANSWER_SENT, ANSWER_GIVEN } iso_c_answer_state;
typedef struct {
    uint8_t state, outcome;
    float score;
    uint64_t samples;
} iso_c_answer;

typedef struct {
    iso_c_site *site;
    iso_c_answer *answers;    /* one a question */
    uint32_t in_flight, open; /* sent and not answered; not answered */
} iso_c_evaluator;

struct iso_c_round {
    uint64_t number;
    iso_c_round_kind kind;
    iso_c_round_state state;
    bool is_paused;
    iso_c_round_task tasks[ISO_COORD_TASKS_MAX];
    size_t task_count;
    uint64_t follow; /* HEAD: mask of the tasks of the adapter round that comes next */
    uint64_t opened_ms, deadline_ms, closed_ms, merged_ms, judged_ms, ended_ms, worker_ms;
    iso_time deadline, eval_deadline, paused_at;
    char reason[SENTENCE_BYTES];
    uint8_t job[16];
    bool has_job;
    iso_c_update **updates;
    size_t update_count, update_capacity;
    iso_c_invite *invites; /* while not ended; those of a site stand together */
    size_t invite_count;
    size_t unanswered; /* invitations without update or refusal */
    iso_c_candidate *candidates;
    size_t candidate_count;
    int chosen;          /* candidate, -1: none yet */
    bool by_operator;    /* accepted although the gate held it */
    uint64_t release;    /* number being signed, or released */
    iso_digest manifest; /* of that release */
    uint64_t manifest_bytes, release_created_ms, release_valid_until_ms;
    uint64_t rollback_of;             /* kind ROLLBACK */
    uint64_t eval_tasks, fresh_tasks; /* masks: in the merge; new to the release */
    uint32_t metric_count;            /* asked: 2, or 4 with the test split */
    iso_c_question *questions;
    size_t question_count;
    iso_c_evaluator *evaluators;
    size_t evaluator_count;
    uint64_t open_answers;
};

/* ---- releases ---- */
typedef struct {
    char path[96];
    iso_digest digest;
    uint64_t bytes;
    uint8_t task_id[16]; /* heads: whose; zero: everybody's */
} iso_c_file;

typedef struct {
    uint8_t task_id[16];
    double score[METRICS], baseline; /* gate metric's baseline */
    uint64_t samples, updates;
} iso_c_release_task;

typedef struct {
    uint64_t number, round, rollback_of;
    iso_digest manifest, signature, candidate;
    uint64_t manifest_bytes, signature_bytes, total_bytes;
    uint64_t created_ms, valid_until_ms;
    char method[32], convention[8], reason[SENTENCE_BYTES];
    iso_c_file *files;
    size_t file_count;
    iso_c_release_task *tasks;
    size_t task_count;
    uint32_t accepted, rejected;
} iso_c_release;

/* ---- rosters: every version ever offered, since a site steps through each (S14) ---- */
typedef struct {
    uint64_t version;
    iso_digest container;
    uint64_t bytes;
} iso_c_roster;

/* ---- the core ---- */
struct iso_coord {
    iso_coord_config config;
    iso_coord_identity identity;
    iso_sealer sealer;
    iso_entropy entropy;
    iso_c_task tasks[ISO_COORD_TASKS_MAX];

    iso_c_site **sites;
    size_t site_count, site_capacity;
    iso_index site_by_id;
    iso_c_token **tokens;
    size_t token_count, token_capacity;
    iso_c_peer **peers;
    size_t peer_count, peer_capacity;
    iso_index peer_by_id;
    iso_c_upload **uploads;
    size_t upload_count, upload_capacity;
    iso_index update_by_id;
    size_t update_count;
    iso_c_round **rounds; /* by rising number */
    size_t round_count, round_capacity;
    iso_c_release **releases; /* by rising number */
    size_t release_count, release_capacity;
    iso_c_roster *rosters; /* by rising version, without gaps */
    size_t roster_count;
    size_t rounds_with_details; /* C13: index of the first round that still has its updates */

    /* audit chain (S101) */
    uint64_t audit_seq, audit_time_ms;
    iso_digest audit_head, last_signed_head;
    uint8_t signed_head[ISO_SIGNED_HEAD_BYTES];
    uint64_t signed_seq, signed_release, signed_ms;

    uint64_t release_floor; /* highest number that any site reported (S86) */
    uint64_t retired_receipts, retired_used, retired_refused; /* of rounds dropped by C13 */
    iso_coord_stats stats;
    uint64_t disk_free;
    bool is_disk_known, is_started, is_stopping;
    bool is_out_of_memory;
    iso_time housekeeping, started;
    uint32_t auto_rounds;
    iso_time auto_not_before;
    iso_digest *damaged;
    size_t damaged_count;
    char host[ISO_HOST_MAX + 1]; /* of enrolment lines */
    uint16_t port;

    /* of the step at hand */
    iso_time now;
    uint64_t wall;
    iso_coord_effects *out;
    iso_op *ops;
    size_t op_count, op_capacity;
};

#endif
