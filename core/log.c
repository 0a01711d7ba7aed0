/* Log lines as logfmt, or the same pairs as a JSON object. A line is put together in one buffer and
 * written by one call, so that lines of several threads or processes do not mix; whatever text came
 * from outside, it stays one line. */
#include "core/log.h"

#include "core/utf8.h"

#include <inttypes.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>

enum { LINE_BYTES = 4096, SLOTS = 3 };

static const char *const level_names[] = {"trace", "debug", "info", "warn", "error"};

bool iso_log_parse_level(const char *name, iso_level *out)
{
    for (size_t i = 0; i < sizeof level_names / sizeof *level_names; i++)
        if (!strcmp(name, level_names[i])) {
            *out = (iso_level)i;
            return true;
        }
    return false;
}

/* Characters that move the cursor or turn the reading direction: C1 controls, bidirectional marks,
 * line and paragraph separators. */
static bool is_unsafe(const uint8_t *p, size_t length)
{
    if (length == 2)
        return p[0] == 0xC2 && p[1] < 0xA0;
    if (length == 3 && p[0] == 0xE2)
        return (p[1] == 0x80 &&
                ((p[2] >= 0x8E && p[2] <= 0x8F) || (p[2] >= 0xA8 && p[2] <= 0xAE))) ||
               (p[1] == 0x81 && p[2] >= 0xA6 && p[2] <= 0xA9);
    return false;
}

void iso_log_quote(char *out, size_t out_bytes, const char *text)
{
    size_t used = 0, left = strlen(text);
    if (!out_bytes)
        return;
    while (left) {
        const uint8_t *p = (const uint8_t *)text;
        size_t length = iso_utf8_length(text, left), step = length ? length : 1;
        char piece[16];
        if (length == 1 && (*p == '"' || *p == '\\'))
            snprintf(piece, sizeof piece, "\\%c", *p);
        else if (length == 1 && *p == '\n')
            snprintf(piece, sizeof piece, "\\n");
        else if (length == 1 && (*p < 0x20 || *p == 0x7F))
            snprintf(piece, sizeof piece, "\\u%04x", *p);
        else if (length == 2 && is_unsafe(p, 2))
            snprintf(piece, sizeof piece, "\\u%04x", (p[0] & 0x1Fu) << 6 | (p[1] & 0x3Fu));
        else if (length == 3 && is_unsafe(p, 3))
            snprintf(piece, sizeof piece, "\\u%04x",
                     (p[0] & 0xFu) << 12 | (p[1] & 0x3Fu) << 6 | (p[2] & 0x3Fu));
        else if (!length) /* reads as the text \xff: no escape of JSON names a single byte */
            snprintf(piece, sizeof piece, "\\\\x%02x", *p);
        else
            snprintf(piece, sizeof piece, "%.*s", (int)length, text);
        size_t n = strlen(piece);
        if (used + n >= out_bytes)
            break;
        memcpy(out + used, piece, n);
        used += n;
        text += step;
        left -= step;
    }
    out[used] = 0;
}

/* ---- one line ---- */

typedef struct {
    char text[LINE_BYTES];
    size_t used;
} line;

static void add(line *l, const char *text, size_t n)
{
    size_t room = sizeof l->text - 1 - l->used; /* one byte stays for the newline */
    if (n > room)
        n = room;
    memcpy(l->text + l->used, text, n);
    l->used += n;
}

static void add_text(line *l, const char *text)
{
    add(l, text, strlen(text));
}

static void add_time(line *l, uint64_t wall_ms)
{
    time_t seconds = (time_t)(wall_ms / 1000);
    struct tm utc;
    char text[48];
    gmtime_r(&seconds, &utc);
    size_t n = strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S", &utc);
    snprintf(text + n, sizeof text - n, ".%03uZ", (unsigned)(wall_ms % 1000));
    add_text(l, text);
}

/* One pair of logfmt: key=value or key="value with escapes". Returns what is left. */
static const char *next_pair(const char *p, const char **key, size_t *key_bytes, const char **value,
                             size_t *value_bytes, bool *is_quoted)
{
    p += strspn(p, " ");
    *key = p;
    p += strcspn(p, "= ");
    *key_bytes = (size_t)(p - *key);
    *value = p;
    *value_bytes = 0;
    *is_quoted = false;
    if (*p != '=')
        return p;
    *value = ++p;
    if (*p == '"') {
        *is_quoted = true;
        *value = ++p;
        while (*p && *p != '"')
            p += *p == '\\' && p[1] ? 2 : 1;
        *value_bytes = (size_t)(p - *value);
        return *p ? p + 1 : p;
    }
    p += strcspn(p, " ");
    *value_bytes = (size_t)(p - *value);
    return p;
}

/* A number as JSON writes them: no "+1", "01", "0x1", "nan". */
static bool is_json_number(const char *p, size_t n)
{
    size_t i = n && p[0] == '-';
    size_t digits = strspn(p + i, "0123456789");
    if (!digits || (digits > 1 && p[i] == '0'))
        return false;
    i += digits;
    if (i < n && p[i] == '.') {
        digits = strspn(p + ++i, "0123456789");
        if (!digits)
            return false;
        i += digits;
    }
    if (i < n && (p[i] == 'e' || p[i] == 'E')) {
        i++;
        i += p[i] == '+' || p[i] == '-';
        digits = strspn(p + i, "0123456789");
        if (!digits)
            return false;
        i += digits;
    }
    return i == n;
}

