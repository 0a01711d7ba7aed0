/* Opening a coordinator's folder: configuration, keys, state, core, socket, each only when the ones
 * before it hold (specs/security.md S43, S81, S84), and closing it again. */
#include "coordinator/shell.h"

#include "core/fsio.h"
#include "crypto/init.h"
#include "crypto/sealer_real.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* "host:port", "[v6]:port", "host" (port 0). */
static iso_err split_address(const char *text, char *host, size_t host_bytes, uint16_t *port,
                             iso_error *e)
{
    const char *colon = strrchr(text, ':');
    const char *end = text + strlen(text);
    if (text[0] == '[') {
        const char *close = strchr(text, ']');
        colon = close && close[1] == ':' ? close + 1 : NULL;
        end = close ? close : end;
        text++;
    } else if (colon) {
        end = colon;
    }
    char *rest = NULL;
    unsigned long number = colon ? strtoul(colon + 1, &rest, 10) : 0;
    size_t n = (size_t)(end - text);
    if (n == 0 || n >= host_bytes || number > 65535 || (rest && (*rest || rest == colon + 1)))
        return iso_fail(e, ISO_ERR_USAGE, "\"%.80s\" is not of the form host:port", text);
    memcpy(host, text, n);
    host[n] = 0;
    *port = (uint16_t)number;
    return ISO_OK;
}

static iso_err find_worker(iso_shell *s, iso_error *e)
{
    if (s->config.worker) {
        snprintf(s->worker, sizeof s->worker, "%s", s->config.worker);
    } else {
        ssize_t n = readlink("/proc/self/exe", s->worker, sizeof s->worker - 16);
        if (n <= 0)
            return iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "/proc/self/exe");
        s->worker[n] = 0;
        strcpy(strrchr(s->worker, '/') + 1, "isofed-merge");
    }
    if (access(s->worker, X_OK) != 0)
        return iso_fail_errno(e, ISO_ERR_USAGE, errno, "merge worker %s", s->worker);
    return ISO_OK;
}

iso_err iso_shell_make_core(iso_shell *s, iso_error *e)
{
    iso_err err =
        iso_coord_new(&s->config, &s->keys.identity, &s->sealer, &s->entropy, &s->core, e);
    if (!err)
        err = iso_coord_restore(s->core, &s->store, e);
    return err;
}

typedef struct {
    iso_shell *s;
    iso_digest *live; /* sorted */
    size_t count, capacity;
    size_t damaged;
} live_set;

static void note_live(void *arg, const iso_digest *d, uint64_t bytes, const char *what)
{
    live_set *l = arg;
    uint64_t have = 0;
    iso_error e;
    if (l->count == l->capacity) {
        size_t capacity = l->capacity ? l->capacity * 2 : 256;
        iso_digest *wider = realloc(l->live, capacity * sizeof *wider);
        if (!wider) {
            l->capacity = 0; /* remembered below: nothing may be swept */
            return;
        }
        l->live = wider;
        l->capacity = capacity;
    }
    l->live[l->count++] = *d;
    iso_err err = l->s->store.blob_size(l->s->store.ctx, d, &have, &e);
    if (!err && have == bytes)
        return;
    char hex[ISO_DIGEST_HEX];
    iso_hex(hex, d->b, 32);
    iso_log_event(l->s->log, ISO_LOG_ERROR, "blob_damaged", "what=%s digest=%.12s", what, hex);
    iso_coord_blob_damaged(l->s->core, d);
    l->damaged++;
}

static int compare_digests(const void *a, const void *b)
{
    return memcmp(a, b, ISO_DIGEST_BYTES);
}

static bool is_live(void *arg, const iso_digest *d)
{
    const live_set *l = arg;
    return bsearch(d, l->live, l->count, sizeof *d, compare_digests) != NULL;
}

static bool is_upload(void *arg, const uint8_t id[16])
{
    return iso_coord_has_upload(arg, id);
}

