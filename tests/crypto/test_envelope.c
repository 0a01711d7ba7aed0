/* The sealed envelope: byte layout, round trips, every way of being changed (S29 - S40). */
#include "crypto/envelope_inner.h"
#include "tests/crypto/support.h"

#include <math.h>
#include <sodium.h>
#include <zstd.h>

/* One site, one merge worker. */
typedef struct {
    iso_key sign, merge;
    iso_open_options opt;
    uint8_t federation[16];
} world;

static world open_world(void)
{
    world w = {.sign = key_of(ISO_KEY_SITE_SIGN, 1), .merge = key_of(ISO_KEY_MERGE, 2)};
    memset(w.federation, 0xfe, 16);
    return w;
}

static const iso_open_options *options(world *w)
{
    w->opt = (iso_open_options){
        .merge_key = &w->merge, .sign_pk = w->sign.public_key, .federation_id = w->federation};
    return &w->opt;
}

static void close_world(world *w)
{
    iso_key_free(&w->sign);
    iso_key_free(&w->merge);
}

static iso_buf seal(world *w, uint32_t chunk_size, uint8_t compression, const iso_buf *payload)
{
    iso_buf out = {0};
    iso_envelope h = header_of(chunk_size, compression);
    assert_ok(iso_envelope_seal(&h, payload->data, payload->size, &w->sign, w->merge.public_key,
                                &out, E));
    return out;
}

/* Opens a copy of exactly `size` bytes (so that ASan sees a read past them); returns the code. */
static iso_code open_code(world *w, const uint8_t *bytes, size_t size)
{
    iso_envelope h;
    iso_buf payload = {0};
    iso_code code;
    iso_error e = {.text = ""};
    uint8_t *copy = malloc(size ? size : 1);
    memcpy(copy, bytes, size);
    iso_err err = iso_envelope_open_memory(copy, size, options(w), &h, &payload, &code, &e);
    free(copy);
    if (err) {
        assert_int_not_equal(code, ISO_CODE_OK);
        assert_int_equal(payload.size, 0);
        assert_true(strlen(e.text) > 0);
    } else {
        assert_int_equal(code, ISO_CODE_OK);
    }
    iso_buf_free(&payload);
    return code;
}

/* Signs the header anew, as a malicious site would after changing it. */
static void sign_again(world *w, iso_buf *sealed)
{
    iso_sign(ISO_LABEL_UPDATE, sealed->data, 384, w->sign.secret, sealed->data + sealed->size - 64);
}

/* ---- layout ---- */

static void S29_header_is_the_table_of_bytes(void **state)
{
    (void)state;
    uint8_t p[ISO_ENVELOPE_HEADER_BYTES], again[ISO_ENVELOPE_HEADER_BYTES];
    iso_envelope h = header_of(65536, ISO_COMPRESSION_NONE);
    iso_code code;
    h.plain_size = 100000;
    h.stream_size = 100160;
    h.chunk_count = 2;
    memset(h.base_digest.b, 0xba, 32);
    memset(h.merge_key_id, 0x3e, 16);
    memset(h.stream_header, 0x24, 24);
    memset(h.key_box, 0x80, 80);
    memset(h.body_digest.b, 0xbd, 32);
    iso_update_id(h.site_id, h.task_id, h.round, h.sequence, h.update_id);
    iso_envelope_encode(&h, p);
    static const struct {
        size_t at, size;
        uint64_t value;
    } numbers[] = {{8, 2, 1},        {10, 2, 384},     {12, 1, 0},
                   {13, 1, 0},       {14, 2, 0},       {64, 8, 7},
                   {72, 8, 2},       {144, 8, 41},     {152, 8, 1700000001234},
                   {160, 8, 100000}, {168, 8, 100160}, {176, 4, 65536},
                   {180, 4, 2},      {184, 8, 640},    {192, 4, 0x3f600000},
                   {196, 2, 1},      {198, 2, 1},      {368, 8, 0},
                   {376, 8, 0}};
    static const struct {
        size_t at, size;
        uint8_t fill;
    } bytes[] = {{16, 16, 0xfe},  {32, 16, 0x51},  {48, 16, 0x7a},  {80, 32, 0x6e}, {112, 32, 0xba},
                 {200, 16, 0x3e}, {232, 24, 0x24}, {256, 80, 0x80}, {336, 32, 0xbd}};
    assert_memory_equal(p, "ISOFEDU1", 8);
    for (size_t i = 0; i < sizeof numbers / sizeof numbers[0]; i++) {
        uint64_t v = 0;
        for (size_t k = numbers[i].size; k-- > 0;)
            v = v << 8 | p[numbers[i].at + k];
        assert_int_equal(v, numbers[i].value);
    }
    for (size_t i = 0; i < sizeof bytes / sizeof bytes[0]; i++)
        for (size_t k = 0; k < bytes[i].size; k++)
            assert_int_equal(p[bytes[i].at + k], bytes[i].fill);
    assert_memory_equal(p + 216, h.update_id, 16);

    iso_envelope back;
    assert_ok(iso_envelope_decode(p, sizeof p, &back, &code, E));
    iso_envelope_encode(&back, again);
    assert_memory_equal(p, again, sizeof p);
    assert_int_equal(iso_envelope_chunk_bytes(&back, 0), 65536 + 17);
    assert_int_equal(iso_envelope_chunk_bytes(&back, 1), 100160 - 65536 + 17);
    assert_int_equal(iso_envelope_chunk_bytes(&back, 2), 0);
    assert_int_equal(iso_envelope_file_bytes(&back), 384 + 100160 + 2 * 17 + 64);
}

