#include "client/config.h"

#include "core/digest.h"
#include "core/fsio.h"
#include "core/json.h"
#include "core/yaml.h"
#include "crypto/text.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void iso_client_config_defaults(iso_client_config *c)
{
    *c = (iso_client_config){.nice = 10,
                             .margin = 0.01,
                             .val_share = 0.2,
                             .checkpoint_every = 50,
                             .heartbeat_ms = 15000,
                             .ping_ms = 60000,
                             .spread_ms = 30000,
                             .scan_ms = 10000,
                             .outbox_bytes = 1ull << 30,
                             .release_bytes = ISO_RELEASE_MAX_BYTES,
                             .disk_floor_bytes = 64ull << 20,
                             .cache_bytes = 512ull << 20,
                             .log_level = ISO_LOG_INFO};
}

/* The file's own form: sections that iso_yaml_fill() reads apart. */
typedef struct {
    iso_client_config *c;
    const iso_yaml *data, *link, *limits, *log;
    const char *backbone;
    int accept;
    double margin, val_share;
    int64_t checkpoint_every, threads;
    uint64_t scan_ms;
} top;

static const char *const accept_words[] = {"auto", "manual", NULL};
static const char *const level_words[] = {"trace", "debug", "info", "warn", "error", NULL};

static const iso_yaml_row top_rows[] = {
    {"data", ISO_YAML_NODE, offsetof(top, data), true, 0, 0, NULL,
     "list of tasks and the folders of their images"},
    {"backbone", ISO_YAML_STRING, offsetof(top, backbone), true, 0, 0, NULL,
     "folder with config.json and model.safetensors"},
    {"threads", ISO_YAML_INT, offsetof(top, threads), false, 0, 1024, NULL,
     "threads for training; 0: all"},
    {"accept", ISO_YAML_ENUM, offsetof(top, accept), false, 0, 0, accept_words,
     "auto installs what passes its trial, manual waits for isofed releases accept"},
    {"margin", ISO_YAML_DOUBLE, offsetof(top, margin), false, 0, 1, NULL,
     "a release may score so much worse than what serves, at most"},
    {"val_share", ISO_YAML_DOUBLE, offsetof(top, val_share), false, 0.01, 0.9, NULL,
     "share of train/ kept for validation where there is no val/"},
    {"checkpoint_every", ISO_YAML_INT, offsetof(top, checkpoint_every), false, 1, 1000000, NULL,
     "steps of training that a power cut may cost"},
    {"scan_every", ISO_YAML_DURATION_MS, offsetof(top, scan_ms), false, 100, 86400000, NULL,
     "how often the folders are looked at for new images"},
    {"link", ISO_YAML_NODE, offsetof(top, link), false, 0, 0, NULL, "the connection"},
    {"limits", ISO_YAML_NODE, offsetof(top, limits), false, 0, 0, NULL, "ceilings"},
    {"log", ISO_YAML_NODE, offsetof(top, log), false, 0, 0, NULL, "log lines on stderr"},
    {0}};

static const iso_yaml_row data_rows[] = {
    {"task", ISO_YAML_STRING, offsetof(iso_client_data, task), true, 0, 0, NULL,
     "name of the task, as the coordinator's"},
    {"folder", ISO_YAML_STRING, offsetof(iso_client_data, folder), true, 0, 0, NULL,
     "folder with train/CLASS/file, and val/ and test/ where there are such"},
    {0}};

static const iso_yaml_row link_rows[] = {
    {"heartbeat", ISO_YAML_DURATION_MS, offsetof(iso_client_config, heartbeat_ms), false, 1000,
     600000, NULL, "keeps NAT and firewalls awake"},
    {"ping", ISO_YAML_DURATION_MS, offsetof(iso_client_config, ping_ms), false, 1000, 3600000, NULL,
     "how often the coordinator is asked for news"},
    {"spread", ISO_YAML_DURATION_MS, offsetof(iso_client_config, spread_ms), false, 0, 3600000,
     NULL, "first try after a lost session comes within this time, at random"},
    {0}};

