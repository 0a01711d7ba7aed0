#include "sim/scenario.h"

#include "core/fsio.h"
#include "core/rng.h"

#include <stdio.h>
#include <string.h>

enum { MINUTE = 60000, HOUR = 60 * MINUTE };
#define DAY 86400000.0

const char *const iso_malice_names[ISO_MALICE_COUNT + 1] = {
    "none",     "nan",    "huge",       "zero",  "shape", "sign",    "digest",
    "oversize", "replay", "equivocate", "forge", "liar",  "garbage", NULL};

void iso_scenario_defaults(iso_scenario *s)
{
    *s = (iso_scenario){.name = "scenario",
                        .seed = 1,
                        .sites = 8,
                        .tasks = 4,
                        .rounds = 3,
                        .quorum = 1,
                        .deadline_ms = 30 * MINUTE,
                        .evaluate_timeout_ms = 10 * MINUTE,
                        .interval_ms = 30000,
                        .until_ms = 240ull * HOUR,
                        .methods = {"iso_cts"},
                        .method_count = 1,
                        .keep_rounds = 10,
                        .receipt_keep_ms = 7ull * 24 * HOUR,
                        .settle_ms = 6 * HOUR,
                        .check_every = 4096,
                        .check_site_every = 16};
    s->trainer.width = 32;
    s->trainer.rank = 2;
    s->trainer.layers = 1;
    s->trainer.steps = 100;
    s->trainer.samples = 200;
    s->trainer.noise = 1.0;
    s->trainer.overlap = 0.1;
    s->trainer.step_us = 200000;
    s->net.latency_ms = 20;
    s->net.jitter_ms = 10;
    s->net.slow_factor = 20.0;
    s->net.partition_share = 0.3;
    s->net.partition_for_ms = 5 * MINUTE;
    s->disk.commit_ms = 4;
    s->disk.full_for_ms = MINUTE;
    s->disk.is_torn = true;
    s->crash.restart_ms = 20000;
    s->churn.withdraw = 0.5;
    s->stragglers.factor = 10.0;
    s->malicious.kinds = (1u << ISO_MALICE_COUNT) - 2;
    s->clock.jump_ms = HOUR;
}

/* ---- YAML ---- */

typedef struct {
    iso_scenario s;
    int64_t format, seed, sites, tasks, rounds, quorum, keep_rounds, check_every, check_site_every;
    iso_yaml_strings methods, kinds;
    int choose, trigger, wire, trainer_kind;
    int64_t width, rank, layers, steps, samples;
    uint64_t step_ms;
    const iso_yaml *trainer, *net, *disk, *crash, *churn, *stragglers, *malicious, *clock, *operate,
        *check;
} document;

#define at(field) offsetof(document, field)
#define ms(key, field, top)                                                                        \
    {                                                                                              \
        key, ISO_YAML_DURATION_MS, at(field), false, 0, top, NULL, ""                              \
    }
#define share(key, field)                                                                          \
    {                                                                                              \
        key, ISO_YAML_DOUBLE, at(field), false, 0, 1, NULL, ""                                     \
    }
#define node(key, field)                                                                           \
    {                                                                                              \
        key, ISO_YAML_NODE, at(field), false, 0, 0, NULL, ""                                       \
    }
#define whole(key, field, least, most)                                                             \
    {                                                                                              \
        key, ISO_YAML_INT, at(field), false, least, most, NULL, ""                                 \
    }
#define END                                                                                        \
    {                                                                                              \
        NULL, ISO_YAML_NODE, 0, false, 0, 0, NULL, NULL                                            \
    }

static const char *const choose_words[] = {"best", "first", NULL};
static const char *const trigger_words[] = {"operator", "auto", NULL};
static const char *const wire_words[] = {"struct", "protobuf", NULL};
static const char *const trainer_words[] = {"synthetic", NULL};

