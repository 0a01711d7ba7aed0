/* Seam: time. Daemons read the system's clocks, the simulation a virtual one. */
#ifndef ISO_CORE_CLOCK_H
#define ISO_CORE_CLOCK_H

#include <stdint.h>

typedef uint64_t iso_time; /* milliseconds; in cores always monotonic unless the name says wall */

typedef struct {
    void *ctx;
    iso_time (*mono_ms)(void *ctx); /* never goes back; origin unspecified */
    iso_time (*wall_ms)(void *ctx); /* UTC since 1970; may jump */
} iso_clock;

/* The system's clocks (core/clock_system.c). */
iso_clock iso_clock_system(void);

#endif
