/* What the tests of this room share: keys from fixed seeds, a small sealed update, random bytes
 * from the seeded generator, a scratch folder. */
#ifndef ISO_TESTS_CRYPTO_SUPPORT_H
#define ISO_TESTS_CRYPTO_SUPPORT_H

#include "core/fsio.h"
#include "core/rng.h"
#include "crypto/container.h"
#include "crypto/envelope.h"
#include "crypto/init.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define assert_ok(call)                                                                            \
    do {                                                                                           \
        iso_error call_error = {.text = ""};                                                       \
        if ((call) != ISO_OK)                                                                      \
            fail_msg("%s: %s", #call, call_error.text);                                            \
    } while (0)
/* Inside assert_ok(...): where the line goes. */
#define E (&call_error)

static inline int start_crypto(void **state)
{
    iso_error e;
    (void)state;
    return iso_crypto_init(&e) != ISO_OK;
}

static inline iso_key key_of(iso_key_kind kind, uint8_t fill)
{
    uint8_t seed[32];
    iso_key k;
    memset(seed, fill, sizeof seed);
    assert_ok(iso_key_from_seed(kind, seed, 1700000000000, &k, E));
    return k;
}

static inline void fill_random(uint8_t *out, size_t n, uint64_t seed)
{
    iso_rng r = iso_rng_make(seed, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)iso_rng_u32(&r);
}

/* A container of two files, the second of `bytes` bytes: noise, or text that compresses by half. */
static inline iso_buf payload_of(size_t bytes, bool is_noise)
{
    iso_buf out = {0};
    uint8_t *data = malloc(bytes + 1);
    assert_non_null(data);
    fill_random(data, bytes, bytes);
    for (size_t i = 0; !is_noise && i < bytes; i++)
        data[i] = (uint8_t)("0123456789abcdef"[data[i] & 15]);
    const iso_container_file files[] = {
        {.name = "adapter_model.safetensors", .data = data, .size = bytes},
        {.name = "adapter_config.json", .data = (const uint8_t *)"{}\n", .size = 3},
    };
    assert_ok(iso_container_pack(files, 2, &out, E));
    free(data);
    return out;
}

/* The identity fields of a header; the rest is for sealing to fill. */
static inline iso_envelope header_of(uint32_t chunk_size, uint8_t compression)
{
    iso_envelope h = {
        .compression = compression,
        .round = 7,
        .generation = 2,
        .sequence = 41,
        .created_ms = 1700000001234,
        .chunk_size = chunk_size,
        .sample_count = 640,
        .score = 0.875f,
        .adapter_kind = ISO_KIND_LORA,
        .metric = ISO_METRIC_ACCURACY,
    };
    memset(h.federation_id, 0xfe, 16);
    memset(h.site_id, 0x51, 16);
    memset(h.task_id, 0x7a, 16);
    memset(h.generation_digest.b, 0x6e, 32);
    return h;
}

static inline char *scratch_folder(void)
{
    char *path = iso_strdup("/tmp/isofed-test-crypto-XXXXXX");
    assert_non_null(path);
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void remove_folder(char *path)
{
    assert_ok(iso_remove_tree(path, E));
    free(path);
}

#endif