static void S29_signature_is_plain_ed25519_over_label_and_blake2b512(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(100, true);
    iso_buf sealed = seal(&w, 65536, 0, &payload);
    uint8_t message[16 + 64] = "isofed-update-1";
    crypto_generichash(message + 16, 64, sealed.data, 384, NULL, 0);
    assert_int_equal(crypto_sign_verify_detached(sealed.data + sealed.size - 64, message,
                                                 sizeof message, w.sign.public_key),
                     0);
    iso_code code;
    iso_error e;
    assert_ok(iso_envelope_check_signature(sealed.data, sealed.data + sealed.size - 64,
                                           w.sign.public_key, &code, E));
    sealed.data[200] ^= 1;
    assert_int_equal(iso_envelope_check_signature(sealed.data, sealed.data + sealed.size - 64,
                                                  w.sign.public_key, &code, &e),
                     ISO_ERR_TRUST);
    assert_int_equal(code, ISO_CODE_SIGNATURE);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
}

static void S29_update_id_follows_from_site_task_round_sequence(void **state)
{
    (void)state;
    uint8_t site[16], task[16], id[16], bytes[48];
    memset(site, 1, 16);
    memset(task, 2, 16);
    memcpy(bytes, site, 16);
    memcpy(bytes + 16, task, 16);
    iso_put_u64(bytes + 32, 3);
    iso_put_u64(bytes + 40, 4);
    iso_digest d = iso_digest_of(bytes, 48);
    iso_update_id(site, task, 3, 4, id);
    assert_memory_equal(id, d.b, 16);
}

/* ---- row 1: headers that are refused ---- */

typedef void change_fn(uint8_t *p);
static void magic(uint8_t *p)
{
    p[7] = '2';
}
static void version(uint8_t *p)
{
    p[8] = 2;
}
static void header_size(uint8_t *p)
{
    p[10] = 0;
}
static void seal_mode(uint8_t *p)
{
    p[12] = 1;
}
static void compression(uint8_t *p)
{
    p[13] = 2;
}
static void flags(uint8_t *p)
{
    p[14] = 1;
}
static void chunk_zero(uint8_t *p)
{
    iso_put_u32(p + 176, 0);
}
static void chunk_small(uint8_t *p)
{
    iso_put_u32(p + 176, 32768);
}
static void chunk_large(uint8_t *p)
{
    iso_put_u32(p + 176, 524288);
}
static void chunk_odd(uint8_t *p)
{
    iso_put_u32(p + 176, 65537);
}
static void count_more(uint8_t *p)
{
    iso_put_u32(p + 180, 3);
}
static void count_less(uint8_t *p)
{
    iso_put_u32(p + 180, 1);
}
static void count_zero(uint8_t *p)
{
    iso_put_u32(p + 180, 0);
}
static void stream_empty(uint8_t *p)
{
    iso_put_u64(p + 168, 160), iso_put_u32(p + 180, 1);
}
static void stream_huge(uint8_t *p)
{
    iso_put_u64(p + 168, UINT64_MAX);
}
static void stream_past_chunks(uint8_t *p)
{
    iso_put_u64(p + 168, ((uint64_t)1 << 36) + 1);
    iso_put_u32(p + 180, (1u << 20) + 1);
}
static void plain_other(uint8_t *p)
{
    iso_put_u64(p + 160, 99999);
}
static void plain_bomb(uint8_t *p)
{
    p[13] = 1, iso_put_u64(p + 160, 20 * 100000 + 1);
}
static void plain_zero(uint8_t *p)
{
    p[13] = 1, iso_put_u64(p + 160, 0);
}
static void samples(uint8_t *p)
{
    iso_put_u64(p + 184, 1000000001);
}
static void score_nan(uint8_t *p)
{
    iso_put_u32(p + 192, 0x7fc00000);
}
static void score_inf(uint8_t *p)
{
    iso_put_u32(p + 192, 0xff800000);
}
static void update_id(uint8_t *p)
{
    p[216] ^= 1;
}
static void reserved_first(uint8_t *p)
{
    p[368] = 1;
}
static void reserved_last(uint8_t *p)
{
    p[383] = 1;
}

