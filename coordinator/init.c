/* Keys, roster and configuration of a new coordinator. The configuration comes last: a folder with
 * one is complete. */
#include "coordinator/init.h"

#include "core/clock.h"
#include "core/fsio.h"
#include "crypto/init.h"
#include "crypto/key.h"
#include "crypto/roster.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char configuration[] =
    "# Configuration of the coordinator of a federation. Every key is here; a line that starts "
    "with\n"
    "# '#' shows the default. Durations: 250ms 10s 5m 2h 1d. Sizes: 4096 64MiB 1GiB.\n"
    "\n"
    "# What is not promised: no secure aggregation, no differential privacy by default. Who holds\n"
    "# merge/merge.key can read each site's update, and adapters can leak training data "
    "(membership\n"
    "# and gradient inversion attacks apply to LoRA factors).\n"
    "# The root key lies on this machine. To move it away: copy root/minisign.key to a safe place\n"
    "# offline and delete it here; it is needed only to change keys.\n"
    "\n"
    "federation: %s\n"
    "# Where this machine listens; port 0 takes any, and the file `endpoint` says which.\n"
    "listen: \"%s\"\n"
    "# How sites reach it, when that differs (port mapping, name).\n"
    "%sadvertise: \"%s\"\n"
    "# Figures for a monitoring system: http://127.0.0.1:9464/metrics, on this machine only.\n"
    "# metrics: 127.0.0.1:9464\n"
    "# The frozen backbone: config.json, model.safetensors, preprocessor_config.json.\n"
    "backbone: \"%s\"\n"
    "# The merge worker; default: isofed-merge beside this daemon's program.\n"
    "# worker: /usr/bin/isofed-merge\n"
    "# How long a release may be installed, and from what age of the newest signed head sites "
    "warn.\n"
    "# release_valid: 30d\n"
    "# head_valid: 24h\n"
    "# New sites wait for `isofed sites approve`.\n"
    "# approve: false\n"
    "# State on a network file system, whose locks and syncs cannot be relied on.\n"
    "# allow_network_fs: false\n"
    "\n"
    "rounds:\n"
    "  # operator: `isofed rounds open`; auto: whenever all sites of the tasks are there.\n"
    "  trigger: operator\n"
    "  # Collection ends when all have answered, at the latest after this.\n"
    "  deadline: 30m\n"
    "  evaluate_timeout: 10m\n"
    "  # trigger auto: pause between rounds, and how many (0: without end).\n"
    "  # interval: 10s\n"
    "  # max_rounds: 0\n"
    "  # Rounds whose updates are kept.\n"
    "  # keep: 100\n"
    "\n"
    "# Merge methods that are tried in each round: iso_cts iso_c average task_arithmetic.\n"
    "candidates:\n"
    "  - {method: iso_cts, alpha: 1.0, convention: rank, common_fraction: 0.8}\n"
    "# best: the best mean of merged / own score among those that pass; first: in this order.\n"
    "choose: best\n"
    "# A candidate passes when no task falls by more than the margin (or by chance alone).\n"
    "gate: {metric: accuracy_refit, margin: 0.01}\n"
    "# Also ask for scores on the test images (never used by the gate).\n"
    "# evaluate_test: false\n"
    "\n"
    "# What is learnt, by whom. A site that a token names for a task needs no entry here.\n"
    "tasks: []\n"
    "# tasks:\n"
    "#   - name: weld\n"
    "#     classes: [good, crack, pore]\n"
    "#     sites: [plant-1, plant-2]\n"
    "#     quorum: 1              # fewest updates a round of it needs\n"
    "#     rank: 8                # LoRA rank of each site\n"
    "#     rank_cap: 16           # of the task's adapter\n"
    "#     alpha: 16\n"
    "#     rslora: false\n"
    "#     aggregate: mean        # within the task, from four sites on: norm_clip, multi_krum,\n"
    "#                            # geometric_median, coordinate_median, trimmed_mean\n"
    "#     targets: []            # modules; none: all six linears of a block\n"
    "#     steps: 300\n"
    "#     learning_rate: 0.001\n"
    "#     batch: 16\n"
    "#     weight_decay: 0.01\n"
    "#     warmup: 20\n"
    "#     first_block: 0         # blocks below stay frozen: cheaper to train and to score\n"
    "#     shift: 0               # training images move by up to so many pixels\n"
    "#     mirror: false          # half of the training images are mirrored\n"
    "#     head: fixed            # or joint: trained with the adapter\n"
    "#     seed: 1\n"
    "#     min_samples: 10        # a site with fewer declines\n"
    "#     norm_cap: 100          # Frobenius norm of one layer's update\n"
    "#     update_bytes: 64MiB\n"
    "\n"
    "# Ceilings (defaults shown).\n"
    "# limits:\n"
    "#   update_bytes: 256MiB     # sealed update of any task\n"
    "#   chunk_pool: 256MiB       # granted and not yet received, all sites together\n"
    "#   credit: 8                # chunks a transfer\n"
    "#   connections: 12000\n"
    "#   disk_floor: 1GiB         # below it no update is taken\n"
    "#   disk_reserve: 64MiB      # kept for the day the disk is full\n"
    "#   memory: 2GiB             # connections are cut near it; MemoryMax of the unit\n"
    "#   requests_per_s: 50\n"
    "#   handshakes_per_s: 200\n"
    "#   upload_age: 24h\n";