/* n bytes as the inside of a JSON string. `is_quoted`: escapes are there already and stay if JSON
 * knows them. */
static void add_json_text(line *l, const char *text, size_t n, bool is_quoted)
{
    for (size_t i = 0; i < n;) {
        size_t length = iso_utf8_length(text + i, n - i);
        if (!length) {
            add_text(l, "?");
            length = 1;
        } else if (text[i] == '"') {
            add_text(l, "\\\"");
        } else if (text[i] == '\\') {
            bool is_short = i + 1 < n && strchr("\"\\/bfnrt", text[i + 1]);
            bool is_long = i + 5 < n && text[i + 1] == 'u' &&
                           strspn(text + i + 2, "0123456789abcdefABCDEF") >= 4;
            length = is_quoted && is_short ? 2 : is_quoted && is_long ? 6 : 1;
            add(l, length == 1 ? "\\\\" : text + i, length == 1 ? 2 : length);
        } else {
            add(l, text + i, length);
        }
        i += length;
    }
}

static void add_json_pairs(line *l, const char *pairs)
{
    while (*pairs) {
        const char *key, *value;
        size_t key_bytes, value_bytes;
        bool is_quoted;
        pairs = next_pair(pairs, &key, &key_bytes, &value, &value_bytes, &is_quoted);
        if (!key_bytes) {
            pairs += *pairs != 0; /* a stray "=" */
            continue;
        }
        bool is_bare = !is_quoted && ((value_bytes == 4 && !strncmp(value, "true", 4)) ||
                                      (value_bytes == 5 && !strncmp(value, "false", 5)) ||
                                      is_json_number(value, value_bytes));
        /* A pair that does not fit is left out: a cut one would not be JSON. */
        if (l->used + 2 * (key_bytes + value_bytes) + 10 > sizeof l->text)
            break;
        add_text(l, ",\"");
        add_json_text(l, key, key_bytes, false);
        add_text(l, is_bare ? "\":" : "\":\"");
        add_json_text(l, value, value_bytes, is_quoted);
        add_text(l, is_bare ? "" : "\"");
    }
}

static void write_line(iso_log *log, iso_level level, const char *event, const char *pairs)
{
    line l = {.used = 0};
    bool json = log->json;
    uint64_t now = log->wall_ms ? log->wall_ms(log->clock_ctx) : 0;
    if (json)
        add_text(&l, "{");
    if (log->wall_ms) {
        add_text(&l, json ? "\"time\":\"" : "time=");
        add_time(&l, now);
        add_text(&l, json ? "\"," : " ");
    }
    add_text(&l, json ? "\"level\":\"" : "level=");
    add_text(&l, level_names[level]);
    if (log->program) {
        add_text(&l, json ? "\",\"program\":\"" : " program=");
        add_text(&l, log->program);
    }
    add_text(&l, json ? "\",\"event\":\"" : " event=");
    add_text(&l, event);
    if (json) {
        add_text(&l, "\"");
        add_json_pairs(&l, pairs);
        add_text(&l, "}");
    } else if (*pairs) {
        add_text(&l, " ");
        add_text(&l, pairs);
    }
    l.text[l.used++] = '\n';
    fwrite(l.text, 1, l.used, log->out);
    fflush(log->out);
}

/* ---- repeats ---- */

/* Events seen within their window; what does not fit is written without counting. */
typedef struct {
    uint64_t begin_ms;
    uint32_t repeats;
    char event[28]; /* empty: free */
} slot;

_Static_assert(SLOTS * sizeof(slot) <= sizeof((iso_log *)0)->opaque, "repeat counter too large");

/* Windows that are over: says how often the event came again. True if `event` is to be held back.
 */
static bool hold_back(iso_log *log, const char *event)
{
    if (!log->window_ms || !log->wall_ms || strlen(event) >= sizeof(((slot *)0)->event))
        return false;
    slot slots[SLOTS], *own = NULL, *vacant = NULL;
    memcpy(slots, log->opaque, sizeof slots);
    uint64_t now = log->wall_ms(log->clock_ctx);
    for (int i = 0; i < SLOTS; i++) {
        slot *s = &slots[i];
        /* A clock set back also ends the window: else it would stay open for that long. */
        if (*s->event && (now < s->begin_ms || now - s->begin_ms >= log->window_ms)) {
            if (s->repeats) {
                char pairs[96];
                snprintf(pairs, sizeof pairs, "of=%s count=%" PRIu32 " window_ms=%" PRIu64,
                         s->event, s->repeats, log->window_ms);
                write_line(log, ISO_LOG_INFO, "log_repeats", pairs);
            }
            *s = (slot){0};
        }
        if (!*s->event)
            vacant = s;
        else if (!strcmp(s->event, event))
            own = s;
    }
    if (own)
        own->repeats++;
    else if (vacant) {
        vacant->begin_ms = now;
        strcpy(vacant->event, event);
    }
    memcpy(log->opaque, slots, sizeof slots);
    return own != NULL;
}

void iso_log_event(iso_log *log, iso_level level, const char *event, const char *pairs, ...)
{
    if (!log || !log->out || level < log->level || hold_back(log, event))
        return;
    char text[LINE_BYTES];
    va_list ap;
    va_start(ap, pairs);
    vsnprintf(text, sizeof text, pairs, ap);
    va_end(ap);
    for (char *p = text; *p; p++) /* text that someone forgot to quote still is one line */
        if ((unsigned char)*p < 0x20 || *p == 0x7F)
            *p = '?';
    write_line(log, level, event, text);
}
