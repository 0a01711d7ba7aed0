/* coordinator.yaml: defaults, schema, checks (DESIGN 3; specs/security.md 9.3). The tables here are
 * also what `isofed init coordinator` documents (coordinator/init.c). */
#include "coordinator/config.h"

#include "core/yaml.h"
#include "merge/robust/robust.h"

#include <stdio.h>
#include <string.h>

void iso_coord_config_defaults(iso_coord_config *config)
{
    *config = (iso_coord_config){.name = "isofed",
                                 .listen = "127.0.0.1:0",
                                 .release_valid_ms = 30ull * 86400000u,
                                 .head_valid_ms = 86400000u,
                                 .deadline_ms = 1800000u,
                                 .evaluate_timeout_ms = 600000u,
                                 .interval_ms = 10000u,
                                 .choose = ISO_CHOOSE_BEST,
                                 .gate_metric = ISO_GATE_ACCURACY_REFIT,
                                 .gate_margin = 0.01,
                                 .update_bytes = ISO_UPDATE_MAX_BYTES,
                                 .chunk_pool_bytes = ISO_POOL_MAX_BYTES,
                                 .credit = ISO_CREDIT_CHUNKS,
                                 .connections = 12000,
                                 .disk_floor_bytes = 1ull << 30,
                                 .disk_reserve_bytes = 64ull << 20,
                                 .memory_bytes = 2ull << 30,
                                 .requests_per_s = ISO_REQUESTS_A_SECOND,
                                 .request_burst = ISO_REQUESTS_BURST,
                                 .handshakes_per_s = 200,
                                 .handshake_burst = 1000,
                                 .upload_age_ms = 86400000u,
                                 .keep_rounds = 100};
    config->candidates[0] = (iso_coord_candidate){
        .method = "iso_cts", .alpha = 1.0, .convention = "rank", .common_fraction = 0.8};
    config->candidate_count = 1;
}

iso_coord_task iso_coord_task_defaults(void)
{
    return (iso_coord_task){.quorum = 1,
                            .rank = 8,
                            .rank_cap = 16,
                            .alpha = 16.0,
                            .steps = 300,
                            .learning_rate = 0.001,
                            .batch = 16,
                            .weight_decay = 0.01,
                            .warmup = 20,
                            .seed = 1,
                            .min_samples = 10,
                            .norm_cap = 100.0,
                            .aggregate = "mean",
                            .update_bytes = 64ull << 20};
}

/* ---- the file ---- */

typedef struct {
    const char *federation, *listen, *advertise, *backbone, *worker, *metrics;
    uint64_t release_valid_ms, head_valid_ms;
    const iso_yaml *rounds, *candidates, *gate, *tasks, *limits;
    int choose;
    bool evaluate_test, approve, allow_network_fs;
} top_level;

static const char *const choose_words[] = {"first", "best", NULL};
static const char *const trigger_words[] = {"operator", "auto", NULL};
static const char *const metric_words[] = {"accuracy", "accuracy_refit", NULL};
static const char *const head_words[] = {"fixed", "joint", NULL};
static const char *const convention_words[] = {"rank", "dense", NULL};

#define DAY             86400000.0
#define at(type, field) offsetof(type, field)

static const iso_yaml_row top_rows[] = {
    {"federation", ISO_YAML_STRING, at(top_level, federation), true, 0, 0, NULL, "name"},
    {"listen", ISO_YAML_STRING, at(top_level, listen), false, 0, 0, NULL, "address:port"},
    {"advertise", ISO_YAML_STRING, at(top_level, advertise), false, 0, 0, NULL, "host:port"},
    {"metrics", ISO_YAML_STRING, at(top_level, metrics), false, 0, 0, NULL,
     "loopback address:port of the figures"},
    {"backbone", ISO_YAML_STRING, at(top_level, backbone), true, 0, 0, NULL, "folder"},
    {"worker", ISO_YAML_STRING, at(top_level, worker), false, 0, 0, NULL, "program"},
    {"release_valid", ISO_YAML_DURATION_MS, at(top_level, release_valid_ms), false, 60000,
     3650 * DAY, NULL, "how long a release may be installed"},
    {"head_valid", ISO_YAML_DURATION_MS, at(top_level, head_valid_ms), false, 60000, 365 * DAY,
     NULL, "age at which sites warn about the newest signed head"},
    {"rounds", ISO_YAML_NODE, at(top_level, rounds), false, 0, 0, NULL, "when rounds run"},
    {"candidates", ISO_YAML_NODE, at(top_level, candidates), false, 0, 0, NULL, "merge methods"},
    {"choose", ISO_YAML_ENUM, at(top_level, choose), false, 0, 0, choose_words, "which passes"},
    {"gate", ISO_YAML_NODE, at(top_level, gate), false, 0, 0, NULL, "what a release must hold"},
    {"evaluate_test", ISO_YAML_BOOL, at(top_level, evaluate_test), false, 0, 0, NULL,
     "also score on test images"},
    {"approve", ISO_YAML_BOOL, at(top_level, approve), false, 0, 0, NULL, "new sites wait"},
    {"allow_network_fs", ISO_YAML_BOOL, at(top_level, allow_network_fs), false, 0, 0, NULL,
     "state on NFS or the like"},
    {"tasks", ISO_YAML_NODE, at(top_level, tasks), false, 0, 0, NULL, "what is learnt"},
    {"limits", ISO_YAML_NODE, at(top_level, limits), false, 0, 0, NULL, "ceilings"},
    {0}};

