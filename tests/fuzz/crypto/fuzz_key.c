/* Key files, without a passphrase (Argon2id would leave no time for anything else): an unsealed one
 * that is read is written back to the same text. */
#include "crypto/init.h"
#include "crypto/key.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    iso_key k;
    iso_error e;
    iso_buf again = {0};
    if (iso_crypto_init(&e))
        abort();
    if (iso_key_parse(data, size, "fuzz", ISO_KEY_ANY, NULL, &k, &e) == ISO_OK) {
        if (iso_key_format(&k, NULL, NULL, &again, &e) || again.size != size ||
            memcmp(again.data, data, size) != 0)
            abort();
        iso_key_free(&k);
    }
    if (iso_key_parse_public(data, size, "fuzz", &k, &e) == ISO_OK)
        iso_key_free(&k);
    iso_buf_free(&again);
    return 0;
}
