/* The coordinator's core: events and time in, effects out (specs/security.md 4.5, 6.1).
 *
 * It owns every decision that a test or the simulation should see: who may do what, what is
 * refused, what is durable before what is said. It has no clock, socket, file or thread; a shell
 * (coordinator/daemon.c, sim/) performs the effects in their order and reports back by events.
 *
 * Order. The effects of one step are a list. COMMIT is one transaction; an effect after it may be
 * performed only when it has returned. A shell may join the COMMITs of several steps into one
 * transaction and hold back what follows each until it is durable (S88). When a COMMIT or PUT_BLOB
 * fails the shell drops the step's later effects, cuts all peers and makes a new core from the
 * store: a restart like any other (I8). When UPLOAD_OPEN or UPLOAD_WRITE fails it drops the step's
 * later effects and reports UPLOAD_STORED with ISO_STORED_DISK for that upload.
 *
 * Memory. What an effect points to lives in the iso_coord_effects until its next reset; what an
 * event points to is only read during the step. */
#ifndef ISO_COORDINATOR_CORE_H
#define ISO_COORDINATOR_CORE_H

#include "coordinator/config.h"
#include "core/clock.h"
#include "core/entropy.h"
#include "core/log.h"
#include "core/sealer.h"
#include "core/store.h"
#include "core/transport.h"
#include "proto/message.h"

typedef struct iso_coord iso_coord;

/* ---- what a coordinator is, beside its configuration: keys and files of its folder ---- */
typedef struct {
    uint8_t id[16];
    uint8_t pk[32];
    bool is_usable; /* may updates be sealed to it now */
} iso_coord_merge_key;

typedef struct {
    uint8_t federation[16];
    uint64_t epoch;           /* S86: chosen at init, replaced at restore */
    uint8_t audit_pk[32];     /* of the key that iso_sealer.sign uses */
    uint8_t transport_pk[32]; /* for enrolment lines */
    uint64_t roster_version;  /* 0: no roster (tests) */
    iso_digest roster;        /* container blob of root.pub, roster.json, its signature */
    uint64_t roster_bytes;
    iso_digest root; /* digest of root.pub */
    iso_coord_merge_key merge_keys[ISO_COORD_MERGE_KEYS_MAX];
    size_t merge_key_count;
    uint64_t generation;
    iso_digest generation_digest;
    char release_key_id[17]; /* shown only */
} iso_coord_identity;

/* ---- records: tables of the store (docs/FORMATS.md "State") ---- */
typedef enum {
    ISO_CT_META,    /* name -> counters, pointers */
    ISO_CT_SITE,    /* site id */
    ISO_CT_TOKEN,   /* token id (4) */
    ISO_CT_TASK,    /* task id */
    ISO_CT_ROUND,   /* round number, big endian */
    ISO_CT_INVITE,  /* round, site, task */
    ISO_CT_UPLOAD,  /* upload id */
    ISO_CT_UPDATE,  /* update id */
    ISO_CT_PROOF,   /* update id, header digest: equivocation (S38) */
    ISO_CT_SCORE,   /* round, candidate, task, site, metric */
    ISO_CT_RELEASE, /* number, big endian */
    ISO_CT_VERDICT, /* number, site */
    ISO_CT_NOTICE,  /* site, event, big endian */
    ISO_CT_AUDIT,   /* sequence, big endian */
    ISO_CT_COUNT
} iso_coord_table;
extern const char *const iso_coord_table_names[ISO_CT_COUNT];

/* ---- worker jobs as data; coordinator/job.h has their JSON ---- */
typedef enum { ISO_JOB_HEADS = 1, ISO_JOB_MERGE = 2, ISO_JOB_SIGN = 3 } iso_job_kind;

typedef struct {
    uint8_t update_id[16];
    iso_digest blob;       /* sealed body: ciphertext chunks */
    const uint8_t *header; /* 384 bytes */
    const uint8_t *signature, *sign_pk;
    uint64_t samples;
} iso_job_update;