static const iso_yaml_row top_rows[] = {
    {"format", ISO_YAML_INT, at(format), true, 1, 1, NULL, ""},
    {"name", ISO_YAML_STRING, at(s.name), false, 0, 0, NULL, ""},
    whole("seed", seed, 0, 9e15),
    whole("sites", sites, 1, 100000),
    whole("tasks", tasks, 1, 64),
    share("second_task", s.second_task),
    whole("rounds", rounds, 1, 1000000),
    whole("quorum", quorum, 1, 100000),
    ms("deadline", s.deadline_ms, 30 * DAY),
    ms("evaluate_timeout", s.evaluate_timeout_ms, 30 * DAY),
    ms("interval", s.interval_ms, 30 * DAY),
    ms("until", s.until_ms, 3650 * DAY),
    {"methods", ISO_YAML_STRINGS, at(methods), false, 0, 0, NULL, ""},
    {"choose", ISO_YAML_ENUM, at(choose), false, 0, 0, choose_words, ""},
    {"trigger", ISO_YAML_ENUM, at(trigger), false, 0, 0, trigger_words, ""},
    {"wire", ISO_YAML_ENUM, at(wire), false, 0, 0, wire_words, ""},
    whole("keep_rounds", keep_rounds, 1, 1000000),
    ms("receipt_keep", s.receipt_keep_ms, 365 * DAY),
    ms("faults_until", s.faults_until_ms, 3650 * DAY),
    ms("settle", s.settle_ms, 365 * DAY),
    node("trainer", trainer),
    node("net", net),
    node("disk", disk),
    node("crash", crash),
    node("churn", churn),
    node("stragglers", stragglers),
    node("malicious", malicious),
    node("clock", clock),
    node("operate", operate),
    node("check", check),
    END,
};
static const iso_yaml_row trainer_rows[] = {
    {"kind", ISO_YAML_ENUM, at(trainer_kind), false, 0, 0, trainer_words, ""},
    whole("width", width, 4, 128),
    whole("rank", rank, 1, 32),
    whole("layers", layers, 1, ISO_SYNTH_LAYERS_MAX),
    whole("steps", steps, 1, 1000000),
    whole("samples", samples, 1, 1000000),
    ms("step", step_ms, DAY),
    {"noise", ISO_YAML_DOUBLE, at(s.trainer.noise), false, 0, 1000, NULL, ""},
    share("overlap", s.trainer.overlap),
    {"payload", ISO_YAML_BYTES, at(s.trainer.payload_bytes), false, 0, 16777216, NULL, ""},
    END,
};
static const iso_yaml_row net_rows[] = {
    ms("latency", s.net.latency_ms, 60000),
    ms("jitter", s.net.jitter_ms, 60000),
    {"bandwidth", ISO_YAML_BYTES, at(s.net.bytes_a_second), false, 0, 1e12, NULL, ""},
    share("loss", s.net.loss),
    share("cut", s.net.cut),
    share("duplicate", s.net.duplicate),
    share("slow", s.net.slow),
    {"slow_factor", ISO_YAML_DOUBLE, at(s.net.slow_factor), false, 1, 1e6, NULL, ""},
    ms("partition_every", s.net.partition_every_ms, 365 * DAY),
    ms("partition_for", s.net.partition_for_ms, 30 * DAY),
    share("partition_share", s.net.partition_share),
    END,
};
static const iso_yaml_row disk_rows[] = {
    ms("commit", s.disk.commit_ms, 60000),
    ms("full_every", s.disk.full_every_ms, 365 * DAY),
    ms("full_for", s.disk.full_for_ms, DAY),
    {"torn", ISO_YAML_BOOL, at(s.disk.is_torn), false, 0, 0, NULL, ""},
    END,
};
static const iso_yaml_row crash_rows[] = {
    ms("coordinator_every", s.crash.coordinator_every_ms, 365 * DAY),
    ms("site_every", s.crash.site_every_ms, 365 * DAY),
    ms("restart", s.crash.restart_ms, DAY),
    share("worker", s.crash.worker),
    END,
};
static const iso_yaml_row churn_rows[] = {
    ms("join_every", s.churn.join_every_ms, 365 * DAY),
    ms("revoke_every", s.churn.revoke_every_ms, 365 * DAY),
    share("withdraw", s.churn.withdraw),
    END,
};
static const iso_yaml_row stragglers_rows[] = {
    share("share", s.stragglers.share),
    {"factor", ISO_YAML_DOUBLE, at(s.stragglers.factor), false, 1, 1e6, NULL, ""},
    END,
};
static const iso_yaml_row malicious_rows[] = {
    share("share", s.malicious.share),
    {"kinds", ISO_YAML_STRINGS, at(kinds), false, 0, 0, NULL, ""},
    END,
};
static const iso_yaml_row clock_rows[] = {
    ms("skew", s.clock.skew_ms, 365 * DAY),
    ms("jump_every", s.clock.jump_every_ms, 365 * DAY),
    ms("jump", s.clock.jump_ms, 365 * DAY),
    END,
};
static const iso_yaml_row operate_rows[] = {
    share("rollback", s.operate.rollback),
    share("pause", s.operate.pause),
    share("accept", s.operate.accept),
    END,
};
static const iso_yaml_row check_rows[] = {
    whole("every", check_every, 1, 1e12),
    whole("site_every", check_site_every, 1, 1e12),
    END,
};

