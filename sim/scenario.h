/* Scenarios: what a simulation plays, read from YAML (docs/FORMATS.md "Scenario"; DESIGN 7) or
 * drawn at random from a seed. Rates are mean times between faults; 0 is never. */
#ifndef ISO_SIM_SCENARIO_H
#define ISO_SIM_SCENARIO_H

#include "core/yaml.h"
#include "sim/trainer_synthetic.h"

/* Conduct of malicious sites; a site has one. */
typedef enum {
    ISO_MALICE_NONE,
    ISO_MALICE_NAN,        /* adapter with NaN */
    ISO_MALICE_HUGE,       /* norm above the cap */
    ISO_MALICE_ZERO,       /* zero adapter */
    ISO_MALICE_SHAPE,      /* layers missing */
    ISO_MALICE_SIGN,       /* adapter turned around: well-formed and harmful */
    ISO_MALICE_DIGEST,     /* body that is not what the header says */
    ISO_MALICE_OVERSIZE,   /* header above the task's ceiling */
    ISO_MALICE_REPLAY,     /* says its old messages again */
    ISO_MALICE_EQUIVOCATE, /* a second update of the same round */
    ISO_MALICE_FORGE,      /* another site's name, another site's signature */
    ISO_MALICE_LIAR,       /* scores everything 0, claims 10^9 images */
    ISO_MALICE_GARBAGE,    /* messages that do not decode, or out of turn */
    ISO_MALICE_COUNT
} iso_malice;
extern const char *const iso_malice_names[ISO_MALICE_COUNT + 1]; /* ends with NULL */

typedef struct {
    const char *name;
    uint64_t seed;
    uint32_t sites, tasks, rounds;
    double second_task; /* share of sites that own a second task */
    uint32_t quorum;
    uint64_t deadline_ms, evaluate_timeout_ms, interval_ms, until_ms;
    const char *methods[8];
    size_t method_count;
    bool choose_first, is_auto, is_encoded; /* trigger: auto; wire: protobuf */
    uint32_t keep_rounds;
    uint64_t receipt_keep_ms;

    struct {
        uint32_t width, rank, layers, steps, samples;
        double noise, overlap;
        uint64_t step_us, payload_bytes;
    } trainer;

    struct {
        uint64_t latency_ms, jitter_ms;
        uint64_t bytes_a_second; /* of a site's line; 0: any */
        double loss;             /* share of packets that TCP has to send again */
        double cut;              /* share of packets at which the connection breaks */
        double duplicate;        /* share of messages that arrive twice */
        double slow;             /* share of sites whose line is slow_factor times slower */
        double slow_factor;
        uint64_t partition_every_ms, partition_for_ms;
        double partition_share; /* of the sites, each time */
    } net;

    struct {
        uint64_t commit_ms; /* one transaction of the coordinator; steps join meanwhile */
        uint64_t full_every_ms, full_for_ms; /* the coordinator's disk */
        bool is_torn;
    } disk;

    struct {
        uint64_t coordinator_every_ms, site_every_ms; /* all sites together */
        uint64_t restart_ms;
        double worker; /* share of jobs whose every try fails */
    } crash;

    struct {
        uint64_t join_every_ms, revoke_every_ms;
        double withdraw; /* share of revocations that withdraw what is pending */
    } churn;

    struct {
        double share, factor;
    } stragglers;

    struct {
        double share;
        uint32_t kinds; /* bits of iso_malice */
    } malicious;

    struct {
        uint64_t skew_ms, jump_every_ms, jump_ms;
    } clock;

    struct {
        double rollback, pause, accept; /* share of releases, rounds, held rounds */
    } operate;

    uint64_t faults_until_ms;  /* nothing fails any more after it; 0: until the rounds are over */
    uint64_t settle_ms;        /* then everything must have come to rest within */
    uint64_t check_every;      /* events between full checks of the coordinator */
    uint64_t check_site_every; /* steps of a site between full checks of it */
} iso_scenario;

void iso_scenario_defaults(iso_scenario *s);
/* Text lives in `arena`. Unknown keys name the nearest one, bad values their range. */
iso_err iso_scenario_read(const char *path, iso_scenario *s, iso_arena *arena,
                          iso_error *e) ISO_MUST_CHECK;
iso_err iso_scenario_parse(const void *text, size_t size, const char *what, iso_scenario *s,
                           iso_arena *arena, iso_error *e) ISO_MUST_CHECK;
/* A small one with a mix of every fault. */
void iso_scenario_random(uint64_t seed, iso_scenario *s);

#endif