typedef struct {
    uint8_t id[16];
    const iso_coord_task *config;
    iso_digest previous; /* task adapter blob, zero if none */
    iso_digest head;     /* zero if none */
    iso_job_update *updates;
    size_t update_count;
} iso_job_task;

typedef struct {
    uint8_t id[16];
    iso_job_kind kind;
    uint8_t federation[16];
    uint64_t round;
    uint64_t generation;
    iso_digest generation_digest;
    const char *backbone; /* folder; kind merge */
    iso_job_task *tasks;
    size_t task_count;
    const iso_coord_candidate *candidates; /* kind merge */
    size_t candidate_count;
    uint64_t number; /* kind sign */
    iso_digest manifest, candidate;
    bool is_accepted; /* by the operator, although the gate held it */
} iso_job;

typedef enum {
    ISO_UPDATE_PENDING, /* acknowledged, not merged yet */
    ISO_UPDATE_USED,
    ISO_UPDATE_REFUSED,
    ISO_UPDATE_LATE /* job results never say so: acknowledged after its round closed */
} iso_update_state;
typedef struct {
    uint8_t update_id[16];
    iso_update_state verdict; /* used or refused */
    iso_code code;            /* OK when used */
    char sentence[160];
    double score;
    uint64_t samples;
} iso_job_verdict;

typedef struct {
    uint8_t id[16];
    iso_digest blob; /* kind heads: the head; kind merge: the task adapter; zero: none */
    uint64_t bytes;
    iso_digest head; /* kind merge with head mode joint; zero: unchanged */
    uint64_t head_bytes;
    uint32_t rank;
    double lost_energy;
    iso_job_verdict *verdicts;
    size_t verdict_count;
} iso_job_task_result;

typedef struct {
    char path[96];
    iso_digest digest;
    uint64_t bytes;
} iso_job_file;

typedef struct {
    iso_coord_candidate config; /* text borrowed from the result */
    iso_digest manifest;        /* blob listing its files */
    uint64_t bytes;
    uint32_t rank_max;
    iso_job_file files[4];
    size_t file_count;
} iso_job_candidate_result;

typedef struct {
    uint8_t id[16];
    iso_job_kind kind;
    iso_job_task_result *tasks;
    size_t task_count;
    iso_job_candidate_result *candidates;
    size_t candidate_count;
    iso_digest signature; /* kind sign: blob of the minisig file */
    uint64_t signature_bytes;
    uint64_t worker_ms; /* wall time of the work; 0 unknown */
} iso_job_result;

/* ---- events ---- */
typedef enum {
    ISO_CE_TICK,          /* time has passed: at the latest at iso_coord_next_wake() */
    ISO_CE_MESSAGE,       /* a checked message from a peer that passed ZAP */
    ISO_CE_BAD_MESSAGE,   /* a peer sent something that proto refused; `text` says what */
    ISO_CE_PEER_GONE,     /* the transport lost it */
    ISO_CE_UPLOAD_OPENED, /* answer to UPLOAD_OPEN: whole chunks that the partial file holds */
    ISO_CE_UPLOAD_STORED, /* answer to UPLOAD_STORE */
    ISO_CE_JOB_DONE,      /* worker's result */
    ISO_CE_JOB_FAILED,    /* after the shell's retries; `text` says why */
    ISO_CE_ADMIN,         /* a command of an operator: `text` is its JSON object */
    ISO_CE_DISK           /* free bytes of the state's file system */
} iso_coord_event_kind;

typedef enum { ISO_STORED_OK, ISO_STORED_DIGEST, ISO_STORED_DISK } iso_stored;