static iso_err take_kinds(document *d, const char *what, iso_error *e)
{
    if (d->kinds.count)
        d->s.malicious.kinds = 0;
    for (size_t i = 0; i < d->kinds.count; i++) {
        uint32_t k = 1;
        while (iso_malice_names[k] && strcmp(iso_malice_names[k], d->kinds.items[i]) != 0)
            k++;
        if (!iso_malice_names[k]) {
            const char *near =
                iso_nearest(d->kinds.items[i], iso_malice_names + 1, ISO_MALICE_COUNT - 1);
            return iso_fail(e, ISO_ERR_USAGE, "%s: malicious.kinds: \"%.40s\" is none%s%s%s", what,
                            d->kinds.items[i], near ? "; did you mean \"" : "", near ? near : "",
                            near ? "\"?" : "");
        }
        d->s.malicious.kinds |= 1u << k;
    }
    return ISO_OK;
}

static iso_err check(const iso_scenario *s, const char *what, iso_error *e)
{
    if (s->sites < s->tasks)
        return iso_fail(e, ISO_ERR_USAGE, "%s: %u sites for %u tasks: each task needs one", what,
                        s->sites, s->tasks);
    if (s->trainer.rank * 2 > s->trainer.width)
        return iso_fail(e, ISO_ERR_USAGE, "%s: trainer.rank: at most half of the width, %u", what,
                        s->trainer.width / 2);
    if (s->is_auto && s->sites > 64)
        return iso_fail(e, ISO_ERR_USAGE, "%s: trigger: auto is for at most 64 sites", what);
    return ISO_OK;
}

iso_err iso_scenario_parse(const void *text, size_t size, const char *what, iso_scenario *s,
                           iso_arena *arena, iso_error *e)
{
    const iso_yaml *root = NULL;
    document d = {.format = 1};
    iso_scenario_defaults(&d.s);
    d.seed = (int64_t)d.s.seed;
    d.sites = d.s.sites;
    d.tasks = d.s.tasks;
    d.rounds = d.s.rounds;
    d.quorum = d.s.quorum;
    d.keep_rounds = d.s.keep_rounds;
    d.check_every = (int64_t)d.s.check_every;
    d.check_site_every = (int64_t)d.s.check_site_every;
    d.width = d.s.trainer.width;
    d.rank = d.s.trainer.rank;
    d.layers = d.s.trainer.layers;
    d.steps = d.s.trainer.steps;
    d.samples = d.s.trainer.samples;
    d.step_ms = d.s.trainer.step_us / 1000;
    iso_err err = iso_yaml_parse(text, size, what, arena, &root, e);
    if (!err)
        err = iso_yaml_fill(root, top_rows, what, &d, arena, e);
    const struct {
        const iso_yaml *map;
        const iso_yaml_row *rows;
    } parts[] = {{d.trainer, trainer_rows},     {d.net, net_rows},
                 {d.disk, disk_rows},           {d.crash, crash_rows},
                 {d.churn, churn_rows},         {d.stragglers, stragglers_rows},
                 {d.malicious, malicious_rows}, {d.clock, clock_rows},
                 {d.operate, operate_rows},     {d.check, check_rows}};
    for (size_t i = 0; i < sizeof parts / sizeof *parts && !err; i++)
        if (parts[i].map)
            err = iso_yaml_fill(parts[i].map, parts[i].rows, what, &d, arena, e);
    if (!err)
        err = take_kinds(&d, what, e);
    if (err)
        return err;
    *s = d.s;
    s->seed = (uint64_t)d.seed;
    s->sites = (uint32_t)d.sites;
    s->tasks = (uint32_t)d.tasks;
    s->rounds = (uint32_t)d.rounds;
    s->quorum = (uint32_t)d.quorum;
    s->keep_rounds = (uint32_t)d.keep_rounds;
    s->check_every = (uint64_t)d.check_every;
    s->check_site_every = (uint64_t)d.check_site_every;
    s->trainer.width = (uint32_t)d.width;
    s->trainer.rank = (uint32_t)d.rank;
    s->trainer.layers = (uint32_t)d.layers;
    s->trainer.steps = (uint32_t)d.steps;
    s->trainer.samples = (uint32_t)d.samples;
    s->trainer.step_us = d.step_ms * 1000;
    s->choose_first = d.choose == 1;
    s->is_auto = d.trigger == 1;
    s->is_encoded = d.wire == 1;
    if (d.methods.count > sizeof s->methods / sizeof *s->methods)
        return iso_fail(e, ISO_ERR_USAGE, "%s: methods: at most 8", what);
    if (d.methods.count) {
        memcpy(s->methods, d.methods.items, d.methods.count * sizeof *s->methods);
        s->method_count = d.methods.count;
    }
    return check(s, what, e);
}

