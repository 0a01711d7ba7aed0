/* A malicious site: input is what it seals behind an honest inner header (first byte: compressed or
 * not), and then a sealed file of its own making. Only a container may come out. */
#include "crypto/container.h"
#include "crypto/envelope_inner.h"
#include "crypto/init.h"

#include <sodium.h>
#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static iso_key key_of(iso_key_kind kind, uint8_t fill)
{
    uint8_t seed[32];
    iso_key k;
    iso_error e;
    memset(seed, fill, sizeof seed);
    if (iso_crypto_init(&e) || iso_key_from_seed(kind, seed, 0, &k, &e))
        abort();
    return k;
}

static void open_one(const uint8_t *bytes, size_t size, const iso_open_options *opt)
{
    iso_envelope h;
    iso_buf payload = {0};
    iso_code code;
    iso_error e;
    iso_container_file files[ISO_CONTAINER_FILES_MAX];
    size_t count;
    if (iso_envelope_open_memory(bytes, size, opt, &h, &payload, &code, &e) == ISO_OK) {
        if (payload.size != h.plain_size ||
            iso_container_unpack(payload.data, payload.size, files, &count, &code, &e))
            abort();
    } else if (code == ISO_CODE_OK || payload.size) {
        abort();
    }
    iso_buf_free(&payload);
}

/* One chunk, sealed by the book but for what stands behind the inner header. */
static size_t forge(const uint8_t *data, size_t size, bool is_zstd, const iso_key *sign,
                    const iso_key *merge, uint8_t *out)
{
    iso_envelope h = {.compression = is_zstd,
                      .plain_size = is_zstd ? size * 3 : size,
                      .stream_size = ISO_ENVELOPE_INNER_BYTES + size,
                      .chunk_size = ISO_CHUNK_MIN_BYTES,
                      .chunk_count = 1};
    uint8_t key[32] = {7}, ad[ISO_CHUNK_AD_BYTES];
    uint8_t *plain = malloc(ISO_ENVELOPE_INNER_BYTES + size);
    crypto_secretstream_xchacha20poly1305_state s;
    iso_digest d = iso_digest_of(data, size);
    if (!plain)
        abort();
    iso_merge_key_id(merge->public_key, h.merge_key_id);
    iso_update_id(h.site_id, h.task_id, 0, 0, h.update_id);
    iso_inner_encode(&h, sign->public_key, merge->public_key, &d, plain);
    memcpy(plain + ISO_ENVELOPE_INNER_BYTES, data, size);
    crypto_secretstream_xchacha20poly1305_init_push(&s, h.stream_header, key);
    if (crypto_box_seal(h.key_box, key, 32, merge->public_key) != 0)
        abort();
    iso_chunk_ad(&h, ad);
    crypto_secretstream_xchacha20poly1305_push(&s, out + 384, NULL, plain, h.stream_size, ad, 40,
                                               crypto_secretstream_xchacha20poly1305_TAG_FINAL);
    size_t body = (size_t)iso_envelope_body_bytes(&h);
    h.body_digest = iso_digest_of(out + 384, body);
    iso_envelope_encode(&h, out);
    iso_sign(ISO_LABEL_UPDATE, out, 384, sign->secret, out + 384 + body);
    free(plain);
    return 384 + body + 64;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static iso_key sign, merge; /* once a process */
    static const uint8_t federation[16];
    static uint8_t sealed[384 + ISO_CHUNK_MIN_BYTES + 17 + 64];
    if (!sign.secret) {
        sign = key_of(ISO_KEY_SITE_SIGN, 1);
        merge = key_of(ISO_KEY_MERGE, 2);
    }
    const iso_open_options opt = {.merge_key = &merge,
                                  .sign_pk = sign.public_key,
                                  .federation_id = federation,
                                  .max_plain_bytes = 1 << 20};
    if (size >= 2 && size <= ISO_CHUNK_MIN_BYTES - ISO_ENVELOPE_INNER_BYTES) {
        size_t n = forge(data + 1, size - 1, data[0] & 1, &sign, &merge, sealed);
        open_one(sealed, n, &opt);
    }
    open_one(data, size, &opt);
    return 0;
}
