/* Log lines: an event name and key=value pairs, one line each, as logfmt or JSON.
 *
 * A logger is a value that programs own and hand down; libraries get a pointer and may get NULL.
 * Values are quoted and escaped; a line is at most 4 KiB; no secret ever goes in. */
#ifndef ISO_CORE_LOG_H
#define ISO_CORE_LOG_H

#include "core/err.h"

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

typedef enum { ISO_LOG_TRACE, ISO_LOG_DEBUG, ISO_LOG_INFO, ISO_LOG_WARN, ISO_LOG_ERROR } iso_level;

typedef struct {
    FILE *out;       /* not owned; NULL drops everything */
    iso_level level; /* lines below are dropped */
    bool json;       /* JSON objects instead of logfmt */
    const char *program;
    uint64_t (*wall_ms)(void *ctx); /* time stamp; NULL leaves it out (simulation, tests) */
    void *clock_ctx;
    uint64_t
        window_ms; /* repeats of one event within a window are counted, then summed up; 0 off */
    uint64_t opaque[16]; /* repeat counter's state */
} iso_log;

/* Writes one line. `pairs` is a printf format of logfmt pairs, strings quoted by the caller with
 * %s inside "..." being escaped: use the helpers below for text that came from outside.
 * Example: iso_log_event(log, ISO_LOG_INFO, "round_closed", "round=%u updates=%u", r, n); */
void iso_log_event(iso_log *log, iso_level level, const char *event, const char *pairs, ...)
    ISO_PRINTF(4, 5);

/* Escapes control characters, quotes and non-UTF-8 bytes into out (always terminated). */
void iso_log_quote(char *out, size_t out_bytes, const char *text);

/* "trace" .. "error" to a level; false if unknown. */
bool iso_log_parse_level(const char *name, iso_level *out);

#endif