static void S33_headers_have_one_encoding(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        change_fn *change;
        iso_code code;
    } rows[] = {
        {"magic", magic, ISO_CODE_BAD_ENVELOPE},
        {"version", version, ISO_CODE_BAD_ENVELOPE},
        {"header size", header_size, ISO_CODE_BAD_ENVELOPE},
        {"seal mode", seal_mode, ISO_CODE_SEAL_MODE},
        {"compression", compression, ISO_CODE_BAD_ENVELOPE},
        {"flags", flags, ISO_CODE_BAD_ENVELOPE},
        {"chunk size zero", chunk_zero, ISO_CODE_BAD_ENVELOPE},
        {"chunk size small", chunk_small, ISO_CODE_BAD_ENVELOPE},
        {"chunk size large", chunk_large, ISO_CODE_BAD_ENVELOPE},
        {"chunk size odd", chunk_odd, ISO_CODE_BAD_ENVELOPE},
        {"chunk count more", count_more, ISO_CODE_BAD_ENVELOPE},
        {"chunk count less", count_less, ISO_CODE_BAD_ENVELOPE},
        {"chunk count zero", count_zero, ISO_CODE_BAD_ENVELOPE},
        {"stream empty", stream_empty, ISO_CODE_BAD_ENVELOPE},
        {"stream huge", stream_huge, ISO_CODE_BAD_ENVELOPE},
        {"stream past 2^20 chunks", stream_past_chunks, ISO_CODE_BAD_ENVELOPE},
        {"plain size", plain_other, ISO_CODE_BAD_ENVELOPE},
        {"plain size above ratio", plain_bomb, ISO_CODE_BAD_ENVELOPE},
        {"plain size zero", plain_zero, ISO_CODE_BAD_ENVELOPE},
        {"sample count", samples, ISO_CODE_BAD_ENVELOPE},
        {"score NaN", score_nan, ISO_CODE_BAD_ENVELOPE},
        {"score infinite", score_inf, ISO_CODE_BAD_ENVELOPE},
        {"update id", update_id, ISO_CODE_BAD_ENVELOPE},
        {"reserved first", reserved_first, ISO_CODE_BAD_ENVELOPE},
        {"reserved last", reserved_last, ISO_CODE_BAD_ENVELOPE},
    };
    iso_envelope h = header_of(65536, ISO_COMPRESSION_NONE), out;
    h.plain_size = 100000;
    h.stream_size = 100160;
    h.chunk_count = 2;
    iso_update_id(h.site_id, h.task_id, h.round, h.sequence, h.update_id);
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint8_t p[ISO_ENVELOPE_HEADER_BYTES];
        iso_code code = ISO_CODE_OK;
        iso_error e;
        iso_envelope_encode(&h, p);
        rows[i].change(p);
        if (iso_envelope_decode(p, sizeof p, &out, &code, &e) == ISO_OK)
            fail_msg("accepted: %s", rows[i].name);
        if (code != rows[i].code)
            fail_msg("%s: code %s", rows[i].name, iso_code_name(code));
    }
    uint8_t p[ISO_ENVELOPE_HEADER_BYTES + 1] = {0};
    iso_code code;
    iso_error e;
    iso_envelope_encode(&h, p);
    assert_int_equal(iso_envelope_decode(p, 383, &out, &code, &e), ISO_ERR_DATA);
    assert_int_equal(iso_envelope_decode(p, 385, &out, &code, &e), ISO_ERR_DATA);
    assert_ok(iso_envelope_decode(p, 384, &out, &code, E));
}

/* ---- round trips ---- */

static void S31_what_is_sealed_opens_to_the_same_bytes(void **state)
{
    (void)state;
    static const struct {
        size_t bytes;
        uint32_t chunk_size;
        uint8_t compression;
        bool is_noise;
        uint32_t chunks; /* 0: not checked */
        uint8_t becomes;
    } rows[] = {
        {0, 0, 0, true, 1, 0},
        {1000, 0, 0, true, 1, 0},
        /* 160 + 4 + names and sizes 64 + bytes: the stream's end on, before and after a chunk's */
        {65536 - 228 - 3, 65536, 0, true, 1, 0},
        {65536 - 228 - 2, 65536, 0, true, 0, 0},
        {65536 - 228 + 6, 65536, 0, true, 0, 0},
        {300000, 65536, 0, true, 5, 0},
        {300000, 131072, 0, true, 3, 0},
        {300000, 262144, 1, false, 0, 1}, /* text: zstd stays */
        {300000, 65536, 1, true, 5, 0},   /* noise: zstd is dropped */
    };
    world w = open_world();
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        iso_buf payload = payload_of(rows[i].bytes, rows[i].is_noise), got = {0};
        iso_buf sealed = seal(&w, rows[i].chunk_size, rows[i].compression, &payload);
        iso_envelope h;
        iso_code code;
        assert_ok(
            iso_envelope_open_memory(sealed.data, sealed.size, options(&w), &h, &got, &code, E));
        assert_int_equal(got.size, payload.size);
        assert_memory_equal(got.data, payload.data, got.size);
        assert_int_equal(h.compression, rows[i].becomes);
        assert_int_equal(iso_envelope_file_bytes(&h), sealed.size);
        if (rows[i].chunks)
            assert_int_equal(h.chunk_count, rows[i].chunks);
        iso_buf_free(&got);
        iso_buf_free(&sealed);
        iso_buf_free(&payload);
    }
    close_world(&w);
}

