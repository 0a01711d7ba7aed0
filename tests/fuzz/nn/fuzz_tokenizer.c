/* Texts from outside: any bytes become at most as many ids as there is room, all of them known. */
#include "nn/data/tokenizer.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char vocabulary[] =
        "[UNK]\n[CLS]\n[SEP]\na\nb\n##a\n##b\nthe\n##e\n.\n!\n\u5317\n\u00e9\n";
    for (int k = 0; k < 2; k++) {
        iso_tokenizer *t = NULL;
        int32_t ids[32];
        iso_tokenizer_options o = {k == 0, k == 0, k == 0};
        if (iso_tokenizer_make(&t, vocabulary, sizeof vocabulary - 1, &o, "fuzz", NULL))
            abort();
        for (size_t most = 2; most <= 32; most += 15) {
            size_t n = iso_tokenizer_encode(t, (const char *)data, size, ids, most);
            if (n < 2 || n > most || ids[0] != 1 || ids[n - 1] != 2)
                abort();
            for (size_t i = 0; i < n; i++)
                if (ids[i] < 0 || (size_t)ids[i] >= iso_tokenizer_count(t))
                    abort();
        }
        iso_tokenizer_close(t);
        t = NULL; /* and as a vocabulary */
        if (!iso_tokenizer_make(&t, data, size, &o, "fuzz", NULL))
            iso_tokenizer_close(t);
    }
    return 0;
}
