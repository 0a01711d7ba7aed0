/* Command lines from a table of options: parsing, help on one screen, errors that name the nearest
 * option. Values are read as configurations read theirs (core/yaml.h). */
#include "core/args.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { MAX_ROWS = 64, HELP_COLUMN = 26, HELP_WIDTH = 79 };

/* ---- help ---- */

/* "  -o, --out FILE"; returns its width. */
static int head_text(char *out, size_t bytes, const iso_arg_row *row)
{
    char letter[8] = "    ";
    if (row->letter)
        snprintf(letter, sizeof letter, "-%c, ", row->letter);
    return snprintf(out, bytes, "  %s--%s%s%s", letter, row->name, row->value_name ? " " : "",
                    row->value_name ? row->value_name : "");
}

/* " [16]" for what holds when the option is not given; empty where there is nothing to say. */
static void default_text(char *out, size_t bytes, const iso_arg_row *row, const void *options)
{
    const char *field = (const char *)options + row->offset, *s;
    int64_t i;
    uint64_t u;
    double d;
    int index;
    *out = 0;
    switch (row->type) {
    case ISO_ARG_STRING:
        memcpy(&s, field, sizeof s);
        if (s && *s)
            snprintf(out, bytes, " [%s]", s);
        break;
    case ISO_ARG_INT:
        memcpy(&i, field, sizeof i);
        snprintf(out, bytes, " [%" PRId64 "]", i);
        break;
    case ISO_ARG_DOUBLE:
        memcpy(&d, field, sizeof d);
        snprintf(out, bytes, " [%g]", d);
        break;
    case ISO_ARG_BYTES:
        memcpy(&u, field, sizeof u);
        if (u)
            snprintf(out, bytes, u % (1u << 20) ? " [%" PRIu64 "]" : " [%" PRIu64 "MiB]",
                     u % (1u << 20) ? u : u >> 20);
        break;
    case ISO_ARG_ENUM:
        memcpy(&index, field, sizeof index);
        if (index >= 0)
            snprintf(out, bytes, " [%s]", row->choices[index]);
        break;
    default:
        break;
    }
}

/* Words of `text` between HELP_COLUMN and HELP_WIDTH; the cursor stands at column `at`. */
static void print_wrapped(const char *text, int at)
{
    if (at > HELP_COLUMN - 2) {
        printf("\n");
        at = 0;
    }
    printf("%*s", HELP_COLUMN - at, "");
    at = HELP_COLUMN;
    while (*text) {
        int n = (int)strcspn(text, " ");
        if (at > HELP_COLUMN && at + n > HELP_WIDTH) {
            printf("\n%*s", HELP_COLUMN, "");
            at = HELP_COLUMN;
        }
        printf("%.*s", n, text);
        at += n;
        text += n;
        if (*text == ' ') {
            text++;
            if (at < HELP_WIDTH && *text)
                printf(" ");
            at++;
        }
    }
    printf("\n");
}

static void print_row(const iso_arg_row *row, const void *options)
{
    char head[96], value[96] = "", range[64] = "", choices[160] = "", text[512];
    int at = head_text(head, sizeof head, row);
    printf("%s", head);
    if (options)
        default_text(value, sizeof value, row, options);
    if (row->min != 0 || row->max != 0) {
        strcpy(range, ", ");
        iso_range_text(range + 2, sizeof range - 2, row->min, row->max);
    }
    size_t used = 0;
    for (size_t i = 0; row->type == ISO_ARG_ENUM && row->choices[i] && used < sizeof choices; i++)
        used += (size_t)snprintf(choices + used, sizeof choices - used, "%s%s", i ? ", " : ": ",
                                 row->choices[i]);
    snprintf(text, sizeof text, "%s%s%s%s", row->help, choices, range, value);
    print_wrapped(text, at);
}

static void print_help(const iso_arg_spec *spec, const void *options)
{
    static const iso_arg_row help = {.name = "help", .letter = 'h', .help = "this text"};
    printf("%s\n\nusage: %s\n\noptions:\n", spec->summary, spec->usage);
    for (const iso_arg_row *row = spec->rows; row->name; row++)
        print_row(row, options);
    print_row(&help, NULL);
    if (spec->example)
        printf("\nexample:\n  %s\n", spec->example);
}

void iso_args_help(const iso_arg_spec *spec)
{
    print_help(spec, NULL);
}

