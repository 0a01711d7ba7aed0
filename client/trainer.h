/* The seam core/trainer.h for the daemon: the engine on one thread of its own, at low priority.
 *
 * The daemon's thread starts, cancels and polls; the engine's thread never touches sockets or
 * state. A container becomes a blob in poll(), on the daemon's thread, before its result is seen.
 */
#ifndef ISO_CLIENT_TRAINER_H
#define ISO_CLIENT_TRAINER_H

#include "client/engine.h"
#include "core/store.h"

typedef struct iso_client_trainer iso_client_trainer;

/* `store` takes the containers. nice: 0 - 19, of the engine's thread and its helpers. */
iso_err iso_client_trainer_open(iso_client_trainer **out, const iso_engine_options *options,
                                const iso_store *store, int nice, iso_error *e) ISO_MUST_CHECK;
/* Stops a running job at its next step (its checkpoint is written) and waits for it. */
void iso_client_trainer_close(iso_client_trainer *t);
iso_trainer iso_client_trainer_seam(iso_client_trainer *t);
/* Readable when poll() may have something. */
int iso_client_trainer_fd(const iso_client_trainer *t);

#endif
