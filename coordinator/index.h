/* Finds things by 16-byte name: open addressing, linear probing, backward-shift deletion. */
#ifndef ISO_COORDINATOR_INDEX_H
#define ISO_COORDINATOR_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct {
    uint8_t key[16];
    void *value; /* NULL: free slot */
} iso_index_slot;

typedef struct {
    iso_index_slot *slots;
    size_t capacity; /* power of two, or 0 */
    size_t count;
} iso_index;

/* False on exhaustion. An existing key gets the new value. */
bool iso_index_put(iso_index *x, const uint8_t key[16], void *value);
void *iso_index_get(const iso_index *x, const uint8_t key[16]);
void iso_index_remove(iso_index *x, const uint8_t key[16]);
void iso_index_free(iso_index *x);

#endif
