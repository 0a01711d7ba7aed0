#include "coordinator/lines.h"

#include "core/mem.h"
#include "core/wire.h"

#include <stdlib.h>
#include <string.h>

enum { WAITING_MESSAGES = 64, WAITING_BYTES = 4 << 20 };

static void id_key(iso_peer id, uint8_t key[16])
{
    memset(key, 0, 16);
    iso_put_u64(key, id);
}

iso_line *iso_lines_by_id(const iso_lines *l, iso_peer id)
{
    uint8_t key[16];
    id_key(id, key);
    return iso_index_get(&l->by_id, key);
}

iso_line *iso_lines_by_routing(const iso_lines *l, const uint8_t routing[16])
{
    return iso_index_get(&l->by_routing, routing);
}

iso_line *iso_lines_add(iso_lines *l, const uint8_t routing[16], const iso_peer_name *name)
{
    uint8_t key[16];
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 64;
        iso_line **wider = realloc(l->items, capacity * sizeof(iso_line *));
        if (!wider)
            return NULL;
        l->items = wider;
        l->capacity = capacity;
    }
    iso_line *line = iso_calloc(1, sizeof *line);
    if (!line)
        return NULL;
    line->id = ++l->next_id;
    line->name = *name;
    line->fd = -1;
    line->at = l->count;
    memcpy(line->routing, routing, 16);
    id_key(line->id, key);
    if (!iso_index_put(&l->by_routing, routing, line) || !iso_index_put(&l->by_id, key, line)) {
        iso_index_remove(&l->by_routing, routing);
        free(line);
        return NULL;
    }
    l->items[l->count++] = line;
    return line;
}

void iso_lines_drop(iso_lines *l, iso_line *line)
{
    uint8_t key[16];
    id_key(line->id, key);
    iso_index_remove(&l->by_routing, line->routing);
    iso_index_remove(&l->by_id, key);
    l->items[line->at] = l->items[--l->count];
    l->items[line->at]->at = line->at;
    if (l->gone_count == l->gone_capacity) {
        size_t capacity = l->gone_capacity ? l->gone_capacity * 2 : 64;
        iso_peer *wider = realloc(l->gone, capacity * sizeof *wider);
        if (wider) {
            l->gone = wider;
            l->gone_capacity = capacity;
        }
    }
    if (l->gone_count < l->gone_capacity)
        l->gone[l->gone_count++] = line->id;
    while (line->first)
        iso_line_pop(line);
    free(line);
}

bool iso_lines_next_gone(iso_lines *l, iso_peer *out)
{
    if (l->gone_count == 0)
        return false;
    *out = l->gone[--l->gone_count];
    return true;
}

void iso_lines_free(iso_lines *l)
{
    while (l->count)
        iso_lines_drop(l, l->items[l->count - 1]);
    iso_index_free(&l->by_routing);
    iso_index_free(&l->by_id);
    free(l->items);
    free(l->gone);
    *l = (iso_lines){0};
}

bool iso_line_push(iso_line *line, const void *head, size_t head_bytes, const void *body,
                   size_t body_bytes)
{
    size_t bytes = head_bytes + body_bytes;
    if (line->waiting_count >= WAITING_MESSAGES || line->waiting_bytes + bytes > WAITING_BYTES)
        return false;
    iso_waiting *w = malloc(sizeof *w + bytes);
    if (!w)
        return false;
    *w = (iso_waiting){.head_bytes = head_bytes, .body_bytes = body_bytes};
    memcpy(w->bytes, head, head_bytes);
    if (body_bytes)
        memcpy(w->bytes + head_bytes, body, body_bytes);
    if (line->last)
        line->last->next = w;
    else
        line->first = w;
    line->last = w;
    line->waiting_count++;
    line->waiting_bytes += bytes;
    return true;
}

void iso_line_pop(iso_line *line)
{
    iso_waiting *w = line->first;
    line->first = w->next;
    if (!line->first)
        line->last = NULL;
    line->waiting_count--;
    line->waiting_bytes -= w->head_bytes + w->body_bytes;
    free(w);
}
