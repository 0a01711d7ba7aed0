/* The page of figures (S61, S62): counts of what the core did and what the daemon holds. */
#include "coordinator/shell.h"

#include <stddef.h>

#define at(field) offsetof(iso_coord_stats, field)
static const struct {
    const char *name, *kind, *help;
    size_t offset;
    bool is_small; /* uint32_t, else uint64_t */
} rows[] = {
    {"events_total", "counter", "events that the core has taken", at(events), false},
    {"messages_total", "counter", "messages of sites", at(messages), false},
    {"refusals_total", "counter", "messages and updates that were refused", at(refusals), false},
    {"cuts_total", "counter", "connections that were cut", at(cuts), false},
    {"updates_acknowledged_total", "counter", "receipts given", at(receipts), false},
    {"updates_used_total", "counter", "updates merged", at(used), false},
    {"updates_refused_total", "counter", "updates refused after their receipt", at(refused), false},
    {"updates_pending", "gauge", "updates that wait for a merge", at(pending), false},
    {"rounds_total", "counter", "rounds opened", at(rounds), false},
    {"round", "gauge", "number of the round that runs, 0: none", at(round), false},
    {"release", "gauge", "number of the current release", at(release), false},
    {"audit_entries_total", "counter", "entries of the audit log", at(audit_seq), false},
    {"sites", "gauge", "sites enrolled", at(sites), true},
    {"peers", "gauge", "connections that have spoken", at(peers), true},
    {"uploads", "gauge", "updates on their way in", at(uploads), true},
    {"credit_chunks", "gauge", "chunks granted and not yet received", at(credit_chunks), false},
};

iso_err iso_shell_figures(void *ctx, iso_buf *out, iso_error *e)
{
    const iso_shell *s = ctx;
    iso_coord_stats stats;
    iso_err err = ISO_OK;
    if (!s->core)
        return iso_fail(e, ISO_ERR_INTERNAL, "the core is being made anew");
    iso_coord_get_stats(s->core, &stats);
    for (size_t i = 0; i < sizeof rows / sizeof *rows && !err; i++) {
        const char *from = (const char *)&stats + rows[i].offset;
        double value = rows[i].is_small ? (double)*(const uint32_t *)(const void *)from
                                        : (double)*(const uint64_t *)(const void *)from;
        err = iso_metrics_line(out, rows[i].name, rows[i].kind, rows[i].help, value, e);
    }
    if (!err)
        err = iso_metrics_line(out, "commits_total", "counter", "transactions of the state",
                               (double)s->commits, e);
    if (!err)
        err = iso_metrics_line(out, "disk_free_bytes", "gauge", "free where the state lies",
                               (double)s->disk_free, e);
    return err ? err
               : iso_metrics_line(out, "resident_bytes", "gauge", "memory of this process",
                                  (double)iso_shell_resident_bytes(), e);
}