typedef struct {
    int trigger;
    uint64_t deadline_ms, evaluate_timeout_ms, interval_ms;
    int64_t max_rounds, keep;
} rounds_node;

static const iso_yaml_row rounds_rows[] = {
    {"trigger", ISO_YAML_ENUM, at(rounds_node, trigger), false, 0, 0, trigger_words, "who opens"},
    {"deadline", ISO_YAML_DURATION_MS, at(rounds_node, deadline_ms), false, 1000, 365 * DAY, NULL,
     "longest collection"},
    {"evaluate_timeout", ISO_YAML_DURATION_MS, at(rounds_node, evaluate_timeout_ms), false, 1000,
     30 * DAY, NULL, "longest wait for scores"},
    {"interval", ISO_YAML_DURATION_MS, at(rounds_node, interval_ms), false, 0, 365 * DAY, NULL,
     "pause between automatic rounds"},
    {"max_rounds", ISO_YAML_INT, at(rounds_node, max_rounds), false, 0, 1e9, NULL,
     "automatic rounds, 0 without end"},
    {"keep", ISO_YAML_INT, at(rounds_node, keep), false, 1, 100000, NULL,
     "rounds whose updates are kept"},
    {0}};

typedef struct {
    int metric;
    double margin;
} gate_node;

static const iso_yaml_row gate_rows[] = {
    {"metric", ISO_YAML_ENUM, at(gate_node, metric), false, 0, 0, metric_words, "compared"},
    {"margin", ISO_YAML_DOUBLE, at(gate_node, margin), false, 0, 1, NULL, "allowed fall"},
    {0}};

typedef struct {
    const char *method;
    double alpha, common_fraction;
    int convention;
} candidate_node;

static const iso_yaml_row candidate_rows[] = {
    {"method", ISO_YAML_STRING, at(candidate_node, method), true, 0, 0, NULL, "merge method"},
    {"alpha", ISO_YAML_DOUBLE, at(candidate_node, alpha), false, 0, 1000, NULL, "scale"},
    {"convention", ISO_YAML_ENUM, at(candidate_node, convention), false, 0, 0, convention_words,
     "spectrum"},
    {"common_fraction", ISO_YAML_DOUBLE, at(candidate_node, common_fraction), false, 0, 1, NULL,
     "share of the common subspace"},
    {0}};

typedef struct {
    const char *name, *aggregate;
    iso_yaml_strings classes, sites, targets;
    int64_t quorum, rank, rank_cap, steps, batch, warmup, seed, min_samples, first_block, shift;
    double alpha, learning_rate, weight_decay, norm_cap;
    bool rslora, mirror;
    int head;
    uint64_t update_bytes;
} task_node;

