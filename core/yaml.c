/* YAML: libyaml's events into a tree with line numbers.
 * specs/security.md 9.1 (what is refused) and 9.3 (ceilings). The event interface, and not
 * libyaml's documents, because it tells aliases, anchors and tags apart before anything is built
 * from them. The schema that fills structs stands in yaml_fill.c. */
#include "core/yaml.h"

#include "core/fsio.h"

#include <stdlib.h>
#include <string.h>
#include <yaml.h>

/* Keys are compared with all before them, hence their ceiling. */
enum { MAX_BYTES = 1024 * 1024, MAX_DEPTH = 16, MAX_KEYS = 10000 };

/* A map or list that is still open. */
typedef struct {
    iso_yaml *node;
    const char **keys;
    int *key_lines;
    const iso_yaml **items;
    size_t count, room;
    const char *key; /* of a map: read, its value not yet */
    int key_line;
} frame;

typedef struct {
    const char *what;
    iso_arena *arena;
    frame stack[MAX_DEPTH];
    int depth;
    iso_yaml *root;
    bool is_started; /* a document was seen */
    iso_error *e;
} builder;

static iso_err fail_at(builder *b, int line, const char *reason)
{
    return iso_fail(b->e, ISO_ERR_USAGE, "%s:%d: %s", b->what, line, reason);
}

static bool grow(frame *f)
{
    if (f->count < f->room)
        return true;
    size_t room = f->room ? 2 * f->room : 8;
    const char **keys = realloc(f->keys, room * sizeof *keys);
    if (keys)
        f->keys = keys;
    int *lines = realloc(f->key_lines, room * sizeof *lines);
    if (lines)
        f->key_lines = lines;
    const iso_yaml **items = realloc(f->items, room * sizeof *items);
    if (items)
        f->items = items;
    if (!keys || !lines || !items)
        return false;
    f->room = room;
    return true;
}

/* Hands a finished node to the map or list around it, or makes it the root. */
static iso_err attach(builder *b, iso_yaml *node)
{
    if (b->depth == 0) {
        b->root = node;
        return ISO_OK;
    }
    frame *f = &b->stack[b->depth - 1];
    if (!grow(f))
        return iso_nomem(b->e, f->room * 2 * sizeof *f->items);
    f->keys[f->count] = f->key;
    f->key_lines[f->count] = f->key_line;
    f->items[f->count++] = node;
    f->key = NULL;
    return ISO_OK;
}

static bool is_awaiting_key(const builder *b)
{
    const frame *f = b->depth ? &b->stack[b->depth - 1] : NULL;
    return f && f->node->kind == ISO_YAML_MAP && !f->key;
}

static iso_err take_key(builder *b, const char *key, int line)
{
    frame *f = &b->stack[b->depth - 1];
    if (!strcmp(key, "<<"))
        return fail_at(b, line, "merge keys (<<) are not read; write the keys out");
    if (f->count == MAX_KEYS)
        return iso_fail(b->e, ISO_ERR_USAGE, "%s:%d: more than %d keys in one map", b->what, line,
                        MAX_KEYS);
    for (size_t i = 0; i < f->count; i++)
        if (!strcmp(f->keys[i], key))
            return iso_fail(b->e, ISO_ERR_USAGE,
                            "%s:%d: key \"%.64s\" stands twice; first at line %d", b->what, line,
                            key, f->key_lines[i]);
    f->key = key;
    f->key_line = line;
    return ISO_OK;
}

static iso_err take_scalar(builder *b, const yaml_event_t *event, int line)
{
    const char *value = (const char *)event->data.scalar.value;
    size_t n = event->data.scalar.length;
    if (memchr(value, 0, n))
        return fail_at(b, line, "a NUL character in a value");
    char *text = iso_arena_alloc(b->arena, n + 1, 1);
    iso_yaml *node = iso_arena_calloc(b->arena, 1, sizeof *node);
    if (!text || !node)
        return iso_nomem(b->e, n + sizeof *node);
    memcpy(text, value, n);
    text[n] = 0;
    if (is_awaiting_key(b))
        return take_key(b, text, line);
    *node = (iso_yaml){.kind = ISO_YAML_SCALAR, .line = line, .scalar = text};
    return attach(b, node);
}

static iso_err open_container(builder *b, iso_yaml_kind kind, int line)
{
    if (is_awaiting_key(b))
        return fail_at(b, line, "a map or list cannot be a key");
    if (b->depth == MAX_DEPTH)
        return iso_fail(b->e, ISO_ERR_USAGE, "%s:%d: nested deeper than %d levels", b->what, line,
                        MAX_DEPTH);
    iso_yaml *node = iso_arena_calloc(b->arena, 1, sizeof *node);
    if (!node)
        return iso_nomem(b->e, sizeof *node);
    node->kind = kind;
    node->line = line;
    b->stack[b->depth++] = (frame){.node = node};
    return ISO_OK;
}

static void free_frame(frame *f)
{
    free(f->keys);
    free(f->key_lines);
    free(f->items);
    *f = (frame){0};
}

/* n items into the arena; NULL on exhaustion. */
static void *keep(iso_arena *arena, const void *from, size_t n, size_t item_bytes)
{
    void *to = iso_arena_alloc(arena, n, item_bytes);
    if (to && n)
        memcpy(to, from, n * item_bytes);
    return to;
}

