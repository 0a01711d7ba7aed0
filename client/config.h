/* What a site is told: client.yaml by its operator, enrolment.json by `isofed enroll`. */
#ifndef ISO_CLIENT_CONFIG_H
#define ISO_CLIENT_CONFIG_H

#include "core/log.h"
#include "core/mem.h"
#include "core/wire.h"

enum { ISO_CLIENT_TASKS_MAX = 64 };

typedef struct {
    const char *task;   /* name, as the coordinator's */
    const char *folder; /* split/class/file; relative paths start at the client's folder */
} iso_client_data;

typedef struct {
    iso_client_data data[ISO_CLIENT_TASKS_MAX];
    size_t data_count;
    const char *backbone; /* Hugging Face folder */
    int64_t threads;      /* 0: all of this machine */
    int64_t nice;         /* of the training thread */
    int accept;           /* 0 auto, 1 manual */
    double margin;        /* S94 */
    double val_share;     /* of each class of train/, where there is no val/ */
    int64_t checkpoint_every;
    uint64_t heartbeat_ms, ping_ms, spread_ms, scan_ms;
    uint64_t outbox_bytes, release_bytes, disk_floor_bytes, cache_bytes;
    int log_level; /* iso_level */
    bool log_json;
} iso_client_config;

/* Reads DIR/client.yaml; unknown keys and bad values are errors with line, nearest key, range.
 * Text lives in `arena`; relative folders are made absolute below `dir`. */
iso_err iso_client_config_read(const char *dir, iso_client_config *config, iso_arena *arena,
                               iso_error *e) ISO_MUST_CHECK;
void iso_client_config_defaults(iso_client_config *config);
/* A commented client.yaml with every key at its default (U6). `backbone` and the first task's name
 * and folder may be NULL: then the lines hold an example to edit. */
iso_err iso_client_config_write(const char *path, const char *backbone, const char *task,
                                const char *folder, iso_error *e) ISO_MUST_CHECK;

/* ---- enrolment.json: written once, by iso_client_enroll() ---- */
typedef struct {
    char name[ISO_NAME_MAX + 1];
    uint8_t federation_id[16], site_id[16];
    char host[256];
    uint16_t port;
    uint8_t coordinator_pk[32];
    uint8_t root_fingerprint[ISO_FINGERPRINT_BYTES];
    uint64_t enrolled_ms;
} iso_enrolment;

iso_err iso_enrolment_read(const char *dir, iso_enrolment *out, iso_error *e) ISO_MUST_CHECK;
iso_err iso_enrolment_write(const char *dir, const iso_enrolment *in, iso_error *e) ISO_MUST_CHECK;

#endif
