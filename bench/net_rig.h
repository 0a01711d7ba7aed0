/* A coordinator in a temporary folder and many sites in one loop, for `isofed bench net`: real
 * daemon, real keys, real enrolment; the sites' side is as thin as the protocol allows. */
#ifndef ISO_BENCH_NET_RIG_H
#define ISO_BENCH_NET_RIG_H

#include "core/clock.h"
#include "crypto/envelope.h"
#include "proto/message.h"

#include <sys/types.h>

enum { NET_TASKS = 63, NET_IN_FLIGHT = 2 };

typedef struct {
    uint8_t task_id[16], upload_id[16];
    uint64_t round;
    iso_buf sealed; /* header, body, signature */
    uint32_t chunks, next, granted;
    enum { NET_READY, NET_BEGUN, NET_OPEN, NET_COMMITTED, NET_DONE } state;
} net_update;

typedef struct {
    char name[32];
    iso_key transport, sign;
    uint8_t id[16], nonce[32];
    void *socket;
    bool is_greeted, is_enrolled;
    uint64_t sequence;
    uint64_t next_id;
    iso_msg_invite invites[NET_TASKS + 1]; /* without what they point to */
    size_t invite_count;
    net_update *updates;
    size_t update_count, first_open, done;
} net_site;

typedef struct {
    char dir[64];
    pid_t pid;
    uint16_t port;
    int admin;
    void *context;
    iso_arena arena;
    uint8_t federation[16], coordinator_pk[32], merge_pk[32];
    net_site *sites;
    size_t site_count;
} net_rig;

/* `config` follows the lines that say where things are. ISO_ERR_USAGE when the programs are not
 * beside this one. */
iso_err net_open(net_rig *r, const char *config, size_t site_count, iso_error *e) ISO_MUST_CHECK;
void net_close(net_rig *r);

/* Sites `from` .. `to` - 1: enrols those that are not, connects those that are not, says Hello. */
iso_err net_join(net_rig *r, size_t from, size_t to, iso_error *e) ISO_MUST_CHECK;
/* One command to the coordinator (NULL: sent before, with another); its reply must be ok. */
iso_err net_command(net_rig *r, const char *json, iso_buf *reply, iso_error *e) ISO_MUST_CHECK;
/* Takes what arrives for the sites until `is_done`, at most `timeout_s`. */
iso_err net_run(net_rig *r, size_t from, size_t to, bool (*is_done)(const net_site *s),
                double timeout_s, iso_error *e) ISO_MUST_CHECK;
/* Seals an update of `bytes` for the site's next invitation. */
iso_err net_seal(net_rig *r, net_site *s, size_t invite, size_t bytes, iso_error *e) ISO_MUST_CHECK;
/* Sends Begin for what is ready, as much as the protocol lets a site have open. */
iso_err net_start(net_rig *r, net_site *s, iso_error *e) ISO_MUST_CHECK;

/* Resident bytes of the daemon. */
uint64_t net_resident(const net_rig *r);
/* Seconds of processor time it has used. */
double net_processor(const net_rig *r);

#endif