typedef struct {
    const char *dir, *passphrase;
    uint64_t now_ms;
    iso_roster roster;
    iso_minisign_key root, release;
} maker;

static iso_err path_of(const maker *m, const char *name, char out[PATH_MAX], iso_error *e)
{
    int n = snprintf(out, PATH_MAX, "%s/%s", m->dir, name);
    return n > 0 && n < PATH_MAX ? ISO_OK
                                 : iso_fail(e, ISO_ERR_USAGE, "%.60s...: too long", m->dir);
}

static iso_err make_folder(const maker *m, const char *name, iso_error *e)
{
    char path[PATH_MAX];
    iso_err err = path_of(m, name, path, e);
    return err ? err : iso_make_dirs(path, 0700, e);
}

static iso_err write_text(const maker *m, const char *name, const iso_buf *text, unsigned mode,
                          iso_error *e)
{
    char path[PATH_MAX];
    iso_err err = path_of(m, name, path, e);
    return err ? err : iso_write_file(path, text->data, text->size, mode, e);
}

static iso_err make_key(const maker *m, const char *name, iso_key_kind kind, uint8_t public_key[32],
                        iso_error *e)
{
    char path[PATH_MAX];
    iso_key key = {0};
    iso_err err = path_of(m, name, path, e);
    if (!err)
        err = iso_key_make(kind, m->now_ms, &key, e);
    if (!err)
        err = iso_key_write(&key, path, m->passphrase, NULL, e);
    memcpy(public_key, key.public_key, 32);
    iso_key_free(&key);
    return err;
}

static iso_err make_signer(const maker *m, const char *key_name, const char *public_name,
                           iso_minisign_key *key, iso_error *e)
{
    char path[PATH_MAX];
    iso_buf text = {0};
    iso_err err = path_of(m, key_name, path, e);
    if (!err)
        err = iso_minisign_make(key, e);
    if (!err)
        err = iso_minisign_key_write(key, path, m->passphrase, e);
    if (!err)
        err = iso_minisign_public_format(&key->public_part, &text, e);
    if (!err)
        err = write_text(m, public_name, &text, 0644, e);
    iso_buf_free(&text);
    return err;
}

