/* Shared by client/daemon.c and client/effects.c only. */
#ifndef ISO_CLIENT_DAEMON_INNER_H
#define ISO_CLIENT_DAEMON_INNER_H

#include "client/daemon.h"

/* An event with all that it points to. */
struct iso_queued_event {
    iso_queued_event *next;
    iso_agent_event ev;
    char text[ISO_ERROR_BYTES];
    uint8_t header[ISO_ENVELOPE_HEADER_BYTES], signature[ISO_SIGNATURE_BYTES];
    iso_trainer_event trainer;
};

void iso_daemon_queue(iso_daemon *d, const iso_agent_event *ev);
iso_err iso_daemon_perform(iso_daemon *d, const iso_agent_effect *x, iso_error *e) ISO_MUST_CHECK;

#endif
