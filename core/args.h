/* Command lines: a table of options gives parsing, help and errors that name the nearest option. */
#ifndef ISO_CORE_ARGS_H
#define ISO_CORE_ARGS_H

#include "core/yaml.h"

typedef enum {
    ISO_ARG_FLAG,   /* bool */
    ISO_ARG_STRING, /* const char * */
    ISO_ARG_INT,    /* int64_t, min..max */
    ISO_ARG_DOUBLE, /* double, min..max */
    ISO_ARG_ENUM,   /* int, index in choices */
    ISO_ARG_LIST,   /* iso_arg_list: option may be repeated, or values separated by commas */
    ISO_ARG_BYTES   /* uint64_t */
} iso_arg_type;

typedef struct {
    const char *items[256];
    size_t count;
} iso_arg_list;

typedef struct {
    const char *name; /* "rank" for --rank */
    char letter;      /* 'o' for -o, or 0 */
    iso_arg_type type;
    size_t offset;          /* in the options struct */
    const char *value_name; /* "N" in the help */
    const char *help;       /* one line */
    double min, max;        /* both 0: unbounded */
    const char *const *choices;
} iso_arg_row;

typedef struct {
    const char *usage;           /* "isofed merge [options] ADAPTER..." */
    const char *summary;         /* one line */
    const char *example;         /* a command that works */
    const iso_arg_row *rows;     /* ends with name NULL */
    size_t min_words, max_words; /* positional arguments */
} iso_arg_spec;

/* Fills `options` (defaults already in it; the help shows them) and `words`. --help prints to
 * stdout and sets *is_done. Unknown option: ISO_ERR_USAGE naming the nearest. "--" ends options;
 * --name=value works. */
iso_err iso_args_parse(const iso_arg_spec *spec, int argc, char **argv, void *options,
                       iso_arg_list *words, bool *is_done, iso_error *e) ISO_MUST_CHECK;
void iso_args_help(const iso_arg_spec *spec);

#endif