static iso_err make_keys(maker *m, iso_error *e)
{
    uint8_t epoch[8];
    char hex[18];
    iso_roster *r = &m->roster;
    iso_err err = make_key(m, "keys/transport.key", ISO_KEY_COORDINATOR_TRANSPORT,
                           r->coordinator_transport_pk, e);
    if (!err)
        err = make_key(m, "keys/audit.key", ISO_KEY_AUDIT, r->audit_pk, e);
    if (!err)
        err = make_key(m, "merge/merge.key", ISO_KEY_MERGE, r->merge[0].pk, e);
    if (!err)
        err = make_signer(m, "release/minisign.key", "release/minisign.pub", &m->release, e);
    if (!err)
        err = make_signer(m, "root/minisign.key", "root/root.pub", &m->root, e);
    iso_random(epoch, sizeof epoch);
    iso_hex(hex, epoch, sizeof epoch);
    hex[16] = '\n';
    iso_buf text = {.data = (uint8_t *)hex, .size = 17};
    return err ? err : write_text(m, "keys/epoch", &text, 0600, e);
}

static iso_err make_roster(maker *m, iso_error *e)
{
    iso_roster *r = &m->roster;
    iso_buf text = {0}, signature = {0};
    iso_random(r->federation_id, sizeof r->federation_id);
    r->version = 1;
    r->root = m->root.public_part;
    iso_merge_key_id(r->merge[0].pk, r->merge[0].id);
    r->merge[0].not_before_ms = r->release[0].not_before_ms = m->now_ms;
    r->merge[0].state = r->release[0].state = ISO_ROSTER_ACTIVE;
    r->release[0].key = m->release.public_part;
    r->merge_count = r->release_count = 1;
    r->threshold = 1;
    iso_err err = iso_roster_format(r, &text, e);
    if (!err)
        err = iso_roster_sign(&m->root, text.data, text.size, &signature, e);
    if (!err)
        err = write_text(m, "root/roster.json", &text, 0644, e);
    if (!err)
        err = write_text(m, "root/roster.json.minisig", &signature, 0644, e);
    iso_buf_free(&text);
    iso_buf_free(&signature);
    return err;
}

static bool has_quote(const char *text)
{
    return text && strpbrk(text, "\"\\\n") != NULL;
}

static iso_err write_configuration(const maker *m, const iso_coordinator_init_options *o,
                                   iso_error *e)
{
    iso_buf text = {0};
    char backbone[PATH_MAX];
    /* The daemon starts from any folder, so the backbone's path is written out in full. */
    const char *given = o->backbone ? o->backbone : "backbone";
    const char *full = o->backbone ? realpath(o->backbone, backbone) : NULL;
    iso_err err =
        iso_buf_printf(&text, e, configuration, o->name ? o->name : "isofed",
                       o->listen ? o->listen : "127.0.0.1:0", o->advertise ? "" : "# ",
                       o->advertise ? o->advertise : "fl.example.org:7443", full ? full : given);
    if (!err)
        err = write_text(m, "coordinator.yaml", &text, 0644, e);
    iso_buf_free(&text);
    return err;
}

iso_err iso_coordinator_init(const char *dir, const iso_coordinator_init_options *o, iso_error *e)
{
    static const char *const folders[] = {"", "keys", "merge", "release", "root"};
    iso_clock clock = iso_clock_system();
    maker m = {.dir = dir, .passphrase = o->passphrase, .now_ms = clock.wall_ms(clock.ctx)};
    char path[PATH_MAX];
    iso_err err = iso_crypto_init(e);
    if (!err)
        err = path_of(&m, "coordinator.yaml", path, e);
    if (!err && iso_path_exists(path))
        err = iso_fail(e, ISO_ERR_USAGE, "%s exists already: this folder is a coordinator's", path);
    if (!err && (has_quote(o->listen) || has_quote(o->advertise) || has_quote(o->backbone) ||
                 (o->name && !iso_name_is_valid(o->name))))
        err = iso_fail(e, ISO_ERR_USAGE,
                       "name: 1 to 64 letters, digits, '.', '_', '-'; paths without quotes");
    for (size_t i = 0; i < sizeof folders / sizeof folders[0] && !err; i++)
        err = make_folder(&m, folders[i], e);
    if (!err)
        err = make_keys(&m, e);
    if (!err)
        err = make_roster(&m, e);
    if (!err)
        err = write_configuration(&m, o, e);
    iso_minisign_free(&m.root);
    iso_minisign_free(&m.release);
    return err;
}