typedef struct {
    iso_coord_event_kind kind;
    iso_peer peer;       /* MESSAGE, BAD_MESSAGE, PEER_GONE */
    iso_peer_name name;  /* MESSAGE, BAD_MESSAGE: the transport's word (S26) */
    const iso_msg *msg;  /* MESSAGE */
    const uint8_t *body; /* MESSAGE: second frame */
    size_t body_bytes;
    uint8_t id[16];               /* UPLOAD_*: upload; JOB_FAILED: job */
    uint32_t chunks;              /* UPLOAD_OPENED */
    iso_stored stored;            /* UPLOAD_STORED */
    const char *text;             /* BAD_MESSAGE, JOB_FAILED, ADMIN */
    uint64_t admin;               /* ADMIN: number that the reply repeats */
    uint32_t admin_uid;           /* ADMIN: who, by SO_PEERCRED */
    uint64_t disk_free;           /* DISK */
    const iso_job_result *result; /* JOB_DONE */
} iso_coord_event;

/* ---- effects ---- */
typedef enum {
    ISO_CX_COMMIT,       /* one transaction of `ops`; durable when it returns */
    ISO_CX_PUT_BLOB,     /* durable blob of `data`, whose digest is `digest` */
    ISO_CX_DELETE_BLOB,  /* after the row is gone; missing is fine */
    ISO_CX_SEND,         /* message to a peer, with `data` or a piece of a blob as body */
    ISO_CX_CUT,          /* close the peer's connection after what was sent before */
    ISO_CX_ADMITTED,     /* the set of keys changed: iso_coord_keys() has the new one */
    ISO_CX_UPLOAD_OPEN,  /* open the partial file, cut it to whole chunks, hash them; answer */
    ISO_CX_UPLOAD_WRITE, /* append one chunk (not synced) and hash it */
    ISO_CX_UPLOAD_STORE, /* sync, compare with `digest`, rename to its blob, sync folder; answer */
    ISO_CX_UPLOAD_DROP,  /* close and remove the partial file */
    ISO_CX_JOB_START,    /* start the worker (again, after a restart, with the same id) */
    ISO_CX_JOB_CANCEL,   /* stop it if it runs; its result is not wanted any more */
    ISO_CX_ADMIN_REPLY,  /* one JSON line to the operator */
    ISO_CX_LOG,          /* one line */
    ISO_CX_STOP          /* operator asked for a clean stop */
} iso_coord_effect_kind;

typedef struct {
    iso_coord_effect_kind kind;
    iso_peer peer;      /* SEND, CUT */
    const iso_msg *msg; /* SEND */
    const uint8_t *data;
    size_t data_bytes;
    bool is_blob_piece; /* SEND: the body is `piece_bytes` of blob `digest` from `piece_offset` */
    iso_digest digest;  /* PUT_BLOB, DELETE_BLOB, SEND, UPLOAD_STORE */
    uint64_t piece_offset;
    uint32_t piece_bytes;
    const iso_op *ops; /* COMMIT */
    size_t op_count;
    uint8_t id[16];       /* UPLOAD_*, JOB_CANCEL */
    uint32_t chunk_bytes; /* UPLOAD_OPEN: wire bytes of every chunk but the last */
    uint32_t chunk_count; /* UPLOAD_OPEN */
    uint64_t body_bytes;  /* UPLOAD_OPEN, UPLOAD_STORE: whole body */
    const iso_job *job;   /* JOB_START */
    uint64_t admin;       /* ADMIN_REPLY */
    iso_level level;      /* LOG */
    const char *event;    /* LOG: name */
    const char *text;     /* LOG: pairs, escaped; ADMIN_REPLY: JSON without newline */
} iso_coord_effect;

typedef struct {
    iso_coord_effect *items;
    size_t count, capacity;
    iso_arena arena;
    bool is_out_of_memory; /* set, never cleared: the shell stops with exit 5 */
} iso_coord_effects;

void iso_coord_effects_reset(iso_coord_effects *out); /* a zeroed struct is ready */
void iso_coord_effects_free(iso_coord_effects *out);