/* S84: what no record names goes; what a record names and is not whole is an alarm. */
static iso_err sweep(iso_shell *s, iso_error *e)
{
    live_set l = {.s = s};
    uint64_t removed = 0;
    iso_coord_live_blobs(s->core, note_live, &l);
    iso_err err = ISO_OK;
    bool is_complete = l.count == 0 || l.capacity > 0;
    if (is_complete && l.count)
        qsort(l.live, l.count, sizeof *l.live, compare_digests);
    /* A merge may have written what no record names yet: its result is looked at first. */
    if (is_complete && !iso_coord_has_job(s->core))
        err = iso_blob_dir_sweep(iso_state_blobs(s->state), is_live, &l, &removed, e);
    if (!err)
        err = iso_partials_sweep(&s->partials, is_upload, s->core, e);
    if (removed)
        iso_log_event(s->log, ISO_LOG_INFO, "orphans_removed", "blobs=%llu",
                      (unsigned long long)removed);
    free(l.live);
    return err;
}

/* With port 0 the port of the last start is taken again: it stands in the sites' enrolment. */
static uint16_t last_port(const iso_shell *s)
{
    char path[4096];
    iso_buf text = {0};
    unsigned long port = 0;
    snprintf(path, sizeof path, "%s/endpoint", s->dir);
    if (iso_read_file(path, 400, &text, NULL) == ISO_OK) {
        const char *colon = strrchr((const char *)text.data, ':');
        port = colon ? strtoul(colon + 1, NULL, 10) : 0;
    }
    iso_buf_free(&text);
    return port <= UINT16_MAX ? (uint16_t)port : 0;
}

iso_err iso_shell_write_endpoint(iso_shell *s, iso_error *e)
{
    char text[400], path[4096];
    uint16_t port = iso_server_port(s->server);
    int n = snprintf(text, sizeof text, "tcp://%s:%u", s->host, port);
    snprintf(path, sizeof path, "%s/endpoint", s->dir);
    iso_err err = iso_write_file(path, text, (size_t)n, 0644, e);
    char advertised[ISO_HOST_MAX + 1];
    uint16_t advertised_port = 0;
    if (!err && s->config.advertise)
        err =
            split_address(s->config.advertise, advertised, sizeof advertised, &advertised_port, e);
    if (!err)
        iso_coord_set_endpoint(s->core, s->config.advertise ? advertised : s->host,
                               advertised_port ? advertised_port : port);
    return err;
}

static iso_err open_audit(iso_shell *s, iso_error *e)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/audit.log", s->dir);
    s->audit = fopen(path, "ae");
    return s->audit ? ISO_OK : iso_fail_errno(e, ISO_ERR_RESOURCE, errno, "%s", path);
}

/* The file `metrics` says where, as `endpoint` does: with port 0 nobody else knows. */
static iso_err open_metrics(iso_shell *s, iso_error *e)
{
    char host[ISO_HOST_MAX + 1], path[4096], text[300];
    uint16_t port;
    iso_err err = split_address(s->config.metrics, host, sizeof host, &port, e);
    if (!err)
        err = iso_metrics_open(&s->metrics, host, port, iso_shell_figures, s, e);
    if (err)
        return err;
    bool is_v6 = strchr(host, ':') != NULL;
    int n = snprintf(text, sizeof text, "http://%s%.200s%s:%u/metrics", is_v6 ? "[" : "", host,
                     is_v6 ? "]" : "", iso_metrics_port(s->metrics));
    snprintf(path, sizeof path, "%s/metrics", s->dir);
    return iso_write_file(path, text, (size_t)n, 0644, e);
}

