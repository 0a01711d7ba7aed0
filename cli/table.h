/* Aligned tables of JSON objects, for people; the same result goes out whole with --json. */
#ifndef ISO_CLI_TABLE_H
#define ISO_CLI_TABLE_H

#include "core/json.h"

typedef enum {
    ISO_CELL_TEXT,
    ISO_CELL_COUNT,  /* 1,234 */
    ISO_CELL_SHARE,  /* 0.914 as "91.4" */
    ISO_CELL_BYTES,  /* 9.8 MiB */
    ISO_CELL_AGO_MS, /* milliseconds as "14 min" */
    ISO_CELL_ID      /* first 8 characters of a hex id or fingerprint */
} iso_cell;

typedef struct {
    const char *key; /* "a.b" looks into nested objects */
    const char *title;
    iso_cell cell;
} iso_column;

/* Prints to stdout; "none" when the array is empty. Absent values are "-". */
void iso_table_print(const iso_json *rows, const iso_column *columns, size_t n);
/* One "title: value" line a column. */
void iso_record_print(const iso_json *object, const iso_column *columns, size_t n);
/* The whole value as pretty JSON. */
void iso_json_print(const iso_json *j);

#endif
