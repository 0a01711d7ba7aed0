/* Inside of the simulation: the world and its parts. Nothing outside sim/ includes this.
 *
 * world.c opens, runs and closes it; coordinator.c and site.c are the shells of the two cores, as
 * coordinator/perform.c and client/effects.c are in the daemons; net.c carries packets; operate.c
 * plays operators, churn and faults; malice.c what malicious sites add. */
#ifndef ISO_SIM_INNER_H
#define ISO_SIM_INNER_H

#include "client/agent.h"
#include "coordinator/core.h"
#include "crypto/token.h"
#include "sim/heap.h"
#include "sim/invariant.h"
#include "sim/packet.h"
#include "sim/sealer_hash.h"
#include "sim/worker.h"
#include "sim/world.h"

enum {
    SIM_BATCH = 64, /* steps that one transaction of the coordinator may join (S88) */
    SIM_TRACE = 64, /* lines kept */
    SIM_KEPT = 4,   /* packets that a replaying site remembers */
    SIM_SCORES = 4096,
    SIM_HEARTBEAT_MS = 45000 /* a dead line is noticed (S42) */
};
#define SIM_WALL  1764000000000u /* of virtual time 0, UTC ms */
#define SIM_NEVER UINT64_MAX

typedef enum {
    EV_TICK,      /* host: its core wanted to be woken; tag: boot */
    EV_HANDSHAKE, /* data: line; a site's connection reaches the coordinator */
    EV_LINK_UP,   /* data: line */
    EV_LINK_DOWN, /* data: line */
    EV_GONE,      /* data: line; the coordinator's end notices that it is dead */
    EV_UP,        /* data: packet, to the coordinator */
    EV_DOWN,      /* data: packet, to the site */
    EV_FLUSH,     /* the coordinator's transaction is durable; tag: batch */
    EV_JOB,       /* the worker is done; tag: job number */
    EV_TRAINED,   /* host; tag: job number of the site */
    EV_ANSWER,    /* host; data: answer of disk or sealer */
    EV_START,     /* host: enrol, or start again; tag: boot */
    EV_CRASH,     /* host */
    EV_OPERATE,   /* the operator looks */
    EV_FAULT      /* tag: sim_fault */
} sim_event_kind;

typedef enum {
    FAULT_COORDINATOR,
    FAULT_SITE,
    FAULT_PARTITION,
    FAULT_DISK,
    FAULT_DISK_END,
    FAULT_CLOCK,
    FAULT_JOIN,
    FAULT_REVOKE,
    FAULT_COUNT
} sim_fault;

/* One connection of a site, from CONNECT until both ends have forgotten it. */
typedef struct sim_line {
    struct sim_line *next; /* of the same site */
    iso_peer id;           /* the site's number in the low 20 bits */
    uint32_t site, refs;   /* packets and events under way */
    uint64_t link;         /* the agent's number of it */
    iso_peer_name name;
    bool is_broken;                    /* what is under way is lost */
    bool is_up, is_down;               /* the coordinator's and the site's end are open */
    uint64_t up_free_us, down_free_us; /* TCP keeps the order: nothing overtakes */
} sim_line;

typedef struct {
    iso_agent_event ev;
    uint64_t boot;
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES], signature[ISO_SIGNATURE_BYTES];
    void *next;
} sim_answer;

typedef enum { SITE_NEW, SITE_ENROLLING, SITE_RUNNING, SITE_DEAD } sim_site_state;

typedef struct {
    uint32_t index;
    sim_site_state state;
    bool is_enrolled;
    iso_agent *agent;
    iso_agent_config config;
    iso_agent_task *tasks; /* owned */
    uint32_t *task_numbers, task_count;
    iso_sim_signer signer;
    uint8_t transport_pk[32], id[16];
    char name[24];
    uint64_t boot, tick_us;
    int64_t wall_skew_ms;
    iso_sim_disk disk;
    sim_line *lines, *line; /* all; the one it uses */
    uint64_t partition_until_us;
    /* enrolment */
    iso_token_keys token;
    uint8_t token_id[4];
    bool has_token;
    /* the job at hand */
    uint64_t job_number;
    iso_trainer_job job;
    iso_train_spec spec;
    bool has_job;
    uint32_t die_after; /* effects until it dies; 0: it lives */
    uint64_t samples, steps_done;
    double slowness; /* of training */
    uint64_t bytes_a_second;
    iso_malice malice;
    iso_packet *kept[SIM_KEPT];
    iso_history_client history;
    uint64_t sent_bytes, received_bytes;
} sim_site;

