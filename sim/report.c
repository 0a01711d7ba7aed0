#include "sim/report.h"

#include "core/digest.h"
#include "core/progress.h"
#include "core/report.h"

#include <stdarg.h>
#include <string.h>
#include <sys/resource.h>

enum { ROWS = 32 };

typedef struct {
    char name[ROWS][40], value[ROWS][160];
    size_t count;
} table;

static void row(table *t, const char *name, const char *fmt, ...) ISO_PRINTF(3, 4);
static void row(table *t, const char *name, const char *fmt, ...)
{
    va_list args;
    va_start(args, fmt);
    snprintf(t->name[t->count], sizeof t->name[0], "%s", name);
    vsnprintf(t->value[t->count++], sizeof t->value[0], fmt, args);
    va_end(args);
}

static unsigned long long n(uint64_t v)
{
    return (unsigned long long)v;
}

/* "2 NORM, 1 SEQUENCE" */
static void codes_text(const iso_sim_result *r, char *out, size_t bytes)
{
    size_t at = 0;
    snprintf(out, bytes, "none");
    for (int k = 1; k < ISO_CODE_END; k++)
        if (r->refused_by[k] && at < bytes)
            at += (size_t)snprintf(out + at, bytes - at, "%s%llu %s", at ? ", " : "",
                                   n(r->refused_by[k]), iso_code_name((iso_code)k));
}

static double peak_bytes(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)u.ru_maxrss * 1024.0;
}

static void fill(table *t, const iso_scenario *s, const iso_sim_result *r, double wall_s)
{
    char text[160], hex[ISO_DIGEST_HEX], other[48];
    row(t, "scenario", "%s, seed %llu", s->name, n(s->seed));
    row(t, "sites", "%llu (%llu malicious, %llu revoked), %u tasks", n(r->sites),
        n(r->sites_malicious), n(r->sites_revoked), s->tasks);
    row(t, "rounds", "%llu, %llu releases; sites accepted %llu, rejected %llu", n(r->rounds),
        n(r->releases), n(r->accepted), n(r->rejected));
    row(t, "updates", "%llu acknowledged: %llu used, %llu refused after it, %llu open",
        n(r->receipts), n(r->used), n(r->refused), n(r->pending));
    codes_text(r, text, sizeof text);
    row(t, "refusals", "%s", text);
    row(t, "accuracy", "%.3f frozen, %.3f with the last release (planted, mean over tasks)",
        r->accuracy_probe, r->accuracy_last);
    iso_bytes_text(text, sizeof text, (double)r->sent_bytes);
    iso_bytes_text(other, sizeof other, (double)r->received_bytes);
    row(t, "messages", "%llu; to sites %s, from sites %s", n(r->messages), text, other);
    row(t, "faults", "%llu + %llu crashes, %llu cuts, %llu partitions, %llu resent, %llu doubled",
        n(r->crashes_coordinator), n(r->crashes_site), n(r->cuts), n(r->partitions),
        n(r->retransmissions), n(r->duplicates));
    iso_duration_text(text, sizeof text, (double)r->virtual_ms / 1000.0);
    row(t, "virtual time", "%s", text);
    iso_duration_text(text, sizeof text, wall_s);
    row(t, "events", "%llu in %s: %.0f/s", n(r->events), text,
        wall_s > 0.0 ? (double)r->events / wall_s : 0.0);
    iso_bytes_text(text, sizeof text, peak_bytes());
    iso_bytes_text(other, sizeof other, (double)r->disk_bytes);
    row(t, "memory", "peak %s, of that simulated disks %s", text, other);
    row(t, "invariants", "%s; %llu full checks",
        r->broken_event ? "BROKEN" : "held at every commit, message, job and swap",
        n(r->full_checks));
    iso_hex(hex, r->digest, 32);
    row(t, "digest", "%s", hex);
}

void iso_sim_result_print(FILE *out, const iso_scenario *s, const iso_sim_result *r, double wall_s)
{
    table t = {.count = 0};
    fill(&t, s, r, wall_s);
    for (size_t i = 0; i < t.count; i++)
        fprintf(out, "%-13s %s\n", t.name[i], t.value[i]);
}

