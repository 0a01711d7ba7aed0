#include "client/check.h"

#include "client/daemon.h"
#include "core/fsio.h"
#include "core/progress.h"
#include "crypto/init.h"
#include "nn/data/images.h"

#include <errno.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/sysinfo.h>
#include <sys/time.h>
#include <unistd.h>

enum { CONNECT_S = 5, TALK_MS = 15000 };
static const uint64_t disk_wanted = 1ull << 30, clock_limit_ms = 600000;

typedef struct {
    FILE *out;
    int failed;
    const char *dir, *passphrase;
    iso_client_config config;
    iso_enrolment site;
    bool has_site;
} check;

static void say(check *c, bool is_ok, const char *what, const char *fmt, ...) ISO_PRINTF(4, 5);
static void say(check *c, bool is_ok, const char *what, const char *fmt, ...)
{
    va_list args;
    fprintf(c->out, "%-6s %-10s ", is_ok ? "ok" : "NOT OK", what);
    va_start(args, fmt);
    vfprintf(c->out, fmt, args);
    va_end(args);
    fputc('\n', c->out);
    c->failed += !is_ok;
}

/* ---- the line ---- */

static void check_address(check *c)
{
    char port[8], address[64] = "?";
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *list = NULL;
    snprintf(port, sizeof port, "%u", c->site.port);
    int rc = getaddrinfo(c->site.host, port, &hints, &list);
    if (rc) {
        say(c, false, "name", "%s does not resolve: %s. Ask for DNS, or put it into /etc/hosts",
            c->site.host, gai_strerror(rc));
        return;
    }
    getnameinfo(list->ai_addr, list->ai_addrlen, address, sizeof address, NULL, 0, NI_NUMERICHOST);
    say(c, true, "name", "%s is %s", c->site.host, address);
    int fd = socket(list->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0), failure = 0;
    const struct timeval patience = {.tv_sec = CONNECT_S};
    if (fd < 0) {
        failure = errno;
    } else {
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        if (connect(fd, list->ai_addr, list->ai_addrlen))
            failure = errno == EINPROGRESS ? ETIMEDOUT : errno;
        close(fd);
    }
    freeaddrinfo(list);
    if (failure)
        say(c, false, "port",
            "%s:%u does not answer: %s. Outgoing TCP %u to %s is the only port needed "
            "[link_refused]",
            c->site.host, c->site.port, strerror(failure), c->site.port, address);
    else
        say(c, true, "port", "TCP %u answers", c->site.port);
}

/* One greeting with the site's own key: key known, server's key right, clocks. */
static void check_greeting(check *c, const iso_key *transport)
{
    iso_error error = {0};
    iso_link *link = NULL;
    iso_link_options l = {.port = c->site.port,
                          .transport_pk = transport->public_key,
                          .transport_secret = transport->secret,
                          .heartbeat_ms = 15000};
    const iso_clock clock = iso_clock_system();
    iso_time deadline = clock.mono_ms(clock.ctx) + TALK_MS, now;
    bool is_done = false;
    memcpy(l.host, c->site.host, sizeof l.host);
    memcpy(l.coordinator_pk, c->site.coordinator_pk, 32);
    iso_err err = iso_link_open(&link, &l, &error);
    if (err == ISO_OK)
        err = iso_link_connect(link, 1, &error);
    while (err == ISO_OK && !is_done && (now = clock.mono_ms(clock.ctx)) < deadline) {
        iso_agent_event ev;
        if (!iso_link_next(link, &ev)) {
            err = iso_link_wait(link, NULL, NULL, 0, (long)(deadline - now), &error);
        } else if (ev.kind == ISO_AE_LINK_DOWN) {
            say(c, false, "coordinator", "%s", ev.text);
            is_done = true;
        } else if (ev.kind == ISO_AE_LINK_UP) {
            iso_msg m = {.version = ISO_PROTO_VERSION_MAX,
                         .id = 1,
                         .type = ISO_MSG_HELLO,
                         .hello = {.min_version = ISO_PROTO_VERSION_MIN,
                                   .max_version = ISO_PROTO_VERSION_MAX,
                                   .software = ISO_VERSION}};
            memcpy(m.hello.federation_id, c->site.federation_id, 16);
            m.hello.wall_ms = clock.wall_ms(clock.ctx);
            err = iso_link_send(link, &m, NULL, 0, &error);
        } else if (ev.msg->type == ISO_MSG_HELLO_REPLY) {
            int64_t offset =
                (int64_t)ev.msg->hello_reply.wall_ms - (int64_t)clock.wall_ms(clock.ctx);
            char text[32];
            is_done = true;
            say(c, true, "coordinator", "knows this site (%s), and its key is the expected one",
                iso_site_state_name(ev.msg->hello_reply.state));
            iso_duration_text(text, sizeof text, (double)llabs(offset) / 1000.0);
            if ((uint64_t)llabs(offset) <= clock_limit_ms)
                say(c, true, "clock", "differs from the coordinator's by %s", text);
            else
                say(c, false, "clock",
                    "is %s %s the coordinator's: set this machine's clock (timedatectl). Training "
                    "works, releases cannot be checked for age [clock_offset]",
                    text, offset > 0 ? "behind" : "before");
        } else if (ev.msg->type == ISO_MSG_ERROR) {
            is_done = true;
            say(c, false, "coordinator", "%s: %s", iso_code_name(ev.msg->error.code),
                ev.msg->error.sentence);
        }
    }
    if (err != ISO_OK)
        say(c, false, "coordinator", "%s", error.text);
    else if (!is_done)
        say(c, false, "coordinator", "connects, but does not answer the greeting");
    iso_link_close(link);
}

