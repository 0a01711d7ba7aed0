/* What happens next: a 4-ary heap of events ordered by virtual time, then by the order in which
 * they were put there. Nothing else decides an order, so a seed gives one history. */
#ifndef ISO_SIM_HEAP_H
#define ISO_SIM_HEAP_H

#include "core/err.h"

#include <stdbool.h>
#include <stdint.h>

typedef struct {
    uint64_t at_us; /* virtual time */
    uint64_t order; /* filled in by push */
    uint32_t kind;  /* the world's */
    uint32_t host;
    uint64_t tag;
    void *data;
} iso_sim_event;

typedef struct {
    iso_sim_event *items; /* owned */
    size_t count, capacity;
    uint64_t pushed;
} iso_sim_heap;

bool iso_sim_heap_push(iso_sim_heap *h, iso_sim_event ev); /* false on exhaustion */
bool iso_sim_heap_pop(iso_sim_heap *h, iso_sim_event *out);
void iso_sim_heap_free(iso_sim_heap *h);

#endif
