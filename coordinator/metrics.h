/* Figures for a monitoring system: Prometheus text over HTTP on loopback (specs/security.md S62).
 * Off unless `metrics:` is configured. GET of /metrics and nothing else; no state changes, nothing
 * of a site but counts leaves. Served from the daemon's own loop, no thread. */
#ifndef ISO_COORDINATOR_METRICS_H
#define ISO_COORDINATOR_METRICS_H

#include "core/mem.h"

#include <stdbool.h>

typedef struct iso_metrics iso_metrics;

/* Appends the page to `out`; called for each request. */
typedef iso_err iso_metrics_page_fn(void *ctx, iso_buf *out, iso_error *e);

/* host: 127.0.0.1, ::1 or localhost, else ISO_ERR_USAGE. port 0: any. Taken: ISO_ERR_RESOURCE. */
iso_err iso_metrics_open(iso_metrics **out, const char *host, uint16_t port,
                         iso_metrics_page_fn *page, void *ctx, iso_error *e) ISO_MUST_CHECK;
void iso_metrics_close(iso_metrics *m); /* NULL is fine */
uint16_t iso_metrics_port(const iso_metrics *m);
/* Readable when there is something to serve. */
int iso_metrics_fd(const iso_metrics *m);
/* Never blocks; also lets slow readers time out. */
void iso_metrics_serve(iso_metrics *m);

/* One figure in the text format: "# HELP", "# TYPE", value. kind: "counter" or "gauge". */
iso_err iso_metrics_line(iso_buf *out, const char *name, const char *kind, const char *help,
                         double value, iso_error *e) ISO_MUST_CHECK;

#endif
