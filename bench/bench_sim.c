/* The simulation by its own limit (DESIGN 9): no other framework plays faults on the wire with its
 * production cores, so there is no rival. Processor time of one core counts, since the simulation
 * is one thread and the machine may have other work. */
#include "bench/bench.h"
#include "core/parallel.h"
#include "sim/heap.h"
#include "sim/world.h"

#include <malloc.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>

static double processor_s(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           1e-6 * (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec);
}

/* The heap alone, 4,096 events under way: what the clock of the world costs. */
static double heap_rate(void)
{
    enum { UNDER_WAY = 4096, TURNS = 2000000 };
    iso_sim_heap h = {0};
    uint64_t x = 88172645463325252u;
    iso_sim_event ev = {.at_us = 0};
    for (int i = 0; i < UNDER_WAY; i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        ev.at_us = x % 1000000;
        if (!iso_sim_heap_push(&h, ev))
            return 0.0;
    }
    double begun = processor_s();
    for (int i = 0; i < TURNS && iso_sim_heap_pop(&h, &ev); i++) {
        x ^= x << 13, x ^= x >> 7, x ^= x << 17;
        ev.at_us += x % 1000000;
        if (!iso_sim_heap_push(&h, ev))
            break;
    }
    double rate = TURNS / (processor_s() - begun);
    iso_sim_heap_free(&h);
    return rate;
}

typedef struct {
    iso_sim_result r;
    double processor_s, bytes_a_site;
} measured;

static int play(const iso_scenario *s, measured *m)
{
    iso_sim *w = NULL;
    iso_error e = {0};
    const iso_sim_options o = {0};
    struct mallinfo2 before = mallinfo2();
    double begun = processor_s();
    iso_err err = iso_sim_open(&w, s, &o, &e);
    if (!err)
        err = iso_sim_run(w, &m->r, &e);
    m->processor_s = processor_s() - begun;
    struct mallinfo2 after = mallinfo2();
    double held =
        (double)(after.uordblks + after.hblkhd) - (double)(before.uordblks + before.hblkhd);
    m->bytes_a_site = (held - (double)m->r.disk_bytes) / (double)m->r.sites;
    iso_sim_close(w);
    if (err)
        fprintf(stderr, "isofed bench sim: %s\n", e.text);
    return iso_exit_code(err);
}

static int run(const iso_bench_options *o)
{
    iso_scenario s;
    measured m;
    iso_scenario_defaults(&s);
    s.name = "thousand";
    s.sites = 1000;
    s.tasks = 8;
    s.rounds = o->full ? 100 : 20;
    s.choose_first = true;
    s.keep_rounds = 2;
    s.receipt_keep_ms = 600000;
    s.trainer.width = 64;
    s.check_every = 1000000;
    s.check_site_every = 1000;
    int threads = iso_threads();
    iso_set_threads(1);
    iso_bench_row(o, "sim.heap", heap_rate(), "events/s", NULL, 0, (double)NAN, (double)NAN);
    int rc = play(&s, &m);
    iso_set_threads(threads);
    if (rc)
        return rc;
    double rate = (double)m.r.events / m.processor_s;
    /* "ratio" is against the target here, larger is better: 1 meets it. */
    iso_bench_row(o, "sim.events", rate, "events/s", "target", 1e6, rate / 1e6, 1.0);
    double hundred_s = m.processor_s * 100.0 / (double)s.rounds;
    iso_bench_row(o, "sim.1000_sites_100_rounds", hundred_s, "s", "target", 5.0, 5.0 / hundred_s,
                  1.0);
    iso_bench_row(o, "sim.bytes_a_site", m.bytes_a_site, "B", "target", 4.3 * 1024,
                  4.3 * 1024 / m.bytes_a_site, 1.0);
    iso_bench_row(o, "sim.disk_bytes_a_site", (double)m.r.disk_bytes / (double)m.r.sites, "B", NULL,
                  0, (double)NAN, (double)NAN);
    return 0;
}

const iso_bench iso_bench_sim = {"sim", "the simulation: events a second, memory a site", run};
