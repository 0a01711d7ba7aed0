/* The life of a site: events and time in, effects out (specs/security.md 4.5 client table, 6.2, 7).
 *
 * It owns every decision of a site: when to connect, what to train, what to send again, which
 * release to trust, try and serve. It has no clock, socket, file or thread; a shell
 * (client/daemon.c, sim/) performs the effects in their order and reports back by events.
 *
 * Order. The effects of one step are a list. COMMIT is one transaction; an effect after it may be
 * performed only when it has returned. When a COMMIT or PUT_BLOB fails the shell drops the step's
 * later effects and makes a new agent from the store: a restart like any other (I8).
 *
 * Memory. What an effect points to lives in the iso_agent_effects until its next reset; what an
 * event points to is only read during the step. */
#ifndef ISO_CLIENT_AGENT_H
#define ISO_CLIENT_AGENT_H

#include "core/clock.h"
#include "core/entropy.h"
#include "core/log.h"
#include "core/sealer.h"
#include "core/store.h"
#include "core/trainer.h"
#include "crypto/envelope.h"
#include "crypto/manifest.h"
#include "crypto/roster.h"
#include "proto/message.h"

typedef struct iso_agent iso_agent;

/* ---- configuration ---- */
typedef struct {
    const char *name; /* as in client.yaml */
    uint8_t id[16];   /* iso_agent_task_id() */
} iso_agent_task;

typedef struct {
    uint8_t federation_id[16], site_id[16];
    uint8_t root_fingerprint[ISO_FINGERPRINT_BYTES]; /* of the enrolment line; pins root.pub */
    const char *software;                            /* version, "0.1.0" */
    const iso_agent_task *tasks;
    size_t task_count;
    iso_digest generation_digest; /* of the site's backbone; zero: not checked (simulation) */
    bool accept_manual;           /* accepted releases wait for the operator (U68) */
    double margin;                /* S94, 0.01 */
    uint32_t few_samples;         /* S94: below, a release is accepted and that is said; 30 */
    uint64_t ping_ms;             /* S57: 60 s */
    uint64_t spread_ms;           /* S56: first contact after a lost session; 30 s */
    uint64_t reply_ms, commit_ms; /* S55: 10 s, 60 s */
    uint64_t head_age_ms;         /* S92: older signed heads are warned about; 24 h */
    uint64_t receipt_keep_ms;     /* S86: sealed files are kept so long after their receipt; 7 d */
    uint64_t outbox_bytes;        /* 9.3: 1 GiB */
    uint32_t outbox_updates;      /* 9.3: 16 */
    uint64_t release_bytes;       /* 9.3: 4 GiB */
    uint64_t disk_floor_bytes;    /* nothing is fetched below */
} iso_agent_config;

void iso_agent_config_defaults(iso_agent_config *config);

/* First 16 bytes of BLAKE2b-256("isofed-task-1" + federation_id + name). */
void iso_agent_task_id(const uint8_t federation_id[16], const char *name, uint8_t id[16]);

/* Signature, trusted comment and canonical form of a release manifest: iso_manifest_verify().
 * A seam of its own because the simulation signs with a short hash. */
typedef iso_err iso_agent_manifest_fn(void *ctx, const iso_minisign_public *key, const void *text,
                                      size_t size, const void *signature, size_t signature_bytes,
                                      iso_arena *arena, iso_manifest *out, iso_error *e);

typedef struct {
    iso_sealer sealer; /* sign: with the site's key; verify */
    iso_entropy entropy;
    iso_agent_manifest_fn *manifest; /* NULL: iso_manifest_verify */
    void *manifest_ctx;
} iso_agent_seams;

/* ---- records: tables of the store (docs/FORMATS.md "State of a client") ---- */
typedef enum {
    ISO_AT_META,    /* "agent": counters and pointers; "roster": the roster held */
    ISO_AT_TASK,    /* task id: head, data, figures */
    ISO_AT_INVITE,  /* invite id */
    ISO_AT_OUTBOX,  /* update id */
    ISO_AT_RELEASE, /* number, big endian */
    ISO_AT_EVAL,    /* candidate digest, task id */
    ISO_AT_HEAD,    /* sequence, big endian: signed audit heads (S105) */
    ISO_AT_BLOB,    /* digest: why it is kept */
    ISO_AT_COUNT
} iso_agent_table;
extern const char *const iso_agent_table_names[ISO_AT_COUNT];

