#include "client/init.h"

#include "client/config.h"
#include "client/enroll.h"
#include "core/fsio.h"

#include <stdlib.h>
#include <string.h>

iso_err iso_client_init(const char *dir, const iso_client_init_options *options,
                        char fingerprint[ISO_FINGERPRINT_TEXT], iso_error *e)
{
    iso_key transport = {0}, sign = {0};
    uint8_t print[ISO_FINGERPRINT_BYTES];
    char *yaml = iso_path_join(dir, "client.yaml");
    char *t = iso_path_join(dir, "keys/transport.key"), *s = iso_path_join(dir, "keys/sign.key");
    iso_err err = yaml && t && s ? iso_make_dirs(dir, 0750, e) : iso_nomem(e, strlen(dir));
    if (err == ISO_OK && !iso_path_exists(yaml))
        err = iso_client_config_write(yaml, options->backbone, options->task, options->folder, e);
    if (err == ISO_OK)
        err = iso_client_make_keys(dir, options->passphrase, e);
    if (err == ISO_OK)
        err = iso_key_read_public(t, &transport, e);
    if (err == ISO_OK)
        err = iso_key_read_public(s, &sign, e);
    if (err == ISO_OK) {
        iso_site_fingerprint(transport.public_key, sign.public_key, print);
        iso_fingerprint_text(print, fingerprint);
    }
    iso_key_free(&transport);
    iso_key_free(&sign);
    free(yaml);
    free(t);
    free(s);
    return err;
}