static void S35_zstd_that_shrinks_too_much_is_not_used(void **state)
{
    (void)state;
    world w = open_world();
    uint8_t *zeros = calloc(1, 200000);
    const iso_container_file file = {
        .name = "adapter_model.safetensors", .data = zeros, .size = 200000};
    iso_buf payload = {0};
    assert_ok(iso_container_pack(&file, 1, &payload, E));
    iso_buf sealed = seal(&w, 0, ISO_COMPRESSION_ZSTD, &payload);
    assert_int_equal(sealed.data[13], ISO_COMPRESSION_NONE);
    assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_OK);
    free(zeros);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
}

static void S34_sealing_twice_gives_other_bytes(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(1000, true);
    iso_buf a = seal(&w, 0, 0, &payload), b = seal(&w, 0, 0, &payload);
    assert_int_equal(a.size, b.size);
    assert_memory_not_equal(a.data + 232, b.data + 232, 24);
    assert_memory_not_equal(a.data + 384, b.data + 384, 200);
    iso_buf_free(&a);
    iso_buf_free(&b);
    iso_buf_free(&payload);
    close_world(&w);
}

static void S34_file_and_memory_agree(void **state)
{
    (void)state;
    world w = open_world();
    char *folder = scratch_folder(), *path = iso_path_join(folder, "update.sealed");
    iso_buf payload = payload_of(200000, true), got = {0}, file = {0};
    iso_envelope h = header_of(65536, 0), back;
    iso_code code;
    assert_ok(iso_envelope_seal_file(&h, payload.data, payload.size, &w.sign, w.merge.public_key,
                                     path, E));
    assert_ok(iso_envelope_open_file(path, options(&w), &back, &got, &code, E));
    assert_int_equal(got.size, payload.size);
    assert_memory_equal(got.data, payload.data, got.size);
    assert_ok(iso_read_file(path, 1 << 20, &file, E));
    uint8_t header[384];
    iso_envelope_encode(&h, header);
    assert_memory_equal(header, file.data, 384);
    assert_int_equal(open_code(&w, file.data, file.size), ISO_CODE_OK);
    iso_buf_free(&file);
    iso_buf_free(&got);
    iso_buf_free(&payload);
    free(path);
    remove_folder(folder);
    close_world(&w);
}

/* ---- every way of being changed ---- */

static void S40_every_byte_of_a_small_update_flipped_once_is_refused(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(600, true);
    iso_buf sealed = seal(&w, 65536, 0, &payload);
    assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_OK);
    iso_rng r = iso_rng_make(40, ISO_RNG_TEST, 0);
    for (size_t i = 0; i < sealed.size; i++) {
        uint8_t bit = (uint8_t)(1u << iso_rng_below(&r, 8));
        sealed.data[i] ^= bit;
        if (open_code(&w, sealed.data, sealed.size) == ISO_CODE_OK)
            fail_msg("byte %zu flipped by 0x%02x was accepted", i, bit);
        sealed.data[i] ^= bit;
    }
    assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_OK);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
}

/* Each bit of header, box and signature, and bits all over the first, a middle and the last chunk.
 */
static void S40_single_bits_of_a_larger_update_are_refused(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(140000, true);
    iso_buf sealed = seal(&w, 65536, 0, &payload);
    size_t tail = sealed.size - 64;
    iso_rng r = iso_rng_make(42, ISO_RNG_TEST, 0);
    for (size_t bit = 0; bit < 8 * (384 + 64) + 300; bit++) {
        size_t at = bit / 8;
        if (at >= 384)
            at = tail + (at - 384);
        if (bit >= 8 * (384 + 64))
            at = 384 + iso_rng_below(&r, (uint32_t)(tail - 384));
        sealed.data[at] ^= (uint8_t)(1u << bit % 8);
        if (open_code(&w, sealed.data, sealed.size) == ISO_CODE_OK)
            fail_msg("bit %zu of byte %zu was accepted", bit % 8, at);
        sealed.data[at] ^= (uint8_t)(1u << bit % 8);
    }
    assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_OK);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
}

/* The same where the attacker is the site itself and signs the header again: what the signature no
 * longer catches, digest, box, stream and inner header must. */
