/* Errors: a code for the program, one line for the person.
 *
 * Every function that can fail returns `iso_err` and takes `iso_error *e` last (may be NULL). The
 * line says what, where and what would be right; it is written where the facts are and gains
 * context on the way up by iso_error_context(). Nothing here prints, exits or keeps state. */
#ifndef ISO_CORE_ERR_H
#define ISO_CORE_ERR_H

#include <stddef.h>

#define ISO_MUST_CHECK   __attribute__((warn_unused_result))
#define ISO_PRINTF(f, a) __attribute__((format(printf, f, a)))
#define ISO_ERROR_BYTES  256

typedef enum {
    ISO_OK = 0,
    ISO_ERR_NO,          /* the work ran and its answer is no (verification failed, gate refused) */
    ISO_ERR_USAGE,       /* wrong usage or configuration */
    ISO_ERR_DATA,        /* bad input data: malformed, truncated */
    ISO_ERR_SHAPE,       /* bad input data: shape or type differs from what is needed */
    ISO_ERR_NONFINITE,   /* bad input data: NaN or Inf */
    ISO_ERR_TRUST,       /* not permitted or not trusted: keys, signatures, file modes */
    ISO_ERR_RESOURCE,    /* disk, port, network, descriptor */
    ISO_ERR_MEMORY,      /* allocation refused */
    ISO_ERR_INTERRUPTED, /* stopped by the user; state kept */
    ISO_ERR_INTERNAL,    /* an invariant of our own does not hold */
    ISO_ERR_COUNT
} iso_err;

typedef struct {
    iso_err code;
    char text[ISO_ERROR_BYTES]; /* one line, no newline, always terminated */
} iso_error;

/* Writes the line and returns `code`, so that callers can `return iso_fail(e, ...)`. */
iso_err iso_fail(iso_error *e, iso_err code, const char *fmt, ...) ISO_PRINTF(3, 4);

/* As iso_fail(), with ": " and strerror(errno_value) appended. */
iso_err iso_fail_errno(iso_error *e, iso_err code, int errno_value, const char *fmt, ...)
    ISO_PRINTF(4, 5);

/* Puts "context: " before the line that is there; returns the code that is there. */
iso_err iso_error_context(iso_error *e, const char *fmt, ...) ISO_PRINTF(2, 3);

/* Exit code of a program for this error (DESIGN 3): 0, 1, 2, 3, 4, 5 or 130. */
int iso_exit_code(iso_err code);

/* Name of the code in snake_case, for logs and JSON. */
const char *iso_err_name(iso_err code);

#endif
