#include "sim/sealer_hash.h"

#include "crypto/text.h"

#include <stdio.h>
#include <string.h>

/* ---- the hash: four lanes of multiply-and-fold over 8-byte words ---- */

static inline uint64_t fold(uint64_t a, uint64_t b)
{
    unsigned __int128 p = (unsigned __int128)a * b;
    return (uint64_t)p ^ (uint64_t)(p >> 64);
}

static const uint64_t odd[4] = {0xa0761d6478bd642fu, 0xe7037ed1a0b428dbu, 0x8ebc6af09c88c6e3u,
                                0x589965cc75374cc3u};

typedef struct {
    uint64_t lane[4];
    uint64_t bytes;
} state;

static void start(state *s, const iso_sim_key *key)
{
    for (int i = 0; i < 4; i++)
        s->lane[i] = key->key[i] ^ odd[i];
    s->bytes = 0;
}

/* Whole blocks of 32 bytes and one padded rest: calls with other cuts give other results, so each
 * use fixes its cuts. */
static void add(state *s, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    uint64_t w[4];
    s->bytes += bytes;
    while (bytes > 0) {
        size_t n = bytes < 32 ? bytes : 32;
        if (n < 32)
            memset(w, 0, sizeof w);
        memcpy(w, p, n);
        for (int i = 0; i < 4; i++)
            s->lane[i] = fold(s->lane[i] ^ w[i], odd[(i + 1) & 3] ^ w[(i + 1) & 3]) + odd[i] +
                         s->lane[(i + 3) & 3];
        p += n;
        bytes -= n;
    }
}

static iso_digest end(state *s)
{
    iso_digest d;
    uint64_t all = s->bytes ^ s->lane[0] ^ s->lane[1] ^ s->lane[2] ^ s->lane[3];
    for (int i = 0; i < 4; i++) {
        uint64_t x = fold(s->lane[i] ^ all, odd[i] ^ s->lane[(i + 1) & 3]);
        x = fold(x ^ odd[(i + 2) & 3], all + odd[i]);
        memcpy(d.b + 8 * i, &x, 8);
    }
    return d;
}

iso_digest iso_short_hash(const iso_sim_key *key, const void *data, size_t bytes)
{
    state s;
    start(&s, key);
    add(&s, data, bytes);
    return end(&s);
}

/* ---- the sealer ---- */

static const iso_sim_key unkeyed = {{1, 2, 3, 4}}, chained = {{5, 6, 7, 8}};

static iso_digest do_digest(void *ctx, const void *data, size_t bytes)
{
    (void)ctx;
    return iso_short_hash(&unkeyed, data, bytes);
}

static iso_digest do_chain(void *ctx, const iso_digest *previous, const void *entry, size_t bytes)
{
    (void)ctx;
    state s;
    start(&s, &chained);
    add(&s, previous->b, sizeof previous->b);
    add(&s, entry, bytes);
    return end(&s);
}

static void signature_of(const iso_sim_key *world, unsigned label, const uint8_t pk[32],
                         const void *message, size_t bytes, uint8_t signature[64])
{
    state s;
    uint8_t who[33];
    who[0] = (uint8_t)label;
    memcpy(who + 1, pk, 32);
    start(&s, world);
    add(&s, who, sizeof who);
    add(&s, message, bytes);
    iso_digest d = end(&s);
    memcpy(signature, d.b, 32);
    memcpy(signature + 32, who + 1, 32);
}

static void do_sign(void *ctx, iso_label label, const void *message, size_t bytes,
                    uint8_t signature[ISO_SIGNATURE_BYTES])
{
    const iso_sim_signer *g = ctx;
    signature_of(&g->world, label, g->pk, message, bytes, signature);
}

static bool do_verify(void *ctx, iso_label label, const uint8_t pk[ISO_PK_BYTES],
                      const void *message, size_t bytes, const uint8_t signature[64])
{
    const iso_sim_signer *g = ctx;
    uint8_t right[64];
    signature_of(&g->world, label, pk, message, bytes, right);
    return memcmp(right, signature, 64) == 0;
}

static void do_mac(void *ctx, const uint8_t key[32], const void *message, size_t bytes,
                   uint8_t mac[ISO_MAC_BYTES])
{
    (void)ctx;
    iso_sim_key k;
    memcpy(k.key, key, 32);
    iso_digest d = iso_short_hash(&k, message, bytes);
    memcpy(mac, d.b, 32);
}