static void S40_flips_under_a_fresh_signature_are_refused(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(600, true);
    iso_buf sealed = seal(&w, 65536, 0, &payload), copy = {0};
    size_t accepted = 0;
    for (size_t i = 0; i + 64 < sealed.size; i++) {
        copy.size = 0;
        assert_ok(iso_buf_append(&copy, sealed.data, sealed.size, E));
        copy.data[i] ^= 0x10;
        bool is_body = i >= 384;
        if (is_body) { /* an honest digest of the changed body */
            iso_digest d = iso_digest_of(copy.data + 384, copy.size - 384 - 64);
            memcpy(copy.data + 336, d.b, 32);
        }
        sign_again(&w, &copy);
        if (open_code(&w, copy.data, copy.size) == ISO_CODE_OK)
            accepted++;
    }
    /* The header is the associated data of every chunk: nothing of it can be changed either. */
    assert_int_equal(accepted, 0);
    iso_buf_free(&copy);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
}

static void S40_every_prefix_and_every_surplus_is_refused(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(200000, true);
    iso_buf sealed = seal(&w, 65536, 0, &payload);
    size_t edges[16], count = 0, at = 384;
    iso_envelope h;
    iso_code code;
    assert_ok(iso_envelope_decode(sealed.data, 384, &h, &code, E));
    edges[count++] = 0;
    edges[count++] = 384;
    for (uint32_t i = 0; i < h.chunk_count; i++) {
        at += iso_envelope_chunk_bytes(&h, i);
        edges[count++] = at;
    }
    edges[count++] = sealed.size;
    for (size_t k = 0; k < count; k++)
        for (size_t d = 0; d < 20; d++) {
            size_t low = edges[k] >= d ? edges[k] - d : 0, high = edges[k] + d;
            if (low < sealed.size)
                assert_int_not_equal(open_code(&w, sealed.data, low), ISO_CODE_OK);
            if (high < sealed.size)
                assert_int_not_equal(open_code(&w, sealed.data, high), ISO_CODE_OK);
        }
    iso_rng r = iso_rng_make(41, ISO_RNG_TEST, 0);
    for (int k = 0; k < 100; k++)
        assert_int_not_equal(open_code(&w, sealed.data, iso_rng_below(&r, (uint32_t)sealed.size)),
                             ISO_CODE_OK);
    size_t whole = sealed.size;
    for (size_t more = 1; more < 100; more += 7) { /* appended bytes */
        uint8_t zeros[100] = {0};
        assert_ok(iso_buf_append(&sealed, zeros, more, E));
        assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_TRUNCATED);
        sealed.size = whole;
    }
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
}

/* Puts a body together from chunks of a 4-chunk update by index, with an honest digest, counts and
 * signature: only the stream can tell. */
static iso_code rearranged(world *w, const iso_buf *sealed, const uint32_t order[], uint32_t count)
{
    enum { FULL = 65536 + 17 };
    iso_buf b = {0};
    uint64_t last = sealed->size - 384 - 64 - 3 * (uint64_t)FULL, stream = 0;
    assert_ok(iso_buf_append(&b, sealed->data, 384, E));
    for (uint32_t i = 0; i < count; i++) {
        size_t bytes = order[i] == 3 ? (size_t)last : FULL;
        assert_ok(iso_buf_append(&b, sealed->data + 384 + (size_t)order[i] * FULL, bytes, E));
        stream += bytes - 17;
    }
    assert_ok(iso_buf_append(&b, sealed->data + sealed->size - 64, 64, E));
    iso_put_u64(b.data + 168, stream);
    iso_put_u64(b.data + 160, stream - 160);
    iso_put_u32(b.data + 180, count);
    iso_digest d = iso_digest_of(b.data + 384, b.size - 384 - 64);
    memcpy(b.data + 336, d.b, 32);
    sign_again(w, &b);
    iso_code code = open_code(w, b.data, b.size);
    iso_buf_free(&b);
    return code;
}

static void S40_swapped_duplicated_dropped_chunks_are_refused(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(200000, true);
    iso_buf sealed = seal(&w, 65536, 0, &payload);
    static const struct {
        const char *name;
        uint32_t count, order[5];
    } rows[] = {
        {"swapped", 4, {0, 2, 1, 3}},
        {"first moved", 4, {1, 0, 2, 3}},
        {"duplicated", 5, {0, 1, 1, 2, 3}},
        {"dropped in the middle", 3, {0, 2, 3}},
        {"dropped at the end", 3, {0, 1, 2}},
        {"first dropped", 3, {1, 2, 3}},
        {"only the last", 1, {3}},
    };
    const uint32_t same[] = {0, 1, 2, 3};
    assert_int_equal(rearranged(&w, &sealed, same, 4), ISO_CODE_OK); /* the tool itself is fine */
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        if (rearranged(&w, &sealed, rows[i].order, rows[i].count) == ISO_CODE_OK)
            fail_msg("accepted: %s", rows[i].name);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
}

/* ---- a site that seals by its own rules ---- */

typedef struct {
    uint32_t chunk_size;
    unsigned char middle_tag, last_tag;
    const uint8_t *inner;       /* NULL: an honest one */
    const void *stream_payload; /* what stands behind the inner header */
    size_t stream_payload_size;
    uint64_t plain_size;
    uint8_t compression;
} forged;

