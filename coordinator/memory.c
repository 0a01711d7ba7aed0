/* The watchdog of memory (S46): an enrolled site can make libzmq hold a message that never ends
 * (T9), which nothing in its stable API prevents. So the process looks at its own size each second:
 * above three quarters of the ceiling the newest connections without chunks under way go, above
 * nine tenths all but those whose update is being made durable. Each is named in the log. */
#include "coordinator/shell.h"

#include <stdio.h>
#include <unistd.h>

enum { WATCH_MS = 1000, CUT_A_SECOND = 16 };

uint64_t iso_shell_resident_bytes(void)
{
    unsigned long long all = 0, resident = 0;
    FILE *f = fopen("/proc/self/statm", "re");
    if (f && fscanf(f, "%llu %llu", &all, &resident) != 2)
        resident = 0;
    if (f)
        fclose(f);
    return resident * (uint64_t)sysconf(_SC_PAGESIZE);
}

typedef struct {
    iso_shell *s;
    bool is_urgent;
} watch;

static bool may_cut(void *arg, iso_peer peer, const iso_peer_name *name)
{
    const watch *w = arg;
    char user[33];
    iso_coord_busy busy = iso_coord_peer_busy(w->s->core, peer);
    if (busy == ISO_BUSY_STORING || (busy == ISO_BUSY_UPLOADING && !w->is_urgent))
        return false;
    iso_hex(user, name->id, name->kind == ISO_PEER_TOKEN ? 4 : 16);
    iso_log_event(w->s->log, ISO_LOG_WARN, "memory_cut", "peer=%llu user=%c:%s",
                  (unsigned long long)peer, name->kind == ISO_PEER_TOKEN ? 't' : 's', user);
    return true;
}

void iso_shell_watch_memory(iso_shell *s)
{
    iso_time now = s->clock.mono_ms(s->clock.ctx);
    if (s->watched && now - s->watched < WATCH_MS)
        return;
    s->watched = now;
    uint64_t have = iso_shell_resident_bytes(), most = s->config.memory_bytes;
    if (have < most / 4 * 3)
        return;
    watch w = {.s = s, .is_urgent = have >= most / 10 * 9};
    size_t cut =
        iso_server_cut_newest(s->server, may_cut, &w, w.is_urgent ? SIZE_MAX : CUT_A_SECOND);
    if (cut)
        iso_log_event(s->log, ISO_LOG_WARN, "memory_high", "bytes=%llu ceiling=%llu cut=%zu",
                      (unsigned long long)have, (unsigned long long)most, cut);
}
