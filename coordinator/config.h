/* What a coordinator is told: federation, tasks, policy, ceilings (DESIGN 3;
 * specs/security.md 9.3).
 *
 * Daemons read it from coordinator.yaml (iso_coord_config_read), the simulation and the tests fill
 * it directly. Text and lists are borrowed by the core for as long as it lives. */
#ifndef ISO_COORDINATOR_CONFIG_H
#define ISO_COORDINATOR_CONFIG_H

#include "core/digest.h"
#include "core/mem.h"
#include "core/wire.h"

enum {
    ISO_COORD_TASKS_MAX = 64, /* of one coordinator, first version */
    ISO_COORD_CANDIDATES_MAX = 16,
    ISO_COORD_MERGE_KEYS_MAX = 4
};

typedef struct {
    const char *name; /* 1-64 of letters, digits, ._- */
    const char *const *classes;
    size_t class_count;
    const char *const *sites; /* names of the sites that own it; a token may allow further ones */
    size_t site_count;
    const char *const *targets; /* modules to adapt; none: all six linears of a block */
    size_t target_count;
    uint32_t quorum; /* fewest updates a round of it needs */
    uint32_t rank, rank_cap;
    double alpha;
    bool rslora;
    uint32_t steps;
    double learning_rate;
    uint32_t batch;
    double weight_decay;
    uint32_t warmup;
    uint32_t first_block;  /* blocks below stay frozen, and are computed once at the sites */
    uint32_t shift;        /* training images move by up to so many pixels */
    bool mirror;           /* half of them are mirrored */
    const char *aggregate; /* rule within the task (merge/robust); from four updates on */
    int head_mode;         /* 0 fixed, 1 joint */
    uint64_t seed;
    uint32_t min_samples;
    double norm_cap;
    uint64_t update_bytes;
} iso_coord_task;

typedef struct {
    const char *method; /* of merge/method's registry: iso_cts, iso_c, average, task_arithmetic */
    double alpha;
    const char *convention; /* "rank" or "dense" */
    double common_fraction;
} iso_coord_candidate;

typedef enum { ISO_TRIGGER_OPERATOR, ISO_TRIGGER_AUTO } iso_coord_trigger;
typedef enum { ISO_CHOOSE_FIRST, ISO_CHOOSE_BEST } iso_coord_choose;
typedef enum { ISO_GATE_ACCURACY, ISO_GATE_ACCURACY_REFIT } iso_coord_gate_metric;

typedef struct {
    /* federation */
    const char *name;
    const char *listen;    /* host:port, port 0 for any */
    const char *metrics;   /* loopback address:port of the figures (S62); NULL: off */
    const char *advertise; /* host:port that enrolment lines name; NULL: as bound */
    const char *backbone;  /* folder */
    const char *worker;    /* isofed-merge; NULL: beside the daemon's binary */
    uint64_t release_valid_ms, head_valid_ms;

    /* rounds */
    int trigger; /* iso_coord_trigger */
    uint64_t deadline_ms, evaluate_timeout_ms;
    uint64_t interval_ms; /* trigger auto: least time between the end of a round and the next */
    uint32_t max_rounds;  /* trigger auto: adapter rounds to run, 0: without end */
    int choose;           /* iso_coord_choose */
    int gate_metric;
    double gate_margin;
    bool evaluate_test; /* also asks for accuracy@test, accuracy_refit@test */
    iso_coord_candidate candidates[ISO_COORD_CANDIDATES_MAX];
    size_t candidate_count;
    iso_coord_task *tasks;
    size_t task_count;

    /* ceilings (9.3); configurable downwards, those marked + there also upwards */
    uint64_t update_bytes; /* of any task */
    uint64_t chunk_pool_bytes;
    uint32_t credit; /* chunks a transfer */
    uint32_t connections;
    uint64_t disk_floor_bytes, disk_reserve_bytes, memory_bytes;
    uint32_t requests_per_s, request_burst;
    uint32_t handshakes_per_s, handshake_burst;
    uint64_t upload_age_ms;
    uint32_t keep_rounds; /* rounds whose records and sealed bodies are kept (C13) */
    bool approve;         /* approval mode: new sites wait as `pending` */
    bool allow_network_fs;
} iso_coord_config;

/* Every ceiling and policy at its default; no tasks, no names. */
void iso_coord_config_defaults(iso_coord_config *config);
iso_coord_task iso_coord_task_defaults(void);

/* Ranges, duplicate names, names that no method has, a quorum larger than the task's sites. */
iso_err iso_coord_config_check(const iso_coord_config *config, iso_error *e) ISO_MUST_CHECK;

/* Reads a coordinator.yaml; unknown keys and bad values are errors with line, nearest key, range.
 * Text lives in `arena`. */
iso_err iso_coord_config_read(const char *path, iso_coord_config *config, iso_arena *arena,
                              iso_error *e) ISO_MUST_CHECK;

#endif
