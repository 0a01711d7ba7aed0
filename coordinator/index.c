/* Keys are digests or random ids already, so their first eight bytes are a good hash; peers'
 * numbers are small and get one multiplication. */
#include "coordinator/index.h"

#include "core/mem.h"

#include <stdlib.h>
#include <string.h>

static size_t home_of(const iso_index *x, const uint8_t key[16])
{
    uint64_t h = (iso_get_u64(key) ^ iso_get_u64(key + 8)) * 0x9e3779b97f4a7c15u;
    return (size_t)(h >> 32) & (x->capacity - 1);
}

static bool grow(iso_index *x)
{
    iso_index bigger = {.capacity = x->capacity ? x->capacity * 2 : 16};
    bigger.slots = iso_calloc(bigger.capacity, sizeof *bigger.slots);
    if (!bigger.slots)
        return false;
    for (size_t i = 0; i < x->capacity; i++)
        if (x->slots[i].value)
            iso_index_put(&bigger, x->slots[i].key, x->slots[i].value);
    free(x->slots);
    *x = bigger;
    return true;
}

bool iso_index_put(iso_index *x, const uint8_t key[16], void *value)
{
    if (x->count * 4 >= x->capacity * 3 && !grow(x))
        return false;
    size_t i = home_of(x, key);
    while (x->slots[i].value && memcmp(x->slots[i].key, key, 16) != 0)
        i = (i + 1) & (x->capacity - 1);
    if (!x->slots[i].value)
        x->count++;
    memcpy(x->slots[i].key, key, 16);
    x->slots[i].value = value;
    return true;
}

static size_t find(const iso_index *x, const uint8_t key[16])
{
    if (x->capacity == 0)
        return SIZE_MAX;
    for (size_t i = home_of(x, key); x->slots[i].value; i = (i + 1) & (x->capacity - 1))
        if (memcmp(x->slots[i].key, key, 16) == 0)
            return i;
    return SIZE_MAX;
}

void *iso_index_get(const iso_index *x, const uint8_t key[16])
{
    size_t i = find(x, key);
    return i == SIZE_MAX ? NULL : x->slots[i].value;
}

void iso_index_remove(iso_index *x, const uint8_t key[16])
{
    size_t hole = find(x, key), mask = x->capacity - 1;
    if (hole == SIZE_MAX)
        return;
    for (size_t i = (hole + 1) & mask; x->slots[i].value; i = (i + 1) & mask) {
        size_t home = home_of(x, x->slots[i].key);
        /* It may move into the hole unless its home lies between the hole and itself. */
        if (((i - home) & mask) >= ((i - hole) & mask)) {
            x->slots[hole] = x->slots[i];
            hole = i;
        }
    }
    x->slots[hole] = (iso_index_slot){0};
    x->count--;
}

void iso_index_free(iso_index *x)
{
    free(x->slots);
    *x = (iso_index){0};
}