/* As iso_envelope_seal, but with every rule up to the forger. */
static iso_buf forge(world *w, const forged *f, const void *payload, size_t payload_size)
{
    iso_envelope h = header_of(f->chunk_size, f->compression);
    uint8_t key[32], inner[160], header[384], signature[64], ad[40];
    crypto_secretstream_xchacha20poly1305_state s;
    iso_buf out = {0}, stream = {0};
    iso_digest d = iso_digest_of(payload, payload_size);
    h.plain_size = f->plain_size;
    h.stream_size = 160 + f->stream_payload_size;
    h.chunk_count = (uint32_t)((h.stream_size + h.chunk_size - 1) / h.chunk_size);
    iso_merge_key_id(w->merge.public_key, h.merge_key_id);
    iso_update_id(h.site_id, h.task_id, h.round, h.sequence, h.update_id);
    iso_inner_encode(&h, w->sign.public_key, w->merge.public_key, &d, inner);
    if (f->inner)
        memcpy(inner, f->inner, 160);
    assert_ok(iso_buf_append(&stream, inner, 160, E));
    assert_ok(iso_buf_append(&stream, f->stream_payload, f->stream_payload_size, E));
    crypto_secretstream_xchacha20poly1305_keygen(key);
    crypto_secretstream_xchacha20poly1305_init_push(&s, h.stream_header, key);
    assert_int_equal(crypto_box_seal(h.key_box, key, 32, w->merge.public_key), 0);
    iso_chunk_ad(&h, ad);
    assert_ok(iso_buf_append(&out, header, 384, E));
    for (uint32_t i = 0; i < h.chunk_count; i++) {
        uint32_t bytes = iso_envelope_chunk_bytes(&h, i);
        uint8_t *sealed = malloc(bytes);
        bool is_last = i + 1 == h.chunk_count;
        iso_put_u32(ad + 32, i);
        crypto_secretstream_xchacha20poly1305_push(
            &s, sealed, NULL, stream.data + (size_t)i * h.chunk_size, bytes - 17, ad, 40,
            is_last ? f->last_tag : f->middle_tag);
        assert_ok(iso_buf_append(&out, sealed, bytes, E));
        free(sealed);
    }
    h.body_digest = iso_digest_of(out.data + 384, out.size - 384);
    iso_envelope_encode(&h, out.data);
    iso_sign(ISO_LABEL_UPDATE, out.data, 384, w->sign.secret, signature);
    assert_ok(iso_buf_append(&out, signature, 64, E));
    iso_buf_free(&stream);
    return out;
}

static forged honest(const iso_buf *payload)
{
    return (forged){.chunk_size = 65536,
                    .middle_tag = crypto_secretstream_xchacha20poly1305_TAG_MESSAGE,
                    .last_tag = crypto_secretstream_xchacha20poly1305_TAG_FINAL,
                    .stream_payload = payload->data,
                    .stream_payload_size = payload->size,
                    .plain_size = payload->size};
}

static iso_code forged_code(world *w, const forged *f, const iso_buf *payload)
{
    iso_buf sealed = forge(w, f, payload->data, payload->size);
    iso_code code = open_code(w, sealed.data, sealed.size);
    iso_buf_free(&sealed);
    return code;
}

static void S30_every_tag_rule(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(150000, true);
    forged f = honest(&payload);
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_OK);
    f.last_tag = crypto_secretstream_xchacha20poly1305_TAG_MESSAGE;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_TRUNCATED);
    f.last_tag = crypto_secretstream_xchacha20poly1305_TAG_PUSH;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_STREAM_TAG);
    f.last_tag = crypto_secretstream_xchacha20poly1305_TAG_REKEY;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_STREAM_TAG);
    f = honest(&payload);
    static const unsigned char others[] = {crypto_secretstream_xchacha20poly1305_TAG_PUSH,
                                           crypto_secretstream_xchacha20poly1305_TAG_REKEY,
                                           crypto_secretstream_xchacha20poly1305_TAG_FINAL};
    for (size_t i = 0; i < sizeof others; i++) {
        f.middle_tag = others[i];
        assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_STREAM_TAG);
    }
    iso_buf_free(&payload);
    close_world(&w);
}

static void S31_every_field_of_the_inner_header_is_compared(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(1000, true);
    forged f = honest(&payload);
    iso_envelope h = header_of(65536, 0);
    iso_digest d = iso_digest_of(payload.data, payload.size);
    uint8_t inner[160];
    h.plain_size = payload.size;
    iso_inner_encode(&h, w.sign.public_key, w.merge.public_key, &d, inner);
    f.inner = inner;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_OK);
    for (size_t i = 0; i < 160; i++) { /* magic, ids, keys, digest, size, reserved zeros */
        inner[i] ^= 1;
        assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_INNER_MISMATCH);
        inner[i] ^= 1;
    }
    iso_buf_free(&payload);
    close_world(&w);
}