iso_json *iso_sim_result_json(const iso_scenario *s, const iso_sim_result *r, double wall_s)
{
    const struct {
        const char *name;
        uint64_t value;
    } numbers[] = {{"seed", s->seed},
                   {"sites", r->sites},
                   {"sites_malicious", r->sites_malicious},
                   {"sites_revoked", r->sites_revoked},
                   {"rounds", r->rounds},
                   {"releases", r->releases},
                   {"releases_accepted", r->accepted},
                   {"releases_rejected", r->rejected},
                   {"receipts", r->receipts},
                   {"used", r->used},
                   {"refused", r->refused},
                   {"pending", r->pending},
                   {"events", r->events},
                   {"virtual_ms", r->virtual_ms},
                   {"messages", r->messages},
                   {"bytes_to_sites", r->sent_bytes},
                   {"bytes_from_sites", r->received_bytes},
                   {"crashes_coordinator", r->crashes_coordinator},
                   {"crashes_site", r->crashes_site},
                   {"cuts", r->cuts},
                   {"partitions", r->partitions},
                   {"retransmissions", r->retransmissions},
                   {"duplicates", r->duplicates},
                   {"full_checks", r->full_checks},
                   {"broken_event", r->broken_event},
                   {"disk_bytes", r->disk_bytes}};
    iso_json *o = iso_json_object(), *codes = iso_json_object();
    char hex[ISO_DIGEST_HEX];
    iso_json_set(o, "scenario", iso_json_string(s->name));
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        iso_json_set(o, numbers[i].name, iso_json_integer((int64_t)numbers[i].value));
    for (int k = 1; k < ISO_CODE_END; k++)
        if (r->refused_by[k])
            iso_json_set(codes, iso_code_name((iso_code)k),
                         iso_json_integer((int64_t)r->refused_by[k]));
    iso_json_set(o, "refusals", codes);
    iso_json_set(o, "accuracy_frozen", iso_json_real(r->accuracy_probe));
    iso_json_set(o, "accuracy_released", iso_json_real(r->accuracy_last));
    iso_json_set(o, "seconds", iso_json_real(wall_s));
    iso_json_set(o, "events_a_second",
                 iso_json_real(wall_s > 0.0 ? (double)r->events / wall_s : 0.0));
    iso_hex(hex, r->digest, 32);
    iso_json_set(o, "digest", iso_json_string(hex));
    return o;
}

iso_err iso_sim_report(const char *path, const iso_scenario *s, const iso_sim_result *r,
                       double wall_s, const char *broken, iso_error *e)
{
    static const char *const header[] = {"", "value"};
    const char *cells[2 * ROWS];
    table t = {.count = 0};
    iso_report page = {{0}};
    fill(&t, s, r, wall_s);
    for (size_t i = 0; i < t.count; i++) {
        cells[2 * i] = t.name[i];
        cells[2 * i + 1] = t.value[i];
    }
    iso_err err = iso_report_begin(&page, "Simulation", s->name, e);
    if (!err && broken)
        err = iso_report_text(&page, e, "Stopped: %s", broken);
    if (!err)
        err = iso_report_table(&page, "What it came to", header, 2, cells, t.count, e);
    const char *groups[ISO_CODE_END], *series[] = {"refused"};
    double values[ISO_CODE_END];
    size_t count = 0;
    for (int k = 1; k < ISO_CODE_END; k++)
        if (r->refused_by[k]) {
            groups[count] = iso_code_name((iso_code)k);
            values[count++] = (double)r->refused_by[k];
        }
    iso_buf svg = {0};
    const iso_plot plot = {.title = "Refusals by code", .y_label = "updates"};
    if (!err && count)
        err = iso_svg_bars(&svg, &plot, groups, count, series, 1, values, e);
    if (!err && count)
        err = iso_report_svg(&page, &svg, "Refused at the door and by the worker", e);
    if (!err)
        err = iso_report_write(&page, path, e);
    iso_buf_free(&svg);
    iso_report_free(&page);
    return err;
}
