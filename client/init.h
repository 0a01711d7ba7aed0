/* `isofed init client DIR`: a commented, working configuration with keys (U6). */
#ifndef ISO_CLIENT_INIT_H
#define ISO_CLIENT_INIT_H

#include "crypto/key.h"

typedef struct {
    const char *backbone, *task, *folder; /* for client.yaml; NULL: an example to edit */
    const char *passphrase;               /* of the keys; NULL: bare */
} iso_client_init_options;

/* Makes the folder, client.yaml and both keys. What is there already stays as it is; the
 * fingerprint of the keys goes to `fingerprint`. */
iso_err iso_client_init(const char *dir, const iso_client_init_options *options,
                        char fingerprint[ISO_FINGERPRINT_TEXT], iso_error *e) ISO_MUST_CHECK;

#endif
