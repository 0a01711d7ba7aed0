/* Records of a store in memory, for tests of the pure cores: the operations of a transaction, and
 * the order in which a store gives rows back. Shared by tests/client and tests/coordinator. */
#ifndef ISO_TESTS_MEMORY_ROWS_H
#define ISO_TESTS_MEMORY_ROWS_H

#include "core/store.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

typedef struct {
    int table;
    uint8_t key[ISO_KEY_MAX_BYTES];
    size_t key_bytes;
    uint8_t *value; /* owned */
    size_t value_bytes;
} rig_row;

/* One operation; an INSERT of a key that is there fails the test. */
static inline void rig_rows_apply(rig_row *rows, size_t *count, size_t capacity, const iso_op *op)
{
    size_t at = 0;
    while (at < *count && (rows[at].table != op->table || rows[at].key_bytes != op->key_bytes ||
                           memcmp(rows[at].key, op->key, op->key_bytes) != 0))
        at++;
    bool is_there = at < *count;
    assert_false(op->kind == ISO_OP_INSERT && is_there);
    if (op->kind == ISO_OP_DELETE) {
        if (is_there) {
            free(rows[at].value);
            rows[at] = rows[--*count];
        }
        return;
    }
    if (!is_there) {
        assert_true(*count < capacity);
        rows[(*count)++] = (rig_row){.table = op->table, .key_bytes = op->key_bytes};
        memcpy(rows[at].key, op->key, op->key_bytes);
    }
    free(rows[at].value);
    rows[at].value = malloc(op->value_bytes + 1);
    assert_non_null(rows[at].value);
    memcpy(rows[at].value, op->value, op->value_bytes);
    rows[at].value_bytes = op->value_bytes;
}

static inline int rig_compare_rows(const void *x, const void *y)
{
    const rig_row *a = x, *b = y;
    size_t n = a->key_bytes < b->key_bytes ? a->key_bytes : b->key_bytes;
    if (a->table != b->table)
        return a->table - b->table;
    int c = memcmp(a->key, b->key, n);
    return c ? c : (int)a->key_bytes - (int)b->key_bytes;
}

/* By table, then bytewise by key. */
static inline void rig_rows_sort(rig_row *rows, size_t count)
{
    qsort(rows, count, sizeof *rows, rig_compare_rows);
}

static inline void rig_rows_free(rig_row *rows, size_t count)
{
    for (size_t i = 0; i < count; i++)
        free(rows[i].value);
}

#endif
