#include "cli/admin_command.h"

#include "cli/admin_client.h"
#include "cli/command.h"
#include "core/args.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    const char *dir, *reason, *site;
    iso_arg_list tasks;
    int64_t hours;
    bool json, force;
} options;

static const iso_arg_row rows[] = {
    {"dir", 'd', ISO_ARG_STRING, offsetof(options, dir), "DIR",
     "the daemon's folder (default: $ISOFED_DIR, else /var/lib/isofed)", 0, 0, NULL},
    {"reason", 'r', ISO_ARG_STRING, offsetof(options, reason), "TEXT", "why, for the audit log", 0,
     0, NULL},
    {"tasks", 't', ISO_ARG_LIST, offsetof(options, tasks), "A,B", "names of tasks", 0, 0, NULL},
    {"site", 's', ISO_ARG_STRING, offsetof(options, site), "NAME", "name of a site", 0, 0, NULL},
    {"hours", 0, ISO_ARG_INT, offsetof(options, hours), "N", "how long a token lives", 1, 720,
     NULL},
    {"force", 0, ISO_ARG_FLAG, offsetof(options, force), NULL, "do it in spite of the warning", 0,
     0, NULL},
    {"json", 0, ISO_ARG_FLAG, offsetof(options, json), NULL, "print the whole answer as JSON", 0, 0,
     NULL},
    {0},
};

static const iso_admin_verb *find_verb(const iso_admin_command *c, const char *name, iso_error *e)
{
    const char *names[32];
    size_t n = 0;
    for (const iso_admin_verb *v = c->verbs; v->verb; v++) {
        if (!strcmp(v->verb, name))
            return v;
        if (*v->verb && n < 32)
            names[n++] = v->verb;
    }
    const char *near = iso_nearest(name, names, n);
    iso_fail(e, ISO_ERR_USAGE, "unknown verb \"%s\"%s%s%s", name, near ? "; did you mean \"" : "",
             near ? near : "", near ? "\"?" : "");
    return NULL;
}

static iso_json *request_args(const iso_admin_verb *v, const char *word, const options *o,
                              iso_error *e)
{
    iso_json *args = iso_json_object();
    if (v->word == ISO_WORD_TEXT)
        iso_json_set(args, v->word_key, iso_json_string(word));
    if (v->word == ISO_WORD_NUMBER) {
        char *end;
        long long number = strtoll(word, &end, 10);
        if (*end || end == word || number < 0) {
            iso_fail(e, ISO_ERR_USAGE, "\"%s\" is not a number; %s", word, v->help);
            iso_json_free(args);
            return NULL;
        }
        iso_json_set(args, v->word_key, iso_json_integer(number));
    }
    if (o->reason)
        iso_json_set(args, "reason", iso_json_string(o->reason));
    if (o->site)
        iso_json_set(args, "site", iso_json_string(o->site));
    if (o->hours)
        iso_json_set(args, "hours", iso_json_integer(o->hours));
    if (o->force)
        iso_json_set(args, "force", iso_json_boolean(true));
    if (o->tasks.count) {
        iso_json *list = iso_json_array();
        for (size_t i = 0; i < o->tasks.count; i++)
            iso_json_push(list, iso_json_string(o->tasks.items[i]));
        iso_json_set(args, "tasks", list);
    }
    return args;
}

static void print_result(const iso_admin_verb *v, const iso_json *result, bool json)
{
    const char *line = v->line ? iso_json_str(iso_json_key(result, v->line)) : NULL;
    if (json)
        iso_json_print(result);
    else if (line)
        printf("%s\n", line);
    else if (v->array)
        iso_table_print(iso_json_key(result, v->array), v->columns, v->column_count);
    else if (v->columns)
        iso_record_print(result, v->columns, v->column_count);
    else
        printf("done\n");
}

static char *usage_text(const iso_admin_command *c)
{
    iso_buf b = {0};
    iso_err err = iso_buf_printf(&b, NULL, "isofed %s VERB [options]\n\n", c->name);
    for (const iso_admin_verb *v = c->verbs; v->verb && !err; v++) {
        char left[48];
        snprintf(left, sizeof left, "%s%s%s", *v->verb ? v->verb : "(none)", v->word_key ? " " : "",
                 v->word_key ? v->word_key : "");
        err = iso_buf_printf(&b, NULL, "  %-22s %s\n", left, v->help);
    }
    if (err) {
        iso_buf_free(&b);
        return NULL;
    }
    return (char *)b.data;
}

int iso_admin_command_run(const iso_admin_command *c, int argc, char **argv)
{
    options o = {.dir = getenv("ISOFED_DIR")};
    iso_arg_list words = {0};
    bool is_done = false;
    iso_error e;
    iso_json *reply = NULL;
    const iso_json *result = NULL;
    char *usage = usage_text(c);
    iso_arg_spec spec = {.usage = usage ? usage : c->name,
                         .summary = c->summary,
                         .example = c->example,
                         .rows = rows,
                         .max_words = 2};
    iso_err err = iso_args_parse(&spec, argc, argv, &o, &words, &is_done, &e);
    if (err || is_done)
        goto done;
    if (!o.dir)
        o.dir = "/var/lib/isofed";
    const iso_admin_verb *v = find_verb(c, words.count ? words.items[0] : "", &e);
    if (!v) {
        err = e.code;
        goto done;
    }
    size_t want = (words.count ? 1u : 0u) + (v->word != ISO_WORD_NONE ? 1u : 0u);
    if (words.count != want) {
        err = iso_fail(&e, ISO_ERR_USAGE, "%s takes %s%s; %s", v->verb,
                       v->word != ISO_WORD_NONE ? "one argument: " : "no argument",
                       v->word != ISO_WORD_NONE ? v->word_key : "", v->help);
        goto done;
    }
    iso_json *args = request_args(v, want == 2 ? words.items[1] : NULL, &o, &e);
    if (!args) {
        err = e.code;
        goto done;
    }
    err = iso_admin_call(o.dir, v->request, args, &reply, &result, &e);
    if (!err)
        print_result(v, result, o.json);
done:
    free(usage);
    iso_json_free(reply);
    return err ? iso_cli_fail(c->name, err, &e) : 0;
}