typedef struct {
    iso_coord *core; /* NULL: it is down */
    iso_coord_config config;
    iso_coord_task *tasks; /* owned */
    iso_coord_identity identity;
    iso_sim_signer signer; /* audit key */
    iso_sealer sealer;
    iso_sim_disk disk;
    uint64_t tick_us;
    int64_t wall_skew_ms;
    iso_coord_effects steps[SIM_BATCH];
    size_t step_count;
    iso_op *ops;
    size_t op_count, op_capacity;
    const iso_coord_effect **held;
    size_t held_count, held_capacity;
    iso_coord_event *answers;
    size_t answer_first, answer_count, answer_capacity;
    uint64_t batch;    /* number of the transaction that is being gathered */
    bool is_gathering; /* EV_FLUSH is under way for it */
    bool must_reload;
    iso_index admitted; /* transport pk (first half) -> iso_peer_name in the world's arena */
    bool is_admitted_old;
    uint32_t die_after;
    char *admin_reply; /* owned; last one */
    /* worker */
    iso_sim_worker worker;
    iso_arena job_arena;
    iso_job *job;
    uint64_t job_number;
    iso_job_result result;
} sim_coordinator;

typedef struct {
    iso_digest model;
    uint32_t task;
    bool is_there;
    double error;
} sim_score;

typedef struct {
    iso_digest digest;
    iso_manifest manifest;
} sim_manifest;

struct iso_sim {
    const iso_scenario *s;
    iso_sim_options o;
    iso_sim_heap heap;
    uint64_t now_us, events; /* steps of cores */
    iso_rng net, disk, churn, entropy, work;
    iso_sim_key key;
    iso_roster roster;
    iso_digest roster_digest;
    uint8_t merge_pk[32];
    iso_minisign_public release_key;
    iso_sim_pool pool;
    iso_packet_pool packets;
    sim_coordinator c;
    sim_site **sites; /* owned */
    size_t site_count, site_capacity;
    iso_agent_effects out; /* of the site's step at hand */
    iso_synth *synth;
    iso_history history;
    sim_score *scores;
    sim_manifest *manifests; /* owned */
    size_t manifest_count;
    iso_arena arena; /* texts that live as long as the world */
    sim_answer *free_answers;
    iso_digest mutant_blob; /* what mutant.c remembers */
    uint8_t mutant_id[16];
    uint64_t mutant_count;
    uint64_t line_count;
    bool are_faults_over, is_over, is_closing; /* closing: rounds are done, all comes to rest */
    uint64_t rest_since_us;
    uint64_t digest[4];
    iso_err err; /* of what stopped it */
    iso_error error;
    iso_sim_result result;
    char (*trace)[256];
    uint64_t trace_lines;
    uint64_t next_full_check;
};

/* ---- world.c ---- */
bool sim_push(iso_sim *w, uint64_t at_us, sim_event_kind kind, uint32_t host, uint64_t tag,
              void *data);
void sim_fail(iso_sim *w, iso_err err, const iso_error *e); /* the first one counts */
bool sim_is_traced(const iso_sim *w);
void sim_trace(iso_sim *w, const char *fmt, ...) ISO_PRINTF(2, 3);
void sim_digest(iso_sim *w, const void *data, size_t bytes);
uint64_t sim_wall(const iso_sim *w, int64_t skew_ms);
void sim_entropy(void *ctx, void *out, size_t bytes);
bool sim_chance(iso_rng *g, double p);
/* Exponential, in microseconds, with that mean. */
uint64_t sim_after(iso_rng *g, uint64_t mean_ms);
uint64_t sim_random(iso_rng *g, uint64_t below);
const char *sim_host_name(const iso_sim *w, uint32_t host); /* 0: the coordinator */

/* ---- net.c ---- */
void sim_connect(iso_sim *w, sim_site *s, uint64_t link);
void sim_close(iso_sim *w, sim_site *s, sim_line *line);
void sim_handshake(iso_sim *w, sim_line *line);
void sim_send_up(iso_sim *w, sim_site *s, const iso_msg *m, iso_sim_blob *blob, uint64_t offset,
                 size_t bytes);
void sim_put_up(iso_sim *w, sim_line *line, iso_packet *p); /* takes the packet */
void sim_send_down(iso_sim *w, iso_peer peer, const iso_msg *m, iso_sim_blob *blob, uint64_t offset,
                   size_t bytes);
