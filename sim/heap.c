#include "sim/heap.h"

#include <stdlib.h>

static inline bool is_before(const iso_sim_event *a, const iso_sim_event *b)
{
    return a->at_us < b->at_us || (a->at_us == b->at_us && a->order < b->order);
}

bool iso_sim_heap_push(iso_sim_heap *h, iso_sim_event ev)
{
    if (h->count == h->capacity) {
        size_t capacity = h->capacity ? 2 * h->capacity : 1024;
        iso_sim_event *items = realloc(h->items, capacity * sizeof *items);
        if (!items)
            return false;
        h->items = items;
        h->capacity = capacity;
    }
    ev.order = h->pushed++;
    size_t i = h->count++;
    while (i > 0) {
        size_t parent = (i - 1) / 4;
        if (!is_before(&ev, &h->items[parent]))
            break;
        h->items[i] = h->items[parent];
        i = parent;
    }
    h->items[i] = ev;
    return true;
}

bool iso_sim_heap_pop(iso_sim_heap *h, iso_sim_event *out)
{
    if (h->count == 0)
        return false;
    *out = h->items[0];
    iso_sim_event last = h->items[--h->count];
    size_t i = 0;
    for (;;) {
        size_t child = 4 * i + 1, least = child;
        if (child >= h->count)
            break;
        size_t end = child + 4 < h->count ? child + 4 : h->count;
        for (size_t k = child + 1; k < end; k++)
            if (is_before(&h->items[k], &h->items[least]))
                least = k;
        if (!is_before(&h->items[least], &last))
            break;
        h->items[i] = h->items[least];
        i = least;
    }
    h->items[i] = last;
    return true;
}

void iso_sim_heap_free(iso_sim_heap *h)
{
    free(h->items);
    *h = (iso_sim_heap){0};
}
