#include "core/progress.h"

#include <math.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { REDRAW_MS = 100, BAR = 24, RATE_AFTER_MS = 500 };

static uint64_t now_ms(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void iso_duration_text(char *out, unsigned out_bytes, double seconds)
{
    if (!isfinite(seconds) || seconds < 0) {
        snprintf(out, out_bytes, "?");
    } else if (seconds < 0.9995) {
        snprintf(out, out_bytes, "%.0f ms", seconds * 1e3);
    } else if (seconds < 59.95) {
        snprintf(out, out_bytes, "%.1f s", seconds);
    } else {
        /* Rounded once, then taken apart, so that no "60 s" appears. */
        unsigned long long s = (unsigned long long)llround(fmin(seconds, 1e15));
        if (s < 3600)
            snprintf(out, out_bytes, "%llu min %02llu s", s / 60, s % 60);
        else if (s < 86400)
            snprintf(out, out_bytes, "%llu h %02llu min", s / 3600, s % 3600 / 60);
        else
            snprintf(out, out_bytes, "%llu d %02llu h", s / 86400, s % 86400 / 3600);
    }
}

void iso_bytes_text(char *out, unsigned out_bytes, double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    size_t unit = 0;
    while (fabs(bytes) >= 1023.95 && unit + 1 < sizeof units / sizeof *units) {
        bytes /= 1024;
        unit++;
    }
    snprintf(out, out_bytes, unit ? "%.1f %s" : "%.0f %s", bytes, units[unit]);
}

/* Three digits at least, none too many: "9.81", "98.1", "981", "9810". */
static void rate_text(char *out, unsigned bytes, double rate)
{
    snprintf(out, bytes, "%.*f", rate < 10 ? 2 : rate < 100 ? 1 : 0, rate);
}

static void draw(const iso_progress *p, double done, uint64_t now)
{
    char bar[BAR + 3] = {0}, share[16] = "", rate[32] = "", left[48] = "", time[32];
    double seconds = (double)(now - p->start_ms) / 1e3;
    double part = p->total > 0 ? fmin(fmax(done / p->total, 0), 1) : 0;
    if (p->total > 0) {
        int full = (int)(part * BAR);
        bar[0] = '[';
        for (int i = 0; i < BAR; i++)
            bar[1 + i] = i < full ? '#' : '.';
        bar[1 + BAR] = ']';
        snprintf(share, sizeof share, " %3.0f%%", floor(part * 100));
    }
    if (now - p->start_ms >= RATE_AFTER_MS && done > 0) {
        rate_text(rate, sizeof rate, done / seconds);
        if (p->total > 0) {
            iso_duration_text(time, sizeof time, seconds * (p->total - done) / done);
            snprintf(left, sizeof left, ", %s left", time);
        }
    }
    fprintf(stderr, "\r%s %s%s", p->what, bar, share);
    if (p->total <= 0)
        fprintf(stderr, "%.0f %s", done, p->unit);
    if (*rate)
        fprintf(stderr, "  %s %s/s%s", rate, p->unit, left);
    fprintf(stderr, "%s%s\x1b[K", *p->note ? "  " : "", p->note);
    fflush(stderr);
}

static void set_note(iso_progress *p, const char *note)
{
    if (note)
        snprintf(p->note, sizeof p->note, "%s", note);
}

void iso_progress_start(iso_progress *p, const char *what, const char *unit, double total,
                        bool quiet)
{
    *p = (iso_progress){.what = what, .unit = unit, .total = total};
    p->is_active = !quiet && isatty(STDERR_FILENO);
    p->start_ms = now_ms();
    p->last_ms = p->start_ms;
    if (p->is_active)
        draw(p, 0, p->start_ms);
}

void iso_progress_update(iso_progress *p, double done, const char *note)
{
    if (!p->is_active)
        return;
    set_note(p, note);
    uint64_t now = now_ms();
    if (now - p->last_ms < REDRAW_MS)
        return;
    p->last_ms = now;
    draw(p, done, now);
}

void iso_progress_end(iso_progress *p, double done)
{
    if (!p->is_active)
        return;
    char time[32], rate[32] = "";
    double seconds = (double)(now_ms() - p->start_ms) / 1e3;
    iso_duration_text(time, sizeof time, seconds);
    if (seconds > 0)
        rate_text(rate, sizeof rate, done / seconds);
    fprintf(stderr, "\r%s: %.0f %s in %s", p->what, done, p->unit, time);
    if (*rate)
        fprintf(stderr, ", %s %s/s", rate, p->unit);
    fprintf(stderr, "%s%s\x1b[K\n", *p->note ? ", " : "", p->note);
    p->is_active = false;
}