/* ---- values ---- */

static iso_err bad_value(const iso_arg_row *row, const char *value, const char *kind, iso_error *e)
{
    char range[64] = "";
    if (row->min != 0 || row->max != 0) {
        strcpy(range, ", ");
        iso_range_text(range + 2, sizeof range - 2, row->min, row->max);
    }
    return iso_fail(e, ISO_ERR_USAGE, "--%s is \"%.64s\"; expected %s%s", row->name, value, kind,
                    range);
}

static iso_err set_enum(const iso_arg_row *row, const char *value, int *out, iso_error *e)
{
    char right[160] = "one of";
    size_t n = 0, used = strlen(right);
    for (; row->choices[n]; n++) {
        if (!strcmp(row->choices[n], value)) {
            *out = (int)n;
            return ISO_OK;
        }
        if (used < sizeof right)
            used += (size_t)snprintf(right + used, sizeof right - used, " %s", row->choices[n]);
    }
    const char *near = iso_nearest(value, row->choices, n);
    if (near)
        snprintf(right, sizeof right, "%s", near);
    return bad_value(row, value, right, e);
}

/* The argument is cut at its commas in place: argv belongs to the program. */
static iso_err add_items(const iso_arg_row *row, char *value, iso_arg_list *list, iso_error *e)
{
    for (char *next = value; next;) {
        char *comma = strchr(next, ',');
        if (comma)
            *comma = 0;
        if (!*next)
            return iso_fail(e, ISO_ERR_USAGE, "--%s has an empty item", row->name);
        if (list->count == sizeof list->items / sizeof *list->items)
            return iso_fail(e, ISO_ERR_USAGE, "--%s takes at most %zu items", row->name,
                            sizeof list->items / sizeof *list->items);
        list->items[list->count++] = next;
        next = comma ? comma + 1 : NULL;
    }
    return ISO_OK;
}

/* `is_first`: a list option given on the command line replaces its default. */
static iso_err set_value(const iso_arg_row *row, char *value, bool is_first, void *field,
                         iso_error *e)
{
    int64_t i;
    uint64_t u;
    double d;
    const char *text = value;
    switch (row->type) {
    case ISO_ARG_FLAG:
        *(bool *)field = true;
        return ISO_OK;
    case ISO_ARG_STRING:
        memcpy(field, &text, sizeof text);
        return ISO_OK;
    case ISO_ARG_INT:
        if (!iso_int_parse(value, &i) || !iso_in_range((double)i, row->min, row->max))
            return bad_value(row, value, "a whole number", e);
        memcpy(field, &i, sizeof i);
        return ISO_OK;
    case ISO_ARG_DOUBLE:
        if (!iso_double_parse(value, &d) || !iso_in_range(d, row->min, row->max))
            return bad_value(row, value, "a number", e);
        memcpy(field, &d, sizeof d);
        return ISO_OK;
    case ISO_ARG_BYTES:
        if (!iso_bytes_parse(value, &u) || !iso_in_range((double)u, row->min, row->max))
            return bad_value(row, value, "a size such as 64MiB", e);
        memcpy(field, &u, sizeof u);
        return ISO_OK;
    case ISO_ARG_ENUM:
        return set_enum(row, value, field, e);
    default:
        if (is_first)
            ((iso_arg_list *)field)->count = 0;
        return add_items(row, value, field, e);
    }
}

/* ---- parsing ---- */

typedef struct {
    const iso_arg_spec *spec;
    int argc, at;
    char **argv;
    void *options;
    bool is_seen[MAX_ROWS];
    iso_error *e;
} parser;

static iso_err unknown(const parser *p, const char *name, size_t length)
{
    const char *names[MAX_ROWS + 1];
    char word[64];
    size_t n = 0;
    for (; p->spec->rows[n].name && n < MAX_ROWS; n++)
        names[n] = p->spec->rows[n].name;
    names[n++] = "help";
    snprintf(word, sizeof word, "%.*s", (int)length, name);
    const char *near = iso_nearest(word, names, n);
    return iso_fail(p->e, ISO_ERR_USAGE, "unknown option \"--%s\"%s%s%s", word,
                    near ? "; did you mean \"--" : "; --help lists them", near ? near : "",
                    near ? "\"?" : "");
}

/* Given twice, the last one counts: scripts append to what they were given. Sets the option of
 * `row`; `value` is what stood after "=", or NULL: then the next word. */