/* ---- events ---- */
typedef enum {
    ISO_AE_TICK,        /* time has passed: at the latest at iso_agent_next_wake() */
    ISO_AE_LINK_UP,     /* the handshake of the last CONNECT succeeded */
    ISO_AE_LINK_DOWN,   /* the link failed, was refused or was lost: `down`, `text` */
    ISO_AE_MESSAGE,     /* a decoded message of the link */
    ISO_AE_DATA,        /* what the spool holds for a task (at start and when it changes) */
    ISO_AE_TRAINER,     /* progress or result of a job */
    ISO_AE_SEALED,      /* answer to SEAL; `code` not ISO_OK: failed, `text` says why */
    ISO_AE_FETCH_READY, /* answer to FETCH_OPEN: `offset` bytes of whole chunks are there */
    ISO_AE_FETCH_DONE,  /* answer to FETCH_OPEN (the blob is in the store) or FETCH_CLOSE; `code`
                           not ISO_OK: digest differs (ISO_ERR_DATA) or the disk failed */
    ISO_AE_INSTALLED,   /* answer to INSTALL: the folder is complete and synced; or `code` */
    ISO_AE_DISK,        /* free bytes of the state's file system: `offset` */
    ISO_AE_PAUSE,       /* operator of the site: training stops at the next step */
    ISO_AE_RESUME,
    ISO_AE_ACCEPT,      /* operator accepts release `offset` (accept: manual) */
    ISO_AE_ACCEPT_EPOCH /* operator confirms the coordinator's history as it is now (S108) */
} iso_agent_event_kind;

typedef enum {
    ISO_DOWN_LOST,    /* an established session ended */
    ISO_DOWN_FAILED,  /* no answer, refused by the network, wrong server key */
    ISO_DOWN_REFUSED, /* ZAP said 400: not admitted (S56) */
    ISO_DOWN_COUNT
} iso_agent_down;

typedef struct {
    iso_agent_event_kind kind;
    uint64_t link;       /* LINK_UP, LINK_DOWN, MESSAGE: number of the CONNECT it belongs to */
    iso_agent_down down; /* LINK_DOWN */
    const iso_msg *msg;  /* MESSAGE */
    const uint8_t *body; /* MESSAGE: second frame */
    size_t body_bytes;
    uint8_t task_id[16];              /* DATA */
    uint64_t train, val, test;        /* DATA: images by split */
    uint64_t data_bytes;              /* DATA: their files' bytes */
    iso_digest digest;                /* DATA: of the list; FETCH_*: of the blob */
    const iso_trainer_event *trainer; /* TRAINER */
    uint8_t id[16];                   /* SEALED: invite id */
    const uint8_t *header;            /* SEALED: 384 bytes; its body is in the store */
    const uint8_t *signature;         /* SEALED: 64 bytes */
    uint64_t number;                  /* INSTALLED */
    uint64_t offset;                  /* FETCH_READY, DISK, ACCEPT */
    iso_err code;                     /* SEALED, FETCH_DONE, INSTALLED */
    const char *text;                 /* failures */
} iso_agent_event;

/* ---- effects ---- */
typedef enum {
    ISO_AX_COMMIT,      /* one transaction of `ops`; durable when it returns */
    ISO_AX_PUT_BLOB,    /* durable blob of `data`, whose digest is `digest` */
    ISO_AX_DELETE_BLOB, /* after the row is gone; missing is fine */
    ISO_AX_CONNECT,     /* fresh socket; answer LINK_UP or LINK_DOWN with `link` */
    ISO_AX_CLOSE,       /* close link `link`; nothing more of it is reported */
    ISO_AX_SEND,        /* message on link `link`; body: `data`, or a piece of blob `digest` */
    ISO_AX_JOB_START,   /* seam core/trainer.h */
    ISO_AX_JOB_CANCEL,
    ISO_AX_JOB_FORGET,
    ISO_AX_SEAL,        /* seal container blob `digest` as `envelope` to merge_pk; sign; store the
                           body as a blob (durable); answer SEALED with id */
    ISO_AX_FETCH_OPEN,  /* partial file of blob `digest` of `bytes`; answer READY or DONE */
    ISO_AX_FETCH_WRITE, /* `data` at `offset` (not synced) */
    ISO_AX_FETCH_CLOSE, /* compare the digest, make it a blob (durable); answer DONE */
    ISO_AX_FETCH_DROP,  /* remove the partial file */
    ISO_AX_INSTALL,     /* make the folder of `release` complete and synced; answer INSTALLED */
    ISO_AX_UNINSTALL,   /* remove the folder of release `number` */
    ISO_AX_SERVE,       /* release `number` is current (0: none): reopen what serves */
    ISO_AX_LOG          /* one line */
} iso_agent_effect_kind;