/* A thief takes a stranger's body, and signs a header of its own around it. */
static void S31_resigning_of_a_stolen_body_is_refused(void **state)
{
    (void)state;
    world victim = open_world(), thief = open_world();
    iso_key_free(&thief.sign);
    thief.sign = key_of(ISO_KEY_SITE_SIGN, 9);
    iso_buf payload = payload_of(1000, true);
    iso_buf sealed = seal(&victim, 65536, 0, &payload);
    sign_again(&thief, &sealed); /* header kept: the associated data still fits */
    assert_int_equal(open_code(&victim, sealed.data, sealed.size), ISO_CODE_SIGNATURE);
    assert_int_equal(open_code(&thief, sealed.data, sealed.size), ISO_CODE_INNER_MISMATCH);
    memset(sealed.data + 32, 0x99, 16); /* its own site id: the chunks no longer open */
    uint8_t id[16];
    iso_update_id(sealed.data + 32, sealed.data + 48, 7, 41, id);
    memcpy(sealed.data + 216, id, 16);
    sign_again(&thief, &sealed);
    assert_int_equal(open_code(&thief, sealed.data, sealed.size), ISO_CODE_STREAM);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&victim);
    close_world(&thief);
}

static void S35_inflation_is_bounded(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(20000, false), packed = {0};
    assert_ok(iso_buf_reserve(&packed, 65536, E));
    packed.size = ZSTD_compress(packed.data, 60000, payload.data, payload.size, 3);
    assert_false(ZSTD_isError(packed.size));
    forged f = honest(&payload);
    f.compression = ISO_COMPRESSION_ZSTD;
    f.stream_payload = packed.data;
    f.stream_payload_size = packed.size;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_OK);
    f.plain_size = payload.size - 1; /* more comes out than was promised */
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_INFLATE);
    f.plain_size = payload.size + 1; /* less */
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_INFLATE);
    f.plain_size = payload.size;
    f.stream_payload_size = packed.size - 1; /* cut */
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_INFLATE);
    packed.data[packed.size] = 0; /* a byte behind the frame */
    f.stream_payload_size = packed.size + 1;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_INFLATE);
    memcpy(packed.data + packed.size, packed.data, packed.size); /* a second frame */
    f.stream_payload_size = 2 * packed.size;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_INFLATE);
    packed.data[0] ^= 1; /* no frame at all */
    f.stream_payload_size = packed.size;
    assert_int_equal(forged_code(&w, &f, &payload), ISO_CODE_INFLATE);
    iso_buf_free(&packed);
    iso_buf_free(&payload);
    close_world(&w);
}

static iso_code code_of_window(world *w, const iso_buf *payload, int window_log)
{
    iso_buf packed = {0};
    ZSTD_CCtx *z = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(z, ZSTD_c_windowLog, window_log);
    ZSTD_CCtx_setParameter(z, ZSTD_c_contentSizeFlag, 0);
    assert_ok(iso_buf_reserve(&packed, ZSTD_compressBound(payload->size), E));
    ZSTD_outBuffer to = {.dst = packed.data, .size = packed.capacity};
    ZSTD_inBuffer from = {.src = payload->data, .size = payload->size};
    assert_int_equal(ZSTD_compressStream2(z, &to, &from, ZSTD_e_end), 0);
    ZSTD_freeCCtx(z);
    forged f = honest(payload);
    f.chunk_size = 262144;
    f.compression = ISO_COMPRESSION_ZSTD;
    f.stream_payload = packed.data;
    f.stream_payload_size = to.pos;
    iso_code code = forged_code(w, &f, payload);
    iso_buf_free(&packed);
    return code;
}

static void S35_zstd_windows_above_8_MiB_are_refused(void **state)
{
    (void)state;
    world w = open_world();
    /* Text longer than the window, so that the window stands in the frame's header as asked. */
    iso_buf payload = payload_of(9 << 20, false);
    assert_int_equal(code_of_window(&w, &payload, 23), ISO_CODE_OK);
    assert_int_equal(code_of_window(&w, &payload, 24), ISO_CODE_INFLATE);
    iso_buf_free(&payload);
    close_world(&w);
}

static void S32_payload_that_is_no_container_is_refused(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf junk = {0};
    assert_ok(iso_buf_append(&junk, "these bytes are no container", 28, E));
    forged f = honest(&junk);
    assert_int_equal(forged_code(&w, &f, &junk), ISO_CODE_CONTAINER);
    iso_buf_free(&junk);
    close_world(&w);
}

/* ---- who and what the worker expects ---- */