static iso_err close_container(builder *b)
{
    frame *f = &b->stack[b->depth - 1];
    iso_yaml *node = f->node;
    bool is_kept = true;
    node->count = f->count;
    node->items = keep(b->arena, f->items, f->count, sizeof *f->items);
    if (node->kind == ISO_YAML_MAP) {
        node->keys = keep(b->arena, f->keys, f->count, sizeof *f->keys);
        node->key_lines = keep(b->arena, f->key_lines, f->count, sizeof *f->key_lines);
        is_kept = node->keys && node->key_lines;
    }
    if (!is_kept || !node->items)
        return iso_nomem(b->e, f->count * sizeof *f->items);
    free_frame(f);
    b->depth--;
    return attach(b, node);
}

static iso_err refuse_marks(builder *b, const yaml_char_t *anchor, const yaml_char_t *tag, int line)
{
    if (anchor)
        return fail_at(b, line, "anchors (&name) are not read; write the value out");
    if (tag)
        return fail_at(b, line, "tags (!name) are not read");
    return ISO_OK;
}

static iso_err take(builder *b, const yaml_event_t *event)
{
    int line = (int)event->start_mark.line + 1;
    iso_err err;
    switch (event->type) {
    case YAML_DOCUMENT_START_EVENT:
        if (b->is_started)
            return fail_at(b, line, "a second document; one file holds one");
        b->is_started = true;
        if (event->data.document_start.version_directive ||
            event->data.document_start.tag_directives.start !=
                event->data.document_start.tag_directives.end)
            return fail_at(b, line, "directives (%) are not read");
        return ISO_OK;
    case YAML_ALIAS_EVENT:
        return fail_at(b, line, "aliases (*name) are not read; write the value out");
    case YAML_SCALAR_EVENT:
        err = refuse_marks(b, event->data.scalar.anchor, event->data.scalar.tag, line);
        return err ? err : take_scalar(b, event, line);
    case YAML_MAPPING_START_EVENT:
        err =
            refuse_marks(b, event->data.mapping_start.anchor, event->data.mapping_start.tag, line);
        return err ? err : open_container(b, ISO_YAML_MAP, line);
    case YAML_SEQUENCE_START_EVENT:
        err = refuse_marks(b, event->data.sequence_start.anchor, event->data.sequence_start.tag,
                           line);
        return err ? err : open_container(b, ISO_YAML_LIST, line);
    case YAML_MAPPING_END_EVENT:
    case YAML_SEQUENCE_END_EVENT:
        return close_container(b);
    default:
        return ISO_OK;
    }
}

static iso_err syntax_error(builder *b, const yaml_parser_t *parser, size_t size)
{
    if (parser->error == YAML_MEMORY_ERROR)
        return iso_nomem(b->e, size);
    if (parser->error == YAML_READER_ERROR) /* the reader knows the byte, not the line */
        return iso_fail(b->e, ISO_ERR_USAGE, "%s: byte %zu: %s", b->what, parser->problem_offset,
                        parser->problem ? parser->problem : "not UTF-8");
    return iso_fail(b->e, ISO_ERR_USAGE, "%s:%zu: %s%s%s", b->what, parser->problem_mark.line + 1,
                    parser->context ? parser->context : "", parser->context ? ", " : "",
                    parser->problem ? parser->problem : "not YAML");
}

iso_err iso_yaml_parse(const void *text, size_t size, const char *what, iso_arena *arena,
                       const iso_yaml **out, iso_error *e)
{
    builder b = {.what = what, .arena = arena, .e = e};
    yaml_parser_t parser;
    *out = NULL;
    if (size > MAX_BYTES)
        return iso_fail(e, ISO_ERR_USAGE, "%s: %zu bytes; at most %d are read", what, size,
                        MAX_BYTES);
    if (!yaml_parser_initialize(&parser))
        return iso_nomem(e, sizeof parser);
    yaml_parser_set_encoding(&parser, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser, size ? text : (const unsigned char *)"", size);
    iso_err err = ISO_OK;
    for (bool is_over = false; !err && !is_over;) {
        yaml_event_t event;
        if (!yaml_parser_parse(&parser, &event)) {
            err = syntax_error(&b, &parser, size);
            break;
        }
        err = take(&b, &event);
        is_over = event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    while (b.depth)
        free_frame(&b.stack[--b.depth]);
    if (err)
        return err;
    if (!b.root) { /* nothing but comments: every key has its default */
        b.root = iso_arena_calloc(arena, 1, sizeof *b.root);
        if (!b.root)
            return iso_nomem(e, sizeof *b.root);
        b.root->kind = ISO_YAML_MAP;
        b.root->line = 1;
    }
    *out = b.root;
    return ISO_OK;
}

iso_err iso_yaml_read(const char *path, iso_arena *arena, const iso_yaml **out, iso_error *e)
{
    iso_buf text = {0};
    *out = NULL;
    iso_err err = iso_read_file(path, MAX_BYTES, &text, e);
    if (err == ISO_ERR_DATA) { /* a configuration that is not there is wrong usage, not bad data */
        err = ISO_ERR_USAGE;
        if (e)
            e->code = err;
    }
    if (!err)
        err = iso_yaml_parse(text.data, text.size, path, arena, out, e);
    iso_buf_free(&text);
    return err;
}

const iso_yaml *iso_yaml_key(const iso_yaml *map, const char *key)
{
    if (!map || map->kind != ISO_YAML_MAP)
        return NULL;
    for (size_t i = 0; i < map->count; i++)
        if (!strcmp(map->keys[i], key))
            return map->items[i];
    return NULL;
}