static void check_keys(check *c, bool is_running)
{
    iso_key transport = {0}, sign = {0};
    iso_error error = {0};
    uint8_t print[ISO_FINGERPRINT_BYTES], id[16];
    char text[ISO_FINGERPRINT_TEXT];
    if (iso_client_keys_read(c->dir, c->passphrase, &transport, &sign, &error) != ISO_OK) {
        say(c, false, "keys", "%s", error.text);
        iso_key_free(&transport);
        return;
    }
    iso_site_fingerprint(transport.public_key, sign.public_key, print);
    iso_fingerprint_text(print, text);
    say(c, true, "keys", "fingerprint %s", text);
    if (c->has_site) {
        iso_site_id(transport.public_key, sign.public_key, id);
        if (memcmp(id, c->site.site_id, 16) != 0)
            say(c, false, "enrolment", "is of other keys than those in keys/: enrol again");
        else
            say(c, true, "enrolment", "site %s at %s:%u", c->site.name, c->site.host, c->site.port);
        check_address(c);
        if (is_running)
            say(c, true, "coordinator", "not asked: the daemon runs (isofed status says more)");
        else
            check_greeting(c, &transport);
    }
    iso_key_free(&transport);
    iso_key_free(&sign);
}

/* ---- this machine ---- */

static void check_machine(check *c)
{
    iso_error error = {0};
    uint64_t bytes = 0;
    char text[32];
    struct sysinfo info;
    if (iso_disk_free(c->dir, &bytes, &error) != ISO_OK) {
        say(c, false, "disk", "%s", error.text);
    } else {
        iso_bytes_text(text, sizeof text, (double)bytes);
        if (bytes >= disk_wanted + c->config.disk_floor_bytes)
            say(c, true, "disk", "%s free", text);
        else
            say(c, false, "disk", "%s free below %s, 1 GiB above the floor is wanted [disk_full]",
                text, c->dir);
    }
    if (sysinfo(&info) == 0) {
        uint64_t free_bytes =
            (uint64_t)(info.freeram + info.bufferram) * info.mem_unit + c->config.cache_bytes / 8;
        iso_bytes_text(text, sizeof text, (double)free_bytes);
        say(c, free_bytes > 256ull << 20, "memory", "%s free%s", text,
            free_bytes > 256ull << 20 ? "" : ": training wants at least 256 MiB");
    }
    if (iso_crypto_swap_is_on())
        say(c, true, "swap", "is on: keys are locked in memory, what is learnt is not");
}