typedef struct {
    const char *path; /* "adapter/adapter_model.safetensors" */
    iso_digest digest;
    uint64_t bytes;
} iso_agent_file;

typedef struct {
    uint64_t number;
    iso_digest manifest, signature; /* blobs of release.json and release.json.minisig */
    const iso_agent_file *files;
    size_t file_count;
} iso_agent_install;

typedef struct {
    iso_agent_effect_kind kind;
    uint64_t link;      /* CONNECT, CLOSE, SEND */
    const iso_msg *msg; /* SEND */
    const uint8_t *data;
    size_t data_bytes;
    bool is_blob_piece;   /* SEND: the body is `bytes` of blob `digest` from `offset` */
    iso_digest digest;    /* PUT_BLOB, DELETE_BLOB, SEND, SEAL, FETCH_* */
    uint64_t offset;      /* SEND, FETCH_WRITE */
    uint64_t bytes;       /* SEND, FETCH_OPEN */
    uint32_t chunk_bytes; /* FETCH_OPEN: partial files are cut to a multiple of it */
    const iso_op *ops;    /* COMMIT */
    size_t op_count;
    const iso_trainer_job *job;       /* JOB_START */
    uint8_t id[16];                   /* JOB_CANCEL, JOB_FORGET, SEAL */
    const iso_envelope *envelope;     /* SEAL: what the caller of iso_envelope_seal() fills in */
    uint8_t merge_pk[32];             /* SEAL */
    const iso_agent_install *release; /* INSTALL */
    uint64_t number;                  /* UNINSTALL, SERVE */
    iso_level level;                  /* LOG */
    const char *event, *text;         /* LOG: name; pairs, escaped */
} iso_agent_effect;

typedef struct {
    iso_agent_effect *items;
    size_t count, capacity;
    iso_arena arena;
    bool is_out_of_memory; /* set, never cleared: the shell stops with exit 5 */
} iso_agent_effects;

void iso_agent_effects_reset(iso_agent_effects *out); /* a zeroed struct is ready */
void iso_agent_effects_free(iso_agent_effects *out);

/* ---- life ----
 * config is copied; what it points to is borrowed for as long as the agent lives. */
iso_err iso_agent_new(const iso_agent_config *config, const iso_agent_seams *seams, iso_agent **out,
                      iso_error *e) ISO_MUST_CHECK;
void iso_agent_free(iso_agent *a);

/* Every row of every table, tables in the order of the enum, rows in key order; then start. */
iso_err iso_agent_restore_row(iso_agent *a, int table, const uint8_t *key, size_t key_bytes,
                              const uint8_t *value, size_t value_bytes,
                              iso_error *e) ISO_MUST_CHECK;
/* Restores every row of `store` (a convenience over the above). */
iso_err iso_agent_restore(iso_agent *a, const iso_store *store, iso_error *e) ISO_MUST_CHECK;

/* For shells that have the roster already (simulation): taken as verified, borrowed. */
void iso_agent_give_roster(iso_agent *a, const iso_roster *roster, const iso_digest *container);

/* Takes up what was interrupted and connects. Once, before step. */
void iso_agent_start(iso_agent *a, iso_time mono_now, iso_time wall_now, iso_agent_effects *out);

void iso_agent_step(iso_agent *a, const iso_agent_event *ev, iso_time mono_now, iso_time wall_now,
                    iso_agent_effects *out);

/* Monotonic time of the next TICK that is needed; UINT64_MAX for none. */
iso_time iso_agent_next_wake(const iso_agent *a);

/* ---- what a shell may look at ---- */