iso_err iso_shell_open(iso_shell *s, iso_error *e)
{
    char path[4096];
    uint16_t port;
    const iso_daemon_options *o = s->options;
    if (!realpath(o->dir, path) || strlen(path) >= sizeof s->dir)
        return iso_fail_errno(e, ISO_ERR_USAGE, errno, "%s", o->dir);
    strcpy(s->dir, path);
    snprintf(path, sizeof path, "%s/coordinator.yaml", s->dir);
    iso_err err = iso_coord_config_read(path, &s->config, &s->arena, e);
    if (!err)
        err = split_address(s->config.listen, s->host, sizeof s->host, &port, e);
    if (!err && chdir(s->dir) != 0) /* paths of the configuration are meant from its folder */
        err = iso_fail_errno(e, ISO_ERR_USAGE, errno, "%s", s->dir);
    if (!err)
        err = find_worker(s, e);
    if (!err)
        err = iso_coord_identity_read(s->dir, s->config.backbone, o->passphrase,
                                      s->clock.wall_ms(s->clock.ctx), &s->keys, e);
    if (err || o->check_config)
        return err;
    static char backbone[PATH_MAX];
    if (realpath(s->config.backbone, backbone))
        s->config.backbone = backbone;
    s->sealer = iso_sealer_real(&s->keys.audit);
    s->entropy = iso_entropy_real();
    iso_state_options so = {.tables = iso_coord_table_names,
                            .table_count = ISO_CT_COUNT,
                            .application_id = 0x69736f43, /* "isoC" */
                            .schema = 1,
                            .reserve_bytes = s->config.disk_reserve_bytes,
                            .allow_network_fs = s->config.allow_network_fs};
    if ((err = iso_state_open(&s->state, s->dir, &so, e)) != ISO_OK)
        return err;
    s->store = iso_state_store(s->state);
    if (iso_state_was_unclean(s->state))
        iso_log_event(s->log, ISO_LOG_WARN, "unclean_stop", "check=ok");
    err = s->store.blob_put(s->store.ctx, s->keys.roster.data, s->keys.roster.size,
                            &s->keys.identity.roster, NULL, e);
    if (!err)
        err = iso_partials_open(&s->partials, s->dir, e);
    if (!err)
        err = iso_shell_make_core(s, e);
    if (!err)
        err = sweep(s, e);
    iso_key_list admitted = {0};
    if (!err)
        iso_shell_keys(s, &admitted);
    iso_server_options sv = {.host = s->host,
                             .port = port ? port : last_port(s),
                             .is_port_a_wish = port == 0,
                             .transport_pk = s->keys.transport.public_key,
                             .transport_secret = s->keys.transport.secret,
                             .connections = s->config.connections,
                             .handshakes_per_s = s->config.handshakes_per_s,
                             .handshake_burst = s->config.handshake_burst,
                             .keys = admitted.keys,
                             .key_count = admitted.count,
                             .log = s->log};
    if (!err)
        err = iso_server_open(&s->server, &sv, e);
    free(admitted.keys);
    if (!err)
        err = iso_shell_write_endpoint(s, e);
    snprintf(path, sizeof path, "%s/admin.sock", s->dir);
    if (!err)
        err = iso_admin_open(&s->admin, path, e);
    if (!err && s->config.metrics)
        err = open_metrics(s, e);
    if (!err)
        err = open_audit(s, e);
    if (!err && !(s->piece = malloc(ISO_CHUNK_MAX_BYTES)))
        err = iso_nomem(e, ISO_CHUNK_MAX_BYTES);
    iso_spawn_init(&s->spawn, s->worker, s->dir, s->log);
    return err;
}

void iso_shell_close(iso_shell *s)
{
    iso_spawn_stop(&s->spawn);
    iso_metrics_close(s->metrics);
    iso_admin_close(s->admin);
    iso_server_close(s->server);
    iso_coord_free(s->core);
    iso_partials_close(&s->partials);
    iso_state_close(s->state);
    iso_coord_identity_free(&s->keys);
    for (size_t i = 0; i < SHELL_BATCH; i++)
        iso_coord_effects_free(&s->steps[i]);
    if (s->audit)
        fclose(s->audit);
    free(s->ops);
    free(s->held);
    free(s->answers);
    free(s->piece);
    iso_arena_free(&s->arena);
    iso_arena_free(&s->message);
    iso_arena_free(&s->result);
}