static void S36_order_of_refusals(void **state)
{
    (void)state;
    world w = open_world(), other = open_world();
    iso_key_free(&other.merge);
    other.merge = key_of(ISO_KEY_MERGE, 77);
    iso_buf payload = payload_of(1000, true);
    iso_buf sealed = seal(&w, 65536, 0, &payload), got = {0};
    iso_envelope h;
    iso_code code;
    iso_error e;
    iso_open_options opt = *options(&w);
    opt.max_plain_bytes = payload.size - 1;
    assert_int_equal(iso_envelope_open_memory(sealed.data, sealed.size, &opt, &h, &got, &code, &e),
                     ISO_ERR_DATA);
    assert_int_equal(code, ISO_CODE_TOO_LARGE);
    other.federation[3] = 0;
    assert_int_equal(open_code(&other, sealed.data, sealed.size), ISO_CODE_WRONG_SITE);
    other.federation[3] = 0xfe;
    assert_int_equal(open_code(&other, sealed.data, sealed.size), ISO_CODE_MERGE_KEY);
    sealed.data[sealed.size - 1] ^= 1;
    assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_SIGNATURE);
    sealed.data[sealed.size - 1] ^= 1;
    sealed.data[400] ^= 1; /* disk rot */
    assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_BODY_DIGEST);
    sealed.data[400] ^= 1;
    sealed.data[256] ^= 1;
    sign_again(&w, &sealed);
    assert_int_equal(open_code(&w, sealed.data, sealed.size), ISO_CODE_SEALED);
    iso_buf_free(&sealed);
    iso_buf_free(&payload);
    close_world(&w);
    close_world(&other);
}

static void T13_low_order_merge_keys_are_refused(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(100, true), out = {0};
    static const uint8_t keys[2][32] = {{0}, {1}};
    for (size_t i = 0; i < 2; i++) {
        iso_envelope h = header_of(65536, 0);
        iso_error e;
        assert_int_equal(
            iso_envelope_seal(&h, payload.data, payload.size, &w.sign, keys[i], &out, &e),
            ISO_ERR_TRUST);
        assert_int_equal(out.size, 0);
    }
    iso_buf_free(&out);
    iso_buf_free(&payload);
    close_world(&w);
}

static void S33_requests_that_cannot_be_sealed(void **state)
{
    (void)state;
    world w = open_world();
    iso_buf payload = payload_of(100, true), out = {0};
    iso_error e;
    iso_envelope h = header_of(65536, 0);
    h.score = NAN;
    assert_int_equal(
        iso_envelope_seal(&h, payload.data, payload.size, &w.sign, w.merge.public_key, &out, &e),
        ISO_ERR_NONFINITE);
    h = header_of(65536, 0);
    h.sample_count = ISO_SAMPLES_MAX + 1;
    assert_int_equal(
        iso_envelope_seal(&h, payload.data, payload.size, &w.sign, w.merge.public_key, &out, &e),
        ISO_ERR_DATA);
    h = header_of(65536, 0);
    assert_int_equal(iso_envelope_seal(&h, payload.data, 0, &w.sign, w.merge.public_key, &out, &e),
                     ISO_ERR_DATA);
    h = header_of(70000, 0);
    assert_int_equal(
        iso_envelope_seal(&h, payload.data, payload.size, &w.sign, w.merge.public_key, &out, &e),
        ISO_ERR_INTERNAL);
    h = header_of(65536, 0);
    assert_int_equal(
        iso_envelope_seal(&h, payload.data, payload.size, &w.merge, w.merge.public_key, &out, &e),
        ISO_ERR_INTERNAL);
    iso_buf_free(&out);
    iso_buf_free(&payload);
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(S29_header_is_the_table_of_bytes),
        cmocka_unit_test(S29_signature_is_plain_ed25519_over_label_and_blake2b512),
        cmocka_unit_test(S29_update_id_follows_from_site_task_round_sequence),
        cmocka_unit_test(S33_headers_have_one_encoding),
        cmocka_unit_test(S31_what_is_sealed_opens_to_the_same_bytes),
        cmocka_unit_test(S35_zstd_that_shrinks_too_much_is_not_used),
        cmocka_unit_test(S34_sealing_twice_gives_other_bytes),
        cmocka_unit_test(S34_file_and_memory_agree),
        cmocka_unit_test(S40_every_byte_of_a_small_update_flipped_once_is_refused),
        cmocka_unit_test(S40_single_bits_of_a_larger_update_are_refused),
        cmocka_unit_test(S40_flips_under_a_fresh_signature_are_refused),
        cmocka_unit_test(S40_every_prefix_and_every_surplus_is_refused),
        cmocka_unit_test(S40_swapped_duplicated_dropped_chunks_are_refused),
        cmocka_unit_test(S30_every_tag_rule),
        cmocka_unit_test(S31_every_field_of_the_inner_header_is_compared),
        cmocka_unit_test(S31_resigning_of_a_stolen_body_is_refused),
        cmocka_unit_test(S35_inflation_is_bounded),
        cmocka_unit_test(S35_zstd_windows_above_8_MiB_are_refused),
        cmocka_unit_test(S32_payload_that_is_no_container_is_refused),
        cmocka_unit_test(S36_order_of_refusals),
        cmocka_unit_test(T13_low_order_merge_keys_are_refused),
        cmocka_unit_test(S33_requests_that_cannot_be_sealed),
    };
    return cmocka_run_group_tests(tests, start_crypto, NULL);
}
