/* Replays a corpus without libFuzzer: every file of the folder, and for each a fixed number of
 * seeded mutations (flip, cut, splice), so that the ordinary build meets bad bytes too. */
#include "core/fsio.h"
#include "core/rng.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

enum { MUTATIONS_A_FILE = 300, MAX_BYTES = 1 << 20 };

static void mutate(const iso_buf *in, uint64_t seed)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 0);
    uint8_t *copy = malloc(in->size + 64); /* exact size below, so that ASan sees overreads */
    if (!copy)
        exit(5);
    memcpy(copy, in->data, in->size);
    size_t n = in->size;
    uint32_t edits = 1 + iso_rng_below(&r, 4);
    for (uint32_t k = 0; k < edits && n; k++) {
        size_t at = iso_rng_below(&r, (uint32_t)n);
        switch (iso_rng_below(&r, 4)) {
        case 0:
            copy[at] ^= (uint8_t)(1u << iso_rng_below(&r, 8));
            break;
        case 1:
            copy[at] = (uint8_t)iso_rng_u32(&r);
            break;
        case 2:
            n = at;
            break;
        default: {
            size_t from = iso_rng_below(&r, (uint32_t)n);
            size_t len = iso_rng_below(&r, 16);
            if (from + len > n)
                len = n - from;
            if (at + len > n)
                len = n - at;
            memmove(copy + at, copy + from, len);
        }
        }
    }
    uint8_t *exact = malloc(n ? n : 1);
    if (!exact)
        exit(5);
    memcpy(exact, copy, n);
    LLVMFuzzerTestOneInput(exact, n);
    free(exact);
    free(copy);
}

int main(int argc, char **argv)
{
    iso_error e;
    iso_names names = {0};
    if (argc != 2 || iso_list_dir(argv[1], &names, &e)) {
        fprintf(stderr, "usage: %s CORPUS-FOLDER\n", argv[0]);
        return 2;
    }
    size_t runs = 0;
    for (size_t i = 0; i < names.count; i++) {
        char *path = iso_path_join(argv[1], names.names[i]);
        iso_buf b = {0};
        if (!path || iso_read_file(path, MAX_BYTES, &b, &e)) {
            fprintf(stderr, "%s: %s\n", names.names[i], e.text);
            return 3;
        }
        LLVMFuzzerTestOneInput(b.data, b.size);
        for (uint64_t m = 0; m < MUTATIONS_A_FILE; m++, runs++)
            mutate(&b, iso_rng_seed_name(m, names.names[i]));
        iso_buf_free(&b);
        free(path);
    }
    printf("%zu files, %zu mutations\n", names.count, runs);
    int rc = names.count ? 0 : 1; /* an empty corpus tests nothing */
    iso_names_free(&names);
    return rc;
}