static const iso_yaml_row task_rows[] = {
    {"name", ISO_YAML_STRING, at(task_node, name), true, 0, 0, NULL, "letters, digits, ._-"},
    {"classes", ISO_YAML_STRINGS, at(task_node, classes), true, 0, 0, NULL, "in order"},
    {"sites", ISO_YAML_STRINGS, at(task_node, sites), false, 0, 0, NULL, "who owns it"},
    {"targets", ISO_YAML_STRINGS, at(task_node, targets), false, 0, 0, NULL, "modules adapted"},
    {"quorum", ISO_YAML_INT, at(task_node, quorum), false, 1, 100000, NULL, "fewest updates"},
    {"rank", ISO_YAML_INT, at(task_node, rank), false, 1, ISO_RANK_MAX, NULL, "of each site"},
    {"rank_cap", ISO_YAML_INT, at(task_node, rank_cap), false, 1, ISO_RANK_MAX, NULL,
     "of the task's adapter"},
    {"alpha", ISO_YAML_DOUBLE, at(task_node, alpha), false, 0.001, 10000, NULL, "LoRA alpha"},
    {"rslora", ISO_YAML_BOOL, at(task_node, rslora), false, 0, 0, NULL, "alpha / sqrt(rank)"},
    {"steps", ISO_YAML_INT, at(task_node, steps), false, 1, 1e7, NULL, "of training"},
    {"learning_rate", ISO_YAML_DOUBLE, at(task_node, learning_rate), false, 1e-9, 1, NULL, ""},
    {"batch", ISO_YAML_INT, at(task_node, batch), false, 1, 4096, NULL, "images a step"},
    {"weight_decay", ISO_YAML_DOUBLE, at(task_node, weight_decay), false, 0, 1, NULL, ""},
    {"warmup", ISO_YAML_INT, at(task_node, warmup), false, 0, 1e7, NULL, "steps"},
    {"first_block", ISO_YAML_INT, at(task_node, first_block), false, 0, 1000, NULL,
     "blocks below stay frozen"},
    {"shift", ISO_YAML_INT, at(task_node, shift), false, 0, 64, NULL, "pixels, training images"},
    {"mirror", ISO_YAML_BOOL, at(task_node, mirror), false, 0, 0, NULL, "half of the images"},
    {"aggregate", ISO_YAML_STRING, at(task_node, aggregate), false, 0, 0, NULL, "rule within it"},
    {"head", ISO_YAML_ENUM, at(task_node, head), false, 0, 0, head_words, "fixed or joint"},
    {"seed", ISO_YAML_INT, at(task_node, seed), false, 0, 9e15, NULL, ""},
    {"min_samples", ISO_YAML_INT, at(task_node, min_samples), false, 0, 1e9, NULL, ""},
    {"norm_cap", ISO_YAML_DOUBLE, at(task_node, norm_cap), false, 0, 1e9, NULL, "Frobenius"},
    {"update_bytes", ISO_YAML_BYTES, at(task_node, update_bytes), false, 1024, 17179869184.0, NULL,
     "largest update"},
    {0}};

typedef struct {
    uint64_t update_bytes, chunk_pool, disk_floor, disk_reserve, upload_age_ms, memory;
    int64_t connections, credit, requests_per_s, handshakes_per_s;
} limits_node;

static const iso_yaml_row limits_rows[] = {
    {"update_bytes", ISO_YAML_BYTES, at(limits_node, update_bytes), false, 1024, 17179869184.0,
     NULL, "sealed update"},
    {"chunk_pool", ISO_YAML_BYTES, at(limits_node, chunk_pool), false, 262144, 68719476736.0, NULL,
     "granted at once"},
    {"credit", ISO_YAML_INT, at(limits_node, credit), false, 1, 8, NULL, "chunks a transfer"},
    {"connections", ISO_YAML_INT, at(limits_node, connections), false, 2, 60000, NULL, ""},
    {"disk_floor", ISO_YAML_BYTES, at(limits_node, disk_floor), false, 0, 1e15, NULL,
     "free bytes below which no update is taken"},
    {"disk_reserve", ISO_YAML_BYTES, at(limits_node, disk_reserve), false, 0, 1e12, NULL,
     "kept for a full disk"},
    {"memory", ISO_YAML_BYTES, at(limits_node, memory), false, 1048576, 1e15, NULL,
     "of this process: connections are cut near it"},
    {"requests_per_s", ISO_YAML_INT, at(limits_node, requests_per_s), false, 1, 50, NULL, ""},
    {"handshakes_per_s", ISO_YAML_INT, at(limits_node, handshakes_per_s), false, 1, 100000, NULL,
     ""},
    {"upload_age", ISO_YAML_DURATION_MS, at(limits_node, upload_age_ms), false, 60000, 7 * DAY,
     NULL, "of a partial upload"},
    {0}};
#undef at

