/* minisign's three files: public key, secret key, signature. */
#include "crypto/init.h"
#include "crypto/minisign.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const iso_minisign_public nobody;
    iso_minisign_public p, again;
    iso_minisign_key k;
    iso_error e;
    iso_buf text = {0};
    uint8_t id[8];
    char comment[ISO_MINISIGN_COMMENT_MAX];
    if (iso_crypto_init(&e))
        abort();
    if (iso_minisign_public_parse(data, size, "fuzz", &p, &e) == ISO_OK)
        if (iso_minisign_public_format(&p, &text, &e) ||
            iso_minisign_public_parse(text.data, text.size, "again", &again, &e) ||
            memcmp(&p, &again, sizeof p) != 0)
            abort();
    if (iso_minisign_key_parse(data, size, "fuzz", NULL, &k, &e) == ISO_OK)
        iso_minisign_free(&k);
    if (iso_minisign_signer(data, size, "fuzz", id, &e) == ISO_OK) {
        iso_minisign_public by = nobody; /* a key of small order signs nothing */
        memcpy(by.key_id, id, sizeof id);
        if (iso_minisign_verify(&by, "x", 1, data, size, "fuzz", comment, &e) == ISO_OK)
            abort();
    }
    iso_buf_free(&text);
    return 0;
}