iso_err iso_scenario_read(const char *path, iso_scenario *s, iso_arena *arena, iso_error *e)
{
    iso_buf text = {0};
    iso_err err = iso_read_file(path, 1 << 20, &text, e);
    if (!err)
        err = iso_scenario_parse(text.data, text.size, path, s, arena, e);
    iso_buf_free(&text);
    return err;
}

/* ---- random ---- */

static bool chance(iso_rng *g, double p)
{
    return iso_rng_uniform(g) < p;
}

static uint64_t between(iso_rng *g, uint64_t least, uint64_t most)
{
    return least + iso_rng_below(g, (uint32_t)(most - least + 1));
}

void iso_scenario_random(uint64_t seed, iso_scenario *s)
{
    static const char *const methods[] = {"iso_cts", "average", "task_arithmetic", "iso_c"};
    iso_rng g = iso_rng_make(seed, ISO_RNG_TEST, 0x51);
    iso_scenario_defaults(s);
    s->name = "random";
    s->seed = seed;
    s->tasks = (uint32_t)between(&g, 1, 4);
    s->sites = s->tasks + (uint32_t)between(&g, 0, 6);
    s->rounds = (uint32_t)between(&g, 1, 4);
    s->second_task = chance(&g, 0.5) ? 0.4 : 0.0;
    s->quorum = (uint32_t)between(&g, 1, 2);
    s->deadline_ms = between(&g, 2, 20) * MINUTE;
    s->evaluate_timeout_ms = between(&g, 1, 10) * MINUTE;
    s->methods[0] = methods[between(&g, 0, 3)];
    s->methods[1] = methods[between(&g, 0, 3)];
    s->method_count = between(&g, 1, 2);
    s->choose_first = chance(&g, 0.5);
    s->is_auto = chance(&g, 0.3);
    s->is_encoded = chance(&g, 0.3);
    s->keep_rounds = (uint32_t)between(&g, 1, 6);
    s->trainer.payload_bytes = chance(&g, 0.3) ? between(&g, 1, 600) * 1024 : 0;
    s->trainer.step_us = between(&g, 20, 600) * 1000;
    s->net.latency_ms = between(&g, 1, 300);
    s->net.jitter_ms = between(&g, 0, 200);
    s->net.bytes_a_second = chance(&g, 0.4) ? between(&g, 20, 2000) * 1000 : 0;
    s->net.loss = chance(&g, 0.5) ? 0.05 : 0.0;
    s->net.cut = chance(&g, 0.5) ? 0.01 : 0.0;
    s->net.duplicate = chance(&g, 0.4) ? 0.05 : 0.0;
    s->net.slow = chance(&g, 0.3) ? 0.3 : 0.0;
    s->net.partition_every_ms = chance(&g, 0.3) ? between(&g, 5, 60) * MINUTE : 0;
    s->net.partition_for_ms = between(&g, 10, 600) * 1000;
    s->disk.commit_ms = between(&g, 0, 30);
    s->disk.full_every_ms = chance(&g, 0.2) ? between(&g, 10, 60) * MINUTE : 0;
    s->crash.coordinator_every_ms = chance(&g, 0.5) ? between(&g, 1, 30) * MINUTE : 0;
    s->crash.site_every_ms = chance(&g, 0.5) ? between(&g, 1, 20) * MINUTE : 0;
    s->crash.restart_ms = between(&g, 1, 60) * 1000;
    s->crash.worker = chance(&g, 0.2) ? 0.1 : 0.0;
    s->churn.join_every_ms = chance(&g, 0.3) ? between(&g, 5, 30) * MINUTE : 0;
    s->churn.revoke_every_ms = chance(&g, 0.3) ? between(&g, 10, 60) * MINUTE : 0;
    s->stragglers.share = chance(&g, 0.3) ? 0.3 : 0.0;
    s->malicious.share = chance(&g, 0.5) ? 0.4 : 0.0;
    s->clock.skew_ms = chance(&g, 0.3) ? between(&g, 1, 900) * 1000 : 0;
    s->clock.jump_every_ms = chance(&g, 0.2) ? between(&g, 10, 60) * MINUTE : 0;
    s->operate.rollback = chance(&g, 0.3) ? 0.3 : 0.0;
    s->operate.pause = chance(&g, 0.2) ? 0.3 : 0.0;
    s->operate.accept = 0.5;
    s->check_every = 16;
    s->check_site_every = 1;
    s->faults_until_ms = between(&g, 1, 4) * HOUR;
}