static iso_err read_task(const iso_yaml *map, const char *what, iso_coord_task *out,
                         iso_arena *arena, iso_error *e)
{
    iso_coord_task d = iso_coord_task_defaults();
    task_node n = {.quorum = d.quorum,
                   .rank = d.rank,
                   .rank_cap = d.rank_cap,
                   .steps = d.steps,
                   .batch = d.batch,
                   .warmup = d.warmup,
                   .seed = (int64_t)d.seed,
                   .min_samples = d.min_samples,
                   .alpha = d.alpha,
                   .learning_rate = d.learning_rate,
                   .weight_decay = d.weight_decay,
                   .norm_cap = d.norm_cap,
                   .aggregate = d.aggregate,
                   .update_bytes = d.update_bytes};
    iso_err err = iso_yaml_fill(map, task_rows, what, &n, arena, e);
    if (err)
        return err;
    *out = (iso_coord_task){.name = n.name,
                            .classes = n.classes.items,
                            .class_count = n.classes.count,
                            .sites = n.sites.items,
                            .site_count = n.sites.count,
                            .targets = n.targets.items,
                            .target_count = n.targets.count,
                            .quorum = (uint32_t)n.quorum,
                            .rank = (uint32_t)n.rank,
                            .rank_cap = (uint32_t)n.rank_cap,
                            .alpha = n.alpha,
                            .rslora = n.rslora,
                            .steps = (uint32_t)n.steps,
                            .learning_rate = n.learning_rate,
                            .batch = (uint32_t)n.batch,
                            .weight_decay = n.weight_decay,
                            .warmup = (uint32_t)n.warmup,
                            .first_block = (uint32_t)n.first_block,
                            .shift = (uint32_t)n.shift,
                            .mirror = n.mirror,
                            .head_mode = n.head,
                            .seed = (uint64_t)n.seed,
                            .min_samples = (uint32_t)n.min_samples,
                            .norm_cap = n.norm_cap,
                            .aggregate = n.aggregate,
                            .update_bytes = n.update_bytes};
    return ISO_OK;
}

static iso_err read_tasks(const iso_yaml *list, const char *what, iso_coord_config *c,
                          iso_arena *arena, iso_error *e)
{
    if (!list)
        return ISO_OK;
    if (list->kind != ISO_YAML_LIST || list->count > ISO_COORD_TASKS_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "%s:%d: tasks must be a list of at most %d", what,
                        list->line, ISO_COORD_TASKS_MAX);
    c->tasks = iso_arena_calloc(arena, list->count, sizeof *c->tasks);
    if (!c->tasks)
        return iso_nomem(e, 0);
    iso_err err = ISO_OK;
    for (size_t i = 0; i < list->count && !err; i++)
        err = read_task(list->items[i], what, &c->tasks[c->task_count++], arena, e);
    return err;
}

static iso_err read_candidates(const iso_yaml *list, const char *what, iso_coord_config *c,
                               iso_arena *arena, iso_error *e)
{
    if (!list)
        return ISO_OK;
    if (list->kind != ISO_YAML_LIST || list->count == 0 || list->count > ISO_COORD_CANDIDATES_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "%s:%d: candidates must be a list of 1 to %d", what,
                        list->line, ISO_COORD_CANDIDATES_MAX);
    c->candidate_count = 0;
    for (size_t i = 0; i < list->count; i++) {
        candidate_node n = {.alpha = 1.0, .common_fraction = 0.8};
        iso_err err = iso_yaml_fill(list->items[i], candidate_rows, what, &n, arena, e);
        if (err)
            return err;
        c->candidates[c->candidate_count++] =
            (iso_coord_candidate){.method = n.method,
                                  .alpha = n.alpha,
                                  .convention = convention_words[n.convention],
                                  .common_fraction = n.common_fraction};
    }
    return ISO_OK;
}

static iso_err read_rest(const top_level *t, const char *what, iso_coord_config *c,
                         iso_arena *arena, iso_error *e)
{
    rounds_node r = {.deadline_ms = c->deadline_ms,
                     .evaluate_timeout_ms = c->evaluate_timeout_ms,
                     .interval_ms = c->interval_ms,
                     .keep = c->keep_rounds};
    gate_node g = {.metric = c->gate_metric, .margin = c->gate_margin};
    limits_node l = {.update_bytes = c->update_bytes,
                     .chunk_pool = c->chunk_pool_bytes,
                     .disk_floor = c->disk_floor_bytes,
                     .disk_reserve = c->disk_reserve_bytes,
                     .memory = c->memory_bytes,
                     .upload_age_ms = c->upload_age_ms,
                     .connections = c->connections,
                     .credit = c->credit,
                     .requests_per_s = c->requests_per_s,
                     .handshakes_per_s = c->handshakes_per_s};
    iso_err err = t->rounds ? iso_yaml_fill(t->rounds, rounds_rows, what, &r, arena, e) : ISO_OK;
    if (!err && t->gate)
        err = iso_yaml_fill(t->gate, gate_rows, what, &g, arena, e);
    if (!err && t->limits)
        err = iso_yaml_fill(t->limits, limits_rows, what, &l, arena, e);
    if (!err)
        err = read_candidates(t->candidates, what, c, arena, e);
    if (!err)
        err = read_tasks(t->tasks, what, c, arena, e);
    if (err)
        return err;
    c->trigger = r.trigger;
    c->deadline_ms = r.deadline_ms;
    c->evaluate_timeout_ms = r.evaluate_timeout_ms;
    c->interval_ms = r.interval_ms;
    c->max_rounds = (uint32_t)r.max_rounds;
    c->keep_rounds = (uint32_t)r.keep;
    c->gate_metric = g.metric;
    c->gate_margin = g.margin;
    c->update_bytes = l.update_bytes;
    c->chunk_pool_bytes = l.chunk_pool;
    c->disk_floor_bytes = l.disk_floor;
    c->disk_reserve_bytes = l.disk_reserve;
    c->memory_bytes = l.memory;
    c->upload_age_ms = l.upload_age_ms;
    c->connections = (uint32_t)l.connections;
    c->credit = (uint32_t)l.credit;
    c->requests_per_s = (uint32_t)l.requests_per_s;
    c->handshakes_per_s = (uint32_t)l.handshakes_per_s;
    return ISO_OK;
}

