/* The invariants of DESIGN 4 and specs/security.md 6.4 (I1 - I12), checked from outside the cores.
 *
 * An observer stands between cores and world: it sees what becomes durable, what is sent, which
 * jobs start and what is served, keeps a history of its own from the rows' documented bytes
 * (docs/FORMATS.md "State"), and refuses the first thing that contradicts it. Every check looks at
 * the thing at hand and at one entry of the history, so it costs the same whatever the size.
 * I6 and the full walks are the cores' own (iso_coord_check, iso_agent_check): world.c calls them
 * at intervals. */
#ifndef ISO_SIM_INVARIANT_H
#define ISO_SIM_INVARIANT_H

#include "coordinator/core.h"
#include "coordinator/index.h"
#include "sim/disk.h"

/* Values of the rows of ISO_CT_ROUND. */
enum {
    ISO_HISTORY_HEAD_ROUND = 1,
    ISO_HISTORY_ADAPTER_ROUND = 2,
    ISO_HISTORY_HELD = 5,
    ISO_HISTORY_RELEASED = 6,
    ISO_HISTORY_ABORTED = 8 /* or failed */
};

/* iso_sim_blob.note of contents that a site sealed: the only ones that may leave it (I4). */
enum { ISO_NOTE_SEALED = 1 };

typedef struct {
    uint8_t id[16], site[16], task[16];
    uint64_t round, sequence;
    iso_digest header;
    uint8_t receipt[64]; /* signature of the receipt first sent */
    uint8_t job[16];     /* merge job whose input it was */
    uint8_t state;       /* iso_update_state */
    bool has_receipt, has_job;
} iso_history_update;

typedef struct {
    uint8_t id[16];
    uint8_t state; /* iso_site_state */
    uint64_t sequence;
} iso_history_site;

typedef struct {
    uint64_t number;
    iso_digest manifest;
} iso_history_release;

typedef struct {
    const iso_sealer *sealer; /* borrowed */
    iso_index updates;        /* update id -> iso_history_update, owned */
    iso_index once;           /* hash of (site, task, round) -> the same, borrowed */
    iso_index sites;          /* site id -> iso_history_site, owned */
    iso_history_release *signed_releases, *releases; /* by rising number, owned */
    size_t signed_count, release_count;
    uint64_t audit_seq;
    iso_digest audit_head;
    uint64_t receipts, used, refused, late, retired; /* updates ever, and where they are */
    uint64_t round; /* newest, with its kind and state as their rows hold them */
    int round_kind, round_state;
    uint64_t rounds_ended;             /* for adapters */
    uint64_t verdicts[ISO_VERDICTS];   /* of sites on releases, as recorded */
    uint64_t refused_by[ISO_CODE_END]; /* of updates, after their receipt */
} iso_history;

/* `start` is h_0 of the audit chain. */
void iso_history_open(iso_history *h, const iso_sealer *sealer, const iso_digest *start);
void iso_history_close(iso_history *h);

/* ISO_ERR_INTERNAL: "invariant I2: ...". */
iso_err iso_history_commit(iso_history *h, const iso_op *ops, size_t count,
                           iso_error *e) ISO_MUST_CHECK;
iso_err iso_history_send(iso_history *h, const iso_msg *m, iso_error *e) ISO_MUST_CHECK;
iso_err iso_history_job(iso_history *h, const iso_job *job, iso_error *e) ISO_MUST_CHECK;
iso_err iso_history_signed(iso_history *h, uint64_t number, const iso_digest *manifest,
                           iso_error *e) ISO_MUST_CHECK;
/* A core was made anew from `disk`: its counters are those of the durable history (I8). */
iso_err iso_history_restored(const iso_history *h, const iso_coord *c, iso_error *e) ISO_MUST_CHECK;

/* ---- sites: what each remembers between checks ---- */
typedef struct {
    uint64_t epoch, highest, sequence;
} iso_history_client;

iso_err iso_history_client_commit(const iso_history *h, iso_history_client *x,
                                  const iso_sim_disk *disk, const iso_op *ops, size_t count,
                                  iso_error *e) ISO_MUST_CHECK;
iso_err iso_history_client_send(const iso_history *h, const iso_msg *m, const iso_sim_blob *body,
                                iso_error *e) ISO_MUST_CHECK;
/* Release `number` is about to serve, or its folder to be made, from what is on `disk`. */
iso_err iso_history_client_serve(const iso_history *h, const iso_sim_disk *disk, uint64_t number,
                                 iso_error *e) ISO_MUST_CHECK;

#endif