static iso_err take(parser *p, const iso_arg_row *row, char *value)
{
    size_t index = (size_t)(row - p->spec->rows);
    assert(index < MAX_ROWS);
    if (row->type == ISO_ARG_FLAG) {
        if (value)
            return iso_fail(p->e, ISO_ERR_USAGE, "--%s takes no value", row->name);
    } else if (!value) {
        if (p->at == p->argc)
            return iso_fail(p->e, ISO_ERR_USAGE, "--%s needs a value%s%s", row->name,
                            row->value_name ? ": " : "", row->value_name ? row->value_name : "");
        value = p->argv[p->at++];
    }
    bool is_first = !p->is_seen[index];
    p->is_seen[index] = true;
    return set_value(row, value, is_first, (char *)p->options + row->offset, p->e);
}

static iso_err take_long(parser *p, char *name)
{
    char *equals = strchr(name, '=');
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    for (const iso_arg_row *row = p->spec->rows; row->name; row++)
        if (strlen(row->name) == n && !strncmp(row->name, name, n))
            return take(p, row, equals ? equals + 1 : NULL);
    return unknown(p, name, n);
}

/* "-v", "-qv", "-o FILE", "-oFILE" */
static iso_err take_letters(parser *p, char *letters)
{
    for (; *letters; letters++) {
        const iso_arg_row *row = p->spec->rows;
        while (row->name && row->letter != *letters)
            row++;
        if (!row->name)
            return iso_fail(p->e, ISO_ERR_USAGE, "unknown option \"-%c\"; --help lists them",
                            *letters);
        bool is_flag = row->type == ISO_ARG_FLAG;
        iso_err err = take(p, row, is_flag || !letters[1] ? NULL : letters + 1);
        if (err || !is_flag)
            return err;
    }
    return ISO_OK;
}

static iso_err take_word(parser *p, char *word, iso_arg_list *words)
{
    size_t most = sizeof words->items / sizeof *words->items;
    if (p->spec->max_words < most)
        most = p->spec->max_words;
    if (words->count >= most && most == 0)
        return iso_fail(p->e, ISO_ERR_USAGE, "unexpected \"%.64s\"; usage: %s", word,
                        p->spec->usage);
    if (words->count >= most)
        return iso_fail(p->e, ISO_ERR_USAGE, "\"%.64s\" is one too many; usage: %s", word,
                        p->spec->usage);
    words->items[words->count++] = word;
    return ISO_OK;
}

/* Defaults that an earlier option overwrote must not be shown as defaults: the help is looked for
 * before anything is set. Only values of options may hide it. */
static bool wants_help(const iso_arg_spec *spec, int argc, char **argv)
{
    for (int i = 1; i < argc && strcmp(argv[i], "--") != 0; i++) {
        if (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))
            return true;
        for (const iso_arg_row *row = spec->rows; row->name; row++) {
            bool is_it =
                (!strncmp(argv[i], "--", 2) && !strcmp(argv[i] + 2, row->name)) ||
                (row->letter && argv[i][0] == '-' && argv[i][1] == row->letter && !argv[i][2]);
            if (is_it && row->type != ISO_ARG_FLAG)
                i++;
            if (is_it)
                break;
        }
    }
    return false;
}

iso_err iso_args_parse(const iso_arg_spec *spec, int argc, char **argv, void *options,
                       iso_arg_list *words, bool *is_done, iso_error *e)
{
    parser p = {.spec = spec, .argc = argc, .at = 1, .argv = argv, .options = options, .e = e};
    iso_err err = ISO_OK;
    bool is_ended = false;
    words->count = 0;
    *is_done = wants_help(spec, argc, argv);
    if (*is_done) {
        print_help(spec, options);
        return ISO_OK;
    }
    while (p.at < argc && !err) {
        char *word = argv[p.at++];
        if (is_ended || word[0] != '-' || !word[1])
            err = take_word(&p, word, words);
        else if (!strcmp(word, "--"))
            is_ended = true;
        else if (word[1] == '-')
            err = take_long(&p, word + 2);
        else
            err = take_letters(&p, word + 1);
    }
    if (!err && words->count < spec->min_words)
        err = iso_fail(e, ISO_ERR_USAGE, "%s is missing; usage: %s",
                       words->count ? "an argument" : "the argument", spec->usage);
    return err;
}
