#include "core/clock.h"

#include <time.h>

static iso_time read_clock(clockid_t id)
{
    struct timespec t;
    clock_gettime(id, &t);
    return (iso_time)t.tv_sec * 1000 + (iso_time)t.tv_nsec / 1000000;
}

static iso_time mono_ms(void *ctx)
{
    (void)ctx;
    return read_clock(CLOCK_MONOTONIC);
}

static iso_time wall_ms(void *ctx)
{
    (void)ctx;
    return read_clock(CLOCK_REALTIME);
}

iso_clock iso_clock_system(void)
{
    return (iso_clock){.ctx = 0, .mono_ms = mono_ms, .wall_ms = wall_ms};
}
