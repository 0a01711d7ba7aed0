#include "core/err.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

static const struct {
    const char *name;
    int exit_code;
} codes[ISO_ERR_COUNT] = {
    [ISO_OK] = {"ok", 0},
    [ISO_ERR_NO] = {"no", 1},
    [ISO_ERR_USAGE] = {"usage", 2},
    [ISO_ERR_DATA] = {"data", 3},
    [ISO_ERR_SHAPE] = {"shape", 3},
    [ISO_ERR_NONFINITE] = {"nonfinite", 3},
    [ISO_ERR_TRUST] = {"trust", 4},
    [ISO_ERR_RESOURCE] = {"resource", 5},
    [ISO_ERR_MEMORY] = {"memory", 5},
    [ISO_ERR_INTERRUPTED] = {"interrupted", 130},
    [ISO_ERR_INTERNAL] = {"internal", 1},
};

/* An error is one line whatever bytes a file name brought along. */
static void one_line(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = '?';
}

iso_err iso_fail(iso_error *e, iso_err code, const char *fmt, ...)
{
    if (!e)
        return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    one_line(e->text);
    e->code = code;
    return code;
}

iso_err iso_fail_errno(iso_error *e, iso_err code, int errno_value, const char *fmt, ...)
{
    if (!e)
        return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->text);
    char room[64];
    const char *reason = strerror_r(errno_value, room, sizeof room); /* GNU's: returns the text */
    snprintf(e->text + n, sizeof e->text - n, ": %s", reason);
    one_line(e->text);
    e->code = code;
    return code;
}

iso_err iso_error_context(iso_error *e, const char *fmt, ...)
{
    if (!e)
        return ISO_ERR_INTERNAL;
    char old[ISO_ERROR_BYTES];
    memcpy(old, e->text, sizeof old);
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(e->text, sizeof e->text, fmt, ap);
    va_end(ap);
    size_t n = strlen(e->text);
    snprintf(e->text + n, sizeof e->text - n, ": %s", old);
    one_line(e->text);
    return e->code;
}

int iso_exit_code(iso_err code)
{
    return codes[code].exit_code;
}

const char *iso_err_name(iso_err code)
{
    return codes[code].name;
}