static const iso_yaml_row limit_rows[] = {
    {"outbox", ISO_YAML_BYTES, offsetof(iso_client_config, outbox_bytes), false, 1 << 20, 0x1p50,
     NULL, "sealed updates kept"},
    {"release", ISO_YAML_BYTES, offsetof(iso_client_config, release_bytes), false, 1 << 20, 0x1p50,
     NULL, "files of one release"},
    {"disk_floor", ISO_YAML_BYTES, offsetof(iso_client_config, disk_floor_bytes), false, 0, 0x1p50,
     NULL, "nothing is fetched below so much free space"},
    {"cache", ISO_YAML_BYTES, offsetof(iso_client_config, cache_bytes), false, 0, 0x1p50, NULL,
     "memory for what frozen blocks give"},
    {"nice", ISO_YAML_INT, offsetof(iso_client_config, nice), false, 0, 19, NULL,
     "priority of training: 0 as any program, 19 only idle time"},
    {0}};

static const iso_yaml_row log_rows[] = {
    {"level", ISO_YAML_ENUM, offsetof(iso_client_config, log_level), false, 0, 0, level_words,
     "trace, debug, info, warn or error"},
    {"json", ISO_YAML_BOOL, offsetof(iso_client_config, log_json), false, 0, 0, NULL,
     "JSON objects instead of key=value"},
    {0}};

static iso_err absolute(const char *dir, const char **path, iso_arena *arena, iso_error *e)
{
    if (**path == '/')
        return ISO_OK;
    char *joined = iso_path_join(dir, *path);
    *path = joined ? iso_arena_strdup(arena, joined) : NULL;
    free(joined);
    return *path ? ISO_OK : iso_nomem(e, strlen(dir));
}

static iso_err read_data(const iso_yaml *list, const char *what, const char *dir,
                         iso_client_config *c, iso_arena *arena, iso_error *e)
{
    if (list->kind != ISO_YAML_LIST || list->count == 0 || list->count > ISO_CLIENT_TASKS_MAX)
        return iso_fail(e, ISO_ERR_USAGE, "%s:%d: \"data\" must be a list of 1..%d tasks", what,
                        list->line, ISO_CLIENT_TASKS_MAX);
    for (size_t i = 0; i < list->count; i++) {
        iso_client_data *d = &c->data[i];
        const iso_yaml *item = list->items[i];
        if (item->kind != ISO_YAML_MAP)
            return iso_fail(e, ISO_ERR_USAGE, "%s:%d: an entry of \"data\" needs task and folder",
                            what, item->line);
        iso_err err = iso_yaml_fill(item, data_rows, what, d, arena, e);
        if (err != ISO_OK)
            return err;
        if (!iso_name_is_valid(d->task))
            return iso_fail(e, ISO_ERR_USAGE,
                            "%s:%d: task \"%.80s\": a name has 1 to 64 of letters, digits, ._-",
                            what, item->line, d->task);
        for (size_t k = 0; k < i; k++)
            if (strcmp(c->data[k].task, d->task) == 0)
                return iso_fail(e, ISO_ERR_USAGE, "%s:%d: task \"%s\" is there twice", what,
                                item->line, d->task);
        err = absolute(dir, &d->folder, arena, e);
        if (err != ISO_OK)
            return err;
    }
    c->data_count = list->count;
    return ISO_OK;
}

static iso_err read_section(const iso_yaml *map, const iso_yaml_row *rows, const char *what,
                            iso_client_config *c, iso_arena *arena, iso_error *e)
{
    if (!map)
        return ISO_OK;
    if (map->kind != ISO_YAML_MAP)
        return iso_fail(e, ISO_ERR_USAGE, "%s:%d: keys and values are expected here", what,
                        map->line);
    return iso_yaml_fill(map, rows, what, c, arena, e);
}

