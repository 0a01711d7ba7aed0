#include "cli/table.h"

#include "core/progress.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL_BYTES = 160 };

static const iso_json *look_up(const iso_json *o, const char *path)
{
    char key[64];
    while (o) {
        const char *dot = strchr(path, '.');
        size_t n = dot ? (size_t)(dot - path) : strlen(path);
        if (n >= sizeof key)
            return NULL;
        memcpy(key, path, n);
        key[n] = 0;
        o = iso_json_key(o, key);
        if (!dot)
            return o;
        path = dot + 1;
    }
    return NULL;
}

static void count_text(char *out, size_t size, int64_t v)
{
    char digits[24];
    int n = snprintf(digits, sizeof digits, "%lld", (long long)v);
    size_t used = 0;
    for (int i = 0; i < n && used + 2 < size; i++) {
        out[used++] = digits[i];
        int left = n - 1 - i;
        if (left && left % 3 == 0 && digits[i] != '-')
            out[used++] = ',';
    }
    out[used] = 0;
}

static void list_text(const iso_json *v, char *out, size_t size)
{
    size_t used = 0;
    out[0] = 0;
    for (size_t i = 0; i < iso_json_count(v); i++) {
        const char *s = iso_json_str(iso_json_at(v, i));
        int n = snprintf(out + used, size - used, "%s%s", i ? ", " : "", s ? s : "?");
        if (n < 0 || (size_t)n >= size - used)
            return;
        used += (size_t)n;
    }
}

static void cell_text(const iso_json *v, iso_cell cell, char *out, size_t size)
{
    double d;
    int64_t i;
    bool b;
    const char *s = iso_json_str(v);
    if (!v || iso_json_is_null(v))
        snprintf(out, size, "-");
    else if (s)
        snprintf(out, size, "%.*s", cell == ISO_CELL_ID ? 8 : CELL_BYTES - 1, s);
    else if (cell == ISO_CELL_SHARE && iso_json_num(v, &d))
        snprintf(out, size, "%.1f", 100.0 * d);
    else if (cell == ISO_CELL_BYTES && iso_json_num(v, &d))
        iso_bytes_text(out, (unsigned)size, d);
    else if (cell == ISO_CELL_AGO_MS && iso_json_num(v, &d))
        iso_duration_text(out, (unsigned)size, d / 1000.0);
    else if (cell == ISO_CELL_COUNT && iso_json_int(v, &i))
        count_text(out, size, i);
    else if (iso_json_int(v, &i))
        snprintf(out, size, "%lld", (long long)i);
    else if (iso_json_num(v, &d))
        snprintf(out, size, "%.4g", d);
    else if (iso_json_bool(v, &b))
        snprintf(out, size, "%s", b ? "yes" : "no");
    else if (iso_json_is_array(v))
        list_text(v, out, size);
    else
        snprintf(out, size, "%zu entries", iso_json_count(v));
}

static bool is_number(iso_cell c)
{
    return c != ISO_CELL_TEXT && c != ISO_CELL_ID;
}

void iso_table_print(const iso_json *rows, const iso_column *columns, size_t n)
{
    size_t count = iso_json_count(rows);
    if (!count) {
        printf("none\n");
        return;
    }
    size_t width[32];
    char text[CELL_BYTES];
    for (size_t c = 0; c < n; c++) {
        width[c] = strlen(columns[c].title);
        for (size_t r = 0; r < count; r++) {
            cell_text(look_up(iso_json_at(rows, r), columns[c].key), columns[c].cell, text,
                      sizeof text);
            if (strlen(text) > width[c])
                width[c] = strlen(text);
        }
    }
    for (size_t c = 0; c < n; c++)
        printf(is_number(columns[c].cell) ? "%*s%s" : "%-*s%s",
               c + 1 < n || is_number(columns[c].cell) ? (int)width[c] : 0, columns[c].title,
               c + 1 < n ? "  " : "\n");
    for (size_t r = 0; r < count; r++)
        for (size_t c = 0; c < n; c++) {
            cell_text(look_up(iso_json_at(rows, r), columns[c].key), columns[c].cell, text,
                      sizeof text);
            printf(is_number(columns[c].cell) ? "%*s%s" : "%-*s%s",
                   c + 1 < n || is_number(columns[c].cell) ? (int)width[c] : 0, text,
                   c + 1 < n ? "  " : "\n");
        }
}

void iso_record_print(const iso_json *object, const iso_column *columns, size_t n)
{
    size_t width = 0;
    char text[CELL_BYTES];
    for (size_t c = 0; c < n; c++)
        if (strlen(columns[c].title) > width)
            width = strlen(columns[c].title);
    for (size_t c = 0; c < n; c++) {
        cell_text(look_up(object, columns[c].key), columns[c].cell, text, sizeof text);
        printf("%-*s  %s\n", (int)width, columns[c].title, text);
    }
}

void iso_json_print(const iso_json *j)
{
    iso_buf b = {0};
    iso_error e;
    if (iso_json_dump(j, ISO_JSON_PRETTY, &b, &e))
        fprintf(stderr, "isofed: %s\n", e.text);
    else
        printf("%.*s%s", (int)b.size, (const char *)b.data,
               b.size && b.data[b.size - 1] == '\n' ? "" : "\n");
    iso_buf_free(&b);
}