/* States of the table in 4.5; SENDING, WAITING, FETCHING and TRIAL are shown over ONLINE. */
typedef enum {
    ISO_AS_OFFLINE,
    ISO_AS_CONNECTING,
    ISO_AS_GREETING,
    ISO_AS_ONLINE,
    ISO_AS_SENDING,
    ISO_AS_WAITING,
    ISO_AS_FETCHING,
    ISO_AS_TRIAL,
    ISO_AS_COUNT
} iso_agent_state;
const char *iso_agent_state_name(iso_agent_state s); /* "offline" */

typedef struct {
    iso_agent_state state;
    iso_site_state site;     /* as the coordinator says */
    iso_time since_ms;       /* monotonic: of the link's state */
    iso_time next_try_ms;    /* monotonic: OFFLINE */
    const char *link_reason; /* why it is offline; "" */
    bool is_not_admitted;    /* last refusal was ZAP's 400 */
    int64_t clock_offset_ms; /* coordinator's wall clock minus ours, as seen at Hello */
    bool is_clock_known;
    uint32_t outbox_waiting, outbox_acknowledged, outbox_refused;
    uint64_t outbox_bytes;                               /* of those waiting */
    uint64_t sent_chunks, chunk_total;                   /* of the update that travels; 0: none */
    uint64_t release, release_previous, release_highest; /* 0: none */
    uint64_t release_pending;  /* being fetched, tried or waiting for the operator; 0: none */
    const char *release_phase; /* "", "fetching", "trial", "operator", "installing" */
    uint64_t release_bytes, release_bytes_total;
    bool is_release_expired; /* S92: valid_until passed; it goes on serving, status is red */
    bool is_head_old;        /* S92: newest signed head is older than head_age_ms */
    bool has_conflict;       /* S108: coordinator's history does not hold our head */
    bool is_paused;
    uint64_t roster_version, epoch, last_sequence, audit_seq;
    bool is_training;
    uint8_t job_task[16];
    iso_trainer_job_kind job_kind;
    uint64_t job_round, step, steps, checkpoint_step;
    float loss;
} iso_agent_status;
void iso_agent_get_status(const iso_agent *a, iso_agent_status *out);

/* Figures of one of the configured tasks. */
typedef struct {
    const char *name;
    uint64_t train, val, test, data_bytes; /* images, and their files' bytes */
    float chance;                          /* 1 / classes; 0 unknown */
    iso_score_pair probe[2];   /* [0] val, [1] test; the head alone on the frozen backbone */
    iso_score_pair own[2];     /* the site's own adapter of its last round */
    iso_score_pair serving[2]; /* the release that serves, delivered and refitted */
    uint64_t round;            /* of the last invitation */
    const char *phase;         /* "", "invited", "training", "sealing", "sent", "declined" ... */
    const char *reason;        /* why not, or what the coordinator said of the last update */
    uint64_t classes;
    char (*class_names)[ISO_CLASS_NAME_MAX + 1]; /* NULL: not invited yet */
} iso_agent_task_status;
void iso_agent_get_task(const iso_agent *a, size_t task, iso_agent_task_status *out);

typedef enum {
    ISO_RS_FETCHED = 1, /* K7: verified, before its trial */
    ISO_RS_OPERATOR,    /* passed its trial, waits for the operator */
    ISO_RS_ACCEPTED,    /* K8 */
    ISO_RS_REJECTED,    /* K8 */
    ISO_RS_RETURNED     /* S95: the swap failed, the previous one serves again */
} iso_agent_release_state;
typedef struct {
    uint64_t number;
    iso_digest manifest;
    iso_agent_release_state state;
    iso_verdict verdict;
    float before, delivered, refitted; /* sample-weighted means over the site's tasks */
    uint64_t samples;
    const char *reason;
} iso_agent_release_status;
size_t iso_agent_release_count(const iso_agent *a);
void iso_agent_get_release(const iso_agent *a, size_t i, iso_agent_release_status *out);

/* Every blob that a record refers to (S84: what is not named here may be removed at start). */
typedef void iso_agent_blob_fn(void *arg, const iso_digest *digest);
void iso_agent_live_blobs(const iso_agent *a, iso_agent_blob_fn *fn, void *arg);

/* Invariants I9, I11, I12 of 6.4 and the ceilings of the outbox. ISO_ERR_INTERNAL names the first
 * that does not hold. */
iso_err iso_agent_check(const iso_agent *a, iso_error *e) ISO_MUST_CHECK;

#endif
