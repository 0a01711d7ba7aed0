/* The simulated federation (DESIGN 7): the shipped coordinator and client cores, driven with
 * virtual time by a seeded heap of events, on a faulty network and faulty disks, with the
 * invariants of DESIGN 4 checked after every event. Same seed, same history, same digest. */
#ifndef ISO_SIM_WORLD_H
#define ISO_SIM_WORLD_H

#include "core/wire.h"
#include "sim/scenario.h"

typedef struct iso_sim iso_sim;

typedef enum { /* a core that lies, for the tests of the checks: which effect is falsified */
               ISO_MUTANT_NONE,
               ISO_MUTANT_EARLY_RECEIPT,  /* says an update is durable when it is not */
               ISO_MUTANT_COUNTS_TWICE,   /* puts a merged update into the next merge too */
               ISO_MUTANT_NUMBER_AGAIN,   /* gives a release the number of the one before */
               ISO_MUTANT_UNSIGNED,       /* offers a release whose manifest nobody signed */
               ISO_MUTANT_REVOKED_COUNTS, /* goes on recording what a revoked site says */
               ISO_MUTANT_CHAIN,          /* changes an audit entry */
               ISO_MUTANT_SEQUENCE,       /* a site that uses a sequence twice */
               ISO_MUTANT_RAW,            /* a site that sends bytes it did not seal */
               ISO_MUTANT_LOST_ROW,       /* a disk that forgets a committed update at a crash */
               ISO_MUTANT_COUNT
} iso_mutant;

typedef struct {
    uint64_t events;     /* stop after so many; 0: at the end of the scenario */
    uint64_t trace_from; /* keep a line of every event from here on; 0: none */
    iso_mutant mutant;
    const volatile int *stop; /* may be NULL; non-zero ends it with ISO_ERR_INTERRUPTED */
    void (*progress)(void *ctx, uint64_t rounds, uint64_t events); /* may be NULL */
    void *progress_ctx;
} iso_sim_options;

typedef struct {
    uint64_t events, heap_events; /* steps of cores; everything that happened */
    uint64_t virtual_ms;
    uint64_t sites, sites_revoked, sites_malicious;
    uint64_t rounds, rounds_released, rounds_failed, releases;
    uint64_t receipts, used, refused, pending;
    uint64_t refused_by[ISO_CODE_END]; /* updates: at the door and by the worker */
    uint64_t messages, sent_bytes, received_bytes;
    uint64_t crashes_coordinator, crashes_site, partitions, cuts, duplicates, retransmissions;
    uint64_t accepted, rejected;          /* verdicts of sites on releases */
    double accuracy_probe, accuracy_last; /* planted: mean over tasks, frozen and last release */
    uint64_t cores_bytes, disk_bytes;     /* held at the end: rows and blobs of all disks */
    uint64_t full_checks;
    uint64_t broken_event; /* event at which an invariant broke; 0: none did */
    uint8_t content[32];   /* of the adapters of all releases, in order of their numbers */
    uint8_t digest[32];    /* of everything that became durable, in its order */
} iso_sim_result;

/* `s` is borrowed for as long as the world lives. */
iso_err iso_sim_open(iso_sim **out, const iso_scenario *s, const iso_sim_options *o,
                     iso_error *e) ISO_MUST_CHECK;
/* ISO_OK; ISO_ERR_INTERNAL with the invariant that broke; ISO_ERR_NO when it did not come to rest;
 * ISO_ERR_INTERRUPTED. The result is filled in whatever happened. */
iso_err iso_sim_run(iso_sim *w, iso_sim_result *result, iso_error *e) ISO_MUST_CHECK;
/* The last lines of the trace, oldest first. */
void iso_sim_each_trace(const iso_sim *w, void (*line)(void *ctx, const char *text), void *ctx);
void iso_sim_close(iso_sim *w); /* NULL is fine */

#endif