iso_err iso_client_config_read(const char *dir, iso_client_config *c, iso_arena *arena,
                               iso_error *e)
{
    static const char what[] = "client.yaml";
    const iso_yaml *root = NULL;
    char *path = iso_path_join(dir, what);
    iso_client_config_defaults(c);
    if (!path)
        return iso_nomem(e, strlen(dir));
    iso_err err = iso_yaml_read(path, arena, &root, e);
    free(path);
    if (err != ISO_OK)
        return err;
    if (!root || root->kind != ISO_YAML_MAP)
        return iso_fail(e, ISO_ERR_USAGE, "%s: keys and values are expected", what);
    top t = {.accept = c->accept,
             .margin = c->margin,
             .val_share = c->val_share,
             .checkpoint_every = c->checkpoint_every,
             .scan_ms = c->scan_ms};
    err = iso_yaml_fill(root, top_rows, what, &t, arena, e);
    if (err != ISO_OK)
        return err;
    c->backbone = t.backbone;
    c->accept = t.accept;
    c->margin = t.margin;
    c->val_share = t.val_share;
    c->checkpoint_every = t.checkpoint_every;
    c->threads = t.threads;
    c->scan_ms = t.scan_ms;
    if ((err = read_data(t.data, what, dir, c, arena, e)) != ISO_OK ||
        (err = read_section(t.link, link_rows, what, c, arena, e)) != ISO_OK ||
        (err = read_section(t.limits, limit_rows, what, c, arena, e)) != ISO_OK ||
        (err = read_section(t.log, log_rows, what, c, arena, e)) != ISO_OK)
        return err;
    return absolute(dir, &c->backbone, arena, e);
}

static const char *example(const char *given, const char *otherwise)
{
    return given ? given : otherwise;
}

iso_err iso_client_config_write(const char *path, const char *backbone, const char *task,
                                const char *folder, iso_error *e)
{
    iso_buf out = {0};
    iso_err err = iso_buf_printf(
        &out, e,
        "# isofed client, configuration format 1. Every key with its default; paths that do not\n"
        "# begin with / start at this folder. A misspelt key is an error.\n"
        "\n"
        "# Tasks of this site and their images: folder/train/CLASS/file.png, and val/ and test/\n"
        "# where there are such. New files may appear at any time.\n"
        "data:\n"
        "  - task: %s\n"
        "    folder: %s\n"
        "\n"
        "# Frozen network: a folder with config.json and model.safetensors.\n"
        "backbone: %s\n"
        "\n"
        "threads: 0             # for training; 0: all of this machine\n"
        "accept: auto           # auto, or manual: isofed releases accept N\n"
        "margin: 0.01           # a release may score so much worse here, at most\n"
        "val_share: 0.2         # of train/ for validation, where there is no val/\n"
        "checkpoint_every: 50   # steps that a power cut may cost\n"
        "scan_every: 10s        # look for new images\n"
        "\n"
        "link:\n"
        "  heartbeat: 15s       # keeps NAT and firewalls awake\n"
        "  ping: 1m             # ask the coordinator for news\n"
        "  spread: 30s          # first try after a lost session comes within this time\n"
        "\n"
        "limits:\n"
        "  outbox: 1GiB         # sealed updates kept\n"
        "  release: 4GiB        # files of one release\n"
        "  disk_floor: 64MiB    # nothing is fetched below so much free space\n"
        "  cache: 512MiB        # memory for what frozen blocks give\n"
        "  nice: 10             # priority of training: 0 normal, 19 only idle time\n"
        "\n"
        "log:\n"
        "  level: info          # trace, debug, info, warn, error\n"
        "  json: no             # JSON objects instead of key=value\n",
        example(task, "my-task"), example(folder, "data/my-task"), example(backbone, "backbone"));
    if (err == ISO_OK)
        err = iso_write_file(path, out.data, out.size, 0644, e);
    iso_buf_free(&out);
    return err;
}

/* ---- enrolment.json ---- */

static iso_err need_hex(const iso_json *j, const char *key, uint8_t *out, size_t bytes,
                        iso_error *e)
{
    const char *text;
    iso_err err = iso_json_need_str(j, key, &text, e);
    if (err == ISO_OK && !iso_unhex(out, bytes, text))
        err = iso_fail(e, ISO_ERR_DATA, "\"%s\" is not %zu bytes in hexadecimal", key, bytes);
    return err;
}