static bool do_mac_verify(void *ctx, const uint8_t key[32], const void *message, size_t bytes,
                          const uint8_t mac[ISO_MAC_BYTES])
{
    uint8_t right[32];
    do_mac(ctx, key, message, bytes, right);
    return memcmp(right, mac, 32) == 0;
}

iso_sealer iso_sealer_hash(iso_sim_signer *signer)
{
    return (iso_sealer){.ctx = signer,
                        .digest = do_digest,
                        .chain = do_chain,
                        .verify = do_verify,
                        .sign = do_sign,
                        .mac_verify = do_mac_verify,
                        .mac = do_mac};
}

/* ---- sealed bodies ---- */

/* Stands in for the stream's tag: 16 bytes of hash and a byte that says whether it is the last. */
static void chunk_tag(const iso_sim_key *world, const uint8_t merge_pk[32], const uint8_t *header,
                      uint32_t index, bool is_last, const void *plain, size_t bytes,
                      uint8_t tag[ISO_CHUNK_OVERHEAD_BYTES])
{
    state s;
    uint8_t about[32 + 8 + 176];
    memcpy(about, merge_pk, 32);
    iso_put_u32(about + 32, index);
    iso_put_u32(about + 36, is_last);
    memcpy(about + 40, header + 16, 176); /* federation .. chunk_count, as S30 binds the header */
    start(&s, world);
    add(&s, about, sizeof about);
    add(&s, plain, bytes);
    iso_digest d = end(&s);
    memcpy(tag, d.b, 16);
    tag[16] = is_last;
}

static void write_inner(const iso_envelope *h, const uint8_t sign_pk[32],
                        const uint8_t merge_pk[32], const iso_digest *payload,
                        uint8_t inner[ISO_ENVELOPE_INNER_BYTES])
{
    memset(inner, 0, ISO_ENVELOPE_INNER_BYTES);
    memcpy(inner, "ISOFEDIN", 8);
    memcpy(inner + 8, h->site_id, 16);
    memcpy(inner + 24, sign_pk, 32);
    memcpy(inner + 56, merge_pk, 32);
    memcpy(inner + 88, payload->b, 32);
    memcpy(inner + 120, h->federation_id, 16);
    iso_put_u64(inner + 136, h->plain_size);
}

iso_err iso_hash_seal(const iso_sim_signer *signer, iso_envelope *h, const void *payload,
                      size_t payload_bytes, const uint8_t merge_pk[ISO_PK_BYTES],
                      uint8_t header[ISO_ENVELOPE_HEADER_BYTES],
                      uint8_t signature[ISO_SIGNATURE_BYTES], iso_buf *out, iso_error *e)
{
    h->compression = ISO_COMPRESSION_NONE;
    h->plain_size = payload_bytes;
    h->stream_size = ISO_ENVELOPE_INNER_BYTES + payload_bytes;
    h->chunk_size = h->chunk_size ? h->chunk_size : ISO_CHUNK_MAX_BYTES;
    h->chunk_count = (uint32_t)((h->stream_size + h->chunk_size - 1) / h->chunk_size);
    iso_update_id(h->site_id, h->task_id, h->round, h->sequence, h->update_id);
    iso_digest digest = iso_short_hash(&unkeyed, payload, payload_bytes);
    iso_err err = iso_buf_reserve(out, (size_t)iso_envelope_body_bytes(h), e);
    if (err)
        return err;
    iso_envelope_encode(h, header);
    uint8_t inner[ISO_ENVELOPE_INNER_BYTES];
    write_inner(h, signer->pk, merge_pk, &digest, inner);
    for (uint32_t i = 0; i < h->chunk_count; i++) {
        uint32_t plain = iso_envelope_chunk_bytes(h, i) - ISO_CHUNK_OVERHEAD_BYTES;
        uint8_t *at = out->data + out->size;
        size_t from = (size_t)i * h->chunk_size, skip = 0;
        if (i == 0) {
            memcpy(at, inner, sizeof inner);
            skip = sizeof inner;
        }
        memcpy(at + skip, (const uint8_t *)payload + (from + skip - ISO_ENVELOPE_INNER_BYTES),
               plain - skip);
        chunk_tag(&signer->world, merge_pk, header, i, i + 1 == h->chunk_count, at, plain,
                  at + plain);
        out->size += plain + ISO_CHUNK_OVERHEAD_BYTES;
    }
    h->body_digest = iso_short_hash(&unkeyed, out->data, out->size);
    iso_envelope_encode(h, header);
    signature_of(&signer->world, ISO_LABEL_UPDATE, signer->pk, header, ISO_ENVELOPE_HEADER_BYTES,
                 signature);
    return ISO_OK;
}