iso_err iso_coord_config_read(const char *path, iso_coord_config *config, iso_arena *arena,
                              iso_error *e)
{
    const iso_yaml *root = NULL;
    iso_coord_config_defaults(config);
    top_level t = {.listen = config->listen,
                   .release_valid_ms = config->release_valid_ms,
                   .head_valid_ms = config->head_valid_ms,
                   .choose = config->choose};
    iso_err err = iso_yaml_read(path, arena, &root, e);
    if (!err)
        err = iso_yaml_fill(root, top_rows, path, &t, arena, e);
    if (err)
        return err;
    config->name = t.federation;
    config->listen = t.listen;
    config->advertise = t.advertise;
    config->metrics = t.metrics;
    config->backbone = t.backbone;
    config->worker = t.worker;
    config->release_valid_ms = t.release_valid_ms;
    config->head_valid_ms = t.head_valid_ms;
    config->choose = t.choose == 0 ? ISO_CHOOSE_FIRST : ISO_CHOOSE_BEST;
    config->evaluate_test = t.evaluate_test;
    config->approve = t.approve;
    config->allow_network_fs = t.allow_network_fs;
    err = read_rest(&t, path, config, arena, e);
    return err ? err : iso_coord_config_check(config, e);
}

/* ---- checks that a table cannot say ---- */

static iso_err check_task(const iso_coord_config *config, size_t i, iso_error *e)
{
    const iso_coord_task *t = &config->tasks[i];
    if (!iso_name_is_valid(t->name))
        return iso_fail(e, ISO_ERR_USAGE,
                        "task %zu: name must be 1 to 64 letters, digits, '.', '_' or '-'", i + 1);
    for (size_t k = 0; k < i; k++)
        if (strcmp(config->tasks[k].name, t->name) == 0)
            return iso_fail(e, ISO_ERR_USAGE, "task %s stands there twice", t->name);
    if (t->class_count < 2 || t->class_count > ISO_CLASSES_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "task %s: needs 2 to %d classes", t->name,
                        ISO_CLASSES_MAX);
    for (size_t k = 0; k < t->class_count; k++)
        for (size_t j = 0; j < k; j++)
            if (strcmp(t->classes[k], t->classes[j]) == 0)
                return iso_fail(e, ISO_ERR_USAGE, "task %s: class \"%s\" stands there twice",
                                t->name, t->classes[k]);
    for (size_t k = 0; k < t->site_count; k++)
        if (!iso_name_is_valid(t->sites[k]))
            return iso_fail(e, ISO_ERR_USAGE, "task %s: \"%.64s\" is no site name", t->name,
                            t->sites[k]);
    if (t->site_count && t->quorum > t->site_count)
        return iso_fail(e, ISO_ERR_USAGE, "task %s: quorum %u, but %zu sites", t->name, t->quorum,
                        t->site_count);
    const iso_method *rule;
    if (iso_robust_need(t->aggregate, &rule, e))
        return ISO_ERR_USAGE;
    if (t->update_bytes > config->update_bytes)
        return iso_fail(e, ISO_ERR_USAGE,
                        "task %s: update_bytes is above limits.update_bytes (%llu)", t->name,
                        (unsigned long long)config->update_bytes);
    return ISO_OK;
}

iso_err iso_coord_config_check(const iso_coord_config *config, iso_error *e)
{
    for (size_t i = 0; i < config->candidate_count; i++) {
        const iso_method *method;
        iso_err err = iso_method_need(config->candidates[i].method, &method, e);
        if (err)
            return err;
    }
    for (size_t i = 0; i < config->task_count; i++) {
        iso_err err = check_task(config, i, e);
        if (err)
            return err;
    }
    return ISO_OK;
}
