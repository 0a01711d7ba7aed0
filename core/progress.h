/* One line of progress on a terminal: bar, rate, time left. Silent when piped or quiet. */
#ifndef ISO_CORE_PROGRESS_H
#define ISO_CORE_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    const char *what; /* "training", not owned */
    const char *unit; /* "images" */
    double total;     /* 0: unknown */
    bool is_active;   /* decided at start: stderr is a terminal and not quiet */
    uint64_t start_ms, last_ms;
    char note[64]; /* shown at the end: "loss 0.412" */
} iso_progress;

void iso_progress_start(iso_progress *p, const char *what, const char *unit, double total,
                        bool quiet);
/* Redraws at most ten times a second. note may be NULL. */
void iso_progress_update(iso_progress *p, double done, const char *note);
/* Ends the line with the total time and rate. */
void iso_progress_end(iso_progress *p, double done);
/* "3 min 12 s", "412 ms" */
void iso_duration_text(char *out, unsigned out_bytes, double seconds);
/* "9.8 MiB" */
void iso_bytes_text(char *out, unsigned out_bytes, double bytes);

#endif