iso_err iso_enrolment_read(const char *dir, iso_enrolment *out, iso_error *e)
{
    iso_json *j = NULL;
    const char *name = "", *host = "", *root = "";
    int64_t format, port = 0, enrolled = 0;
    size_t bad;
    char *path = iso_path_join(dir, "enrolment.json");
    memset(out, 0, sizeof *out);
    if (!path)
        return iso_nomem(e, strlen(dir));
    if (!iso_path_exists(path)) {
        free(path);
        return iso_fail(e, ISO_ERR_USAGE,
                        "%s: this site is not enrolled yet: isofed enroll LINE --dir %s", dir, dir);
    }
    iso_err err = iso_json_read(path, 65536, &j, e);
    if (err != ISO_OK)
        goto done;
    if ((err = iso_json_need_int(j, "format", 1, 1, &format, e)) != ISO_OK ||
        (err = iso_json_need_str(j, "name", &name, e)) != ISO_OK ||
        (err = iso_json_need_str(j, "host", &host, e)) != ISO_OK ||
        (err = iso_json_need_int(j, "port", 1, 65535, &port, e)) != ISO_OK ||
        (err = iso_json_need_int(j, "enrolled_ms", 0, INT64_MAX, &enrolled, e)) != ISO_OK ||
        (err = need_hex(j, "federation", out->federation_id, 16, e)) != ISO_OK ||
        (err = need_hex(j, "site", out->site_id, 16, e)) != ISO_OK ||
        (err = need_hex(j, "coordinator_pk", out->coordinator_pk, 32, e)) != ISO_OK ||
        (err = iso_json_need_str(j, "root_fingerprint", &root, e)) != ISO_OK)
        goto done;
    if (!iso_name_is_valid(name) || strlen(host) >= sizeof out->host ||
        strlen(root) != iso_base32_chars(ISO_FINGERPRINT_BYTES) ||
        !iso_base32_decode(root, ISO_FINGERPRINT_BYTES, out->root_fingerprint, &bad)) {
        err = iso_fail(e, ISO_ERR_DATA, "a name, host or fingerprint in it is malformed");
        goto done;
    }
    snprintf(out->name, sizeof out->name, "%s", name);
    snprintf(out->host, sizeof out->host, "%s", host);
    out->port = (uint16_t)port;
    out->enrolled_ms = (uint64_t)enrolled;
done:
    if (err != ISO_OK)
        iso_error_context(e, "%s", path);
    iso_json_free(j);
    free(path);
    return err;
}

static iso_json *hex_of(const uint8_t *bytes, size_t n)
{
    char text[2 * 32 + 1];
    iso_hex(text, bytes, n);
    return iso_json_string(text);
}

iso_err iso_enrolment_write(const char *dir, const iso_enrolment *in, iso_error *e)
{
    iso_buf out = {0};
    char root[64];
    char *path = iso_path_join(dir, "enrolment.json");
    iso_json *j = iso_json_object();
    iso_base32_encode(in->root_fingerprint, ISO_FINGERPRINT_BYTES, root);
    bool is_built = iso_json_set(j, "format", iso_json_integer(1)) &&
                    iso_json_set(j, "name", iso_json_string(in->name)) &&
                    iso_json_set(j, "host", iso_json_string(in->host)) &&
                    iso_json_set(j, "port", iso_json_integer(in->port)) &&
                    iso_json_set(j, "federation", hex_of(in->federation_id, 16)) &&
                    iso_json_set(j, "site", hex_of(in->site_id, 16)) &&
                    iso_json_set(j, "coordinator_pk", hex_of(in->coordinator_pk, 32)) &&
                    iso_json_set(j, "root_fingerprint", iso_json_string(root)) &&
                    iso_json_set(j, "enrolled_ms", iso_json_integer((int64_t)in->enrolled_ms));
    iso_err err =
        path && is_built ? iso_json_dump(j, ISO_JSON_PRETTY, &out, e) : iso_nomem(e, 1024);
    if (err == ISO_OK)
        err = iso_write_file(path, out.data, out.size, 0600, e);
    iso_json_free(j);
    iso_buf_free(&out);
    free(path);
    return err;
}