/* ---- life ----
 * config and identity are copied, what they point to is borrowed. */
iso_err iso_coord_new(const iso_coord_config *config, const iso_coord_identity *identity,
                      const iso_sealer *sealer, const iso_entropy *entropy, iso_coord **out,
                      iso_error *e) ISO_MUST_CHECK;
void iso_coord_free(iso_coord *c);

/* Every row of every table, tables in the order of the enum, rows in key order; then start. */
iso_err iso_coord_restore_row(iso_coord *c, int table, const uint8_t *key, size_t key_bytes,
                              const uint8_t *value, size_t value_bytes,
                              iso_error *e) ISO_MUST_CHECK;
/* Restores every row of `store` (a convenience over the above). */
iso_err iso_coord_restore(iso_coord *c, const iso_store *store, iso_error *e) ISO_MUST_CHECK;

/* Address that enrolment lines name, once the shell knows it. */
void iso_coord_set_endpoint(iso_coord *c, const char *host, uint16_t port);

/* Takes up what was interrupted: partial uploads, jobs, phases of the round. Once, before step. */
void iso_coord_start(iso_coord *c, iso_time mono_now, iso_time wall_now, iso_coord_effects *out);

void iso_coord_step(iso_coord *c, const iso_coord_event *ev, iso_time mono_now, iso_time wall_now,
                    iso_coord_effects *out);

/* Monotonic time of the next TICK that is needed; UINT64_MAX for none. */
iso_time iso_coord_next_wake(const iso_coord *c);

/* ---- what a shell may look at ---- */
/* Every key that ZAP admits now, with the name it is admitted under. */
typedef void iso_coord_key_fn(void *arg, const uint8_t transport_pk[32], const iso_peer_name *name);
void iso_coord_keys(const iso_coord *c, iso_coord_key_fn *fn, void *arg);

/* Every blob that a record refers to (S84: what is not named here may be removed at start). */
typedef void iso_coord_blob_fn(void *arg, const iso_digest *digest, uint64_t bytes,
                               const char *what);
void iso_coord_live_blobs(const iso_coord *c, iso_coord_blob_fn *fn, void *arg);
/* A referenced blob is missing or has the wrong size: alarm, the object is damaged, others go on.
 */
void iso_coord_blob_damaged(iso_coord *c, const iso_digest *digest);
/* True while a worker's result is waited for: its blobs are not named by records yet. */
bool iso_coord_has_job(const iso_coord *c);
/* What a peer has under way (S46): who holds memory for nothing goes first when it is short. */
typedef enum { ISO_BUSY_NOT, ISO_BUSY_UPLOADING, ISO_BUSY_STORING } iso_coord_busy;
iso_coord_busy iso_coord_peer_busy(const iso_coord *c, iso_peer peer);
/* True while the upload is open: its partial file must stay. */
bool iso_coord_has_upload(const iso_coord *c, const uint8_t upload_id[16]);

typedef struct {
    uint64_t events, messages, refusals, cuts;
    uint64_t receipts, used, refused, pending; /* I1: receipts = used + refused + pending */
    uint64_t rounds, release, audit_seq;
    uint32_t sites, peers, uploads;
    uint64_t credit_chunks; /* granted and not yet received */
    iso_digest audit_head;
    uint64_t round;  /* active, 0 if none */
    int round_state; /* iso_round_state of round.h */
} iso_coord_stats;
void iso_coord_get_stats(const iso_coord *c, iso_coord_stats *out);

/* Invariants I1-I3, I5-I7, I9, I10 of 6.4 over the whole state. ISO_ERR_INTERNAL names the first
 * that does not hold. `is_full` also walks every update (O(updates)); otherwise only counters,
 * queues and the objects of the last step. */
iso_err iso_coord_check(const iso_coord *c, bool is_full, iso_error *e) ISO_MUST_CHECK;

#endif