iso_code iso_hash_open(const iso_sim_key *world, const uint8_t merge_pk[ISO_PK_BYTES],
                       const uint8_t sign_pk[ISO_PK_BYTES], const uint8_t *header, const void *body,
                       size_t body_bytes, iso_buf *payload)
{
    iso_envelope h;
    iso_code code;
    const uint8_t *at = body;
    payload->size = 0;
    if (iso_envelope_decode(header, ISO_ENVELOPE_HEADER_BYTES, &h, &code, NULL) != ISO_OK)
        return code;
    if (iso_envelope_body_bytes(&h) != body_bytes)
        return ISO_CODE_TRUNCATED;
    iso_digest digest = iso_short_hash(&unkeyed, body, body_bytes);
    if (!iso_digest_equal(&digest, &h.body_digest))
        return ISO_CODE_BODY_DIGEST;
    uint8_t inner[ISO_ENVELOPE_INNER_BYTES], right[ISO_ENVELOPE_INNER_BYTES];
    for (uint32_t i = 0; i < h.chunk_count; i++) {
        uint8_t tag[ISO_CHUNK_OVERHEAD_BYTES];
        uint32_t plain = iso_envelope_chunk_bytes(&h, i) - ISO_CHUNK_OVERHEAD_BYTES;
        chunk_tag(world, merge_pk, header, i, i + 1 == h.chunk_count, at, plain, tag);
        if (memcmp(tag, at + plain, sizeof tag) != 0)
            return at[plain + 16] != tag[16] ? ISO_CODE_STREAM_TAG : ISO_CODE_STREAM;
        size_t skip = i == 0 ? ISO_ENVELOPE_INNER_BYTES : 0;
        if (skip)
            memcpy(inner, at, skip);
        if (iso_buf_append(payload, at + skip, plain - skip, NULL) != ISO_OK)
            return ISO_CODE_INTERNAL;
        at += plain + ISO_CHUNK_OVERHEAD_BYTES;
    }
    digest = iso_short_hash(&unkeyed, payload->data, payload->size);
    write_inner(&h, sign_pk, merge_pk, &digest, right);
    return memcmp(inner, right, sizeof inner) == 0 ? ISO_CODE_OK : ISO_CODE_INNER_MISMATCH;
}

/* ---- release.json.minisig ---- */

static void minisign_bytes(const iso_sim_key *world, const iso_minisign_public *key,
                           const void *text, size_t bytes, uint8_t line[74])
{
    memcpy(line, "ED", 2);
    memcpy(line + 2, key->key_id, 8);
    signature_of(world, 0x80, key->public_key, text, bytes, line + 10);
}

iso_err iso_hash_minisign(const iso_sim_key *world, const iso_minisign_public *key,
                          const void *text, size_t bytes, iso_buf *out, iso_error *e)
{
    uint8_t line[74];
    char first[128], second[128];
    minisign_bytes(world, key, text, bytes, line);
    iso_base64_encode(line, sizeof line, first);
    iso_base64_encode(line + 10, 64, second);
    return iso_buf_printf(out, e,
                          "untrusted comment: signature of a simulation\n%s\n"
                          "trusted comment: isofed-release\n%s\n",
                          first, second);
}

bool iso_hash_minisign_holds(const iso_sim_key *world, const iso_minisign_public *key,
                             const void *text, size_t bytes, const void *signature,
                             size_t signature_bytes)
{
    uint8_t line[74], right[74];
    const char *at = memchr(signature, '\n', signature_bytes);
    size_t chars = iso_base64_chars(sizeof line);
    if (!at || (size_t)((const char *)signature + signature_bytes - at) < chars + 1 ||
        !iso_base64_decode(at + 1, chars, line, sizeof line))
        return false;
    minisign_bytes(world, key, text, bytes, right);
    return memcmp(line, right, sizeof line) == 0;
}