static void check_data(check *c)
{
    for (size_t i = 0; i < c->config.data_count; i++) {
        iso_spool_state s;
        iso_error error = {0};
        char bytes[32];
        const char *task = c->config.data[i].task;
        if (iso_spool_scan(c->config.data[i].folder, c->config.val_share, &s, &error) != ISO_OK) {
            say(c, false, "data", "task %s: %s", task, error.text);
            continue;
        }
        iso_bytes_text(bytes, sizeof bytes, (double)s.bytes);
        bool is_usable = s.train > 0 && s.classes > 1;
        say(c, is_usable, "data",
            "task %s: %llu images to learn from, %llu to validate, %llu to test, %llu classes, "
            "%s%s",
            task, (unsigned long long)s.train, (unsigned long long)s.val,
            (unsigned long long)s.test, (unsigned long long)s.classes, bytes,
            is_usable ? "" : ": train/ needs at least two folders of classes with images");
    }
}

static void check_backbone(check *c)
{
    iso_backbone *b = NULL;
    iso_error error = {0};
    char hex[ISO_DIGEST_HEX];
    if (iso_backbone_open(&b, c->config.backbone, &error) != ISO_OK) {
        say(c, false, "backbone", "%s [backbone_missing]", error.text);
        return;
    }
    iso_hex(hex, b->generation.b, 32);
    say(c, true, "backbone", "%s, %zu blocks of %zu, digest %.16s", b->family->model_type,
        b->shape.depth, b->shape.dim, hex);
    iso_backbone_close(b);
}

static bool daemon_runs(const char *dir)
{
    int fd = -1;
    char *path = iso_path_join(dir, "state.lock");
    bool runs = path && iso_path_exists(path) && iso_lock_file(path, &fd, NULL) != ISO_OK;
    if (fd >= 0)
        iso_unlock_file(fd);
    free(path);
    return runs;
}

iso_err iso_client_check(const char *dir, const char *passphrase, FILE *out, int *failed,
                         iso_error *e)
{
    check c = {.out = out, .dir = dir, .passphrase = passphrase};
    iso_arena arena = {0};
    iso_err err = iso_client_config_read(dir, &c.config, &arena, e);
    if (err != ISO_OK) {
        iso_arena_free(&arena);
        return err;
    }
    say(&c, true, "config", "%s/client.yaml", dir);
    iso_error error = {0};
    c.has_site = iso_enrolment_read(dir, &c.site, &error) == ISO_OK;
    if (!c.has_site)
        say(&c, false, "enrolment", "%s", error.text);
    check_keys(&c, daemon_runs(dir));
    check_machine(&c);
    check_data(&c);
    check_backbone(&c);
    iso_arena_free(&arena);
    *failed = c.failed;
    return ISO_OK;
}

void iso_client_what_leaves(FILE *out)
{
    fputs(
        "What this client sends, and nothing else (docs/PRIVACY.md). Images, file names, label\n"
        "texts, paths and host names are in no message.\n"
        "\n"
        "message         fields\n"
        "Hello           protocol versions, software version, federation id, roster version,\n"
        "                release that serves, highest release seen, last sequence number,\n"
        "                newest audit head (216 bytes), this machine's clock\n"
        "Status, Ping    images in the spool (count), updates in the outbox (count), release,\n"
        "                state number, free disk bytes, cursor of notices\n"
        "InviteReply     invitation id, yes or no, reason (one sentence), training images (count)\n"
        "UpdateBegin     header of 384 bytes: federation, site, task, round, generation, start\n"
        "                adapter's digest, sequence, time, sizes, training images (count), own\n"
        "                validation score, kind; its signature of 64 bytes\n"
        "UpdateChunk     the sealed update: only the holder of the merge key can open it. Inside:\n"
        "                adapter weights (adapter_model.safetensors, adapter_config.json) or a\n"
        "                head's weights, and metadata.json: images of each class (count), class\n"
        "                names as the task has them, steps, loss, validation scores\n"
        "UpdateCommit    upload id, digest of the sealed bytes\n"
        "BlobGet         digest of what is asked for\n"
        "EvalResult      score, validation or test images (count), margin, signature\n"
        "ReleaseVerdict  release number, accepted or rejected, three scores, reason (one\n"
        "                sentence), signature\n"
        "\n"
        "Adapters can leak what they were trained on to who opens them (membership and\n"
        "inversion attacks). There is no secure aggregation and no differential privacy yet.\n",
        out);
}