void sim_cut(iso_sim *w, iso_peer peer);
void sim_break_all(iso_sim *w, sim_site *s, bool by_site); /* a host died */
void sim_partition(iso_sim *w, sim_site *s, uint64_t until_us);
void sim_line_drop(iso_sim *w, sim_line *line); /* one reference */
sim_line *sim_line_of(const iso_sim *w, iso_peer peer);

/* ---- coordinator.c ---- */
void sim_coordinator_start(iso_sim *w);
void sim_coordinator_crash(iso_sim *w);
void sim_coordinator_step(iso_sim *w, const iso_coord_event *ev);
void sim_coordinator_flush(iso_sim *w, uint64_t batch);
void sim_coordinator_job(iso_sim *w, uint64_t number);
void sim_coordinator_tick(iso_sim *w, uint64_t at_us);
bool sim_coordinator_admits(iso_sim *w, const uint8_t pk[32], iso_peer_name *name);
void sim_coordinator_check(iso_sim *w, bool is_full);
void sim_coordinator_free(iso_sim *w);
/* One command; the reply (until the next) or NULL when it is down. */
const char *sim_admin(iso_sim *w, const char *json);

/* ---- site.c ---- */
sim_site *sim_site_new(iso_sim *w, bool is_joining);
void sim_site_start(iso_sim *w, sim_site *s, uint64_t boot);
void sim_site_crash(iso_sim *w, sim_site *s);
iso_time sim_site_mono(const iso_sim *w, const sim_site *s); /* its own clock */
void sim_site_after(iso_sim *w, sim_site *s); /* performs a step's effects, sets the next tick */
void sim_site_step(iso_sim *w, sim_site *s, const iso_agent_event *ev);
void sim_site_tick(iso_sim *w, sim_site *s, const iso_sim_event *ev);
void sim_site_link(iso_sim *w, sim_site *s, sim_line *line, bool is_up, iso_agent_down why);
void sim_site_message(iso_sim *w, sim_site *s, iso_packet *p);
void sim_site_trained(iso_sim *w, sim_site *s, uint64_t number);
void sim_site_answer(iso_sim *w, sim_site *s, sim_answer *a);
void sim_site_check(iso_sim *w, sim_site *s);
iso_err sim_manifest_parse(iso_sim *w, const void *text, size_t size, iso_manifest *out,
                           iso_error *e) ISO_MUST_CHECK;
/* By what is durable, whether or not the operator heard of it. */
bool sim_site_is_revoked(const iso_sim *w, const sim_site *s);
bool sim_site_is_at_rest(const iso_sim *w, const sim_site *s, const char **why);
void sim_site_free(iso_sim *w, sim_site *s);

/* ---- train.c ---- */
/* What a job of a site comes to; the container, if any, is put on its disk. */
void sim_train(iso_sim *w, sim_site *s, iso_trainer_event *out);
uint64_t sim_train_us(iso_sim *w, const sim_site *s, const iso_trainer_job *job);

/* ---- malice.c ---- */
/* Before a message of a malicious site goes out: may change its body, may add others. */
iso_sim_blob *sim_malice_body(iso_sim *w, sim_site *s, const iso_msg *m, iso_sim_blob *blob,
                              uint64_t *offset, size_t bytes);
void sim_malice_sent(iso_sim *w, sim_site *s, const iso_msg *m, iso_packet *p);
void sim_malice_sealed(iso_sim *w, const sim_site *s, iso_envelope *h,
                       uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                       uint8_t signature[ISO_SIGNATURE_BYTES]);

/* ---- mutant.c: lies for the tests of the checks; without a mutant nothing is changed ---- */
size_t sim_mutate_ops(iso_sim *w, iso_op *ops, size_t count); /* the count that is left */
void sim_mutate_job(iso_sim *w, iso_job *job);
const iso_msg *sim_mutate_send(iso_sim *w, const iso_msg *m, iso_msg *room);
void sim_mutate_disk(iso_sim *w);
void sim_mutate_site(iso_sim *w, sim_site *s, iso_op *ops, size_t count);
iso_sim_blob *sim_mutate_body(iso_sim *w, const sim_site *s, iso_sim_blob *blob);

/* ---- operate.c ---- */
void sim_operate_start(iso_sim *w);
void sim_operate(iso_sim *w);
void sim_fault_now(iso_sim *w, sim_fault fault);

#endif
